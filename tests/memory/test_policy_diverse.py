"""Diverse long-term memory: which frames join, against the rule written out literally."""

from __future__ import annotations

import numpy as np
import pytest
from streams import at, random_entry, read_by_frame, write

from sam2_mem.memory.policies.diverse import Diverse
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.types import PROMPT_SLOT, MemoryEntry


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def alike(a: MemoryEntry, b: MemoryEntry, by: str) -> float:
    if by == "map":
        return np.mean([cosine(x, y) for x, y in zip(a.tokens.feat.numpy(), b.tokens.feat.numpy())])
    return cosine(getattr(a, by).numpy(), getattr(b, by).numpy())


class Literal:
    """Everything that ever was; long-term memory as a growing list of which the last three count."""

    def __init__(self, first: MemoryEntry, by: str) -> None:
        self.first, self.by = first, by
        self.chosen: list[MemoryEntry] = []
        self.waiting: list[MemoryEntry] = []

    def add(self, entry: MemoryEntry) -> None:
        if entry.iou <= 0.6 or entry.objectness <= 0:
            return
        self.waiting.append(entry)
        if len(self.waiting) == 4:
            reference = self.chosen[-1] if self.chosen else self.first
            self.chosen.append(min(self.waiting, key=lambda e: alike(e, reference, self.by)))
            self.waiting = []

    def long(self) -> list[int]:
        return [e.frame for e in self.chosen[-3:]]


@pytest.mark.parametrize(
    "by, frames",
    [("map", 120), ("summary", 120), ("pointer", 120), pytest.param("map", 1000, marks=pytest.mark.full)],
)
def test_what_is_read(by: str, frames: int) -> None:
    rng, policy = np.random.default_rng(1), Diverse(min_iou=0.6, pool_size=4, likeness=by)
    assert policy.needs.summary == (by == "summary")
    first = random_entry(0, rng, prompt=True)
    state, plain = policy.prompt(None, at(0), first), FIFO().prompt(None, at(0), first)
    literal, most = Literal(first, by), 0
    for t in range(1, frames):
        slots, offsets = read_by_frame(policy, state, at(t))
        expected, pointers = read_by_frame(FIFO(), plain, at(t))
        assert slots == {**dict.fromkeys(literal.long(), PROMPT_SLOT), **expected}, f"frame {t}"
        assert offsets == pointers
        entry = random_entry(t, rng)
        literal.add(entry)
        state, plain = write(policy, state, at(t), entry), write(FIFO(), plain, at(t), entry)
        most = max(most, state.token_count())
    assert len(literal.chosen) > frames // 20, "control: frames join"
    assert 9 * (14 + 3) < most <= policy.capacity(9)


def test_long_term_memory_goes_where_tracked_memory_goes() -> None:
    rng, policy = np.random.default_rng(2), Diverse(min_iou=-1, min_object_score=-99, pool_size=2)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in range(1, 40):
        state = write(policy, state, at(t), random_entry(t, rng))
    long = [e.frame for e in state.long]
    assert len(long) == 3 and len(state.pool) == 1
    assert [e.frame for e in state.forget(long[1], 0).long] == [long[0], long[2]]
    assert [e.frame for e in state.without(long[0]).long] == long[1:]
    assert [e.frame for e in state.shift_frames(5).long] == [f + 5 for f in long]
    assert state.drop_tokens(long[0]).token_count() == state.token_count() - 9
    prompted = state.add_prompt(random_entry(long[1], rng, prompt=True), 32)
    assert long[1] not in [e.frame for e in prompted.long], "a prompt is no tracked frame"


def test_an_empty_mask_cannot_be_compared_by_appearance() -> None:
    rng, policy = np.random.default_rng(3), Diverse(min_iou=-1, min_object_score=-99, pool_size=1, likeness="summary")
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    state = write(policy, state, at(1), random_entry(1, rng, summary=None))
    assert not state.long
    assert write(policy, state, at(2), random_entry(2, rng)).long, "control"


def test_reasons() -> None:
    rng, policy = np.random.default_rng(4), Diverse(min_iou=-1, min_object_score=-99, pool_size=1, max_long=1)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in (1, 2):
        state = write(policy, state, at(t), random_entry(t, rng))
    texts = [(r.frame, r.text) for r in state.reasons]
    assert texts == [(2, "joins long-term memory: least like its newest frame"), (1, "joined long-term memory first")]
    assert {i.frame: i.kind for i in policy.entry_infos(state, at(3))} == {0: "prompt", 1: "recent", 2: "long-term"}
