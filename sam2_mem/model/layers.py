"""Small layers shared by the network modules."""

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.acceleration.onednn_linear import ACTIVATIONS, Linear


class MLP(nn.Module):
    """Linear layers with an activation between them and, on request, a sigmoid at the end."""

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        num_layers: int,
        *,
        activation: Literal["relu", "gelu"] = "relu",
        sigmoid_output: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"expected num_layers >= 1, got {num_layers}; use 1 for a single linear layer")
        valid = sorted(ACTIVATIONS.keys() - {"none"})
        if activation not in valid:
            raise ValueError(f"expected activation in {valid}, got {activation!r}; choose one of them")
        widths = [input_dim, *[hidden_dim] * (num_layers - 1), output_dim]
        self.layers = nn.ModuleList(Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.activation = activation
        self.sigmoid_output = sigmoid_output

    def forward(self, x: Tensor) -> Tensor:
        """(..., input_dim) -> (..., output_dim)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x, self.activation)
        x = last(x)
        return x.sigmoid() if self.sigmoid_output else x


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of every cell of a (B, C, H, W) map."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        cells = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(cells, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class DropPath(nn.Module):
    """Stochastic depth: in training a residual branch is dropped per sample with probability `rate`.

    A surviving branch is scaled by 1 / (1 - rate), so its expectation does not change.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"expected a drop rate in [0, 1), got {rate}; use 0 to keep every branch")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        per_sample = x.new_empty(x.shape[0], *[1] * (x.ndim - 1))
        return x * per_sample.bernoulli_(keep).div_(keep)
