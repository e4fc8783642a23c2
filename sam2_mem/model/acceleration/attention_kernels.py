"""Which of torch's attention kernels to use: measured at run time, for no kernel is always best for a single wide head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Timer = Callable[[torch.device, Callable[[], Any]], float]
"""Seconds that a function takes on a device."""

NO_KERNEL = "No available kernel"
"""What torch says where the kernels that are allowed do not take the arguments."""

FOR_ANY_LENGTH = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
FOR_ONE_LENGTH = (*FOR_ANY_LENGTH, SDPBackend.CUDNN_ATTENTION)
"""Fused kernels. cuDNN plans anew for every new number of keys, for up to half a second."""


def attend_without_cudnn(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """``scaled_dot_product_attention`` for any number of keys: on a CUDA device cuDNN is left out, which would plan anew for
    each of them, unless it is all that is allowed."""
    cuda = torch.backends.cuda
    others = cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.math_sdp_enabled()
    if q.device.type != "cuda" or not (cuda.cudnn_sdp_enabled() and others):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)
    cuda.enable_cudnn_sdp(False)
    try:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)
    finally:
        cuda.enable_cudnn_sdp(True)


class FastestKernel:
    """``scaled_dot_product_attention`` by the backend that was fastest when the shapes first came.

    Lengths of keys count by powers of two, so that a memory that fills up is measured a few times only. Where nothing may
    be measured (while a CUDA graph is recorded, under a compiler, with gradient), and where the kernel does not take a
    length that it was not measured on, torch chooses.
    """

    def __init__(self, backends: Sequence[SDPBackend], timer: Timer) -> None:
        self.backends = tuple(backends)
        self.timer = timer
        self.choices: dict[tuple, SDPBackend | None] = {}

    @classmethod
    def on_cuda(cls, *, any_length: bool) -> FastestKernel:
        """``any_length``: for keys whose number changes."""
        return cls(FOR_ANY_LENGTH if any_length else FOR_ONE_LENGTH, _cuda_timer)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        signature = _signature(q, k, v, attn_mask)
        if signature not in self.choices and _may_measure(q.device):
            self.choices[signature] = self._fastest(q, k, v, attn_mask)
        backend = self.choices.get(signature)
        if backend is not None:
            try:
                return _attend_by(backend, q, k, v, attn_mask, dropout_p)
            except RuntimeError as error:
                if NO_KERNEL not in str(error):
                    raise
        return attend_without_cudnn(q, k, v, attn_mask, dropout_p)

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> SDPBackend | None:
        """None where no backend takes these arguments: torch then has its own way."""
        times = {}
        for backend in self.backends:
            attend = partial(_attend_by, backend, q, k, v, mask)
            try:
                attend()
                times[backend] = self.timer(q.device, attend)
            except RuntimeError:
                continue
        return min(times, key=lambda backend: times[backend]) if times else None


def _attend_by(
    backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _signature(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple:
    length = math.ceil(math.log2(k.shape[-2]))
    return (q.dtype, q.device, *q.shape, length, v.shape[-1], None if mask is None else mask.dtype)


def _may_measure(device: torch.device) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):
        return not torch.cuda.is_current_stream_capturing()


def _cuda_timer(device: torch.device, function: Callable[[], Any], rounds: int = 3) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(rounds):
            function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / rounds / 1000
