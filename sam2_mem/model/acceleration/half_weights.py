"""Weights in half precision under autocast, cast once.

Under ``inference_mode`` autocast keeps nothing that it casts: every weight is cast again on every frame, which is half of
all kernels of a frame of the tiny network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_not
from typing import Any

import torch
from torch import Tensor, nn

from sam2_mem.model.acceleration.cuda_graphs import castable

CAST_IN = {
    "encode_image": ("image_encoder.trunk",),
    "attend": ("memory_attention",),
    "decode": ("sam_mask_decoder", "obj_ptr_proj"),
    "encode_memory": ("memory_encoder",),
}
"""Parts of the network that run in each part of a frame."""


class HalfWeights:
    """The runner (``SAM2.runner``) of a network that is not optimized. Under autocast and without gradient, a part of a frame
    runs on copies of its weights in half precision, which are made anew when weights change. Results are those of
    autocast to the bit; the network and its state dict stay as they are. One thread at a time runs a part.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = castable(model)
        self.modules = {part: [m for name in names for m in modules[name]] for part, names in CAST_IN.items()}
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._copies: dict[str, Copies] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"modules": self.modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.modules = state["modules"]
        self._reset()

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        """``function(*args)``; ``part`` is its name."""
        with self._lock:
            modules = self.modules.get(part, [])
            kind = next((weight.device.type for module in modules for weight in module.parameters()), "cpu")
            if torch.is_grad_enabled() or not torch.is_autocast_enabled(kind):
                return function(*args)
            with self._exchanged(part, modules, torch.get_autocast_dtype(kind)):
                return function(*args)

    @contextmanager
    def _exchanged(self, part: str, modules: list[nn.Module], dtype: torch.dtype) -> Iterator[None]:
        """Modules with copies of their weights in ``dtype`` in the place of their weights."""
        copies = self._copies.get(part)
        if copies is None or copies.dtype is not dtype or not copies.are_valid():
            copies = self._copies[part] = Copies(modules, dtype)
        try:
            copies.take_place()
            yield
        finally:
            copies.give_back()


class Copies:
    """Copies of the weights of modules in ``dtype``.

    Args:
        modules: with weights.
        dtype: of the copies.
    """

    def __init__(self, modules: list[nn.Module], dtype: torch.dtype) -> None:
        self.dtype = dtype
        places = [(m._parameters, name, w) for m in modules for name, w in m._parameters.items() if w is not None]
        self._places: list[tuple[dict[str, Any], str, Tensor]] = places  # type: ignore[assignment]
        self._versions = self._current_versions()
        with torch.inference_mode(False), torch.no_grad():
            self._tensors = [weight.to(dtype) for _, _, weight in places]

    def _current_versions(self) -> list[tuple[int, int]]:
        """Others after weights were moved or written to; a write through ``.data`` goes unnoticed."""
        return [(w.data_ptr(), 0 if w.is_inference() else w._version) for _, _, w in self._places]

    def are_valid(self) -> bool:
        """Whether the weights are still those that were copied."""
        weights = [weight for _, _, weight in self._places]
        replaced = map(is_not, [parameters.get(name) for parameters, name, _ in self._places], weights)
        return not any(replaced) and self._current_versions() == self._versions

    def take_place(self) -> None:
        for (parameters, name, _), copy in zip(self._places, self._tensors):
            parameters[name] = copy

    def give_back(self) -> None:
        for parameters, name, weight in self._places:
            parameters[name] = weight
