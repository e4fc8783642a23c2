"""Any policy within a budget of bytes that is kept by single tokens: a wrapper, chosen by ``memory_bound=tokens``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sam2_mem.memory.bounded import Bounded
from sam2_mem.memory.policy import Needs, setting
from sam2_mem.memory.tokens import gather_tokens
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.types import (
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadUsage,
    Usage,
)


@dataclass(frozen=True, eq=False)
class CountedTokens(MemoryTokens):
    """Tokens with the attention that they have received so far.

    Attributes:
        received: (L) float32, summed over frames.
        reads: of these frames.
    """

    received: Tensor | None = None
    reads: int = 0


Attention = Mapping[int, Tensor]
"""Attention (L) that tokens received, by the identity of their ``MemoryTokens``."""


@dataclass(frozen=True, kw_only=True)
class TokenBounded(Bounded):
    """``policy``, whose tracked maps give up their least valuable tokens after every write until memory fits.

    Tokens of all tracked frames but the one just written compete with each other; a map keeps at least one. Where that is not
    enough, whole frames leave as under ``Bounded``. Scores are those of caches of language models (Devoto et al. 2024, arXiv
    2406.11430; SnapKV, Li et al. 2024, arXiv 2404.14469), read for memory tokens.

    Attributes:
        score: what tokens are valued by. "knorm": the norm of feature plus position, the input of memory attention's keys,
            small is valuable. "snap": the attention received from the queries of the latest frame; tokens that it did not read
            are worth nothing. "expected": the same of queries distributed as those are (``Usage.EXPECTED``). "usage": the mean of it over all frames that have read the token (XMem, Cheng & Schwing 2022).
    """

    score: str = setting("knorm", choices=("knorm", "snap", "expected", "usage"))

    @property
    def _by_attention(self) -> bool:
        return self.score != "knorm"

    @property
    def _kind(self) -> Usage:
        """The attention that the score goes by, if it does."""
        return Usage.EXPECTED if self.score == "expected" else Usage.TOKENS

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self.policy.unwrapped).__name__
        if self.policy.needs.whole_maps:
            raise ValueError(f"expected a policy that reads parts of maps, got {name}; use memory_bound=bytes")
        if self._by_attention and self.policy.needs.usage not in (Usage.NONE, self._kind):
            raise ValueError(
                f"expected score=knorm for {name}, which asks for another kind of attention, got {self.score!r}"
            )

    @property
    def needs(self) -> Needs:
        needs = self.policy.needs
        return replace(needs, usage=self._kind) if self._by_attention else needs

    def measure_for_read(self, state: Any, frame: FrameContext, *, told_apart: bool) -> Tensor | None:
        return super().measure_for_read(state, frame, told_apart=told_apart or self._by_attention)

    def usage_at(self, state: Any, frame: FrameContext) -> Usage:
        return self._kind if self._by_attention else super().usage_at(state, frame)

    def write(
        self,
        state: Any,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Any:
        attention: Attention = {}
        if self._by_attention:
            assert hypotheses.usage is not None, "usage was asked for"
            attention = received(self.policy.read(state, frame.as_read), hypotheses.usage)
        written = self.policy.write(state, frame, hypotheses, selection, entries)
        if self.score == "usage":
            tracked = [e.tokens for e in written.all_entries() if e.tokens is not None and not e.is_prompt]
            written = replace_tokens(written, counted(tracked, attention))
        return self._fit(self._thin(written, frame, attention), frame)

    def _thin(self, state: Any, frame: FrameContext, attention: Attention) -> Any:
        """``state`` with as few tokens less as make it fit, of the lowest value."""
        excess = state.token_count() - self.max_tokens
        tracked = [
            e for e in state.all_entries() if e.tokens is not None and not e.is_prompt and e.frame != frame.index
        ]
        maps = list({id(e.tokens): e.tokens for e in tracked}.values())
        if excess <= 0 or not maps:
            return state
        values = [self._values(tokens, attention) for tokens in maps]
        return replace_tokens(state, thinned(maps, values, excess))

    def _values(self, tokens: MemoryTokens, attention: Attention) -> Tensor:
        """How valuable each of ``tokens`` is, (L) float32."""
        if self.score == "knorm":
            feat = tokens.feat.to(tokens.pos.device, non_blocking=True)
            return -(feat.float() + tokens.pos.float()).norm(dim=1)
        if self.score == "usage" and isinstance(tokens, CountedTokens) and tokens.received is not None:
            return tokens.received / tokens.reads
        mass = None if self.score == "usage" else attention.get(id(tokens))
        return torch.zeros(len(tokens), device=tokens.pos.device) if mass is None else mass.float()


def received(reads: Sequence[MemoryRead], usage: Sequence[ReadUsage]) -> Attention:
    """Attention that the items of ``reads`` received, over all pathways."""
    total: dict[int, Tensor] = {}
    for read, use in zip(reads, usage):
        assert use.tokens is not None, "usage by token was asked for"
        for item, mass in zip(read.items, use.tokens):
            total[id(item.tokens)] = total[id(item.tokens)] + mass if id(item.tokens) in total else mass
    return total


def counted(maps: Sequence[MemoryTokens], attention: Attention) -> dict[int, MemoryTokens]:
    """Those of ``maps`` that were read, with what they received added, by the identity of what they were."""
    result: dict[int, MemoryTokens] = {}
    for tokens in maps:
        mass = attention.get(id(tokens))
        if mass is None or id(tokens) in result:
            continue
        before = tokens if isinstance(tokens, CountedTokens) else CountedTokens(**vars(tokens))
        total = mass.float() if before.received is None else before.received + mass
        result[id(tokens)] = replace(before, received=total, reads=before.reads + 1)
    return result


def thinned(maps: Sequence[MemoryTokens], values: Sequence[Tensor], excess: int) -> dict[int, MemoryTokens]:
    """The maps that lose tokens, as they are then, by the identity of what they were.

    Args:
        maps: M sets of tokens, none of them empty.
        values: (L) of each.
        excess: tokens to go, those of lowest value over all maps; of each map the most valuable one stays.
    """
    safe = [value.index_fill(0, value.argmax().view(1), float("inf")) for value in values]
    flat = torch.cat([value.to(safe[0].device) for value in safe])
    count = min(excess, len(flat) - len(maps))
    if count <= 0:
        return {}
    goes = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    goes[flat.topk(count, largest=False).indices] = True
    sizes = [len(tokens) for tokens in maps]
    stays = [(~part).nonzero().flatten() for part in goes.cpu().split(sizes)]
    result: dict[int, MemoryTokens] = {}
    for tokens, index, part in zip(maps, stays, goes.split(sizes)):
        if len(index) < len(tokens):
            is_there = tokens.feat.is_cuda
            result[id(tokens)] = _gathered(
                tokens, part.byte().argsort(stable=True)[: len(index)] if is_there else index
            )
    return result


def _gathered(tokens: MemoryTokens, index: Tensor) -> MemoryTokens:
    gathered = gather_tokens(tokens, index)
    if not isinstance(tokens, CountedTokens) or tokens.received is None:
        return gathered
    position = to_device_async(index, tokens.received.device)
    return CountedTokens(**vars(gathered), received=tokens.received[position], reads=tokens.reads)


def replace_tokens(state: Any, new: Mapping[int, MemoryTokens]) -> Any:
    """``state`` with other tokens wherever it holds some, in any of its fields; what is one object stays one object.

    Args:
        state: a state made of dataclasses, tuples, dicts, tensors and numbers.
        new: by the identity of the tokens that are replaced.
    """
    done: dict[int, Any] = dict(new)

    def visit(value: Any) -> Any:
        if isinstance(value, tuple | list):
            parts = [visit(part) for part in value]
            return value if all(a is b for a, b in zip(parts, value)) else type(value)(parts)
        if isinstance(value, dict):
            return {key: visit(part) for key, part in value.items()}
        if not is_dataclass(value) or isinstance(value, type):
            return value
        if id(value) not in done:
            values = {f.name: visit(getattr(value, f.name)) for f in fields(value) if f.init}
            changed = {name: part for name, part in values.items() if part is not getattr(value, name)}
            done[id(value)] = replace(value, **changed) if changed else value
        return done[id(value)]

    return visit(state)
