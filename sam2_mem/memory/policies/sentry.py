"""Refine before write: where candidates compete, the one is remembered that leads back to where the object was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sam2_mem.memory.bounded import PolicyWrapper
from sam2_mem.memory.kalman_filter import MaskBox, box_iou, mask_boxes, occupied_lines
from sam2_mem.memory.policy import MemoryPolicy, Merging, Needs, setting
from sam2_mem.memory.questions import Probe, ProbeAnswer, mean_overlap
from sam2_mem.types import (
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
    MergeRequest,
    ReadUsage,
)


@dataclass(frozen=True, kw_only=True)
class Sentry(PolicyWrapper):
    """Any policy whose doubtful frames are decided by cycle consistency (SENTRY, ECCV 2026, arXiv 2606.24449; from its abstract).

    A frame is doubtful where a second candidate has nearly the predicted IoU of the best one and lies elsewhere. Each of the
    best candidates is then followed back for ``window`` frames, by a network that remembers nothing else. The score of a
    candidate is the mean IoU of the boxes on this way with those that were shown for the object, less the largest such mean with
    those of another object. The best score is shown and remembered; ``host`` is told that the others are worthless. Without
    a doubt, and where no earlier frame is held, this is ``host``.

    Attributes:
        host: the policy that is refined; in a config the name of one, or a mapping with its ``_target_``.
        window: frames that candidates are followed back.
        max_candidates: the best by predicted IoU.
        margin: of predicted IoU, within which the second candidate is a rival; below -1 there is no doubt.
        max_overlap: IoU of the boxes of both, below which it lies elsewhere.
    """

    host: MemoryPolicy
    window: int = setting(4, at_least=1)
    max_candidates: int = setting(3, at_least=2)
    margin: float = 0.1
    max_overlap: float = setting(0.5, at_least=0.0, at_most=1.0)
    policy: MemoryPolicy = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", self.host)
        super().__post_init__()
        if self.host.num_pathways > 1 or self.host.needs.window is not None:
            name = type(self.host).__name__
            raise ValueError(f"expected a host with one pathway that asks the network nothing, got {name}; try samurai")

    @property
    def unwrapped(self) -> MemoryPolicy:
        return self

    @property
    def needs(self) -> Needs:
        return replace(self.host.needs, window=self.window, every_frame=True)

    def capacity(self, tokens_per_map: int) -> int | None:
        """That of ``host``."""
        return self.host.capacity(tokens_per_map)

    def prompt(self, state: Any | None, frame: FrameContext, entry: MemoryEntry) -> Any:
        return self.host.prompt(state, frame, entry)

    def take_merged(self, state: Any, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> Any:
        assert isinstance(self.host, Merging), "only a policy that merges makes requests"
        return self.host.take_merged(state, frame, request, tokens)

    # -- questions ----------------------------------------------------------------------------------------------

    def measure(
        self, state: Any, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """What the host measures, and the lines that masks occupy, which boxes follow from."""
        numbers, lines = self.host.measure(state, frame, masks, usage), occupied_lines(masks[0]).float().flatten()
        return lines if numbers is None else torch.cat([numbers.flatten().float(), lines])

    def probes(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> Sequence[Probe]:
        ranked, boxes = self._ranked(hypotheses), self._boxes(hypotheses)
        if hypotheses.objectness[0] <= self.min_obj_score_logits or not self._is_doubtful(hypotheses, ranked, boxes):
            return ()
        return tuple(Probe(CandidateId(0, m), tuple(range(1, self.window + 1))) for m in ranked)

    def _ranked(self, hypotheses: Hypotheses) -> list[int]:
        """Numbers of the best candidates, the best first."""
        ious = hypotheses.iou[0]
        return sorted(range(len(ious)), key=lambda m: -ious[m])[: self.max_candidates]

    def _boxes(self, hypotheses: Hypotheses) -> list[MaskBox | None]:
        masks, lines = hypotheses.masks[0], _split(hypotheses)[1]
        return mask_boxes(masks, None if lines is None else lines.view(len(masks), -1) > 0)

    def _is_doubtful(self, hypotheses: Hypotheses, ranked: Sequence[int], boxes: Sequence[MaskBox | None]) -> bool:
        best, ious = ranked[0], hypotheses.iou[0]
        rivals = [m for m in ranked[1:] if ious[m] > ious[best] - self.margin]
        return any(boxes[m] is not None and box_iou(boxes[best], boxes[m]) < self.max_overlap for m in rivals)

    def _refined(self, hypotheses: Hypotheses) -> Hypotheses:
        """As ``host`` is told of them."""
        unasked = replace(hypotheses, measured=_split(hypotheses)[0], answers=())
        answers = hypotheses.answers
        if not answers or not answers[0].ages:
            return unasked
        scores = [consistency(answer) for answer in answers]
        chosen = self._ranked(hypotheses)[scores.index(max(scores))]
        ious = tuple(iou if m == chosen else 0.0 for m, iou in enumerate(hypotheses.iou[0]))
        return replace(unasked, iou=(ious,))

    # -- what goes to the host ----------------------------------------------------------------------------------

    def choose(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        return self.host.choose(state, frame, self._refined(hypotheses))

    def write(
        self,
        state: Any,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Any:
        return self.host.write(state, frame, self._refined(hypotheses), selection, entries)


def consistency(answer: ProbeAnswer) -> float:
    """How well the way back of a candidate agrees with that of the object, and not with another object's."""
    to_neighbours = [mean_overlap(answer.boxes, boxes) for boxes in answer.neighbours]
    return mean_overlap(answer.boxes, answer.shown_boxes) - max(to_neighbours, default=0.0)


def _split(hypotheses: Hypotheses) -> tuple[Tensor | None, Tensor | None]:
    """What was measured for the host, and the lines of masks behind it."""
    measured = hypotheses.measured
    if measured is None:
        return None, None
    masks = hypotheses.masks[0]
    numbers, lines = measured.tensor_split([len(measured) - len(masks) * (masks.shape[-1] + masks.shape[-2])])
    return numbers if len(numbers) else None, lines
