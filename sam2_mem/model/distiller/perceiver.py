"""EdgeTAM's distiller: a 2D spatial perceiver, learned latents that attend to the map of one frame (Zhou et al. 2025,
arXiv:2501.07256)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.cached_positions import sine_tokens
from sam2_mem.model.distiller.base import TokenDistiller, as_tokens
from sam2_mem.model.distiller.windows import grid_geometry, grid_layout
from sam2_mem.types import MemoryTokens


class LatentAttention(nn.Module):
    """Latents attend to tokens, with one head; positions enter keys and values after their projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_x = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, latents: Tensor, tokens: Tensor, pos: Tensor | None) -> Tensor:
        """``latents`` (B, N, C), ``tokens`` (B, L, C), ``pos`` (L, C) -> (B, N, C)."""
        key, value = self.to_kv(self.norm_x(tokens)).chunk(2, dim=-1)
        if pos is not None:
            key, value = key + pos, value + pos
        return self.to_out(F.scaled_dot_product_attention(self.to_q(self.norm_latents(latents)), key, value))


class LatentSelfAttention(nn.Module):
    """Latents attend to each other, with one head; a latent on its own gets its own value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        normed = self.norm(latents)
        key, value = self.to_kv(normed).chunk(2, dim=-1)
        if latents.shape[1] == 1:
            return self.to_out(value)
        return self.to_out(F.scaled_dot_product_attention(self.to_q(normed), key, value))


class PerceiverLayer(nn.Module):
    """Attention to tokens and among latents, each followed by a network over channels; all with residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = LatentAttention(width)
        self.ff = _feed_forward(width)
        self.self_attn = LatentSelfAttention(width)
        self.self_ff = _feed_forward(width)

    def forward(self, latents: Tensor, tokens: Tensor, pos: Tensor | None = None) -> Tensor:
        """``latents`` (B, N, C), ``tokens`` (B, L, C), ``pos`` (L, C) -> (B, N, C)."""
        latents = latents + self.attn(latents, tokens, pos)
        latents = latents + self.ff(latents)
        latents = latents + self.self_attn(latents)
        return latents + self.self_ff(latents)


class PerceiverDistiller(TokenDistiller):
    """Global latents, which attend to the whole map and have no place, then those of windows, which attend to their window
    alone and lie in its centre.

    Untrained it is no mean but noise: a network that reads its tokens needs weights of it. Merging takes means: of windows
    by place, of global latents by their number, as each of them has learned to look for something else.

    Args:
        memory_width: Cm.
        global_latents: number of latents without a place.
        window_latents: number of windows, a square number; its root divides the sides of the map.
        num_layers: layers, shared by both kinds.
    """

    starts_as_means = False
    side: int

    def __init__(
        self, *, memory_width: int = 64, global_latents: int = 256, window_latents: int = 256, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.side = isqrt(window_latents)
        if self.side < 1 or self.side**2 != window_latents or global_latents < 1:
            raise ValueError(
                f"expected a square number of window_latents and global_latents >= 1, got {window_latents} and "
                f"{global_latents}"
            )
        self.latents = nn.Parameter(torch.randn(global_latents, memory_width))
        self.latents_2d = nn.Parameter(torch.randn(window_latents, memory_width))
        self.layers = nn.ModuleList(PerceiverLayer(memory_width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(memory_width)

    @property
    def trained_as(self) -> str:
        return f"perceiver{self.side}"

    def cells(self, grid: tuple[int, int]) -> int:
        """Side of a window in cells of a map of ``grid``; ValueError where windows do not fill it."""
        height, width = grid
        if height != width or height % self.side:
            raise ValueError(
                f"expected a square map whose side is a multiple of {self.side}, got {height} x {width}; choose an "
                f"image_size that is a multiple of {16 * self.side}"
            )
        return height // self.side

    def tokens_per_map(self, grid: tuple[int, int]) -> int:
        self.cells(grid)
        return len(self.latents) + len(self.latents_2d)

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        rows, channels, height, width = maps.shape
        cells = self.cells((height, width))
        tokens = as_tokens(maps)
        pos = sine_tokens(height, width, channels, maps.device).to(tokens.dtype)
        windows = grid_layout(height, width, cells, maps.device).gather(tokens).flatten(0, 1)
        latents = self.latents.expand(rows, -1, -1)
        latents_2d = self.latents_2d.unsqueeze(1).repeat(rows, 1, 1)
        for layer in self.layers:
            latents, latents_2d = layer(latents, tokens, pos), layer(latents_2d, windows)
        feat = self.norm(torch.cat([latents, latents_2d.view(rows, -1, channels)], dim=1))
        pos, xy = _geometry(height, channels, cells, len(self.latents), maps.device)
        return [MemoryTokens(feat=entry, pos=pos, xy=xy) for entry in feat]

    def merge_tubes(
        self, tubes: Sequence[Sequence[MemoryTokens]], grid: tuple[int, int], strength: int
    ) -> list[MemoryTokens]:
        return super().merge_tubes(tubes, grid, strength * self.cells(grid))


def _feed_forward(width: int) -> nn.Sequential:
    wide = nn.Linear(width, 4 * width, bias=False)
    return nn.Sequential(nn.LayerNorm(width), wide, nn.GELU(), nn.Linear(4 * width, width, bias=False))


@lru_cache(maxsize=32)
def _geometry(side: int, channels: int, cells: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (count + windows, C) and coordinates (count + windows, 2) of ``count`` tokens without a place, then of
    windows: their positions are those of a grid that has one cell for each."""
    with torch.inference_mode(False), torch.no_grad():
        pos = sine_tokens(side // cells, side // cells, channels, device)
        xy = grid_geometry(side, side, channels, cells, device).xy
        return F.pad(pos, (0, 0, count, 0)), F.pad(xy, (0, 0, count, 0), value=torch.nan)
