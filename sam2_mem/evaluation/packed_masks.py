"""The masks of a pass over a video in few bytes, and the annotated video that they are scored as."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject, VideoPart
from sam2_mem.tracking.vos import FrameMasks


@dataclass
class PackedMasks:
    """The masks of a pass in a few bytes each: (H, W) bool by frame name and object."""

    size: tuple[int, int] = (0, 0)
    _packed: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def add(self, output: FrameMasks) -> None:
        self.size = output.frame.image.shape[0], output.frame.image.shape[1]
        packed = {k: zlib.compress(np.packbits(mask).tobytes(), 1) for k, mask in output.masks.items() if mask.any()}
        self._packed[output.frame.name] = packed

    @property
    def names(self) -> Sequence[str]:
        return tuple(self._packed)

    def mask(self, name: str, obj_id: int) -> np.ndarray:
        """(H, W) bool; empty for an object that is not there."""
        packed = self._on_frame(name).get(obj_id)
        if packed is None:
            return np.zeros(self.size, bool)
        bits = np.frombuffer(zlib.decompress(packed), np.uint8)
        return np.unpackbits(bits, count=self.size[0] * self.size[1]).reshape(self.size).view(bool)

    def ids(self, name: str) -> np.ndarray:
        """(H, W); where masks overlap, the lowest id."""
        objects = sorted(self._on_frame(name), reverse=True)
        ids = np.zeros(self.size, np.uint8 if max(objects, default=0) < 256 else np.uint16)
        for obj_id in objects:
            ids[self.mask(name, obj_id)] = obj_id
        return ids

    def _on_frame(self, name: str) -> dict[int, bytes]:
        if name not in self._packed:
            raise ValueError(f"expected a prediction for frame {name}, got none; the video has no such frame")
        return self._packed[name]


class PredictedVideo(AnnotatedVideo):
    """The truth of a video beside packed masks. ``obj_id``: the only object, where objects have files of their own."""

    def __init__(self, annotated: AnnotatedVideo, masks: PackedMasks, obj_id: int | None = None) -> None:
        self.name = annotated.name
        self.annotated, self.masks, self.obj_id = annotated, masks, obj_id

    @cached_property
    def frames(self) -> Sequence[str]:
        """Of a video that was cut short, those there are."""
        return self._predicted(self.annotated.frames)

    @cached_property
    def listed(self) -> Sequence[ListedObject]:
        cut = [(item, self._predicted(item.frames)) for item in self.annotated.listed]
        return tuple(
            replace(item, frames=frames, length=len(frames) if item.length else 0)
            for item, frames in cut
            if frames or not item.frames
        )

    def _predicted(self, frames: Sequence[str]) -> tuple[str, ...]:
        names = set(self.masks.names)
        return tuple(frame for frame in frames if frame in names)

    def truth(self, frame: str) -> np.ndarray:
        return self.annotated.truth(frame)

    def prediction(self, frame: str) -> np.ndarray:
        if self.obj_id is None:
            return self.masks.ids(frame)
        return self.masks.mask(frame, self.obj_id).astype(np.uint8)

    def parts(self) -> Sequence[VideoPart]:
        videos = self.annotated.parts()
        return [VideoPart(PredictedVideo(part.video, self.masks, part.obj_id), part.obj_id) for part in videos]
