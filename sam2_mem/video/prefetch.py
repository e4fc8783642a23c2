"""Decode a few frames ahead on a thread that never outlives its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

from sam2_mem._moved import renamed

from .frame import Frame


class FrameCounter:
    """Counts the decoded frames that wait inside a source."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, change: int) -> None:
        with self._lock:
            self.count += change


def prefetched(frames: Generator[Frame, None, None], depth: int, counter: FrameCounter) -> Generator[Frame, None, None]:
    """Yield `frames`, with up to `depth` >= 1 of them decoded ahead.

    An exception in `frames` is raised here, after the frames before it. Closing or dropping this generator ends the
    thread and closes `frames`.
    """
    frame_queue = _FrameQueue(frames, depth, counter)
    try:
        while not frame_queue.at_end():
            yield frame_queue.take()
    finally:
        frame_queue.stop()


class _FrameQueue:
    """The queue between the decoding thread and the consumer. A slot is claimed before a frame is decoded."""

    def __init__(self, frames: Generator[Frame, None, None], depth: int, counter: FrameCounter) -> None:
        self._frames = frames
        self._counter = counter
        self._slots = threading.Semaphore(depth)
        self._ready: queue.SimpleQueue[Frame | BaseException | None] = queue.SimpleQueue()
        self._next: Frame | BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._fill, name="sam2_mem-prefetch", daemon=True)
        self._thread.start()

    def at_end(self) -> bool:
        """Wait for the next frame; True if there is none. Raises what the decoder raised."""
        self._next = self._ready.get()
        if isinstance(self._next, BaseException):
            raise self._next
        return self._next is None

    def take(self) -> Frame:
        """Hand over the frame that `at_end` waited for, and let the thread decode another."""
        frame, self._next = self._next, None
        assert isinstance(frame, Frame)
        self._counter.add(-1)
        self._slots.release()
        return frame

    def stop(self) -> None:
        self._stopping = True
        self._slots.release()
        self._thread.join()
        while not self._ready.empty():
            self._counter.add(-isinstance(self._ready.get(), Frame))

    def _fill(self) -> None:
        try:
            while self._decode_one():
                pass
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, whatever it is
            self._ready.put(error)
        finally:
            self._frames.close()

    def _decode_one(self) -> bool:
        self._slots.acquire()
        frame = None if self._stopping else next(self._frames, None)
        if frame is None:
            return False
        self._counter.add(1)
        self._ready.put(frame)
        return True


__getattr__ = renamed(__name__)
