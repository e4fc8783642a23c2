"""Image and prompt embeddings to masks, their predicted IoU, mask tokens and an object score."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sam2_mem.model.layers import MLP, LayerNorm2d
from sam2_mem.model.two_way_transformer import TwoWayTransformer


class DecoderMaps(NamedTuple):
    """What the decoder draws masks on, on its way from the image: coarse, middle and fine."""

    cells: Tensor  # (B, C, h, w)
    middle: Tensor  # (B, C/4, 2h, 2w)
    fine: Tensor  # (B, C/8, 4h, 4w)


class DecodedMasks(NamedTuple):
    """M candidate masks per object, as logits at a quarter of the image size, and what goes with them."""

    masks: Tensor  # (B, M, 4h, 4w)
    iou: Tensor  # (B, M), predicted
    tokens: Tensor  # (B, M, C), or (B, 1, C): the token that becomes the object pointer
    object_logit: Tensor  # (B, 1), above 0: the object is in the image
    maps: DecoderMaps | None = None  # what the masks are drawn on


class MaskDecoder(nn.Module):
    """SAM 2's mask decoder. Mask token 0 is the single answer, the others are alternatives for ambiguous prompts.

    `dynamic_multimask_via_stability`: outside training an unstable single mask is replaced by the alternative of the
    highest predicted IoU. A mask is stable where the areas above +delta and above -delta agree to `thresh`.
    `high_res_features`: masks are drawn with the finer maps of the image encoder as well. `mask_bias`: added to mask logits
    outside training, for a network whose masks are too small or too large on what it was not trained on; 0, as in official
    models, changes nothing.
    """

    def __init__(
        self,
        *,
        transformer_dim: int = 256,
        num_multimask_outputs: int = 3,
        transformer_depth: int = 2,
        transformer_heads: int = 8,
        transformer_mlp_dim: int = 2048,
        iou_head_hidden_dim: int = 256,
        high_res_features: bool = True,
        dynamic_multimask_via_stability: bool = False,
        dynamic_multimask_stability_delta: float = 0.05,
        dynamic_multimask_stability_thresh: float = 0.98,
        mask_bias: float = 0.0,
    ) -> None:
        super().__init__()
        dim, num_masks = transformer_dim, num_multimask_outputs + 1
        if dim % 8:
            raise ValueError(f"expected transformer_dim to be a multiple of 8, got {dim}; choose one such as 64 or 256")
        self.dynamic_multimask_via_stability = dynamic_multimask_via_stability
        self.dynamic_multimask_stability_delta = dynamic_multimask_stability_delta
        self.dynamic_multimask_stability_thresh = dynamic_multimask_stability_thresh
        self.mask_bias = mask_bias
        self.transformer = TwoWayTransformer(
            dim=dim, depth=transformer_depth, num_heads=transformer_heads, mlp_dim=transformer_mlp_dim
        )
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(num_masks, dim)
        self.output_upscaling = _upscaling(dim)
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, iou_head_hidden_dim, num_masks, 3, sigmoid_output=True)
        self.conv_s0 = nn.Conv2d(dim, dim // 8, kernel_size=1) if high_res_features else None
        self.conv_s1 = nn.Conv2d(dim, dim // 4, kernel_size=1) if high_res_features else None
        self.obj_score_token = nn.Embedding(1, dim)
        self.pred_obj_score_head = MLP(dim, dim, 1, 3)

    def high_res_heads(self) -> dict[int, nn.Conv2d]:
        """What projects the fine maps of the image encoder, by level, for `ImageEncoder.forward`, to (B, C/8, 4h, 4w) and
        (B, C/4, 2h, 2w): once per frame, shared by all objects. Nothing where masks are drawn without them."""
        if self.conv_s0 is None or self.conv_s1 is None:
            return {}
        return {0: self.conv_s0, 1: self.conv_s1}

    def forward(
        self,
        image: Tensor,
        image_pe: Tensor,
        sparse: Tensor,
        dense: Tensor,
        high_res: tuple[Tensor, Tensor] | None,
        multimask: bool,
    ) -> DecodedMasks:
        """Decode B objects.

        `image` (B or 1, C, h, w), `image_pe` (1, C, h, w), `sparse` (B, N, C), `dense` (B, C, h, w), `high_res` as
        `high_res_heads` make it, with batch B or 1, or None. `multimask` returns the alternatives, otherwise M = 1.
        """
        return self.select(self.propose(image, image_pe, sparse, dense, high_res), multimask)

    def propose(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, high_res: tuple[Tensor, Tensor] | None
    ) -> DecodedMasks:
        """The same for all mask tokens: the single answer, then the alternatives."""
        self._check_inputs(image, sparse, dense)
        tokens, cells = self._run_transformer(image + dense, image_pe, sparse)
        mask_tokens = tokens[:, 2 : 2 + self.mask_tokens.num_embeddings]
        maps = self._upscale(cells, high_res)
        masks = self._draw_masks(mask_tokens, maps.fine)
        return DecodedMasks(
            masks=masks + self.mask_bias if self.mask_bias and not self.training else masks,
            iou=self.iou_prediction_head(tokens[:, 1]),
            tokens=mask_tokens,
            object_logit=self.pred_obj_score_head(tokens[:, 0]),
            maps=maps,
        )

    def _check_inputs(self, image: Tensor, sparse: Tensor, dense: Tensor) -> None:
        batch = sparse.shape[0]  # a shape, not len(), which would fix the size of an exported decoder
        if batch != dense.shape[0] or image.shape[0] not in (1, batch):
            raise ValueError(
                f"expected prompts of one batch size and an image of that size or 1, got sparse {batch}, "
                f"dense {len(dense)}, image {len(image)}; repeat what is missing"
            )

    def _run_transformer(self, image: Tensor, image_pe: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """-> tokens (B, T, C), cells as a map (B, C, h, w)."""
        learned = torch.cat([self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat((learned.expand(sparse.shape[0], -1, -1), sparse), dim=1)
        tokens, cells = self.transformer(tokens, image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2))
        return tokens, cells.transpose(1, 2).reshape(image.shape)

    def _upscale(self, cells: Tensor, high_res: tuple[Tensor, Tensor] | None) -> DecoderMaps:
        """(B, C, h, w) -> itself and two finer maps."""
        up1, norm, act1, up2, act2 = self.output_upscaling
        if high_res is None:
            middle = act1(norm(up1(cells)))
            return DecoderMaps(cells, middle, act2(up2(middle)))
        level0, level1 = high_res
        middle = act1(norm(up1(cells) + level1))
        return DecoderMaps(cells, middle, act2(up2(middle) + level0))

    def _draw_masks(self, mask_tokens: Tensor, pixels: Tensor) -> Tensor:
        """(B, M, C), (B, c, H, W) -> (B, M, H, W); each mask token becomes the weights of a linear classifier."""
        heads = zip(self.output_hypernetworks_mlps, mask_tokens.unbind(1), strict=True)
        classifiers = torch.stack([head(token) for head, token in heads], dim=1)
        return (classifiers @ pixels.flatten(2)).unflatten(-1, pixels.shape[-2:])

    def select(self, candidates: DecodedMasks, multimask: bool) -> DecodedMasks:
        """Keep the alternatives, or the single mask, or whichever of them is stable."""
        selected = slice(1, None) if multimask else slice(1)
        masks, iou = candidates.masks[:, selected], candidates.iou[:, selected]
        if not multimask and self.dynamic_multimask_via_stability and not self.training:
            masks, iou = self._stable_mask(candidates.masks, candidates.iou)
        return candidates._replace(masks=masks, iou=iou, tokens=candidates.tokens[:, selected])

    def _stable_mask(self, masks: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, H, W), (B, M) -> (B, 1, H, W), (B, 1): mask 0 where stable, else the best alternative."""
        delta = self.dynamic_multimask_stability_delta
        stable = _stability(masks[:, 0], delta) >= self.dynamic_multimask_stability_thresh
        best = torch.where(stable, 0, iou[:, 1:].argmax(dim=1) + 1)
        rows = torch.arange(len(masks), device=masks.device)
        return masks[rows, best][:, None], iou[rows, best][:, None]


def _stability(logits: Tensor, delta: float) -> Tensor:
    """Area above +delta over area above -delta, (B, H, W) -> (B,); 1 for a mask that is empty at both."""
    inner = (logits > delta).flatten(1).sum(dim=1).float()
    outer = (logits > -delta).flatten(1).sum(dim=1).float()
    return torch.where(outer > 0, inner / outer, 1.0)


def _upscaling(dim: int) -> nn.Sequential:
    """Two transposed convolutions, each twice the size: (B, C, h, w) -> (B, C/8, 4h, 4w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
        LayerNorm2d(dim // 4),
        nn.GELU(),
        nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
        nn.GELU(),
    )
