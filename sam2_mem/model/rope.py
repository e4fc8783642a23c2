"""Rotary position encoding with one coordinate pair per token (axial RoPE; Su et al. 2021, Heo et al. 2024).

SAM 2 rotates keys by the cell of a fixed grid. Here every token carries its own (x, y), so that entries of any length,
pooled cells and prototypes keep the place they came from. Half of the channel pairs turn with x, half with y. The pair
(0, 0) turns nothing: a token without coordinates is a token at cell (0, 0).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of every channel pair of every token, each (..., N, dim / 2), float32."""

    cos: Tensor
    sin: Tensor


def grid_coordinates(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """Cells of a grid in raster order, (height * width, 2) as x, y."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).float()


def rotation(xy: Tensor, dim: int, *, theta: float = 10000.0) -> Rotation:
    """Rotation of tokens at ``xy`` (..., N, 2) for features of ``dim`` channels (a multiple of 4)."""
    if dim % 4:
        raise ValueError(f"expected a width that is a multiple of 4 for rotary encoding, got {dim}")
    exponent = torch.arange(0, dim, 4, device=xy.device).float() / dim
    frequency = 1.0 / (theta**exponent)
    angle = (xy.float().unsqueeze(-1) * frequency).flatten(-2)
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """Turn neighbouring channel pairs of ``x`` (..., N, dim); computed in float32, returned in the dtype of ``x``."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * by.cos - odd * by.sin, even * by.sin + odd * by.cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
