"""SAMURAI: the filter against the 8 x 8 textbook one, the whole rule against a literal version, and faults that must
not be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import click_prompt, features_at, mask_prompt, micro_tracker, one_thread, run  # noqa: F401
from streams import TOKENS, at, begin, entry, furthest, hypotheses, reads, rectangle, track

from sam2_mem.memory.kalman_filter import BoxFilter, MaskBox, box_iou, mask_boxes
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.samurai import Samurai, SamuraiBank
from sam2_mem.prompts import Prompt

LIKE_FIFO = {
    "kf_score_weight": 0.0,
    "memory_bank_iou_threshold": -np.inf,
    "memory_bank_obj_score_threshold": -np.inf,
    "memory_bank_kf_score_threshold": -np.inf,
    "min_obj_score_logits": 0.0,
    "skip_first_frame": False,
}

# The filter


class TextbookFilter:
    """x, y, a, h and their velocities with full matrices."""

    def __init__(self, box: np.ndarray) -> None:
        z = self.measured(box)
        h = z[3]
        self.mean = np.r_[z, np.zeros(4)]
        self.cov = np.diag(np.square([h / 10, h / 10, 1e-2, h / 10, h / 16, h / 16, 1e-5, h / 16]))

    @staticmethod
    def measured(box: np.ndarray) -> np.ndarray:
        x0, y0, x1, y1 = box
        w, h = x1 - x0, (y1 - y0) or 1.0
        return np.array([x0 + w / 2, y0 + h / 2, w / h, h])

    def predict(self) -> None:
        h = self.mean[3]
        step = np.eye(8) + np.eye(8, k=4)
        noise = np.diag(np.square([h / 20, h / 20, 1e-2, h / 20, h / 160, h / 160, 1e-5, h / 160]))
        self.mean, self.cov = step @ self.mean, step @ self.cov @ step.T + noise

    def update(self, box: np.ndarray) -> None:
        h, see = self.mean[3], np.eye(4, 8)
        total = see @ self.cov @ see.T + np.diag(np.square([h / 20, h / 20, 1e-1, h / 20]))
        gain = np.linalg.solve(total, see @ self.cov).T
        self.mean = self.mean + gain @ (self.measured(box) - see @ self.mean)
        self.cov = self.cov - gain @ total @ gain.T

    def box(self) -> np.ndarray:
        x, y, a, h = self.mean[:4]
        return np.array([x - a * h / 2, y - h / 2, x + a * h / 2, y + h / 2])


def random_boxes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = rng.uniform(200, 800, 2) + np.cumsum(rng.normal(0, 8, (count, 2)), 0)
    size = rng.uniform(40, 90, 2) + np.cumsum(rng.normal(0, 2, (count, 2)), 0)
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)


def test_four_small_filters_are_the_large_one() -> None:
    boxes = random_boxes(0, 40)
    ours, textbook = BoxFilter.start(MaskBox(*boxes[0])), TextbookFilter(boxes[0])
    for number, box in enumerate(boxes[1:]):
        ours = ours.predict()
        textbook.predict()
        if number % 5:
            ours = ours.update(MaskBox(*box))
            textbook.update(box)
        parts = (ours.x, ours.y, ours.aspect, ours.height)
        assert [p.value for p in parts] + [p.speed for p in parts] == pytest.approx(list(textbook.mean), rel=1e-9)
        assert [p.vv for p in parts] + [p.ss for p in parts] == pytest.approx(list(np.diag(textbook.cov)), rel=1e-9)
        assert [p.vs for p in parts] == pytest.approx([textbook.cov[i, i + 4] for i in range(4)], rel=1e-6, abs=1e-15)
    assert max(p.speed for p in parts) > 0.1, "the boxes must move for this to mean anything"


def test_filter_scales_with_the_picture() -> None:
    boxes = random_boxes(1, 20)

    def last(scale: float) -> BoxFilter:
        f = BoxFilter.start(MaskBox(*boxes[0] * scale))
        for box in boxes[1:]:
            f = f.predict().update(MaskBox(*box * scale))
        return f

    one, four = last(1.0), last(4.0)
    assert four.x.value == pytest.approx(4 * one.x.value)
    assert four.height.vv == pytest.approx(16 * one.height.vv)
    assert four.aspect.value == pytest.approx(one.aspect.value)


def test_boxes_of_masks() -> None:
    masks = torch.full((4, 8, 8), -1.0)
    masks[0, 2:5, 1:8] = 1
    masks[1, 7, 7] = 1
    masks[3] = 1
    assert mask_boxes(masks) == [
        MaskBox(128, 256, 1023, 639),
        MaskBox(896, 896, 1023, 1023),
        None,
        MaskBox(0, 0, 1023, 1023),
    ]
    fine = torch.full((1, 1024, 1024), -1.0)
    fine[0, 10, 20:31] = 1
    assert mask_boxes(fine) == [MaskBox(20, 10, 30, 10)]
    assert BoxFilter.start(MaskBox(20, 10, 30, 10)).height.value == 1, "a height of zero counts as one"


def test_box_iou() -> None:
    assert box_iou(MaskBox(0, 0, 10, 10), MaskBox(5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_iou(MaskBox(0, 0, 10, 10), MaskBox(10, 0, 20, 10)) == 0
    assert box_iou(None, MaskBox(0, 0, 1, 1)) == box_iou(MaskBox(0, 0, 1, 1), None) == 0


# The three regimes


def candidates(*xs: float) -> np.ndarray:
    return np.stack([rectangle(x, 10, 8, 8) for x in xs])


def steady(policy: Samurai, frames: int) -> SamuraiBank:
    """An object seen at one place on frames 1..frames."""
    state = begin(policy)
    for t in range(1, frames + 1):
        state, _ = track(policy, state, at(t), hypotheses(candidates(10, 10, 10), (0.9, 0.1, 0.1), 5))
    return state


def test_motion_decides_once_the_filter_is_trusted() -> None:
    """The mask far away has the better predicted IoU, the other one lies where the object should be."""
    policy = Samurai(kf_score_weight=0.25)
    puzzle = hypotheses(candidates(24, 10, 0), (0.9, 0.75, 0.1), 5)
    for frames, expected in ((14, 0), (15, 1)):
        state = steady(policy, frames)
        assert state.motion.stable == frames
        assert policy.choose(state, at(frames + 1), puzzle).output.candidate == expected
    indifferent = Samurai(kf_score_weight=0.0)
    assert indifferent.choose(state, at(16), puzzle).output.candidate == 0, "control: no weight, no motion"


def test_joint_score_is_the_weighted_sum() -> None:
    policy = Samurai(kf_score_weight=0.15)
    state = steady(policy, 20)
    overlap = box_iou(state.motion.filter.predict().box(), mask_boxes(torch.from_numpy(candidates(10)))[0])
    assert overlap > 0.99
    tie = 0.5 + 0.15 / 0.85 * overlap
    for iou, expected in ((tie + 1e-6, 0), (tie - 1e-6, 1)):
        choice = policy.choose(state, at(21), hypotheses(candidates(24, 10, 0), (iou, 0.5, 0.1), 5))
        assert choice.output.candidate == expected
    assert choice.kf_score == pytest.approx(overlap)


@pytest.mark.parametrize("frames, iou, alive", [(3, 0.3, False), (3, 0.31, True), (20, 0.29, False), (20, 0.3, True)])
def test_a_low_predicted_iou_ends_the_filter(frames: int, iou: float, alive: bool) -> None:
    policy = Samurai()
    state, _ = track(policy, steady(policy, frames), at(frames + 1), hypotheses(candidates(10), (iou,), 5))
    assert (state.motion is not None) == alive
    if alive:
        assert state.motion.stable == min(frames + 1, 15)
    again, _ = track(policy, state, at(frames + 2), hypotheses(candidates(10), (0.2,), 5))
    assert (again.motion is None) == alive, "without a filter even a poor mask starts one"


# Faults of the published code


def test_an_absent_object_does_not_pull_the_filter_into_the_corner() -> None:
    policy = Samurai()
    for state in (begin(policy), steady(policy, 5), steady(policy, 20)):
        frame = 1 if state.motion is None else state.motion.frame + 1
        for masks, score in ((candidates(10), -3.0), (np.full((1, 32, 32), -9.0), 5.0)):
            after, _ = track(policy, state, at(frame), hypotheses(masks, (0.9,), score))
            assert after.motion is None
    seen, _ = track(policy, state, at(frame), hypotheses(candidates(10), (0.9,), -0.5))
    assert seen.motion is not None, "control: the gate is at -1"


def test_state_belongs_to_the_object() -> None:
    """The same policy object tracks a second object from scratch."""
    policy = Samurai()
    first = steady(policy, 20)
    second = begin(policy)
    assert first.motion.stable == 15 and second.motion is None
    again = steady(policy, 3)
    assert again.motion.stable == 3
    assert policy == Samurai()


def test_prompts_on_any_frame_and_time_running_backwards() -> None:
    policy = Samurai()
    for start, reverse in ((2, False), (7, False), (40, True)):
        state, step = begin(policy, start), -1 if reverse else 1
        for n in range(1, 20):
            frame = at(start + n * step, reverse=reverse)
            expected = {start} | {start + i * step for i in range(max(1, n - 6), n) if i != 1 or n == 2}
            assert reads(policy, state, frame)[0].frames == sorted(expected)
            state, _ = track(policy, state, frame, hypotheses(candidates(10), (0.9,), 5))
        assert state.motion.stable == 15
        assert policy.prompt(state, frame, entry(frame.index, prompt=True)).motion is None


def test_a_jump_in_time_starts_a_new_filter() -> None:
    policy = Samurai()
    state = steady(policy, 20)
    poor = hypotheses(candidates(24, 10), (0.9, 0.89), 5)
    for frame, expected in ((at(21), 1), (at(22), 0), (at(19, reverse=True), 0), (at(5), 0)):
        assert policy.choose(state, frame, poor).output.candidate == expected


# Memory selection


def test_frames_that_fail_a_threshold_are_not_read() -> None:
    policy = Samurai()
    state = begin(policy)
    scores = {3: (0.5, 5), 5: (0.9, 0.0), 6: (0.4, 5), 9: (0.3, -5.0)}
    for t in range(1, 10):
        iou, objectness = scores.get(t, (0.9, 5))
        state, _ = track(policy, state, at(t), hypotheses(candidates(10), (iou,), objectness))
    found = reads(policy, state, at(10))[0]
    assert [(f, s) for f, s, _ in found.maps] == [(0, -1), (2, 4), (4, 3), (7, 2), (8, 1), (9, 0)]
    assert [f for f, _, _ in found.pointers] == list(range(10)), "pointers do not care"
    state, _ = track(policy, state, at(10), hypotheses(candidates(10), (0.9,), 5))
    assert 9 not in reads(policy, state, at(11))[0].frames, "the previous frame is read whatever it is worth, once"


def frames_of_the_code(t: int) -> list[int]:
    """Frames whose maps the code reads on frame ``t`` where all are good: its walk stops before frame 1, and the previous frame
    is put to them if it is not there."""
    valid = list(range(t - 1, 1, -1))[:15]
    if t - 1 not in valid and t > 1:
        valid = [t - 1, *valid]
    return sorted(valid[:6])


def test_frame_one_is_never_accepted() -> None:
    """As in the code; read once, as the previous frame, and its pointer as any other."""
    policy, plain = Samurai(), Samurai(skip_first_frame=False)
    states = {p: begin(p) for p in (policy, plain)}
    differs = []
    for t in range(1, 12):
        found = {p: reads(p, states[p], at(t))[0] for p in states}
        assert [f for f, slot, _ in found[policy].maps if slot != -1] == frames_of_the_code(t), f"frame {t}"
        assert [f for f, _, _ in found[policy].pointers] == [f for f, _, _ in found[plain].pointers] == list(range(t))
        differs += [t] if found[policy].maps != found[plain].maps else []
        for p in states:
            states[p], _ = track(p, states[p], at(t), hypotheses(candidates(10), (0.9,), 5))
    assert differs == [3, 4, 5, 6, 7], (
        "control: judged by its scores, frame 1 is read as long as it is among the last six"
    )


def test_one_click_starts_the_filter() -> None:
    """As in the code, where the best of three masks answers it; boxes, masks and empty answers do not."""
    clicked = replace(entry(0, prompt=True), click_mask=torch.from_numpy(rectangle(10, 10, 8, 8)))
    policy = Samurai()
    state = policy.prompt(None, at(0), clicked)
    expected = BoxFilter.start(mask_boxes(clicked.click_mask[None])[0])
    assert state.motion.filter == expected and state.motion.stable == 1
    assert state.prompts[0].click_mask is None, "it is not kept"
    for step in (1, -1):
        after, choice = track(policy, state, at(step, reverse=step < 0), hypotheses(candidates(10, 24), (0.9, 0.1), 5))
        assert choice.predicted is not None and after.motion.stable == 2
        assert after.motion.filter == expected.predict().update(choice.box)
    for other in (
        policy.prompt(None, at(0), entry(0, prompt=True)),
        policy.prompt(None, at(0), replace(clicked, area=0.0)),
        Samurai(start_at_click=False).prompt(None, at(0), clicked),
    ):
        assert other.motion is None
        after, choice = track(policy, other, at(1), hypotheses(candidates(10), (0.9,), 5))
        assert choice.predicted is None and after.motion.stable == 1


def test_the_network_tells_clicks_from_other_prompts() -> None:
    box = Prompt(obj_id=1, box=[8, 8, 40, 40], size=(64, 64))
    two = replace(click_prompt(1), points=torch.tensor([[20.0, 20.0], [22.0, 22.0]]), labels=torch.tensor([1, 1]))
    started = []
    for prompt in (click_prompt(1), two, box, mask_prompt(1)):
        tracker = micro_tracker(Samurai(min_obj_score_logits=-50.0))  # clicks alone say little to the micro network
        run(tracker, [features_at(0)], {0: [prompt]})
        started.append(tracker.tracks[1].state.motion is not None)
        assert tracker.tracks[1].state.prompts[0].click_mask is None
    assert started == [True, False, False, False]
    assert Samurai(start_at_click=False).needs.click_mask is False


def test_a_mask_off_course_is_not_read() -> None:
    for threshold, expected in ((0.0, False), (-1.0, True)):
        policy = Samurai(memory_bank_kf_score_threshold=threshold)
        state, choice = track(policy, steady(policy, 20), at(21), hypotheses(candidates(24), (0.9,), 5))
        assert choice.kf_score == 0
        state, _ = track(policy, state, at(22), hypotheses(candidates(24), (0.9,), 5))
        assert (21 in reads(policy, state, at(23))[0].frames) == expected


class Literal:
    """The rule as published, with a memory of everything; departures of the policy are marked D."""

    def __init__(self, policy: Samurai) -> None:
        self.p = policy
        self.prompts: set[int] = set()
        self.skipped: set[int] = set()
        self.seen: dict[int, tuple[float, float, float | None]] = {}
        self.stable, self.filter, self.last = 0, None, None

    def prompt(self, frame: int) -> None:
        self.prompts.add(frame)
        self.seen.pop(frame, None)
        self.stable = 0  # D: a prompt ends the filter

    def good(self, frame: int) -> bool:
        iou, score, kf = self.seen[frame]
        return frame not in self.skipped and iou > 0.5 and score > 0 and (kf is None or kf > 0)

    def read(self, t: int, step: int) -> tuple[list[tuple[int, int]], list[int]]:
        known = sorted((f for f in self.seen.keys() | self.prompts if (t - f) * step > 0), key=lambda f: abs(t - f))
        valid = [f for f in known if f in self.prompts or self.good(f)][:15]  # D: a prompt keeps its place
        if t - step in self.seen and t - step not in valid:
            valid = [t - step, *valid]
        maps = [(f, -1) for f in self.prompts] + [(f, r) for r, f in enumerate(valid[:6]) if f not in self.prompts]
        near = [f for f in self.seen if 0 < (t - f) * step <= 15]
        return sorted(maps), sorted(near + [f for f in self.prompts if (t - f) * step >= 0])

    def choose(self, t: int, step: int, masks: np.ndarray, iou: np.ndarray, score: float) -> int:
        boxes = [self.box(m) if score > -1 else None for m in masks]
        if self.last != (t - step, step):
            self.stable = 0  # D: a jump in time ends the filter
        self.last = (t, step)
        kf, best = None, int(np.argmax(iou))
        if self.stable:
            self.filter.predict()
        if self.stable >= 15:
            overlaps = [0.0 if b is None else box_iou(MaskBox(*self.filter.box()), MaskBox(*b)) for b in boxes]
            weight = self.p.kf_score_weight
            best = int(np.argmax(weight * np.array(overlaps) + (1 - weight) * iou))
            kf = overlaps[best]
        self.follow(boxes[best], iou[best])
        self.skipped.discard(t)
        if t - (max(self.prompts) if step < 0 else min(self.prompts)) == step:
            self.skipped.add(t)  # the walk of the code ends before frame 1
        self.seen[t] = (iou[best], score, kf)
        return best

    def follow(self, box: np.ndarray | None, iou: float) -> None:
        if box is None:
            self.stable = 0  # D: nothing seen, nothing fed
        elif self.stable == 0:
            self.filter, self.stable = TextbookFilter(box), 1
        elif iou < 0.3 or (iou <= 0.3 and self.stable < 15):
            self.stable = 0
        else:
            self.filter.update(box)
            self.stable = min(self.stable + 1, 15)

    @staticmethod
    def box(mask: np.ndarray) -> np.ndarray | None:
        y, x = np.nonzero(mask > 0)
        if len(x) == 0:
            return None
        k = 1024 / mask.shape[-1]
        return np.array([x.min() * k, y.min() * k, (x.max() + 1) * k - 1, (y.max() + 1) * k - 1])


def random_frame(rng: np.random.Generator, t: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Three rectangles, one of them on the object's path."""
    x, y = 10 + 6 * np.sin(t / 9), 10 + t / 12
    masks = [rectangle(x, y, 8, 8), rectangle(*rng.uniform(0, 28, 2), 6, 9), rectangle(x + 1, y, 12, 8)]
    iou = rng.uniform(0.2, 1.0, 3) if rng.random() < 0.15 else rng.uniform(0.7, 1.0, 3)
    score = rng.choice([6.0, 2.0, -0.5, -2.0], p=[0.6, 0.34, 0.03, 0.03])
    return np.stack([masks[i] for i in rng.permutation(3)]), iou.astype(np.float32), score


@pytest.mark.parametrize("seed", range(6))
def test_policy_follows_the_literal_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    policy = Samurai(kf_score_weight=0.25)
    state, literal = begin(policy, 20), Literal(policy)
    literal.prompt(20)
    path = [(t, 1) for t in range(21, 130)] + [(t, -1) for t in range(19, -1, -1)]
    trusted = differs = 0
    for t, step in path:
        frame = at(t, reverse=step < 0)
        if t == 70:
            state = policy.prompt(state, frame, entry(t, prompt=True))
            literal.prompt(t)
            continue
        maps, pointers = literal.read(t, step)
        found = reads(policy, state, frame)[0]
        assert sorted((f, s) for f, s, _ in found.maps) == maps, f"frame {t}"
        assert sorted(f for f, _, _ in found.pointers) == pointers, f"frame {t}"
        masks, iou, score = random_frame(rng, t)
        trusted += literal.stable >= 15
        best = literal.choose(t, step, masks, iou.astype(float), float(score))
        differs += best != int(np.argmax(iou))
        state, choice = track(policy, state, frame, hypotheses(masks, iou, score))
        assert choice.output.candidate == best, f"frame {t}"
        assert state.token_count() <= policy.capacity(TOKENS)
    assert trusted > 5 and differs > 0, "control: the motion score must have had something to say"


# With a network


def test_equals_fifo_when_switched_off() -> None:
    """Three objects, one corrected on the way, one late; then backwards from the first prompt."""
    prompts = {4: [mask_prompt(1, 4), click_prompt(2, 4, 1)], 12: [mask_prompt(1, 12)], 9: [mask_prompt(3, 9, 2)]}
    forward, backward = [features_at(t) for t in range(4, 34)], [features_at(t) for t in range(3, -1, -1)]
    runs = []
    for policy in (FIFO(), Samurai(**LIKE_FIFO), Samurai()):
        tracker = micro_tracker(policy)
        runs.append(run(tracker, forward, prompts) + run(tracker, backward, {}, reverse=True))
    assert furthest(runs[0], runs[1]) < 1e-5
    assert furthest(runs[0], runs[2]) > 1e-2, "control: switched on, it differs"


def test_gate_lies_at_minus_one() -> None:
    assert Samurai().min_obj_score_logits == -1
    assert FIFO().min_obj_score_logits == 0, "control: the field of one policy is not that of all"


@pytest.mark.parametrize(
    "wrong",
    [{"kf_score_weight": 1.5}, {"num_maskmem": 0}, {"stable_frames_threshold": 0}, {"max_cond_frames_in_attn": 1}],
)
def test_wrong_values(wrong: dict) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}"):
        Samurai(**wrong)


def test_moved_memory_reads_the_same() -> None:
    policy = Samurai()
    state = steady(policy, 20)
    state = replace(state, off_course=(18,))
    there = state.shift_frames(100)
    here, far = reads(policy, state, at(21))[0], reads(policy, there, at(121))[0]
    assert here.maps == far.maps and 18 not in here.frames
