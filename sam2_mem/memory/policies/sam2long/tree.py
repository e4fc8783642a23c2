"""The state of SAM2Long: pathways, each with its own memory, that share entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import reduce

from typing_extensions import Self

from sam2_mem.memory.bank import Bank, drop, put
from sam2_mem.memory.policies.sam2long.deferred_masks import OpenFrames
from sam2_mem.types import Entry, MemoryEntry, PointerEntry

Memory = tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Pathway:
    """One way through the video.

    Attributes:
        score: sum of log IoUs, less that of the best pathway.
        entries: its memory, sorted by frame. Entries are shared between pathways and never copied.
    """

    score: float = 0.0
    entries: Memory = ()

    def memory_key(self) -> tuple[tuple[int, bool], ...]:
        """Equal for pathways that read the same."""
        return tuple((id(e.pointer), e.tokens is None) for e in self.entries)


@dataclass(frozen=True, eq=False)
class Tree(Bank):
    """A state whose ``entries`` and ``pointers`` are those of all pathways together.

    Attributes:
        pathways: the best first, none before the first tracked frame.
        open_frames: masks of the latest frames that may still be replaced.
    """

    pathways: tuple[Pathway, ...] = ()
    open_frames: OpenFrames = field(default_factory=OpenFrames)

    def archivable(self) -> dict[int, tuple[MemoryEntry, str]]:
        """The versions of the best pathway."""
        best = self.pathways[0].entries if self.pathways else self.entries
        return {e.frame: (e, "") for e in best if isinstance(e, MemoryEntry)}

    def with_pathways(self, pathways: Iterable[Pathway]) -> Self:
        pathways = tuple(pathways)
        union = _unite(p.entries for p in pathways)
        pointers = [e for e in union if isinstance(e, PointerEntry)] + [e for e in self.pointers if e.is_prompt]
        return replace(
            self,
            pathways=pathways,
            entries=tuple(e for e in union if isinstance(e, MemoryEntry)),
            pointers=tuple(sorted(pointers, key=lambda e: e.frame)),
        )

    def with_memories(self, change: Callable[[Memory], Memory]) -> Self:
        """The same with ``change`` applied to the memory of every pathway."""
        return self.with_pathways(replace(p, entries=change(p.entries)) for p in self.pathways)

    def add(self, *entries: MemoryEntry) -> Self:
        """With tracked ``entries`` in the memory of every pathway."""
        return self.with_memories(lambda memory: reduce(put, entries, memory))

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        """As in ``Bank``; the mask of its frame is final."""
        added = super().add_prompt(entry, max_prompts)
        return replace(added, open_frames=self.open_frames.without(entry.frame))

    def without(self, frame: int) -> Self:
        return super().without(frame).with_memories(lambda memory: drop(memory, frame))

    def forget(self, frame: int, radius: int) -> Self:
        return self.with_memories(lambda memory: tuple(e for e in memory if abs(e.frame - frame) > radius))

    def drop_tokens(self, frame: int) -> Self:
        """Without the spatial memory of every version of the tracked ``frame``; their pointers stay."""
        bare = {id(e): e.without_tokens() for p in self.pathways for e in p.entries if e.frame == frame}
        return self.with_memories(lambda memory: tuple(bare.get(id(e), e) for e in memory))

    def shift_frames(self, by: int) -> Self:
        """As in ``Bank``; masks that are still open stay behind."""
        shifted = {id(e): replace(e, frame=e.frame + by) for p in self.pathways for e in p.entries}
        closed = replace(super().shift_frames(by), open_frames=OpenFrames())
        return closed.with_memories(lambda memory: tuple(shifted[id(e)] for e in memory))


def _unite(memories: Iterable[Memory]) -> list[Entry]:
    """Every entry once, sorted by frame; with tokens where any pathway has them."""
    entries: dict[tuple[int, int], Entry] = {}
    for entry in (e for memory in memories for e in memory):
        key = (entry.frame, id(entry.pointer))
        if key not in entries or entries[key].tokens is None:
            entries[key] = entry
    return sorted(entries.values(), key=lambda e: e.frame)
