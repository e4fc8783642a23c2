"""What the moving objects of a procedural scene look like: skins, and distractors painted on the background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam2_mem.synthetic.moving_objects import MovingObject
from sam2_mem.synthetic.scenes import Level
from sam2_mem.synthetic.shapes import OUTLINES, Bounds, bounding_box, coverage, draw_outline
from sam2_mem.synthetic.textures import OPAQUE, SKIN_PATTERNS, Texture, draw_palette, make_skin, unpack


@dataclass(frozen=True)
class Skin:
    """The texture of a moving object, before and after a change of appearance, and the direction of the light on it."""

    first: Texture
    second: Texture
    light: tuple[float, float, float]  # level, across, down; in OPAQUE-ths


class AppearanceSampler:
    """Draws the skins of a scene: objects that stand out, lookalikes that resemble them, dull occluders."""

    def __init__(self, rng: np.random.Generator, level: Level, ground: np.ndarray) -> None:
        self._rng = rng
        self._level = level
        self._ground = ground  # mean colour of the background
        self._drawn: dict[int, tuple[np.ndarray, str]] = {}

    def draw_skins(self, moving_objects: tuple[MovingObject, ...]) -> tuple[Skin, ...]:
        """One skin for each; objects first, so that their lookalikes can copy them."""
        skins: dict[int, Skin] = {}
        for i in sorted(range(len(moving_objects)), key=lambda i: moving_objects[i].object_id == 0):
            skins[i] = self._skin(moving_objects[i])
        return tuple(skins[i] for i in range(len(moving_objects)))

    def texture(self, size: int, *avoid: np.ndarray) -> Texture:
        """A skin in which an object would stand out."""
        return make_skin(self._rng, size, self.palette(*avoid), pattern=self._pattern())

    def palette(self, *avoid: np.ndarray) -> np.ndarray:
        """2 to 4 colours whose mean keeps the level's distance from the background's and others, if a few draws can."""
        draws = [draw_palette(self._rng, int(self._rng.integers(2, 5)), vivid=self._level.vivid) for _ in range(6)]
        gaps = [min(float(np.linalg.norm(p.mean(axis=0) - c)) for c in (self._ground, *avoid)) for p in draws]
        distinct = [p for p, gap in zip(draws, gaps, strict=True) if gap >= self._level.contrast]
        return distinct[0] if distinct else draws[int(np.argmax(gaps))]

    def _pattern(self) -> str:
        return str(self._rng.choice(SKIN_PATTERNS))

    def _skin(self, obj: MovingObject) -> Skin:
        rng, size = self._rng, 64 if obj.radius < 24 else 128 if obj.radius < 60 else 256
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(2.0, 9.0)
        light = (OPAQUE - slope, slope * np.cos(angle), slope * np.sin(angle))
        if obj.occludes:
            palette = draw_palette(rng, 2, vivid=0.5 * self._level.vivid)
            first = make_skin(
                rng, 128, palette.mean(axis=0) + 0.35 * (palette - palette.mean(axis=0)), pattern=self._pattern()
            )
            return Skin(first, first, light)
        palette, pattern = self._copy(obj.resembles) if obj.resembles else (self.palette(), self._pattern())
        self._drawn.setdefault(obj.object_id, (palette, pattern))
        first = make_skin(rng, size, palette, pattern=pattern)
        second = self.texture(size, first.mean_colour()) if obj.change.windows else first
        return Skin(first, second, light)

    def _copy(self, object_id: int) -> tuple[np.ndarray, str]:
        palette, pattern = self._drawn[object_id]
        return np.clip(palette * self._rng.uniform(0.92, 1.08, palette.shape), 0, 255), pattern


def paint_blobs(rng: np.random.Generator, backdrop: np.ndarray, appearance: AppearanceSampler, count: int) -> None:
    """Paint `count` still blobs that look like objects onto the background, in place; they share a few skins."""
    size = backdrop.shape[0]
    limits = Bounds(0, 0, size, size)
    skins = [np.tile(unpack(appearance.texture(64).lanes), (3, 3, 1)) for _ in range(min(count, 3))]
    for _ in range(count):
        radius = size * rng.uniform(0.04, 0.11)
        polygon = draw_outline(rng, str(rng.choice(OUTLINES)), deform=0.0).at(0.0) * radius + rng.uniform(0, size, 2)
        box = bounding_box(polygon, limits)
        skin = skins[int(rng.integers(len(skins)))][: box.y1 - box.y0, : box.x1 - box.x0]
        area = backdrop[box.y0 : box.y1, box.x0 : box.x1]
        weight = coverage(polygon, box)[..., None].astype(np.int32)
        area[:] = (area * (OPAQUE - weight) + skin * weight) // OPAQUE
