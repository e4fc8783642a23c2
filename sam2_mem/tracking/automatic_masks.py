"""Masks of everything in an image: a grid of clicks, then the masks that are good and differ. The arguments, results and
rules of SAM 2's own generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.amg import (
    RLE,
    MaskData,
    area_from_rle,
    batch_iterator,
    batched_mask_to_box,
    box_xyxy_to_xywh,
    build_all_layer_point_grids,
    calculate_stability_score,
    coco_encode_rle,
    generate_crop_boxes,
    is_box_near_crop_edge,
    mask_to_rle_pytorch,
    remove_small_regions,
    rle_to_mask,
    uncrop_boxes_xyxy,
    uncrop_masks,
    uncrop_points,
)
from sam2_mem.tracking.image_predictor import SAM2ImagePredictor, on_hub_model
from sam2_mem.video.frame import PictureReader

OUTPUT_MODES: dict[str, Callable[[RLE], Any]] = {
    "binary_mask": rle_to_mask,
    "uncompressed_rle": lambda rle: rle,
    "coco_rle": coco_encode_rle,
}


class SAM2AutomaticMaskGenerator:
    """Masks of everything in an image.

    Args:
        model: the network.
        points_per_side: of the grid of clicks; None where ``point_grids`` are given.
        points_per_batch: clicks that are decoded together; more take more memory.
        pred_iou_thresh: masks of a predicted IoU of at most this are left out; 0: none.
        stability_score_thresh: and those of a lower stability: the IoU of the mask at two thresholds; 0: none.
        stability_score_offset: logits of these thresholds above and below ``mask_threshold``.
        mask_threshold: a pixel is foreground above this logit.
        box_nms_thresh: of masks whose boxes have a larger IoU the one of the highest predicted IoU stays.
        crop_n_layers: layers of crops that are searched as well; layer i has 2^i x 2^i of them.
        crop_nms_thresh: as ``box_nms_thresh``, between crops; masks of smaller crops stay.
        crop_overlap_ratio: of neighbouring crops, as a share of the image's shorter side.
        crop_n_points_downscale_factor: every layer has this many times fewer points a side.
        point_grids: in the place of ``points_per_side``, (N, 2) in 0..1 for the image and for each layer of crops.
        min_mask_region_area: holes and specks up to this many mask-logit pixels are removed.
        output_mode: "binary_mask", "uncompressed_rle" or "coco_rle".
        use_m2m: decode every mask once more, with itself as a prompt beside its click.
        multimask_output: three masks a click instead of one.

    Raises:
        ValueError: both or neither of ``points_per_side`` and ``point_grids``, or another ``output_mode``.
    """

    def __init__(
        self,
        model: SAM2,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: float = 0,
        output_mode: str = "binary_mask",
        use_m2m: bool = False,
        multimask_output: bool = True,
    ) -> None:
        if output_mode not in OUTPUT_MODES:
            raise ValueError(f"expected output_mode out of {', '.join(OUTPUT_MODES)}, got {output_mode!r}")
        self.point_grids = _grids(points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor)
        self.predictor = SAM2ImagePredictor(
            model, max_hole_area=min_mask_region_area, max_sprinkle_area=min_mask_region_area
        )
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.mask_threshold = mask_threshold
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.crop_n_points_downscale_factor = crop_n_points_downscale_factor
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode
        self.use_m2m = use_m2m
        self.multimask_output = multimask_output

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2AutomaticMaskGenerator:
        """The generator on an official model, by its name on the Hugging Face hub; arguments for ``build_sam2_hf`` and for
        this class."""
        return on_hub_model(cls, model_id, kwargs)

    @torch.inference_mode()
    def generate(self, image: Any) -> list[dict[str, Any]]:
        """All masks of an image.

        Args:
            image: (H, W, 3) uint8 RGB array or tensor, or a PIL image.

        Returns:
            a record for each mask, the best first: ``segmentation``, (H, W) bool or run lengths; ``area`` in pixels; ``bbox`` and
                ``crop_box`` as x, y, width, height; ``predicted_iou``; ``stability_score``; ``point_coords``, the click [[x, y]].
        """
        data = self._search(PictureReader()(image, "the image"))
        data.to_numpy()
        encode = OUTPUT_MODES[self.output_mode]
        return [
            {
                "segmentation": encode(rle),
                "area": area_from_rle(rle),
                "bbox": box_xyxy_to_xywh(data["boxes"][row]).tolist(),
                "predicted_iou": data["iou_preds"][row].item(),
                "point_coords": [data["points"][row].tolist()],
                "stability_score": data["stability_score"][row].item(),
                "crop_box": box_xyxy_to_xywh(data["crop_boxes"][row]).tolist(),
            }
            for row, rle in enumerate(data["rles"])
        ]

    def _search(self, image: np.ndarray) -> MaskData:
        """In the image and in its crops."""
        crops, layers = generate_crop_boxes(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        data = MaskData()
        for crop, layer in zip(crops, layers):
            data.cat(self._search_crop(image, crop, self.point_grids[layer]))
        if len(crops) > 1:
            x0, y0, x1, y1 = data["crop_boxes"].unbind(1)
            self._without_duplicates(data, 1 / ((x1 - x0) * (y1 - y0)), self.crop_nms_thresh)
        return data

    def _search_crop(self, image: np.ndarray, crop: list[int], grid: np.ndarray) -> MaskData:
        """In a crop, in pixels of the image."""
        x0, y0, x1, y1 = crop
        self.predictor.set_image(image[y0:y1, x0:x1])
        data = MaskData()
        for (points,) in batch_iterator(self.points_per_batch, grid * np.array([x1 - x0, y1 - y0])):
            data.cat(self._decode(points, crop, image.shape[:2]))
        self.predictor.reset_predictor()
        self._without_duplicates(data, data["iou_preds"], self.box_nms_thresh)
        data["boxes"] = uncrop_boxes_xyxy(data["boxes"], crop)
        data["points"] = uncrop_points(data["points"], crop)
        data["crop_boxes"] = torch.tensor([crop]).expand(len(data["rles"]), -1)
        return data

    @staticmethod
    def _without_duplicates(data: MaskData, scores: Tensor, threshold: float) -> None:
        data.filter(_distinct(data["boxes"], scores, threshold))

    def _decode(self, points: np.ndarray, crop: list[int], image_size: tuple[int, int]) -> MaskData:
        """Masks of some clicks (N, 2) in pixels of a crop, as run lengths in the image, with their boxes in the crop."""
        x0, y0, x1, y1 = crop
        clicks = torch.as_tensor(points, dtype=torch.float32, device=self.predictor.device)
        coords = self.predictor.to_input(clicks, (y1 - y0, x1 - x0))[:, None]
        labels = torch.ones(coords.shape[:2], dtype=torch.int32, device=coords.device)
        masks, iou, low = self.predictor.predict_tensors(coords, labels, multimask_output=self.multimask_output)
        repeats = masks.shape[1]
        if self.use_m2m:
            coords, labels = coords.repeat_interleave(repeats, 0), labels.repeat_interleave(repeats, 0)
            masks, iou = self.refine_with_m2m(coords[:, 0], labels[:, 0], low.flatten(0, 1), self.points_per_batch)
        data = MaskData(
            masks=masks.flatten(0, 1), iou_preds=iou.flatten(0, 1), points=clicks.repeat_interleave(repeats, 0)
        )
        del masks, low
        self._without_poor_masks(data)
        data["masks"] = data["masks"] > self.mask_threshold
        data["boxes"] = batched_mask_to_box(data["masks"])
        height, width = image_size
        data.filter(~is_box_near_crop_edge(data["boxes"], crop, [0, 0, width, height]))
        data["rles"] = mask_to_rle_pytorch(uncrop_masks(data["masks"], crop, height, width))
        del data["masks"]
        return data

    def _without_poor_masks(self, data: MaskData) -> None:
        """By predicted IoU, then by stability, which becomes a column."""
        if self.pred_iou_thresh > 0:
            data.filter(data["iou_preds"] > self.pred_iou_thresh)
        data["stability_score"] = calculate_stability_score(
            data["masks"], self.mask_threshold, self.stability_score_offset
        )
        if self.stability_score_thresh > 0:
            data.filter(data["stability_score"] >= self.stability_score_thresh)

    def refine_with_m2m(
        self, points: Tensor, point_labels: Tensor, low_res_masks: Tensor, points_per_batch: int
    ) -> tuple[Tensor, Tensor]:
        """Decode masks once more, each with its click and with itself as a prompt.

        Args:
            points: (N, 2) in pixels of the network's input.
            point_labels: (N).
            low_res_masks: (N, h, w) logits.
            points_per_batch: masks that are decoded together.

        Returns:
            logits (N, 1, H, W).
            predicted IoU (N, 1).
        """
        refined = [
            self.predictor.predict_tensors(xy[:, None], kinds[:, None], hints[:, None], False)
            for xy, kinds, hints in batch_iterator(points_per_batch, points, point_labels, low_res_masks)
        ]
        return torch.cat([masks for masks, _, _ in refined]), torch.cat([iou for _, iou, _ in refined])

    @staticmethod
    def postprocess_small_regions(mask_data: MaskData, min_area: int, nms_thresh: float) -> MaskData:
        """Fill small holes and remove small regions, in place, then leave out what has become a duplicate; masks that did not
        change are preferred. ``generate`` does not call it, nor does SAM 2's.

        Args:
            mask_data: with ``rles`` and ``boxes``.
            min_area: regions of fewer pixels are small.
            nms_thresh: of boxes.
        """
        if not mask_data["rles"]:
            return mask_data
        results = [_without_small_regions(rle_to_mask(rle), min_area) for rle in mask_data["rles"]]
        masks = torch.from_numpy(np.stack([mask for mask, _ in results]))
        boxes, unchanged = batched_mask_to_box(masks), torch.tensor([float(not changed) for _, changed in results])
        keep = _distinct(boxes, unchanged, nms_thresh)
        for row in keep[unchanged[keep] == 0].tolist():
            [mask_data["rles"][row]] = mask_to_rle_pytorch(masks[row : row + 1])
            mask_data["boxes"][row] = boxes[row]
        mask_data.filter(keep)
        return mask_data


def _distinct(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Rows of boxes (N, 4) that overlap with none of a higher score by more than an IoU of ``threshold``."""
    from torchvision.ops import batched_nms  # here, as the import alone takes as long as torch's

    boxes = boxes.float()
    return batched_nms(boxes, scores.to(boxes.device), torch.zeros_like(boxes[:, 0]), threshold)


def _without_small_regions(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, bool]:
    """Holes first, then islands; and whether the mask has changed."""
    mask, filled = remove_small_regions(mask, min_area, "holes")
    mask, removed = remove_small_regions(mask, min_area, "islands")
    return mask, filled or removed


def _grids(per_side: int | None, grids: Sequence[np.ndarray] | None, layers: int, factor: int) -> Sequence[np.ndarray]:
    """A grid of clicks for the image and for each layer of crops."""
    if (per_side is None) == (grids is None):
        got = "neither" if grids is None else "both"
        raise ValueError(f"expected either points_per_side or point_grids, got {got}; points_per_side=None for grids")
    if grids is None:
        assert per_side is not None
        return build_all_layer_point_grids(per_side, layers, factor)
    if len(grids) <= layers:
        raise ValueError(f"expected a grid for the image and for each of {layers} layers of crops, got {len(grids)}")
    return grids
