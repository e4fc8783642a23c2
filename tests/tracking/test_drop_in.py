"""The video predictor as an ``nn.Module``, and what a state answers in the words of SAM 2."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import Clip
from micro import one_thread  # noqa: F401
from torch import nn

import sam2_mem.sam2_video_predictor
from sam2_mem import SAM2VideoPredictor, build_sam2_video_predictor
from sam2_mem.sam2_video_predictor import SAM2VideoPredictorVOS


@pytest.fixture
def predictor() -> SAM2VideoPredictor:
    return build_sam2_video_predictor("hiera_nano", "random", device="cpu")


def test_a_predictor_is_its_network_as_a_module(predictor: SAM2VideoPredictor) -> None:
    model = predictor.model
    assert isinstance(predictor, nn.Module) and predictor.image_encoder is model.image_encoder
    assert [name for name, _ in predictor.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert {id(x) for x in predictor.parameters()} == {id(x) for x in model.parameters()}
    assert predictor.state_dict().keys() == model.state_dict().keys()
    assert predictor.train() is predictor and predictor.training and model.training
    assert predictor.eval() is predictor and not model.training and not model.sam_mask_decoder.training
    assert predictor.requires_grad_(False) is predictor and not model.no_mem_embed.requires_grad
    with pytest.raises(NotImplementedError, match="a predictor is not called"):
        predictor(torch.zeros(1))


def test_weights_and_types_change_in_the_network(predictor: SAM2VideoPredictor) -> None:
    state = {name: value + 1 for name, value in predictor.state_dict().items()}
    predictor.load_state_dict(state)
    assert torch.equal(predictor.model.no_mem_embed, state["no_mem_embed"])
    with pytest.raises(RuntimeError, match="Missing key"):
        predictor.load_state_dict({})
    assert predictor.to(torch.float64) is predictor and predictor.model.no_mem_embed.dtype == torch.float64
    assert {value.dtype for value in predictor.state_dict().values()} == {torch.float64}
    predictor.no_mem_embed = nn.Parameter(torch.zeros_like(predictor.no_mem_embed))
    assert not predictor.model.no_mem_embed.any()


def test_an_embedder_goes_along_and_is_no_weight_of_the_network(predictor: SAM2VideoPredictor) -> None:
    names = list(predictor.state_dict())
    predictor.embedder = nn.Linear(2, 2)
    assert list(predictor.state_dict()) == names
    assert predictor.double().embedder.weight.dtype == torch.float64


def test_a_copy_has_a_network_of_its_own(predictor: SAM2VideoPredictor) -> None:
    other = copy.deepcopy(predictor)
    assert other.image_encoder is other.model.image_encoder is not predictor.image_encoder
    other.no_mem_embed.data += 1
    assert torch.equal(other.model.no_mem_embed, predictor.no_mem_embed + 1)
    assert predictor.with_policy("rmem").image_encoder is predictor.image_encoder


def test_the_optimized_predictor_is_a_kind_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: (compiled.append(self), _mark(self)))
    predictor = build_sam2_video_predictor("hiera_nano", "random", device="cpu", vos_optimized=True)
    assert type(predictor) is SAM2VideoPredictorVOS and issubclass(SAM2VideoPredictorVOS, SAM2VideoPredictor)
    assert type(predictor.with_policy("rmem")) is SAM2VideoPredictorVOS
    assert compiled == [predictor.image_encoder, predictor.memory_encoder, predictor.memory_attention]
    assert sam2_mem.sam2_video_predictor.SAM2VideoPredictor is SAM2VideoPredictor


def _mark(module: nn.Module) -> None:
    module._compiled_call_impl = module._call_impl


def test_images_of_a_state(predictor: SAM2VideoPredictor, clip: Clip, clip_folder: Path) -> None:
    """They are those that the network sees, and are read when they are asked for."""
    images = predictor.init_state(str(clip_folder))["images"]
    side = predictor.image_size
    assert images.shape == (len(clip), 3, side, side) and len(images) == len(clip) and images.dtype == torch.float32
    assert images[3:5].shape == (2, 3, side, side) and torch.equal(images[3:5][1], images[4])
    assert torch.equal(images[-1], images[len(clip) - 1])
    seen = []
    encode = predictor.model.encode_image
    predictor.model.encode_image = lambda x, indices: seen.append(x) or encode(x, indices)
    state = predictor.init_state(clip.frames[:2])
    predictor.add_new_mask(state, 1, 1, np.ones(clip.frames.shape[1:3], bool))
    assert torch.equal(seen[0][0], state["images"][1]) and not torch.equal(seen[0][0], state["images"][0])
    with pytest.raises(IndexError):
        images[len(clip)]
    assert predictor.init_state()["images"] is None
