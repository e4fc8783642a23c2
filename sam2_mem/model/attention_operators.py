"""How image queries read memory: exchangeable operators with one call.

An operator holds settings, no weights: all of them read with the projections of ``RotaryAttention`` and can be
swapped under the same checkpoint. ``Exact`` and ``LowDim`` give the same numbers, ``Auto`` chooses
between them. The others approximate, and each has a setting in which it is exact. Padding, counts and gains are
honoured by all, and a row's result does not depend on the rows beside it.

``flops`` of an operator are those of the matrix products of one call: key and value projections, attention, output
projection; two per multiplication and addition.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sam2_mem._moved import renamed
from sam2_mem.model.acceleration.onednn_linear import on_plain_cpu
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.rope import Rotation
from sam2_mem.model.rotary_attention import RotaryAttention, attend_in_tiles
from sam2_mem.types import RowBatch

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

RotationAt = Callable[[Tensor], Rotation]
"""Coordinates (..., N, 2) -> the rotation of tokens there."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What the cross-attention of every layer reads: R rows of L tokens.

    Attributes:
        key: (R, L, Cm) what key projections see.
        value: (R, L, Cm).
        rotation: (R or 1, 1, L, d / 2) each.
        bias: (R, L) added to logits, -inf for padding, or None.
        pointer: (R, L) bool, tokens of object pointers.
        lengths: (R) tokens before padding, None where that is only known on the device.
        counted: ``bias`` may hold more than padding.
    """

    key: Tensor
    value: Tensor
    rotation: Rotation
    bias: Tensor | None
    pointer: Tensor
    lengths: tuple[int, ...] | None = None
    counted: bool = True

    @classmethod
    def of(cls, rows: RowBatch, rotation_at: RotationAt) -> Memory:
        """Rows as they are."""
        pointer = rows.item == rows.num_items
        if rows.bias is not None:
            pointer = pointer & rows.bias.isfinite()
        return cls(
            key=key_input(rows),
            value=rows.feat,
            rotation=rotation_at(rows.xy.unsqueeze(1)),
            bias=rows.bias,
            pointer=pointer,
            lengths=rows.lengths,
            counted=rows.counted,
        )

    @property
    def rows(self) -> int:
        return self.key.shape[0]

    def rotation_of(self, row: int) -> Rotation:
        """(1, 1, L, d / 2) of one row."""
        return self.rotation.map(lambda t: t if t.shape[0] == 1 else t[row : row + 1])

    def logit_bias(self) -> Tensor:
        """(R, L), zeros where there is none."""
        return self.key.new_zeros(self.key.shape[:2]) if self.bias is None else self.bias

    def gather(self, index: Tensor, bias: Tensor) -> Memory:
        """Tokens ``index`` (R, N) of every row, with ``bias`` (R, N)."""
        row = torch.arange(self.rows, device=index.device)[:, None]
        rotation = self.rotation.map(lambda t: t.expand(self.rows, -1, -1, -1)[row, 0, index].unsqueeze(1))
        key, value, pointer = (x[row, index] for x in (self.key, self.value, self.pointer))
        return replace(
            self, key=key, value=value, rotation=rotation, bias=bias, pointer=pointer, lengths=None, counted=True
        )


def key_input(rows: RowBatch) -> Tensor:
    """What key projections see, (R, L, Cm): features and positions, times the gain."""
    key = rows.feat + rows.pos
    return key if rows.gain is None else key * rows.gain.unsqueeze(-1)


class ReadSize(NamedTuple):
    """Sizes of a read, for counting operations.

    Attributes:
        rows: R.
        queries: Q.
        tokens: spatial tokens of a row.
        pointers: pointer tokens of a row.
        width: C.
        memory_width: Cm.
        heads: of the attention.
    """

    rows: int
    queries: int
    tokens: int
    pointers: int
    width: int
    memory_width: int
    heads: int = 1

    @property
    def length(self) -> int:
        return self.tokens + self.pointers


class ReadOperator(ABC):
    """One way to read memory. Frozen; nothing of a video stays on it."""

    steady: ClassVar[bool] = False
    """Whether what it runs depends on shapes alone, so that it can be recorded
    (``sam2_mem.model.acceleration.cuda_graphs``)."""

    def prepare(self, rows: RowBatch, rotation_at: RotationAt, grid: tuple[int, int]) -> Memory:
        """What all layers of one frame read; ``grid`` (H, W) of the queries."""
        return Memory.of(rows, rotation_at)

    @abstractmethod
    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        """Rotated queries (R or 1, heads, Q, d) -> what they read, projected, (R, Q, C)."""

    @abstractmethod
    def flops(self, size: ReadSize) -> int:
        """Of one call."""


# -- exact ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exact(ReadOperator):
    """SAM 2's: values are projected to the width of the model, then attended to."""

    steady = True

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        k = attention.keys(memory.key, memory.rotation)
        return attention(q.expand(memory.rows, -1, -1, -1), k, memory.value, memory.bias)

    def flops(self, size: ReadSize) -> int:
        rows, queries, width = size.rows, size.queries, size.width
        project = 2 * size.length * size.memory_width * width
        attend = 2 * queries * size.length * width
        return 2 * rows * (project + attend + queries * width * width)


@dataclass(frozen=True)
class LowDim(ReadOperator):
    """Values are attended to as they are stored, Cm wide, and projected after: the weights of a query add up to one, so
    ``softmax(S) (M Wv' + b) = (softmax(S) M) Wv' + b``. Keys cannot: each is rotated by its own
    coordinates after its projection.

    On a CPU without gradient, scores are made in tiles that stay in its cache; elsewhere the fused kernels of torch do it.
    Dropout of attention weights, in training, is left to ``Exact``.
    """

    steady = True

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        if attention.training and attention.dropout:
            return Exact()(attention, q, memory)
        read = _read_in_tiles if on_plain_cpu(memory.key) else _read_fused
        return attention.project_read(read(attention, q, memory))

    def flops(self, size: ReadSize) -> int:
        scores = size.queries * size.length * size.width
        values = size.heads * size.queries * size.length * size.memory_width
        return narrow_flops(size, scores + values)


def narrow_flops(size: ReadSize, attend: int) -> int:
    """Of a call that makes every key, needs ``attend`` multiplications per row to attend, and projects values after."""
    project = size.length * size.memory_width * size.width
    out = size.heads * size.queries * size.memory_width * size.width
    join = size.width * size.width * (size.memory_width + 1)
    return 2 * (size.rows * (project + attend + out) + join)


def _read_in_tiles(attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
    """Weighted means of stored values, (R, heads, Q, Cm), one row after the other."""
    means = []
    for r in range(memory.rows):
        k = attention.keys(memory.key[r : r + 1], memory.rotation_of(r))[0]
        bias = None if memory.bias is None else memory.bias[r]
        queries = q[r if q.shape[0] > 1 else 0]
        means.append(torch.stack([attend_in_tiles(x, y, memory.value[r], bias) for x, y in zip(queries, k)]))
    return torch.stack(means)


def _read_fused(attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
    k = attention.keys(memory.key, memory.rotation)
    heads = attention.num_heads
    value = memory.value.to(k.dtype).unsqueeze(1).expand(-1, heads, -1, -1)
    mask = None if memory.bias is None else memory.bias[:, None, None, :].to(k.dtype)
    return attention.kernel(q.expand(memory.rows, -1, -1, -1), k, value, attn_mask=mask)


@dataclass(frozen=True)
class Auto(ReadOperator):
    """The faster of ``LowDim`` and ``Exact``, which give the same numbers: the first on a CPU for reads of at
    least ``least`` scores whose memory is at most half as wide as the model."""

    least: int = 1 << 16

    steady = True

    def _choose(self, wide: int, narrow: int, scores: int) -> ReadOperator:
        return LowDim() if 2 * narrow <= wide and scores >= self.least else Exact()

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        if not on_plain_cpu(memory.key):
            return Exact()(attention, q, memory)
        length, narrow = memory.key.shape[1:]
        chosen = self._choose(attention.q_proj.out_features, narrow, q.shape[2] * length)
        return chosen(attention, q, memory)

    def flops(self, size: ReadSize) -> int:
        """On a CPU."""
        return self._choose(size.width, size.memory_width, size.queries * size.length).flops(size)


@dataclass(frozen=True)
class Packed(ReadOperator):
    """Exact attention that leaves padding out: rows of unequal length (``tracker.max_padding``), as when objects appear
    later than others, cost what they hold. On a CUDA device in half precision one kernel takes all rows, end to end
    (``torch.nn.attention.varlen``); elsewhere, and where tokens have counts, which that kernel cannot add, row follows row.
    """

    steady = True

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        if memory.lengths is None or (attention.training and attention.dropout):
            return Exact()(attention, q, memory)
        k = attention.keys(memory.key, memory.rotation)
        v = attention.heads(attention.v_proj(memory.value))
        q = q.expand(memory.rows, -1, -1, -1)
        read = _end_to_end if _takes_unequal(q, memory) else _row_by_row
        return attention.out_proj(read(attention, q, k, v, memory, memory.lengths).transpose(1, 2).flatten(2))

    def flops(self, size: ReadSize) -> int:
        """For rows of equal length."""
        return Exact().flops(size)


def _takes_unequal(q: Tensor, memory: Memory) -> bool:
    half = q.dtype in (torch.float16, torch.bfloat16)
    has_no_counts = half and not memory.counted and not torch.is_grad_enabled()
    return varlen_attn is not None and q.device.type == "cuda" and has_no_counts


def _row_by_row(
    attention: RotaryAttention, q: Tensor, k: Tensor, v: Tensor, memory: Memory, lengths: Sequence[int]
) -> Tensor:
    """(R, heads, Q, d)."""
    bias = memory.bias if memory.counted else None
    read = []
    for r, length in enumerate(lengths):
        mask = None if bias is None else bias[r, None, None, None, :length].to(q.dtype)
        read.append(attention.kernel(q[r : r + 1], k[r : r + 1, :, :length], v[r : r + 1, :, :length], attn_mask=mask))
    return torch.cat(read)


def _end_to_end(
    attention: RotaryAttention, q: Tensor, k: Tensor, v: Tensor, memory: Memory, lengths: tuple[int, ...]
) -> Tensor:
    """(R, heads, Q, d)."""
    rows, queries = len(q), q.shape[2]
    ends_q, ends_k = _ends((queries,) * rows, q.device), _ends(lengths, q.device)
    packed_k, packed_v = (
        torch.cat([x[r, :, :length].transpose(0, 1) for r, length in enumerate(lengths)]).contiguous() for x in (k, v)
    )
    packed_q = q.transpose(1, 2).flatten(0, 1).contiguous()
    read = varlen_attn(packed_q, packed_k, packed_v, ends_q, ends_k, queries, max(lengths))
    return cast("Tensor", read).unflatten(0, (rows, queries)).transpose(1, 2)


@lru_cache(maxsize=64)
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where rows end that lie end to end, from 0 on."""
    with torch.inference_mode(False):
        return to_device_async([0, *accumulate(lengths)], device, torch.int32)


# -- approximate ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled(ReadOperator):
    """Tokens of one read item whose coordinates share a block of ``factor`` x ``factor`` cells are read as one: the mean of
    their keys and values, with the logarithm of their number added to its logit. Object pointers are not pooled, nor
    are tokens without coordinates. Tokens that stand for several already count as that many. Equal tokens in every block:
    exact.

    A mean is rotated by the mean of its tokens' rotations, which is the mean of their rotated keys as far as the keys
    are equal before rotation.

    Args:
        factor: side of a block in cells.
        then: the operator that reads the pooled memory.
    """

    factor: int = 2
    then: ReadOperator = field(default_factory=Auto)

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"expected factor >= 1, got {self.factor}")

    def prepare(self, rows: RowBatch, rotation_at: RotationAt, grid: tuple[int, int]) -> Memory:
        return merge(self.then.prepare(rows, rotation_at, grid), block_groups(rows, grid, self.factor))

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        return self.then(attention, q, memory)

    def flops(self, size: ReadSize) -> int:
        """For whole maps whose sides are multiples of ``factor``."""
        return self.then.flops(size._replace(tokens=size.tokens // self.factor**2))


def block_groups(rows: RowBatch, grid: tuple[int, int], factor: int) -> Tensor:
    """(R, L) numbers, equal for spatial tokens of a read item whose coordinates share a block of ``factor`` x ``factor``
    cells."""
    across, down = (math.ceil(side / factor) + 1 for side in reversed(grid))
    cell = (rows.xy / factor).nan_to_num().floor().long()
    block = cell[..., 0].clamp(0, across - 1) + across * cell[..., 1].clamp(0, down - 1)
    shared = block + across * down * rows.item
    separate = across * down * (rows.num_items + 1) + torch.arange(rows.item.shape[1], device=rows.item.device)
    return torch.where(_has_coordinates(rows), shared, separate)


def _has_coordinates(rows: RowBatch) -> Tensor:
    """(R, L) bool: spatial tokens that have a place. Of several at the origin in one item, all may have none."""
    placed = ~rows.xy.isnan().any(-1)
    origin = (rows.xy == 0).all(-1).expand_as(rows.item)
    crowd = torch.zeros(rows.rows, rows.num_items + 1, dtype=torch.long, device=origin.device)
    crowd.scatter_add_(1, rows.item, origin.long())
    return (rows.item < rows.num_items) & placed & ~(origin & (crowd.gather(1, rows.item) > 1))


def merge(memory: Memory, group: Tensor) -> Memory:
    """One token for all tokens of a row with the same ``group`` (R, L): means by count, counts added. Padding stays
    out."""
    bias = memory.logit_bias()
    rows = [_merge_row(memory, r, group[r], bias[r]) for r in range(memory.rows)]
    padding = (0.0, 0.0, 0.0, 0.0, float("-inf"), 0.0)
    key, value, cos, sin, log_count, pointer = (
        pad_sequence(list(column), batch_first=True, padding_value=value) for column, value in zip(zip(*rows), padding)
    )
    rotation = Rotation.of(cos.unsqueeze(1), sin.unsqueeze(1))
    return replace(
        memory, key=key, value=value, rotation=rotation, bias=log_count, pointer=pointer, lengths=None, counted=True
    )


def _merge_row(memory: Memory, row: int, group: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Keys, values, cosines, sines, log-counts and pointer flags of one row, of as many tokens as it has groups."""
    real = bias.isfinite().nonzero()[:, 0]
    groups, member = group[real].unique(return_inverse=True)
    count = bias[real].float().exp()
    total = count.new_zeros(len(groups)).index_add_(0, member, count)
    share = (count / total[member]).unsqueeze(-1)
    rotation = memory.rotation_of(row)

    def mean(x: Tensor) -> Tensor:
        weighted = x[real].float() * share
        return weighted.new_zeros(len(groups), x.shape[1]).index_add_(0, member, weighted).to(x.dtype)

    key, value, cos, sin = (
        mean(x) for x in (memory.key[row], memory.value[row], rotation.cos[0, 0], rotation.sin[0, 0])
    )
    pointer = torch.zeros(len(groups), dtype=torch.bool, device=member.device)
    pointer[member] = memory.pointer[row][real]
    return key, value, cos, sin, total.log().to(bias.dtype), pointer


@dataclass(frozen=True)
class Landmarks(ReadOperator):
    """EfficientTAM's: where a row reads more than one map, keys as they are after projection and rotation, and values, are
    averaged over blocks of ``factor`` x ``factor`` cells of each map; a block counts as its number of tokens. Object pointers
    and tokens that have no place are read as they are. Rows of one map: exact.

    Args:
        factor: side of a block in cells.
        count_in: "logit" adds the logarithm of the count to the logit; "key" adds it to every channel of the averaged key,
            which is how the published weights of the kind _2 were trained.
    """

    factor: int = 2
    count_in: str = "logit"

    def __post_init__(self) -> None:
        _check_positive(factor=self.factor)
        if self.count_in not in ("logit", "key"):
            raise ValueError(f"expected count_in 'logit' or 'key', got {self.count_in!r}")

    def prepare(self, rows: RowBatch, rotation_at: RotationAt, grid: tuple[int, int]) -> Memory:
        several = (rows.item == 1).any(1, keepdim=True) & (rows.num_items > 1)
        separate = torch.arange(rows.item.shape[1], device=rows.item.device)
        group = torch.where(several, block_groups(rows, grid, self.factor), separate)
        return _GroupedMemory.of_groups(Memory.of(rows, rotation_at), group)

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        assert isinstance(memory, _GroupedMemory), "memory comes from this operator's own prepare"
        means = []
        for r in range(memory.rows):
            keys, value, bias = self._landmarks(attention, memory, r)
            means.append(_read_row(attention, q[r if q.shape[0] > 1 else 0], keys, value, bias))
        return attention.project_read(torch.stack(means))

    def _landmarks(self, attention: RotaryAttention, memory: _GroupedMemory, row: int) -> tuple[Tensor, ...]:
        """Of one row: keys (heads, N, d), values (N, Cm), biases (N)."""
        bias = memory.logit_bias()[row]
        real = bias.isfinite().nonzero()[:, 0]
        keys = attention.keys(memory.key[row : row + 1, real], memory.rotation_of(row).map(lambda t: t[:, :, real]))[0]
        groups, member, size = memory.group[row][real].unique(return_inverse=True, return_counts=True)
        count = bias[real].float().exp()
        total = count.new_zeros(len(groups)).index_add_(0, member, count)
        share = count / total[member]
        means = keys.new_zeros(len(keys), len(groups), keys.shape[-1])
        means.index_add_(1, member, keys * share[:, None].to(keys.dtype))
        value = memory.value[row][real]
        values = value.new_zeros(len(groups), value.shape[1]).index_add_(
            0, member, value * share[:, None].to(value.dtype)
        )
        if self.count_in == "logit":
            return means, values, total.log()
        return means + size.float().log()[:, None].to(means.dtype), values, (total / size).log()

    def flops(self, size: ReadSize) -> int:
        """For several whole maps whose sides are multiples of ``factor``; every key is made, the fewer are attended to."""
        length = size.tokens // self.factor**2 + size.pointers
        scores, values = size.queries * length * size.width, size.heads * size.queries * length * size.memory_width
        return narrow_flops(size, scores + values)


@dataclass(frozen=True, eq=False)
class _GroupedMemory(Memory):
    """Memory whose tokens of one ``group`` (R, L) are read as one."""

    group: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of_groups(cls, memory: Memory, group: Tensor) -> _GroupedMemory:
        return cls(**{f.name: getattr(memory, f.name) for f in fields(memory)}, group=group)


def _read_row(attention: RotaryAttention, q: Tensor, keys: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Queries (heads, Q, d) of one row, keys (heads, N, d), values (N, Cm), biases (N) -> weighted means of values,
    (heads, Q, Cm)."""
    if on_plain_cpu(keys):
        return torch.stack([attend_in_tiles(x, y, value, bias) for x, y in zip(q, keys)])
    dropout = attention.dropout if attention.training else 0.0
    values, mask = value.to(keys.dtype).expand(len(keys), -1, -1), bias.to(keys.dtype).expand(1, 1, -1)
    return attention.kernel(q[None], keys[None], values[None], attn_mask=mask[None], dropout_p=dropout)[0]


@dataclass(frozen=True)
class TopK(ReadOperator):
    """Every query attends to its ``k`` best memory tokens and to all object pointers. All scores are made, so this
    saves little; it is what ``BlockTopK`` approximates. With ``k`` of all tokens: exact.

    Args:
        k: tokens per query and head; more where scores tie.
        chunk: queries at a time.
    """

    k: int = 512
    chunk: int = 256

    def __post_init__(self) -> None:
        _check_positive(k=self.k, chunk=self.chunk)

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        keys = attention.keys(memory.key, memory.rotation).transpose(-1, -2)
        bias = memory.logit_bias()[:, None, None, :]
        pointer = memory.pointer[:, None, None, :]
        means = []
        for queries in (q * attention.scale).split(self.chunk, dim=2):
            scores = queries @ keys + bias
            weights = scores.masked_fill(~(pointer | self._best(scores, pointer)), float("-inf")).softmax(-1)
            weights = F.dropout(weights, attention.dropout, attention.training)
            means.append(weights @ memory.value.unsqueeze(1).to(weights.dtype))
        return attention.project_read(torch.cat(means, dim=2))

    def _best(self, scores: Tensor, pointer: Tensor) -> Tensor:
        spatial = scores.masked_fill(pointer, float("-inf"))
        threshold = spatial.topk(min(self.k, scores.shape[-1]), dim=-1).values[..., -1:]
        return spatial >= threshold

    def flops(self, size: ReadSize) -> int:
        attend = size.queries * size.length * (size.width + size.heads * size.memory_width)
        return narrow_flops(size, attend)


@dataclass(frozen=True)
class BlockTopK(ReadOperator):
    """Blocks of ``side`` x ``side`` neighbouring queries choose ``k`` memory tokens together, by the score of their
    mean query, and each of their queries attends to those and to all object pointers. With ``k`` of all tokens: exact.

    Args:
        k: tokens per block and head.
        side: of a block in cells; the largest divisor it shares with the side of the grid is used.
        chunk: blocks at a time.
    """

    k: int = 1024
    side: int = 4
    chunk: int = 16

    def __post_init__(self) -> None:
        _check_positive(k=self.k, side=self.side, chunk=self.chunk)

    def prepare(self, rows: RowBatch, rotation_at: RotationAt, grid: tuple[int, int]) -> Memory:
        return _BlockedMemory.around(Memory.of(rows, rotation_at), grid, self.side)

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        assert isinstance(memory, _BlockedMemory), "memory comes from this operator's own prepare"
        blocks = memory.split(q)
        keys = attention.keys(memory.key, memory.rotation)
        means = [
            torch.stack(
                [
                    self._read_row(attention, blocks[r if len(blocks) > 1 else 0, h], keys[r, h], memory, r)
                    for h in range(attention.num_heads)
                ]
            )
            for r in range(memory.rows)
        ]
        return attention.project_read(memory.join(torch.stack(means)))

    def _read_row(self, attention: RotaryAttention, blocks: Tensor, keys: Tensor, memory: Memory, row: int) -> Tensor:
        """Blocks (N, B, d) of queries, keys (L, d) -> weighted means of values, (N, B, Cm)."""
        bias, value = memory.logit_bias()[row], memory.value[row]
        rank = (blocks.mean(1) * attention.scale @ keys.t() + bias).masked_fill(memory.pointer[row], float("inf"))
        count = self.k + int(memory.pointer[row].sum())
        chosen = rank.topk(min(count, len(bias)), dim=-1).indices
        dropout = attention.dropout if attention.training else 0.0
        means = []
        for queries, index in zip(blocks.split(self.chunk), chosen.split(self.chunk)):
            mask = bias[index].unsqueeze(1).to(queries.dtype)
            values = value[index].to(queries.dtype)
            q, k, v, bias_of_blocks = (x.unsqueeze(0) for x in (queries, keys[index], values, mask))  # blocks as heads
            means.append(F.scaled_dot_product_attention(q, k, v, bias_of_blocks, dropout)[0])
        return torch.cat(means)

    def flops(self, size: ReadSize) -> int:
        """For a grid whose side is a multiple of ``side``."""
        rank = size.queries // self.side**2 * size.length * size.width
        chosen = min(self.k + size.pointers, size.length)
        return narrow_flops(size, rank + size.queries * chosen * (size.width + size.heads * size.memory_width))


@dataclass(frozen=True, eq=False)
class _BlockedMemory(Memory):
    """Memory for queries of ``grid`` (H, W) that are read in blocks of ``side``."""

    grid: tuple[int, int] = (1, 1)
    side: int = 1

    @classmethod
    def around(cls, memory: Memory, grid: tuple[int, int], side: int) -> _BlockedMemory:
        side = math.gcd(side, *grid)
        return cls(**{f.name: getattr(memory, f.name) for f in fields(memory)}, grid=grid, side=side)

    def split(self, q: Tensor) -> Tensor:
        """(R, heads, Q, d) -> (R, heads, blocks, side * side, d)."""
        cells = q.unflatten(2, self.grid).unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        return cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def join(self, read: Tensor) -> Tensor:
        """(R, heads, blocks, side * side, n) -> (R, heads, Q, n)."""
        height, width = (n // self.side for n in self.grid)
        cells = read.unflatten(2, (height, width)).unflatten(4, (self.side, self.side))
        return cells.transpose(3, 4).flatten(2, 5)


@dataclass(frozen=True)
class SparsePointers(ReadOperator):
    """Only the ``keep`` object pointers that the mean query scores highest are read, in every layer anew. The other
    memory is left to ``then``. With ``keep`` of all pointers: exact.

    Args:
        keep: pointers per row.
        then: the operator that reads what is left.
    """

    keep: int = 4
    then: ReadOperator = field(default_factory=Auto)

    def __post_init__(self) -> None:
        _check_positive(keep=self.keep)

    def prepare(self, rows: RowBatch, rotation_at: RotationAt, grid: tuple[int, int]) -> Memory:
        return self.then.prepare(rows, rotation_at, grid)

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        return self.then(attention, q, self._with_best_pointers(attention, q, memory))

    def _with_best_pointers(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Memory:
        bias = memory.logit_bias()
        mean = q.mean(2).expand(memory.rows, -1, -1)
        indices = [self._token_index(attention, mean[r], memory, r, bias[r].isfinite()) for r in range(memory.rows)]
        index = pad_sequence(indices, batch_first=True)
        lengths = torch.tensor([len(i) for i in indices], device=index.device)
        beyond = torch.arange(index.shape[1], device=index.device) >= lengths[:, None]
        return memory.gather(index, bias.gather(1, index).masked_fill(beyond, float("-inf")))

    def _token_index(self, attention: RotaryAttention, mean: Tensor, memory: Memory, row: int, real: Tensor) -> Tensor:
        """Indices of the tokens of one row that are read; ``mean`` (heads, d) query, ``real`` (L) bool, not padding."""
        pointer = memory.pointer[row]
        spatial, tokens = (real & ~pointer).nonzero()[:, 0], pointer.nonzero()[:, 0]
        split = attention.q_proj.out_features // attention.k_proj.in_features
        if len(tokens) <= self.keep * split:
            return torch.cat([spatial, tokens])
        rotation = memory.rotation_of(row).map(lambda t: t[:, :, tokens])
        keys = attention.keys(memory.key[row : row + 1, tokens], rotation)[0]
        scores = (keys @ mean.unsqueeze(-1)).squeeze(-1).float() * attention.scale
        by_pointer = scores.unflatten(-1, (-1, split)).logsumexp(-1).logsumexp(0)
        best = by_pointer.topk(self.keep).indices.sort().values
        return torch.cat([spatial, tokens.unflatten(0, (-1, split))[best].flatten()])

    def flops(self, size: ReadSize) -> int:
        keep = min(size.pointers, self.keep * (size.width // size.memory_width))
        choose = 2 * size.rows * size.pointers * size.width * (size.memory_width + 1)
        return self.then.flops(size._replace(pointers=keep)) + (choose if keep < size.pointers else 0)


def _check_positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"expected {name} >= 1, got {value}")


__getattr__ = renamed(__name__)
