"""Mask logits after the network: size, holes, small regions, overlap. The same on every device, no compiled extension.

Small regions are OpenCV's on a CPU. On another device they are found there, without a wait of the host.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

HOLE_LOGIT = 0.1
OVERLAP_LOGIT = -10.0
DEVICE_AREA = 64
"""Regions of more pixels than this are found on the host: on the device every pixel is a step."""


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


def repaint_around(
    logits: Tensor, max_hole_area: float, max_region_area: float, threshold: float, margin: float
) -> Tensor:
    """(N, h, w) with small holes at ``threshold + margin`` and small regions at ``threshold - margin``, both of the masks as
    they come; areas in pixels, 0 for never. The rule of SAM 2's image predictor."""
    holes, regions = logits <= threshold, logits > threshold
    if max_hole_area >= 1:
        logits = logits.masked_fill(_small_parts(holes, int(max_hole_area)), threshold + margin)
    if max_region_area >= 1:
        logits = logits.masked_fill(_small_parts(regions, int(max_region_area)), threshold - margin)
    return logits


def _repaint_small(logits: Tensor, max_area: int, *, background: bool) -> Tensor:
    if max_area <= 0 or logits.shape[0] == 0:
        return logits
    value = HOLE_LOGIT if background else -HOLE_LOGIT
    return logits.masked_fill(_small_parts((logits <= 0) if background else (logits > 0), max_area), value)


def _small_parts(region: Tensor, max_area: int) -> Tensor:
    """``small_regions``, by OpenCV on a CPU and for large areas."""
    if region.device.type != "cpu" and max_area <= DEVICE_AREA:
        return small_regions(region, max_area)
    masks = region.cpu().numpy()
    small = np.zeros_like(masks)
    for number, mask in enumerate(masks):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        is_small = stats[:, cv2.CC_STAT_AREA] <= max_area
        is_small[0] = False  # label 0 is what lies outside the regions
        small[number] = is_small[labels]
    return torch.from_numpy(small).to(region.device)


def small_regions(region: Tensor, max_area: int) -> Tensor:
    """Pixels of (N, h, w) bool in 8-connected regions of at most ``max_area`` pixels, bool of that shape.

    Every pixel takes the lowest number among its neighbours ``max_area`` - 1 times. A region that small then has one
    number throughout; a larger one either has parts of different numbers that touch, or is counted whole.
    """
    count, height, width = region.shape
    outside = float(height * width)
    number = torch.arange(height * width, device=region.device, dtype=torch.float32).view(1, height, width)
    label = torch.where(region, number, outside)
    for _ in range(max_area - 1):
        label = torch.where(region, -F.max_pool2d(-label, 3, 1, 1), outside)
    lowest = -F.max_pool2d(-label, 3, 1, 1)
    highest = F.max_pool2d(torch.where(region, label, -1.0), 3, 1, 1)
    touches = region & ((lowest != label) | (highest != label))
    index = label.long().flatten(1)
    zeros = torch.zeros(count, height * width + 1, device=region.device)
    pixels = zeros.scatter_add(1, index, region.flatten(1).float())
    touching = zeros.scatter_add(1, index, touches.flatten(1).float())
    small = (pixels <= max_area) & (touching == 0)
    return small.gather(1, index).view_as(region) & region
