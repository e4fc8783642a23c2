"""Procedural clips as pictures and folders.

sam2-mem synthetic sheet --level occlusion --seed 0 --out sheet.png
sam2-mem synthetic export --level mixed --num-frames 100 --out DIR
sam2-mem synthetic demo                       # writes notebooks/videos/demo*
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam2_mem.synthetic.demo import demo_clip
from sam2_mem.synthetic.export import contact_sheet, export_clip, write_demo, write_image
from sam2_mem.synthetic.generator import SyntheticVideo, make_clip
from sam2_mem.synthetic.scenes import LEVELS

DEMO_FOLDER = Path("notebooks/videos")
"""Of a checkout that is the working folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """0: written; 2: the arguments cannot be used."""
    options = _parse_arguments(argv)
    try:
        return _write(options)
    except (ValueError, OSError) as error:  # `exit_status` lies beside torch, which is not needed here
        print(f"error: {error}", file=sys.stderr)
        return 2


def _write(options: argparse.Namespace) -> int:
    if options.command == "demo":
        write_demo(demo_clip(), options.out)
    elif options.command == "export":
        name = options.name or f"{options.level}_{options.seed}"
        export_clip(_clip(options, options.seed), options.out, name, quality=options.quality)
    else:
        clips = (_clip(options, options.seed + row) for row in range(options.rows))
        times = np.linspace(0, options.num_frames - 1, options.columns).astype(int).tolist()
        write_image(options.out, contact_sheet(clips, times, scale=options.scale, plain=options.plain))
    return 0


def _clip(options: argparse.Namespace, seed: int) -> SyntheticVideo:
    return make_clip(
        seed,
        level=options.level,
        num_frames=options.num_frames,
        height=options.height,
        width=options.width,
        num_objects=options.num_objects,
        late_objects=options.late_objects,
        difficulty=options.difficulty,
    )


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("sheet", help="rows of frames with the contours of their masks, one row for each seed")
    sheet.add_argument("--columns", type=int, default=8, help="frames in a row, evenly spaced")
    sheet.add_argument("--rows", type=int, default=4, help="seeds, counted from --seed")
    sheet.add_argument("--scale", type=int, default=1, help="enlargement")
    sheet.add_argument("--plain", action="store_true", help="no contours")
    export = commands.add_parser("export", help="JPEGImages/<name>/00000.jpg and Annotations/<name>/00000.png")
    export.add_argument("--name", help="default: <level>_<seed>")
    export.add_argument("--quality", type=int, default=92, help="of the JPEG files")
    demo = commands.add_parser("demo", help="the demo clip with its prompts and ground truth")
    demo.add_argument("--out", type=Path, default=DEMO_FOLDER, help=f"default: {DEMO_FOLDER}, in the working folder")
    for command in (sheet, export):
        command.add_argument("--level", choices=sorted(LEVELS), default="mixed")
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--num-frames", type=int, default=60)
        command.add_argument("--height", type=int, default=160)
        command.add_argument("--width", type=int, default=160)
        command.add_argument("--num-objects", type=int, default=2)
        command.add_argument("--late-objects", type=int)
        command.add_argument("--difficulty", type=float, default=0.5)
        command.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)
