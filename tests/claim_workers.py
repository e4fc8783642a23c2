"""Two processes that share made-up videos through claims, while one of them is killed again and again. Run by
test_claims.py; imports nothing heavy, so that a process starts within a millisecond.

    claim_workers.py FOLDER KILLS LAPSE (same | other) (claims | none)

``same``: both are known to be on one machine, so that a death is noticed at once; ``other``: only by the lapse.
``none``: every claim succeeds, as a control. Prints what went wrong, as JSON.
"""

import fcntl
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from sam2_mem.claims import Claim, ClaimFolder, ClaimLostError, shared
from sam2_mem.files import atomic_path

FRAMES = 10
VIDEOS = [f"video/{number}" for number in range(64)]


class Everything(ClaimFolder):
    """Gives a claim on anything."""

    def take(self, name: str) -> Claim | None:
        return super().take(f"{name} of {os.getpid()}")


def note(folder: Path, name: str, text: str) -> None:
    with (folder / name).open("a") as file:
        file.write(f"{text}\n")


def do_video(folder: Path, claim: Claim, video: str) -> None:
    """Frames go to files; a checkpoint tells how many."""
    stem = video.replace("/", "-")
    with (folder / f"{stem}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it when the process dies
        except BlockingIOError:
            note(folder, "twice", f"{video}: two processes at once")
            return
        checkpoint = folder / f"{stem}.checkpoint"
        begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
        for frame in range(begin, FRAMES):
            time.sleep(0.004)
            claim.check()
            (folder / f"{stem}.frame{frame}").touch()
            with atomic_path(checkpoint) as part:
                part.write_text(str(frame + 1))
        claim.confirm()
        try:
            (folder / f"{stem}.done").touch(exist_ok=False)
        except FileExistsError:
            note(folder, "twice", f"{video}: finished a second time")


def work(folder: Path, claims: ClaimFolder) -> None:
    def is_done(video: str) -> bool:
        return (folder / f"{video.replace('/', '-')}.done").exists()

    for claim in shared(VIDEOS, claims, is_done, wait=0.01):
        with suppress(ClaimLostError):
            do_video(folder, claim, claim.name.partition(" of ")[0])


def start(folder: Path, claims: ClaimFolder) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work(folder, claims)
        finally:
            os._exit(0)
    return pid


def main() -> None:
    folder, kills, lapse, where, kind = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]
    folders = {"claims": ClaimFolder, "none": Everything}
    machines = [None, None] if where == "same" else ["left", "right"]
    claims = [folders[kind](folder / "claims", lapse=lapse, machine=machine) for machine in machines]
    generator = random.Random(kills)
    workers = [start(folder, c) for c in claims]
    killed = 0
    while killed < kills:
        time.sleep(generator.uniform(0.0, 0.06))
        victim = generator.randrange(2)
        os.kill(workers[victim], signal.SIGKILL)
        killed += os.waitpid(workers[victim], 0)[1] == signal.SIGKILL
        workers[victim] = start(folder, claims[victim])
        if all((folder / f"{video.replace('/', '-')}.done").exists() for video in VIDEOS):
            break
    for worker in workers:
        os.waitpid(worker, 0)
    stems = [video.replace("/", "-") for video in VIDEOS]
    report = {
        "killed": killed,
        "unfinished": [s for s in stems if not (folder / f"{s}.done").exists()],
        "lost": [f"{s} {f}" for s in stems for f in range(FRAMES) if not (folder / f"{s}.frame{f}").exists()],
        "twice": (folder / "twice").read_text().splitlines() if (folder / "twice").exists() else [],
        "claims": sorted(p.name for p in (folder / "claims").iterdir() if not p.name.startswith(".clock")),
    }
    print(json.dumps(report))


main()
