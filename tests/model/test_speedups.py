"""Speed-ups change no result: each, undone by itself, gives the same masks; and each is really undone by its switch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from micro import SCORE_BIAS, mask_prompt, micro_config, new_model, one_thread, pictures  # noqa: F401
from switches import SWITCHES, all_undone, rotary_by_parts
from torch import Tensor, nn

from sam2_mem.build_sam import build_policy, build_sam2
from sam2_mem.model import cached_positions, fpn, rotary_attention
from sam2_mem.model.acceleration import onednn_linear
from sam2_mem.model.acceleration.onednn_linear import Linear
from sam2_mem.model.attention_operators import LowDim
from sam2_mem.model.cached_positions import cached
from sam2_mem.model.memory_attention import MemoryAttentionLayer
from sam2_mem.model.rope import grid_coordinates, rotate, rotation_at
from sam2_mem.model.rotary_attention import RotaryAttention, attend_in_tiles
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.trunks import hiera
from sam2_mem.model.trunks.hiera import BlockPlan, Hiera, HieraBlock, PooledAttention
from sam2_mem.prompts import Prompt
from sam2_mem.tracking import batching
from sam2_mem.tracking.tracker import TrackerSettings
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

SIDE = 96
"""Of the network's input: at this size windows stick out of the maps."""


@pytest.fixture(scope="module")
def model() -> SAM2:
    """The micro network for larger pictures, objects always being present."""
    small = new_model()
    small.get_parameter(SCORE_BIAS).data += 100
    made = build_sam2(micro_config(), None, device="cpu", hydra_overrides_extra=[f"model.image_size={SIDE}"])
    made.load_state_dict(small.state_dict())
    return made.requires_grad_(False)


def shown(model: SAM2, policy: str = "fifo", count: int = 8) -> Tensor:
    """Masks of three objects, one of which comes later. Memory is not rounded, which would make steps of rounding
    errors."""
    predictor = SAM2VideoPredictor(model, build_policy(policy), tracker=TrackerSettings(memory_dtype="float32"))
    state = predictor.init_state(num_frames=count)
    prompts: dict[int, list[Prompt]] = {0: [mask_prompt(1), mask_prompt(2, 0, 1)], 3: [mask_prompt(3, 3, 2)]}
    return torch.cat([predictor.track_frame(state, p, prompts.get(i, ()))[2] for i, p in enumerate(pictures(count))])


@pytest.fixture(scope="module")
def fast(model: SAM2) -> Tensor:
    return shown(model)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time, and every linear map by oneDNN."""
    monkeypatch.setattr(onednn_linear, "MIN_WORK", 1)
    monkeypatch.setattr(batching, "CPU_BATCH", 2 * (SIDE // 16) ** 2)
    monkeypatch.setattr("sam2_mem.model.attention_operators.Auto._choose", lambda self, *sizes: LowDim())


def test_small_batches_and_onednn_change_nothing(model: SAM2, fast: Tensor, small_batches: None) -> None:
    assert (shown(model) - fast).abs().max() <= 1e-4
    assert fast.std() > 0.1 and (fast > -1000).all()


@pytest.mark.parametrize("switch", [*SWITCHES.values(), all_undone], ids=[*SWITCHES, "all"])
def test_the_same_masks_without_it(
    model: SAM2, fast: Tensor, small_batches: None, switch: Callable[[], AbstractContextManager]
) -> None:
    with switch():
        assert (shown(model) - fast).abs().max() <= 1e-4


def test_control_another_network_differs(model: SAM2, fast: Tensor) -> None:
    part = model.memory_attention.layers[0].linear1.weight
    part.data *= 1.05
    other = shown(model)
    part.data /= 1.05
    assert (other - fast).abs().max() > 1e-3


@pytest.mark.parametrize("policy", ["sam2long", "xmem", "rmem"])
def test_with_other_policies(model: SAM2, small_batches: None, policy: str) -> None:
    fast = shown(model, policy, 6)
    with all_undone():
        assert (shown(model, policy, 6) - fast).abs().max() <= 1e-4


# -- what each switch does --------------------------------------------------------------------------------------------


def calls(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> list[tuple]:
    """Arguments of every call of a method, from now on."""
    seen, original = [], getattr(owner, name)

    def noted(self, *args, **kwargs):
        seen.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, noted)
    return seen


def test_rows_share_the_first_self_attention(model: SAM2, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch, MemoryAttentionLayer, "self_attention")
    shown(model, count=3)
    assert [args[0].shape[0] for args in seen] == [1, 2, 1, 2]
    seen.clear()
    with SWITCHES["a_first_layer_for_each_row"]():
        shown(model, count=3)
    assert [args[0].shape[0] for args in seen] == [2, 2, 2, 2]


def test_each_row_has_its_own_first_layer_in_training(model: SAM2, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch, MemoryAttentionLayer, "self_attention")
    model.memory_attention.train()
    shown(model, count=2)
    model.memory_attention.eval()
    assert [args[0].shape[0] for args in seen] == [2, 2]


def test_batches_of_a_size_fit_for_a_cpu(model: SAM2, small_batches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, encoded = calls(monkeypatch, SAM2, "attend"), calls(monkeypatch, SAM2, "memory_maps")
    shown(model, count=5)
    assert [args[1].rows for args in seen] == [2, 2, 2, 2, 1], "two objects, then three of two lengths"
    assert [len(args[1]) for args in encoded] == [2, 2, 2, 1, 2, 2, 1]
    seen.clear()
    encoded.clear()
    with SWITCHES["all_rows_together"]():
        shown(model, count=5)
    assert [len(args[1]) for args in encoded] == [2, 2, 2, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "image_size", "rows"), [(None, 1024, 2), (None, 2048, 1), (None, 512, 8), (0, 512, 0), (5, 512, 5)]
)
def test_rows_in_a_batch(given: int | None, image_size: int, rows: int) -> None:
    config = [f"model.image_size={image_size}"]
    network = build_sam2(micro_config(), None, device="meta", hydra_overrides_extra=config)
    assert batching.row_limit(network, given) == (given or 0), "no limit where it is not a CPU"
    cpu = torch.device("cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAM2, "device", cpu)
        assert batching.row_limit(network, given) == rows


def test_windows_are_projected_before_they_are_filled_up(model: SAM2, monkeypatch: pytest.MonkeyPatch) -> None:
    projected = calls(monkeypatch, Linear, "forward")
    attention = PooledAttention(dim=8, dim_out=8, num_heads=1, pool=None)
    x = torch.randn(1, 6, 7, 8, generator=torch.Generator().manual_seed(0))
    attention.qkv.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fast = attention(x, 4)
        assert [args[0].numel() for args in projected] == [6 * 7 * 8] * 2
        projected.clear()
        with SWITCHES["windows_filled_up_first"]():
            slow = attention(x, 4)
        assert [args[0].numel() for args in projected] == [8 * 8 * 8] * 2
        assert (fast - slow).abs().max() <= 1e-6
        attention.qkv.bias.data += 1.0
        assert (attention(x, 4) - fast).abs().max() > 1e-2, "the filling takes part"
        assert (attention(x, 0) - attention(x, 4)).abs().max() > 1e-3


@pytest.mark.parametrize("pool", [None, (2, 2)])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (2, 2), (12, 4)])
def test_windows_of_any_size(size: tuple[int, int], pool: tuple[int, int] | None) -> None:
    attention = PooledAttention(dim=8, dim_out=16, num_heads=2, pool=pool)
    x = torch.randn(2, *size, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fast = attention(x, 4)
        with SWITCHES["windows_filled_up_first"]():
            assert (fast - attention(x, 4)).abs().max() <= 1e-6
    stride = 1 if pool is None else 2
    assert fast.shape == (2, size[0] // stride, size[1] // stride, 16)


@pytest.mark.parametrize("pool", [None, (2, 2)])
@pytest.mark.parametrize(("window", "strip", "rows"), [(4, 1, 4), (4, 2 * 8 * 14, 8), (0, 2 * 3 * 14, 3), (0, 1, 1)])
def test_blocks_take_maps_in_strips(
    window: int, strip: int, rows: int, pool: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    block = HieraBlock(BlockPlan(8, 16, 2, window, pool), mlp_ratio=4.0, drop_path=0.0)
    x = torch.randn(2, 10, 14, 8)
    heights = calls(monkeypatch, HieraBlock, "_feed_forward")
    with torch.no_grad():
        monkeypatch.setattr(hiera, "STRIP_CELLS", strip)
        fast = block(x)
        shrink = 1 if pool is None else 2
        parts = torch.arange(10 // shrink).split(rows // shrink if window else rows)
        assert [args[0].shape[1] for args in heights] == [len(p) for p in parts]
        heights.clear()
        with SWITCHES["whole_maps_through_blocks"]():
            whole = block(x)
        assert [args[0].shape[1] for args in heights] == [10 // shrink]
    assert fast.shape == whole.shape == (2, 10 // shrink, 14 // shrink, 16)
    assert (fast - whole).abs().max() <= 1e-5 and whole.std() > 0.1
    with torch.no_grad():
        assert (block(x.flip(1)) - fast).abs().max() > 0.1
    heights.clear()
    block(x).sum().backward()
    assert len(heights) == 1, "with gradient all at once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_complex_product_turns_as_cosines_and_sines_do(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 20, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    xy = grid_coordinates(4, 5)
    turned = rotate(x, rotation_at(xy, 8))
    with rotary_by_parts():
        assert rotation_at(xy, 8).polar is None
        apart = rotate(x, rotation_at(xy, 8))
    assert turned.dtype is dtype and (turned - apart).abs().max() <= (1e-6 if dtype is torch.float32 else 0.05)
    assert (turned - x).abs().max() > 0.5


def test_scores_are_made_to_the_base_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, value = torch.randn(5, 8), 4 * torch.randn(3000, 8), torch.randn(3000, 3)
    bias = torch.randn(3000).masked_fill(torch.arange(3000) % 7 == 0, float("-inf"))
    exact = F.scaled_dot_product_attention(*(x[None].double() for x in (q, k, value)), attn_mask=bias[None].double())[0]
    assert (attend_in_tiles(q, k, value, bias) - exact).abs().max() <= 1e-5
    with SWITCHES["scores_to_the_base_of_e"]():
        assert (attend_in_tiles(q, k, value, bias) - exact).abs().max() <= 1e-5
    monkeypatch.setattr(rotary_attention, "LOG2_E", 1.0)
    assert (attend_in_tiles(q, k, value, bias) - exact).abs().max() > 1e-2, "the base matters"


def test_values_are_attended_to_as_they_are_stored(
    model: SAM2, small_batches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = calls(monkeypatch, RotaryAttention, "project_read")
    shown(model, count=3)
    assert len(seen) == 4 and all(args[0].shape[-1] == model.memory_width for args in seen)
    seen.clear()
    with SWITCHES["values_at_full_width"]():
        shown(model, count=3)
    assert not seen


def test_fine_maps_are_made_at_the_width_of_the_decoder(model: SAM2, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch, nn.Conv2d, "forward")
    heads = model.sam_mask_decoder.high_res_heads()
    neck = model.image_encoder.neck
    with torch.no_grad():
        maps = model.image_encoder.trunk(torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
        plain = neck(maps)
        seen.clear()
        fast = neck(maps, heads)
        assert len(seen) == 2, "the two coarse levels alone"
        with SWITCHES["fine_maps_at_full_width"]():
            slow = neck(maps, heads)
    assert len(seen) == 2 + 6
    for level in (0, 1):
        assert fast[level].shape == slow[level].shape == (1, heads[level].out_channels, *maps[level].shape[2:])
        assert (fast[level] - heads[level](plain[level])).abs().max() <= 1e-5 * slow[level].abs().max()
        assert torch.equal(slow[level], heads[level](plain[level]))
    assert all(torch.equal(fast[level], plain[level]) for level in (2, 3))


def test_folded_convolutions_follow_their_weights_and_carry_gradients(model: SAM2) -> None:
    neck, head = model.image_encoder.neck, nn.Conv2d(model.width, 8, 1)
    stage = torch.randn(1, neck.convs[-1].conv.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    lateral = neck.convs[-1].conv
    weights = (lateral.weight, head.weight, head.bias)
    for weight in weights:
        with torch.no_grad():
            before = fpn.fused_convolution(lateral, head, stage)
            weight.mul_(1.5)
            after = fpn.fused_convolution(lateral, head, stage)
            assert (after - head(lateral(stage))).abs().max() < 1e-5 < (after - before).abs().max()
            weight.div_(1.5)
    lateral.requires_grad_(True)
    found = torch.autograd.grad(fpn.fused_convolution(lateral, head, stage).square().sum(), weights)
    wanted = torch.autograd.grad(head(lateral(stage)).square().sum(), weights)
    lateral.requires_grad_(False)
    for one, other in zip(found, wanted):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4) and other.abs().max() > 0


@pytest.mark.parametrize("level", [2, 3, 9])
def test_heads_of_levels_that_others_need_are_refused(model: SAM2, level: int) -> None:
    maps = [torch.zeros(1, c, 2, 2) for c in reversed(model.image_encoder.neck.backbone_channel_list)]
    with pytest.raises(ValueError, match="expected heads of levels that take no part"):
        model.image_encoder.neck(maps, {level: nn.Conv2d(model.width, 8, 1)})


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.fixture
def trunk() -> Hiera:
    return Hiera(embed_dim=8, stages=(1, 1, 1, 1), global_att_blocks=(2,), window_spec=(8, 4, 4, 2)).requires_grad_(
        False
    )


def test_the_position_map_is_made_once(trunk: Hiera, monkeypatch: pytest.MonkeyPatch) -> None:
    made = calls(monkeypatch, Hiera, "position_map")
    images = torch.zeros(1, 3, 64, 64)
    for _ in range(3):
        trunk(images)
    assert made == [(16, 16)]
    trunk(torch.zeros(1, 3, 128, 64))
    trunk(torch.zeros(1, 3, 128, 64))
    assert made == [(16, 16), (32, 16)]


@pytest.mark.parametrize("change", ["in place", "through data", "loaded", "cast", "other"])
def test_changed_weights_are_noticed(trunk: Hiera, change: str) -> None:
    before = trunk._cached_position(16, 16)
    assert trunk._cached_position(16, 16) is before
    if change == "in place":
        trunk.pos_embed.add_(1.0)
    elif change == "through data":
        trunk.pos_embed_window.data[0, 0, 0, 0] += 1.0
    elif change == "loaded":
        trunk.load_state_dict({name: value + 1 for name, value in trunk.state_dict().items()})
    elif change == "cast":
        trunk.double()
    else:
        trunk.pos_embed = nn.Parameter(trunk.pos_embed + 1, requires_grad=False)
    after = trunk._cached_position(16, 16)
    assert after is not before and torch.equal(after, trunk.position_map(16, 16))


def test_gradient_flows_through_the_position_map(trunk: Hiera) -> None:
    trunk._cached_position(16, 16)
    trunk.requires_grad_(True)
    trunk(torch.zeros(1, 3, 64, 64))[-1].sum().backward()
    assert trunk.pos_embed.grad.abs().max() > 0 and trunk.pos_embed_window.grad.abs().max() > 0
    with torch.no_grad():
        assert trunk._cached_position(16, 16).requires_grad is False


def test_what_is_kept_can_be_used_with_gradient(trunk: Hiera) -> None:
    with torch.inference_mode():
        trunk(torch.zeros(1, 3, 64, 64))
    images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    (trunk(images)[0] * 2).square().sum().backward()
    assert images.grad is not None


def test_what_is_kept_goes_with_its_weights() -> None:
    weight = nn.Parameter(torch.zeros(3), requires_grad=False)
    made = weakref.ref(cached([weight], (1,), lambda: weight + torch.ones(3)))  # noqa: F821 - deleted further down
    assert made() is not None and weight in cached_positions._CACHE
    first = cached([weight], (1,), lambda: torch.zeros(3))
    assert torch.equal(first, torch.ones(3))
    cached([weight], (2,), lambda: torch.zeros(3))
    del first
    gc.collect()
    assert made() is None, "another size takes its place"
    before = len(cached_positions._CACHE)
    del weight
    gc.collect()
    assert len(cached_positions._CACHE) == before - 1
