"""From working memory to long-term memory (XMem, section 3.3): prototypes, or summaries that a distiller has made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sam2_mem.memory.policies.xmem.affinity import largest, similarity
from sam2_mem.memory.policies.xmem.image_keys import nearest_tokens
from sam2_mem.memory.policies.xmem.prototypes import INITIAL_LIFE, LongTermMemory, join_tokens, potentiate
from sam2_mem.memory.policies.xmem.state import WorkingFrame, XMemBank
from sam2_mem.memory.trace import Action, Reason
from sam2_mem.types import MemoryTokens, MergeRequest


def split_working(state: XMemBank, min_working: int) -> tuple[tuple[WorkingFrame, ...], tuple[WorkingFrame, ...]]:
    """Frames of a full working memory to be condensed, and the newest, which stay; the first prompt counts as one."""
    count = len(state.working) - (min_working - 1)
    return state.working[:count], state.working[count:]


def consolidate(
    state: XMemBank, index: int, *, min_working: int, num_prototypes: int, max_size: int, buffer: int
) -> XMemBank:
    """Make room in long-term memory, then turn all but the newest frames of working memory into prototypes.

    Args:
        state: its working memory is full.
        index: the frame being written.
        min_working: frames left in working memory, the first prompt counted as one.
        num_prototypes: prototypes to make.
        max_size: most prototypes held.
        buffer: see ``LongTermMemory.with_room``.
    """
    old, recent = split_working(state, min_working)
    before = state.long_term
    remaining = None if before is None else before.with_room(num_prototypes, max_size=max_size, buffer=buffer)
    new = _make_prototypes(state, old, num_prototypes)
    return replace(
        state,
        working=recent,
        long_term=new if remaining is None else remaining.joined(new),
        reasons=(*state.reasons, *_merge_reasons(old, new, index), *_eviction_reasons(before, remaining)),
    )


def take_summaries(
    state: XMemBank, request: MergeRequest, tokens: MemoryTokens, *, min_working: int, max_size: int, buffer: int
) -> XMemBank:
    """Make room in long-term memory, then put merged ``tokens`` there in place of the frames they came from."""
    old, recent = split_working(state, min_working)
    remaining = state.long_term
    if remaining is not None:
        remaining = remaining.with_room(len(tokens), max_size=max_size, buffer=buffer)
    new = _make_summaries(request, old, tokens)
    return replace(
        state,
        working=recent,
        long_term=new if remaining is None else remaining.joined(new),
        reasons=(*state.reasons, *(Reason(w.frame, "merged into long-term memory") for w in old)),
    )


def _make_prototypes(state: XMemBank, frames: Sequence[WorkingFrame], count: int) -> LongTermMemory:
    """Section 3.3, "prototype selection" and "memory potentiation": the most used elements of ``frames`` keep their key
    and get the average value of what looks like them."""
    assert state.space is not None, "long-term memory compares image keys"
    entries = {e.frame: e for e in state.entries}
    source = join_tokens([entries[w.frame].tokens for w in frames])
    key = torch.cat([w.key for w in frames])
    usage = torch.cat([w.usage() for w in frames])
    index = largest(usage, count).to(key.device)
    keys = state.space.apply(key.detach())
    lengths = torch.tensor([len(w.use) for w in frames])
    numbers = torch.tensor([w.frame for w in frames]).repeat_interleave(lengths).to(key.device)
    return LongTermMemory(
        tokens=potentiate(source, index, similarity(keys, keys[index])),
        key=key[index],
        source=numbers[index],
        use=usage.new_zeros(len(index)),
        life=usage.new_full((len(index),), INITIAL_LIFE),
    )


def _make_summaries(request: MergeRequest, frames: Sequence[WorkingFrame], tokens: MemoryTokens) -> LongTermMemory:
    """Long-term memory of merged tokens. The image key of each is the mean over frames of the nearest token's."""
    nearest = [nearest_tokens(e.tokens, tokens).to(w.key.device) for e, w in zip(request.entries, frames)]
    key = torch.stack([w.key[index].float() for w, index in zip(frames, nearest)]).mean(0).to(frames[0].key.dtype)
    use = frames[0].use.new_zeros(len(tokens))
    source = torch.full((len(tokens),), request.entries[-1].frame, device=key.device)
    return LongTermMemory(join_tokens([tokens]), key, source, use, torch.full_like(use, INITIAL_LIFE))


def _merge_reasons(frames: Sequence[WorkingFrame], new: LongTermMemory, index: int) -> list[Reason]:
    sources = new.source.tolist()
    usage = torch.stack([w.usage().mean() for w in frames]).tolist()
    reasons = []
    for frame, score in sorted(zip((w.frame for w in frames), usage)):
        text = f"condensed into long-term memory: {sources.count(frame)} of {len(sources)} new prototypes"
        reasons.append(Reason(frame, text, None if frame == index else score, action=Action.MERGED))
    return reasons


def _eviction_reasons(before: LongTermMemory | None, remaining: LongTermMemory | None) -> list[Reason]:
    """How many prototypes made room, the most used of them, and the least used of those that stay."""
    count = (0 if before is None else len(before)) - (0 if remaining is None else len(remaining))
    if before is None or count == 0:
        return []
    usage = before.usage().sort().values[count - 1 : count + 1].tolist()
    limit = usage[1] if len(usage) > 1 else None
    return [Reason(None, f"{count} least used prototypes", usage[0], limit, Action.EVICTED)]
