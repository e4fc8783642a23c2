"""Results that are final: masks of policies that rewrite the past wait until they can no longer change."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from sam2_mem.types import FrameResult, ObjectScore, Revision


def delayed(
    results: Iterable[FrameResult], lag: int, finish: Callable[[], Sequence[Revision]] = tuple
) -> Iterator[FrameResult]:
    """The results of one pass with their revisions applied, in the same order, each ``lag`` frames later.

    Holds at most ``lag + 1`` results. Results come out without revisions of their own. If ``results`` fail, those that
    are waiting come first, then the error.

    Args:
        results: of :meth:`Tracker.step`. lag: ``policy.needs.revise``. finish: :meth:`Tracker.finish`, asked at the
            end.
    """
    if lag < 0:
        raise ValueError(f"expected lag >= 0, got {lag}")
    waiting: deque[FrameResult] = deque()
    failure: Exception | None = None
    try:
        for result in results:
            waiting.append(replace(result, revisions=()))
            revise(waiting, result.revisions)
            if len(waiting) > lag:
                yield waiting.popleft()
    except Exception as error:  # whatever it is, it is raised below
        failure = error
    revise(waiting, finish())
    yield from waiting
    if failure is not None:
        raise failure


def revise(waiting: deque[FrameResult], revisions: Sequence[Revision]) -> None:
    """Apply ``revisions`` to the results of their frames; those of frames that have been given out, in an earlier pass,
    are too late and have no effect."""
    for position, result in enumerate(waiting) if revisions else ():
        for revision in revisions:
            if revision.frame == result.frame and revision.obj_id in result.obj_ids:
                waiting[position] = result = revised(result, revision)


def revised(result: FrameResult, revision: Revision) -> FrameResult:
    """``result`` with one object's mask and score replaced."""
    row = result.obj_ids.index(revision.obj_id)
    masks, scores = list(result.masks), list(result.scores)
    masks[row] = revision.logits
    scores[row] = _score(scores[row], revision)
    return replace(result, masks=torch.stack(masks), scores=tuple(scores))


def _score(score: ObjectScore, revision: Revision) -> ObjectScore:
    return replace(score, iou=revision.iou, objectness=revision.objectness, present=revision.present)
