"""SAM2Long: several pathways through the video, each with its own memory; the best by cumulative score is shown."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from sam2_mem.memory.policies.sam2long.deferred_masks import OpenFrames, PublishedMask, grow, shown
from sam2_mem.memory.policy import Bank, MemoryPolicy, Needs, best_candidate, drop, put
from sam2_mem.memory.reading import (
    add_prompt,
    anchors_of,
    closest_prompts,
    most_pointers,
    nearest_accepted,
    newest_first,
    time_span,
)
from sam2_mem.memory.trace import Action, Cause, Change, EntryInfo, Reason, TraceEvent, plain_kind, with_reasons
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadPointer,
    Revision,
)

Places = list[MemoryEntry | None]


@dataclass(frozen=True, eq=False)
class Pathway:
    """``score``: sum of log IoUs, less that of the best pathway; ``entries``: its memory. Entries are shared between
    pathways and never copied."""

    score: float = 0.0
    entries: tuple[MemoryEntry, ...] = ()

    def memory_key(self) -> tuple[tuple[int, bool], ...]:
        """Equal for pathways that read the same."""
        return tuple((id(e.pointer), e.tokens is None) for e in self.entries)


@dataclass(frozen=True, eq=False)
class Tree(Bank):
    """``pathways``, the best first, none before the first tracked frame; ``entries`` are those of all pathways
    together; ``trails``: masks of the latest frames that may still be replaced."""

    pathways: tuple[Pathway, ...] = ()
    trails: OpenFrames = field(default_factory=OpenFrames)

    def with_pathways(self, pathways: Iterable[Pathway]) -> Tree:
        pathways = tuple(pathways)
        return replace(self, pathways=pathways, entries=_together(p.entries for p in pathways))

    def with_memories(self, change: Callable[[tuple[MemoryEntry, ...]], tuple[MemoryEntry, ...]]) -> Tree:
        """The same with ``change`` applied to the memory of every pathway."""
        return self.with_pathways(replace(p, entries=change(p.entries)) for p in self.pathways)


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

    Attributes:
        num_pathway: 3. iou_thre: predicted IoU, 0.1 in the README and as the functions' default (preset
            ``sam2long_argparse``: 0.3 and uncertainty 1, what its tool does without flags; ``sam2long_paper``: 0.3 and
            2).
        uncertainty: object-score logit, 2.
        min_objectness: object-score logit, 0. gain_low, gain_high: 0.95 and 1.05; both 1 for no gains.
        prompt_objectness: object score that prompts count with in the gains, 10.
        log_floor: 1e-5. iou_decimals: 2.
        skip_oldest_pointer: the oldest pointer of a pathway's list is not read, as in the code (an off-by-one).
        lower_lone_pointer: a single pointer beside several maps gets ``gain_low``, as in the code; else a gain of 1.
        clones: "keep": on certain frames equal pathways stay equal, as in the code, which makes no use of the tree
            until the first uncertain frame; "part": equal candidates of equal pathways count once.
        diversity: what must differ on an uncertain frame: "iou", the rounded predicted IoU, as in the code, or "mask":
            the IoU of any two masks is at most ``max_mask_iou``.
        max_mask_iou: 0.9; ours.
        output: "streaming": masks are replaced as soon as another ancestry leads, maybe several times; "coalesced":
            each mask at most once, when all pathways agree on its frame or after ``max_lag`` frames.
        max_lag: frames, 16; 0 for masks that are final at once; None for no limit.
        num_maskmem, max_obj_ptrs_in_encoder, max_cond_frames_in_attn, only_obj_ptrs_in_the_past_for_eval, max_prompts:
            as in FIFO.

    With ``num_pathway`` 1, ``iou_thre`` -1, ``min_objectness`` -inf, both gains 1 and ``skip_oldest_pointer`` false
    this is FIFO.

    Departures from the code: any number of objects, of prompts (shared by all pathways, each with
    ``prompt_objectness``), late objects, reverse passes and picture sizes; a prompted frame keeps its place in the
    list, empty, as in SAM 2; scores are kept relative to the best one, only differences matter; equal object scores are
    ranked by age, the newest highest; equal pathways share one read, so they cost one row in the network; memory that
    can no longer be read is dropped.
    """

    num_pathway: int = 3
    iou_thre: float = 0.1
    uncertainty: float = 2.0
    min_objectness: float = 0.0
    gain_low: float = 0.95
    gain_high: float = 1.05
    prompt_objectness: float = 10.0
    log_floor: float = 1e-5
    iou_decimals: int = 2
    skip_oldest_pointer: bool = True
    lower_lone_pointer: bool = True
    clones: str = "keep"
    diversity: str = "iou"
    max_mask_iou: float = 0.9
    output: str = "streaming"
    max_lag: int | None = 16
    num_maskmem: int = 7
    max_obj_ptrs_in_encoder: int = 16
    max_cond_frames_in_attn: int = -1
    only_obj_ptrs_in_the_past_for_eval: bool = True
    max_prompts: int = 32

    def __post_init__(self) -> None:
        for name in ("num_pathway", "num_maskmem", "max_obj_ptrs_in_encoder"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"expected {name} to be one of {valid}, got {getattr(self, name)!r}")
        if not 0 < self.gain_low <= self.gain_high:
            raise ValueError(f"expected gain_low in 0..gain_high, got {self.gain_low} beside {self.gain_high}")
        if self.log_floor <= 0:
            raise ValueError(f"expected log_floor > 0, got {self.log_floor}")
        if self.max_lag is not None and self.max_lag < 0:
            raise ValueError(f"expected max_lag >= 0, or None for no limit, got {self.max_lag}")
        if self.max_cond_frames_in_attn != -1 and self.max_cond_frames_in_attn < 2:
            raise ValueError(f"expected max_cond_frames_in_attn -1 or >= 2, got {self.max_cond_frames_in_attn}")
        if self.max_prompts < 2:
            raise ValueError(f"expected max_prompts >= 2, got {self.max_prompts}")

    @property
    def needs(self) -> Needs:
        """``revise`` is the lag; one pathway never changes its mind."""
        if self.num_pathway == 1:
            return Needs()
        return Needs(revise=sys.maxsize if self.max_lag is None else self.max_lag)

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and for every pathway, on both sides of the current frame, the earliest and the last prompt, the
        nearest frame and the accepted frames of one read."""
        return tokens_per_map * (self.max_prompts + self.num_pathway * 3 * 2 * self.num_maskmem)

    # -- reading ------------------------------------------------------------------------------------------------

    def prompt(self, state: Tree | None, frame: FrameContext, entry: MemoryEntry) -> Tree:
        state = Tree() if state is None else state
        prompts = add_prompt(state.prompts, entry, self.max_prompts)
        state = replace(state, prompts=prompts, trails=state.trails.without(entry.frame))
        return state.with_memories(lambda entries: drop(entries, entry.frame))

    def read(self, state: Tree, frame: FrameContext) -> Sequence[MemoryRead]:
        """One read per pathway; equal pathways give the same object."""
        made: dict[tuple, MemoryRead] = {}
        pathways = state.pathways or (Pathway(),)
        keys = [p.memory_key() for p in pathways]
        for pathway, key in zip(pathways, keys):
            if key not in made:
                made[key] = self._read(state.prompts, pathway.entries, frame)
        return tuple(made[key] for key in keys)

    def _read(self, prompts: Sequence[MemoryEntry], entries: Sequence[MemoryEntry], frame: FrameContext) -> MemoryRead:
        near, far = closest_prompts(prompts, frame.index, self.max_cond_frames_in_attn)
        places = newest_first(
            (*far, *entries),
            {p.frame for p in near},
            frame,
            accept=self._accepts,
            most=most_pointers(frame, self.max_obj_ptrs_in_encoder) - 1,
        )
        items = self._maps(near, places[: self.num_maskmem - 1], frame)
        return MemoryRead(items=tuple(items), pointers=tuple(self._pointers(near, places, frame, len(items))))

    def _accepts(self, entry: MemoryEntry) -> bool:
        return entry.iou > self.iou_thre and entry.objectness > self.min_objectness

    def _maps(self, near: Sequence[MemoryEntry], places: Places, frame: FrameContext) -> list[ReadItem]:
        read = [(e, PROMPT_SLOT) for e in near]
        read += [(e, slot) for slot, e in reversed(list(enumerate(places))) if e is not None]
        read = [(e, slot) for e, slot in read if e.tokens is not None]
        gains = self._gains([e for e, _ in read], frame)
        return [ReadItem(e.tokens, slot, gain) for (e, slot), gain in zip(read, gains)]

    def _pointers(
        self, near: Sequence[MemoryEntry], places: Places, frame: FrameContext, maps: int
    ) -> list[ReadPointer]:
        span = time_span(frame, self.max_obj_ptrs_in_encoder)
        ages = [(e, frame.age(e.frame)) for e in near]
        read = [(e, age) for e, age in ages if age >= 0 or not self.only_obj_ptrs_in_the_past_for_eval]
        listed = [(e, rank) for rank, e in enumerate(places, start=1) if e is not None]
        read += listed[:-1] if self.skip_oldest_pointer else listed
        gains = self._gains([e for e, _ in read], frame, modulated=maps > 1)
        return [ReadPointer(e.pointer, age / span, gain) for (e, age), gain in zip(read, gains)]

    def _gains(
        self, entries: Sequence[MemoryEntry], frame: FrameContext, *, modulated: bool | None = None
    ) -> list[float]:
        """Evenly spaced, the highest for the highest object score. ``modulated``: whether there are several maps, if
        ``entries`` are pointers; a single map goes without gains, and so do its pointers."""
        count = len(entries)
        if modulated is False or (modulated is None and count < 2):
            return [1.0] * count
        if count == 1:
            return [self.gain_low if self.lower_lone_pointer else 1.0]
        scores = [self.prompt_objectness if e.is_prompt else e.objectness for e in entries]
        keys = [(score, e.is_prompt, -frame.age(e.frame)) for score, e in zip(scores, entries)]
        step = (self.gain_high - self.gain_low) / max(count - 1, 1)
        gains = [1.0] * count
        for rank, i in enumerate(sorted(range(count), key=keys.__getitem__)):
            gains[i] = self.gain_low + rank * step
        return gains

    # -- choosing -----------------------------------------------------------------------------------------------

    def choose(self, state: Tree, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        if state.pathways:
            picks = self._survivors(state, hypotheses)
        else:
            picks = (best_candidate(hypotheses),) * self.num_pathway
        return MaskSelection(output=picks[0], remember=picks)

    def _survivors(self, state: Tree, hypotheses: Hypotheses) -> tuple[CandidateId, ...]:
        """The candidates that go on, the best first."""
        ranked = self._ranked(state, hypotheses)
        certain = max(abs(o) for o in hypotheses.objectness) > self.uncertainty
        alike = self._clones(state) if certain else self._too_similar(hypotheses)
        chosen: list[CandidateId] = []
        for pick in ranked:
            if len(chosen) < self.num_pathway and not any(alike(pick, other) for other in chosen):
                chosen.append(pick)
        if not certain:
            seen = {pick.pathway for pick in chosen}
            chosen += [_best_of(ranked, p) for p in range(len(hypotheses.iou)) if p not in seen]
        chosen += [pick for pick in ranked if pick not in chosen]
        return tuple(chosen[: self.num_pathway])

    def _ranked(self, state: Tree, hypotheses: Hypotheses) -> list[CandidateId]:
        """All candidates by falling score; of equals the first pathway's first candidate."""
        picks = [CandidateId(p, m) for p, row in enumerate(hypotheses.iou) for m in range(len(row))]
        return sorted(picks, key=lambda pick: -self._score(state.pathways[pick.pathway], hypotheses, pick))

    def _score(self, pathway: Pathway, hypotheses: Hypotheses, pick: CandidateId) -> float:
        iou = max(hypotheses.iou[pick.pathway][pick.candidate], 0.0)
        return pathway.score + math.log(iou + self.log_floor)

    def _clones(self, state: Tree) -> Callable[[CandidateId, CandidateId], bool]:
        if self.clones == "keep":
            return lambda a, b: False
        keys = [p.memory_key() for p in state.pathways]
        return lambda a, b: a.candidate == b.candidate and keys[a.pathway] == keys[b.pathway]

    def _too_similar(self, hypotheses: Hypotheses) -> Callable[[CandidateId, CandidateId], bool]:
        if self.diversity == "mask":
            overlap = self._mask_overlaps(hypotheses)
            number = {
                CandidateId(p, m): p * len(row) + m for p, row in enumerate(hypotheses.iou) for m in range(len(row))
            }
            return lambda a, b: overlap[number[a]][number[b]] > self.max_mask_iou

        def signed(pick: CandidateId) -> float:
            value = round(hypotheses.iou[pick.pathway][pick.candidate], self.iou_decimals)
            return value if hypotheses.objectness[pick.pathway] > 0 else -value

        return lambda a, b: signed(a) == signed(b)

    def _mask_overlaps(self, hypotheses: Hypotheses) -> list[list[float]]:
        """IoU of any two candidates, all pathways in one row; two empty masks are equal. One transfer."""
        present = hypotheses.masks.new_tensor([o > self.min_obj_score_logits for o in hypotheses.objectness])
        masks = ((hypotheses.masks > 0) * present[:, None, None, None]).flatten(2).flatten(0, 1).float()
        both, sizes = masks @ masks.t(), masks.sum(1)
        either = sizes[:, None] + sizes[None] - both
        return (both / either).where(either > 0, both.new_ones(())).tolist()

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        state: Tree,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Tree:
        picks, old = choice.remember, state.pathways or (Pathway(),)
        scores = [self._score(old[p.pathway], hypotheses, p) if state.pathways else 0.0 for p in picks]
        grown = [
            Pathway(score - max(scores), put(old[pick.pathway].entries, entry))
            for pick, score, entry in zip(picks, scores, entries)
        ]
        kept = self._evicted(grown, anchors_of(state.prompts, frame.index))
        trails = self._trails(state.trails, frame, hypotheses, picks, entries) if self.needs.revise else OpenFrames()
        return replace(state, trails=trails).with_pathways(kept)

    def _evicted(self, pathways: Sequence[Pathway], anchors: set[int]) -> list[Pathway]:
        """Drop what no read can reach; an entry that loses its tokens in several pathways stays one entry."""
        bare: dict[int, MemoryEntry] = {}

        def trimmed(entries: tuple[MemoryEntry, ...]) -> tuple[MemoryEntry, ...]:
            whole, pointer_only = nearest_accepted(
                entries,
                anchors,
                accept=self._accepts,
                whole=self.num_maskmem - 1,
                pointers=self.max_obj_ptrs_in_encoder - 1,
            )
            return tuple(
                e if e.frame in whole else bare.setdefault(id(e), e.without_tokens())
                for e in entries
                if e.frame in whole or e.frame in pointer_only
            )

        return [replace(p, entries=trimmed(p.entries)) for p in pathways]

    def _trails(
        self,
        trails: OpenFrames,
        frame: FrameContext,
        hypotheses: Hypotheses,
        picks: Sequence[CandidateId],
        entries: Sequence[MemoryEntry],
    ) -> OpenFrames:
        masks: dict[int, PublishedMask] = {}
        for pick, entry in zip(picks, entries):
            if id(entry) not in masks:
                masks[id(entry)] = shown(frame.index, hypotheses, pick, self.min_obj_score_logits)
        return grow(
            trails,
            frame,
            [p.pathway for p in picks],
            [masks[id(e)] for e in entries],
            max_lag=self.max_lag,
            at_once=self.output == "streaming",
        )

    # -- output -------------------------------------------------------------------------------------------------

    def revise(self, state: Tree, frame: FrameContext) -> Sequence[Revision]:
        current = state.trails.latest == frame.index
        return tuple(s.as_revision() for s in state.trails.news) if current else ()

    def finish(self, state: Tree) -> Sequence[Revision]:
        return tuple(s.as_revision() for s in state.trails.pending())

    # -- other verbs --------------------------------------------------------------------------------------------

    def forget(self, state: Tree, frame: int, radius: int) -> Tree:
        return state.with_memories(lambda entries: tuple(e for e in entries if abs(e.frame - frame) > radius))

    def strip(self, state: Tree, frame: int) -> Tree:
        bare = {id(e): e.without_tokens() for p in state.pathways for e in p.entries if e.frame == frame}
        return state.with_memories(lambda entries: tuple(bare.get(id(e), e) for e in entries))

    def least_capacity(self, tokens_per_map: int) -> int:
        """Every pathway may have a frame of its own."""
        return (1 + self.num_pathway) * tokens_per_map

    def unprompt(self, state: Tree, frame: int) -> Tree | None:
        freed = [e.as_tracked() for e in state.prompts if e.frame == frame]
        prompts = drop(state.prompts, frame)
        if not prompts:
            return None
        left = replace(state, prompts=prompts, pathways=state.pathways or (Pathway(),) * self.num_pathway)
        return left.with_memories(lambda entries: put(entries, freed[0]) if freed else entries)

    def moved(self, state: Tree, by: int) -> Tree:
        """See :meth:`MemoryPolicy.moved`; masks that are still open stay behind."""
        there = {id(e): replace(e, frame=e.frame + by) for p in state.pathways for e in p.entries}
        prompts = tuple(replace(e, frame=e.frame + by) for e in state.prompts)
        left = replace(state, prompts=prompts, trails=OpenFrames())
        return left.with_memories(lambda entries: tuple(there[id(e)] for e in entries))

    # -- reasons ------------------------------------------------------------------------------------------------

    def notes(self, state: Tree, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; every version of a frame, with the pathways that hold it."""
        everyone = tuple(range(max(len(state.pathways), 1)))
        notes = [EntryInfo(e.frame, "prompt", e.tokens, pathways=everyone) for e in state.prompts]
        for entry in state.entries:
            holders = [i for i, p in enumerate(state.pathways) if any(e.pointer is entry.pointer for e in p.entries)]
            kind = plain_kind(entry)
            if kind == "map":
                kind = "accepted" if self._accepts(entry) else "doubtful"
            note = EntryInfo(entry.frame, kind, entry.tokens, entry.iou, "predicted IoU", tuple(holders))
            notes.append(note)
        return notes

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events, now = super().explain(change), change.frame.index
        if change.cause is not Cause.WRITE:
            return events
        picks, old = change.choice.remember, change.before.pathways
        living = {e.frame for p in {p.pathway for p in picks} if p < len(old) for e in old[p].entries}
        ended = {e.frame for e in change.before.entries} - living
        versions = len({id(e) for e in change.entries})
        events = with_reasons(
            dict.fromkeys(events),
            came={now: Reason(f"{versions} version{'s' * (versions > 1)} of it, by {len(picks)} pathways")},
            went={f: Reason("its pathways ended") for f in ended},
        )
        return [*events, *self._branches(change), *self._revisions(change)]

    def _branches(self, change: Change) -> list[TraceEvent]:
        """Which pathway goes on from which, and which end."""
        picks, now, old = change.choice.remember, change.frame.index, change.before.pathways
        spread = max(abs(o) for o in change.hypotheses.objectness)
        sure = f"{'certain' if spread > self.uncertainty else 'uncertain'}, object score {spread:.1f}"
        told = [f"{sure if old else 'first frame of the tree'}: candidate {pick.candidate}" for pick in picks]
        grown = [
            TraceEvent(Action.BRANCHED, now, words, pathway.score, pathway=i, parent=pick.pathway)
            for i, (words, pick, pathway) in enumerate(zip(told, picks, change.after.pathways))
        ]
        alive = {pick.pathway for pick in picks}
        ends = [
            TraceEvent(Action.REJECTED, now, f"pathway {i} ended: others have better scores", p.score, pathway=i)
            for i, p in enumerate(old)
            if i not in alive
        ]
        return grown + ends

    def _revisions(self, change: Change) -> list[TraceEvent]:
        current = change.after.trails.latest == change.frame.index
        news = change.after.trails.news if current else ()
        return [TraceEvent(Action.REVISED, s.frame, "a pathway of other ancestry leads", s.iou) for s in news]


_CHOICES = {"clones": ("keep", "part"), "diversity": ("iou", "mask"), "output": ("streaming", "coalesced")}


def _best_of(ranked: Sequence[CandidateId], pathway: int) -> CandidateId:
    return next(pick for pick in ranked if pick.pathway == pathway)


def _together(memories: Iterable[Sequence[MemoryEntry]]) -> tuple[MemoryEntry, ...]:
    """Every entry once, sorted by frame; whole where any pathway has it whole."""
    found: dict[tuple[int, int], MemoryEntry] = {}
    for entry in (e for entries in memories for e in entries):
        key = (entry.frame, id(entry.pointer))
        if key not in found or found[key].tokens is None:
            found[key] = entry
    return tuple(sorted(found.values(), key=lambda e: e.frame))
