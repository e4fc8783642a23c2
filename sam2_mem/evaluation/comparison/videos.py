"""Videos to compare policies on: synthetic sets and data sets with ground truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sam2_mem.evaluation.comparison.repeated import RepeatedSource, RepeatedTruth
from sam2_mem.evaluation.datasets import REGIONS, DatasetOnDisk, open_dataset
from sam2_mem.evaluation.protocols import Protocol, Synthetic
from sam2_mem.evaluation.synthetic import SYNTHETIC_SETS, SyntheticClip, open_synthetic
from sam2_mem.evaluation.videos import AnnotatedVideo
from sam2_mem.tracking.vos import PromptPlan, plan_from_folder
from sam2_mem.video import Frame, VideoSource, open_video
from sam2_mem.video.stored import ArraySource

DECODED_BYTES = 1_000_000_000
"""Videos up to this size are decoded once for all policies; longer ones are read again by each."""


@dataclass(frozen=True, kw_only=True)
class ComparisonVideo:
    """A video with its truth. ``data``: what its results are summed up with, and by which protocol. ``per_object``: its
    objects may overlap. ``origin``: the folder it comes from, if it does."""

    data: str
    name: str
    open: Callable[[], VideoSource]
    plan: Callable[[VideoSource], PromptPlan]
    truth: AnnotatedVideo
    protocol: Protocol[Any]
    per_object: bool = False
    origin: str = ""


def comparison_videos(spec: str, names: Sequence[str] = ()) -> list[ComparisonVideo]:
    """The videos of ``synthetic:<set>`` or ``<data set>:<root>``; with ``names`` only these. ``@3`` at the end: each is played
    forwards, backwards, forwards."""
    spec, passes = split_passes(spec)
    kind, _, location = spec.partition(":")
    if not location:
        raise ValueError(
            f"expected synthetic:<set> with a set of {', '.join(SYNTHETIC_SETS)}, or <data set>:<root>, got {spec!r}"
        )
    is_set = kind == "synthetic" and location in SYNTHETIC_SETS
    videos = _synthetic(spec, location) if is_set else _on_disk(spec, kind, location)
    chosen = [video for video in videos if not names or video.name in names]
    return chosen if passes is None else [_repeated(video, passes) for video in chosen]


def split_passes(spec: str) -> tuple[str, int | None]:
    """What precedes ``@3`` at the end of the name of data, and the number of passes; None where there is none."""
    match = re.fullmatch(r"(.*)@([1-9]\d*)", spec)
    return (spec, None) if match is None else (match[1], int(match[2]))


def _repeated(video: ComparisonVideo, passes: int) -> ComparisonVideo:
    """``video`` played ``passes`` times, prompted in the first pass alone; its data are named so."""
    return replace(
        video,
        data=f"{video.data}@{passes}",
        open=lambda: RepeatedSource(video.open(), passes),
        truth=RepeatedTruth(video.truth, video.open, passes),
    )


def _synthetic(spec: str, name: str) -> list[ComparisonVideo]:
    return [
        ComparisonVideo(
            data=spec,
            name=clip.name,
            open=clip.source,
            plan=partial(_clip_plan, clip),
            truth=clip,
            protocol=Synthetic(),
        )
        for clip in open_synthetic(name)
    ]


def _clip_plan(clip: SyntheticClip, source: VideoSource) -> PromptPlan:
    return clip.plan()


def groups_of_videos(spec: str) -> Mapping[str, Mapping[str, str]]:
    """What videos of a synthetic set can be grouped by, "track" and "seed": the group of each video by its name. Nothing
    for other data."""
    kind, _, name = split_passes(spec)[0].partition(":")
    if kind != "synthetic" or name not in SYNTHETIC_SETS:
        return {}
    clips = open_synthetic(name)
    return {"track": {c.name: c.track for c in clips}, "seed": {c.name: str(c.spec.seed) for c in clips}}


def _on_disk(spec: str, kind: str, root: str) -> list[ComparisonVideo]:
    if kind == "synthetic" and not Path(root).is_dir():
        raise ValueError(
            f"expected a synthetic set of {', '.join(SYNTHETIC_SETS)}, or its exported folder, got {root!r}"
        )
    if kind == REGIONS:
        raise ValueError(f"expected a data set of masks, got {spec!r}; export its regions as masks to compare on them")
    files = DatasetOnDisk(kind, Path(root))
    dataset = open_dataset(kind, files.root, files.root)
    rules = files.layout.rules
    return [
        ComparisonVideo(
            data=kind,
            name=truth.name,
            open=partial(open_video, files.frames / truth.name, prefetch=0),
            plan=partial(plan_from_folder, files.masks / truth.name, rules=rules),
            truth=truth,
            protocol=dataset.protocol,
            per_object=rules.per_object,
            origin=str(files.root.resolve()),
        )
        for truth in dataset.videos
        if isinstance(truth, AnnotatedVideo)
    ]


class DecodedSource(ArraySource):
    """Frames in memory, under the names they have."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._names = [frame.name for frame in frames]
        super().__init__([frame.image for frame in frames])

    def name(self, index: int) -> str:
        return self._names[index]


def decoded(source: VideoSource, max_frames: int | None) -> VideoSource:
    """A video in memory, if it is short enough and all of it is used."""
    if max_frames is not None or source.num_frames is None:
        return source
    if source.num_frames * source.height * source.width * 3 > DECODED_BYTES:
        return source
    return DecodedSource(list(source))
