"""Track a video with somebody listening, and keep what is needed to show it: small pictures, masks and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from sam2_mem.evaluation.inspection.recorder import FrameNote, Recorder, Watched, frame_notes
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import PromptPlan, segment
from sam2_mem.types import ObjectScore


@dataclass(frozen=True, eq=False)
class Film:
    """A video under one policy. ``pictures`` by frame, (h, w, 3) uint8; ``masks`` by object and frame, (h, w) bool, of
    the same size; ``objects``: what memory did, by object id."""

    policy: str
    pictures: dict[int, np.ndarray]
    masks: dict[int, dict[int, np.ndarray]]
    objects: dict[int, Watched]


def watch(
    predictor: SAM2VideoPredictor,
    video: Any,
    plan: PromptPlan,
    *,
    name: str,
    width: int = 256,
    stop: int | None = None,
    read_mass: bool = True,
) -> Film:
    """Track a video forwards.

    Args:
        video: as for ``init_state``. plan: the prompts, see :mod:`sam2_mem.tracking.vos`.
        name: what the policy is called. width: of the pictures kept. stop: first frame left out.
        read_mass: also measure how much attention every entry receives.
    """
    state, recorder = predictor.init_state(video), Recorder(read_mass=read_mass)
    predictor.listen(state, recorder)
    pictures: dict[int, np.ndarray] = {}
    masks: dict[int, dict[int, np.ndarray]] = {i: {} for i in plan.obj_ids}
    scores: dict[tuple[int, int], ObjectScore] = {}
    for shown in segment(predictor, state, plan, stop=stop):
        index = shown.frame.index
        pictures[index] = small_picture(shown.frame.image, width)
        for obj_id, mask in shown.masks.items():
            masks[obj_id][index] = small_mask(mask, pictures[index].shape[:2])
        if index in state.recent_scores:
            scores |= {(s.obj_id, index): s for s in predictor.scores(state, index)}
    return Film(name, pictures, masks, {i: Watched(name, i, _scored(recorder, i, scores)) for i in plan.obj_ids})


def _scored(recorder: Recorder, obj_id: int, scores: Mapping[tuple[int, int], ObjectScore]) -> tuple[FrameNote, ...]:
    return tuple(replace(n, score=scores.get((obj_id, n.frame))) for n in frame_notes(recorder.of(obj_id)))


def small_picture(image: np.ndarray, width: int) -> np.ndarray:
    """(H, W, 3) uint8 at a width of at most ``width``."""
    if image.shape[1] <= width:
        return np.array(image)
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)


def small_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool at ``size`` (h, w)."""
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)
