"""Simulated users for many objects at once, without waiting for the device: boxes, clicks, corrections; and the losses of
the network's answers on single frames.

A first click lies well inside the object, a correction in the error of the answer before, preferably where much of it is
(the region sampling of SAM, Kirillov et al. 2023, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.mask_decoder import DecodedMasks
from sam2_mem.model.sam2 import MASK_STRIDE, SAM2
from sam2_mem.training.losses import LossSettings, LossTerms, Prediction, frame_loss
from sam2_mem.types import FrameFeatures

HINT_LIMIT = 32.0
BOX_CORNERS = (2, 3)


@dataclass(frozen=True, kw_only=True)
class DrawnPrompts:
    """Prompts on single frames, without memory.

    Attributes:
        weight: of their losses beside those of tracking; 0: no prompts.
        box: share of batches that get boxes, the others get clicks.
        box_noise: largest shift of box corners, in parts of the box's sides.
        rounds: answers in a row at most, all but the first of them corrections; the number is drawn.
        alternatives: weight of the losses of the alternative masks in answer to a first prompt, beside those of the single
            mask.
        min_area: least share of a frame that a prompted object covers.
        losses: their weights.
    """

    weight: float = 1.0
    box: float = 0.4
    box_noise: float = 0.08
    rounds: int = 3
    alternatives: float = 0.5
    min_area: float = 0.004
    losses: LossSettings = LossSettings()

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 <= self.box <= 1:
            raise ValueError(f"expected rounds >= 1 and a share box in 0..1, got {self.rounds} and {self.box}")


def draw_points(weight: Tensor) -> Tensor:
    """A cell of each row, drawn in proportion to ``weight`` (R, h, w) >= 0, positive somewhere: (R, 1, 2) as x, y."""
    flat = weight.flatten(1)
    noise = -torch.log(-torch.log(torch.rand_like(flat).clamp(1e-9, 1 - 1e-7)))
    chosen = (flat.clamp(min=1e-30).log() + noise).argmax(1)
    width = weight.shape[-1]
    return torch.stack([chosen % width, chosen // width], 1).unsqueeze(1).float()


def draw_visible_frames(truth: Tensor, min_area: float) -> Tensor:
    """(N, T, S, S) -> (N) a random frame on which each object covers at least ``min_area``; the first where none does."""
    weight = (truth.flatten(2).mean(2) >= min_area).float()
    weight[:, 0] += 1e-6
    return draw_points(weight.unsqueeze(1))[:, 0, 0].long()


def inner_weight(region: Tensor) -> Tensor:
    """(R, h, w) of 0..1 -> weights that fall towards the border of the region, whatever its size."""
    area = region.flatten(1).sum(1)
    depth, grown = region.clone(), region
    for kernel in (3, 5, 9, 17, 33):
        grown = _box_mean(grown, kernel)
        reach = (area > kernel * kernel).float()[:, None, None]
        depth = depth * (reach * grown + (1 - reach))
    return depth * region


def _box_mean(maps: Tensor, kernel: int) -> Tensor:
    """Mean over a square, with zeros beyond the border: over columns, then over rows."""
    columns = F.avg_pool2d(maps.unsqueeze(1), (kernel, 1), 1, (kernel // 2, 0))
    return F.avg_pool2d(columns, (1, kernel), 1, (0, kernel // 2))[:, 0]


def first_points(truth: Tensor) -> tuple[Tensor, Tensor]:
    """A click within each object (R, S, S): points (R, 1, 2) in pixels and labels (R, 1)."""
    region = F.avg_pool2d(truth.unsqueeze(1), MASK_STRIDE)[:, 0]
    points = draw_points(inner_weight(region))
    return (points + 0.5) * MASK_STRIDE, torch.ones(points.shape[:2], dtype=torch.long, device=truth.device)


def error_points(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """A click on the error of each mask (R, h, w) against ``truth`` (R, S, S), on the object where there is none: points
    (R, 1, 2) in pixels, labels (R, 1)."""
    real = F.avg_pool2d(truth.unsqueeze(1), truth.shape[-1] // logits.shape[-1])[:, 0] > 0.5
    wrong = (real != (logits > 0)).float()
    points = draw_points(inner_weight(wrong) + 1e-6 * wrong + 1e-12 * real.float() + 1e-20)
    cells = points[:, 0].long()
    rows = torch.arange(len(cells), device=cells.device)
    labels = real[rows, cells[:, 1], cells[:, 0]].long().unsqueeze(1)
    return (points + 0.5) * (truth.shape[-1] / logits.shape[-1]), labels


def boxes(truth: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """The bounding box of each object (R, S, S), its corners moved: points (R, 2, 2) in pixels, labels (R, 2)."""
    corners = []
    for axis in (1, 2):  # over rows for x, over columns for y
        covered = truth.amax(axis) > 0.5
        places = torch.arange(covered.shape[1], device=truth.device, dtype=torch.float32)
        first = torch.where(covered, places, torch.inf).amin(1)
        last = torch.where(covered, places + 1, -torch.inf).amax(1)
        corners.append(torch.stack([first, last], 1))
    points = torch.stack(corners, 2).nan_to_num(0.0, 0.0, 0.0)
    sides = points[:, 1:] - points[:, :1]
    points = (points + noise * sides * (2 * torch.rand_like(points) - 1)).clamp(0, truth.shape[-1])
    labels = to_device_async(list(BOX_CORNERS), truth.device, torch.long)
    return points, labels.expand(len(points), -1)


def answer(
    model: SAM2, features: FrameFeatures, points: Tensor, labels: Tensor, hint: Tensor | None = None
) -> DecodedMasks:
    """All masks for prompts of R rows on frames without memory; ``features`` have R rows, ``hint`` (R, 1, h, w)."""
    conditioned = features.low + model.no_mem_embed[0]
    sparse, dense = model.sam_prompt_encoder(points, labels, hint)
    return model.sam_mask_decoder.propose(
        image=conditioned.transpose(1, 2).unflatten(-1, features.grid),
        image_pe=model.sam_prompt_encoder.dense_position().to(conditioned.dtype),
        sparse=sparse,
        dense=dense,
        high_res=features.high,
    )


def prompt_losses(
    model: SAM2, features: FrameFeatures, truth: Tensor, settings: DrawnPrompts, rng: np.random.Generator
) -> tuple[LossTerms, Tensor]:
    """Prompts on R objects (R, S, S) and corrections, with the losses of the answers.

    Returns:
        the mean losses of all answers.
        IoU (R) of the first answers.
    """
    points, labels = boxes(truth, settings.box_noise) if rng.random() < settings.box else first_points(truth)
    hint, terms, weights = None, [], []
    first_iou = truth.new_zeros(len(truth))
    for number in range(1 + int(rng.integers(settings.rounds))):
        masks = answer(model, features, points, labels, hint)
        alternatives = settings.alternatives if number == 0 else 0.0
        for part, weight in ((slice(1), 1.0), (slice(1, None), alternatives)):
            if not weight:
                continue
            prediction = Prediction(masks.masks[:, part].float(), masks.iou[:, part], masks.object_logit.flatten())
            terms.append(frame_loss(prediction, truth, settings.losses))
            weights.append(weight)
        logits = masks.masks[:, 0].detach().float()
        if number == 0:
            first_iou = mask_iou(logits, truth)
        more_points, more_labels = error_points(logits, truth)
        points, labels = torch.cat([points, more_points], 1), torch.cat([labels, more_labels], 1)
        hint = logits.clamp(-HINT_LIMIT, HINT_LIMIT).unsqueeze(1)
    total = sum(weights)
    return LossTerms(*(sum(w * v for w, v in zip(weights, values)) / total for values in zip(*terms))), first_iou


def mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Of masks (R, h, w) with ``truth`` (R, S, S) at their size: (R); 0 where both are empty."""
    real = F.avg_pool2d(truth.unsqueeze(1), truth.shape[-1] // logits.shape[-1])[:, 0] > 0.5
    predicted = logits > 0
    return (predicted & real).sum((1, 2)) / (predicted | real).sum((1, 2)).clamp(min=1)
