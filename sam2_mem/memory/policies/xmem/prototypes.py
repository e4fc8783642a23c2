"""Long-term memory of prototypes: tokens that stand for many (XMem, section 3.3). Pure functions and one container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sam2_mem.memory.policies.xmem.affinity import average, largest
from sam2_mem.types import MemoryTokens

INITIAL_LIFE = 1e-7
"""Life of an element that has not been read yet; its normalised usage is 0."""


@dataclass(frozen=True, eq=False)
class LongTermMemory:
    """N prototypes, oldest first.

    Attributes:
        tokens: as they are read.
        key: (N, C) image features, as they were on the frame ``source``.
        source: (N) frame numbers.
        use: (N) attention received, float32.
        life: (N) reads taken part in, float32.
    """

    tokens: MemoryTokens
    key: Tensor
    source: Tensor
    use: Tensor
    life: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def usage(self) -> Tensor:
        """(N) use over life: what decides which prototypes leave."""
        return self.use / self.life

    def at(self, index: Tensor) -> LongTermMemory:
        """The prototypes at ``index`` (n), or where a mask (N) is true."""
        t = self.tokens
        xy, log_count = (None if x is None else x[index] for x in (t.xy, t.log_count))
        tokens = MemoryTokens(t.feat[index], t.pos[index], xy, log_count)
        return LongTermMemory(tokens, *(x[index] for x in (self.key, self.source, self.use, self.life)))

    def joined(self, new: LongTermMemory) -> LongTermMemory:
        """These, then ``new``."""
        pairs = zip((self.key, self.source, self.use, self.life), (new.key, new.source, new.use, new.life))
        return LongTermMemory(join_tokens([self.tokens, new.tokens]), *(torch.cat(pair) for pair in pairs))

    def most_used(self, count: int) -> LongTermMemory | None:
        """Exactly the ``count`` of highest use over life, in order of age; the oldest of equals. None for nothing."""
        index = largest(self.usage(), count)
        return self.at(index.sort().values) if len(index) else None

    def with_room(self, count: int, *, max_size: int, buffer: int) -> LongTermMemory | None:
        """What leaves room for ``count`` new prototypes among ``max_size``: exactly so many of the most used ones. Where
        some have to leave, ``buffer`` more do."""
        room = max_size - count
        return self if len(self) < room else self.most_used(room - buffer)


def join_tokens(tokens: Sequence[MemoryTokens]) -> MemoryTokens:
    """One after the other, on the device of the features: positions stay behind where memory is stored elsewhere. Where
    some have coordinates or counts, the others get those that memory attention takes them to have, zeros."""
    device = tokens[0].feat.device
    feat, pos = (torch.cat(x).to(device) for x in ([t.feat for t in tokens], [t.pos for t in tokens]))
    xy = _join([t.xy for t in tokens], [t.pos.new_zeros(len(t), 2) for t in tokens])
    log_count = _join([t.log_count for t in tokens], [t.pos.new_zeros(len(t)) for t in tokens])
    return MemoryTokens(feat, pos, *(x if x is None else x.to(device) for x in (xy, log_count)))


def _join(tensors: Sequence[Tensor | None], zeros: Sequence[Tensor]) -> Tensor | None:
    if all(x is None for x in tensors):
        return None
    return torch.cat([z if x is None else x for x, z in zip(tensors, zeros)])


def potentiate(source: MemoryTokens, index: Tensor, scores: Tensor) -> MemoryTokens:
    """Prototypes of the candidates ``source``: every one stays where it is and is given the average value of what looks
    like it.

    SAM 2 takes keys from feat + pos and values from feat. So that the key stays that of the original token while the
    value is the average, pos takes up the difference.

    Args:
        source: N candidates.
        index: (P) the chosen ones.
        scores: (N, P) similarity of candidates and chosen ones.
    """
    values = source.feat.float()
    feat = average(values, scores.softmax(0)).to(source.feat.dtype)
    pos = source.pos[index] + (values[index] - feat.float())
    xy, log_count = (None if x is None else x[index] for x in (source.xy, source.log_count))
    return MemoryTokens(feat, pos, xy, log_count)
