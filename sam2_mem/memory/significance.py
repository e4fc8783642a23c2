"""How much a frame adds to a memory: the quality of its mask times its distance to what else is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.types import MemoryEntry


def significances(
    keys: Sequence[MemoryEntry], prompts: Sequence[MemoryEntry], *, pointer_weight: float
) -> dict[int, float]:
    """Predicted IoU x sigmoid(object score) x distance to the nearest other entry, by frame; in one transfer to the CPU.

    The distance is ``pointer_weight`` x (1 - cosine of object pointers) / 2 plus the rest x (1 - cosine of summaries) / 2.

    Args:
        keys: entries with a summary.
        prompts: prompted entries, which count where they have a summary.
        pointer_weight: share of the pointers, 0..1.
    """
    entries = [*keys, *(p for p in prompts if p.summary is not None)]
    distance = pointer_weight * _distances([e.pointer for e in entries])
    distance = distance + (1 - pointer_weight) * _distances([e.summary for e in entries if e.summary is not None])
    distance.fill_diagonal_(float("inf"))
    nearest = distance.min(dim=1).values[: len(keys)].clamp(max=1.0).tolist()
    quality = [e.iou * torch.sigmoid(torch.tensor(e.objectness)).item() for e in keys]
    return {e.frame: q * d for e, q, d in zip(keys, quality, nearest)}


def _distances(vectors: Sequence[Tensor]) -> Tensor:
    """(1 - cosine) / 2 of all pairs, (n, n)."""
    unit = F.normalize(torch.stack([v.float() for v in vectors]), dim=1)
    return (1 - unit @ unit.t()) / 2
