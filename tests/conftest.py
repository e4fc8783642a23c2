"""Fixtures shared by several files: one clip, and the tiny network at image size 128 with lively random weights."""

import os
from pathlib import Path

import pytest
import torch
from clips import Clip, make_clip
from helpers import centre_scores, encode_once, lively_state, make_predictor, save_state, threads

from sam2_mem import SAM2VideoPredictor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped, and say so, where there is no CUDA device and none is named in their stead."""
    if torch.cuda.is_available() or "SAM2_MEM_TEST_DEVICE" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; run `make test-gpu` where there is one"))


@pytest.fixture(scope="session")
def clip() -> Clip:
    """40 frames with three shapes."""
    return make_clip(40)


@pytest.fixture(scope="session")
def clip_folder(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a folder of JPEG files."""
    return clip.save(tmp_path_factory.mktemp("clip") / "frames")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny 2.1 network; at image size 128 objects come and go."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    state = lively_state()
    with threads(1):
        centre_scores(state, make_predictor(save_state(state, path)), make_clip(12))
    return save_state(state, path)


@pytest.fixture(scope="session")
def tiny(tiny_weights: Path) -> SAM2VideoPredictor:
    """The tiny 2.1 network at image size 128 under the default policy; it encodes every distinct picture once. For
    other policies: ``helpers.with_policy(tiny, policy)``. Do not change its weights; build your own from
    ``tiny_weights``."""
    predictor = make_predictor(tiny_weights)
    encode_once(predictor.model, {})
    return predictor
