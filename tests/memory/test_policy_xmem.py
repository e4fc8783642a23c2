"""XMem's three tiers: what is consolidated and when, counters, eviction, reading, and the setting in which it is
FIFO."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from micro import click_prompt, features_at, mask_prompt, micro_predictor, micro_tracker, pictures, run
from torch import Tensor

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.xmem import XMem, XMemBank
from sam2_mem.memory.policies.xmem.affinity import KeySpace, similarity
from sam2_mem.memory.policies.xmem.prototypes import INITIAL_LIFE, LongTermMemory
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.memory.tokens import tensor_bytes, token_count
from sam2_mem.model.cached_positions import grid_xy, sine_tokens
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

SIDE, C, CM = 6, 8, 4
Q = SIDE * SIDE
CPU = torch.device("cpu")
PUBLISHED = {"max_working": 10, "min_working": 5, "max_long_term": 10000}
FIRST = MaskSelection(output=CandidateId(0, 0), remember=(CandidateId(0, 0),))


# -- a stream made by hand --------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """Feeds one object with random frames and random attention; keeps what it fed and every state."""

    policy: XMem
    seed: int = 0
    spread: float = 1.0
    start: int = 0
    lows: dict[int, Tensor] = field(default_factory=dict)
    feats: dict[int, Tensor] = field(default_factory=dict)
    masses: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    states: dict[int, XMemBank] = field(default_factory=dict)
    equal_usage: bool = False

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(self.seed)
        self.now = self.start
        frame = self.frame(self.start)
        self.states[self.start] = self.policy.prompt(None, frame, self.entry(self.start, is_prompt=True))

    @property
    def state(self) -> XMemBank:
        return self.states[self.now]

    def frame(self, index: int, reverse: bool = False) -> FrameContext:
        low = self.lows.setdefault(index, self.spread * torch.randn(Q, C, generator=self.random))
        high = (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1))
        return FrameContext(index, FrameFeatures(index, low, low, high, (SIDE, SIDE)), reverse=reverse)

    def entry(self, index: int, **scores) -> MemoryEntry:
        feat = self.feats.setdefault(index, torch.randn(Q, CM, generator=self.random).bfloat16())
        tokens = MemoryTokens(feat, sine_tokens(SIDE, SIDE, CM, CPU), grid_xy(SIDE, SIDE, CPU))
        return MemoryEntry(index, tokens, torch.full((8,), float(index)), **scores)

    def attention(self, frame: FrameContext) -> tuple[ReadUsage, ...] | None:
        if self.policy.usage_at(self.state, frame) is Usage.NONE:
            return None
        sizes = [len(item.tokens) for item in self.policy.read(self.state, frame)[0].items]
        ones = [torch.ones(n) for n in sizes]
        drawn = ones if self.equal_usage else [torch.rand(n, generator=self.random) for n in sizes]
        self.masses[frame.index] = tuple(drawn)
        return (ReadUsage(tokens=tuple(drawn)),)

    def step(self, index: int, reverse: bool = False, **scores) -> XMemBank:
        frame = self.frame(index, reverse)
        blank = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 8)
        hypotheses = Hypotheses(*blank, ((1.0,),), (10.0,), self.attention(frame))
        state = self.policy.write(self.state, frame, hypotheses, FIRST, [self.entry(index, **scores)])
        self.states[index], self.now = state, index
        return state

    def run(self, last: int) -> Stream:
        for index in range(self.now + 1, last + 1):
            self.step(index)
        return self


def working(state: XMemBank) -> list[int]:
    """Frames of working memory as XMem counts them, the first prompt included."""
    return [state.prompts[0].frame] + [c.frame for c in state.working]


def stored(state: XMemBank) -> int:
    return 0 if state.long_term is None else len(state.long_term)


# -- similarity -------------------------------------------------------------------------------------------------------


def brute_similarity(k: np.ndarray, q: np.ndarray, s: np.ndarray, e: np.ndarray) -> np.ndarray:
    result = np.zeros((len(k), len(q)))
    for i in range(len(k)):
        for j in range(len(q)):
            result[i, j] = -s[i] / np.sqrt(k.shape[1]) * np.sum(e[j] * (k[i] - q[j]) ** 2)
    return result


def test_similarity_is_the_written_formula():
    rng = np.random.default_rng(0)
    k, q = rng.normal(size=(7, C)), rng.normal(size=(5, C))
    s, e = 1 + rng.random(7), rng.random((5, C))
    tk, tq, ts, te = (torch.tensor(x) for x in (k, q, s, e))
    plain = similarity(tk, tq)
    assert np.allclose(plain, brute_similarity(k, q, np.ones(7), np.ones((5, C))))
    ones = {"shrinkage": torch.ones(7).double(), "selection": torch.ones(5, C).double()}
    assert torch.allclose(plain, similarity(tk, tq, **ones))
    assert np.allclose(similarity(tk, tq, shrinkage=ts, selection=te), brute_similarity(k, q, s, e))
    assert not np.allclose(plain, brute_similarity(k, q, s, e))


def test_shrinkage_without_selection_keeps_the_query_term():
    k, q, s = torch.randn(7, C), 2 * torch.randn(5, C), 1 + torch.rand(7)
    right = similarity(k, q, shrinkage=s)
    term_dropped = right + s[:, None] * q.square().sum(1) / C**0.5
    assert torch.allclose(right, similarity(k, q, shrinkage=s, selection=torch.ones(5, C)), atol=1e-4)
    assert not torch.allclose(right.softmax(0), term_dropped.softmax(0), atol=1e-2)


def test_key_space():
    low = 3 + 2 * torch.randn(200, C)
    low[:, 5] = 7.0
    space = KeySpace.of(low)
    keys = space.apply(low)
    assert torch.allclose(keys.mean(0), torch.zeros(C), atol=1e-4)
    flat = torch.arange(C) == 5
    assert torch.allclose(keys.std(0, unbiased=False), (~flat).float(), atol=1e-4)
    assert torch.equal(space.apply(low + 100 * flat)[:, 5], torch.zeros(200)), "a flat channel stays silent"


# -- consolidation ----------------------------------------------------------------------------------------------------


def test_the_first_consolidations():
    stream = Stream(XMem(mem_every=1, **PUBLISHED)).run(8)
    assert (working(stream.state), stored(stream.state)) == (list(range(9)), 0)
    stream.run(9)
    assert (working(stream.state), stored(stream.state)) == ([0, 6, 7, 8, 9], 128)
    assert set(stream.state.long_term.source.tolist()) <= {1, 2, 3, 4, 5}
    stream.run(13)
    assert (working(stream.state), stored(stream.state)) == ([0, 6, 7, 8, 9, 10, 11, 12, 13], 128)
    stream.run(14)
    assert (working(stream.state), stored(stream.state)) == ([0, 11, 12, 13, 14], 256)
    assert set(stream.state.long_term.source[128:].tolist()) <= {6, 7, 8, 9, 10}
    control = Stream(XMem(mem_every=1, max_working=9, min_working=5)).run(9)
    assert working(control.state) != [0, 6, 7, 8, 9]


@pytest.mark.parametrize(("every", "expected"), [(5, [45, 70, 95, 120]), (10, [90, 140])])
def test_timeline(every, expected):
    stream = Stream(XMem(mem_every=every, **PUBLISHED)).run(140 if every == 10 else 124)
    sizes = {t: stored(s) for t, s in stream.states.items()}
    assert [t for t in sizes if t and sizes[t] > sizes[t - 1]] == expected
    held = [c.frame for c in stream.states[44].working]
    assert held == ([5, 10, 15, 20, 25, 30, 35, 40] if every == 5 else [10, 20, 30, 40])


def test_published_and_cheap_presets():
    published = build_policy("xmem_faithful")
    assert (published.mem_every, published.max_working, published.min_working) == (5, 10, 5)
    assert (published.max_long_term, published.num_prototypes) == (10000, 128)
    assert build_policy("xmem") == XMem()
    read = 4096 * (XMem().capacity(4096) // 4096 - 32 + 1) + 64
    assert read <= 7 * 4096 + 64, "one prompt: no more keys than SAM 2"
    assert published.capacity(4096) - 31 * 4096 + 64 <= 51_300


def test_one_hot_weights_give_back_the_original():
    far = Stream(XMem(mem_every=1, **PUBLISHED), spread=1.0)
    for t in range(1, 10):
        far.lows[t] = 100 * torch.randn(Q, C, generator=far.random)
    far.run(9)
    tokens = far.state.long_term.tokens
    for i, t in enumerate(far.state.long_term.source.tolist()):
        x, y = tokens.xy[i].int().tolist()
        assert torch.equal(tokens.feat[i], far.feats[t][y * SIDE + x])
    near = Stream(XMem(mem_every=1, **PUBLISHED))
    for t in range(1, 10):
        near.lows[t] = torch.ones(Q, C)
    near.run(9)
    mean = torch.cat([near.feats[t] for t in range(1, 6)]).float().mean(0)
    assert torch.allclose(near.state.long_term.tokens.feat.float(), mean.expand(128, -1), atol=1e-2)


def test_the_key_is_that_of_the_original():
    stream = Stream(XMem(mem_every=1, **PUBLISHED), spread=0.3).run(9)
    store = stream.state.long_term
    t, places = store.tokens, store.tokens.xy.long()
    cell = places[:, 1] * SIDE + places[:, 0]
    original = torch.stack([stream.feats[s][c] for s, c in zip(store.source.tolist(), cell)]).float()
    sine = sine_tokens(SIDE, SIDE, CM, CPU)[cell]
    read_as_key = t.feat.float() + t.pos
    assert torch.allclose(read_as_key, original + sine, atol=1e-5)
    assert not torch.allclose(read_as_key, t.feat.float() + sine, atol=1e-5), "control: not that of the average"
    assert not torch.allclose(t.feat.float(), original, atol=0.1), "the value is an average"


def test_prototypes_keep_their_image_key_and_start_without_use():
    stream = Stream(XMem(mem_every=1, **PUBLISHED)).run(9)
    store = stream.state.long_term
    cell = store.tokens.xy[:, 1].long() * SIDE + store.tokens.xy[:, 0].long()
    keys = torch.stack([stream.lows[s][c] for s, c in zip(store.source.tolist(), cell)])
    assert torch.equal(store.key, keys.bfloat16())
    assert store.use.eq(0).all()
    assert torch.equal(store.life, torch.full((128,), INITIAL_LIFE))
    assert (store.use / store.life).eq(0).all()
    newest = stream.state.working[-1]
    assert newest.use.eq(0).all() and torch.equal(newest.life, torch.full((Q,), INITIAL_LIFE))
    after = stream.step(10)
    assert torch.equal(after.long_term.use, stream.masses[10][1]), "prompt, then long-term memory"
    assert torch.allclose(after.long_term.life, torch.ones(128))
    assert after.working[-2].life.max().item() == pytest.approx(1)


def test_very_different_images_give_no_nan():
    stream = Stream(XMem(mem_every=1, **PUBLISHED))
    for t in range(1, 10):
        stream.lows[t] = 60 * torch.randn(Q, C, generator=stream.random)
    keys = stream.state.space.apply(stream.frame(1).features.low)
    assert similarity(keys, stream.state.space.apply(stream.frame(2).features.low)).median() < -1000
    store = stream.run(9).state.long_term
    assert torch.isfinite(store.tokens.feat.float()).all() and torch.isfinite(store.tokens.pos).all()


# -- eviction ---------------------------------------------------------------------------------------------------------


def upstream_survivors(usage: Tensor, keep: int) -> int:
    """XMem's own rule: strictly above the largest of the smallest."""
    threshold = usage.topk(len(usage) - keep, largest=False).values[-1]
    return int((usage > threshold).sum())


@pytest.mark.parametrize("buffer", [0, 150])
def test_long_term_memory_is_bounded_also_when_all_usages_are_equal(buffer):
    sizes = {"mem_every": 1, "max_working": 10, "min_working": 5, "max_long_term": 600, "evict_buffer": buffer}
    stream = Stream(XMem(**sizes), equal_usage=True).run(99)
    lengths = [stored(s) for s in stream.states.values()]
    assert max(lengths) <= 600
    after_first_eviction = lengths[lengths.index(max(lengths)) :]
    assert min(after_first_eviction) >= 600 - 128 - buffer + 128
    assert upstream_survivors(torch.ones(512), 472) == 0, "upstream, everything would go"


def evicted(policy: XMem, store: LongTermMemory) -> LongTermMemory:
    return store.with_room(policy.num_prototypes, max_size=policy.max_long_term, buffer=policy.evict_buffer)


def test_the_most_used_stay_in_order_exactly_so_many():
    policy = XMem(max_long_term=600)
    tokens = MemoryTokens(torch.randn(520, CM), torch.randn(520, CM), torch.rand(520, 2))
    use, life = torch.rand(520), torch.randint(1, 9, (520,)).float()
    store = LongTermMemory(tokens, torch.randn(520, C), torch.arange(520), use, life)
    kept = evicted(policy, store)
    expected = np.sort(np.argsort(-(use / life).numpy(), kind="stable")[:472])
    assert kept.source.tolist() == expected.tolist()
    assert torch.equal(kept.tokens.feat, tokens.feat[expected]) and torch.equal(kept.use, use[expected])
    small = store.at(torch.arange(471))
    assert evicted(policy, small) is small
    buffered = XMem(max_long_term=600, evict_buffer=10)
    full = store.at(torch.arange(472))
    assert len(evicted(buffered, full)) == 462 and evicted(buffered, small) is small, "evicts from LT_max - P on"


# -- against an independent, slow, literal implementation -------------------------------------------------------------


class Literal:
    """Lists of single tokens, loops, numpy: sections 3.3 and 3.4 with one object."""

    def __init__(self, policy: XMem, stream: Stream) -> None:
        self.p, self.s = policy, stream
        first = stream.lows[0].double().numpy()
        self.mean, self.std = first.mean(0), first.std(0)
        self.wm: list[dict] = []
        self.lt: list[dict] = []
        self.last = 0

    def frame_tokens(self, t: int) -> list[dict]:
        low, feat = self.s.lows[t].bfloat16().double().numpy(), self.s.feats[t].double().numpy()
        sine = sine_tokens(SIDE, SIDE, CM, CPU).double().numpy()
        keys = (low - self.mean) / self.std
        return [
            {"t": t, "cell": c, "key": keys[c], "v": feat[c], "pos": sine[c], "use": 0.0, "life": 1e-7}
            for c in range(Q)
        ]

    def step(self, t: int) -> None:
        self.count(t)
        if t - self.last < self.p.mem_every:
            return
        self.wm += self.frame_tokens(t)
        self.last = t
        if len(self.wm) + Q < self.p.max_working * Q:
            return
        if len(self.lt) >= self.p.max_long_term - self.p.num_prototypes:
            by_usage = sorted(self.lt, key=lambda e: -e["use"] / e["life"])
            keep = by_usage[: self.p.max_long_term - self.p.num_prototypes]
            self.lt = [e for e in self.lt if any(e is k for k in keep)]
        split = len(self.wm) - (self.p.min_working - 1) * Q
        old, self.wm = self.wm[:split], self.wm[split:]
        self.lt += self.prototypes(old)

    def prototypes(self, old: list[dict]) -> list[dict]:
        result = []
        for chosen in sorted(old, key=lambda e: -e["use"] / e["life"])[: self.p.num_prototypes]:
            scores = np.array([-((e["key"] - chosen["key"]) ** 2).sum() / np.sqrt(C) for e in old])
            weights = np.exp(scores - scores.max())
            value = sum(w * e["v"] for w, e in zip(weights / weights.sum(), old))
            value = torch.tensor(value).bfloat16().double().numpy()
            result.append(chosen | {"v": value, "pos": chosen["v"] - value + chosen["pos"], "use": 0.0, "life": 1e-7})
        return result

    def count(self, t: int) -> None:
        """Masses come in the order of the read: prompt, long-term, then frames as listed in the state read from."""
        if t not in self.s.masses:
            return
        masses = [m.double().numpy() for m in self.s.masses[t]]
        read = self.s.policy.read(self.s.states[t - 1], self.s.frame(t))[0].items
        for item, mass in zip(read[1:], masses[1:]):
            frames = [f for f, feat in self.s.feats.items() if feat is item.tokens.feat]
            owners = [e for e in self.wm if e["t"] == frames[0]] if frames else self.lt
            for element, received_ in zip(owners, mass):
                element["use"] += received_
                element["life"] += 1


@pytest.mark.parametrize("every", [1, 3])
def test_policy_equals_the_literal_implementation(every):
    policy = XMem(mem_every=every, max_working=7, min_working=3, max_long_term=100, num_prototypes=30)
    stream = Stream(policy, seed=every, spread=1.5)
    slow, checked = Literal(policy, stream), 0
    for t in range(1, 40 * every):
        state = stream.step(t)
        slow.step(t)
        assert [c.frame for c in state.working] == sorted({e["t"] for e in slow.wm})
        if state.working:
            close(torch.cat([c.use for c in state.working]), [e["use"] for e in slow.wm])
        if slow.lt:
            store = state.long_term
            assert store.source.tolist() == [e["t"] for e in slow.lt]
            close(store.tokens.feat.float(), [e["v"] for e in slow.lt], atol=0.02)
            close(store.tokens.feat.float() + store.tokens.pos, [e["v"] + e["pos"] for e in slow.lt])
            close(store.tokens.xy, [[e["cell"] % SIDE, e["cell"] // SIDE] for e in slow.lt])
            close(store.use / store.life, [e["use"] / e["life"] for e in slow.lt])
            checked += 1
    assert checked > 20 and stored(state) == 100


def close(ours: Tensor, expected: list, atol: float = 1e-4) -> None:
    assert np.allclose(ours.double().numpy(), np.array(expected), atol=atol)


# -- usage ------------------------------------------------------------------------------------------------------------


def test_use_can_be_counted_on_every_few_frames():
    stream = Stream(XMem(mem_every=1, usage_every=3, **PUBLISHED)).run(20)
    assert sorted(stream.masses) == [3, 6, 9, 12, 15, 18]
    assert Stream(XMem(mem_every=5, **PUBLISHED)).run(12).masses.keys() == set(range(6, 13)), "nothing to count before"
    assert Stream(XMem(mem_every=1, long_term=False)).run(9).masses == {}


def test_missing_usage_is_an_error():
    stream = Stream(XMem(mem_every=1)).run(2)
    hypotheses = Hypotheses(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 8), ((1.0,),), (10.0,))
    with pytest.raises(ValueError, match="expected the attention"):
        stream.policy.write(stream.state, stream.frame(3), hypotheses, FIRST, [stream.entry(3)])


# -- reading ----------------------------------------------------------------------------------------------------------


def slots(policy: XMem, state: XMemBank, frame: FrameContext) -> dict[int | str, int | None]:
    """Temporal slot by frame; "long" for the prototypes."""
    frames = {id(e.tokens): e.frame for e in state.all_entries() if e.tokens is not None}
    return {frames.get(id(i.tokens), "long"): i.slot for i in policy.read(state, frame)[0].items}


@pytest.mark.parametrize(
    ("tpos", "expected"),
    [
        ("rank", {25: 1, 20: 1, 15: 2, 10: 3, 5: 4}),
        ("clamp", {25: 2, 20: 5, 15: 5, 10: 5, 5: 5}),
        ("prompt", dict.fromkeys((25, 20, 15, 10, 5), PROMPT_SLOT)),
        ("none", dict.fromkeys((25, 20, 15, 10, 5))),
    ],
)
def test_temporal_slots(tpos, expected):
    policy = XMem(tpos_policy=tpos, **PUBLISHED)
    stream = Stream(policy).run(27)
    found = slots(policy, stream.state, stream.frame(28))
    if tpos == "rank":
        assert found == {0: PROMPT_SLOT, 27: 0, 25: 1, 20: 2, 15: 3, 10: 4, 5: 5}
        found = slots(policy, stream.run(32).state, stream.frame(33))
        assert found == {0: PROMPT_SLOT, 32: 0, 30: 1, 25: 1, 20: 2, 15: 3, 10: 4, 5: 5}
    else:
        assert found == {0: PROMPT_SLOT, 27: 0} | expected


@pytest.mark.parametrize(("lt_tpos", "slot"), [("clamp", 5), ("prompt", PROMPT_SLOT), ("none", None)])
def test_temporal_slot_of_long_term_memory(lt_tpos, slot):
    policy = XMem(mem_every=1, lt_tpos=lt_tpos, **PUBLISHED)
    stream = Stream(policy).run(9)
    assert slots(policy, stream.state, stream.frame(10))["long"] == slot


def test_a_shorter_temporal_code_is_respected():
    policy = XMem(mem_every=1, num_maskmem=4, **PUBLISHED)
    stream = Stream(policy).run(12)
    assert max(slots(policy, stream.state, stream.frame(13)).values()) == 2


def test_the_previous_frame_is_read_once_and_always():
    policy = XMem()
    stream = Stream(policy).run(12)
    for t in range(2, 13):
        found = slots(policy, stream.states[t - 1], stream.frame(t))
        assert found[t - 1] == 0
        items = policy.read(stream.states[t - 1], stream.frame(t))[0].items
        assert len({id(i.tokens) for i in items}) == len(items)
    assert set(found) == {0, 5, 10, 11}


def test_pointers_are_those_of_fifo():
    policy, fifo = XMem(), FIFO()
    stream = Stream(policy).run(60)
    bank = fifo.prompt(None, stream.frame(0), stream.entry(0, is_prompt=True))
    for t in range(1, 61):
        ours = policy.read(stream.states[t - 1], stream.frame(t))[0].pointers
        theirs = fifo.read(bank, stream.frame(t))[0].pointers
        assert [(p.pointer[0].item(), p.offset) for p in ours] == [(p.pointer[0].item(), p.offset) for p in theirs]
        bank = fifo.write(bank, stream.frame(t), None, FIRST, [stream.entry(t)])
    assert len(ours) == 16


# -- several objects, prompts, direction ------------------------------------------------------------------------------


@pytest.mark.parametrize("join", [0, 2, 3, 4, 5, 6, 37])
def test_late_objects_pair_values_with_their_own_keys(join):
    """Every frame is one colour, in keys and values alike, so that a mispaired value would show."""
    stream = Stream(XMem(mem_every=1, **PUBLISHED), start=join)
    for t in range(join + 1, join + 25):
        stream.lows[t] = torch.full((Q, C), float(10 * (t - join)))
        stream.feats[t] = torch.full((Q, CM), float(t - join)).bfloat16()
    for t in range(join + 1, join + 25):
        state = stream.step(t)
        if t == join + 9:
            assert working(state) == [join + i for i in (0, 6, 7, 8, 9)]
    store = state.long_term
    colour = (store.source - join).float()
    assert len(store) == 4 * 128 and colour.unique().numel() > 4
    assert torch.equal(store.key.float(), (10 * colour)[:, None].expand(-1, C))
    assert torch.equal(store.tokens.feat.float(), colour[:, None].expand(-1, CM))
    for counted in state.working:
        entry = next(e for e in state.entries if e.frame == counted.frame)
        assert counted.key[0, 0].item() == 10 * entry.tokens.feat[0, 0].item()


def test_later_prompts_are_permanent_and_start_the_count_anew():
    policy = XMem(**PUBLISHED)
    stream = Stream(policy).run(12)
    prompted = policy.prompt(stream.state, stream.frame(13), stream.entry(13, is_prompt=True))
    stream.states[13], stream.now = prompted, 13
    stream.run(70)
    frames = [c.frame for c in stream.states[40].working]
    assert frames == [5, 10, 18, 23, 28, 33, 38]
    assert [p.frame for p in stream.state.prompts] == [0, 13]
    on_working = policy.prompt(stream.states[40], stream.frame(18), stream.entry(18, is_prompt=True))
    assert [c.frame for c in on_working.working] == [5, 10, 23, 28, 33, 38]
    found = slots(policy, on_working, stream.frame(41))
    assert found[18] == found[13] == found[0] == PROMPT_SLOT


def test_prompts_are_bounded_and_the_first_stays():
    policy = XMem(max_prompts=3)
    stream = Stream(policy).run(3)
    state = stream.state
    for t in (4, 5, 6, 7):
        state = policy.prompt(state, stream.frame(t), stream.entry(t, is_prompt=True))
    assert [p.frame for p in state.prompts] == [0, 6, 7]
    taken_back = policy.unprompt(state, 7)
    assert [p.frame for p in taken_back.prompts] == [0, 6]
    assert policy.unprompt(policy.unprompt(taken_back, 0), 6) is None


def test_forgetting_drops_working_frames_and_prototypes_nearby():
    policy = XMem(mem_every=1, **PUBLISHED)
    stream = Stream(policy).run(16)
    assert {1, 5, 8} <= set(stream.state.long_term.source.tolist())
    state = policy.forget(stream.state, 8, 3)
    assert set(state.long_term.source.tolist()) <= {1, 2, 3, 4}
    assert [c.frame for c in state.working] == [12, 13, 14, 15, 16]
    assert policy.forget(stream.state, 8, 20).long_term is None
    assert stored(stream.state) == 256, "the old state is untouched"


def test_backwards_and_over_the_same_frames_again():
    policy = XMem(**PUBLISHED)
    stream = Stream(policy, start=100)
    for t in range(99, 40, -1):
        stream.step(t, reverse=True)
    assert working(stream.state) == [100, 70, 65, 60, 55, 50, 45]
    found = slots(policy, stream.state, stream.frame(40, reverse=True))
    assert found == {100: PROMPT_SLOT, 41: 0, 45: 1, 50: 1, 55: 2, 60: 3, 65: 4, 70: 5, "long": 5}
    for t in range(101, 130):
        stream.step(t)
    again = Stream(policy).run(33)
    for t in range(1, 34):
        again.step(t)
        held = [c.frame for c in again.state.working]
        assert len(held) == len(set(held)) <= 8
        assert t not in slots(policy, again.state, again.frame(t)), "a frame does not read itself"


@pytest.mark.parametrize("mode", ["write", "skip"])
def test_frames_without_the_object(mode):
    stream = Stream(XMem(absent_frames=mode)).run(4)
    for t in range(5, 9):
        stream.step(t, objectness=-3.0)
    stream.run(11)
    assert [c.frame for c in stream.state.working] == ([5, 10] if mode == "write" else [9])
    assert slots(stream.policy, stream.states[7], stream.frame(8))[7] == 0


# -- what is held -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{}, {"long_term": False}, {"long_term": False, "working": "window"}, {"max_working": 2, "min_working": 1}],
)
def test_everything_stays_bounded(change):
    sizes = {"mem_every": 2, "max_working": 5, "min_working": 2, "max_long_term": 100, "num_prototypes": 20}
    policy = XMem(**({"max_prompts": 2} | sizes | change))
    stream = Stream(policy)
    counts, sizes_in_bytes = [], []
    for t in range(1, 200):
        state = stream.step(t)
        counts.append(state.token_count())
        sizes_in_bytes.append(tensor_bytes(state.tensors()))
        assert len(state.entries) < 40
        assert torch.isfinite(policy.read(state, stream.frame(t + 1))[0].items[-1].tokens.feat.float()).all()
    assert max(counts) <= policy.capacity(Q)
    assert max(sizes_in_bytes[100:]) <= max(sizes_in_bytes[:100]) + (0 if policy.long_term else 1)
    assert max(counts) > (2 * Q)


def test_objects_share_image_keys_and_bytes_count_them():
    policy = XMem(mem_every=1, **PUBLISHED)
    features = [replace(features_at(t), index=t) for t in range(12)]
    tracker = micro_tracker(policy)
    run(tracker, features, {0: [mask_prompt(1)], 3: [mask_prompt(2, 3, 1)]})
    one, two = (tracker.tracks[i].state for i in (1, 2))
    of_one = {c.frame: c.key for c in one.working}
    shared = [c.frame for c in two.working if c.frame in of_one and c.key.data_ptr() == of_one[c.frame].data_ptr()]
    assert shared == [6, 7, 8, 9, 10, 11]
    keys = sum(c.key.nbytes for c in two.working)
    without = replace(two, working=(), long_term=None)
    assert tensor_bytes(two.tensors()) >= tensor_bytes(without.tensors()) + keys
    both = tensor_bytes((*one.tensors(), *two.tensors()))
    assert both < tensor_bytes(one.tensors()) + tensor_bytes(two.tensors())
    assert one.token_count() == token_count(one.all_entries()) + stored(one)


def test_predictor_counts_keys_in_its_memory():
    predictor = micro_predictor(XMem(mem_every=1))
    session = predictor.init_state(np.stack(pictures(9)))
    predictor.add_new_mask(session, 0, 1, mask_prompt(1).mask.numpy())
    results = list(predictor.propagate(session))
    state = session.tracker.tracks[1].state
    assert results[-1].scores[0].tokens == state.token_count()
    of_state, keys = tensor_bytes(state.tensors()), sum(c.key.nbytes for c in state.working)
    assert session.memory_bytes() > of_state > 2 * keys > 0


def test_state_in_a_file_and_moved(tmp_path):
    policy = XMem(mem_every=1, **PUBLISHED)
    stream = Stream(policy).run(16)
    save_memory(tmp_path / "m", policy, stream.state)
    loaded = load_memory(tmp_path / "m", policy).shift_frames(100)
    there = replace(stream.frame(17), index=117)
    here_items, there_items = policy.read(stream.state, stream.frame(17))[0].items, policy.read(loaded, there)[0].items
    assert [i.slot for i in here_items] == [i.slot for i in there_items]
    assert all(torch.equal(a.tokens.feat, b.tokens.feat) for a, b in zip(here_items, there_items, strict=True))
    assert [c.frame for c in loaded.working] == [c.frame + 100 for c in stream.state.working]
    assert torch.equal(loaded.long_term.source, stream.state.long_term.source + 100)
    assert (loaded.last, loaded.prompts[0].frame) == (116, 100)


def test_keys_of_tokens_that_are_not_the_whole_grid():
    """Tokens without places, and places between cells."""
    for xy in (None, grid_xy(SIDE, SIDE, CPU)[::4] + 0.4):
        stream = Stream(XMem(mem_every=1, num_prototypes=10, **PUBLISHED))
        make = stream.entry

        def pooled(index: int, xy=xy, make=make, **scores) -> MemoryEntry:
            entry = make(index, **scores)
            tokens = MemoryTokens(entry.tokens.feat[::4], entry.tokens.pos[::4], xy, torch.full((9,), 1.4))
            return replace(entry, tokens=tokens)

        stream.entry = pooled
        store = stream.run(9).state.long_term
        assert len(store) == 10 and (store.tokens.xy is None) == (xy is None)
        assert torch.equal(store.tokens.log_count, torch.full((10,), 1.4))
        assert torch.isfinite(store.tokens.feat.float()).all()
        counted = stream.state.working[-1]
        low = stream.lows[counted.frame].bfloat16()
        if xy is None:
            expected = low.float().mean(0).expand(9, -1)
        else:
            image = low.float().t().reshape(1, -1, SIDE, SIDE)
            where = (xy / (SIDE - 1) * 2 - 1)[None, None]
            expected = F.grid_sample(image, where, padding_mode="border", align_corners=True)[0, :, 0].t()
        assert torch.allclose(counted.key.float(), expected, atol=1e-2)
        assert not torch.allclose(counted.key.float(), low[::4].float(), atol=1e-2)


# -- with the network -------------------------------------------------------------------------------------------------


def logits(policy, order: list[int], prompts: dict, reverse_from: int | None = None) -> Tensor:
    tracker = micro_tracker(policy)
    results = run(tracker, [replace(features_at(t), index=t) for t in order], prompts)
    if reverse_from is not None:
        back = [replace(features_at(t), index=t) for t in range(reverse_from, -1, -1)]
        results += run(tracker, back, {}, reverse=True)
    return torch.cat([r.masks.flatten() for r in results])


@pytest.mark.full
def test_window_is_fifo():
    prompts = {8: [mask_prompt(1, 8), click_prompt(2, 8, 1)], 20: [click_prompt(1, 20)], 25: [mask_prompt(3, 25, 2)]}
    policy = XMem(working="window", long_term=False, mem_every=1)
    ours = logits(policy, list(range(8, 40)), prompts, reverse_from=30)
    assert torch.allclose(ours, logits(FIFO(), list(range(8, 40)), prompts, reverse_from=30), atol=1e-5)
    assert not torch.allclose(ours, logits(XMem(), list(range(8, 40)), prompts, reverse_from=30), atol=1e-2)
    strided = logits(replace(policy, mem_every=3), list(range(8, 40)), prompts)
    expected = logits(FIFO(memory_temporal_stride_for_eval=3), list(range(8, 40)), prompts)
    assert torch.allclose(strided, expected, atol=1e-5)


def test_every_frame_without_long_term_is_fifo():
    prompts = {0: [mask_prompt(1), click_prompt(2, 0, 1)]}
    policy = XMem(long_term=False, mem_every=1, max_working=7)
    ours = logits(policy, list(range(25)), prompts)
    assert torch.allclose(ours, logits(FIFO(), list(range(25)), prompts), atol=1e-5)
    other = XMem(long_term=False, mem_every=1, max_working=6)
    assert not torch.allclose(ours, logits(other, list(range(25)), prompts), atol=1e-2)


def test_real_attention_is_booked_and_prototypes_are_read():
    policy = XMem(mem_every=1, max_working=5, min_working=2, num_prototypes=6, max_long_term=20)
    tracker = micro_tracker(policy)
    features = [replace(features_at(t), index=t) for t in range(30)]
    results = run(tracker, features, {0: [mask_prompt(1)]})
    store = tracker.tracks[1].state.long_term
    assert len(store) == 20 and store.use.sum() > 0
    assert all(torch.isfinite(r.masks).all() for r in results)
    plain = run(micro_tracker(replace(policy, long_term=False)), features, {0: [mask_prompt(1)]})
    first_with = next(t for t in range(30) if not torch.equal(results[t].masks, plain[t].masks))
    assert first_with >= 5, "long-term memory exists from the write of frame 4 on"
    changes = {"lt_mode": "distilled", "lt_tpos": "prompt", "tpos_policy": "none", "usage_every": 7}
    for change in ({name: value} for name, value in changes.items()):
        other = run(micro_tracker(replace(policy, **change)), features, {0: [mask_prompt(1)]})
        assert any(not torch.equal(a.masks, b.masks) for a, b in zip(results, other)), change


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"mem_every": 0},
        {"min_working": 6},
        {"num_prototypes": 5000},
        {"evict_buffer": 4000},
        {"working": "window"},
        {"lt_mode": "readout"},
        {"lt_tpos": "last"},
        {"max_cond_frames_in_attn": 1},
        {"usage_every": 0},
    ],
)
def test_wrong_settings_say_what_was_expected(wrong):
    with pytest.raises(ValueError, match="expected .* got|expected .*(False)"):
        XMem(**wrong)


def test_features_are_needed():
    stream = Stream(XMem())
    with pytest.raises(ValueError, match="expected the features of the frame"):
        stream.policy.prompt(None, FrameContext(0), stream.entry(0))
    assert XMem(long_term=False).prompt(None, FrameContext(0), stream.entry(0)).space is None


def test_without_working_memory():
    """The setting of the ablation in docs/evaluation.md: of tracked frames only the previous one and prototypes are read."""
    policy = XMem(max_working=2, min_working=1)
    stream = Stream(policy).run(40)
    for t in range(7, 41):
        assert set(slots(policy, stream.states[t - 1], stream.frame(t))) == {0, "long", t - 1}
    usual = XMem()
    assert len(slots(usual, Stream(usual).run(40).state, stream.frame(41))) > 3, "control"
