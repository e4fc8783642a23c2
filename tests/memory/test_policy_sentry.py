"""Refine before write: which frames are doubtful and which candidate is remembered, against the rule written out literally."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import features_at, mask_prompt, micro_tracker, one_thread, run  # noqa: F401
from streams import at, begin, hypotheses, rectangle, remembered

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.kalman_filter import MaskBox
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.samurai import Samurai
from sam2_mem.memory.policies.sentry import Sentry
from sam2_mem.memory.questions import ProbeAnswer
from sam2_mem.types import CandidateId

K = 4


def random_box(rng: np.random.Generator) -> MaskBox | None:
    if rng.random() < 0.15:
        return None
    x, y, w, h = rng.integers(1, 12, size=4)
    return MaskBox(float(x), float(y), float(x + w), float(y + h))


def iou(a: MaskBox | None, b: MaskBox | None) -> float:
    """By counting cells of a fine grid."""
    if a is None or b is None:
        return 0.0
    y, x = np.mgrid[0:240, 0:240] / 10 + 0.05
    inside = [(box.x0 < x) & (x < box.x1) & (box.y0 < y) & (y < box.y1) for box in (a, b)]
    return (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()


def literal_score(answer: ProbeAnswer) -> float:
    def mean(to: tuple[MaskBox | None, ...]) -> float:
        return np.mean([1.0 if p is None and q is None else iou(p, q) for p, q in zip(answer.boxes, to)])

    return mean(answer.shown_boxes) - max([mean(other) for other in answer.neighbours], default=0.0)


def test_the_candidate_that_leads_back_is_remembered() -> None:
    rng, changed = np.random.default_rng(0), 0
    for _ in range(60):
        policy = Sentry(host=FIFO())
        masks = np.stack([rectangle(*rng.integers(0, 20, 2), 8, 8) for _ in range(3)])
        scores, others = rng.uniform(0.5, 0.9, 3), int(rng.integers(0, 3))
        boxes = lambda: tuple(random_box(rng) for _ in range(K))  # noqa: E731
        shown, of_others = boxes(), tuple(boxes() for _ in range(others))
        answers = tuple(ProbeAnswer((1, 2, 3, 4), boxes(), shown, of_others) for _ in range(3))
        seen = replace(hypotheses(masks, scores, 3.0), answers=answers)
        ranked = np.argsort(-scores, kind="stable")
        expected = ranked[int(np.argmax([literal_score(answer) for answer in answers]))]
        state = begin(policy)
        choice = policy.choose(state, at(1), seen)
        assert choice.output == CandidateId(0, int(expected)) and choice.remember == (choice.output,)
        written = policy.write(state, at(1), seen, choice, remembered(policy, 1, seen, choice))
        assert written.entries[0].pointer[1] == expected
        changed += expected != scores.argmax()
    assert 20 < changed < 55, "control: it is often another than the one of highest predicted IoU"


def test_where_nothing_is_held_the_host_decides() -> None:
    policy, masks = Sentry(host=FIFO()), np.stack([rectangle(2, 2, 8, 8), rectangle(20, 2, 8, 8)])
    seen = hypotheses(masks, [0.8, 0.75], 3.0)
    for answers in ((), (ProbeAnswer((), (), (), ()),) * 2):
        choice = policy.choose(begin(policy), at(1), replace(seen, answers=answers))
        assert choice.output == CandidateId(0, 0)


@pytest.mark.parametrize(
    ("places", "scores", "objectness", "doubtful"),
    [
        ([2, 20], [0.8, 0.75], 3.0, True),
        ([2, 20], [0.8, 0.69], 3.0, False),
        ([2, 4], [0.8, 0.75], 3.0, False),
        ([2, 20], [0.8, 0.75], -1.0, False),
        ([2, 3, 20], [0.8, 0.75, 0.72], 3.0, True),
        ([2, 3, 4, 20], [0.8, 0.79, 0.78, 0.77], 3.0, False),
    ],
)
@pytest.mark.parametrize("measured", [False, True])
def test_doubtful_frames(
    places: list[int], scores: list[float], objectness: float, doubtful: bool, measured: bool
) -> None:
    """A rival of nearly the same predicted IoU, elsewhere, among the best three of an object that is present."""
    for host in (FIFO(), Samurai()):
        policy = Sentry(host=host)
        seen = hypotheses(np.stack([rectangle(x, 2, 8, 8) for x in places]), scores, objectness)
        if measured:
            seen = replace(seen, measured=policy.measure(begin(policy), at(1), seen.masks, None))
        probes = policy.probes(begin(policy), at(1), seen)
        assert bool(probes) == doubtful
        assert [p.source for p in probes] == (
            [CandidateId(0, m) for m in range(min(3, len(places)))] if doubtful else []
        )
        assert all(p.ages == (1, 2, 3, 4) for p in probes)
        policy.choose(begin(policy), at(1), seen)


def test_in_the_tracker_masks_change_on_doubtful_frames_alone() -> None:
    frames, prompts = [features_at(t) for t in range(24)], {0: [mask_prompt(1), mask_prompt(2, 0, 1)]}
    plain, never, often = (
        run(micro_tracker(policy), frames, prompts)
        for policy in (FIFO(), Sentry(host=FIFO(), margin=-2.0), Sentry(host=FIFO(), margin=2.0, max_overlap=1.0))
    )
    assert all(torch.equal(a.masks, b.masks) for a, b in zip(plain, never))
    assert not all(torch.equal(a.masks, b.masks) for a, b in zip(plain, often)), "control"


def test_hosts() -> None:
    with pytest.raises(ValueError, match="expected a host with one pathway"):
        Sentry(host=build_policy("sam2long"))
    with pytest.raises(ValueError, match="asks the network nothing, got Template"):
        Sentry(host=build_policy("template"))


@pytest.mark.full
@pytest.mark.extended
def test_a_thousand_frames() -> None:
    policy = Sentry(host=FIFO(), margin=2.0, max_overlap=1.0)
    tracker = micro_tracker(policy)
    run(tracker, [features_at(0)], {0: [mask_prompt(1)]})
    for t in range(1, 1000):
        run(tracker, [features_at(t)], {})
        assert tracker.tracks[1].state.token_count() <= policy.capacity(16) and len(tracker.window) <= policy.window
