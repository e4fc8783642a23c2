"""Token distillers: the last step of memory encoding. They decide what one frame's memory is made of.

A distiller is a module on the memory encoder, so that whatever it learns is stored under ``memory_encoder.distiller.*``.
"""

from __future__ import annotations

from torch import Tensor, nn

from sam2_mem.model.constants import grid_xy, sine_tokens
from sam2_mem.types import MemoryTokens


class TokenDistiller(nn.Module):
    """Turns one memory map into the tokens that are stored."""

    def tokens_per_map(self, grid: tuple[int, int]) -> int:
        """Tokens that :meth:`forward` gives for a map of ``grid`` cells."""
        raise NotImplementedError

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        """``maps`` (R, Cm, H, W) -> R entries, with positions on the frame's own grid."""
        raise NotImplementedError


class GridTokens(TokenDistiller):
    """Keeps every cell as a token: SAM 2's own memory, and the default. Positions are shared by all entries."""

    def tokens_per_map(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        _, channels, height, width = maps.shape
        pos = sine_tokens(height, width, channels, maps.device)
        xy = grid_xy(height, width, maps.device)
        return [MemoryTokens(feat=tokens, pos=pos, xy=xy) for tokens in maps.flatten(2).transpose(1, 2)]
