"""SAMOSA's bank: the best frames of a long window; frames tracked in error are given up once the object is back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.box_motion import MotionSelection, candidate_boxes, measured_beside
from sam2_mem.memory.kalman_filter import MaskBox, box_iou
from sam2_mem.memory.likeness import all_cosines, cosines
from sam2_mem.memory.motion_window import MotionBank, MotionWindow
from sam2_mem.memory.policy import Needs, setting
from sam2_mem.memory.tokens import foreground_weights, masked_mean, masked_means
from sam2_mem.memory.trace import Action, Reason
from sam2_mem.types import CandidateId, Entry, FrameContext, Hypotheses, MaskSelection, MemoryEntry

HISTORY = 5
"""Frames whose mean appearance and box a frame is compared with."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """How the object looked on one frame: ``summary`` (C) image features under the mask, ``aspect`` width over height and
    ``area`` of the box on the 1024 grid."""

    summary: Tensor
    aspect: float
    area: float


@dataclass(frozen=True, eq=False)
class SightingBank(MotionBank):
    """A state with the latest looks of the object.

    Attributes:
        sightings: of the latest frames that were not in error, oldest first.
        in_error: frames of the error in progress; empty while there is none.
    """

    sightings: tuple[Sighting, ...] = ()
    in_error: tuple[int, ...] = ()

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        """As in ``MotionBank``; a prompt ends an error."""
        return replace(super().add_prompt(entry, max_prompts), in_error=())

    def shift_frames(self, by: int) -> Self:
        """As in ``MotionBank``; into another video the object goes without its looks."""
        return replace(super().shift_frames(by), sightings=(), in_error=tuple(f + by for f in self.in_error))


@dataclass(frozen=True)
class RecoverySelection(MotionSelection):
    """A selection of ``MotionWindow``.

    Attributes:
        likeness: of the mask that ends an error, to the mean of the latest looks; None where no error ends.
    """

    likeness: float | None = None


@dataclass(frozen=True, kw_only=True)
class TAMB(MotionWindow[SightingBank]):
    """The memory bank and error recovery of SAMOSA (2026, arXiv 2605.22538), on our Kalman filter in place of its LSTM.

    Of the newest ``window`` good frames the previous one and the ``num_maskmem`` - 2 of highest score are read, by rank: 0.3 x
    predicted IoU + 0.3 x sigmoid of the object score + 0.3 x overlap with the predicted box.

    A frame is in error if its image features under the mask have a cosine below ``min_likeness`` to the mean of the last five
    frames, or if the second difference of its box's aspect ratio, or of its area as a share of the last five's, is beyond
    ``max_change``. An error lasts until a candidate mask looks like the object: its area and its aspect ratio at least
    ``min_shape`` of those of the mean box, or the other way round, and a cosine of at least ``recovery_likeness``. The
    most alike is then chosen, whatever its predicted IoU, and the maps of frames in error leave memory.

    With ``window`` 6, ``min_iou``, ``min_object_score``, ``min_overlap`` and ``min_likeness`` -inf, ``max_change`` inf and
    ``kf_score_weight`` 0 this is FIFO, as long as time does not turn round.

    Decided by us: the previous frame is always read; an overlap that was not measured counts 0 in the score and passes the
    threshold; how size and shape are scored; absent frames are neither in error nor among the last five.

    Attributes:
        min_likeness: cosine below which a frame is in error, 0.1.
        max_change: second difference, either way, above which it is, 10.
        recovery_likeness: cosine that ends an error, 0.4.
        min_shape: ratio that ends it, 0..1, 0.1.
    """

    min_likeness: float = 0.1
    max_change: float = setting(10.0, above=0.0)
    recovery_likeness: float = 0.4
    min_shape: float = setting(0.1, at_least=0.0, at_most=1.0)

    @property
    def needs(self) -> Needs:
        return Needs(summary=True, every_frame=True)

    def new_state(self, frame: FrameContext) -> SightingBank:
        return SightingBank()

    def selected(self, state: SightingBank, frame: FrameContext, candidates: Sequence[Entry]) -> list[Entry]:
        others, overlaps = candidates[1:], dict(state.overlaps)
        scores = [0.3 * (e.iou + _sigmoid(e.objectness) + overlaps.get(e.frame, 0.0)) for e in others]
        best = sorted(range(len(others)), key=lambda i: -scores[i])[: self.num_maskmem - 2]
        return [candidates[0], *(others[i] for i in sorted(best))]

    def overlap(self, selection: MotionSelection) -> float | None:
        """Measured wherever there is a prediction."""
        return None if selection.predicted is None else box_iou(selection.predicted.box(), selection.box)

    # -- errors -------------------------------------------------------------------------------------------------

    def compared(self, state: SightingBank, frame: FrameContext, masks: Tensor) -> Tensor | None:
        """Cosine of every candidate's look to the mean of the latest ones."""
        if not state.sightings or frame.features is None:
            return None
        means = masked_means(frame.features.low, masks, frame.features.grid)
        return all_cosines(means, _mean_summary(state)[None])

    def choose(self, state: SightingBank, frame: FrameContext, hypotheses: Hypotheses) -> RecoverySelection:
        selection = RecoverySelection(**vars(super().choose(state, frame, hypotheses)))
        if not state.in_error or frame.features is None:
            return selection
        boxes = candidate_boxes(hypotheses, self.min_obj_score_logits)
        shaped = [i for i, box in enumerate(boxes) if box is not None and self._has_shape(state, box)]
        masks, grid, measured = hypotheses.masks[0], frame.features.grid, measured_beside(hypotheses)
        if measured is None or not measured.numel():
            looks = [masked_mean(frame.features.low, foreground_weights(masks[i], grid)) for i in shaped]
            scores = dict(zip(shaped, cosines(looks, _mean_summary(state)) if looks else ()))
        else:
            scores = {i: float(measured[i]) for i in shaped}
        alike = max(scores, key=lambda i: scores[i], default=None)
        if alike is None or scores[alike] < self.recovery_likeness:
            return selection
        best = CandidateId(0, alike)
        return replace(selection, output=best, remember=(best,), box=boxes[alike], likeness=scores[alike])

    def _has_shape(self, state: SightingBank, box: MaskBox) -> bool:
        count = len(state.sightings)
        aspect, area = (sum(getattr(s, name) for s in state.sightings) / count for name in ("aspect", "area"))
        here = box.measured()[2]
        return min(_ratio(here, aspect), _ratio(box.area, area)) >= self.min_shape

    def write(
        self,
        state: SightingBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> SightingBank:
        assert isinstance(selection, RecoverySelection), "a selection that this policy has made"
        written = super().write(state, frame, hypotheses, selection, entries)
        if selection.likeness is not None:
            text = "the object is back: likeness to its latest looks"
            recovery = Reason(frame.index, text, selection.likeness, self.recovery_likeness, Action.CHOSEN)
            reasons = (recovery, *(Reason(f, "tracked in error") for f in state.in_error))
            for index in state.in_error:
                written = written.drop_tokens(index)
            written = replace(written, in_error=(), reasons=reasons)
        look = _sighting(entries, selection.box)
        if look is None:
            return written
        measured = measured_beside(hypotheses)
        likeness = None if measured is None or not measured.numel() else float(measured[selection.output.candidate])
        error = None if selection.likeness is not None else self._error(state, frame.index, look, likeness)
        if error is not None or written.in_error:
            frames = tuple(f for f in written.in_error if f != frame.index)[-self.window :]
            reasons = () if error is None else (error,)
            return replace(written, in_error=(*frames, frame.index), reasons=reasons)
        return replace(written, sightings=(*state.sightings, look)[-HISTORY:])

    def _error(self, state: SightingBank, index: int, look: Sighting, likeness: float | None) -> Reason | None:
        """Why a frame begins an error; None where it does not. ``likeness`` of ``look`` to the latest ones; None asks the
        device."""
        if len(state.sightings) < 2 or state.in_error:
            return None
        before, last = state.sightings[-2:]
        mean_area = max(1.0, sum(s.area for s in state.sightings) / len(state.sightings))
        change = max(
            abs(look.aspect - 2 * last.aspect + before.aspect),
            abs(look.area - 2 * last.area + before.area) / mean_area,
        )
        if change > self.max_change:
            return Reason(index, "in error: its box changes", change, self.max_change, Action.REJECTED)
        if likeness is None:
            (likeness,) = cosines([look.summary], _mean_summary(state))
        if likeness < self.min_likeness:
            return Reason(index, "in error: another appearance", likeness, self.min_likeness, Action.REJECTED)
        return None


def _sighting(entries: Sequence[MemoryEntry], box: MaskBox | None) -> Sighting | None:
    summary = entries[0].summary if entries else None
    if box is None or summary is None:
        return None
    return Sighting(summary, box.measured()[2], box.area)


def _mean_summary(state: SightingBank) -> Tensor:
    return torch.stack([s.summary.float() for s in state.sightings]).mean(0)


def _ratio(a: float, b: float) -> float:
    """The smaller over the larger."""
    return min(a, b) / max(a, b) if max(a, b) > 0 else 1.0


def _sigmoid(x: float) -> float:
    return 0.5 * (1 + math.tanh(x / 2))
