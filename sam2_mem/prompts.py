"""What a user says about an object on a frame, and the checks of it."""

from __future__ import annotations

import logging
import operator
import reprlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

POINT_LABELS = {0: "background", 1: "foreground"}


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a user says about one object on one frame: clicks, a box, both, or a mask. What is given is copied; points, labels
    and boxes are held on the CPU.

    Args:
        obj_id: any integer.
        points: (N, 2) x, y positions.
        labels: (N) 1 foreground, 0 background.
        box: (4) x0, y0, x1, y1; one that reaches beyond the picture is cut to it, with a warning.
        mask: (H, W) bool or 0/1; may be empty ("the object is not here").
        size: (H, W) of the picture the coordinates are measured in; a mask brings its own. None leaves it to whoever
            knows the frame; coordinates are checked once it is known.

    Raises:
        ValueError: says what was expected, what came and what to do.
    """

    obj_id: int
    points: Any = None
    labels: Any = None
    box: Any = None
    mask: Any = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "obj_id", as_integer(self.obj_id, "an integer object id"))
        if self.mask is not None:
            if self.points is not None or self.box is not None or self.labels is not None:
                raise ValueError("expected either a mask or points/box, got both; send them as two prompts")
            set_(self, "mask", _mask(self.mask))
            set_(self, "size", tuple(self.mask.shape))
            return
        if (self.points is None) != (self.labels is None):
            present, missing = ("labels", "points") if self.points is None else ("points", "labels")
            raise ValueError(
                f"expected points and labels together, got {present} without {missing}; give one label per point"
            )
        if self.points is None and self.box is None:
            raise ValueError("expected points with labels, a box or a mask, got none of them")
        if self.points is not None:
            points, labels = _points(self.points, self.labels, self.size)
            set_(self, "points", points)
            set_(self, "labels", labels)
        if self.box is not None:
            set_(self, "box", _box(self.box, self.size))


def as_integer(value: Any, name: str) -> int:
    """An integer of any kind, a NumPy scalar or a tensor of one among them; ValueError, saying what was expected, for others."""
    try:
        if isinstance(value, bool):
            raise TypeError("a truth value")
        return operator.index(value)
    except TypeError as error:
        raise ValueError(f"expected {name}, got {value!r}") from error


def as_tensor(value: Any, name: str) -> Tensor:
    """A copy of ``value`` as a tensor, whatever its strides and its byte order are.

    Args:
        value: tensor, array or nested list of numbers.
        name: what an error calls it.

    Raises:
        ValueError: ``value`` is something else, or its rows differ in length.
    """
    try:
        if isinstance(value, Tensor):
            return value.detach().clone()
        return torch.from_numpy(_native(np.array(_without_tensors(value))))
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"expected {name} as a tensor, array or nested list of numbers, got {reprlib.repr(value)}"
        raise ValueError(f"{text} ({error})") from error


def _without_tensors(value: Any) -> Any:
    """Lists of tensors as lists of arrays, which need not be on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return [_without_tensors(item) for item in value] if isinstance(value, list | tuple) else value


def _native(array: np.ndarray) -> np.ndarray:
    """``array`` in a type that torch computes in; TypeError for what is no real number."""
    if array.dtype.kind not in "biuf":
        raise TypeError(f"its elements are of type {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _mask(value: Any) -> Tensor:
    mask = as_tensor(value, "a mask")
    if mask.ndim != 2:
        hint = "; send one prompt per object" if mask.ndim == 3 else ""
        raise ValueError(f"expected a mask of shape (H, W), got {tuple(mask.shape)}{hint}")
    if mask.numel() == 0:
        raise ValueError(f"expected a mask with at least one pixel, got shape {tuple(mask.shape)}")
    if mask.is_floating_point() and not torch.isfinite(mask).all():
        raise ValueError("expected a mask of 0 and 1, got NaN or infinite values")
    if mask.dtype is not torch.bool:
        binary = (mask == 0) | (mask == 1)
        if not binary.all():
            low, high = mask.min().item(), mask.max().item()
            raise ValueError(
                f"expected a mask of 0 and 1 (or bool), got values from {low:g} to {high:g}; "
                "threshold it first, or select one object id of a label image: mask == obj_id"
            )
    return mask.bool()


def _points(points: Any, labels: Any, size: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
    points = as_tensor(points, "points").float().cpu()
    labels = as_tensor(labels, "labels").cpu()
    if points.ndim == 3 and points.shape[0] == 1:
        points, labels = points[0], labels.reshape(-1)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"expected points of shape (N, 2) as x, y, got {tuple(points.shape)}")
    if labels.ndim != 1 or labels.shape[0] != points.shape[0]:
        raise ValueError(
            f"expected one label per point, labels of shape ({points.shape[0]},), got {tuple(labels.shape)}"
        )
    if points.shape[0] == 0:
        raise ValueError("expected at least one point, got none")
    wrong = sorted({v for v in labels.tolist() if v not in POINT_LABELS})
    if wrong:
        raise ValueError(f"expected point labels 1 (foreground) or 0 (background), got {wrong}; give boxes as box=")
    check_points(points, size)
    return points, labels.to(torch.int32)


def _box(box: Any, size: tuple[int, int] | None) -> Tensor:
    box = as_tensor(box, "a box").float().cpu()
    if box.numel() != 4:
        raise ValueError(f"expected a box of four numbers x0, y0, x1, y1, got shape {tuple(box.shape)}")
    return fitted_box(box.reshape(4), size)


def fitted_box(box: Tensor, size: tuple[int, int] | None) -> Tensor:
    """A box (4) cut to a picture of ``size`` (H, W), with a warning where that changes it; as it is where ``size`` is None.

    Raises:
        ValueError: NaN, corners in another order, a box outside the picture or in other units.
    """
    _check_finite(box.reshape(2, 2), "box corner")
    x0, y0, x1, y1 = box.tolist()
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"expected a box with x0 < x1 and y0 < y1, got {box.tolist()}; a box is x0, y0, x1, y1, not x, y, w, h"
        )
    if size is None:
        return box
    height, width = size
    too_large = x1 - x0 > 2 * width or y1 - y0 > 2 * height
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height or too_large:
        raise ValueError(f"expected a box inside {_picture(size)}, got {box.tolist()}; {_UNITS}")
    high = box.new_tensor([width, height, width, height])
    inside = torch.minimum(box.clamp(min=0), high)
    if not torch.equal(inside, box):
        logger.warning("a box reaches beyond %s: %s is cut to %s", _picture(size), box.tolist(), inside.tolist())
    return inside


_UNITS = "coordinates are x, y in pixels (in 0..1 when normalize_coords=False)"


def _picture(size: tuple[int, int]) -> str:
    return f"the picture of width {size[1]} and height {size[0]}"


def _check_finite(xy: Tensor, name: str) -> None:
    if not torch.isfinite(xy).all():
        raise ValueError(f"expected finite coordinates, got a {name} at {xy.tolist()}")


def check_points(xy: Tensor, size: tuple[int, int] | None) -> None:
    """ValueError unless all points (N, 2) are in a picture of ``size`` (H, W), or finite where ``size`` is None."""
    _check_finite(xy, "point")
    if size is None:
        return
    height, width = size
    outside = (xy < 0).any(1) | (xy[:, 0] > width) | (xy[:, 1] > height)
    if outside.any():
        x, y = xy[outside][0].tolist()
        raise ValueError(f"expected every point inside {_picture(size)}, got ({x:g}, {y:g}); {_UNITS}")
