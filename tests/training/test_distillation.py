"""Training distillers by a teacher: losses, what is trained, clips without labels, files, resuming."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_training import SIDE, TINY, Blobs, largest_difference
from torch import Tensor

from sam2_mem.build_sam import build_policy, build_sam2, build_training
from sam2_mem.cli import train as commands
from sam2_mem.config import compose, compose_training
from sam2_mem.memory.policies.distilled import Distilled
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.training.clips import Clip, ClipSpec, collate
from sam2_mem.training.distillation import (
    Distillation,
    Teacher,
    TeachersMasks,
    compare,
    distillation_loss,
    emphasis,
    hidden_cells,
)
from sam2_mem.training.folders import UnlabelledClips
from sam2_mem.training.initialization import Initialization, initialize_weights
from sam2_mem.training.losses import LossSettings
from sam2_mem.training.plan import Optimisation, Stage, TrainingPlan
from sam2_mem.training.prompts import PromptMix
from sam2_mem.training.reconstruction import FeatureGenerator, reconstruction_loss
from sam2_mem.training.rollout import Rollout, RolloutSettings
from sam2_mem.training.trainer import BEST, CHECKPOINT, Trainer
from sam2_mem.training.validation import NetworkMethod, held_out, run_method, summarise
from sam2_mem.video.stored import FileSource

DISTILLER = "memory_encoder.distiller."
MEASURED = 0.1  # of J; .349 and .554 were measured
MASKS = RolloutSettings(prompts=PromptMix(mask=1, box=0, click=0, correct=0), losses=LossSettings(stride=2))
SPEC = ClipSpec(num_frames=4, max_gap=1, size=SIDE)
ONLY_DISTILLER = {"": 0.0, "memory_encoder.distiller": 1.0, "generator": 1.0}


def network(distiller: str = "none", seed: int = 0, side: int = SIDE) -> SAM2:
    """A small network that has not learned and yet looks; the same under every distiller."""
    built, random_state = built_network(distiller, seed, side)
    torch.set_rng_state(random_state)
    return copy.deepcopy(built)


@lru_cache
def built_network(distiller: str, seed: int, side: int) -> tuple[SAM2, Tensor]:
    """And the state of the random numbers after it was built."""
    torch.manual_seed(seed)
    size = f"model.image_size={side}"
    config = compose("hiera_nano", [*TINY, "distiller=none", size])
    config.checkpoint = "random"
    plain = build_sam2(config, device="cpu", apply_postprocessing=False)
    initialize_weights(plain, Initialization(), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if "output_hypernetworks_mlps" in name and ".layers.2." in name:
                value *= 10
    config = compose("hiera_nano", [*TINY, *f"distiller={distiller}".split(","), size])
    config.checkpoint = "random"
    torch.manual_seed(seed + 1)
    made = build_sam2(config, device="cpu", apply_postprocessing=False)
    missing = made.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(k.startswith(DISTILLER) for k in missing)
    return made, torch.get_rng_state()


def batch_of(count: int = 2, spec: ClipSpec = SPEC):
    rngs = [np.random.default_rng(i) for i in range(count)]
    return collate(rngs, [Blobs(2).sample(rng, spec) for rng in rngs], spec), rngs


def one_loss(student: SAM2, settings: Distillation, policy: str = "fifo", **kwargs):
    batch, rngs = batch_of()
    teacher = Teacher(network(), build_policy("fifo"))
    found = list(
        distillation_loss(student, build_policy(policy), teacher, MASKS, settings, batch=batch, rngs=rngs, **kwargs)
    )
    assert len(found) == 1 and found[0].share == 1
    return found[0]


# -- losses -----------------------------------------------------------------------------------------------------------


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    same = one_loss(network(), Distillation(hidden=0)).terms
    assert max(float(v.detach()) for v in (same.features, same.mask, same.iou)) < 1e-6
    pooled = one_loss(network("pool4"), Distillation(hidden=0)).terms
    assert pooled.features > 1e-4 and pooled.mask > 1e-5, "a student with less memory must differ"


def test_losses_are_their_definitions() -> None:
    student, teacher = network("pool4").eval(), Teacher(network(), build_policy("fifo"))
    batch, rngs = batch_of()
    settings = Distillation(foreground=3, boundary=0, truth=0)
    with torch.no_grad():
        known = teacher.track(MASKS, batch, [np.random.default_rng(i) for i in range(2)], None)
        seen = Rollout(student, build_policy("fifo"), MASKS, batch=batch, rngs=rngs).run()
        terms = compare(seen, known, batch, settings, LossSettings())
        features, mask, count = [], [], 0
        size = torch.stack([known[s.frame].conditioned for s in seen]).square().mean()
        for s in seen:
            for row, obj_id in enumerate(s.obj_ids):
                told = known[s.frame]
                k = told.obj_ids.index(obj_id)
                best = told.decoded.iou[k].argmax()
                p = told.decoded.masks[k, best].double().sigmoid()
                q = s.decoded.masks[row, best].double().sigmoid()
                weight = 1 + 3 * p
                kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
                if told.decoded.objectness[k] > 0:
                    mask.append(float((kl * weight).sum() / weight.sum()))
                cells = torch.nn.functional.adaptive_avg_pool2d(weight[None, None], 4).flatten()
                apart = (s.conditioned[row] - told.conditioned[k]).double().square().mean(-1)
                features.append(float((apart * cells).sum() / cells.sum() / size))
                count += 1
    assert count == 12 and mask
    np.testing.assert_allclose(float(terms.features), np.mean(features), rtol=1e-4)
    np.testing.assert_allclose(float(terms.mask), np.mean(mask), rtol=1e-3)
    total = terms.weighted(settings)
    assert total == pytest.approx(float(sum(getattr(settings, n) * v for n, v in terms._asdict().items())))


def test_pixels_of_the_object_and_its_edge_count_more() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:6, 2:6] = 1
    weight = emphasis(mask, Distillation(foreground=3, boundary=5))[0]
    assert weight[0, 0] == 1 and weight[3, 3] == 4 and weight[2, 2] == 9 and weight[1, 2] == 6


def test_masked_reconstruction_is_its_definition() -> None:
    """Convolutions and weighted means written out, with the cells hidden that the generator of random numbers says."""
    torch.manual_seed(0)
    generator = FeatureGenerator(5)
    student, teacher = torch.randn(3, 16, 5), torch.randn(3, 16, 5)
    weights = torch.rand(3, 16) + 0.1
    torch.manual_seed(7)
    loss = reconstruction_loss(generator, student, teacher, weights, 0.5)
    torch.manual_seed(7)
    visible = torch.rand(3, 16, 1) >= 0.5
    assert 10 < visible.sum() < 38
    (first, _, second), errors = generator.layers, []
    for row in range(3):
        cells = (student[row] * visible[row]).double().reshape(4, 4, 5).numpy()
        for conv, last in ((first, False), (second, True)):
            kernel, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()
            padded = np.pad(cells, ((1, 1), (1, 1), (0, 0)))
            out = np.zeros((4, 4, 5))
            for y, x, c in np.ndindex(4, 4, 5):
                out[y, x, c] = (padded[y : y + 3, x : x + 3].transpose(2, 0, 1) * kernel[c]).sum() + bias[c]
            cells = out if last else np.maximum(out, 0)
        error = ((cells.reshape(16, 5) - teacher[row].double().numpy()) ** 2).mean(1)
        errors.append(np.average(error, weights=weights[row].double().numpy()))
    assert float(loss.detach()) == pytest.approx(np.mean(errors) / float(teacher.double().square().mean()), rel=1e-4)
    torch.manual_seed(7)
    whole = reconstruction_loss(generator, student, teacher, weights, 0.0)
    assert abs((whole - loss).item()) > 1e-3, "control: what is hidden matters"


def test_reconstruction_reaches_student_and_generator_and_is_off_by_default() -> None:
    student, generator = network("spatial"), FeatureGenerator(32)
    settings = Distillation(features=0, mask=0, dice=0, iou=0, objectness=0, reconstruction=2.0, hidden=0)
    loss = one_loss(student, settings, generator=generator)
    assert loss.total.item() == pytest.approx(2 * loss.terms.reconstruction.item()) and loss.total > 0
    loss.total.backward()
    gradients = [p.grad for n, p in student.named_parameters() if n.startswith(DISTILLER)]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in generator.parameters())
    assert one_loss(network("spatial"), Distillation()).terms.reconstruction == 0


def test_labels_are_used_where_there_are_any() -> None:
    student, settings = network("spatial"), Distillation(truth=1)
    batch, _ = batch_of()
    teacher = Teacher(network(), build_policy("fifo"))
    values = []
    for labelled in ((True, True), (False, False), (True, False)):
        one = type(batch)(batch.images, batch.truth, batch.clip_of, labelled)
        rngs = [np.random.default_rng(i) for i in range(2)]
        found = next(distillation_loss(student, build_policy("fifo"), teacher, MASKS, settings, batch=one, rngs=rngs))
        values.append(float(found.terms.truth.detach()))
    assert values[0] > 0 and values[1] == 0 and values[2] > 0 and values[2] != values[0]


@pytest.mark.full
def test_a_perceiver_learns_what_memory_is_read_as() -> None:
    """It starts as noise; twelve steps on one clip bring the features read from it nearer to those of whole memory."""
    student = network("perceiver,distiller.window_latents=4,distiller.global_latents=4")
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name.startswith(DISTILLER))
    learned = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(learned, lr=3e-3)
    teacher, policy = Teacher(network(), build_policy("fifo")), build_policy("fifo")
    settings = Distillation(hidden=0, mask=0, dice=0, iou=0, objectness=0)
    errors = []
    for _ in range(12):
        batch, rngs = batch_of(1)
        [loss] = distillation_loss(student, policy, teacher, MASKS, settings, batch=batch, rngs=rngs)
        optimiser.zero_grad()
        loss.total.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned), "every part has a gradient"
        optimiser.step()
        errors.append(float(loss.terms.features.detach()))
    assert max(errors[-3:]) < 0.5 * errors[0], errors


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="expected settings of a distillation >= 0"):
        Distillation(mask=-1)
    with pytest.raises(ValueError, match="expected hidden in 0..1"):
        Distillation(hidden=1.5)


# -- what the student sees --------------------------------------------------------------------------------------------


def test_hidden_cells_change_what_is_distilled_only_within() -> None:
    distiller = network("spatial").memory_encoder.distiller
    maps = torch.randn(2, 32, 8, 8)
    plain = distiller(maps)[0].feat
    with hidden_cells(distiller, 1.0):
        hidden = distiller(maps)[0].feat
    with hidden_cells(distiller, 0.0):
        shown = distiller(maps)[0].feat
    assert torch.equal(plain, shown) and torch.equal(plain, distiller(maps)[0].feat)
    torch.testing.assert_close(hidden, maps[0].mean((1, 2)).expand_as(hidden), atol=1e-5, rtol=1e-5)
    assert (plain - hidden).abs().max() > 0.05


def test_the_teachers_masks_enter_memory() -> None:
    batch, rngs = batch_of()
    teacher = Teacher(network(), build_policy("fifo"))
    with torch.no_grad():
        known = teacher.track(MASKS, batch, rngs, None)
    each = [np.random.default_rng(0)] * 4
    own = torch.full((2, 16, 16), -3.0)
    never, always = (TeachersMasks(known, p, each)(2, own, (1, 3)) for p in (0.0, 1.0))
    assert torch.equal(never, own)
    for row, obj_id in enumerate((1, 3)):
        decoded = known[2].decoded
        best = decoded.masks[obj_id, decoded.iou[obj_id].argmax()]
        expected = best if decoded.objectness[obj_id] > 0 else torch.full_like(best, -8.0)
        assert torch.equal(always[row], expected)


def test_encoding_once_changes_nothing() -> None:
    student = network("spatial")
    for name, p in student.named_parameters():
        p.requires_grad_(name.startswith(DISTILLER))
    teacher = Teacher(network(), build_policy("fifo"))
    assert teacher.shares_encoder(student)
    alone, together = (one_loss(student, Distillation(hidden=0), shared=s).terms for s in (False, True))
    torch.testing.assert_close(torch.stack([*alone]), torch.stack([*together]), atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        student.image_encoder.neck.convs[0].conv.bias.add_(0.1)
    assert not teacher.shares_encoder(student)


# -- the loop ---------------------------------------------------------------------------------------------------------


def plan(steps: int = 2, clips: object = Blobs(2), spec: ClipSpec = SPEC, **settings: float) -> TrainingPlan:
    stage = Stage(until=steps, clips=clips, clip_spec=spec, batch=2, rollout=MASKS)
    optimisation = Optimisation(rate=5e-3, warmup=1, rates=ONLY_DISTILLER)
    distillation = Distillation(**settings)
    return TrainingPlan(stages=[stage], optimisation=optimisation, log_every=1, distillation=distillation)


def trainer(folder: Path, plan_: TrainingPlan, distiller: str = "spatial", policy=None) -> Trainer:
    policy = build_policy("fifo") if policy is None else policy
    side = plan_.stages[0].clip_spec.size
    teacher = Teacher(network(side=side), build_policy("fifo"))
    return Trainer(network(distiller, side=side), policy, plan_, folder=folder, fresh=False, teacher=teacher)


@pytest.mark.parametrize("distiller", ["spatial", "temporal", "temporal_gru"])
def test_only_the_distiller_is_trained_and_all_of_it(distiller: str, tmp_path: Path) -> None:
    long = ClipSpec(num_frames=6, max_gap=1, size=2 * SIDE)
    training = trainer(
        tmp_path, plan(2, spec=long), distiller, Distilled(recent=1, tube=2, tail=2, min_object_score=-99)
    )
    before = {k: v.clone() for k, v in training.model.state_dict().items()}
    reached: set[str] = set()
    for _ in range(2):
        training.advance()
        reached |= {n for n, p in training.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    moved = {k for k, v in training.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all(k.startswith(DISTILLER) for k in moved | reached)
    wanted = {n for n, p in training.model.named_parameters() if n.startswith(DISTILLER)}
    missing = {n for n in wanted - reached if not n.endswith("merged_time")}  # read with slot "learned" only
    assert not missing, sorted(missing)


@pytest.mark.full
def test_it_learns_from_the_teacher(tmp_path: Path) -> None:
    class Same(Blobs):
        def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
            return super().sample(np.random.default_rng(5), spec)

    training = trainer(tmp_path, plan(40, Same(2), hidden=0, forcing=1))
    losses: list[float] = []
    training.run(after_step=lambda report: losses.append(float(report.terms.features)))
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3]), (losses[:3], losses[-3:])


@pytest.mark.full
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, first = trainer(tmp_path / "whole", plan(3)), trainer(tmp_path / "parts", plan(3))
    whole.run()
    first.run(until=1)
    second = trainer(tmp_path / "parts", plan(3))
    assert second.resume()
    second.run()
    ends = [torch.load(t.folder / CHECKPOINT, weights_only=True)["model"] for t in (whole, second)]
    assert largest_difference(*ends) == 0.0


@pytest.mark.full
def test_a_generator_is_trained_saved_and_not_exported(tmp_path: Path) -> None:
    whole, first = (trainer(tmp_path / name, plan(2, reconstruction=1.0)) for name in ("whole", "parts"))
    before = {n: p.clone() for n, p in first.generator.state_dict().items()}
    whole.run()
    first.run(until=1)
    second = trainer(tmp_path / "parts", plan(2, reconstruction=1.0))
    assert second.resume()
    second.run()
    for name, value in second.generator.state_dict().items():
        assert torch.equal(value, whole.generator.state_dict()[name]) and not torch.equal(value, before[name])
    assert not any("generator" in name for name in second.ema)
    plain = trainer(tmp_path / "plain", plan(2))
    plain.run()
    assert largest_difference(plain.model.state_dict(), whole.model.state_dict()) > 0, "control"
    with pytest.raises(ValueError, match="expected the generator of plan.distillation.reconstruction"):
        trainer(tmp_path / "plain", plan(2, reconstruction=1.0)).resume()


def test_a_generator_needs_a_rate(tmp_path: Path) -> None:
    given = plan(1, reconstruction=1.0)
    frozen = replace(given, optimisation=replace(given.optimisation, rates={"": 0.0, DISTILLER: 1.0}))
    with pytest.raises(ValueError, match="expected plan.optimisation.rates.generator > 0"):
        trainer(tmp_path, frozen)


def test_a_teacher_and_a_distillation_come_together(tmp_path: Path) -> None:
    plain = TrainingPlan(stages=plan().stages)
    with pytest.raises(ValueError, match="expected a teacher with plan.distillation"):
        trainer(tmp_path, plain)
    with pytest.raises(ValueError, match="expected a student with something to learn"):
        trainer(tmp_path, plan(), "pool2")
    corrected = RolloutSettings(prompts=PromptMix())
    batch, rngs = batch_of()
    teacher = Teacher(network(), build_policy("fifo"))
    with pytest.raises(ValueError, match="correct of 0"):
        next(
            distillation_loss(
                network(), build_policy("fifo"), teacher, corrected, Distillation(), batch=batch, rngs=rngs
            )
        )


# -- clips without labels ---------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of frames and a film, without masks."""
    clip = Blobs(2).sample(np.random.default_rng(0), ClipSpec(num_frames=6, max_gap=1, size=SIDE))
    (tmp_path / "deep" / "one").mkdir(parents=True)
    for t, frame in enumerate(clip.frames):
        cv2.imwrite(str(tmp_path / "deep" / "one" / f"{t:05d}.jpg"), frame[..., ::-1])
    film = cv2.VideoWriter(str(tmp_path / "two.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (SIDE, SIDE))
    for frame in clip.frames:
        film.write(np.ascontiguousarray(frame[..., ::-1]))
    film.release()
    return tmp_path


def test_unlabelled_videos_are_found_and_sampled(videos: Path, tmp_path: Path) -> None:
    source = UnlabelledClips(root=str(videos))
    assert [p.name for p in source.videos] == ["one", "two.mp4"]
    clip = source.sample(np.random.default_rng(1), SPEC)
    assert clip.frames.shape == (4, SIDE, SIDE, 3) and not clip.ids.any() and not clip.labelled
    with pytest.raises(ValueError, match="expected videos of 9 frames"):
        source.sample(np.random.default_rng(0), ClipSpec(num_frames=9, max_gap=1, size=SIDE))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected video files or folders of images"):
        UnlabelledClips(root=str(tmp_path / "empty")).videos  # noqa: B018


def test_a_video_file_is_counted_once(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, counted, real = UnlabelledClips(root=str(videos)), [], FileSource.count_frames
    monkeypatch.setattr(FileSource, "count_frames", lambda self: counted.append(self) or real(self))
    clips = [source.sample(np.random.default_rng(seed), SPEC).frames for seed in range(8)]
    assert len(counted) == 1
    fresh = [UnlabelledClips(root=str(videos)).sample(np.random.default_rng(seed), SPEC).frames for seed in range(8)]
    assert len(counted) > 2 and all(np.array_equal(a, b) for a, b in zip(clips, fresh))


def test_the_teacher_finds_something_to_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what it sees at clicks: neither specks nor the ground, no object twice, the surest first."""
    teacher = Teacher(network(), build_policy("fifo"))
    clip = Clip(np.zeros((2, SIDE, SIDE, 3), np.uint8), np.zeros((2, SIDE, SIDE), np.uint8), labelled=False)
    masks = torch.full((12, 3, 16, 16), -9.0)
    masks[0, 0] = 9  # everything
    masks[1, 1, 5, 5] = 9  # a speck
    masks[2, 0, 2:8, 2:8] = masks[3, 0, 2:8, 2:9] = 9  # one thing, seen twice
    masks[4, 2, 9:15, 3:12] = 9  # another
    iou = torch.full((12, 3), 0.1)
    iou[0, 0], iou[1, 1], iou[2, 0], iou[3, 0], iou[4, 2] = 0.99, 0.98, 0.5, 0.6, 0.4
    asked: list[torch.Tensor] = []

    def decode(plain, features, *, points, labels):
        asked.append(points)
        return Decoded(masks, torch.zeros(12, 3, 32), iou, torch.ones(12))

    monkeypatch.setattr(teacher.model, "decode", decode)
    found = teacher.label(clip, np.random.default_rng(0), ClipSpec(num_frames=2, max_gap=1, size=SIDE, max_objects=2))
    assert not found.labelled and not found.ids[1].any() and set(np.unique(found.ids[0])) == {0, 1, 2}
    first, second = (np.argwhere(found.ids[0] == i).mean(0) for i in (1, 2))
    assert np.abs(first - (20, 22)).max() < 3 and np.abs(second - (48, 30)).max() < 3
    teacher.label(clip, np.random.default_rng(0), SPEC)
    assert torch.equal(asked[0], asked[1]) and asked[0].min() > 0 and asked[0].max() < SIDE


def test_training_without_labels(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mark(self, clip: Clip, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        ids = clip.ids.copy()
        ids[0, 8:40, 8:40] = 1
        return Clip(clip.frames, ids, labelled=False)

    monkeypatch.setattr(Teacher, "label", mark)
    training = trainer(tmp_path / "run", plan(1, UnlabelledClips(root=str(videos)), truth=1.0))
    report = training.advance()
    assert report.terms.truth == 0 and report.terms.features > 0 and np.isfinite(report.total)
    plain = Trainer(
        network("spatial"), build_policy("fifo"), TrainingPlan(stages=training.plan.stages), folder=tmp_path
    )
    with pytest.raises(ValueError, match="expected clips with labels"):
        plain.advance()


# -- files and commands -----------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_command_distils_and_exports_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM2_MEM_CLIPS", str(tmp_path / "clips"))
    overrides = [
        "size=128",
        "plan.stages.0.batch=1",
        "plan.stages.0.clip_spec.num_frames=5",
        "plan.stages.0.clips=${sources.procedural}",
        "sources.procedural.count=2",
        "+sources.procedural.length=8",
        "plan.log_every=1",
        "plan.validation.every=0",
    ]
    assert commands.run(config="distil_nano", out=tmp_path / "run", device="cpu", until=2, overrides=overrides) == 0
    assert not (tmp_path / "run" / BEST).exists()
    small = tmp_path / "distiller.safetensors"
    assert commands.export(checkpoint=tmp_path / "run" / CHECKPOINT, weights=small, only=DISTILLER) == 0
    assert small.stat().st_size < 1e6
    model = build_sam2(
        "nano_v2", device="cpu", hydra_overrides_extra=["distiller=temporal", f"distiller_checkpoint={small}"]
    )
    trained = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["ema"]
    for key, value in model.state_dict().items():
        if key.startswith(DISTILLER):
            torch.testing.assert_close(value, trained[key].half().float())
    with pytest.raises(ValueError, match="expected weights that begin with 'nothing'"):
        commands.export(checkpoint=tmp_path / "run" / CHECKPOINT, weights=small, only="nothing")


@pytest.mark.full
def test_the_packaged_distiller_is_better_than_means() -> None:
    """What was trained for the small model, on clips that neither training nor its validation has seen."""
    clips = held_out("occlusion", 3, num_frames=24, first_seed=45_000_000)
    found = []
    for overrides in (["distiller_checkpoint=random"], []):
        model = build_sam2(
            "nano_v2", device="cpu", hydra_overrides_extra=["distiller=temporal", "model.image_size=192", *overrides]
        )
        found.append(summarise(run_method(NetworkMethod(model, Distilled()), clips)).j)
    assert found[1] > found[0] + MEASURED, found


def test_a_teacher_needs_weights(tmp_path: Path) -> None:
    config = compose_training("distil_nano", ["teacher.init=null"])
    with pytest.raises(ValueError, match="expected a teacher with weights"):
        build_training(config)
    job = build_training(compose_training("distil_nano"))
    assert job.teacher is not None and not job.fresh
    student, teacher = job.model.state_dict(), job.teacher[0].state_dict()
    assert all(torch.equal(student[k], v) for k, v in teacher.items()) and len(student) > len(teacher)
