"""Motion of an object's box as a second opinion on its mask: SAMURAI's choice, for policies that share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.kalman_filter import BoxFilter, MaskBox, box_iou, mask_boxes, occupied_lines
from sam2_mem.memory.policy import MemoryPolicy, best_candidate, setting
from sam2_mem.types import (
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    ReadUsage,
)


@dataclass(frozen=True)
class MotionState:
    """The filter after ``frame`` and the number of ``stable`` frames it has followed, at least 1. ``reverse`` None: it has
    seen one frame, the prompted one, and goes on in either direction."""

    frame: int
    reverse: bool | None
    stable: int
    filter: BoxFilter

    def precedes(self, frame: FrameContext) -> bool:
        """Whether ``frame`` comes right after the last one of the filter, in the same direction."""
        return self.reverse in (None, frame.reverse) and frame.age(self.frame) == 1


@dataclass(frozen=True)
class MotionSelection(MaskSelection):
    """A selection with what the motion filter said.

    Attributes:
        predicted: the filter it was made with, one step ahead.
        box: box of the selected mask.
        kf_score: its overlap with the predicted box, None while the filter is not trusted yet.
    """

    predicted: BoxFilter | None = None
    box: MaskBox | None = None
    kf_score: float | None = None


def candidate_boxes(hypotheses: Hypotheses, min_obj_score_logits: float) -> Sequence[MaskBox | None]:
    """Boxes of the only pathway's candidates, of what was ``measured`` by ``occupied_lines`` if anything was; of an absent
    object None."""
    if hypotheses.objectness[0] <= min_obj_score_logits:
        return [None] * len(hypotheses.iou[0])
    masks, measured = hypotheses.masks[0], hypotheses.measured
    lines = None if measured is None else measured[: _line_count(hypotheses)].view(len(masks), -1) > 0
    return mask_boxes(masks, lines)


def measured_beside(hypotheses: Hypotheses) -> Tensor | None:
    """What a policy has measured beside the lines of the only pathway's M candidates, (M, n); None for nothing."""
    if hypotheses.measured is None:
        return None
    count = hypotheses.masks.shape[1]
    return hypotheses.measured[_line_count(hypotheses) :].view(count, -1)


def _line_count(hypotheses: Hypotheses) -> int:
    _, count, height, width = hypotheses.masks.shape
    return count * (height + width)


def choose_by_motion(
    motion: MotionState | None,
    frame: FrameContext,
    hypotheses: Hypotheses,
    boxes: Sequence[MaskBox | None],
    *,
    weight: float,
    stable_frames: int,
) -> MotionSelection:
    """The candidate of highest predicted IoU; once the filter has followed ``stable_frames`` frames, of highest
    ``weight`` x overlap with the predicted box + (1 - ``weight``) x predicted IoU."""
    best, score, predicted = best_candidate(hypotheses), None, None
    if motion is not None and motion.precedes(frame):
        predicted = motion.filter.predict()
        if motion.stable >= stable_frames:
            overlaps = [box_iou(predicted.box(), box) for box in boxes]
            joint = [weight * o + (1 - weight) * iou for o, iou in zip(overlaps, hypotheses.iou[0])]
            best = CandidateId(0, joint.index(max(joint)))
            score = overlaps[best.candidate]
    return MotionSelection(best, (best,), predicted=predicted, box=boxes[best.candidate], kf_score=score)


def next_motion(
    motion: MotionState | None,
    frame: FrameContext,
    selection: MotionSelection,
    iou: float,
    *,
    stable_iou: float,
    stable_frames: int,
) -> MotionState | None:
    """The filter after this frame; None without a mask, or with a predicted IoU too low to follow."""
    if selection.box is None:
        return None
    if motion is None or selection.predicted is None:
        return MotionState(frame.index, frame.reverse, 1, BoxFilter.start(selection.box))
    trusted = motion.stable >= stable_frames
    too_low = iou < stable_iou if trusted else iou <= stable_iou
    if too_low:
        return None
    stable = motion.stable if trusted else motion.stable + 1
    return MotionState(frame.index, frame.reverse, stable, selection.predicted.update(selection.box))


@dataclass(frozen=True, eq=False)
class FollowedBank(Bank):
    """A state with the motion of the object.

    Attributes:
        motion: None until a mask has been seen, and after the filter lost it.
    """

    motion: MotionState | None = None

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        """As in ``Bank``; a prompt ends the filter."""
        return replace(super().add_prompt(entry, max_prompts), motion=None)

    def shift_frames(self, by: int) -> Self:
        """As in ``Bank``; the filter does not go along into another video."""
        return replace(super().shift_frames(by), motion=None)


F = TypeVar("F", bound=FollowedBank)


@dataclass(frozen=True, kw_only=True)
class ChoosesByMotion(MemoryPolicy[F]):
    """A policy that chooses masks as SAMURAI does.

    Attributes:
        stable_frames_threshold: frames before the motion score counts; 15 in SAMURAI's code.
        stable_ious_threshold: predicted IoU that keeps the filter alive; 0.3.
        kf_score_weight: share of the motion score, 0..1; 0.15 for the large model.
    """

    stable_frames_threshold: int = setting(15, at_least=1)
    stable_ious_threshold: float = 0.3
    kf_score_weight: float = setting(0.15, at_least=0.0, at_most=1.0)

    def measure(self, state: F, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None) -> Tensor | None:
        """Lines that masks occupy, which boxes follow from, and what ``compared`` says."""
        lines, further = occupied_lines(masks[0]).float().flatten(), self.compared(state, frame, masks[0])
        return lines if further is None else torch.cat([lines, further.flatten()])

    def compared(self, state: F, frame: FrameContext, masks: Tensor) -> Tensor | None:
        """Further numbers of the M candidates (M, h, w) that a subclass goes by, (M, n): ``measured_beside``."""
        return None

    def choose(self, state: F, frame: FrameContext, hypotheses: Hypotheses) -> MotionSelection:
        boxes = candidate_boxes(hypotheses, self.min_obj_score_logits)
        weight, stable_frames = self.kf_score_weight, self.stable_frames_threshold
        return choose_by_motion(state.motion, frame, hypotheses, boxes, weight=weight, stable_frames=stable_frames)

    def motion_after(
        self, state: F, frame: FrameContext, hypotheses: Hypotheses, selection: MotionSelection
    ) -> MotionState | None:
        """The filter after ``frame``, see ``next_motion``."""
        iou = hypotheses.iou[selection.output.pathway][selection.output.candidate]
        stable_iou, stable_frames = self.stable_ious_threshold, self.stable_frames_threshold
        return next_motion(state.motion, frame, selection, iou, stable_iou=stable_iou, stable_frames=stable_frames)
