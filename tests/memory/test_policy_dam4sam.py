"""DAM4SAM: what is read when, the test for distractors, promotion, bounds, and the whole rule against a literal
version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import click_prompt, features_at, mask_prompt, micro_tracker, new_model, one_thread, run  # noqa: F401
from streams import TOKENS, at, begin, entry, furthest, hypotheses, reads, rectangle, track

from sam2_mem.memory.distractors import box_overlap
from sam2_mem.memory.policies.dam4sam import DAM4SAM, DistractorBank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection

LIKE_FIFO = {"max_box_overlap": 0.0, "memory_temporal_stride_for_eval": 1, "only_visible": False}
OBJECT, DISTRACTOR = rectangle(4, 4, 8, 8), rectangle(20, 20, 8, 8)
PLAIN = hypotheses(np.stack([OBJECT, OBJECT, OBJECT]), (0.9, 0.8, 0.7), 5)
PUZZLE = hypotheses(np.stack([OBJECT, DISTRACTOR, OBJECT]), (0.9, 0.8, 0.7), 5)
GONE = hypotheses(np.stack([OBJECT, DISTRACTOR, OBJECT]), (0.9, 0.8, 0.7), -5)


def tracked(policy: DAM4SAM, frames: range, puzzles: tuple[int, ...] = (), gone: range = range(0)) -> DistractorBank:
    """The state after ``frames``, the object being prompted on the one before them."""
    step = frames.step
    state = begin(policy, frames[0] - step)
    for t in frames:
        seen = GONE if t in gone else PUZZLE if t in puzzles else PLAIN
        state, _ = track(policy, state, at(t, reverse=step < 0), seen)
    return state


def choose(policy: DAM4SAM, state: DistractorBank, frame: FrameContext, seen: Hypotheses) -> MaskSelection:
    return policy.choose(state, frame, seen)


# Reading


@pytest.mark.parametrize(
    "t, expected",
    [(1, [0]), (3, [0, 2]), (7, [0, 5, 6]), (32, [0, 10, 15, 20, 25, 30, 31]), (31, [0, 5, 10, 15, 20, 25, 30])],
)
def test_frames_read(t: int, expected: list[int]) -> None:
    policy = DAM4SAM()
    found = reads(policy, tracked(policy, range(1, t)) if t > 1 else begin(policy), at(t))[0]
    assert found.frames == expected
    recent = [(slot, f) for f, slot, _ in found.maps if f != 0]
    assert sorted(recent) == list(enumerate(sorted(expected[1:], reverse=True))), "newest in slot 0"


def test_frames_read_beside_promoted_ones() -> None:
    policy = DAM4SAM()
    found = reads(policy, tracked(policy, range(1, 40), puzzles=(8, 15, 22, 30)), at(40))[0]
    assert found.prompts == [0, 15, 22, 30]
    assert [(f, s) for f, s, _ in found.maps if s != -1] == [(25, 2), (35, 1), (39, 0)]
    assert {f for f, _, _ in found.pointers} == {0, 15, 22, 30, *range(25, 40)}


def test_after_a_long_absence() -> None:
    policy = DAM4SAM()
    found = reads(policy, tracked(policy, range(1, 200), gone=range(100, 200)), at(200))[0]
    assert found.frames == [0, 75, 80, 85, 90, 95, 99]
    assert [f for f, _, _ in found.pointers] == [0], "no pointer of a frame without the object"
    everything = replace(policy, only_visible=False)
    found = reads(everything, tracked(everything, range(1, 200), gone=range(100, 200)), at(200))[0]
    assert found.frames == [0, 175, 180, 185, 190, 195, 199], "control"
    assert len(found.pointers) == 16


def test_a_frame_without_the_object_is_not_encoded() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 5))
    assert choose(policy, state, at(5), GONE).remember == ()
    empty = hypotheses(np.full((3, 32, 32), -5.0), (0.9, 0.8, 0.7), 5)
    assert choose(policy, state, at(5), empty).remember == ()
    assert len(choose(policy, state, at(5), PLAIN).remember) == 1
    unmeasured = replace(empty, areas=None)
    assert choose(policy, state, at(5), unmeasured).remember == ()


def test_prompts_anywhere_and_time_running_backwards() -> None:
    """The object comes in on frame 43 and goes back to frame 10."""
    policy = DAM4SAM()
    state = tracked(policy, range(42, 10, -1), puzzles=(30,))
    found = reads(policy, state, at(10, reverse=True))[0]
    assert found.prompts == [30, 43]
    assert [(f, s) for f, s, _ in found.maps if s != -1] == [(11, 0), (15, 1), (20, 2), (25, 3), (35, 4)]
    assert {f: round(offset * 15) for f, offset, _ in found.pointers}[30] == 20


def test_a_later_prompt_is_read_at_once() -> None:
    policy = DAM4SAM()
    state = policy.prompt(tracked(policy, range(1, 23)), at(23), entry(23, prompt=True))
    assert reads(policy, state, at(24))[0].prompts == [0, 23]
    for t in (5, 9, 15):
        state = policy.prompt(state, at(t), entry(t, prompt=True))
    assert reads(policy, state, at(24))[0].prompts == [0, 9, 15, 23], "the first, and the nearest of the others"


def test_after_a_turn_both_ways_can_be_read() -> None:
    """Forward from 50 far away, then backwards from 50: the frames just ahead of it are still there."""
    policy = DAM4SAM()
    state = tracked(policy, range(51, 300), puzzles=tuple(range(58, 300, 9)))
    found = reads(policy, state, at(49, reverse=True))[0]
    assert found.prompts == [50, 58, 67, 76]
    assert [f for f, s, _ in found.maps if s != -1] == [51, 55, 60]


# The test for distractors


def test_box_overlap_is_that_of_the_joint_box() -> None:
    """The distractor adds its largest part only; parts that touch at a corner are one. A side of a box is its last less its
    first pixel, as in the toolkit that the code takes its boxes from."""
    chosen, other = np.zeros((2, 40, 40), bool)
    chosen[10:20, 10:20] = True
    assert box_overlap(chosen, chosen) == box_overlap(chosen, other) == 1
    other[10:20, 10:30] = True
    assert box_overlap(chosen, other) == pytest.approx(9 * 9 / (9 * 19)) != pytest.approx(100 / 200)
    other[39, 39] = True
    assert box_overlap(chosen, other) == pytest.approx(9 * 9 / (9 * 19)), "a speck"
    other[:] = False
    other[0:4, 20:24] = other[4:8, 24:28] = other[8:12, 28:32] = True
    assert box_overlap(chosen, other) == pytest.approx(9 * 9 / (19 * 21)), "corners connect"
    line, longer = np.zeros((2, 40, 40), bool)
    line[5, 5:8] = longer[5, 5:20] = True
    assert box_overlap(line, longer) == 1, "no area on either side, so nothing to compare"
    assert box_overlap(line, other) == 0


@pytest.mark.parametrize("width, promoted", [(10, False), (11, True)])
def test_threshold_of_the_overlap(width: int, promoted: bool) -> None:
    """A box of 8 columns, 7 pixels apart, grown to 10 (7 / 9 = .78) and to 11 (.7); counted in whole pixels the latter would
    be .73, and no promotion."""
    policy = DAM4SAM()
    seen = hypotheses(np.stack([OBJECT, OBJECT, rectangle(4, 4, width, 8)]), (0.9, 0.1, 0.0), 5)
    choice = choose(policy, tracked(policy, range(1, 5)), at(5), seen)
    assert choice.remember[0].binarize is promoted


def with_area(width: int) -> Hypotheses:
    """The object 8 high and ``width`` wide, beside a distractor."""
    return hypotheses(np.stack([rectangle(4, 4, width, 8), DISTRACTOR]), (0.9, 0.1), 5)


def test_preconditions_of_promotion() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 12), puzzles=(5,))

    def promotes(t: int, seen: Hypotheses, state: DistractorBank = state) -> bool:
        choice = choose(policy, state, at(t), seen)
        return bool(choice.remember) and choice.remember[0].binarize

    assert promotes(12, PUZZLE)
    assert not promotes(12, replace(PUZZLE, iou=((0.8, 0.7, 0.6),))), "predicted IoU"
    assert promotes(12, replace(PUZZLE, iou=((0.81, 0.7, 0.6),)))
    assert not promotes(1, PUZZLE, begin(policy)), "the first tracked frame has no usual area"
    assert not promotes(12, PLAIN), "nothing else to see"
    assert not promotes(12, GONE), "absent"
    by_width = [promotes(12, with_area(w)) for w in (6, 7, 9, 10)]
    assert by_width == [False, True, True, False], "area .75, .875, 1.125, 1.25"


def test_a_promotion_needs_more_than_five_frames_since_the_last() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 50), puzzles=tuple(range(8, 50)))
    assert [e.frame for e in state.resolved] == [8, 14, 20, 32, 38, 44], "26 has left: near neither the prompt nor now"
    eager = DAM4SAM(min_gap=1)
    state = tracked(eager, range(1, 13), puzzles=tuple(range(8, 30)))
    assert [e.frame for e in state.resolved] == [8, 10, 12], "control"


def test_usual_area_is_that_of_the_last_ten_visible_frames_within_the_window() -> None:
    policy = DAM4SAM(area_window=20)
    state = tracked(policy, range(1, 40), gone=range(15, 25))
    assert [step for step, _ in state.areas] == list(range(30, 40))
    state = tracked(policy, range(1, 36), gone=range(5, 35))
    assert [step for step, _ in state.areas] == [35], "older ones are out of the window"
    state = tracked(policy, range(1, 20), gone=range(5, 20))
    assert [step for step, _ in state.areas] == [1, 2, 3, 4]


# Promotion


def marks(policy: DAM4SAM, state: DistractorBank, t: int, frame: int) -> list[tuple[int | None, float]]:
    """(slot, mark) under which ``frame`` is read at ``t``; binarised memory has mark .5."""
    items = policy.read(state, at(t))[0].items
    return [(i.slot, i.tokens.feat[0, 1].item()) for i in items if i.tokens.feat[0, 0] == frame]


def test_a_promoted_frame_is_recent_first_and_changes_over_on_the_frame_after() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 9), puzzles=(8,))
    assert marks(policy, state, 9, 8) == [(0, 0.5)]
    state, _ = track(policy, state, at(9), PLAIN)
    assert marks(policy, state, 10, 8) == [(-1, 0.5)]
    plain = tracked(policy, range(1, 9))
    assert marks(policy, plain, 9, 8) == [(0, 0.0)], "control: memory of the soft mask"


def test_a_promoted_frame_on_the_stride_is_read_once() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 14), puzzles=(10,))
    assert reads(policy, state, at(14))[0].frames == [0, 5, 10, 13]
    assert marks(policy, state, 14, 10) == [(-1, 0.5)]


def test_promoted_frames_are_forgotten_around_a_correction_and_when_tracked_again() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 25), puzzles=(8, 16))
    assert [e.frame for e in policy.forget(state, 14, 7).resolved] == []
    assert [e.frame for e in policy.forget(state, 22, 7).resolved] == [8]
    again, _ = track(policy, state, at(8), PLAIN)
    assert [e.frame for e in again.resolved] == [16]


def test_memory_is_bounded() -> None:
    policy = DAM4SAM(max_prompts=4)
    state = begin(policy)
    rng = np.random.default_rng(0)
    most = 0
    for t in range(1, 600):
        if t % 97 == 0:
            state = policy.prompt(state, at(t), entry(t, prompt=True))
            continue
        state, _ = track(policy, state, at(t), (PUZZLE, PLAIN, GONE)[rng.choice(3, p=[0.4, 0.4, 0.2])])
        most = max(most, state.token_count())
        assert len(state.areas) <= 10 and len(state.all_entries()) < 120
    assert most <= policy.capacity(TOKENS)
    assert most > 20 * TOKENS, "control: there is something to bound"


# The whole rule, literally


class Literal:
    """The published rule with a memory of everything, forward from one prompt at frame 0."""

    def __init__(self) -> None:
        self.visible: dict[int, bool] = {0: True}
        self.drm = [0]
        self.sizes: list[int] = []
        self.last_added = -1

    def read(self, t: int) -> tuple[list[int], list[int], list[int]]:
        anchors = [0, *[f for f in self.drm[1:] if f != t - 1][-3:]]
        recent: list[int] = []
        p = t - 1
        while p > 0 and (not self.visible[p] or (p in self.drm and p != t - 1)):
            p -= 1
        if p > 0:
            recent.append(p)
            p = 5 * ((p - 1) // 5)
            while p > 0 and len(recent) < 7 - len(anchors):
                if self.visible[p] and p not in self.drm:
                    recent.append(p)
                p -= 5
        pointers = {f for f in range(max(1, t - 15), t) if self.visible[f]} | set(anchors)
        return anchors, recent, sorted(pointers)

    def write(self, t: int, masks: np.ndarray, iou: np.ndarray, score: float) -> bool:
        best = int(np.argmax(iou))
        m = (masks[best] > 0) & (score > 0)
        self.visible[t] = bool(m.any())
        self.sizes.append(int(m.sum()))
        if len(self.sizes) < 2 or not m.any() or iou[best] <= 0.8:
            return False
        usual = np.median([s for s in self.sizes[-300:] if s > 0][-10:])
        rested = self.last_added == -1 or t - self.last_added > 5
        if not rested or not 0.8 <= m.sum() / usual <= 1.2:
            return False
        overlaps = [self.overlap(m, masks[j] > 0) for j in range(3) if j != best]
        if min(overlaps) > 0.7:
            return False
        self.drm.append(t)
        self.last_added = t
        return True

    @staticmethod
    def overlap(m: np.ndarray, other: np.ndarray) -> float:
        left = set(zip(*np.nonzero(other & ~m)))
        parts = []
        while left:
            part, front = set(), [left.pop()]
            while front:
                y, x = front.pop()
                part.add((y, x))
                near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= near
                front += near
            parts.append(part)
        if not parts:
            return 1.0
        ours = set(zip(*np.nonzero(m)))
        largest = max(sorted(parts, key=min), key=len)
        small, large = (np.prod(np.ptp(np.array(list(pixels)), axis=0)) for pixels in (ours, ours | largest))
        return small / large if large else 1.0


def random_frame(rng: np.random.Generator, t: int) -> tuple[np.ndarray, np.ndarray, float]:
    x, y = 8 + 4 * np.sin(t / 9), 8 + t / 30
    size = rng.choice([6, 7, 8], p=[0.1, 0.8, 0.1])
    masks = [rectangle(x, y, size, 7, 24)]
    for _ in range(2):
        grown = np.maximum(masks[0], rectangle(*rng.uniform(0, 20, 2), *rng.integers(1, 6, 2), 24))
        masks.append(np.maximum(grown, rectangle(*rng.uniform(0, 20, 2), 3, 2, 24)) if rng.random() < 0.5 else masks[0])
    iou = np.sort(rng.uniform(0.75, 1.0, 3))[::-1].astype(np.float32)
    return np.stack(masks), iou, -3.0 if 60 <= t < 90 or rng.random() < 0.05 else 3.0


@pytest.mark.parametrize("seed", range(5))
def test_policy_follows_the_literal_rule(seed: int) -> None:
    rng, policy = np.random.default_rng(seed), DAM4SAM()
    state, literal = begin(policy), Literal()
    promoted = 0
    for t in range(1, 200):
        found = reads(policy, state, at(t))[0]
        anchors, recent, pointers = literal.read(t)
        assert found.prompts == anchors, f"frame {t}"
        assert sorted((s, f) for f, s, _ in found.maps if s != -1) == list(enumerate(recent)), f"frame {t}"
        assert [f for f, _, _ in found.pointers] == pointers, f"frame {t}"
        masks, iou, score = random_frame(rng, t)
        state, choice = track(policy, state, at(t), hypotheses(masks, iou, score))
        expected = literal.write(t, masks, iou.astype(float), score)
        assert any(p.binarize for p in choice.remember) == expected, f"frame {t}"
        promoted += expected
    assert 5 < promoted < 60, "control: the test for distractors must say both yes and no"


# With a network


def test_equals_fifo_when_switched_off() -> None:
    prompts = {
        20: [mask_prompt(1, 20), click_prompt(2, 20, 1)],
        26: [mask_prompt(3, 26, 2)],
        14: [mask_prompt(4, 14, 2)],
    }
    for path, reverse in ((range(20, 50), False), (range(20, 0, -1), True)):
        runs = []
        for policy in (FIFO(), DAM4SAM(**LIKE_FIFO), DAM4SAM()):
            runs.append(run(micro_tracker(policy), [features_at(t) for t in path], prompts, reverse=reverse))
        assert furthest(runs[0], runs[1]) < 1e-5
        assert furthest(runs[0], runs[2]) > 1e-2, "control: switched on, it differs"


@pytest.mark.parametrize("binarized", [True, False])
def test_promoted_memory_is_made_as_that_of_a_prompt(binarized: bool) -> None:
    """From the hard mask with SAM 2's post-processing, which the code runs with; from the soft one without. The second tracked frame is the first that can be promoted; up to it both policies see the same. Where an object
    is present on it depends on the weights, so several stretches of the clip are tried."""
    always = DAM4SAM(min_iou=-1.0, min_area_ratio=0.0, max_area_ratio=1e9, max_box_overlap=1.0)
    model = new_model()
    model.binarize_prompted_masks = binarized
    compared = 0
    for start in range(0, 120, 10):
        prompts = {start: [mask_prompt(n + 1, start, n) for n in range(3)]}
        trackers = [micro_tracker(p, model=model) for p in (always, DAM4SAM(max_box_overlap=0.0))]
        for tracker in trackers:
            run(tracker, [features_at(start + t) for t in range(3)], prompts)
        promoted_entries = {n: e for n, t in trackers[0].tracks.items() for e in t.state.resolved}
        soft = {n: e for n, t in trackers[1].tracks.items() for e in t.state.entries if e.frame == start + 2}
        assert promoted_entries.keys() == soft.keys()
        for number, promoted in promoted_entries.items():
            assert torch.equal(promoted.pointer, soft[number].pointer), "the same mask"
            difference = (promoted.tokens.feat.float() - soft[number].tokens.feat.float()).abs().max()
            assert difference > 1e-3 if binarized else difference == 0
            compared += 1
    assert compared > 0, "control: some object must have been promoted"


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_cond_frames_in_attn": 0},
        {"num_maskmem": 4},
        {"memory_temporal_stride_for_eval": 0},
        {"min_area_ratio": 2.0},
        {"max_box_overlap": 1.5},
    ],
)
def test_wrong_values(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
        DAM4SAM(**wrong)


def test_tracking_can_go_on_after_a_frame_without_the_object() -> None:
    policy = DAM4SAM()
    state = tracked(policy, range(1, 50), gone=range(40, 50))
    assert state.can_resume(at(50))
    assert not state.can_resume(at(38)), "control"
    assert state.shift_frames(100).can_resume(at(150))
