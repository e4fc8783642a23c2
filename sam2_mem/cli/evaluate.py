"""The command ``tools/evaluate.py``: scores of masks on disk."""

from __future__ import annotations

import argparse
import logging
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
from sam2_mem.cli.launcher import Cluster, add_launcher_arguments, launch
from sam2_mem.evaluation.datasets import PROTOCOLS, Dataset, Selection, open_dataset
from sam2_mem.evaluation.reports import table, write_csv, write_json
from sam2_mem.evaluation.results import Failure, Report
from sam2_mem.evaluation.scoring import Progress, evaluate, report_of
from sam2_mem.evaluation.shared_scoring import ScoreFolder, shared_outcomes

logger = logging.getLogger(__name__)

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
    parser.add_argument(
        "--scores",
        type=user_path,
        help="keep the scores of each video here: a run that was cut off goes on, and runs with the same folder, on any machines, "
        "share the videos",
    )
    parser.add_argument("--num_shards", type=int, default=1, help="tasks of --launcher (default: 1)")
    add_launcher_arguments(parser)
    parser.add_argument("--csv", type=user_path, help="write one row for each object here, the summary beside it")
    parser.add_argument("--json", type=user_path, help="write everything here")
    parser.add_argument("--per_frame", action="store_true", help="put the numbers of every frame into --json")
    args = parser.parse_args(argv)
    if args.per_frame and args.json is None:
        parser.error("--per_frame needs --json")
    if (args.launcher or args.num_shards > 1) and (args.scores is None or args.launcher is None):
        parser.error("tasks share the videos: expected --launcher with --scores FOLDER and --num_shards")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0: all scored; 1: a video has no score; 2: the arguments cannot be used."""
    args = parse_arguments(argv)
    return exit_status(lambda: score(args))


def score(args: argparse.Namespace) -> int:
    dataset = _dataset(args)
    began = time.perf_counter()
    report = _report(args, dataset)
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


def _dataset(args: argparse.Namespace) -> Dataset:
    selection = Selection(
        split=args.split, names=args.list, meta=args.meta, unseen=args.unseen, only_predicted=args.only_predicted
    )
    return open_dataset(args.dataset, args.gt, args.pred, selection)


def _report(args: argparse.Namespace, dataset: Dataset) -> Report:
    if args.scores is None:
        bar = _with_bar(len(dataset.videos))
        return evaluate(dataset.protocol, dataset.videos, processes=args.processes, progress=bar)
    if args.launcher is not None:
        cluster, folder = Cluster.of(args), args.scores.resolve() / "submitit"
        for line in launch(score_as_task, args, cluster, folder=folder, name="sam2-mem-evaluate"):
            logger.warning("%s", line)
    outcomes = shared_outcomes(ScoreFolder(args.scores, dataset.protocol), dataset.videos, processes=args.processes)
    return report_of(dataset.protocol, dataset.videos, outcomes)


def score_as_task(args: argparse.Namespace) -> int:
    """What each task of ``--launcher`` does: score videos; the report is made by the command that has started it."""
    dataset = _dataset(args)
    outcomes = shared_outcomes(ScoreFolder(args.scores, dataset.protocol), dataset.videos, processes=args.processes)
    return 1 if any(isinstance(outcome, Failure) for outcome in outcomes) else 0


def _with_bar(total: int) -> Progress:
    """A progress bar over videos, on a terminal only."""
    return partial(tqdm, total=total, unit="video", disable=None, leave=False)
