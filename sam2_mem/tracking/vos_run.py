"""Many videos, segmented into one folder: streamed to disk, in shards if wanted, resumable, one failure at a time."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sam2_mem.tracking import run_manifest
from sam2_mem.tracking.run_manifest import Json, RunFolder, VideoReport, write_json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, MaskRules, PromptPlan, plan_from_folder, precision, segment
from sam2_mem.video import (
    ContactSheetWriter,
    MaskWriter,
    MultiWriter,
    OverlayWriter,
    PaletteWriter,
    PerObjectWriter,
    RLEWriter,
    VideoSource,
    open_video,
)
from sam2_mem.video.sources import VIDEO_EXTENSIONS

logger = logging.getLogger(__name__)

DEFAULT_FPS = 24.0

Progress = Callable[[Iterator[FrameMasks], str, int | None], Iterator[FrameMasks]]
"""Wraps the frames of a video in a progress bar, given what to call it and the number of frames if known."""


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """One video. ``video``: what ``sam2_mem.video.open_video`` takes, or a function that finds it when its turn
    comes. ``plan`` makes its prompts once it is open. ``start``: the first frame."""

    name: str
    video: Any
    plan: Callable[[VideoSource], PromptPlan]
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Every ``of``-th video, beginning with number ``index``."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise ValueError(f"expected 0 <= shard_id < num_shards, got shard_id {self.index} of {self.of}")

    @property
    def run_name(self) -> str:
        return "run.json" if self.of == 1 else f"run.shard{self.index}of{self.of}.json"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to write.

    Masks go to ``<folder>/<video>/<frame>.png``, or with ``per_object`` to ``<folder>/<video>/<object>/<frame>.png``;
    at choice, ``<video>_overlay.mp4``, ``<video>_masks.json`` (run lengths) and ``<video>_sheet.png`` stand beside.
    """

    folder: Path
    per_object: bool = False
    overlay: bool = False
    rle: bool = False
    contact_sheet: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(name for name in ("overlay", "rle", "contact_sheet") if getattr(self, name))

    def writer(self, name: str, plan: PromptPlan, fps: float | None) -> MaskWriter:
        root = self.folder
        writers: list[MaskWriter] = [
            PerObjectWriter(root, name) if self.per_object else PaletteWriter(root, name, plan.palette)
        ]
        if self.overlay:
            writers.append(OverlayWriter(root / f"{name}_overlay.mp4", fps=fps or DEFAULT_FPS))
        if self.rle:
            writers.append(RLEWriter(root / f"{name}_masks.json", video=name, resume=False))
        if self.contact_sheet:
            writers.append(ContactSheetWriter(root / f"{name}_sheet.png"))
        return MultiWriter(*writers)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How videos are run.

    Attributes:
        outputs: what to write.
        score_thresh: see ``sam2_mem.tracking.vos.segment``.
        max_frames: of each video.
        shard: which of the videos.
        resume: skip those that are complete.
        settings: everything that the masks depend on; results of different settings are never mixed in one folder.
        about: what else ``run.json`` shall say.
    """

    outputs: Outputs
    score_thresh: float = 0.0
    max_frames: int | None = None
    shard: Shard = Shard()
    resume: bool = False
    settings: Json = field(default_factory=dict)
    about: Json = field(default_factory=dict)


# -- the videos of a data set ---------------------------------------------------------------------------------------


def list_videos(base: Path, list_file: Path | None = None) -> list[str]:
    """Names of videos: the non-empty lines of ``list_file``, or all folders and video files in ``base``."""
    if not base.is_dir():
        raise FileNotFoundError(f"expected a folder of videos, got '{base}', which is not one")
    if list_file is not None:
        if not list_file.exists() or list_file.is_dir():
            raise FileNotFoundError(f"expected a list of video names, got '{list_file}', which is not a file")
        names = [_stem(line.strip()) for line in list_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        entries = sorted(p for p in base.iterdir() if not p.name.startswith("."))
        names = [_stem(p.name) for p in entries if p.is_dir() or p.suffix.lower() in VIDEO_EXTENSIONS]
    if not names:
        raise ValueError(f"expected at least one video, got none in '{list_file or base}'")
    return list(dict.fromkeys(names))


def _stem(name: str) -> str:
    """A video's name without the ending of a video file; other dots are part of it."""
    ending = Path(name).suffix.lower()
    return name[: -len(ending)] if ending in VIDEO_EXTENSIONS else name


def find_video(base: Path, name: str) -> Path:
    """The folder of frames or the video file called ``name``; the folder if there are both."""
    folder = base / name
    if folder.is_dir():
        return folder
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    files = sorted(p for p in siblings if p.stem == folder.name and p.suffix.lower() in VIDEO_EXTENSIONS)
    if not files:
        raise FileNotFoundError(f"no video '{name}' in '{base}': expected a folder of frames or {name}.mp4")
    return files[0]


def dataset_tasks(names: Sequence[str], base: Path, masks: Path, rules: MaskRules) -> list[VideoTask]:
    """Videos of ``base`` with prompts from ``<masks>/<video>``."""

    def task(name: str) -> VideoTask:
        return VideoTask(
            name=name,
            video=lambda: find_video(base, name),
            plan=lambda source: plan_from_folder(masks / name, source, rules),
        )

    return [task(name) for name in names]


# -- the run --------------------------------------------------------------------------------------------------------


def _without_bar(frames: Iterator[FrameMasks], name: str, total: int | None) -> Iterator[FrameMasks]:
    return frames


def run(
    predictor: SAM2VideoPredictor,
    tasks: Sequence[VideoTask],
    options: RunOptions,
    *,
    progress: Progress = _without_bar,
) -> list[VideoReport]:
    """Segment the videos of this shard into ``options.outputs.folder`` and keep ``run.json`` there up to date.

    A video that fails is reported with its error; the others go on. Masks written before an error stay.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    folder = RunFolder(options.outputs.folder, options.settings)
    folder.claim()
    if predictor.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(predictor.device)
    log = _RunLog(predictor, options, folder.hash)
    log.write()
    tasks_of_shard = tasks[options.shard.index :: options.shard.of]
    for number, task in enumerate(tasks_of_shard, start=1):
        report = _done_before(folder, task, options)
        if report is None:
            folder.begin(task.name)
            title = f"{number}/{len(tasks_of_shard)} {task.name}"
            report = _run_video(predictor, task, options, progress, title)
            if report.error is None:
                folder.finish(report)
        log.add(report)
    log.write(complete=True)
    return log.reports


def _done_before(folder: RunFolder, task: VideoTask, options: RunOptions) -> VideoReport | None:
    """The report of an earlier run that left all that is asked for now."""
    report = folder.finished(task.name) if options.resume else None
    if report is None or not set(options.outputs.extras) <= set(report.outputs):
        return None
    if not _all_there(options.outputs, report):
        logger.warning("%s was complete, but masks are missing now; it is done again", task.name)
        return None
    return report


def _all_there(outputs: Outputs, report: VideoReport) -> bool:
    folder = outputs.folder / report.name
    folders = [folder / f"{obj_id:03d}" for obj_id in report.objects] if outputs.per_object else [folder]
    return all(sum(1 for _ in f.glob("*.png")) >= report.frames for f in folders)


@dataclass
class _Tally:
    """What is known of a video so far, should it fail."""

    frames: int = 0
    objects: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    state_bytes: int = 0


def _run_video(
    predictor: SAM2VideoPredictor, task: VideoTask, options: RunOptions, progress: Progress, title: str
) -> VideoReport:
    tally, begin, error = _Tally(), time.perf_counter(), None
    try:
        _segment_to_disk(predictor, task, options, tally, lambda frames, total: progress(frames, title, total))
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        expected = isinstance(failure, (ValueError, OSError))
        logger.error("%s failed after %d frames: %s", task.name, tally.frames, error, exc_info=not expected)
    seconds = time.perf_counter() - begin
    return VideoReport(
        name=task.name,
        **asdict(tally),
        seconds=round(seconds, 3),
        frames_per_second=round(tally.frames / seconds, 3),
        outputs=() if error else options.outputs.extras,
        error=error,
    )


def _segment_to_disk(
    predictor: SAM2VideoPredictor,
    task: VideoTask,
    options: RunOptions,
    tally: _Tally,
    progress: Callable[[Iterator[FrameMasks], int | None], Iterator[FrameMasks]],
) -> None:
    video = task.video() if callable(task.video) else task.video
    with open_video(video) as source:
        plan = task.plan(source)
        tally.objects = plan.obj_ids
        state = predictor.init_state(source)
        tally.size = source.height, source.width
        stop = None if options.max_frames is None else task.start + options.max_frames
        frames = segment(predictor, state, plan, start=task.start, stop=stop, score_thresh=options.score_thresh)
        with options.outputs.writer(task.name, plan, source.fps) as writer:
            for result in progress(frames, _length(source, task.start, stop)):
                writer.write(result.frame, result.masks)
                tally.frames += 1
                tally.state_bytes = max(tally.state_bytes, state.memory_bytes())


def _length(source: VideoSource, start: int, stop: int | None) -> int | None:
    ends = [end for end in (source.num_frames, stop) if end is not None]
    return max(min(ends) - start, 0) if source.num_frames is not None else (stop - start if stop is not None else None)


class _RunLog:
    """``run.json``: written at the start, after every video and at the end."""

    def __init__(self, predictor: SAM2VideoPredictor, options: RunOptions, settings_hash: str) -> None:
        self.reports: list[VideoReport] = []
        self._device = predictor.device
        self._path = options.outputs.folder / options.shard.run_name
        self._fixed = {
            "command": sys.argv,
            **options.about,
            "device": {
                "type": self._device.type,
                "name": run_manifest.device_name(self._device),
                "precision": precision(self._device),
            },
            "versions": run_manifest.versions(),
            "git_commit": run_manifest.git_commit(),
            "shard": asdict(options.shard),
            "settings_hash": settings_hash,
            "started": _now(),
        }

    def add(self, report: VideoReport) -> None:
        self.reports.append(report)
        self.write()

    def write(self, *, complete: bool = False) -> None:
        reports = self.reports
        new = [r for r in reports if not r.resumed]
        frames, seconds = sum(r.frames for r in new), sum(r.seconds for r in new)
        content = {
            **self._fixed,
            "updated": _now(),
            "complete": complete,
            "totals": {
                "videos": len(reports),
                "failed": [r.name for r in reports if r.error is not None],
                "resumed": len(reports) - len(new),
                "frames": frames,
                "seconds": round(seconds, 3),
                "frames_per_second": round(frames / seconds, 3) if seconds else None,
            },
            "memory": {
                "peak_rss_bytes": run_manifest.peak_rss_bytes(),
                "peak_cuda_bytes": run_manifest.peak_cuda_bytes(self._device),
                "state_bytes": max((r.state_bytes for r in reports), default=0),
            },
            "videos": [asdict(r) for r in reports],
        }
        write_json(self._path, content)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
