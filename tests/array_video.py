"""An annotated video in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject


@dataclass(frozen=True)
class ArrayVideo(AnnotatedVideo):
    """Ids (T, H, W) of the ground truth and of the prediction; frames are called 00000, 00001, and so on."""

    name: str
    truths: np.ndarray
    predictions: np.ndarray
    listed: Sequence[ListedObject] = ()

    @property
    def frames(self) -> Sequence[str]:
        return tuple(f"{index:05d}" for index in range(len(self.truths)))

    def truth(self, frame: str) -> np.ndarray:
        return self.truths[int(frame)]

    def prediction(self, frame: str) -> np.ndarray:
        return self.predictions[int(frame)]
