"""Clips made of photographs: cut-outs along natural edges move and bend over other photographs, with exact masks.

Textures and edges are natural, as they are not in procedural video; the motion is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from sam2_mem._moved import renamed
from sam2_mem.training.clips import Clip
from sam2_mem.training.folders import read_image
from sam2_mem.training.rendered import RenderedClips, cached_clip
from sam2_mem.video.stored import IMAGE_EXTENSIONS

PAN = ((0.5, 6.0), (0.4, 5.0), (0.002, 0.05), (0.003, 0.04))  # drift and swing of x, y in pixels, turn, zoom
FLOOD = 8 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)  # eight neighbours, paint 1
AREA = (0.015, 0.2)  # of a cut-out, in parts of the canvas


@dataclass(frozen=True, eq=False)
class Cutout:
    """A part of a picture: ``texture`` (W, W, 3) float32 and ``cover`` (W, W) float32 of 0..1, with its centre and radius
    in pixels."""

    texture: np.ndarray
    cover: np.ndarray
    centre: np.ndarray
    radius: float


@dataclass(frozen=True)
class Sway:
    """A value that drifts and swings: base + drift * t + swing * sin(rate * t + phase)."""

    base: float
    drift: float
    swing: float
    rate: float
    phase: float

    def at(self, t: float) -> float:
        return self.base + self.drift * t + self.swing * float(np.sin(self.rate * t + self.phase) - np.sin(self.phase))


def draw_sway(
    rng: np.random.Generator, base: float, drift: float, swing: float, rates: tuple[float, float] = (0.05, 0.35)
) -> Sway:
    """Drift and swing up to the given sizes, in both directions, at a rate between ``rates``."""
    return Sway(
        base,
        float(rng.uniform(-drift, drift)),
        float(rng.uniform(0, swing)),
        float(rng.uniform(*rates)),
        float(rng.uniform(0, 2 * np.pi)),
    )


@dataclass(frozen=True)
class PictureMotion:
    """Position (in parts of the side), turn (radians), size (logarithm) and bending of a cut-out over time."""

    x: Sway
    y: Sway
    turn: Sway
    size: Sway
    bend: Sway
    waves: tuple[float, float, float]  # cycles across the cut-out, direction, phase per frame

    def sources(self, t: float, side: int, cutout: Cutout) -> tuple[np.ndarray, np.ndarray]:
        """For every pixel of the frame the pixel of the cut-out that it shows: two maps (side, side)."""
        grid = np.mgrid[:side, :side].astype(np.float32) + 0.5
        down, across = grid[0] - self.y.at(t) * side, grid[1] - self.x.at(t) * side
        scale = float(np.exp(-self.size.at(t)))
        cos, sin = np.cos(self.turn.at(t)) * scale, np.sin(self.turn.at(t)) * scale
        u, v = cos * across + sin * down, cos * down - sin * across
        cycles, direction, speed = self.waves
        along = np.cos(direction) * u + np.sin(direction) * v
        push = self.bend.at(t) * cutout.radius * np.sin(along * cycles / cutout.radius + speed * t)
        u, v = u - np.sin(direction) * push, v + np.cos(direction) * push
        return (u + cutout.centre[0]).astype(np.float32), (v + cutout.centre[1]).astype(np.float32)


def draw_motion(rng: np.random.Generator) -> PictureMotion:
    quick = rng.random() < 0.3
    reach = 0.02 if quick else 0.008
    return PictureMotion(
        x=draw_sway(rng, float(rng.uniform(0.25, 0.75)), reach, 0.15),
        y=draw_sway(rng, float(rng.uniform(0.25, 0.75)), reach, 0.12),
        turn=draw_sway(rng, 0.0, 0.015, 0.3),
        size=draw_sway(rng, float(rng.uniform(-0.3, 0.3)), 0.008, 0.15),
        bend=draw_sway(rng, float(rng.uniform(0.0, 0.12)), 0.0, 0.12),
        waves=(float(rng.uniform(0.8, 2.5)), float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(-0.3, 0.3))),
    )


def natural_cover(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray | None:
    """A region of even colour grown from a random pixel, its holes filled: (W, W) uint8 of 0 and 1; None if too small
    or large."""
    side = picture.shape[0]
    smooth = cv2.GaussianBlur(picture, (0, 0), 1.5)
    low, high = AREA[0] * side * side, AREA[1] * side * side
    for _ in range(8):
        seed = tuple(int(v) for v in rng.integers(side // 8, side - side // 8, 2))
        reach = (int(rng.integers(8, 36)),) * 3
        mask = np.zeros((side + 2, side + 2), np.uint8)
        cv2.floodFill(smooth.copy(), mask, seed, 0, reach, reach, FLOOD)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
        region = cv2.morphologyEx(cv2.morphologyEx(mask[1:-1, 1:-1], cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
        outlines, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not outlines:
            continue
        filled = np.zeros((side, side), np.uint8)
        cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], -1, 1, -1)
        if low <= int(filled.sum()) <= high:
            return filled
    return None


def drawn_cover(rng: np.random.Generator, side: int) -> np.ndarray:
    """A blob: smooth noise that falls off from a point, thresholded; (side, side) uint8 of 0 and 1."""
    noise = cv2.resize(rng.normal(0, 1, (7, 7)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side] / side - rng.uniform(0.3, 0.7, 2)[:, None, None]
    stretch = np.exp(rng.uniform(-0.5, 0.5))
    radius = rng.uniform(0.1, 0.24)
    falloff = np.sqrt((x * stretch) ** 2 + (y / stretch) ** 2) / radius
    level = (0.4 * noise + 1.2 > falloff).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(level)
    return (labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8) if count > 1 else level


def cut_out(rng: np.random.Generator, picture: np.ndarray, natural: float = 0.6) -> Cutout:
    """A random part of a square picture (W, W, 3) uint8, with probability ``natural`` along an edge in the picture."""
    cover = natural_cover(rng, picture) if rng.random() < natural else None
    cover = drawn_cover(rng, picture.shape[0]) if cover is None else cover
    y, x = np.nonzero(cover) if cover.any() else (np.array([0]), np.array([0]))
    soft = cv2.GaussianBlur(cover.astype(np.float32), (0, 0), 0.6)
    radius = float(np.sqrt(max(len(x), 1) / np.pi))
    return Cutout(picture.astype(np.float32), soft, np.array([x.mean(), y.mean()]), radius)


@dataclass(frozen=True, kw_only=True)
class PictureClips(RenderedClips):
    """Clips of a fixed set of videos made of the pictures of a folder.

    Attributes:
        pictures: folder of photographs, searched with its subfolders.
        occluder: probability of a cut-out in front that is not an object.
    """

    pictures: str
    count: int = 1000
    occluder: float = 0.35

    @cached_property
    def paths(self) -> list[Path]:
        root = Path(self.pictures).expanduser()
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS)
        if not paths:
            raise ValueError(f"expected pictures ({', '.join(IMAGE_EXTENSIONS)}) in {root}, got none; give photographs")
        return paths

    def random_video(self, rng: np.random.Generator) -> Clip:
        return self.video(int(rng.integers(self.count)))

    def video(self, number: int) -> Clip:
        """Video ``number``, from disk if it is there."""
        name = f"pictures_{self.side}_{self.length}_{self.seed}_{number:06d}.npz"
        return cached_clip(self.folder, name, lambda: self._render(number))

    def _render(self, number: int) -> Clip:
        rng = np.random.default_rng([self.seed, number, 77])
        canvas = self._canvas(rng)
        pictures = [canvas if rng.random() < 0.3 else self._canvas(rng) for _ in range(int(rng.integers(1, 4)))]
        layers = [(cut_out(rng, picture), draw_motion(rng), n + 1) for n, picture in enumerate(pictures)]
        if rng.random() < self.occluder:
            layers.append((cut_out(rng, self._canvas(rng)), draw_motion(rng), 0))
        pan = [draw_sway(rng, 0.0, drift, swing) for drift, swing in PAN]
        light, noise = draw_sway(rng, 1.0, 0.002, 0.1), float(rng.uniform(0, 5))
        frames = [self._render_frame(rng, canvas, layers, pan, t, light.at(t), noise) for t in range(self.length)]
        return Clip(np.stack([image for image, _ in frames]), np.stack([ids for _, ids in frames]))

    def _canvas(self, rng: np.random.Generator) -> np.ndarray:
        """A random square of a random picture, (W, W, 3) uint8, half as large again as the frames."""
        picture = read_image(self.paths[int(rng.integers(len(self.paths)))])
        short = min(picture.shape[:2])
        side = int(short * rng.uniform(0.45, 1.0))
        y, x = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
        work = self.side * 3 // 2
        return cv2.resize(picture[y : y + side, x : x + side], (work, work), interpolation=cv2.INTER_AREA)

    def _render_frame(
        self,
        rng: np.random.Generator,
        canvas: np.ndarray,
        layers: Sequence[tuple[Cutout, PictureMotion, int]],
        pan: Sequence[Sway],
        t: int,
        gain: float,
        noise: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frame ``t``: (side, side, 3) uint8 and ids (side, side) uint8."""
        right, down, turn, zoom = (s.at(t) for s in pan)
        centre = canvas.shape[0] / 2
        moved = cv2.getRotationMatrix2D((centre, centre), float(np.degrees(turn)), float(np.exp(zoom)))
        moved[:, 2] += np.array([right, down]) + (self.side - canvas.shape[0]) / 2
        size = (self.side, self.side)
        image = cv2.warpAffine(canvas, moved, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        image = image.astype(np.float32)
        ids = np.zeros(size, np.uint8)
        for cutout, motion, obj_id in layers:
            u, v = motion.sources(t, self.side, cutout)
            cover = cv2.remap(cutout.cover, u, v, cv2.INTER_LINEAR, borderValue=0)
            texture = cv2.remap(cutout.texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            image += cover[..., None] * (texture - image)
            ids[cover > 0.5] = obj_id
        image = image * gain + np.asarray(rng.normal(0, noise, image.shape), np.float32)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), ids


__getattr__ = renamed(__name__)
