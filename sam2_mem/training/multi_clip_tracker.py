"""Several clips through one Tracker, with gradients, everything the network said kept for the losses.

The objects of B clips are tracks of one :class:`Tracker`; only the image features differ from row to row. Policies,
rows, gates and memory are those of inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.model.tensor_tree import map_tensors
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.types import CandidateId, FrameContext, FrameFeatures, MemoryEntry, ReadUsage, RowBatch, Usage

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
        return cls(
            index=index,
            low=torch.stack([c.low for c in clips]),
            low_pos=clips[0].low_pos,
            high=tuple(torch.stack(maps) for maps in zip(*(c.high for c in clips))),
            grid=clips[0].grid,
        )

    def rows(self, clips: Sequence[int]) -> FrameFeatures:
        """Features of R rows, (R, Q, C), by the clip of each row."""
        where = torch.tensor(clips, device=self.low.device)
        return FrameFeatures(self.index, self.low[where], self.low_pos, tuple(h[where] for h in self.high), self.grid)

    def clip(self, number: int) -> FrameFeatures:
        """Features of one clip, without the leading axis."""
        high = tuple(h[number] for h in self.high)
        return FrameFeatures(self.index, self.low[number], self.low_pos, high, self.grid)


class LockstepTracker(Tracker):
    """A Tracker of the objects of several clips; frames are :class:`StackedFeatures`.

    Args:
        clip_of: the clip of every object, by object id 0, 1, ... change: noise on the masks that enter memory.
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
        super().__init__(model, policy, settings=settings)
        self.clip_of = tuple(clip_of)
        self.noise = change
        self.sightings: list[ObjectPrediction] = []

    def detach(self) -> None:
        """Cut the graph: what is remembered from here on is data. Sightings so far are dropped."""
        made: dict[int, object] = {}

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach() if tensor.requires_grad else tensor

        for track in self.tracks.values():
            track.state, track.outputs, track.pending = (
                map_tensors(v, cut, made) for v in (track.state, track.outputs, track.pending)
            )
        self.sightings.clear()

    def _shown_to(self, track: Track, context: FrameContext) -> FrameContext:
        """A policy sees the clip of its own object."""
        return replace(context, features=context.features.clip(self.clip_of[track.obj_id]))

    def preview(self, features: StackedFeatures, prompt: Prompt) -> MaskOutput:
        return super().preview(features.clip(self.clip_of[prompt.obj_id]), prompt)

    def prompt_masks(self, features: StackedFeatures, masks: Tensor, obj_ids: Sequence[int]) -> None:
        """Mask prompts of R objects at once, masks (R, S, S) of 0 and 1; :meth:`commit` takes them into memory."""
        rows = features.rows([self.clip_of[i] for i in obj_ids])
        decoded = self.model.masks_as_output(rows, masks)
        seen = self._seen([decoded], [None], [((0, r),) for r in range(len(obj_ids))])
        for obj_id, one in zip(obj_ids, seen):
            found = one.candidate(CandidateId(0, 0))
            self.track(obj_id).pending[features.index] = self._output(features.index, found, 0.0, prompted=True)

    def answer(self, features: StackedFeatures, prompts: Sequence[Prompt]) -> None:
        """What is seen at R prompts of one kind, on a frame without memory; tracking takes no notice."""
        rows = features.rows([self.clip_of[p.obj_id] for p in prompts])
        points, labels = (torch.cat(parts) for parts in zip(*(self._points_at_input_size(p) for p in prompts)))
        several = self.model.candidates.allows(points.shape[1], with_memory=False)
        plain = self.model.without_memory(rows, len(prompts))
        decoded = self.model.decode(plain, rows, points=points, labels=labels, candidates=several)
        self.sightings.append(
            ObjectPrediction(features.index, tuple(p.obj_id for p in prompts), decoded, rows.low, True)
        )

    def _answer_points(self, track: Track, features: FrameFeatures, prompt: Prompt) -> Decoded:
        decoded = super()._answer_points(track, features, prompt)
        self.sightings.append(
            ObjectPrediction(features.index, (track.obj_id,), decoded, features.low.unsqueeze(0), True)
        )
        return decoded

    def _see(
        self, owners: Sequence[Track], features: StackedFeatures, batch: RowBatch, usage: Usage
    ) -> tuple[Decoded, tuple[ReadUsage, ...] | None, Tensor]:
        rows = features.rows([self.clip_of[t.obj_id] for t in owners])
        several = self.model.candidates.allows(0, with_memory=True)
        attended = self.model.attend(rows, batch, usage)
        keep = self.sensory is not None
        decoded = self.model.decode(attended.features, rows, candidates=several, keep_maps=keep)
        ids = tuple(t.obj_id for t in owners)
        self.sightings.append(ObjectPrediction(features.index, ids, decoded, attended.features, False))
        return decoded, attended.usage, attended.features

    def _remember(
        self, owners: Sequence[Track], features: StackedFeatures, outputs: Sequence[MaskOutput]
    ) -> list[MemoryEntry]:
        outputs = self._changed(owners, features.index, outputs)
        rows = features.rows([self.clip_of[t.obj_id] for t in owners])
        return super()._remember(owners, rows, outputs)

    def _changed(self, owners: Sequence[Track], frame: int, outputs: Sequence[MaskOutput]) -> list[MaskOutput]:
        """Outputs with the masks that memory is to be made of; those in answer to prompts stay as they are."""
        which = [i for i, o in enumerate(outputs) if not o.prompted]
        if self.noise is None or not which:
            return list(outputs)
        logits = torch.stack([outputs[i].logits for i in which])
        changed = self.noise(frame, logits, [owners[i].obj_id for i in which])
        result = list(outputs)
        for i, mask in zip(which, changed):
            result[i] = replace(outputs[i], logits=mask)
        return result
