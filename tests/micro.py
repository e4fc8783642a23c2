"""A micro SAM 2.1 network for quick tests: 64 x 64 pictures, a 4 x 4 grid, width 32, memory width 16.

One object costs about 5 ms a frame.

The weights are random and adjusted so that masks are neither empty nor full, memory matters, and objects come and go.
Everything here is cached and shared: do not change a model's weights, build your own with :func:`new_model`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from sam2_mem.build_sam import build_policy, build_sam2
from sam2_mem.config import compose, policy_names
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import FrameFeatures, FrameResult
from sam2_mem.video import normalize, to_model_input

SIDE = 64
TOKENS = (SIDE // 16) ** 2
PATH = 509
"""Frames after which the moving blobs of :func:`pictures` are back where they were: a prime, so that no stride fits."""

SMALL = (
    f"model.image_size={SIDE}",
    "model.image_encoder.neck.d_model=32",
    "model.memory_attention.width=32",
    "model.memory_attention.memory_width=16",
    "model.memory_attention.num_layers=2",
    "model.memory_attention.feedforward=64",
    "model.memory_attention.dropout=0",
    "model.memory_encoder.width=32",
    "model.memory_encoder.memory_width=16",
    "model.memory_encoder.fuser_layers=1",
    "model.memory_encoder.layer_scale=0.2",
    "model.pointer_time.width=32",
    "model.pointer_time.memory_width=16",
    "++model.decoder_mlp_width=64",
    "++model.decoder_iou_width=32",
)
NETWORKS = {
    "sam2.1": (
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        "model.image_encoder.trunk.embed_dim=16",
        "model.image_encoder.trunk.stages=[1,1,1,1]",
        "model.image_encoder.trunk.global_att_blocks=[2]",
        "model.image_encoder.trunk.window_spec=[8,4,4,2]",
        "model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    ),
    "edgetam": (
        "configs/edgetam/edgetam.yaml",
        "model.image_encoder.trunk.widths=[8,16,24,32]",
        "model.image_encoder.trunk.depths=[1,1,1,1]",
        "model.image_encoder.neck.backbone_channel_list=[32,24,16,8]",
        "model.memory_attention.memory_grid=2",
        "distiller.global_latents=4",
        "distiller.window_latents=4",
    ),
    "efficienttam": (
        "configs/efficienttam/efficienttam_ti_1.yaml",
        "model.image_encoder.trunk.width=16",
        "model.image_encoder.trunk.depth=2",
        "model.image_encoder.trunk.num_heads=1",
        "model.image_encoder.trunk.window=3",
        "model.image_encoder.trunk.global_blocks=[1]",
        "model.image_encoder.neck.backbone_channel_list=[16]",
    ),
    "sam3": (
        "configs/sam3/sam3_tracker.yaml",
        "model.image_size=56",
        "model.image_encoder.trunk.width=16",
        "model.image_encoder.trunk.depth=2",
        "model.image_encoder.trunk.num_heads=1",
        "model.image_encoder.trunk.window=3",
        "model.image_encoder.trunk.global_blocks=[1]",
        "++model.image_encoder.trunk.trained_grid=3",
        "model.image_encoder.neck.backbone_channel_list=[16]",
    ),
}
"""A config and overrides that make its network as small as ``SMALL`` says."""
OVERRIDES = (*SMALL, *NETWORKS["sam2.1"][1:])
BATCH = 32
"""Pictures that are encoded together."""

SCORE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
SCORE_SHIFT = {"sam2.1": 12.1875, "edgetam": 30.9375, "efficienttam": -0.9375, "sam3": 21.5625}
"""What is added to the bias of the object score, so that objects come and go under ``sam2.1`` and ``efficienttam``; between
this and 1 more, the other two go from :func:`presence` 0 to 1. Found by bisection, as an absent object leaves another
memory than a present one."""


# -- the network ------------------------------------------------------------------------------------------------------


_chosen = ["sam2.1"]
"""The network of NETWORKS that this module's functions are about, last."""


@contextmanager
def micro_network(name: str) -> Iterator[None]:
    """Within this, the micro network is of another family's structure."""
    _chosen.append(name)
    try:
        yield
    finally:
        _chosen.pop()


@lru_cache
def _composed(network: str) -> DictConfig:
    config, *overrides = NETWORKS[network]
    return compose(config, [*SMALL, *overrides])


def micro_config() -> DictConfig:
    """A composed config, as ``build_sam2_video_predictor`` takes it: a copy, to change."""
    return copy.deepcopy(_composed(_chosen[-1]))


def new_model() -> SAM2:
    """The micro network of one's own, to change."""
    return copy.deepcopy(micro_model())


def micro_model() -> SAM2:
    """The micro network with lively random weights, shared."""
    return _model(_chosen[-1])


@lru_cache
def _model(network: str) -> SAM2:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = build_sam2(micro_config(), None, device="cpu", apply_postprocessing=False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(_enlivened(name, value))
        model.get_parameter(SCORE_BIAS).add_(SCORE_SHIFT[network])
    return model.requires_grad_(False)


LOUDER = (
    ("output_hypernetworks_mlps", "layers.2.", 10.0),
    ("iou_prediction_head", "layers.2.", 20.0),
    ("pred_obj_score_head", "layers.2.", 100.0),
    ("obj_ptr_proj", "layers.2.", 20.0),
    ("mask_downsampler", "encoder.12.", 20.0),
    ("cross_attn_image", "out_proj.", 6.0),
    ("maskmem_tpos_enc", "", 20.0),
    ("no_obj_", "", 20.0),
)
"""(part, layer, factor): what makes random weights behave. Larger factors make tracking chaotic, so that rounding
decides."""


def _enlivened(name: str, value: Tensor) -> Tensor:
    for part, layer, factor in LOUDER:
        if part in name and layer in name:
            return value * factor
    return value


def presence(model: SAM2, frames: int = 64) -> float:
    """Share of frames on which the micro network sees two objects that move."""
    prompts = {0: [mask_prompt(1), mask_prompt(2, 0, 1)]}
    results = run(micro_tracker("fifo", model=model), encode(model, pictures(frames)), prompts)
    shown = [score.present for result in results[1:] for score in result.scores]
    return sum(shown) / len(shown)


@lru_cache
def micro_weights(folder: Path) -> Path:
    """The shared network's weights as a checkpoint in ``folder``."""
    path = folder / "micro.pt"
    torch.save({"model": micro_model().state_dict()}, path)
    return path


def micro_predictor(policy: MemoryPolicy | str = "fifo", **tracker: Any) -> SAM2VideoPredictor:
    """A video predictor on the shared network; ``tracker``: fields of ``TrackerSettings``."""
    return SAM2VideoPredictor(micro_model(), build_policy(policy), tracker=TrackerSettings(**tracker))


def micro_tracker(
    policy: MemoryPolicy | str = "fifo", *, model: SAM2 | None = None, num_frames: int | None = None, **settings: Any
) -> Tracker:
    """A tracker on the shared network; ``settings``: fields of ``TrackerSettings``."""
    model = micro_model() if model is None else model
    return Tracker(model, build_policy(policy), settings=TrackerSettings(**settings), num_frames=num_frames)


# -- policies ---------------------------------------------------------------------------------------------------------

POLICIES = tuple(n for n in policy_names() if not any(n.startswith(f"{base}_") for base in policy_names()))
"""Names of the policies; the other configs, as ``rmem_paper``, differ from one of them in numbers only."""


ALL_ONLY = (pytest.mark.full, pytest.mark.extended)


def in_tiers(names: Iterable[str], quick: Iterable[str], full: Iterable[str] | None = None) -> list[Any]:
    """Parameters of a test: all ``names``, of which the quick tier runs those that are ``quick``, the full tier those that are
    ``full`` as well (None: all), and `make test-all` the rest."""
    marks = {name: (pytest.mark.full,) if full is None or name in full else ALL_ONLY for name in names}
    return [name if name in quick else pytest.param(name, marks=marks[name]) for name in names]


REPRESENTATIVE = ("fifo", "sam2long", "xmem")
"""Policies that differ most in what they hold and read."""


def repeated(names: Iterable[str]) -> list[Any]:
    """Parameters of a test of the full tier: all ``names``, those that are not ``REPRESENTATIVE`` in `make test-all` only."""
    return [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.extended) for name in names]


# -- pictures and prompts ---------------------------------------------------------------------------------------------


def picture(index: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(H, W, 3) uint8: three coloured blobs that wander over a striped ground in changing light."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn = 2 * np.pi * index / PATH
    light = 0.7 + 0.3 * np.cos(29 * turn)
    image = np.stack([40 + 20 * np.sin((x + y) / 5 + 7 * turn), 60 + 20 * np.cos(x / 7), 70 + 0.5 * y], axis=-1)
    for number in range(3):
        image[_inside(number, turn, x / width, y / height)] = (
            90 + 60 * (number == 0),
            80 + 80 * (number == 1),
            200 - 70 * number,
        )
    return (image * light).clip(0, 255).astype(np.uint8)


def _inside(number: int, turn: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where blob ``number`` is, on coordinates in 0..1."""
    centre_x = 0.5 + 0.3 * np.sin((23 + 4 * number) * turn + 2.1 * number)
    centre_y = 0.5 + 0.3 * np.cos((17 + 6 * number) * turn + 1.3 * number)
    return (x - centre_x) ** 2 + (y - centre_y) ** 2 < (0.16 + 0.03 * number) ** 2


def blob(number: int, index: int = 0, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """(H, W) bool, the place of blob ``number`` (0..2) in picture ``index``."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return _inside(number, 2 * np.pi * index / PATH, x / width, y / height)


def pictures(count: int, height: int = SIDE, width: int = SIDE) -> list[np.ndarray]:
    return [picture(i, height, width) for i in range(count)]


def mask_prompt(obj_id: int, frame: int = 0, number: int = 0) -> Prompt:
    return Prompt(obj_id=obj_id, mask=blob(number, frame))


def empty_prompt(obj_id: int) -> Prompt:
    """ "The object is not here"."""
    return Prompt(obj_id=obj_id, mask=np.zeros((SIDE, SIDE), bool))


def click_prompt(obj_id: int, frame: int = 0, number: int = 0) -> Prompt:
    y, x = np.nonzero(blob(number, frame))
    return Prompt(obj_id=obj_id, points=[[float(x.mean()), float(y.mean())]], labels=[1], size=(SIDE, SIDE))


@torch.no_grad()
def encode(model: SAM2, images: list[np.ndarray]) -> list[FrameFeatures]:
    """Features of pictures, numbered from 0."""
    result: list[FrameFeatures] = []
    for start in range(0, len(images), BATCH):
        part = torch.stack([to_model_input(image, model.image_size) for image in images[start : start + BATCH]])
        batch = model.encode_image(normalize(part, model.device), range(start, start + len(part)))
        result += [replace(f, low=f.low.clone(), high=f.high and tuple(map(torch.clone, f.high))) for f in batch]
    return result


@lru_cache
def _features_of_part(network: str, part: int) -> list[FrameFeatures]:
    """Features of ``BATCH`` pictures under the shared network, encoded once."""
    first = part * BATCH
    return encode(micro_model(), [picture(i) for i in range(first, min(first + BATCH, PATH))])


def features_at(index: int) -> FrameFeatures:
    """Features, under the shared network, of any frame of the endless video that repeats :func:`pictures` every
    ``PATH`` frames."""
    part, offset = divmod(index % PATH, BATCH)
    return replace(_features_of_part(_chosen[-1], part)[offset], index=index)


def micro_features(count: int) -> tuple[FrameFeatures, ...]:
    """Features of the first pictures under the shared network."""
    return tuple(features_at(i) for i in range(count))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For test files that import it: tensors of this size only lose time on more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- running ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run(
    tracker: Tracker,
    features: list[FrameFeatures] | tuple[FrameFeatures, ...],
    prompts: dict[int, list[Prompt]],
    *,
    reverse: bool = False,
) -> list[FrameResult]:
    """Step through ``features`` in the order given, with ``prompts`` by frame index."""
    return [tracker.step(f, prompts.get(f.index, []), reverse=reverse) for f in features]
