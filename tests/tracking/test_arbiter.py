"""Objects that meet: the rules against literal readings, and what their verdicts do to masks and memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from micro import (  # noqa: F401
    POLICIES,
    TOKENS,
    features_at,
    in_tiers,
    mask_prompt,
    micro_model,
    micro_predictor,
    micro_tracker,
    one_thread,
    pictures,
    repeated,
    run,
)
from policy_contract import tokens_in

from sam2_mem.build_sam import build_policy
from sam2_mem.tracking.arbiter import (
    ARBITERS,
    ObjectView,
    RecentlyHidden,
    UnsteadyScore,
    Verdict,
    verdicts_on,
)
from sam2_mem.tracking.track import MaskOutput, VisibilityHistory
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.types import ABSENT_LOGIT, FrameResult

# -- rules ------------------------------------------------------------------------------------------------------------


def output(logits: torch.Tensor, objectness: float = 3.0) -> MaskOutput:
    return MaskOutput(5, logits, torch.zeros(2), 0.9, objectness, float((logits > 0).float().mean()))


def random_objects(rng: np.random.Generator) -> tuple[list[VisibilityHistory], list[MaskOutput]]:
    """Squares of nearly one place, of nearly one brightness; some empty, some never hidden before."""
    histories, outputs = [], []
    for _ in range(4):
        logits = torch.full((16, 16), -4.0)
        x, side = rng.integers(0, 3), rng.choice([0, 9, 10])
        logits[2 : 2 + side, x : x + side] = float(rng.choice([1.0, 1.5, 5.0]))
        scores = tuple(rng.normal(3, rng.choice([0.1, 2.0]), size=rng.integers(0, 11)))
        hidden_at = None if rng.random() < 0.3 else int(rng.integers(0, 4))
        histories.append(VisibilityHistory(hidden_at, scores))
        outputs.append(output(logits, float(rng.normal(3, 1))))
    return histories, outputs


def overlap(a: MaskOutput, b: MaskOutput) -> float:
    first, second = a.logits.numpy() > 0, b.logits.numpy() > 0
    return (first & second).sum() / max(1, (first | second).sum())


def gives_way(a: int, b: int, histories: list[VisibilityHistory], reverse: bool) -> bool:
    mine, other = histories[a].hidden_at, histories[b].hidden_at
    return mine is not None and other is not None and (mine < other if reverse else mine > other)


def is_unsteady(a: int, b: int, histories: list[VisibilityHistory], outputs: list[MaskOutput]) -> bool:
    means = [outputs[n].logits[outputs[n].logits > 0].mean().item() for n in (a, b)]
    if abs(means[0] - means[1]) >= 2:
        return means[0] < means[1]
    return np.var([*histories[a].scores, outputs[a].objectness][-10:]) > np.var(
        [*histories[b].scores, outputs[b].objectness][-10:]
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["recent", "variance"])
def test_verdicts(name: str, reverse: bool) -> None:
    rng, counts = np.random.default_rng(0), dict.fromkeys(Verdict, 0)
    hidden = Verdict.ABSENT if name == "recent" else Verdict.NO_MEMORY
    for _ in range(200):
        histories, outputs = random_objects(rng)
        expected = [Verdict.KEEP] * 4
        for a in range(4):
            for b in range(4):
                if a == b or overlap(outputs[a], outputs[b]) < 0.7:
                    continue
                recent = name == "recent" and gives_way(a, b, histories, reverse)
                if recent or (name == "variance" and is_unsteady(a, b, histories, outputs)):
                    expected[a] = hidden
        assert verdicts_on(ARBITERS[name], histories, outputs, reverse=reverse) == expected
        for verdict in expected:
            counts[verdict] += 1
    assert counts[hidden] > 50 and counts[Verdict.KEEP] > 100, "control"


def test_where_nothing_tells_nobody_gives_way() -> None:
    same = ObjectView(VisibilityHistory(3, (1.0, 1.0)), 1.0, 2.0)
    for rule in (RecentlyHidden(), UnsteadyScore()):
        assert rule.hidden_one(same, same, reverse=False) is None
    never = replace(same, history=VisibilityHistory())
    assert RecentlyHidden().hidden_one(same, never, reverse=False) is None
    with pytest.raises(ValueError, match="expected min_overlap"):
        RecentlyHidden(min_overlap=0.0)
    with pytest.raises(ValueError, match="expected arbiter out of none, recent, variance, got 'referee'"):
        TrackerSettings(arbiter="referee")


# -- in the tracker ---------------------------------------------------------------------------------------------------

TWINS = {0: [mask_prompt(1, 0, 1), mask_prompt(2, 0, 1)]}
"""Two objects that are one: their masks coincide on every frame."""


def masks(results: list[FrameResult]) -> torch.Tensor:
    return torch.stack([r.masks for r in results])


@dataclass(frozen=True, kw_only=True)
class Always(RecentlyHidden):
    """The second of two objects that have a mask gives way, wherever they are."""

    says: Verdict = Verdict.ABSENT
    calls: list[int] = field(default_factory=list)

    def arbitrate(self, objects: Sequence[ObjectView], overlaps: Any, *, reverse: bool = False) -> list[Verdict]:
        self.calls.append(len(objects))
        return [Verdict.KEEP, self.says]


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ("fifo",)))
def test_without_a_verdict_nothing_changes(policy: str) -> None:
    frames = [features_at(t) for t in range(16)]
    plain = masks(run(micro_tracker(policy), frames, TWINS))
    tracker = Tracker(micro_model(), build_policy(policy), arbiter=Always(says=Verdict.KEEP))
    assert torch.equal(masks(run(tracker, frames, TWINS)), plain)


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ("fifo", "sam2long")))
@pytest.mark.parametrize("says", [Verdict.ABSENT, Verdict.NO_MEMORY])
def test_verdicts_hold_under_every_policy(policy: str, says: Verdict) -> None:
    frames, rule, shown = [features_at(t) for t in range(24)], Always(says=says), []
    plain = masks(run(micro_tracker(policy), frames, TWINS))
    assert torch.equal(plain[:, 0], plain[:, 1])
    tracker = Tracker(micro_model(), build_policy(policy), arbiter=rule)
    for frame in frames:
        before, calls = tracker.tracks[2].state if tracker.tracks else None, len(rule.calls)
        [result] = run(tracker, [frame], TWINS)
        shown.append(result)
        assert tokens_in(tracker.tracks[2].state) <= tracker.policy.capacity(TOKENS)
        if len(rule.calls) == calls:
            continue
        if says is Verdict.ABSENT:
            assert (result.masks[1] == ABSENT_LOGIT).all() and not result.scores[1].present
            assert tracker.tracks[2].visibility.hidden_at == frame.index
        else:
            assert (result.masks[1] > 0).any() and tracker.tracks[2].state is before
    assert rule.calls
    difference = (masks(shown) - plain).abs().amax((0, 2, 3))
    assert difference[0] < 1e-2, "the object in front is as without the other, but for the size of batches"
    assert difference[1] > 1 or says is Verdict.NO_MEMORY, "control"


def test_the_object_that_was_hidden_last_gives_way() -> None:
    """Two objects with one mask, one of which was hidden on an earlier frame, the other on a later one."""
    for reverse, absent in ((False, 1), (True, 0)):
        tracker = micro_tracker(arbiter="recent")
        first = 12 if reverse else 0
        run(tracker, [features_at(first)], {first: [mask_prompt(1, first, 1), mask_prompt(2, first, 1)]})
        visible = [False, False]
        for t in range(1, 9):
            for obj_id, hidden_at in ((1, 3), (2, 5)):
                tracker.tracks[obj_id].visibility = VisibilityHistory(hidden_at)
            [result] = run(tracker, [features_at(first - t if reverse else t)], {}, reverse=reverse)
            visible = [bool((mask > 0).any()) for mask in result.masks]
            if any(visible):
                break
        assert visible == [absent == 1, absent == 0], "on the first frame on which they are visible"


def test_from_a_config_and_in_a_copy() -> None:
    predictor = micro_predictor(arbiter="recent")
    state = predictor.init_state(pictures(8))
    for prompt in TWINS[0]:
        predictor.add_new_mask(state, 0, prompt.obj_id, prompt.mask)
    list(predictor.propagate_in_video(state))
    assert isinstance(state.tracker.arbiter, RecentlyHidden)
    assert len(state.tracker.tracks[1].visibility.scores) == 7
    assert deepcopy(state).tracker.tracks[1].visibility == state.tracker.tracks[1].visibility
