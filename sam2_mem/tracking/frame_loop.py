"""The loop over frames, one for offline video, streams and the command line, and masks that wait until they are final."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from sam2_mem.prompts import Prompt
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.types import FrameFeatures, FrameResult, Revision
from sam2_mem.video import Frame

PromptsAt = Callable[[Frame], Sequence[Prompt]]
"""What is said about objects on a frame, old or new."""


def run(
    state: InferenceState,
    frames: Iterable[Frame],
    prompts_at: PromptsAt | None = None,
    *,
    encode: Callable[[Frame], FrameFeatures],
    reverse: bool = False,
    final: bool = False,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    before_frame: Callable[[], None] | None = None,
    waiting: deque[FrameResult] | None = None,
) -> Iterator[FrameResult]:
    """Track all objects of a session through ``frames``, one result for each.

    Args:
        state: of the session.
        frames: of one pass, in its direction.
        prompts_at: prompts that come with a frame; before the first prompt there is nothing to encode frames for.
        encode: the features of a frame.
        reverse: the direction of the pass.
        final: results come as many frames later as the policy may rewrite masks, with these revisions applied. Otherwise
            they come at once, each with its revisions of earlier ones.
        autocast: makes the context that the network runs in.
        before_frame: called before each frame, to take in what was said about objects since the last.
        waiting: see ``delayed``.
    """
    tracker = state.tracker

    def track() -> Iterator[FrameResult]:
        for frame in frames:
            with torch.inference_mode():
                if before_frame is not None:
                    before_frame()
                prompts = () if prompts_at is None else prompts_at(frame)
                if prompts or tracker.tracks:
                    with autocast():
                        result = tracker.step(encode(frame), prompts, reverse=reverse)
                else:
                    masks = torch.zeros(0, *tracker.model.mask_size, device=tracker.model.device)
                    result = FrameResult(frame.index, (), masks, ())
            state.note_scores(result.frame, result.scores)
            state.revisions = result.revisions
            yield result

    if not final:
        return track()
    return delayed(track(), tracker.policy.needs.revise, torch.inference_mode()(tracker.finish), waiting)


def delayed(
    results: Iterable[FrameResult],
    lag: int,
    finish: Callable[[], Sequence[Revision]] = tuple,
    waiting: deque[FrameResult] | None = None,
) -> Iterator[FrameResult]:
    """The results of one pass with their revisions applied, in the same order, each ``lag`` frames later.

    Holds at most ``lag + 1`` results. Results come out without revisions of their own. If ``results`` fail, those that
    are waiting come first, then the error.

    Args:
        results: of ``Tracker.step``.
        lag: ``policy.needs.revise``.
        finish: ``Tracker.finish``, asked at the end.
        waiting: holds the results that wait, for a caller who looks at them between two results; those of an earlier part of
            the pass may be in it.
    """
    if lag < 0:
        raise ValueError(f"expected lag >= 0, got {lag}")
    waiting = deque() if waiting is None else waiting
    failure: Exception | None = None
    try:
        for result in results:
            waiting.append(replace(result, revisions=()))
            if result.revisions:
                revise(waiting, result.revisions)
            if len(waiting) > lag:
                yield waiting.popleft()
    except Exception as error:  # whatever it is, it is raised below
        failure = error
    revise(waiting, finish())
    while waiting:
        yield waiting.popleft()
    if failure is not None:
        raise failure


def revise(waiting: deque[FrameResult], revisions: Sequence[Revision]) -> None:
    """Apply ``revisions`` to the results of their frames; those of frames that have been given out, in an earlier pass,
    are too late and have no effect."""
    for position, result in enumerate(waiting):
        for revision in revisions:
            if revision.frame == result.frame and revision.obj_id in result.obj_ids:
                waiting[position] = result = revised(result, revision)


def revised(result: FrameResult, revision: Revision) -> FrameResult:
    """``result`` with one object's mask and score replaced."""
    row = result.obj_ids.index(revision.obj_id)
    masks, scores = list(result.masks), list(result.scores)
    masks[row] = revision.logits
    scores[row] = replace(scores[row], iou=revision.iou, objectness=revision.objectness, present=revision.present)
    return replace(result, masks=torch.stack(masks), scores=tuple(scores))
