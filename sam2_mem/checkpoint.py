"""Weights: read files of the SAM 2 family, load them strictly, and say everything that does not fit.

Official files are ``torch.save({"model": state_dict})``. This project's own small models, and files of transformers, are
``.safetensors``. ``sam2_mem.checkpoint_names`` knows what others call the parts of the network.
Nothing is unpickled but tensors and plain containers (``weights_only=True``).
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from iopath.common.file_io import HTTPURLHandler, PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sam2_mem.checkpoint_names import has_2_1_entries, hiera_size, network_of, official_names
from sam2_mem.files import sha256_of as sha256_of  # for those who import it from here

logger = logging.getLogger(__name__)

HOW_TO_DOWNLOAD = "run checkpoints/download_ckpts.sh or `sam2-mem download NAME` to download the official files"

_VIDEO_MODELS = ("sam2_video", "edgetam_video", "sam3_video", "sam3_tracker_video")
"""Kinds of transformers' models, in their config.json, that hold memory."""
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+)")
_FEW_FIT = 0.1
"""Share of a model's entries below which a file is taken to be of something else."""
_MOST_LISTED = 12
"""Entries of such a file that are listed."""
_SAM2 = {"SAM 2.0", "SAM 2.1"}
"""Families whose networks differ in little more than sizes, so that all that does not fit is worth reading."""


ARCHIVE = b"PK\x03\x04"
"""How the files of ``torch.save`` begin, since 2020."""

_OTHER_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS, which stands for the weights; fetch them with `git lfs pull`",
    b"<": "a web page; the address gave it in place of the weights",
}
"""How files begin that come in the place of weights -> what they are."""


class CheckpointError(ValueError):
    """A file that cannot be read as weights, or weights that do not fit the model."""


class OfficialModel(NamedTuple):
    """One published model: its configuration and the name of its weights file."""

    config: str
    filename: str


class HubCheckpoint(NamedTuple):
    """A configuration name, the local path of the weights that belong to it, and overrides of the configuration."""

    config: str
    path: Path
    overrides: tuple[str, ...] = ()


OFFICIAL_MODELS: Mapping[str, OfficialModel] = {
    f"facebook/{family}-hiera-{size.replace('_', '-')}": OfficialModel(
        f"configs/{family}/{family}_hiera_{letter}.yaml", f"{family}_hiera_{size}.pt"
    )
    for family in ("sam2", "sam2.1")
    for size, letter in (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))
}


OTHER_MODELS: Mapping[str, OfficialModel] = {
    "facebook/EdgeTAM": OfficialModel("configs/edgetam/edgetam.yaml", "edgetam.pt"),
    "wanglab/MedSAM2": OfficialModel("configs/medsam2/medsam2_t512.yaml", "MedSAM2_latest.pt"),
} | {
    f"yunyangx/efficient-track-anything/{name}": OfficialModel(f"configs/efficienttam/{name}.yaml", f"{name}.pt")
    for name in (f"efficienttam_{size}{kind}" for size in ("ti", "s") for kind in ("", "_1", "_2", "_512x512"))
}
"""Published models of others on the Hugging Face Hub; a repository of several files is named with one of them."""


def read_state_dict(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a local ``.pt`` or ``.safetensors`` file, whatever it is called.

    Returns:
        Key, as in official SAM 2 files, -> tensor on the CPU, in the file's dtype: at least one entry, every floating-point
            value finite. Tensors of a ``.pt`` file are mapped from disk, not copied.

    Raises:
        CheckpointError: the file is missing, damaged or not one of weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint file, got '{path}', which is not one; {HOW_TO_DOWNLOAD}")
    state = _read_safetensors(path) if _is_safetensors(path) else _find_weights(_unpickle(path), path)
    _refuse_non_finite(state, path)
    return official_names(state, path)


def load_checkpoint(
    module: nn.Module, path_or_url: str | PathLike[str], *, allow_missing: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Copy the weights of a file or http(s) address into a module, in the module's own dtype and device.

    Args:
        module: the model to fill.
        path_or_url: a local path, or an address, which is downloaded once (``$FVCORE_CACHE``, else
            ``~/.torch/iopath_cache``).
        allow_missing: prefixes of keys that the file may lack, each as a whole: a file that holds some entries under
            a prefix must hold all. Absent entries keep the value that the module's constructor gave them, which for
            the learned parts that official files lack means "as if the part were not there".

    Returns:
        The keys of ``module`` that the file lacks.

    Raises:
        CheckpointError: with every key that does not fit; the module is then as it was.
    """
    state = _under_own_names(read_state_dict(local_path(path_or_url)), module.state_dict(), path_or_url)
    absent = _absent(module, state, path_or_url, allow_missing)
    if any(value.is_meta for value in module.state_dict().values()):
        raise CheckpointError("expected a module with storage, got one on the meta device; call .to_empty(device=...)")
    module.load_state_dict(state, strict=False)
    return absent


def build_with_weights(
    build: Callable[[], nn.Module], path_or_url: str | PathLike[str], *, allow_missing: tuple[str, ...] = ()
) -> nn.Module:
    """What ``build`` makes, on the CPU, with the weights of a file; arguments and errors of ``load_checkpoint``.

    A file that lacks nothing leaves nothing to initialise, which is half the time of building a large network.
    """
    state = read_state_dict(local_path(path_or_url))
    with torch.device("cpu"), _WithoutRandomness():
        module = build()
    state = _under_own_names(state, module.state_dict(), path_or_url)
    if _absent(module, state, path_or_url, allow_missing):
        with torch.device("cpu"):
            module = build()
    module.load_state_dict(state, strict=False)
    return module


class _WithoutRandomness(TorchFunctionMode):
    """Leaves tensors as they are instead of drawing random numbers into them. (Modules without storage would do as well,
    but the first tensor on the meta device costs a second of imports.)"""

    DRAWS = (Tensor.uniform_, Tensor.normal_, nn.init.uniform_, nn.init.normal_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _absent(
    module: nn.Module, state: Mapping[str, Tensor], source: object, allow_missing: tuple[str, ...]
) -> tuple[str, ...]:
    """The keys of a module that a file may lack and does; an error with all others that do not fit."""
    expected = module.state_dict()
    mismatch = _compare(expected, state, allow_missing)
    if mismatch:
        raise CheckpointError(mismatch.report(source, expected, state))
    absent = tuple(key for key in expected if key not in state)
    if absent:
        logger.info(
            "%s lacks %d learned entries, left at their initial value: %s",
            source,
            len(absent),
            _shorten(absent, limit=4),
        )
    return absent


def part_fits(part: nn.Module, name: str, path: str | PathLike[str]) -> bool:
    """Whether ``load_part`` would find all keys of ``part`` in a file, in their shapes, and no others."""
    expected = _state_of_part(part, name)
    return not _compare(expected, _under_own_names(read_state_dict(path), expected, path), ())


def load_part(part: nn.Module, name: str, path_or_url: str | PathLike[str]) -> None:
    """Copy weights of one part of a network from a file of its own, strictly.

    Args:
        part: the module to fill.
        name: prefix of the part's keys in the network's state dict; keys of the file carry it.
        path_or_url: as in ``load_checkpoint``.

    Raises:
        CheckpointError: the part has nothing to load or anything does not fit; the part is then as it was.
    """
    expected = _state_of_part(part, name)
    if not expected:
        raise CheckpointError(
            f"expected a part {name}* that learns, to load '{path_or_url}' into, got {type(part).__name__}, which has no "
            "weights; choose another, for example distiller=spatial, or leave the file out"
        )
    state = _under_own_names(read_state_dict(local_path(path_or_url)), expected, path_or_url)
    mismatch = _compare(expected, state, ())
    if mismatch:
        raise CheckpointError(mismatch.report(path_or_url, expected, state))
    part.load_state_dict({key.removeprefix(name): value for key, value in state.items()})


def save_part(part: nn.Module, name: str, path: str | PathLike[str]) -> None:
    """Write the weights of one part as a ``.safetensors`` file for ``load_part``."""
    state = {key: value.detach().cpu().contiguous() for key, value in _state_of_part(part, name).items()}
    save_file(state, str(path))


def _state_of_part(part: nn.Module, name: str) -> dict[str, Tensor]:
    """The state dict of a part, with the keys that it has in its network."""
    return {f"{name}{key}": value for key, value in part.state_dict().items()}


def local_path(path_or_url: str | PathLike[str]) -> Path:
    """Return a local path as it is, and the cached copy of an http(s) address."""
    if not str(path_or_url).startswith(("http://", "https://")):
        return Path(path_or_url).expanduser()
    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    try:
        return Path(manager.get_local_path(str(path_or_url)))
    except OSError as error:
        raise CheckpointError(
            f"could not download {path_or_url}: {error}; check the address and the network, or {HOW_TO_DOWNLOAD}"
        ) from error


def hub_checkpoint(model_id: str) -> HubCheckpoint:
    """Download a model from the Hugging Face Hub, or find it in the Hub's cache.

    Args:
        model_id: one of ``OFFICIAL_MODELS`` or ``OTHER_MODELS``, or any repository of transformers' ``Sam2VideoModel`` or
            ``EdgeTamVideoModel``, whose weights say which configuration they need.

    Raises:
        ValueError: the id of something else.
        ImportError: without the package huggingface_hub.
    """
    known = {**OFFICIAL_MODELS, **OTHER_MODELS}
    if model_id not in known and len(model_id.split("/")) != 2:
        raise ValueError(
            f"expected a model id out of {', '.join(known)}, or owner/name of one of transformers, got {model_id!r}"
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"'{model_id}' comes from the Hugging Face Hub: pip install huggingface_hub, or {HOW_TO_DOWNLOAD}"
        ) from error
    if model_id in known:
        config, filename = known[model_id]
        repository = "/".join(model_id.split("/")[:2])
        return HubCheckpoint(config, Path(hf_hub_download(repo_id=repository, filename=filename)))
    settings = json.loads(Path(hf_hub_download(repo_id=model_id, filename="config.json")).read_text(encoding="utf-8"))
    if settings.get("model_type") not in _VIDEO_MODELS:
        raise ValueError(
            f"expected '{model_id}' to hold a model of type {' or '.join(_VIDEO_MODELS)}, got {settings.get('model_type')!r}; "
            f"ids that are known: {', '.join(known)}"
        )
    path = Path(hf_hub_download(repo_id=model_id, filename="model.safetensors"))
    network = network_of(read_state_dict(path))
    if network is None or network.config is None:
        raise ValueError(
            f"expected weights of a published size in '{model_id}', got others; build with a config of your own"
        )
    size = settings.get("image_size")
    size = size[0] if isinstance(size, list) else size
    return HubCheckpoint(network.config, path, () if size is None else (f"model.image_size={size}",))


# -- reading ------------------------------------------------------------------------------------------------------------


def _is_safetensors(path: Path) -> bool:
    """By the content, so that a renamed file is read; by the name where the content is neither form."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or (path.suffix == ".safetensors" and not start.startswith((ARCHIVE, b"\x80")))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path, device="cpu")
    except SafetensorError as error:
        raise _damaged(path, error) from error
    if not state:
        raise CheckpointError(f"expected weights in '{path}', got an empty file; download or save it again")
    return state


def _unpickle(path: Path) -> Any:
    """Read a ``.pt`` file with PyTorch's restricted unpickler."""
    is_archive = zipfile.is_zipfile(path)
    if not is_archive and _starts_as_archive(path):
        raise _damaged(path, "its end is missing")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        refused = _REFUSED_GLOBAL.search(str(error))
        if refused is None:
            raise _damaged(path, "it cannot be unpickled") from error
        raise CheckpointError(
            f"'{path}' holds a pickled Python object ({refused[1]}). Such objects could run any code when read, so "
            'they are refused; save the weights alone, as torch.save({"model": model.state_dict()}, ...)'
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # cut or foreign bytes make the unpickler stumble in many ways
        raise _damaged(path, error) from error


def _starts_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == ARCHIVE


def _damaged(path: Path, reason: object) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(64)
    for beginning, kind in _OTHER_KINDS.items():
        if start.lstrip().startswith(beginning):
            advice = f"name another file, or {HOW_TO_DOWNLOAD}"
            return CheckpointError(f"expected a checkpoint in '{path}', got a foreign file ({kind}); {advice}")
    is_checkpoint = start[8:9] == b"{" or start.startswith((ARCHIVE, b"\x80\x02", b"\x80\x03", b"\x80\x04"))
    advice = f"delete it and {HOW_TO_DOWNLOAD}" if is_checkpoint else f"name another file, or {HOW_TO_DOWNLOAD}"
    return CheckpointError(
        f"expected a checkpoint in '{path}', got a damaged, incomplete or foreign file ({path.stat().st_size} bytes: "
        f"{str(reason) or 'nothing in it'}); {advice}"
    )


def _find_weights(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file's content: under "model", or the content itself."""
    if _is_state_dict(content):
        return dict(content)
    inner = content.get("model") if isinstance(content, Mapping) else None
    if _is_state_dict(inner):
        return dict(inner)
    got = f"keys {_shorten(content)}" if isinstance(content, Mapping) else type(content).__name__
    if inner is not None:
        got += ', where "model" is not a state dict (key -> tensor)'
    raise CheckpointError(f"expected {{\"model\": state_dict}} or a state dict in '{path}', got {got}")


def _is_state_dict(content: Any) -> TypeGuard[Mapping[str, Tensor]]:
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _shorten(keys: Iterable[Any], limit: int = 12) -> str:
    keys = [str(key) for key in keys]
    ending = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"[{', '.join(keys[:limit])}{ending}]"


def _refuse_non_finite(state: Mapping[str, Tensor], path: Path) -> None:
    invalid = [key for key, value in state.items() if value.is_floating_point() and not _finite(value)]
    if invalid:
        raise CheckpointError(
            f"expected finite weights in '{path}', got NaN or Inf in {', '.join(invalid)}; "
            "the file is damaged or its training diverged: use another one"
        )


def _finite(value: Tensor) -> bool:
    """A finite sum has finite terms and takes a quarter of the time; finite terms may still add up to too much."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


# -- comparing ----------------------------------------------------------------------------------------------------------


def _under_own_names(state: dict[str, Tensor], expected: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """The entries of a file without a prefix that all of them have and ``expected`` lacks; those that wrappers of PyTorch
    leave are gone already (``official_names``)."""
    *parts, _ = next(iter(state), "").split(".")
    prefixes = ["", *("".join(f"{part}." for part in parts[:count]) for count in range(1, len(parts) + 1))]
    for prefix in prefixes:
        stripped = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if len(stripped) == len(state) and any(key in expected for key in stripped):
            if list(stripped) != list(state):
                names = next(pair for pair in zip(state, stripped) if pair[0] != pair[1])
                logger.info("%s: the entry %s is read as %s, and others likewise", source, *names)
            return stripped
    return state


@dataclass(frozen=True)
class _Mismatch:
    """The keys of a model and a file that do not match."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def report(self, source: object, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
        file, model = network_of(state), network_of(expected)
        families = {network.family for network in (file, model) if network is not None}
        if file is not None and file != model and not families <= _SAM2:
            kind = "" if model is None else f", the model is {model.family}"
            return f"'{source}' holds {file.family}{kind}; nothing was loaded. To use the file, {file.advice}."
        most = _MOST_LISTED if len(self.missing) > (1 - _FEW_FIT) * len(expected) else None
        lines = [f"'{source}' does not fit the model; nothing was loaded."]
        lines += _section("missing in the file", [f"{key} {tuple(expected[key].shape)}" for key in self.missing], most)
        lines += _section("unknown to the model", [f"{key} {tuple(state[key].shape)}" for key in self.unexpected], most)
        shapes = [
            f"{key}: model {tuple(expected[key].shape)}, file {tuple(state[key].shape)}" for key in self.misshaped
        ]
        lines += _section("of another shape", shapes, None)
        return "\n".join(lines + _hints(self, expected, state))


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], allow_missing: tuple[str, ...]) -> _Mismatch:
    absent_parts = tuple(prefix for prefix in allow_missing if not any(key.startswith(prefix) for key in state))
    return _Mismatch(
        missing=tuple(key for key in expected if key not in state and not key.startswith(absent_parts)),
        unexpected=tuple(key for key in state if key not in expected),
        misshaped=tuple(key for key in expected if key in state and expected[key].shape != state[key].shape),
    )


def _section(title: str, entries: list[str], most: int | None) -> list[str]:
    listed = [f"  {entry}" for entry in entries[:most]]
    if len(listed) < len(entries):
        listed.append(f"  and {len(entries) - len(listed)} more")
    return [f"{len(entries)} {title}:", *listed] if entries else []


def _hints(mismatch: _Mismatch, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Guess what the user mixed up: 2.0 and 2.1, the size, an image model and one of videos."""
    hints = []
    if "maskmem_tpos_enc" not in state and "maskmem_tpos_enc" in expected:
        if "sam_mask_decoder.iou_token.weight" in state:
            hints.append("the file has no memory part, as models of single images; take the file of a video model")
    elif mismatch.missing and all(key.startswith("memory_encoder.distiller.") for key in mismatch.missing):
        hints.append("these are of the distiller, which needs weights: give distiller_checkpoint, or train it")
    elif has_2_1_entries(mismatch.missing):
        hints.append("this is a SAM 2.0 checkpoint and the model is SAM 2.1; use configs/sam2/... or a sam2.1 file")
    elif has_2_1_entries(mismatch.unexpected):
        hints.append("this is a SAM 2.1 checkpoint and the model is SAM 2.0; use configs/sam2.1/... or a sam2 file")
    size_of_file, size_of_model = hiera_size(state), hiera_size(expected)
    if size_of_file and size_of_model and size_of_file != size_of_model:
        hints.append(f"the file looks like a '{size_of_file}' model, the configuration like '{size_of_model}'")
    return [f"Hint: {hint}." for hint in hints]
