"""SAM 3's selection: what is read, against the rule written out literally."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
from streams import at, random_entry, read_by_frame, write

from sam2_mem.memory.policies.sam3_select import SAM3Select, certainty
from sam2_mem.types import PROMPT_SLOT, MemoryEntry


def literal(history: dict[int, MemoryEntry], prompts: set[int], t: int) -> tuple[dict[int, int], dict[int, float]]:
    """Slots of tracked maps and offsets of tracked pointers, from everything that ever was."""
    valid: list[int] = []
    for frame in range(t - 1, 0, -1):
        if frame in prompts:
            continue
        entry = history[frame]
        if max(0.0, 2 / (1 + exp(-entry.objectness)) - 1) * entry.iou > 0.01:
            valid.insert(0, frame)
        if len(valid) == 15:
            break
    if t - 1 not in valid:
        valid.append(t - 1)
    slots = {valid[-n]: n - 1 for n in range(1, 7) if n <= len(valid) and valid[-n] not in prompts}
    offsets = {}
    for rank in range(1, 16):
        if rank >= len(valid):
            break
        if valid[-rank] not in prompts:
            offsets[valid[-rank]] = round(rank / 15, 6)
    return slots, offsets


@pytest.mark.parametrize("later", [(), (9, 21, 22, 40, 41, 42)])
def test_what_is_read(later: tuple[int, ...]) -> None:
    rng, policy, prompts = np.random.default_rng(len(later)), SAM3Select(), {0, *later}
    history = {0: random_entry(0, rng, prompt=True)}
    state, most, gaps = policy.prompt(None, at(0), history[0]), 0, 0
    for t in range(1, 1000):
        history[t] = random_entry(t, rng, prompt=t in prompts, objectness=float(rng.normal(0, 2)))
        if t in prompts:
            state = policy.prompt(state, at(t), history[t])
            continue
        if t < 120 or t > 950:
            slots, offsets = read_by_frame(policy, state, at(t))
            shown = sorted({f for f in prompts if f < t}, key=lambda f: t - f)[:4]
            maps, pointers = literal(history, prompts, t)
            assert slots == {**dict.fromkeys(shown, PROMPT_SLOT), **maps}, f"frame {t}"
            assert offsets == {**{f: round((t - f) / 15, 6) for f in shown}, **pointers}, f"frame {t}"
            gaps += any(slot < t - 1 - f for f, slot in maps.items())
        state = write(policy, state, at(t), history[t])
        most = max(most, state.token_count())
    assert gaps > 100, "control: frames are left out"
    assert most <= policy.capacity(9)


def test_certainty() -> None:
    rng = np.random.default_rng(0)
    assert certainty(random_entry(0, rng, iou=0.8, objectness=-3.0)) == 0
    assert certainty(random_entry(0, rng, iou=0.8, objectness=3.0)) == pytest.approx(0.8 * (2 / (1 + exp(-3)) - 1))


def test_an_uncertain_frame_is_read_once_and_told() -> None:
    rng, policy = np.random.default_rng(1), SAM3Select()
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    state = write(policy, state, at(1), random_entry(1, rng, iou=0.9, objectness=3.0))
    state = write(policy, state, at(2), random_entry(2, rng, objectness=-1.0))
    assert [(r.frame, r.text) for r in state.reasons] == [(2, "uncertain: read on the next frame only")]
    assert read_by_frame(policy, state, at(3))[0] == {0: PROMPT_SLOT, 1: 1, 2: 0}
    state = write(policy, state, at(3), random_entry(3, rng, iou=0.9, objectness=3.0))
    assert read_by_frame(policy, state, at(4))[0] == {0: PROMPT_SLOT, 1: 1, 3: 0}
    assert {i.frame: i.kind for i in policy.entry_infos(state, at(4))} == {0: "prompt", 1: "certain", 3: "certain"}
