#!/usr/bin/env python
"""What the frames of ``predictor.best_frames`` are worth, by certainty and by the score of the policy `learned`.

    python benchmarks/measure_best_frames.py --threads 1

Each procedural clip is tracked from its first mask. A second pass then has the masks that the network gave on the chosen frames as
prompts beside the first one. Printed for each way to choose, in percent: the mean J of the masks of the chosen frames, the mean J
of the second pass, and its difference to the first with the 95 % interval of resampled clips.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fit_eviction import LEVELS

from sam2_mem import build_sam2_video_predictor
from sam2_mem.build_sam import build_policy
from sam2_mem.evaluation.comparison.statistics import bootstrap
from sam2_mem.evaluation.metrics import jaccard
from sam2_mem.evaluation.synthetic import SyntheticClip
from sam2_mem.memory.policies.learned import Learned
from sam2_mem.synthetic.generator import SyntheticSpec
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

FIRST_SEED = 37_000_001
"""Of no set of `sam2_mem.evaluation.synthetic`, and of no clip that the score was fitted to."""


def passed(
    predictor: SAM2VideoPredictor, clip: SyntheticClip, prompts: dict[int, np.ndarray]
) -> tuple[InferenceState, list[np.ndarray]]:
    """A pass over a clip with masks (h, w) as prompts, and its masks."""
    state = predictor.init_state(clip.source())
    for frame, mask in prompts.items():
        predictor.add_new_mask(state, frame, 1, mask)
    masks = {frame: shown[0, 0].cpu().numpy() > 0 for frame, _, shown in predictor.propagate_in_video(state)}
    return state, [masks[frame] for frame in range(len(clip.frames))]


def chosen(predictor: SAM2VideoPredictor, state: InferenceState, count: int) -> dict[str, list[int]]:
    learned = build_policy("learned")
    assert isinstance(learned, Learned), "the policy of this name"
    frames = np.linspace(0, state.num_frames, count + 2)[1:-1].round().astype(int)
    return {
        "certainty": predictor.best_frames(state, 1, count),
        "learned": predictor.best_frames(state, 1, count, learned),
        "evenly apart": frames.tolist(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--set", nargs="+", default=["model.image_size=256", "model.mask_bias=0.0"])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--side", type=int, default=128, help="of a clip, pixels")
    parser.add_argument("--count", type=int, default=3, help="of chosen frames")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    predictor = build_sam2_video_predictor(options.config, hydra_overrides_extra=options.set, device="cpu")
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for number in range(options.clips):
        for name, row in measured(predictor, options, LEVELS[number % len(LEVELS)], FIRST_SEED + number).items():
            rows.setdefault(name, []).append(row)
            print(f"clip {number} {name}: {row}", file=sys.stderr, flush=True)
    show(rows)


def measured(
    predictor: SAM2VideoPredictor, options: argparse.Namespace, level: str, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Of one clip, by the way to choose: mean J of the chosen frames, of the second pass, of the first."""
    size = {"num_frames": options.frames, "height": options.side, "width": options.side}
    spec = SyntheticSpec(seed=seed, level=level, num_objects=1, late_objects=0, **size)
    clip = SyntheticClip(str(seed), level, spec)
    truth = [clip.truth(name) == 1 for name in clip.frames]
    state, first = passed(predictor, clip, {0: truth[0]})
    j = [jaccard(mask, true) for mask, true in zip(first, truth)]
    rows = {}
    for name, frames in chosen(predictor, state, options.count).items():
        _, second = passed(predictor, clip, {0: truth[0]} | {f: first[f] for f in frames})
        again = [jaccard(mask, true) for mask, true in zip(second, truth)]
        rows[name] = float(np.mean([j[f] for f in frames])), float(np.mean(again)), float(np.mean(j))
    return rows


def show(rows: dict[str, list[tuple[float, float, float]]]) -> None:
    for name, of_clips in rows.items():
        frames, second, first = 100 * np.mean(of_clips, axis=0)
        gain = bootstrap([again - before for _, again, before in of_clips])
        interval = f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        print(
            f"{name:14s} chosen frames {frames:5.1f}   second pass {second:5.1f}   first {first:5.1f}   gain {interval}"
        )


if __name__ == "__main__":
    main()
