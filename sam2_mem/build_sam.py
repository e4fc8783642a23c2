"""From a config to a network, a predictor or a training job.

``build_sam2_video_predictor`` and ``build_sam2`` take the arguments of SAM 2's functions of the same names.
Configs are composed by ``sam2_mem.config``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf, flag_override
from torch import nn

from sam2_mem._moved import renamed
from sam2_mem.checkpoint import OFFICIAL_MODELS, build_with_weights, hub_checkpoint, load_part, part_fits
from sam2_mem.config import (
    CHOICES,
    PARTS,
    STABILITY,
    ConfigError,
    checkpoint_dir,
    choice_config,
    compose,
    compose_video,
    missing_model,
)
from sam2_mem.memory.policy import MemoryPolicy, Merging
from sam2_mem.model.acceleration.half_weights import HalfWeights
from sam2_mem.model.distiller import TokenDistiller
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.refine import Refiner
from sam2_mem.tracking.tracker import TrackerSettings
from sam2_mem.tracking.video_predictor import PredictorSettings, SAM2VideoPredictor, SAM2VideoPredictorVOS

logger = logging.getLogger(__name__)

DISTILLER = "memory_encoder.distiller."
"""Prefix of what a token distiller has learned."""

HF_MODEL_ID_TO_FILENAMES = OFFICIAL_MODELS
"""SAM 2's name of the table."""

NEW_PARTS = (DISTILLER, "bank_time.", "sensory.")
"""Prefixes of learned parts that official checkpoints lack."""

RANDOM = "random"
"""What to give as weights, or to write as a config's ``checkpoint``, for random ones; for a distiller, untrained ones."""

AUTO = "auto"
"""A config's ``distiller_checkpoint`` that is taken from its ``trained_distillers``."""

OWN = "own"
"""A training config's ``init`` that stands for the weights of its network's config."""


# -- parts of a predictor -----------------------------------------------------------------------------------------------


def _instantiate(config: DictConfig, label: str, **arguments: Any) -> Any:
    """Instantiate ``config``; the constructor gets plain Python values, and ``arguments`` as they are."""
    try:
        if arguments:
            return instantiate(config, _convert_="all", _partial_=True)(**arguments)
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        raise ConfigError(f"could not build {label}: {error.__cause__ or error}") from error


def _settings(kind: type, config: DictConfig | None) -> Any:
    values: Any = {} if config is None else OmegaConf.to_container(config, resolve=True)
    valid = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ConfigError(f"expected keys out of {', '.join(valid)}, got {', '.join(unknown)}")
    return kind(**values)


def build_policy(policy: str | DictConfig | MemoryPolicy) -> MemoryPolicy:
    """A policy from its name, its config, or as it is."""
    if isinstance(policy, MemoryPolicy):
        return policy
    config = choice_config("memory_policy", policy) if isinstance(policy, str) else policy
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise ConfigError(f"expected a policy's name, its config with a _target_, or a MemoryPolicy, got {policy!r}")
    built = _instantiate(_with_parts(_without_removed(config)), "the memory policy")
    if not isinstance(built, MemoryPolicy):
        raise ConfigError(f"expected _target_ of the memory policy to be a MemoryPolicy, got {type(built).__name__}")
    return built


def _with_parts(config: DictConfig) -> DictConfig:
    """``config`` with files in place of the names of its parts (``PARTS``)."""
    named = {key: group for key, group in PARTS.items() if isinstance(config.get(key), str)}
    if not named:
        return config
    complete = copy(config)
    with flag_override(complete, ["readonly", "struct"], [False, False]):
        for key, group in named.items():
            part = _with_parts(choice_config(group, config[key]))
            complete[key] = None if part["_target_"] is None else part
    return complete


def _without_removed(config: DictConfig) -> DictConfig:
    """``config`` without settings that its policy no longer has, which may be at their default only."""
    module, _, name = config["_target_"].rpartition(".")
    try:
        policy = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return config  # instantiating it tells what is wrong
    removed = {key: default for key, default in getattr(policy, "removed", {}).items() if key in config}
    for key, default in removed.items():
        if config[key] != default:
            raise ConfigError(
                f"expected {name} without {key}, got {key}={config[key]!r}: this variant was removed, since no preset and "
                f"no measured result used it; remove the key, which gives {key}={default!r}"
            )
        text = f"{name}.{key} was removed, its default behaviour is the only one; remove the key"
        warnings.warn(text, FutureWarning, stacklevel=3)
    remaining = copy(config)
    with flag_override(remaining, ["readonly", "struct"], [False, False]):
        for key in removed:
            del remaining[key]
    return remaining


def bound_policy(policy: MemoryPolicy, bound: str, **fields: Any) -> MemoryPolicy:
    """``policy`` in a wrapper that keeps its memory within a budget.

    Args:
        policy: any.
        bound: a name out of the group ``memory_bound``.
        **fields: in place of those of its config.

    Raises:
        ConfigError: an unknown name, or a value that the wrapper does not take.
    """
    return _bounded(
        policy, OmegaConf.create({"memory_bound": OmegaConf.merge(choice_config("memory_bound", bound), fields)})
    )


def _bounded(policy: MemoryPolicy, config: DictConfig) -> MemoryPolicy:
    """The policy in the wrapper of the group ``memory_bound``, if one is chosen."""
    bound_config = config.get("memory_bound")
    if bound_config is None or bound_config.get("_target_") is None:
        return policy
    try:
        bounded = _instantiate(bound_config, "the bound on memory", policy=policy)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"could not build the bound on memory: {error}") from error
    if not isinstance(bounded, MemoryPolicy):
        raise ConfigError(f"expected _target_ of the memory_bound to be a policy, got {type(bounded).__name__}")
    return bounded


def _optional_part(config: DictConfig, group: str, is_valid: Callable[[Any], bool]) -> Any:
    """A refiner or an embedder, or None where none is chosen."""
    part_config = config.get(group)
    if part_config is None or part_config.get("_target_") is None:
        return None
    part = _instantiate(part_config, f"the {group}")
    if not is_valid(part):
        raise ConfigError(f"expected _target_ of the {group} to be {CHOICES[group]}, got {type(part).__name__}")
    return part


def check_slots(policy: MemoryPolicy, model: SAM2) -> None:
    """ConfigError for a policy that reads more memory maps than the temporal code has rows: it would fail in the middle of a
    video."""
    rows, num_maskmem = model.maskmem_tpos_enc.shape[0], getattr(policy.unwrapped, "num_maskmem", 0)
    if num_maskmem > rows:
        raise ConfigError(f"expected memory_policy.num_maskmem <= {rows} (model.num_maskmem), got {num_maskmem}")


def _note_unused(policy: MemoryPolicy, model: SAM2) -> None:
    """Say so when a learned part of the model waits for a policy that does not ask for it."""
    if model.sensory is not None and not policy.needs.sensory:
        logger.warning(
            "sensory memory is not used: %s keeps no state of it; xmem does", type(policy.unwrapped).__name__
        )
    distiller = model.memory_encoder.distiller
    if distiller.merged_time is not None and not isinstance(policy.unwrapped, Merging):
        names = type(distiller).__name__, type(policy.unwrapped).__name__
        logger.warning("%s never merges frames: %s hands none over; memory_policy=distilled does", *names)


# -- networks and weights -----------------------------------------------------------------------------------------------


def _weights_file(requested: Any, configured: str | None) -> Any:
    """The weights to load: those requested, else those of the config, where a bare file name is one of this project's own;
    "random" stands for none."""
    weights = configured if requested is None else requested
    if weights is None or weights == RANDOM:
        return None
    ours = requested is None and Path(weights).name == weights
    return checkpoint_dir() / weights if ours else weights


def _build_model(config: DictConfig, ckpt_path: Any, device: str, mode: str) -> SAM2:
    if mode not in ("eval", "train"):
        raise ConfigError(f"expected mode 'eval' or 'train', got {mode!r}")
    if config.get("model") is None:
        raise missing_model("the config")
    target = _available(device)
    if ckpt_path is not None and target.type == "meta":
        raise ConfigError(
            f"expected a device that can hold weights, got meta with '{ckpt_path}'; give 'random' weights there"
        )
    _note_file_name(config, ckpt_path)
    if ckpt_path is None:
        logger.warning("no checkpoint given: the weights are random")
        with torch.device("meta" if target.type == "meta" else "cpu"):
            model = _instantiate(config.model, "the network")
    else:
        model = build_with_weights(
            lambda: _instantiate(config.model, "the network"), ckpt_path, allow_missing=_may_be_missing(config, mode)
        )
    distilled = _distiller_weights(config, model.memory_encoder.distiller, ckpt_path)
    if distilled is not None:
        load_part(model.memory_encoder.distiller, DISTILLER, distilled)
    model = model.to(target).train(mode == "train")
    if target.type == "cuda" and mode == "eval":
        model.runner = HalfWeights(model)
    return model


def _note_file_name(config: DictConfig, path: Any) -> None:
    """Some published files have equal shapes and belong to different configs: their names tell them apart, or nothing does."""
    name = config.get("published_as")
    if name is None or path is None or Path(path).stem == name:
        return
    family = name.split("_")[0]
    advice = (
        f"use configs/{family}/{Path(path).stem}.yaml" if Path(path).stem.startswith(family) else "nothing can tell"
    )
    logger.warning(
        "expected %s.pt for this config, got '%s': files of its other configs have the same shapes and would load, with worse "
        "masks; %s",
        name,
        path,
        advice,
    )


def _may_be_missing(config: DictConfig, mode: str) -> tuple[str, ...]:
    """Prefixes that a file may lack: a distiller's too, if it takes means without weights, gets others or is to be trained."""
    target = (config.get("distiller") or {}).get("_target_")
    if (
        target is None
        or getattr(get_class(target), "starts_as_means", True)
        or mode == "train"
        or config.get("distiller_checkpoint", AUTO) not in (AUTO, RANDOM, None)
    ):
        return NEW_PARTS
    return tuple(part for part in NEW_PARTS if part != DISTILLER)


def _distiller_weights(config: DictConfig, distiller: TokenDistiller, weights: Any) -> Any:
    """The file of a learned distiller; "auto" is one that the config names for this distiller and its own checkpoint."""
    configured = config.get("distiller_checkpoint", AUTO)
    if configured != AUTO:
        return _weights_file(None, configured)
    checkpoint = _weights_file(None, config.get("checkpoint"))
    if checkpoint is None or weights is None or not distiller.trained_as or not _same_file(checkpoint, weights):
        return None
    file = _weights_file(None, (config.get("trained_distillers") or {}).get(distiller.trained_as))
    if file is None or not part_fits(distiller, DISTILLER, file):
        logger.warning("no weights for a distiller %s; it takes means until it is trained", distiller.trained_as)
        return None
    return file


def _same_file(a: str | PathLike[str], b: str | PathLike[str]) -> bool:
    return Path(a).expanduser().resolve() == Path(b).expanduser().resolve()


def _available(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is the best there is, "cuda" without CUDA is the CPU with a warning."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"expected a device such as auto, cpu, cuda, cuda:1 or mps, got {device!r}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        logger.warning("device %s asked for, but CUDA is not available; using the CPU", target)
        return torch.device("cpu")
    return target


# -- the public builders ------------------------------------------------------------------------------------------------


def _refuse_unknown(kwargs: dict[str, Any], function: str, valid: str) -> None:
    if kwargs:
        raise TypeError(f"{function} got unknown arguments {sorted(kwargs)}; it takes {valid}")


def build_sam2(
    config_file: str | PathLike[str] | DictConfig,
    ckpt_path: str | PathLike[str] | None = None,
    device: str = "cuda",
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    **kwargs: Any,
) -> SAM2:
    """The network alone, for ``SAM2ImagePredictor`` and for training. Arguments and errors as in
    ``build_sam2_video_predictor``."""
    _refuse_unknown(
        kwargs, "build_sam2", "config_file, ckpt_path, device, mode, hydra_overrides_extra, apply_postprocessing"
    )
    extra = STABILITY if apply_postprocessing else ()
    config = compose(config_file, [*extra, *hydra_overrides_extra])
    return _build_model(config, _weights_file(ckpt_path, config.get("checkpoint")), device, mode)


def build_sam2_video_predictor(
    config_file: str | PathLike[str] | DictConfig,
    ckpt_path: str | PathLike[str] | None = None,
    device: str = "cuda",
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    vos_optimized: bool = False,
    *,
    memory_policy: str | DictConfig | MemoryPolicy | None = None,
    **kwargs: Any,
) -> SAM2VideoPredictor:
    """A video predictor.

    Args:
        config_file: see ``sam2_mem.config.compose``.
        ckpt_path: ``.pt`` or ``.safetensors`` file or address; None for the config's own weights, "random" for random ones.
        device: "cuda", "cpu", "mps" or "auto".
        mode: "eval" or "train".
        hydra_overrides_extra: see ``sam2_mem.config.compose``.
        apply_postprocessing: fill small holes, choose single masks by stability, binarise prompted masks for memory, as
            SAM 2 does by default.
        vos_optimized: on a CUDA device, half precision and CUDA graphs, see
            ``sam2_mem.model.acceleration.cuda_graphs``; on others the network is compiled with ``torch.compile`` and
            the first frames are slow.
        memory_policy: a name (``"fifo"``), a config or an instance; None for the one in the config.

    Raises:
        ConfigError: a ValueError, for names, keys and values that do not fit.
        CheckpointError: for weights that do not fit.
        TypeError: for unknown arguments.
    """
    _refuse_unknown(
        kwargs,
        "build_sam2_video_predictor",
        "config_file, ckpt_path, device, mode, hydra_overrides_extra, apply_postprocessing, vos_optimized, memory_policy",
    )
    config = compose_video(config_file, hydra_overrides_extra, apply_postprocessing=apply_postprocessing)
    policy = build_policy(config.get("memory_policy") if memory_policy is None else memory_policy)
    model = _build_model(config, _weights_file(ckpt_path, config.get("checkpoint")), device, mode)
    return predictor_of(config, model, policy, kind=SAM2VideoPredictorVOS if vos_optimized else SAM2VideoPredictor)


def build_network(config: DictConfig) -> SAM2:
    """The network of a composed config, with the weights that its constructor gives it."""
    return _instantiate(config.model, "the network")


def predictor_of(
    config: DictConfig, model: SAM2, policy: MemoryPolicy, *, kind: type[SAM2VideoPredictor] = SAM2VideoPredictor
) -> SAM2VideoPredictor:
    """A predictor of a network and a policy, with all else as a composed config says.

    Raises:
        ConfigError: a ValueError, for values that do not fit.
    """
    policy = _bounded(policy, config)
    check_slots(policy, model)
    _note_unused(policy, model)
    refiner = _optional_part(config, "refiner", lambda part: isinstance(part, Refiner))
    embedder = _optional_part(config, "embedder", callable)
    if isinstance(embedder, nn.Module):
        embedder.to(model.device)
    return kind(
        model,
        policy,
        tracker=_settings(TrackerSettings, config.get("tracker")),
        settings=_settings(PredictorSettings, config.get("predictor")),
        refiner=refiner,
        embedder=embedder,
    )


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2:
    """``build_sam2`` of a model on the Hugging Face hub, e.g. ``facebook/sam2.1-hiera-tiny``; see
    ``sam2_mem.checkpoint.hub_checkpoint``."""
    config, path, overrides = hub_checkpoint(model_id)
    return build_sam2(config, path, **_with_overrides(kwargs, overrides))


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """``build_sam2_video_predictor`` of a model on the Hugging Face hub, as ``build_sam2_hf``."""
    config, path, overrides = hub_checkpoint(model_id)
    return build_sam2_video_predictor(config, path, **_with_overrides(kwargs, overrides))


def _with_overrides(arguments: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A builder's arguments with overrides of the config before those that are in them."""
    return {**arguments, "hydra_overrides_extra": [*overrides, *arguments.get("hydra_overrides_extra", ())]}


# -- training -----------------------------------------------------------------------------------------------------------


class TrainingJob(NamedTuple):
    """What a file of ``configs/training`` asks for.

    Attributes:
        model: a network in training mode.
        policy: its memory policy.
        plan: a ``sam2_mem.training.plan.TrainingPlan``.
        fresh: whether the weights are random.
        teacher: network and policy to learn from, or None.
    """

    model: SAM2
    policy: MemoryPolicy
    plan: Any
    fresh: bool
    teacher: tuple[SAM2, MemoryPolicy] | None = None


def build_training(config: DictConfig, *, init: str | PathLike[str] | None = None, device: str = "cpu") -> TrainingJob:
    """What a composed training config describes. A distiller starts untrained unless ``model_overrides`` name its
    ``distiller_checkpoint``. Its ``parts`` name files of weights for parts of the network, a trained trunk for example.

    Args:
        config: see ``sam2_mem.config.compose_training``.
        init: weights to start from, an official checkpoint for example; None for the config's own ``init``, which may be
            ``own`` for the weights that the network's config names, and else random ones.
        device: as in ``build_sam2_video_predictor``.
    """
    network = compose(config.model, list(config.model_overrides))
    if network.get("distiller_checkpoint") == AUTO:
        network.distiller_checkpoint = RANDOM
    plan = _instantiate(config.plan, "the training plan")
    torch.manual_seed(plan.seed)
    weights = _initial_weights(network, init, config.get("init"))
    model = _build_model(network, weights, device, "train")
    for prefix, file in (config.get("parts") or {}).items():
        load_part(model.get_submodule(prefix), f"{prefix}.", file)
    policy = build_policy(config.memory_policy)
    check_slots(policy, model)
    return TrainingJob(model, policy, plan, weights is None, _teacher(config.get("teacher"), init, device))


def _initial_weights(network: DictConfig, requested: Any, configured: str | None) -> Any:
    """Weights that training starts from."""
    weights = configured if requested is None else requested
    return _weights_file(None, network.get("checkpoint")) if weights == OWN else _weights_file(weights, None)


def _teacher(
    config: DictConfig | None, init: str | PathLike[str] | None, device: str
) -> tuple[SAM2, MemoryPolicy] | None:
    """The network and the policy under ``teacher``; with ``--init`` the teacher has those weights too, unless it names its
    own."""
    if config is None:
        return None
    network = compose(config.model, list(config.get("model_overrides") or []))
    configured = config.get("init")
    weights = _initial_weights(network, init if configured in (None, OWN) else None, configured)
    if weights is None:
        raise ConfigError("expected a teacher with weights, got none; give --init, or teacher.init a file or 'own'")
    return _build_model(network, weights, device, "eval"), build_policy(config.memory_policy)


__getattr__ = renamed(__name__)
