"""Simulated users: which prompt an object gets first, where they click, and corrections of later frames.

As in SAM 2's training (Ravi et al. 2024, appendix D.2.2): the true mask, a box or a click on the first frame, and
corrective clicks sampled from the error region.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sam2_mem.prompts import Prompt


@dataclass(frozen=True, kw_only=True)
class PromptMix:
    """How objects are prompted.

    Attributes:
        mask: share of masks among first prompts.
        box: share of boxes.
        click: share of clicks.
        clicks: most corrective clicks that follow a first box or click on the same frame.
        correct: probability that an object is corrected by a click on one later frame.
        box_noise: largest shift of box corners, in parts of the box's sides.
        aside: probability that an object whose first prompt is its mask also gets a box or a click, whose answer counts in
            the loss and does not enter memory. It costs a pass of the decoder, and trains prompts while memory holds true
            masks.
    """

    mask: float = 0.5
    box: float = 0.25
    click: float = 0.25
    clicks: int = 1
    correct: float = 0.1
    box_noise: float = 0.1
    aside: float = 0.0

    def __post_init__(self) -> None:
        if min(self.mask, self.box, self.click) < 0 or self.mask + self.box + self.click <= 0:
            raise ValueError(f"expected shares >= 0 with a positive sum, got {self.mask}, {self.box}, {self.click}")
        for name in ("correct", "aside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected a probability {name} in 0..1, got {getattr(self, name)}")

    def draw(self, rng: np.random.Generator) -> str:
        """One of "mask", "box", "click"."""
        shares = np.array([self.mask, self.box, self.click])
        return ("mask", "box", "click")[int(rng.choice(3, p=shares / shares.sum()))]


def box_prompt(rng: np.random.Generator, obj_id: int, truth: np.ndarray, noise: float) -> Prompt:
    """The bounding box of ``truth`` (H, W) bool, each corner moved a little."""
    height, width = truth.shape
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    corners = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)
    sides = np.tile([corners[2] - corners[0], corners[3] - corners[1]], 2)
    moved = corners + rng.uniform(-noise, noise, 4) * sides
    moved[:2], moved[2:] = np.minimum(moved[:2], corners[2:] - 1), np.maximum(moved[2:], corners[:2] + 1)
    limit = np.array([width, height, width, height])
    return Prompt(obj_id, box=np.clip(moved, 0, limit).tolist(), size=(height, width))


def click_prompt(
    rng: np.random.Generator, obj_id: int, truth: np.ndarray, predicted: np.ndarray | None = None
) -> Prompt:
    """A click on ``truth`` (H, W) bool, or on the error of ``predicted``: positive on missed pixels, negative on others.

    The first click is drawn from the inner half of the object, corrections uniformly from the error region.
    """
    wrong = truth if predicted is None else truth != predicted
    if not wrong.any():
        wrong = truth if truth.any() else np.ones_like(truth)
    if predicted is None:
        distance = cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        wrong = distance >= 0.5 * distance.max()
    y, x = np.argwhere(wrong)[int(rng.integers(int(wrong.sum())))]
    return Prompt(obj_id, points=[[x + 0.5, y + 0.5]], labels=[int(truth[y, x])], size=truth.shape)
