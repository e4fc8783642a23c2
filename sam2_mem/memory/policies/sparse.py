"""Sparse memory retrieval: a map is read whole once; then only the tokens that were attended to stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.reading import anchors_of, newest_first, pointer_window, recall_accepted, tracked_near
from sam2_mem.memory.tokens import gather_tokens
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    ArchivedEntry,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadUsage,
    Usage,
)


@dataclass(frozen=True, eq=False)
class SparseBank(Bank):
    """A state whose tracked ``entries`` are thin but for the newest.

    Attributes:
        thinned: tracked frames that hold a part of their tokens.
    """

    thinned: tuple[int, ...] = ()

    def shift_frames(self, by: int) -> Self:
        return replace(super().shift_frames(by), thinned=tuple(f + by for f in self.thinned))


@dataclass(frozen=True, kw_only=True)
class Sparse(MemoryPolicy[SparseBank]):
    """Sparse memory retrieval (Efficient-SAM2, ICLR 2026, arXiv 2602.08224), without its sparse image encoder.

    Prompts are read whole, in their slot; the newest tracked frame whole, in slot 0; the ``num_maskmem`` - 2 before it thin, by
    rank. After its first read a map keeps the tokens that received most attention, the others are dropped. Of older frames
    only those with a predicted IoU above ``min_iou`` and an object score above ``min_object_score`` are read. Pointers are
    those of SAM 2.

    With ``keep`` 1, ``min_iou`` -1 and ``min_object_score`` -inf this is FIFO, as long as time does not turn round.

    Departures from the code: tokens are chosen by the attention of one layer (``model.memory_attention.usage_layer``) for all
    layers, where the code has a choice for each; a map that was never read keeps its pointer only, once it is no longer
    the newest.

    Attributes:
        keep: share of a map's tokens that stay, 0.05.
        mode: "topk" keeps that share; "mass" the fewest tokens that received the share ``mass`` of the map's attention.
        mass: for mode "mass", 0..1.
        count: tokens that stay stand for those that went: they gain the logarithm of all over kept. Ours; false in the code.
        min_iou: predicted IoU, 0.3.
        min_object_score: object-score logit, 0.
        num_maskmem: as in FIFO.
    """

    keep: float = setting(0.05, above=0.0, at_most=1.0)
    mode: str = setting("topk", choices=("topk", "mass"))
    mass: float = setting(0.9, above=0.0, at_most=1.0)
    count: bool = False
    min_iou: float = 0.3
    min_object_score: float = 0.0
    num_maskmem: int = setting(7, at_least=2)

    @property
    def needs(self) -> Needs:
        return Needs(usage=Usage.TOKENS)

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, the newest map, thin ones."""
        thin = tokens_per_map if self.mode == "mass" else math.ceil(self.keep * tokens_per_map)
        return tokens_per_map * (self.max_prompts + 1) + (self.num_maskmem - 2) * thin

    def new_state(self, frame: FrameContext) -> SparseBank:
        return SparseBank()

    def read(self, state: SparseBank, frame: FrameContext) -> Sequence[MemoryRead]:
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts]
        items += [ReadItem(e.tokens, slot) for slot, e in self._selected(state, frame)]
        pointers = pointer_window(state.prompts, state.tracked(), frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _selected(self, state: SparseBank, frame: FrameContext) -> list[tuple[int, MemoryEntry]]:
        """(slot, entry) of tracked frames that are read, newest first."""
        selected = newest_first(
            state.tracked().values(),
            {p.frame for p in state.prompts},
            frame,
            accept=self._is_good,
            max_accepted=self.num_maskmem - 1,
        )[: self.num_maskmem - 1]
        return [(slot, e) for slot, e in enumerate(selected) if isinstance(e, MemoryEntry)]

    def _is_good(self, entry: Entry) -> bool:
        return entry.iou > self.min_iou and entry.objectness > self.min_object_score

    def recall(self, state: SparseBank, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> SparseBank:
        """With the latest frames behind ``frame`` that a read takes, as if none had left."""
        bare, size = self.frames_behind(frame)[1], self.num_maskmem - 1
        return recall_accepted(state, frame, archived, accept=self._is_good, max_maps=size, bare=bare)

    def measure(
        self, state: SparseBank, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Of every map that becomes thin: how many of its tokens stay, and all of them in the order of the attention that they
        received. Where the device knows what it needs, nothing."""
        whole = self._to_thin(state, frame, usage)
        if self.mode == "topk" and all(e.tokens.feat.device == masks.device for e, _ in whole):
            return None
        columns = [x for _, attention in whole for x in (self._count(attention), attention.argsort(descending=True))]
        return torch.cat([x.float().view(-1) for x in columns]) if whole else None

    def write(
        self,
        state: SparseBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> SparseBank:
        whole = self._to_thin(state, frame, hypotheses.usage)
        measured = hypotheses.measured
        orders = [None] * len(whole) if measured is None else measured.split([1 + len(e.tokens) for e, _ in whole])
        new = {e.frame: self._thinned(e, attention, order) for (e, attention), order in zip(whole, orders)}
        thin = [new.get(e.frame, e) for e in self._good(state, frame) if e.frame in {*new, *state.thinned}]
        reasons = [
            Reason(
                e.frame,
                "thinned: share of its tokens that stays",
                len(new[e.frame].tokens) / len(e.tokens),
                action=Action.KEPT,
            )
            for e, _ in whole
        ]
        nearest = sorted(thin, key=lambda e: abs(frame.age(e.frame)))[: self.num_maskmem - 2]
        grown = state.add(*nearest, *entries)
        reach = self.max_obj_ptrs_in_encoder - 1
        near = tracked_near(grown, anchors_of(grown, frame.index), reach)
        tokens = {e.frame for e in nearest}
        bank = grown.keep(tokens=tokens | {frame.index}, pointers=near)
        return replace(bank, thinned=tuple(sorted(tokens)), reasons=tuple(reasons))

    def _good(self, state: SparseBank, frame: FrameContext) -> list[MemoryEntry]:
        return [e for e in state.entries if e.frame != frame.index and self._is_good(e)]

    def _to_thin(
        self, state: SparseBank, frame: FrameContext, usage: Sequence[ReadUsage] | None
    ) -> list[tuple[MemoryEntry, Tensor]]:
        """Whole maps that were read on this frame, with the attention (L) that their tokens received."""
        assert usage is not None and usage[0].tokens is not None, "usage was asked for"
        attention = usage[0].tokens[len(state.prompts) :]
        received = {e.frame: x for (_, e), x in zip(self._selected(state, frame.as_read), attention)}
        whole = [e for e in self._good(state, frame) if e.frame not in state.thinned]
        return [(e, received[e.frame]) for e in whole if e.frame in received]

    def _count(self, attention: Tensor) -> Tensor:
        """How many of the tokens that received ``attention`` (L) stay."""
        if self.mode == "mass":
            return _fewest(attention, self.mass)
        return attention.new_full((), math.ceil(self.keep * len(attention)))

    def _thinned(self, entry: MemoryEntry, attention: Tensor, measured: Tensor | None) -> MemoryEntry:
        """``entry`` with the tokens that received most of ``attention`` (L), in their order; ``measured``: what ``measure``
        gave for it."""
        total = len(entry.tokens)
        count = math.ceil(self.keep * total)
        if self.mode == "mass":
            count = int(_fewest(attention, self.mass) if measured is None else measured[0])
        if count == total:
            return entry
        kept = attention.topk(count).indices if measured is None else measured[1 : 1 + count].long()
        tokens = gather_tokens(entry.tokens, kept.sort().values)
        if self.count:
            before = torch.zeros(count, device=tokens.pos.device) if tokens.log_count is None else tokens.log_count
            tokens = replace(tokens, log_count=before + math.log(total / count))
        return replace(entry, tokens=tokens)

    def entry_infos(self, state: SparseBank, frame: FrameContext) -> Sequence[EntryInfo]:
        kind = lambda e: "thin" if e.frame in state.thinned else "newest"  # noqa: E731
        return entry_infos(state.all_entries(), kind, {e.frame: e.iou for e in state.entries}, "predicted IoU")


def _fewest(attention: Tensor, mass: float) -> Tensor:
    """The fewest tokens that received the share ``mass`` of ``attention`` (L), a number; at least 1."""
    share = attention.float().sort(descending=True).values.cumsum(0)
    return ((share < mass * share[-1]).sum() + 1).clamp(max=len(attention))
