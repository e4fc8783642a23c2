"""How the age of an object pointer is told to memory attention: the one learned difference in time between 2.0 and 2.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam2_mem.model.position_encoding import sine_1d


class NoPointerTime(nn.Module):
    """SAM 2.0: pointers carry no time."""

    def __init__(self, *, width: int = 256, memory_width: int = 64) -> None:
        super().__init__()
        self.memory_width = memory_width

    def forward(self, offsets: Tensor) -> Tensor:
        """(N) -> (N, Cm) of zeros."""
        return offsets.new_zeros(offsets.shape[0], self.memory_width)


class SinePointerTime(nn.Linear):
    """SAM 2.1: a sine code of the signed, normalised age, projected to memory width. ``signed=False`` drops the sign."""

    def __init__(self, *, width: int = 256, memory_width: int = 64, signed: bool = True) -> None:
        super().__init__(width, memory_width)
        self.signed = signed

    def forward(self, offsets: Tensor) -> Tensor:
        """(N) -> (N, Cm)."""
        offsets = offsets if self.signed else offsets.abs()
        code = sine_1d(offsets.float(), self.in_features)
        return super().forward(code.to(self.weight.dtype))


def slot_rows(code: Tensor, slots: list[int | None]) -> Tensor:
    """Rows of the temporal code (T, Cm) for ``slots``; -1 is the last row, None a row of zeros. -> (len(slots), Cm)."""
    rows = code.shape[0]
    bad = sorted({s for s in slots if s is not None and not -1 <= s < rows})
    if bad:
        raise ValueError(f"expected temporal slots in 0..{rows - 1}, -1 (prompt) or None, got {bad}")
    table = torch.cat([code, code.new_zeros(1, code.shape[1])])
    index = [rows if s is None else s % rows for s in slots]
    return table[torch.tensor(index, dtype=torch.long, device=code.device)]
