"""Data sets by their names: what there is to segment, and what is submitted to the evaluation server."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam2_mem._moved import renamed
from sam2_mem.evaluation.datasets import REGIONS, DatasetOnDisk, Selection, Submit
from sam2_mem.evaluation.vots import PROMPTED, UNKNOWN, Region, RegionBox, VOTSSequence, read_regions, region_text
from sam2_mem.files import atomic_path
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.vos import PromptPlan
from sam2_mem.tracking.vos_run import VideoTask, dataset_tasks
from sam2_mem.video import VideoSource, open_video, read_mask_png

ARCHIVE = "submission.zip"


def find_dataset(args: argparse.Namespace) -> DatasetOnDisk:
    """The data set that the command line names."""
    return DatasetOnDisk(args.dataset, args.root, Selection(split=args.split, names=args.video_list_file))


def apply_dataset_defaults(args: argparse.Namespace, dataset: DatasetOnDisk) -> None:
    """Set the arguments that a data set's name stands for."""
    rules = dataset.layout.rules
    args.base_video_dir, args.input_mask_dir = dataset.frames, dataset.masks
    args.use_all_masks, args.per_obj_png_file = rules.all_frames, rules.per_object
    args.track_object_appearing_later_in_video, args.ignore_ids = rules.late, tuple(sorted(rules.ignore))


def dataset_video_tasks(dataset: DatasetOnDisk) -> list[VideoTask]:
    """One for each video of the split."""
    if dataset.name != REGIONS:
        return dataset_tasks(dataset.names, dataset.frames, dataset.masks, dataset.layout.rules)
    return [
        VideoTask(
            name=name,
            video=_images(dataset, name),
            plan=partial(plan_from_regions, _sequence(dataset, name)),
        )
        for name in dataset.names
    ]


def _images(dataset: DatasetOnDisk, name: str) -> Path:
    return dataset.frames / name / dataset.layout.inside


# -- regions --------------------------------------------------------------------------------------------------------


def _sequence(dataset: DatasetOnDisk, name: str) -> VOTSSequence:
    return VOTSSequence(name, dataset.masks / name, dataset.masks / name)


class _Start(NamedTuple):
    """Where an object of a sequence begins: its number from 1, its name, its frame and its region there."""

    number: int
    name: str
    frame: int
    region: Region


def _starts(sequence: VOTSSequence) -> list[_Start]:
    starts = []
    for number, (name, path) in enumerate(sequence.truths().items(), start=1):
        first = next(((t, r) for t, r in enumerate(read_regions(path)) if r.mask.any()), None)
        if first is None:
            raise ValueError(f"expected a mask to start from in '{path}', got none")
        starts.append(_Start(number, name, *first))
    return starts


def plan_from_regions(sequence: VOTSSequence, source: VideoSource) -> PromptPlan:
    """The first region of each object as its prompt; objects are numbered from 1 in the order of their names."""
    starts, image = _starts(sequence), RegionBox(0, 0, source.width, source.height)
    prompts: dict[int, list[Prompt]] = {}
    for start in starts:
        prompts.setdefault(start.frame, []).append(Prompt(start.number, mask=start.region.on(image)))
    at = {index: lambda frame, on_frame=on_frame: on_frame for index, on_frame in prompts.items()}
    return PromptPlan(tuple(start.number for start in starts), at)


def write_regions(sequence: VOTSSequence, masks: Path, seconds: float) -> list[Path]:
    """``<sequence>[_<object>]_001.txt`` and its times in the folder of the sequence's mask PNGs, as the VOT toolkit
    reads results: on frame 0 the code of a prompt, before an object's start and where it is not seen the code 0.

    Args:
        sequence: whose objects and truths are read.
        masks: the folder of its mask PNGs.
        seconds: per frame.
    """
    starts = _starts(sequence)
    lines: dict[int, list[str]] = {start.number: [] for start in starts}
    for index, path in enumerate(sorted(masks.glob("*.png"))):
        ids = read_mask_png(path).ids
        for start in starts:
            lines[start.number].append(_line(index, start, ids))
    written = []
    for start in starts:
        stem = f"{sequence.name}_{start.name}_001" if len(starts) > 1 else f"{sequence.name}_001"
        times = [f"{seconds:.6f}"] * len(lines[start.number])
        for name, content in ((f"{stem}.txt", lines[start.number]), (f"{stem}_time.value", times)):
            with atomic_path(masks / name) as part:
                part.write_text("\n".join(content) + "\n", encoding="utf-8")
            written.append(masks / name)
    return written


def _line(index: int, start: _Start, ids: np.ndarray) -> str:
    if index == 0:
        return str(PROMPTED)
    return str(UNKNOWN) if index < start.frame else region_text(ids == start.number)


# -- submissions ----------------------------------------------------------------------------------------------------


def write_submission(dataset: DatasetOnDisk, out: Path, *, archive: bool) -> str:
    """Put what the evaluation server takes into ``ARCHIVE``, once the masks of all videos are there; what to tell
    the user."""
    waiting = [name for name in dataset.names if not _complete(dataset, out, name)]
    if waiting:
        return (
            f"no {ARCHIVE}: masks of {len(waiting)} of {len(dataset.names)} videos are not complete, e.g. {waiting[0]}"
        )
    if dataset.name == REGIONS:
        for name in dataset.names:
            write_regions(_sequence(dataset, name), out / name, _seconds(out, name))
    if not archive:
        return f"masks are in {out}"
    with atomic_path(out / ARCHIVE) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as file:
        count = 0
        for name in dataset.names:
            for path in _submitted_files(dataset, out, name):
                file.write(path, (Path(dataset.layout.archive) / path.relative_to(out)).as_posix())
                count += 1
    return f"wrote {out / ARCHIVE} with {count} files"


def _submitted_files(dataset: DatasetOnDisk, out: Path, name: str) -> Iterator[Path]:
    """The files of a video that go into the archive."""
    if dataset.name == REGIONS:
        yield from sorted(path for path in (out / name).iterdir() if path.suffix in (".txt", ".value"))
        return
    is_submitted = dataset.submitted(name)
    yield from sorted(path for path in (out / name).rglob("*.png") if is_submitted(path.stem))


def _complete(dataset: DatasetOnDisk, out: Path, name: str) -> bool:
    """Whether the video is finished and every submitted frame has its mask, of every object where they have
    files of their own."""
    if not _report(out, name).is_file():
        return False
    frames = _submitted_frames(dataset, name)
    folders = [p for p in (out / name).glob("*") if p.is_dir()] if dataset.layout.rules.per_object else [out / name]
    present = [{path.stem for path in folder.glob("*.png")} for folder in folders]
    return bool(present) and all(frames <= stems for stems in present)


def _submitted_frames(dataset: DatasetOnDisk, name: str) -> set[str]:
    with open_video(_images(dataset, name), prefetch=0) as source:
        names = {source.name(index) for index in range(len(source))}
    if dataset.layout.submit is not Submit.LISTED:
        return set(filter(dataset.submitted(name), names))
    listed = {frame for item in dataset.objects[name] for frame in item.frames} if name in dataset.objects else set()
    if not listed <= names:
        raise ValueError(
            f"expected frame {min(listed - names)} of '{name}', which the meta file lists, among its images"
        )
    return listed


def _seconds(out: Path, name: str) -> float:
    """Per frame, as the run has noted them."""
    report = json.loads(_report(out, name).read_text(encoding="utf-8"))
    return 1.0 / report["frames_per_second"] if report["frames_per_second"] else 0.0


def _report(out: Path, name: str) -> Path:
    """What a run leaves of a finished video, see ``sam2_mem.tracking.run_manifest.RunFolder``."""
    return out / ".vos" / "done" / f"{name}.json"


__getattr__ = renamed(__name__)
