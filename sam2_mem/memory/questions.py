"""Questions of a policy to the network: where is what a candidate, or a remembered frame, shows on this frame or on earlier ones?

A policy with ``needs.window`` may ask on any frame, before it chooses. The tracker has the network read the memory of the
source alone, for all objects in one batch, and the answers come in ``Hypotheses.answers``, in the order of the probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from sam2_mem.memory.kalman_filter import MaskBox, box_iou
from sam2_mem.types import CandidateId, FrameContext, Hypotheses, MemoryEntry

Boxes = tuple[MaskBox | None, ...]
"""Boxes (K) of masks on several frames, None where the object is absent."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Where is the object, if nothing but ``source`` is remembered?

    Attributes:
        source: a candidate of this frame, or an entry.
        ages: frames to look at, counted backwards in the direction of tracking; 0 is this one.
    """

    source: CandidateId | MemoryEntry
    ages: tuple[int, ...]


@dataclass(frozen=True)
class ProbeAnswer:
    """What the network says to a probe.

    Attributes:
        ages: (K) those asked for whose features are still held.
        boxes: (K) of the mask of highest predicted IoU.
        shown_boxes: (K) of the mask of this object that was shown there; None also where there is none.
        neighbours: (N)(K) the same of every other object.
    """

    ages: tuple[int, ...]
    boxes: Boxes
    shown_boxes: Boxes
    neighbours: tuple[Boxes, ...]


@runtime_checkable
class Probing(Protocol):
    """Ability of a policy with ``needs.window``: asks the network."""

    def probes(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> Sequence[Probe]:
        """What to ask on ``frame``, before ``choose``; nothing on most frames, since each probe costs a row through the network for
        every age. Pure."""


def mean_overlap(a: Boxes, b: Boxes) -> float:
    """Mean IoU of boxes on the same K frames; two that are both missing agree; 0 for no frame."""
    overlaps = [1.0 if x is None and y is None else box_iou(x, y) for x, y in zip(a, b, strict=True)]
    return sum(overlaps) / len(overlaps) if overlaps else 0.0
