"""All that a session holds, in a file, so that it goes on in another process with equal masks: objects with their memory,
prompts, and what is kept of frames that were left.

Like a memory file it is plain containers and tensors, read with ``weights_only=True``. The candidates of the latest frame
(``predictor.alternatives``) are not in it; they are there again after the next tracked frame.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from sam2_mem.files import atomic_path
from sam2_mem.memory.serialization import MemoryFileError, packed, unpacked
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.archive import SavedArchive, restore_archive, save_archive
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_checkpoint import SavedTrack, saved_tracks, set_tracks
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import ObjectScore

FORMAT = "sam2_mem.session_state"
VERSION = 1


@dataclass(frozen=True, eq=False)
class SavedState:
    """The fields are those of ``InferenceState`` and of its tracker, as plain values; ``window``: numbers of the frames."""

    tracks: tuple[SavedTrack, ...]
    prompts: dict[int, dict[int, Prompt]]
    scores: dict[int, tuple[ObjectScore, ...]]
    archive: SavedArchive
    window: tuple[int, ...]


def save_state(path: str | PathLike[str], state: InferenceState, about: Mapping[str, Any]) -> None:
    """Write all that a session on a video holds; an existing file is replaced as a whole.

    Args:
        path: of the file.
        state: of the session, between two frames.
        about: plain values and tensors that ``load_state`` gives back.

    Raises:
        TypeError: the state of this policy cannot be saved.
        OSError: the file cannot be written.
    """
    tracker = state.tracker
    tracker.close_clip()
    saved = SavedState(
        tracks=saved_tracks(state),
        prompts=state.prompts,
        scores=dict(state.recent_scores),
        archive=save_archive(tracker.archive, tracker.model.device),
        window=tuple(features.index for features in tracker.window),
    )
    content = packed(saved, tracker.model.device)
    with atomic_path(Path(path)) as part:
        torch.save({"format": FORMAT, "version": VERSION, "about": dict(about), **content}, part)


def load_state(path: str | PathLike[str], predictor: SAM2VideoPredictor, state: InferenceState) -> dict[str, Any]:
    """Go on from a file of ``save_state``; what was written about it.

    Args:
        path: of the file.
        predictor: of the same network and policy.
        state: new, of the same video; it gets what the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryFileError: another file, or one of another version or policy; ``state`` is as it was.
    """
    tracker = state.tracker
    device = tracker.model.device
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']}, version {content['version']}")
        saved: SavedState = unpacked(content, predictor.policy)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch.load fails in many ways on foreign bytes
        raise MemoryFileError(
            f"expected a state of a session, version {VERSION}, in '{path}', got something else: {error}"
        ) from error
    set_tracks(state, saved.tracks)
    state.prompts, state.recent_scores = saved.prompts, OrderedDict(saved.scores)
    restore_archive(tracker.archive, saved.archive, device)
    tracker.window = tuple(state.features_at(frame, predictor.encode) for frame in saved.window)
    return content["about"]
