"""Videos played forwards, backwards, forwards, as long videos are made of short ones (the "3x" of XMem's long videos)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject, VideoPart
from sam2_mem.video import Frame, VideoSource
from sam2_mem.video.source import SeekableSource


def frame_order(length: int, passes: int) -> list[int]:
    """Frames of a video of ``length`` in the order of ``passes`` passes, every other one backwards. Where a pass turns, its
    frame is shown once."""
    backwards, forwards = list(range(length - 2, -1, -1)), list(range(1, length))
    return list(range(length)) + [f for number in range(1, passes) for f in (backwards if number % 2 else forwards)]


def frame_names(names: Sequence[str], passes: int) -> list[str]:
    """A name for each frame of ``frame_order``, in the order of the alphabet where ``names`` are: those of the video in the first
    pass."""
    length = len(frame_order(len(names), passes))
    return [*names, *(f"{names[-1]}~{index:07d}" for index in range(len(names), length))]


class RepeatedSource(SeekableSource):
    """A video of known length, played several times.

    Args:
        inner: the video; closed with this.
        passes: how often, every other time backwards.
    """

    def __init__(self, inner: VideoSource, passes: int) -> None:
        super().__init__(prefetch=0, cache=0)
        self.inner, self._order = inner, frame_order(inner.count_frames(), passes)
        self._names = frame_names([inner.name(index) for index in range(inner.count_frames())], passes)
        self._length = len(self._order)

    def name(self, index: int) -> str:
        if not 0 <= index < len(self._names):
            raise self._out_of_range(index)
        return self._names[index]

    def _fetch(self, index: int) -> Frame:
        return self._make_frame(index, self.inner[self._order[index]].image)

    def close(self) -> None:
        super().close()
        self.inner.close()


@dataclass(frozen=True, eq=False)
class RepeatedTruth(AnnotatedVideo):
    """The truth of a ``RepeatedSource``. Objects are listed on all annotated frames of the later passes, whether they are on them
    or not.

    Attributes:
        inner: the truth of the video.
        source: opens the video, for the names of its frames.
        passes: how often it is played.
    """

    inner: AnnotatedVideo
    source: Callable[[], VideoSource]
    passes: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.inner.name

    @cached_property
    def _originals(self) -> dict[str, str]:
        """The annotated frames, in order, with the names that they have in the video."""
        with self.source() as source:
            names = [source.name(index) for index in range(source.count_frames())]
        originals = [names[index] for index in frame_order(len(names), self.passes)]
        annotated = set(self.inner.frames)
        return {name: old for name, old in zip(frame_names(names, self.passes), originals) if old in annotated}

    @property
    def frames(self) -> Sequence[str]:
        return tuple(self._originals)

    @property
    def listed(self) -> Sequence[ListedObject]:
        later = self.frames[len(self.inner.frames) :]
        items = [(item, (*item.frames, *later)) for item in self.inner.listed]
        return tuple(replace(item, frames=f, length=len(f) if item.length else 0) for item, f in items)

    @property
    def predicted(self) -> bool:
        return False

    def truth(self, frame: str) -> np.ndarray:
        return self.inner.truth(self._originals[frame])

    def prediction(self, frame: str) -> np.ndarray:
        raise ValueError(f"no prediction: {self.name} is the ground truth alone")

    def parts(self) -> Sequence[VideoPart]:
        return [VideoPart(replace(self, inner=part.video), part.obj_id) for part in self.inner.parts()]
