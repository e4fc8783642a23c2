"""Tokens sorted into square windows of the image grid, by their coordinates: pure functions.

Letters as in :mod:`sam2_mem.types`; here N tokens, of one map or of several, lie in W windows of at most n tokens each.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_mem.model.cached_positions import grid_xy, sine_tokens
from sam2_mem.types import MemoryTokens

NOTHING = -1e4
"""Log-count of a place in a window that holds no token: finite, so that a window may hold nothing of some frame."""


class Layout(NamedTuple):
    """Which tokens lie in which window, windows in raster order.

    ``index`` (W, n) token numbers; ``blank`` (W, n) 0 where there is a token, ``NOTHING`` where ``index`` only fills
    up; ``offset`` (W, n, 2) of a token from the centre of its window, in half windows.
    """

    index: Tensor
    blank: Tensor
    offset: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """(..., N, D) -> (..., W, n, D)."""
        return x[..., self.index, :]

    def priors(self, log_count: Tensor | None) -> Tensor:
        """Log-counts (..., N), None for zeros, as (..., W, n)."""
        return self.blank if log_count is None else log_count[..., self.index] + self.blank


class Place(NamedTuple):
    """What the tokens of windows have in common on every frame: ``pos`` (W, Cm), ``xy`` (W, 2), ``log_count`` (W)."""

    pos: Tensor
    xy: Tensor
    log_count: Tensor


@torch.no_grad()
def layout(xy: Tensor, cells: int) -> Layout:
    """Windows of ``cells`` x ``cells`` cells over tokens at ``xy`` (N, 2); windows without a token are left out."""
    where = torch.div(xy.float() + 0.5, cells, rounding_mode="floor")
    columns = where[:, 0].max() + 1
    _, window, counts = (where[:, 1] * columns + where[:, 0]).unique(return_inverse=True, return_counts=True)
    order = window.argsort(stable=True)
    start = counts.cumsum(0) - counts
    rank = torch.arange(int(counts.max()), device=xy.device)
    real = rank < counts[:, None]
    index = order[torch.where(real, start[:, None] + rank, start[:, None])]
    centre = (where + 0.5) * cells - 0.5
    offset = (xy.float() - centre) * 2 / cells
    return Layout(index, torch.where(real, 0.0, NOTHING), offset[index] * real[..., None])


@lru_cache(maxsize=32)
def grid_layout(height: int, width: int, cells: int, device: torch.device) -> Layout:
    """:func:`layout` of a whole map; those at the border may be smaller."""
    with torch.inference_mode(False):
        return layout(grid_xy(height, width, device), cells)


@lru_cache(maxsize=32)
def window_place(height: int, width: int, channels: int, cells: int, device: torch.device) -> Place:
    """Mean position and coordinates of the cells of every window of a whole map, and the logarithm of their number."""
    with torch.inference_mode(False), torch.no_grad():
        windows = grid_layout(height, width, cells, device)
        weights = windows.blank.softmax(-1)
        pos = weighted(windows.gather(sine_tokens(height, width, channels, device)), weights)
        xy = weighted(windows.gather(grid_xy(height, width, device)), weights)
        return Place(pos, xy, windows.blank.logsumexp(-1))


def weighted(x: Tensor, weights: Tensor) -> Tensor:
    """Sum of ``x`` (..., n, D) under ``weights`` (..., n): (..., D)."""
    return (x * weights.unsqueeze(-1)).sum(-2)


class Tube(NamedTuple):
    """Tokens of several maps, oldest first, one after the other: ``feat`` (N, Cm), ``pos`` (N, Cm), ``xy`` (N, 2),
    ``log_count`` (N); ``frame`` (N) number of the map each token comes from, of ``frames``."""

    feat: Tensor
    pos: Tensor
    xy: Tensor
    log_count: Tensor
    frame: Tensor
    frames: int


def tube_of(entries: Sequence[MemoryTokens], dtype: torch.dtype) -> Tube:
    """Join ``entries``, on the device of their positions and in ``dtype``. Tokens without coordinates count as lying in
    cell (0, 0), those without a count as one."""
    device = entries[0].pos.device
    sizes = torch.tensor([len(e) for e in entries])
    return Tube(
        feat=torch.cat([e.feat.to(device, dtype) for e in entries]),
        pos=torch.cat([e.pos.to(device) for e in entries]),
        xy=torch.cat([e.pos.new_zeros(len(e), 2) if e.xy is None else e.xy.to(device) for e in entries]),
        log_count=torch.cat([_counts(e) for e in entries]),
        frame=torch.arange(len(entries)).repeat_interleave(sizes).to(device),
        frames=len(entries),
    )


def _counts(entry: MemoryTokens) -> Tensor:
    return entry.pos.new_zeros(len(entry)) if entry.log_count is None else entry.log_count.to(entry.pos.device)


def placed(tube: Tube, windows: Layout, grid: tuple[int, int], cells: int) -> Place:
    """Mean place of the tokens of every window, by count, and their total count. Where that is the place that windows
    of a whole map have, its tensors are used, so that entries share them."""
    prior = windows.priors(tube.log_count)
    weights = prior.softmax(-1)
    pos = weighted(windows.gather(tube.pos), weights)
    xy = weighted(windows.gather(tube.xy), weights)
    total = prior.logsumexp(-1)
    usual = window_place(*grid, tube.pos.shape[1], cells, tube.pos.device)
    if xy.shape == usual.xy.shape and _close(xy, usual.xy) and _close(pos, usual.pos):
        return Place(usual.pos, usual.xy, total)
    return Place(pos, xy, total)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.to(a.dtype), atol=1e-4)


def mean_of(tube: Tube, grid: tuple[int, int], cells: int) -> MemoryTokens:
    """One token for every window of ``cells`` x ``cells`` cells: the mean by count, with the total count."""
    windows = layout(tube.xy, cells)
    place = placed(tube, windows, grid, cells)
    feat = weighted(windows.gather(tube.feat), windows.priors(tube.log_count).softmax(-1).to(tube.feat.dtype))
    return MemoryTokens(feat=feat, pos=place.pos, xy=place.xy, log_count=place.log_count)
