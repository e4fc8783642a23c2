"""The attention distiller of one frame: latents on a grid of windows, and global ones (compare EdgeTAM's 2D perceiver,
Zhou et al. 2025, arXiv 2501.07256)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from sam2_mem.model.cached_positions import sine_tokens
from sam2_mem.model.distiller.base import TokenDistiller, as_tokens
from sam2_mem.model.distiller.parts import Refinement, WindowAttention, scale_gradient
from sam2_mem.model.distiller.windows import WindowGeometry, grid_geometry, grid_layout
from sam2_mem.types import MemoryTokens


class SpatialDistiller(TokenDistiller):
    """Latent queries attend to the tokens of one frame. Untrained, it is ``PooledTokens`` of the same factor.

    Every window of ``factor`` x ``factor`` cells has one latent, which lies in the window's centre. Global latents, if
    any, attend to the whole map and lie in the centre of the frame: memory attention of official checkpoints rotates
    every spatial key, and one without coordinates would pass for the cell in the top left corner.

    Args:
        memory_width: Cm.
        factor: side of a window in cells.
        key_width: of the latents' attention, per head.
        num_heads: of the latents' attention; a divisor of Cm.
        hidden: width of the network that refines summaries.
        global_latents: number of latents that attend to the whole map.
        global_share: share of the frame's tokens that a global latent stands for before training; what attention all of
            them draw is at most about ``global_latents * global_share``, so next to nothing.
    """

    def __init__(
        self,
        *,
        memory_width: int = 64,
        factor: int = 4,
        key_width: int = 16,
        num_heads: int = 4,
        hidden: int = 128,
        global_latents: int = 0,
        global_share: float = 1e-6,
    ) -> None:
        super().__init__(factor=factor)
        if global_latents < 0:
            raise ValueError(f"expected global_latents >= 0, got {global_latents}")
        self.attention = WindowAttention(width=memory_width, features=2, key_width=key_width, num_heads=num_heads)
        self.refinement = Refinement(width=memory_width, hidden=hidden, num_heads=num_heads)
        self.globals = None
        if global_latents:
            self.globals = GlobalLatents(
                width=memory_width, count=global_latents, key_width=key_width, share=global_share
            )

    @property
    def trained_as(self) -> str:
        return f"spatial{self.factor}" if self.globals is None else f"spatial{self.factor}_global{self.globals.count}"

    def tokens_per_map(self, grid: tuple[int, int]) -> int:
        return super().tokens_per_map(grid) + (0 if self.globals is None else self.globals.count)

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        _, channels, height, width = maps.shape
        windows = grid_layout(height, width, self.factor, maps.device)
        geometry = grid_geometry(height, width, channels, self.factor, maps.device)
        tokens = as_tokens(maps)
        pooled = self.attention(windows.gather(tokens), windows.padding, windows.offset)
        feat, correction = self.refinement(pooled, geometry.pos)
        log_count = geometry.log_count + correction
        if self.globals is not None:
            pos = sine_tokens(height, width, channels, maps.device)
            global_feat, global_count = self.globals(tokens, pos)
            feat = torch.cat([feat, global_feat], dim=1)
            log_count = torch.cat([log_count, global_count.expand(len(maps), -1)], dim=1)
            geometry = _with_globals(height, width, channels, self.factor, self.globals.count, maps.device)
        return [MemoryTokens(f, geometry.pos, geometry.xy, n.clone()) for f, n in zip(feat, log_count)]


class GlobalLatents(nn.Module):
    """Latents that attend to a whole map.

    They start with hardly any weight in memory attention, and their gradients are multiplied by as much as that weight
    is small: they do not disturb an untrained distiller, and they learn.

    Args:
        width: Cm.
        count: number of latents.
        key_width: of their attention.
        share: of the tokens of a frame that each stands for at first.
    """

    scale = 10.0
    """Learning the logarithm of the share goes that much faster than other parameters."""

    def __init__(self, *, width: int, count: int, key_width: int, share: float) -> None:
        super().__init__()
        if not 0.0 < share <= 1.0:
            raise ValueError(f"expected global_share above 0 and at most 1, got {share}")
        self.count = count
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(count, key_width))
        self.key = nn.Linear(width, key_width, bias=False)
        self.log_share = nn.Parameter(torch.full((count,), math.log(share) / self.scale))

    def forward(self, tokens: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """``tokens`` (R, Q, Cm), ``pos`` (Q, Cm) -> (R, count, Cm), and their log-counts (count) float32."""
        key = self.key(self.norm(tokens + pos.to(tokens.dtype)))
        weights = (self.query @ key.transpose(1, 2) * key.shape[-1] ** -0.5).softmax(-1)
        log_share = self.log_share.float() * self.scale
        inverse_share = (-log_share).exp()
        feat = scale_gradient(weights @ tokens, inverse_share[:, None])
        return feat, scale_gradient(log_share, inverse_share) + math.log(tokens.shape[1])


@lru_cache(maxsize=32)
def _with_globals(
    height: int, width: int, channels: int, cells: int, count: int, device: torch.device
) -> WindowGeometry:
    """Geometry of windows, then of ``count`` tokens in the middle of the map."""
    with torch.inference_mode(False), torch.no_grad():
        windows = grid_geometry(height, width, channels, cells, device)
        middle = grid_geometry(height, width, channels, max(height, width), device)
        pos, xy = (torch.cat([a, b.expand(count, -1)]) for a, b in zip(windows[:2], middle[:2]))
        return WindowGeometry(pos, xy, torch.cat([windows.log_count, middle.log_count.expand(count)]))
