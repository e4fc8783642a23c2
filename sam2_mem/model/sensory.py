"""Sensory memory: a small recurrent state per object that carries what the last frames looked like (XMem, section 3.5).

Not in official checkpoints. The injection is zero-initialised, so that an untrained sensory memory adds exactly
nothing; outside training it is not even run then.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sam2_mem.model.mask_decoder import DecoderMaps


class SensoryMemory(nn.Module):
    """A hidden state (Ch, H, W) per object, updated on every frame and added to the features that masks are decoded
    from.

    XMem joins it to the memory readout in its decoder; SAM 2's decoder is left as it is, so it is added before,
    through a 1x1 convolution (C, Ch) that starts at zero.

    Args:
        width: C.
        memory_width: Cm.
        channels: Ch, 64 in XMem.
    """

    def __init__(self, *, width: int = 256, memory_width: int = 64, channels: int = 64) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"expected at least one channel of sensory memory, got {channels}")
        self.channels = channels
        self.from_cells = nn.Conv2d(width, width, kernel_size=1)
        self.from_middle = nn.Conv2d(width // 4, width, kernel_size=1)
        self.from_fine = nn.Conv2d(width // 8 + 1, width, kernel_size=1)
        self.light = Recurrence(width=width, channels=channels)
        self.deep = Recurrence(width=memory_width, channels=channels)
        self.injection = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        nn.init.zeros_(self.injection.weight)

    def is_absent(self) -> bool:
        """Whether it adds nothing, as before training. Waits for the device."""
        return not bool(self.injection.weight.any())

    def fresh(self, rows: int, grid: tuple[int, int]) -> Tensor:
        """The state before the first frame, (R, Ch, H, W) of zeros."""
        return self.injection.weight.new_zeros(rows, self.channels, *grid)

    def inject(self, hidden: Tensor) -> Tensor:
        """(R, Ch, H, W) -> what is added to conditioned features, (R, Q, C)."""
        return self.injection(hidden.to(self.injection.weight.dtype)).flatten(2).transpose(1, 2)

    def after_frame(self, hidden: Tensor, maps: DecoderMaps, logits: Tensor) -> Tensor:
        """The light update, from the decoder: state after an ordinary frame.

        Args:
            hidden: (R, Ch, H, W).
            maps: of the decoder, R rows.
            logits: (R, 4H, 4W) of the chosen mask.
        """
        dtype = self.injection.weight.dtype
        fine = torch.cat([maps.fine, logits.unsqueeze(1).to(maps.fine.dtype)], dim=1)
        features = self.from_cells(maps.cells.to(dtype))
        features = features + self.from_middle(F.avg_pool2d(maps.middle.to(dtype), 2))
        features = features + self.from_fine(F.avg_pool2d(fine.to(dtype), 4))
        return self.light(features, hidden)

    def after_memory(self, hidden: Tensor, memory: Tensor) -> Tensor:
        """The deep update, from the memory encoder: state after a frame that has become memory, ``memory`` (R, Cm, H,
        W)."""
        return self.deep(memory.to(self.injection.weight.dtype), hidden)


class Recurrence(nn.Module):
    """XMem's gated update: f * h * (1 - u) + u * n, where forget gate f, update gate u and candidate n come from one
    3x3 convolution of input and state. Unlike a GRU the candidate sees the whole state, and f acts on what is carried
    over."""

    def __init__(self, *, width: int, channels: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(width + channels, 3 * channels, kernel_size=3, padding=1)
        nn.init.xavier_normal_(self.transform.weight)

    def forward(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """(R, width, H, W), (R, Ch, H, W) -> (R, Ch, H, W)."""
        hidden = hidden.to(inputs.dtype)
        forget, update, candidate = self.transform(torch.cat([inputs, hidden], dim=1)).chunk(3, dim=1)
        forget, update = forget.sigmoid(), update.sigmoid()
        return forget * hidden * (1 - update) + update * candidate.tanh()
