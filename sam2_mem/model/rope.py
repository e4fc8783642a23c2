"""Rotary position encoding with one coordinate pair per token (axial RoPE; Su et al. 2021, Heo et al. 2024).

SAM 2 rotates keys by the cell of a fixed grid. Here every token carries its own (x, y), so that entries of any length,
pooled cells and prototypes keep the coordinates they came from. Half of the channel pairs turn with x, half with y. The pair
(0, 0) turns nothing: a token without coordinates is a token at cell (0, 0). Nor does a pair of NaN, a token that has no
place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_mem._moved import renamed


class Rotation(NamedTuple):
    """How every channel pair of every token turns, (..., N, dim / 2).

    Attributes:
        cos: float32.
        sin: float32.
        polar: the same as complex numbers, which eager kernels multiply in one pass; None where a compiler, which cannot
            fuse complex numbers, writes the kernel.
    """

    cos: Tensor
    sin: Tensor
    polar: Tensor | None = None

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor) -> Rotation:
        """From cosines and sines; factors below one, as a mean of rotations has, are fine."""
        return cls(cos, sin, None if torch.compiler.is_compiling() else torch.complex(cos, sin))

    def map(self, change: Callable[[Tensor], Tensor]) -> Rotation:
        """The same change of shape, order or row for all parts."""
        return Rotation(change(self.cos), change(self.sin), None if self.polar is None else change(self.polar))


def grid_coordinates(height: int, width: int, *, device: torch.device | str | None = None) -> Tensor:
    """Cells of a grid in raster order, (height * width, 2) as x, y."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).float()


def rotation_at(xy: Tensor, dim: int, *, theta: float = 10000.0) -> Rotation:
    """Rotation of tokens at ``xy`` (..., N, 2) for features of ``dim`` channels (a multiple of 4)."""
    if dim % 4:
        raise ValueError(f"expected a width that is a multiple of 4 for rotary encoding, got {dim}")
    exponent = torch.arange(0, dim, 4, device=xy.device).float() / dim
    frequency = 1.0 / (theta**exponent)
    angle = (xy.float().nan_to_num().unsqueeze(-1) * frequency).flatten(-2)
    return Rotation.of(angle.cos(), angle.sin())


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring channel pairs of ``x`` (..., N, dim); computed in float32, returned in the dtype of ``x``."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if rotation.polar is not None:
        return torch.view_as_real(torch.view_as_complex(pairs) * rotation.polar).flatten(-2).to(x.dtype)
    even, odd = pairs.unbind(-1)
    rotated = torch.stack([even * rotation.cos - odd * rotation.sin, even * rotation.sin + odd * rotation.cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


__getattr__ = renamed(__name__)
