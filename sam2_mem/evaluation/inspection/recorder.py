"""From what a listener hears to what is drawn: one note per frame, one line per entry. Plain values only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sam2_mem.memory.trace import EntryTrace, ReadTrace, TraceEvent, TraceRecord
from sam2_mem.types import ObjectScore


class Recorder:
    """A listener that keeps every moment it hears; give it to ``predictor.listen``."""

    def __init__(self, *, read_mass: bool = False) -> None:
        self.read_mass = read_mass
        self.moments: list[TraceRecord] = []

    def on_change(self, moment: TraceRecord) -> None:
        self.moments.append(moment)

    def of(self, obj_id: int) -> list[TraceRecord]:
        """What was heard of one object."""
        return [m for m in self.moments if m.obj_id == obj_id]


@dataclass(frozen=True)
class FrameNote:
    """One object on one tracked frame: what was read, what happened, what is held after it. ``score`` None before it is
    known."""

    frame: int
    readings: tuple[ReadTrace, ...]
    pointers: int
    pathways: int
    events: tuple[TraceEvent, ...]
    held: tuple[EntryTrace, ...]
    tokens: int
    bytes: int
    score: ObjectScore | None = None

    def entries(self) -> set[int | str]:
        """Names of what is held, see :func:`entry_name`."""
        return {entry_name(h.frame, h.kind) for h in self.held}


@dataclass(frozen=True)
class Watched:
    """One object under one policy: ``notes`` in the order of tracking."""

    policy: str
    obj_id: int
    notes: tuple[FrameNote, ...]

    def at(self, frame: int) -> FrameNote:
        """The latest note of a frame. ValueError where the object was not tracked on it."""
        for note in reversed(self.notes):
            if note.frame == frame:
                return note
        frames = [n.frame for n in self.notes]
        raise ValueError(
            f"expected a frame on which object {self.obj_id} was tracked ({min(frames)} to {max(frames)}), got {frame}"
        )


def frame_notes(moments: Iterable[TraceRecord]) -> list[FrameNote]:
    """The moments of one object, those of one visit to a frame together."""
    notes: list[FrameNote] = []
    for moment in moments:
        if notes and notes[-1].frame == moment.frame:
            notes[-1] = _joined(notes[-1], moment)
        else:
            notes.append(_joined(FrameNote(moment.frame, (), 0, 0, (), (), 0, 0), moment))
    return notes


def _joined(note: FrameNote, moment: TraceRecord) -> FrameNote:
    return replace(
        note,
        readings=note.readings + moment.readings,
        pointers=note.pointers + moment.pointers,
        pathways=max(note.pathways, moment.pathways),
        events=note.events + moment.events,
        held=moment.held,
        tokens=moment.tokens,
        bytes=moment.bytes,
    )


# -- lines of a timeline ----------------------------------------------------------------------------------------------


def entry_name(frame: int | None, kind: str) -> int | str:
    """What a line of the timeline is called: its frame, or its kind where it is of no one frame."""
    return kind if frame is None else frame


@dataclass(frozen=True)
class Segment:
    """A stretch over which an entry was held as one kind: positions ``start`` to ``stop`` (excluded) in the notes."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True)
class EntryLine:
    """One entry through time: when it was held, as what; ``masses`` by position: its share of attention, where read."""

    name: int | str
    segments: tuple[Segment, ...]
    masses: dict[int, float | None]


def entry_lines(notes: Sequence[FrameNote]) -> list[EntryLine]:
    """A line for everything that was ever held: frames in order, then what is of no one frame."""
    kinds: dict[int | str, dict[int, str]] = {}
    masses: dict[int | str, dict[int, float | None]] = {}
    for position, note in enumerate(notes):
        for name, kind in _kinds(note).items():
            kinds.setdefault(name, {})[position] = kind
        for name, mass in _masses(note).items():
            masses.setdefault(name, {})[position] = mass
    names = sorted(kinds.keys() | masses.keys(), key=lambda n: (isinstance(n, str), n))
    return [EntryLine(n, tuple(_segments(kinds.get(n, {}))), masses.get(n, {})) for n in names]


def _kinds(note: FrameNote) -> dict[int | str, str]:
    """Kind by entry; of several versions of a frame the one with most tokens speaks."""
    found: dict[int | str, EntryTrace] = {}
    for held in note.held:
        name = entry_name(held.frame, held.kind)
        if name not in found or held.tokens > found[name].tokens:
            found[name] = held
    return {name: held.kind for name, held in found.items()}


def _masses(note: FrameNote) -> dict[int | str, float | None]:
    """Share of attention by entry, the mean over pathways; None where it was not measured."""
    sums: dict[int | str, float | None] = {}
    for reading in note.readings:
        name = entry_name(reading.frame, reading.kind)
        share = None if reading.mass is None else reading.mass / max(note.pathways, 1)
        before = sums.get(name, 0.0)
        sums[name] = None if share is None or before is None else before + share
    return sums


def _segments(kinds: dict[int, str]) -> list[Segment]:
    runs: list[Segment] = []
    for position, kind in sorted(kinds.items()):
        if runs and runs[-1].stop == position and runs[-1].kind == kind:
            runs[-1] = replace(runs[-1], stop=position + 1)
        else:
            runs.append(Segment(position, position + 1, kind))
    return runs
