"""Which frames to annotate next, against the rule written out literally."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from micro import blob, micro_predictor, one_thread, pictures  # noqa: F401

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policies.learned import Learned
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.suggestions import certainty, spread_over_time
from sam2_mem.tracking.track import MaskOutput
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import MemoryEntry, MemoryTokens

FRAMES = 24


def output(iou: float, objectness: float, area: float = 0.1) -> MaskOutput:
    return MaskOutput(0, torch.zeros(1, 1), torch.zeros(1), iou, objectness, area)


def test_certainty() -> None:
    assert certainty(output(0.8, 100.0)) == pytest.approx(0.8) and certainty(output(0.8, -100.0)) == pytest.approx(1.0)
    assert certainty(output(0.8, 0.0)) == 0
    assert certainty(output(0.5, 1.0)) == pytest.approx(0.5 * (2 / (1 + np.exp(-1.0)) - 1))
    assert certainty(output(0.5, -1.0)) == pytest.approx(1 - 2 / (1 + np.exp(1.0)))


def literal_values(order: tuple[int, ...], worth: dict[int, float], taken: set[int], count: int) -> list[float]:
    """What each frame of ``order`` is worth when it is chosen."""
    reach, values = max(1, len(worth) / (count + 1)), []
    for number, frame in enumerate(order):
        distances = [abs(frame - other) for other in (*taken, *order[:number])]
        values.append(worth[frame] * min([reach, *distances]) / reach)
    return values


@pytest.mark.parametrize("seed", range(4))
def test_of_all_orders_the_greedy_one_is_chosen(seed: int) -> None:
    rng = np.random.default_rng(seed)
    worth = {int(f): float(x) for f, x in zip(rng.choice(30, 8, replace=False), rng.uniform(0.1, 1, 8))}
    taken = {int(rng.integers(30))} - worth.keys()
    best = max(permutations(worth, 3), key=lambda order: literal_values(order, worth, taken, 3))
    assert spread_over_time(worth, 3, taken) == list(best)
    assert spread_over_time(dict.fromkeys(range(9), 1.0), 2, {0}) == [3, 6], "the earliest of equals"
    assert spread_over_time({4: 0.0, 5: 0.2}, 3) == [5] and spread_over_time({}, 3) == []


@pytest.fixture(scope="module")
def session() -> tuple[SAM2VideoPredictor, InferenceState]:
    predictor = micro_predictor()
    state = predictor.init_state(np.stack(pictures(FRAMES)))
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, blob(obj_id - 1))
    for _ in predictor.propagate_in_video(state):
        pass
    return predictor, state


def test_the_least_certain_frames_of_a_session(session: tuple[SAM2VideoPredictor, InferenceState]) -> None:
    predictor, state = session
    outputs = {
        obj_id: {f: state.tracker.recall.output(track, f) for f in range(1, FRAMES)}
        for obj_id, track in state.tracker.tracks.items()
    }
    doubt = {f: max(1 - certainty(outputs[obj_id][f]) for obj_id in outputs) for f in range(1, FRAMES)}
    expected = spread_over_time(doubt, 3, {0})
    assert predictor.suggest_frames(state, 3) == expected and len(expected) == 3
    assert all(abs(a - b) > 1 for a in (0, *expected) for b in expected if a != b), "apart"
    sure = spread_over_time({f: 1 - d for f, d in doubt.items()}, 3, {0})
    assert expected != sure, "control"
    alone = {f: 1 - certainty(outputs[2][f]) for f in range(1, FRAMES)}
    assert predictor.suggest_frames(state, 2, [2]) == spread_over_time(alone, 2, {0})


def test_the_best_frames_show_the_object(session: tuple[SAM2VideoPredictor, InferenceState]) -> None:
    predictor, state = session
    shown = {f: state.tracker.recall.output(state.tracker.tracks[1], f) for f in range(1, FRAMES)}
    best = predictor.best_frames(state, 1, 2)
    worth = {f: certainty(o) if o.objectness > 0 and o.area > 0 else 0.0 for f, o in shown.items()}
    assert best == spread_over_time(worth, 2) and worth[best[0]] == max(worth.values())
    assert min(o.objectness for o in shown.values()) < 0, "some frames are without it"
    assert len(predictor.best_frames(state, 1, 100)) <= sum(o.objectness > 0 for o in shown.values())


def test_the_best_frames_by_a_learned_score(session: tuple[SAM2VideoPredictor, InferenceState]) -> None:
    """As the policy chooses from what was given out; a score that keeps the oldest says that the weights count."""
    predictor, state = session
    track = state.tracker.tracks[2]
    assert track.state is not None
    outputs = [state.tracker.recall.output(track, f) for f in range(1, FRAMES)]
    shown = [o for o in outputs if o.objectness > 0 and o.area > 0]
    tokens = MemoryTokens(torch.ones(4, 2), torch.ones(4, 2))
    entry = lambda o: MemoryEntry(o.frame, tokens, o.pointer, o.iou, o.objectness, o.area)  # noqa: E731
    entries, prompts = [entry(o) for o in shown], [entry(e) for e in track.state.prompt_entries()]
    learned = build_policy("learned")
    assert isinstance(learned, Learned)
    best = predictor.best_frames(state, 2, 4, learned)
    assert best == replace(learned, size=4).best_of(prompts, entries) and len(best) == 4
    oldest = predictor.best_frames(state, 2, 4, Learned(age=1.0))
    assert sorted(oldest) == [o.frame for o in shown[:4]] != sorted(best), "control"
    assert 0 < len(shown) < FRAMES - 1, "frames without the object are not among them"
    assert set(predictor.best_frames(state, 2, 100, learned)) == {o.frame for o in shown}


def test_wrong_requests(session: tuple[SAM2VideoPredictor, InferenceState], caplog: pytest.LogCaptureFixture) -> None:
    predictor, state = session
    with pytest.raises(ValueError, match="expected a number of frames >= 1, got 0"):
        predictor.suggest_frames(state, 0)
    with pytest.raises(ValueError, match=r"expected some of the objects \[1, 2\], got \[7\]"):
        predictor.best_frames(state, 7, 1)
    with pytest.raises(ValueError, match=r'build_policy\("learned"\), got FIFO'):
        predictor.best_frames(state, 1, 1, build_policy("fifo"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="call propagate_in_video first"):
        predictor.suggest_frames(predictor.init_state(np.stack(pictures(2))), 1)
    short = micro_predictor(archive_bytes=0, history=4)
    other = short.init_state(np.stack(pictures(FRAMES)))
    short.add_new_mask(other, 0, 1, blob(0))
    for _ in short.propagate_in_video(other):
        pass
    with caplog.at_level(logging.WARNING):
        frames = short.suggest_frames(other, 2)
    assert frames and min(frames) > FRAMES - 6 and "are no longer held, so these are not among" in caplog.text
