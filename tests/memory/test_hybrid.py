"""Any short-term policy beside any rule of long-term memory: what is read, and every rule against a literal version."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import exp

import numpy as np
import pytest
import torch
from micro import features_at, mask_prompt, micro_tracker, one_thread, run  # noqa: F401
from policy_contract import tokens_in
from streams import at, begin, hypotheses, random_entry, read_by_frame, rectangle, track, write

from sam2_mem.build_sam import build_policy
from sam2_mem.config import ConfigError, choice_config
from sam2_mem.memory.anchors import AnchorRule, DistractorAnchors, DiverseAnchors, KeyframeAnchors, SceneAnchors
from sam2_mem.memory.bounded import Bounded
from sam2_mem.memory.hybrid import Hybrid, HybridBank
from sam2_mem.memory.policies.dam4sam import DAM4SAM
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.samurai import Samurai
from sam2_mem.memory.policies.sparse import Sparse
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.types import PROMPT_SLOT, FrameContext, FrameFeatures, MemoryEntry

EAGER = KeyframeAnchors(gap=7, min_iou=-1, min_object_score=-99)
PERMISSIVE = DiverseAnchors(min_iou=-1, min_object_score=-99, pool_size=2)


def from_config(**fields: object) -> MemoryPolicy:
    config = choice_config("memory_policy", "hybrid")
    config.update(fields)
    return build_policy(config)


def follow(policy: Hybrid, frames: int, seed: int = 0) -> tuple[HybridBank, dict[int, MemoryEntry]]:
    rng = np.random.default_rng(seed)
    history = {0: random_entry(0, rng, prompt=True)}
    state = policy.prompt(None, at(0), history[0])
    for t in range(1, frames):
        history[t] = random_entry(t, rng)
        state = write(policy, state, at(t), history[t])
    return state, history


# -- reading ----------------------------------------------------------------------------------------------------------


def test_what_is_read() -> None:
    """The short-term policy with as many maps fewer as there are anchors, then the anchors it does not read."""
    rng, policy = np.random.default_rng(1), Hybrid(short=FIFO(), long=EAGER)
    first = random_entry(0, rng, prompt=True)
    state, plain = policy.prompt(None, at(0), first), FIFO().prompt(None, at(0), first)
    for t in range(1, 120):
        anchors = [e.frame for e in state.anchors.long]
        assert len(anchors) == min(3, (t - 1) // 7)
        slots, offsets = read_by_frame(policy, state, at(t))
        recent, pointers = read_by_frame(FIFO(num_maskmem=7 - len(anchors)), plain, at(t))
        assert slots == {**dict.fromkeys(anchors, PROMPT_SLOT), **recent}, f"frame {t}"
        assert offsets == {**{f: round((t - f) / 15, 6) for f in anchors}, **pointers}
        entry = random_entry(t, rng)
        state, plain = write(policy, state, at(t), entry), write(FIFO(), plain, at(t), entry)
        assert tokens_in(state) == state.token_count() <= policy.capacity(9)


def test_without_a_rule_it_is_the_short_term_policy() -> None:
    prompts = {0: [mask_prompt(1)], 9: [mask_prompt(1, 9, 2)]}
    frames = [features_at(t) for t in range(16)]
    for short in (FIFO(), Sparse(keep=0.3)):
        alone, wrapped, beside = (
            torch.tensor([(s.iou, s.objectness) for r in run(micro_tracker(p), frames, prompts) for s in r.scores])
            for p in (short, Hybrid(short=short, long=None), Hybrid(short=short, long=PERMISSIVE))
        )
        assert torch.equal(alone, wrapped)
        assert (alone - beside).abs().max() > 1e-3, "control"


SHORT = ("diverse", "fifo", "keyframe", "rmem", "sam2long", "samurai", "sparse", "xmem")
LONG = ("dam", "diverse", "keyframe", "scene")


@pytest.mark.parametrize(
    "short, long",
    [
        pytest.param(*pair, marks=() if pair in {("rmem", "keyframe")} else pytest.mark.full)
        for pair in product(SHORT, LONG)
    ],
)
def test_any_policy_beside_any_rule(short: str, long: str) -> None:
    policy = from_config(short=short, long=long)
    tracker = micro_tracker(policy)
    for t in range(24):
        run(tracker, [features_at(t)], {0: [mask_prompt(1)], 11: [mask_prompt(1, 11)]})
        assert tokens_in(tracker.tracks[1].state) <= policy.capacity(16)
    assert run(tracker, [features_at(24)], {})[0].masks.isfinite().all()


# -- rules ------------------------------------------------------------------------------------------------------------


def test_promotion_is_that_of_dam4sam() -> None:
    rng, joined = np.random.default_rng(3), []
    shape, other = rectangle(4, 4, 8, 8), rectangle(20, 20, 8, 8)
    hybrid, dam = Hybrid(short=FIFO(), long=DistractorAnchors()), DAM4SAM()
    state, expected = begin(hybrid), begin(dam)
    for t in range(1, 150):
        size = rng.choice([6, 8], p=[0.1, 0.9])
        chosen = rectangle(4, 4, size, 8) if size == 6 else shape
        alternative = other if rng.random() < 0.4 else chosen
        score = -3.0 if rng.random() < 0.1 else 3.0
        seen = hypotheses(np.stack([chosen, alternative]), (float(rng.uniform(0.7, 1.0)), 0.1), score)
        before = expected.promoted_at
        state, _ = track(hybrid, state, at(t), seen)
        expected, _ = track(dam, expected, at(t), seen)
        if expected.promoted_at != before:
            joined.append(t)
        assert [e.frame for e in state.anchors.long] == joined[-3:], f"frame {t}"
    assert 5 < len(joined) < 30, "control"


def distance(a: MemoryEntry, b: MemoryEntry) -> float:
    cosines = [
        torch.nn.functional.cosine_similarity(x, y, dim=0).item()
        for x, y in ((a.pointer, b.pointer), (a.summary, b.summary))
    ]
    return sum((1 - c) / 4 for c in cosines)


def test_the_most_significant_frames_are_anchors() -> None:
    policy = Hybrid(short=FIFO(), long=KeyframeAnchors(gap=3, max_long=4))
    state, history = follow(policy, 150)
    anchors: list[int] = []
    for t in range(3, 150, 3):
        if history[t].iou <= 0.5 or history[t].objectness <= 0:
            continue
        anchors.append(t)
        if len(anchors) > 4:
            worth = {}
            for f in anchors:
                nearest = min(distance(history[f], history[g]) for g in [0, *anchors] if g != f)
                worth[f] = history[f].iou / (1 + exp(-history[f].objectness)) * min(1.0, nearest)
            anchors.remove(min(anchors, key=worth.get))
    assert sorted(e.frame for e in state.anchors.long) == sorted(anchors)
    assert anchors != list(range(anchors[0], anchors[0] + 12, 3))


def test_diverse_anchors_are_those_of_the_policy() -> None:
    fields = {"min_iou": 0.5, "pool_size": 3}
    state, history = follow(Hybrid(short=FIFO(), long=DiverseAnchors(**fields)), 100)
    alone = build_policy("diverse")
    alone = replace(alone, **fields)
    expected = alone.prompt(None, at(0), history[0])
    for t in range(1, 100):
        expected = write(alone, expected, at(t), history[t])
    assert [e.frame for e in state.anchors.long] == [e.frame for e in expected.long] != []
    assert [e.frame for e in state.anchors.pool] == [e.frame for e in expected.pool]


def test_the_first_frame_of_a_new_scene_is_an_anchor() -> None:
    """Two scenes in turn, of which the object is absent at one cut."""
    rng, policy = np.random.default_rng(0), Hybrid(short=FIFO(), long=SceneAnchors(max_long=2))
    scenes = torch.tensor([[1.0, 0.1], [0.1, 1.0]])

    def frame(t: int) -> FrameContext:
        low = scenes[(t // 10) % 2].expand(4, 2) + 0.01 * t % 0.03
        return FrameContext(t, FrameFeatures(t, low, low, (low, low), (2, 2)))

    state = policy.prompt(None, frame(0), random_entry(0, rng, prompt=True))
    for t in range(1, 45):
        state = write(policy, state, frame(t), random_entry(t, rng, objectness=0.5 if t == 20 else 3.0))
    assert [e.frame for e in state.anchors.long] == [30, 40]
    assert state.anchors.shift_frames(3).look is None


# -- the state --------------------------------------------------------------------------------------------------------


def test_anchors_go_where_tracked_memory_goes() -> None:
    policy = Hybrid(short=FIFO(), long=EAGER)
    state, history = follow(policy, 60)
    long = sorted(e.frame for e in state.anchors.long)
    assert sorted(e.frame for e in policy.forget(state, long[1], 0).anchors.long) == [long[0], long[2]]
    assert sorted(e.frame for e in state.shift_frames(5).anchors.long) == [f + 5 for f in long]
    assert state.drop_tokens(long[0]).token_count() == state.token_count() - 9
    prompted = policy.prompt(state, at(60), replace(history[long[0]], is_prompt=True))
    assert sorted(e.frame for e in prompted.anchors.long) == long[1:] and len(prompted.prompts) == 2
    assert policy.unprompt(state, 0) is None
    kinds = {i.kind for i in policy.entry_infos(state, at(60))}
    assert "anchor" in kinds and "prompt" in kinds
    tight = Bounded(policy=policy, max_bytes=3 * 9 * 128)
    held = tight.write(state, at(60), *_step(policy, state, history[59]))
    assert held.token_count() <= 27


def _step(policy: Hybrid, state: HybridBank, last: MemoryEntry):
    from streams import scored

    entry = replace(last, frame=60)
    seen = scored(entry)
    return seen, policy.choose(state, at(60), seen), [entry]


# -- configs ----------------------------------------------------------------------------------------------------------


def test_from_a_config() -> None:
    assert build_policy("hybrid") == Hybrid(short=Samurai(), long=DistractorAnchors())
    assert from_config(short="fifo", long="none") == Hybrid(short=FIFO(), long=None)
    named = {"_target_": "sam2_mem.memory.anchors.DiverseAnchors", "pool_size": 2}
    assert from_config(long=named).long == DiverseAnchors(pool_size=2)
    for name in LONG:
        rule = from_config(long=name).long
        assert isinstance(rule, AnchorRule) and rule == type(rule)(), "files give the defaults"
    with pytest.raises(ConfigError, match="expected a rule of long-term memory out of dam, .*, got 'longest'"):
        from_config(long="longest")
    with pytest.raises(ConfigError, match="expected a memory policy out of .*, got 'lifo'"):
        from_config(short="lifo")
    with pytest.raises(ValueError, match="expected num_maskmem"):
        Hybrid(short=DAM4SAM(), long=DistractorAnchors())
    with pytest.raises(ValueError, match="expected max_long"):
        DiverseAnchors(max_long=0)
