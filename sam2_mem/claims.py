"""Work that several processes share, on one machine or on many: who does what, and taking over from those that died.

A claim is a file in a folder that all of them see. Its name ends in a number. To take an item that nobody holds is to
create file 0 of it; to take it over from a dead process is to create the next number. The file system lets one process
create a file, so of several that try one succeeds, and a process that was only slow learns that it has lost its claim.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from sam2_mem.files import stem_of

logger = logging.getLogger(__name__)

LAPSE = 120.0
"""Seconds without a heartbeat after which a process on another machine counts as dead. More than the minute for which
network file systems remember attributes."""
BEATS_PER_LAPSE = 8
WAIT = 3.0
"""Seconds between two looks at items that others hold."""


class ClaimLostError(RuntimeError):
    """The item of a claim is another process's now: this one had no heartbeat for too long."""


class Claim:
    """An item that is this process's alone until it is released. A thread gives a sign of life."""

    def __init__(self, name: str, path: Path, generation: int, token: str, beat: float) -> None:
        self.name = name
        self._path, self._generation, self._token = path, generation, token
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(beat,), name=f"claim of {name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> bool:
        """Whether another process has been seen to hold the item."""
        return self._lost.is_set()

    def check(self) -> None:
        """ClaimLostError where the heartbeat has noticed that the item is another process's. Costs nothing."""
        if self._lost.is_set():
            raise ClaimLostError(f"another run has taken over '{self.name}'")

    def confirm(self) -> None:
        """``check``, with a look at the files. To be called before what is final."""
        if not self._is_mine():
            self._lost.set()
        self.check()

    def release(self) -> None:
        """Let go of the item."""
        self._stop.set()
        self._thread.join()
        if self._is_mine():
            for generation, path in sorted(_claim_files(self._path.parent, self.name).items()):
                if generation <= self._generation:
                    path.unlink(missing_ok=True)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _is_mine(self) -> bool:
        owner = _owner(self._path)
        later = max(_claim_files(self._path.parent, self.name), default=self._generation)
        return owner is not None and owner.get("token") == self._token and later <= self._generation

    def _beat(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                if not self._is_mine():
                    self._lost.set()
                    return
                os.utime(self._path)
            except OSError as error:  # a file server that is away for a while
                logger.warning("no sign of life for '%s': %s", self.name, error)


class ClaimFolder:
    """The claims of processes that share some work.

    Args:
        folder: the same for all of them; made if it is missing.
        lapse: seconds without a heartbeat after which a claim may be taken over. A dead process of this machine is noticed
            at once.
        machine: what tells machines apart; None for this one.
    """

    def __init__(self, folder: Path, *, lapse: float = LAPSE, machine: str | None = None) -> None:
        self.folder, self.lapse = folder, lapse
        self.machine = this_machine() if machine is None else machine

    def take(self, name: str) -> Claim | None:
        """Claim an item; None where a living process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = _claim_files(self.folder, name)
        newest = max(files, default=-1)
        if files and not self._is_dead(files[newest]):
            return None
        path, token = self.folder / f"{stem_of(name)},{newest + 1}", uuid4().hex
        owner = {"token": token, "machine": self.machine, "pid": os.getpid(), "started": _start_of(os.getpid())}
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(owner))
        except FileExistsError:
            return None
        if files:
            logger.info("'%s' is taken over from a run that has died", name)
        return Claim(name, path, newest + 1, token, self.lapse / BEATS_PER_LAPSE)

    def _is_dead(self, path: Path) -> bool:
        try:
            with path.open("rb") as file:  # open, not stat: network file systems then ask the server
                beat = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return True
        owner = _owner(path)
        if owner is not None and owner["machine"] == self.machine != "":
            return _start_of(owner["pid"]) != owner["started"]
        return self.now() - beat > self.lapse

    def now(self) -> float:
        """The time in s by the clock of the file system, which is the one that heartbeats are dated by."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock") as file:
            return os.stat(file.name).st_mtime


def shared(
    names: Iterable[str], claims: ClaimFolder, is_settled: Callable[[str], bool], *, wait: float = WAIT
) -> Generator[Claim, None, None]:
    """A claim on each item in turn, until every one is settled, by this process or by another. The claim is released when
    the next one is asked for.

    Args:
        names: of the items, in the order in which they should be begun.
        claims: where processes say what they do.
        is_settled: whether nothing is left to do for an item; asked again once it is claimed.
        wait: seconds between two looks at items that others hold.
    """
    remaining, waits = list(names), False
    while remaining:
        idle = True
        for name in tuple(remaining):
            if is_settled(name):
                remaining.remove(name)
                continue
            claim = claims.take(name)
            if claim is None:
                continue
            with claim:
                if not is_settled(name):
                    idle = False
                    yield claim
            if not claim.lost:
                remaining.remove(name)
        if remaining and idle:
            if not waits:
                logger.info("waiting for %d items that other runs hold, e.g. '%s'", len(remaining), remaining[0])
            waits = True
            time.sleep(wait)


# -- files ------------------------------------------------------------------------------------------------------------


def _claim_files(folder: Path, name: str) -> dict[int, Path]:
    """The files of an item by their numbers."""
    start = f"{stem_of(name)},"
    with suppress(FileNotFoundError):
        return {int(e.name.removeprefix(start)): Path(e.path) for e in os.scandir(folder) if e.name.startswith(start)}
    return {}


def _owner(path: Path) -> dict | None:
    """Who wrote a claim; None where it is gone or not yet written."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


# -- this machine -----------------------------------------------------------------------------------------------------


def this_machine() -> str:
    """Where a process number means the same process: the name of the machine, its boot, the space of process numbers. Empty
    where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """When a process of this machine began; None where there is none, or it is over and only not yet collected."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]
