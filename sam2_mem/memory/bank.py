"""The state of a memory policy: what one object remembers, as a value that no method changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor
from typing_extensions import Self

from sam2_mem.memory.tokens import restored, token_count
from sam2_mem.memory.trace import Reason
from sam2_mem.model.tensor_tree import tensors_in
from sam2_mem.types import ArchivedEntry, Entry, FrameContext, MemoryEntry, PointerEntry

E = TypeVar("E", bound=Entry)


@dataclass(frozen=True, eq=False)
class Bank:
    """The plain state, enough for most policies; those that need more subclass it.

    Every method returns a new bank. An entry that gives up its tokens becomes a ``PointerEntry`` in
    ``pointers``, so whatever is in ``prompts`` and ``entries`` can be read.

    Attributes:
        prompts: prompted frames, sorted by frame.
        entries: tracked frames with their spatial memory, sorted by frame.
        pointers: frames of which only the object pointer is left, sorted by frame.
        reasons: why the latest write decided as it did, for listeners.
    """

    prompts: tuple[MemoryEntry, ...] = ()
    entries: tuple[MemoryEntry, ...] = ()
    pointers: tuple[PointerEntry, ...] = ()
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self) -> None:
        """Move entries without tokens, wherever they were put, to ``pointers``."""
        bare = [e for e in (*self.prompts, *self.entries) if isinstance(e, PointerEntry)]
        if bare:
            frames = {e.frame for e in bare}
            pointers = [e for e in self.pointers if e.frame not in frames] + bare
            object.__setattr__(self, "pointers", tuple(sorted(pointers, key=lambda e: e.frame)))
            for name in ("prompts", "entries"):
                whole = tuple(e for e in getattr(self, name) if isinstance(e, MemoryEntry))
                object.__setattr__(self, name, whole)

    # -- what is in it ------------------------------------------------------------------------------------------

    def all_entries(self) -> tuple[Entry, ...]:
        """Everything remembered; an entry that several pathways share comes once. Override where a subclass holds entries
        in other fields."""
        return (*self.prompts, *self.entries, *self.pointers)

    def tracked(self) -> dict[int, Entry]:
        """Entries and pointers of tracked frames, by frame."""
        entries: tuple[Entry, ...] = (*self.pointers, *self.entries)
        return {e.frame: e for e in entries if not e.is_prompt}

    def prompt_entries(self) -> tuple[Entry, ...]:
        """Prompted frames in order, those included whose tokens are gone."""
        bare = [e for e in self.pointers if e.is_prompt]
        return tuple(sorted((*self.prompts, *bare), key=lambda e: e.frame)) if bare else self.prompts

    def prompted_frames(self) -> list[int]:
        """Numbers of the frames of ``prompt_entries``."""
        return [e.frame for e in self.prompt_entries()]

    def token_count(self) -> int:
        """Spatial memory tokens held, the number that ``MemoryPolicy.capacity`` bounds. Override where a subclass holds
        tokens outside its entries."""
        return token_count(self.all_entries())

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that the bank keeps alive, for byte counts; a tensor may come several times."""
        return tuple(tensors_in(self))

    def archivable(self) -> dict[int, tuple[MemoryEntry, str]]:
        """Tracked frames with their spatial memory that a later read may ask for when they have left, by frame; with each a
        mark of what ``MemoryPolicy.recall`` has to know of it beside its entry. Override where there is such a thing."""
        return {e.frame: (e, "") for e in self.entries}

    def can_resume(self, frame: FrameContext) -> bool:
        """Whether tracking may start at ``frame`` without a prompt there: the frame before it is held with its tokens."""
        before = frame.index + 1 if frame.reverse else frame.index - 1
        return any(e.frame == before and e.tokens is not None for e in self.all_entries())

    # -- changes ------------------------------------------------------------------------------------------------

    def add(self, *entries: MemoryEntry) -> Self:
        """With tracked ``entries``, each in place of what was remembered of its frame, and without reasons of an earlier write."""
        tracked, pointers = self.entries, self.pointers
        for entry in entries:
            tracked, pointers = put(tracked, entry), drop(pointers, entry.frame)
        return replace(self, entries=tracked, pointers=pointers, reasons=())

    def recall(self, whole: Iterable[ArchivedEntry], bare: Iterable[ArchivedEntry]) -> Self:
        """With frames that had left: ``whole`` ones, and the pointers of ``bare`` ones, where nothing newer is held of them;
        the bank itself where there are none such."""
        prompted, entry_frames = set(self.prompted_frames()), {e.frame for e in self.entries}
        entries = [restored(a) for a in whole if a.entry.frame not in prompted | entry_frames]
        grown = self.add(*entries) if entries else self
        known = prompted | grown.tracked().keys()
        pointers = [a.entry.without_tokens() for a in bare if a.entry.frame not in known]
        if not pointers:
            return grown
        return replace(grown, pointers=tuple(sorted((*grown.pointers, *pointers), key=lambda e: e.frame)))

    def add_prompt(self, entry: MemoryEntry, max_prompts: int | None) -> Self:
        """With a prompted ``entry`` in place of what was remembered of its frame; beyond ``max_prompts`` (None: no limit)
        the oldest prompt but the first leaves, never the new one."""
        others = self.without(entry.frame)
        joined = replace(others, prompts=put(others.prompts, entry))
        frames = joined.prompted_frames()
        if max_prompts is None or len(frames) <= max_prompts:
            return joined
        return joined.without(next(f for f in frames[1:] if f != entry.frame))

    def without(self, frame: int) -> Self:
        """Without anything of ``frame``, prompts included. Override where a subclass holds more of a frame."""
        return replace(
            self,
            prompts=drop(self.prompts, frame),
            entries=drop(self.entries, frame),
            pointers=drop(self.pointers, frame),
        )

    def forget(self, frame: int, radius: int) -> Self:
        """Without tracked frames within ``radius`` of ``frame``; prompts stay. Override as ``without``."""
        return replace(
            self,
            entries=tuple(e for e in self.entries if abs(e.frame - frame) > radius),
            pointers=tuple(e for e in self.pointers if e.is_prompt or abs(e.frame - frame) > radius),
        )

    def release_prompt(self, frame: int) -> Self | None:
        """With the prompt of ``frame`` as a tracked frame; None where no prompt is left."""
        prompts = [e for e in self.prompt_entries() if e.frame == frame]
        released = self.without(frame) if prompts else self
        if not released.prompted_frames():
            return None
        for entry in prompts:
            if isinstance(entry, MemoryEntry):
                return released.add(entry.as_tracked())
            return replace(released, pointers=put(released.pointers, entry.as_tracked()))
        return released

    def keep(self, *, tokens: Collection[int], pointers: Collection[int]) -> Self:
        """With tokens for tracked frames in ``tokens``, the pointer for those in ``pointers``, and no other tracked frame."""
        bare = [e.without_tokens() for e in self.entries if e.frame not in tokens and e.frame in pointers]
        bare += [e for e in self.pointers if e.is_prompt or e.frame in pointers or e.frame in tokens]
        return replace(
            self,
            entries=tuple(e for e in self.entries if e.frame in tokens),
            pointers=tuple(sorted(bare, key=lambda e: e.frame)),
        )

    def keep_near(self, anchors: Collection[int], *, token_reach: int, pointer_reach: int) -> Self:
        """With tokens for tracked frames up to ``token_reach`` frames away from one of ``anchors``, and the pointer for those
        up to ``pointer_reach`` away."""
        kept = within_reach(self.tracked().values(), anchors, token_reach=token_reach, pointer_reach=pointer_reach)
        entries: tuple[Any, ...] = tuple(sorted(kept, key=lambda e: e.frame))
        return replace(self, entries=entries, pointers=tuple(e for e in self.pointers if e.is_prompt))

    def drop_tokens(self, frame: int) -> Self:
        """Without the spatial memory of the tracked ``frame``; its pointer stays."""
        bare = [e.without_tokens() for e in self.all_entries() if e.frame == frame and not e.is_prompt]
        others = self.forget(frame, 0)
        return replace(others, pointers=put(others.pointers, bare[0])) if bare else others

    def drop_shared_tokens(self, max_tokens: int) -> Self:
        """With at most ``max_tokens`` in all, at the cost of tokens that belong to no entry. Override where there are such."""
        return self

    def shift_frames(self, by: int) -> Self:
        """With every frame number shifted by ``by``, so that the memory can be used in another video. Override where a
        subclass holds more frame numbers."""
        return replace(
            self,
            prompts=shifted(self.prompts, by),
            entries=shifted(self.entries, by),
            pointers=shifted(self.pointers, by),
            reasons=(),
        )


def put(entries: tuple[E, ...], new: E) -> tuple[E, ...]:
    """``entries`` with ``new`` in place of any entry of the same frame, sorted by frame."""
    return tuple(sorted((*drop(entries, new.frame), new), key=lambda e: e.frame))


def drop(entries: tuple[E, ...], frame: int) -> tuple[E, ...]:
    """``entries`` without those of ``frame``."""
    return tuple(e for e in entries if e.frame != frame)


def add_prompt(
    prompts: tuple[MemoryEntry, ...], entry: MemoryEntry, max_prompts: int | None
) -> tuple[MemoryEntry, ...]:
    """``prompts`` with ``entry``, sorted by frame; beyond ``max_prompts`` the oldest but the first leaves, never the new
    one."""
    joined = put(prompts, entry)
    if max_prompts is None or len(joined) <= max_prompts:
        return joined
    oldest = next(p for p in joined[1:] if p is not entry)
    return tuple(p for p in joined if p is not oldest)


def within_reach(
    entries: Iterable[Entry], anchors: Collection[int], *, token_reach: int, pointer_reach: int
) -> Iterator[Entry]:
    """Entries near one of ``anchors`` (frames): unchanged up to ``token_reach`` frames away, without tokens up to
    ``pointer_reach``, none beyond."""
    for entry in entries:
        distance = min(abs(entry.frame - a) for a in anchors)
        if distance <= token_reach:
            yield entry
        elif distance <= pointer_reach:
            yield entry.without_tokens()


def shifted(entries: Iterable[E], by: int) -> tuple[E, ...]:
    """``entries`` with their frame numbers shifted by ``by``."""
    return tuple(replace(e, frame=e.frame + by) for e in entries)
