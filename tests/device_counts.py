"""Waits of the host, transfers and kernels of tracked frames on a simulated CUDA device, of the micro network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from helpers import encode_once, picture_key
from micro import SCORE_BIAS, blob, micro_config, micro_model, picture
from simulated_cuda import SimulatedCuda
from torch import Tensor

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

MORE_WAITS = {"diverse": 1, "template": 1, "sentry": 1}
"""Of each object: diverse compares the map just written where a pool is full; template and sentry ask the network."""


def configured(*overrides: str, device: str = "cuda", vos_optimized: bool = False) -> SAM2VideoPredictor:
    """The micro network with its lively weights, holes filled, built from its config and ``overrides``."""
    usual = ["tracker.fill_hole_area=8", "tracker.remove_region_area=4", "distiller_checkpoint=random"]
    extra = [*usual, *overrides]
    made = build_sam2_video_predictor(
        micro_config(), None, device=device, hydra_overrides_extra=extra, vos_optimized=vos_optimized
    )
    made.model.load_state_dict(micro_model().state_dict(), strict=False)
    shown(made.model)
    return made


def shown(model: SAM2) -> SAM2:
    """The network, changed so that it sees every object of ``objects`` on every frame, under a half of the picture: what
    policies do about a mask is done."""
    with torch.no_grad():
        model.get_parameter(SCORE_BIAS).add_(10)
    model.sam_mask_decoder.mask_bias = 0.4
    return model


def recalling(model: SAM2, memo: dict) -> SAM2:
    """The network, which encodes each picture once for all networks that share ``memo`` and have equal weights; what the device
    counts of it is the picture's transfer."""
    encode_once(model, memo, lambda x: (torch.is_autocast_enabled("cuda"), picture_key(getattr(x, "host", x))))
    return model


def objects(count: int) -> list[Prompt]:
    """Masks of ``count`` objects in the first picture: the three blobs, then shifted ones."""
    masks = [np.roll(blob(i % 3), (i // 3, 2 * (i // 3)), (0, 1)) for i in range(count)]
    return [Prompt(i, mask=mask) for i, mask in enumerate(masks)]


def stream(
    predictor: SAM2VideoPredictor,
    count: int,
    frames: int,
    within: Callable[[], AbstractContextManager] = nullcontext,
    before: Callable[[], object] = list,
) -> Tensor:
    """(T, N, H, W) logits on the CPU; ``before`` is called before every frame."""
    state, shown = predictor.init_state(), []
    for t in range(frames):
        before()
        with within():
            masks = predictor.track_frame(state, picture(t), objects(count) if t == 0 else ())[2]
        shown.append(masks[:, 0].float())
    before()
    return torch.stack([masks.cpu() for masks in shown])


class Count(NamedTuple):
    """Of one frame."""

    waits: int
    transfers: int
    kernels: int


def count_of(cuda: SimulatedCuda) -> Count:
    """Since it was last cleared."""
    return Count(len(cuda.waits), len(cuda.transfers), sum(cuda.launches.values()))


def counts(
    cuda: SimulatedCuda, predictor: SAM2VideoPredictor, count: int, frames: int
) -> tuple[Sequence[Count], Tensor]:
    """Of every frame, the first with its prompts; and the logits of all frames."""
    totals: list[Count] = []

    def take() -> None:
        totals.append(count_of(cuda))
        cuda.clear()

    masks = stream(predictor, count, frames, before=take)
    return totals[1:], masks
