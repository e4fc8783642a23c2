"""Template matching: what is chosen, what becomes the template and when it is read, against the rule written out literally."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from streams import at, begin, hypotheses, read_by_frame, rectangle, remembered

from sam2_mem.memory.kalman_filter import MaskBox, mask_boxes
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.template import Template
from sam2_mem.memory.questions import ProbeAnswer
from sam2_mem.types import PROMPT_SLOT, CandidateId, Hypotheses


def frame_of(rng: np.random.Generator, *, answered: bool = True) -> tuple[Hypotheses, list[float], list[float]]:
    """Three squares and a preliminary result: what the policy is told, the IoU of boxes with the result, predicted IoU."""
    corners = rng.integers(0, 20, (4, 2))
    masks = np.stack([rectangle(x, y, 10, 10) for x, y in corners[:3]])
    if rng.random() < 0.5:
        masks[0] = rectangle(*corners[3], 10, 10)
    scores = rng.uniform(0.6, 1.0, 3)
    box = mask_boxes(hypotheses(rectangle(*corners[3], 10, 10)[None], [1.0], 1.0).masks[0])[0]
    objectness = 3.0 if rng.random() < 0.8 else -3.0
    seen = hypotheses(masks, scores, objectness)
    if objectness > 0 and answered:
        seen = replace(seen, answers=(ProbeAnswer((0,), (box,), (None,), ()),))
    overlaps = [overlap(mask, rectangle(*corners[3], 10, 10)) for mask in masks]
    return seen, overlaps, scores.tolist()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of boxes from the first to the last pixel's near corner."""
    spans = [[(np.flatnonzero((m > 0).any(i))[[0, -1]] * 32 + [0, 31]) for i in (0, 1)] for m in (a, b)]
    sides = [max(0.0, min(p[1], q[1]) - max(p[0], q[0])) for p, q in zip(*spans)]
    areas = [np.prod([span[1] - span[0] for span in of]) for of in spans]
    return np.prod(sides) / (sum(areas) - np.prod(sides))


@pytest.mark.parametrize("frames", [80, pytest.param(1000, marks=pytest.mark.full)])
def test_the_rule(frames: int) -> None:
    rng, policy = np.random.default_rng(1), Template(min_iou=0.7, gap=3)
    state, plain = begin(policy), begin(FIFO())
    template, became, changed = 0, [], 0
    for t in range(1, frames):
        slots, offsets = read_by_frame(policy, state, at(t))
        expected, pointers = read_by_frame(FIFO(), plain, at(t))
        assert slots == ({} if template in expected else {template: PROMPT_SLOT}) | expected and offsets == pointers
        seen, overlaps, scores = frame_of(rng)
        probes = policy.probes(state, at(t), seen)
        assert [(p.source.frame, p.ages) for p in probes] == ([(template, (0,))] if seen.objectness[0] > 0 else [])
        joint = [0.3 * o + 0.7 * s for o, s in zip(overlaps, scores)] if seen.answers else scores
        best = int(np.argmax(joint))
        choice = policy.choose(state, at(t), seen)
        assert choice.output == CandidateId(0, best)
        changed += best != int(np.argmax(scores))
        entries = remembered(policy, t, seen, choice)
        if seen.answers and overlaps[best] >= 0.7 and scores[best] > 0.7 and t - template >= 3:
            template = t
            became.append(t)
        state = policy.write(state, at(t), seen, choice, entries)
        plain = FIFO().write(plain, at(t), seen, choice, entries)
        assert (0 if state.template is None else state.template.frame) == template
        assert state.token_count() <= policy.capacity(4)
    assert len(became) > frames // 20 and changed > frames // 20, "control"


def test_a_prompt_is_a_new_template() -> None:
    rng, policy = np.random.default_rng(2), Template(min_agreement=-1, min_iou=-1, gap=1)
    state = begin(policy)
    for t in range(1, 12):
        seen, *_ = frame_of(rng)
        choice = policy.choose(state, at(t), seen)
        state = policy.write(state, at(t), seen, choice, remembered(policy, t, seen, choice))
    template = state.template
    assert template is not None and template.frame > 6
    assert state.forget(template.frame, 1).template is None and state.without(template.frame).template is None
    assert state.shift_frames(5).template.frame == template.frame + 5
    prompted = policy.prompt(state, at(12), replace(template, frame=12, is_prompt=True))
    assert prompted.template is None
    present = hypotheses(rectangle(2, 2, 9, 9)[None], [0.9], 3.0)
    assert [p.source.frame for p in policy.probes(prompted, at(13), present)] == [12], "the nearest behind"
    assert [p.source.frame for p in policy.probes(prompted, at(11), present)] == [0]
    assert [p.source.frame for p in policy.probes(prompted, at(3, reverse=True), present)] == [12]
    kinds = {i.frame: i.kind for i in policy.entry_infos(state, at(12))}
    assert kinds[template.frame] == "template" and kinds[0] == "prompt"


def test_agreement_is_that_of_boxes() -> None:
    policy, mask = Template(weight=1.0), np.stack([rectangle(2, 2, 8, 8), rectangle(20, 20, 8, 8)])
    seen = hypotheses(mask, [0.9, 0.1], 3.0)
    answer = ProbeAnswer((0,), (MaskBox(640, 640, 895, 895),), (None,), ())
    assert policy.choose(begin(policy), at(1), replace(seen, answers=(answer,))).output == CandidateId(0, 1)
    measured = policy.measure(begin(policy), at(1), seen.masks, None)
    told = replace(seen, answers=(answer,), measured=measured.flatten())
    assert policy.choose(begin(policy), at(1), told).output == CandidateId(0, 1)
    assert policy.choose(begin(policy), at(1), seen).output == CandidateId(0, 0), "control: nothing was asked"
