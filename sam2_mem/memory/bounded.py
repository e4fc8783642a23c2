"""Any policy within a budget of bytes: a wrapper, chosen by ``memory_bound=bytes`` beside ``memory_policy``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sam2_mem.memory.policy import Bank, MemoryPolicy, Needs
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead, MemoryTokens, MergeRequest


@dataclass(frozen=True, kw_only=True)
class Bounded(MemoryPolicy[Bank]):
    """``policy``, which gives up memory after every write and prompt until it fits.

    States are those of ``policy``. With a budget that ``policy`` never reaches this is ``policy``.

    Attributes:
        policy: the one that decides otherwise. max_bytes: spatial memory of one object. bytes_per_token: of one token;
            128 for SAM 2's 64 channels in bfloat16.
    """

    policy: MemoryPolicy
    max_bytes: int
    bytes_per_token: int = 128

    def __post_init__(self) -> None:
        if not isinstance(self.policy, MemoryPolicy):
            raise ValueError(f"expected a MemoryPolicy to bound, got {type(self.policy).__name__}")
        for name in ("max_bytes", "bytes_per_token"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")

    @property
    def max_tokens(self) -> int:
        """Spatial memory tokens that the budget pays for."""
        return self.max_bytes // self.bytes_per_token

    def capacity(self, tokens_per_map: int) -> int:
        own = self.policy.capacity(tokens_per_map)
        return self.max_tokens if own is None else min(own, self.max_tokens)

    # -- verbs that change the state ----------------------------------------------------------------------------

    def prompt(self, state: Any, frame: FrameContext, entry: MemoryEntry) -> Any:
        """As ``policy``. ValueError where the budget does not pay for the fewest tokens it can do with."""
        if entry.tokens is not None:
            least = self.policy.least_capacity(len(entry.tokens))
            if self.max_tokens < least:
                name = type(self.policy).__name__
                raise ValueError(
                    f"expected max_bytes >= {least * self.bytes_per_token} for {name} with memory maps of "
                    f"{len(entry.tokens)} tokens, got {self.max_bytes}; give it more, or distil the maps"
                )
        return self._fit(self.policy.prompt(state, frame, entry), frame)

    def write(
        self,
        state: Any,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Any:
        return self._fit(self.policy.write(state, frame, hypotheses, choice, entries), frame)

    def condensed(self, state: Any, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> Any:
        return self._fit(self.policy.condensed(state, frame, request, tokens), frame)

    def _fit(self, state: Any, frame: FrameContext) -> Any:
        return self.policy.shrink(state, frame, self.max_tokens)

    # -- the rest is the policy's; see also below the class -------------------------------------------------------

    @property
    def unwrapped(self) -> MemoryPolicy:
        return self.policy.unwrapped

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    @property
    def min_obj_score_logits(self) -> float:
        return self.policy.min_obj_score_logits

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]:
        return self.policy.read(state, frame)


def _delegated(name: str) -> Callable[..., Any]:
    def verb(self: Bounded, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.policy, name)(*args, **kwargs)

    verb.__name__ = name
    verb.__doc__ = f"That of ``policy``; see :meth:`MemoryPolicy.{name}`."
    return verb


for _name, _value in vars(MemoryPolicy).items():
    if callable(_value) and not _name.startswith("_") and _name not in vars(Bounded):
        setattr(Bounded, _name, _delegated(_name))
