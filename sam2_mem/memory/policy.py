"""What a memory policy is. Read this file first; to add a policy, write one class like the ones in ``policies/``.

A policy decides what one object remembers and reads. It never sees a batch, never touches the network, keeps no weights,
and keeps nothing on itself: everything it knows about an object is in a State value that goes in and comes out.

One frame, for one object::

    reads   = policy.read(state, frame)                      what to attend to, one read per pathway
    ...the network turns the reads into hypotheses...
    choice  = policy.choose(state, frame, hypotheses)        which mask to show, which to remember
    ...the network encodes the remembered masks into entries...
    state   = policy.write(state, frame, hypotheses, choice, entries)
    ...entries that the policy wants condensed are merged by the network's distiller, for most policies none...

A prompt instead goes ``state = policy.prompt(state, frame, entry)``. ``prompt``, ``write``, ``condensed`` and ``forget``
return a new state and leave the old one as it was; the other verbs only look.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.tokens import token_count
from sam2_mem.memory.trace import Change, EntryInfo, TraceEvent, plain_events, plain_notes
from sam2_mem.types import (
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    Revision,
    Usage,
)


@dataclass(frozen=True)
class Needs:
    """What a policy asks of the tracker.

    ``usage``: attention statistics of its reads (see :meth:`MemoryPolicy.wanted_usage`). ``summary``: image features
    pooled over each remembered mask; ``appearance``: those of an embedder (:mod:`sam2_mem.tracking.embedders`) and not
    SAM 2's. ``revise``: how many past frames it may still rewrite (0: output is final at once). ``sensory``: it keeps the
    state of sensory memory, where the model has one (see :class:`~sam2_mem.types.SensoryUpdate`).
    """

    usage: Usage = Usage.NONE
    summary: bool = False
    appearance: bool = False
    revise: int = 0
    sensory: bool = False


@dataclass(frozen=True, eq=False)
class Bank:
    """The plain state: prompted entries and tracked entries, both sorted by frame. Enough for most policies; those that
    need more subclass it or bring their own."""

    prompts: tuple[MemoryEntry, ...] = ()
    entries: tuple[MemoryEntry, ...] = ()

    def all_entries(self) -> tuple[MemoryEntry, ...]:
        return self.prompts + self.entries


State = TypeVar("State", bound=Bank)


def put(entries: tuple[MemoryEntry, ...], new: MemoryEntry) -> tuple[MemoryEntry, ...]:
    """``entries`` with ``new`` in place of any entry of the same frame, sorted by frame."""
    return tuple(sorted((*drop(entries, new.frame), new), key=lambda e: e.frame))


def drop(entries: tuple[MemoryEntry, ...], frame: int) -> tuple[MemoryEntry, ...]:
    """``entries`` without those of ``frame``."""
    return tuple(e for e in entries if e.frame != frame)


@dataclass(frozen=True, kw_only=True)
class MemoryPolicy(ABC, Generic[State]):
    """Base of all policies. Subclasses are frozen keyword-only dataclasses; their fields are their hyper-parameters and
    the keys of ``configs/memory_policy/<name>.yaml``, one to one. Check fields in ``__post_init__`` with ValueError."""

    needs: ClassVar[Needs] = Needs()
    min_obj_score_logits: ClassVar[float] = 0.0
    """An object is absent when its score logit is not above this."""

    @property
    def unwrapped(self) -> MemoryPolicy:
        """The policy itself; that inside, for a policy that wraps another."""
        return self

    @abstractmethod
    def capacity(self, tokens_per_map: int) -> int | None:
        """The most spatial memory tokens one object may ever hold, given the tokens of one encoded frame; None says that
        the user asked for no bound."""

    @abstractmethod
    def prompt(self, state: State | None, frame: FrameContext, entry: MemoryEntry) -> State:
        """Take in the first mask (``state`` is None) or a later prompt on any frame; ``entry.is_prompt`` is True."""

    @abstractmethod
    def read(self, state: State, frame: FrameContext) -> Sequence[MemoryRead]:
        """What to attend to on ``frame``, one read per pathway. Pure."""

    def wanted_usage(self, state: State, frame: FrameContext) -> Usage:
        """Statistics needed on this frame: ``needs.usage``, or ``Usage.NONE`` on frames that can do without. Pure."""
        return self.needs.usage

    def choose(self, state: State, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        """Which candidate to show and which to remember. Default: the best predicted IoU, for both. Pure."""
        best = best_candidate(hypotheses)
        return MaskSelection(output=best, remember=(best,))

    @abstractmethod
    def write(
        self,
        state: State,
        frame: FrameContext,
        hypotheses: Hypotheses,
        choice: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> State:
        """Take in the entries of ``choice.remember`` (same order; equal picks give the same entry) and evict down to
        :meth:`capacity`."""

    def condense(self, state: State, frame: FrameContext) -> Sequence[MergeRequest]:
        """Entries to be merged, each in one request; asked after every ``prompt`` and ``write``, and again until there are
        none. A network without a learned distiller gives means by count. Pure."""
        return ()

    def condensed(self, state: State, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> State:
        """Take in the ``tokens`` that became of ``request``, and let go of what they came from."""
        raise NotImplementedError(f"{type(self).__name__} asks for merged entries and does not take them")

    def revise(self, state: State, frame: FrameContext) -> Sequence[Revision]:
        """Masks of earlier frames that this frame has changed; asked after every write if ``needs.revise``. Pure."""
        return ()

    def finish(self, state: State) -> Sequence[Revision]:
        """Masks still to be corrected at the end of a pass, for policies with deferred output. Pure."""
        return ()

    def forget(self, state: State, frame: int, radius: int) -> State:
        """Drop tracked entries within ``radius`` frames of a correction at ``frame``; prompts stay."""
        return replace(state, entries=tuple(e for e in state.entries if abs(e.frame - frame) > radius))

    def unprompt(self, state: State, frame: int) -> State | None:
        """The prompt of ``frame`` was taken back: its entry becomes a tracked one. None when no prompt is left."""
        freed = [e.as_tracked() for e in state.prompts if e.frame == frame]
        prompts = drop(state.prompts, frame)
        if not prompts:
            return None
        entries = put(state.entries, freed[0]) if freed else state.entries
        return replace(state, prompts=prompts, entries=entries)

    def moved(self, state: State, by: int) -> State:
        """The same memory with every frame number shifted by ``by``, so that it can be used in another video. Override where
        the state holds frame numbers outside ``prompts`` and ``entries``."""
        return replace(
            state,
            prompts=tuple(replace(e, frame=e.frame + by) for e in state.prompts),
            entries=tuple(replace(e, frame=e.frame + by) for e in state.entries),
        )

    def sensory(self, state: State) -> Tensor | None:
        """State of sensory memory (Ch, H, W), for policies with ``needs.sensory``: what the latest entry brought. None
        before the first. Pure."""
        return None

    def strip(self, state: State, frame: int) -> State:
        """Give up the spatial memory of the tracked ``frame``; its pointer stays. Override where tracked entries are held
        elsewhere than in ``entries`` and their pointers shall stay too."""
        bare = [e.without_tokens() for e in self.held(state) if e.frame == frame and not e.is_prompt]
        state = self.forget(state, frame, 0)
        return replace(state, entries=put(state.entries, bare[0])) if bare else state

    def shrink(self, state: State, frame: FrameContext, tokens: int) -> State:
        """Give up spatial memory until at most ``tokens`` are held: tracked frames, the farthest from ``frame`` first, then
        prompts, the oldest but the first. The first prompt and ``frame`` itself stay (:meth:`least_capacity`). Override
        where the state holds tokens outside the entries of :meth:`held`."""
        while self.token_count(state) > tokens:
            whole = [e for e in self.held(state) if e.tokens is not None and e.frame != frame.index]
            tracked = [e.frame for e in whole if not e.is_prompt]
            prompts = sorted(e.frame for e in state.prompts if e.tokens is not None)[1:]
            prompts = [f for f in prompts if f != frame.index]
            if tracked:
                state = self.strip(state, max(tracked, key=lambda f: abs(frame.age(f))))
            elif prompts:
                state = self.strip(self.unprompt(state, prompts[0]), prompts[0])
            else:
                return state
        return state

    def least_capacity(self, tokens_per_map: int) -> int:
        """The fewest spatial memory tokens that :meth:`shrink` can always come down to: those of the first prompt and of the
        frame just written."""
        return 2 * tokens_per_map

    def held(self, state: State) -> tuple[MemoryEntry, ...]:
        """Every entry in memory, for reports, byte counts and bounds; an entry shared by several pathways counts once."""
        return state.all_entries()

    def notes(self, state: State, frame: FrameContext) -> Sequence[EntryInfo]:
        """What is held, as what and by which score, for listeners (:mod:`sam2_mem.memory.trace`). Default: entries of
        :meth:`held` as prompts, maps and pointers. Pure."""
        return plain_notes(self.held(state))

    def explain(self, change: Change) -> Sequence[TraceEvent]:
        """What a change has done to memory, and why, for listeners. Default: what a comparison of :meth:`held` before and
        after shows. Pure: asked after the fact, about values that this policy has given out."""
        before, after = (() if s is None else self.held(s) for s in (change.before, change.after))
        return plain_events(change, before, after)

    def token_count(self, state: State) -> int:
        """Spatial memory tokens held, the number that :meth:`capacity` bounds. Override where the state holds tokens outside
        the entries of :meth:`held`."""
        return token_count(self.held(state))

    def tensors(self, state: State) -> tuple[Tensor, ...]:
        """Every tensor the state keeps alive, for byte counts; a tensor may come several times."""
        return tuple(tensors_in(state))

    def can_resume(self, state: State, frame: FrameContext) -> bool:
        """Whether tracking may start at ``frame`` without a prompt there: the frame tracked just before it is held."""
        before = frame.index + 1 if frame.reverse else frame.index - 1
        return any(e.frame == before and e.tokens is not None for e in self.held(state))


def best_candidate(hypotheses: Hypotheses) -> CandidateId:
    """The candidate of highest predicted IoU over all pathways; the first of equals."""
    flat = [(iou, -p, -m) for p, row in enumerate(hypotheses.iou) for m, iou in enumerate(row)]
    _, pathway, candidate = max(flat)
    return CandidateId(-pathway, -candidate)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value made of dataclasses, tuples, lists, dicts, numbers and tensors, as states are."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor], made: dict[int, Any] | None = None) -> Any:
    """A state with ``change`` applied to every tensor. What is one object in ``value`` is one object in the result, and
    what holds no tensor that changes is the same object. ``made``: give the same dict to keep that over several calls."""
    made = {} if made is None else made
    if id(value) not in made:
        made[id(value)] = (_mapped(value, change, made), value)  # the value too: its id must not be used again
    return made[id(value)][0]


def _mapped(value: Any, change: Callable[[Tensor], Tensor], made: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        new = {name: map_tensors(v, change, made) for name, v in own.items()}
        return value if all(new[n] is own[n] for n in own) else replace(value, **new)
    if isinstance(value, dict):
        return {k: map_tensors(v, change, made) for k, v in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(v, change, made) for v in value]
        if all(a is b for a, b in zip(items, value)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


__getattr__ = renamed(__name__)
