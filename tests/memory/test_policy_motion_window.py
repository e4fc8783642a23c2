"""SAMITE's and SAMOSA's banks: what is read, against each rule written out literally; errors and recovery."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from streams import at, hypotheses, random_entry, read_by_frame, rectangle, write

from sam2_mem.memory.policies.samite import Samite
from sam2_mem.memory.policies.tamb import TAMB, SightingBank
from sam2_mem.types import PROMPT_SLOT, FrameContext, FrameFeatures, Hypotheses, MemoryEntry


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a @ b).item() / np.sqrt((a @ a).item() * (b @ b).item())


def samite_score(entry: MemoryEntry, newest: MemoryEntry, first: MemoryEntry) -> float:
    return 0.3 * cosine(entry.summary, newest.summary) + 0.7 * cosine(entry.summary, first.summary)


def tamb_score(entry: MemoryEntry, newest: MemoryEntry, first: MemoryEntry) -> float:
    """Without a mask there is no box to overlap with."""
    return entry.iou + 1 / (1 + exp(-entry.objectness))


@pytest.mark.parametrize("policy, score", [(Samite(), samite_score), (TAMB(), tamb_score)])
@pytest.mark.parametrize("frames", [90, pytest.param(1000, marks=pytest.mark.full)])
def test_what_is_read(policy: Samite | TAMB, score, frames: int) -> None:
    rng = np.random.default_rng(5)
    history = {0: random_entry(0, rng, prompt=True)}
    state, most = policy.prompt(None, at(0), history[0]), 0
    for t in range(1, frames):
        slots, offsets = read_by_frame(policy, state, at(t))
        good = [f for f in range(t - 1, 0, -1) if history[f].iou > 0.5 and history[f].objectness > 0][:30]
        newest, others = t - 1, [f for f in good if f != t - 1]
        best = sorted(others, key=lambda f: score(history[f], history[newest], history[0]))[-5:]
        ranked = [newest, *sorted(best, reverse=True)] if newest else []
        assert slots == {0: PROMPT_SLOT, **{f: slot for slot, f in enumerate(ranked)}}, f"frame {t}"
        assert sorted(offsets) == [0, *range(max(1, t - 15), t)]
        history[t] = random_entry(t, rng)
        state = write(policy, state, at(t), history[t])
        most = max(most, state.token_count())
    assert 20 * 9 < most <= policy.capacity(9) - 31 * 9


def test_frames_off_the_course_are_not_read_twice() -> None:
    """An object that moves steadily, then jumps: the frame of the jump is read on the next frame only."""
    rng, policy = np.random.default_rng(0), Samite(stable_frames_threshold=3)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in range(1, 12):
        x = 24 if t == 9 else 2 + t
        seen = hypotheses(rectangle(x, 4, 6, 6)[None], (0.9,), 5)
        choice = policy.choose(state, at(t), seen)
        assert (choice.kf_score is None) == (t <= 3), "once it has followed three frames"
        state = policy.write(state, at(t), seen, choice, [random_entry(t, rng, iou=0.9, objectness=5.0)])
        if t == 9:
            assert read_by_frame(policy, state, at(10))[0][9] == 0
    assert choice.kf_score is not None
    assert dict(state.overlaps)[9] == 0 < dict(state.overlaps)[8]
    assert 9 not in read_by_frame(policy, state, at(12))[0]
    assert 9 not in {e.frame for e in state.entries}
    moved = state.shift_frames(100)
    assert moved.motion is None and 109 in dict(moved.overlaps)
    assert state.add_prompt(random_entry(12, rng, prompt=True), 32).motion is None


# -- errors -----------------------------------------------------------------------------------------------------------

HERE, ELSEWHERE = rectangle(0, 0, 16, 16), rectangle(16, 16, 16, 16)


def picture(t: int, *, here: tuple[float, float], elsewhere: tuple[float, float]) -> FrameContext:
    """A frame of 2 x 2 cells with features of two channels: ``here`` in the first, ``elsewhere`` in the last."""
    low = torch.zeros(4, 2)
    low[0], low[3] = torch.tensor(here), torch.tensor(elsewhere)
    features = FrameFeatures(t, low, torch.zeros(4, 2), (torch.zeros(1), torch.zeros(1)), (2, 2))
    return FrameContext(index=t, features=features)


def shown(first: np.ndarray, second: np.ndarray) -> Hypotheses:
    return hypotheses(np.stack([first, second]), (0.9, 0.6), 5)


def tracked(policy: TAMB, state: SightingBank, frame: FrameContext, seen: Hypotheses) -> SightingBank:
    """One frame, whose summary is that of the chosen mask's cell."""
    choice = policy.choose(state, frame, seen)
    cell = 0 if seen.masks[0, choice.output.candidate, 0, 0] > 0 else 3
    entry = random_entry(frame.index, np.random.default_rng(0), iou=0.9, objectness=5.0)
    entry = replace(entry, summary=frame.features.low[cell])
    return policy.write(state, frame, seen, choice, [entry])


RED, BLUE = (1.0, 0.05), (-0.05, 1.0)


def test_an_error_begins_at_another_appearance_and_ends_with_the_old_one() -> None:
    policy = TAMB()
    state = policy.prompt(None, at(0), random_entry(0, np.random.default_rng(1), prompt=True))
    red = lambda t: picture(t, here=RED, elsewhere=BLUE)  # noqa: E731
    for t in range(1, 6):
        state = tracked(policy, state, red(t), shown(HERE, ELSEWHERE))
    assert not state.in_error and len(state.sightings) == 5
    for t in (6, 7):  # the object looks otherwise, and nothing looks like it
        state = tracked(policy, state, picture(t, here=BLUE, elsewhere=BLUE), shown(HERE, ELSEWHERE))
        assert len(state.sightings) == 5, "no look of an error is remembered"
        assert t in read_by_frame(policy, state, at(t + 1))[0], "while it lasts, its frames are read"
    assert state.in_error == (6, 7)
    back = picture(8, here=BLUE, elsewhere=RED)
    choice = policy.choose(state, back, shown(HERE, ELSEWHERE))
    assert choice.output.candidate == 1 and choice.likeness == pytest.approx(1.0, abs=1e-3), "of lower predicted IoU"
    state = tracked(policy, state, back, shown(HERE, ELSEWHERE))
    assert not state.in_error
    assert not {6, 7} & read_by_frame(policy, state, at(9))[0].keys() and 7 in state.tracked(), "the pointer stays"
    assert [(r.frame, r.text) for r in state.reasons][1:] == [(6, "tracked in error"), (7, "tracked in error")]


@pytest.mark.parametrize("fields", [{"recovery_likeness": 1.1}, {"min_shape": 0.9}])
def test_an_error_goes_on_without_a_likely_candidate(fields: dict) -> None:
    policy = TAMB(**fields)
    state = policy.prompt(None, at(0), random_entry(0, np.random.default_rng(1), prompt=True))
    for t in range(1, 6):
        state = tracked(policy, state, picture(t, here=RED, elsewhere=BLUE), shown(HERE, ELSEWHERE))
    state = tracked(policy, state, picture(6, here=BLUE, elsewhere=BLUE), shown(HERE, ELSEWHERE))
    thin = rectangle(16, 16, 16, 4)
    state = tracked(policy, state, picture(7, here=BLUE, elsewhere=RED), shown(HERE, thin))
    assert state.in_error == (6, 7)


def test_an_error_begins_at_a_sudden_change_of_the_box() -> None:
    policy = TAMB(max_change=0.5)
    state = policy.prompt(None, at(0), random_entry(0, np.random.default_rng(1), prompt=True))
    red = lambda t: picture(t, here=RED, elsewhere=RED)  # noqa: E731
    for t in range(1, 4):
        state = tracked(policy, state, red(t), shown(HERE, ELSEWHERE))
    wide = tracked(policy, state, red(4), shown(rectangle(0, 0, 31, 16), ELSEWHERE))
    assert wide.in_error == (4,) and wide.reasons[0].text == "in error: its box changes"
    assert not tracked(policy, state, red(4), shown(HERE, ELSEWHERE)).in_error, "control"
    prompted = wide.add_prompt(random_entry(5, np.random.default_rng(0), prompt=True), 32)
    assert not prompted.in_error and wide.shift_frames(3).in_error == (7,)
