"""Template matching: what one remembered frame alone takes for the object judges the candidates, and renews the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.kalman_filter import MaskBox, box_iou, mask_boxes, occupied_lines
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.questions import Probe
from sam2_mem.memory.reading import keep_window, map_frames, window_capacity, window_read
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadUsage,
)


@dataclass(frozen=True, eq=False)
class TemplateBank(Bank):
    """A state with a template.

    Attributes:
        template: the tracked frame that has become it, which may be among ``entries`` as well; None: the newest prompt is it.
    """

    template: MemoryEntry | None = None

    def all_entries(self) -> tuple[Entry, ...]:
        extra = () if self.template is None else (self.template,)
        return tuple(dict.fromkeys((*super().all_entries(), *extra)))

    def without(self, frame: int) -> Self:
        return replace(super().without(frame), template=self._template_beyond(frame, 0))

    def forget(self, frame: int, radius: int) -> Self:
        return replace(super().forget(frame, radius), template=self._template_beyond(frame, radius))

    def _template_beyond(self, frame: int, radius: int) -> MemoryEntry | None:
        template = self.template
        return None if template is None or abs(template.frame - frame) <= radius else template

    def shift_frames(self, by: int) -> Self:
        template = self.template
        moved = None if template is None else replace(template, frame=template.frame + by)
        return replace(super().shift_frames(by), template=moved)


@dataclass(frozen=True, kw_only=True)
class Template(MemoryPolicy[TemplateBank]):
    """FIFO's memory, a template, and a preliminary result by the template alone.

    On every frame the network says where the object is if it remembers the template and nothing else: the preliminary result.
    The candidate is chosen whose ``weight`` x IoU with the preliminary result + (1 - ``weight``) x predicted IoU is highest.
    A chosen mask of high predicted IoU that agrees with the preliminary result becomes the template, ``gap`` frames after the one
    before at the earliest. The template is read beside FIFO's window, in the slot of prompts. A prompt is a new template.

    Template matching and update are those of two-stage trackers (LTMU, Dai et al. 2020, arXiv 2004.00305, updates by its
    verifier); that the IoU of two results decides is this project's reading of "IoU-based preliminary results". With ``weight``
    0 and ``min_agreement`` above 1 this is FIFO.

    Attributes:
        num_maskmem: maps of FIFO's window, one of them for the prompts.
        weight: share of the agreement in the choice, 0..1.
        min_agreement: IoU of the boxes of the chosen mask and of the preliminary result that a template has.
        min_iou: predicted IoU that it is above.
        min_object_score: object-score logit that it is above.
        gap: frames between two templates.
    """

    num_maskmem: int = setting(7, at_least=1)
    weight: float = setting(0.3, at_least=0.0, at_most=1.0)
    min_agreement: float = 0.7
    min_iou: float = 0.8
    min_object_score: float = 0.0
    gap: int = setting(5, at_least=1)

    @property
    def needs(self) -> Needs:
        return Needs(window=0)

    def capacity(self, tokens_per_map: int) -> int:
        """FIFO's, and the template."""
        return window_capacity(tokens_per_map, self.max_prompts, num_maskmem=self.num_maskmem) + tokens_per_map

    def new_state(self, frame: FrameContext) -> TemplateBank:
        return TemplateBank()

    def prompt(self, state: TemplateBank | None, frame: FrameContext, entry: MemoryEntry) -> TemplateBank:
        return replace(super().prompt(state, frame, entry), template=None)

    def read(self, state: TemplateBank, frame: FrameContext) -> Sequence[MemoryRead]:
        read = window_read(state, frame, num_maskmem=self.num_maskmem, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        template = state.template
        if template is None or template.frame == frame.index or any(i.tokens is template.tokens for i in read.items):
            return (read,)
        return (replace(read, items=(*read.items, ReadItem(template.tokens, PROMPT_SLOT))),)

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """As in FIFO."""
        return [f for _, f in map_frames(frame, num_maskmem=self.num_maskmem)], super().frames_behind(frame)[1]

    # -- matching -----------------------------------------------------------------------------------------------

    def measure(
        self, state: TemplateBank, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Lines that masks occupy, which boxes follow from."""
        return occupied_lines(masks[0]).float()

    def probes(self, state: TemplateBank, frame: FrameContext, hypotheses: Hypotheses) -> Sequence[Probe]:
        template = _template(state, frame)
        is_present = hypotheses.objectness[0] > self.min_obj_score_logits
        return () if template is None or not is_present else (Probe(template, (0,)),)

    def choose(self, state: TemplateBank, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        if not hypotheses.answers or not self.weight:
            return super().choose(state, frame, hypotheses)
        scores = [
            self.weight * agreement + (1 - self.weight) * iou
            for agreement, iou in zip(_agreements(hypotheses), hypotheses.iou[0])
        ]
        best = CandidateId(0, scores.index(max(scores)))
        return MaskSelection(output=best, remember=(best,))

    def write(
        self,
        state: TemplateBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> TemplateBank:
        size, pointers = self.num_maskmem, self.max_obj_ptrs_in_encoder
        template = state.template if state.template is None or state.template.frame != frame.index else None
        window = keep_window(state.add(*entries), frame.index, num_maskmem=size, max_obj_ptrs=pointers)
        agreement = _agreements(hypotheses)[selection.output.candidate] if hypotheses.answers else 0.0
        for entry in entries:
            if self._is_template(state, frame, entry, agreement):
                reason = Reason(entry.frame, "the template", agreement, self.min_agreement, Action.PROMOTED)
                return replace(window, template=entry, reasons=(reason,))
        return replace(window, template=template)

    def _is_template(self, state: TemplateBank, frame: FrameContext, entry: MemoryEntry, agreement: float) -> bool:
        before = _template(state, frame)
        is_due = before is None or abs(frame.age(before.frame)) >= self.gap
        is_good = entry.iou > self.min_iou and entry.objectness > self.min_object_score
        return is_due and is_good and agreement >= self.min_agreement

    def entry_infos(self, state: TemplateBank, frame: FrameContext) -> Sequence[EntryInfo]:
        template = state.template
        kind = lambda e: "template" if e is template else "recent"  # noqa: E731
        return entry_infos(state.all_entries(), kind, {e.frame: e.iou for e in state.entries}, "predicted IoU")


def _template(state: TemplateBank, frame: FrameContext) -> MemoryEntry | None:
    """The template: of a state without one the prompt nearest behind ``frame``, or else the nearest."""
    if state.template is not None:
        return state.template
    prompts = sorted(state.prompts, key=lambda e: (frame.age(e.frame) < 0, abs(frame.age(e.frame))))
    return prompts[0] if prompts else None


def _agreements(hypotheses: Hypotheses) -> list[float]:
    """IoU of the box of every candidate with that of the preliminary result."""
    masks, lines = hypotheses.masks[0], hypotheses.measured
    boxes: list[MaskBox | None] = mask_boxes(masks, None if lines is None else lines.view(len(masks), -1) > 0)
    [answer] = hypotheses.answers
    return [box_iou(answer.boxes[0], box) for box in boxes]
