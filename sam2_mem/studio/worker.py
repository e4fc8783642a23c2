"""The thread that does a session's work, and what pages hear of it."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sam2_mem.studio.frame_store import FrameNumbers

T = TypeVar("T")

PAGE_SECONDS = 25.0
"""After which a page that has not asked counts as closed; a question stays open for ten."""


class BusyError(RuntimeError):
    """Work is being done, and has to be stopped first."""


def error_words(error: BaseException) -> str:
    """An error as a sentence for the page."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({error.strerror}): files that were complete stay, what was being written is not there; free "
            "some space, and write again"
        )
    return str(error) or type(error).__name__


@dataclass
class Changes:
    """Versions of frames, for pages that ask what is new.

    Attributes:
        version: goes up with every change.
        frames: version by run (0 the first, 1 the one beside it), by frame.
        pages: when each page asked last, by a name that the page has made up.
    """

    version: int = 0
    frames: tuple[FrameNumbers, FrameNumbers] = field(default_factory=lambda: (FrameNumbers(), FrameNumbers()))
    pages: dict[str, float] = field(default_factory=dict)
    condition: threading.Condition = field(default_factory=threading.Condition)

    def note(self, run: int = 0, frame: int | None = None) -> None:
        with self.condition:
            self.version += 1
            if frame is not None:
                self.frames[run][frame] = self.version
            self.condition.notify_all()

    def visit(self, page: str) -> None:
        """A page asks; all are told where it is a new one, or where one has not asked for ``PAGE_SECONDS``."""
        with self.condition:
            before = set(self.pages)
            self.pages[page] = present = time.monotonic()
            self.pages = {name: visited for name, visited in self.pages.items() if present - visited < PAGE_SECONDS}
        if set(self.pages) != before:
            self.note()

    def since(self, version: int, timeout: float) -> tuple[int, list[tuple[int, int]]]:
        """The present version, and the (run, frame) that are newer than ``version``; waits until there is something new."""
        with self.condition:
            self.condition.wait_for(lambda: self.version > version, timeout)
            return self.version, [(run, f) for run, frames in enumerate(self.frames) for f in frames.above(version)]


class Worker:
    """One thread, one piece of work at a time. What the library logs as a warning while it works becomes ``message``.

    Args:
        name: of the thread.
        changes: told of every step forward.
        explain: an error in words.

    Attributes:
        job: what is being done: kind, parts done, parts in all; None for nothing.
        message: what went wrong last.
        messages: how many messages there were, so that a page knows a new one from an old one of the same words.
        reached: the frame that was done last.
        stopped: set when what is being done should end.
    """

    def __init__(self, name: str, changes: Changes, explain: Callable[[BaseException], str] = error_words) -> None:
        self.job: dict[str, Any] | None = None
        self.message = ""
        self.messages = 0
        self.reached: int | None = None
        self.stopped = threading.Event()
        self._changes = changes
        self._explain = explain
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._warnings = _Warnings(name, self.say)
        logging.getLogger("sam2_mem").addHandler(self._warnings)

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

    def say(self, text: str) -> None:
        """Let pages show ``text``."""
        self.message = text
        self.messages += 1
        self._changes.note()

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
        logging.getLogger("sam2_mem").removeHandler(self._warnings)

    def _guarded(self, task: Callable[[], T]) -> T:
        """Do ``task``; what goes wrong is said in ``message``, and raised for those who wait."""
        try:
            return task()
        except Exception as error:
            self.say(self._explain(error))
            raise
        finally:
            self.job = None
            self._changes.note()


class _Warnings(logging.Handler):
    """Gives warnings that are logged in one thread to ``say``."""

    def __init__(self, thread: str, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._thread, self._say = thread, say

    def emit(self, record: logging.LogRecord) -> None:
        if (record.threadName or "").startswith(f"{self._thread}_"):
            self._say(record.getMessage())
