"""HQ-SMem's smart memory: Eq. 3 to 7, their published oddities, and every reading of them."""

from __future__ import annotations

from dataclasses import replace

import micro
import numpy as np
import pytest
import torch
from torch import Tensor

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policies.hq_smem import HQSMem, Resemblance, SmartBank
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.tracking.embedders import AppearanceMap
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    FrameFeatures,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
)

WIDTH = 24
ONE = MaskSelection(output=CandidateId(0, 0), remember=(CandidateId(0, 0),))
NOTHING = Hypotheses(masks=torch.zeros(1, 1, 2, 2), pointers=torch.zeros(1, 1, 8), iou=((1.0,),), objectness=(1.0,))
AS_FIFO = {"gap": 1, "cap": 7, "tau_mem": 1.01, "overflow": "oldest", "skip_absent": False}


def entry(frame: int, z: Tensor | None, *, prompt: bool = False, score: float = 5.0) -> MemoryEntry:
    tokens = MemoryTokens(torch.full((6, 2), float(frame)), torch.zeros(6, 2))
    pointer = torch.zeros(WIDTH) if z is None else z
    return MemoryEntry(frame, tokens, pointer, objectness=score, is_prompt=prompt, summary=z)


def axis(i: int) -> Tensor:
    return torch.eye(WIDTH, dtype=torch.float64)[i]


def alike(i: int, cosine: float) -> Tensor:
    """Unit vectors of which every two have this cosine."""
    return cosine**0.5 * axis(WIDTH - 1) + (1 - cosine) ** 0.5 * axis(i)


def advance(policy: HQSMem, state: SmartBank, t: int, z: Tensor | None, **kind) -> SmartBank:
    return policy.write(state, FrameContext(t, **kind), NOTHING, ONE, [entry(t, z)])


def start(policy: HQSMem, z: Tensor | None) -> SmartBank:
    return policy.prompt(None, FrameContext(0), entry(0, z, prompt=True))


def frames(state: SmartBank) -> list[int]:
    return [e.frame for e in state.bank()]


# -- what the equations do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score, expected", [("literal", [0, 1, 2, 3, 4, 13]), ("age", [0, 9, 10, 11, 12, 13])])
@pytest.mark.parametrize("unit", ["frames", "updates"])
def test_which_of_equally_similar_frames_leaves(score, expected, unit):
    policy = HQSMem(gap=1, score=score, tau_mem=0.9, age_unit=unit)
    state = start(policy, alike(0, 0.5))
    for t in range(1, 6):
        state = advance(policy, state, t, alike(t, 0.5))
    assert frames(state) == [0, 1, 2, 3, 4, 5]
    policy = replace(policy, tau_mem=0.4)
    for t in range(6, 14):
        state = advance(policy, state, t, alike(t, 0.5))
    assert frames(state) == expected
    assert (state.added, state.replaced) == (5, 8)


def test_unprotected_the_annotated_frame_leaves_at_the_first_update():
    literal = HQSMem(gap=1, protect_first=False)
    state = advance(literal, start(literal, axis(0)), 1, axis(0))
    assert frames(state) == [1]
    assert state.prompts == () and state.prompted_frames() == [0] and state.pointers[0].is_prompt
    read = literal.read(state, FrameContext(2))[0]
    assert [i.slot for i in read.items] == [0] and [p.offset for p in read.pointers] == [2 / 15, 1 / 15]
    protected = HQSMem(gap=1)
    assert frames(advance(protected, start(protected, axis(0)), 1, axis(0))) == [0, 1]


@pytest.mark.parametrize("cap", [2, 4, 7])
@pytest.mark.parametrize("overflow", ["age", "oldest"])
def test_what_never_resembles_anything_stays_at_the_cap(cap, overflow):
    policy = HQSMem(gap=1, cap=cap, overflow=overflow)
    state = start(policy, axis(0))
    for t in range(1, 20):
        state = advance(policy, state, t, axis(t))
        assert len(frames(state)) == min(cap, t + 1)
    assert frames(state) == [0, *range(21 - cap, 20)]
    assert state.replaced == 0 and state.added == 19


def test_without_a_cap_it_grows():
    policy = HQSMem(gap=1, cap=None)
    state = start(policy, axis(0))
    for t in range(1, 20):
        state = advance(policy, state, t, axis(t))
    assert frames(state) == list(range(20)) and policy.capacity(6) is None


@pytest.mark.parametrize("protect, size", [(True, 2), (False, 1)])
def test_a_scene_that_stays_alike_holds_the_bank_at_its_least(protect, size):
    policy = HQSMem(gap=1, protect_first=protect)
    state = start(policy, axis(0))
    for t in range(1, 20):
        state = advance(policy, state, t, 0.99 * axis(0) + 0.1 * axis(t))
        assert len(frames(state)) == size
    assert frames(state)[-1] == 19


@pytest.mark.parametrize("weight, literal", [(0.0, 1), (1.0, 1), (2.0, None), (5.0, None)])
def test_the_gate_looks_at_the_largest_score_not_at_the_largest_likeness(weight, literal):
    duplicate, recent = Resemblance(1, 0.95, 50), Resemblance(46, 0.75, 5)
    assert HQSMem(freshness_weight=weight).replaced_by([duplicate, recent]) == literal
    assert HQSMem(freshness_weight=weight, gate="max_rel").replaced_by([duplicate, recent]) == 1
    assert HQSMem(tau_mem=0.96, gate="max_rel").replaced_by([duplicate, recent]) is None
    assert HQSMem().replaced_by([]) is None


def test_the_threshold_counts_as_reached():
    assert HQSMem(tau_mem=0.5).replaced_by([Resemblance(3, 0.5, 1)]) == 3
    assert HQSMem(tau_mem=0.5).replaced_by([Resemblance(3, 0.4999, 1)]) is None


# -- against slow equations -------------------------------------------------------------------------------------------


class Literal:
    """Eq. 3 to 7 with the options that the paper leaves open, in loops over plain lists."""

    def __init__(self, policy: HQSMem, z: np.ndarray) -> None:
        self.p, self.bank, self.born, self.updates, self.last = policy, {0: z}, {0: 0}, 0, 0

    def relevance(self, j: int, z: np.ndarray | None) -> float:
        if z is None or self.bank[j] is None:
            return 0.0
        a, b = self.bank[j], z
        cosine = float(a @ b) / float(np.sqrt(a @ a) * np.sqrt(b @ b))
        return max(cosine, 0.0) if self.p.clamp_negative else cosine

    def score(self, j: int, t: int, z: np.ndarray | None, rule: str) -> float:
        age = t - j if self.p.age_unit == "frames" else self.updates + 1 - self.born[j]
        fresh = 1 / age
        return self.relevance(j, z) * (1 + self.p.freshness_weight * (fresh if rule == "literal" else 1 - fresh))

    def step(self, t: int, z: np.ndarray | None, absent: bool) -> None:
        if t - self.last < self.p.gap or (self.p.skip_absent and (absent or z is None)):
            return
        free = [j for j in self.bank if j != 0 or not self.p.protect_first]
        pool = [j for j in free if self.relevance(j, z) >= self.p.tau_mem] if self.p.gate == "max_rel" else free
        gone = None
        if pool:
            best = max(pool, key=lambda j: self.score(j, t, z, self.p.score))
            gone = best if self.relevance(best, z) >= self.p.tau_mem else None
        if gone is None and len(self.bank) == self.p.cap:
            by_age = sorted(free)
            gone = by_age[0] if self.p.overflow == "oldest" else max(by_age, key=lambda j: self.score(j, t, z, "age"))
        if gone is not None:
            del self.bank[gone]
        self.updates += 1
        self.bank[t], self.born[t], self.last = z, self.updates, t


def drawn(rng: np.random.Generator) -> HQSMem:
    pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
    return HQSMem(
        score=pick("literal", "age"),
        freshness_weight=pick(0.0, 1.0, 3.0),
        protect_first=pick(True, False),
        cap=pick(3, 5, 7),
        overflow=pick("age", "oldest"),
        gate=pick("zdel", "max_rel"),
        tau_mem=pick(0.3, 0.6, 0.9),
        age_unit=pick("frames", "updates"),
        gap=pick(1, 2, 3),
        clamp_negative=pick(True, False),
        skip_absent=pick(True, False),
        embed=pick("obj_pool", "pointer"),
    )


@pytest.mark.parametrize("seed", range(24))
def test_random_streams_agree_with_the_equations(seed):
    rng = np.random.default_rng(seed)
    policy = drawn(rng)
    centres = rng.normal(size=(3, 4))
    z = centres[0]
    state = start(policy, torch.from_numpy(z))
    literal = Literal(policy, z)
    sizes = set()
    for t in range(1, 90):
        z = centres[rng.integers(3)] + rng.normal(size=4) * 0.3
        if policy.embed == "obj_pool" and rng.random() < 0.1:
            z = None
        absent = rng.random() < 0.15
        literal.step(t, z, absent)
        one = entry(t, None if z is None else torch.from_numpy(z), score=-1.0 if absent else 1.0)
        state = policy.write(state, FrameContext(t), NOTHING, ONE, [one])
        assert frames(state) == list(literal.bank)
        sizes.add(len(literal.bank))
    assert state.added + state.replaced == literal.updates > 10


def test_the_fields_matter_to_the_streams():
    """Control of the test above: every option changes the bank of some stream."""

    def last(policy: HQSMem, seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(3, 4))
        state = start(policy, torch.from_numpy(centres[0]))
        for t in range(1, 60):
            z = torch.from_numpy(centres[rng.integers(3)] + rng.normal(size=4) * 0.5)
            state = policy.write(state, FrameContext(t), NOTHING, ONE, [entry(t, z, score=rng.normal() + 1)])
        return frames(state)

    base = HQSMem(gap=1, tau_mem=0.6, freshness_weight=3.0)
    others = {
        "score": "age",
        "freshness_weight": 0.0,
        "protect_first": False,
        "cap": 5,
        "overflow": "oldest",
        "gate": "max_rel",
        "tau_mem": 0.9,
        "gap": 2,
        "skip_absent": False,
    }
    for name, value in others.items():
        assert any(last(base, s) != last(replace(base, **{name: value}), s) for s in range(5)), name
    sparse = replace(base, gap=3)
    assert any(last(sparse, s) != last(replace(sparse, age_unit="updates"), s) for s in range(8))
    full = replace(base, tau_mem=0.99)
    assert any(last(full, s) != last(replace(full, clamp_negative=False), s) for s in range(8))


# -- the embedding ----------------------------------------------------------------------------------------------------


def features(low: Tensor, index: int = 0) -> FrameFeatures:
    return FrameFeatures(index, low, low, (torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)), (1, len(low)))


def test_pooled_features_lose_the_mean_of_the_first_frame():
    policy = HQSMem(gap=1)
    common = 100.0 * axis(0)
    low = torch.stack([common + axis(1), common - axis(1)])
    state = policy.prompt(None, FrameContext(0, features(low)), entry(0, common + axis(1), prompt=True))
    assert torch.allclose(state.prompts[0].summary.double(), axis(1), atol=1e-4)
    later = FrameContext(1, features(low + 7, 1))
    state = policy.write(state, later, NOTHING, ONE, [entry(1, common + axis(1) + axis(2))])
    half = 0.5**0.5
    assert torch.allclose(state.members()[0].summary.double(), half * (axis(1) + axis(2)), atol=1e-4)
    assert torch.equal(state.centre, common)


def test_other_embeddings():
    low = torch.stack([axis(1), 3 * axis(1)])
    one = replace(entry(0, axis(5), prompt=True), pointer=axis(7))
    for embed, z in (("frame_pool", axis(1)), ("pointer", axis(7)), ("dino", axis(5))):
        policy = HQSMem(embed=embed)
        state = policy.prompt(None, FrameContext(0, features(low)), one)
        assert torch.equal(state.prompts[0].summary.double(), z)
        assert policy.needs.summary == (embed == "dino") == policy.needs.appearance


def test_an_object_without_pixels_is_not_an_update():
    policy = HQSMem(gap=1)
    state = start(policy, axis(0))
    assert frames(advance(policy, state, 1, None)) == [0]
    assert frames(advance(policy, advance(policy, state, 1, None), 2, axis(0))) == [0, 2]
    keen = HQSMem(gap=1, skip_absent=False)
    assert frames(advance(keen, advance(keen, start(keen, axis(0)), 1, None), 2, None)) == [0, 1, 2]


def test_an_annotation_without_pixels_resembles_nothing():
    policy = HQSMem(gap=1, protect_first=False, tau_mem=0.5)
    assert frames(advance(policy, start(policy, None), 1, axis(0))) == [0, 1]


# -- reading and keeping ----------------------------------------------------------------------------------------------


def test_bank_previous_frame_and_pointers_are_read():
    policy = HQSMem()
    state = start(policy, axis(0))
    for t in range(1, 23):
        state = advance(policy, state, t, axis(t))
    read = policy.read(state, FrameContext(23))[0]
    assert [(int(i.tokens.feat[0, 0]), i.slot) for i in read.items] == [
        (0, PROMPT_SLOT), (5, 4), (10, 3), (15, 2), (20, 1), (22, 0),
    ]  # fmt: skip
    assert [round(p.offset * 15) for p in read.pointers] == [23, *range(1, 16)]
    assert all(e.summary is None for e in state.entries if e.frame not in state.kept)


@pytest.mark.parametrize("num_frames, gap", [(None, 5), (60, 5), (300, 10)])
def test_gap(num_frames, gap):
    policy = HQSMem()
    state = start(policy, axis(0))
    for t in range(1, 23):
        state = advance(policy, state, t, axis(t), num_frames=num_frames)
    assert frames(state) == list(range(0, 23, gap))


def test_prompts_cannot_leave():
    policy = HQSMem(gap=1, cap=4, max_prompts=4)
    state = start(policy, axis(0))
    for t in range(1, 20):
        if t in (5, 11, 15):
            state = policy.prompt(state, FrameContext(t), entry(t, axis(0), prompt=True))
        else:
            state = advance(policy, state, t, axis(0))
    assert frames(state) == [0, 5, 11, 15, 19]
    freed = policy.unprompt(state, 5)
    assert frames(advance(policy, freed, 20, axis(0))) == [0, 11, 15, 20]


def test_prompts_without_tokens_count_as_prompts():
    policy = HQSMem(gap=1, protect_first=False, max_prompts=3)
    state = start(policy, axis(0))
    for t in range(1, 20, 2):
        state = policy.prompt(state, FrameContext(t), entry(t, axis(0), prompt=True))
        state = advance(policy, state, t + 1, axis(0))
        assert len(state.prompted_frames()) <= 3
    assert state.prompted_frames() == [0, 17, 19] and [e.frame for e in state.pointers if e.is_prompt] == [0, 17, 19]
    freed = policy.unprompt(state, 17)
    assert freed.prompted_frames() == [0, 19] and freed.tracked()[17].tokens is None


def test_revisited_frames_replace_their_older_selves():
    policy = HQSMem(gap=2, tau_mem=1.01)
    state = start(policy, axis(0))
    for t in [*range(1, 9), *range(1, 9)]:
        state = advance(policy, state, t, axis(t))
        assert len(set(frames(state))) == len(frames(state)) <= 7
    assert all(e.summary is not None for e in state.members())


def test_memory_is_bounded():
    policy = HQSMem(gap=2)
    state = start(policy, axis(0))
    rng = torch.Generator().manual_seed(0)
    for t in range(1, 300):
        state = advance(policy, state, t, torch.randn(WIDTH, generator=rng))
        assert sum(len(e.tokens) for e in state.all_entries() if e.tokens is not None) <= policy.capacity(6)
    assert len(state.all_entries()) <= 7 + 30 and len(state.arrivals) == 7


def test_saved_and_moved(tmp_path):
    policy = HQSMem(gap=1)
    state = start(policy, axis(0))
    for t in range(1, 9):
        state = advance(policy, state, t, axis(t))
    save_memory(tmp_path / "m.pt", policy, state)
    moved = load_memory(tmp_path / "m.pt", policy).shift_frames(100)
    assert frames(moved) == [f + 100 for f in frames(state)]
    assert moved.arrivals == tuple((f + 100, n) for f, n in state.arrivals)
    assert frames(advance(policy, moved, 109, axis(3))) == [f + 100 for f in frames(advance(policy, state, 9, axis(3)))]


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": "newest"},
        {"freshness_weight": -1.0},
        {"cap": 1},
        {"overflow": "none"},
        {"gate": "max"},
        {"tau_mem": 3.0},
        {"tau_mem": float("nan")},
        {"embed": "clip"},
        {"age_unit": "seconds"},
        {"gap": 0},
        {"tpos_policy": "x"},
        {"max_prompts": 0},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ValueError, match=f"expected .*{next(iter(wrong))}.* got"):
        HQSMem(**wrong)


def test_presets():
    assert build_policy("hq_smem") == HQSMem()
    assert build_policy("hq_smem_stock_cost") == HQSMem(cap=6)
    assert build_policy("hq_smem_literal") == HQSMem(protect_first=False, cap=32, clamp_negative=False)


# -- in the tracker ---------------------------------------------------------------------------------------------------


def tracked(policy, count: int = 30) -> Tensor:
    prompts = {0: [micro.mask_prompt(1), micro.click_prompt(2, number=1)], 3: [micro.mask_prompt(3, 3, 2)]}
    return torch.cat([r.masks for r in micro.run(micro.micro_tracker(policy), micro.micro_features(count), prompts)])


def test_every_frame_and_nothing_alike_is_fifo():
    plain = tracked("fifo")
    assert (plain - tracked(HQSMem(**AS_FIFO))).abs().max() < 1e-5
    for change in ({"gap": 2}, {"cap": 6}, {"tau_mem": 0.5}):
        assert (plain - tracked(HQSMem(**{**AS_FIFO, **change}))).abs().max() > 1e-2


def test_pooled_features_come_from_the_tracker():
    tracker = micro.micro_tracker(HQSMem(gap=2))
    micro.run(tracker, micro.micro_features(40), {0: [micro.mask_prompt(i + 1, 0, i) for i in range(3)]})
    state = tracker.tracks[1].state
    assert sum(t.state.updates for t in tracker.tracks.values()) > 3
    for e in (e for t in tracker.tracks.values() for e in t.state.bank()):
        assert e.summary.shape == (32,) and e.summary.norm() == pytest.approx(1.0, abs=1e-4)
    first = micro.features_at(0)
    weights = torch.from_numpy(micro.blob(0).reshape(4, 16, 4, 16).mean((1, 3))).reshape(-1).float()
    inside = weights @ first.low / weights.sum() - first.low.mean(0)
    assert torch.cosine_similarity(inside, state.prompts[0].summary, dim=0) > 0.95
    assert torch.cosine_similarity(first.low.mean(0), state.prompts[0].summary, dim=0) < 0.9


def test_embedding_of_another_network():
    def colours(picture: Tensor) -> AppearanceMap:
        pooled = torch.nn.functional.adaptive_avg_pool2d(picture[None], (8, 8))[0]
        return AppearanceMap(pooled.flatten(1).t(), (8, 8))

    policy = HQSMem(embed="dino", gap=2)
    predictor = SAM2VideoPredictor(micro.micro_model(), policy, embedder=colours)
    session = predictor.init_state(np.stack(micro.pictures(8)))
    predictor.add_new_mask(session, 0, 1, micro.blob(0))
    list(predictor.propagate_in_video(session))
    summary = session.tracker.tracks[1].state.prompts[0].summary
    assert summary.shape == (3,) and summary.norm() == pytest.approx(1.0, abs=1e-4)


def test_embedding_of_another_network_needs_one():
    policy = HQSMem(embed="dino")
    with pytest.raises(ValueError, match="expected an embedder for this HQSMem"):
        SAM2VideoPredictor(micro.micro_model(), policy)
    with pytest.raises(ValueError, match="expected features with an appearance map"):
        micro.run(micro.micro_tracker(policy), micro.micro_features(2), {0: [micro.mask_prompt(1)]})
