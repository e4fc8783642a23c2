"""Memory policies side by side: policies x videos x seeds, one result for each, in a folder that can be resumed.

A result is a JSON file of one line, written as a whole. Which results there are depends on nothing but the jobs, so a
run that was cut off, or was shared between machines, ends with the same ones, but for what is under ``machine``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from sam2_mem.claims import ClaimFolder, ClaimLostError, shared
from sam2_mem.evaluation.benchmark.measured_pass import PassCost, measured_pass, warm_up
from sam2_mem.evaluation.comparison.jobs import Job, Plan, PolicyEntry, Result, ResultFolder
from sam2_mem.evaluation.comparison.oracle import OraclePredictor
from sam2_mem.evaluation.comparison.thumbnails import draw_thumbnail, masks_of, worst_frame
from sam2_mem.evaluation.comparison.videos import ComparisonVideo, decoded
from sam2_mem.evaluation.packed_masks import PackedMasks, PredictedVideo
from sam2_mem.evaluation.protocols import Protocol
from sam2_mem.evaluation.results import ObjectScores, VideoScores
from sam2_mem.files import atomic_path
from sam2_mem.tracking import run_manifest
from sam2_mem.tracking.run_manifest import Json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, PromptPlan
from sam2_mem.video import MaskWriter, PaletteWriter, PerObjectWriter, VideoSource

logger = logging.getLogger(__name__)


def run_plan(
    plan: Plan,
    folder: ResultFolder,
    *,
    shard: slice = slice(None),
    share: bool = False,
    progress: Callable[[Sequence[Job]], Iterable[Job]] = iter,
) -> list[Result]:
    """Do the jobs of some of the videos that have not been done with these settings; the results of all of them.

    A job that fails is recorded with its error, and tried again by the next run; the others go on.

    Args:
        plan: what is compared.
        folder: of the results.
        shard: of the videos.
        share: other runs do the same videos at the same time; each claims the longest that is left, and those of runs that died.
        progress: wraps the jobs.
    """
    folder.claim(plan)
    videos = {(video.data, video.name) for video in plan.videos[shard]}
    jobs = [job for job in plan.jobs() if (job.data, job.video) in videos]
    with _JobRunner(plan, folder) as runner:
        if share:
            _share_videos(plan, folder, runner, progress)
        return [runner.result(job, again=not share) for job in (jobs if share else progress(jobs))]


def _share_videos(
    plan: Plan, folder: ResultFolder, runner: _JobRunner, progress: Callable[[Sequence[Job]], Iterable[Job]]
) -> None:
    """Claim videos until all their jobs are done, or have failed since this run began."""
    claims, jobs_of = ClaimFolder(folder.root / "claims"), dict[str, list[Job]]()
    began = claims.now()
    lengths = {(video.data, video.name): len(video.truth.frames) for video in plan.videos}
    for job in sorted(plan.jobs(), key=lambda job: -lengths[job.data, job.video]):
        jobs_of.setdefault(f"{job.data} {job.video}", []).append(job)

    def is_settled(name: str) -> bool:
        return all(runner.is_settled(job, began) for job in jobs_of[name])

    with closing(shared(jobs_of, claims, is_settled)) as turns:
        for claim in turns:
            with suppress(ClaimLostError):
                for job in progress(jobs_of[claim.name]):
                    claim.confirm()
                    runner.result(job)


class _JobRunner:
    """Does jobs; keeps one predictor for each policy, and the decoded video that is being worked on."""

    def __init__(self, plan: Plan, folder: ResultFolder) -> None:
        self._plan, self._folder = plan, folder
        self._entries = {entry.name: entry for entry in plan.entries}
        self._videos = {(video.data, video.name): video for video in plan.videos}
        self._built: dict[str, SAM2VideoPredictor | Exception] = {}
        self._opened: tuple[ComparisonVideo, VideoSource] | None = None
        self._stack = ExitStack()
        self._commit = run_manifest.git_commit()

    def __enter__(self) -> _JobRunner:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def is_settled(self, job: Job, since: float) -> bool:
        """Whether there is a result, or a failure later than ``since`` (s, as the file system dates files)."""
        earlier = self._earlier(job)
        if earlier is None or self._complete(job, earlier):
            return earlier is not None
        return earlier.error is not None and self._folder.path(job).stat().st_mtime > since

    def _earlier(self, job: Job) -> Result | None:
        """The result of a job with these settings."""
        entry, video = self._entries[job.policy], self._videos[job.data, job.video]
        earlier = self._folder.result(job)
        return earlier if earlier is not None and earlier.settings == self._plan.settings_of(entry, video) else None

    def result(self, job: Job, *, again: bool = True) -> Result:
        """Of an earlier run, else of this one; ``again``: what has failed is done once more."""
        entry, video = self._entries[job.policy], self._videos[job.data, job.video]
        settings = self._plan.settings_of(entry, video)
        earlier = self._earlier(job)
        if earlier is not None and (self._complete(job, earlier) or not (again or earlier.error is None)):
            return earlier
        result = self._run(job, entry, video, settings)
        self._folder.put(result)
        return result

    def _complete(self, job: Job, result: Result) -> bool:
        if result.error is not None or not self._plan.masks:
            return result.error is None
        folder = self._folder.mask_folder(job) / job.video
        return sum(1 for _ in folder.rglob("*.png")) >= result.frames

    def _run(self, job: Job, entry: PolicyEntry, video: ComparisonVideo, settings: str) -> Result:
        began, protocol = time.time(), video.protocol
        result = Result(**asdict(job), settings=settings, protocol=protocol.name)
        try:
            predictor = self._predictor(entry, video)
            _feed_truth(predictor, video)
            cost, packed = self._track(job, predictor, video)
            predicted = PredictedVideo(video.truth, packed)
            scores = protocol.score(predicted)
            worst = self._draw_worst(job, video, predicted, scores)
        except Exception as error:
            expected = isinstance(error, (ValueError, OSError))
            logger.error("%s on %s %s failed: %s", job.policy, job.data, job.video, error, exc_info=not expected)
            return replace(result, error=f"{type(error).__name__}: {error}")
        number = {name: index for index, name in enumerate(packed.names)}
        return replace(
            result,
            frames=cost.frames,
            objects=tuple(_object_entry(protocol, object_scores, number) for object_scores in scores.objects),
            notes=scores.notes,
            state_bytes=cost.state_bytes,
            tokens_held=cost.tokens_held,
            tokens_read=cost.tokens_read,
            pointers_read=cost.pointers_read,
            worst=worst,
            machine=_machine(predictor.device, cost, began, self._commit),
        )

    def _draw_worst(self, job: Job, video: ComparisonVideo, predicted: PredictedVideo, scores: VideoScores) -> Json:
        """The picture of the worst frame, beside the results; its object, frame and J."""
        worst = worst_frame(scores.objects, video.protocol.frame_columns)
        if worst is None:
            return {}
        image = self._source(video)[predicted.masks.names.index(worst.frame)].image
        picture = draw_thumbnail(image, *masks_of(predicted, video.protocol, worst))
        with atomic_path(self._folder.thumbnail(job), concurrent=True) as part:
            part.write_bytes(picture)
        return {"object": worst.obj_id, "frame": worst.frame, "J": round(worst.j, 6)}

    def _predictor(self, entry: PolicyEntry, video: ComparisonVideo) -> SAM2VideoPredictor:
        built = self._built.get(entry.name)
        if built is None:
            try:
                built = entry.build()
            except Exception as error:
                built = error
            else:
                source = self._source(video)
                _feed_truth(built, video)
                warm_up(built, source, video.plan(source))
            self._built[entry.name] = built
        if isinstance(built, Exception):
            raise built
        return built

    def _source(self, video: ComparisonVideo) -> VideoSource:
        if self._opened is None or self._opened[0] is not video:
            self._stack.close()
            self._opened = None
            source = self._stack.enter_context(video.open())
            self._opened = video, decoded(source, self._plan.max_frames)
        return self._opened[1]

    def _track(self, job: Job, predictor: SAM2VideoPredictor, video: ComparisonVideo) -> tuple[PassCost, PackedMasks]:
        source = self._source(video)
        plan, packed = video.plan(source), PackedMasks()
        torch.manual_seed(job.seed)
        with ExitStack() as stack:
            writer = self._writer(job, video, plan, stack)

            def store(output: FrameMasks) -> None:
                packed.add(output)
                if writer is not None:
                    writer.write(output.frame, output.masks)

            predictor.settings = replace(predictor.settings, non_overlap_masks=not video.per_object)
            return measured_pass(predictor, source, plan, store, max_frames=self._plan.max_frames), packed

    def _writer(self, job: Job, video: ComparisonVideo, plan: PromptPlan, stack: ExitStack) -> MaskWriter | None:
        if not self._plan.masks:
            return None
        folder = self._folder.mask_folder(job)
        if video.per_object:
            return stack.enter_context(PerObjectWriter(folder, video.name))
        return stack.enter_context(PaletteWriter(folder, video.name, plan.palette))


def _feed_truth(predictor: SAM2VideoPredictor, video: ComparisonVideo) -> None:
    if isinstance(predictor, OraclePredictor):
        predictor.video = video.truth


def _object_entry(protocol: Protocol[Any], scores: ObjectScores, number: Mapping[str, int]) -> Json:
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
        "cpu_seconds": cost.cpu_seconds,
        "frames_per_second": cost.frames / cost.seconds if cost.seconds else None,
        "peak_bytes": cost.peak_bytes,
        "growth_bytes": cost.growth_bytes,
        "device": run_manifest.device_name(device),
        "git_commit": commit,
    }
