"""Sensory memory: exactly absent before training, learnable, updated on XMem's schedule, one state per object."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from micro import (
    encode,
    features_at,
    mask_prompt,
    micro_config,
    micro_model,
    micro_tracker,
    pictures,
    run,
)
from torch import Tensor

from sam2_mem.build_sam import NEW_PARTS, build_sam2, build_sam2_video_predictor
from sam2_mem.checkpoint import load_checkpoint
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.xmem import XMem
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.model.mask_decoder import DecoderMaps
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.sensory import Recurrence, SensoryMemory
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.training.multi_clip_tracker import MultiClipTracker, StackedFeatures
from sam2_mem.types import FrameFeatures

POLICY = XMem(mem_every=5, max_working=4, min_working=2, num_prototypes=8, max_long_term=40)
CHANNELS = 8


def new_sensory_model(*, trained: bool) -> SAM2:
    """The shared micro network with a sensory memory of its own; ``trained``: one that matters."""
    config = micro_config()
    config.model.sensory_channels = CHANNELS
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build_sam2(config, None, device="cpu", apply_postprocessing=False)
        missing = model.load_state_dict(micro_model().state_dict(), strict=False).missing_keys
        assert missing and all(name.startswith("sensory.") for name in missing)
        if trained:
            model.sensory.injection.weight.data.normal_(std=2.0)
    return model.requires_grad_(False)


@lru_cache
def trained_model() -> SAM2:
    return new_sensory_model(trained=True)


def frames(count: int) -> list[FrameFeatures]:
    return [replace(features_at(t), index=t) for t in range(count)]


def logits(model: SAM2, prompts: dict, count: int = 12, policy=POLICY) -> tuple[Tracker, Tensor]:
    tracker = micro_tracker(policy, model=model)
    results = run(tracker, frames(count), prompts)
    return tracker, torch.cat([r.masks.flatten() for r in results])


# -- the module -------------------------------------------------------------------------------------------------------


def test_the_recurrence_is_the_written_formula():
    cell = Recurrence(width=5, channels=3)
    seen, hidden = torch.randn(2, 5, 4, 4), torch.randn(2, 3, 4, 4)
    z = F.conv2d(torch.cat([seen, hidden], 1), cell.transform.weight, cell.transform.bias, padding=1).detach().numpy()
    f, u, n = 1 / (1 + np.exp(-z[:, :3])), 1 / (1 + np.exp(-z[:, 3:6])), np.tanh(z[:, 6:])
    after = cell(seen, hidden).detach().numpy()
    assert np.allclose(after, f * hidden.numpy() * (1 - u) + u * n, atol=1e-5)
    assert not np.allclose(after, hidden.numpy() * (1 - u) + u * n, atol=1e-2), "without the forget gate"


def test_the_light_update_sees_all_three_maps_and_the_mask():
    part = SensoryMemory(width=32, memory_width=16, channels=CHANNELS)
    maps = DecoderMaps(torch.randn(2, 32, 4, 4), torch.randn(2, 8, 8, 8), torch.randn(2, 4, 16, 16))
    mask, hidden = torch.randn(2, 16, 16), part.fresh(2, (4, 4))
    assert hidden.shape == (2, CHANNELS, 4, 4) and hidden.eq(0).all()
    before = part.after_frame(hidden, maps, mask)
    assert before.shape == hidden.shape
    for change in (
        (maps._replace(cells=-maps.cells), mask),
        (maps._replace(middle=-maps.middle), mask),
        (maps._replace(fine=-maps.fine), mask),
        (maps, -mask),
    ):
        assert (part.after_frame(hidden, *change) - before).abs().max() > 1e-3
    first = part.after_frame(hidden[:1], DecoderMaps(*(m[:1] for m in maps)), mask[:1])
    assert torch.allclose(first, before[:1], atol=1e-6)
    memory = torch.randn(2, 16, 4, 4)
    assert part.after_memory(hidden, memory).shape == hidden.shape
    assert part.inject(before).shape == (2, 16, 32) and part.inject(before).eq(0).all() and part.is_absent()


def test_size_at_the_official_widths():
    part = SensoryMemory()
    assert 0.8e6 < sum(p.numel() for p in part.parameters()) < 1.2e6
    with pytest.raises(ValueError, match="at least one channel"):
        SensoryMemory(channels=0)


def test_decoder_maps_come_only_when_asked_for():
    model, features = trained_model(), features_at(0)
    plain = model.without_memory(features)
    assert model.decode(plain, features).maps is None
    decoded = model.decode(plain, features, keep_maps=True)
    assert [tuple(m.shape) for m in decoded.maps] == [(1, 32, 4, 4), (1, 8, 8, 8), (1, 4, 16, 16)]
    assert torch.equal(decoded.masks, model.decode(plain, features).masks)


def test_memory_is_the_distilled_map():
    model, features = trained_model(), features_at(0)
    flags = {"binarize": torch.tensor([False]), "present": torch.tensor([True])}
    masks = torch.randn(1, *model.mask_size)
    maps = model.memory_maps(features, masks, **flags)
    tokens = model.memory_encoder.distiller(maps)[0]
    assert torch.equal(tokens.feat, maps[0].flatten(1).t())


# -- untrained is absent ----------------------------------------------------------------------------------------------


def test_untrained_is_exactly_absent_and_not_run():
    prompts = {0: [mask_prompt(1)], 4: [mask_prompt(2, 4, 1)]}
    untrained = new_sensory_model(trained=False)
    tracker, ours = logits(untrained, prompts)
    assert tracker.sensory is None and tracker.tracks[1].state.sensory is None
    assert torch.equal(ours, logits(micro_model(), prompts)[1])
    trained, changed = logits(trained_model(), prompts)
    assert trained.sensory is not None
    assert (ours - changed).abs().max() > 0.1


def test_in_training_it_is_run_and_still_adds_exactly_nothing():
    model = new_sensory_model(trained=False).train()
    tracker, ours = logits(model, {0: [mask_prompt(1)]})
    plain = micro_model()
    assert torch.equal(ours, logits(plain, {0: [mask_prompt(1)]})[1])
    assert tracker.sensory is model.sensory
    assert tracker.tracks[1].state.sensory.abs().max() > 0.01


def test_gradient_reaches_the_injection_and_then_everything():
    model = new_sensory_model(trained=False).train()
    model.sensory.requires_grad_(True)
    features = [StackedFeatures.of([f], f.index) for f in encode(model, pictures(4))]

    def loss() -> Tensor:
        tracker = MultiClipTracker(model, POLICY, clip_of=[0], settings=TrackerSettings(memory_dtype="float32"))
        for f in features:
            tracker.step(f, [mask_prompt(0)] if f.index == 0 else [])
        return sum((s.decoded.masks / 10).square().mean() for s in tracker.predictions)

    first = loss()
    first.backward()
    grads = {name: p.grad.abs().max().item() for name, p in model.sensory.named_parameters() if p.grad is not None}
    assert grads["injection.weight"] > 1e-6
    assert all(size == 0 for name, size in grads.items() if name != "injection.weight"), "nothing is injected yet"
    with torch.no_grad():
        model.sensory.injection.weight -= 0.1 * model.sensory.injection.weight.grad
    second = loss()
    assert second.item() != first.item()
    second.backward()
    assert all(p.grad.abs().max() > 0 for p in model.sensory.parameters())
    model.eval()
    assert micro_tracker(POLICY, model=model).sensory is model.sensory


def test_policies_without_a_place_for_it_do_not_run_it():
    tracker, ours = logits(trained_model(), {0: [mask_prompt(1)]}, policy=FIFO())
    assert tracker.sensory is None
    assert torch.equal(ours, logits(micro_model(), {0: [mask_prompt(1)]}, policy=FIFO())[1])
    window = XMem(working="window", long_term=False, mem_every=1)
    assert torch.allclose(logits(trained_model(), {0: [mask_prompt(1)]}, policy=window)[1], ours, atol=1e-5)


# -- updates ----------------------------------------------------------------------------------------------------------


def test_schedule(monkeypatch):
    model, calls = trained_model(), []
    for name in ("after_frame", "after_memory"):
        update = getattr(model.sensory, name)

        def noted(hidden: Tensor, *rest, name=name, update=update) -> Tensor:
            calls.append((name, len(hidden)))
            return update(hidden, *rest)

        monkeypatch.setattr(model.sensory, name, noted)
    tracker, found = micro_tracker(POLICY, model=model), {}
    for features in frames(12):
        calls.clear()
        prompts = {0: [mask_prompt(1)], 7: [mask_prompt(2, 7, 1)]}.get(features.index, [])
        with torch.no_grad():
            tracker.step(features, prompts)
        found[features.index] = sorted(calls)
    light, deep = ("after_frame", 1), ("after_memory", 1)
    assert found[0] == found[5] == [deep], "a prompt, a frame of working memory"
    assert all(found[t] == [light] for t in (1, 2, 3, 4, 6))
    assert found[7] == [light, deep], "one is prompted, the other tracked"
    assert found[8] == [("after_frame", 2)] and found[10] == [light, deep]


def test_state_is_the_recurrence_of_what_was_seen():
    model = trained_model()
    tracker = micro_tracker(POLICY, model=model)
    features = frames(3)
    run(tracker, features[:1], {0: [mask_prompt(1)]})
    state = tracker.tracks[1].state
    memory = state.prompts[0].tokens.feat.float().t().unflatten(1, (4, 4))[None]
    with torch.no_grad():
        expected = model.sensory.after_memory(model.sensory.fresh(1, (4, 4)), memory)[0]
    assert torch.allclose(state.sensory, expected, atol=0.02), "up to the rounding of stored memory"
    read = POLICY.read(state, tracker.context(features[1]))[0]
    assert read.sensory is state.sensory
    run(tracker, features[1:2], {})
    assert (tracker.tracks[1].state.sensory - state.sensory).abs().max() > 0.01


def test_objects_do_not_meet():
    alone_1 = logits(trained_model(), {0: [mask_prompt(1)]})[0]
    alone_2 = logits(trained_model(), {3: [mask_prompt(2, 3, 1)]})[0]
    both = logits(trained_model(), {0: [mask_prompt(1)], 3: [mask_prompt(2, 3, 1)]})[0]
    for obj_id, alone in ((1, alone_1), (2, alone_2)):
        ours, theirs = both.tracks[obj_id], alone.tracks[obj_id]
        assert torch.allclose(ours.state.sensory, theirs.state.sensory, atol=1e-4)
        assert torch.allclose(ours.outputs[11].logits, theirs.outputs[11].logits, atol=1e-3)
    assert not torch.allclose(both.tracks[1].state.sensory, both.tracks[2].state.sensory, atol=1e-2)


def test_one_state_is_held_per_object():
    tracker = logits(trained_model(), {0: [mask_prompt(1)]}, count=30)[0]
    track = tracker.tracks[1]
    size = track.state.sensory.nbytes
    assert all(e.sensory is None for e in track.state.all_entries())
    assert all(o.sensory is None for o in track.outputs.values())
    without = replace(track.state, sensory=None)
    assert tensor_bytes(track.state.tensors()) >= tensor_bytes(without.tensors()) + size


def test_correction_reads_and_updates_it():
    tracker = logits(trained_model(), {0: [mask_prompt(1)]}, count=8)[0]
    before = tracker.tracks[1].state.sensory
    run(tracker, frames(8)[7:], {7: [mask_prompt(1, 7)]})
    assert [p.frame for p in tracker.tracks[1].state.prompts] == [0, 7]
    assert not torch.equal(tracker.tracks[1].state.sensory, before)


# -- files ------------------------------------------------------------------------------------------------------------


def test_official_weights_lack_it_and_load(tmp_path):
    torch.save({"model": micro_model().state_dict()}, tmp_path / "official.pt")
    model = new_sensory_model(trained=True)
    model.sensory.injection.weight.data.zero_()
    missing = load_checkpoint(model, tmp_path / "official.pt", allow_missing=NEW_PARTS)
    assert missing and all(name.startswith("sensory.") for name in missing)
    assert model.sensory.is_absent()
    with pytest.raises(ValueError, match="sensory"):
        load_checkpoint(model, tmp_path / "official.pt")


def test_a_state_in_a_file_keeps_it(tmp_path):
    state = logits(trained_model(), {0: [mask_prompt(1)]})[0].tracks[1].state
    save_memory(tmp_path / "m", POLICY, state)
    assert torch.equal(load_memory(tmp_path / "m", POLICY).sensory, state.sensory)


def test_a_network_without_it_refuses_such_a_state():
    tracker = logits(trained_model(), {0: [mask_prompt(1)]})[0]
    other = micro_tracker(POLICY)
    other.track(1).state = tracker.tracks[1].state
    with pytest.raises(ValueError, match="expected reads without a sensory state.*model.sensory_channels"):
        run(other, [replace(features_at(12), index=12)], {})


# -- training ---------------------------------------------------------------------------------------------------------


def test_clips_in_lockstep_are_the_clips_alone():
    """Also what a policy sees of the picture: the key space is that of the object's own clip."""
    model, policy = trained_model(), POLICY
    clips = [frames(12), [replace(features_at(t + 90), index=t) for t in range(12)]]
    together = MultiClipTracker(model, policy, clip_of=[0, 1])
    with torch.no_grad():
        for t in range(12):
            stacked = StackedFeatures.of([clip[t] for clip in clips], t)
            together.step(stacked, [mask_prompt(0), mask_prompt(1, 90)] if t == 0 else [])
    for number, prompt in enumerate((mask_prompt(0), mask_prompt(1, 90))):
        alone = micro_tracker(policy, model=model)
        run(alone, clips[number], {0: [prompt]})
        ours, theirs = together.tracks[number].state, alone.tracks[number].state
        assert torch.allclose(ours.sensory, theirs.sensory, atol=1e-4)
        assert torch.equal(ours.space.mean, theirs.space.mean)
        assert torch.equal(ours.working[-1].key, theirs.working[-1].key)


def test_a_policy_that_leaves_it_unused_is_named(caplog):
    def build(policy: str) -> None:
        config = micro_config()
        config.model.sensory_channels = CHANNELS
        build_sam2_video_predictor(config, device="cpu", memory_policy=policy)

    build("xmem")
    assert "sensory memory is not used" not in caplog.text
    build("fifo")
    assert "sensory memory is not used: FIFO keeps no state of it" in caplog.text
