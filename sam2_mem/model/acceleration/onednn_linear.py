"""Linear maps, on a CPU by oneDNN. torch brings that library along for its compiler, but runs eager linear maps by
another one (MKL), which is slower on processors of other makers, and applies GELU in a pass of its own.

oneDNN keeps what it has made of a shape, up to about half a megabyte each: only shapes that come again should get here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Activation = Literal["none", "relu", "gelu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "relu": torch.relu_, "gelu": F.gelu}
MIN_WORK = 1 << 24
"""Multiplications. Less is left to torch, which is faster with it: a call of oneDNN takes some 15 microseconds more."""


class Linear(nn.Linear):
    """``nn.Linear`` with an activation after it, on request. Weights have the same names."""

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """(..., in) -> (..., out)."""
        if x.is_cpu:
            return linear(x, self.weight, self.bias, activation)
        y = F.linear(x, self.weight, self.bias)
        return y if activation == "none" else ACTIVATIONS[activation](y)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """``activation(x @ weight.T + bias)``, ``x`` (..., in), ``weight`` (out, in)."""
    compatible = x.shape[-1] == weight.shape[-1] and weight.dtype is x.dtype  # else torch says what is wrong
    # Sizes come last: where a compiler or an exporter looks on, they would become a limit of its graph.
    if compatible and on_plain_cpu(x) and x.numel() * len(weight) >= MIN_WORK and _one_dnn():
        return _by_one_dnn(x, weight, bias, activation)
    return ACTIVATIONS[activation](F.linear(x, weight, bias))


def on_plain_cpu(x: Tensor) -> bool:
    """Whether ``x`` is computed with on a CPU in float32 as it stands: without gradient, autocast or a compiler."""
    if x.device.type != "cpu" or x.dtype is not torch.float32 or torch.is_grad_enabled():
        return False
    return not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


def _one_dnn() -> bool:
    return bool(torch.backends.mkldnn.enabled) and _works()


def _by_one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """GELU, by the error function, is part of the product. ReLU is not: oneDNN's makes numbers of NaN."""
    if activation == "gelu":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
    return ACTIVATIONS[activation](torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


@cache
def _works() -> bool:
    """Whether this torch has it as it is called here; it is what torch's compiler calls, not an interface of torch's."""
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.inference_mode():
            x, weight, bias = torch.linspace(-3, 3, 24 * 8).view(24, 8), torch.eye(16, 8), torch.linspace(-1, 1, 16)
            for name, activate in ACTIVATIONS.items():
                for b in (bias, None):
                    torch.testing.assert_close(_by_one_dnn(x, weight, b, name), activate(F.linear(x, weight, b)))
    except (AttributeError, RuntimeError, TypeError, AssertionError) as error:
        logger.warning(
            "linear maps are left to torch, which may be slower; oneDNN says: %s", str(error).partition("\n")[0]
        )
        return False
    return True
