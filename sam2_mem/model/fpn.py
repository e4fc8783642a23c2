"""The image encoder: a trunk and the feature pyramid that brings its stages to one width."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.cached_positions import cached

STRIDE = 16
"""Pixels along a side of a cell that memory is read for, but where a trunk says otherwise."""
NO_HEADS: Mapping[int, nn.Conv2d] = {}


class Trunk(Protocol):
    """What an image encoder uses of a trunk, an ``nn.Module``.

    Attributes:
        channel_list: widths of its maps, coarse to fine.

    ``stride``, pixels along a side of a cell of the coarsest map that is used, and ``size_multiple``, of which the sides of
    a picture are, may say something else than 16 and 32.
    """

    channel_list: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps fine to coarse."""
        ...


class Neck(nn.Module):
    """Brings the maps of a trunk to one width.

    Attributes:
        d_model: that width.
        backbone_channel_list: widths of the trunk's maps, coarse to fine.
        convs: what is learned for each of them, in that order.
    """

    d_model: int
    backbone_channel_list: tuple[int, ...]
    convs: nn.ModuleList

    def forward(self, maps: Sequence[Tensor], heads: Mapping[int, nn.Conv2d] = NO_HEADS) -> list[Tensor]:
        """Maps fine to coarse, (B, C_i, H_i, W_i) -> as many maps fine to coarse, (B, d_model, H_i, W_i). `heads` as in
        `FpnNeck`."""
        raise NotImplementedError


class FpnNeck(Neck):
    """1 x 1 convolutions to a common width; levels in `fpn_top_down_levels` also add the next coarser level.

    Levels count from 0, the finest. `backbone_channel_list` and `convs` run from coarse to fine, as in the checkpoints.
    """

    def __init__(
        self,
        *,
        d_model: int = 256,
        backbone_channel_list: Sequence[int] = (768, 384, 192, 96),
        fpn_top_down_levels: Sequence[int] = (2, 3),
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.backbone_channel_list = tuple(backbone_channel_list)
        self.top_down_levels = frozenset(fpn_top_down_levels)
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, d_model, kernel_size=1)))
            for channels in self.backbone_channel_list
        )
        unknown = self.top_down_levels - set(range(len(self.convs)))
        if unknown:
            raise ValueError(f"expected top-down levels in 0..{len(self.convs) - 1}, got {sorted(unknown)}; drop them")

    def forward(self, maps: Sequence[Tensor], heads: Mapping[int, nn.Conv2d] = NO_HEADS) -> list[Tensor]:
        """Maps fine to coarse, (B, C_i, H_i, W_i) -> as many maps fine to coarse, (B, d_model, H_i, W_i).

        `heads`: 1 x 1 convolutions of which alone a level is of use, by level: what they make of it is returned in its
        place.
        """
        if len(maps) != len(self.convs):
            raise ValueError(f"expected {len(self.convs)} maps, got {len(maps)}; give every stage of the trunk")
        merged: list[Tensor] = []
        unused = set(heads) & (self.top_down_levels | {level + 1 for level in self.top_down_levels})
        if unused or not set(heads) <= set(range(len(maps))):
            raise ValueError(f"expected heads of levels that take no part in the top-down path, got {sorted(heads)}")
        for level, conv, stage in zip(reversed(range(len(maps))), self.convs, reversed(maps)):
            lateral = fused_convolution(_lateral(conv), heads[level], stage) if level in heads else conv(stage)
            add_coarser = merged and level in self.top_down_levels
            merged.append(lateral + self._upsample(merged[-1]) if add_coarser else lateral)
        return merged[::-1]

    def _upsample(self, coarse: Tensor) -> Tensor:
        """Nearest neighbour to twice the size; the sum runs in the precision of the weights, also under autocast."""
        precise = coarse.to(_lateral(self.convs[0]).weight.dtype)
        return F.interpolate(precise, scale_factor=2.0, mode="nearest")


def _lateral(level: nn.Module) -> nn.Conv2d:
    return cast("nn.Conv2d", level.conv)


def fused_convolution(lateral: nn.Conv2d, head: nn.Conv2d, stage: Tensor) -> Tensor:
    """``head(lateral(stage))`` as one convolution, for a 1 x 1 ``head`` of an eighth of the channels an eighth of the work."""
    weights = cast("tuple[Tensor, ...]", (lateral.weight, lateral.bias, head.weight, head.bias))
    product = cached(weights, (), lambda: _product(*weights))
    kernel = product[:, :-1].unflatten(1, lateral.weight.shape[1:])
    return F.conv2d(stage, kernel, product[:, -1], padding=cast("tuple[int, int]", lateral.padding))


def _product(weight: Tensor, bias: Tensor, head_weight: Tensor, head_bias: Tensor) -> Tensor:
    """Weights and, in the last column, biases of both."""
    with torch.autocast(weight.device.type, enabled=False):
        inner = torch.cat([weight.flatten(1), bias[:, None]], dim=1)
        return head_weight.flatten(1) @ inner + F.pad(head_bias[:, None], (inner.shape[1] - 1, 0))


class ImageEncoder(nn.Module):
    """Trunk and neck; the `scalp` coarsest levels are dropped after they fed the finer ones."""

    def __init__(self, *, trunk: Trunk, neck: Neck, scalp: int = 1) -> None:
        super().__init__()
        if tuple(trunk.channel_list) != neck.backbone_channel_list:
            raise ValueError(
                f"expected backbone_channel_list {tuple(trunk.channel_list)} as the trunk yields, "
                f"got {neck.backbone_channel_list}; set it in the neck"
            )
        if not 0 <= scalp < len(neck.convs):
            raise ValueError(f"expected 0 <= scalp < {len(neck.convs)}, got {scalp}; at least one level must stay")
        self.trunk = trunk
        self.neck = neck
        self.scalp = scalp
        self.stride = int(getattr(trunk, "stride", STRIDE))
        self.size_multiple = int(getattr(trunk, "size_multiple", 2 * STRIDE))

    def forward(self, images: Tensor, *, heads: Mapping[int, nn.Conv2d] = NO_HEADS) -> list[Tensor]:
        """(B, 3, H, W) -> maps fine to coarse, (B, d_model, H/4, W/4), (.., H/8, W/8), (.., H/16, W/16) for scalp 1.

        `heads` as in `FpnNeck`.
        """
        return self.merge(self.trunk(images), heads)

    def merge(self, maps: Sequence[Tensor], heads: Mapping[int, nn.Conv2d] = NO_HEADS) -> list[Tensor]:
        """The same for maps of the trunk."""
        levels = self.neck(maps, heads)
        return levels[: len(levels) - self.scalp]
