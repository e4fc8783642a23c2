"""Rendering of layered scenes: pictures with alpha that move, bend, turn and hide above a ground that a camera pans.

The ids of a frame come from the sharp covers in the middle of its exposure, at the size that is rendered; motion blur,
shadows, softness, noise and compression change the frame alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from sam2_mem.training.pictures import Sway

NODE = 8  # pixels between the nodes at which a deformation is computed
LONGEST_BLUR = 31  # pixels
STILL = Sway(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Deformation:
    """How a layer bends, in its own coordinates, where the long half side is 1.

    Attributes:
        bend: height of a wave across the layer.
        wave: its direction (radians), radians per unit and radians per frame.
        hinge: angle (radians) by which the part beyond a line is turned.
        joint: x, y of the line's middle and the direction (radians) of what is beyond.
        flutter: largest displacement of a grid of points.
        points: (4, 4, 4) float32, of each point its direction x, y, its rate and its phase.
    """

    bend: Sway = STILL
    wave: tuple[float, float, float] = (0.0, 0.0, 0.0)
    hinge: Sway = STILL
    joint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flutter: float = 0.0
    points: np.ndarray = field(default_factory=lambda: np.zeros((4, 4, 4), np.float32))

    def reach(self, t: float) -> float:
        """Bound of the displacement at time t."""
        return abs(self.bend.at(t)) + min(abs(self.hinge.at(t)), 1.0) + abs(self.flutter)

    def undo(self, u: np.ndarray, v: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Where what is seen at (u, v) lies in the picture that is not deformed: two float32 arrays of their shape."""
        direction, cycles, speed = self.wave
        cos, sin = np.float32(np.cos(direction)), np.float32(np.sin(direction))
        push = np.float32(self.bend.at(t)) * np.sin((cos * u + sin * v) * np.float32(cycles) + np.float32(speed * t))
        u, v = u - sin * push, v + cos * push
        if (angle := self.hinge.at(t)) != 0.0:
            u, v = self._turn_back(u, v, angle)
        if self.flutter:
            dx, dy = self._displacement(u, v, t)
            u, v = u + dx, v + dy
        return u, v

    def _turn_back(self, u: np.ndarray, v: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
        x, y, direction = self.joint
        beyond = (u - x) * np.float32(np.cos(direction)) + (v - y) * np.float32(np.sin(direction))
        share = np.clip(beyond * 4, 0, 1)
        turned = np.float32(-angle) * share * share * (3 - 2 * share)
        cos, sin = np.cos(turned), np.sin(turned)
        return x + cos * (u - x) - sin * (v - y), y + sin * (u - x) + cos * (v - y)

    def _displacement(self, u: np.ndarray, v: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        swing = np.float32(self.flutter) * np.sin(self.points[..., 2] * np.float32(t) + self.points[..., 3])
        grid = self.points[..., :2] * swing[..., None]
        at_x, at_y = ((u + 1) * 1.5).astype(np.float32), ((v + 1) * 1.5).astype(np.float32)
        moved = cv2.remap(grid, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return moved[..., 0], moved[..., 1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A picture with alpha in motion.

    Attributes:
        views: (K, h, w, 4) uint8, colours multiplied by alpha; shown to and fro at ``turning`` views a frame.
        obj_id: 1.. of an object; 0 of what is none.
        x: in parts of the side.
        y: in parts of the side.
        size: logarithm of the long side, in parts of the side of the frame.
        turn: radians.
        aspect: logarithm of the stretch.
        shear: of the first axis along the second.
        deformation: see there.
        light: factor of its colours.
        tint: (3,) factors of its colours at ``light`` 1.
        turning: views a frame.
        hidden: from (included) and to (excluded) which times it is not there.
        attached: moves with the ground, not with the camera.
        shadow: darkness of its shadow, and its offset in parts of its size.
    """

    views: np.ndarray
    obj_id: int
    x: Sway
    y: Sway
    size: Sway
    turn: Sway = STILL
    aspect: Sway = STILL
    shear: Sway = STILL
    deformation: Deformation = field(default_factory=Deformation)
    light: Sway = STILL
    tint: np.ndarray = field(default_factory=lambda: np.ones(3, np.float32))
    turning: float = 0.0
    hidden: Sequence[tuple[float, float]] = ()
    attached: bool = False
    shadow: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def is_hidden(self, t: float) -> bool:
        return any(start <= t < stop for start, stop in self.hidden)

    def view(self, t: float) -> np.ndarray:
        """What is shown at time t: (h, w, 4) uint8."""
        count = len(self.views)
        phase = round(abs(t * self.turning)) % max(2 * count - 2, 1)
        return self.views[min(phase, 2 * count - 2 - phase) if count > 1 else 0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """Pictures (W, W, 3) uint8 behind the layers, one or one per frame, and the camera's movement over them in parts of
    the side of the frame, radians and logarithm of the zoom."""

    pictures: Sequence[np.ndarray]
    x: Sway
    y: Sway
    turn: Sway
    zoom: Sway

    def to_frame(self, t: float, side: int) -> np.ndarray:
        """From the ground's pixels to the frame's: (2, 3)."""
        width = self.pictures[0].shape[0]
        centre = width / 2 - 0.5
        matrix = cv2.getRotationMatrix2D((centre, centre), float(np.degrees(self.turn.at(t))), np.exp(self.zoom.at(t)))
        matrix[:, 2] += np.array([self.x.at(t), self.y.at(t)]) * side + (side - width) / 2
        return matrix

    def picture(self, t: float) -> np.ndarray:
        return self.pictures[min(max(round(t), 0), len(self.pictures) - 1)]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """What the camera shows from ``start`` on: the ground, which layers are absent, and how far the others have jumped
    since the clip began: x, y in parts of the side, logarithm of the size."""

    start: float
    ground: Ground
    absent: frozenset[int] = frozenset()
    jump: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """What changes the frame and no id.

    Attributes:
        shutter: exposure, in parts of the time between frames.
        exposure: factor of all colours.
        softness: deviation of the blur of the layers' edges, in pixels.
        noise: deviation.
        quality: of JPEG compression, 0 for none.
        grey: without colour.
    """

    shutter: float = 0.5
    exposure: Sway = STILL
    softness: float = 0.0
    noise: float = 0.0
    quality: int = 0
    grey: bool = False


class LayeredFrame(NamedTuple):
    """A frame (S, S, 3) uint8, its ids (S, S) uint8, and of each object the pixels that it covers, hidden ones included."""

    image: np.ndarray
    ids: np.ndarray
    covered: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class LayeredScene:
    """Layers from back to front, seen in one or several shots."""

    side: int
    layers: Sequence[Layer]
    shots: Sequence[Shot]
    camera: CameraSettings

    def shot(self, t: float) -> Shot:
        return [shot for shot in self.shots if shot.start <= t][-1]

    def frame(self, t: float, rng: np.random.Generator) -> LayeredFrame:
        """What is seen at time t; ``rng`` draws the noise."""
        shot = self.shot(t)
        image = self._draw_ground(shot.ground, t)
        ids = np.zeros((self.side, self.side), np.uint8)
        covered: dict[int, int] = {}
        for number, layer in enumerate(self.layers):
            if number not in shot.absent and not layer.is_hidden(t):
                covered[layer.obj_id] = self._draw_layer(image, ids, layer, shot, t)
        return LayeredFrame(self._expose(image, t, rng), ids, covered)

    def _draw_ground(self, ground: Ground, t: float) -> np.ndarray:
        """(side, side, 3) float32."""
        matrix, size = ground.to_frame(t, self.side), (self.side, self.side)
        image = cv2.warpAffine(ground.picture(t), matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        before, after = (ground.to_frame(t + s * self.camera.shutter / 2, self.side) for s in (-1, 1))
        centre = np.array([ground.pictures[0].shape[0] / 2] * 2 + [1.0])
        return _blur_along(image, (after - before) @ centre).astype(np.float32)

    def _pose(self, layer: Layer, shot: Shot, t: float) -> np.ndarray:
        """From the layer's coordinates (long half side 1) to the frame's pixels: (2, 3)."""
        right, down, growth = shot.jump
        scale = 0.5 * self.side * np.exp(layer.size.at(t) + growth)
        cos, sin = np.cos(layer.turn.at(t)) * scale, np.sin(layer.turn.at(t)) * scale
        stretch = np.exp(layer.aspect.at(t))
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, layer.shear.at(t)], [0.0, 1 / stretch]])
        centre = np.array([layer.x.at(t) + right, layer.y.at(t) + down])
        if layer.attached:
            centre = centre + np.array([shot.ground.x.at(t), shot.ground.y.at(t)])
        return np.hstack([linear, centre[:, None] * self.side - 0.5])

    def _draw_layer(self, image: np.ndarray, ids: np.ndarray, layer: Layer, shot: Shot, t: float) -> int:
        """Draws a layer into the image and the ids; how many pixels it covers."""
        view, pose = layer.view(t), self._pose(layer, shot, t)
        before, after = (self._pose(layer, shot, t + s * self.camera.shutter / 2)[:, 2] for s in (-1, 1))
        velocity = np.clip(after - before, -LONGEST_BLUR, LONGEST_BLUR)
        margin = 3 + int(np.ceil(np.abs(velocity).max() / 2)) if np.abs(velocity).max() > 1 else 3
        half = np.array(view.shape[1::-1]) / max(view.shape[:2]) + layer.deformation.reach(t)
        reach = np.abs(pose[:, :2]) @ half + margin
        x0, y0 = np.maximum(np.floor(pose[:, 2] - reach), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(pose[:, 2] + reach) + 1, self.side).astype(int)
        if x1 - x0 < 2 or y1 - y0 < 2:
            return 0
        patch = _resampled(view, pose, layer.deformation, t, (x0, y0, x1, y1))
        cover = patch[..., 3] > 127
        if layer.shadow[0] > 0:
            _darken(image, patch[..., 3], layer.shadow, (x0, y0), max(view.shape[:2]))
        if self.camera.softness > 0.35:
            patch = cv2.GaussianBlur(patch, (5, 5), self.camera.softness)
        patch = _blur_along(patch, velocity).astype(np.float32)
        window = image[y0:y1, x0:x1]
        window *= 1 - patch[..., 3:] * np.float32(1 / 255)
        window += patch[..., :3] * (layer.tint * np.float32(1 + layer.light.at(t)))
        ids[y0:y1, x0:x1][cover] = layer.obj_id
        return int(np.count_nonzero(cover))

    def _expose(self, image: np.ndarray, t: float, rng: np.random.Generator) -> np.ndarray:
        camera = self.camera
        image *= np.float32(1 + camera.exposure.at(t))
        if camera.grey:
            image[:] = image.mean(-1, keepdims=True)
        if camera.noise:
            image += rng.standard_normal((self.side, self.side, 1), dtype=np.float32) * np.float32(camera.noise)
        result = np.clip(image, 0, 255).astype(np.uint8)
        if camera.quality:
            _, code = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, camera.quality])
            result = cv2.imdecode(code, cv2.IMREAD_COLOR)
        return result


def _resampled(
    view: np.ndarray, pose: np.ndarray, deformation: Deformation, t: float, box: tuple[int, int, int, int]
) -> np.ndarray:
    """What a view (h, w, 4) shows in the pixels of a box (x0, y0, x1, y1) of the frame: (y1 - y0, x1 - x0, 4) uint8."""
    x0, y0, x1, y1 = (int(v) for v in box)
    nodes_x, nodes_y = ((stop - start) // NODE + 3 for start, stop in ((x0, x1), (y0, y1)))
    x = x0 + (np.arange(nodes_x, dtype=np.float32) - 0.5) * NODE - 0.5
    y = y0 + (np.arange(nodes_y, dtype=np.float32) - 0.5) * NODE - 0.5
    inverse = np.linalg.inv(pose[:, :2]).astype(np.float32)
    across, down = (x - np.float32(pose[0, 2]))[None, :], (y - np.float32(pose[1, 2]))[:, None]
    u, v = (inverse[i, 0] * across + inverse[i, 1] * down for i in (0, 1))
    u, v = deformation.undo(u, v, t)
    half, (height, width) = max(view.shape[:2]) / 2, view.shape[:2]
    maps = []
    for coordinates, length in ((u, width), (v, height)):
        fine = cv2.resize(coordinates * half + (length / 2 - 0.5), (nodes_x * NODE, nodes_y * NODE))
        maps.append(fine[NODE : NODE + y1 - y0, NODE : NODE + x1 - x0].astype(np.float32))
    return cv2.remap(view, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _blur_along(image: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """The mean of an image (H, W, C) uint8 along a way (x, y) in pixels; shorter ways than 1.5 pixels change nothing."""
    length = float(np.hypot(*velocity))
    if length < 1.5:
        return image
    way = np.asarray(velocity) * min(1.0, LONGEST_BLUR / length)
    half = int(np.ceil(np.abs(way).max() / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for share in np.linspace(-0.5, 0.5, 4 * half + 1):
        x, y = np.rint(share * way).astype(int) + half
        kernel[y, x] += 1
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)


def _darken(
    image: np.ndarray, alpha: np.ndarray, shadow: tuple[float, float, float], corner: tuple[int, int], length: int
) -> None:
    """Multiplies an image (S, S, 3) by the blurred shadow of a patch (h, w) uint8 whose corner is at x, y."""
    darkness, right, down = shadow
    small = cv2.resize(alpha, (max(2, alpha.shape[1] // 4), max(2, alpha.shape[0] // 4)), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), 1 + 0.012 * length)
    x0, y0 = corner[0] + round(right * length), corner[1] + round(down * length)
    height, width = alpha.shape
    top, left = max(0, -y0), max(0, -x0)
    bottom, end = min(height, image.shape[0] - y0), min(width, image.shape[1] - x0)
    if bottom > top and end > left:
        large = cv2.resize(soft, (width, height))[top:bottom, left:end, None].astype(np.float32)
        image[y0 + top : y0 + bottom, x0 + left : x0 + end] *= 1 - large * np.float32(darkness / 255)
