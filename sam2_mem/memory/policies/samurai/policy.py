"""SAMURAI: a motion model takes part in choosing the mask, and only good frames are remembered for reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sam2_mem.memory.policies.samurai.kalman_filter import Box, BoxFilter, box_iou, mask_boxes
from sam2_mem.memory.policy import Bank, MemoryPolicy, best_candidate, drop, put
from sam2_mem.memory.reading import (
    add_prompt,
    anchors_of,
    closest_prompts,
    most_pointers,
    nearest_accepted,
    newest_first,
    pointer_window,
)
from sam2_mem.memory.trace import Action, Cause, Change, EntryInfo, Reason, TraceEvent, entry_infos, with_reasons
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
)


@dataclass(frozen=True)
class Motion:
    """The filter after ``frame`` and the number of ``stable`` frames it has followed, at least 1."""

    frame: int
    reverse: bool
    stable: int
    filter: BoxFilter


@dataclass(frozen=True, eq=False)
class SamuraiBank(Bank):
    """``motion`` is None until a mask has been seen, and after the filter lost it; ``off_course``: frames among
    ``entries`` whose mask did not meet the predicted box well enough."""

    motion: Motion | None = None
    off_course: tuple[int, ...] = ()


@dataclass(frozen=True)
class MotionSelection(MaskSelection):
    """The choice, the predicted filter it was made with, the box of the chosen mask, and its overlap with the
    prediction (None while the filter is not trusted yet)."""

    predicted: BoxFilter | None = None
    box: Box | None = None
    kf_score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Samurai(MemoryPolicy[SamuraiBank]):
    """SAMURAI (Yang et al. 2024, arXiv 2411.11922), zero-shot visual tracking with motion-aware memory.

    Choosing the mask. A Kalman filter follows the box of the mask (:mod:`sam2_mem.memory.policies.samurai.kalman_filter`). Without one, the
    best predicted IoU wins and starts it. For the first ``stable_frames_threshold`` frames the best predicted IoU wins
    and updates it, as long as it is above ``stable_ious_threshold``. From then on the score is
    ``kf_score_weight`` x IoU(predicted box, mask box) + (1 - ``kf_score_weight``) x predicted IoU. A winner whose own
    predicted IoU is too low ends the filter.

    Reading. Beside the prompts, the last six frames that passed all three ``memory_bank_*`` thresholds (scores must be
    above them), by rank; the previous frame always. Pointers are SAM 2's, of the last 15 frames whether they passed or
    not.

    Attributes:
        stable_frames_threshold: frames before the motion score counts; 15 in the code.
        stable_ious_threshold: predicted IoU that keeps the filter alive; 0.3.
        kf_score_weight: share of the motion score, 0..1; 0.15 for the large model, 0.25 for the others (preset
            ``samurai_bplus_s_t``).
        memory_bank_iou_threshold: predicted IoU; 0.5. memory_bank_obj_score_threshold: object-score logit; 0.
        memory_bank_kf_score_threshold: overlap with the predicted box, where it was measured; 0.
        min_obj_score_logits: an object is absent at this object-score logit or below; -1 (SAM 2: 0). The learned mark
            that SAM 2.1 puts on memory without the object still goes by 0, as in the code.
        num_maskmem, max_obj_ptrs_in_encoder, max_cond_frames_in_attn, only_obj_ptrs_in_the_past_for_eval, max_prompts:
            as in FIFO.

    With ``kf_score_weight`` 0, the ``memory_bank_*`` thresholds at -inf and ``min_obj_score_logits`` 0 this is FIFO.

    Departures from the code: the filter belongs to the object, so any number of objects and videos can be tracked;
    prompts may come on any frame and tracking may run backwards; a prompt ends the filter (as in the code, prompts
    never start one: the next tracked frame does), and so does any jump in time; an absent object or an empty mask ends
    the filter too, where the code feeds it a box in the corner of the image; a prompted frame keeps its place among the
    six, empty, as in SAM 2; boxes are measured on mask logits, scaled to the code's 1024 grid, so to 4 pixels at an
    image size of 1024; memory that can no longer be read is dropped.
    """

    stable_frames_threshold: int = 15
    stable_ious_threshold: float = 0.3
    kf_score_weight: float = 0.15
    memory_bank_iou_threshold: float = 0.5
    memory_bank_obj_score_threshold: float = 0.0
    memory_bank_kf_score_threshold: float = 0.0
    min_obj_score_logits: float = -1.0
    num_maskmem: int = 7
    max_obj_ptrs_in_encoder: int = 16
    max_cond_frames_in_attn: int = -1
    only_obj_ptrs_in_the_past_for_eval: bool = True
    max_prompts: int = 32

    def __post_init__(self) -> None:
        for name in ("num_maskmem", "max_obj_ptrs_in_encoder", "stable_frames_threshold"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if not 0 <= self.kf_score_weight <= 1:
            raise ValueError(f"expected kf_score_weight in 0..1, got {self.kf_score_weight}")
        if self.max_cond_frames_in_attn != -1 and self.max_cond_frames_in_attn < 2:
            raise ValueError(f"expected max_cond_frames_in_attn -1 or >= 2, got {self.max_cond_frames_in_attn}")
        if self.max_prompts < 2:
            raise ValueError(f"expected max_prompts >= 2, got {self.max_prompts}")

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and on both sides of the current frame, the earliest and the last prompt the nearest frame and the
        accepted frames of one read."""
        return tokens_per_map * (self.max_prompts + 3 * 2 * self.num_maskmem)

    # -- reading ------------------------------------------------------------------------------------------------

    def prompt(self, state: SamuraiBank | None, frame: FrameContext, entry: MemoryEntry) -> SamuraiBank:
        state = SamuraiBank() if state is None else state
        return replace(
            state,
            prompts=add_prompt(state.prompts, entry, self.max_prompts),
            entries=drop(state.entries, entry.frame),
            motion=None,
        )

    def read(self, state: SamuraiBank, frame: FrameContext) -> Sequence[MemoryRead]:
        near, far = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        tracked = {e.frame: e for e in (*far, *state.entries)}
        places = newest_first(
            tracked.values(),
            {p.frame for p in near},
            frame,
            accept=lambda e: self._accepts(state, e),
            most=most_pointers(frame, self.max_obj_ptrs_in_encoder) - 1,
        )[: self.num_maskmem - 1]
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in near if e.tokens is not None]
        for slot, entry in reversed(list(enumerate(places))):
            if entry is not None and entry.tokens is not None:
                items.append(ReadItem(entry.tokens, slot))
        pointers = pointer_window(
            near,
            tracked,
            frame,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _accepts(self, state: SamuraiBank, entry: MemoryEntry) -> bool:
        return (
            entry.iou > self.memory_bank_iou_threshold
            and entry.objectness > self.memory_bank_obj_score_threshold
            and entry.frame not in state.off_course
        )

    # -- choosing -----------------------------------------------------------------------------------------------

    def choose(self, state: SamuraiBank, frame: FrameContext, hypotheses: Hypotheses) -> MotionSelection:
        boxes = self._boxes(hypotheses)
        motion = state.motion if _follows(state.motion, frame) else None
        predicted = None if motion is None else motion.filter.predict()
        best, score = best_candidate(hypotheses), None
        if motion is not None and motion.stable >= self.stable_frames_threshold:
            overlaps = [box_iou(predicted.box(), box) for box in boxes]
            weight = self.kf_score_weight
            joint = [weight * o + (1 - weight) * iou for o, iou in zip(overlaps, hypotheses.iou[0])]
            best = CandidateId(0, joint.index(max(joint)))
            score = overlaps[best.candidate]
        return MotionSelection(
            output=best, remember=(best,), predicted=predicted, box=boxes[best.candidate], kf_score=score
        )

    def _boxes(self, hypotheses: Hypotheses) -> list[Box | None]:
        if hypotheses.objectness[0] <= self.min_obj_score_logits:
            return [None] * len(hypotheses.iou[0])
        return mask_boxes(hypotheses.masks[0])

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: SamuraiBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MotionSelection,
        entries: Sequence[MemoryEntry],
    ) -> SamuraiBank:
        tracked, off_course = state.entries, tuple(f for f in state.off_course if f != frame.index)
        for entry in entries:
            tracked = put(tracked, entry)
        if choice.kf_score is not None and choice.kf_score <= self.memory_bank_kf_score_threshold:
            off_course += (frame.index,)
        iou = hypotheses.iou[choice.output.pathway][choice.output.candidate]
        motion = self._moved_on(state.motion, frame, choice, iou)
        return self._evicted(replace(state, entries=tracked, motion=motion, off_course=off_course), frame.index)

    def _moved_on(
        self, motion: Motion | None, frame: FrameContext, choice: MotionSelection, iou: float
    ) -> Motion | None:
        """The filter after this frame."""
        if choice.box is None:
            return None
        if choice.predicted is None:
            return Motion(frame.index, frame.reverse, 1, BoxFilter.start(choice.box))
        trusted = motion.stable >= self.stable_frames_threshold
        lost = iou < self.stable_ious_threshold if trusted else iou <= self.stable_ious_threshold
        if lost:
            return None
        stable = motion.stable if trusted else motion.stable + 1
        return Motion(frame.index, frame.reverse, stable, choice.predicted.update(choice.box))

    def _evicted(self, state: SamuraiBank, now: int) -> SamuraiBank:
        anchors = anchors_of(state.prompts, now)
        whole, _ = nearest_accepted(
            state.entries, anchors, accept=lambda e: self._accepts(state, e), whole=self.num_maskmem - 1, pointers=0
        )
        reach = self.max_obj_ptrs_in_encoder - 1
        kept = [
            e if e.frame in whole else e.without_tokens()
            for e in state.entries
            if e.frame in whole or min(abs(e.frame - a) for a in anchors) <= reach
        ]
        held = {e.frame for e in kept}
        return replace(state, entries=tuple(kept), off_course=tuple(f for f in state.off_course if f in held))

    def moved(self, state: SamuraiBank, by: int) -> SamuraiBank:
        """See :meth:`MemoryPolicy.moved`; the filter does not go along into another video."""
        there = super().moved(state, by)
        return replace(there, motion=None, off_course=tuple(f + by for f in state.off_course))

    # -- reasons ------------------------------------------------------------------------------------------------

    def notes(self, state: SamuraiBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; doubtful frames are read on the next frame only."""
        scores = {e.frame: e.iou for e in state.entries if e.tokens is not None}
        kind = lambda e: "accepted" if self._accepts(state, e) else "doubtful"  # noqa: E731
        return entry_infos(self.held(state), kind, scores, "predicted IoU")

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events, now = super().explain(change), change.frame.index
        if change.cause is not Cause.WRITE:
            return events
        extra = self._motion_events(change)
        failed = [self._failed_gate(change, e) for e in change.entries]
        for why in failed:
            if why is not None:
                extra.append(why.event(Action.REJECTED, now))
        accepted = Reason("accepted: predicted IoU", change.shown_iou, self.memory_bank_iou_threshold)
        came = {} if any(failed) else {now: accepted}
        whole = [e for e in change.before.entries if e.tokens is not None]
        doubtful = [e.frame for e in whole if not self._accepts(change.before, e)]
        went = dict.fromkeys(doubtful, Reason("doubtful: read on the next frame only"))
        return [*with_reasons(events, came=came, went=went), *extra]

    def _failed_gate(self, change: Change, entry: MemoryEntry) -> Reason | None:
        """The threshold that an entry did not pass."""
        if entry.iou <= self.memory_bank_iou_threshold:
            return Reason("doubtful: predicted IoU not above its threshold", entry.iou, self.memory_bank_iou_threshold)
        if entry.objectness <= self.memory_bank_obj_score_threshold:
            limit = self.memory_bank_obj_score_threshold
            return Reason("doubtful: object score not above its threshold", entry.objectness, limit)
        if entry.frame in change.after.off_course:
            limit = self.memory_bank_kf_score_threshold
            return Reason("doubtful: off the predicted course", change.choice.kf_score, limit)
        return None

    def _motion_events(self, change: Change) -> list[TraceEvent]:
        """What the motion filter decided, and how it ended."""
        found, best = [], best_candidate(change.hypotheses)
        if change.shown.candidate != best.candidate:
            picks = f"candidate {change.shown.candidate} to {best.candidate}"
            text = f"motion preferred {picks}: overlap with the predicted box"
            found.append(TraceEvent(Action.CHOSEN, change.frame.index, text, change.choice.kf_score))
        if change.before.motion is not None and change.after.motion is None:
            ended = Reason("the motion filter ended", change.shown_iou, self.stable_ious_threshold)
            found.append(ended.event(Action.REJECTED, change.frame.index))
        return found


def _follows(motion: Motion | None, frame: FrameContext) -> bool:
    """Whether ``frame`` comes right after the last one of the filter, in the same direction."""
    return motion is not None and motion.reverse == frame.reverse and frame.age(motion.frame) == 1
