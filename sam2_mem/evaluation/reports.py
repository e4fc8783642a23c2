"""A report as a table to read, as CSV and as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sam2_mem.evaluation.results import ObjectScores, Report


def table(report: Report) -> str:
    """The objects and the summary in percent, then notes and failures."""
    head = ["video", "object", *report.columns]
    rows = [[scores.video, scores.obj_id, *map(_percent, scores.values)] for scores in report.objects]
    summary = [[figure.name for figure in report.summary], [_percent(figure.value) for figure in report.summary]]
    blocks = ["\n".join(_aligned([head, *rows])), "\n".join(_aligned(summary)), *_remarks(report)]
    title = f"{report.protocol}: {len(report.objects)} objects in {report.num_videos} videos, in percent"
    return "\n\n".join([title, *blocks])


def _remarks(report: Report) -> Iterator[str]:
    if report.notes:
        yield "\n".join(f"note: {note.video}: {note.text}" for note in report.notes)
    if report.failures:
        lines = [f"failed: {failure.video}: {failure.reason}" for failure in report.failures]
        lines.append(
            f"INCOMPLETE: {len(report.failures)} of {report.num_videos} videos have no score; "
            f"the numbers above are those of the other {report.num_videos - len(report.failures)}"
        )
        yield "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(_padded(cell, width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _padded(cell: str, width: int) -> str:
    """Numbers to the right, names to the left."""
    numeric = cell == "-" or cell.lstrip("-").replace(".", "", 1).isdecimal()
    return cell.rjust(width) if numeric else cell.ljust(width)


def write_csv(report: Report, path: Path) -> Path:
    """One row for each object, in [0, 1]; the summary goes to ``<name>_summary.csv``, which is returned."""
    head = ["video", "object", "group", "frames", *report.columns]
    rows = ([s.video, s.obj_id, s.group, len(s.frames), *map(_number, s.values)] for s in report.objects)
    _write_rows(path, head, rows)
    summary = path.with_name(f"{path.stem}_summary{path.suffix}")
    _write_rows(summary, ["name", "value"], ([figure.name, _number(figure.value)] for figure in report.summary))
    return summary


def _write_rows(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def write_json(report: Report, path: Path, *, per_frame: bool = False) -> None:
    """Everything, in [0, 1]; null for what is not defined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_as_json(report, per_frame), indent=1) + "\n", encoding="utf-8")


def _as_json(report: Report, per_frame: bool) -> dict[str, Any]:
    return {
        "protocol": report.protocol,
        "complete": not report.failures,
        "num_videos": report.num_videos,
        "summary": {figure.name: _number(figure.value) for figure in report.summary},
        "objects": [_object_entry(report, scores, per_frame) for scores in report.objects],
        "notes": [note._asdict() for note in report.notes],
        "failures": [failure._asdict() for failure in report.failures],
    }


def _object_entry(report: Report, scores: ObjectScores, per_frame: bool) -> dict[str, Any]:
    entry = {"video": scores.video, "object": scores.obj_id, "group": scores.group, "frames": len(scores.frames)}
    entry |= dict(zip(report.columns, map(_number, scores.values)))
    if per_frame:
        curves = {name: scores.per_frame[:, i].tolist() for i, name in enumerate(report.frame_columns)}
        entry["per_frame"] = {"frame": list(scores.frames)} | curves
    return entry


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
