"""All objects of a batch of clips, frame by frame, as whole tensors: what ``Rollout`` does with FIFO memory and mask prompts,
without a Python object for each object and frame and without waiting for the device, which a GPU needs to be busy.

Beyond ``Rollout``: objects whose memory leaves out the frames on which they were not seen, as policies that write visible
frames only have it, so that absence is recognised without empty frames in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.cached_positions import grid_xy, sine_tokens
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.training.clips import ClipBatch
from sam2_mem.training.drawn_prompts import (
    HINT_LIMIT,
    DrawnPrompts,
    boxes,
    draw_visible_frames,
    error_points,
    mask_iou,
    prompt_losses,
)
from sam2_mem.training.losses import LossSettings
from sam2_mem.training.multi_clip_tracker import ObjectPrediction, StackedFeatures
from sam2_mem.training.noise import CERTAIN, MemoryNoise
from sam2_mem.training.rollout import SegmentLoss, segment_loss
from sam2_mem.types import ABSENT_LOGIT, PROMPT_SLOT, FrameFeatures, RowBatch

MAX_POINTERS = 16
OVERLOOKED = 0.3
"""Share of corrected objects whose mask is taken as empty."""
CORRECTING_BOXES = 0.3
"""Share of corrections by a box in place of a click."""


@dataclass(frozen=True, kw_only=True)
class JointRollout:
    """How clips are tracked from the masks of their first frames.

    Attributes:
        noise: of the masks that enter memory.
        losses: weights of the losses.
        visible_only: probability of an object that its memory leaves out frames on which it was not seen; the temporal
            slots of its memory are then ranks.
        correct: probability of a batch that all its objects are corrected by a click or a box on the last frame.
        truncated: memory is data: the gradients of a frame reach what reads memory and decodes masks, not what wrote it,
            nor the features of the image.
        absent_frames: of the frames on which no object of the batch is visible, how many get losses, at least one; None: all.
        prompt_age: the most frames by which the prompt is older than the clip says; the number is drawn, evenly in its
            logarithm.
    """

    noise: MemoryNoise = MemoryNoise()
    losses: LossSettings = LossSettings()
    visible_only: float = 0.0
    correct: float = 0.0
    truncated: bool = False
    absent_frames: int | None = None
    prompt_age: int = 0

    def __post_init__(self) -> None:
        for name in ("visible_only", "correct"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"expected a probability {name} in 0..1, got {getattr(self, name)}")
        if self.prompt_age < 0 or (self.absent_frames is not None and self.absent_frames < 1):
            raise ValueError(
                f"expected prompt_age >= 0 and absent_frames >= 1 or None, got {self.prompt_age} and {self.absent_frames}"
            )

    def draw_age(self, rng: np.random.Generator) -> int:
        """Frames by which the prompt is older than the clip says."""
        return round(float(np.exp(rng.uniform(0, np.log1p(self.prompt_age))))) - 1 if self.prompt_age else 0

    def graded_frames(self, truth: Tensor, rng: np.random.Generator) -> set[int]:
        """The frames that get losses, of masks (N, T, S, S)."""
        frames = range(1, truth.shape[1])
        if self.absent_frames is None:
            return set(frames)
        present = truth.flatten(2).any(2).any(0).tolist()
        absent = [t for t in frames if not present[t]]
        return {t for t in frames if present[t]} | {int(t) for t in rng.permutation(absent)[: self.absent_frames]}


class JointTerms(NamedTuple):
    """Losses of a step, unweighted; ``prompts`` the weighted sum of those of prompts on single frames; and, to watch,
    the IoU of tracked objects that are visible and of first answers to prompts."""

    focal: Tensor
    dice: Tensor
    iou: Tensor
    objectness: Tensor
    occupancy: Tensor
    prompts: Tensor
    tracked_iou: Tensor
    prompted_iou: Tensor


def joint_loss(
    model: SAM2,
    batch: ClipBatch,
    settings: JointRollout,
    prompts: DrawnPrompts,
    *,
    head: nn.Module | None,
    rng: np.random.Generator,
    half_trunk: bool = False,
) -> SegmentLoss:
    """Losses of a batch: its objects tracked, and prompted on frames drawn at random.

    Args:
        model: the network.
        batch: B clips.
        settings: of tracking.
        prompts: on single frames.
        head: predicts occupancy, or None.
        rng: of what is drawn for the whole batch.
        half_trunk: run the trunk under bfloat16 autocast, for a CUDA device.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not settings.truncated):
        frames = encode_clips(model, batch.images, half_trunk=half_trunk)
    truth, zero = batch.truth, batch.truth.new_zeros(())
    predictions = track(model, frames, truth, batch.clip_of, settings, rng)
    tracked = segment_loss(predictions, truth, head, settings.losses)
    total, prompted, prompted_iou = tracked.total, zero, zero
    if prompts.weight:
        features, masks = _drawn_frames(frames, truth, batch.clip_of, prompts.min_area)
        terms, iou = prompt_losses(model, features, masks, prompts, rng)
        prompted, prompted_iou = terms.weighted(prompts.losses), iou.mean()
        total = total + prompts.weight * prompted
    with torch.no_grad():
        tracked_iou = _visible_iou(predictions, truth) if predictions else zero
    return SegmentLoss(
        JointTerms(**tracked.terms._asdict(), prompts=prompted, tracked_iou=tracked_iou, prompted_iou=prompted_iou),
        total,
    )


def encode_clips(model: SAM2, images: Tensor, *, half_trunk: bool = False) -> list[StackedFeatures]:
    """``images`` (B, T, 3, S, S) of all clips through the image encoder at once: T frames."""
    clips, times = images.shape[:2]
    with torch.autocast(images.device.type, torch.bfloat16, enabled=half_trunk):
        maps = model.image_encoder.trunk(images.flatten(0, 1))
    levels = model.image_encoder.merge([m.float() for m in maps], model.sam_mask_decoder.high_res_heads())
    *finer, coarse = (level.unflatten(0, (clips, times)) for level in levels)
    grid = (coarse.shape[-2], coarse.shape[-1])
    position = sine_tokens(*grid, model.width, coarse.device)
    low = coarse.flatten(3).transpose(2, 3)
    high = [(finer[0][:, t], finer[1][:, t]) if finer else None for t in range(times)]
    return [StackedFeatures(t, low[:, t], position, high[t], grid) for t in range(times)]


def _drawn_frames(
    frames: Sequence[StackedFeatures], truth: Tensor, clip_of: Sequence[int], min_area: float
) -> tuple[FrameFeatures, Tensor]:
    """For each object a frame on which it is visible.

    Returns:
        features (N rows).
        masks (N, S, S).
    """
    times = draw_visible_frames(truth, min_area)
    clips = to_device_async(list(clip_of), truth.device, torch.long)
    finer = [f.high for f in frames if f.high is not None]
    low, *high = (torch.stack(maps)[times, clips] for maps in ([f.low for f in frames], *map(list, zip(*finer))))
    features = FrameFeatures(0, low, frames[0].low_pos, (high[0], high[1]) if high else None, frames[0].grid)
    return features, truth[torch.arange(len(truth), device=truth.device), times]


def _visible_iou(predictions: Sequence[ObjectPrediction], truth: Tensor) -> Tensor:
    """Mean IoU of tracked objects on the frames on which they are visible."""
    total, count = truth.new_zeros(()), truth.new_zeros(())
    for prediction in predictions:
        if not prediction.prompted:
            real = truth[:, prediction.frame]
            logits, _ = best_candidates(prediction.decoded)
            visible = real.flatten(1).any(1)
            total, count = total + (mask_iou(logits, real) * visible).sum(), count + visible.sum()
    return total / count.clamp(min=1)


class FrameMemory(NamedTuple):
    """What R objects remember of one frame: ``feat`` (R, Q, Cm), ``pointer`` (R, C), ``visible`` (R) bool."""

    feat: Tensor
    pointer: Tensor
    visible: Tensor


@dataclass(eq=False)
class JointMemory:
    """Memory of R objects, frame by frame, the first of which is prompted.

    Attributes:
        model: gives the codes of time.
        grid: (H, W) of memory maps.
        selective: (R) bool, objects whose memory leaves out frames on which they were not seen; None for none.
        frames: what is remembered, in order.
        prompt_age: frames by which the prompt is older than the number of frames since.
    """

    model: SAM2
    grid: tuple[int, int]
    selective: Tensor | None = None
    frames: list[FrameMemory] = field(default_factory=list)
    prompt_age: int = 0

    def read(self) -> RowBatch:
        """What FIFO reads on the next frame: (R) rows of the prompt, the newest maps, and pointers."""
        index = len(self.frames)
        num_maps = self.model.maskmem_tpos_enc.shape[0] - 1
        recent = self.frames[: max(0, index - num_maps - 1) : -1] if index > 1 else []
        pointed = self.frames[: max(0, index - MAX_POINTERS) : -1] if index > 1 else []
        prompt = self.frames[0]
        device = prompt.feat.device
        position = sine_tokens(*self.grid, self.model.memory_width, device)
        codes = self._codes(recent)  # (1 or R, number of maps, Cm)
        ages = [index + self.prompt_age, *range(1, len(pointed) + 1)]
        offsets = to_device_async([age / (MAX_POINTERS - 1) for age in ages], device, torch.get_default_dtype())
        pointers = torch.stack([m.pointer for m in (prompt, *pointed)], 1)
        rows, count = pointers.shape[:2]
        pointers = pointers.reshape(rows, -1, self.model.memory_width)
        pointer_code = self.model.pointer_code(offsets).repeat_interleave(pointers.shape[1] // count, 0)
        maps = [prompt, *recent]
        keys = (position + codes.unsqueeze(2)).flatten(1, 2).expand(rows, -1, -1)
        xy = torch.cat([grid_xy(*self.grid, device).repeat(len(maps), 1), position.new_zeros(pointers.shape[1], 2)])
        sizes = [len(position)] * len(maps) + [pointers.shape[1]]
        item = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return RowBatch(
            feat=torch.cat([*(m.feat for m in maps), pointers], 1),
            pos=torch.cat([keys, pointer_code.expand(rows, -1, -1)], 1),
            xy=xy.unsqueeze(0),
            gain=None,
            bias=self._bias(maps, [prompt, *pointed], pointers.shape[1] // count),
            item=to_device_async(item.expand(rows, -1), device),
            num_items=len(maps),
            lengths=(sum(sizes),) * rows,
        )

    def _codes(self, recent: Sequence[FrameMemory]) -> Tensor:
        """Temporal codes of the prompt and of ``recent`` frames, newest first."""
        if self.selective is None or not recent:
            return self.model.slot_code([PROMPT_SLOT, *range(len(recent))]).unsqueeze(0)
        table = self.model.maskmem_tpos_enc.flatten(1)
        counted = torch.stack([self._readable(m) for m in recent], 1).long()
        slots = (counted.cumsum(1) - counted).clamp(max=len(table) - 2)
        return table[F.pad(slots, (1, 0), value=len(table) - 1)]

    def _bias(self, maps: Sequence[FrameMemory], pointed: Sequence[FrameMemory], split: int) -> Tensor | None:
        """(R, L): -inf on the tokens of frames that are not read; the prompt always is."""
        if self.selective is None:
            return None
        tokens = self.grid[0] * self.grid[1]
        readable = [(self._readable(m), tokens) for m in maps[1:]] + [(self._readable(m), split) for m in pointed[1:]]
        always = torch.ones_like(self.selective)
        readable = [(always, tokens), *readable[: len(maps) - 1], (always, split), *readable[len(maps) - 1 :]]
        mask = torch.cat([flag.unsqueeze(1).expand(-1, size) for flag, size in readable], 1)
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)

    def _readable(self, memory: FrameMemory) -> Tensor:
        assert self.selective is not None, "all frames are read where no memory is selective"
        return memory.visible | ~self.selective


def track(
    model: SAM2,
    frames: Sequence[StackedFeatures],
    truth: Tensor,
    clip_of: Sequence[int],
    settings: JointRollout,
    rng: np.random.Generator,
) -> list[ObjectPrediction]:
    """Predictions for N objects on all frames after the first.

    Args:
        model: the network.
        frames: T frames of all clips, encoded.
        truth: (N, T, S, S) of 0 and 1; objects are prompted by their masks on the first frame.
        clip_of: (N) the clip of each object.
        settings: of memory.
        rng: of what is drawn for the whole batch; what is drawn for each object comes from torch's generator.
    """
    obj_ids, grid = tuple(range(len(clip_of))), frames[0].grid
    clips = to_device_async(list(clip_of), truth.device, torch.long)
    selective = torch.rand(len(clip_of), device=truth.device) < settings.visible_only if settings.visible_only else None
    memory = JointMemory(model, grid, selective, prompt_age=settings.draw_age(rng))
    graded, trained = settings.graded_frames(truth, rng), torch.is_grad_enabled()
    with torch.set_grad_enabled(trained and not settings.truncated):
        memory.frames.append(_remember_prompt(model, _rows(frames[0], clips), truth[:, 0]))
    predictions = []
    for time, stacked in enumerate(frames[1:], start=1):
        features = _rows(stacked, clips)
        with torch.set_grad_enabled(trained and time in graded):
            conditioned = model.attend(features, memory.read()).features
            decoded = model.decode(conditioned, features, candidates=model.candidates.allows(0, with_memory=True))
        prediction = ObjectPrediction(stacked.index, obj_ids, decoded, conditioned, False)
        if time in graded:
            predictions.append(prediction)
        if time + 1 < len(frames):
            with torch.set_grad_enabled(trained and not settings.truncated):
                memory.frames.append(_remember(model, features, decoded, truth[:, time], settings.noise, rng))
    if predictions and rng.random() < settings.correct:
        predictions.append(_corrected(model, features, prediction, truth[:, -1], rng))
    return predictions


def _rows(stacked: StackedFeatures, clips: Tensor) -> FrameFeatures:
    """Features of R rows, (R, Q, C), by the clip of each row."""
    high = stacked.high and (stacked.high[0][clips], stacked.high[1][clips])
    return FrameFeatures(stacked.index, stacked.low[clips], stacked.low_pos, high, stacked.grid)


def _remember_prompt(model: SAM2, features: FrameFeatures, masks: Tensor) -> FrameMemory:
    """Memory of mask prompts (R, S, S)."""
    decoded = model.masks_as_output(features, masks)
    return _encoded(model, features, decoded.masks[:, 0], decoded.pointers[:, 0], decoded.objectness > 0)


def _remember(
    model: SAM2, features: FrameFeatures, decoded: Decoded, truth: Tensor, noise: MemoryNoise, rng: np.random.Generator
) -> FrameMemory:
    """Memory of the candidates of highest predicted IoU, after the absent-object gate and the noise."""
    logits, pointers = best_candidates(decoded)
    visible = decoded.objectness > 0
    logits = torch.where(visible[:, None, None], logits, ABSENT_LOGIT)
    pointers = model.gate_pointers(pointers, visible)
    return _encoded(model, features, disturb_rows(logits, truth, noise, rng), pointers, visible)


def best_candidates(decoded: Decoded) -> tuple[Tensor, Tensor]:
    """Masks (R, h, w) and pointers (R, C) of the candidates of highest predicted IoU."""
    best = decoded.iou.detach().argmax(1)
    rows = torch.arange(len(best), device=best.device)
    return decoded.masks[rows, best], decoded.pointers[rows, best]


def _encoded(model: SAM2, features: FrameFeatures, logits: Tensor, pointer: Tensor, visible: Tensor) -> FrameMemory:
    maps = model.memory_maps(features, logits, binarize=torch.zeros_like(visible), present=visible)
    return FrameMemory(maps.flatten(2).transpose(1, 2), pointer, visible)


def _corrected(
    model: SAM2, features: FrameFeatures, prediction: ObjectPrediction, truth: Tensor, rng: np.random.Generator
) -> ObjectPrediction:
    """The answers to a click on the error of each prediction, or to a box; the prediction is a hint: an empty mask where no
    object was seen, and in some rows as if none had been."""
    logits, _ = best_candidates(prediction.decoded)
    visible = (prediction.decoded.objectness > 0)[:, None, None] & ~_drawn_rows(logits, OVERLOOKED)
    logits = torch.where(visible, logits, ABSENT_LOGIT).detach().clamp(-HINT_LIMIT, HINT_LIMIT)
    points, labels = error_points(logits, truth)
    if rng.random() < CORRECTING_BOXES:  # an object that is not there has none: a click, and no second point (-1)
        (corners, kinds), present = boxes(truth, DrawnPrompts.box_noise), truth.flatten(1).any(1)
        points = torch.where(present[:, None, None], corners, F.pad(points, (0, 0, 0, 1)))
        labels = torch.where(present[:, None], kinds, F.pad(labels, (0, 1), value=-1))
    decoded = model.decode(
        prediction.conditioned,
        features,
        points=points,
        labels=labels,
        mask_logits=logits.unsqueeze(1),
        candidates=model.candidates.allows(1, with_memory=True),
    )
    return ObjectPrediction(prediction.frame, prediction.obj_ids, decoded, prediction.conditioned, True)


# -- wrong masks in memory ----------------------------------------------------------------------------------------------


def disturb_rows(logits: Tensor, truth: Tensor, noise: MemoryNoise, rng: np.random.Generator) -> Tensor:
    """``MaskNoise`` on R objects at once: masks (R, h, w) with ``truth`` (R, S, S) in place of some, and some eroded,
    dilated, shifted, partly dropped, joined with a rectangle beside it or moved far away, by an amount that is drawn for
    all of them."""
    if noise.truth:
        share = F.adaptive_avg_pool2d(truth.unsqueeze(1), (logits.shape[-2], logits.shape[-1]))[:, 0]
        logits = torch.where(_drawn_rows(logits, noise.truth), (2 * share - 1) * CERTAIN, logits)
    if not noise.disturbed:
        return logits
    side = max(1, round(rng.uniform(0, noise.reach) * logits.shape[-1]))
    quarter = logits.shape[-1] // 4
    near, far = rng.integers(-side, side + 1, 2), rng.integers(-quarter, quarter + 1, 2)
    beside = _moved(torch.where(_rectangles(logits), CERTAIN, -CERTAIN), far)
    eroded = -F.max_pool2d(-logits.unsqueeze(1), 2 * side + 1, 1, side)[:, 0]
    dropped = torch.where(_rectangles(logits), torch.full_like(logits, -CERTAIN), logits)
    variants = [
        F.max_pool2d(logits.unsqueeze(1), 2 * side + 1, 1, side)[:, 0],
        *(eroded, eroded, dropped, dropped),  # more often, or masks shrink frame by frame
        _moved(logits, near),
        torch.maximum(logits, beside),
        _moved(logits, far),
    ]
    kind = torch.randint(len(variants), (len(logits), 1, 1), device=logits.device)
    changed = _drawn_rows(logits, noise.disturbed)
    for number, variant in enumerate(variants):
        logits = torch.where(changed & (kind == number), variant, logits)
    return logits


def _moved(maps: Tensor, offset: np.ndarray) -> Tensor:
    """Maps (R, h, w) moved by an offset (down, right) in pixels, with ground behind them."""
    down, right = (int(v) for v in offset)
    side, (height, width) = max(abs(down), abs(right)), maps.shape[-2:]
    padded = F.pad(maps, (side, side, side, side), value=-CERTAIN)
    return padded[:, side - down : side - down + height, side - right : side - right + width]


def _drawn_rows(logits: Tensor, probability: float) -> Tensor:
    """(R, 1, 1) bool."""
    return torch.rand(len(logits), 1, 1, device=logits.device) < probability


def _rectangles(logits: Tensor) -> Tensor:
    """(R, h, w) bool: in each row a rectangle of .2 to .7 of the sides of the mask's box, somewhere within the box."""
    inside = []
    for axis in (1, 2):
        covered = (logits > 0).any(axis)  # (R, w) or (R, h)
        places = torch.arange(covered.shape[1], device=logits.device)
        first = torch.where(covered, places, covered.shape[1]).amin(1, keepdim=True)
        last = torch.where(covered, places, -1).amax(1, keepdim=True)
        size, start = torch.rand(2, len(logits), 1, device=logits.device)
        length = (last - first + 1) * (0.2 + 0.5 * size)
        begin = first + start * (last - first + 1 - length)
        inside.append((places >= begin) & (places <= begin + length))
    across, down = inside
    return down.unsqueeze(2) & across.unsqueeze(1)
