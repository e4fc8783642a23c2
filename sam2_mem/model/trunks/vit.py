"""A plain vision transformer as image trunk, and the neck that brings its one map to the width of the network: EfficientTAM's
image encoder (Xiong et al. 2024, arXiv:2411.18933; the trunk is that of Li et al. 2022, arXiv:2203.16527)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.cached_positions import cached
from sam2_mem.model.fpn import NO_HEADS, Neck
from sam2_mem.model.layers import LayerNorm2d
from sam2_mem.model.trunks.hiera import BlockPlan, HieraBlock

PATCH = 16
TRAINED_GRID = 14
"""Cells along a side of the picture that the position code was trained on."""


class Patches(nn.Module):
    """Patches of 16 x 16 pixels beside each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/16, W/16, C)."""
        return self.proj(images).permute(0, 2, 3, 1)


class PlainTrunk(nn.Module):
    """A trunk of blocks of one width over patches with a position code; it gives one map.

    Args:
        width: C.
        patch_embed: (B, 3, H, W) -> patches (B, h, w, C).
        positions: places of the position code.
        blocks: (B, h, w, C) -> (B, h, w, C).

    Attributes:
        stride: side of a patch in pixels.
    """

    stride = PATCH

    def __init__(self, width: int, patch_embed: nn.Module, positions: int, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = nn.Parameter(torch.empty(1, positions, width))
        self.blocks = nn.Sequential(*blocks)
        self.channel_list = (width,)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def position_map(self, height: int, width: int) -> Tensor:
        """The position code of a grid, (1, height, width, C)."""
        raise NotImplementedError

    def before_blocks(self, x: Tensor) -> Tensor:
        """Of patches with their position code, (B, h, w, C) -> (B, h, w, C)."""
        return x

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> one map (B, C, H / stride, W / stride)."""
        if images.shape[-2] % self.stride or images.shape[-1] % self.stride:
            raise ValueError(
                f"expected an image whose height and width are multiples of {self.stride}, got {tuple(images.shape[-2:])}; "
                "resize or pad it"
            )
        x = self.patch_embed(images)
        sizes = (x.shape[1], x.shape[2])
        x = x + cached((self.pos_embed,), sizes, lambda: self.position_map(*sizes))
        return [self.blocks(self.before_blocks(x)).permute(0, 3, 1, 2)]


def drop_paths(last: float, depth: int) -> list[float]:
    """Of ``depth`` blocks: that of the last, and proportionally less before."""
    return [last * i / max(depth - 1, 1) for i in range(depth)]


class ViT(PlainTrunk):
    """The trunk: blocks of one width that attend in windows, some of them to the whole picture.

    Args:
        width: C.
        depth: blocks.
        num_heads: of every block.
        window: side of a window in cells.
        global_blocks: numbers of the blocks that attend to the whole picture.
        drop_path_rate: of the last block; those before have proportionally less.
    """

    def __init__(
        self,
        *,
        width: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        window: int = 14,
        global_blocks: Sequence[int] = (2, 5, 8, 11),
        drop_path_rate: float = 0.0,
    ) -> None:
        windows = [0 if i in set(global_blocks) else window for i in range(depth)]
        blocks = (
            HieraBlock(BlockPlan(width, width, num_heads, side, None), mlp_ratio=4.0, drop_path=drop_path)
            for side, drop_path in zip(windows, drop_paths(drop_path_rate, depth))
        )
        super().__init__(width, Patches(width), 1 + TRAINED_GRID**2, blocks)

    def position_map(self, height: int, width: int) -> Tensor:
        """The position code of a grid, (1, height, width, C): what the class token has is left out."""
        code = self.pos_embed[:, 1:].unflatten(1, (TRAINED_GRID, TRAINED_GRID))
        if (height, width) == (TRAINED_GRID, TRAINED_GRID):
            return code
        code = F.interpolate(code.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False)
        return code.permute(0, 2, 3, 1)


class ViTNeck(Neck):
    """A 1 x 1 and a 3 x 3 convolution without biases, each followed by a norm over channels."""

    def __init__(self, *, d_model: int = 256, backbone_channel_list: Sequence[int] = (192,)) -> None:
        super().__init__()
        (width,) = backbone_channel_list
        self.d_model = d_model
        self.backbone_channel_list = tuple(backbone_channel_list)
        layers = OrderedDict(
            conv_1x1=nn.Conv2d(width, d_model, kernel_size=1, bias=False),
            norm_0=LayerNorm2d(d_model),
            conv_3x3=nn.Conv2d(d_model, d_model, kernel_size=3, padding=1, bias=False),
            norm_1=LayerNorm2d(d_model),
        )
        self.convs = nn.ModuleList([nn.Sequential(layers)])

    def forward(self, maps: Sequence[Tensor], heads: Mapping[int, nn.Conv2d] = NO_HEADS) -> list[Tensor]:
        """One map (B, C', h, w) -> one map (B, C, h, w)."""
        if heads:
            raise ValueError(
                "expected no finer maps to be asked for, there are none; set model.high_res_features=false"
            )
        return [self.convs[0](maps[0])]
