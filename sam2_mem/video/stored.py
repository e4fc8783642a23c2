"""Videos that can be read in any order: a folder of images, arrays in memory, a video file."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from .frame import Frame, PictureReader
from .source import Frames, SeekableSource

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
_KINDS = ", ".join(IMAGE_EXTENSIONS)
OTHER_PICTURES = (
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jfif",
    ".jpe",
    ".ppm",
    ".tga",
)
"""Endings of pictures that are not read from a folder."""
REVERSE_BLOCK = 16
SEEK_BACK = (1, 32, 128)
"""Frames before the one wanted at which a seek is tried, in turn."""
MAX_ATTEMPTS = 20_000
"""Frames that may fail to be decoded, one after the other, before a file counts as ended; less than a second."""


class PictureSource(SeekableSource):
    """Picture files in the order given; a frame's name is the stem of its file.

    EXIF orientation is not applied, as in SAM 2; there is a warning.
    """

    def __init__(self, paths: Sequence[Path], *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._paths = _checked_pictures(paths)
        self._length = len(self._paths)
        self._to_rgb = PictureReader()

    def name(self, index: int) -> str:
        if not 0 <= index < len(self._paths):
            raise self._out_of_range(index)
        return self._paths[index].stem

    def _fetch(self, index: int) -> Frame:
        label = f"frame {index} ('{self._paths[index]}')"
        try:
            with Image.open(self._paths[index]) as image:
                image.load()
                return self._make_frame(index, self._to_rgb(image, label))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {label}: {error}; replace or remove the file") from error


class FolderSource(PictureSource):
    """A folder of JPEG or PNG files in natural order (2 before 10)."""

    def __init__(self, folder: Path, *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(_list_images(folder), prefetch=prefetch, cache=cache)


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
        self._to_rgb = PictureReader()
        self._fetch(0)

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, self._to_rgb(self._images[index], f"frame {index}"))


class FileSource(SeekableSource):
    """A video file, decoded by OpenCV from its start, so that every index is exact.

    Container frame counts and OpenCV's own seeking are not trusted: going back means opening the file again and
    decoding up to the frame, and `num_frames` is None until a pass or `count_frames` has met the end.

    A damaged frame, one that cannot be decoded although a later one can, is a ValueError. Where the frames end before the
    length that the file states, there is a warning; `stated_length` is that length.
    """

    _length_advice = "count_frames() decodes the file to find it"

    def __init__(self, path: Path, *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._path = path
        self._reader = VideoReader(path)
        self.stated_length = self._reader.stated_length
        try:
            first = self._reader.read(0)
        except ValueError:
            self._reader.close()
            raise
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
            with closing(VideoReader(self._path)) as reader:
                reader.skip_to(sys.maxsize)
                self._met_end(reader)
        return len(self)

    def close(self) -> None:
        super().close()
        self._reader.close()

    def _met_end(self, reader: VideoReader) -> None:
        if self._length is None and self.stated_length is not None and reader.position != self.stated_length:
            level = logging.WARNING if reader.position < self.stated_length else logging.INFO
            where = (
                "" if reader.jump is None else f"; time jumps before frame {reader.jump}, frames may be missing there"
            )
            counts = self.stated_length, reader.position
            logger.log(level, "%s states %d frames; %d could be decoded%s", self._path, *counts, where)
        self._length = reader.position

    def _decode(self, indices: range) -> Frames:
        return self._forward(indices, indices.start) if indices.step > 0 else self._backward(indices)

    def _forward(self, indices: range, required: int) -> Frames:
        """Decode ascending `indices` up to the end of the file; IndexError if that comes before frame `required`."""
        with closing(self._reader_at(indices.start)) as reader:
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

    def _reader_at(self, index: int) -> VideoReader:
        """A reader whose next frame is ``index`` or an earlier one."""
        return VideoReader(self._path)

    def _fetch(self, index: int) -> Frame:
        backwards = index < self._reader.position
        if backwards:
            self._reader.close()
            self._reader = VideoReader(self._path)
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


class VideoReader:
    """One pass of OpenCV over a file; `position` is the index of the next frame, counted by decoding; `jump` that of the
    first frame that comes later than the frame rate lets expect."""

    def __init__(self, path: Path) -> None:
        self._path = path
        # An absolute path: "10:30.mp4" would be taken for the address of a protocol called 10.
        self._capture = cv2.VideoCapture(str(path.absolute()))
        self.position = 0
        stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.stated_length = stated if stated > 0 else None
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or None
        self.jump: int | None = None
        self._time = 0.0
        self._failure: ValueError | None = None

    def skip_to(self, index: int) -> bool:
        """Decode up to `index` without converting pixels; False at the end of the video."""
        while self.position < index and self._grab():
            self.position += 1
        return self.position == index

    def _grab(self) -> bool:
        """Decode one frame; False at the end of the video, ValueError where only a later one can be decoded."""
        if self._failure is None and self._capture.grab():
            self._note_time()
            return True
        attempts = 0 if self._failure is not None else min((self.stated_length or 0) - self.position, MAX_ATTEMPTS)
        if any(self._capture.grab() for _ in range(attempts)):
            self._failure = ValueError(
                f"cannot read frame {self.position} of '{self._path}': the file is damaged there, later frames can be "
                "decoded; replace it, or convert it with ffmpeg, which leaves the damaged frames out"
            )
        if self._failure is not None:
            raise self._failure
        return False

    def _note_time(self) -> None:
        earlier, self._time = self._time, self._capture.get(cv2.CAP_PROP_POS_MSEC)
        if self.jump is None and self.fps and self._time - earlier > 1900 / self.fps:
            self.jump = self.position

    def read(self, index: int) -> np.ndarray | None:
        """The RGB image at `index`, which must not lie behind; None past the end."""
        assert index >= self.position
        if not self.skip_to(index):
            return None
        if not self._grab():
            return None
        ok, bgr = self._capture.retrieve()
        if not ok:
            raise ValueError(f"cannot read frame {index} of '{self._path}': OpenCV decoded it but gives no picture")
        self.position += 1
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)

    def seek(self, index: int, index_of: Callable[[float], int | None]) -> bool:
        """Go to where the next frame is `index`. OpenCV may come to another place than it was sent to, so the time of the frame
        it came to decides.

        Args:
            index: of a frame.
            index_of: the frame at a time in milliseconds, None where that is not certain.

        Returns:
            False where the place is not certain; the reader can then only be closed.
        """
        self._failure = None
        for back in SEEK_BACK:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, max(index - back, 0))
            while self._capture.grab():
                self._time = self._capture.get(cv2.CAP_PROP_POS_MSEC)
                current = index_of(self._time)
                if current is None or current >= index:
                    break
                if current == index - 1:
                    self.position = index
                    return True
        self.position = sys.maxsize
        return False

    def close(self) -> None:
        self._capture.release()


def _list_images(folder: Path) -> list[Path]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    paths = [entry for entry in entries if entry.suffix.lower() in IMAGE_EXTENSIONS]
    if not paths:
        names = ", ".join(sorted(entry.name for entry in entries)[:3]) or "nothing"
        raise ValueError(f"no frames in '{folder}': looked for {_KINDS} (any case), found {names}")
    others = sorted(entry.name for entry in entries if entry.suffix.lower() in OTHER_PICTURES)
    if others:
        logger.warning(
            "%d pictures in '%s' are not read, e.g. '%s'; frames are %s", len(others), folder, others[0], _KINDS
        )
    return sorted(paths, key=lambda path: (_natural_key(path.stem), path.stem))


def _checked_pictures(paths: Sequence[Path]) -> list[Path]:
    """ValueError where a path is no file, or two frames would have one name."""
    by_stem: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"cannot read '{path}': expected a picture, got {_description(path)}; replace or remove it, or leave it out"
            )
        first = by_stem.setdefault(path.stem, path)
        if first is not path:
            folder = "" if first.parent != path.parent else f" in '{path.parent}'"
            names = (str(first), str(path)) if not folder else (first.name, path.name)
            raise ValueError(f"two frames share one name{folder}: '{names[0]}' and '{names[1]}'; remove one of them")
    return list(paths)


def _description(path: Path) -> str:
    """What a path that is no file is."""
    if path.is_dir():
        return "a folder"
    return f"a link to '{path.readlink()}', which does not exist" if path.is_symlink() else "no such file"


def _natural_key(stem: str) -> list[tuple[int, int, str]]:
    """Digit runs compare as numbers, other text as text: 'frame2' < 'frame10'."""
    runs = re.findall(r"[0-9]+|[^0-9]+", stem)
    return [(0, int(run), "") if run.isdecimal() else (1, 0, run) for run in runs]
