"""From reads to rows: buckets, padding, equal reads, temporal codes, gains, counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from micro import micro_features, micro_model, one_thread  # noqa: F401
from torch import Tensor

from sam2_mem.tracking.batching import BatchedReads, batch_reads, bucket
from sam2_mem.types import PROMPT_SLOT, MemoryRead, MemoryTokens, ReadItem, ReadPointer, RowBatch, Usage

WIDTH, C = 4, 12
XY = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, 0.5]])


class Codes:
    """Codes to be recognised: slot s is a vector of s + 10, no slot of 0, order o of 100 o, pointer age t of t."""

    memory_width = WIDTH

    def slot_code(self, slots: list[int | None], fractions: Tensor | None = None) -> Tensor:
        return torch.tensor([0.0 if s is None else s + 10.0 for s in slots])[:, None].expand(-1, WIDTH)

    def order_code(self, orders: Sequence[int | None]) -> Tensor | None:
        return torch.tensor([0.0 if o is None else 100.0 * o for o in orders])[:, None].expand(-1, WIDTH)

    def pointer_code(self, offsets: Tensor) -> Tensor:
        return offsets[:, None].expand(-1, WIDTH)


def tokens(length: int, value: float = 1.0, *, xy: Tensor | None = None, counts: float | None = None) -> MemoryTokens:
    return MemoryTokens(
        feat=torch.full((length, WIDTH), value),
        pos=torch.full((length, WIDTH), 0.25),
        xy=xy,
        log_count=None if counts is None else torch.full((length,), math.log(counts)),
    )


def pointer(value: float, offset: float = 0.5, gain: float = 1.0) -> ReadPointer:
    return ReadPointer(torch.arange(C) + value, offset, gain)


def read(*lengths: int, pointers: int = 0, **options: Any) -> MemoryRead:
    items = tuple(ReadItem(tokens(n, **options), i) for i, n in enumerate(lengths))
    return MemoryRead(items, tuple(pointer(100.0 * k) for k in range(pointers)))


def only_batch(*reads: MemoryRead, **options: Any) -> RowBatch:
    (batch,) = batch_reads(reads, Codes(), **options).batches
    return batch


# -- buckets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "padding", "rows", "groups"),
    [
        ([], 0.0, 0, []),
        ([5], 0.0, 0, [[0]]),
        ([5, 5, 5], 0.0, 0, [[0, 1, 2]]),
        ([5, 7, 5], 0.0, 0, [[1], [0, 2]]),
        ([5, 7, 6], 0.2, 0, [[1, 2], [0]]),
        ([5, 7, 6], 0.3, 0, [[1, 2, 0]]),
        ([10, 9, 8, 7], 0.1, 0, [[0, 1], [2], [3]]),
        ([5, 5, 5], 0.0, 2, [[0, 1], [2]]),
        ([1, 100], 0.995, 0, [[1, 0]]),
    ],
)
def test_bucket(lengths: list[int], padding: float, rows: int, groups: list[list[int]]) -> None:
    assert bucket(lengths, max_padding=padding, max_rows=rows) == groups


def test_bucket_pads_no_row_beyond_the_limit() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        lengths = torch.randint(1, 60, (12,), generator=generator).tolist()
        padding = torch.rand((), generator=generator).item() * 0.9
        groups = bucket(lengths, max_padding=padding)
        assert sorted(i for group in groups for i in group) == list(range(12))
        for group in groups:
            longest = max(lengths[i] for i in group)
            assert all(longest - lengths[i] <= padding * longest + 1e-9 for i in group)


@pytest.mark.parametrize("padding", [-0.1, 1.0, 2.0, float("nan")])
def test_bucket_refuses_a_share_outside_0_to_1(padding: float) -> None:
    with pytest.raises(ValueError, match=r"expected max_padding in \[0, 1\), got"):
        bucket([1, 2], max_padding=padding)


# -- one row ----------------------------------------------------------------------------------------------------------


def test_a_row_holds_items_then_pointers() -> None:
    batch = only_batch(
        MemoryRead((ReadItem(tokens(2, 1.0), 0), ReadItem(tokens(3, 2.0), PROMPT_SLOT)), (pointer(100.0),))
    )
    assert batch.feat.shape == batch.pos.shape == (1, 2 + 3 + C // WIDTH, WIDTH)
    assert batch.feat[0, :5, 0].tolist() == [1, 1, 2, 2, 2]
    assert batch.item.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2]]
    assert (batch.num_items, batch.lengths, batch.rows) == (2, (8,), 1)
    assert batch.gain is None and batch.bias is None and batch.sensory is None


def test_a_pointer_is_split_in_order_and_its_parts_share_one_code() -> None:
    batch = only_batch(MemoryRead((), (pointer(100.0, 0.25), pointer(200.0, -0.5))))
    assert torch.equal(batch.feat[0, :3].flatten(), torch.arange(C) + 100.0)
    assert torch.equal(batch.feat[0, 3:].flatten(), torch.arange(C) + 200.0)
    assert batch.pos[0, :, 0].tolist() == [0.25] * 3 + [-0.5] * 3
    assert (batch.xy == 0).all()
    assert batch.item.tolist() == [[0] * 6] and batch.num_items == 0


def test_keys_are_spatial_position_plus_the_code_of_the_slot() -> None:
    slots = (3, PROMPT_SLOT, None)
    batch = only_batch(MemoryRead(tuple(ReadItem(tokens(1), s) for s in slots)))
    assert batch.pos[0, :, 0].tolist() == [0.25 + 13, 0.25 + 9, 0.25]
    assert (batch.feat == 1).all(), "codes of time must not reach the values"


def test_places_in_the_bank_are_coded_beside_the_slots() -> None:
    items = (ReadItem(tokens(1), 3, order=2), ReadItem(tokens(1), None, order=1), ReadItem(tokens(1), 3))
    assert only_batch(MemoryRead(items)).pos[0, :, 0].tolist() == [0.25 + 13 + 200, 0.25 + 100, 0.25 + 13]


def test_a_model_without_a_code_of_places_ignores_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Codes, "order_code", lambda self, orders: None)
    assert only_batch(MemoryRead((ReadItem(tokens(1), 3, order=2),))).pos[0, 0, 0] == 0.25 + 13


def test_stored_precision_becomes_that_of_the_model() -> None:
    rounded = MemoryTokens(feat=torch.ones(2, WIDTH, dtype=torch.bfloat16), pos=torch.zeros(2, WIDTH))
    batch = only_batch(MemoryRead((ReadItem(rounded, 0),)))
    assert batch.feat.dtype == batch.pos.dtype == torch.float32


def test_gains_of_items_and_of_all_parts_of_a_pointer() -> None:
    items = (ReadItem(tokens(2), 0, gain=0.5), ReadItem(tokens(1), 1))
    batch = only_batch(MemoryRead(items, (pointer(0.0, gain=2.0), pointer(1.0))))
    assert batch.gain.tolist() == [[0.5, 0.5, 1, 2, 2, 2, 1, 1, 1]]


def test_log_counts_become_a_bias_and_pointers_stand_for_themselves() -> None:
    items = (ReadItem(tokens(2, counts=4), 0), ReadItem(tokens(1), 1))
    batch = only_batch(MemoryRead(items, (pointer(0.0),)))
    assert batch.bias.tolist() == [pytest.approx([math.log(4)] * 2 + [0] * 4)]


def test_tokens_without_coordinates_are_at_the_origin() -> None:
    batch = only_batch(MemoryRead((ReadItem(tokens(4, xy=XY[:4]), 0), ReadItem(tokens(2), 1))))
    assert torch.equal(batch.xy[0, :4], XY[:4]) and (batch.xy[0, 4:] == 0).all()


# -- several rows -----------------------------------------------------------------------------------------------------


def places(assembled: BatchedReads) -> list[tuple[int, int] | None]:
    return list(assembled.row_of_read)


def test_equal_reads_become_one_row() -> None:
    shared, ptr = tokens(4), pointer(0.0)
    one, same = (MemoryRead((ReadItem(shared, 0),), (ptr,)) for _ in range(2))
    assembled = batch_reads([one, same, one], Codes())
    assert places(assembled) == [(0, 0)] * 3 and assembled.batches[0].rows == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda t, p: MemoryRead((ReadItem(t, 1),), (p,)),
        lambda t, p: MemoryRead((ReadItem(t, 0, gain=0.9),), (p,)),
        lambda t, p: MemoryRead((ReadItem(t, 0, order=1),), (p,)),
        lambda t, p: MemoryRead((ReadItem(tokens(4), 0),), (p,)),
        lambda t, p: MemoryRead((ReadItem(t, 0),), (ReadPointer(p.pointer, 0.1),)),
        lambda t, p: MemoryRead((ReadItem(t, 0),), (ReadPointer(p.pointer, p.offset, 2.0),)),
        lambda t, p: MemoryRead((ReadItem(t, 0),), ()),
        lambda t, p: MemoryRead((ReadItem(t, 0),), (p,), sensory=torch.zeros(C, 2, 2)),
    ],
    ids=["slot", "gain", "order", "tokens", "age", "pointer gain", "no pointer", "sensory"],
)
def test_control_reads_that_differ_in_anything_stay_apart(other: Any) -> None:
    shared, ptr = tokens(4), pointer(0.0)
    assembled = batch_reads([MemoryRead((ReadItem(shared, 0),), (ptr,)), other(shared, ptr)], Codes())
    assert len(set(places(assembled))) == 2


def test_every_read_finds_its_own_row() -> None:
    reads = [read(3, value=1.0), read(5, value=2.0), read(3, value=3.0), MemoryRead(()), read(4, value=4.0)]
    for padding in (0.0, 0.3, 0.9):
        assembled = batch_reads(reads, Codes(), max_padding=padding)
        for wanted, place in zip(reads, places(assembled)):
            if not wanted.items:
                assert place is None
                continue
            batch, row = assembled.batches[place[0]], place[1]
            assert batch.lengths[row] == len(wanted.items[0].tokens)
            assert (batch.feat[row, : batch.lengths[row]] == wanted.items[0].tokens.feat[0, 0]).all()


def test_reads_of_nothing() -> None:
    assert batch_reads([], Codes()).batches == ()
    assembled = batch_reads([MemoryRead(()), MemoryRead((), ())], Codes())
    assert assembled.batches == () and assembled.row_of_read == (None, None)


def test_padding_is_silenced_and_counted_as_no_item() -> None:
    batch = only_batch(read(6, 2), read(4), max_padding=0.5)
    assert batch.lengths == (8, 4) and batch.feat.shape == (2, 8, WIDTH)
    assert (batch.bias[0] == 0).all() and batch.bias[1].tolist() == [0] * 4 + [-math.inf] * 4
    assert batch.item[1].tolist() == [0] * 4 + [2] * 4 and batch.num_items == 2
    assert (batch.feat[1, 4:] == 0).all()


def test_rows_of_one_length_need_no_mask() -> None:
    assert only_batch(read(4), read(4)).bias is None


def test_pointers_are_no_item_in_rows_of_unequal_item_counts() -> None:
    batch = only_batch(read(2, 2, 2), read(3, pointers=1))
    assert batch.num_items == 3 and batch.lengths == (6, 6)
    assert batch.item[1].tolist() == [0] * 3 + [3] * 3


def test_gains_and_counts_of_one_row_leave_the_others_alone() -> None:
    loud = MemoryRead((ReadItem(tokens(4, counts=2), 0, gain=3.0),))
    batch = only_batch(loud, read(4), read(3), max_padding=0.3)
    assert batch.gain.tolist() == [[3.0] * 4, [1.0] * 4, [1.0] * 4]
    assert batch.bias.tolist() == [pytest.approx([math.log(2)] * 4), [0] * 4, [0, 0, 0, -math.inf]]


def test_coordinates_are_held_once_where_all_rows_have_the_same() -> None:
    xy = XY[:4]
    assert only_batch(read(4, xy=xy), read(4, xy=xy, value=2.0)).xy.shape == (1, 4, 2)
    assert only_batch(read(4), read(4, value=2.0)).xy.shape == (1, 4, 2)


def test_control_coordinates_are_not_shared_where_they_differ() -> None:
    batch = only_batch(read(4, xy=XY[:4]), read(4, xy=XY[1:]))
    assert batch.xy.shape == (2, 4, 2) and not torch.equal(batch.xy[0], batch.xy[1])
    batch = only_batch(read(4, xy=XY[:4]), read(3, xy=XY[:3]), max_padding=0.5)
    assert batch.xy.shape == (2, 4, 2)
    batch = only_batch(read(2, 3), read(3, 2))
    assert batch.xy.shape[0] in (1, 2) and (batch.xy == 0).all()


def test_sensory_state_of_some_rows() -> None:
    state = torch.ones(C, 2, 2)
    with_state = MemoryRead(read(4).items, (), sensory=state)
    batch = only_batch(with_state, read(4))
    assert batch.sensory.shape == (2, C, 2, 2)
    assert (batch.sensory[0] == 1).all() and (batch.sensory[1] == 0).all()


def test_max_rows_limits_a_batch() -> None:
    assembled = batch_reads([read(4, value=float(i)) for i in range(5)], Codes(), max_rows=2)
    assert [b.rows for b in assembled.batches] == [2, 2, 1]
    assert len(set(places(assembled))) == 5


# -- with the network -------------------------------------------------------------------------------------------------


def micro_read(seed: int, maps: int, pointers: int) -> MemoryRead:
    model, g = micro_model(), torch.Generator().manual_seed(seed)
    length, width = model.tokens_per_map, model.memory_width
    xy = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="xy"), -1).reshape(-1, 2)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    items = tuple(
        ReadItem(MemoryTokens(noise(length, width), noise(length, width), xy), i, gain=1 + 0.1 * i) for i in range(maps)
    )
    return MemoryRead(items, tuple(ReadPointer(noise(model.width), 0.1 * i) for i in range(pointers)))


@torch.no_grad()
def attended(reads: list[MemoryRead], usage: Usage = Usage.NONE, **options: Any) -> list[tuple[Tensor, Any]]:
    model, features = micro_model(), micro_features(1)[0]
    assembled = batch_reads(reads, model, **options)
    outputs = [model.attend(features, batch, usage) for batch in assembled.batches]
    return [(outputs[b].features[r], outputs[b].usage and outputs[b].usage[r]) for b, r in assembled.row_of_read]


def test_padding_and_company_do_not_change_what_a_row_sees() -> None:
    reads = [micro_read(0, 3, 4), micro_read(1, 1, 2), micro_read(2, 2, 0)]
    alone = [attended([r], Usage.TOKENS)[0] for r in reads]
    together = attended(reads, Usage.TOKENS, max_padding=0.9)
    for (a, usage_a), (b, usage_b) in zip(alone, together):
        assert (a - b).abs().max() < 1e-5
        assert [len(u) for u in usage_a.tokens] == [len(u) for u in usage_b.tokens]
        assert all(torch.allclose(u, v, atol=1e-4) for u, v in zip(usage_a.tokens, usage_b.tokens))


def test_control_padding_that_is_not_silenced_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = [micro_read(0, 3, 4), micro_read(1, 1, 2)]
    alone = attended(reads[1:])[0][0]
    zeros = lambda values, sizes, like, default: like.new_zeros(sum(sizes))  # noqa: E731
    monkeypatch.setattr("sam2_mem.tracking.batching._column", zeros)
    assert (attended(reads, max_padding=0.9)[1][0] - alone).abs().max() > 1e-3


def test_usage_by_query_has_a_column_per_item_in_ragged_batches() -> None:
    reads = [micro_read(0, 3, 4), micro_read(1, 1, 2), micro_read(2, 0, 3)]
    found = attended(reads, Usage.ITEMS_BY_QUERY, max_padding=0.9)
    assert [tuple(usage.items.shape) for _, usage in found] == [(16, 3), (16, 1), (16, 0)]
    alone = attended(reads[:1], Usage.ITEMS_BY_QUERY)[0][1]
    assert torch.allclose(found[0][1].items, alone.items, atol=1e-5)


def test_a_count_is_the_same_as_so_many_copies() -> None:
    """One token with the logarithm of 3 weighs as much as three equal tokens (and not as one)."""
    width = micro_model().memory_width
    feat, pos = torch.randn(2, 2, width, generator=torch.Generator().manual_seed(0))
    other = ReadItem(MemoryTokens(feat[1:], pos[1:]), None)
    copies = ReadItem(MemoryTokens(feat[:1].repeat(3, 1), pos[:1].repeat(3, 1)), None)
    counted = ReadItem(MemoryTokens(feat[:1], pos[:1], log_count=torch.tensor([math.log(3)])), None)
    plain = ReadItem(MemoryTokens(feat[:1], pos[:1]), None)
    a, b, c = (attended([MemoryRead((item, other))])[0][0] for item in (copies, counted, plain))
    assert (a - b).abs().max() < 1e-5
    assert (a - c).abs().max() > 1e-3


def test_an_unknown_slot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected temporal slots in 0\.\.6, -1 \(prompt\) or None, got \[7\]"):
        attended([MemoryRead((ReadItem(micro_read(0, 1, 0).items[0].tokens, 7),))])
