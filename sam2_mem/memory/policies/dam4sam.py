"""DAM4SAM: recent memory for appearance, and a second memory of frames on which the object was told from a
distractor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank, drop, put, shifted
from sam2_mem.memory.distractors import areas_with, packed_pixels, promotion, visible_pixels
from sam2_mem.memory.policy import MemoryPolicy, best_candidate, setting
from sam2_mem.memory.reading import anchors_of, pointer_window, tracked_near
from sam2_mem.memory.tokens import restored
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
    ReadUsage,
)

RESOLVED = "resolved"


@dataclass(frozen=True, eq=False)
class DistractorBank(Bank):
    """A state whose ``entries`` are the recent memory.

    Attributes:
        resolved: frames promoted out of it, sorted by frame.
        steps: tracked frames so far.
        areas: (step, pixels) of the latest visible masks.
        promoted_at: step of the latest promotion.
        last_frame: frame tracked last.
    """

    resolved: tuple[MemoryEntry, ...] = ()
    steps: int = 0
    areas: tuple[tuple[int, int], ...] = ()
    promoted_at: int | None = None
    last_frame: int | None = None

    def all_entries(self) -> tuple[Entry, ...]:
        return (*self.prompts, *self.resolved, *self.entries, *self.pointers)

    def archivable(self) -> dict[int, tuple[MemoryEntry, str]]:
        """As in ``Bank``, and promoted frames, which are marked."""
        return super().archivable() | {e.frame: (e, RESOLVED) for e in self.resolved}

    def can_resume(self, frame: FrameContext) -> bool:
        """As in ``Bank``, and after a frame without the object, which leaves nothing in
        memory."""
        just_tracked = self.last_frame is not None and frame.age(self.last_frame) == 1
        return just_tracked or super().can_resume(frame)

    def without(self, frame: int) -> Self:
        return replace(super().without(frame), resolved=drop(self.resolved, frame))

    def forget(self, frame: int, radius: int) -> Self:
        resolved = tuple(e for e in self.resolved if abs(e.frame - frame) > radius)
        return replace(super().forget(frame, radius), resolved=resolved)

    def shift_frames(self, by: int) -> Self:
        last_frame = None if self.last_frame is None else self.last_frame + by
        return replace(super().shift_frames(by), resolved=shifted(self.resolved, by), last_frame=last_frame)


@dataclass(frozen=True)
class PromotionSelection(MaskSelection):
    """A selection with what is known of its mask.

    Attributes:
        area: pixels of the mask, 0 for an absent object.
        reason: why the frame is promoted, or not, or not remembered at all.
    """

    area: int = 0
    reason: Reason | None = None


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
    memory is made as that of a prompt: from the hard mask with SAM 2's post-processing
    (``model.binarize_prompted_masks``), from the soft one without. On the next frame it still is recent memory; it
    changes over on the frame after.

    With ``max_box_overlap`` 0, ``memory_temporal_stride_for_eval`` 1 and ``only_visible`` false this is FIFO, as long
    as an object has one prompt and time does not turn round.

    Departures from the code: the first prompt may be on any frame (running backwards, the last one counts as the
    first); any number of objects; a later prompt is read as such from the next frame on, where the code would read it
    once as recent memory; masks are compared at the size of the mask logits and without hole filling, not at the size
    of the video, where ragged masks have other largest parts and so, now and then, another promotion; time is measured
    in tracked frames of this object; promoted frames that can no longer be read are dropped and do not return as recent memory; the pointer time span is constant, also
    on a stream; frames read as prompts take no place in the recent memory.

    Attributes:
        num_maskmem: maps read, 7.
        max_cond_frames_in_attn: of the distractor-resolving memory, 4, the first prompt included.
        memory_temporal_stride_for_eval: frames, 5.
        min_iou: predicted IoU, 0.8.
        min_area_ratio: share of the usual area, 0.8.
        max_area_ratio: share of the usual area, 1.2.
        area_count: frames in the usual area, 10.
        area_window: tracked frames it may reach back, 300.
        min_gap: tracked frames, 5.
        max_box_overlap: share of the joint box, 0.7; 0 promotes nothing.
        only_visible: frames without the object are neither remembered nor is their pointer read.
        only_obj_ptrs_in_the_past_for_eval: as in FIFO.
    """

    num_maskmem: int = 7
    max_cond_frames_in_attn: int = setting(4, at_least=1)
    memory_temporal_stride_for_eval: int = setting(5, at_least=1)
    min_iou: float = 0.8
    min_area_ratio: float = setting(0.8, at_least=0.0)
    max_area_ratio: float = 1.2
    area_count: int = setting(10, at_least=1)
    area_window: int = setting(300, at_least=1)
    min_gap: int = 5
    max_box_overlap: float = setting(0.7, at_least=0.0, at_most=1.0)
    only_visible: bool = True
    only_obj_ptrs_in_the_past_for_eval: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_maskmem <= self.max_cond_frames_in_attn:
            smallest = self.max_cond_frames_in_attn + 1
            raise ValueError(
                f"expected num_maskmem >= max_cond_frames_in_attn + 1 = {smallest}, got {self.num_maskmem}"
            )
        if not self.min_area_ratio <= self.max_area_ratio:
            raise ValueError(
                f"expected min_area_ratio in 0..max_area_ratio, got {self.min_area_ratio} beside {self.max_area_ratio}"
            )

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and on both sides of the current frame, the earliest and the last prompt what one read can reach of
        either memory; one promotion waits for the next frame."""
        per_side = self.num_maskmem + self.max_cond_frames_in_attn - 1
        return tokens_per_map * (self.max_prompts + 3 * 2 * per_side + 1)

    def new_state(self, frame: FrameContext) -> DistractorBank:
        return DistractorBank()

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, state: DistractorBank, frame: FrameContext) -> Sequence[MemoryRead]:
        resolving = self._distractor_resolving(state, frame)
        recent = self._recent(state, frame, self.num_maskmem - len(resolving))
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in resolving]
        for slot, entry in reversed(list(enumerate(recent))):
            if isinstance(entry, MemoryEntry):
                items.append(ReadItem(entry.tokens, slot))
        frames = {e.frame for e in resolving}
        pointers = pointer_window(
            resolving,
            {e.frame: e for e in state.all_entries() if e.frame not in frames and self._usable(e)},
            frame,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _usable(self, entry: Entry) -> bool:
        return entry.area > 0 or not self.only_visible

    def _distractor_resolving(self, state: DistractorBank, frame: FrameContext) -> list[MemoryEntry]:
        """The first prompt, then the nearest of the other prompts and promoted frames, sorted by frame; a promoted frame
        waits until it is two frames old."""
        first = state.prompts[-1 if frame.reverse else 0]
        candidates = [p for p in state.prompts if p is not first]
        candidates += [e for e in state.resolved if frame.age(e.frame) > 1]
        candidates.sort(key=lambda e: abs(frame.age(e.frame)))
        return sorted([first, *candidates[: self.max_cond_frames_in_attn - 1]], key=lambda e: e.frame)

    def _recent(self, state: DistractorBank, frame: FrameContext, max_frames: int) -> list[Entry]:
        """Up to ``max_frames`` frames of recent memory, newest first."""
        entries = list(state.tracked().values())
        entries += [e for e in state.resolved if frame.age(e.frame) == 1]
        by_age = {frame.age(e.frame): e for e in entries if self._usable(e)}
        ages = sorted(age for age in by_age if age > 0)
        return [by_age[age] for age in ages if age == ages[0] or self._on_stride(by_age[age])][:max_frames]

    def _on_stride(self, entry: Entry) -> bool:
        return entry.frame % self.memory_temporal_stride_for_eval == 0

    def recall(
        self, state: DistractorBank, frame: FrameContext, archived: Mapping[int, ArchivedEntry]
    ) -> DistractorBank:
        """With what both memories have lost of the frames that a read on ``frame`` takes, as if none had left."""
        promoted = {f: a for f, a in archived.items() if a.mark == RESOLVED and frame.age(f) > 0}
        nearest = sorted(promoted, key=frame.age)[: self.max_cond_frames_in_attn]
        held = {e.frame for e in state.resolved}
        resolved = [restored(promoted[f]) for f in nearest if f not in held]
        grown = replace(state, resolved=tuple(sorted((*state.resolved, *resolved), key=lambda e: e.frame)))
        recent = {f: a for f, a in archived.items() if a.mark != RESOLVED}
        entries: dict[int, Any] = {**{f: a.entry for f, a in recent.items()}, **state.tracked()}  # the bank sorts them
        selected = self._recent(replace(grown, entries=tuple(entries.values()), pointers=()), frame, self.num_maskmem)
        whole = [recent[e.frame] for e in selected if e.frame in recent]
        bare = [recent[f] for f in self.frames_behind(frame)[1] if f in recent]
        return (grown if resolved else state).recall(whole, bare)

    # -- choosing -----------------------------------------------------------------------------------------------

    def measure(
        self, state: DistractorBank, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Pixels of all candidates where the frame may be promoted, four to a number."""
        is_soon = state.promoted_at is not None and state.steps + 1 - state.promoted_at <= self.min_gap
        return None if state.steps == 0 or is_soon else packed_pixels(masks)

    def choose(self, state: DistractorBank, frame: FrameContext, hypotheses: Hypotheses) -> PromotionSelection:
        best = best_candidate(hypotheses)
        area = visible_pixels(hypotheses, best, self.min_obj_score_logits)
        if self.only_visible and area == 0:
            score, limit = hypotheses.objectness[best.pathway], self.min_obj_score_logits
            absent = Reason(frame.index, "the object is absent", score, limit, Action.REJECTED)
            return PromotionSelection(best, (), area=area, reason=absent)
        reason = promotion(
            *(frame.index, hypotheses, best, area),
            step=state.steps + 1,
            promoted_at=state.promoted_at,
            areas=state.areas,
            limits=self,
        )
        remembered = replace(best, binarize=reason.action is Action.PROMOTED)
        return PromotionSelection(best, (remembered,), area=area, reason=reason)

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: DistractorBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> DistractorBank:
        assert isinstance(selection, PromotionSelection) and selection.reason is not None, "a selection of this policy"
        step, reasons = state.steps + 1, [selection.reason]
        updated = replace(
            state.forget(frame.index, 0),
            steps=step,
            areas=areas_with(state.areas, step, selection.area, self),
            last_frame=frame.index,
        )
        if selection.reason.action is Action.PROMOTED:
            reasons.append(Reason(frame.index, "distractor-resolving memory"))
            updated = replace(updated, resolved=put(updated.resolved, entries[0]), promoted_at=step)
        else:
            updated = updated.add(*entries)
        return replace(self._evict(updated, frame.index), reasons=tuple(reasons))

    def _evict(self, state: DistractorBank, index: int) -> DistractorBank:
        anchors = anchors_of(state, index)
        tracked = state.tracked()
        usable = [e for e in tracked.values() if self._usable(e)]
        readable = _nearest(usable, anchors, 1)
        readable |= _nearest([e for e in usable if self._on_stride(e)], anchors, self.num_maskmem - 1)
        reach = self.max_obj_ptrs_in_encoder - 1
        within_reach = tracked_near(state, anchors, reach)
        promoted = _nearest([e for e in state.resolved if e.frame != index], anchors, self.max_cond_frames_in_attn - 1)
        resolved = tuple(e for e in state.resolved if e.frame == index or e.frame in promoted)
        return replace(state.keep(tokens=readable, pointers=within_reach), resolved=resolved)

    def entry_infos(self, state: DistractorBank, frame: FrameContext) -> Sequence[EntryInfo]:
        resolved = {e.frame for e in state.resolved}
        kind = lambda e: "distractor-resolving" if e.frame in resolved else "recent"  # noqa: E731
        scores = {e.frame: e.iou for e in (*state.resolved, *state.entries)}
        return entry_infos(state.all_entries(), kind, scores, "predicted IoU")


def _nearest(entries: Sequence[Entry], anchors: set[int], count: int) -> set[int]:
    """Frames of the ``count`` entries nearest to each anchor on either side."""
    frames = sorted(e.frame for e in entries)
    nearest: set[int] = set()
    for anchor in anchors:
        before, after = [f for f in reversed(frames) if f <= anchor], [f for f in frames if f >= anchor]
        nearest.update(before[:count], after[:count])
    return nearest
