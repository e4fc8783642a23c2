"""The four parts of the network as functions of named tensors alone, which is what is exported and what is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sam2_mem.model.attention_operators import Auto, Exact, LowDim, Memory, Packed, ReadOperator, ReadSize
from sam2_mem.model.rotary_attention import RotaryAttention
from sam2_mem.model.sam2 import SAM2
from sam2_mem.types import RowBatch

SAME_NUMBERS = (Exact, Auto, LowDim, Packed)
"""Operators that give the numbers of exact attention, which is what is exported."""

WEIGHTS = (
    "image_encoder.",
    "memory_attention.",
    "memory_encoder.mask_downsampler.",
    "memory_encoder.pix_feat_proj.",
    "memory_encoder.fuser.",
    "memory_encoder.out_proj.",
    "sam_mask_decoder.",
    "obj_ptr_proj.",
)
"""Prefixes of the weights that the parts hold; all others are the rest of the network."""


class Part(nn.Module):
    """One part: positional tensors in, a tuple of tensors out.

    Attributes:
        name: of its file.
        inputs: their names, in order; sizes that may change by the number of their dimension, with a name.
        outputs: their names.
    """

    name: ClassVar[str]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]

    def examples(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes, with two rows."""
        raise NotImplementedError


class ImageEncoderPart(Part):
    """``SAM2.encode_image`` without its position code: a normalised image (1, 3, S, S) -> maps (1, C, h, w) from fine to coarse."""

    name = "image_encoder"
    inputs: Mapping[str, Mapping[int, str]] = {"image": {}}

    def __init__(self, model: SAM2) -> None:
        super().__init__()
        self.encoder, self.heads, self.side = (
            model.image_encoder,
            model.sam_mask_decoder.high_res_heads(),
            model.image_size,
        )
        self.outputs = ("high_0", "high_1", "coarse") if self.heads else ("coarse",)

    def examples(self) -> tuple[Tensor, ...]:
        return (torch.randn(1, 3, self.side, self.side),)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(image, heads=self.heads))


class MemoryAttentionPart(Part):
    """``MemoryAttention`` for one frame and R rows of L tokens; also queries and keys of the layer whose attention is usage.

    ``low`` and ``low_pos`` (Q, C); ``feat`` and ``pos`` (R, L, Cm); ``xy`` (R, L, 2); ``gain`` and ``bias`` (R, L) ->
    ``features`` (R, Q, C), ``usage_query`` (1 or R, heads, Q, d), ``usage_key`` (R, heads, L, d).
    """

    name = "memory_attention"
    _row: ClassVar = {0: "rows", 1: "tokens"}
    inputs: Mapping[str, Mapping[int, str]] = {
        "low": {},
        "low_pos": {},
        "feat": _row,
        "pos": _row,
        "xy": _row,
        "gain": _row,
        "bias": _row,
    }
    outputs = ("features", "usage_query", "usage_key")

    def __init__(self, model: SAM2) -> None:
        super().__init__()
        self.attention = copy.copy(model.memory_attention)
        self.grid, self.width, self.memory_width = model.grid, model.width, model.memory_width
        self.query_code = None if model.bank_time is None else model.bank_time.query

    def examples(self) -> tuple[Tensor, ...]:
        (height, width), tokens = self.grid, 40
        image = torch.randn(2, height * width, self.width)
        memory = torch.randn(2, 2, tokens, self.memory_width)
        xy = torch.rand(2, tokens, 2) * torch.tensor([width, height])
        bias = torch.zeros(2, tokens)
        bias[1, tokens // 2 :] = float("-inf")
        return (*image, *memory, xy, torch.rand(2, tokens) + 0.5, bias)

    def forward(
        self, low: Tensor, low_pos: Tensor, feat: Tensor, pos: Tensor, xy: Tensor, gain: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        item = torch.zeros_like(bias, dtype=torch.long)
        rows = RowBatch(feat, pos, xy, gain, bias, item, num_items=1, lengths=())
        operator = _Recorded()
        self.attention.operator = operator
        features = self.attention(low, low_pos, self.grid, rows, query_code=self.query_code).features
        query, key = operator.calls[self.attention.usage_layer]
        return features, query, key


@dataclass(frozen=True, eq=False)
class _Recorded(ReadOperator):
    """Exact attention that notes its queries and keys, layer by layer."""

    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, attention: RotaryAttention, q: Tensor, memory: Memory) -> Tensor:
        k = attention.keys(memory.key, memory.rotation)
        self.calls.append((q, k))
        return attention(q.expand(memory.rows, -1, -1, -1), k, memory.value, memory.bias)

    def flops(self, size: ReadSize) -> int:
        return Exact().flops(size)


class MaskDecoderPart(Part):
    """All masks of R rows, the single answer first, and their object pointers.

    ``conditioned`` (R, Q, C), ``sparse`` (R, N, C) and ``dense`` (R, C, H, W) from ``embed_prompts``, and the fine maps
    of the image encoder, where there are any -> ``masks`` (R, 4, 4H, 4W), ``iou`` (R, 4), ``pointers`` (R, 4, C), ``objectness``
    (R, 1).
    """

    name = "mask_decoder"
    outputs = ("masks", "iou", "pointers", "objectness")
    inputs: Mapping[str, Mapping[int, str]] = {
        "conditioned": {0: "rows"},
        "sparse": {0: "rows", 1: "prompts"},
        "dense": {0: "rows"},
        "high_0": {},
        "high_1": {},
    }

    def __init__(self, model: SAM2) -> None:
        super().__init__()
        self.decoder, self.pointer = model.sam_mask_decoder, model.obj_ptr_proj
        self.grid, self.width = model.grid, model.width
        self.image_pe: Tensor
        self.register_buffer("image_pe", model.sam_prompt_encoder.dense_position(), persistent=False)
        if not self.decoder.high_res_heads():
            self.inputs = {name: sizes for name, sizes in type(self).inputs.items() if not name.startswith("high")}

    def examples(self) -> tuple[Tensor, ...]:
        (height, width), channels = self.grid, self.width
        conditioned, dense = torch.randn(2, height * width, channels), torch.randn(2, channels, height, width)
        fine = (
            torch.randn(1, channels // 8, 4 * height, 4 * width),
            torch.randn(1, channels // 4, 2 * height, 2 * width),
        )
        return (conditioned, torch.randn(2, 3, channels), dense, *(fine if len(self.inputs) > 3 else ()))

    def forward(self, conditioned: Tensor, sparse: Tensor, dense: Tensor, *high: Tensor) -> tuple[Tensor, ...]:
        image = conditioned.transpose(1, 2).unflatten(-1, self.grid)
        fine = [x.expand(conditioned.shape[0], -1, -1, -1) for x in high]
        out = self.decoder.propose(image, self.image_pe, sparse, dense, (fine[0], fine[1]) if fine else None)
        return out.masks, out.iou, self.pointer(out.tokens), out.object_logit


class MemoryEncoderPart(Part):
    """``SAM2.memory_maps``: ``low`` (Q, C), ``logits`` (R, 4H, 4W), ``binarize`` and ``present`` (R) bool -> ``maps`` (R, Cm, H, W)."""

    name = "memory_encoder"
    inputs: Mapping[str, Mapping[int, str]] = {
        "low": {},
        "logits": {0: "rows"},
        "binarize": {0: "rows"},
        "present": {0: "rows"},
    }
    outputs = ("maps",)

    def __init__(self, model: SAM2) -> None:
        super().__init__()
        self.model = model

    def examples(self) -> tuple[Tensor, ...]:
        height, width = self.model.grid
        flags = torch.tensor([[True, False], [False, True]])
        return (torch.randn(height * width, self.model.width), 10 * torch.randn(2, *self.model.mask_size), *flags)

    def forward(self, low: Tensor, logits: Tensor, binarize: Tensor, present: Tensor) -> tuple[Tensor]:
        return (self.model.make_memory_maps(low, self.model.grid, logits, binarize, present),)


PARTS: tuple[type[Part], ...] = (ImageEncoderPart, MemoryAttentionPart, MaskDecoderPart, MemoryEncoderPart)


def check_exportable(model: SAM2) -> None:
    """ValueError for a network that has what the parts do not hold."""
    operator = model.memory_attention.operator
    if not isinstance(operator, SAME_NUMBERS):
        names = ", ".join(kind.__name__ for kind in SAME_NUMBERS)
        raise ValueError(
            f"expected an attention operator out of {names}, which give the same numbers, got {type(operator).__name__}: it "
            "chooses tokens by their values, which is not exported; use attention=auto where the weights allow it"
        )
    if model.sensory is not None:
        raise ValueError(
            "expected a network without sensory memory (model.sensory_channels=0), got one with it: it reads maps inside the mask "
            "decoder, which are not exported"
        )
    _check_mode(model)


def _check_mode(model: SAM2) -> None:
    if model.training or model.no_mem_embed.dtype is not torch.float32:
        kind = "one in training mode" if model.training else str(model.no_mem_embed.dtype)
        raise ValueError(f"expected a network in float32 and for inference, got {kind}; build it with mode='eval'")
