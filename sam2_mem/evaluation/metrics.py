"""Measures of mask quality, for one object on one frame and over its frames. Arrays in, numbers in [0, 1] out.

Definitions: J (region similarity) and F (boundary accuracy) of Perazzi et al., CVPR 2016, as the DAVIS evaluation
computes them. Shapes: H rows, W columns, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 0.008
"""The distance within which two boundaries match, as a share of the image's diagonal."""


class Similarity(NamedTuple):
    """J and F of one object on one frame."""

    j: float
    f: float


# -- one frame ------------------------------------------------------------------------------------------------------


def jaccard(pred: np.ndarray, gt: np.ndarray, *, void: np.ndarray | None = None) -> float:
    """Intersection over union of two (H, W) masks; 1 if both are empty. Pixels in ``void`` (H, W) do not count."""
    pred, gt = _pair(pred, gt, void)
    return _jaccard(pred, gt)


def boundary_f(
    pred: np.ndarray, gt: np.ndarray, *, radius: float | None = None, void: np.ndarray | None = None
) -> float:
    """Harmonic mean of the precision and the recall of the boundary of ``pred`` (H, W), given that of ``gt`` (H, W).

    A boundary pixel is right if the other boundary comes within ``radius`` pixels of it (default: see
    ``boundary_radius``). 1 if neither mask has a boundary, 0 if one has none: a mask that fills the image has none.
    """
    pred, gt = _pair(pred, gt, void)
    radius = boundary_radius(pred.shape) if radius is None else radius
    return _boundary_f(*_crop(pred, gt), radius)


def similarity(pred: np.ndarray, gt: np.ndarray) -> Similarity:
    """J and F of two (H, W) masks in one go."""
    pred, gt = _pair(pred, gt, None)
    radius = boundary_radius(pred.shape)
    pred, gt = _crop(pred, gt)
    return Similarity(_jaccard(pred, gt), _boundary_f(pred, gt, radius))


def boundary_radius(shape: tuple[int, ...]) -> int:
    """The tolerance of F in pixels for an image of (H, W)."""
    return int(np.ceil(BOUNDARY_TOLERANCE * np.linalg.norm(shape)))


def _binary(mask: np.ndarray) -> np.ndarray:
    """A mask as uint8 0/1, without a copy if it is bool."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), got {mask.shape}; pass one frame of one object")
    return np.ascontiguousarray(mask if mask.dtype == bool else mask != 0).view(np.uint8)


def _pair(pred: np.ndarray, gt: np.ndarray, void: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    pred, gt = _binary(pred), _binary(gt)
    if pred.shape != gt.shape:
        raise ValueError(
            f"expected a prediction of the size of the ground truth {gt.shape}, got {pred.shape}; "
            "resize predictions to the annotated size, with nearest-neighbour sampling if they are masks"
        )
    if void is not None:
        keep = 1 - _binary(void)
        pred, gt = pred & keep, gt & keep
    return pred, gt


def _crop(pred: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The part that holds both masks and one pixel around them, which is all that any measure here depends on.

    The boundary of an object lies at most one pixel outside of it, and a dilated boundary is only read at pixels of
    the other boundary, so there is no need for a margin of the tolerance.
    """
    x, y, width, height = cv2.boundingRect(pred | gt)
    part = np.s_[max(y - 1, 0) : y + height + 1, max(x - 1, 0) : x + width + 1]
    return pred[part], gt[part]


def _jaccard(pred: np.ndarray, gt: np.ndarray) -> float:
    union = np.count_nonzero(pred | gt)
    return float(np.count_nonzero(pred & gt) / union) if union else 1.0


def _boundary_map(mask: np.ndarray) -> np.ndarray:
    """Where a mask (H, W) of 0 and 1 differs from its right, lower or lower right neighbour.

    Neighbours outside the image do not count, so an object has no boundary along the edge of the image.
    """
    boundary = np.zeros_like(mask)
    np.not_equal(mask[:, :-1], mask[:, 1:], out=boundary[:, :-1].view(bool))
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def _boundary_f(pred: np.ndarray, gt: np.ndarray, radius: float) -> float:
    pred_edge, gt_edge = _boundary_map(pred), _boundary_map(gt)
    pred_length, gt_length = np.count_nonzero(pred_edge), np.count_nonzero(gt_edge)
    if pred_length == 0 or gt_length == 0:
        return float(pred_length == gt_length)
    tolerance = disk(radius)
    precision = np.count_nonzero(pred_edge & cv2.dilate(gt_edge, tolerance)) / pred_length
    recall = np.count_nonzero(gt_edge & cv2.dilate(pred_edge, tolerance)) / gt_length
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@lru_cache(maxsize=256)
def disk(radius: float) -> np.ndarray:
    """(2 radius + 1, same) uint8: the pixels of a disk.

    The coordinates of a fractional radius begin at -radius, so the disk is a little off centre. That is what the
    scorer of MOSEv2 does, the only one with such radii.
    """
    steps = np.arange(-radius, radius + 1)
    return (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)


# -- the measures of MOSEv2 -----------------------------------------------------------------------------------------


class AdaptiveSimilarity(NamedTuple):
    """The measures of MOSEv2: J with one pixel added above and below, F with a tolerance that depends on the size of
    the object, and F with the usual one."""

    j: float
    f_dot: float
    f: float


def adaptive_similarity(pred: np.ndarray, gt: np.ndarray) -> AdaptiveSimilarity:
    """Of two (H, W) masks. Tolerances are at least one pixel; below, the disk of the data set's scorer is empty."""
    pred, gt = _pair(pred, gt, None)
    diagonal = max(1.0, BOUNDARY_TOLERANCE * float(np.linalg.norm(pred.shape)))
    pred, gt = _crop(pred, gt)
    union, area = np.count_nonzero(pred | gt), np.count_nonzero(gt)
    j = float((np.count_nonzero(pred & gt) + 1) / (union + 1)) if union else 1.0
    radius = float(np.ceil(0.1 * np.sqrt(area)))
    if area and radius < diagonal:
        return AdaptiveSimilarity(j, _boundary_f(pred, gt, radius), _boundary_f(pred, gt, float(np.ceil(diagonal))))
    f = _boundary_f(pred, gt, diagonal)
    return AdaptiveSimilarity(j, f, f)


# -- over the frames of an object -----------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Mean; share of frames above one half; loss from the first to the last quarter (positive: it gets worse)."""

    mean: float
    recall: float
    decay: float


def statistics(values: Sequence[float] | np.ndarray) -> Statistics:
    """Mean, recall and decay of the values (T,) of an object as DAVIS defines them; all NaN if there are none.

    The indices of DAVIS' own code overflow from 256 frames on, where its decay is NaN. It is defined here.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"expected one value a frame, shape (T,), got {values.shape}")
    return Statistics(mean(values), float(np.mean(values > 0.5)) if len(values) else np.nan, _decay(values))


def _decay(values: np.ndarray) -> float:
    """Neighbouring quarters share a frame."""
    if not len(values):
        return np.nan
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    return mean(values[edges[0] : edges[1] + 1]) - mean(values[edges[3] : edges[4] + 1])


def last_quarter_mean(values: Sequence[float] | np.ndarray) -> float:
    """J_tr of VOST: the mean of the values (T,) from frame floor(0.75 T) on."""
    values = np.asarray(values, np.float64)
    return mean(values[int(0.75 * len(values)) :])


def variability(j: Sequence[float] | np.ndarray, f: Sequence[float] | np.ndarray) -> float:
    """V of LVOS: the standard deviation over time (T,) of (J + F) / 2, the variance rounded to four decimals."""
    j_and_f = (np.asarray(j, np.float64) + np.asarray(f, np.float64)) / 2
    return float(np.sqrt(np.round(np.var(j_and_f), 4))) if len(j_and_f) else np.nan


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Of those that are not NaN; NaN if there are none."""
    values = np.asarray(values, np.float64)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan
