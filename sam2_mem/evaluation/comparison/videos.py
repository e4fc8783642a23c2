"""Videos to compare policies on: synthetic sets and data sets with ground truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sam2_mem.evaluation.dataset_inference import REGIONS, Found
from sam2_mem.evaluation.datasets import open_dataset
from sam2_mem.evaluation.protocols import Protocol, Synthetic
from sam2_mem.evaluation.synthetic import SYNTHETIC_SETS, open_synthetic
from sam2_mem.evaluation.videos import AnnotatedVideo
from sam2_mem.tracking.vos import PromptPlan, plan_from_folder
from sam2_mem.video import Frame, VideoSource, open_video

DECODED_BYTES = 1_000_000_000
"""Videos up to this size are decoded once for all policies; longer ones are read again by each."""


@dataclass(frozen=True, kw_only=True)
class BenchVideo:
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


def parts_of(spec: str) -> Mapping[str, Mapping[str, str]]:
    """What videos of a synthetic set can be grouped by, "track" and "seed": the group of each video by its name. Nothing
    for other data."""
    kind, _, name = spec.partition(":")
    if kind != "synthetic" or name not in SYNTHETIC_SETS:
        return {}
    clips = open_synthetic(name)
    return {"track": {c.name: c.track for c in clips}, "seed": {c.name: str(c.spec.seed) for c in clips}}


def _on_disk(spec: str, kind: str, root: str) -> list[BenchVideo]:
    if kind == "synthetic" and not Path(root).is_dir():
        raise ValueError(
            f"expected a synthetic set of {', '.join(SYNTHETIC_SETS)}, or its exported folder, got {root!r}"
        )
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
            origin=str(found.root.resolve()),
        )
        for truth in dataset.videos
    ]


# -- in memory -------------------------------------------------------------------------------------------------------


class _Decoded(VideoSource):
    """Frames held in memory, under the names they have."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        super().__init__(prefetch=0, cache=0)
        self._frames = frames
        self._length = len(frames)

    @property
    def seekable(self) -> bool:
        return True

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Iterator[Frame]:
        return (self._frames[i] for i in range(self._length)[slice(start, stop, step)])

    def name(self, index: int) -> str:
        return self._frames[index].name

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self._frames):
            raise self._out_of_range(index)
        return self._frames[index]

    def _find_size(self) -> tuple[int, int]:
        return self._frames[0].image.shape[:2]


def decoded(source: VideoSource, max_frames: int | None) -> VideoSource:
    """A video in memory, if it is short enough and all of it is wanted."""
    if max_frames is not None or source.num_frames is None:
        return source
    if source.num_frames * source.height * source.width * 3 > DECODED_BYTES:
        return source
    return _Decoded(list(source))
