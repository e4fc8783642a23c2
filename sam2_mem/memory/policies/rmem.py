"""RMem: a small bank of whole frames, restricted by how much the object attends to each and how long it has stayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem._moved import renamed
from sam2_mem.memory.frame_bank import SLOT_RULES, FrameBank, bank_columns, is_due, read_bank
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.tokens import foreground_weights
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead, ReadUsage, Usage

EMPTY = 1e-6


@dataclass(frozen=True)
class FrameStatistics:
    """What decides whether a frame of the bank stays.

    Attributes:
        frame: number of the frame.
        relevance: moving mean of its share of attention, None before it was first attended to.
        updates: bank updates it has been counted in.
    """

    frame: int
    relevance: float | None
    updates: int


@dataclass(frozen=True, eq=False)
class RMemBank(FrameBank):
    """A bank with the statistics of its frames.

    Attributes:
        statistics: of the frames of the bank, prompts included.
    """

    statistics: tuple[FrameStatistics, ...] = ()

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        statistics = tuple(s for s in self.statistics if s.frame != entry.frame)
        return replace(super().add_prompt(entry, max_prompts), statistics=statistics)

    def shift_frames(self, by: int) -> Self:
        statistics = tuple(replace(s, frame=s.frame + by) for s in self.statistics)
        return replace(super().shift_frames(by), statistics=statistics)


@dataclass(frozen=True, kw_only=True)
class RMem(MemoryPolicy[RMemBank]):
    """Restricted memory (Zhou et al., CVPR 2024, "RMem: Restricted Memory Banks Improve Video Object Segmentation").

    Every ``gap`` frames the frame joins the bank. If the bank is then over ``bank_size``, the tracked frame of lowest
    relevance + freshness leaves; prompted frames and the new one cannot. With m_i the moving mean of the bank frame's
    share of foreground attention and n_i the updates it has been counted in, the score is that of the released code:

        m_i + ucb_alpha * sqrt(ln(sum_j n_j) / (n_i + ucb_offset)),   n_0 set to the number of frames before the update

    The previous frame is read in any case: it takes the place of AOT's short-term memory.

    Equal to FIFO with ``eviction="fifo", gap=1, bank_size=7``, for a prompt on one frame and a pass in one direction.

    Attributes:
        bank_size: frames in the bank, prompted ones included. Released code 9 (preset ``rmem_code``), paper 8
            (``rmem_paper``); 6 reads as many tokens as SAM 2 does.
        gap: frames between bank updates; None for max(5, frames of the video / 30) as in the released evaluation, and 5
            where the length is unknown.
        eviction: ``attention``, or ``fifo`` for the paper's baseline, which training uses.
        ucb_alpha: weight of freshness; 1.5 in the released code.
        ucb_offset: updates added to every n_i in the denominator; 8 in the released code, absent in the paper.
        ema: weight of the newest relevance in its moving mean; 0.8 in the released code.
        write_if_absent: frames without the object join the bank too, as in the released code.
        tpos_policy: temporal slots of bank frames: rank, clamp, prompt or none; see
            ``sam2_mem.memory.frame_bank.old_slots``.

    Differences from the released code, which runs on AOT and DeAOT:
        Attention is SAM 2's, of ``model.memory_attention.usage_layer``; shares of bank frames are renormalised per
        query, which is the softmax over the bank alone. Statistics accumulate from the first update (DeAOT's path).
        The foreground is the chosen mask's, sigmoid and area mean. Where it is empty the released code divides zero by
        zero and keeps NaN for good; here all queries count alike.
        Later prompts are pinned as well; the released code starts the bank anew. They count in ``bank_size``, but one
        tracked frame always fits. Banks are per object.
    """

    bank_size: int = setting(6, at_least=2)
    gap: int | None = setting(None, at_least=1)
    eviction: str = setting("attention", choices=("attention", "fifo"))
    ucb_alpha: float = setting(1.5, at_least=0.0)
    ucb_offset: float = setting(8.0, at_least=0.0)
    ema: float = setting(0.8, above=0.0, at_most=1.0)
    write_if_absent: bool = True
    tpos_policy: str = setting("rank", choices=SLOT_RULES)

    @property
    def needs(self) -> Needs:
        return Needs(usage=Usage.ITEMS_BY_QUERY)

    def usage_at(self, state: RMemBank, frame: FrameContext) -> Usage:
        is_measured = self.eviction == "attention" and is_due(state, frame, self.gap)
        return self.needs.usage if is_measured else Usage.NONE

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, the tracked frames of the bank, the previous frame."""
        return tokens_per_map * (self.max_prompts + self.bank_size)

    def new_state(self, frame: FrameContext) -> RMemBank:
        return RMemBank()

    def read(self, state: RMemBank, frame: FrameContext) -> Sequence[MemoryRead]:
        pointers = self.max_obj_ptrs_in_encoder
        return (read_bank(state, frame, slot_rule=self.tpos_policy, max_obj_ptrs=pointers, ordered=True),)

    def write(
        self,
        state: RMemBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> RMemBank:
        grown = state.add(*entries)
        if entries and self._joins(state, frame, entries[-1]):
            shares = self._relevance(state, frame, hypotheses, selection) if self.eviction == "attention" else {}
            grown = self._restrict(grown, frame.index, shares)
        else:
            reason = Reason(frame.index, "previous frame only; the bank is not due")
            statistics = tuple(s for s in state.statistics if s.frame != frame.index)
            grown = replace(grown, statistics=statistics, reasons=(reason,))
        return grown.keep_reachable(frame.index, max_obj_ptrs=self.max_obj_ptrs_in_encoder)

    def _joins(self, state: RMemBank, frame: FrameContext, entry: MemoryEntry) -> bool:
        is_present = entry.objectness > self.min_obj_score_logits
        return (is_present or self.write_if_absent) and is_due(state, frame, self.gap)

    def _relevance(
        self, state: RMemBank, frame: FrameContext, hypotheses: Hypotheses, selection: MaskSelection
    ) -> dict[int, float]:
        """Share of foreground attention of every bank frame; the shares add up to 1."""
        columns, output = bank_columns(state, frame.as_read), selection.output
        is_present = hypotheses.objectness[output.pathway] > self.min_obj_score_logits
        seen = is_present and frame.features is not None
        if hypotheses.measured is not None:
            of_candidate = hypotheses.measured.view(hypotheses.masks.shape[1] + 1, len(columns))
            return dict(zip(columns, of_candidate[output.candidate if seen else -1].tolist()))
        mask = hypotheses.masks[output.pathway, output.candidate] if seen else None
        shares = self._shares(frame, hypotheses.usage, len(columns), mask)
        return dict(zip(columns, shares.tolist()))

    def _shares(
        self, frame: FrameContext, usage: Sequence[ReadUsage] | None, columns: int, mask: Tensor | None
    ) -> Tensor:
        """Shares (columns) of the attention under ``mask`` (h, w); None for an absent object."""
        assert usage is not None and usage[0].items is not None, "attention was not measured"
        attention = usage[0].items[:, :columns]
        foreground = attention.new_zeros(attention.shape[0])
        if mask is not None and frame.features is not None:
            foreground = foreground_weights(mask, frame.features.grid).to(attention)
        return attention_shares(attention, foreground)

    def measure(
        self, state: RMemBank, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Shares of bank frames under every candidate, and without a mask, where attention is due."""
        columns = len(bank_columns(state, frame.as_read))
        if usage is None or columns == 0:
            return None
        return torch.cat([self._shares(frame, usage, columns, mask) for mask in (*masks[0], None)])

    def _restrict(self, state: RMemBank, index: int, shares: Mapping[int, float]) -> RMemBank:
        """Add frame ``index`` to the bank, update the statistics, and evict down to the bank's size."""
        statistics = self._updated(state, index, shares)
        tracked = [e.frame for e in state.members(besides=index)]
        if self.eviction == "fifo":
            scores = {frame: float(number) for number, frame in enumerate(tracked)}
        else:
            scores = {s.frame: self.score(s, statistics) for s in statistics if s.frame in tracked}
        max_tracked = max(self.bank_size - len(state.prompts), 1)
        leaving = sorted(tracked, key=lambda f: scores[f])[: max(0, len(tracked) + 1 - max_tracked)]
        return replace(
            state,
            kept=(*(f for f in tracked if f not in leaving), index),
            statistics=(*(s for s in statistics if s.frame not in leaving), FrameStatistics(index, None, 1)),
            updated=index,
            reasons=self._reasons(index, statistics, scores, leaving),
        )

    def _updated(self, state: RMemBank, index: int, shares: Mapping[int, float]) -> list[FrameStatistics]:
        """Statistics of the bank before frame ``index`` joins, with this update counted."""
        bank = [e.frame for e in state.bank(besides=index)]
        before = {s.frame: s for s in state.statistics}
        statistics = []
        for frame in bank:
            old = before.get(frame, FrameStatistics(frame, None, 0))
            relevance = shares.get(frame, old.relevance)
            if old.relevance is not None and frame in shares:
                relevance = (1.0 - self.ema) * old.relevance + self.ema * shares[frame]
            updates = len(bank) if frame == state.prompts[0].frame else old.updates + 1
            statistics.append(FrameStatistics(frame, relevance, updates))
        return statistics

    def score(self, frame: FrameStatistics, bank: Sequence[FrameStatistics]) -> float:
        """Relevance + freshness of a frame of ``bank``; the tracked frame of lowest score leaves."""
        total = max(sum(s.updates for s in bank), 1)
        freshness = math.sqrt(math.log(total) / (frame.updates + self.ucb_offset))
        return (frame.relevance or 0.0) + self.ucb_alpha * freshness

    # -- reasons ------------------------------------------------------------------------------------------------

    def _reasons(
        self, index: int, statistics: Sequence[FrameStatistics], scores: Mapping[int, float], leaving: Sequence[int]
    ) -> tuple[Reason, ...]:
        relevance = {s.frame: s.relevance or 0.0 for s in statistics}

        def text(frame: int) -> str:
            if self.eviction == "fifo":
                return f"number {int(scores[frame])} in order of arrival"
            return f"relevance {relevance[frame]:.3f} + freshness {scores[frame] - relevance[frame]:.3f}"

        reasons = [Reason(index, "joins the bank; a new frame cannot leave at once")]
        staying = [f for f in scores if f not in leaving] if leaving else []
        lowest = min((scores[f] for f in staying), default=None)
        highest = max((scores[f] for f in leaving), default=None)
        reasons += [Reason(f, f"leaves the bank: {text(f)}", scores[f], lowest) for f in leaving]
        reasons += [Reason(f, f"stays: {text(f)}", scores[f], highest, Action.KEPT) for f in staying]
        return tuple(reasons)

    def entry_infos(self, state: RMemBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """Tracked frames of the bank have a score, if attention decides."""
        bank = {e.frame for e in state.members()}
        scored = [s for s in state.statistics if s.frame in bank and self.eviction == "attention"]
        scores = {s.frame: self.score(s, state.statistics) for s in scored}
        kind = lambda entry: "bank" if entry.frame in bank else "previous"  # noqa: E731
        return entry_infos(state.all_entries(), kind, scores, "relevance + freshness")


def attention_shares(attention: Tensor, foreground: Tensor) -> Tensor:
    """Attention mass of bank frames as shares that add up to 1.

    Never NaN: an empty foreground counts all queries alike, and frames that nobody attends to share equally.

    Args:
        attention: (Q, T) mass of T bank frames.
        foreground: (Q) weights of the queries.

    Returns:
        (T) shares.
    """
    if attention.shape[1] == 0:
        return attention.new_zeros(0)
    total = attention.sum(1, keepdim=True)
    tiny = torch.finfo(total.dtype).tiny
    shares = torch.where(total > 0, attention / total.clamp(min=tiny), 1.0 / attention.shape[1])
    weights = torch.where(foreground.sum() > EMPTY, foreground, torch.ones_like(foreground))
    mass = weights @ shares
    return mass / mass.sum()


__getattr__ = renamed(__name__)
