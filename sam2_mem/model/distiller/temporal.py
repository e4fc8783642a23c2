"""The distiller of neighbouring frames: tubes of a few frames and a window become one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sam2_mem.model.distiller.base import GridTokens, PooledTokens, TokenDistiller
from sam2_mem.model.distiller.parts import FrameGRU, Refinement, WindowAttention
from sam2_mem.model.distiller.spatial import SpatialDistiller
from sam2_mem.model.distiller.windows import EMPTY, Tube, WindowLayout, join_entries
from sam2_mem.types import MemoryTokens

FRAMES = ("spatial", "pool")
AGGREGATORS = ("attention", "gru")


class TemporalDistiller(TokenDistiller):
    """Distils twice: each frame when it is written, and neighbouring frames when a policy asks for their merging
    (``MergeRequest``). Untrained, both are means by count.

    Args:
        memory_width: Cm.
        factor: side, in cells, of the windows of a single frame; 1 stores frames undistilled.
        frame: how a single frame is distilled: "spatial" attention, or "pool" for plain means.
        aggregate: what makes one token of a tube: "attention" over all its tokens at once, or a "gru" over one summary
            per frame.
        key_width: as in ``SpatialDistiller``.
        num_heads: as in ``SpatialDistiller``.
        hidden: as in ``SpatialDistiller``.
    """

    def __init__(
        self,
        *,
        memory_width: int = 64,
        factor: int = 2,
        frame: str = "spatial",
        aggregate: str = "attention",
        key_width: int = 16,
        num_heads: int = 4,
        hidden: int = 128,
    ) -> None:
        super().__init__(factor=factor)
        _check_choice("frame", frame, FRAMES)
        _check_choice("aggregate", aggregate, AGGREGATORS)
        sizes = {"key_width": key_width, "num_heads": num_heads}
        self.frame = _frame_stage(frame, factor, memory_width=memory_width, hidden=hidden, **sizes)
        features = 3 if aggregate == "attention" else 2
        self.attention = WindowAttention(width=memory_width, features=features, **sizes)
        self.recurrence = FrameGRU(width=memory_width) if aggregate == "gru" else None
        self.refinement = Refinement(width=memory_width, hidden=hidden, num_heads=num_heads)
        self.merged_time: nn.Parameter = nn.Parameter(torch.zeros(memory_width))

    @property
    def trained_as(self) -> str:
        return f"{'temporal' if self.recurrence is None else 'temporal_gru'}{self.factor}"

    def forward(self, maps: Tensor) -> list[MemoryTokens]:
        return self.frame(maps)

    def merge(self, tube: Sequence[MemoryTokens], grid: tuple[int, int], cells: int) -> MemoryTokens:
        joined = join_entries(tube, self.merged_time.dtype)
        windows, geometry = joined.windows(cells), joined.geometry(grid, cells)
        pool = self._pool_jointly if self.recurrence is None else self._pool_by_frame
        feat, correction = self.refinement(pool(joined, windows), geometry.pos)
        return MemoryTokens(feat[0], geometry.pos, geometry.xy, geometry.log_count + correction[0])

    def _pool_jointly(self, tube: Tube, windows: WindowLayout) -> Tensor:
        """One attention over all tokens of a window, with their offsets in it and in time: (1, W, Cm)."""
        ages = _time(tube)[windows.tokens].unsqueeze(-1)
        features = torch.cat([windows.offset, ages], dim=-1)
        return self.attention(windows.gather(tube.feat)[None], windows.priors(tube.log_count), features)

    def _pool_by_frame(self, tube: Tube, windows: WindowLayout) -> Tensor:
        """One attention per frame, then a recurrence over the frames: (1, W, Cm)."""
        feat, prior = windows.gather(tube.feat)[None], windows.priors(tube.log_count)
        assert self.recurrence is not None, "only distillers with a recurrence pool frame by frame"
        member = tube.frame[windows.tokens]
        priors = [torch.where(member == t, prior, EMPTY) for t in range(tube.frames)]
        inputs = torch.stack([self.attention(feat, p, windows.offset) for p in priors])
        return self.recurrence(inputs, torch.stack([p.logsumexp(-1) for p in priors]))


def _frame_stage(kind: str, factor: int, **sizes: int) -> TokenDistiller:
    if factor == 1:
        return GridTokens()
    return PooledTokens(factor=factor) if kind == "pool" else SpatialDistiller(factor=factor, **sizes)


def _time(tube: Tube) -> Tensor:
    """Time of every token (N) in its tube, from -1 for the oldest frame to 1 for the newest."""
    return tube.frame.float() * 2 / max(tube.frames - 1, 1) - float(tube.frames > 1)


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"expected {name} out of {', '.join(allowed)}, got {value!r}")
