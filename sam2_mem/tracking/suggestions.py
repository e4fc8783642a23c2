"""Which frames of a tracked video to annotate next, and which are the best examples of an object: by how certain the network was of
the masks that it gave, spread over time, or by the score of the policy ``learned``."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from sam2_mem.memory.policies.learned import Learned
from sam2_mem.tracking.archive import Kind
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.types import Entry, MemoryEntry, MemoryTokens

logger = logging.getLogger(__name__)


def certainty(output: MaskOutput) -> float:
    """How certain the network was of a mask, 0..1: predicted IoU times 2 sigmoid(object score) - 1 where the object is present,
    1 - 2 sigmoid(object score) where it is not."""
    present = math.tanh(output.objectness / 2)
    return present * output.iou if present > 0 else -present


def spread_over_time(worth: Mapping[int, float], count: int, annotated: Collection[int] = ()) -> list[int]:
    """At most ``count`` frames of high worth that lie apart, the first choice first. In turn the frame is chosen whose worth
    times its distance to the nearest frame chosen or ``annotated`` is highest; a distance of (frames / (``count`` + 1)) and more
    counts as that. Of equals the earliest.

    Args:
        worth: by frame, not below 0; frames of worth 0 are not chosen.
        count: of frames.
        annotated: frames that need no neighbour.
    """
    chosen: list[int] = []
    reach = max(1.0, len(worth) / (count + 1))

    def value(frame: int) -> float:
        nearest = min((abs(frame - neighbour) for neighbour in (*annotated, *chosen)), default=reach)
        return worth[frame] * min(nearest, reach) / reach

    while len(chosen) < count:
        best = max(sorted(worth), key=value, default=None)
        if best is None or value(best) <= 0:
            break
        chosen.append(best)
    return chosen


class SuggestsFrames:
    """What a predictor offers of all this."""

    def suggest_frames(
        self, inference_state: InferenceState, count: int, obj_ids: Sequence[int] | None = None
    ) -> list[int]:
        """The frames whose annotation would help most: those on which the network is least certain of some object, far from
        prompted frames and from each other. Asks no network; masks that are no longer held are left out with a warning.

        Args:
            inference_state: of a video, or the part of it, that has been tracked.
            count: of frames, at least 1.
            obj_ids: objects that matter (default: all).

        Returns:
            at most ``count`` frames, the most urgent first.
        """
        tracks = _tracks(inference_state, count, obj_ids)
        doubt: dict[int, float] = {}
        for track in tracks:
            for frame, output in _outputs(inference_state, track).items():
                doubt[frame] = max(1 - certainty(output), doubt.get(frame, 0.0))
        return spread_over_time(doubt, count, {f for track in tracks for f in track.prompted_frames()})

    def best_frames(
        self, inference_state: InferenceState, obj_id: int, count: int, score: Learned | None = None
    ) -> list[int]:
        """The frames that show an object best: present, with the most certain masks, apart in time; to begin a second pass from,
        or to show. Prompted frames are not among them.

        Args:
            inference_state: of a video that has been tracked.
            obj_id: the object.
            count: of frames, at least 1.
            score: a policy by whose score frames are chosen instead, ``build_policy("learned")``: those that its bank of
                ``count`` frames would hold after a pass over the frames that show the object (``Learned.best_of``).

        Returns:
            at most ``count`` frames, the best first.

        Raises:
            ValueError: there is no such object, nothing has been tracked, or ``score`` is another policy.
        """
        (track,) = _tracks(inference_state, count, [obj_id])
        shown = {f: o for f, o in _outputs(inference_state, track).items() if o.area > 0 and o.objectness > 0}
        if score is None:
            return spread_over_time({frame: certainty(output) for frame, output in shown.items()}, count)
        if not isinstance(score, Learned):
            raise ValueError(f'expected a policy with a learned score, build_policy("learned"), got {score!r}')
        prompts = () if track.state is None else track.state.prompt_entries()
        return replace(score, size=count).best_of([_entry(e) for e in prompts], [_entry(o) for o in shown.values()])


def _tracks(state: InferenceState, count: int, obj_ids: Sequence[int] | None) -> list[Track]:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"expected a number of frames >= 1, got {count!r}")
    unknown = [obj_id for obj_id in obj_ids or () if obj_id not in state.tracker.tracks]
    if unknown:
        raise ValueError(f"expected some of the objects {state.obj_ids}, got {unknown}")
    tracks = [state.tracker.tracks[obj_id] for obj_id in (state.obj_ids if obj_ids is None else obj_ids)]
    if not any(track.tracked.runs for track in tracks):
        raise ValueError("expected a video that has been tracked, got none of it; call propagate_in_video first")
    return tracks


def _outputs(state: InferenceState, track: Track) -> dict[int, MaskOutput]:
    """The masks of an object that are held, by frame in order, without those that a prompt answered."""
    archive, prompted = state.tracker.archive, track.prompted_frames()
    frames = {f for low, high, _ in track.tracked.runs for f in range(low, high + 1)} - prompted
    missing = archive.missing(Kind.MASK, track.obj_id, sorted(frames))
    if missing:
        logger.warning(
            "masks of object %d on %d frames, from %d on, are no longer held, so these are not among the frames suggested; "
            "tracker.archive_bytes, now %d, is the budget for what is kept",
            track.obj_id,
            len(missing),
            missing[0],
            archive.max_bytes,
        )
    outputs = ((frame, track.output_at(frame) or archive.mask(track.obj_id, frame)) for frame in sorted(frames))
    return {frame: output for frame, output in outputs if output is not None}


def _entry(output: MaskOutput | Entry) -> MemoryEntry:
    """What is known of a frame as a memory entry of no tokens, on the CPU."""
    nothing = torch.zeros(0, 0)
    tokens, pointer = MemoryTokens(nothing, nothing), output.pointer.float().cpu()
    return MemoryEntry(output.frame, tokens, pointer, output.iou, output.objectness, output.area)
