"""SAM 2's own memory, bounded: prompts, the last few memory maps, the last fifteen object pointers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_mem.memory.policy import Bank, MemoryPolicy, drop, put
from sam2_mem.memory.reading import add_prompt, closest_prompts, map_frames, map_reach, pointer_window, within_reach
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
class FIFO(MemoryPolicy[Bank]):
    """First in, first out; the bank of SAM 2 (Ravi et al. 2024, section 4), with its options under their own names.

    Equal to SAM 2 as long as it reads what SAM 2 reads: a tracked entry drops its tokens once no read can reach them
    and leaves once its pointer is out of reach. Entries within reach of the earliest and of the last prompted frame stay
    too, so that a later pass in the other direction finds them.

    Attributes:
        num_maskmem: memory maps read per frame, one of them for the prompts; 7 in SAM 2. At most the rows of the model's
            temporal code.
        max_obj_ptrs_in_encoder: object pointers read: prompts and 15 past frames at SAM 2's 16; also the time span.
        max_cond_frames_in_attn: most prompted frames read, the closest ones; -1 for all, else at least 2.
        memory_temporal_stride_for_eval: r; beyond the previous frame only every r-th frame is read.
        only_obj_ptrs_in_the_past_for_eval: leave out pointers of prompts that lie ahead.
        max_prompts: most prompted frames held; beyond it the oldest but the first goes. SAM 2 has no such limit.
        retain_all: keep every entry with its tokens, as SAM 2 does, for sessions that return to any frame. Unbounded.
    """

    num_maskmem: int = 7
    max_obj_ptrs_in_encoder: int = 16
    max_cond_frames_in_attn: int = -1
    memory_temporal_stride_for_eval: int = 1
    only_obj_ptrs_in_the_past_for_eval: bool = True
    max_prompts: int = 32
    retain_all: bool = False

    def __post_init__(self) -> None:
        for name in ("num_maskmem", "max_obj_ptrs_in_encoder", "memory_temporal_stride_for_eval"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.max_cond_frames_in_attn != -1 and self.max_cond_frames_in_attn < 2:
            raise ValueError(f"expected max_cond_frames_in_attn -1 or >= 2, got {self.max_cond_frames_in_attn}")
        if self.max_prompts < 2:
            raise ValueError(f"expected max_prompts >= 2, got {self.max_prompts}")

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
        state = Bank() if state is None else state
        most = None if self.retain_all else self.max_prompts
        prompts = add_prompt(state.prompts, entry, most)
        return Bank(prompts=prompts, entries=drop(state.entries, entry.frame))

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        near, far = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        tracked = {e.frame: e for e in (*far, *state.entries)}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in near if e.tokens is not None]
        stride = self.memory_temporal_stride_for_eval
        for slot, index in map_frames(frame, num_maskmem=self.num_maskmem, stride=stride):
            entry = tracked.get(index)
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

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Bank:
        tracked = state.entries
        for entry in entries:
            tracked = put(tracked, entry)
        if self.retain_all:
            return Bank(prompts=state.prompts, entries=tracked)
        anchors = {frame.index} | {p.frame for p in state.prompts[:1] + state.prompts[-1:]}
        pointer_reach = max(self.max_obj_ptrs_in_encoder - 1, self._token_reach)
        kept = within_reach(tracked, anchors, token_reach=self._token_reach, pointer_reach=pointer_reach)
        return Bank(prompts=state.prompts, entries=tuple(kept))
