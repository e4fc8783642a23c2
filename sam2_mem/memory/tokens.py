"""Pure functions on memory tokens that policies share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sam2_mem.types import MemoryEntry, MemoryTokens


def token_count(entries: Iterable[MemoryEntry]) -> int:
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


def entry_tensors(entry: MemoryEntry) -> list[Tensor | None]:
    """Every tensor an entry keeps alive."""
    own = [entry.pointer, entry.summary]
    if entry.tokens is None:
        return own
    return own + [entry.tokens.feat, entry.tokens.pos, entry.tokens.xy, entry.tokens.log_count]


def map_tokens(tokens: MemoryTokens, change) -> MemoryTokens:
    """``change`` applied to the stored features; positions are shared and stay."""
    return MemoryTokens(feat=change(tokens.feat), pos=tokens.pos, xy=tokens.xy, log_count=tokens.log_count)


def foreground_weights(logits: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mask logits (h, w) as foreground probability of every image token, (Q) in [0, 1]."""
    probability = torch.nn.functional.adaptive_avg_pool2d(logits.float().sigmoid()[None, None], grid)
    return probability.flatten()


def masked_mean(features: Tensor, weights: Tensor) -> Tensor | None:
    """Mean of ``features`` (Q, C) under ``weights`` (Q); None where the weights are empty."""
    total = weights.sum()
    if not total > 1e-6:
        return None
    return (weights.to(features.dtype) @ features) / total.to(features.dtype)
