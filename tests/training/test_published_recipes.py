"""The recipes for users' own data: ``configs/training/finetune.yaml``, ``distil_videos.yaml`` and ``distil_perceiver.yaml``, two
steps each on small data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from davis_clip import write_davis_clip
from helpers import NANO_128

from sam2_mem.build_sam import build_sam2, build_sam2_video_predictor
from sam2_mem.cli import train as commands
from sam2_mem.config import compose_training
from sam2_mem.training.trainer import CHECKPOINT

NANO = Path(__file__).resolve().parents[2] / "checkpoints" / "sam2_mem_nano_v2.safetensors"
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
    weights = two_steps("finetune", tmp_path / "run", davis, NANO, f"model={NANO_128}")
    model = build_sam2(NANO_128, device="cpu")
    assert {"image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder"} <= changed(weights, model)
    moved = max(float((v - weights[k]).abs().max()) for k, v in model.state_dict().items() if v.is_floating_point())
    assert 0 < moved < 1e-4, "two steps of 5e-6"


@pytest.mark.full
def test_a_part_can_be_frozen(davis: Path, tmp_path: Path) -> None:
    weights = two_steps(
        "finetune", tmp_path / "run", davis, NANO, f"model={NANO_128}", "plan.optimisation.rates.image_encoder=0.0"
    )
    names = changed(weights, build_sam2(NANO_128, device="cpu"))
    assert "image_encoder" not in names and "memory_attention" in names


@pytest.mark.full
def test_a_distiller_learns_from_videos_without_masks(davis: Path, tmp_path: Path) -> None:
    videos = davis / "JPEGImages"
    weights = two_steps("distil_videos", tmp_path / "run", videos, NANO, "model=nano_v2", *SMALL)
    model = build_sam2("nano_v2", str(NANO), device="cpu", hydra_overrides_extra=SMALL_MODEL)
    old = {k: v for k, v in model.state_dict().items() if "distiller" not in k}
    assert old and all(torch.equal(v, weights[k]) for k, v in old.items()), "nothing but the distiller is trained"
    assert any("distiller" in k for k in weights)


@pytest.mark.full
def test_a_perceiver_learns_for_a_network_of_sam2(davis: Path, tmp_path: Path) -> None:
    """Two steps, then its file is loaded over the checkpoint, which does not have it, and tracks."""
    perceiver = ["distiller=perceiver", "distiller.window_latents=16", "distiller.global_latents=8"]
    student = "model_overrides=[" + ",".join(f'"{text}"' for text in (*SMALL_MODEL, *perceiver)) + "]"
    weights = two_steps(
        "distil_perceiver", tmp_path / "run", davis / "JPEGImages", NANO, "model=nano_v2", student, SMALL[1]
    )
    small = tmp_path / "perceiver.safetensors"
    part = "memory_encoder.distiller."
    assert commands.export(checkpoint=tmp_path / "run" / CHECKPOINT, weights=small, only=part, float32=True) == 0
    loaded = [*SMALL_MODEL, *perceiver, f"distiller_checkpoint={small}"]
    predictor = build_sam2_video_predictor("nano_v2", str(NANO), device="cpu", hydra_overrides_extra=loaded)
    averaged = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["ema"]
    state = predictor.model.state_dict()
    assert all(torch.equal(v, averaged[k]) for k, v in state.items() if k.startswith(part))
    assert any(not torch.equal(v, weights[k]) for k, v in state.items() if k.startswith(part)), "trained, and averaged"
    old = {k: v for k, v in state.items() if not k.startswith(part)}
    assert all(torch.equal(v, weights[k]) for k, v in old.items()), "nothing but the perceiver is trained"
    video = predictor.init_state(str(next((davis / "JPEGImages").rglob("00000.jpg")).parent))
    predictor.add_new_points_or_box(video, 0, 1, box=[10, 10, 60, 60])
    frames = [masks for _, _, masks in predictor.propagate_in_video(video, max_frame_num_to_track=2)]
    assert len(frames) == 3 and predictor.model.tokens_per_map == 24


@pytest.mark.full
@pytest.mark.parametrize(
    ("part", "overrides"),
    [
        ("bank_time", []),
        ("sensory", ["memory_policy=xmem", 'model_overrides=["model.sensory_channels=64","model.image_size=128"]']),
    ],
)
def test_a_part_of_memory_is_trained_alone(
    part: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM2_MEM_CLIPS", str(tmp_path / "clips"))
    small = ["size=128", "plan.log_every=1", "plan.stages.0.batch=1", "plan.stages.0.clip_spec.num_frames=4"]
    small += ["plan.stages.0.clips=${sources.procedural}", "sources.procedural.count=1", "+sources.procedural.length=8"]
    out = tmp_path / "run"
    assert commands.run(config="memory_parts", out=out, device="cpu", until=2, overrides=[*small, *overrides]) == 0
    weights = torch.load(out / CHECKPOINT, weights_only=True)["model"]
    own = build_sam2(NANO_128, device="cpu").state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in own.items())
    learned = {key: value for key, value in weights.items() if key not in own}
    assert {key.split(".")[0] for key in learned} == {part} and any(v.abs().max() > 0 for v in learned.values())


def test_both_are_for_official_checkpoints() -> None:
    for name in ("finetune", "distil_videos", "distil_perceiver"):
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
