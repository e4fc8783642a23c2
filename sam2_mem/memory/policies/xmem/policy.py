"""XMem's memory on SAM 2: a working memory of whole frames, consolidated into a long-term memory of prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from sam2_mem.memory.policies.xmem.affinity import KeySpace
from sam2_mem.memory.policies.xmem.consolidation import consolidate, split_working, take_summaries
from sam2_mem.memory.policies.xmem.image_keys import features_of
from sam2_mem.memory.policies.xmem.state import ReadPart, WorkingFrame, XMemBank
from sam2_mem.memory.policy import MemoryPolicy, Needs, setting
from sam2_mem.memory.reading import (
    LAST_SLOT,
    anchors_of,
    closest_prompts,
    map_frames,
    map_reach,
    pointer_window,
    rank_slots,
    tracked_near,
)
from sam2_mem.memory.trace import EntryInfo, Reason, entry_infos
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
    SensoryUpdate,
    Usage,
)


@dataclass(frozen=True, kw_only=True)
class XMem(MemoryPolicy[XMemBank]):
    """Three tiers without training (Cheng and Schwing, "XMem", ECCV 2022, sections 3.3 and 3.4; code: hkchengrex/XMem,
    inference/memory_manager.py and kv_memory_store.py).

    Prompts are permanent. Every ``mem_every``-th frame enters working memory. When that is full, all but its newest
    frames are condensed into ``num_prototypes`` tokens of long-term memory, each the average of the tokens that look
    like the most used ones; the least used prototypes leave when long-term memory is full. The previous frame is
    always read as well.

    XMem's sensory memory, which has to be trained, is part of the model (``model.sensory_channels``); this policy keeps
    its state and has it updated by the memory map on frames of working memory and prompts, by the decoder on others.

    Identity: ``working="window", long_term=False, mem_every=1`` is FIFO. Without prompts in mid-video and in one
    direction ``long_term=False, mem_every=1, max_working=7`` is FIFO too.

    Differences from XMem: keys are image features of SAM 2, standardised, without learned shrinkage and selection (all
    ones); one memory per object, so objects that come late are not special; exact eviction when usages tie; long-term
    usage is always counted (XMem: on videos that may fill the memory); prompts are permanent and outside condensing,
    however many (XMem: the first frame only); the last frame of a video is not special; keys are stored
    unstandardised, so that objects share them. Tokens of distillers: those without a place take the mean key of the
    frame.

    Attributes:
        mem_every: r; frames between two frames of working memory. 5 in XMem, 10 in its command for Long Videos.
        max_working: T_max; working memory is condensed on reaching this many frames, the first prompt counted as one.
            10 in XMem. Without ``long_term`` the oldest frame leaves beyond it.
        min_working: T_min; frames left after condensing, the first prompt counted as one. 5 in XMem.
        working: "every" for the above; "window" for SAM 2's own window of the latest maps (needs ``long_term=False``).
        long_term: whether there is long-term memory.
        max_long_term: LT_max; most prototypes held. 10000 in XMem.
        num_prototypes: P; new prototypes per condensing. 128 in XMem.
        evict_buffer: prototypes evicted beyond need, so that it happens less often. 0 in XMem, 2000 in Cutie.
        usage_every: use is measured on every such frame. 1 in XMem; use over life is unbiased for any value.
        lt_mode: "tokens" has prototypes; "distilled" has none: the frames that leave working memory become one set of
            summaries, made by the network's distiller. Memory attention reads either.
        lt_strength: for ``lt_mode="distilled"``: one summary for every ``lt_strength`` x ``lt_strength`` tokens of a map.
        tpos_policy: temporal slot of working memory: "rank" (1..5, newest first), "clamp" (age - 1, at most 5),
            "prompt", "none".
        lt_tpos: temporal slot of long-term memory: "clamp" (5, as everything of an age of 6 frames or more), "prompt",
            "none".
        absent_frames: frames on which the object is absent: "write" them into working memory, as XMem and SAM 2 do, or
            "skip" them; the next frame on which it is present is taken instead.
        num_maskmem: as in ``FIFO``.
        max_cond_frames_in_attn: as in FIFO.
        only_obj_ptrs_in_the_past_for_eval: as in FIFO.
    """

    removed: ClassVar[Mapping[str, Any]] = {
        "usage": "attn",
        "query_stride": 1,
        "top_k": 30,
        "lt_key": "orig",
        "lt_renorm": False,
        "lt_count": False,
        "key_space": "standardised",
        "temperature": 0.05,
        "key_dtype": "bfloat16",
    }

    mem_every: int = setting(5, at_least=1)
    max_working: int = setting(6, at_least=2)
    min_working: int = setting(3, at_least=1)
    working: str = setting("every", choices=("every", "window"))
    long_term: bool = True
    max_long_term: int = setting(4096, at_least=1)
    num_prototypes: int = setting(128, at_least=1)
    evict_buffer: int = setting(0, at_least=0)
    usage_every: int = setting(1, at_least=1)
    lt_mode: str = setting("tokens", choices=("tokens", "distilled"))
    lt_strength: int = setting(4, at_least=1)
    tpos_policy: str = setting("rank", choices=("rank", "clamp", "prompt", "none"))
    lt_tpos: str = setting("clamp", choices=("clamp", "prompt", "none"))
    absent_frames: str = setting("write", choices=("write", "skip"))
    num_maskmem: int = setting(7, at_least=1)
    max_cond_frames_in_attn: int = setting(-1, at_least=2, special=(-1,))
    only_obj_ptrs_in_the_past_for_eval: bool = True

    def __post_init__(self) -> None:
        if self.lt_mode == "readout":
            raise ValueError(
                "expected lt_mode out of tokens, distilled, got 'readout', a variant that was removed, since no preset and "
                "no measured result used it"
            )
        super().__post_init__()
        if self.min_working >= self.max_working:
            raise ValueError(
                "expected min_working < max_working, or nothing is ever condensed, "
                f"got {self.min_working} and {self.max_working}"
            )
        if self.num_prototypes + self.evict_buffer > self.max_long_term:
            raise ValueError(
                "expected num_prototypes + evict_buffer <= max_long_term, "
                f"got {self.num_prototypes} + {self.evict_buffer} and {self.max_long_term}"
            )
        if self.working == "window" and self.long_term:
            raise ValueError('expected long_term=False with working="window": a window leaves nothing to condense')

    @property
    def needs(self) -> Needs:
        return Needs(usage=Usage.TOKENS, sensory=True, whole_maps=True)  # image keys go with the cells of a map

    # -- bounds -------------------------------------------------------------------------------------------------

    @property
    def _max_after_write(self) -> int:
        """Frames of working memory that a write leaves behind at most."""
        return self.max_working - (2 if self.long_term else 1)

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, working memory, the previous frame and long-term memory; or the windows that FIFO holds."""
        if self.working == "window":
            return tokens_per_map * (self.max_prompts + 3 * (2 * _window_reach(self) + 1))
        maps = self.max_prompts + self._max_after_write + 1
        return tokens_per_map * maps + (self.max_long_term if self.long_term else 0)

    def new_state(self, frame: FrameContext) -> XMemBank:
        return XMemBank(space=KeySpace.of(features_of(frame).low) if self.long_term else None)

    # -- reading ------------------------------------------------------------------------------------------------

    def usage_at(self, state: XMemBank, frame: FrameContext) -> Usage:
        """Attention to tokens where use is measured and there is something to book it on."""
        due = self.long_term and frame.index % self.usage_every == 0
        return Usage.TOKENS if due and (state.working or state.long_term is not None) else Usage.NONE

    def read(self, state: XMemBank, frame: FrameContext) -> Sequence[MemoryRead]:
        prompts, other_prompts = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        tracked: dict[int, Entry] = {**{e.frame: e for e in other_prompts}, **state.tracked()}
        pointers = pointer_window(
            prompts,
            tracked,
            frame,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        items = tuple(part.item for part in self._read_parts(state, frame))
        return (MemoryRead(items=items, pointers=tuple(pointers), sensory=self.sensory(state)),)

    def sensory(self, state: XMemBank) -> Tensor | None:
        return None if self.working == "window" else state.sensory

    def _read_parts(self, state: XMemBank, frame: FrameContext) -> list[ReadPart]:
        """What is read: prompts, long-term memory, working memory, the previous frame."""
        prompts, other_prompts = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        entries = {e.frame: e for e in (*other_prompts, *state.entries)}
        read_parts = [ReadPart(ReadItem(e.tokens, PROMPT_SLOT)) for e in prompts]
        if state.long_term is not None:
            slot = {"clamp": self._clamp(LAST_SLOT), "prompt": PROMPT_SLOT, "none": None}[self.lt_tpos]
            read_parts.append(ReadPart(ReadItem(state.long_term.tokens, slot), long_term=True))
        for slot, index in self._frame_slots(state, frame):
            if index in entries:
                read_parts.append(ReadPart(ReadItem(entries[index].tokens, slot), frame=index))
        return read_parts

    def _frame_slots(self, state: XMemBank, frame: FrameContext) -> list[tuple[int | None, int]]:
        """(temporal slot, frame) of working memory, newest last, and of the previous frame; or of SAM 2's window. Memory
        of this very frame, from an earlier pass, is left out."""
        if self.working == "window":
            return list(map_frames(frame, num_maskmem=self.num_maskmem, stride=self.mem_every))
        previous = frame.index + 1 if frame.reverse else frame.index - 1
        frames = [w.frame for w in state.working if w.frame not in (previous, frame.index)]
        frames.sort(key=lambda f: (abs(frame.age(f)), f))
        choices: dict[str, Sequence[int | None]] = {
            "rank": rank_slots(len(frames)),
            "clamp": [abs(frame.age(f)) - 1 for f in frames],
            "prompt": [PROMPT_SLOT] * len(frames),
            "none": [None] * len(frames),
        }
        slots = choices[self.tpos_policy]
        newest_first = [(self._clamp(slot), f) for slot, f in zip(slots, frames)]
        return [*reversed(newest_first), (0, previous)]

    def _clamp(self, slot: int | None) -> int | None:
        """``slot`` within the model's temporal code."""
        return slot if slot is None else min(slot, LAST_SLOT, max(self.num_maskmem - 2, 0))

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """The previous frame, or SAM 2's window; frames that have become prototypes are read as such."""
        whole, bare = super().frames_behind(frame)
        if self.working != "window":
            return whole, bare
        return [f for _, f in map_frames(frame, num_maskmem=self.num_maskmem, stride=self.mem_every)], bare

    # -- writing ------------------------------------------------------------------------------------------------

    def choose(self, state: XMemBank, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        selection = super().choose(state, frame, hypotheses)
        if self.working == "window":
            return selection
        due = self._is_due(state, frame.index, hypotheses.objectness[selection.output.pathway])
        return replace(selection, sensory=SensoryUpdate.DEEP if due else SensoryUpdate.LIGHT)

    def write(
        self,
        state: XMemBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> XMemBank:
        if self.usage_at(state, frame) is Usage.TOKENS:
            usage = None if hypotheses.usage is None else hypotheses.usage[0].tokens
            if usage is None:
                raise ValueError("expected the attention every token received (usage TOKENS), got none; ask usage_at")
            state = state.after_read(self._read_parts(state, frame.as_read), usage)
        state = replace(state, reasons=())
        for entry in entries:
            state = self._take(state.add(entry), frame, entry)
        return self._evict(state, frame.index)

    def _take(self, state: XMemBank, frame: FrameContext, entry: MemoryEntry) -> XMemBank:
        """Put an entry into working memory if it is due, and condense that when it is full."""
        if self.working == "window":
            return state
        if not self._is_due(state, entry.frame, entry.objectness):
            return replace(state, reasons=(Reason(entry.frame, "previous frame only; not due"),))
        earlier = (w for w in state.working if w.frame != entry.frame)
        working = (*earlier, WorkingFrame.of(entry, frame, with_keys=self.long_term))
        reasons = [Reason(entry.frame, "working memory")]
        if not self.long_term:
            reasons += [Reason(w.frame, "oldest of a full working memory") for w in working[: -self._max_after_write]]
            working = working[-self._max_after_write :]
        elif self.lt_mode == "distilled":
            working = working[1 - self.max_working :]
        state = replace(state, working=working, last=entry.frame, reasons=tuple(reasons))
        if not self.long_term or self.lt_mode == "distilled" or len(working) < self.max_working - 1:
            return state
        return consolidate(
            state,
            frame.index,
            min_working=self.min_working,
            num_prototypes=self.num_prototypes,
            max_size=self.max_long_term,
            buffer=self.evict_buffer,
        )

    def _is_due(self, state: XMemBank, frame: int, objectness: float) -> bool:
        """Whether a frame enters working memory. The distance is taken in both directions, for passes over frames that
        were tracked before."""
        if any(w.frame == frame for w in state.working):
            return True
        eligible = self.absent_frames == "write" or objectness > self.min_obj_score_logits
        return eligible and abs(frame - state.last) >= self.mem_every

    def _evict(self, state: XMemBank, index: int) -> XMemBank:
        """Drop the tokens that no read can reach, and the pointers."""
        anchors = anchors_of(state, index)
        reach = self.max_obj_ptrs_in_encoder - 1
        if self.working == "window":
            token_reach = _window_reach(self)
            return state.keep_near(anchors, token_reach=token_reach, pointer_reach=max(token_reach, reach))
        within_reach = tracked_near(state, anchors, reach)
        return state.keep(tokens={index, *(w.frame for w in state.working)}, pointers=within_reach)

    # -- summaries by the distiller -----------------------------------------------------------------------------

    def merge_requests(self, state: XMemBank, frame: FrameContext) -> Sequence[MergeRequest]:
        if self.lt_mode != "distilled" or not self.long_term or len(state.working) < self.max_working - 1:
            return ()
        entries = {e.frame: e for e in state.entries}
        old, _ = split_working(state, self.min_working)
        return (MergeRequest(tuple(entries[w.frame] for w in old), self.lt_strength),)

    def take_merged(
        self, state: XMemBank, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens
    ) -> XMemBank:
        if len(tokens) + self.evict_buffer > self.max_long_term:
            raise ValueError(
                f"expected max_long_term >= evict_buffer + the {len(tokens)} summaries made at once, got "
                f"{self.max_long_term}; give it more, or a larger lt_strength"
            )
        sizes = {"min_working": self.min_working, "max_size": self.max_long_term, "buffer": self.evict_buffer}
        return self._evict(take_summaries(state, request, tokens, **sizes), frame.index)

    # -- reasons ------------------------------------------------------------------------------------------------

    def entry_infos(self, state: XMemBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """As what entries are held; use over life decides who becomes a prototype and which of them go."""
        usage = {w.frame: float(w.usage().mean()) for w in state.working} if self.long_term else {}
        working = {w.frame for w in state.working}
        unlisted = "map" if self.working == "window" else "previous"
        kind = lambda e: "working" if e.frame in working else unlisted  # noqa: E731
        infos = entry_infos(state.all_entries(), kind, usage, "use over life")
        store = state.long_term
        if store is not None:
            text = f"{len(store)} prototypes from {len(store.source.unique())} frames"
            mean = float(store.usage().mean())
            infos.append(EntryInfo(None, "long-term", store.tokens, mean, "use over life", text=text, count=len(store)))
        return infos


def _window_reach(policy: XMem) -> int:
    """Of ``working="window"``: largest age, in frames, at which a memory map is read."""
    return map_reach(num_maskmem=policy.num_maskmem, stride=policy.mem_every)
