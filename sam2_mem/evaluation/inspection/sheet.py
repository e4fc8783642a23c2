"""One PNG of one object under one policy."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sam2_mem.evaluation.inspection.drawing import stacked
from sam2_mem.evaluation.inspection.recording import Film
from sam2_mem.evaluation.inspection.timeline import Styles, curves, has_tree, held_frames, kinds_of, timeline, tree


def sheet(film: Film, obj_id: int, frame: int | None = None) -> Image.Image:
    """The frames read at ``frame`` (None: the last), the timeline, tokens and bytes, and the tree if there is one."""
    watched = film.objects[obj_id]
    if not watched.notes:
        raise ValueError(f"expected an object that was tracked, got {obj_id}, which has no prompt in these frames")
    styles = Styles.of(kinds_of([watched]))
    at = watched.notes[-1].frame if frame is None else frame
    parts = [held_frames(film, obj_id, at, styles), timeline(watched, styles).image(), curves(watched).image()]
    if has_tree(watched):
        parts.append(tree(watched).image())
    return stacked(parts)


def write_sheet(path: Path, film: Film, obj_id: int, frame: int | None = None) -> None:
    """:func:`sheet` as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(film, obj_id, frame).save(path, format="PNG", optimize=True)
