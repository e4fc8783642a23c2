"""Random sessions, ours and SAM 2's side by side: every call that a user may make, in any order, from one seed.

The reference is the package sam2 on the micro network's weights. What it cannot do is arranged as follows. It takes
prompts into account when a pass begins only, so what is said in the loop is compared with a pass that ends there and another one
that begins on the next frame. Its image encoder cannot be made as narrow as the micro network's and fails where no window
fits, so it is given our features of the pictures (tests/test_parity.py compares the encoders). Memory maps are float32 on both
sides, not bfloat16: a map that is rounded to the other side differs by one part in 256, which the loud weights of the micro
network make 5e-3 of logits, and equality could not be told from nearness. (test_parity.py has bfloat16 maps; with those the
reference also fails where no object pointer can be read.) Corrections count as prompts
(``add_all_frames_to_correct_as_cond``), as they do here.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import PublishedMask, Session, encode_once, worst
from micro import SCORE_BIAS, SIDE, blob, micro_config, micro_model, picture
from PIL import Image
from torch import Tensor

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.types import FrameFeatures

FRAMES = 48
OBJECTS = (1, 2, 5)
TOLERANCE = 1e-3
PRESENCE = 5.0
"""Added to object scores: what follows a click alone is seen on most frames too, so that masks can differ."""

_REFERENCE_OVERRIDES = (
    f"++model.image_size={SIDE}",
    "++model.add_all_frames_to_correct_as_cond=true",
    "++model.image_encoder.trunk.embed_dim=16",
    "++model.image_encoder.trunk.stages=[1,1,1,1]",
    "++model.image_encoder.trunk.global_att_blocks=[2]",
    "++model.image_encoder.trunk.window_spec=[8,4,4,2]",
    "++model.image_encoder.neck.d_model=32",
    "++model.image_encoder.neck.position_encoding.num_pos_feats=32",
    "++model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    "++model.memory_attention.d_model=32",
    "++model.memory_attention.num_layers=2",
    "++model.memory_attention.layer.d_model=32",
    "++model.memory_attention.layer.dim_feedforward=64",
    "++model.memory_attention.layer.self_attention.embedding_dim=32",
    "++model.memory_attention.layer.cross_attention.embedding_dim=32",
    "++model.memory_attention.layer.cross_attention.kv_in_dim=16",
    "++model.memory_encoder.in_dim=32",
    "++model.memory_encoder.out_dim=16",
    "++model.memory_encoder.position_encoding.num_pos_feats=16",
    "++model.memory_encoder.mask_downsampler.embed_dim=32",
    "++model.memory_encoder.fuser.layer.dim=32",
    "++model.memory_encoder.fuser.num_layers=1",
)


# -- both sides -------------------------------------------------------------------------------------------------------


def make_video(folder: Path) -> Path:
    """A folder of ``FRAMES`` pictures."""
    folder.mkdir(parents=True)
    for i in range(FRAMES):
        Image.fromarray(picture(i)).save(folder / f"{i:05d}.jpg", quality=95)
    return folder


@dataclass(eq=False)
class Sides:
    """Our predictors and the reference's on the micro network, and the video of all sessions."""

    place: Path
    encoded: dict[bytes, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.video = make_video(self.place / "frames")
        state = dict(micro_model().state_dict())
        state[SCORE_BIAS] = state[SCORE_BIAS] + PRESENCE
        self.weights = self.place / "weights.pt"
        torch.save({"model": state}, self.weights)
        self.reference = lru_cache(self._reference)
        self.ours = lru_cache(self._ours)

    def _ours(self, *overrides: str, postprocessing: bool = False) -> Any:
        config = micro_config()
        predictor = build_sam2_video_predictor(
            config,
            self.weights,
            device="cpu",
            apply_postprocessing=postprocessing,
            hydra_overrides_extra=[
                "tracker.memory_dtype=float32",
                "tracker.fill_hole_area=0",
                *overrides,
            ],  # it fills none on a CPU
        )
        encode_once(predictor.model, self.encoded)
        return predictor

    def _reference(self, *, postprocessing: bool = False) -> Any:
        from sam2.build_sam import build_sam2_video_predictor as build

        overrides = list(_REFERENCE_OVERRIDES)
        arguments = {"device": "cpu", "apply_postprocessing": postprocessing, "hydra_overrides_extra": overrides}
        predictor = build("configs/sam2.1/sam2.1_hiera_t.yaml", None, **arguments)
        weights = torch.load(self.weights, weights_only=True)["model"]
        shapes = {name: value.shape for name, value in predictor.state_dict().items()}
        predictor.load_state_dict({name: padded(value, shapes[name]) for name, value in weights.items()})
        model = self.ours(postprocessing=postprocessing).model
        predictor.forward_image = lambda images: as_backbone_output(model.encode_image(images)[0])
        return predictor


def as_backbone_output(features: FrameFeatures) -> dict[str, Any]:
    """Our image features as the reference's encoder gives them."""
    low, positions = (x.t().unflatten(1, features.grid)[None] for x in (features.low, features.low_pos))
    maps = [*(fine[None] for fine in features.high), low]
    return {"backbone_fpn": maps, "vision_pos_enc": [*(torch.zeros_like(m) for m in maps[:2]), positions]}


def padded(value: Tensor, shape: torch.Size) -> Tensor:
    """Hidden layers are narrower here than the reference can make them; units of zeros change nothing."""
    result = value.new_zeros(shape)
    result[tuple(slice(size) for size in value.shape)] = value
    return result


class _TorchInFloat32:
    """The module torch, as the reference's predictor sees it, without bfloat16."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def float32_maps() -> Iterator[None]:
    """The reference keeps its maps in float32."""
    module = import_module("sam2.sam2_video_predictor")
    module.torch = _TorchInFloat32()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.torch = torch  # type: ignore[attr-defined]


# -- calls ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Say:
    """A prompt, or taking something back: ``kind`` out of click, more, box, box_and_click, mask, clear, remove, reset,
    preflight."""

    kind: str
    frame: int = 0
    obj_id: int = 0
    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pass:
    """A pass, given up after ``until`` results (None: not), with what is said in the loop after some of them."""

    start: int | None
    most: int | None
    reverse: bool
    until: int | None = None
    said: tuple[tuple[int, Say], ...] = ()


Call = Say | Pass


def say(session: Session, call: Say) -> None:
    """Do it; what is given out is noted."""
    predictor, state = session.predictor, session.state
    if call.kind in ("click", "more"):
        session.points(call.frame, call.obj_id, *call.points, labels=call.labels, more=call.kind == "more")
    elif call.kind == "box":
        session.box(call.frame, call.obj_id, box_of(call))
    elif call.kind == "box_and_click":
        points, labels = np.array(call.points, np.float32), np.array(call.labels, np.int32)
        box = np.array(box_of(call), np.float32)
        session._note(predictor.add_new_points_or_box(state, call.frame, call.obj_id, points, labels, box=box))
    elif call.kind == "mask":
        session.mask(call.frame, call.obj_id, blob(call.obj_id % 3, call.frame))
    elif call.kind == "clear":
        session._note(predictor.clear_all_prompts_in_frame(state, call.frame, call.obj_id))
    elif call.kind == "remove":
        ids, changed = predictor.remove_object(state, call.obj_id)
        for frame, masks in sorted(changed, key=lambda item: item[0]):
            session._note((frame, ids, masks))
    elif call.kind == "reset":
        predictor.reset_state(state)
    else:
        assert call.kind == "preflight", call.kind
        predictor.propagate_in_video_preflight(state)


def box_of(call: Say) -> list[float]:
    y, x = np.nonzero(blob(call.obj_id % 3, call.frame))
    return [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)]


def run_ours(session: Session, call: Pass) -> None:
    """One loop."""
    said = dict(call.said)
    results = session.predictor.propagate_in_video(session.state, call.start, call.most, call.reverse)
    for count, result in enumerate(results):
        session._note(result)
        if count in said:
            say(session, said[count])
        if count + 1 == call.until:
            break
    results.close()


def run_reference(session: Session, call: Pass) -> None:
    """A pass up to where something is said, another one from the next frame on, and so on."""
    said, count, start, most = dict(call.said), 0, call.start, call.most
    step = -1 if call.reverse else 1
    while True:
        results = session.predictor.propagate_in_video(session.state, start, most, call.reverse)
        frame = None
        for result in results:
            session._note(result)
            frame, count = result[0], count + 1
            if count - 1 in said or count == call.until:
                break
        results.close()
        if count - 1 not in said or frame is None:
            return
        call_in_loop = said.pop(count - 1)
        say(session, call_in_loop)
        if count == call.until or not _goes_on(call, frame, count):
            return
        start, most = frame + step, None if call.most is None else call.most - count


def _goes_on(call: Pass, frame: int, count: int) -> bool:
    """Whether a pass has a frame after ``frame``, its ``count``-th."""
    if call.most is not None and count > call.most:
        return False
    return frame > 0 if call.reverse else frame < FRAMES - 1


# -- drawing them -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Draw:
    """Draws calls that SAM 2 allows, by what the reference's state says."""

    rng: random.Random
    in_loop: bool = True

    def sequence(self, length: int) -> Iterator[Callable[[dict[str, Any]], Call]]:
        """``length`` draws; the first are prompts."""
        for number in range(length):
            kind = "prompt" if number < 2 else self.rng.choices(["prompt", "pass", "other"], [4, 8, 1])[0]
            yield {"prompt": self.prompt, "pass": self.a_pass, "other": self.other}[kind]

    def prompt(self, state: dict[str, Any], frames: tuple[int, ...] = ()) -> Say:
        idle = [obj_id for obj_id in state["obj_ids"] if not prompted_frames(state, obj_id)]
        obj_id = self.rng.choice(idle or OBJECTS)
        frame = self.rng.choice(frames or range(FRAMES))
        kind = self.rng.choices(["click", "more", "box", "box_and_click", "mask"], [4, 2, 2, 1, 2])[0]
        if kind != "mask" and not answers_clicks(state, obj_id, frame):
            kind = "mask"
        count = self.rng.choice([1, 1, 2, 3])
        y, x = np.nonzero(blob(obj_id % 3, frame))
        picks = [self.rng.randrange(len(x)) for _ in range(count)]
        points = [(float(x[i]), float(y[i])) for i in picks]
        labels = [1] * count
        if self.rng.random() < 0.3:
            points[-1], labels[-1] = (self.rng.uniform(0, SIDE), self.rng.uniform(0, SIDE)), 0
        return Say(kind, frame, obj_id, tuple(points), tuple(labels))

    def a_pass(self, state: dict[str, Any]) -> Pass:
        start = None if self.rng.random() < 0.25 else self.rng.randrange(FRAMES)
        most = None if self.rng.random() < 0.2 else self.rng.choice([0, 1, 3, 6, 10, 20, 30])
        reverse = self.rng.random() < 0.4
        until = self.rng.randrange(1, 12) if self.rng.random() < 0.2 else None
        said: dict[int, Say] = {}
        if self.in_loop and self.rng.random() < 0.4 and start is not None and (not reverse or start > 1):
            step, last = (-1, 2) if reverse else (1, FRAMES - 2)
            length = min(abs(start - last) + 1, FRAMES if most is None else most)
            for _ in range(self.rng.choice([1, 1, 2])):
                if length > 0 and (last - start) * step >= 0:
                    count = self.rng.randrange(length)
                    shown = start + step * count
                    said[count] = self.prompt(state, (shown, shown, shown + step, self.rng.randrange(FRAMES)))
        return Pass(start, most, reverse, until, tuple(sorted(said.items())))

    def other(self, state: dict[str, Any]) -> Say:
        ids = list(state["obj_ids"])
        kind = self.rng.choices(["clear", "remove", "reset", "preflight"], [5, 3, 1, 1])[0]
        if not ids or kind in ("reset", "preflight"):
            return Say("reset" if kind == "reset" else "preflight")
        obj_id = self.rng.choice(ids)
        prompted = prompted_frames(state, obj_id)
        if kind == "remove" or not prompted:
            return Say("remove", obj_id=obj_id)
        return Say("clear", self.rng.choice(prompted), obj_id)


def prompted_frames(state: dict[str, Any], obj_id: int) -> list[int]:
    """Frames with a prompt of an object, in the reference's state."""
    index = state["obj_id_to_idx"][obj_id]
    return sorted({*state["point_inputs_per_obj"][index], *state["mask_inputs_per_obj"][index]})


def answers_clicks(state: dict[str, Any], obj_id: int, frame: int) -> bool:
    """Whether the reference can answer clicks: it cannot on a tracked frame of an object without a prompt."""
    index = state["obj_id_to_idx"].get(obj_id)
    if index is None:
        return True
    has_prompt = bool(state["output_dict_per_obj"][index]["cond_frame_outputs"])
    return has_prompt or frame not in state["frames_tracked_per_obj"][index]


# -- the walk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """What came of one sequence: the calls, how many of them both refused, the largest difference of logits and the call
    at which it arose, the warnings of ours."""

    calls: tuple[Call, ...]
    results: int
    refused: int
    difference: float
    culprit: int
    warnings: tuple[str, ...]


class DisagreementError(AssertionError):
    """One side refused what the other did, or they gave out different frames or objects."""


def walk(sides: Sides, seed: int, *overrides: str, length: int = 12, in_loop: bool = True, full: bool = False) -> Walk:
    """One sequence of ``length`` calls on both sides; ``full``: with SAM 2's post-processing."""
    draw = Draw(random.Random(seed), in_loop)
    ours = Session(sides.ours(*overrides, postprocessing=full), sides.video)
    reference = Session(sides.reference(postprocessing=full), sides.video)
    calls: list[Call] = []
    refused, largest, culprit = 0, 0.0, -1
    with float32_maps(), recorded_warnings() as warnings:
        for number, drawn in enumerate(draw.sequence(length)):
            call = drawn(reference.state)
            calls.append(call)
            position = len(ours.shown)
            errors = [_attempt(side, call, is_ours) for side, is_ours in ((reference, False), (ours, True))]
            if errors[0] is not errors[1]:
                raise DisagreementError(f"seed {seed}, call {number}, {call}: reference {errors[0]}, ours {errors[1]}")
            refused += errors[0] is not None
            a, b = ours.shown[position:], reference.shown[position:]
            if [(x.frame, x.ids) for x in a] != [(y.frame, y.ids) for y in b]:
                raise DisagreementError(f"seed {seed}, call {number}, {call}: {_listed(a)} here, {_listed(b)} there")
            difference = worst(a, b) if a and a[0].ids else 0.0
            if difference > largest:
                largest, culprit = difference, number
    return Walk(tuple(calls), len(ours.shown), refused, largest, culprit, tuple(warnings))


def _attempt(session: Session, call: Call, is_ours: bool) -> type | None:
    """The kind of error, if the call is refused."""
    try:
        if isinstance(call, Say):
            say(session, call)
        else:
            (run_ours if is_ours else run_reference)(session, call)
    except RuntimeError as error:
        return type(error)
    return None


def _listed(shown: list[PublishedMask]) -> list[tuple[int, tuple[int, ...]]]:
    return [(mask.frame, mask.ids) for mask in shown]


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Warnings of our package."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("sam2_mem.tracking")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def kinds(walks: list[Walk]) -> Counter[str]:
    """How many calls of each kind were made."""
    counts: Counter[str] = Counter()
    for call in (call for w in walks for call in w.calls):
        if isinstance(call, Say):
            counts[call.kind] += 1
            continue
        counts["pass back" if call.reverse else "pass"] += 1
        counts["in the loop"] += len(call.said)
    return counts
