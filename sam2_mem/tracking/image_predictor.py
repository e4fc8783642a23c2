"""One image, many prompts: SAM 2 without memory, with the method names of SAM 2's own image predictor."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import as_tensor, check_points, fitted_box
from sam2_mem.tracking.mask_postprocessing import clean_masks
from sam2_mem.types import FrameFeatures
from sam2_mem.video.frame import PictureReader
from sam2_mem.video.resize import MEAN, STD

LOGIT_LIMIT = 32.0


class SAM2ImagePredictor:
    """Segments objects in one image from clicks, boxes and mask hints.

    Args:
        sam_model: the network.
        mask_threshold: a pixel is foreground above this logit.
        max_hole_area: holes up to this many mask-logit pixels are filled.
        max_sprinkle_area: specks up to this many mask-logit pixels are removed.
    """

    def __init__(
        self, sam_model: SAM2, mask_threshold: float = 0.0, max_hole_area: int = 0, max_sprinkle_area: int = 0
    ) -> None:
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self.reset_predictor()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """The predictor of an official model, by its name on the Hugging Face hub."""
        return cls(import_module("sam2_mem.build_sam").build_sam2_hf(model_id, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.model.device

    def reset_predictor(self) -> None:
        """Forget the image."""
        self._features: FrameFeatures | None = None
        self._size = (0, 0)

    @torch.inference_mode()
    def set_image(self, image: Any) -> None:
        """Encode an image: (H, W, 3) uint8 RGB array or tensor, or a PIL image."""
        pixels = PictureReader()(image, "the image")
        side = self.model.image_size
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1).to(self.device).float() / 255.0
        x = F.interpolate(x[None], size=(side, side), mode="bilinear", antialias=True)
        mean, std = (torch.tensor(v, device=x.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        self._features = self.model.encode_image((x - mean) / std)[0]
        self._size = pixels.shape[0], pixels.shape[1]

    def get_image_embedding(self) -> Tensor:
        """Stride-16 features of the image as the mask decoder gets them, (1, C, H, W)."""
        features = self._loaded()
        return self.model.without_memory(features).mT.unflatten(-1, features.grid)

    @torch.inference_mode()
    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of one object, or of B objects at once, on the image.

        For B objects every prompt that is given has the leading axis B; results equal those of B calls.

        Args:
            point_coords: (N, 2) or (B, N, 2) as x, y.
            point_labels: (N) or (B, N) of 1 foreground, 0 background.
            box: (4) or (B, 4) as x0, y0, x1, y1; what reaches beyond the image is cut, with a warning.
            mask_input: (1, h, w) or (B, 1, h, w) logits of an earlier call.
            multimask_output: three masks instead of one.
            return_logits: logits instead of booleans.
            normalize_coords: coordinates are pixels, not 0..1.

        Returns:
            masks (M, H, W), predicted IoU (M), and logits (M, h, w), one of which, (1, h, w), may be a ``mask_input``; with
            B > 1 objects each has a leading axis B.

        Raises:
            ValueError: prompts for differing numbers of objects, of other shapes, or outside the image.
            RuntimeError: there is no image yet.
        """
        features = self._loaded()
        points, labels = self._points(point_coords, point_labels, box, normalize_coords)
        hint = None if mask_input is None else self._hint(mask_input)
        prompts = [prompt for prompt in (points, hint) if prompt is not None]
        if not prompts:
            raise ValueError("expected points, a box or a mask_input, got none of them")
        rows = len(prompts[0])
        if hint is not None and len(hint) != rows:
            raise ValueError(
                f"expected mask_input for as many objects as the points and boxes, {rows}, got {len(hint)}; "
                f"repeat it: mask_input of shape ({rows}, 1, h, w)"
            )
        decoded = self.model.decode(
            self.model.without_memory(features, rows),
            features,
            points=points,
            labels=labels,
            mask_logits=hint,
            candidates=multimask_output,
        )
        masks, iou, low = self._finished(decoded.masks, return_logits), decoded.iou, decoded.masks
        low = low.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        tensors = [x.squeeze(0) if rows == 1 else x for x in (masks, iou, low)]
        return tensors[0].cpu().numpy(), tensors[1].cpu().numpy(), tensors[2].cpu().numpy()

    def _loaded(self) -> FrameFeatures:
        if self._features is None:
            raise RuntimeError("no image to segment; call set_image first")
        return self._features

    def _hint(self, mask_input: Any) -> Tensor:
        """(B, 1, h, w)"""
        hint = as_tensor(mask_input, "mask_input").to(self.device, torch.float32)
        height, width = self.model.mask_size
        if hint.ndim not in (3, 4) or tuple(hint.shape[-3:]) != (1, height, width) or hint.shape[0] == 0:
            raise ValueError(
                f"expected mask_input of shape (1, {height}, {width}), or (B, 1, {height}, {width}) for B objects, got "
                f"{tuple(hint.shape)}"
            )
        return hint.reshape(-1, 1, height, width)

    def _points(self, coords: Any, labels: Any, box: Any, in_pixels: bool) -> tuple[Tensor | None, Tensor | None]:
        """Box corners (labels 2, 3) before points, scaled to the network input: (B, N, 2) and (B, N)."""
        if (coords is None) != (labels is None):
            raise ValueError("expected point_coords and point_labels together, got only one of them")
        size = self._size if in_pixels else (1, 1)
        parts = []
        if box is not None:
            parts.append(_box_corners(box, size))
        if coords is not None:
            parts.append(_clicks(coords, labels, size))
        if not parts:
            return None, None
        counts = [len(xy) for xy, _ in parts]
        if len(set(counts)) > 1:
            raise ValueError(
                f"expected points for as many objects as boxes, {counts[0]}, got {counts[1]}; give point_coords as "
                "(B, N, 2) and point_labels as (B, N)"
            )
        points = torch.cat([xy for xy, _ in parts], 1)
        if in_pixels:
            height, width = self._size
            points = points / torch.tensor([width, height], dtype=torch.float32)
        points = points * self.model.image_size
        return points.to(self.device), torch.cat([kinds for _, kinds in parts], 1).to(self.device, torch.int32)

    def _finished(self, logits: Tensor, return_logits: bool) -> Tensor:
        """(B, M, h, w) -> (B, M, H, W) at the size of the image."""
        shape = logits.shape
        clean = clean_masks(logits.flatten(0, 1), self.max_hole_area, self.max_sprinkle_area).reshape(shape)
        large = F.interpolate(clean, size=self._size, mode="bilinear", align_corners=False)
        return large if return_logits else large > self.mask_threshold


def _box_corners(box: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, 2, 2) corners and their labels (B, 2)."""
    boxes = as_tensor(box, "a box").cpu().float()
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or boxes.numel() == 0:
        raise ValueError(f"expected a box of shape (4,), or (B, 4) for B objects, got {tuple(boxes.shape)}")
    corners = torch.stack([fitted_box(row, size) for row in boxes.reshape(-1, 4)]).reshape(-1, 2, 2)
    return corners, torch.tensor([[2, 3]]).expand(len(corners), -1)


def _clicks(coords: Any, labels: Any, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(B, N, 2) and (B, N)."""
    points, kinds = as_tensor(coords, "point_coords").cpu().float(), as_tensor(labels, "point_labels").cpu()
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or points.numel() == 0:
        raise ValueError(
            f"expected point_coords of shape (N, 2) as x, y, or (B, N, 2) for B objects, got {tuple(points.shape)}"
        )
    expected, alone = tuple(points.shape[:-1]), points.ndim == 3 and len(points) == 1
    if tuple(kinds.shape) not in ((expected, expected[1:]) if alone else (expected,)):
        raise ValueError(f"expected one label per point, point_labels of shape {expected}, got {tuple(kinds.shape)}")
    wrong = sorted({v for v in kinds.flatten().tolist() if v not in (0, 1)})
    if wrong:
        raise ValueError(f"expected point labels 1 (foreground) or 0 (background), got {wrong}; give boxes as box=")
    check_points(points.reshape(-1, 2), size)
    return points.reshape(-1, *points.shape[-2:]), kinds.reshape(-1, points.shape[-2])
