"""How well a network tracks clips with exact truth, beside what needs no network: copying the first mask, optical flow.

The scores: J (intersection over union) on the frames after the first where an object is visible, absence noticed and
false alarms, whether an object is found again, drift on a still video, and J with less memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from sam2_mem._moved import renamed
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.synthetic.generator import make_clip
from sam2_mem.tracking.tracker import TrackerSettings
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.training.clips import Clip, visible_objects
from sam2_mem.types import FrameContext, MemoryRead

FOUND, SETTLE = 0.5, (1, 6)  # found again: mean J above FOUND over these frames after a return
ABSENCE = 5  # frames without the object that make a return
SEED = 10_000_000  # of held-out clips; training clips have other generators

Method = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(frames (T, H, W, 3) uint8, first masks (N, H, W) bool) -> masks (T, N, H, W) bool."""


class NetworkMethod:
    """A network with a memory policy, as ``SAM2VideoPredictor`` runs it frame by frame."""

    def __init__(self, model: SAM2, policy: MemoryPolicy, *, tracker: TrackerSettings | None = None) -> None:
        self.predictor = SAM2VideoPredictor(model.eval(), policy, tracker=tracker)

    def __call__(self, frames: np.ndarray, first: np.ndarray) -> np.ndarray:
        state = self.predictor.init_state()
        prompts = [Prompt(number, mask=mask) for number, mask in enumerate(first)]
        result = []
        for index, image in enumerate(frames):
            _, _, logits = self.predictor.track_frame(state, image, prompts if index == 0 else ())
            result.append((logits[:, 0] > 0).cpu().numpy())
        return np.stack(result)


def copy_first(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The first masks on every frame."""
    return np.broadcast_to(first, (len(frames), *first.shape))


def follow_flow(frames: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The first masks moved from frame to frame by OpenCV's DIS optical flow."""
    flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # its type forbids calc(..., None)
    grey = [cv2.cvtColor(np.ascontiguousarray(f), cv2.COLOR_RGB2GRAY) for f in frames]
    height, width = first.shape[1:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    masks = [m.astype(np.float32) for m in first]
    result = [first]
    for previous, current in pairwise(grey):
        back = flow.calc(current, previous, None)
        masks = [cv2.remap(m, x + back[..., 0], y + back[..., 1], cv2.INTER_LINEAR) for m in masks]
        result.append(np.stack(masks) > 0.5)
    return np.stack(result)


@dataclass(frozen=True, kw_only=True)
class PartialFIFO(FIFO):
    """FIFO that reads less than it holds, to measure the use of memory.

    Attributes:
        first: the first frame is read.
        previous: tracked frames are read; without ``first`` the frame before only.
    """

    first: bool = True
    previous: bool = True

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        if self.first and self.previous:
            return super().read(state, frame)
        if self.first:
            return super().read(Bank(prompts=state.prompts), frame)
        last = max((*state.prompts, *state.entries), key=lambda e: e.frame)
        return super().read(Bank(prompts=(last,)) if last.is_prompt else Bank(entries=(last,)), frame)


class Outcome(NamedTuple):
    """One object on frames 1..T-1, (T-1) each: ``iou``, ``visible`` in truth, ``predicted`` not empty."""

    iou: np.ndarray
    visible: np.ndarray
    predicted: np.ndarray


def compare(masks: np.ndarray, truth: np.ndarray) -> list[Outcome]:
    """Masks and truth (T, N, H, W) bool -> one outcome per object."""
    result = []
    for number in range(truth.shape[1]):
        predicted, real = masks[1:, number], truth[1:, number]
        union = (predicted | real).sum((1, 2))
        iou = np.where(union == 0, 1.0, (predicted & real).sum((1, 2)) / np.maximum(union, 1))
        result.append(Outcome(iou, np.any(real, (1, 2)), np.any(predicted, (1, 2))))
    return result


class Scores(NamedTuple):
    """Means; nan where there was no case.

    Attributes:
        objects: number of objects.
        j: J on visible frames, mean over objects.
        last: J on the last ten visible frames, mean over objects.
        noticed: share of absent frames with an empty mask.
        alarms: share of visible frames with an empty mask.
        found: share of returns after an absence on which the object was found.
        returns: number of returns.
    """

    objects: int
    j: float
    last: float
    noticed: float
    alarms: float
    found: float
    returns: int


def summarise(outcomes: Sequence[Outcome]) -> Scores:
    """Scores over objects."""
    hits = [hit for o in outcomes for hit in returns(o)]
    ever_visible = [o for o in outcomes if o.visible.any()]
    visible, predicted = (np.concatenate([getattr(o, k) for o in outcomes]) for k in ("visible", "predicted"))
    return Scores(
        objects=len(outcomes),
        j=_mean([o.iou[o.visible].mean() for o in ever_visible]),
        last=_mean([o.iou[o.visible][-10:].mean() for o in ever_visible]),
        noticed=_mean(~predicted[~visible]),
        alarms=_mean(~predicted[visible]),
        found=_mean(hits),
        returns=len(hits),
    )


def returns(outcome: Outcome) -> list[bool]:
    """For every return after ``ABSENCE`` frames of absence that lasts long enough to tell: was the object found?"""
    result, absent = [], 0
    for t, visible in enumerate(outcome.visible):
        if visible and absent >= ABSENCE:
            after = slice(t + SETTLE[0], t + SETTLE[1])
            if outcome.visible[t : t + SETTLE[1]].all() and t + SETTLE[1] <= len(outcome.visible):
                result.append(bool(outcome.iou[after].mean() > FOUND))
        absent = 0 if visible else absent + 1
    return result


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


# -- clips ----------------------------------------------------------------------------------------------------------


def held_out(level: str, count: int, *, num_frames: int = 60, size: int = 128, first_seed: int = SEED) -> list[Clip]:
    """Procedural clips that training has not seen, at the frame rate of the generator."""
    clips = []
    for seed in range(first_seed, first_seed + count):
        video = make_clip(seed, level=level, num_frames=num_frames, height=size, width=size)
        frames = [video.frame(t) for t in range(num_frames)]
        clips.append(Clip(np.stack([f.image for f in frames]), np.stack([f.masks for f in frames])))
    return clips


def still(clip: Clip, length: int) -> Clip:
    """The first frame, ``length`` times."""
    return Clip(np.repeat(clip.frames[:1], length, 0), np.repeat(clip.ids[:1], length, 0))


def curtained(clip: Clip, start: int, length: int) -> Clip:
    """A grey curtain before everything for ``length`` frames from ``start`` on."""
    frames, ids = clip.frames.copy(), clip.ids.copy()
    grey = frames.mean((0, 1, 2)).astype(np.uint8)
    frames[start : start + length], ids[start : start + length] = grey, 0
    return Clip(frames, ids)


def first_masks(clip: Clip, min_area: float = 0.003) -> tuple[list[int], np.ndarray]:
    """Ids of the objects visible in frame 0 and their masks (N, H, W) bool."""
    ids = visible_objects(clip.ids[0], min_area)
    return ids, np.stack([clip.ids[0] == i for i in ids]) if ids else np.zeros((0, *clip.ids.shape[1:]), bool)


@torch.inference_mode()
def run_method(method: Method, clips: Sequence[Clip]) -> list[Outcome]:
    """Outcomes of all objects of all clips that are visible in frame 0."""
    outcomes: list[Outcome] = []
    for clip in clips:
        ids, first = first_masks(clip)
        if ids:
            truth = np.stack([clip.ids == i for i in ids], 1)
            outcomes += compare(method(clip.frames, first), truth)
    return outcomes


__getattr__ = renamed(__name__)
