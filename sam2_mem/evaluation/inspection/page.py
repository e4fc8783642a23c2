"""One self-contained HTML page: frame, mask and memory together, under one slider for all policies. No network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sam2_mem.evaluation.inspection.recording import FrameRecord, ObjectRecord, RecordedVideo
from sam2_mem.evaluation.inspection.timeline import Styles, describe, drawings, kinds_of
from sam2_mem.evaluation.pages import render
from sam2_mem.memory.trace import Action, ReadTrace
from sam2_mem.video import object_color

JPEG_QUALITY = 80
QUIET = (Action.KEPT, Action.BRANCHED)
"""Events that come after the others in a list."""


def write_page(path: Path, recordings: Sequence[RecordedVideo], *, title: str) -> None:
    """Write the page of one video under one or more policies; all recordings show the same frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(recordings, title=title), encoding="utf-8")


def page(recordings: Sequence[RecordedVideo], *, title: str) -> str:
    """The page as text."""
    frames = list(recordings[0].pictures) if recordings else []
    if not frames:
        raise ValueError("expected at least one recording with at least one frame, got none")
    if any(list(recorded.pictures) != frames for recorded in recordings):
        raise ValueError(
            "expected recordings of the same frames, got different ones; track one video with all policies"
        )
    styles = Styles.of(kinds_of([record for recorded in recordings for record in recorded.objects.values()]))
    data = {
        "frames": frames,
        "pictures": [_jpeg(recordings[0].pictures[index]) for index in frames],
        "size": list(recordings[0].pictures[frames[0]].shape[:2]),
        "objects": sorted({obj_id for recorded in recordings for obj_id in recorded.objects}),
        "kinds": {kind: [letter, styles.colors[kind]] for kind, letter in styles.letters.items()},
        "policies": [_policy_data(recorded, frames) for recorded in recordings],
    }
    sections = [
        (recorded.policy, [_object_section(record, styles) for record in recorded.objects.values() if record.frames])
        for recorded in recordings
    ]
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return render("inspection.html", title=title, sections=sections, data=text)


def _policy_data(recorded: RecordedVideo, frames: Sequence[int]) -> dict[str, Any]:
    objects = {}
    for obj_id, record in recorded.objects.items():
        by_frame = {frame.frame: frame for frame in record.frames}
        objects[obj_id] = {
            "masks": [_mask_png(recorded.masks[obj_id].get(index), obj_id) for index in frames],
            "notes": [_frame_data(by_frame[index]) if index in by_frame else None for index in frames],
        }
    return {"name": recorded.policy, "objects": objects}


def _frame_data(record: FrameRecord) -> dict[str, Any]:
    events = sorted(record.events, key=lambda event: event.action in QUIET)
    score = record.score
    held = [
        [e.frame, e.kind, e.tokens, None if e.score is None else round(e.score, 4), e.score_name, e.text, list(e.pathways)]
        for e in record.entries
    ]  # fmt: skip
    return {
        "read": _readings_data(record),
        "held": held,
        "events": [[event.action.value, describe(event)] for event in events],
        "tokens": record.tokens,
        "bytes": record.bytes,
        "pointers": record.pointers,
        "score": score and [round(score.iou, 3), round(score.objectness, 2), score.present, score.prompted],
    }


def _readings_data(record: FrameRecord) -> list[list[Any]]:
    """[frame or null, kind, slot, tokens, share of attention or null, pathways], an entry read in one slot once."""
    groups: dict[tuple, list[ReadTrace]] = {}
    for reading in record.readings:
        groups.setdefault((reading.frame, reading.kind, reading.slot, reading.tokens), []).append(reading)
    rows = []
    for key, readings in groups.items():
        masses = [reading.mass for reading in readings if reading.mass is not None]
        share = round(sum(masses) / max(record.pathways, 1), 4) if masses else None
        rows.append([*key, share, [reading.pathway for reading in readings]])
    return rows


def _object_section(record: ObjectRecord, styles: Styles) -> dict[str, Any]:
    """What stands on the page without the script: drawings, and all events as a table."""
    events = [(frame.frame, describe(event)) for frame in record.frames for event in frame.events]
    return {
        "obj_id": record.obj_id,
        "drawings": [drawing.svg() for drawing in drawings(record, styles)],
        "events": events,
    }


def _jpeg(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def _mask_png(mask: np.ndarray | None, obj_id: int) -> str | None:
    """Tint and outline on a transparent ground; None for an empty mask."""
    if mask is None or not mask.any():
        return None
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    pixels = mask.astype(np.uint8)
    cv2.drawContours(pixels, outlines, -1, 2, 1)
    image = Image.frombytes("P", pixels.shape[::-1], np.ascontiguousarray(pixels).tobytes())
    image.putpalette([0, 0, 0, *object_color(obj_id), 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=bytes([0, 110, 255]), optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
