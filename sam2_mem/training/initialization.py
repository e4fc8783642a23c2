"""Initial weights from which a small network learns to track in minutes rather than days.

Random cross-attention has to discover that memory and image share a space. Here it starts as appearance matching: keys
and queries are projected alike, memory starts as the image features themselves plus a code of the mask, and a constant
bias becomes "look at the same position" by rotary encoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sam2_mem._moved import renamed
from sam2_mem.model.sam2 import SAM2


@dataclass(frozen=True, kw_only=True)
class Initialization:
    """How random weights are changed before training.

    Attributes:
        matching: start as appearance matching; if False, nothing is changed.
        gain: factor on the orthogonal query and key projections.
        location: bias of queries and keys.
        present: bias of the object score.
        mask_gain: factor on the last mask layer.
    """

    matching: bool = True
    gain: float = 1.5
    location: float = 1.0
    present: float = 2.0
    mask_gain: float = 1.0


@torch.no_grad()
def initialize_weights(model: SAM2, settings: Initialization, generator: torch.Generator) -> None:
    """Change the random weights of ``model`` in place."""
    if not settings.matching:
        return
    if model.width != model.memory_width:
        raise ValueError(
            f"expected equal widths of model and memory to start as matching, got {model.width} and "
            f"{model.memory_width}; set start.matching=false"
        )
    network: Any = model  # torch does not type the attributes of modules
    for layer in network.memory_attention.layers:
        attention = layer.cross_attn_image
        projection = torch.empty_like(attention.q_proj.weight)
        nn.init.orthogonal_(projection, gain=settings.gain, generator=generator)
        for linear in (attention.q_proj, attention.k_proj):
            linear.weight.copy_(projection)
            linear.bias.fill_(settings.location)
    nn.init.dirac_(network.memory_encoder.pix_feat_proj.weight)
    nn.init.zeros_(network.memory_encoder.pix_feat_proj.bias)
    last = network.sam_mask_decoder.pred_obj_score_head.layers[-1]
    last.bias.fill_(settings.present)
    for head in network.sam_mask_decoder.output_hypernetworks_mlps:
        head.layers[-1].weight.mul_(settings.mask_gain)


__getattr__ = renamed(__name__)
