"""One PNG of one object under one policy: the frames held at one time, and the drawings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sam2_mem.evaluation.inspection.drawing import GRID, INK, PAPER, font_of
from sam2_mem.evaluation.inspection.recording import FrameRecord, RecordedVideo, entry_name
from sam2_mem.evaluation.inspection.timeline import Styles, curves, has_tree, kinds_of, timeline, tree
from sam2_mem.memory.trace import ReadTrace
from sam2_mem.video import draw_overlay


def sheet(recorded: RecordedVideo, obj_id: int, frame: int | None = None) -> Image.Image:
    """The frames read at ``frame`` (None: the last), the timeline, tokens and bytes, and the tree if there is one."""
    record = recorded.objects[obj_id]
    if not record.frames:
        raise ValueError(f"expected an object that was tracked, got {obj_id}, which has no prompt in these frames")
    styles = Styles.of(kinds_of([record]))
    index = record.frames[-1].frame if frame is None else frame
    images = [held_frames(recorded, obj_id, index, styles), timeline(record, styles).image(), curves(record).image()]
    return stacked([*images, tree(record).image()] if has_tree(record) else images)


def write_sheet(path: Path, recorded: RecordedVideo, obj_id: int, frame: int | None = None) -> None:
    """``sheet`` as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(recorded, obj_id, frame).save(path, format="PNG", optimize=True)


def stacked(images: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """One above the other, on white."""
    canvas = Image.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images)), PAPER)
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height + gap
    return canvas


def held_frames(
    recorded: RecordedVideo, obj_id: int, frame: int, styles: Styles, *, tile: int = 236, columns: int = 7
) -> Image.Image:
    """The frame, what it read, and what else is held: pictures with masks, each with kind, slot, share of attention."""
    record = recorded.objects[obj_id].at(frame)
    tiles = [_tile(recorded, obj_id, frame, tile, (f"frame {frame}", _state(record)), INK)]
    for name, kind, words in captions(record):
        label = f"{styles.letters.get(kind, '?')} {kind}" + ("" if isinstance(name, str) else f" {name}")
        tiles.append(_tile(recorded, obj_id, name, tile, (label, words), styles.colors.get(kind, INK)))
    height = max(image.height for image in tiles)
    canvas = Image.new("RGB", (min(columns, len(tiles)) * (tile + 8), -(-len(tiles) // columns) * (height + 8)), PAPER)
    for number, image in enumerate(tiles):
        canvas.paste(image, (number % columns * (tile + 8), number // columns * (height + 8)))
    return canvas


def captions(record: FrameRecord) -> list[tuple[int | str, str, str]]:
    """(entry, kind, words) of everything a frame read, pathways that read it alike together, then of the maps that are
    held beside it."""
    groups: dict[tuple[int | str, str, float | None], list[ReadTrace]] = {}
    for reading in record.readings:
        name = entry_name(reading.frame, reading.kind)
        groups.setdefault((name, reading.kind, reading.slot), []).append(reading)
    lines = [(name, kind, _words(slot, readings, record)) for (name, kind, slot), readings in groups.items()]
    read = {name for name, _, _ in lines}
    kinds = {entry_name(entry.frame, entry.kind): entry.kind for entry in record.entries if entry.tokens}
    return lines + [(n, k, "new" if n == record.frame else "not read") for n, k in kinds.items() if n not in read]


def _words(slot: float | None, readings: Sequence[ReadTrace], record: FrameRecord) -> str:
    words = "no slot" if slot is None else "prompt slot" if slot < 0 else f"slot {slot}"
    masses = [r.mass for r in readings if r.mass is not None]
    return words + (f", read {100 * sum(masses) / max(record.pathways, 1):.1f} %" if masses else "")


def _state(record: FrameRecord) -> str:
    if record.score is None:
        return ""
    return f"{'present' if record.score.present else 'absent'}, IoU {record.score.iou:.2f}"


def _tile(
    recorded: RecordedVideo, obj_id: int, name: int | str, width: int, texts: tuple[str, str], color: str
) -> Image.Image:
    """The picture of an entry, grey where it is of no one frame, above its label and words."""
    example = next(iter(recorded.pictures.values()))
    height = round(example.shape[0] * width / example.shape[1])
    tile = Image.new("RGB", (width, height + 56), PAPER)
    pen = ImageDraw.Draw(tile)
    if isinstance(name, int) and name in recorded.pictures:
        mask = recorded.masks[obj_id].get(name, np.zeros(example.shape[:2], bool))
        overlay = Image.fromarray(draw_overlay(recorded.pictures[name], {obj_id: mask}, labels=False))
        tile.paste(overlay.resize((width, height)), (0, 0))
    else:
        pen.rectangle([0, 0, width, height], fill=GRID)
    pen.rectangle([0, height, width, height + 26], fill=color)
    pen.text((6, height + 20), texts[0], PAPER, font_of(18), anchor="ls")
    pen.text((6, height + 46), texts[1], INK, font_of(18), anchor="ls")
    return tile
