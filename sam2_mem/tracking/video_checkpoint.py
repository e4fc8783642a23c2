"""A pass through a video, saved between two frames, so that a run that was stopped goes on from there with equal masks.

The file holds what the tracker holds of all objects, and the masks that still wait to be given out. Like a memory file it
is plain containers and tensors, read with ``weights_only=True``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sam2_mem.files import atomic_path
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.serialization import MemoryFileError, packed, unpacked
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.track import MaskOutput, ReferenceAppearance, Track, TrackedRanges, VisibilityHistory
from sam2_mem.types import FrameResult

FORMAT = "sam2_mem.video_checkpoint"
VERSION = 1
MOST_WAITING = 1024
"""Frames whose masks may wait in a checkpoint."""


@dataclass(frozen=True, eq=False)
class SavedTrack:
    """One object; the fields are those of ``Track``, as plain values."""

    obj_id: int
    state: Bank | None
    outputs: dict[int, MaskOutput]
    tracked: tuple[tuple[int, int, bool], ...]
    latest: tuple[int, bool] | None
    frozen: bool
    has_dropped_prompts: bool
    reference: tuple | None
    visibility: VisibilityHistory
    pending: dict[int, MaskOutput] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class VideoCheckpoint:
    """A pass between two frames.

    Attributes:
        next_shown: the first frame whose masks have not been given out.
        first_untracked: the first frame that has not been tracked, later where the policy may rewrite masks.
        tracks: the objects.
        results: those of the frames in between.
    """

    next_shown: int
    first_untracked: int
    tracks: tuple[SavedTrack, ...]
    results: tuple[FrameResult, ...]


def take_checkpoint(
    state: InferenceState, next_shown: int, first_untracked: int, results: Iterable[FrameResult]
) -> VideoCheckpoint:
    """What ``state`` holds now; see ``VideoCheckpoint`` for the arguments."""
    tracks = saved_tracks(state)
    assert not any(track.pending for track in tracks), "between two frames all prompts have been taken into memory"
    return VideoCheckpoint(next_shown, first_untracked, tracks, tuple(results))


def saved_tracks(state: InferenceState) -> tuple[SavedTrack, ...]:
    """The objects of ``state``."""
    return tuple(_saved(track) for track in state.tracker.tracks.values())


def _saved(track: Track) -> SavedTrack:
    return SavedTrack(
        obj_id=track.obj_id,
        state=track.state,
        outputs=dict(track.outputs),
        tracked=track.tracked.runs,
        latest=track.latest,
        frozen=track.frozen,
        has_dropped_prompts=track.has_dropped_prompts,
        reference=None if track.reference is None else tuple(track.reference),
        visibility=track.visibility,
        pending=dict(track.pending),
    )


def set_tracks(state: InferenceState, tracks: Iterable[SavedTrack]) -> None:
    """Give a fresh ``state`` the objects of ``saved_tracks``."""
    for saved in tracks:
        state.tracker.tracks[saved.obj_id] = Track(
            obj_id=saved.obj_id,
            state=saved.state,
            outputs=saved.outputs,
            tracked=TrackedRanges(saved.tracked),
            latest=saved.latest,
            frozen=saved.frozen,
            has_dropped_prompts=saved.has_dropped_prompts,
            reference=None if saved.reference is None else ReferenceAppearance(*saved.reference),
            visibility=saved.visibility,
            pending=saved.pending,
        )


def save_checkpoint(
    path: Path,
    checkpoint: VideoCheckpoint,
    policy: MemoryPolicy,
    device: torch.device,
    about: Mapping[str, Any],
) -> None:
    """Write a checkpoint; an existing file is replaced as a whole.

    Args:
        path: of the file.
        checkpoint: what to write.
        policy: how the objects remember.
        device: of the network.
        about: plain values that ``load_checkpoint`` gives back.

    Raises:
        ValueError: the state of this policy cannot be saved.
        OSError: the file cannot be written.
    """
    try:
        content = packed(checkpoint, device)
    except TypeError as error:
        raise ValueError(
            f"expected a policy whose state can be saved, got {type(policy.unwrapped).__name__}: {error}; make the state of "
            "such values, or run without checkpoints (--checkpoint_every 0)"
        ) from error
    with atomic_path(path) as part:
        torch.save({"format": FORMAT, "version": VERSION, "about": dict(about), **content}, part)


def load_checkpoint(
    path: Path, policy: MemoryPolicy, device: torch.device | str = "cpu"
) -> tuple[VideoCheckpoint, dict[str, Any]]:
    """A checkpoint, and what was written about it.

    Raises:
        MemoryFileError: not a checkpoint, or one of another version or policy.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']}, version {content['version']}")
        return unpacked(content, policy), content["about"]
    except Exception as error:  # torch.load fails in many ways on foreign bytes
        raise MemoryFileError(
            f"expected a checkpoint of version {VERSION} in '{path}', got something else: {error}"
        ) from error


def why_unsaved(policy: MemoryPolicy) -> str | None:
    """Why a pass with this policy cannot be saved, with what to do; None where it can."""
    if policy.needs.revise > MOST_WAITING:
        return (
            f"{type(policy.unwrapped).__name__} may change the masks of more than {MOST_WAITING} earlier frames, so that all of them "
            "would have to be saved each time; bound it, e.g. memory_policy.max_lag=16"
        )
    return None
