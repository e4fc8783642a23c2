"""SAMITE's selection: of many good frames those are read that look most like the newest and like the first prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_mem.memory.likeness import cosines
from sam2_mem.memory.motion_window import MotionBank, MotionWindow
from sam2_mem.memory.policy import Needs, setting
from sam2_mem.types import Entry, FrameContext


@dataclass(frozen=True, kw_only=True)
class Samite(MotionWindow[MotionBank]):
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

    def new_state(self, frame: FrameContext) -> MotionBank:
        return MotionBank()

    def selected(self, state: MotionBank, frame: FrameContext, candidates: Sequence[Entry]) -> list[Entry]:
        newest, others = candidates[0], candidates[1:]
        first = state.prompts[-1 if frame.reverse else 0]
        summaries = [e.summary for e in others]
        to_newest, to_first = cosines(summaries, newest.summary), cosines(summaries, first.summary)
        scores = [self.alpha * a + (1 - self.alpha) * b for a, b in zip(to_newest, to_first)]
        best = sorted(range(len(others)), key=lambda i: -scores[i])[: self.num_maskmem - 2]
        return [newest, *(others[i] for i in sorted(best))]
