"""XMem's memory on SAM 2: a working memory of whole frames, consolidated into a long-term memory of prototypes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sam2_mem.memory.policies.xmem.affinity import KeySpace, largest, read_values, received, similarity, unit_keys
from sam2_mem.memory.policies.xmem.prototypes import INITIAL_LIFE, LongTermMemory, join_tokens, potentiated
from sam2_mem.memory.policy import Bank, MemoryPolicy, Needs, drop, put
from sam2_mem.memory.reading import (
    LAST_SLOT,
    add_prompt,
    closest_prompts,
    map_frames,
    map_reach,
    pointer_window,
    rank_slots,
    within_reach,
)
from sam2_mem.memory.tokens import features_at, token_count
from sam2_mem.memory.trace import Action, Cause, Change, EntryInfo, Reason, TraceEvent, entry_infos, with_reasons
from sam2_mem.model.cached_positions import grid_xy, sine_tokens
from sam2_mem.types import (
    PROMPT_SLOT,
    FrameContext,
    FrameFeatures,
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

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Counted:
    """Bookkeeping of one whole frame: ``key`` (L, C) image features at its tokens' places; ``use`` (L) attention
    received and ``life`` (L) reads taken part in, float32."""

    frame: int
    key: Tensor
    use: Tensor
    life: Tensor


@dataclass(frozen=True, eq=False)
class XMemBank(Bank):
    """``entries`` hold tokens where the frame is in working memory or the latest one, else a pointer only.

    ``working`` in the order of writing; ``permanent`` keys of the prompts, kept for ``usage: key`` only; ``space`` of
    the object's first frame; ``last`` the frame last put into working memory or prompted; ``sensory`` (Ch, H, W) the
    state of sensory memory, where the model has one.
    """

    working: tuple[Counted, ...] = ()
    permanent: tuple[Counted, ...] = ()
    long_term: LongTermMemory | None = None
    space: KeySpace | None = None
    last: int = 0
    sensory: Tensor | None = None


class _Part(NamedTuple):
    """One item of a read and where its usage is booked: a frame of working memory, the long-term memory, or nowhere."""

    item: ReadItem
    frame: int | None = None
    long_term: bool = False


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
        usage: how use is measured: "attn" by the memory attention of the actual read, "key" by XMem's top-k affinity
            of image keys over prompts, working and long-term memory.
        usage_every: use is measured on every such frame. 1 in XMem; use over life is unbiased for any value.
        query_stride: for ``usage="key"``: only every such row and column of the image is a query.
        top_k: memory elements a query reads, for ``usage="key"`` and ``lt_mode="readout"``. 30 in XMem.
        lt_mode: "tokens" lets memory attention read the prototypes; "readout" reads them by image key for every cell
            and gives memory attention the result as one more frame; "distilled" has no prototypes: the frames that leave
            working memory become one set of summaries, made by the network's distiller, and read as tokens.
        lt_strength: for ``lt_mode="distilled"``: one summary for every ``lt_strength`` x ``lt_strength`` tokens of a map.
        lt_key: "orig": a prototype is found under the key of the token it came from, as in XMem; "pot": under the
            averaged one's. For ``lt_mode="tokens"``.
        lt_renorm: scale an averaged token to the mean length of those it is averaged from.
        lt_count: a prototype counts as many as there are tokens most similar to it. For ``lt_mode="tokens"``.
        key_space: of image keys: "standardised" per channel over the object's first frame, or "cosine" of those.
        temperature: of ``key_space="cosine"``: similarity is (cosine - 1) / temperature.
        key_dtype: what stored image keys are rounded to.
        tpos_policy: temporal slot of working memory: "rank" (1..5, newest first), "clamp" (age - 1, at most 5),
            "prompt", "none".
        lt_tpos: temporal slot of long-term memory: "clamp" (5, as everything of an age of 6 frames or more), "prompt",
            "none".
        absent_frames: frames on which the object is absent: "write" them into working memory, as XMem and SAM 2 do, or
            "skip" them; the next frame on which it is present is taken instead.
        num_maskmem, max_obj_ptrs_in_encoder, max_cond_frames_in_attn, only_obj_ptrs_in_the_past_for_eval,
            max_prompts: as in :class:`~sam2_mem.memory.policies.fifo.FIFO`; pointers are read as there.

    Differences from XMem: keys are image features of SAM 2, standardised, without learned shrinkage and selection (all
    ones); one memory per object, so objects that come late are not special; exact eviction when usages tie; long-term
    usage is always counted (XMem: on videos that may fill the memory); prompts are permanent and outside condensing,
    however many (XMem: the first frame only); the last frame of a video is not special; keys are stored
    unstandardised, so that objects share them. Tokens of distillers: those without a place take the mean key of the
    frame.
    """

    needs: ClassVar[Needs] = Needs(usage=Usage.TOKENS, sensory=True)

    mem_every: int = 5
    max_working: int = 6
    min_working: int = 3
    working: str = "every"
    long_term: bool = True
    max_long_term: int = 4096
    num_prototypes: int = 128
    evict_buffer: int = 0
    usage: str = "attn"
    usage_every: int = 1
    query_stride: int = 1
    top_k: int = 30
    lt_mode: str = "tokens"
    lt_strength: int = 4
    lt_key: str = "orig"
    lt_renorm: bool = False
    lt_count: bool = False
    key_space: str = "standardised"
    temperature: float = 0.05
    key_dtype: str = "bfloat16"
    tpos_policy: str = "rank"
    lt_tpos: str = "clamp"
    absent_frames: str = "write"
    num_maskmem: int = 7
    max_obj_ptrs_in_encoder: int = 16
    max_cond_frames_in_attn: int = -1
    only_obj_ptrs_in_the_past_for_eval: bool = True
    max_prompts: int = 32

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} out of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.max_cond_frames_in_attn != -1 and self.max_cond_frames_in_attn < 2:
            raise ValueError(f"expected max_cond_frames_in_attn -1 or >= 2, got {self.max_cond_frames_in_attn}")
        if self.temperature <= 0:
            raise ValueError(f"expected temperature > 0, got {self.temperature}")
        self._check_tiers()

    def _check_tiers(self) -> None:
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
        if self.lt_count and self.lt_mode != "tokens":
            raise ValueError(
                f'expected lt_count=False with lt_mode="{self.lt_mode}", got True; choose lt_mode="tokens"'
            )

    # -- bounds -------------------------------------------------------------------------------------------------

    @property
    def _token_reach(self) -> int:
        """Of ``working="window"``: largest age, in frames, at which a memory map is read."""
        return map_reach(num_maskmem=self.num_maskmem, stride=self.mem_every)

    @property
    def _most_working(self) -> int:
        """Frames of working memory that a write leaves behind."""
        return self.max_working - (2 if self.long_term else 1)

    def capacity(self, tokens_per_map: int) -> int:
        """Prompts, working memory, the previous frame and long-term memory; or the windows that FIFO holds."""
        if self.working == "window":
            return tokens_per_map * (self.max_prompts + 3 * (2 * self._token_reach + 1))
        maps = self.max_prompts + self._most_working + 1
        return tokens_per_map * maps + (self.max_long_term if self.long_term else 0)

    def token_count(self, state: XMemBank) -> int:
        return token_count(self.held(state)) + (0 if state.long_term is None else len(state.long_term))

    # -- prompts ------------------------------------------------------------------------------------------------

    def prompt(self, state: XMemBank | None, frame: FrameContext, entry: MemoryEntry) -> XMemBank:
        if state is None:
            state = XMemBank(space=KeySpace.of(_image(frame).low) if self.long_term else None)
        prompts = add_prompt(state.prompts, replace(entry, sensory=None), self.max_prompts)
        permanent = tuple(c for c in state.permanent if c.frame != entry.frame)
        if self.long_term and self.usage == "key":
            permanent = (*permanent, self._newborn(frame, entry))
        frames = {p.frame for p in prompts}
        return replace(
            _sensed(state, entry),
            prompts=prompts,
            entries=drop(state.entries, entry.frame),
            working=tuple(c for c in state.working if c.frame != entry.frame),
            permanent=tuple(c for c in permanent if c.frame in frames),
            last=entry.frame,
        )

    def unprompt(self, state: XMemBank, frame: int) -> XMemBank | None:
        state = super().unprompt(state, frame)
        return state and replace(state, permanent=tuple(c for c in state.permanent if c.frame != frame))

    def forget(self, state: XMemBank, frame: int, radius: int) -> XMemBank:
        """Also drops the prototypes that come from a frame within ``radius``."""
        state = super().forget(state, frame, radius)
        store = state.long_term
        if store is not None:
            store = store.at((store.source - frame).abs() > radius)
        return replace(
            state,
            working=tuple(c for c in state.working if abs(c.frame - frame) > radius),
            long_term=store if store is not None and len(store) else None,
        )

    def shrink(self, state: XMemBank, frame: FrameContext, tokens: int) -> XMemBank:
        """Whole frames first, then the prototypes used least."""
        state = super().shrink(state, frame, tokens)
        if state.long_term is None or self.token_count(state) <= tokens:
            return state
        room = max(tokens - token_count(self.held(state)), 0)
        return replace(state, long_term=state.long_term.most_used(room))

    def moved(self, state: XMemBank, by: int) -> XMemBank:
        store = state.long_term
        return replace(
            super().moved(state, by),
            working=tuple(replace(c, frame=c.frame + by) for c in state.working),
            permanent=tuple(replace(c, frame=c.frame + by) for c in state.permanent),
            long_term=None if store is None else replace(store, source=store.source + by),
            last=state.last + by,
        )

    # -- reading ------------------------------------------------------------------------------------------------

    def wanted_usage(self, state: XMemBank, frame: FrameContext) -> Usage:
        return Usage.TOKENS if self.usage == "attn" and self._counts(state, frame) else Usage.NONE

    def _counts(self, state: XMemBank, frame: FrameContext) -> bool:
        """Whether use is booked on this frame: it is due and there is something to book it on."""
        due = self.long_term and frame.index % self.usage_every == 0
        return due and (bool(state.working) or state.long_term is not None)

    def read(self, state: XMemBank, frame: FrameContext) -> Sequence[MemoryRead]:
        near, far = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        pointers = pointer_window(
            near,
            _by_frame(far, state.entries),
            frame,
            max_obj_ptrs=self.max_obj_ptrs_in_encoder,
            past_only=self.only_obj_ptrs_in_the_past_for_eval,
        )
        items = tuple(part.item for part in self._parts(state, frame))
        return (MemoryRead(items=items, pointers=tuple(pointers), sensory=self.sensory(state)),)

    def sensory(self, state: XMemBank) -> Tensor | None:
        return None if self.working == "window" else state.sensory

    def _parts(self, state: XMemBank, frame: FrameContext) -> list[_Part]:
        """What is read: prompts, long-term memory, working memory, the previous frame."""
        near, far = closest_prompts(state.prompts, frame.index, self.max_cond_frames_in_attn)
        tracked = _by_frame(far, state.entries)
        parts = [_Part(ReadItem(e.tokens, PROMPT_SLOT)) for e in near if e.tokens is not None]
        if self.working == "window":
            slots = map_frames(frame, num_maskmem=self.num_maskmem, stride=self.mem_every)
        else:
            slots = self._working_slots(state, frame)
        if state.long_term is not None:
            parts.append(_Part(self._long_term_item(state, frame), long_term=True))
        for slot, index in slots:
            entry = tracked.get(index)
            if entry is not None and entry.tokens is not None:
                parts.append(_Part(ReadItem(entry.tokens, slot), frame=index))
        return parts

    def _working_slots(self, state: XMemBank, frame: FrameContext) -> list[tuple[int | None, int]]:
        """(temporal slot, frame) of working memory, newest last, and of the previous frame. Memory of this very
        frame, from an earlier pass, is left out."""
        before = frame.index + 1 if frame.reverse else frame.index - 1
        others = [c.frame for c in state.working if c.frame not in (before, frame.index)]
        others.sort(key=lambda f: (abs(frame.age(f)), f))
        slots = {
            "rank": rank_slots(len(others)),
            "clamp": [abs(frame.age(f)) - 1 for f in others],
            "prompt": [PROMPT_SLOT] * len(others),
            "none": [None] * len(others),
        }[self.tpos_policy]
        return [(self._slot(s), f) for s, f in zip(slots, others)][::-1] + [(0, before)]

    def _slot(self, slot: int | None) -> int | None:
        return slot if slot is None else min(slot, LAST_SLOT, max(self.num_maskmem - 2, 0))

    def _long_term_item(self, state: XMemBank, frame: FrameContext) -> ReadItem:
        slot = {"clamp": self._slot(LAST_SLOT), "prompt": PROMPT_SLOT, "none": None}[self.lt_tpos]
        store = state.long_term
        if self.lt_mode != "readout":
            return ReadItem(store.tokens, slot)
        image = _image(frame)
        height, width = image.grid
        device, values = image.low.device, store.tokens.feat
        read = read_values(
            self._keys(state, store.key.to(device)), values.to(device), self._keys(state, image.low), self.top_k
        )
        pos = sine_tokens(height, width, values.shape[1], device)
        return ReadItem(MemoryTokens(read.to(values.dtype), pos, grid_xy(height, width, device)), slot)

    def _keys(self, state: XMemBank, features: Tensor) -> Tensor:
        """Image features (N, C) as keys of the object's space, float32."""
        keys = state.space.apply(features.detach())
        return unit_keys(keys, self.temperature) if self.key_space == "cosine" else keys

    # -- writing ------------------------------------------------------------------------------------------------

    def choose(self, state: XMemBank, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        choice = super().choose(state, frame, hypotheses)
        if self.working == "window":
            return choice
        due = self._due(state, frame.index, hypotheses.objectness[choice.output.pathway])
        return replace(choice, sensory=SensoryUpdate.DEEP if due else SensoryUpdate.LIGHT)

    def write(
        self,
        state: XMemBank,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> XMemBank:
        if self._counts(state, frame):
            state = self._count(state, frame, hypotheses)
        for entry in entries:
            state = self._take(state, frame, entry)
        return self._pruned(state, frame.index)

    def _count(self, state: XMemBank, frame: FrameContext, hypotheses: Hypotheses) -> XMemBank:
        """Book the use of the read that led to ``hypotheses``."""
        if self.usage == "key":
            working, store = self._use_by_key(state, frame)
        else:
            working, store = self._use(state, frame, hypotheses)
        counted = tuple(_after_read(c, working[c.frame]) if c.frame in working else c for c in state.working)
        kept = state.long_term if store is None else _after_read(state.long_term, store)
        return replace(state, working=counted, long_term=kept)

    def _use(
        self, state: XMemBank, frame: FrameContext, hypotheses: Hypotheses
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """Attention on every frame of working memory, and on the prototypes."""
        if hypotheses.usage is None or hypotheses.usage[0].tokens is None:
            raise ValueError("expected the attention every token received (usage TOKENS), got none; ask wanted_usage")
        parts = self._parts(state, frame)
        masses = hypotheses.usage[0].tokens
        assert len(parts) == len(masses), "usage must be that of this state's own read"
        working = {p.frame: mass for p, mass in zip(parts, masses) if p.frame is not None}
        store = next((mass for p, mass in zip(parts, masses) if p.long_term), None)
        if store is not None and self.lt_mode == "readout":
            image = _image(frame)
            keys = self._keys(state, state.long_term.key.to(image.low.device))
            store = received(keys, self._keys(state, image.low), self.top_k)
        return working, store

    def _use_by_key(self, state: XMemBank, frame: FrameContext) -> tuple[dict[int, Tensor], Tensor | None]:
        """The same by top-k affinity of image keys: prompts, long-term and working memory share one softmax."""
        image, frames = _image(frame), (*state.permanent, *state.working)
        store = state.long_term
        stored = [c.key for c in frames] + ([] if store is None else [store.key])
        if not stored:
            return {}, None
        step = self.query_stride
        query = image.low.unflatten(0, image.grid)[::step, ::step].flatten(0, 1)
        keys = self._keys(state, torch.cat(stored).to(query.device))
        masses = received(keys, self._keys(state, query), self.top_k).split([len(k) for k in stored])
        working = {c.frame: mass for c, mass in zip(frames, masses)}
        return working, None if store is None else masses[-1]

    def _take(self, state: XMemBank, frame: FrameContext, entry: MemoryEntry) -> XMemBank:
        """Put an entry into memory, and into working memory if it is due."""
        state = replace(_sensed(state, entry), entries=put(state.entries, replace(entry, sensory=None)))
        if self.working == "window" or not self._due(state, entry.frame, entry.objectness):
            return state
        others = tuple(c for c in state.working if c.frame != entry.frame)
        state = replace(state, working=(*others, self._newborn(frame, entry)), last=entry.frame)
        if not self.long_term:
            return replace(state, working=state.working[-self._most_working :])
        if self.lt_mode == "distilled":
            return replace(state, working=state.working[1 - self.max_working :])
        return self._condensed(state) if self._full(state) else state

    def _full(self, state: XMemBank) -> bool:
        return len(state.working) >= self.max_working - 1

    def _due(self, state: XMemBank, frame: int, objectness: float) -> bool:
        """Whether a frame enters working memory. The distance is taken in both directions, for passes over frames that
        were tracked before."""
        if any(c.frame == frame for c in state.working):
            return True
        wanted = self.absent_frames == "write" or objectness > self.min_obj_score_logits
        return wanted and abs(frame - state.last) >= self.mem_every

    def _newborn(self, frame: FrameContext, entry: MemoryEntry) -> Counted:
        feat = entry.tokens.feat
        zeros = torch.zeros(len(feat), device=feat.device)
        key = zeros.new_zeros(len(feat), 0)
        if self.long_term:
            key = _keys_of(entry.tokens, _image(frame), getattr(torch, self.key_dtype))
        return Counted(entry.frame, key, zeros, torch.full_like(zeros, INITIAL_LIFE))

    def _pruned(self, state: XMemBank, now: int) -> XMemBank:
        """Drop the tokens that no read can reach, and the pointers."""
        anchors = {now} | {p.frame for p in state.prompts[:1] + state.prompts[-1:]}
        reach = self.max_obj_ptrs_in_encoder - 1
        if self.working == "window":
            near = self._token_reach
            kept = within_reach(state.entries, anchors, token_reach=near, pointer_reach=max(near, reach))
            return replace(state, entries=tuple(kept))
        whole = {c.frame for c in state.working} | {now}
        others = [e for e in state.entries if e.frame not in whole]
        kept = [e for e in state.entries if e.frame in whole]
        kept += within_reach(others, anchors, token_reach=-1, pointer_reach=reach)
        return replace(state, entries=tuple(sorted(kept, key=lambda e: e.frame)))

    # -- long-term memory ---------------------------------------------------------------------------------------

    def _condensed(self, state: XMemBank) -> XMemBank:
        """Make room in long-term memory, then turn all but the newest frames of working memory into prototypes."""
        old, rest = self._old_and_new(state)
        store = self._evicted(state.long_term)
        new = self._prototypes(state, old)
        return replace(state, working=rest, long_term=new if store is None else store.joined(new))

    def _old_and_new(self, state: XMemBank) -> tuple[tuple[Counted, ...], tuple[Counted, ...]]:
        """Frames of a full working memory to be condensed, and the newest, which stay."""
        keep = len(state.working) - (self.min_working - 1)
        return state.working[:keep], state.working[keep:]

    def condense(self, state: XMemBank, frame: FrameContext) -> Sequence[MergeRequest]:
        if self.lt_mode != "distilled" or not self.long_term or not self._full(state):
            return ()
        entries = _by_frame(state.entries)
        return (MergeRequest(tuple(entries[c.frame] for c in self._old_and_new(state)[0]), self.lt_strength),)

    def condensed(self, state: XMemBank, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> XMemBank:
        if len(tokens) + self.evict_buffer > self.max_long_term:
            raise ValueError(
                f"expected max_long_term >= evict_buffer + the {len(tokens)} summaries made at once, got "
                f"{self.max_long_term}; give it more, or a larger lt_strength"
            )
        old, rest = self._old_and_new(state)
        store, new = self._evicted(state.long_term, len(tokens)), self._summaries(request, old, tokens)
        state = replace(state, working=rest, long_term=new if store is None else store.joined(new))
        return self._pruned(state, frame.index)

    def _summaries(self, request: MergeRequest, old: Sequence[Counted], tokens: MemoryTokens) -> LongTermMemory:
        """Long-term memory of merged tokens. The image key of each is the mean over frames of the nearest token's."""
        nearest = [_nearest(e.tokens, tokens).to(c.key.device) for e, c in zip(request.entries, old)]
        key = torch.stack([c.key[index].float() for c, index in zip(old, nearest)]).mean(0).to(old[0].key.dtype)
        use = old[0].use.new_zeros(len(tokens))
        source = torch.full((len(tokens),), request.entries[-1].frame, device=key.device)
        return LongTermMemory(join_tokens([tokens]), key, source, use, torch.full_like(use, INITIAL_LIFE))

    def _evicted(self, store: LongTermMemory | None, coming: int | None = None) -> LongTermMemory | None:
        """What leaves room for new prototypes: exactly so many of the most used ones."""
        room = self.max_long_term - (self.num_prototypes if coming is None else coming)
        if store is None or len(store) < room:
            return store
        return store.most_used(room - self.evict_buffer)

    def _prototypes(self, state: XMemBank, frames: Sequence[Counted]) -> LongTermMemory:
        """Section 3.3, "prototype selection" and "memory potentiation": the most used elements of ``frames`` keep their
        key and get the average value of what looks like them."""
        entries = _by_frame(state.entries)
        source = join_tokens([entries[c.frame].tokens for c in frames])
        key = torch.cat([c.key for c in frames])
        use, life = (torch.cat(x) for x in ([c.use for c in frames], [c.life for c in frames]))
        index = largest(use / life, self.num_prototypes).to(key.device)
        keys = self._keys(state, key)
        lengths = torch.tensor([len(c.use) for c in frames])
        numbers = torch.tensor([c.frame for c in frames]).repeat_interleave(lengths).to(key.device)
        return LongTermMemory(
            tokens=potentiated(
                source,
                index,
                similarity(keys, keys[index]),
                keep_key=self.lt_key == "orig",
                renorm=self.lt_renorm,
                count=self.lt_count,
            ),
            key=key[index],
            source=numbers[index],
            use=use.new_zeros(len(index)),
            life=use.new_full((len(index),), INITIAL_LIFE),
        )

    # -- reasons ------------------------------------------------------------------------------------------------

    def notes(self, state: XMemBank, frame: FrameContext) -> Sequence[EntryInfo]:
        """See :meth:`MemoryPolicy.notes`; use over life is what decides who becomes a prototype and which of them go."""
        counted = {c.frame: float((c.use / c.life).mean()) for c in state.working} if self.long_term else {}
        working = {c.frame for c in state.working}
        other = "map" if self.working == "window" else "previous"
        notes = entry_infos(
            self.held(state), lambda e: "working" if e.frame in working else other, counted, "use over life"
        )
        store = state.long_term
        if store is not None:
            text = f"{len(store)} prototypes from {len(store.source.unique())} frames"
            tokens = None if self.lt_mode == "readout" else store.tokens
            mean = float((store.use / store.life).mean())
            notes.append(EntryInfo(None, "long-term", tokens, mean, "use over life", text=text, count=len(store)))
        return notes

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        events, now = super().explain(change), change.frame.index
        if change.cause is not Cause.WRITE or self.working == "window":
            return events
        was, here = ({c.frame for c in s.working} for s in (change.before, change.after))
        took = change.after.last == now
        came = {now: Reason("working memory" if took else "previous frame only; not due")}
        gone = (was | ({now} if took else set())) - here
        if self.long_term and self.lt_mode == "distilled":
            return with_reasons(events, came=came, went={f: Reason("merged into long-term memory") for f in gone})
        if self.long_term:
            return (
                self._condensing(with_reasons(events, came=came), change, gone)
                if gone
                else with_reasons(events, came=came)
            )
        return with_reasons(events, came=came, went={f: Reason("oldest of a full working memory") for f in gone})

    def _condensing(self, events: Sequence[TraceEvent], change: Change, gone: Collection[int]) -> list[TraceEvent]:
        """Frames of working memory became prototypes; others may have made room for them."""
        counted = change.before
        if self._counts(change.before, change.frame):
            counted = self._count(change.before, change.frame, change.hypotheses)
        store, kept = counted.long_term, self._evicted(counted.long_term)
        stayed = 0 if kept is None else len(kept)
        new = [] if change.after.long_term is None else change.after.long_term.source[stayed:].tolist()
        if not new:  # a budget of bytes took them
            return list(events)
        used = {c.frame: float((c.use / c.life).mean()) for c in counted.working}
        told = [e for e in events if not (e.action in (Action.REDUCED, Action.EVICTED) and e.frame in gone)]
        for frame in sorted(gone):
            text = f"condensed into long-term memory: {new.count(frame)} of {len(new)} new prototypes"
            told.append(TraceEvent(Action.MERGED, frame, text, used.get(frame)))
        left = (0 if store is None else len(store)) - stayed
        if left:
            use = (store.use / store.life).sort().values
            limit = float(use[left]) if stayed else None
            told.append(TraceEvent(Action.EVICTED, None, f"{left} least used prototypes", float(use[left - 1]), limit))
        return told


_LEAST = {
    "mem_every": 1,
    "max_working": 2,
    "min_working": 1,
    "max_long_term": 1,
    "num_prototypes": 1,
    "evict_buffer": 0,
    "usage_every": 1,
    "query_stride": 1,
    "lt_strength": 1,
    "top_k": 1,
    "num_maskmem": 1,
    "max_obj_ptrs_in_encoder": 1,
    "max_prompts": 2,
}
_ALLOWED = {
    "working": ("every", "window"),
    "usage": ("attn", "key"),
    "lt_mode": ("tokens", "readout", "distilled"),
    "lt_key": ("orig", "pot"),
    "key_space": ("standardised", "cosine"),
    "key_dtype": ("bfloat16", "float16", "float32"),
    "tpos_policy": ("rank", "clamp", "prompt", "none"),
    "lt_tpos": ("clamp", "prompt", "none"),
    "absent_frames": ("write", "skip"),
}


def _by_frame(*groups: Sequence[MemoryEntry]) -> dict[int, MemoryEntry]:
    return {e.frame: e for group in groups for e in group}


def _sensed(state: XMemBank, entry: MemoryEntry) -> XMemBank:
    """``state`` with the sensory state that ``entry`` brings."""
    return state if entry.sensory is None else replace(state, sensory=entry.sensory)


def _image(frame: FrameContext) -> FrameFeatures:
    if frame.features is None:
        raise ValueError("expected the features of the frame, which long-term memory compares, got none")
    return frame.features


def _after_read(of: T, mass: Tensor) -> T:
    """``of`` (Counted or LongTerm) after one more read, in which it received ``mass``."""
    return replace(of, use=of.use + mass.to(of.use), life=of.life + 1)


def _nearest(old: MemoryTokens, new: MemoryTokens) -> Tensor:
    """The token of ``old`` nearest to each of ``new``: (len(new))."""
    xy = new.xy.new_zeros(len(old), 2) if old.xy is None else old.xy.to(new.xy.device)
    return torch.cdist(new.xy.float(), xy.float()).argmin(1)


_rounded: WeakKeyDictionary[FrameFeatures, dict[tuple, Tensor]] = WeakKeyDictionary()


def _low(image: FrameFeatures, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Features of a frame as they are stored (Q, C): one tensor for all objects, for as long as the frame is at
    hand."""
    made = _rounded.setdefault(image, {})
    if (dtype, device) not in made:
        made[dtype, device] = image.low.detach().to(device, dtype)
    return made[dtype, device]


def _keys_of(tokens: MemoryTokens, image: FrameFeatures, dtype: torch.dtype) -> Tensor:
    """Image features (L, C) at the places of ``tokens``, between cells too; those without a place take the mean."""
    device = tokens.feat.device
    low = _low(image, dtype, device)
    height, width = image.grid
    if tokens.xy is None:
        return low.float().mean(0).to(dtype).expand(len(tokens), -1)
    if tokens.xy is grid_xy(height, width, tokens.xy.device):
        return low
    return features_at(low, (height, width), tokens.xy.to(device)).to(dtype)
