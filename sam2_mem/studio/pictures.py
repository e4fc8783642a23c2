"""Frames and masks as files that a browser shows."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from sam2_mem.evaluation.inspection.recording import small_picture
from sam2_mem.video.rle import RLEObject

Masks = Mapping[int, str]
"""Masks of one frame: COCO run lengths by object id."""


def jpeg(image: np.ndarray, width: int | None = None) -> bytes:
    """(H, W, 3) uint8 RGB as JPEG, at most ``width`` wide."""
    picture = image if width is None else small_picture(image, width)
    return _encoded(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])


def object_ids(masks: Masks, size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 0 for no object; where objects overlap the lower id wins, as in the PNGs that are exported."""
    ids = np.zeros(size, np.uint8)
    for obj_id in sorted(masks, reverse=True):
        ids[decoded(masks[obj_id], size)] = obj_id
    return ids


def cropped(ids: np.ndarray) -> tuple[int, int, np.ndarray]:
    """x and y of the upper left corner of what is not 0, and that part, 1 x 1 where there is nothing."""
    x, y, width, height = cv2.boundingRect(ids)
    return x, y, ids[y : y + max(1, height), x : x + max(1, width)]


def ids_png(ids: np.ndarray) -> bytes:
    """Object ids (H, W) as a PNG of 8 bits."""
    return _encoded(".png", ids, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def decoded(counts: str, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool from COCO run lengths."""
    return RLEObject(0, size, counts, 0, (0.0, 0.0, 0.0, 0.0)).mask()


def _encoded(ending: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(ending, image, options)
    assert done, "OpenCV writes pictures of 8 bits"
    return data.tobytes()
