"""SAM 2's own memory, bounded: prompts, the last few memory maps, the last fifteen object pointers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sam2_mem.memory.policy import Bank, MemoryPolicy, drop, put
from sam2_mem.types import (
    PROMPT_SLOT,
    Choice,
    FrameContext,
    Hypotheses,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadPointer,
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
        if self.num_maskmem < 2:
            return 0
        return 1 + (self.num_maskmem - 2) * self.memory_temporal_stride_for_eval

    @property
    def _pointer_reach(self) -> int:
        return max(self.max_obj_ptrs_in_encoder - 1, self._token_reach)

    def capacity(self, tokens_per_map: int) -> int | None:
        """Prompts, and the maps within reach on both sides of the current frame, the earliest and the last prompt."""
        if self.retain_all:
            return None
        return tokens_per_map * (self.max_prompts + 3 * (2 * self._token_reach + 1))

    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        state = Bank() if state is None else state
        prompts = put(state.prompts, entry)
        if len(prompts) > self.max_prompts and not self.retain_all:
            oldest = next(p for p in prompts[1:] if p.frame != entry.frame)
            prompts = drop(prompts, oldest.frame)
        return Bank(prompts=prompts, entries=drop(state.entries, entry.frame))

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        near, far = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        tracked = {e.frame: e for e in (*far, *state.entries)}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in near if e.tokens is not None]
        for slot, index in self._map_frames(frame):
            entry = tracked.get(index)
            if entry is not None and entry.tokens is not None:
                items.append(ReadItem(entry.tokens, slot))
        return (MemoryRead(items=tuple(items), pointers=tuple(self._pointers(near, tracked, frame))),)

    def _map_frames(self, frame: FrameContext) -> Iterator[tuple[int, int]]:
        """(temporal slot, frame) of the maps to read: the previous frame, then every r-th one behind it."""
        stride, sign = self.memory_temporal_stride_for_eval, -1 if frame.reverse else 1
        now = sign * frame.index
        multiple = (now - 2) // stride * stride
        for slot in range(self.num_maskmem - 2, -1, -1):
            behind = now - 1 if slot == 0 else multiple - (slot - 1) * stride
            yield slot, sign * behind

    def _pointers(
        self, near: Sequence[MemoryEntry], tracked: dict[int, MemoryEntry], frame: FrameContext
    ) -> Iterator[ReadPointer]:
        most = self.max_obj_ptrs_in_encoder
        if frame.num_frames is not None:
            most = min(frame.num_frames, most)
        span = max(most - 1, 1)
        for entry in near:
            age = frame.age(entry.frame)
            if age >= 0 or not self.only_obj_ptrs_in_the_past_for_eval:
                yield ReadPointer(entry.pointer, age / span)
        for age in range(1, most):
            entry = tracked.get(frame.index + age if frame.reverse else frame.index - age)
            if entry is not None:
                yield ReadPointer(entry.pointer, age / span)

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: Choice,
        entries: Sequence[MemoryEntry],
    ) -> Bank:
        tracked = state.entries
        for entry in entries:
            tracked = put(tracked, entry)
        if not self.retain_all:
            tracked = tuple(self._evict(tracked, state.prompts, frame.index))
        return Bank(prompts=state.prompts, entries=tracked)

    def _evict(
        self, tracked: Sequence[MemoryEntry], prompts: Sequence[MemoryEntry], now: int
    ) -> Iterator[MemoryEntry]:
        anchors = {now} | {p.frame for p in prompts[:1] + prompts[-1:]}
        for entry in tracked:
            distance = min(abs(entry.frame - a) for a in anchors)
            if distance <= self._token_reach:
                yield entry
            elif distance <= self._pointer_reach:
                yield entry.without_tokens()


def closest_prompts(
    prompts: Sequence[MemoryEntry], index: int, most: int
) -> tuple[list[MemoryEntry], list[MemoryEntry]]:
    """Split prompts into those to read and the rest: the last one before ``index``, the first one from it on, then the
    nearest of the others, up to ``most`` (-1: all)."""
    if most == -1 or len(prompts) <= most:
        return list(prompts), []
    before = [p for p in prompts if p.frame < index]
    after = [p for p in prompts if p.frame >= index]
    chosen = before[-1:] + after[:1]
    rest = sorted((p for p in prompts if p not in chosen), key=lambda p: abs(p.frame - index))
    chosen += rest[: most - len(chosen)]
    return chosen, [p for p in prompts if p not in chosen]
