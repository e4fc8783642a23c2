"""Composing configs: their names, Hydra, the override keys of SAM 2.

Configs are composed in a private Hydra context: a program that runs Hydra itself is not disturbed, and no config object
reaches a constructor.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from os import PathLike
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

CHOICES = {
    "memory_policy": "a memory policy",
    "memory_bound": "a bound on memory",
    "attention": "a way to read memory",
    "distiller": "a token distiller",
    "refiner": "a refiner",
    "embedder": "an embedder",
}
"""Config groups out of which one file is chosen by name."""

STABILITY = (
    "model.dynamic_multimask_via_stability=true",
    "model.dynamic_multimask_stability_delta=0.05",
    "model.dynamic_multimask_stability_thresh=0.98",
)
"""Overrides: single masks are chosen by stability, a part of SAM 2's post-processing."""

_VIDEO_POSTPROCESSING = ("model.binarize_prompted_masks=true", "tracker.fill_hole_area=8")

_GROUPS = ("base", "training", *CHOICES)

# SAM 2's override keys that live elsewhere here.
_MOVED = {
    "model.non_overlap_masks": "predictor.non_overlap_masks",
    "model.fill_hole_area": "tracker.fill_hole_area",
    "model.non_overlap_masks_for_mem_enc": "tracker.non_overlap_masks_for_mem_enc",
    "model.clear_non_cond_mem_around_input": "tracker.clear_non_cond_mem_around_input",
    "model.clear_non_cond_mem_for_multi_obj": "tracker.clear_non_cond_mem_for_multi_obj",
    "model.max_obj_ptrs_in_encoder": "memory_policy.max_obj_ptrs_in_encoder",
    "model.max_cond_frames_in_attn": "memory_policy.max_cond_frames_in_attn",
    "model.memory_temporal_stride_for_eval": "memory_policy.memory_temporal_stride_for_eval",
    "model.only_obj_ptrs_in_the_past_for_eval": "memory_policy.only_obj_ptrs_in_the_past_for_eval",
    "model.binarize_mask_from_pts_for_mem_enc": "model.binarize_prompted_masks",
    "model.sigmoid_scale_for_mem_enc": "model.mem_enc_scale",
    "model.sigmoid_bias_for_mem_enc": "model.mem_enc_bias",
    "model.multimask_output_in_sam": "model.multimask_output",
}

_EXTRA_ARGS = "model.sam_mask_decoder_extra_args."

# SAM 2's switches that have one setting here: key -> (that setting, why).
_FIXED = {
    "model.add_all_frames_to_correct_as_cond": ("true", "a correction always takes effect here"),
    "model.compile_image_encoder": ("false", "compile with vos_optimized=True instead"),
}

_MISSING = object()


class ConfigError(ValueError):
    """A config, an override or a policy that does not exist or does not fit; says what does."""


# -- files and names ----------------------------------------------------------------------------------------------------


def config_dir() -> Path:
    """Where the configs are: inside an installed package, or beside it in a checkout."""
    return _data_dir("configs")


def checkpoint_dir() -> Path:
    """Where this project's own weights are: inside an installed package, or beside it in a checkout."""
    return _data_dir("checkpoints")


def _data_dir(name: str) -> Path:
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[1] / name


def config_names() -> list[str]:
    """Short names of all model configs, e.g. ``configs/sam2.1/sam2.1_hiera_t.yaml``."""
    root = config_dir()
    names = (p.relative_to(root) for p in sorted(root.rglob("*.yaml")))
    return [f"configs/{n.as_posix()}" for n in names if n.parts[0] not in _GROUPS]


def policy_names() -> list[str]:
    """Names of all memory policies and presets, as ``memory_policy=`` takes them."""
    return _choice_names("memory_policy")


def _choice_names(group: str) -> list[str]:
    root = config_dir() / group
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def _locate(config: str) -> tuple[Path, str]:
    """Directory and name of a model config given by short name or by path."""
    root = config_dir()
    file_name = _with_suffix(config)
    short = file_name.removeprefix("configs/")
    if not Path(short).is_absolute() and (root / short).is_file() and Path(short).parts[0] not in _GROUPS:
        return root, short
    path = Path(file_name).expanduser()
    if path.is_file():
        return path.parent, path.name
    same_stem = [n.removeprefix("configs/") for n in config_names() if Path(n).name == file_name]
    if len(same_stem) == 1:
        return root, same_stem[0]
    valid = "\n  ".join(config_names())
    raise ConfigError(f"expected the name or the path of a model config, got {config!r}; names are:\n  {valid}")


def _locate_training(config: str) -> tuple[Path, str]:
    """Directory and name of a training config given by the name of one of ours or by path."""
    root = config_dir() / "training"
    path = root / Path(_with_suffix(config)).name
    if not path.is_file():
        path = Path(_with_suffix(config)).expanduser()
    if not path.is_file():
        valid = ", ".join(sorted(p.stem for p in root.glob("*.yaml")))
        raise ConfigError(f"expected the path of a training config or a name out of {valid}, got {config!r}")
    return path.parent, path.name


def _with_suffix(name: str) -> str:
    return name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"


# -- composing ----------------------------------------------------------------------------------------------------------


def compose(config: str | PathLike[str] | DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """The full config of a model, a tracker and a policy.

    Args:
        config: a short name (``configs/sam2.1/sam2.1_hiera_t.yaml``, ``sam2.1_hiera_t``), the path of a YAML file of your
            own (which may build on ours), or a composed config.
        overrides: in Hydra's syntax, ``memory_policy=fifo``, ``memory_policy.num_maskmem=5``, ``model.image_size=512``;
            SAM 2's own keys (``++model.fill_hole_area=8``) are understood.

    Raises:
        ConfigError: names what is valid.
    """
    translated = [ours for ours in map(_translate, overrides) if ours is not None]
    if isinstance(config, DictConfig):
        return _overridden(config, translated)
    return _compose_file(*_locate(str(config)), translated)


def compose_video(
    config: str | PathLike[str] | DictConfig, overrides: Sequence[str] = (), *, apply_postprocessing: bool = True
) -> DictConfig:
    """What ``build_sam2_video_predictor`` builds from: ``compose``, with SAM 2's post-processing if asked for.

    To build from the result, say ``apply_postprocessing=False``: it is in it already.
    """
    extra = (*STABILITY, *_VIDEO_POSTPROCESSING) if apply_postprocessing else ()
    return compose(config, [*extra, *overrides])


def compose_training(config: str | PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """A training config by the name of a file in ``configs/training`` or by path, with Hydra overrides such as
    ``plan.optimisation.rate=1e-4``."""
    directory, name = _locate_training(str(config))
    try:
        return _compose_file(directory, name, overrides)
    except ConfigError:
        renamed = [_with_current_key(override) for override in overrides]
        if renamed == list(overrides):
            raise
        composed = _compose_file(directory, name, renamed)
        warnings.warn(
            f"sam2_mem: of {overrides} the key 'wish' is now 'clip_spec'; change it", FutureWarning, stacklevel=2
        )
        return composed


def choice_config(group: str, name: str) -> DictConfig:
    """One file of a group of ``CHOICES``, composed: a preset lists only its differences from what it builds on."""
    if name not in _choice_names(group):
        raise _unknown_choice(group, name)
    return deepcopy(_compose_choice(config_dir(), group, name))


@cache
def _compose_choice(directory: Path, group: str, name: str) -> DictConfig:
    return _compose_file(directory, f"{group}/{name}")[group]


def _compose_file(directory: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A file of ``directory``, which may build on its neighbours and on ours."""
    ours = config_dir().resolve()
    search = [] if directory.resolve() == ours else [f"hydra.searchpath=[file://{ours}]"]
    try:
        with _private_hydra(directory):
            return hydra_compose(name, overrides=[*overrides, *search])
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _explained(error, name) from error


@contextmanager
def _private_hydra(directory: Path) -> Iterator[None]:
    """A Hydra of our own while this lasts, whatever the program around it has initialised."""
    singleton = GlobalHydra.instance()
    outer = singleton.hydra
    singleton.clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            with initialize_config_dir(str(directory.resolve()), version_base="1.2"):
                yield
    finally:
        GlobalHydra.instance().hydra = outer


# -- overrides ----------------------------------------------------------------------------------------------------------


def _translate(override: str) -> str | None:
    """An override with SAM 2's key replaced by ours; None for one that changes nothing here."""
    key, equals, value = override.lstrip("+~").partition("=")
    if key in _FIXED:
        setting, reason = _FIXED[key]
        if value.lower() != setting:
            raise ConfigError(f"expected {key}={setting}, got {value}: {reason}")
        return None
    if key.startswith(_EXTRA_ARGS):
        return f"model.{key.removeprefix(_EXTRA_ARGS)}{equals}{value}"
    return f"{_MOVED[key]}={value}" if key in _MOVED else override


def _with_current_key(override: str) -> str:
    """An override of a training config, with the key of an earlier version replaced."""
    key, equals, value = override.partition("=")
    return ".".join("clip_spec" if part == "wish" else part for part in key.split(".")) + equals + value


def _overridden(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A composed config with ``key=value`` overrides; a policy, a refiner, an embedder may be chosen by name."""
    result = config.copy()
    OmegaConf.set_struct(result, False)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in CHOICES:
            result[key] = choice_config(key, value)
        elif not override.startswith("+") and OmegaConf.select(result, key, default=_MISSING) is _MISSING:
            raise ConfigError(f"expected an override of a key that exists, got {override!r}")
        else:
            OmegaConf.update(result, key, OmegaConf.from_dotlist([f"value={value}"]).value)
    return result


# -- errors -------------------------------------------------------------------------------------------------------------


def missing_model(name: str) -> ConfigError:
    """The error for a config without a model."""
    return ConfigError(
        f"expected a section 'model' in {name}, got none; build on ours with defaults: [/base/sam2.1, _self_]"
    )


def _unknown_choice(group: str, name: str) -> ConfigError:
    return ConfigError(f"expected {CHOICES[group]} out of {', '.join(_choice_names(group))}, got {name!r}")


def _explained(error: Exception, name: str) -> ConfigError:
    """Hydra's error in words of ours."""
    text = str(error)
    missing = [g for g in CHOICES if f"{g}/" in text] if isinstance(error, MissingConfigException) else []
    if missing:
        return _unknown_choice(missing[0], text.split(f"{missing[0]}/")[1].split("'")[0])
    if "Key 'model' is not in struct" in f"{text} {error.__cause__}":
        return missing_model(name)
    if isinstance(error, ConfigCompositionException) and "Could not override" in text:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        key = text.split("'")[1] if "'" in text else "it"
        return ConfigError(
            f"expected overrides of keys that exist in {name}, but {key} does not{cause}".replace("\n", " ")
        )
    return ConfigError(f"could not compose {name}: {text}")
