"""Tensors that depend on sizes only, made once per size and device and shared by every model, entry and thread.

They are made outside inference mode and without gradient, so that tracking and training can use the same ones, and they
must never be written to.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sam2_mem.model.position_encoding import sine_position_map
from sam2_mem.model.rope import grid_coordinates


@lru_cache(maxsize=32)
def sine_map(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sine positions of a grid, (channels, height, width) float32."""
    with torch.inference_mode(False), torch.no_grad():
        return sine_position_map(height, width, channels, device=device, dtype=torch.float32)


@lru_cache(maxsize=32)
def sine_tokens(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """The same as tokens, (height * width, channels)."""
    with torch.inference_mode(False), torch.no_grad():
        return sine_map(height, width, channels, device).flatten(1).t().contiguous()


@lru_cache(maxsize=32)
def grid_xy(height: int, width: int, device: torch.device) -> Tensor:
    """Cells of a grid in raster order, (height * width, 2) as x, y."""
    with torch.inference_mode(False), torch.no_grad():
        return grid_coordinates(height, width, device=device)
