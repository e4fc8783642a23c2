"""A pool of clips on the device of training: rendered by other processes while training goes on, drawn from at random, cut,
mirrored, recoloured and resized on the device.

A GPU takes clips faster than processors render them. So each clip is drawn several times, with other frames, objects and
colours, before a newer one takes its place.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.training.clips import MEAN, STD, Clip, ClipBatch, ClipSource, ClipSpec, choose_times

logger = logging.getLogger(__name__)

MAX_OBJECTS = 8
ATTEMPTS = 50


class ClipFeed(Protocol):
    """Where new clips come from while training goes on."""

    def take(self, count: int) -> Sequence[Clip]: ...

    def close(self) -> None: ...


@dataclass(eq=False)
class SampledFeed:
    """Clips rendered when they are taken, by this process: the same for every run.

    Attributes:
        source: of the clips.
        spec: of all of them.
        seed: clip number k has the generator (seed, k).
        start: number of the first clip.
    """

    source: ClipSource
    spec: ClipSpec
    seed: int = 0
    start: int = 0

    def take(self, count: int) -> Sequence[Clip]:
        """``count`` more clips."""
        numbers = range(self.start, self.start + count)
        self.start += count
        return [self.source.sample(np.random.default_rng([self.seed, number]), self.spec) for number in numbers]

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """Size and supply of the pool.

    Attributes:
        source: of the clips.
        clip_spec: what is asked of them: neighbouring frames at the largest size that is trained at.
        capacity: clips held; new ones replace the oldest.
        initial: clips before the first step.
        refresh: new clips after each step, at most.
        workers: processes that render clips; 0: this one, ``refresh`` clips a step, which can be repeated.
        objects_per_clip: objects of a batch per clip, so that all batches have one shape, for which a GPU plans its kernels
            once: objects beyond it are left out at random, missing ones are repeated. 0: as many as there are.
    """

    source: ClipSource
    clip_spec: ClipSpec
    capacity: int = 1000
    initial: int = 100
    refresh: int = 8
    workers: int = 0
    objects_per_clip: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.initial <= self.capacity:
            raise ValueError(f"expected 1 <= initial <= capacity, got {self.initial} and {self.capacity}")


@dataclass(eq=False)
class ClipPool:
    """Clips on a device.

    Attributes:
        settings: see there.
        device: where clips are held.
        feed: of new clips.
        count: clips taken so far.
    """

    settings: PoolSettings
    device: torch.device
    feed: ClipFeed
    count: int = 0
    _areas: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        spec, capacity = self.settings.clip_spec, self.settings.capacity
        shape = (capacity, spec.num_frames, spec.size, spec.size)
        self._frames = torch.zeros(*shape, 3, dtype=torch.uint8, device=self.device)
        self._ids = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self._areas = np.zeros((capacity, spec.num_frames, MAX_OBJECTS), np.float32)

    @property
    def size(self) -> int:
        """Clips that can be drawn."""
        return min(self.count, self.settings.capacity)

    def fill(self) -> None:
        """Wait for the initial clips."""
        began = time.monotonic()
        while self.size < self.settings.initial:
            before = self.count
            self.refresh(self.settings.initial - self.size)
            if self.count == before:
                time.sleep(0.01)
        logger.info("%d clips in %.1f s", self.size, time.monotonic() - began)

    def refresh(self, count: int | None = None) -> None:
        """Take the clips that are ready, at most ``count``."""
        for clip in self.feed.take(self.settings.refresh if count is None else count):
            self._put(clip, self.count % self.settings.capacity)
            self.count += 1

    def _put(self, clip: Clip, slot: int) -> None:
        self._frames[slot] = to_device_async(torch.from_numpy(np.ascontiguousarray(clip.frames)), self.device)
        self._ids[slot] = to_device_async(torch.from_numpy(np.ascontiguousarray(clip.ids)), self.device)
        counts = [np.bincount(ids.ravel(), minlength=MAX_OBJECTS + 1)[1 : MAX_OBJECTS + 1] for ids in clip.ids]
        self._areas[slot] = np.stack(counts) / clip.ids[0].size

    def draw(self, rng: np.random.Generator, count: int, spec: ClipSpec) -> ClipBatch:
        """A batch of ``count`` clips, forwards or backwards, with objects that are visible in their first frames."""
        clips, times, objects, clip_of = [], [], [], []
        for number in range(count):
            clip, frames, visible = self._choose(rng, spec)
            clips.append(clip)
            times.append(frames)
            chosen = rng.permutation(visible)[: spec.max_objects]
            objects += [int(obj_id) for obj_id in chosen]
            clip_of += [number] * len(chosen)
        if self.settings.objects_per_clip:
            chosen = np.sort(_exactly(rng, len(objects), round(count * self.settings.objects_per_clip)))
            objects, clip_of = [objects[k] for k in chosen], [clip_of[k] for k in chosen]
        index = to_device_async(np.array(clips), self.device)[:, None]
        moments = to_device_async(np.stack(times), self.device)
        owners = to_device_async(np.array(clip_of), self.device)
        wanted_ids = to_device_async(np.array(objects), self.device)[:, None, None, None]
        flips = to_device_async(rng.random(count) < 0.5, self.device)
        images = self._images(self._frames[index, moments], flips, rng, spec.size)
        truth = (self._ids[index, moments][owners] == wanted_ids).float()
        truth = torch.where(flips[owners][:, None, None, None], truth.flip(-1), truth)
        return ClipBatch(images, _resized(truth, spec.size, binary=True), tuple(clip_of), (True,) * count)

    def _choose(self, rng: np.random.Generator, spec: ClipSpec) -> tuple[int, np.ndarray, np.ndarray]:
        """A clip, its frames, and the objects visible in the first of them."""
        for _ in range(ATTEMPTS):
            clip = int(rng.integers(self.size))
            times = choose_times(rng, self._areas.shape[1], spec)
            times = times if rng.random() < 0.5 else times[::-1].copy()
            visible = 1 + np.flatnonzero(self._areas[clip, times[0]] >= spec.min_area)
            if len(visible):
                return clip, times, visible
        raise ValueError(f"expected clips with visible objects, got none in {ATTEMPTS} tries; check the clip source")

    def _images(self, frames: Tensor, flips: Tensor, rng: np.random.Generator, size: int) -> Tensor:
        """(B, T, S, S, 3) uint8 -> (B, T, 3, size, size), recoloured as ``clips.recolour`` does, and normalised."""
        count = len(frames)
        images = frames.movedim(-1, 2)
        images = torch.where(flips[:, None, None, None, None], images.flip(-1), images).float()
        images = _resized(images.flatten(0, 1), size).unflatten(0, frames.shape[:2])
        gain = rng.uniform(0.75, 1.25, (count, 1)) * rng.uniform(0.9, 1.1, (count, 3))
        offset = np.repeat(rng.uniform(-20, 20, (count, 1)), 3, 1)
        order = np.stack([rng.permutation(3) if rng.random() < 0.3 else np.arange(3) for _ in range(count)])
        order_index = to_device_async(order, self.device)[:, None, :, None, None].expand_as(images)
        colours = np.stack(
            [gain, offset, np.tile(255 * np.array(MEAN), (count, 1)), np.tile(255 * np.array(STD), (count, 1))]
        )
        table = to_device_async(colours.astype(np.float32), self.device)[:, :, None, :, None, None]
        images = (images.gather(2, order_index) * table[0] + table[1]).clamp(0, 255)
        return (images - table[2]) / table[3]


def _exactly(rng: np.random.Generator, count: int, target: int) -> np.ndarray:
    """``target`` numbers below ``count``, each at most once more often than another."""
    orders = [rng.permutation(count) for _ in range(-(-target // count))]
    return np.concatenate(orders)[:target]


def _resized(maps: Tensor, size: int, *, binary: bool = False) -> Tensor:
    """(B, C, S, S) -> (B, C, size, size), each pixel the mean of those it covers; ``binary``: 0 or 1."""
    if maps.shape[-1] == size:
        return maps
    resized = F.interpolate(maps, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return (resized > 0.5).float() if binary else resized
