"""Videos that can be read in any order: a folder of images, arrays in memory, a video file."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from .frame import Frame, to_rgb
from .source import Frames, SeekableSource

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
REVERSE_BLOCK = 16


class FolderSource(SeekableSource):
    """A folder of JPEG or PNG files in natural order (2 before 10); a frame's name is the stem of its file.

    EXIF orientation is not applied, as in SAM 2.
    """

    def __init__(self, folder: Path, *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._paths = _list_images(folder)
        self._length = len(self._paths)

    def name(self, index: int) -> str:
        if not 0 <= index < len(self._paths):
            raise self._out_of_range(index)
        return self._paths[index].stem

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, _read_image(self._paths[index], index))


class ArraySource(SeekableSource):
    """Frames the user already has in memory: a 4-D array or tensor, or a sequence of images. Holds no copies."""

    def __init__(self, images: np.ndarray | torch.Tensor | Sequence[Any]) -> None:
        super().__init__(prefetch=0, cache=0)
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim != 4:
            raise ValueError(
                f"expected a video of shape (T, H, W, 3) or (T, 3, H, W), got {tuple(images.shape)}; "
                "for a single image add a leading axis: image[None]"
            )
        if len(images) == 0:
            raise ValueError("expected at least one frame, got an empty video")
        self._images = images
        self._length = len(images)
        self._fetch(0)

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, to_rgb(self._images[index], f"frame {index}"))


class FileSource(SeekableSource):
    """A video file, decoded by OpenCV from its start, so that every index is exact.

    Container frame counts and OpenCV's own seeking are not trusted: going back means opening the file again and
    decoding up to the frame, and `num_frames` is None until a pass or `count_frames` has met the end.
    """

    _length_advice = "count_frames() decodes the file to find it"

    def __init__(self, path: Path, *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._path = path
        self._reader = _Reader(path)
        first = self._reader.read(0)
        if first is None:
            self._reader.close()
            raise ValueError(
                f"cannot read video '{path}': OpenCV decoded no frame; the file may be damaged or use a "
                "codec that OpenCV lacks; convert it with ffmpeg, or extract its frames into a folder"
            )
        self._cache.add(self._make_frame(0, first))

    @property
    def fps(self) -> float | None:
        return self._reader.fps

    def count_frames(self) -> int:
        """The exact number of frames; decodes the rest of the video the first time."""
        self._check_open()
        if self._length is None:
            with closing(_Reader(self._path)) as reader:
                reader.skip_to(sys.maxsize)
                self._met_end(reader)
        return len(self)

    def close(self) -> None:
        super().close()
        self._reader.close()

    def _met_end(self, reader: _Reader) -> None:
        if self._length is None and reader.position != reader.stated_length:
            logger.info("%s states %d frames; %d could be decoded", self._path, reader.stated_length, reader.position)
        self._length = reader.position

    def _decode(self, indices: range) -> Frames:
        return self._forward(indices, indices.start) if indices.step > 0 else self._backward(indices)

    def _forward(self, indices: range, required: int) -> Frames:
        """Decode ascending `indices` up to the end of the file; IndexError if that comes before frame `required`."""
        with closing(_Reader(self._path)) as reader:
            for index in indices:
                image = reader.read(index)
                if image is None:
                    self._met_end(reader)
                    if index <= required:
                        raise self._out_of_range(required)
                    return
                yield self._make_frame(index, image)
                del image  # or the frame before last would stay alive while the next is decoded

    def _backward(self, indices: range) -> Frames:
        """Each block decodes from the start of the file: quadratic in the end, but exact and small."""
        if len(indices) > 4000:
            logger.warning(
                "reading %d frames of %s in reverse decodes it many times; a folder of frames is faster",
                len(indices),
                self._path,
            )
        for begin in range(0, len(indices), REVERSE_BLOCK):
            yield from self._reversed_block(indices[begin : begin + REVERSE_BLOCK])

    def _reversed_block(self, indices: range) -> Frames:
        block: list[Frame] = []
        try:
            for frame in self._forward(indices[::-1], indices[0]):
                block.append(frame)
                self._waiting.add(1)
            del frame
            while block:
                self._waiting.add(-1)
                yield block.pop()
        finally:
            self._waiting.add(-len(block))

    def _fetch(self, index: int) -> Frame:
        backwards = index < self._reader.position
        if backwards:
            self._reader.close()
            self._reader = _Reader(self._path)
        # Stepping back usually goes on: also keep the frames just before this one.
        first = max(index - self._cache.size + 1, 0) if backwards else index
        for earlier in range(first, index):
            self._cache.add(self._read_exactly(earlier))
        return self._read_exactly(index)

    def _read_exactly(self, index: int) -> Frame:
        image = self._reader.read(index)
        if image is None:
            self._met_end(self._reader)
            raise self._out_of_range(index)
        return self._make_frame(index, image)


class _Reader:
    """One pass of OpenCV over a file; `position` is the index of the next frame, counted by decoding."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        self.position = 0
        self.stated_length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or None

    def skip_to(self, index: int) -> bool:
        """Decode up to `index` without converting pixels; False at the end of the video."""
        while self.position < index and self._capture.grab():
            self.position += 1
        return self.position == index

    def read(self, index: int) -> np.ndarray | None:
        """The RGB image at `index`, which must not lie behind; None past the end."""
        assert index >= self.position
        if not self.skip_to(index):
            return None
        ok, bgr = self._capture.read()
        if not ok:
            return None
        self.position += 1
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


def _list_images(folder: Path) -> list[Path]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    paths = [entry for entry in entries if entry.suffix.lower() in IMAGE_EXTENSIONS and entry.is_file()]
    if not paths:
        names = ", ".join(sorted(entry.name for entry in entries)[:3]) or "nothing"
        raise ValueError(f"no frames in '{folder}': looked for {', '.join(IMAGE_EXTENSIONS)} (any case), found {names}")
    by_stem: dict[str, Path] = {}
    for path in paths:
        first = by_stem.setdefault(path.stem, path)
        if first is not path:
            raise ValueError(
                f"two frames share one name in '{folder}': '{first.name}' and '{path.name}'; remove one of them"
            )
    return sorted(paths, key=lambda path: (_natural_key(path.stem), path.stem))


def _natural_key(stem: str) -> list[tuple[int, int, str]]:
    """Digit runs compare as numbers, other text as text: 'frame2' < 'frame10'."""
    runs = re.findall(r"[0-9]+|[^0-9]+", stem)
    return [(0, int(run), "") if run.isdecimal() else (1, 0, run) for run in runs]


def _read_image(path: Path, index: int) -> np.ndarray:
    label = f"frame {index} ('{path}')"
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image, label)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {label}: {error}; replace or remove the file") from error
