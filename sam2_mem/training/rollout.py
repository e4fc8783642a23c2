"""A batch of clips tracked as at inference, prompts included, and the losses of all predictions on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sam2_mem._moved import renamed
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.tracker import TrackerSettings
from sam2_mem.training.clips import ClipBatch
from sam2_mem.training.losses import LossSettings, LossTerms, Prediction, frame_loss
from sam2_mem.training.multi_clip_tracker import MaskChange, MultiClipTracker, ObjectPrediction, StackedFeatures
from sam2_mem.training.noise import MaskNoise, MemoryNoise
from sam2_mem.training.prompts import PromptMix, box_prompt, click_prompt


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How clips are prompted, what enters memory, and which losses the predictions get.

    Attributes:
        prompts: which prompts, how often.
        noise: of the masks that enter memory.
        losses: their weights.
        tracker: settings of the tracker.
        truncate: frames after which memory is cut from the graph (truncated back-propagation through time), so that a step
            takes the memory of so many frames however long its clips; 0: never.
    """

    prompts: PromptMix = PromptMix()
    noise: MemoryNoise = MemoryNoise()
    losses: LossSettings = LossSettings()
    tracker: TrackerSettings = TrackerSettings(memory_dtype="float32")
    truncate: int = 0

    def __post_init__(self) -> None:
        if self.truncate < 0 or self.truncate == 1:
            raise ValueError(f"expected truncate of 0 (never) or at least 2 frames, got {self.truncate}")


class Segment(NamedTuple):
    """All predictions between two cuts of the graph, and the segment's share of the clip's frames."""

    predictions: list[ObjectPrediction]
    share: float


class SegmentLoss(NamedTuple):
    """Unweighted losses of a segment (a tuple with a name for each), their weighted sum, and the segment's share of the
    clip's frames."""

    terms: Any
    total: Tensor
    share: float = 1.0


class PredictionRows(NamedTuple):
    """Predictions of R objects on one or more frames, row by row; see ``ObjectPrediction``."""

    masks: Tensor
    iou: Tensor
    objectness: Tensor
    conditioned: Tensor

    @classmethod
    def of(cls, predictions: Iterable[ObjectPrediction]) -> PredictionRows:
        values = ((p.decoded.masks, p.decoded.iou, p.decoded.objectness, p.conditioned) for p in predictions)
        return cls(*(torch.cat(tensors) for tensors in zip(*values)))


class Rollout:
    """One batch of clips on its way through a tracker.

    Args:
        model: the network.
        policy: its memory.
        settings: of prompts, memory and losses.
        batch: B clips.
        rngs: one generator per clip, so that what happens to a clip does not depend on the others.
        encoded: the frames of the batch, if they are encoded already.
        change: of the masks that enter memory, in place of ``settings.noise``.
    """

    def __init__(
        self,
        model: SAM2,
        policy: MemoryPolicy,
        settings: RolloutSettings,
        *,
        batch: ClipBatch,
        rngs: Sequence[np.random.Generator],
        encoded: Sequence[StackedFeatures] | None = None,
        change: MaskChange | None = None,
    ) -> None:
        self._encoded = encoded
        self._model = model
        self._settings = settings
        self._batch = batch
        self._rngs = [rngs[c] for c in batch.clip_of]
        self._tracker = MultiClipTracker(
            model,
            policy,
            clip_of=batch.clip_of,
            settings=settings.tracker,
            change=MaskNoise(batch.truth, settings.noise, self._rngs) if change is None else change,
        )

    def run(self) -> list[ObjectPrediction]:
        """All predictions. With truncation, only those of the last segment have gradients: use ``segments``."""
        return [p for segment in self.segments() for p in segment.predictions]

    def segments(self) -> Iterator[Segment]:
        """All predictions, from cut to cut. Go backwards through a segment before asking for the next."""
        times = self._batch.images.shape[1]
        length = self._settings.truncate or times
        corrected = self._draw_corrections(times)
        for start in range(0, times, length):
            frames = self._encode(start, min(start + length, times))
            for features in frames:
                self._advance(features, corrected.get(features.index, ()))
            yield Segment(list(self._tracker.predictions), len(frames) / times)
            self._tracker.detach()

    def _advance(self, features: StackedFeatures, corrected: Sequence[int]) -> None:
        if features.index == 0:
            self._first_prompts(features)
            self._tracker.step(features)
            return
        self._tracker.step(features)
        for obj_id in corrected:
            self._click(features, obj_id)
        self._tracker.commit(features)

    def _encode(self, start: int, stop: int) -> list[StackedFeatures]:
        """Some frames of all clips."""
        if self._encoded is not None:
            return list(self._encoded[start:stop])
        return encode_frames(self._model, self._batch.images[:, start:stop], start)

    def _draw_corrections(self, times: int) -> dict[int, list[int]]:
        """Frame -> objects that get a click there."""
        chosen: dict[int, list[int]] = {}
        for obj_id, rng in enumerate(self._rngs):
            if times > 1 and rng.random() < self._settings.prompts.correct:
                chosen.setdefault(int(rng.integers(1, times)), []).append(obj_id)
        return chosen

    def _first_prompts(self, features: StackedFeatures) -> None:
        mix = self._settings.prompts
        kinds = [mix.draw(rng) for rng in self._rngs]
        masked = [i for i, kind in enumerate(kinds) if kind == "mask"]
        if masked:
            self._tracker.prompt_masks(features, self._batch.truth[masked, 0], masked)
            if mix.aside:
                self._prompt_aside(features, masked)
        for obj_id, kind in enumerate(kinds):
            if kind == "mask":
                continue
            rng, truth = self._rngs[obj_id], self._truth(obj_id, 0)
            first = box_prompt(rng, obj_id, truth, mix.box_noise) if kind == "box" else click_prompt(rng, obj_id, truth)
            self._tracker.preview(features, first)
            for _ in range(int(rng.integers(0, mix.clicks + 1))):
                self._click(features, obj_id)

    def _prompt_aside(self, features: StackedFeatures, obj_ids: Sequence[int]) -> None:
        """Boxes and clicks for some objects that have a mask."""
        mix = self._settings.prompts
        boxes: list[Prompt] = []
        clicks: list[Prompt] = []
        for obj_id in obj_ids:
            rng = self._rngs[obj_id]
            if rng.random() < mix.aside:
                truth = self._truth(obj_id, 0)
                if rng.random() < 0.5:
                    boxes.append(box_prompt(rng, obj_id, truth, mix.box_noise))
                else:
                    clicks.append(click_prompt(rng, obj_id, truth))
        for prompts in filter(None, (boxes, clicks)):
            self._tracker.answer(features, prompts)

    def _click(self, features: StackedFeatures, obj_id: int) -> None:
        """A click on the error of the object's current mask."""
        output = self._tracker.track(obj_id).output_at(features.index)
        assert output is not None, "an object is clicked on after it was tracked"
        truth = self._truth(obj_id, features.index)
        size = (truth.shape[0], truth.shape[1])
        large = nn.functional.interpolate(output.logits.detach()[None, None].float(), size=size, mode="bilinear")
        predicted = (large[0, 0] > 0).cpu().numpy()
        self._tracker.preview(features, click_prompt(self._rngs[obj_id], obj_id, truth, predicted))

    def _truth(self, obj_id: int, frame: int) -> np.ndarray:
        return self._batch.truth[obj_id, frame].cpu().numpy() > 0.5


def encode_frames(model: SAM2, images: Tensor, first: int = 0) -> list[StackedFeatures]:
    """``images`` (B, T, 3, S, S) of all clips through the image encoder at once: T frames, numbered from ``first``."""
    clips, times = images.shape[:2]
    flat = model.encode_image(images.flatten(0, 1), range(clips * times))
    return [StackedFeatures.of(flat[t::times], first + t) for t in range(times)]


def segment_loss(
    predictions: Sequence[ObjectPrediction],
    truth: Tensor,
    head: nn.Module | None,
    settings: LossSettings,
    share: float = 1.0,
) -> SegmentLoss:
    """Losses against ``truth`` (N, T, S, S), as means over objects and frames.

    Predictions with equally many candidates go through the losses together, which is quicker; ``head`` predicts occupancy.
    """
    groups: dict[tuple[int, bool], list[ObjectPrediction]] = {}
    for prediction in predictions:
        groups.setdefault((prediction.decoded.iou.shape[1], prediction.prompted), []).append(prediction)
    terms, weights = [], []
    for members in groups.values():
        real = torch.cat([_truth_of(p, truth) for p in members])
        masks, iou, objectness, conditioned = PredictionRows.of(members)
        side = masks.shape[-1] // 4
        occupancy = head(conditioned, (side, side)) if head is not None and not members[0].prompted else None
        terms.append(frame_loss(Prediction(masks, iou, objectness, occupancy), real, settings))
        weights.append(real.shape[0] / sum(len(p.obj_ids) for p in predictions))
    mean = LossTerms(*(sum(w * v for w, v in zip(weights, values)) for values in zip(*terms)))
    return SegmentLoss(mean, mean.weighted(settings), share)


def _truth_of(prediction: ObjectPrediction, truth: Tensor) -> Tensor:
    """(R, S, S) of the objects of a prediction; a list of all objects in order needs no indices on the device."""
    frame, obj_ids = prediction.frame, prediction.obj_ids
    return truth[:, frame] if obj_ids == tuple(range(len(truth))) else truth[list(obj_ids), frame]


__getattr__ = renamed(__name__)
