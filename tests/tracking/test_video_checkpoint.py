"""A pass that is saved between two frames and gone on with in a fresh state: equal masks and equal memory, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import (
    REPRESENTATIVE,
    TOKENS,
    features_at,
    mask_prompt,
    micro_predictor,
    one_thread,  # noqa: F401 - a fixture
    pictures,
)
from policy_contract import difference, snapshot

from sam2_mem.build_sam import build_policy
from sam2_mem.config import policy_names
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.bounded import Bounded
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.sam2long import SAM2Long
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.serialization import MemoryFileError
from sam2_mem.memory.token_budget import TokenBounded
from sam2_mem.tracking.refine import HQRefiner
from sam2_mem.tracking.video_checkpoint import load_checkpoint, save_checkpoint, why_unsaved
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, PromptPlan, VideoPass
from sam2_mem.types import FrameContext

CPU = torch.device("cpu")
FRAMES, POINT = 26, 8
PLAN = PromptPlan(
    (1, 2, 3),
    {
        0: lambda _: [mask_prompt(1), mask_prompt(2, 0, 1)],
        6: lambda _: [mask_prompt(1, 6)],  # known already
        18: lambda _: [mask_prompt(3, 18, 2)],
    },
)
"""Two objects, one of them prompted again, and one that comes later."""
PICTURES = pictures(FRAMES)

Masks = dict[int, dict[int, np.ndarray]]


def cached(predictor: SAM2VideoPredictor) -> SAM2VideoPredictor:
    predictor.encode = lambda frame: features_at(frame.index)
    return predictor


@dataclass
class Run:
    """A pass in a state of its own."""

    predictor: SAM2VideoPredictor

    def __post_init__(self) -> None:
        self.state = self.predictor.init_state(PICTURES, interactive=False)
        self.frames = VideoPass(self.predictor, self.state, PLAN)

    def masks(self, shown: Iterator[FrameMasks] | None = None) -> Masks:
        return {item.frame.index: item.masks for item in shown or self.frames}

    def memory(self) -> list:
        return [leaf for track in self.state.tracker.tracks.values() for leaf in snapshot(track.state)]


def saved_passes(predictor: SAM2VideoPredictor, folder: Path, points: set[int]) -> tuple[Masks, Run]:
    """A whole pass, with a file for each of ``points``."""
    whole, masks = Run(predictor), {}
    for shown in whole.frames:
        masks[shown.frame.index] = shown.masks
        if shown.frame.index in points:
            checkpoint = whole.frames.checkpoint()
            assert checkpoint is not None
            save_checkpoint(folder / f"{shown.frame.index}.pt", checkpoint, predictor.policy, CPU, {"a": 1})
    return masks, whole


def assert_goes_on(predictor: SAM2VideoPredictor, folder: Path, points: set[int]) -> None:
    masks, whole = saved_passes(predictor, folder, points)
    assert len({mask.tobytes() for shown in masks.values() for mask in shown.values()}) > 5, "masks hardly move"
    for point in points:
        later = Run(predictor)
        checkpoint, about = load_checkpoint(folder / f"{point}.pt", predictor.policy)
        later.frames.go_on(checkpoint)
        assert about == {"a": 1}
        later_masks = later.masks()
        assert list(later_masks) == list(range(point + 1, FRAMES))
        for index, shown in later_masks.items():
            assert all((mask == masks[index][obj_id]).all() for obj_id, mask in shown.items()), (
                f"{point}: frame {index}"
            )
        assert difference(whole.memory(), later.memory()) is None, f"memory after {point}"


def tier(name: str) -> pytest.param:
    """The quick tier runs two policies, the full one all, and `make test-all` their other configs as well."""
    marks = () if name in ("fifo", "sam2long") else pytest.mark.full
    return pytest.param(name, marks=marks if name in REPRESENTATIVE else (pytest.mark.full, pytest.mark.extended))


@pytest.mark.parametrize("name", map(tier, policy_names()))
def test_every_policy_goes_on_with_equal_masks_and_memory(name: str, tmp_path: Path) -> None:
    assert_goes_on(cached(micro_predictor(name)), tmp_path, {POINT})


def test_the_first_and_the_last_frame_are_points_to_go_on_from(tmp_path: Path) -> None:
    assert_goes_on(cached(micro_predictor("fifo")), tmp_path, {0, FRAMES - 1})


@pytest.mark.full
@pytest.mark.parametrize("tracker", [{"arbiter": "recent"}, {"storage_device": "cpu", "memory_dtype": "float32"}])
def test_every_setting_of_the_tracker_goes_on(tracker: dict, tmp_path: Path) -> None:
    assert_goes_on(cached(micro_predictor("fifo", **tracker)), tmp_path, {POINT})


@pytest.mark.full
def test_a_refiner_goes_on(tmp_path: Path) -> None:
    predictor = micro_predictor("fifo")
    predictor.refiner = HQRefiner(tau_hq=-1.0, hq_min_iou=0.0, hq_ref="first")
    assert_goes_on(cached(predictor), tmp_path, {POINT})


@pytest.mark.full
@pytest.mark.parametrize("wrapper", [Bounded, TokenBounded])
def test_bounded_policies_go_on(wrapper: Callable[..., MemoryPolicy], tmp_path: Path) -> None:
    policy = wrapper(policy=build_policy("rmem"), max_bytes=4 * TOKENS * 128)
    assert_goes_on(cached(micro_predictor(policy)), tmp_path, {POINT})


def test_a_checkpoint_of_another_frame_is_noticed(tmp_path: Path) -> None:
    """The control: memory that is not the one that was left makes other masks."""
    predictor = cached(micro_predictor("fifo"))
    masks, _ = saved_passes(predictor, tmp_path, {5, POINT})
    early, _ = load_checkpoint(tmp_path / "5.pt", predictor.policy)
    late, _ = load_checkpoint(tmp_path / f"{POINT}.pt", predictor.policy)
    run = Run(predictor)
    run.frames.go_on(replace(late, tracks=early.tracks))
    assert any((mask != masks[i][obj_id]).any() for i, shown in run.masks().items() for obj_id, mask in shown.items())


# -- what cannot be saved ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd(Bank):
    """A state with something that no file can hold."""

    source: object = None


@dataclass(frozen=True, kw_only=True)
class WithOddState(FIFO):
    def new_state(self, frame: FrameContext) -> Bank:
        return Odd(source=iter(()))


def test_states_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    predictor = cached(micro_predictor(WithOddState()))
    run = Run(predictor)
    next(iter(run.frames))
    checkpoint = run.frames.checkpoint()
    assert checkpoint is not None
    with pytest.raises(ValueError, match="expected a policy whose state can be saved, got WithOddState: .*iterator"):
        save_checkpoint(tmp_path / "a.pt", checkpoint, predictor.policy, CPU, {})
    assert list(tmp_path.iterdir()) == []


def test_policies_that_never_settle_are_named_before_the_work() -> None:
    assert "max_lag=16" in why_unsaved(SAM2Long(max_lag=None))
    assert why_unsaved(build_policy("sam2long")) is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for content in ({"format": "sam2_mem.video_checkpoint", "version": 0}, [1], {"a": 1}):
        torch.save(content, path)
        with pytest.raises(MemoryFileError, match="expected a checkpoint of version 1"):
            load_checkpoint(path, FIFO())
    path.write_bytes(b"")
    with pytest.raises(MemoryFileError):
        load_checkpoint(path, FIFO())
