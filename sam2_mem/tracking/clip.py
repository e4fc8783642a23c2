"""Clips: several frames of offline video read memory once, go through the network together, and are remembered by the last.

The memory of a clip is that before its first frame, and so are the ages and slots of what is read. A clip ends on a frame
whose number is a multiple of ``tracker.clip_length``; a prompted frame is a clip of its own. Clips that are cut short, by a
prompt or because the pass ends, are remembered by the frame shown last, as if they had been planned that way.

Per-clip propagation is from Park et al., "Per-Clip Video Object Segmentation", 2022 (arXiv 2208.01924).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.trace import Cause, reports_usage
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking import sensory_update
from sam2_mem.tracking.batching import batch_reads, row_limit
from sam2_mem.tracking.memory_reader import DecodedBatch, MemoryReader, RequestedUsage, RowIndex, TrackPrediction
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import MaskOutput, Track, frame_result
from sam2_mem.types import FrameContext, FrameFeatures, FrameResult, MaskSelection, ReadUsage, RowBatch, Usage

if TYPE_CHECKING:
    from sam2_mem.tracking.tracker import Tracker


def check_clips(policy: MemoryPolicy, model: SAM2, settings: TrackerSettings) -> None:
    """ValueError where ``tracker.clip_length`` does not go with a policy: it counts on every frame."""
    if settings.clip_length == 1:
        return
    needs, name, reason = policy.needs, type(policy.unwrapped).__name__, None
    if needs.revise or policy.num_pathways > 1:
        reason = "it compares pathways frame by frame, and rewrites masks"
    elif needs.every_frame:
        reason = "it follows the object from each frame to the next"
    elif needs.window:
        reason = "it asks where the object was on the frames before"
    elif sensory_update.active(model, policy) is not None:
        reason = "sensory memory is updated on every frame"
    if reason is not None:
        raise ValueError(
            f"expected tracker.clip_length=1 with {name}, got {settings.clip_length}: {reason}; policies that go by clips are "
            "fifo, keyframe, rmem, dam4sam, sparse and others that read only what they have stored"
        )


def ends_clip(frame: int, length: int) -> bool:
    """Whether frame number ``frame`` is the last of its clip, in either direction."""
    return frame % length == 0


@dataclass(frozen=True, eq=False)
class FrameChoice:
    """The masks of a frame, before memory takes them in.

    Attributes:
        features: of the frame.
        predictions: (N) of the network.
        selections: (N) by policies.
        outputs: (N) masks.
        unwritten: ids of objects whose memory stays as it is.
    """

    features: FrameFeatures
    predictions: Sequence[TrackPrediction]
    selections: Sequence[MaskSelection]
    outputs: Sequence[MaskOutput]
    unwritten: Collection[int]


@dataclass(eq=False)
class OpenClip:
    """A clip that has been predicted and is being shown.

    Attributes:
        tracker: of the video.
        frames: features of T frames, in the direction of the pass.
        tracks: (N) objects.
        predictions: (T)(N) of the network.
        reverse: direction of the pass.
        position: frames shown so far.
        choice: what memory takes in if the clip ends here.
    """

    tracker: Tracker
    frames: Sequence[FrameFeatures]
    tracks: Sequence[Track]
    predictions: Sequence[list[TrackPrediction]]
    reverse: bool
    position: int = 0
    choice: FrameChoice | None = None

    def show(self) -> FrameResult:
        """The next frame; with the last one memory takes in the clip."""
        tracker, features = self.tracker, self.frames[self.position]
        frames_before = [track.frames_in_memory() for track in self.tracks]
        self.choice = tracker.decide(self.predictions[self.position], features)
        self.position += 1
        for track in self.tracks:
            track.latest = features.index, self.reverse
            track.tracked.add(features.index, reverse=self.reverse)
        if self.position == len(self.frames):
            tracker.close_clip()
        else:
            show_unwritten(tracker, self.choice)
        gate = tracker.policy.min_obj_score_logits
        return frame_result(tracker.model, self.tracks, features.index, frames_before, gate)


def splits_clip(tracker: Tracker, frame: int) -> bool:
    """Whether frame number ``frame`` cannot go together with others: an object's mask comes from a prompt there, or there is
    no object yet."""
    tracks = tracker.tracks.values()
    return all(t.state is None for t in tracks) or any(frame in t.pending or t.answered(frame) for t in tracks)


def open_clip(tracker: Tracker, frames: Sequence[FrameFeatures], *, reverse: bool = False) -> OpenClip:
    """Predict T frames together, none of them with a prompt; ``OpenClip.show`` gives one after the other. Anything else
    that is asked of the tracker meanwhile ends the clip with the frame shown last.

    Args:
        tracker: of the video.
        frames: (T) features, in the direction of the pass.
        reverse: direction of the pass.
    """
    tracker.close_clip()
    tracks = [track for track in tracker.tracks.values() if track.state is not None]
    contexts = [tracker.context(features, reverse=reverse) for features in frames]
    tracker.resume(tracks, contexts[0])
    uses = {"keep_conditioned": tracker.refiner is not None, "report_usage": reports_usage(tracker.listener)}
    predictions = predict_clip(tracker.reader, tracks, frames, contexts, **uses)
    tracker.clip = OpenClip(tracker, frames, tracks, predictions, reverse)
    return tracker.clip


def show_unwritten(tracker: Tracker, choice: FrameChoice) -> None:
    """Show the masks of a frame that memory leaves out."""
    for prediction in choice.predictions:
        track, details = prediction.track, {"hypotheses": prediction.hypotheses, "usage": prediction.usage}
        tracker.change(track, Cause.READ, prediction.frame, track.state, **details)
    tracker.show(choice.predictions, choice.outputs)


# -- the network on all frames of a clip -------------------------------------------------------------------------------


def predict_clip(
    reader: MemoryReader,
    tracks: Sequence[Track],
    frames: Sequence[FrameFeatures],
    contexts: Sequence[FrameContext],
    *,
    keep_conditioned: bool = False,
    report_usage: bool = False,
) -> list[list[TrackPrediction]]:
    """Read memory once, for the first of T frames, and decode all of them; the host waits for the device once.

    Args:
        reader: of the tracker.
        tracks: N objects with a memory.
        frames: (T) features.
        contexts: (T).
        keep_conditioned: as in ``MemoryReader.predict``.
        report_usage: as in ``MemoryReader.predict``.

    Returns:
        (T)(N) predictions.
    """
    count, firsts = len(frames), reader.contexts_for(tracks, contexts[0], explain=report_usage)
    reads_of_track = [reader.policy.read(track.state, first) for track, first in zip(tracks, firsts)]
    of_frames = [replace(c, measured=f.measured, read_on=f.index) for c in contexts for f in firsts]
    usage = RequestedUsage(reader.requested_usage([*tracks] * count, of_frames), report_usage)
    reads = [read for pathways in reads_of_track for read in pathways]
    limit, max_padding = row_limit(reader.model, reader.settings.max_rows), reader.settings.max_padding
    batched = batch_reads(reads, reader.model, max_padding=max_padding, max_rows=limit)
    batches: list[DecodedBatch] = []
    row_of: dict[tuple[int, RowIndex | None], RowIndex] = {}
    numbered = [*enumerate(batched.batches), *([(-1, None)] if None in batched.row_of_read else [])]
    for number, rows in numbered:
        height = 1 if rows is None else rows.rows
        step = max(1, limit // height) if limit else count
        for start in range(0, count, step):
            part = frames[start : start + step]
            for t, row in product(range(len(part)), range(height)):
                row_of[start + t, None if rows is None else (number, row)] = (len(batches), t * height + row)
            batches.append(attend_and_decode(reader.model, part, rows, usage.measured))
    pathways_of, keys = [len(pathways) for pathways in reads_of_track], batched.row_of_read
    ends = list(accumulate(pathways_of))
    keys_of_track = [keys[end - length : end] for end, length in zip(ends, pathways_of)]
    predictions = reader.predictions_of(
        [*tracks] * count,
        of_frames,
        batches,
        [[row_of[t, key] for key in keys] for t in range(count) for keys in keys_of_track],
        usage,
        keep_conditioned=keep_conditioned,
    )
    return [predictions[start : start + len(tracks)] for start in range(0, len(predictions), len(tracks))]


def attend_and_decode(
    model: SAM2, frames: Sequence[FrameFeatures], rows: RowBatch | None, usage: Usage
) -> DecodedBatch:
    """All of T frames attend to the same R rows of memory: T * R rows, frame by frame.

    Args:
        model: the network.
        frames: (T) features.
        rows: R rows; None for one that reads nothing.
        usage: the attention to measure.
    """
    count, height = len(frames), 1 if rows is None else rows.rows
    stacked = stacked_frames(frames)
    if rows is None:
        conditioned = model.without_memory(stacked, count)
        measured: Sequence[ReadUsage] | None = [ReadUsage((), conditioned.new_zeros(conditioned.shape[1], 0))] * count
    else:
        conditioned, measured = model.attend(stacked, for_frames(rows, count), usage)
    candidates, high = model.candidates.allows(0, with_memory=True), stacked.high
    if high is not None and height > 1:
        high = (high[0].repeat_interleave(height, 0), high[1].repeat_interleave(height, 0))
    decoded = model.decode(conditioned, replace(stacked, high=high), candidates=candidates)
    return DecodedBatch(decoded, conditioned, measured)


def stacked_frames(frames: Sequence[FrameFeatures]) -> FrameFeatures:
    """Features of T frames with a leading axis T, but for positions, which they share."""
    finer = [f.high for f in frames if f.high is not None]
    high = (torch.stack([f for f, _ in finer]), torch.stack([m for _, m in finer])) if finer else None
    return replace(frames[0], low=torch.stack([f.low for f in frames]), high=high)


def for_frames(rows: RowBatch, count: int) -> RowBatch:
    """R rows for each of ``count`` frames, frame by frame."""

    def again(x: Tensor) -> Tensor:
        return x.expand(count, *x.shape[1:]) if len(x) == 1 else x.repeat(count, *[1] * (x.ndim - 1))

    return replace(
        rows,
        feat=again(rows.feat),
        pos=again(rows.pos),
        xy=rows.xy if len(rows.xy) == 1 else again(rows.xy),
        gain=None if rows.gain is None else again(rows.gain),
        bias=None if rows.bias is None else again(rows.bias),
        item=again(rows.item),
        lengths=rows.lengths * count,
        item_lengths=rows.item_lengths * count,
    )
