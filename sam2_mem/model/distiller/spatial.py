"""The attention distiller of one frame: latents on a grid of windows, and global ones (compare EdgeTAM's 2D perceiver,
Zhou et al. 2025, arXiv 2501.07256)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from sam2_mem.model.cached_positions import sine_tokens
from sam2_mem.model.distiller.base import TokenDistiller, as_tokens
from sam2_mem.model.distiller.parts import Refinement, WindowAttention, amplified
from sam2_mem.model.distiller.windows import Place, grid_layout, window_place
from sam2_mem.types import MemoryTokens


class SpatialDistiller(TokenDistiller):
    """Latent queries attend to the tokens of one frame. Untrained, it is :class:`PooledTokens` of the same factor.

    Every window of ``factor`` x ``factor`` cells has one latent, which lies in the window's centre. Global latents, if
    any, attend to the whole map and lie in the centre of the frame: memory attention of official checkpoints rotates
    every spatial key, and one without coordinates would pass for the cell in the top left corner.

    Args:
        memory_width: Cm. factor: side of a window in cells. key_width, num_heads: of the latents' attention; heads
            divide Cm. hidden: width of the network that refines summaries. global_latents: how many. global_share:
            share of the frame's tokens that a global latent stands for before training; what attention all of them
            draw is at most about ``global_latents * global_share``, so next to nothing.
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
        extra = 0 if self.globals is None else self.globals.count
        return super().tokens_per_map(grid) + extra

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        _, channels, height, width = maps.shape
        windows = grid_layout(height, width, self.factor, maps.device)
        place = window_place(height, width, channels, self.factor, maps.device)
        tokens = as_tokens(maps)
        pooled = self.attention(windows.gather(tokens), windows.blank, windows.offset)
        feat, correction = self.refinement(pooled, place.pos)
        log_count = place.log_count + correction
        if self.globals is not None:
            pos = sine_tokens(height, width, channels, maps.device)
            more, their_count = self.globals(tokens, pos)
            feat = torch.cat([feat, more], dim=1)
            log_count = torch.cat([log_count, their_count.expand(len(maps), -1)], dim=1)
            place = _with_globals(height, width, channels, self.factor, self.globals.count, maps.device)
        return [MemoryTokens(f, place.pos, place.xy, n.clone()) for f, n in zip(feat, log_count)]


class GlobalLatents(nn.Module):
    """Latents that attend to a whole map.

    They start with hardly any weight in memory attention, and their gradients are multiplied by as much as that weight
    is small: they neither disturb an untrained distiller nor sleep.

    Args:
        width: Cm. count: number of latents. share: of the tokens of a frame that each stands for at first.
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
        louder = (-log_share).exp()
        feat = amplified(weights @ tokens, louder[:, None])
        return feat, amplified(log_share, louder) + math.log(tokens.shape[1])


@lru_cache(maxsize=32)
def _with_globals(height: int, width: int, channels: int, cells: int, count: int, device: torch.device) -> Place:
    """Places of windows, then of ``count`` tokens in the middle of the map."""
    with torch.inference_mode(False), torch.no_grad():
        own = window_place(height, width, channels, cells, device)
        middle = window_place(height, width, channels, max(height, width), device)
        pos, xy = (torch.cat([a, b.expand(count, -1)]) for a, b in zip(own[:2], middle[:2]))
        return Place(pos, xy, torch.cat([own.log_count, middle.log_count.expand(count)]))
