"""SAM 2's video API over the tracker: same method names, same arguments, same 3-tuples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.memory.trace import Cause, Listener
from sam2_mem.model.acceleration.cuda_graphs import speed_up
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.alternatives import ChoosesAlternatives
from sam2_mem.tracking.archive import Archive
from sam2_mem.tracking.batching import row_limit
from sam2_mem.tracking.clip import check_clips
from sam2_mem.tracking.embedders import Embedder
from sam2_mem.tracking.frame_loop import run
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.mask_postprocessing import resize_logits, suppress_overlap
from sam2_mem.tracking.passes import pass_range, run_pass
from sam2_mem.tracking.refine import Refiner
from sam2_mem.tracking.suggestions import SuggestsFrames
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.types import ABSENT_LOGIT, FrameContext, FrameFeatures, FrameResult, ObjectScore, Revision
from sam2_mem.video import Frame, FrameRangeError, normalize, open_video

logger = logging.getLogger(__name__)

Predictor = TypeVar("Predictor", bound="PredictorBase")

Masks = tuple[int, list[int], Tensor]
"""(frame index, object ids, logits (N, 1, H, W) at video resolution; foreground is > 0)."""

SHORT_VIDEO = 32


@dataclass(frozen=True, kw_only=True)
class PredictorSettings:
    """``non_overlap_masks``: objects may not overlap in the masks given out."""

    non_overlap_masks: bool = False


class PredictorBase(nn.Module):
    """A network and a policy, with what is done to frames before the tracker and to masks after it.

    As in SAM 2, the predictor is the network to whoever takes it for an ``nn.Module``: parameters, state dict, devices and
    attributes such as ``image_encoder`` are those of ``model``. An embedder goes along to another device, and its weights are
    not counted.

    Args:
        model: the network.
        policy: how objects remember.
        tracker: see ``TrackerSettings``.
        settings: see ``PredictorSettings``.
        refiner: see ``sam2_mem.tracking.refine``.
        embedder: see ``sam2_mem.tracking.embedders``; used by policies that ask for it and by refiners.
    """

    model: SAM2

    def __init__(
        self,
        model: SAM2,
        policy: MemoryPolicy,
        *,
        tracker: TrackerSettings | None = None,
        settings: PredictorSettings | None = None,
        refiner: Refiner | None = None,
        embedder: Embedder | None = None,
    ) -> None:
        if policy.needs.appearance and embedder is None:
            raise ValueError(
                f"expected an embedder for this {type(policy).__name__}, got none; choose embedder=dino, or an embedding that "
                "SAM 2 has, such as memory_policy.embed=obj_pool"
            )
        super().__init__()
        shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
        vars(self).update({name: vars(model)[name] for name in shared}, model=model, training=model.training)
        self.policy = policy
        self.tracker_settings = TrackerSettings() if tracker is None else tracker
        check_clips(policy, model, self.tracker_settings)
        self.settings = PredictorSettings() if settings is None else settings
        self.refiner = refiner
        self.embedder = embedder

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def image_size(self) -> int:
        return self.model.image_size

    def __setattr__(self, name: str, value: Any) -> None:
        """What the network has is set in the network; everything else is a plain attribute, modules too."""
        if any(name in vars(self).get(kind, ()) for kind in ("_parameters", "_buffers", "_modules")):
            super().__setattr__(name, value)
        else:
            object.__setattr__(self, name, value)

    def _apply(self: Predictor, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Predictor:
        self.model._apply(fn, recurse)
        if isinstance(self.embedder, nn.Module):
            self.embedder._apply(fn, recurse)
        return self

    def train(self: Predictor, mode: bool = True) -> Predictor:
        self.training = mode
        self.model.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a predictor is not called; use its methods: init_state, add_new_points_or_box, ...")

    def with_policy(self: Predictor, policy: Any) -> Predictor:
        """A predictor with the same network and settings, whose objects remember otherwise; weights are shared.

        Args:
            policy: a name (``"rmem"``), a config or an instance, as ``memory_policy`` of ``build_sam2_video_predictor``. A bound
                on memory around the present policy does not carry over.

        Raises:
            ValueError: there is no such policy, or this network cannot serve it.
        """
        builder = import_module("sam2_mem.build_sam")
        built = builder.build_policy(policy)
        builder.check_slots(built, self.model)
        return type(self)(
            self.model,
            built,
            tracker=self.tracker_settings,
            settings=self.settings,
            refiner=self.refiner,
            embedder=self.embedder,
        )

    def encode(self, frame: Frame) -> FrameFeatures:
        """Features of a frame, as ``Tracker.step`` takes them."""
        return self._encode_together([frame])[0]

    def encode_all(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        """Features of several frames, in batches of as many as ``tracker.max_rows`` allows."""
        size = row_limit(self.model, self.tracker_settings.max_rows) or len(frames)
        parts = [frames[start : start + size] for start in range(0, len(frames), size)]
        return [features for part in parts for features in self._encode_together(part)]

    def _encode_together(self, frames: Sequence[Frame]) -> list[FrameFeatures]:
        inputs = torch.stack([frame.model_input(self.model.image_size) for frame in frames])
        pixels = normalize(inputs, self.model.device)
        features = self.model.encode_image(pixels, [frame.index for frame in frames])
        if self.embedder is None:
            return features
        return [replace(f, appearance=self.embedder(image)) for f, image in zip(features, pixels)]

    def _at_video_size(self, state: InferenceState, masks: Tensor) -> Tensor:
        """(N, h, w) -> (N, 1, H, W)."""
        assert state.frame_size is not None, "masks come after the first frame"
        return self.at_size(masks, state.frame_size).unsqueeze(1)

    def at_size(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Mask logits (N, h, w) -> (N, H, W), as they are given out: without overlap if the settings say so."""
        large = resize_logits(masks, size)
        return suppress_overlap(large) if self.settings.non_overlap_masks else large


class SAM2VideoPredictor(ChoosesAlternatives, SuggestsFrames, PredictorBase):
    """Tracks objects through videos and streams; see ``PredictorBase``. Everything about a video is in its state."""

    @classmethod
    def from_pretrained(cls, model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
        """The predictor of an official model, by its name on the Hugging Face hub."""
        return import_module("sam2_mem.build_sam").build_sam2_video_predictor_hf(model_id, **kwargs)

    # -- sessions ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def init_state(
        self,
        video_path: Any = None,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
        *,
        num_frames: int | None = None,
        interactive: bool = True,
    ) -> InferenceState:
        """Open a video, or with ``video_path=None`` a live stream for ``track_frame``.

        Args:
            video_path: anything ``sam2_mem.video.open_video`` takes: a folder of images, a video file, arrays, an
                iterator, a camera index.
            offload_video_to_cpu: accepted for SAM 2's sake; frames always stay on the host, a few at a time.
            offload_state_to_cpu: stored memory maps wait on the CPU.
            async_loading_frames: accepted for SAM 2's sake; frames are always decoded ahead, a few at a time.
            num_frames: length of a stream, where it is known.
            interactive: the session may come back to frames it has left, so their memory is kept on the host
                (``tracker.archive_bytes``); False for a pass through the video, in memory that does not grow. A stream
                keeps nothing in any case.
        """
        source = None if video_path is None else open_video(video_path)
        if source is not None and num_frames is not None:
            raise ValueError(
                f"expected num_frames only for a stream (video_path=None), got {num_frames} beside a video"
            )
        if source is not None:
            source.image_size = self.image_size
        settings = self.tracker_settings
        if offload_state_to_cpu:
            settings = replace(settings, storage_device="cpu")
        length = num_frames if source is None else _length_if_cheap(source)
        archive = Archive(settings.archive_bytes if interactive and source is not None and source.seekable else 0)
        tracker = Tracker(
            self.model,
            self.policy,
            settings=settings,
            num_frames=length,
            refiner=self.refiner,
            archive=archive,
            keeps_decisions=interactive,
        )
        return InferenceState(
            tracker=tracker,
            source=source,
            offload_video_to_cpu=offload_video_to_cpu,
            offload_state_to_cpu=offload_state_to_cpu,
        )

    def reset_state(self, inference_state: InferenceState) -> None:
        """Forget all objects and prompts; the video stays open. A stream goes on where it is, with frames of the same size."""
        inference_state.edits += 1
        inference_state.clear()

    def listen(self, inference_state: InferenceState, listener: Listener | None) -> None:
        """Let ``listener`` hear of every change of the memory of any object, with the policy's reasons; None for nobody.
        Results stay the same to the bit."""
        inference_state.tracker.listener = listener

    # -- prompts -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def add_new_points_or_box(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: int,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
    ) -> Masks:
        """Click on an object, or draw a box around it.

        On a frame that was tracked before, this corrects: that frame and those tracked after it change.

        Args:
            inference_state: of the video.
            frame_idx: the frame.
            obj_id: any integer; an object is new with its first prompt.
            points: (N, 2) x, y.
            labels: (N) 1 foreground, 0 background.
            box: (4) x0, y0, x1, y1.
            clear_old_points: forget earlier clicks on this frame; False adds to them.
            normalize_coords: coordinates are pixels of the video; False: they are in 0..1.

        Returns:
            the masks of all objects on this frame.
        """
        state = inference_state
        frame_idx = state.check_frame(frame_idx)
        if box is not None and not clear_old_points:
            raise ValueError(
                "expected a box before any points, got a box with clear_old_points=False; use clear_old_points=True"
            )
        frame = state.frame(frame_idx)
        size = frame.image.shape[:2] if normalize_coords else (1, 1)
        prompt = Prompt(obj_id=obj_id, points=points, labels=labels, box=box, size=tuple(size))
        old = state.prompts.get(prompt.obj_id, {}).get(frame_idx)
        if old is not None and old.mask is None and not clear_old_points:
            prompt = _joined(old, prompt)
        return self._answer(state, frame, prompt)

    def add_new_points(self, *args: Any, **kwargs: Any) -> Masks:
        """The old name of ``add_new_points_or_box``."""
        return self.add_new_points_or_box(*args, **kwargs)

    @torch.inference_mode()
    def add_new_mask(self, inference_state: InferenceState, frame_idx: int, obj_id: int, mask: Any) -> Masks:
        """Give the mask of an object on a frame, (H, W) of bool or 0/1; it is taken as it is."""
        frame_idx = inference_state.check_frame(frame_idx)
        frame = inference_state.frame(frame_idx)
        prompt = Prompt(obj_id=obj_id, mask=mask)
        check_mask_shape(prompt, frame)
        return self._answer(inference_state, frame, prompt)

    def _answer(self, state: InferenceState, frame: Frame, prompt: Prompt) -> Masks:
        features = state.features(frame, self.encode)
        state.tracker.preview(features, prompt)
        state.edits += 1
        state.prompts.setdefault(prompt.obj_id, {})[frame.index] = prompt
        return self.current_masks(state, frame.index)

    @torch.inference_mode()
    def clear_all_prompts_in_frame(
        self, inference_state: InferenceState, frame_idx: int, obj_id: int, need_output: bool = True
    ) -> Masks | None:
        """Take back what was said about an object on a frame; a mask already in memory stays as a tracked one."""
        state = inference_state
        frame_idx = state.check_frame(frame_idx)
        track = state.tracker.tracks.get(obj_id)
        if track is None:
            raise _unknown_object(obj_id, state.obj_ids)
        state.edits += 1
        state.tracker.close_clip()
        state.prompts.get(obj_id, {}).pop(frame_idx, None)
        track.pending.pop(frame_idx, None)
        if frame_idx in track.prompted_frames():
            memory = self.policy.unprompt(track.state, frame_idx)
            state.tracker.change(track, Cause.UNPROMPT, FrameContext(frame_idx), memory)
            track.tracked.discard(frame_idx)
        return self.current_masks(state, frame_idx) if need_output else None

    @torch.inference_mode()
    def remove_object(
        self, inference_state: InferenceState, obj_id: int, strict: bool = False, need_output: bool = True
    ) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """Stop tracking an object, at any time; the masks of the others do not change.

        Args:
            inference_state: of the video.
            obj_id: the object.
            strict: raise if there is no such object.
            need_output: also give the masks of the remaining objects on the frames where the removed one had prompts.

        Returns:
            remaining object ids, and (frame index, masks) of those frames.
        """
        state = inference_state
        if obj_id not in state.tracker.tracks:
            if strict:
                raise _unknown_object(obj_id, state.obj_ids)
            return state.obj_ids, []
        state.edits += 1
        state.tracker.remove(obj_id)
        frames = sorted(state.prompts.pop(obj_id, {}))
        if not state.obj_ids or not need_output:
            return state.obj_ids, []
        return state.obj_ids, [(f, self.current_masks(state, f)[2]) for f in frames]

    @torch.inference_mode()
    def current_masks(self, state: InferenceState, frame_idx: int) -> Masks:
        """The masks of all objects on a frame as they are now, also of one that was tracked long ago.

        Masks are kept as long as memory is (``tracker.history`` of them, and within ``tracker.archive_bytes``); an object
        without one on this frame has an empty mask.
        """
        outputs = [state.tracker.recall.output(track, frame_idx) for track in state.tracker.tracks.values()]
        masks = torch.full((len(outputs), *self.model.mask_size), ABSENT_LOGIT, device=self.device)
        for row, output in enumerate(outputs):
            if output is not None:
                masks[row] = output.logits
        return frame_idx, state.obj_ids, self._at_video_size(state, masks)

    # -- propagation ---------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Take all pending prompts into memory; ``propagate_in_video`` does this by itself."""
        state = inference_state
        if not state.obj_ids:
            raise RuntimeError("nothing to track; give a prompt first: add_new_points_or_box or add_new_mask")
        for frame_idx in sorted({f for t in state.tracker.tracks.values() for f in t.pending}):
            state.tracker.commit(state.features_at(frame_idx, self.encode))
        ids = [t.obj_id for t in state.tracker.tracks.values() if t.state is None]
        if ids:
            raise RuntimeError(f"objects {ids} have no prompt left; prompt them again or call remove_object")

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Masks]:
        """Track all objects through the video, yielding ``(frame_idx, obj_ids, masks (N, 1, H, W))`` frame by frame.

        Args:
            inference_state: of the video.
            start_frame_idx: any frame; default the earliest prompted one.
            max_frame_num_to_track: frames after the first.
            reverse: towards the start of the video.

        Prompts may be given, and objects come and go, while the results are taken: that acts from the next one on, as if
        the pass had ended and another one had begun there. A policy that rewrites past masks (``needs.revise``) runs that many
        frames ahead of the masks given out; those frames are then tracked again.
        """
        for result in self._run_pass(inference_state, start_frame_idx, max_frame_num_to_track, reverse, final=True):
            inference_state.note_scores(result.frame, result.scores)
            with torch.inference_mode():
                masks = self._at_video_size(inference_state, result.masks)
            yield result.frame, list(result.obj_ids), masks

    def propagate(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[FrameResult]:
        """Like ``propagate_in_video``, with scores and with masks at the size the network gives them. Each result comes
        at once; later ones may hold revisions of it (``sam2_mem.tracking.frame_loop.delayed`` applies them)."""
        yield from self._run_pass(inference_state, start_frame_idx, max_frame_num_to_track, reverse)

    def _run_pass(
        self, state: InferenceState, start: int | None, max_frames: int | None, reverse: bool, *, final: bool = False
    ) -> Iterator[FrameResult]:
        if state.source is None:
            raise ValueError(
                "this state has no video; a stream is tracked frame by frame: track_frame(state, frame, prompts)"
            )
        self.propagate_in_video_preflight(state)
        frames = pass_range(state, start, max_frames, reverse)
        take_in = partial(self.propagate_in_video_preflight, state)
        tracked = partial(run_pass, state, frames, encode=self.encode, encode_all=self.encode_all)
        return tracked(take_in=take_in, final=final)

    # -- streams -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def track_frame(
        self, inference_state: InferenceState, frame: Any, prompts: Prompt | Iterable[Prompt] = ()
    ) -> Masks:
        """Track the next frame of a live stream; equal to offline tracking of the same frames.

        Args:
            inference_state: from ``init_state()`` without a video.
            frame: (H, W, 3) uint8 RGB array or tensor, or a PIL image; all of one size.
            prompts: what is said about objects on this frame, old or new.

        Returns:
            (frame index, object ids, masks (N, 1, H, W)); N is 0 before the first prompt.
        """
        state = inference_state
        if state.source is not None:
            raise ValueError(
                "this state has a video; use propagate_in_video, or init_state() without a video for a stream"
            )
        image = state.to_rgb(frame, f"frame {state.frames_seen}")
        size = image.shape[0], image.shape[1]
        if state.size is not None and size != state.size:
            raise ValueError(
                f"expected frames of {state.size[0]} x {state.size[1]} (height x width), got {size[0]} x {size[1]}; "
                "for a stream of another size make a new state: init_state()"
            )
        index = state.frames_seen
        streamed = Frame(index, f"{index:05d}", image)
        fitted = [_fitted(prompt, streamed) for prompt in ([prompts] if isinstance(prompts, Prompt) else prompts)]
        [result] = run(state, [streamed], lambda _: fitted, encode=self.encode)
        state.size, state.frames_seen = size, index + 1
        return index, list(result.obj_ids), self._at_video_size(state, result.masks)

    @torch.inference_mode()
    def revisions(self, inference_state: InferenceState, *, finish: bool = False) -> list[Masks]:
        """Masks of earlier frames that the latest frame has changed, for policies that rewrite the past.

        Args:
            inference_state: of the stream.
            finish: instead, what is still to be changed now that the stream is over.

        Returns:
            (frame index, object ids, masks (N, 1, H, W)) for each frame, with those objects that changed.
        """
        state = inference_state
        changed: dict[int, list[Revision]] = {}
        for revision in state.tracker.finish() if finish else state.revisions:
            changed.setdefault(revision.frame, []).append(revision)
        result = []
        for frame, revisions in sorted(changed.items()):
            masks = self._at_video_size(state, torch.stack([r.logits for r in revisions]))
            result.append((frame, [r.obj_id for r in revisions if r.obj_id is not None], masks))
        return result

    def scores(self, inference_state: InferenceState, frame_idx: int | None = None) -> tuple[ObjectScore, ...]:
        """Predicted IoU, object score and memory changes of every object on a recent frame (default: the latest)."""
        recent = inference_state.recent_scores
        if not recent:
            raise ValueError("no frame has been tracked yet, so there are no scores")
        frame = next(reversed(recent)) if frame_idx is None else frame_idx
        if frame not in recent:
            raise ValueError(
                f"scores of frame {frame} are not held; the last {len(recent)} tracked frames are: {list(recent)}"
            )
        return recent[frame]

    # -- memory in files -------------------------------------------------------------------------------------------

    def save_memory(self, inference_state: InferenceState, obj_id: int, path: str | PathLike[str]) -> None:
        """Write what an object's memory holds now to a file, to be loaded into this video or another one."""
        track = inference_state.tracker.tracks.get(obj_id)
        if track is None:
            raise _unknown_object(obj_id, inference_state.obj_ids)
        inference_state.tracker.close_clip()
        if track.state is None:
            raise RuntimeError(
                f"object {obj_id} has no memory yet; track it first, or call propagate_in_video_preflight"
            )
        save_memory(path, self.policy, track.state)

    def load_memory(
        self,
        inference_state: InferenceState,
        obj_id: int,
        path: str | PathLike[str],
        *,
        frame_idx: int = 0,
        frozen: bool = False,
    ) -> None:
        """Start an object from a saved memory instead of a prompt.

        The memory is placed just before ``frame_idx``, as if it had been made by the frames leading up to it; track from
        there. ``frozen`` memory is read but never written, so that one object can be looked for in many videos.
        """
        state = inference_state
        if obj_id in state.tracker.tracks:
            raise ValueError(f"expected an object id that is not in use, got {obj_id}; call remove_object first")
        memory = load_memory(path, self.policy, device=self.device)
        newest = max(e.frame for e in memory.all_entries())
        track = state.tracker.track(obj_id)
        track.frozen = frozen
        state.edits += 1
        memory = memory.shift_frames(frame_idx - 1 - newest)
        state.tracker.change(track, Cause.LOAD, FrameContext(frame_idx), memory)


class SAM2VideoPredictorVOS(SAM2VideoPredictor):
    """The predictor that ``vos_optimized=True`` builds: its network is made quick first, see
    ``sam2_mem.model.acceleration.cuda_graphs.speed_up``."""

    def __init__(self, model: SAM2, policy: MemoryPolicy, **kwargs: Any) -> None:
        speed_up(model)
        super().__init__(model, policy, **kwargs)


def _joined(old: Prompt, new: Prompt) -> Prompt:
    """``old`` with the points of ``new`` after its own, in the coordinates of ``new``."""
    assert old.size is not None and new.size is not None, "both were measured in a picture"
    scale = torch.tensor([new.size[1] / old.size[1], new.size[0] / old.size[0]])
    box = None if old.box is None else (old.box.reshape(2, 2) * scale).reshape(4)
    if old.points is None:
        return replace(new, box=box)
    points, labels = torch.cat([old.points * scale, new.points]), torch.cat([old.labels, new.labels])
    return replace(new, points=points, labels=labels, box=box)


def _length_if_cheap(source: Any) -> int | None:
    """Number of frames where it is known or the video is short; None for long files and streams, where it makes no
    difference to what is read."""
    if source.num_frames is not None or not source.seekable:
        return source.num_frames
    try:
        source[SHORT_VIDEO - 1]
    except FrameRangeError:
        return source.count_frames()
    except ValueError:
        return None  # a frame that cannot be read is an error when its turn comes
    return None


def _fitted(prompt: Prompt, frame: Frame) -> Prompt:
    """A prompt for a frame of a stream; points without a picture size are measured in this one."""
    if not isinstance(prompt, Prompt):
        raise ValueError(
            f"expected prompts as sam2_mem.Prompt, got {type(prompt).__name__}; make them with Prompt(obj_id, ...)"
        )
    if prompt.mask is not None:
        check_mask_shape(prompt, frame)
        return prompt
    return prompt if prompt.size is not None else replace(prompt, size=tuple(frame.image.shape[:2]))


def check_mask_shape(prompt: Prompt, frame: Frame) -> None:
    """ValueError unless the mask of ``prompt`` has the frame's aspect ratio, to 2 %."""
    shape, video = tuple(prompt.mask.shape), tuple(frame.image.shape[:2])
    if abs(shape[0] * video[1] - shape[1] * video[0]) > 0.02 * shape[0] * video[1]:
        raise ValueError(
            f"expected a mask of the video's size {video} (height, width) or of its aspect ratio, got {shape}; "
            "was it transposed or cut?"
        )


def _unknown_object(obj_id: Any, known: Sequence[int]) -> RuntimeError:
    return RuntimeError(f"expected one of the objects {list(known)}, got {obj_id!r}")
