"""Hiera, the hierarchical vision transformer that SAM 2 uses as image trunk (arXiv:2306.00989, 2311.05613)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.onednn_linear import Linear, on_plain_cpu
from sam2_mem.model.cached_positions import cached
from sam2_mem.model.layers import MLP, DropPath

PATCH_STRIDE = 4
STRIP_CELLS = 2048
"""Of a map that go through a block together on a CPU."""


class BlockPlan(NamedTuple):
    """Shape of one block. `window` 0 attends globally; `pool` is the query stride, None for no pooling."""

    dim: int
    dim_out: int
    num_heads: int
    window: int
    pool: tuple[int, int] | None


class PatchEmbed(nn.Module):
    """Overlapping 7 x 7 patches at stride 4."""

    def __init__(self, *, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=7, stride=PATCH_STRIDE, padding=3)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H/4, W/4, C)."""
        return self.proj(images).permute(0, 2, 3, 1)


class PooledAttention(nn.Module):
    """Self-attention over one window whose queries may be max-pooled, which shrinks the output."""

    def __init__(self, *, dim: int, dim_out: int, num_heads: int, pool: tuple[int, int] | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pool = pool
        self.qkv = Linear(dim, 3 * dim_out)
        self.proj = Linear(dim_out, dim_out)

    def forward(self, x: Tensor, window: int = 0) -> Tensor:
        """(B, H, W, dim) -> (B, H', W', dim_out), H' = H / pool; in windows of `window` cells, 0 for one of all cells.

        Where windows stick out of the map, they are filled up after the projection: what is projected from zeros is the
        bias. The filling takes part in the attention, as it did when the checkpoints were trained.
        """
        batch, height, width, _ = x.shape
        if not window:
            return self.proj(self._attend(self.qkv(x)))
        rows = math.ceil(height / window)
        if not (height % window or width % window):
            return _join_windows(self.proj(self._attend(self.qkv(_split_windows(x, window)))), batch, rows)
        filled = _fill_up(self.qkv(x), window, self.qkv.bias)
        joined = _join_windows(self._attend(_split_windows(filled, window)), batch, rows)
        stride_y, stride_x = self.pool or (1, 1)
        return self.proj(joined[:, : height // stride_y, : width // stride_x])

    def _attend(self, projected: Tensor) -> Tensor:
        """(B, H, W, 3 * dim_out) -> (B, H', W', dim_out)."""
        query, key, value = projected.chunk(3, dim=-1)
        query = _max_pool(query, self.pool)
        attended = F.scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value))
        return attended.transpose(1, 2).reshape(query.shape)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, H*W, C/heads)."""
        return x.flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class HieraBlock(nn.Module):
    """Pre-norm transformer block on windows; it may change the width and halve the grid. `attention`: in place of the usual
    one."""

    def __init__(
        self, plan: BlockPlan, *, mlp_ratio: float, drop_path: float, attention: PooledAttention | None = None
    ) -> None:
        super().__init__()
        self.window = plan.window
        self.pool = plan.pool
        self.norm1 = nn.LayerNorm(plan.dim, eps=1e-6)
        self.attn = attention or PooledAttention(
            dim=plan.dim, dim_out=plan.dim_out, num_heads=plan.num_heads, pool=plan.pool
        )
        self.norm2 = nn.LayerNorm(plan.dim_out, eps=1e-6)
        self.mlp = MLP(plan.dim_out, int(plan.dim_out * mlp_ratio), plan.dim_out, 2, activation="gelu")
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.proj = Linear(plan.dim, plan.dim_out) if plan.dim != plan.dim_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, dim) -> (B, H', W', dim_out).

        On a CPU without gradient, a strip of windows goes through the whole block before the next one, so that what lies
        between its layers stays in the processor's cache.
        """
        if x.shape[:3].numel() <= STRIP_CELLS or not on_plain_cpu(x):
            return self._feed_forward(self._attend(x))
        rows = max(1, STRIP_CELLS // (x.shape[0] * x.shape[2]))
        if not self.window:
            return _in_strips(self._feed_forward, self._attend(x), rows)
        return _in_strips(
            lambda strip: self._feed_forward(self._attend(strip)), x, max(1, rows // self.window) * self.window
        )

    def _attend(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        skip = x if self.proj is None else self.proj(normed)
        return _max_pool(skip, self.pool) + self.drop_path(self.attn(normed, self.window))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Hiera(nn.Module):
    """The image trunk: four stages, each half the resolution and twice the width of the one before.

    `window_spec` gives the window of each stage and `global_att_blocks` the blocks that attend to the whole grid.
    The first block of a stage still uses the window of the stage before, because it pools inside that window.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        num_heads: int = 1,
        stages: Sequence[int] = (1, 2, 7, 2),
        global_att_blocks: Sequence[int] = (5, 7, 9),
        window_pos_embed_bkg_spatial_size: Sequence[int] = (7, 7),
        window_spec: Sequence[int] = (8, 4, 14, 7),
        q_pool: int = 3,
        q_stride: Sequence[int] = (2, 2),
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_stages(stages, window_spec, q_pool, q_stride)
        stride = (int(q_stride[0]), int(q_stride[1]))
        self.patch_embed = PatchEmbed(embed_dim=embed_dim)
        self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, *window_pos_embed_bkg_spatial_size))
        self.pos_embed_window = nn.Parameter(torch.empty(1, embed_dim, window_spec[0], window_spec[0]))
        plans = list(
            _plan_blocks(
                dim=embed_dim,
                num_heads=num_heads,
                stages=stages,
                windows=window_spec,
                global_blocks=frozenset(global_att_blocks),
                pools=[stride if 0 < stage <= q_pool else None for stage in range(len(stages))],
                dim_mul=dim_mul,
                head_mul=head_mul,
            )
        )
        step = drop_path_rate / max(len(plans) - 1, 1)
        self.blocks = nn.ModuleList(
            HieraBlock(plan, mlp_ratio=mlp_ratio, drop_path=step * i) for i, plan in enumerate(plans)
        )
        self.stage_ends = tuple(sum(stages[: i + 1]) - 1 for i in range(len(stages)))
        self.channel_list = tuple(plans[end].dim_out for end in reversed(self.stage_ends))
        self.size_step = tuple(math.lcm(PATCH_STRIDE * window_spec[0], PATCH_STRIDE * s**q_pool) for s in stride)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_window, std=0.02)

    def position_map(self, height: int, width: int) -> Tensor:
        """Learned position code of the (height, width) patch grid, (1, height, width, C).

        A coarse code stretched over the image plus a code repeated in every window of the first stage.
        """
        coarse = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        window = self.pos_embed_window.shape[-1]
        repeated = self.pos_embed_window.tile(1, 1, height // window, width // window)
        return (coarse + repeated).permute(0, 2, 3, 1)

    def _cached_position(self, height: int, width: int) -> Tensor:
        """The same, made anew where weights or size have changed."""
        weights = (self.pos_embed, self.pos_embed_window)
        return cached(weights, (height, width), lambda: self.position_map(height, width))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the map at the end of each stage, fine to coarse: (B, C, H/4, W/4) ... (B, 8C, H/32, W/32)."""
        if images.shape[-2] % self.size_step[0] or images.shape[-1] % self.size_step[1]:
            raise ValueError(
                f"expected an image whose height and width are multiples of {self.size_step}, "
                f"got {tuple(images.shape[-2:])}; resize or pad it"
            )
        x = self.patch_embed(images)
        x = x + self._cached_position(*x.shape[1:3])
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps


def _plan_blocks(
    *,
    dim: int,
    num_heads: int,
    stages: Sequence[int],
    windows: Sequence[int],
    global_blocks: frozenset[int],
    pools: Sequence[tuple[int, int] | None],
    dim_mul: float,
    head_mul: float,
) -> Iterator[BlockPlan]:
    """Yield the blocks of all stages in order; `pools` says per stage how its first block pools."""
    index = 0
    for stage, depth in enumerate(stages):
        for position in range(depth):
            entering = stage > 0 and position == 0
            num_heads = int(num_heads * head_mul) if entering else num_heads
            dim_out = int(dim * dim_mul) if entering else dim
            window = windows[stage - 1] if entering else windows[stage]
            window = 0 if index in global_blocks else window
            yield BlockPlan(dim, dim_out, num_heads, window, pools[stage] if entering else None)
            dim, index = dim_out, index + 1


def _check_stages(stages: Sequence[int], windows: Sequence[int], q_pool: int, q_stride: Sequence[int]) -> None:
    if len(stages) != len(windows):
        raise ValueError(f"expected one window per stage, got {len(windows)} windows for {len(stages)} stages")
    if not 0 <= q_pool < len(stages):
        raise ValueError(f"expected 0 <= q_pool < {len(stages)} (stages), got {q_pool}; the first stage never pools")
    if len(q_stride) != 2:
        raise ValueError(f"expected q_stride as (y, x), got {tuple(q_stride)}; give two numbers")
    for window in windows[:q_pool]:
        if any(window % stride for stride in q_stride):
            raise ValueError(
                f"expected windows that the pooling stride {tuple(q_stride)} divides, got {window}; "
                "change window_spec or q_stride"
            )


def _in_strips(block: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """``block`` of (B, H, W, C), ``rows`` of H at a time; it may shrink maps."""
    return torch.cat([block(strip) for strip in x.split(rows, dim=1)], dim=1)


def _max_pool(x: Tensor, stride: tuple[int, int] | None) -> Tensor:
    """(B, H, W, C) -> (B, H/stride, W/stride, C)."""
    if stride is None:
        return x
    return F.max_pool2d(x.permute(0, 3, 1, 2), stride, stride).permute(0, 2, 3, 1)


def _fill_up(x: Tensor, size: int, value: Tensor) -> Tensor:
    """(B, H, W, C) with `value` (C) at the bottom and the right, up to whole windows."""
    batch, height, width, channels = x.shape
    filled = value.to(x.dtype).expand(batch, height + -height % size, width + -width % size, channels).clone()
    filled[:, :height, :width] = x
    return filled


def _split_windows(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C), H and W multiples of `size` -> (B*ny*nx, size, size, C)."""
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return x.transpose(2, 3).flatten(0, 2)


def _join_windows(windows: Tensor, batch: int, rows: int) -> Tensor:
    """(B*rows*nx, s, s, C) -> (B, rows*s, nx*s, C), filling included."""
    grid = windows.unflatten(0, (batch, rows, -1))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
