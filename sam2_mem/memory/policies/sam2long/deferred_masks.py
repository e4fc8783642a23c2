"""What several pathways say of the latest frames, and which masks that have been given out must be replaced.

A frame stays open while pathways disagree about it and it is young enough. When another pathway becomes the best, its
masks of the open frames replace those given out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sam2_mem.types import ABSENT_LOGIT, CandidateId, FrameContext, Hypotheses, Revision


@dataclass(frozen=True, eq=False)
class PublishedMask:
    """One pathway's mask of one frame: ``logits`` (h, w) after the absent-object gate. Pathways that agree share it."""

    frame: int
    logits: Tensor
    iou: float
    objectness: float
    present: bool

    def as_revision(self) -> Revision:
        return Revision(self.frame, self.logits, self.iou, self.objectness, present=self.present)


@dataclass(frozen=True, eq=False)
class OpenFrames:
    """``paths``: for every pathway its masks of the open frames, oldest first; the best pathway comes first. ``given``:
    the masks of those frames that have been given out. ``news``: what replaces masks given out before the latest
    frame."""

    paths: tuple[tuple[PublishedMask, ...], ...] = ()
    given: tuple[PublishedMask, ...] = ()
    news: tuple[PublishedMask, ...] = ()
    latest: int | None = None
    reverse: bool = False

    def pending(self) -> tuple[PublishedMask, ...]:
        """Masks of open frames on which the best pathway differs from what was given out."""
        return tuple(b for b, g in zip(self.paths[0], self.given) if b is not g) if self.paths else ()

    def without(self, frame: int) -> OpenFrames:
        """The same with ``frame`` closed as it was given out."""
        return self._keep([s.frame != frame for s in self.given])

    def _keep(self, wanted: Sequence[bool]) -> OpenFrames:
        return OpenFrames(
            paths=tuple(tuple(s for s, w in zip(path, wanted) if w) for path in self.paths),
            given=tuple(s for s, w in zip(self.given, wanted) if w),
            latest=self.latest,
            reverse=self.reverse,
        )


def shown(frame: int, hypotheses: Hypotheses, pick: CandidateId, threshold: float) -> PublishedMask:
    """A candidate as it is given out: empty unless its object score is above ``threshold``."""
    logits = hypotheses.masks[pick.pathway, pick.candidate].detach()
    objectness = hypotheses.objectness[pick.pathway]
    present = objectness > threshold
    logits = logits.clone() if present else logits.new_full((1, 1), ABSENT_LOGIT).expand(logits.shape)
    return PublishedMask(frame, logits, hypotheses.iou[pick.pathway][pick.candidate], objectness, present)


def grow(
    trails: OpenFrames,
    frame: FrameContext,
    parents: Sequence[int],
    masks: Sequence[PublishedMask],
    *,
    max_lag: int | None,
    at_once: bool,
) -> OpenFrames:
    """One more frame.

    Args:
        parents: of every pathway, the best first, the pathway it goes on from. masks: what each says of ``frame``; that
            of the first is given out.
        max_lag: oldest age, in frames, of a mask that may be replaced; None for no limit.
        at_once: replace masks as soon as another pathway leads; else each mask at most once, when its frame closes.
    """
    old = _continued(trails, frame)
    paths = tuple((*(old.paths[p] if old.paths else ()), mask) for p, mask in zip(parents, masks))
    given = (*old.given, masks[0])
    settled = _settled(paths)
    closing = [
        i < settled or (max_lag is not None and frame.age(mask.frame) >= max_lag) for i, mask in enumerate(given)
    ]
    news = tuple(b for b, g, c in zip(paths[0], given, closing) if b is not g and (at_once or c))
    given = paths[0] if at_once else given
    kept = OpenFrames(paths=paths, given=given, latest=frame.index, reverse=frame.reverse)._keep(
        [not c for c in closing]
    )
    return OpenFrames(paths=kept.paths, given=kept.given, news=news, latest=kept.latest, reverse=kept.reverse)


def _continued(trails: OpenFrames, frame: FrameContext) -> OpenFrames:
    """The open frames, unless another pass has begun: its masks have been given out for good."""
    same_pass = trails.latest is not None and trails.reverse == frame.reverse and frame.age(trails.latest) > 0
    return trails if same_pass else OpenFrames()


def _settled(paths: Sequence[Sequence[PublishedMask]]) -> int:
    """Number of oldest frames on which all pathways agree; nothing can change them any more."""
    count = 0
    for masks in zip(*paths):
        if any(mask is not masks[0] for mask in masks):
            break
        count += 1
    return count
