"""Motion of an object's box as a second opinion on its mask: SAMURAI's choice, for policies that share it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.kalman_filter import BoxFilter, MaskBox, box_iou, mask_boxes, occupied_lines
from sam2_mem.memory.policy import MemoryPolicy, best_candidate, setting
from sam2_mem.memory.reading import anchors_of, newest_first, pointer_window, tracked_near
from sam2_mem.memory.trace import EntryInfo, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
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
    return mask_boxes(masks, None if measured is None else measured.view(len(masks), -1) > 0)


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


# -- a window of good frames out of which a few are read --------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MotionBank(Bank):
    """A state with the motion of the object.

    Attributes:
        motion: None until a mask has been seen, and after the filter lost it.
        overlaps: (frame, overlap with the predicted box) of tracked frames on which it was measured.
    """

    motion: MotionState | None = None
    overlaps: tuple[tuple[int, float], ...] = ()

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        """As in ``Bank``; a prompt ends the filter."""
        return replace(super().add_prompt(entry, max_prompts), motion=None)

    def shift_frames(self, by: int) -> Self:
        """As in ``Bank``; the filter does not go along into another video."""
        overlaps = tuple((f + by, overlap) for f, overlap in self.overlaps)
        return replace(super().shift_frames(by), motion=None, overlaps=overlaps)


S = TypeVar("S", bound=MotionBank)


@dataclass(frozen=True, kw_only=True)
class MotionWindow(MemoryPolicy[S]):
    """A policy that chooses masks as SAMURAI does and keeps a window of good frames, out of which ``selected`` takes those
    that are read.

    A frame is good if its predicted IoU, its object score and its overlap with the predicted box, where that was measured,
    are above their thresholds. The previous frame is read in any case. Slots are by rank, pointers those of SAM 2.

    Attributes:
        window: good frames kept with their maps.
        num_maskmem: maps read, one of them for the prompts.
        min_iou: predicted IoU that a good frame is above.
        min_object_score: object-score logit that it is above.
        min_overlap: overlap with the predicted box that it is above.
        kf_score_weight: as in samurai.
        stable_frames_threshold: as in samurai.
        stable_ious_threshold: as in samurai.
    """

    window: int = setting(30, at_least=1)
    num_maskmem: int = setting(7, at_least=2)
    min_iou: float = 0.5
    min_object_score: float = 0.0
    min_overlap: float = 0.0
    kf_score_weight: float = setting(0.15, at_least=0.0, at_most=1.0)
    stable_frames_threshold: int = setting(15, at_least=1)
    stable_ious_threshold: float = 0.3

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, the window, the newest frame."""
        return tokens_per_map * (self.max_prompts + self.window + 1)

    @abstractmethod
    def selected(self, state: S, frame: FrameContext, candidates: Sequence[Entry]) -> list[Entry]:
        """At most ``num_maskmem`` - 1 of ``candidates``, which are more and come newest first, the previous frame ahead of all.
        Pure."""

    def is_good(self, state: S, entry: Entry) -> bool:
        """Whether ``entry`` is above all thresholds."""
        overlap = dict(state.overlaps).get(entry.frame)
        on_course = overlap is None or overlap > self.min_overlap
        return entry.iou > self.min_iou and entry.objectness > self.min_object_score and on_course

    def read(self, state: S, frame: FrameContext) -> Sequence[MemoryRead]:
        tracked = state.tracked()
        prompted = set(state.prompted_frames())
        good = lambda e: self.is_good(state, e)  # noqa: E731
        ranked = newest_first(tracked.values(), prompted, frame, accept=good, max_accepted=self.window)
        if len(ranked) > self.num_maskmem - 1:
            candidates = [e for e in ranked if isinstance(e, MemoryEntry)]
            is_choice = len(candidates) > self.num_maskmem - 1
            ranked = [*(self.selected(state, frame, candidates) if is_choice else candidates)]
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts]
        items += [ReadItem(e.tokens, slot) for slot, e in enumerate(ranked) if isinstance(e, MemoryEntry)]
        pointers = pointer_window(state.prompt_entries(), tracked, frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def measure(self, state: S, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None) -> Tensor | None:
        """Lines that masks occupy, which boxes follow from."""
        return occupied_lines(masks[0]).float()

    def choose(self, state: S, frame: FrameContext, hypotheses: Hypotheses) -> MotionSelection:
        boxes = candidate_boxes(hypotheses, self.min_obj_score_logits)
        weight, stable_frames = self.kf_score_weight, self.stable_frames_threshold
        return choose_by_motion(state.motion, frame, hypotheses, boxes, weight=weight, stable_frames=stable_frames)

    def write(
        self,
        state: S,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> S:
        assert isinstance(selection, MotionSelection), "a selection that this policy has made"
        motion = next_motion(
            state.motion,
            frame,
            selection,
            hypotheses.iou[0][selection.output.candidate],
            stable_iou=self.stable_ious_threshold,
            stable_frames=self.stable_frames_threshold,
        )
        measured = {f: overlap for f, overlap in state.overlaps if f != frame.index}
        overlap = self.overlap(selection)
        if overlap is not None:
            measured[frame.index] = overlap
        grown = replace(state.add(*entries), motion=motion, overlaps=tuple(measured.items()))
        return self._evict(grown, frame)

    def overlap(self, selection: MotionSelection) -> float | None:
        """What is remembered as the overlap with the predicted box: SAMURAI's score, None while its filter is not trusted."""
        return selection.kf_score

    def _evict(self, state: S, frame: FrameContext) -> S:
        good = [e for e in state.entries if e.frame != frame.index and self.is_good(state, e)]
        nearest = {e.frame for e in sorted(good, key=lambda e: abs(frame.age(e.frame)))[: self.window]}
        reach, anchors = self.max_obj_ptrs_in_encoder - 1, anchors_of(state, frame.index)
        near = tracked_near(state, anchors, reach)
        bank = state.keep(tokens=nearest | {frame.index}, pointers=near)
        frames = bank.tracked()
        return replace(bank, overlaps=tuple((f, x) for f, x in state.overlaps if f in frames))

    def entry_infos(self, state: S, frame: FrameContext) -> Sequence[EntryInfo]:
        kind = lambda e: "good" if self.is_good(state, e) else "doubtful"  # noqa: E731
        return entry_infos(state.all_entries(), kind, {e.frame: e.iou for e in state.entries}, "predicted IoU")
