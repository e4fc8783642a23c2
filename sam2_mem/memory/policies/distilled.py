"""FIFO with a long tail: frames that leave it are not thrown away, the network's distiller merges them into
summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

from typing_extensions import Self

from sam2_mem._moved import renamed
from sam2_mem.memory.bank import Bank, shifted
from sam2_mem.memory.policy import MemoryPolicy, setting
from sam2_mem.memory.reading import LAST_SLOT, map_frames, pointer_window
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    MERGED_SLOT,
    PROMPT_SLOT,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadItem,
)


@dataclass(frozen=True, eq=False)
class Summary:
    """What became of a few neighbouring frames.

    Attributes:
        entry: that of the last of them, with the merged tokens.
        frames: their numbers, in the order of tracking.
    """

    entry: MemoryEntry
    frames: tuple[int, ...]

    def meets(self, frame: int, radius: int = 0) -> bool:
        """Whether a frame within ``radius`` of ``frame`` is in it."""
        return any(abs(f - frame) <= radius for f in self.frames)

    def shift_frames(self, by: int) -> Summary:
        """With every frame number shifted by ``by``."""
        return Summary(replace(self.entry, frame=self.entry.frame + by), tuple(f + by for f in self.frames))


@dataclass(frozen=True, eq=False)
class Summaries(Bank):
    """``prompts`` and recent ``entries`` as in FIFO, and older frames in the order in which they came.

    Attributes:
        waiting: whole frames that have left ``entries``, until their tube is complete.
        tail: summaries of tubes.
        coarse: summaries of two of those, at a coarser grid.
    """

    waiting: tuple[MemoryEntry, ...] = ()
    tail: tuple[Summary, ...] = ()
    coarse: tuple[Summary, ...] = ()

    def summaries(self) -> tuple[Summary, ...]:
        """Those of both tiers."""
        return self.tail + self.coarse

    def all_entries(self) -> tuple[Entry, ...]:
        return (*super().all_entries(), *self.waiting, *(s.entry for s in self.summaries()))

    def without_older(self, frame: int, radius: int = 0) -> Self:
        """Without waiting frames and summaries that hold something of a frame within ``radius`` of ``frame``."""
        tail, coarse = (tuple(s for s in tier if not s.meets(frame, radius)) for tier in (self.tail, self.coarse))
        waiting = tuple(e for e in self.waiting if abs(e.frame - frame) > radius)
        return replace(self, waiting=waiting, tail=tail, coarse=coarse)

    def without(self, frame: int) -> Self:
        return super().without(frame).without_older(frame)

    def forget(self, frame: int, radius: int) -> Self:
        return super().forget(frame, radius).without_older(frame, radius)

    def shift_frames(self, by: int) -> Self:
        tail, coarse = (tuple(s.shift_frames(by) for s in tier) for tier in (self.tail, self.coarse))
        return replace(super().shift_frames(by), waiting=shifted(self.waiting, by), tail=tail, coarse=coarse)


@dataclass(frozen=True, kw_only=True)
class Distilled(MemoryPolicy[Summaries]):
    """The latest frames whole, older ones as summaries, the oldest as summaries of summaries; ours.

    Every ``tube`` frames that leave the recent ones are merged by the network's distiller into one entry of the tail.
    When the tail is full its two oldest entries are merged once more, at a coarser grid, and the oldest of those leave
    in the end. Frames without the object do not enter the tail. The idea of a memory that grows coarser with age is
    that of XMem's tiers (Cheng and Schwing 2022) and of compressive transformers (Rae et al. 2019); what is merged,
    and how, is the distiller's affair: a network without a learned one takes means by count.

    Attributes:
        recent: past frames kept and read whole, 6 in SAM 2 and at most, since there are no more temporal slots.
        tube: neighbouring frames merged into one entry; up to ``tube`` - 1 frames wait for it and are read whole.
        tail: most entries of the tail, and of summaries of summaries. 0: frames that leave are gone, as in FIFO.
        strength: an entry of the tail keeps one token for every ``strength`` x ``strength`` of a stored map, a summary
            of summaries one for every ``strength``^2 x ``strength``^2.
        by_age: whether there are summaries of summaries; else the oldest entry of a full tail leaves.
        slot: temporal slot of a merged entry: "newest", that of its newest frame; "mean", the mean of the learned
            codes of its frames; "learned", a code of its own (see ``types.MERGED_SLOT``).
        min_object_score: frames whose object-score logit is not above it do not enter the tail.
    """

    recent: int = setting(2, at_least=1, at_most=LAST_SLOT + 1)
    tube: int = setting(2, at_least=1)
    tail: int = setting(4, at_least=0)
    strength: int = setting(2, at_least=1)
    by_age: bool = True
    slot: str = setting("newest", choices=("newest", "mean", "learned"))
    min_object_score: float = 0.0

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, recent frames on both sides and waiting ones, whole; the two tiers of the tail."""
        maps = self.max_prompts + 2 * self.recent - 1 + (self.tube - 1 if self.tail else 0)
        tail = self.tail * _summary_size(tokens_per_map, self.strength)
        coarse = self.tail * _summary_size(tokens_per_map, self.strength**2) if self.by_age else 0
        return tokens_per_map * maps + tail + coarse

    def new_state(self, frame: FrameContext) -> Summaries:
        return Summaries()

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, state: Summaries, frame: FrameContext) -> Sequence[MemoryRead]:
        recent = {e.frame: e for e in state.entries}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts]
        slots = map_frames(frame, num_maskmem=self.recent + 1)
        items += [ReadItem(recent[f].tokens, slot) for slot, f in slots if f in recent]
        older = state.without_older(frame.index)
        items += [ReadItem(e.tokens, _slot_at(frame, e.frame)) for e in older.waiting]
        items += [ReadItem(s.entry.tokens, self._slot_of(s, frame)) for s in older.summaries()]
        pointers = pointer_window(state.prompts, state.tracked(), frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _slot_of(self, summary: Summary, frame: FrameContext) -> float:
        if self.slot == "learned":
            return MERGED_SLOT
        slots = [_slot_at(frame, f) for f in summary.frames]
        return min(slots) if self.slot == "newest" else sum(slots) / len(slots)

    # -- writing ------------------------------------------------------------------------------------------------

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """The recent frames; those in summaries are read as such."""
        return [f for _, f in map_frames(frame, num_maskmem=self.recent + 1)], super().frames_behind(frame)[1]

    def write(
        self,
        state: Summaries,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Summaries:
        state = state.without_older(frame.index).add(*entries)
        waiting = (*state.waiting, *self._leaving(state, frame)) if self.tail else ()
        reach = max(self.max_obj_ptrs_in_encoder - 1, self.recent)
        state = state.keep_near({frame.index}, token_reach=self.recent - 1, pointer_reach=reach)
        return replace(state, waiting=waiting[-(2 * self.recent + self.tube) :], reasons=())

    def _leaving(self, state: Summaries, frame: FrameContext) -> list[MemoryEntry]:
        """Entries that the next frame will no longer read as recent, the oldest first; those that came back after a jump are
        in the tail already."""
        old = [e for e in state.entries if abs(frame.age(e.frame)) >= self.recent]
        known = {e.frame for e in state.waiting}.union(*(s.frames for s in state.summaries()))
        old = [e for e in old if e.frame not in known]
        old.sort(key=lambda e: -abs(frame.age(e.frame)))
        return [replace(e, summary=None) for e in old if e.objectness > self.min_object_score]

    def merge_requests(self, state: Summaries, frame: FrameContext) -> Sequence[MergeRequest]:
        if self.tail and len(state.waiting) >= self.tube:
            return (MergeRequest(state.waiting[: self.tube], self.strength),)
        if len(state.tail) > self.tail:
            return (MergeRequest(tuple(s.entry for s in state.tail[:2]), self.strength**2),)
        return ()

    def take_merged(
        self, state: Summaries, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens
    ) -> Summaries:
        entry = replace(request.entries[-1], tokens=tokens)
        if request.entries[0] in state.waiting:
            merged = Summary(entry, tuple(e.frame for e in request.entries))
            tail = (*state.tail, merged)
            excess = () if self.by_age else tail[: -self.tail]
            waiting = state.waiting[len(request.entries) :]
            state = replace(state, waiting=waiting, tail=tail[len(excess) :])
        else:
            first, second, *younger = state.tail
            merged = Summary(entry, first.frames + second.frames)
            coarse = (*state.coarse, merged)
            excess = coarse[: -self.tail]
            state = replace(state, tail=tuple(younger), coarse=coarse[len(excess) :])
        return replace(state, reasons=_with_merged(state.reasons, merged, excess))

    # -- reasons ------------------------------------------------------------------------------------------------

    def entry_infos(self, state: Summaries, frame: FrameContext) -> Sequence[EntryInfo]:
        """A summary says which frames it is of."""
        texts = {id(s.entry): f"of frames {', '.join(map(str, s.frames))}" for s in state.summaries()}
        kinds = {id(e): "waiting" for e in state.waiting} | dict.fromkeys(texts, "summary")
        entries = state.all_entries()
        infos = entry_infos(entries, lambda e: kinds.get(id(e), "recent"), {}, "")
        return [replace(info, text=texts.get(id(entry), "")) for info, entry in zip(infos, entries)]


def _with_merged(reasons: Sequence[Reason], merged: Summary, excess: Sequence[Summary]) -> tuple[Reason, ...]:
    """``reasons`` of one write with what a merge adds; of a frame merged twice, or merged and dropped, the last counts."""
    dropped = [f for s in excess for f in s.frames]
    text = f"into a summary of {len(merged.frames)} frames"
    return (
        *(r for r in reasons if r.frame not in merged.frames and r.frame not in dropped),
        *(Reason(f, "in the oldest summary of a full tail") for f in dropped),
        *(Reason(f, text, action=Action.MERGED) for f in sorted(merged.frames) if f not in dropped),
    )


def _slot_at(frame: FrameContext, index: int) -> int:
    """Temporal slot of frame ``index`` by its distance, the last one from six frames on."""
    return min(max(abs(frame.age(index)) - 1, 0), LAST_SLOT)


def _summary_size(tokens_per_map: int, strength: int) -> int:
    """Tokens of a summary of maps that have this many."""
    side = isqrt(max(tokens_per_map - 1, 0)) + 1
    return (-(-side // strength)) ** 2


__getattr__ = renamed(__name__)
