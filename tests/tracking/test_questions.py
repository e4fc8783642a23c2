"""What policies ask the network: answers against one row at a time, which frames are held, and what a question may not change."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from micro import (  # noqa: F401
    features_at,
    mask_prompt,
    micro_model,
    micro_predictor,
    one_thread,
    pictures,
    run,
)

from sam2_mem.memory.bounded import Bounded
from sam2_mem.memory.kalman_filter import MaskBox, mask_boxes
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import Needs
from sam2_mem.memory.questions import Probe, ProbeAnswer, mean_overlap
from sam2_mem.tracking.batching import batch_reads
from sam2_mem.tracking.track import gated_output
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    Hypotheses,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadPointer,
)

TWO = {0: [mask_prompt(1), mask_prompt(2, 0, 1)]}


@dataclass(frozen=True, kw_only=True)
class Curious(FIFO):
    """FIFO that asks of every candidate where it was, and of the prompt where it is; what it is told is noted."""

    asked: list[tuple[FrameContext, Hypotheses, Any]] = field(default_factory=list)
    every: int = 2

    @property
    def needs(self) -> Needs:
        return Needs(window=3)

    def probes(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> Sequence[Probe]:
        if frame.index % self.every:
            return ()
        candidates = [Probe(CandidateId(0, m), (1, 2, 3)) for m in range(3)]
        return (*candidates, Probe(state.prompts[0], (0, 2)))

    def choose(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> Any:
        self.asked.append((frame, hypotheses, state.prompts[0]))
        return super().choose(state, frame, replace(hypotheses, answers=()))


def box_alone(tracker: Tracker, entry: MemoryEntry, frame: int) -> MaskBox | None:
    """One row that reads one entry and its pointer, by the network's own steps."""
    features = features_at(frame)
    pointer = ReadPointer(entry.pointer, abs(frame - entry.frame) / 15)
    read = MemoryRead((ReadItem(entry.tokens, PROMPT_SLOT),), (pointer,))
    [rows] = batch_reads([read], tracker.model).batches
    decoded = tracker.model.decode(tracker.model.attend(features, rows).features, features)
    if decoded.objectness[0] <= 0:
        return None
    return mask_boxes(decoded.masks[0, decoded.iou[0].argmax()][None])[0]


@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_answers_are_those_of_one_row_at_a_time(reverse: bool) -> None:
    policy = Curious()
    tracker = Tracker(micro_model(), policy, settings=TrackerSettings(memory_dtype="float32"))
    prompts = {20: [mask_prompt(1, 20), mask_prompt(2, 20, 1)]}
    order = [features_at(20 + (-t if reverse else t)) for t in range(9)]
    run(tracker, order, prompts, reverse=reverse)
    checked, present = 0, 0
    for number, (frame, hypotheses, prompt) in enumerate(policy.asked):
        if frame.index % 2:
            assert hypotheses.answers == ()
            continue
        *candidates, of_prompt = hypotheses.answers
        held = min(3, abs(frame.index - 20))
        behind = [frame.index + (age if reverse else -age) for age in range(1, held + 1)]
        outputs = [gated_output(tracker.model, frame.index, hypotheses, CandidateId(0, m), 0.0) for m in range(3)]
        entries = tracker.writer.encode_outputs([tracker.tracks[1]] * 3, features_at(frame.index), outputs)
        for entry, answer in zip(entries, candidates, strict=True):
            assert answer.ages == tuple(range(1, held + 1))
            assert answer.boxes == tuple(box_alone(tracker, entry, f) for f in behind)
            own, other = (1, 2) if number % 2 == 0 else (2, 1)
            shown = [
                tuple(mask_boxes(tracker.tracks[i].outputs[f].logits[None])[0] for f in behind) for i in (own, other)
            ]
            assert answer.shown_boxes == shown[0] and answer.neighbours == (shown[1],)
            checked, present = checked + 1, present + sum(box is not None for box in answer.boxes)
        ages = tuple(a for a in (0, 2) if a <= held)
        assert of_prompt.ages == ages
        assert of_prompt.boxes[0] == box_alone(tracker, prompt, frame.index)
    assert checked == 24 and (present > 20 or reverse), "control: something is to be seen"


def test_questions_change_nothing_by_themselves() -> None:
    frames = [features_at(t) for t in range(8)]
    plain = run(Tracker(micro_model(), FIFO()), frames, TWO)
    policy = Curious(every=1)
    curious = run(Tracker(micro_model(), policy), frames, TWO)
    assert all(torch.equal(a.masks, b.masks) for a, b in zip(plain, curious))
    assert sum(len(hypotheses.answers) for _, hypotheses, _ in policy.asked) == 2 * 7 * 4


def test_frames_before_a_jump_are_not_held() -> None:
    policy = Curious(every=1)
    tracker = Tracker(micro_model(), policy)
    run(tracker, [features_at(t) for t in (0, 1, 2, 10, 11)], TWO)
    ages = [hypotheses.answers[0].ages for _, hypotheses, _ in policy.asked[::2]]
    assert ages == [(1,), (1, 2), (), (1,)]
    assert len(tracker.window) == 3
    tracker.clear()
    assert tracker.window == ()


def test_a_bound_passes_questions_on_and_clips_refuse_them() -> None:
    policy = Curious(every=1)
    tracker = Tracker(micro_model(), Bounded(policy=policy, max_bytes=2**20, bytes_per_token=32))
    run(tracker, [features_at(t) for t in range(3)], TWO)
    assert all(len(hypotheses.answers) == 4 for _, hypotheses, _ in policy.asked)
    for asking in ("sentry", policy):
        with pytest.raises(ValueError, match="clip_length=1"):
            micro_predictor(asking, clip_length=2)


def test_a_copied_session_keeps_its_frames() -> None:
    predictor = micro_predictor(Curious(every=1))
    state = predictor.init_state(pictures(6))
    predictor.add_new_mask(state, 0, 1, mask_prompt(1).mask)
    results = predictor.propagate_in_video(state)
    for _ in range(4):
        next(results)
    twin = deepcopy(state)
    next(results)
    assert [f.index for f in twin.tracker.window] == [1, 2, 3] != [f.index for f in state.tracker.window]


def test_mean_overlap() -> None:
    square, half = MaskBox(0, 0, 10, 10), MaskBox(0, 0, 10, 5)
    assert mean_overlap((square, None, square), (half, None, None)) == pytest.approx((0.5 + 1 + 0) / 3)
    assert mean_overlap((), ()) == 0
    assert ProbeAnswer((), (), (), ()).neighbours == ()
