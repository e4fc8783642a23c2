"""Sparse memory retrieval: which tokens stay, and what is read, against the rule written out literally."""

from __future__ import annotations

from math import ceil, log

import numpy as np
import pytest
import torch
from streams import at, random_entry, read_by_frame, scored

from sam2_mem.memory.policies.sparse import Sparse, SparseBank
from sam2_mem.types import PROMPT_SLOT, FrameContext, MemoryEntry, MemoryRead, ReadUsage, Usage

CELLS = 16


def attended(read: MemoryRead, rng: np.random.Generator) -> ReadUsage:
    """Attention of random shares."""
    return ReadUsage(tokens=tuple(torch.tensor(rng.dirichlet(np.full(len(i.tokens), 0.3))) for i in read.items))


def step(
    policy: Sparse, state: SparseBank, frame: FrameContext, entry: MemoryEntry, rng: np.random.Generator
) -> tuple[SparseBank, np.ndarray | None]:
    """The next state, and the attention that the map in slot 0 received."""
    assert policy.usage_at(state, frame) is Usage.TOKENS
    (read,) = policy.read(state, frame)
    usage = attended(read, rng)
    seen = scored(entry, (usage,))
    newest = [x.numpy() for i, x in zip(read.items, usage.tokens) if i.slot == 0]
    state = policy.write(state, frame, seen, policy.choose(state, frame, seen), [entry])
    return state, newest[0] if newest else None


def literal_tokens(policy: Sparse, attention: np.ndarray) -> list[int]:
    """Cells that stay, by their attention."""
    order = sorted(range(len(attention)), key=lambda i: -attention[i])
    if policy.mode == "topk":
        return sorted(order[: ceil(policy.keep * len(attention))])
    kept: list[int] = []
    while sum(attention[i] for i in kept) < policy.mass * attention.sum() - 1e-7:
        kept.append(order[len(kept)])
    return sorted(kept)


@pytest.mark.parametrize(
    "fields", [{}, {"keep": 0.4}, {"keep": 0.4, "count": True}, {"mode": "mass", "mass": 0.7}, {"num_maskmem": 4}]
)
def test_what_is_read(fields: dict) -> None:
    rng, policy = np.random.default_rng(7), Sparse(**fields)
    first = random_entry(0, rng, prompt=True, side=4)
    state, most = policy.prompt(None, at(0), first), 0
    history, cells = {}, {}
    for t in range(1, 500 if not fields else 60):
        slots, offsets = read_by_frame(policy, state, at(t))
        good = [f for f in range(t - 1, 0, -1) if f == t - 1 or (history[f].iou > 0.3 and history[f].objectness > 0)]
        expected = {f: slot for slot, f in enumerate(good[: policy.num_maskmem - 1])}
        assert slots == {0: PROMPT_SLOT, **expected}, f"frame {t}"
        assert sorted(offsets) == [0, *range(max(1, t - 15), t)]
        for entry in state.entries:
            kept, whole = cells.get(entry.frame, list(range(CELLS))), history[entry.frame].tokens
            assert torch.equal(entry.tokens.feat, whole.feat[kept]) and torch.equal(entry.tokens.xy, whole.xy[kept])
            assert torch.equal(entry.tokens.pos, whole.pos[kept])
            stands_for = None if len(kept) == CELLS or not policy.count else log(CELLS / len(kept))
            assert (entry.tokens.log_count is None) == (stands_for is None)
            assert stands_for is None or torch.allclose(entry.tokens.log_count, torch.tensor(stands_for))
        history[t] = random_entry(t, rng, side=4)
        state, attention = step(policy, state, at(t), history[t], rng)
        if attention is not None:
            cells[t - 1] = literal_tokens(policy, attention)
        most = max(most, state.token_count())
    assert most <= policy.capacity(CELLS) - 31 * CELLS, "one prompt"
    assert most > 2 * CELLS, "control"


def test_a_turn_of_time_leaves_one_whole_map() -> None:
    rng, policy = np.random.default_rng(1), Sparse(min_iou=-1, min_object_score=-99)
    state = policy.prompt(None, at(10), random_entry(10, rng, prompt=True, side=4))
    for t in range(11, 20):
        state, _ = step(policy, state, at(t), random_entry(t, rng, side=4), rng)
    state, _ = step(policy, state, at(9, reverse=True), random_entry(9, rng, side=4), rng)
    whole = [e.frame for e in state.entries if len(e.tokens) == CELLS]
    assert whole == [9] and 19 not in state.thinned
    assert state.token_count() <= policy.capacity(CELLS) - 31 * CELLS


def test_state_follows_frames() -> None:
    rng, policy = np.random.default_rng(2), Sparse(min_iou=-1, min_object_score=-99)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True, side=4))
    for t in range(1, 6):
        state, _ = step(policy, state, at(t), random_entry(t, rng, side=4), rng)
    assert state.thinned == (1, 2, 3, 4)
    assert state.shift_frames(3).thinned == (4, 5, 6, 7)
    assert [(r.frame, round(r.score, 4)) for r in state.reasons] == [(4, 1 / 16)]
    kinds = {i.frame: i.kind for i in policy.entry_infos(state, at(6))}
    assert kinds == {0: "prompt", 1: "thin", 2: "thin", 3: "thin", 4: "thin", 5: "newest"}
    again, _ = step(policy, state, at(3), random_entry(3, rng, side=4), rng)
    assert 3 not in again.thinned and len(next(e for e in again.entries if e.frame == 3).tokens) == CELLS


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match="expected keep"):
        Sparse(keep=0.0)
    with pytest.raises(ValueError, match="expected mode out of topk, mass"):
        Sparse(mode="half")
