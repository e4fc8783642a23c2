"""The report of a comparison: tables, charts, and the page that holds them.

Everything comes from the results on disk, in the order of the jobs, so the report does not depend on who did them when.
What does depend on it, times and peak memory, has a table and one chart of its own.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import stdev

import numpy as np

from sam2_mem.evaluation.charts import Axes, Series, line_chart, scatter_chart
from sam2_mem.evaluation.comparison.jobs import Result, ResultFolder, write_line
from sam2_mem.evaluation.comparison.page import Table, page
from sam2_mem.evaluation.comparison.statistics import (
    EVERYTHING,
    RESAMPLES,
    Comparison,
    Row,
    object_values,
    part_means,
    read_comparison,
    rows,
)
from sam2_mem.evaluation.comparison.videos import parts_of

BINS = 40
"""Points of a line over time."""


# -- tables ---------------------------------------------------------------------------------------------------------


def score_table(comparison: Comparison, group: str, found: Sequence[Row]) -> Table:
    """Means in percent, and the difference to the baseline in points."""
    mine = _of_group(found, group)
    names = _shown(mine[0])
    head = ["policy", "objects", *names, f"{names[0]} - {comparison.baseline}", "95 %"]
    return Table("Scores", head, [_scores(comparison, row) for row in mine])


def _of_group(found: Sequence[Row], group: str) -> list[Row]:
    return [row for row in found if row.group == group]


def _shown(row: Row) -> list[str]:
    """The table has no room for recall; the CSV has it."""
    return [name for name in row.figures if not name.endswith("-recall")]


def _scores(comparison: Comparison, row: Row) -> list[str]:
    difference = row.difference
    known = row.policy != comparison.baseline and difference.count > 0
    paired = "" if difference.count == row.objects else f" ({difference.count})"
    return [
        row.policy + (" (!)" if row.failed else ""),
        str(row.objects),
        *(_percent(row.figures[name]) for name in _shown(row)),
        f"{_signed(difference.mean)}{paired}" if known else "",
        f"{_signed(difference.low)} to {_signed(difference.high)}" if known else "",
    ]


def memory_table(group: str, found: Sequence[Row]) -> Table:
    """What is held and read."""
    head = ["policy", "state MB", "tokens held", "tokens read", "pointers read"]
    lines = [
        [
            row.policy,
            f"{row.state_bytes / 1e6:.2f}",
            _plain(row.tokens_held),
            _plain(row.tokens_read),
            _plain(row.pointers_read, 1),
        ]
        for row in _of_group(found, group)
    ]
    return Table("Memory", head, lines)


def machine_table(group: str, found: Sequence[Row]) -> Table:
    """What depends on the machine."""
    head = ["policy", "frames/s", "peak MB", "more than before MB"]
    lines = [
        [row.policy, _plain(row.frames_per_second, 1), _plain(row.peak_bytes / 1e6), _plain(row.growth_bytes / 1e6, 1)]
        for row in _of_group(found, group)
    ]
    return Table("On this machine", head, lines)


def object_table(comparison: Comparison, data: str) -> Table:
    """The main number of every object, in percent."""
    headline = comparison.headline(data)
    columns = [object_values(comparison.of(policy, data), headline) for policy in comparison.policies]
    keys = dict.fromkeys(key for column in columns for key in column)
    lines = [
        [f"{video} {obj_id}", *(_percent(column.get((data, video, obj_id), math.nan)) for column in columns)]
        for _, video, obj_id in keys
    ]
    return Table(f"{headline} of every object", ["object", *comparison.policies], lines, folded=True)


def part_tables(comparison: Comparison, data: str) -> list[Table]:
    """The numbers of a synthetic set by track and by seed, in percent, where there are several: the main number, and J
    over the frames that show the object. The last column: the standard deviation between them."""
    made = []
    for kind, part_of in parts_of(data).items():
        used = dict.fromkeys(part_of[r.video] for r in comparison.results if r.data == data)
        for column in (comparison.headline(data), "J-visible") if len(used) > 1 else ():
            means = {policy: part_means(comparison.of(policy, data), column, part_of) for policy in comparison.policies}
            lines = [
                [policy, *(_percent(own.get(part, math.nan)) for part in used), _percent(_deviation(own.values()))]
                for policy, own in means.items()
            ]
            made.append(Table(f"{column} by {kind}", ["policy", *used, "deviation"], lines))
    return made


def _deviation(values: Iterable[float]) -> float:
    known = list(values)
    return stdev(known) if len(known) > 1 else math.nan


def make_tables(comparison: Comparison, found: Sequence[Row]) -> list[tuple[str, list[Table]]]:
    """Those of every group of videos."""
    made = []
    for group in comparison.groups:
        tables = [score_table(comparison, group, found), memory_table(group, found), machine_table(group, found)]
        if group != EVERYTHING:
            tables += [*part_tables(comparison, group), object_table(comparison, group)]
        made.append((group, tables))
    return made


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _plain(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def markdown(table: Table) -> str:
    ruler = ["---"] + ["---:"] * (len(table.head) - 1)
    lines = (table.head, ruler, *table.lines)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def summary_csv(found: Sequence[Row]) -> str:
    """One line for each policy and group, in [0, 1], bytes and counts; empty for what is not defined."""
    names = list(dict.fromkeys(name for row in found for name in row.figures))
    head = ["data", "policy", "objects", "failed", *names, "difference", "low", "high", "paired_objects"]
    head += ["state_bytes", "tokens_held", "tokens_read", "pointers_read"]
    head += ["frames_per_second", "peak_bytes", "growth_bytes"]
    lines = [
        [
            row.group,
            row.policy,
            row.objects,
            row.failed,
            *(_cell(row.figures.get(name, math.nan)) for name in names),
            *map(_cell, row.difference[:3]),
            row.difference.count,
            row.state_bytes,
            *map(_cell, (row.tokens_held, row.tokens_read, row.pointers_read)),
            *map(_cell, (row.frames_per_second, row.peak_bytes, row.growth_bytes)),
        ]
        for row in found
    ]
    return _csv([head, *lines])


def objects_csv(comparison: Comparison) -> str:
    """One line for each object, policy and seed."""
    names = list(dict.fromkeys(name for data in comparison.data for name in comparison.columns(data)))
    head = ["data", "video", "object", "policy", "seed", "frames", *names]
    lines = [
        [
            result.data,
            result.video,
            one["object"],
            result.policy,
            result.seed,
            one["frames"],
            *("" if one["values"].get(name) is None else one["values"][name] for name in names),
        ]
        for result in comparison.results
        for one in result.objects
    ]
    return _csv([head, *lines])


def _cell(value: float) -> float | str:
    return "" if math.isnan(value) else value


def _csv(lines: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


# -- charts ---------------------------------------------------------------------------------------------------------


def over_time(results: Sequence[Result], column: str = "J") -> Series:
    """The mean over objects of a number per frame, in percent, against the place in the video in percent: at most
    :data:`BINS` points, those with a number."""
    bins = min([BINS, *(result.frames for result in results)])
    sums, counts = np.zeros(bins), np.zeros(bins)
    for result in results:
        for one in result.objects:
            values = np.asarray(one["per_frame"].get(column, ()), np.float64)
            places = np.asarray(one["at"][: len(values)], np.int64) * bins // result.frames
            np.add.at(sums, places, values)
            np.add.at(counts, places, 1)
    known = np.flatnonzero(counts)
    return Series(name="", x=(100 * (known + 0.5) / bins).tolist(), y=(100 * sums[known] / counts[known]).tolist())


def bytes_over_frames(results: Sequence[Result]) -> Series:
    """The mean over videos of the bytes of all states, in MB, as far as the shortest video reaches."""
    length = min((len(result.state_bytes) for result in results), default=0)
    if not length:
        return Series(name="", x=[], y=[])
    means = np.mean([result.state_bytes[:length] for result in results], axis=0) / 1e6
    return Series(name="", x=list(range(length)), y=means.tolist())


def draw_charts(comparison: Comparison, found: Sequence[Row], folder: Path) -> list[tuple[str, str]]:
    """All charts, as (title, file name)."""
    drawn = []
    for number, data in enumerate(comparison.data):
        mine = [row for row in found if row.group == data]
        headline = comparison.headline(data)
        charts = [
            (
                f"J over time, {data}",
                "j_over_time",
                _lines(comparison, data, over_time),
                "part of the video, %",
                "J, %",
            ),
            (
                f"State over frames, {data}",
                "bytes_over_frames",
                _lines(comparison, data, bytes_over_frames),
                "frame",
                "MB",
            ),
            (
                f"{headline} and state, {data}",
                "quality_bytes",
                _dots(mine, headline, lambda r: r.state_bytes / 1e6),
                "state, MB",
                f"{headline}, %",
            ),
            (
                f"{headline} and speed, {data}",
                "quality_speed",
                _dots(mine, headline, lambda r: r.frames_per_second),
                "frames per second",
                f"{headline}, %",
            ),
        ]
        for title, name, series, x_label, y_label in charts:
            draw = scatter_chart if name.startswith("quality") else line_chart
            file = f"{name}_{number}.png"
            draw(folder / file, Axes(title=title, x_label=x_label, y_label=y_label), series)
            drawn.append((title, file))
    return drawn


def _lines(comparison: Comparison, data: str, make: Callable[[Sequence[Result]], Series]) -> list[Series]:
    made = {policy: make(comparison.of(policy, data)) for policy in comparison.policies}
    return [Series(name=policy, x=one.x, y=one.y) for policy, one in made.items()]


def _dots(mine: Sequence[Row], headline: str, cost: Callable[[Row], float]) -> list[Series]:
    return [Series(name=row.policy, x=[cost(row)], y=[100 * row.figures[headline]]) for row in mine]


# -- the report -----------------------------------------------------------------------------------------------------


def write_report(folder: ResultFolder) -> None:
    """``results.jsonl``; in ``report/``: ``index.html``, ``report.md``, ``summary.csv``, ``objects.csv``, charts."""
    comparison = read_comparison(folder)
    write_line(folder.root / "results.jsonl", "\n".join(result.line() for result in comparison.results))
    found, report = rows(comparison), folder.root / "report"
    drawn = draw_charts(comparison, found, report)
    tables = make_tables(comparison, found)
    write_line(report / "summary.csv", summary_csv(found).rstrip("\n"))
    write_line(report / "objects.csv", objects_csv(comparison).rstrip("\n"))
    write_line(report / "report.md", _markdown_report(comparison, tables, drawn))
    charts = [(title, (report / file).read_bytes()) for title, file in drawn]
    write_line(report / "index.html", page(_about(comparison), tables, charts, _remarks(comparison)))


def _about(comparison: Comparison) -> list[str]:
    run = comparison.run
    lines = [f"Network: {run['common'].get('config')}, weights {run['common'].get('weights')}"]
    lines.append(f"Data: {', '.join(comparison.data)}; {len(run['videos'])} videos; seeds {_listed(run['seeds'])}")
    machines = [result.machine for result in comparison.results if result.machine]
    lines.append(f"Machines: {_listed(sorted({machine['device'] for machine in machines})) or 'none'}")
    commits = sorted({machine["git_commit"] or "unknown" for machine in machines})
    lines.append(f"Code: sam2_mem {run['versions']['sam2_mem']}, commit {_listed(commits)}")
    lines.append(
        "Scores are means over objects, in percent, those of an object being the mean over seeds. The difference to "
        f"the baseline is paired by object; its interval covers 95 % of {RESAMPLES} bootstrap resamples of the objects "
        "(in brackets: how many objects both have, where that is not all). State: the most that the memory of all "
        "objects of a video took. Tokens and pointers: per object, means over frames. Times are of the predictor alone."
    )
    return lines


def _listed(values: Sequence[object]) -> str:
    return "; ".join(map(str, values))


def _remarks(comparison: Comparison) -> list[str]:
    """What keeps the report from being complete, and the notes of the protocols."""
    lines = [f"FAILED: {r.policy} on {r.data} {r.video}, seed {r.seed}: {r.error}" for r in comparison.failed]
    lines += [f"MISSING: {job.policy} on {job.data} {job.video}, seed {job.seed}" for job in comparison.missing]
    notes = {(r.data, r.video, note) for r in comparison.results for note in r.notes}
    return lines + [f"{data} {video}: {note}" for data, video, note in sorted(notes)]


def _markdown_report(
    comparison: Comparison, tables: Sequence[tuple[str, Sequence[Table]]], drawn: Sequence[tuple[str, str]]
) -> str:
    parts = ["# Memory policies compared", "\n".join(f"- {line}" for line in _about(comparison))]
    for group, several in tables:
        parts.append(f"## {group}")
        for table in several:
            parts += [f"{table.title}:", markdown(table)] if not table.folded else []
    parts += [f"![{title}]({file})" for title, file in drawn]
    remarks = _remarks(comparison)
    parts += ["## Remarks", "\n".join(f"- {line}" for line in remarks)] if remarks else []
    return "\n\n".join(parts)
