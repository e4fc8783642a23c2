"""Memory in a file: what an object's policy state holds, to be kept, frozen, or used on another video.

The file is a ``torch.save`` of plain containers and tensors, read with ``weights_only=True``. Values that are the same
object in memory are the same object after loading, so shared positions and shared entries stay shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_mem._moved import current
from sam2_mem.files import atomic_path
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.types import MemoryEntry, PointerEntry

FORMAT = "sam2_mem.memory"
VERSION = 1
EARLIER_FIELDS: dict[str, dict[str, str | None]] = {
    "sam2_mem.memory.policies.dam4sam:DistractorBank": {"latest": "last_frame"},
    "sam2_mem.memory.policies.distilled:Summaries": {"far": "coarse"},
    "sam2_mem.memory.policies.keyframe:Keyframes": {"whole": "full"},
    "sam2_mem.memory.policies.rmem:RMemBank": {"stays": "statistics"},
    "sam2_mem.memory.policies.sam2long.deferred_masks:OpenFrames": {
        "given": "published",
        "news": "revisions",
        "latest": "last_frame",
    },
    "sam2_mem.memory.policies.sam2long.tree:Tree": {"trails": "open_frames"},
    "sam2_mem.memory.policies.xmem.state:XMemBank": {"permanent": None},
}
"""Names of fields in files of earlier versions, by the name of their class now: {"module:class": {earlier: now}}; None for
a field that there is no longer."""


class MemoryFileError(ValueError):
    """A file that is not a memory, or not one for this policy."""


def save_memory(path: str | PathLike[str], policy: MemoryPolicy, state: Any) -> None:
    """Write a policy's state to ``path``; tensors are stored on the CPU. An existing file is replaced as a whole."""
    path, policy = Path(path), policy.unwrapped
    content = {
        "format": FORMAT,
        "version": VERSION,
        "policy": _name(type(policy)),
        "parameters": {f.name: repr(getattr(policy, f.name)) for f in fields(policy)},
        **packed(state),
    }
    with atomic_path(path) as part:
        torch.save(content, part)


def load_memory(path: str | PathLike[str], policy: MemoryPolicy, *, device: torch.device | str = "cpu") -> Any:
    """Read the state that ``save_memory`` wrote. The policy must be of the class that wrote it; its parameters may
    differ.

    Raises:
        MemoryFileError: not a memory file, another version, another policy.
    """
    path, policy = Path(path), policy.unwrapped
    if not path.is_file():
        raise MemoryFileError(f"expected a memory file, got '{path}', which is not one; save one with save_memory")
    content = _read(path, device)
    if content["version"] != VERSION:
        raise MemoryFileError(
            f"expected a memory file of version {VERSION}, got version {content['version']} in '{path}'"
        )
    name, written_by = _name(type(policy)), ":".join(current(*content["policy"].split(":", 1)))
    if written_by != name:
        raise MemoryFileError(
            f"expected the memory of a {name}, got that of a {written_by} in '{path}'; build with its policy"
        )
    return unpacked(content, policy)


def packed(value: Any, device: torch.device | None = None) -> dict[str, Any]:
    """A value of tensors, numbers, containers and dataclasses as plain containers and tensors on the CPU, ``root`` and
    ``objects``, which ``torch.load(weights_only=True)`` reads.

    Args:
        value: what to pack; values that are the same object stay one.
        device: tensors elsewhere are marked, and go to the CPU when they are unpacked; None marks none.

    Raises:
        TypeError: something else is in it.
    """
    packer = _Packer(device)
    root = packer.pack(value)
    return {"root": root, "objects": packer.objects}


def unpacked(content: dict[str, Any], policy: MemoryPolicy) -> Any:
    """The inverse of ``packed``. Only classes of this package and of the module of ``policy`` are built.

    Raises:
        MemoryFileError: other classes.
    """
    return _Unpacker(content["objects"], allowed=type(policy.unwrapped).__module__).unpack(content["root"])


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch.load fails in many ways on foreign bytes
        raise MemoryFileError(
            f"expected a memory file in '{path}', got something that cannot be read: {error}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise MemoryFileError(
            f"expected a memory file in '{path}', got another kind of file; save one with save_memory"
        )
    return content


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


class _Packer:
    """Values as plain containers. Dataclass instances go into ``objects`` once each and are referred to by number."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device
        self.objects: list[dict[str, Any]] = []
        self._number: dict[int, int] = {}
        self._tensors: dict[int, Tensor] = {}

    def pack(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Enum):
            return {"enum": _name(type(value)), "name": value.name}
        if isinstance(value, tuple | list):
            return {"sequence": type(value).__name__, "values": [self.pack(v) for v in value]}
        if isinstance(value, dict):
            return {"mapping": [[self.pack(k), self.pack(v)] for k, v in value.items()]}
        if is_dataclass(value) and not isinstance(value, type):
            return {"object": self._object(value)}
        raise TypeError(
            f"a policy state is made of tensors, numbers, tuples and dataclasses, got {type(value).__name__}"
        )

    def _tensor(self, value: Tensor) -> Any:
        if id(value) not in self._tensors:
            self._tensors[id(value)] = value.detach().to("cpu", copy=True).contiguous()
        copied = self._tensors[id(value)]
        is_elsewhere = self._device is not None and value.device.type != self._device.type
        return {"host": copied} if is_elsewhere else copied

    def _object(self, value: Any) -> int:
        if id(value) not in self._number:
            self._number[id(value)] = len(self.objects)
            packed: dict[str, Any] = {"type": _name(type(value)), "keep": {}}
            self.objects.append(packed)
            packed["keep"] = {f.name: self.pack(getattr(value, f.name)) for f in fields(value)}
        return self._number[id(value)]


class _Unpacker:
    """The inverse. Only dataclasses and enums of this package and of the policy's own module are built."""

    def __init__(self, objects: list[dict[str, Any]], *, allowed: str) -> None:
        self._packed = objects
        self._allowed = allowed
        self._objects: dict[int, Any] = {}

    def unpack(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = next(iter(value))
        readers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "enum": lambda v: self._class(v["enum"])[v["name"]],
            "sequence": self._sequence,
            "host": lambda v: v["host"].cpu(),
            "mapping": lambda v: {self.unpack(k): self.unpack(x) for k, x in v["mapping"]},
            "object": lambda v: self._object(v["object"]),
        }
        return readers[kind](value)

    def _sequence(self, value: dict[str, Any]) -> Any:
        values = [self.unpack(v) for v in value["values"]]
        return tuple(values) if value["sequence"] == "tuple" else values

    def _object(self, number: int) -> Any:
        if number not in self._objects:
            packed = self._packed[number]
            kind = self._class(packed["type"])
            names = EARLIER_FIELDS.get(_name(kind), {})
            current_names = {k: names.get(k, k) for k in packed["keep"]}
            values = {name: self.unpack(packed["keep"][k]) for k, name in current_names.items() if name is not None}
            if kind is MemoryEntry and values["tokens"] is None:
                kind = PointerEntry
                del values["tokens"], values["sensory"]
            self._objects[number] = kind(**values)
        return self._objects[number]

    def _class(self, name: str) -> Any:
        module, qualname = current(*name.split(":", 1))
        if module != self._allowed and not module.startswith("sam2_mem."):
            raise MemoryFileError(f"expected state classes of sam2_mem or {self._allowed}, got {name}")
        value: Any = import_module(module)
        for part in qualname.split("."):
            value = getattr(value, part)
        if not (is_dataclass(value) or (isinstance(value, type) and issubclass(value, Enum))):
            raise MemoryFileError(f"expected a dataclass or an enum, got {name}")
        return value
