"""Similarity of image keys (XMem, Cheng and Schwing 2022, sections 3.2 and 3.3): pure functions.

Keys are (N, C) float32; a memory has N keys, a query Q. Weights are (N, Q): every column is a distribution over memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

FLAT = 1e-6
"""A channel whose standard deviation over a frame is below this says nothing."""


@dataclass(frozen=True, eq=False)
class KeySpace:
    """Standardisation of image features: ``mean`` (C), ``scale`` (C) one over the standard deviation, 0 for flat
    channels."""

    mean: Tensor
    scale: Tensor

    @staticmethod
    def of(features: Tensor) -> KeySpace:
        """Statistics of the cells of one frame, ``features`` (Q, C)."""
        cells = features.detach().float()
        deviation = cells.std(0, unbiased=False)
        scale = torch.where(deviation > FLAT, 1 / deviation.clamp(min=FLAT), 0.0)
        return KeySpace(cells.mean(0), scale)

    def apply(self, features: Tensor) -> Tensor:
        """(N, C) of any float type -> (N, C) float32."""
        return (features.float() - self.mean.to(features.device)) * self.scale.to(features.device)


def similarity(
    memory: Tensor, query: Tensor, *, shrinkage: Tensor | None = None, selection: Tensor | None = None
) -> Tensor:
    """Anisotropic L2 similarity, never positive: -(s_i / sqrt(C)) sum_c e_cj (k_ci - q_cj)^2.

    None is the same as explicit ones: no term of the square is dropped.

    Args:
        memory: (N, C) keys k.
        query: (Q, C) keys q.
        shrinkage: (N) s, all ones if None.
        selection: (Q, C) e, all ones if None.

    Returns:
        (N, Q).
    """
    e = torch.ones_like(query) if selection is None else selection
    with torch.autocast(memory.device.type, enabled=False):
        squares = memory.square() @ e.t() - 2 * (memory @ (e * query).t()) + (e * query.square()).sum(1)
    weight = -1 / sqrt(memory.shape[1])
    return squares.clamp(min=0) * (weight if shrinkage is None else weight * shrinkage[:, None])


def average(values: Tensor, weights: Tensor) -> Tensor:
    """``values`` (N, Cm) under every column of ``weights`` (N, Q): (Q, Cm) float32, whatever autocast says."""
    with torch.autocast(values.device.type, enabled=False):
        return weights.t().float() @ values.float()


def largest(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of ``values`` (N), largest first; the first of equals."""
    return values.sort(descending=True, stable=True).indices[:count]
