"""Procedural clips for training, drawn once and kept on disk, because a training step is quicker than the renderer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sam2_mem.synthetic.generator import sample_training_clip
from sam2_mem.training.clips import Clip, ClipWish, augment, choose_times, fit, visible_objects

ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class ProceduralClips:
    """A fixed set of procedural videos per level; clip k of a level is a function of (seed, level, k).

    Attributes:
        levels: share of every level in what is sampled. count: videos per level. length: frames of a video.
        side: pixels of a side. folder: where rendered videos are kept; None renders again every time.
        max_gap: largest gap in the underlying motion. seed: of the set. augmented: flips, turns, colours.
    """

    levels: Mapping[str, float]
    count: int = 500
    length: int = 24
    side: int = 128
    folder: str | None = None
    max_gap: int = 1
    difficulty: float = 0.5
    seed: int = 0
    augmented: bool = True

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels.values()) < 0 or sum(self.levels.values()) <= 0:
            raise ValueError(f"expected shares >= 0 of at least one level, got {dict(self.levels)}")

    def sample(self, rng: np.random.Generator, wish: ClipWish) -> Clip:
        """Frames of a random video of a random level in which an object is visible at first."""
        names = sorted(self.levels)
        shares = np.array([self.levels[n] for n in names])
        for _ in range(ATTEMPTS):
            level = names[int(rng.choice(len(names), p=shares / shares.sum()))]
            video = self.video(level, int(rng.integers(self.count)))
            times = choose_times(rng, len(video), wish)
            times = times if rng.random() < 0.5 else times[::-1]
            if visible_objects(video.ids[times[0]], wish.min_area):
                clip = fit(Clip(video.frames[times], video.ids[times]), wish.size)
                return augment(rng, clip) if self.augmented else clip
        raise ValueError(f"expected videos with visible objects, got none in {ATTEMPTS} tries of {names}")

    def video(self, level: str, number: int) -> Clip:
        """Video ``number`` of a level, from disk if it is there."""
        name = f"{level}_{self.difficulty:g}_{self.side}_{self.length}_{self.max_gap}_{self.seed}_{number:06d}.npz"
        return keep_clip(self.folder, name, lambda: self._render(level, number))

    def _render(self, level: str, number: int) -> Clip:
        name = int.from_bytes(level.encode(), "little")
        rng = np.random.default_rng([self.seed, number, name])
        frames, ids = sample_training_clip(
            rng,
            level=level,
            num_frames=self.length,
            size=self.side,
            max_gap=self.max_gap,
            difficulty=self.difficulty,
        )
        return Clip(frames, ids)


def keep_clip(folder: str | None, name: str, render: Callable[[], Clip]) -> Clip:
    """A clip from the file ``name`` of ``folder``, rendered and written there if it is missing; None: always
    rendered."""
    if folder is None:
        return render()
    path = Path(folder).expanduser() / name
    if not path.is_file():
        _write(path, render())
    with np.load(path) as stored:
        return Clip(stored["frames"], stored["ids"])


def _write(path: Path, clip: Clip) -> None:
    """So that a reader in another process never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, frames=clip.frames, ids=clip.ids)
    os.replace(part, path)
