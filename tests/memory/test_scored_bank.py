"""A policy from one method: beside a literal selection, and FIFO as a special case."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from micro import features_at, mask_prompt, micro_tracker, one_thread, run  # noqa: F401

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.scored_bank import ScoredBank
from sam2_mem.memory.trace import TraceRecord
from sam2_mem.types import MemoryEntry

PROMPTS = {0: [mask_prompt(1)], 9: [mask_prompt(1, 9, 2)]}


@dataclass(frozen=True, kw_only=True)
class Confident(ScoredBank):
    """Highest predicted IoU; frames without the object never."""

    def score(self, state: Bank, entry: MemoryEntry) -> float:
        return entry.iou if entry.objectness > 0 else -math.inf


@dataclass(frozen=True, kw_only=True)
class Newest(ScoredBank):
    def score(self, state: Bank, entry: MemoryEntry) -> float:
        return entry.frame


@dataclass(frozen=True, kw_only=True)
class Constant(ScoredBank):
    def score(self, state: Bank, entry: MemoryEntry) -> float:
        return 1.0


class Records:
    read_mass = False

    def __init__(self) -> None:
        self.records: list[TraceRecord] = []

    def on_change(self, record: TraceRecord) -> None:
        self.records.append(record)


def tracked(policy: MemoryPolicy, prompts: dict = PROMPTS, **settings: str) -> tuple[list, Records]:
    tracker = micro_tracker(policy, **settings)
    tracker.listener = Records()
    return run(tracker, [features_at(t) for t in range(30)], prompts), tracker.listener


@pytest.mark.parametrize("size", [0, 1, 3, 5])
def test_keeps_the_frames_of_highest_score(size: int) -> None:
    results, _ = tracked(Confident(size=size))
    bank: dict[int, float] = {}
    previous: dict[int, float] = {}
    for result in results:
        score = result.scores[0]
        if not score.prompted:
            bank |= previous
            bank = dict(sorted(bank.items(), key=lambda item: (-item[1], -item[0]))[:size])
            previous = {result.frame: score.iou if score.objectness > 0 else -math.inf}
        present = {f for f in bank if bank[f] > -math.inf}
        bank = {f: bank[f] for f in present}
        prompted = {f for f in PROMPTS if f <= result.frame}
        assert set(score.held) == prompted | present | set(previous)


def test_with_the_newest_frames_it_is_fifo() -> None:
    """For a prompt on one frame and a pass in one direction."""
    expected, actual, other = (
        torch.stack([r.masks for r in tracked(policy, {0: PROMPTS[0]}, memory_dtype="float32")[0]])
        for policy in (FIFO(), Newest(size=5), Newest(size=3))
    )
    assert (expected - actual).abs().max() < 1e-4
    assert (expected - other).abs().max() > 1e-3, "control"


def test_of_equal_scores_the_oldest_leaves() -> None:
    results, _ = tracked(Constant(size=3))
    assert results[-1].scores[0].held == (0, 9, 26, 27, 28, 29)


def test_reasons_say_which_score_lost_against_which() -> None:
    results, listener = tracked(Confident(size=2))
    iou = {r.frame: r.scores[0].iou for r in results}
    events = [e for record in listener.records for e in record.events if e.reason == "lowest score"]
    assert events
    for event in events:
        assert event.score in (iou[event.frame], -math.inf)
        assert event.limit is None or event.score <= event.limit
    kinds = {h.kind for h in listener.records[-1].held}
    assert kinds == {"prompt", "bank", "previous", "pointer"}


def test_capacity_is_reached_and_not_exceeded() -> None:
    results, _ = tracked(Constant(size=3))
    assert max(r.scores[0].tokens for r in results) == 16 * (2 + 3 + 1) <= Constant(size=3).capacity(16)
