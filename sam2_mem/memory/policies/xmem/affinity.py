"""Similarity of image keys and reads by it (XMem, Cheng and Schwing 2022, sections 3.2 and 3.3): pure functions.

Keys are (N, C) float32; a memory has N keys, a query Q. Affinities are (N, Q): every column is a distribution over
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def unit_keys(keys: Tensor, temperature: float) -> Tensor:
    """``keys`` (N, C) as unit vectors, scaled so that :func:`similarity` of two gives (cosine - 1) /
    ``temperature``."""
    length = keys.norm(dim=1, keepdim=True).clamp(min=FLAT)
    return keys / length * sqrt(sqrt(keys.shape[1]) / (2 * temperature))


def similarity(
    memory: Tensor, query: Tensor, *, shrinkage: Tensor | None = None, selection: Tensor | None = None
) -> Tensor:
    """Anisotropic L2 similarity, never positive: -(s_i / sqrt(C)) sum_c e_cj (k_ci - q_cj)^2.

    Args:
        memory: (N, C). query: (Q, C). shrinkage: s (N), all ones if None. selection: e (Q, C), all ones if None. None
            is the same as explicit ones: no term of the square is dropped.

    Returns:
        (N, Q).
    """
    e = torch.ones_like(query) if selection is None else selection
    with torch.autocast(memory.device.type, enabled=False):
        squares = memory.square() @ e.t() - 2 * (memory @ (e * query).t()) + (e * query.square()).sum(1)
    weight = -1 / sqrt(memory.shape[1])
    return squares.clamp(min=0) * (weight if shrinkage is None else weight * shrinkage[:, None])


def top_k_softmax(scores: Tensor, k: int) -> Tensor:
    """Softmax of (N, Q) over the ``k`` largest of every column; the rest is exactly 0. The maximum is subtracted
    first, so that scores of any size are fine."""
    best, where = scores.topk(min(k, scores.shape[0]), dim=0)
    return torch.zeros_like(scores).scatter_(0, where, best.softmax(0))


def average(values: Tensor, weights: Tensor) -> Tensor:
    """``values`` (N, Cm) under every column of ``weights`` (N, Q): (Q, Cm) float32, whatever autocast says."""
    with torch.autocast(values.device.type, enabled=False):
        return weights.t().float() @ values.float()


def affinities(memory: Tensor, query: Tensor, k: int, *, chunk: int = 512) -> Iterator[Tensor]:
    """Top-``k`` affinity of ``memory`` (N, C) and ``query`` (Q, C), in pieces (N, at most ``chunk``) of the queries."""
    for part in query.split(chunk):
        yield top_k_softmax(similarity(memory, part), k)


def read_values(memory: Tensor, values: Tensor, query: Tensor, k: int) -> Tensor:
    """What every query reads from ``values`` (N, Cm): (Q, Cm) float32."""
    return torch.cat([average(values, a) for a in affinities(memory, query, k)])


def received(memory: Tensor, query: Tensor, k: int) -> Tensor:
    """Affinity that every memory key receives, summed over queries: (N). Adds up to Q."""
    return torch.stack([a.sum(1) for a in affinities(memory, query, k)]).sum(0)


def largest(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of ``values`` (N), largest first; the first of equals."""
    return values.sort(descending=True, stable=True).indices[:count]
