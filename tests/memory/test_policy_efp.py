"""EFP: which maps are left out, against the rule written out literally."""

from __future__ import annotations

import numpy as np
import pytest
from streams import at, random_entry, read_by_frame, write

from sam2_mem.memory.policies.efp import EFP
from sam2_mem.types import MemoryEntry


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def literal_maps(history: dict[int, MemoryEntry], t: int, remove: int) -> dict[int, int]:
    """Slots by frame of tracked maps, from everything that ever was."""
    window = {f: t - 1 - f for f in range(max(1, t - 6), t)}
    newest = history[t - 1].tokens.feat.numpy() if t > 1 else None
    alike = {}
    for f in window:
        if f != t - 1:
            alike[f] = np.mean([cosine(x, y) for x, y in zip(history[f].tokens.feat.numpy(), newest)])
    while len(alike) > 5 - remove:
        worst = max(alike, key=alike.get)
        del alike[worst], window[worst]
    return window


@pytest.mark.parametrize("remove, frames", [(0, 30), (2, 1000), (5, 30), (9, 30)])
def test_the_maps_least_like_the_newest_are_read(remove: int, frames: int) -> None:
    rng, policy = np.random.default_rng(remove), EFP(remove=remove)
    history = {0: random_entry(0, rng, prompt=True)}
    state, most = policy.prompt(None, at(0), history[0]), 0
    for t in range(1, frames):
        slots, offsets = read_by_frame(policy, state, at(t))
        if t < 60 or t > frames - 20:
            assert slots == {0: -1, **(literal_maps(history, t, max(0, min(remove, 5))) if t > 1 else {})}, t
            assert sorted(offsets) == [0, *range(max(1, t - 15), t)] if t < 16 else len(offsets) == 16
        history[t] = random_entry(t, rng)
        state = write(policy, state, at(t), history[t])
        most = max(most, state.token_count())
    assert len(slots) == max(2, 7 - remove)
    assert most <= policy.capacity(9) and most == 9 * 14, "seven frames around the prompt, six behind and the newest"


def test_a_map_that_left_early_and_a_missing_newest() -> None:
    rng, policy = np.random.default_rng(0), EFP(remove=1)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in range(1, 8):
        state = write(policy, state, at(t), random_entry(t, rng))
    assert len(read_by_frame(policy, state, at(8))[0]) == 6
    assert len(read_by_frame(policy, state.drop_tokens(4), at(8))[0]) == 6, "four of five are there, none is left out"
    assert len(read_by_frame(policy, state.drop_tokens(7), at(8))[0]) == 6, "nothing to compare with: all five"


def test_wrong_values() -> None:
    with pytest.raises(ValueError, match="expected remove to be an integer, >= 0|expected remove >= 0"):
        EFP(remove=-1)
