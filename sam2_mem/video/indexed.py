"""A video file with an index of its frames' times, so that any frame comes at once and exactly.

``FileSource`` decodes up to a frame, since seeking in a file may end at another one. Here a thread goes once through the
file and notes the time of every frame; from then on a seek is believed only where the time of the frame it came to is in
the index, and everything else is decoded as before. Both give the same frames.
"""

from __future__ import annotations

import threading
from pathlib import Path

import cv2

from .frame import Frame
from .stored import FileSource, VideoReader

NEAR = 12
"""Frames ahead of a reader up to which decoding is as fast as a seek."""


class FrameTimes:
    """Times of the frames of a file in milliseconds, noted by a thread that goes through it once.

    Attributes:
        num_frames: of the file, None until the thread has met its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0
        self._indices: dict[float, int] = {}
        self._stop = threading.Event()
        self.num_frames: int | None = None
        self._thread = threading.Thread(target=self._run, name="frame-times", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._count

    def index_of(self, time: float) -> int | None:
        """The frame at ``time``; None where it is not known or not the only one."""
        index = self._indices.get(round(time, 3), -1)
        return None if index < 0 else index

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the whole file is known; False where that takes longer than ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        capture = cv2.VideoCapture(str(self._path.absolute()))
        while not self._stop.is_set() and capture.grab():
            time = round(capture.get(cv2.CAP_PROP_POS_MSEC), 3)
            self._indices[time] = -1 if time in self._indices else self._count
            self._count += 1
        capture.release()
        if not self._stop.is_set():
            self.num_frames = self._count


class IndexedFileSource(FileSource):
    """A video file whose frames are found by their time once ``times`` knows them; frames as ``FileSource`` gives them.

    Attributes:
        times: of the frames, filled in the background.
    """

    def __init__(self, path: Path, *, prefetch: int = 2, cache: int = 16) -> None:
        super().__init__(path, prefetch=prefetch, cache=cache)
        self.times = FrameTimes(path)

    def count_frames(self) -> int:
        """The exact number of frames; waits for the index where that is not complete."""
        self._check_open()
        if self._length is None and self.times.wait() and self.times.num_frames == self.stated_length:
            self._length = self.times.num_frames
        return super().count_frames()

    def close(self) -> None:
        self.times.close()
        super().close()

    def _reader_at(self, index: int) -> VideoReader:
        reader = VideoReader(self._path)
        if NEAR <= index < len(self.times) and not reader.seek(index, self.times.index_of):
            reader.close()
            reader = VideoReader(self._path)
        return reader

    def _fetch(self, index: int) -> Frame:
        near = 0 <= index - self._reader.position < NEAR
        if not near and index < len(self.times) and self._reader.seek(index, self.times.index_of):
            return self._read_exactly(index)
        return super()._fetch(index)
