"""Drawings of what memory did: a timeline of entries, tokens and bytes, the tree of pathways."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sam2_mem._moved import renamed
from sam2_mem.evaluation.inspection.drawing import FAINT, GRID, INK, PAPER, Drawing
from sam2_mem.evaluation.inspection.recording import EntryLine, ObjectRecord, entry_lines
from sam2_mem.memory.trace import Action, TraceEvent

LEFT, TOP, BOTTOM = 74, 40, 46
MAX_WIDTH = 900
COLORS = ("#0b5394", "#b45309", "#38761d", "#741b47", "#7f6000", "#134f5c", "#990000", "#351c75")

MARKS: Mapping[Action, str] = {
    Action.EVICTED: "cross",
    Action.REDUCED: "down",
    Action.COMPACTED: "down",
    Action.MERGED: "diamond",
    Action.PROMOTED: "up",
    Action.RELEASED: "diamond",
    Action.REVISED: "square",
    Action.REPLACED: "square",
}
"""Events that are marked on a timeline, by shape; the others are in the lists."""

LEGEND = (
    ("cross", "evicted"),
    ("down", "map dropped, compacted"),
    ("up", "promoted"),
    ("diamond", "merged, released"),
    ("square", "mask replaced"),
)
_SHAPES = {
    "down": ((-1, -0.7), (1, -0.7), (0, 1)),
    "up": ((-1, 0.7), (1, 0.7), (0, -1)),
    "diamond": ((-1, 0), (0, -1), (1, 0), (0, 1)),
    "square": ((-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)),
    "cross": (
        *((-0.35, 0), (-1, -0.65), (-0.65, -1), (0, -0.35), (0.65, -1), (1, -0.65)),
        *((0.35, 0), (1, 0.65), (0.65, 1), (0, 0.35), (-0.65, 1), (-1, 0.65)),
    ),
}
"""Corners of marks of radius 1."""


@dataclass(frozen=True)
class Styles:
    """A letter and a colour for every kind of entry, so that neither is needed alone."""

    letters: dict[str, str]
    colors: dict[str, str]

    @classmethod
    def of(cls, kinds: Sequence[str]) -> Styles:
        letters: dict[str, str] = {}
        for kind in kinds:
            free = (c.upper() for c in (*kind, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ") if c.isalpha())
            letters[kind] = next((c for c in free if c not in letters.values()), "?")
        return cls(letters, {kind: COLORS[i % len(COLORS)] for i, kind in enumerate(kinds)})


def kinds_of(records: Sequence[ObjectRecord]) -> list[str]:
    """Kinds in the order in which they turn up."""
    return list(dict.fromkeys(entry.kind for r in records for frame in r.frames for entry in frame.entries))


def drawings(record: ObjectRecord, styles: Styles) -> list[Drawing]:
    """All that is drawn of one object: the timeline, tokens and bytes, the tree of pathways where there is one."""
    return [timeline(record, styles), curves(record)] + ([tree(record)] if has_tree(record) else [])


# -- the timeline -----------------------------------------------------------------------------------------------------


def timeline(record: ObjectRecord, styles: Styles) -> Drawing:
    """Frames to the right, entries downwards; a bar while an entry is held, dark inside by how much it is read: the
    root of its share of attention, so that small shares show."""
    lines = entry_lines(record.frames)
    row = 14 if len(lines) <= 60 else 7 if len(lines) <= 160 else 3
    drawing = _sheet(record, f"{record.policy}: what is held of object {record.obj_id}", row * len(lines), head=28)
    top = TOP + 28
    with drawing.pinned():
        _legend(drawing, styles)
    peak = max((m for line in lines for m in line.masses.values() if m is not None), default=0.0)
    every = max(1, round(14 / row))
    for number, line in enumerate(lines):
        y = top + number * row
        if number % every == 0 or isinstance(line.name, str):
            _label(drawing, y + row - 3, str(line.name))
        _bars(drawing, line, y, row, styles, peak)
    middles = {line.name: top + number * row + row / 2 for number, line in enumerate(lines)}
    for position, frame in enumerate(record.frames):
        for event in frame.events:
            if event.action in MARKS and event.frame in middles:
                x = drawing.left + drawing.step * (position + 0.5)
                _mark(drawing, MARKS[event.action], x, middles[event.frame], min(row, 10) / 2, describe(event))
    _axis(drawing, record, top + row * len(lines))
    return drawing


def _sheet(record: ObjectRecord, title: str, height: float, head: float = 0) -> Drawing:
    """A drawing with the frames laid out to the right."""
    count = max(len(record.frames), 1)
    step = min(16.0, max(1.5, MAX_WIDTH / count))
    drawing = Drawing(max(LEFT + step * count + 24, 660), TOP + head + height + BOTTOM, title, LEFT, step)
    with drawing.pinned():
        drawing.text(8, 18, title, 14)
    return drawing


def _label(drawing: Drawing, y: float, text: str) -> None:
    """To the left of what it names."""
    with drawing.pinned():
        drawing.text(LEFT - 6, y, text, 10, "end")


def _legend(drawing: Drawing, styles: Styles) -> None:
    x = 8.0
    for kind, letter in styles.letters.items():
        drawing.rectangle(x, 28, 14, 12, styles.colors[kind])
        drawing.text(x + 7, 38, letter, 10, "middle", PAPER)
        drawing.text(x + 18, 38, kind, 11)
        x += 30 + 6.4 * len(kind)
    x = 8.0
    for shape, text in LEGEND:
        _mark(drawing, shape, x + 6, 53, 5, text)
        drawing.text(x + 14, 57, text, 10)
        x += 24 + 6.0 * len(text)
    drawing.text(8 + 7.8 * len(drawing.title), 18, "dark: attention (root of share)", 11, color=FAINT)


def _bars(drawing: Drawing, line: EntryLine, y: float, row: int, styles: Styles, peak: float) -> None:
    gap = 1 if row > 4 else 0
    for segment in line.segments:
        x, width = drawing.left + segment.start * drawing.step, (segment.stop - segment.start) * drawing.step
        is_pointer = segment.kind == "pointer"
        height: float = 2 if is_pointer else row - gap
        color = styles.colors[segment.kind]
        top = y + (row - height) / 2 if is_pointer else y
        drawing.rectangle(x, top, width, height, color, f"{line.name}: {segment.kind}")
        if row >= 10 and not is_pointer and width >= 9:
            drawing.text(x + 2, y + row - 4, styles.letters[segment.kind], 9, "start", PAPER)
    for position, mass in line.masses.items():
        if mass is not None and peak > 0:
            height = max((row - gap) * math.sqrt(mass / peak), 0.5)
            x = drawing.left + position * drawing.step
            drawing.rectangle(x, y + row - gap - height, max(drawing.step - 0.5, 1), height, "#000000")


def _mark(drawing: Drawing, shape: str, x: float, y: float, r: float, note: str) -> None:
    drawing.polygon([(x + r * dx, y + r * dy) for dx, dy in _SHAPES[shape]], INK, note)


def _axis(drawing: Drawing, record: ObjectRecord, y: float) -> None:
    """Frame numbers below, about ten of them."""
    every = max(1, -(-len(record.frames) // 10))
    for position in range(0, len(record.frames), every):
        x = drawing.left + drawing.step * (position + 0.5)
        drawing.line(((x, y), (x, y + 4)), FAINT)
        drawing.text(x, y + 16, str(record.frames[position].frame), 10, "middle")
    drawing.text(drawing.left, y + 32, "frame", 11, color=FAINT)


def describe(event: TraceEvent) -> str:
    """An event in one line of plain text."""
    text = event.action.value
    for word, number in (("frame", event.frame), ("pathway", event.pathway), ("from", event.parent)):
        text += "" if number is None else f" {word} {number}"
    text += f": {event.reason}"
    if event.score is None:
        return text
    return f"{text} ({event.score:.3f}" + (")" if event.limit is None else f" against {event.limit:.3f})")


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(record: ObjectRecord) -> Drawing:
    """Tokens held and bytes held over time, each on its own scale."""
    height = 60
    drawing = _sheet(record, f"{record.policy}: tokens and bytes held after each frame", 2 * height + 34)
    _curve(drawing, "tokens", [frame.tokens for frame in record.frames], TOP, height, COLORS[0])
    kilobytes = [frame.bytes / 1000 for frame in record.frames]
    _curve(drawing, "kB", kilobytes, TOP + height + 22, height, COLORS[1])
    _axis(drawing, record, TOP + 2 * height + 34)
    return drawing


def _curve(drawing: Drawing, name: str, values: Sequence[float], y: float, height: float, color: str) -> None:
    peak = max(values, default=0) or 1
    right = drawing.left + drawing.step * len(values)
    for text, level in ((f"{peak:,.0f}", y), ("0", y + height)):
        drawing.line(((LEFT, level), (right, level)), GRID)
        _label(drawing, level + 4, text)
    with drawing.pinned():
        drawing.text(LEFT + 4, y - 4, name, 11, color=color)
    points = []
    for position, value in enumerate(values):
        x, level = drawing.left + position * drawing.step, y + height * (1 - value / peak)
        points += [(x, level), (x + drawing.step, level)]
    if points:
        drawing.line(points, color, 1.6)


# -- the tree ---------------------------------------------------------------------------------------------------------


def has_tree(record: ObjectRecord) -> bool:
    return any(frame.pathways > 1 for frame in record.frames)


def tree(record: ObjectRecord) -> Drawing:
    """Pathways by rank, the best on top; lines lead from each to those that go on from it."""
    branches = [{e.pathway or 0: e for e in frame.events if e.action is Action.BRANCHED} for frame in record.frames]
    ranks = 1 + max((rank for by_rank in branches for rank in by_rank), default=0)
    drawing = _sheet(record, f"{record.policy}: pathways, the best on top", 26 * ranks)
    for rank in range(ranks):
        _label(drawing, TOP + 26 * rank + 14, f"rank {rank}")
    for position, by_rank in enumerate(branches):
        x = drawing.left + drawing.step * (position + 0.5)
        for rank, event in by_rank.items():
            y = TOP + 26 * rank + 10
            if position > 0 and branches[position - 1]:
                start = (x - drawing.step, TOP + 26 * (event.parent or 0) + 10)
                color = INK if event.parent == rank else COLORS[1]
                drawing.line((start, (x, y)), color, 2.4 if rank == 0 else 1.2)
            _mark(drawing, "diamond", x, y, min(3.0, drawing.step / 2), describe(event))
    _axis(drawing, record, TOP + 26 * ranks)
    return drawing


__getattr__ = renamed(__name__)
