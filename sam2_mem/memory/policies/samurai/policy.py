"""SAMURAI: a motion model takes part in choosing the mask, and only good frames are remembered for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from typing_extensions import Self

from sam2_mem.memory.box_motion import ChoosesByMotion, FollowedBank, MotionSelection, MotionState
from sam2_mem.memory.kalman_filter import BoxFilter, mask_boxes
from sam2_mem.memory.policy import Needs, best_candidate, setting
from sam2_mem.memory.reading import (
    anchors_of,
    closest_prompts,
    most_pointers,
    nearest_accepted,
    newest_first,
    pointer_window,
    recall_accepted,
    tracked_near,
)
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    ArchivedEntry,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
)

OFF_COURSE = "off course"


@dataclass(frozen=True, eq=False)
class SamuraiBank(FollowedBank):
    """A state with the frames that are off the predicted course.

    Attributes:
        off_course: tracked frames that are never accepted: those whose mask did not meet the predicted box well enough, and
            the one next to the first prompt.
    """

    off_course: tuple[int, ...] = ()

    def archivable(self) -> dict[int, tuple[MemoryEntry, str]]:
        """As in ``Bank``; frames off the course are marked."""
        return {e.frame: (e, OFF_COURSE if e.frame in self.off_course else "") for e in self.entries}

    def shift_frames(self, by: int) -> Self:
        """As in ``FollowedBank``."""
        return replace(super().shift_frames(by), off_course=tuple(f + by for f in self.off_course))


@dataclass(frozen=True, kw_only=True)
class Samurai(ChoosesByMotion[SamuraiBank]):
    """SAMURAI (Yang et al. 2024, arXiv 2411.11922), zero-shot visual tracking with motion-aware memory.

    Choosing the mask. A Kalman filter follows the box of the mask
    (``sam2_mem.memory.kalman_filter``). Without one, the best predicted IoU wins and starts it. For
    the first ``stable_frames_threshold`` frames the best predicted IoU wins and updates it, as long as it is above
    ``stable_ious_threshold``. From then on the score is ``kf_score_weight`` x IoU(predicted box, mask box) + (1 -
    ``kf_score_weight``) x predicted IoU. A prompt of one click starts the filter too, other prompts end it. A winner whose own predicted IoU is too low ends the filter.

    Reading. Beside the prompts, the last six frames that passed all three ``memory_bank_*`` thresholds (scores must be
    above them), by rank; the previous frame always. The code's search ends before frame 1, so the frame next to the first
    prompt is read on the frame after it only, whatever it is worth (``skip_first_frame``). Pointers are SAM 2's, of the last
    15 frames whether they passed or not.

    With ``kf_score_weight`` 0, the ``memory_bank_*`` thresholds at -inf, ``min_obj_score_logits`` 0 and ``skip_first_frame``
    false this is FIFO.

    Departures from the code: the filter belongs to the object, so any number of objects and videos can be tracked;
    prompts may come on any frame and tracking may run backwards; a later prompt ends the filter, or with one click starts it
    anew, and any jump in time ends it; an absent object or an empty mask ends
    the filter too, where the code feeds it a box in the corner of the image; a prompted frame keeps its place among the
    six, empty, as in SAM 2; boxes are measured on mask logits, scaled to the code's 1024 grid, so to 4 pixels at an
    image size of 1024; memory that can no longer be read is dropped.

    Attributes:
        kf_score_weight: share of the motion score, 0..1; 0.15 for the large model, 0.25 for the others (preset
            ``samurai_bplus_s_t``).
        memory_bank_iou_threshold: predicted IoU; 0.5.
        memory_bank_obj_score_threshold: object-score logit; 0.
        memory_bank_kf_score_threshold: overlap with the predicted box, where it was measured; 0.
        min_obj_score_logits: an object is absent at this object-score logit or below; -1 (SAM 2: 0). The learned mark
            that SAM 2.1 puts on memory without the object still goes by 0, as in the code.
        skip_first_frame: the tracked frame next to the first prompt (in a reverse pass, to the last one) is not accepted, as
            in the code, which never takes frame 1; false judges it by its scores like any other.
        start_at_click: a prompt of one click starts the filter from its mask, as in the code, where the best of three masks
            answers it; false leaves that to the first tracked frame.
        num_maskmem: as in FIFO.
        max_cond_frames_in_attn: as in FIFO.
        only_obj_ptrs_in_the_past_for_eval: as in FIFO.
    """

    memory_bank_iou_threshold: float = 0.5
    memory_bank_obj_score_threshold: float = 0.0
    memory_bank_kf_score_threshold: float = 0.0
    min_obj_score_logits: float = -1.0
    skip_first_frame: bool = True
    start_at_click: bool = True
    num_maskmem: int = setting(7, at_least=1)
    max_cond_frames_in_attn: int = setting(-1, at_least=2, special=(-1,))
    only_obj_ptrs_in_the_past_for_eval: bool = True

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and on both sides of the current frame, the earliest and the last prompt the nearest frame and the
        accepted frames of one read."""
        return tokens_per_map * (self.max_prompts + 3 * 2 * self.num_maskmem)

    @property
    def needs(self) -> Needs:
        """The masks of clicks, where they start the filter."""
        return Needs(click_mask=self.start_at_click, every_frame=True)

    def new_state(self, frame: FrameContext) -> SamuraiBank:
        return SamuraiBank()

    def prompt(self, state: SamuraiBank | None, frame: FrameContext, entry: MemoryEntry) -> SamuraiBank:
        prompted = super().prompt(state, frame, replace(entry, click_mask=None))
        box = None if entry.click_mask is None or entry.area == 0 else mask_boxes(entry.click_mask[None])[0]
        if box is None or not self.start_at_click:
            return prompted
        return replace(prompted, motion=MotionState(entry.frame, None, 1, BoxFilter.start(box)))

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, state: SamuraiBank, frame: FrameContext) -> Sequence[MemoryRead]:
        prompts, other_prompts = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        tracked: dict[int, Entry] = {**{e.frame: e for e in other_prompts}, **state.tracked()}
        accepted = newest_first(
            tracked.values(),
            {p.frame for p in prompts},
            frame,
            accept=lambda e: self._accepts(state, e),
            max_accepted=most_pointers(frame, self.max_obj_ptrs_in_encoder) - 1,
        )[: self.num_maskmem - 1]
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in prompts]
        for slot, entry in reversed(list(enumerate(accepted))):
            if isinstance(entry, MemoryEntry):
                items.append(ReadItem(entry.tokens, slot))
        pointers = pointer_window(
            prompts,
            tracked,
            frame,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _accepts(self, state: SamuraiBank, entry: Entry) -> bool:
        return (
            entry.iou > self.memory_bank_iou_threshold
            and entry.objectness > self.memory_bank_obj_score_threshold
            and entry.frame not in state.off_course
        )

    def recall(self, state: SamuraiBank, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> SamuraiBank:
        """With the latest accepted frames behind ``frame`` and the previous one, as if none had left."""
        off_course = {*state.off_course, *(f for f, a in archived.items() if a.mark == OFF_COURSE)}
        marked = replace(state, off_course=tuple(off_course))
        grown = recall_accepted(
            state,
            frame,
            archived,
            accept=lambda e: self._accepts(marked, e),
            max_maps=self.num_maskmem - 1,
            bare=self.frames_behind(frame)[1],
        )
        frames = grown.tracked()
        return grown if grown is state else replace(grown, off_course=tuple(f for f in off_course if f in frames))

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: SamuraiBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> SamuraiBank:
        assert isinstance(selection, MotionSelection), "a selection that this policy has made"
        motion = self.motion_after(state, frame, hypotheses, selection)
        off_course = tuple(f for f in state.off_course if f != frame.index)
        is_off = selection.kf_score is not None and selection.kf_score <= self.memory_bank_kf_score_threshold
        if is_off or self._is_first(state, frame):
            off_course += (frame.index,)
        updated = replace(state.add(*entries), motion=motion, off_course=off_course)
        reasons = (
            *self._doubtful_frames(state, frame.index),
            *self._motion_reasons(
                frame.index, hypotheses, selection, ended=state.motion is not None and motion is None
            ),
            *(self._gate_reason(updated, e, selection.kf_score) for e in entries),
        )
        return replace(self._evict(updated, frame.index), reasons=reasons)

    def _is_first(self, state: SamuraiBank, frame: FrameContext) -> bool:
        """Whether ``frame`` is the one next to the first prompt that the code's search does not reach."""
        prompted = state.prompted_frames()
        return self.skip_first_frame and frame.age(prompted[-1 if frame.reverse else 0]) == 1

    def _evict(self, state: SamuraiBank, index: int) -> SamuraiBank:
        anchors = anchors_of(state, index)
        tracked = state.tracked()
        readable, _ = nearest_accepted(
            list(tracked.values()),
            anchors,
            accept=lambda e: self._accepts(state, e),
            max_maps=self.num_maskmem - 1,
            max_pointers=0,
        )
        reach = self.max_obj_ptrs_in_encoder - 1
        within_reach = tracked_near(state, anchors, reach)
        off_course = tuple(f for f in state.off_course if f in readable | within_reach)
        return replace(state.keep(tokens=readable, pointers=within_reach), off_course=off_course)

    # -- reasons ------------------------------------------------------------------------------------------------

    def _doubtful_frames(self, state: SamuraiBank, index: int) -> list[Reason]:
        doubtful = [e.frame for e in state.entries if e.frame != index and not self._accepts(state, e)]
        return [Reason(f, "doubtful: read on the next frame only") for f in doubtful]

    def _motion_reasons(
        self, index: int, hypotheses: Hypotheses, selection: MotionSelection, *, ended: bool
    ) -> list[Reason]:
        """What the motion filter decided, and whether it ended."""
        reasons = []
        candidate, best = selection.output.candidate, best_candidate(hypotheses).candidate
        if candidate != best:
            text = f"motion preferred candidate {candidate} to {best}: overlap with the predicted box"
            reasons.append(Reason(index, text, selection.kf_score, action=Action.CHOSEN))
        if ended:
            iou, limit = hypotheses.iou[0][candidate], self.stable_ious_threshold
            reasons.append(Reason(index, "the motion filter ended", iou, limit, Action.REJECTED))
        return reasons

    def _gate_reason(self, state: SamuraiBank, entry: MemoryEntry, kf_score: float | None) -> Reason:
        """The threshold that an entry did not pass, or that it passed them all."""
        score: float | None
        if entry.iou <= self.memory_bank_iou_threshold:
            text, score, limit = "predicted IoU not above its threshold", entry.iou, self.memory_bank_iou_threshold
        elif entry.objectness <= self.memory_bank_obj_score_threshold:
            limit = self.memory_bank_obj_score_threshold
            text, score = "object score not above its threshold", entry.objectness
        elif entry.frame in state.off_course:
            text, score, limit = "off the predicted course", kf_score, self.memory_bank_kf_score_threshold
            if kf_score is None or kf_score > limit:
                return Reason(entry.frame, "doubtful: next to the first prompt", action=Action.REJECTED)
        else:
            return Reason(entry.frame, "accepted: predicted IoU", entry.iou, self.memory_bank_iou_threshold)
        return Reason(entry.frame, f"doubtful: {text}", score, limit, Action.REJECTED)

    def entry_infos(self, state: SamuraiBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """As accepted or doubtful; doubtful frames are read on the next frame only."""
        kind = lambda e: "accepted" if self._accepts(state, e) else "doubtful"  # noqa: E731
        scores = {e.frame: e.iou for e in state.entries}
        return entry_infos(state.all_entries(), kind, scores, "predicted IoU")
