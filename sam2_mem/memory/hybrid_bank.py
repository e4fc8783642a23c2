"""The state of ``hybrid``: that of its short-term policy, and anchors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from typing_extensions import Self

from sam2_mem.memory.anchors import AnchorBank
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.tokens import token_count
from sam2_mem.types import ArchivedEntry, Entry, FrameContext, MemoryEntry


@dataclass(frozen=True, eq=False)
class HybridBank(Bank):
    """Two states; ``prompts``, ``entries`` and ``pointers`` are those of ``short``.

    Attributes:
        short: of the short-term policy.
        anchors: of the rule.
    """

    short: Bank = field(default_factory=Bank)
    anchors: AnchorBank = field(default_factory=AnchorBank)

    @classmethod
    def joint(cls, short: Bank, anchors: AnchorBank) -> Self:
        """A state made of the two."""
        return cls(short.prompts, short.entries, short.pointers, short.reasons, short, anchors)

    def all_entries(self) -> tuple[Entry, ...]:
        return tuple(dict.fromkeys((*self.short.all_entries(), *self.anchors.entries())))

    def token_count(self) -> int:
        held = {id(e.tokens) for e in self.short.all_entries()}
        return self.short.token_count() + token_count(e for e in self.anchors.entries() if id(e.tokens) not in held)

    def archivable(self) -> dict[int, tuple[MemoryEntry, str]]:
        return self.short.archivable()

    def can_resume(self, frame: FrameContext) -> bool:
        return self.short.can_resume(frame)

    def recall(self, whole: Iterable[ArchivedEntry], bare: Iterable[ArchivedEntry]) -> Self:
        return self.joint(self.short.recall(whole, bare), self.anchors)

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        return self.joint(self.short.add_prompt(entry, max_prompts), self.anchors.without(entry.frame))

    def without(self, frame: int) -> Self:
        return self.joint(self.short.without(frame), self.anchors.without(frame))

    def forget(self, frame: int, radius: int) -> Self:
        return self.joint(self.short.forget(frame, radius), self.anchors.forget(frame, radius))

    def release_prompt(self, frame: int) -> Self | None:
        released = self.short.release_prompt(frame)
        return None if released is None else self.joint(released, self.anchors)

    def drop_tokens(self, frame: int) -> Self:
        return self.joint(self.short.drop_tokens(frame), self.anchors.without(frame))

    def drop_shared_tokens(self, max_tokens: int) -> Self:
        return self.joint(self.short.drop_shared_tokens(max_tokens), self.anchors)

    def shift_frames(self, by: int) -> Self:
        return self.joint(self.short.shift_frames(by), self.anchors.shift_frames(by))
