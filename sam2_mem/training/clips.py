"""Clips: a few frames of a video and the masks of its objects, sampled and augmented with a seeded generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from sam2_mem._moved import renamed

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Clip:
    """T frames (T, H, W, 3) uint8 RGB, and ids (T, H, W) uint8: the object visible at each pixel, 0 for none. Where a clip
    is not ``labelled``, ids say nothing about frames after the first."""

    frames: np.ndarray
    ids: np.ndarray
    labelled: bool = True

    def __len__(self) -> int:
        return self.frames.shape[0]


@dataclass(frozen=True, kw_only=True)
class ClipSpec:
    """What a stage of the training asks of a clip.

    Attributes:
        num_frames: frames of a clip.
        max_gap: frames of the video between two of the clip: 1..``max_gap``.
        size: side of the square frames, in pixels.
        max_objects: most objects of a clip; all are visible in its first frame.
        min_area: least share of the first frame that an object covers.
    """

    num_frames: int
    max_gap: int
    size: int
    max_objects: int = 2
    min_area: float = 0.005


class ClipSource(Protocol):
    """Where clips come from. ``sample`` depends on ``rng`` and the spec alone."""

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip: ...


@dataclass(frozen=True, eq=False)
class ClipBatch:
    """B clips side by side, with N objects in all.

    Attributes:
        images: (B, T, 3, S, S), normalised.
        truth: (N, T, S, S) float of 0 and 1.
        clip_of: (N) the clip of each object.
        labelled: (B) whether truth is known after the first frame.
    """

    images: Tensor
    truth: Tensor
    clip_of: tuple[int, ...]
    labelled: tuple[bool, ...] = ()

    def to(self, device: torch.device) -> ClipBatch:
        return replace(self, images=self.images.to(device), truth=self.truth.to(device))


def choose_times(rng: np.random.Generator, available: int, spec: ClipSpec) -> np.ndarray:
    """Increasing frame numbers below ``available`` at gaps of 1..max_gap; (num_frames,)."""
    if available < spec.num_frames:
        raise ValueError(f"expected a video of at least {spec.num_frames} frames, got {available}; ask for fewer")
    gaps = rng.integers(1, spec.max_gap + 1, spec.num_frames - 1)
    while gaps.sum() >= available:
        gaps[int(gaps.argmax())] -= 1
    start = int(rng.integers(0, available - int(gaps.sum())))
    return start + np.concatenate([[0], np.cumsum(gaps)])


def visible_objects(ids: np.ndarray, min_area: float) -> list[int]:
    """Objects of one frame (H, W) that cover at least ``min_area`` of it."""
    counts = np.bincount(ids.ravel(), minlength=256)
    return [i for i in range(1, 256) if counts[i] >= max(1.0, min_area * ids.size)]


def augment(rng: np.random.Generator, clip: Clip, *, turned: bool = True) -> Clip:
    """The clip mirrored, in other colours and, if square and ``turned``, rotated by quarter turns."""
    frames, ids = clip.frames, clip.ids
    if rng.random() < 0.5:
        frames, ids = frames[:, :, ::-1], ids[:, :, ::-1]
    turns = int(rng.integers(4)) if turned and ids.shape[1] == ids.shape[2] else 0
    frames, ids = np.rot90(frames, turns, (1, 2)), np.rot90(ids, turns, (1, 2))
    return Clip(recolour(rng, frames), np.ascontiguousarray(ids), clip.labelled)


def recolour(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """The same change of brightness, contrast and colour balance, and a channel order, for all frames (T, H, W, 3)
    uint8."""
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3)
    offset = rng.uniform(-20, 20)
    order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
    table = np.clip(np.arange(256)[:, None] * gain + offset, 0, 255).astype(np.uint8)
    return np.stack([table[:, c][frames[..., order[c]]] for c in range(3)], axis=-1)


def fit(clip: Clip, size: int) -> Clip:
    """Resized to a square of side ``size``."""
    if clip.ids.shape[1:] == (size, size):
        return clip
    frames = [cv2.resize(f, (size, size), interpolation=cv2.INTER_AREA) for f in clip.frames]
    ids = [cv2.resize(i, (size, size), interpolation=cv2.INTER_NEAREST) for i in clip.ids]
    return Clip(np.stack(frames), np.stack(ids), clip.labelled)


def normalise(frames: np.ndarray) -> Tensor:
    """(..., S, S, 3) uint8 -> (..., 3, S, S) float32 with ImageNet's mean and deviation."""
    images = torch.from_numpy(np.ascontiguousarray(frames)).float() / 255
    return ((images - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, -3)


def collate(rngs: Sequence[np.random.Generator], clips: Sequence[Clip], spec: ClipSpec) -> ClipBatch:
    """Clips of equal length, one generator each, as a batch; of each clip at most ``max_objects`` objects, drawn from
    those in its first frame."""
    truth, clip_of = [], []
    for number, (rng, clip) in enumerate(zip(rngs, clips, strict=True)):
        visible = visible_objects(clip.ids[0], spec.min_area)
        for obj_id in rng.permutation(visible)[: spec.max_objects]:
            truth.append(torch.from_numpy(clip.ids == obj_id).float())
            clip_of.append(number)
    if not truth:
        raise ValueError("expected an object in the first frame of at least one clip, got none; check the clip source")
    images = torch.stack([normalise(c.frames) for c in clips])
    return ClipBatch(images, torch.stack(truth), tuple(clip_of), tuple(c.labelled for c in clips))


__getattr__ = renamed(__name__)
