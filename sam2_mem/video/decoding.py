"""Frames of a video file by PyAV: in order, and from any keyframe on, found by the times of all frames.

The times are read from the packets of the file, without decoding, so they are known soon. A place that a seek came to is
believed only where the time of its frame is among them; everything else is decoded from the start.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

MAX_ATTEMPTS = 20_000
"""Packets that may fail to be decoded, one after the other, before a file counts as ended; less than a second."""
SEEK_BACK = (0, 32, 128)
"""Frames before the one wanted to whose keyframe a seek goes, in turn."""


class FrameTimes:
    """Times of the frames of a file, in the units of its stream, read from its packets by a thread.

    Attributes:
        num_frames: packets that hold a frame, None until the thread has met the end of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times: list[int] = []
        self._indices: dict[int, int] = {}
        self._stop = threading.Event()
        self.num_frames: int | None = None
        self._thread = threading.Thread(target=self._run, name="frame-times", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Frames that can be sought: none before the whole file is known, or where two frames have one time."""
        return len(self._indices)

    def index_of(self, time: int | None) -> int | None:
        """The frame at ``time``; None where there is none."""
        return None if time is None else self._indices.get(time)

    def time_of(self, index: int) -> int:
        return self._times[index]

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the whole file is known; False where that takes longer than ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        times: list[int | None] = []
        try:
            with av.open(str(self._path.absolute()), metadata_errors="ignore") as container:
                for packet in container.demux(container.streams.video[0]):
                    if self._stop.is_set():
                        return
                    if packet.size and not packet.is_discard:
                        times.append(packet.pts)
        except (FFmpegError, IndexError):
            pass  # the file ends in the middle; decoding says what is wrong
        known = sorted(time for time in times if time is not None)
        if len(set(known)) == len(times):
            self._times, self._indices = known, {time: index for index, time in enumerate(known)}
        self.num_frames = len(times)


class VideoReader:
    """One pass over a file.

    Args:
        path: of the file; one that cannot be read has no frame.

    Attributes:
        position: index of the next frame.
        jump: of the first frame that comes later than the frame rate lets expect, None where there is none.
        stated_length: frames that the file claims to have, None where it says nothing.
        fps: frames per second, None where it says nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.position = 0
        self.jump: int | None = None
        self.stated_length: int | None = None
        self.fps: float | None = None
        self._frame: av.VideoFrame | None = None
        self._time = 0.0
        self._failure: ValueError | None = None
        self._pictures: Iterator[av.VideoFrame | None] = iter(())
        try:
            # An absolute path: "10:30.mp4" would be taken for the address of a protocol called 10.
            self._container = av.open(str(path.absolute()), metadata_errors="ignore")
            self._stream = self._container.streams.video[0]
        except (FFmpegError, IndexError):
            return
        self.fps = float(self._stream.guessed_rate or self._stream.average_rate or 0) or None
        seconds = (self._container.duration or 0) / av.time_base
        self.stated_length = self._stream.frames or round(seconds * (self.fps or 0)) or None
        self._pictures = self._decoded()

    def _decoded(self) -> Iterator[av.VideoFrame | None]:
        """Frames in the order of display; None for a packet that cannot be decoded."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError:
                return  # the container ends in the middle
            if packet is None:
                return
            try:
                yield from packet.decode()
            except FFmpegError:
                yield None

    def skip_to(self, index: int) -> bool:
        """Decode up to ``index`` without converting pixels; False at the end of the video."""
        while self.position < index and self._grab():
            self.position += 1
        return self.position == index

    def check(self) -> None:
        """ValueError where a damaged frame was met."""
        if self._failure is not None:
            raise self._failure

    def _grab(self) -> bool:
        """Decode one frame; False at the end of the video, ValueError where only a later one can be decoded."""
        self.check()
        for frame in self._pictures:
            if frame is not None:
                self._frame = frame
                self._note_time(frame)
                return True
            if any(later is not None for later in islice(self._pictures, MAX_ATTEMPTS)):
                self._failure = ValueError(
                    f"cannot read frame {self.position} of '{self._path}': the file is damaged there, later frames can be "
                    "decoded; replace it, or convert it with ffmpeg, which leaves the damaged frames out"
                )
                raise self._failure
        return False

    def _note_time(self, frame: av.VideoFrame) -> None:
        earlier, self._time = self._time, self._time if frame.time is None else float(frame.time)
        if self.jump is None and self.fps and self._time - earlier > 1.9 / self.fps:
            self.jump = self.position

    def read(self, index: int) -> np.ndarray | None:
        """The RGB image at ``index``, which must not lie behind, upright; None past the end."""
        assert index >= self.position
        if not self.skip_to(index) or not self._grab():
            return None
        assert self._frame is not None
        image = self._frame.to_ndarray(format="rgb24")
        turns = round(self._frame.rotation / 90) % 4
        self._frame = None
        self.position += 1
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def seek(self, index: int, times: FrameTimes) -> bool:
        """Go to where the next frame is ``index``, which ``times`` must know.

        Returns:
            False where the place is not certain; the reader can then only be closed.
        """
        self._failure = None
        for back in SEEK_BACK:
            pictures = self._pictures_from(times.time_of(max(index - back, 0)))
            for frame in pictures:
                current = None if frame is None else times.index_of(frame.pts)
                if frame is None or current is None or current > index:
                    break
                if current == index:
                    self._pictures, self.position = chain([frame], pictures), index
                    self._time = float(frame.time or 0)
                    return True
        self._pictures = iter(())
        return False

    def _pictures_from(self, time: int) -> Iterator[av.VideoFrame | None]:
        """Frames from the keyframe before ``time`` on; none where the file cannot be sought."""
        try:
            self._container.seek(time, stream=self._stream)
        except FFmpegError:
            return iter(())
        return self._decoded()

    def close(self) -> None:
        self._pictures, self._frame = iter(()), None
        if hasattr(self, "_container"):
            self._container.close()
