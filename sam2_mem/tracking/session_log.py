"""What was done in a session, as plain values: to be saved, repeated, and written as a script.

A log holds the steps of a session in their order: prompts, prompts taken back, objects removed, passes. The same steps on
the same video, network and policy give the same masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam2_mem.files import atomic_path
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_predictor import Masks, SAM2VideoPredictor

FORMAT = 1
KINDS = ("prompt", "clear", "remove", "track", "choose")


@dataclass(frozen=True, kw_only=True)
class SessionStep:
    """One thing that was done.

    Attributes:
        kind: ``prompt``: all that is said of an object on a frame, in place of what was said there before; ``clear``: a prompt
            taken back; ``remove``: an object removed; ``track``: a pass; ``choose``: another mask on the frame tracked last.
        frame: of a prompt; the first one of a pass, None for the earliest prompted one.
        obj_id: the object, None for a pass.
        points: x, y in pixels of the video.
        labels: 1 on the object, 0 beside it.
        box: x0, y0, x1, y1.
        outline: x, y of the corners of a polygon, whose inside is the mask.
        max_frames: of a pass, frames after the first; None for all.
        reverse: a pass towards the start.
        number: of the mask that is chosen, see ``predictor.choose_alternative``; None: the object is not there.
    """

    kind: str
    frame: int | None = None
    obj_id: int | None = None
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    box: tuple[float, float, float, float] | None = None
    outline: tuple[tuple[float, float], ...] = ()
    max_frames: int | None = None
    reverse: bool = False
    number: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected a step out of {', '.join(KINDS)}, got {self.kind!r}")
        if self.kind != "track" and self.obj_id is None:
            raise ValueError(f"expected the object of a step '{self.kind}', got none")
        if self.kind in ("prompt", "clear") and self.frame is None:
            raise ValueError(f"expected the frame of a step '{self.kind}', got none")

    def apply(self, predictor: SAM2VideoPredictor, state: InferenceState) -> Iterator[Masks]:
        """Do it; masks come as they are known: of a prompt those of its frame, of a pass those of every frame."""
        if self.kind == "track":
            yield from predictor.propagate_in_video(state, self.frame, self.max_frames, self.reverse)
            return
        assert self.obj_id is not None, "checked when the step was made"
        if self.kind == "choose":
            yield predictor.choose_alternative(state, self.obj_id, self.number)
            return
        if self.kind == "remove":
            for frame, masks in predictor.remove_object(state, self.obj_id, strict=True)[1]:
                yield frame, state.obj_ids, masks
            return
        assert self.frame is not None, "checked when the step was made"
        if self.kind == "clear":
            cleared = predictor.clear_all_prompts_in_frame(state, self.frame, self.obj_id)
            assert cleared is not None, "masks were asked for"
            yield cleared
        elif self.outline:
            mask = outline_mask(self.outline, state.frame(self.frame).image.shape[:2])
            yield predictor.add_new_mask(state, self.frame, self.obj_id, mask)
        else:
            points, labels = (self.points, self.labels) if self.points else (None, None)
            yield predictor.add_new_points_or_box(state, self.frame, self.obj_id, points, labels, box=self.box)

    def call(self) -> str:
        """The same as a line of Python, with ``predictor`` and ``state``; of a pass the iterator of its masks."""
        if self.kind == "track":
            return f"predictor.propagate_in_video(state, {self.frame}, {self.max_frames}, reverse={self.reverse})"
        if self.kind == "choose":
            return f"predictor.choose_alternative(state, {self.obj_id}, {self.number})"
        if self.kind == "remove":
            return f"predictor.remove_object(state, {self.obj_id})"
        if self.kind == "clear":
            return f"predictor.clear_all_prompts_in_frame(state, {self.frame}, {self.obj_id})"
        if self.outline:
            mask = f"outline_mask({_listed(self.outline)}, state.frame_size)"
            return f"predictor.add_new_mask(state, {self.frame}, {self.obj_id}, {mask})"
        said = f"points={_listed(self.points)}, labels={list(self.labels)}, " if self.points else ""
        box = f"box={list(self.box)}" if self.box else ""
        arguments = f"{self.frame}, {self.obj_id}, {said}{box}".removesuffix(", ")
        return f"predictor.add_new_points_or_box(state, {arguments})"

    def as_json(self) -> dict[str, Any]:
        """Plain values; those that are at their default are left out."""
        defaults = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}


def step_from_json(values: Mapping[str, Any]) -> SessionStep:
    """A step from ``SessionStep.as_json``; ValueError for anything else."""
    unknown = values.keys() - {f.name for f in fields(SessionStep)}
    if unknown or "kind" not in values:
        raise ValueError(f"expected the fields of a SessionStep, got {sorted(values)}")
    pairs = {name: tuple((float(x), float(y)) for x, y in values.get(name) or ()) for name in ("points", "outline")}
    box = values.get("box")
    rest = {name: value for name, value in values.items() if name not in ("points", "outline", "labels", "box")}
    labels = tuple(int(label) for label in values.get("labels") or ())
    return SessionStep(**rest, **pairs, labels=labels, box=None if box is None else tuple(float(v) for v in box))  # type: ignore[arg-type]


def outline_mask(outline: Sequence[tuple[float, float]], size: Sequence[int]) -> np.ndarray:
    """(H, W) bool: the inside of a polygon with corners x, y in a picture of ``size`` (H, W)."""
    if len(outline) < 3:
        raise ValueError(f"expected an outline of at least three corners, got {len(outline)}")
    mask = np.zeros((size[0], size[1]), np.uint8)
    cv2.fillPoly(mask, [np.round(np.array(outline)).astype(np.int32)], 1)
    return mask.astype(bool)


@dataclass(frozen=True, kw_only=True)
class SessionLog:
    """A session as plain values.

    Attributes:
        video: its path.
        config: of the network.
        checkpoint: weights, None for those of the config.
        policy: name of the memory policy.
        policy_fields: fields of the policy that differ from those of that name.
        distiller: name of the token distiller.
        memory_bound: name of the bound on memory.
        max_bytes: of that bound, None for its own default.
        names: what the objects are called, by id.
        steps: in the order in which they were done.
        masks: results by frame and object id as COCO run lengths (``sam2_mem.video.rle``), to be shown without tracking again.
    """

    video: str
    config: str = "nano_v2"
    checkpoint: str | None = None
    policy: str = "fifo"
    policy_fields: Mapping[str, Any] = field(default_factory=dict)
    distiller: str = "none"
    memory_bound: str = "none"
    max_bytes: int | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    steps: tuple[SessionStep, ...] = ()
    masks: Mapping[int, Mapping[int, str]] = field(default_factory=dict)

    def replay(self, predictor: SAM2VideoPredictor, state: InferenceState) -> Iterator[Masks]:
        """Do all steps in a new state of the video; masks as ``SessionStep.apply`` gives them."""
        for step in self.steps:
            yield from step.apply(predictor, state)

    def text(self) -> str:
        """The log as JSON."""
        values = asdict(self) | {"format": FORMAT, "steps": [step.as_json() for step in self.steps]}
        return json.dumps(values, indent=1) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the log as JSON; an interrupted write leaves an earlier file as it was."""
        with atomic_path(Path(path)) as part:
            part.write_text(self.text(), encoding="utf-8")

    def _parts(self) -> str:
        """The arguments of the builder beside network and policy."""
        overrides = [] if self.distiller == "none" else [f"distiller={self.distiller}"]
        if self.memory_bound != "none":
            overrides.append(f"memory_bound={self.memory_bound}")
            overrides += [] if self.max_bytes is None else [f"memory_bound.max_bytes={self.max_bytes}"]
        extra = f"hydra_overrides_extra={overrides!r}, " if overrides else ""
        return f'device="auto", {extra}'

    def script(self, out: str = "masks") -> str:
        """A Python script that repeats the session and writes PNGs of object ids into the folder ``out``."""
        policy = repr(self.policy)
        if self.policy_fields:
            policy = f"replace(build_policy({policy}), **{dict(self.policy_fields)!r})"
        lines = [
            '"""Repeats a session: the same prompts and passes, one PNG of object ids for every frame.',
            "",
            "Run it in the folder where the path of the video begins.",
            '"""',
            "",
            "from dataclasses import replace",
            "",
            "from sam2_mem import build_sam2_video_predictor",
            "from sam2_mem.build_sam import build_policy",
            "from sam2_mem.tracking.session_log import outline_mask",
            "from sam2_mem.video import PaletteWriter",
            "",
            f"predictor = build_sam2_video_predictor({self.config!r}, {self.checkpoint!r}, {self._parts()}memory_policy={policy})",
            f"state = predictor.init_state({self.video!r})",
            *([f"names = {dict(self.names)!r}"] if self.names else []),
            "masks = {}",
            *_script_steps(self.steps),
            f'with PaletteWriter({out!r}, "") as writer:',
            "    for frame, by_object in sorted(masks.items()):",
            "        writer.write(state.frame(frame), by_object)",
        ]
        text = "\n".join(lines) + "\n"
        unused = {
            "replace": "from dataclasses import replace\n\n",
            "build_policy": "from sam2_mem.build_sam import build_policy\n",
        }
        unused["outline_mask"] = "from sam2_mem.tracking.session_log import outline_mask\n"
        for name, line in unused.items():
            text = text if f"{name}(" in text else text.replace(line, "", 1)
        return text


def _script_steps(steps: Sequence[SessionStep]) -> Iterator[str]:
    kept = "masks[frame] = {i: (logits[k, 0] > 0).cpu().numpy() for k, i in enumerate(ids)}"
    for step in steps:
        if step.kind == "track":
            yield f"for frame, ids, logits in {step.call()}:"
            yield f"    {kept}"
        elif step.kind == "choose":
            yield f"frame, ids, logits = {step.call()}"
            yield kept
        else:
            yield step.call()


def load_session(path: str | Path) -> SessionLog:
    """A log that ``SessionLog.save`` has written; ValueError where the file is something else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values.pop("format") != FORMAT:
            raise ValueError("it is of another version")
        values["steps"] = tuple(step_from_json(step) for step in values["steps"])
        values["names"] = {int(i): str(name) for i, name in values["names"].items()}
        masks = {int(f): {int(i): str(c) for i, c in by_id.items()} for f, by_id in values["masks"].items()}
        return SessionLog(**values | {"masks": masks})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"expected a session saved by SessionLog.save in '{path}', got another file ({error})"
        ) from error


def _listed(pairs: Sequence[tuple[float, float]]) -> list[list[float]]:
    return [[x, y] for x, y in pairs]
