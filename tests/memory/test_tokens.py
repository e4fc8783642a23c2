"""Functions on memory tokens: counting, bytes, pooling, weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sam2_mem.memory.tokens import (
    foreground_weights,
    map_tokens,
    masked_mean,
    pool_grid,
    tensor_bytes,
    token_count,
)
from sam2_mem.model.tensor_tree import tensors_in
from sam2_mem.types import MemoryEntry, MemoryTokens, PointerEntry

XY = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="xy"), -1).reshape(-1, 2)


def grid_tokens(value: Tensor | None = None) -> MemoryTokens:
    feat = torch.arange(16.0)[:, None].expand(16, 3).contiguous() if value is None else value
    return MemoryTokens(feat=feat, pos=torch.zeros(16, 3), xy=XY)


def entry(frame: int, tokens: MemoryTokens) -> MemoryEntry:
    return MemoryEntry(frame=frame, tokens=tokens, pointer=torch.zeros(6))


def test_token_count_counts_shared_tokens_once_and_dropped_ones_not_at_all() -> None:
    shared = grid_tokens()
    entries = [entry(0, shared), entry(1, shared), entry(2, grid_tokens()), PointerEntry(3, torch.zeros(6))]
    assert token_count(entries) == 32
    assert token_count([e.without_tokens() for e in entries]) == token_count([]) == 0


def test_tensor_bytes_counts_a_storage_once_and_a_view_in_full() -> None:
    batch = torch.zeros(10, 4)
    assert tensor_bytes([batch, batch, None]) == 160
    assert tensor_bytes([batch[0]]) == 160, "a view of one row keeps the whole batch alive"
    assert tensor_bytes([batch[0].clone()]) == 16
    assert tensor_bytes([batch[0], batch[5:]]) == 160
    assert tensor_bytes([]) == 0


def test_tensors_of_an_entry_are_all_that_it_keeps_alive() -> None:
    tokens = MemoryTokens(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2), torch.zeros(2))
    full = MemoryEntry(frame=0, tokens=tokens, pointer=torch.zeros(6), summary=torch.zeros(5))
    assert tensor_bytes(tensors_in(full)) == 4 * (6 + 6 + 4 + 2 + 6 + 5)
    assert tensor_bytes(tensors_in(full.without_tokens())) == 4 * (6 + 5)


def test_map_tokens_changes_features_and_shares_positions() -> None:
    before = grid_tokens()
    after = map_tokens(before, lambda feat: feat.to(torch.bfloat16))
    assert after.feat.dtype is torch.bfloat16 and before.feat.dtype is torch.float32
    assert after.pos is before.pos and after.xy is before.xy


# -- pooling ----------------------------------------------------------------------------------------------------------


def test_pool_grid_averages_blocks_and_says_how_many() -> None:
    pooled = pool_grid(grid_tokens(), (4, 4), 2)
    assert pooled.feat[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled.xy.tolist() == [[0.5, 0.5], [2.5, 0.5], [0.5, 2.5], [2.5, 2.5]]
    assert pooled.log_count.tolist() == pytest.approx([math.log(4)] * 4)


def test_pool_grid_with_smaller_blocks_at_the_border() -> None:
    pooled = pool_grid(grid_tokens(), (4, 4), 3)
    assert pooled.log_count.exp().tolist() == pytest.approx([9, 3, 3, 1])
    assert pooled.feat[:, 0].tolist() == [5, 7, 13, 15]
    assert pooled.xy.tolist() == [[1, 1], [3, 1], [1, 3], [3, 3]]


def test_pool_grid_by_one_is_the_map_itself() -> None:
    before = grid_tokens()
    after = pool_grid(before, (4, 4), 1)
    assert torch.equal(after.feat, before.feat) and torch.equal(after.xy, before.xy)
    assert (after.log_count == 0).all()


def test_pool_grid_keeps_the_stored_precision() -> None:
    assert pool_grid(map_tokens(grid_tokens(), lambda f: f.bfloat16()), (4, 4), 2).feat.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("tokens", "grid", "message"),
    [
        (grid_tokens(), (4, 5), "expected the 20 tokens of a 4 x 5 map, got 16"),
        (MemoryTokens(torch.zeros(16, 3), torch.zeros(16, 3)), (4, 4), "got tokens without coordinates"),
        (pool_grid(grid_tokens(), (4, 4), 2), (2, 2), "expected the tokens of an undistilled map"),
    ],
    ids=["length", "no coordinates", "pooled"],
)
def test_pool_grid_refuses_what_is_not_a_whole_map(tokens: MemoryTokens, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_grid(tokens, grid, 2)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_foreground_weights_are_probabilities_averaged_over_cells() -> None:
    logits = torch.full((8, 8), -1000.0)
    logits[:4, :4] = 1000.0
    assert foreground_weights(logits, (2, 2)).tolist() == [1, 0, 0, 0]
    assert foreground_weights(logits, (1, 1)).tolist() == [0.25]
    assert foreground_weights(torch.zeros(8, 8, dtype=torch.bfloat16), (4, 4)).tolist() == [0.5] * 16
    assert foreground_weights(torch.full((8, 8), -1024.0), (4, 4)).sum() == 0


def test_masked_mean_is_a_weighted_mean() -> None:
    features = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]])
    assert masked_mean(features, torch.tensor([1.0, 1.0, 0.0])).tolist() == [2, 20]
    assert masked_mean(features, torch.tensor([0.0, 0.0, 0.5])).tolist() == [5, 50]


@pytest.mark.parametrize("weights", [torch.zeros(3), torch.full((3,), 1e-9), torch.full((3,), math.nan)])
def test_masked_mean_of_nothing_is_none(weights: Tensor) -> None:
    assert masked_mean(torch.ones(3, 2), weights) is None
