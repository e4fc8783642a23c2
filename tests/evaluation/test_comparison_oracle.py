"""Memory fed with the truth."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from micro import micro_predictor

from sam2_mem.cli.compare import Options, PredictorBuilder
from sam2_mem.evaluation.comparison.oracle import TruthPredictor, with_truth
from sam2_mem.evaluation.synthetic import SyntheticClip, open_synthetic
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import segment

SIDE, LENGTH = 64, 12


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    """One object is away in the middle of it."""
    clip = open_synthetic("dev-v1")["return_1"]
    return replace(clip, spec=replace(clip.spec, num_frames=LENGTH, height=SIDE, width=SIDE, seed=3))


def held(predictor: SAM2VideoPredictor, clip: SyntheticClip) -> dict[tuple[int, int], tuple[float, bool]]:
    """Area and presence of every tracked entry in memory after a pass, by object and frame."""
    state = predictor.init_state(clip.source())
    for _ in segment(predictor, state, clip.plan(), allow_empty=True):
        pass
    return {
        (track.obj_id, entry.frame): (entry.area, entry.objectness > 0)
        for track in state.tracker.tracks.values()
        for entry in track.state.all_entries()
        if not entry.is_prompt
    }


def true_values(clip: SyntheticClip, obj_id: int, frame: int) -> tuple[float, bool]:
    mask = clip.video.masks(frame) == obj_id
    return float(mask.mean()), bool(mask.any())


def test_memory_holds_the_truth(clip: SyntheticClip) -> None:
    predictor = with_truth(micro_predictor())
    predictor.video = clip
    memory = held(predictor, clip)
    assert len(memory) > 10
    for (obj_id, frame), (area, present) in memory.items():
        true_area, visible = true_values(clip, obj_id, frame)
        assert present == visible and area == pytest.approx(true_area, abs=0.01)
    assert {present for _, present in memory.values()} == {True, False}, "the clip shows presence and absence"


def test_control_without_the_oracle_memory_holds_what_was_predicted(clip: SyntheticClip) -> None:
    memory = held(micro_predictor(), clip)
    gaps = [abs(area - true_values(clip, *key)[0]) for key, (area, _) in memory.items()]
    assert max(gaps) > 0.02


def test_tokens_are_those_of_a_mask_prompt(clip: SyntheticClip) -> None:
    """The same mask as a prompt on the same frame gives the same tokens."""
    predictor = with_truth(micro_predictor())
    predictor.video = clip
    state = predictor.init_state(clip.source())
    for _ in segment(predictor, state, clip.plan(), stop=3, allow_empty=True):
        pass
    (entry,) = [e for e in state.tracker.tracks[1].state.all_entries() if e.frame == 2]
    plain = micro_predictor()
    other = plain.init_state(clip.source())
    plain.add_new_mask(other, 2, 1, clip.video.masks(2) == 1)
    next(iter(plain.propagate_in_video(other, 2, 1)))
    (prompted,) = [e for e in other.tracker.tracks[1].state.all_entries() if e.frame == 2]
    assert torch.allclose(entry.tokens.feat.float(), prompted.tokens.feat.float(), atol=2e-2)


def test_a_video_without_a_truth_for_every_frame_is_refused(clip: SyntheticClip) -> None:
    predictor = with_truth(micro_predictor())
    with pytest.raises(ValueError, match="expected a truth for each of 12 frames, got none"):
        predictor.init_state(clip.source())
    predictor.video = SimpleNamespace(frames=("00000",))
    with pytest.raises(ValueError, match="got 1 annotated frames; leave out the oracle"):
        predictor.init_state(clip.source())


def test_on_the_command_line(tmp_path) -> None:
    entry = PredictorBuilder(Options(out=tmp_path)).entry("fifo:num_maskmem=4+oracle=truth")
    plain = PredictorBuilder(Options(out=tmp_path)).entry("fifo:num_maskmem=4")
    assert entry.settings == plain.settings | {"oracle": "truth"}
    built = entry.build()
    assert isinstance(built, TruthPredictor) and not isinstance(plain.build(), TruthPredictor)
    assert built.policy == plain.build().policy
    other = PredictorBuilder(Options(out=tmp_path)).entry("fifo+oracle=luck")
    assert "expected oracle=truth or oracle=eviction at the end of a policy, got oracle=luck" in other.settings["error"]
