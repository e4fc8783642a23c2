"""Passes over a video that can be talked to: which frames they take, and what is said while their results are taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sam2_mem.prompts import as_integer
from sam2_mem.tracking.frame_loop import run
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.types import FrameFeatures, FrameResult
from sam2_mem.video import Frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassRange:
    """The frames of one pass, in its direction: from ``start`` on; ``stop`` (not among them) None for the end."""

    start: int
    stop: int | None
    step: int

    def after(self, frame: int) -> PassRange:
        """What is left after ``frame``."""
        return replace(self, start=frame + self.step)

    def is_empty(self) -> bool:
        return self.start < 0 or self.start == self.stop

    def frames(self, state: InferenceState) -> Iterator[Frame]:
        return state.iterate(self.start, None if self.stop == -1 else self.stop, self.step)


def pass_range(state: InferenceState, start: int | None, max_frames: int | None, reverse: bool) -> PassRange:
    """As in SAM 2, a pass starts at the earliest prompted frame by default, a reverse pass from frame 0 is empty and
    ``max_frames`` counts frames after the first."""
    if max_frames is not None:
        max_frames = as_integer(max_frames, "max_frame_num_to_track as an integer")
    if max_frames is not None and max_frames < 0:
        raise ValueError(f"expected max_frame_num_to_track >= 0, got {max_frames}")
    if start is None:
        start = max(0, min(frame for track in state.tracker.tracks.values() for frame in track.prompted_frames()))
    else:
        start = state.check_frame(start)
    if not reverse:
        return PassRange(start, None if max_frames is None else start + max_frames + 1, 1)
    if start == 0 and state.video.seekable:
        return PassRange(0, 0, -1)
    return PassRange(start, -1 if max_frames is None else max(start - max_frames, 0) - 1, -1)


def run_pass(
    state: InferenceState,
    frames: PassRange,
    *,
    encode: Callable[[Frame], FrameFeatures],
    encode_all: Callable[[Sequence[Frame]], list[FrameFeatures]],
    take_in: Callable[[], None],
    final: bool,
) -> Iterator[FrameResult]:
    """Track all objects of a session through ``frames``. What is said between two results acts from the next one on.

    Args:
        state: of the session.
        frames: of the pass.
        encode: the features of a frame.
        encode_all: those of several frames, for clips.
        take_in: takes what was said into memory.
        final: see ``sam2_mem.tracking.frame_loop.run``.
    """
    lag = state.tracker.policy.needs.revise if final else 0
    cached = partial(state.features, encode=encode)
    single = partial(_single_pass, state, encode=cached, encode_all=encode_all, take_in=take_in, final=final)
    if lag and state.video.seekable:
        return _restarting_pass(state, frames, single, take_in)
    return single(frames, lag=lag)


def _single_pass(
    state: InferenceState,
    frames: PassRange,
    *,
    encode: Callable[[Frame], FrameFeatures],
    encode_all: Callable[[Sequence[Frame]], list[FrameFeatures]],
    take_in: Callable[[], None],
    final: bool,
    lag: int = 0,
) -> Iterator[FrameResult]:
    """``lag``: frames that the pass is ahead of its results, and cannot go back to."""
    if frames.is_empty():
        return iter(())
    edits = state.edits

    def before_frame() -> None:
        nonlocal edits
        if state.edits == edits:
            return
        edits = state.edits
        if lag:
            message = (
                "what was said in the loop acts from %d frames on: this video cannot be read again for masks in between"
            )
            logger.warning(message, lag)
        take_in()

    steps = partial(run, state, frames.frames(state), encode=encode, encode_all=encode_all, reverse=frames.step < 0)
    return steps(final=final, before_frame=before_frame)


def _restarting_pass(
    state: InferenceState,
    frames: PassRange,
    single: Callable[[PassRange], Iterator[FrameResult]],
    take_in: Callable[[], None],
) -> Iterator[FrameResult]:
    """A pass that is ahead of its results: where something was said, the frames in between are tracked again."""
    while not frames.is_empty() and state.has_frame(frames.start):
        edits, results = state.edits, single(frames)
        for result in results:
            yield result
            if state.edits != edits:
                frames = frames.after(result.frame)
                break
        else:
            return
        results.close()  # type: ignore[attr-defined]
        take_in()
