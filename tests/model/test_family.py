"""The networks beside SAM 2: their keys and shapes, and their parts against literal readings and published code."""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from make_golden_keys import GOLDEN
from micro import micro_model, micro_network, one_thread  # noqa: F401
from safetensors.torch import save_file
from torch import Tensor, nn

from sam2_mem.build_sam import build_sam2, build_sam2_video_predictor
from sam2_mem.checkpoint import CheckpointError
from sam2_mem.config import ConfigError, compose
from sam2_mem.model.attention_operators import Exact, Landmarks, Memory
from sam2_mem.model.distiller import PerceiverDistiller
from sam2_mem.model.rope import rotation_at
from sam2_mem.model.rotary_attention import RotaryAttention
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.trunks.repvit import NormedConv, RepViT, TokenMixer
from sam2_mem.types import RowBatch

EFFICIENTTAM = [f"efficienttam_{size}{kind}" for size in ("ti", "s") for kind in ("", "_1", "_2", "_512x512")]


# -- keys and shapes --------------------------------------------------------------------------------------------------


def published(name: str) -> dict[str, list[int]]:
    shapes = json.loads((GOLDEN / "family" / f"{name}.json").read_text(encoding="utf-8"))
    return {key.replace("spatial_perceiver.", "memory_encoder.distiller."): shape for key, shape in shapes.items()}


@pytest.mark.parametrize("config", ["edgetam", *EFFICIENTTAM])
def test_the_network_has_the_published_keys_and_shapes(config: str) -> None:
    model = build_sam2(config, "random", device="meta")
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    name = config if config == "edgetam" else "_".join(config.split("_")[:2])
    assert ours == published(name)
    assert model.image_size == (512 if config.endswith("512x512") else 1024)
    count = sum(value.numel() for value in model.parameters())
    assert count == {"edgetam": 13_895_794, "efficienttam_ti": 17_866_018, "efficienttam_s": 34_055_842}[name]


def test_medsam2_is_sam_2_1_at_512() -> None:
    model = build_sam2("medsam2_t512", "random", device="meta")
    expected = build_sam2("sam2.1_hiera_t", "random", device="meta")
    assert model.image_size == 512 and model.state_dict().keys() == expected.state_dict().keys()


# -- EdgeTAM ----------------------------------------------------------------------------------------------------------


def lively(module: nn.Module, seed: int = 0) -> Any:
    """Random statistics of batch norm, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(1 + torch.rand(value.shape, generator=generator))
        elif "bn" in name and value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator))
    return module.eval()


def literal(conv: NormedConv, x: Tensor) -> Tensor:
    return conv.bn(conv.c(x))


@torch.no_grad()
def test_batch_norm_is_folded_into_convolutions() -> None:
    x = torch.randn(2, 6, 9, 7, generator=torch.Generator().manual_seed(1))
    conv, mixer = lively(NormedConv(6, 8, 3, stride=2)), lively(TokenMixer(6))
    torch.testing.assert_close(conv(x), literal(conv, x), atol=1e-5, rtol=0)
    expected = literal(mixer.conv, x) + literal(mixer.conv1, x) + x
    torch.testing.assert_close(mixer(x), expected, atol=1e-5, rtol=0)
    mixer.conv1.bn.running_mean += 1
    assert not torch.allclose(mixer(x), expected, atol=1e-5), "changed statistics are noticed"
    torch.testing.assert_close(mixer(x), literal(mixer.conv, x) + literal(mixer.conv1, x) + x, atol=1e-5, rtol=0)


def test_training_leaves_the_statistics_and_reaches_the_weights() -> None:
    trunk = lively(RepViT(widths=(8, 16), depths=(1, 2))).train()
    before = {name: value.clone() for name, value in trunk.state_dict().items() if "running" in name}
    maps = trunk(torch.randn(1, 3, 32, 32))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 8, 8), (1, 16, 4, 4)]
    maps[-1].square().mean().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in trunk.parameters())
    assert all(torch.equal(trunk.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ValueError, match="multiples of 32"):
        trunk(torch.randn(1, 3, 40, 32))


@torch.no_grad()
def test_the_perceiver_takes_any_number_of_objects_and_multiples_of_its_grid() -> None:
    torch.manual_seed(0)
    perceiver = PerceiverDistiller(memory_width=16, global_latents=5, window_latents=4).eval()
    for side in (2, 4, 6):
        maps = torch.randn(3, 16, side, side)
        together = perceiver(maps)
        for number in range(3):
            (alone,) = perceiver(maps[number : number + 1])
            torch.testing.assert_close(together[number].feat, alone.feat)
        assert len(together[0]) == perceiver.tokens_per_map((side, side)) == 9
        middle = (side / 2 - 1) / 2
        assert together[0].xy[5:].tolist() == [
            [x, y] for y in (middle, middle + side / 2) for x in (middle, middle + side / 2)
        ]
    for grid in ((5, 5), (4, 6)):
        with pytest.raises(ValueError, match="multiple of 2"):
            perceiver(torch.randn(1, 16, *grid))


@torch.no_grad()
def test_windows_see_themselves_only_and_global_latents_everything() -> None:
    torch.manual_seed(0)
    perceiver = PerceiverDistiller(memory_width=16, global_latents=2, window_latents=4).eval()
    maps = torch.randn(1, 16, 4, 4)
    changed = maps.clone()
    changed[..., 3, 3] = torch.randn(16)
    differs = (perceiver(maps)[0].feat - perceiver(changed)[0].feat).abs().amax(1) > 1e-6
    assert differs.tolist() == [True, True, False, False, False, True]


def test_sizes_and_distillers_that_edgetam_cannot_have() -> None:
    with pytest.raises(
        ConfigError, match="multiple of 16, got 20 x 20; choose an image_size that is a multiple of 256"
    ):
        build_sam2("edgetam", "random", device="meta", hydra_overrides_extra=["model.image_size=320"])
    for distiller in ("temporal", "none"):
        with pytest.raises(ConfigError, match="perceiver\\) cannot be replaced"):
            build_sam2("edgetam", "random", device="meta", hydra_overrides_extra=[f"distiller={distiller}"])
    assert build_sam2("edgetam", "random", device="meta", hydra_overrides_extra=["model.image_size=512"]).grid == (
        32,
        32,
    )


def test_an_edgetam_file_may_not_lack_its_perceiver(tmp_path: Path) -> None:
    with micro_network("edgetam"):
        from micro import micro_config

        config, state = micro_config(), micro_model().state_dict()
        path = tmp_path / "w.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        build_sam2(config, path, device="cpu")
        part = {key: value.contiguous() for key, value in state.items() if ".distiller." not in key}
        save_file(part, path)
        with pytest.raises(CheckpointError, match="missing in the file(?s:.*)distiller, which needs weights"):
            build_sam2(config, path, device="cpu")
        build_sam2(config, path, device="cpu", mode="train")


@torch.no_grad()
def test_keys_turn_by_the_window_they_came_from() -> None:
    with micro_network("edgetam"):
        attention = micro_model().memory_attention
        rotation_of = attention._on_memory_grid(lambda xy: rotation_at(xy, 32), (4, 4))
        turned = rotation_of(torch.tensor([[0.5, 0.5], [2.5, 0.5], [0.5, 2.5], [torch.nan, torch.nan], [0.0, 0.0]]))
        expected = rotation_at(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), 32)
        torch.testing.assert_close(turned.cos, expected.cos)
        torch.testing.assert_close(turned.sin, expected.sin)


# -- EfficientTAM -----------------------------------------------------------------------------------------------------

SIDE = 4


def rows_of(maps: int, pointers: int, *, seed: int = 0) -> RowBatch:
    """One row of whole maps of 4 x 4 cells and pointer tokens."""
    generator = torch.Generator().manual_seed(seed)
    length = maps * SIDE**2 + pointers
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    cells = torch.stack([x, y], -1).reshape(-1, 2).float()
    item = torch.arange(maps).repeat_interleave(SIDE**2)
    return RowBatch(
        feat=torch.randn(1, length, 8, generator=generator),
        pos=torch.randn(1, length, 8, generator=generator),
        xy=torch.cat([cells.repeat(maps, 1), torch.zeros(pointers, 2)])[None],
        gain=None,
        bias=None,
        item=torch.cat([item, torch.full((pointers,), maps)])[None],
        num_items=maps,
        lengths=(length,),
    )


def read(operator: Any, rows: RowBatch) -> tuple[RotaryAttention, Tensor, Memory, Tensor]:
    torch.manual_seed(5)
    attention = RotaryAttention(width=16, key_width=8).eval()
    memory = operator.prepare(rows, lambda xy: rotation_at(xy, 16), (SIDE, SIDE))
    q = torch.randn(1, 1, 7, 16)
    return attention, q, memory, operator(attention, q, memory)


def in_blocks(x: Tensor, maps: int) -> Tensor:
    """(1, maps * 16 + P, n) -> the 2 x 2 means of every map, then what comes after the maps."""
    spatial, rest = x[:, : maps * SIDE**2], x[:, maps * SIDE**2 :]
    pooled = F.avg_pool2d(spatial.unflatten(1, (maps, SIDE, SIDE))[0].permute(0, 3, 1, 2), 2)
    return torch.cat([pooled.flatten(2).transpose(1, 2).flatten(0, 1)[None], rest], 1)


@torch.no_grad()
@pytest.mark.parametrize("count_in", ["logit", "key"])
def test_landmarks_are_means_of_projected_and_rotated_keys(count_in: str) -> None:
    rows = rows_of(3, 5)
    attention, q, memory, out = read(Landmarks(count_in=count_in), rows)
    keys = in_blocks(attention.keys(memory.key, memory.rotation)[0], 3)
    values = in_blocks(attention.v_proj(memory.value), 3)
    landmark = torch.arange(keys.shape[1]) < 12
    if count_in == "key":
        keys = keys + torch.where(landmark, math.log(4), 0.0)[:, None]
    logits = q[0] @ keys.transpose(1, 2) / 4
    if count_in == "logit":
        logits = logits + torch.where(landmark, math.log(4), 0.0)
    expected = attention.out_proj(logits.softmax(-1) @ values)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    other = read(Landmarks(count_in="key" if count_in == "logit" else "logit"), rows)[-1]
    assert not torch.allclose(other, expected, atol=1e-3), "control: the two kinds differ"


@torch.no_grad()
def test_landmarks_of_one_map_are_exact_and_others_are_not() -> None:
    rows = rows_of(1, 5)
    torch.testing.assert_close(read(Landmarks(), rows)[-1], read(Exact(), rows)[-1], atol=1e-5, rtol=0)
    rows = rows_of(2, 5)
    assert not torch.allclose(read(Landmarks(), rows)[-1], read(Exact(), rows)[-1], atol=1e-3)


def by_rule(model: SAM2) -> SAM2:
    """Weights from their official names alone, as those were that the golden outputs were made with."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            if value.ndim >= 2:
                value.copy_(noise / max(1, int(np.prod(value.shape[1:]))) ** 0.5)
            else:
                value.copy_(1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise)
        model.get_parameter("sam_mask_decoder.pred_obj_score_head.layers.2.bias").fill_(5.0)
    return model


@pytest.mark.full
@pytest.mark.parametrize("config", ["efficienttam_ti_512x512", "efficienttam_ti_1", "efficienttam_ti_2"])
def test_efficienttam_gives_what_its_published_code_gives(config: str) -> None:
    """Outputs of yformer/EfficientTAM, float32 on a CPU: memory attention over three maps of 32 x 32 and 8 pointer tokens,
    and the image encoder."""
    golden = np.load(GOLDEN / "family" / "efficienttam.npz")
    model = by_rule(build_sam2(config, "random", device="cpu"))
    g = torch.Generator().manual_seed(2)
    low, low_pos = torch.randn(1024, 1, 256, generator=g)[:, 0], 0.1 * torch.randn(1024, 1, 256, generator=g)[:, 0]
    memory, memory_pos = (torch.randn(3 * 1024 + 8, 1, 64, generator=g)[None, :, 0] for _ in range(2))
    images = torch.randn(1, 3, 512, 512, generator=g)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    cells = torch.stack([x, y], -1).reshape(-1, 2).float()
    item = torch.arange(4).repeat_interleave(torch.tensor([1024, 1024, 1024, 8]))[None]
    xy = torch.cat([cells.repeat(3, 1), torch.zeros(8, 2)])[None]
    rows = RowBatch(memory, memory_pos, xy, None, None, item, 3, (3080,))
    with torch.inference_mode():
        out = model.memory_attention(low, low_pos, (32, 32), rows).features[0, ::16, ::2]
        expected = torch.from_numpy(golden[f"{config}/memory_attention"])
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
        for other in ("efficienttam_ti_1", "efficienttam_ti_2", "efficienttam_ti_512x512"):
            alike = torch.allclose(out, torch.from_numpy(golden[f"{other}/memory_attention"]), atol=1e-2)
            assert alike == (other == config), "control: the kinds of attention differ"
        if config.endswith("512"):
            fpn = model.image_encoder(images)[-1][0, ::8, ::2, ::2]
            torch.testing.assert_close(fpn, torch.from_numpy(golden[f"{config}/fpn"]), atol=1e-4, rtol=0)


CAMEL = Path(os.environ.get("SAM2_MEM_DAVIS", "")) / "JPEGImages" / "480p" / "camel"


@pytest.mark.full
@pytest.mark.skipif(
    not os.environ.get("SAM2_MEM_DAVIS"),
    reason="NOT COMPARED ON VIDEO: SAM2_MEM_DAVIS names no folder of DAVIS 2016 or 2017",
)
def test_efficienttam_tracks_as_its_published_code_does() -> None:
    """Logits of six frames of DAVIS's camel, one click on the first; control: memory that is not rounded as published."""
    golden = np.load(GOLDEN / "family" / "efficienttam_video.npz")
    apart = {}
    for dtype in ("bfloat16", "float32"):
        overrides = ["++tracker.fill_hole_area=0", f"tracker.memory_dtype={dtype}"]
        predictor = build_sam2_video_predictor(
            "efficienttam_ti_512x512",
            "random",
            device="cpu",
            apply_postprocessing=True,
            hydra_overrides_extra=overrides,
        )
        by_rule(predictor.model)
        state = predictor.init_state([str(file) for file in sorted(CAMEL.glob("*.jpg"))[:6]])
        predictor.add_new_points_or_box(state, 0, 1, points=[[200, 200]], labels=[1])
        shown = {str(frame): masks[0, 0, ::16, ::16] for frame, _, masks in predictor.propagate_in_video(state)}
        apart[dtype] = max(float((shown[key] - torch.from_numpy(golden[key])).abs().max()) for key in golden)
    assert apart["bfloat16"] < 5e-5 < apart["float32"], apart


def test_a_file_of_another_config_of_equal_shapes_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with micro_network("efficienttam"):
        from micro import micro_config

        config, state = micro_config(), micro_model().state_dict()
        messages = {}
        for name in ("efficienttam_ti_1", "efficienttam_ti_2", "mine"):
            path = tmp_path / f"{name}.safetensors"
            save_file({key: value.contiguous() for key, value in state.items()}, path)
            caplog.clear()
            with caplog.at_level(logging.WARNING, logger="sam2_mem.build_sam"):
                build_sam2(config, path, device="cpu")
            messages[name] = caplog.text
        assert messages["efficienttam_ti_1"] == ""
        assert "use configs/efficienttam/efficienttam_ti_2.yaml" in messages["efficienttam_ti_2"]
        assert "expected efficienttam_ti_1.pt" in messages["mine"] and "nothing can tell" in messages["mine"]


def test_no_finer_maps_are_asked_for_where_there_are_none() -> None:
    config = compose("efficienttam_ti", ["model.high_res_features=true"])
    model = build_sam2(config, "random", device="meta")
    with pytest.raises(ValueError, match="high_res_features=false"):
        model.image_encoder(torch.zeros(1, 3, 32, 32, device="meta"), heads=model.sam_mask_decoder.high_res_heads())
