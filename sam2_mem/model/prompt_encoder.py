"""Prompts (points, box corners, a mask) to embeddings for the mask decoder."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from sam2_mem.model.cached_positions import cached
from sam2_mem.model.layers import LayerNorm2d
from sam2_mem.model.position_encoding import RandomFourierPosition

POINT_LABELS = 4  # 0 background, 1 foreground, 2 top-left and 3 bottom-right corner of a box; -1 is padding
BOX_LABELS = (2, 3)
POINT_LOGIT, BOX_LOGITS, DRAWN_LIMIT = 10.0, (3.0, -8.0), 12.0


class PromptEncoder(nn.Module):
    """Points and box corners become tokens; a mask becomes a map that is added to the image.

    `image_embedding_size` is the side h of the image map, `image_size` the side of the image in pixels. `dense_points`:
    points and boxes are also drawn as mask logits, see `draw_prompts`; a point is a Gaussian of this deviation, in parts of
    `image_size`. 0 is SAM 2.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        image_embedding_size: int,
        image_size: int,
        mask_in_chans: int = 16,
        dense_points: float = 0.0,
    ) -> None:
        super().__init__()
        if dense_points < 0:
            raise ValueError(f"expected dense_points >= 0, got {dense_points}; 0 for tokens only, as in SAM 2")
        self.resize(image_size, image_embedding_size)
        self.dense_points = dense_points
        self.pe_layer = RandomFourierPosition(channels=embed_dim)
        embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(POINT_LABELS))
        self.point_embeddings = cast("Sequence[nn.Embedding]", embeddings)
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_in_chans // 4, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans // 4),
            nn.GELU(),
            nn.Conv2d(mask_in_chans // 4, mask_in_chans, kernel_size=2, stride=2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, embed_dim, kernel_size=1),
        )

    def resize(self, image_size: int, image_embedding_size: int) -> None:
        """Take prompts on images of another size."""
        self.image_size, self.image_embedding_size = image_size, image_embedding_size
        self.mask_input_size = 4 * image_embedding_size

    def dense_position(self) -> Tensor:
        """Position code of the image map, (1, C, h, h); kept while its weights, the size and autocast stay."""
        matrix, side = self.pe_layer.positional_encoding_gaussian_matrix, self.image_embedding_size
        kind = matrix.device.type
        precision = torch.get_autocast_dtype(kind).itemsize if torch.is_autocast_enabled(kind) else 0
        return cached((matrix,), (side, precision), lambda: self.pe_layer.grid(side, side)[None])

    def forward(
        self, points: Tensor | None = None, labels: Tensor | None = None, mask_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed the prompts of B objects.

        Args:
            points: (B, N, 2) pixels (x, y) in [0, image_size].
            labels: (B, N) in {-1, 0, 1, 2, 3}.
            mask_logits: (B, 1, 4h, 4h). Each may be missing; B is 1 when all are.

        Returns:
            The sparse embedding (B, N+1, C), whose last token is padding, and the dense one (B, C, h, h), which may be an
            expanded view. Without points the sparse embedding is two padding tokens, which is how SAM 2 tracks.
        """
        if self.dense_points and points is not None and labels is not None:
            drawn = self.draw_prompts(points, labels)
            mask_logits = drawn if mask_logits is None else mask_logits + drawn
        batches = {len(x) for x in (points, mask_logits) if x is not None}
        if len(batches) > 1:
            raise ValueError(
                f"expected prompts of one batch size, got {sorted(batches)}; give every object each prompt"
            )
        batch = batches.pop() if batches else 1
        if points is None and labels is None:
            return self.not_a_point_embed.weight.expand(batch, 2, -1), self._embed_mask(mask_logits, batch)
        if points is None or labels is None or labels.shape != points.shape[:2]:
            got = tuple(None if x is None else tuple(x.shape) for x in (points, labels))
            raise ValueError(f"expected points (B, N, 2) and labels (B, N), got {got}; give both, one label per point")
        return self._embed_points(points, labels), self._embed_mask(mask_logits, batch)

    def draw_prompts(self, points: Tensor, labels: Tensor) -> Tensor:
        """Points (B, N, 2) and labels (B, N) as mask logits (B, 1, 4h, 4h): Gaussians of height +-`POINT_LOGIT`, and a box of
        `BOX_LOGITS` inside and outside."""
        side = self.mask_input_size
        centres = (torch.arange(side, device=points.device) + 0.5) * (self.image_size / side)
        offsets = centres - points.float().unsqueeze(-1)  # (B, N, 2, side), x before y
        falloff = torch.exp(-(offsets**2) / (2 * (self.dense_points * self.image_size) ** 2))
        sign = POINT_LOGIT * ((labels == 1).float() - (labels == 0).float())
        drawn = torch.einsum("bn,bny,bnx->byx", sign, falloff[:, :, 1], falloff[:, :, 0])
        first, second = ((labels == corner).float().unsqueeze(-1).unsqueeze(-1) for corner in BOX_LABELS)
        within = ((first * (offsets >= 0)).sum(1) * (second * (offsets <= 0)).sum(1)) > 0  # (B, 2, side)
        inside = (within[:, 1, :, None] & within[:, 0, None, :]).float()
        has_box = first.amax(1)  # (B, 1, 1)
        high, low = BOX_LOGITS
        return (drawn + has_box * (low + (high - low) * inside)).clamp(-DRAWN_LIMIT, DRAWN_LIMIT).unsqueeze(1)

    def _embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """(B, N, 2), (B, N) -> (B, N+1, C), one padding token appended."""
        table = torch.cat([self.not_a_point_embed.weight, *[e.weight for e in self.point_embeddings]])
        centred = (points.to(table.dtype) + 0.5) / self.image_size
        centred = torch.cat((centred, centred.new_zeros(len(centred), 1, 2)), dim=1)
        labels = torch.cat((labels, labels.new_full((len(labels), 1), -1)), dim=1).long()
        position = self.pe_layer(centred)
        return torch.where((labels == -1)[..., None], 0.0, position) + table[labels + 1]

    def _embed_mask(self, mask_logits: Tensor | None, batch: int) -> Tensor:
        """(B, 1, 4h, 4h) or None -> (B, C, h, h)."""
        if mask_logits is None:
            side = self.image_embedding_size
            return self.no_mask_embed.weight[:, :, None, None].expand(batch, -1, side, side)
        expected = (1, self.mask_input_size, self.mask_input_size)
        if tuple(mask_logits.shape[1:]) != expected:
            raise ValueError(f"expected mask logits (B, {expected}), got {tuple(mask_logits.shape)}; resize the mask")
        return self.mask_downscaling(mask_logits)
