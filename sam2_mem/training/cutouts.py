"""Clips of pictures with alpha (cut-outs) over photographs or real video, drawn anew at the size that is asked for.

The cut-outs, and regions of photographs cut along natural edges, move, turn, bend, grow, change their light, pass one
another, leave and come back; look-alikes and occluders move among them, the camera pans, shakes and cuts to other scenes.
Every source of pictures is a folder, searched with its subfolders: its pictures' licences are the user's concern.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from sam2_mem.training.clips import Clip, ClipSpec, visible_objects
from sam2_mem.training.layers import STILL, CameraSettings, Deformation, Ground, Layer, LayeredFrame, LayeredScene, Shot
from sam2_mem.training.pictures import Sway, draw_sway, drawn_cover, natural_cover
from sam2_mem.video.stored import IMAGE_EXTENSIONS

T = TypeVar("T")
ATTEMPTS, REGION_ATTEMPTS = 20, 3
PARTS = ("training", "validation", "all")
VALIDATION_SHARE = 8  # one picture in so many is kept for validation
ALPHA_EXTENSIONS = (".png", ".webp", ".gif")
MOST_VIEWS = 12
VISIBLE_SHARE = 0.4  # of an object in the first frame, or it is no object of the clip
CANVAS = 1.25  # side of the ground, in sides of the frame


def is_of(part: str, path: Path) -> bool:
    """Whether a picture belongs to a part; told by its name without the extension, so that pictures of one name in
    several folders are in the same part."""
    return part == "all" or (zlib.crc32(path.stem.encode()) % VALIDATION_SHARE == 0) == (part == "validation")


def read_views(path: Path) -> np.ndarray:
    """The frames of a picture with alpha: (K, h, w, 4) uint8, colours multiplied by alpha, cropped to what shows.

    Raises:
        ValueError: the file is no picture, has no alpha, or shows nothing.
    """
    try:
        with Image.open(path) as image:
            count = getattr(image, "n_frames", 1)
            images = []
            for number in np.linspace(0, count - 1, min(count, MOST_VIEWS)).round().astype(int):
                image.seek(int(number))
                images.append(np.asarray(image.convert("RGBA")))
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"expected a picture with alpha, got {path} ({error}); remove or replace it") from error
    views = np.stack(images)
    shows = np.any(views[..., 3] > 127, 0)
    if not shows.any() or (views[..., 3] > 127).all():
        raise ValueError(f"expected a picture with alpha, got {path}, opaque or empty everywhere; remove or replace it")
    down, across = np.flatnonzero(np.any(shows, 1)), np.flatnonzero(np.any(shows, 0))
    return multiplied(views[:, down[0] : down[-1] + 1, across[0] : across[-1] + 1])


def multiplied(views: np.ndarray) -> np.ndarray:
    """Colours (..., 4) uint8 multiplied by alpha."""
    alpha = views[..., 3:].astype(np.uint16)
    return np.concatenate([((views[..., :3] * alpha + 127) // 255).astype(np.uint8), views[..., 3:]], -1)


def read_photograph(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        ValueError: the file is no picture.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"expected a picture, got {path}, which cannot be read; remove or replace it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def list_pictures(folder: str, part: str, extensions: Sequence[str], what: str) -> list[Path]:
    """The pictures of a folder and its subfolders that belong to a part, sorted; ValueError if there is none."""
    root = Path(folder).expanduser()
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in extensions and is_of(part, p))
    if not paths:
        raise ValueError(f"expected {what} ({', '.join(extensions)}) of part {part!r} in {root}, got none; add some")
    return paths


def check_alpha(paths: Sequence[Path]) -> None:
    """ValueError if a file's header says that it is no picture or has no alpha; names all such files."""
    wrong = []
    for path in paths:
        try:
            with Image.open(path) as image:
                if "A" not in image.getbands() and "transparency" not in image.info:
                    wrong.append(f"{path} ({image.mode})")
        except (UnidentifiedImageError, OSError):
            wrong.append(f"{path} (no picture)")
    if wrong:
        raise ValueError(
            f"expected pictures with alpha, got {len(wrong)} others: {', '.join(wrong[:5])}; remove or replace them"
        )


def mostly_visible(frame: LayeredFrame) -> list[int]:
    """The objects of which other layers hide less than ``1 - VISIBLE_SHARE``."""
    counts = np.bincount(frame.ids.ravel(), minlength=256)
    return [n for n, pixels in frame.covered.items() if n and counts[n] >= max(1, VISIBLE_SHARE * pixels)]


@dataclass(frozen=True, kw_only=True)
class CutoutClips:
    """Clips of cut-outs that move over photographs: a function of the generator and the spec, never kept on disk.

    Attributes:
        cutouts: folder of pictures with alpha; those of several frames are animated.
        photographs: folder of photographs: grounds, textures and regions.
        videos: folder whose subfolders hold the frames of a video each, as grounds; None: photographs alone.
        part: ``training``, ``validation`` (a fixed eighth of all pictures, by their names) or ``all``.
        cut: share of clips of four frames and more that show another scene for a while or from some frame on.
        absence: share of clips of three frames and more in which an object is away for a while or from some frame on.
    """

    cutouts: str
    photographs: str
    videos: str | None = None
    part: str = "training"
    cut: float = 0.2
    absence: float = 0.3

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"expected part to be one of {', '.join(PARTS)}, got {self.part!r}")
        if not 0 <= self.cut <= 1 or not 0 <= self.absence <= 1:
            raise ValueError(f"expected cut and absence in 0..1, got {self.cut} and {self.absence}")

    @cached_property
    def cutout_paths(self) -> list[Path]:
        paths = list_pictures(self.cutouts, self.part, ALPHA_EXTENSIONS, "pictures with alpha")
        check_alpha(paths)
        return paths

    @cached_property
    def photograph_paths(self) -> list[Path]:
        return list_pictures(self.photographs, self.part, IMAGE_EXTENSIONS, "photographs")

    @cached_property
    def video_folders(self) -> list[list[Path]]:
        """The frames of every video."""
        if self.videos is None:
            return []
        paths = sorted(p for p in Path(self.videos).expanduser().rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS)
        folders = sorted({p.parent for p in paths if is_of(self.part, p.parent)})
        if not folders:
            raise ValueError(f"expected folders of frames of part {self.part!r} in {self.videos}, got none; add some")
        return [[p for p in paths if p.parent == folder] for folder in folders]

    def check(self) -> None:
        """ValueError if a folder has nothing to draw, or files among the cut-outs that are none."""
        assert self.cutout_paths and self.photograph_paths
        assert self.videos is None or self.video_folders

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        """A clip in whose first frame an object is visible."""
        self.check()
        for _ in range(ATTEMPTS):
            gaps = rng.integers(1, spec.max_gap + 1, spec.num_frames - 1)
            times = np.concatenate([[0.0], np.cumsum(gaps)]).astype(float)
            scene = SceneDraw(self, rng, spec, times).scene()
            first = scene.frame(0.0, rng)
            objects = mostly_visible(first)
            if visible_objects(np.where(np.isin(first.ids, objects), first.ids, 0), spec.min_area):
                frames = [first, *(scene.frame(t, rng) for t in times[1:])]
                ids = np.stack([frame.ids for frame in frames])
                ids[~np.isin(ids, objects)] = 0
                return Clip(np.stack([frame.image for frame in frames]), ids)
        raise ValueError(f"expected an object in the first frame, got none in {ATTEMPTS} tries of {self}")


class SceneDraw:
    """One scene of a source, drawn at random.

    Args:
        source: of the pictures.
        rng: of all that is drawn.
        spec: of the clip.
        times: of its frames, from 0 on.
    """

    def __init__(self, source: CutoutClips, rng: np.random.Generator, spec: ClipSpec, times: np.ndarray) -> None:
        self.source = source
        self.rng = rng
        self.side = spec.size
        self.max_objects = spec.max_objects
        self.times = times
        self.length = max(float(times[-1]), 1.0)
        self.quick = float(rng.uniform(0.3, 1.5) * (1.0 if rng.random() < 0.8 else 2.2))

    # -- small draws --------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, items: Sequence[T]) -> T:
        return items[int(self.rng.integers(len(items)))]

    def sway(self, base: float, drift: float, swing: float) -> Sway:
        """Drift per frame and swing up to the given sizes; over a long clip no drift goes further than over 12 frames."""
        return draw_sway(self.rng, base, drift * min(1.0, 12.0 / self.length), swing, rates=(0.1, 0.8))

    # -- pictures -----------------------------------------------------------------------------------------------

    def photograph(self, side: int) -> np.ndarray:
        """A square of a photograph, perhaps mirrored: (side, side, 3) uint8."""
        picture = read_photograph(self.choose(self.source.photograph_paths))
        return self._square(picture, float(self.rng.uniform(0.55, 1.0)), side)

    def _square(self, picture: np.ndarray, share: float, side: int) -> np.ndarray:
        width = int(min(picture.shape[:2]) * share)
        y, x = (int(self.rng.integers(0, n - width + 1)) for n in picture.shape[:2])
        mirrored = picture[y : y + width, x : x + width][:, :: -1 if self.chance(0.5) else 1]
        way = cv2.INTER_AREA if width > side else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(mirrored), (side, side), interpolation=way)

    def views(self, canvas: np.ndarray) -> np.ndarray:
        """The views of an object: a cut-out, or a region of a photograph or of ``canvas``: (K, h, w, 4) uint8."""
        if self.chance(0.7):
            return read_views(self.choose(self.source.cutout_paths))
        for _ in range(REGION_ATTEMPTS):
            picture = canvas if self.chance(0.25) else self.photograph(self.side)
            cover = natural_cover(self.rng, picture) if self.chance(0.7) else None
            cover = drawn_cover(self.rng, self.side) if cover is None and not self.chance(0.4) else cover
            if cover is not None and cover.sum() > 200:
                return _cut(picture, cover)
        return read_views(self.choose(self.source.cutout_paths))

    def recoloured(self, views: np.ndarray, canvas: np.ndarray) -> np.ndarray:
        """Views in other colours, perhaps with the texture of a photograph or towards the colours of the ground."""
        rng, alpha = self.rng, views[..., 3:].astype(np.float32) / 255
        colours = views[..., :3].astype(np.float32)
        if self.chance(0.2):
            colours = colours[..., rng.permutation(3)]
        if self.chance(0.35):
            texture = self.photograph(max(views.shape[1:3]))[: views.shape[1], : views.shape[2]].astype(np.float32)
            share = np.float32(rng.uniform(0.2, 0.75))
            colours = colours * (1 - share) + texture * alpha * share
        if self.chance(0.35):
            mean = colours.reshape(-1, 3).sum(0) / max(float(alpha.sum()), 1.0)
            share = np.float32(rng.uniform(0.3, 0.8))
            colours = colours + (canvas.reshape(-1, 3).mean(0) - mean).astype(np.float32) * share * alpha
        gain = (rng.uniform(0.65, 1.2) * rng.uniform(0.88, 1.12, 3)).astype(np.float32)
        return np.concatenate([np.clip(colours * gain, 0, 255).astype(np.uint8), views[..., 3:]], -1)

    # -- layers -------------------------------------------------------------------------------------------------

    def layer(self, obj_id: int, views: np.ndarray) -> Layer:
        """Views in motion."""
        rng, quick = self.rng, self.quick
        size = self.sway(float(rng.uniform(np.log(0.17), np.log(1.0))), 0.025 * quick, 0.12 * quick)
        views = views[:, :, ::-1] if self.chance(0.5) else views
        darkness = float(rng.uniform(0.2, 0.7)) if self.chance(0.35) else 0.0
        return Layer(
            views=_shrunk(views, int(1.15 * self.side * np.exp(size.base + size.swing))),
            obj_id=obj_id,
            x=self.sway(float(rng.uniform(0.2, 0.8)), 0.022 * quick, 0.09 * quick),
            y=self.sway(float(rng.uniform(0.2, 0.8)), 0.016 * quick, 0.06 * quick),
            size=size,
            turn=self.sway(float(rng.uniform(-0.45, 0.45)), 0.045 * quick, 0.14 * quick),
            aspect=self.sway(float(rng.uniform(-0.15, 0.15)), 0.01, 0.15 if self.chance(0.5) else 0.03),
            shear=self.sway(0.0, 0.01, 0.15),
            deformation=self.deformation(),
            light=self.sway(0.0, 0.012, 0.1),
            turning=float(rng.uniform(0.3, 1.0)),
            attached=self.chance(0.4),
            shadow=(darkness, float(rng.uniform(-0.12, 0.12)), float(rng.uniform(0, 0.15))),
        )

    def deformation(self) -> Deformation:
        rng = self.rng
        hinged = self.chance(0.35)
        return Deformation(
            bend=self.sway(0.0, 0.0, float(rng.uniform(0, 0.12))) if self.chance(0.5) else STILL,
            wave=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(1.0, 4.0)), float(rng.uniform(-0.6, 0.6))),
            hinge=self.sway(0.0, 0.0, float(rng.uniform(0.1, 0.8))) if hinged else STILL,
            joint=(float(rng.uniform(-0.4, 0.4)), float(rng.uniform(-0.4, 0.4)), float(rng.uniform(0, 2 * np.pi))),
            flutter=float(rng.uniform(0.01, 0.07)) if self.chance(0.5) else 0.0,
            points=np.concatenate(
                [rng.uniform(-1, 1, (4, 4, 2)), rng.uniform(0.1, 0.7, (4, 4, 2)) * (1, 9)], -1
            ).astype(np.float32),
        )

    def cast(self, canvas: np.ndarray) -> list[Layer]:
        """Objects 1.., look-alikes of one of them, and others, from back to front."""
        count = int(self.rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
        views = [self.recoloured(self.views(canvas), canvas) for _ in range(min(count, self.max_objects))]
        layers = [self.layer(number, v) for number, v in enumerate(views, start=1)]
        if self.chance(0.35):
            twin = self.choose(views)
            gain = np.array([*self.rng.uniform(0.88, 1.0, 3), 1.0], np.float32)
            obj_id = len(layers) + 1 if len(layers) < self.max_objects and self.chance(0.4) else 0
            layers.append(self.layer(obj_id, (twin * gain).astype(np.uint8)))
        order = [layers[i] for i in self.rng.permutation(len(layers))]
        if len(order) > 1 and self.chance(0.35):
            order[0] = _crossing(order[0], order[1], float(self.rng.uniform(0, self.length)))
        for _ in range(int(self.rng.choice([0, 1, 2], p=[0.55, 0.33, 0.12]))):
            order.append(self.layer(0, self.recoloured(self.views(canvas), canvas)))
        return order

    # -- scenes -------------------------------------------------------------------------------------------------

    def ground(self) -> Ground:
        """A photograph, or the frames of a video from some frame on, to and fro, and the movement of the camera."""
        rng, side = self.rng, int(CANVAS * self.side)
        calm = 0.1 if self.chance(0.35) else self.quick
        if self.source.video_folders and self.chance(0.35):
            pictures = self._film(side)
            calm *= 0.4
        else:
            pictures = [self.photograph(side)]
        if self.chance(0.25):
            pictures = [cv2.GaussianBlur(p, (0, 0), float(rng.uniform(0.8, 3.0))) for p in pictures]
        return Ground(
            pictures=pictures,
            x=self.sway(0.0, 0.018 * calm, 0.07 * calm),
            y=self.sway(0.0, 0.012 * calm, 0.05 * calm),
            turn=self.sway(0.0, 0.02 * calm, 0.05 * calm),
            zoom=self.sway(float(rng.uniform(-0.1, 0.25)), 0.01 * calm, 0.05 * calm),
        )

    def _film(self, side: int) -> list[np.ndarray]:
        """One picture for every moment up to the last, of one video: a square that stays in place."""
        paths = self.choose(self.source.video_folders)
        start = int(self.rng.integers(len(paths)))
        moments = np.arange(int(self.length) + 1) + start
        numbers = [int(m) % max(2 * len(paths) - 2, 1) for m in moments]
        order = [min(n, 2 * len(paths) - 2 - n) if len(paths) > 1 else 0 for n in numbers]
        first = read_photograph(paths[0])
        width = int(min(first.shape[:2]) * self.rng.uniform(0.6, 1.0))
        y, x = (int(self.rng.integers(0, n - width + 1)) for n in first.shape[:2])
        read = {n: read_photograph(paths[n])[y : y + width, x : x + width] for n in set(order)}
        small = {n: cv2.resize(p, (side, side), interpolation=cv2.INTER_LINEAR) for n, p in read.items()}
        return [small[n] for n in order]

    def camera(self) -> CameraSettings:
        rng = self.rng
        return CameraSettings(
            shutter=float(rng.uniform(0.2, 0.9)) if self.chance(0.7) else 0.0,
            exposure=self.sway(float(rng.uniform(-0.2, 0.1)), 0.005, 0.08),
            softness=float(rng.uniform(0.2, 1.1)),
            noise=float(rng.uniform(0, 5)) if self.chance(0.6) else 0.0,
            quality=int(rng.integers(35, 90)) if self.chance(0.4) else 0,
            grey=self.chance(0.08),
        )

    def shots(self, layers: int) -> list[Shot]:
        """One shot, or a cut to another ground: without the objects and back, or with them from some frame on."""
        first = Shot(start=0.0, ground=self.ground())
        if len(self.times) < 4 or not self.chance(self.source.cut):
            return [first]
        start = self.choose(self.times[1:-1].tolist())
        rng, after = self.rng, [t for t in self.times if t > start]
        jump = (float(rng.uniform(-0.25, 0.25)), float(rng.uniform(-0.25, 0.25)), float(rng.uniform(-0.35, 0.35)))
        if self.chance(0.35):
            return [first, Shot(start=start, ground=self.ground(), jump=jump)]
        away = Shot(start=start, ground=self.ground(), absent=frozenset(range(layers)))
        return [first, away, Shot(start=self.choose(after), ground=first.ground, jump=jump)]

    def hide_some(self, layers: list[Layer]) -> list[Layer]:
        """Perhaps with one layer hidden for a while, or gone from the frame's side."""
        if len(self.times) < 3 or not self.chance(self.source.absence):
            return layers
        number = int(self.rng.integers(len(layers)))
        start = self.choose(self.times[1:].tolist())
        stop = self.choose([*self.times[self.times > start].tolist(), np.inf])
        layer = layers[number]
        if self.chance(0.35):
            way = self.choose([-1.3, 1.3]) / self.length
            layers[number] = replace(layer, x=replace(layer.x, drift=way))
        else:
            layers[number] = replace(layer, hidden=((start, stop),))
        return layers

    def scene(self) -> LayeredScene:
        canvas = self.photograph(self.side)
        layers = self.hide_some(self.cast(canvas))
        return LayeredScene(side=self.side, layers=layers, shots=self.shots(len(layers)), camera=self.camera())


def _cut(picture: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """The part of a picture (S, S, 3) under a cover (S, S) of 0 and 1, as one view: (1, h, w, 4) uint8."""
    down, across = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    box = (slice(max(down[0] - 2, 0), down[-1] + 3), slice(max(across[0] - 2, 0), across[-1] + 3))
    soft = cv2.GaussianBlur(cover[box] * np.uint8(255), (0, 0), 0.7)
    return multiplied(np.concatenate([picture[box], soft[..., None]], -1)[None])


def _shrunk(views: np.ndarray, length: int) -> np.ndarray:
    """Views whose long side is at most ``length`` pixels, so that small layers do not flicker."""
    height, width = views.shape[1:3]
    scale = max(length, 12) / max(height, width)
    if scale >= 0.9:
        return np.ascontiguousarray(views)
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return np.stack([cv2.resize(v, size, interpolation=cv2.INTER_AREA) for v in views])


def _crossing(layer: Layer, other: Layer, moment: float) -> Layer:
    """A layer that is where the other is at a moment."""
    x, y = (
        replace(own, base=own.base + its.at(moment) - own.at(moment))
        for own, its in ((layer.x, other.x), (layer.y, other.y))
    )
    return replace(layer, x=x, y=y, attached=other.attached)
