"""One object in one video: its policy state, its latest outputs, and which frames it has been tracked on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.bank import Bank
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.sam2 import SAM2
from sam2_mem.types import ABSENT_LOGIT, CandidateId, Hypotheses, SensoryUpdate


@dataclass(frozen=True, eq=False)
class MaskOutput:
    """A mask shown to the user or remembered: ``logits`` (h, w) and ``pointer`` (C), both after the absent-object gate.
    ``binarize``: its memory is made from the hard mask; ``refined``: a refiner's proposal took the place of the mask;
    ``sensory``, ``update``: state of sensory memory on its way to memory, and how it got or gets there."""

    frame: int
    logits: Tensor
    pointer: Tensor
    iou: float
    objectness: float
    area: float
    prompted: bool = False
    binarize: bool = False
    refined: bool = False
    sensory: Tensor | None = None
    update: SensoryUpdate = SensoryUpdate.NONE


def gated_output(
    model: SAM2,
    frame: int,
    hypotheses: Hypotheses,
    candidate: CandidateId,
    threshold: float,
    *,
    prompted: bool = False,
) -> MaskOutput:
    """A candidate after the absent-object gate: where its object score is not above ``threshold``, the mask is empty and
    the pointer is the learned "no object" pointer."""
    pathway, number = candidate.pathway, candidate.candidate
    logits, pointer = hypotheses.masks[pathway, number], hypotheses.pointers[pathway, number]
    objectness = hypotheses.objectness[pathway]
    present = objectness > threshold
    flag = to_device_async([present], pointer.device)
    return MaskOutput(
        frame=frame,
        logits=logits.clone() if present else torch.full_like(logits, ABSENT_LOGIT),
        pointer=model.gate_pointers(pointer[None], flag)[0],
        iou=hypotheses.iou[pathway][number],
        objectness=objectness,
        area=hypotheses.areas[pathway][number] if present else 0.0,
        prompted=prompted,
    )


class ReferenceAppearance(NamedTuple):
    """What an object looked like on its first prompted frame: ``appearance`` (D) features averaged over its mask, ``centre``
    (D) over the frame."""

    centre: Tensor
    appearance: Tensor


class TrackedRanges:
    """Which frames were tracked, and in which direction last, as runs of neighbouring frames: one run per pass."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int, bool]] = []

    def __contains__(self, frame: int) -> bool:
        return self.reverse_at(frame) is not None

    def __len__(self) -> int:
        return len(self._runs)

    def reverse_at(self, frame: int) -> bool | None:
        """Direction of the latest pass over ``frame``; None if there was none."""
        for low, high, reverse in reversed(self._runs):
            if low <= frame <= high:
                return reverse
        return None

    def add(self, frame: int, *, reverse: bool) -> None:
        if self._runs:
            low, high, last = self._runs[-1]
            if last == reverse and low - 1 <= frame <= high + 1:
                self._runs[-1] = (min(low, frame), max(high, frame), reverse)
                self._forget_covered()
                return
        self._runs.append((frame, frame, reverse))

    def _forget_covered(self) -> None:
        low, high, _ = self._runs[-1]
        self._runs = [r for r in self._runs[:-1] if not (low <= r[0] and r[1] <= high)] + self._runs[-1:]

    def discard(self, frame: int) -> None:
        """Forget that ``frame`` was ever tracked."""
        kept = []
        for low, high, reverse in self._runs:
            if not low <= frame <= high:
                kept.append((low, high, reverse))
                continue
            kept += [(a, b, reverse) for a, b in ((low, frame - 1), (frame + 1, high)) if a <= b]
        self._runs = kept


@dataclass(eq=False)
class Track:
    """Bookkeeping of one object. Ids never change, positions in a batch do.

    ``state`` is None until the first prompt has been taken into memory; ``pending`` holds prompts that have not;
    ``outputs`` the latest masks and those of prompted frames; ``frozen`` memory is read but no longer written; ``reference`` what it
    looked like on the first frame on which it is visible, where there is a refiner.
    """

    obj_id: int
    state: Bank | None = None
    outputs: dict[int, MaskOutput] = field(default_factory=dict)
    pending: dict[int, MaskOutput] = field(default_factory=dict)
    tracked: TrackedRanges = field(default_factory=TrackedRanges)
    frozen: bool = False
    reference: ReferenceAppearance | None = None

    def prompted_frames(self) -> set[int]:
        return set() if self.state is None else set(self.state.prompted_frames())

    def answered(self, frame: int) -> bool:
        """Whether the mask of ``frame`` was given by a prompt. (A prompt of a loaded memory has no mask in this video.)"""
        return frame in self.prompted_frames() and frame in self.outputs

    def output_at(self, frame: int) -> MaskOutput | None:
        """What the user sees on ``frame`` now, if it is still known."""
        return self.pending.get(frame) or self.outputs.get(frame)

    def remember_output(self, output: MaskOutput, history: int | None) -> None:
        """Keep ``output``; beyond ``history`` of them the oldest unprompted ones go (None: keep all)."""
        self.outputs.pop(output.frame, None)
        self.outputs[output.frame] = output
        if history is None:
            return
        prompted = self.prompted_frames()
        plain = [f for f in self.outputs if f not in prompted]
        for frame in plain[: max(0, len(plain) - history)]:
            del self.outputs[frame]


__getattr__ = renamed(__name__)
