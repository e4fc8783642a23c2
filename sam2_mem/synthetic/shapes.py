"""Outlines, deformation, anti-aliased coverage and paths in time: the geometry of the procedural videos.

Everything is a closed-form function of the time t (frames, fractions allowed), so that any frame costs the same
wherever it lies. Points are (n, 2) float64 arrays of x, y. Pixel i covers [i, i + 1). Polygons are filled with
integer arithmetic.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import cv2
import numpy as np

VERTICES = 60  # divisible by 3, 4, 5 and 6, so that regular polygons keep their corners
SUPERSAMPLE = 4
_ANGLES = np.arange(VERTICES) * (2 * np.pi / VERTICES)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_SINE_STEPS = 4096
_SINE = np.sin(np.arange(_SINE_STEPS) * (2 * np.pi / _SINE_STEPS)).astype(np.float32)
OUTLINES = ("blob", "polygon", "star", "capsule")


class Bounds(NamedTuple):
    """Pixel rectangle [x0, x1) x [y0, y1)."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def empty(self) -> bool:
        return self.x0 >= self.x1 or self.y0 >= self.y1


@dataclass(frozen=True)
class Wave:
    """mean + amplitude * sin(rate * t + phase)."""

    amplitude: float
    rate: float
    phase: float
    mean: float = 0.0

    def at(self, t: float) -> float:
        return self.mean + self.amplitude * math.sin(self.rate * t + self.phase)


def draw_wave(rng: np.random.Generator, amplitude: float, period: tuple[float, float], mean: float = 0.0) -> Wave:
    """A wave of random phase whose period, in frames, is drawn from the given range."""
    return Wave(amplitude, 2 * math.pi / rng.uniform(*period), rng.uniform(0, 2 * math.pi), mean)


@dataclass(frozen=True)
class Outline:
    """A star-shaped contour of radius at most about 1 that breathes and may turn into a second one."""

    first: np.ndarray  # (VERTICES,) radii
    second: np.ndarray
    wobble: tuple[Wave, ...]  # one for each harmonic from 2 on

    def at(self, t: float, share: float = 0.0) -> np.ndarray:
        """The contour at time t, `share` of the way to the second shape: (VERTICES, 2)."""
        radii = self.first if share <= 0.0 else self.first + share * (self.second - self.first)
        swell = np.ones(VERTICES)
        for k, wave in enumerate(self.wobble, start=2):
            swell += wave.at(t) * np.cos(k * _ANGLES + wave.phase)
        return _CIRCLE * (radii * swell)[:, None]


def draw_radii(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Radii of a random contour of one of OUTLINES, the largest 1: (VERTICES,)."""
    if kind == "blob":
        radii = np.ones(VERTICES)
        for k in range(1, 6):
            radii += rng.uniform(-0.42, 0.42) / k**0.8 * np.cos(k * _ANGLES + rng.uniform(0, 2 * np.pi))
        radii = np.maximum(radii, 0.35 * radii.max())
    elif kind == "capsule":
        ratio = rng.uniform(0.5, 0.75)
        radii = 1.0 / np.sqrt(np.cos(_ANGLES) ** 2 + (np.sin(_ANGLES) / ratio) ** 2)
    else:
        sides = int(rng.choice([3, 4, 5, 6]))
        step = 2 * np.pi / sides
        radii = 1.0 / np.cos(np.mod(_ANGLES + 1e-9, step) - step / 2)
        if kind == "star":
            radii = radii ** -rng.uniform(1.5, 2.5)
            radii = np.maximum(radii, 0.45 * radii.max())
    return radii / radii.max()


def draw_outline(rng: np.random.Generator, kind: str, *, deform: float) -> Outline:
    """A random outline; deform scales its breathing (0: rigid)."""
    wobble = tuple(draw_wave(rng, deform * 0.16 / k**0.7, (14, 50)) for k in range(2, 6))
    second = draw_radii(rng, str(rng.choice(OUTLINES)))
    return Outline(first=draw_radii(rng, kind), second=second, wobble=wobble)


def rectangle(half_width: float, half_height: float) -> np.ndarray:
    """Corners of a centred rectangle: (4, 2)."""
    return np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * (half_width, half_height)


def fin(length: float, width: float) -> np.ndarray:
    """An ellipse that reaches from its hinge at the origin along x: (24, 2)."""
    angles = np.arange(24) * (2 * np.pi / 24)
    return np.stack([length * (0.8 + np.cos(angles)), width * np.sin(angles)], axis=1)


def cut(polygon: np.ndarray, normal: tuple[float, float]) -> np.ndarray:
    """The part of a polygon where normal . p >= 0 (possibly with edges along the cut): (m, 2)."""
    side = polygon @ np.asarray(normal)
    corners: list[np.ndarray] = []
    for i in range(len(polygon)):
        j = (i + 1) % len(polygon)
        if side[i] >= 0:
            corners.append(polygon[i])
        if (side[i] >= 0) != (side[j] >= 0):
            corners.append(polygon[i] + (polygon[j] - polygon[i]) * (side[i] / (side[i] - side[j])))
    return np.array(corners) if corners else np.zeros((0, 2))


@dataclass(frozen=True)
class Affine:
    """p -> (a x + b y + c, d x + e y + f)."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @staticmethod
    def pose(x: float, y: float, angle: float = 0.0, sx: float = 1.0, sy: float = 1.0) -> Affine:
        """Scale by sx, sy, turn by the angle, then move to x, y."""
        cos, sin = math.cos(angle), math.sin(angle)
        return Affine(cos * sx, -sin * sy, x, sin * sx, cos * sy, y)

    def apply(self, points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0], points[:, 1]
        return np.stack([self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f], axis=1)

    def after(self, inner: Affine) -> Affine:
        """First `inner`, then this one."""
        return Affine(
            self.a * inner.a + self.b * inner.d,
            self.a * inner.b + self.b * inner.e,
            self.a * inner.c + self.b * inner.f + self.c,
            self.d * inner.a + self.e * inner.d,
            self.d * inner.b + self.e * inner.e,
            self.d * inner.c + self.e * inner.f + self.f,
        )

    def inverse(self) -> Affine:
        det = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def on_pixels(self, box: Bounds) -> tuple[np.ndarray, np.ndarray]:
        """Both coordinates of the pixel centres of a box after the map: two (h, w) float32."""
        x = np.arange(box.x0, box.x1, dtype=np.float64) + 0.5
        y = (np.arange(box.y0, box.y1, dtype=np.float64) + 0.5)[:, None]
        u = (self.a * x).astype(np.float32) + (self.b * y + self.c).astype(np.float32)
        v = (self.d * x).astype(np.float32) + (self.e * y + self.f).astype(np.float32)
        return u, v


class Bend(NamedTuple):
    """Two successive wave-shaped shears, exactly invertible: x += ax sin(kx y + px), then y += ay sin(ky x + py)."""

    ax: float
    kx: float
    px: float
    ay: float
    ky: float
    py: float

    def apply(self, points: np.ndarray) -> np.ndarray:
        x = points[:, 0] + self.ax * np.sin(self.kx * points[:, 1] + self.px)
        return np.stack([x, points[:, 1] + self.ay * np.sin(self.ky * x + self.py)], axis=1)

    def undo(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse on float32 coordinate maps, with a sine table so that the result does not depend on the machine."""
        if self.ax == 0.0 and self.ay == 0.0:
            return x, y
        y = y - np.float32(self.ay) * _table_sine(x, self.ky, self.py)
        return x - np.float32(self.ax) * _table_sine(y, self.kx, self.px), y


def _table_sine(x: np.ndarray, rate: float, phase: float) -> np.ndarray:
    turns = np.float32(_SINE_STEPS / (2 * np.pi))
    offset = np.float32((phase / (2 * np.pi) % 1.0 + 64.0) * _SINE_STEPS)
    return _SINE.take((x * (np.float32(rate) * turns) + offset).astype(np.int32) & (_SINE_STEPS - 1))


def bounding_box(polygon: np.ndarray, limits: Bounds) -> Bounds:
    """The pixel box of a polygon, a pixel wider for its soft edge, inside the limits."""
    if len(polygon) < 3:
        return Bounds(0, 0, 0, 0)
    low, high = np.floor(polygon.min(axis=0)) - 1, np.ceil(polygon.max(axis=0)) + 1
    return Bounds(
        max(int(low[0]), limits.x0),
        max(int(low[1]), limits.y0),
        min(int(high[0]), limits.x1),
        min(int(high[1]), limits.y1),
    )


def coverage(polygon: np.ndarray, box: Bounds) -> np.ndarray:
    """Softened coverage of a polygon in 0..64 (textures.OPAQUE), half at its edge: (h, w) uint8.

    Exact integers once the vertices are rounded to 1/64 pixel.
    """
    width, height = box.x1 - box.x0 + 2, box.y1 - box.y0 + 2
    canvas = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    scaled = ((polygon - (box.x0 - 1, box.y0 - 1)) * SUPERSAMPLE - 0.5) * 16.0
    cv2.fillPoly(canvas, [np.rint(scaled).astype(np.int32)], 1, lineType=cv2.LINE_8, shift=4)
    rows = canvas[0::4] + canvas[1::4] + canvas[2::4] + canvas[3::4]
    cells = rows[:, 0::4] + rows[:, 1::4] + rows[:, 2::4] + rows[:, 3::4]
    down = cells[:-2] + 2 * cells[1:-1] + cells[2:]
    soft = (down[:, :-2].astype(np.uint16) + 2 * down[:, 1:-1] + down[:, 2:]) >> 2
    return soft.astype(np.uint8)


class Window(NamedTuple):
    """Rises over `ramp` frames from `start`, holds, and falls over `ramp` frames."""

    start: float
    ramp: float
    hold: float

    @property
    def end(self) -> float:
        return self.start + 2 * self.ramp + self.hold

    @property
    def middle(self) -> float:
        return (self.start + self.end) / 2

    def level(self, t: float) -> float:
        """Smooth 0..1."""
        edge = min(t - self.start, self.end - t) / self.ramp
        x = min(max(edge, 0.0), 1.0)
        return x * x * (3.0 - 2.0 * x)


@dataclass(frozen=True)
class Schedule:
    """Windows in order of time that do not overlap."""

    windows: tuple[Window, ...] = ()

    def find(self, t: float) -> int | None:
        """Number of the window around t, if any."""
        i = bisect_right(self.windows, t, key=lambda w: w.start) - 1
        return i if i >= 0 and t < self.windows[i].end else None

    def level(self, t: float) -> float:
        i = self.find(t)
        return 0.0 if i is None else self.windows[i].level(t)


class Path(Protocol):
    """The centre of something over time, in pixels; None where it is not in the scene."""

    def at(self, t: float) -> tuple[float, float] | None: ...


def _fold(value: float, low: float, high: float) -> float:
    """Reflect a coordinate at both ends of an interval."""
    span = high - low
    if span <= 0:
        return (low + high) / 2
    return low + span - abs((value - low) % (2 * span) - span)


@dataclass(frozen=True)
class Bounce:
    """From `origin` at t = since with a velocity and a swaying acceleration; reflected at the limits."""

    origin: tuple[float, float]
    velocity: tuple[float, float]
    sway: tuple[Wave, ...]  # of x and y
    low: tuple[float, float]
    high: tuple[float, float]
    since: float = 0.0

    def at(self, t: float) -> tuple[float, float]:
        age = t - self.since
        x, y = (
            _fold(o + v * age + s.at(age) - s.at(0.0), a, b)
            for o, v, s, a, b in zip(self.origin, self.velocity, self.sway, self.low, self.high, strict=True)
        )
        return x, y


@dataclass(frozen=True)
class Shuttle:
    """To and fro along `reach` across a fixed centre, swaying slightly to the side."""

    centre: tuple[float, float]
    reach: tuple[float, float]
    turn: Wave  # amplitude 1
    side: Wave

    def at(self, t: float) -> tuple[float, float]:
        go, side = self.turn.at(t), self.side.at(t)
        norm = math.hypot(*self.reach) + 1e-9
        return (
            self.centre[0] + go * self.reach[0] - side * self.reach[1] / norm,
            self.centre[1] + go * self.reach[1] + side * self.reach[0] / norm,
        )


@dataclass(frozen=True)
class Excursion:
    """A path that leaves for points outside the frame during its schedule: out by one exit, back by aninner."""

    base: Path
    schedule: Schedule
    exits: tuple[tuple[tuple[float, float], tuple[float, float]], ...]

    def at(self, t: float) -> tuple[float, float] | None:
        position = self.base.at(t)
        i = self.schedule.find(t)
        if i is None or position is None:
            return position
        window = self.schedule.windows[i]
        outside = self.exits[i][0 if t < window.middle else 1]
        share = window.level(t)
        return position[0] + share * (outside[0] - position[0]), position[1] + share * (outside[1] - position[1])


@dataclass(frozen=True)
class Entrance:
    """Nothing before frame `entry`, then in from one side, slowing down onto the base path."""

    base: Path
    entry: float
    offset: tuple[float, float]  # from the base path at the entry frame
    slow: float = 3.0

    def at(self, t: float) -> tuple[float, float] | None:
        position = self.base.at(t)
        if t < self.entry - 0.5 or position is None:
            return None
        share = math.exp(-max(t - self.entry, 0.0) / self.slow)
        return position[0] + share * self.offset[0], position[1] + share * self.offset[1]


@dataclass(frozen=True)
class Sweep:
    """Crosses the position of a target during each window of its schedule, half-way on it; otherwise absent."""

    target: Path
    schedule: Schedule
    directions: Sequence[tuple[float, float]]  # from the target to the start, one for each window

    def at(self, t: float) -> tuple[float, float] | None:
        i = self.schedule.find(t)
        centre = self.target.at(t)
        if i is None or centre is None:
            return None
        window, (dx, dy) = self.schedule.windows[i], self.directions[i]
        share = 1.0 - 2.0 * (t - window.start) / (window.end - window.start)
        return centre[0] + share * dx, centre[1] + share * dy


@dataclass(frozen=True)
class Fixed:
    """Stays at one position."""

    position: tuple[float, float]

    def at(self, t: float) -> tuple[float, float]:
        return self.position
