"""Memory tokens of fewer channels: features in the basis of their own principal components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_mem.types import MemoryTokens


@dataclass(frozen=True, eq=False)
class ReducedTokens(MemoryTokens):
    """Tokens to be restored before they are read (``restore_channels``): ``feat`` (L, r) are coefficients.

    Attributes:
        basis: (r, Cm) directions of largest variance, orthonormal; dtype and device of ``feat``.
        mean: (Cm) of the features.
    """

    basis: Tensor | None = None
    mean: Tensor | None = None

    @property
    def equivalent(self) -> float:
        """Tokens of all channels that take the same room, what goes with the coefficients included."""
        assert self.basis is not None, "tokens come with their basis"
        count, width = self.basis.shape
        return len(self) * count / width + count + 1


def reduce_channels(tokens: MemoryTokens, channels: int) -> MemoryTokens:
    """``tokens`` with features of ``channels`` numbers, by principal components; the same tokens where that saves nothing."""
    features = tokens.feat.float()
    count, width = features.shape
    if not 0 < channels < width or count * channels + (channels + 1) * width >= count * width:
        return tokens
    mean = features.mean(0)
    centred = features - mean
    basis = torch.linalg.eigh(centred.t() @ centred).eigenvectors[:, -channels:].t()
    like = tokens.feat
    return ReducedTokens(
        feat=(centred @ basis.t()).to(like.dtype),
        pos=tokens.pos,
        xy=tokens.xy,
        log_count=tokens.log_count,
        basis=basis.contiguous().to(like.dtype),
        mean=mean.to(like.dtype),
    )


def restore_channels(tokens: MemoryTokens) -> MemoryTokens:
    """Tokens of all channels, the nearest to those that ``reduce_channels`` was given; others as they are."""
    if not isinstance(tokens, ReducedTokens):
        return tokens
    assert tokens.basis is not None and tokens.mean is not None, "tokens come with their basis"
    feat = tokens.feat.float() @ tokens.basis.float() + tokens.mean.float()
    return MemoryTokens(feat.to(tokens.feat.dtype), tokens.pos, tokens.xy, tokens.log_count)
