"""The recipes for users' own data: ``configs/training/finetune.yaml`` and ``distil_videos.yaml``, two steps each on small data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from davis_clip import write_davis_clip

from sam2_mem.build_sam import build_sam2
from sam2_mem.cli import train as commands
from sam2_mem.config import compose_training
from sam2_mem.training.trainer import CHECKPOINT

NANO = Path(__file__).resolve().parents[2] / "checkpoints" / "sam2_mem_nano.safetensors"
NANO_V2 = NANO.with_name("sam2_mem_nano_v2.safetensors")
SMALL_MODEL = ["model.image_size=128"]
SMALL = [
    'model_overrides=["model.image_size=128","distiller=temporal"]',
    'teacher.model_overrides=["model.image_size=128"]',
]


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A procedural clip laid out as DAVIS 2017."""
    root = tmp_path_factory.mktemp("davis")
    write_davis_clip(root, num_frames=6)
    return root


def two_steps(config: str, out: Path, root: Path, init: Path, *more: str) -> dict[str, torch.Tensor]:
    """The trained weights (not averaged) after two steps of the recipe in a small size."""
    small = [f"data.root={root}", "data.size=128", "data.frames=3", "plan.log_every=1", "plan.optimisation.warmup=1"]
    assert commands.run(config=config, out=out, init=str(init), device="cpu", until=2, overrides=[*small, *more]) == 0
    return torch.load(out / CHECKPOINT, weights_only=True)["model"]


def changed(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    """First words of the names of weights that are not those of ``model``."""
    return {key.split(".")[0] for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}


def test_finetuning_changes_all_parts_a_little(davis: Path, tmp_path: Path) -> None:
    weights = two_steps("finetune", tmp_path / "run", davis, NANO, "model=nano")
    model = build_sam2("nano", str(NANO), device="cpu")
    assert {"image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder"} <= changed(weights, model)
    moved = max(float((v - weights[k]).abs().max()) for k, v in model.state_dict().items() if v.is_floating_point())
    assert 0 < moved < 1e-4, "two steps of 5e-6"


@pytest.mark.full
def test_a_part_can_be_frozen(davis: Path, tmp_path: Path) -> None:
    weights = two_steps(
        "finetune", tmp_path / "run", davis, NANO, "model=nano", "plan.optimisation.rates.image_encoder=0.0"
    )
    names = changed(weights, build_sam2("nano", str(NANO), device="cpu"))
    assert "image_encoder" not in names and "memory_attention" in names


@pytest.mark.full
def test_a_distiller_learns_from_videos_without_masks(davis: Path, tmp_path: Path) -> None:
    videos = davis / "JPEGImages"
    weights = two_steps("distil_videos", tmp_path / "run", videos, NANO_V2, "model=nano_v2", *SMALL)
    model = build_sam2("nano_v2", str(NANO_V2), device="cpu", hydra_overrides_extra=SMALL_MODEL)
    old = {k: v for k, v in model.state_dict().items() if "distiller" not in k}
    assert old and all(torch.equal(v, weights[k]) for k, v in old.items()), "nothing but the distiller is trained"
    assert any("distiller" in k for k in weights)


def test_both_are_for_official_checkpoints() -> None:
    for name in ("finetune", "distil_videos"):
        composed = compose_training(name)
        assert composed.model == "configs/sam2.1/sam2.1_hiera_t.yaml"
        spec = composed.plan.stages[0].clip_spec
        assert spec.size == 1024
    plan = compose_training("finetune", ["data.layout=mose"]).plan
    assert plan.stages[0].clips.layout == "mose"
    assert np.isclose(plan.optimisation.rate * plan.optimisation.rates.image_encoder, 3e-6)


def test_a_missing_file_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As by every other command: exit status 2, what was expected, no traceback."""
    weights = str(tmp_path / "none.pt")
    assert commands.main(["run", "finetune", "--out", str(tmp_path / "run"), "--device", "cpu", "--init", weights]) == 2
    text = capsys.readouterr().err.strip().splitlines()[-1]
    assert text.startswith("error: expected a checkpoint file") and "none.pt" in text
