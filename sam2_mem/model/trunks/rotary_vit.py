"""A plain vision transformer whose queries and keys are rotated by their cells, and the neck that draws three maps from its
one: the image encoder of SAM 3 (Carion et al. 2025, arXiv:2511.16719; the trunk is Perception Encoder's, Bolya et al. 2025,
arXiv:2504.13181)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.transfer import constant
from sam2_mem.model.fpn import NO_HEADS, Neck, fused_convolution
from sam2_mem.model.rope import Rotation, grid_coordinates, rotate, rotation_at
from sam2_mem.model.trunks.hiera import BlockPlan, HieraBlock, PooledAttention
from sam2_mem.model.trunks.vit import PlainTrunk, drop_paths

PATCH = 14
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""By which the pictures that come here were normalised, as for all networks of the family."""


class RotaryWindowAttention(PooledAttention):
    """Self-attention over one window, whose queries and keys turn by their cells.

    A window's cells count from its corner, in steps of one; those of a whole picture in steps in which its side is as long as
    a window's, ``side``: what the frequencies were learned for.
    """

    def __init__(self, *, dim: int, num_heads: int, side: int) -> None:
        super().__init__(dim=dim, dim_out=dim, num_heads=num_heads, pool=None)
        self.side = side

    def _attend(self, projected: Tensor) -> Tensor:
        height, width = projected.shape[1:3]
        query, key, value = (self._heads(x) for x in projected.chunk(3, dim=-1))
        rotation = _rotation(height, width, self.side, query.shape[-1], query.device)
        attended = F.scaled_dot_product_attention(rotate(query, rotation), rotate(key, rotation), value)
        return attended.transpose(1, 2).flatten(2).unflatten(1, (height, width))


class RotaryBlock(HieraBlock):
    """A block of the trunk; ``window`` 0 attends to the whole picture."""

    def __init__(
        self, *, width: int, num_heads: int, window: int, side: int, mlp_ratio: float, drop_path: float
    ) -> None:
        plan = BlockPlan(width, width, num_heads, window, None)
        attention = RotaryWindowAttention(dim=width, num_heads=num_heads, side=side)
        super().__init__(plan, mlp_ratio=mlp_ratio, drop_path=drop_path, attention=attention)


class PatchProjection(nn.Module):
    """Patches of 14 x 14 pixels beside each other, of pictures brought to a mean and deviation of one half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/14, W/14, C)."""
        mean, deviation = (constant(v, images.device, images.dtype)[:, None, None] for v in (MEAN, DEVIATION))
        return self.proj((images * deviation + (mean - 0.5)) / 0.5).permute(0, 2, 3, 1)


class RotaryViT(PlainTrunk):
    """The trunk: blocks of one width that attend in windows, some of them to the whole picture.

    Args:
        width: C.
        depth: blocks.
        num_heads: of every block.
        window: side of a window in cells.
        global_blocks: numbers of the blocks that attend to the whole picture.
        mlp_ratio: width of a block's inner network, in parts of C.
        trained_grid: cells along a side of the position code, which is repeated over the picture.
        drop_path_rate: of the last block; those before have proportionally less.
    """

    stride = PATCH
    size_multiple = PATCH

    def __init__(
        self,
        *,
        width: int = 1024,
        depth: int = 32,
        num_heads: int = 16,
        window: int = 24,
        global_blocks: Sequence[int] = (7, 15, 23, 31),
        mlp_ratio: float = 4.625,
        trained_grid: int = 24,
        drop_path_rate: float = 0.0,
    ) -> None:
        windows = [0 if i in set(global_blocks) else window for i in range(depth)]
        blocks = (
            RotaryBlock(
                width=width, num_heads=num_heads, window=reach, side=window, mlp_ratio=mlp_ratio, drop_path=drop_path
            )
            for reach, drop_path in zip(windows, drop_paths(drop_path_rate, depth))
        )
        super().__init__(width, PatchProjection(width), trained_grid**2, blocks)
        self.trained_grid = trained_grid
        self.ln_pre = nn.LayerNorm(width, eps=1e-6)

    def position_map(self, height: int, width: int) -> Tensor:
        """The position code of a grid, (1, height, width, C): that of training beside and below itself."""
        side = self.trained_grid
        code = self.pos_embed.unflatten(1, (side, side))
        return code.repeat(1, -(-height // side), -(-width // side), 1)[:, :height, :width]

    def before_blocks(self, x: Tensor) -> Tensor:
        """Normalised."""
        return self.ln_pre(x)


class UpsamplingNeck(Neck):
    """Three maps from one: at four times and twice its size by transposed convolutions, and at its own; each then goes
    through a 1 x 1 and a 3 x 3 convolution."""

    def __init__(self, *, d_model: int = 256, backbone_channel_list: Sequence[int] = (1024,)) -> None:
        super().__init__()
        (width,) = backbone_channel_list
        self.d_model = d_model
        self.backbone_channel_list = tuple(backbone_channel_list)
        self.convs = nn.ModuleList(_level(width, d_model, doublings) for doublings in (2, 1, 0))

    def forward(self, maps: Sequence[Tensor], heads: Mapping[int, nn.Conv2d] = NO_HEADS) -> list[Tensor]:
        """One map (B, C', h, w) -> (B, C, 4h, 4w), (B, C, 2h, 2w), (B, C, h, w); ``heads`` as in ``FpnNeck``."""
        levels = []
        for level, conv in enumerate(self.convs):
            *first, last = cast("nn.Sequential", conv)
            x = maps[0]
            for layer in first:
                x = layer(x)
            levels.append(fused_convolution(cast("nn.Conv2d", last), heads[level], x) if level in heads else last(x))
        return levels


def _level(width: int, d_model: int, doublings: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(doublings):
        if number:
            layers["gelu"] = nn.GELU()
        layers[f"dconv_2x2_{number}"] = nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)
        width //= 2
    layers["conv_1x1"] = nn.Conv2d(width, d_model, kernel_size=1)
    layers["conv_3x3"] = nn.Conv2d(d_model, d_model, kernel_size=3, padding=1)
    return nn.Sequential(layers)


@lru_cache(maxsize=32)
def _rotation(height: int, width: int, side: int, channels: int, device: torch.device) -> Rotation:
    with torch.inference_mode(False), torch.no_grad():
        scale = torch.tensor([side / width, side / height], device=device)
        return rotation_at(grid_coordinates(height, width, device=device) * scale, channels)
