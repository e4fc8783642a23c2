"""A small data set for tests of training: one procedural clip laid out as DAVIS 2017."""

from __future__ import annotations

from pathlib import Path

from sam2_mem.evaluation.synthetic import SyntheticClip, SyntheticSet
from sam2_mem.synthetic.generator import SyntheticSpec


def write_davis_clip(root: Path, *, num_frames: int, side: int = 128) -> None:
    """``JPEGImages/480p/clip`` and ``Annotations/480p/clip`` in ``root``, two objects of the easiest level."""
    spec = SyntheticSpec(seed=5, level="easy", num_frames=num_frames, height=side, width=side)
    SyntheticSet("one clip", (SyntheticClip("clip", "easy", spec),)).export(root, quality=95)
