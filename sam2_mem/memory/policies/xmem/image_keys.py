"""Image keys: the features of a frame at its memory tokens, by which long-term memory compares tokens."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sam2_mem.memory.tokens import features_at
from sam2_mem.model.cached_positions import grid_xy
from sam2_mem.types import FrameContext, FrameFeatures, MemoryTokens

KEY_DTYPE = torch.bfloat16
"""What stored keys are rounded to."""

_rounded: WeakKeyDictionary[FrameFeatures, dict[torch.device, Tensor]] = WeakKeyDictionary()


def features_of(frame: FrameContext) -> FrameFeatures:
    """The features of ``frame``; ValueError where there are none."""
    if frame.features is None:
        raise ValueError("expected the features of the frame, which long-term memory compares, got none")
    return frame.features


def image_keys(tokens: MemoryTokens, features: FrameFeatures) -> Tensor:
    """Image features (L, C) at the coordinates of ``tokens``, between cells too; tokens without coordinates, or without a
    place, take the mean."""
    device = tokens.feat.device
    low = _round(features, device)
    height, width = features.grid
    if tokens.xy is None:
        return low.float().mean(0).to(KEY_DTYPE).expand(len(tokens), -1)
    if tokens.xy is grid_xy(height, width, tokens.xy.device):
        return low
    xy = tokens.xy.to(device)
    keys = features_at(low, (height, width), xy.nan_to_num())
    return torch.where(xy.isnan().any(-1, keepdim=True), low.float().mean(0), keys).to(KEY_DTYPE)


def nearest_tokens(tokens: MemoryTokens, merged: MemoryTokens) -> Tensor:
    """Indices (len(merged)) of the token of ``tokens`` nearest to each of ``merged``; among tokens that have no place, of the
    one in the same part of their order."""
    assert merged.xy is not None, "a distiller gives coordinates to what it merges"
    xy = merged.xy.new_zeros(len(tokens), 2) if tokens.xy is None else tokens.xy.to(merged.xy.device)
    placed, placed_merged = ~xy.isnan().any(-1), ~merged.xy.isnan().any(-1)
    if placed.all():
        return torch.cdist(merged.xy.float(), xy.float()).argmin(1)
    nearest = xy.new_zeros(len(merged), dtype=torch.long)
    distance = torch.cdist(merged.xy[placed_merged].float(), xy[placed].float())
    nearest[placed_merged] = placed.nonzero()[:, 0][distance.argmin(1)]
    others, count = (~placed).nonzero()[:, 0], int((~placed_merged).sum())
    nearest[~placed_merged] = others[(torch.arange(count, device=xy.device) * len(others)) // max(count, 1)]
    return nearest


def _round(features: FrameFeatures, device: torch.device) -> Tensor:
    """Features of a frame as they are stored (Q, C): one tensor for all objects, for as long as the frame is at hand."""
    by_device = _rounded.setdefault(features, {})
    if device not in by_device:
        by_device[device] = features.low.detach().to(device, KEY_DTYPE)
    return by_device[device]
