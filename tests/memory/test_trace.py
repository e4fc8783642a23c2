"""What memory tells about itself: it changes nothing, costs nothing when nobody listens, gives the right reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from micro import (
    POLICIES,
    TOKENS,
    features_at,
    in_tiers,
    mask_prompt,
    micro_model,
    micro_predictor,
    micro_tracker,
    one_thread,  # noqa: F401
    pictures,
    run,
)
from policy_contract import leaves
from torch import Tensor

from sam2_mem.build_sam import build_policy
from sam2_mem.config import policy_names
from sam2_mem.memory import trace
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.bounded import Bounded, least_capacity
from sam2_mem.memory.policies.dam4sam import DAM4SAM
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.hq_smem import HQSMem
from sam2_mem.memory.policies.keyframe import Keyframe
from sam2_mem.memory.policies.rmem import RMem
from sam2_mem.memory.policies.sam2long import SAM2Long
from sam2_mem.memory.policies.samurai import Samurai
from sam2_mem.memory.policies.xmem import XMem
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.significance import significances
from sam2_mem.memory.trace import Action, Cause, Change, EntryInfo, TraceEvent, TraceRecord, change_events
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import (
    CandidateId,
    FrameContext,
    FrameFeatures,
    FrameResult,
    Hypotheses,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadItem,
    ReadUsage,
    Usage,
)

FRAMES = 40


class Recorder:
    def __init__(self, *, read_mass: bool = False) -> None:
        self.read_mass = read_mass
        self.moments: list[TraceRecord] = []

    def on_change(self, record: TraceRecord) -> None:
        self.moments.append(record)

    def events(self, action: Action, obj_id: int = 1) -> list[TraceEvent]:
        return [e for m in self.moments if m.obj_id == obj_id for e in m.events if e.action is action]


def track(policy: MemoryPolicy | str, listener: Any = None, count: int = FRAMES) -> tuple[Tracker, list[FrameResult]]:
    tracker = micro_tracker(policy, clear_non_cond_mem_around_input=True, clear_non_cond_mem_for_multi_obj=True)
    tracker.listener = listener
    prompts = {0: [mask_prompt(1), mask_prompt(2, 0, 1)], 17: [mask_prompt(2, 17, 1)]}
    return tracker, run(tracker, [features_at(i) for i in range(count)], prompts)


# -- it changes nothing -----------------------------------------------------------------------------------------------


def differences(one: Any, other: Any) -> list[str]:
    """Paths at which two states differ, to the bit."""
    found = []
    for (path, a), (there, b) in zip(leaves(one), leaves(other), strict=True):
        same = torch.equal(a, b) if isinstance(a, Tensor) else a == b
        if path != there or not same:
            found.append(path)
    return found


@pytest.mark.parametrize("name", in_tiers(policy_names(), ["fifo", "sam2long", "xmem"]))
@pytest.mark.full
def test_listening_changes_no_bit(name: str) -> None:
    quiet, plain = track(name, count=30)
    for read_mass in (False, True) if name in POLICIES else (True,):
        heard, results = track(name, Recorder(read_mass=read_mass), count=30)
        assert all(torch.equal(a.masks, b.masks) and a.scores == b.scores for a, b in zip(plain, results, strict=True))
        assert [differences(quiet.tracks[i].state, heard.tracks[i].state) for i in (1, 2)] == [[], []]


def test_that_a_changed_bit_would_be_noticed() -> None:
    one, other = track("fifo", count=6)[0].tracks[1].state, track("fifo", count=6)[0].tracks[1].state
    other.entries[-1].tokens.feat[0, 0] += 1
    assert len(differences(one, other)) == 1 and "tokens.feat" in differences(one, other)[0]


@dataclass(frozen=True, kw_only=True)
class Counting(FIFO):
    """Counts every call of a verb, in a dict that all copies share."""

    calls: Counter = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_") and name != "calls":
            super().__getattribute__("calls")[name] += 1
        return found

    def entry_infos(self, state: Bank, frame: FrameContext) -> Sequence[EntryInfo]:
        return trace.plain_infos(state.all_entries())


FEW = 20


def calls(listener: Any) -> Counter:
    counted = Counter()
    track(Counting(calls=counted), listener, count=FEW)
    return counted


def test_nobody_listening_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counter()
    for name in ("trace_record", "Change"):
        original = getattr(trace, name)
        spy = lambda *a, _name=name, _original=original, **k: made.update([_name]) or _original(*a, **k)  # noqa: E731
        monkeypatch.setattr(f"sam2_mem.tracking.tracker.{name}", spy)
    usages = []
    attend = type(micro_model()).attend
    heard = lambda m, f, b, u=Usage.NONE: usages.append(u) or attend(m, f, b, u)  # noqa: E731
    monkeypatch.setattr(type(micro_model()), "attend", heard)
    off = calls(None)
    assert made == {} and "entry_infos" not in off and set(usages) == {Usage.NONE}
    moving = 2 * FEW - 3
    assert off["read"] == off["write"] == off["choose"] == moving
    on = calls(Recorder())  # the control: listening does call
    assert on["read"] > off["read"] and on["entry_infos"] > 0 and made["trace_record"] == made["Change"] > 0
    assert set(usages) == {Usage.NONE}
    calls(Recorder(read_mass=True))
    assert Usage.TOKENS in usages


@dataclass(frozen=True, kw_only=True)
class Suspicious(FIFO):
    """Notes on which frames it was given attention that it did not ask for."""

    seen: list = None

    def write(self, state, frame, hypotheses, selection, entries):
        self.seen.append(hypotheses.usage)
        return super().write(state, frame, hypotheses, selection, entries)


def test_policies_do_not_see_what_was_measured_for_the_listener() -> None:
    seen: list = []
    track(Suspicious(seen=seen), Recorder(read_mass=True), count=5)
    assert seen and set(seen) == {None}


# -- read mass --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", in_tiers(POLICIES, ["fifo", "sam2long", "xmem"]))
def test_read_mass_is_a_share_or_absent(name: str) -> None:
    silent, loud = Recorder(), Recorder(read_mass=True)
    track(name, silent, count=24)
    track(name, loud, count=24)
    assert {r.mass for m in silent.moments for r in m.readings} == {None}
    for m in loud.moments:
        for pathway in range(m.pathways):
            masses = [r.mass for r in m.readings if r.pathway == pathway]
            assert all(0.0 <= x <= 1.0 for x in masses) and sum(masses) <= 1.0 + 1e-4
        if m.cause is Cause.WRITE:
            assert m.readings and sum(r.mass for r in m.readings) > 0.01
    assert all(m.readings == () for m in loud.moments if m.cause is not Cause.WRITE)


def test_read_mass_is_that_of_the_attention() -> None:
    by_tokens = ReadUsage(tokens=(torch.tensor([1.0, 2.0]), torch.tensor([1.0])))
    by_query = ReadUsage(items=torch.tensor([[0.5, 0.25], [1.0, 0.0], [0.75, 0.25], [0.75, 0.5]]))
    assert trace.shares(by_tokens, 4) == [0.75, 0.25]
    assert trace.shares(by_query, 4) == [0.75, 0.25]
    assert trace.shares(ReadUsage(tokens=(), items=torch.zeros(4, 0)), 4) == []


# -- every policy -----------------------------------------------------------------------------------------------------


TOLD_BELOW = ("dam4sam", "hq_smem", "keyframe", "rmem", "sam2long", "samurai")
"""Policies whose reasons are also checked one by one, which suffices before a commit."""


@pytest.mark.parametrize("name", in_tiers(POLICIES, set(POLICIES) - set(TOLD_BELOW)))
def test_events_and_notes_agree_with_what_is_held(name: str) -> None:
    recorder = Recorder()
    tracker, results = track(name, recorder)
    for obj_id in (1, 2):
        mine = [m for m in recorder.moments if m.obj_id == obj_id]
        for one, following in pairwise(mine):
            assert {(h.frame, h.kind) for h in one.held} == {(h.frame, h.kind) for h in following.held_before} or (
                one.frame != following.frame
            )
            assert {h.frame for h in one.held} == {h.frame for h in following.held_before}
        for m in mine:
            check_moment(m)
        state = tracker.tracks[obj_id].state
        whole = {e.frame for e in state.all_entries() if e.tokens is not None}
        assert {h.frame for h in mine[-1].held if h.tokens and h.frame is not None} == whole
        assert mine[-1].tokens == state.token_count() == results[-1].scores[obj_id - 1].tokens
        assert {m.frame for m in mine} == set(range(FRAMES))


def check_moment(m: TraceRecord) -> None:
    """The events are the difference between memory before and after, and each has a reason."""
    before, after = ({h.frame for h in held if h.frame is not None} for held in (m.held_before, m.held))
    came = {e.frame for e in m.events if e.action in (Action.WRITTEN, Action.REPLACED)}
    gone = {e.frame for e in m.events if e.action in (Action.EVICTED, Action.MERGED)} - {None}
    evicted = {e.frame for e in m.events if e.action is Action.EVICTED}
    assert after - before <= came and before - after <= gone and evicted.isdisjoint(after - came)
    lost = {h.frame for h in m.held_before if h.tokens} - {h.frame for h in m.held if h.tokens} - {None}
    told = {e.frame for e in m.events if e.action in (Action.REDUCED, Action.EVICTED, Action.MERGED, Action.REPLACED)}
    assert lost <= told
    assert all(e.reason for e in m.events)
    if m.cause is Cause.WRITE:
        assert {r.frame for r in m.readings} <= {h.frame for h in m.held_before}
        assert all(r.slot is None or -1 <= r.slot <= 5 for r in m.readings)


@dataclass(frozen=True, kw_only=True)
class Silent(MemoryPolicy[Bank]):
    """Overrides nothing of tracing: the prompt and the last two frames."""

    def capacity(self, tokens_per_map: int) -> int:
        return tokens_per_map * 40

    def read(self, state, frame) -> Sequence[MemoryRead]:
        return (MemoryRead(items=tuple(ReadItem(e.tokens, 0) for e in state.all_entries() if e.tokens is not None)),)

    def write(self, state, frame, hypotheses, selection, entries):
        return state.keep_near({frame.index}, token_reach=1, pointer_reach=2).add(*entries)


def test_a_policy_that_overrides_nothing() -> None:
    recorder = Recorder(read_mass=True)
    track(Silent(), recorder, count=5)
    first, *_, last = [m for m in recorder.moments if m.obj_id == 1]
    assert [(e.action, e.frame, e.reason) for e in first.events] == [(Action.WRITTEN, 0, "prompted")]
    assert [(e.action, e.frame) for e in last.events] == [
        (Action.WRITTEN, 4),
        (Action.REDUCED, 2),
        (Action.EVICTED, 1),
    ]
    assert sorted((h.frame, h.kind, h.tokens) for h in last.held) == [
        (0, "prompt", TOKENS),
        (2, "pointer", 0),
        (3, "map", TOKENS),
        (4, "map", TOKENS),
    ]
    assert [(r.frame, r.slot) for r in last.readings] == [(0, 0), (2, 0), (3, 0)]


# -- other causes -----------------------------------------------------------------------------------------------------


def test_forgetting_taking_back_and_loading_are_heard(tmp_path) -> None:
    predictor, recorder = micro_predictor(clear_non_cond_mem_around_input=True), Recorder()
    state = predictor.init_state(pictures(12))
    predictor.listen(state, recorder)
    predictor.add_new_mask(state, 0, 1, mask_prompt(1).mask)
    for _ in predictor.propagate_in_video(state):
        pass
    predictor.add_new_mask(state, 6, 1, mask_prompt(1, 6).mask)
    for _ in predictor.propagate_in_video(state, start_frame_idx=6):
        pass
    forgot = [m for m in recorder.moments if m.cause is Cause.FORGET and m.frame == 6]
    assert {(e.action, e.reason) for e in forgot[0].events} == {(Action.EVICTED, "near a correction")}
    predictor.clear_all_prompts_in_frame(state, 6, 1)
    assert [(e.action, e.frame) for e in recorder.moments[-1].events] == [(Action.RELEASED, 6)]
    predictor.save_memory(state, 1, tmp_path / "memory.safetensors")
    other = predictor.init_state(pictures(12))
    predictor.listen(other, recorder)
    predictor.load_memory(other, 9, tmp_path / "memory.safetensors", frozen=True)
    assert recorder.moments[-1].cause is Cause.LOAD and recorder.moments[-1].obj_id == 9
    heard = len(recorder.moments)
    for _ in predictor.propagate_in_video(other, start_frame_idx=0):
        pass
    frozen = recorder.moments[heard:]
    assert {m.cause for m in frozen} == {Cause.READ} and all(m.readings and not m.events for m in frozen)
    predictor.listen(other, None)
    for _ in predictor.propagate_in_video(other, start_frame_idx=0):
        pass
    assert len(recorder.moments) == heard + len(frozen)


# -- the reasons of every policy, on cases made by hand ---------------------------------------------------------------

PICTURE = FrameFeatures(0, torch.zeros(4, 3), torch.zeros(4, 3), (torch.zeros(0), torch.zeros(0)), (2, 2))


def at(index: int, num_frames: int | None = None) -> FrameContext:
    return FrameContext(index=index, features=replace(PICTURE, index=index), num_frames=num_frames)


def entry(frame: int, *, prompt: bool = False, summary: Sequence[float] | None = None, **scores: float) -> MemoryEntry:
    """A memory of four tokens; ``scores``: iou, objectness, area."""
    pooled = None if summary is None else torch.tensor(summary)
    feat = torch.full((4, 2), float(frame))
    xy = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    tokens = MemoryTokens(feat, torch.zeros(4, 2), xy)
    pointer = torch.nn.functional.normalize(torch.tensor([1.0, frame / 10, 0.0]), dim=0)
    return MemoryEntry(frame, tokens, pointer, is_prompt=prompt, summary=pooled, **({"area": 0.25} | scores))


def seen(
    *, iou: Sequence[Sequence[float]] = ((0.9, 0.5, 0.4),), objectness: Sequence[float] = (5.0,), items: Any = None
) -> Hypotheses:
    """Candidates of 4 x 4 logits: the first is the left half, the others its rows and the right half."""
    base = torch.full((3, 4, 4), -1.0)
    base[0, :, :2], base[1, :1], base[2, :, 2:] = 1.0, 1.0, 1.0
    usage = None if items is None else (ReadUsage(items=torch.tensor(items)),)
    many = len(iou)
    areas = ((0.5, 0.25, 0.5),) * many
    return Hypotheses(base.expand(many, -1, -1, -1), torch.zeros(many, 3, 3), iou, objectness, usage, areas)


class Life:
    """One object of one policy; every call gives the events of that change."""

    def __init__(self, policy: MemoryPolicy, **prompt: Any) -> None:
        self.policy, self.state = policy, None
        self.first = self.step(Cause.PROMPT, at(0), entries=(entry(0, prompt=True, **prompt),))

    def step(
        self, cause: Cause, frame: FrameContext, entries: tuple[MemoryEntry, ...], **given: Any
    ) -> list[TraceEvent]:
        before = self.state
        if cause is Cause.PROMPT:
            self.state = self.policy.prompt(before, frame, *entries)
        else:
            self.state = self.policy.write(before, frame, entries=entries, **given)
        change = Change(cause, frame, before, self.state, entries=entries, **given)
        return change_events(change)

    def write(self, index: int, hypotheses: Hypotheses | None = None, **scores: Any) -> list[TraceEvent]:
        hypotheses = seen() if hypotheses is None else hypotheses
        selection = self.policy.choose(self.state, at(index), hypotheses)
        made: dict[CandidateId, MemoryEntry] = {}
        for pick in selection.remember:
            iou = hypotheses.iou[pick.pathway][pick.candidate]
            logit = hypotheses.objectness[pick.pathway]
            made.setdefault(pick, entry(index, **({"iou": iou, "objectness": logit} | scores)))
        entries = tuple(made[p] for p in selection.remember)
        return self.step(Cause.WRITE, at(index), entries, hypotheses=hypotheses, selection=selection)


def told(events: Sequence[TraceEvent], action: Action, frame: int | None) -> TraceEvent:
    """The one event of this kind for this frame."""
    found = [e for e in events if e.action is action and e.frame == frame]
    assert len(found) == 1, f"{action} of {frame}: {found} in {events}"
    return found[0]


def test_fifo_tells_reach() -> None:
    life = Life(build_policy("fifo"))
    assert told(life.first, Action.WRITTEN, 0).reason == "prompted"
    events = [life.write(i) for i in range(1, 40)]
    assert told(events[29], Action.REDUCED, 23).reason == "no read reaches its map any more"
    assert "pointer" in told(events[31], Action.EVICTED, 16).reason


def test_rmem_tells_relevance_and_freshness() -> None:
    """Frames 1 and 2 are in a bank of 3 with the prompt; frame 2 is attended to less, so it leaves for frame 3."""
    life = Life(RMem(bank_size=3, gap=1))
    life.write(1, seen(items=[[1.0]] * 4))
    life.write(2, seen(items=[[0.5, 0.5]] * 4))
    events = life.write(3, seen(items=[[0.5, 0.4, 0.1]] * 4))
    joined, left, kept = (told(events, a, f) for a, f in ((Action.WRITTEN, 3), (Action.REDUCED, 2), (Action.KEPT, 1)))
    assert "joins the bank" in joined.reason
    freshness = 1.5 * math.sqrt(math.log(3 + 3 + 2) / (2 + 8))
    assert left.score == pytest.approx(0.1 + freshness) and "relevance 0.100 + freshness" in left.reason
    fresh_1 = 1.5 * math.sqrt(math.log(8) / (3 + 8))
    assert kept.score == pytest.approx(0.2 * 0.5 + 0.8 * 0.4 + fresh_1)
    assert left.limit == kept.score and kept.limit == left.score
    notes = {n.frame: n for n in life.policy.entry_infos(life.state, at(3))}
    assert [notes[f].kind for f in (0, 1, 2, 3)] == ["prompt", "bank", "pointer", "bank"]
    now = 0.42 + 1.5 * math.sqrt(math.log(3 + 3 + 1) / (3 + 8))  # frame 2 no longer counts
    assert notes[1].score == pytest.approx(now) and notes[1].score_name == "relevance + freshness"
    lazy = Life(RMem(bank_size=3, gap=5))
    assert "not due" in told(lazy.write(1, seen(items=[[1.0]] * 4)), Action.WRITTEN, 1).reason


def test_rmem_fifo_tells_the_order() -> None:
    life = Life(RMem(bank_size=2, gap=1, eviction="fifo"))
    life.write(1)
    assert "order of arrival" in told(life.write(2), Action.REDUCED, 1).reason


def test_hq_smem_tells_the_removal_score() -> None:
    life = Life(HQSMem(gap=1, tau_mem=0.8), summary=[1.0, 0.0, 0.0])
    life.write(1, summary=[0.0, 1.0, 0.0])
    events = life.write(2, summary=[0.0, 1.0, 0.1])
    left = told(events, Action.REDUCED, 1)
    cosine = 1 / math.sqrt(1.01)
    assert left.score == pytest.approx(cosine) and left.limit == 0.8
    assert f"removal score {2 * cosine:.3f}" in left.reason
    assert told(events, Action.KEPT, 0).score == pytest.approx(0.0)
    absent = life.write(3, seen(objectness=(-3.0,)), summary=[0.0, 1.0, 0.0])
    assert "absent" in told(absent, Action.WRITTEN, 3).reason


def test_hq_smem_tells_overflow() -> None:
    life = Life(HQSMem(gap=1, tau_mem=1.5, cap=2), summary=[1.0, 0.0, 0.0])
    life.write(1, summary=[0.0, 1.0, 0.0])
    assert "over its cap of 2" in told(life.write(2, summary=[0.0, 0.0, 1.0]), Action.REDUCED, 1).reason


def test_keyframe_tells_significance() -> None:
    policy = Keyframe(recent=1, gap=1, max_whole=1, max_compact=1, pool=2)
    life = Life(policy, summary=[1.0, 0.0, 0.0])
    events = [life.write(i, summary=[1.0 - i / 10, i / 10, 0.0]) for i in range(1, 6)]
    assert told(events[1], Action.PROMOTED, 1).reason == "becomes a keyframe"
    lost = [e for step in events for e in step if e.reason == "least significant"]
    assert {e.action for e in lost} >= {Action.COMPACTED, Action.REDUCED}
    scores = significances(life.state.keyframes(), life.state.prompts, pointer_weight=0.5)
    assert {n.frame: n.score for n in policy.entry_infos(life.state, at(5)) if "keyframe" in n.kind} == scores
    doubtful = Life(policy, summary=[1.0, 0.0, 0.0])
    doubtful.write(1, iou=0.2, summary=[0.0, 1.0, 0.0])
    rejected = told(doubtful.write(2, summary=[0.0, 1.0, 0.0]), Action.REJECTED, 1)
    assert (rejected.score, rejected.limit) == (0.2, 0.5) and "doubtful" in rejected.reason


def test_samurai_tells_its_gates() -> None:
    next_to_prompt = told(Life(Samurai()).write(1), Action.REJECTED, 1)
    assert next_to_prompt.reason == "doubtful: next to the first prompt"
    life = Life(Samurai(stable_frames_threshold=1, skip_first_frame=False))
    accepted = told(life.write(1), Action.WRITTEN, 1)
    assert accepted.reason.startswith("accepted") and (accepted.score, accepted.limit) == (0.9, 0.5)
    low = told(life.write(2, seen(iou=((0.4, 0.3, 0.2),))), Action.REJECTED, 2)
    assert "predicted IoU" in low.reason and (low.score, low.limit) == (0.4, 0.5)
    assert "doubtful" in told(life.write(3), Action.REDUCED, 2).reason
    moved = told(life.write(4, seen(iou=((0.88, 0.5, 0.9),))), Action.CHOSEN, 4)
    assert "candidate 0 to 2" in moved.reason and moved.score == pytest.approx(1.0)
    gone = [e.reason for e in life.write(5, seen(objectness=(-4.0,))) if e.action is Action.REJECTED]
    assert any("motion filter ended" in r for r in gone) and any("object score" in r for r in gone)
    kinds = {n.frame: n.kind for n in life.policy.entry_infos(life.state, at(5))}
    assert (kinds[1], kinds[2], kinds[5]) == ("accepted", "pointer", "doubtful")


def test_dam4sam_tells_its_gates() -> None:
    life = Life(DAM4SAM(min_gap=1, max_box_overlap=0.6))
    assert "first tracked frame" in told(life.write(1), Action.WRITTEN, 1).reason
    events = life.write(2)
    promoted = told(events, Action.PROMOTED, 2)
    assert promoted.score == pytest.approx(1 / 3) and promoted.limit == 0.6
    assert "too soon" in told(life.write(3), Action.WRITTEN, 3).reason
    low = told(life.write(4, seen(iou=((0.7, 0.3, 0.2),))), Action.WRITTEN, 4)
    assert (low.score, low.limit) == (0.7, 0.8)
    absent = told(life.write(5, seen(objectness=(-2.0,))), Action.REJECTED, 5)
    assert absent.reason == "the object is absent" and absent.score == -2.0
    calm = Life(DAM4SAM(max_box_overlap=0.3))
    calm.write(1)
    alone = told(calm.write(2), Action.WRITTEN, 2)
    assert "no distractor" in alone.reason and alone.score == pytest.approx(1 / 3)
    kinds = {n.frame: n.kind for n in life.policy.entry_infos(life.state, at(5))}
    assert (kinds[2], kinds[4]) == ("distractor-resolving", "recent")


def test_sam2long_tells_its_tree() -> None:
    life = Life(SAM2Long(num_pathway=2))
    grown = [e for e in life.write(1) if e.action is Action.BRANCHED]
    assert [(e.pathway, e.parent) for e in grown] == [(0, 0), (1, 0)]
    events = life.write(2, seen(iou=((0.9, 0.5, 0.4), (0.9, 0.5, 0.4)), objectness=(1.0, 1.0)))
    grown = [e for e in events if e.action is Action.BRANCHED]
    assert [(e.pathway, e.parent) for e in grown] == [(0, 0), (1, 0)] and "uncertain" in grown[0].reason
    assert [e.score for e in grown] == pytest.approx([0.0, math.log(0.50001) - math.log(0.90001)])
    assert [e.pathway for e in events if e.action is Action.REJECTED] == [1]
    assert "2 versions" in told(events, Action.WRITTEN, 2).reason
    turn = life.write(3, seen(iou=((0.1, 0.1, 0.1), (0.9, 0.8, 0.7)), objectness=(5.0, 5.0)))
    assert [(e.pathway, e.parent) for e in turn if e.action is Action.BRANCHED] == [(0, 1), (1, 1)]
    assert "other ancestry" in told(turn, Action.REVISED, 2).reason
    assert {n.pathways for n in life.policy.entry_infos(life.state, at(3)) if n.frame == 0} == {(0, 1)}


def evenly_attended(life: Life, index: int) -> Hypotheses:
    """All tokens of the read receive the same attention."""
    (read,) = life.policy.read(life.state, at(index))
    usage = ReadUsage(tokens=tuple(torch.ones(len(item.tokens)) for item in read.items))
    return replace(seen(), usage=(usage,))


def test_xmem_tells_consolidation_and_eviction() -> None:
    policy = XMem(mem_every=1, max_working=4, min_working=2, num_prototypes=3, max_long_term=5)
    life = Life(policy)
    moments = [life.write(i, evenly_attended(life, i)) for i in range(1, 10)]
    assert told(moments[0], Action.WRITTEN, 1).reason == "working memory"
    merged = [e for step in moments for e in step if e.action is Action.MERGED]
    assert [e.frame for e in merged[:2]] == [1, 2]
    assert sum(int(e.reason.split(": ")[1].split(" ")[0]) for e in merged[:2]) == 3
    evicted = [e for step in moments for e in step if e.action is Action.EVICTED and e.frame is None]
    assert evicted and "least used prototypes" in evicted[0].reason
    assert evicted[0].score <= (evicted[0].limit or math.inf)
    store = next(n for n in policy.entry_infos(life.state, at(9)) if n.kind == "long-term")
    assert store.frame is None and store.count == len(life.state.long_term)
    lazy = Life(XMem(mem_every=5))
    assert "not due" in told(lazy.write(1, seen()), Action.WRITTEN, 1).reason


@pytest.mark.parametrize("name", in_tiers(POLICIES, ["xmem"]))
def test_reasons_hold_within_a_budget_of_bytes(name: str) -> None:
    policy = build_policy(name)
    tight = Bounded(policy=policy, max_bytes=(least_capacity(policy, TOKENS) + TOKENS) * 128)
    recorder = Recorder(read_mass=True)
    tracker, _ = track(tight, recorder)
    for m in recorder.moments:
        check_moment(m)
    reasons = {e.reason for m in recorder.moments for e in m.events}
    assert "over the budget of bytes" in reasons
    quiet = track(tight)[0]
    assert [differences(quiet.tracks[i].state, tracker.tracks[i].state) for i in (1, 2)] == [[], []]


@pytest.mark.parametrize("mode", ["tokens", "distilled"])
def test_long_term_memory_of_xmem_is_told_however_it_is_read(mode: str) -> None:
    recorder = Recorder(read_mass=True)
    track(XMem(lt_mode=mode), recorder)
    for m in recorder.moments:
        check_moment(m)
    last = recorder.moments[-1]
    assert [(r.frame, r.mass > 0) for r in last.readings if r.kind == "long-term"] == [(None, True)]
    assert [h.tokens > 0 for h in last.held if h.kind == "long-term"] == [True]
