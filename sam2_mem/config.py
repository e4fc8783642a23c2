"""Composing configs: their names, Hydra, the override keys of SAM 2.

Configs are composed in a private Hydra context: a program that runs Hydra itself is not disturbed, and no config object
reaches a constructor.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from os import PathLike
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

logger = logging.getLogger(__name__)

CHOICES = {
    "memory_policy": "a memory policy",
    "memory_bound": "a bound on memory",
    "attention": "a way to read memory",
    "distiller": "a token distiller",
    "refiner": "a refiner",
    "embedder": "an embedder",
}
"""Config groups out of which one file is chosen by name."""

PARTS = {"short": "memory_policy", "host": "memory_policy", "long": "memory_anchor"}
"""Keys of a memory policy that may be the name of a file of a group, instead of a mapping."""

STABILITY = (
    "model.dynamic_multimask_via_stability=true",
    "model.dynamic_multimask_stability_delta=0.05",
    "model.dynamic_multimask_stability_thresh=0.98",
)
"""Overrides: single masks are chosen by stability, a part of SAM 2's post-processing."""

_VIDEO_POSTPROCESSING = ("model.binarize_prompted_masks=true", "tracker.fill_hole_area=8")

_GROUPS = ("base", "training", "memory_anchor", *CHOICES)

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
    return choice_names("memory_policy")


def choice_names(group: str) -> list[str]:
    """Names of the files of a group of ``CHOICES``."""
    root = config_dir() / group
    return sorted(p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.yaml"))


def _locate(config: str) -> tuple[Path, str]:
    """Directory and name of a model config given by short name or by path: a path of a file that exists is that file, a
    bare name is one of ours."""
    root = config_dir()
    path = _users_file(config)
    is_ours = path is not None and path.resolve().is_relative_to(root.resolve())
    if path is not None and is_ours:
        config = f"configs/{path.resolve().relative_to(root.resolve()).as_posix()}"
    elif path is not None:
        _refuse_reference_config(path)
        return path.parent, path.name
    file_name = _with_suffix(config)
    short = file_name.removeprefix("configs/")
    same_stem = [n.removeprefix("configs/") for n in config_names() if Path(n).name == file_name]
    name = short if f"configs/{short}" in config_names() else same_stem[0] if len(same_stem) == 1 else None
    if name is None:
        valid = "\n  ".join(config_names())
        raise ConfigError(f"expected the name or the path of a model config, got {config!r}; names are:\n  {valid}")
    _note_hidden(config, root / name)
    return root, name


def _users_file(config: str) -> Path | None:
    """The file that a config's name is the path of; None where it is a bare name, or names no file."""
    path = Path(config).expanduser()
    if path.suffix == ".yml":
        raise ConfigError(f"expected a config called .yaml, got '{config}', which Hydra does not read; rename it")
    if path.name == config:
        has_suffix = path.suffix == ".yaml" and path.is_file()
        return path if has_suffix and not _is_ours(path.name) else None
    candidates = (path, path.with_name(_with_suffix(path.name)))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _is_ours(file_name: str) -> bool:
    return any(Path(name).name == file_name for name in config_names())


def _note_hidden(config: str, ours: Path) -> None:
    """Say so where a file in this folder has the name of one of ours, and is another."""
    path = Path(_with_suffix(config))
    if path.is_file() and not path.samefile(ours):
        logger.warning("%s is read, not the '%s' in this folder; for that one, say ./%s", ours, path, path)


def _locate_training(config: str) -> tuple[Path, str]:
    """Directory and name of a training config given by the name of one of ours or by path."""
    root = config_dir() / "training"
    ours = root / _with_suffix(config).removeprefix("configs/training/")
    path = _users_file(config) if Path(config).name != config or not ours.is_file() else None
    if path is not None:
        return path.parent, path.name
    if not ours.is_file():
        valid = ", ".join(sorted(p.stem for p in root.glob("*.yaml")))
        raise ConfigError(f"expected the path of a training config or a name out of {valid}, got {config!r}")
    _note_hidden(config, ours)
    return root, ours.name


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
    translated = [ours for ours in map(_translate, _listed(overrides)) if ours is not None]
    if isinstance(config, DictConfig):
        return _overridden(config, translated)
    directory, name = _locate(str(config))
    logger.info("config: %s", directory / name)
    return _compose_file(directory, name, translated)


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
    logger.info("training config: %s", directory / name)
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
    if name not in choice_names(group):
        raise _unknown_choice(group, name)
    return _compose_file(config_dir(), f"{group}/{name}")[group]


def _compose_file(directory: Path, name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A file of ``directory``, which may build on its neighbours and on ours. What is ours alone is composed once for as long
    as no file of ours changes: Hydra takes a tenth of a second."""
    ours, place = config_dir().resolve(), directory.resolve()
    search = () if place == ours else (f"hydra.searchpath=[{_quoted(f'file://{ours}')}]",)
    if place.is_relative_to(ours) and not any(override.lstrip("+~").startswith("hydra") for override in overrides):
        return pickle.loads(_composed_of_ours(place, name, (*overrides, *search), _versions(ours)))
    return _composed(place, name, (*overrides, *search))


def _versions(directory: Path) -> tuple[tuple[Path, int], ...]:
    """Every YAML file below ``directory`` and when it was written."""
    return tuple((path, path.stat().st_mtime_ns) for path in directory.rglob("*.yaml"))


@lru_cache(maxsize=256)
def _composed_of_ours(
    directory: Path, name: str, overrides: tuple[str, ...], versions: tuple[tuple[Path, int], ...]
) -> bytes:
    """Pickled: a config is thousands of objects, and slow to copy."""
    return pickle.dumps(_composed(directory, name, overrides))


def _composed(directory: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    try:
        with _private_hydra(directory):
            return hydra_compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _explained(error, name) from error


def _quoted(text: str) -> str:
    """A string in Hydra's grammar, whatever characters it has."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


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


def _listed(overrides: Sequence[str]) -> Sequence[str]:
    if isinstance(overrides, str):
        raise ConfigError(f"expected a list of overrides, got one string: {overrides!r}; put it into brackets")
    return overrides


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


_REFERENCE_SIZES = {(96, 7): "t", (96, 11): "s", (112, 16): "b+", (144, 36): "l"}
"""(width of the first stage, blocks of the third stage) of SAM 2's trunk -> the letter of the size."""


def _refuse_reference_config(path: Path) -> None:
    """ConfigError for a config of SAM 2's own, which names classes of the package ``sam2``; says which of ours, with which
    overrides, is the same."""
    try:
        config = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, OSError, ValueError):
        return  # Hydra tells what is wrong
    if not isinstance(config, DictConfig) or "model" not in config:
        return
    if str(OmegaConf.select(config, "model._target_", default="")).startswith("sam2."):
        raise ConfigError(_advice_for_reference_config(config, path))


def _advice_for_reference_config(config: DictConfig, path: Path) -> str:
    trunk = "model.image_encoder.trunk."
    stages = OmegaConf.select(config, f"{trunk}stages", default=(2, 3, 16, 3))
    size = _REFERENCE_SIZES.get((OmegaConf.select(config, f"{trunk}embed_dim", default=112), stages[2]), "b+")
    family = "sam2.1" if OmegaConf.select(config, "model.no_obj_embed_spatial", default=False) else "sam2"
    name = f"configs/{family}/{family}_hiera_{size}.yaml"
    ours = compose(name)
    changes = []
    for key, value in config.model.items():
        is_plain = not OmegaConf.is_config(value) and f"model.{key}" not in _FIXED and key != "_target_"
        translated = _translate(f"model.{key}={value}") if is_plain else None
        place, _, text = (translated or "").partition("=")
        current = OmegaConf.select(ours, place, default=_MISSING) if place else _MISSING
        if current is not _MISSING and str(current).lower() != text.lower():
            changes.append(f"++model.{key}={text}")
    overrides = f" with the overrides {' '.join(changes)}" if changes else ""
    return f"'{path}' is a config of SAM 2's own, of classes in 'sam2'; take {name}{overrides} in its place"


def _unknown_choice(group: str, name: str) -> ConfigError:
    label = CHOICES.get(group, "a rule of long-term memory")
    return ConfigError(f"expected {label} out of {', '.join(choice_names(group))}, got {name!r}")


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
