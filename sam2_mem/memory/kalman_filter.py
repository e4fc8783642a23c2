"""Boxes of masks and a constant-velocity Kalman filter of boxes, as trackers use them; plain numbers, no state kept.

The filter is that of DeepSORT (Wojke et al. 2017) as SAMURAI (Yang et al. 2024) uses it: the state is centre x, centre
y, aspect ratio w / h and height h, each with a velocity, one step per frame. Its transition, measurement and noise
matrices never couple two of the four quantities, so the 8 x 8 filter is exactly four filters of (value, velocity), kept
here as such; only the noise levels of all four depend on the height.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 1024.0
"""Boxes are measured on a 1024 x 1024 grid laid over the square input, whatever its size. The filter itself is scale
equivariant (its noise is a share of the height, the aspect ratio has no unit); the grid fixes what "one pixel" means
for a mask of a single row."""

POSITION_STD = 1 / 20
VELOCITY_STD = 1 / 160
ASPECT_STD = 1e-2
ASPECT_VELOCITY_STD = 1e-5
ASPECT_MEASUREMENT_STD = 1e-1


@dataclass(frozen=True)
class MaskBox:
    """Corners: first and last pixel of a mask on the 1024 grid, both inclusive."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def measured(self) -> tuple[float, float, float, float]:
        """Centre x, centre y, aspect ratio, height; a height of zero counts as one."""
        width, height = self.x1 - self.x0, self.y1 - self.y0
        height = 1.0 if height == 0 else height
        return self.x0 + width / 2, self.y0 + height / 2, width / height, height


def box_iou(a: MaskBox | None, b: MaskBox | None) -> float:
    """0 where either box is missing or the boxes do not meet."""
    if a is None or b is None:
        return 0.0
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (a.area + b.area - width * height)


def occupied_lines(logits: Tensor) -> Tensor:
    """Which columns, then which rows of masks (N, h, w) have a pixel above 0, (N, w + h) bool."""
    inside = logits > 0
    return torch.cat([inside.any(dim=1), inside.any(dim=2)], dim=1)


def mask_boxes(logits: Tensor, occupied: Tensor | None = None) -> list[MaskBox | None]:
    """Boxes of masks, where logits are above 0; None for an empty mask. One transfer from the device.

    A pixel of a coarser mask stands for a block of the 1024 grid: a mask from column i to column j of w runs from i k
    to (j + 1) k - 1 with k = 1024 / w.

    Args:
        logits: (N, h, w).
        occupied: ``occupied_lines`` of them, where they are known.
    """
    width = logits.shape[-1]
    table = (occupied_lines(logits) if occupied is None else occupied).tolist()
    return [_box(line[:width], line[width:]) for line in table]


def _box(columns: list[bool], rows: list[bool]) -> MaskBox | None:
    if True not in columns:
        return None
    (x0, x1), (y0, y1) = _ends(columns), _ends(rows)
    return MaskBox(x0, y0, x1, y1)


def _ends(occupied: list[bool]) -> tuple[float, float]:
    scale = GRID / len(occupied)
    first = occupied.index(True)
    last = len(occupied) - occupied[::-1].index(True)
    return first * scale, last * scale - 1


@dataclass(frozen=True)
class Moving:
    """One quantity: value, velocity, and the covariance (``vv`` of the value, ``vs`` mixed, ``ss`` of the velocity)."""

    value: float
    speed: float
    vv: float
    vs: float
    ss: float

    def predicted(self, value_std: float, speed_std: float) -> Moving:
        return Moving(
            value=self.value + self.speed,
            speed=self.speed,
            vv=self.vv + 2 * self.vs + self.ss + value_std**2,
            vs=self.vs + self.ss,
            ss=self.ss + speed_std**2,
        )

    def updated(self, measured: float, std: float) -> Moving:
        total = self.vv + std**2
        innovation = measured - self.value
        return Moving(
            value=self.value + self.vv / total * innovation,
            speed=self.speed + self.vs / total * innovation,
            vv=self.vv - self.vv**2 / total,
            vs=self.vs - self.vv * self.vs / total,
            ss=self.ss - self.vs**2 / total,
        )


@dataclass(frozen=True)
class BoxFilter:
    """The filtered box; ``predict`` once a frame, then ``update`` with the box of the mask."""

    x: Moving
    y: Moving
    aspect: Moving
    height: Moving

    @staticmethod
    def start(box: MaskBox) -> BoxFilter:
        x, y, aspect, height = box.measured()
        position_std, velocity_std = 2 * POSITION_STD * height, 10 * VELOCITY_STD * height
        moving = [Moving(value, 0.0, position_std**2, 0.0, velocity_std**2) for value in (x, y, height)]
        ratio = Moving(aspect, 0.0, ASPECT_STD**2, 0.0, ASPECT_VELOCITY_STD**2)
        return BoxFilter(moving[0], moving[1], ratio, moving[2])

    def predict(self) -> BoxFilter:
        std, velocity_std = POSITION_STD * self.height.value, VELOCITY_STD * self.height.value
        return BoxFilter(
            self.x.predicted(std, velocity_std),
            self.y.predicted(std, velocity_std),
            self.aspect.predicted(ASPECT_STD, ASPECT_VELOCITY_STD),
            self.height.predicted(std, velocity_std),
        )

    def update(self, box: MaskBox) -> BoxFilter:
        x, y, aspect, height = box.measured()
        std = POSITION_STD * self.height.value
        return BoxFilter(
            self.x.updated(x, std),
            self.y.updated(y, std),
            self.aspect.updated(aspect, ASPECT_MEASUREMENT_STD),
            self.height.updated(height, std),
        )

    def box(self) -> MaskBox:
        width, height = self.aspect.value * self.height.value, self.height.value
        x0, y0 = self.x.value - width / 2, self.y.value - height / 2
        return MaskBox(x0, y0, x0 + width, y0 + height)
