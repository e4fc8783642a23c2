"""SAM2Long: the bank, gains, the tree, output, the cost of equal pathways, and the whole rule against a literal one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from micro import (  # noqa: F401
    click_prompt,
    features_at,
    mask_prompt,
    micro_model,
    micro_predictor,
    micro_tracker,
    one_thread,
    pictures,
    run,
)
from streams import TOKENS, at, begin, entry, furthest, hypotheses, reads, remembered, track

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.sam2long import SAM2Long, Tree
from sam2_mem.memory.policies.sam2long.tree import Pathway
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.tracking.frame_loop import delayed
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    FrameResult,
    Hypotheses,
    MemoryEntry,
    MemoryRead,
    ObjectScore,
    Revision,
)

LIKE_FIFO = {
    "num_pathway": 1,
    "iou_thre": -1.0,
    "min_objectness": -np.inf,
    "gain_low": 1.0,
    "gain_high": 1.0,
    "skip_oldest_pointer": False,
}


def seen(iou: list[list[float]], objectness: list[float] | float, side: int = 4) -> Hypotheses:
    """Hypotheses of which only the scores matter; ``iou`` of each pathway."""
    scores = [objectness] * len(iou) if isinstance(objectness, int | float) else objectness
    return hypotheses(np.ones((len(iou), len(iou[0]), side, side), np.float32), iou, scores)


def repeated(state: Tree, iou: list[float], objectness: float) -> Hypotheses:
    """The same hypotheses for every pathway, as equal reads give."""
    return seen([iou] * max(1, len(state.pathways)), objectness)


def walk(policy: SAM2Long, frames: range, scores: dict[int, tuple[list[float], float]] | None = None) -> Tree:
    """A state in which all pathways have seen the same; by default good frames with an object score of 5."""
    state = begin(policy, frames[0] - 1)
    for t in frames:
        iou, objectness = (scores or {}).get(t, ([0.9, 0.5, 0.1], 5.0))
        state, _ = track(policy, state, at(t), repeated(state, iou, objectness))
    return state


def apart(policy: SAM2Long, *memories: list[MemoryEntry], scores: tuple[float, ...] = ()) -> Tree:
    """A tree with hand-made pathways and a prompt on frame 0."""
    scores = scores or (0.0,) * len(memories)
    return begin(policy).with_pathways(Pathway(s, tuple(m)) for s, m in zip(scores, memories))


THREE = [[entry(1, mark=m)] for m in (1, 2, 3)]


# The bank


def test_one_read_per_pathway_and_equal_pathways_share_one() -> None:
    policy = SAM2Long()
    assert len(policy.read(begin(policy), at(1))) == 1
    same = policy.read(walk(policy, range(1, 5)), at(5))
    assert len(same) == 3 and same[0] is same[1] is same[2]
    other = policy.read(apart(policy, *THREE), at(2))
    assert len({r.key() for r in other}) == 3, "control"


def test_frames_below_the_thresholds_are_not_read() -> None:
    """Accepted: predicted IoU above .1 and object score above 0, both strictly; and the previous frame in any case."""
    policy = SAM2Long()
    bad = {2: ([0.1, 0, 0], 5.0), 4: ([0.9, 0, 0], 0.0), 6: ([0.05, 0, 0], 5.0), 9: ([0.9, 0, 0], -5.0)}
    state = walk(policy, range(1, 10), bad)
    found = reads(policy, state, at(10))[0]
    assert [(f, s) for f, s, _ in found.maps] == [(0, PROMPT_SLOT), (1, 5), (3, 4), (5, 3), (7, 2), (8, 1), (9, 0)]
    state, _ = track(policy, state, at(10), repeated(state, [0.9, 0, 0], 5.0))
    assert 9 not in reads(policy, state, at(11))[0].frames
    paper = SAM2Long(iou_thre=0.3)
    assert reads(paper, walk(paper, range(1, 4), {1: ([0.3, 0, 0], 5.0)}), at(4))[0].frames == [0, 2, 3]


def test_slots_go_by_rank_however_old_the_frame() -> None:
    policy = SAM2Long()
    gone = {t: ([0.9, 0, 0], -5.0) for t in range(5, 500)}
    found = reads(policy, walk(policy, range(1, 500), gone), at(500))[0]
    assert [(f, s) for f, s, _ in found.maps] == [(0, PROMPT_SLOT), (1, 4), (2, 3), (3, 2), (4, 1), (499, 0)]
    assert [(f, round(o * 15)) for f, o, _ in found.pointers] == [(0, 500), (2, 4), (3, 3), (4, 2), (499, 1)]


@pytest.mark.parametrize("t, maps, pointers", [(1, 1, 1), (2, 2, 1), (3, 3, 2), (5, 5, 4), (16, 7, 15), (30, 7, 15)])
def test_the_oldest_pointer_is_skipped(t: int, maps: int, pointers: int) -> None:
    """As in the code: with a prompt on frame 0, frame 2 reads two maps and one pointer, frame 5 five maps and four."""
    policy = SAM2Long()
    state = walk(policy, range(1, t)) if t > 1 else begin(policy)
    found = reads(policy, state, at(t))[0]
    assert (len(found.maps), len(found.pointers)) == (maps, pointers)
    fixed = replace(policy, skip_oldest_pointer=False)
    assert len(reads(fixed, state, at(t))[0].pointers) == min(t, 16), "control"


# Gains


def gains(read: MemoryRead) -> tuple[dict[int, float], dict[int, float]]:
    maps = {int(i.tokens.feat[0, 0]): i.gain for i in read.items}
    return maps, {int(p.pointer[0]): p.gain for p in read.pointers}


def test_gains_follow_the_order_of_object_scores() -> None:
    policy = SAM2Long()
    logits = {1: 3.0, 2: 12.0, 3: 1.0, 4: -2.0}
    memory = [entry(f, objectness=o) for f, o in logits.items()]
    maps, pointers = gains(policy.read(apart(policy, memory), at(5))[0])
    steps = np.linspace(0.95, 1.05, 5)
    expected = {4: steps[0], 3: steps[1], 1: steps[2], 0: steps[3], 2: steps[4]}
    assert maps == pytest.approx(expected), "the prompt counts as 10; a frame above that outranks it"
    steps = np.linspace(0.95, 1.05, 4)
    assert pointers == pytest.approx({4: steps[0], 3: steps[1], 0: steps[2], 2: steps[3]}), "without the oldest, 1"


def test_gains_of_few() -> None:
    policy = SAM2Long()
    assert gains(policy.read(begin(policy), at(1))[0]) == ({0: 1.0}, {0: 1.0}), "a single map goes without"
    maps, pointers = gains(policy.read(walk(policy, range(1, 2)), at(2))[0])
    assert maps == pytest.approx({0: 1.05, 1: 0.95})
    assert pointers == pytest.approx({0: 0.95}), "a single pointer beside two maps"
    fixed = SAM2Long(lower_lone_pointer=False)
    assert gains(fixed.read(walk(fixed, range(1, 2)), at(2))[0])[1] == {0: 1.0}


def test_equal_object_scores_favour_prompts_then_new_frames() -> None:
    policy = SAM2Long()
    maps, _ = gains(policy.read(apart(policy, [entry(f, objectness=10.0) for f in (1, 2, 3)]), at(4))[0])
    assert sorted(maps, key=maps.get) == [1, 2, 3, 0]


# The tree


def survivors(policy: SAM2Long, state: Tree, found: Hypotheses) -> list[tuple[int, int]]:
    return [(p.pathway, p.candidate) for p in policy.choose(state, at(2), found).remember]


def test_scores_are_sums_of_logs() -> None:
    policy = SAM2Long()
    state = apart(policy, *THREE, scores=(0.0, -0.1, -0.2))
    found = seen([[0.5, 0.1, 0.1], [0.56, 0.1, 0.1], [0.62, 0.1, 0.1]], 5.0)
    assert survivors(policy, state, found) == [(2, 0), (1, 0), (0, 0)]
    after, _ = track(policy, state, at(2), found)
    expected = [math.log(i + 1e-5) + s for s, i in ((-0.2, 0.62), (-0.1, 0.56), (0.0, 0.5))]
    assert [p.score for p in after.pathways] == pytest.approx([e - expected[0] for e in expected])
    assert [p.entries[0].tokens.feat[0, 1] for p in after.pathways] == [3, 2, 1], "each goes on from its own parent"
    assert survivors(policy, apart(policy, *THREE), found)[0] == (2, 0), "control: from equal scores"


def test_the_first_frame_is_greedy_and_does_not_count() -> None:
    policy = SAM2Long()
    state, choice = track(policy, begin(policy), at(1), seen([[0.2, 0.8, 0.5]], 0.1))
    assert choice.remember == (CandidateId(0, 1),) * 3 and choice.output == CandidateId(0, 1)
    assert [p.score for p in state.pathways] == [0.0] * 3
    assert len(state.entries) == 1


def test_pathways_stay_equal_until_the_first_uncertain_frame() -> None:
    policy = SAM2Long()
    state = walk(policy, range(1, 20))
    for pathway in state.pathways:
        assert all(a is b for a, b in zip(pathway.entries, state.pathways[0].entries, strict=True))
    assert survivors(policy, state, repeated(state, [0.9, 0.5, 0.1], -2.01)) == [(0, 0), (1, 0), (2, 0)], "absent"
    assert survivors(policy, state, repeated(state, [0.9, 0.5, 0.1], 2.0)) == [(0, 0), (0, 1), (0, 2)]
    after, _ = track(policy, state, at(20), repeated(state, [0.9, 0.5, 0.1], 2.0))
    assert len({p.memory_key() for p in after.pathways}) == 3


def test_one_sure_pathway_makes_the_frame_certain_for_all() -> None:
    policy = SAM2Long()
    iou = [[0.9, 0.9, 0.9], [0.8, 0.8, 0.8], [0.7, 0.7, 0.7]]
    assert survivors(policy, apart(policy, *THREE), seen(iou, [0.1, 0.1, 2.1])) == [(0, 0), (0, 1), (0, 2)]
    assert survivors(policy, apart(policy, *THREE), seen(iou, [0.1, 0.1, 1.9])) == [(0, 0), (1, 0), (2, 0)], "control"


def test_uncertain_pathways_differ_in_rounded_signed_iou() -> None:
    policy, state = SAM2Long(), apart(SAM2Long(), *THREE)
    iou = [[0.904, 0.896, 0.3], [0.9, 0.86, 0.2], [0.901, 0.85, 0.1]]
    assert survivors(policy, state, seen(iou, 1.0)) == [(0, 0), (1, 1), (2, 1)], ".90 once, then .86 and .85"
    assert survivors(policy, state, seen(iou, [1.0, -1.0, 1.0])) == [(0, 0), (1, 0), (1, 1)], "-.90 is not .90"
    coarse = SAM2Long(iou_decimals=1)
    assert survivors(coarse, state, seen(iou, 1.0)) == [(0, 0), (2, 1), (0, 2)]


def test_a_pathway_without_a_candidate_adds_its_best() -> None:
    """All nine round to the same value: the best one, then the best of the two others, although they are alike."""
    policy, state = SAM2Long(), apart(SAM2Long(), *THREE, scores=(0.0, -0.5, -0.6))
    same = [[0.501, 0.502, 0.5], [0.499, 0.498, 0.5], [0.5, 0.504, 0.503]]
    assert survivors(policy, state, seen(same, 1.0)) == [(0, 1), (1, 2), (2, 1)]
    two = [[0.501, 0.7, 0.5], [0.499, 0.498, 0.5], [0.5, 0.504, 0.503]]
    assert survivors(policy, state, seen(two, 1.0)) == [(0, 1), (0, 0), (1, 2)], "one place left: the first in order"


def test_other_numbers_of_pathways_and_candidates() -> None:
    for pathways in (1, 2, 5):
        policy = SAM2Long(num_pathway=pathways)
        state = begin(policy)
        for t in range(1, 9):
            state, choice = track(policy, state, at(t), repeated(state, [0.9, 0.8, 0.7], 1.0))
            assert len(choice.remember) == len(state.pathways) == pathways
    single = SAM2Long()
    state = walk(single, range(1, 4), {t: ([0.9], 1.0) for t in range(1, 4)})
    assert survivors(single, state, repeated(state, [0.9], 1.0)) == [(0, 0), (1, 0), (2, 0)]


def test_scores_stay_bounded() -> None:
    policy = SAM2Long()
    state = begin(policy)
    rng = np.random.default_rng(0)
    for t in range(1, 400):
        iou = rng.uniform(0, 1, (max(1, len(state.pathways)), 3)).tolist()
        state, _ = track(policy, state, at(t), seen(iou, float(rng.uniform(-3, 3))))
        assert state.pathways[0].score == 0 and min(p.score for p in state.pathways) > -50


# The whole rule, literally


@dataclass
class Branch:
    score: float = 0.0
    memory: dict[int, MemoryEntry] = field(default_factory=dict)
    path: list[tuple[int, float]] = field(default_factory=list)


class Literal:
    """Deep copies, no bounds, no sharing. ``path``: (frame, value of the mask) of a branch from the start."""

    def __init__(self, policy: SAM2Long) -> None:
        self.p = policy
        self.prompts: dict[int, MemoryEntry] = {}
        self.branches: list[Branch] = []

    def prompt(self, given: MemoryEntry) -> None:
        self.prompts[given.frame] = given
        for branch in self.branches:
            branch.memory.pop(given.frame, None)

    def good(self, e: MemoryEntry) -> bool:
        return e.iou > self.p.iou_thre and e.objectness > 0

    def read(self, branch: Branch, t: int, step: int) -> tuple:
        known = {**branch.memory, **self.prompts}
        before = sorted((f for f in known if (t - f) * step > 0), key=lambda f: abs(t - f))
        listed = [f for f in before if f in self.prompts or self.good(known[f])][:15]
        if before and before[0] == t - step and before[0] not in listed:
            listed.insert(0, before[0])
        own = [(r, known[f]) for r, f in enumerate(listed) if f not in self.prompts]
        prompts = [self.prompts[f] for f in sorted(self.prompts)]
        maps = [(e, -1) for e in prompts] + [(e, r) for r, e in own if r < 6]
        pointers = [(e, (t - e.frame) * step) for e in prompts if (t - e.frame) * step >= 0]
        pointers += [(e, r + 1) for r, e in own][: -1 if own else None]
        few = len(maps) < 2
        return self.with_gains(maps, few, t), self.with_gains(pointers, few, t)

    def with_gains(self, read: list[tuple[MemoryEntry, int]], off: bool, t: int) -> list[tuple]:
        scores = [10.0 if e.is_prompt else e.objectness for e, _ in read]
        gain = np.ones(len(read))
        order = np.lexsort(([-abs(t - e.frame) for e, _ in read], scores))
        gain[order] = 1.0 if off else np.linspace(0.95, 1.05, len(read))
        return sorted((e.frame, e.pointer[1].item(), place, round(float(g), 5)) for (e, place), g in zip(read, gain))

    def pick(self, iou: np.ndarray, logit: np.ndarray) -> list[tuple[int, int]]:
        if not self.branches:
            return [(0, int(np.argmax(iou[0])))] * 3
        score = np.array([[b.score + math.log(x + 1e-5) for x in row] for b, row in zip(self.branches, iou)])
        order = [(int(i) // 3, int(i) % 3) for i in np.argsort(-score.ravel(), kind="stable")]
        if np.abs(logit).max() > self.p.uncertainty:
            return order[:3]
        taken, values = [], set()
        for q, j in order:
            value = round(float(iou[q, j]), 2) * (1 if logit[q] > 0 else -1)
            if value not in values and len(taken) < 3:
                values.add(value)
                taken.append((q, j))
        for q in range(3):
            if len(taken) < 3 and q not in [a for a, _ in taken]:
                taken.append(next(c for c in order if c[0] == q))
        return taken

    def write(
        self, t: int, picks: list[tuple[int, int]], entries: list[MemoryEntry], iou: np.ndarray, value: np.ndarray
    ) -> None:
        first = not self.branches
        old = self.branches or [Branch()]
        self.branches = [
            Branch(
                score=0.0 if first else old[q].score + math.log(iou[q, j] + 1e-5),
                memory={**old[q].memory, t: e},
                path=[*old[q].path, (t, float(value[q, j]))],
            )
            for (q, j), e in zip(picks, entries)
        ]


def described(read: MemoryRead) -> tuple:
    maps = [(i.tokens.feat[0, 0].item(), i.tokens.feat[0, 1].item(), i.slot, round(i.gain, 5)) for i in read.items]
    pointers = [
        (p.pointer[0].item(), p.pointer[1].item(), round(p.offset * 15), round(p.gain, 5)) for p in read.pointers
    ]
    return sorted(maps), sorted(pointers)


def imagined(found: list[tuple], t: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a network would say, the same for equal reads: IoU (P, 3), object score (P), value of the masks (P, 3)."""
    iou, logit, value = [], [], []
    for one in found:
        rng = np.random.default_rng(int(hashlib.md5(f"{one} {t} {seed}".encode()).hexdigest()[:8], 16))
        iou.append(rng.choice([0.02, 0.2, 0.6, 0.8, 0.81, 0.806, 0.9], 3) + rng.uniform(0, 0.004, 3))
        level = rng.choice([0.5, -0.7, 1.4, 5.0, -5.0, 12.0], p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05])
        logit.append(level + rng.uniform(0, 0.1))
        value.append(rng.uniform(1, 100, 3))
    return np.array(iou), np.array(logit), np.array(value)


@dataclass
class Play:
    """Policy and literal rule side by side; every comparison is made on the way."""

    policy: SAM2Long
    seed: int
    state: Tree | None = None
    results: list[FrameResult] = field(default_factory=list)
    distinct: int = 0

    def __post_init__(self) -> None:
        self.literal = Literal(self.policy)

    def prompt(self, t: int, step: int) -> None:
        given = entry(t, prompt=True, objectness=10.0)
        self.literal.prompt(given)
        self.state = self.policy.prompt(self.state, at(t, reverse=step < 0), given)

    def step(self, t: int, step: int) -> list[Revision]:
        frame = at(t, reverse=step < 0)
        found = self.policy.read(self.state, frame)
        ours = [described(r) for r in found]
        branches = self.literal.branches or [Branch()]
        assert ours == [self.literal.read(b, t, step) for b in branches], f"frame {t}"
        self.distinct = max(self.distinct, len({r.key() for r in found}))
        iou, logit, value = imagined(ours, t, self.seed)
        hyp = hypotheses(np.tile(value[..., None, None], (1, 1, 2, 2)), iou, logit)
        choice = self.policy.choose(self.state, frame, hyp)
        picks = self.literal.pick(iou, logit)
        assert [(p.pathway, p.candidate) for p in choice.remember] == picks, f"frame {t}"
        made = remembered(self.policy, t, hyp, choice, [r.key() for r in found])
        masked = np.where(logit[:, None] > 0, value, -1024.0)
        self.literal.write(t, picks, made, iou, masked)
        self.state = self.policy.write(self.state, frame, hyp, choice, made)
        assert self.state.token_count() <= self.policy.capacity(TOKENS)
        self.results.append(result_of(t, hyp, choice.output, self.revisions(frame)))
        return list(self.results[-1].revisions)

    def revisions(self, frame: FrameContext) -> tuple[Revision, ...]:
        return tuple(replace(r, obj_id=1) for r in self.policy.revise(self.state, frame))

    def finish(self) -> tuple[Revision, ...]:
        return tuple(replace(r, obj_id=1) for r in self.policy.finish(self.state))


def result_of(t: int, hyp: Hypotheses, pick: CandidateId, revisions: tuple[Revision, ...]) -> FrameResult:
    present = hyp.objectness[pick.pathway] > 0
    mask = hyp.masks[pick.pathway, pick.candidate] if present else torch.full((2, 2), -1024.0)
    score = ObjectScore(1, 0.5, 1.0, present, False, (), (), 0)
    return FrameResult(t, (1,), mask[None], (score,), revisions)


@pytest.mark.parametrize("seed", range(5))
def test_policy_follows_the_literal_rule(seed: int) -> None:
    """Forward from frame 20 with a second prompt on frame 60, then backwards from 20."""
    play = Play(SAM2Long(iou_thre=0.3), seed)
    play.prompt(20, 1)
    for t in range(21, 110):
        play.prompt(t, 1) if t == 60 else play.step(t, 1)
    for t in range(19, -1, -1):
        play.step(t, -1)
    assert play.distinct == 3, "control: pathways must have parted"
    assert len(play.state.entries) < 200 and all(len(p.entries) < 110 for p in play.state.pathways)


# Output


def last_values(results: Iterator[FrameResult]) -> list[tuple[int, float]]:
    return [(r.frame, pytest.approx(r.masks[0, 0, 0].item(), rel=1e-5)) for r in results]


@pytest.mark.parametrize("output", ["streaming", "coalesced"])
@pytest.mark.parametrize("max_lag", [None, 50, 5, 1])
@pytest.mark.full
def test_delayed_masks_are_the_traced_back_ones(output: str, max_lag: int | None) -> None:
    """Each frame as the best pathway sees it ``max_lag`` frames later; without limit, as the last winner sees it."""
    changed = 0
    for seed in range(4):
        play = Play(SAM2Long(output=output, max_lag=max_lag), seed)
        play.prompt(0, 1)
        lag = 10**6 if max_lag is None else max_lag
        expected: dict[int, float] = {}
        for t in range(1, 50):
            play.step(t, 1)
            expected |= {f: v for f, v in play.literal.branches[0].path if t - f <= lag}
        final = delayed(iter(play.results), play.policy.needs.revise, play.finish)
        assert last_values(final) == sorted(expected.items())
        changed += sum(len(r.revisions) for r in play.results) + len(play.finish())
    assert changed > 5, "control: there was something to revise"


def test_streaming_revises_at_once_and_coalesced_once() -> None:
    counts = {}
    for output in ("streaming", "coalesced"):
        play = Play(SAM2Long(output=output, max_lag=20), 3)
        play.prompt(0, 1)
        revised = [r.frame for t in range(1, 80) for r in play.step(t, 1)]
        counts[output] = (len(revised), len(set(revised)))
        if output == "streaming":
            assert play.finish() == (), "nothing is left to say"
    assert counts["coalesced"][0] == counts["coalesced"][1], "each frame at most once"
    assert counts["streaming"][0] >= counts["coalesced"][0] > 0


def test_the_mask_given_out_is_that_of_the_best_pathway() -> None:
    policy = SAM2Long()
    state = apart(policy, *THREE, scores=(0.0, -0.1, -0.2))
    assert policy.choose(state, at(2), seen([[0.5, 0.1], [0.9, 0.1], [0.5, 0.1]], 5.0)).output == CandidateId(1, 0)


def test_what_waits_for_revision_is_bounded() -> None:
    play = Play(SAM2Long(max_lag=6), 1)
    play.prompt(0, 1)
    for t in range(1, 200):
        play.step(t, 1)
        assert len(play.state.open_frames.published) <= 6 and all(len(p) <= 6 for p in play.state.open_frames.paths)
    assert SAM2Long(max_lag=0).needs.revise == 0 and SAM2Long(num_pathway=1).needs.revise == 0
    final = Play(SAM2Long(max_lag=0), 1)
    final.prompt(0, 1)
    assert not any(final.step(t, 1) for t in range(1, 60))


def test_a_prompt_closes_its_frame_and_a_new_pass_closes_all() -> None:
    policy = SAM2Long(uncertainty=100.0)
    state = begin(policy)
    for t in range(1, 5):
        parted = [[0.9, 0.1, 0.1], [0.95, 0.1, 0.1], [0.99, 0.1, 0.1]]
        state, _ = track(policy, state, at(t), seen(parted, 1.0) if t > 2 else repeated(state, [0.9, 0.7, 0.5], 1.0))
    assert [s.frame for s in state.open_frames.published] == [2, 3, 4]
    corrected = policy.prompt(state, at(3), entry(3, prompt=True))
    assert [s.frame for s in corrected.open_frames.published] == [2, 4]
    again, _ = track(policy, state, at(2, reverse=True), seen([[0.9, 0.7, 0.5]] * 3, 1.0))
    assert {s.frame for s in again.open_frames.published} <= {2}


# Sharing and cost


def test_equal_pathways_cost_one_row() -> None:
    """Rows of attention, decoder and memory encoder on each frame, for one object and for two."""
    rows: dict[str, list[int]] = {"attention": [], "decoder": [], "memory": []}
    model = micro_model()
    hooks = [
        model.memory_attention.register_forward_pre_hook(lambda m, args: rows["attention"].append(args[3].rows)),
        model.sam_mask_decoder.register_forward_pre_hook(
            lambda m, args, kwargs: rows["decoder"].append(kwargs["image"].shape[0]), with_kwargs=True
        ),
        model.memory_encoder.register_forward_pre_hook(lambda m, args: rows["memory"].append(args[1].shape[0])),
    ]
    try:
        counted = {}
        for uncertainty in (0.0, 1e9):
            for objects in (1, 2):
                tracker = micro_tracker(SAM2Long(uncertainty=uncertainty))
                run(tracker, [features_at(0)], {0: [mask_prompt(i + 1, 0, i) for i in range(objects)]})
                for name in rows:
                    rows[name].clear()
                frames = [features_at(t) for t in range(1, 9)]
                run(tracker, frames, {})
                counted[uncertainty, objects] = {name: sum(n) / len(frames) for name, n in rows.items()}
    finally:
        for hook in hooks:
            hook.remove()
    for objects in (1, 2):
        assert counted[0.0, objects] == {"attention": objects, "decoder": objects, "memory": objects}
        assert counted[1e9, objects]["attention"] > 2 * objects, "control: pathways that differ are paid for"


def test_entries_are_shared_not_copied() -> None:
    play = Play(SAM2Long(), 5)
    play.prompt(0, 1)
    for t in range(1, 40):
        play.step(t, 1)
    listed = [e for p in play.state.pathways for e in p.entries]
    assert len({id(e) for e in listed}) < len(listed) * 0.75
    assert len(play.state.all_entries()) < len(listed)


def test_a_state_goes_through_a_file(tmp_path) -> None:
    policy = SAM2Long()
    play = Play(policy, 5)
    play.prompt(0, 1)
    for t in range(1, 30):
        play.step(t, 1)
    save_memory(tmp_path / "memory.pt", policy, play.state)
    back = load_memory(tmp_path / "memory.pt", policy)
    keys = [[r.key() for r in policy.read(s, at(30))] for s in (play.state, back)]
    assert [described(r) for r in policy.read(play.state, at(30))] == [described(r) for r in policy.read(back, at(30))]
    assert [[k == other for other in keys[0]] for k in keys[0]] == [[k == other for other in keys[1]] for k in keys[1]]
    assert len(back.all_entries()) == len(play.state.all_entries())


def test_other_verbs_reach_every_pathway() -> None:
    policy = SAM2Long()
    play = Play(policy, 5)
    play.prompt(0, 1)
    for t in range(1, 30):
        play.prompt(t, 1) if t == 12 else play.step(t, 1)
    state = play.state
    forgotten = policy.forget(state, 27, 3)
    assert all(abs(e.frame - 27) > 3 for p in forgotten.pathways for e in p.entries)
    freed = policy.unprompt(state, 12)
    assert all(12 in [e.frame for e in p.entries] for p in freed.pathways) and [p.frame for p in freed.prompts] == [0]
    assert policy.unprompt(freed, 0) is None
    moved = state.shift_frames(100)
    assert [described(r) for r in policy.read(state, at(30))] == [described(r) for r in policy.read(moved, at(130))]
    late = policy.unprompt(policy.prompt(begin(policy), at(5), entry(5, prompt=True)), 5)
    assert reads(policy, late, at(6))[0].frames == [0, 5]


# With a network


def test_equals_fifo_when_switched_off() -> None:
    prompts = {4: [mask_prompt(1, 4), click_prompt(2, 4, 1)], 12: [mask_prompt(1, 12)], 9: [mask_prompt(3, 9, 2)]}
    forward, backward = [features_at(t) for t in range(4, 34)], [features_at(t) for t in range(3, -1, -1)]
    runs = []
    for policy in (FIFO(), SAM2Long(**LIKE_FIFO), SAM2Long()):
        tracker = micro_tracker(policy)
        runs.append(run(tracker, forward, prompts) + run(tracker, backward, {}, reverse=True))
    assert furthest(runs[0], runs[1]) < 1e-5
    assert furthest(runs[0], runs[2]) > 1e-2, "control: switched on, it differs"


def test_propagation_gives_final_masks_and_a_stream_tells_of_revisions() -> None:
    """The same clip offline and frame by frame: with its revisions applied, the stream gives what propagation gives."""
    images, count = np.stack(pictures(40)), 0
    predictor = micro_predictor(SAM2Long(uncertainty=1e9, max_lag=8))
    offline = predictor.init_state(images)
    predictor.add_new_mask(offline, 0, 1, mask_prompt(1).mask)
    predictor.add_new_mask(offline, 0, 2, mask_prompt(2, 0, 1).mask)
    given = list(predictor.propagate_in_video(offline))
    assert [frame for frame, _, _ in given] == list(range(40)) and all(ids == [1, 2] for _, ids, _ in given)
    stream, shown = predictor.init_state(), {}
    for t, image in enumerate(images):
        prompts = [mask_prompt(1), mask_prompt(2, 0, 1)] if t == 0 else []
        _, ids, masks = predictor.track_frame(stream, image, prompts)
        shown[t] = dict(zip(ids, masks))
        for frame, changed, new in predictor.revisions(stream):
            assert t - 8 <= frame < t
            shown[frame] |= dict(zip(changed, new))
            count += len(changed)
    assert predictor.revisions(stream, finish=True) == []
    assert count > 0, "control: the stream was revised"
    for frame, ids, masks in given:
        assert torch.equal(torch.stack([shown[frame][i] for i in ids]), masks), f"frame {frame}"


def test_a_correction_starts_from_the_revised_mask() -> None:
    tracker = micro_tracker(SAM2Long(uncertainty=1e9, max_lag=8))
    revised: dict[tuple[int, int], torch.Tensor] = {}
    for t in range(40):
        result = run(tracker, [features_at(t)], {0: [mask_prompt(n + 1, 0, n) for n in range(3)]})[0]
        revised |= {(r.obj_id, r.frame): r.logits for r in result.revisions}
        for (obj_id, frame), logits in revised.items():
            held = tracker.tracks[obj_id].outputs.get(frame)
            assert held is None or torch.equal(held.logits, logits)
    assert revised, "control: there was something to revise"


def test_presets() -> None:
    found = {n: build_policy(n) for n in ("sam2long", "sam2long_argparse", "sam2long_paper")}
    assert {n: (p.iou_thre, p.uncertainty) for n, p in found.items()} == {
        "sam2long": (0.1, 2.0),
        "sam2long_argparse": (0.3, 1.0),
        "sam2long_paper": (0.3, 2.0),
    }
    assert found["sam2long"] == SAM2Long()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_pathway": 0},
        {"output": "later"},
        {"gain_low": 2.0},
        {"max_lag": -1},
    ],
)
def test_wrong_values(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
        SAM2Long(**wrong)
