"""The state of XMem's memory: working memory, long-term memory, and the state of sensory memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.xmem.affinity import KeySpace
from sam2_mem.memory.policies.xmem.image_keys import features_of, image_keys
from sam2_mem.memory.policies.xmem.prototypes import INITIAL_LIFE, LongTermMemory
from sam2_mem.types import FrameContext, MemoryEntry, ReadItem


@dataclass(frozen=True, eq=False)
class WorkingFrame:
    """A frame of working memory, whose tokens are in the bank's entries.

    Attributes:
        frame: its number.
        key: (L, C) image features at its tokens; C is 0 without long-term memory.
        use: (L) attention received, float32.
        life: (L) reads taken part in, float32.
    """

    frame: int
    key: Tensor
    use: Tensor
    life: Tensor

    @staticmethod
    def of(entry: MemoryEntry, frame: FrameContext, *, with_keys: bool) -> WorkingFrame:
        """The frame of ``entry``, not read yet."""
        feat = entry.tokens.feat
        zeros = torch.zeros(len(feat), device=feat.device)
        key = image_keys(entry.tokens, features_of(frame)) if with_keys else zeros.new_zeros(len(feat), 0)
        return WorkingFrame(entry.frame, key, zeros, torch.full_like(zeros, INITIAL_LIFE))

    def usage(self) -> Tensor:
        """(L) use over life: what decides which tokens become prototypes."""
        return self.use / self.life


class ReadPart(NamedTuple):
    """One item of a read and where its usage is booked: a frame of working memory, the long-term memory, or nowhere."""

    item: ReadItem
    frame: int | None = None
    long_term: bool = False


@dataclass(frozen=True, eq=False)
class XMemBank(Bank):
    """A state whose ``entries`` are the frames of working memory and the latest one.

    Attributes:
        working: in the order of writing.
        long_term: prototypes or summaries of frames that left working memory.
        space: of image keys, from the object's first frame; None without long-term memory.
        last: the frame last put into working memory or prompted.
        sensory: (Ch, H, W) the state of sensory memory, where the model has one.
    """

    working: tuple[WorkingFrame, ...] = ()
    long_term: LongTermMemory | None = None
    space: KeySpace | None = None
    last: int = 0
    sensory: Tensor | None = None

    def entry_token_count(self) -> int:
        """Tokens of whole frames."""
        return super().token_count()

    def token_count(self) -> int:
        return self.entry_token_count() + (0 if self.long_term is None else len(self.long_term))

    def after_read(self, read_parts: Sequence[ReadPart], masses: Sequence[Tensor]) -> Self:
        """With the attention ``masses`` that the tokens of ``read_parts`` have received."""
        assert len(read_parts) == len(masses), "usage must be that of this state's own read"
        working = {p.frame: mass for p, mass in zip(read_parts, masses) if p.frame is not None}
        long_term = self.long_term
        for part, mass in zip(read_parts, masses):
            if part.long_term and long_term is not None:
                long_term = replace(long_term, use=long_term.use + mass.to(long_term.use), life=long_term.life + 1)
        booked = (
            replace(w, use=w.use + working[w.frame].to(w.use), life=w.life + 1) if w.frame in working else w
            for w in self.working
        )
        return replace(self, working=tuple(booked), long_term=long_term)

    # -- changes ------------------------------------------------------------------------------------------------

    def add(self, *entries: MemoryEntry) -> Self:
        """As in ``Bank``; the sensory state that an entry brings becomes that of the object."""
        added = super().add(*(replace(e, sensory=None) for e in entries))
        states = [e.sensory for e in entries if e.sensory is not None]
        return replace(added, sensory=states[-1]) if states else added

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        """As in ``Bank``; the count to the next frame of working memory starts anew."""
        added = super().add_prompt(replace(entry, sensory=None), max_prompts)
        return replace(added, last=entry.frame, sensory=self.sensory if entry.sensory is None else entry.sensory)

    def without(self, frame: int) -> Self:
        return replace(super().without(frame), working=tuple(w for w in self.working if w.frame != frame))

    def forget(self, frame: int, radius: int) -> Self:
        """As in ``Bank``, and without the prototypes that come from a frame within ``radius``."""
        store = self.long_term
        if store is not None:
            store = store.at((store.source - frame).abs() > radius)
        return replace(
            super().forget(frame, radius),
            working=tuple(w for w in self.working if abs(w.frame - frame) > radius),
            long_term=store if store is not None and len(store) else None,
        )

    def drop_shared_tokens(self, max_tokens: int) -> Self:
        """With at most ``max_tokens`` in all, at the cost of the prototypes used least."""
        if self.long_term is None or self.token_count() <= max_tokens:
            return self
        room = max(max_tokens - self.entry_token_count(), 0)
        return replace(self, long_term=self.long_term.most_used(room))

    def shift_frames(self, by: int) -> Self:
        store = self.long_term
        return replace(
            super().shift_frames(by),
            working=tuple(replace(w, frame=w.frame + by) for w in self.working),
            long_term=None if store is None else replace(store, source=store.source + by),
            last=self.last + by,
        )
