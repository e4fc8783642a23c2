"""Tokens sorted into square windows of the image grid, by their coordinates: pure functions.

Letters as in ``sam2_mem.types``; here N tokens, of one map or of several, lie in W windows of at most n tokens each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sam2_mem._moved import renamed
from sam2_mem.model.cached_positions import SameTensors, grid_xy, known, sine_tokens
from sam2_mem.types import MemoryTokens

T = TypeVar("T")

EMPTY = -1e4
"""Log-count of a place in a window that holds no token: finite, so that a window may hold nothing of some frame."""


class WindowLayout(NamedTuple):
    """Which tokens lie in which window, windows in raster order.

    Attributes:
        tokens: (W, n) numbers of tokens.
        padding: (W, n) log-counts: 0 where there is a token, ``EMPTY`` where ``tokens`` is padding.
        offset: (W, n, 2) of a token from the centre of its window, in half windows.
    """

    tokens: Tensor
    padding: Tensor
    offset: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """(..., N, D) -> (..., W, n, D)."""
        return x[..., self.tokens, :]

    def priors(self, log_count: Tensor | None) -> Tensor:
        """Log-counts (..., N), None for zeros, as (..., W, n)."""
        return self.padding if log_count is None else log_count[..., self.tokens] + self.padding


class WindowGeometry(NamedTuple):
    """Where windows lie and how much they hold: ``pos`` (W, Cm), ``xy`` (W, 2), ``log_count`` (W)."""

    pos: Tensor
    xy: Tensor
    log_count: Tensor


@torch.no_grad()
def layout(xy: Tensor, cells: int) -> WindowLayout:
    """Windows of ``cells`` x ``cells`` cells over tokens at ``xy`` (N, 2); windows without a token are left out."""
    cell = torch.div(xy.float() + 0.5, cells, rounding_mode="floor")
    columns = cell[:, 0].max() + 1
    _, window, counts = (cell[:, 1] * columns + cell[:, 0]).unique(return_inverse=True, return_counts=True)
    order = window.argsort(stable=True)
    start = counts.cumsum(0) - counts
    rank = torch.arange(int(counts.max()), device=xy.device)
    real = rank < counts[:, None]
    index = order[torch.where(real, start[:, None] + rank, start[:, None])]
    centre = (cell + 0.5) * cells - 0.5
    offset = (xy.float() - centre) * 2 / cells
    return WindowLayout(index, torch.where(real, 0.0, EMPTY), offset[index] * real[..., None])


@lru_cache(maxsize=32)
def grid_layout(height: int, width: int, cells: int, device: torch.device) -> WindowLayout:
    """``layout`` of a whole map; those at the border may be smaller."""
    with torch.inference_mode(False):
        return layout(grid_xy(height, width, device), cells)


@lru_cache(maxsize=32)
def grid_geometry(height: int, width: int, channels: int, cells: int, device: torch.device) -> WindowGeometry:
    """Mean position and coordinates of the cells of every window of a whole map, and the logarithm of their number."""
    with torch.inference_mode(False), torch.no_grad():
        windows = grid_layout(height, width, cells, device)
        weights = windows.padding.softmax(-1)
        pos = weighted_sum(windows.gather(sine_tokens(height, width, channels, device)), weights)
        xy = weighted_sum(windows.gather(grid_xy(height, width, device)), weights)
        return WindowGeometry(pos, xy, windows.padding.logsumexp(-1))


def weighted_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Sum of ``x`` (..., n, D) under ``weights`` (..., n): (..., D)."""
    return (x * weights.unsqueeze(-1)).sum(-2)


_SHARED_COUNTS: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Log-counts that follow from coordinates alone, and are the same tensor for all entries of the same coordinates."""


class Tube(NamedTuple):
    """Tokens of several maps, oldest first, one after the other.

    Attributes:
        feat: (N, Cm).
        pos: (N, Cm).
        xy: (N, 2).
        log_count: (N).
        frame: (N) number of the map each token comes from.
        frames: number of maps.
        entries: the maps, none for a part of their tokens. Entries share coordinates, positions and counts as tensors, so
            that what depends on those alone is worked out once and not asked of the device again.
    """

    feat: Tensor
    pos: Tensor
    xy: Tensor
    log_count: Tensor
    frame: Tensor
    frames: int
    entries: tuple[MemoryTokens, ...] = ()

    def at(self, chosen: Tensor) -> Tube:
        """The tokens where ``chosen`` (N) is true."""
        names = ("feat", "pos", "xy", "log_count", "frame")
        return self._replace(entries=(), **{name: getattr(self, name)[chosen] for name in names})

    def all_placed(self) -> bool:
        """Whether no token lacks a place."""
        return self._known("placed", [e.xy for e in self.entries], lambda: not bool(self.xy.isnan().any()))

    def windows(self, cells: int) -> WindowLayout:
        """Windows of ``cells`` x ``cells`` cells over all tokens, see ``layout``."""
        return self._known(f"layout {cells}", [e.xy for e in self.entries], lambda: layout(self.xy, cells))

    def geometry(self, grid: tuple[int, int], cells: int) -> WindowGeometry:
        """Of ``windows``, see ``tube_geometry``."""
        shared = all(e.log_count is None or e.log_count in _SHARED_COUNTS for e in self.entries)
        parts = [x for e in self.entries for x in (e.xy, e.pos, e.pos if e.log_count is None else e.log_count)]
        key = f"geometry {grid} {cells}"
        result = self._known(
            key, parts if shared else [], lambda: tube_geometry(self, self.windows(cells), grid, cells)
        )
        if shared and self.entries:
            _SHARED_COUNTS[result.log_count] = True
        return result

    def _known(self, what: str, parts: Sequence[Tensor | None], make: Callable[[], T]) -> T:
        """``make()``, or what it gave for the same ``parts`` of the entries; they are not asked for where there are none."""
        whole = len(parts) > 0 and all(part is not None for part in parts)
        return known((what, SameTensors(parts)), make) if whole else make()


def join_entries(entries: Sequence[MemoryTokens], dtype: torch.dtype) -> Tube:
    """``entries`` as one tube, on the device of their positions and in ``dtype``. Tokens without coordinates count as lying
    in cell (0, 0), those without a count as one."""
    device = entries[0].pos.device
    return Tube(
        feat=torch.cat([e.feat.to(device, non_blocking=True).to(dtype) for e in entries]),
        pos=torch.cat([e.pos.to(device) for e in entries]),
        xy=torch.cat([e.pos.new_zeros(len(e), 2) if e.xy is None else e.xy.to(device) for e in entries]),
        log_count=torch.cat([_counts(e) for e in entries]),
        frame=_numbers(tuple([len(e) for e in entries]), device),
        frames=len(entries),
        entries=tuple(entries),
    )


@lru_cache(maxsize=32)
def _numbers(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The number of its entry for every token of entries of ``sizes``."""
    with torch.inference_mode(False):
        return torch.cat([torch.full((size,), number, device=device) for number, size in enumerate(sizes)])


def _counts(entry: MemoryTokens) -> Tensor:
    return entry.pos.new_zeros(len(entry)) if entry.log_count is None else entry.log_count.to(entry.pos.device)


def tube_geometry(tube: Tube, windows: WindowLayout, grid: tuple[int, int], cells: int) -> WindowGeometry:
    """Mean position and coordinates of the tokens of every window, by count, and their total count. Where that is what
    windows of a whole map have, its tensors are used, so that entries share them."""
    prior = windows.priors(tube.log_count)
    weights = prior.softmax(-1)
    pos = weighted_sum(windows.gather(tube.pos), weights)
    xy = weighted_sum(windows.gather(tube.xy), weights)
    total = prior.logsumexp(-1)
    regular = grid_geometry(*grid, tube.pos.shape[1], cells, tube.pos.device)
    if xy.shape == regular.xy.shape and _close(xy, regular.xy) and _close(pos, regular.pos):
        return WindowGeometry(regular.pos, regular.xy, total)
    return WindowGeometry(pos, xy, total)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b.to(a.dtype), atol=1e-4)


def mean_tokens(tube: Tube, grid: tuple[int, int], cells: int) -> MemoryTokens:
    """One token for every window of ``cells`` x ``cells`` cells: the mean by count, with the total count. Of tokens that have
    no place, those of one number in their entries, before the others."""
    if not tube.all_placed():
        placed = ~tube.xy.isnan().any(-1)
        means = mean_tokens(tube.at(placed), grid, cells)
        spacing = round((grid[0] * grid[1] / int(tube.frame[placed].bincount().max())) ** 0.5)
        return _joined(_mean_by_number(tube.at(~placed), max(1.0, cells / spacing)), means)
    windows, geometry = tube.windows(cells), tube.geometry(grid, cells)
    feat = weighted_sum(windows.gather(tube.feat), windows.priors(tube.log_count).softmax(-1).to(tube.feat.dtype))
    return MemoryTokens(feat=feat, pos=geometry.pos, xy=geometry.xy, log_count=geometry.log_count)


def _mean_by_number(tube: Tube, strength: float) -> MemoryTokens:
    """One token for every ``strength`` ** 2 neighbouring numbers of tokens that have no place: their mean by count over all
    entries, the tokens of an entry being numbered from 0."""
    sizes = tube.frame.bincount(minlength=tube.frames)
    count = max(1, int(int(sizes[sizes > 0].min()) / strength**2))
    number = torch.arange(len(tube.frame), device=tube.frame.device) - (sizes.cumsum(0) - sizes)[tube.frame]
    group = number * count // sizes[tube.frame]
    weight = tube.log_count.exp()
    total = weight.new_zeros(count).index_add_(0, group, weight)
    share = (weight / total[group]).unsqueeze(-1)
    feat, pos = (
        x.new_zeros(count, x.shape[1]).index_add_(0, group, x * share.to(x.dtype)) for x in (tube.feat, tube.pos)
    )
    return MemoryTokens(feat, pos, tube.xy.new_full((count, 2), torch.nan), total.log())


def _joined(first: MemoryTokens, second: MemoryTokens) -> MemoryTokens:
    """Tokens with places and counts, one after the other."""
    pairs = zip(
        (first.feat, first.pos, first.xy, first.log_count), (second.feat, second.pos, second.xy, second.log_count)
    )
    return MemoryTokens(*(torch.cat([a, b]) for a, b in pairs if a is not None and b is not None))


__getattr__ = renamed(__name__)
