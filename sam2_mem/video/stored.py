"""Videos that can be read in any order: a folder of images, arrays in memory, a video file."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .decoding import FrameTimes, VideoReader
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
NEAR = 12
"""Frames ahead of a reader, or of the start of a file, up to which decoding is as fast as a seek."""


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
    """A video file, decoded by PyAV. Every index is exact: frames are counted, and a seek is believed only where the time of
    the frame it came to is one of the file's (`sam2_mem.video.decoding`).

    Forwards, every frame is decoded. Going back, and a pass that begins later, seek. The number of frames that a container
    states is not trusted: `num_frames` is None until a pass or `count_frames` has found it.

    A damaged frame, one that cannot be decoded although a later one can, is a ValueError. Where the frames end before the
    length that the file states, there is a warning; `stated_length` is that length.
    """

    _length_advice = "count_frames() reads the file to find it"

    def __init__(self, path: Path, *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._path = path
        self._times: FrameTimes | None = None
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
                f"cannot read video '{path}': no frame could be decoded; the file may be damaged or use a "
                "codec that PyAV lacks; convert it with ffmpeg, or extract its frames into a folder"
            )
        self._cache.add(self._make_frame(0, first))

    @property
    def fps(self) -> float | None:
        return self._reader.fps

    def count_frames(self) -> int:
        """The exact number of frames: that of the file's packets where it is also what the file states, else the video is decoded."""
        self._check_open()
        self._reader.check()
        if self._length is None and self._all_times().num_frames == self.stated_length:
            self._length = self.stated_length
        if self._length is None:
            with closing(VideoReader(self._path)) as reader:
                reader.skip_to(sys.maxsize)
                self._met_end(reader)
        return len(self)

    def close(self) -> None:
        if self._times is not None:
            self._times.close()
        super().close()
        self._reader.close()

    def _all_times(self) -> FrameTimes:
        """Of all frames, read from the file the first time."""
        self._times = FrameTimes(self._path) if self._times is None else self._times
        self._times.wait()
        return self._times

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
        """Block by block, each sought by its first frame."""
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

    def _known_times(self, index: int) -> FrameTimes | None:
        """Times to seek frame ``index`` by, None where it cannot be sought."""
        times = self._all_times()
        return times if index < len(times) else None

    def _reader_at(self, index: int) -> VideoReader:
        """A reader whose next frame is ``index`` or an earlier one."""
        reader = VideoReader(self._path)
        times = self._known_times(index) if index >= NEAR else None
        if times is not None and not reader.seek(index, times):
            reader.close()
            reader = VideoReader(self._path)
        return reader

    def _is_sought(self, index: int) -> bool:
        """Whether frame ``index`` is sought, not decoded to."""
        return index < self._reader.position

    def _fetch(self, index: int) -> Frame:
        first = index
        if self._is_sought(index):
            backwards = index < self._reader.position
            # Stepping back usually goes on: also keep the frames just before this one.
            first = max(index - max(self._cache.size, 1) + 1, 0) if backwards else index
            self._reader.close()
            self._reader = self._reader_at(first)
        for earlier in range(first, index):
            self._cache.add(self._read_exactly(earlier))
        return self._read_exactly(index)

    def _read_exactly(self, index: int) -> Frame:
        image = self._reader.read(index)
        if image is None:
            self._met_end(self._reader)
            raise self._out_of_range(index)
        return self._make_frame(index, image)


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
