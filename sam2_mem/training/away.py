"""Clips in which an object goes away for longer than memory lasts, and comes back: of a long video a few frames before its absence,
some of the absence, and those of the return. For a network the absence is as long as the memory of it: FIFO memory has forgotten the
object after seven frames, whether they were taken from ten or from three hundred."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sam2_mem.training.clips import Clip, ClipSpec, augment, fit
from sam2_mem.training.rendered import RenderedClips

ATTEMPTS = 50


@dataclass(frozen=True, kw_only=True)
class AwayClips:
    """Clips of ``ClipSpec.num_frames`` frames: the prompted one, ``before``, those of the absence, ``after``.

    Attributes:
        videos: long ones, with absences.
        before: frames that follow the first, with the object: the next ones, or any before the absence.
        after: frames that follow the absence.
        late: the most frames between the return and the first of ``after``.
    """

    videos: RenderedClips
    before: int = 2
    after: int = 3
    late: int = 2

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        """A clip, forwards or backwards.

        Raises:
            ValueError: the spec leaves no frame for the absence, or no video has one.
        """
        absent = spec.num_frames - 1 - self.before - self.after
        if absent < 1:
            raise ValueError(
                f"expected clips of at least {2 + self.before + self.after} frames, got {spec.num_frames}; ask for longer ones"
            )
        for _ in range(ATTEMPTS):
            video = self.videos.random_video(rng)
            step = 1 if rng.random() < 0.5 else -1
            frames, ids = video.frames[::step], video.ids[::step]
            times = self._times(rng, ids, absent, spec.min_area)
            if times is not None:
                clip = fit(Clip(frames[times], ids[times]), spec.size)
                return augment(rng, clip) if self.videos.augmented else clip
        raise ValueError(f"expected videos with absences of {absent} frames, got none in {ATTEMPTS} tries of {self}")

    def _times(self, rng: np.random.Generator, ids: np.ndarray, absent: int, min_area: float) -> list[int] | None:
        """The frames of a clip, None if no object is away for long enough."""
        for obj_id in 1 + rng.permutation(int(ids.max())):
            area = (ids == obj_id).mean((1, 2))
            for start, end in _runs(rng, area == 0, absent):
                prompted = np.flatnonzero(area[: max(0, start - self.before)] >= min_area)
                if len(prompted) and end + self.after <= len(ids):
                    first = int(rng.choice(prompted))
                    later = min(end + int(rng.integers(self.late + 1)), len(ids) - self.after)
                    away = np.linspace(start, end - 1, absent).round().astype(int)
                    return [first, *self._following(rng, first, start), *away, *range(later, later + self.after)]
        return None

    def _following(self, rng: np.random.Generator, first: int, start: int) -> list[int]:
        """``before`` frames after the first and before the absence."""
        if rng.random() < 0.5:
            return list(range(first + 1, first + 1 + self.before))
        return sorted(rng.choice(np.arange(first + 1, start), self.before, replace=False).tolist())


def _runs(rng: np.random.Generator, absent: np.ndarray, least: int) -> list[tuple[int, int]]:
    """(start, end) of the absences of at least ``least`` frames, from a flag for each frame, in random order."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], absent, [False]]).astype(int)))
    runs = [(int(a), int(b)) for a, b in zip(changes[::2], changes[1::2]) if b - a >= least]
    return [runs[k] for k in rng.permutation(len(runs))]
