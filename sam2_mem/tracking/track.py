"""One object in one video: its policy state, its latest outputs, and which frames it has been tracked on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.bank import Bank
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.sam2 import SAM2
from sam2_mem.types import (
    ABSENT_LOGIT,
    CandidateId,
    FrameContext,
    FrameResult,
    Hypotheses,
    ObjectScore,
    Revision,
    SensoryUpdate,
)

if TYPE_CHECKING:
    from sam2_mem.tracking.memory_reader import Decision

SCORE_MEMORY = 10
"""Frames of which ``VisibilityHistory`` holds object scores."""


@dataclass(frozen=True, eq=False)
class MaskOutput:
    """A mask shown to the user or remembered: ``logits`` (h, w) and ``pointer`` (C), both after the absent-object gate.
    ``candidates``: how many masks it was the best of; ``binarize``: its memory is made from the hard mask; ``refined``: a
    refiner's proposal replaced the mask; ``sensory``, ``update``: state of sensory memory on its way to memory, and how it got or gets there."""

    frame: int
    logits: Tensor
    pointer: Tensor
    iou: float
    objectness: float
    area: float
    prompted: bool = False
    candidates: int = 1
    binarize: bool = False
    refined: bool = False
    sensory: Tensor | None = None
    update: SensoryUpdate = SensoryUpdate.NONE


def gated_output(
    model: SAM2, frame: int, hypotheses: Hypotheses, candidate: CandidateId, threshold: float, *, prompted: bool = False
) -> MaskOutput:
    """A candidate after the absent-object gate: where its object score is not above ``threshold``, the mask is empty and
    the pointer is the learned "no object" pointer."""
    pathway, number = candidate.pathway, candidate.candidate
    logits, pointer = hypotheses.masks[pathway, number], hypotheses.pointers[pathway, number]
    objectness, areas = hypotheses.objectness[pathway], hypotheses.areas
    assert areas is not None, "the network's candidates come with their areas"
    present = objectness > threshold
    return MaskOutput(
        frame=frame,
        logits=logits.clone() if present else torch.full_like(logits, ABSENT_LOGIT),
        pointer=_gated_pointer(model, pointer, present),
        iou=hypotheses.iou[pathway][number],
        objectness=objectness,
        area=areas[pathway][number] if present else 0.0,
        prompted=prompted,
        candidates=len(hypotheses.iou[pathway]),
    )


def _gated_pointer(model: SAM2, pointer: Tensor, present: bool) -> Tensor:
    """A pointer (C) of its own, the learned "no object" pointer for an absent object; in training both have a gradient."""
    if torch.is_grad_enabled():
        return model.gate_pointers(pointer[None], to_device_async([present], pointer.device))[0]
    return (pointer if present else model.no_obj_ptr[0].to(pointer.dtype)).clone()


class ReferenceAppearance(NamedTuple):
    """What an object looked like on its first prompted frame: ``appearance`` (D) features averaged over its mask, ``centre``
    (D) over the frame."""

    centre: Tensor
    appearance: Tensor


class TrackedRanges:
    """Which frames were tracked, and in which direction last, as runs of neighbouring frames: one run per pass."""

    def __init__(self, runs: Iterable[tuple[int, int, bool]] = ()) -> None:
        self._runs: list[tuple[int, int, bool]] = list(runs)

    @property
    def runs(self) -> tuple[tuple[int, int, bool], ...]:
        """First frame, last frame and direction of each run."""
        return tuple(self._runs)

    def copy(self) -> TrackedRanges:
        """The same frames, apart from later changes."""
        return TrackedRanges(self._runs)

    def __contains__(self, frame: int) -> bool:
        return self.reverse_at(frame) is not None

    def __len__(self) -> int:
        return len(self._runs)

    def reverse_at(self, frame: int) -> bool | None:
        """Direction of the latest pass over ``frame``; None if there was none."""
        for low, high, reverse in reversed(self._runs):
            if low <= frame <= high:
                return reverse
        return None

    def add(self, frame: int, *, reverse: bool) -> None:
        if self._runs:
            low, high, direction = self._runs[-1]
            if direction == reverse and low - 1 <= frame <= high + 1:
                low, high = min(low, frame), max(high, frame)
                earlier = self._runs[:-1]
                if earlier:  # runs that the latest covers say nothing any more
                    earlier = [run for run in earlier if not (low <= run[0] and run[1] <= high)]
                self._runs = [*earlier, (low, high, reverse)]
                return
        self._runs.append((frame, frame, reverse))

    def discard(self, frame: int) -> None:
        """Forget that ``frame`` was ever tracked."""
        runs = []
        for low, high, reverse in self._runs:
            pieces = ((low, frame - 1), (frame + 1, high)) if low <= frame <= high else ((low, high),)
            runs += [(first, last, reverse) for first, last in pieces if first <= last]
        self._runs = runs


@dataclass(frozen=True)
class VisibilityHistory:
    """What is known of an object from frames before.

    Attributes:
        hidden_at: the latest frame on which its mask was empty or gave way; None if there was none.
        scores: object-score logits of the latest frames, oldest first.
    """

    hidden_at: int | None = None
    scores: tuple[float, ...] = ()

    def after(self, frame: int, objectness: float, *, is_hidden: bool) -> VisibilityHistory:
        """The history with one more frame."""
        scores = (*self.scores, objectness)[-SCORE_MEMORY:]
        return VisibilityHistory(frame if is_hidden else self.hidden_at, scores)


@dataclass(eq=False)
class Track:
    """Bookkeeping of one object. Ids never change, positions in a batch do.

    ``state`` is None until the first prompt has been taken into memory; ``pending`` holds prompts that have not;
    ``outputs`` the latest masks and those of prompted frames; ``latest`` frame and direction of the latest step;
    ``frozen`` memory is read but no longer written; ``has_dropped_prompts``: there was no room for all; ``reference`` what
    it looked like on the first frame on which it is visible, where there is a refiner; ``visibility`` when it was last
    hidden, where there is an arbiter; ``decision`` how the latest mask came about, where the tracker keeps that.
    """

    obj_id: int
    state: Bank | None = None
    outputs: dict[int, MaskOutput] = field(default_factory=dict)
    pending: dict[int, MaskOutput] = field(default_factory=dict)
    tracked: TrackedRanges = field(default_factory=TrackedRanges)
    latest: tuple[int, bool] | None = None
    frozen: bool = False
    has_dropped_prompts: bool = False
    reference: ReferenceAppearance | None = None
    visibility: VisibilityHistory = VisibilityHistory()
    decision: Decision | None = None

    def prompted_frames(self) -> set[int]:
        return set() if self.state is None else set(self.state.prompted_frames())

    def frames_in_memory(self) -> set[int]:
        """Frames whose spatial memory is held."""
        return set() if self.state is None else {e.frame for e in self.state.all_entries() if e.tokens is not None}

    def answered(self, frame: int) -> bool:
        """Whether the mask of ``frame`` was given by a prompt. (A prompt of a loaded memory has no mask in this video.)"""
        return frame in self.outputs and frame in self.prompted_frames()

    def continues(self, frame: FrameContext) -> bool:
        """Whether the latest step was on the frame before ``frame``, in the same direction."""
        return self.latest == (frame.index + (1 if frame.reverse else -1), frame.reverse)

    def output_at(self, frame: int) -> MaskOutput | None:
        """What the user sees on ``frame`` now, where it has not left this track."""
        return self.pending.get(frame) or self.outputs.get(frame)

    def remember_output(self, output: MaskOutput, history: int | None) -> list[MaskOutput]:
        """Keep ``output``; beyond ``history`` of them the oldest unprompted ones go (None: keep all).

        Returns:
            those that go.
        """
        self.outputs.pop(output.frame, None)
        self.outputs[output.frame] = output
        if history is None or len(self.outputs) <= history:
            return []
        prompted = self.prompted_frames()
        tracked = [frame for frame in self.outputs if frame not in prompted]
        return [self.outputs.pop(frame) for frame in tracked[: max(0, len(tracked) - history)]]


def frame_result(
    model: SAM2,
    tracks: Sequence[Track],
    frame: int,
    frames_before: Sequence[set[int]],
    gate: float,
    revisions: tuple[Revision, ...] = (),
) -> FrameResult:
    """What is given out of a frame that has been tracked.

    Args:
        model: gives the size of masks.
        tracks: (N) objects with a memory.
        frame: its number.
        frames_before: (N) frames that were in memory before it.
        gate: the object score above which objects are present.
        revisions: earlier masks that it has changed.
    """
    outputs = [track.outputs[frame] for track in tracks]
    empty = torch.zeros(0, *model.mask_size, device=model.device)
    return FrameResult(
        frame=frame,
        obj_ids=tuple([track.obj_id for track in tracks]),
        masks=torch.stack([output.logits for output in outputs]) if outputs else empty,
        scores=tuple([_score(t, o, frames, gate) for t, o, frames in zip(tracks, outputs, frames_before)]),
        revisions=revisions,
    )


def _score(track: Track, output: MaskOutput, frames_before: set[int], gate: float) -> ObjectScore:
    assert track.state is not None, "objects without a memory are not tracked"
    frames = track.frames_in_memory()
    return ObjectScore(
        obj_id=track.obj_id,
        iou=output.iou,
        objectness=output.objectness,
        present=output.objectness > (0.0 if output.prompted else gate),
        prompted=output.prompted,
        held=tuple(sorted(frames)),
        dropped=tuple(sorted(frames_before - frames)),
        tokens=track.state.token_count(),
        refined=output.refined,
    )


__getattr__ = renamed(__name__)
