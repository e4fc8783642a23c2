"""A long benchmark with exact truth that nobody has to download: procedural clips in named, versioned sets.

    for clip in open_synthetic("long-v1"):
        for frame in clip:                   # frame.image (H, W, 3), frame.ids (H, W), frame.prompts
            ...

A set never changes: another choice of clips gets another version. Frames are drawn when they are asked for, and are the
same bits on every machine (``fingerprint``; ``tests/evaluation/test_evaluation_synthetic.py`` holds the expected ones). Each
clip belongs to a track, which says what is hard about it. ``docs/evaluation.md`` has the table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sam2_mem._moved import renamed
from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject
from sam2_mem.prompts import Prompt
from sam2_mem.synthetic.export import write_image, write_masks
from sam2_mem.synthetic.generator import SyntheticSpec, SyntheticVideo, build_clip
from sam2_mem.tracking.vos import PromptPlan
from sam2_mem.video import Frame, VideoSource
from sam2_mem.video.source import SeekableSource

# -- a clip ---------------------------------------------------------------------------------------------------------


class SyntheticSource(SeekableSource):
    """A procedural clip as a video: ``sam2_mem.video.open_video`` and the predictors take it as it is."""

    def __init__(self, video: SyntheticVideo, *, prefetch: int = 0, cache: int = 4) -> None:
        super().__init__(prefetch=prefetch, cache=cache)
        self._video = video
        self._length = len(video)
        self._size = video.height, video.width

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, self._video.frame(index).image)


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """``image`` (H, W, 3) uint8 RGB, ``ids`` (H, W) uint8 of the visible objects, 0 for none; ``prompts``: masks of the
    objects that enter on this frame."""

    index: int
    name: str
    image: np.ndarray
    ids: np.ndarray
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class SyntheticClip(AnnotatedVideo):
    """One clip of a set. ``track``: what is hard about it. An annotated video without predictions."""

    name: str
    track: str
    spec: SyntheticSpec

    @cached_property
    def video(self) -> SyntheticVideo:
        return build_clip(self.spec)

    def __len__(self) -> int:
        return self.spec.num_frames

    def __iter__(self) -> Iterator[LabelledFrame]:
        for frame in self.video:
            new = [obj_id for obj_id, first in self.entries.items() if first == frame.index]
            prompts = tuple(Prompt(obj_id, mask=frame.masks == obj_id) for obj_id in new)
            yield LabelledFrame(frame.index, _name(frame.index), frame.image, frame.masks, prompts)

    @cached_property
    def entries(self) -> Mapping[int, int]:
        """The first frame of each object, where it is prompted: 0 for object 1, others may be late."""
        return {obj_id: self.video.entry_frame(obj_id) for obj_id in range(1, self.spec.num_objects + 1)}

    def source(self, *, prefetch: int = 0) -> VideoSource:
        return SyntheticSource(self.video, prefetch=prefetch)

    def plan(self) -> PromptPlan:
        """The mask of each object on its first frame, as ``sam2_mem.tracking.vos.segment`` takes prompts."""
        prompts: dict[int, list[Prompt]] = {}
        for obj_id, first in self.entries.items():
            prompts.setdefault(first, []).append(Prompt(obj_id, mask=self.video.masks(first) == obj_id))
        at = {index: lambda frame, on_frame=on_frame: on_frame for index, on_frame in prompts.items()}
        return PromptPlan(tuple(self.entries), at)

    # -- as an annotated video --

    @property
    def frames(self) -> tuple[str, ...]:
        return tuple(map(_name, range(len(self))))

    @property
    def listed(self) -> Sequence[ListedObject]:
        names, last = self.frames, len(self)
        return tuple(
            ListedObject(obj_id=obj_id, frames=names[first:], length=last - first)
            for obj_id, first in self.entries.items()
        )

    @property
    def predicted(self) -> bool:
        return False

    def truth(self, frame: str) -> np.ndarray:
        return self.video.masks(int(frame))

    def prediction(self, frame: str) -> np.ndarray:
        raise ValueError(f"no prediction: {self.name} is the ground truth alone")


def _name(index: int) -> str:
    return f"{index:05d}"


def fingerprint(clip: SyntheticClip, times: Iterable[int]) -> str:
    """The first 16 digits of the SHA-256 of images and masks at these frames."""
    digest = hashlib.sha256()
    for t in times:
        frame = clip.video.frame(t)
        digest.update(frame.image.tobytes() + frame.masks.tobytes())
    return digest.hexdigest()[:16]


# -- sets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BenchmarkTrack:
    """Clips of one difficulty. ``level``: of ``sam2_mem.synthetic.scenes``; ``late``: how many of the objects enter
    after the first frame; ``events``: what happens to an object in every clip, by the names of
    ``sam2_mem.synthetic.generator.Event``."""

    name: str
    level: str
    objects: int
    late: int = 0
    events: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyntheticSet:
    """Clips by number, by name or by iteration."""

    name: str
    clips: tuple[SyntheticClip, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[SyntheticClip]:
        return iter(self.clips)

    def __getitem__(self, key: int | str) -> SyntheticClip:
        if isinstance(key, int):
            return self.clips[key]
        clips = {clip.name: clip for clip in self.clips}
        if key not in clips:
            raise ValueError(f"expected a clip of {self.name}, one of {', '.join(clips)}, got {key!r}")
        return clips[key]

    def export(self, root: Path, *, quality: int | None = None) -> None:
        """Write the set as DAVIS 2017 lies on disk: ``JPEGImages/480p/<clip>``, ``Annotations/480p/<clip>`` and
        ``ImageSets/2017/val.txt``, with the frames from which each object is to be tracked in ``meta.json``.

        Args:
            root: the folder to write to.
            quality: of JPEG frames, for tools that look for ``*.jpg``; None for PNG, which keeps every bit.
        """
        for clip in self.clips:
            for frame in clip:
                ending = "png" if quality is None else "jpg"
                image = root / "JPEGImages" / "480p" / clip.name / f"{frame.name}.{ending}"
                write_image(image, frame.image, quality or 95)
                write_masks(root / "Annotations" / "480p" / clip.name / f"{frame.name}.png", frame.ids)
        names = root / "ImageSets" / "2017" / "val.txt"
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text("".join(f"{clip.name}\n" for clip in self.clips), encoding="utf-8")
        (root / "meta.json").write_text(json.dumps(self._meta(), indent=1) + "\n", encoding="utf-8")

    def _meta(self) -> dict[str, Any]:
        videos = {
            clip.name: {"objects": {str(item.obj_id): {"frames": list(item.frames)} for item in clip.listed}}
            for clip in self.clips
        }
        return {"set": self.name, "videos": videos}


TRACKS = (
    BenchmarkTrack(name="occlusion", level="occlusion", objects=3, events=("occlusion",)),
    BenchmarkTrack(name="return", level="leave_return", objects=3, events=("leave", "return")),
    BenchmarkTrack(name="long_absence", level="long_absence", objects=2, events=("return",)),
    BenchmarkTrack(name="lookalikes", level="lookalikes", objects=2),
    BenchmarkTrack(name="appearance", level="appearance", objects=3, events=("appearance",)),
    BenchmarkTrack(name="splitting", level="splitting", objects=2, events=("split",)),
    BenchmarkTrack(name="late", level="clutter", objects=5, late=4, events=("entry",)),
)
"""``long_absence``: for 200 frames in the long clips, behind something or out of the frame. ``lookalikes``: two doubles
of each object. ``late``: four of five objects enter between 15 % and 50 % of the clip."""
AWAY_TRACKS = (
    BenchmarkTrack(name="changed_away", level="changed_away", objects=2, events=("appearance", "leave", "return")),
    BenchmarkTrack(name="revisit", level="revisit", objects=2, events=("appearance", "leave", "return")),
    BenchmarkTrack(name="lookalike_stays", level="lookalike_stays", objects=2, events=("leave", "return")),
    BenchmarkTrack(name="scene_cut", level="scene_cut", objects=2, events=("appearance", "leave", "return")),
)
"""Every object is away for a quarter to a third of the clip, 100 to 140 frames of 400, when memories of the last frames are
worth nothing. ``changed_away``: it changes its look, then is away. ``revisit``: it has another look for a while, the first
look again, and comes back in the other, more than 200 frames later. ``lookalike_stays``: a double stays in the frame.
``scene_cut``: it changes its look, then another scene is shown."""


@dataclass(frozen=True, kw_only=True)
class _SetSpec:
    """A set is every track with every seed; training and validation draw from other seeds."""

    seeds: tuple[int, ...]
    num_frames: int
    side: int
    tracks: tuple[BenchmarkTrack, ...] = TRACKS

    def clips(self) -> Iterator[SyntheticClip]:
        for track in self.tracks:
            for number, seed in enumerate(self.seeds, start=1):
                yield SyntheticClip(f"{track.name}_{number}", track.name, self._spec(track, seed))

    def _spec(self, track: BenchmarkTrack, seed: int) -> SyntheticSpec:
        return SyntheticSpec(
            seed=seed,
            level=track.level,
            num_frames=self.num_frames,
            height=self.side,
            width=self.side,
            num_objects=track.objects,
            late_objects=track.late,
        )


_SETS = {
    "long-v1": _SetSpec(seeds=(31_000_001, 31_000_002), num_frames=600, side=256),
    "long-v2": _SetSpec(seeds=(34_000_001, 34_000_002, 34_000_003), num_frames=400, side=256, tracks=AWAY_TRACKS),
    "dev-v1": _SetSpec(seeds=(32_000_001,), num_frames=120, side=128),
    "seeds-v1": _SetSpec(seeds=(33_000_001, 33_000_002, 33_000_003), num_frames=200, side=128),
}
SYNTHETIC_SETS = tuple(_SETS)
"""``long-v1``: 14 clips of 600 frames, 256 pixels. ``long-v2``: 12 of 400 frames, 256 pixels, of ``AWAY_TRACKS``. ``dev-v1``: 7 of 120 frames, 128 pixels, for tests and CPUs.
``seeds-v1``: 21 of 200 frames, 128 pixels, each track with three seeds, to see how much a figure varies between clips."""


def open_synthetic(name: str) -> SyntheticSet:
    """A set by its name and version."""
    if name not in _SETS:
        raise ValueError(f"expected a synthetic set of {', '.join(SYNTHETIC_SETS)}, got {name!r}")
    return SyntheticSet(name, tuple(_SETS[name].clips()))


__getattr__ = renamed(__name__)
