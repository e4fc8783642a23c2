"""Levels of difficulty, and what they make a procedural scene of: moving objects, what hides them, and the camera.

A level is a set of numbers; a scene is drawn from it with a seeded generator. Lengths of a level are fractions, those of
a scene are in pixels; time is in frames. This is geometry only; `generator.py` adds what things look like, so that moving
objects can be checked and drawn again cheaply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sam2_mem.synthetic.moving_objects import STILL, Camera, Limb, MovingObject
from sam2_mem.synthetic.shapes import (
    OUTLINES,
    Bounce,
    Entrance,
    Excursion,
    Fixed,
    Path,
    Schedule,
    Shuttle,
    Sweep,
    Wave,
    Window,
    draw_outline,
    draw_wave,
    fin,
    rectangle,
)

EVENTS = ("occlusion", "leave", "long", "appearance", "split")
AWAY_EVENTS = ("away", "changed", "revisit", "cut")
"""``away``: out of the frame once, for long. ``changed``: in its second look from early on. ``revisit``: in its second look
early on and again from its absence on. ``cut``: another scene for as long."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """What a kind of scene contains. Lengths are fractions of the frame's side, speeds of the side per frame."""

    radius: tuple[float, float] = (0.12, 0.2)
    speed: tuple[float, float] = (0.004, 0.014)
    deform: float = 0.5
    spin: float = 0.03  # radians per frame
    limbs: float = 0.3  # probability that an object has moving limbs
    backgrounds: tuple[str, ...] = ("noise", "patches", "landscape")
    lines: int = 8
    blobs: int = 5
    vivid: float = 0.6
    contrast: float = 40.0  # least distance of mean colours of an object and the background
    camera: float = 0.5
    light: float = 0.08
    noise: float = 3.0
    blur: float = 0.25  # probability of motion blur
    jpeg: float = 0.0  # probability of JPEG artefacts
    shadow: float = 0.3
    lookalikes: int = 0  # for each object
    events: tuple[str, ...] = ()
    late: float = 0.0  # probability that an object other than the first enters late


LEVELS: dict[str, Level] = {
    "easy": Level(
        radius=(0.17, 0.24),
        speed=(0.003, 0.009),
        deform=0.3,
        spin=0.015,
        limbs=0.0,
        backgrounds=("gradient",),
        lines=0,
        blobs=0,
        vivid=0.95,
        contrast=75.0,
        camera=0.0,
        light=0.0,
        noise=1.0,
        blur=0.0,
        shadow=0.0,
    ),
    "clutter": Level(blobs=9, lines=14, camera=0.8),
    "lookalikes": Level(lookalikes=2, blobs=4, lines=6),
    "occlusion": Level(events=("occlusion",), radius=(0.1, 0.135)),
    "leave_return": Level(events=("leave",)),
    "long_absence": Level(events=("long",), radius=(0.1, 0.13)),
    "appearance": Level(events=("appearance",), radius=(0.11, 0.16)),
    "splitting": Level(events=("split",), radius=(0.14, 0.2), limbs=0.0),
    "mixed": Level(
        radius=(0.1, 0.16),
        events=EVENTS,
        backgrounds=("gradient", "noise", "patches", "landscape"),
        lookalikes=1,
        late=0.4,
        jpeg=0.3,
    ),
}

AWAY_LEVELS: dict[str, Level] = {
    "changed_away": Level(events=("changed", "away"), radius=(0.12, 0.16)),
    "revisit": Level(events=("revisit", "away"), radius=(0.12, 0.16)),
    "lookalike_stays": Level(events=("away",), lookalikes=1, radius=(0.12, 0.16)),
    "scene_cut": Level(events=("changed", "cut"), radius=(0.12, 0.16)),
}
"""Levels in which a memory decides: what the last frames show says nothing about the object when it is seen again."""
LEVEL_NUMBERS = {name: number for number, name in enumerate(sorted(LEVELS))}
LEVEL_NUMBERS |= {name: 100 + number for number, name in enumerate(AWAY_LEVELS)}
"""What the generators of a level are seeded with; never changed."""


def find_level(name: str) -> Level:
    """A level of ``LEVELS`` or ``AWAY_LEVELS``."""
    return LEVELS[name] if name in LEVELS else AWAY_LEVELS[name]


def scale_level(level: Level, difficulty: float) -> Level:
    """Turn the dial: 0.5 leaves the level as it is, 0 halves motion, clutter and noise, 1 makes them 1.5 times."""
    k = 0.5 + difficulty
    size = 1.15 - 0.3 * difficulty
    return replace(
        level,
        radius=(level.radius[0] * size, level.radius[1] * size),
        speed=(level.speed[0] * k, level.speed[1] * k),
        deform=level.deform * k,
        spin=level.spin * k,
        lines=round(level.lines * k),
        blobs=round(level.blobs * k),
        vivid=min(1.0, level.vivid * (1.25 - 0.5 * difficulty)),
        contrast=level.contrast * (1.5 - difficulty),
        camera=level.camera * k,
        light=level.light * k,
        noise=level.noise * k,
        blur=min(1.0, level.blur * k),
    )


def mix_level(rng: np.random.Generator, level: Level) -> Level:
    """A random subset of the events, distractors and nuisances of a level."""
    events = tuple(e for e in level.events if rng.random() < 0.4)
    return replace(
        level,
        events=events,
        lookalikes=level.lookalikes * int(rng.integers(0, 3)),
        lines=int(rng.integers(0, 2 * level.lines + 1)),
        blobs=int(rng.integers(0, 2 * level.blobs + 1)),
        camera=level.camera * rng.uniform(0.0, 2.0),
        vivid=rng.uniform(0.25, 0.95),
        light=level.light * rng.uniform(0.0, 2.0),
        limbs=rng.uniform(0.0, 0.6),
    )


class SceneFrame(NamedTuple):
    """Size in pixels and length in frames of a clip, with the length that fractions of it refer to."""

    width: int
    height: int
    num_frames: int

    @property
    def side(self) -> float:
        return min(math.sqrt(self.width * self.height), 1.3 * min(self.width, self.height))


class Cut(NamedTuple):
    """Frames ``start`` to ``end`` - 1 show another scene."""

    start: int
    end: int

    def shows(self, t: float) -> bool:
        return self.start <= math.floor(t + 0.5) < self.end


class SceneSampler:
    """Draws the moving objects and the camera of one scene; holds the generator and the positions already taken."""

    def __init__(
        self, rng: np.random.Generator, frame: SceneFrame, level: Level, num_objects: int, late_objects: int | None
    ) -> None:
        self._rng = rng
        self._frame = frame
        self._level = level
        self._num_objects = num_objects
        self._late = self._draw_late(late_objects)
        self._taken: list[tuple[float, float]] = []
        self._absence = draw_absence(rng, frame, level)
        num_moving = num_objects * (1 + level.lookalikes)
        self._shrink = min(1.0, math.sqrt(4.0 / num_moving))

    def moving_objects(self) -> tuple[MovingObject, ...]:
        """All that moves or hides, from back to front; occluders come last."""
        hiding = self._draw_hiding_place() if self._wants("occlusion") or self._wants("long") else None
        objects = [self._object(i + 1, hiding) for i in range(self._num_objects)]
        moving = objects + [self._lookalike(obj) for obj in objects for _ in range(self._level.lookalikes)]
        order = self._rng.permutation(len(moving))
        occluders = ([] if hiding is None else [hiding.occluder]) + self._sweepers(objects, hiding)
        return (*(moving[i] for i in order), *occluders)

    def camera(self) -> Camera:
        """A camera that stays, drifts, sways, zooms and shakes as far as the level asks."""
        rng, side, k = self._rng, self._frame.side, self._level.camera
        centre = (self._frame.width / 2, self._frame.height / 2)
        if k <= 0.0:
            return Camera(centre=centre)
        shake_size = 0.004 * side * k * rng.uniform(0.0, 1.0)
        shake = tuple(draw_wave(rng, shake_size, period) for period in ((4, 9), (4, 9), (9, 24), (9, 24)))
        heading, pace = rng.uniform(0, 2 * math.pi), 0.006 * side * k * rng.uniform(0.0, 1.0)
        still = self._wants("occlusion") or self._wants("long")
        return Camera(
            centre=centre,
            zoom=draw_wave(rng, 0.09 * min(k, 1.0) * rng.uniform(0.0, 1.0), (40, 120)),
            roll=draw_wave(rng, 0.05 * k * rng.uniform(0.0, 1.0), (30, 90)),
            shake=shake,
            drift=(0.0, 0.0) if still else (pace * math.cos(heading), 0.4 * pace * math.sin(heading)),
            pan=(STILL, STILL)
            if still
            else tuple(draw_wave(rng, 0.06 * side * k * rng.random(), (40, 120)) for _ in "xy"),
        )

    def cut(self) -> Cut | None:
        """When another scene is shown, if the level asks for it."""
        if not self._wants("cut"):
            return None
        return Cut(round(self._absence.start), round(self._absence.end))

    def _wants(self, event: str) -> bool:
        return event in self._level.events

    def _draw_late(self, late_objects: int | None) -> frozenset[int]:
        """Which objects enter late; the first never does."""
        candidates = np.arange(2, self._num_objects + 1)
        if late_objects is None:
            return frozenset(int(i) for i in candidates if self._rng.random() < self._level.late)
        return frozenset(int(i) for i in self._rng.permutation(candidates)[:late_objects])

    def _free_position(self, margin: float) -> tuple[float, float]:
        """The best of a few random positions: far from those taken."""
        rng, frame = self._rng, self._frame
        mx, my = min(margin, 0.45 * frame.width), min(margin, 0.45 * frame.height)
        points = rng.uniform((mx, my), (frame.width - mx, frame.height - my), (10 + 4 * self._num_objects, 2))
        if self._taken:
            gaps = np.hypot(*(points[:, None, :] - np.array(self._taken)[None]).transpose(2, 0, 1)).min(axis=1)
            points = points[np.argsort(-gaps)]
        position = (float(points[0, 0]), float(points[0, 1]))
        self._taken.append(position)
        return position

    def _bounce(self, radius: float, since: float) -> Bounce:
        rng, frame, level = self._rng, self._frame, self._level
        heading, speed = rng.uniform(0, 2 * math.pi), frame.side * rng.uniform(*level.speed)
        sway = tuple(draw_wave(rng, frame.side * 0.05 * rng.uniform(0.2, 1.0), (24, 70)) for _ in "xy")
        margin = 0.9 * radius
        low = (min(margin, 0.4 * frame.width), min(margin, 0.4 * frame.height))
        return Bounce(
            origin=self._free_position(1.15 * radius),
            velocity=(speed * math.cos(heading), speed * math.sin(heading)),
            sway=sway,
            low=low,
            high=(frame.width - low[0], frame.height - low[1]),
            since=since,
        )

    def _body(self, object_id: int) -> MovingObject:
        """Shape and deformation of a moving object; its path comes later."""
        rng, level = self._rng, self._level
        radius = self._frame.side * rng.uniform(*level.radius) * self._shrink
        kind = str(rng.choice(OUTLINES, p=(0.5, 0.2, 0.1, 0.2)))
        limbs = self._limbs() if rng.random() < level.limbs else ()
        if limbs:
            kind, radius = "capsule", 0.85 * radius
        return MovingObject(
            object_id=object_id,
            path=Fixed((0.0, 0.0)),
            radius=radius,
            outline=draw_outline(rng, kind, deform=level.deform),
            angle=rng.uniform(0, 2 * math.pi),
            spin=level.spin * rng.uniform(-1.0, 1.0),
            rock=draw_wave(rng, 0.35 * level.deform, (20, 60)),
            breathe=draw_wave(rng, 0.16 * level.deform, (25, 80)),
            squash=draw_wave(rng, 0.22 * level.deform, (20, 60)),
            bend=tuple(draw_wave(rng, 0.24 * level.deform, (12, 40)) for _ in "xy"),
            limbs=limbs,
        )

    def _limbs(self) -> tuple[Limb, ...]:
        rng, limbs = self._rng, []
        count = int(rng.integers(2, 5))
        for i in range(count):
            around = 2 * math.pi * (i + rng.uniform(-0.2, 0.2)) / count
            length, width = rng.uniform(0.3, 0.5), rng.uniform(0.13, 0.24)
            swing = replace(draw_wave(rng, rng.uniform(0.2, 0.6), (10, 28)), mean=around)
            limbs.append(
                Limb(
                    fin(length, width),
                    (0.6 * math.cos(around), 0.45 * math.sin(around)),
                    swing,
                    tuple(rng.uniform(-1, 1, 2)),
                )
            )
        return tuple(limbs)

    def _object(self, object_id: int, hiding: _HidingPlace | None) -> MovingObject:
        rng, frame = self._rng, self._frame
        obj = self._with_changes(self._body(object_id))
        entry = 0
        if object_id in self._late:
            entry = min(frame.num_frames - 1, max(1, round(frame.num_frames * rng.uniform(0.15, 0.5))))
        base: Path
        if hiding is not None and self._wants("occlusion") and hiding.shuttle and not entry:
            base = hiding.lane(rng, obj, object_id, self._num_objects)
        else:
            base = self._bounce(obj.radius, entry)
        base = self._absences(base, obj, entry, hiding)
        if entry:
            base = self._entrance(base, obj, entry)
        return replace(obj, path=base, entry=entry)

    def _with_changes(self, obj: MovingObject) -> MovingObject:
        """Add the appearance and splitting events of the level."""
        rng, total = self._rng, self._frame.num_frames
        if self._wants("appearance"):
            ramp = min(0.45 * total, rng.uniform(20, 50))
            change = repeat(rng, total, ramp=ramp, hold=rng.uniform(15, 40), first=0.12 * total)
            growth = rng.uniform(1.25, 1.6) if rng.random() < 0.6 else rng.uniform(0.7, 0.85)
            obj = replace(obj, change=change, growth=growth)
        if self._wants("changed"):
            ramp = 0.06 * total
            obj = replace(
                obj, change=Schedule((Window(0.05 * total, ramp, 2.0 * total),)), growth=rng.uniform(0.9, 1.2)
            )
        if self._wants("revisit"):
            ramp, again = 0.05 * total, self._absence.middle
            early = Window(0.05 * total, ramp, 0.12 * total)
            obj = replace(obj, change=Schedule((early, Window(again, 2.0, 2.0 * total))), growth=rng.uniform(0.9, 1.2))
        if self._wants("split"):
            ramp = min(0.25 * total, rng.uniform(5, 10))
            split = repeat(rng, total, ramp=ramp, hold=rng.uniform(15, 45), first=0.3 * total)
            axis, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.45, 0.9)
            obj = replace(obj, split=split, split_axis=axis, split_reach=reach, limbs=())
        return obj

    def _absences(self, base: Path, obj: MovingObject, entry: int, hiding: _HidingPlace | None) -> Path:
        """Let the object leave, or hide for long, if the level asks for it."""
        if self._wants("away"):
            return Excursion(base, Schedule((self._absence,)), ((self._exit(obj), self._exit(obj)),))
        rng, remaining = self._rng, self._frame.num_frames - entry
        if self._wants("long"):
            hold, ramp = min(200.0, remaining * rng.uniform(0.35, 0.5)), min(10.0, 0.08 * remaining)
        elif self._wants("leave"):
            hold, ramp = min(0.3 * remaining, rng.uniform(4, 14)), min(0.2 * remaining, rng.uniform(5, 11))
        else:
            return base
        gap = 50.0 if self._wants("long") else 25.0
        first = remaining * rng.uniform(0.12, 0.2 if self._wants("long") else 0.4)
        schedule = repeat(rng, remaining, ramp=ramp, hold=hold, first=first, gap=gap, offset=entry)
        if hiding is not None and not hiding.shuttle and schedule.windows:
            base = self._clear_of(hiding, base, obj, entry, schedule.windows[0].end + 3.0)
            if self._wants("long") and obj.object_id % 2 == 1:
                return Excursion(base, schedule, ((hiding.centre, hiding.centre),) * len(schedule.windows))
        return Excursion(base, schedule, tuple((self._exit(obj), self._exit(obj)) for _ in schedule.windows))

    def _clear_of(self, hiding: _HidingPlace, base: Path, obj: MovingObject, entry: int, t: float) -> Path:
        """A path that is not behind the block at time t, if a few draws find one."""
        reach = 1.3 * hiding.occluder.radius + obj.radius
        for _ in range(8):
            position = base.at(t)
            assert position is not None
            x, y = position
            if math.hypot(x - hiding.centre[0], y - hiding.centre[1]) > reach:
                break
            self._taken.pop()
            base = self._bounce(obj.radius, entry)
        return base

    def _exit(self, obj: MovingObject) -> tuple[float, float]:
        """A point so far outside that nothing of the object shows, whatever the camera does."""
        rng, frame = self._rng, self._frame
        out = 1.9 * obj.radius * max(1.0, obj.growth) + 0.12 * max(frame.width, frame.height)
        x, y = rng.uniform(0.2, 0.8) * frame.width, rng.uniform(0.2, 0.8) * frame.height
        edges = ((-out, y), (frame.width + out, y), (x, -out), (x, frame.height + out))
        return edges[int(rng.integers(4))]

    def _entrance(self, base: Path, obj: MovingObject, entry: int) -> Path:
        """Dart in from the nearest side: already well inside at the entry frame, then slowing down."""
        position = base.at(entry)
        assert position is not None
        x, y = position
        gaps = (x, self._frame.width - x, y, self._frame.height - y)
        side = int(np.argmin(gaps))
        reach = max(gaps[side] - 0.75 * obj.radius, 0.0)
        offset = ((-reach, 0.0), (reach, 0.0), (0.0, -reach), (0.0, reach))[side]
        return Entrance(base, float(entry), offset)

    def _lookalike(self, twin: MovingObject) -> MovingObject:
        """A moving distractor of the same kind and size as an object."""
        body = self._body(0)
        radius = twin.radius * self._rng.uniform(0.85, 1.15)
        return replace(body, path=self._bounce(radius, 0.0), radius=radius, limbs=twin.limbs, resembles=twin.object_id)

    def _draw_hiding_place(self) -> _HidingPlace | None:
        """A pillar that objects shuttle behind, or a block to hide behind for long, or none (sweepers only)."""
        rng, frame, level = self._rng, self._frame, self._level
        shuttle = self._wants("occlusion") and not self._wants("long")
        if shuttle and rng.random() < 0.5:
            return None
        reach = 1.1 * level.radius[1] * frame.side * self._shrink
        centre = (frame.width * rng.uniform(0.45, 0.55), frame.height * rng.uniform(0.45, 0.55))
        if shuttle:
            half, upright = reach * rng.uniform(1.0, 1.2), frame.width >= frame.height or rng.random() < 0.3
            polygon = (
                rectangle(half, 2.0 * max(frame.width, frame.height))
                if upright
                else rectangle(2.0 * max(frame.width, frame.height), half)
            )
            tilt = rng.uniform(-0.12, 0.12)
        else:
            half, upright, tilt = reach * 1.25, True, rng.uniform(-0.3, 0.3)
            centre = (frame.width * rng.uniform(0.3, 0.7), frame.height * rng.uniform(0.3, 0.7))
            polygon = rectangle(half * rng.uniform(1.0, 1.15), half * rng.uniform(1.0, 1.15))
            self._taken.append(centre)
        occluder = MovingObject(
            object_id=0, path=Fixed(centre), radius=half, outline=polygon / half, angle=tilt, occludes=True
        )
        return _HidingPlace(occluder=occluder, centre=centre, shuttle=shuttle, upright=upright, frame=frame)

    def _sweepers(self, objects: list[MovingObject], hiding: _HidingPlace | None) -> list[MovingObject]:
        if not self._wants("occlusion") or (hiding is not None and hiding.shuttle):
            return []
        return [self._sweeper(obj) for obj in objects]

    def _sweeper(self, target: MovingObject) -> MovingObject:
        """An occluder that crosses its target again and again."""
        rng, frame = self._rng, self._frame
        reach = (
            1.1 * target.radius * (1.3 if target.limbs else 1.0) * max(1.0, target.growth)
            + target.split_reach * target.radius
        )
        half = reach * rng.uniform(1.1, 1.4)
        span = 1.1 * max(frame.width, frame.height) + half
        remaining = frame.num_frames - target.entry
        ramp = min(0.35 * remaining, rng.uniform(11, 20))
        schedule = repeat(
            rng, remaining, ramp=ramp, hold=0.0, first=0.1 * remaining, gap=12.0, offset=target.entry, centred=True
        )
        tilt = rng.uniform(-0.5, 0.5) + (0.0 if rng.random() < 0.7 else math.pi / 2)
        signs = rng.choice([-1.0, 1.0], len(schedule.windows))
        directions = tuple((s * span * math.cos(tilt), s * span * math.sin(tilt)) for s in signs)
        bar = rng.random() < 0.6
        return MovingObject(
            object_id=0,
            path=Sweep(target.path, schedule, directions),
            radius=half if bar else 1.3 * half,
            outline=rectangle(1.0, 3.0 * max(frame.width, frame.height) / half)
            if bar
            else draw_outline(rng, "capsule", deform=0.1),
            angle=tilt + (0.0 if bar else math.pi / 2),
            occludes=True,
        )


@dataclass(frozen=True)
class _HidingPlace:
    """A standing occluder and the lanes that lead behind it."""

    occluder: MovingObject
    centre: tuple[float, float]
    shuttle: bool
    upright: bool
    frame: SceneFrame

    def lane(self, rng: np.random.Generator, obj: MovingObject, number: int, count: int) -> Path:
        """To and fro behind the pillar, on a lane of its own, starting at one end."""
        along, across = (self.frame.width, self.frame.height) if self.upright else (self.frame.height, self.frame.width)
        lane = across * ((number - 0.5) / count + rng.uniform(-0.1, 0.1) / count)
        lane = min(max(lane, 0.9 * obj.radius), across - 0.9 * obj.radius)
        centre = (self.centre[0], lane) if self.upright else (lane, self.centre[1])
        middle = self.centre[0] if self.upright else self.centre[1]
        reach = min(middle, along - middle) - 0.6 * obj.radius
        period = min(rng.uniform(40, 64), 2.4 * max(self.frame.num_frames, 2))
        phase = math.pi / 2 + rng.uniform(-0.2, 0.2) + (math.pi if rng.random() < 0.5 else 0.0)
        turn = Wave(1.0, 2 * math.pi / period, phase)
        side = draw_wave(rng, 0.03 * across / count, (20, 50))
        return Shuttle(centre, (reach, 0.0) if self.upright else (0.0, reach), turn, side)


def draw_absence(rng: np.random.Generator, frame: SceneFrame, level: Level) -> Window:
    """The one absence of all objects of a level of ``AWAY_LEVELS``: 100 to 140 frames of 400, of shorter clips as large a
    share."""
    total, events = frame.num_frames, level.events
    if not set(AWAY_EVENTS) & set(events):
        return Window(total, 1.0, 0.0)
    start = 0.52 if "revisit" in events else 0.3
    return Window(total * start * rng.uniform(0.95, 1.05), 0.02 * total, total * rng.uniform(0.25, 0.35))


def repeat(
    rng: np.random.Generator,
    total: float,
    *,
    ramp: float,
    hold: float,
    first: float,
    gap: float = 25.0,
    offset: float = 0.0,
    centred: bool = False,
) -> Schedule:
    """Windows over `total` frames from `offset` on; the first starts near `first`, later ones after random gaps.

    With `centred`, the middle of each window falls on a whole frame.
    """
    windows: list[Window] = []
    start = max(0.5, first * rng.uniform(0.6, 1.3))
    while start < total and (not windows or start + ramp + hold / 2 < total):
        if centred:
            start = max(round(start + ramp), 1) - ramp
        windows.append(Window(start + offset, ramp, hold))
        start += 2 * ramp + hold + gap * rng.uniform(0.5, 1.6)
    return Schedule(tuple(windows))
