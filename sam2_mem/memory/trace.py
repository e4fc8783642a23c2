"""What memory does, for listeners: events with reasons, and what is held.

A comparison of two states says what happened, the reasons that the policy's ``write`` left in the state say why, and
``entry_infos`` of a policy that ``Explains`` says as what an entry is held, and by which
score. The tracker makes a ``TraceRecord`` of them, plain values that keep no tensor alive; tracking never depends on it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.types import (
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadItem,
    ReadUsage,
)


class Cause(Enum):
    """What made memory change."""

    PROMPT = "prompt"
    WRITE = "write"
    FORGET = "forget"
    UNPROMPT = "unprompt"
    LOAD = "load"
    RECALL = "recall"
    """After a jump, frames that had left and are read there came back."""
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
class Reason:
    """Why memory changed as it did, left in the state by the write that decided it.

    Attributes:
        frame: the frame it is about, None for memory that belongs to no single frame.
        text: a clause for people.
        score: the number that decided.
        limit: what the score was compared with.
        action: makes it an event of its own; None says why the frame came or went.
        pathway: the pathway, where there are several.
        parent: the pathway that it goes on from.
    """

    frame: int | None
    text: str
    score: float | None = None
    limit: float | None = None
    action: Action | None = None
    pathway: int | None = None
    parent: int | None = None

    def event(self, action: Action) -> TraceEvent:
        return TraceEvent(action, self.frame, self.text, self.score, self.limit, self.pathway, self.parent)


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
    selection: MaskSelection | None = None
    entries: tuple[MemoryEntry, ...] = ()
    usage: tuple[ReadUsage, ...] | None = None


# -- what the tracker makes of it -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReadTrace:
    """One item of a read: ``pathway`` that read it, ``frame`` and ``kind`` of what was read, temporal ``slot``,
    ``gain``, ``tokens`` read, and ``mass``, its share of the attention of that pathway; None where it was not
    measured."""

    pathway: int
    frame: int | None
    kind: str
    slot: float | None
    gain: float
    tokens: int
    mass: float | None


@dataclass(frozen=True)
class EntryTrace:
    """An ``EntryInfo`` without its tensors: ``tokens`` is their number."""

    frame: int | None
    kind: str
    tokens: int
    score: float | None
    score_name: str
    pathways: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class TraceRecord:
    """What a listener receives: one change of one object's memory.

    ``held_before``: memory before the change; ``readings``: what of it this frame attended to, () where nothing was read;
    ``pointers``: object pointers read, over distinct pathways; ``events``: what the change did; ``held``: memory after
    it; ``tokens`` and ``bytes`` of it; ``pathways``: how many there were to read.
    """

    obj_id: int
    frame: int
    reverse: bool
    cause: Cause
    held_before: tuple[EntryTrace, ...]
    readings: tuple[ReadTrace, ...]
    pointers: int
    events: tuple[TraceEvent, ...]
    held: tuple[EntryTrace, ...]
    tokens: int
    bytes: int
    pathways: int = 0

    @property
    def found(self) -> tuple[EntryTrace, ...]:
        """Earlier name of ``held_before``."""
        warnings.warn("TraceRecord.found is now TraceRecord.held_before", FutureWarning, stacklevel=2)
        return self.held_before


class Listener(Protocol):
    """Receives a record of every change of memory (``notify``)."""

    read_mass: bool
    """Also measure the attention that every item of a read receives, which costs one more attention map a frame and changes
    no result."""

    def on_change(self, record: TraceRecord) -> None: ...


def reports_usage(listener: Listener | None) -> bool:
    """Whether the attention of every read is measured for a listener."""
    return listener is not None and listener.read_mass


def notify(listener: Listener, record: TraceRecord) -> None:
    """Give ``record`` to ``listener``, also to one that still calls the method ``hear``."""
    receive = getattr(listener, "on_change", None)
    if receive is None:
        warnings.warn("Listener.hear is now Listener.on_change; rename the method", FutureWarning, stacklevel=2)
        receive = listener.hear  # type: ignore[attr-defined]
    receive(record)


@runtime_checkable
class Explains(Protocol):
    """Ability of a policy: says as what it holds its entries, and by which score."""

    def entry_infos(self, state: Any, frame: FrameContext) -> Sequence[EntryInfo]:
        """One info for everything that ``state`` holds. Pure."""


class Reads(Protocol):
    """What a record asks of a policy."""

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]: ...


def trace_record(policy: Reads, obj_id: int, change: Change) -> TraceRecord:
    """The record of ``change``."""
    before = () if change.before is None else tuple(infos_of(policy, change.before, change.frame))
    after = () if change.after is None else tuple(infos_of(policy, change.after, change.frame))
    reads = tuple(policy.read(change.before, change.frame)) if change.cause in (Cause.WRITE, Cause.READ) else ()
    distinct = {r.key(): r for r in reads}.values()
    return TraceRecord(
        obj_id=obj_id,
        frame=change.frame.index,
        reverse=change.frame.reverse,
        cause=change.cause,
        held_before=tuple(_plain(info) for info in before),
        readings=tuple(x for p, r in enumerate(reads) for x in _readings(p, r, before, _masses(change, p, r))),
        pointers=sum(len(r.pointers) for r in distinct),
        events=tuple(change_events(change)),
        held=tuple(_plain(info) for info in after),
        tokens=0 if change.after is None else change.after.token_count(),
        bytes=0 if change.after is None else tensor_bytes(change.after.tensors()),
        pathways=len(reads),
    )


def infos_of(policy: Reads, state: Any, frame: FrameContext) -> Sequence[EntryInfo]:
    """What ``state`` holds, in the policy's own words where it has some."""
    return policy.entry_infos(state, frame) if isinstance(policy, Explains) else plain_infos(state.all_entries())


def change_events(change: Change) -> list[TraceEvent]:
    """What a change has done to memory; of a write also why, as the policy left it in the state."""
    before, after = (() if s is None else s.all_entries() for s in (change.before, change.after))
    events = plain_events(change, before, after)
    return with_reasons(events, change.after.reasons) if change.cause is Cause.WRITE else events


def _plain(info: EntryInfo) -> EntryTrace:
    count = info.count or (0 if info.tokens is None else len(info.tokens))
    return EntryTrace(info.frame, info.kind, count, info.score, info.score_name, info.pathways, info.text)


def _readings(
    pathway: int, read: MemoryRead, infos: Sequence[EntryInfo], masses: Sequence[float | None]
) -> list[ReadTrace]:
    """What one pathway read. An item that belongs to no entry was made on reading, from memory of several frames."""
    by_tokens = {id(i.tokens): i for i in infos if i.tokens is not None}
    merged = next((i for i in infos if i.frame is None and i.tokens is None), EntryInfo(None, "made on reading", None))
    return [
        ReadTrace(pathway, info.frame, info.kind, known_slot(item), item.gain, len(item.tokens), mass)
        for item, mass in zip(read.items, masses)
        for info in (by_tokens.get(id(item.tokens), merged),)
    ]


def known_slot(item: ReadItem) -> float | None:
    """The slot of an item; None also where only the device knows it."""
    return None if isinstance(item.slot, Tensor) else item.slot


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
    entries: Sequence[Entry], kind: Callable[[MemoryEntry], str], scores: Mapping[int, float], name: str
) -> list[EntryInfo]:
    """Infos of entries.

    Args:
        entries: all that is held.
        kind: says as what an entry is held that is neither a prompt nor a pointer alone.
        scores: by frame.
        name: of the score.
    """
    infos = []
    for entry in entries:
        tracked = isinstance(entry, MemoryEntry) and not entry.is_prompt
        score = scores.get(entry.frame)
        text = kind(entry) if tracked else plain_kind(entry)  # type: ignore[arg-type]
        infos.append(EntryInfo(entry.frame, text, entry.tokens, score, name if score is not None else ""))
    return infos


def plain_infos(entries: Sequence[Entry]) -> list[EntryInfo]:
    """Entries as what they are: prompts, maps, pointers."""
    return [EntryInfo(e.frame, plain_kind(e), e.tokens) for e in entries]


def plain_kind(entry: Entry) -> str:
    """The kind of an entry of which no more is known."""
    return "prompt" if entry.is_prompt else "pointer" if entry.tokens is None else "map"


def plain_events(change: Change, before: Sequence[Entry], after: Sequence[Entry]) -> list[TraceEvent]:
    """What a comparison of the entries held before and after shows; an entry is known by its frame and its pointer."""
    old, new = _by_identity(before), _by_identity(after)
    arrived = [e for key, e in new.items() if key not in old]
    departed = [e for key, e in old.items() if key not in new]
    events = [_arrival(change, e, e.frame in {d.frame for d in departed}) for e in arrived]
    if change.cause is Cause.WRITE and not arrived:
        reason = "not kept" if change.entries else "nothing was remembered"
        events.append(TraceEvent(Action.REJECTED, change.frame.index, reason))
    for key, entry in old.items():
        if key in new:
            events += _alterations(entry, new[key])
    frames = {e.frame for e in new.values()}
    evicted = {e.frame: e for e in departed if e.frame not in frames}
    events += [TraceEvent(Action.EVICTED, f, _eviction_reason(change, e)) for f, e in evicted.items()]
    return list(dict.fromkeys(events))


def _eviction_reason(change: Change, entry: Entry) -> str:
    if change.cause is Cause.WRITE and entry.tokens is None:
        return "its pointer is out of reach of every read"
    return _EVICTION_REASONS[change.cause]


_EVICTION_REASONS = {
    Cause.PROMPT: "made room for the prompt",
    Cause.WRITE: "out of reach of every read",
    Cause.FORGET: "near a correction",
    Cause.UNPROMPT: "its prompt was taken back",
    Cause.LOAD: "replaced by a loaded memory",
    Cause.RECALL: "made room for frames that came back",
    Cause.READ: "left",
}


def _by_identity(entries: Sequence[Entry]) -> dict[tuple[int, int], Entry]:
    """Entries by frame and pointer; of several the last with tokens, if any has them."""
    result: dict[tuple[int, int], Entry] = {}
    for entry in entries:
        key = (entry.frame, id(entry.pointer))
        if key not in result or entry.tokens is not None:
            result[key] = entry
    return result


def _arrival(change: Change, entry: Entry, replaces: bool) -> TraceEvent:
    if change.cause is Cause.LOAD:
        return TraceEvent(Action.WRITTEN, entry.frame, "loaded from a file")
    if change.cause is Cause.RECALL:
        return TraceEvent(Action.WRITTEN, entry.frame, "came back after a jump")
    action = Action.REPLACED if replaces else Action.WRITTEN
    return TraceEvent(action, entry.frame, "prompted" if entry.is_prompt else "tracked")


def _alterations(old: Entry, new: Entry) -> list[TraceEvent]:
    events = []
    if old.is_prompt and not new.is_prompt:
        events.append(TraceEvent(Action.RELEASED, old.frame, "its prompt was taken back"))
    before, after = (0 if e.tokens is None else len(e.tokens) for e in (old, new))
    if before and not after:
        events.append(TraceEvent(Action.REDUCED, old.frame, "no read reaches its map any more"))
    elif after < before:
        events.append(TraceEvent(Action.COMPACTED, old.frame, f"{before} to {after} tokens"))
    return events


_ARRIVALS = (Action.WRITTEN, Action.REPLACED)
_DEPARTURES = (Action.EVICTED, Action.REDUCED, Action.COMPACTED, Action.MERGED)


def with_reasons(events: Iterable[TraceEvent], reasons: Sequence[Reason]) -> list[TraceEvent]:
    """``events`` with the reasons of a policy.

    A reason without an action explains how its frame came or went. One with an action is an event of its own; it takes the
    place of plain events of the same kind (came, went, rejected) of its frame.
    """
    texts = {r.frame: r for r in reasons if r.action is None}
    events_of_own = [r for r in reasons if r.action is not None]
    replaced = {(r.frame, kind) for r in events_of_own if (kind := _kind(r.action)) is not None}
    result = []
    for event in events:
        if (event.frame, _kind(event.action)) in replaced:
            continue
        reason = texts.get(event.frame) if event.action in _ARRIVALS + _DEPARTURES else None
        result.append(event if reason is None else reason.event(event.action))
    return result + [r.event(r.action) for r in events_of_own if r.action is not None]


def _kind(action: Action | None) -> str | None:
    """What an event does to its frame, for events of which a frame can have one."""
    if action in _DEPARTURES:
        return "left"
    return "rejected" if action is Action.REJECTED else None


__getattr__ = renamed(__name__)
