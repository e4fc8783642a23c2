"""Whether a checkpoint gives here what was published: segments a data set, scores it, and shows both numbers side by side.

    sam2-mem verify checkpoints/sam2.1_hiera_tiny.pt --data davis2017:/data/DAVIS
    sam2-mem verify edgetam.pt --data sav:/data/sav_val --out verify/edgetam

The network is recognised from the file; the data set is segmented and scored by its rules (sam2-mem segment, sam2-mem evaluate), with SAM 2's
own memory unless memory_policy=... says otherwise. verify.json in the output holds all of it, to be sent to others. A run that was cut off
goes on.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sam2_mem import __version__
from sam2_mem.checkpoint import local_path, read_state_dict
from sam2_mem.checkpoint_names import network_of
from sam2_mem.cli import vos
from sam2_mem.cli.arguments import command_parser, exit_status, user_path
from sam2_mem.cli.launcher import add_launcher_arguments
from sam2_mem.evaluation.datasets import PROTOCOLS, Selection, open_dataset
from sam2_mem.evaluation.results import Report
from sam2_mem.evaluation.scoring import evaluate
from sam2_mem.files import sha256_of
from sam2_mem.published import PublishedModel, Score, model_of_file
from sam2_mem.tracking.run_manifest import git_commit, versions, write_json

RESULT = "verify.json"
UNUSABLE = 2
"""Exit status of a command whose arguments cannot be used."""
MAIN_FIGURE = {"youtubevos": "G"}
"""What is published of a data set, where that is not J&F."""


class Checkpoint(NamedTuple):
    """A file of weights: its path and SHA-256, the config for it, the family of its network, what was published of it."""

    path: Path
    sha256: str
    config: str
    family: str
    published: PublishedModel | None


def recognised(path: Path, config: str | None = None) -> Checkpoint:
    """What a file is; ``config`` in place of the one that belongs to it.

    Raises:
        ValueError: it is of a network that is not known, and no config was given.
    """
    network, digest = network_of(read_state_dict(path)), sha256_of(path)
    published = model_of_file(path, digest)
    chosen = config or (published and published.config) or (network and network.config)
    if not chosen:
        raise ValueError(f"expected weights of a published network in '{path}', got others; give --config")
    return Checkpoint(path, digest, chosen, "unknown" if network is None else network.family, published)


def main(argv: Sequence[str] | None = None) -> int:
    """0: scored; 1: a video failed or has no score; 2: the arguments cannot be used."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    parser = command_parser(__doc__ or "")
    parser.add_argument("checkpoint", type=user_path, help="weights, .pt or .safetensors")
    parser.add_argument("--data", required=True, metavar="NAME:ROOT", help=f"one of {', '.join(sorted(PROTOCOLS))}")
    parser.add_argument("--split", help="of the data set (default: val or valid)")
    parser.add_argument("--config", help="in place of the one that belongs to the file")
    parser.add_argument("--out", type=user_path, help="masks and verify.json (default: verify/<checkpoint>-<data set>)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: the best there is)")
    parser.add_argument("--num_shards", type=int, default=1, help="tasks of --launcher (default: 1)")
    add_launcher_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config")
    args = parser.parse_intermixed_args(argv)
    return exit_status(lambda: verify(args))


def verify(args: argparse.Namespace) -> int:
    name, root = _data_set(args.data)
    checkpoint = recognised(local_path(args.checkpoint), args.config)
    out = args.out or Path("verify") / f"{checkpoint.path.stem}-{name}"
    print(f"{checkpoint.path}: {checkpoint.family}, config {checkpoint.config}")
    status = vos.main(_segment_arguments(args, checkpoint, name, root, out))
    if status == UNUSABLE:
        return status
    report = evaluate_masks(name, Path(root).expanduser(), out, args.split)
    result = compared(checkpoint, name, args.split, report)
    print(_table(result))
    write_json(
        out / RESULT, {**result, "overrides": args.overrides, "versions": versions(), "git_commit": git_commit()}
    )
    print(f"wrote {out / RESULT}")
    return 1 if status or report.failures else 0


def _data_set(text: str) -> tuple[str, str]:
    """Name and root."""
    name, colon, root = text.partition(":")
    if not colon or name not in PROTOCOLS:
        raise ValueError(f"expected --data NAME:ROOT with a name out of {', '.join(sorted(PROTOCOLS))}, got {text!r}")
    return name, root


def _segment_arguments(args: argparse.Namespace, checkpoint: Checkpoint, name: str, root: str, out: Path) -> list[str]:
    split = [] if args.split is None else ["--split", args.split]
    network = ["--sam2_cfg", checkpoint.config, "--sam2_checkpoint", str(checkpoint.path), "--device", args.device]
    tasks = [] if args.launcher is None else ["--launcher", args.launcher, "--num_shards", str(args.num_shards)]
    parameters = ["--launcher_set", *args.launcher_set] if args.launcher_set else []
    data = ["--dataset", name, "--root", root, *split, "--output", str(out), "--resume", "--no-zip"]
    return [*tasks, *parameters, *data, *network, *args.overrides]


def evaluate_masks(name: str, root: Path, masks: Path, split: str | None) -> Report:
    dataset = open_dataset(name, root, masks, Selection(split=split))
    return evaluate(dataset.protocol, dataset.videos, processes=os.cpu_count() or 1)


def compared(checkpoint: Checkpoint, name: str, split: str | None, report: Report) -> dict[str, Any]:
    """Ours beside every published number of the same data set and split."""
    ours = 100 * report.figure(MAIN_FIGURE.get(name, "J&F"))
    scores = () if checkpoint.published is None else checkpoint.published.scores
    return {
        "sam2_mem": __version__,
        "checkpoint": {
            "file": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "bytes": checkpoint.path.stat().st_size,
        },
        "network": checkpoint.family,
        "config": checkpoint.config,
        "published_as": None if checkpoint.published is None else checkpoint.published.name,
        "data": name,
        "split": split,
        "videos": report.num_videos,
        "failed": [failure.video for failure in report.failures],
        "figures": {figure.name: 100 * figure.value for figure in report.summary},
        "ours": ours,
        "published": [
            {"data": s.data, "value": s.value, "difference": ours - s.value, "source": s.source}
            for s in scores
            if _is_of(s, name, split)
        ],
    }


def _is_of(score: Score, name: str, split: str | None) -> bool:
    data, _, part = score.data.partition(":")
    return data == name and (split is None or part == split)


def _table(result: dict[str, Any]) -> str:
    lines = [f"{result['data']}, {result['videos']} videos: ours {result['ours']:.2f}"]
    lines += [
        f"  published {row['value']:5.1f} on {row['data']:16s} difference {row['difference']:+6.2f}  ({row['source']})"
        for row in result["published"]
    ]
    if not result["published"]:
        lines.append(f"  no number of this checkpoint on {result['data']} is among those that are known")
    if result["failed"]:
        lines.append(f"  INCOMPLETE: {len(result['failed'])} videos have no score")
    return "\n".join(lines)
