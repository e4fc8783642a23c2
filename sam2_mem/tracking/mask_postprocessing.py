"""Mask logits after the network: size, holes, small regions, overlap. The same on every device, no compiled extension."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HOLE_LOGIT = 0.1
OVERLAP_LOGIT = -10.0


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) -> (N, H, W), bilinear."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def suppress_overlap(logits: Tensor) -> Tensor:
    """(N, h, w) with every pixel left to the object of the highest logit; the others are at most -10 there."""
    if logits.shape[0] < 2:
        return logits
    winner = logits.argmax(dim=0, keepdim=True)
    ids = torch.arange(logits.shape[0], device=logits.device)[:, None, None]
    return torch.where(winner == ids, logits, logits.clamp(max=OVERLAP_LOGIT))


def clean_masks(logits: Tensor, max_hole_area: int, max_region_area: int) -> Tensor:
    """(N, h, w) with small holes filled, then small regions removed; areas in pixels, 0 for never."""
    if max_hole_area > 0:
        logits = _repaint_small(logits, max_hole_area, background=True)
    if max_region_area > 0:
        logits = _repaint_small(logits, max_region_area, background=False)
    return logits


def fill_holes(logits: Tensor, max_area: int) -> Tensor:
    """(N, h, w) with background regions (8-connected) of at most ``max_area`` pixels turned into weak foreground."""
    return _repaint_small(logits, max_area, background=True)


def remove_regions(logits: Tensor, max_area: int) -> Tensor:
    """(N, h, w) with foreground regions (8-connected) of at most ``max_area`` pixels turned into weak background."""
    return _repaint_small(logits, max_area, background=False)


def _repaint_small(logits: Tensor, max_area: int, *, background: bool) -> Tensor:
    if max_area <= 0 or logits.shape[0] == 0:
        return logits
    masks = ((logits <= 0) if background else (logits > 0)).cpu().numpy()
    small = np.zeros_like(masks)
    for number, mask in enumerate(masks):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        is_small = stats[:, cv2.CC_STAT_AREA] <= max_area
        is_small[0] = False  # label 0 is what lies outside the regions
        small[number] = is_small[labels]
    if not small.any():
        return logits
    value = HOLE_LOGIT if background else -HOLE_LOGIT
    return logits.masked_fill(torch.from_numpy(small).to(logits.device), value)
