"""Video sources: one frame at a time from a folder, a file, arrays, an iterator or a camera.

A source never holds a whole video. It holds at most `prefetch` decoded frames ahead of the consumer, `cache` recent
ones and the one in hand; reading a video file backwards adds one block of REVERSE_BLOCK frames.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image

from .frame import Frame, to_rgb
from .prefetch import Ledger, prefetched

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png")
VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
REVERSE_BLOCK = 16

Frames: TypeAlias = Generator[Frame, None, None]


class VideoSource(ABC):
    """Frames by iteration or by index. Close it, or use it in a `with` statement."""

    def __init__(self, *, prefetch: int = 2, cache: int = 4) -> None:
        for label, value in (("prefetch", prefetch), ("cache", cache)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"expected {label} to be an integer >= 0, got {value!r}")
        self._prefetch = prefetch
        self._cache_size = cache
        self._cache: OrderedDict[int, Frame] = OrderedDict()
        self._ledger = Ledger()
        self._lock = threading.RLock()
        self._size: tuple[int, int] | None = None
        self._length: int | None = None
        self._closed = False
        self._passes: weakref.WeakSet[Frames] = weakref.WeakSet()

    @property
    @abstractmethod
    def seekable(self) -> bool:
        """Whether any frame can be asked for at any time."""

    @abstractmethod
    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Frames:
        """Iterate like `range(start, stop, step)`. The ends default to the ends of the video; `stop` may lie beyond it."""

    @abstractmethod
    def __getitem__(self, index: int) -> Frame:
        """The frame at `index` (>= 0); IndexError names the valid range."""

    @property
    def height(self) -> int:
        return self._get_size()[0]

    @property
    def width(self) -> int:
        return self._get_size()[1]

    @property
    def fps(self) -> float | None:
        """Frames per second, where the source knows it."""
        return None

    @property
    def num_frames(self) -> int | None:
        """The exact number of frames, or None while it is unknown or endless."""
        return self._length

    def count_frames(self) -> int:
        """The exact number of frames, found by decoding where there is no cheaper way; TypeError for a stream."""
        return len(self)

    def __len__(self) -> int:
        if self.num_frames is None:
            raise TypeError(f"the length of this {type(self).__name__} is not known; {self._length_advice()}")
        return self.num_frames

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def name(self, index: int) -> str:
        """The stem to use for output files of frame `index`."""
        return f"{index:05d}"

    @property
    def held_frames(self) -> int:
        """How many decoded frames the source holds now."""
        return self._ledger.count + len(self._cache)

    def close(self) -> None:
        """End running iterations and let go of frames and files."""
        self._closed = True
        for running in list(self._passes):
            running.close()
        self._cache.clear()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _length_advice(self) -> str:
        return "it is known only when the stream has ended"

    @abstractmethod
    def _get_size(self) -> tuple[int, int]: ...

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this video source has been closed; open it again with open_video")

    def _make_frame(self, index: int, image: np.ndarray) -> Frame:
        """Wrap an RGB image; the first one fixes the size of the video."""
        size = image.shape[0], image.shape[1]
        if self._size is None:
            self._size = size
        if size != self._size:
            raise ValueError(f"frame {index} ('{self.name(index)}'): expected {self._size[0]}x{self._size[1]} pixels "
                             f"(height x width) like the frames before, got {size[0]}x{size[1]}; resize the frames to one size")
        return Frame(index, self.name(index), image)

    def _keep(self, frame: Frame) -> Frame:
        with self._lock:
            self._cache[frame.index] = frame
            self._cache.move_to_end(frame.index)
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
        return frame

    def _cached(self, index: int) -> Frame | None:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
            return self._cache.get(index)

    def _out_of_range(self, index: int) -> IndexError:
        known = f"0 to {self._length - 1}" if self._length is not None else "0 upwards"
        return IndexError(f"frame {index} is out of range; valid frames are {known}")


class _SeekableSource(VideoSource):
    """A source whose frames can be decoded in any order, on a thread of their own."""

    @property
    def seekable(self) -> bool:
        return True

    @abstractmethod
    def _decode(self, indices: range) -> Frames:
        """Decode these frames in this order; stop quietly at the end of the video."""

    @abstractmethod
    def _fetch(self, index: int) -> Frame:
        """Decode one frame; IndexError past the end."""

    def _get_size(self) -> tuple[int, int]:
        if self._size is None:
            self[0]
        assert self._size is not None
        return self._size

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Frames:
        self._check_open()
        running = self._deliver(self._resolve(start, stop, step))
        self._passes.add(running)
        return running

    def __getitem__(self, index: int) -> Frame:
        self._check_open()
        if index < 0 or (self._length is not None and index >= self._length):
            raise self._out_of_range(index)
        with self._lock:
            return self._cached(index) or self._keep(self._fetch(index))

    def _deliver(self, indices: range) -> Frames:
        with closing(prefetched(self._decode(indices), self._prefetch, self._ledger)) as ahead:
            for frame in ahead:
                yield self._keep(frame)

    def _resolve(self, start: int | None, stop: int | None, step: int) -> range:
        if step == 0:
            raise ValueError("expected a step other than 0; use 1 for forward, -1 for reverse")
        if start is None:
            start = 0 if step > 0 else self.count_frames() - 1
        if start < 0 or (self._length is not None and start >= self._length):
            raise self._out_of_range(start)
        if stop is not None and stop < 0:
            raise IndexError(f"expected stop >= 0 or None for the end of the video, got {stop}")
        if step < 0:
            return range(start, -1 if stop is None else stop, step)
        ends = [end for end in (stop, self._length) if end is not None]
        return range(start, min(ends, default=sys.maxsize), step)


class FolderSource(_SeekableSource):
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

    def _decode(self, indices: range) -> Frames:
        for index in indices:
            yield self._fetch(index)

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, _read_image(self._paths[index], index))


class ArraySource(_SeekableSource):
    """Frames the user already has in memory: a 4-D array or tensor, or a sequence of images. Holds no copies."""

    def __init__(self, images: np.ndarray | torch.Tensor | Sequence[Any]) -> None:
        super().__init__(prefetch=0, cache=0)
        if isinstance(images, np.ndarray | torch.Tensor) and images.ndim != 4:
            raise ValueError(f"expected a video of shape (T, H, W, 3) or (T, 3, H, W), got {tuple(images.shape)}; "
                             "for a single image add a leading axis: image[None]")
        if len(images) == 0:
            raise ValueError("expected at least one frame, got an empty video")
        self._images = images
        self._length = len(images)
        self._fetch(0)

    def _decode(self, indices: range) -> Frames:
        for index in indices:
            yield self._fetch(index)

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, to_rgb(self._images[index], f"frame {index}"))


class FileSource(_SeekableSource):
    """A video file, decoded by OpenCV from its start, so that every index is exact.

    Container frame counts and OpenCV's own seeking are not trusted: going back means opening the file again and
    decoding up to the frame, and `num_frames` is None until a pass or `count_frames` has met the end.
    """

    def __init__(self, path: Path, *, prefetch: int = 2, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._path = path
        self._reader = _Reader(path)
        first = self._reader.read(0)
        if first is None:
            self._reader.close()
            raise ValueError(f"cannot read video '{path}': OpenCV decoded no frame; the file may be damaged or use a codec "
                             "that OpenCV lacks; convert it with ffmpeg, or extract its frames into a folder")
        self._keep(self._make_frame(0, first))

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

    def _length_advice(self) -> str:
        return "count_frames() decodes the file to find it"

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
            logger.warning("reading %d frames of %s in reverse decodes it many times; a folder of frames is faster",
                           len(indices), self._path)
        for begin in range(0, len(indices), REVERSE_BLOCK):
            yield from self._reversed_block(indices[begin:begin + REVERSE_BLOCK])

    def _reversed_block(self, indices: range) -> Frames:
        block: list[Frame] = []
        try:
            for frame in self._forward(indices[::-1], indices[0]):
                block.append(frame)
                self._ledger.add(1)
            del frame
            while block:
                self._ledger.add(-1)
                yield block.pop()
        finally:
            self._ledger.add(-len(block))

    def _fetch(self, index: int) -> Frame:
        backwards = index < self._reader.position
        if backwards:
            self._reader.close()
            self._reader = _Reader(self._path)
        # Stepping back usually goes on: also keep the frames just before this one.
        first = max(index - self._cache_size + 1, 0) if backwards else index
        for earlier in range(first, index):
            self._keep(self._read_exactly(earlier))
        return self._read_exactly(index)

    def _read_exactly(self, index: int) -> Frame:
        image = self._reader.read(index)
        if image is None:
            self._met_end(self._reader)
            raise self._out_of_range(index)
        return self._make_frame(index, image)


class _StreamSource(VideoSource):
    """Frames that come once and in order. They are pulled when asked for and never ahead, because the next frame of an
    iterator may depend on what the caller does with this one, and a camera should not lag."""

    def __init__(self, *, cache: int) -> None:
        super().__init__(prefetch=0, cache=cache)
        self._position = 0
        self._peeked: Frame | None = None

    @property
    def seekable(self) -> bool:
        return False

    @abstractmethod
    def _pull(self) -> np.ndarray | None:
        """The next image, or None at the end."""

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Frames:
        """Iterate from the current position of the stream, or from a later `start`; a stream cannot go back."""
        self._check_open()
        start = self._position if start is None else start
        if step < 1:
            raise ValueError(f"expected step >= 1 for a stream, got {step}; a stream cannot be read in reverse: "
                             "use a file, a folder or an array")
        if start < self._position:
            raise IndexError(f"frame {start} has passed; the stream is at frame {self._position} and cannot go back")
        running = self._deliver(range(start, sys.maxsize if stop is None else stop, step))
        self._passes.add(running)
        return running

    def __getitem__(self, index: int) -> Frame:
        """A recent frame that is still cached, or a coming one: the stream is then read up to it."""
        self._check_open()
        with self._lock:
            frame = self._cached(index)
            if frame is None and index < self._position:
                held = ", ".join(map(str, self._cache)) or "none"
                raise IndexError(f"frame {index} has passed; valid frames are {self._position} upwards and, kept in "
                                 f"the cache: {held}")
            frame = frame or self._read_up_to(index)
            if frame is None:
                raise self._out_of_range(index)
            return frame

    def close(self) -> None:
        super().close()
        self._peeked = None

    @property
    def held_frames(self) -> int:
        return super().held_frames + (self._peeked is not None)

    def _get_size(self) -> tuple[int, int]:
        if self._size is None:
            self._check_open()
            self._peeked = self._next_frame()
            self._position = 0
        if self._size is None:
            raise ValueError("the stream ended before its first frame; the size of the video is not known")
        return self._size

    def _deliver(self, indices: range) -> Frames:
        for index in indices:
            frame = self._read_up_to(index)
            if frame is None:
                return
            yield frame

    def _read_up_to(self, index: int) -> Frame | None:
        frame = None
        while self._position <= index:
            frame = self._next_frame()
            if frame is None:
                return None
            self._keep(frame)
        return frame

    def _next_frame(self) -> Frame | None:
        frame, self._peeked = self._peeked, None
        if frame is None:
            image = self._pull()
            if image is None:
                self._length = self._position
                return None
            frame = self._make_frame(self._position, image)
        self._position += 1
        return frame


class IteratorSource(_StreamSource):
    """Any iterator of arrays (H, W, 3), tensors or PIL images. Frames are copied: a generator may reuse its buffer."""

    def __init__(self, images: Iterable[Any], *, cache: int = 4) -> None:
        super().__init__(cache=cache)
        self._images = iter(images)

    def _pull(self) -> np.ndarray | None:
        for item in self._images:
            return np.array(to_rgb(item, f"frame {self._position}"))
        return None


class CameraSource(_StreamSource):
    """A camera, by its OpenCV index."""

    def __init__(self, index: int, *, cache: int = 4) -> None:
        super().__init__(cache=cache)
        self._capture = cv2.VideoCapture(index) if index >= 0 else None
        if self._capture is None or not self._capture.isOpened():
            raise ValueError(f"cannot open camera {index}: expected the index of a connected camera (0 is the first); "
                             "check that it is plugged in, permitted, and not in use by another program")

    @property
    def fps(self) -> float | None:
        return self._capture.get(cv2.CAP_PROP_FPS) or None

    def close(self) -> None:
        super().close()
        self._capture.release()

    def _pull(self) -> np.ndarray | None:
        ok, bgr = self._capture.read()
        if not ok:
            logger.warning("the camera stopped after %d frames", self._position)
            return None
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


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


def open_video(source: Any, *, prefetch: int = 2, cache: int = 4) -> VideoSource:
    """Open a folder of images, a video file, arrays (T, H, W, 3) or (T, 3, H, W), an iterator of frames, or a camera index.

    `prefetch` frames are decoded ahead for folders and files; `cache` recent frames are kept for access by index.
    A VideoSource is returned as it is.
    """
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), prefetch, cache)
    if isinstance(source, int | np.integer) and not isinstance(source, bool):
        return CameraSource(int(source), cache=cache)
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return ArraySource(source)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | dict):
        return IteratorSource(source, cache=cache)
    raise ValueError("expected a folder of images, a video file, an array or list of frames, an iterator of frames or a "
                     f"camera index, got {type(source).__name__}")


def _open_path(path: Path, prefetch: int, cache: int) -> VideoSource:
    if not path.exists():
        raise FileNotFoundError(f"no such video: '{path}'; expected a folder of images or a video file")
    if path.is_dir():
        return FolderSource(path, prefetch=prefetch, cache=cache)
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        return FileSource(path, prefetch=prefetch, cache=cache)
    raise ValueError(f"unsupported video file '{path}': expected one of {', '.join(VIDEO_EXTENSIONS)}, or a folder of "
                     f"{', '.join(IMAGE_EXTENSIONS)} images, got '{path.suffix}'")


def _list_images(folder: Path) -> list[Path]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    paths = [entry for entry in entries if entry.suffix.lower() in IMAGE_EXTENSIONS and entry.is_file()]
    if not paths:
        found = ", ".join(sorted(entry.name for entry in entries)[:3]) or "nothing"
        raise ValueError(f"no frames in '{folder}': looked for {', '.join(IMAGE_EXTENSIONS)} (any case), found {found}")
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise ValueError(f"two frames share one name in '{folder}': '{other.name}' and '{path.name}'; remove one of them")
    return sorted(paths, key=lambda path: (_natural_key(path.stem), path.stem))


def _natural_key(stem: str) -> list[tuple[int, int, str]]:
    """Digit runs compare as numbers, other text as text: 'frame2' < 'frame10'."""
    parts = re.findall(r"[0-9]+|[^0-9]+", stem)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _read_image(path: Path, index: int) -> np.ndarray:
    where = f"frame {index} ('{path}')"
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image, where)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {where}: {error}; replace or remove the file") from error
