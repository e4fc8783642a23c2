"""Keyframes within a byte budget: telling frames are kept whole, others compact, the rest not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.memory.policy import Bank, MemoryPolicy, Needs, drop, put
from sam2_mem.memory.reading import add_prompt, map_frames, pointer_window, rank_slots, within_reach
from sam2_mem.memory.tokens import pool_tokens, token_count
from sam2_mem.memory.trace import (
    Action,
    Cause,
    Change,
    EntryInfo,
    Reason,
    TraceEvent,
    entry_infos,
    plain_events,
    with_reasons,
)
from sam2_mem.types import (
    PROMPT_SLOT,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadItem,
)


@dataclass(frozen=True, eq=False)
class Keyframes(Bank):
    """``prompts`` and recent ``entries`` as in FIFO; ``whole`` and ``compact`` keyframes, sorted by frame. ``demoted``:
    compact ones as they were, whole, for the network's distiller; empty once it has been asked."""

    whole: tuple[MemoryEntry, ...] = ()
    compact: tuple[MemoryEntry, ...] = ()
    demoted: tuple[MemoryEntry, ...] = ()

    def all_entries(self) -> tuple[MemoryEntry, ...]:
        return self.prompts + self.entries + self.whole + self.compact


@dataclass(frozen=True, kw_only=True)
class Keyframe(MemoryPolicy[Keyframes]):
    """Our own policy; a storage budget is spent on the frames that say most.

    The last few frames are kept as in FIFO, but none around the prompts: a later pass reads the keyframes there. Every ``gap``-th frame that leaves them is a candidate, unless the object was
    absent or its mask doubtful. Its significance is

        predicted IoU x sigmoid(object score) x distance to the nearest other frame kept,

    the distance being ``pointer_weight`` x (1 - cosine of object pointers) / 2 plus the rest x (1 - cosine of the image
    features pooled over the mask) / 2. While the budget is exceeded the least
    significant whole keyframe becomes compact (block means with their log-count and fractional coordinates), then the least
    significant compact one goes. Best-frame selection and IoU gates are ideas of SAMURAI (Yang et al. 2024) and of template
    updating in trackers; the compact tier is ours.

    Attributes:
        budget_bytes: spatial memory of one object in bytes, prompts and recent frames included; those two always fit.
            3,670,016 are seven maps of SAM 2 at an image size of 1024, its own cost.
        bytes_per_token: bytes of one stored token (64 channels in bf16: 128), to turn the budget into tokens.
        recent: past frames kept whole, 6 in SAM 2.
        max_whole: most keyframes kept whole. max_compact: most compact ones.
        pool: a compact keyframe keeps one token for every ``pool`` x ``pool`` stored ones, which are cells unless the
            network's distiller has made fewer of them.
        compact_by: "mean" of each block; "distiller", that of the network, which is the mean too where it has not learned.
        gap: frames between candidates.
        min_iou: predicted IoU below which a frame is no candidate. min_object_score: the same for the object-score logit.
        pointer_weight: share of the pointers in the distance, 0..1.
        max_obj_ptrs_in_encoder: as in FIFO. max_prompts: as in FIFO.
    """

    needs: ClassVar[Needs] = Needs(summary=True)

    budget_bytes: int = 3_670_016
    bytes_per_token: int = 128
    recent: int = 3
    max_whole: int = 1
    max_compact: int = 12
    pool: int = 2
    compact_by: str = "mean"
    gap: int = 4
    min_iou: float = 0.5
    min_object_score: float = 0.0
    pointer_weight: float = 0.5
    max_obj_ptrs_in_encoder: int = 16
    max_prompts: int = 32

    def __post_init__(self) -> None:
        at_least = {"budget_bytes": 0, "bytes_per_token": 1, "recent": 1, "max_whole": 0, "max_compact": 0, "pool": 2}
        at_least |= {"gap": 1, "max_obj_ptrs_in_encoder": 1, "max_prompts": 2}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")
        if not 0.0 <= self.pointer_weight <= 1.0:
            raise ValueError(f"expected pointer_weight in 0..1, got {self.pointer_weight}")
        if self.compact_by not in ("mean", "distiller"):
            raise ValueError(f"expected compact_by out of mean, distiller, got {self.compact_by!r}")

    def capacity(self, tokens_per_map: int) -> int | None:
        always = tokens_per_map * (self.max_prompts + 2 * self.recent + 1)
        keys = min(self.budget_bytes // self.bytes_per_token, tokens_per_map * (self.max_whole + self.max_compact))
        return always + keys

    def prompt(self, state: Keyframes | None, frame: FrameContext, entry: MemoryEntry) -> Keyframes:
        state = Keyframes() if state is None else state
        state = Keyframes(
            prompts=add_prompt(state.prompts, entry, self.max_prompts),
            entries=drop(state.entries, entry.frame),
            whole=drop(state.whole, entry.frame),
            compact=drop(state.compact, entry.frame),
        )
        return self._within_budget(state, frame)

    def read(self, state: Keyframes, frame: FrameContext) -> Sequence[MemoryRead]:
        tracked = {e.frame: e for e in state.entries}
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts if e.tokens is not None]
        near = [(slot, tracked.get(f)) for slot, f in map_frames(frame, num_maskmem=self.recent + 1)]
        items += [ReadItem(e.tokens, slot) for slot, e in near if e is not None and e.tokens is not None]
        just_read = {e.frame for _, e in near if e is not None}
        keys = [e for e in (*state.whole, *state.compact) if e.frame not in just_read]
        keys.sort(key=lambda e: abs(e.frame - frame.index))
        behind = rank_slots(len(keys) + self.recent - 1)[self.recent - 1 :]
        items += [ReadItem(e.tokens, slot) for e, slot in zip(keys, behind)]
        pointers = pointer_window(state.prompts, tracked, frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def write(
        self,
        state: Keyframes,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Keyframes:
        tracked = state.entries
        for entry in entries:
            tracked = put(tracked, entry)
        leaving = self._leaving(tracked, frame)
        state = self._moved_on(state, tracked, frame)
        if leaving is None or not self._is_candidate(leaving):
            return state
        return self._within_budget(replace(state, whole=put(state.whole, leaving)), frame)

    def _moved_on(self, state: Keyframes, tracked: Sequence[MemoryEntry], frame: FrameContext) -> Keyframes:
        """The state with the recent ones of ``tracked``, and no keyframe of this very frame."""
        return replace(
            state,
            entries=self._recent(tracked, frame),
            whole=drop(state.whole, frame.index),
            compact=drop(state.compact, frame.index),
            demoted=(),
        )

    def condense(self, state: Keyframes, frame: FrameContext) -> Sequence[MergeRequest]:
        return tuple(MergeRequest((entry,), self.pool) for entry in state.demoted)

    def condensed(
        self, state: Keyframes, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens
    ) -> Keyframes:
        (entry,) = request.entries
        compact = (replace(e, tokens=tokens) if e.frame == entry.frame else e for e in state.compact)
        demoted = tuple(e for e in state.demoted if e is not entry)
        return replace(state, compact=tuple(compact), demoted=demoted)

    def forget(self, state: Keyframes, frame: int, radius: int) -> Keyframes:
        far = super().forget(state, frame, radius)
        whole, compact = (tuple(e for e in t if abs(e.frame - frame) > radius) for t in (state.whole, state.compact))
        return replace(far, whole=whole, compact=compact, demoted=())

    def moved(self, state: Keyframes, by: int) -> Keyframes:
        whole, compact = (tuple(replace(e, frame=e.frame + by) for e in t) for t in (state.whole, state.compact))
        return replace(super().moved(state, by), whole=whole, compact=compact, demoted=())

    def _recent(self, tracked: Sequence[MemoryEntry], frame: FrameContext) -> tuple[MemoryEntry, ...]:
        pointer_reach = max(self.max_obj_ptrs_in_encoder - 1, self.recent)
        return tuple(within_reach(tracked, {frame.index}, token_reach=self.recent, pointer_reach=pointer_reach))

    def _leaving(self, tracked: Sequence[MemoryEntry], frame: FrameContext) -> MemoryEntry | None:
        """The entry that the next frame will no longer read as recent, on every ``gap``-th frame."""
        return next((e for e in tracked if frame.age(e.frame) == self.recent and e.frame % self.gap == 0), None)

    def _is_candidate(self, entry: MemoryEntry) -> bool:
        good = entry.iou >= self.min_iou and entry.objectness > self.min_object_score
        return entry.tokens is not None and entry.summary is not None and good

    # -- the budget ------------------------------------------------------------------------------------------------

    def _within_budget(self, state: Keyframes, frame: FrameContext) -> Keyframes:
        """Demote and drop the least significant keyframes until the state fits."""
        return self._contest(state, frame)[0]

    def _contest(self, state: Keyframes, frame: FrameContext) -> tuple[Keyframes, dict[int, float]]:
        """What is left within the budget, and the significance of every frame that lost, when it last did."""
        lost: dict[int, float] = {}
        while self._over_budget(state):
            scores = significances(state, pointer_weight=self.pointer_weight)
            if state.whole and (len(state.whole) > self.max_whole or not state.compact):
                least = min(state.whole, key=lambda e: scores[e.frame])
                state = self._demoted(state, least, frame)
            elif state.compact:
                least = min(state.compact, key=lambda e: scores[e.frame])
                state = replace(state, compact=drop(state.compact, least.frame))
            else:
                break
            lost[least.frame] = scores[least.frame]
        return state, lost

    def _over_budget(self, state: Keyframes) -> bool:
        if len(state.whole) > self.max_whole or len(state.compact) > self.max_compact:
            return True
        keys = (*state.whole, *state.compact)
        return bool(keys) and token_count(state.all_entries()) * self.bytes_per_token > self.budget_bytes

    def _demoted(self, state: Keyframes, entry: MemoryEntry, frame: FrameContext) -> Keyframes:
        """``entry`` moved from the whole to the compact keyframes."""
        grid = frame.features.grid if frame.features is not None else None
        whole = drop(state.whole, entry.frame)
        if self.max_compact == 0 or grid is None:
            return replace(state, whole=whole)
        small = replace(entry, tokens=pool_tokens(entry.tokens, grid, self.pool))
        demoted = (*state.demoted, entry) if self.compact_by == "distiller" else ()
        return replace(state, whole=whole, compact=put(state.compact, small), demoted=demoted)

    # -- reasons ---------------------------------------------------------------------------------------------------

    def notes(self, state: Keyframes, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; keyframes are scored by their significance. A frame that is recent and a
        keyframe is told as the keyframe."""
        keys = {e.frame: "keyframe" for e in state.whole} | {e.frame: "compact keyframe" for e in state.compact}
        scores = significances(state, pointer_weight=self.pointer_weight) if keys else {}
        return entry_infos(self._once(state), lambda e: keys.get(e.frame, "recent"), scores, "significance")

    @staticmethod
    def _once(state: Keyframes) -> tuple[MemoryEntry, ...]:
        """Every frame once: its keyframe, where it is one."""
        keys = {e.frame for e in (*state.whole, *state.compact)}
        others = (e for e in (*state.prompts, *state.entries) if e.frame not in keys)
        return (*others, *state.whole, *state.compact)

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        before, after = (() if s is None else self._once(s) for s in (change.before, change.after))
        events = plain_events(change, before, after)
        if change.cause is not Cause.WRITE:
            return events
        tracked = change.before.entries
        for entry in change.entries:
            tracked = put(tracked, entry)
        leaving = self._leaving(tracked, change.frame)
        if leaving is None:
            return events
        if not self._is_candidate(leaving):
            return [*events, self._turned_down(leaving)]
        grown = self._moved_on(change.before, tracked, change.frame)
        grown = replace(grown, whole=put(grown.whole, leaving))
        scores = significances(grown, pointer_weight=self.pointer_weight)
        left, lost = self._contest(grown, change.frame)
        limit = max(lost.values(), default=None)
        stays = {e.frame for e in (*left.whole, *left.compact)}
        kept = {
            f: Reason("stays: significance", scores[f], limit) for f in stays - {leaving.frame} - lost.keys() if lost
        }
        text = "becomes a keyframe" if leaving.frame in stays else "is no keyframe: least significant"
        action = Action.PROMOTED if leaving.frame in stays else Action.REJECTED
        events = with_reasons(
            events, went={f: Reason("least significant", score, limit) for f, score in lost.items()}, kept=kept
        )
        return [*events, TraceEvent(action, leaving.frame, text, scores[leaving.frame], limit)]

    def _turned_down(self, entry: MemoryEntry) -> TraceEvent:
        if entry.iou < self.min_iou:
            return TraceEvent(Action.REJECTED, entry.frame, "no keyframe: doubtful mask", entry.iou, self.min_iou)
        if entry.objectness <= self.min_object_score:
            limit = self.min_object_score
            return TraceEvent(Action.REJECTED, entry.frame, "no keyframe: object absent", entry.objectness, limit)
        return TraceEvent(Action.REJECTED, entry.frame, "no keyframe: an empty mask has no appearance")


def significances(state: Keyframes, *, pointer_weight: float) -> dict[int, float]:
    """Significance of every keyframe by frame; comes to the CPU in one transfer."""
    keys = [*state.whole, *state.compact]
    others = [p for p in state.prompts if p.summary is not None]
    kept = [*keys, *others]
    distance = pointer_weight * _distances([e.pointer for e in kept])
    distance = distance + (1 - pointer_weight) * _distances([e.summary for e in kept])
    distance.fill_diagonal_(float("inf"))
    nearest = distance.min(dim=1).values[: len(keys)].clamp(max=1.0).tolist()
    quality = [e.iou * torch.sigmoid(torch.tensor(e.objectness)).item() for e in keys]
    return {e.frame: q * d for e, q, d in zip(keys, quality, nearest)}


def _distances(vectors: Sequence[Tensor]) -> Tensor:
    """(1 - cosine) / 2 of all pairs, (n, n)."""
    unit = F.normalize(torch.stack([v.float() for v in vectors]), dim=1)
    return (1 - unit @ unit.t()) / 2
