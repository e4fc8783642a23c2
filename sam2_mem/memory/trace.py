"""What memory tells about itself: events with reasons, and notes on what is held. Asked for by listeners only.

A policy answers two questions about values that it has given out before, so tracing never touches tracking:
``explain`` (what has this change done, and why) and ``notes`` (what is held, as what, by which score). The tracker
makes a :class:`TraceRecord` of the answers, plain values that keep no tensor alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.types import (
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadUsage,
)


class Cause(Enum):
    """What made memory change."""

    PROMPT = "prompt"
    WRITE = "write"
    FORGET = "forget"
    UNPROMPT = "unprompt"
    LOAD = "load"
    READ = "read"
    """Nothing changed: frozen memory was read."""


class Action(Enum):
    """What happened to an entry, a frame or a pathway."""

    WRITTEN = "written"
    REPLACED = "replaced"
    EVICTED = "evicted"
    REDUCED = "reduced"
    """Its spatial memory left, its pointer stays."""
    COMPACTED = "compacted"
    MERGED = "merged"
    PROMOTED = "promoted"
    RELEASED = "released"
    """A prompt became a tracked entry."""
    KEPT = "kept"
    """It took part in a contest for its place, and won."""
    REJECTED = "rejected"
    """A frame that did not get where it might have got."""
    CHOSEN = "chosen"
    """A mask that other reasons than the predicted IoU decided on."""
    BRANCHED = "branched"
    """Pathway ``pathway`` goes on from pathway ``parent`` of the frame before."""
    REVISED = "revised"
    """The mask already shown of this frame was replaced."""


@dataclass(frozen=True)
class TraceEvent:
    """One thing that happened.

    ``frame`` it happened to, None for memory that is of no one frame; ``reason`` a clause for people; ``score`` the
    number that decided and ``limit`` what it was held against; ``pathway``, ``parent`` where there are several
    pathways, the best being 0.
    """

    action: Action
    frame: int | None
    reason: str
    score: float | None = None
    limit: float | None = None
    pathway: int | None = None
    parent: int | None = None


@dataclass(frozen=True, eq=False)
class EntryInfo:
    """What a policy says of something it holds.

    ``frame`` it is of, None for memory that stands for several frames; ``kind`` the policy's own word for its place;
    ``tokens`` spatial memory, by which its reads are recognised, None where there is none or it is made on reading;
    ``score`` and ``score_name``: what decides whether it stays, if anything does; ``pathways`` that hold it; ``text``
    anything else; ``count`` of spatial tokens held, where ``tokens`` does not say.
    """

    frame: int | None
    kind: str
    tokens: MemoryTokens | None
    score: float | None = None
    score_name: str = ""
    pathways: tuple[int, ...] = (0,)
    text: str = ""
    count: int | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """One change of one object's memory, as the policy made it: ``cause`` the verb, ``before`` (None before the first
    prompt) and ``after`` (None after the last was taken back); of a write also what it was given. ``usage``: attention
    per pathway, where the listener asked for it or the policy did."""

    cause: Cause
    frame: FrameContext
    before: Any
    after: Any
    hypotheses: Hypotheses | None = None
    choice: MaskSelection | None = None
    entries: tuple[MemoryEntry, ...] = ()
    usage: tuple[ReadUsage, ...] | None = None

    @property
    def shown(self) -> CandidateId:
        """The candidate shown, of a write."""
        assert self.choice is not None, "only a write has a choice"
        return self.choice.output

    @property
    def shown_iou(self) -> float:
        """Predicted IoU of the mask shown, of a write."""
        return self.hypotheses.iou[self.shown.pathway][self.shown.candidate]

    @property
    def shown_objectness(self) -> float:
        """Object-score logit of the mask shown, of a write."""
        return self.hypotheses.objectness[self.shown.pathway]


# -- what the tracker makes of it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadTrace:
    """One item of a read: ``pathway`` that read it, ``frame`` and ``kind`` of what was read, temporal ``slot``,
    ``gain``, ``tokens`` read, and ``mass``, its share of the attention of that pathway; None where it was not
    measured."""

    pathway: int
    frame: int | None
    kind: str
    slot: int | None
    gain: float
    tokens: int
    mass: float | None


@dataclass(frozen=True)
class EntryTrace:
    """An :class:`EntryInfo` without its tensors: ``tokens`` is their number."""

    frame: int | None
    kind: str
    tokens: int
    score: float | None
    score_name: str
    pathways: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class TraceRecord:
    """What a listener hears: one change of one object's memory.

    ``found``: memory before the change; ``readings``: what of it this frame attended to, () where nothing was read;
    ``pointers``: object pointers read, over distinct pathways; ``events``: what the change did; ``held``: memory after
    it; ``tokens`` and ``bytes`` of it; ``pathways``: how many there were to read.
    """

    obj_id: int
    frame: int
    reverse: bool
    cause: Cause
    found: tuple[EntryTrace, ...]
    readings: tuple[ReadTrace, ...]
    pointers: int
    events: tuple[TraceEvent, ...]
    held: tuple[EntryTrace, ...]
    tokens: int
    bytes: int
    pathways: int = 0


class Listener(Protocol):
    """Who wants to know. ``read_mass``: also measure the attention that every item of a read receives, which costs one
    more attention map a frame and changes no result."""

    read_mass: bool

    def hear(self, moment: TraceRecord) -> None: ...


class Policy(Protocol):
    """The verbs of a policy that tracing asks."""

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]: ...

    def notes(self, state: Any, frame: FrameContext) -> Sequence[EntryInfo]: ...

    def explain(self, change: Change) -> Sequence[TraceEvent]: ...

    def token_count(self, state: Any) -> int: ...

    def tensors(self, state: Any) -> tuple[Tensor, ...]: ...


def trace_record(policy: Policy, obj_id: int, change: Change) -> TraceRecord:
    """Ask ``policy`` about ``change``."""
    read = change.cause in (Cause.WRITE, Cause.READ)
    found = () if change.before is None else tuple(policy.notes(change.before, change.frame))
    held = () if change.after is None else tuple(policy.notes(change.after, change.frame))
    reads = tuple(policy.read(change.before, change.frame)) if read else ()
    distinct = {r.key(): r for r in reads}.values()
    return TraceRecord(
        obj_id=obj_id,
        frame=change.frame.index,
        reverse=change.frame.reverse,
        cause=change.cause,
        found=tuple(_plain(n) for n in found),
        readings=tuple(x for p, r in enumerate(reads) for x in _readings(p, r, found, _masses(change, p, r))),
        pointers=sum(len(r.pointers) for r in distinct),
        events=tuple(policy.explain(change)),
        held=tuple(_plain(n) for n in held),
        tokens=0 if change.after is None else policy.token_count(change.after),
        bytes=0 if change.after is None else tensor_bytes(policy.tensors(change.after)),
        pathways=len(reads),
    )


def _plain(note: EntryInfo) -> EntryTrace:
    count = note.count or (0 if note.tokens is None else len(note.tokens))
    return EntryTrace(note.frame, note.kind, count, note.score, note.score_name, note.pathways, note.text)


def _readings(
    pathway: int, read: MemoryRead, found: Sequence[EntryInfo], masses: Sequence[float | None]
) -> list[ReadTrace]:
    """What one pathway read. An item that belongs to no entry was made on reading, from memory of several frames."""
    known = {id(n.tokens): n for n in found if n.tokens is not None}
    made = next((n for n in found if n.frame is None and n.tokens is None), EntryInfo(None, "made on reading", None))
    notes = [known.get(id(item.tokens), made) for item in read.items]
    return [
        ReadTrace(pathway, n.frame, n.kind, i.slot, i.gain, len(i.tokens), m)
        for n, i, m in zip(notes, read.items, masses)
    ]


def _masses(change: Change, pathway: int, read: MemoryRead) -> Sequence[float | None]:
    if change.usage is None:
        return [None] * len(read.items)
    assert change.frame.features is not None, "attention is measured on a frame"
    masses = shares(change.usage[pathway], change.frame.features.low.shape[0])
    assert len(masses) == len(read.items), "usage must be that of this read"
    return masses


def shares(usage: ReadUsage, queries: int) -> list[float]:
    """Share of the attention of all ``queries`` (image tokens) that each item received; pointers hold the rest."""
    if usage.items is not None:
        return usage.items.float().mean(0).tolist() if usage.items.shape[1] else []
    return [float(t.sum()) / queries for t in usage.tokens or ()]


# -- what holds for every policy --------------------------------------------------------------------------------------


def entry_infos(
    held: Sequence[MemoryEntry], kind: Callable[[MemoryEntry], str], scores: Mapping[int, float], name: str
) -> list[EntryInfo]:
    """Notes on entries: ``kind`` of those that are neither prompts nor bare pointers, ``scores`` by frame."""
    notes = []
    for entry in held:
        plain = plain_kind(entry)
        score = scores.get(entry.frame)
        word = kind(entry) if plain == "map" else plain
        notes.append(EntryInfo(entry.frame, word, entry.tokens, score, name if score is not None else ""))
    return notes


def plain_notes(held: Sequence[MemoryEntry]) -> list[EntryInfo]:
    """Entries as what they are: prompts, maps, pointers."""
    return [EntryInfo(e.frame, plain_kind(e), e.tokens) for e in held]


def plain_kind(entry: MemoryEntry) -> str:
    """The kind of an entry of which no more is known."""
    return "prompt" if entry.is_prompt else "pointer" if entry.tokens is None else "map"


def plain_events(change: Change, before: Sequence[MemoryEntry], after: Sequence[MemoryEntry]) -> list[TraceEvent]:
    """What a comparison of the entries held before and after shows; an entry is known by its frame and its pointer."""
    old, new = _by_identity(before), _by_identity(after)
    came = [e for key, e in new.items() if key not in old]
    gone = [e for key, e in old.items() if key not in new]
    events = [_entered(change, e, e.frame in {g.frame for g in gone}) for e in came]
    if change.cause is Cause.WRITE and not came:
        given = any(change.entries)
        reason = "not kept" if given else "nothing was remembered"
        events.append(TraceEvent(Action.REJECTED, change.frame.index, reason))
    for key, entry in old.items():
        if key in new:
            events += _changed(entry, new[key])
    held = {e.frame for e in new.values()}
    lost = {e.frame: e for e in gone if e.frame not in held}
    return events + [TraceEvent(Action.EVICTED, f, _why_lost(change, e)) for f, e in lost.items()]


def _why_lost(change: Change, entry: MemoryEntry) -> str:
    if change.cause is Cause.WRITE and entry.tokens is None:
        return "its pointer is out of reach of every read"
    return _LEFT[change.cause]


_LEFT = {
    Cause.PROMPT: "made room for the prompt",
    Cause.WRITE: "out of reach of every read",
    Cause.FORGET: "near a correction",
    Cause.UNPROMPT: "its prompt was taken back",
    Cause.LOAD: "replaced by a loaded memory",
    Cause.READ: "left",
}


def _by_identity(entries: Sequence[MemoryEntry]) -> dict[tuple[int, int], MemoryEntry]:
    """Entries by frame and pointer; whole where any of several is whole."""
    found: dict[tuple[int, int], MemoryEntry] = {}
    for entry in entries:
        key = (entry.frame, id(entry.pointer))
        if key not in found or found[key].tokens is None:
            found[key] = entry
    return found


def _entered(change: Change, entry: MemoryEntry, replaces: bool) -> TraceEvent:
    if change.cause is Cause.LOAD:
        return TraceEvent(Action.WRITTEN, entry.frame, "loaded from a file")
    action = Action.REPLACED if replaces else Action.WRITTEN
    return TraceEvent(action, entry.frame, "prompted" if entry.is_prompt else "tracked")


def _changed(old: MemoryEntry, new: MemoryEntry) -> list[TraceEvent]:
    events = []
    if old.is_prompt and not new.is_prompt:
        events.append(TraceEvent(Action.RELEASED, old.frame, "its prompt was taken back"))
    before, after = (0 if e.tokens is None else len(e.tokens) for e in (old, new))
    if before and not after:
        events.append(TraceEvent(Action.REDUCED, old.frame, "no read reaches its map any more"))
    elif after < before:
        events.append(TraceEvent(Action.COMPACTED, old.frame, f"{before} to {after} tokens"))
    return events


class Reason(NamedTuple):
    """A reason, the score that decided and what it was held against."""

    reason: str
    score: float | None = None
    limit: float | None = None

    def event(self, action: Action, frame: int | None) -> TraceEvent:
        return TraceEvent(action, frame, self.reason, self.score, self.limit)


_CAME = (Action.WRITTEN, Action.REPLACED)
_WENT = (Action.EVICTED, Action.REDUCED, Action.COMPACTED, Action.MERGED)


def with_reasons(
    events: Iterable[TraceEvent],
    *,
    came: Mapping[int, Reason] = MappingProxyType({}),
    went: Mapping[int, Reason] = MappingProxyType({}),
    kept: Mapping[int, Reason] = MappingProxyType({}),
) -> list[TraceEvent]:
    """``events`` with reasons by frame for what entered, for what left or shrank, and, as events of their own, for what
    won the contest."""
    told = []
    for event in events:
        reasons = came if event.action in _CAME else went if event.action in _WENT else {}
        why = reasons.get(event.frame)
        told.append(event if why is None else why.event(event.action, event.frame))
    return told + [why.event(Action.KEPT, frame) for frame, why in kept.items()]


__getattr__ = renamed(__name__)
