"""A policy from one method: a bank of whole frames in which the frame of lowest score leaves."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy, setting
from sam2_mem.memory.reading import anchors_of, pointer_window, rank_slots, tracked_near
from sam2_mem.memory.trace import EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
)


@dataclass(frozen=True, kw_only=True)
class ScoredBank(MemoryPolicy[Bank]):
    """Remembers the prompts, the previous frame, and the ``size`` tracked frames of highest ``score``.

    Every tracked frame is read once as the previous frame. Then it competes with the bank: where there are more than
    ``size`` frames, the lowest score leaves, and of equal scores the oldest. Frames are read under temporal slots by their
    age: 0 for the previous frame, 1 to 5 for the bank; pointers are those of SAM 2.

    Attributes:
        size: tracked frames in the bank, beside the previous one. 5 reads as many maps as SAM 2 does.
    """

    size: int = setting(5, at_least=0)

    @abstractmethod
    def score(self, state: Bank, entry: MemoryEntry) -> float:
        """How much a tracked frame is worth remembering; a score of minus infinity never enters the bank. Pure.

        Args:
            state: memory before the frame in progress is written, its prompts and bank.
            entry: a tracked frame, with its mask's predicted IoU, object score, area and object pointer.
        """

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, the bank, the previous frame."""
        return tokens_per_map * (self.max_prompts + self.size + 1)

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts if e.frame != frame.index]
        others = [e for e in state.entries if e.frame != frame.index]
        bank = sorted((e for e in others if frame.age(e.frame) != 1), key=lambda e: abs(frame.age(e.frame)))
        items += [ReadItem(e.tokens, slot) for e, slot in zip(bank, rank_slots(len(bank)))]
        items += [ReadItem(e.tokens, 0) for e in others if frame.age(e.frame) == 1]
        pointers = pointer_window(state.prompts, state.tracked(), frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Bank:
        scores = {e.frame: self.score(state, e) for e in state.entries if e.frame != frame.index}
        eligible = [f for f, s in scores.items() if s > -math.inf]
        ranked = sorted(eligible, key=lambda f: (-scores[f], abs(frame.age(f))))
        bank, losers = ranked[: self.size], [f for f in scores if f not in ranked[: self.size]]
        limit = scores[bank[-1]] if bank else None
        reach = self.max_obj_ptrs_in_encoder - 1
        anchors = anchors_of(state, frame.index)
        grown = state.add(*entries)
        near = tracked_near(grown, anchors, reach)
        reasons = tuple(Reason(f, "lowest score", scores[f], limit) for f in losers)
        return replace(grown.keep(tokens={*bank, frame.index}, pointers=near), reasons=reasons)

    def entry_infos(self, state: Bank, frame: FrameContext) -> Sequence[EntryInfo]:
        scores = {e.frame: self.score(state, e) for e in state.entries}
        kind = lambda e: "previous" if frame.age(e.frame) <= 1 else "bank"  # noqa: E731
        return entry_infos(state.all_entries(), kind, scores, "score")
