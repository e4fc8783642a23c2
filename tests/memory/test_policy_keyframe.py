"""The keyframe policy: what it keeps, what it makes compact, what it drops, within its bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import features_at, mask_prompt, micro_tracker, one_thread  # noqa: F401
from micro import run as tracked
from policy_contract import check_pure

from sam2_mem.memory.channel_reduction import ReducedTokens, reduce_channels, restore_channels
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.keyframe import Keyframe, Keyframes
from sam2_mem.memory.significance import significances
from sam2_mem.memory.token_budget import TokenBounded
from sam2_mem.memory.tokens import pool_grid, token_count
from sam2_mem.model.cached_positions import grid_xy, sine_tokens
from sam2_mem.types import (
    CandidateId,
    FrameContext,
    FrameFeatures,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
)

GRID = (4, 4)
CPU = torch.device("cpu")
NOTHING = Hypotheses(masks=torch.zeros(1, 1, 2, 2), pointers=torch.zeros(1, 1, 8), iou=((1.0,),), objectness=(1.0,))
ONE = MaskSelection(output=CandidateId(0, 0), remember=(CandidateId(0, 0),))


def context(index: int, *, reverse: bool = False) -> FrameContext:
    low = torch.zeros(GRID[0] * GRID[1], 8)
    high = (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    return FrameContext(index=index, features=FrameFeatures(index, low, low, high, GRID), reverse=reverse)


def entry(
    frame: int, rng: np.random.Generator, *, iou: float = 0.9, score: float = 3.0, prompt: bool = False
) -> MemoryEntry:
    vector = lambda n: torch.from_numpy(rng.normal(size=n)).float()  # noqa: E731
    tokens = MemoryTokens(feat=vector((16, 4)).bfloat16(), pos=sine_tokens(*GRID, 4, CPU), xy=grid_xy(*GRID, CPU))
    return MemoryEntry(frame, tokens, vector(8), iou=iou, objectness=score, is_prompt=prompt, summary=vector(8))


def run(policy: Keyframe, frames: int, seed: int = 0, **looks) -> Keyframes:
    rng = np.random.default_rng(seed)
    state = policy.prompt(None, context(0), entry(0, rng, prompt=True))
    for t in range(1, frames):
        state = policy.write(state, context(t), NOTHING, ONE, [entry(t, rng, **looks)])
    return state


def maps(n: float) -> int:
    """Bytes of ``n`` whole maps."""
    return int(n * 16 * 128)


def test_pooling_averages_and_says_how_many():
    rng = np.random.default_rng(1)
    tokens = entry(0, rng).tokens
    small = pool_grid(tokens, GRID, 2)
    blocks = tokens.feat.float().reshape(2, 2, 2, 2, 4).mean((1, 3)).reshape(4, 4)
    assert torch.allclose(small.feat.float(), blocks, atol=1e-2)
    assert small.xy.tolist() == [[0.5, 0.5], [2.5, 0.5], [0.5, 2.5], [2.5, 2.5]]
    assert torch.allclose(small.log_count, torch.full((4,), math.log(4)))
    ragged = pool_grid(tokens, GRID, 3)
    assert ragged.log_count.exp().round().tolist() == [9, 3, 3, 1]
    assert ragged.xy[-1].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("tokens, message", [(3, "expected the 16 tokens"), (None, "undistilled")])
def test_pooling_refuses_what_is_not_a_map(tokens, message):
    whole = entry(0, np.random.default_rng(0)).tokens
    other = pool_grid(whole, GRID, 2)
    with pytest.raises(ValueError, match=message):
        pool_grid(
            MemoryTokens(whole.feat[:tokens], whole.pos[:tokens], whole.xy[:tokens]) if tokens else other,
            (2, 2) if not tokens else GRID,
            2,
        )


def test_budget_is_kept_and_both_tiers_are_used():
    policy = Keyframe(budget_bytes=maps(7))
    state = run(policy, 200)
    assert token_count(state.all_entries()) * 128 <= maps(7)
    assert len(state.full) == 1 and len(state.compact) == 4
    loose = run(Keyframe(budget_bytes=maps(9)), 200)
    assert token_count(loose.all_entries()) * 128 > maps(7)


def test_frames_without_the_object_or_with_doubtful_masks_are_no_keyframes():
    for looks in ({"score": -1.0}, {"iou": 0.3}):
        state = run(Keyframe(), 80, **looks)
        assert state.full == () and state.compact == ()
    assert run(Keyframe(), 80).full


def test_a_frame_whose_map_has_left_memory_is_no_keyframe():
    policy, new = Keyframe(), entry(11, np.random.default_rng(1))
    state = run(policy, 11)
    for before, frames, text in (
        (state, [4, 8], "becomes a keyframe"),
        (state.drop_tokens(8), [4], "no keyframe: its map has left memory"),
    ):
        written = policy.write(before, context(11), NOTHING, ONE, [new])
        assert sorted(e.frame for e in written.keyframes()) == frames
        assert [r.text for r in written.reasons if r.frame == 8 and r.action is not None] == [text]


def test_significance_is_that_of_a_literal_computation():
    state = run(Keyframe(budget_bytes=maps(9), max_whole=2), 120, seed=3)
    keys = [*state.full, *state.compact]
    kept = keys + list(state.prompts)

    def cosine(a, b):
        a, b = a.double().numpy(), b.double().numpy()
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    measured = significances(state.keyframes(), state.prompts, pointer_weight=0.3)
    for key in keys:
        distance = min(
            0.3 * (1 - cosine(key.pointer, o.pointer)) / 2 + 0.7 * (1 - cosine(key.summary, o.summary)) / 2
            for o in kept
            if o is not key
        )
        expected = key.iou / (1 + math.exp(-key.objectness)) * min(distance, 1.0)
        assert measured[key.frame] == pytest.approx(expected, abs=1e-5)
    assert len(set(measured.values())) > len(keys) / 2  # nearest neighbours come in pairs


def test_the_least_significant_goes_first():
    policy = Keyframe(budget_bytes=maps(7))
    rng = np.random.default_rng(5)
    state = policy.prompt(None, context(0), entry(0, rng, prompt=True))
    twin = entry(40, rng)
    for t in range(1, 120):
        looks = twin if t in (40, 60, 80) else entry(t, rng)
        same = MemoryEntry(t, entry(t, rng).tokens, looks.pointer, iou=0.9, objectness=3.0, summary=looks.summary)
        state = policy.write(state, context(t), NOTHING, ONE, [same])
    held = {e.frame for e in (*state.full, *state.compact)}
    assert len(held & {40, 60, 80}) <= 1


def test_it_equals_fifo_when_nothing_but_recent_frames_are_kept():
    policy, fifo = Keyframe(recent=6, max_whole=0, max_compact=0), FIFO()
    other = Keyframe(recent=6, budget_bytes=maps(30))
    rng = np.random.default_rng(0)
    first = entry(0, rng, prompt=True)
    states = [p.prompt(None, context(0), first) for p in (policy, fifo, other)]
    differs = False
    for t in range(1, 60):
        reads = [p.read(s, context(t))[0] for p, s in zip((policy, fifo, other), states)]
        as_sets = [[set(part) for part in r.key()[:2]] for r in reads]
        assert as_sets[0] == as_sets[1]
        differs |= as_sets[2] != as_sets[1]
        new = entry(t, rng)
        states = [p.write(s, context(t), NOTHING, ONE, [new]) for p, s in zip((policy, fifo, other), states)]
    assert differs


def test_reverse_reads_what_lies_ahead_and_rewrites_frames():
    policy = Keyframe(budget_bytes=maps(9))
    state = run(policy, 60)
    rng = np.random.default_rng(9)
    for t in range(59, 20, -1):
        read = policy.read(state, context(t, reverse=True))[0]
        assert read.items and (t > 57 or read.pointers)
        state = policy.write(state, context(t, reverse=True), NOTHING, ONE, [entry(t, rng, iou=0.95)])
    assert token_count(state.all_entries()) * 128 <= maps(9)
    again = {e.frame: e.iou for e in state.all_entries() if e.frame > 20}
    assert again and set(again.values()) == {0.95}


@pytest.mark.parametrize("bad", [{"recent": 0}, {"pool": 1}, {"gap": 0}, {"pointer_weight": 1.5}, {"budget_bytes": -1}])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match=f"expected {next(iter(bad))}"):
        Keyframe(**bad)


# -- fewer channels ---------------------------------------------------------------------------------------------------


def wide_tokens(rng: np.random.Generator, count: int = 40, width: int = 16) -> MemoryTokens:
    """Features of which a few directions hold most of the variance."""
    scales = 3.0 / (1 + np.arange(width)) ** 2
    features = rng.normal(size=(count, width)) * scales @ np.linalg.qr(rng.normal(size=(width, width)))[0] + 5
    return MemoryTokens(torch.tensor(features, dtype=torch.float32), torch.zeros(count, width))


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_fewer_channels_are_those_of_a_truncated_decomposition(channels):
    tokens = wide_tokens(np.random.default_rng(channels))
    features = tokens.feat.numpy().astype(np.float64)
    u, s, v = np.linalg.svd(features - features.mean(0), full_matrices=False)
    expected = (u[:, :channels] * s[:channels]) @ v[:channels] + features.mean(0)
    reduced = reduce_channels(tokens, channels)
    assert reduced.feat.shape == (40, channels) and len(reduced) == 40
    numbers = sum(x.numel() for x in (reduced.feat, reduced.basis, reduced.mean))
    assert reduced.equivalent == numbers / 16
    restored = restore_channels(reduced)
    assert restored.feat.shape == (40, 16) and restored.pos is tokens.pos
    np.testing.assert_allclose(restored.feat, expected, atol=1e-4)
    error = np.abs(expected - features).max()
    assert error > 1e-2, "control: something is lost"


def test_where_nothing_is_saved_tokens_stay():
    tokens = wide_tokens(np.random.default_rng(0))
    few = wide_tokens(np.random.default_rng(0), count=4)
    assert reduce_channels(tokens, 0) is reduce_channels(tokens, 16) is reduce_channels(tokens, 12) is tokens
    assert reduce_channels(few, 4) is few and restore_channels(tokens) is tokens


def wide_run(policy: Keyframe, frames: int) -> Keyframes:
    rng, grid = np.random.default_rng(0), (12, 12)
    state = None
    for t in range(frames):
        tokens = replace(wide_tokens(rng, 144), xy=grid_xy(*grid, CPU))
        features = replace(context(t).features, grid=grid)
        vectors = (torch.tensor(rng.normal(size=8), dtype=torch.float32) for _ in range(2))
        new = MemoryEntry(t, tokens, next(vectors), iou=0.9, objectness=3.0, is_prompt=t == 0, summary=next(vectors))
        at = FrameContext(t, features)
        state = policy.prompt(None, at, new) if t == 0 else policy.write(state, at, NOTHING, ONE, [new])
    return state


def test_more_keyframes_fit_into_the_same_bytes():
    budget = (
        6 * 144 + 4 * 36
    ) * 64  # prompt, four recent frames, a whole keyframe, four compact ones; 16 float32 channels
    fields = {"budget_bytes": budget, "bytes_per_token": 64, "gap": 1, "max_compact": 40}
    plain, reduced = (wide_run(Keyframe(**fields, channels=channels), 60) for channels in (0, 4))
    assert len(plain.compact) == 4 < len(reduced.compact)
    parts = {id(e.tokens): e.tokens for e in reduced.all_entries() if e.tokens is not None}.values()
    numbers = sum(
        t.feat.numel() + (t.basis.numel() + t.mean.numel() if isinstance(t, ReducedTokens) else 0) for t in parts
    )
    assert reduced.stored_tokens() * 16 == numbers <= budget / 4
    policy = Keyframe(**fields, channels=4)
    read = policy.read(reduced, context(60))[0]
    assert {i.tokens.feat.shape[1] for i in read.items} == {16}
    assert reduced.token_count() <= policy.capacity(144)
    with pytest.raises(ValueError, match="expected a policy that reads parts of maps, got Keyframe"):
        TokenBounded(policy=policy, max_bytes=10**6)


def test_fewer_channels_with_a_network():
    prompts, frames = {0: [mask_prompt(1, 0, 1)]}, [features_at(t) for t in range(24)]
    fields = {"gap": 1, "recent": 1, "max_whole": 0, "pool": 2}
    scores = []
    for channels in (0, 16, 1):
        results = tracked(micro_tracker(Keyframe(**fields, channels=channels)), frames, prompts)
        scores.append(torch.tensor([(r.scores[0].iou, r.scores[0].objectness) for r in results]))
    assert torch.equal(scores[0], scores[1]), "all channels"
    assert (scores[0] - scores[2]).abs().max() > 1e-3, "control"
    check_pure(Keyframe(**fields, channels=1))
