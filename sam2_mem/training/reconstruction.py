"""Masked feature reconstruction: cells of the student's memory-conditioned features are hidden, and a small network that exists in
training only says from the others what the teacher's are (Yang et al. 2022, Masked Generative Distillation, arXiv 2205.01529)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeatureGenerator(nn.Module):
    """Two convolutions of 3 x 3 cells.

    Args:
        width: C, of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """(R, Q, C) -> (R, Q, C), row by row of ``grid`` (H, W) with H * W = Q."""
        return self.layers(features.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)


def hidden_share(features: Tensor, share: float) -> Tensor:
    """Features (R, Q, C) of which a random ``share`` of the cells is 0."""
    visible = torch.rand(*features.shape[:2], 1, device=features.device) >= share
    return features * visible


def reconstruction_loss(
    generator: FeatureGenerator, student: Tensor, teacher: Tensor, weights: Tensor, share: float
) -> Tensor:
    """Squared error of what ``generator`` makes of the student's features, relative to the mean square of the teacher's; a scalar.

    Args:
        generator: trained with the student.
        student: (R, Q, C) features.
        teacher: (R, Q, C).
        weights: (R, Q) of the cells.
        share: of the student's cells that are hidden.
    """
    side = round(student.shape[1] ** 0.5)
    generated = generator(hidden_share(student, share), (side, side))
    error = (generated - teacher).float().square().mean(-1)
    return ((error * weights).sum(1) / weights.sum(1)).mean() / teacher.float().square().mean()
