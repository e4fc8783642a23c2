"""The compiled predictor gives the masks of the eager one."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from micro import blob, micro_config, micro_weights, pictures
from sam2_mem import build_sam2_video_predictor

NO_COMPILER = "needs a C++ compiler: torch.compile builds CPU kernels with one"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason=NO_COMPILER)
def test_compiled_equals_eager(tmp_path):
    eager, compiled = (
        build_sam2_video_predictor(micro_config(), micro_weights(tmp_path), device="cpu", vos_optimized=optimized)
        for optimized in (False, True)
    )
    assert compiled.model.image_encoder._compiled_call_impl is not None
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    found = [masks_of(p, frames=6) for p in (eager, compiled)]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*found, strict=True))
    assert not torch.allclose(found[0][1], found[1][5], atol=1e-3)


def masks_of(predictor, frames: int) -> list[torch.Tensor]:
    state = predictor.init_state(np.stack(pictures(frames)))
    predictor.add_new_mask(state, 0, 1, blob(0))
    return [m.clone() for _, _, m in predictor.propagate_in_video(state)]
