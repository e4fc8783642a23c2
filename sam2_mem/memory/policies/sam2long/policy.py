"""SAM2Long: several pathways through the video, each with its own memory; the best by cumulative score is shown."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sam2_mem.memory.bank import put
from sam2_mem.memory.policies.sam2long.deferred_masks import OpenFrames, PublishedMask, add_frame, published_mask
from sam2_mem.memory.policies.sam2long.tree import Memory, Pathway, Tree
from sam2_mem.memory.policy import MemoryPolicy, Needs, best_candidate, setting
from sam2_mem.memory.reading import (
    anchors_of,
    closest_prompts,
    most_pointers,
    nearest_accepted,
    newest_first,
    time_span,
)
from sam2_mem.memory.tokens import restored
from sam2_mem.memory.trace import Action, EntryInfo, Reason
from sam2_mem.types import (
    PROMPT_SLOT,
    ArchivedEntry,
    CandidateId,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    PointerEntry,
    ReadItem,
    ReadPointer,
    Revision,
)


@dataclass(frozen=True, kw_only=True)
class SAM2Long(MemoryPolicy[Tree]):
    """SAM2Long (Ding et al. 2024, arXiv 2410.16268), a constrained tree of memories, without training.

    The tree. Every pathway proposes its candidates; each has the score of its pathway plus ln(predicted IoU +
    ``log_floor``). On a certain frame (some pathway's object-score logit beyond ``uncertainty``, either way) the
    ``num_pathway`` best go on. On an uncertain one they must differ in predicted IoU, rounded to ``iou_decimals`` and
    with the sign of the object score; if too few do, every pathway not yet represented adds its best. All of them are
    remembered. The first tracked frame has one pathway, and its IoU does not count.

    Reading. Each pathway reads, beside the prompts, the last six of its frames with a predicted IoU above ``iou_thre``
    and an object score above ``min_objectness``, and the previous frame whatever it is worth; temporal slots and
    pointer ages go by rank in that list. Keys are multiplied by evenly spaced gains from ``gain_low`` to ``gain_high``
    in the order of object scores, maps and pointers each among themselves.

    Output. The mask of the best pathway is given out at once. When a pathway of other ancestry takes the lead, its
    masks replace those of the last ``max_lag`` frames (``needs.revise``). The published code gives out nothing before
    the end of the video: ``max_lag`` None with ``output`` "coalesced". Then frames on which pathways disagree wait for
    the end, in unbounded memory; ancestries seldom differ for more than a few frames, so the default lag rarely makes a
    difference.

    With ``num_pathway`` 1, ``iou_thre`` -1, ``min_objectness`` -inf, both gains 1 and ``skip_oldest_pointer`` false
    this is FIFO.

    Departures from the code: any number of objects, of prompts (shared by all pathways, each with
    ``prompt_objectness``), late objects, reverse passes and picture sizes; a prompted frame keeps its place in the
    list, empty, as in SAM 2; scores are kept relative to the best one, only differences matter; equal object scores are
    ranked by age, the newest highest; equal pathways share one read, so they cost one row in the network; memory that
    can no longer be read is dropped.

    Attributes:
        num_pathway: pathways, 3.
        iou_thre: predicted IoU, 0.1 in the README and as the functions' default (preset ``sam2long_argparse``: 0.3 and
            uncertainty 1, what its tool does without flags; ``sam2long_paper``: 0.3 and 2).
        uncertainty: object-score logit, 2.
        min_objectness: object-score logit, 0.
        gain_low: gain on the keys of the lowest object score, 0.95; both gains 1 for none.
        gain_high: gain on the keys of the highest, 1.05.
        prompt_objectness: object score that prompts count with in the gains, 10.
        log_floor: added to an IoU before its logarithm, 1e-5.
        iou_decimals: digits to which predicted IoUs must differ on an uncertain frame, 2.
        skip_oldest_pointer: the oldest pointer of a pathway's list is not read, as in the code (an off-by-one).
        lower_lone_pointer: a single pointer beside several maps gets ``gain_low``, as in the code; else a gain of 1.
        output: "streaming": masks are replaced as soon as another ancestry leads, maybe several times; "coalesced":
            each mask at most once, when all pathways agree on its frame or after ``max_lag`` frames.
        max_lag: frames, 16; 0 for masks that are final at once; None for no limit.
        num_maskmem: as in FIFO.
        max_cond_frames_in_attn: as in FIFO.
        only_obj_ptrs_in_the_past_for_eval: as in FIFO.
    """

    removed: ClassVar[Mapping[str, Any]] = {"clones": "keep", "diversity": "iou", "max_mask_iou": 0.9}

    num_pathway: int = setting(3, at_least=1)
    iou_thre: float = 0.1
    uncertainty: float = 2.0
    min_objectness: float = 0.0
    gain_low: float = setting(0.95, above=0.0)
    gain_high: float = 1.05
    prompt_objectness: float = 10.0
    log_floor: float = setting(1e-5, above=0.0)
    iou_decimals: int = 2
    skip_oldest_pointer: bool = True
    lower_lone_pointer: bool = True
    output: str = setting("streaming", choices=("streaming", "coalesced"))
    max_lag: int | None = setting(16, at_least=0, special=(None,))
    num_maskmem: int = setting(7, at_least=1)
    max_cond_frames_in_attn: int = setting(-1, at_least=2, special=(-1,))
    only_obj_ptrs_in_the_past_for_eval: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gain_low <= self.gain_high:
            raise ValueError(f"expected gain_low in 0..gain_high, got {self.gain_low} beside {self.gain_high}")

    @property
    def needs(self) -> Needs:
        """``revise`` is the lag; one pathway never changes its mind."""
        if self.num_pathway == 1:
            return Needs()
        return Needs(revise=sys.maxsize if self.max_lag is None else self.max_lag)

    @property
    def num_pathways(self) -> int:
        return self.num_pathway

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and for every pathway, on both sides of the current frame, the earliest and the last prompt, the
        nearest frame and the accepted frames of one read."""
        return tokens_per_map * (self.max_prompts + self.num_pathway * 3 * 2 * self.num_maskmem)

    def new_state(self, frame: FrameContext) -> Tree:
        return Tree()

    def unprompt(self, state: Tree, frame: int) -> Tree | None:
        """As in ``MemoryPolicy``; every pathway takes in the released entry."""
        pathways = state.pathways or (Pathway(),) * self.num_pathway
        return super().unprompt(replace(state, pathways=pathways), frame)

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, state: Tree, frame: FrameContext) -> Sequence[MemoryRead]:
        """One read per pathway; equal pathways give the same object."""
        reads: dict[tuple[tuple[int, bool], ...], MemoryRead] = {}
        pathways = state.pathways or (Pathway(),)
        keys = [p.memory_key() for p in pathways]
        for pathway, key in zip(pathways, keys):
            if key not in reads:
                reads[key] = self._read(state.prompts, pathway.entries, frame)
        return tuple(reads[key] for key in keys)

    def _read(self, all_prompts: Sequence[MemoryEntry], memory: Memory, frame: FrameContext) -> MemoryRead:
        prompts, other_prompts = closest_prompts(all_prompts, frame.index, self.max_cond_frames_in_attn)
        accepted = newest_first(
            (*other_prompts, *memory),
            {p.frame for p in prompts},
            frame,
            accept=self._accepts,
            max_accepted=most_pointers(frame, self.max_obj_ptrs_in_encoder) - 1,
        )
        items = self._items(prompts, accepted[: self.num_maskmem - 1], frame)
        pointers = self._pointers(prompts, accepted, frame, gains_apply=len(items) > 1)
        return MemoryRead(items=tuple(items), pointers=tuple(pointers))

    def _accepts(self, entry: Entry) -> bool:
        return entry.iou > self.iou_thre and entry.objectness > self.min_objectness

    def _items(
        self, prompts: Sequence[MemoryEntry], accepted: Sequence[Entry | None], frame: FrameContext
    ) -> list[ReadItem]:
        slots = [(e, PROMPT_SLOT) for e in prompts]
        slots += [(e, slot) for slot, e in reversed(list(enumerate(accepted))) if isinstance(e, MemoryEntry)]
        gains = _spaced_gains(self, [e for e, _ in slots], frame) if len(slots) > 1 else [1.0]
        return [ReadItem(e.tokens, slot, gain) for (e, slot), gain in zip(slots, gains)]

    def _pointers(
        self,
        prompts: Sequence[MemoryEntry],
        accepted: Sequence[Entry | None],
        frame: FrameContext,
        *,
        gains_apply: bool,
    ) -> list[ReadPointer]:
        """Pointers of prompts by age, of accepted entries by rank; gains apply where several maps are read."""
        span = time_span(frame, self.max_obj_ptrs_in_encoder)
        ages: list[tuple[Entry, int]] = [(e, frame.age(e.frame)) for e in prompts]
        if self.only_obj_ptrs_in_the_past_for_eval:
            ages = [(e, age) for e, age in ages if age >= 0]
        ranked = [(e, rank) for rank, e in enumerate(accepted, start=1) if e is not None]
        ages += ranked[:-1] if self.skip_oldest_pointer else ranked
        gains = [1.0] * len(ages)
        if gains_apply and len(ages) > 1:
            gains = _spaced_gains(self, [e for e, _ in ages], frame)
        elif gains_apply and self.lower_lone_pointer:
            gains = [self.gain_low]
        return [ReadPointer(e.pointer, age / span, gain) for (e, age), gain in zip(ages, gains)]

    def recall(self, state: Tree, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> Tree:
        """With the latest accepted frames behind ``frame`` and the previous one, as if none had left: in every pathway the
        version that the best one had of them."""
        entries: dict[int, MemoryEntry] = {}
        prompted = state.prompted_frames()

        def complete(memory: Memory) -> Memory:
            known = {**{f: a.entry for f, a in archived.items()}, **{e.frame: e for e in memory}}
            selected = newest_first(
                known.values(), prompted, frame, accept=self._accepts, max_accepted=self.max_obj_ptrs_in_encoder - 1
            )
            frames = [e.frame for e in selected if e is not None]
            whole = {e.frame for e in memory if e.tokens is not None}
            for f in frames[: self.num_maskmem - 1]:
                if f in archived and f not in whole:
                    memory = put(memory, entries.setdefault(f, restored(archived[f])))
            present = {e.frame for e in memory}
            return (*memory, *(archived[f].entry.without_tokens() for f in frames if f not in present))

        pathways = state.pathways or (Pathway(),) * self.num_pathway
        memories = [tuple(sorted(complete(p.entries), key=lambda e: e.frame)) for p in pathways]
        if all(len(m) == len(p.entries) and not entries for m, p in zip(memories, pathways)):
            return state
        return state.with_pathways(replace(p, entries=m) for p, m in zip(pathways, memories))

    # -- choosing -----------------------------------------------------------------------------------------------

    def choose(self, state: Tree, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        if state.pathways:
            survivors = self._survivors(state, hypotheses)
        else:
            survivors = (best_candidate(hypotheses),) * self.num_pathway
        return MaskSelection(output=survivors[0], remember=survivors)

    def _survivors(self, state: Tree, hypotheses: Hypotheses) -> tuple[CandidateId, ...]:
        """The candidates that go on, the best first; of equals the first pathway's first candidate."""
        candidates = [CandidateId(p, m) for p, row in enumerate(hypotheses.iou) for m in range(len(row))]
        ranked = sorted(candidates, key=lambda c: -_score(self, state.pathways[c.pathway], hypotheses, c))
        if _certainty(hypotheses) > self.uncertainty:
            return tuple(ranked[: self.num_pathway])
        distinct: dict[float, CandidateId] = {}
        for candidate in ranked:
            distinct.setdefault(_signed_iou(hypotheses, candidate, self.iou_decimals), candidate)
        survivors = list(distinct.values())[: self.num_pathway]
        missing = set(range(len(hypotheses.iou))) - {c.pathway for c in survivors}
        survivors += [next(c for c in ranked if c.pathway == p) for p in sorted(missing)]
        survivors += [c for c in ranked if c not in survivors]
        return tuple(survivors[: self.num_pathway])

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: Tree,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Tree:
        survivors, parents = selection.remember, state.pathways or (Pathway(),)
        scores = [_score(self, parents[c.pathway], hypotheses, c) if state.pathways else 0.0 for c in survivors]
        pathways = [
            Pathway(score - max(scores), put(parents[c.pathway].entries, entry))
            for c, score, entry in zip(survivors, scores, entries)
        ]
        updated = replace(
            state.with_pathways(self._evict(pathways, anchors_of(state, frame.index))),
            open_frames=self._open_frames(state, frame, hypotheses, survivors, entries),
        )
        spread, versions = _certainty(hypotheses), len({id(e) for e in entries})
        certainty = f"{'certain' if spread > self.uncertainty else 'uncertain'}, object score {spread:.1f}"
        reasons = _reasons(state, updated, frame.index, survivors, versions, certainty)
        return replace(updated, reasons=tuple(reasons))

    def _evict(self, pathways: Sequence[Pathway], anchors: set[int]) -> list[Pathway]:
        """Drop what no read can reach; an entry that loses its tokens in several pathways stays one entry."""
        bare: dict[int, PointerEntry] = {}

        def trim(memory: Memory) -> Memory:
            readable, with_pointer = nearest_accepted(
                memory,
                anchors,
                accept=self._accepts,
                max_maps=self.num_maskmem - 1,
                max_pointers=self.max_obj_ptrs_in_encoder - 1,
            )
            return tuple(
                e if e.frame in readable else bare.setdefault(id(e), e.without_tokens())
                for e in memory
                if e.frame in readable or e.frame in with_pointer
            )

        return [replace(p, entries=trim(p.entries)) for p in pathways]

    def _open_frames(
        self,
        state: Tree,
        frame: FrameContext,
        hypotheses: Hypotheses,
        survivors: Sequence[CandidateId],
        entries: Sequence[MemoryEntry],
    ) -> OpenFrames:
        if not self.needs.revise:
            return OpenFrames()
        masks: dict[int, PublishedMask] = {}
        for candidate, entry in zip(survivors, entries):
            if id(entry) not in masks:
                masks[id(entry)] = published_mask(frame.index, hypotheses, candidate, self.min_obj_score_logits)
        return add_frame(
            state.open_frames,
            frame,
            [c.pathway for c in survivors],
            [masks[id(e)] for e in entries],
            max_lag=self.max_lag,
            at_once=self.output == "streaming",
        )

    # -- output -------------------------------------------------------------------------------------------------

    def revise(self, state: Tree, frame: FrameContext) -> Sequence[Revision]:
        current = state.open_frames.last_frame == frame.index
        return tuple(mask.as_revision() for mask in state.open_frames.revisions) if current else ()

    def finish(self, state: Tree) -> Sequence[Revision]:
        return tuple(mask.as_revision() for mask in state.open_frames.pending())

    # -- reasons ------------------------------------------------------------------------------------------------

    def entry_infos(self, state: Tree, frame: FrameContext) -> Sequence[EntryInfo]:
        """Every version of a frame, with the pathways that hold it."""
        infos = []
        for entry in state.all_entries():
            if entry.is_prompt:
                pathways = range(max(len(state.pathways), 1))
                infos.append(EntryInfo(entry.frame, "prompt", entry.tokens, pathways=tuple(pathways)))
                continue
            holders = [i for i, p in enumerate(state.pathways) if any(e.pointer is entry.pointer for e in p.entries)]
            kind = "pointer" if entry.tokens is None else "accepted" if self._accepts(entry) else "doubtful"
            infos.append(EntryInfo(entry.frame, kind, entry.tokens, entry.iou, "predicted IoU", tuple(holders)))
        return infos


def _score(policy: SAM2Long, pathway: Pathway, hypotheses: Hypotheses, candidate: CandidateId) -> float:
    iou = max(hypotheses.iou[candidate.pathway][candidate.candidate], 0.0)
    return pathway.score + math.log(iou + policy.log_floor)


def _spaced_gains(policy: SAM2Long, entries: Sequence[Entry], frame: FrameContext) -> list[float]:
    """Evenly spaced gains of two entries or more, the highest for the highest object score."""
    scores = [policy.prompt_objectness if e.is_prompt else e.objectness for e in entries]
    keys = [(score, e.is_prompt, -frame.age(e.frame)) for score, e in zip(scores, entries)]
    step = (policy.gain_high - policy.gain_low) / (len(entries) - 1)
    gains = [1.0] * len(entries)
    for rank, i in enumerate(sorted(range(len(entries)), key=keys.__getitem__)):
        gains[i] = policy.gain_low + rank * step
    return gains


def _signed_iou(hypotheses: Hypotheses, candidate: CandidateId, decimals: int) -> float:
    """Rounded predicted IoU with the sign of the object score."""
    iou = round(hypotheses.iou[candidate.pathway][candidate.candidate], decimals)
    return iou if hypotheses.objectness[candidate.pathway] > 0 else -iou


def _certainty(hypotheses: Hypotheses) -> float:
    """The object-score logit farthest from zero."""
    return max(abs(o) for o in hypotheses.objectness)


def _reasons(
    before: Tree, after: Tree, index: int, survivors: Sequence[CandidateId], versions: int, certainty: str
) -> Iterator[Reason]:
    """Which memory ended, which pathway goes on from which, which masks were replaced."""
    parents = {c.pathway for c in survivors}
    surviving = {e.frame for i, p in enumerate(before.pathways) if i in parents for e in p.entries}
    for frame in sorted(before.tracked().keys() - surviving - {index}):
        yield Reason(frame, "its pathways ended")
    yield Reason(index, f"{versions} version{'s' * (versions > 1)} of it, by {len(survivors)} pathways")
    for i, (candidate, pathway) in enumerate(zip(survivors, after.pathways)):
        text = f"{certainty if before.pathways else 'first frame of the tree'}: candidate {candidate.candidate}"
        yield Reason(index, text, pathway.score, action=Action.BRANCHED, pathway=i, parent=candidate.pathway)
    for i, pathway in enumerate(before.pathways):
        if i not in parents:
            text = f"pathway {i} ended: others have better scores"
            yield Reason(index, text, pathway.score, action=Action.REJECTED, pathway=i)
    for mask in after.open_frames.revisions:
        yield Reason(mask.frame, "a pathway of other ancestry leads", mask.iou, action=Action.REVISED)
