"""Memory encoder: image features and a mask become the memory of a frame (SAM 2, section 4, "memory encoder")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sam2_mem.model.acceleration.onednn_linear import Linear
from sam2_mem.model.distiller import GridTokens, TokenDistiller
from sam2_mem.model.layers import LayerNorm2d


class MaskDownsampler(nn.Module):
    """Strided convolutions from a mask at image size to the stride-16 grid; channels grow with the area lost."""

    def __init__(self, *, width: int, total_stride: int = 16, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        steps = round(math.log(total_stride, stride))
        if stride**steps != total_stride:
            raise ValueError(f"expected a total stride that is a power of {stride}, got {total_stride}")
        layers: list[nn.Module] = []
        channels = 1
        for _ in range(steps):
            out_channels = channels * stride**2
            layers += [
                nn.Conv2d(channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2),
                LayerNorm2d(out_channels),
                nn.GELU(),
            ]
            channels = out_channels
        layers.append(nn.Conv2d(channels, width, kernel_size=1))
        self.encoder = nn.Sequential(*layers)

    def forward(self, mask: Tensor) -> Tensor:
        """(R, 1, S, S) -> (R, width, S/16, S/16)."""
        return self.encoder(mask)


class ConvNextBlock(nn.Module):
    """Depth-wise 7x7, normalise, widen four times, shrink, scale per channel, add (Liu et al. 2022)."""

    def __init__(self, *, width: int, kernel_size: int = 7, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = Linear(width, 4 * width)
        self.pwconv2 = Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), float(layer_scale)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x)).movedim(1, -1)
        y = self.gamma * self.pwconv2(self.pwconv1(y, "gelu"))
        return x + y.movedim(-1, 1)


class Fuser(nn.Module):
    """A few ConvNeXt blocks."""

    def __init__(self, *, width: int, num_layers: int = 2, kernel_size: int = 7, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConvNextBlock(width=width, kernel_size=kernel_size, layer_scale=layer_scale) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """Image features + mask -> memory map.

    Args:
        width: C of the image features.
        memory_width: Cm of the memory.
        fuser_layers: number of ConvNeXt blocks.
        layer_scale: initial scale of their residual branches.
        distiller: what the tokens of one frame are; the grid itself by default.
    """

    def __init__(
        self,
        *,
        width: int = 256,
        memory_width: int = 64,
        fuser_layers: int = 2,
        layer_scale: float = 1e-6,
        distiller: TokenDistiller | None = None,
    ) -> None:
        super().__init__()
        self.memory_width = memory_width
        self.mask_downsampler = MaskDownsampler(width=width)
        self.pix_feat_proj = nn.Conv2d(width, width, kernel_size=1)
        self.fuser = Fuser(width=width, num_layers=fuser_layers, layer_scale=layer_scale)
        self.out_proj = nn.Identity() if memory_width == width else nn.Conv2d(width, memory_width, kernel_size=1)
        self.distiller = GridTokens() if distiller is None else distiller

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """``image`` (1 or R, C, H, W) features, ``mask`` (R, 1, 16H, 16W) already scaled -> (R, Cm, H, W)."""
        x = self.pix_feat_proj(image) + self.mask_downsampler(mask)
        return self.out_proj(self.fuser(x))
