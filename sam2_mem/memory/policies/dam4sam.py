"""DAM4SAM: recent memory for appearance, and a second memory of frames on which the object was told from a
distractor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import cv2
import numpy as np

from sam2_mem.memory.policy import Bank, MemoryPolicy, best_candidate, drop, put
from sam2_mem.memory.reading import add_prompt, anchors_of, pointer_window
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


@dataclass(frozen=True, eq=False)
class DistractorBank(Bank):
    """``entries`` is the recent memory, ``resolved`` the frames promoted out of it, both sorted by frame; ``areas`` the
    (step, pixels) of the latest visible masks, a step being a tracked frame; ``promoted_at`` the step of the latest
    promotion; ``latest`` the frame tracked last."""

    resolved: tuple[MemoryEntry, ...] = ()
    steps: int = 0
    areas: tuple[tuple[int, int], ...] = ()
    promoted_at: int | None = None
    latest: int | None = None

    def all_entries(self) -> tuple[MemoryEntry, ...]:
        return self.prompts + self.resolved + self.entries


@dataclass(frozen=True, kw_only=True)
class DAM4SAM(MemoryPolicy[DistractorBank]):
    """DAM4SAM (Videnovic et al. 2025, arXiv 2411.17576), a distractor-aware memory for SAM 2.

    Reading. ``num_maskmem`` maps in all. The distractor-resolving memory gives up to ``max_cond_frames_in_attn`` of
    them in the slot of prompts: the first prompt, and the nearest of the other prompts and the promoted frames. The
    recent memory gives the rest by rank: the newest visible frame, then visible frames at multiples of
    ``memory_temporal_stride_for_eval`` below it. Pointers are those of the first group and of visible frames among the
    last 15. A frame without the object is not remembered at all.

    Promotion. A frame joins the distractor-resolving memory if its mask is good (predicted IoU above ``min_iou``), of
    its usual size (area over the median of the last ``area_count`` visible ones within ``area_window`` tracked frames,
    between ``min_area_ratio`` and ``max_area_ratio``), more than ``min_gap`` tracked frames after the last promotion,
    and if an alternative mask shows something else: with the chosen mask m, an alternative a and c the largest
    8-connected part of a \\ m, the box of m covers at most ``max_box_overlap`` of the box of m and c together. Its
    memory is made from the hard mask. On the next frame it still is recent memory; it changes over on the frame after.

    Attributes:
        num_maskmem: maps read, 7. max_cond_frames_in_attn: of the distractor-resolving memory, 4, the first prompt
            included.
        memory_temporal_stride_for_eval: frames, 5.
        min_iou: predicted IoU, 0.8. min_area_ratio, max_area_ratio: 0.8 and 1.2. area_count: 10 frames. area_window:
            300 frames. min_gap: 5 frames. max_box_overlap: share of the joint box, 0.7; 0 promotes nothing.
        only_visible: frames without the object are neither remembered nor is their pointer read.
        max_obj_ptrs_in_encoder, only_obj_ptrs_in_the_past_for_eval, max_prompts: as in FIFO.

    With ``max_box_overlap`` 0, ``memory_temporal_stride_for_eval`` 1 and ``only_visible`` false this is FIFO, as long
    as an object has one prompt and time does not turn round.

    Departures from the code: the first prompt may be on any frame (running backwards, the last one counts as the
    first); any number of objects; a later prompt is read as such from the next frame on, where the code would read it
    once as recent memory; masks are compared at the size of the mask logits and without hole filling, not at the size
    of the video (all thresholds are free of scale); time is measured in tracked frames of this object; promoted frames
    that can no longer be read are dropped and do not return as recent memory; the pointer time span is constant, also
    on a stream; frames read as prompts take no place in the recent memory.
    """

    num_maskmem: int = 7
    max_cond_frames_in_attn: int = 4
    memory_temporal_stride_for_eval: int = 5
    min_iou: float = 0.8
    min_area_ratio: float = 0.8
    max_area_ratio: float = 1.2
    area_count: int = 10
    area_window: int = 300
    min_gap: int = 5
    max_box_overlap: float = 0.7
    only_visible: bool = True
    max_obj_ptrs_in_encoder: int = 16
    only_obj_ptrs_in_the_past_for_eval: bool = True
    max_prompts: int = 32

    def __post_init__(self) -> None:
        for name in (
            "max_cond_frames_in_attn",
            "memory_temporal_stride_for_eval",
            "area_count",
            "area_window",
            "max_obj_ptrs_in_encoder",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.num_maskmem <= self.max_cond_frames_in_attn:
            least = self.max_cond_frames_in_attn + 1
            raise ValueError(f"expected num_maskmem >= max_cond_frames_in_attn + 1 = {least}, got {self.num_maskmem}")
        if not 0 <= self.min_area_ratio <= self.max_area_ratio:
            raise ValueError(
                f"expected min_area_ratio in 0..max_area_ratio, got {self.min_area_ratio} beside {self.max_area_ratio}"
            )
        if not 0 <= self.max_box_overlap <= 1:
            raise ValueError(f"expected max_box_overlap in 0..1, got {self.max_box_overlap}")
        if self.max_prompts < 2:
            raise ValueError(f"expected max_prompts >= 2, got {self.max_prompts}")

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and on both sides of the current frame, the earliest and the last prompt what one read can reach of
        either memory; one promotion waits for the next frame."""
        per_side = self.num_maskmem + self.max_cond_frames_in_attn - 1
        return tokens_per_map * (self.max_prompts + 3 * 2 * per_side + 1)

    # -- reading ------------------------------------------------------------------------------------------------

    def prompt(self, state: DistractorBank | None, frame: FrameContext, entry: MemoryEntry) -> DistractorBank:
        state = DistractorBank() if state is None else state
        return replace(
            state,
            prompts=add_prompt(state.prompts, entry, self.max_prompts),
            entries=drop(state.entries, entry.frame),
            resolved=drop(state.resolved, entry.frame),
        )

    def read(self, state: DistractorBank, frame: FrameContext) -> Sequence[MemoryRead]:
        anchors = self._anchors(state, frame)
        recent = self._recent(state, frame, self.num_maskmem - len(anchors))
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in anchors if e.tokens is not None]
        items += [ReadItem(e.tokens, slot) for slot, e in reversed(list(enumerate(recent))) if e.tokens is not None]
        read = {e.frame for e in anchors}
        tracked = {e.frame: e for e in (*state.prompts, *state.resolved, *state.entries) if self._usable(e)}
        pointers = pointer_window(
            anchors,
            {f: e for f, e in tracked.items() if f not in read},
            frame,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _usable(self, entry: MemoryEntry) -> bool:
        return entry.area > 0 or not self.only_visible

    def _anchors(self, state: DistractorBank, frame: FrameContext) -> list[MemoryEntry]:
        """The first prompt, then the nearest others, sorted by frame; a promoted frame waits until it is two frames
        old."""
        first = state.prompts[-1 if frame.reverse else 0]
        others = [p for p in state.prompts if p is not first]
        others += [e for e in state.resolved if frame.age(e.frame) > 1]
        others.sort(key=lambda e: abs(frame.age(e.frame)))
        return sorted([first, *others[: self.max_cond_frames_in_attn - 1]], key=lambda e: e.frame)

    def _recent(self, state: DistractorBank, frame: FrameContext, most: int) -> list[MemoryEntry]:
        """Up to ``most`` frames of recent memory, newest first."""
        waiting = [e for e in state.resolved if frame.age(e.frame) == 1]
        past = {frame.age(e.frame): e for e in (*state.entries, *waiting) if self._usable(e)}
        ages = sorted(age for age in past if age > 0)
        return [past[age] for age in ages if age == ages[0] or self._on_stride(past[age])][:most]

    def _on_stride(self, entry: MemoryEntry) -> bool:
        return entry.frame % self.memory_temporal_stride_for_eval == 0

    # -- choosing -----------------------------------------------------------------------------------------------

    def choose(self, state: DistractorBank, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        best = best_candidate(hypotheses)
        area = self._area(hypotheses, best)
        if self.only_visible and area == 0:
            return MaskSelection(output=best, remember=())
        promoted = self._may_promote(state, hypotheses, best, area) and self._sees_another(hypotheses, best)
        return MaskSelection(output=best, remember=(replace(best, binarize=promoted),))

    def _area(self, hypotheses: Hypotheses, pick: CandidateId) -> int:
        """Pixels of the mask, 0 for an absent object."""
        if hypotheses.objectness[pick.pathway] <= self.min_obj_score_logits:
            return 0
        mask = hypotheses.masks[pick.pathway, pick.candidate]
        if hypotheses.areas is None:
            return int((mask > 0).sum())
        return round(hypotheses.areas[pick.pathway][pick.candidate] * mask.numel())

    def _may_promote(self, state: DistractorBank, hypotheses: Hypotheses, pick: CandidateId, area: int) -> bool:
        """The conditions that need no pixels."""
        rested = state.promoted_at is None or state.steps + 1 - state.promoted_at > self.min_gap
        good = hypotheses.iou[pick.pathway][pick.candidate] > self.min_iou
        if area == 0 or state.steps == 0 or not (rested and good):
            return False
        usual = median(a for _, a in self._areas_with(state, area))
        return self.min_area_ratio <= area / usual <= self.max_area_ratio

    def _areas_with(self, state: DistractorBank, area: int) -> tuple[tuple[int, int], ...]:
        """The history of visible areas with this frame's."""
        now = state.steps + 1
        recent = [(step, a) for step, a in state.areas if now - step < self.area_window]
        if area > 0:
            recent.append((now, area))
        return tuple(recent[-self.area_count :])

    def _sees_another(self, hypotheses: Hypotheses, pick: CandidateId) -> bool:
        return least_box_overlap(hypotheses, pick) <= self.max_box_overlap

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: DistractorBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> DistractorBank:
        recent, resolved = drop(state.entries, frame.index), drop(state.resolved, frame.index)
        promoted = any(pick.binarize for pick in choice.remember)
        for entry in entries:
            recent, resolved = (recent, put(resolved, entry)) if promoted else (put(recent, entry), resolved)
        step = state.steps + 1
        grown = replace(
            state,
            entries=recent,
            resolved=resolved,
            steps=step,
            areas=self._areas_with(state, self._area(hypotheses, choice.output)),
            promoted_at=step if promoted else state.promoted_at,
            latest=frame.index,
        )
        return self._evicted(grown)

    def _evicted(self, state: DistractorBank) -> DistractorBank:
        anchors = anchors_of(state.prompts, state.latest)
        whole = _nearest([e for e in state.entries if self._usable(e)], anchors, 1)
        on_stride = [e for e in state.entries if self._usable(e) and self._on_stride(e)]
        whole |= _nearest(on_stride, anchors, self.num_maskmem - 1)
        reach = self.max_obj_ptrs_in_encoder - 1
        kept = [
            e if e.frame in whole else e.without_tokens()
            for e in state.entries
            if e.frame in whole or min(abs(e.frame - a) for a in anchors) <= reach
        ]
        older = [e for e in state.resolved if e.frame != state.latest]
        held = _nearest(older, anchors, self.max_cond_frames_in_attn - 1) | {state.latest}
        return replace(state, entries=tuple(kept), resolved=tuple(e for e in state.resolved if e.frame in held))

    # -- other verbs --------------------------------------------------------------------------------------------

    def forget(self, state: DistractorBank, frame: int, radius: int) -> DistractorBank:
        far = tuple(e for e in state.resolved if abs(e.frame - frame) > radius)
        return replace(super().forget(state, frame, radius), resolved=far)

    def moved(self, state: DistractorBank, by: int) -> DistractorBank:
        return replace(
            super().moved(state, by),
            resolved=tuple(replace(e, frame=e.frame + by) for e in state.resolved),
            latest=None if state.latest is None else state.latest + by,
        )

    def can_resume(self, state: DistractorBank, frame: FrameContext) -> bool:
        """Also after a frame without the object, which leaves nothing in memory."""
        just_tracked = state.latest is not None and frame.age(state.latest) == 1
        return just_tracked or super().can_resume(state, frame)

    # -- reasons ------------------------------------------------------------------------------------------------

    def notes(self, state: DistractorBank, frame: FrameContext) -> Sequence[EntryInfo]:
        resolved = {e.frame for e in state.resolved}
        kind = lambda e: "distractor-resolving" if e.frame in resolved else "recent"  # noqa: E731
        scores = {e.frame: e.iou for e in (*state.resolved, *state.entries) if e.tokens is not None}
        return entry_infos(self.held(state), kind, scores, "predicted IoU")

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events, now = super().explain(change), change.frame.index
        if change.cause is not Cause.WRITE:
            return events
        if not change.entries:
            absent = Reason("the object is absent", change.shown_objectness, self.min_obj_score_logits)
            told = [e for e in events if e.action is not Action.REJECTED]
            return [*told, absent.event(Action.REJECTED, now)]
        if change.after.promoted_at != change.before.promoted_at:
            overlap = least_box_overlap(change.hypotheses, change.shown)
            why = Reason("tells the object from a distractor: box overlap with it", overlap, self.max_box_overlap)
            return [
                *with_reasons(events, came={now: Reason("distractor-resolving memory")}),
                why.event(Action.PROMOTED, now),
            ]
        return with_reasons(events, came={now: self._not_promoted(change)})

    def _not_promoted(self, change: Change) -> Reason:
        """The first condition of promotion that a frame in recent memory does not meet."""
        state, hypotheses, pick = change.before, change.hypotheses, change.shown
        rest = None if state.promoted_at is None else state.steps + 1 - state.promoted_at
        if state.steps == 0:
            return Reason("recent memory; the first tracked frame is never promoted")
        if rest is not None and rest <= self.min_gap:
            return Reason("recent memory; too soon after the last promotion, in frames", rest, self.min_gap)
        if change.shown_iou <= self.min_iou:
            return Reason("recent memory; predicted IoU not above its threshold", change.shown_iou, self.min_iou)
        area = self._area(hypotheses, pick)
        usual = median(a for _, a in self._areas_with(state, area)) if area else 0
        if not usual or not self.min_area_ratio <= area / usual <= self.max_area_ratio:
            ratio = area / usual if usual else 0.0
            return Reason("recent memory; unusual size, as a share of the usual one", ratio)
        overlap = least_box_overlap(hypotheses, pick)
        limit = self.max_box_overlap
        return Reason("recent memory; no distractor in sight: box overlap of the alternatives", overlap, limit)


def least_box_overlap(hypotheses: Hypotheses, pick: CandidateId) -> float:
    """:func:`box_overlap` of the picked mask with the alternative that shows most beside it; 1 without alternatives."""
    masks = (hypotheses.masks[pick.pathway] > 0).cpu().numpy()
    chosen, others = masks[pick.candidate], np.delete(masks, pick.candidate, axis=0)
    return min((box_overlap(chosen, other) for other in others), default=1.0)


def _nearest(entries: Sequence[MemoryEntry], anchors: set[int], most: int) -> set[int]:
    """Frames of the ``most`` entries nearest to each anchor on either side."""
    frames = sorted(e.frame for e in entries)
    near = set()
    for anchor in anchors:
        near.update([f for f in reversed(frames) if f <= anchor][:most], [f for f in frames if f >= anchor][:most])
    return near


def box_overlap(chosen: np.ndarray, other: np.ndarray) -> float:
    """IoU of the box of ``chosen`` (h, w) bool and of the box of it with the largest part that ``other`` adds; 1 where
    it adds nothing. Boxes are counted in whole pixels."""
    part = _largest_part(other & ~chosen)
    if part is None:
        return 1.0
    return _box_area(chosen) / _box_area(chosen | part)


def _largest_part(mask: np.ndarray) -> np.ndarray | None:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def _box_area(mask: np.ndarray) -> int:
    sides = [np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1)]
    return int(np.prod([side[-1] - side[0] + 1 for side in sides]))
