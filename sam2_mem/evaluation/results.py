"""What an evaluation gives: scores of objects, of videos, of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sam2_mem._moved import renamed


class Figure(NamedTuple):
    """One number of a summary, NaN if nothing defines it."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class ObjectScores:
    """One object of a video.

    Attributes:
        values: one for each of the protocol's ``columns``, in [0, 1]; NaN where the object does not define it.
        group: 'seen' or 'unseen' in training, or ''.
        frames: names of the T frames that counted.
        per_frame: (T, K), one column for each of the protocol's ``frame_columns``.
    """

    video: str
    obj_id: str
    values: tuple[float, ...]
    group: str = ""
    frames: tuple[str, ...] = ()
    per_frame: np.ndarray


@dataclass(frozen=True, kw_only=True)
class VideoScores:
    """The objects of one video, and what a reader of the scores should know."""

    objects: tuple[ObjectScores, ...]
    notes: tuple[str, ...] = ()


class Failure(NamedTuple):
    """A video that could not be scored."""

    video: str
    reason: str


class Note(NamedTuple):
    """A remark on a video that was scored."""

    video: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A data set. The summary is over ``objects``; it is that of the data set only if there are no failures."""

    protocol: str
    columns: tuple[str, ...]
    frame_columns: tuple[str, ...]
    summary: tuple[Figure, ...]
    objects: tuple[ObjectScores, ...]
    num_videos: int
    notes: tuple[Note, ...] = ()
    failures: tuple[Failure, ...] = ()

    def figure(self, name: str) -> float:
        """A number of the summary by its name."""
        figures = {figure.name: figure.value for figure in self.summary}
        if name not in figures:
            raise ValueError(f"expected one of {', '.join(figures)}, got '{name}'")
        return figures[name]


__getattr__ = renamed(__name__)
