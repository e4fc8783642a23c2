"""The loop over frames, one for offline video, streams and the command line, and masks that wait until they are final."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile

import torch

from sam2_mem.prompts import Prompt
from sam2_mem.tracking.clip import OpenClip, ends_clip, open_clip, splits_clip
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
    encode_all: Callable[[Sequence[Frame]], list[FrameFeatures]] | None = None,
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
        encode_all: the features of several frames, for clips; None: ``encode`` for each.
        reverse: the direction of the pass.
        final: results come as many frames later as the policy may rewrite masks, with these revisions applied. Otherwise
            they come at once, each with its revisions of earlier ones.
        autocast: makes the context that the network runs in.
        before_frame: called before each frame, to take in what was said about objects since the last.
        waiting: see ``delayed``.
    """
    tracker = state.tracker
    in_context = FrameSteps(state, prompts_at, encode, encode_all, reverse, autocast, before_frame or _nothing)
    results = in_context.single(frames) if tracker.settings.clip_length == 1 else in_context.by_clips(frames)
    if not final:
        return results
    return delayed(results, tracker.policy.needs.revise, torch.inference_mode()(tracker.finish), waiting)


def autocast_on(device: torch.device) -> AbstractContextManager[None]:
    """The context that networks run in on a device: bfloat16 on CUDA, as in SAM 2's own tools, nothing elsewhere."""
    return torch.autocast("cuda", dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def _nothing() -> None:
    """Where nothing is said between frames."""


@dataclass(frozen=True, eq=False)
class FrameSteps:
    """Steps of a tracker through the frames of a pass. Attributes as the arguments of ``run``."""

    state: InferenceState
    prompts_at: PromptsAt | None
    encode: Callable[[Frame], FrameFeatures]
    encode_all: Callable[[Sequence[Frame]], list[FrameFeatures]] | None
    reverse: bool
    autocast: Callable[[], AbstractContextManager]
    before_frame: Callable[[], None]

    def single(self, frames: Iterable[Frame]) -> Iterator[FrameResult]:
        """Each frame for itself."""
        for frame in frames:
            with torch.inference_mode():
                self.before_frame()
                result = self._step(frame, self._prompts(frame))
            yield self._noted(result)

    def by_clips(self, frames: Iterable[Frame]) -> Iterator[FrameResult]:
        """Clips as ``sam2_mem.tracking.clip`` has them. Where something is said between two results, the frames that have not
        been shown make a clip of their own."""
        tracker, waiting = self.state.tracker, FramesAhead(iter(frames), self._prompts)
        if self.state.source is None:
            raise ValueError("expected tracker.clip_length=1 on a stream, whose frames come one by one")
        while waiting.fill(tracker.settings.clip_length):
            with torch.inference_mode():
                self.before_frame()
                clip = waiting.clip(partial(splits_clip, tracker))
                if len(clip) < 2:
                    result = self._step(*waiting.take())
                else:
                    with self.autocast():
                        opened = open_clip(tracker, self._encoded(clip), reverse=self.reverse)
            if len(clip) < 2:
                yield self._noted(result)
                continue
            yield from self._show(opened, waiting)

    def _show(self, clip: OpenClip, waiting: FramesAhead) -> Iterator[FrameResult]:
        """Frames of a clip until it is over, or something is said."""
        edits, tracker = self.state.edits, self.state.tracker
        try:
            while tracker.clip is clip and self.state.edits == edits:
                waiting.take()
                with torch.inference_mode(), self.autocast():
                    result = clip.show()
                yield self._noted(result)
        finally:
            if tracker.clip is clip:
                with self.autocast():
                    tracker.close_clip()

    def _prompts(self, frame: Frame) -> Sequence[Prompt]:
        return () if self.prompts_at is None else self.prompts_at(frame)

    def _step(self, frame: Frame, prompts: Sequence[Prompt]) -> FrameResult:
        tracker = self.state.tracker
        if not prompts and not tracker.tracks:
            masks = torch.zeros(0, *tracker.model.mask_size, device=tracker.model.device)
            return FrameResult(frame.index, (), masks, ())
        with self.autocast():
            return tracker.step(self.encode(frame), prompts, reverse=self.reverse)

    def _encoded(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        return [self.encode(frame) for frame in frames] if self.encode_all is None else self.encode_all(frames)

    def _noted(self, result: FrameResult) -> FrameResult:
        self.state.note_scores(result.frame, result.scores)
        self.state.revisions = result.revisions
        return result


@dataclass(eq=False)
class FramesAhead:
    """Frames that have been read and not yet tracked, with their prompts.

    Attributes:
        source: the frames of a pass.
        prompts_at: the prompts of a frame.
        frames: those that have been read.
    """

    source: Iterator[Frame]
    prompts_at: PromptsAt
    frames: deque[tuple[Frame, Sequence[Prompt]]] = field(default_factory=deque)

    def fill(self, length: int) -> bool:
        """Read on until there is a whole clip, or a frame with prompts; whether there is any frame."""
        while not self.frames or not (ends_clip(self.frames[-1][0].index, length) or self.frames[-1][1]):
            frame = next(self.source, None)
            if frame is None:
                break
            self.frames.append((frame, self.prompts_at(frame)))
        return bool(self.frames)

    def clip(self, splits: Callable[[int], bool]) -> list[Frame]:
        """Leading frames that go together; ``splits`` says of a frame that it is a clip of its own."""
        is_single = lambda item: bool(item[1]) or splits(item[0].index)  # noqa: E731
        return [frame for frame, _ in takewhile(lambda item: not is_single(item), self.frames)]

    def take(self) -> tuple[Frame, Sequence[Prompt]]:
        """The next frame."""
        return self.frames.popleft()


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
