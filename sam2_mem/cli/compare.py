"""The command ``tools/compare_policies.py``: policies from their short descriptions, shards, the report."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from sam2_mem import __version__
from sam2_mem._moved import renamed
from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.checkpoint import local_path
from sam2_mem.claims import ClaimFolder
from sam2_mem.cli.arguments import (
    add_machine_arguments,
    command_parser,
    exit_status,
    set_threads,
    user_path,
)
from sam2_mem.cli.launcher import Cluster, add_launcher_arguments, launch
from sam2_mem.cli.progress import progress
from sam2_mem.config import checkpoint_dir, compose_video, policy_names
from sam2_mem.evaluation.comparison.eviction import with_best_eviction
from sam2_mem.evaluation.comparison.jobs import Job, Plan, PolicyEntry, Result, ResultFolder
from sam2_mem.evaluation.comparison.oracle import with_truth
from sam2_mem.evaluation.comparison.report import write_report
from sam2_mem.evaluation.comparison.runner import run_plan
from sam2_mem.evaluation.comparison.videos import ComparisonVideo, comparison_videos
from sam2_mem.files import sha256_of
from sam2_mem.tracking.run_manifest import Json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import precision
from sam2_mem.tracking.vos_run import Shard

logger = logging.getLogger(__name__)

USAGE = """Put memory policies side by side on videos with ground truth: quality, speed and bytes in one report.

    sam2-mem compare --out runs/dev
    sam2-mem compare --out runs/long --data synthetic:long-v1 --policies fifo xmem rmem:bank_size=8 \\
        "fifo+refiner=hq" --threads 1
    sam2-mem compare --out runs/davis --data davis2016:/data/DAVIS --config sam2.1_hiera_t \\
        --checkpoint checkpoints/sam2.1_hiera_tiny.pt --device cuda
    sam2-mem compare --out runs/long --data synthetic:long-v1 --num_shards 8 --launcher slurm

A run that was cut off goes on when it is started again; what is done is not done twice. The report is
<out>/report/index.html, report.md and summary.csv. docs/evaluation.md says what is measured.
"""
DATA = ("synthetic:dev-v1",)
ORACLES: dict[str, Callable[[SAM2VideoPredictor], SAM2VideoPredictor]] = {
    "truth": with_truth,
    "eviction": with_best_eviction,
}
"""What a policy's description may end with, as fifo+oracle=truth."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; plain values, so that it travels to other machines.

    Attributes:
        out: the run's folder.
        policies: as ``overrides_of`` takes them; every policy if none is named.
        data: as ``comparison_videos`` takes them.
        videos: only these, by name.
        seeds: of whatever is random.
        baseline: the policy that others are compared with (default: the first one).
        config: as for ``build_sam2_video_predictor``.
        checkpoint: the same; "random" weights are allowed.
        overrides: of the config.
        device: where to run; "auto" is the GPU if there is one.
        threads: of the CPU, 0 leaves it to torch.
        apply_postprocessing: as in ``tools/vos_inference.py``.
        max_frames: of each video.
        masks: keep them.
        shard: which part of the videos.
        share: with other runs that do the same.
    """

    out: Path
    policies: tuple[str, ...] = ()
    data: tuple[str, ...] = DATA
    videos: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    baseline: str | None = None
    config: str = "nano_v2"
    checkpoint: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 0
    apply_postprocessing: bool = False
    max_frames: int | None = None
    masks: bool = False
    shard: Shard = field(default_factory=Shard)
    share: bool = False


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    parser.add_argument("--out", type=user_path, required=True, help="folder of the run")
    parser.add_argument(
        "--policies",
        nargs="+",
        default=(),
        metavar="POLICY",
        help="names, with changes: rmem:bank_size=8,gap=3 or fifo+refiner=hq+model.image_size=256; +oracle=truth at the end: with "
        "the truth in memory, +oracle=eviction: the frames that leave are looked up with the truth (default: every policy)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=DATA,
        metavar="DATA",
        help="synthetic:long-v1, :long-v2, :dev-v1 or :seeds-v1, or NAME:ROOT of a data set with ground truth, NAME as for "
        "sam2-mem evaluate; @3 at the end: each video forwards, backwards, forwards (default: synthetic:dev-v1)",
    )
    parser.add_argument("--videos", nargs="+", default=(), help="only these, by name")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,), help="of whatever is random (default: 0)")
    parser.add_argument("--baseline", help="the policy that others are compared with (default: the first)")
    parser.add_argument("--config", default="nano_v2", help="a model config (default: nano_v2)")
    parser.add_argument("--checkpoint", help="weights, or random (default: those of the config)")
    parser.add_argument(
        "--set", nargs="+", default=(), metavar="KEY=VALUE", help="changes to the config of all policies"
    )
    add_machine_arguments(parser, device="auto", threads="CPU threads; 0 leaves it to torch, 1 gives steady times")
    parser.add_argument("--apply_postprocessing", action="store_true", help="as in sam2-mem segment")
    parser.add_argument("--max_frames", type=int, help="of each video")
    parser.add_argument("--masks", action="store_true", help="keep the masks, as PNG")
    parser.add_argument("--num_shards", type=int, default=1, help="split the videos between this many processes")
    parser.add_argument("--shard_id", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument(
        "--share",
        action="store_true",
        help="runs with the same arguments, on any machines, share the work: each takes the longest video that is left, and those "
        "of runs that died",
    )
    add_launcher_arguments(parser)
    parser.add_argument("--report", action="store_true", help="only make the report of what is there")
    return parser.parse_args(argv)


def make_options(args: argparse.Namespace) -> Options:
    return Options(
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
        share=args.share,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """0: all done; 1: a run failed; 2: the arguments cannot be used."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    args = parse_arguments(argv)
    if args.report:
        return exit_status(lambda: report_only(args.out))
    if args.launcher:
        return exit_status(lambda: launch_tasks(make_options(args), Cluster.of(args)))
    return exit_status(lambda: run_shard(make_options(args)))


# -- policies -------------------------------------------------------------------------------------------------------


def overrides_of(policy: str) -> list[str]:
    """A policy's short description as overrides of the config.

    ``rmem:bank_size=8,gap=3`` sets fields of the policy; ``fifo+refiner=hq+model.image_size=256`` changes other parts.
    """
    first, *overrides = re.split(r"(?<!\+)\+(?=[A-Za-z_~]|\+\+)", policy)
    name, _, fields = first.partition(":")
    stray = [part for part in (*_split(fields), *overrides) if "=" not in part and not part.startswith("~")]
    if not name or stray:
        raise ValueError(f"expected a policy as name, name:field=value,field=value or name+key=value, got {policy!r}")
    return [f"memory_policy={name}", *(f"memory_policy.{part}" for part in _split(fields)), *overrides]


def _oracle(name: str) -> Callable[[SAM2VideoPredictor], SAM2VideoPredictor]:
    """Makes a predictor one that looks up the truth; "" leaves it as it is."""
    if name and name not in ORACLES:
        raise ValueError(f"expected oracle={' or oracle='.join(ORACLES)} at the end of a policy, got oracle={name}")
    return ORACLES.get(name, lambda predictor: predictor)


def _split(fields: str) -> list[str]:
    """At commas that are not inside brackets."""
    return [part for part in re.split(r",(?![^\[{(]*[\]})])", fields) if part]


class PredictorBuilder:
    """Builds predictors; those of equal networks share one."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._model: tuple[str, Any] | None = None

    def entry(self, policy: str) -> PolicyEntry:
        """With the settings of its config; those of one that does not compose are its error. ``fifo+oracle=truth``: fifo with
        the truth in memory."""
        described, _, oracle = policy.partition("+oracle=")
        try:
            config = self._config(described)
            with_oracle = _oracle(oracle)
        except ValueError as error:
            reason = error

            def refuse() -> SAM2VideoPredictor:
                raise reason

            return PolicyEntry(name=policy, settings={"error": str(error)}, build=refuse)
        settings: Any = OmegaConf.to_container(config, resolve=True)
        settings.pop("checkpoint", None)
        settings |= {"oracle": oracle} if oracle else {}
        return PolicyEntry(name=policy, settings=settings, build=lambda: with_oracle(self._build(config)))

    def common(self) -> Json:
        """What all policies share."""
        options = self._options
        path = self._weights()
        return {
            "config": options.config,
            "overrides": list(options.overrides),
            "weights": path if path == "random" else f"{Path(path).name}, SHA-256 {sha256_of(Path(path))}",
            "apply_postprocessing": options.apply_postprocessing,
            "precision": precision(torch.device(_device(options.device))),
            "sam2_mem": __version__,
        }

    def _config(self, policy: str) -> DictConfig:
        options = self._options
        overrides = [*options.overrides, *overrides_of(policy)]
        return compose_video(options.config, overrides, apply_postprocessing=options.apply_postprocessing)

    def _weights(self) -> str:
        """The file of the weights, or "random"."""
        checkpoint = self._options.checkpoint
        if checkpoint is not None and checkpoint != "random":
            return str(local_path(checkpoint))
        name = compose_video(self._options.config).get("checkpoint") if checkpoint is None else checkpoint
        if name in (None, "random"):
            return "random"
        return str(checkpoint_dir() / name if Path(name).name == name else Path(name).expanduser())

    def _build(self, config: DictConfig) -> SAM2VideoPredictor:
        torch.manual_seed(0)
        predictor = build_sam2_video_predictor(
            config, self._weights(), device=_device(self._options.device), apply_postprocessing=False
        )
        network = f"{OmegaConf.to_yaml(config.model, resolve=True)}{config.get('distiller_checkpoint')}"
        if self._model is None or self._model[0] != network:
            self._model = network, predictor.model
        predictor.model = self._model[1]
        return predictor


def _device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


# -- the run --------------------------------------------------------------------------------------------------------


def make_plan(options: Options) -> Plan:
    builder = PredictorBuilder(options)
    policies = options.policies or tuple(policy_names())
    videos: list[ComparisonVideo] = [
        video for spec in options.data for video in comparison_videos(spec, options.videos)
    ]
    missing = set(options.videos) - {video.name for video in videos}
    if missing:
        raise ValueError(f"expected names of videos of {', '.join(options.data)}, got {', '.join(sorted(missing))}")
    return Plan(
        entries=tuple(builder.entry(policy) for policy in policies),
        videos=tuple(videos),
        seeds=options.seeds,
        baseline=options.baseline or policies[0],
        common=builder.common(),
        max_frames=options.max_frames,
        masks=options.masks,
    )


def run_shard(options: Options) -> int:
    """Do the jobs of one shard, and write the report if none is missing any more. Status 1 where a job failed."""
    set_threads(options.threads)
    plan, folder = make_plan(options), ResultFolder(options.out)
    shard = slice(options.shard.index, None, options.shard.of)
    results = run_plan(plan, folder, shard=shard, share=options.share, progress=_bar)
    if all(folder.path(job).is_file() for job in plan.jobs()):
        _write_report_alone(folder)
    return _report_status(results, options.out)


def _write_report_alone(folder: ResultFolder) -> None:
    """Runs that share the work come to its end together."""
    claim = ClaimFolder(folder.root / "claims").take("report")
    if claim is not None:
        with claim:
            write_report(folder)


def _bar(jobs: Sequence[Job]) -> Iterable[Job]:
    return progress(jobs, "comparison", total=len(jobs), unit="run")


def _report_status(results: Sequence[Result], out: Path) -> int:
    failed = [result for result in results if result.error is not None]
    for result in failed:
        logger.error("failed: %s on %s: %s", result.policy, result.video, result.error)
    page = out / "report" / "index.html"
    report = f"the report is {page}" if page.is_file() else "the report waits for the other shards"
    print(f"{len(results) - len(failed)} of {len(results)} runs are complete in {out}; {report}")
    return 1 if failed else 0


def launch_tasks(options: Options, cluster: Cluster) -> int:
    """Do the comparison with tasks that share the videos, wait for them and write the report."""
    options = replace(options, out=options.out.resolve(), share=True, shard=Shard())
    make_plan(options)  # what is wrong with it is said before anything starts
    failures = launch(run_shard, options, cluster, folder=options.out / "submitit", name="sam2-mem-compare")
    for line in failures:
        logger.warning("%s", line)
    if not (options.out / "run.json").is_file():
        raise ValueError(f"no task has begun: {failures[0]}")
    return report_only(options.out)


def report_only(out: Path) -> int:
    """Write the report of what there is. Status 1 where runs are missing or have failed."""
    folder = ResultFolder(out)
    if not (out / "run.json").is_file():
        raise ValueError(f"expected the folder of a comparison with a run.json, got '{out}'")
    complete = write_report(folder)
    print(f"the report is {out / 'report' / 'index.html'}{'' if complete else '; it is not complete'}")
    return 0 if complete else 1


__getattr__ = renamed(__name__)
