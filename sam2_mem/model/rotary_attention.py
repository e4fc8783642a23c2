"""Attention with rotary coordinates, whose queries, keys and output projection can also be used one by one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.attention_kernels import attend_without_cudnn
from sam2_mem.model.acceleration.onednn_linear import Linear, linear
from sam2_mem.model.rope import Rotation, rotate

TILE_QUERIES, TILE_KEYS = 1024, 1024
"""Scores made at a time on a CPU, four megabytes of them: few enough for the cache, enough for several threads."""
LOG2_E = math.log2(math.e)
power_ = Tensor.exp2_
"""Scores are made to the base of two, whose powers torch makes faster on a CPU than those of e."""


class RotaryAttention(nn.Module):
    """Attention of one or more heads whose queries and keys are rotated by their coordinates.

    Args:
        width: channels C of the queries.
        key_width: channels of keys and values (C or Cm).
        num_heads: heads of width / heads.
        dropout: of attention weights, in training only.

    ``kernel`` attends, with the arguments of torch's ``scaled_dot_product_attention``.
    """

    def __init__(self, *, width: int, key_width: int | None = None, num_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"expected a width that divides into {num_heads} heads, got {width}")
        own = key_width is None  # else there may be any number of keys
        self.kernel: Callable[..., Tensor] = F.scaled_dot_product_attention if own else attend_without_cudnn
        kind = Linear if own else nn.Linear
        key_width = width if key_width is None else key_width
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = Linear(width, width)
        self.k_proj = kind(key_width, width)
        self.v_proj = kind(key_width, width)
        self.out_proj = Linear(width, width)

    @property
    def head_width(self) -> int:
        return self.q_proj.out_features // self.num_heads

    @property
    def scale(self) -> float:
        return self.head_width**-0.5

    def heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, head width)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def queries(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, Q, C) -> (B, heads, Q, head width), rotated."""
        return rotate(self.heads(self.q_proj(x)), rotation)

    def keys(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, L, key width) -> (B, heads, L, head width), rotated."""
        return rotate(self.heads(self.k_proj(x)), rotation)

    def forward(self, q: Tensor, k: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend. ``q``, ``k`` from ``queries`` and ``keys``; ``values`` (B, L, key width); ``bias`` (B, L)."""
        v = self.heads(self.v_proj(values))
        mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        out = self.kernel(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def project_read(self, read: Tensor) -> Tensor:
        """Weighted means of values as they are stored, (B, heads, Q, key width) -> the output (B, Q, C).

        Value and output projection are one product: ``Wo (Wv m + bv) + bo``, head by head.
        """
        value = self.v_proj.weight.unflatten(0, (self.num_heads, -1))
        out = self.out_proj.weight.unflatten(1, (self.num_heads, -1)).transpose(0, 1)
        joint = (out @ value).transpose(0, 1).flatten(1)
        bias = F.linear(self.v_proj.bias[None], self.out_proj.weight, self.out_proj.bias)[0]
        return linear(read.transpose(1, 2).flatten(2), joint, bias)


def attend_in_tiles(q: Tensor, k: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of one head without gradient, float32: ``q`` (Q, d), ``k`` (L, d), ``value`` (L, n), ``bias`` (L) ->
    (Q, n).

    A tile of scores is used up before the next one is made, so that it never leaves the processor's cache. The largest
    score so far is taken off before the exponential (Milakov and Gimelshein 2018).
    """
    buffer = q.new_empty(min(TILE_QUERIES, len(q)) * min(TILE_KEYS, len(k)))
    tiles = (q * (LOG2_E * q.shape[-1] ** -0.5)).split(TILE_QUERIES)
    bias = None if bias is None else bias * LOG2_E
    return torch.cat([_mean(tile, k, value, bias, buffer) for tile in tiles])


def _mean(q: Tensor, k: Tensor, value: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """``value`` weighted by powers of two of the scores, (Q, n), for one tile of the queries."""
    total, weight = q.new_zeros(len(q), value.shape[1]), q.new_zeros(len(q), 1)
    top = q.new_full((len(q), 1), torch.finfo(q.dtype).min)
    for start in range(0, len(k), TILE_KEYS):
        tile = slice(start, start + TILE_KEYS)
        keys, values = k[tile], value[tile].t()
        fast = len(keys) == TILE_KEYS  # a shape that comes again, which `linear` asks for
        scores = linear(q, keys) if fast else torch.mm(q, keys.t(), out=buffer[: len(q) * len(keys)].view(len(q), -1))
        if bias is not None:
            scores.add_(bias[tile])
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        power_(scores.sub_(new_top))
        decay = power_(top - new_top)
        total.mul_(decay)
        total = total.add_(linear(scores, values)) if fast else total.addmm_(scores, values.t())
        weight.mul_(decay).add_(scores.sum(-1, keepdim=True))
        top = new_top
    return total.div_(weight)
