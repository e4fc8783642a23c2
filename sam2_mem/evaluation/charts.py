"""Line, scatter, box and forest charts by matplotlib, without a display: the same bytes for the same numbers."""

from __future__ import annotations

import colorsys
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SIZE = (960, 540)
"""Pixels of a chart; SVG has them as its size too."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line or, with one value for each panel, a point; NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a chart says around its lines. ``y_range``: fixed ends of the upright axis; ``panels``: level axes of further panels
    beside the first, under the same upright one."""

    title: str
    x_label: str
    y_label: str
    y_range: tuple[float, float] | None = None
    panels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Range:
    """A line of a forest chart: a value and the ends of its interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A box of a box chart: its values."""

    name: str
    values: Sequence[float]


ABOVE, BELOW, AROUND = "#1a7f37", "#b3261e", "#5f6b7a"
"""Colours of intervals above zero, below zero and around it."""


def series_color(index: int) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1]. Neighbours lie far apart in hue; every other round is darker."""
    hue, is_dark = (0.6 + index * 0.618034) % 1.0, (index // 6) % 2
    return colorsys.hsv_to_rgb(hue, 0.75, 0.55 if is_dark else 0.85)


def line_chart(path: Path, axes: Axes, series: Sequence[Series]) -> None:
    """One line for each series, named at its right end. The ending of ``path`` says the format: .svg or .png."""
    with _plot(path, axes, ()) as plot:
        for index, line in enumerate(series):
            x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
            finite = np.isfinite(np.concatenate(([np.nan], y, [np.nan])))
            isolated = finite[1:-1] & ~finite[:-2] & ~finite[2:]
            plot.plot(x, y, linewidth=1.8, color=series_color(index))
            plot.plot(x[isolated], y[isolated], linestyle="none", marker="o", color=series_color(index))
        _fit_upright(plot, axes, series)
        _name_lines(plot, series)


def _name_lines(plot: Any, series: Sequence[Series]) -> None:
    """The name of each line beside its last value, moved so that names do not overlap."""
    low, high = plot.get_ylim()
    size = 9 if len(series) <= 24 else 7
    step = 1.5 * size / (0.8 * 0.75 * SIZE[1])  # of the height of the axes
    ends = []
    for index, line in enumerate(series):
        finite = [y for y in line.y if math.isfinite(y)]
        ends.append(((finite[-1] - low) / (high - low) if finite and high > low else 0.0, index))
    place = -math.inf
    placed = []
    for end, index in sorted(ends):
        place = max(end, place + step)
        placed.append((place, index))
    excess = max(0.0, placed[-1][0] - 1.0) if placed else 0.0
    for place, index in placed:
        color = [0.65 * value for value in series_color(index)]  # darker than the line, to be read on white
        style = {"transform": plot.transAxes, "color": color, "fontsize": size, "va": "center"}
        plot.text(1.01, place - excess, _wrapped(series[index].name), **style)


def forest_chart(path: Path, axes: Axes, ranges: Sequence[Range]) -> None:
    """One horizontal interval for each range, the first on top, beside a line at zero."""
    with _plot(path, axes, ()) as plot:
        plot.axvline(0.0, color="#2d2d2d", linewidth=1)
        for place, item in enumerate(ranges):
            color = ABOVE if item.low > 0 else BELOW if item.high < 0 else AROUND
            plot.plot([item.low, item.high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
            plot.plot([item.value], [place], color=color, marker="o", markersize=6)
        size = 9 if len(ranges) <= 24 else 7
        plot.set_yticks(range(len(ranges)), [_wrapped(item.name) for item in ranges], fontsize=size)
        plot.set_ylim(len(ranges) - 0.5, -0.5)


def box_chart(path: Path, axes: Axes, spreads: Sequence[Spread]) -> None:
    """One horizontal box for each spread, the first on top: the quarters and the median, a line to the last values within 1.5
    times the box's width, and points beyond. NaN is left out."""
    from matplotlib.cbook import boxplot_stats

    with _plot(path, axes, ()) as plot:
        for row, spread in enumerate(spreads):
            values, line = [v for v in spread.values if math.isfinite(v)], {"color": "#2d2d2d", "linewidth": 1.4}
            for box in boxplot_stats(values) if values else ():
                plot.plot([box["whislo"], box["whishi"]], [row, row], **line, zorder=2)
                plot.barh(row, box["q3"] - box["q1"], 0.6, box["q1"], color=series_color(row), zorder=3)
                plot.plot([box["med"]] * 2, [row - 0.3, row + 0.3], **line, zorder=4)
                plot.plot(box["fliers"], [row] * len(box["fliers"]), "o", color=series_color(row), markersize=4)
        size = 9 if len(spreads) <= 24 else 7
        plot.set_yticks(range(len(spreads)), [_wrapped(spread.name) for spread in spreads], fontsize=size)
        plot.set_ylim(len(spreads) - 0.5, -0.5)
        plot.set_xlim(left=0.0)


def scatter_chart(path: Path, axes: Axes, points: Sequence[Series]) -> None:
    """One dot for each series in every panel, with its name in the legend. The ending of ``path`` says the format: .svg or .png."""
    with _plot(path, axes, points) as plot:
        for index, point in enumerate(points):
            style = {"color": series_color(index), "marker": "os^D"[index % 4], "markeredgecolor": "white"}
            for panel, x, y in zip(plot.figure.axes, point.x, point.y):
                label = _wrapped(point.name) if panel is plot else None
                panel.plot([x], [y], label=label, linestyle="none", markersize=9, **style)


def _fit_upright(plot: Any, axes: Axes, series: Sequence[Series]) -> None:
    """The ends of the upright axis: those asked for, or from 0 on where no value is negative."""
    if axes.y_range is not None:
        plot.set_ylim(*axes.y_range)
    elif all(value >= 0 for curve in series for value in curve.y if math.isfinite(value)):
        plot.set_ylim(bottom=max(0.0, plot.get_ylim()[0]))


def _wrapped(name: str) -> str:
    """In lines of at most 30 letters, broken before a plus sign where there is one."""
    return "\n".join(textwrap.wrap(name.replace("+", " +"), 30)).replace(" +", "+")


@contextmanager
def _plot(path: Path, axes: Axes, points: Sequence[Series]) -> Iterator[Any]:
    """matplotlib's axes to draw into, of the first panel; the file is written afterwards."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings = {"svg.hashsalt": "sam2_mem", "text.parse_math": False}
    with matplotlib.style.context(["default", settings]):
        figure = Figure((SIZE[0] / 96, SIZE[1] / 96), dpi=96, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        labels = (axes.x_label, *axes.panels)
        plot, *_ = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
        plot.set_ylabel(axes.y_label)
        yield plot
        plot.set_title(axes.title, loc="left")
        for panel, label in zip(figure.axes, labels):
            panel.set_xlabel(label)
            panel.grid(color="#e4e4e4")
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
        if points:
            _fit_upright(plot, axes, points)
            figure.legend(loc="outside right upper", frameon=False, fontsize=9 if len(points) <= 24 else 7)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
