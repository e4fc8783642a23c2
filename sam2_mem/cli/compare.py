"""What ``tools/compare_policies.py`` does: policies from their short descriptions, shards, the report."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from sam2_mem import __version__
from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.checkpoint import local_path, sha256_of
from sam2_mem.config import checkpoint_dir, compose_video, policy_names
from sam2_mem.evaluation.comparison.jobs import Contestant, Job, Plan, Result, ResultFolder
from sam2_mem.evaluation.comparison.report import write_report
from sam2_mem.evaluation.comparison.run import run_plan
from sam2_mem.evaluation.comparison.videos import BenchVideo, bench_videos
from sam2_mem.tracking.run_manifest import Json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import precision
from sam2_mem.tracking.vos_run import Shard

logger = logging.getLogger(__name__)

DATA = ("synthetic:dev-v1",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; plain values, so that it travels to other machines.

    Attributes:
        out: the run's folder. policies: as :func:`overrides_of` takes them; every policy if none is named.
        data: as :func:`~sam2_mem.evaluation.comparison.videos.bench_videos` takes them. videos: only these, by name.
        seeds: of whatever is random. baseline: the policy that others are compared with (default: the first one).
        config, checkpoint, overrides: as for ``build_sam2_video_predictor``; "random" weights are allowed.
        threads: of the CPU, 0 leaves it to torch. max_frames: of each video. masks: keep them.
    """

    out: Path
    policies: tuple[str, ...] = ()
    data: tuple[str, ...] = DATA
    videos: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    baseline: str | None = None
    config: str = "nano"
    checkpoint: str | None = None
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    threads: int = 0
    apply_postprocessing: bool = False
    max_frames: int | None = None
    masks: bool = False
    shard: Shard = Shard()


# -- policies -------------------------------------------------------------------------------------------------------


def overrides_of(policy: str) -> list[str]:
    """A policy's short description as overrides of the config.

    ``rmem:bank_size=8,gap=3`` sets fields of the policy; ``fifo+refiner=hq+model.image_size=256`` changes other parts.
    """
    first, *others = re.split(r"(?<!\+)\+(?=[A-Za-z_~]|\+\+)", policy)
    name, _, fields = first.partition(":")
    stray = [part for part in (*_split(fields), *others) if "=" not in part and not part.startswith("~")]
    if not name or stray:
        raise ValueError(f"expected a policy as name, name:field=value,field=value or name+key=value, got {policy!r}")
    return [f"memory_policy={name}", *(f"memory_policy.{part}" for part in _split(fields)), *others]


def _split(fields: str) -> list[str]:
    """At commas that are not inside brackets."""
    return [part for part in re.split(r",(?![^\[{(]*[\]})])", fields) if part]


class Workshop:
    """Builds predictors; those of equal networks share one."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._model: tuple[str, Any] | None = None

    def contestant(self, policy: str) -> Contestant:
        """With the settings of its config; those of one that does not compose are its error."""
        try:
            config = self._config(policy)
        except ValueError as error:
            reason = error

            def refuse() -> SAM2VideoPredictor:
                raise reason

            return Contestant(name=policy, settings={"error": str(error)}, build=refuse)
        settings = OmegaConf.to_container(config, resolve=True)
        settings.pop("checkpoint", None)
        return Contestant(name=policy, settings=settings, build=lambda: self._build(config))

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
        given = self._options.checkpoint
        if given is not None and given != "random":
            return str(local_path(given))
        named = compose_video(self._options.config).get("checkpoint") if given is None else given
        if named in (None, "random"):
            return "random"
        ours = checkpoint_dir() / named
        return str(ours if Path(named).name == named else Path(named).expanduser())

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


def _device(wanted: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


# -- the run --------------------------------------------------------------------------------------------------------


def make_plan(options: Options) -> Plan:
    workshop = Workshop(options)
    policies = options.policies or tuple(policy_names())
    videos: list[BenchVideo] = [video for spec in options.data for video in bench_videos(spec, options.videos)]
    missing = set(options.videos) - {video.name for video in videos}
    if missing:
        raise ValueError(f"expected names of videos of {', '.join(options.data)}, got {', '.join(sorted(missing))}")
    return Plan(
        contestants=tuple(workshop.contestant(policy) for policy in policies),
        videos=tuple(videos),
        seeds=options.seeds,
        baseline=options.baseline or policies[0],
        common=workshop.common(),
        max_frames=options.max_frames,
        masks=options.masks,
    )


def run_shard(options: Options) -> int:
    """Do the jobs of one shard, and write the report if none is missing any more. Status 1 where a job failed."""
    if options.threads:
        torch.set_num_threads(options.threads)
    plan, folder = make_plan(options), ResultFolder(options.out)
    shard = slice(options.shard.index, None, options.shard.of)
    results = run_plan(plan, folder, shard=shard, progress=_bar)
    if all(folder.path(job).is_file() for job in plan.jobs()):
        write_report(folder)
    return _tell(results, options.out)


def _bar(jobs: Sequence[Job]) -> Iterable[Job]:
    """On a terminal only."""
    bar = tqdm(jobs, unit="run", disable=None, leave=False, dynamic_ncols=True)
    for job in bar:
        bar.set_description(f"{job.video} {job.policy}")
        yield job


def _tell(results: Sequence[Result], out: Path) -> int:
    failed = [result for result in results if result.error is not None]
    for result in failed:
        logger.error("failed: %s on %s: %s", result.policy, result.video, result.error)
    page = out / "report" / "index.html"
    where = f"; the report is {page}" if page.is_file() else "; the report waits for the other shards"
    print(f"{len(results) - len(failed)} of {len(results)} runs are complete in {out}{where}")
    return 1 if failed else 0


def launch(options: Options, *, cluster: str, shards: int, parameters: Sequence[str] = ()) -> int:
    """Do all shards as tasks of a cluster ("slurm", or "local" for processes of this machine) and wait for them.

    Args:
        parameters: ``key=value`` for ``submitit.AutoExecutor.update_parameters``, e.g. ``timeout_min=240``.
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError("expected the package submitit, got none; install sam2_mem[submitit]") from error
    given = dict(part.split("=", 1) for part in parameters)
    executor = submitit.AutoExecutor(folder=options.out.resolve() / "submitit", cluster=cluster)
    executor.update_parameters(name="compare_policies", **{k: int(v) if v.isdecimal() else v for k, v in given.items()})
    tasks = [replace(options, out=options.out.resolve(), shard=Shard(index=i, of=shards)) for i in range(shards)]
    ResultFolder(options.out).claim(make_plan(options))
    jobs = executor.map_array(run_shard, tasks)
    statuses = [job.result() for job in jobs]
    write_report(ResultFolder(options.out))
    return max(statuses)


def report_only(out: Path) -> int:
    """Write the report of what there is."""
    folder = ResultFolder(out)
    if not (out / "run.json").is_file():
        raise ValueError(f"expected the folder of a comparison with a run.json, got '{out}'")
    write_report(folder)
    print(f"the report is {out / 'report' / 'index.html'}")
    return 0
