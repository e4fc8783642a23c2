"""RMem: a small bank of whole frames, restricted by how much the object attends to each and how long it has stayed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sam2_mem.memory.frame_bank import (
    SLOT_RULES,
    FrameBank,
    add_prompt,
    bank_columns,
    check_at_least,
    check_choice,
    free_prompt,
    is_due,
    read_bank,
    settle,
    shift_bank,
)
from sam2_mem.memory.policy import MemoryPolicy, Needs, put
from sam2_mem.memory.tokens import foreground_weights
from sam2_mem.memory.trace import Cause, Change, EntryInfo, Reason, TraceEvent, entry_infos, with_reasons
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead, Usage

EMPTY = 1e-6


@dataclass(frozen=True)
class Stay:
    """What is known of a bank frame: ``relevance`` its moving mean share of attention (None before it was first
    attended to), ``updates`` the bank updates it has been counted in."""

    frame: int
    relevance: float | None
    updates: int


@dataclass(frozen=True, eq=False)
class RMemBank(FrameBank):
    """A bank with the statistics of its frames, prompts included."""

    stays: tuple[Stay, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RMem(MemoryPolicy[RMemBank]):
    """Restricted memory (Zhou et al., CVPR 2024, "RMem: Restricted Memory Banks Improve Video Object Segmentation").

    Every ``gap`` frames the frame joins the bank. If the bank is then over ``bank_size``, the tracked frame of lowest
    relevance + freshness leaves; prompted frames and the new one cannot. With m_i the moving mean of the bank frame's
    share of foreground attention and n_i the updates it has been counted in, the score is that of the released code::

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
            :func:`sam2_mem.memory.frame_bank.old_slots`.
        max_obj_ptrs_in_encoder: as in SAM 2: pointers of prompts and of 15 past frames at 16.
        max_prompts: most prompted frames held; beyond it the oldest but the first goes.

    Differences from the released code, which runs on AOT and DeAOT:
        Attention is SAM 2's, of ``model.memory_attention.usage_layer``; shares of bank frames are renormalised per
        query, which is the softmax over the bank alone. Statistics accumulate from the first update (DeAOT's path).
        The foreground is the chosen mask's, sigmoid and area mean. Where it is empty the released code divides zero by
        zero and keeps NaN for good; here all queries count alike.
        Later prompts are pinned as well; the released code starts the bank anew. They count in ``bank_size``, but one
        tracked frame always fits. Banks are per object.
    """

    bank_size: int = 6
    gap: int | None = None
    eviction: str = "attention"
    ucb_alpha: float = 1.5
    ucb_offset: float = 8.0
    ema: float = 0.8
    write_if_absent: bool = True
    tpos_policy: str = "rank"
    max_obj_ptrs_in_encoder: int = 16
    max_prompts: int = 32

    needs: ClassVar[Needs] = Needs(usage=Usage.ITEMS_BY_QUERY)

    def __post_init__(self) -> None:
        check_at_least(1, gap=self.gap, max_obj_ptrs_in_encoder=self.max_obj_ptrs_in_encoder)
        check_at_least(2, bank_size=self.bank_size, max_prompts=self.max_prompts)
        check_choice("eviction", self.eviction, ("attention", "fifo"))
        check_choice("tpos_policy", self.tpos_policy, SLOT_RULES)
        if not 0.0 < self.ema <= 1.0:
            raise ValueError(f"expected ema in (0, 1], got {self.ema}")
        if not (self.ucb_alpha >= 0.0 and self.ucb_offset >= 0.0):
            raise ValueError(f"expected ucb_alpha and ucb_offset >= 0, got {self.ucb_alpha} and {self.ucb_offset}")

    def capacity(self, tokens_per_map: int) -> int | None:
        """Prompts, the tracked frames of the bank, the previous frame."""
        return tokens_per_map * (self.max_prompts + self.bank_size)

    def prompt(self, state: RMemBank | None, frame: FrameContext, entry: MemoryEntry) -> RMemBank:
        state = RMemBank() if state is None else state
        stays = tuple(s for s in state.stays if s.frame != entry.frame)
        return add_prompt(replace(state, stays=stays), entry, max_prompts=self.max_prompts)

    def unprompt(self, state: RMemBank, frame: int) -> RMemBank | None:
        return free_prompt(state, frame)

    def moved(self, state: RMemBank, by: int) -> RMemBank:
        shifted = shift_bank(state, by)
        return replace(shifted, stays=tuple(replace(s, frame=s.frame + by) for s in state.stays))

    def read(self, state: RMemBank, frame: FrameContext) -> Sequence[MemoryRead]:
        ptrs = self.max_obj_ptrs_in_encoder
        return (read_bank(state, frame, slot_rule=self.tpos_policy, max_obj_ptrs=ptrs, ordered=True),)

    def wanted_usage(self, state: RMemBank, frame: FrameContext) -> Usage:
        wanted = self.eviction == "attention" and is_due(state, frame, self.gap)
        return self.needs.usage if wanted else Usage.NONE

    def write(
        self,
        state: RMemBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> RMemBank:
        new = state
        for entry in entries:
            new = replace(new, entries=put(new.entries, entry))
        if entries and self._joins(state, frame, entries[-1]):
            attended = self.eviction == "attention"
            shares = self._relevance(state, frame, hypotheses, choice) if attended else {}
            new = self._restrict(new, frame.index, shares)
        elif frame.index in state.kept:
            new = replace(new, stays=tuple(s for s in new.stays if s.frame != frame.index))
        return settle(new, frame.index, max_obj_ptrs=self.max_obj_ptrs_in_encoder)

    def _joins(self, state: RMemBank, frame: FrameContext, entry: MemoryEntry) -> bool:
        present = entry.objectness > self.min_obj_score_logits
        return (present or self.write_if_absent) and is_due(state, frame, self.gap)

    def _relevance(
        self, state: RMemBank, frame: FrameContext, hypotheses: Hypotheses, choice: MaskSelection
    ) -> dict[int, float]:
        """Share of foreground attention of every bank frame; the shares add up to 1."""
        assert hypotheses.usage is not None and hypotheses.usage[0].items is not None, "attention was not measured"
        columns = bank_columns(state, frame)
        attention = hypotheses.usage[0].items[:, : len(columns)]
        pick = choice.output
        present = hypotheses.objectness[pick.pathway] > self.min_obj_score_logits
        mask = hypotheses.masks[pick.pathway, pick.candidate]
        foreground = attention.new_zeros(attention.shape[0])
        if present and frame.features is not None:
            foreground = foreground_weights(mask, frame.features.grid).to(attention)
        return dict(zip(columns, attention_shares(attention, foreground)))

    def _restrict(self, state: RMemBank, now: int, shares: Mapping[int, float]) -> RMemBank:
        """Add frame ``now`` to the bank, update the statistics, and evict down to the bank's size."""
        before = [e.frame for e in state.bank(besides=now)]
        stays = self._counted(state, before, shares)
        tracked = [e.frame for e in state.members(besides=now)]
        room = max(self.bank_size - len(state.prompts), 1)
        leaving = self._weakest(stays, tracked)[: max(0, len(tracked) + 1 - room)]
        return replace(
            state,
            kept=(*(f for f in tracked if f not in leaving), now),
            stays=(*(s for s in stays if s.frame not in leaving), Stay(now, None, 1)),
            updated=now,
        )

    def _counted(self, state: RMemBank, before: Sequence[int], shares: Mapping[int, float]) -> list[Stay]:
        """Statistics of the frames that were in the bank ``before``, with this update taken in."""
        old = {s.frame: s for s in state.stays}
        first = state.prompts[0].frame
        result = []
        for frame in before:
            known = old.get(frame, Stay(frame, None, 0))
            updates = len(before) if frame == first else known.updates + 1
            result.append(Stay(frame, self._mean(known.relevance, shares.get(frame)), updates))
        return result

    def _mean(self, mean: float | None, share: float | None) -> float | None:
        if mean is None or share is None:
            return mean if share is None else share
        return (1.0 - self.ema) * mean + self.ema * share

    def _weakest(self, stays: Sequence[Stay], tracked: Sequence[int]) -> list[int]:
        """Tracked frames, the first to leave first."""
        if self.eviction == "fifo":
            return list(tracked)
        score = {s.frame: self.score(s, stays) for s in stays}
        return sorted(tracked, key=lambda f: score[f])

    def score(self, stay: Stay, stays: Sequence[Stay]) -> float:
        """Relevance + freshness of one of the bank frames ``stays``; the tracked frame of lowest score leaves."""
        total = max(sum(s.updates for s in stays), 1)
        freshness = math.sqrt(math.log(total) / (stay.updates + self.ucb_offset))
        return (stay.relevance or 0.0) + self.ucb_alpha * freshness

    # -- reasons ------------------------------------------------------------------------------------------------------

    def notes(self, state: RMemBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; tracked frames of the bank have a score, if attention decides."""
        bank = {e.frame for e in state.members()}
        attended = self.eviction == "attention"
        scores = {s.frame: self.score(s, state.stays) for s in state.stays if attended and s.frame in bank}
        kind = lambda entry: "bank" if entry.frame in bank else "previous"  # noqa: E731
        return entry_infos(self.held(state), kind, scores, "relevance + freshness")

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events, now = super().explain(change), change.frame.index
        if change.cause is not Cause.WRITE:
            return events
        if change.after.updated != now or change.before.updated == now:
            return with_reasons(events, came={now: Reason("previous frame only; the bank is not due")})
        came = Reason("joins the bank; a new frame cannot leave at once")
        stays, scores = self._contested(change)
        went = [f for f in scores if f not in change.after.kept]
        left = {f: self._why(f, stays, scores, "leaves the bank", _first(scores, but=went)) for f in went}
        limit = max((scores[f] for f in went), default=None)
        kept = {f: self._why(f, stays, scores, "stays", limit) for f in scores if went and f not in went}
        return with_reasons(events, came={now: came}, went=left, kept=kept)

    def _contested(self, change: Change) -> tuple[list[Stay], dict[int, float]]:
        """Statistics of the bank at its update, and the scores of its tracked frames; where the oldest leaves, numbers
        from 0 in order of arrival."""
        now, attended = change.frame.index, self.eviction == "attention"
        bank = change.before.bank(besides=now)
        shares = self._relevance(change.before, change.frame, change.hypotheses, change.choice) if attended else {}
        stays = self._counted(change.before, [e.frame for e in bank], shares)
        tracked = [e.frame for e in change.before.members(besides=now)]
        if not attended:
            return stays, {frame: float(place) for place, frame in enumerate(tracked)}
        return stays, {s.frame: self.score(s, stays) for s in stays if s.frame in tracked}

    def _why(
        self, frame: int, stays: Sequence[Stay], scores: Mapping[int, float], what: str, limit: float | None
    ) -> Reason:
        if self.eviction == "fifo":
            return Reason(f"{what}: number {int(scores[frame])} in order of arrival", scores[frame], limit)
        relevance = next(s.relevance for s in stays if s.frame == frame) or 0.0
        text = f"{what}: relevance {relevance:.3f} + freshness {scores[frame] - relevance:.3f}"
        return Reason(text, scores[frame], limit)


def _first(scores: Mapping[int, float], but: Sequence[int]) -> float | None:
    """The lowest score of those that stay."""
    return min((score for frame, score in scores.items() if frame not in but), default=None)


def attention_shares(attention: Tensor, foreground: Tensor) -> list[float]:
    """Attention mass (Q, T) of T bank frames as shares under ``foreground`` weights (Q): T numbers that add up to 1.

    Never NaN: an empty foreground counts all queries alike, and frames that nobody attends to share equally.
    """
    if attention.shape[1] == 0:
        return []
    total = attention.sum(1, keepdim=True)
    each = torch.where(total > 0, attention / total.clamp(min=torch.finfo(total.dtype).tiny), 1.0 / attention.shape[1])
    weights = torch.where(foreground.sum() > EMPTY, foreground, torch.ones_like(foreground))
    mass = weights @ each
    return (mass / mass.sum()).tolist()
