"""FIFO with a long tail: frames that leave it are not thrown away, the network's distiller merges them into
summaries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isqrt

from sam2_mem.memory.policy import Bank, MemoryPolicy, drop, put
from sam2_mem.memory.reading import LAST_SLOT, add_prompt, map_frames, pointer_window, within_reach
from sam2_mem.memory.trace import Action, Cause, Change, EntryInfo, Reason, TraceEvent, entry_infos, with_reasons
from sam2_mem.types import (
    MERGED_SLOT,
    PROMPT_SLOT,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadItem,
)

SLOTS = ("newest", "mean", "learned")


@dataclass(frozen=True, eq=False)
class Span:
    """What became of a few neighbouring frames: ``entry`` is that of the last of them with the merged tokens;
    ``frames`` their numbers, in the order of tracking."""

    entry: MemoryEntry
    frames: tuple[int, ...]

    def meets(self, frame: int, radius: int = 0) -> bool:
        """Whether a frame within ``radius`` of ``frame`` is in it."""
        return any(abs(f - frame) <= radius for f in self.frames)

    def moved(self, by: int) -> Span:
        return Span(replace(self.entry, frame=self.entry.frame + by), tuple(f + by for f in self.frames))


@dataclass(frozen=True, eq=False)
class Summaries(Bank):
    """``prompts`` and recent ``entries`` as in FIFO; ``waiting`` frames that have left those, whole, until their tube
    is complete; ``tail`` summaries of tubes and ``far`` summaries of two of those. The last three in the order in
    which they came."""

    waiting: tuple[MemoryEntry, ...] = ()
    tail: tuple[Span, ...] = ()
    far: tuple[Span, ...] = ()

    def spans(self) -> tuple[Span, ...]:
        return self.tail + self.far

    def all_entries(self) -> tuple[MemoryEntry, ...]:
        return self.prompts + self.entries + self.waiting + tuple(s.entry for s in self.spans())

    def without(self, frame: int, radius: int = 0) -> Summaries:
        """The same without waiting frames and summaries that hold something of a frame within ``radius``."""
        tail, far = (tuple(s for s in spans if not s.meets(frame, radius)) for spans in (self.tail, self.far))
        waiting = tuple(e for e in self.waiting if abs(e.frame - frame) > radius)
        return replace(self, waiting=waiting, tail=tail, far=far)


@dataclass(frozen=True, kw_only=True)
class Distilled(MemoryPolicy[Summaries]):
    """The latest frames whole, older ones as summaries, the oldest as summaries of summaries; ours.

    Every ``tube`` frames that leave the recent ones are merged by the network's distiller into one entry of the tail.
    When the tail is full its two oldest entries are merged once more, at a coarser grid, and the oldest of those leave
    in the end. Frames without the object do not enter the tail. The idea of a memory that grows coarser with age is
    that of XMem's tiers (Cheng and Schwing 2022) and of compressive transformers (Rae et al. 2019); what is merged,
    and how, is the distiller's affair: a network without a learned one takes means by count.

    Attributes:
        recent: past frames kept and read whole, 6 in SAM 2 and at most.
        tube: neighbouring frames merged into one entry; up to ``tube`` - 1 frames wait for it and are read whole.
        tail: most entries of the tail, and of summaries of summaries. 0: frames that leave are gone, as in FIFO.
        strength: an entry of the tail keeps one token for every ``strength`` x ``strength`` of a stored map, a summary
            of summaries one for every ``strength``^2 x ``strength``^2.
        by_age: whether there are summaries of summaries; else the oldest entry of a full tail leaves.
        slot: temporal slot of a merged entry: "newest", that of its newest frame; "mean", the mean of the learned
            codes of its frames; "learned", a code of its own (see ``types.MERGED_SLOT``).
        min_object_score: frames whose object-score logit is not above it do not enter the tail.
        max_obj_ptrs_in_encoder, max_prompts: as in FIFO.
    """

    recent: int = 2
    tube: int = 2
    tail: int = 4
    strength: int = 2
    by_age: bool = True
    slot: str = "newest"
    min_object_score: float = 0.0
    max_obj_ptrs_in_encoder: int = 16
    max_prompts: int = 32

    def __post_init__(self) -> None:
        least = {"recent": 1, "tube": 1, "tail": 0, "strength": 1, "max_obj_ptrs_in_encoder": 1, "max_prompts": 2}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"expected {name} >= {value}, got {getattr(self, name)}")
        if self.recent > LAST_SLOT + 1:
            raise ValueError(f"expected recent <= {LAST_SLOT + 1}, the temporal slots there are, got {self.recent}")
        if self.slot not in SLOTS:
            raise ValueError(f"expected slot out of {', '.join(SLOTS)}, got {self.slot!r}")

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, recent frames on both sides and waiting ones, whole; the two tiers of the tail."""
        whole = self.max_prompts + 2 * self.recent - 1 + (self.tube - 1 if self.tail else 0)
        tail = self.tail * _summary_size(tokens_per_map, self.strength)
        far = self.tail * _summary_size(tokens_per_map, self.strength**2) if self.by_age else 0
        return tokens_per_map * whole + tail + far

    def prompt(self, state: Summaries | None, frame: FrameContext, entry: MemoryEntry) -> Summaries:
        state = Summaries() if state is None else state.without(entry.frame)
        prompts = add_prompt(state.prompts, entry, self.max_prompts)
        return replace(state, prompts=prompts, entries=drop(state.entries, entry.frame))

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, state: Summaries, frame: FrameContext) -> Sequence[MemoryRead]:
        tracked = {e.frame: e for e in state.entries}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts if e.tokens is not None]
        near = [(slot, tracked.get(f)) for slot, f in map_frames(frame, num_maskmem=self.recent + 1)]
        items += [ReadItem(e.tokens, slot) for slot, e in near if e is not None and e.tokens is not None]
        others = state.without(frame.index)
        items += [ReadItem(e.tokens, _slot_at(frame, e.frame)) for e in others.waiting]
        items += [ReadItem(s.entry.tokens, self._slot_of(s, frame)) for s in others.spans()]
        pointers = pointer_window(state.prompts, tracked, frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _slot_of(self, span: Span, frame: FrameContext) -> float:
        if self.slot == "learned":
            return MERGED_SLOT
        slots = [_slot_at(frame, f) for f in span.frames]
        return min(slots) if self.slot == "newest" else sum(slots) / len(slots)

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: Summaries,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Summaries:
        tracked = state.entries
        for entry in entries:
            tracked = put(tracked, entry)
        state = state.without(frame.index)
        waiting = (*state.waiting, *self._leaving(tracked, frame)) if self.tail else ()
        reach = max(self.max_obj_ptrs_in_encoder - 1, self.recent)
        kept = within_reach(tracked, {frame.index}, token_reach=self.recent - 1, pointer_reach=reach)
        return replace(state, entries=tuple(kept), waiting=waiting[-(2 * self.recent + self.tube) :])

    def _leaving(self, tracked: Iterable[MemoryEntry], frame: FrameContext) -> list[MemoryEntry]:
        """Whole entries that the next frame will no longer read as recent, the oldest first."""
        old = [e for e in tracked if e.tokens is not None and abs(frame.age(e.frame)) >= self.recent]
        old.sort(key=lambda e: -abs(frame.age(e.frame)))
        return [replace(e, summary=None) for e in old if e.objectness > self.min_object_score]

    def condense(self, state: Summaries, frame: FrameContext) -> Sequence[MergeRequest]:
        if self.tail and len(state.waiting) >= self.tube:
            return (MergeRequest(state.waiting[: self.tube], self.strength),)
        if len(state.tail) > self.tail:
            return (MergeRequest(tuple(s.entry for s in state.tail[:2]), self.strength**2),)
        return ()

    def condensed(
        self, state: Summaries, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens
    ) -> Summaries:
        entry = replace(request.entries[-1], tokens=tokens)
        if request.entries[0] in state.waiting:
            frames = tuple(e.frame for e in request.entries)
            tail = (*state.tail, Span(entry, frames))
            waiting = state.waiting[len(frames) :]
            return replace(state, waiting=waiting, tail=tail if self.by_age else tail[-self.tail :])
        first, second, *rest = state.tail
        joined = Span(entry, first.frames + second.frames)
        return replace(state, tail=tuple(rest), far=(*state.far, joined)[-self.tail :])

    # -- changes from outside -----------------------------------------------------------------------------------

    def forget(self, state: Summaries, frame: int, radius: int) -> Summaries:
        return super().forget(state.without(frame, radius), frame, radius)

    def moved(self, state: Summaries, by: int) -> Summaries:
        tail, far = (tuple(s.moved(by) for s in spans) for spans in (state.tail, state.far))
        waiting = tuple(replace(e, frame=e.frame + by) for e in state.waiting)
        return replace(super().moved(state, by), waiting=waiting, tail=tail, far=far)

    # -- reasons ------------------------------------------------------------------------------------------------

    def notes(self, state: Summaries, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; a summary says which frames it is of."""
        waiting = {id(e): "waiting" for e in state.waiting}
        text = {id(s.entry): f"of frames {', '.join(map(str, s.frames))}" for s in state.spans()}
        kinds = waiting | dict.fromkeys(text, "summary")
        held = self.held(state)
        told = entry_infos(held, lambda e: kinds.get(id(e), "recent"), {}, "")
        return [replace(note, text=text.get(id(entry), "")) for note, entry in zip(told, held)]

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events = super().explain(change)
        if change.cause is not Cause.WRITE:
            return events
        old = change.before.spans()
        merged = {f: s for s in change.after.spans() if s not in old for f in s.frames}
        still = {f for s in change.after.spans() for f in s.frames}
        full = Reason("in the oldest summary of a full tail")
        dropped = {f: full for s in old for f in s.frames if f not in still and f != change.frame.index}
        shrunk = (Action.REDUCED, Action.EVICTED, Action.COMPACTED)
        told = [e for e in with_reasons(events, went=dropped) if not (e.action in shrunk and e.frame in merged)]
        return told + [
            TraceEvent(Action.MERGED, f, f"into a summary of {len(s.frames)} frames") for f, s in sorted(merged.items())
        ]


def _slot_at(frame: FrameContext, other: int) -> int:
    """Temporal slot of a frame by its distance, the last one from six frames on."""
    return min(max(abs(frame.age(other)) - 1, 0), LAST_SLOT)


def _summary_size(tokens_per_map: int, strength: int) -> int:
    """Tokens of a summary of maps that have this many."""
    side = isqrt(max(tokens_per_map - 1, 0)) + 1
    return (-(-side // strength)) ** 2
