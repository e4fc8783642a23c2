"""Between the host and the device without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def to_device_async(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """``values`` (a tensor of the host, numbers or lists of them) on ``device``.

    A CUDA device takes them from pinned memory in its own time; memory that is not pinned would hold up the host.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """``tensors`` of one CUDA device in pinned memory, from where they go back without holding up the host; one wait for
    all of them."""
    copies = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True) for x in tensors]
    if tensors:
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


def pinned_as(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor``, in pinned memory where ``other`` is."""
    return tensor.pin_memory() if other.is_pinned() else tensor


@lru_cache(maxsize=1024)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """A short tensor that is sent once for the same ``values``; never written to."""
    with torch.inference_mode(False):
        return to_device_async(values, device, dtype)


def to_host_async(tensor: Tensor) -> Tensor:
    """``tensor`` on the host; one that is there already is the same object.

    A CUDA device fills pinned memory in its own time: a copy back to the device comes after it, the host itself must
    synchronise before it looks.
    """
    return tensor.to("cpu", non_blocking=True)
