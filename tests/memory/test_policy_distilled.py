"""Distilled: which frames are whole, merged, merged twice or gone, under which slots; and what a network makes of
it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from micro import (  # noqa: F401
    encode,
    features_at,
    mask_prompt,
    micro_model,
    micro_tracker,
    one_thread,
    pictures,
    run,
)
from policy_contract import CHECKS, difference, snapshot
from torch import Tensor

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policies.distilled import Distilled, Summaries
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.keyframe import Keyframe
from sam2_mem.memory.policies.xmem import XMem
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.trace import Action, Cause, Change, TraceRecord, change_events
from sam2_mem.model.distiller import GridTokens, TemporalDistiller
from sam2_mem.model.sam2 import SAM2
from sam2_mem.training.multi_clip_tracker import MultiClipTracker, StackedFeatures
from sam2_mem.types import (
    MERGED_SLOT,
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
    ReadItem,
)

GRID = (4, 4)


def memory(value: float) -> MemoryTokens:
    """A map of which every cell is ``value``: what is merged from several is known by its mean and count."""
    return GridTokens()(torch.full((1, 8, *GRID), float(value)))[0]


def entry(frame: int, *, prompt: bool = False, objectness: float = 5.0) -> MemoryEntry:
    return MemoryEntry(frame, memory(frame), torch.full((8,), float(frame)), objectness=objectness, is_prompt=prompt)


def at(index: int, *, reverse: bool = False) -> FrameContext:
    return FrameContext(index, reverse=reverse)


NOTHING = Hypotheses(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8), ((1.0,),), (5.0,))
PICK = MaskSelection(CandidateId(0, 0), (CandidateId(0, 0),))


def settle(policy: Distilled, state: Summaries, frame: FrameContext) -> Summaries:
    """What the tracker does, with means."""
    while requests := policy.merge_requests(state, frame):
        for request in requests:
            tube = [e.tokens for e in request.entries]
            state = policy.take_merged(
                state, frame, request, GridTokens().merge_tubes([tube], GRID, request.strength)[0]
            )
    return state


def write(
    policy: Distilled, state: Summaries, index: int, *, reverse: bool = False, objectness: float = 5.0
) -> Summaries:
    frame = at(index, reverse=reverse)
    return settle(policy, policy.write(state, frame, NOTHING, PICK, [entry(index, objectness=objectness)]), frame)


def started(policy: Distilled, index: int = 0) -> Summaries:
    return policy.prompt(None, at(index), entry(index, prompt=True))


def after(policy: Distilled, frames: Iterable[int], *, reverse: bool = False, start: int = 0) -> Summaries:
    state = started(policy, start)
    for index in frames:
        state = write(policy, state, index, reverse=reverse)
    return state


Line = tuple[float | None, float, int, int]


def line(item: ReadItem) -> Line:
    """Slot, mean of what was merged, tokens, and how many cells they stand for."""
    counts = torch.zeros(len(item.tokens)) if item.tokens.log_count is None else item.tokens.log_count
    mean = (item.tokens.feat.mean(1) * counts.exp()).sum() / counts.exp().sum()
    return item.slot, round(mean.item(), 3), len(item.tokens), round(counts.exp().sum().item())


def lines(policy: Distilled, state: Summaries, frame: FrameContext) -> list[Line]:
    return [line(i) for i in policy.read(state, frame)[0].items]


# -- what is where ----------------------------------------------------------------------------------------------------


def test_recent_whole_then_pairs_then_fours() -> None:
    policy = Distilled(recent=2, tube=2, tail=2, strength=2)
    state = after(policy, range(1, 16))
    assert lines(policy, state, at(16)) == [
        (PROMPT_SLOT, 0, 16, 16),
        (1, 14, 16, 16),
        (0, 15, 16, 16),
        (2, 13, 16, 16),  # waits for 14
        (5, 9.5, 4, 32),
        (3, 11.5, 4, 32),
        (5, 2.5, 1, 64),
        (5, 6.5, 1, 64),
    ]


@dataclass
class Literal:
    """The same, written down as lists of frame numbers: whole, waiting, tail, far."""

    recent: int
    tube: int
    tail: int
    by_age: bool

    def run(
        self, written: Sequence[tuple[int, float]]
    ) -> tuple[list[int], list[int], list[list[int]], list[list[int]]]:
        whole: list[tuple[int, float]] = []
        waiting: list[int] = []
        near: list[list[int]] = []
        far: list[list[int]] = []
        for frame, score in written:
            whole.append((frame, score))
            while len(whole) > self.recent:
                gone, score = whole.pop(0)
                if score > 0:
                    waiting.append(gone)
                if len(waiting) == self.tube:
                    near.append(waiting)
                    waiting = []
                if len(near) > self.tail:
                    first = near.pop(0)
                    if self.by_age:
                        far.append(first + near.pop(0))
                    far = far[-self.tail :]
        return [f for f, _ in whole], waiting, near, far


@pytest.mark.parametrize("seed", range(12))
def test_brute_force(seed: int) -> None:
    dice = random.Random(seed)
    options = {
        "recent": dice.randint(1, 5),
        "tube": dice.randint(1, 4),
        "tail": dice.randint(1, 4),
        "by_age": seed % 2 == 0,
    }
    policy, literal = Distilled(**options), Literal(**options)
    state, written = started(policy), []
    for index in range(1, 50):
        score = dice.choice([5.0, 5.0, 5.0, -5.0])
        state = write(policy, state, index, objectness=score)
        written.append((index, score))
        whole, waiting, near, far = literal.run(written)
        assert [e.frame for e in state.entries if e.tokens is not None] == whole
        assert [e.frame for e in state.waiting] == waiting
        assert [list(s.frames) for s in state.tail] == near and [list(s.frames) for s in state.coarse] == far
        read = lines(policy, state, at(index + 1))
        means = [sum(f) / len(f) for f in near + far]
        assert [m for _, m, _, _ in read[1 + len(whole) + len(waiting) :]] == pytest.approx(means, abs=0.01)
        assert state.token_count() <= policy.capacity(16)
        assert [n for _, _, _, n in read[1:]] == [16] * (len(whole) + len(waiting)) + [16 * len(f) for f in near + far]


def test_slots() -> None:
    for slot, expected in (("newest", [4, 2]), ("mean", [4.5, 2.5]), ("learned", [MERGED_SLOT, MERGED_SLOT])):
        policy = Distilled(recent=2, tube=2, tail=3, slot=slot)
        state = after(policy, range(1, 7))
        assert [line(i)[0] for i in policy.read(state, at(7))[0].items][3:] == expected, slot
    old = lines(Distilled(slot="mean"), after(Distilled(slot="mean"), range(1, 30)), at(30))
    assert old[-1][0] == 5.0


def test_time_runs_backwards() -> None:
    policy = Distilled(recent=1, tube=2, tail=2, slot="mean")
    forward = lines(policy, after(policy, range(1, 14)), at(14))
    backward = lines(policy, after(policy, range(99, 86, -1), reverse=True, start=100), at(86, reverse=True))
    assert [(s, n, c) for s, _, n, c in forward] == [(s, n, c) for s, _, n, c in backward]
    assert [m for _, m, _, _ in backward] == pytest.approx([100 - m for _, m, _, _ in forward], abs=0.01)


def test_a_frame_is_never_read_on_itself_and_replaces_what_was_known_of_it() -> None:
    policy = Distilled(recent=1, tube=2, tail=4)
    state = after(policy, range(1, 12))
    assert any(s.meets(4) for s in state.summaries())
    assert not any(m == 4.5 or m == 3.5 for _, m, _, _ in lines(policy, state, at(4, reverse=True)))
    again = write(policy, state, 4, reverse=True)
    assert not any(s.meets(4) for s in again.summaries()) and 4 in {e.frame for e in again.entries}
    corrected = policy.prompt(state, at(4), entry(4, prompt=True))
    assert not any(s.meets(4) for s in corrected.summaries()) and len(corrected.prompts) == 2


def test_forget_and_move() -> None:
    policy = Distilled(recent=1, tube=2, tail=4)
    state = after(policy, range(1, 14))
    left = policy.forget(state, 6, 2)
    assert all(not 4 <= f <= 8 for s in left.summaries() for f in s.frames) and left.summaries()
    assert not any(4 <= e.frame <= 8 and e.tokens is not None for e in left.all_entries())
    moved = state.shift_frames(100)
    assert lines(policy, moved, at(114)) == lines(policy, state, at(14))
    assert [s.frames for s in moved.summaries()] == [tuple(f + 100 for f in s.frames) for s in state.summaries()]


def test_bounded_even_if_nobody_condenses() -> None:
    policy = Distilled()
    state = started(policy)
    for index in range(1, 60):
        state = policy.write(state, at(index), NOTHING, PICK, [entry(index)])
    assert len(state.waiting) <= 2 * policy.recent + policy.tube


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"recent": 0}, "expected recent in 1..6, got 0"),
        ({"recent": 7}, "expected recent in 1..6, got 7"),
        ({"tail": -1}, "expected tail >= 0, got -1"),
        ({"strength": 0}, "expected strength >= 1, got 0"),
        ({"slot": "oldest"}, "expected slot out of newest, mean, learned, got 'oldest'"),
    ],
)
def test_wrong_values(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distilled(**wrong)


# -- with a network ---------------------------------------------------------------------------------------------------


def shown(policy, model: SAM2 | None = None, frames: int = 30) -> Tensor:
    prompts = {0: [mask_prompt(1), mask_prompt(2, 0, 1)]}
    tracker = micro_tracker(policy, model=model, memory_dtype="float32")
    return torch.stack([r.masks for r in run(tracker, [features_at(i) for i in range(frames)], prompts)])


def test_without_a_tail_it_is_fifo() -> None:
    assert (shown(Distilled(recent=6, tail=0)) - shown(FIFO())).abs().max() < 1e-5
    assert (shown(Distilled()) - shown(FIFO())).abs().max() > 1e-2


def learned(aggregate: str = "attention", factor: int = 1) -> SAM2:
    model = copy.deepcopy(micro_model())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sizes = {"memory_width": 16, "key_width": 8, "num_heads": 4, "hidden": 16}
        model.memory_encoder.distiller = TemporalDistiller(factor=factor, aggregate=aggregate, **sizes)
    return model


@pytest.mark.parametrize("aggregate", ["attention", "gru"])
def test_an_untrained_distiller_tracks_as_means_do(aggregate: str) -> None:
    policy = Distilled(slot="learned")
    model = learned(aggregate)
    with torch.no_grad():
        means = shown(policy)
        assert (shown(policy, model) - means).abs().max() < 1e-4
        model.memory_encoder.distiller.merged_time += 1.0
        assert (shown(policy, model) - means).abs().max() > 1e-2


@pytest.mark.parametrize("factor", [pytest.param(1, marks=pytest.mark.full), 2])
def test_keyframes_compacted_by_the_distiller(factor: int) -> None:
    """Untrained as by means, trained not; what it is asked is served at once."""
    mean, asked = (Keyframe(recent=1, gap=2, min_iou=0.0, compact_by=by) for by in ("mean", "distiller"))
    model = learned(factor=factor)
    tracker = micro_tracker(asked, model=model)
    run(tracker, [features_at(i) for i in range(40)], {0: [mask_prompt(i, 0, i) for i in range(3)]})
    states = [track.state for track in tracker.tracks.values()]
    assert any(state.compact for state in states) and not any(state.demoted for state in states)
    with torch.no_grad():
        means = shown(mean, model)
        assert (shown(asked, model) - means).abs().max() < 1e-4
        for value in model.memory_encoder.distiller.refinement.change.plus.parameters():
            value += 0.5
        assert (shown(mean, model) - means).abs().max() < 1e-6
        assert (shown(asked, model) - means).abs().max() > 1e-2
    with pytest.raises(ValueError, match="expected compact_by out of mean, distiller, got 'pool'"):
        Keyframe(compact_by="pool")


XMEM = XMem(
    lt_mode="distilled", lt_strength=2, mem_every=2, max_working=4, min_working=2, max_long_term=10, num_prototypes=4
)


def test_long_term_memory_of_summaries() -> None:
    """Two frames of working memory at a time become four tokens, each with the place of its window."""
    model = learned()
    tracker = micro_tracker(XMEM, model=model)
    lengths = []
    for index in range(30):
        run(tracker, [features_at(index)], {0: [mask_prompt(1)]})
        state = tracker.tracks[1].state
        lengths.append(0 if state.long_term is None else len(state.long_term))
        assert len(state.working) < 3 and state.token_count() <= XMEM.capacity(16)
        assert lengths[-1] == 0 or any(len(i.tokens) == lengths[-1] for i in XMEM.read(state, at(index + 1))[0].items)
    assert lengths[5] == 0 < lengths[6] == 4 and max(lengths) == 10
    store = state.long_term
    assert store.tokens.log_count.exp().tolist() == pytest.approx([8.0] * 10)
    assert {tuple(xy) for xy in store.tokens.xy.tolist()} == {(0.5, 0.5), (2.5, 0.5), (0.5, 2.5), (2.5, 2.5)}
    with pytest.raises(ValueError, match="expected max_long_term >= evict_buffer . the 4 summaries"):
        shown(replace(XMEM, max_long_term=3, num_prototypes=3), model, frames=10)


@pytest.mark.full
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
def test_long_term_memory_of_summaries_keeps_the_contract(check: Callable[[MemoryPolicy], None]) -> None:
    check(replace(XMEM, max_long_term=40))


class Recorder:
    """Keeps what it receives."""

    read_mass = False

    def __init__(self) -> None:
        self.records: list[TraceRecord] = []

    def on_change(self, record: TraceRecord) -> None:
        self.records.append(record)


def test_reasons() -> None:
    policy = Distilled(recent=1, tail=1)
    recorder = Recorder()
    tracker = micro_tracker(replace(policy, min_object_score=-1e9))
    tracker.listener = recorder
    run(tracker, [features_at(i) for i in range(11)], {0: [mask_prompt(1)]})
    merged = [(m.frame, e.frame, e.reason) for m in recorder.records for e in m.events if e.action is Action.MERGED]
    pair, four = "into a summary of 2 frames", "into a summary of 4 frames"
    assert merged[:4] == [(3, 1, pair), (3, 2, pair)] + [(5, f, four) for f in (1, 2)]
    gone = [(m.frame, e.frame) for m in recorder.records for e in m.events if "full tail" in e.reason]
    assert gone == [(9, 4)]
    notes = {(n.frame, n.kind, n.text) for n in policy.entry_infos(tracker.tracks[1].state, at(11))}
    assert {(9, "waiting", ""), (10, "recent", ""), (8, "summary", "of frames 5, 6, 7, 8")} <= notes


def test_a_frame_merged_and_dropped_by_one_write_is_told_as_dropped() -> None:
    policy, frame = Distilled(recent=2, tube=1, tail=1, by_age=False), at(10)
    before, new = after(policy, range(1, 3)), entry(10)
    state = settle(policy, policy.write(before, frame, NOTHING, PICK, [new]), frame)
    events = change_events(Change(Cause.WRITE, frame, before, state, entries=(new,)))
    assert {(e.frame, e.action, e.reason) for e in events if e.frame in (1, 2)} == {
        (1, Action.REDUCED, "in the oldest summary of a full tail"),
        (2, Action.MERGED, "into a summary of 1 frames"),
    }


def test_merging_is_pure() -> None:
    policy = Distilled(recent=1, tail=2)
    state, frame = after(policy, range(1, 11)), at(11)
    grown = policy.write(state, frame, NOTHING, PICK, [entry(11)])
    before = snapshot(grown)
    (request,) = policy.merge_requests(grown, frame)
    assert policy.take_merged(grown, frame, request, memory(0)).tail[-1].frames == (9, 10)
    assert difference(before, snapshot(grown)) is None
    assert difference(before, snapshot(policy.take_merged(grown, frame, request, memory(0)))) is not None


def test_a_policy_that_never_stops_asking_is_stopped() -> None:
    class Endless(Distilled):
        def take_merged(self, state, frame, request, tokens):
            return state

    with pytest.raises(RuntimeError, match="Endless still asks to merge"):
        shown(Endless(), frames=12)


def test_gradients_of_a_later_mask_reach_the_distiller_in_lockstep_training() -> None:
    model = learned("gru").requires_grad_(False)
    model.memory_encoder.distiller.requires_grad_(True)
    with torch.no_grad():
        clip = encode(model, pictures(10))
    tracker = MultiClipTracker(model, build_policy(Distilled(recent=1, slot="learned")), clip_of=(0, 0))
    for index in range(10):
        stacked = StackedFeatures.of([clip[index]], index)
        tracker.step(stacked, [mask_prompt(0), mask_prompt(1, 0, 1)] if index == 0 else [])
    tracker.predictions[-1].conditioned.square().sum().backward()
    assert any(s.state.tail for s in tracker.tracks.values())
    asleep = [
        n for n, p in model.memory_encoder.distiller.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert asleep == []
