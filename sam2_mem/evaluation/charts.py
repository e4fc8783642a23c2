"""Line and scatter charts as PNG, drawn with Pillow: the same bytes for the same numbers."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = (960, 540)
LEFT, TOP, BOTTOM = 78, 44, 58
FINE = 2
"""Drawn this many times larger, then reduced: Pillow's lines have no smooth edges."""

INK, GRID, PAPER = (45, 45, 45), (228, 228, 228), (255, 255, 255)
Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line or, with one value, a point; NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a chart says around its lines. ``y_range``: fixed ends of the upright axis."""

    title: str
    x_label: str
    y_label: str
    y_range: tuple[float, float] | None = None


def series_color(index: int) -> Color:
    """Neighbours lie far apart in hue; every other round is darker."""
    hue, dark = (0.6 + index * 0.618034) % 1.0, (index // 6) % 2
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.55 if dark else 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def line_chart(path: Path, axes: Axes, series: Sequence[Series]) -> None:
    """One line for each series."""
    canvas = _Canvas(axes, series)
    for index, one in enumerate(series):
        for run in _runs(one):
            canvas.line(run, series_color(index))
    canvas.legend(series)
    canvas.save(path)


def scatter_chart(path: Path, axes: Axes, points: Sequence[Series]) -> None:
    """One dot for each series, with its name in the legend."""
    canvas = _Canvas(axes, points)
    for index, one in enumerate(points):
        for x, y in zip(one.x, one.y):
            if math.isfinite(x) and math.isfinite(y):
                canvas.dot(x, y, series_color(index))
    canvas.legend(points)
    canvas.save(path)


def _runs(one: Series) -> list[list[tuple[float, float]]]:
    """The stretches of a line between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(one.x, one.y):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most``."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    factor = next(f for f in (1, 2, 5, 10, 20) if span / (step * f) <= most - 1)
    step *= factor
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


class _Scale:
    """From the numbers of an axis to pixels."""

    def __init__(self, values: Sequence[float], fixed: tuple[float, float] | None, start: int, end: int) -> None:
        finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = fixed or (min(finite), max(finite))
        margin = 0.0 if fixed else 0.05 * (high - low) or abs(high) * 0.1 or 1.0
        self.low, self.high = low - margin, high + margin
        if not fixed and low >= 0.0:
            self.low = max(0.0, self.low)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) / (self.high - self.low) * (self._end - self._start)


class _Canvas:
    def __init__(self, axes: Axes, series: Sequence[Series]) -> None:
        longest = max((len(one.name) for one in series), default=0)
        self._legend_x = SIZE[0] - min(330, 46 + 7 * longest)
        self._image = Image.new("RGB", (SIZE[0] * FINE, SIZE[1] * FINE), PAPER)
        self._draw = ImageDraw.Draw(self._image)
        self._x = _Scale([v for one in series for v in one.x], None, LEFT, self._legend_x - 16)
        self._y = _Scale([v for one in series for v in one.y], axes.y_range, SIZE[1] - BOTTOM, TOP)
        self._frame(axes)

    def _frame(self, axes: Axes) -> None:
        left, right, bottom = LEFT, self._legend_x - 16, SIZE[1] - BOTTOM
        for value in ticks(self._y.low, self._y.high):
            self._stroke([(left, self._y(value)), (right, self._y(value))], GRID, 1)
            self._text(left - 8, self._y(value), _label(value), "rm")
        for value in ticks(self._x.low, self._x.high, 9):
            self._stroke([(self._x(value), TOP), (self._x(value), bottom)], GRID, 1)
            self._text(self._x(value), bottom + 12, _label(value), "mm")
        self._stroke([(left, TOP), (left, bottom), (right, bottom)], INK, 1)
        self._text(LEFT, 20, axes.title, "lm", 17)
        self._text((left + right) / 2, SIZE[1] - 20, axes.x_label, "mm")
        self._upright(axes.y_label)

    def _upright(self, text: str) -> None:
        font = _font(13 * FINE)
        width, height = (math.ceil(v) for v in font.getbbox(text)[2:])
        strip = Image.new("RGB", (width + 2, height + 4), PAPER)
        ImageDraw.Draw(strip).text((0, 0), text, INK, font=font)
        middle = (TOP + SIZE[1] - BOTTOM) * FINE // 2
        self._image.paste(strip.rotate(90, expand=True), (8 * FINE, middle - width // 2))

    def line(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        placed = [(self._x(x), self._y(y)) for x, y in points]
        if len(placed) == 1:
            self.dot(*points[0], color)
        else:
            self._stroke(placed, color, 2)

    def dot(self, x: float, y: float, color: Color) -> None:
        x, y, r = self._x(x) * FINE, self._y(y) * FINE, 6 * FINE
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=color, outline=PAPER, width=FINE)

    def legend(self, series: Sequence[Series]) -> None:
        room = (SIZE[1] - TOP - BOTTOM) / max(len(series), 1)
        step = min(22.0, room)
        for index, one in enumerate(series):
            y = TOP + (index + 0.5) * step
            self._stroke([(self._legend_x, y), (self._legend_x + 18, y)], series_color(index), 4)
            self._text(self._legend_x + 24, y, one.name[:42], "lm", 13 if step > 15 else 10)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._image.resize(SIZE, Image.Resampling.LANCZOS).save(path, format="PNG", optimize=True)

    def _stroke(self, points: Sequence[tuple[float, float]], color: Color, width: int) -> None:
        self._draw.line([(x * FINE, y * FINE) for x, y in points], fill=color, width=width * FINE, joint="curve")

    def _text(self, x: float, y: float, text: str, anchor: str, size: int = 13) -> None:
        self._draw.text((x * FINE, y * FINE), text, INK, font=_font(size * FINE), anchor=anchor)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font at a size; old versions have one size only."""
    load: Callable[..., ImageFont.ImageFont] = ImageFont.load_default
    try:
        return load(size=size)
    except TypeError:
        return load()


def _label(value: float) -> str:
    return f"{value:g}"
