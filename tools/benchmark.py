#!/usr/bin/env python
"""Measure what memory policies cost, side by side in one process.

    tools/benchmark.py policies --objects 1,5 --frames 100 --json out.json
    tools/benchmark.py policies --config sam2.1_hiera_t --weights random --image_size 512 --policies keyframe,xmem
    tools/benchmark.py memory --frames 1000 --policies sam2long
    tools/benchmark.py profile --config sam2.1_hiera_t --weights random --image_size 1024 --threads 2
    tools/benchmark.py peer --peer sam2.build_sam:build_sam2_video_predictor --config sam2.1_hiera_t --weights random \\
        --image_size 256 --threads 1
    tools/benchmark.py suite --peer sam2.build_sam:build_sam2_video_predictor --device cuda --out runs/cuda

`policies` runs blocks fifo, policy, policy, fifo on the same decoded frames and prints milliseconds per frame, the
ratio to fifo with its range over blocks, bytes and tokens held, and tokens read. `memory` watches what is held on a
long stream. `peer` runs ours beside another predictor with SAM 2's API, which is named by what builds it: masks must agree
before anything is said about speed. `profile` says where the time of a frame goes. `suite` runs every case of
docs/performance.md for a device, each in a process of its own, and goes on where it was cut off.
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
from sam2_mem.cli.network import add_network_arguments, integers, names, take_network


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=sam2_mem.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_network_arguments(common)
    common.add_argument("--policies", type=names, default=(), help="names with commas between (default: every yaml)")
    common.add_argument(
        "--override", action="append", default=[], dest="overrides", help="of our config, e.g. attention=pooled"
    )
    common.add_argument("--vos_optimized", action="store_true", help="build ours with vos_optimized=True")
    common.add_argument("--json", type=Path, help="write everything here")
    common.add_argument("--markdown", action="store_true", help="print a table for docs/policies.md")
    costs = verbs.add_parser("policies", parents=[common], help="time and memory beside fifo", allow_abbrev=False)
    costs.add_argument("--frames", type=int, default=100, help="the first 17 are left out of times")
    costs.add_argument("--objects", type=integers, default=(1, 5), help="numbers with commas between (default: 1,5)")
    costs.add_argument("--rounds", type=int, default=1, help="how often the four blocks are run")
    costs.add_argument("--size", type=_size, default=256, help="of the synthetic clip: its side, or 960x540")
    costs.add_argument("--video", type=Path, help="a video in place of the synthetic clip, with --masks")
    costs.add_argument("--masks", type=Path, help="PNG of object ids of its first frame")
    stays = verbs.add_parser("memory", parents=[common], help="what is held on a long stream", allow_abbrev=False)
    stays.add_argument("--frames", type=int, default=1000)
    stays.add_argument("--objects", type=int, default=1)
    stays.add_argument(
        "--loop", type=int, help="this many frames, rendered ahead, to and fro (default: all are rendered)"
    )
    stays.add_argument("--every", type=int, default=100, help="frames between two looks")
    stays.add_argument("--size", type=_size, default=128, help="of the synthetic clip: its side, or 960x540")
    beside = verbs.add_parser("peer", parents=[common], help="beside another predictor", allow_abbrev=False)
    beside.add_argument("--peer", required=True, help="module:function that builds it as SAM 2's does")
    beside.add_argument("--peer_option", action="append", default=[], type=_option, help="a further keyword, key=value")
    beside.add_argument("--peer_override", action="append", default=[], help="of its config")
    beside.add_argument("--peer_init", action="append", default=[], type=_option, help="a keyword of its init_state")
    beside.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast on both sides"
    )
    beside.add_argument("--least_iou", type=float, default=0.999, help="mean IoU below which nothing is timed")
    beside.add_argument(
        "--frames",
        type=int,
        default=78,
        help="the first 17 are left out of times; one that is left after the blocks is for counting",
    )
    beside.add_argument("--block", type=int, default=15, help="frames before the other side's turn")
    beside.add_argument("--objects", type=int, default=1)
    beside.add_argument("--size", type=_size, default=256, help="of the synthetic clip: its side, or 960x540")
    beside.add_argument("--alone_frames", type=int, help="frames for memory and the first mask (default: --frames)")
    beside.add_argument(
        "--no_alone", action="store_true", help="leave out what needs a fresh process: memory, first mask"
    )
    parts = verbs.add_parser("profile", parents=[common], help="where the time of a frame goes", allow_abbrev=False)
    parts.add_argument("--frames", type=int, default=40, help="the first 17 are left out of times")
    parts.add_argument("--objects", type=int, default=1)
    parts.add_argument("--size", type=_size, default=256, help="of the synthetic clip: its side, or 960x540")
    parts.add_argument("--trace", type=Path, help="the last frame for Chrome's or Perfetto's viewer")
    every = verbs.add_parser("suite", help="every case of docs/performance.md for a device", allow_abbrev=False)
    every.add_argument("--peer", required=True, help="module:function that builds it as SAM 2's does")
    every.add_argument(
        "--out", type=Path, required=True, help="folder of results; cases that are there are not run again"
    )
    every.add_argument("--weights", default="random", help="a checkpoint, or random (default)")
    every.add_argument("--device", default="cpu")
    every.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    every.add_argument("--markdown", action="store_true", help="print a table for docs/performance.md")
    return parser.parse_args(argv)


def _size(text: str) -> int | tuple[int, int]:
    numbers = [int(n) for n in text.split("x")]
    if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected a side, or WIDTHxHEIGHT, got {text!r}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _option(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    return key, {"true": True, "false": False}.get(value.lower(), value)


def _peer(given: dict) -> dict:
    """Arguments of the verb ``peer`` as its function takes them."""
    if given.pop("policies"):
        raise ValueError("expected a policy as --override memory_policy=NAME beside a peer, got --policies")
    keys = ("dtype", "least_iou")
    beside = benchmark.Beside(
        builder=given.pop("peer"),
        options=dict(given.pop("peer_option")),
        overrides=tuple(given.pop("peer_override")),
        init=dict(given.pop("peer_init")),
        **{k: given.pop(k) for k in keys},
    )
    return given | {"beside": beside, "alone_too": not given.pop("no_alone")}


def _arguments(verb: str, given: dict) -> dict:
    """Of a verb as its function takes them."""
    if verb == "peer":
        return _peer(given)
    if verb == "suite":
        return given | {"tool": Path(__file__).resolve()}
    return {"names": given.pop("policies")} | given


def main(argv: Sequence[str] | None = None) -> int:
    given = vars(parse_arguments(argv))
    name = given.pop("verb")
    network = take_network(given)
    report = benchmark.Report(json=given.pop("json", None), markdown=given.pop("markdown"))
    try:
        given = _arguments(name, given)
        verb = getattr(benchmark, name)
        return verb(network=network, report=report, **given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
