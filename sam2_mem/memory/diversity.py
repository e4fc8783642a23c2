"""A long-term memory of frames that differ from each other, drawn from a pool of candidates."""

from __future__ import annotations

from sam2_mem.memory.likeness import likenesses
from sam2_mem.types import MemoryEntry

Entries = tuple[MemoryEntry, ...]


def grow_long_term(
    long: Entries, pool: Entries, candidate: MemoryEntry, prompts: Entries, *, max_long: int, pool_size: int, by: str
) -> tuple[Entries, Entries]:
    """``candidate`` joins the pool; of a full pool the entry least like the newest long-term one (the last of ``prompts``,
    if there is none) joins long-term memory, and the pool empties. Of equals the older joins.

    Args:
        long: long-term memory, in the order in which its entries joined.
        pool: candidates, in the order in which they came.
        candidate: the entry of a good frame.
        prompts: prompted entries, at least one.
        max_long: size of long-term memory; beyond it the entry that joined first leaves.
        pool_size: candidates that make a full pool.
        by: what likeness is measured by, see ``sam2_mem.memory.likeness.likenesses``.

    Returns:
        long-term memory.
        the pool.
    """
    pool = (*pool, candidate)
    if len(pool) < pool_size:
        return long, pool
    scores = likenesses(pool, (long or prompts)[-1], by)
    return (*long, pool[scores.index(min(scores))])[-max_long:], ()
