#!/usr/bin/env python
"""Two checkouts of the library on the demo clip, on a CPU: whether masks are equal to the bit, and time per frame, in turns.

    git worktree add --detach ../earlier COMMIT
    python benchmarks/compare_checkouts.py --before ../earlier
    python benchmarks/compare_checkouts.py --before ../earlier --config sam2.1_hiera_t --image_size 256 --policies fifo --objects 1,10

One process of either side stays alive; every case is run by both in turns, ``--rounds`` times. Compared are the logits of all frames
(SHA-256 of their bytes); the time is CPU seconds per tracked frame on one thread, the median of a round, and of rounds the
least. Markdown on standard output; exit code 1 where masks differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
CLIP = ROOT / "notebooks" / "videos"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--policies", help="separated by commas; all policies and presets of the other checkout")
    parser.add_argument("--objects", default="1", help="separated by commas; beyond the first, its mask is shifted")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        serve(args)
        return 0
    sides = [started(checkout, args) for checkout in (args.before, ROOT)]
    names = args.policies.split(",") if args.policies else asked(sides[0], {"policies": True})
    print("| policy, objects | masks | ms before | ms | ratio |\n|---|---|---:|---:|---:|")
    differing = 0
    for name in names:
        for objects in map(int, args.objects.split(",")):
            order = (0, 1, 1, 0)
            results = [[], []]
            for turn in range(2 * args.rounds):
                side = order[turn % 4]
                results[side].append(asked(sides[side], {"policy": name, "objects": objects}))
            digests = {result["digest"] for side in results for result in side}
            before, after = (min(result["ms"] for result in side) for side in results)
            differing += len(digests) > 1
            equal = "equal" if len(digests) == 1 else "differ"
            print(f"| {name}, {objects} | {equal} | {before:.1f} | {after:.1f} | {after / before:.3f} |", flush=True)
    for side in sides:
        side.stdin.close()
        side.wait()
    return int(differing > 0)


def started(checkout: Path, args: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, __file__, "--serve", str(checkout.resolve()), "--config", args.config]
    command += ["--frames", str(args.frames)]
    command += ["--image_size", str(args.image_size)] if args.image_size else []
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(side: subprocess.Popen, question: dict):
    assert side.stdin is not None and side.stdout is not None
    side.stdin.write(json.dumps(question) + "\n")
    side.stdin.flush()
    return json.loads(side.stdout.readline())


# -- one side ---------------------------------------------------------------------------------------------------------


def serve(args: argparse.Namespace) -> None:
    """Answers questions, one a line."""
    sys.path[0] = str(args.serve)
    logging.disable(logging.WARNING)
    import torch

    from sam2_mem.config import policy_names

    torch.set_num_threads(1)
    for line in sys.stdin:
        question = json.loads(line)
        if "policies" in question:
            print(json.dumps(policy_names()), flush=True)
        else:
            print(json.dumps(tracked(args, question["policy"], question["objects"])), flush=True)


def tracked(args: argparse.Namespace, policy: str, objects: int) -> dict:
    import numpy as np
    import torch
    from PIL import Image

    from sam2_mem import Prompt, build_sam2_video_predictor

    torch.manual_seed(0)
    size = [f"++model.image_size={args.image_size}"] if args.image_size else []
    predictor = build_sam2_video_predictor(args.config, device="cpu", memory_policy=policy, hydra_overrides_extra=size)
    paths = sorted((CLIP / "demo").glob("*.jpg"))[: args.frames]
    mask = np.array(Image.open(CLIP / "demo_prompts" / "demo" / "00000.png")) == 1
    prompts = [Prompt(i, mask=np.roll(mask, 8 * i, 1)) for i in range(objects)]
    state, digest, seconds = predictor.init_state(), hashlib.sha256(), []
    with torch.inference_mode():
        for number, path in enumerate(paths):
            picture = np.array(Image.open(path).convert("RGB"))
            began = time.process_time()
            masks = predictor.track_frame(state, picture, prompts if number == 0 else ())[2]
            seconds.append(time.process_time() - began)
            digest.update(masks.contiguous().numpy().tobytes())
    return {"digest": digest.hexdigest(), "ms": 1000 * median(seconds[1:])}


if __name__ == "__main__":
    sys.exit(main())
