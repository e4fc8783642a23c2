"""SAM 2 in five steps: encode an image, attend to memory, decode masks, encode memory, and the codes of time.

Tensors in, tensors out; the network keeps nothing between frames. Attribute names are the keys of the official
checkpoints. Paper: Ravi et al., "SAM 2: Segment Anything in Images and Videos", 2024 (section 4, appendix D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.cuda_graphs import direct
from sam2_mem.model.cached_positions import sine_tokens
from sam2_mem.model.fpn import ImageEncoder
from sam2_mem.model.layers import MLP
from sam2_mem.model.mask_decoder import DecodedMasks, DecoderMaps, MaskDecoder
from sam2_mem.model.memory_attention import Attended, MemoryAttention
from sam2_mem.model.memory_encoder import MemoryEncoder
from sam2_mem.model.occupancy import OccupancyHead
from sam2_mem.model.prompt_encoder import PromptEncoder
from sam2_mem.model.sensory import SensoryMemory
from sam2_mem.model.temporal_encoding import BankTime, NoPointerTime, SinePointerTime, Slot, slot_rows
from sam2_mem.types import MERGED_SLOT, FrameFeatures, RowBatch, Usage

MASK_STRIDE = 4
MASKS_PER_CELL, MEMORY_MASK_PER_CELL = 4, 16
"""Pixels along a side of a cell: of mask logits, and of masks as they enter the memory encoder."""
PROMPT_LOGIT = 10.0


class Decoded(NamedTuple):
    """Candidates before any absent-object gate.

    Attributes:
        masks: (R, M, h, w) float32 logits.
        pointers: (R, M, C).
        iou: (R, M), predicted.
        objectness: (R) logits.
        maps: of R rows, if asked for.
    """

    masks: Tensor
    pointers: Tensor
    iou: Tensor
    objectness: Tensor
    maps: DecoderMaps | None = None


class CandidateRule(NamedTuple):
    """When the decoder proposes three masks.

    Attributes:
        enabled: whether it ever does.
        tracking: whether it does on frames with memory.
        min_points: fewest points of a prompt; a box counts as two.
        max_points: most points of a prompt.
    """

    enabled: bool = True
    tracking: bool = True
    min_points: int = 0
    max_points: int = 1

    def allows(self, num_points: int, *, with_memory: bool) -> bool:
        """Whether a prompt of ``num_points`` points gets three masks."""
        enabled = self.enabled and (self.tracking or not with_memory)
        return enabled and self.min_points <= num_points <= self.max_points


class SAM2(nn.Module):
    """The network.

    Args:
        image_encoder: trunk and feature pyramid.
        memory_attention: reads memory.
        memory_encoder: makes it.
        pointer_time: how the age of an object pointer is encoded (2.0 and 2.1 differ).
        image_size: side S of the square input, a multiple of 32; of 14 in SAM 3.
        num_maskmem: rows of the learned temporal code (7).
        bank_time_codes: learned codes for places in a bank (4 in RMem), 0 for none; official checkpoints lack them.
        sensory_channels: of a learned sensory memory (64 in XMem), 0 for none; official checkpoints lack it.
        dense_points: points and boxes are also drawn as a mask prompt, see ``PromptEncoder``; 0: never, as in official models.
        occupancy_hint: whether masks of tracked frames start from the cells that the object is expected to cover, see
            ``OccupancyHead``; official checkpoints lack it.
        mask_bias: added to mask logits outside training; 0: not, as in official models.
        no_obj_embed_spatial: whether a learned vector marks the memory of frames without the object (2.1 only).
        high_res_features: whether masks are drawn with the image encoder's maps of strides 4 and 8 as well.
        mem_enc_scale: factor on mask probabilities before memory encoding.
        mem_enc_bias: added to them after that.
        binarize_prompted_masks: binarise the mask of a prompted frame before memory encoding.
        multimask_output: see ``CandidateRule``, ``enabled``.
        multimask_output_for_tracking: ``tracking`` of it.
        multimask_min_pt_num: ``min_points`` of it.
        multimask_max_pt_num: ``max_points`` of it.
        decoder_mlp_width: of the mask decoder's transformer.
        decoder_iou_width: of the mask decoder's head for predicted IoU.
        dynamic_multimask_via_stability: choose single masks by stability, see ``MaskDecoder``.
        dynamic_multimask_stability_delta: logits around 0.
        dynamic_multimask_stability_thresh: in 0..1.

    Attributes:
        runner: calls the parts of a frame, see ``sam2_mem.model.acceleration.cuda_graphs``.
    """

    runner: Callable[..., Any] = staticmethod(direct)

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        memory_attention: MemoryAttention,
        memory_encoder: MemoryEncoder,
        pointer_time: NoPointerTime | SinePointerTime,
        image_size: int = 1024,
        num_maskmem: int = 7,
        bank_time_codes: int = 0,
        sensory_channels: int = 0,
        dense_points: float = 0.0,
        occupancy_hint: bool = False,
        mask_bias: float = 0.0,
        no_obj_embed_spatial: bool = True,
        high_res_features: bool = True,
        mem_enc_scale: float = 20.0,
        mem_enc_bias: float = -10.0,
        binarize_prompted_masks: bool = False,
        multimask_output: bool = True,
        multimask_output_for_tracking: bool = True,
        multimask_min_pt_num: int = 0,
        multimask_max_pt_num: int = 1,
        decoder_mlp_width: int = 2048,
        decoder_iou_width: int = 256,
        dynamic_multimask_via_stability: bool = False,
        dynamic_multimask_stability_delta: float = 0.05,
        dynamic_multimask_stability_thresh: float = 0.98,
    ) -> None:
        super().__init__()
        _check_sizes(image_size, num_maskmem, image_encoder.size_multiple)
        _check_memory_grid(memory_attention, memory_encoder, image_size // image_encoder.stride)
        self.image_size, self.binarize_prompted_masks = image_size, binarize_prompted_masks
        self.width, self.memory_width = width, memory_width = image_encoder.neck.d_model, memory_encoder.memory_width
        widths = {"width": width, "memory_width": memory_width}
        self.mem_enc_scale, self.mem_enc_bias = mem_enc_scale, mem_enc_bias
        self.candidates = CandidateRule(
            multimask_output, multimask_output_for_tracking, multimask_min_pt_num, multimask_max_pt_num
        )
        self.image_encoder = image_encoder
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=MASK_STRIDE, stride=MASK_STRIDE)
        self.memory_attention, self.memory_encoder = memory_attention, memory_encoder
        self._register_vectors(num_maskmem, learned_absence=no_obj_embed_spatial)
        size = {"image_embedding_size": image_size // image_encoder.stride, "image_size": image_size}
        self.sam_prompt_encoder = PromptEncoder(embed_dim=width, **size, dense_points=dense_points)
        self.sam_mask_decoder = MaskDecoder(
            transformer_dim=width,
            transformer_mlp_dim=decoder_mlp_width,
            iou_head_hidden_dim=decoder_iou_width,
            high_res_features=high_res_features,
            dynamic_multimask_via_stability=dynamic_multimask_via_stability,
            dynamic_multimask_stability_delta=dynamic_multimask_stability_delta,
            dynamic_multimask_stability_thresh=dynamic_multimask_stability_thresh,
            mask_bias=mask_bias,
        )
        self.obj_ptr_proj = MLP(width, width, width, 3)
        self.obj_ptr_tpos_proj = pointer_time
        self.bank_time = BankTime(**widths, num_codes=bank_time_codes) if bank_time_codes else None
        self.sensory = SensoryMemory(**widths, channels=sensory_channels) if sensory_channels else None
        self.occupancy_head = OccupancyHead(width) if occupancy_hint else None

    def _register_vectors(self, num_maskmem: int, *, learned_absence: bool) -> None:
        """Codes of time, and what stands in for memory, pointer and object where there is none. 2.1 learns the mark of an
        absent object; 2.0 has none, which is the same as a vector of zeros that is not in the checkpoint."""
        self.maskmem_tpos_enc = nn.Parameter(_small_noise(num_maskmem, 1, 1, self.memory_width))
        self.no_mem_embed = nn.Parameter(_small_noise(1, 1, self.width))
        self.no_mem_pos_enc = nn.Parameter(_small_noise(1, 1, self.width))
        self.no_obj_ptr = nn.Parameter(_small_noise(1, self.width))
        if learned_absence:
            self.no_obj_embed_spatial = nn.Parameter(_small_noise(1, self.memory_width))
        else:
            self.register_buffer("no_obj_embed_spatial", torch.zeros(1, self.memory_width), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.no_mem_embed.device

    @property
    def grid(self) -> tuple[int, int]:
        """Cells that memory is read for, (rows, columns)."""
        return (self.image_size // self.image_encoder.stride, self.image_size // self.image_encoder.stride)

    @property
    def mask_size(self) -> tuple[int, int]:
        """(h, w) of mask logits."""
        return (MASKS_PER_CELL * self.grid[0], MASKS_PER_CELL * self.grid[1])

    @property
    def tokens_per_map(self) -> int:
        """Memory tokens of one encoded frame."""
        return self.memory_encoder.distiller.tokens_per_map(self.grid)

    def encode_image(self, images: Tensor, indices: Sequence[int] = (0,)) -> list[FrameFeatures]:
        """Normalised images (B, 3, S, S) -> features of B frames, named by ``indices``."""
        expected = (len(indices), 3, self.image_size, self.image_size)
        if tuple(images.shape) != expected:
            raise ValueError(f"expected normalised images of shape {expected}, got {tuple(images.shape)}")
        *high, coarse = self.runner("encode_image", self._encode, images.to(self.no_mem_embed.dtype))
        height, width = coarse.shape[-2:]
        pos = sine_tokens(height, width, self.width, coarse.device).to(coarse.dtype)
        low = coarse.flatten(2).transpose(1, 2)
        return [
            FrameFeatures(index=i, low=low[b], low_pos=pos, high=_finer_maps(high, b), grid=(height, width))
            for b, i in enumerate(indices)
        ]

    def _encode(self, images: Tensor) -> list[Tensor]:
        return self.image_encoder(images, heads=self.sam_mask_decoder.high_res_heads())

    def without_memory(self, features: FrameFeatures, rows: int = 1) -> Tensor:
        """Features of a frame that is decoded without memory, (rows, Q, C)."""
        return (features.low + self.no_mem_embed[0]).expand(rows, -1, -1)

    def attend(self, features: FrameFeatures, rows: RowBatch, usage: Usage = Usage.NONE) -> Attended:
        """Condition a frame on R rows of memory: (R, Q, C), and attention usage if asked for."""
        query_code = None if self.bank_time is None else self.bank_time.query
        steady = usage is Usage.NONE and self.memory_attention.operator.steady
        inputs = (features.low, features.low_pos, features.grid, rows, usage, query_code)
        attended = self.runner("attend", self.memory_attention, *inputs, steady=steady)
        if rows.sensory is None:
            return attended
        if self.sensory is None:
            raise ValueError("expected reads without a sensory state, got one; build with model.sensory_channels=64")
        return attended._replace(features=attended.features + self.sensory.inject(rows.sensory))

    def decode(
        self,
        conditioned: Tensor,
        features: FrameFeatures,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask_logits: Tensor | None = None,
        candidates: bool = True,
        keep_maps: bool = False,
    ) -> Decoded:
        """Masks of R rows of one frame.

        Args:
            conditioned: (R, Q, C).
            features: of the same frame, for its high-resolution maps.
            points: (R, N, 2) in input pixels.
            labels: (R, N): 0, 1 for points, 2 and 3 for box corners.
            mask_logits: (R, 1, h, w).
            candidates: three masks instead of one.
            keep_maps: also give the maps that sensory memory is updated from.
        """
        inputs = (conditioned, features.high, features.grid, points, labels, mask_logits, candidates, keep_maps)
        return self.runner("decode", self._decode, *inputs, steady=points is None and mask_logits is None)

    def _decode(
        self,
        conditioned: Tensor,
        high: tuple[Tensor, Tensor] | None,
        grid: tuple[int, int],
        points: Tensor | None,
        labels: Tensor | None,
        mask_logits: Tensor | None,
        candidates: bool,
        keep_maps: bool,
    ) -> Decoded:
        rows = conditioned.shape[0]
        image = conditioned.transpose(1, 2).unflatten(-1, grid)
        sparse, dense = embed_prompts(self, conditioned, grid, points, labels, mask_logits)
        out = self.sam_mask_decoder(
            image=image,
            image_pe=self.sam_prompt_encoder.dense_position().to(image.dtype),
            sparse=sparse,
            dense=dense,
            high_res=high and (high[0].expand(rows, -1, -1, -1), high[1].expand(rows, -1, -1, -1)),
            multimask=candidates,
        )
        return as_decoded(out, self.obj_ptr_proj(out.tokens), keep_maps=keep_maps)

    def mask_as_output(self, features: FrameFeatures, mask: Tensor) -> Decoded:
        """The mask (S, S) of 0 and 1 of a prompt as it is; the decoder only makes its object pointer.

        Whether the object is present is decided by the mask, not by the network.
        """
        return self.masks_as_output(features, mask.unsqueeze(0))

    def masks_as_output(self, features: FrameFeatures, masks: Tensor) -> Decoded:
        """The same for R masks (R, S, S)."""
        logits = (masks.unsqueeze(1).float() * 2 - 1) * PROMPT_LOGIT
        low = F.interpolate(logits, size=self.mask_size, mode="bilinear", antialias=True)
        prompt = self.mask_downsample(masks.unsqueeze(1).to(self.mask_downsample.weight.dtype))
        prompt = _resized(prompt, self.mask_size)
        unconditioned = features.low.expand(masks.shape[0], -1, -1)
        decoded = self.decode(unconditioned, features, mask_logits=prompt, candidates=False)
        pointers = self.gate_pointers(decoded.pointers, decoded.objectness > 0)
        objectness = torch.where(masks.flatten(1).any(1), PROMPT_LOGIT, -PROMPT_LOGIT)
        return Decoded(low, pointers, torch.ones(masks.shape[0], 1, device=low.device), objectness)

    def gate_pointers(self, pointers: Tensor, present: Tensor) -> Tensor:
        """Object pointers (R, ..., C) where ``present`` (R), the learned "no object" pointer elsewhere."""
        shape = (-1,) + (1,) * (pointers.ndim - 1)
        return torch.where(present.reshape(shape), pointers, self.no_obj_ptr[0].to(pointers.dtype))

    def memory_maps(self, features: FrameFeatures, logits: Tensor, *, binarize: Tensor, present: Tensor) -> Tensor:
        """Memory of R masks of one frame as maps (R, Cm, H, W).

        Args:
            features: of the frame.
            logits: (R, h, w) after the absent-object gate.
            binarize: (R) bool, masks to enter as 0 and 1 and not as probabilities.
            present: (R) bool, by the object score.
        """
        return self.runner(
            "encode_memory", self.make_memory_maps, features.low, features.grid, logits, binarize, present
        )

    def make_memory_maps(
        self, low: Tensor, grid: tuple[int, int], logits: Tensor, binarize: Tensor, present: Tensor
    ) -> Tensor:
        dtype = self.no_mem_embed.dtype
        large = F.interpolate(logits.unsqueeze(1).float(), size=(self.image_size,) * 2, mode="bilinear")
        mask = torch.where(binarize[:, None, None, None], (large > 0).float(), large.sigmoid())
        mask = _resized(mask * self.mem_enc_scale + self.mem_enc_bias, [MEMORY_MASK_PER_CELL * n for n in grid]).to(
            dtype
        )
        image = low.transpose(-1, -2).reshape(-1, self.width, *grid)
        maps = self.memory_encoder(image, mask)
        absent = (~present).to(maps.dtype)[:, None, None, None]
        return maps + absent * self.no_obj_embed_spatial[..., None, None]

    def slot_code(self, slots: Sequence[Slot], fractions: Tensor | None = None) -> Tensor:
        """Temporal codes, (len(slots), Cm); ``fractions`` (len(slots)) of the slots, if they are on the device already."""
        rows, merged_time = self.maskmem_tpos_enc.flatten(1), self.memory_encoder.distiller.merged_time
        oldest = max(len(rows) - 2, 0)
        is_merged = [not isinstance(s, Tensor) and s == MERGED_SLOT for s in slots]
        code = slot_rows(rows, [oldest if merged else s for merged, s in zip(is_merged, slots)], fractions)
        if merged_time is None or not any(is_merged):
            return code
        row_of_merged = rows[oldest] + merged_time
        return torch.stack([row_of_merged if merged else row for merged, row in zip(is_merged, code.unbind())])

    def order_code(self, orders: Sequence[int | None]) -> Tensor | None:
        """Codes of places in a bank, (len(orders), Cm), None where the model has none; ``orders`` of all items of a read."""
        return None if self.bank_time is None else self.bank_time.memory_code(orders)

    def pointer_code(self, offsets: Tensor) -> Tensor:
        """Temporal codes of object pointers at normalised ages ``offsets`` (N): (N, Cm)."""
        return self.obj_ptr_tpos_proj(offsets)


def embed_prompts(
    model: SAM2,
    conditioned: Tensor,
    grid: tuple[int, int],
    points: Tensor | None,
    labels: Tensor | None,
    mask_logits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Prompts of R rows as the mask decoder takes them; arguments as of ``SAM2.decode``.

    Returns:
        sparse (R, N, C).
        dense (R, C, H, W).
    """
    rows = conditioned.shape[0]
    if model.occupancy_head is not None and points is None and mask_logits is None:
        mask_logits = model.occupancy_head.mask_prompt(conditioned, grid)
    sparse, dense = model.sam_prompt_encoder(points, labels, mask_logits)
    return sparse.expand(rows, -1, -1), dense.expand(rows, -1, -1, -1)


def as_decoded(out: DecodedMasks, pointers: Tensor, *, keep_maps: bool = False) -> Decoded:
    """What a mask decoder proposes, with object pointers (R, M or 1, C) made of its tokens."""
    return Decoded(
        masks=out.masks.float(),
        pointers=pointers.expand(-1, out.masks.shape[1], -1),
        iou=out.iou.float(),
        objectness=out.object_logit.flatten().float(),
        maps=out.maps if keep_maps else None,
    )


def set_image_size(model: SAM2, image_size: int) -> None:
    """Have a network take images of another side from here on."""
    check_image_size(image_size, model.image_encoder.size_multiple)
    _check_memory_grid(model.memory_attention, model.memory_encoder, image_size // model.image_encoder.stride)
    model.image_size = image_size
    model.sam_prompt_encoder.resize(image_size, image_size // model.image_encoder.stride)


def _finer_maps(maps: Sequence[Tensor], number: int) -> tuple[Tensor, Tensor] | None:
    """Those of one picture of a batch, None where the image encoder has none."""
    if not maps:
        return None
    fine, middle = maps
    return fine[number], middle[number]


def check_image_size(image_size: int, multiple: int = 32) -> None:
    """Raises ValueError unless the network can take a square picture of this side."""
    if image_size < multiple or image_size % multiple:
        below = max(multiple, image_size // multiple * multiple)
        raise ValueError(
            f"expected image_size to be a positive multiple of {multiple}, got {image_size}; "
            f"try {below} or {below + multiple}"
        )


def _check_memory_grid(memory_attention: MemoryAttention, memory_encoder: MemoryEncoder, cells: int) -> None:
    """A distiller with a grid of its own takes maps of some sizes only; attention that turns keys by such a grid needs the
    distiller it was trained with."""
    distiller, side = memory_encoder.distiller, memory_attention.memory_grid
    distiller.tokens_per_map((cells, cells))
    if side is not None and distiller.side != side:
        raise ValueError(
            f"expected a distiller with {side} tokens along a side, by which this memory attention turns keys, got "
            f"{type(distiller).__name__}; the network's own (EdgeTAM's perceiver) cannot be replaced"
        )


def _check_sizes(image_size: int, num_maskmem: int, multiple: int) -> None:
    check_image_size(image_size, multiple)
    if num_maskmem < 1:
        raise ValueError(f"expected num_maskmem >= 1, got {num_maskmem}")


def _resized(masks: Tensor, size: Sequence[int]) -> Tensor:
    """(R, 1, h, w) -> (R, 1, *size), as it is where it has that size."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks.float(), size=tuple(size), mode="bilinear", antialias=True).to(masks.dtype)


def _small_noise(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.zeros(*shape), std=0.02)
