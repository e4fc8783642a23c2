"""Joint rollouts: equal to the rollout through a tracker, prompts drawn for many objects, the pool of clips, the start
as label propagation, runs with limited seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sam2_mem.build_sam import build_policy, build_sam2, build_training
from sam2_mem.config import compose, compose_training
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.training.away import AwayClips
from sam2_mem.training.clip_pool import ClipPool, PoolSettings, SampledFeed
from sam2_mem.training.clips import Clip, ClipBatch, ClipSpec, collate
from sam2_mem.training.drawn_prompts import (
    HINT_LIMIT,
    DrawnPrompts,
    boxes,
    draw_points,
    draw_visible_frames,
    error_points,
    first_points,
    inner_weight,
    prompt_losses,
)
from sam2_mem.training.joint_rollout import (
    FrameMemory,
    JointMemory,
    JointRollout,
    _corrected,
    disturb_rows,
    encode_clips,
    joint_loss,
    track,
)
from sam2_mem.training.losses import LossSettings, LossTerms
from sam2_mem.training.multi_clip_tracker import ObjectPrediction
from sam2_mem.training.noise import MemoryNoise
from sam2_mem.training.plan import Optimisation, Stage, TrainingPlan
from sam2_mem.training.prompts import PromptMix
from sam2_mem.training.propagation_start import PropagationStart, fit_occupancy, start_as_propagation
from sam2_mem.training.rollout import Rollout, RolloutSettings
from sam2_mem.training.trainer import CHECKPOINT, WEIGHTS, StepLosses, Trainer

SIDE = 64
SPEC = ClipSpec(num_frames=4, max_gap=1, size=SIDE)
QUARTERED = LossSettings(stride=4)


class Squares:
    """One or two coloured squares that drift over noise; the second is away on the third frame."""

    def __init__(self, objects: int = 2) -> None:
        self._objects = objects

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        size = spec.size
        frames = np.repeat(rng.integers(0, 90, (1, size, size, 3)).astype(np.uint8), spec.num_frames, 0)
        ids = np.zeros(frames.shape[:3], np.uint8)
        for number in range(1, 1 + self._objects):
            corner, step = rng.integers(2, size // 2, 2), rng.integers(-2, 3, 2)
            side, colour = int(rng.integers(size // 5, size // 3)), rng.integers(120, 256, 3)
            for t in range(spec.num_frames):
                if number == 2 and t == 2:
                    continue
                y, x = np.clip(corner + t * step, 0, size - side)
                frames[t, y : y + side, x : x + side], ids[t, y : y + side, x : x + side] = colour, number
        return Clip(frames, ids)


def network(side: int = SIDE, mode: str = "train") -> SAM2:
    torch.manual_seed(0)
    return build_sam2(
        compose("nano_v2", [f"model.image_size={side}"]), "random", "cpu", mode, apply_postprocessing=False
    )


def batch(clips: int = 2, frames: int = 4, objects: int = 2) -> ClipBatch:
    spec = ClipSpec(num_frames=frames, max_gap=1, size=SIDE)
    rngs = [np.random.default_rng(k) for k in range(clips)]
    return collate(rngs, [Squares(objects).sample(r, spec) for r in rngs], spec)


# -- equal to the rollout through a tracker ---------------------------------------------------------------------------


def masks_of_both(model: SAM2, clips: ClipBatch, settings: JointRollout) -> tuple[list[Tensor], list[Tensor]]:
    mix = PromptMix(mask=1, box=0, click=0, correct=0)
    rngs = [np.random.default_rng(k) for k in range(len(clips.images))]
    with torch.no_grad():
        rollout = Rollout(model, FIFO(), RolloutSettings(prompts=mix), batch=clips, rngs=rngs).run()
        frames = encode_clips(model, clips.images)
        predictions = track(model, frames, clips.truth, clips.clip_of, settings, np.random.default_rng(0))
    return [p.decoded.masks for p in rollout], [p.decoded.masks for p in predictions]


def lively_network() -> SAM2:
    """Objects come and go, and memory matters."""
    model = network()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "cross_attn_image.out_proj" in name or "maskmem_tpos_enc" in name or "no_obj" in name:
                value.mul_(20)
        last = model.sam_mask_decoder.pred_obj_score_head.layers[-1]
        last.weight.mul_(200)
        clips = batch(frames=7)
        frames = encode_clips(model, clips.images)
        scores = [
            p.decoded.objectness
            for p in track(model, frames, clips.truth, clips.clip_of, JointRollout(), np.random.default_rng(0))
        ]
        last.bias.sub_(middle_of_widest_gap(torch.cat(scores)))
    return model


def middle_of_widest_gap(values: Tensor) -> Tensor:
    """A threshold that divides ``values`` about in half and is far from any, so that rounding does not decide."""
    ordered = values.flatten().sort().values
    middle = ordered[len(ordered) // 4 : -(len(ordered) // 4)]
    gap = int(middle.diff().argmax())
    return middle[gap : gap + 2].mean()


def test_it_equals_the_rollout_through_a_tracker() -> None:
    clips = batch(frames=9)
    reference, masks = masks_of_both(lively_network(), clips, JointRollout())
    assert len(masks) == 8 and masks[0].shape == (4, 3, 16, 16)
    for a, b in zip(reference, masks, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    assert (masks[0] - masks[-1]).abs().max() > 1e-2


@pytest.mark.parametrize("change", ["slots", "pointers", "gate"])
def test_a_departure_from_the_rollout_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if change == "slots":
        monkeypatch.setattr("sam2_mem.training.joint_rollout.PROMPT_SLOT", 0)
    elif change == "pointers":
        monkeypatch.setattr("sam2_mem.training.joint_rollout.MAX_POINTERS", 3)
    else:
        monkeypatch.setattr("sam2_mem.training.joint_rollout.ABSENT_LOGIT", 8.0)
    reference, masks = masks_of_both(lively_network(), batch(frames=7), JointRollout())
    assert max(float((a - b).abs().max()) for a, b in zip(reference, masks, strict=True)) > 5e-4


def test_selective_memory_leaves_out_frames_without_the_object() -> None:
    """As if those frames had never been written, with ranks as slots; other objects read all frames."""
    model = network()
    torch.manual_seed(3)
    frames = [(torch.randn(2, 16, 96), torch.randn(2, 96)) for _ in range(4)]
    visible = torch.tensor([[True, True], [False, True], [True, False], [True, True]])

    def memory(selective: Tensor | None, numbers: range | list[int]) -> JointMemory:
        kept = [FrameMemory(*frames[k], visible[k]) for k in numbers]
        return JointMemory(model, (4, 4), selective, kept)

    with torch.no_grad():
        rows = memory(torch.tensor([True, False]), range(4)).read()
        short, full = memory(None, [0, 2, 3]).read(), memory(None, range(4)).read()
        image, position = torch.randn(2, 16, 96), torch.zeros(16, 96)
        read = [model.memory_attention(image, position, (4, 4), r).features for r in (rows, short, full)]
    # maps agree; the pointers of the shorter memory differ in age, so they are compared by the keys alone
    spatial = rows.bias[0, : 4 * 16].isfinite()
    assert torch.allclose((rows.feat + rows.pos)[0, : 4 * 16][spatial], (short.feat + short.pos)[0, : 3 * 16])
    assert rows.bias[0].isfinite().sum() == 3 * 16 + 3 and rows.bias[1].isfinite().all()
    torch.testing.assert_close(read[0][1], read[2][1], atol=1e-5, rtol=1e-5)
    assert (read[0][0] - read[2][0]).abs().max() > 1e-4


def test_a_step_gives_gradients_to_all_that_is_trained() -> None:
    model, clips = network(), batch()
    settings = JointRollout(
        noise=MemoryNoise(truth=0.3, disturbed=0.5), losses=QUARTERED, visible_only=0.5, correct=1.0
    )
    torch.manual_seed(0)
    loss = joint_loss(
        model,
        clips,
        settings,
        DrawnPrompts(losses=QUARTERED, box=0.0),
        head=model.occupancy_head,
        rng=np.random.default_rng(2),
    )
    loss.total.backward()
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {n.split(".")[0] for n, _ in model.named_parameters()}
    assert parts - trained <= {
        "no_mem_pos_enc",
        "no_obj_embed_spatial",
        "no_obj_ptr",
    }  # as nothing is absent, and unused
    assert all(torch.isfinite(term) for term in loss.terms) and loss.terms.prompts > 0


def gradients(model: SAM2, settings: JointRollout) -> set[str]:
    """Names of the parts that a rollout's losses reach, prompts on single frames left out."""
    model.zero_grad(set_to_none=True)
    rng, prompts = np.random.default_rng(0), DrawnPrompts(weight=0.0)
    joint_loss(model, batch(), settings, prompts, head=model.occupancy_head, rng=rng).total.backward()
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_truncated_memory_is_data() -> None:
    """Same masks; gradients reach what reads and decodes, not what wrote, nor the features of the image."""
    model, whole, truncated = (
        lively_network(),
        JointRollout(losses=QUARTERED),
        JointRollout(losses=QUARTERED, truncated=True),
    )
    masks = [masks_of_both(model, batch(), settings)[1] for settings in (whole, truncated)]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
    wrote = {"image_encoder", "memory_encoder"}
    assert wrote <= gradients(model, whole), "control"
    reached = gradients(model, truncated)
    assert not wrote & reached and {"memory_attention", "sam_mask_decoder", "maskmem_tpos_enc"} <= reached


def test_frames_without_any_object_need_no_losses() -> None:
    """As many as are asked for get some; masks of the others are what they are with all."""
    clips = batch(frames=6)
    truth = clips.truth.clone()
    truth[:, 2:5] = 0
    clips = replace(clips, truth=truth)
    model, settings = lively_network(), JointRollout(absent_frames=1)
    graded = settings.graded_frames(truth, np.random.default_rng(0))
    assert {1, 5} < graded and len(graded) == 3 and JointRollout().graded_frames(truth, None) == {1, 2, 3, 4, 5}
    with torch.no_grad():
        frames = encode_clips(model, clips.images)
        some, all_ = (
            track(model, frames, truth, clips.clip_of, s, np.random.default_rng(0)) for s in (settings, JointRollout())
        )
    expected = {p.frame: p.decoded.masks for p in all_}
    assert {p.frame for p in some} == graded and len(expected) == 5
    assert all(torch.equal(p.decoded.masks, expected[p.frame]) for p in some)


def test_the_prompt_may_be_older_than_the_clip_says() -> None:
    model = network()
    torch.manual_seed(0)
    frames = [FrameMemory(torch.randn(1, 16, 96), torch.randn(1, 96), torch.tensor([True])) for _ in range(3)]
    with torch.no_grad():
        young, old = (JointMemory(model, (4, 4), None, frames, prompt_age=age).read() for age in (0, 200))
    differs = (young.pos != old.pos).any(-1)[0]
    assert torch.equal(young.feat, old.feat) and differs.nonzero().flatten().tolist() == [3 * 16]
    ages = {JointRollout(prompt_age=200).draw_age(np.random.default_rng(k)) for k in range(300)}
    assert min(ages) == 0 and 150 < max(ages) <= 200 and JointRollout().draw_age(np.random.default_rng(0)) == 0
    for wrong in ({"prompt_age": -1}, {"absent_frames": 0}):
        with pytest.raises(ValueError, match="prompt_age >= 0 and absent_frames >= 1"):
            JointRollout(**wrong)


def test_disturbed_masks() -> None:
    torch.manual_seed(0)
    logits = torch.full((64, 16, 16), -4.0)
    logits[:, 4:12, 5:11] = 4.0
    truth = torch.zeros(64, SIDE, SIDE)
    truth[:, :32] = 1
    rng = np.random.default_rng(0)
    same = disturb_rows(logits, truth, MemoryNoise(), rng)
    assert same is logits
    real = disturb_rows(logits, truth, MemoryNoise(truth=1.0), rng)
    assert (real[:, :8] == 8).all() and (real[:, 8:] == -8).all()
    areas = (disturb_rows(logits, truth, MemoryNoise(disturbed=1.0, reach=0.1), rng) > 0).flatten(1).sum(1)
    assert (areas > 48).any() and (areas < 48).any() and (areas > 0).all()
    some = disturb_rows(logits, truth, MemoryNoise(disturbed=0.5, reach=0.1), rng)
    assert 10 < int((some != logits).flatten(1).any(1).sum()) < 54


def test_masks_joined_with_something_beside_them_and_moved_far() -> None:
    logits = torch.full((64, 32, 32), -4.0)
    logits[:, 12:20, 13:19] = 4.0
    truth, rng = torch.zeros(64, SIDE, SIDE), np.random.default_rng(3)

    def disturbed(kind: int) -> Tensor:
        with patch("torch.randint", lambda high, shape, device: torch.full(shape, kind)):
            return disturb_rows(logits, truth, MemoryNoise(disturbed=1.0, reach=0.03), rng) > 0

    joined = disturbed(6)
    assert joined[:, 12:20, 13:19].all() and (joined.flatten(1).sum(1) > 48).any()
    moved = [disturbed(7) for _ in range(8)]
    assert all((far == far[0]).all() and far[0].sum() == 48 for far in moved), "the whole mask, somewhere else"
    assert min((far[0] & (logits[0] > 0)).sum() for far in moved) < 8 < 35, (
        "a disturbance of its reach leaves 35 and more"
    )


def test_an_object_that_was_not_seen_is_corrected_from_an_empty_mask() -> None:
    """As in tracking, where the mask of an absent object is gone when a user clicks."""
    hints: list[Tensor] = []
    decoded = Decoded(
        masks=torch.full((2, 1, 16, 16), 3.0),
        iou=torch.ones(2, 1),
        pointers=torch.zeros(2, 1, 8),
        objectness=torch.tensor([5.0, -5.0]),
    )
    model = SimpleNamespace(
        decode=lambda *_, mask_logits, **__: hints.append(mask_logits) or decoded,
        candidates=SimpleNamespace(allows=lambda *_, **__: None),
    )
    prediction = ObjectPrediction(1, (0, 1), decoded, None, False)
    rng = np.random.default_rng(0)
    with patch("sam2_mem.training.joint_rollout.OVERLOOKED", 0.0):
        assert _corrected(model, None, prediction, objects(), rng).prompted
    assert (hints[0][0] == 3).all() and (hints[0][1] == -HINT_LIMIT).all()
    with patch("sam2_mem.training.joint_rollout.OVERLOOKED", 1.0):
        _corrected(model, None, prediction, objects(), rng)
    assert (hints[1] == -HINT_LIMIT).all(), "and from one as if it had not been seen"


def test_some_corrections_are_boxes() -> None:
    prompts: list[tuple[Tensor, Tensor]] = []
    decoded = Decoded(
        masks=torch.full((2, 1, 16, 16), -3.0),
        iou=torch.ones(2, 1),
        pointers=torch.zeros(2, 1, 8),
        objectness=torch.ones(2),
    )
    model = SimpleNamespace(
        decode=lambda *_, points, labels, **__: prompts.append((points, labels)) or decoded,
        candidates=SimpleNamespace(allows=lambda *_, **__: None),
    )
    truth = objects()[:2].clone()
    truth[1] = 0  # not there: no box
    prediction = ObjectPrediction(1, (0, 1), decoded, None, False)
    for share in (0.0, 1.0):
        with patch("sam2_mem.training.joint_rollout.CORRECTING_BOXES", share):
            _corrected(model, None, prediction, truth, np.random.default_rng(0))
    (_, click), (corners, labels) = prompts
    assert click.shape == (2, 1) and labels.tolist() == [[2, 3], [0, -1]]
    exact = boxes(truth, 0.0)[0][0]
    side = (exact[1] - exact[0]).max()
    assert (corners[0] - exact).abs().max() <= 0.08 * side + 1e-4


# -- drawn prompts ----------------------------------------------------------------------------------------------------


def objects() -> Tensor:
    """A large square and a thin bar, (2, S, S)."""
    truth = torch.zeros(2, SIDE, SIDE)
    truth[0, 8:40, 16:56] = 1
    truth[1, 4:60, 20:28] = 1
    return truth


def test_points_are_drawn_in_proportion_to_their_weight() -> None:
    torch.manual_seed(0)
    weight = torch.zeros(4000, 4, 4)
    weight[:, 1, 2], weight[:, 3, 0] = 3.0, 1.0
    points = draw_points(weight)[:, 0]
    first, second = (points == torch.tensor([2.0, 1.0])).all(1), (points == torch.tensor([0.0, 3.0])).all(1)
    assert (first | second).all() and 0.7 < first.float().mean() < 0.8


def test_first_clicks_lie_well_inside() -> None:
    torch.manual_seed(0)
    truth = objects().repeat(200, 1, 1)
    points, labels = first_points(truth)
    assert (labels == 1).all()
    x, y = points[:, 0].long().unbind(1)
    assert (truth[torch.arange(len(truth)), y, x] == 1).all()
    off_centre = (points[::2, 0] - torch.tensor([36.0, 24.0])).abs().mean(0) / torch.tensor([40.0, 32.0])
    assert (off_centre < 0.22).all()  # .25 if they were even
    even = draw_points(objects()[:1, ::4, ::4].repeat(400, 1, 1))[:, 0] * 4 + 2
    assert ((even - torch.tensor([36.0, 24.0])).abs().mean(0) / torch.tensor([40.0, 32.0]) > 0.22).all()


def test_corrections_lie_in_the_error() -> None:
    torch.manual_seed(0)
    truth = objects()[:1].repeat(100, 1, 1)
    logits = torch.full((100, 16, 16), -5.0)
    logits[:, 2:10, 4:8] = 5.0  # half of the object is missed
    logits[50:, :2] = 5.0  # and in these rows a border is added
    points, labels = error_points(logits, truth)
    x, y = (points[:, 0] / 4).long().unbind(1)
    predicted, real = logits[torch.arange(100), y, x] > 0, truth[torch.arange(100), y * 4, x * 4] > 0
    assert (predicted != real).all() and torch.equal(labels[:, 0] == 1, real)
    assert (labels[:50] == 1).all() and 0 < labels[50:].float().mean() < 1
    perfect = torch.where(truth[:, ::4, ::4] > 0, 5.0, -5.0)
    points, labels = error_points(perfect, truth)
    assert (labels == 1).all()


def test_boxes() -> None:
    points, labels = boxes(objects(), 0.0)
    assert points.tolist() == [[[16, 8], [56, 40]], [[20, 4], [28, 60]]] and labels.tolist() == [[2, 3]] * 2
    torch.manual_seed(0)
    moved = boxes(objects(), 0.1)[0]
    assert not torch.equal(moved, points) and ((moved - points).abs() <= 0.1 * 56 + 1e-4).all()


def test_frames_on_which_objects_are_visible() -> None:
    torch.manual_seed(0)
    truth = torch.zeros(300, 4, 8, 8)
    truth[:, 1, 2:4] = 1
    truth[:100, 3, 2:4] = 1
    truth[200:] = 0
    times = draw_visible_frames(truth, 0.01)
    assert (
        set(times[:100].tolist()) == {1, 3} and set(times[100:200].tolist()) == {1} and set(times[200:].tolist()) == {0}
    )


def test_weights_fall_towards_the_border() -> None:
    region = torch.zeros(1, 32, 32)
    region[0, 4:28, 4:28] = 1
    weight = inner_weight(region)[0]
    assert weight[16, 16] > weight[8, 16] > weight[4, 16] > 0 == weight[3, 16]


def test_answers_to_prompts_have_losses() -> None:
    model, clips = network(), batch()
    torch.manual_seed(0)
    frames = encode_clips(model, clips.images)
    rows = frames[0].rows(clips.clip_of)
    terms, iou = prompt_losses(model, rows, clips.truth[:, 0], DrawnPrompts(losses=QUARTERED), np.random.default_rng(1))
    assert iou.shape == (4,) and 0 <= iou.min() <= iou.max() <= 1
    assert terms.focal > 0 and 0 < terms.dice <= 1
    with pytest.raises(ValueError, match="rounds >= 1"):
        DrawnPrompts(rounds=0)
    with pytest.raises(ValueError, match="beside a JointRollout"):
        Stage(until=1, clips=Squares(), clip_spec=SPEC, prompts=DrawnPrompts())


# -- the pool ---------------------------------------------------------------------------------------------------------


def pool_settings(**values: Any) -> PoolSettings:
    spec = ClipSpec(num_frames=6, max_gap=1, size=SIDE)
    return PoolSettings(
        **({"source": Squares(), "clip_spec": spec, "capacity": 5, "initial": 3, "refresh": 1} | values)
    )


def filled_pool(**values: Any) -> ClipPool:
    settings = pool_settings(**values)
    pool = ClipPool(settings, torch.device("cpu"), SampledFeed(settings.source, settings.clip_spec, seed=4))
    pool.fill()
    return pool


def test_the_pool_replaces_its_oldest_clips() -> None:
    pool = filled_pool()
    assert pool.size == 3
    first = pool._frames[0].clone()
    for _ in range(2):
        pool.refresh()
    assert pool.size == 5 and torch.equal(pool._frames[0], first)
    pool.refresh()
    assert pool.size == 5 and pool.count == 6 and not torch.equal(pool._frames[0], first)
    with pytest.raises(ValueError, match="initial <= capacity"):
        pool_settings(initial=9)


def test_masks_fit_the_images_that_are_drawn() -> None:
    """Squares are brighter than the ground, before and after mirroring, recolouring and resizing."""
    pool = filled_pool(initial=5)
    for size in (SIDE, SIDE // 2):
        drawn = pool.draw(np.random.default_rng(0), 6, ClipSpec(num_frames=3, max_gap=2, size=size))
        assert drawn.images.shape == (6, 3, 3, size, size) and drawn.truth.shape[1:] == (3, size, size)
        assert set(drawn.truth.unique().tolist()) == {0.0, 1.0}
        assert (drawn.truth[:, 0].flatten(1).sum(1) > 0).all()
        for truth, owner in zip(drawn.truth, drawn.clip_of):
            grey = drawn.images[owner].mean(1)
            visible = truth.flatten(1).any(1)
            inside = (grey * truth).sum((1, 2)) / truth.sum((1, 2)).clamp(min=1)
            assert (inside[visible] > grey.mean((1, 2))[visible]).all()
    mirrored = drawn.truth.flip(-1)
    outside = [(drawn.images[o].mean(1) * m).sum() / m.sum() for m, o in zip(mirrored, drawn.clip_of)]
    real = [(drawn.images[o].mean(1) * m).sum() / m.sum() for m, o in zip(drawn.truth, drawn.clip_of)]
    assert any(a < b for a, b in zip(outside, real))


def test_batches_of_one_shape() -> None:
    """Objects are left out or repeated; without the setting there are as many as the clips have."""
    spec = ClipSpec(num_frames=2, max_gap=1, size=SIDE)
    for share in (0.5, 1.5, 3.0):
        drawn = filled_pool(objects_per_clip=share).draw(np.random.default_rng(0), 4, spec)
        assert len(drawn.truth) == len(drawn.clip_of) == round(4 * share) and max(drawn.clip_of) < 4
        if share <= 1.5:
            assert len({(owner, *truth.flatten().tolist()) for owner, truth in zip(drawn.clip_of, drawn.truth)}) == len(
                drawn.truth
            )
    assert 4 < len(filled_pool().draw(np.random.default_rng(0), 4, spec).truth) <= 8


# -- the start --------------------------------------------------------------------------------------------------------


def occupancy_iou(start: bool) -> float:
    model = network()
    clips = [batch(clips=3, objects=1), batch(clips=4, objects=1)]
    settings = PropagationStart(batches=2)
    if start:
        images = torch.cat([c.images[:, 0] for c in clips])
        start_as_propagation(model, images, settings, torch.Generator().manual_seed(0))
    return fit_occupancy(model, model.occupancy_head, clips, settings)


def test_memory_carries_masks_before_the_first_step() -> None:
    """Even with a random trunk; a random start does not."""
    with_start, without = occupancy_iou(True), occupancy_iou(False)
    assert with_start > 0.45 and with_start > without + 0.15, (with_start, without)


def test_the_start_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="add up to the 352 channels"):
        start_as_propagation(
            network(), batch().images[:, 0], PropagationStart(group_sizes=(1,), group_weights=(1,)), torch.Generator()
        )
    with pytest.raises(ValueError, match="fewer features"):
        start_as_propagation(network(), batch().images[:, 0], PropagationStart(features=96), torch.Generator())
    with pytest.raises(ValueError, match="one weight per group"):
        PropagationStart(group_weights=(1,))


# -- runs -------------------------------------------------------------------------------------------------------------


def plan(steps: int = 4, **values: Any) -> TrainingPlan:
    stages = [
        Stage(
            until=steps,
            batch=2,
            clip_spec=ClipSpec(num_frames=3, max_gap=1, size=SIDE),
            rollout=JointRollout(losses=QUARTERED, visible_only=0.3, correct=0.3),
            prompts=DrawnPrompts(losses=QUARTERED),
        )
    ]
    optimisation = Optimisation(rate=1e-3, warmup=2, rates={"image_encoder.trunk": 0.0})
    settings = {"stages": stages, "optimisation": optimisation, "pool": pool_settings(refresh=0), "log_every": 1}
    return TrainingPlan(**(settings | {"start": PropagationStart(batches=1)} | values))


def trainer(folder: Path, the_plan: TrainingPlan) -> Trainer:
    return Trainer(network(128), build_policy("fifo"), the_plan, folder=folder)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", plan())
    trunk = {k: v.clone() for k, v in whole.model.image_encoder.trunk.state_dict().items()}
    whole.run()
    assert all(torch.equal(v, trunk[k]) for k, v in whole.model.image_encoder.trunk.state_dict().items())
    assert whole.model.image_size == SIDE
    halves = trainer(tmp_path / "halves", plan())
    halves.run(until=2)
    resumed = trainer(tmp_path / "halves", plan())
    assert resumed.resume() and resumed.step == 2
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(whole.ema.values(), resumed.ema.values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(whole.ema.values(), halves.ema.values(), strict=True))


def test_stages_may_be_drawn_for_each_step(tmp_path: Path) -> None:
    """By their shares, the same in a resumed run."""
    stage = plan().stages[0]
    mixed = replace(stage, share=0.5, others=[replace(stage, batch=1, share=0.5)])
    sizes: list[int] = []

    def run(folder: Path, until: int) -> Trainer:
        training = trainer(folder, plan(stages=[mixed]))
        training.resume()
        with patch.object(Trainer, "_backward", lambda self, s, *_: sizes.append(s.batch) or idle(self)):
            training.run(until=until)
        return training

    run(tmp_path / "whole", 4)
    run(tmp_path / "halves", 2)
    run(tmp_path / "halves", 4)
    assert sizes[:4] == sizes[4:] and set(sizes) == {1, 2}
    drawn = [mixed.draw(np.random.default_rng(k)).batch for k in range(400)]
    assert 150 < drawn.count(1) < 250
    with pytest.raises(ValueError, match="shares > 0"):
        replace(stage, share=0.0)


def idle(training: Trainer) -> StepLosses:
    """Losses of a step that changes nothing."""
    for _, parameter in training._named():
        parameter.grad = torch.zeros_like(parameter)
    return StepLosses(LossTerms, torch.zeros(len(LossTerms._fields) + 1))


def test_seconds_limit_a_run(tmp_path: Path) -> None:
    """Stages and the rate go by the share of the seconds; what is left is saved and used by a resumed run."""
    the_plan = plan(steps=1000, seconds=1.0, save_every=1)
    first = trainer(tmp_path, the_plan)
    first.elapsed = 0.5
    assert first.position == 500
    reports = []
    first.run(after_step=reports.append)
    assert first.elapsed >= 1.0 and 0 < first.step < 100 and first.position == 1000
    assert reports[-1].rate < the_plan.optimisation.rate
    weights = load_file(tmp_path / WEIGHTS)
    assert weights.keys() == first.model.state_dict().keys() and weights["no_mem_embed"].dtype is torch.float16
    resumed = trainer(tmp_path, the_plan)
    assert resumed.resume() and resumed.elapsed == first.elapsed
    before = resumed.step
    resumed.run()
    assert resumed.step == before
    assert (tmp_path / CHECKPOINT).is_file()


def test_steps_without_finite_gradients_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They change nothing, and five in a row end the run."""
    training = trainer(tmp_path, plan(steps=20))
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    hook = training.model.no_mem_embed.register_hook(lambda gradient: gradient * torch.nan)
    training.run(until=2)
    assert "step 0 is left out" in caplog.text
    assert all(torch.equal(v, before[k]) for k, v in training.model.state_dict().items())
    hook.remove()
    training.run(until=3)
    assert not torch.equal(training.model.no_mem_embed, before["no_mem_embed"])
    training.model.no_mem_embed.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(FloatingPointError, match="expected finite gradients"):
        training.run()
    assert training.step == 7


def test_a_plan_without_pool_or_sources_is_refused() -> None:
    with pytest.raises(ValueError, match="a source of clips in every stage"):
        plan(pool=None)


def test_the_recipe_composes_and_starts_from_a_trained_trunk(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = {f"image_encoder.trunk.{k}": v + 1 for k, v in network().image_encoder.trunk.state_dict().items()}
    save_file(state, str(tmp_path / "trunk.safetensors"))
    config = compose_training("nano_v2", [f"parts={{image_encoder.trunk: {tmp_path}/trunk.safetensors}}"])
    job = build_training(config)
    assert torch.equal(job.model.image_encoder.trunk.stem.bias, state["image_encoder.trunk.stem.bias"])
    assert job.fresh and job.plan.optimisation.factor("image_encoder.trunk.stem.weight") == 0
    assert job.plan.optimisation.factor("image_encoder.neck.convs.0.conv.weight") == 1
    assert all(isinstance(stage.rollout, JointRollout) for stage in job.plan.stages)


def test_the_recipe_of_absences_goes_on_from_the_packaged_weights() -> None:
    job = build_training(compose_training("nano_v2_away"))
    packaged = build_sam2("nano_v2", device="cpu", apply_postprocessing=False)
    assert not job.fresh and torch.equal(job.model.no_mem_embed, packaged.no_mem_embed)
    (stage,) = job.plan.stages
    assert isinstance(stage.clips, AwayClips) and stage.others[0].prompts.weight and job.plan.steps == 700
