"""SAMITE's selection: of many good frames those are read that look most like the newest and like the first prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.box_motion import measured_beside
from sam2_mem.memory.likeness import all_cosines, cosines
from sam2_mem.memory.motion_window import MotionBank, MotionWindow
from sam2_mem.memory.policy import Needs, setting
from sam2_mem.memory.tokens import masked_means
from sam2_mem.types import Entry, FrameContext, Hypotheses, MaskSelection, MemoryEntry

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class LikenessBank(MotionBank):
    """A state with what is known of the likeness of frames.

    Attributes:
        likenesses: cosine of summaries by the frames of a pair, the later one to come first; of tracked frames that were
            measured with the scores.
    """

    likenesses: tuple[tuple[Pair, float], ...] = ()

    def without(self, frame: int) -> Self:
        likenesses = tuple((pair, x) for pair, x in self.likenesses if frame not in pair)
        return replace(super().without(frame), likenesses=likenesses)

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        likenesses = tuple((pair, x) for pair, x in self.likenesses if entry.frame not in pair)
        return replace(super().add_prompt(entry, max_prompts), likenesses=likenesses)

    def shift_frames(self, by: int) -> Self:
        likenesses = tuple(((a + by, b + by), x) for (a, b), x in self.likenesses)
        return replace(super().shift_frames(by), likenesses=likenesses)


@dataclass(frozen=True, kw_only=True)
class Samite(MotionWindow[LikenessBank]):
    """The prototypical memory bank of SAMITE (Li et al. 2025, arXiv 2507.21732), without its position prompts.

    Masks are chosen as SAMURAI chooses them, and the candidates for reading are the newest ``window`` frames that pass
    SAMURAI's thresholds. Where these are more than are read, the newest is read and the ``num_maskmem`` - 2 others of highest
    ``alpha`` x cosine to the newest + (1 - ``alpha``) x cosine to the first prompt, of the image features averaged under
    the masks; in the order of time, in slots by rank.

    With ``window`` 6, ``min_iou``, ``min_object_score`` and ``min_overlap`` -inf and ``kf_score_weight`` 0 this is FIFO, as
    long as time does not turn round.

    Departures from the code: no second mask prompt from a prior of positions; features are averaged under the mask's
    probability, not under its binary mask; an absent object has object score 0 or below; an empty mask has likeness 0.

    Attributes:
        alpha: share of the likeness to the newest frame, 0.3.
    """

    alpha: float = setting(0.3, at_least=0.0, at_most=1.0)

    @property
    def needs(self) -> Needs:
        return Needs(summary=True, every_frame=True)

    def new_state(self, frame: FrameContext) -> LikenessBank:
        return LikenessBank()

    def compared(self, state: LikenessBank, frame: FrameContext, masks: Tensor) -> Tensor | None:
        """Cosines of every candidate's look to those of memory."""
        summaries = _looks(state, frame)
        if not summaries or frame.features is None:
            return None
        means = masked_means(frame.features.low, masks, frame.features.grid)
        return all_cosines(means, torch.stack(list(summaries.values())))

    def write(
        self,
        state: LikenessBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> LikenessBank:
        written, numbers = super().write(state, frame, hypotheses, selection, entries), measured_beside(hypotheses)
        entries_held = {e.frame for e in (*written.prompts, *written.entries)}
        likenesses = {
            pair: x for pair, x in written.likenesses if frame.index not in pair and entries_held.issuperset(pair)
        }
        if entries and numbers is not None and numbers.numel():
            row = numbers[selection.output.candidate].tolist()
            likenesses |= {
                (frame.index, f): x for f, x in zip(_looks(state, frame), row, strict=True) if f in entries_held
            }
        return replace(written, likenesses=tuple(likenesses.items()))

    def _likenesses(self, state: LikenessBank, entries: Sequence[Entry], reference: Entry) -> list[float]:
        """Cosines of summaries to that of ``reference``: known ones, or all of them asked of the device."""
        likenesses = {frozenset(pair): x for pair, x in state.likenesses}
        is_empty = [e.summary is None or reference.summary is None for e in entries]
        values = [likenesses.get(frozenset((e.frame, reference.frame))) for e in entries]
        if all(empty or x is not None for empty, x in zip(is_empty, values)):
            return [0.0 if empty or x is None else x for empty, x in zip(is_empty, values)]
        return cosines([e.summary for e in entries], reference.summary)

    def selected(self, state: LikenessBank, frame: FrameContext, candidates: Sequence[Entry]) -> list[Entry]:
        newest, others = candidates[0], candidates[1:]
        first = state.prompts[-1 if frame.reverse else 0]
        to_newest, to_first = (self._likenesses(state, others, e) for e in (newest, first))
        scores = [self.alpha * a + (1 - self.alpha) * b for a, b in zip(to_newest, to_first)]
        best = sorted(range(len(others)), key=lambda i: -scores[i])[: self.num_maskmem - 2]
        return [newest, *(others[i] for i in sorted(best))]


def _looks(state: LikenessBank, frame: FrameContext) -> dict[int, Tensor]:
    """Summaries of memory beside ``frame``, by frame."""
    entries_held = (*state.prompts, *state.entries)
    return {e.frame: e.summary for e in entries_held if e.summary is not None and e.frame != frame.index}
