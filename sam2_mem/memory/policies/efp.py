"""EFP: SAM 2's memory, of which the maps that resemble the newest are not read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.likeness import likenesses, map_likenesses
from sam2_mem.memory.policy import MemoryPolicy, setting
from sam2_mem.memory.reading import keep_window, map_frames, window_capacity, window_read
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead, ReadItem


@dataclass(frozen=True, kw_only=True)
class EFP(MemoryPolicy[Bank]):
    """Efficient frame pruning (SurgSAM2, Liu et al. 2024, arXiv 2408.07931) at SAM 2's image size, without fine-tuning.

    Memory is that of FIFO. Of the maps between the prompts and the previous frame at most ``num_maskmem`` - 2 - ``remove``
    are read, those least like the map of the previous frame: the mean over tokens of the cosine of their features. Slots
    are by age, pointers those of SAM 2. With ``remove`` 0 this is FIFO.

    Attributes:
        num_maskmem: maps within reach, as in FIFO; one for the prompts, one for the previous frame.
        remove: maps fewer that are read.
    """

    num_maskmem: int = setting(7, at_least=1)
    remove: int = setting(2, at_least=0)

    def capacity(self, tokens_per_map: int) -> int:
        """That of FIFO."""
        return window_capacity(tokens_per_map, self.max_prompts, num_maskmem=self.num_maskmem)

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        candidates, newest, excess = self._compared(state, frame)
        if frame.measured is None and newest is not None and excess > 0 and _are_alike(candidates):
            return (self._read_by_device(state, frame, candidates, newest, excess),)
        read = window_read(
            state,
            frame,
            num_maskmem=self.num_maskmem,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            without=self._redundant(state, frame),
        )
        return (read,)

    def measure_for_read(self, state: Bank, frame: FrameContext, *, told_apart: bool) -> Tensor | None:
        """Likeness of the maps that are compared."""
        candidates, newest, excess = self._compared(state, frame)
        if newest is None or excess <= 0 or (_are_alike(candidates) and not told_apart):
            return None
        return map_likenesses(candidates, newest)

    def _read_by_device(
        self, state: Bank, frame: FrameContext, candidates: Sequence[MemoryEntry], newest: MemoryEntry, excess: int
    ) -> MemoryRead:
        """The same read, whose maps the device chooses: the host does not learn which, nor waits for it."""
        order = map_likenesses(candidates, newest).argsort(descending=True, stable=True)
        positions = order[excess:].sort().values
        full = window_read(state, frame, num_maskmem=self.num_maskmem, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        maps = {id(e.tokens): e.tokens for e in candidates}
        slots = [int(item.slot) for item in full.items if id(item.tokens) in maps and item.slot is not None]
        is_run = slots == list(range(slots[0], slots[0] - len(slots), -1))
        slot_of = (
            slots[0] - positions if is_run else torch.cat([positions.new_full((1,), slot) for slot in slots])[positions]
        )
        features = torch.stack([tokens.feat for tokens in maps.values()])[positions]
        chosen = [
            ReadItem(replace(candidates[0].tokens, feat=feat), slot)
            for feat, slot in zip(features.unbind(), slot_of.unbind())
        ]
        *prompts, newest_item = [item for item in full.items if id(item.tokens) not in maps]
        return replace(full, items=(*prompts, *chosen, newest_item))

    def _redundant(self, state: Bank, frame: FrameContext) -> set[int]:
        """Frames whose maps are most like that of the previous frame, of equals the older; none without that map."""
        candidates, newest, excess = self._compared(state, frame)
        if newest is None or excess <= 0:
            return set()
        scores = likenesses(candidates, newest) if frame.measured is None else frame.measured.tolist()
        ranked = sorted(zip(scores, candidates), key=lambda x: -x[0])
        return {e.frame for _, e in ranked[:excess]}

    def _compared(self, state: Bank, frame: FrameContext) -> tuple[list[MemoryEntry], MemoryEntry | None, int]:
        """Maps within reach behind that of the previous frame, oldest first; that map; how many too many they are."""
        by_frame = {e.frame: e for e in state.entries}
        slots = dict(map_frames(frame, num_maskmem=self.num_maskmem))
        newest = by_frame.get(slots.pop(0, frame.index))
        candidates = [by_frame[f] for f in slots.values() if f in by_frame]
        return candidates, newest, len(candidates) - max(0, self.num_maskmem - 2 - self.remove)

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """As in FIFO."""
        return [f for _, f in map_frames(frame, num_maskmem=self.num_maskmem)], super().frames_behind(frame)[1]

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Bank:
        size, pointers = self.num_maskmem, self.max_obj_ptrs_in_encoder
        return keep_window(state.add(*entries), frame.index, num_maskmem=size, max_obj_ptrs=pointers)


def _are_alike(entries: Sequence[MemoryEntry]) -> bool:
    """Whether the maps lie on a CUDA device and differ in features alone, so that one can stand in the place of another."""
    example = entries[0].tokens
    return example.feat.is_cuda and all(
        e.tokens.feat.shape == example.feat.shape
        and e.tokens.pos is example.pos
        and e.tokens.xy is example.xy
        and e.tokens.log_count is example.log_count
        for e in entries
    )
