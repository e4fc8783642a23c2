"""RMem: what stays in a restricted bank, the published numbers, and its learned temporal encoding."""

from __future__ import annotations

import math
from dataclasses import replace

import micro
import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_mem.build_sam import NEW_PARTS, build_policy, build_sam2
from sam2_mem.checkpoint import CheckpointError, load_checkpoint
from sam2_mem.memory.policies.rmem import FrameStatistics, RMem, RMemBank, attention_shares
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.model.temporal_encoding import BankTime, bank_codes
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    FrameFeatures,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
    ReadUsage,
    Usage,
)

GRID = (2, 3)
QUERIES = 6
ONE = MaskSelection(output=CandidateId(0, 0), remember=(CandidateId(0, 0),))


def context(index: int, *, reverse: bool = False, num_frames: int | None = None) -> FrameContext:
    low = torch.zeros(QUERIES, 4)
    high = (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
    features = FrameFeatures(index, low, low, high, GRID)
    return FrameContext(index=index, features=features, reverse=reverse, num_frames=num_frames)


def entry(frame: int, *, prompt: bool = False, score: float = 5.0) -> MemoryEntry:
    tokens = MemoryTokens(torch.full((6, 2), float(frame)), torch.zeros(6, 2))
    return MemoryEntry(frame, tokens, torch.full((4,), float(frame)), objectness=score, is_prompt=prompt)


def seen(attention: Tensor | None, logits: Tensor | None = None, score: float = 5.0) -> Hypotheses:
    """``attention`` (Q, items); ``logits`` (8, 12), default full."""
    masks = torch.full((8, 12), 9.0) if logits is None else logits
    usage = None if attention is None else (ReadUsage(items=attention),)
    return Hypotheses(masks[None, None], torch.zeros(1, 1, 4), ((1.0,),), (score,), usage)


def constant(shares: list[float]) -> Tensor:
    return torch.tensor([shares], dtype=torch.float64).repeat(QUERIES, 1)


def bank_frames(state: RMemBank) -> list[int]:
    return [e.frame for e in state.bank()]


def advance(policy: RMem, state: RMemBank, frame: FrameContext, hypotheses: Hypotheses) -> RMemBank:
    return policy.write(state, frame, hypotheses, ONE, [entry(frame.index, score=hypotheses.objectness[0])])


def drive(policy: RMem, frames: int, share) -> list[list[int]]:
    """Bank after every frame of a stream in which ``share(bank)`` is the attention to it."""
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    history = []
    for t in range(1, frames):
        state = advance(policy, state, context(t), seen(constant(share(bank_frames(state)))))
        history.append(bank_frames(state))
    return history


# -- the published behaviour ------------------------------------------------------------------------------------------


def survival(policy: RMem, share: float, start: int) -> int:
    """Updates until a frame leaves that gets ``share`` of the attention, the others sharing the rest equally."""
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    t = 0
    while t <= start or start in bank_frames(state):
        t += 1
        bank = bank_frames(state)
        rest = (1.0 - share) / max(len(bank) - 1, 1)
        shares = [share if f == start else rest for f in bank] if start in bank else [1.0 / len(bank)] * len(bank)
        state = advance(policy, state, context(t), seen(constant(shares)))
    return t - start


@pytest.mark.parametrize("start", [1, 20])
@pytest.mark.parametrize(
    "share, updates",
    [(1 / 9, 8), (0.15, 10), (0.20, 13), (0.25, 17), (0.30, 22), (0.35, 29), (0.40, 38), (0.50, 66), (0.60, 121)],
)
def test_survival_under_constant_attention(share, updates, start):
    assert survival(RMem(bank_size=9, gap=1), share, start) == updates


def test_survival_depends_on_the_constants():
    assert survival(RMem(bank_size=9, gap=1, ucb_offset=0), 0.3, 20) != 22
    assert survival(RMem(bank_size=9, gap=1, ucb_alpha=1.0), 0.3, 20) != 22


def test_freshness_magnitudes():
    policy = RMem(bank_size=9)
    bank = [FrameStatistics(0, 0.0, 9)]
    bank += [FrameStatistics(i, 0.0, n) for i, n in enumerate(range(9, 1, -1), start=1)]
    scores = [round(policy.score(s, bank), 3) for s in reversed(bank[1:])]
    assert scores == [0.945, 0.901, 0.863, 0.829, 0.799, 0.772, 0.747, 0.725]
    assert policy.score(replace(bank[1], relevance=0.25), bank) == pytest.approx(0.725 + 0.25, abs=1e-3)


@pytest.mark.parametrize(
    "share",
    [
        lambda bank: [1.0 / len(bank)] * len(bank),
        lambda bank: [(i + 1.0) / sum(range(len(bank) + 1)) for i in range(len(bank))],
        lambda bank: [1.0] + [0.0] * (len(bank) - 1),
    ],
    ids=["uniform", "towards the newest", "all on the first"],
)
def test_without_a_reason_to_stay_it_is_fifo_with_frame_0_pinned(share):
    history = drive(RMem(bank_size=9, gap=1), 40, share)
    for t, bank in enumerate(history, start=1):
        assert bank == [0, *range(max(1, t - 7), t + 1)]


def test_an_attended_frame_stays_where_fifo_drops_it():
    share = lambda bank: [0.7 / (len(bank) - 1) if f != 3 else 0.3 for f in bank] if 3 in bank else [1.0] * len(bank)  # noqa: E731
    assert 3 in drive(RMem(bank_size=6, gap=1), 12, share)[-1]
    assert 3 not in drive(RMem(bank_size=6, gap=1, eviction="fifo"), 12, share)[-1]


def bank_after_an_absence(policy: RMem) -> list[int]:
    """Seen on 40 frames, gone for the next 60; attention is uniform."""
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 101):
        bank = bank_frames(state)
        uniform = seen(constant([1.0 / len(bank)] * len(bank)))
        state = advance(policy, state, context(t), replace(uniform, objectness=(5.0 if t <= 40 else -5.0,)))
    return bank_frames(state)


def test_an_absence_empties_the_bank_unless_absent_frames_stay_out():
    """The released code writes absent frames, and freshness puts them in the place of what was known; the preset keeps it."""
    assert bank_after_an_absence(RMem()) == [0, 80, 85, 90, 95, 100]
    assert bank_after_an_absence(build_policy("rmem_visible")) == [0, 20, 25, 30, 35, 40]


# -- against a slow, literal implementation ---------------------------------------------------------------------------


class Literal:
    """The released update rule, frame by frame, in plain lists; DeAOT's path."""

    def __init__(self, size: int, gap: int) -> None:
        self.size, self.gap, self.last = size, gap, 0
        self.frames, self.mean, self.count = [0], {}, {0: 0}

    def due(self, t: int) -> bool:
        return t - self.last >= self.gap

    def update(self, t: int, attention: np.ndarray, weights: np.ndarray) -> None:
        restricted = attention / attention.sum(1, keepdims=True)
        relevance = np.array([sum(w * a for w, a in zip(weights, column)) for column in restricted.T])
        relevance = relevance / relevance.sum()
        for f, r in zip(self.frames, relevance):
            self.mean[f] = 0.2 * self.mean[f] + 0.8 * r if f in self.mean else r
            self.count[f] += 1
        self.count[0] = len(self.frames)
        total = sum(self.count[f] for f in self.frames)
        score = [self.mean[f] + 1.5 * math.sqrt(math.log(total) / (self.count[f] + 8)) for f in self.frames]
        old = list(self.frames)
        self.frames.append(t)
        self.count[t] = 1
        if len(self.frames) > self.size:
            worst = min(range(1, len(old)), key=lambda i: score[i])
            self.frames.remove(old[worst])
        self.last = t


@pytest.mark.parametrize("seed", range(6))
def test_random_streams_agree_with_the_literal_rule(seed):
    rng = np.random.default_rng(seed)
    size, gap = int(rng.integers(2, 10)), int(rng.integers(1, 4))
    policy, literal = RMem(bank_size=size, gap=gap), Literal(size, gap)
    state, differs = policy.prompt(None, context(0), entry(0, prompt=True)), False
    for t in range(1, 120):
        items = policy.read(state, context(t))[0].items
        previous = len(items) - len(literal.frames)
        assert previous in (0, 1)
        logits = torch.from_numpy(rng.normal(size=(8, 12)) * 3).float()
        attention = rng.dirichlet([0.05] * (len(items) + 1), size=QUERIES)[:, :-1] + 1e-9
        absent = rng.random() < 0.2
        probability = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
        weights = probability.reshape(2, 4, 3, 4).mean((1, 3)).reshape(-1)
        if literal.due(t):
            literal.update(t, attention[:, : len(literal.frames)], np.ones(QUERIES) if absent else weights)
        state = advance(policy, state, context(t), seen(torch.from_numpy(attention), logits, -1.0 if absent else 1.0))
        assert bank_frames(state) == literal.frames
        differs |= any(np.diff(literal.frames[1:]) > gap)
    relevance = {s.frame: s.relevance for s in state.statistics if s.relevance is not None}
    assert relevance == pytest.approx({f: literal.mean[f] for f in literal.frames if f in literal.mean}, abs=1e-6)
    assert differs or size == 2


# -- foreground -------------------------------------------------------------------------------------------------------


def test_relevance_counts_the_foreground_only():
    attention = torch.tensor([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3)
    assert attention_shares(attention, torch.tensor([1.0, 1, 1, 0, 0, 0])).tolist() == pytest.approx([0.9, 0.1])
    assert attention_shares(attention, torch.tensor([0.0, 0, 0, 1, 1, 1])).tolist() == pytest.approx([0.1, 0.9])


def test_mass_on_other_keys_does_not_count():
    rng = torch.rand(QUERIES, 3).softmax(1)
    lost = torch.rand(QUERIES, 1)
    assert attention_shares(rng * lost, torch.ones(QUERIES)).tolist() == pytest.approx(rng.mean(0).tolist(), abs=1e-6)


def test_an_absent_object_leaves_finite_statistics():
    policy = RMem(bank_size=4, gap=1)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 20):
        bank = len(bank_frames(state))
        state = advance(policy, state, context(t), seen(torch.rand(QUERIES, bank), score=-3.0))
        assert all(s.relevance is None or math.isfinite(s.relevance) for s in state.statistics)
    assert [s.relevance for s in state.statistics if s.relevance is not None]
    weights = np.zeros(QUERIES)
    with np.errstate(invalid="ignore"):
        assert np.isnan((weights @ np.ones((QUERIES, 2))) / (weights @ np.ones((QUERIES, 2))).sum()).all()


def test_attention_to_nothing_is_shared_equally():
    assert attention_shares(torch.zeros(QUERIES, 4), torch.ones(QUERIES)).tolist() == [0.25] * 4
    assert attention_shares(torch.zeros(QUERIES, 0), torch.ones(QUERIES)).tolist() == []


@pytest.mark.parametrize("wanted, expected", [(True, [0, 1, 2, 3]), (False, [0, 1, 3])])
def test_frames_without_the_object_may_be_left_out(wanted, expected):
    policy = RMem(gap=1, write_if_absent=wanted)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t, score in ((1, 2.0), (2, -2.0), (3, 2.0)):
        state = advance(policy, state, context(t), seen(constant([1.0] * len(bank_frames(state))), score=score))
    assert bank_frames(state) == expected


# -- when, and what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames, gap", [(None, 5), (30, 5), (165, 6), (300, 10), (3000, 100)])
def test_gap_follows_the_length_of_the_video(num_frames, gap):
    policy = RMem()
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    due = [t for t in range(1, 250) if policy.usage_at(state, context(t, num_frames=num_frames)) is not Usage.NONE]
    assert due[0] == gap
    fixed = RMem(gap=7)
    assert fixed.usage_at(state, context(7, num_frames=3000)) is Usage.ITEMS_BY_QUERY
    assert fixed.usage_at(state, context(6, num_frames=3000)) is Usage.NONE


def test_usage_is_measured_on_update_frames_only(monkeypatch):
    model, asked = micro.micro_model(), []
    attend = model.attend

    def noted(features, rows, usage=Usage.NONE):
        asked.append((features.index, usage))
        return attend(features, rows, usage)

    monkeypatch.setattr(model, "attend", noted)
    micro.run(micro.micro_tracker(RMem(gap=4)), micro.micro_features(13), {0: [micro.mask_prompt(1)]})
    assert [t for t, usage in asked if usage is Usage.ITEMS_BY_QUERY] == [4, 8, 12]
    assert len(asked) == 12


def test_slots_and_places():
    policy = RMem(gap=5, bank_size=6)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 23):
        state = advance(policy, state, context(t), seen(constant([1.0] * len(bank_frames(state)))))
    read = policy.read(state, context(23))[0]
    found = [(int(i.tokens.feat[0, 0]), i.slot, i.order) for i in read.items]
    assert found == [(0, PROMPT_SLOT, 0), (5, 4, 1), (10, 3, 2), (15, 2, 3), (20, 1, 4), (22, 0, None)]
    at_21 = policy.read(state, context(21))[0]
    assert [i.slot for i in at_21.items] == [PROMPT_SLOT, 3, 2, 1, 0]
    assert [round(p.offset * 15) for p in read.pointers] == [23, *range(1, 16)]


@pytest.mark.parametrize(
    "rule, slots", [("rank", [3, 2, 1]), ("clamp", [5, 5, 2]), ("prompt", [-1, -1, -1]), ("none", [None, None, None])]
)
def test_slot_rules(rule, slots):
    policy = RMem(gap=5, tpos_policy=rule)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 18):
        state = advance(policy, state, context(t), seen(constant([1.0] * len(bank_frames(state)))))
    assert [i.slot for i in policy.read(state, context(18))[0].items][1:-1] == slots


def test_prompts_are_pinned_and_count():
    policy = RMem(bank_size=4, gap=1, max_prompts=4)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 30):
        if t in (5, 11, 20, 25):
            state = policy.prompt(state, context(t), entry(t, prompt=True))
            continue
        state = advance(policy, state, context(t), seen(constant([1.0] * len(bank_frames(state)))))
    assert [p.frame for p in state.prompts] == [0, 11, 20, 25]
    assert bank_frames(state) == [0, 11, 20, 25, 29]


def test_a_reverse_pass_after_a_forward_one():
    policy = RMem(gap=2, bank_size=5)
    state = policy.prompt(None, context(20), entry(20, prompt=True))
    for t in [*range(21, 31), *range(19, 9, -1)]:
        frame = context(t, reverse=t < 20)
        state = advance(policy, state, frame, seen(constant([1.0] * len(bank_frames(state)))))
    assert bank_frames(state) == [20, 16, 14, 12, 10] and state.can_resume(context(9, reverse=True))
    read = policy.read(state, context(9, reverse=True))[0]
    assert [i.slot for i in read.items] == [PROMPT_SLOT, 3, 2, 1, 0]
    assert [i.order for i in read.items] == [0, 1, 2, 3, 4]


def test_a_frame_does_not_read_itself():
    policy = RMem(gap=1)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in (1, 2, 3):
        state = advance(policy, state, context(t), seen(constant([1.0] * len(bank_frames(state)))))
    again = policy.read(state, context(2))[0]
    assert [int(i.tokens.feat[0, 0]) for i in again.items] == [0, 1, 3]
    state = advance(policy, state, context(2), seen(constant([1.0] * 3)))
    assert sorted(bank_frames(state)) == [0, 1, 2, 3]


def test_a_prompt_taken_back_stays_as_a_tracked_frame():
    policy = RMem(gap=1, bank_size=3)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    state = policy.prompt(state, context(4), entry(4, prompt=True))
    freed = policy.unprompt(state, 0)
    assert [p.frame for p in freed.prompts] == [4] and bank_frames(freed) == [4, 0]
    assert policy.unprompt(freed, 4) is None
    for t in range(5, 9):
        freed = advance(policy, freed, context(t), seen(constant([1.0] * len(bank_frames(freed)))))
    assert bank_frames(freed) == [4, 7, 8]


def test_memory_is_bounded():
    policy = RMem(gap=2, max_prompts=3)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 300):
        state = advance(policy, state, context(t), seen(constant([1.0] * len(bank_frames(state)))))
        held = state.all_entries()
        assert sum(len(e.tokens) for e in held if e.tokens is not None) <= policy.capacity(6)
    assert len(held) <= 6 + 15 + 15 and len(state.statistics) == 6


def test_saved_and_moved(tmp_path):
    policy = RMem(gap=1)
    state = policy.prompt(None, context(0), entry(0, prompt=True))
    for t in range(1, 9):
        state = advance(policy, state, context(t), seen(torch.rand(QUERIES, len(bank_frames(state)))))
    save_memory(tmp_path / "m.pt", policy, state)
    back = load_memory(tmp_path / "m.pt", policy)
    assert back.statistics == state.statistics and back.kept == state.kept
    moved = back.shift_frames(-10)
    assert bank_frames(moved) == [f - 10 for f in bank_frames(state)]
    assert [(s.frame + 10, s.relevance) for s in moved.statistics] == [(s.frame, s.relevance) for s in state.statistics]
    assert moved.updated == state.updated - 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"bank_size": 1},
        {"gap": 0},
        {"gap": 2.5},
        {"eviction": "random"},
        {"tpos_policy": "age"},
        {"ema": 0.0},
        {"ucb_alpha": -1.0},
        {"ucb_offset": float("nan")},
        {"max_prompts": 1},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ValueError, match=f"expected .*{next(iter(wrong))}.* got"):
        RMem(**wrong)


@pytest.mark.parametrize("name, size", [("rmem", 6), ("rmem_code", 9), ("rmem_paper", 8)])
def test_presets(name, size):
    assert build_policy(name) == RMem(bank_size=size)


# -- in the tracker ---------------------------------------------------------------------------------------------------


def tracked(policy, frames: int = 30, **model) -> Tensor:
    tracker = micro.micro_tracker(policy, **model)
    prompts = {0: [micro.mask_prompt(1), micro.click_prompt(2, number=1)], 3: [micro.mask_prompt(3, 3, 2)]}
    return torch.cat([r.masks for r in micro.run(tracker, micro.micro_features(frames), prompts)])


def test_every_frame_with_fifo_eviction_is_fifo():
    plain = tracked("fifo")
    same = tracked(RMem(eviction="fifo", gap=1, bank_size=7))
    assert (plain - same).abs().max() < 1e-5
    for other in (RMem(eviction="fifo", gap=1, bank_size=6), RMem(eviction="fifo", gap=2, bank_size=7)):
        assert (plain - tracked(other)).abs().max() > 1e-2


def test_attention_of_the_network_is_taken_in():
    policy = RMem(gap=2, bank_size=4)
    tracker = micro.micro_tracker(policy)
    micro.run(tracker, micro.micro_features(30), {0: [micro.mask_prompt(1), micro.mask_prompt(2, 0, 1)]})
    banks = [t.state.statistics for t in tracker.tracks.values()]
    for bank in banks:
        assert len(bank) == 4 and all(0 < s.relevance < 1 for s in bank[:-1])
    assert [s.relevance for s in banks[0]] != [s.relevance for s in banks[1]]


# -- the learned temporal encoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length, codes",
    [
        (1, "0"),
        (2, "01"),
        (3, "012"),
        (4, "0123"),
        (5, "01233"),
        (6, "011233"),
        (7, "0112233"),
        (8, "00112233"),
        (9, "001122333"),
    ],
)
def test_codes_of_places(length, codes):
    assert "".join(map(str, bank_codes(length))) == codes


def encoded(seed: int | None, codes: int = 4):
    """The micro network with a temporal encoding, untrained for ``seed=None``."""
    config = micro.micro_config()
    config.model.bank_time_codes = codes
    model = build_sam2(config, None, device="cpu", apply_postprocessing=False).requires_grad_(False)
    model.load_state_dict(micro.micro_model().state_dict(), strict=False)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for value in model.bank_time.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    return model


def test_untrained_it_is_absent():
    policy = RMem(gap=2)
    plain = tracked(policy, 16)
    assert torch.equal(plain, tracked(policy, 16, model=encoded(None)))
    assert (plain - tracked(policy, 16, model=encoded(0))).abs().max() > 1e-2


def test_it_reads_places_of_bank_items_only():
    model = encoded(0)
    codes = model.order_code([0, 1, None, 2])
    assert torch.equal(codes[2], torch.zeros(16))
    assert torch.equal(codes[[0, 1, 3]], model.bank_time.memory[:3])
    assert torch.equal(model.order_code(list(range(9)))[[0, 1]], model.bank_time.memory[[0, 0]])


def test_it_gets_gradients_from_its_first_step():
    model = encoded(None)
    model.bank_time.requires_grad_(True)
    policy = RMem(gap=1)
    tracker = micro.micro_tracker(policy, model=model)
    masks = []
    for index in range(12):
        masks.append(tracker.step(micro.features_at(index), [micro.mask_prompt(1)] if index == 0 else []).masks)
    torch.cat(masks).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.bank_time.parameters())


def test_official_weights_lack_it(tmp_path):
    names = set(encoded(None).state_dict()) - set(micro.micro_model().state_dict())
    assert names == {"bank_time.query", "bank_time.memory"}
    weights = micro.micro_weights(tmp_path)
    assert load_checkpoint(encoded(0), weights, allow_missing=NEW_PARTS) == ("bank_time.query", "bank_time.memory")
    with pytest.raises(CheckpointError, match="bank_time.query"):
        load_checkpoint(encoded(0), weights)


def test_it_needs_a_code():
    with pytest.raises(ValueError, match="expected num_codes >= 1, got -1"):
        BankTime(num_codes=-1)
