"""Keyframes within a byte budget: significant frames are kept whole, others compact, the rest not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank, drop, put, shifted
from sam2_mem.memory.channel_reduction import ReducedTokens, reduce_channels, restore_channels
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.reading import map_frames, pointer_window, rank_slots
from sam2_mem.memory.significance import pair_distances, significances
from sam2_mem.memory.tokens import pool_tokens
from sam2_mem.memory.trace import Action, EntryInfo, Reason, entry_infos
from sam2_mem.types import (
    PROMPT_SLOT,
    Entry,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadItem,
    ReadUsage,
)


@dataclass(frozen=True, eq=False)
class Keyframes(Bank):
    """``prompts`` and recent ``entries`` as in FIFO, and the keyframes, which may be recent as well.

    Attributes:
        full: whole keyframes, sorted by frame.
        compact: compact ones, sorted by frame.
        demoted: compact ones as they were, whole, for the network's distiller; empty once it has been asked.
    """

    full: tuple[MemoryEntry, ...] = ()
    compact: tuple[MemoryEntry, ...] = ()
    demoted: tuple[MemoryEntry, ...] = ()

    def keyframes(self) -> tuple[MemoryEntry, ...]:
        """Whole and compact ones."""
        return self.full + self.compact

    def all_entries(self) -> tuple[Entry, ...]:
        return (*super().all_entries(), *self.keyframes())

    def stored_tokens(self) -> float:
        """Tokens of all channels that take the room of what is held."""
        reduced = [e.tokens for e in self.compact if isinstance(e.tokens, ReducedTokens)]
        return self.token_count() - sum(len(tokens) - tokens.equivalent for tokens in reduced)

    def without(self, frame: int) -> Self:
        full, compact = drop(self.full, frame), drop(self.compact, frame)
        return replace(super().without(frame), full=full, compact=compact, demoted=())

    def forget(self, frame: int, radius: int) -> Self:
        tiers = (self.full, self.compact)
        full, compact = (tuple(e for e in tier if abs(e.frame - frame) > radius) for tier in tiers)
        return replace(super().forget(frame, radius), full=full, compact=compact, demoted=())

    def shift_frames(self, by: int) -> Self:
        full, compact = shifted(self.full, by), shifted(self.compact, by)
        return replace(super().shift_frames(by), full=full, compact=compact, demoted=())


@dataclass(frozen=True, kw_only=True)
class Keyframe(MemoryPolicy[Keyframes]):
    """Our own policy; a storage budget is spent on the most significant frames.

    The last few frames are kept as in FIFO, but none around the prompts: a later pass reads the keyframes there. Every
    ``gap``-th frame that leaves them is a candidate, unless the object was absent or its mask doubtful. Its significance is

        predicted IoU x sigmoid(object score) x distance to the nearest other frame kept,

    the distance being ``pointer_weight`` x (1 - cosine of object pointers) / 2 plus the rest x (1 - cosine of the image
    features pooled over the mask) / 2. While the budget is exceeded the least significant whole keyframe becomes compact
    (block means with their log-count and fractional coordinates), then the least significant compact one goes. Best-frame
    selection and IoU gates are ideas of SAMURAI (Yang et al. 2024) and of template updating in trackers; the compact tier is
    ours.

    Attributes:
        budget_bytes: spatial memory of one object in bytes, prompts and recent frames included; those two always fit.
            3,670,016 are seven maps of SAM 2 at an image size of 1024, its own cost.
        bytes_per_token: bytes of one stored token (64 channels in bf16: 128), to turn the budget into tokens.
        recent: past frames kept whole, 6 in SAM 2.
        max_whole: most keyframes kept whole.
        max_compact: most compact ones.
        pool: a compact keyframe keeps one token for every ``pool`` x ``pool`` stored ones, which are cells unless the
            network's distiller has made fewer of them.
        channels: numbers that a compact keyframe keeps of each token's features, their principal components; 0: all of them.
        compact_by: "mean" of each block; "distiller", that of the network, which is the mean too where it has not learned.
        gap: frames between candidates.
        min_iou: predicted IoU below which a frame is no candidate.
        min_object_score: object-score logit that a candidate is above.
        pointer_weight: share of the pointers in the distance, 0..1.
    """

    budget_bytes: int = setting(3_670_016, at_least=0)
    bytes_per_token: int = setting(128, at_least=1)
    recent: int = setting(3, at_least=1)
    max_whole: int = setting(1, at_least=0)
    max_compact: int = setting(12, at_least=0)
    pool: int = setting(2, at_least=2)
    channels: int = setting(0, at_least=0)
    compact_by: str = setting("mean", choices=("mean", "distiller"))
    gap: int = setting(4, at_least=1)
    min_iou: float = 0.5
    min_object_score: float = 0.0
    pointer_weight: float = setting(0.5, at_least=0.0, at_most=1.0)

    @property
    def needs(self) -> Needs:
        return Needs(summary=True, whole_maps=self.channels > 0)

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts and recent frames on both sides; keyframes as far as the budget goes."""
        always = tokens_per_map * (self.max_prompts + 2 * self.recent + 1)
        keys = tokens_per_map * (self.max_whole + self.max_compact)
        return always + (keys if self.channels else min(self.budget_bytes // self.bytes_per_token, keys))

    def new_state(self, frame: FrameContext) -> Keyframes:
        return Keyframes()

    def prompt(self, state: Keyframes | None, frame: FrameContext, entry: MemoryEntry) -> Keyframes:
        return self._contest(super().prompt(state, frame, entry), frame, None)[0]

    def read(self, state: Keyframes, frame: FrameContext) -> Sequence[MemoryRead]:
        tracked = state.tracked()
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts]
        recent = [(slot, tracked[f]) for slot, f in map_frames(frame, num_maskmem=self.recent + 1) if f in tracked]
        items += [ReadItem(e.tokens, slot) for slot, e in recent if isinstance(e, MemoryEntry)]
        just_read = {e.frame for _, e in recent}
        keys = [e for e in state.keyframes() if e.frame not in just_read]
        keys.sort(key=lambda e: abs(e.frame - frame.index))
        slots = rank_slots(len(keys) + self.recent - 1)[self.recent - 1 :]
        items += [ReadItem(restore_channels(e.tokens), slot) for e, slot in zip(keys, slots)]
        pointers = pointer_window(state.prompts, tracked, frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder)
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """The recent frames; keyframes that have left stay away."""
        return [f for _, f in map_frames(frame, num_maskmem=self.recent + 1)], super().frames_behind(frame)[1]

    def write(
        self,
        state: Keyframes,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Keyframes:
        grown = state.add(*entries)
        leaving = self._leaving(grown, frame)
        pointer_reach = max(self.max_obj_ptrs_in_encoder - 1, self.recent)
        grown = replace(
            grown.keep_near({frame.index}, token_reach=self.recent, pointer_reach=pointer_reach),
            full=drop(state.full, frame.index),
            compact=drop(state.compact, frame.index),
            demoted=(),
            reasons=(),
        )
        if leaving is None:
            return grown
        if not isinstance(leaving, MemoryEntry):
            return replace(grown, reasons=(leaving,))
        joined = replace(grown, full=put(grown.full, leaving))
        fitting, scores, losers = self._contest(joined, frame, hypotheses.measured)
        return replace(fitting, reasons=self._reasons(leaving.frame, fitting, scores, losers))

    def measure(
        self, state: Keyframes, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Distances of all pairs that a contest of this frame compares."""
        leaving = self._leaving(state, frame)
        if not isinstance(leaving, MemoryEntry):
            return None
        full = put(drop(state.full, frame.index), leaving)
        joined = replace(state, full=full, compact=drop(state.compact, frame.index))
        return pair_distances(joined.keyframes(), joined.prompts, pointer_weight=self.pointer_weight)

    def _leaving(self, state: Keyframes, frame: FrameContext) -> MemoryEntry | Reason | None:
        """The entry that the next frame will no longer read as recent, on every ``gap``-th frame, or why it is no
        candidate."""
        old = (e for e in state.tracked().values() if frame.age(e.frame) == self.recent and e.frame % self.gap == 0)
        entry = next(old, None)
        if entry is None:
            return None
        rejected = partial(Reason, entry.frame, action=Action.REJECTED)
        if not entry.iou >= self.min_iou:
            return rejected("no keyframe: doubtful mask", entry.iou, self.min_iou)
        if not entry.objectness > self.min_object_score:
            return rejected("no keyframe: object absent", entry.objectness, self.min_object_score)
        if entry.summary is None:
            return rejected("no keyframe: an empty mask has no appearance")
        return entry if isinstance(entry, MemoryEntry) else rejected("no keyframe: its map has left memory")

    def merge_requests(self, state: Keyframes, frame: FrameContext) -> Sequence[MergeRequest]:
        return tuple(MergeRequest((entry,), self.pool) for entry in state.demoted)

    def take_merged(
        self, state: Keyframes, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens
    ) -> Keyframes:
        (entry,) = request.entries
        tokens = reduce_channels(tokens, self.channels)
        compact = (replace(e, tokens=tokens) if e.frame == entry.frame else e for e in state.compact)
        demoted = tuple(e for e in state.demoted if e is not entry)
        return replace(state, compact=tuple(compact), demoted=demoted)

    # -- the budget ---------------------------------------------------------------------------------------------

    def _contest(
        self, state: Keyframes, frame: FrameContext, measured: Tensor | None
    ) -> tuple[Keyframes, dict[int, float], dict[int, float]]:
        """Demote and drop the least significant keyframes until the state fits.

        Args:
            state: with all keyframes.
            frame: the frame.
            measured: what ``measure`` gave; None asks the device.

        Returns:
            the state that fits; the significance of all keyframes before, empty where they fitted; the significance of those
            that lost, when they last did.
        """
        before: dict[int, float] = {}
        losers: dict[int, float] = {}
        places, distances = _places(state), None
        while self._over_budget(state):
            if measured is not None:
                remaining = torch.tensor([places.index(place) for place in _places(state)])
                distances = measured.view(len(places), -1)[remaining][:, remaining]
            keys, weight = state.keyframes(), self.pointer_weight
            scores = significances(keys, state.prompts, pointer_weight=weight, distances=distances)
            before = before or scores
            demotes = bool(state.full) and (len(state.full) > self.max_whole or not state.compact)
            weakest = min(state.full if demotes else state.compact, key=lambda e: scores[e.frame])
            losers[weakest.frame] = scores[weakest.frame]
            if demotes:
                state = self._demote(state, weakest, frame)
            else:
                state = replace(state, compact=drop(state.compact, weakest.frame))
        return state, before, losers

    def _over_budget(self, state: Keyframes) -> bool:
        if len(state.full) > self.max_whole or len(state.compact) > self.max_compact:
            return True
        return bool(state.keyframes()) and state.stored_tokens() * self.bytes_per_token > self.budget_bytes

    def _demote(self, state: Keyframes, entry: MemoryEntry, frame: FrameContext) -> Keyframes:
        """``entry`` moved from the whole to the compact keyframes."""
        state = replace(state, full=drop(state.full, entry.frame))
        if self.max_compact == 0 or frame.features is None:
            return state
        pooled = pool_tokens(entry.tokens, frame.features.grid, self.pool)
        small = replace(entry, tokens=reduce_channels(pooled, self.channels))
        demoted = (*state.demoted, entry) if self.compact_by == "distiller" else ()
        return replace(state, compact=put(state.compact, small), demoted=demoted)

    # -- reasons ------------------------------------------------------------------------------------------------

    def _reasons(
        self, candidate: int, state: Keyframes, scores: dict[int, float], losers: dict[int, float]
    ) -> tuple[Reason, ...]:
        """Of a contest that left ``state``; without one, when all keyframes fit, there are no scores."""
        limit = max(losers.values(), default=None)
        frames = [e.frame for e in state.keyframes()]
        reasons = [Reason(f, "least significant", score, limit) for f, score in losers.items()]
        for f in frames:
            if losers and f != candidate and f not in losers:
                reasons.append(Reason(f, "stays: significance", scores[f], limit, Action.KEPT))
        promoted = candidate in frames
        text = "becomes a keyframe" if promoted else "is no keyframe: least significant"
        action = Action.PROMOTED if promoted else Action.REJECTED
        return (*reasons, Reason(candidate, text, scores.get(candidate), limit, action))

    def entry_infos(self, state: Keyframes, frame: FrameContext) -> Sequence[EntryInfo]:
        """Every frame once, a recent keyframe as the keyframe; keyframes are scored by their significance."""
        kinds = {e.frame: "keyframe" for e in state.full} | {e.frame: "compact keyframe" for e in state.compact}
        scores = significances(state.keyframes(), state.prompts, pointer_weight=self.pointer_weight) if kinds else {}
        entries = [e for e in state.all_entries() if e.frame not in kinds] + [*state.keyframes()]
        return entry_infos(entries, lambda e: kinds.get(e.frame, "recent"), scores, "significance")


def _places(state: Keyframes) -> list[tuple[int, bool]]:
    """What tells entries that are compared apart, in the order of ``pair_distances``."""
    return [
        *((e.frame, False) for e in state.keyframes()),
        *((p.frame, True) for p in state.prompts if p.summary is not None),
    ]
