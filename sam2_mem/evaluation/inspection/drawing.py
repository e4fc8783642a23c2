"""Drawings that come out as SVG for a page and as pixels for a PNG, from one list of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, PAPER, GRID = "#1c1c1c", "#5a5a5a", "#ffffff", "#dddddd"


@dataclass(frozen=True)
class Rect:
    x: float
    y: float
    width: float
    height: float
    fill: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    points: tuple[tuple[float, float], ...]
    color: str = INK
    width: float = 1.0


@dataclass(frozen=True)
class Polygon:
    points: tuple[tuple[float, float], ...]
    fill: str = INK
    note: str = ""


@dataclass(frozen=True)
class Text:
    """``anchor``: start, middle or end of the text lies at x; y is its base line."""

    x: float
    y: float
    text: str
    size: int = 11
    anchor: str = "start"
    color: str = INK


Shape = Rect | Line | Polygon | Text


@dataclass(eq=False)
class Drawing:
    """Shapes on white. ``left`` and ``step``: where positions in time lie, x = left + step * position."""

    width: float
    height: float
    title: str
    left: float = 0.0
    step: float = 0.0
    shapes: list[Shape] = field(default_factory=list)

    def add(self, *shapes: Shape) -> None:
        self.shapes += shapes

    def svg(self) -> str:
        """One ``<svg>`` element with its title."""
        body = "".join(_svg(s) for s in self.shapes)
        size = f'width="{self.width:g}" height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
        where = f'data-left="{self.left:g}" data-step="{self.step:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {where}>'
        return f"{head}<title>{escape(self.title)}</title>{body}</svg>"

    def image(self, scale: int = 2) -> Image.Image:
        """The same in pixels, ``scale`` to one unit."""
        picture = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), PAPER)
        pen = ImageDraw.Draw(picture)
        for shape in self.shapes:
            _paint(pen, shape, scale)
        return picture


def _svg(shape: Shape) -> str:
    if isinstance(shape, Text):
        place = f'x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size}" text-anchor="{shape.anchor}"'
        return f'<text {place} fill="{shape.color}">{escape(shape.text)}</text>'
    if isinstance(shape, Line):
        stroke = f'fill="none" stroke="{shape.color}" stroke-width="{shape.width:g}"'
        return f'<polyline points="{_points(shape.points)}" {stroke}/>'
    note = f"<title>{escape(shape.note)}</title>" if shape.note else ""
    if isinstance(shape, Polygon):
        return f'<polygon points="{_points(shape.points)}" fill="{shape.fill}">{note}</polygon>'
    box = f'x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" height="{shape.height:.1f}"'
    return f'<rect {box} fill="{shape.fill}">{note}</rect>'


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _paint(pen: ImageDraw.ImageDraw, shape: Shape, scale: int) -> None:
    if isinstance(shape, Text):
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        font = font_of(shape.size * scale)
        pen.text((shape.x * scale, shape.y * scale), shape.text, shape.color, font, anchor=anchor)
    elif isinstance(shape, Rect):
        left, top = shape.x * scale, shape.y * scale
        right, bottom = left + shape.width * scale - 1, top + shape.height * scale - 1
        pen.rectangle([left, top, max(right, left), max(bottom, top)], fill=shape.fill)
    elif isinstance(shape, Polygon):
        pen.polygon([(x * scale, y * scale) for x, y in shape.points], fill=shape.fill)
    else:
        points = [(x * scale, y * scale) for x, y in shape.points]
        pen.line(points, shape.color, max(1, round(shape.width * scale)), "curve")


def font_of(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, so that a drawing is the same on every machine; ASCII is safe to draw with it."""
    return ImageFont.load_default(size)


def stacked(images: Sequence[Image.Image], gap: int = 12) -> Image.Image:
    """One above the other, on white."""
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height + gap for i in images)), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + gap
    return sheet
