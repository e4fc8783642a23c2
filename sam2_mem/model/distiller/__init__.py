"""Token distillers: the last step of memory encoding. They decide what one frame's memory is made of, and how the
memory of several frames becomes one.

A distiller is a module on the memory encoder, so that whatever it learns is stored under
``memory_encoder.distiller.*``. All but EdgeTAM's perceiver start as mean pooling with the right log-counts; see
docs/distiller.md.
"""

from sam2_mem.model.distiller.base import GridTokens, PooledTokens, TokenDistiller
from sam2_mem.model.distiller.perceiver import PerceiverDistiller
from sam2_mem.model.distiller.spatial import SpatialDistiller
from sam2_mem.model.distiller.temporal import TemporalDistiller

__all__ = [
    "GridTokens",
    "PerceiverDistiller",
    "PooledTokens",
    "SpatialDistiller",
    "TemporalDistiller",
    "TokenDistiller",
]
