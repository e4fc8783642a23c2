"""RepViT-M1, EdgeTAM's image trunk: depth-wise convolutions mix cells, 1 x 1 convolutions mix channels (Wang et al. 2023,
arXiv:2307.09283).

Every convolution of the published weights has a batch norm, and a token mixer has two convolutions beside each other. Here
they run as one convolution, whose weights are made from theirs. The statistics of batch norm stay as they are, in training
too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.cached_positions import cached

SIZE_STEP = 32
"""Heights and widths of images are multiples of this: the stride of the coarsest map."""


class NormedConv(nn.Module):
    """A convolution without bias and a batch norm, run as one convolution."""

    def __init__(self, width_in: int, width_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(width_in, width_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width_out)

    def weights(self) -> tuple[Tensor, ...]:
        """What the joint convolution is made of."""
        mean, variance = cast("Tensor", self.bn.running_mean), cast("Tensor", self.bn.running_var)
        return (self.c.weight, self.bn.weight, self.bn.bias, mean, variance)

    def fold(self) -> tuple[Tensor, Tensor]:
        """Weight (out, in / groups, k, k) and bias (out) of the joint convolution."""
        weight, gain, shift, mean, variance = self.weights()
        gain = gain / (variance + self.bn.eps).sqrt()
        return weight * gain[:, None, None, None], shift - mean * gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return _convolve(x, self.c, self.weights(), self.fold)


class TokenMixer(nn.Module):
    """The sum of a 3 x 3 and a 1 x 1 depth-wise convolution and the input, run as one convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = NormedConv(width, width, 3, groups=width)
        self.conv1 = NormedConv(width, width, 1, groups=width)

    def fold(self) -> tuple[Tensor, Tensor]:
        """As in ``NormedConv``."""
        (weight, bias), (point, point_bias) = self.conv.fold(), self.conv1.fold()
        return weight + F.pad(point + 1, (1, 1, 1, 1)), bias + point_bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return _convolve(x, self.conv.c, (*self.conv.weights(), *self.conv1.weights()), self.fold)


def _convolve(
    x: Tensor, conv: nn.Conv2d, weights: Sequence[Tensor], fold: Callable[[], tuple[Tensor, Tensor]]
) -> Tensor:
    """``conv`` with the weights and the bias that ``fold`` makes, which are kept for as long as ``weights`` stay."""
    joint = cached(weights, (), lambda: _joined(*fold()))
    weight = joint[:, :-1].view_as(conv.weight).to(x.dtype)
    return F.conv2d(x, weight, joint[:, -1].to(x.dtype), conv.stride, conv.padding, 1, conv.groups)


def _joined(weight: Tensor, bias: Tensor) -> Tensor:
    """Weights and, in the last column, the bias of every output channel."""
    return torch.cat([weight.flatten(1), bias[:, None]], dim=1)


class SqueezeExcite(nn.Module):
    """Scales channels by what their means over the picture say (Hu et al. 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(8, int(width / 4 + 4) // 8 * 8)
        self.fc1 = nn.Conv2d(width, narrow, kernel_size=1)
        self.fc2 = nn.Conv2d(narrow, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ChannelMixer(nn.Module):
    """Two 1 x 1 convolutions, twice as wide between them, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(width, 2 * width)
        self.conv2 = NormedConv(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.conv2(F.gelu(self.conv1(x)))


class RepViTBlock(nn.Module):
    """Mixes cells, then channels."""

    def __init__(self, width: int, *, excite: bool) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(width)
        self.se = SqueezeExcite(width) if excite else nn.Identity()
        self.channel_mixer = ChannelMixer(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.channel_mixer(self.se(self.token_mixer(x)))


class Downsample(nn.Module):
    """From one stage to the next: a block, half the resolution, another width, and a network over channels."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.pre_block = RepViTBlock(width_in, excite=False)
        self.spatial_downsample = NormedConv(width_in, width_in, 3, stride=2, groups=width_in)
        self.channel_downsample = NormedConv(width_in, width_out)
        self.ffn = ChannelMixer(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/2, W/2)."""
        return self.ffn(self.channel_downsample(self.spatial_downsample(self.pre_block(x))))


class Stem(nn.Module):
    """Two convolutions of stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = NormedConv(3, width // 2, 3, stride=2)
        self.conv2 = NormedConv(width // 2, width, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H/4, W/4)."""
        return self.conv2(F.gelu(self.conv1(images)))


class RepViTStage(nn.Module):
    """Blocks of one width; those of even number scale their channels."""

    def __init__(self, width_in: int, width: int, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Identity() if width_in == width else Downsample(width_in, width)
        self.blocks = nn.Sequential(*(RepViTBlock(width, excite=i % 2 == 0) for i in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.blocks(self.downsample(x))


class Body(nn.Module):
    """Stem and stages, under the names of the published weights."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Stem(widths[0])
        for number, (width_in, width, depth) in enumerate(zip((widths[0], *widths), widths, depths)):
            self.add_module(f"stages_{number}", RepViTStage(width_in, width, depth))
        self.count = len(widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The map at the end of each stage, fine to coarse."""
        maps = [self.stem(images)]
        for number in range(self.count):
            maps.append(self.get_submodule(f"stages_{number}")(maps[-1]))
        return maps[1:]


class RepViT(nn.Module):
    """The trunk: a map for each stage, from a quarter of the picture on.

    Args:
        widths: channels of the stages, fine to coarse, each another one.
        depths: blocks of the stages.
    """

    def __init__(self, *, widths: Sequence[int] = (48, 96, 192, 384), depths: Sequence[int] = (2, 2, 14, 2)) -> None:
        super().__init__()
        if len(widths) != len(depths) or len(set(widths)) != len(widths):
            raise ValueError(f"expected as many depths as widths, all different, got {tuple(widths)}, {tuple(depths)}")
        self.body = Body(widths, depths)
        self.channel_list = tuple(reversed(widths))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps fine to coarse: (B, C, H/4, W/4) ... (B, 8C, H/32, W/32)."""
        if images.shape[-2] % SIZE_STEP or images.shape[-1] % SIZE_STEP:
            raise ValueError(
                f"expected an image whose height and width are multiples of {SIZE_STEP}, got "
                f"{tuple(images.shape[-2:])}; resize or pad it"
            )
        return self.body(images)
