"""Validation during training: sets of clips that the averaged weights are scored on, to watch and to choose by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from sam2_mem._moved import renamed_fields
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.training.clips import Clip, ClipSource, ClipSpec
from sam2_mem.training.validation import NetworkMethod, held_out, run_method, still, summarise

SEED = 40_000_000
"""Of clips to choose by: not among those of the report (10,000,000), of ``tools/train.py eval --validation`` and of the tests."""


class ClipSet(Protocol):
    """Clips that are the same every time."""

    def clips(self) -> Sequence[Clip]: ...


@dataclass(frozen=True, kw_only=True)
class HeldOutLevels:
    """Procedural clips of some levels.

    Attributes:
        levels: see ``sam2_mem.synthetic.scenes``.
        count: clips per level.
        num_frames: frames of a clip.
        size: side of the square frames, in pixels.
        still: the first frame of each, repeated, on which masks must not drift.
        first_seed: seed of the first clip of every level.
    """

    levels: Sequence[str]
    count: int = 2
    num_frames: int = 40
    size: int = 128
    still: bool = False
    first_seed: int = SEED

    def clips(self) -> Sequence[Clip]:
        length = 1 if self.still else self.num_frames
        clips = [
            clip
            for level in self.levels
            for clip in held_out(level, self.count, num_frames=length, size=self.size, first_seed=self.first_seed)
        ]
        return [still(c, self.num_frames) for c in clips] if self.still else clips


@renamed_fields(wish="clip_spec")
@dataclass(frozen=True, kw_only=True)
class SampledClips:
    """``count`` clips of any source, drawn once with ``seed``: of a real data set, for example."""

    source: ClipSource
    clip_spec: ClipSpec
    count: int = 8
    seed: int = SEED

    def clips(self) -> Sequence[Clip]:
        return [self.source.sample(np.random.default_rng([self.seed, k]), self.clip_spec) for k in range(self.count)]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores every ``every`` steps; the weights of the best mean over ``sets`` are kept.

    Attributes:
        every: steps; 0: never.
        sets: by name; the score of a set is J, the mean over its objects of the frames on which they are visible, tracked
            from their masks on the first frame with the policy of the training.
    """

    every: int = 0
    sets: Mapping[str, ClipSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 0 or (self.every and not self.sets):
            raise ValueError(
                f"expected every >= 0 with at least one set, got {self.every} and sets {sorted(self.sets)}"
            )

    @cached_property
    def _clips(self) -> dict[str, Sequence[Clip]]:
        return {name: clip_set.clips() for name, clip_set in self.sets.items()}

    def scores(self, model: SAM2, policy: MemoryPolicy) -> dict[str, float]:
        """J of every set."""
        method = NetworkMethod(model, policy)
        return {name: summarise(run_method(method, clips)).j for name, clips in self._clips.items()}
