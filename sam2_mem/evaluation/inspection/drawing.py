"""A drawing that comes out as SVG for a page and as pixels for a PNG.

matplotlib draws the charts of this package, but not these: every shape here has its own tooltip, positions in time lie
where the page's script expects them, and a timeline may have ten thousand bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

from PIL import Image, ImageDraw, ImageFont

from sam2_mem._moved import renamed

INK, FAINT, PAPER, GRID = "#1c1c1c", "#5a5a5a", "#ffffff", "#dddddd"
Points = Sequence[tuple[float, float]]
_Paint = Callable[[ImageDraw.ImageDraw, int], None]


class Drawing:
    """Shapes on white, in units of a pixel. ``left`` and ``step``: where positions in time lie, x = left + step *
    position. A ``note`` is a tooltip."""

    def __init__(self, width: float, height: float, title: str, left: float = 0.0, step: float = 0.0) -> None:
        self.width, self.height, self.title = width, height, title
        self.left, self.step = left, step
        self._elements: list[str] = []
        self._pinned: list[str] = []
        self._current = self._elements
        self._paints: list[_Paint] = []

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """What is drawn in this block, titles and labels, stays in view where a page scrolls the drawing."""
        self._current = self._pinned
        yield
        self._current = self._elements

    def rectangle(self, x: float, y: float, width: float, height: float, fill: str, note: str = "") -> None:
        def paint(pen: ImageDraw.ImageDraw, k: int) -> None:
            right, bottom = (x + width) * k - 1, (y + height) * k - 1
            pen.rectangle([x * k, y * k, max(right, x * k), max(bottom, y * k)], fill=fill)

        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._add(f'<rect {box} fill="{fill}">{_tooltip(note)}</rect>', paint)

    def line(self, points: Points, color: str = INK, width: float = 1.0) -> None:
        stroke = f'fill="none" stroke="{color}" stroke-width="{width:g}"'
        self._add(
            f'<polyline points="{_pairs(points)}" {stroke}/>',
            lambda pen, k: pen.line(_scaled(points, k), color, max(1, round(width * k)), "curve"),
        )

    def polygon(self, points: Points, fill: str = INK, note: str = "") -> None:
        self._add(
            f'<polygon points="{_pairs(points)}" fill="{fill}">{_tooltip(note)}</polygon>',
            lambda pen, k: pen.polygon(_scaled(points, k), fill=fill),
        )

    def text(self, x: float, y: float, text: str, size: int = 11, anchor: str = "start", color: str = INK) -> None:
        """``anchor``: start, middle or end of the text lies at x; y is its base line."""
        corner = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        position = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
        self._add(
            f'<text {position} fill="{color}">{escape(text)}</text>',
            lambda pen, k: pen.text((x * k, y * k), text, color, font_of(size * k), anchor=corner),
        )

    def _add(self, element: str, paint: _Paint) -> None:
        self._current.append(element)
        self._paints.append(paint)

    def svg(self) -> str:
        """One ``<svg>`` element with its title."""
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        scale = f'data-left="{self.left:g}" data-step="{self.step:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {scale}>'
        ground = f'<rect width="{max(self.left - 4, 0):g}" height="{self.height:g}" fill="{PAPER}"/>'
        pinned = f'<g class="pinned">{ground}{"".join(self._pinned)}</g>' if self._pinned else ""
        return f"{head}<title>{escape(self.title)}</title>{''.join(self._elements)}{pinned}</svg>"

    def image(self, scale: int = 2) -> Image.Image:
        """The same in pixels, ``scale`` to one unit."""
        picture = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), PAPER)
        pen = ImageDraw.Draw(picture)
        for paint in self._paints:
            paint(pen, scale)
        return picture


def _tooltip(note: str) -> str:
    return f"<title>{escape(note)}</title>" if note else ""


def _pairs(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _scaled(points: Points, k: int) -> list[tuple[float, float]]:
    return [(x * k, y * k) for x, y in points]


def font_of(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, so that a drawing is the same on every machine; ASCII is safe to draw with it."""
    return ImageFont.load_default(size)


__getattr__ = renamed(__name__)
