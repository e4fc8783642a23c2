"""HQ-SMem's smart memory: a new frame takes the place of the frame that it resembles most."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from sam2_mem._moved import renamed
from sam2_mem.memory.frame_bank import SLOT_RULES, FrameBank, is_due, read_bank
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.tokens import foreground_weights, masked_mean
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead, ReadUsage

logger = logging.getLogger(__name__)


class Resemblance(NamedTuple):
    """A bank frame compared with the present one.

    Attributes:
        frame: number of the bank frame.
        relevance: similarity of the two (Eq. 3).
        age: t - j.
    """

    frame: int
    relevance: float
    age: int


@dataclass(frozen=True, eq=False)
class SmartBank(FrameBank):
    """A bank whose entries carry their embedding z as ``summary``.

    Attributes:
        centre: (C) mean image feature of the first frame.
        arrivals: (frame, number of the update it came with).
        updates: bank updates so far.
        added: of them without a frame that leaves for its resemblance.
        replaced: of them with one.
    """

    centre: Tensor | None = None
    arrivals: tuple[tuple[int, int], ...] = ()
    updates: int = 0
    added: int = 0
    replaced: int = 0

    def exchange(self, entry: MemoryEntry, leaving: Collection[int]) -> Self:
        """With ``entry`` in the bank and without the frames ``leaving``; a prompt that leaves keeps its pointer."""
        joined = self.add(entry)
        bare = {p.frame: replace(p.without_tokens(), summary=None) for p in self.prompts if p.frame in leaving}
        prompts: tuple[Any, ...] = tuple(bare.get(p.frame, p) for p in self.prompts)
        return replace(
            joined,
            prompts=prompts,
            entries=tuple(replace(e, summary=None) if e.frame in leaving else e for e in joined.entries),
            kept=(*(f for f in self.kept if f not in leaving and f != entry.frame), entry.frame),
            updated=entry.frame,
            reasons=self.reasons,
        ).with_arrival(entry.frame, leaving)

    def with_arrival(self, frame: int, leaving: Collection[int] = ()) -> Self:
        """With ``frame`` noted as come with the latest update, and nothing noted of the frames ``leaving``."""
        arrivals = (a for a in self.arrivals if a[0] not in leaving and a[0] != frame)
        return replace(self, arrivals=(*arrivals, (frame, self.updates)))

    def shift_frames(self, by: int) -> Self:
        arrivals = tuple((frame + by, update) for frame, update in self.arrivals)
        return replace(super().shift_frames(by), arrivals=arrivals)


@dataclass(frozen=True, kw_only=True)
class HQSMem(MemoryPolicy[SmartBank]):
    """Smart memory of HQ-SMem (arXiv 2507.18921, "HQ-SMem: Video Segmentation and Tracking Using Memory Efficient
    Object Embedding With Selective Update and Self-Supervised Distillation Feedback"; section 3.2).

    Every ``gap`` frames the new embedding z_t joins the bank M. With Rel_j = cos(z_j, z_t) (Eq. 3), Fr_j = 1 / (t - j)
    (Eq. 4) and O_j = Rel_j (1 + lambda Fr_j) (Eq. 5), the frame of largest O leaves (Eq. 6) if its Rel is at least tau
    (Eq. 7). The mask refinement of the same paper is ``sam2_mem.tracking.refine``; it goes with any policy.

    The paper leaves much open and there is no released code; every reading of it is a field, the literal one included.
    Equal to FIFO with ``gap=1, cap=7, tau_mem=1.01, overflow="oldest", skip_absent=False``, for a prompt on one frame
    and a pass in one direction.

    Attributes:
        score: ``literal`` is Eq. 5, which prefers the newest of frames that resemble z_t alike; ``age`` is what the
            text says, older first: Rel (1 + lambda (1 - Fr)).
        freshness_weight: lambda; no value is published. The "factor 1 + lambda" of the text is taken for a slip.
        protect_first: prompted frames cannot leave. False is literal: the first update may drop the annotated frame;
            its pointer, which is no part of M, stays.
        cap: most frames in the bank, prompted ones included; None for none, as in the paper. 6 reads as much as SAM 2.
        overflow: what leaves a bank at its cap when nothing resembles z_t: the largest ``age`` score, or the
            ``oldest``.
        gate: ``zdel`` is Eq. 7: only the frame of largest O is compared with tau. ``max_rel``: if any frame reaches
            tau, the one of largest O among those that do leaves.
        tau_mem: tau of Eq. 7, a cosine (above 1: never reached); no value is published. (Eq. 9 uses the letter for
            something else: ``tau_hq`` of the refiner.) Low values hold the bank at the prompt and the newest frame, see
            ``added`` and ``replaced`` of the state; every update is logged at level DEBUG.
        embed: z. ``obj_pool``: image features averaged over the object, less the mean of the object's first frame.
            ``frame_pool``: averaged over the frame. ``pointer``: the object pointer. ``dino``: features of another
            network averaged over the object; needs an embedder (``sam2_mem.tracking.embedders``).
        age_unit: ``frames`` as in Eq. 4, or ``updates``: t - j in bank updates.
        gap: frames between updates; None for max(5, frames of the video / 30), and 5 where the length is unknown. (The
            paper's "frequency L/30" is read as an interval; 5 is its value for VOTSt.)
        clamp_negative: negative cosines count as 0, since the factor of Eq. 5 would act on them in reverse.
        skip_absent: no update on frames without the object. False adds them; where z is undefined it resembles nothing.
        tpos_policy: temporal slots of bank frames: rank, clamp, prompt or none; see
            ``sam2_mem.memory.frame_bank.old_slots``.

    Other readings: j is the frame's number. Frame t is read with M before its own update (Eq. 10 names M after it).
    Banks are per object. The previous frame, in the place of DeAOT's short-term memory, is always read and is no part
    of M. A bank full of prompts still takes one tracked frame. Bank frames carry their order in time, for a network with
    RMem's temporal encoding (appendix C.4), which official checkpoints lack.
    """

    score: str = setting("literal", choices=("literal", "age"))
    freshness_weight: float = setting(1.0, at_least=0.0)
    protect_first: bool = True
    cap: int | None = setting(7, at_least=2, special=(None,))
    overflow: str = setting("age", choices=("age", "oldest"))
    gate: str = setting("zdel", choices=("zdel", "max_rel"))
    tau_mem: float = setting(0.95, at_least=-1.0, at_most=2.0)
    embed: str = setting("obj_pool", choices=("obj_pool", "frame_pool", "pointer", "dino"))
    age_unit: str = setting("frames", choices=("frames", "updates"))
    gap: int | None = setting(None, at_least=1)
    clamp_negative: bool = True
    skip_absent: bool = True
    tpos_policy: str = setting("rank", choices=SLOT_RULES)

    @property
    def needs(self) -> Needs:
        """Pooled features, where they are the embedding."""
        return Needs(summary=self.embed in ("obj_pool", "dino"), appearance=self.embed == "dino")

    def capacity(self, tokens_per_map: int) -> int | None:
        """Prompts, the tracked frames of the bank, the previous frame."""
        return None if self.cap is None else tokens_per_map * (self.max_prompts + self.cap)

    def new_state(self, frame: FrameContext) -> SmartBank:
        return SmartBank(centre=None if frame.features is None else frame.features.low.mean(0))

    def prompt(self, state: SmartBank | None, frame: FrameContext, entry: MemoryEntry) -> SmartBank:
        state = self.new_state(frame) if state is None else state
        return super().prompt(state, frame, self._embed(state, frame, entry)).with_arrival(entry.frame)

    def read(self, state: SmartBank, frame: FrameContext) -> Sequence[MemoryRead]:
        pointers = self.max_obj_ptrs_in_encoder
        return (read_bank(state, frame, slot_rule=self.tpos_policy, max_obj_ptrs=pointers, ordered=True),)

    def measure(
        self, state: SmartBank, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Cosines (M, bank) of every candidate's embedding with those of the bank, where they follow from its mask."""
        known, source = self._embeddings(state, frame.index), frame.features
        if self.embed != "obj_pool" or source is None or not known or not is_due(state, frame, self.gap):
            return None
        means = [masked_mean(source.low, foreground_weights(mask, source.grid), is_empty=False) for mask in masks[0]]
        return torch.cat([_cosines(known, self._unit(state, mean)) for mean in means if mean is not None])

    def write(
        self,
        state: SmartBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> SmartBank:
        due, in_bank = bool(entries) and is_due(state, frame, self.gap), frame.index in state.kept
        for entry in entries:
            state = state.add(self._embed(state, frame, entry) if in_bank else replace(entry, summary=None))
        candidate = self._embed(state, frame, entries[-1]) if due else None
        if candidate is not None and (not self.skip_absent or self._is_visible(candidate)):
            state = self._update(state, candidate, self._measured(state, frame, hypotheses, selection))
        else:
            text = "the object is absent" if due else "the bank is not due"
            state = replace(state, reasons=(Reason(frame.index, f"previous frame only; {text}"),))
        return state.keep_reachable(frame.index, max_obj_ptrs=self.max_obj_ptrs_in_encoder)

    def _measured(
        self, state: SmartBank, frame: FrameContext, hypotheses: Hypotheses, selection: MaskSelection
    ) -> Tensor | None:
        """The row of ``measure`` that belongs to the selected mask."""
        if hypotheses.measured is None:
            return None
        return hypotheses.measured.view(hypotheses.masks.shape[1], -1)[selection.output.candidate]

    # -- the embedding ------------------------------------------------------------------------------------------

    def _embed(self, state: SmartBank, frame: FrameContext, entry: MemoryEntry) -> MemoryEntry:
        """``entry`` with z as its summary, of unit length, on the device of its source; None where the object has no
        pixels."""
        raw = entry.summary
        if self.embed == "pointer":
            raw = entry.pointer
        elif self.embed == "frame_pool":
            assert frame.features is not None, "embed=frame_pool reads the features of the frame"
            raw = frame.features.low.mean(0)
        return replace(entry, summary=None if raw is None else self._unit(state, raw))

    def _unit(self, state: SmartBank, raw: Tensor) -> Tensor:
        """z of an object's features, of unit length."""
        if self.embed == "obj_pool" and state.centre is not None:
            raw = raw - state.centre
        return F.normalize(raw.float(), dim=0)

    def _is_visible(self, entry: MemoryEntry) -> bool:
        return entry.summary is not None and entry.objectness > self.min_obj_score_logits

    def _embeddings(self, state: SmartBank, index: int) -> dict[int, Tensor]:
        """z of the bank frames beside frame ``index`` that have one."""
        return {e.frame: e.summary for e in state.bank(besides=index) if e.summary is not None}

    def _resemblances(self, state: SmartBank, entry: MemoryEntry, measured: Tensor | None) -> list[Resemblance]:
        """Every bank frame compared with ``entry``, whose cosines are those ``measured`` or come in a transfer of their own.
        An undefined z resembles nothing."""
        bank, z = state.bank(besides=entry.frame), entry.summary
        relevance: dict[int, float] = {}
        embeddings = self._embeddings(state, entry.frame)
        if z is not None and embeddings:
            cosines = (_cosines(embeddings, z) if measured is None else measured).tolist()
            relevance = {f: max(c, 0.0) if self.clamp_negative else c for f, c in zip(embeddings, cosines)}
        return [Resemblance(e.frame, relevance.get(e.frame, 0.0), self._age(state, entry.frame, e.frame)) for e in bank]

    def _age(self, state: SmartBank, index: int, frame: int) -> int:
        if self.age_unit == "frames":
            return max(abs(index - frame), 1)
        return state.updates + 1 - dict(state.arrivals).get(frame, state.updates)

    # -- the update ---------------------------------------------------------------------------------------------

    def _update(self, state: SmartBank, entry: MemoryEntry, measured: Tensor | None) -> SmartBank:
        """The bank with ``entry``, whose summary is z, and without what has to leave for it."""
        bank = self._resemblances(state, entry, measured)
        pinned = set(state.prompted_frames()) if self.protect_first else set()
        free = [r for r in bank if r.frame not in pinned]
        replaced = self.replaced_by(free)
        leaving = [] if replaced is None else [replaced]
        if self.cap is not None:
            excess = len(bank) + 1 - len(leaving) - self.cap
            leaving += self._overflow([r for r in free if r.frame != replaced])[: max(excess, 0)]
        logger.debug("frame %d: bank of %d, %s left", entry.frame, len(bank) + 1 - len(leaving), leaving)
        counted = replace(
            state,
            updates=state.updates + 1,
            replaced=state.replaced + (replaced is not None),
            added=state.added + (replaced is None),
            reasons=self._reasons(entry.frame, bank, leaving, replaced),
        )
        return counted.exchange(entry, leaving)

    def replaced_by(self, candidates: Sequence[Resemblance]) -> int | None:
        """The frame that z_t takes the place of (Eq. 5 to 7); None when it is added beside all of them."""
        if self.gate == "max_rel":
            candidates = [r for r in candidates if r.relevance >= self.tau_mem]
        if not candidates:
            return None
        largest = max(candidates, key=lambda r: self._score(r, self.score))
        return largest.frame if largest.relevance >= self.tau_mem else None

    def _score(self, candidate: Resemblance, rule: str) -> float:
        freshness = 1.0 / candidate.age
        factor = freshness if rule == "literal" else 1.0 - freshness
        return candidate.relevance * (1.0 + self.freshness_weight * factor)

    def _overflow(self, candidates: Sequence[Resemblance]) -> list[int]:
        """Frames in the order in which they leave a full bank; of equals, the oldest first."""
        ranked = sorted(candidates, key=lambda r: -r.age)
        if self.overflow == "age":
            ranked.sort(key=lambda r: -self._score(r, "age"))
        return [r.frame for r in ranked]

    # -- reasons ------------------------------------------------------------------------------------------------

    def _reasons(
        self, index: int, bank: Sequence[Resemblance], leaving: Collection[int], replaced: int | None
    ) -> tuple[Reason, ...]:
        largest = max((r.relevance for r in bank), default=0.0)
        reasons = [Reason(index, "joins the bank: largest cosine to it", largest, self.tau_mem)]
        for r in bank:
            if r.frame == replaced:
                score = self._score(r, self.score)
                text = f"resembles the new frame: cosine {r.relevance:.3f}, removal score {score:.3f}"
                reasons.append(Reason(r.frame, text, r.relevance, self.tau_mem))
            elif r.frame not in leaving:
                text = "stays: cosine to the new frame"
                reasons.append(Reason(r.frame, text, r.relevance, self.tau_mem, Action.KEPT))
            elif self.overflow == "oldest":
                reasons.append(Reason(r.frame, "oldest of a bank over its cap", float(r.age)))
            else:
                text = f"largest age score of a bank over its cap of {self.cap}"
                reasons.append(Reason(r.frame, text, self._score(r, "age")))
        return tuple(reasons)

    def entry_infos(self, state: SmartBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """Without scores: resemblances belong to a pair of frames, so they come with the events."""
        bank = {e.frame for e in state.members()}
        return entry_infos(state.all_entries(), lambda e: "bank" if e.frame in bank else "previous", {}, "")


def _cosines(embeddings: Mapping[int, Tensor], z: Tensor) -> Tensor:
    """Of ``embeddings`` (C) of unit length with ``z`` (C), in their order."""
    return torch.stack([x.to(z) for x in embeddings.values()]) @ z


__getattr__ = renamed(__name__)
