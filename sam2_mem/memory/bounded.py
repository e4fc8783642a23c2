"""Any policy within a budget of bytes: a wrapper, chosen by ``memory_bound=bytes`` beside ``memory_policy``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import HasSensory, MeasuresReads, MemoryPolicy, Merging, Needs, Revising, setting
from sam2_mem.memory.questions import Probe, Probing
from sam2_mem.memory.trace import EntryInfo, Reason, infos_of
from sam2_mem.types import (
    ArchivedEntry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadUsage,
    Revision,
    Usage,
)

OVER_BUDGET = "over the budget of bytes"


@dataclass(frozen=True, kw_only=True)
class PolicyWrapper(MemoryPolicy[Bank]):
    """Does as ``policy`` does, its abilities included, wherever a subclass does not say otherwise.

    Attributes:
        policy: the one that is wrapped.
    """

    policy: MemoryPolicy
    max_obj_ptrs_in_encoder: int = field(init=False, repr=False)
    max_prompts: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.policy, MemoryPolicy):
            raise ValueError(f"expected a MemoryPolicy to bound, got {type(self.policy).__name__}")
        for name in ("max_obj_ptrs_in_encoder", "max_prompts"):
            object.__setattr__(self, name, getattr(self.policy, name))
        super().__post_init__()

    @property
    def unwrapped(self) -> MemoryPolicy:
        return self.policy.unwrapped

    @property
    def needs(self) -> Needs:
        return self.policy.needs

    min_obj_score_logits = property(attrgetter("policy.min_obj_score_logits"))
    num_pathways = property(attrgetter("policy.num_pathways"))

    def inner_state(self, state: Any) -> Any:
        """The state of ``policy``. Override where it is a part of the wrapper's."""
        return state

    def usage_at(self, state: Any, frame: FrameContext) -> Usage:
        return self.policy.usage_at(self.inner_state(state), frame)

    def measure(
        self, state: Any, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        return self.policy.measure(self.inner_state(state), frame, masks, usage)

    def new_state(self, frame: FrameContext) -> Any:
        return self.policy.new_state(frame)

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]:
        return self.policy.read(state, frame)

    def choose(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        return self.policy.choose(state, frame, hypotheses)

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        return self.policy.frames_behind(frame)

    def recall(self, state: Any, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> Any:
        return self.policy.recall(state, frame, archived)

    def forget(self, state: Any, frame: int, radius: int) -> Any:
        return self.policy.forget(state, frame, radius)

    def unprompt(self, state: Any, frame: int) -> Any:
        return self.policy.unprompt(state, frame)

    def merge_requests(self, state: Any, frame: FrameContext) -> Sequence[MergeRequest]:
        return self.policy.merge_requests(self.inner_state(state), frame) if isinstance(self.policy, Merging) else ()

    def revise(self, state: Any, frame: FrameContext) -> Sequence[Revision]:
        return self.policy.revise(self.inner_state(state), frame) if isinstance(self.policy, Revising) else ()

    def finish(self, state: Any) -> Sequence[Revision]:
        return self.policy.finish(self.inner_state(state)) if isinstance(self.policy, Revising) else ()

    def sensory(self, state: Any) -> Tensor | None:
        return self.policy.sensory(self.inner_state(state)) if isinstance(self.policy, HasSensory) else None

    def probes(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> Sequence[Probe]:
        is_probing = isinstance(self.policy, Probing)
        return self.policy.probes(self.inner_state(state), frame, hypotheses) if is_probing else ()

    def entry_infos(self, state: Any, frame: FrameContext) -> Sequence[EntryInfo]:
        return infos_of(self.policy, state, frame)


@dataclass(frozen=True, kw_only=True)
class Bounded(PolicyWrapper):
    """``policy``, which gives up memory after every write and prompt until it fits.

    States are those of ``policy``, and so are its abilities. With a budget that ``policy`` never reaches this is ``policy``.

    Attributes:
        max_bytes: spatial memory of one object.
        bytes_per_token: of one token; 128 for SAM 2's 64 channels in bfloat16.
    """

    max_bytes: int = setting(2**21, at_least=1)
    bytes_per_token: int = setting(128, at_least=1)

    @property
    def max_tokens(self) -> int:
        """Spatial memory tokens that the budget pays for."""
        return self.max_bytes // self.bytes_per_token

    def capacity(self, tokens_per_map: int) -> int:
        capacity = self.policy.capacity(tokens_per_map)
        return self.max_tokens if capacity is None else min(capacity, self.max_tokens)

    def measure_for_read(self, state: Any, frame: FrameContext, *, told_apart: bool) -> Tensor | None:
        if not isinstance(self.policy, MeasuresReads):
            return None
        return self.policy.measure_for_read(state, frame, told_apart=told_apart)

    # -- changes of the state -----------------------------------------------------------------------------------

    def prompt(self, state: Any, frame: FrameContext, entry: MemoryEntry) -> Any:
        """As ``policy``. ValueError where the budget does not pay for the fewest tokens it can do with."""
        least = least_capacity(self.policy, len(entry.tokens))
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
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Any:
        return self._fit(self.policy.write(state, frame, hypotheses, selection, entries), frame)

    def recall(self, state: Any, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> Any:
        return self._fit(self.policy.recall(state, frame, archived), frame)

    def take_merged(self, state: Any, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> Any:
        assert isinstance(self.policy, Merging), "only a policy that merges makes requests"
        return self._fit(self.policy.take_merged(state, frame, request, tokens), frame)

    def _fit(self, state: Any, frame: FrameContext) -> Any:
        return fit(self.policy, state, frame, self.max_tokens)


def least_capacity(policy: MemoryPolicy, tokens_per_map: int) -> int:
    """The fewest spatial memory tokens that ``fit`` can always come down to: those of the first prompt and of the frame
    just written, of which every pathway may have a version of its own."""
    return (1 + policy.num_pathways) * tokens_per_map


def fit(policy: MemoryPolicy, state: Any, frame: FrameContext, max_tokens: int) -> Any:
    """``state`` with at most ``max_tokens`` spatial memory tokens. Tracked frames give theirs up, the farthest from
    ``frame`` first, then prompts, the oldest but the first, then memory of no single frame. The first prompt and ``frame``
    itself stay (``least_capacity``)."""
    dropped: list[int] = []
    while state.token_count() > max_tokens:
        others = [e for e in state.all_entries() if e.tokens is not None and e.frame != frame.index]
        tracked = [e.frame for e in others if not e.is_prompt]
        prompts = [e.frame for e in state.prompts[1:] if e.frame != frame.index]
        if tracked:
            dropped.append(max(tracked, key=lambda f: abs(frame.age(f))))
            state = state.drop_tokens(dropped[-1])
        elif prompts:
            dropped.append(prompts[0])
            released = policy.unprompt(state, prompts[0])
            assert released is not None, "the first prompt stays"
            state = released.drop_tokens(prompts[0])
        else:
            state = state.drop_shared_tokens(max_tokens)
            break
    if not dropped:
        return state
    reasons = [r for r in state.reasons if r.frame not in dropped and r.text != OVER_BUDGET]
    return replace(state, reasons=(*reasons, *(Reason(f, OVER_BUDGET) for f in dropped)))
