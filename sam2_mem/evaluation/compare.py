"""Memory policies side by side: policies x videos x seeds, one result for each, in a folder that can be resumed.

A result is a JSON file of one line, written as a whole. Which results there are depends on nothing but the jobs, so a run
that was cut off, or was shared between machines, ends with the same ones, but for what is under ``machine``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sam2_mem.evaluation.datasets import open_dataset
from sam2_mem.evaluation.passes import KeptMasks, PassCost, PredictedVideo, measured_pass, warm_up
from sam2_mem.evaluation.protocols import Protocol, Synthetic
from sam2_mem.evaluation.recipes import REGIONS, Found
from sam2_mem.evaluation.results import ObjectScores, VideoScores
from sam2_mem.evaluation.synthetic import SYNTHETIC_SETS, open_synthetic
from sam2_mem.evaluation.videos import AnnotatedVideo
from sam2_mem.tracking import run_record
from sam2_mem.tracking.run_record import Json, differences, write_json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, PromptPlan, plan_from_folder
from sam2_mem.video import MaskWriter, PaletteWriter, PerObjectWriter, VideoSource, open_video

logger = logging.getLogger(__name__)

DECODED_BYTES = 1_000_000_000
"""Videos up to this size are decoded once for all policies; longer ones are read again by each."""


# -- what is compared -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A policy by the name it has in the report. ``settings``: everything its masks depend on. ``build`` makes its
    predictor; whatever it raises is recorded as the result of each of its jobs."""

    name: str
    settings: Json
    build: Callable[[], SAM2VideoPredictor]


@dataclass(frozen=True, kw_only=True)
class BenchVideo:
    """A video with its truth. ``data``: what its results are summed up with, and by which protocol. ``per_object``: its
    objects may overlap."""

    data: str
    name: str
    open: Callable[[], VideoSource]
    plan: Callable[[VideoSource], PromptPlan]
    truth: AnnotatedVideo
    protocol: Protocol[Any]
    per_object: bool = False


def bench_videos(spec: str, only: Sequence[str] = ()) -> list[BenchVideo]:
    """The videos of ``synthetic:<set>`` or ``<data set>:<root>``; ``only`` some of them, by name."""
    kind, _, where = spec.partition(":")
    if not where:
        raise ValueError(
            f"expected synthetic:<set> with a set of {', '.join(SYNTHETIC_SETS)}, or <data set>:<root>, got {spec!r}"
        )
    made = _synthetic(spec, where) if kind == "synthetic" and where in SYNTHETIC_SETS else _on_disk(spec, kind, where)
    return [video for video in made if not only or video.name in only]


def _synthetic(spec: str, name: str) -> list[BenchVideo]:
    return [
        BenchVideo(
            data=spec,
            name=clip.name,
            open=clip.source,
            plan=lambda source, clip=clip: clip.plan(),
            truth=clip,
            protocol=Synthetic(),
        )
        for clip in open_synthetic(name)
    ]


def _on_disk(spec: str, kind: str, root: str) -> list[BenchVideo]:
    if kind == "synthetic" and not Path(root).is_dir():
        raise ValueError(f"expected a synthetic set of {', '.join(SYNTHETIC_SETS)}, or its exported folder, got {root!r}")
    if kind == REGIONS:
        raise ValueError(f"expected a data set of masks, got {spec!r}; export its regions as masks to compare on them")
    found = Found(kind, Path(root))
    dataset = open_dataset(kind, found.root, found.root)
    rules = found.recipe.rules
    return [
        BenchVideo(
            data=kind,
            name=truth.name,
            open=lambda name=truth.name: open_video(found.frames / name, prefetch=0),
            plan=lambda source, name=truth.name: plan_from_folder(found.masks / name, source, rules),
            truth=truth,
            protocol=dataset.protocol,
            per_object=rules.per_object,
        )
        for truth in dataset.videos
    ]


# -- jobs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Job:
    """One policy on one video with one seed."""

    policy: str
    data: str
    video: str
    seed: int

    @property
    def file_name(self) -> str:
        """Unlike that of any other job."""
        parts = (self.policy, self.data, self.video, str(self.seed))
        readable = "__".join(re.sub(r"[^A-Za-z0-9_.=-]+", "-", part)[:40] for part in parts)
        return f"{readable}__{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job gave: scores of objects, costs, or an error. The fields are those of the JSON line.

    ``objects``: ``object``, ``frames``, ``values`` by the protocol's columns, ``at`` the frame numbers that count and
    ``per_frame`` the numbers on them. ``machine``: what another run, or another machine, would have different.
    """

    policy: str
    data: str
    video: str
    seed: int
    settings: str
    protocol: str = ""
    frames: int = 0
    objects: tuple[Json, ...] = ()
    notes: tuple[str, ...] = ()
    state_bytes: tuple[int, ...] = ()
    tokens_held: tuple[float, ...] = ()
    tokens_read: tuple[float, ...] = ()
    pointers_read: tuple[float, ...] = ()
    error: str | None = None
    machine: Json = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return Job(policy=self.policy, data=self.data, video=self.video, seed=self.seed)

    def line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def read_result(path: Path) -> Result:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Result(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is compared. ``common``: settings that all policies share; ``masks``: write them too."""

    contestants: tuple[Contestant, ...]
    videos: tuple[BenchVideo, ...]
    seeds: tuple[int, ...] = (0,)
    baseline: str
    common: Json = field(default_factory=dict)
    max_frames: int | None = None
    masks: bool = False

    def __post_init__(self) -> None:
        names = [one.name for one in self.contestants]
        if not names or not self.videos or not self.seeds:
            raise ValueError("expected at least one policy, one video and one seed, got none of one of them")
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected every policy and every seed once, got {names} and {list(self.seeds)}")
        if len({(video.data, video.name) for video in self.videos}) < len(self.videos):
            raise ValueError("expected every video once, got one twice; is a data set named twice?")
        if self.baseline not in names:
            raise ValueError(f"expected the baseline among the policies {names}, got {self.baseline!r}")

    def jobs(self) -> Iterator[Job]:
        """Video by video, so that policies meet the same machine; the order of the report."""
        for video in self.videos:
            for seed in self.seeds:
                for one in self.contestants:
                    yield Job(policy=one.name, data=video.data, video=video.name, seed=seed)

    def described(self) -> Json:
        """What ``run.json`` says; equal for all shards."""
        return {
            "policies": {one.name: one.settings for one in self.contestants},
            "videos": [[video.data, video.name] for video in self.videos],
            "protocols": {video.data: video.protocol.name for video in self.videos},
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            "max_frames": self.max_frames,
            "common": dict(self.common),
            "versions": run_record.versions(),
        }

    def settings_of(self, contestant: Contestant, video: BenchVideo) -> str:
        """A digest of everything that a result depends on beside its job's name."""
        parts = [dict(contestant.settings), dict(self.common), video.protocol.name, self.max_frames]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


# -- the folder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResultFolder:
    """``run.json``, ``jobs/<job>.json``, ``masks/`` and, once a report has been made, ``results.jsonl`` and ``report/``."""

    root: Path

    def claim(self, plan: Plan) -> None:
        """Make the folder, or take it over; ValueError if the network is another one there."""
        path = self.root / "run.json"
        content = json.loads(json.dumps(plan.described()))
        if path.is_file():
            theirs = json.loads(path.read_text(encoding="utf-8"))
            found = differences(theirs["common"], content["common"])
            if found:
                raise ValueError(
                    f"expected '{self.root}' to be empty or to hold results of the same network, got others:\n  "
                    + "\n  ".join(found)
                    + "\nchoose another output folder"
                )
        write_json(path, content)

    def path(self, job: Job) -> Path:
        return self.root / "jobs" / f"{job.file_name}.json"

    def result(self, job: Job) -> Result | None:
        path = self.path(job)
        return read_result(path) if path.is_file() else None

    def put(self, result: Result) -> None:
        write_line(self.path(result.job), result.line())

    def mask_folder(self, job: Job) -> Path:
        name = Job(policy=job.policy, data=job.data, video="", seed=job.seed).file_name
        return self.root / "masks" / name


def write_line(path: Path, text: str) -> None:
    """Replace a file as a whole; several processes may do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


# -- running --------------------------------------------------------------------------------------------------------


def run_plan(
    plan: Plan,
    folder: ResultFolder,
    *,
    shard: slice = slice(None),
    progress: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> list[Result]:
    """Do the jobs of some of the videos that have not been done with these settings; the results of all of them.

    A job that fails is recorded with its error, and tried again by the next run; the others go on.
    """
    folder.claim(plan)
    runner = _Runner(plan, folder)
    mine = {(video.data, video.name) for video in plan.videos[shard]}
    jobs = [job for job in plan.jobs() if (job.data, job.video) in mine]
    with runner:
        return [runner.result(job) for job in progress(jobs)]


class _Scored(NamedTuple):
    """Scores, and the number of each frame by its name."""

    scores: VideoScores
    number: Mapping[str, int]


class _Runner:
    """Does jobs; keeps one predictor for each policy, and the decoded video that is being worked on."""

    def __init__(self, plan: Plan, folder: ResultFolder) -> None:
        self._plan, self._folder = plan, folder
        self._contestants = {one.name: one for one in plan.contestants}
        self._videos = {(video.data, video.name): video for video in plan.videos}
        self._built: dict[str, SAM2VideoPredictor | Exception] = {}
        self._opened: tuple[BenchVideo, VideoSource] | None = None
        self._stack = ExitStack()
        self._commit = run_record.git_commit()

    def __enter__(self) -> _Runner:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def result(self, job: Job) -> Result:
        contestant, video = self._contestants[job.policy], self._videos[job.data, job.video]
        settings = self._plan.settings_of(contestant, video)
        before = self._folder.result(job)
        if before is not None and before.settings == settings and before.error is None and self._complete(job, before):
            return before
        result = self._tried(job, contestant, video, settings)
        self._folder.put(result)
        return result

    def _complete(self, job: Job, result: Result) -> bool:
        if not self._plan.masks:
            return True
        folder = self._folder.mask_folder(job) / job.video
        return sum(1 for _ in folder.rglob("*.png")) >= result.frames

    def _tried(self, job: Job, contestant: Contestant, video: BenchVideo, settings: str) -> Result:
        began = time.time()
        try:
            predictor = self._predictor(contestant, video)
            cost, scored = self._track(job, predictor, video)
        except Exception as error:
            expected = isinstance(error, (ValueError, OSError))
            logger.error("%s on %s %s failed: %s", job.policy, job.data, job.video, error, exc_info=not expected)
            told = f"{type(error).__name__}: {error}"
            return Result(**asdict(job), settings=settings, protocol=video.protocol.name, error=told)
        return _result(job, settings, video, cost, scored, _machine(predictor.device, cost, began, self._commit))

    def _predictor(self, contestant: Contestant, video: BenchVideo) -> SAM2VideoPredictor:
        built = self._built.get(contestant.name)
        if isinstance(built, Exception):
            raise built
        if built is not None:
            return built
        try:
            made = contestant.build()
        except Exception as error:
            self._built[contestant.name] = error
            raise
        source = self._source(video)
        warm_up(made, source, video.plan(source))
        self._built[contestant.name] = made
        return made

    def _source(self, video: BenchVideo) -> VideoSource:
        if self._opened is None or self._opened[0] is not video:
            self._stack.close()
            self._opened = None
            source = self._stack.enter_context(video.open())
            self._opened = video, _decoded(source, self._plan.max_frames)
        return self._opened[1]

    def _track(self, job: Job, predictor: SAM2VideoPredictor, video: BenchVideo) -> tuple[PassCost, _Scored]:
        source = self._source(video)
        plan, kept = video.plan(source), KeptMasks()
        torch.manual_seed(job.seed)
        with ExitStack() as stack:
            writer = self._writer(job, video, plan, stack)

            def keep(shown: FrameMasks) -> None:
                kept.keep(shown)
                if writer is not None:
                    writer.write(shown.frame, shown.masks)

            predictor.settings = replace(predictor.settings, non_overlap_masks=not video.per_object)
            cost = measured_pass(predictor, source, plan, keep, max_frames=self._plan.max_frames)
        scores = video.protocol.score(PredictedVideo(video.truth, kept))
        return cost, _Scored(scores, {name: index for index, name in enumerate(kept.names)})

    def _writer(self, job: Job, video: BenchVideo, plan: PromptPlan, stack: ExitStack) -> MaskWriter | None:
        if not self._plan.masks:
            return None
        folder = self._folder.mask_folder(job)
        made = PerObjectWriter(folder, video.name) if video.per_object else PaletteWriter(folder, video.name, plan.palette)
        return stack.enter_context(made)


class _Decoded(VideoSource):
    """Frames held in memory, under the names they have."""

    def __init__(self, frames: Sequence[Any]) -> None:
        super().__init__(prefetch=0, cache=0)
        self._frames = frames
        self._length = len(frames)

    @property
    def seekable(self) -> bool:
        return True

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Iterator[Any]:
        return (self._frames[i] for i in range(self._length)[slice(start, stop, step)])

    def name(self, index: int) -> str:
        return self._frames[index].name

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self._frames):
            raise self._out_of_range(index)
        return self._frames[index]

    def _get_size(self) -> tuple[int, int]:
        return self._frames[0].image.shape[:2]


def _decoded(source: VideoSource, max_frames: int | None) -> VideoSource:
    """A video in memory, if it is short enough and all of it is wanted."""
    if max_frames is not None or source.num_frames is None:
        return source
    if source.num_frames * source.height * source.width * 3 > DECODED_BYTES:
        return source
    return _Decoded(list(source))


# -- results --------------------------------------------------------------------------------------------------------


def _result(
    job: Job, settings: str, video: BenchVideo, cost: PassCost, scored: _Scored, machine: Json
) -> Result:
    return Result(
        **asdict(job),
        settings=settings,
        protocol=video.protocol.name,
        frames=cost.frames,
        objects=tuple(_object(video.protocol, one, scored.number) for one in scored.scores.objects),
        notes=scored.scores.notes,
        state_bytes=cost.state_bytes,
        tokens_held=cost.tokens_held,
        tokens_read=cost.tokens_read,
        pointers_read=cost.pointers_read,
        machine=machine,
    )


def _object(protocol: Protocol[Any], scores: ObjectScores, number: Mapping[str, int]) -> Json:
    return {
        "object": scores.obj_id,
        "frames": len(scores.frames),
        "values": {name: _number(value) for name, value in zip(protocol.columns, scores.values)},
        "at": [number[frame] for frame in scores.frames],
        "per_frame": {
            name: [round(float(value), 6) for value in scores.per_frame[:, column]]
            for column, name in enumerate(protocol.frame_columns)
        },
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _machine(device: torch.device, cost: PassCost, began: float, commit: str | None) -> Json:
    return {
        "began": round(began, 3),
        "seconds": cost.seconds,
        "frames_per_second": cost.frames / cost.seconds if cost.seconds else None,
        "peak_bytes": cost.peak_bytes,
        "growth_bytes": cost.growth_bytes,
        "device": run_record.device_name(device),
        "git_commit": commit,
    }
