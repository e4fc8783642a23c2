"""The masks of a pass over a video, kept in few bytes, and the video that they are scored as."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject, VideoPart
from sam2_mem.tracking.vos import FrameMasks


@dataclass
class KeptMasks:
    """The masks of a pass in a few bytes each: (H, W) bool by frame name and object."""

    size: tuple[int, int] = (0, 0)
    _packed: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def keep(self, shown: FrameMasks) -> None:
        self.size = shown.frame.image.shape[0], shown.frame.image.shape[1]
        packed = {k: zlib.compress(np.packbits(mask).tobytes(), 1) for k, mask in shown.masks.items() if mask.any()}
        self._packed[shown.frame.name] = packed

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._packed)

    def mask(self, name: str, obj_id: int) -> np.ndarray:
        """(H, W) bool; empty for an object that is not there."""
        packed = self._of(name).get(obj_id)
        if packed is None:
            return np.zeros(self.size, bool)
        bits = np.frombuffer(zlib.decompress(packed), np.uint8)
        return np.unpackbits(bits, count=self.size[0] * self.size[1]).reshape(self.size).view(bool)

    def ids(self, name: str) -> np.ndarray:
        """(H, W); where masks overlap, the lowest id."""
        objects = sorted(self._of(name), reverse=True)
        ids = np.zeros(self.size, np.uint8 if max(objects, default=0) < 256 else np.uint16)
        for obj_id in objects:
            ids[self.mask(name, obj_id)] = obj_id
        return ids

    def _of(self, name: str) -> dict[int, bytes]:
        if name not in self._packed:
            raise ValueError(f"expected a prediction for frame {name}, got none; the video has no such frame")
        return self._packed[name]


@dataclass(frozen=True)
class PredictedVideo(AnnotatedVideo):
    """Truth beside kept masks. ``obj_id``: the only object, where objects have files of their own."""

    real: AnnotatedVideo
    kept: KeptMasks
    obj_id: int | None = None

    @property
    def name(self) -> str:
        return self.real.name

    @cached_property
    def frames(self) -> Sequence[str]:
        """Of a video that was cut short, those there are."""
        seen = set(self.kept.names)
        return tuple(frame for frame in self.real.frames if frame in seen)

    @cached_property
    def listed(self) -> Sequence[ListedObject]:
        seen = set(self.kept.names)
        shown = [(one, tuple(f for f in one.frames if f in seen)) for one in self.real.listed]
        return tuple(
            ListedObject(obj_id=one.obj_id, frames=frames, length=len(frames) if one.length else 0, group=one.group)
            for one, frames in shown
            if frames or not one.frames
        )

    def truth(self, frame: str) -> np.ndarray:
        return self.real.truth(frame)

    def prediction(self, frame: str) -> np.ndarray:
        if self.obj_id is None:
            return self.kept.ids(frame)
        return self.kept.mask(frame, self.obj_id).astype(np.uint8)

    def parts(self) -> Sequence[VideoPart]:
        parts = self.real.parts()
        return [VideoPart(PredictedVideo(part.video, self.kept, part.obj_id), part.obj_id) for part in parts]
