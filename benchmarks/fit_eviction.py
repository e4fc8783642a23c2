#!/usr/bin/env python
"""The weights of the policy `learned`: a linear score fitted to the best evictions on procedural video.

    python benchmarks/fit_eviction.py --choices choices.jsonl --threads 1

Each clip is tracked with `oracle=eviction` on every fifth frame; on the others a frame leaves at random, so that banks of every spread
are seen. For every choice of a frame that leaves, a line of the file holds what the score goes by (`ScoreInputs`) and the mean J
ahead without each frame; clips that the file has are not tracked again. The fit is by
least squares, with a penalty on large weights, of the differences within a choice. It is checked on clips left out of it, in turn,
by the J ahead of the frame that leaves, beside the best choice, the oldest frame and the mean of all; the penalty is the one that
is best there, so that this number is a little too high.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam2_mem import build_sam2_video_predictor
from sam2_mem.evaluation.comparison.eviction import EvictionChoice, EvictionWriter, with_best_eviction
from sam2_mem.evaluation.synthetic import SyntheticClip
from sam2_mem.memory.policies.learned import ScoreInputs, ScoreInputsBank, with_inputs
from sam2_mem.synthetic.generator import SyntheticSpec
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import segment

LEVELS = (
    "changed_away",
    "revisit",
    "lookalike_stays",
    "scene_cut",
    "leave_return",
    "lookalikes",
    "appearance",
    "occlusion",
)
NAMES = [f.name for f in fields(ScoreInputs)]
FIRST_SEED = 36_000_001
"""Of no set of `sam2_mem.evaluation.synthetic`."""

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""On the square of a weight, as shares of the mean square of what weights multiply."""


@dataclass(frozen=True)
class Line:
    """One choice: what is known of n frames, and the mean J ahead without each."""

    clip: str
    inputs: np.ndarray
    values: np.ndarray
    oldest: int


# -- choices ----------------------------------------------------------------------------------------------------------


def clips(options: argparse.Namespace) -> Iterator[SyntheticClip]:
    for number in range(options.clips):
        level, seed = LEVELS[number % len(LEVELS)], FIRST_SEED + number
        size = {"num_frames": options.frames, "height": options.side, "width": options.side}
        yield SyntheticClip(
            f"{level}_{seed}", level, SyntheticSpec(seed=seed, level=level, num_objects=1, late_objects=0, **size)
        )


def described(clip: str, choice: EvictionChoice) -> dict[str, Any]:
    state = ScoreInputsBank(choice.state.prompts, choice.state.entries, choice.state.pointers)
    inputs = dict(with_inputs(state, choice.frame).inputs)
    ages = [abs(choice.frame.age(f)) for f in choice.values]
    rows = [asdict(inputs[f]) for f in choice.values]
    return {"clip": clip, "oldest": int(np.argmax(ages)), "inputs": rows, "values": list(choice.values.values())}


@dataclass(eq=False)
class ExploringWriter(EvictionWriter):
    """Looks ahead on every ``every``-th frame; on the others a frame leaves at random."""

    every: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._random = np.random.default_rng(0)

    def encode_memories(self, predictions: Any, selections: Any, outputs: Any, features: Any) -> Any:
        if features.index % self.every == 0:
            return super().encode_memories(predictions, selections, outputs, features)
        for prediction in predictions:
            track = prediction.track
            track.state = replace(
                track.state, leaves=int(self._random.choice([e.frame for e in track.state.entries] or [0]))
            )
        return MemoryWriter.encode_memories(self, predictions, selections, outputs, features)


def collect(predictor: SAM2VideoPredictor, clip: SyntheticClip) -> list[dict[str, Any]]:
    oracle, choices = with_best_eviction(predictor), list[EvictionChoice]()
    oracle.video = clip
    lines = []
    state = oracle.init_state(clip.source(), interactive=False)
    writer = state.tracker.writer
    parts = writer.model, writer.policy, writer.settings, writer.future, choices.append
    state.tracker.writer = ExploringWriter(*parts)
    for _ in segment(oracle, state, clip.plan(), allow_empty=True):
        lines += [described(clip.name, choice) for choice in choices]
        choices.clear()
    return lines


def read_lines(path: Path) -> list[Line]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        Line(x["clip"], np.array([[f[n] for n in NAMES] for f in x["inputs"]]), np.array(x["values"]), x["oldest"])
        for x in lines
    ]


# -- the fit ----------------------------------------------------------------------------------------------------------


def fit(lines: Sequence[Line], penalty: float = PENALTIES[0]) -> np.ndarray:
    """Weights, the largest of size 1: the score of a frame is high where J ahead is low without it."""
    x = np.concatenate([line.inputs - line.inputs.mean(0) for line in lines])
    y = np.concatenate([line.values.mean() - line.values for line in lines])
    scatter = x.T @ x
    ridge = penalty * max(scatter.diagonal().mean(), 1e-9) * np.eye(len(NAMES))
    weights = np.linalg.solve(scatter + ridge, x.T @ y)
    return weights / max(np.abs(weights).max(), 1e-12)


def value_of(weights: np.ndarray, line: Line) -> float:
    """J ahead without the frame of lowest score."""
    return float(line.values[np.argmin(line.inputs @ weights)])


def left_out(lines: Sequence[Line], penalty: float) -> list[float]:
    """J ahead, of weights fitted to the other clips."""
    values = []
    for name in sorted({line.clip for line in lines}):
        weights = fit([line for line in lines if line.clip != name], penalty)
        values += [value_of(weights, line) for line in lines if line.clip == name]
    return values


def best_penalty(lines: Sequence[Line]) -> float:
    return max(PENALTIES, key=lambda penalty: np.mean(left_out(lines, penalty)))


def show(lines: Sequence[Line]) -> None:
    """Print J ahead of several choices, and the weights."""
    penalty = best_penalty(lines)
    rows = {
        "best": [line.values.max() for line in lines],
        "learned, clip left out": left_out(lines, penalty),
        "oldest (fifo)": [line.values[line.oldest] for line in lines],
        "mean of all": [line.values.mean() for line in lines],
    }
    print(
        f"J ahead, percent, mean of {len(lines)} choices on {len({line.clip for line in lines})} clips, penalty {penalty:g}:"
    )
    for name, values in rows.items():
        print(f"  {name:24s} {100 * np.mean(values):6.2f}")
    print("\n".join(f"{name}: {weight:.3f}" for name, weight in zip(NAMES, fit(lines, penalty))))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", type=Path, required=True, help="file of choices, added to")
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--checkpoint", help="weights (default: those of the config)")
    parser.add_argument(
        "--set", nargs="+", default=["model.image_size=256", "model.mask_bias=0.0"], help="overrides of the config"
    )
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--side", type=int, default=128, help="of a clip, pixels")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    done = {line.clip for line in read_lines(options.choices)}
    predictor = build_sam2_video_predictor(
        options.config, options.checkpoint, hydra_overrides_extra=options.set, device="cpu"
    )
    for clip in clips(options):
        if clip.name not in done:
            lines = collect(predictor, clip)
            with options.choices.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            print(f"{clip.name}: {len(lines)} choices", flush=True)
    show(read_lines(options.choices))


if __name__ == "__main__":
    main()
