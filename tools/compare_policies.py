#!/usr/bin/env python
"""Put memory policies side by side on videos with ground truth: quality, speed and bytes in one report.

    tools/compare_policies.py --out runs/dev
    tools/compare_policies.py --out runs/long --data synthetic:long-v1 --policies fifo xmem rmem:bank_size=8 \\
        "fifo+refiner=hq" --threads 1
    tools/compare_policies.py --out runs/davis --data davis2016:/data/DAVIS --config sam2.1_hiera_t \\
        --checkpoint checkpoints/sam2.1_hiera_tiny.pt --device cuda
    tools/compare_policies.py --out runs/long --data synthetic:long-v1 --num_shards 8 --launcher slurm

A run that was cut off goes on when it is started again; what is done is not done twice. The report is
<out>/report/index.html, report.md and summary.csv. docs/evaluation.md says what is measured.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import sam2_mem
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import sam2_mem

from sam2_mem.cli import compare
from sam2_mem.tracking.vos_run import Shard


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=sam2_mem.__version__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument(
        "--policies",
        nargs="+",
        default=(),
        metavar="POLICY",
        help="names, with changes: rmem:bank_size=8,gap=3 or fifo+refiner=hq+model.image_size=256 (default: every one)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=compare.DATA,
        metavar="DATA",
        help="synthetic:long-v1, :dev-v1 or :seeds-v1, or NAME:ROOT of a data set with ground truth, NAME as for "
        "tools/evaluate.py (default: synthetic:dev-v1)",
    )
    parser.add_argument("--videos", nargs="+", default=(), help="only these, by name")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,), help="of whatever is random (default: 0)")
    parser.add_argument("--baseline", help="the policy that others are compared with (default: the first)")
    parser.add_argument("--config", default="nano", help="a model config (default: nano)")
    parser.add_argument("--checkpoint", help="weights, or random (default: those of the config)")
    parser.add_argument(
        "--set", nargs="+", default=(), metavar="KEY=VALUE", help="changes to the config of all policies"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch, 1 gives steady times"
    )
    parser.add_argument("--apply_postprocessing", action="store_true", help="as in tools/vos_inference.py")
    parser.add_argument("--max_frames", type=int, help="of each video")
    parser.add_argument("--masks", action="store_true", help="keep the masks, as PNG")
    parser.add_argument("--num_shards", type=int, default=1, help="split the videos between this many processes")
    parser.add_argument("--shard_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "--launcher", choices=("slurm", "local"), help="start all shards with submitit and wait for the report"
    )
    parser.add_argument("--launcher_set", nargs="+", default=(), metavar="KEY=VALUE", help="e.g. timeout_min=240")
    parser.add_argument("--report", action="store_true", help="only make the report of what is there")
    return parser.parse_args(argv)


def make_options(args: argparse.Namespace) -> compare.Options:
    return compare.Options(
        out=args.out,
        policies=tuple(args.policies),
        data=tuple(args.data),
        videos=tuple(args.videos),
        seeds=tuple(args.seeds),
        baseline=args.baseline,
        config=args.config,
        checkpoint=args.checkpoint,
        overrides=tuple(args.set),
        device=args.device,
        threads=args.threads,
        apply_postprocessing=args.apply_postprocessing,
        max_frames=args.max_frames,
        masks=args.masks,
        shard=Shard(index=args.shard_id, of=args.num_shards),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0: all done; 1: a run failed; 2: the arguments cannot be used."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    args = parse_arguments(argv)
    try:
        if args.report:
            return compare.report_only(args.out)
        if args.launcher:
            given = args.launcher_set
            return compare.launch(make_options(args), cluster=args.launcher, shards=args.num_shards, parameters=given)
        return compare.run_shard(make_options(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
