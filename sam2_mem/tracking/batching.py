"""From what policies want to read to what the network is run on: the only module that joins objects into batches.

Equal reads become one row, rows of similar length become one padded batch, temporal codes are added to the keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.sam2 import SAM2
from sam2_mem.types import MemoryRead, ReadItem, ReadPointer, RowBatch

CPU_BATCH = 8192
"""Image tokens in a batch on a CPU, two rows at an image size of 1024: larger temporaries only miss its caches."""


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
    row_of_read: tuple[tuple[int, int] | None, ...]


class _Run(NamedTuple):
    """Neighbouring tokens of a row: those of an item, of all its pointers, or padding. ``xy``, ``bias`` None: zeros."""

    feat: Tensor
    pos: Tensor
    xy: Tensor | None = None
    bias: Tensor | None = None


def batch_reads(
    reads: Sequence[MemoryRead], codes: TimeCodes, *, max_padding: float = 0.0, max_rows: int = 0
) -> BatchedReads:
    """Rows for all reads of one frame.

    Args:
        reads: of all pathways of all objects.
        codes: the model.
        max_padding: largest share of padding in a row (0: only rows of equal length share a batch).
        max_rows: the limit of rows in a batch, 0 for no limit.
    """
    index_of_key: dict[tuple | None, int] = {}
    distinct: list[MemoryRead] = []
    indices = []
    for read in reads:
        key = read.key() if read.items or read.pointers else None
        if key is not None and key not in index_of_key:
            index_of_key[key] = len(distinct)
            distinct.append(read)
        indices.append(index_of_key.get(key))
    lengths = [_num_tokens(read, codes.memory_width) for read in distinct]
    batches, row_of_index = [], {}
    for group in bucket(lengths, max_padding=max_padding, max_rows=max_rows):
        for row, index in enumerate(group):
            row_of_index[index] = (len(batches), row)
        batches.append(_batch([distinct[index] for index in group], [lengths[index] for index in group], codes))
    return BatchedReads(tuple(batches), tuple([None if index is None else row_of_index[index] for index in indices]))


def bucket(lengths: Sequence[int], *, max_padding: float = 0.0, max_rows: int = 0) -> list[list[int]]:
    """Group rows by length, longest first, so that no row is padded by more than ``max_padding`` of the longest."""
    if not 0.0 <= max_padding < 1.0:
        raise ValueError(f"expected max_padding in [0, 1), got {max_padding}")
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        joins = groups and lengths[i] >= (1.0 - max_padding) * lengths[groups[-1][0]]
        if joins and not (max_rows and len(groups[-1]) >= max_rows):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def row_limit(model: SAM2, max_rows: int | None) -> int:
    """The limit of rows in a batch, 0 for no limit; ``max_rows`` as in :class:`TrackerSettings`."""
    if max_rows is not None:
        return max_rows
    height, width = model.grid
    return max(1, CPU_BATCH // (height * width)) if model.device.type == "cpu" else 0


def _num_tokens(read: MemoryRead, memory_width: int) -> int:
    num_tokens = sum([len(item.tokens) for item in read.items])
    return num_tokens + sum([p.pointer.shape[0] // memory_width for p in read.pointers])


def _batch(reads: Sequence[MemoryRead], lengths: Sequence[int], codes: TimeCodes) -> RowBatch:
    """One row per read, padded to the longest of ``lengths``."""
    like = codes.slot_code([None])
    longest, num_items = max(lengths), max([len(read.items) for read in reads])
    runs: list[_Run] = []
    sizes, owners, gains = [], [], []  # of every item, pointer and padding: tokens, number of the item, gain
    for read, length in zip(reads, lengths):
        runs += _item_runs(read.items, codes, like)
        sizes += [len(item.tokens) for item in read.items]
        if read.pointers:
            runs.append(_pointer_run(read.pointers, codes, like))
            sizes += [len(runs[-1].feat) // len(read.pointers)] * len(read.pointers)
        if length < longest:
            blank = like.new_zeros(longest - length, codes.memory_width)
            runs.append(_Run(blank, blank, bias=like.new_full((longest - length,), float("-inf"))))
        sizes.append(longest - length)
        owners += [*range(len(read.items)), *[num_items] * (len(read.pointers) + 1)]
        gains += [item.gain for item in read.items] + [p.gain for p in read.pointers] + [1.0]
    shape, repeats = (len(reads), longest), torch.tensor(sizes)
    items = torch.repeat_interleave(torch.tensor(owners), repeats).view(shape)
    return RowBatch(
        feat=torch.cat([run.feat for run in runs]).view(*shape, -1),
        pos=torch.cat([run.pos for run in runs]).view(*shape, -1),
        xy=_coordinates(reads, lengths, runs, like.device),
        gain=None if set(gains) == {1.0} else _gains(gains, repeats, like).view(shape),
        bias=_biases(runs, like, shape),
        item=to_device_async(items, like.device),
        num_items=num_items,
        lengths=tuple(lengths),
        sensory=_sensory_states(reads),
        counted=any([item.tokens.log_count is not None for read in reads for item in read.items]),
    )


def _item_runs(items: Sequence[ReadItem], codes: TimeCodes, like: Tensor) -> list[_Run]:
    if not items:
        return []
    time = codes.slot_code([item.slot for item in items])
    orders = [item.order for item in items]
    order_code = codes.order_code(orders) if set(orders) != {None} else None
    if order_code is not None:
        time = time + order_code
    runs = []
    for item, code in zip(items, time.to(like.dtype)):
        tokens = item.tokens
        runs.append(_Run(tokens.feat.to(like), tokens.pos.to(like) + code, tokens.xy, tokens.log_count))
    return runs


def _pointer_run(pointers: Sequence[ReadPointer], codes: TimeCodes, like: Tensor) -> _Run:
    """Each pointer (C) is C / Cm tokens; all of them carry the same code of time."""
    stacked = torch.stack([p.pointer.to(like) for p in pointers])
    offsets = to_device_async([p.offset for p in pointers], like.device, torch.get_default_dtype())
    split = stacked.shape[1] // codes.memory_width
    code = codes.pointer_code(offsets).to(like.dtype).repeat_interleave(split, dim=0)
    return _Run(stacked.reshape(-1, codes.memory_width), code)


def _coordinates(
    reads: Sequence[MemoryRead], lengths: Sequence[int], runs: Sequence[_Run], device: torch.device
) -> Tensor:
    """(R, L, 2), or (1, L, 2) where the coordinates of all rows are the same tensors."""
    layouts = {
        tuple(-len(item.tokens) if item.tokens.xy is None else id(item.tokens.xy) for item in read.items)
        for read in reads
    }
    if len(layouts) == len(set(lengths)) == 1:
        runs = runs[: len(runs) // len(reads)]
    xy = [torch.zeros(len(r.feat), 2, device=device) if r.xy is None else r.xy.to(device) for r in runs]
    return torch.cat(xy).view(-1, max(lengths), 2)


def _gains(gains: Sequence[float], repeats: Tensor, like: Tensor) -> Tensor:
    return to_device_async(torch.repeat_interleave(torch.tensor(gains, dtype=like.dtype), repeats), like.device)


def _biases(runs: Sequence[_Run], like: Tensor, shape: tuple[int, int]) -> Tensor | None:
    """(R, L) logarithms of counts, and -inf for padding; None where there are only zeros."""
    if all(run.bias is None for run in runs):
        return None
    return torch.cat([like.new_zeros(len(r.feat)) if r.bias is None else r.bias.to(like) for r in runs]).view(shape)


def _sensory_states(reads: Sequence[MemoryRead]) -> Tensor | None:
    """(R, Ch, H, W), zeros for reads without a state; None if all are."""
    states = [read.sensory for read in reads]
    example = next((state for state in states if state is not None), None)
    if example is None:
        return None
    return torch.stack([torch.zeros_like(example) if state is None else state for state in states])


__getattr__ = renamed(__name__)
