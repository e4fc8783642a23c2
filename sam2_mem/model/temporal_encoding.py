"""How time enters memory attention: the age of object pointers, and places in a bank.

The first is the one learned difference in time between 2.0 and 2.1; the second is not in official checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam2_mem.model.acceleration.transfer import to_device_async
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


class BankTime(nn.Module):
    """RMem's temporal encoding (CVPR 2024, Eq. 7): a learned code for the place of a frame in its bank, added to the
    keys, and one for the present, added to the queries. Zero-initialised, so untrained is absent.

    RMem adds them behind the projections and starts from noise of deviation .05; here they enter before the projections,
    which reaches the same keys up to the rank of the key projection, and start from zero.

    Args:
        width: C.
        memory_width: Cm.
        num_codes: places that have a code of their own; 4 in RMem.
    """

    def __init__(self, *, width: int = 256, memory_width: int = 64, num_codes: int = 4) -> None:
        super().__init__()
        if num_codes < 1:
            raise ValueError(f"expected num_codes >= 1, got {num_codes}")
        self.query = nn.Parameter(torch.zeros(1, width))
        self.memory = nn.Parameter(torch.zeros(num_codes, memory_width))

    def memory_code(self, orders: Sequence[int | None]) -> Tensor:
        """Codes (N, Cm) of N read items; ``orders`` are their places in the bank, oldest 0, None for items outside it."""
        length = sum(order is not None for order in orders)
        codes = bank_codes(length, self.memory.shape[0])
        return slot_rows(self.memory, [None if order is None else codes[order] for order in orders])


def bank_codes(length: int, num_codes: int = 4) -> list[int]:
    """Which of the learned codes each of ``length`` bank frames gets, oldest first: one each while they last, then shared
    evenly, rounded from the newest backwards."""
    if length <= num_codes:
        return list(range(length))
    return [num_codes - 1 - num_codes * back // length for back in reversed(range(length))]


Slot = float | Tensor | None


def slot_rows(code: Tensor, slots: Sequence[Slot], fractions: Tensor | None = None) -> Tensor:
    """Rows of the temporal code (T, Cm) for ``slots``; -1 is the last row, None a row of zeros, a fraction lies between
    two rows; ``fractions`` (len(slots)) are those of the slots, if they are on the device already. A scalar integer tensor is
    taken as it is. -> (len(slots), Cm)."""
    rows = code.shape[0]
    if any(isinstance(s, Tensor) for s in slots):
        codes = slot_rows(code, [0 if isinstance(s, Tensor) else s for s in slots], fractions).unbind()
        chosen = [code.index_select(0, s.view(1))[0] if isinstance(s, Tensor) else row for s, row in zip(slots, codes)]
        return torch.stack(chosen)
    if any(map(is_fraction, slots)):
        below = slot_rows(code, [s if s is None else math.floor(s) for s in slots])
        above = slot_rows(code, [s if s is None else math.ceil(s) for s in slots])
        if fractions is None:
            fractions = to_device_async(fractions_of(slots), code.device, code.dtype)
        return torch.lerp(below, above, fractions.to(code.dtype).unsqueeze(1))
    invalid = sorted({s for s in slots if s is not None and not -1 <= s < rows})
    if invalid:
        raise ValueError(f"expected temporal slots in 0..{rows - 1}, -1 (prompt) or None, got {invalid}")
    vectors = code.unbind()
    if None in slots:
        vectors = (*vectors, code.new_zeros(code.shape[1]))
    return torch.stack([vectors[rows if s is None else int(s) % rows] for s in slots]) if slots else code[:0]


def is_fraction(slot: Slot) -> bool:
    """Whether a slot lies between two rows."""
    return isinstance(slot, float) and not slot.is_integer()


def fractions_of(slots: Sequence[Slot]) -> list[float]:
    """How far every slot lies behind the row below it."""
    return [0.0 if s is None or isinstance(s, Tensor) else s % 1 for s in slots]
