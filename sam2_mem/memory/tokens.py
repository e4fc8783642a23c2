"""Pure functions on memory tokens that policies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.model.acceleration.transfer import constant, pinned_as, to_device_async
from sam2_mem.model.distiller.windows import join_entries, mean_tokens
from sam2_mem.types import ArchivedEntry, Entry, MemoryEntry, MemoryTokens


def token_count(entries: Iterable[Entry]) -> int:
    """Spatial memory tokens held by ``entries``; an entry listed twice counts once."""
    unique = {id(e.tokens): e.tokens for e in entries if e.tokens is not None}
    return sum(len(tokens) for tokens in unique.values())


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind ``tensors``, each storage once; so a view that keeps a batch alive counts in full."""
    storages = {}
    for tensor in tensors:
        if tensor is not None:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def map_tokens(tokens: MemoryTokens, change: Callable[[Tensor], Tensor]) -> MemoryTokens:
    """``change`` applied to the stored features; positions are shared and stay."""
    return MemoryTokens(feat=change(tokens.feat), pos=tokens.pos, xy=tokens.xy, log_count=tokens.log_count)


def gather_tokens(tokens: MemoryTokens, index: Tensor) -> MemoryTokens:
    """The tokens at ``index`` (K) integers, in that order and in storage of their own; every part stays where it is."""
    parts = (tokens.feat, tokens.pos, tokens.xy, tokens.log_count)
    feat, pos, xy, log_count = (None if part is None else part[to_device_async(index, part.device)] for part in parts)
    assert feat is not None and pos is not None, "tokens have features and positions"
    return MemoryTokens(feat=pinned_as(feat, tokens.feat), pos=pos, xy=xy, log_count=log_count)


def restored(archived: ArchivedEntry) -> MemoryEntry:
    """An archived entry as it was in memory."""
    move = lambda feat: feat.to(archived.device, non_blocking=True)  # noqa: E731
    return replace(archived.entry, tokens=map_tokens(archived.entry.tokens, move))


def pool_grid(tokens: MemoryTokens, grid: tuple[int, int], factor: int) -> MemoryTokens:
    """Mean of every ``factor`` x ``factor`` block of a whole map: fewer tokens that say how many they stand for.

    Feature, position and coordinates are averaged, so a token lies in the (fractional) centre of its block; its logit gains
    the logarithm of the block's size. Blocks at the border may be smaller.

    Args:
        tokens: of a whole map, in raster order.
        grid: (H, W) of the map.
        factor: 2 keeps a quarter of the tokens.

    Raises:
        ValueError: the tokens of something else than a whole map.
    """
    height, width = grid
    if len(tokens) != height * width:
        raise ValueError(f"expected the {height * width} tokens of a {height} x {width} map, got {len(tokens)}")
    if tokens.xy is None or tokens.log_count is not None:
        raise ValueError("expected the tokens of an undistilled map, got tokens without coordinates or with counts")
    mean = _block_means(factor, grid)
    sizes = _block_sizes(grid, factor)
    return MemoryTokens(
        feat=pinned_as(mean(tokens.feat.float()).to(tokens.feat.dtype), tokens.feat),
        pos=mean(tokens.pos),
        xy=mean(tokens.xy),
        log_count=constant(tuple(sizes), tokens.pos.device, torch.get_default_dtype()).log(),
    )


def pool_tokens(tokens: MemoryTokens, grid: tuple[int, int], factor: int) -> MemoryTokens:
    """One token for every ``factor`` x ``factor`` stored tokens of a map, whatever a distiller has made of it: the mean by
    count of a window that many times as wide as a token's own. Of a whole map that is ``pool_grid``."""
    if tokens.log_count is None and tokens.xy is not None and len(tokens) == grid[0] * grid[1]:
        return pool_grid(tokens, grid, factor)
    placed = len(tokens) if tokens.xy is None else int((~tokens.xy.isnan().any(-1)).sum())
    spacing = max(1, round((grid[0] * grid[1] / placed) ** 0.5))
    pooled = mean_tokens(join_entries([tokens], torch.float32), grid, factor * spacing)
    feat = pooled.feat.to(tokens.feat.device, tokens.feat.dtype)
    return MemoryTokens(feat=feat, pos=pooled.pos, xy=pooled.xy, log_count=pooled.log_count)


def features_at(features: Tensor, grid: tuple[int, int], xy: Tensor) -> Tensor:
    """Features between the cells of a grid, bilinear; halfway between four cells it is their mean.

    Args:
        features: (H * W, C) of the cells.
        grid: (H, W).
        xy: (L, 2) positions in cells; those outside count as on the border.

    Returns:
        (L, C) float32.
    """
    height, width = grid
    edge = torch.tensor([width - 1, height - 1], device=xy.device)
    position = torch.minimum(xy.float().clamp(min=0), edge)
    low = position.floor()
    high, fraction = torch.minimum(low + 1, edge).long(), position - low
    low = low.long()
    rows = [(low[:, 1], 1 - fraction[:, 1]), (high[:, 1], fraction[:, 1])]
    columns = [(low[:, 0], 1 - fraction[:, 0]), (high[:, 0], fraction[:, 0])]
    corners = [features[y * width + x].float() * (v * u)[:, None] for y, v in rows for x, u in columns]
    return torch.stack(corners).sum(0)


def _block_means(factor: int, grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    def mean(x: Tensor) -> Tensor:
        maps = x.t().unflatten(-1, grid)[None]
        pooled = F.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)
        return pooled[0].flatten(1).t().contiguous()

    return mean


def _block_sizes(grid: tuple[int, int], factor: int) -> list[float]:
    rows, columns = ([min(factor, n - i) for i in range(0, n, factor)] for n in grid)
    return [float(r * c) for r in rows for c in columns]


def foreground_weights(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mask logits (h, w) as foreground probability of every image token, (Q) in [0, 1]."""
    probability = F.adaptive_avg_pool2d(logits.float().sigmoid()[None, None], grid)
    return probability.flatten()


def masked_mean(features: Tensor, weights: Tensor, is_empty: bool | None = None) -> Tensor | None:
    """Mean of ``features`` (Q, C) under ``weights`` (Q); None where the weights are empty, which is asked of the device
    unless ``is_empty`` says it."""
    total = weights.sum()
    if is_empty or (is_empty is None and not total > 1e-6):
        return None
    return (weights.to(features.dtype) @ features) / total.to(features.dtype)


def masked_means(features: Tensor, masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """``masked_mean`` of ``features`` (Q, C) under each of M masks (M, h, w) of which none is empty, (M, C)."""
    weights = F.adaptive_avg_pool2d(masks.float().sigmoid()[:, None], grid).flatten(1).to(features.dtype)
    return (weights @ features) / weights.sum(1, keepdim=True)


__getattr__ = renamed(__name__)
