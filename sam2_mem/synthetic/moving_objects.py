"""Moving objects with deforming parts, the camera, and where their polygons fall in a frame."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sam2_mem.synthetic.shapes import Affine, Bend, Bounds, Outline, Path, Schedule, Wave, bounding_box, coverage, cut
from sam2_mem.synthetic.textures import OPAQUE


class BodyPart(NamedTuple):
    """A polygon in its own coordinates, its pose in the moving object (radius 1), and where on the skin it lies."""

    polygon: np.ndarray
    pose: Affine
    skin_shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Limb:
    """A polygon hinged to its object that swings to and fro."""

    polygon: np.ndarray
    hinge: tuple[float, float]
    swing: Wave
    skin_shift: tuple[float, float]

    def at(self, t: float) -> BodyPart:
        return BodyPart(self.polygon, Affine.pose(*self.hinge, self.swing.at(t)), self.skin_shift)


STILL = Wave(0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class MovingObject:
    """Anything that moves or hides: an object (object_id >= 1), a distractor or an occluder (object_id 0)."""

    object_id: int
    path: Path
    radius: float
    outline: Outline | np.ndarray  # an array (n, 2) is a rigid contour
    entry: int = 0
    angle: float = 0.0
    spin: float = 0.0
    rock: Wave = STILL
    breathe: Wave = STILL  # relative change of scale
    squash: Wave = STILL  # log of the aspect
    bend: tuple[Wave, ...] = (STILL, STILL)
    limbs: tuple[Limb, ...] = ()
    change: Schedule = field(default_factory=Schedule)  # towards the second outline and skin
    growth: float = 1.0  # scale once changed
    split: Schedule = field(default_factory=Schedule)
    split_axis: float = 0.0
    split_reach: float = 0.0
    resembles: int = 0  # the object a distractor looks like
    occludes: bool = False

    def pose(self, t: float) -> Affine | None:
        """From the object's coordinates (radius 1) to the scene's pixels; None while it is not in the scene."""
        centre = self.path.at(t)
        if centre is None:
            return None
        share = self.change.level(t)
        scale = self.radius * (1.0 + self.breathe.at(t)) * (1.0 + share * (self.growth - 1.0))
        aspect = math.exp(self.squash.at(t))
        angle = self.angle + self.spin * t + self.rock.at(t)
        return Affine.pose(centre[0], centre[1], angle, scale * aspect, scale / aspect)

    def bend_at(self, t: float) -> Bend:
        first, second = self.bend
        return Bend(
            first.amplitude, 2.4, first.rate * t + first.phase, second.amplitude, 2.9, second.rate * t + second.phase
        )

    def parts(self, t: float) -> list[BodyPart]:
        """What to draw, from back to front."""
        outline = self.outline
        body = outline.at(t, self.change.level(t)) if isinstance(outline, Outline) else outline
        separation = self.split.level(t)
        if separation > 0.0:
            return [self._half(body, separation, side) for side in (1.0, -1.0)]
        return [limb.at(t) for limb in self.limbs] + [BodyPart(body, Affine())]

    def _half(self, body: np.ndarray, separation: float, side: float) -> BodyPart:
        x, y = side * math.cos(self.split_axis), side * math.sin(self.split_axis)
        reach = separation * self.split_reach
        return BodyPart(cut(body, (x, y)), Affine.pose(x * reach, y * reach, 0.35 * side * separation))


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Zoom, roll and shake move everything about the frame's centre; the pan moves the background only."""

    centre: tuple[float, float]
    zoom: Wave = STILL
    roll: Wave = STILL
    shake: tuple[Wave, ...] = ()  # x, y, x, y
    drift: tuple[float, float] = (0.0, 0.0)
    pan: tuple[Wave, ...] = (STILL, STILL)

    def view(self, t: float) -> Affine:
        """From the scene's pixels to the frame's."""
        cx, cy = self.centre
        dx = sum(w.at(t) for w in self.shake[0::2])
        dy = sum(w.at(t) for w in self.shake[1::2])
        zoom = 1.0 + self.zoom.at(t)
        return Affine.pose(cx + dx, cy + dy, self.roll.at(t), zoom, zoom).after(Affine(c=-cx, f=-cy))

    def background(self, t: float, texels: float, size: int) -> Affine:
        """From the frame's pixels to background texels, the pan taken modulo the texture's `size`."""
        pan_x = ((self.drift[0] * t + self.pan[0].at(t)) * texels) % size
        pan_y = ((self.drift[1] * t + self.pan[1].at(t)) * texels) % size
        return Affine(a=texels, c=pan_x, e=texels, f=pan_y).after(self.view(t).inverse())


@dataclass(frozen=True)
class PlacedPart:
    """A part as it falls in the frame: its polygon in pixels and the way back to its own coordinates."""

    polygon: np.ndarray
    part: BodyPart
    to_object: Affine
    bend: Bend

    def on_pixels(self, box: Bounds) -> tuple[np.ndarray, np.ndarray]:
        """The part's coordinates (radius 1) at the pixel centres of a box: two (h, w) float32."""
        x, y = self.bend.undo(*self.to_object.on_pixels(box))
        back = self.part.pose.inverse()
        if back == Affine():
            return x, y
        a, b, c, d, e, f = (np.float32(v) for v in (back.a, back.b, back.c, back.d, back.e, back.f))
        return a * x + b * y + c, d * x + e * y + f


def place_parts(obj: MovingObject, camera: Camera, t: float) -> list[PlacedPart]:
    """The parts of a moving object at time t from back to front; empty while it is not in the scene."""
    pose = obj.pose(t)
    if pose is None:
        return []
    bend, to_frame = obj.bend_at(t), camera.view(t).after(pose)
    to_object, placed = to_frame.inverse(), []
    for part in obj.parts(t):
        if len(part.polygon) >= 3:
            polygon = to_frame.apply(bend.apply(part.pose.apply(part.polygon)))
            placed.append(PlacedPart(polygon, part, to_object, bend))
    return placed


def front_map(moving_objects: Iterable[MovingObject], camera: Camera, frame: Bounds, t: float) -> np.ndarray:
    """1 + index of the moving object in front at each pixel of the frame, 0 where there is none: (H, W) uint16."""
    front = np.zeros((frame.y1, frame.x1), np.uint16)
    for number, obj in enumerate(moving_objects, start=1):
        for placed in place_parts(obj, camera, t):
            box = bounding_box(placed.polygon, frame)
            if not box.empty:
                front[box.y0 : box.y1, box.x0 : box.x1][coverage(placed.polygon, box) >= OPAQUE // 2] = number
    return front
