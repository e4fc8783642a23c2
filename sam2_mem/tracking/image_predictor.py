"""One image, many prompts: SAM 2 without memory, with the method names of SAM 2's own image predictor."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import as_tensor, check_points, fitted_box
from sam2_mem.tracking.mask_postprocessing import repaint_around
from sam2_mem.types import FrameFeatures
from sam2_mem.video.frame import PictureReader
from sam2_mem.video.resize import MEAN, STD

LOGIT_LIMIT = 32.0
REPAINT_MARGIN = 10.0
"""Logits from the threshold at which filled holes and removed specks are."""


class SAM2ImagePredictor:
    """Segments objects in one image, or in several, from clicks, boxes and mask hints.

    Args:
        sam_model: the network.
        mask_threshold: a pixel is foreground above this logit.
        max_hole_area: holes up to this many mask-logit pixels are filled.
        max_sprinkle_area: specks up to this many mask-logit pixels are removed.
    """

    def __init__(
        self, sam_model: SAM2, mask_threshold: float = 0.0, max_hole_area: float = 0.0, max_sprinkle_area: float = 0.0
    ) -> None:
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self.reset_predictor()

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2ImagePredictor:
        """The predictor of an official model, by its name on the Hugging Face hub; arguments for ``build_sam2_hf`` and for
        this class."""
        return on_hub_model(cls, model_id, kwargs)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def reset_predictor(self) -> None:
        """Forget the image or the images."""
        self._images: list[FrameFeatures] = []
        self._sizes: list[tuple[int, int]] = []
        self._is_batch = False

    @torch.inference_mode()
    def set_image(self, image: Any) -> None:
        """Encode an image: (H, W, 3) uint8 RGB array or tensor, or a PIL image."""
        self._encode([PictureReader()(image, "the image")])

    @torch.inference_mode()
    def set_image_batch(self, image_list: Sequence[Any]) -> None:
        """Encode several images at once, of any sizes, for ``predict_batch``. Each as for ``set_image``."""
        if not isinstance(image_list, list | tuple) or not image_list:
            raise ValueError(f"expected a list of at least one image, got {type(image_list).__name__}; see set_image")
        read = PictureReader()
        self._encode([read(image, f"image {number}") for number, image in enumerate(image_list)])
        self._is_batch = True

    def _encode(self, images: Sequence[np.ndarray]) -> None:
        self.reset_predictor()
        mean, std = (torch.tensor(v, device=self.device).reshape(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = torch.cat([_resized(image, self.model.image_size, self.device) for image in images])
        self._images = self.model.encode_image((pixels - mean) / std, range(len(images)))
        self._sizes = [(image.shape[0], image.shape[1]) for image in images]

    def get_image_embedding(self) -> Tensor:
        """Stride-16 features of the B images as the mask decoder gets them, (B, C, H, W)."""
        self._loaded()
        tokens = torch.cat([self.model.without_memory(features) for features in self._images])
        return tokens.mT.unflatten(-1, self._images[0].grid)

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
            return_logits: logits instead of 0 and 1.
            normalize_coords: coordinates are pixels, not 0..1.

        Returns:
            masks (M, H, W), float32 of 0 and 1, or logits.
            predicted IoU (M).
            logits (M, h, w), one of which, (1, h, w), may be a ``mask_input``; with B > 1 objects each has a leading axis B.

        Raises:
            ValueError: prompts for differing numbers of objects, of other shapes, or outside the image.
            RuntimeError: there is no image yet, or there are several.
        """
        self._loaded()
        if self._is_batch:
            raise RuntimeError(
                "set_image_batch gave several images to segment; call predict_batch, or set_image for one"
            )
        prompts = point_coords, point_labels, box, mask_input
        return self._answer(0, prompts, multimask_output, return_logits, normalize_coords)

    @torch.inference_mode()
    def predict_batch(
        self,
        point_coords_batch: Sequence[Any] | None = None,
        point_labels_batch: Sequence[Any] | None = None,
        box_batch: Sequence[Any] | None = None,
        mask_input_batch: Sequence[Any] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """``predict`` for every image of ``set_image_batch``.

        Args:
            point_coords_batch: one item an image, as ``point_coords`` of ``predict``; None for an image without.
            point_labels_batch: as ``point_labels``, in the same way.
            box_batch: as ``box``.
            mask_input_batch: as ``mask_input``.
            multimask_output: as in ``predict``.
            return_logits: as in ``predict``.
            normalize_coords: as in ``predict``.

        Returns:
            masks of each image.
            predicted IoU of each.
            logits of each.

        Raises:
            ValueError: as in ``predict``, and for lists of another length than there are images.
            RuntimeError: before ``set_image_batch``.
        """
        if not self._is_batch:
            raise RuntimeError("no images to segment; call set_image_batch first, or predict after set_image")
        columns = [
            _column("point_coords_batch", point_coords_batch, len(self._images)),
            _column("point_labels_batch", point_labels_batch, len(self._images)),
            _column("box_batch", box_batch, len(self._images)),
            _column("mask_input_batch", mask_input_batch, len(self._images)),
        ]
        options = multimask_output, return_logits, normalize_coords
        answers = [self._answer(number, prompts, *options) for number, prompts in enumerate(zip(*columns))]
        return [a[0] for a in answers], [a[1] for a in answers], [a[2] for a in answers]

    def _answer(
        self, number: int, prompts: tuple[Any, ...], multimask_output: bool, return_logits: bool, in_pixels: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the image of that number; without the axis of objects where there is one."""
        coords, labels, box, mask_input = prompts
        points, kinds = self._points(coords, labels, box, self._sizes[number] if in_pixels else None)
        hint = None if mask_input is None else self._hint(mask_input)
        masks, iou, low = self.predict_tensors(points, kinds, hint, multimask_output, number)
        masks = masks if return_logits else (masks > self.mask_threshold).float()
        tensors = [x.squeeze(0) if len(iou) == 1 else x for x in (masks, iou, low)]
        return tensors[0].cpu().numpy(), tensors[1].cpu().numpy(), tensors[2].cpu().numpy()

    def predict_tensors(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        number: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``predict`` of B objects from tensors on the device, and to such.

        Args:
            points: (B, N, 2) in pixels of the network's input.
            labels: (B, N): 0, 1 for points, 2 and 3 for box corners.
            mask_input: (B, 1, h, w).
            multimask_output: three masks instead of one.
            number: of the image.

        Returns:
            mask logits (B, M, H, W).
            predicted IoU (B, M).
            mask logits as the network gives them, (B, M, h, w), within -32..32.
        """
        prompts = [prompt for prompt in (points, mask_input) if prompt is not None]
        if not prompts:
            raise ValueError("expected points, a box or a mask_input, got none of them")
        rows, features = len(prompts[0]), self._images[number]
        if mask_input is not None and len(mask_input) != rows:
            raise ValueError(
                f"expected mask_input for as many objects as the points and boxes, {rows}, got {len(mask_input)}; "
                f"repeat it: mask_input of shape ({rows}, 1, h, w)"
            )
        decoded = self.model.decode(
            self.model.without_memory(features, rows),
            features,
            points=points,
            labels=labels,
            mask_logits=mask_input,
            candidates=multimask_output,
        )
        low = decoded.masks.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        return self._finished(decoded.masks, self._sizes[number]), decoded.iou, low

    def to_input(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Points (..., 2) in pixels of an image of ``size`` (H, W), in pixels of the network's input."""
        height, width = size
        shares = points / torch.tensor([width, height], dtype=torch.float32, device=points.device)
        return shares * self.model.image_size

    # -- attributes of SAM 2's predictor that notebooks read --------------------------------------------------------------

    @property
    def _is_image_set(self) -> bool:
        return bool(self._images)

    @property
    def _orig_hw(self) -> list[tuple[int, int]] | None:
        return self._sizes or None

    @property
    def _features(self) -> dict[str, Any] | None:
        if not self._images:
            return None
        levels = zip(*(features.high or () for features in self._images))
        return {"image_embed": self.get_image_embedding(), "high_res_feats": [torch.stack(maps) for maps in levels]}

    def _loaded(self) -> None:
        if not self._images:
            raise RuntimeError("no image to segment; call set_image first")

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

    def _points(
        self, coords: Any, labels: Any, box: Any, size: tuple[int, int] | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Box corners (labels 2, 3) before points, scaled to the network input: (B, N, 2) and (B, N). ``size`` of the image in
        whose pixels they are; None: they are in 0..1."""
        if (coords is None) != (labels is None):
            raise ValueError("expected point_coords and point_labels together, got only one of them")
        size = (1, 1) if size is None else size
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
        points = self.to_input(torch.cat([xy for xy, _ in parts], 1), size)
        return points.to(self.device), torch.cat([kinds for _, kinds in parts], 1).to(self.device, torch.int32)

    def _finished(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, M, h, w) -> (B, M, H, W) at ``size``."""
        areas = self.max_hole_area, self.max_sprinkle_area
        clean = repaint_around(logits.flatten(0, 1), *areas, self.mask_threshold, REPAINT_MARGIN)
        return F.interpolate(clean.reshape(logits.shape), size=size, mode="bilinear", align_corners=False)


def on_hub_model(kind: Any, model_id: str, arguments: dict[str, Any]) -> Any:
    """An instance of ``kind`` on a model of the Hugging Face hub; ``arguments`` are those of ``kind`` and of the builder."""
    settings = {name: arguments[name] for name in signature(kind).parameters if name in arguments}
    options = {name: value for name, value in arguments.items() if name not in settings}
    return kind(import_module("sam2_mem.build_sam").build_sam2_hf(model_id, **options), **settings)


def _column(name: str, values: Sequence[Any] | None, count: int) -> Sequence[Any]:
    """One item for each image."""
    if values is None:
        return [None] * count
    if len(values) != count:
        raise ValueError(f"expected {name} with one item for each of {count} images, got {len(values)}")
    return values


def _resized(image: np.ndarray, side: int, device: torch.device) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, side, side) in 0..1."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1).to(device).float() / 255.0
    return F.interpolate(x[None], size=(side, side), mode="bilinear", antialias=True)


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
