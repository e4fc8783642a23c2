"""Operators that read memory: the exact ones give the numbers of exact attention, the others in the setting in which
they are exact; and all of them honour padding, counts and gains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from micro import (
    SCORE_BIAS,
    in_tiers,
    mask_prompt,
    micro_config,
    micro_features,
    micro_model,
    micro_tracker,
    new_model,
    run,
)
from torch import Tensor

from sam2_mem.build_sam import build_sam2
from sam2_mem.config import compose, config_dir
from sam2_mem.evaluation.benchmark.profile import counting
from sam2_mem.memory.tokens import pool_grid
from sam2_mem.model import attention_operators
from sam2_mem.model.attention_operators import (
    Auto,
    BlockTopK,
    Exact,
    Landmarks,
    LowDim,
    Memory,
    Packed,
    Pooled,
    ReadOperator,
    ReadSize,
    SparsePointers,
    TopK,
)
from sam2_mem.model.memory_attention import Attended, MemoryAttention
from sam2_mem.model.rope import Rotation, grid_coordinates, rotation_at
from sam2_mem.model.rotary_attention import attend_in_tiles
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.batching import batch_reads
from sam2_mem.types import MemoryRead, MemoryTokens, ReadItem, ReadPointer, RowBatch, Usage

CLOSE = 1e-5
GRID = (8, 12)
CELLS = GRID[0] * GRID[1]
WIDTH, NARROW = 32, 16
ALL = 10_000

EXACT = (
    LowDim(),
    Packed(),
    Auto(),
    Auto(least=1),
    TopK(k=ALL),
    TopK(k=ALL, chunk=7),
    BlockTopK(k=ALL),
    BlockTopK(k=ALL, side=1, chunk=5),
    Pooled(factor=1),
    Pooled(factor=1, then=Exact()),
    SparsePointers(keep=99),
    SparsePointers(keep=99, then=LowDim()),
    SparsePointers(keep=99, then=Pooled(factor=1, then=BlockTopK(k=ALL))),
)
ROUGH = (Pooled(), Pooled(then=LowDim()), Pooled(factor=4, then=TopK(k=8)), TopK(k=8), BlockTopK(k=8), SparsePointers(keep=1),
         SparsePointers(keep=1, then=BlockTopK(k=8)))  # fmt: skip
EVERY = (Exact(), *EXACT, *ROUGH)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[1, 2], ids=["one-head", "two-heads"])
def network(request: pytest.FixtureRequest) -> MemoryAttention:
    """Two layers of random weights under which memory matters."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = MemoryAttention(width=WIDTH, memory_width=NARROW, num_layers=2, feedforward=64, num_heads=request.param)
    for layer in made.layers:
        attention = layer.cross_attn_image
        for part in (attention.q_proj, attention.k_proj):
            part.weight.data *= 2
        attention.out_proj.weight.data *= 6
        attention.v_proj.bias.data += noise(WIDTH, seed=11)
    return made.eval().requires_grad_(False)


def frame(seed: int, **fields: Tensor) -> MemoryTokens:
    plain = MemoryTokens(noise(CELLS, NARROW, seed=seed), 0.3 * noise(CELLS, NARROW, seed=1), grid_coordinates(*GRID))
    return replace(plain, **fields)


def pointers(count: int) -> tuple[ReadPointer, ...]:
    return tuple(ReadPointer(2 * noise(WIDTH, seed=50 + i), i / 15, gain=1.0 + 0.1 * i) for i in range(count))


def reads() -> list[MemoryRead]:
    """Of three lengths, with gains, with tokens that stand for several, and one without pointers."""
    counted = frame(23, log_count=(1 + torch.arange(CELLS) % 4).float().log())
    few = replace(frame(24), **{f: getattr(frame(24), f)[5:40] for f in ("feat", "pos", "xy")})
    nowhere = MemoryTokens(noise(5, NARROW, seed=25), noise(5, NARROW, seed=26))
    return [
        MemoryRead((ReadItem(frame(21), -1), ReadItem(frame(22), 0, gain=1.4)), pointers(3)),
        MemoryRead((ReadItem(counted, -1, gain=0.7), ReadItem(few, 0)), pointers(5)),
        MemoryRead((ReadItem(few, 1), ReadItem(nowhere, None))),
    ]


def batch(*chosen: MemoryRead) -> RowBatch:
    (made,) = batch_reads(chosen, micro_model(), max_padding=0.9).batches
    return made


def read_with(network: MemoryAttention, operator: ReadOperator, rows: RowBatch, usage: Usage = Usage.NONE) -> Attended:
    low, pos = noise(CELLS, WIDTH, seed=8), noise(CELLS, WIDTH, seed=9)
    network.operator = operator
    with torch.no_grad():
        return network(low, pos, GRID, rows, usage)


def gap(a: Attended, b: Attended) -> float:
    return (a.features - b.features).abs().max().item()


# -- equal to exact ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", EXACT, ids=str)
def test_exact_in_ragged_rows_with_gains_and_counts(network: MemoryAttention, operator: ReadOperator) -> None:
    rows = batch(*reads())
    assert len(set(rows.lengths)) == 3 and rows.gain is not None and rows.bias.exp().max() == 4
    assert gap(read_with(network, operator, rows), read_with(network, Exact(), rows)) <= CLOSE


@pytest.mark.parametrize("field", ["gain", "bias"])
def test_control_gains_and_counts_matter(network: MemoryAttention, field: str) -> None:
    rows = batch(reads()[1])
    without = replace(rows, **{field: None})
    for operator in (Exact(), *EXACT):
        assert gap(read_with(network, operator, rows), read_with(network, operator, without)) > 100 * CLOSE


@pytest.mark.parametrize("operator", ROUGH, ids=str)
def test_control_settings_that_are_not_exact(network: MemoryAttention, operator: ReadOperator) -> None:
    rows = batch(*reads())
    assert gap(read_with(network, operator, rows), read_with(network, Exact(), rows)) > 100 * CLOSE


def test_the_bias_of_values_is_projected_once(network: MemoryAttention) -> None:
    """The control of the algebra: means of values that do not add up to one, or a bias left out, are far off."""
    attention = network.layers[0].cross_attn_image
    read = noise(1, attention.num_heads, 6, NARROW, seed=4)
    heads = [
        attention.v_proj.weight.unflatten(0, (attention.num_heads, -1))[h] @ read[0, h].T
        for h in range(attention.num_heads)
    ]
    by_hand = attention.out_proj(torch.cat(heads).T + attention.v_proj.bias)
    with torch.no_grad():
        assert (attention.project_read(read)[0] - by_hand).abs().max() <= CLOSE
        assert (attention.project_read(read)[0] - attention.out_proj(torch.cat(heads).T)).abs().max() > 0.1


@pytest.mark.parametrize(
    "operator", [LowDim(), Packed(), TopK(k=ALL), BlockTopK(k=ALL), SparsePointers(keep=99), Pooled(factor=1)], ids=str
)
def test_with_gradient_too(network: MemoryAttention, operator: ReadOperator) -> None:
    """Where tiles cannot be used; the gradient is that of exact attention."""
    rows = batch(*reads())
    gradients = []
    for chosen in (Exact(), operator):
        network.operator = chosen
        feat = rows.feat.clone().requires_grad_()
        out = network(noise(CELLS, WIDTH, seed=8), noise(CELLS, WIDTH, seed=9), GRID, replace(rows, feat=feat)).features
        (out * noise(CELLS, WIDTH, seed=10)).sum().backward()
        gradients.append((out.detach(), feat.grad))
    (plain, expected), (other, got) = gradients
    assert (plain - other).abs().max() <= CLOSE
    assert (got - expected).abs().max() <= 1e-3 * expected.abs().max() and expected.abs().max() > 0


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loud", [1.0, 60.0])
@pytest.mark.parametrize(("queries", "length"), [(1, 1), (7, 513), (1100, 1300)])
def test_tiles_add_up(loud: float, queries: int, length: int) -> None:
    q, k, value = loud * noise(queries, 32, seed=1), noise(length, 32, seed=2), noise(length, 5, seed=3)
    bias = noise(length, seed=4)
    bias[: length // 2] = float("-inf")
    scores = q.double() @ k.double().T / math.sqrt(32)
    for given in (None, bias):
        weights = (scores if given is None else scores + given).softmax(-1)
        assert (attend_in_tiles(q, k, value, given) - weights @ value.double()).abs().max() <= 1e-4 * loud
    if length > 1:
        assert (attend_in_tiles(q, k, value) - attend_in_tiles(q, k, value, bias)).abs().max() > 1e-2


# -- approximations ---------------------------------------------------------------------------------------------------


def blocky(factor: int, seed: int) -> MemoryTokens:
    """A frame whose tokens are equal in every block, position and place included."""
    y, x = torch.meshgrid(*(torch.arange(n) // factor for n in GRID), indexing="ij")
    which = (y * 100 + x).flatten()
    plain, first = frame(seed), [(which == w).nonzero()[0, 0].item() for w in which]
    return replace(plain, **{f: getattr(plain, f)[first] for f in ("feat", "pos", "xy")})


@pytest.mark.parametrize("factor", [2, 4])
def test_pooled_is_exact_on_constant_blocks(network: MemoryAttention, factor: int) -> None:
    mixed = [MemoryRead((ReadItem(blocky(factor, 21), -1), ReadItem(blocky(factor, 22), 0, gain=1.3)), pointers(2)),
             MemoryRead((ReadItem(blocky(factor, 23), -1),), pointers(3))]  # fmt: skip
    rows = batch(*mixed)
    exact = read_with(network, Exact(), rows)
    assert gap(read_with(network, Pooled(factor=factor), rows), exact) <= CLOSE
    assert gap(read_with(network, Pooled(factor=2 * factor), rows), exact) > 100 * CLOSE


def prepared(operator: ReadOperator, rows: RowBatch) -> Memory:
    return operator.prepare(rows, lambda xy: rotation_at(xy, WIDTH), GRID)


def test_pooled_counts(network: MemoryAttention) -> None:
    """A quarter of the tokens, each with the number of those it stands for; pointers and tokens without a place
    stay."""
    rows = batch(*reads())
    memory = prepared(Pooled(), rows)
    split = WIDTH // NARROW
    assert memory.pointer.sum(1).tolist() == [3 * split, 5 * split, 0]
    full, counted = CELLS // 4, (rows.bias[1].exp()).sum()
    assert memory.bias[0].isfinite().sum() == 2 * full + 3 * split
    assert memory.bias[0][memory.bias[0].isfinite() & ~memory.pointer[0]].allclose(torch.tensor(math.log(4)))
    assert memory.bias[1].exp().sum() == pytest.approx(counted.item(), abs=1e-2), "counts are added, not lost"
    assert (memory.bias[2] == 0).sum() >= 5, "tokens without a place are left alone"
    assert memory.bias[0].exp().sum() == pytest.approx(2 * CELLS + 3 * split, abs=1e-2)


def test_pooled_leaves_the_tokens_of_a_coarser_grid_alone(network: MemoryAttention) -> None:
    rows = batch(MemoryRead((ReadItem(pool_grid(frame(21), GRID, 2), 0),), pointers(2)))
    assert gap(read_with(network, Pooled(), rows), read_with(network, Exact(), rows)) <= CLOSE
    assert gap(read_with(network, Pooled(factor=4), rows), read_with(network, Exact(), rows)) > 100 * CLOSE


def test_more_tokens_less_error(network: MemoryAttention) -> None:
    rows = batch(*reads())
    exact = read_with(network, Exact(), rows)
    for kind in (lambda k: TopK(k=k), lambda k: BlockTopK(k=k, side=2), lambda k: SparsePointers(keep=max(1, k // 32))):
        errors = [gap(read_with(network, kind(k), rows), exact) for k in (4, 96, 190)]
        assert errors[0] > errors[-1]


def test_every_query_gets_its_own_best_tokens(network: MemoryAttention) -> None:
    """Against a loop: k spatial tokens with the largest scores, and all pointers."""
    rows, k = batch(reads()[0]), 9
    memory = prepared(TopK(k=k), rows) if network.layers[0].self_attn.num_heads == 1 else None
    if memory is None:
        return
    attention = network.layers[0].cross_attn_image
    q = noise(1, 1, CELLS, WIDTH, seed=5)
    with torch.no_grad():
        keys, values = attention.keys(memory.key, memory.rotation)[0, 0], attention.v_proj(memory.value)[0]
        got = TopK(k=k)(attention, q, memory)[0]
        for i in (0, 17, CELLS - 1):
            scores = keys @ q[0, 0, i] / math.sqrt(WIDTH)
            spatial = (~memory.pointer[0]).nonzero()[:, 0]
            best = spatial[scores[spatial].argsort(descending=True)[:k]]
            chosen = torch.cat([best, memory.pointer[0].nonzero()[:, 0]])
            expected = attention.out_proj(scores[chosen].softmax(0) @ values[chosen])
            assert (got[i] - expected).abs().max() <= CLOSE


def test_a_block_of_equal_queries_chooses_as_one_query(network: MemoryAttention) -> None:
    attention, rows = network.layers[0].cross_attn_image, batch(*reads())
    memory = replace(prepared(BlockTopK(k=11, side=4), rows), rotation=turned(rows, attention.head_width))
    blocks = noise(1, attention.num_heads, 6, attention.head_width, seed=5)
    equal = memory.join(blocks.unsqueeze(3).expand(-1, -1, -1, 16, -1))
    assert equal.shape[2] == CELLS and torch.equal(memory.split(equal)[:, :, :, 3], blocks)
    with torch.no_grad():
        assert (BlockTopK(k=11)(attention, equal, memory) - TopK(k=11)(attention, equal, memory)).abs().max() <= CLOSE
        mixed = noise(1, attention.num_heads, CELLS, attention.head_width, seed=6)
        assert (BlockTopK(k=11)(attention, mixed, memory) - TopK(k=11)(attention, mixed, memory)).abs().max() > 1e-3


def turned(rows: RowBatch, dim: int) -> Rotation:
    return rotation_at(rows.xy.unsqueeze(1), dim)


def test_pointers_are_kept_by_score(network: MemoryAttention) -> None:
    """A pointer that no query asks for goes first: without it nothing changes much; the loudest one stays."""
    rows = batch(reads()[0])
    attention = network.layers[0].cross_attn_image
    memory = replace(prepared(SparsePointers(keep=1), rows), rotation=turned(rows, attention.head_width))
    q, split = noise(1, attention.num_heads, CELLS, attention.head_width, seed=5) + 2, WIDTH // NARROW
    with torch.no_grad():
        left = SparsePointers(keep=1)._with_best_pointers(attention, q, memory)
        keys = attention.keys(memory.key, memory.rotation)[0]
    score = (keys @ q[0].mean(1).unsqueeze(-1)).squeeze(-1) * attention.scale
    places = memory.pointer[0].nonzero()[:, 0].unflatten(0, (-1, split))
    best = score[:, places].logsumexp(-1).logsumexp(0).argmax()
    assert torch.equal(left.value[0][left.pointer[0]], memory.value[0][places[best]])
    assert left.pointer.sum() == split and (~left.pointer).sum() == (~memory.pointer).sum()


# -- rows end to end --------------------------------------------------------------------------------------------------


def varlen(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, max_q: int, max_k: int) -> Tensor:
    """What the kernel of the same arguments gives on a CUDA device."""
    assert ends_q.dtype is ends_k.dtype is torch.int32 and (ends_q[0], ends_k[0]) == (0, 0)
    assert (len(q), len(k)) == (ends_q[-1], ends_k[-1])
    assert (max_q, max_k) == (ends_q.diff().max(), ends_k.diff().max())
    rows = zip(ends_q.tolist(), ends_q[1:].tolist(), ends_k.tolist(), ends_k[1:].tolist())
    return torch.cat([
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q[a:b], k[c:d], v[c:d]))).transpose(0, 1)
        for a, b, c, d in rows
    ])  # fmt: skip


def plain_reads() -> list[MemoryRead]:
    """Of three lengths, without counts."""
    return [MemoryRead((ReadItem(frame(21 + i), -1),) * (3 - i), pointers(1 + i)) for i in range(3)]


def test_packed_rows_lie_end_to_end(network: MemoryAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch(*plain_reads())
    assert len(set(rows.lengths)) == 3 and not rows.counted
    expected, calls = read_with(network, Exact(), rows), []
    monkeypatch.setattr(attention_operators, "varlen_attn", lambda *a, **k: calls.append(1) or varlen(*a, **k))
    monkeypatch.setattr(attention_operators, "_takes_unequal", lambda q, memory: not memory.counted)
    assert gap(read_with(network, Packed(), rows), expected) <= CLOSE
    assert len(calls) == len(network.layers)
    longer = replace(rows, lengths=(max(rows.lengths),) * 3)
    assert gap(read_with(network, Packed(), longer), expected) > 100 * CLOSE, "padding is read where lengths are wrong"
    assert batch(*reads()).counted, "counts cannot be given to the kernel"


def test_packed_on_a_cpu_takes_row_by_row(network: MemoryAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_operators, "varlen_attn", None)
    rows = batch(*plain_reads())
    assert gap(read_with(network, Packed(), rows), read_with(network, Exact(), rows)) <= CLOSE


# -- company and statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", EVERY, ids=str)
def test_alone_as_in_company(network: MemoryAttention, operator: ReadOperator) -> None:
    together = read_with(network, operator, batch(*reads()))
    for i, read in enumerate(reads()):
        alone = read_with(network, operator, batch(read))
        row = batch(*reads()).lengths.index(len(alone_tokens(read)))
        assert (alone.features[0] - together.features[row]).abs().max() <= CLOSE, i
    assert (together.features[0] - together.features[1]).abs().max() > 100 * CLOSE


def alone_tokens(read: MemoryRead) -> Sequence[int]:
    return range(batch(read).lengths[0])


@pytest.mark.parametrize("operator", EVERY, ids=str)
@pytest.mark.parametrize("usage", [Usage.TOKENS, Usage.ITEMS_BY_QUERY], ids=["tokens", "items"])
def test_usage_is_that_of_exact_attention(network: MemoryAttention, operator: ReadOperator, usage: Usage) -> None:
    rows = batch(*reads())
    got, expected = (read_with(network, o, rows, usage).usage for o in (operator, Exact()))
    assert len(got) == 3
    for mine, exact in zip(got, expected):
        pairs = zip(mine.tokens, exact.tokens) if usage is Usage.TOKENS else [(mine.items, exact.items)]
        assert all(len(a) == len(b) and torch.equal(a, b) for a, b in pairs)


# -- in the tracker ---------------------------------------------------------------------------------------------------

POLICIES = ("fifo", "sam2long", "rmem", "xmem")  # the third and fourth ask for usage, the second for gains


FRAMES = 10


@pytest.fixture(scope="module")
def tracking_model() -> SAM2:
    """The micro network, objects always being present."""
    model = new_model()
    model.get_parameter(SCORE_BIAS).data += 100
    return model


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ["fifo", "xmem"]))
def test_exact_operators_track_alike(policy: str, tracking_model: SAM2) -> None:
    expected = tracked(tracking_model, policy, Exact())
    assert (expected[1:] > -1000).all()
    assert (tracked(tracking_model, policy, LowDim()) - expected).abs().max() <= 1e-3
    for operator in (Pooled(), TopK(k=4), BlockTopK(k=4, side=2), SparsePointers(keep=1)):
        masks = tracked(tracking_model, policy, operator)
        assert masks.isfinite().all() and (masks - expected).abs().max() > 1e-3, operator


def tracked(model: SAM2, policy: str, operator: ReadOperator) -> Tensor:
    """Masks of two objects, one after the other."""
    features = micro_features(FRAMES)
    model.memory_attention.operator = operator
    prompts = {0: [mask_prompt(1)], 3: [mask_prompt(2, 3, 1)]}
    results = run(micro_tracker(policy, model=model, max_padding=0.5), features, prompts)
    return torch.cat([r.masks for r in results])


# -- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operator",
    [Exact(), LowDim(), Packed(), Auto(least=1), Auto(least=1 << 30), Pooled(then=LowDim()), Pooled(factor=4, then=Exact()), TopK(k=9),
     BlockTopK(k=9, side=4), BlockTopK(k=ALL, side=2), SparsePointers(keep=2, then=LowDim()),
     SparsePointers(keep=2, then=Pooled(then=BlockTopK(k=9, side=2))), SparsePointers(keep=9, then=Exact())],
    ids=str,
)  # fmt: skip
def test_operations(network: MemoryAttention, operator: ReadOperator) -> None:
    rows = batch(*[MemoryRead((ReadItem(frame(s), -1), ReadItem(frame(s + 1), 0)), pointers(3)) for s in (30, 40)])
    attention = network.layers[0].cross_attn_image
    q = noise(2, attention.num_heads, CELLS, attention.head_width, seed=5)
    with torch.no_grad():
        memory = operator.prepare(rows, lambda xy: rotation_at(xy, attention.head_width), GRID)
        with counting() as counter:
            operator(attention, q, memory)
    split = WIDTH // NARROW
    size = ReadSize(2, CELLS, 2 * CELLS, 3 * split, WIDTH, NARROW, attention.num_heads)
    assert operator.flops(size) == counter.get_total_flops() > 0


def test_low_dim_needs_fewer() -> None:
    """At SAM 2's sizes: seven frames of 64 x 64, sixteen pointers of four tokens."""
    size = ReadSize(1, 4096, 7 * 4096, 64, 256, 64)
    share = LowDim().flops(size) / Exact().flops(size)
    assert 0.61 < share < 0.64
    assert Pooled().flops(size) < 0.3 * LowDim().flops(size)
    assert BlockTopK().flops(size) < TopK().flops(size) < Exact().flops(size)


# -- configs ----------------------------------------------------------------------------------------------------------

BY_NAME = {
    "auto": Auto(),
    "exact": Exact(),
    "lowdim": LowDim(),
    "packed": Packed(),
    "pooled": Pooled(),
    "topk": TopK(),
    "block_topk": BlockTopK(),
    "sparse_pointers": SparsePointers(),
    "landmarks": Landmarks(),
}


def built(*overrides: str) -> ReadOperator:
    return build_sam2(micro_config(), None, device="meta", hydra_overrides_extra=overrides).memory_attention.operator


def test_every_operator_has_a_config() -> None:
    files = {f.stem for f in (config_dir() / "attention").glob("*.yaml")}
    assert files == set(BY_NAME)
    assert built() == Auto()


@pytest.mark.parametrize("name", BY_NAME)
def test_chosen_by_name(name: str) -> None:
    assert built(f"attention={name}") == BY_NAME[name]
    assert instantiate(compose("hiera_nano", [f"attention={name}"]).model.memory_attention.operator) == BY_NAME[name]


def test_settings_by_name() -> None:
    assert built("attention=pooled", "attention.factor=4") == Pooled(factor=4)
    with pytest.raises(ValueError, match="expected a way to read memory out of auto, .*got 'pool'"):
        built("attention=pool")
    with pytest.raises(ValueError, match="factor >= 1"):
        built("attention=pooled", "attention.factor=0")


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Pooled, {"factor": 0}),
        (TopK, {"k": 0}),
        (TopK, {"chunk": 0}),
        (BlockTopK, {"side": 0}),
        (Landmarks, {"factor": 0}),
        (SparsePointers, {"keep": 0}),
    ],
)
def test_mistakes(kind: type[ReadOperator], settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(settings))} >= 1, got 0"):
        kind(**settings)
