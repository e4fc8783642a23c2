"""A video with its masks as an item of a data set, in the folders that tools for DAVIS, YouTube-VOS and SA-V read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam2_mem.files import atomic_path, read_lines

from .frame import FrameLike
from .writers import MaskWriter, PaletteWriter, PerObjectWriter

JPEG_QUALITY = 95


@dataclass(frozen=True)
class DatasetFolders:
    """Where a data set keeps things, relative to its root: pictures, masks, and ``listing``, the file that names its videos."""

    pictures: str
    masks: str
    listing: str
    per_object: bool = False


FOLDERS: Mapping[str, DatasetFolders] = {
    "davis2017": DatasetFolders("JPEGImages/480p", "Annotations/480p", "ImageSets/2017/val.txt"),
    "youtubevos": DatasetFolders("valid/JPEGImages", "valid/Annotations", "valid/meta.json"),
    "sav": DatasetFolders("JPEGImages_24fps", "Annotations_6fps", "sav_val.txt", per_object=True),
}
"""By name, as in ``sam2_mem.evaluation.datasets``, which reads what is written here."""


class DatasetWriter(MaskWriter):
    """Pictures (JPEG), masks of every frame, and the file that lists the video, beside other videos of the same root.

    Args:
        root: of the data set.
        video: name of the video.
        layout: a key of ``FOLDERS``.
        names: what objects are called, by id; the categories of YouTube-VOS.
    """

    def __init__(
        self, root: str | Path, video: str, layout: str = "davis2017", names: Mapping[int, str] | None = None
    ) -> None:
        super().__init__()
        if layout not in FOLDERS:
            raise ValueError(f"expected a layout out of {', '.join(FOLDERS)}, got {layout!r}")
        self._root, self._video, self._names = Path(root), video, dict(names or {})
        self._folders = FOLDERS[layout]
        kind = PerObjectWriter if self._folders.per_object else PaletteWriter
        self._masks = kind(self._root / self._folders.masks, video)
        self._frames_of: dict[int, list[str]] = {}

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        if image is None:
            raise ValueError(f"frame {frame.index} ('{frame.name}'): no picture to write; pass a Frame or image=")
        with atomic_path(self._root / self._folders.pictures / self._video / f"{frame.name}.jpg") as part:
            Image.fromarray(image).save(part, format="JPEG", quality=JPEG_QUALITY)
        self._masks.write(frame, masks)
        for obj_id in masks:
            self._frames_of.setdefault(obj_id, []).append(frame.name)

    def _finish(self) -> None:
        self._masks.close()
        path = self._root / self._folders.listing
        text = self._meta(path) if path.suffix == ".json" else self._listed(path)
        with atomic_path(path) as part:
            part.write_text(text, encoding="utf-8")

    def _listed(self, path: Path) -> str:
        names = read_lines(path) if path.is_file() else []
        return "\n".join(dict.fromkeys([*names, self._video])) + "\n"

    def _meta(self, path: Path) -> str:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        objects = {
            str(obj_id): {"category": self._names.get(obj_id, "object"), "frames": frames}
            for obj_id, frames in sorted(self._frames_of.items())
        }
        meta.setdefault("videos", {})[self._video] = {"objects": objects}
        return json.dumps(meta, indent=1) + "\n"
