"""Fixed sets of rendered videos, kept on disk because a training step is quicker than a renderer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_mem.files import atomic_path
from sam2_mem.training.clips import Clip, ClipSpec, augment, choose_times, fit, visible_objects

ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class RenderedClips(ABC):
    """Clips of a fixed set of rendered videos; each video is a function of the settings, ``seed`` and its number.

    Attributes:
        count: videos of the set.
        length: frames of a video.
        side: pixels of a side.
        folder: where rendered videos are kept; None renders again every time.
        seed: of the set.
        augmented: flips, turns, colours.
    """

    count: int
    length: int = 24
    side: int = 128
    folder: str | None = None
    seed: int = 0
    augmented: bool = True

    @abstractmethod
    def random_video(self, rng: np.random.Generator) -> Clip:
        """A video of the set."""

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        """Frames of a random video, forwards or backwards, in the first of which an object is visible."""
        for _ in range(ATTEMPTS):
            video = self.random_video(rng)
            times = choose_times(rng, len(video), spec)
            times = times if rng.random() < 0.5 else times[::-1]
            if visible_objects(video.ids[times[0]], spec.min_area):
                clip = fit(Clip(video.frames[times], video.ids[times]), spec.size)
                return augment(rng, clip) if self.augmented else clip
        raise ValueError(f"expected videos with visible objects, got none in {ATTEMPTS} tries of {self}")


def cached_clip(folder: str | None, name: str, render: Callable[[], Clip]) -> Clip:
    """The clip in the file ``name`` of ``folder``, rendered and written there if it is missing; None: always rendered."""
    if folder is None:
        return render()
    path = Path(folder).expanduser() / name
    if not path.is_file():
        clip = render()
        with atomic_path(path, concurrent=True) as part, part.open("wb") as file:
            np.savez(file, frames=clip.frames, ids=clip.ids)
    with np.load(path) as stored:
        return Clip(stored["frames"], stored["ids"])
