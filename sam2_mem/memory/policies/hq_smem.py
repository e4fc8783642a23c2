"""HQ-SMem's smart memory: a new frame takes the place of the frame that it resembles most."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.memory.frame_bank import (
    SLOT_RULES,
    FrameBank,
    add_prompt,
    check_at_least,
    check_choice,
    free_prompt,
    is_due,
    read_bank,
    settle,
    shift_bank,
)
from sam2_mem.memory.policy import MemoryPolicy, Needs, put
from sam2_mem.memory.trace import Cause, Change, EntryInfo, Reason, TraceEvent, entry_infos, with_reasons
from sam2_mem.types import FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryRead

logger = logging.getLogger(__name__)


class Likeness(NamedTuple):
    """A bank frame beside the present one: ``relevance`` their similarity (Eq. 3), ``age`` t - j."""

    frame: int
    relevance: float
    age: int


@dataclass(frozen=True, eq=False)
class SmartBank(FrameBank):
    """A bank whose entries carry their embedding z as ``summary``.

    ``centre`` (C): mean image feature of the first frame. ``arrivals``: (frame, number of the update it came with).
    ``updates`` so far; ``added`` of them without and ``replaced`` with a resembling frame leaving.
    """

    centre: Tensor | None = None
    arrivals: tuple[tuple[int, int], ...] = ()
    updates: int = 0
    added: int = 0
    replaced: int = 0


@dataclass(frozen=True, kw_only=True)
class HQSMem(MemoryPolicy[SmartBank]):
    """Smart memory of HQ-SMem (arXiv 2507.18921, "HQ-SMem: Video Segmentation and Tracking Using Memory Efficient
    Object Embedding With Selective Update and Self-Supervised Distillation Feedback"; section 3.2).

    Every ``gap`` frames the new embedding z_t joins the bank M. With Rel_j = cos(z_j, z_t) (Eq. 3), Fr_j = 1 / (t - j)
    (Eq. 4) and O_j = Rel_j (1 + lambda Fr_j) (Eq. 5), the frame of largest O leaves (Eq. 6) if its Rel is at least tau
    (Eq. 7). The mask refinement of the same paper is :mod:`sam2_mem.tracking.refine`; it goes with any policy.

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
        tau_mem: tau of Eq. 7, a cosine; no value is published. (Eq. 9 uses the letter for something else: ``tau_hq`` of
            the refiner.) Low values hold the bank at the prompt and the newest frame, see ``added`` and ``replaced``
            of the state; every update is logged at level DEBUG.
        embed: z. ``obj_pool``: image features averaged over the object, less the mean of the object's first frame.
            ``frame_pool``: averaged over the frame. ``pointer``: the object pointer. ``dino``: features of another
            network averaged over the object; needs an embedder (:mod:`sam2_mem.tracking.embedders`).
        age_unit: ``frames`` as in Eq. 4, or ``updates``: t - j in bank updates.
        gap: frames between updates; None for max(5, frames of the video / 30), and 5 where the length is unknown. (The
            paper's "frequency L/30" is read as an interval; 5 is its value for VOTSt.)
        clamp_negative: negative cosines count as 0, since the factor of Eq. 5 would act on them in reverse.
        skip_absent: no update on frames without the object. False adds them; where z is undefined it resembles nothing.
        tpos_policy: temporal slots of bank frames: rank, clamp, prompt or none; see
            :func:`sam2_mem.memory.frame_bank.old_slots`.
        max_obj_ptrs_in_encoder: as in SAM 2: pointers of prompts and of 15 past frames at 16.
        max_prompts: most prompted frames held; beyond it the oldest but the first goes.

    Other readings: j is the frame's number. Frame t is read with M before its own update (Eq. 10 names M after it).
    Banks are per object. The previous frame, in the place of DeAOT's short-term memory, is always read and is no part
    of M. A bank full of prompts still takes one tracked frame.
    """

    score: str = "literal"
    freshness_weight: float = 1.0
    protect_first: bool = True
    cap: int | None = 7
    overflow: str = "age"
    gate: str = "zdel"
    tau_mem: float = 0.8
    embed: str = "obj_pool"
    age_unit: str = "frames"
    gap: int | None = None
    clamp_negative: bool = True
    skip_absent: bool = True
    tpos_policy: str = "rank"
    max_obj_ptrs_in_encoder: int = 16
    max_prompts: int = 32

    def __post_init__(self) -> None:
        check_at_least(1, gap=self.gap, max_obj_ptrs_in_encoder=self.max_obj_ptrs_in_encoder)
        check_at_least(2, cap=self.cap, max_prompts=self.max_prompts)
        check_choice("score", self.score, ("literal", "age"))
        check_choice("overflow", self.overflow, ("age", "oldest"))
        check_choice("gate", self.gate, ("zdel", "max_rel"))
        check_choice("embed", self.embed, ("obj_pool", "frame_pool", "pointer", "dino"))
        check_choice("age_unit", self.age_unit, ("frames", "updates"))
        check_choice("tpos_policy", self.tpos_policy, SLOT_RULES)
        if not self.freshness_weight >= 0.0:
            raise ValueError(f"expected freshness_weight >= 0, got {self.freshness_weight}")
        if not -1.0 <= self.tau_mem <= 2.0:
            raise ValueError(f"expected tau_mem, a cosine (above 1: never reached), in [-1, 2], got {self.tau_mem}")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Pooled features, where they are the embedding."""
        return Needs(summary=self.embed in ("obj_pool", "dino"), appearance=self.embed == "dino")

    def capacity(self, tokens_per_map: int) -> int | None:
        """Prompts, the tracked frames of the bank, the previous frame."""
        return None if self.cap is None else tokens_per_map * (self.max_prompts + self.cap)

    def prompt(self, state: SmartBank | None, frame: FrameContext, entry: MemoryEntry) -> SmartBank:
        if state is None:
            state = SmartBank(centre=None if frame.features is None else frame.features.low.mean(0))
        marked = replace(entry, summary=self._embedding(state, frame, entry))
        arrivals = (*(a for a in state.arrivals if a[0] != entry.frame), (entry.frame, state.updates))
        return add_prompt(replace(state, arrivals=arrivals), marked, max_prompts=self.max_prompts)

    def unprompt(self, state: SmartBank, frame: int) -> SmartBank | None:
        return free_prompt(state, frame)

    def moved(self, state: SmartBank, by: int) -> SmartBank:
        shifted = shift_bank(state, by)
        return replace(shifted, arrivals=tuple((frame + by, update) for frame, update in state.arrivals))

    def read(self, state: SmartBank, frame: FrameContext) -> Sequence[MemoryRead]:
        return (read_bank(state, frame, slot_rule=self.tpos_policy, max_obj_ptrs=self.max_obj_ptrs_in_encoder),)

    def write(
        self,
        state: SmartBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> SmartBank:
        for entry in entries:
            again = frame.index in state.kept
            marked = replace(entry, summary=self._embedding(state, frame, entry) if again else None)
            state = replace(state, entries=put(state.entries, marked))
        if entries and is_due(state, frame, self.gap):
            state = self._updated(state, frame, entries[-1])
        return settle(state, frame.index, max_obj_ptrs=self.max_obj_ptrs_in_encoder)

    # -- the embedding ------------------------------------------------------------------------------------------------

    def _embedding(self, state: SmartBank, frame: FrameContext, entry: MemoryEntry) -> Tensor | None:
        """z, of unit length, on the device of its source; None where the object has no pixels."""
        raw = entry.summary
        if self.embed == "pointer":
            raw = entry.pointer
        elif self.embed == "frame_pool":
            assert frame.features is not None, "embed=frame_pool reads the features of the frame"
            raw = frame.features.low.mean(0)
        elif self.embed == "obj_pool" and raw is not None and state.centre is not None:
            raw = raw - state.centre
        return None if raw is None else F.normalize(raw.float(), dim=0)

    def _likenesses(self, state: SmartBank, now: int, z: Tensor | None) -> list[Likeness]:
        """Every bank frame beside the present one; one transfer from the device. An undefined z resembles nothing."""
        bank = state.bank(besides=now)
        known = [e for e in bank if e.summary is not None and z is not None]
        cosines: list[float] = (torch.stack([e.summary.to(z) for e in known]) @ z).tolist() if known else []
        relevance = {e.frame: max(c, 0.0) if self.clamp_negative else c for e, c in zip(known, cosines)}
        arrived = dict(state.arrivals)
        return [Likeness(e.frame, relevance.get(e.frame, 0.0), self._age(state, now, e.frame, arrived)) for e in bank]

    def _age(self, state: SmartBank, now: int, frame: int, arrived: dict[int, int]) -> int:
        if self.age_unit == "frames":
            return max(abs(now - frame), 1)
        return state.updates + 1 - arrived.get(frame, state.updates)

    # -- the update ---------------------------------------------------------------------------------------------------

    def _updated(self, state: SmartBank, frame: FrameContext, entry: MemoryEntry) -> SmartBank:
        z = self._embedding(state, frame, entry)
        if self.skip_absent and (z is None or entry.objectness <= self.min_obj_score_logits):
            return state
        now = frame.index
        bank = self._likenesses(state, now, z)
        pinned = {p.frame for p in state.prompts} if self.protect_first else set()
        free = [x for x in bank if x.frame not in pinned]
        leaving = self.replaced_by(free)
        gone = [] if leaving is None else [leaving]
        if self.cap is not None:
            excess = len(bank) + 1 - len(gone) - self.cap
            gone += self._overflow([x for x in free if x.frame not in gone])[: max(excess, 0)]
        logger.debug("frame %d: bank of %d, %s left", now, len(bank) + 1 - len(gone), gone)
        new = replace(
            state,
            updates=state.updates + 1,
            replaced=state.replaced + (leaving is not None),
            added=state.added + (leaving is None),
            entries=put(state.entries, replace(entry, summary=z)),
        )
        return self._exchanged(new, now, gone)

    def replaced_by(self, candidates: Sequence[Likeness]) -> int | None:
        """The frame that z_t takes the place of (Eq. 5 to 7); None when it is added beside all of them."""
        if self.gate == "max_rel":
            candidates = [x for x in candidates if x.relevance >= self.tau_mem]
        if not candidates:
            return None
        worst = max(candidates, key=lambda x: self._score(x, self.score))
        return worst.frame if worst.relevance >= self.tau_mem else None

    def _score(self, candidate: Likeness, rule: str) -> float:
        fresh = 1.0 / candidate.age
        return candidate.relevance * (1.0 + self.freshness_weight * (fresh if rule == "literal" else 1.0 - fresh))

    def _overflow(self, candidates: Sequence[Likeness]) -> list[int]:
        """Frames in the order in which they leave a full bank; of equals, the oldest first."""
        oldest = sorted(candidates, key=lambda x: -x.age)
        if self.overflow == "age":
            oldest = sorted(oldest, key=lambda x: -self._score(x, "age"))
        return [x.frame for x in oldest]

    @staticmethod
    def _exchanged(state: SmartBank, now: int, gone: Sequence[int]) -> SmartBank:
        """The bank with frame ``now`` and without ``gone``; a prompt that goes leaves its pointer."""
        prompts = tuple(replace(p, tokens=None, summary=None) if p.frame in gone else p for p in state.prompts)
        leaving = {*gone, now}
        entries = tuple(replace(e, summary=None) if e.frame in gone else e for e in state.entries)
        return replace(
            state,
            prompts=prompts,
            entries=entries,
            kept=(*(f for f in state.kept if f not in leaving), now),
            arrivals=(*(a for a in state.arrivals if a[0] not in leaving), (now, state.updates)),
            updated=now,
        )

    # -- reasons ------------------------------------------------------------------------------------------------------

    def notes(self, state: SmartBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; likenesses belong to a pair of frames, so they come with the events."""
        bank = {e.frame for e in state.bank()}
        return entry_infos(self.held(state), lambda e: "bank" if e.frame in bank else "previous", {}, "")

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events, now = super().explain(change), change.frame.index
        if change.cause is not Cause.WRITE:
            return events
        if change.after.updates == change.before.updates:
            due = change.entries and is_due(change.before, change.frame, self.gap)
            text = "the object is absent" if due else "the bank is not due"
            return with_reasons(events, came={now: Reason(f"previous frame only; {text}")})
        z = next(e.summary for e in change.after.entries if e.frame == now)
        bank = self._likenesses(change.before, now, z)
        members = {e.frame for e in change.after.bank(besides=now)}
        left = {x.frame: self._why_left(change, x) for x in bank if x.frame not in members}
        stays = (x for x in bank if x.frame in members)
        kept = {x.frame: Reason("stays: cosine to the new frame", x.relevance, self.tau_mem) for x in stays}
        beside = max((x.relevance for x in bank), default=0.0)
        came = {now: Reason("joins the bank: largest cosine to it", beside, self.tau_mem)}
        return with_reasons(events, came=came, went=left, kept=kept)

    def _why_left(self, change: Change, one: Likeness) -> Reason:
        """Why a frame left the bank."""
        if change.after.replaced > change.before.replaced and one.relevance >= self.tau_mem:
            score = self._score(one, self.score)
            text = f"resembles the new frame: cosine {one.relevance:.3f}, removal score {score:.3f}"
            return Reason(text, one.relevance, self.tau_mem)
        if self.overflow == "oldest":
            return Reason("oldest of a bank over its cap", float(one.age))
        return Reason(f"largest age score of a bank over its cap of {self.cap}", self._score(one, "age"))
