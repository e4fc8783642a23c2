"""Procedural video with exact ground truth: textured deformable objects, one frame at a time, reproducible to the bit.

    clip = make_clip(7, level="occlusion", num_frames=100, height=128, width=128, num_objects=2)
    clip.frame(40).masks      # (H, W) uint8, the visible pixels of objects 1..N
    clip.info(40)[0].absent
    clip.events()

A clip is a function of its arguments: any frame can be asked for at any time, in any order and in any process,
and nothing is kept but a background and the skins. Imports NumPy and OpenCV only. Levels and casting are in
`scenes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from sam2_mem.synthetic.appearance import Skin, Wardrobe, paint_blobs
from sam2_mem.synthetic.moving_objects import Actor, Camera, PlacedPart, actor_map, place_parts
from sam2_mem.synthetic.scenes import LEVELS, Caster, Frame, Level, mix_level, scale_level
from sam2_mem.synthetic.shapes import Affine, Box, Wave, bounding_box, coverage, draw_wave
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
class ClipSpec:
    """Everything a clip depends on; `late_objects` and `jpeg_quality` are the level's where None."""

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
        _require(self.level in LEVELS, f"expected a level of {sorted(LEVELS)}, got {self.level!r}; choose one of them")
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

    frame: Frame
    num_objects: int
    seed: int
    actors: tuple[Actor, ...]  # from back to front
    camera: Camera
    skins: tuple[Skin, ...]  # one for each actor
    background: Texture
    texels: float  # background texels per pixel
    light: tuple[Wave, Wave, Wave]  # relative brightness of red, green, blue
    noise: np.ndarray | None  # (_NOISE_LENGTH,) int16
    shutter: float = 0.0  # frames the shutter stays open
    shadow: tuple[float, float, float] | None = None  # x, y offset in radii, strength
    jpeg_quality: int | None = None


class SyntheticVideo:
    """Frames of a scene by random access: `frame(t)` and `info(t)` depend on t alone; iteration starts at 0."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.num_frames = scene.frame.num_frames
        self.height, self.width = scene.frame.height, scene.frame.width
        self.num_objects = scene.num_objects
        self._box = Box(0, 0, self.width, self.height)
        self._ids = np.array([0, *(a.object_id for a in scene.actors)], np.uint8)
        self._still: tuple[Affine, np.ndarray] | None = None  # the last background: a camera at rest needs it again

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[SyntheticFrame]:
        return (self.frame(t) for t in range(self.num_frames))

    def frame(self, t: int) -> SyntheticFrame:
        """Render frame t, 0 <= t < num_frames."""
        self._check(t)
        return SyntheticFrame(index=t, image=self._finish(self._expose(t), t), masks=self._ids.take(self.actor_map(t)))

    def masks(self, t: int) -> np.ndarray:
        """The masks of frame t without its image: (H, W) uint8."""
        self._check(t)
        return self._ids.take(self.actor_map(t))

    def actor_map(self, t: int) -> np.ndarray:
        """1 + index in scene.actors of whatever is in front at each pixel, 0 for the background: (H, W) uint16."""
        return actor_map(self.scene.actors, self.scene.camera, self._box, t)

    def entry_frame(self, object_id: int) -> int:
        """The first frame in which an object is visible."""
        return self._actor(object_id).entry

    def info(self, t: int) -> tuple[ObjectInfo, ...]:
        """How much of each object shows in frame t, in the order of the ids."""
        self._check(t)
        visible = np.bincount(self._ids.take(self.actor_map(t)).reshape(-1), minlength=self.num_objects + 1)
        infos = []
        for object_id in range(1, self.num_objects + 1):
            whole, inside = self._areas(self._actor(object_id), t)
            shown = int(visible[object_id])
            infos.append(ObjectInfo(object_id, self._actor(object_id).entry <= t, shown, inside, max(whole, shown)))
        return tuple(infos)

    def events(self) -> list[Event]:
        """What happens to whom, in order of time. Visibility is measured: this draws the masks of every frame."""
        found: list[Event] = []
        open_runs: dict[tuple[int, str], int] = {}
        for t in range(self.num_frames + 1):
            now = (
                set() if t == self.num_frames else {(i.object_id, k) for i in self.info(t) for k in self._states(i, t)}
            )
            for key in [k for k in sorted(open_runs) if k not in now]:
                found += _close(key, open_runs.pop(key), t, self.num_frames)
            for key in now:
                open_runs.setdefault(key, t)
        late = (a for a in self.scene.actors if a.object_id and a.entry > 0)
        return sorted(found + [Event(a.entry, a.entry + 1, "entry", a.object_id) for a in late])

    def _states(self, info: ObjectInfo, t: int) -> Iterator[str]:
        actor = self._actor(info.object_id)
        if not info.present:
            return
        if info.in_frame_area == 0:
            yield "leave"
        elif info.visible_area < 0.2 * info.in_frame_area:
            yield "occlusion"
        if 0.0 < actor.change.level(t) < 1.0:
            yield "appearance"
        if actor.split.level(t) > 0.0:
            yield "split"

    def _actor(self, object_id: int) -> Actor:
        found = [a for a in self.scene.actors if a.object_id == object_id]
        if not object_id or not found:
            raise ValueError(
                f"expected an object id in 1..{self.num_objects}, got {object_id}; ids are fixed for the whole clip"
            )
        return found[0]

    def _check(self, t: int) -> None:
        if not 0 <= t < self.num_frames:
            raise ValueError(
                f"expected a frame in 0..{self.num_frames - 1}, got {t}; raise num_frames for a longer clip"
            )

    def _areas(self, actor: Actor, t: int) -> tuple[int, int]:
        """Pixels of an actor with nothing in front: all of it, and inside the frame."""
        limits = Box(-4 * self.width, -4 * self.height, 5 * self.width, 5 * self.height)
        polygons = [placed.polygon for placed in place_parts(actor, self.scene.camera, t)]
        boxes = [(polygon, bounding_box(polygon, limits)) for polygon in polygons]
        boxes = [(polygon, box) for polygon, box in boxes if not box.empty]
        if not boxes:
            return 0, 0
        whole = Box(*np.min([b for _, b in boxes], axis=0)[:2], *np.max([b for _, b in boxes], axis=0)[2:])
        covered = np.zeros((whole.y1 - whole.y0, whole.x1 - whole.x0), bool)
        for polygon, box in boxes:
            covered[_within(box, whole)] |= coverage(polygon, box) >= OPAQUE // 2
        x0, y0 = max(0, -whole.x0), max(0, -whole.y0)
        inside = covered[y0 : max(0, self.height - whole.y0), x0 : max(0, self.width - whole.x0)]
        return int(covered.sum()), int(inside.sum())

    def _expose(self, t: int) -> np.ndarray:
        """The image before the sensor, averaged over the time the shutter is open: (H, W) lanes."""
        if self.scene.shutter <= 0.0:
            return self._paint(t)
        times = t + self.scene.shutter * ((np.arange(SUBFRAMES) + 0.5) / SUBFRAMES - 0.5)
        total = sum(self._paint(float(s)) for s in times)
        return darken(total, np.uint64(OPAQUE // SUBFRAMES))

    def _paint(self, t: float) -> np.ndarray:
        canvas = self._backdrop(t).copy()
        for actor, skin in zip(self.scene.actors, self.scene.skins, strict=True):
            parts = place_parts(actor, self.scene.camera, t)
            if self.scene.shadow is not None and not actor.occludes:
                self._cast_shadow(canvas, actor, parts)
            texture = cross_fade(skin.first, skin.second, actor.change.level(t))
            for placed in parts:
                self._paint_part(canvas, placed, texture, skin)
        return canvas

    def _backdrop(self, t: float) -> np.ndarray:
        scene = self.scene
        lookup = scene.camera.background(t, scene.texels, scene.background.size)
        if self._still is None or self._still[0] != lookup:
            self._still = (lookup, sample(scene.background, *lookup.on_pixels(self._box)))
        return self._still[1]

    def _cast_shadow(self, canvas: np.ndarray, actor: Actor, parts: list[PlacedPart]) -> None:
        dx, dy, strength = self.scene.shadow
        for placed in parts:
            moved = placed.polygon + (dx * actor.radius, dy * actor.radius)
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
            image = np.clip(image + self._noise(t), 0, 255).astype(np.uint8)
        if scene.jpeg_quality is not None:
            image = _compress(image, scene.jpeg_quality)
        return image

    def _noise(self, t: int) -> np.ndarray:
        start = (
            int(np.random.SeedSequence(entropy=self.scene.seed, spawn_key=(99, t)).generate_state(1)[0]) % _NOISE_LENGTH
        )
        count = self.height * self.width * 3
        noise = np.roll(self.scene.noise, -start)
        return np.resize(noise, count).reshape(self.height, self.width, 3)


def _close(key: tuple[int, str], start: int, end: int, num_frames: int) -> list[Event]:
    """The event of a run of frames, and the return that follows it."""
    object_id, kind = key
    found = [Event(start, end, kind, object_id)]
    if kind == "leave" and end < num_frames:
        found.append(Event(end, end + 1, "return", object_id))
    return found


def _within(box: Box, outer: Box) -> tuple[slice, slice]:
    return slice(box.y0 - outer.y0, box.y1 - outer.y0), slice(box.x0 - outer.x0, box.x1 - outer.x0)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _compress(image: np.ndarray, quality: int) -> np.ndarray:
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def make_clip(
    seed: int,
    *,
    level: str = "mixed",
    num_frames: int = 64,
    height: int = 128,
    width: int = 128,
    num_objects: int = 2,
    difficulty: float = 0.5,
    late_objects: int | None = None,
    jpeg_quality: int | None = None,
) -> SyntheticVideo:
    """A clip that is a function of these arguments; see ClipSpec. Object 1 is in frame 0, others may enter late."""
    return build_clip(
        ClipSpec(
            seed=seed,
            level=level,
            num_frames=num_frames,
            height=height,
            width=width,
            num_objects=num_objects,
            difficulty=difficulty,
            late_objects=late_objects,
            jpeg_quality=jpeg_quality,
        )
    )


def build_clip(spec: ClipSpec) -> SyntheticVideo:
    """Cast until every object is well visible when it first appears, then dress; ValueError if that fails."""
    frame = Frame(spec.width, spec.height, spec.num_frames)
    number = sorted(LEVELS).index(spec.level)
    level = scale_level(LEVELS[spec.level], spec.difficulty)
    if spec.level == "mixed":
        level = mix_level(_stream(spec.seed, number, 1), level)
    for attempt in range(ATTEMPTS):
        caster = Caster(_stream(spec.seed, number, 2, attempt), frame, level, spec.num_objects, spec.late_objects)
        actors, camera = caster.cast(), caster.camera()
        if _starts_well(actors, camera, frame):
            return SyntheticVideo(_dress(_stream(spec.seed, number, 3), spec, level, frame, actors, camera))
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


def least_first_area(actors: tuple[Actor, ...]) -> float:
    """The least share of the frame an object covers in its entry frame: a hundredth, less in a crowd above six."""
    return min(0.01, 0.06 / sum(not a.occludes for a in actors))


def _starts_well(actors: tuple[Actor, ...], camera: Camera, frame: Frame) -> bool:
    """Whether each object is large enough in its entry frame and at most a fifth of it is hidden."""
    needed = frame.width * frame.height * least_first_area(actors)
    box = Box(0, 0, frame.width, frame.height)
    for entry in sorted({a.entry for a in actors if a.object_id}):
        front = actor_map(actors, camera, box, entry)
        for number, actor in enumerate(actors, start=1):
            if actor.object_id and actor.entry == entry:
                alone = np.count_nonzero(actor_map((actor,), camera, box, entry))
                shown = np.count_nonzero(front == number)
                if shown < needed or shown < 0.8 * alone:
                    return False
    return True


def _dress(
    rng: np.random.Generator,
    spec: ClipSpec,
    level: Level,
    frame: Frame,
    actors: tuple[Actor, ...],
    camera: Camera,
) -> Scene:
    """Give a cast its skins, the background, the light and the sensor."""
    longest = max(frame.width, frame.height)
    size = 128 if longest <= 128 else 256 if longest <= 320 else 512
    kind = str(rng.choice(level.backgrounds))
    backdrop = make_background(rng, size, kind=kind, vivid=0.65 * level.vivid, lines=level.lines)
    wardrobe = Wardrobe(rng, level, backdrop.reshape(-1, 3)[::7].mean(axis=0))
    paint_blobs(rng, backdrop, wardrobe, level.blobs)
    skins = wardrobe.dress(actors)
    angle, lit = rng.uniform(0, 2 * np.pi), rng.random() < level.shadow
    return Scene(
        frame=frame,
        num_objects=spec.num_objects,
        seed=spec.seed,
        actors=actors,
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


def _draw_quality(rng: np.random.Generator, spec: ClipSpec, level: Level) -> int | None:
    if spec.jpeg_quality is not None:
        return spec.jpeg_quality
    return int(rng.integers(35, 90)) if rng.random() < level.jpeg else None


def _sensor_noise(rng: np.random.Generator, sigma: float) -> np.ndarray | None:
    if sigma <= 0.0:
        return None
    return np.rint(rng.standard_normal(_NOISE_LENGTH) * sigma).astype(np.int16)
