"""A bank of whole frames beside the previous one: what the policies share that keep a few frames for long.

The bank is the prompted frames and some tracked ones. The previous frame is always read as well, the latest pointers as
in SAM 2. Positions in time are distances along the direction of tracking, so that passes in both directions work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from typing_extensions import Self

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.reading import LAST_SLOT, anchors_of, pointer_window, rank_slots, tracked_near
from sam2_mem.types import PROMPT_SLOT, FrameContext, MemoryEntry, MemoryRead, ReadItem

SLOT_RULES = ("rank", "clamp", "prompt", "none")
SHORTEST_GAP = 5
UPDATES_PER_VIDEO = 30


@dataclass(frozen=True, eq=False)
class FrameBank(Bank):
    """A state with a bank among its entries; the others are the previous frame.

    Attributes:
        kept: tracked frames of the bank, in the order in which they came.
        updated: frame of the latest bank update.
    """

    kept: tuple[int, ...] = ()
    updated: int | None = None

    def members(self, besides: int | None = None) -> tuple[MemoryEntry, ...]:
        """Tracked entries of the bank in the order in which they came, without the one of frame ``besides``."""
        by_frame = {e.frame: e for e in self.entries}
        return tuple(by_frame[f] for f in self.kept if f in by_frame and f != besides)

    def bank(self, besides: int | None = None) -> tuple[MemoryEntry, ...]:
        """Prompted and tracked entries of the bank."""
        return (*self.prompts, *self.members(besides))

    def without(self, frame: int) -> Self:
        return replace(super().without(frame), kept=tuple(f for f in self.kept if f != frame))

    def release_prompt(self, frame: int) -> Self | None:
        """With the prompt of ``frame`` as a tracked frame of the bank; None where no prompt is left."""
        released = super().release_prompt(frame)
        if released is None or frame not in self.prompted_frames():
            return released
        return replace(released, kept=(*released.kept, frame))

    def keep_reachable(self, now: int, *, max_obj_ptrs: int) -> Self:
        """Without what no read can reach: entries outside the bank keep their tokens for one frame and their pointer for
        ``max_obj_ptrs`` - 1, counted from ``now`` and, for passes in the other direction, from the first and last
        prompt."""
        members = {e.frame for e in self.members()}
        anchors = anchors_of(self, now)
        reach = max_obj_ptrs - 1
        near = tracked_near(self, anchors, reach)
        kept = self.keep(tokens=members | (anchors & near), pointers=near)
        return replace(kept, kept=tuple(f for f in self.kept if f in members))

    def shift_frames(self, by: int) -> Self:
        updated = None if self.updated is None else self.updated + by
        return replace(super().shift_frames(by), kept=tuple(f + by for f in self.kept), updated=updated)


# -- when -------------------------------------------------------------------------------------------------------------


def update_gap(gap: int | None, frame: FrameContext) -> int:
    """Frames between bank updates; None is a thirtieth of the video, at least 5, and 5 on a stream."""
    if gap is not None:
        return gap
    if frame.num_frames is None:
        return SHORTEST_GAP
    return max(SHORTEST_GAP, round(frame.num_frames / UPDATES_PER_VIDEO))


def is_due(state: FrameBank, frame: FrameContext, gap: int | None) -> bool:
    """Whether the bank is updated on this frame: far enough from its latest update and from every prompt."""
    marks = state.prompted_frames() + ([] if state.updated is None else [state.updated])
    return min(abs(frame.index - mark) for mark in marks) >= update_gap(gap, frame)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_bank(
    state: FrameBank, frame: FrameContext, *, slot_rule: str = "rank", max_obj_ptrs: int = 16, ordered: bool = False
) -> MemoryRead:
    """The bank, the previous frame, and SAM 2's pointers; a frame never reads a memory of itself.

    Args:
        state: the bank.
        frame: the frame that reads.
        slot_rule: temporal slots of tracked entries older than the previous frame, see ``old_slots``.
        max_obj_ptrs: see ``pointer_window``.
        ordered: give bank items their position in time, farthest first, as ``ReadItem.order``.
    """
    bank = state.bank(besides=frame.index)
    bank = tuple(e for e in bank if e.frame != frame.index)
    previous = [e for e in state.entries if frame.age(e.frame) == 1 and e not in bank]
    slots = _slots([e for e in bank if not e.is_prompt], frame, slot_rule)
    by_time = sorted(bank, key=lambda e: -abs(frame.age(e.frame)))
    order = {e.frame: i for i, e in enumerate(by_time)} if ordered else {}
    items = [ReadItem(e.tokens, slots.get(e.frame, PROMPT_SLOT), order=order.get(e.frame)) for e in bank]
    items += [ReadItem(e.tokens, 0) for e in previous]
    pointers = pointer_window(state.prompt_entries(), state.tracked(), frame, max_obj_ptrs=max_obj_ptrs)
    return MemoryRead(items=tuple(items), pointers=tuple(pointers))


def bank_columns(state: FrameBank, frame: FrameContext) -> list[int]:
    """Frames of the items at the head of ``read_bank`` that belong to the bank, in the order of the read."""
    return [e.frame for e in state.bank() if e.frame != frame.index]


def _slots(members: Sequence[MemoryEntry], frame: FrameContext, rule: str) -> dict[int, int | None]:
    slots: dict[int, int | None] = {e.frame: 0 for e in members if frame.age(e.frame) == 1}
    old = sorted((e.frame for e in members if e.frame not in slots), key=lambda f: abs(frame.age(f)))
    return slots | dict(zip(old, old_slots([abs(frame.age(f)) for f in old], rule)))


def old_slots(ages: Sequence[int], rule: str) -> Sequence[int | None]:
    """Slots of tracked frames of these ``ages`` (ascending), all older than the previous frame.

    ``rank``: 1..5 by order, shared evenly when there are more than five. ``clamp``: age - 1, at most 5. ``prompt``: the
    slot of prompted frames. ``none``: no temporal code.
    """
    if rule == "rank":
        return rank_slots(len(ages))
    if rule == "clamp":
        return [max(0, min(age - 1, LAST_SLOT)) for age in ages]
    return [PROMPT_SLOT if rule == "prompt" else None] * len(ages)
