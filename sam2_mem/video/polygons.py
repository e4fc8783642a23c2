"""Masks as polygons: outlines along the edges of pixels, and the label files of YOLO and COCO."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import yaml
from PIL import Image

from sam2_mem.files import atomic_path, part_path

from .frame import FrameLike
from .writers import MaskWriter


def mask_polygons(mask: np.ndarray, *, tolerance: float = 0.0) -> list[np.ndarray]:
    """The outlines of a mask, along the edges of its pixels: pixel (x, y) is the square from (x, y) to (x + 1, y + 1).

    A hole belongs to the outline around it: a line goes to the hole and the same way back, which encloses nothing. Filled by
    the even-odd rule, the polygons give the mask back exactly, and their area is its number of pixels.

    Args:
        mask: (H, W) bool.
        tolerance: how far, in pixels, an outline may leave the mask's edge to have fewer points; 0 for nowhere.

    Returns:
        a polygon (N, 2) of x and y, float64, for every part of the mask that touches no other; parts that touch at a corner
            are one. Empty for an empty mask.

    Raises:
        ValueError: the mask is not bool (H, W), or the tolerance is negative.
    """
    if mask.dtype != bool or mask.ndim != 2:
        raise ValueError(f"expected a bool (H, W) mask, got {mask.dtype} {mask.shape}; use logits > 0")
    if tolerance < 0:
        raise ValueError(f"expected tolerance >= 0 pixels, got {tolerance}")
    doubled = np.pad(mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1), 1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = [_simplified(_edge_outline(contour[:, 0], doubled), tolerance) for contour in contours]
    parents = [] if hierarchy is None else [int(row[3]) for row in hierarchy[0]]
    return [
        joined_polygon([outline, *(hole for hole, parent in zip(outlines, parents, strict=True) if parent == number)])
        for number, outline in enumerate(outlines)
        if parents[number] < 0
    ]


def joined_polygon(polygons: list[np.ndarray]) -> np.ndarray:
    """One polygon of several: a line from the first to each of the others, between their nearest corners, and the same way back."""
    result = polygons[0]
    for polygon in polygons[1:]:
        distances = np.square(result[:, None] - polygon[None]).sum(axis=2)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        detour = np.concatenate((polygon[there:], polygon[: there + 1], result[here : here + 1]))
        result = np.concatenate((result[: here + 1], detour, result[here + 1 :]))
    return result


def _edge_outline(points: np.ndarray, doubled: np.ndarray) -> np.ndarray:
    """The corners (N, 2) of an outline that was followed through the outermost pixels (M, 2) of a doubled mask with a margin."""
    following = np.roll(points, -1, axis=0)
    # A step across a corner that lies inside leaves out the pixel in the corner; put it in.
    corners = np.stack((points[:, 0], following[:, 1]), axis=1), np.stack((following[:, 0], points[:, 1]), axis=1)
    first, second = (doubled[corner[:, 1], corner[:, 0]] > 0 for corner in corners)
    middle = np.where(first[:, None], corners[0], np.where(second[:, None], corners[1], points))
    path = np.stack((points, middle), axis=1).reshape(-1, 2) // 2
    path = path[(path != np.roll(path, 1, axis=0)).any(axis=1)]
    turns = (path - np.roll(path, 1, axis=0) != np.roll(path, -1, axis=0) - path).any(axis=1)
    return path[turns].astype(np.float64)


def _simplified(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """With fewer points; as it is where fewer than three would be left."""
    if tolerance == 0:
        return outline
    fewer = cv2.approxPolyDP(outline.astype(np.float32)[:, None], tolerance, closed=True)[:, 0]
    return fewer.astype(np.float64) if len(fewer) >= 3 else outline


class _Classes:
    """Classes of objects, from 0.

    Args:
        names: of each object's class, by object id; None: every object is a class of its own, id 1 the first.
    """

    def __init__(self, names: Mapping[int, str] | None) -> None:
        self._names = None if names is None else dict(names)
        self._labels = [] if names is None else sorted(set(names.values()))
        self._largest = 0

    def number(self, obj_id: int) -> int:
        if self._names is not None:
            if obj_id not in self._names:
                raise ValueError(f"expected a class name for object {obj_id}, got names for {sorted(self._names)}")
            return self._labels.index(self._names[obj_id])
        if obj_id < 1:
            raise ValueError(f"expected object ids from 1 where no class names are given, got {obj_id}")
        self._largest = max(self._largest, obj_id)
        return obj_id - 1

    @property
    def labels(self) -> list[str]:
        return self._labels or [f"object {obj_id}" for obj_id in range(1, self._largest + 1)]


class YOLOWriter(MaskWriter):
    """A folder that YOLO trains on: `labels/<name>.txt`, a line `class x y x y ...` for each object that is visible.

    Coordinates are fractions of width and height. An object of several parts is one polygon, see `joined_polygon`; a frame
    without objects is an empty file. `data.yaml` with the classes appears on close; the pictures belong into `images/`.

    Args:
        folder: where to.
        class_names: of objects, by id; default: each object is a class of its own, `object 1` is class 0.
        images: also write `images/<name>.jpg`.
        tolerance: see `mask_polygons`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        class_names: Mapping[int, str] | None = None,
        images: bool = False,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__()
        self._folder = Path(folder)
        self._classes = _Classes(class_names)
        self._images, self._tolerance = images, tolerance

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        with atomic_path(self._folder / "labels" / f"{frame.name}.txt") as part:
            part.write_text("".join(self._lines(masks)), encoding="ascii")
        if self._images:
            if image is None:
                raise ValueError(f"frame {frame.index} ('{frame.name}'): no picture to write; pass a Frame or image=")
            with atomic_path(self._folder / "images" / f"{frame.name}.jpg") as part:
                Image.fromarray(image).save(part, format="JPEG", quality=95)

    def _lines(self, masks: dict[int, np.ndarray]) -> Iterator[str]:
        for obj_id, mask in masks.items():
            number = self._classes.number(obj_id)
            polygons = mask_polygons(mask, tolerance=self._tolerance)
            if polygons:
                fractions = joined_polygon(polygons) / (mask.shape[1], mask.shape[0])
                yield f"{number} {' '.join(f'{value:.6g}' for value in fractions.ravel())}\n"

    def _finish(self) -> None:
        data = {"path": ".", "train": "images", "val": "images", "names": dict(enumerate(self._classes.labels))}
        with atomic_path(self._folder / "data.yaml") as part:
            part.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")


class COCOWriter(MaskWriter):
    """COCO's JSON of polygons, on close; `area` and `bbox` are those of the mask, `track_id` is the object's id.

    Args:
        path: ends in `.json`.
        video: of the file names: `<video>/<name>.jpg`.
        class_names: of objects, by id; default: each object is a category of its own, whose id is the object's.
        tolerance: see `mask_polygons`.
    """

    def __init__(
        self, path: str | Path, *, video: str, class_names: Mapping[int, str] | None = None, tolerance: float = 0.0
    ) -> None:
        super().__init__()
        self._path = Path(path)
        if self._path.suffix != ".json":
            raise ValueError(f"expected a path ending in .json, got '{path}'")
        self._video, self._tolerance, self._classes = video, tolerance, _Classes(class_names)
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lines = part_path(self._path, ".lines")
        self._file: IO[str] = self._lines.open("w+", encoding="ascii")

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        assert self._size is not None
        height, width = self._size
        number = len(self._images) + 1
        name = f"{self._video}/{frame.name}.jpg"
        self._images.append(
            {"id": number, "file_name": name, "height": height, "width": width, "frame_index": int(frame.index)}
        )
        for obj_id, mask in masks.items():
            category = self._classes.number(obj_id) + 1
            if mask.any():
                self._add({"image_id": number, "category_id": category, "track_id": int(obj_id)}, mask)

    def _add(self, annotation: dict[str, Any], mask: np.ndarray) -> None:
        polygons = mask_polygons(mask, tolerance=self._tolerance)
        self._count += 1
        annotation |= {
            "id": self._count,
            "segmentation": [polygon.ravel().tolist() for polygon in polygons],
            "area": int(np.count_nonzero(mask)),
            "bbox": list(map(float, cv2.boundingRect(mask.astype(np.uint8)))),
            "iscrowd": 0,
        }
        self._file.write(("" if self._count == 1 else ",\n") + json.dumps(annotation, separators=(",", ":")))

    def _finish(self) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self._classes.labels, start=1)]
        self._file.seek(0)
        with atomic_path(self._path) as part, part.open("w", encoding="utf-8") as out:
            out.write(json.dumps({"images": self._images, "categories": categories}).removesuffix("}"))
            out.write(', "annotations": [\n')
            out.writelines(self._file)
            out.write("\n]}\n")
        self._discard()

    def _discard(self) -> None:
        self._file.close()
        self._lines.unlink(missing_ok=True)
