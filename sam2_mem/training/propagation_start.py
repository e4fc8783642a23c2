"""A start as label propagation, for networks with a trained trunk: before the first step, memory attention already carries
masks from frame to frame along the similarity of the trunk's features.

Of the width, ``features`` channels hold principal components of the trunk's coarse map, and the others a code of the mask,
which is all that memory attention reads and writes. The occupancy head is then fitted in closed form.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.occupancy import OccupancyHead
from sam2_mem.model.sam2 import SAM2
from sam2_mem.training.clips import ClipBatch
from sam2_mem.training.joint_rollout import JointRollout, encode_clips, track
from sam2_mem.training.noise import MemoryNoise

logger = logging.getLogger(__name__)

TARGET = 4.0
"""Logits of covered and of uncovered cells that the occupancy head is fitted to."""
MAX_BALANCE = 8.0
"""Largest weight of a covered cell in that fit."""


@dataclass(frozen=True, kw_only=True)
class PropagationStart:
    """How random weights behind a trained trunk are set before training.

    Attributes:
        features: channels of the image; the others of the width hold the mask.
        deviation: standard deviation of those channels.
        group_weights: of the groups of channels of the trunk's coarse map, ``group_sizes``.
        group_sizes: channels of each group.
        location: bias of queries and keys, which rotary encoding turns into "look at the same position".
        present: bias of the object score.
        batches: batches of clips that the occupancy head is fitted to.
        ridge: of that fit.
    """

    features: int = 48
    deviation: float = 1.5
    group_sizes: Sequence[int] = (80, 112, 160)
    group_weights: Sequence[float] = (0.7, 1.0, 0.8)
    location: float = 0.5
    present: float = 2.0
    batches: int = 25
    ridge: float = 10.0

    def __post_init__(self) -> None:
        if len(self.group_sizes) != len(self.group_weights) or self.batches < 1:
            raise ValueError(
                "expected one weight per group of channels and at least one batch; see group_sizes, batches"
            )


@torch.no_grad()
def start_as_propagation(model: SAM2, images: Tensor, settings: PropagationStart, generator: torch.Generator) -> None:
    """Change the random weights of ``model`` in place.

    Args:
        model: a network with equal widths of model and memory.
        images: (N, 3, S, S) normalised, some tens.
        settings: see there.
        generator: on the CPU.
    """
    network: Any = model  # torch does not type the attributes of modules
    if model.width != model.memory_width or not 0 < settings.features < model.width:
        raise ValueError(
            f"expected equal widths of model and memory, and fewer features, got {model.width}, {model.memory_width} and "
            f"{settings.features}"
        )
    *skips, coarse = network.image_encoder.trunk(images)
    neck = network.image_encoder.neck.convs
    _project_components(neck[0].conv, coarse, settings)
    for level, skip in zip(reversed(neck), skips):
        _standardise(level.conv, skip)
    for layer in network.memory_attention.layers:
        _propagate(layer, settings, generator)
    _separate_mask(network.memory_encoder, settings.features)
    _match_prompts(network.sam_mask_decoder, generator)
    network.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(settings.present)


def _project_components(conv: nn.Conv2d, coarse: Tensor, settings: PropagationStart) -> None:
    """Principal components of the coarse map, whitened by group, in the first channels; nothing in the others."""
    cells = coarse.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = cells.mean(0)
    weight = torch.ones_like(mean)
    start = 0
    for size, share in zip(settings.group_sizes, settings.group_weights, strict=True):
        group = slice(start, start + size)
        weight[group] = share / (cells[:, group] - mean[group]).pow(2).sum(1).mean().sqrt()
        start += size
    if start != len(mean):
        raise ValueError(f"expected group_sizes that add up to the {len(mean)} channels of the trunk, got {start}")
    centred = (cells - mean) * weight
    spread = (centred.T @ centred).cpu()
    components = torch.linalg.eigh(spread).eigenvectors.T.flip(0)[: settings.features].to(centred.device)
    scale = settings.deviation / (centred @ components.T).pow(2).mean().sqrt()
    projection = components * weight * scale
    conv.weight.zero_()
    conv.bias.zero_()  # type: ignore[union-attr]
    conv.weight[: settings.features] = projection[:, :, None, None].to(conv.weight)
    conv.bias[: settings.features] = -(projection @ mean).to(conv.weight)  # type: ignore[index]


def _standardise(conv: nn.Conv2d, skip: Tensor) -> None:
    """Make what a random projection gives as large as for maps of mean 0 and deviation 1."""
    conv.weight.div_(skip.std())
    conv.bias.copy_(-conv.weight[:, :, 0, 0] @ skip.mean((0, 2, 3)))  # type: ignore[union-attr]


def _propagate(layer: Any, settings: PropagationStart, generator: torch.Generator) -> None:
    """Queries and keys read the image channels alike, values are the mask channels; all else is small."""
    attention, features = layer.cross_attn_image, settings.features
    projection = nn.init.orthogonal_(torch.empty(attention.q_proj.out_features, features), generator=generator)
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight.zero_()
        linear.weight[:, :features] = projection.to(linear.weight)
        linear.bias.fill_(settings.location)
    _identity(attention.v_proj)
    _identity(attention.out_proj)
    attention.out_proj.weight[:, :features] = 0
    for linear in (layer.self_attn.out_proj, layer.linear2):
        linear.weight.mul_(0.1)
        linear.bias.zero_()


def _separate_mask(encoder: Any, features: int) -> None:
    """The image enters memory as it is, the mask in the channels behind ``features``."""
    nn.init.dirac_(encoder.pix_feat_proj.weight)
    nn.init.zeros_(encoder.pix_feat_proj.bias)
    last = encoder.mask_downsampler.encoder[-1]
    last.weight[:features] = 0
    last.bias[:features] = 0
    last.weight[features:].mul_(2.0)


def _match_prompts(decoder: Any, generator: torch.Generator) -> None:
    """Equal queries and keys, values that come out as they went in; weaker skip maps, which would drown the coarse one."""
    for head in (decoder.conv_s0, decoder.conv_s1):
        head.weight.mul_(0.5)
        head.bias.zero_()
    transformer = decoder.transformer
    for layer in transformer.layers:
        _match(layer.self_attn, 0.7, generator)
        _identity(layer.self_attn.v_proj)
        _identity(layer.self_attn.out_proj)
    crossing = [layer.cross_attn_token_to_image for layer in transformer.layers]
    crossing += [transformer.final_attn_token_to_image, *(x.cross_attn_image_to_token for x in transformer.layers)]
    for attention in crossing:
        _match(attention, 2.0, generator)
        value = nn.init.orthogonal_(torch.empty(attention.v_proj.weight.shape), generator=generator)
        attention.v_proj.weight.copy_(value)
        attention.out_proj.weight.copy_(value.T)
        attention.v_proj.bias.zero_()
        attention.out_proj.bias.zero_()


def _match(attention: Any, gain: float, generator: torch.Generator) -> None:
    projection = nn.init.orthogonal_(torch.empty(attention.q_proj.weight.shape), gain=gain, generator=generator)
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight.copy_(projection)
        linear.bias.zero_()


def _identity(linear: nn.Linear) -> None:
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)


@torch.no_grad()
def fit_occupancy(model: SAM2, head: OccupancyHead, batches: Iterable[ClipBatch], settings: PropagationStart) -> float:
    """Fit the head by ridge regression to memory-conditioned features, with true masks in memory; returns the IoU that it
    then has on the cells of those batches."""
    features, shares = [], []
    for number, batch in enumerate(batches):
        rng, frames = np.random.default_rng(number), encode_clips(model, batch.images)
        exact = JointRollout(noise=MemoryNoise(truth=1.0))
        for prediction in track(model, frames, batch.truth, batch.clip_of, exact, rng):
            features.append(prediction.conditioned.flatten(0, 1))
            share = F.adaptive_avg_pool2d(batch.truth[:, prediction.frame].unsqueeze(1), frames[0].grid)
            shares.append(share.flatten())
    x, y = torch.cat(features).double(), torch.cat(shares).double()
    x = F.pad(x, (0, 1), value=1.0)
    covered = (y > 0.3).double()
    balance = 1 + covered * ((1 / covered.mean()).clamp(max=MAX_BALANCE) - 1)
    weighted = (x * balance[:, None]).T
    penalty = settings.ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    target = weighted @ ((2 * y - 1) * TARGET)
    solution = torch.linalg.solve((weighted @ x + penalty).cpu(), target.cpu()).to(x.device)
    head.linear.weight.copy_(solution[None, :-1])
    head.linear.bias.copy_(solution[-1:])
    predicted, real = x @ solution > 0, y > 0.5
    iou = float((predicted & real).sum() / (predicted | real).sum().clamp(min=1))
    logger.info("occupancy before the first step: IoU %.3f on %d cells", iou, len(y))
    return iou
