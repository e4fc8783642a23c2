"""SAM 2's own memory, bounded: prompts, the last few memory maps, the last fifteen object pointers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy, setting
from sam2_mem.memory.reading import anchors_of, closest_prompts, map_frames, map_reach, pointer_window
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


@dataclass(frozen=True, kw_only=True)
class FIFO(MemoryPolicy[Bank]):
    """First in, first out; the bank of SAM 2 (Ravi et al. 2024, section 4), with its options under their own names.

    Equal to SAM 2 as long as it reads what SAM 2 reads: a tracked entry drops its tokens once no read can reach them
    and leaves once its pointer is out of reach. Entries within reach of the earliest and of the last prompted frame stay
    too, so that a later pass in the other direction finds them.

    Attributes:
        num_maskmem: memory maps read per frame, one of them for the prompts; 7 in SAM 2. At most the rows of the model's
            temporal code.
        max_cond_frames_in_attn: most prompted frames read, the closest ones; -1 for all, else at least 2.
        memory_temporal_stride_for_eval: r; beyond the previous frame only every r-th frame is read.
        only_obj_ptrs_in_the_past_for_eval: leave out pointers of prompts that lie ahead.
        retain_all: keep every entry with its tokens, as SAM 2 does, for sessions that return to any frame. Unbounded.
    """

    num_maskmem: int = setting(7, at_least=1)
    max_cond_frames_in_attn: int = setting(-1, at_least=2, special=(-1,))
    memory_temporal_stride_for_eval: int = setting(1, at_least=1)
    only_obj_ptrs_in_the_past_for_eval: bool = True
    retain_all: bool = False

    @property
    def _token_reach(self) -> int:
        """Largest age, in frames, at which a memory map is read."""
        return map_reach(num_maskmem=self.num_maskmem, stride=self.memory_temporal_stride_for_eval)

    def capacity(self, tokens_per_map: int) -> int | None:
        """Prompts, and the maps within reach on both sides of the current frame, the earliest and the last prompt."""
        if self.retain_all:
            return None
        return tokens_per_map * (self.max_prompts + 3 * (2 * self._token_reach + 1))

    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        state = self.new_state(frame) if state is None else state
        return state.add_prompt(entry, None if self.retain_all else self.max_prompts)

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        prompts, other_prompts = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        entries: tuple[Entry, ...] = (*other_prompts, *state.pointers, *state.entries)
        tracked = {e.frame: e for e in entries}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in prompts]
        stride = self.memory_temporal_stride_for_eval
        for slot, index in map_frames(frame, num_maskmem=self.num_maskmem, stride=stride):
            entry = tracked.get(index)
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

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Bank:
        state = state.add(*entries)
        if self.retain_all:
            return state
        reach = self._token_reach
        pointer_reach = max(self.max_obj_ptrs_in_encoder - 1, reach)
        return state.keep_near(anchors_of(state, frame.index), token_reach=reach, pointer_reach=pointer_reach)
