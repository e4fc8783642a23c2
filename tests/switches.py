"""Speed-ups that may not change a result, each undone for as long as a context lasts: for the tests that compare and
for ``measure_speedups.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from sam2_mem.model import fpn, rotary_attention
from sam2_mem.model.acceleration import onednn_linear
from sam2_mem.model.attention_operators import Auto, Exact
from sam2_mem.model.memory_attention import MemoryAttention
from sam2_mem.model.rope import Rotation
from sam2_mem.model.trunks import hiera
from sam2_mem.tracking import batching


def rotary_by_parts() -> AbstractContextManager:
    """Cosines and sines apart, not one complex product."""
    return patch.object(Rotation, "of", classmethod(lambda cls, cos, sin: cls(cos, sin)))


def a_first_layer_for_each_row() -> AbstractContextManager:
    """The first self-attention runs once per object and pathway."""
    return patch.object(MemoryAttention, "_start", lambda self, image, rows: image.expand(rows.rows, -1, -1))


def values_at_full_width() -> AbstractContextManager:
    """SAM 2's attention, by torch's own kernel."""
    return patch.object(Auto, "_choose", lambda self, *sizes: Exact())


@contextmanager
def scores_to_the_base_of_e() -> Iterator[None]:
    """Powers of e, not of two."""
    with patch.object(rotary_attention, "LOG2_E", 1.0), patch.object(rotary_attention, "power_", Tensor.exp_):
        yield


def windows_filled_up_first() -> AbstractContextManager:
    """What sticks out of the map is projected too."""

    def forward(self: hiera.PooledAttention, x: Tensor, window: int = 0) -> Tensor:
        if not window:
            return self.proj(self._attend(self.qkv(x)))
        batch, height, width, _ = x.shape
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        parts = self.proj(self._attend(self.qkv(hiera._split_windows(x, window))))
        stride_y, stride_x = self.pool or (1, 1)
        return hiera._join_windows(parts, batch, x.shape[1] // window)[:, : height // stride_y, : width // stride_x]

    return patch.object(hiera.PooledAttention, "forward", forward)


def linear_maps_by_torch() -> AbstractContextManager:
    """And not by oneDNN."""
    return patch.object(onednn_linear, "_one_dnn", lambda: False)


def whole_maps_through_blocks() -> AbstractContextManager:
    """Blocks of the image encoder take maps of any size at once."""
    return patch.object(hiera, "STRIP_CELLS", 1 << 40)


def position_map_made_anew() -> AbstractContextManager:
    """For every picture."""
    return patch.object(hiera.Hiera, "_cached_position", lambda self, *size: self.position_map(*size))


def fine_maps_at_full_width() -> AbstractContextManager:
    """Lateral convolutions of the pyramid and those of the decoder one after the other."""
    return patch.object(fpn, "fused_convolution", lambda lateral, head, stage: head(lateral(stage)))


def all_rows_together() -> AbstractContextManager:
    """Batches of any size on a CPU."""
    return patch.object(batching, "CPU_BATCH", 1 << 40)


SWITCHES: dict[str, Callable[[], AbstractContextManager]] = {
    s.__name__: s
    for s in (
        rotary_by_parts,
        a_first_layer_for_each_row,
        values_at_full_width,
        scores_to_the_base_of_e,
        linear_maps_by_torch,
        whole_maps_through_blocks,
        windows_filled_up_first,
        position_map_made_anew,
        fine_maps_at_full_width,
        all_rows_together,
    )
}


@contextmanager
def all_undone() -> Iterator[None]:
    """None of the speed-ups."""
    with ExitStack() as undone:
        for switch in SWITCHES.values():
            undone.enter_context(switch())
        yield
