"""Learned pieces of distillers. Each starts as nothing, with gradients everywhere."""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem._moved import renamed
from sam2_mem.model.distiller.windows import weighted_sum


class ZeroInitDifference(nn.Module):
    """``plus(...) - minus(...)`` of two networks that begin as copies: exactly zero untrained, and yet the gradient
    reaches every parameter that it reaches in the network alone (a last layer of zeros would hide all layers before it).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.plus = network
        self.minus = deepcopy(network)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.plus(*inputs) - self.minus(*inputs)


class AttentionLogits(nn.Module):
    """Logits of the attention of a summary to the tokens of its window, per head.

    Args:
        width: Cm.
        features: number of further features of a token, such as its offset in the window.
        key_width: channels of queries and keys, per head.
        num_heads: of the attention.
    """

    def __init__(self, *, width: int, features: int, key_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_summary = nn.LayerNorm(width)
        self.norm_token = nn.LayerNorm(width)
        self.query = nn.Linear(width, num_heads * key_width)
        self.key = nn.Linear(width + features, num_heads * key_width, bias=False)

    def forward(self, summary: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
        """``summary`` (R, W, Cm), ``tokens`` (R, W, n, Cm), ``features`` (W, n, features) -> (R, W, n, heads)."""
        features = features.to(tokens.dtype).expand(tokens.shape[0], -1, -1, -1)
        key = self.key(torch.cat([self.norm_token(tokens), features], dim=-1)).unflatten(-1, (self.num_heads, -1))
        query = self.query(self.norm_summary(summary)).unflatten(-1, (self.num_heads, -1)).unsqueeze(-3)
        return (query * key).sum(-1) * key.shape[-1] ** -0.5


class WindowAttention(nn.Module):
    """One summary for every window: a latent query, shared by all windows and shifted by the window's mean, attends to
    its tokens. Every head has its own weights and its own channels of the tokens; the weights start as the counts.

    Args:
        width: Cm, a multiple of ``num_heads``.
        features: see ``AttentionLogits``.
        key_width: channels of queries and keys, per head.
        num_heads: of the attention.
    """

    def __init__(self, *, width: int, features: int, key_width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"expected num_heads to divide the memory width {width}, got {num_heads}")
        self.num_heads = num_heads
        self.score = ZeroInitDifference(
            AttentionLogits(width=width, features=features, key_width=key_width, num_heads=num_heads)
        )

    def forward(self, tokens: Tensor, prior: Tensor, features: Tensor) -> Tensor:
        """``tokens`` (R, W, n, Cm), ``prior`` (W, n) log-counts, ``features`` (W, n, features) -> (R, W, Cm)."""
        mean = weighted_sum(tokens, prior.softmax(-1).to(tokens.dtype))
        logits = prior.unsqueeze(-1) + self.score(mean, tokens, features).float()
        weights = logits.softmax(-2).to(tokens.dtype)
        split = tokens.unflatten(-1, (self.num_heads, -1))
        return (split * weights.unsqueeze(-1)).sum(-3).flatten(-2)


class SummaryAttention(nn.Module):
    """Self-attention between summaries, with their positions."""

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """``x`` (R, W, Cm), ``pos`` (W, Cm) -> (R, W, Cm)."""
        y = self.norm(x)
        coded = y + pos.to(y.dtype)
        q, k, v = (self._heads(x) for x in (self.query(coded), self.key(coded), self.value(y)))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Refinement(nn.Module):
    """After pooling: summaries attend to each other, then each is changed by a small network, which also corrects its
    log-count.

    Args:
        width: Cm.
        hidden: width of the small network.
        num_heads: of the attention.
    """

    def __init__(self, *, width: int, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.mix = ZeroInitDifference(SummaryAttention(width=width, num_heads=num_heads))
        layers = (nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width + 1))
        self.change = ZeroInitDifference(nn.Sequential(*layers))

    def forward(self, x: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` (R, W, Cm), ``pos`` (W, Cm) -> refined (R, W, Cm) and what to add to the log-counts, (R, W) float32."""
        x = x + self.mix(x, pos)
        change = self.change(x)
        return x + change[..., :-1], change[..., -1].float()


class RecurrentStep(nn.Module):
    """The learned part of one step of ``FrameGRU``: a shift of the gate and of the candidate."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.norm_state = nn.LayerNorm(width)
        self.norm_input = nn.LayerNorm(width)
        self.gates = nn.Linear(2 * width, 2 * width)
        self.candidate = nn.Linear(2 * width, width)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        """``state``, ``x`` (R, W, Cm) -> (R, W, 2 Cm): gate logits, then the candidate."""
        h, x = self.norm_state(state), self.norm_input(x)
        gate, reset = self.gates(torch.cat([h, x], dim=-1)).chunk(2, dim=-1)
        candidate = self.candidate(torch.cat([reset.sigmoid() * h, x], dim=-1)).tanh()
        return torch.cat([gate, candidate], dim=-1)


class FrameGRU(nn.Module):
    """A GRU over the frames of a tube, oldest first, that starts as the running mean by count: its update gate starts
    at the new frame's share of everything so far, its candidate at the new frame."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.step = ZeroInitDifference(RecurrentStep(width=width))

    def forward(self, inputs: Tensor, log_counts: Tensor) -> Tensor:
        """``inputs`` (f, R, W, Cm), ``log_counts`` (f, W), ``EMPTY`` where a frame has none -> (R, W, Cm)."""
        state, total = inputs[0], log_counts[0]
        for x, count in zip(inputs[1:], log_counts[1:]):
            gate, candidate = self.step(state, x).chunk(2, dim=-1)
            share = torch.sigmoid((count - total).unsqueeze(-1).to(gate.dtype) + gate)
            state = state + share * (x + candidate - state)
            total = torch.logaddexp(total, count)
        return state


def scale_gradient(x: Tensor, factor: Tensor) -> Tensor:
    """``x`` itself, its gradient multiplied by ``factor``."""
    detached = x.detach()
    return detached + ((x - detached).float() * factor.detach()).to(x.dtype)


__getattr__ = renamed(__name__)
