"""SAM 2's memory and, for longer, good frames that differ from each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import Self

from sam2_mem.memory.bank import Bank, drop, shifted
from sam2_mem.memory.diversity import grow_long_term
from sam2_mem.memory.likeness import LIKENESSES
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.reading import keep_window, map_frames, window_capacity, window_read
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
)


@dataclass(frozen=True, eq=False)
class LongTermBank(Bank):
    """A state with two further groups of entries, which may be among ``entries`` as well.

    Attributes:
        long: long-term memory, in the order in which its entries joined.
        pool: candidates for it, in the order in which they came.
    """

    long: tuple[MemoryEntry, ...] = ()
    pool: tuple[MemoryEntry, ...] = ()

    def all_entries(self) -> tuple[Entry, ...]:
        return tuple(dict.fromkeys((*super().all_entries(), *self.long, *self.pool)))

    def without(self, frame: int) -> Self:
        long, pool = drop(self.long, frame), drop(self.pool, frame)
        return replace(super().without(frame), long=long, pool=pool)

    def forget(self, frame: int, radius: int) -> Self:
        long, pool = (tuple(e for e in part if abs(e.frame - frame) > radius) for part in (self.long, self.pool))
        return replace(super().forget(frame, radius), long=long, pool=pool)

    def shift_frames(self, by: int) -> Self:
        return replace(super().shift_frames(by), long=shifted(self.long, by), pool=shifted(self.pool, by))


@dataclass(frozen=True, kw_only=True)
class Diverse(MemoryPolicy[LongTermBank]):
    """Diversity-driven long-term memory (ReSurgSAM2, Liu et al. 2025, arXiv 2505.08581).

    Beside the memory of FIFO, a frame whose predicted IoU is above ``min_iou`` joins a pool. When the pool is full, the
    candidate least like the newest long-term frame (the last prompt, if there is none) joins long-term memory, and the pool
    empties. Long-term frames outside the window of FIFO are read in the slot of prompts. With ``max_long`` 0 this is FIFO.

    Departures from the code: likeness of maps is the mean over tokens of the cosine of their features, where the code takes
    cosines along the width of the map; a candidate must be present.

    Attributes:
        num_maskmem: maps of FIFO's window, one of them for the prompts.
        max_long: frames of long-term memory, 3; beyond it the one that joined first leaves.
        pool_size: candidates that make a full pool, 5.
        min_iou: predicted IoU that a candidate is above, 0.95.
        min_object_score: object-score logit that a candidate is above, 0.
        likeness: what frames are compared by: "map", "summary" (image features pooled over the mask) or "pointer".
    """

    num_maskmem: int = setting(7, at_least=1)
    max_long: int = setting(3, at_least=0)
    pool_size: int = setting(5, at_least=1)
    min_iou: float = 0.95
    min_object_score: float = 0.0
    likeness: str = setting("map", choices=LIKENESSES)

    @property
    def needs(self) -> Needs:
        return Needs(summary=self.likeness == "summary")

    def capacity(self, tokens_per_map: int) -> int:
        """FIFO's, long-term memory, the pool."""
        window = window_capacity(tokens_per_map, self.max_prompts, num_maskmem=self.num_maskmem)
        return window + tokens_per_map * (self.max_long + self.pool_size)

    def new_state(self, frame: FrameContext) -> LongTermBank:
        return LongTermBank()

    def read(self, state: LongTermBank, frame: FrameContext) -> Sequence[MemoryRead]:
        read = window_read(state, frame, num_maskmem=self.num_maskmem, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        recent = {id(item.tokens) for item in read.items}
        long = [e for e in state.long if id(e.tokens) not in recent and e.frame != frame.index]
        return (replace(read, items=(*read.items, *(ReadItem(e.tokens, PROMPT_SLOT) for e in long))),)

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """As in FIFO."""
        return [f for _, f in map_frames(frame, num_maskmem=self.num_maskmem)], super().frames_behind(frame)[1]

    def write(
        self,
        state: LongTermBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> LongTermBank:
        long, pool = drop(state.long, frame.index), drop(state.pool, frame.index)
        size, pointers = self.num_maskmem, self.max_obj_ptrs_in_encoder
        window = keep_window(state.add(*entries), frame.index, num_maskmem=size, max_obj_ptrs=pointers)
        before = long
        for candidate in filter(self._is_candidate, entries):
            long, pool = grow_long_term(
                *(long, pool, candidate, state.prompts),
                max_long=self.max_long,
                pool_size=self.pool_size,
                by=self.likeness,
            )
        return replace(window, long=long, pool=pool, reasons=_reasons(before, long))

    def _is_candidate(self, entry: MemoryEntry) -> bool:
        comparable = self.likeness != "summary" or entry.summary is not None
        return bool(
            self.max_long and comparable and entry.iou > self.min_iou and entry.objectness > self.min_object_score
        )

    def entry_infos(self, state: LongTermBank, frame: FrameContext) -> Sequence[EntryInfo]:
        kinds = {e.frame: "candidate" for e in state.pool} | {e.frame: "long-term" for e in state.long}
        scores = {e.frame: e.iou for e in (*state.long, *state.pool)}
        kind = lambda e: kinds.get(e.frame, "recent")  # noqa: E731
        return entry_infos(state.all_entries(), kind, scores, "predicted IoU")


def _reasons(before: Sequence[MemoryEntry], after: Sequence[MemoryEntry]) -> tuple[Reason, ...]:
    """Which frame joined long-term memory, and which left it."""
    joined = [e for e in after if e not in before]
    parted = [e for e in before if e not in after]
    text = "joins long-term memory: least like its newest frame"
    reasons = [Reason(e.frame, text, action=Action.PROMOTED) for e in joined]
    return (*reasons, *(Reason(e.frame, "joined long-term memory first") for e in parted))
