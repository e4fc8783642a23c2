#!/usr/bin/env python
"""Time of a frame by ``tracker.clip_length``: the table of docs/performance.md.

    python benchmarks/measure_clips.py --config nano_v2 --image_size 256 --video notebooks/videos/demo \\
        --mask notebooks/videos/demo_prompts/demo/00000.png

Milliseconds of one thread of the processor, so that a busy machine does not count; all lengths in turns, round by round.
Quality is measured by ``sam2-mem compare --policies fifo "fifo+tracker.clip_length=5"``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from sam2_mem import SAM2VideoPredictor, build_sam2_video_predictor
from sam2_mem.tracking.vos import PromptPlan, plan_from_mask, segment


def milliseconds(predictor: SAM2VideoPredictor, video: str, plan: PromptPlan, length: int, frames: int) -> float:
    """Of processor time for a frame of a pass, decoding and resizing included."""
    settings = replace(predictor.tracker_settings, clip_length=length)
    tracking = SAM2VideoPredictor(predictor.model, predictor.policy, tracker=settings)
    state = tracking.init_state(video, interactive=False)
    began = time.process_time()
    count = sum(1 for _ in segment(tracking, state, plan, stop=frames, allow_empty=True))
    return 1000 * (time.process_time() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--checkpoint", help="weights, or random (default: those of the config)")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--policy", default="fifo")
    parser.add_argument("--video", required=True)
    parser.add_argument("--mask", required=True, help="PNG of the first frame")
    parser.add_argument("--frames", type=int, default=41)
    parser.add_argument("--lengths", nargs="+", type=int, default=[1, 2, 5, 10])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    overrides = [f"++model.image_size={args.image_size}"]
    predictor = build_sam2_video_predictor(
        args.config, args.checkpoint, device="cpu", hydra_overrides_extra=overrides, memory_policy=args.policy
    )
    plan = plan_from_mask(args.mask)
    milliseconds(predictor, args.video, plan, 1, 3)  # buffers are made on first use
    times: dict[int, list[float]] = {length: [] for length in args.lengths}
    for _ in range(args.rounds):
        for length in args.lengths:
            times[length].append(milliseconds(predictor, args.video, plan, length, args.frames))
    print(f"{args.config} at {args.image_size}, {args.policy}, {len(plan.obj_ids)} objects, {args.frames} frames")
    for length, values in times.items():
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"clip_length {length:3d}: {statistics.median(values):7.1f} ms a frame ({spread})", flush=True)


if __name__ == "__main__":
    main()
