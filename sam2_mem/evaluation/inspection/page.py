"""One self-contained HTML page: frame, mask and memory together, under one slider for all policies. No network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sam2_mem.evaluation.inspection.recorder import FrameNote, Watched
from sam2_mem.evaluation.inspection.recording import Film
from sam2_mem.evaluation.inspection.timeline import Styles, curves, describe, has_tree, kinds_of, timeline, tree
from sam2_mem.memory.trace import Action, EntryTrace, ReadTrace
from sam2_mem.video import object_color

JPEG_QUALITY = 80
QUIET = (Action.KEPT, Action.BRANCHED)
"""Events that come after the others in a list."""


def write_page(path: Path, films: Sequence[Film], *, title: str) -> None:
    """Write the page of one video under one or more policies; all films show the same frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(films, title=title), encoding="utf-8")


def page(films: Sequence[Film], *, title: str) -> str:
    """The page as text."""
    frames = list(films[0].pictures) if films else []
    if not frames:
        raise ValueError("expected at least one film with at least one frame, got none")
    if any(list(f.pictures) != frames for f in films):
        raise ValueError("expected films of the same frames, got different ones; watch one video with all policies")
    styles = Styles.of(kinds_of([w for f in films for w in f.objects.values()]))
    data = {
        "frames": frames,
        "pictures": [_jpeg(films[0].pictures[f]) for f in frames],
        "size": list(films[0].pictures[frames[0]].shape[:2]),
        "objects": sorted({i for f in films for i in f.objects}),
        "kinds": {k: [styles.letters[k], styles.colors[k]] for k in styles.letters},
        "policies": [_policy(f, frames) for f in films],
    }
    parts = {
        "TITLE": escape(title),
        "STYLE": _resource("page.css"),
        "SCRIPT": _resource("page.js"),
        "SECTIONS": "".join(_section(i, f, styles) for i, f in enumerate(films)),
        "DATA": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    text = _resource("page.html")
    for name, value in parts.items():
        text = text.replace(f"<!--{name}-->", value)
    return text


def _resource(name: str) -> str:
    return (files("sam2_mem.evaluation.inspection") / name).read_text(encoding="utf-8")


# -- what the script shows --------------------------------------------------------------------------------------------


def _policy(film: Film, frames: Sequence[int]) -> dict[str, Any]:
    objects = {}
    for obj_id, watched in film.objects.items():
        notes = {n.frame: n for n in watched.notes}
        objects[obj_id] = {
            "masks": [_mask_png(film.masks[obj_id].get(f), obj_id) for f in frames],
            "notes": [_note(notes[f]) if f in notes else None for f in frames],
        }
    return {"name": film.policy, "objects": objects}


def _note(note: FrameNote) -> dict[str, Any]:
    events = sorted(note.events, key=lambda e: e.action in QUIET)
    score = note.score
    return {
        "read": _readings(note),
        "held": [_held(h) for h in note.held],
        "events": [[e.action.value, describe(e)] for e in events],
        "tokens": note.tokens,
        "bytes": note.bytes,
        "pointers": note.pointers,
        "score": score and [round(score.iou, 3), round(score.objectness, 2), score.present, score.prompted],
    }


def _readings(note: FrameNote) -> list[list[Any]]:
    """[frame or null, kind, slot, tokens, share of attention or null, pathways], an entry read in one slot once."""
    found: dict[tuple, list[ReadTrace]] = {}
    for reading in note.readings:
        found.setdefault((reading.frame, reading.kind, reading.slot, reading.tokens), []).append(reading)
    rows = []
    for (frame, kind, slot, tokens), readings in found.items():
        masses = [r.mass for r in readings if r.mass is not None]
        share = round(sum(masses) / max(note.pathways, 1), 4) if masses else None
        rows.append([frame, kind, slot, tokens, share, [r.pathway for r in readings]])
    return rows


def _held(held: EntryTrace) -> list[Any]:
    score = None if held.score is None else round(held.score, 4)
    return [held.frame, held.kind, held.tokens, score, held.score_name, held.text, list(held.pathways)]


def _jpeg(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _mask_png(mask: np.ndarray | None, obj_id: int) -> str | None:
    """Tint and outline on a transparent ground; None for an empty mask."""
    if mask is None or not mask.any():
        return None
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    place = mask.astype(np.uint8)
    cv2.drawContours(place, outlines, -1, 2, 1)
    image = Image.frombytes("P", place.shape[::-1], np.ascontiguousarray(place).tobytes())
    image.putpalette([0, 0, 0, *object_color(obj_id), 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=bytes([0, 110, 255]), optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


# -- what stands on the page by itself --------------------------------------------------------------------------------


def _section(index: int, film: Film, styles: Styles) -> str:
    name = escape(film.policy)
    charts = "".join(_charts(index, w, styles) for w in film.objects.values() if w.notes)
    return (
        f'<section class="policy" data-policy="{index}" aria-labelledby="policy-{index}">'
        f'<h2 id="policy-{index}">{name}</h2><div class="now"><div class="stage"></div><div class="facts"></div></div>'
        f'<h3>Read on this frame</h3><ul class="cards read"></ul>'
        f'<h3>What happened</h3><ul class="events"></ul>'
        f'<details><summary>Everything held after this frame</summary><div class="held"></div></details>'
        f"{charts}</section>"
    )


def _charts(index: int, watched: Watched, styles: Styles) -> str:
    drawings = [timeline(watched, styles), curves(watched)] + ([tree(watched)] if has_tree(watched) else [])
    figures = "".join(f'<div class="chart" tabindex="0">{d.svg()}</div>' for d in drawings)
    events = [(n.frame, describe(e)) for n in watched.notes for e in n.events]
    rows = "".join(f"<tr><td>{frame}</td><td>{escape(text)}</td></tr>" for frame, text in events)
    table = (
        '<details><summary>All events as a table</summary><div class="scroll"><table>'
        '<thead><tr><th scope="col">on frame</th><th scope="col">event</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )
    return f'<div class="charts" data-object="{watched.obj_id}">{figures}{table}</div>'
