"""Mask refinement between the choice and the memory of a frame, for any policy: HQ-SMem's "teacher forcing".

A refiner proposes another mask of each object that is in the frame; an accepted one is shown and remembered in place
of the coarse mask. With no accepted mask on a frame, the frame is as without a refiner.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.model.acceleration.transfer import constant, to_device_async
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.tracking.mask_postprocessing import suppress_overlap
from sam2_mem.tracking.track import MaskOutput, ReferenceAppearance, Track
from sam2_mem.types import FrameFeatures

BOX_CORNERS = (2, 3)
EMPTY = 1e-6


class Coarse(NamedTuple):
    """Masks of N objects to refine: ``logits`` (N, h, w), ``references`` what they looked like on their first frames, ``conditioned`` (N, Q, C)
    the features they were decoded from."""

    logits: Tensor
    references: tuple[ReferenceAppearance, ...]
    conditioned: Tensor


class Proposal(NamedTuple):
    """One mask per object: ``logits`` (N, h, w), ``pointers`` (N, C), ``accepted`` (N) bool. Rows that are not
    accepted mean nothing."""

    logits: Tensor
    pointers: Tensor
    accepted: Tensor


class Refiner(ABC):
    """Proposes masks. Stateless, shared by all objects and videos.

    ``hard_memory``: accepted masks enter memory as 0 and 1. ``own_pointer``: they bring their object pointer along.
    """

    hard_memory: bool = False
    own_pointer: bool = False

    @abstractmethod
    def wants(self, frame: int) -> bool:
        """Whether this frame is refined."""

    @abstractmethod
    def propose(self, model: SAM2, features: FrameFeatures, coarse: Coarse) -> Proposal:
        """A proposal for each of the N masks."""


@dataclass(frozen=True, kw_only=True)
class HQRefiner(Refiner):
    """Refinement of HQ-SMem (arXiv 2507.18921, section 3.3, Eq. 8 to 10) with SAM 2's own decoder.

    The box of the coarse mask prompts the decoder for three masks. The one whose appearance, image features averaged
    over the mask, is closest to the reference by cosine (Eq. 8) is accepted if that cosine is above ``tau_hq`` (Eq.
    9). It becomes the output and is what memory is made of (Eq. 10). An empty coarse mask stays.

    Attributes:
        tau_hq: cosine above which a proposal is accepted; no value is published. Masks of one frame that overlap have
            cosines near 1 by construction, so the useful range is narrow; above 1 nothing is accepted.
        hq_select: ``cos`` is Eq. 8; ``iou_pred`` takes the best predicted IoU and uses the cosine only to accept.
        hq_ref: appearance to compare with: of the ``coarse`` mask on this frame (Eq. 8), which cannot notice drift,
            or of the object on its ``first`` prompted frame.
        hq_min_iou: least IoU of proposal and coarse mask; 0 for none, as in the paper. The stronger guard where
            features tell objects of a frame poorly apart.
        hq_every: only frames whose number is a multiple of this are refined.
        hq_feat: features the decoder sees: ``plain``, those of the image alone, or ``mem``, conditioned on memory.
        hq_memory: accepted masks enter memory as ``soft`` probabilities, as tracked masks do, or ``hard``.
        hq_pointer: object pointer of an accepted mask: the ``tracker``'s or the ``proposal``'s own.

    Differences from the paper: SAM-HQ is replaced by SAM 2's decoder, which has no high-quality token, and DINO by
    SAM 2's image features, less their mean over the object's first frame, unless the predictor has an embedder.
    Proposals whose object score says "absent" are discarded.
    """

    tau_hq: float = 0.95
    hq_select: str = "cos"
    hq_ref: str = "coarse"
    hq_min_iou: float = 0.5
    hq_every: int = 1
    hq_feat: str = "plain"
    hq_memory: str = "soft"
    hq_pointer: str = "tracker"

    def __post_init__(self) -> None:
        allowed = {
            "hq_select": ("cos", "iou_pred"),
            "hq_ref": ("coarse", "first"),
            "hq_feat": ("plain", "mem"),
            "hq_memory": ("soft", "hard"),
            "hq_pointer": ("tracker", "proposal"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"expected {name} out of {', '.join(values)}, got {getattr(self, name)!r}")
        if not -1.0 <= self.tau_hq <= 2.0:
            raise ValueError(f"expected tau_hq, a cosine (above 1: nothing is accepted), in [-1, 2], got {self.tau_hq}")
        if not 0.0 <= self.hq_min_iou <= 1.0:
            raise ValueError(f"expected hq_min_iou in [0, 1], got {self.hq_min_iou}")
        if self.hq_every < 1:
            raise ValueError(f"expected hq_every >= 1, got {self.hq_every}")

    @property
    def hard_memory(self) -> bool:  # type: ignore[override]
        return self.hq_memory == "hard"

    @property
    def own_pointer(self) -> bool:  # type: ignore[override]
        return self.hq_pointer == "proposal"

    def wants(self, frame: int) -> bool:
        return frame % self.hq_every == 0

    def propose(self, model: SAM2, features: FrameFeatures, coarse: Coarse) -> Proposal:
        decoded, has_box = self._decode(model, features, coarse)
        closeness = self._closeness(features, coarse, decoded.masks)
        best = (closeness if self.hq_select == "cos" else decoded.iou).argmax(1)
        row = torch.arange(len(best), device=best.device)
        logits = decoded.masks[row, best]
        accepted = has_box & (decoded.objectness > 0) & (closeness[row, best] > self.tau_hq)
        accepted &= (logits > 0).flatten(1).any(1) & (mask_iou(logits, coarse.logits) >= self.hq_min_iou)
        return Proposal(logits, decoded.pointers[row, best], accepted)

    def _decode(self, model: SAM2, features: FrameFeatures, coarse: Coarse) -> tuple[Decoded, Tensor]:
        """Three masks for every box, and which objects have a box at all."""
        side = model.image_size
        large = F.interpolate(coarse.logits.unsqueeze(1).float(), size=(side, side), mode="bilinear")[:, 0]
        boxes, has_box = pixel_boxes(large > 0)
        rows = len(boxes)
        conditioned = coarse.conditioned if self.hq_feat == "mem" else model.without_memory(features, rows)
        labels = constant(tuple(BOX_CORNERS), boxes.device, torch.int32).expand(rows, -1)
        corners = boxes.unflatten(1, (2, 2))
        return model.decode(conditioned, features, points=corners, labels=labels, candidates=True), has_box

    def _closeness(self, features: FrameFeatures, coarse: Coarse, proposals: Tensor) -> Tensor:
        """Cosines (N, M) of proposals (N, M, h, w) and reference."""
        centres = torch.stack([reference.centre for reference in coarse.references])[:, None]
        appearances = F.normalize(pooled(features, proposals) - centres, dim=-1)
        if self.hq_ref == "first":
            reference = torch.stack([reference.appearance for reference in coarse.references])[:, None] - centres
        else:
            reference = pooled(features, coarse.logits[:, None]) - centres
        return (appearances * F.normalize(reference, dim=-1)).sum(-1)


# -- appearance -------------------------------------------------------------------------------------------------------


def _appearance(features: FrameFeatures) -> tuple[Tensor, tuple[int, int]]:
    """What masks are compared by: an embedder's map or SAM 2's image features; (N, D) in float32 and its grid."""
    if features.appearance is not None:
        return features.appearance.feat.float(), features.appearance.grid
    return features.low.float(), features.grid


def pooled(features: FrameFeatures, logits: Tensor) -> Tensor:
    """Appearance averaged over masks: logits (N, M, h, w) -> (N, M, D); zeros under an empty mask."""
    feat, grid = _appearance(features)
    weights = F.adaptive_avg_pool2d(logits.float().sigmoid(), grid).flatten(2)
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > EMPTY, weights @ feat / total.clamp(min=EMPTY), 0.0)


def reference_appearance(features: FrameFeatures, logits: Tensor) -> ReferenceAppearance:
    """What to compare an object with later, from its first mask (h, w)."""
    return ReferenceAppearance(
        centre=_appearance(features)[0].mean(0), appearance=pooled(features, logits[None, None])[0, 0]
    )


# -- masks ------------------------------------------------------------------------------------------------------------


def pixel_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H, W) bool -> x0, y0, x1, y1 of the outermost pixels (N, 4), and (N) whether there are any."""
    ends = []
    for axis in (1, 2):
        line = masks.any(axis).to(torch.uint8)
        ends += [line.argmax(1), line.shape[1] - 1 - line.flip(1).argmax(1)]
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], dim=1).float(), masks.flatten(1).any(1)


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the foregrounds of logits (N, h, w), (N); 0 for two empty ones."""
    a, b = a > 0, b > 0
    intersection, union = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return intersection / union.clamp(min=1)


def settle_overlap(logits: Tensor, refined: Tensor) -> Tensor:
    """Masks of one frame, (N, h, w), where pixels of ``refined`` (N) masks go to the highest logit; others that claim
    them get -10 there. Everything else stays as it is."""
    contested = ((logits > 0) & refined[:, None, None]).any(0) & (logits > 0)
    return torch.where(contested, suppress_overlap(logits), logits)


def note_reference(track: Track, features: FrameFeatures, output: MaskOutput) -> None:
    """Keep what the object looks like on the first frame on which it is visible."""
    if track.reference is None and output.area > 0:
        track.reference = reference_appearance(features, output.logits)


# -- the step ---------------------------------------------------------------------------------------------------------


def refine(
    refiner: Refiner,
    model: SAM2,
    features: FrameFeatures,
    outputs: Sequence[MaskOutput],
    references: Sequence[ReferenceAppearance | None],
    conditioned: Sequence[Tensor],
) -> list[MaskOutput]:
    """Outputs of all objects of a frame with accepted proposals in their place. One transfer from the device.

    Args:
        refiner: proposes masks.
        model: the network.
        features: of the frame.
        outputs: after the absent-object gate.
        references: of their objects; None is not refined.
        conditioned: (Q, C) for each output.
    """
    reference_of = {i: r for i, (o, r) in enumerate(zip(outputs, references)) if o.area > 0 and r is not None}
    indices = list(reference_of)
    if not indices or not refiner.wants(features.index):
        return list(outputs)
    logits = torch.stack([output.logits for output in outputs])
    read = torch.stack([conditioned[i] for i in indices])
    at = slice(None) if len(indices) == len(outputs) else to_device_async(indices, logits.device)
    coarse = Coarse(logits[at], tuple(reference_of.values()), read)
    proposal = refiner.propose(model, features, coarse)
    refined = torch.zeros(len(outputs), dtype=torch.bool, device=logits.device)
    refined[at] = proposal.accepted
    merged = logits.clone()
    merged[at] = torch.where(proposal.accepted[:, None, None], proposal.logits.to(logits.dtype), coarse.logits)
    merged = settle_overlap(merged, refined)
    changed = (merged != logits).flatten(1).any(1)
    areas = (merged > 0).flatten(1).float().mean(1)
    table = torch.stack([refined.float(), changed.float(), areas], dim=1).tolist()
    result = []
    for output, mask, (_, is_changed, area) in zip(outputs, merged, table):
        result.append(replace(output, logits=mask, area=area) if is_changed else output)
    for row, i in enumerate(indices):
        if table[i][0]:
            result[i] = _as_refined(refiner, result[i], proposal.pointers[row])
    return result


def _as_refined(refiner: Refiner, output: MaskOutput, pointer: Tensor) -> MaskOutput:
    return replace(
        output,
        refined=True,
        binarize=output.binarize or refiner.hard_memory,
        pointer=pointer.to(output.pointer) if refiner.own_pointer else output.pointer,
    )


__getattr__ = renamed(__name__)
