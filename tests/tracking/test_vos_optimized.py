"""The compiled predictor gives the masks of the eager one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from micro import blob, micro_config, micro_weights, pictures

from sam2_mem import build_sam2_video_predictor

NO_COMPILER = "needs a C++ compiler: torch.compile builds CPU kernels with one"


@pytest.fixture(autouse=True)
def compiler_reset() -> Iterator[None]:
    """What was compiled does not outlive its test."""
    yield
    torch.compiler.reset()


@pytest.mark.full
@pytest.mark.extended
@pytest.mark.skipif(shutil.which("g++") is None, reason=NO_COMPILER)
def test_compiled_equals_eager(tmp_path):
    eager, compiled = (
        build_sam2_video_predictor(micro_config(), micro_weights(tmp_path), device="cpu", vos_optimized=optimized)
        for optimized in (False, True)
    )
    assert compiled.model.image_encoder._compiled_call_impl is not None
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    eager_run, compiled_run = (seen_by(p, frames=6) for p in (eager, compiled))
    for (mask, score), (other, same) in zip(eager_run, compiled_run, strict=True):
        assert torch.allclose(mask, other, atol=1e-3)
        assert score == pytest.approx(same, abs=1e-3)
    scores = [score for _, score in eager_run[1:]]
    assert max(scores) - min(scores) > 1e-2, "frames that all look alike would not tell a broken network"


def seen_by(predictor, frames: int) -> list[tuple[torch.Tensor, float]]:
    """Masks and object scores of a short video."""
    state = predictor.init_state(np.stack(pictures(frames)))
    predictor.add_new_mask(state, 0, 1, blob(0))
    return [(m.clone(), predictor.scores(state)[0].objectness) for _, _, m in predictor.propagate_in_video(state)]
