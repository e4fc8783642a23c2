"""Pieces of reading and forgetting that policies share: which prompts, which past frames, which pointers, which slots.

Everything follows the direction of time in ``FrameContext``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from sam2_mem.memory.bank import Bank, E
from sam2_mem.types import (
    PROMPT_SLOT,
    ArchivedEntry,
    Entry,
    FrameContext,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadPointer,
)

B = TypeVar("B", bound=Bank)

LAST_SLOT = 5
"""The oldest slot of SAM 2's temporal code that is not the prompts' own."""


def closest_prompts(prompts: Sequence[E], index: int, max_prompts: int) -> tuple[list[E], list[E]]:
    """Split prompts into those to read and the others: the last one before ``index``, the first one from it on, then the
    nearest of the others, up to ``max_prompts`` (-1: all)."""
    if max_prompts == -1 or len(prompts) <= max_prompts:
        return list(prompts), []
    before = [p for p in prompts if p.frame < index]
    after = [p for p in prompts if p.frame >= index]
    chosen = before[-1:] + after[:1]
    others = sorted((p for p in prompts if p not in chosen), key=lambda p: abs(p.frame - index))
    chosen += others[: max_prompts - len(chosen)]
    return chosen, [p for p in prompts if p not in chosen]


def map_frames(frame: FrameContext, *, num_maskmem: int, stride: int = 1) -> Iterator[tuple[int, int]]:
    """(temporal slot, frame) of the memory maps SAM 2 reads beside the prompts: the previous frame in slot 0, then
    every ``stride``-th frame behind it."""
    sign = -1 if frame.reverse else 1
    now = sign * frame.index
    multiple = (now - 2) // stride * stride
    for slot in range(num_maskmem - 2, -1, -1):
        behind = now - 1 if slot == 0 else multiple - (slot - 1) * stride
        yield slot, sign * behind


def map_reach(*, num_maskmem: int, stride: int = 1) -> int:
    """Largest age, in frames, of the maps that ``map_frames`` names."""
    return 0 if num_maskmem < 2 else 1 + (num_maskmem - 2) * stride


def most_pointers(frame: FrameContext, max_obj_ptrs: int) -> int:
    """Pointers read at most, as in SAM 2: fewer on a video that is known to be shorter."""
    return max_obj_ptrs if frame.num_frames is None else min(frame.num_frames, max_obj_ptrs)


def time_span(frame: FrameContext, max_obj_ptrs: int) -> int:
    """What pointer ages are divided by."""
    return max(most_pointers(frame, max_obj_ptrs) - 1, 1)


def pointer_window(
    prompts: Sequence[Entry],
    tracked: Mapping[int, Entry],
    frame: FrameContext,
    *,
    max_obj_ptrs: int = 16,
    past_only: bool = True,
) -> Iterator[ReadPointer]:
    """SAM 2's pointers: those of ``prompts`` with their signed age, then of the frames just before this one.

    Args:
        prompts: prompted entries to read.
        tracked: other entries by frame.
        frame: the frame that reads.
        max_obj_ptrs: 16 reads 15 past frames.
        past_only: leave out prompts that lie ahead.
    """
    window = most_pointers(frame, max_obj_ptrs)
    span = max(window - 1, 1)
    for entry in prompts:
        age = frame.age(entry.frame)
        if age >= 0 or not past_only:
            yield ReadPointer(entry.pointer, age / span)
    direction = 1 if frame.reverse else -1
    for age in range(1, window):
        previous = tracked.get(frame.index + direction * age)
        if previous is not None:
            yield ReadPointer(previous.pointer, age / span)


def window_read(
    state: Bank,
    frame: FrameContext,
    *,
    num_maskmem: int = 7,
    max_obj_ptrs: int = 16,
    stride: int = 1,
    max_cond_frames: int = -1,
    past_only: bool = True,
    without: Collection[int] = (),
) -> MemoryRead:
    """SAM 2's read: prompts in their own slot, the maps of ``map_frames``, the pointers of ``pointer_window``.

    Args:
        state: its prompts, entries and pointers.
        frame: the frame that reads.
        num_maskmem: maps read, one of them for the prompts.
        max_obj_ptrs: see ``pointer_window``.
        stride: frames between maps behind the previous frame.
        max_cond_frames: most prompts read, see ``closest_prompts``.
        past_only: leave out pointers of prompts that lie ahead.
        without: tracked frames whose maps are not read; their pointers are.
    """
    prompts, other_prompts = closest_prompts(state.prompts, frame.index, max_cond_frames)
    entries: tuple[Entry, ...] = (*other_prompts, *state.pointers, *state.entries)
    tracked = {e.frame: e for e in entries}
    items = [ReadItem(e.tokens, PROMPT_SLOT) for e in prompts]
    for slot, index in map_frames(frame, num_maskmem=num_maskmem, stride=stride):
        entry = tracked.get(index)
        if isinstance(entry, MemoryEntry) and index not in without:
            items.append(ReadItem(entry.tokens, slot))
    pointers = pointer_window(prompts, tracked, frame, max_obj_ptrs=max_obj_ptrs, past_only=past_only)
    return MemoryRead(items=tuple(items), pointers=tuple(pointers))


def keep_window(state: B, index: int, *, num_maskmem: int = 7, max_obj_ptrs: int = 16, stride: int = 1) -> B:
    """``state`` without the entries that no ``window_read`` can reach from frame ``index``, nor from the earliest and the
    last prompt in either direction: maps leave first, then pointers."""
    reach = map_reach(num_maskmem=num_maskmem, stride=stride)
    return state.keep_near(anchors_of(state, index), token_reach=reach, pointer_reach=max(max_obj_ptrs - 1, reach))


def window_capacity(tokens_per_map: int, max_prompts: int, *, num_maskmem: int = 7, stride: int = 1) -> int:
    """Tokens that ``keep_window`` leaves at most: prompts, and the maps within reach on both sides of the current frame,
    the earliest and the last prompt."""
    return tokens_per_map * (max_prompts + 3 * (2 * map_reach(num_maskmem=num_maskmem, stride=stride) + 1))


def rank_slots(count: int) -> list[int]:
    """Temporal slots 1..5 for ``count`` whole frames behind the previous one, newest first: one each up to five, shared
    evenly beyond, rounding towards the newest."""
    if count <= LAST_SLOT:
        return list(range(1, count + 1))
    return [1 + LAST_SLOT * r // count for r in range(count)]


def newest_first(
    entries: Iterable[Entry],
    prompted: Collection[int],
    frame: FrameContext,
    *,
    accept: Callable[[Entry], bool],
    max_accepted: int,
) -> list[Entry | None]:
    """Accepted entries of earlier frames, newest first, and before them the previous frame, accepted or not: the selection
    of SAM2Long and SAMURAI. Positions in this list are temporal slots (and, in SAM2Long, pointer ages).

    A frame in ``prompted`` takes a position, as in SAM 2, but leaves it empty (None): its entry is read as a prompt.

    Args:
        entries: tracked entries.
        prompted: frames read as prompts.
        frame: the frame that reads.
        accept: whether an entry is worth reading.
        max_accepted: most accepted entries.
    """
    by_age: dict[int, Entry | None] = {frame.age(e.frame): e for e in entries if frame.age(e.frame) > 0}
    oldest = max(by_age, default=0)
    by_age |= {frame.age(f): None for f in prompted if 0 < frame.age(f) < oldest}
    selection: list[Entry | None] = []
    accepted = 0
    for age in sorted(by_age):
        entry = by_age[age]
        is_accepted = entry is None or accept(entry)
        if accepted < max_accepted and (is_accepted or age == 1):
            selection.append(entry)
            accepted += is_accepted
    return selection


def recall_accepted(
    state: B,
    frame: FrameContext,
    archived: Mapping[int, ArchivedEntry],
    *,
    accept: Callable[[Entry], bool],
    max_maps: int,
    bare: Iterable[int],
) -> B:
    """``state`` with what ``newest_first`` would choose if nothing had left it.

    Args:
        state: memory as it is.
        frame: the frame that reads.
        archived: what has left and can come back, by frame.
        accept: whether an entry is worth reading.
        max_maps: most accepted entries that come back whole.
        bare: frames of which the pointer is read.
    """
    entries: dict[int, Entry] = {**{f: a.entry for f, a in archived.items()}, **state.tracked()}
    selected = newest_first(entries.values(), state.prompted_frames(), frame, accept=accept, max_accepted=max_maps)
    chosen = [archived[e.frame] for e in selected if e is not None and e.frame in archived]
    return state.recall(chosen, [archived[f] for f in bare if f in archived])


def nearest_accepted(
    entries: Sequence[Entry],
    anchors: Collection[int],
    *,
    accept: Callable[[Entry], bool],
    max_maps: int,
    max_pointers: int,
) -> tuple[set[int], set[int]]:
    """What ``newest_first`` can still reach from ``anchors`` (frames), in either direction of time.

    Returns:
        frames to keep with their tokens: on each side of an anchor the nearest one and the ``max_maps`` nearest accepted
        ones; frames of which the pointer is enough: the ``max_pointers`` nearest accepted ones.
    """
    with_tokens: set[int] = set()
    with_pointer: set[int] = set()
    accepted = {e.frame for e in entries if accept(e)}
    frames = sorted(e.frame for e in entries)
    for anchor in anchors:
        for side in ([f for f in reversed(frames) if f <= anchor], [f for f in frames if f >= anchor]):
            accepted_side = [f for f in side if f in accepted]
            with_tokens.update(side[:1], accepted_side[:max_maps])
            with_pointer.update(accepted_side[:max_pointers])
    return with_tokens, with_pointer - with_tokens


def anchors_of(state: Bank, now: int) -> set[int]:
    """Frames that tracking may go on from: this one, the earliest and the last prompted one."""
    frames = state.prompted_frames()
    return {now, *frames[:1], *frames[-1:]}


def tracked_near(bank: Bank, anchors: Collection[int], reach: int) -> set[int]:
    """Numbers of tracked frames at most ``reach`` frames away from one of ``anchors``."""
    return {f for f in bank.tracked() if min(abs(f - a) for a in anchors) <= reach}
