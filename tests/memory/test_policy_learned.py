"""Learned eviction: which frames stay, against the score written out literally."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from streams import at, random_entry, scored, write

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policies.learned import Learned, ScoreInputs, pointer_cosines, rivals_of, with_inputs
from sam2_mem.types import MemoryEntry

NAMES = [f.name for f in fields(ScoreInputs)]


def cosine(a: MemoryEntry, b: MemoryEntry) -> float:
    x, y = a.pointer.double().numpy(), b.pointer.double().numpy()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def literal_inputs(bank: list[MemoryEntry], prompts: list[MemoryEntry], entry: MemoryEntry, t: int) -> list[float]:
    others = [e for e in bank if e is not entry]
    octaves = abs(np.log2(entry.area / prompts[0].area)) if entry.area else np.inf
    return [
        min(1, np.log2(1 + t - entry.frame) / 8),
        float(entry.frame == t - 1),
        min(1, min(abs(e.frame - entry.frame) for e in (*prompts, *others)) / 100),
        entry.iou,
        1 / (1 + np.exp(-entry.objectness)),
        min(1, octaves / 4),
        cosine(entry, prompts[0]),
        cosine(entry, max(bank, key=lambda e: e.frame)),
        max(cosine(entry, e) for e in others),
    ]


@pytest.mark.parametrize("seed, frames", [(0, 40), (1, 400)])
def test_the_frame_of_lowest_score_leaves(seed: int, frames: int) -> None:
    rng = np.random.default_rng(seed)
    weights = dict(zip(NAMES, rng.uniform(-1, 1, len(NAMES)).round(3)))
    weights["age"] = -0.1  # else the oldest never leaves
    policy = Learned(size=4, **weights)
    prompts = [random_entry(0, rng, prompt=True, area=0.2)]
    state, bank, not_the_oldest = policy.prompt(None, at(0), prompts[0]), [], 0
    for t in range(1, frames):
        new = random_entry(t, rng, area=float(rng.choice([0.0, 0.05, 0.3])))
        if len(bank) > 4:
            rows = [literal_inputs(bank, prompts, e, t) for e in bank]
            leaving = int(np.argmin([np.dot(list(weights.values()), row) for row in rows]))
            not_the_oldest += leaving != 0
            del bank[leaving]
        bank.append(new)
        state = write(policy, state, at(t), new)
        assert [e.frame for e in state.entries] == [e.frame for e in bank], t
        assert state.inputs == () and state.token_count() <= policy.capacity(9)
    assert not_the_oldest > frames / 4, "control: FIFO would keep others"


def test_cosines_measured_on_the_device_are_taken() -> None:
    """Wrong ones give another frame, so they are not worked out again."""
    rng, policy = np.random.default_rng(3), Learned(size=2, age=0.0, like_first=1.0)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in range(1, 4):
        state = write(policy, state, at(t), random_entry(t, rng))
    seen, new = scored(random_entry(4, rng)), random_entry(4, rng)
    measured = policy.measure(state, at(4), seen.masks, None)
    assert measured is not None and measured.shape == (12,)
    keep = lambda numbers: policy.write(  # noqa: E731
        state, at(4), replace(seen, measured=numbers), policy.choose(state, at(4), seen), [new]
    )
    frames = lambda bank: [e.frame for e in bank.entries]  # noqa: E731
    assert frames(keep(measured)) == frames(keep(None)) != frames(keep(-measured))
    assert policy.measure(keep(None), at(3), seen.masks, None) is None, "a frame tracked again takes its own place"


@pytest.mark.parametrize("size", [1, 3])
def test_the_best_of_a_pass_are_what_the_bank_would_hold(size: int) -> None:
    rng = np.random.default_rng(size)
    weights = dict(zip(NAMES, rng.uniform(-1, 1, len(NAMES)).round(3))) | {"age": -0.1}
    prompts, frames = [random_entry(0, rng, prompt=True, area=0.2)], (1, 2, 3, 7, 8, 20, 21, 22, 40, 41)
    entries = [random_entry(t, rng, area=float(rng.choice([0.0, 0.05, 0.3]))) for t in frames]
    bank: list[MemoryEntry] = []
    for entry, t in zip(entries, (*frames[1:], 42)):
        bank.append(entry)
        score = {
            e.frame: np.dot(list(weights.values()), literal_inputs(bank, prompts, e, t)) if len(bank) > 1 else 0.0
            for e in bank
        }
        bank = sorted(sorted(bank, key=lambda e: -score[e.frame])[:size], key=lambda e: e.frame)
    best = sorted((e.frame for e in bank), key=lambda f: -score[f])
    policy = Learned(size=size, **weights)
    assert policy.best_of(prompts, entries) == best and len(best) == size
    assert replace(policy, **{name: -weight for name, weight in weights.items()}).best_of(prompts, entries) != best
    assert policy.best_of(prompts, entries[:1]) == [1] and policy.best_of(prompts, []) == []


def test_infos_show_the_score() -> None:
    rng, policy = np.random.default_rng(4), Learned(size=5, iou=1.0, age=0.0)
    state = policy.prompt(None, at(0), random_entry(0, rng, prompt=True))
    for t in range(1, 5):
        state = write(policy, state, at(t), random_entry(t, rng))
    scores = {i.frame: i.score for i in policy.entry_infos(state, at(5)) if i.score is not None}
    assert scores == pytest.approx({e.frame: e.iou for e in state.entries})
    inputs = dict(with_inputs(state, at(5)).inputs)
    assert inputs[4].previous == 1 and inputs[4].like_previous == pytest.approx(1) and inputs[1].previous == 0
    assert pointer_cosines(state, rivals_of(state, at(5))).shape == (4, 5)


def test_fit_finds_the_score_that_made_the_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices by a score of three inputs give its weights back; those of a coin give no better frame than any."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import fit_eviction

    rng = np.random.default_rng(0)
    truth = np.zeros(len(NAMES))
    truth[[0, 3, 8]] = -1.0, 0.5, -0.25
    for name, noise in (("score", 0.0), ("coin", 1.0)):
        lines = []
        for number in range(400):
            inputs = rng.uniform(0, 1, (6, len(NAMES)))
            values = 0.5 - 0.1 * inputs @ truth if not noise else rng.uniform(0, 1, 6)
            rows = [dict(zip(NAMES, row)) for row in inputs]
            lines.append({"clip": f"c{number % 4}", "oldest": 0, "inputs": rows, "values": list(values)})
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        read = fit_eviction.read_lines(path)
        weights = fit_eviction.fit(read[:300])
        regret = np.mean([x.values.max() - fit_eviction.value_of(weights, x) for x in read[300:]])
        if noise:
            assert regret > 0.2, "control"
        else:
            assert weights == pytest.approx(truth, abs=0.02) and regret < 1e-3


def test_the_shipped_weights_differ_from_fifo() -> None:
    shipped = build_policy("learned")
    assert shipped != Learned() and max(abs(getattr(shipped, name)) for name in NAMES) == 1.0
