#!/usr/bin/env python
"""Measure what token distillers save: bytes and tokens of a frame, keys read, operations and time, in one run.

    tools/measure_distillers.py --sizes 256,1024 --threads 1 --json out.json
    tools/measure_distillers.py --config sam2.1_hiera_t --weights random --setups none:fifo,temporal:distilled

One object, a full bank. A setup is distiller:policy; all setups of a size take turns on the same frames. Distillers
have the weights that come with the config, and are untrained where it has none.
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

from sam2_mem.cli import distillers
from sam2_mem.cli.network import add_network_arguments, integers


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=sam2_mem.__version__)
    add_network_arguments(parser, image_size=False)
    parser.add_argument("--sizes", type=integers, default=(256,), help="sides of the network's input (default: 256)")
    parser.add_argument("--setups", type=_setups, default=distillers.DEFAULT, help=f"(default: {distillers.DEFAULT})")
    parser.add_argument("--frames", type=int, default=6, help="frames timed per setup (default: 6)")
    parser.add_argument("--fill", type=int, default=40, help="frames remembered before (default: 40)")
    parser.add_argument("--json", dest="json_path", type=Path, help="write everything here")
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/distiller.md")
    return parser.parse_args(argv)


def _setups(text: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(tuple(name.split(":")) for name in text.split(","))
    if not all(len(pair) == 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"expected distiller:policy with commas between, got {text!r}")
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return distillers.measure(**vars(parse_arguments(argv)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
