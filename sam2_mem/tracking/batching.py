"""From what policies want to read to what the network is run on: the one place where objects meet.

Equal reads become one row, rows of similar length become one padded batch, temporal codes are added to the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.types import MemoryRead, ReadItem, ReadPointer, RowBatch


class TimeCodes(Protocol):
    """The learned codes of time that rows need from the model, and its memory width."""

    memory_width: int

    def slot_code(self, slots: Sequence[float | None]) -> Tensor: ...

    def order_code(self, orders: Sequence[int | None]) -> Tensor | None: ...

    def pointer_code(self, offsets: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class BatchedReads:
    """Batches of rows, and for every read (in the order given) its batch and row. Reads of nothing are ``None``."""

    batches: tuple[RowBatch, ...]
    place: tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True, eq=False)
class _Row:
    """One distinct read, before padding. ``xy_key`` is equal for rows whose coordinates are the same tensors."""

    feat: Tensor
    pos: Tensor
    xy: Tensor
    xy_key: tuple[int, ...]
    gain: Tensor | None
    log_count: Tensor | None
    item: Tensor
    num_items: int
    sensory: Tensor | None

    def __len__(self) -> int:
        return self.feat.shape[0]


def assemble(
    reads: Sequence[MemoryRead], codes: TimeCodes, *, max_padding: float = 0.0, max_rows: int = 0
) -> BatchedReads:
    """Rows for all reads of one frame.

    Args:
        reads: of all pathways of all objects. codes: the model.
        max_padding: largest share of padding in a row (0: only rows of equal length share a batch).
        max_rows: most rows in a batch, 0 for no limit.
    """
    distinct: dict[tuple, int] = {}
    which = [distinct.setdefault(read.key(), len(distinct)) if _reads_something(read) else None for read in reads]
    first = {index: reads[which.index(index)] for index in distinct.values()}
    rows = [_row(first[i], codes) for i in range(len(distinct))]
    groups = bucket([len(row) for row in rows], max_padding=max_padding, max_rows=max_rows)
    place = {row: (b, position) for b, group in enumerate(groups) for position, row in enumerate(group)}
    return BatchedReads(
        batches=tuple(_batch([rows[i] for i in group]) for group in groups),
        place=tuple(None if index is None else place[index] for index in which),
    )


def bucket(lengths: Sequence[int], *, max_padding: float = 0.0, max_rows: int = 0) -> list[list[int]]:
    """Group rows by length, longest first, so that no row is padded by more than ``max_padding`` of the longest."""
    if not 0.0 <= max_padding < 1.0:
        raise ValueError(f"expected max_padding in [0, 1), got {max_padding}")
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = groups and lengths[i] >= (1.0 - max_padding) * lengths[groups[-1][0]]
        if fits and not (max_rows and len(groups[-1]) >= max_rows):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _reads_something(read: MemoryRead) -> bool:
    return bool(read.items or read.pointers)


def _row(read: MemoryRead, codes: TimeCodes) -> _Row:
    reference = codes.slot_code([None])
    pointers = _pointer_tokens(read.pointers, codes, reference) if read.pointers else None
    dtype = reference.dtype
    feats = [item.tokens.feat.to(reference.device, dtype) for item in read.items]
    spatial = _key_positions(read.items, codes, dtype)
    xys = [_coordinates(item, reference.device) for item in read.items]
    sizes = [f.shape[0] for f in feats]
    if pointers is not None:
        feats.append(pointers[0])
        spatial.append(pointers[1])
        xys.append(_origin(pointers[0].shape[0], reference.device))
        sizes.append(pointers[0].shape[0])
    names = list(range(len(read.items))) + [len(read.items)] * (pointers is not None)
    return _Row(
        feat=torch.cat(feats),
        pos=torch.cat(spatial),
        xy=torch.cat(xys),
        xy_key=tuple(id(item.tokens.xy) if item.tokens.xy is not None else -len(item.tokens) for item in read.items),
        gain=_gains(read, sizes, reference),
        log_count=_log_counts(read.items, sizes, reference),
        item=to_device_async(torch.repeat_interleave(torch.tensor(names), torch.tensor(sizes)), reference.device),
        num_items=len(read.items),
        sensory=read.sensory,
    )


def _key_positions(items: Sequence[ReadItem], codes: TimeCodes, dtype: torch.dtype) -> list[Tensor]:
    if not items:
        return []
    slots = codes.slot_code([item.slot for item in items])
    orders = [item.order for item in items]
    places = None if all(order is None for order in orders) else codes.order_code(orders)
    if places is not None:
        slots = slots + places
    return [item.tokens.pos.to(slots.device, dtype) + slot for item, slot in zip(items, slots.to(dtype))]


def _coordinates(item: ReadItem, device: torch.device) -> Tensor:
    xy = item.tokens.xy
    return _origin(len(item.tokens), device) if xy is None else xy.to(device)


def _origin(length: int, device: torch.device) -> Tensor:
    return torch.zeros(length, 2, device=device)


def _pointer_tokens(pointers: Sequence[ReadPointer], codes: TimeCodes, like: Tensor) -> tuple[Tensor, Tensor]:
    """Each pointer (C) is C / Cm tokens; all of them carry the same code of time."""
    stacked = torch.stack([p.pointer.to(like.device, like.dtype) for p in pointers])
    offsets = to_device_async([p.offset for p in pointers], like.device, torch.get_default_dtype())
    split = stacked.shape[1] // codes.memory_width
    code = codes.pointer_code(offsets).to(like.dtype).repeat_interleave(split, dim=0)
    return stacked.reshape(-1, codes.memory_width), code


def _gains(read: MemoryRead, sizes: Sequence[int], like: Tensor) -> Tensor | None:
    gains = [item.gain for item in read.items]
    if all(g == 1.0 for g in gains) and all(p.gain == 1.0 for p in read.pointers):
        return None
    parts = [like.new_full((n,), g) for n, g in zip(sizes, gains)]
    if read.pointers:
        each = like.new_tensor([p.gain for p in read.pointers])
        parts.append(each.repeat_interleave(sizes[-1] // len(read.pointers)))
    return torch.cat(parts)


def _log_counts(items: Sequence[ReadItem], sizes: Sequence[int], like: Tensor) -> Tensor | None:
    counts = [item.tokens.log_count for item in items]
    if all(c is None for c in counts):
        return None
    parts = [like.new_zeros(n) if c is None else c.to(like) for n, c in zip(sizes, counts)]
    return torch.cat(parts + [like.new_zeros(n) for n in sizes[len(items) :]])


def _batch(rows: Sequence[_Row]) -> RowBatch:
    length = max(len(row) for row in rows)
    most = max(row.num_items for row in rows)
    same_place = len({(row.xy_key, len(row)) for row in rows}) == 1
    return RowBatch(
        feat=torch.stack([_pad(row.feat, length) for row in rows]),
        pos=torch.stack([_pad(row.pos, length) for row in rows]),
        xy=torch.stack([_pad(row.xy, length) for row in (rows[:1] if same_place else rows)]),
        gain=_stack_gains(rows, length),
        bias=_stack_bias(rows, length),
        item=torch.stack([_pad(torch.where(r.item < r.num_items, r.item, most), length, most) for r in rows]),
        num_items=most,
        lengths=tuple(len(row) for row in rows),
        sensory=_stack_sensory(rows),
        counted=any(row.log_count is not None for row in rows),
    )


def _pad(x: Tensor, length: int, value: float = 0.0) -> Tensor:
    """Grow the first axis of (n, ...) to ``length``."""
    missing = length - x.shape[0]
    return x if missing == 0 else F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing), value=value)


def _stack_gains(rows: Sequence[_Row], length: int) -> Tensor | None:
    if all(row.gain is None for row in rows):
        return None
    ones = [row.feat.new_ones(len(row)) if row.gain is None else row.gain for row in rows]
    return torch.stack([_pad(g, length, 1.0) for g in ones])


def _stack_bias(rows: Sequence[_Row], length: int) -> Tensor | None:
    if all(row.log_count is None and len(row) == length for row in rows):
        return None
    zeros = [row.feat.new_zeros(len(row)) if row.log_count is None else row.log_count for row in rows]
    return torch.stack([_pad(b, length, float("-inf")) for b in zeros])


def _stack_sensory(rows: Sequence[_Row]) -> Tensor | None:
    given = [row.sensory for row in rows if row.sensory is not None]
    if not given:
        return None
    return torch.stack([torch.zeros_like(given[0]) if row.sensory is None else row.sensory for row in rows])
