"""One video, segmented from prompts: each frame is encoded once for all objects, masks come out as frames go in.

An object joins on the frame of its first prompt, in the same pass as the others. Nothing of a frame is kept once its
masks have been given out; a policy that rewrites past masks delays them by as many frames as it may rewrite.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path

import numpy as np
import torch

from sam2_mem.prompts import Prompt
from sam2_mem.tracking.frame_loop import autocast_on, run
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_checkpoint import VideoCheckpoint, set_tracks, take_checkpoint
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor, check_mask_shape
from sam2_mem.types import FrameResult
from sam2_mem.video import Frame, VideoSource, palette_masks, per_object_masks, read_mask_png

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """Which prompts come when.

    ``obj_ids``: all objects, ascending. ``at``: frame index -> what makes the prompts of that frame, so that masks are
    read when their frame is. ``palette`` (N, 3): that of the first mask file, if it has one.
    """

    obj_ids: tuple[int, ...]
    at: Mapping[int, Callable[[Frame], list[Prompt]]]
    palette: np.ndarray | None = None

    def prompts_at(self, frame: Frame) -> list[Prompt]:
        return self.at[frame.index](frame) if frame.index in self.at else []


@dataclass(frozen=True, eq=False)
class FrameMasks:
    """The (H, W) bool mask of every object of the plan on one frame; empty where it is absent or yet to come."""

    frame: Frame
    masks: dict[int, np.ndarray]


# -- plans ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Clicks:
    """Points and a box on one object, in pixels: ``points`` (x, y), ``labels`` 1 foreground or 0 background."""

    obj_id: int
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None

    def on(self, frame: Frame) -> Prompt:
        points, labels = self.points or None, self.labels or None
        return Prompt(self.obj_id, points, labels, self.box, size=tuple(frame.image.shape[:2]))


def plan_from_clicks(clicks: Sequence[Clicks], frame: int = 0) -> PromptPlan:
    """Prompts of objects that are pointed at on one frame."""
    ids = [c.obj_id for c in clicks]
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"expected clicks on at least one object, one Clicks for each, got those of objects {ids}")
    return PromptPlan(tuple(sorted(ids)), {frame: lambda image: [c.on(image) for c in clicks]})


def plan_from_mask(path: str | Path, frame: int = 0, *, ignore: frozenset[int] = frozenset()) -> PromptPlan:
    """Every id of one palette or gray PNG, as prompts on one frame."""
    masks = palette_masks(path, ignore=ignore)
    if not masks:
        raise ValueError(f"expected a PNG with at least one object id other than 0 in '{path}', got none")
    return PromptPlan(tuple(masks), {frame: lambda image: _mask_prompts(image, masks)}, read_mask_png(path).palette)


@dataclass(frozen=True, kw_only=True)
class MaskRules:
    """How a folder of mask PNGs becomes prompts.

    Attributes:
        per_object: ``<object id>/<frame>.png`` of one object each, not ``<frame>.png`` with ids as pixel values.
        all_frames: prompt with every PNG, not with the first one (of each object, with ``late``).
        late: objects may first appear on any frame; empty masks are no prompts.
        ignore: ids that are no objects, e.g. 255 where it marks void.
    """

    per_object: bool = False
    all_frames: bool = False
    late: bool = False
    ignore: frozenset[int] = frozenset()


def plan_from_folder(folder: str | Path, source: VideoSource, rules: MaskRules) -> PromptPlan:
    """Prompts from the PNGs in ``folder`` that bear the names of frames of the video.

    Raises:
        ValueError: no usable mask, or objects that these rules do not admit; says which rule would.
        FileNotFoundError: no folder of masks.
    """
    masks = _MaskFolder(Path(folder), rules)
    stems = masks.by_frame(source)
    over_time = rules.late or rules.all_frames
    prompted = _over_time(masks, stems) if over_time else _first_frame_only(masks, stems, source)
    obj_ids = tuple(sorted({obj_id for ids in prompted.values() for obj_id in ids}))
    if not obj_ids:
        raise ValueError(f"expected at least one object in the masks of '{folder}', got none; their pixels are all 0")
    prompts_at = {index: partial(masks.prompts, stems[index], ids) for index, ids in prompted.items()}
    return PromptPlan(obj_ids, prompts_at, masks.palette(stems[min(prompted)]))


class _MaskFolder:
    """Mask PNGs of one video in either layout."""

    def __init__(self, folder: Path, rules: MaskRules) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no masks to start from: expected a folder '{folder}' of PNG files")
        self.folder, self.rules = folder, rules

    def by_frame(self, source: VideoSource) -> dict[int, str]:
        """Frame index -> stem, in order of the frames, for all PNGs whose stem is the name of a frame."""
        pattern = "*/*.png" if self.rules.per_object else "*.png"
        stems = {p.stem for p in self.folder.glob(pattern)}
        capitals = [p for p in self.folder.glob(pattern.removesuffix("png") + "[pP][nN][gG]") if p.suffix != ".png"]
        if capitals:
            raise ValueError(f"expected masks called .png, got '{capitals[0]}' ({len(capitals)} in all); rename them")
        index_of = _frame_finder(source)
        by_frame = {index: stem for stem in stems if (index := index_of(stem)) is not None}
        if not by_frame:
            raise ValueError(self._no_match(stems, source))
        unmatched = sorted(stems - set(by_frame.values()))
        if unmatched:
            logger.warning("%d masks in %s belong to no frame, e.g. %s.png", len(unmatched), self.folder, unmatched[0])
        return dict(sorted(by_frame.items()))

    def _no_match(self, stems: set[str], source: VideoSource) -> str:
        layout = "<object id>/<frame>.png" if self.rules.per_object else "<frame>.png"
        got = f"got {sorted(stems)[0]}.png" if stems else "got no such file"
        hint = ""
        if not stems and next(self.folder.glob("*.png" if self.rules.per_object else "*/*.png"), None):
            hint = "; the masks are in the other layout, see --per_obj_png_file"
        return f"expected masks in '{self.folder}' as {layout}, frames being called like {source.name(0)}, {got}{hint}"

    def read(self, stem: str) -> dict[int, np.ndarray]:
        """The (H, W) bool masks of one frame; empty ones too in the per-object layout."""
        if not self.rules.per_object:
            return palette_masks(self.folder / f"{stem}.png", ignore=self.rules.ignore)
        masks = per_object_masks(self.folder, stem)
        return {obj_id: mask for obj_id, mask in masks.items() if obj_id not in self.rules.ignore}

    def ids(self, stem: str) -> set[int]:
        """The objects that ``read`` would give."""
        if self.rules.per_object and not self.rules.late:
            folders = (p.parent.name for p in self.folder.glob(f"*/{escape(stem)}.png"))
            return {int(name) for name in folders if name.isdecimal()} - self.rules.ignore
        if self.rules.per_object:
            return {obj_id for obj_id, mask in self.read(stem).items() if mask.any()}
        counts = np.bincount(read_mask_png(self.folder / f"{stem}.png").ids.ravel())
        return set(np.flatnonzero(counts).tolist()) - {0} - self.rules.ignore

    def prompts(self, stem: str, obj_ids: set[int], frame: Frame) -> list[Prompt]:
        """Those of some of the objects that ``read`` gives."""
        masks = self.read(stem)
        return _mask_prompts(frame, {obj_id: masks[obj_id] for obj_id in sorted(obj_ids)})

    def palette(self, stem: str) -> np.ndarray | None:
        return None if self.rules.per_object else read_mask_png(self.folder / f"{stem}.png").palette


def _frame_finder(source: VideoSource) -> Callable[[str], int | None]:
    """A function from a stem to the index of the frame of that name."""
    if source.num_frames is not None:
        return {source.name(index): index for index in range(source.num_frames)}.get
    return lambda stem: int(stem) if stem.isdecimal() and source.name(int(stem)) == stem else None


def _first_frame_only(masks: _MaskFolder, stems: dict[int, str], source: VideoSource) -> dict[int, set[int]]:
    if 0 not in stems:
        raise ValueError(
            f"expected a mask of the first frame, {source.name(0)}.png, in '{masks.folder}', got the first one for "
            f"{next(iter(stems.values()))}; if objects appear later, give --track_object_appearing_later_in_video"
        )
    return {0: masks.ids(stems[0])}


def _over_time(masks: _MaskFolder, stems: dict[int, str]) -> dict[int, set[int]]:
    """Frame index -> objects to prompt there, from all PNGs."""
    rules = masks.rules
    prompted: dict[int, set[int]] = {}
    earlier: set[int] = set()
    for index, stem in stems.items():
        ids = masks.ids(stem)
        new = ids - earlier
        if new and not rules.late and prompted:
            raise ValueError(
                f"expected the objects of the first mask, {sorted(earlier)}, in '{masks.folder}', "
                f"got {sorted(new)} first in {stem}.png; "
                "give --track_object_appearing_later_in_video to follow them from there"
            )
        prompted_ids = ids if rules.all_frames else new
        if prompted_ids or not rules.late:
            prompted[index] = prompted_ids
        earlier |= ids
    if not prompted:
        raise ValueError(f"expected at least one object in the masks of '{masks.folder}', got empty masks only")
    return prompted


def _mask_prompts(frame: Frame, masks: Mapping[int, np.ndarray]) -> list[Prompt]:
    prompts = [Prompt(obj_id=obj_id, mask=mask) for obj_id, mask in masks.items()]
    for prompt in prompts:
        check_mask_shape(prompt, frame)
    return prompts


# -- the pass -------------------------------------------------------------------------------------------------------


def segment(
    predictor: SAM2VideoPredictor,
    state: InferenceState,
    plan: PromptPlan,
    *,
    start: int = 0,
    stop: int | None = None,
    score_thresh: float = 0.0,
    allow_empty: bool = False,
) -> Generator[FrameMasks, None, None]:
    """Masks of every frame from ``start`` to before ``stop`` (None: the end), in order.

    A prompt takes effect from its own frame on. If a frame cannot be read, the masks of all frames before it come
    first, then the error.

    Args:
        predictor: the model and the policy.
        state: fresh, from ``predictor.init_state(video)``; tells afterwards what is held.
        plan: the prompts.
        start: the first frame.
        stop: the frame after the last.
        score_thresh: a pixel belongs to an object where its logit is above this.
        allow_empty: an object that is clicked on or boxed may be empty on that frame; otherwise it is an error. (A mask that
            becomes empty, being too small for the network, is a warning.)

    Raises:
        ValueError: see ``allow_empty``.
    """
    return iter(
        VideoPass(predictor, state, plan, start=start, stop=stop, score_thresh=score_thresh, allow_empty=allow_empty)
    )


class VideoPass:
    """A pass of ``segment``, which see for the arguments, that can be saved between two frames and gone on with later."""

    def __init__(
        self,
        predictor: SAM2VideoPredictor,
        state: InferenceState,
        plan: PromptPlan,
        *,
        start: int = 0,
        stop: int | None = None,
        score_thresh: float = 0.0,
        allow_empty: bool = False,
    ) -> None:
        self._predictor, self._state, self._plan = predictor, state, plan
        self._start, self._stop = start, stop
        self._score_thresh, self._allow_empty = score_thresh, allow_empty
        self._next_shown = self._first_untracked = start
        self._frames: deque[Frame] = deque()
        self._results: deque[FrameResult] = deque()
        self._prompts: dict[int, Sequence[Prompt]] = {}

    def __iter__(self) -> Generator[FrameMasks, None, None]:
        autocast = partial(autocast_on, self._predictor.device)
        results = run(
            self._state,
            self._untracked_frames(),
            self._prompts_at,
            encode=self._predictor.encode,
            encode_all=self._predictor.encode_all,
            final=True,
            autocast=autocast,
            waiting=self._results,
        )
        for result in results:
            self._next_shown = result.frame + 1
            shown = _frame_masks(self._predictor, self._plan, self._frames.popleft(), result, self._score_thresh)
            _check_prompted(shown, self._prompts.pop(result.frame, ()), allow_empty=self._allow_empty)
            yield shown
        unused = [index for index in self._plan.at if not self._start <= index < self._next_shown]
        if unused:
            last = self._next_shown - 1
            message = "prompts on frames %s were not used: the pass covered frames %d to %d"
            logger.warning(message, unused, self._start, last)

    def _prompts_at(self, frame: Frame) -> list[Prompt]:
        prompts = self._plan.prompts_at(frame)
        if prompts:
            self._prompts[frame.index] = prompts
        return prompts

    def _untracked_frames(self) -> Iterator[Frame]:
        """Those to be tracked; all that are yet to be shown wait in ``_frames``."""
        known = max(self._next_shown - 1, self._start)  # a frame that is there, also where the last has been shown
        for frame in self._state.iterate(known, self._stop, 1):
            if frame.index < self._next_shown:
                continue
            self._frames.append(frame)
            if frame.index >= self._first_untracked:
                yield frame
            else:
                self._prompts_at(frame)

    # -- between two frames -----------------------------------------------------------------------------------------

    def checkpoint(self) -> VideoCheckpoint | None:
        """What the pass holds, to be asked for between two frames; None where it cannot go on from there: the frames are at
        their end and only masks that waited are yet to come, or a clip is not over."""
        if self._state.tracker.clip is not None:
            return None
        if len(self._results) != self._predictor.policy.needs.revise:
            return None
        first_untracked = self._results[-1].frame + 1 if self._results else self._next_shown
        return take_checkpoint(self._state, self._next_shown, first_untracked, self._results)

    def go_on(self, checkpoint: VideoCheckpoint) -> None:
        """Continue the pass from which ``checkpoint`` was taken; to be called before the first frame."""
        self._next_shown, self._first_untracked = checkpoint.next_shown, checkpoint.first_untracked
        self._results.extend(checkpoint.results)
        set_tracks(self._state, checkpoint.tracks)


def _check_prompted(shown: FrameMasks, prompts: Sequence[Prompt], *, allow_empty: bool) -> None:
    """Objects are to be seen where they were prompted."""
    empty = [prompt for prompt in prompts if not shown.masks[prompt.obj_id].any()]
    pointed = sorted(prompt.obj_id for prompt in empty if prompt.mask is None)
    if pointed and not allow_empty:
        raise ValueError(
            f"expected a mask where objects {pointed} are pointed at, got empty ones on frame {shown.frame.name}: this network "
            "sees nothing there; check the coordinates, take other weights or more points, or allow it with "
            "--allow_empty_prompts (allow_empty=True)"
        )
    lost = sorted(prompt.obj_id for prompt in empty if prompt.mask is not None and prompt.mask.any())
    if lost or pointed:
        logger.warning(
            "objects %s are empty on frame %s, where they are prompted: too small, or behind others",
            lost + pointed,
            shown.frame.name,
        )


def precision(device: torch.device) -> str:
    """What the network computes in: bfloat16 on CUDA, as SAM 2's tools do, float32 elsewhere."""
    return "bfloat16" if device.type == "cuda" else "float32"


@torch.inference_mode()
def _frame_masks(
    predictor: SAM2VideoPredictor, plan: PromptPlan, frame: Frame, result: FrameResult, score_thresh: float
) -> FrameMasks:
    """At the size of the frame. Objects are compared in ascending order, so that a lower id wins a tie."""
    size = frame.image.shape[0], frame.image.shape[1]
    logits = dict(sorted(zip(result.obj_ids, result.masks)))
    masks = dict.fromkeys(plan.obj_ids, np.zeros(size, dtype=bool))
    if logits:
        large = predictor.at_size(torch.stack(list(logits.values())), size)
        masks |= dict(zip(logits, (large > score_thresh).cpu().numpy()))
    return FrameMasks(frame, masks)
