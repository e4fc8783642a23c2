"""Which file a config's name stands for, in folders called as people call them, and configs that are not ours."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

import pytest
from helpers import needs_reference
from omegaconf import OmegaConf

from sam2_mem import config as config_module
from sam2_mem.config import ConfigError, compose, compose_training, compose_video, config_dir

NANO = config_dir() / "hiera_nano.yaml"
OURS, THEIRS = 128, 96
"""Image size of the hiera_nano config, and of a user's copy of it."""


def users_copy(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = NANO.read_text()
    assert text.count(f"image_size: {OURS}") == 1
    path.write_text(text.replace(f"image_size: {OURS}", f"image_size: {THEIRS}"))
    return path


def size_of(name: str | Path) -> int:
    return compose(name).model.image_size


def test_a_path_is_the_users_file_and_a_bare_name_is_ours(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    users_copy(tmp_path / "hiera_nano.yaml")
    users_copy(tmp_path / "mine" / "hiera_nano.yaml")
    users_copy(tmp_path / "configs" / "hiera_nano.yaml")
    for path in (
        "./hiera_nano.yaml",
        "mine/hiera_nano.yaml",
        "./mine/hiera_nano",
        "mine/../hiera_nano.yaml",
        "configs/hiera_nano.yaml",
        "configs/hiera_nano",
    ):
        assert size_of(path) == size_of(tmp_path / path) == THEIRS
        assert f"config: {Path(path).with_suffix('.yaml')}" in caplog.text
    monkeypatch.setenv("HOME", str(tmp_path))
    assert size_of("~/hiera_nano.yaml") == THEIRS
    assert "is read, not the" not in caplog.text
    for name in ("hiera_nano.yaml", "hiera_nano"):
        caplog.clear()
        assert size_of(name) == OURS
        assert f"config: {NANO}" in caplog.text and "for that one, say ./hiera_nano.yaml" in caplog.text
    shutil.rmtree(tmp_path / "configs")
    (tmp_path / "hiera_nano.yaml").unlink()
    caplog.clear()
    assert size_of("configs/hiera_nano.yaml") == size_of("hiera_nano") == size_of(NANO) == OURS
    assert "is read, not the" not in caplog.text


def test_a_training_config_by_path_is_the_users_file(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    name = "hiera_nano.yaml"
    text = (config_dir() / "training" / name).read_text()
    ours = compose_training("hiera_nano").plan.seed
    (tmp_path / name).write_text(text)
    assert (
        compose_training("hiera_nano").plan.seed
        == compose_training("configs/training/hiera_nano.yaml").plan.seed
        == ours
    )
    assert "for that one, say ./hiera_nano.yaml" in caplog.text
    (tmp_path / name).write_text(text.replace("\n  seed: 0\n", "\n  seed: 12345\n", 1))
    for path in ("./hiera_nano.yaml", tmp_path / "hiera_nano.yaml", "./hiera_nano"):
        assert compose_training(path).plan.seed == 12345 != ours


@pytest.mark.parametrize("name", ["é (1), o'x[2]$y", "a&b", 'q"uote', "back\\slash'", "end\\", "a, b: {c}", "日本 ~"])
def test_our_own_folder_and_the_users_may_be_called_anything(name, tmp_path, monkeypatch):
    ours = tmp_path / name / "configs"
    shutil.copytree(config_dir(), ours)
    monkeypatch.setattr(config_module, "config_dir", lambda: ours)
    own = tmp_path / f"user {name}" / "my.yaml"
    own.parent.mkdir()
    own.write_text("# @package _global_\ndefaults: [/base/sam2.1, _self_]\nmodel: {image_size: 512}\n")
    assert size_of(own) == 512
    assert size_of("hiera_nano") == OURS
    assert OmegaConf.select(compose_training("hiera_nano"), "plan.seed") is not None


@pytest.mark.parametrize("make", [compose, compose_training])
def test_a_yml_is_refused_not_half_read(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    users_copy(tmp_path / "mine.yml")
    for name in ("mine.yml", "./mine.yml", tmp_path / "mine.yml"):
        with pytest.raises(ConfigError, match=r"expected a config called \.yaml, got '.*mine\.yml'.*rename it"):
            make(name)


def test_overrides_in_one_string_are_refused():
    with pytest.raises(ConfigError, match=r"expected a list of overrides, got one string: 'memory_policy=fifo'"):
        compose("hiera_nano", "memory_policy=fifo")


@needs_reference
@pytest.mark.parametrize(
    "name", ["sam2/sam2_hiera_t", "sam2.1/sam2.1_hiera_s", "sam2.1/sam2.1_hiera_b+", "sam2/sam2_hiera_l"]
)
def test_a_config_of_sam2s_own_names_ours(name, tmp_path):
    spec = importlib.util.find_spec("sam2")
    path = Path(spec.origin).parent / "configs" / f"{name}.yaml"
    with pytest.raises(
        ConfigError, match=rf"is a config of SAM 2's own.*; take configs/{name.replace('+', '[+]')}.yaml in its place"
    ):
        compose_video(path)
    changed = tmp_path / "changed.yaml"
    text = path.read_text().replace("image_size: 1024", "image_size: 512").replace("num_maskmem: 7", "num_maskmem: 5")
    changed.write_text(text)
    with pytest.raises(ConfigError) as caught:
        compose_video(changed)
    advice = str(caught.value)
    assert "with the overrides ++model.num_maskmem=5 ++model.image_size=512 in its place" in advice
    taken = compose_video(f"configs/{name}.yaml", ["++model.num_maskmem=5", "++model.image_size=512"])
    assert (taken.model.num_maskmem, taken.model.image_size) == (5, 512)
