"""Any short-term policy beside any rule of long-term memory: a wrapper, ``memory_policy=hybrid``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sam2_mem.memory.anchors import AnchorBank, AnchorRule, Tracked
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.bounded import PolicyWrapper
from sam2_mem.memory.hybrid_bank import HybridBank
from sam2_mem.memory.policy import MeasuresReads, MemoryPolicy, Merging, Needs, setting
from sam2_mem.memory.reading import time_span
from sam2_mem.memory.trace import EntryInfo, infos_of
from sam2_mem.types import (
    PROMPT_SLOT,
    ArchivedEntry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadItem,
    ReadPointer,
    ReadUsage,
)


@dataclass(frozen=True, kw_only=True)
class Hybrid(PolicyWrapper):
    """A short-term policy that chooses recent frames, and a long-term memory of anchors («Rethinking memory design», 2025,
    arXiv 2512.22624).

    Masks are chosen and memory is written by ``short``. On every tracked frame ``long`` says whether the frame becomes an
    anchor. A read is that of ``short``, and the anchors that it does not read anyway, in the slot of prompts, with their
    pointers; ``short`` reads as many maps fewer as there are anchors, if it has a ``num_maskmem``. With ``long`` None this
    is ``short``.

    Attributes:
        short: the short-term policy; in a config the name of one, or a mapping with its ``_target_``.
        long: the rule, likewise (of the group ``memory_anchor``); None for no long-term memory.
        min_short: maps that ``short`` reads at least, prompts included.
    """

    short: MemoryPolicy
    long: AnchorRule | None
    min_short: int = setting(2, at_least=1)
    policy: MemoryPolicy = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", self.short)
        super().__post_init__()
        if self.long is not None and not isinstance(self.long, AnchorRule):
            raise ValueError(f"expected a rule of long-term memory (memory_anchor), got {type(self.long).__name__}")
        self._narrow(0 if self.long is None else self.long.max_long)  # an error here and not on the first anchor

    @property
    def unwrapped(self) -> MemoryPolicy:
        return self

    @property
    def needs(self) -> Needs:
        summary = self.long is not None and self.long.needs.summary
        return replace(self.short.needs, summary=self.short.needs.summary or summary)

    def capacity(self, tokens_per_map: int) -> int | None:
        """That of ``short``, and the maps of ``long``."""
        capacity = self.short.capacity(tokens_per_map)
        return capacity if capacity is None or self.long is None else capacity + tokens_per_map * self.long.max_maps

    def inner_state(self, state: Any) -> Bank:
        return state.short

    def new_state(self, frame: FrameContext) -> HybridBank:
        return HybridBank.joint(self.short.new_state(frame), AnchorBank())

    def prompt(self, state: Any | None, frame: FrameContext, entry: MemoryEntry) -> HybridBank:
        if state is None:
            return HybridBank.joint(self.short.prompt(None, frame, entry), AnchorBank())
        return HybridBank.joint(self.short.prompt(state.short, frame, entry), state.anchors.without(entry.frame))

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]:
        anchors = [e for e in state.anchors.long if e.frame != frame.index]
        reads = self._narrow(len(anchors)).read(state.short, frame)
        if not anchors:
            return reads
        frames = {id(e.tokens): e.frame for e in state.short.all_entries() if e.tokens is not None}
        return tuple(self._with_anchors(read, anchors, frames, frame) for read in reads)

    def _narrow(self, anchors: int) -> MemoryPolicy:
        """``short`` for a read beside so many anchors."""
        maps = getattr(self.short, "num_maskmem", None)
        if maps is None or not anchors:
            return self.short
        return replace(self.short, num_maskmem=max(min(maps, self.min_short), maps - anchors))  # type: ignore[call-arg]

    def _with_anchors(
        self, read: MemoryRead, anchors: Sequence[MemoryEntry], frames: Mapping[int, int], frame: FrameContext
    ) -> MemoryRead:
        recent = {frames.get(id(item.tokens)) for item in read.items}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in anchors if e.frame not in recent]
        known, span = {id(p.pointer) for p in read.pointers}, time_span(frame, self.max_obj_ptrs_in_encoder)
        past = [e for e in anchors if id(e.pointer) not in known and frame.age(e.frame) > 0]
        pointers = [ReadPointer(e.pointer, frame.age(e.frame) / span) for e in past]
        return replace(read, items=(*read.items, *items), pointers=(*read.pointers, *pointers))

    # -- what goes to the short-term policy ---------------------------------------------------------------------

    def measure(
        self, state: Any, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        own = self.short.measure(state.short, frame, masks, self._own_usage(state, frame, usage))
        of_rule = None if self.long is None else self.long.measure(state.anchors, frame, masks)
        numbers = [x.flatten() for x in (own, of_rule) if x is not None]
        return torch.cat(numbers) if numbers else None

    def measure_for_read(self, state: Any, frame: FrameContext, *, told_apart: bool) -> Tensor | None:
        """Of the read beside anchors, which are read but once."""
        anchors = [e for e in state.anchors.long if e.frame != frame.index]
        short = self._narrow(len(anchors))
        told_apart = told_apart or bool(anchors)
        measures = isinstance(short, MeasuresReads)
        return short.measure_for_read(state.short, frame, told_apart=told_apart) if measures else None

    def choose(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        usage, (own, _) = self._own_usage(state, frame, hypotheses.usage), _split(self.long, state, frame, hypotheses)
        return self.short.choose(state.short, frame, replace(hypotheses, usage=usage, measured=own))

    def _own_usage(
        self, state: Any, frame: FrameContext, usage: Sequence[ReadUsage] | None
    ) -> tuple[ReadUsage, ...] | None:
        """Usage of what ``short`` reads, without that of the anchors behind it."""
        if usage is None:
            return None
        anchors = [e for e in state.anchors.long if e.frame != frame.as_read.index]
        counts = [len(read.items) for read in self._narrow(len(anchors)).read(state.short, frame.as_read)]
        return tuple(_first_items(u, n) for u, n in zip(usage, counts))

    def write(
        self,
        state: Any,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> HybridBank:
        usage, (own, of_rule) = (
            self._own_usage(state, frame, hypotheses.usage),
            _split(self.long, state, frame, hypotheses),
        )
        visible = replace(hypotheses, usage=usage, measured=own)
        short = self.short.write(state.short, frame, visible, selection, entries)
        anchors = state.anchors.without(frame.index)
        if self.long is None:
            return HybridBank.joint(short, anchors)
        output = selection.output
        same = lambda c: (c.pathway, c.candidate) == (output.pathway, output.candidate)  # noqa: E731
        entry = next((e for c, e in zip(selection.remember, entries) if same(c)), None)
        gate = self.short.min_obj_score_logits
        anchors, reasons = self.long.update(
            anchors, Tracked(frame, replace(hypotheses, measured=of_rule), selection, entry, short.prompts, gate)
        )
        return replace(HybridBank.joint(short, anchors), reasons=(*short.reasons, *reasons))

    def recall(self, state: Any, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> HybridBank:
        return HybridBank.joint(self.short.recall(state.short, frame, archived), state.anchors)

    def forget(self, state: Any, frame: int, radius: int) -> HybridBank:
        return HybridBank.joint(self.short.forget(state.short, frame, radius), state.anchors.forget(frame, radius))

    def unprompt(self, state: Any, frame: int) -> HybridBank | None:
        short = self.short.unprompt(state.short, frame)
        return None if short is None else HybridBank.joint(short, state.anchors)

    def take_merged(self, state: Any, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> HybridBank:
        assert isinstance(self.short, Merging), "only a policy that merges makes requests"
        return HybridBank.joint(self.short.take_merged(state.short, frame, request, tokens), state.anchors)

    def entry_infos(self, state: Any, frame: FrameContext) -> Sequence[EntryInfo]:
        kinds = {id(e): "anchor" for e in state.anchors.long} | {id(e): "candidate" for e in state.anchors.pool}
        infos = [EntryInfo(e.frame, kinds[id(e)], e.tokens) for e in state.anchors.entries()]
        return (*infos_of(self.short, state.short, frame), *infos)


def _first_items(usage: ReadUsage, count: int) -> ReadUsage:
    """Usage of the first ``count`` items of a read."""
    tokens = None if usage.tokens is None else usage.tokens[:count]
    return ReadUsage(tokens, None if usage.items is None else usage.items[:, :count])


def _split(
    rule: AnchorRule | None, state: Any, frame: FrameContext, hypotheses: Hypotheses
) -> tuple[Tensor | None, Tensor | None]:
    """What was measured, for ``short`` and for the rule of anchors behind it."""
    numbers = hypotheses.measured
    size = 0 if rule is None else rule.measured_size(state.anchors, frame, hypotheses.masks)
    if numbers is None or not size:
        return numbers, None
    own, of_rule = numbers.tensor_split([len(numbers) - size])
    return own if len(own) else None, of_rule
