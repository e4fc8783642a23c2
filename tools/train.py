#!/usr/bin/env python3
"""Train a network on clips, measure it, export its weights, or render its clips ahead of time.

    tools/train.py run nano --out outputs/nano [plan.seed=1 ...]
    torchrun --nproc_per_node 2 tools/train.py run nano --out outputs/nano
    tools/train.py export outputs/nano/last.pt sam2_mem_nano.safetensors
    tools/train.py clips nano
    tools/train.py eval nano --weights outputs/nano/weights.safetensors --root DAVIS --out report.jsonl

Further arguments of `run` and `clips` are Hydra overrides of the config: plan.optimisation.rate=3e-4
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from sam2_mem.cli import train as commands

FUNCTIONS = {"run": commands.run, "export": commands.export, "clips": commands.clips, "eval": commands.evaluate}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train, or go on with an interrupted run")
    run.add_argument("config", help="a name in configs/training, or the path of a YAML file")
    run.add_argument("--out", type=Path, required=True, help="folder of checkpoints and curves")
    run.add_argument("--init", help="weights to start from, e.g. an official checkpoint")
    run.add_argument("--device", default="auto")
    run.add_argument("--threads", type=int, default=0, help="CPU threads per process; 0 leaves it to torch")
    run.add_argument("--until", type=int, help="stop at this step")
    export = verbs.add_parser("export", help="write the averaged weights of a training checkpoint as safetensors")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("weights", type=Path)
    export.add_argument("--only", default="", help="weights whose names begin so, e.g. memory_encoder.distiller.")
    export.add_argument("--float32", action="store_true", help="do not round to float16")
    measure = verbs.add_parser("eval", help="measure a network beside copying the first mask and optical flow")
    measure.add_argument("config", help="a model config, e.g. nano")
    measure.add_argument("--weights", help="default: those of the config")
    measure.add_argument("--parts", nargs="*", default=(), help="levels still curtain memory speed folder; default all")
    measure.add_argument("--count", type=int, default=8, help="clips per level")
    measure.add_argument("--frames", type=int, default=60, help="frames per clip")
    measure.add_argument("--validation", action="store_true", help="other clips than those reported, to choose by")
    measure.add_argument("--layout", default="davis2016", help="of --root, see sam2_mem/training/folders.py")
    measure.add_argument("--root", help="a data set for the part `folder`")
    measure.add_argument("--threads", type=int, default=0)
    measure.add_argument("--out", type=Path, help="also append the lines to this file as JSON")
    clips = verbs.add_parser("clips", help="render the procedural clips of a config ahead of the training")
    clips.add_argument("config")
    known, overrides = parser.parse_known_args()
    if overrides and (known.verb not in ("run", "clips") or any(o.startswith("-") for o in overrides)):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments = vars(known)
    if known.verb in ("run", "clips"):
        arguments["overrides"] = overrides
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    return FUNCTIONS[arguments.pop("verb")](**arguments)


if __name__ == "__main__":
    sys.exit(main())
