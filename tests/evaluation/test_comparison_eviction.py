"""The best single eviction, looked up with the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from micro import micro_predictor, micro_tracker, one_thread  # noqa: F401
from test_comparison_oracle import clip  # noqa: F401

from sam2_mem.cli.compare import Options, PredictorBuilder
from sam2_mem.evaluation.comparison.eviction import (
    EvictionBank,
    EvictionChoice,
    EvictionPredictor,
    Future,
    eviction_bank,
    with_best_eviction,
)
from sam2_mem.evaluation.synthetic import SyntheticClip
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.rmem import RMem
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import segment
from sam2_mem.types import FrameContext


def tracked(predictor: SAM2VideoPredictor, clip: SyntheticClip) -> tuple[list[set[int]], torch.Tensor]:  # noqa: F811
    """Frames that object 1 holds after each frame, and the masks."""
    state = predictor.init_state(clip.source())
    held, masks = [], []
    for output in segment(predictor, state, clip.plan(), allow_empty=True):
        held.append(state.tracker.tracks[1].frames_in_memory())
        masks.append(torch.stack([torch.from_numpy(np.asarray(m)) for m in output.masks.values()]))
    return held, torch.cat(masks)


def chosen(policy: object, clip: SyntheticClip) -> tuple[list[EvictionChoice], list[set[int]]]:  # noqa: F811
    choices: list[EvictionChoice] = []
    predictor = with_best_eviction(micro_predictor(policy))
    predictor.video, predictor.on_choice = clip, choices.append
    held, _ = tracked(predictor, clip)
    return choices, held


def literal_value(choice: EvictionChoice, leaving: int, after: Bank, clip: SyntheticClip) -> float:  # noqa: F811
    """Mean J of a tracker that goes on with everything but one frame, as if each frame ahead were the next."""
    predictor, now = micro_predictor(), choice.frame.index
    source = clip.source()
    visible = [f for f in range(now + 1, len(clip)) if (nearest(clip, f) == choice.obj_id).any()]
    ahead = {now + 1, *(visible[n - 1] for n in (1, 2, 4, 8, 16, 32) if n <= len(visible))}
    new = [e for e in after.entries if e.frame == now]
    kept = [e.without_tokens() if e.frame == leaving else e for e in choice.state.entries]
    values = []
    for index in sorted(ahead):
        tracker = micro_tracker(EvictionBank(size=5), num_frames=len(clip))
        tracker.track(1).state = replace(choice.state, entries=(*kept, *new), leaves=None)
        tracker.track(1).latest = now, False
        features = replace(predictor.encode(source[index]), index=now + 1)
        mask = (tracker.step(features).masks[0] > 0).numpy()
        truth = nearest(clip, index) == choice.obj_id
        union = (mask | truth).sum()
        values.append((mask & truth).sum() / union if union else 1.0)
    return float(np.mean(values))


def nearest(clip: SyntheticClip, frame: int) -> np.ndarray:  # noqa: F811
    """The middle pixel of each cell of 4 x 4."""
    return clip.video.masks(frame)[2::4, 2::4]


@pytest.mark.full
@torch.inference_mode()
def test_values_are_those_of_a_tracker_that_goes_on(clip: SyntheticClip) -> None:  # noqa: F811
    choices, held = chosen(FIFO(num_maskmem=4), clip)
    choices = [c for c in choices if c.obj_id == 1]
    assert len(choices) == len(clip) - 4 - 1 + 1, "from the first frame on which three tracked frames are held"
    differs = 0
    for choice, after in zip(choices[::4], choices[1::4]):
        expected = {f: literal_value(choice, f, after.state, clip) for f in choice.values}
        assert choice.values == pytest.approx(expected, abs=1e-6)
        assert choice.best not in held[choice.frame.index] and len(choice.values) == 3
        assert choice.values[choice.best] == max(choice.values.values())
        differs += max(expected.values()) - min(expected.values()) > 1e-3
    assert differs, "control: which frame leaves makes a difference"


def test_of_equals_the_oldest_leaves_and_time_may_run_backwards() -> None:
    values = {3: 0.5, 4: 0.5, 5: 0.1}
    assert EvictionChoice(1, FrameContext(6), Bank(), values).best == 3
    assert EvictionChoice(1, FrameContext(2, reverse=True), Bank(), values).best == 4


@pytest.mark.full
def test_without_a_choice_it_is_fifo(clip: SyntheticClip) -> None:  # noqa: F811
    """The oldest leaves where no frame is named; control: the truth names others."""
    bank = SAM2VideoPredictor(micro_predictor().model, EvictionBank(size=2))
    fifo = tracked(micro_predictor(FIFO(num_maskmem=4)), clip)
    oracle = with_best_eviction(micro_predictor(FIFO(num_maskmem=4)))
    oracle.video = clip
    assert (tracked(bank, clip)[1] == fifo[1]).float().mean() > 0.999
    assert (tracked(oracle, clip)[1] == fifo[1]).float().mean() < 0.999


def test_frames_ahead(clip: SyntheticClip) -> None:  # noqa: F811
    future = Future(clip, lambda index: None, (16, 16))
    visible = [f for f in range(len(clip)) if future.mask(f, 1).any()]
    assert 1 < len(visible) < len(clip)
    later = [f for f in visible if f > 3]
    assert future.frames_ahead(FrameContext(3), 1) == sorted(
        {4, *(later[n - 1] for n in (1, 2, 4, 8) if n <= len(later))}
    )
    earlier = [f for f in reversed(visible) if f < 9]
    backwards = future.frames_ahead(FrameContext(9, reverse=True), 1)
    assert backwards == sorted({8, *(earlier[n - 1] for n in (1, 2, 4, 8) if n <= len(earlier))})
    assert future.frames_ahead(FrameContext(len(clip) - 1), 1) == []


def test_banks_of_policies(tmp_path) -> None:
    assert eviction_bank(FIFO(max_prompts=3)) == EvictionBank(size=5, max_prompts=3)
    assert eviction_bank(EvictionBank(size=2)) == EvictionBank(size=2)
    for policy in (RMem(), FIFO(retain_all=True), FIFO(num_maskmem=1)):
        with pytest.raises(
            ValueError, match="expected fifo, with num_maskmem 2 or more and no other change, or a policy of"
        ):
            eviction_bank(policy)
    entry = PredictorBuilder(Options(out=tmp_path)).entry("fifo:num_maskmem=4+oracle=eviction")
    assert entry.settings["oracle"] == "eviction"
    built = entry.build()
    assert isinstance(built, EvictionPredictor) and built.policy.size == 2
