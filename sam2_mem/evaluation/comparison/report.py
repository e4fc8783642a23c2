"""The report of a comparison: tables, charts, and the page that holds them.

Everything comes from the results on disk, in the order of the jobs, so the report does not depend on who did them when.
What does depend on it, times and peak memory, has a table and one chart of its own.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any, NamedTuple

import numpy as np

from sam2_mem.evaluation.charts import Axes, Range, Series, Spread, box_chart, forest_chart, line_chart, scatter_chart
from sam2_mem.evaluation.comparison.jobs import Result, ResultFolder, write_line
from sam2_mem.evaluation.comparison.statistics import (
    EVERYTHING,
    RESAMPLES,
    PairedComparison,
    PolicyRow,
    group_means,
    object_values,
    policy_rows,
    read_comparison,
)
from sam2_mem.evaluation.comparison.videos import groups_of_videos
from sam2_mem.evaluation.pages import render
from sam2_mem.evaluation.tables import text_table

BINS = 40
"""Points of a line over time."""
MOST_THUMBNAILS = 4
"""Of a policy on a data set."""
FOREST = "differences"
"""Name of the chart that the page begins with."""
COSTS = ("state_bytes", "tokens_held", "tokens_read", "pointers_read")
MACHINE_COSTS = ("frames_per_second", "cpu_milliseconds", "peak_bytes", "growth_bytes")

# -- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column a name. ``folded``: shown when asked for. ``best``: (line, column) of the cells that are
    the best of their column."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    folded: bool = False
    best: frozenset[tuple[int, int]] = frozenset()


def group_tables(comparison: PairedComparison, group: str, rows: Sequence[PolicyRow]) -> list[Table]:
    """Those of one group of videos; ``rows``: of its policies."""
    memory = [
        [row.policy, f"{row.state_bytes / 1e6:.2f}", *map(_plain, (row.tokens_held, row.tokens_read)), _plain(row.pointers_read, 1)]
        for row in rows
    ]  # fmt: skip
    machine = [
        [row.policy, *map(_plain, costs, (1, 1, 0, 1))]
        for row in rows
        for costs in [(row.frames_per_second, row.cpu_milliseconds, row.peak_bytes / 1e6, row.growth_bytes / 1e6)]
    ]
    tables = [
        score_table(comparison, rows),
        Table("Memory", ["policy", "state MB", "tokens held", "tokens read", "pointers read"], memory),
        Table("On this machine", ["policy", "frames/s", "CPU ms/frame", "peak MB", "more than before MB"], machine),
    ]
    return tables if group == EVERYTHING else [*tables, *breakdowns(comparison, group), object_table(comparison, group)]


def score_table(comparison: PairedComparison, rows: Sequence[PolicyRow]) -> Table:
    """Means in percent, and the difference to the baseline in points. Recall has room in the CSV only."""
    names = [name for name in rows[0].figures if not name.endswith("-recall")]
    head = ["policy", "objects", *names, f"{names[0]} - {comparison.baseline}", "95 %"]
    most, compared = max(row.objects for row in rows), max(row.compared for row in rows)
    title = "Scores" if compared == most else f"Scores over the {compared} objects that every policy has"
    lines: list[list[str]] = []
    best = {
        (number, column)
        for column, name in enumerate(names, start=2)
        for number, row in enumerate(rows)
        if row.figures[name] == _best(name, [r.figures[name] for r in rows])
    }
    for row in rows:
        figures, difference = [_percent(row.figures[name]) for name in names], row.difference
        paired = "" if difference.num_values == row.objects else f" ({difference.num_values})"
        cells = [f"{_signed(difference.mean)}{paired}", f"{_signed(difference.low)} to {_signed(difference.high)}"]
        if row.policy == comparison.baseline or not difference.num_values:
            cells = ["", ""]
        incomplete = row.objects < most or row.failed
        objects = f"{row.objects} of {most}" if row.objects < most else str(row.objects)
        lines.append([row.policy + (" (!)" if incomplete else ""), objects, *figures, *cells])
    return Table(title, head, lines, best=frozenset(best))


def _best(name: str, values: Sequence[float]) -> float:
    """The lowest of decays and of masks elsewhere, the highest of all else; NaN if no value is defined."""
    defined = [value for value in values if not math.isnan(value)]
    choose = min if name.endswith("-decay") or name == "elsewhere" else max
    return choose(defined, default=math.nan)


def object_table(comparison: PairedComparison, data: str) -> Table:
    """The main number of every object, in percent."""
    headline = comparison.headline(data)
    columns = [object_values(comparison.of(policy, data), headline) for policy in comparison.policies]
    keys = dict.fromkeys(key for column in columns for key in column)
    lines = [
        [f"{video} {obj_id}", *(_percent(column.get((data, video, obj_id), math.nan)) for column in columns)]
        for _, video, obj_id in keys
    ]
    return Table(f"{headline} of every object", ["object", *comparison.policies], lines, folded=True)


def breakdowns(comparison: PairedComparison, data: str) -> list[Table]:
    """The numbers of a synthetic set by track and by seed, in percent, where there are several: the main number, J over the
    frames that show the object, and J after long absences where there are any. The last column: the standard deviation
    between them."""
    tables = []
    for kind, group_of in groups_of_videos(data).items():
        groups = dict.fromkeys(group_of[r.video] for r in comparison.results if r.data == data)
        for column in (comparison.headline(data), "J-visible", "J-return") if len(groups) > 1 else ():
            lines = []
            for policy in comparison.policies:
                means = group_means(comparison.of(policy, data), column, group_of)
                deviation = stdev(means.values()) if len(means) > 1 else math.nan
                lines.append([policy, *(_percent(means.get(name, math.nan)) for name in groups), _percent(deviation)])
            if any(cell != "-" for line in lines for cell in line[1:]):
                tables.append(Table(f"{column} by {kind}", ["policy", *groups, "deviation"], lines))
    return tables


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def _plain(value: float, digits: int = 0) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def summary_csv(rows: Sequence[PolicyRow]) -> str:
    """One line for each policy and group, in [0, 1], bytes and counts; empty for what is not defined."""
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    head = ["data", "policy", "objects", "compared", "failed", *names, "difference", "low", "high", "paired_objects"]
    lines = [
        [
            *(row.group, row.policy, row.objects, row.compared, row.failed),
            *(_cell(row.figures.get(name, math.nan)) for name in names),
            *map(_cell, row.difference),
            *(_cell(getattr(row, name)) for name in (*COSTS, *MACHINE_COSTS)),
        ]
        for row in rows
    ]
    return _csv([[*head, *COSTS, *MACHINE_COSTS], *lines])


def objects_csv(comparison: PairedComparison) -> str:
    """One line for each object, policy and seed."""
    names = list(dict.fromkeys(name for data in comparison.data for name in comparison.columns(data)))
    lines: list[list[object]] = [["data", "video", "object", "policy", "seed", "frames", *names]]
    for result in comparison.results:
        for scores in result.objects:
            values = [scores["values"].get(name) for name in names]
            lines.append(
                [result.data, result.video, scores["object"], result.policy, result.seed, scores["frames"], *values]
            )
    return _csv(lines)


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else value


def _csv(lines: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


# -- charts ---------------------------------------------------------------------------------------------------------


def over_time(results: Sequence[Result], column: str = "J", name: str = "") -> Series:
    """The mean over objects of a number per frame, in percent, against the place in the video in percent: at most
    ``BINS`` points, those with a number."""
    bins = min([BINS, *(result.frames for result in results)])
    sums, counts = np.zeros(bins), np.zeros(bins)
    for result in results:
        for scores in result.objects:
            values = np.asarray(scores["per_frame"].get(column, ()), np.float64)
            positions = np.asarray(scores["at"][: len(values)], np.int64) * bins // result.frames
            np.add.at(sums, positions, values)
            np.add.at(counts, positions, 1)
    filled = np.flatnonzero(counts)
    x, y = 100 * (filled + 0.5) / bins, 100 * sums[filled] / counts[filled]
    return Series(name=name, x=x.tolist(), y=y.tolist())


def bytes_over_frames(results: Sequence[Result], name: str = "") -> Series:
    """The mean over videos of the bytes of all states, in MB, as far as the shortest video reaches."""
    length = min((len(result.state_bytes) for result in results), default=0)
    means = np.mean([result.state_bytes[:length] for result in results], axis=0) / 1e6 if length else np.zeros(0)
    return Series(name=name, x=list(range(length)), y=means.tolist())


def bytes_of_videos(results: Sequence[Result], name: str = "") -> Spread:
    """The most bytes that all states took together, of each video, in MB."""
    return Spread(name=name, values=[max(result.state_bytes) / 1e6 for result in results if result.state_bytes])


def draw_charts(comparison: PairedComparison, rows: Sequence[PolicyRow], folder: Path) -> list[tuple[str, str]]:
    """All charts, as (title, file name)."""
    drawn = []
    for number, data in enumerate(comparison.data):
        of_data = [row for row in rows if row.group == data]
        for name, draw, axes, series in _charts(comparison, of_data, data):
            draw(folder / f"{name}_{number}.svg", axes, series)
            drawn.append((axes.title, f"{name}_{number}.svg"))
    return drawn


_Chart = tuple[str, Callable[[Path, Axes, Sequence[Any]], None], Axes, list[Any]]


def _charts(comparison: PairedComparison, rows: Sequence[PolicyRow], data: str) -> Iterator[_Chart]:
    """(name, what draws it, axes, series) of the charts of one data set."""
    results = {policy: comparison.of(policy, data) for policy in comparison.policies}
    headline = comparison.headline(data)
    label = f"{headline} - {comparison.baseline}, points; bars: 95 % intervals, paired by object"
    axes = Axes(title=f"Difference to {comparison.baseline}, {data}", x_label=label, y_label="")
    ranges = [
        Range(name=row.policy, value=100 * d.mean, low=100 * d.low, high=100 * d.high)
        for row in sorted(rows, key=lambda row: -row.difference.mean)
        if row.policy != comparison.baseline and (d := row.difference).num_values
    ]
    if ranges:
        yield FOREST, forest_chart, axes, ranges
    axes = Axes(title=f"J over time, {data}", x_label="part of the video, %", y_label="J, %")
    yield "j_over_time", line_chart, axes, [over_time(of_policy, name=name) for name, of_policy in results.items()]
    axes = Axes(title=f"State over frames, {data}", x_label="frame", y_label="MB")
    yield (
        "bytes_over_frames",
        line_chart,
        axes,
        [bytes_over_frames(of_policy, name) for name, of_policy in results.items()],
    )
    axes = Axes(title=f"State over all videos, {data}", x_label="the most of a video, MB", y_label="")
    yield "bytes_of_videos", box_chart, axes, [bytes_of_videos(of_policy, name) for name, of_policy in results.items()]
    title, panels = f"{headline}, state and time, {data}", ("CPU time, ms per frame",)
    axes = Axes(title=title, x_label="state, MB", y_label=f"{headline}, %", panels=panels)
    points = {row.policy: ((row.state_bytes / 1e6, row.cpu_milliseconds), 100 * row.figures[headline]) for row in rows}
    yield "quality_costs", scatter_chart, axes, [Series(name=n, x=x, y=(y, y)) for n, (x, y) in points.items()]


# -- worst frames ---------------------------------------------------------------------------------------------------


class WorstPicture(NamedTuple):
    """The thumbnail of a job, a JPEG in base 64, and what to write below it."""

    caption: str
    content: str


def worst_pictures(comparison: PairedComparison, folder: ResultFolder, data: str) -> dict[str, list[WorstPicture]]:
    """Those of the ``MOST_THUMBNAILS`` videos of lowest J, worst first, by policy."""
    pictures: dict[str, list[WorstPicture]] = {}
    for policy in comparison.policies:
        drawn = [r for r in comparison.of(policy, data) if r.worst and folder.thumbnail(r.job).is_file()]
        for result in sorted(drawn, key=lambda result: result.worst["J"])[:MOST_THUMBNAILS]:
            worst = result.worst
            caption = f"{result.video}, object {worst['object']}, frame {worst['frame']}: J {_percent(worst['J'])}"
            content = base64.b64encode(folder.thumbnail(result.job).read_bytes()).decode()
            pictures.setdefault(policy, []).append(WorstPicture(caption, content))
    return pictures


# -- the report -----------------------------------------------------------------------------------------------------


def write_report(folder: ResultFolder) -> bool:
    """``results.jsonl``; in ``report/``: ``index.html``, ``report.md``, ``summary.csv``, ``objects.csv``, charts. Whether the
    comparison is complete."""
    comparison = read_comparison(folder)
    write_line(folder.root / "results.jsonl", "\n".join(result.line() for result in comparison.results))
    rows, report = policy_rows(comparison), folder.root / "report"
    drawn = draw_charts(comparison, rows, report)
    tables = {
        group: group_tables(comparison, group, [row for row in rows if row.group == group])
        for group in comparison.groups
    }
    write_line(report / "summary.csv", summary_csv(rows).rstrip("\n"))
    write_line(report / "objects.csv", objects_csv(comparison).rstrip("\n"))
    about, remarks = _about(comparison), _remarks(comparison)
    charts = [(title, file, base64.b64encode((report / file).read_bytes()).decode()) for title, file in drawn]
    first = [(title, content) for title, file, content in charts if file.startswith(FOREST)]
    others = [(title, content) for title, file, content in charts if not file.startswith(FOREST)]
    worst = {data: worst_pictures(comparison, folder, data) for data in comparison.data}
    page = render(
        "comparison.html", about=about, first=first, tables=tables, worst=worst, charts=others, remarks=remarks
    )
    write_line(report / "index.html", page)
    parts = ["# Memory policies compared", _bullets(about)]
    for group, of_group in tables.items():
        parts.append(f"## {group}")
        for table in of_group:
            parts += [] if table.folded else [f"{table.title}:", text_table(table.head, table.lines, markdown=True)]
    parts += [f"![{title}]({file})" for title, file in drawn]
    parts += ["## Remarks", _bullets(remarks)] if remarks else []
    write_line(report / "report.md", "\n\n".join(parts))
    return comparison.complete


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _about(comparison: PairedComparison) -> list[str]:
    run = comparison.run
    lines = [*_gaps(comparison), f"Network: {run['common'].get('config')}, weights {run['common'].get('weights')}"]
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


def _gaps(comparison: PairedComparison) -> list[str]:
    """That a comparison is not complete, which is to be read before its numbers."""
    if comparison.complete:
        return []
    counts = f"{len(comparison.failed)} runs failed, {len(comparison.missing)} are missing"
    return [f"INCOMPLETE: {counts}; means are over the objects that every policy has. The remarks at the end name them"]


def _remarks(comparison: PairedComparison) -> list[str]:
    """What keeps the report from being complete, one by one, and the notes of the protocols."""
    lines = [f"FAILED: {r.policy} on {r.data} {r.video}, seed {r.seed}: {r.error}" for r in comparison.failed]
    lines += [f"MISSING: {job.policy} on {job.data} {job.video}, seed {job.seed}" for job in comparison.missing]
    notes = {(r.data, r.video, note) for r in comparison.results for note in r.notes}
    return lines + [f"{data} {video}: {note}" for data, video, note in sorted(notes)]
