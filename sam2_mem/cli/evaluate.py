"""The command ``tools/evaluate.py``: scores of masks on disk."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial

from tqdm import tqdm

from sam2_mem.cli.arguments import (
    command_parser,
    exit_status,
    user_path,
)
from sam2_mem.evaluation.datasets import PROTOCOLS, Selection, open_dataset
from sam2_mem.evaluation.reports import table, write_csv, write_json
from sam2_mem.evaluation.scoring import Progress, evaluate

USAGE = """Score predicted masks by the rules of a data set.

    sam2-mem evaluate --dataset davis2017 --gt DAVIS --pred out/davis
    sam2-mem evaluate --dataset sav --gt sav_val --pred out/sav --csv sav.csv --json sav.json

--gt is the root of the data set or its folder of annotations. Predictions are <video>/<frame>.png, as
sam2-mem segment writes them. The exit status is 1 if a video has no score. docs/evaluation.md has the rules.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    parser.add_argument("--dataset", required=True, choices=sorted(PROTOCOLS), help="whose rules and folders")
    parser.add_argument(
        "--gt", required=True, type=user_path, help="root of the data set, or its folder of annotations"
    )
    parser.add_argument("--pred", required=True, type=user_path, help="predictions, one folder for each video")
    parser.add_argument("--split", help="whose list and meta file to look for in the root (default: val or valid)")
    parser.add_argument("--list", type=user_path, help="the videos to score, one a line (default: those of the split)")
    parser.add_argument(
        "--meta", type=user_path, help="the meta file, where the data set has one (default: found by name)"
    )
    parser.add_argument(
        "--unseen", type=user_path, help="list of videos (LVOS) or categories (YouTube-VOS) not in training"
    )
    parser.add_argument("--only_predicted", action="store_true", help="leave out videos without predictions")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each processor")
    parser.add_argument("--csv", type=user_path, help="write one row for each object here, the summary beside it")
    parser.add_argument("--json", type=user_path, help="write everything here")
    parser.add_argument("--per_frame", action="store_true", help="put the numbers of every frame into --json")
    args = parser.parse_args(argv)
    if args.per_frame and args.json is None:
        parser.error("--per_frame needs --json")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0: all scored; 1: a video has no score; 2: the arguments cannot be used."""
    args = parse_arguments(argv)
    return exit_status(lambda: score(args))


def score(args: argparse.Namespace) -> int:
    selection = Selection(
        split=args.split, names=args.list, meta=args.meta, unseen=args.unseen, only_predicted=args.only_predicted
    )
    dataset = open_dataset(args.dataset, args.gt, args.pred, selection)
    began = time.perf_counter()
    report = evaluate(
        dataset.protocol, dataset.videos, processes=args.processes, progress=_with_bar(len(dataset.videos))
    )
    seconds = time.perf_counter() - began
    for source in dataset.sources:
        print(f"used {source}")
    print(table(report))
    print(f"\n{sum(len(scores.frames) for scores in report.objects)} masks scored in {seconds:.2f} s")
    if args.csv:
        summary = write_csv(report, args.csv)
        print(f"wrote {args.csv} and {summary}")
    if args.json:
        write_json(report, args.json, per_frame=args.per_frame)
        print(f"wrote {args.json}")
    return 1 if report.failures else 0


def _with_bar(total: int) -> Progress:
    """A progress bar over videos, on a terminal only."""
    return partial(tqdm, total=total, unit="video", disable=None, leave=False)
