"""Everything about one video: its frames, its tracker, its prompts. Answers SAM 2's state keys as well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy, deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.prompts import Prompt, as_integer
from sam2_mem.tracking.track import Track, TrackedRanges
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import FrameFeatures, ObjectScore, Revision
from sam2_mem.video import Frame, FrameRangeError, VideoSource, normalize
from sam2_mem.video.frame import PictureReader

FEATURE_CACHE = 2
SCORE_HISTORY = 64


@dataclass(eq=False)
class InferenceState:
    """State of one session; all of it is dropped with this object, nothing stays on the predictor.

    ``source`` is None for a stream fed frame by frame. ``prompts`` are the accumulated prompts by object and frame.
    ``revisions``: masks of earlier frames that the latest one has changed. ``to_rgb`` reads the frames of a stream. ``edits``
    counts what a user has said since the video was opened.
    """

    tracker: Tracker
    source: VideoSource | None
    offload_video_to_cpu: bool = False
    offload_state_to_cpu: bool = False
    prompts: dict[int, dict[int, Prompt]] = field(default_factory=dict)
    frames_seen: int = 0
    size: tuple[int, int] | None = None
    recent_scores: OrderedDict[int, tuple[ObjectScore, ...]] = field(default_factory=OrderedDict)
    revisions: tuple[Revision, ...] = ()
    to_rgb: PictureReader = field(default_factory=PictureReader)
    edits: int = 0
    _features: OrderedDict[int, FrameFeatures] = field(default_factory=OrderedDict)

    @property
    def obj_ids(self) -> list[int]:
        return list(self.tracker.tracks)

    @property
    def num_frames(self) -> int:
        """Frames of the video; of a stream, frames given so far."""
        if self.source is None:
            return self.frames_seen
        return self.source.num_frames if self.source.num_frames is not None else self.source.count_frames()

    def __deepcopy__(self, memo: Any) -> InferenceState:
        """A session that goes on from here by itself; network, policy and video are shared."""
        self.tracker.close_clip()
        tracker = copy(self.tracker)
        tracker.tracks = {obj_id: _copied(track) for obj_id, track in self.tracker.tracks.items()}
        tracker.archive = deepcopy(self.tracker.archive)
        tracker.recall = replace(self.tracker.recall, archive=tracker.archive)
        state = replace(self, tracker=tracker)
        for item in fields(state):
            if item.name not in ("tracker", "source", "to_rgb"):
                setattr(state, item.name, _copied(getattr(self, item.name)))
        return state

    def __reduce__(self) -> Any:
        raise TypeError(
            "an InferenceState cannot be pickled: it holds a network and an open video; write the memory of each object with "
            "predictor.save_memory, or make a copy for this process with copy.deepcopy"
        )

    def check_frame(self, index: Any) -> int:
        """``index`` as an int; ValueError unless the video has a frame of that number."""
        index = as_integer(index, "a frame index as an integer")
        if self.source is None:
            raise ValueError(
                "this state has no video; give prompts together with the frame: track_frame(state, frame, prompts)"
            )
        last = None if self.source.num_frames is None else self.source.num_frames - 1
        if index < 0 or (last is not None and index > last):
            valid = "0 upwards" if last is None else f"0 to {last}"
            raise ValueError(f"expected a frame of the video ({valid}), got {index}")
        return index

    @property
    def video(self) -> VideoSource:
        """The source of a state that has one."""
        assert self.source is not None, "a stream is given frame by frame"
        return self.source

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """(H, W) of the pictures; None for a stream before its first frame."""
        if self.size is None and self.source is not None:
            self.size = self.source.height, self.source.width
        return self.size

    def frame(self, index: int) -> Frame:
        """ValueError where the video has no frame ``index``, or no longer has it."""
        return self.video[index]

    def has_frame(self, index: int) -> bool:
        """Whether the video has a frame ``index``, which is read for it where the length is not known."""
        if self.video.num_frames is not None:
            return 0 <= index < self.video.num_frames
        try:
            return self.video[index] is not None
        except FrameRangeError:
            return False

    def features(self, frame: Frame, encode: Callable[[Frame], FrameFeatures]) -> FrameFeatures:
        """Features of ``frame``, from a cache of the last few."""
        if frame.index not in self._features:
            self._features[frame.index] = encode(frame)
            while len(self._features) > FEATURE_CACHE:
                self._features.popitem(last=False)
        return self._features[frame.index]

    def features_at(self, index: int, encode: Callable[[Frame], FrameFeatures]) -> FrameFeatures:
        """Features of frame ``index``, which is read where they are not in the cache."""
        return self._features[index] if index in self._features else self.features(self.frame(index), encode)

    def iterate(self, start: int, stop: int | None, step: int) -> Iterator[Frame]:
        """Frames of a pass; streams are read as far as they go, and not in reverse."""
        with closing(self.video.frames(start, stop, step)) as frames:
            yield from frames

    def note_scores(self, frame: int, scores: tuple[ObjectScore, ...]) -> None:
        self.recent_scores.pop(frame, None)
        self.recent_scores[frame] = scores
        while len(self.recent_scores) > SCORE_HISTORY:
            self.recent_scores.popitem(last=False)

    def clear(self) -> None:
        """Back to the state before the first prompt; the video stays."""
        self.tracker.clear()
        self.prompts.clear()
        self.recent_scores.clear()
        self.revisions = ()

    def memory_bytes(self) -> int:
        """Bytes of tensors held for all objects: memory banks, outputs, pending prompts. What has left them is counted by
        ``tracker.archive.bytes``."""
        tensors = []
        for track in self.tracker.tracks.values():
            outputs = [*track.outputs.values(), *track.pending.values()]
            tensors += [t for o in outputs for t in (o.logits, o.pointer)]
            if track.state is not None:
                tensors += track.state.tensors()
        return tensor_bytes(tensors)

    # -- SAM 2's keys ---------------------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        if key not in _KEYS:
            raise KeyError(f"{key!r}; this state answers {', '.join(sorted(_KEYS))}")
        return _KEYS[key](self)

    def __contains__(self, key: str) -> bool:
        return key in _KEYS

    def keys(self) -> list[str]:
        return sorted(_KEYS)

    def _by_index(self, value: Callable[[int], Any]) -> dict[int, Any]:
        return {i: value(obj_id) for i, obj_id in enumerate(self.obj_ids)}

    def _prompts_of(self, obj_id: int, *, masks: bool) -> dict[int, Prompt]:
        return {f: p for f, p in self.prompts.get(obj_id, {}).items() if (p.mask is not None) == masks}


class NormalizedFrames(Sequence[Tensor]):
    """What SAM 2 holds as ``state["images"]``, (T, 3, S, S) float32 on the CPU; a frame is read and resized when it is asked for.

    Args:
        source: the video.
        image_size: S.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, source: VideoSource, image_size: int) -> None:
        self.source, self.image_size = source, image_size

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), 3, self.image_size, self.image_size])

    def __len__(self) -> int:
        return self.source.count_frames() if self.source.num_frames is None else self.source.num_frames

    def __getitem__(self, index: Any) -> Any:
        """(3, S, S) of a frame, (n, 3, S, S) of a slice."""
        if isinstance(index, slice):
            return torch.stack([self[number] for number in range(len(self))[index]])
        return normalize(self.source[range(len(self))[index]].model_input(self.image_size), self.device)


def _side(state: InferenceState, axis: int) -> int | None:
    return None if state.frame_size is None else state.frame_size[axis]


def _copied(value: Any) -> Any:
    """Containers and the book-keeping of an object anew; what is in them, tensors and states of policies, never changes."""
    if isinstance(value, dict):
        return type(value)((key, _copied(item)) for key, item in value.items())
    if isinstance(value, list | set):
        return copy(value)
    if isinstance(value, Track | TrackedRanges):
        result = copy(value)
        vars(result).update({name: _copied(item) for name, item in vars(value).items()})
        return result
    return value


_KEYS: dict[str, Callable[[InferenceState], Any]] = {
    "num_frames": lambda s: s.num_frames,
    "video_height": lambda s: _side(s, 0),
    "video_width": lambda s: _side(s, 1),
    "obj_ids": lambda s: s.obj_ids,
    "obj_id_to_idx": lambda s: {obj_id: i for i, obj_id in enumerate(s.obj_ids)},
    "obj_idx_to_id": lambda s: dict(enumerate(s.obj_ids)),
    "images": lambda s: None if s.source is None else NormalizedFrames(s.source, s.tracker.model.image_size),
    "device": lambda s: s.tracker.model.device,
    "storage_device": lambda s: s.tracker.settings.storage_device or s.tracker.model.device,
    "offload_video_to_cpu": lambda s: s.offload_video_to_cpu,
    "offload_state_to_cpu": lambda s: s.offload_state_to_cpu,
    "cached_features": lambda s: s._features,
    "point_inputs_per_obj": lambda s: s._by_index(lambda o: s._prompts_of(o, masks=False)),
    "mask_inputs_per_obj": lambda s: s._by_index(lambda o: s._prompts_of(o, masks=True)),
    "output_dict_per_obj": lambda s: s._by_index(lambda o: s.tracker.tracks[o].outputs),
    "temp_output_dict_per_obj": lambda s: s._by_index(lambda o: s.tracker.tracks[o].pending),
    "frames_tracked_per_obj": lambda s: s._by_index(lambda o: s.tracker.tracks[o].tracked),
    "scores": lambda s: s.recent_scores,
}
