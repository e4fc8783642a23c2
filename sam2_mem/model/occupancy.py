"""Which stride-16 cells the object covers, said from memory-conditioned features alone: a loss in training, and a prompt
for the mask decoder in networks that are built so."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

CELL_LIMIT = 12.0
"""Of the logits that become a mask prompt."""


class OccupancyHead(nn.Module):
    """One linear map per cell."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, conditioned: Tensor, grid: tuple[int, int]) -> Tensor:
        """(R, Q, C) -> logits (R, H, W)."""
        return self.linear(conditioned)[..., 0].unflatten(-1, grid)

    def mask_prompt(self, conditioned: Tensor, grid: tuple[int, int]) -> Tensor:
        """(R, Q, C) -> logits (R, 1, 4H, 4W) for the prompt encoder."""
        logits = self(conditioned, grid).clamp(-CELL_LIMIT, CELL_LIMIT)
        return F.interpolate(logits.unsqueeze(1), scale_factor=4.0, mode="bilinear", align_corners=False)
