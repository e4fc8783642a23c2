"""How much a frame adds to a memory: the quality of its mask times its distance to what else is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.types import MemoryEntry


def significances(
    keys: Sequence[MemoryEntry],
    prompts: Sequence[MemoryEntry],
    *,
    pointer_weight: float,
    distances: Tensor | None = None,
) -> dict[int, float]:
    """Predicted IoU x sigmoid(object score) x distance to the nearest other entry, by frame; in one transfer to the CPU.

    Args:
        keys: entries with a summary.
        prompts: prompted entries, which count where they have a summary.
        pointer_weight: see ``pair_distances``.
        distances: what ``pair_distances`` gave for these entries; None has it computed.
    """
    if distances is None:
        distances = pair_distances(keys, prompts, pointer_weight=pointer_weight)
    distances.fill_diagonal_(float("inf"))
    nearest = distances.min(dim=1).values[: len(keys)].clamp(max=1.0).tolist()
    quality = [e.iou * torch.sigmoid(torch.tensor(e.objectness)).item() for e in keys]
    return {e.frame: q * d for e, q, d in zip(keys, quality, nearest)}


def pair_distances(keys: Sequence[MemoryEntry], prompts: Sequence[MemoryEntry], *, pointer_weight: float) -> Tensor:
    """Distances (n, n) between ``keys`` and those of ``prompts`` that have a summary: ``pointer_weight`` x (1 - cosine of object
    pointers) / 2 plus the rest x (1 - cosine of summaries) / 2.

    Args:
        keys: entries with a summary.
        prompts: prompted entries.
        pointer_weight: share of the pointers, 0..1.
    """
    entries = [*keys, *(p for p in prompts if p.summary is not None)]
    distances = pointer_weight * _distances([e.pointer for e in entries])
    return distances + (1 - pointer_weight) * _distances([e.summary for e in entries if e.summary is not None])


def _distances(vectors: Sequence[Tensor]) -> Tensor:
    """(1 - cosine) / 2 of all pairs, (n, n)."""
    unit = F.normalize(torch.stack([v.float() for v in vectors]), dim=1)
    return (1 - unit @ unit.t()) / 2
