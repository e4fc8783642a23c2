"""After a jump back, a policy that reads only what lies behind reads what it read when it first came by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from streams import at, begin, hypotheses, reads, rectangle, track

from sam2_mem.memory.bounded import Bounded
from sam2_mem.memory.policies.dam4sam import DAM4SAM
from sam2_mem.memory.policies.distilled import Distilled
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.keyframe import Keyframe
from sam2_mem.memory.policies.rmem import RMem
from sam2_mem.memory.policies.sam2long import SAM2Long
from sam2_mem.memory.policies.samurai import Samurai
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.tracking.archive import Archive
from sam2_mem.types import FrameContext, Hypotheses

FRAMES = 120
OBJECT, DISTRACTOR = rectangle(4, 4, 8, 8), rectangle(20, 20, 8, 8)


def seen(t: int) -> Hypotheses:
    """Good, doubtful and absent frames; distractors now and then; a mask off the course."""
    masks = np.stack([OBJECT, DISTRACTOR if t % 9 == 4 else OBJECT, OBJECT])
    if t in (50, 51):
        masks[0] = rectangle(24, 24, 8, 8)
    iou = 0.3 if t % 7 == 3 else 0.9
    return hypotheses(masks, (iou, iou - 0.1, iou - 0.2), -3.0 if t % 13 == 5 else 5.0)


def passed(policy: MemoryPolicy, archive: Archive) -> tuple[Any, dict[int, list[Any]]]:
    """The state after a pass, all that left it in ``archive``, and what was read on every frame."""
    state, read = begin(policy), {}
    for t in range(1, FRAMES):
        read[t] = reads(policy, state, at(t))
        before = state
        state, _ = track(policy, state, at(t), seen(t))
        archive.follow(1, before, state)
    return state, read


def after_a_jump(policy: MemoryPolicy, state: Any, archive: Archive, frame: FrameContext) -> Any:
    return policy.recall(state, frame, archive.entries(1))


@pytest.mark.parametrize(
    "policy", [FIFO(), Samurai(), DAM4SAM(), SAM2Long(num_pathway=1)], ids=lambda p: type(p).__name__
)
def test_a_read_behind_the_jump_is_that_of_the_first_pass(policy: MemoryPolicy) -> None:
    archive = Archive(2**30)
    state, read = passed(policy, archive)
    held = 0
    for t in (1, 2, 8, 20, 30, 33, 47, 53, 60, 70, 77, 90, 100, 119):
        now = reads(policy, after_a_jump(policy, state, archive, at(t)), at(t))
        assert now == read[t], f"frame {t}"
        held += reads(policy, state, at(t)) == read[t]
    assert held < 8, "control: without what had left, most of these reads differ"


def test_every_pathway_takes_back_the_version_of_the_best() -> None:
    policy, archive = SAM2Long(), Archive(2**30)
    state, read = passed(policy, archive)
    for t in (20, 60, 100):
        recalled = after_a_jump(policy, state, archive, at(t))
        frames = [r.frames for r in reads(policy, recalled, at(t))]
        assert frames == [read[t][0].frames] * 3
        assert len({r.key() for r in policy.read(recalled, at(t))}) == 1, "shared, so they cost one row"
    assert after_a_jump(policy, state, archive, at(FRAMES)) is state


OTHERS = (
    RMem(eviction="fifo"),
    Keyframe(budget_bytes=0),
    Distilled(),
    Bounded(policy=FIFO(), max_bytes=128 * 4 * 9),
)


@pytest.mark.parametrize("policy", OTHERS, ids=lambda p: type(p).__name__)
def test_other_policies_take_back_the_frames_just_behind(policy: MemoryPolicy) -> None:
    """And keep what they have, which may lie ahead."""
    archive = Archive(2**30)
    state, _ = passed(policy, archive)
    frame = at(61)
    whole, bare = policy.frames_behind(frame)
    recalled = after_a_jump(policy, state, archive, frame)
    entries = {e.frame: e for e in recalled.all_entries()}
    assert set(bare) <= entries.keys()
    if not isinstance(policy, Bounded):
        assert all(entries[f].tokens is not None for f in whole)
        assert {e.frame for e in state.all_entries()} <= entries.keys()
    assert 60 in reads(policy, recalled, frame)[0].frames
    assert 60 not in reads(policy, state, frame)[0].frames, "control"


def test_frames_in_summaries_are_not_merged_twice() -> None:
    policy, archive = Distilled(), Archive(2**30)
    state, _ = passed(policy, archive)
    state = after_a_jump(policy, state, archive, at(118))
    known = [f for s in state.summaries() for f in s.frames]
    for t in range(118, 122):
        state, _ = track(policy, state, at(t), seen(t))
    frames = [e.frame for e in state.waiting]
    assert not set(frames) & set(known) and len(set(frames)) == len(frames)


def test_what_is_held_is_newer_than_what_is_archived() -> None:
    """A frame that is in memory stays as it is; an archive with nothing for a read changes nothing."""
    policy, archive = FIFO(), Archive(2**30)
    state, _ = passed(policy, archive)
    assert after_a_jump(policy, state, archive, at(FRAMES)) is state
    entries = {e.frame: e for e in state.entries}
    recalled = after_a_jump(policy, state, archive, at(117))
    assert all(entries.get(e.frame, e) is e for e in recalled.entries)
