"""Many videos, segmented into one folder: streamed to disk, in shards if wanted, resumable, one failure at a time."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sam2_mem.claims import Claim, ClaimLostError, shared
from sam2_mem.files import find_name, read_lines
from sam2_mem.memory.serialization import MemoryFileError
from sam2_mem.tracking import run_manifest
from sam2_mem.tracking.run_manifest import Json, RunFolder, VideoReport, write_json
from sam2_mem.tracking.video_checkpoint import load_checkpoint, save_checkpoint, why_unsaved
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, MaskRules, PromptPlan, VideoPass, plan_from_folder, precision
from sam2_mem.video import (
    COCOWriter,
    ContactSheetWriter,
    Frame,
    MaskWriter,
    MultiWriter,
    OverlayWriter,
    PaletteWriter,
    PerObjectWriter,
    RLEWriter,
    VideoSource,
    YOLOWriter,
    open_video,
    palette_masks,
    per_object_masks,
)
from sam2_mem.video.sources import VIDEO_EXTENSIONS

logger = logging.getLogger(__name__)

DEFAULT_FPS = 24.0

Progress = Callable[[Iterator[FrameMasks], str, int | None], Iterator[FrameMasks]]
"""Wraps the frames of a video in a progress bar, given what to call it and the number of frames if known."""


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """One video.

    Attributes:
        name: of its results.
        video: what ``sam2_mem.video.open_video`` takes, or a function that finds it when its turn comes.
        plan: makes its prompts once it is open.
        start: the first frame.
        inputs: folders that are read, and where nothing may be written.
    """

    name: str
    video: Any
    plan: Callable[[VideoSource], PromptPlan]
    start: int = 0
    inputs: tuple[Path, ...] = ()


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
    at choice, ``<video>_overlay.mp4``, ``<video>_masks.json`` (run lengths), ``<video>_sheet.png``, ``<video>_coco.json`` and
    the folder ``<video>_yolo`` (polygons) stand beside.
    """

    folder: Path
    per_object: bool = False
    overlay: bool = False
    rle: bool = False
    contact_sheet: bool = False
    coco: bool = False
    yolo: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        return tuple(name for name in ("overlay", "rle", "contact_sheet", "coco", "yolo") if getattr(self, name))

    def mask_writer(self, name: str, plan: PromptPlan) -> MaskWriter:
        return PerObjectWriter(self.folder, name) if self.per_object else PaletteWriter(self.folder, name, plan.palette)

    def extra_writer(self, name: str, fps: float | None) -> MaskWriter:
        """Of everything that stands beside the masks."""
        root, writers = self.folder, list[MaskWriter]()
        if self.overlay:
            writers.append(OverlayWriter(root / f"{name}_overlay.mp4", fps=fps or DEFAULT_FPS))
        if self.rle:
            writers.append(RLEWriter(root / f"{name}_masks.json", video=name, resume=False))
        if self.contact_sheet:
            writers.append(ContactSheetWriter(root / f"{name}_sheet.png"))
        if self.coco:
            writers.append(COCOWriter(root / f"{name}_coco.json", video=name))
        if self.yolo:
            writers.append(YOLOWriter(root / f"{name}_yolo", images=True))
        return MultiWriter(*writers)

    def mask_files(self, name: str, frame: str, obj_ids: Sequence[int]) -> list[Path]:
        """Those of one frame."""
        folder = self.folder / name
        folders = [folder / f"{obj_id:03d}" for obj_id in obj_ids] if self.per_object else [folder]
        return [folder / f"{frame}.png" for folder in folders]

    def read_masks(self, name: str, frame: Frame, obj_ids: Sequence[int]) -> dict[int, np.ndarray]:
        """The (H, W) bool masks that were written for a frame."""
        masks = dict.fromkeys(obj_ids, np.zeros(frame.image.shape[:2], dtype=bool))
        if self.per_object:
            return masks | per_object_masks(self.folder / name, frame.name)
        return masks | palette_masks(self.folder / name / f"{frame.name}.png")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How videos are run.

    Attributes:
        outputs: what to write.
        score_thresh: see ``sam2_mem.tracking.vos.segment``.
        allow_empty: see there.
        max_frames: of each video.
        shard: which of the videos.
        resume: skip those that are complete.
        checkpoint_every: frames between two checkpoints of a video, from which ``resume`` goes on; 0 for none.
        checkpoint_required: that a video cannot be saved is an error; otherwise it is done without checkpoints.
        share: other runs with the same videos and folder work at the same time. Each claims the longest video that is left,
            takes over those of runs that died, and ends when all are done; it skips those that are complete.
        settings: everything that the masks depend on; results of different settings are never mixed in one folder.
        about: what else ``run.json`` shall say.
    """

    outputs: Outputs
    score_thresh: float = 0.0
    allow_empty: bool = False
    max_frames: int | None = None
    shard: Shard = Shard()
    resume: bool = False
    checkpoint_every: int = 0
    checkpoint_required: bool = False
    share: bool = False
    settings: Json = field(default_factory=dict)
    about: Json = field(default_factory=dict)


# -- the videos of a data set ---------------------------------------------------------------------------------------


def list_videos(base: Path, list_file: Path | None = None) -> list[str]:
    """Names of videos: the non-empty lines of ``list_file``, or all folders and video files in ``base``.

    Raises:
        FileNotFoundError: there is no such folder or list.
        ValueError: no video, names that lead out of ``base``, or several files that would have one result.
    """
    if not base.is_dir():
        raise FileNotFoundError(f"expected a folder of videos, got '{base}', which is not one")
    if list_file is not None:
        if not list_file.exists() or list_file.is_dir():
            raise FileNotFoundError(f"expected a list of video names, got '{list_file}', which is not a file")
        entries = read_lines(list_file)
    else:
        entries = _entries(base)
    if not entries:
        raise ValueError(f"expected at least one video, got none in '{list_file or base}'")
    by_name: dict[str, str] = {}
    for entry in entries:
        first = by_name.setdefault(video_name(entry), entry)
        if first != entry and video_name(first) != first and video_name(entry) != entry:
            raise ValueError(
                f"expected one video for each result, got '{first}' and '{entry}', whose masks would both go to "
                f"'{video_name(entry)}'; rename one of them"
            )
    for name in by_name:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"expected names of videos in '{base}', got '{name}', which leads out of it")
    return list(by_name)


def _entries(base: Path) -> list[str]:
    """Names of the entries of a folder that are videos, a link to nothing included; a warning for others."""
    result, others = [], []
    for path in sorted(path for path in base.iterdir() if not path.name.startswith(".")):
        if path.is_dir() and RunFolder.is_one(path):
            logger.warning("'%s' holds results of an earlier run and is not taken for a video", path)
        elif path.is_dir() or path.suffix.lower() in VIDEO_EXTENSIONS or not path.exists():
            result.append(path.name)
        else:
            others.append(path.name)
    if others:
        kinds = ", ".join(VIDEO_EXTENSIONS)
        logger.warning(
            "%d files in '%s' are not read, e.g. '%s'; videos are folders or %s", len(others), base, others[0], kinds
        )
    return result


def video_name(name: str) -> str:
    """A video's name without the ending of a video file; other dots are part of it."""
    ending = Path(name).suffix.lower()
    return name[: -len(ending)] if ending in VIDEO_EXTENSIONS else name


def find_video(base: Path, name: str) -> Path:
    """The folder of frames or the video file called ``name``; the folder, with a warning, if there are both."""
    folder = find_name(base / name)
    siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
    stem = unicodedata.normalize("NFC", folder.name)
    files = sorted(p for p in siblings if _is_video_file(p) and unicodedata.normalize("NFC", p.stem) == stem)
    if folder.is_dir():
        if files:
            logger.warning("'%s' is read, not '%s' of the same name", folder, files[0].name)
        return folder
    if not files:
        raise FileNotFoundError(f"no video '{name}' in '{base}': expected a folder of frames or {name}.mp4")
    if len(files) > 1:
        raise ValueError(f"expected one video '{name}' in '{base}', got {', '.join(p.name for p in files)}; rename one")
    return files[0]


def _is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS and not path.name.startswith(".")


def dataset_tasks(names: Sequence[str], base: Path, masks: Path, rules: MaskRules) -> list[VideoTask]:
    """Videos of ``base`` with prompts from ``<masks>/<video>``."""

    def task(name: str) -> VideoTask:
        return VideoTask(
            name=name,
            video=lambda: find_video(base, name),
            plan=lambda source: plan_from_folder(find_name(masks / name), source, rules),
            inputs=(base, masks, base / name, masks / name),
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
        ValueError: the folder holds results of other settings, or what is read; results would overwrite each other; videos
            under these settings cannot be saved in between, although they must.
        OSError: the folder or its ``run.json`` cannot be written.
    """
    folder = RunFolder(options.outputs.folder, options.settings)
    options = _with_checkpoints_if_possible(predictor, options)
    _check_places(options.outputs.folder, tasks)
    folder.claim()
    if predictor.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(predictor.device)
    log = _RunLog(predictor, options, folder.hash)
    log.write()
    tasks_of_shard = tasks[options.shard.index :: options.shard.of]
    titles = {task.name: f"{number}/{len(tasks_of_shard)} {task.name}" for number, task in enumerate(tasks_of_shard, 1)}

    def segment_task(task: VideoTask, claim: Claim | None = None) -> VideoReport:
        return _run_video(predictor, task, options, folder, partial(_titled, progress, titles[task.name]), claim)

    if options.share:
        _run_shared(tasks_of_shard, options, folder, log, segment_task)
    else:
        for task in tasks_of_shard:
            log.add(_done_before(folder, task, options) or segment_task(task))
    log.finish()
    return log.reports


def _with_checkpoints_if_possible(predictor: SAM2VideoPredictor, options: RunOptions) -> RunOptions:
    """The same options, or without checkpoints where these videos cannot be saved; ValueError where they must."""
    reason = why_unsaved(predictor.policy)
    overlap = not options.outputs.per_object and not predictor.settings.non_overlap_masks
    if reason is None and overlap and options.outputs.extras:
        reason = (
            f"masks that overlap are not all in palette PNGs, from which {', '.join(options.outputs.extras)} would be completed; "
            "write one PNG for each object (--per_obj_png_file)"
        )
    if reason is None or not options.checkpoint_every:
        return options
    if options.checkpoint_required:
        raise ValueError(f"expected videos that can be saved every {options.checkpoint_every} frames, got: {reason}")
    logger.info("without checkpoints within a video: %s", reason)
    return replace(options, checkpoint_every=0)


def _run_shared(
    tasks: Sequence[VideoTask],
    options: RunOptions,
    folder: RunFolder,
    log: _RunLog,
    segment_task: Callable[[VideoTask, Claim], VideoReport],
) -> None:
    """Claim videos until all are done or have failed since this run began, here or in another run."""
    began, task_of = folder.now(), {task.name: task for task in sorted(tasks, key=_extent, reverse=True)}

    def settled(name: str) -> VideoReport | None:
        return _done_before(folder, task_of[name], options) or folder.failed(name, began)

    with closing(shared(task_of, folder.claims(), lambda name: settled(name) is not None)) as claims:
        for claim in claims:
            with suppress(ClaimLostError):
                log.add(segment_task(task_of[claim.name], claim))
    reported = {report.name for report in log.reports}
    for task in tasks:
        report = None if task.name in reported else settled(task.name)
        if report is not None:
            log.add(report)


def _extent(task: VideoTask) -> tuple[int, int]:
    """Larger for longer videos, as far as it costs nothing to know: bytes of a file, entries of a folder."""
    try:
        path = Path(task.video() if callable(task.video) else task.video)
        return (1, path.stat().st_size) if path.is_file() else (0, sum(1 for _ in path.iterdir()))
    except (TypeError, ValueError, OSError):
        return 0, 0


def _titled(progress: Progress, title: str, frames: Iterator[FrameMasks], total: int | None) -> Iterator[FrameMasks]:
    return progress(frames, title, total)


def _check_places(root: Path, tasks: Sequence[VideoTask]) -> None:
    """ValueError where masks would be written over what is read, or over each other."""
    owners: dict[str, str] = {}
    spelled = str.casefold if _ignores_case(root) else str
    for task in tasks:
        result = (root / task.name).resolve()
        for path in task.inputs:
            if path.resolve() in (result, root.resolve()):
                raise ValueError(
                    f"expected an output folder apart from what is read, got '{root}': masks of '{task.name}' would be "
                    f"written into '{path}'; choose another output folder"
                )
        other = owners.setdefault(spelled(str(result)), task.name)
        if other != task.name or result == root.resolve():
            raise ValueError(f"expected a result of its own for each video, got one for '{other}' and '{task.name}'")


def _ignores_case(folder: Path) -> bool:
    """Whether the file system takes small and capital letters for the same."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists()).resolve()
    flipped = Path(str(existing).swapcase())
    return flipped != existing and flipped.exists() and flipped.samefile(existing)


def _done_before(folder: RunFolder, task: VideoTask, options: RunOptions) -> VideoReport | None:
    """The report of an earlier run that left all that is asked for now."""
    report = folder.finished(task.name) if options.resume or options.share else None
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
    stated_frames: int | None = None
    went_on_at: int = 0


def _run_video(
    predictor: SAM2VideoPredictor,
    task: VideoTask,
    options: RunOptions,
    folder: RunFolder,
    progress: Callable[[Iterator[FrameMasks], int | None], Iterator[FrameMasks]],
    claim: Claim | None = None,
) -> VideoReport:
    """Segment a video; its failure, or that of the disk, is in the report. ClaimLostError where it is another run's now."""
    tally, begin, report = _Tally(), time.perf_counter(), VideoReport(name=task.name)
    try:
        folder.begin(task.name)
        saver = _Saver(folder, task, options, predictor, tally)
        _segment_to_disk(predictor, task, options, tally, partial(_while_claimed, claim, progress), saver)
        report = _report(task, options, tally, time.perf_counter() - begin)
        if claim is not None:
            claim.confirm()
        folder.finish(report)
    except ClaimLostError as lost:
        logger.warning("%s after %d frames; it is left to that run", lost, tally.frames)
        raise
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        expected = isinstance(failure, (ValueError, OSError))
        logger.error("%s failed after %d frames: %s", task.name, tally.frames, error, exc_info=not expected)
        report = _report(task, options, tally, time.perf_counter() - begin, error)
        with suppress(OSError):  # the disk may be what has failed
            folder.finish(report)
    return report


def _while_claimed(
    claim: Claim | None,
    progress: Callable[[Iterator[FrameMasks], int | None], Iterator[FrameMasks]],
    frames: Iterator[FrameMasks],
    total: int | None,
) -> Iterator[FrameMasks]:
    """The frames, until the claim on their video is lost."""
    for frame in progress(frames, total):
        if claim is not None:
            claim.check()
        yield frame


def _report(
    task: VideoTask, options: RunOptions, tally: _Tally, seconds: float, error: str | None = None
) -> VideoReport:
    return VideoReport(
        name=task.name,
        **asdict(tally),
        seconds=round(seconds, 3),
        frames_per_second=round((tally.frames - tally.went_on_at) / seconds, 3),
        outputs=() if error else options.outputs.extras,
        error=error,
    )


def _segment_to_disk(
    predictor: SAM2VideoPredictor,
    task: VideoTask,
    options: RunOptions,
    tally: _Tally,
    progress: Callable[[Iterator[FrameMasks], int | None], Iterator[FrameMasks]],
    saver: _Saver,
) -> None:
    video = task.video() if callable(task.video) else task.video
    with open_video(video) as source:
        plan = task.plan(source)
        tally.objects = plan.obj_ids
        state = predictor.init_state(source, interactive=False)
        tally.size = source.height, source.width
        stop = None if options.max_frames is None else task.start + options.max_frames
        frames = VideoPass(
            predictor,
            state,
            plan,
            start=task.start,
            stop=stop,
            score_thresh=options.score_thresh,
            allow_empty=options.allow_empty,
        )
        saver.go_on(frames, source)
        extras = options.outputs.extra_writer(task.name, source.fps)
        with MultiWriter(options.outputs.mask_writer(task.name, plan), extras) as writer:
            saver.complete(extras, source)
            total = _length(source, task.start + tally.frames, stop)
            for result in progress(iter(frames), total):
                writer.write(result.frame, result.masks)
                tally.frames += 1
                tally.state_bytes = max(tally.state_bytes, state.memory_bytes())
                saver.after_frame(frames, source)
        if source.num_frames is not None and source.num_frames < (source.stated_length or 0):
            tally.stated_frames = source.stated_length


@dataclass(eq=False)
class _Saver:
    """The checkpoint of one video: written now and then, and gone on from.

    ``every``: frames between two of them, 0 where there are none.
    """

    folder: RunFolder
    task: VideoTask
    options: RunOptions
    predictor: SAM2VideoPredictor
    tally: _Tally

    def __post_init__(self) -> None:
        self.path = self.folder.checkpoint(self.task.name)
        self.every, self.is_due = self.options.checkpoint_every, False

    def go_on(self, frames: VideoPass, source: VideoSource) -> None:
        """Continue where an earlier run has saved the video, if ``resume`` is asked for and all its masks are there."""
        if not (self.options.resume or self.options.share) or not self.path.is_file():
            self.path.unlink(missing_ok=True)
            return
        try:
            checkpoint, about = load_checkpoint(self.path, self.predictor.policy, self.predictor.device)
        except MemoryFileError as error:
            logger.warning("%s begins anew: %s", self.task.name, error)
            return
        if about["settings"] != self.folder.hash or not self._masks_are_there(source, about["frames"]):
            logger.warning("%s begins anew: its masks are missing, or were made by other settings", self.task.name)
            return
        frames.go_on(checkpoint)
        self.tally.frames = self.tally.went_on_at = about["frames"]
        self.tally.state_bytes = about["state_bytes"]
        logger.info("%s goes on at frame %s", self.task.name, source.name(checkpoint.next_shown))

    def _masks_are_there(self, source: VideoSource, count: int) -> bool:
        names = (source.name(index) for index in range(self.task.start, self.task.start + count))
        outputs, obj_ids = self.options.outputs, self.tally.objects
        files = (file for name in names for file in outputs.mask_files(self.task.name, name, obj_ids))
        return all(file.is_file() and file.stat().st_size > 0 for file in files)

    def complete(self, extras: MaskWriter, source: VideoSource) -> None:
        """Give the masks of frames that an earlier run has done to the writers of single files, which begin anew."""
        if not self.tally.frames or not self.options.outputs.extras:
            return
        for frame in source.frames(self.task.start, self.task.start + self.tally.frames):
            extras.write(frame, self.options.outputs.read_masks(self.task.name, frame, self.tally.objects))

    def after_frame(self, frames: VideoPass, source: VideoSource) -> None:
        """Save where it is time to, or as soon as it can be done from then on. A first checkpoint on the first frame shows at once
        whether it can be done."""
        if not self.every:
            return
        is_first = self.tally.frames == self.tally.went_on_at + 1
        self.is_due = self.is_due or is_first or self.tally.frames % self.every == 0
        try:
            if self.is_due:
                self._save(frames, source)
        except ValueError as error:
            if self.options.checkpoint_required:
                raise
            logger.warning("%s is done without checkpoints: %s", self.task.name, error)
            self.every = 0

    def _save(self, frames: VideoPass, source: VideoSource) -> None:
        if not source.seekable:
            raise ValueError("expected a video that can be read again, got a stream")
        checkpoint = frames.checkpoint()
        if checkpoint is not None:
            counts = {"frames": self.tally.frames, "state_bytes": self.tally.state_bytes}
            about = {"settings": self.folder.hash, "video": self.task.name, **counts}
            save_checkpoint(self.path, checkpoint, self.predictor.policy, self.predictor.device, about)
            self.is_due = False


def _length(source: VideoSource, start: int, stop: int | None) -> int | None:
    ends = [end for end in (source.num_frames, stop) if end is not None]
    return max(min(ends) - start, 0) if source.num_frames is not None else (stop - start if stop is not None else None)


class _RunLog:
    """``run.json``: written at the start, after every video and at the end."""

    def __init__(self, predictor: SAM2VideoPredictor, options: RunOptions, settings_hash: str) -> None:
        self.reports: list[VideoReport] = []
        self._device = predictor.device
        name = f"run.{platform.node()}.{os.getpid()}.json" if options.share else options.shard.run_name
        self._path = options.outputs.folder / name
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
        self._write_if_possible()

    def finish(self) -> None:
        """The last time. That it cannot be written is an error of its own only where no video has failed."""
        if any(report.error for report in self.reports):
            self._write_if_possible(complete=True)
        else:
            self.write(complete=True)

    def _write_if_possible(self, *, complete: bool = False) -> None:
        try:
            self.write(complete=complete)
        except OSError as error:
            logger.error("cannot write '%s': %s", self._path, error)

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
