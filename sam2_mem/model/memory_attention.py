"""Memory attention: image features attend to themselves and to the rows that a policy has read (SAM 2, section 4).

All rows of a batch see the same frame, each with its own memory. A row may carry a gain per key, a bias per logit
(log-counts, padding) and can be asked how much attention each token or item received.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.onednn_linear import Linear
from sam2_mem.model.attention_operators import Auto, ReadOperator, RotationAt, key_input
from sam2_mem.model.rope import Rotation, grid_coordinates, rotation_at
from sam2_mem.model.rotary_attention import RotaryAttention
from sam2_mem.types import ReadUsage, RowBatch, Usage


class Attended(NamedTuple):
    """``features`` (R, Q, C) conditioned on memory; ``usage`` one per row, or None."""

    features: Tensor
    usage: tuple[ReadUsage, ...] | None


class MemoryAttentionLayer(nn.Module):
    """Self-attention over the image, cross-attention to memory, feed-forward; each with a residual."""

    def __init__(
        self, *, width: int, memory_width: int, feedforward: int = 2048, num_heads: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(width=width, num_heads=num_heads, dropout=dropout)
        self.cross_attn_image = RotaryAttention(
            width=width, key_width=memory_width, num_heads=num_heads, dropout=dropout
        )
        self.linear1 = Linear(width, feedforward)
        self.linear2 = Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def self_attention(self, x: Tensor, rotation: Rotation) -> Tensor:
        """(B, Q, C) -> (B, Q, C)."""
        y = self.norm1(x)
        attn = self.self_attn
        return x + self.drop(attn(attn.queries(y, rotation), attn.keys(y, rotation), y))

    def memory_query(self, x: Tensor, rotation: Rotation, code: Tensor | None = None) -> Tensor:
        y = self.norm2(x)
        return self.cross_attn_image.queries(y if code is None else y + code, rotation)

    def memory_key(self, rows: RowBatch, rotation: Rotation) -> Tensor:
        return self.cross_attn_image.keys(key_input(rows), rotation)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.linear2(self.drop(self.linear1(self.norm3(x), "relu"))))


class MemoryAttention(nn.Module):
    """A stack of layers over rows.

    Args:
        width: C.
        memory_width: Cm.
        num_layers: 4 in SAM 2.
        feedforward: width of the feed-forward networks.
        num_heads: 1 in SAM 2.
        dropout: in training only.
        rope_theta: base of the rotary frequencies.
        memory_grid: tokens along a side of the grid that the keys of memory turn by (16 in EdgeTAM, whose distiller has as many
            windows along a side); None for the cells of the image, as in SAM 2. A distiller's tokens keep their places in
            cells of the image.
        usage_layer: layer whose cross-attention is reported as usage.
        usage_chunk: queries per chunk when the attention of that layer is recomputed for usage.
        operator: how cross-attention reads memory, see ``sam2_mem.model.attention_operators``; None for ``Auto()``.
            Usage is that of exact attention to the tokens as they are stored, whatever the operator.
    """

    def __init__(
        self,
        *,
        width: int = 256,
        memory_width: int = 64,
        num_layers: int = 4,
        feedforward: int = 2048,
        num_heads: int = 1,
        dropout: float = 0.1,
        rope_theta: float = 10000.0,
        memory_grid: int | None = None,
        usage_layer: int = 0,
        usage_chunk: int = 512,
        operator: ReadOperator | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= usage_layer < num_layers:
            raise ValueError(f"expected usage_layer in 0..{num_layers - 1}, got {usage_layer}")
        self.rope_theta = rope_theta
        self.memory_grid = memory_grid
        self.usage_layer = usage_layer
        self.usage_chunk = usage_chunk
        self.operator = Auto() if operator is None else operator
        layers = [
            MemoryAttentionLayer(
                width=width, memory_width=memory_width, feedforward=feedforward, num_heads=num_heads, dropout=dropout
            )
            for _ in range(num_layers)
        ]
        self.layers = cast("Sequence[MemoryAttentionLayer]", nn.ModuleList(layers))
        self.norm = nn.LayerNorm(width)

    @property
    def head_width(self) -> int:
        return self.layers[0].self_attn.head_width

    def forward(
        self,
        low: Tensor,
        low_pos: Tensor,
        grid: tuple[int, int],
        rows: RowBatch,
        usage: Usage = Usage.NONE,
        query_code: Tensor | None = None,
    ) -> Attended:
        """Condition one frame on R rows.

        Args:
            low: (Q, C) features; (R, Q, C) where rows belong to different frames; (T, Q, C) where each of T frames has R / T
                rows, one frame after the other.
            low_pos: their positions, of the same shape or (Q, C).
            grid: (H, W) with H * W = Q.
            rows: R rows of memory.
            usage: statistics to report.
            query_code: (1, C) added to the queries of every cross-attention.

        Returns:
            Features (R, Q, C) and, if asked for, the attention mass of ``usage_layer`` per row.
        """
        rotation_of = partial(rotation_at, dim=self.head_width, theta=self.rope_theta)
        grid_rotation = rotation_of(grid_coordinates(*grid, device=low.device))
        rotation_of_key = rotation_of if self.memory_grid is None else self._on_memory_grid(rotation_of, grid)
        memory = self.operator.prepare(rows, rotation_of_key, grid)
        x = self._start(low + 0.1 * low_pos, rows)
        report = None
        for i, layer in enumerate(self.layers):
            x = _one_per_row(layer.self_attention(x, grid_rotation), rows.rows)
            q = layer.memory_query(x, grid_rotation, query_code)
            if usage is not Usage.NONE and i == self.usage_layer:
                k = layer.memory_key(rows, rotation_of_key(rows.xy.unsqueeze(1)))
                report = measure_usage(q.expand(rows.rows, -1, -1, -1), k, rows, usage, chunk=self.usage_chunk)
            x = x + layer.drop(self.operator(layer.cross_attn_image, q, memory))
            x = layer.feed_forward(x)
        return Attended(self.norm(x), report)

    def _on_memory_grid(self, rotation_of: RotationAt, grid: tuple[int, int]) -> RotationAt:
        """``rotation_of`` for places in cells of the image: the middle of the first cell of the memory grid turns nothing."""
        assert self.memory_grid is not None, "asked for only where there is one"
        cells = grid[0] / self.memory_grid
        return lambda xy: rotation_of(((xy - (cells - 1) / 2) / cells).clamp(min=0))

    def _start(self, image: Tensor, rows: RowBatch) -> Tensor:
        """What enters the first layer, (1, T or R, Q, C). Until rows read their own memory they are equal, so that one
        does; in training each row has its own dropout."""
        if image.ndim == 3:
            return image
        return image.expand(rows.rows, -1, -1) if self.training else image.unsqueeze(0)


def _one_per_row(x: Tensor, rows: int) -> Tensor:
    """(T, Q, C) of several frames -> (rows, Q, C); of a single one as it is, which stands for all rows."""
    frames = x.shape[0]  # a shape, not len(), which would fix the number of rows of an exported network
    return x if frames in (1, rows) else x.repeat_interleave(rows // frames, 0)


@torch.no_grad()
def measure_usage(q: Tensor, k: Tensor, rows: RowBatch, usage: Usage, *, chunk: int) -> tuple[ReadUsage, ...]:
    """Attention mass per token or per (query, item), averaged over heads, in float32, ``chunk`` queries at a time.

    ``q`` (R, heads, Q, d), ``k`` (R, heads, L, d). The full (Q, L) map is never held.
    """
    if usage is Usage.EXPECTED:
        return expected_usage(q, k, rows)
    scale = q.shape[-1] ** -0.5
    bias = None if rows.bias is None else rows.bias[:, None, None, :].float()
    member = F.one_hot(rows.item, rows.num_items + 1)[..., : rows.num_items].float()
    mass = torch.zeros(rows.rows, rows.feat.shape[1], device=q.device)
    by_query = []
    for queries in q.float().split(chunk, dim=2):
        logits = queries @ k.float().transpose(-1, -2) * scale
        weight = (logits if bias is None else logits + bias).softmax(-1).mean(1)
        mass += weight.sum(1)
        if usage is Usage.ITEMS_BY_QUERY:
            by_query.append(weight @ member)
    if usage is Usage.ITEMS_BY_QUERY:
        table = torch.cat(by_query, dim=1)
        return tuple(ReadUsage(items=table[r, :, : len(sizes)]) for r, sizes in enumerate(rows.item_lengths))
    return tuple(ReadUsage(tokens=_per_item(x, sizes)) for x, sizes in zip(mass, rows.item_lengths))


def expected_usage(q: Tensor, k: Tensor, rows: RowBatch) -> tuple[ReadUsage, ...]:
    """Attention that tokens would receive on average from queries of the normal distribution that has the mean and the covariance
    of this frame's (expected attention, Devoto et al. 2025, arXiv 2510.00636): of a key k the mean of exp(q k) is
    exp(mean k + k covariance k / 2), with scaled queries. Arguments as in ``measure_usage``; adds up to Q."""
    scaled, key = q.float() * q.shape[-1] ** -0.5, k.float()
    mean = scaled.mean(2, keepdim=True)
    spread = key @ (scaled - mean).transpose(-1, -2)  # (R, heads, L, Q)
    logits = (key @ mean.transpose(-1, -2))[..., 0] + spread.square().mean(-1) / 2
    if rows.bias is not None:
        logits = logits + rows.bias[:, None, :].float()
    mass = logits.softmax(-1).mean(1) * q.shape[2]
    return tuple(ReadUsage(tokens=_per_item(x, sizes)) for x, sizes in zip(mass, rows.item_lengths))


def _per_item(mass: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Split (L) into one tensor per item; items are contiguous and in order, the rest is pointers and padding."""
    return mass[: sum(sizes)].split(list(sizes))
