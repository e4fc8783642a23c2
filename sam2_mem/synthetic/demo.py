"""The clip that ships with the project: one object passes behind a tree while a second one enters."""

from __future__ import annotations

import numpy as np

from sam2_mem.synthetic.generator import Scene, Skin, SyntheticVideo
from sam2_mem.synthetic.moving_objects import Camera, Limb, MovingObject
from sam2_mem.synthetic.scenes import SceneFrame
from sam2_mem.synthetic.shapes import Bounce, Entrance, Fixed, Outline, Path, Wave, draw_outline, draw_wave, fin
from sam2_mem.synthetic.textures import Texture, make_background, make_skin

_SEED = 20240
_FRAME = SceneFrame(width=320, height=240, num_frames=48)
_ENTRY = 12
_OPEN = ((-1000.0, -1000.0), (1000.0, 1000.0))  # no walls


def demo_clip() -> SyntheticVideo:
    """320 x 240, 48 frames. Object 1 is hidden for nine frames from 21 on; object 2 comes from the right at 12."""
    rng = np.random.Generator(np.random.PCG64(_SEED))
    hills = np.array([[120, 142, 110], [96, 128, 70], [128, 124, 62], [88, 116, 52]], float)
    backdrop = make_background(rng, 256, kind="landscape", palette=hills)
    moving_objects = (
        _crawler(rng),
        _flyer(rng),
        _trunk(),
        _leaves(rng, (158.0, 6.0), 78.0),
        _leaves(rng, (172.0, 240.0), 44.0),
    )
    skins = (
        _skin(rng, [[236, 120, 32], [250, 236, 214], [44, 34, 40]], "stripes", (58.0, 2.0, -9.0)),
        _skin(rng, [[44, 120, 190], [246, 206, 70], [226, 244, 250]], "spots", (58.0, 3.0, -8.0)),
        _skin(rng, [[104, 78, 56], [84, 62, 46]], "patches", (54.0, -18.0, 0.0), grain=0.14),
        _skin(rng, [[64, 104, 48], [48, 84, 40], [92, 130, 60]], "patches", (58.0, 4.0, -8.0), grain=0.16),
        _skin(rng, [[84, 116, 52], [60, 92, 44]], "patches", (58.0, 4.0, -8.0), grain=0.16),
    )
    return SyntheticVideo(
        Scene(
            frame=_FRAME,
            num_objects=2,
            seed=_SEED,
            moving_objects=moving_objects,
            camera=_camera(rng),
            skins=skins,
            background=Texture.from_rgb(backdrop),
            texels=0.64,
            light=(Wave(0.03, 0.06, 0.0), Wave(0.03, 0.06, 0.2), Wave(0.03, 0.06, 0.4)),
            noise=None,
        )
    )


def _camera(rng: np.random.Generator) -> Camera:
    shake = tuple(
        draw_wave(rng, size, period)
        for size, period in ((0.4, (9, 14)), (0.4, (9, 14)), (1.2, (24, 40)), (1.0, (24, 40)))
    )
    pan = (Wave(7.0, 0.07, 0.0), Wave(1.5, 0.05, 1.0))
    return Camera(centre=(160.0, 120.0), zoom=Wave(0.015, 0.06, 0.0, 0.015), shake=shake, pan=pan)


def _skin(
    rng: np.random.Generator,
    colours: list[list[int]],
    pattern: str,
    light: tuple[float, float, float],
    grain: float = 0.12,
) -> Skin:
    texture = make_skin(rng, 256, np.array(colours, float), pattern=pattern, grain=grain)
    return Skin(texture, texture, light)


def _body(
    rng: np.random.Generator, object_id: int, path: Path, radius: float, limbs: tuple[Limb, ...], entry: int = 0
) -> MovingObject:
    return MovingObject(
        object_id=object_id,
        path=path,
        radius=radius,
        outline=draw_outline(rng, "capsule", deform=0.35),
        entry=entry,
        rock=Wave(0.16, 0.25, 0.4),
        breathe=Wave(0.04, 0.2, 0.0),
        bend=(Wave(0.05, 0.3, 0.0), Wave(0.11, 0.34, 1.0)),
        limbs=limbs,
    )


def _fin(x: float, y: float, angle: float, length: float, shift: float) -> Limb:
    return Limb(fin(length, 0.55 * length), (x, y), Wave(0.35, 0.55, shift, angle), (shift, 0.3 * shift))


def _crawler(rng: np.random.Generator) -> MovingObject:
    """Object 1: from left to right behind the trunk."""
    path = Bounce(
        origin=(58.0, 128.0),
        velocity=(4.3, 0.25),
        sway=(Wave(3.0, 0.2, 0.0), Wave(9.0, 0.21, 0.3)),
        low=_OPEN[0],
        high=_OPEN[1],
    )
    fins = (_fin(-0.8, 0.0, np.pi, 0.3, 0.2), _fin(0.0, -0.5, -1.9, 0.24, 0.7), _fin(0.05, 0.5, 2.0, 0.24, -0.6))
    return _body(rng, 1, path, 30.0, fins)


def _flyer(rng: np.random.Generator) -> MovingObject:
    """Object 2: in from the right at the entry frame."""
    base = Bounce(
        origin=(262.0, 62.0),
        velocity=(-0.5, 0.4),
        sway=(Wave(8.0, 0.16, 0.0), Wave(7.0, 0.23, 2.0)),
        low=_OPEN[0],
        high=_OPEN[1],
        since=float(_ENTRY),
    )
    fins = (_fin(-0.1, -0.4, -1.4, 0.34, 0.5), _fin(-0.1, 0.4, 1.4, 0.34, -0.4))
    return _body(rng, 2, Entrance(base, float(_ENTRY), (38.0, -6.0), slow=4.0), 28.0, fins, entry=_ENTRY)


def _trunk() -> MovingObject:
    half = 36.0
    polygon = np.array([[-0.9, -6.0], [0.9, -6.0], [1.0, 0.0], [1.2, 4.0], [-1.25, 4.0], [-1.0, 0.0]])
    return MovingObject(object_id=0, path=Fixed((162.0, 130.0)), radius=half, outline=polygon, occludes=True)


def _leaves(rng: np.random.Generator, centre: tuple[float, float], radius: float) -> MovingObject:
    """A clump with a lobed edge that stirs a little."""
    angles = np.arange(60) * (2 * np.pi / 60)
    radii = 0.86 + 0.08 * np.cos(9 * angles + rng.uniform(0, 6)) + 0.06 * np.cos(14 * angles + rng.uniform(0, 6))
    outline = Outline(first=radii, second=radii, wobble=(Wave(0.02, 0.2, 0.0), Wave(0.02, 0.27, 1.0)))
    return MovingObject(
        object_id=0, path=Fixed(centre), radius=radius, outline=outline, squash=Wave(0.0, 0.0, 0.0, 0.3), occludes=True
    )
