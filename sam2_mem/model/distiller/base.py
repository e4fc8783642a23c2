"""What a token distiller is, and those that learn nothing: the grid itself, and means of its windows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sam2_mem.model.cached_positions import grid_xy, sine_tokens
from sam2_mem.model.distiller.windows import grid_geometry, grid_layout, join_entries, mean_tokens, weighted_sum
from sam2_mem.types import MemoryTokens


class TokenDistiller(nn.Module):
    """Turns a memory map into the tokens that are stored, and stored tokens of several frames into fewer.

    Args:
        factor: one token for every ``factor`` x ``factor`` cells of a map.
    """

    starts_as_means: ClassVar[bool] = True
    """Whether it takes means until it is trained, so that a checkpoint may lack its weights."""

    side: int | None = None
    """Tokens along a side of a map, where that is the same for maps of all sizes; None where it is not."""

    merged_time: Tensor | None
    """What a distiller adds to the temporal code of merged entries (Cm), see ``types.MERGED_SLOT``; None for nothing."""

    def __init__(self, *, factor: int = 1) -> None:
        super().__init__()
        self.register_parameter("merged_time", None)
        if factor < 1:
            raise ValueError(f"expected a distiller with factor >= 1, got {factor}")
        self.factor = factor

    @property
    def trained_as(self) -> str:
        """What weights of it are for, kind and factor; empty for one that learns nothing. A model's config may name files by
        it (``trained_distillers``)."""
        return ""

    def tokens_per_map(self, grid: tuple[int, int]) -> int:
        """Tokens that ``forward`` gives for a map of ``grid`` cells."""
        return -(-grid[0] // self.factor) * -(-grid[1] // self.factor)

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        """``maps`` (R, Cm, H, W) -> R entries, with positions on the frame's own grid."""
        raise NotImplementedError

    def merge_tubes(
        self, tubes: Sequence[Sequence[MemoryTokens]], grid: tuple[int, int], strength: int
    ) -> list[MemoryTokens]:
        """Merge the entries of every tube into one, with gradients where its tokens have any.

        Args:
            tubes: entries of one object each, oldest first in the direction of tracking; of any lengths, merged before
                or not.
            grid: (H, W) of the maps they come from.
            strength: one token for every ``strength`` x ``strength`` tokens of a map as ``forward`` stores it, over
                all entries of a tube. At least 1.
        """
        if strength < 1 or not all(tubes):
            raise ValueError(f"expected tubes of at least one entry and strength >= 1, got {strength}")
        return [self.merge(tube, grid, strength * self.factor) for tube in tubes]

    def condense(
        self, tubes: Sequence[Sequence[MemoryTokens]], grid: tuple[int, int], strength: int
    ) -> list[MemoryTokens]:
        """Earlier name of ``merge_tubes``."""
        warnings.warn("condense of a distiller is now merge_tubes", FutureWarning, stacklevel=2)
        if type(self).condense is TokenDistiller.condense:
            return self.merge_tubes(tubes, grid, strength)
        return TokenDistiller.merge_tubes(self, tubes, grid, strength)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "condense" in vars(cls):
            warnings.warn(f"{cls.__name__}.condense is now merge_tubes; rename it", FutureWarning, stacklevel=2)
            cls.merge_tubes = cls.condense  # type: ignore[method-assign]

    def merge(self, tube: Sequence[MemoryTokens], grid: tuple[int, int], cells: int) -> MemoryTokens:
        """One tube in windows of ``cells`` x ``cells`` cells: here the mean by count."""
        return mean_tokens(join_entries(tube, torch.float32), grid, cells)


class GridTokens(TokenDistiller):
    """Keeps every cell as a token: SAM 2's own memory, and the default. Positions are shared by all entries."""

    def __init__(self) -> None:
        super().__init__(factor=1)

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        return grid_tokens(maps)


class PooledTokens(TokenDistiller):
    """The mean of every window; learns nothing. Positions, coordinates and counts are shared by all entries.

    Args:
        factor: 2 keeps a quarter of the tokens, 4 a sixteenth.
    """

    def __init__(self, *, factor: int = 2) -> None:
        super().__init__(factor=factor)

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        _, channels, height, width = maps.shape
        windows = grid_layout(height, width, self.factor, maps.device)
        feat = weighted_sum(windows.gather(as_tokens(maps)), windows.padding.softmax(-1).to(maps.dtype))
        geometry = grid_geometry(height, width, channels, self.factor, maps.device)
        return [MemoryTokens(tokens, *geometry) for tokens in feat]


def as_tokens(maps: Tensor) -> Tensor:
    """(R, Cm, H, W) -> (R, Q, Cm)."""
    return maps.flatten(2).transpose(1, 2)


def grid_tokens(maps: Tensor) -> list[MemoryTokens]:
    """Every cell of ``maps`` (R, Cm, H, W) as a token."""
    _, channels, height, width = maps.shape
    pos = sine_tokens(height, width, channels, maps.device)
    xy = grid_xy(height, width, maps.device)
    return [MemoryTokens(feat=tokens, pos=pos, xy=xy) for tokens in as_tokens(maps)]
