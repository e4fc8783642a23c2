#!/usr/bin/env python
"""Measure what memory policies cost, side by side in one process.

    tools/benchmark.py policies --objects 1,5 --frames 100 --json out.json
    tools/benchmark.py policies --config sam2.1_hiera_t --weights random --image_size 512 --policies keyframe,xmem
    tools/benchmark.py memory --frames 1000 --policies sam2long

`policies` runs blocks fifo, policy, policy, fifo on the same decoded frames and prints milliseconds per frame, the
ratio to fifo with its range over blocks, bytes and tokens held, and tokens read. `memory` watches what is held on a
long stream.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import sam2_mem
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import sam2_mem

from sam2_mem.cli import benchmark


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=sam2_mem.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument("--config", default="nano", help="a model config (default: nano)")
    common.add_argument("--weights", help="a checkpoint, or random (default: those of the config)")
    common.add_argument("--image_size", type=int, help="side of the network's input (default: that of the config)")
    common.add_argument("--device", default="cpu")
    common.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    common.add_argument("--policies", type=_names, default=(), help="names with commas between (default: every yaml)")
    common.add_argument("--json", type=Path, help="write everything here")
    common.add_argument("--markdown", action="store_true", help="print a table for docs/policies.md")
    costs = verbs.add_parser("policies", parents=[common], help="time and memory beside fifo", allow_abbrev=False)
    costs.add_argument("--frames", type=int, default=100, help="the first 17 are left out of times")
    costs.add_argument("--objects", type=_numbers, default=(1, 5), help="numbers with commas between (default: 1,5)")
    costs.add_argument("--rounds", type=int, default=1, help="how often the four blocks are run")
    costs.add_argument("--size", type=int, default=256, help="side of the synthetic clip in pixels")
    costs.add_argument("--video", type=Path, help="a video in place of the synthetic clip, with --masks")
    costs.add_argument("--masks", type=Path, help="PNG of object ids of its first frame")
    stays = verbs.add_parser("memory", parents=[common], help="what is held on a long stream", allow_abbrev=False)
    stays.add_argument("--frames", type=int, default=1000)
    stays.add_argument("--objects", type=int, default=1)
    stays.add_argument("--every", type=int, default=100, help="frames between two looks")
    stays.add_argument("--size", type=int, default=128, help="side of the synthetic clip in pixels")
    return parser.parse_args(argv)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    given = vars(parse_arguments(argv))
    verb = {"policies": benchmark.policies, "memory": benchmark.memory}[given.pop("verb")]
    network = benchmark.Network(**{k: given.pop(k) for k in ("config", "weights", "image_size", "device", "threads")})
    report = benchmark.Report(json=given.pop("json"), markdown=given.pop("markdown"))
    try:
        return verb(network=network, report=report, names=given.pop("policies"), **given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
