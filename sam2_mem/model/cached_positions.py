"""Tensors that depend on sizes only, made once per size and device and shared by every model, entry and thread; and
tensors that depend on sizes and weights, kept as long as the weights.

They are made outside inference mode and without gradient, so that tracking and training can use the same ones, and they
must never be written to.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from sam2_mem.model.position_encoding import sine_position_map
from sam2_mem.model.rope import grid_coordinates

T = TypeVar("T")


@lru_cache(maxsize=32)
def sine_tokens(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Sine positions of the cells of a grid, (height * width, channels) float32."""
    with torch.inference_mode(False), torch.no_grad():
        return sine_position_map(height, width, channels, device=device).flatten(1).t().contiguous()


@lru_cache(maxsize=32)
def grid_xy(height: int, width: int, device: torch.device) -> Tensor:
    """Cells of a grid in raster order, (height * width, 2) as x, y."""
    with torch.inference_mode(False), torch.no_grad():
        return grid_coordinates(height, width, device=device)


class _CachedTensor(NamedTuple):
    """A tensor, the sizes it was made for, and the weights it was made from as they were then."""

    sizes: tuple[int, ...]
    weights: tuple[Tensor | tuple[int, int], ...]
    tensor: Tensor


_CACHE: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the first of the weights, which are not kept alive by this."""


def cached(weights: Sequence[Tensor], sizes: tuple[int, ...], make: Callable[[], Tensor]) -> Tensor:
    """``make()``, or what it gave last time for the same ``sizes`` and unchanged ``weights``.

    One result is kept for each group of weights. It is always made anew where a gradient is to flow and under a compiler.
    Weights on a CPU are compared by value; elsewhere, where that would wait for the device, by address and version, so a
    write through ``.data`` goes unnoticed there.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(w.requires_grad for w in weights)):
        return make()
    entry = _CACHE.get(weights[0])
    if entry is not None and entry.sizes == sizes and all(map(_unchanged, weights, entry.weights)):
        return entry.tensor
    with torch.inference_mode(False), torch.no_grad():
        _CACHE[weights[0]] = _CachedTensor(sizes, tuple(_snapshot(w) for w in weights), make())
    return _CACHE[weights[0]].tensor


def _snapshot(weight: Tensor) -> Tensor | tuple[int, int]:
    if weight.device.type == "cpu":
        return weight.detach().clone()
    return (weight.data_ptr(), 0 if weight.is_inference() else weight._version)


def _unchanged(weight: Tensor, before: Tensor | tuple[int, int]) -> bool:
    if isinstance(before, tuple):
        return weight.device.type != "cpu" and _snapshot(weight) == before
    return weight.device == before.device and weight.dtype == before.dtype and torch.equal(weight, before)


class SameTensors:
    """Tensors as a key: equal are only those of the same objects, which live as long as the key."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self.tensors = tuple(tensors)

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.tensors)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SameTensors) or len(self.tensors) != len(other.tensors):
            return False
        return all(a is b for a, b in zip(self.tensors, other.tensors))


_KNOWN: OrderedDict[tuple, Any] = OrderedDict()
MAX_KNOWN = 32


def known(key: tuple, make: Callable[[], T]) -> T:
    """``make()``, or what it gave when ``key`` last came; the latest ``MAX_KNOWN`` are kept."""
    value = _KNOWN.pop(key, None)
    if value is None:
        with torch.inference_mode(False), torch.no_grad():
            value = make()
    _KNOWN[key] = value
    while len(_KNOWN) > MAX_KNOWN:
        _KNOWN.popitem(last=False)
    return value
