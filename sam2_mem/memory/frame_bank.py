"""A bank of whole frames beside the previous one: what the policies share that keep a few frames for long.

The bank is the prompted frames and some tracked ones. The previous frame is always read as well, the latest pointers as
in SAM 2. Positions in time are distances along the direction of tracking, so that passes in both directions work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sam2_mem.memory import reading
from sam2_mem.memory.policy import Bank, drop, put
from sam2_mem.memory.reading import LAST_SLOT, pointer_window, rank_slots, within_reach
from sam2_mem.types import PROMPT_SLOT, FrameContext, MemoryEntry, MemoryRead, ReadItem

SLOT_RULES = ("rank", "clamp", "prompt", "none")
SHORTEST_GAP = 5
UPDATES_PER_VIDEO = 30


@dataclass(frozen=True, eq=False)
class FrameBank(Bank):
    """``kept``: tracked frames of the bank, in the order in which they came; other entries are the previous frame and
    recent pointers. ``updated``: frame of the latest bank update."""

    kept: tuple[int, ...] = ()
    updated: int | None = None

    def members(self, besides: int | None = None) -> tuple[MemoryEntry, ...]:
        """Tracked entries of the bank in the order in which they came, without the one of frame ``besides``."""
        by_frame = {e.frame: e for e in self.entries if e.tokens is not None}
        return tuple(by_frame[f] for f in self.kept if f in by_frame and f != besides)

    def bank(self, besides: int | None = None) -> tuple[MemoryEntry, ...]:
        """Prompted and tracked entries of the bank that hold tokens."""
        return (*(p for p in self.prompts if p.tokens is not None), *self.members(besides))


S = TypeVar("S", bound=FrameBank)


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
    marks = [p.frame for p in state.prompts] + ([] if state.updated is None else [state.updated])
    return min(abs(frame.index - mark) for mark in marks) >= update_gap(gap, frame)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_bank(
    state: FrameBank, frame: FrameContext, *, slot_rule: str = "rank", max_obj_ptrs: int = 16, ordered: bool = False
) -> MemoryRead:
    """The bank, the previous frame, and SAM 2's pointers; a frame never reads a memory of itself.

    Args:
        slot_rule: temporal slots of tracked entries older than the previous frame, see :func:`old_slots`.
        ordered: give bank items their position in time, farthest first, as ``ReadItem.order``.
    """
    bank = [e for e in state.bank() if e.frame != frame.index]
    previous = [e for e in state.entries if e.tokens is not None and frame.age(e.frame) == 1 and e not in bank]
    slots = _slots([e for e in bank if not e.is_prompt], frame, slot_rule)
    by_time = sorted(bank, key=lambda e: -abs(frame.age(e.frame)))
    order = {e.frame: i for i, e in enumerate(by_time)} if ordered else {}
    items = [ReadItem(e.tokens, slots.get(e.frame, PROMPT_SLOT), order=order.get(e.frame)) for e in bank]
    items += [ReadItem(e.tokens, 0) for e in previous]
    tracked = {e.frame: e for e in state.entries}
    pointers = pointer_window(state.prompts, tracked, frame, max_obj_ptrs=max_obj_ptrs)
    return MemoryRead(items=tuple(items), pointers=tuple(pointers))


def bank_columns(state: FrameBank, frame: FrameContext) -> list[int]:
    """Frames of the items at the head of :func:`read_bank` that belong to the bank, in the order of the read."""
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


# -- changing ---------------------------------------------------------------------------------------------------------


def add_prompt(state: S, entry: MemoryEntry, *, max_prompts: int) -> S:
    """Pin a prompted entry; beyond ``max_prompts`` the oldest but the first goes."""
    prompts = reading.add_prompt(state.prompts, entry, max_prompts)
    kept = tuple(f for f in state.kept if f != entry.frame)
    return replace(state, prompts=prompts, entries=drop(state.entries, entry.frame), kept=kept)


def free_prompt(state: S, frame: int) -> S | None:
    """Turn the prompt of ``frame`` into a tracked frame of the bank; None when no prompt is left."""
    freed = [p.as_tracked() for p in state.prompts if p.frame == frame]
    prompts = drop(state.prompts, frame)
    if not prompts or not freed:
        return replace(state, prompts=prompts) if prompts else None
    return replace(state, prompts=prompts, entries=put(state.entries, freed[0]), kept=(*state.kept, frame))


def settle(state: S, now: int, *, max_obj_ptrs: int) -> S:
    """Drop what no read can reach: entries outside the bank keep their tokens for one frame and their pointer for
    ``max_obj_ptrs`` - 1, counted from ``now`` and, for passes in the other direction, from the first and last
    prompt."""
    members = {e.frame for e in state.members()}
    anchors = {now} | {p.frame for p in state.prompts[:1] + state.prompts[-1:]}
    rest = [e for e in state.entries if e.frame not in members]
    near = within_reach(rest, anchors, token_reach=0, pointer_reach=max_obj_ptrs - 1)
    whole = (e for e in state.entries if e.frame in members)
    entries = tuple(sorted((*whole, *near), key=lambda e: e.frame))
    return replace(state, entries=entries, kept=tuple(f for f in state.kept if f in members))


def shift_bank(state: S, by: int) -> S:
    """The same bank with every frame number shifted by ``by``."""
    return replace(
        state,
        prompts=tuple(replace(e, frame=e.frame + by) for e in state.prompts),
        entries=tuple(replace(e, frame=e.frame + by) for e in state.entries),
        kept=tuple(f + by for f in state.kept),
        updated=None if state.updated is None else state.updated + by,
    )


# -- checking ---------------------------------------------------------------------------------------------------------


def check_at_least(least: int, **values: int | None) -> None:
    """ValueError unless every value is None or an integer of at least ``least``."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"expected {name} to be an integer >= {least}, got {value!r}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError unless ``value`` is allowed."""
    if value not in allowed:
        raise ValueError(f"expected {name} out of {', '.join(allowed)}, got {value!r}")
