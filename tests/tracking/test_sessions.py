"""Sessions that jump about: equal to SAM 2's by a random walk of calls, prompts in the loop, what a jump means to each policy,
the budget of what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import PublishedMask, Session, needs_reference, worst
from micro import POLICIES, blob, in_tiers, micro_predictor, one_thread, pictures  # noqa: F401
from random_sessions import (
    TOLERANCE,
    Call,
    Pass,
    Say,
    Sides,
    box_of,
    float32_maps,
    kinds,
    recorded_warnings,
    run_ours,
    run_reference,
    say,
    walk,
)

from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.sam2long import SAM2Long
from sam2_mem.tracking.archive import Archive, Kind
from sam2_mem.types import ABSENT_LOGIT

NO_ARCHIVE = "tracker.archive_bytes=0"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    return Sides(tmp_path_factory.mktemp("sides"))


# -- beside SAM 2 -----------------------------------------------------------------------------------------------------


def click(frame: int, obj_id: int = 1) -> Say:
    left, top, right, bottom = box_of(Say("box", frame, obj_id))
    return Say("click", frame, obj_id, (((left + right) / 2, (top + bottom) / 2),), (1,))


CORRECTED: list[Call] = [
    Say("mask", 0, 1),
    click(4),
    Pass(None, 24, False),
    Pass(4, 20, False),
    Pass(11, 10, True),
    click(8),
    Pass(8, 10, False),
]
"""A correction on a frame whose neighbours have left the bank."""

ANNOTATED: list[Call] = [
    Say("mask", 5, 1),
    Say("box", 20, 1),
    Pass(5, None, False),
    Pass(5, None, True),
    Pass(30, 8, False),
]
"""Prompts on 5 and 20, both directions, then a pass from the play head."""

LATE: list[Call] = [*ANNOTATED[:4], Say("mask", 40, 2), Pass(30, 12, False), Pass(0, None, False)]
"""A new object on 40, and passes from 30 and from the start."""

TAKEN_BACK: list[Call] = [
    Say("mask", 10, 1),
    Pass(10, 25, False),
    Pass(10, None, True),
    Say("clear", 10, 1),
    click(10),
    Pass(10, 8, False),
]
"""The only prompt is taken back, and another one given: what was tracked counts."""


def played(sides: Sides, calls: list[Call], *overrides: str) -> tuple[list[PublishedMask], list[str]]:
    """What ours gave out, and its warnings."""
    session = Session(sides.ours(*overrides), sides.video)
    with float32_maps(), recorded_warnings() as warnings:
        play(session, calls, run_ours)
    return session.shown, warnings


def play(session: Session, calls: list[Call], make_pass: Callable[[Session, Pass], None]) -> None:
    for call in calls:
        say(session, call) if isinstance(call, Say) else make_pass(session, call)


@needs_reference
@pytest.mark.parametrize(
    "calls", [CORRECTED, ANNOTATED, LATE, TAKEN_BACK], ids=["corrected", "annotated", "late", "taken back"]
)
def test_a_session_equals_sam2(sides: Sides, calls: list[Call]) -> None:
    reference = Session(sides.reference(), sides.video)
    with float32_maps():
        play(reference, calls, run_reference)
    ours, warnings = played(sides, calls)
    assert worst(ours, reference.shown) <= TOLERANCE
    assert warnings == []
    ours, warnings = played(sides, calls, NO_ARCHIVE)
    assert worst(ours, reference.shown) > 10 * TOLERANCE, "control: a bounded bank and no archive"
    assert warnings, "and it says so"
    assert all("no longer held" in text for text in warnings)


QUICK_SEEDS = (0, 1, 2)


@needs_reference
@pytest.mark.parametrize("seed", in_tiers(range(20), QUICK_SEEDS))
def test_a_random_session_equals_sam2(sides: Sides, seed: int) -> None:
    """Every kind of call in random order; half of the sessions with SAM 2's post-processing."""
    result = walk(sides, seed, full=bool(seed % 2))
    assert result.difference <= TOLERANCE, f"call {result.culprit} of {result.calls}"
    assert result.warnings == ()


@pytest.mark.full
@needs_reference
def test_random_sessions_make_every_call_and_the_control_fails(sides: Sides) -> None:
    walks = [walk(sides, seed, NO_ARCHIVE, full=bool(seed % 2)) for seed in range(20)]
    assert set(kinds(walks)) >= {"click", "more", "box", "mask", "clear", "remove", "pass", "pass back", "in the loop"}
    different = [w for w in walks if w.difference > 10 * TOLERANCE]
    assert len(different) >= 5, "a bounded bank without an archive"
    assert all(w.warnings for w in different), "and it says so each time"


# -- prompts in the loop ----------------------------------------------------------------------------------------------

VIDEO = 40


def begun(predictor: Any) -> Any:
    state = predictor.init_state(pictures(VIDEO))
    predictor.add_new_mask(state, 0, 1, blob(0))
    return state


def correct(predictor: Any, state: Any, frame: int) -> None:
    """A new object, and a correction of the first."""
    predictor.add_new_mask(state, frame, 2, blob(1, frame))
    predictor.add_new_points_or_box(state, frame, 1, box=box_of(Say("box", frame, 0)))


def noted(results: Iterator[Any]) -> list[PublishedMask]:
    return [PublishedMask(frame, tuple(ids), masks[:, 0].clone()) for frame, ids, masks in results]


def in_one_loop(predictor: Any, reverse: bool, start: int, at: int, offset: int) -> list[PublishedMask]:
    state, shown = begun(predictor), []
    for result in predictor.propagate_in_video(state, start, reverse=reverse):
        shown += noted(iter([result]))
        if result[0] == at:
            correct(predictor, state, at + offset)
    return shown


def in_two_passes(predictor: Any, reverse: bool, start: int, at: int, offset: int) -> list[PublishedMask]:
    state, shown = begun(predictor), []
    results = predictor.propagate_in_video(state, start, reverse=reverse)
    for result in results:
        shown += noted(iter([result]))
        if result[0] == at:
            results.close()
            break
    correct(predictor, state, at + offset)
    return shown + noted(predictor.propagate_in_video(state, at + (-1 if reverse else 1), reverse=reverse))


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ("fifo", "sam2long")))
@pytest.mark.parametrize("offset", [0, 1], ids=["this frame", "next frame"])
def test_what_is_said_in_the_loop_acts_from_the_next_frame_on(policy: str, offset: int) -> None:
    predictor = micro_predictor(policy)
    once, twice = (play(predictor, False, 0, 10, offset) for play in (in_one_loop, in_two_passes))
    assert worst(once, twice) == 0
    assert [s.frame for s in once] == list(range(VIDEO))
    assert [s.ids for s in once] == [(1,)] * 11 + [(1, 2)] * (VIDEO - 11)
    untouched = noted(predictor.propagate_in_video(begun(predictor), 0))
    assert worst(once[:11], untouched[:11]) == 0
    later = [(a.of(1) - b.of(1)).abs().max() for a, b in zip(once[11:], untouched[11:])]
    present = any((s.of(1) > ABSENT_LOGIT).any() for s in (*once[11:], *untouched[11:]))
    assert max(later) > 10 * TOLERANCE or not present, "the correction must change what follows"
    assert present or policy not in ("fifo", "sam2long")


@pytest.mark.parametrize("policy", in_tiers(("fifo", "sam2long", "xmem"), ("sam2long",)))
def test_in_the_loop_of_a_reverse_pass(policy: str) -> None:
    predictor = micro_predictor(policy)
    once, twice = (play(predictor, True, 30, 20, 0) for play in (in_one_loop, in_two_passes))
    assert worst(once, twice) == 0
    assert [s.frame for s in once] == list(range(30, -1, -1))


def test_objects_that_leave_in_the_loop() -> None:
    for policy in ("fifo", "sam2long"):
        predictor = micro_predictor(policy)
        state, ids = begun(predictor), []
        predictor.add_new_mask(state, 0, 2, blob(1))
        for frame, present, _ in predictor.propagate_in_video(state):
            ids.append(list(present))
            if frame == 5:
                predictor.remove_object(state, 1)
        assert ids == [[1, 2]] * 6 + [[2]] * (VIDEO - 6)
        with pytest.raises(RuntimeError, match="no prompt left"):
            for frame, _, _ in predictor.propagate_in_video(state):
                if frame == 3:
                    predictor.clear_all_prompts_in_frame(state, 0, 2)


def test_a_video_that_cannot_be_read_again_says_when_prompts_act() -> None:
    """Masks of a policy that rewrites them come later than their frames; an iterator has no second look at those."""
    predictor = micro_predictor(SAM2Long(max_lag=4))
    state = predictor.init_state(iter(pictures(20)))
    predictor.add_new_mask(state, 0, 1, blob(0))
    ids = []
    with recorded_warnings() as warnings:
        for frame, present, _ in predictor.propagate_in_video(state):
            ids.append(list(present))
            if frame == 5:
                predictor.add_new_mask(state, 10, 2, blob(1, 10))
    assert ids == [[1]] * 10 + [[1, 2]] * 10
    assert len(warnings) == 1 and "acts from 4 frames on" in warnings[0]


# -- what a jump means ------------------------------------------------------------------------------------------------


BY_RULE = ("dam4sam", "sam2long", "sam3_select")
"""These take back what their rules choose (tests/memory/test_recall.py), which need not be the frame before."""


@pytest.mark.parametrize("policy", in_tiers([name for name in POLICIES if name not in BY_RULE], ("fifo",)))
def test_no_policy_reads_less_after_a_jump_without_a_word(policy: str) -> None:
    """Forward, then a pass from the middle: the frame before is read there, or a warning names it."""
    for archive_bytes, kept in ((2**30, True), (0, False)):
        predictor = micro_predictor(policy, archive_bytes=archive_bytes)
        state = begun(predictor)
        list(predictor.propagate_in_video(state))
        predictor.add_new_mask(state, VIDEO - 1, 1, blob(0, VIDEO - 1))
        list(predictor.propagate_in_video(state, VIDEO - 1))
        with recorded_warnings() as warnings:
            [_] = predictor.propagate_in_video(state, 20, 0)
        remembered = {e.frame for e in state.tracker.tracks[1].state.all_entries()}
        assert 19 in remembered or any("[" in text and "19" in text for text in warnings)
        assert not (kept and warnings), warnings


# -- the budget -------------------------------------------------------------------------------------------------------


def tracked(archive_bytes: int, frames: int = VIDEO) -> Any:
    predictor = micro_predictor(FIFO(), archive_bytes=archive_bytes)
    state = predictor.init_state(pictures(frames))
    predictor.add_new_mask(state, 0, 1, blob(0))
    list(predictor.propagate_in_video(state))
    return predictor, state


def test_the_budget_holds_and_its_end_is_said_once() -> None:
    _, generous = tracked(2**30)
    whole = generous.tracker.archive.bytes
    assert whole > 0
    with recorded_warnings() as warnings:
        predictor, state = tracked(whole * 3 // 4)
        assert whole // 2 < state.tracker.archive.bytes <= whole * 3 // 4
        assert len(warnings) == 1 and "the archive of" in warnings[0]
        list(predictor.propagate_in_video(state, 34, 2))
        assert len(warnings) == 1, "what is read there is still kept"
        list(predictor.propagate_in_video(state, 14, 2))
    assert "frame 14 of object 1: the memory of frames" in warnings[-1]
    assert state.tracker.archive.bytes <= whole * 3 // 4


def test_a_mask_that_is_gone_is_said() -> None:
    """A correction starts from the mask shown; beyond the budget it cannot."""
    for archive_bytes, said in ((2**30, False), (0, True)):
        predictor, state = tracked(archive_bytes)
        with recorded_warnings() as warnings:
            predictor.add_new_points_or_box(state, 5, 1, [[20.0, 20.0]], [1])
        assert any("the mask of object 1 on frame 5 is no longer held" in text for text in warnings) is said


@pytest.mark.parametrize("interactive", [True, False])
def test_nothing_is_kept_of_streams_and_single_passes(interactive: bool) -> None:
    predictor = micro_predictor(FIFO())
    state = predictor.init_state(pictures(VIDEO), interactive=interactive)
    predictor.add_new_mask(state, 0, 1, blob(0))
    list(predictor.propagate_in_video(state))
    assert (state.tracker.archive.bytes > 0) is interactive
    for video in (None, iter(pictures(3))):
        assert predictor.init_state(video).tracker.archive.max_bytes == 0


def test_objects_and_sessions_that_end_leave_nothing() -> None:
    predictor, state = tracked(2**30)
    predictor.add_new_mask(state, 0, 2, blob(1))
    list(predictor.propagate_in_video(state))
    archive = state.tracker.archive
    both = archive.bytes
    predictor.remove_object(state, 2)
    assert 0 < archive.bytes < both
    predictor.reset_state(state)
    assert archive.bytes == 0 and not archive.entries(1)


def test_a_copy_of_an_archive_stands_alone() -> None:
    _, state = tracked(2**30)
    archive = state.tracker.archive
    twin = copy.deepcopy(archive)
    assert twin.bytes == archive.bytes
    archive.clear()
    assert archive.bytes == 0 < twin.bytes and 10 in twin.entries(1) and twin.mask(1, 10) is not None


def test_prompts_beyond_the_limit_are_named() -> None:
    predictor = micro_predictor(FIFO(max_prompts=2))
    state = begun(predictor)
    with recorded_warnings() as warnings:
        for frame in (5, 9):
            predictor.add_new_mask(state, frame, 1, blob(0, frame))
        predictor.propagate_in_video_preflight(state)
    assert len(warnings) == 1 and "max_prompts=2), so frames [5] are no longer read" in warnings[0]


def test_archive_without_a_budget_notes_what_is_missing() -> None:
    archive = Archive()
    _, state = tracked(2**30)
    bank = state.tracker.tracks[1].state
    archive.follow(1, bank, bank.keep(tokens=(), pointers=()))
    frames = [e.frame for e in bank.entries]
    assert archive.missing(Kind.MEMORY, 1, range(VIDEO)) == frames and archive.bytes == 0
    archive.discard(Kind.MEMORY, 1, frames[0])
    assert archive.missing(Kind.MEMORY, 1, frames) == frames[1:]
