"""The worst frame of a policy on a video as a small picture: the mask filled, the truth as a white line around it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from sam2_mem.evaluation.packed_masks import PredictedVideo
from sam2_mem.evaluation.protocols import Protocol
from sam2_mem.evaluation.results import ObjectScores
from sam2_mem.video.overlay import BLACK, WHITE, draw_overlay

WIDTH = 240
"""Of a thumbnail, in pixels, at most."""


class WorstFrame(NamedTuple):
    """The object of lowest J on its frame of lowest J, the first of several; the place of its frame in the video."""

    obj_id: str
    frame: str
    j: float


def worst_frame(objects: Sequence[ObjectScores], frame_columns: Sequence[str]) -> WorstFrame | None:
    """Of all objects of a video; None where no frame counts."""
    column = frame_columns.index("J") if "J" in frame_columns else 0
    worst: WorstFrame | None = None
    for scores in objects:
        if scores.frames:
            values = scores.per_frame[:, column]
            index = int(np.argmin(values))
            if worst is None or values[index] < worst.j:
                worst = WorstFrame(scores.obj_id, scores.frames[index], float(values[index]))
    return worst


def masks_of(video: PredictedVideo, protocol: Protocol[Any], worst: WorstFrame) -> tuple[np.ndarray, np.ndarray]:
    """What was predicted and what is true of an object on a frame, (H, W) bool both.

    Raises:
        ValueError: the video has no such object.
    """
    obj_id = int(worst.obj_id)
    for part in video.parts():
        if part.obj_id in (None, obj_id):
            value = obj_id if part.obj_id is None else 1
            predicted = protocol.pred_ids(part.video.prediction(worst.frame)) == value
            return predicted, protocol.truth_ids(part.video.truth(worst.frame)) == value
    raise ValueError(f"expected an object of {video.name}, got {worst.obj_id}")


def draw_thumbnail(image: np.ndarray, mask: np.ndarray, truth: np.ndarray) -> bytes:
    """A JPEG of at most ``WIDTH`` pixels across.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, filled.
        truth: (H, W) bool, outlined.
    """
    height, width = image.shape[:2]
    scale = min(1.0, WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = [cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for m in (mask, truth)]
    picture = draw_overlay(cv2.resize(image, size, interpolation=cv2.INTER_AREA), {1: small[0] > 0}, labels=False)
    outlines, _ = cv2.findContours(small[1], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for color, thickness in ((BLACK, 3), (WHITE, 1)):
        cv2.drawContours(picture, outlines, -1, color, thickness)
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, format="JPEG", quality=80)
    return encoded.getvalue()
