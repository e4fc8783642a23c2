"""Any policy within a budget that is kept by single tokens, against the rule written out literally."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import TOKENS, features_at, mask_prompt, micro_tracker, one_thread, run  # noqa: F401
from policy_contract import check_pure, tokens_in
from streams import at, random_entry, scored

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.anchors import KeyframeAnchors
from sam2_mem.memory.hybrid import Hybrid
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.rmem import RMem
from sam2_mem.memory.policies.xmem import XMem
from sam2_mem.memory.token_budget import TokenBounded, replace_tokens
from sam2_mem.model.memory_attention import measure_usage
from sam2_mem.types import MemoryEntry, ReadUsage, RowBatch, Usage

CELLS = 9
Held = dict[int, list[int]]


def bounded(tokens: int, score: str = "knorm", **fields: object) -> TokenBounded:
    return TokenBounded(policy=FIFO(**fields), max_bytes=tokens * 128, score=score)


def cells(entry: MemoryEntry) -> list[int]:
    return (entry.tokens.xy[:, 1] * 3 + entry.tokens.xy[:, 0]).int().tolist()


def literal(held: Held, now: int, values: dict[tuple[int, int], float], budget: int) -> Held:
    """Token by token, the least valuable leaves; prompt 0 and the frame just written do not take part."""
    held = {f: list(c) for f, c in held.items()}
    while sum(map(len, held.values())) > budget:
        left = [(values[f, c], f, c) for f, cs in held.items() for c in cs if f not in (0, now) and len(cs) > 1]
        left = [x for x in left if x[0] < max(values[x[1], c] for c in held[x[1]])]
        _, frame, cell = min(left)
        held[frame].remove(cell)
    return held


@pytest.mark.parametrize("score", ["knorm", "snap", "expected", "usage"])
@pytest.mark.parametrize("budget", [30, 44])
def test_the_least_valuable_tokens_leave(score: str, budget: int) -> None:
    rng, policy = np.random.default_rng(budget), bounded(budget, score, num_maskmem=5)
    history = {0: random_entry(0, rng, prompt=True)}
    state, thin, tally = policy.prompt(None, at(0), history[0]), 0, defaultdict(list)
    for t in range(1, 60):
        history[t] = random_entry(t, rng)
        (read,) = policy.read(state, at(t))
        usage = ReadUsage(tokens=tuple(torch.tensor(rng.random(len(i.tokens))) for i in read.items))
        whole = {e.frame: e for e in state.all_entries() if e.tokens is not None}
        mass = {id(i.tokens): u.tolist() for i, u in zip(read.items, usage.tokens)}
        seen = scored(history[t], None if score == "knorm" else (usage,))
        for f, e in whole.items():
            for c, received in zip(cells(e), mass.get(id(e.tokens), ())):
                tally[f, c].append(received)
        plain = policy.policy.write(state, at(t), seen, policy.choose(state, at(t), seen), [history[t]])
        state = policy.write(state, at(t), seen, policy.choose(state, at(t), seen), [history[t]])
        before = {e.frame: cells(e) for e in plain.all_entries() if e.tokens is not None}
        values = {}
        for f, cs in before.items():
            feat = history[f].tokens.feat + history[f].tokens.pos
            for n, c in enumerate(cs):
                if score == "knorm":
                    values[f, c] = -feat[c].norm().item()
                elif score == "usage":
                    values[f, c] = np.mean(tally[f, c]) if tally[f, c] else 0.0
                else:
                    values[f, c] = mass.get(id(whole[f].tokens), [0.0] * 9)[n] if f in whole else 0.0
        after = {e.frame: cells(e) for e in state.all_entries() if e.tokens is not None}
        if score == "knorm" or all(id(whole[f].tokens) in mass for f in before if f not in (0, t)):
            assert after == literal(before, t, values, budget), f"frame {t}"
        assert state.token_count() == sum(map(len, after.values())) <= budget
        for entry in state.entries:
            assert torch.equal(entry.tokens.feat, history[entry.frame].tokens.feat[cells(entry)])
        thin += any(len(c) < CELLS for c in after.values())
    assert thin > 40, "control"


def test_whole_frames_leave_where_tokens_are_not_enough() -> None:
    rng, policy = np.random.default_rng(0), bounded(20)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in range(1, 9):
        entry = random_entry(t, rng)
        seen = scored(entry)
        state = policy.write(state, at(t), seen, policy.choose(state, at(t), seen), [entry])
        assert state.token_count() <= 20
    assert [len(e.tokens) for e in state.entries] == [1, 1, 9] and len(state.pointers) == 5


@pytest.mark.parametrize(
    "name, score",
    [
        ("fifo", "snap"),
        *(
            pytest.param(name, score, marks=pytest.mark.full)
            for name in ("fifo", "keyframe", "distilled", "rmem", "sam2long", "samurai", "sparse", "hybrid")
            for score in ("knorm", "snap", "expected", "usage")
            if (name, score)
            not in {("fifo", "snap"), *(("rmem", s) for s in ("snap", "expected", "usage")), ("sparse", "expected")}
        ),
    ],
)
def test_with_a_network(name: str, score: str) -> None:
    policy = build_policy(name)
    least = (1 + policy.num_pathways) * TOKENS
    prompts, frames = {0: [mask_prompt(1)], 7: [mask_prompt(1, 7)]}, [features_at(t) for t in range(14)]
    tight = TokenBounded(policy=policy, max_bytes=(least + TOKENS) * 128, score=score)
    wide = replace(tight, max_bytes=10**6)
    scores = []
    for variant in (policy, wide, tight):
        tracker = micro_tracker(variant)
        results = [run(tracker, [f], prompts)[0] for f in frames]
        scores.append(torch.tensor([(r.scores[0].iou, r.scores[0].objectness) for r in results]))
        assert all(r.scores[0].tokens <= variant.capacity(TOKENS) for r in results)
    assert torch.equal(scores[0], scores[1]), "a budget never reached changes nothing"
    assert tokens_in(tracker.tracks[1].state) <= least + TOKENS
    assert (scores[0] - scores[2]).abs().max() > 1e-3, "control: a tight one shows"


def test_expected_attention_is_that_of_many_drawn_queries() -> None:
    torch.manual_seed(0)
    q, k = 2 * torch.randn(2, 2, 40, 6), torch.randn(2, 2, 8, 6)
    bias, blank = torch.zeros(2, 8), torch.zeros(2, 8, 6)
    bias[1, 7], bias[0, 2] = -torch.inf, 1.5
    item = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]).expand(2, -1)
    rows = RowBatch(blank, blank, blank, None, bias, item, 2, (8, 7), item_lengths=((3, 3), (3, 3)))
    measured = measure_usage(q, k, rows, Usage.EXPECTED, chunk=7)
    received = measure_usage(q, k, rows, Usage.TOKENS, chunk=7)
    for row in range(2):
        shares = []
        for head in range(2):
            queries = q[row, head].numpy()
            drawn = np.random.default_rng(head).multivariate_normal(
                queries.mean(0), np.cov(queries.T, bias=True), 400_000
            )
            mass = np.exp(drawn @ k[row, head].numpy().T / 6**0.5 + bias[row].numpy()).mean(0)
            shares.append(mass / mass.sum())
        expected = 40 * np.mean(shares, 0)[:6]
        ours = torch.cat(measured[row].tokens).numpy()
        assert np.allclose(ours, expected, rtol=0.1, atol=0.05)
        assert not np.allclose(ours, torch.cat(received[row].tokens).numpy(), rtol=0.1, atol=0.05), "control"


@pytest.mark.full
def test_pure() -> None:
    check_pure(TokenBounded(policy=FIFO(), max_bytes=3 * TOKENS * 128, score="snap"))


def test_what_is_one_object_stays_one() -> None:
    rng, policy = (
        np.random.default_rng(0),
        Hybrid(short=FIFO(), long=KeyframeAnchors(gap=1, min_iou=-1, min_object_score=-9)),
    )
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in (1, 2):
        entry = random_entry(t, rng)
        state = policy.write(state, at(t), scored(entry), policy.choose(state, at(t), scored(entry)), [entry])
    shared = state.anchors.long[0]
    assert shared is state.entries[0] is state.short.entries[0]
    other = replace(shared.tokens, feat=shared.tokens.feat + 1)
    changed = replace_tokens(state, {id(shared.tokens): other})
    assert changed.anchors.long[0] is changed.entries[0] is changed.short.entries[0] is not shared
    assert changed.entries[0].tokens is other and changed.entries[1] is state.entries[1]
    assert replace_tokens(state, {}) is state


def test_what_does_not_go_together() -> None:
    with pytest.raises(
        ValueError, match="expected a policy that reads parts of maps, got XMem; use memory_bound=bytes"
    ):
        TokenBounded(policy=XMem(), max_bytes=10**6)
    with pytest.raises(ValueError, match="expected score=knorm for RMem"):
        TokenBounded(policy=RMem(), max_bytes=10**6, score="snap")
    for name in ("rmem", "sparse"):
        with pytest.raises(ValueError, match="expected score=knorm for .*, which asks for another kind of attention"):
            TokenBounded(policy=build_policy(name), max_bytes=10**6, score="expected")
    with pytest.raises(ValueError, match="expected score out of knorm, snap, expected, usage"):
        TokenBounded(policy=FIFO(), max_bytes=10**6, score="newest")
