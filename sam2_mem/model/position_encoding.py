"""Position encodings: fixed sine codes and the random Fourier code of prompts.

The sine codes are pure functions; who needs one often keeps the result.
"""

import math

import torch
from torch import Tensor, nn


def sine_position_map(
    height: int,
    width: int,
    channels: int,
    *,
    temperature: float = 10000.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Sine code of every cell of a grid, (channels, height, width).

    Cells count from 1 and are scaled so that the last row or column is at (almost) 2 pi. The first half of the
    channels codes y, the second half x; inside a half sine and cosine alternate. Computed in float32.
    """
    if channels % 4:
        raise ValueError(f"expected channels to be a multiple of 4, got {channels}; choose a width such as 64 or 256")
    code_y = _axis_code(height, channels // 2, temperature, device)[:, None].expand(-1, width, -1)
    code_x = _axis_code(width, channels // 2, temperature, device)[None].expand(height, -1, -1)
    return torch.cat((code_y, code_x), dim=-1).permute(2, 0, 1).to(dtype).contiguous()


def sine_1d(positions: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sine code of scalar positions, (N,) -> (N, dim): dim/2 sines, then dim/2 cosines, each frequency twice."""
    if dim % 4:
        raise ValueError(f"expected dim to be a multiple of 4, got {dim}; choose a width such as 64 or 256")
    periods = _periods(dim // 4, temperature, positions.device).repeat_interleave(2)
    angles = positions[..., None] / periods
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _periods(count: int, temperature: float, device: torch.device | str | None) -> Tensor:
    """`count` geometric periods from 1 towards `temperature`, (count,)."""
    return temperature ** (2 * torch.arange(count, dtype=torch.float32, device=device) / (2 * count))


def _axis_code(length: int, dim: int, temperature: float, device: torch.device | str | None) -> Tensor:
    """Alternating sine and cosine code of 1..length scaled to 2 pi, (length, dim)."""
    cells = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    scaled = cells / (length + 1e-6) * (2 * math.pi)  # the checkpoints were trained with this epsilon
    angles = scaled[:, None] / _periods(dim // 2, temperature, device)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class RandomFourierPosition(nn.Module):
    """Code of points in the unit square: sines and cosines of random projections, stored with the weights."""

    def __init__(self, *, channels: int, scale: float = 1.0) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"expected an even number of channels, got {channels}; half are sines, half cosines")
        self.positional_encoding_gaussian_matrix: Tensor
        self.register_buffer("positional_encoding_gaussian_matrix", scale * torch.randn(2, channels // 2))

    def forward(self, xy: Tensor) -> Tensor:
        """Coordinates in [0, 1], (..., 2) as (x, y) -> (..., channels)."""
        angles = (2 * xy - 1) @ self.positional_encoding_gaussian_matrix * (2 * math.pi)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def grid(self, height: int, width: int) -> Tensor:
        """Code of the cell centres of a grid, (channels, height, width)."""
        matrix = self.positional_encoding_gaussian_matrix
        y = (torch.arange(height, device=matrix.device, dtype=matrix.dtype) + 0.5) / height
        x = (torch.arange(width, device=matrix.device, dtype=matrix.dtype) + 0.5) / width
        centres = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1)
        return self(centres).permute(2, 0, 1)
