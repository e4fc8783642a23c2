#!/usr/bin/env python3
"""An exported network beside PyTorch on one CPU, in turns on the same clip: time of a frame, and whether masks are equal.

    benchmarks/measure_onnx.py --config nano_v2 --frames 40
    benchmarks/measure_onnx.py --config sam2.1_hiera_t --weights random --frames 12 --policies fifo,sam2long

Memory is kept in float32 (tracker.memory_dtype), in which the two differ by rounding alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.cli.arguments import names
from sam2_mem.config import compose_video
from sam2_mem.onnx import OnnxPredictor, export_network
from sam2_mem.synthetic.generator import SyntheticVideo, make_clip
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

FLOAT32 = "tracker.memory_dtype=float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--weights", help="default: those of the config")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--policies", type=names, default=("fifo", "xmem", "sam2long"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="of an export, made if it is empty (default: a temporary one)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = compose_video(args.config, [FLOAT32], apply_postprocessing=False)
    ours = build_sam2_video_predictor(config, args.weights, device="cpu", apply_postprocessing=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "manifest.json").exists():
            export_network(ours.model, config, folder)
        theirs = OnnxPredictor.load(folder, overrides=[FLOAT32], apply_postprocessing=False)
        clip = make_clip(3, level="occlusion", num_frames=args.frames, num_objects=max(args.objects, 2), late_objects=0)
        print(f"{args.config}, {args.objects} objects, {args.frames} frames, {args.threads} threads")
        for policy in args.policies:
            compare(ours.with_policy(policy), theirs.with_policy(policy), clip, args.objects, args.turns)


def compare(
    ours: SAM2VideoPredictor, theirs: SAM2VideoPredictor, clip: SyntheticVideo, objects: int, turns: int
) -> None:
    """A/B, then B/A, and so on."""
    times: dict[str, list[float]] = {"torch": [], "onnx": []}
    masks: dict[str, list[Tensor]] = {}
    for turn in range(turns):
        pair = [("torch", ours), ("onnx", theirs)]
        for name, predictor in pair if turn % 2 == 0 else pair[::-1]:
            masks[name], spent = track(predictor, clip, objects)
            times[name] += spent
    different = sum(int(((a > 0) != (b > 0)).sum()) for a, b in zip(masks["torch"], masks["onnx"], strict=True))
    largest = max(float((a - b).abs().max()) for a, b in zip(masks["torch"], masks["onnx"], strict=True))
    torch_ms, onnx_ms = (1000 * statistics.median(times[name]) for name in ("torch", "onnx"))
    policy = type(ours.policy).__name__
    print(
        f"{policy:10s} PyTorch {torch_ms:7.1f} ms, onnxruntime {onnx_ms:7.1f} ms of processor a frame: "
        f"{torch_ms / onnx_ms:.2f} times as fast; {different} pixels differ, logits by {largest:.1e}",
        flush=True,
    )


def track(predictor: SAM2VideoPredictor, clip: SyntheticVideo, objects: int) -> tuple[list[Tensor], list[float]]:
    """Logits of every frame, and seconds of processor time of each after the tenth part of them."""
    state = predictor.init_state(np.stack([frame.image for frame in clip]))
    for obj_id in range(1, objects + 1):
        predictor.add_new_mask(state, 0, obj_id, clip.masks(0) == obj_id)
    masks, spent, before = [], [], time.process_time()
    for _, _, logits in predictor.propagate_in_video(state):
        now = time.process_time()
        spent.append(now - before)
        masks.append(logits.clone())
        before = time.process_time()
    return masks, spent[len(spent) // 10 :]


if __name__ == "__main__":
    main()
