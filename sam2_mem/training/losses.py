"""SAM 2's losses: focal and dice on masks, L1 on predicted IoU, cross-entropy on the object score.

Ravi et al. 2024, appendix D.2.2: of the candidates of one object only the best gets the mask losses; absent objects
get none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from sam2_mem._moved import renamed


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Weights of the losses, by default those of SAM 2.

    Attributes:
        focal: weight of the focal loss.
        dice: of the dice loss.
        iou: of the L1 of the predicted IoU.
        objectness: of the cross-entropy of the object score.
        occupancy: of the training-only head that predicts stride-16 occupancy from the memory-conditioned features (not
            in SAM 2).
        focal_alpha: of the focal loss.
        focal_gamma: of the focal loss.
        all_iou: the predicted IoU of every candidate is supervised, not that of the best alone.
        stride: input pixels per pixel of the mask losses; 1 as in SAM 2, 4 at the resolution of the logits.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    objectness: float = 1.0
    occupancy: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    all_iou: bool = True
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride not in (1, 2, 4):
            raise ValueError(f"expected a loss stride of 1, 2 or 4, got {self.stride}")
        negative = [f.name for f in fields(self) if getattr(self, f.name) < 0]
        if negative:
            raise ValueError(f"expected loss weights >= 0, got {negative} below; use 0 to leave one out")


class LossTerms(NamedTuple):
    """Unweighted losses, each a scalar: means over the objects and frames they apply to."""

    focal: Tensor
    dice: Tensor
    iou: Tensor
    objectness: Tensor
    occupancy: Tensor

    def weighted(self, settings: LossSettings) -> Tensor:
        return sum(getattr(settings, name) * value for name, value in self._asdict().items())


def focal_loss(logits: Tensor, truth: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al. 2017), mean over pixels: (..., h, w), truth in [0, 1] -> (...)."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    miss = probability + truth - 2 * probability * truth
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    return (balance * miss**gamma * entropy).mean((-2, -1))


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - soft Dice with one pixel added to both parts: (..., h, w) -> (...)."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * truth).sum((-2, -1))
    return 1 - (overlap + 1) / (probability.sum((-2, -1)) + truth.sum((-2, -1)) + 1)


def true_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of the thresholded masks, (..., h, w) -> (...); 0 where both are empty."""
    predicted, real = logits > 0, truth > 0.5
    union = (predicted | real).sum((-2, -1))
    return (predicted & real).sum((-2, -1)) / union.clamp(min=1)


class Prediction(NamedTuple):
    """Predictions for R objects on one frame: ``masks`` (R, M, h, w) logits, ``iou`` (R, M), ``objectness`` (R) logits and
    ``occupancy`` (R, H, W) logits of the training-only head, or None."""

    masks: Tensor
    iou: Tensor
    objectness: Tensor
    occupancy: Tensor | None = None


def frame_loss(prediction: Prediction, truth: Tensor, settings: LossSettings) -> LossTerms:
    """Losses of R objects on one frame against ``truth`` (R, S, S) of 0 and 1."""
    present = truth.flatten(1).amax(1) > 0
    target = shrink(truth, settings.stride)
    masks = enlarge(prediction.masks, target.shape[-2:])
    shared = target.unsqueeze(1).expand_as(masks)
    focal = focal_loss(masks, shared, alpha=settings.focal_alpha, gamma=settings.focal_gamma)
    dice = dice_loss(masks, shared)
    best = (settings.focal * focal + settings.dice * dice).argmin(1, keepdim=True)
    iou_error = (prediction.iou - true_iou(masks.detach(), shared)).abs()
    iou_error = iou_error.mean(1) if settings.all_iou else iou_error.gather(1, best)[:, 0]
    return LossTerms(
        focal=mean_where(focal.gather(1, best)[:, 0], present),
        dice=mean_where(dice.gather(1, best)[:, 0], present),
        iou=mean_where(iou_error, present),
        objectness=F.binary_cross_entropy_with_logits(prediction.objectness, present.to(prediction.objectness.dtype)),
        occupancy=_occupancy(prediction.occupancy, truth),
    )


def shrink(truth: Tensor, stride: int) -> Tensor:
    """(R, S, S) -> (R, S/stride, S/stride): the covered share of every pixel."""
    return truth if stride == 1 else F.avg_pool2d(truth.unsqueeze(1), stride).squeeze(1)


def enlarge(masks: Tensor, size: tuple[int, ...]) -> Tensor:
    """(R, M, h, w) -> (R, M, *size), bilinear, float32."""
    masks = masks.float()
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)


def mean_where(values: Tensor, condition: Tensor) -> Tensor:
    """Mean of ``values`` (R) where ``condition`` (R); 0 if nowhere."""
    weight = condition.to(values.dtype)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _occupancy(logits: Tensor | None, truth: Tensor) -> Tensor:
    """Cross-entropy with the share of every stride-16 cell that the object covers."""
    if logits is None:
        return truth.new_zeros(())
    share = F.adaptive_avg_pool2d(truth.unsqueeze(1), (logits.shape[-2], logits.shape[-1])).squeeze(1)
    return F.binary_cross_entropy_with_logits(logits.float(), share)


__getattr__ = renamed(__name__)
