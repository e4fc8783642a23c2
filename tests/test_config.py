"""Configs: every one builds; they are found by any name, from anywhere, also in a program that runs Hydra itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from micro import ALL_ONLY, POLICIES, in_tiers, micro_config, one_thread  # noqa: F401
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from sam2_mem import build_sam2, build_sam2_video_predictor
from sam2_mem.build_sam import RANDOM, build_policy
from sam2_mem.config import (
    ConfigError,
    _composed_of_ours,
    choice_config,
    compose,
    compose_video,
    config_dir,
    config_names,
    policy_names,
)
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"
ROOT = Path(__file__).parents[1]


def build(config: Any, *overrides: str, **options: Any) -> SAM2VideoPredictor:
    """On the meta device, where even the large model costs nothing."""
    options = {"apply_postprocessing": False, **options}
    return build_sam2_video_predictor(config, RANDOM, device="meta", hydra_overrides_extra=overrides, **options)


# -- every config -----------------------------------------------------------------------------------------------------


BUILT_ELSEWHERE = ("configs/sam2/", "configs/sam2.1/", "configs/efficienttam/")
"""Families whose networks are all built by the tests of checkpoints and of the family, which suffices before a commit."""


@pytest.mark.parametrize(
    "name", in_tiers(config_names(), [TINY, *(n for n in config_names() if not n.startswith(BUILT_ELSEWHERE))])
)
def test_every_model_config_builds(name: str) -> None:
    predictor = build(name)
    config = compose(name)
    assert predictor.image_size == config.model.image_size
    assert predictor.model.width == config.model.image_encoder.neck.d_model
    assert all(p.is_meta for p in predictor.model.parameters()) and not predictor.model.training
    assert build_sam2(config, RANDOM, device="meta").image_size == predictor.image_size


@pytest.mark.parametrize("policy", in_tiers(policy_names(), POLICIES))
def test_every_policy_builds_with_a_model(policy: str) -> None:
    named = build(TINY, memory_policy=policy).policy
    assert named == build_policy(policy)
    assert named == build(TINY, f"memory_policy={policy}").policy
    assert named == build(micro_config(), f"memory_policy={policy}").policy


@pytest.mark.parametrize("group", ["refiner", "embedder"])
def test_every_choice_composes(group: str) -> None:
    for path in (config_dir() / group).glob("*.yaml"):
        chosen = compose(TINY, [f"{group}={path.stem}"])[group]
        assert "_target_" in chosen
        assert chosen == compose(compose(TINY), [f"{group}={path.stem}"])[group]


def presets() -> dict[str, str]:
    """Presets of memory policies and what each builds on."""
    files = {name: OmegaConf.load(config_dir() / "memory_policy" / f"{name}.yaml") for name in policy_names()}
    return {name: file.defaults[0] for name, file in files.items() if "defaults" in file}


@pytest.mark.parametrize(("preset", "parent"), presets().items())
def test_a_preset_lists_its_differences_only(preset: str, parent: str) -> None:
    file = OmegaConf.load(config_dir() / "memory_policy" / f"{preset}.yaml")
    differences = {key: value for key, value in file.items() if key != "defaults"}
    composed, base = choice_config("memory_policy", preset), choice_config("memory_policy", parent)
    assert file.defaults == [parent, "_self_"]
    assert differences == {key: value for key, value in composed.items() if base[key] != value} != {}


def test_values_of_a_preset() -> None:
    """By every way in; the control is what it builds on."""
    policy = build(TINY, "memory_policy=xmem_faithful", "memory_policy.mem_every=10").policy
    assert (policy.max_working, policy.min_working, policy.max_long_term, policy.mem_every) == (10, 5, 10000, 10)
    for config in (TINY, compose(TINY)):
        for preset, size in (("xmem_faithful", 10), ("xmem", 6)):
            assert build(config, f"memory_policy={preset}").policy.max_working == size
    assert build(TINY, memory_policy="xmem_faithful").policy == build_policy("xmem_faithful")


def test_a_preset_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "memory_policy").mkdir()
    (tmp_path / "memory_policy" / "mine.yaml").write_text("defaults: [xmem_faithful, _self_]\nmin_working: 4\n")
    (tmp_path / "mine.yaml").write_text(MINE.replace("fifo", "mine").replace("num_maskmem: 4", "max_working: 8"))
    policy = build(tmp_path / "mine.yaml", "memory_policy.mem_every=7").policy
    assert (policy.mem_every, policy.max_working, policy.min_working, policy.max_long_term) == (7, 8, 4, 10000)
    (tmp_path / "mine.yaml").write_text(MINE)
    assert build(tmp_path / "mine.yaml", "memory_policy=mine", "~memory_policy.num_maskmem").policy.max_working == 10


def test_a_choice_is_a_copy() -> None:
    choice_config("memory_policy", "fifo").num_maskmem = 2
    assert choice_config("memory_policy", "fifo").num_maskmem == 7
    compose(TINY, ["memory_policy=fifo"]).memory_policy.num_maskmem = 2
    assert compose(TINY, ["memory_policy=fifo"]).memory_policy.num_maskmem == 7


def test_a_file_of_ours_that_changes_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(config_dir(), tmp_path / "configs")
    monkeypatch.setattr("sam2_mem.config.config_dir", lambda: tmp_path / "configs")
    file = tmp_path / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml"
    before = compose("sam2.1_hiera_t")
    assert compose("sam2.1_hiera_t") == before
    file.write_text(f"{file.read_text()}\npublished_as: another\n")
    assert compose("sam2.1_hiera_t").published_as == "another" != before.get("published_as")


def test_every_yaml_is_a_model_a_base_or_a_choice() -> None:
    groups = {p.relative_to(config_dir()).parts[0] for p in config_dir().rglob("*.yaml")}
    models = {Path(n).parts[1] for n in config_names()}
    choices = ("memory_policy", "memory_anchor", "memory_bound", "refiner", "embedder", "distiller", "attention")
    others = {"base", "training", *choices}
    assert groups - models <= others and not models & others


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        "configs/sam2.1/sam2.1_hiera_t",
        "sam2.1/sam2.1_hiera_t.yaml",
        "sam2.1_hiera_t.yaml",
        "sam2.1_hiera_t",
        str(config_dir() / "sam2.1" / "sam2.1_hiera_t.yaml"),
        config_dir() / "sam2.1" / "sam2.1_hiera_t.yaml",
    ],
)
def test_names_of_one_config(name: str | Path) -> None:
    assert compose(name) == compose(TINY)


def test_control_another_name_is_another_config() -> None:
    assert compose("sam2_hiera_t") != compose(TINY) != compose("sam2.1_hiera_s")


def test_names_work_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = compose(TINY)
    monkeypatch.chdir(tmp_path)
    assert compose(TINY) == compose("sam2.1_hiera_t") == here


def test_a_relative_path_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert compose("own/mine.yaml").model.image_size == 512


MINE = """
# @package _global_
defaults:
  - /sam2.1/sam2.1_hiera_t
  - override /memory_policy: fifo
  - _self_
model:
  image_size: 512
memory_policy:
  num_maskmem: 4
tracker:
  history: 3
"""


def test_a_config_of_ones_own_builds_on_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    predictor = build(tmp_path / "mine.yaml", "predictor.non_overlap_masks=true")
    assert (predictor.image_size, predictor.policy.num_maskmem, predictor.tracker_settings.history) == (512, 4, 3)
    assert predictor.settings.non_overlap_masks


def test_a_composed_config_builds_and_is_not_changed() -> None:
    config = compose(TINY)
    before = OmegaConf.to_yaml(config)
    predictor = build(config, "model.image_size=256", "memory_policy=fifo", "memory_policy.num_maskmem=3")
    assert (predictor.image_size, predictor.policy.num_maskmem) == (256, 3)
    assert OmegaConf.to_yaml(config) == before
    with pytest.raises(ConfigError, match="expected an override of a key that exists, got 'model.no_such=1'"):
        build(config, "model.no_such=1")


@pytest.mark.parametrize(
    "override",
    [
        "model.image_size=256",
        "model.image_encoder.trunk.stages=[1,1,1,1]",
        "memory_policy.num_maskmem=3",
        "memory_policy=fifo",
        "tracker.history=5",
        "tracker.storage_device=cpu",
        "tracker.storage_device=null",
        "tracker.memory_dtype='float32'",
        "tracker.max_padding=1e-1",
        "+tracker.extra=1",
    ],
)
def test_overrides_of_a_name_and_of_a_composed_config_agree(override: str) -> None:
    assert compose(TINY, [override]) == compose(compose(TINY), [override])


# -- SAM 2's own override keys ----------------------------------------------------------------------------------------

LEGACY = [
    ("++model.fill_hole_area=5", lambda p: p.tracker_settings.fill_hole_area, 5),
    ("++model.non_overlap_masks=true", lambda p: p.settings.non_overlap_masks, True),
    ("++model.non_overlap_masks_for_mem_enc=true", lambda p: p.tracker_settings.non_overlap_masks_for_mem_enc, True),
    (
        "++model.clear_non_cond_mem_around_input=true",
        lambda p: p.tracker_settings.clear_non_cond_mem_around_input,
        True,
    ),
    (
        "++model.clear_non_cond_mem_for_multi_obj=true",
        lambda p: p.tracker_settings.clear_non_cond_mem_for_multi_obj,
        True,
    ),
    ("++model.max_cond_frames_in_attn=4", lambda p: p.policy.max_cond_frames_in_attn, 4),
    ("++model.max_obj_ptrs_in_encoder=8", lambda p: p.policy.max_obj_ptrs_in_encoder, 8),
    ("++model.memory_temporal_stride_for_eval=2", lambda p: p.policy.memory_temporal_stride_for_eval, 2),
    ("++model.only_obj_ptrs_in_the_past_for_eval=false", lambda p: p.policy.only_obj_ptrs_in_the_past_for_eval, False),
    ("++model.binarize_mask_from_pts_for_mem_enc=true", lambda p: p.model.binarize_prompted_masks, True),
    ("++model.sigmoid_scale_for_mem_enc=10.0", lambda p: p.model.mem_enc_scale, 10.0),
    ("++model.sigmoid_bias_for_mem_enc=-5.0", lambda p: p.model.mem_enc_bias, -5.0),
    ("++model.multimask_output_in_sam=false", lambda p: p.model.candidates.enabled, False),
    ("++model.multimask_output_for_tracking=false", lambda p: p.model.candidates.tracking, False),
    ("++model.image_size=512", lambda p: p.image_size, 512),
    (
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.9",
        lambda p: p.model.sam_mask_decoder.dynamic_multimask_stability_thresh,
        0.9,
    ),
    (
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
        lambda p: p.model.sam_mask_decoder.dynamic_multimask_via_stability,
        True,
    ),
]


@pytest.fixture(scope="module")
def plain() -> SAM2VideoPredictor:
    return build(TINY)


@pytest.mark.parametrize(("override", "value", "wanted"), LEGACY, ids=[o for o, _, _ in LEGACY])
@pytest.mark.parametrize("composed", [False, True], ids=["by name", "composed"])
def test_sam2s_override(override: str, value: Any, wanted: Any, composed: bool, plain: SAM2VideoPredictor) -> None:
    assert value(plain) != wanted, "the control: without the override it is something else"
    config = compose(TINY) if composed else TINY
    assert value(build(config, override)) == wanted
    assert value(build(config, override.lstrip("+"))) == wanted


def test_switches_that_have_one_setting_here() -> None:
    build(TINY, "++model.add_all_frames_to_correct_as_cond=true", "++model.compile_image_encoder=False")
    with pytest.raises(ConfigError, match="compile with vos_optimized=True instead"):
        build(TINY, "++model.compile_image_encoder=true")


# -- post-processing --------------------------------------------------------------------------------------------------


def settings_of(predictor: SAM2VideoPredictor) -> tuple[Any, ...]:
    decoder = predictor.model.sam_mask_decoder
    return (
        predictor.tracker_settings.fill_hole_area,
        predictor.model.binarize_prompted_masks,
        decoder.dynamic_multimask_via_stability,
        decoder.dynamic_multimask_stability_delta,
        decoder.dynamic_multimask_stability_thresh,
    )


@pytest.mark.parametrize("composed", [False, True], ids=["by name", "composed"])
def test_postprocessing_is_what_sam2_does(composed: bool, plain: SAM2VideoPredictor) -> None:
    config = compose(TINY) if composed else TINY
    assert settings_of(build(config, apply_postprocessing=True)) == (8, True, True, 0.05, 0.98)
    assert settings_of(plain)[:3] == (0, False, False)
    assert compose_video(config) == compose(compose_video(config))


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("++model.fill_hole_area=3", (3, True, True, 0.05, 0.98)),
        ("tracker.fill_hole_area=0", (0, True, True, 0.05, 0.98)),
        ("model.binarize_prompted_masks=false", (8, False, True, 0.05, 0.98)),
        ("++model.binarize_mask_from_pts_for_mem_enc=false", (8, False, True, 0.05, 0.98)),
        ("model.dynamic_multimask_via_stability=false", (8, True, False, 0.05, 0.98)),
        ("++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.9", (8, True, True, 0.05, 0.9)),
    ],
)
@pytest.mark.parametrize("composed", [False, True], ids=["by name", "composed"])
def test_what_the_user_says_wins_over_postprocessing(override: str, wanted: tuple[Any, ...], composed: bool) -> None:
    config = compose(TINY) if composed else TINY
    assert settings_of(build(config, override, apply_postprocessing=True)) == wanted


# -- plain values reach constructors ----------------------------------------------------------------------------------


def config_objects(value: Any, path: str, seen: set[int]) -> Iterator[str]:
    """Places inside an object where a DictConfig or a ListConfig hangs."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, DictConfig | ListConfig):
        yield path
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from config_objects(inner, f"{path}[{key!r}]", seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for i, inner in enumerate(value):
            yield from config_objects(inner, f"{path}[{i}]", seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | torch.Tensor):
        yield from config_objects(vars(value), path, seen)


@pytest.mark.parametrize("name", [TINY, "configs/hiera_nano.yaml"])
def test_no_config_object_reaches_a_constructor(name: str) -> None:
    for config in (name, compose(name)):
        assert list(config_objects(build(config, apply_postprocessing=True), "predictor", set())) == []


@pytest.mark.parametrize("policy", policy_names())
def test_no_config_object_reaches_a_policy(policy: str) -> None:
    made = build_policy(policy)
    assert list(config_objects(made, "policy", set())) == []
    hash(made)


@pytest.mark.parametrize("value", [OmegaConf.create({"a": 1}), OmegaConf.create([1, 2])])
def test_control_config_objects_are_found(value: Any) -> None:
    predictor = build(TINY)
    predictor.model.image_encoder.trunk.stages = (value,)
    assert len(list(config_objects(predictor, "predictor", set()))) == 1


# -- Hydra around us --------------------------------------------------------------------------------------------------


@pytest.fixture
def own_configs(tmp_path: Path) -> Iterator[Path]:
    """A directory of a user's own program, and no Hydra but what the test starts; the one that the reference package
    starts when it is imported comes back afterwards."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("learning_rate: 0.5\n")
    _composed_of_ours.cache_clear()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    yield tmp_path / "conf"
    GlobalHydra.instance().hydra = outer


def test_a_running_hydra_is_left_as_it_was(own_configs: Path) -> None:
    from hydra import compose as hydra_compose

    with initialize_config_dir(str(own_configs), version_base=None):
        outer = GlobalHydra.instance().hydra
        assert build(TINY).image_size == 1024
        assert GlobalHydra.instance().hydra is outer
        assert hydra_compose("app").learning_rate == 0.5
    assert not GlobalHydra.instance().is_initialized()


def test_no_hydra_is_left_behind(own_configs: Path) -> None:
    build(TINY)
    assert not GlobalHydra.instance().is_initialized()


def test_a_running_hydra_is_left_as_it_was_after_a_mistake(own_configs: Path) -> None:
    with initialize_config_dir(str(own_configs), version_base=None):
        outer = GlobalHydra.instance().hydra
        with pytest.raises(ConfigError):
            compose(TINY, ["model.no_such=1"])
        with pytest.raises(ConfigError):
            compose("no_such_model")
        assert GlobalHydra.instance().hydra is outer


APP = """
import os
import hydra
from hydra.core.global_hydra import GlobalHydra
from sam2_mem import build_sam2_video_predictor

@hydra.main(version_base=None, config_path="conf", config_name="app")
def main(config):
    outer = GlobalHydra.instance().hydra
    predictor = build_sam2_video_predictor("configs/sam2.1/sam2.1_hiera_t.yaml", device="meta")
    assert GlobalHydra.instance().hydra is outer
    print("built", predictor.image_size, "with", config.learning_rate, os.getcwd())

main()
"""
SCRIPT = """
from hydra import compose, initialize
from sam2_mem import build_sam2_video_predictor

with initialize(version_base=None, config_path="conf"):
    predictor = build_sam2_video_predictor("sam2.1_hiera_t", device="meta")
    print("built", predictor.image_size, "with", compose("app").learning_rate)
"""


@pytest.mark.parametrize(
    ("program", "arguments"),
    [(APP, ["learning_rate=0.25", "hydra.job.chdir=true"]), pytest.param(SCRIPT, [], marks=ALL_ONLY)],
    ids=["main", "initialize"],
)
def test_inside_a_program_that_runs_hydra(program: str, arguments: list[str], own_configs: Path) -> None:
    script = own_configs.parent / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=own_configs.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert f"built 1024 with {0.25 if arguments else 0.5}" in done.stdout


# -- devices and modes ------------------------------------------------------------------------------------------------


def test_mode_and_device(caplog: pytest.LogCaptureFixture) -> None:
    predictor = build_sam2_video_predictor(micro_config(), device="auto", mode="train")
    assert predictor.model.training
    if not torch.cuda.is_available():
        assert build_sam2(micro_config(), device="cuda:0").device.type == "cpu"
        assert "CUDA is not available; using the CPU" in caplog.text
    assert "the weights are random" in caplog.text


def test_two_builds_share_nothing() -> None:
    a, b = build_sam2(micro_config(), device="cpu"), build_sam2(micro_config(), device="cpu")
    assert isinstance(a, SAM2) and isinstance(a, nn.Module)
    assert {p.data_ptr() for p in a.parameters()}.isdisjoint(p.data_ptr() for p in b.parameters())
