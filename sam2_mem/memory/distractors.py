"""DAM4SAM's test for distractors: whether a frame tells the object from something that looks like it."""

from __future__ import annotations

from statistics import median
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from sam2_mem.memory.trace import Action, Reason
from sam2_mem.types import CandidateId, Hypotheses

Areas = tuple[tuple[int, int], ...]
"""(step, pixels) of visible masks."""


class PromotionLimits(Protocol):
    """The conditions of ``promotion``; fields as in ``sam2_mem.memory.policies.dam4sam.DAM4SAM``."""

    @property
    def min_iou(self) -> float: ...
    @property
    def min_area_ratio(self) -> float: ...
    @property
    def max_area_ratio(self) -> float: ...
    @property
    def area_count(self) -> int: ...
    @property
    def area_window(self) -> int: ...
    @property
    def min_gap(self) -> int: ...
    @property
    def max_box_overlap(self) -> float: ...


def visible_pixels(hypotheses: Hypotheses, candidate: CandidateId, min_obj_score_logits: float) -> int:
    """Pixels of a candidate's mask, 0 for an absent object."""
    if hypotheses.objectness[candidate.pathway] <= min_obj_score_logits:
        return 0
    mask = hypotheses.masks[candidate.pathway, candidate.candidate]
    if hypotheses.areas is None:
        return int((mask > 0).sum())
    return round(hypotheses.areas[candidate.pathway][candidate.candidate] * mask.numel())


def areas_with(areas: Areas, step: int, area: int, limits: PromotionLimits) -> Areas:
    """The history of visible areas with that of ``step``."""
    recent = [(s, a) for s, a in areas if step - s < limits.area_window]
    if area > 0:
        recent.append((step, area))
    return tuple(recent[-limits.area_count :])


def promotion(
    index: int,
    hypotheses: Hypotheses,
    candidate: CandidateId,
    area: int,
    *,
    step: int,
    promoted_at: int | None,
    areas: Areas,
    limits: PromotionLimits,
) -> Reason:
    """That a frame is promoted, or the first condition that it does not meet; pixels are looked at last.

    Args:
        index: of the frame.
        hypotheses: all candidates.
        candidate: the chosen mask.
        area: its pixels, 0 for an absent object.
        step: tracked frames so far, this one included.
        promoted_at: step of the latest promotion.
        areas: history of visible areas before this frame.
        limits: the conditions.
    """
    iou = hypotheses.iou[candidate.pathway][candidate.candidate]
    gap = None if promoted_at is None else step - promoted_at
    if step == 1:
        return Reason(index, "recent memory; the first tracked frame is never promoted")
    if gap is not None and gap <= limits.min_gap:
        return Reason(index, "recent memory; too soon after the last promotion, in frames", gap, limits.min_gap)
    if not iou > limits.min_iou:
        return Reason(index, "recent memory; predicted IoU not above its threshold", iou, limits.min_iou)
    ratio = area / median(a for _, a in areas_with(areas, step, area, limits)) if area else 0.0
    if not area or not limits.min_area_ratio <= ratio <= limits.max_area_ratio:
        return Reason(index, "recent memory; unusual size, as a share of the usual one", ratio)
    overlap, limit = least_box_overlap(hypotheses, candidate), limits.max_box_overlap
    if not overlap <= limit:
        return Reason(index, "recent memory; no distractor in sight: box overlap of the alternatives", overlap, limit)
    return Reason(index, "tells the object from a distractor: box overlap with it", overlap, limit, Action.PROMOTED)


def packed_pixels(masks: Tensor) -> Tensor:
    """Pixels of all candidates' ``masks`` (P, M, h, w), four to a number: what ``least_box_overlap`` takes as measured."""
    return (masks > 0).flatten().view(torch.uint8).view(torch.float32)


def least_box_overlap(hypotheses: Hypotheses, candidate: CandidateId) -> float:
    """``box_overlap`` of a candidate's mask with the alternative that shows most beside it; 1 without alternatives. What was
    ``measured`` counts as the pixels of all candidates, as DAM4SAM measures them."""
    if hypotheses.measured is None:
        masks = (hypotheses.masks[candidate.pathway] > 0).cpu().numpy()
    else:
        pixels = hypotheses.measured.view(torch.uint8).view(torch.bool)
        masks = pixels.view(hypotheses.masks.shape)[candidate.pathway].numpy()
    chosen, alternatives = masks[candidate.candidate], np.delete(masks, candidate.candidate, axis=0)
    return min((box_overlap(chosen, mask) for mask in alternatives), default=1.0)


def box_overlap(chosen: np.ndarray, alternative: np.ndarray) -> float:
    """IoU of the box of ``chosen`` (h, w) bool and of the box of it with the largest part that ``alternative`` adds; 1 where
    it adds nothing, or where both boxes are lines. The sides of a box are largest minus smallest coordinate, as in the
    toolkit of the code."""
    part = _largest_part(alternative & ~chosen)
    if part is None:
        return 1.0
    joint = _box_area(chosen | part)
    return _box_area(chosen) / joint if joint else 1.0


def _largest_part(mask: np.ndarray) -> np.ndarray | None:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def _box_area(mask: np.ndarray) -> int:
    sides = [np.flatnonzero(mask.any(axis=axis)) for axis in (0, 1)]
    return int(np.prod([side[-1] - side[0] for side in sides]))
