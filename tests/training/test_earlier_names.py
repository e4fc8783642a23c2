"""Training configs and imports of earlier versions work on, with a warning that names what to write now."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

from sam2_mem._moved import NAMES
from sam2_mem.build_sam import build_training
from sam2_mem.config import ConfigError, compose_training
from sam2_mem.training.clips import ClipSpec
from sam2_mem.training.initialization import Initialization
from sam2_mem.training.plan import Stage, TrainingPlan

SPEC = ClipSpec(num_frames=2, max_gap=8, size=128)
EARLIER = """
defaults:
  - memory_policy: fifo
  - _self_
model: hiera_nano
model_overrides: []
plan:
  _target_: sam2_mem.training.plan.TrainingPlan
  seed: 3
  start: {_target_: sam2_mem.training.start.Start, gain: 2.0}
  validation:
    _target_: sam2_mem.training.checks.Validation
    every: 5
    sets:
      drawn:
        _target_: sam2_mem.training.checks.SampledClips
        source: {_target_: sam2_mem.training.procedural.ProceduralClips, levels: {easy: 1.0}}
        wish: {_target_: sam2_mem.training.clips.ClipWish, num_frames: 2, max_gap: 8, size: 128}
  stages:
    - _target_: sam2_mem.training.plan.Stage
      until: 7
      clips: {_target_: sam2_mem.training.procedural.ProceduralClips, levels: {easy: 1.0}}
      wish: {_target_: sam2_mem.training.clips.ClipWish, num_frames: 2, max_gap: 8, size: 128}
      rollout: {_target_: sam2_mem.training.rollout.RolloutSettings, truncate: 4}
"""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    (tmp_path / "earlier.yaml").write_text(EARLIER)
    return tmp_path / "earlier.yaml"


@pytest.mark.filterwarnings("default:sam2_mem.* is now :FutureWarning")
def test_a_config_of_an_earlier_version_builds_the_same_plan(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sam2_mem.training.start", "sam2_mem.training.checks"):  # they warn when they are imported first
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.warns(FutureWarning) as warned:
        plan = build_training(compose_training(earlier)).plan
    texts = [str(w.message) for w in warned]
    for name in (
        "training.start is now",
        "training.clips.ClipWish is now",
        "plan.Stage.wish is now clip_spec",
        "SampledClips.wish is now",
    ):
        assert any(name in text for text in texts), (name, texts)
    assert isinstance(plan, TrainingPlan) and plan.start == Initialization(gain=2.0) and plan.seed == 3
    assert plan.stages[0].clip_spec == plan.validation.sets["drawn"].clip_spec == SPEC


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize(("config", "size"), [("hiera_nano", 128), ("distil_nano", 256)])
def test_the_configs_of_this_version_warn_of_nothing(config: str, size: int) -> None:
    assert build_training(compose_training(config)).plan.stages[0].clip_spec.size == size


def test_overrides_of_an_earlier_key(earlier: Path) -> None:
    with pytest.warns(FutureWarning, match="'wish' is now 'clip_spec'"):
        composed = compose_training("hiera_nano", ["plan.stages.0.wish.size=64", "plan.seed=1"])
    assert composed.plan.stages[0].clip_spec.size == 64 and composed.plan.seed == 1
    assert compose_training(earlier, ["plan.stages.0.wish.size=64"]).plan.stages[0].wish.size == 64
    with pytest.raises(ConfigError, match="plan.stages.0.wishes"):
        compose_training("hiera_nano", ["plan.stages.0.wishes.size=64"])


def test_arguments_and_attributes_of_an_earlier_name() -> None:
    with pytest.warns(FutureWarning, match="Stage.wish is now clip_spec"):
        stage = Stage(until=1, clips=None, wish=SPEC)
    with pytest.warns(FutureWarning, match="Stage.wish is now clip_spec"):
        assert stage.wish is stage.clip_spec is SPEC
    with pytest.raises(TypeError, match="got wish and clip_spec"):
        Stage(until=1, clips=None, wish=SPEC, clip_spec=SPEC)
    with pytest.raises(TypeError, match="clip_spec"):
        Stage(until=1, clips=None)


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("sam2_mem.training", "sam2_mem.synthetic"))])
def test_names_of_earlier_versions_are_found(name: str) -> None:
    earlier_module, _, earlier_name = name.partition(":")
    module, _, current_name = NAMES[name].partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a module that is gone once per process only
        value = getattr(import_module(earlier_module), earlier_name)
    assert value is getattr(import_module(module), current_name)
