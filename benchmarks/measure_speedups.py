#!/usr/bin/env python
"""What each speed-up gains: CPU seconds of a steady frame without it over those with it.

    python benchmarks/measure_speedups.py --config sam2.1_hiera_t --image_size 256 --objects 5

One frame, image encoder and tracker, is run again and again from the same state, every speed-up in turn without and
with it (A/B, then B/A), on one thread. Differences of mask logits are printed beside the gain.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from switches import SWITCHES, all_undone  # noqa: E402

from sam2_mem import build_sam2_video_predictor  # noqa: E402
from sam2_mem.cli.benchmark import synthetic_clip  # noqa: E402
from sam2_mem.evaluation.benchmark.reference_benchmark import amplified  # noqa: E402
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor  # noqa: E402
from sam2_mem.video import Frame  # noqa: E402

WARM_UP = 17


class Steady:
    """The first frame after the warm-up, as often as it is called."""

    def __init__(self, predictor: SAM2VideoPredictor, objects: int, size: int) -> None:
        clip = synthetic_clip(WARM_UP + 1, size, objects)
        self.predictor = predictor
        self.tracker = predictor.init_state(num_frames=WARM_UP + 1).tracker
        for t in range(WARM_UP):
            self.tracker.step(predictor.encode(Frame(t, str(t), clip.picture(t))), clip.prompts if t == 0 else ())
        self.last = Frame(WARM_UP, str(WARM_UP), clip.picture(WARM_UP))
        self.tracks = self._copy(self.tracker.tracks)

    def _copy(self, tracks):
        return {i: copy.copy(t) for i, t in tracks.items()}

    def __call__(self) -> tuple[float, Tensor]:
        """CPU seconds and mask logits."""
        self.tracker.tracks = self._copy(self.tracks)
        for track in self.tracker.tracks.values():
            track.outputs, track.tracked = dict(track.outputs), copy.deepcopy(track.tracked)
        began = time.process_time()
        masks = self.tracker.step(self.predictor.encode(self.last)).masks
        return time.process_time() - began, masks


def compare(frame: Steady, undo: Callable, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds without and with a speed-up, and the largest difference of logits."""
    seconds, masks = {True: [], False: []}, {}
    for i in range(2 * rounds):
        for off in (True, False) if i % 2 else (False, True):
            with undo() if off else nullcontext():
                spent, masks[off] = frame()
            seconds[off].append(spent)
    return seconds[True], seconds[False], (masks[True] - masks[False]).abs().max().item()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="sam2.1_hiera_t")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*SWITCHES, "all"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = [f"model.image_size={args.image_size}"]
    predictor = build_sam2_video_predictor(args.config, args.weights, device="cpu", hydra_overrides_extra=size)
    if args.weights == "random":
        predictor.model.load_state_dict(amplified(predictor.model.state_dict()))
    frame = Steady(predictor, args.objects, args.image_size)
    print(
        f"{args.config}, {args.image_size}, {args.objects} objects, {2 * args.rounds} pairs, torch {torch.__version__}"
    )
    for name in args.only:
        off, on, error = compare(frame, SWITCHES.get(name, all_undone), args.rounds)
        ratios = sorted(a / b for a, b in zip(off, on))
        spread = f"{ratios[0]:.3f}-{ratios[-1]:.3f}"
        print(
            f"{name:28s} {1000 * median(off):9.1f} -> {1000 * median(on):9.1f} ms   x {median(ratios):.3f} ({spread})"
            f"   difference {error:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
