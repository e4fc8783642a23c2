"""Masks of a video as one JSON file of COCO run lengths."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sam2_mem.files import atomic_path

from .frame import FrameLike
from .writers import MaskWriter


@dataclass(frozen=True)
class RLEObject:
    """One mask. `size` is (height, width), `counts` COCO's compressed string, `bbox` x, y, width, height."""

    id: int
    size: tuple[int, int]
    counts: str
    area: int
    bbox: tuple[float, float, float, float]

    def mask(self) -> np.ndarray:
        """The (H, W) bool mask."""
        return coco.decode({"size": list(self.size), "counts": self.counts.encode("ascii")}).astype(bool)


@dataclass(frozen=True)
class RLEFrame:
    index: int
    name: str
    objects: tuple[RLEObject, ...]

    def masks(self) -> dict[int, np.ndarray]:
        """The (H, W) bool mask of each object id."""
        return {item.id: item.mask() for item in self.objects}


@dataclass(frozen=True)
class RLEVideo:
    """A whole file; height and width are None if it has no frame."""

    video: str
    height: int | None
    width: int | None
    frames: tuple[RLEFrame, ...]


def encode_mask(obj_id: int, mask: np.ndarray) -> RLEObject:
    """Encode an (H, W) bool mask."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    x, y, width, height = (float(value) for value in coco.toBbox(rle))
    size = int(mask.shape[0]), int(mask.shape[1])
    return RLEObject(int(obj_id), size, rle["counts"].decode("ascii"), int(coco.area(rle)), (x, y, width, height))


class RLEWriter(MaskWriter):
    """Writes `path` (.json) on close; until then every frame is a line of a journal beside it (.jsonl).

    A journal left by a run that was killed or failed is continued: `finished` tells which frames it has. Writing a
    frame again replaces it. Frames are sorted by index in the end, whatever order they came in.
    """

    def __init__(self, path: str | Path, *, video: str, resume: bool = True) -> None:
        super().__init__()
        self._path = Path(path)
        if self._path.suffix != ".json":
            raise ValueError(f"expected a path ending in .json, got '{path}'")
        self._video = video
        self._offsets: dict[int, int] = {}
        self._names: dict[int, str] = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.journal = self._path.with_suffix(".jsonl")
        self._file = self.journal.open("r+b" if resume and self.journal.exists() else "w+b")
        self._load_journal()

    @property
    def finished(self) -> frozenset[str]:
        """Names of the frames written so far, earlier runs included."""
        return frozenset(self._names.values())

    def _load_journal(self) -> None:
        """Index the complete lines, and cut off a line that a kill left unfinished."""
        end = 0
        for line in self._file:
            entry = _parse_line(line)
            if entry is None:
                break
            if end == 0:
                self._accept_header(entry)
            else:
                self._note(entry["index"], entry["name"], end)
            end += len(line)
        self._file.seek(end)
        self._file.truncate()

    def _accept_header(self, entry: dict[str, Any]) -> None:
        if entry.get("video") != self._video:
            self._file.close()
            raise ValueError(
                f"the journal '{self.journal}' belongs to video {entry.get('video')!r}, not "
                f"{self._video!r}; delete it, write elsewhere, or pass resume=False"
            )
        self._size = entry["height"], entry["width"]

    def _note(self, index: int, name: str, offset: int) -> None:
        self._offsets[index] = offset
        self._names[index] = name

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        assert self._size is not None
        if self._file.tell() == 0:
            self._append({"video": self._video, "height": self._size[0], "width": self._size[1]})
        objects = tuple(encode_mask(obj_id, mask) for obj_id, mask in masks.items())
        offset = self._file.tell()
        self._append(asdict(RLEFrame(int(frame.index), frame.name, objects)))
        self._note(int(frame.index), frame.name, offset)

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def _finish(self) -> None:
        height, width = self._size or (None, None)
        header = json.dumps({"video": self._video, "height": height, "width": width})
        with atomic_path(self._path) as part, part.open("wb") as out:
            out.write(header.removesuffix("}").encode() + b', "frames": [')
            for count, index in enumerate(sorted(self._offsets)):
                self._file.seek(self._offsets[index])
                out.write((b",\n" if count else b"\n") + self._file.readline().rstrip(b"\n"))
            out.write(b"\n]}\n")
        self._file.close()
        os.unlink(self.journal)

    def _discard(self) -> None:
        self._file.close()


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """A journal entry, or None if the line is unfinished."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def read_rle(path: str | Path) -> RLEVideo:
    """Read a file that `RLEWriter` has finished."""
    path = Path(path)
    journal = path.with_suffix(".jsonl")
    if not path.exists() and journal.exists():
        raise FileNotFoundError(f"'{path}' is not finished; its journal '{journal}' is there: run again to continue it")
    try:
        content = json.loads(path.read_text())
        frames = tuple(_to_frame(entry) for entry in content["frames"])
        return RLEVideo(content["video"], content["height"], content["width"], frames)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected a JSON file written by RLEWriter in '{path}', got {error!r}") from error


def _to_frame(entry: dict[str, Any]) -> RLEFrame:
    objects = tuple(
        RLEObject(item["id"], tuple(item["size"]), item["counts"], item["area"], tuple(item["bbox"]))
        for item in entry["objects"]
    )
    return RLEFrame(entry["index"], entry["name"], objects)
