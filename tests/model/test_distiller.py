"""Token distillers: untrained they are means, means keep what a log-count can keep, everything learns, policies work on
them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import policy_contract
import pytest
import torch
from micro import TOKENS, in_tiers, mask_prompt, micro_config, micro_model, micro_tracker, micro_weights, one_thread  # noqa: F401
from policy_contract import CHECKS
from torch import Tensor, nn

from sam2_mem.build_sam import DISTILLER, build_policy, build_sam2, build_sam2_video_predictor
from sam2_mem.checkpoint import CheckpointError, read_state_dict, save_part
from sam2_mem.cli.distillers import measure_size, operations, table
from sam2_mem.config import ConfigError, checkpoint_dir, compose, config_dir
from sam2_mem.evaluation.benchmark.profile import counting
from sam2_mem.memory.policies.xmem.prototypes import join_tokens
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.tokens import features_at, pool_grid, pool_tokens, tensor_bytes
from sam2_mem.model.attention_operators import Exact
from sam2_mem.model.cached_positions import grid_xy, sine_tokens
from sam2_mem.model.distiller import GridTokens, PooledTokens, SpatialDistiller, TemporalDistiller, TokenDistiller
from sam2_mem.model.distiller.spatial import GlobalLatents
from sam2_mem.model.distiller.windows import EMPTY, layout
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.tensor_tree import tensors_in
from sam2_mem.tracking import batching
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import (
    MERGED_SLOT,
    PROMPT_SLOT,
    FrameFeatures,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadItem,
    ReadPointer,
)

GRID, WIDTH, CHANNELS = (8, 8), 32, 16
CPU = torch.device("cpu")
SIZES = {"memory_width": CHANNELS, "key_width": 8, "num_heads": 4, "hidden": 24}


def spatial(factor: int = 2, **more) -> SpatialDistiller:
    return seeded(lambda: SpatialDistiller(factor=factor, **SIZES, **more))


def temporal(factor: int = 2, **more) -> TemporalDistiller:
    return seeded(lambda: TemporalDistiller(factor=factor, **SIZES, **more))


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def disturbed(module: nn.Module, by: float = 0.3) -> nn.Module:
    """A copy with noise on all weights, as if trained."""
    module = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value += by * torch.randn(value.shape, generator=generator)
    return module.requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def maps(count: int = 2, grid: tuple[int, int] = GRID, seed: int = 0) -> Tensor:
    return noise(count, CHANNELS, *grid, seed=seed)


def attended(items: Sequence[ReadItem], model: SAM2 | None = None, grid: tuple[int, int] = GRID) -> Tensor:
    """(Q, C): what memory attention makes of a frame of noise that reads ``items`` and one pointer."""
    model = micro_model() if model is None else model
    cells = grid[0] * grid[1]
    frame = FrameFeatures(9, noise(cells, WIDTH, seed=5), sine_tokens(*grid, WIDTH, CPU), (), grid)
    read = MemoryRead(items=tuple(items), pointers=(ReadPointer(noise(WIDTH, seed=6), 0.2),))
    return model.attend(frame, batching.batch_reads([read], model).batches[0]).features[0]


def as_items(entries: Sequence[MemoryTokens]) -> list[ReadItem]:
    return [ReadItem(e, slot) for e, slot in zip(entries, (PROMPT_SLOT, 0, 1, 2))]


def apart(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


# -- means ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 4])
def test_pool_is_the_mean_of_every_window(factor: int) -> None:
    given = maps()
    for grid_entry, entry in zip(GridTokens()(given), PooledTokens(factor=factor)(given)):
        expected = pool_grid(grid_entry, GRID, factor)
        for name in ("feat", "pos", "xy", "log_count"):
            assert apart(getattr(entry, name), getattr(expected, name)) < 1e-5, name


@pytest.mark.parametrize("grid", [(6, 7), (5, 8), (3, 3)])
def test_windows_at_the_border_are_smaller(grid: tuple[int, int]) -> None:
    entry, whole = PooledTokens(factor=4)(maps(1, grid))[0], GridTokens()(maps(1, grid))[0]
    expected = pool_grid(whole, grid, 4)
    assert len(entry) == PooledTokens(factor=4).tokens_per_map(grid) == len(expected)
    assert entry.log_count.exp().sum().item() == pytest.approx(grid[0] * grid[1])
    assert apart(entry.feat, expected.feat) < 1e-5 and apart(entry.xy, expected.xy) < 1e-5


UNTRAINED = [
    (lambda: spatial(2), 2),
    (lambda: spatial(4), 4),
    (lambda: spatial(2, global_latents=4), 2),
    (lambda: temporal(2), 2),
    (lambda: temporal(2, aggregate="gru"), 2),
    (lambda: temporal(4, frame="pool"), 4),
]


@pytest.mark.parametrize(("make", "factor"), UNTRAINED)
def test_untrained_is_mean_pooling(make: Callable[[], TokenDistiller], factor: int) -> None:
    given, distiller = maps(3), make()
    expected = attended(as_items(PooledTokens(factor=factor)(given)))
    assert apart(attended(as_items(distiller(given))), expected) < 1e-5
    if factor == 4 and isinstance(distiller, TemporalDistiller):
        return  # it has nothing to disturb in single frames
    assert apart(attended(as_items(disturbed(distiller)(given))), expected) > 1e-3


@pytest.mark.parametrize("aggregate", ["attention", "gru"])
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_untrained_tubes_are_means(aggregate: str, frames: int) -> None:
    entries = temporal(2)(maps(frames))
    expected = PooledTokens(factor=2).merge_tubes([entries], GRID, 2)[0]
    assert len(expected) == 4 and expected.log_count.exp().sum().item() == pytest.approx(64 * frames, rel=1e-4)
    distiller = temporal(2, aggregate=aggregate)
    merged = distiller.merge_tubes([entries], GRID, 2)[0]
    assert apart(attended([ReadItem(merged, 3)]), attended([ReadItem(expected, 3)])) < 1e-5
    other = disturbed(distiller).merge_tubes([entries], GRID, 2)[0]
    assert apart(attended([ReadItem(other, 3)]), attended([ReadItem(expected, 3)])) > 1e-3


def test_means_of_means_are_means() -> None:
    """A tube of tubes of pooled frames is the mean of the frames, counts included."""
    whole, grid = GridTokens()(maps(4)), GridTokens()
    twice = [grid.merge_tubes([pair], GRID, 2)[0] for pair in (whole[:2], whole[2:])]
    stepwise, at_once = grid.merge_tubes([twice], GRID, 4)[0], grid.merge_tubes([whole], GRID, 4)[0]
    for name in ("feat", "pos", "xy", "log_count"):
        assert apart(getattr(stepwise, name), getattr(at_once, name)) < 1e-5, name
    uneven = grid.merge_tubes([[twice[0], whole[2]]], GRID, 4)[0]
    expected = grid.merge_tubes([whole[:3]], GRID, 4)[0]
    assert apart(uneven.feat, expected.feat) < 1e-5, "two frames and one weigh as three"
    assert apart(uneven.feat, at_once.feat) > 1e-2


# -- log-counts -------------------------------------------------------------------------------------------------------


def repeated(tokens: MemoryTokens) -> MemoryTokens:
    """Every token as often as it counts: the memory that a distiller can stand for without loss."""
    counts = tokens.log_count.exp().round().long()
    return MemoryTokens(*(x.repeat_interleave(counts, dim=0) for x in (tokens.feat, tokens.pos, tokens.xy)))


@pytest.mark.parametrize("make", [lambda: PooledTokens(factor=2), lambda: spatial(4), lambda: temporal(2)])
def test_a_memory_constant_within_windows_is_kept_exactly(make: Callable[[], TokenDistiller]) -> None:
    entries = make()(maps(2))
    exact = attended(as_items([repeated(e) for e in entries]))
    assert apart(attended(as_items(entries)), exact) < 1e-5
    uncounted = [replace(e, log_count=None) for e in entries]
    assert apart(attended(as_items(uncounted)), exact) > 1e-3, "without log-counts the pointer weighs too much"


@pytest.mark.parametrize("aggregate", ["attention", "gru"])
def test_a_tube_constant_within_windows_is_kept_exactly(aggregate: str) -> None:
    frame = spatial(4)(maps(1))[0]
    still = [repeated(frame), repeated(frame), frame]
    merged = temporal(1, aggregate=aggregate).merge_tubes([still], GRID, 4)[0]
    exact = attended([ReadItem(repeated(frame), 2)] * 3)
    assert apart(attended([ReadItem(merged, 2)]), exact) < 1e-5
    assert apart(attended([ReadItem(replace(merged, log_count=None), 2)]), exact) > 1e-3


# -- order, batches, ragged entries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: spatial(2, global_latents=3), lambda: temporal(2, aggregate="gru")])
def test_a_map_in_a_batch_is_a_map_alone(make: Callable[[], TokenDistiller]) -> None:
    distiller, given = disturbed(make()), maps(3)
    together, alone = distiller(given), [distiller(m[None])[0] for m in given]
    for a, b in zip(together, alone):
        assert apart(a.feat, b.feat) < 1e-5 and apart(a.log_count, b.log_count) < 1e-5
    assert apart(together[0].feat, together[1].feat) > 1e-2


def shuffled(tokens: MemoryTokens, seed: int) -> MemoryTokens:
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return MemoryTokens(
        *(None if x is None else x[order] for x in (tokens.feat, tokens.pos, tokens.xy, tokens.log_count))
    )


@pytest.mark.parametrize("aggregate", ["attention", "gru"])
def test_the_order_of_tokens_does_not_matter_that_of_frames_does(aggregate: str) -> None:
    distiller = disturbed(temporal(2, aggregate=aggregate))
    entries = distiller(maps(3))
    merged = distiller.merge_tubes([entries], GRID, 2)[0]
    again = distiller.merge_tubes([[shuffled(e, i) for i, e in enumerate(entries)]], GRID, 2)[0]
    assert apart(merged.feat, again.feat) < 1e-5 and apart(merged.log_count, again.log_count) < 1e-5
    assert apart(merged.feat, distiller.merge_tubes([entries[::-1]], GRID, 2)[0].feat) > 1e-3


def test_the_order_of_distilled_items_does_not_matter() -> None:
    items = as_items(disturbed(spatial(4))(maps(3)))
    assert apart(attended(items), attended(items[::-1])) < 1e-5


@pytest.mark.parametrize("aggregate", ["attention", "gru"])
def test_ragged_tubes(aggregate: str) -> None:
    """Entries of other lengths, merged before, of half a map, without coordinates."""
    distiller = disturbed(temporal(2, aggregate=aggregate))
    first, second, third = distiller(maps(3))
    half = MemoryTokens(second.feat[:8], second.pos[:8], second.xy[:8], second.log_count[:8])
    placeless = MemoryTokens(third.feat[:2], third.pos[:2])
    old = distiller.merge_tubes([[first, second]], GRID, 4)[0]
    for tube in ([half, first], [first, half], [half], [placeless, half], [old, third, half], [old]):
        merged = distiller.merge_tubes([tube], GRID, 2)[0]
        assert len(merged.feat) == len(merged.pos) == len(merged.xy) == len(merged.log_count) <= 4
        assert merged.feat.isfinite().all() and attended([ReadItem(merged, 1)]).isfinite().all()
    empty_below = distiller.merge_tubes([[half, first]], GRID, 2)[0]
    other = distiller.merge_tubes([[replace(half, feat=half.feat + 1), first]], GRID, 2)[0]
    assert apart(empty_below.xy, other.xy) == 0
    pooled = PooledTokens(factor=2).merge_tubes([[half, first]], GRID, 2)[0]
    untouched = PooledTokens(factor=2).merge_tubes([[first]], GRID, 2)[0]
    assert apart(pooled.feat[2:], untouched.feat[2:]) < 1e-6, "windows that a frame does not reach are the others'"


def test_several_tubes_are_merged_one_by_one() -> None:
    distiller = disturbed(temporal(2))
    entries = distiller(maps(4))
    both = distiller.merge_tubes([entries[:2], entries[2:]], GRID, 2)
    assert [
        apart(m.feat, distiller.merge_tubes([t], GRID, 2)[0].feat) for m, t in zip(both, (entries[:2], entries[2:]))
    ] == [0, 0]


def test_windows_by_coordinates() -> None:
    found = layout(grid_xy(4, 6, CPU), 4)
    assert found.tokens.shape == (2, 16) and (found.padding[0] == 0).all() and (found.padding[1] == EMPTY).sum() == 8
    assert found.offset.abs().max() <= 1
    pooled = layout(PooledTokens(factor=2)(maps(1))[0].xy, 4)
    assert pooled.tokens.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


# -- learning ---------------------------------------------------------------------------------------------------------

LEARNERS = {
    "spatial": lambda: spatial(2),
    "spatial, global": lambda: spatial(2, global_latents=3),
    "temporal": lambda: temporal(2),
    "temporal, pooled frames": lambda: temporal(2, frame="pool"),
    "temporal_gru": lambda: temporal(2, aggregate="gru"),
}


def sleeping(distiller: TokenDistiller) -> list[str]:
    """Parameters that a loss on the output of memory attention does not reach."""
    model = copy.deepcopy(micro_model())
    model.memory_encoder.distiller = distiller
    entries = distiller(maps(4))
    old = distiller.merge_tubes([entries[:2]], GRID, 2)[0]
    items = [ReadItem(entries[2], PROMPT_SLOT), ReadItem(entries[3], 0), ReadItem(old, MERGED_SLOT)]
    (attended(items, model) * noise(64, WIDTH, seed=8)).sum().backward()
    return [n for n, p in distiller.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9]


@pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
def test_gradients_reach_every_parameter_at_the_start(make: Callable[[], TokenDistiller]) -> None:
    assert sleeping(make()) == []


def test_control_a_last_layer_of_zeros_puts_the_others_to_sleep() -> None:
    distiller = spatial(2)
    for branch in (distiller.refinement.change.plus, distiller.refinement.change.minus):
        nn.init.zeros_(branch[-1].weight)
    assert {n.split(".")[-2] for n in sleeping(distiller)} >= {"0", "1"}


def test_global_latents_weigh_next_to_nothing_and_learn_as_loudly_as_others() -> None:
    distiller = spatial(2, global_latents=4)
    entry = distiller(maps(1))[0]
    assert len(entry) == distiller.tokens_per_map(GRID) == 20
    assert entry.log_count[16:].exp().sum().item() == pytest.approx(4 * 64e-6, rel=1e-3)
    assert entry.xy[16:].tolist() == [[3.5, 3.5]] * 4, "in the middle, not in the corner"
    attended(as_items([entry])).square().sum().backward()
    loudness = {n: p.grad.abs().max().item() for n, p in distiller.named_parameters()}
    assert loudness["globals.query"] > 1e-4 * loudness["refinement.change.plus.3.weight"]
    assert spatial(2, global_latents=4, global_share=0.5)(maps(1))[0].log_count[16:].exp().sum() > 100


def test_gradients_flow_through_merged_tubes_to_the_maps() -> None:
    given = maps(2).requires_grad_()
    distiller = temporal(2)
    attended([ReadItem(distiller.merge_tubes([distiller(given)], GRID, 2)[0], 3)]).square().sum().backward()
    assert (given.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


# -- the network ------------------------------------------------------------------------------------------------------

NAMES = sorted({p.stem for p in (config_dir() / "distiller").glob("*.yaml")} - {"perceiver"})
"""The perceiver needs larger maps than those of the micro network; see tests/model/test_family.py."""


def built(*overrides: str, weights: Path | None = None) -> SAM2:
    config = compose(micro_config(), overrides)
    return build_sam2(config, weights, device="cpu", apply_postprocessing=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_loads_official_weights_and_adds_only_its_own(name: str, tmp_path_factory) -> None:
    weights = micro_weights(tmp_path_factory.mktemp("weights"))
    model = built(f"distiller={name}", weights=weights)
    official, own = micro_model().state_dict(), model.state_dict()
    assert set(official) <= set(own)
    new = set(own) - set(official)
    assert all(key.startswith(DISTILLER) for key in new)
    assert bool(new) == (name in ("spatial", "temporal", "temporal_gru"))
    assert all(torch.equal(own[key], official[key]) for key in official)
    assert model.tokens_per_map == model.memory_encoder.distiller.tokens_per_map((4, 4))
    assert (
        compose("sam2.1_hiera_t", [f"distiller={name}"]).distiller
        == compose(compose("sam2.1_hiera_t"), [f"distiller={name}"]).distiller
    )


def test_a_field_and_a_name_from_a_config(tmp_path: Path) -> None:
    model = built("distiller=spatial", "distiller.factor=2", "distiller.global_latents=2")
    assert model.tokens_per_map == 6
    with pytest.raises(
        ConfigError,
        match="expected a token distiller out of none, perceiver, pool2, pool4, spatial, temporal, temporal_gru, got",
    ):
        compose("nano_v2", ["distiller=unknown"])
    with pytest.raises(ConfigError, match="expected num_heads to divide the memory width 16, got 3"):
        built("distiller=spatial", "distiller.num_heads=3")


def test_a_distillers_own_checkpoint(tmp_path: Path) -> None:
    trained = disturbed(built("distiller=temporal").memory_encoder.distiller)
    path = tmp_path / "temporal.safetensors"
    save_part(trained, DISTILLER, path)
    loaded = built("distiller=temporal", f"distiller_checkpoint={path}").memory_encoder.distiller.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in trained.state_dict().items())
    with pytest.raises(CheckpointError, match="missing in the file"):
        built("distiller=temporal_gru", f"distiller_checkpoint={path}")
    with pytest.raises(CheckpointError, match="GridTokens, which has no weights"):
        built(f"distiller_checkpoint={path}")
    with pytest.raises(CheckpointError, match="expected a checkpoint file"):
        built("distiller=temporal", f"distiller_checkpoint={tmp_path / 'none.safetensors'}")


PACKAGED = dict(compose("nano_v2").trained_distillers)


def small(*overrides: str, weights: Path | None = None) -> SAM2:
    return build_sam2("nano_v2", weights, device="cpu", hydra_overrides_extra=overrides)


@pytest.mark.parametrize("kind", PACKAGED)
def test_the_small_model_brings_trained_distillers(kind: str, tmp_path: Path) -> None:
    choice = [f"distiller={kind.rstrip('0123456789')}", f"distiller.factor={kind[-1]}"]
    trained, untrained = small(*choice), small(*choice, "distiller_checkpoint=random")
    found = trained.memory_encoder.distiller
    assert found.trained_as == kind
    expected = read_state_dict(checkpoint_dir() / PACKAGED[kind])
    assert all(torch.equal(value, expected[DISTILLER + key].float()) for key, value in found.state_dict().items())
    maps = torch.randn(2, trained.memory_width, 8, 8, generator=torch.Generator().manual_seed(0))
    factor = found.factor
    with torch.no_grad():
        means = PooledTokens(factor=factor)(maps)
        own = [model.memory_encoder.distiller(maps) for model in (trained, untrained)]
        far, near = (max((a.feat - b.feat).abs().max() for a, b in zip(one, means)) for one in own)
    assert near < 1e-5 and far > 0.01
    copy = tmp_path / "other.safetensors"
    copy.write_bytes((checkpoint_dir() / "sam2_mem_nano_v2.safetensors").read_bytes())
    other = small(*choice, weights=copy).memory_encoder.distiller(maps)[0]
    assert (other.feat - means[0].feat).abs().max() < 1e-5, "weights of one's own get no distiller of another network"


def test_a_distiller_that_was_not_trained_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    small("distiller=temporal", "distiller.factor=4")
    assert "no weights for a distiller temporal4" in caplog.text
    for change in ("distiller.frame=pool", "distiller.hidden=64"):
        caplog.clear()
        small("distiller=temporal", change)
        assert "no weights for a distiller temporal2" in caplog.text
    caplog.clear()
    small("distiller=temporal")
    small("distiller=pool2")
    small("distiller=temporal", "distiller.factor=4", "distiller_checkpoint=random")
    small("distiller=temporal", "distiller.factor=4", weights="random")
    assert "no weights for a distiller" not in caplog.text


def test_the_earlier_name_of_merging() -> None:
    """``condense`` still merges, and is still called where a subclass defines it."""
    entries = GridTokens()(maps(2))
    with pytest.warns(FutureWarning, match="is now merge_tubes"):
        assert torch.equal(
            GridTokens().condense([entries], GRID, 2)[0].feat, GridTokens().merge_tubes([entries], GRID, 2)[0].feat
        )
    with pytest.warns(FutureWarning, match="Newest.condense is now merge_tubes; rename it"):

        class Newest(GridTokens):
            def condense(self, tubes, grid, strength):
                return super().condense([tube[-1:] for tube in tubes], grid, strength)

    with pytest.warns(FutureWarning, match="is now merge_tubes"):
        merged = Newest().merge_tubes([entries], GRID, 1)[0]
    assert torch.equal(merged.feat, entries[1].feat) and not torch.equal(merged.feat, entries[0].feat)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PooledTokens(factor=0), "factor >= 1, got 0"),
        (lambda: spatial(2, global_latents=-1), "global_latents >= 0, got -1"),
        (lambda: GlobalLatents(width=8, count=1, key_width=4, share=0.0), "global_share above 0"),
        (lambda: temporal(2, aggregate="lstm"), "expected aggregate out of attention, gru, got 'lstm'"),
        (lambda: temporal(2, frame="mean"), "expected frame out of spatial, pool, got 'mean'"),
        (lambda: GridTokens().merge_tubes([[]], GRID, 1), "tubes of at least one entry"),
        (lambda: GridTokens().merge_tubes([GridTokens()(maps(1))], GRID, 0), "strength >= 1, got 0"),
    ],
)
def test_user_mistakes(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_slots_between_rows_and_of_merged_entries() -> None:
    model = copy.deepcopy(micro_model())
    table = model.maskmem_tpos_enc.flatten(1)
    code = model.slot_code([3.5, 2.0, None, PROMPT_SLOT, MERGED_SLOT])
    expected = torch.stack([(table[3] + table[4]) / 2, table[2], table[0] * 0, table[-1], table[-2]])
    assert apart(code, expected) < 1e-6
    model.memory_encoder.distiller = temporal(2)
    assert apart(model.slot_code([MERGED_SLOT])[0], table[-2]) == 0
    model.memory_encoder.distiller.merged_time.data += 1
    assert apart(model.slot_code([MERGED_SLOT, 1])[0], table[-2] + 1) < 1e-6
    assert apart(model.slot_code([MERGED_SLOT, 1])[1], table[1]) == 0


def test_bytes_of_stored_entries() -> None:
    """Positions are shared: a second entry costs its features and, where learned, its log-counts."""
    for distiller, each in ((PooledTokens(factor=2), 16 * 16 * 4), (spatial(2), 16 * (16 + 1) * 4)):
        entries = [MemoryEntry(i, distiller(maps(1, seed=i))[0], noise(4)) for i in range(2)]
        one, two = (tensor_bytes(t for e in es for t in tensors_in(e)) for es in (entries[:1], entries))
        assert two - one == each + 4 * 4


def test_what_the_measuring_tool_counts() -> None:
    setups = [("none", "fifo"), ("pool2", "fifo"), ("temporal", "distilled_small")]
    costs = measure_size("nano_v2", None, 64, setups, frames=4, fill=30, device="cpu")
    assert [c.frame_tokens for c in costs] == [16, 4, 4]
    assert [c.frame_bytes for c in costs] == [16 * 192, 4 * 192, 4 * (192 + 4)]
    assert [c.keys for c in costs] == [7 * 16 + 16, 7 * 4 + 16, 4 + 4 + 0.5 * 4 + 2.5 * 1 + 3 * 1 + 16]
    assert costs[0].held_bytes > costs[1].held_bytes > costs[2].held_bytes
    assert all(c.frame_ms > c.attention_ms > 0 for c in costs)
    assert table(costs, markdown=True).count("\n|") == 4


@pytest.mark.full
def test_the_measuring_tool_counts_the_operations_that_are_done() -> None:
    model = micro_model()
    read = batching.batch_reads([MemoryRead(tuple(as_items(GridTokens()(maps(2, (4, 4))))))], model).batches[0]
    frame = FrameFeatures(9, noise(16, WIDTH), sine_tokens(4, 4, WIDTH, CPU), (), (4, 4))
    exact = copy.copy(model.memory_attention.operator)
    try:
        model.memory_attention.operator = Exact()
        with counting() as counter, torch.no_grad():
            model.attend(frame, read)
        assert operations(model, read) == counter.get_total_flops()
    finally:
        model.memory_attention.operator = exact


# -- policies ---------------------------------------------------------------------------------------------------------

POLICIES = ("fifo", "rmem", "hq_smem", "xmem", "sam2long", "keyframe", "samurai", "dam4sam")
DISTILLERS = {
    "pool2": lambda: PooledTokens(factor=2),
    "spatial": lambda: disturbed(spatial(2), 0.1),
    "temporal": lambda: disturbed(temporal(1), 0.1),
}


def distilled_model(name: str) -> SAM2:
    model = copy.deepcopy(micro_model())
    model.memory_encoder.distiller = DISTILLERS[name]()
    return model


def keep_contract(policy: MemoryPolicy, check: Callable, distiller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of the contract with the network's memory distilled."""
    distilled, blind = distilled_model(distiller), distilled_model(distiller)
    blind.get_parameter(policy_contract.SCORE_BIAS).fill_(-1e4)
    monkeypatch.setattr(policy_contract, "micro_model", lambda: distilled)
    monkeypatch.setattr(policy_contract, "_blind_model", lambda: blind)

    def tracker(policy: MemoryPolicy, *, model: SAM2 | None = None, **settings: Any) -> Tracker:
        return micro_tracker(policy, model=model or distilled, **settings)

    monkeypatch.setattr(policy_contract, "micro_tracker", tracker)
    check(policy)


QUICK = [
    c
    for c in CHECKS
    if c.__name__ in ("check_prompt_midstream", "check_reverse", "check_needs", "check_state_is_plain")
]


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ["xmem"]))
@pytest.mark.parametrize("distiller", ["pool2", "spatial"])
@pytest.mark.parametrize("check", QUICK, ids=lambda c: c.__name__.removeprefix("check_"))
@pytest.mark.full
def test_policies_keep_the_contract(
    policy: str, distiller: str, check: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_contract(build_policy(policy), check, distiller, monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("policy", ["fifo", "xmem", "keyframe"])
def test_policies_hold_their_bound_in_tokens_of_the_distiller(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_contract(build_policy(policy), policy_contract.check_bounded, "pool2", monkeypatch)


def test_control_the_bound_of_a_whole_map_is_not_reached() -> None:
    assert distilled_model("pool2").tokens_per_map * 4 == TOKENS


def test_compact_keyframes_of_distilled_frames() -> None:
    whole = GridTokens()(maps(1))[0]
    pooled = PooledTokens(factor=2)(maps(1))[0]
    expected = pool_grid(whole, GRID, 4)
    compact = pool_tokens(pooled, GRID, 2)
    for name in ("feat", "pos", "xy", "log_count"):
        assert apart(getattr(compact, name), getattr(expected, name)) < 1e-5, name
        assert torch.equal(getattr(pool_tokens(whole, GRID, 4), name), getattr(expected, name))
    tracker = Tracker(distilled_model("pool2"), build_policy("keyframe"))
    policy_contract.go_on(tracker, range(60), {0: [mask_prompt(1)]})
    compacts = tracker.tracks[1].state.compact
    assert compacts and all(
        len(e.tokens) == 1 and e.tokens.log_count.exp().item() == pytest.approx(16) for e in compacts
    )


def test_image_features_between_cells() -> None:
    image = noise(64, 5)
    assert apart(features_at(image, GRID, grid_xy(*GRID, CPU)), image) == 0
    means = PooledTokens(factor=2)(image.t().reshape(1, 5, *GRID).repeat(1, 4, 1, 1)[:, :CHANNELS])[0]
    assert apart(features_at(image, GRID, means.xy), means.feat[:, :5]) < 1e-6
    assert apart(features_at(image, GRID, torch.tensor([[-3.0, 99.0]]))[0], image[56]) == 0


def test_joined_memories_of_different_makes() -> None:
    whole, pooled = GridTokens()(maps(1))[0], PooledTokens(factor=2)(maps(1))[0]
    joined = join_tokens([whole, pooled, MemoryTokens(whole.feat[:2], whole.pos[:2])])
    assert joined.log_count.tolist() == [0.0] * 64 + pooled.log_count.tolist() + [0.0] * 2
    assert joined.xy[-2:].tolist() == [[0.0, 0.0]] * 2 and len(joined) == 82
    assert join_tokens([whole, whole]).log_count is None


def test_a_temporal_distiller_says_when_no_policy_uses_it(caplog: pytest.LogCaptureFixture) -> None:
    said = {}
    for policy in ("fifo", "distilled"):
        caplog.clear()
        build_sam2_video_predictor(
            "hiera_nano", "random", "cpu", hydra_overrides_extra=["distiller=temporal"], memory_policy=policy
        )
        said[policy] = "never merges frames" in caplog.text
    assert said == {"fifo": True, "distilled": False}
