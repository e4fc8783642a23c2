"""How much entries look alike: cosines of memory maps, of pooled image features, of object pointers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.types import MemoryEntry, MemoryTokens

LIKENESSES = ("map", "summary", "pointer")
"""What entries can be compared by."""


def map_likeness(tokens: MemoryTokens, reference: MemoryTokens) -> Tensor:
    """Mean over tokens of the cosine of their features, a scalar; of maps that differ in their number of tokens, the cosine
    of the mean features."""
    feat, other = tokens.feat.float(), reference.feat.float()
    if feat.shape != other.shape:
        return F.cosine_similarity(feat.mean(0), other.mean(0), dim=0)
    return F.cosine_similarity(feat, other, dim=1).mean()


def map_likenesses(entries: Sequence[MemoryEntry], reference: MemoryEntry) -> Tensor:
    """``map_likeness`` of each of ``entries`` to ``reference``, (n)."""
    feat, features = reference.tokens.feat, [e.tokens.feat for e in entries]
    if feat.is_cuda and all(x.shape == feat.shape for x in features):  # in few kernels
        return F.cosine_similarity(torch.stack(features).float(), feat.float()[None], dim=2).mean(1)
    return torch.stack([map_likeness(e.tokens, reference.tokens) for e in entries])


def likenesses(entries: Sequence[MemoryEntry], reference: MemoryEntry, by: str = "map") -> list[float]:
    """Likeness of each of ``entries`` to ``reference``, in -1..1; comes to the CPU in one transfer.

    Args:
        entries: of one object.
        reference: another entry of it.
        by: one of ``LIKENESSES``; an entry of an empty mask has no summary, and a likeness of 0.
    """
    if not entries:
        return []
    if by == "map":
        return map_likenesses(entries, reference).tolist()
    if by == "pointer":
        return cosines([e.pointer for e in entries], reference.pointer)
    return cosines([e.summary for e in entries], reference.summary)


def cosines(vectors: Sequence[Tensor | None], reference: Tensor | None) -> list[float]:
    """Cosines of ``vectors`` (C) to ``reference`` (C), 0 where either is None; come to the CPU in one transfer."""
    if reference is None or all(v is None for v in vectors):
        return [0.0] * len(vectors)
    rows = torch.stack([torch.zeros_like(reference) if v is None else v for v in vectors])
    return F.cosine_similarity(rows.float(), reference.float()[None], dim=1).tolist()


def all_cosines(vectors: Tensor, references: Tensor) -> Tensor:
    """Cosines of ``vectors`` (n, C) to each of ``references`` (k, C), (n, k)."""
    return F.cosine_similarity(vectors.float()[:, None], references.float()[None], dim=2)
