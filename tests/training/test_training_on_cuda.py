"""One step of every training recipe on a simulated CUDA device: nothing mixes devices, weights change, and are saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from davis_clip import write_davis_clip
from helpers import NANO_128
from PIL import Image
from simulated_cuda import SimulatedCuda

from sam2_mem.cli import train as commands
from sam2_mem.model.trunks.efficientnet_lite import EfficientNetLite0
from sam2_mem.training.trainer import CHECKPOINT, write_weights

NANO = str(Path(__file__).resolve().parents[2] / "checkpoints" / "sam2_mem_nano_v2.safetensors")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``davis``: a procedural clip laid out as DAVIS 2017. ``pictures``: cut-outs and photographs. ``trunk.safetensors``."""
    rng = np.random.default_rng(0)
    write_davis_clip(tmp_path / "davis", num_frames=4)
    for number in range(8):
        cutout = np.dstack([rng.integers(0, 255, (64, 64, 3)), 255 * np.eye(64).repeat(1, 0)]).astype(np.uint8)
        cutout[8:56, 8:56, 3] = 255
        for kind, picture in (("cutouts", cutout), ("photographs", rng.integers(0, 255, (96, 96, 3), np.uint8))):
            path = tmp_path / "pictures" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    state = {f"image_encoder.trunk.{k}": v for k, v in EfficientNetLite0().state_dict().items()}
    write_weights(state, tmp_path / "trunk.safetensors", float32=True)
    return tmp_path


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    precision = torch.get_float32_matmul_precision()
    with SimulatedCuda() as sim:
        yield sim
    torch.set_float32_matmul_precision(precision)


SMALL = ["plan.log_every=1", "plan.optimisation.warmup=1"]
CLIPS = ["sources.procedural.count=1", "+sources.procedural.length=6", "plan.stages.0.clips=${sources.procedural}"]
CASES = {
    "hiera_nano": (None, [*SMALL, "sources.easy.count=1", "+sources.easy.length=10", "plan.stages.0.batch=1", "plan.validation.every=0"]),
    "distil_nano": (None, [*SMALL, "size=128", *CLIPS, "plan.stages.0.batch=1", "plan.stages.0.clip_spec.num_frames=3", "plan.validation.every=0"]),
    "memory_parts": (None, [*SMALL, "size=128", *CLIPS, "plan.stages.0.batch=1", "plan.stages.0.clip_spec.num_frames=3"]),
    "nano_v2": (
        None,
        [*SMALL, "size=128", "batch=2", "plan.pool.initial=2", "plan.pool.capacity=2", "plan.start.batches=1", "plan.stages.0.clip_spec.size=128"],
    ),
    "nano_v2_away": (None, [*SMALL, "size=128", "plan.stages.0.batch=1", "plan.stages.0.share=1000000"]),
    "finetune": (NANO, [*SMALL, f"model={NANO_128}", "data.size=128", "data.frames=3", "data.root=ROOT/davis"]),
    "distil_videos": (
        NANO,
        [*SMALL, f"model={NANO_128}", "data.size=128", "data.frames=3", "data.root=ROOT/davis/JPEGImages"],
    ),
}  # fmt: skip
CASES["distil_perceiver"] = (
    NANO,
    [
        *CASES["distil_videos"][1],
        'model_overrides=["distiller=perceiver","distiller.window_latents=16","distiller.global_latents=8"]',
    ],
)


def test_every_recipe_is_among_the_cases() -> None:
    assert {path.stem for path in (Path(NANO).parents[1] / "configs" / "training").glob("*.yaml")} == set(CASES)


@pytest.mark.full
@pytest.mark.parametrize("config", CASES)
def test_a_step(config: str, folders: Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAM2_MEM_CLIPS", str(folders / "clips"))
    monkeypatch.setenv("SAM2_MEM_PICTURES", str(folders / "pictures"))
    monkeypatch.setenv("SAM2_MEM_TRUNK", str(folders / "trunk.safetensors"))
    init, overrides = CASES[config]
    overrides = [text.replace("ROOT", str(folders)) for text in overrides]
    out = folders / "run"
    assert commands.run(config=config, out=out, init=init, device="cuda", until=1, overrides=overrides) == 0
    saved = torch.load(out / CHECKPOINT, weights_only=True, map_location="cpu")
    assert saved["step"] == 1 and cuda.waits
    assert all(torch.isfinite(v).all() for v in saved["model"].values() if v.is_floating_point())
    moments = [v for state in saved["optimizer"]["state"].values() for k, v in state.items() if k == "exp_avg"]
    assert any(moment.abs().max() > 0 for moment in moments), "gradients have come to the optimiser"


@pytest.mark.full
def test_control_clips_left_on_the_host_are_noticed(
    folders: Path, cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam2_mem.training.clips.ClipBatch.to", lambda batch, device: batch)
    init, overrides = CASES["finetune"]
    overrides = [text.replace("ROOT", str(folders)) for text in [*overrides, "+plan.amp=false"]]
    with pytest.raises(RuntimeError, match="device"):
        commands.run(config="finetune", out=folders / "run", init=init, device="cuda", until=1, overrides=overrides)
