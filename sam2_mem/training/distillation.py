"""Distillation: a student that reads distilled memory learns to see what its teacher sees with all of it.

Both track the same objects on the same frames. What is compared, frame by frame: the memory-conditioned features, the masks,
the predicted IoU and the object score. Masks that enter the student's memory are often the teacher's, so that the two
remember the same things while the student is still bad at it. Clips without labels serve as well: the teacher finds
something to follow in the first frame.
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

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.training.clips import Clip, ClipBatch, ClipWish, normalise
from sam2_mem.training.losses import LossSettings, Prediction, dice_loss, judge, mean_where
from sam2_mem.training.multi_clip_tracker import ObjectPrediction, StackedFeatures
from sam2_mem.training.noise import CERTAIN, MemoryNoise
from sam2_mem.training.rollout import Rollout, RolloutSettings, SegmentLoss, encode_frames

CLICKS = 12
"""Places in a frame without labels where the teacher is asked for an object."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is learned from the teacher, and how.

    Attributes:
        features: weight of the squared difference of memory-conditioned features, relative to the teacher's own size.
        mask: of the divergence KL(teacher || student) of every mask pixel. dice: of the soft dice between the two.
        iou: of the L1 between predicted IoUs. objectness: of the cross-entropy with the teacher's object score.
        truth: of SAM 2's own losses (``rollout.losses``) where a clip has labels.
        foreground, boundary: how much more the features and pixels of the object, and of a band along its edge, count than
            others. hidden: share of the cells of every memory map that are hidden from the distiller (each put to the
            map's mean), so that summaries do not hang on single cells. forcing: probability, per object and frame, that
            the teacher's mask enters the student's memory in place of its own.
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
    forcing: float = 0.7

    def __post_init__(self) -> None:
        negative = [f.name for f in fields(self) if getattr(self, f.name) < 0]
        if negative:
            raise ValueError(f"expected settings of a distillation >= 0, got {negative} below")
        for name in ("hidden", "forcing"):
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

    def weighted(self, settings: Distillation) -> Tensor:
        return sum(getattr(settings, name) * value for name, value in self._asdict().items())


class Teacher:
    """A network that is not trained, and the memory it has.

    Args:
        model: of the student's width and image size; its weights are frozen. policy: any.
    """

    def __init__(self, model: SAM2, policy: MemoryPolicy) -> None:
        self.model = model.eval().requires_grad_(False)
        self.policy = policy

    def check(self, student: SAM2) -> None:
        """ValueError where the two cannot be compared, or the student has nothing to learn."""
        for name in ("width", "image_size"):
            own, other = getattr(self.model, name), getattr(student, name)
            if own != other:
                raise ValueError(f"expected a teacher and a student of equal {name}, got {own} and {other}")
        if not any(p.requires_grad for p in student.parameters()):
            raise ValueError(
                "expected a student with something to learn, got none; choose a distiller that learns, for example "
                'model_overrides=["distiller=temporal"], and see plan.optimisation.rates'
            )

    def sees_alike(self, student: SAM2) -> bool:
        """Whether the student's image encoder is the teacher's and stays so: then frames are encoded once for both."""
        mine, other = self.model.image_encoder.state_dict(), student.image_encoder.state_dict()
        frozen = not any(p.requires_grad for p in student.image_encoder.parameters())
        return frozen and mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)

    @torch.no_grad()
    def label(self, clip: Clip, rng: np.random.Generator, wish: ClipWish) -> Clip:
        """A clip without labels with objects in its first frame: what the teacher takes for objects at random clicks, those
        of the highest predicted IoU, neither tiny nor most of the frame. Later frames stay without labels."""
        images = normalise(clip.frames[:1]).to(self.model.device)
        features = self.model.encode_image(images, [0])[0]
        side = wish.size
        points = torch.from_numpy(rng.uniform(0.1, 0.9, (CLICKS, 1, 2)) * side).float().to(self.model.device)
        labels = torch.ones(CLICKS, 1, dtype=torch.int32, device=self.model.device)
        plain = self.model.without_memory(features, CLICKS)
        decoded = self.model.decode(plain, features, points=points, labels=labels)
        masks = F.interpolate(decoded.masks.flatten(0, 1)[None].float(), size=(side, side), mode="bilinear")[0] > 0
        areas = masks.flatten(1).float().mean(1)
        good = (areas >= wish.min_area) & (areas <= 0.5)
        order = (decoded.iou.flatten() + good.float()).argsort(descending=True).tolist()
        ids = np.zeros_like(clip.ids)
        for k in order:
            free = masks[k].cpu().numpy() & (ids[0] == 0)
            if good[k] and free.mean() >= max(wish.min_area, 0.6 * float(areas[k])):
                ids[0][free] = ids[0].max() + 1
            if ids[0].max() >= wish.max_objects:
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
        """What the teacher sees of all objects, by frame, with its own memory and no noise."""
        settings = replace(settings, noise=MemoryNoise(), truncate=0)
        rollout = Rollout(self.model, self.policy, settings, batch=batch, rngs=rngs, encoded=encoded)
        return _by_frame(rollout.run())


def taught(
    student: SAM2,
    policy: MemoryPolicy,
    teacher: Teacher,
    settings: RolloutSettings,
    distillation: Distillation,
    *,
    batch: ClipBatch,
    rngs: Sequence[np.random.Generator],
    shared: bool = False,
) -> Iterator[SegmentLoss]:
    """One batch of clips: the teacher's run, then the student's, compared segment by segment. Go backwards through a lesson
    before asking for the next. ``shared``: frames are encoded once, see :meth:`Teacher.sees_alike`."""
    if settings.prompts.correct:
        raise ValueError(
            "expected plan.stages.*.rollout.prompts.correct of 0 in a distillation: the two would be corrected"
        )
    with torch.no_grad():
        encoded = encode_frames(student, batch.images) if shared else None
    known = teacher.track(settings, batch, copy.deepcopy(rngs), encoded)
    forced = TeachersMasks(known, distillation.forcing, [rngs[c] for c in batch.clip_of])
    rollout = Rollout(student, policy, settings, batch=batch, rngs=rngs, encoded=encoded, change=forced)
    with hidden_cells(student.memory_encoder.distiller, distillation.hidden):
        for segment in rollout.segments():
            seen = [s for s in segment.sightings if not s.prompted and s.frame in known]
            if seen:
                terms = compare(seen, known, batch, distillation, settings.losses)
                yield SegmentLoss(terms, terms.weighted(distillation), segment.share)


def _by_frame(sightings: Sequence[ObjectPrediction]) -> dict[int, ObjectPrediction]:
    """One sighting per frame with all objects in order of their ids; answers to prompts are left out."""
    frames: dict[int, list[ObjectPrediction]] = {}
    for sighting in sightings:
        if not sighting.prompted:
            frames.setdefault(sighting.frame, []).append(sighting)
    return {frame: _joined(members) for frame, members in frames.items()}


def _joined(members: Sequence[ObjectPrediction]) -> ObjectPrediction:
    ids = [i for m in members for i in m.obj_ids]
    order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__), device=members[0].conditioned.device)
    parts = zip(*((m.decoded.masks, m.decoded.pointers, m.decoded.iou, m.decoded.objectness) for m in members))
    decoded = members[0].decoded._replace(
        **{n: torch.cat(p)[order] for n, p in zip(("masks", "pointers", "iou", "objectness"), parts)}, maps=None
    )
    conditioned = torch.cat([m.conditioned for m in members])[order]
    return ObjectPrediction(members[0].frame, tuple(sorted(ids)), decoded, conditioned, False)


class TeachersMasks:
    """A change of memory masks: now and then the teacher's in place of the student's.

    Args:
        known: what the teacher saw, by frame. probability: per object and frame. rngs: one generator per object.
    """

    def __init__(
        self, known: dict[int, ObjectPrediction], probability: float, rngs: Sequence[np.random.Generator]
    ) -> None:
        self._known = known
        self._probability = probability
        self._rngs = rngs

    def __call__(self, frame: int, logits: Tensor, obj_ids: Sequence[int]) -> Tensor:
        """(N, h, w) logits -> (N, h, w)."""
        result = []
        for mask, obj_id in zip(logits, obj_ids):
            if self._rngs[obj_id].random() < self._probability and frame in self._known:
                mask = self._mask(self._known[frame], obj_id).to(mask.dtype)
            result.append(mask)
        return torch.stack(result)

    @staticmethod
    def _mask(sighting: ObjectPrediction, obj_id: int) -> Tensor:
        row = sighting.obj_ids.index(obj_id)
        decoded = sighting.decoded
        best = decoded.masks[row, decoded.iou[row].argmax()]
        return torch.where(decoded.objectness[row] > 0, best, torch.full_like(best, -CERTAIN))


@contextmanager
def hidden_cells(distiller: nn.Module, share: float) -> Iterator[None]:
    """Within it, a random ``share`` of the cells of every map that the distiller gets is put to the map's mean."""

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
    sightings: Sequence[ObjectPrediction],
    known: dict[int, ObjectPrediction],
    batch: ClipBatch,
    settings: Distillation,
    losses: LossSettings,
) -> DistillationTerms:
    """Losses of what a student said against what the teacher ``known`` said, as means over objects and frames."""
    pairs = [_pair(s, known[s.frame]) for s in sightings]
    mine, theirs = _stacked([a for a, _ in pairs]), _stacked([b for _, b in pairs])
    best = theirs.iou.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    student, real = mine.masks[rows, best].float(), theirs.masks[rows, best].float()
    present = (theirs.objectness > 0).float()
    target = real.sigmoid()
    pixels = emphasis(target, settings)
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    least = F.binary_cross_entropy_with_logits(real, target, reduction="none")
    side = round(mine.conditioned.shape[1] ** 0.5)
    cells = emphasis(F.adaptive_avg_pool2d(target[:, None], side)[:, 0], settings).flatten(1)
    apart = (mine.conditioned - theirs.conditioned).float().square().mean(-1)
    size = theirs.conditioned.float().square().mean()
    return DistillationTerms(
        features=((apart * cells).sum(1) / cells.sum(1)).mean() / size,
        mask=mean_where(((entropy - least) * pixels).sum((1, 2)) / pixels.sum((1, 2)), present),
        dice=mean_where(dice_loss(student, target), present),
        iou=mean_where((mine.iou - theirs.iou).abs().mean(1), present),
        objectness=F.binary_cross_entropy_with_logits(mine.objectness.float(), theirs.objectness.float().sigmoid()),
        truth=_against_truth(sightings, batch, losses) if settings.truth else best.new_zeros((), dtype=torch.float32),
    )


class _Said(NamedTuple):
    masks: Tensor
    iou: Tensor
    objectness: Tensor
    conditioned: Tensor


def _pair(mine: ObjectPrediction, theirs: ObjectPrediction) -> tuple[_Said, _Said]:
    """The rows of a student's sighting, and the same rows of the teacher's."""
    rows = torch.tensor([theirs.obj_ids.index(i) for i in mine.obj_ids], device=theirs.conditioned.device)
    own = _Said(mine.decoded.masks, mine.decoded.iou, mine.decoded.objectness, mine.conditioned)
    told = (theirs.decoded.masks, theirs.decoded.iou, theirs.decoded.objectness, theirs.conditioned)
    return own, _Said(*(t[rows] for t in told))


def _stacked(said: Sequence[_Said]) -> _Said:
    return _Said(*(torch.cat(parts) for parts in zip(*said)))


def emphasis(probability: Tensor, settings: Distillation) -> Tensor:
    """Weights of the pixels of masks (R, h, w): 1, more on the object and along its edge."""
    grown = F.max_pool2d(probability[:, None], 3, 1, 1)[:, 0]
    shrunk = -F.max_pool2d(-probability[:, None], 3, 1, 1)[:, 0]
    return 1 + settings.foreground * probability + settings.boundary * (grown - shrunk)


def _against_truth(sightings: Sequence[ObjectPrediction], batch: ClipBatch, losses: LossSettings) -> Tensor:
    """SAM 2's own losses on the objects of labelled clips."""
    total, count = batch.truth.new_zeros(()), 0
    for sighting in sightings:
        rows = [r for r, i in enumerate(sighting.obj_ids) if batch.labelled[batch.clip_of[i]]]
        if rows:
            decoded = sighting.decoded
            said = Prediction(decoded.masks[rows], decoded.iou[rows], decoded.objectness[rows])
            real = batch.truth[[sighting.obj_ids[r] for r in rows], sighting.frame]
            total = total + len(rows) * judge(said, real, losses).weighted(losses)
            count += len(rows)
    return total / max(count, 1)
