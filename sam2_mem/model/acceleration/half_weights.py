"""Weights in half precision under autocast, cast once.

Under ``inference_mode`` autocast keeps nothing that it casts: every weight is cast again on every frame, which is half of
all kernels of a frame of the tiny network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        self._copies: dict[int, tuple[tuple, dict[str, Tensor]]] = {}

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
            with self._exchanged(modules, torch.get_autocast_dtype(kind)):
                return function(*args)

    @contextmanager
    def _exchanged(self, modules: list[nn.Module], dtype: torch.dtype) -> Iterator[None]:
        """Modules with copies of their weights in ``dtype`` in the place of their weights."""
        before = [dict(module._parameters) for module in modules]
        try:
            for module in modules:
                module._parameters.update(self._cast(module, dtype))  # type: ignore[arg-type]
            yield
        finally:
            for module, weights in zip(modules, before):
                module._parameters.update(weights)

    def _cast(self, module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        weights = {name: weight for name, weight in module._parameters.items() if weight is not None}
        version = (dtype, *map(_version, weights.values()))
        known = self._copies.get(id(module))
        if known is None or known[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                known = version, {name: weight.to(dtype) for name, weight in weights.items()}
            self._copies[id(module)] = known
        return known[1]


def _version(weight: Tensor) -> tuple[int, int]:
    """Another one after the weight was moved or written to; a write through ``.data`` goes unnoticed."""
    return (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
