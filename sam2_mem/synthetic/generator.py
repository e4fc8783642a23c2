"""Procedural video with exact ground truth: textured deformable objects, one frame at a time, reproducible to the bit.

    clip = make_clip(7, level="occlusion", num_frames=100, height=128, width=128, num_objects=2)
    clip.frame(40).masks      # (H, W) uint8, the visible pixels of objects 1..N
    clip.info(40)[0].absent
    clip.events()

A clip is a function of its arguments: any frame can be asked for at any time, in any order and in any process,
and nothing is stored but a background and the skins. Levels of difficulty are in `scenes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import cv2
import numpy as np

from sam2_mem.synthetic.appearance import AppearanceSampler, Skin, paint_blobs
from sam2_mem.synthetic.moving_objects import Camera, MovingObject, PlacedPart, front_map, place_parts
from sam2_mem.synthetic.scenes import (
    LEVEL_NUMBERS,
    Cut,
    Level,
    SceneFrame,
    SceneSampler,
    find_level,
    mix_level,
    scale_level,
)
from sam2_mem.synthetic.shapes import Affine, Bounds, Wave, bounding_box, coverage, draw_wave
from sam2_mem.synthetic.textures import (
    OPAQUE,
    SKIN_SPAN,
    Texture,
    blend,
    cross_fade,
    darken,
    make_background,
    sample,
    unpack,
)

ATTEMPTS = 60
SUBFRAMES = 4  # renderings that a frame with motion blur averages
_NOISE_LENGTH = 65521


@dataclass(frozen=True, kw_only=True)
class SyntheticSpec:
    """Everything a clip depends on.

    Attributes:
        seed: any integer from 0 on.
        level: a key of ``scenes.LEVELS`` or ``scenes.AWAY_LEVELS``.
        num_frames: length of the clip.
        height: of a frame, in pixels; at least 32.
        width: of a frame, in pixels; sides are at most 3 : 1.
        num_objects: 1..255.
        difficulty: 0..1; 0.5 is the level as it is.
        late_objects: number of objects that enter after frame 0; by default drawn as the level says.
        jpeg_quality: 1..100; by default drawn as the level says.
    """

    seed: int
    level: str = "mixed"
    num_frames: int = 64
    height: int = 128
    width: int = 128
    num_objects: int = 2
    difficulty: float = 0.5
    late_objects: int | None = None
    jpeg_quality: int | None = None

    def __post_init__(self) -> None:
        names = sorted(LEVEL_NUMBERS)
        _require(self.level in names, f"expected a level of {names}, got {self.level!r}; choose one of them")
        _require(self.seed >= 0, f"expected a seed >= 0, got {self.seed}; use a non-negative integer")
        _require(self.num_frames >= 1, f"expected num_frames >= 1, got {self.num_frames}; ask for at least one frame")
        size = (self.height, self.width)
        _require(min(size) >= 32, f"expected a height and width of at least 32, got {size}; use a larger frame")
        _require(max(size) <= 3 * min(size), f"expected sides at most 3 : 1, got {size}; use a squarer frame")
        _require(
            1 <= self.num_objects <= 255, f"expected 1..255 objects, got {self.num_objects}; ids are stored in a byte"
        )
        room = self.height * self.width // self.num_objects
        _require(
            room >= 128, f"expected at least 128 pixels of frame for each object, got {room}; ask for fewer objects"
        )
        _require(
            0.0 <= self.difficulty <= 1.0,
            f"expected a difficulty in 0..1, got {self.difficulty}; 0.5 is the level as it is",
        )
        late = self.late_objects or 0
        _require(
            0 <= late < self.num_objects, f"expected 0..{self.num_objects - 1} late objects, got {late}; one must start"
        )
        _require(late == 0 or self.num_frames > 1, "expected several frames for a late object, got 1; raise num_frames")
        quality = self.jpeg_quality
        _require(quality is None or 1 <= quality <= 100, f"expected a jpeg_quality in 1..100, got {quality}; or None")


@dataclass(frozen=True)
class SyntheticFrame:
    """One frame: image (H, W, 3) uint8 RGB, masks (H, W) uint8, the id of the object visible at each pixel or 0."""

    index: int
    image: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class ObjectInfo:
    """Areas in pixels: visible in the frame, inside the frame with nothing in front, and whole."""

    object_id: int
    present: bool  # has entered
    visible_area: int
    in_frame_area: int
    amodal_area: int

    @property
    def visible_fraction(self) -> float:
        """Visible share of the whole object, in 0..1."""
        return min(1.0, self.visible_area / self.amodal_area) if self.amodal_area else 0.0

    @property
    def absent(self) -> bool:
        """Not one pixel is visible."""
        return self.visible_area == 0


@dataclass(frozen=True, order=True)
class Event:
    """Frames start..end-1 of one object.

    Kinds: entry, occlusion (less than a fifth of what is in the frame shows), leave (nothing in the frame), return (the
    first frame after that), appearance (while it changes), split (in two parts).
    """

    start: int
    end: int
    kind: str
    object_id: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A complete drawn world."""

    frame: SceneFrame
    num_objects: int
    seed: int
    moving_objects: tuple[MovingObject, ...]  # from back to front
    camera: Camera
    skins: tuple[Skin, ...]  # one for each moving object
    background: Texture
    texels: float  # background texels per pixel
    light: tuple[Wave, ...]  # relative brightness of red, green, blue
    noise: np.ndarray | None  # (_NOISE_LENGTH,) int16
    shutter: float = 0.0  # frames the shutter stays open
    shadow: tuple[float, float, float] | None = None  # x, y offset in radii, strength
    jpeg_quality: int | None = None
    cut: Cut | None = None
    other_background: Texture | None = None  # of the frames of the cut

    def shown(self, t: float) -> tuple[MovingObject, ...]:
        """The moving objects at time t, none during the cut."""
        return () if self.cut is not None and self.cut.shows(t) else self.moving_objects


class SyntheticVideo:
    """Frames of a scene by random access: `frame(t)` and `info(t)` depend on t alone; iteration starts at 0."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.num_frames = scene.frame.num_frames
        self.height, self.width = scene.frame.height, scene.frame.width
        self.num_objects = scene.num_objects
        self._box = Bounds(0, 0, self.width, self.height)
        self._ids = np.array([0, *(o.object_id for o in scene.moving_objects)], np.uint8)
        self._still: tuple[Affine, np.ndarray] | None = None  # the last background: a camera at rest needs it again

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[SyntheticFrame]:
        return (self.frame(t) for t in range(self.num_frames))

    def frame(self, t: int) -> SyntheticFrame:
        """Render frame t, 0 <= t < num_frames."""
        self._check(t)
        return SyntheticFrame(index=t, image=self._finish(self._expose(t), t), masks=self._ids.take(self.front_map(t)))

    def masks(self, t: int) -> np.ndarray:
        """The masks of frame t without its image: (H, W) uint8."""
        self._check(t)
        return self._ids.take(self.front_map(t))

    def front_map(self, t: int) -> np.ndarray:
        """1 + index in scene.moving_objects of what is in front at each pixel, 0 for the background: (H, W) uint16."""
        return front_map(self.scene.shown(t), self.scene.camera, self._box, t)

    def entry_frame(self, object_id: int) -> int:
        """The first frame in which an object is visible."""
        return self._object_of(object_id).entry

    def info(self, t: int) -> tuple[ObjectInfo, ...]:
        """How much of each object shows in frame t, in the order of the ids."""
        self._check(t)
        visible = np.bincount(self._ids.take(self.front_map(t)).reshape(-1), minlength=self.num_objects + 1)
        infos = []
        for object_id in range(1, self.num_objects + 1):
            obj = self._object_of(object_id)
            amodal_area, in_frame_area = self._areas(obj, t)
            visible_area = int(visible[object_id])
            infos.append(
                ObjectInfo(object_id, obj.entry <= t, visible_area, in_frame_area, max(amodal_area, visible_area))
            )
        return tuple(infos)

    def events(self) -> list[Event]:
        """What happens to whom, in order of time. Visibility is measured: this draws the masks of every frame."""
        events: list[Event] = []
        open_runs: dict[tuple[int, str], int] = {}
        for t in range(self.num_frames + 1):
            infos = self.info(t) if t < self.num_frames else ()
            active = {(i.object_id, kind) for i in infos for kind in self._states(i, t)}
            for key in [k for k in sorted(open_runs) if k not in active]:
                events += _close(key, open_runs.pop(key), t, self.num_frames)
            for key in active:
                open_runs.setdefault(key, t)
        late = (o for o in self.scene.moving_objects if o.object_id and o.entry > 0)
        return sorted([*events, *(Event(o.entry, o.entry + 1, "entry", o.object_id) for o in late)])

    def _states(self, info: ObjectInfo, t: int) -> Iterator[str]:
        obj = self._object_of(info.object_id)
        if not info.present:
            return
        if info.in_frame_area == 0:
            yield "leave"
        elif info.visible_area < 0.2 * info.in_frame_area:
            yield "occlusion"
        if 0.0 < obj.change.level(t) < 1.0:
            yield "appearance"
        if obj.split.level(t) > 0.0:
            yield "split"

    def _object_of(self, object_id: int) -> MovingObject:
        matching = [o for o in self.scene.moving_objects if o.object_id == object_id]
        if not object_id or not matching:
            raise ValueError(
                f"expected an object id in 1..{self.num_objects}, got {object_id}; ids are fixed for the whole clip"
            )
        return matching[0]

    def _check(self, t: int) -> None:
        if not 0 <= t < self.num_frames:
            raise ValueError(
                f"expected a frame in 0..{self.num_frames - 1}, got {t}; raise num_frames for a longer clip"
            )

    def _areas(self, obj: MovingObject, t: int) -> tuple[int, int]:
        """Pixels of a moving object with nothing in front: all of it, and inside the frame."""
        if not self.scene.shown(t):
            return 0, 0
        limits = Bounds(-4 * self.width, -4 * self.height, 5 * self.width, 5 * self.height)
        polygons = [placed.polygon for placed in place_parts(obj, self.scene.camera, t)]
        boxes = [(polygon, bounding_box(polygon, limits)) for polygon in polygons]
        boxes = [(polygon, box) for polygon, box in boxes if not box.empty]
        if not boxes:
            return 0, 0
        extent = Bounds(*np.min([b for _, b in boxes], axis=0)[:2], *np.max([b for _, b in boxes], axis=0)[2:])
        covered = np.zeros((extent.y1 - extent.y0, extent.x1 - extent.x0), bool)
        for polygon, box in boxes:
            covered[_within(box, extent)] |= coverage(polygon, box) >= OPAQUE // 2
        x0, y0 = max(0, -extent.x0), max(0, -extent.y0)
        inside = covered[y0 : max(0, self.height - extent.y0), x0 : max(0, self.width - extent.x0)]
        return int(covered.sum()), int(inside.sum())

    def _expose(self, t: int) -> np.ndarray:
        """The image before the sensor, averaged over the time the shutter is open: (H, W) lanes."""
        if self.scene.shutter <= 0.0:
            return self._paint(t)
        times = t + self.scene.shutter * ((np.arange(SUBFRAMES) + 0.5) / SUBFRAMES - 0.5)
        total = reduce(np.add, (self._paint(float(s)) for s in times))
        return darken(total, np.uint64(OPAQUE // SUBFRAMES))

    def _paint(self, t: float) -> np.ndarray:
        canvas = self._backdrop(t).copy()
        for obj, skin in zip(self.scene.shown(t), self.scene.skins):
            placed_parts = place_parts(obj, self.scene.camera, t)
            if self.scene.shadow is not None and not obj.occludes:
                self._paint_shadow(canvas, obj, placed_parts, self.scene.shadow)
            texture = cross_fade(skin.first, skin.second, obj.change.level(t))
            for placed in placed_parts:
                self._paint_part(canvas, placed, texture, skin)
        return canvas

    def _backdrop(self, t: float) -> np.ndarray:
        scene = self.scene
        lookup = scene.camera.background(t, scene.texels, scene.background.size)
        if scene.other_background is not None and not scene.shown(t):
            return sample(scene.other_background, *lookup.on_pixels(self._box))
        if self._still is None or self._still[0] != lookup:
            self._still = (lookup, sample(scene.background, *lookup.on_pixels(self._box)))
        return self._still[1]

    def _paint_shadow(
        self,
        canvas: np.ndarray,
        obj: MovingObject,
        placed_parts: list[PlacedPart],
        shadow: tuple[float, float, float],
    ) -> None:
        dx, dy, strength = shadow
        for placed in placed_parts:
            moved = placed.polygon + obj.radius * np.array([dx, dy])
            box = bounding_box(moved, self._box)
            if not box.empty:
                area = _within(box, self._box)
                keep = OPAQUE - (coverage(moved, box) * strength).astype(np.uint64)
                canvas[area] = darken(canvas[area], keep)

    def _paint_part(self, canvas: np.ndarray, placed: PlacedPart, texture: Texture, skin: Skin) -> None:
        box = bounding_box(placed.polygon, self._box)
        if box.empty:
            return
        area = _within(box, self._box)
        x, y = placed.on_pixels(box)
        texels = np.float32(texture.size / SKIN_SPAN)
        shift_x, shift_y = (np.float32((s / SKIN_SPAN + 0.5) * texture.size) for s in placed.part.skin_shift)
        colour = sample(texture, x * texels + shift_x, y * texels + shift_y)
        level, across, down = (np.float32(v) for v in skin.light)
        shade = np.clip(level + across * x + down * y, 26, OPAQUE).astype(np.uint64)
        canvas[area] = blend(canvas[area], darken(colour, shade), coverage(placed.polygon, box).astype(np.uint64))

    def _finish(self, lanes: np.ndarray, t: int) -> np.ndarray:
        """Lighting, sensor noise and compression: (H, W) lanes -> (H, W, 3) uint8."""
        scene, image = self.scene, unpack(lanes)
        gains = [1.0 + w.at(t) for w in scene.light]
        if any(g != 1.0 for g in gains):
            steps = np.arange(256)[:, None] * np.array(gains)
            table = np.clip(np.rint(steps), 0, 255).astype(np.uint8)
            image = np.stack([table[:, c].take(image[..., c]) for c in range(3)], axis=-1)
        if scene.noise is not None:
            image = np.clip(image + self._noise(scene.noise, t), 0, 255).astype(np.uint8)
        if scene.jpeg_quality is not None:
            image = _compress(image, scene.jpeg_quality)
        return image

    def _noise(self, noise: np.ndarray, t: int) -> np.ndarray:
        start = (
            int(np.random.SeedSequence(entropy=self.scene.seed, spawn_key=(99, t)).generate_state(1)[0]) % _NOISE_LENGTH
        )
        count = self.height * self.width * 3
        return np.resize(np.roll(noise, -start), count).reshape(self.height, self.width, 3)


def _close(key: tuple[int, str], start: int, end: int, num_frames: int) -> list[Event]:
    """The event of a run of frames, and the return that follows it."""
    object_id, kind = key
    events = [Event(start, end, kind, object_id)]
    if kind == "leave" and end < num_frames:
        events.append(Event(end, end + 1, "return", object_id))
    return events


def _within(box: Bounds, outer: Bounds) -> tuple[slice, slice]:
    return slice(box.y0 - outer.y0, box.y1 - outer.y0), slice(box.x0 - outer.x0, box.x1 - outer.x0)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _compress(image: np.ndarray, quality: int) -> np.ndarray:
    encoded, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert encoded and decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])


def make_clip(seed: int, **settings: Any) -> SyntheticVideo:
    """The clip of ``SyntheticSpec(seed=seed, **settings)``. Object 1 is in frame 0, others may enter late."""
    return build_clip(SyntheticSpec(seed=seed, **settings))


def build_clip(spec: SyntheticSpec) -> SyntheticVideo:
    """Draw moving objects until each is well visible when it first appears, then the rest; ValueError if that fails."""
    frame = SceneFrame(spec.width, spec.height, spec.num_frames)
    number = LEVEL_NUMBERS[spec.level]
    level = scale_level(find_level(spec.level), spec.difficulty)
    if spec.level == "mixed":
        level = mix_level(_stream(spec.seed, number, 1), level)
    for attempt in range(ATTEMPTS):
        sampler = SceneSampler(
            _stream(spec.seed, number, 2, attempt), frame, level, spec.num_objects, spec.late_objects
        )
        moving_objects, camera = sampler.moving_objects(), sampler.camera()
        if _starts_well(moving_objects, camera, frame):
            scene = _draw_scene(_stream(spec.seed, number, 3), spec, level, frame, moving_objects, camera)
            cut = sampler.cut()
            if cut is not None:
                other, _ = _draw_backdrop(_stream(spec.seed, number, 4), scene.background.size, level)
                scene = replace(scene, cut=cut, other_background=Texture.from_rgb(other))
            return SyntheticVideo(scene)
    raise ValueError(
        f"expected room for {spec.num_objects} objects that are well visible at first, got {spec.width} x "
        f"{spec.height} pixels at level {spec.level!r} after {ATTEMPTS} attempts; ask for fewer objects or another seed"
    )


def sample_training_clip(
    rng: np.random.Generator,
    *,
    level: str,
    num_frames: int,
    size: int,
    max_gap: int = 1,
    num_objects: int = 2,
    difficulty: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """Frame 0 of a new clip and T - 1 later ones, 1..max_gap apart: (T, H, W, 3) and ids (T, H, W), uint8."""
    _require(num_frames >= 1 and max_gap >= 1, f"expected num_frames and max_gap >= 1, got {num_frames} and {max_gap}")
    times = np.concatenate([[0], np.cumsum(rng.integers(1, max_gap + 1, num_frames - 1))])
    clip = make_clip(
        int(rng.integers(2**62)),
        level=level,
        num_frames=int(times[-1]) + 1,
        height=size,
        width=size,
        num_objects=num_objects,
        difficulty=difficulty,
    )
    frames = [clip.frame(int(t)) for t in times]
    return np.stack([f.image for f in frames]), np.stack([f.masks for f in frames])


def _stream(seed: int, *key: int) -> np.random.Generator:
    """An independent generator for each purpose; PCG64 is named so that NumPy's default may change."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy=seed, spawn_key=key)))


def least_first_area(moving_objects: tuple[MovingObject, ...]) -> float:
    """The least share of the frame an object covers in its entry frame: a hundredth, less if there are more than six."""
    return min(0.01, 0.06 / sum(not o.occludes for o in moving_objects))


def _starts_well(moving_objects: tuple[MovingObject, ...], camera: Camera, frame: SceneFrame) -> bool:
    """Whether each object is large enough in its entry frame and at most a fifth of it is hidden."""
    needed = frame.width * frame.height * least_first_area(moving_objects)
    box = Bounds(0, 0, frame.width, frame.height)
    for entry in sorted({o.entry for o in moving_objects if o.object_id}):
        front = front_map(moving_objects, camera, box, entry)
        for number, obj in enumerate(moving_objects, start=1):
            if obj.object_id and obj.entry == entry:
                unoccluded = np.count_nonzero(front_map((obj,), camera, box, entry))
                visible = np.count_nonzero(front == number)
                if visible < needed or visible < 0.8 * unoccluded:
                    return False
    return True


def _draw_scene(
    rng: np.random.Generator,
    spec: SyntheticSpec,
    level: Level,
    frame: SceneFrame,
    moving_objects: tuple[MovingObject, ...],
    camera: Camera,
) -> Scene:
    """Add the skins, the background, the light and the sensor."""
    longest = max(frame.width, frame.height)
    size = 128 if longest <= 128 else 256 if longest <= 320 else 512
    backdrop, appearance = _draw_backdrop(rng, size, level)
    skins = appearance.draw_skins(moving_objects)
    angle, lit = rng.uniform(0, 2 * np.pi), rng.random() < level.shadow
    return Scene(
        frame=frame,
        num_objects=spec.num_objects,
        seed=spec.seed,
        moving_objects=moving_objects,
        camera=camera,
        skins=skins,
        background=Texture.from_rgb(backdrop),
        texels=size / (1.25 * longest),
        light=tuple(draw_wave(rng, level.light * rng.uniform(0.0, 1.0), (20, 120)) for _ in "rgb"),
        noise=_sensor_noise(rng, level.noise * rng.uniform(0.4, 1.3)),
        shutter=rng.uniform(0.3, 0.8) if rng.random() < level.blur else 0.0,
        shadow=(0.22 * np.cos(angle), 0.22 * np.sin(angle), rng.uniform(0.25, 0.55)) if lit else None,
        jpeg_quality=_draw_quality(rng, spec, level),
    )


def _draw_backdrop(rng: np.random.Generator, size: int, level: Level) -> tuple[np.ndarray, AppearanceSampler]:
    """A background (size, size, 3) uint8 with still blobs in it, and what draws skins that stand out from it."""
    kind = str(rng.choice(level.backgrounds))
    backdrop = make_background(rng, size, kind=kind, vivid=0.65 * level.vivid, lines=level.lines)
    appearance = AppearanceSampler(rng, level, backdrop.reshape(-1, 3)[::7].mean(axis=0))
    paint_blobs(rng, backdrop, appearance, level.blobs)
    return backdrop, appearance


def _draw_quality(rng: np.random.Generator, spec: SyntheticSpec, level: Level) -> int | None:
    if spec.jpeg_quality is not None:
        return spec.jpeg_quality
    return int(rng.integers(35, 90)) if rng.random() < level.jpeg else None


def _sensor_noise(rng: np.random.Generator, sigma: float) -> np.ndarray | None:
    if sigma <= 0.0:
        return None
    return np.rint(rng.standard_normal(_NOISE_LENGTH) * sigma).astype(np.int16)
