"""Videos that come once: any iterator of images, and cameras."""

from __future__ import annotations

import logging
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from .frame import Frame, PictureReader
from .source import FrameRangeError, Frames, VideoSource

logger = logging.getLogger(__name__)


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
        """Iterate from the current position of the stream, from a later `start`, or from one that is still cached.

        Raises:
            ValueError: in reverse.
            IndexError: `start` has passed, or, while iterating, the stream ends before a `start` that was given.
        """
        self._check_open()
        required, start = start, self._position if start is None else start
        if step < 1:
            raise ValueError(
                f"expected step >= 1 for a stream, got {step}; a stream cannot be read in reverse: "
                "use a file, a folder or an array"
            )
        if start < self._position and self._cache.get(start) is None:
            raise FrameRangeError(
                f"frame {start} has passed; the stream is at frame {self._position} and cannot go back"
            )
        running = self._deliver(range(start, sys.maxsize if stop is None else stop, step), required)
        self._passes.add(running)
        return running

    def __getitem__(self, index: int) -> Frame:
        """A recent frame that is still cached, or a coming one: the stream is then read up to it."""
        self._check_open()
        frame = self._find(index)
        if frame is None:
            raise self._out_of_range(index)
        return frame

    def close(self) -> None:
        super().close()
        self._peeked = None

    @property
    def held_frames(self) -> int:
        return super().held_frames + (self._peeked is not None)

    def _find_size(self) -> tuple[int, int]:
        self._check_open()
        self._peeked = self._next_frame()
        self._position = 0
        if self._size is None:
            raise ValueError("the stream ended before its first frame; the size of the video is not known")
        return self._size

    def _deliver(self, indices: range, required: int | None) -> Frames:
        for index in indices:
            frame = self._find(index)
            if frame is None:
                if index == required:
                    raise self._out_of_range(index)
                return
            yield frame

    def _find(self, index: int) -> Frame | None:
        """A cached or a coming frame, None past the end. What the user's own iterator raises is not caught."""
        with self._lock:
            frame = self._cache.get(index)
            if frame is None and index < self._position:
                cached = ", ".join(map(str, self._cache)) or "none"
                raise FrameRangeError(
                    f"frame {index} has passed; valid frames are {self._position} upwards and, kept in "
                    f"the cache: {cached}"
                )
            return frame or self._read_up_to(index)

    def _read_up_to(self, index: int) -> Frame | None:
        frame = None
        while self._position <= index:
            frame = self._next_frame()
            if frame is None:
                return None
            self._cache.add(frame)
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
        self._to_rgb = PictureReader()

    def _pull(self) -> np.ndarray | None:
        for item in self._images:
            return np.array(self._to_rgb(item, f"frame {self._position}"))
        return None


class CameraSource(_StreamSource):
    """A camera by its OpenCV index, or a stream by its address."""

    def __init__(self, index: int | str, *, cache: int = 4) -> None:
        super().__init__(cache=cache)
        self._label = f"'{_without_password(index)}'" if isinstance(index, str) else f"camera {index}"
        capture = cv2.VideoCapture(index) if isinstance(index, str) or index >= 0 else None
        if capture is None or not capture.isOpened():
            advice = (
                "expected the address of a stream that OpenCV can read; check it in a player, and that the host can be reached"
                if isinstance(index, str)
                else "expected the index of a connected camera (0 is the first); check that it is plugged in, permitted, and "
                "not in use by another program"
            )
            raise ValueError(f"cannot open {self._label}: {advice}")
        self._capture = capture

    @property
    def fps(self) -> float | None:
        return self._capture.get(cv2.CAP_PROP_FPS) or None

    def close(self) -> None:
        super().close()
        self._capture.release()

    def _pull(self) -> np.ndarray | None:
        ok, bgr = self._capture.read()
        if not ok:
            logger.warning("%s stopped after %d frames", self._label, self._position)
            return None
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def _without_password(address: str) -> str:
    return re.sub(r"//[^/@]*@", "//", address)
