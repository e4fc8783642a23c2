"""Wrong masks on purpose, which training puts into memory in place of the network's own.

In feedback a small error is written to memory and read again. Training with disturbed memory teaches the network to
recover; training with true masks in memory lets it learn to read before it can draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CERTAIN = 8.0


@dataclass(frozen=True, kw_only=True)
class MemoryNoise:
    """Probabilities per object and frame.

    Attributes:
        truth: that the true mask enters memory.
        disturbed: that the mask that enters is eroded, dilated, shifted or partly dropped; in a ``JointRollout`` also joined with
            a rectangle beside it, or moved far away, as if it had been mistaken.
        reach: the largest disturbance, in parts of the image side.
    """

    truth: float = 0.0
    disturbed: float = 0.0
    reach: float = 0.06

    def __post_init__(self) -> None:
        if not (0 <= self.truth <= 1 and 0 <= self.disturbed <= 1):
            raise ValueError(f"expected probabilities in 0..1, got {self.truth} and {self.disturbed}")


class MaskNoise:
    """A change of memory masks for one batch of clips.

    Args:
        truth: (N, T, S, S) of all objects.
        settings: which changes, how often.
        rngs: one generator per object.
    """

    def __init__(self, truth: Tensor, settings: MemoryNoise, rngs: Sequence[np.random.Generator]) -> None:
        self._truth = truth
        self._settings = settings
        self._rngs = rngs

    def __call__(self, frame: int, logits: Tensor, obj_ids: Sequence[int]) -> Tensor:
        """(N, h, w) logits -> (N, h, w)."""
        result = []
        for mask, obj_id in zip(logits, obj_ids):
            rng = self._rngs[obj_id]
            if rng.random() < self._settings.truth:
                mask = true_logits(self._truth[obj_id, frame], tuple(mask.shape))
            if rng.random() < self._settings.disturbed:
                mask = disturb(rng, mask, self._settings.reach)
            result.append(mask)
        return torch.stack(result)


def true_logits(truth: Tensor, size: tuple[int, int]) -> Tensor:
    """(S, S) of 0 and 1 -> confident logits (h, w)."""
    share = F.adaptive_avg_pool2d(truth[None, None].float(), size)[0, 0]
    return (2 * share - 1) * CERTAIN


def disturb(rng: np.random.Generator, logits: Tensor, reach: float) -> Tensor:
    """One of: eroded, dilated, shifted, a rectangle dropped. Keeps the gradient of what remains; (h, w) -> (h, w)."""
    side = max(1, round(rng.uniform(0, reach) * logits.shape[-1]))
    kind = int(rng.integers(4))
    if kind < 2:
        sign = 1.0 if kind else -1.0
        return sign * F.max_pool2d(sign * logits[None, None], 2 * side + 1, 1, side)[0, 0]
    if kind == 2:
        return _shifted(logits, *(int(v) for v in rng.integers(-side, side + 1, 2)))
    return _dropped(rng, logits)


def _shifted(logits: Tensor, down: int, right: int) -> Tensor:
    """Moved; what comes in at the border is background."""
    low = min(float(logits.detach().min()), -CERTAIN)
    pad = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
    grown = F.pad(logits, pad, value=low)
    height, width = logits.shape
    y, x = max(-down, 0), max(-right, 0)
    return grown[y : y + height, x : x + width]


def _dropped(rng: np.random.Generator, logits: Tensor) -> Tensor:
    """A rectangle of up to half of the mask's box becomes background."""
    x, y, width, height = cv2.boundingRect((logits.detach() > 0).to(torch.uint8).cpu().numpy())
    if width == 0:
        return logits
    keep = torch.ones_like(logits, dtype=torch.bool)
    w, h = (max(1, int(side * rng.uniform(0.2, 0.7))) for side in (width, height))
    x, y = x + int(rng.integers(0, width - w + 1)), y + int(rng.integers(0, height - h + 1))
    keep[y : y + h, x : x + w] = False
    return torch.where(keep, logits, torch.full_like(logits, -CERTAIN))
