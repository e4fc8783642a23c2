"""A video with its annotation and its prediction, read frame by frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ListedObject:
    """What a data set's meta file says of an object.

    Attributes:
        frames: names of its annotated frames, from its prompt on.
        length: how many the file says there are, where it says so.
        group: 'seen' or 'unseen' in training, or ''.
    """

    obj_id: int
    frames: tuple[str, ...] = ()
    length: int = 0
    group: str = ""


class AnnotatedVideo(ABC):
    """Protocols ask for one frame at a time, in order, so that memory does not grow with the video."""

    name: str

    @property
    @abstractmethod
    def frames(self) -> Sequence[str]:
        """Names of the annotated frames, in order."""

    @property
    def listed(self) -> Sequence[ListedObject]:
        """What the meta file lists, () if the data set has none."""
        return ()

    @property
    def predicted(self) -> bool:
        """Whether there is any prediction for this video."""
        return True

    @abstractmethod
    def truth(self, frame: str) -> np.ndarray:
        """Object ids (H, W)."""

    @abstractmethod
    def prediction(self, frame: str) -> np.ndarray:
        """Object ids (H, W); ValueError if there are none for this frame."""

    def parts(self) -> Sequence[VideoPart]:
        """The video itself, or one video of each object where masks are stored by object and may overlap."""
        return (VideoPart(self),)


@dataclass(frozen=True)
class VideoPart:
    """A video of all objects (``obj_id`` None), or one in which value 1 is the object ``obj_id``."""

    video: AnnotatedVideo
    obj_id: int | None = None
