#!/usr/bin/env python
"""Show what memory holds on a video, and why.

    tools/inspect_memory.py show --video clip.mp4 --box 100,80,300,260 --policies rmem,xmem --out out/memory
    tools/inspect_memory.py show --video notebooks/videos/demo --masks notebooks/videos/demo_prompts/demo --frame 40 \\
        --policies fifo,sam2long --out out/memory
    tools/inspect_memory.py decipher --video notebooks/videos/demo --truth notebooks/videos/demo_gt/demo --out out/study

`show` writes a picture for every policy and object, and index.html: frame, mask and memory under one slider. `decipher`
is RMem's study: how well a frame is decoded from banks of different size and contents made of true masks; it needs
ground truth. docs/inspection.md explains both.
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

from sam2_mem.cli import inspection
from sam2_mem.cli.network import add_network_arguments, integers, names, take_network


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=sam2_mem.__version__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_network_arguments(common)
    common.add_argument("--out", type=Path, required=True, help="folder for the results")
    common.add_argument("--stop", type=int, help="first frame left out (default: the whole video)")
    show = verbs.add_parser("show", parents=[common], help="timeline, pictures and page", allow_abbrev=False)
    show.add_argument("--video", type=Path, required=True, help="a video file or a folder of images")
    show.add_argument("--masks", type=Path, help="PNG of object ids of the first frame, or a folder of them")
    show.add_argument("--box", type=_floats, help="x0,y0,x1,y1 on the first frame")
    show.add_argument("--point", type=_floats, help="x,y on the first frame")
    show.add_argument("--policies", type=names, default=("fifo",), help="names with commas between (default: fifo)")
    show.add_argument("--frame", type=int, help="frame whose memory the pictures show (default: the last)")
    show.add_argument("--objects", type=integers, default=(), help="ids with commas between (default: all)")
    show.add_argument("--width", type=int, default=256, help="width of the pictures kept")
    show.add_argument("--no_read_mass", dest="read_mass", action="store_false", help="do not measure attention")
    study = verbs.add_parser("decipher", parents=[common], help="J against bank size and contents", allow_abbrev=False)
    study.add_argument("--video", type=Path, nargs="+", required=True, help="videos with ground truth")
    study.add_argument("--truth", type=Path, nargs="+", required=True, help="for each, its folder of PNGs of ids")
    study.add_argument("--sizes", type=integers, help="frames in the bank, with commas between")
    study.add_argument("--contents", type=names, help="recent, spread, random, best, worst (default: all)")
    study.add_argument("--targets", type=int, help="most frames decoded per object")
    study.add_argument("--seed", type=int)
    return parser.parse_args(argv)


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    given = vars(parse_arguments(argv))
    verb = given.pop("verb")
    network = take_network(given)
    try:
        if verb == "show":
            prompts = inspection.Prompts(**{k: given.pop(k) for k in ("masks", "box", "point")})
            return inspection.show(network=network, prompts=prompts, **given)
        asked = {k: given.pop(k) for k in ("sizes", "contents", "targets", "seed")}
        question = inspection.Study(**{k: v for k, v in asked.items() if v is not None})
        videos, truths = given.pop("video"), given.pop("truth")
        return inspection.study(network=network, videos=videos, truths=truths, question=question, **given)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
