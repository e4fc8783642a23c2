"""FIFO against SAM 2's own rules, written out by brute force, on random banks and random sessions.

The rules, from the paper's appendix and the published behaviour of the reference: an object keeps every prompted frame
and every tracked frame for ever; on frame f it reads

* prompted frames, all or the few closest: the last before f, the first from f on, then by distance; in the prompt slot;
* the previous frame in slot 0, and from behind it every r-th frame of those divisible by r, in slots 1, 2, ...;
* a prompted frame that was not among the closest counts as a tracked frame;
* pointers of the prompted frames read that do not lie ahead, with their signed age, then of the 15 frames before f.

All ages run along the direction of tracking. Of two prompted frames at one distance the reference takes the one that
was prompted first and FIFO the earlier one; here prompts are given in the order of time, where that is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.types import PROMPT_SLOT, CandidateId, FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryTokens

SEEN = Hypotheses(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2), ((0.5,),), (1.0,))
CHOSEN = MaskSelection(CandidateId(0, 0), (CandidateId(0, 0),))
TOKENS_PER_MAP = 2

thorough = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def entry(frame: int, version: int = 0, *, prompt: bool = False) -> MemoryEntry:
    """An entry that carries its frame and a version number in its tensors."""
    mark = torch.tensor([float(frame), float(version)])
    tokens = MemoryTokens(feat=mark.expand(TOKENS_PER_MAP, 2), pos=torch.zeros(TOKENS_PER_MAP, 2))
    return MemoryEntry(frame=frame, tokens=tokens, pointer=mark, is_prompt=prompt)


Maps = list[tuple[int | None, int, int]]
Pointers = list[tuple[int, int, float]]


def what_is_read(policy: FIFO, state: Bank, frame: FrameContext) -> tuple[Maps, Pointers]:
    """(slot, frame, version) of the maps and (frame, version, age over span) of the pointers."""
    (read,) = policy.read(state, frame)
    maps = [(i.slot, int(i.tokens.feat[0, 0]), int(i.tokens.feat[0, 1])) for i in read.items]
    pointers = [(int(p.pointer[0]), int(p.pointer[1]), round(p.offset, 6)) for p in read.pointers]
    assert all(i.gain == 1 for i in read.items) and all(p.gain == 1 for p in read.pointers)
    return sorted(maps, key=str), sorted(pointers)


@dataclass
class Everything:
    """SAM 2's bank: version numbers of all prompted and all tracked frames; never forgets."""

    prompted: dict[int, int] = field(default_factory=dict)
    tracked: dict[int, int] = field(default_factory=dict)

    def what_is_read(self, rule: FIFO, f: int, reverse: bool, num_frames: int | None) -> tuple[Maps, Pointers]:
        chosen = self._closest_prompts(f, rule.max_cond_frames_in_attn)
        tracked = {**{p: v for p, v in self.prompted.items() if p not in chosen}, **self.tracked}
        maps: Maps = [(PROMPT_SLOT, p, self.prompted[p]) for p in chosen]
        for slot, frame in self._map_frames(rule, f, reverse):
            if frame in tracked:
                maps.append((slot, frame, tracked[frame]))
        return sorted(maps, key=str), sorted(self._pointers(rule, f, reverse, num_frames, chosen, tracked))

    def _closest_prompts(self, f: int, most: int) -> list[int]:
        if most == -1 or len(self.prompted) <= most:
            return list(self.prompted)
        earlier = [p for p in self.prompted if p < f]
        later = [p for p in self.prompted if p >= f]
        chosen = ([max(earlier)] if earlier else []) + ([min(later)] if later else [])
        while len(chosen) < most:
            left = [p for p in self.prompted if p not in chosen]
            chosen.append(min(left, key=lambda p: (abs(p - f), list(self.prompted).index(p))))
        return chosen

    @staticmethod
    def _map_frames(rule: FIFO, f: int, reverse: bool) -> list[tuple[int, int]]:
        """Walk away from f, frame by frame, and take what the rule takes."""
        step = 1 if reverse else -1
        wanted = rule.num_maskmem - 1
        found = [(0, f + step)] if wanted >= 1 else []
        frame = f + 2 * step
        while len(found) < wanted:
            if frame % rule.memory_temporal_stride_for_eval == 0:
                found.append((len(found), frame))
            frame += step
        return found

    def _pointers(
        self, rule: FIFO, f: int, reverse: bool, num_frames: int | None, chosen: list[int], tracked: dict[int, int]
    ) -> Pointers:
        step = 1 if reverse else -1
        most = rule.max_obj_ptrs_in_encoder
        if num_frames is not None and num_frames < most:
            most = num_frames
        found: Pointers = []
        for p in chosen:
            ahead = p < f if reverse else p > f
            if not (ahead and rule.only_obj_ptrs_in_the_past_for_eval):
                found.append((p, self.prompted[p], (p - f) * step))
        for age in range(1, most):
            if f + step * age in tracked:
                found.append((f + step * age, tracked[f + step * age], age))
        return [(frame, version, round(age / (most - 1), 6)) for frame, version, age in found]


# -- reading: any bank ------------------------------------------------------------------------------------------------

rules = st.builds(
    FIFO,
    num_maskmem=st.integers(1, 7),
    max_obj_ptrs_in_encoder=st.sampled_from([2, 3, 7, 16]),
    max_cond_frames_in_attn=st.sampled_from([-1, 2, 3, 4]),
    memory_temporal_stride_for_eval=st.integers(1, 4),
    only_obj_ptrs_in_the_past_for_eval=st.booleans(),
    retain_all=st.just(True),
)
banks = st.tuples(st.sets(st.integers(0, 40), min_size=1, max_size=7), st.sets(st.integers(0, 40)))


def assert_reads_like_sam2(
    rule: FIFO,
    bank: tuple[set[int], set[int]],
    f: int,
    reverse: bool,
    num_frames: int | None,
    policy: FIFO | None = None,
) -> None:
    prompted, tracked = sorted(bank[0] - {f}) or [f], sorted(bank[1] - bank[0])
    state = Bank(
        tuple(entry(p, 1, prompt=True) for p in prompted), tuple(entry(t, 2) for t in tracked if t not in prompted)
    )
    literal = Everything(dict.fromkeys(prompted, 1), dict.fromkeys([t for t in tracked if t not in prompted], 2))
    frame = FrameContext(index=f, reverse=reverse, num_frames=num_frames)
    expected = literal.what_is_read(rule, f, reverse, num_frames)
    assert what_is_read(policy or rule, state, frame) == expected


@thorough
@given(rules, banks, st.integers(0, 41), st.booleans(), st.sampled_from([None, 2, 9, 41]))
def test_read_is_sam2s(
    rule: FIFO, bank: tuple[set[int], set[int]], f: int, reverse: bool, num_frames: int | None
) -> None:
    assert_reads_like_sam2(rule, bank, f, reverse, num_frames)


class WrongWay(FIFO):
    def read(self, state: Bank, frame: FrameContext) -> Any:
        return super().read(state, FrameContext(index=frame.index, reverse=False, num_frames=frame.num_frames))


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (FIFO(), FIFO(num_maskmem=6)),
        (FIFO(), FIFO(max_obj_ptrs_in_encoder=15)),
        (FIFO(), FIFO(memory_temporal_stride_for_eval=2)),
        (FIFO(), FIFO(max_cond_frames_in_attn=2)),
        (FIFO(), FIFO(only_obj_ptrs_in_the_past_for_eval=False)),
        (FIFO(), WrongWay()),
    ],
    ids=["maps", "pointers", "stride", "prompts", "ahead", "direction"],
)
def test_control_another_rule_reads_otherwise(rule: FIFO, broken: FIFO) -> None:
    bank = ({3, 10, 30}, set(range(0, 41)))
    for reverse in (False, True):
        assert_reads_like_sam2(rule, bank, 20, reverse, None)
    with pytest.raises(AssertionError):
        for reverse in (False, True):
            assert_reads_like_sam2(rule, bank, 20, reverse, None, broken)


@pytest.mark.parametrize("span", [1, 2, 9])
def test_the_time_span_of_pointers_is_that_of_a_short_video(span: int) -> None:
    state = Bank((entry(0, prompt=True),), (entry(1),))
    (read,) = FIFO().read(state, FrameContext(index=2, num_frames=span))
    assert read.pointers[0].offset == 2 / max(span - 1, 1)


# -- evicting: whole sessions -----------------------------------------------------------------------------------------


@dataclass
class Session:
    """One object under a policy and under SAM 2's bank, side by side."""

    policy: FIFO
    rule: FIFO
    state: Bank | None = None
    literal: Everything = field(default_factory=Everything)
    version: int = 0
    most_tokens: int = 0

    def prompt(self, frame: int) -> None:
        self.version += 1
        self.state = self.policy.prompt(self.state, FrameContext(index=frame), entry(frame, self.version, prompt=True))
        self.literal.prompted[frame] = self.version
        self.literal.tracked.pop(frame, None)

    def track(self, start: int, stop: int, num_frames: int | None = None) -> None:
        """From ``start`` to ``stop``, both included, in either direction; on every frame the same must be read."""
        reverse = stop < start
        for f in range(start, stop - 1, -1) if reverse else range(start, stop + 1):
            if f in self.literal.prompted:
                continue
            frame = FrameContext(index=f, reverse=reverse, num_frames=num_frames)
            expected = self.literal.what_is_read(self.rule, f, reverse, num_frames)
            assert what_is_read(self.policy, self.state, frame) == expected, f"frame {f}, reverse {reverse}"
            self.version += 1
            self.state = self.policy.write(self.state, frame, SEEN, CHOSEN, (entry(f, self.version),))
            self.literal.tracked[f] = self.version
            self.most_tokens = max(self.most_tokens, held_tokens(self.state))


def held_tokens(state: Bank) -> int:
    return sum(len(e.tokens) for e in state.all_entries() if e.tokens is not None)


bounded = st.builds(
    dict,
    num_maskmem=st.integers(1, 7),
    max_obj_ptrs_in_encoder=st.sampled_from([2, 4, 16]),
    max_cond_frames_in_attn=st.sampled_from([-1, 2, 3]),
    memory_temporal_stride_for_eval=st.integers(1, 3),
)
prompt_sets = st.lists(st.integers(0, 90), min_size=1, max_size=5, unique=True)
LAST = 90


def there_and_back(session: Session, prompts: list[int], turns: list[str]) -> None:
    """Prompts, forward from the first one to the end, then passes from the first or the last prompted frame."""
    for p in sorted(prompts):
        session.prompt(p)
    first, last = min(prompts), max(prompts)
    session.track(first, LAST)
    passes = {
        "back": (first, 0),
        "back from the last": (last, 0),
        "on": (first, LAST),
        "on from the last": (last, LAST),
    }
    for turn in turns:
        session.track(*passes[turn])


@thorough
@given(bounded, prompt_sets, st.sampled_from([["back"], ["back from the last"], ["back", "on"]]))
@pytest.mark.full
def test_eviction_keeps_what_sam2_reads(fields: dict[str, Any], prompts: list[int], turns: list[str]) -> None:
    session = Session(FIFO(**fields), FIFO(**fields, retain_all=True))
    there_and_back(session, prompts, turns)
    assert session.most_tokens <= session.policy.capacity(TOKENS_PER_MAP)


class KeepsTooFew(FIFO):
    """The usual mistake: what is out of reach of the maps is dropped with its pointer."""

    def write(self, state: Bank, frame: FrameContext, *rest: Any) -> Bank:
        bank = super().write(state, frame, *rest)
        return bank.keep(tokens=(near := range(frame.index - 7, frame.index + 8)), pointers=near)


class KeepsNoPins(FIFO):
    """Another one: what lies behind the current frame is kept, what a reverse pass would read is not."""

    def write(self, state: Bank, frame: FrameContext, *rest: Any) -> Bank:
        bank = super().write(state, frame, *rest)
        return bank.keep(tokens=(near := range(frame.index - 15, frame.index + 16)), pointers=near)


@pytest.mark.parametrize(
    ("kind", "turns", "where"), [(KeepsTooFew, [], "reverse False"), (KeepsNoPins, ["back"], "reverse True")]
)
def test_control_a_smaller_bank_reads_less(kind: type[FIFO], turns: list[str], where: str) -> None:
    there_and_back(Session(FIFO(), FIFO()), [40], ["back"])
    with pytest.raises(AssertionError, match=where):
        there_and_back(Session(kind(), FIFO()), [40], turns)


@thorough
@given(
    bounded,
    st.lists(st.tuples(st.sampled_from("pfbj"), st.integers(0, 60)), min_size=1, max_size=12),
    st.integers(2, 6),
)
def test_capacity_holds_whatever_a_session_does(
    fields: dict[str, Any], script: list[tuple[str, int]], most: int
) -> None:
    """Prompts, passes forward and back, and jumps, in any order."""
    policy = FIFO(**fields, max_prompts=most)
    state = policy.prompt(None, FrameContext(index=5), entry(5, prompt=True))
    now = 5
    for verb, number in script:
        if verb == "p":
            state = policy.prompt(state, FrameContext(index=number), entry(number, prompt=True))
        elif verb == "j":
            now = number
        else:
            reverse = verb == "b"
            for _ in range(number):
                now += -1 if reverse else 1
                if now not in [p.frame for p in state.prompts]:
                    state = policy.write(state, FrameContext(index=now, reverse=reverse), SEEN, CHOSEN, (entry(now),))
        assert held_tokens(state) <= policy.capacity(TOKENS_PER_MAP)
        assert len(state.prompts) <= most
        assert [e.frame for e in state.entries] == sorted({e.frame for e in state.entries})


def test_control_capacity_is_within_reach() -> None:
    """The bound is not far above what a session really holds."""
    policy = FIFO(max_prompts=5)
    session = Session(policy, policy)
    there_and_back(session, [30, 40, 50, 60, 70], ["back from the last"])
    assert session.most_tokens > 0.5 * policy.capacity(TOKENS_PER_MAP)


def test_entries_lose_their_tokens_first_and_leave_later() -> None:
    session = Session(FIFO(), FIFO())
    session.prompt(0)
    session.track(1, 80)
    whole = [e.frame for e in session.state.entries]
    pointers = [e.frame for e in session.state.pointers]
    assert whole == [1, 2, 3, 4, 5, 6, 74, 75, 76, 77, 78, 79, 80]
    assert pointers == [*range(7, 16), *range(65, 74)]


def test_retain_all_keeps_everything_and_says_that_it_is_unbounded() -> None:
    policy = FIFO(retain_all=True)
    assert policy.capacity(TOKENS_PER_MAP) is None
    session = Session(policy, policy)
    session.prompt(0)
    session.track(1, 60)
    assert held_tokens(session.state) == 61 * TOKENS_PER_MAP


def test_the_oldest_prompt_but_the_first_goes() -> None:
    policy, state = FIFO(max_prompts=3), None
    for frame in (10, 20, 30, 40):
        state = policy.prompt(state, FrameContext(index=frame), entry(frame, prompt=True))
    assert [p.frame for p in state.prompts] == [10, 30, 40]
    state = policy.prompt(state, FrameContext(index=15), entry(15, prompt=True))
    assert [p.frame for p in state.prompts] == [10, 15, 40], "the prompt that was just given stays"


def test_a_prompt_replaces_what_was_tracked_on_its_frame() -> None:
    session = Session(FIFO(), FIFO())
    session.prompt(0)
    session.track(1, 10)
    session.prompt(6)
    assert 6 not in [e.frame for e in session.state.entries] and [p.frame for p in session.state.prompts] == [0, 6]
    session.track(11, 20)


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "reverse", "possible"),
    [
        (31, False, True),
        (30, False, True),
        (25, False, True),
        (20, False, False),
        (24, True, True),
        (6, False, True),
        (12, False, False),
        (5, True, True),
        (15, True, False),
        (99, False, False),
    ],
)
def test_can_resume_where_the_frame_before_is_held_whole(frame: int, reverse: bool, possible: bool) -> None:
    session = Session(FIFO(), FIFO())
    session.prompt(0)
    session.track(1, 30)
    assert session.state.can_resume(FrameContext(index=frame, reverse=reverse)) is possible


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_maskmem": 0}, "expected num_maskmem >= 1, got 0"),
        ({"max_obj_ptrs_in_encoder": 0}, "expected max_obj_ptrs_in_encoder >= 1, got 0"),
        ({"memory_temporal_stride_for_eval": 0}, "expected memory_temporal_stride_for_eval >= 1, got 0"),
        ({"max_cond_frames_in_attn": 1}, "expected max_cond_frames_in_attn -1 or >= 2, got 1"),
        ({"max_cond_frames_in_attn": 0}, "expected max_cond_frames_in_attn -1 or >= 2, got 0"),
        ({"max_prompts": 1}, "expected max_prompts >= 2, got 1"),
    ],
)
def test_fields_out_of_range_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FIFO(**fields)
