"""From a config to a model or a predictor. The only library file that knows Hydra and OmegaConf.

Configs are composed in a private Hydra context: a program that runs Hydra itself is not disturbed, and no config object
reaches a constructor.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from sam2_mem.checkpoint import build_with_weights, hub_checkpoint, load_part, part_fits
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.distiller import TokenDistiller
from sam2_mem.model.optimized import optimize
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.refine import Refiner
from sam2_mem.tracking.tracker import TrackerSettings
from sam2_mem.tracking.video_predictor import PredictorSettings, SAM2VideoPredictor

logger = logging.getLogger(__name__)

DISTILLER = "memory_encoder.distiller."
"""Prefix of what a token distiller has learned."""

NEW_PARTS = (DISTILLER, "bank_time.", "sensory.")
"""Prefixes of learned parts that official checkpoints lack."""

RANDOM = "random"
"""What to give as weights, or to write as a config's ``checkpoint``, for random ones; for a distiller, untrained ones."""

AUTO = "auto"
"""A config's ``distiller_checkpoint`` that is taken from its ``trained_distillers``."""

_CHOICES = {
    "memory_policy": "a memory policy",
    "memory_bound": "a bound on memory",
    "attention": "a way to read memory",
    "distiller": "a token distiller",
    "refiner": "a refiner",
    "embedder": "an embedder",
}
"""Config groups out of which one file is chosen by name."""

_GROUPS = ("base", "training", *_CHOICES)

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

_STABILITY = (
    "model.dynamic_multimask_via_stability=true",
    "model.dynamic_multimask_stability_delta=0.05",
    "model.dynamic_multimask_stability_thresh=0.98",
)
_VIDEO_POSTPROCESSING = ("model.binarize_prompted_masks=true", "tracker.fill_hole_area=8")


class ConfigError(ValueError):
    """A config, an override or a policy that does not exist or does not fit; says what does."""


# -- configs --------------------------------------------------------------------------------------------------------


def config_dir() -> Path:
    """Where the configs are: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


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
    overrides = [moved for moved in (_translate(o) for o in overrides) if moved is not None]
    if isinstance(config, DictConfig):
        return _overridden(config, overrides)
    directory, name = _locate(str(config))
    ours = config_dir().resolve()
    search = [] if directory.resolve() == ours else [f"hydra.searchpath=[file://{ours}]"]
    try:
        with _own_hydra(directory):
            composed = hydra_compose(name, overrides=[*overrides, *search])
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _explained(error, name) from error
    return composed


@contextmanager
def _own_hydra(directory: Path) -> Iterator[None]:
    """A Hydra of our own for a moment, whatever the program around it has initialised."""
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


def _locate(config: str) -> tuple[Path, str]:
    """Directory and name of a config given by short name or by path."""
    root = config_dir()
    wanted = config if config.endswith((".yaml", ".yml")) else f"{config}.yaml"
    short = wanted.removeprefix("configs/")
    if not Path(short).is_absolute() and (root / short).is_file() and Path(short).parts[0] not in _GROUPS:
        return root, short
    path = Path(wanted).expanduser()
    if path.is_file():
        return path.parent, path.name
    same_stem = [n.removeprefix("configs/") for n in config_names() if Path(n).name == wanted]
    if len(same_stem) == 1:
        return root, same_stem[0]
    valid = "\n  ".join(config_names())
    raise ConfigError(f"expected the name or the path of a model config, got {config!r}; names are:\n  {valid}")


def _translate(override: str) -> str | None:
    """An override with SAM 2's key replaced by ours; None for one that changes nothing here."""
    prefix = override[: len(override) - len(override.lstrip("+~"))]
    key, equals, value = override[len(prefix) :].partition("=")
    if key.startswith(_EXTRA_ARGS):
        key = "model." + key[len(_EXTRA_ARGS) :]
    if key in _FIXED:
        fixed, why = _FIXED[key]
        if value.lower() != fixed:
            raise ConfigError(f"expected {key}={fixed}, got {value}: {why}")
        return None
    if key in _MOVED:
        return f"{_MOVED[key]}={value}"
    return override if key == override[len(prefix) :].partition("=")[0] else f"{key}{equals}{value}"


def _overridden(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A composed config with ``key=value`` overrides; a policy, a refiner, an embedder may be chosen by name."""
    result = config.copy()
    OmegaConf.set_struct(result, False)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in _CHOICES:
            result[key] = _choice_config(key, value)
        elif not override.startswith("+") and OmegaConf.select(result, key, default=_Missing) is _Missing:
            raise ConfigError(f"expected an override of a key that exists, got {override!r}")
        else:
            OmegaConf.update(result, key, OmegaConf.from_dotlist([f"value={value}"]).value)
    return result


def compose_video(
    config: str | PathLike[str] | DictConfig, overrides: Sequence[str] = (), *, apply_postprocessing: bool = True
) -> DictConfig:
    """What :func:`build_sam2_video_predictor` builds from: :func:`compose`, with SAM 2's post-processing if asked for.

    To build from the result, say ``apply_postprocessing=False``: it is in it already.
    """
    extra = (*_STABILITY, *_VIDEO_POSTPROCESSING) if apply_postprocessing else ()
    return compose(config, [*extra, *overrides])


class _Missing:
    """Stands for a key that is not there."""


def _choice_config(group: str, name: str) -> DictConfig:
    if name not in _choice_names(group):
        raise _unknown_choice(group, name)
    return OmegaConf.load(config_dir() / group / f"{name}.yaml")


def _unknown_choice(group: str, name: str) -> ConfigError:
    return ConfigError(f"expected {_CHOICES[group]} out of {', '.join(_choice_names(group))}, got {name!r}")


def _without_model(name: str) -> ConfigError:
    return ConfigError(f"expected a section 'model' in {name}, got none; build on ours with defaults: [/base/sam2.1, _self_]")


def _explained(error: Exception, name: str) -> ConfigError:
    text = str(error)
    missing = [g for g in _CHOICES if f"{g}/" in text] if isinstance(error, MissingConfigException) else []
    if missing:
        return _unknown_choice(missing[0], text.split(f"{missing[0]}/")[1].split("'")[0])
    if "Key 'model' is not in struct" in f"{text} {error.__cause__}":
        return _without_model(name)
    if isinstance(error, ConfigCompositionException) and "Could not override" in text:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        key = text.split("'")[1] if "'" in text else "it"
        return ConfigError(f"expected overrides of keys that exist in {name}, but {key} does not{cause}".replace("\n", " "))
    return ConfigError(f"could not compose {name}: {text}")


# -- objects --------------------------------------------------------------------------------------------------------


def _make(config: DictConfig, what: str, **given: Any) -> Any:
    """Instantiate ``config``; the constructor gets plain Python values, and what is ``given`` as it is."""
    try:
        return instantiate(config, _convert_="all", _partial_=True)(**given) if given else instantiate(config, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"could not build {what}: {cause}") from error


def _settings(kind: type, config: DictConfig | None) -> Any:
    values = {} if config is None else OmegaConf.to_container(config, resolve=True)
    valid = list(kind.__dataclass_fields__)
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ConfigError(f"expected keys out of {', '.join(valid)}, got {', '.join(unknown)}")
    return kind(**values)


def build_policy(policy: str | DictConfig | MemoryPolicy) -> MemoryPolicy:
    """A policy from its name, its config, or as it is."""
    if isinstance(policy, MemoryPolicy):
        return policy
    config = _choice_config("memory_policy", policy) if isinstance(policy, str) else policy
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise ConfigError(f"expected a policy's name, its config with a _target_, or a MemoryPolicy, got {policy!r}")
    made = _make(config, "the memory policy")
    if not isinstance(made, MemoryPolicy):
        raise ConfigError(f"expected _target_ of the memory policy to be a MemoryPolicy, got {type(made).__name__}")
    return made


def _bounded(policy: MemoryPolicy, config: DictConfig) -> MemoryPolicy:
    """The policy in the wrapper of the group ``memory_bound``, if one is chosen."""
    part = config.get("memory_bound")
    if part is None or part.get("_target_") is None:
        return policy
    try:
        made = _make(part, "the bound on memory", policy=policy)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"could not build the bound on memory: {error}") from error
    if not isinstance(made, MemoryPolicy):
        raise ConfigError(f"expected _target_ of the memory_bound to be a policy, got {type(made).__name__}")
    return made


def _chosen(config: DictConfig, group: str, what: Callable[[Any], bool]) -> Any:
    """A refiner or an embedder, or None where none is chosen."""
    part = config.get(group)
    if part is None or part.get("_target_") is None:
        return None
    made = _make(part, f"the {group}")
    if not what(made):
        raise ConfigError(f"expected _target_ of the {group} to be {_CHOICES[group]}, got {type(made).__name__}")
    return made


def checkpoint_dir() -> Path:
    """Where this project's own weights are: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "checkpoints"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "checkpoints"


def _weights(given: Any, configured: str | None) -> Any:
    """The weights to load: those given, else those of the config, where a bare file name is one of this project's own;
    "random" stands for none."""
    chosen = configured if given is None else given
    if chosen is None or chosen == RANDOM:
        return None
    ours = given is None and Path(chosen).name == chosen
    return checkpoint_dir() / chosen if ours else chosen


def _build_model(config: DictConfig, ckpt_path: Any, device: str, mode: str) -> SAM2:
    if mode not in ("eval", "train"):
        raise ConfigError(f"expected mode 'eval' or 'train', got {mode!r}")
    if config.get("model") is None:
        raise _without_model("the config")
    target = _usable(device)
    if ckpt_path is not None and target.type == "meta":
        raise ConfigError(f"expected a device that can hold weights, got meta with '{ckpt_path}'; give 'random' weights there")
    if ckpt_path is None:
        logger.warning("no checkpoint given: the weights are random")
        with torch.device("meta" if target.type == "meta" else "cpu"):
            model = _make(config.model, "the network")
    else:
        model = build_with_weights(lambda: _make(config.model, "the network"), ckpt_path, allow_missing=NEW_PARTS)
    distilled = _distiller_weights(config, model.memory_encoder.distiller, ckpt_path)
    if distilled is not None:
        load_part(model.memory_encoder.distiller, DISTILLER, distilled)
    return model.to(target).train(mode == "train")


def _distiller_weights(config: DictConfig, distiller: TokenDistiller, weights: Any) -> Any:
    """The file of a learned distiller; "auto" is one that the config names for this distiller and its own checkpoint."""
    given = config.get("distiller_checkpoint", AUTO)
    if given != AUTO:
        return _weights(None, given)
    own = _weights(None, config.get("checkpoint"))
    known = config.get("trained_distillers") or {}
    if own is None or weights is None or not distiller.trained_as or not _same_file(own, weights):
        return None
    file = _weights(None, known.get(distiller.trained_as))
    if file is None or not part_fits(distiller, DISTILLER, file):
        logger.warning("no weights for a distiller %s; it takes means until it is trained", distiller.trained_as)
        return None
    return file


def _same_file(one: str | PathLike[str], other: str | PathLike[str]) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _usable(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is the best there is, "cuda" without CUDA is the CPU with a warning."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"expected a device such as auto, cpu, cuda, cuda:1 or mps, got {device!r}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        logger.warning("device %s asked for, but CUDA is not available; using the CPU", target)
        return torch.device("cpu")
    return target


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
    """The network alone, for :class:`SAM2ImagePredictor` and for training. Arguments as in
    :func:`build_sam2_video_predictor`."""
    _refuse_unknown(
        kwargs, "build_sam2", "config_file, ckpt_path, device, mode, hydra_overrides_extra, apply_postprocessing"
    )
    extra = _STABILITY if apply_postprocessing else ()
    config = compose(config_file, [*extra, *hydra_overrides_extra])
    return _build_model(config, _weights(ckpt_path, config.get("checkpoint")), device, mode)


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
        config_file: see :func:`compose`. ckpt_path: ``.pt`` or ``.safetensors`` file or address; None for random weights.
        device: "cuda", "cpu", "mps" or "auto". mode: "eval" or "train".
        hydra_overrides_extra: see :func:`compose`. apply_postprocessing: fill small holes, choose single masks by stability,
            binarise prompted masks for memory, as SAM 2 does by default.
        vos_optimized: on a CUDA device, half precision and CUDA graphs, see :mod:`sam2_mem.model.optimized`; on others the
            network is compiled with ``torch.compile`` and the first frames are slow.
        memory_policy: a name (``"fifo"``), a config or an instance; None for the one in the config.

    Raises:
        ConfigError: (a ValueError) for names, keys and values that do not fit. CheckpointError: for weights that do not.
        TypeError: for unknown arguments.
    """
    _refuse_unknown(
        kwargs,
        "build_sam2_video_predictor",
        "config_file, ckpt_path, device, mode, hydra_overrides_extra, apply_postprocessing, vos_optimized, memory_policy",
    )
    config = compose_video(config_file, hydra_overrides_extra, apply_postprocessing=apply_postprocessing)
    policy = build_policy(config.get("memory_policy") if memory_policy is None else memory_policy)
    policy = _bounded(policy, config)
    model = _build_model(config, _weights(ckpt_path, config.get("checkpoint")), device, mode)
    _check_slots(policy, model)
    _note_unused(policy, model)
    refiner = _chosen(config, "refiner", lambda made: isinstance(made, Refiner))
    embedder = _chosen(config, "embedder", callable)
    if isinstance(embedder, nn.Module):
        embedder.to(model.device)
    if vos_optimized:
        _optimize(model)
    return SAM2VideoPredictor(
        model,
        policy,
        tracker=_settings(TrackerSettings, config.get("tracker")),
        settings=_settings(PredictorSettings, config.get("predictor")),
        refiner=refiner,
        embedder=embedder,
    )


def _check_slots(policy: MemoryPolicy, model: SAM2) -> None:
    """A policy that reads more memory maps than the temporal code has rows would fail in the middle of a video."""
    rows, wanted = model.maskmem_tpos_enc.shape[0], getattr(policy.unwrapped, "num_maskmem", 0)
    if wanted > rows:
        raise ConfigError(f"expected memory_policy.num_maskmem <= {rows} (model.num_maskmem), got {wanted}")


def _note_unused(policy: MemoryPolicy, model: SAM2) -> None:
    """Say so when a learned part of the model waits for a policy that does not ask for it."""
    if model.sensory is not None and not policy.needs.sensory:
        logger.warning("sensory memory is not used: %s keeps no state of it; xmem does", type(policy.unwrapped).__name__)
    distiller = model.memory_encoder.distiller
    if distiller.merged_time is not None and type(policy.unwrapped).condense is MemoryPolicy.condense:
        name, own = type(policy.unwrapped).__name__, type(distiller).__name__
        logger.warning("%s never merges frames: %s hands none over; memory_policy=distilled does", own, name)


def _optimize(model: SAM2) -> None:
    if model.device.type == "cuda":
        optimize(model)
        return
    model.image_encoder.compile()
    model.memory_encoder.compile()
    model.memory_attention.compile(dynamic=True)


class TrainingJob(NamedTuple):
    """What a file of ``configs/training`` asks for: a network in training mode, its memory policy, and the plan (a
    ``sam2_mem.training.plan.TrainingPlan``); ``fresh``: the weights are random; ``teacher``: network and policy to learn
    from, or None."""

    model: SAM2
    policy: MemoryPolicy
    plan: Any
    fresh: bool
    teacher: tuple[SAM2, MemoryPolicy] | None = None


def compose_training(config: str | PathLike[str], overrides: Sequence[str] = ()) -> DictConfig:
    """A training config by the name of a file in ``configs/training`` or by path, with Hydra overrides such as
    ``plan.optimisation.rate=1e-4``."""
    directory, name = _locate_training(str(config))
    search = [f"hydra.searchpath=[file://{config_dir().resolve()}]"]
    try:
        with _own_hydra(directory):
            return hydra_compose(name, overrides=[*overrides, *search])
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _explained(error, name) from error


def _locate_training(config: str) -> tuple[Path, str]:
    wanted = config if config.endswith((".yaml", ".yml")) else f"{config}.yaml"
    ours = config_dir() / "training"
    path = ours / Path(wanted).name if (ours / Path(wanted).name).is_file() else Path(wanted).expanduser()
    if not path.is_file():
        valid = ", ".join(sorted(p.stem for p in ours.glob("*.yaml")))
        raise ConfigError(f"expected the path of a training config or a name out of {valid}, got {config!r}")
    return path.parent, path.name


def build_training(config: DictConfig, *, init: str | PathLike[str] | None = None, device: str = "cpu") -> TrainingJob:
    """What a composed training config describes.

    ``init``: weights to start from, an official checkpoint for example; None for the config's own ``init``, which may be
    ``own`` for the weights that the network's config names, and else random ones. A distiller starts untrained unless
    ``model_overrides`` name its ``distiller_checkpoint``.
    """
    network = compose(config.model, list(config.model_overrides))
    if network.get("distiller_checkpoint") == AUTO:
        network.distiller_checkpoint = RANDOM
    plan = _make(config.plan, "the training plan")
    torch.manual_seed(plan.seed)
    weights = _initial(network, init, config.get("init"))
    model = _build_model(network, weights, device, "train")
    policy = build_policy(config.memory_policy)
    _check_slots(policy, model)
    return TrainingJob(model, policy, plan, weights is None, _teacher(config.get("teacher"), init, device))


OWN = "own"


def _initial(network: DictConfig, given: Any, configured: str | None) -> Any:
    """Weights that training starts from."""
    chosen = configured if given is None else given
    return _weights(None, network.get("checkpoint")) if chosen == OWN else _weights(chosen, None)


def _teacher(
    config: DictConfig | None, init: str | PathLike[str] | None, device: str
) -> tuple[SAM2, MemoryPolicy] | None:
    """The network and the policy under ``teacher``; with ``--init`` the teacher has those weights too, unless it names its
    own."""
    if config is None:
        return None
    network = compose(config.model, list(config.get("model_overrides") or []))
    named = config.get("init")
    weights = _initial(network, init if named in (None, OWN) else None, named)
    if weights is None:
        raise ConfigError("expected a teacher with weights, got none; give --init, or teacher.init a file or 'own'")
    return _build_model(network, weights, device, "eval"), build_policy(config.memory_policy)


def build_sam2_hf(model_id: str, **kwargs: Any) -> SAM2:
    """:func:`build_sam2` of an official model on the Hugging Face hub, e.g. ``facebook/sam2.1-hiera-tiny``."""
    config, path = hub_checkpoint(model_id)
    return build_sam2(config, path, **kwargs)


def build_sam2_video_predictor_hf(model_id: str, **kwargs: Any) -> SAM2VideoPredictor:
    """:func:`build_sam2_video_predictor` of an official model on the Hugging Face hub."""
    config, path = hub_checkpoint(model_id)
    return build_sam2_video_predictor(config, path, **kwargs)
