"""From what policies want to read to what the network is run on: the only module that joins objects into batches.

Equal reads become one row, rows of similar length become one padded batch, temporal codes are added to the keys.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.temporal_encoding import fractions_of, is_fraction
from sam2_mem.types import MemoryRead, ReadItem, ReadPointer, RowBatch

CPU_BATCH = 8192
"""Image tokens in a batch on a CPU, two rows at an image size of 1024: larger temporaries only miss its caches."""
CUDA_BYTES = 1 << 15
"""Memory of a CUDA device that a row takes for every image token: 128 MiB a row at an image size of 1024, where 103 MB an
object were measured."""


@dataclass(frozen=True, eq=False)
class BatchedReads:
    """Batches of rows, and for every read (in the order given) its batch and row. Reads of nothing are ``None``."""

    batches: tuple[RowBatch, ...]
    row_of_read: tuple[tuple[int, int] | None, ...]


class _Run(NamedTuple):
    """Neighbouring tokens of a row, of an item, of all pointers or of padding: ``feat`` and ``pos`` (n, Cm), ``xy`` (n, 2)
    or None for the origin, ``gain`` and ``bias`` one for all tokens or (n), None for 1 and 0."""

    item: int
    feat: Tensor
    pos: Tensor
    xy: Tensor | None = None
    gain: Tensor | float | None = None
    bias: Tensor | float | None = None


def batch_reads(
    reads: Sequence[MemoryRead], model: SAM2, *, max_padding: float = 0.0, max_rows: int = 0
) -> BatchedReads:
    """Rows for all reads of one frame.

    Args:
        reads: of all pathways of all objects.
        model: gives the learned codes of time.
        max_padding: largest share of padding in a row (0: only rows of equal length share a batch).
        max_rows: the limit of rows in a batch, 0 for no limit.
    """
    keys = [read.key() if read.items or read.pointers else None for read in reads]
    read_of_key = dict(zip(keys, reads))
    read_of_key.pop(None, None)
    distinct_keys, distinct, lengths = list(read_of_key), list(read_of_key.values()), []
    for read in distinct:
        num_tokens = sum([len(item.tokens) for item in read.items])
        lengths.append(num_tokens + sum([len(p.pointer) // model.memory_width for p in read.pointers]))
    like = model.slot_code([None])
    groups = bucket(lengths, max_padding=max_padding, max_rows=max_rows)
    layouts = [_layout([distinct[i] for i in group], [lengths[i] for i in group]) for group in groups]
    numbers, items = _sent(distinct, layouts, like.device)
    batches: list[RowBatch] = []
    row_of_key: dict[tuple | None, tuple[int, int]] = {}
    for group, item in zip(groups, items):
        for row, index in enumerate(group):
            row_of_key[distinct_keys[index]] = (len(batches), row)
        of_group = [numbers[index] for index in group]
        batches.append(_batch([distinct[i] for i in group], [lengths[i] for i in group], of_group, item, model, like))
    return BatchedReads(tuple(batches), tuple([row_of_key.get(key) for key in keys]))


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
    """The limit of rows in a batch, 0 for no limit; ``max_rows`` as in ``TrackerSettings``."""
    if max_rows is not None:
        return max_rows
    height, width = model.grid
    if model.device.type == "cuda":
        return _rows_in_free_memory(model.device, height * width)
    return max(1, CPU_BATCH // (height * width)) if model.device.type == "cpu" else 0


@lru_cache(maxsize=8)
def _rows_in_free_memory(device: torch.device, tokens: int) -> int:
    """Rows whose network takes half of the memory that is free when this is asked first."""
    return max(1, torch.cuda.mem_get_info(device)[0] // (2 * CUDA_BYTES * tokens))


class _Numbers(NamedTuple):
    """Of a read, on the device, None for those that it does without: of its N pointers ages over the time span and gains, of its
    items fractions of their slots."""

    offsets: Tensor
    gains: Tensor | None
    fractions: Tensor | None


Layout = tuple[tuple[int, int], ...]
"""(item, number of tokens) of the runs of all rows of a batch."""


def _layout(reads: Sequence[MemoryRead], lengths: Sequence[int]) -> Layout:
    """Items of rows, then pointers and padding, which count as the item behind the last."""
    behind, longest = max([len(read.items) for read in reads]), max(lengths)
    runs: list[tuple[int, int]] = []
    for read in reads:
        sizes = [len(item.tokens) for item in read.items]
        remainder = longest - sum(sizes)
        runs += [*enumerate(sizes), *([(behind, remainder)] if remainder else [])]
    return tuple(runs)


_items_of_layouts: OrderedDict[tuple[Layout, torch.device], Tensor] = OrderedDict()
"""Of the latest layouts: they stay the same from frame to frame once memory is full."""
LAYOUTS = 32


def _sent(
    reads: Sequence[MemoryRead], layouts: Sequence[Layout], device: torch.device
) -> tuple[list[_Numbers], list[Tensor]]:
    """Numbers of every read, and for every layout the item (R * L) of each token, in one transfer."""
    columns: list[Sequence[float]] = []
    for read in reads:
        gains, slots = [p.gain for p in read.pointers], [item.slot for item in read.items]
        columns += [
            [p.offset for p in read.pointers],
            [] if set(gains) == {1.0} else gains,
            fractions_of(slots) if any(map(is_fraction, slots)) else [],
        ]
    new = [layout for layout in dict.fromkeys(layouts) if (layout, device) not in _items_of_layouts]
    columns += [column for layout in new for column in zip(*layout)]
    flat = list(chain.from_iterable(columns))
    sent = to_device_async(flat, device, torch.get_default_dtype()) if flat else torch.empty(0)
    pieces = sent.split([len(column) for column in columns])
    triples = [pieces[start : start + 3] for start in range(0, 3 * len(reads), 3)]
    numbers = [_Numbers(a, b if len(b) else None, c if len(c) else None) for a, b, c in triples]
    pairs = [pieces[start : start + 2] for start in range(3 * len(reads), len(pieces), 2)]
    for layout, (item, sizes) in zip(new, pairs):
        total = sum([size for _, size in layout])
        with torch.inference_mode(False):
            spread = torch.repeat_interleave(item.long(), sizes.long(), output_size=total)
        _items_of_layouts[layout, device] = spread
    items = [_items_of_layouts[layout, device] for layout in layouts]
    for layout in layouts:
        _items_of_layouts.move_to_end((layout, device))
    while len(_items_of_layouts) > LAYOUTS:
        _items_of_layouts.popitem(last=False)
    return numbers, items


def _batch(
    reads: Sequence[MemoryRead],
    lengths: Sequence[int],
    numbers: Sequence[_Numbers],
    item: Tensor,
    model: SAM2,
    like: Tensor,
) -> RowBatch:
    """One row per read, padded to the longest of ``lengths``, of the dtype and on the device of ``like``; ``item`` of every
    token."""
    longest, num_items = max(lengths), max([len(read.items) for read in reads])
    runs: list[_Run] = []
    keys: dict[tuple, Tensor] = {}
    for read, length, of_read in zip(reads, lengths, numbers):
        runs += _item_runs(read.items, of_read, model, like, keys)
        if read.pointers:
            runs.append(_pointer_run(read.pointers, of_read, num_items, model, like))
        if length < longest:
            blank = like.new_zeros(longest - length, model.memory_width)
            runs.append(_Run(num_items, blank, blank, bias=-math.inf))
    shape = (len(reads), longest)
    sizes = [len(run.feat) for run in runs]
    shares_xy = len(reads) == 1 or _same_coordinates(reads, lengths)
    xy_runs = runs[: len(runs) // len(reads)] if shares_xy else runs
    xy = [torch.zeros(len(r.feat), 2, device=like.device) if r.xy is None else r.xy.to(like.device) for r in xy_runs]
    weighted, biased = any(run.gain is not None for run in runs), any(run.bias is not None for run in runs)
    return RowBatch(
        feat=_joined([run.feat for run in runs], like).view(*shape, -1),
        pos=torch.cat([run.pos for run in runs]).view(*shape, -1),
        xy=torch.cat(xy).view(-1, longest, 2),
        gain=_column([run.gain for run in runs], sizes, like, default=1.0).view(shape) if weighted else None,
        bias=_column([run.bias for run in runs], sizes, like, default=0.0).view(shape) if biased else None,
        item=item.view(shape),
        num_items=num_items,
        lengths=tuple(lengths),
        sensory=_sensory_states(reads) if any(read.sensory is not None for read in reads) else None,
        counted=any(isinstance(run.bias, Tensor) for run in runs),
        item_lengths=tuple([tuple([len(item.tokens) for item in read.items]) for read in reads]),
    )


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """``parts`` (n, Cm) one after the other, in the dtype and on the device of ``like``: neighbours of one dtype together."""
    there = [part.to(like.device, non_blocking=True) for part in parts]
    groups = [list(group) for _, group in groupby(there, key=attrgetter("dtype"))]
    return (
        torch.cat([torch.cat(group).to(like.dtype) for group in groups])
        if len(groups) > 1
        else torch.cat(there).to(like)
    )


def _item_runs(
    items: Sequence[ReadItem], numbers: _Numbers, model: SAM2, like: Tensor, keys: dict[tuple, Tensor]
) -> list[_Run]:
    """Runs of the items of a row, with features as they are stored; ``keys``: sums of positions and codes that rows share."""
    if not items:
        return []
    time = model.slot_code([item.slot for item in items], numbers.fractions)
    orders = [item.order for item in items]
    order_code = model.order_code(orders) if set(orders) != {None} else None
    if order_code is not None:
        time = time + order_code
    runs = []
    for number, (item, code) in enumerate(zip(items, time.to(like.dtype))):
        tokens = item.tokens
        key, gain = (id(tokens.pos), item.slot_key, item.order), None if item.gain == 1.0 else item.gain
        if key not in keys:
            keys[key] = tokens.pos.to(like) + code
        runs.append(_Run(number, tokens.feat, keys[key], tokens.xy, gain, tokens.log_count))
    return runs


def _pointer_run(pointers: Sequence[ReadPointer], numbers: _Numbers, item: int, model: SAM2, like: Tensor) -> _Run:
    """Each pointer (C) is C / Cm tokens; all of them carry the same code of time."""
    stacked = torch.stack([p.pointer.to(like.device) for p in pointers]).to(like.dtype)
    split = stacked.shape[1] // model.memory_width
    code = model.pointer_code(numbers.offsets).to(like.dtype).repeat_interleave(split, dim=0)
    gain = None if numbers.gains is None else numbers.gains.to(like.dtype).repeat_interleave(split)
    return _Run(item, stacked.reshape(-1, model.memory_width), code, gain=gain)


def _column(values: Sequence[Tensor | float | None], sizes: Sequence[int], like: Tensor, default: float) -> Tensor:
    """One number per token from those of runs; None stands for the default."""
    numbers = [default if value is None else value for value in values]
    return torch.cat([n.to(like) if isinstance(n, Tensor) else like.new_full((s,), n) for n, s in zip(numbers, sizes)])


def _same_coordinates(reads: Sequence[MemoryRead], lengths: Sequence[int]) -> bool:
    """Whether the coordinates of all rows are the same tensors."""
    layouts = {
        tuple(-len(item.tokens) if item.tokens.xy is None else id(item.tokens.xy) for item in read.items)
        for read in reads
    }
    return len(layouts) == len(set(lengths)) == 1


def _sensory_states(reads: Sequence[MemoryRead]) -> Tensor:
    """(R, Ch, H, W), zeros for reads without a state."""
    example = next(read.sensory for read in reads if read.sensory is not None)
    return torch.stack([torch.zeros_like(example) if read.sensory is None else read.sensory for read in reads])
