"""Parts of automatic masks: grids of points, crops, boxes, run lengths. The names, arguments and results of SAM 2's
``utils.amg``."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Sequence
from copy import deepcopy
from itertools import product
from math import ceil
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

RLE = dict[str, Any]
"""Run lengths of a mask in column order: ``size`` (height, width) and ``counts``, background first."""


class MaskData:
    """Columns of equal length under names: tensors, arrays or lists, one row a mask.

    Args:
        **columns: by name.
    """

    def __init__(self, **columns: Any) -> None:
        self._columns: dict[str, Any] = {}
        for name, column in columns.items():
            self[name] = column

    def __setitem__(self, name: str, column: Any) -> None:
        if not isinstance(column, list | np.ndarray | Tensor):
            raise TypeError(f"expected {name} as a list, an array or a tensor, got {type(column).__name__}")
        self._columns[name] = column

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __delitem__(self, name: str) -> None:
        del self._columns[name]

    def items(self) -> ItemsView[str, Any]:
        return self._columns.items()

    def filter(self, keep: Tensor) -> None:
        """Rows by a mask, or by numbers in a new order."""
        for name, column in self.items():
            self._columns[name] = _rows(column, keep)

    def cat(self, new_stats: MaskData) -> None:
        """Append the rows of another one; names that are not here yet are taken over."""
        for name, column in new_stats.items():
            own = self._columns.get(name)
            if own is None:
                self._columns[name] = deepcopy(column)
            elif isinstance(column, Tensor):
                self._columns[name] = torch.cat([own, column])
            elif isinstance(column, np.ndarray):
                self._columns[name] = np.concatenate([own, column])
            else:
                self._columns[name] = own + deepcopy(column)

    def to_numpy(self) -> None:
        """Tensors as float32 arrays."""
        for name, column in self.items():
            if isinstance(column, Tensor):
                self._columns[name] = column.detach().float().cpu().numpy()


def _rows(column: Any, keep: Tensor) -> Any:
    if isinstance(column, Tensor):
        return column[keep.to(column.device)]
    if isinstance(column, np.ndarray):
        return column[keep.cpu().numpy()]
    numbers = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
    return [column[number] for number in numbers.tolist()]


# -- points, crops and batches --------------------------------------------------------------------------------------


def build_point_grid(n_per_side: int) -> np.ndarray:
    """Middles of the cells of a grid over the unit square, (n * n, 2) as x, y, row by row."""
    if n_per_side < 1:
        raise ValueError(f"expected at least one point along a side of the grid, got {n_per_side}")
    margin = 1 / (2 * n_per_side)
    middles = np.linspace(margin, 1 - margin, n_per_side)
    return np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[np.ndarray]:
    """A grid for the image and one for the crops of each layer, with ``scale_per_layer`` times fewer points a side each."""
    return [build_point_grid(int(n_per_side / scale_per_layer**layer)) for layer in range(n_layers + 1)]


def generate_crop_boxes(
    im_size: Sequence[int], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The image, then crops of it: layer i has 2^i x 2^i of them.

    Args:
        im_size: (H, W).
        n_layers: of crops.
        overlap_ratio: of neighbours in the first layer, as a share of the shorter side; half as much in each further one.

    Returns:
        boxes x0, y0, x1, y1.
        the layer of each, 0 for the image.
    """
    height, width = im_size
    boxes, layers = [[0, 0, width, height]], [0]
    for layer in range(1, n_layers + 1):
        count = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / count))
        crop_w, crop_h = (ceil((overlap * (count - 1) + side) / count) for side in (width, height))
        for column, row in product(range(count), repeat=2):
            x, y = (crop_w - overlap) * column, (crop_h - overlap) * row
            boxes.append([x, y, min(x + crop_w, width), min(y + crop_h, height)])
            layers.append(layer)
    return boxes, layers


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Slices of ``batch_size`` rows of all arguments, which must have equally many."""
    if len({len(arg) for arg in args}) != 1:
        raise ValueError(f"expected arguments of one length, got {[len(arg) for arg in args]}")
    for start in range(0, len(args[0]), batch_size):
        yield [arg[start : start + batch_size] for arg in args]


# -- boxes ------------------------------------------------------------------------------------------------------------


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """(..., H, W) bool -> (..., 4): first and last column and row as x0, y0, x1, y1; zeros where a mask is empty."""
    if masks.numel() == 0:
        return torch.zeros(*masks.shape[:-2], 4, device=masks.device)
    (x0, x1), (y0, y1) = _span(masks.any(-2)), _span(masks.any(-1))
    return torch.stack([x0, y0, x1, y1], -1) * masks.flatten(-2).any(-1, keepdim=True)


def _span(line: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the first and of the last True along the last axis."""
    line = line.byte()
    return line.argmax(-1), line.shape[-1] - 1 - line.flip(-1).argmax(-1)


def box_xyxy_to_xywh(box_xyxy: Any) -> Any:
    """One box (4) with width and height in the place of its second corner."""
    box = deepcopy(box_xyxy)
    box[2], box[3] = box[2] - box[0], box[3] - box[1]
    return box


def is_box_near_crop_edge(
    boxes: Tensor, crop_box: Sequence[int], orig_box: Sequence[int], atol: float = 20.0
) -> Tensor:
    """Whether boxes (N, 4) of a crop lie within ``atol`` pixels of an edge of it that is no edge of the image, (N) bool."""
    placed = uncrop_boxes_xyxy(boxes, crop_box).float()
    of_crop, of_image = (
        (placed - torch.as_tensor(edges, dtype=torch.float, device=boxes.device)).abs() <= atol
        for edges in (crop_box, orig_box)
    )
    return (of_crop & ~of_image).any(1)


def uncrop_boxes_xyxy(boxes: Tensor, crop_box: Sequence[int]) -> Tensor:
    """Boxes (..., 4) of a crop in pixels of the image."""
    x, y, *_ = crop_box
    return boxes + torch.tensor([x, y, x, y], device=boxes.device)


def uncrop_points(points: Tensor, crop_box: Sequence[int]) -> Tensor:
    """Points (..., 2) of a crop in pixels of the image."""
    return points + torch.tensor(crop_box[:2], device=points.device)


# -- masks ------------------------------------------------------------------------------------------------------------


def uncrop_masks(masks: Tensor, crop_box: Sequence[int], orig_h: int, orig_w: int) -> Tensor:
    """Masks (N, h, w) of a crop at their place in the image, (N, H, W)."""
    x0, y0, x1, y1 = crop_box
    return F.pad(masks, (x0, orig_w - x1, y0, orig_h - y1))


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Tensor:
    """IoU of the masks at a higher and at a lower threshold: logits (..., H, W) -> (...). NaN where both are empty."""
    smaller, larger = (
        (masks > mask_threshold + offset).sum((-2, -1)) for offset in (threshold_offset, -threshold_offset)
    )
    return smaller / larger


def remove_small_regions(mask: np.ndarray, area_thresh: float, mode: str) -> tuple[np.ndarray, bool]:
    """A mask without its small 8-connected regions.

    Args:
        mask: (H, W) bool.
        area_thresh: regions of fewer pixels are small. Of regions that are all small the largest stays.
        mode: "holes", which are filled, or "islands", which are removed.

    Returns:
        the mask, (H, W) bool.
        whether it has changed.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"expected mode 'holes' or 'islands', got {mode!r}")
    is_region = ~mask if mode == "holes" else mask
    count, labels, stats, _ = cv2.connectedComponentsWithStats(is_region.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    small = 1 + np.flatnonzero(areas < area_thresh)
    if len(small) == 0:
        return mask, False
    if mode == "islands" and len(small) == count - 1:
        return labels == 1 + int(np.argmax(areas)), True
    return mask ^ np.isin(labels, small), True


def mask_to_rle_pytorch(tensor: Tensor) -> list[RLE]:
    """Run lengths of masks (N, H, W) bool."""
    height, width = tensor.shape[-2:]
    columns = tensor.transpose(-2, -1).flatten(1)
    rows, ends = (columns[:, 1:] != columns[:, :-1]).nonzero(as_tuple=True)
    runs = np.split(1 + ends.cpu().numpy(), np.cumsum(torch.bincount(rows, minlength=len(tensor)).cpu().numpy()))
    return [
        {"size": [height, width], "counts": [0] * bool(first) + np.diff([0, *run, height * width]).tolist()}
        for first, run in zip(columns[:, 0].tolist(), runs)
    ]


def rle_to_mask(rle: RLE) -> np.ndarray:
    """(H, W) bool from run lengths that are not compressed."""
    height, width = rle["size"]
    is_foreground = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(is_foreground, rle["counts"]).reshape(width, height).T


def area_from_rle(rle: RLE) -> int:
    """Pixels of the mask."""
    return sum(rle["counts"][1::2])


def coco_encode_rle(uncompressed_rle: RLE) -> RLE:
    """The same with COCO's compressed string as ``counts``."""
    encoded = coco.frPyObjects(uncompressed_rle, *uncompressed_rle["size"])
    return {**encoded, "counts": encoded["counts"].decode("ascii")}
