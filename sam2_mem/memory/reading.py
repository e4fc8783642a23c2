"""Pieces of reading and forgetting that policies share: which prompts, which past frames, which pointers, which slots.

Everything follows the direction of time in :class:`~sam2_mem.types.FrameContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from sam2_mem.memory.policy import put
from sam2_mem.types import FrameContext, MemoryEntry, ReadPointer

LAST_SLOT = 5
"""The oldest slot of SAM 2's temporal code that is not the prompts' own."""


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
    """Largest age, in frames, of the maps that :func:`map_frames` names."""
    return 0 if num_maskmem < 2 else 1 + (num_maskmem - 2) * stride


def most_pointers(frame: FrameContext, max_obj_ptrs: int) -> int:
    """Pointers read at most, as in SAM 2: fewer on a video that is known to be shorter."""
    return max_obj_ptrs if frame.num_frames is None else min(frame.num_frames, max_obj_ptrs)


def time_span(frame: FrameContext, max_obj_ptrs: int) -> int:
    """What pointer ages are divided by."""
    return max(most_pointers(frame, max_obj_ptrs) - 1, 1)


def pointer_window(
    prompts: Sequence[MemoryEntry],
    tracked: Mapping[int, MemoryEntry],
    frame: FrameContext,
    *,
    max_obj_ptrs: int = 16,
    past_only: bool = True,
) -> Iterator[ReadPointer]:
    """SAM 2's pointers: those of ``prompts`` with their signed age, then of the frames just before this one.

    Args:
        prompts: prompted entries to read. tracked: other entries by frame. max_obj_ptrs: 16 reads 15 past frames.
        past_only: leave out prompts that lie ahead.
    """
    span = time_span(frame, max_obj_ptrs)
    for entry in prompts:
        age = frame.age(entry.frame)
        if age >= 0 or not past_only:
            yield ReadPointer(entry.pointer, age / span)
    for age in range(1, most_pointers(frame, max_obj_ptrs)):
        entry = tracked.get(frame.index + age if frame.reverse else frame.index - age)
        if entry is not None:
            yield ReadPointer(entry.pointer, age / span)


def rank_slots(count: int) -> list[int]:
    """Temporal slots 1..5 for ``count`` whole frames behind the previous one, newest first: one each up to five, shared
    evenly beyond, rounding towards the newest."""
    if count <= LAST_SLOT:
        return list(range(1, count + 1))
    return [1 + LAST_SLOT * r // count for r in range(count)]


def within_reach(
    entries: Sequence[MemoryEntry], anchors: Collection[int], *, token_reach: int, pointer_reach: int
) -> Iterator[MemoryEntry]:
    """Entries near one of ``anchors`` (frames): whole up to ``token_reach`` frames away, without tokens up to
    ``pointer_reach``, gone beyond."""
    for entry in entries:
        distance = min(abs(entry.frame - a) for a in anchors)
        if distance <= token_reach:
            yield entry
        elif distance <= pointer_reach:
            yield entry.without_tokens()


def add_prompt(prompts: tuple[MemoryEntry, ...], entry: MemoryEntry, most: int | None) -> tuple[MemoryEntry, ...]:
    """``prompts`` with ``entry``, sorted by frame; beyond ``most`` the oldest but the first goes, never the new one."""
    joined = put(prompts, entry)
    if most is None or len(joined) <= most:
        return joined
    oldest = next(p for p in joined[1:] if p is not entry)
    return tuple(p for p in joined if p is not oldest)


def newest_first(
    entries: Iterable[MemoryEntry],
    prompted: Collection[int],
    frame: FrameContext,
    *,
    accept: Callable[[MemoryEntry], bool],
    most: int,
) -> list[MemoryEntry | None]:
    """Up to ``most`` accepted entries of earlier frames, newest first, and before them the previous frame, accepted or
    not: the selection of SAM2Long and SAMURAI. Places in this list are temporal slots (and, in SAM2Long, pointer ages).

    A frame in ``prompted`` takes a place, as in SAM 2, but leaves it empty (None): its entry is read as a prompt.
    """
    ages = {frame.age(e.frame): e for e in entries if frame.age(e.frame) > 0}
    oldest = max(ages, default=0)
    holes = {frame.age(f) for f in prompted if 0 < frame.age(f) < oldest}
    places: list[MemoryEntry | None] = []
    accepted = 0
    for age in sorted(ages.keys() | holes):
        entry = None if age in holes else ages[age]
        good = entry is None or accept(entry)
        if accepted < most and (good or age == 1):
            places.append(entry)
            accepted += good
    return places


def nearest_accepted(
    entries: Sequence[MemoryEntry],
    anchors: Collection[int],
    *,
    accept: Callable[[MemoryEntry], bool],
    whole: int,
    pointers: int,
) -> tuple[set[int], set[int]]:
    """What :func:`newest_first` can still reach from ``anchors`` (frames), in either direction of time.

    Returns:
        frames to keep whole: on each side of an anchor the nearest one and the ``whole`` nearest accepted ones; frames
        of which the pointer is enough: the ``pointers`` nearest accepted ones.
    """
    keep, pointer_only = set(), set()
    good = {e.frame for e in entries if accept(e)}
    frames = sorted(e.frame for e in entries)
    for anchor in anchors:
        for side in ([f for f in reversed(frames) if f <= anchor], [f for f in frames if f >= anchor]):
            accepted = [f for f in side if f in good]
            keep.update(side[:1], accepted[:whole])
            pointer_only.update(accepted[:pointers])
    return keep, pointer_only - keep


def anchors_of(prompts: Sequence[MemoryEntry], now: int) -> set[int]:
    """Frames that tracking may go on from: this one, the earliest and the last prompted one."""
    return {now} | {p.frame for p in (*prompts[:1], *prompts[-1:])}
