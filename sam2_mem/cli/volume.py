"""``sam2-mem segment --volume``: a stack of slices, from the slice of the prompts towards both ends."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam2_mem.cli.progress import progress
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import PromptPlan
from sam2_mem.video.frame import Frame
from sam2_mem.video.volumes import Volume, read_volume, write_labels

MOST_IDS = 65535
"""What a volume of labels can hold."""


def segment_volume(args: argparse.Namespace, predictor: SAM2VideoPredictor, plan: PromptPlan, volume: Volume) -> Path:
    """Segment ``volume`` and write the volume of object ids; its path.

    Args:
        args: of the command.
        predictor: whose masks do not overlap.
        plan: the prompts, those of frame 0 being for the slice ``args.slice``.
        volume: that of ``args.volume``.

    Raises:
        ValueError: no such slice, a mask of another size, an object that is not found where it is pointed at.
    """
    window = None if args.window is None else (args.level, args.window)
    pictures = volume.slices(args.axis, window=window)
    first = len(pictures) // 2 if args.slice is None else args.slice
    if not 0 <= first < len(pictures):
        raise ValueError(f"expected --slice in 0..{len(pictures) - 1} along axis {args.axis}, got {first}")
    prompts = plan.prompts_at(Frame(0, "slice", pictures[first]))
    masks = track_both_ways(predictor, pictures, first, prompts, score_thresh=args.score_thresh)
    missing = [p.obj_id for p in prompts if not (masks[first] == p.obj_id).any()]
    if missing and not args.allow_empty_prompts:
        raise ValueError(
            f"expected objects where they are pointed at, got empty masks of {missing} on slice {first}; choose other points or "
            "another slice, or give --allow_empty_prompts"
        )
    path = args.output_mask_dir / f"{_name(Path(args.volume))}_masks.nii.gz"
    write_labels(path, volume.of_slices(masks, args.axis), volume)
    return path


def load_volume(path: str) -> Volume:
    """``read_volume``, with a missing package as an error of the command."""
    try:
        return read_volume(path)
    except ImportError as error:
        raise ValueError(str(error)) from error


def track_both_ways(
    predictor: SAM2VideoPredictor,
    pictures: np.ndarray,
    first: int,
    prompts: list[Prompt],
    *,
    score_thresh: float = 0.0,
) -> np.ndarray:
    """Object ids of every slice, (T, H, W) uint16; prompts are for slice ``first``.

    Args:
        predictor: of any network and policy.
        pictures: (T, H, W, 3) uint8.
        first: the slice of the prompts.
        prompts: one for each object.
        score_thresh: a voxel belongs to the object of the highest logit, if that is above this.
    """
    if any(not 1 <= prompt.obj_id <= MOST_IDS for prompt in prompts):
        raise ValueError(f"expected object ids in 1..{MOST_IDS}, got {[prompt.obj_id for prompt in prompts]}")
    state = predictor.init_state(pictures)
    labels = np.zeros(pictures.shape[:3], np.uint16)
    for prompt in prompts:
        if prompt.mask is not None:
            predictor.add_new_mask(state, first, prompt.obj_id, prompt.mask)
        else:
            clicks = {"points": prompt.points, "labels": prompt.labels, "box": prompt.box}
            predictor.add_new_points_or_box(state, first, prompt.obj_id, **clicks)
    for reverse in (False, True):
        count = first if reverse else len(pictures) - 1 - first
        passes = predictor.propagate_in_video(state, start_frame_idx=first, reverse=reverse)
        name = "towards the first slice" if reverse else "towards the last slice"
        for frame, obj_ids, logits in progress(passes, name, total=count + 1, unit="slice"):
            labels[frame] = _labels(obj_ids, logits, score_thresh)
    return labels


def _labels(obj_ids: list[int], logits: Tensor, threshold: float) -> np.ndarray:
    best, winner = logits[:, 0].float().max(0)
    ids = torch.tensor(obj_ids, device=winner.device)[winner]
    return torch.where(best > threshold, ids, 0).cpu().numpy().astype(np.uint16)


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]
