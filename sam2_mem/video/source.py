"""What every video source offers, and the bookkeeping that keeps it small.

A source never holds a whole video. It holds at most `prefetch` decoded frames ahead of the consumer, `cache` recent
ones and the one in hand; reading a video file backwards adds one block of frames.
"""

from __future__ import annotations

import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeAlias

import numpy as np

from .frame import Frame
from .prefetch import FrameCounter, prefetched

Frames: TypeAlias = Generator[Frame, None, None]


class FrameRangeError(IndexError, ValueError):
    """A frame that the video does not have, or has no longer. A class of its own, so that an IndexError of the user's own
    frames is never taken for it."""


class FrameCache:
    """The `size` frames used last, by index."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, frame: Frame) -> Frame:
        with self._lock:
            self._frames[frame.index] = frame
            self._frames.move_to_end(frame.index)
            while len(self._frames) > self.size:
                self._frames.popitem(last=False)
        return frame

    def get(self, index: int) -> Frame | None:
        with self._lock:
            if index in self._frames:
                self._frames.move_to_end(index)
            return self._frames.get(index)

    def __iter__(self) -> Iterator[int]:
        with self._lock:
            return iter(tuple(self._frames))

    def __len__(self) -> int:
        return len(self._frames)

    def clear(self) -> None:
        self._frames.clear()


class VideoSource(ABC):
    """Frames by iteration or by index. Close it, or use it in a `with` statement.

    Args:
        prefetch: frames decoded ahead of the consumer.
        cache: recent frames held for access by index.

    Attributes:
        image_size: frames that are decoded ahead are also resized ahead to the input of a network of this size; None for
            none.
    """

    stated_length: int | None = None
    """Number of frames that a file claims to have, which is not trusted."""

    _length_advice = "it is known only when the stream has ended"

    def __init__(self, *, prefetch: int = 2, cache: int = 4) -> None:
        for label, value in (("prefetch", prefetch), ("cache", cache)):
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"expected {label} to be an integer >= 0, got {value!r}")
        self._prefetch = prefetch
        self._cache = FrameCache(cache)
        self._waiting = FrameCounter()
        self._lock = threading.RLock()
        self._size: tuple[int, int] | None = None
        self._length: int | None = None
        self._closed = False
        self._passes: weakref.WeakSet[Frames] = weakref.WeakSet()
        self.image_size: int | None = None

    @property
    @abstractmethod
    def seekable(self) -> bool:
        """Whether any frame can be asked for at any time."""

    @abstractmethod
    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Frames:
        """Iterate like `range(start, stop, step)`. The ends default to those of the video; `stop` may lie beyond."""

    @abstractmethod
    def __getitem__(self, index: int) -> Frame:
        """The frame at `index` (>= 0); IndexError names the valid range."""

    @property
    def height(self) -> int:
        return (self._size or self._find_size())[0]

    @property
    def width(self) -> int:
        return (self._size or self._find_size())[1]

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
            raise TypeError(f"the length of this {type(self).__name__} is not known; {self._length_advice}")
        return self.num_frames

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def name(self, index: int) -> str:
        """The stem to use for output files of frame `index`."""
        return f"{index:05d}"

    @property
    def held_frames(self) -> int:
        """How many decoded frames the source holds now."""
        return self._waiting.count + len(self._cache)

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

    @abstractmethod
    def _find_size(self) -> tuple[int, int]:
        """(height, width), where no frame has been decoded yet."""

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this video source has been closed; open it again with open_video")

    def _make_frame(self, index: int, image: np.ndarray) -> Frame:
        """Wrap an RGB image; the first one fixes the size of the video."""
        size = image.shape[0], image.shape[1]
        if self._size is None:
            self._size = size
        if size != self._size:
            raise ValueError(
                f"frame {index} ('{self.name(index)}'): expected {self._size[0]}x{self._size[1]} pixels "
                f"(height x width) like the frames before, got {size[0]}x{size[1]}; "
                "resize the frames to one size"
            )
        return Frame(index, self.name(index), image)

    def _out_of_range(self, index: int) -> FrameRangeError:
        valid = f"0 to {self._length - 1}" if self._length is not None else "0 upwards"
        return FrameRangeError(f"frame {index} is out of range; valid frames are {valid}")


class SeekableSource(VideoSource):
    """A source whose frames can be decoded in any order, on a thread of their own."""

    @property
    def seekable(self) -> bool:
        return True

    def _decode(self, indices: range) -> Frames:
        """Decode these frames in this order; stop quietly at the end of the video."""
        for index in indices:
            yield self._fetch(index)

    @abstractmethod
    def _fetch(self, index: int) -> Frame:
        """Decode one frame; IndexError past the end."""

    def _find_size(self) -> tuple[int, int]:
        return self[0].image.shape[0], self[0].image.shape[1]

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
            return self._cache.get(index) or self._cache.add(self._fetch(index))

    def _deliver(self, indices: range) -> Frames:
        decoded = self._decode(indices)
        if self._prefetch:
            decoded = prefetched(self._resized(decoded), self._prefetch, self._waiting)
        with closing(decoded):
            for frame in decoded:
                yield self._cache.add(frame)

    def _resized(self, decoded: Frames) -> Frames:
        with closing(decoded):
            for frame in decoded:
                if self.image_size is not None:
                    frame.resize(self.image_size)
                yield frame

    def _resolve(self, start: int | None, stop: int | None, step: int) -> range:
        if step == 0:
            raise ValueError("expected a step other than 0; use 1 for forward, -1 for reverse")
        if start is None:
            start = 0 if step > 0 else self.count_frames() - 1
        if start < 0 or (self._length is not None and start >= self._length):
            raise self._out_of_range(start)
        if stop is not None and stop < 0:
            raise FrameRangeError(f"expected stop >= 0 or None for the end of the video, got {stop}")
        if step < 0:
            return range(start, -1 if stop is None else stop, step)
        ends = [end for end in (stop, self._length) if end is not None]
        return range(start, min(ends, default=sys.maxsize), step)
