"""Updates of sensory memory, for all objects of a frame at once.

An output carries its object's state on the way to memory: already updated on an ordinary frame, still to be updated
where the frame's own memory map does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.mask_decoder import DecoderMaps
from sam2_mem.model.sam2 import SAM2
from sam2_mem.model.sensory import SensoryMemory
from sam2_mem.tracking.track import MaskOutput
from sam2_mem.types import SensoryUpdate

LOGIT_LIMIT = 32.0


def active(model: SAM2, policy: MemoryPolicy) -> SensoryMemory | None:
    """The model's sensory memory if it is to be run: the policy keeps its state, and it is in training or trained."""
    sensory = model.sensory
    if sensory is None or not policy.needs.sensory:
        return None
    return sensory if model.training or not sensory.is_absent() else None


def maps_at(maps: DecoderMaps | None, row: int) -> DecoderMaps:
    """One row of R."""
    assert maps is not None, "the decoder keeps its maps where there is sensory memory"
    return DecoderMaps(*(m[row] for m in maps))


def carried(
    sensory: SensoryMemory,
    outputs: Sequence[MaskOutput],
    updates: Sequence[SensoryUpdate],
    before: Sequence[Tensor | None],
    maps: Sequence[DecoderMaps],
) -> list[MaskOutput]:
    """Outputs that carry their object's state, light updates done.

    Args:
        sensory: the model's part.
        outputs: of N objects.
        updates: (N) how each state is updated.
        before: (N) states (Ch, H, W), None before the first.
        maps: (N) of the decoder.
    """
    states = list(before)
    light = [i for i, update in enumerate(updates) if update is SensoryUpdate.LIGHT]
    if light:
        rows = DecoderMaps(*(torch.stack(stage) for stage in zip(*(maps[i] for i in light))))
        logits = torch.stack([outputs[i].logits for i in light]).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        after = sensory.after_frame(_stacked(sensory, [states[i] for i in light], rows.cells), rows, logits)
        for i, state in zip(light, after):
            states[i] = state
    return [replace(o, sensory=s, update=u) for o, s, u in zip(outputs, states, updates)]


def deepened(sensory: SensoryMemory, outputs: Sequence[MaskOutput], memory: Tensor) -> list[Tensor | None]:
    """States of outputs after the deep updates, from their memory maps (R, Cm, H, W)."""
    states = [o.sensory for o in outputs]
    deep = [i for i, o in enumerate(outputs) if o.update is SensoryUpdate.DEEP]
    if deep:
        hidden = _stacked(sensory, [states[i] for i in deep], memory)
        for i, state in zip(deep, sensory.after_memory(hidden, memory[deep])):
            states[i] = state
    return states


def _stacked(sensory: SensoryMemory, states: Sequence[Tensor | None], maps: Tensor) -> Tensor:
    """States (N, Ch, H, W) on the grid of ``maps`` (..., H, W); fresh ones where there is none."""
    fresh = sensory.fresh(1, (maps.shape[-2], maps.shape[-1]))
    return torch.stack([fresh[0] if s is None else s.to(fresh) for s in states])
