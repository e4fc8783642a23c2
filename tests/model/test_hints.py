"""Prompts that are also drawn, and tracked masks that start from expected cells: off in official networks, where nothing
changes, and at work where they are on."""

from __future__ import annotations

import pytest
import torch
from micro import SIDE, micro_config, micro_model
from torch import Tensor

from sam2_mem.build_sam import build_sam2
from sam2_mem.config import compose, config_names
from sam2_mem.model.prompt_encoder import PromptEncoder
from sam2_mem.model.sam2 import SAM2, set_image_size

OFFICIAL = sorted(name for name in config_names() if "hiera" in name)


def network(**switches: float | bool) -> SAM2:
    """The micro network with the same weights, and switches of its config."""
    config = micro_config()
    for key, value in switches.items():
        config.model[key] = value
    torch.manual_seed(0)
    model = build_sam2(config, "random", device="cpu", apply_postprocessing=False)
    model.load_state_dict(micro_model().state_dict(), strict=False)
    return model.requires_grad_(False)


def decoded(model: SAM2, *, prompted: bool = False) -> Tensor:
    torch.manual_seed(0)
    [features] = model.encode_image(torch.randn(1, 3, SIDE, SIDE))
    points = (
        {"points": torch.tensor([[[20.0, 30.0]]]), "labels": torch.ones(1, 1, dtype=torch.long)} if prompted else {}
    )
    return model.decode(model.without_memory(features), features, **points).masks


# -- official networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_networks_have_neither(name: str) -> None:
    """That they have the official keys and shapes and no others is tested with checkpoints."""
    model = compose(name).model
    assert model.dense_points == 0 and model.occupancy_hint is False and model.mask_bias == 0


@pytest.mark.parametrize("prompted", [False, True])
def test_masks_without_the_switches_are_those_of_the_plain_path(
    prompted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what is decoded when the new code cannot run; with the switches on it does run."""
    reference = decoded(network())

    def unreachable(*args: object) -> Tensor:
        raise AssertionError("a hint in a network without hints")

    monkeypatch.setattr(PromptEncoder, "draw_prompts", unreachable)
    monkeypatch.setattr("sam2_mem.model.occupancy.OccupancyHead.mask_prompt", unreachable)
    model = network()
    assert torch.equal(decoded(model), reference)
    decoded(model, prompted=True)
    with pytest.raises(AssertionError, match="without hints"):
        decoded(network(dense_points=0.05, occupancy_hint=True), prompted=prompted)


# -- drawn prompts ----------------------------------------------------------------------------------------------------


def encoder(dense_points: float) -> PromptEncoder:
    torch.manual_seed(0)
    return PromptEncoder(embed_dim=16, image_embedding_size=4, image_size=64, dense_points=dense_points)


def literal(points: list[tuple[float, float, int]], box: tuple[float, float, float, float] | None) -> Tensor:
    """Pixel by pixel."""
    drawn = torch.zeros(16, 16)
    for row in range(16):
        for column in range(16):
            x, y = (column + 0.5) * 4, (row + 0.5) * 4
            value = 0.0
            for px, py, label in points:
                height = 10 if label else -10
                value += height * float(torch.exp(torch.tensor(-((x - px) ** 2 + (y - py) ** 2) / (2 * 3.2**2))))
            if box is not None:
                value += 3 if box[0] <= x <= box[2] and box[1] <= y <= box[3] else -8
            drawn[row, column] = min(max(value, -12), 12)
    return drawn


@pytest.mark.parametrize("box", [None, (9.0, 20.0, 40.0, 50.0)])
def test_drawn_prompts_equal_a_literal_drawing(box: tuple[float, float, float, float] | None) -> None:
    clicks = [(10.0, 20.0, 1), (50.0, 33.0, 0), (12.0, 22.0, 1)]
    corners = [(box[0], box[1], 2), (box[2], box[3], 3)] if box else []
    rows = torch.tensor([[*corners, *clicks, (0.0, 0.0, -1)]])
    drawn = encoder(0.05).draw_prompts(rows[..., :2], rows[..., 2].long())
    torch.testing.assert_close(drawn[0, 0], literal(clicks, box), atol=1e-4, rtol=1e-4)
    assert (drawn[0, 0] - literal(clicks[:2], box)).abs().max() > 0.5


def test_drawn_prompts_add_to_a_mask() -> None:
    points, labels = torch.tensor([[[20.0, 30.0]]]), torch.ones(1, 1, dtype=torch.long)
    mask = torch.randn(1, 1, 16, 16)
    plain, dense = encoder(0.0), encoder(0.05)
    drawn = dense.draw_prompts(points, labels)
    assert torch.equal(dense(points, labels, mask)[1], plain(points, labels, mask + drawn)[1])
    assert torch.equal(dense(points, labels)[1], plain(points, labels, drawn)[1])
    assert torch.equal(dense(points, labels)[0], plain(points, labels)[0])
    assert not torch.equal(dense(points, labels)[1], plain(points, labels)[1])
    with pytest.raises(ValueError, match="dense_points >= 0"):
        encoder(-1.0)


# -- expected cells ---------------------------------------------------------------------------------------------------


def test_expected_cells_are_the_mask_prompt_of_tracked_frames() -> None:
    model = network(occupancy_hint=True)
    torch.manual_seed(0)
    [features] = model.encode_image(torch.randn(1, 3, SIDE, SIDE))
    conditioned = model.without_memory(features)
    hint = model.occupancy_head.mask_prompt(conditioned, features.grid)
    assert hint.shape == (1, 1, SIDE // 4, SIDE // 4) and hint.abs().max() <= 12
    assert torch.equal(decoded(model), network().decode(conditioned, features, mask_logits=hint).masks)
    assert not torch.equal(decoded(model), decoded(network()))
    assert torch.equal(decoded(model, prompted=True), decoded(network(), prompted=True))


@pytest.mark.parametrize("prompted", [False, True])
def test_a_bias_of_masks_is_added_outside_training(prompted: bool) -> None:
    plain, biased = network(), network(mask_bias=0.4)
    assert torch.equal(decoded(biased, prompted=prompted), decoded(plain, prompted=prompted) + 0.4)
    assert torch.equal(decoded(biased.train(), prompted=prompted), decoded(plain.train(), prompted=prompted))


def test_the_network_takes_images_of_another_size() -> None:
    model, images = network(dense_points=0.05, occupancy_hint=True), torch.randn(1, 3, 128, 128)
    with pytest.raises(ValueError, match="expected normalised images"):
        model.encode_image(images)
    set_image_size(model, 128)
    [features] = model.encode_image(images)
    points = {"points": torch.tensor([[[20.0, 30.0]]]), "labels": torch.ones(1, 1, dtype=torch.long)}
    masks = model.decode(model.without_memory(features), features, **points).masks
    assert masks.shape[-2:] == model.mask_size == (32, 32)
    same = build_sam2(_with_size(128), "random", device="cpu", apply_postprocessing=False)
    same.load_state_dict(model.state_dict())
    assert torch.equal(same.decode(model.without_memory(features), features, **points).masks, masks)
    with pytest.raises(ValueError, match="multiple of 32"):
        set_image_size(model, 100)


def _with_size(side: int) -> object:
    config = micro_config()
    config.model.image_size, config.model.dense_points, config.model.occupancy_hint = side, 0.05, True
    return config
