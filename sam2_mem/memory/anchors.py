"""Rules of long-term memory: which frames stay as anchors beside any short-term policy (``sam2_mem.memory.hybrid``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from sam2_mem.memory.bank import drop, shifted
from sam2_mem.memory.distractors import Areas, areas_with, packed_pixels, promotion, visible_pixels
from sam2_mem.memory.diversity import grow_long_term
from sam2_mem.memory.likeness import LIKENESSES
from sam2_mem.memory.policy import Needs, check_settings, setting
from sam2_mem.memory.significance import significances
from sam2_mem.memory.trace import Action, Reason
from sam2_mem.types import FrameContext, FrameFeatures, Hypotheses, MaskSelection, MemoryEntry

Entries = tuple[MemoryEntry, ...]


@dataclass(frozen=True, eq=False)
class AnchorBank:
    """What a rule keeps of one object.

    Attributes:
        long: the anchors, in the order in which they joined.
        pool: candidates, in the order in which they came.
        steps: tracked frames so far.
        joined_at: step at which the latest anchor joined.
        areas: (step, pixels) of the latest visible masks.
        look: (C) mean image features of the frame before, None where nobody asked for it.
    """

    long: Entries = ()
    pool: Entries = ()
    steps: int = 0
    joined_at: int | None = None
    areas: Areas = ()
    look: Tensor | None = None

    def entries(self) -> Entries:
        """Anchors and candidates."""
        return (*self.long, *self.pool)

    def without(self, frame: int) -> AnchorBank:
        return replace(self, long=drop(self.long, frame), pool=drop(self.pool, frame))

    def forget(self, frame: int, radius: int) -> AnchorBank:
        long, pool = (tuple(e for e in part if abs(e.frame - frame) > radius) for part in (self.long, self.pool))
        return replace(self, long=long, pool=pool)

    def shift_frames(self, by: int) -> AnchorBank:
        return replace(self, long=shifted(self.long, by), pool=shifted(self.pool, by), look=None)


@dataclass(frozen=True)
class Tracked:
    """What a rule is told of a tracked frame.

    Attributes:
        frame: the frame.
        hypotheses: all candidates.
        selection: by the short-term policy.
        entry: of the mask given out; None where the policy does not remember it.
        prompts: prompted entries, at least one.
        min_obj_score_logits: the object is absent at this object score or below.
    """

    frame: FrameContext
    hypotheses: Hypotheses
    selection: MaskSelection
    entry: MemoryEntry | None
    prompts: Entries
    min_obj_score_logits: float


@dataclass(frozen=True, kw_only=True)
class AnchorRule(ABC):
    """Base of all rules: frozen keyword-only dataclasses whose fields are the keys of ``configs/memory_anchor/<name>.yaml``.

    Attributes:
        max_long: anchors kept.
    """

    max_long: int = setting(3, at_least=1)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def needs(self) -> Needs:
        """What the rule asks of the tracker."""
        return Needs()

    @property
    def max_maps(self) -> int:
        """The most maps that the rule holds."""
        return self.max_long

    def measured_size(self, bank: AnchorBank, frame: FrameContext, masks: Tensor) -> int:
        """How many numbers ``measure`` gives. Pure."""
        return 0

    def measure(self, bank: AnchorBank, frame: FrameContext, masks: Tensor) -> Tensor | None:
        """Numbers that ``update`` goes by, as ``MemoryPolicy.measure``; they come in the hypotheses that it is given."""
        return None

    @abstractmethod
    def update(self, bank: AnchorBank, tracked: Tracked) -> tuple[AnchorBank, Sequence[Reason]]:
        """``bank`` after a tracked frame, of which it holds nothing yet, and why. Pure."""

    def joined(self, bank: AnchorBank, entry: MemoryEntry) -> AnchorBank:
        """``bank`` with a new anchor; beyond ``max_long`` the one that joined first leaves."""
        return replace(bank, long=(*bank.long, entry)[-self.max_long :], joined_at=bank.steps)


@dataclass(frozen=True, kw_only=True)
class DistractorAnchors(AnchorRule):
    """DAM4SAM's promotion: a good mask of usual size while an alternative shows something else. Fields as in ``dam4sam``."""

    min_iou: float = 0.8
    min_area_ratio: float = setting(0.8, at_least=0.0)
    max_area_ratio: float = 1.2
    area_count: int = setting(10, at_least=1)
    area_window: int = setting(300, at_least=1)
    min_gap: int = 5
    max_box_overlap: float = setting(0.7, at_least=0.0, at_most=1.0)

    def measured_size(self, bank: AnchorBank, frame: FrameContext, masks: Tensor) -> int:
        looks_at_pixels = bank.steps > 0 and (bank.joined_at is None or bank.steps + 1 - bank.joined_at > self.min_gap)
        return masks.numel() // 4 if looks_at_pixels else 0

    def measure(self, bank: AnchorBank, frame: FrameContext, masks: Tensor) -> Tensor | None:
        """The pixels of all candidates."""
        return packed_pixels(masks) if self.measured_size(bank, frame, masks) else None

    def update(self, bank: AnchorBank, tracked: Tracked) -> tuple[AnchorBank, Sequence[Reason]]:
        candidate, step = tracked.selection.output, bank.steps + 1
        area = visible_pixels(tracked.hypotheses, candidate, tracked.min_obj_score_logits)
        reason = promotion(
            *(tracked.frame.index, tracked.hypotheses, candidate, area),
            step=step,
            promoted_at=bank.joined_at,
            areas=bank.areas,
            limits=self,
        )
        grown = replace(bank, steps=step, areas=areas_with(bank.areas, step, area, self))
        if reason.action is not Action.PROMOTED or tracked.entry is None:
            return grown, ()
        return self.joined(grown, tracked.entry), (reason,)


@dataclass(frozen=True, kw_only=True)
class DiverseAnchors(AnchorRule):
    """ReSurgSAM2's rule: of every full pool of good frames the one least like the newest anchor. Fields as in ``diverse``."""

    pool_size: int = setting(5, at_least=1)
    min_iou: float = 0.95
    min_object_score: float = 0.0
    likeness: str = setting("map", choices=LIKENESSES)

    @property
    def needs(self) -> Needs:
        return Needs(summary=self.likeness == "summary")

    @property
    def max_maps(self) -> int:
        return self.max_long + self.pool_size

    def update(self, bank: AnchorBank, tracked: Tracked) -> tuple[AnchorBank, Sequence[Reason]]:
        entry, by = tracked.entry, self.likeness
        if entry is None or not is_good(entry, self.min_iou, self.min_object_score, summary=by == "summary"):
            return bank, ()
        size = {"max_long": self.max_long, "pool_size": self.pool_size}
        long, pool = grow_long_term(bank.long, bank.pool, entry, tracked.prompts, by=by, **size)
        text = "an anchor: least like the newest one"
        reasons = [Reason(e.frame, text, action=Action.PROMOTED) for e in long if e not in bank.long]
        return replace(bank, long=long, pool=pool), reasons


@dataclass(frozen=True, kw_only=True)
class KeyframeAnchors(AnchorRule):
    """Significance: every ``gap``-th tracked frame is a candidate, of all anchors and the candidate the least significant
    leaves. Fields as in ``keyframe``."""

    gap: int = setting(4, at_least=1)
    min_iou: float = 0.5
    min_object_score: float = 0.0
    pointer_weight: float = setting(0.5, at_least=0.0, at_most=1.0)

    @property
    def needs(self) -> Needs:
        return Needs(summary=True)

    def update(self, bank: AnchorBank, tracked: Tracked) -> tuple[AnchorBank, Sequence[Reason]]:
        entry, bank = tracked.entry, replace(bank, steps=bank.steps + 1)
        if bank.steps % self.gap or entry is None:
            return bank, ()
        if not is_good(entry, self.min_iou, self.min_object_score, summary=True):
            return bank, ()
        keys = (*bank.long, entry)
        if len(keys) <= self.max_long:
            return self.joined(bank, entry), (Reason(entry.frame, "an anchor", action=Action.PROMOTED),)
        scores = significances(keys, tracked.prompts, pointer_weight=self.pointer_weight)
        weakest = min(keys, key=lambda e: scores[e.frame])
        limit = scores[weakest.frame]
        if weakest is entry:
            return bank, (Reason(entry.frame, "no anchor: least significant", limit, action=Action.REJECTED),)
        grown = self.joined(replace(bank, long=drop(bank.long, weakest.frame)), entry)
        reason = Reason(entry.frame, "an anchor: significance", scores[entry.frame], limit, Action.PROMOTED)
        return grown, (reason, Reason(weakest.frame, "least significant anchor", limit))


@dataclass(frozen=True, kw_only=True)
class SceneAnchors(AnchorRule):
    """SeC's trigger (arXiv 2507.15852): the first frame of a new scene on which the object is present.

    The scene changes where (1 - cosine) / 2 between the mean image features of this frame and of the one before is above
    ``min_change``; SeC compares histograms of hue and saturation.

    Attributes:
        min_change: 0..1.
        min_object_score: object-score logit that the frame is above; 1 in SeC.
        max_long: 6 in SeC, beside the first frame.
    """

    max_long: int = setting(6, at_least=1)
    min_change: float = setting(0.02, at_least=0.0, at_most=1.0)
    min_object_score: float = 1.0

    def measured_size(self, bank: AnchorBank, frame: FrameContext, masks: Tensor) -> int:
        return int(bank.look is not None and frame.features is not None)

    def measure(self, bank: AnchorBank, frame: FrameContext, masks: Tensor) -> Tensor | None:
        """The cosine that ``update`` goes by."""
        if bank.look is None or frame.features is None:
            return None
        return F.cosine_similarity(_look(frame.features), bank.look, dim=0)

    def update(self, bank: AnchorBank, tracked: Tracked) -> tuple[AnchorBank, Sequence[Reason]]:
        features, entry = tracked.frame.features, tracked.entry
        if features is None:
            return bank, ()
        look = _look(features)
        grown = replace(bank, look=look, steps=bank.steps + 1)
        if bank.look is None or entry is None or not entry.objectness > self.min_object_score:
            return grown, ()
        measured = tracked.hypotheses.measured
        cosine = F.cosine_similarity(look, bank.look, dim=0) if measured is None else measured[0]
        change = (1 - cosine.item()) / 2
        if not change > self.min_change:
            return grown, ()
        reason = Reason(entry.frame, "an anchor: the scene changes", change, self.min_change, Action.PROMOTED)
        return self.joined(grown, entry), (reason,)


def _look(features: FrameFeatures) -> Tensor:
    """Mean image features (C) of a frame."""
    return features.low.float().mean(-2).flatten()


def is_good(entry: MemoryEntry, min_iou: float, min_object_score: float, *, summary: bool) -> bool:
    """Whether an entry's scores are above both thresholds, and whether it has a summary where one is asked for."""
    comparable = not summary or entry.summary is not None
    return comparable and entry.iou > min_iou and entry.objectness > min_object_score
