"""SAM 2's own memory, bounded: prompts, the last few memory maps, the last fifteen object pointers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy, setting
from sam2_mem.memory.reading import keep_window, map_frames, window_capacity, window_read
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead


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

    def capacity(self, tokens_per_map: int) -> int | None:
        """Prompts, and the maps within reach on both sides of the current frame, the earliest and the last prompt."""
        if self.retain_all:
            return None
        stride = self.memory_temporal_stride_for_eval
        return window_capacity(tokens_per_map, self.max_prompts, num_maskmem=self.num_maskmem, stride=stride)

    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        state = self.new_state(frame) if state is None else state
        return state.add_prompt(entry, None if self.retain_all else self.max_prompts)

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        read = window_read(
            state,
            frame,
            num_maskmem=self.num_maskmem,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            stride=self.memory_temporal_stride_for_eval,
            max_cond_frames=self.max_cond_frames_in_attn,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        return (read,)

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """All of SAM 2's read, so that a session that jumps about equals SAM 2's."""
        stride = self.memory_temporal_stride_for_eval
        maps = [index for _, index in map_frames(frame, num_maskmem=self.num_maskmem, stride=stride)]
        return maps, super().frames_behind(frame)[1]

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
        return keep_window(
            state,
            frame.index,
            num_maskmem=self.num_maskmem,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            stride=self.memory_temporal_stride_for_eval,
        )
