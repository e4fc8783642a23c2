"""The tracker against transformers' video models: same weights, same frames, same prompts, same logits.

Weights are random and go through a ``.safetensors`` file under transformers' names. A scenario drives a
:class:`helpers.Session`; it is run once with ours and once with transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from clips import Clip, make_clip
from helpers import PublishedMask, Session, make_predictor, with_policy
from micro import one_thread  # noqa: F401
from transformers_oracle import (
    TransformersPredictor,
    edgetam_config,
    enliven,
    needs_transformers,
    sam2_config,
    sam3_config,
    saved,
)

from sam2_mem import SAM2VideoPredictor

pytestmark = [needs_transformers, pytest.mark.full]

TOLERANCE = 1e-4  # of logits
CLEAR = 1e-4  # logits; about three times the differences measured
SIZE, SIDE = 128, 4
SMALL_TRUNK = {"embed_dim": (16, 32, 64, 128), "depth": (2, 2, 4, 2)}
EDGETAM = (
    "model.image_encoder.trunk.widths=[16,32,64,128]",
    "model.image_encoder.trunk.depths=[2,2,4,2]",
    "model.image_encoder.neck.backbone_channel_list=[128,64,32,16]",
    f"model.memory_attention.memory_grid={SIDE}",
    f"distiller.global_latents={SIDE**2}",
    f"distiller.window_latents={SIDE**2}",
)
SAM3_SIZE = 168
SAM3 = (
    "model.image_encoder.trunk.width=64",
    "model.image_encoder.trunk.depth=2",
    "model.image_encoder.trunk.num_heads=4",
    "model.image_encoder.trunk.window=5",
    "model.image_encoder.trunk.global_blocks=[1]",
    "++model.image_encoder.trunk.trained_grid=4",
    "model.image_encoder.neck.backbone_channel_list=[64]",
)
AS_TRANSFORMERS = ("tracker.memory_dtype=float32", "++tracker.fill_hole_area=0")
"""Transformers keeps memory in float32, and fills no holes."""


class Pair(NamedTuple):
    """A model of transformers and our predictor with its weights."""

    theirs: TransformersPredictor
    ours: SAM2VideoPredictor

    def run(self, scenario: Callable[[Session, Clip], None], clip: Clip) -> tuple[Session, Session]:
        sessions = Session(self.theirs, clip.frames), Session(self.ours, clip.frames)
        for session in sessions:
            scenario(session, clip)
        return sessions


def pair(model: Any, folder: Path, config: str, *overrides: str, size: int = SIZE, loudness: float = 1.0) -> Pair:
    enliven(model, loudness)
    path = saved(model, folder / "model.safetensors")
    ours = make_predictor(path, *AS_TRANSFORMERS, *overrides, config=config, image_size=size, postprocessing=True)
    path.unlink()
    return Pair(TransformersPredictor(model), ours)


@pytest.fixture(scope="module")
def edgetam(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small network of EdgeTAM's structure."""
    import transformers

    model = transformers.EdgeTamVideoModel(edgetam_config(SIZE, SIDE, trunk=SMALL_TRUNK))
    return pair(model, tmp_path_factory.mktemp("edgetam"), "edgetam", *EDGETAM, loudness=0.5)


def sam2_pair(letter: str, folder: Path, *, is_2_1: bool = True) -> Pair:
    """A published size of SAM 2, on small images; logits of random weights would be up to 100, these are up to 10."""
    import transformers

    model = transformers.Sam2VideoModel(sam2_config(letter, is_2_1=is_2_1, size=SIZE))
    family = "sam2.1" if is_2_1 else "sam2"
    return pair(model, folder, f"configs/{family}/{family}_hiera_{letter}.yaml", loudness=0.1)


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny size of SAM 2.1."""
    return sam2_pair("t", tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """SAM 3's tracker over a small trunk."""
    import transformers

    model = transformers.Sam3TrackerVideoModel(sam3_config(SAM3_SIZE))
    folder = tmp_path_factory.mktemp("sam3")
    return pair(model, folder, "sam3_tracker", *SAM3, size=SAM3_SIZE, loudness=0.5)


@pytest.fixture(scope="module")
def sam3_clip() -> Clip:
    return make_clip(6, SAM3_SIZE, SAM3_SIZE)


@pytest.fixture(scope="module")
def square_clip() -> Clip:
    return make_clip(6, SIZE, SIZE)


# -- scenarios --------------------------------------------------------------------------------------------------------


def click(session: Session, clip: Clip) -> None:
    session.points(0, 1, clip.centre(1))
    session.track(0, 4)


def clicks(session: Session, clip: Clip) -> None:
    session.points(0, 1, clip.centre(1), [4.0, 4.0], labels=[1, 0])
    session.track(0, 2)


def box(session: Session, clip: Clip) -> None:
    session.box(0, 1, clip.box(2))
    session.track(0, 3)


def mask(session: Session, clip: Clip) -> None:
    session.mask(0, 1, clip.mask(3))
    session.track(0, 3)


def two_objects(session: Session, clip: Clip) -> None:
    session.mask(0, 1, clip.mask(1))
    session.points(0, 2, clip.centre(2))
    session.track(0, 4)


def late_object(session: Session, clip: Clip) -> None:
    session.mask(0, 1, clip.mask(1))
    session.track(0, 2)
    session.box(2, 2, clip.box(2, 2))
    session.track(2, 3)


def reverse(session: Session, clip: Clip) -> None:
    session.points(4, 1, clip.centre(1, 4))
    session.mask(4, 2, clip.mask(2, 4))
    session.track(4, 4, reverse=True)


SCENARIOS = (click, clicks, box, mask, two_objects, late_object, reverse)


def worst(theirs: list[PublishedMask], ours: list[PublishedMask]) -> float:
    """Largest difference of logits; in answer to a prompt, theirs shows that object only."""
    assert [x.frame for x in theirs] == [y.frame for y in ours]
    differences = [(x.of(i) - y.of(i)).abs().max() for x, y in zip(theirs, ours) for i in x.ids]
    return max(d.item() for d in differences)


class PromptsOnly(Session):
    """A session that answers prompts and does not track."""

    def track(self, start: int | None = None, most: int | None = None, reverse: bool = False) -> list[PublishedMask]:
        return []


@dataclass(frozen=True, eq=False)
class MovedPrompts(Clip):
    """A clip whose clicks and boxes are moved by ``shift`` pixels right and down."""

    shift: float

    def centre(self, shape: int, frame: int = 0) -> list[float]:
        return [x + self.shift for x in super().centre(shape, frame)]

    def box(self, shape: int, frame: int = 0) -> list[float]:
        return [x + self.shift for x in super().box(shape, frame)]


def with_clear_prompts(pair: Pair, scenario: Callable[[Session, Clip], None], clip: Clip) -> Clip:
    """The clip with its prompts moved so that no logit in answer to them is within ``CLEAR`` of 0.

    The mask of a click or box enters memory as 0 and 1. A logit nearer to 0 than the rounding of floats is 0 on the one side and
    1 on the other, on some processors; one such pixel changes later logits by up to .1.
    """
    for shift in np.arange(0, 3, 0.25):
        moved = MovedPrompts(clip.frames, clip.labels, float(shift))
        session = PromptsOnly(pair.theirs, clip.frames)
        scenario(session, moved)
        if min(x.logits.abs().min() for x in session.shown) > CLEAR:
            return moved
    raise AssertionError(f"no shift of the prompts keeps the logits {CLEAR} from 0")


def check(
    pair: Pair, scenario: Callable[[Session, Clip], None], clip: Clip, frames: int, tolerance: float = TOLERANCE
) -> None:
    theirs, ours = pair.run(scenario, clip)
    shown = torch.cat([x.logits.flatten() for x in theirs.shown])
    assert len(theirs.shown) >= frames and 0.02 < (shown > 0).float().mean() < 0.98 and shown.std() > 0.1
    assert worst(theirs.shown, ours.shown) <= tolerance


# -- SAM 2 and 2.1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_sam2(sam2: Pair, scenario: Callable[[Session, Clip], None], square_clip: Clip) -> None:
    check(sam2, scenario, with_clear_prompts(sam2, scenario, square_clip), frames=4)


def test_control_other_codes_of_time_are_noticed(
    sam2: Pair, square_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = sam2.ours.model.maskmem_tpos_enc
    monkeypatch.setattr(sam2.ours.model, "maskmem_tpos_enc", torch.nn.Parameter(codes.flip(0)))
    theirs, ours = sam2.run(late_object, square_clip)
    assert worst(theirs.shown[:2], ours.shown[:2]) <= TOLERANCE < worst(theirs.shown, ours.shown)


@pytest.mark.parametrize(
    ("letter", "is_2_1"),
    [
        ("t", True),
        *[pytest.param(letter, True, marks=pytest.mark.extended) for letter in ("s", "b+", "l")],
        *[pytest.param(letter, False, marks=pytest.mark.extended) for letter in ("t", "s", "b+", "l")],
    ],
)
def test_every_size_of_sam2(letter: str, is_2_1: bool, tmp_path: Path, square_clip: Clip) -> None:
    """A click, then a tracked frame; control: a block that attends to the whole picture attends in windows."""
    both = sam2_pair(letter, tmp_path, is_2_1=is_2_1)

    def click_and_track(session: Session, clip: Clip) -> None:
        session.points(0, 1, clip.centre(1))
        session.track(0, 1)

    check(both, click_and_track, with_clear_prompts(both, click_and_track, square_clip), frames=3)
    trunk = both.ours.model.image_encoder.trunk
    next(block for block in trunk.blocks[2:] if not block.window).window = 4
    theirs, ours = both.run(click_and_track, square_clip)
    assert worst(theirs.shown, ours.shown) > TOLERANCE


# -- SAM 3's tracker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scenario",
    [s if n < 3 else pytest.param(s, marks=pytest.mark.extended) for n, s in enumerate(SCENARIOS)],
    ids=lambda s: s.__name__,
)
def test_sam3(sam3: Pair, scenario: Callable[[Session, Clip], None], sam3_clip: Clip) -> None:
    check(sam3, scenario, with_clear_prompts(sam3, scenario, sam3_clip), frames=4)


def test_control_positions_of_a_whole_picture_in_cells_are_noticed(
    sam3: Pair, sam3_clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = sam3.ours.model.image_encoder.trunk
    monkeypatch.setattr(trunk.blocks[1].attn, "side", SAM3_SIZE // 14)
    theirs, ours = sam3.run(click, sam3_clip)
    assert worst(theirs.shown, ours.shown) > TOLERANCE


def test_control_masks_resized_before_they_are_probabilities_are_noticed(sam3: Pair, sam3_clip: Clip) -> None:
    theirs, ours = Pair(TransformersPredictor(sam3.theirs.model, as_official=False), sam3.ours).run(box, sam3_clip)
    assert worst(theirs.shown[:2], ours.shown[:2]) <= TOLERANCE < worst(theirs.shown, ours.shown)


# -- EdgeTAM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_edgetam(edgetam: Pair, scenario: Callable[[Session, Clip], None], square_clip: Clip) -> None:
    check(edgetam, scenario, with_clear_prompts(edgetam, scenario, square_clip), frames=4)


@pytest.mark.parametrize("grid", ["cells", "half"])
def test_control_keys_that_turn_otherwise_are_noticed(
    edgetam: Pair, square_clip: Clip, monkeypatch: pytest.MonkeyPatch, grid: str
) -> None:
    monkeypatch.setattr(edgetam.ours.model.memory_attention, "memory_grid", None if grid == "cells" else SIDE // 2)
    theirs, ours = edgetam.run(two_objects, square_clip)
    assert worst(theirs.shown[:2], ours.shown[:2]) <= TOLERANCE < worst(theirs.shown, ours.shown)


def test_control_another_pointer_of_a_mask_is_noticed(edgetam: Pair, square_clip: Clip) -> None:
    model = edgetam.theirs.model
    changed = model._single_frame_forward
    try:
        del model._single_frame_forward
        theirs, ours = edgetam.run(mask, square_clip)
    finally:
        model._single_frame_forward = changed
    assert worst(theirs.shown[:2], ours.shown[:2]) <= TOLERANCE < worst(theirs.shown, ours.shown)


def test_control_memory_in_half_precision_is_noticed(edgetam: Pair, square_clip: Clip) -> None:
    rounded = with_policy(edgetam.ours, edgetam.ours.policy, memory_dtype="bfloat16")
    theirs, ours = edgetam._replace(ours=rounded).run(click, square_clip)
    assert worst(theirs.shown, ours.shown) > TOLERANCE


def test_edgetam_as_published(tmp_path: Path) -> None:
    """The published sizes at 1024: a prompt of each kind on frame 0, one tracked frame; logits of random weights up to 12."""
    import transformers

    both = pair(transformers.EdgeTamVideoModel(edgetam_config(1024, 16)), tmp_path, "edgetam", size=1024, loudness=0.2)

    def prompts(session: Session, clip: Clip) -> None:
        session.points(0, 1, clip.centre(1))
        session.mask(0, 2, clip.mask(2))
        session.track(0, 1)

    check(both, prompts, make_clip(2, 1024, 1024), frames=4, tolerance=1e-3)
