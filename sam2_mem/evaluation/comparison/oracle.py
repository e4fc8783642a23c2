"""Memory fed with the truth: how far a policy would go if every mask that it remembers were right. The distance of a policy to
this row is what wrong masks in memory cost it; what is missing above this row, no memory can give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from sam2_mem.evaluation.videos import AnnotatedVideo
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import FrameFeatures, MemoryEntry

P = TypeVar("P", bound="OraclePredictor")


class OraclePredictor(SAM2VideoPredictor):
    """A predictor that looks up the truth of ``video``, which is set before a pass."""

    video: AnnotatedVideo | None = None

    def annotated(self, state: InferenceState) -> AnnotatedVideo:
        """The video of the truth.

        Raises:
            ValueError: no video is set, or not every frame of ``state`` has a truth.
        """
        video, length = self.video, state.num_frames
        if video is None or len(video.frames) != length:
            annotated = "none" if video is None else f"{len(video.frames)} annotated frames"
            raise ValueError(f"expected a truth for each of {length} frames, got {annotated}; leave out the oracle")
        return video


@dataclass(eq=False)
class TruthWriter(MemoryWriter):
    """Makes memory of the true masks of tracked frames, as if each were a mask prompt; prompts stay as they are.

    Attributes:
        video: gives the truth of every frame.
    """

    video: AnnotatedVideo

    def encode_outputs(
        self, tracks: Sequence[Track], features: FrameFeatures, outputs: Sequence[MaskOutput]
    ) -> list[MemoryEntry]:
        tracked = [number for number, output in enumerate(outputs) if not output.prompted]
        if tracked:
            ids = torch.from_numpy(self.video.truth(self.video.frames[features.index]))
            masks = torch.stack([ids == tracks[number].obj_id for number in tracked])
            outputs = list(outputs)
            for number, output in zip(tracked, self._as_output(features, masks, [outputs[n] for n in tracked])):
                outputs[number] = output
        return super().encode_outputs(tracks, features, outputs)

    def _as_output(
        self, features: FrameFeatures, masks: torch.Tensor, outputs: Sequence[MaskOutput]
    ) -> list[MaskOutput]:
        """Outputs with the masks (R, H, W) bool of the video's size in place of their own."""
        side = (self.model.image_size,) * 2
        scaled = torch.nn.functional.interpolate(masks.unsqueeze(1).float(), size=side, mode="area")
        decoded = self.model.masks_as_output(features, (scaled[:, 0] > 0.5).float().to(self.model.device))
        logits, areas = decoded.masks[:, 0], (decoded.masks > 0).flatten(1).float().mean(1).tolist()
        scores = zip(decoded.objectness.tolist(), areas)
        return [
            replace(output, logits=logits[n], pointer=decoded.pointers[n, 0], iou=1.0, objectness=score, area=area)
            for n, (output, (score, area)) in enumerate(zip(outputs, scores))
        ]


class TruthPredictor(OraclePredictor):
    """A predictor whose memory is fed with the truth."""

    def init_state(self, *args: Any, **kwargs: Any) -> InferenceState:
        """A state with a ``TruthWriter``.

        Raises:
            ValueError: no video is set, or not every frame of it has a truth.
        """
        state = super().init_state(*args, **kwargs)
        settings = state.tracker.settings
        state.tracker.writer = TruthWriter(self.model, self.policy, settings, self.annotated(state))
        return state


def with_truth(predictor: SAM2VideoPredictor) -> TruthPredictor:
    """The same predictor with its memory fed with the truth."""
    return as_kind(predictor, TruthPredictor, predictor.policy)


def as_kind(predictor: SAM2VideoPredictor, kind: type[P], policy: MemoryPolicy) -> P:
    """A predictor of another class and policy, with the same network and settings."""
    return kind(
        predictor.model,
        policy,
        tracker=predictor.tracker_settings,
        settings=predictor.settings,
        refiner=predictor.refiner,
        embedder=predictor.embedder,
    )
