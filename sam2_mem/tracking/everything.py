"""Automatic masks, then track everything: objects of the first frame, and those that come into view along the way.

Every few frames the automatic masks of a frame are compared with the objects that are tracked; what is none of them becomes a
new object, prompted with its mask.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from sam2_mem.prompts import Prompt
from sam2_mem.tracking.automatic_masks import SAM2AutomaticMaskGenerator
from sam2_mem.tracking.frame_loop import autocast_on, delayed, run
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import FrameFeatures, FrameResult
from sam2_mem.video import Frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DiscoverySettings:
    """When objects are looked for, and which masks are new objects.

    Attributes:
        every: frames from one search to the next; 0: on the first frame only.
        max_objects: tracked at a time; of more, the largest.
        min_area: pixels of a new object.
        max_area: share of the frame; larger masks are background.
        matched_iou: a mask is the tracked object with which it has at least this IoU.
        min_uncovered: share of a new object that no tracked object covers, so that parts of objects are none.
        lost_after: frames in a row without an object after which it is given up; its id is not used again.

    Raises:
        ValueError: a value out of its range.
    """

    every: int = 16
    max_objects: int = 64
    min_area: int = 64
    max_area: float = 0.9
    matched_iou: float = 0.5
    min_uncovered: float = 0.5
    lost_after: int = 100

    def __post_init__(self) -> None:
        for name, low in (("every", 0), ("max_objects", 1), ("min_area", 1), ("lost_after", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"expected {name} >= {low}, got {getattr(self, name)}")
        for name in ("max_area", "matched_iou", "min_uncovered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected {name} in 0..1, got {getattr(self, name)}")


class EverythingFrame(NamedTuple):
    """All objects on one frame.

    Attributes:
        frame: the frame.
        masks: (H, W) bool of each object that is tracked, by its id; empty where it is absent.
        new_ids: of objects that were found on this frame.
        given_up: ids of objects that were given up since the frame before.
    """

    frame: Frame
    masks: dict[int, np.ndarray]
    new_ids: tuple[int, ...] = ()
    given_up: tuple[int, ...] = ()


def new_objects(
    records: Sequence[dict[str, Any]], tracked: Sequence[np.ndarray], settings: DiscoverySettings
) -> list[np.ndarray]:
    """Which automatic masks are new objects, the largest first.

    Args:
        records: of ``SAM2AutomaticMaskGenerator.generate`` with binary masks.
        tracked: the masks (H, W) bool of the objects that are tracked.
        settings: the rules.
    """
    free, masks = settings.max_objects - len(tracked), list(tracked)
    if not records:
        return []
    shape = records[0]["segmentation"].shape
    covered = np.logical_or.reduce([np.zeros(shape, bool), *masks])
    for record in sorted(records, key=lambda record: -record["area"]):
        mask, area = record["segmentation"], record["area"]
        if not settings.min_area <= area <= settings.max_area * mask.size:
            continue
        if any(_iou(mask, other) >= settings.matched_iou for other in masks):
            continue
        if (mask & ~covered).sum() >= settings.min_uncovered * area:
            masks.append(mask)
            covered = covered | mask
    found = masks[len(tracked) :]
    if len(found) > free:
        logger.warning("%d new objects, but max_objects leaves place for %d: the largest are tracked", len(found), free)
    return found[: max(free, 0)]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def track_everything(
    predictor: SAM2VideoPredictor,
    state: InferenceState,
    generator: SAM2AutomaticMaskGenerator,
    settings: DiscoverySettings | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[EverythingFrame]:
    """All objects of every frame from ``start`` to before ``stop`` (None: the end), in order.

    What is held does not grow with the video, where the memory policy is bounded: at most ``settings.max_objects`` memories.

    Args:
        predictor: the model and the policy.
        state: fresh, from ``predictor.init_state(video, interactive=False)``.
        generator: of automatic masks, with ``output_mode="binary_mask"``; on the same network or another one.
        settings: when objects are looked for, and which are new.
        start: the first frame.
        stop: the frame after the last.

    Raises:
        ValueError: another ``output_mode``, a state with objects, or one of a stream.
    """
    if generator.output_mode != "binary_mask":
        raise ValueError(f"expected a generator of output_mode 'binary_mask', got {generator.output_mode!r}")
    if state.source is None or state.obj_ids:
        got = "a stream" if state.source is None else f"objects {state.obj_ids}"
        raise ValueError(
            f"expected a state of a video, without objects yet, got {got}; make one with init_state(video)"
        )
    return _Search(predictor, state, generator, settings or DiscoverySettings()).frames(start, stop)


@dataclass(eq=False)
class _Search:
    """A pass that looks for objects. ``shown`` are frames whose masks are yet to be given out, by index."""

    predictor: SAM2VideoPredictor
    state: InferenceState
    generator: SAM2AutomaticMaskGenerator
    settings: DiscoverySettings
    shown: dict[int, EverythingFrame] = field(default_factory=dict)
    absent: Counter[int] = field(default_factory=Counter)
    given_up: tuple[int, ...] = ()
    last_id: int = 0

    def frames(self, start: int, stop: int | None) -> Iterator[EverythingFrame]:
        lag = self.predictor.policy.needs.revise
        finish = torch.inference_mode()(self.state.tracker.finish)
        for result in delayed(self._results(start, stop), lag, finish):
            waiting = self.shown.pop(result.frame)
            yield waiting._replace(masks=self._masks(result, waiting.frame) | waiting.masks)
        if self.last_id == 0:
            logger.warning("no object was found on any frame: the masks are all empty; see the generator's thresholds")

    def _results(self, start: int, stop: int | None) -> Iterator[FrameResult]:
        """Of every frame as it is tracked; then objects come, or go before the next one."""
        current = self.state.iterate(start, stop, 1)
        for result in run(
            self.state,
            self._noted(current),
            encode=self._encode,
            autocast=partial(autocast_on, self.predictor.device),
            before_frame=self._give_up,
        ):
            masks = self._masks(result, self.shown[result.frame].frame)
            self._count_absences(masks)
            if self._is_due(result.frame - start):
                self._find(result.frame, masks)
            yield result

    def _noted(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.shown[frame.index] = EverythingFrame(frame, {}, given_up=self.given_up)
            self.given_up = ()
            yield frame

    def _is_due(self, count: int) -> bool:
        return count == 0 if self.settings.every == 0 else count % self.settings.every == 0

    def _find(self, index: int, tracked: dict[int, np.ndarray]) -> None:
        """New objects of a frame, whose masks of tracked objects are given."""
        frame = self.shown[index].frame
        with torch.inference_mode(), autocast_on(self.predictor.device):
            found = new_objects(self.generator.generate(frame.image), list(tracked.values()), self.settings)
            masks = {self.last_id + number: mask for number, mask in enumerate(found, 1)}
            if masks:
                features = self.state.features(frame, self.predictor.encode)
                for obj_id, mask in masks.items():
                    self.state.tracker.preview(features, Prompt(obj_id=obj_id, mask=mask))
                self.state.tracker.commit(features)
        self.last_id += len(masks)
        self.shown[index] = self.shown[index]._replace(masks=masks, new_ids=tuple(masks))

    def _count_absences(self, masks: dict[int, np.ndarray]) -> None:
        for obj_id, mask in masks.items():
            self.absent[obj_id] = 0 if mask.any() else self.absent[obj_id] + 1

    def _give_up(self) -> None:
        """Objects that have been absent for too long."""
        lost = tuple(obj_id for obj_id, count in self.absent.items() if count >= self.settings.lost_after)
        for obj_id in lost:
            self.state.tracker.remove(obj_id)
            del self.absent[obj_id]
        self.given_up += lost

    @torch.inference_mode()
    def _masks(self, result: FrameResult, frame: Frame) -> dict[int, np.ndarray]:
        """(H, W) bool of every object that was tracked to this frame."""
        if not result.obj_ids:
            return {}
        size = frame.image.shape[0], frame.image.shape[1]
        large = self.predictor.at_size(result.masks, size)
        return dict(zip(result.obj_ids, (large > 0).cpu().numpy()))

    def _encode(self, frame: Frame) -> FrameFeatures:
        return self.state.features(frame, self.predictor.encode)
