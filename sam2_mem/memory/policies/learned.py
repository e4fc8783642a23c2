"""Learned eviction: which frame leaves says a linear score whose weights were fitted to the best evictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.likeness import all_cosines
from sam2_mem.memory.scored_bank import ScoredBank
from sam2_mem.memory.trace import EntryInfo
from sam2_mem.types import (
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    ReadUsage,
)

FAR = 100
"""Frames apart beyond which a gap counts no more."""

LARGEST_CHANGE = 4.0
"""Octaves of area beyond which a change counts no more."""


@dataclass(frozen=True)
class ScoreInputs:
    """What the score of a tracked frame goes by; all numbers are within -1..1.

    Attributes:
        age: log2 of 1 + frames since it, an eighth of that, at most 1.
        previous: 1 for the frame before, else 0.
        gap: frames to the nearest other frame in memory, prompts included, in hundreds, at most 1.
        iou: predicted IoU.
        presence: sigmoid of the object score.
        area: change of the mask's area since the first prompt, in octaves either way, a quarter of that, at most 1.
        like_first: cosine of its object pointer to the first prompt's.
        like_previous: to that of the frame before; of that frame itself 1.
        like_nearest: the highest to another tracked frame's.
    """

    age: float = 0.0
    previous: float = 0.0
    gap: float = 0.0
    iou: float = 0.0
    presence: float = 0.0
    area: float = 0.0
    like_first: float = 0.0
    like_previous: float = 0.0
    like_nearest: float = 0.0


@dataclass(frozen=True, eq=False)
class ScoreInputsBank(Bank):
    """A state that knows what its frames are scored by while a frame is written.

    Attributes:
        inputs: of tracked frames, by frame; empty between two writes.
    """

    inputs: tuple[tuple[int, ScoreInputs], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Learned(ScoredBank):
    """Remembers the prompts, the previous frame, and the ``size`` tracked frames of highest score, as ``ScoredBank``. The
    score is the sum of weights times ``ScoreInputs``. After the learned controller of SAM2RL (2025, arXiv 2507.08548).

    The shipped weights were fitted by ``benchmarks/fit_eviction.py`` to the choices of ``oracle=eviction`` on procedural
    video; with ``age`` -1 and all other weights 0 this is FIFO, for a prompt on one frame and a pass in one direction.

    Attributes:
        age: weight of the age.
        previous: weight of being the frame before.
        gap: weight of the distance in time to its neighbours.
        iou: weight of the predicted IoU.
        presence: weight of the object being there.
        area: weight of the change of area.
        like_first: weight of the likeness to the first prompt.
        like_previous: weight of the likeness to the frame before.
        like_nearest: weight of the likeness to the most alike.
    """

    age: float = -1.0
    previous: float = 0.0
    gap: float = 0.0
    iou: float = 0.0
    presence: float = 0.0
    area: float = 0.0
    like_first: float = 0.0
    like_previous: float = 0.0
    like_nearest: float = 0.0

    def new_state(self, frame: FrameContext) -> ScoreInputsBank:
        return ScoreInputsBank()

    def value(self, inputs: ScoreInputs) -> float:
        """The score of a frame of these inputs."""
        return sum(getattr(self, f.name) * getattr(inputs, f.name) for f in fields(ScoreInputs))

    def score(self, state: Bank, entry: MemoryEntry) -> float:
        """Of a frame whose inputs are not known the score is 0."""
        inputs = dict(state.inputs) if isinstance(state, ScoreInputsBank) else {}
        return self.value(inputs.get(entry.frame, ScoreInputs()))

    def measure(
        self, state: Bank, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Cosines of pointers, where a frame will leave."""
        rivals = rivals_of(state, frame)
        return pointer_cosines(state, rivals).flatten() if len(rivals) > self.size else None

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> ScoreInputsBank:
        assert isinstance(state, ScoreInputsBank), "a state that this policy has made"
        if len(rivals_of(state, frame)) > self.size:
            state = with_inputs(state, frame, hypotheses.measured)
        written = super().write(state, frame, hypotheses, selection, entries)
        assert isinstance(written, ScoreInputsBank), "made of the state before"
        return replace(written, inputs=())

    def best_of(self, prompts: Sequence[MemoryEntry], entries: Sequence[MemoryEntry]) -> list[int]:
        """Which frames a bank of ``size`` frames would hold in the end, had it been offered no others.

        Args:
            prompts: prompted frames, at least one.
            entries: tracked frames in order; their tokens are not looked at.

        Returns:
            numbers of at most ``size`` frames, the highest score first; of equals the latest.
        """
        state = ScoreInputsBank(tuple(prompts))
        ranked: list[int] = []
        written = [e.frame for e in entries[1:]] + [e.frame + 1 for e in entries[-1:]]
        for entry, frame in zip(entries, written):
            state = state.add(entry)
            scores = {f: self.value(inputs) for f, inputs in with_inputs(state, FrameContext(frame)).inputs}
            ranked = sorted(scores, key=lambda f: (-scores[f], -f))[: self.size]
            state = state.keep(tokens=ranked, pointers=())
        return ranked

    def entry_infos(self, state: Bank, frame: FrameContext) -> Sequence[EntryInfo]:
        assert isinstance(state, ScoreInputsBank), "a state that this policy has made"
        return super().entry_infos(with_inputs(state, frame), frame)


def rivals_of(state: Bank, frame: FrameContext) -> list[MemoryEntry]:
    """Tracked frames that compete when ``frame`` is written, in order."""
    return [e for e in state.entries if e.frame != frame.index]


def pointer_cosines(state: Bank, rivals: Sequence[Entry]) -> Tensor:
    """Cosines (k, 1 + k) of the pointers of k entries to those of the first prompt and of each other."""
    pointers = torch.stack([e.pointer for e in (*state.prompt_entries()[:1], *rivals)])
    return all_cosines(pointers[1:], pointers)


def with_inputs(state: ScoreInputsBank, frame: FrameContext, measured: Tensor | None = None) -> ScoreInputsBank:
    """``state`` with what its tracked frames are scored by when ``frame`` is written.

    Args:
        state: memory before the frame.
        frame: the frame.
        measured: ``pointer_cosines``, where they are known.
    """
    rivals = rivals_of(state, frame)
    if not rivals:
        return state
    if measured is None or measured.numel() != len(rivals) * (len(rivals) + 1):
        measured = pointer_cosines(state, rivals)
    rows = measured.view(len(rivals), -1).tolist()
    newest = min(range(len(rivals)), key=lambda n: abs(frame.age(rivals[n].frame)))
    of_rivals = [_inputs_of(state, frame, rivals, n, newest, row) for n, row in enumerate(rows)]
    return replace(state, inputs=tuple((e.frame, f) for e, f in zip(rivals, of_rivals)))


def _inputs_of(
    state: Bank, frame: FrameContext, rivals: Sequence[MemoryEntry], number: int, newest: int, cosines: Sequence[float]
) -> ScoreInputs:
    """Of the ``number``-th of ``rivals``."""
    entry, age = rivals[number], abs(frame.age(rivals[number].frame))
    first, *cosines = cosines
    neighbours = [*state.prompted_frames(), *(e.frame for e in rivals if e is not entry)]
    return ScoreInputs(
        age=min(1.0, math.log2(1 + age) / 8),
        previous=float(age == 1),
        gap=min(1.0, min(abs(entry.frame - index) for index in neighbours) / FAR) if neighbours else 1.0,
        iou=entry.iou,
        presence=presence(entry.objectness),
        area=area_change(entry.area, state.prompt_entries()[0].area),
        like_first=first,
        like_previous=cosines[newest],
        like_nearest=max((c for n, c in enumerate(cosines) if n != number), default=0.0),
    )


def presence(objectness: float) -> float:
    """Sigmoid of an object score."""
    return 0.5 * (1 + math.tanh(objectness / 2))


def area_change(area: float, before: float) -> float:
    """Octaves between two areas, either way, as a share of ``LARGEST_CHANGE``; 1 where either is 0, 0 where both are."""
    if area <= 0 or before <= 0:
        return float(area != before)
    return min(1.0, abs(math.log2(area / before)) / LARGEST_CHANGE)
