"""Exported networks: the same masks as PyTorch's under every policy, and an error for all that they cannot do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NANO_128, SCORE_HEAD, lively_state, save_state
from micro import (
    POLICIES,
    REPRESENTATIVE,
    blob,
    click_prompt,
    encode,
    in_tiers,
    mask_prompt,
    micro_model,
    micro_tracker,
    new_model,
    one_thread,  # noqa: F401
    pictures,
    run,
)
from PIL import Image
from torch import Tensor

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.cli import command
from sam2_mem.config import compose_video
from sam2_mem.model.attention_operators import Landmarks
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.sensory import SensoryMemory
from sam2_mem.onnx import Manifest, OnnxPredictor, export_network
from sam2_mem.onnx.parts import PARTS, check_exportable
from sam2_mem.onnx.runtime import PartRunner
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import read_mask_png

REFINER = ("refiner=hq", "refiner.tau_hq=-1", "refiner.hq_min_iou=0", "refiner.hq_feat=mem")
"""That accepts proposals of this network."""
FLOAT32 = "tracker.memory_dtype=float32"
CLOSE = 0.1  # of logits, after 40 frames
"""In half precision, memory turns the last digit of a number into a difference of 2^-8 of it, here as between two machines."""


# -- what parts hold, without onnxruntime ------------------------------------------------------------------------------


class PartsInPyTorch:
    """The parts themselves; ``change`` is added to an output of the one it names."""

    def __init__(self, model: SAM2, **change: float) -> None:
        self.parts = {kind.name: kind(model).eval() for kind in PARTS}
        self.change = change

    def __call__(self, name: str, *inputs: Tensor) -> Sequence[Tensor]:
        first, *others = self.parts[name](*inputs)
        return first + self.change.get(name, 0.0), *others


def in_parts(model: SAM2, **change: float) -> SAM2:
    """A network of its own that calls the parts."""
    copy = new_model()
    copy.runner = PartRunner(copy, PartsInPyTorch(model, **change))
    return copy


def tracked(policy: str, model: SAM2) -> list[Tensor]:
    """Masks of two objects over 24 frames, one of them late and clicked."""
    prompts = {0: [mask_prompt(1)], 3: [click_prompt(2, 3, 1)]}
    results = run(micro_tracker(policy, model=model, memory_dtype="float32"), encode(model, pictures(24)), prompts)
    return [result.masks for result in results]


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ("rmem", "sparse", "sam2long"), REPRESENTATIVE))
def test_parts_give_the_masks_of_the_network(policy: str) -> None:
    assert largest_difference(tracked(policy, micro_model()), tracked(policy, in_parts(micro_model()))) < 1e-3


@pytest.mark.parametrize("part", [kind.name for kind in PARTS])
def test_a_part_that_differs_is_noticed(part: str) -> None:
    changed = tracked("fifo", in_parts(micro_model(), **{part: 0.1}))
    assert largest_difference(tracked("fifo", micro_model()), changed) > 1e-3


def test_what_is_not_exported() -> None:
    landmarks, sensory = new_model(), new_model()
    landmarks.memory_attention.operator = Landmarks()
    with pytest.raises(ValueError, match="attention operator out of .* got Landmarks"):
        check_exportable(landmarks)
    sensory.sensory = SensoryMemory(width=32, memory_width=16, channels=8)
    with pytest.raises(ValueError, match="without sensory memory"):
        check_exportable(sensory)
    with pytest.raises(ValueError, match="for inference, got one in training mode"):
        check_exportable(new_model().train())
    with pytest.raises(ValueError, match=r"in float32 .* got torch.bfloat16"):
        check_exportable(new_model().to(torch.bfloat16))
    check_exportable(micro_model())


def test_autocast_is_refused() -> None:
    model = in_parts(micro_model())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="outside of autocast"):
        encode(model, pictures(1))


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without manifest.json"):
        OnnxPredictor.load(tmp_path)


# -- by onnxruntime ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, exported by the command."""
    folder = tmp_path_factory.mktemp("exported") / "nano"
    assert command.main(["export", "--config", NANO_128, "--out", str(folder), FLOAT32]) == 0
    return folder


def clip_masks(predictor: SAM2VideoPredictor, frames: int = 40) -> list[Tensor]:
    """Logits of two objects, by a mask and by a click."""
    state = predictor.init_state(np.stack(pictures(frames, 96, 128)))
    predictor.add_new_mask(state, 0, 1, blob(0, 0, 96, 128))
    predictor.add_new_points_or_box(state, 0, 2, points=[[96.0, 48.0]], labels=[1])
    return [logits.clone() for _, _, logits in predictor.propagate_in_video(state)]


@pytest.mark.full
@pytest.mark.parametrize("policy", ["fifo", "xmem", "sam2long", "rmem"])
def test_masks_of_a_clip_are_those_of_pytorch(nano: Path, policy: str) -> None:
    ours, theirs = clip_masks(in_pytorch(policy)), clip_masks(OnnxPredictor.load(nano, memory_policy=policy))
    assert len(ours) == 40
    assert any(bool((logits > 0).any()) for logits in ours[20:])
    assert all(torch.equal(a > 0, b > 0) for a, b in zip(ours[:16], theirs[:16], strict=True))
    for a, b in zip(ours, theirs, strict=True):  # memory carries differences in rounding on, and adds to them
        assert ((a > 0) == (b > 0))[a.abs() > CLOSE].all()
    assert largest_difference(ours, theirs) < CLOSE


@pytest.mark.full
def test_another_memory_encoder_is_noticed(nano: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(nano, folder)
    predictor = OnnxPredictor.load(folder)
    predictor.model.maskmem_tpos_enc.data += 0.1  # of the rest, which PyTorch runs
    assert largest_difference(clip_masks(predictor, 12), clip_masks(OnnxPredictor.load(folder), 12)) > CLOSE
    (folder / "memory_encoder.onnx").write_bytes((folder / "mask_decoder.onnx").read_bytes())
    with pytest.raises(ValueError, match=r"memory_encoder.onnx' with the SHA-256 .*damaged or of another export"):
        OnnxPredictor.load(folder)
    (folder / "memory_encoder.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"memory_encoder.onnx"):
        OnnxPredictor.load(folder)


@pytest.mark.full
def test_what_an_exported_network_cannot_do(nano: Path) -> None:
    for override in ("model.image_size=256", "distiller=pool2", "attention=topk"):
        with pytest.raises(ValueError, match="as the network was exported"):
            OnnxPredictor.load(nano, overrides=[override])
    with pytest.raises(ValueError, match=r"clip_length=1 with an exported network"):
        OnnxPredictor.load(nano, overrides=["tracker.clip_length=4"])
    with pytest.raises(ValueError, match=r"providers out of .*CPUExecutionProvider.* got NoneSuch"):
        OnnxPredictor.load(nano, providers=["NoneSuch"])
    predictor = OnnxPredictor.load(nano, overrides=["memory_policy=samurai", "tracker.history=8"])
    assert type(predictor.policy).__name__ == "Samurai" and predictor.tracker_settings.history == 8
    for target in ("cuda", torch.float16):
        with pytest.raises(ValueError, match="stay on the CPU in float32"):
            predictor.to(target)
    assert predictor.to("cpu") is predictor
    assert type(predictor.with_policy("fifo")) is OnnxPredictor
    with pytest.raises(
        ValueError, match=r"expected image of image_encoder to be \[1, 3, 128, 128\], got \[1, 3, 64, 64\]"
    ):
        predictor.model.runner("encode_image", None, torch.zeros(1, 3, 64, 64))


@pytest.mark.full
def test_the_command_segments_with_it(nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clip").mkdir()
    for index, image in enumerate(pictures(4, 96, 128)):
        Image.fromarray(image).save(tmp_path / "clip" / f"{index:05d}.png")
    Image.fromarray(blob(0, 0, 96, 128).astype(np.uint8)).save(tmp_path / "mask.png")
    prompt = ["--mask", str(tmp_path / "mask.png")]
    video = ["segment", "--video", str(tmp_path / "clip"), *prompt, "--device", "cpu", FLOAT32]
    for name, network in (("a", ["--onnx", str(nano)]), ("b", ["--sam2_cfg", NANO_128])):
        assert command.main([*video, *network, "--output", str(tmp_path / name)]) == 0
    masks = [[read_mask_png(tmp_path / name / "clip" / f"{i:05d}.png").ids for i in range(4)] for name in "ab"]
    assert all(map(np.array_equal, *masks)) and masks[0][3].any()
    assert command.main([*video, "--onnx", str(nano), "--sam2_cfg", NANO_128, "--output", str(tmp_path / "c")]) == 2
    assert "expected --onnx alone" in capsys.readouterr().err


@pytest.mark.full
def test_the_manifest_says_what_is_there(nano: Path) -> None:
    manifest = Manifest.read(nano)
    assert list(manifest.parts) == ["image_encoder", "memory_attention", "mask_decoder", "memory_encoder"]
    assert manifest.parts["memory_attention"].inputs["feat"] == ["rows", "tokens", 96]
    assert all(0 < entry.largest_difference < 1e-5 for entry in manifest.parts.values())
    assert manifest.weights["path"].endswith("sam2_mem_nano_v2.safetensors")
    content = json.loads((nano / "manifest.json").read_text())
    (nano / "manifest.json").write_text(json.dumps({**content, "format": 0}))
    try:
        with pytest.raises(ValueError, match="of format 1, got 0; export again"):
            Manifest.read(nano)
    finally:
        (nano / "manifest.json").write_text(json.dumps(content))


def in_pytorch(policy: str, *overrides: str) -> SAM2VideoPredictor:
    return build_sam2_video_predictor(
        NANO_128, device="cpu", memory_policy=policy, hydra_overrides_extra=[FLOAT32, *overrides]
    )


@pytest.mark.full
def test_refined_masks_are_those_of_pytorch(nano: Path) -> None:
    refined = clip_masks(in_pytorch("fifo", *REFINER), 12)
    assert largest_difference(refined, clip_masks(in_pytorch("fifo"), 12)) > 0.1
    exported = clip_masks(OnnxPredictor.load(nano, overrides=REFINER), 12)
    assert largest_difference(refined, exported) < 2e-3


@pytest.mark.full
@pytest.mark.extended
@pytest.mark.parametrize(("config", "side"), [("sam2.1_hiera_t", 128), ("edgetam", 256)])
def test_other_networks_to_the_end_and_programs_of_torch(config: str, side: int, tmp_path: Path) -> None:
    """Lively random weights, a clip of 16 frames under three policies: logits differ by rounding, and so may single pixels whose
    logit is 0 to that."""
    composed = compose_video(config, [f"model.image_size={side}", FLOAT32], apply_postprocessing=False)
    state = lively_state(config)
    state[f"{SCORE_HEAD}bias"] += 100.0  # objects stay
    weights = save_state(state, tmp_path / "weights.pt")
    predictor = build_sam2_video_predictor(composed, weights, device="cpu", apply_postprocessing=False)
    manifest = export_network(predictor.model, composed, tmp_path, programs=True)
    assert max(entry.largest_difference for entry in manifest.parts.values()) < 1e-5
    exported = OnnxPredictor.load(tmp_path, apply_postprocessing=False)
    results = {}
    for policy in ("fifo", "xmem", "sam2long"):
        ours = results[policy] = clip_masks(predictor.with_policy(policy), 16)
        theirs = clip_masks(exported.with_policy(policy), 16)
        assert any(bool((logits > 0).any()) for logits in ours[8:])
        assert largest_difference(ours, theirs) < 1e-4
        assert sum(int(((a > 0) != (b > 0)).sum()) for a, b in zip(ours, theirs, strict=True)) <= 4
    assert largest_difference(results["fifo"], results["sam2long"]) > 1e-3, "another memory gives other masks"
    for kind in PARTS:
        part = kind(predictor.model).eval()
        inputs = part.examples()
        program = torch.export.load(tmp_path / manifest.programs[kind.name].file).module()
        with torch.no_grad():
            assert largest_difference(list(program(*inputs)), list(part(*inputs))) < 1e-5
