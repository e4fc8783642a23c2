"""Files of other publishers: their names become the official ones, and a file says which network it is of."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from make_golden_keys import CONFIGS, GOLDEN
from safetensors.torch import save_file
from test_checkpoint import Shaped, golden, small_module, weights
from transformers_oracle import needs_transformers, sam2_config

from sam2_mem import build_sam2
from sam2_mem.checkpoint import CheckpointError, load_checkpoint, read_state_dict
from sam2_mem.checkpoint_names import LETTERS, SIZES, network_of, official_names

Shapes = dict[str, list[int]]
TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


def listed(name: str) -> Shapes:
    return json.loads((GOLDEN / "family" / f"{name}.json").read_text(encoding="utf-8"))


def state_of(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors without storage."""
    return {key: torch.zeros(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(state: dict[str, torch.Tensor]) -> Shapes:
    return {key: list(value.shape) for key, value in state.items()}


def without_distiller_name(shapes: Shapes) -> Shapes:
    """EdgeTAM's list as the perceiver is named here."""
    return {key.replace("spatial_perceiver.", "memory_encoder.distiller."): shape for key, shape in shapes.items()}


# -- names ------------------------------------------------------------------------------------------------------------


def test_transformers_sam2() -> None:
    assert shapes_of(official_names(state_of(listed("hf_sam2_video_tiny")))) == golden(TINY)


def test_transformers_edgetam_and_edgetam() -> None:
    expected = without_distiller_name(listed("edgetam"))
    assert shapes_of(official_names(state_of(listed("edgetam")))) == expected
    assert shapes_of(official_names(state_of(listed("hf_edgetam_video")))) == expected


def tracker_without_trunk(shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not key.startswith("image_encoder.")}


def test_trackers_of_sam3_have_the_shapes_of_sam_2_1() -> None:
    expected = tracker_without_trunk(golden(TINY))
    official = {f"tracker.{key}": shape for key, shape in listed("sam3_tracker").items()} | {"detector.x": [3]}
    assert shapes_of(official_names(state_of(official))) == expected
    assert tracker_without_trunk(shapes_of(official_names(state_of(listed("hf_sam3_tracker_video"))))) == expected


def test_the_image_encoder_of_sam3_has_the_names_and_shapes_of_ours() -> None:
    """Both ways, from transformers' names and from those of the official file."""
    renamed = shapes_of(official_names(state_of(listed("hf_sam3_tracker_video"))))
    with torch.device("meta"):
        ours = build_sam2("sam3_tracker", "random", device="meta").state_dict()
    assert renamed == shapes_of(ours)
    assert shapes_of(official_names(state_of(official_sam3(renamed)))) == renamed


def official_sam3(shapes: Shapes) -> Shapes:
    """Names of the official file, which holds the detector as well."""
    official = {f"tracker.{key}": shape for key, shape in listed("sam3_tracker").items()} | {"detector.x": [3]}
    for key, shape in shapes.items():
        if key.startswith("image_encoder."):
            for ours, theirs in {
                "image_encoder.trunk.": "detector.backbone.vision_backbone.trunk.",
                "image_encoder.neck.convs.": "detector.backbone.vision_backbone.sam2_convs.",
                "mlp.layers.0.": "mlp.fc1.",
                "mlp.layers.1.": "mlp.fc2.",
                "convs.1.dconv_2x2_0.": "convs.1.dconv_2x2.",
            }.items():
                key = key.replace(ours, theirs)
            official[key.replace("sam2_convs.1.dconv_2x2_0.", "sam2_convs.1.dconv_2x2.")] = shape
    trunk = "detector.backbone.vision_backbone.trunk."
    official[f"{trunk}pos_embed"] = [1, 577, 1024]
    return official | {f"{trunk}blocks.0.attn.freqs_cis": [5184, 32], f"{trunk[:-6]}sam2_convs.3.conv_1x1.bias": [256]}


def test_sam3_of_transformers_is_cut_down_to_its_tracker() -> None:
    tracker = listed("hf_sam3_tracker_video")
    whole: Shapes = {"detector_model.text_encoder.x": [2], "detector_model.vision_encoder.neck.fpn_layers.0.x": [3]}
    for key, shape in tracker.items():
        prefix = "tracker_model."
        if key.startswith("vision_encoder.backbone."):
            prefix = "detector_model."
        elif key.startswith("vision_encoder.neck."):
            key, prefix = key.removeprefix("vision_encoder.neck."), "tracker_neck."
        whole[prefix + key] = shape
    assert official_names(state_of(whole)).keys() == official_names(state_of(tracker)).keys()


def test_values_go_with_their_names() -> None:
    shapes = listed("hf_edgetam_video")
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    renamed = official_names(state)
    layer = "spatial_perceiver.layers.1.cross_attention."
    joint = torch.cat([state[f"{layer}k_proj.weight"], state[f"{layer}v_proj.weight"]])
    assert torch.equal(renamed["memory_encoder.distiller.layers.1.attn.to_kv.weight"], joint)
    points = [renamed[f"sam_prompt_encoder.point_embeddings.{i}.weight"] for i in range(4)]
    assert torch.equal(torch.cat(points), state["prompt_encoder.point_embed.weight"])
    for ours, theirs in {
        "obj_ptr_proj.layers.0.weight": "object_pointer_proj.proj_in.weight",
        "obj_ptr_proj.layers.1.weight": "object_pointer_proj.layers.0.weight",
        "obj_ptr_proj.layers.2.weight": "object_pointer_proj.proj_out.weight",
        "memory_encoder.mask_downsampler.encoder.9.bias": "memory_encoder.mask_downsampler.layers.3.conv.bias",
        "memory_encoder.mask_downsampler.encoder.10.bias": "memory_encoder.mask_downsampler.layers.3.layer_norm.bias",
        "memory_encoder.fuser.layers.1.norm.bias": "memory_encoder.memory_fuser.layers.1.layer_norm.bias",
        "memory_attention.layers.1.norm3.bias": "memory_attention.layers.1.layer_norm3.bias",
    }.items():
        assert torch.equal(renamed[ours], state[theirs]), ours


def test_official_names_stay() -> None:
    for config in CONFIGS:
        assert shapes_of(official_names(state_of(golden(config)))) == golden(config)
    part = {"memory_encoder.distiller.latents": [2, 3]}
    assert shapes_of(official_names(state_of(part))) == part


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
def test_wrappers_are_left_out_and_logged(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    shapes = listed("hf_sam2_video_tiny")
    with caplog.at_level(logging.INFO, logger="sam2_mem.checkpoint_names"):
        renamed = official_names(state_of({prefix + key: shape for key, shape in shapes.items()}), "a.pt")
    assert shapes_of(renamed) == golden(TINY)
    assert f"a.pt: the prefix {prefix} of its entries is left out" in caplog.text


def test_compiled_parts_and_prefixes_of_some_entries() -> None:
    state = state_of({"model.a": [1], "image_encoder._orig_mod.trunk.x": [2]})
    assert list(official_names(state)) == ["model.a", "image_encoder.trunk.x"]


@needs_transformers
@pytest.mark.full
@pytest.mark.parametrize("config", CONFIGS)
def test_every_size_of_transformers(config: str) -> None:
    import transformers

    letter, is_2_1 = Path(config).stem.rsplit("_", 1)[1], "sam2.1" in config
    with torch.device("meta"):
        model = transformers.Sam2VideoModel(sam2_config(letter, is_2_1=is_2_1, size=1024))
    assert shapes_of(official_names(model.state_dict())) == golden(config)


def test_control_a_wrong_rule_is_noticed() -> None:
    shapes = listed("hf_sam2_video_tiny")
    shapes["object_pointer_projection.proj_in.weight"] = shapes.pop("object_pointer_proj.proj_in.weight")
    assert shapes_of(official_names(state_of(shapes))) != golden(TINY)


# -- which network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS)
def test_official_files_are_recognised(config: str) -> None:
    network = network_of(state_of(golden(config)))
    assert network is not None and network.advice == f"use {config}"
    assert network.family == ("SAM 2.1" if "sam2.1" in config else "SAM 2.0")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("edgetam", "EdgeTAM"),
        ("hf_edgetam_video", "EdgeTAM"),
        ("efficienttam_ti", "EfficientTAM"),
        ("efficienttam_s", "EfficientTAM"),
        ("hf_sam3_tracker_video", "SAM 3"),
        ("sam3_tracker", "a tracker without its image encoder"),
    ],
)
def test_the_family_is_recognised(name: str, family: str) -> None:
    network = network_of(official_names(state_of(listed(name))))
    assert network is not None and network.family == family


def test_sam_3_1_and_the_first_sam_are_told_apart() -> None:
    multiplexed = golden(TINY) | {"memory_attention.layers.0.cross_attn_image.k_proj.weight": [256, 256]}
    del multiplexed["image_encoder.trunk.pos_embed_window"]
    network = network_of(state_of(multiplexed))
    assert network is not None and network.family == "SAM 3.1" and "not supported" in network.advice
    network = network_of(state_of({"image_encoder.patch_embed.proj.weight": [768, 3, 16, 16]}))
    assert network is not None and network.family == "the first SAM"
    assert network_of(state_of({"a": [1]})) is None


def test_every_size_has_a_letter() -> None:
    assert set(SIZES.values()) == LETTERS.keys()


# -- messages ---------------------------------------------------------------------------------------------------------


def message(tmp_path: Path, model: Shapes, file: Shapes) -> str:
    path = tmp_path / "w.safetensors"
    save_file({key: torch.zeros(shape, dtype=torch.uint8) for key, shape in file.items()}, path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Shaped(model), path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["edgetam", "hf_edgetam_video", "efficienttam_ti"])
def test_another_family_is_a_message_of_one_line(tmp_path: Path, name: str) -> None:
    family = "EfficientTAM" if name.startswith("eff") else "EdgeTAM"
    text = message(tmp_path, golden(TINY), listed(name))
    assert f"w.safetensors' holds {family}, the model is SAM 2.1; nothing was loaded. To use the file, " in text
    assert text.count("\n") == 0 and len(text) < 400
    text = message(tmp_path, official_shapes(listed(name)), golden(TINY))
    assert f"holds SAM 2.1, the model is {family};" in text and f"use {TINY}" in text
    text = message(tmp_path, {"a.weight": [3]}, listed(name))
    assert f"holds {family}; nothing was loaded" in text


def official_shapes(shapes: Shapes) -> Shapes:
    return shapes_of(official_names(state_of(shapes)))


def test_a_file_of_something_else_lists_a_few_entries(tmp_path: Path) -> None:
    text = message(tmp_path, golden(TINY), {f"layer{i}.weight": [2] for i in range(100)})
    lines = text.splitlines()
    assert len(lines) < 32 and lines.count("  and 88 more") == 1 and f"  and {len(golden(TINY)) - 12} more" in lines
    assert "SAM 2.0" not in text and "Hint" not in text


def test_another_size_lists_all(tmp_path: Path) -> None:
    text = message(tmp_path, golden("configs/sam2.1/sam2.1_hiera_l.yaml"), golden(TINY))
    assert len(text.splitlines()) > 300 and "more" not in text
    assert "looks like a 'tiny' model, the configuration like 'large'" in text


def test_an_image_model_is_named(tmp_path: Path) -> None:
    parts = ("vision_encoder.", "prompt_encoder.", "mask_decoder.", "shared_image_embedding.", "no_memory_embedding")
    image = {key: shape for key, shape in listed("hf_sam2_video_tiny").items() if key.startswith(parts)}
    assert "Hint: the file has no memory part" in message(tmp_path, golden(TINY), image)


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    expected = weights(small_module())
    save_file(expected, tmp_path / "w.pt")
    torch.save({"model": expected}, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert read_state_dict(tmp_path / name).keys() == expected.keys()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<html>404</html>", "a web page"),
        (b"\x7fELF" * 20, r"damaged, incomplete or foreign file \(80 bytes.*download_ckpts\.sh"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_other_files_are_named_and_not_to_be_deleted(
    tmp_path: Path, content: bytes, expected: str, suffix: str
) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as caught:
        read_state_dict(path)
    assert "delete" not in str(caught.value)
