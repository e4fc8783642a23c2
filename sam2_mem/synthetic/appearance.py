"""What the actors of a procedural scene look like: skins for objects, doubles and occluders; painted distractors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam2_mem.synthetic.moving_objects import Actor
from sam2_mem.synthetic.scenes import Level
from sam2_mem.synthetic.shapes import OUTLINES, Box, bounding_box, coverage, draw_outline
from sam2_mem.synthetic.textures import OPAQUE, SKIN_PATTERNS, Texture, draw_palette, make_skin, unpack


@dataclass(frozen=True)
class Skin:
    """What an actor wears, before and after a change of appearance, and the direction of the light on it."""

    first: Texture
    second: Texture
    light: tuple[float, float, float]  # level, across, down; in OPAQUE-ths


class Wardrobe:
    """Draws the skins of a scene: objects that stand out, doubles that look like them, plain occluders."""

    def __init__(self, rng: np.random.Generator, level: Level, ground: np.ndarray) -> None:
        self._rng = rng
        self._level = level
        self._ground = ground  # mean colour of the background
        self._worn: dict[int, tuple[np.ndarray, str]] = {}

    def dress(self, actors: tuple[Actor, ...]) -> tuple[Skin, ...]:
        """One skin for each actor; objects first, so that their doubles can copy them."""
        skins: dict[int, Skin] = {}
        for i in sorted(range(len(actors)), key=lambda i: (actors[i].object_id == 0, i)):
            skins[i] = self._skin(actors[i])
        return tuple(skins[i] for i in range(len(actors)))

    def texture(self, size: int, *avoid: np.ndarray) -> Texture:
        """A skin in which an object would stand out."""
        return make_skin(self._rng, size, self.palette(*avoid), pattern=self._pattern())

    def palette(self, *avoid: np.ndarray) -> np.ndarray:
        """2 to 4 colours whose mean keeps the level's distance from the background's and others, if a few draws can."""
        draws = [draw_palette(self._rng, int(self._rng.integers(2, 5)), vivid=self._level.vivid) for _ in range(6)]
        gaps = [min(float(np.linalg.norm(p.mean(axis=0) - c)) for c in (self._ground, *avoid)) for p in draws]
        far = [p for p, gap in zip(draws, gaps, strict=True) if gap >= self._level.contrast]
        return far[0] if far else draws[int(np.argmax(gaps))]

    def _pattern(self) -> str:
        return str(self._rng.choice(SKIN_PATTERNS))

    def _skin(self, actor: Actor) -> Skin:
        rng, size = self._rng, 64 if actor.radius < 24 else 128 if actor.radius < 60 else 256
        angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(2.0, 9.0)
        light = (OPAQUE - slope, slope * np.cos(angle), slope * np.sin(angle))
        if actor.occludes:
            palette = draw_palette(rng, 2, vivid=0.5 * self._level.vivid)
            first = make_skin(
                rng, 128, palette.mean(axis=0) + 0.35 * (palette - palette.mean(axis=0)), pattern=self._pattern()
            )
            return Skin(first, first, light)
        palette, pattern = self._copy(actor.resembles) if actor.resembles else (self.palette(), self._pattern())
        self._worn.setdefault(actor.object_id, (palette, pattern))
        first = make_skin(rng, size, palette, pattern=pattern)
        second = self.texture(size, first.mean_colour()) if actor.change.windows else first
        return Skin(first, second, light)

    def _copy(self, object_id: int) -> tuple[np.ndarray, str]:
        palette, pattern = self._worn[object_id]
        return np.clip(palette * self._rng.uniform(0.92, 1.08, palette.shape), 0, 255), pattern


def paint_blobs(rng: np.random.Generator, backdrop: np.ndarray, wardrobe: Wardrobe, count: int) -> None:
    """Paint `count` standing blobs of objects' looks onto the background, in place; they share a few skins."""
    size = backdrop.shape[0]
    limits = Box(0, 0, size, size)
    skins = [np.tile(unpack(wardrobe.texture(64).lanes), (3, 3, 1)) for _ in range(min(count, 3))]
    for _ in range(count):
        radius = size * rng.uniform(0.04, 0.11)
        polygon = draw_outline(rng, str(rng.choice(OUTLINES)), deform=0.0).at(0.0) * radius + rng.uniform(0, size, 2)
        box = bounding_box(polygon, limits)
        skin = skins[int(rng.integers(len(skins)))][: box.y1 - box.y0, : box.x1 - box.x0]
        area = backdrop[box.y0 : box.y1, box.x0 : box.x1]
        weight = coverage(polygon, box)[..., None].astype(np.int32)
        area[:] = (area * (OPAQUE - weight) + skin * weight) // OPAQUE
