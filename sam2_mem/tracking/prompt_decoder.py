"""From a prompt to a mask, without remembering anything."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.memory.policy import MemoryPolicy, best_candidate
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.batching import batch_reads
from sam2_mem.tracking.mask_postprocessing import clean_masks
from sam2_mem.tracking.memory_reader import split_by_track
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import MaskOutput, Track, gated_output
from sam2_mem.types import FrameContext, FrameFeatures

MASK_HINT_LIMIT = 32.0
BOX_CORNER_LABELS = (2, 3)


@dataclass(eq=False)
class PromptDecoder:
    """Answers prompts.

    Attributes:
        model: the network.
        policy: says what a correction reads, and when an object counts as absent.
        settings: how masks are cleaned.
    """

    model: SAM2
    policy: MemoryPolicy
    settings: TrackerSettings

    def decode(self, track: Track, features: FrameFeatures, prompt: Prompt, context: FrameContext) -> MaskOutput:
        """The mask of one object.

        On a frame that this object has been tracked on, the prompt corrects: memory is read, and the mask shown so far
        is a hint. On any other frame the prompt stands alone, as a first prompt does.

        Args:
            track: the object.
            features: of the frame.
            prompt: a mask, which is taken as it is, or points and a box.
            context: the frame as the object's policy sees it.
        """
        if prompt.mask is not None:
            mask = mask_at_input_size(prompt.mask.to(self.model.device), self.model.image_size)
            decoded, threshold = self.model.mask_as_output(features, mask), 0.0
        else:
            decoded, threshold = self.decode_points(track, features, prompt, context), self.policy.min_obj_score_logits
        [hypotheses] = split_by_track([decoded], [[(0, 0)]])
        candidate = best_candidate(hypotheses)
        output = gated_output(self.model, features.index, hypotheses, candidate, threshold, prompted=True)
        areas = (self.settings.fill_hole_area, self.settings.remove_region_area)
        return replace(output, logits=clean_masks(output.logits[None], *areas)[0])

    def decode_points(self, track: Track, features: FrameFeatures, prompt: Prompt, context: FrameContext) -> Decoded:
        """The candidates for points and a box, one row."""
        points, labels = points_at_input_size(prompt, self.model.image_size)
        points, labels = points.to(self.model.device), labels.to(self.model.device)
        corrects = track.state is not None and features.index in track.tracked
        shown = track.output_at(features.index)
        hint = None if shown is None else shown.logits.clamp(-MASK_HINT_LIMIT, MASK_HINT_LIMIT)[None, None]
        return self.model.decode(
            self._conditioned(track, features, context) if corrects else self.model.without_memory(features),
            features,
            points=points,
            labels=labels,
            mask_logits=hint,
            candidates=self.model.candidates.allows(points.shape[1], with_memory=corrects),
        )

    def _conditioned(self, track: Track, features: FrameFeatures, context: FrameContext) -> Tensor:
        """Features (1, Q, C) after attention to what the first pathway reads."""
        batches = batch_reads(self.policy.read(track.state, context)[:1], self.model).batches
        if not batches:
            return self.model.without_memory(features)
        return self.model.attend(features, batches[0]).features


def mask_at_input_size(mask: Tensor, side: int) -> Tensor:
    """(H, W) bool -> (S, S) of 0 and 1."""
    mask = mask[None, None].float()
    if tuple(mask.shape[-2:]) != (side, side):
        mask = F.interpolate(mask, size=(side, side), mode="bilinear", antialias=True)
    return (mask[0, 0] >= 0.5).float()


def points_at_input_size(prompt: Prompt, side: int) -> tuple[Tensor, Tensor]:
    """Box corners (labels 2 and 3) then points, as (1, N, 2) in input pixels and (1, N); on the CPU."""
    points, labels = [], []
    if prompt.box is not None:
        points.append(prompt.box.reshape(2, 2))
        labels.append(torch.tensor(BOX_CORNER_LABELS, dtype=torch.int32))
    if prompt.points is not None:
        points.append(prompt.points)
        labels.append(prompt.labels)
    assert prompt.size is not None, "coordinates are measured in a picture of known size"
    height, width = prompt.size
    scale = torch.tensor([width, height], dtype=torch.float32)
    xy = torch.cat([p.cpu() for p in points]) / scale * side
    return xy[None], torch.cat([x.cpu() for x in labels])[None]
