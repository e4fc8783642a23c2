"""``tools/train.py eval``: a trained network measured beside methods that need none. One line per measurement."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.evaluation.metrics import boundary_f, jaccard
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.image_predictor import SAM2ImagePredictor
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.training import validation
from sam2_mem.training.clips import Clip
from sam2_mem.training.folders import AnnotatedFrames, open_videos
from sam2_mem.training.validation import (
    Method,
    NetworkMethod,
    PartialFIFO,
    copy_first,
    curtained,
    first_masks,
    follow_flow,
    held_out,
    run_method,
    still,
    summarise,
)

VALIDATION_SEED, REPORT_SEED = 20_000_000, validation.SEED
MEMORY_LEVELS = ("occlusion", "appearance")
CURTAIN = (20, 10)  # start, length
PROMPTED_EVERY, LEAST_PIXELS = 12, 200  # frames between those that are prompted; smaller objects are not
GRAY_FRAMES = 8  # after which FIFO memory holds nothing else but the prompt
CLICKS = 3

Row = dict[str, Any]
"""A line of the report, ready for JSON; it leaves this file only as text."""


class Bench:
    """One network, the clips it is measured on, and the sections of the report.

    Args:
        config: as for ``build_sam2_video_predictor``.
        weights: as for ``build_sam2_video_predictor``.
        count: clips per level.
        frames: of a clip.
        validation: measure on the clips for choosing among runs, not on those for reporting.
        overrides: of the config, e.g. ``model.image_size=384``.
    """

    def __init__(
        self,
        config: str,
        weights: str | None,
        *,
        count: int = 8,
        frames: int = 60,
        validation: bool = False,
        overrides: Sequence[str] = (),
    ) -> None:
        predictor = build_sam2_video_predictor(config, weights, device="cpu", hydra_overrides_extra=overrides)
        self._model, self._tracker = predictor.model, predictor.tracker_settings
        self._count, self._frames = count, frames
        self._seed = VALIDATION_SEED if validation else REPORT_SEED
        self.network = self._with(PartialFIFO())

    def _with(self, policy: PartialFIFO) -> NetworkMethod:
        return NetworkMethod(self._model, policy, tracker=self._tracker)

    def _clips(self, level: str) -> list[Clip]:
        return held_out(level, self._count, num_frames=self._frames, first_seed=self._seed)

    def levels(self, names: Sequence[str]) -> Iterator[Row]:
        """Every level, beside copying the first mask and optical flow; then all objects of all levels by_method."""
        by_method: dict[str, list] = {}
        for level in names:
            clips = self._clips(level)
            for label, method in (("network", self.network), ("copy", copy_first), ("flow", follow_flow)):
                outcomes = run_method(method, clips)
                by_method.setdefault(label, []).extend(outcomes)
                yield {"what": f"level {level}", "method": label} | summarise(outcomes)._asdict()
        for label, outcomes in by_method.items():
            yield {"what": "all levels", "method": label} | summarise(outcomes)._asdict()

    def steady(self) -> Iterator[Row]:
        """The first frame of easy and mixed clips 50 times: J after 1, 20 and 49 steps."""
        for level in ("easy", "mixed"):
            outcomes = run_method(self.network, [still(c, 50) for c in self._clips(level)])
            after = {f"j{k}": float(np.mean([o.iou[k - 1] for o in outcomes])) for k in (1, 20, 49)}
            yield {"what": f"still video, {level}", "method": "network"} | after

    def curtain(self) -> Iterator[Row]:
        """Easy clips behind a curtain for ten frames."""
        clips = [curtained(c, *CURTAIN) for c in self._clips("easy")]
        for label, method in (("network", self.network), ("copy", copy_first), ("flow", follow_flow)):
            scores = summarise(run_method(method, clips))
            yield {"what": "curtain of 10 frames, easy", "method": label} | scores._asdict()

    def memory(self) -> Iterator[Row]:
        """What J loses with only the first frame, or only the frame before, in memory."""
        policies = {"full": {}, "first only": {"previous": False}, "previous only": {"first": False}}
        for level in MEMORY_LEVELS:
            clips = self._clips(level)
            for label, reads in policies.items():
                scores = summarise(run_method(self._with(PartialFIFO(**reads)), clips))
                yield {"what": f"memory, {level}", "method": label} | scores._asdict()

    def speed(self) -> Iterator[Row]:
        """Milliseconds a frame of one object, the median of 50 frames, at the size the network takes."""
        clip = held_out("mixed", 1, num_frames=51, first_seed=self._seed)[0]
        _, first = first_masks(clip)
        state = self.network.predictor.init_state()
        times = []
        for index, image in enumerate(clip.frames):
            began = time.perf_counter()
            self.network.predictor.track_frame(state, image, [Prompt(1, mask=first[0])] if index == 0 else ())
            times.append(time.perf_counter() - began)
        yield {"what": f"speed, {torch.get_num_threads()} threads", "ms": 1000 * float(np.median(times[1:]))}

    def folder(self, layout: str, root: str) -> Iterator[Row]:
        """J and F at the videos' own size, without the first and the last frame, as DAVIS counts them."""
        methods = (("network", self.network), ("copy", copy_first), ("flow", follow_flow))
        scores: dict[str, list[tuple[float, float]]] = {label: [] for label, _ in methods}
        for number, video in enumerate(open_videos(layout, root)):
            clip = full_clip(video)
            for label, method in methods:
                j, f = region_and_boundary(method, clip)
                scores[label].append((j, f))
                yield {"what": f"{layout} video {number}", "method": label, "j": j, "f": f}
        for label, values in scores.items():
            j, f = np.mean(values, axis=0)
            yield {"what": f"{layout}, mean of {len(values)}", "method": label, "j": float(j), "f": float(f)}

    def prompts(self, layout: str, root: str) -> Iterator[Row]:
        """IoU on single frames of the videos: a box; one click in the middle of the object, the best of three masks by their
        predicted IoU; three clicks, the second and third in the middle of the largest error; and a box, then two such clicks
        beside it."""
        predictor = SAM2ImagePredictor(self._model)
        scores: list[PromptScores] = []
        for video in open_videos(layout, root):
            for stem in video.frames[::PROMPTED_EVERY]:
                image, ids = video.image(stem), video.ids(stem)
                masks = [ids == n for n in np.unique(ids[ids > 0])]
                scores += prompt_scores(predictor, image, [m for m in masks if m.sum() >= LEAST_PIXELS])
        means = PromptScores(*np.mean(scores, axis=0).tolist())
        yield {"what": f"prompts, {layout}", "method": "network", "count": len(scores)} | means._asdict()

    def corrections(self, layout: str, root: str) -> Iterator[Row]:
        """IoU on frames that follow the first one of a video and eight gray frames: as tracked, and corrected by a click in the middle
        of the error or by a box."""
        scores = [
            correction_scores(
                self.network.predictor, clip.frames[0], clip.ids[0] == n, clip.frames[t], clip.ids[t] == n
            )
            for clip in map(full_clip, open_videos(layout, root))
            for t in range(PROMPTED_EVERY, len(clip), PROMPTED_EVERY)
            for n in np.unique(clip.ids[0][clip.ids[0] > 0])
            if (clip.ids[t] == n).sum() >= LEAST_PIXELS
        ]
        if not scores:
            raise ValueError(f"expected videos of more than {PROMPTED_EVERY} annotated frames in {root}, got none")
        means = CorrectionScores(*np.mean(scores, axis=0).tolist())
        yield {"what": f"corrections, {layout}", "method": "network", "count": len(scores)} | means._asdict()


class CorrectionScores(NamedTuple):
    """IoU as tracked, after a click, and after a box that follows it and takes its place."""

    tracked: float
    click: float
    box: float


def correction_scores(
    predictor: SAM2VideoPredictor, first: np.ndarray, prompt: np.ndarray, image: np.ndarray, truth: np.ndarray
) -> CorrectionScores:
    """An object after an absence.

    Args:
        predictor: of any policy.
        first: (H, W, 3) uint8, the frame of the prompt.
        prompt: (H, W) bool.
        image: (H, W, 3) uint8, the frame after gray ones.
        truth: (H, W) bool, the object in it.
    """
    frames = np.stack([first, *[np.full_like(first, 128)] * GRAY_FRAMES, image])
    state = predictor.init_state(frames)
    predictor.add_new_mask(state, 0, 1, prompt)
    for _, _, logits in predictor.propagate_in_video(state):
        tracked = (logits[0, 0] > 0).cpu().numpy()
    x, y = middle(tracked != truth)
    prompts: list[dict[str, Any]] = [
        {"points": [[x, y]], "labels": [int(truth[y, x])]},
        {"box": bounding_box(truth)},
    ]
    answers = [predictor.add_new_points_or_box(state, len(frames) - 1, 1, **p)[2] for p in prompts]
    masks = [tracked, *((logits[0, 0] > 0).cpu().numpy() for logits in answers)]
    return CorrectionScores(*(jaccard(mask, truth) for mask in masks))


class PromptScores(NamedTuple):
    """IoU of a box, one click, three clicks, a box refined by two clicks."""

    box: float
    click: float
    clicks: float
    box_clicks: float


def prompt_scores(predictor: SAM2ImagePredictor, image: np.ndarray, truth: Sequence[np.ndarray]) -> list[PromptScores]:
    """Of every object (H, W) bool of an image (H, W, 3) uint8."""
    predictor.set_image(image)
    scores = []
    for mask in truth:
        box, box_clicks = box_scores(predictor, mask)
        scores.append(PromptScores(box, *click_scores(predictor, mask), box_clicks))
    return scores


class Answer(NamedTuple):
    """A mask (H, W) bool, and its logits (1, h, w) as a hint for the next."""

    mask: np.ndarray
    hint: np.ndarray


def box_scores(predictor: SAM2ImagePredictor, truth: np.ndarray) -> tuple[float, float]:
    """Of a box, and of the same with ``CLICKS`` - 1 clicks that refine it."""
    box = np.array(bounding_box(truth), float)
    masks, _, logits = predictor.predict(box=box, multimask_output=False)
    first = Answer(masks[0] > 0, logits)
    return jaccard(first.mask, truth), jaccard(refined(predictor, truth, first, box=box), truth)


def click_scores(predictor: SAM2ImagePredictor, truth: np.ndarray) -> tuple[float, float]:
    """Of one click and of ``CLICKS``."""
    point = middle(truth)
    masks, iou, logits = predictor.predict(np.array([point], float), np.array([1]), multimask_output=True)
    best = int(np.argmax(iou))
    first = Answer(masks[best] > 0, logits[best : best + 1])
    return jaccard(first.mask, truth), jaccard(refined(predictor, truth, first, points=[point]), truth)


def refined(
    predictor: SAM2ImagePredictor,
    truth: np.ndarray,
    answer: Answer,
    *,
    points: Sequence[tuple[int, int]] = (),
    box: np.ndarray | None = None,
) -> np.ndarray:
    """The mask (H, W) bool after ``CLICKS`` - 1 clicks in the middle of the largest error: positive ones on what was missed,
    negative ones on what is too much.

    Args:
        predictor: with the image.
        truth: (H, W) bool.
        answer: to what was said first.
        points: said first, all on the object.
        box: said first; it stays beside the clicks.
    """
    labels = [1] * len(points)
    for _ in range(CLICKS - 1):
        if np.array_equal(answer.mask, truth):
            break
        x, y = middle(answer.mask != truth)
        points, labels = [*points, (x, y)], [*labels, int(truth[y, x])]
        masks, _, logits = predictor.predict(
            np.array(points, float), np.array(labels), box=box, mask_input=answer.hint, multimask_output=False
        )
        answer = Answer(masks[0] > 0, logits)
    return answer.mask


def bounding_box(mask: np.ndarray) -> list[int]:
    """Left, top, right and bottom of what a mask (H, W) bool covers."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [left, top, left + width, top + height]


def middle(mask: np.ndarray) -> tuple[int, int]:
    """The pixel x, y of a mask (H, W) bool that is furthest from its edge."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x), int(y)


def full_clip(video: AnnotatedFrames) -> Clip:
    """All annotated frames at their own size."""
    return Clip(np.stack([video.image(s) for s in video.frames]), np.stack([video.ids(s) for s in video.frames]))


def region_and_boundary(method: Method, clip: Clip) -> tuple[float, float]:
    """Mean J and F over the objects of a clip."""
    ids, first = first_masks(clip, 0.0)
    masks = method(clip.frames, first)
    scores = []
    for number, obj_id in enumerate(ids):
        truth = clip.ids == obj_id
        outcome = validation.compare(masks[:, number : number + 1], truth[:, None])[0]
        edges = [boundary_f(masks[t, number], truth[t]) for t in range(1, len(clip) - 1)]
        scores.append((float(outcome.iou[:-1].mean()), float(np.mean(edges))))
    j, f = np.mean(scores, axis=0)
    return float(j), float(f)


def as_text(row: Row) -> str:
    """A row of the report, to print."""
    head = f"{row['what']:32s} {row.get('method', ''):14s}"
    values = {k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items() if k not in ("what", "method")}
    return head + "  ".join(f"{k} {v}" for k, v in values.items())


def report(sections: Sequence[Callable[[], Iterator[Row]]], out: Path | None) -> None:
    """Print every line as it comes, and keep them as JSON lines."""
    for section in sections:
        for row in section():
            print(as_text(row), flush=True)
            if out is not None:
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
