"""What several pathways say of the latest frames, and which masks that have been given out must be replaced.

A frame stays open while pathways disagree about it and it is young enough. When another pathway becomes the best, its
masks of the open frames replace those given out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    """Masks of the frames that may still be revised.

    Attributes:
        paths: for every pathway its masks of the open frames, oldest first; the best pathway comes first.
        published: the masks of those frames that have been given out.
        revisions: what replaces masks given out before the last frame.
        last_frame: the frame added last.
        reverse: the direction of its pass.
    """

    paths: tuple[tuple[PublishedMask, ...], ...] = ()
    published: tuple[PublishedMask, ...] = ()
    revisions: tuple[PublishedMask, ...] = ()
    last_frame: int | None = None
    reverse: bool = False

    def pending(self) -> tuple[PublishedMask, ...]:
        """Masks of open frames on which the best pathway differs from what was given out."""
        return tuple(b for b, p in zip(self.paths[0], self.published) if b is not p) if self.paths else ()

    def without(self, frame: int) -> OpenFrames:
        """The same with ``frame`` closed as it was given out."""
        return self._keep([mask.frame != frame for mask in self.published])

    def _keep(self, is_open: Sequence[bool]) -> OpenFrames:
        return OpenFrames(
            paths=tuple(tuple(mask for mask, is_kept in zip(path, is_open) if is_kept) for path in self.paths),
            published=tuple(mask for mask, is_kept in zip(self.published, is_open) if is_kept),
            last_frame=self.last_frame,
            reverse=self.reverse,
        )


def published_mask(frame: int, hypotheses: Hypotheses, candidate: CandidateId, threshold: float) -> PublishedMask:
    """A candidate as it is given out: empty unless its object score is above ``threshold``."""
    logits = hypotheses.masks[candidate.pathway, candidate.candidate].detach()
    objectness = hypotheses.objectness[candidate.pathway]
    present = objectness > threshold
    logits = logits.clone() if present else logits.new_full((1, 1), ABSENT_LOGIT).expand(logits.shape)
    return PublishedMask(frame, logits, hypotheses.iou[candidate.pathway][candidate.candidate], objectness, present)


def add_frame(
    open_frames: OpenFrames,
    frame: FrameContext,
    parents: Sequence[int],
    masks: Sequence[PublishedMask],
    *,
    max_lag: int | None,
    at_once: bool,
) -> OpenFrames:
    """One more frame.

    Args:
        open_frames: masks of the frames before.
        frame: the frame to add.
        parents: of every pathway, the best first, the pathway it goes on from.
        masks: what each says of ``frame``; that of the first is given out.
        max_lag: oldest age, in frames, of a mask that may be replaced; None for no limit.
        at_once: replace masks as soon as another pathway leads; else each mask at most once, when its frame closes.
    """
    earlier = _of_same_pass(open_frames, frame)
    paths = tuple((*(earlier.paths[p] if earlier.paths else ()), mask) for p, mask in zip(parents, masks))
    published = (*earlier.published, masks[0])
    settled = _count_settled(paths)
    closing = [
        i < settled or (max_lag is not None and frame.age(mask.frame) >= max_lag) for i, mask in enumerate(published)
    ]
    revisions = tuple(b for b, p, c in zip(paths[0], published, closing) if b is not p and (at_once or c))
    published = paths[0] if at_once else published
    extended = OpenFrames(paths=paths, published=published, last_frame=frame.index, reverse=frame.reverse)
    return replace(extended._keep([not c for c in closing]), revisions=revisions)


def _of_same_pass(open_frames: OpenFrames, frame: FrameContext) -> OpenFrames:
    """The open frames, unless another pass has begun: its masks have been given out for good."""
    last, reverse = open_frames.last_frame, open_frames.reverse
    return open_frames if last is not None and reverse == frame.reverse and frame.age(last) > 0 else OpenFrames()


def _count_settled(paths: Sequence[Sequence[PublishedMask]]) -> int:
    """Number of oldest frames on which all pathways agree; nothing can change them any more."""
    count = 0
    for masks in zip(*paths):
        if any(mask is not masks[0] for mask in masks):
            break
        count += 1
    return count
