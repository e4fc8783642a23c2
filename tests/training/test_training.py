"""Training: losses, prompts, noise, gradients, resuming, seeds, several processes, and that it learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sam2_mem.build_sam import build_policy, build_sam2, build_training
from sam2_mem.cli import train as commands
from sam2_mem.config import compose, compose_training
from sam2_mem.memory.policies.rmem import RMem
from sam2_mem.model.occupancy import OccupancyHead
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.training import losses
from sam2_mem.training.clips import Clip, ClipSpec, augment, choose_times, collate, fit, normalise, visible_objects
from sam2_mem.training.curves import append_row, cut_rows, draw_curves, read_rows
from sam2_mem.training.initialization import Initialization, initialize_weights
from sam2_mem.training.losses import LossSettings, LossTerms, Prediction, frame_loss
from sam2_mem.training.multi_clip_tracker import MultiClipTracker, StackedFeatures
from sam2_mem.training.noise import MaskNoise, MemoryNoise, disturb
from sam2_mem.training.plan import Optimisation, Stage, TrainingPlan
from sam2_mem.training.procedural import ProceduralClips
from sam2_mem.training.prompts import PromptMix, box_prompt, click_prompt
from sam2_mem.training.rollout import Rollout, RolloutSettings, segment_loss
from sam2_mem.training.trainer import BEST, CHECKPOINT, Trainer
from sam2_mem.training.validation_sets import HeldOutLevels, SampledClips, Validation

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
TINY = (
    f"model.image_size={SIDE}",
    "model.image_encoder.trunk.embed_dim=8",
    "model.image_encoder.trunk.stages=[1,1,1,1]",
    "model.image_encoder.trunk.global_att_blocks=[2]",
    "model.image_encoder.trunk.window_spec=[8,4,4,2]",
    "model.image_encoder.neck.d_model=32",
    "model.image_encoder.neck.backbone_channel_list=[64,32,16,8]",
    "model.memory_attention.width=32",
    "model.memory_attention.memory_width=32",
    "model.memory_attention.num_layers=1",
    "model.memory_attention.feedforward=32",
    "model.memory_encoder.width=32",
    "model.memory_encoder.memory_width=32",
    "model.memory_encoder.fuser_layers=1",
    "model.pointer_time.width=32",
    "model.pointer_time.memory_width=32",
    "++model.decoder_mlp_width=32",
    "++model.decoder_iou_width=16",
)
MASKS_ONLY = PromptMix(mask=1, box=0, click=0, correct=0)
ALL_PROMPTS = PromptMix(mask=0.4, box=0.3, click=0.3, clicks=1, correct=0.7)


def tiny_model(seed: int = 0) -> SAM2:
    torch.manual_seed(seed)
    config = compose("hiera_nano", TINY)
    config.checkpoint = "random"
    return build_sam2(config, device="cpu", mode="train", apply_postprocessing=False)


class Blobs:
    """A coloured square that moves over a plain ground; with two objects, one of them leaves."""

    def __init__(self, objects: int = 1) -> None:
        self._objects = objects

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        frames = np.full((spec.num_frames, spec.size, spec.size, 3), 60, np.uint8)
        ids = np.zeros(frames.shape[:3], np.uint8)
        place = rng.integers(4, spec.size - 28, (self._objects, 2))
        for t in range(spec.num_frames):
            for number in range(self._objects):
                if number == 1 and t == spec.num_frames - 1:
                    continue
                y, x = place[number] + 2 * t
                frames[t, y : y + 20, x : x + 20] = (220, 40, 90) if number == 0 else (30, 200, 240)
                ids[t, y : y + 20, x : x + 20] = number + 1
        return Clip(frames, ids)


def plan(
    *,
    steps: int = 4,
    batch: int = 2,
    frames: int = 3,
    objects: int = 2,
    prompts: PromptMix = ALL_PROMPTS,
    **optimisation: Any,
) -> TrainingPlan:
    spec = ClipSpec(num_frames=frames, max_gap=2, size=SIDE, max_objects=objects)
    settings = RolloutSettings(
        prompts=prompts, noise=MemoryNoise(truth=0.3, disturbed=0.3), losses=LossSettings(stride=2)
    )
    stage = Stage(until=steps, clips=Blobs(objects), clip_spec=spec, batch=batch, rollout=settings)
    rates = {"warmup": 2, "rate": 3e-3} | optimisation
    return TrainingPlan(stages=[stage], optimisation=Optimisation(**rates), save_every=2, log_every=1)


def trainer(folder: Path, plan_: TrainingPlan, **kwargs) -> Trainer:
    return Trainer(tiny_model(), build_policy("fifo"), plan_, folder=folder, **kwargs)


def largest_difference(a: dict, b: dict) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


# -- losses -----------------------------------------------------------------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def literal_losses(logits: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Focal, dice and IoU of one mask, from their definitions, pixel by pixel."""
    focal = 0.0
    for z, y in zip(logits.ravel(), truth.ravel()):
        p = sigmoid(z)
        right = p if y == 1 else 1 - p
        focal += -(0.25 if y == 1 else 0.75) * (1 - right) ** 2 * np.log(right)
    p = sigmoid(logits)
    dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
    a, b = logits > 0, truth > 0
    return focal / logits.size, dice, (a & b).sum() / (a | b).sum()


def test_losses_are_their_definitions() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 8, 8))
    truth = (rng.random((8, 8)) < 0.4).astype(float)
    expected = np.array([literal_losses(m, truth) for m in logits])
    masks, real = torch.from_numpy(logits), torch.from_numpy(truth).expand(3, 8, 8)
    got = torch.stack([losses.focal_loss(masks, real), losses.dice_loss(masks, real), losses.true_iou(masks, real)], 1)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-6)


def losses_of_two(**settings) -> tuple[LossTerms, np.ndarray]:
    """Losses of one present and one absent object with three candidates, and the literal ones of the present object."""
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 2, (2, 3, 16, 16))).float()
    truth = torch.zeros(2, 16, 16)
    truth[0, 3:9, 4:12] = 1
    iou = torch.tensor([[0.2, 0.5, 0.9], [0.1, 0.1, 0.1]])
    prediction = Prediction(logits, iou, torch.tensor([1.5, 0.7]))
    literal = [literal_losses(m, truth[0].numpy()) for m in logits[0].numpy()]
    return frame_loss(prediction, truth, LossSettings(**settings)), np.array(literal)


def test_only_the_best_candidate_of_a_present_object_gets_the_mask_losses() -> None:
    terms, literal = losses_of_two()
    best = int((20 * literal[:, 0] + literal[:, 1]).argmin())
    np.testing.assert_allclose([terms.focal, terms.dice], literal[best, :2], rtol=1e-5)
    assert literal[:, 1].std() > 1e-3, "the candidates must differ for this test to tell"
    entropy = (np.log1p(np.exp(-1.5)) + np.log1p(np.exp(0.7))) / 2
    np.testing.assert_allclose(terms.objectness, entropy, rtol=1e-5)
    np.testing.assert_allclose(terms.iou, np.abs(literal[:, 2] - [0.2, 0.5, 0.9]).mean(), rtol=1e-5)
    one, _ = losses_of_two(all_iou=False)
    np.testing.assert_allclose(one.iou, abs(literal[best, 2] - [0.2, 0.5, 0.9][best]), rtol=1e-5)


def test_weights_of_losses() -> None:
    terms = LossTerms(*torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert terms.weighted(LossSettings()).item() == 20 * 1 + 2 + 3 + 4 + 5
    assert terms.weighted(LossSettings(iou=0, occupancy=0.5)).item() == 20 + 2 + 0 + 4 + 2.5
    with pytest.raises(ValueError, match="expected loss weights >= 0"):
        LossSettings(dice=-1)


# -- prompts, noise, clips --------------------------------------------------------------------------------------------


def disc(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return (x - 30) ** 2 + (y - 20) ** 2 < 100


def test_first_clicks_are_inside_and_corrections_on_errors() -> None:
    rng, truth = np.random.default_rng(0), disc()
    shown = np.roll(truth, 6, 1)
    for _ in range(30):
        x, y = click_prompt(rng, 0, truth).points[0].tolist()
        assert truth[int(y), int(x)] and (x - 30) ** 2 + (y - 20) ** 2 < 60
        fix = click_prompt(rng, 0, truth, shown)
        x, y = (int(v) for v in fix.points[0])
        assert truth[y, x] != shown[y, x] and int(fix.labels[0]) == int(truth[y, x])


def test_boxes_enclose_the_object_roughly() -> None:
    rng = np.random.default_rng(0)
    exact = box_prompt(rng, 0, disc(), 0.0).box.tolist()
    assert exact == [21.0, 11.0, 40.0, 30.0]
    moved = np.array([box_prompt(rng, 0, disc(), 0.1).box.tolist() for _ in range(50)])
    assert np.abs(moved - exact).max() <= 0.1 * 19 + 1e-4 and moved.std(0).min() > 0.3


def test_noise_changes_masks_and_keeps_gradients() -> None:
    rng = np.random.default_rng(0)
    logits = (torch.from_numpy(disc(32)[None].astype(np.float32))[0] * 16 - 8).requires_grad_()
    before = logits.detach() > 0
    changed = [disturb(rng, logits, 0.2) for _ in range(40)]
    areas = torch.tensor([float((c > 0).sum()) for c in changed])
    assert areas.min() < before.sum() < areas.max(), "some grow, some shrink"
    assert all(c.shape == logits.shape for c in changed)
    sum(c.sum() for c in changed).backward()
    assert logits.grad.abs().sum() > 0


def test_true_masks_replace_predicted_ones() -> None:
    truth = torch.zeros(1, 2, 32, 32)
    truth[0, 1, 4:12, 4:12] = 1
    wrong = torch.full((1, 8, 8), -8.0)
    replaced = MaskNoise(truth, MemoryNoise(truth=1.0), [np.random.default_rng(0)])(1, wrong, [0])
    assert torch.equal(replaced[0] > 0, truth[0, 1, ::4, ::4] > 0)
    kept = MaskNoise(truth, MemoryNoise(), [np.random.default_rng(0)])(1, wrong, [0])
    assert torch.equal(kept, wrong)


@pytest.mark.parametrize("available", [5, 9, 40])
def test_times_increase_within_the_video(available: int) -> None:
    spec = ClipSpec(num_frames=5, max_gap=4, size=32)
    for seed in range(50):
        times = choose_times(np.random.default_rng(seed), available, spec)
        gaps = np.diff(times)
        assert len(times) == 5 and times[0] >= 0 and times[-1] < available and gaps.min() >= 1 and gaps.max() <= 4
    with pytest.raises(ValueError, match="at least 5 frames"):
        choose_times(np.random.default_rng(0), 4, spec)


def test_augmenting_moves_masks_with_pictures() -> None:
    ids = np.zeros((2, 32, 32), np.uint8)
    ids[:, 3:9, 5:20] = 7
    frames = np.repeat((ids == 7)[..., None] * np.uint8(200), 3, axis=3)
    seen = set()
    for seed in range(20):
        clip = augment(np.random.default_rng(seed), Clip(frames, ids))
        bright = clip.frames[..., 1] > 100
        assert np.array_equal(bright, clip.ids == 7)
        seen.add(np.flatnonzero(clip.ids[0].any(0))[0].item())
    assert len(seen) >= 3, "flips and turns must happen"


def test_collate_keeps_objects_with_their_clips() -> None:
    spec = ClipSpec(num_frames=3, max_gap=1, size=SIDE, max_objects=2)
    rngs = [np.random.default_rng(i) for i in range(2)]
    clips = [Blobs(1).sample(rngs[0], spec), Blobs(2).sample(rngs[1], spec)]
    batch = collate(rngs, clips, spec)
    assert batch.clip_of == (0, 1, 1) and batch.images.shape == (2, 3, 3, SIDE, SIDE)
    assert torch.equal(batch.truth[0], torch.from_numpy(clips[0].ids == 1).float())
    assert visible_objects(clips[1].ids[0], 0.9) == [], "small objects can be left out"


def test_procedural_clips_come_back_from_disk(tmp_path: Path) -> None:
    source = ProceduralClips(levels={"easy": 1.0}, count=1, length=3, side=32, folder=str(tmp_path))
    fresh, stored = source.video("easy", 0), source.video("easy", 0)
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(fresh.frames, stored.frames) and np.array_equal(fresh.ids, stored.ids)
    without = ProceduralClips(levels={"easy": 1.0}, count=1, length=3, side=32).video("easy", 0)
    assert np.array_equal(without.frames, stored.frames)
    other = ProceduralClips(levels={"easy": 1.0}, count=1, length=3, side=32, seed=1).video("easy", 0)
    assert not np.array_equal(other.frames, stored.frames)
    spec = ClipSpec(num_frames=2, max_gap=1, size=48)
    assert source.sample(np.random.default_rng(0), spec).frames.shape == (2, 48, 48, 3)
    with pytest.raises(ValueError, match="shares >= 0"):
        ProceduralClips(levels={})


def test_fit_resizes_masks_without_mixing_ids() -> None:
    clip = fit(Blobs(2).sample(np.random.default_rng(0), ClipSpec(num_frames=2, max_gap=1, size=SIDE)), 32)
    assert clip.frames.shape == (2, 32, 32, 3) and set(np.unique(clip.ids)) <= {0, 1, 2}


# -- several clips at once --------------------------------------------------------------------------------------------


def test_several_clips_equal_one_tracker_per_clip() -> None:
    """Clips in one batch give what each gives alone through the tracker of inference."""
    model = tiny_model().eval()
    initialize_weights(model, Initialization(), torch.Generator().manual_seed(0))
    spec = ClipSpec(num_frames=4, max_gap=1, size=SIDE)
    rngs = [np.random.default_rng(i) for i in range(3)]
    clips = [Blobs(2).sample(rng, spec) for rng in rngs]
    batch = collate(rngs, clips, spec)
    settings = RolloutSettings(prompts=MASKS_ONLY)
    with torch.no_grad():
        predictions = Rollout(model, build_policy("fifo"), settings, batch=batch, rngs=rngs).run()
        for clip in range(3):
            mine = [i for i, c in enumerate(batch.clip_of) if c == clip]
            tracker = Tracker(model, build_policy("fifo"), settings=TrackerSettings(memory_dtype="float32"))
            for t in range(4):
                features = model.encode_image(normalise(clips[clip].frames[t])[None], [t])[0]
                prompts = [Prompt(i, mask=batch.truth[i, 0].bool()) for i in mine] if t == 0 else []
                result = tracker.step(features, prompts)
                if t == 0:
                    continue
                together = next(s for s in predictions if s.frame == t)
                for row, i in enumerate(mine):
                    place = together.obj_ids.index(i)
                    best = together.decoded.iou[place].argmax()
                    logits = together.decoded.masks[place, best]
                    if together.decoded.objectness[place] > 0:
                        torch.testing.assert_close(logits, result.masks[row], atol=1e-4, rtol=1e-4)
                    assert abs(together.decoded.objectness[place] - result.scores[row].objectness) < 1e-4
    other = next(s for s in predictions if s.frame == 3).decoded.masks
    assert (other[0] - other[2]).abs().max() > 1e-2, "objects of different clips must differ for this test to tell"


def test_every_prompt_is_answered_and_gets_a_loss() -> None:
    model = tiny_model()
    spec = ClipSpec(num_frames=4, max_gap=1, size=SIDE, max_objects=2)
    rngs = [np.random.default_rng(i) for i in range(4)]
    batch = collate(rngs, [Blobs(2).sample(rng, spec) for rng in rngs], spec)
    settings = RolloutSettings(prompts=PromptMix(mask=0, box=0.5, click=0.5, clicks=2, correct=1.0))
    predictions = Rollout(model, build_policy("fifo"), settings, batch=batch, rngs=rngs).run()
    first = {i for s in predictions if s.prompted and s.frame == 0 for i in s.obj_ids}
    later = {i for s in predictions if s.prompted and s.frame > 0 for i in s.obj_ids}
    assert first == later == set(range(8))
    tracked = [sorted(i for s in predictions if s.frame == t and not s.prompted for i in s.obj_ids) for t in (1, 2, 3)]
    assert tracked == [list(range(8))] * 3
    loss = segment_loss(predictions, batch.truth, OccupancyHead(model.width), settings.losses)
    assert loss.total.isfinite() and loss.terms.occupancy > 0
    loss.total.backward()


def truncated(length: int) -> tuple[Tensor, dict[str, Tensor], list[bool]]:
    """The loss of a step, its gradients, and for every segment whether memory read from before it has a graph."""
    model = tiny_model()
    initialize_weights(model, Initialization(), torch.Generator().manual_seed(0))
    spec = ClipSpec(num_frames=6, max_gap=1, size=SIDE)
    rngs = [np.random.default_rng(i) for i in range(2)]
    batch = collate(rngs, [Blobs(2).sample(rng, spec) for rng in rngs], spec)
    settings = RolloutSettings(prompts=MASKS_ONLY, truncate=length)
    rollout = Rollout(model, build_policy("fifo"), settings, batch=batch, rngs=rngs)
    total, graphs = torch.zeros(()), []
    for segment in rollout.segments():
        loss = segment.share * segment_loss(segment.predictions, batch.truth, None, settings.losses).total
        held = [e.tokens.feat for t in rollout._tracker.tracks.values() for e in t.state.all_entries() if e.tokens]
        graphs.append(any(h.requires_grad for h in held))
        loss.backward()
        total = total + loss.detach()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    left = [e.tokens.feat for t in rollout._tracker.tracks.values() for e in t.state.all_entries() if e.tokens]
    graphs.append(any(h.requires_grad for h in left))
    return total, gradients, graphs


def test_truncation_cuts_gradients_and_nothing_else() -> None:
    whole, gradients, graphs = truncated(0)
    same, equal, _ = truncated(6)
    halves, cut, _ = truncated(3)
    assert graphs == [True, False], "memory has a graph within a segment and none after it"
    assert largest_difference(gradients, equal) == 0.0 and whole == same
    name = (
        "memory_encoder.out_proj.weight"
        if "memory_encoder.out_proj.weight" in gradients
        else next(n for n in gradients if n.startswith("memory_encoder"))
    )
    assert (cut[name] - gradients[name]).abs().max() > 1e-3 * gradients[name].abs().max(), "the cut must show"
    assert halves == pytest.approx(float(whole), rel=0.2)
    with pytest.raises(ValueError, match="truncate of 0"):
        RolloutSettings(truncate=1)


def test_truncation_does_not_change_predictions() -> None:
    model = tiny_model().eval()
    spec = ClipSpec(num_frames=5, max_gap=1, size=SIDE)
    runs = []
    for length in (0, 2):
        rngs = [np.random.default_rng(i) for i in range(2)]
        batch = collate(rngs, [Blobs(2).sample(rng, spec) for rng in rngs], spec)
        settings = RolloutSettings(prompts=ALL_PROMPTS, truncate=length)
        with torch.no_grad():
            runs.append(Rollout(model, build_policy("fifo"), settings, batch=batch, rngs=rngs).run())
    assert [(s.frame, s.obj_ids) for s in runs[0]] == [(s.frame, s.obj_ids) for s in runs[1]] and len(runs[0]) > 4
    for a, b in zip(*runs):
        torch.testing.assert_close(a.decoded.masks, b.decoded.masks, atol=1e-4, rtol=1e-4)


def test_prompts_aside_get_a_loss_and_change_nothing_else() -> None:
    """A click or a box beside a true mask is answered as the tracker answers it, and tracking goes on as without."""
    model = tiny_model().eval()
    spec = ClipSpec(num_frames=3, max_gap=1, size=SIDE)
    found = []
    for aside in (0.0, 1.0):
        rngs = [np.random.default_rng(i) for i in range(3)]
        batch = collate(rngs, [Blobs(2).sample(rng, spec) for rng in rngs], spec)
        settings = RolloutSettings(prompts=PromptMix(mask=1, box=0, click=0, correct=0, aside=aside))
        with torch.no_grad():
            found.append(Rollout(model, build_policy("fifo"), settings, batch=batch, rngs=rngs).run())
    without, asked = found[0], [s for s in found[1] if s.prompted]
    assert not any(s.prompted for s in without)
    assert sorted(i for s in asked for i in s.obj_ids) == list(range(6)) and len(asked) == 2
    for a, b in zip(without, (s for s in found[1] if not s.prompted), strict=True):
        assert torch.equal(a.decoded.masks, b.decoded.masks)
    assert segment_loss(asked, batch.truth, None, settings.losses).total > 0
    rng = np.random.default_rng(0)
    prompts = [click_prompt(rng, i, batch.truth[i, 0].numpy() > 0) for i in (1, 4)]
    tracker = MultiClipTracker(model, build_policy("fifo"), clip_of=batch.clip_of)
    with torch.no_grad():
        features = model.encode_image(batch.images[:, 0], range(3))
        tracker.answer(StackedFeatures.of(features, 0), prompts)
        alone = Tracker(model, build_policy("fifo"))
        for row, prompt in enumerate(prompts):
            shown = alone.preview(features[batch.clip_of[prompt.obj_id]], prompt)
            decoded = tracker.predictions[0].decoded
            best = decoded.masks[row, decoded.iou[row].argmax()]
            assert abs(float(decoded.objectness[row]) - shown.objectness) < 1e-4
            if shown.objectness > 0:
                torch.testing.assert_close(best, shown.logits, atol=1e-4, rtol=1e-4)


# -- the loop ---------------------------------------------------------------------------------------------------------


def test_gradient_reaches_every_trainable_parameter(tmp_path: Path) -> None:
    training = trainer(tmp_path, plan(batch=4, frames=4))
    reached: set[str] = set()
    score = training.model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    for step in range(4):
        with torch.no_grad():
            score.bias.fill_(2.0 if step < 3 else -2.0)  # present, then absent
        training.advance()
        named = [*training.model.named_parameters(), *training.head.named_parameters()]
        reached |= {n for n, p in named if p.grad is not None and p.grad.abs().sum() > 0}
    missing = {n for n, p in training.model.named_parameters() if p.requires_grad} - reached
    assert missing <= {"no_mem_pos_enc"}, sorted(missing)  # unused in SAM 2 as well
    assert len(reached) > 200


def test_rates_freeze_and_slow_modules(tmp_path: Path) -> None:
    frozen = trainer(tmp_path, plan(rates={"image_encoder": 0.0, "image_encoder.neck": 0.5, "memory": 0.1}))
    before = {k: v.clone() for k, v in frozen.model.state_dict().items()}
    frozen.advance()
    after = frozen.model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert not any(k.startswith("image_encoder.trunk") for k in moved)
    assert any(k.startswith("image_encoder.neck") for k in moved)
    assert {g["factor"] for g in frozen.optimizer.param_groups} == {1.0, 0.5, 0.1}


def test_schedule() -> None:
    settings = Optimisation(rate=1.0, final=0.1, warmup=10)
    assert settings.rate_at(0, 110) == pytest.approx(0.1) and settings.rate_at(10, 110) == pytest.approx(1.0)
    assert settings.rate_at(60, 110) == pytest.approx(0.55) and settings.rate_at(110, 110) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="increasing ends"):
        TrainingPlan(stages=[])


@pytest.mark.full
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", plan(steps=4))
    whole.run()
    first = trainer(tmp_path / "parts", plan(steps=4))
    first.run(until=2)
    torch.manual_seed(123)
    second = trainer(tmp_path / "parts", plan(steps=4))
    assert second.resume() and second.step == 2
    halfway = {k: v.clone() for k, v in second.model.state_dict().items()}
    second.run()
    for name in ("model", "ema"):
        mine, theirs = (torch.load(t.folder / CHECKPOINT, weights_only=True)[name] for t in (second, whole))
        assert largest_difference(mine, theirs) == 0.0
    assert largest_difference(halfway, second.model.state_dict()) > 1e-5, "steps must change the weights"
    assert read_rows(tmp_path / "parts" / "curves.csv")["step"].tolist() == [1, 2, 3, 4]


def test_seeds_reproduce(tmp_path: Path) -> None:
    ends = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        one = plan(steps=2)
        one = TrainingPlan(stages=one.stages, optimisation=one.optimisation, seed=seed)
        training = trainer(tmp_path / name, one)
        training.run()
        ends.append({k: v.clone() for k, v in training.model.state_dict().items()})
    assert largest_difference(ends[0], ends[1]) == 0.0
    assert largest_difference(ends[0], ends[2]) > 1e-5


WORKER = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
import test_training as t
from sam2_mem.training.parallel import join_team
team = join_team(torch.device("cpu"))
one = t.plan(steps=2, batch=1, objects=1, prompts=t.MASKS_ONLY)
training = t.trainer(Path({out!r}), one, team=team)
training.run()
"""


@pytest.mark.full
def test_two_processes_equal_one_with_twice_the_clips(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two")))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    both = torch.load(tmp_path / "two" / CHECKPOINT, weights_only=True)["model"]
    alone = trainer(tmp_path / "one", plan(steps=2, batch=2, objects=1, prompts=MASKS_ONLY))
    alone.run()
    single = trainer(tmp_path / "half", plan(steps=2, batch=1, objects=1, prompts=MASKS_ONLY))
    single.run()
    assert largest_difference(both, alone.model.state_dict()) < 2e-4
    assert largest_difference(both, single.model.state_dict()) > 1e-3, "the test must tell"


def checked(every: int) -> TrainingPlan:
    one = plan(steps=4)
    spec = ClipSpec(num_frames=3, max_gap=1, size=SIDE)
    sets = {
        "blobs": SampledClips(source=Blobs(2), clip_spec=spec, count=2),
        "still": HeldOutLevels(levels=["easy"], count=1, num_frames=3, size=SIDE, still=True),
    }
    checks = Validation(every=every, sets=sets)
    return TrainingPlan(stages=one.stages, optimisation=one.optimisation, save_every=2, log_every=1, validation=checks)


@pytest.mark.full
def test_validation_is_logged_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    training = trainer(tmp_path / "a", checked(2))
    training.run()
    table = read_rows(tmp_path / "a" / "validation.csv")
    assert table["step"].tolist() == [2, 4] and list(table) == ["step", "blobs", "still", "mean"]
    np.testing.assert_allclose(table["mean"], (table["blobs"] + table["still"]) / 2, atol=1e-5)
    best = torch.load(tmp_path / "a" / BEST, weights_only=True)
    assert best["step"] == table["step"][table["mean"].argmax()]
    assert commands.export(checkpoint=tmp_path / "a" / BEST, weights=tmp_path / "w.safetensors") == 0
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    scores = training.plan.validation.scores(training.model.eval(), training.policy)
    assert set(scores) == {"blobs", "still"} and largest_difference(before, training.model.state_dict()) == 0.0


@pytest.mark.full
def test_validation_changes_nothing_in_the_training(tmp_path: Path) -> None:
    ends = []
    for name, every in (("with", 1), ("without", 0)):
        training = trainer(tmp_path / name, checked(every))
        training.run()
        ends.append({k: v.clone() for k, v in training.model.state_dict().items()})
        assert training.model.training and (tmp_path / name / BEST).is_file() == bool(every)
    assert largest_difference(*ends) == 0.0
    with pytest.raises(ValueError, match="at least one set"):
        Validation(every=5)


@pytest.mark.full
def test_a_worse_score_does_not_replace_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([{"a": 0.2}, {"a": 0.6}, {"a": 0.4}])
    monkeypatch.setattr(Validation, "scores", lambda *_: next(scores))
    training = trainer(tmp_path, checked(1))
    training.run(until=3)
    assert torch.load(tmp_path / BEST, weights_only=True)["step"] == 2


@pytest.mark.full
def test_it_learns_one_clip(tmp_path: Path) -> None:
    class Same(Blobs):
        def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
            return super().sample(np.random.default_rng(5), spec)

    spec = ClipSpec(num_frames=3, max_gap=1, size=SIDE)
    rollout = RolloutSettings(prompts=MASKS_ONLY, losses=LossSettings(stride=2))
    stage = Stage(until=80, clips=Same(), clip_spec=spec, batch=1, rollout=rollout)
    one = TrainingPlan(stages=[stage], optimisation=Optimisation(rate=2e-3, warmup=20, final=0.2))
    training = trainer(tmp_path, one)
    first = training.advance().terms
    training.run()
    rngs = [np.random.default_rng(0)]
    losses = training._backward(stage, collate(rngs, [Same().sample(rngs[0], spec)], spec), rngs)
    last = losses.kind(*losses.values[:-1].tolist())
    assert first.dice > 0.6 and last.dice < 0.3, (first, last)


# -- files and commands -----------------------------------------------------------------------------------------------


def test_curves_are_written_cut_and_drawn(tmp_path: Path) -> None:
    table, picture = tmp_path / "c.csv", tmp_path / "c.png"
    for step in range(1, 6):
        append_row(table, {"step": step, "loss": 1.0 / step, "dice": 0.5})
    cut_rows(table, 4)
    assert read_rows(table)["step"].tolist() == [1, 2, 3]
    draw_curves(table, picture)
    assert picture.stat().st_size > 1000
    with pytest.raises(ValueError, match="expected the columns"):
        append_row(table, {"step": 1, "other": 2})


def test_the_command_trains_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM2_MEM_CLIPS", str(tmp_path / "clips"))
    overrides = [
        f"model_overrides=[{','.join(repr(o) for o in TINY)}]",
        "plan.stages.0.clip_spec.size=64",
        "plan.stages.0.batch=1",
        "sources.easy.count=2",
        "+sources.easy.length=4",
        "+sources.easy.side=64",
        "plan.log_every=1",
    ]
    assert commands.run(config="hiera_nano", out=tmp_path / "run", device="cpu", until=2, overrides=overrides) == 0
    assert commands.export(checkpoint=tmp_path / "run" / CHECKPOINT, weights=tmp_path / "w.safetensors") == 0
    weights = load_file(tmp_path / "w.safetensors")
    assert set(weights) == set(tiny_model().state_dict()) and all(v.dtype == torch.float16 for v in weights.values())
    config = compose("hiera_nano", TINY)
    build_sam2(config, tmp_path / "w.safetensors", device="cpu")
    assert (tmp_path / "run" / "config.yaml").is_file() and (tmp_path / "run" / "curves.png").is_file()


def test_it_starts_from_given_weights(tmp_path: Path) -> None:
    """A file of the official kind is loaded as it is: the start for random weights leaves it alone."""
    official = tiny_model(seed=9)
    torch.save({"model": official.state_dict()}, tmp_path / "official.pt")
    config = compose_training("hiera_nano", [f"model_overrides=[{','.join(repr(o) for o in TINY)}]"])
    for init, same in ((tmp_path / "official.pt", True), (None, False)):
        job = build_training(config, init=init)
        training = Trainer(job.model, job.policy, job.plan, folder=tmp_path / str(same), fresh=job.fresh)
        difference = largest_difference(training.model.state_dict(), official.state_dict())
        assert (difference == 0.0) == same, (init, difference)


def test_the_tool_takes_overrides_of_the_config_only_where_they_mean_something(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.main(["export", "a.pt", "b.safetensors", "plan.seed=1"])
    assert ended.value.code == 2 and "unrecognized arguments: plan.seed=1" in capsys.readouterr().err


@pytest.mark.parametrize("config", ["hiera_nano", "distil_nano"])
def test_any_policy_can_be_chosen_in_a_training_config(config: str) -> None:
    composed = compose_training(config, ["memory_policy=rmem", "memory_policy.bank_size=5"])
    chosen, own = build_policy(composed.memory_policy), build_policy(compose_training(config).memory_policy)
    assert isinstance(chosen, RMem) and chosen.bank_size == 5 and not isinstance(own, RMem)


def test_unknown_training_configs_name_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match="name out of distil_nano, distil_perceiver, distil_videos, finetune, hiera_nano, memory_parts, nano_v2",
    ):
        compose_training("nono")
    with pytest.raises(ValueError, match="could not compose|exist"):
        compose_training("hiera_nano", ["plan.speed=3"])
