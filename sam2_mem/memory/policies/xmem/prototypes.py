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

    ``tokens`` as they are read; ``key`` (N, C) image features, as they were on the frame ``source`` (N); ``use`` (N)
    attention received and ``life`` (N) reads taken part in, float32.
    """

    tokens: MemoryTokens
    key: Tensor
    source: Tensor
    use: Tensor
    life: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, index: Tensor) -> LongTermMemory:
        """The prototypes at ``index`` (n), or where a mask (N) is true."""
        rest = (x[index] for x in (self.key, self.source, self.use, self.life))
        return LongTermMemory(MemoryTokens(*_each(lambda x: x[index], self.tokens)), *rest)

    def joined(self, new: LongTermMemory) -> LongTermMemory:
        """These, then ``new``."""
        mine, other = (self.key, self.source, self.use, self.life), (new.key, new.source, new.use, new.life)
        return LongTermMemory(join_tokens([self.tokens, new.tokens]), *(torch.cat(pair) for pair in zip(mine, other)))

    def most_used(self, count: int) -> LongTermMemory | None:
        """Exactly the ``count`` of highest use over life, in order of age; the oldest of equals. None for nothing."""
        keep = largest(self.use / self.life, count)
        return self.at(keep.sort().values) if len(keep) else None


def join_tokens(tokens: Sequence[MemoryTokens]) -> MemoryTokens:
    """One after the other, on the device of the features: positions stay behind where memory is stored elsewhere. Where
    some have coordinates or counts, the others get those that memory attention takes them to have, zeros."""
    device = tokens[0].feat.device
    feat, pos = (torch.cat(part).to(device) for part in ([t.feat for t in tokens], [t.pos for t in tokens]))
    xy = _joined([t.xy for t in tokens], [t.pos.new_zeros(len(t), 2) for t in tokens])
    log_count = _joined([t.log_count for t in tokens], [t.pos.new_zeros(len(t)) for t in tokens])
    return MemoryTokens(feat, pos, *(x if x is None else x.to(device) for x in (xy, log_count)))


def _joined(parts: Sequence[Tensor | None], zeros: Sequence[Tensor]) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    return torch.cat([z if part is None else part for part, z in zip(parts, zeros)])


def potentiated(
    source: MemoryTokens, index: Tensor, scores: Tensor, *, keep_key: bool, renorm: bool, count: bool
) -> MemoryTokens:
    """Prototypes of the candidates ``source``: every one keeps its place and is given the average value of what looks
    like it.

    SAM 2 takes keys from feat + pos and values from feat. So that the key stays that of the original token while the
    value is the average, pos takes up the difference.

    Args:
        source: N candidates. index: (P) the chosen ones. scores: (N, P) similarity of candidates and chosen ones.
        keep_key: let pos take up the difference. renorm: scale an average to the mean length of its parts.
        count: a prototype stands for as many tokens as are most similar to it.
    """
    weights = scores.softmax(0)
    values = source.feat.float()
    mean = average(values, weights)
    if renorm:
        length = average(values.norm(dim=1, keepdim=True), weights)
        mean = mean * length / mean.norm(dim=1, keepdim=True).clamp(min=1e-6)
    feat = mean.to(source.feat.dtype)
    pos = source.pos[index]
    if keep_key:
        pos = pos + (values[index] - feat.float())
    xy = None if source.xy is None else source.xy[index]
    return MemoryTokens(feat, pos, xy, _log_counts(source, index, scores, count))


def _log_counts(source: MemoryTokens, index: Tensor, scores: Tensor, count: bool) -> Tensor | None:
    if not count:
        return None if source.log_count is None else source.log_count[index]
    each = scores.new_ones(len(scores)) if source.log_count is None else source.log_count.exp()
    members = scores.new_zeros(len(index)).index_add_(0, scores.argmax(1), each)
    return members.clamp(min=1).log()


def _each(change, tokens: MemoryTokens) -> list[Tensor | None]:
    return [None if x is None else change(x) for x in (tokens.feat, tokens.pos, tokens.xy, tokens.log_count)]
