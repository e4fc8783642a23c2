"""Drawings of what memory did: a timeline of entries, tokens and bytes, the tree of pathways, the frames held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sam2_mem.evaluation.inspection.drawing import (
    FAINT,
    GRID,
    INK,
    PAPER,
    Drawing,
    Line,
    Polygon,
    Rect,
    Shape,
    Text,
    font_of,
)
from sam2_mem.evaluation.inspection.recorder import EntryLine, FrameNote, Watched, entry_lines, entry_name
from sam2_mem.evaluation.inspection.recording import Film
from sam2_mem.memory.trace import Action, ReadTrace, TraceEvent
from sam2_mem.video import draw_overlay

LEFT, TOP, BOTTOM = 74, 40, 46
WIDEST = 900
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
    ("down", "map dropped or compacted"),
    ("up", "promoted"),
    ("diamond", "merged, released"),
    ("square", "mask replaced"),
)


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


def kinds_of(watched: Sequence[Watched]) -> list[str]:
    """Kinds in the order in which they turn up."""
    return list(dict.fromkeys(h.kind for w in watched for n in w.notes for h in n.held))


# -- the timeline -----------------------------------------------------------------------------------------------------


def timeline(watched: Watched, styles: Styles) -> Drawing:
    """Frames to the right, entries downwards; a bar while an entry is held, dark inside by how much it is read: the
    root of its share of attention, so that small shares show."""
    lines = entry_lines(watched.notes)
    row = 14 if len(lines) <= 60 else 7 if len(lines) <= 160 else 3
    drawing = _sheet(watched, f"{watched.policy}: what is held of object {watched.obj_id}", row * len(lines), head=28)
    top = TOP + 28
    _legend(drawing, styles)
    frames = {note.frame: position for position, note in enumerate(watched.notes)}
    peak = max((m for line in lines for m in line.masses.values() if m is not None), default=0.0)
    every = max(1, round(14 / row))
    for number, line in enumerate(lines):
        y = top + number * row
        if number % every == 0 or isinstance(line.name, str):
            drawing.add(Text(LEFT - 6, y + row - 3, str(line.name), 10, "end"))
        _bars(drawing, line, y, row, styles, peak)
    place = {line.name: top + number * row + row / 2 for number, line in enumerate(lines)}
    for position, note in enumerate(watched.notes):
        for event in note.events:
            if event.action in MARKS and event.frame in place:
                x = drawing.left + drawing.step * (position + 0.5)
                drawing.add(_mark(MARKS[event.action], x, place[event.frame], min(row, 10) / 2, describe(event)))
    _axis(drawing, list(frames), top + row * len(lines))
    return drawing


def _sheet(watched: Watched, title: str, height: float, head: float = 0) -> Drawing:
    """A drawing with the notes' positions laid out to the right."""
    count = max(len(watched.notes), 1)
    step = min(16.0, max(1.5, WIDEST / count))
    drawing = Drawing(max(LEFT + step * count + 24, 660), TOP + head + height + BOTTOM, title, LEFT, step)
    drawing.add(Text(8, 18, title, 14))
    return drawing


def _legend(drawing: Drawing, styles: Styles) -> None:
    x = 8.0
    for kind, letter in styles.letters.items():
        drawing.add(Rect(x, 28, 14, 12, styles.colors[kind]), Text(x + 7, 38, letter, 10, "middle", PAPER))
        drawing.add(Text(x + 18, 38, kind, 11))
        x += 30 + 6.4 * len(kind)
    x = 8.0
    for shape, text in LEGEND:
        drawing.add(_mark(shape, x + 6, 53, 5, text), Text(x + 15, 57, text, 11))
        x += 28 + 6.0 * len(text)
    drawing.add(Text(x, 57, "dark: attention (root of share)", 11))


def _bars(drawing: Drawing, line: EntryLine, y: float, row: int, styles: Styles, peak: float) -> None:
    gap = 1 if row > 4 else 0
    for segment in line.segments:
        x, width = drawing.left + segment.start * drawing.step, (segment.stop - segment.start) * drawing.step
        bare = segment.kind == "pointer"
        height = 2 if bare else row - gap
        color = styles.colors[segment.kind]
        words = f"{line.name}: {segment.kind}"
        drawing.add(Rect(x, y + (row - height) / 2 if bare else y, width, height, color, words))
        if row >= 10 and not bare and width >= 9:
            drawing.add(Text(x + 2, y + row - 4, styles.letters[segment.kind], 9, "start", PAPER))
    for position, mass in line.masses.items():
        if mass is not None and peak > 0:
            height = max((row - gap) * math.sqrt(mass / peak), 0.5)
            x = drawing.left + position * drawing.step
            drawing.add(Rect(x, y + row - gap - height, max(drawing.step - 0.5, 1), height, "#000000"))


def _mark(shape: str, x: float, y: float, r: float, note: str) -> Shape:
    if shape == "cross":
        t = r * 0.35
        points = [(-t, 0), (-r, t - r), (t - r, -r), (0, -t), (r - t, -r), (r, t - r)]
        points += [(-x, -y) for x, y in points]
    else:
        points = {
            "down": [(-r, -r * 0.7), (r, -r * 0.7), (0, r)],
            "up": [(-r, r * 0.7), (r, r * 0.7), (0, -r)],
            "diamond": [(-r, 0), (0, -r), (r, 0), (0, r)],
            "square": [(-r * 0.8, -r * 0.8), (r * 0.8, -r * 0.8), (r * 0.8, r * 0.8), (-r * 0.8, r * 0.8)],
        }[shape]
    return Polygon(tuple((x + dx, y + dy) for dx, dy in points), INK, note)


def _axis(drawing: Drawing, frames: Sequence[int], y: float) -> None:
    """Frame numbers below, about ten of them."""
    every = max(1, -(-len(frames) // 10))
    for position in range(0, len(frames), every):
        x = drawing.left + drawing.step * (position + 0.5)
        drawing.add(Line(((x, y), (x, y + 4)), FAINT), Text(x, y + 16, str(frames[position]), 10, "middle"))
    drawing.add(Text(drawing.left, y + 32, "frame", 11, color=FAINT))


def describe(event: TraceEvent) -> str:
    """An event in one line of plain text."""
    what = "" if event.frame is None else f" frame {event.frame}"
    path = "" if event.pathway is None else f" pathway {event.pathway}"
    origin = "" if event.parent is None else f" from {event.parent}"
    score = (
        ""
        if event.score is None
        else f" ({event.score:.3f}" + (")" if event.limit is None else f" against {event.limit:.3f})")
    )
    return f"{event.action.value}{what}{path}{origin}: {event.reason}{score}"


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(watched: Watched) -> Drawing:
    """Tokens held and bytes held over time, each on its own scale."""
    height = 60
    drawing = _sheet(watched, f"{watched.policy}: tokens and bytes held after each frame", 2 * height + 34)
    tokens = [n.tokens for n in watched.notes]
    kilobytes = [n.bytes / 1000 for n in watched.notes]
    for number, (name, values, color) in enumerate((("tokens", tokens, COLORS[0]), ("kB", kilobytes, COLORS[1]))):
        _curve(drawing, name, values, TOP + number * (height + 22), height, color)
    _axis(drawing, [n.frame for n in watched.notes], TOP + 2 * height + 34)
    return drawing


def _curve(drawing: Drawing, name: str, values: Sequence[float], y: float, height: float, color: str) -> None:
    peak = max(values, default=0) or 1
    right = drawing.left + drawing.step * len(values)
    drawing.add(Line(((LEFT, y), (right, y)), GRID), Line(((LEFT, y + height), (right, y + height)), GRID))
    drawing.add(Text(LEFT - 6, y + 4, f"{peak:,.0f}", 10, "end"), Text(LEFT - 6, y + height + 4, "0", 10, "end"))
    drawing.add(Text(LEFT + 4, y - 4, name, 11, color=color))
    points = []
    for position, value in enumerate(values):
        left = drawing.left + position * drawing.step
        level = y + height * (1 - value / peak)
        points += [(left, level), (left + drawing.step, level)]
    if points:
        drawing.add(Line(tuple(points), color, 1.6))


# -- the tree ---------------------------------------------------------------------------------------------------------


def has_tree(watched: Watched) -> bool:
    return any(n.pathways > 1 for n in watched.notes)


def tree(watched: Watched) -> Drawing:
    """Pathways by rank, the best on top; lines lead from each to those that go on from it."""
    branches = [{e.pathway: e for e in n.events if e.action is Action.BRANCHED} for n in watched.notes]
    ranks = 1 + max((p for found in branches for p in found), default=0)
    drawing = _sheet(watched, f"{watched.policy}: pathways, the best on top", 26 * ranks)
    for rank in range(ranks):
        drawing.add(Text(LEFT - 6, TOP + 26 * rank + 14, f"rank {rank}", 10, "end"))
    for position, found in enumerate(branches):
        x = drawing.left + drawing.step * (position + 0.5)
        for rank, event in found.items():
            y, wide = TOP + 26 * rank + 10, 2.4 if rank == 0 else 1.2
            grown = position > 0 and branches[position - 1]
            if grown:
                y_before = TOP + 26 * (event.parent or 0) + 10
                color = INK if event.parent == rank else COLORS[1]
                drawing.add(Line(((x - drawing.step, y_before), (x, y)), color, wide))
            r = min(3.0, drawing.step / 2)
            drawing.add(_mark("diamond", x, y, r, describe(event)))
    _axis(drawing, [n.frame for n in watched.notes], TOP + 26 * ranks)
    return drawing


# -- the frames held --------------------------------------------------------------------------------------------------


def held_frames(
    film: Film, obj_id: int, frame: int, styles: Styles, *, tile: int = 236, columns: int = 7
) -> Image.Image:
    """The frame, what it read, and what else is held: pictures with masks, each with kind, slot, share of attention."""
    note = film.objects[obj_id].at(frame)
    tiles = [_tile(film, obj_id, frame, tile, f"frame {frame}", _state(note), INK)]
    for name, kind, words in captions(note):
        label = f"{styles.letters.get(kind, '?')} {kind}" + ("" if isinstance(name, str) else f" {name}")
        tiles.append(_tile(film, obj_id, name, tile, label, words, styles.colors.get(kind, INK)))
    height = max(t.height for t in tiles)
    count = min(columns, len(tiles))
    sheet = Image.new("RGB", (count * (tile + 8), -(-len(tiles) // columns) * (height + 8)), PAPER)
    for place, one in enumerate(tiles):
        sheet.paste(one, (place % columns * (tile + 8), place // columns * (height + 8)))
    return sheet


def captions(note: FrameNote) -> list[tuple[int | str, str, str]]:
    """(entry, kind, words) of everything a frame read, pathways that read it alike together, then of the maps that are
    held beside it."""
    found: dict[tuple[int | str, str, int | None], list[ReadTrace]] = {}
    for reading in note.readings:
        name = entry_name(reading.frame, reading.kind)
        found.setdefault((name, reading.kind, reading.slot), []).append(reading)
    lines = [(name, kind, _words(slot, readings, note)) for (name, kind, slot), readings in found.items()]
    read = {name for name, _, _ in lines}
    held = {entry_name(h.frame, h.kind): h.kind for h in note.held if h.tokens}
    return lines + [(n, k, "new" if n == note.frame else "not read") for n, k in held.items() if n not in read]


def _words(slot: int | None, readings: Sequence[ReadTrace], note: FrameNote) -> str:
    words = "no slot" if slot is None else "prompt slot" if slot < 0 else f"slot {slot}"
    masses = [r.mass for r in readings if r.mass is not None]
    return words + (f", read {100 * sum(masses) / max(note.pathways, 1):.1f} %" if masses else "")


def _state(note: FrameNote) -> str:
    if note.score is None:
        return ""
    present = "present" if note.score.present else "absent"
    return f"{present}, IoU {note.score.iou:.2f}"


def _tile(film: Film, obj_id: int, name: int | str, width: int, label: str, words: str, color: str) -> Image.Image:
    some = next(iter(film.pictures.values()))
    height = round(some.shape[0] * width / some.shape[1])
    picture = film.pictures.get(name) if isinstance(name, int) else None
    if picture is None:
        shown = Image.new("RGB", (width, height), GRID)
    else:
        mask = film.masks[obj_id].get(name, np.zeros(picture.shape[:2], bool))
        shown = Image.fromarray(draw_overlay(picture, {obj_id: mask}, labels=False)).resize((width, height))
    tile = Image.new("RGB", (width, height + 56), PAPER)
    tile.paste(shown, (0, 0))
    pen = ImageDraw.Draw(tile)
    pen.rectangle([0, height, width, height + 26], fill=color)
    pen.text((6, height + 20), label, PAPER, font_of(18), anchor="ls")
    pen.text((6, height + 46), words, INK, font_of(18), anchor="ls")
    return tile
