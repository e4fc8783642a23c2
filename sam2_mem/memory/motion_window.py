"""A window of good frames out of which a few are read, for policies that choose masks by motion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from typing_extensions import Self

from sam2_mem.memory.box_motion import ChoosesByMotion, FollowedBank, MotionSelection
from sam2_mem.memory.policy import setting
from sam2_mem.memory.reading import anchors_of, newest_first, pointer_window, tracked_near
from sam2_mem.memory.trace import EntryInfo, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
)


@dataclass(frozen=True, eq=False)
class MotionBank(FollowedBank):
    """A state with how well the predicted box was met.

    Attributes:
        overlaps: (frame, overlap with the predicted box) of tracked frames on which it was measured.
    """

    overlaps: tuple[tuple[int, float], ...] = ()

    def shift_frames(self, by: int) -> Self:
        """As in ``FollowedBank``."""
        return replace(super().shift_frames(by), overlaps=tuple((f + by, overlap) for f, overlap in self.overlaps))


S = TypeVar("S", bound=MotionBank)


@dataclass(frozen=True, kw_only=True)
class MotionWindow(ChoosesByMotion[S]):
    """A policy that chooses masks as SAMURAI does and keeps a window of good frames, out of which ``selected`` takes those
    that are read.

    A frame is good if its predicted IoU, its object score and its overlap with the predicted box, where that was measured,
    are above their thresholds. The previous frame is read in any case. Slots are by rank, pointers those of SAM 2.

    Attributes:
        window: good frames kept with their maps.
        num_maskmem: maps read, one of them for the prompts.
        min_iou: predicted IoU that a good frame is above.
        min_object_score: object-score logit that it is above.
        min_overlap: overlap with the predicted box that it is above.
    """

    window: int = setting(30, at_least=1)
    num_maskmem: int = setting(7, at_least=2)
    min_iou: float = 0.5
    min_object_score: float = 0.0
    min_overlap: float = 0.0

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, the window, the newest frame."""
        return tokens_per_map * (self.max_prompts + self.window + 1)

    @abstractmethod
    def selected(self, state: S, frame: FrameContext, candidates: Sequence[Entry]) -> list[Entry]:
        """At most ``num_maskmem`` - 1 of ``candidates``, which are more and come newest first, the previous frame ahead of all.
        Pure."""

    def is_good(self, state: S, entry: Entry) -> bool:
        """Whether ``entry`` is above all thresholds."""
        overlap = dict(state.overlaps).get(entry.frame)
        on_course = overlap is None or overlap > self.min_overlap
        return entry.iou > self.min_iou and entry.objectness > self.min_object_score and on_course

    def read(self, state: S, frame: FrameContext) -> Sequence[MemoryRead]:
        tracked = state.tracked()
        prompted = set(state.prompted_frames())
        good = lambda e: self.is_good(state, e)  # noqa: E731
        ranked = newest_first(tracked.values(), prompted, frame, accept=good, max_accepted=self.window)
        if len(ranked) > self.num_maskmem - 1:
            candidates = [e for e in ranked if isinstance(e, MemoryEntry)]
            is_choice = len(candidates) > self.num_maskmem - 1
            ranked = [*(self.selected(state, frame, candidates) if is_choice else candidates)]
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts]
        items += [ReadItem(e.tokens, slot) for slot, e in enumerate(ranked) if isinstance(e, MemoryEntry)]
        pointers = pointer_window(state.prompt_entries(), tracked, frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def write(
        self,
        state: S,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> S:
        assert isinstance(selection, MotionSelection), "a selection that this policy has made"
        motion = self.motion_after(state, frame, hypotheses, selection)
        measured = {f: overlap for f, overlap in state.overlaps if f != frame.index}
        overlap = self.overlap(selection)
        if overlap is not None:
            measured[frame.index] = overlap
        grown = replace(state.add(*entries), motion=motion, overlaps=tuple(measured.items()))
        return self._evict(grown, frame)

    def overlap(self, selection: MotionSelection) -> float | None:
        """What is remembered as the overlap with the predicted box: SAMURAI's score, None while its filter is not trusted."""
        return selection.kf_score

    def _evict(self, state: S, frame: FrameContext) -> S:
        good = [e for e in state.entries if e.frame != frame.index and self.is_good(state, e)]
        nearest = {e.frame for e in sorted(good, key=lambda e: abs(frame.age(e.frame)))[: self.window]}
        reach, anchors = self.max_obj_ptrs_in_encoder - 1, anchors_of(state, frame.index)
        near = tracked_near(state, anchors, reach)
        bank = state.keep(tokens=nearest | {frame.index}, pointers=near)
        frames = bank.tracked()
        return replace(bank, overlaps=tuple((f, x) for f, x in state.overlaps if f in frames))

    def entry_infos(self, state: S, frame: FrameContext) -> Sequence[EntryInfo]:
        kind = lambda e: "good" if self.is_good(state, e) else "doubtful"  # noqa: E731
        return entry_infos(state.all_entries(), kind, {e.frame: e.iou for e in state.entries}, "predicted IoU")
