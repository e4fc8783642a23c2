"""Objects that meet: of two whose masks nearly coincide one is hidden. Rules that say which, between choice and memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations
from statistics import pvariance

import torch
from torch import Tensor

from sam2_mem.memory.policy import MemoryPolicy, check_settings, setting
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.memory_reader import TrackPrediction
from sam2_mem.tracking.track import SCORE_MEMORY, MaskOutput, VisibilityHistory, gated_output
from sam2_mem.types import Hypotheses, MaskSelection

HIDDEN_SCORE = -10.0
"""Object-score logit of an object that gives way: absent for every policy."""


class Verdict(Enum):
    """What becomes of an object's mask: it stays as it is, is shown and remembered as absent, or is shown but not remembered."""

    KEEP = "keep"
    ABSENT = "absent"
    NO_MEMORY = "no memory"


@dataclass(frozen=True)
class ObjectView:
    """One object of a frame, as a rule is told of it: its ``history``, this frame's ``objectness`` logit, and ``mean_logit``
    of its mask over the pixels above 0."""

    history: VisibilityHistory
    objectness: float
    mean_logit: float


@dataclass(frozen=True, kw_only=True)
class Arbiter(ABC):
    """Base of rules: says of every two objects that meet which one is hidden.

    Attributes:
        min_overlap: IoU of two masks from which on the objects meet.
    """

    min_overlap: float = setting(0.7, above=0.0, at_most=1.0)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    @abstractmethod
    def verdict(self) -> Verdict:
        """On an object that is hidden."""

    @abstractmethod
    def hidden_one(self, a: ObjectView, b: ObjectView, *, reverse: bool) -> int | None:
        """Which of two objects that meet is hidden: 0, 1, or None where nothing tells. Pure.

        Args:
            a: an object.
            b: another one.
            reverse: direction of time.
        """

    def arbitrate(
        self, objects: Sequence[ObjectView], overlaps: Sequence[Sequence[float]], *, reverse: bool = False
    ) -> list[Verdict]:
        """A verdict on each of N objects of a frame. Pure.

        Args:
            objects: (N).
            overlaps: (N)(N) IoU of their masks.
            reverse: direction of time.
        """
        verdicts = [Verdict.KEEP] * len(objects)
        for pair in combinations(range(len(objects)), 2):
            first, second = pair
            if overlaps[first][second] >= self.min_overlap:
                hidden = self.hidden_one(objects[first], objects[second], reverse=reverse)
                if hidden is not None:
                    verdicts[pair[hidden]] = self.verdict
        return verdicts


@dataclass(frozen=True, kw_only=True)
class RecentlyHidden(Arbiter):
    """SAM 3's rule (2025, arXiv 2511.16719; its video code): of two objects that have both been hidden before, the one that
    was hidden more recently gives way. It is shown and remembered as absent."""

    @property
    def verdict(self) -> Verdict:
        return Verdict.ABSENT

    def hidden_one(self, a: ObjectView, b: ObjectView, *, reverse: bool) -> int | None:
        first, second = a.history.hidden_at, b.history.hidden_at
        if first is None or second is None or first == second:
            return None
        return int((second > first) is not reverse)


@dataclass(frozen=True, kw_only=True)
class UnsteadyScore(Arbiter):
    """SAM2MOT's rule (2025, arXiv 2504.04519): the object whose mask has clearly lower logits is hidden; where they are near,
    the one whose object score varied more on the latest 10 frames. Its memory of the frame is not kept.

    Attributes:
        min_difference: of mean logits, from which on they tell.
    """

    min_difference: float = setting(2.0, at_least=0.0)

    @property
    def verdict(self) -> Verdict:
        return Verdict.NO_MEMORY

    def hidden_one(self, a: ObjectView, b: ObjectView, *, reverse: bool) -> int | None:
        if abs(a.mean_logit - b.mean_logit) >= self.min_difference and a.mean_logit != b.mean_logit:
            return int(b.mean_logit < a.mean_logit)
        first, second = (pvariance((*v.history.scores, v.objectness)[-SCORE_MEMORY:]) for v in (a, b))
        return None if first == second else int(second > first)


ARBITERS: dict[str, Arbiter | None] = {"none": None, "recent": RecentlyHidden(), "variance": UnsteadyScore()}
"""Rules by the name that ``tracker.arbiter`` chooses them by."""


def compare_masks(masks: Sequence[Tensor]) -> Tensor:
    """IoU of all pairs of K masks, given as tensors (..., h, w), and below it the mean of the logits above 0 of each,
    (K + 1, K)."""
    flat = torch.cat([x.float().flatten(-2).flatten(0, -2) for x in masks])
    inside = (flat > 0).float()
    joint, areas = inside @ inside.t(), inside.sum(1)
    overlaps = joint / (areas[:, None] + areas - joint).clamp(min=1)
    means = (flat * inside).sum(1) / areas.clamp(min=1)
    return torch.cat([overlaps, means[None]])


def verdicts_on(
    arbiter: Arbiter,
    histories: Sequence[VisibilityHistory],
    outputs: Sequence[MaskOutput],
    *,
    reverse: bool,
    compared: Tensor | None = None,
) -> list[Verdict]:
    """Verdicts on N objects of a frame; in one transfer to the CPU where two or more have a mask, in none otherwise.

    Args:
        arbiter: the rule.
        histories: (N) before this frame.
        outputs: (N) their masks.
        reverse: direction of time.
        compared: ``compare_masks`` of all N masks, on the CPU; None has those compared that are not empty.
    """
    visible = [number for number, output in enumerate(outputs) if output.area > 0]
    verdicts = [Verdict.KEEP] * len(outputs)
    if len(visible) < 2:
        return verdicts
    if compared is None:
        *rows, mean_logits = compare_masks([outputs[number].logits[None] for number in visible]).tolist()
    else:
        *rows, mean_logits = compared[[*visible, -1]][:, visible].tolist()
    views = [ObjectView(histories[n], outputs[n].objectness, mean) for n, mean in zip(visible, mean_logits)]
    for number, verdict in zip(visible, arbiter.arbitrate(views, rows, reverse=reverse)):
        verdicts[number] = verdict
    return verdicts


def chosen_of(predictions: Sequence[TrackPrediction], selections: Sequence[MaskSelection]) -> Tensor | None:
    """Of ``compare_masks`` of all candidates of a frame, the part of those that are shown; None where nobody compared them."""
    table = predictions[0].compared
    if table is None:
        return None
    indices, start = [], 0
    for prediction, selection in zip(predictions, selections):
        pathways, candidates = prediction.hypotheses.masks.shape[:2]
        indices.append(start + selection.output.pathway * candidates + selection.output.candidate)
        start += pathways * candidates
    return table.view(start + 1, start)[[*indices, -1]][:, indices]


def as_absent(hypotheses: Hypotheses) -> Hypotheses:
    """The same candidates of an object that is not there."""
    return replace(hypotheses, objectness=(HIDDEN_SCORE,) * len(hypotheses.objectness), answers=())


def arbitrate(
    arbiter: Arbiter,
    model: SAM2,
    policy: MemoryPolicy,
    predictions: list[TrackPrediction],
    selections: list[MaskSelection],
    outputs: list[MaskOutput],
) -> set[int]:
    """Have a rule judge all objects of a frame; what it says of them changes the lists in place.

    Args:
        arbiter: the rule.
        model: the network.
        policy: chooses again for objects that give way.
        predictions: (N), at least one.
        selections: (N).
        outputs: (N).

    Returns:
        ids of the objects whose memory stays as it is.
    """
    frame, unwritten = predictions[0].frame, set()
    histories = [prediction.track.visibility for prediction in predictions]
    compared = chosen_of(predictions, selections)
    verdicts = verdicts_on(arbiter, histories, outputs, reverse=frame.reverse, compared=compared)
    for number, (prediction, verdict) in enumerate(zip(predictions, verdicts)):
        track, score, is_empty = prediction.track, outputs[number].objectness, outputs[number].area == 0
        is_hidden = is_empty or verdict is Verdict.ABSENT
        track.visibility = track.visibility.after(frame.index, score, is_hidden=is_hidden)
        if verdict is Verdict.NO_MEMORY:
            unwritten.add(track.obj_id)
            selections[number] = replace(selections[number], remember=())
        elif verdict is Verdict.ABSENT:
            absent = as_absent(prediction.hypotheses)
            predictions[number] = replace(prediction, hypotheses=absent)
            selection = policy.choose(track.state, prediction.frame, absent)
            selections[number] = replace(selection, remember=()) if track.frozen else selection
            gate = policy.min_obj_score_logits
            outputs[number] = gated_output(model, frame.index, absent, selection.output, gate)
    return unwritten
