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

Timer = Callable[[Callable[[], Any]], float]
"""Seconds that a function takes."""

FUSED = tuple(
    getattr(SDPBackend, name)
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION")
    if hasattr(SDPBackend, name)
)


class FastestKernel:
    """``scaled_dot_product_attention`` by the backend that was fastest when the shapes first came.

    Lengths of keys count by powers of two, so that a memory that fills up is measured a few times only. Where nothing may
    be measured (while a CUDA graph is recorded, under a compiler, with gradient) torch chooses.
    """

    def __init__(self, backends: Sequence[SDPBackend], timer: Timer) -> None:
        self.backends = tuple(backends)
        self.timer = timer
        self.choices: dict[tuple, SDPBackend | None] = {}

    @classmethod
    def on_cuda(cls) -> FastestKernel:
        return cls(FUSED, _cuda_timer)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        signature = _signature(q, k, v, attn_mask)
        if signature not in self.choices and _may_measure():
            self.choices[signature] = self._fastest(q, k, v, attn_mask)
        backend = self.choices.get(signature)
        if backend is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout_p)
        return _attend_by(backend, q, k, v, attn_mask, dropout_p)

    def _fastest(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> SDPBackend | None:
        """None where no backend takes these arguments: torch then has its own way."""
        times = {}
        for backend in self.backends:
            attend = partial(_attend_by, backend, q, k, v, mask)
            try:
                attend()
                times[backend] = self.timer(attend)
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


def _may_measure() -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


def _cuda_timer(function: Callable[[], Any], rounds: int = 3) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(rounds):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / rounds / 1000
