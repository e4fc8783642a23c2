"""Clips of procedural videos, see ``sam2_mem.synthetic``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sam2_mem._moved import renamed
from sam2_mem.synthetic.generator import sample_training_clip
from sam2_mem.training.clips import Clip
from sam2_mem.training.rendered import RenderedClips, cached_clip


@dataclass(frozen=True, kw_only=True)
class ProceduralClips(RenderedClips):
    """Clips of a fixed set of procedural videos per level; ``count`` is that of each level.

    Attributes:
        levels: share of every level in what is sampled.
        max_gap: largest gap in the underlying motion.
        difficulty: 0..1; 0.5 is the level as it is.
    """

    levels: Mapping[str, float]
    count: int = 500
    max_gap: int = 1
    difficulty: float = 0.5

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels.values()) < 0 or sum(self.levels.values()) <= 0:
            raise ValueError(f"expected shares >= 0 of at least one level, got {dict(self.levels)}")

    def random_video(self, rng: np.random.Generator) -> Clip:
        names = sorted(self.levels)
        shares = np.array([self.levels[n] for n in names])
        level = names[int(rng.choice(len(names), p=shares / shares.sum()))]
        return self.video(level, int(rng.integers(self.count)))

    def video(self, level: str, number: int) -> Clip:
        """Video ``number`` of a level, from disk if it is there."""
        name = f"{level}_{self.difficulty:g}_{self.side}_{self.length}_{self.max_gap}_{self.seed}_{number:06d}.npz"
        return cached_clip(self.folder, name, lambda: self._render(level, number))

    def _render(self, level: str, number: int) -> Clip:
        rng = np.random.default_rng([self.seed, number, int.from_bytes(level.encode(), "little")])
        frames, ids = sample_training_clip(
            rng,
            level=level,
            num_frames=self.length,
            size=self.side,
            max_gap=self.max_gap,
            difficulty=self.difficulty,
        )
        return Clip(frames, ids)


__getattr__ = renamed(__name__)
