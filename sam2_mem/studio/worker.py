"""The thread that does a session's work, and what pages hear of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


class BusyError(RuntimeError):
    """Work is being done, and has to be stopped first."""


@dataclass
class Changes:
    """Versions of frames, for pages that ask what is new."""

    version: int = 0
    frames: dict[tuple[int, int], int] = field(default_factory=dict)
    """By run (0 the first, 1 the one beside it) and frame."""
    condition: threading.Condition = field(default_factory=threading.Condition)

    def note(self, run: int = 0, frame: int | None = None) -> None:
        with self.condition:
            self.version += 1
            if frame is not None:
                self.frames[run, frame] = self.version
            self.condition.notify_all()

    def since(self, version: int, timeout: float) -> tuple[int, list[tuple[int, int]]]:
        """The present version, and the (run, frame) that are newer than ``version``; waits until there is something new."""
        with self.condition:
            self.condition.wait_for(lambda: self.version > version, timeout)
            return self.version, [key for key, changed in self.frames.items() if changed > version]


class Worker:
    """One thread, one piece of work at a time.

    Args:
        name: of the thread.
        changes: told of every step forward.

    Attributes:
        job: what is being done: kind, parts done, parts in all; None for nothing.
        message: what went wrong last.
        reached: the frame that was done last.
        stopped: set when what is being done should end.
    """

    def __init__(self, name: str, changes: Changes) -> None:
        self.job: dict[str, Any] | None = None
        self.message = ""
        self.reached: int | None = None
        self.stopped = threading.Event()
        self._changes = changes
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def check_idle(self) -> None:
        if self.job is not None:
            raise BusyError(f"'{self.job['kind']}' is running; stop it first")

    def submit(self, kind: str, task: Callable[[], T], total: int = 1) -> Future[T]:
        """Let the thread do ``task``, of ``total`` parts; BusyError while it does something else."""
        with self._lock:
            self.check_idle()
            self.stopped.clear()
            self.job = {"kind": kind, "done": 0, "total": total}
        self.message = ""
        self._changes.note()
        return self._thread.submit(self._guarded, task)

    def advance(self, frame: int | None = None) -> None:
        """One part is done; called by the thread."""
        if self.job is not None:
            self.job = {**self.job, "done": self.job["done"] + 1}
        self.reached = frame
        self._changes.note()

    def stop(self) -> None:
        """End what is being done, and wait for that."""
        self.stopped.set()
        self._thread.submit(lambda: None).result()

    def close(self) -> None:
        self.stopped.set()
        self._thread.shutdown(wait=True)

    def _guarded(self, task: Callable[[], T]) -> T:
        """Do ``task``; what goes wrong is said in ``message``, and raised for those who wait."""
        try:
            return task()
        except Exception as error:
            self.message = str(error) or type(error).__name__
            raise
        finally:
            self.job = None
            self._changes.note()
