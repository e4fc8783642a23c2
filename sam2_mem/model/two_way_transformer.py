"""The mask decoder's transformer: tokens attend to the image and the image attends back to the tokens."""

import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.onednn_linear import Linear
from sam2_mem.model.layers import MLP


class Attention(nn.Module):
    """Multi-head attention at 1 / `downsample_rate` of the model width."""

    def __init__(self, *, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        if inner % num_heads:
            raise ValueError(f"expected heads to divide the width {inner}, got {num_heads}; change either")
        self.num_heads = num_heads
        self.q_proj = Linear(dim, inner)
        self.k_proj = Linear(dim, inner)
        self.v_proj = Linear(dim, inner)
        self.out_proj = Linear(inner, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, N, C), (B, M, C), (B, M, C) -> (B, N, C)."""
        heads = F.scaled_dot_product_attention(
            self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        )
        return self.out_proj(heads.transpose(1, 2).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, C/heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to image, MLP on the tokens, image to tokens; norms after each sum.

    In the first block the tokens still equal their own code, so its self-attention takes them bare and replaces
    them instead of adding (`first`).
    """

    def __init__(self, *, dim: int, num_heads: int, mlp_dim: int, downsample_rate: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim=dim, num_heads=num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim=dim, num_heads=num_heads, downsample_rate=downsample_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_dim, dim, 2)
        self.norm3 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim=dim, num_heads=num_heads, downsample_rate=downsample_rate)
        self.norm4 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, cells: Tensor, token_code: Tensor, cell_code: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C) and image cells (B, Q, C), each with its code -> both updated."""
        tokens = self.norm1(self._mix_tokens(tokens, token_code))
        coded_cells = cells + cell_code
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_code, coded_cells, cells))
        tokens = self.norm3(tokens + self.mlp(tokens))
        cells = self.norm4(cells + self.cross_attn_image_to_token(coded_cells, tokens + token_code, tokens))
        return tokens, cells

    def _mix_tokens(self, tokens: Tensor, code: Tensor) -> Tensor:
        if self.first:
            return self.self_attn(tokens, tokens, tokens)
        coded = tokens + code
        return tokens + self.self_attn(coded, coded, tokens)


class TwoWayTransformer(nn.Module):
    """`depth` two-way blocks and a final attention of the tokens to the image."""

    def __init__(self, *, dim: int, depth: int, num_heads: int, mlp_dim: int, downsample_rate: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(
                dim=dim, num_heads=num_heads, mlp_dim=mlp_dim, downsample_rate=downsample_rate, first=index == 0
            )
            for index in range(depth)
        )
        self.final_attn_token_to_image = Attention(dim=dim, num_heads=num_heads, downsample_rate=downsample_rate)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, cells: Tensor, cell_code: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C), image cells (B, Q, C) and their code (1 or B, Q, C) -> updated tokens and cells."""
        token_code = tokens
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, token_code, cell_code)
        attended = self.final_attn_token_to_image(tokens + token_code, cells + cell_code, cells)
        return self.norm_final_attn(tokens + attended), cells
