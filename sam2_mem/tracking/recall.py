"""Coming back to frames: what is read there of what has left memory, and warnings that name what nobody holds any more."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.archive import Archive, Kind
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.types import FrameContext

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Recall:
    """What objects take back from an archive.

    Attributes:
        policy: says what is read where.
        archive: of the video.
        device: of the model.
    """

    policy: MemoryPolicy
    archive: Archive
    device: torch.device

    def memory(self, track: Track, frame: FrameContext) -> Bank:
        """The memory of ``track`` with what a read on ``frame`` takes of frames that have left it."""
        state = track.state
        assert state is not None, "objects without a memory are not read"
        archived = self.archive.entries(track.obj_id)
        if archived:
            state = self.policy.recall(state, frame, archived)
        self._report_missing(track.obj_id, frame, state)
        return state

    def output(self, track: Track, frame: int) -> MaskOutput | None:
        """What the user sees of an object on ``frame`` now; None where there is no mask, and, with a warning, where it is no
        longer held."""
        output = track.output_at(frame) or self.archive.mask(track.obj_id, frame)
        if output is None and self.archive.missing(Kind.MASK, track.obj_id, [frame]):
            logger.warning(
                "the mask of object %d on frame %d is no longer held, so it counts as empty and as unknown to corrections; "
                "tracker.archive_bytes, now %d, is the budget for what is kept",
                track.obj_id,
                frame,
                self.archive.max_bytes,
            )
        return output

    def as_read(self, track: Track, prompt: Prompt, frame: FrameContext) -> Track:
        """``track`` as ``prompt`` is answered from it: a correction by clicks or a box reads the frames behind its own, and
        the mask shown so far."""
        if prompt.mask is not None:
            return track
        shown = self.output(track, frame.index)
        outputs = {} if shown is None else {frame.index: replace(shown, logits=shown.logits.to(self.device))}
        corrects = track.state is not None and frame.index in track.tracked
        state = self.memory(track, frame) if corrects else track.state
        return replace(track, state=state, outputs=outputs, pending={})

    def _report_missing(self, obj_id: int, frame: FrameContext, state: Bank) -> None:
        """A warning that names the frames that a read on ``frame`` should take and that are held nowhere."""
        maps, pointers = self.policy.frames_behind(frame)
        candidates = self.archive.missing(Kind.MEMORY, obj_id, {*maps, *pointers})
        if not candidates:
            return
        entries = state.all_entries()
        remembered, with_tokens = {e.frame for e in entries}, {e.frame for e in entries if e.tokens is not None}
        missing = sorted(f for f in candidates if f not in (with_tokens if f in maps else remembered))
        if missing:
            logger.warning(
                "frame %d of object %d: the memory of frames %s is no longer held, so that less is read than in SAM 2; "
                "tracker.archive_bytes, now %d, is the budget for memory that is left behind",
                frame.index,
                obj_id,
                missing,
                self.archive.max_bytes,
            )

    def report_dropped_prompts(self, track: Track, state: Bank) -> None:
        """A warning that names prompts of ``track`` for which there is no room in its new ``state``."""
        frames = sorted(track.prompted_frames() - set(state.prompted_frames()))
        if not frames:
            return
        logger.log(
            logging.INFO if track.has_dropped_prompts else logging.WARNING,
            "object %d: no room for more prompts (memory_policy.max_prompts=%d), so frames %s are no longer read as such, which "
            "SAM 2 would do; from now on the oldest but the first gives way to each new one",
            track.obj_id,
            self.policy.max_prompts,
            frames,
        )
        track.has_dropped_prompts = True
