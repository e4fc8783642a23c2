"""One video that is worked on: its runs under one or two policies, its steps, undo and redo.

Everything that changes a session is done by its one thread, in order. Requests wait for prompts, which are short; passes go
on by themselves, are stopped by ``worker.stop``, and are followed by ``changes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from sam2_mem.memory.serialization import MemoryFileError
from sam2_mem.studio.camera import RecordedCamera
from sam2_mem.studio.frame_store import FrameView
from sam2_mem.studio.run import PolicyRun, Snapshot
from sam2_mem.studio.setups import Networks, RunSetup
from sam2_mem.studio.worker import Changes, Worker, error_words
from sam2_mem.tracking.session_log import SessionLog, SessionStep
from sam2_mem.video import VideoSource, open_video
from sam2_mem.video.frame import Frame
from sam2_mem.video.indexed import IndexedFileSource

INCOMPLETE = (
    "Stopped: not all steps of the session are repeated. Its file is as it was, and an export will not replace it; open it again, "
    "or undo, to have all."
)
UNDO_LIMIT = 30
UNDO_BYTES = 256 * 2**20
"""Memory of frames that only undo still holds."""


_NUMBERS = count()


class NotIndexedError(RuntimeError):
    """A frame of a file that would take long to reach, since the times of its frames are not known up to there yet."""


class StudioVideo:
    """Frames for pages: at once, or not at all.

    Args:
        path: of the video.
        source: the video where it is open already.

    Attributes:
        source: of the frames.
    """

    def __init__(self, path: Path, source: VideoSource | None = None) -> None:
        self._path = path
        self.source: VideoSource = open_video(path, cache=16, indexed=True) if source is None else source
        self._times = self.source.times if isinstance(self.source, IndexedFileSource) else None

    @property
    def length(self) -> tuple[int, bool]:
        """Frames of the video, and whether that is exact; a file's own word until its frames have been counted."""
        counted = self.source.num_frames if self._times is None else self._times.num_frames
        return (self.source.stated_length or 1, False) if counted is None else (counted, True)

    @property
    def live(self) -> bool:
        """Whether it is a camera that runs."""
        return isinstance(self.source, RecordedCamera) and not self.source.ended

    @property
    def indexed(self) -> int:
        """Frames that come at once."""
        return self.length[0] if self._times is None else len(self._times)

    def frame(self, index: int) -> Frame:
        """A frame; NotIndexedError where that would take long."""
        if self._times is not None and self._times.num_frames is None and index > len(self._times):
            raise NotIndexedError(f"frame {index} is not indexed yet, {len(self._times)} are")
        return self.source[index]

    def explained(self, error: BaseException) -> str:
        """An error in words; where the video has vanished that comes first."""
        if self._path.exists():
            return error_words(error)
        return (
            f"the video '{self._path.name}' is not there any more: put it back, and go on here; what has been tracked is still "
            f"here, and can be exported as session or run lengths ({error_words(error)})"
        )


@dataclass(frozen=True)
class Work:
    """What can be undone: the run and its steps, as they were."""

    snapshot: Snapshot
    log: SessionLog
    setup: RunSetup
    complete: bool

    def storages(self) -> dict[int, int]:
        """Bytes by address of the memory that is kept."""
        return self.snapshot.state.tracker.archive.storages()


class StudioSession:
    """A video and all that is known about it; see the module.

    Args:
        path: of the video.
        networks: to choose from.
        log: what the session begins with: video as logs call it, network, policy, names; its steps are done by ``reopen``.
        source: the video where it is open already.

    Attributes:
        runs: the steps under the setup of the log, and, where two are compared, under another one.
        setups: what they work with.
        compared: the steps that the second run has done.
        complete: whether all steps are repeated of a session that was opened, or brought under another setup; False where that was
            stopped.
    """

    def __init__(self, path: Path, networks: Networks, log: SessionLog, source: VideoSource | None = None) -> None:
        setup = networks.setup_of(log)
        self.video = StudioVideo(path, source)
        self.log = log
        self.changes = Changes()
        self.worker = Worker(f"studio-{next(_NUMBERS)}", self.changes, self.video.explained)
        self.undo_stack: list[Work] = []
        self.redo_stack: list[Work] = []
        self.compared: tuple[SessionStep, ...] = ()
        self.complete = True
        self._networks = networks
        run, setup = self._run_under(setup, 0)
        self.runs: list[PolicyRun] = [run]
        self.setups: list[RunSetup] = [setup]

    def close(self) -> None:
        """Stop, let go of the video, and answer the pages that wait for changes."""
        self.worker.close()
        self.changes.note()
        self.video.source.close()

    def do(self, step: SessionStep) -> list[int]:
        """Do a step that is short; the frames that have new masks."""
        return self.worker.submit("prompt", lambda: self._recorded(lambda: self._finish(step))).result()

    def track(self, frame: int, *, reverse: bool, max_frames: int | None) -> None:
        """Start a pass."""
        length = self.video.length[0]
        total = min(length if max_frames is None else max_frames + 1, frame + 1 if reverse else length - frame)
        step = SessionStep(kind="track", frame=frame, reverse=reverse, max_frames=max_frames)
        self.worker.submit("track", lambda: self._recorded(lambda: self._finish(step)), total)

    def undo(self) -> None:
        """Back to before the last step; ValueError where there is none."""
        self.worker.submit("undo", lambda: self._exchange(self.undo_stack, self.redo_stack)).result()

    def redo(self) -> None:
        """Take back the last ``undo``; ValueError where there is none."""
        self.worker.submit("redo", lambda: self._exchange(self.redo_stack, self.undo_stack)).result()

    def rename(self, obj_id: int, name: str) -> None:
        self.log = replace(self.log, names={**self.log.names, obj_id: name})
        self.changes.note()

    def reopen(self, saved: SessionLog, load: Callable[[PolicyRun], None]) -> None:
        """Go on from a saved session. Its masks are shown at once.

        Args:
            saved: the steps that were done, and their masks.
            load: gives a run the state after them. Where that raises MemoryFileError the steps are done anew, which is said;
                where it raises FileNotFoundError as well.
        """

        def resume() -> None:
            try:
                load(self.runs[0])
                self.log = replace(self.log, steps=saved.steps)
            except (FileNotFoundError, MemoryFileError) as error:
                if isinstance(error, MemoryFileError):
                    self.worker.say(f"All steps are done again: {error}")
                self._finish_all(saved.steps)

        for frame, by_object in saved.masks.items():
            self.runs[0].frames[frame] = FrameView(masks=by_object)
            self.changes.note(0, frame)
        self.worker.submit("replay", resume, len(saved.masks))

    def use(self, setup: RunSetup) -> None:
        """Do all steps again under another setup, in place of the first run."""
        self.worker.check_idle()
        run, setup = self._run_under(setup, 0)

        def again() -> None:
            self.undo_stack.append(self._work())
            before, steps = self.runs[0], self.log.steps
            self.runs[0], self.setups[0] = run, setup
            self.log = replace(self._networks.logged(setup, self.log), steps=())
            for frame in before.frames:
                self.changes.note(0, frame)
            self._finish_all(steps)

        self.redo_stack.clear()
        self.worker.submit("policy", again, max(1, len(self.runs[0].frames)))

    def compare(self, setup: RunSetup) -> None:
        """Do all steps under another setup beside the first."""
        run, setup = self._run_under(setup, 1)
        self.end_comparison()
        self.runs.append(run)
        self.setups.append(setup)
        self.compared = steps = self.log.steps

        def beside() -> None:
            for step in steps:
                self._apply(run, step)

        self.worker.submit("compare", beside, max(1, len(self.runs[0].frames)))

    def end_comparison(self) -> None:
        self.worker.check_idle()
        before = self.runs[1].frames if len(self.runs) > 1 else {}
        del self.runs[1:], self.setups[1:]
        for frame in before:
            self.changes.note(1, frame)
        self.changes.note()

    # -- in the session's thread -----------------------------------------------------------------------------------

    def _recorded(self, task: Callable[[], list[int]]) -> list[int]:
        """``task``, which can then be undone; where it fails all is as before."""
        before = self._work()
        try:
            frames = task()
        except Exception:
            self._restore(before)
            raise
        self.undo_stack = [*self.undo_stack[1 - UNDO_LIMIT :], before]
        self.redo_stack.clear()
        self._trim_undo()
        return frames

    def _trim_undo(self) -> None:
        """Let go of what could be undone longest ago, while undo alone holds more than ``UNDO_BYTES``."""
        counted = self.runs[0].state.tracker.archive.storages()
        total = 0
        for number, work in reversed(list(enumerate(self.undo_stack))):
            added = {address: size for address, size in work.storages().items() if address not in counted}
            counted |= added
            total += sum(added.values())
            if total > UNDO_BYTES:
                del self.undo_stack[: number + 1]
                return

    def _finish(self, step: SessionStep) -> list[int]:
        """Do a step until it is done or stopped; the log gets what was really done."""
        frames = self._apply(self.runs[0], step)
        if step.kind == "track" and self.worker.stopped.is_set():
            step = replace(step, max_frames=max(len(frames) - 1, 0))
        self.log = replace(self.log, steps=(*self.log.steps, step))
        return frames

    def _finish_all(self, steps: Iterable[SessionStep]) -> None:
        for step in steps:
            if not self.worker.stopped.is_set():
                self._finish(step)
        if self.worker.stopped.is_set():
            self.complete = False
            self.worker.say(INCOMPLETE)

    def _apply(self, run: PolicyRun, step: SessionStep) -> list[int]:
        frames: list[int] = []
        if self.worker.stopped.is_set():
            return frames
        results = run.apply(step)
        for frame in results:
            frames.append(frame)
            self.worker.advance(frame)
            if self.worker.stopped.is_set():
                results.close()  # type: ignore[attr-defined]
                break
        return frames

    def _run_under(self, setup: RunSetup, number: int) -> tuple[PolicyRun, RunSetup]:
        predictor, setup = self._networks.predictor(setup)
        run = PolicyRun(
            predictor, self.video.source, lambda frame: self.changes.note(number, frame), self._networks.folder
        )
        return run, setup

    def _work(self) -> Work:
        return Work(self.runs[0].snapshot(), self.log, self.setups[0], self.complete)

    def _restore(self, work: Work) -> None:
        if work.setup != self.setups[0]:
            before = self.runs[0]
            self.runs[0], self.setups[0] = self._run_under(work.setup, 0)
            self.runs[0].frames = before.frames
        self.log, self.complete = work.log, work.complete
        self.runs[0].restore(work.snapshot)
        self.changes.note()

    def _exchange(self, source: list[Work], target: list[Work]) -> None:
        if not source:
            words = "there is nothing to undo" if source is self.undo_stack else "nothing was undone"
            raise ValueError(words)
        target.append(self._work())
        self._restore(source.pop())
