"""What several test files need: random weights under which the network behaves, predictors, ways to run and compare."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from clips import Clip
from torch import Tensor, nn

from sam2_mem import SAM2VideoPredictor, build_sam2, build_sam2_video_predictor
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.types import FrameFeatures

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"
NANO_128 = str(Path(__file__).with_name("nano_v2_128.yaml"))
"""The packaged small model at 128 pixels."""

needs_reference = pytest.mark.skipif(
    find_spec("sam2") is None,
    reason="NOT TESTED AGAINST THE REFERENCE: package sam2 is missing; install it with `pip install sam2==1.1.0`",
)

State = dict[str, Tensor]


def opencv_regions(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and areas of 8-connected regions of (N, 1, H, W) bool, as the reference's CUDA extension gives them."""
    pairs = []
    for mask in masks[:, 0].numpy():
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
        pairs.append((labels, np.where(labels > 0, stats[:, cv2.CC_STAT_AREA][labels], 0)))
    return tuple(torch.from_numpy(np.stack(parts))[:, None] for parts in zip(*pairs))


# -- weights ----------------------------------------------------------------------------------------------------------

SCORE_HEAD = "sam_mask_decoder.pred_obj_score_head.layers.2."

PROBE = 11
SHARE = 0.15

LOUDER = {
    r"sam_mask_decoder\.output_hypernetworks_mlps\.\d\.layers\.2\..*": 10,
    r"sam_mask_decoder\.pred_obj_score_head\.layers\.2\..*": 20,
    r"memory_attention\.layers\.\d\.cross_attn_image\.out_proj\..*": 3,
    r"memory_encoder\.mask_downsampler\.encoder\.12\..*": 2.2,
    r"obj_ptr_proj\.layers\.2\..*": 4,
}


def lively_state(config: str = TINY, seed: int = 0) -> State:
    """Random weights with official names under which masks are neither empty nor full, memory matters, and object
    scores differ from frame to frame; :func:`centre_scores` lets them take both signs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_sam2(config, None, device="cpu", apply_postprocessing=False)
    return {name: _enlivened(name, value) for name, value in model.state_dict().items()}


def _enlivened(name: str, value: Tensor) -> Tensor:
    """Larger last layers, so that a part has a visible effect; the memory encoder's layer scale starts near zero."""
    if name.endswith("gamma"):
        return torch.full_like(value, 0.2)
    for pattern, gain in LOUDER.items():
        if re.fullmatch(pattern, name):
            return value * gain
    return value


def centre_scores(state: State, predictor: SAM2VideoPredictor, clip: Clip, video: Path | None = None) -> None:
    """Shift the bias of the object score, in ``state`` and in the predictor made from it, so that objects are present
    on most of the first frames of ``clip`` (or of ``video``, the same clip on disk)."""
    bias = predictor.model.get_parameter(f"{SCORE_HEAD}bias").data
    bias += 100.0
    session = Session(predictor, clip.frames if video is None else video)
    prompt_three(session, clip)
    results = list(predictor.propagate(session.state, 0, PROBE))[1:]
    scores = sorted(score.objectness for result in results for score in result.scores)
    bias -= scores[int(len(scores) * SHARE)]
    state[f"{SCORE_HEAD}bias"] = bias.clone()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Small tensors only lose time on more than one thread, much of it on a busy machine; large ones gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def return_memory() -> None:
    """Free what nobody refers to, and give it back to the system where the C library does that when asked (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def save_state(state: State, path: Path) -> Path:
    """Write weights as the official checkpoints are written."""
    torch.save({"model": state}, path)
    return path


# -- predictors -------------------------------------------------------------------------------------------------------


def make_predictor(
    weights: Path,
    *overrides: str,
    config: str = TINY,
    image_size: int = 128,
    policy: MemoryPolicy | str | None = None,
    postprocessing: bool = False,
) -> SAM2VideoPredictor:
    """Our predictor on the CPU."""
    return build_sam2_video_predictor(
        config,
        weights,
        device="cpu",
        apply_postprocessing=postprocessing,
        hydra_overrides_extra=[f"++model.image_size={image_size}", *overrides],
        memory_policy=policy,
    )


def with_policy(predictor: SAM2VideoPredictor, policy: MemoryPolicy, **tracker: Any) -> SAM2VideoPredictor:
    """The same network under another policy, and with some tracker settings changed."""
    settings = replace(predictor.tracker_settings, **tracker)
    return SAM2VideoPredictor(predictor.model, policy, tracker=settings, settings=predictor.settings)


def encode_once(model: nn.Module, memo: dict[Any, list[FrameFeatures]], key_of: Callable | None = None) -> None:
    """Let the image encoder, the slowest part and the same for every policy, see each picture once; ``key_of`` tells pictures
    apart. The model does not refer to itself by this: it is freed with its last user, without the garbage collector."""
    encode, network = type(model).encode_image, weakref.ref(model)

    def remembered(images: Tensor, indices: Sequence[int] = (0,)) -> list[FrameFeatures]:
        key = (key_of or picture_key)(images)
        if key not in memo:
            memo[key] = encode(network(), images, indices)
        return [replace(features, index=i) for features, i in zip(memo[key], indices)]

    model.encode_image = remembered


def picture_key(images: Tensor) -> bytes:
    return hashlib.blake2b(images.float().cpu().numpy().tobytes(), digest_size=16).digest()


# -- sessions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PublishedMask:
    """What a predictor gave out at one moment: ``logits`` (N, H, W) of the objects ``ids`` on ``frame``."""

    frame: int
    ids: tuple[int, ...]
    logits: Tensor

    def of(self, obj_id: int) -> Tensor:
        return self.logits[self.ids.index(obj_id)]


class Session:
    """A predictor, ours or the reference, on one video; everything it gives out is kept in ``shown``."""

    def __init__(self, predictor: Any, video: Any) -> None:
        self.predictor = predictor
        self.state = predictor.init_state(str(video) if isinstance(video, Path) else video)
        self.shown: list[PublishedMask] = []

    def _note(self, given: tuple[int, Sequence[int], Tensor]) -> PublishedMask:
        frame, ids, masks = given
        self.shown.append(PublishedMask(frame, tuple(ids), masks[:, 0].float().clone()))
        return self.shown[-1]

    def mask(self, frame: int, obj_id: int, mask: np.ndarray) -> PublishedMask:
        return self._note(self.predictor.add_new_mask(self.state, frame, obj_id, mask))

    def points(
        self, frame: int, obj_id: int, *points: Sequence[float], labels: Sequence[int] = (), more: bool = False
    ) -> PublishedMask:
        labels = np.array(labels or [1] * len(points), np.int32)
        return self._note(
            self.predictor.add_new_points_or_box(
                self.state, frame, obj_id, np.array(points, np.float32), labels, clear_old_points=not more
            )
        )

    def box(self, frame: int, obj_id: int, box: Sequence[float]) -> PublishedMask:
        corners = np.array(box, np.float32)
        return self._note(self.predictor.add_new_points_or_box(self.state, frame, obj_id, box=corners))

    def track(self, start: int | None = None, most: int | None = None, reverse: bool = False) -> list[PublishedMask]:
        passes = self.predictor.propagate_in_video(self.state, start, most, reverse)
        return [self._note(given) for given in passes]


def prompt_three(session: Session, clip: Clip, frame: int = 0) -> None:
    """Object 1 by its mask, object 2 by a click, object 3 by a box."""
    session.mask(frame, 1, clip.mask(1, frame))
    session.points(frame, 2, clip.centre(2, frame))
    session.box(frame, 3, clip.box(3, frame))


# -- comparison -------------------------------------------------------------------------------------------------------


def worst(a: Sequence[PublishedMask], b: Sequence[PublishedMask]) -> float:
    """Largest difference of logits; the two runs must have shown the same objects on the same frames."""
    assert len(a) == len(b) > 0
    assert [(x.frame, x.ids) for x in a] == [(y.frame, y.ids) for y in b]
    return max((x.logits - y.logits).abs().max().item() for x, y in zip(a, b))


def worst_iou(a: Sequence[PublishedMask], b: Sequence[PublishedMask]) -> float:
    """Smallest IoU of an object on a frame; two empty masks agree."""
    return min(_iou(m, n) for x, y in zip(a, b, strict=True) for m, n in zip(x.logits > 0, y.logits > 0))


def _iou(a: Tensor, b: Tensor) -> float:
    union = (a | b).sum().item()
    return 1.0 if union == 0 else (a & b).sum().item() / union


def only(shown: Sequence[PublishedMask], *ids: int) -> list[PublishedMask]:
    """The same run as if only these objects had been shown."""
    return [PublishedMask(s.frame, ids, torch.stack([s.of(i) for i in ids])) for s in shown if set(ids) <= set(s.ids)]
