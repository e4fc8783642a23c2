"""Several clips through one Tracker, with gradients, everything the network said kept for the losses.

The objects of B clips are tracks of one ``Tracker``; only the image features differ from row to row. Policies,
rows, gates and memory are those of inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.model.tensor_tree import map_tensors
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.memory_reader import DecodedBatch, MemoryReader, split_by_track
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.prompt_decoder import PromptDecoder, points_at_input_size
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import MaskOutput, Track, gated_output
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import CandidateId, FrameContext, FrameFeatures, MemoryEntry, RowBatch, Usage

MaskChange = Callable[[int, Tensor, Sequence[int]], Tensor]
"""(frame, logits (N, h, w), object ids) -> logits (N, h, w): what is put into memory instead of the network's own
masks."""


@dataclass(frozen=True, eq=False)
class ObjectPrediction:
    """What the network said of R objects on one frame, with gradients: ``decoded`` of R rows, and the features
    (R, Q, C) it was decoded from. ``prompted``: in answer to clicks or a box."""

    frame: int
    obj_ids: tuple[int, ...]
    decoded: Decoded
    conditioned: Tensor
    prompted: bool


@dataclass(frozen=True, eq=False)
class StackedFeatures(FrameFeatures):
    """Frame ``index`` of several clips: FrameFeatures with a leading axis B in ``low`` and ``high``."""

    @classmethod
    def of(cls, clips: Sequence[FrameFeatures], index: int) -> StackedFeatures:
        finer = [c.high for c in clips if c.high is not None]
        high = (torch.stack([f for f, _ in finer]), torch.stack([m for _, m in finer])) if finer else None
        low = torch.stack([c.low for c in clips])
        return cls(index=index, low=low, low_pos=clips[0].low_pos, high=high, grid=clips[0].grid)

    def rows(self, clips: Sequence[int]) -> FrameFeatures:
        """Features of R rows, (R, Q, C), by the clip of each row."""
        indices = torch.tensor(clips, device=self.low.device)
        high = self.high and (self.high[0][indices], self.high[1][indices])
        return FrameFeatures(self.index, self.low[indices], self.low_pos, high, self.grid)

    def clip(self, number: int) -> FrameFeatures:
        """Features of one clip, without the leading axis."""
        high = self.high and (self.high[0][number], self.high[1][number])
        return FrameFeatures(self.index, self.low[number], self.low_pos, high, self.grid)


@dataclass(eq=False)
class MultiClipPromptDecoder(PromptDecoder):
    """Answers prompts on the clips of their objects, and keeps what the network said in ``predictions``."""

    clip_of: Sequence[int]
    predictions: list[ObjectPrediction]

    def decode(self, track: Track, features: FrameFeatures, prompt: Prompt, context: FrameContext) -> MaskOutput:
        clip = _stacked(features).clip(self.clip_of[track.obj_id])
        return super().decode(track, clip, prompt, context)

    def decode_points(self, track: Track, features: FrameFeatures, prompt: Prompt, context: FrameContext) -> Decoded:
        decoded = super().decode_points(track, features, prompt, context)
        conditioned = features.low.unsqueeze(0)
        self.predictions.append(ObjectPrediction(features.index, (track.obj_id,), decoded, conditioned, True))
        return decoded


@dataclass(eq=False)
class MultiClipReader(MemoryReader):
    """Predicts masks of objects of several clips, and keeps what the network said in ``predictions``."""

    clip_of: Sequence[int]
    predictions: list[ObjectPrediction]

    def context_for(self, track: Track, context: FrameContext) -> FrameContext:
        """A policy sees the clip of its own object."""
        return replace(context, features=_stacked(context.features).clip(self.clip_of[track.obj_id]))

    def attend_and_decode(
        self, tracks: Sequence[Track], features: FrameFeatures, rows: RowBatch | None, usage: Usage
    ) -> DecodedBatch:
        obj_ids = tuple(track.obj_id for track in tracks)
        row_features = _stacked(features).rows([self.clip_of[obj_id] for obj_id in obj_ids])
        batch = super().attend_and_decode(tracks, row_features, rows, usage)
        self.predictions.append(ObjectPrediction(features.index, obj_ids, batch.decoded, batch.conditioned, False))
        return batch


@dataclass(eq=False)
class MultiClipWriter(MemoryWriter):
    """Makes memory of objects of several clips; ``mask_change`` is put between a mask and its memory."""

    clip_of: Sequence[int]
    mask_change: MaskChange | None

    def encode_outputs(
        self, tracks: Sequence[Track], features: FrameFeatures, outputs: Sequence[MaskOutput]
    ) -> list[MemoryEntry]:
        row_features = _stacked(features).rows([self.clip_of[track.obj_id] for track in tracks])
        return super().encode_outputs(tracks, row_features, self._changed(tracks, features.index, outputs))

    def _changed(self, tracks: Sequence[Track], frame: int, outputs: Sequence[MaskOutput]) -> list[MaskOutput]:
        """Outputs with the masks that memory is to be made of; those in answer to prompts stay as they are."""
        changed = list(outputs)
        indices = [i for i, output in enumerate(outputs) if not output.prompted]
        if self.mask_change is None or not indices:
            return changed
        logits = torch.stack([outputs[i].logits for i in indices])
        obj_ids = [tracks[i].obj_id for i in indices]
        for i, mask in zip(indices, self.mask_change(frame, logits, obj_ids)):
            changed[i] = replace(outputs[i], logits=mask)
        return changed


class MultiClipTracker(Tracker):
    """A Tracker of the objects of several clips; frames are ``StackedFeatures``.

    Args:
        model: the network.
        policy: how every object remembers.
        clip_of: the clip of every object, by object id 0, 1, ...
        settings: of the tracker.
        change: of the masks that enter memory.
    """

    def __init__(
        self,
        model: SAM2,
        policy: MemoryPolicy,
        *,
        clip_of: Sequence[int],
        settings: TrackerSettings | None = None,
        change: MaskChange | None = None,
    ) -> None:
        if policy.needs.summary:
            name = type(policy).__name__
            raise ValueError(f"expected a policy that needs no pooled features, got {name}; train with another")
        settings = TrackerSettings() if settings is None else settings
        self.clip_of = tuple(clip_of)
        self.predictions: list[ObjectPrediction] = []
        super().__init__(
            model,
            policy,
            settings=settings,
            prompt_decoder=MultiClipPromptDecoder(model, policy, settings, self.clip_of, self.predictions),
            reader=MultiClipReader(model, policy, settings, self.clip_of, self.predictions),
            writer=MultiClipWriter(model, policy, settings, self.clip_of, change),
        )

    def detach(self) -> None:
        """Cut the graph: what is remembered from here on is data. Predictions so far are dropped."""
        memo: dict[int, object] = {}

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach() if tensor.requires_grad else tensor

        for track in self.tracks.values():
            track.state, track.outputs, track.pending = (
                map_tensors(v, cut, memo) for v in (track.state, track.outputs, track.pending)
            )
        self.predictions.clear()

    def prompt_masks(self, features: StackedFeatures, masks: Tensor, obj_ids: Sequence[int]) -> None:
        """Mask prompts of R objects at once, masks (R, S, S) of 0 and 1; ``commit`` takes them into memory."""
        rows = features.rows([self.clip_of[i] for i in obj_ids])
        decoded = self.model.masks_as_output(rows, masks)
        split = split_by_track([decoded], [[(0, row)] for row in range(len(obj_ids))])
        for obj_id, hypotheses in zip(obj_ids, split):
            output = gated_output(self.model, features.index, hypotheses, CandidateId(0, 0), 0.0, prompted=True)
            self.track(obj_id).pending[features.index] = output

    def answer(self, features: StackedFeatures, prompts: Sequence[Prompt]) -> None:
        """What is seen at R prompts of one kind, on a frame without memory; tracking takes no notice."""
        rows = features.rows([self.clip_of[p.obj_id] for p in prompts])
        at_input_size = [points_at_input_size(p, self.model.image_size) for p in prompts]
        points, labels = (torch.cat(tensors).to(self.model.device) for tensors in zip(*at_input_size))
        candidates = self.model.candidates.allows(points.shape[1], with_memory=False)
        conditioned = self.model.without_memory(rows, len(prompts))
        decoded = self.model.decode(conditioned, rows, points=points, labels=labels, candidates=candidates)
        obj_ids = tuple(p.obj_id for p in prompts)
        self.predictions.append(ObjectPrediction(features.index, obj_ids, decoded, rows.low, True))


def _stacked(features: FrameFeatures | None) -> StackedFeatures:
    assert isinstance(features, StackedFeatures), "frames of several clips are StackedFeatures"
    return features


__getattr__ = renamed(__name__)
