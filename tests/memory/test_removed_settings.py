"""Settings that a policy no longer has: a config that names one works at its default, and only there."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from sam2_mem.build_sam import build_policy
from sam2_mem.config import ConfigError, choice_config, policy_names

REMOVED = [(name, key) for name in ("sam2long", "xmem") for key in type(build_policy(name)).removed]


def config(name: str, **values: Any) -> Any:
    return OmegaConf.create({**choice_config("memory_policy", name), **values})


@pytest.mark.parametrize("name, key", REMOVED)
def test_a_removed_setting_works_at_its_default(name: str, key: str) -> None:
    named = config(name, **{key: type(build_policy(name)).removed[key]})
    OmegaConf.set_struct(named, True)
    OmegaConf.set_readonly(named, True)
    with pytest.warns(FutureWarning, match=rf"{key} was removed, .* remove the key"):
        assert build_policy(named) == build_policy(name)
    assert key in named, "the config is the caller's"


@pytest.mark.parametrize("name, key", REMOVED)
def test_a_removed_variant_is_an_error(name: str, key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"without {key}, got {key}='another'.*was removed, since .*; remove the key"
    ):
        build_policy(config(name, **{key: "another"}))


def test_control_a_setting_that_never_was_is_an_error_of_its_own() -> None:
    with pytest.raises(ConfigError, match="unexpected keyword argument 'clone'"):
        build_policy(config("sam2long", clone="keep"))


@pytest.mark.parametrize("name", policy_names())
def test_no_setting_is_both_removed_and_there(name: str) -> None:
    policy = type(build_policy(name))
    assert policy.removed.keys().isdisjoint(policy.__dataclass_fields__)
