"""Videos with masks on disk, as clips: DAVIS, YouTube-VOS, MOSE (palette PNG), SA-V (PNG per object, or masklet JSON).

| layout | frames | masks |
|---|---|---|
| ``davis`` | ``JPEGImages/480p/<video>/00000.jpg`` | ``Annotations/480p/<video>/00000.png`` |
| ``davis2016`` | the same, with the object at 255 | |
| ``youtube_vos`` | ``[train/]JPEGImages/<video>/00000.jpg`` | ``[train/]Annotations/<video>/00000.png`` |
| ``mose`` | the same | |
| ``sav_png`` | ``JPEGImages_24fps/<video>/00000.jpg`` | ``Annotations_6fps/<video>/<object>/00000.png`` |
| ``sav_json`` | ``<video>.mp4``, or the same | ``<video>_manual.json``: run lengths at 6 fps |

Only frames that have masks are used. Palette values are object ids; 255 is void, in DAVIS 2016 the object.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from sam2_mem._moved import renamed
from sam2_mem.training.clips import Clip, ClipSource, ClipSpec, augment, choose_times, visible_objects
from sam2_mem.video import open_video
from sam2_mem.video.sources import VIDEO_EXTENSIONS
from sam2_mem.video.stored import IMAGE_EXTENSIONS

ATTEMPTS = 20
VOID = 255


class AnnotatedFrames(ABC):
    """The frames of a video on disk that have masks; ``frames`` are the stems of their files."""

    frames: Sequence[str]

    @abstractmethod
    def image(self, stem: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    @abstractmethod
    def ids(self, stem: str) -> np.ndarray:
        """(H, W) uint8, the object at each pixel or 0."""

    def clip(self, times: Iterable[int], size: int) -> Clip:
        """Frames ``times`` resized to squares of side ``size``."""
        stems = [self.frames[t] for t in times]
        images = [cv2.resize(self.image(s), (size, size), interpolation=cv2.INTER_AREA) for s in stems]
        ids = [cv2.resize(self.ids(s), (size, size), interpolation=cv2.INTER_NEAREST) for s in stems]
        return Clip(np.stack(images), np.stack(ids))


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def read_ids(path: Path, *, void_is_object: bool = False) -> np.ndarray:
    """A palette or grey PNG as (H, W) uint8 ids; 255 becomes 0, or 1 with ``void_is_object``."""
    with Image.open(path) as image:
        ids = np.array(image if image.mode in ("P", "L") else image.convert("L"))
    ids = ids.astype(np.uint8)
    ids[ids == VOID] = 1 if void_is_object else 0
    return ids


def _merged(masks: Mapping[int, np.ndarray]) -> np.ndarray:
    """Bool masks (H, W) by object id as ids (H, W) uint8; where they overlap the last is on top."""
    ids = np.zeros(next(iter(masks.values())).shape, np.uint8)
    for obj_id, mask in masks.items():
        ids[mask] = obj_id
    return ids


class PaletteFrames(AnnotatedFrames):
    """Frames and palette masks in one folder each."""

    def __init__(self, images: Path, masks: Path, *, void_is_object: bool = False) -> None:
        self._images = {p.stem: p for p in images.iterdir() if p.suffix.lower() in IMAGE_EXTENSIONS}
        self._masks = {p.stem: p for p in masks.glob("*.png")}
        self._void_is_object = void_is_object
        self.frames = sorted(self._images.keys() & self._masks.keys())

    def image(self, stem: str) -> np.ndarray:
        return read_image(self._images[stem])

    def ids(self, stem: str) -> np.ndarray:
        return read_ids(self._masks[stem], void_is_object=self._void_is_object)


class ObjectFolderFrames(AnnotatedFrames):
    """SA-V's validation layout: one folder of binary masks per object."""

    def __init__(self, images: Path, masks: Path) -> None:
        self._images = {p.stem: p for p in images.glob("*.jpg")}
        self._objects = sorted(p for p in masks.iterdir() if p.is_dir())
        self.frames = sorted({p.stem for folder in self._objects for p in folder.glob("*.png")} & self._images.keys())

    def image(self, stem: str) -> np.ndarray:
        return read_image(self._images[stem])

    def ids(self, stem: str) -> np.ndarray:
        paths = {number: folder / f"{stem}.png" for number, folder in enumerate(self._objects[:254], start=1)}
        return _merged({n: read_ids(path, void_is_object=True) > 0 for n, path in paths.items() if path.is_file()})


class MaskletFrames(AnnotatedFrames):
    """SA-V's training layout: a JSON of run-length masks, ``masklet[frame][object]``, on every fourth frame of an mp4."""

    EVERY = 4

    def __init__(self, annotation: Path) -> None:
        self._annotation = annotation
        self._video = annotation.with_name(annotation.name.rsplit("_", 1)[0] + ".mp4")
        self._folder = annotation.parent / "JPEGImages_24fps" / self._video.stem
        self.frames = [f"{i * self.EVERY:05d}" for i in range(len(self._masklet))]

    @cached_property
    def _masklet(self) -> list[list[dict]]:
        return json.loads(self._annotation.read_text())["masklet"]

    def image(self, stem: str) -> np.ndarray:
        path = self._folder / f"{stem}.jpg"
        return read_image(path) if path.is_file() else self._decode(int(stem))

    def _decode(self, index: int) -> np.ndarray:
        capture = cv2.VideoCapture(str(self._video.absolute()))
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        decoded, image = capture.read()
        capture.release()
        if not decoded:
            raise ValueError(f"expected frame {index} in {self._video} or {self._folder}, got none; is it whole?")
        return np.ascontiguousarray(image[..., ::-1])

    def ids(self, stem: str) -> np.ndarray:
        codes = self._masklet[int(stem) // self.EVERY]
        return _merged({number: rle_codec.decode(code) > 0 for number, code in enumerate(codes[:254], start=1)})


def _palette_videos(root: Path, images: str, masks: str, *, void_is_object: bool = False) -> list[AnnotatedFrames]:
    base = root / "train" if (root / "train" / images).is_dir() else root
    folders = sorted(p for p in (base / masks).glob("*") if p.is_dir())
    return [PaletteFrames(base / images / p.name, p, void_is_object=void_is_object) for p in folders]


def open_videos(layout: str, root: str | Path) -> list[AnnotatedFrames]:
    """All videos of a folder in one of the layouts above; ValueError if there is none."""
    root = Path(root).expanduser()
    if layout not in LAYOUTS:
        raise ValueError(f"expected a layout out of {', '.join(LAYOUTS)}, got {layout!r}")
    videos = [v for v in LAYOUTS[layout](root) if v.frames]
    if not videos:
        raise ValueError(
            f"expected videos with masks in {root} laid out as {layout}, got none; see sam2_mem/training/folders.py"
        )
    return videos


LAYOUTS: Mapping[str, Callable[[Path], list[AnnotatedFrames]]] = {
    "davis": lambda root: _palette_videos(root, "JPEGImages/480p", "Annotations/480p"),
    "davis2016": lambda root: _palette_videos(root, "JPEGImages/480p", "Annotations/480p", void_is_object=True),
    "youtube_vos": lambda root: _palette_videos(root, "JPEGImages", "Annotations"),
    "mose": lambda root: _palette_videos(root, "JPEGImages", "Annotations"),
    "sav_png": lambda root: [
        ObjectFolderFrames(root / "JPEGImages_24fps" / p.name, p)
        for p in sorted((root / "Annotations_6fps").glob("*"))
        if p.is_dir()
    ],
    "sav_json": lambda root: [MaskletFrames(p) for p in sorted(root.rglob("*_manual.json"))],
}


@dataclass(frozen=True, kw_only=True)
class FolderClips:
    """Clips of the videos of a data set.

    Attributes:
        layout: a key of ``LAYOUTS``.
        root: folder of the data set.
        augmented: flips and colours.
    """

    layout: str
    root: str
    augmented: bool = True

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"expected a layout out of {', '.join(LAYOUTS)}, got {self.layout!r}")

    @cached_property
    def videos(self) -> list[AnnotatedFrames]:
        return open_videos(self.layout, self.root)

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        """Frames of a random video, forwards or backwards, with an object in the first one."""
        for _ in range(ATTEMPTS):
            video = self.videos[int(rng.integers(len(self.videos)))]
            if len(video.frames) < spec.num_frames:
                continue
            times = choose_times(rng, len(video.frames), spec)
            clip = video.clip(times if rng.random() < 0.5 else times[::-1], spec.size)
            if visible_objects(clip.ids[0], spec.min_area):
                return augment(rng, clip, turned=False) if self.augmented else clip
        raise ValueError(
            f"expected {spec.num_frames} frames with a visible object, got none in {ATTEMPTS} tries in {self.root}; "
            "ask for shorter clips or a smaller min_area"
        )


@dataclass(frozen=True, kw_only=True)
class UnlabelledClips:
    """Clips of videos without masks, for distillation.

    Attributes:
        root: folder that holds, at any depth, video files and folders of images.
        augmented: flips and colours.
    """

    root: str
    augmented: bool = True

    @cached_property
    def videos(self) -> list[Path]:
        root = Path(self.root).expanduser()
        files = {p for p in root.rglob("*") if p.suffix.lower() in VIDEO_EXTENSIONS}
        folders = {p.parent for p in root.rglob("*") if p.suffix.lower() in IMAGE_EXTENSIONS}
        if not files | folders:
            raise ValueError(f"expected video files or folders of images in {root}, got none; give another folder")
        return sorted(files | folders)

    @cached_property
    def _lengths(self) -> dict[Path, int]:
        """Numbers of frames, as far as they have been counted: a video file is decoded for it."""
        return {}

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        """Frames of a random video, forwards or backwards; ids are empty."""
        for _ in range(ATTEMPTS):
            path = self.videos[int(rng.integers(len(self.videos)))]
            with open_video(path, prefetch=0) as video:
                if path not in self._lengths:
                    self._lengths[path] = video.count_frames()
                length = self._lengths[path]
                if length < spec.num_frames:
                    continue
                times = choose_times(rng, length, spec)
                shape = (spec.size, spec.size)
                images = [cv2.resize(video[int(t)].image, shape, interpolation=cv2.INTER_AREA) for t in times]
            frames = np.stack(images if rng.random() < 0.5 else images[::-1])
            clip = Clip(frames, np.zeros(frames.shape[:3], np.uint8), labelled=False)
            return augment(rng, clip, turned=False) if self.augmented else clip
        raise ValueError(f"expected videos of {spec.num_frames} frames in {self.root}, got none in {ATTEMPTS} tries")


@dataclass(frozen=True, kw_only=True)
class MixedClips:
    """Several sources; ``shares``: how often each is asked, relative to the sum."""

    sources: Sequence[ClipSource]
    shares: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.shares) or not self.sources or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ValueError(
                f"expected one share >= 0 per source, got {len(self.sources)} sources and {list(self.shares)}"
            )

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        shares = np.array(self.shares, dtype=float)
        return self.sources[int(rng.choice(len(shares), p=shares / shares.sum()))].sample(rng, spec)


__getattr__ = renamed(__name__)
