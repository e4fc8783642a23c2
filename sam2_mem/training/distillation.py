"""Distillation: a student that reads distilled memory learns to predict what its teacher predicts with full memory.

Both track the same objects on the same frames. Compared, frame by frame, are the memory-conditioned features, the masks, the
predicted IoU and the object score. Masks that enter the student's memory are often the teacher's, so that both memories
agree while the student is still bad. Clips without labels serve as well: the teacher marks objects in the first frame.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem._moved import renamed
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.training.clips import Clip, ClipBatch, ClipSpec, normalise
from sam2_mem.training.losses import LossSettings, Prediction, dice_loss, frame_loss, mean_where
from sam2_mem.training.multi_clip_tracker import ObjectPrediction, StackedFeatures
from sam2_mem.training.noise import CERTAIN, MemoryNoise
from sam2_mem.training.reconstruction import FeatureGenerator, reconstruction_loss
from sam2_mem.training.rollout import PredictionRows, Rollout, RolloutSettings, SegmentLoss, encode_frames

CLICKS = 12
"""Random points in a frame without labels, each of which prompts the teacher for an object."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is learned from the teacher, and how.

    Attributes:
        features: weight of the squared difference of memory-conditioned features, relative to the mean square of the
            teacher's.
        mask: weight of the divergence KL(teacher || student) of every mask pixel.
        dice: weight of the soft dice between the two.
        iou: weight of the L1 between predicted IoUs.
        objectness: weight of the cross-entropy with the teacher's object score.
        truth: weight of SAM 2's losses (``rollout.losses``) where a clip has labels.
        foreground: additional weight of the features and pixels of the object.
        boundary: additional weight of those in a band along its edge.
        hidden: share of the cells of every memory map that are hidden from the distiller (each is set to the map's mean),
            so that summaries do not depend on single cells.
        reconstruction: weight of the squared difference to the teacher's features of what a generator, trained beside the student,
            makes of the student's with cells hidden (``sam2_mem.training.reconstruction``); 0: no generator.
        masked: share of the cells that are hidden from the generator.
        forcing: probability, per object and frame, that the teacher's mask enters the student's memory.
    """

    features: float = 1.0
    mask: float = 1.0
    dice: float = 1.0
    iou: float = 0.5
    objectness: float = 0.5
    truth: float = 0.0
    foreground: float = 4.0
    boundary: float = 4.0
    hidden: float = 0.1
    reconstruction: float = 0.0
    masked: float = 0.5
    forcing: float = 0.7

    def __post_init__(self) -> None:
        negative = [f.name for f in fields(self) if getattr(self, f.name) < 0]
        if negative:
            raise ValueError(f"expected settings of a distillation >= 0, got {negative} below")
        for name in ("hidden", "masked", "forcing"):
            if getattr(self, name) > 1:
                raise ValueError(f"expected {name} in 0..1, got {getattr(self, name)}")


class DistillationTerms(NamedTuple):
    """Unweighted losses, each a scalar: means over the objects and frames they apply to."""

    features: Tensor
    mask: Tensor
    dice: Tensor
    iou: Tensor
    objectness: Tensor
    truth: Tensor
    reconstruction: Tensor

    def weighted(self, settings: Distillation) -> Tensor:
        return sum(getattr(settings, name) * value for name, value in self._asdict().items())


class Teacher:
    """A network that is not trained, and its memory policy.

    Args:
        model: of the student's width and image size; its weights are frozen.
        policy: any.
    """

    def __init__(self, model: SAM2, policy: MemoryPolicy) -> None:
        self.model = model.eval().requires_grad_(False)
        self.policy = policy

    def check(self, student: SAM2) -> None:
        """ValueError where the two cannot be compared, or the student has nothing to learn."""
        for name in ("width", "image_size"):
            ours, students = getattr(self.model, name), getattr(student, name)
            if ours != students:
                raise ValueError(f"expected a teacher and a student of equal {name}, got {ours} and {students}")
        if not any(p.requires_grad for p in student.parameters()):
            raise ValueError(
                "expected a student with something to learn, got none; choose a distiller that learns, for example "
                'model_overrides=["distiller=temporal"], and see plan.optimisation.rates'
            )

    def shares_encoder(self, student: SAM2) -> bool:
        """Whether the student's image encoder equals the teacher's and is frozen: then frames are encoded once for both."""
        ours, students = self.model.image_encoder.state_dict(), student.image_encoder.state_dict()
        frozen = not any(p.requires_grad for p in student.image_encoder.parameters())
        return frozen and ours.keys() == students.keys() and all(torch.equal(ours[k], students[k]) for k in ours)

    @torch.no_grad()
    def label(self, clip: Clip, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        """A clip without labels with objects in its first frame: the teacher's masks at random clicks, those of the highest
        predicted IoU, neither tiny nor most of the frame. Later frames stay without labels."""
        images = normalise(clip.frames[:1]).to(self.model.device)
        features = self.model.encode_image(images, [0])[0]
        side = spec.size
        points = torch.from_numpy(rng.uniform(0.1, 0.9, (CLICKS, 1, 2)) * side).float().to(self.model.device)
        labels = torch.ones(CLICKS, 1, dtype=torch.int32, device=self.model.device)
        conditioned = self.model.without_memory(features, CLICKS)
        decoded = self.model.decode(conditioned, features, points=points, labels=labels)
        masks = F.interpolate(decoded.masks.flatten(0, 1)[None].float(), size=(side, side), mode="bilinear")[0] > 0
        areas = masks.flatten(1).float().mean(1)
        plausible = (areas >= spec.min_area) & (areas <= 0.5)
        order = (decoded.iou.flatten() + plausible.float()).argsort(descending=True).tolist()
        ids = np.zeros_like(clip.ids)
        for k in order:
            free = masks[k].cpu().numpy() & (ids[0] == 0)
            if plausible[k] and free.mean() >= max(spec.min_area, 0.6 * float(areas[k])):
                ids[0][free] = ids[0].max() + 1
            if ids[0].max() >= spec.max_objects:
                break
        return replace(clip, ids=ids)

    @torch.no_grad()
    def track(
        self,
        settings: RolloutSettings,
        batch: ClipBatch,
        rngs: Sequence[np.random.Generator],
        encoded: Sequence[StackedFeatures] | None,
    ) -> dict[int, ObjectPrediction]:
        """The teacher's predictions of all objects, by frame, with its own memory and no noise."""
        settings = replace(settings, noise=MemoryNoise(), truncate=0)
        rollout = Rollout(self.model, self.policy, settings, batch=batch, rngs=rngs, encoded=encoded)
        return _by_frame(rollout.run())


def distillation_loss(
    student: SAM2,
    policy: MemoryPolicy,
    teacher: Teacher,
    settings: RolloutSettings,
    distillation: Distillation,
    *,
    batch: ClipBatch,
    rngs: Sequence[np.random.Generator],
    shared: bool = False,
    generator: FeatureGenerator | None = None,
) -> Iterator[SegmentLoss]:
    """One batch of clips: the teacher's run, then the student's, compared segment by segment. Go backwards through a loss
    before asking for the next. ``shared``: frames are encoded once, see ``Teacher.shares_encoder``; ``generator``: of
    ``distillation.reconstruction``."""
    if settings.prompts.correct:
        raise ValueError(
            "expected plan.stages.*.rollout.prompts.correct of 0 in a distillation: the two would be corrected"
        )
    with torch.no_grad():
        encoded = encode_frames(student, batch.images) if shared else None
    targets = teacher.track(settings, batch, copy.deepcopy(rngs), encoded)
    forced = TeachersMasks(targets, distillation.forcing, [rngs[c] for c in batch.clip_of])
    rollout = Rollout(student, policy, settings, batch=batch, rngs=rngs, encoded=encoded, change=forced)
    with hidden_cells(student.memory_encoder.distiller, distillation.hidden):
        for segment in rollout.segments():
            predictions = [p for p in segment.predictions if not p.prompted and p.frame in targets]
            if predictions:
                terms = compare(predictions, targets, batch, distillation, settings.losses, generator)
                yield SegmentLoss(terms, terms.weighted(distillation), segment.share)


def _by_frame(predictions: Sequence[ObjectPrediction]) -> dict[int, ObjectPrediction]:
    """One prediction per frame with all objects in order of their ids; answers to prompts are left out."""
    frames: dict[int, list[ObjectPrediction]] = {}
    for prediction in predictions:
        if not prediction.prompted:
            frames.setdefault(prediction.frame, []).append(prediction)
    return {frame: _joined(members) for frame, members in frames.items()}


def _joined(members: Sequence[ObjectPrediction]) -> ObjectPrediction:
    ids = tuple(i for m in members for i in m.obj_ids)
    masks, iou, objectness, conditioned = PredictionRows.of(members)
    decoded = Decoded(masks, torch.cat([m.decoded.pointers for m in members]), iou, objectness)
    return _select(ObjectPrediction(members[0].frame, ids, decoded, conditioned, False), sorted(ids))


def _select(prediction: ObjectPrediction, obj_ids: Sequence[int]) -> ObjectPrediction:
    """The prediction of some of its objects, in this order."""
    rows = [prediction.obj_ids.index(i) for i in obj_ids]
    masks, pointers, iou, objectness, _ = prediction.decoded
    decoded = Decoded(masks[rows], pointers[rows], iou[rows], objectness[rows])
    return replace(prediction, obj_ids=tuple(obj_ids), decoded=decoded, conditioned=prediction.conditioned[rows])


class TeachersMasks:
    """A change of memory masks: now and then the teacher's in place of the student's.

    Args:
        targets: the teacher's predictions, by frame.
        probability: per object and frame.
        rngs: one generator per object.
    """

    def __init__(
        self, targets: dict[int, ObjectPrediction], probability: float, rngs: Sequence[np.random.Generator]
    ) -> None:
        self._targets = targets
        self._probability = probability
        self._rngs = rngs

    def __call__(self, frame: int, logits: Tensor, obj_ids: Sequence[int]) -> Tensor:
        """(N, h, w) logits -> (N, h, w)."""
        result = []
        for mask, obj_id in zip(logits, obj_ids):
            if self._rngs[obj_id].random() < self._probability and frame in self._targets:
                mask = self._mask(self._targets[frame], obj_id).to(mask.dtype)
            result.append(mask)
        return torch.stack(result)

    @staticmethod
    def _mask(target: ObjectPrediction, obj_id: int) -> Tensor:
        row = target.obj_ids.index(obj_id)
        decoded = target.decoded
        best = decoded.masks[row, decoded.iou[row].argmax()]
        return torch.where(decoded.objectness[row] > 0, best, torch.full_like(best, -CERTAIN))


@contextmanager
def hidden_cells(distiller: nn.Module, share: float) -> Iterator[None]:
    """Within it, a random ``share`` of the cells of every map that the distiller gets is set to the map's mean."""

    def hide(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (maps,) = inputs
        hidden = torch.rand(maps.shape[0], 1, *maps.shape[2:], device=maps.device) < share
        return (torch.where(hidden, maps.mean((2, 3), keepdim=True), maps),)

    handle = distiller.register_forward_pre_hook(hide) if share else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


# -- losses -----------------------------------------------------------------------------------------------------------


def compare(
    predictions: Sequence[ObjectPrediction],
    targets: dict[int, ObjectPrediction],
    batch: ClipBatch,
    settings: Distillation,
    losses: LossSettings,
    generator: FeatureGenerator | None = None,
) -> DistillationTerms:
    """Losses of a student's predictions against the teacher's ``targets``, as means over objects and frames."""
    student = PredictionRows.of(predictions)
    teacher = PredictionRows.of(_select(targets[p.frame], p.obj_ids) for p in predictions)
    best = teacher.iou.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    logits, target_logits = student.masks[rows, best].float(), teacher.masks[rows, best].float()
    present = (teacher.objectness > 0).float()
    target = target_logits.sigmoid()
    pixels = emphasis(target, settings)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    target_entropy = F.binary_cross_entropy_with_logits(target_logits, target, reduction="none")
    side = round(student.conditioned.shape[1] ** 0.5)
    cells = emphasis(F.adaptive_avg_pool2d(target[:, None], side)[:, 0], settings).flatten(1)
    error = (student.conditioned - teacher.conditioned).float().square().mean(-1)
    size = teacher.conditioned.float().square().mean()
    nothing = best.new_zeros((), dtype=torch.float32)
    features = student.conditioned, teacher.conditioned
    return DistillationTerms(
        features=((error * cells).sum(1) / cells.sum(1)).mean() / size,
        mask=mean_where(((entropy - target_entropy) * pixels).sum((1, 2)) / pixels.sum((1, 2)), present),
        dice=mean_where(dice_loss(logits, target), present),
        iou=mean_where((student.iou - teacher.iou).abs().mean(1), present),
        objectness=F.binary_cross_entropy_with_logits(student.objectness.float(), teacher.objectness.float().sigmoid()),
        truth=_true_loss(predictions, batch, losses) if settings.truth else nothing,
        reconstruction=nothing
        if generator is None
        else reconstruction_loss(generator, *features, cells, settings.masked),
    )


def emphasis(probability: Tensor, settings: Distillation) -> Tensor:
    """Weights of the pixels of masks (R, h, w): 1, more on the object and along its edge."""
    grown = F.max_pool2d(probability[:, None], 3, 1, 1)[:, 0]
    shrunk = -F.max_pool2d(-probability[:, None], 3, 1, 1)[:, 0]
    return 1 + settings.foreground * probability + settings.boundary * (grown - shrunk)


def _true_loss(predictions: Sequence[ObjectPrediction], batch: ClipBatch, losses: LossSettings) -> Tensor:
    """SAM 2's losses on the objects of labelled clips."""
    total, count = batch.truth.new_zeros(()), 0
    for prediction in predictions:
        rows = [r for r, i in enumerate(prediction.obj_ids) if batch.labelled[batch.clip_of[i]]]
        if rows:
            decoded = prediction.decoded
            labelled = Prediction(decoded.masks[rows], decoded.iou[rows], decoded.objectness[rows])
            real = batch.truth[[prediction.obj_ids[r] for r in rows], prediction.frame]
            total = total + len(rows) * frame_loss(labelled, real, losses).weighted(losses)
            count += len(rows)
    return total / max(count, 1)


__getattr__ = renamed(__name__)
