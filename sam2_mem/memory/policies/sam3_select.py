"""SAM 3's own selection of memory: the newest frames of certain masks, whatever their age."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy, setting
from sam2_mem.memory.reading import (
    anchors_of,
    closest_prompts,
    most_pointers,
    nearest_accepted,
    newest_first,
    pointer_window,
    recall_accepted,
    time_span,
)
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
    ReadPointer,
)


@dataclass(frozen=True, kw_only=True)
class SAM3Select(MemoryPolicy[Bank]):
    """The memory selection of SAM 3 (2025, arXiv 2511.16719), for each object apart as in SAM3-DMS (arXiv 2601.09699).

    The certainty of a frame is max(0, 2 sigmoid(object score) - 1) x predicted IoU. A read takes the newest
    ``max_obj_ptrs_in_encoder`` - 1 frames whose certainty is above ``mf_threshold``, and the previous frame in any case.
    The newest ``num_maskmem`` - 1 of them give their maps, in slots by rank: gaps close. All but the oldest give their
    pointer, whose age is its rank. Prompts are the ``max_cond_frames_in_attn`` nearest ones.

    With ``mf_threshold`` -1, ``max_cond_frames_in_attn`` -1 and ``skip_oldest_pointer`` false this is FIFO, as long as
    an object has one prompt.

    Departures from the code: frames are certain for each object, where SAM 3 averages over all objects of a video; entries
    beyond reach are dropped; on a video of unknown length the time span of pointers is constant.

    Attributes:
        mf_threshold: certainty that a frame is above, 0.01.
        skip_oldest_pointer: the oldest frame selected does not give its pointer, as in the code.
        num_maskmem: as in FIFO.
        max_cond_frames_in_attn: most prompted frames read, 4; -1 for all, else at least 2.
    """

    mf_threshold: float = 0.01
    skip_oldest_pointer: bool = True
    num_maskmem: int = setting(7, at_least=1)
    max_cond_frames_in_attn: int = setting(4, at_least=2, special=(-1,))

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, and on both sides of the current frame, the earliest and the last prompt the nearest frame and the
        certain frames of one read."""
        return tokens_per_map * (self.max_prompts + 3 * 2 * self.num_maskmem)

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        prompts, _ = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        window = most_pointers(frame, self.max_obj_ptrs_in_encoder)
        tracked = state.tracked().values()
        selected = newest_first(tracked, (), frame, accept=self._is_certain, max_accepted=window - 1)
        if any(
            frame.age(p.frame) == 1 for p in prompts
        ):  # it takes a place, which stays empty; other prompts take none
            selected.insert(0, None)
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in prompts]
        for slot, entry in enumerate(selected[: self.num_maskmem - 1]):
            if isinstance(entry, MemoryEntry):
                items.append(ReadItem(entry.tokens, slot))
        pointers = list(pointer_window(prompts, {}, frame, max_obj_ptrs=self.max_obj_ptrs_in_encoder))
        given_up = 1 if self.skip_oldest_pointer else 0
        for rank, entry in enumerate(selected[: min(window - 1, len(selected) - given_up)], 1):
            if entry is not None:
                pointers.append(ReadPointer(entry.pointer, rank / time_span(frame, self.max_obj_ptrs_in_encoder)))
        return (MemoryRead(items=tuple(items), pointers=tuple(pointers)),)

    def _is_certain(self, entry: Entry) -> bool:
        return certainty(entry) > self.mf_threshold

    def recall(self, state: Bank, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> Bank:
        """With the latest frames behind ``frame`` that a read takes, as if none had left."""
        bare, size = self.frames_behind(frame)[1], self.num_maskmem - 1
        return recall_accepted(state, frame, archived, accept=self._is_certain, max_maps=size, bare=bare)

    def write(
        self,
        state: Bank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Bank:
        grown = state.add(*entries)
        with_tokens, with_pointer = nearest_accepted(
            list(grown.tracked().values()),
            anchors_of(grown, frame.index),
            accept=self._is_certain,
            max_maps=self.num_maskmem - 1,
            max_pointers=self.max_obj_ptrs_in_encoder - 1,
        )
        text, limit = "uncertain: read on the next frame only", self.mf_threshold
        doubtful = [e for e in entries if not self._is_certain(e)]
        reasons = tuple(Reason(e.frame, text, certainty(e), limit, Action.REJECTED) for e in doubtful)
        return replace(grown.keep(tokens=with_tokens, pointers=with_pointer), reasons=reasons)

    def entry_infos(self, state: Bank, frame: FrameContext) -> Sequence[EntryInfo]:
        kind = lambda e: "certain" if self._is_certain(e) else "uncertain"  # noqa: E731
        scores = {e.frame: certainty(e) for e in state.entries}
        return entry_infos(state.all_entries(), kind, scores, "certainty")


def certainty(entry: Entry) -> float:
    """max(0, 2 sigmoid(object score) - 1) x predicted IoU, in 0..1."""
    return max(0.0, math.tanh(entry.objectness / 2)) * entry.iou
