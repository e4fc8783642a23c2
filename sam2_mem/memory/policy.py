"""What a memory policy is. Read this file first; to add a policy, write one class like the ones in ``policies/``, or one
method of ``ScoredBank``.

A policy decides what one object remembers and reads. It never sees a batch, never touches the network, keeps no weights,
and keeps nothing on itself: everything it knows about an object is in a state, a
``Bank``, that goes in and comes out.

One frame, for one object:

    reads     = policy.read(state, frame)                    what to attend to, one read per pathway
    ...the network turns the reads into hypotheses...
    selection = policy.choose(state, frame, hypotheses)      which mask to give out, which to remember
    ...the network encodes the remembered masks into entries...
    state     = policy.write(state, frame, hypotheses, selection, entries)

A prompt instead goes ``state = policy.prompt(state, frame, entry)``. ``capacity``, ``read`` and ``write`` have to be
written; ``prompt``, ``choose``, ``forget`` and ``unprompt`` have defaults that fit most policies. What else a policy can do
is an ability, a protocol whose methods it has: ``Merging``, ``Revising``, ``HasSensory``, ``MeasuresReads``, ``Explains``,
``Probing`` (``sam2_mem.memory.questions``).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from sam2_mem._moved import renamed
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.reading import most_pointers
from sam2_mem.memory.trace import Explains
from sam2_mem.types import (
    ArchivedEntry,
    CandidateId,
    FrameContext,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    MergeRequest,
    ReadUsage,
    Revision,
    Usage,
)

__all__ = [
    "Explains",
    "HasSensory",
    "MemoryPolicy",
    "Merging",
    "Needs",
    "Revising",
    "best_candidate",
    "check_settings",
    "setting",
]

T = TypeVar("T")
State = TypeVar("State", bound=Bank)


@dataclass(frozen=True)
class Needs:
    """What a policy asks of the tracker.

    Attributes:
        usage: attention statistics of its reads (see ``MemoryPolicy.usage_at``).
        summary: image features pooled over each remembered mask.
        appearance: those of an embedder (``sam2_mem.tracking.embedders``) and not SAM 2's.
        revise: how many past frames it may still rewrite (0: output is final at once); it is ``Revising``.
        sensory: it keeps the state of sensory memory, where the model has one; it is ``HasSensory``.
        whole_maps: tracked maps stay as they were written: ``memory_bound=tokens`` may not take tokens out of them.
        click_mask: ``MemoryEntry.click_mask`` of prompts.
        window: frames before this one whose features the tracker keeps for its questions (``sam2_mem.memory.questions``);
            None: it asks none.
        every_frame: it follows the object from each frame to the next, so that no frame may be left out of ``write``, as
            ``tracker.clip_length`` does.
    """

    usage: Usage = Usage.NONE
    summary: bool = False
    appearance: bool = False
    revise: int = 0
    sensory: bool = False
    whole_maps: bool = False
    click_mask: bool = False
    window: int | None = None
    every_frame: bool = False


def setting(
    default: T,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    special: Sequence[Any] = (),
) -> T:
    """A field of a policy whose value is checked when the policy is built.

    Args:
        default: its default value.
        at_least: smallest value; an integer asks for an integer.
        at_most: largest value.
        above: the value must be above this.
        choices: the values there are.
        special: values that are valid beside the range; None always is where it is the default.
    """
    limits = {"at_least": at_least, "at_most": at_most, "above": above, "choices": choices, "special": tuple(special)}
    return field(default=default, metadata=limits)


@dataclass(frozen=True, kw_only=True)
class MemoryPolicy(ABC, Generic[State]):
    """Base of all policies. Subclasses are frozen keyword-only dataclasses; their fields are their hyper-parameters and
    the keys of ``configs/memory_policy/<name>.yaml``, one to one. Fields made by ``setting`` are checked here; check
    what depends on several of them in ``__post_init__``, after ``super().__post_init__()``, with ValueError.

    Attributes:
        max_obj_ptrs_in_encoder: object pointers read: those of prompts and of 15 past frames at SAM 2's 16; also the time
            span that their ages are divided by.
        max_prompts: most prompted frames held; beyond it the oldest but the first goes. SAM 2 has no such limit.
    """

    removed: ClassVar[Mapping[str, Any]] = {}
    """Settings of earlier versions that are gone, with their defaults: a config that names one still works at its default."""

    max_obj_ptrs_in_encoder: int = setting(16, at_least=1)
    max_prompts: int = setting(32, at_least=2)

    def __post_init__(self) -> None:
        check_settings(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _accept_earlier_methods(cls)

    def __getattr__(self, name: str) -> Any:
        return _earlier_method(self, name)

    # -- what it asks of the tracker ----------------------------------------------------------------------------

    @property
    def needs(self) -> Needs:
        """What the policy asks of the tracker."""
        return Needs()

    @property
    def min_obj_score_logits(self) -> float:
        """An object is absent when its score logit is not above this."""
        return 0.0

    @property
    def num_pathways(self) -> int:
        """The most entries of one frame that the state may hold, more than one for trees."""
        return 1

    @property
    def unwrapped(self) -> MemoryPolicy:
        """The policy itself; the inner one, for a policy that wraps another."""
        return self

    def usage_at(self, state: State, frame: FrameContext) -> Usage:
        """Statistics needed on this frame: ``needs.usage``, or ``Usage.NONE`` on frames that can do without. Pure."""
        return self.needs.usage

    def measure(
        self, state: State, frame: FrameContext, masks: Tensor, usage: Sequence[ReadUsage] | None
    ) -> Tensor | None:
        """Numbers (n) float32 that ``choose`` and ``write`` go by and that only the device knows. They come to the CPU with
        the scores, as ``Hypotheses.measured``, so that the host waits once a frame. Pure. Asked on other devices than a CPU;
        where ``measured`` is None, a policy asks the device itself.

        Args:
            state: of the object.
            frame: the frame.
            masks: (P, M, h, w) logits of all candidates.
            usage: of its reads, if it was asked for.
        """
        return None

    def frames_behind(self, frame: FrameContext) -> tuple[Sequence[int], Sequence[int]]:
        """The tracked frames just behind ``frame`` that a read on it takes if they are remembered at all. After a jump they are
        brought back by ``recall``, and missed in a warning. Override where more than the previous frame is read whole. Pure.

        Returns:
            those read with their spatial memory.
            those of which the pointer is read.
        """
        step = 1 if frame.reverse else -1
        ages = range(1, most_pointers(frame, self.max_obj_ptrs_in_encoder))
        return (frame.index + step,), [frame.index + step * age for age in ages]

    # -- to be written ------------------------------------------------------------------------------------------

    @abstractmethod
    def capacity(self, tokens_per_map: int) -> int | None:
        """The most spatial memory tokens one object may ever hold, given the tokens of one encoded frame; None says that
        the user asked for no bound."""

    @abstractmethod
    def read(self, state: State, frame: FrameContext) -> Sequence[MemoryRead]:
        """What to attend to on ``frame``, one read per pathway. Pure."""

    @abstractmethod
    def write(
        self,
        state: State,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> State:
        """Take in the entries of ``selection.remember`` (same order; equal candidates give the same entry) and evict down
        to ``capacity``."""

    # -- with good defaults -------------------------------------------------------------------------------------

    def new_state(self, frame: FrameContext) -> State:
        """The state of an object before its first prompt, on ``frame``. Override for a state of your own."""
        return Bank()  # type: ignore[return-value]

    def prompt(self, state: State | None, frame: FrameContext, entry: MemoryEntry) -> State:
        """Take in the first mask (``state`` is None) or a later prompt on any frame; ``entry.is_prompt`` is True."""
        state = self.new_state(frame) if state is None else state
        return state.add_prompt(entry, self.max_prompts)

    def choose(self, state: State, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        """Which candidate to give out and which to remember. Default: the best predicted IoU, for both. Pure."""
        best = best_candidate(hypotheses)
        return MaskSelection(output=best, remember=(best,))

    def recall(self, state: State, frame: FrameContext, archived: Mapping[int, ArchivedEntry]) -> State:
        """Tracking, or a correction, goes on at ``frame`` after a jump: ``state`` with what a read on it takes of the frames
        that have left memory since they were tracked. Default: ``frames_behind``. Pure.

        Args:
            state: memory as it is.
            frame: the frame that will be read.
            archived: everything of this object that has left and can come back, by frame.
        """
        whole, bare = ([archived[f] for f in frames if f in archived] for frames in self.frames_behind(frame))
        return state.recall(whole, bare)

    def forget(self, state: State, frame: int, radius: int) -> State:
        """Drop tracked entries within ``radius`` frames of a correction at ``frame``; prompts stay."""
        return state.forget(frame, radius)

    def unprompt(self, state: State, frame: int) -> State | None:
        """The prompt of ``frame`` was taken back: its entry becomes a tracked one. None when no prompt is left."""
        return state.release_prompt(frame)


# -- abilities --------------------------------------------------------------------------------------------------------


@runtime_checkable
class Merging(Protocol):
    """Ability of a policy: has entries merged by the network's distiller. A network without a learned distiller gives
    means by count."""

    def merge_requests(self, state: Any, frame: FrameContext) -> Sequence[MergeRequest]:
        """Entries to be merged, each in one request; asked after every ``prompt`` and ``write``, and again until there are
        none. Pure."""

    def take_merged(self, state: Any, frame: FrameContext, request: MergeRequest, tokens: MemoryTokens) -> Any:
        """Take in the ``tokens`` that became of ``request``, and let go of what they came from."""


@runtime_checkable
class Revising(Protocol):
    """Ability of a policy with ``needs.revise``: replaces masks that have been given out."""

    def revise(self, state: Any, frame: FrameContext) -> Sequence[Revision]:
        """Masks of earlier frames that this frame has changed; asked after every write. Pure."""

    def finish(self, state: Any) -> Sequence[Revision]:
        """Masks still to be corrected at the end of a pass. Pure."""


@runtime_checkable
class HasSensory(Protocol):
    """Ability of a policy with ``needs.sensory``: keeps the state of sensory memory."""

    def sensory(self, state: Any) -> Tensor | None:
        """State of sensory memory (Ch, H, W): what the latest entry brought. None before the first. Pure."""


@runtime_checkable
class MeasuresReads(Protocol):
    """Ability of a policy: reads by numbers that only the device knows."""

    def measure_for_read(self, state: Any, frame: FrameContext, *, told_apart: bool) -> Tensor | None:
        """Numbers (n) float32 that ``read`` goes by, as ``FrameContext.measured``. They come for all objects in one transfer,
        for which the host waits once more; else as ``MemoryPolicy.measure``. None where ``read`` can leave the choice to the
        device.

        Args:
            state: of the object.
            frame: the frame.
            told_apart: whether the host has to know which entries are read.
        """


# -- helpers ----------------------------------------------------------------------------------------------------------


def best_candidate(hypotheses: Hypotheses) -> CandidateId:
    """The candidate of highest predicted IoU over all pathways; the first of equals."""
    flat = [(iou, -p, -m) for p, row in enumerate(hypotheses.iou) for m, iou in enumerate(row)]
    _, pathway, candidate = max(flat)
    return CandidateId(-pathway, -candidate)


def check_settings(part: Any) -> None:
    """ValueError for a field of the dataclass ``part`` that was made by ``setting`` and has a value it does not allow."""
    for f in fields(part):
        value = getattr(part, f.name)
        if f.metadata and not (value is None and f.default is None) and value not in f.metadata["special"]:
            _check_setting(f.name, value, **f.metadata)


def _check_setting(
    name: str,
    value: Any,
    *,
    at_least: float | None,
    at_most: float | None,
    above: float | None,
    choices: Sequence[str],
    special: Sequence[Any],
) -> None:
    if choices:
        if value not in choices:
            raise ValueError(f"expected {name} out of {', '.join(choices)}, got {value!r}")
        return
    beside = "".join(f"{s} or " for s in special)
    if isinstance(at_least, int) and (isinstance(value, bool) or not isinstance(value, int)):
        raise ValueError(f"expected {name} to be an integer, {beside}>= {at_least}, got {value!r}")
    if at_least is not None and at_most is not None:
        if not at_least <= value <= at_most:
            raise ValueError(f"expected {name} in {at_least:g}..{at_most:g}, got {value!r}")
    elif at_least is not None and not value >= at_least:
        raise ValueError(f"expected {name} {beside}>= {at_least:g}, got {value!r}")
    elif at_most is not None and not value <= at_most:
        raise ValueError(f"expected {name} {beside}<= {at_most:g}, got {value!r}")
    if above is not None and not value > above:
        raise ValueError(f"expected {name} > {above:g}, got {value!r}")


_RENAMED_METHODS = {
    "condense": "merge_requests",
    "condensed": "take_merged",
    "wanted_usage": "usage_at",
    "notes": "entry_infos",
}
_STATE_METHODS = {
    "held": "all_entries",
    "token_count": "token_count",
    "tensors": "tensors",
    "can_resume": "can_resume",
    "moved": "shift_frames",
    "strip": "drop_tokens",
}
_METHODS_GONE = ("explain", "shrink", "least_capacity", *_STATE_METHODS)


def _accept_earlier_methods(cls: type) -> None:
    """Methods of the earlier interface count under their new names, with a warning; those that would never be called are
    an error when their class is made."""
    unused = [name for name in _METHODS_GONE if name in vars(cls)]
    if unused:
        raise TypeError(
            f"expected {cls.__name__} to define methods that are called, got {', '.join(unused)} of an earlier interface; "
            "override the method of the state (sam2_mem.memory.bank.Bank), and leave reasons in it"
        )
    for old, new in _RENAMED_METHODS.items():
        if old in vars(cls):
            warnings.warn(f"{cls.__name__}.{old} is now {new}; rename the method", FutureWarning, stacklevel=3)
            setattr(cls, new, vars(cls)[old])


def _earlier_method(policy: MemoryPolicy, name: str) -> Any:
    """A method of the earlier interface, for callers."""
    if name in _RENAMED_METHODS and hasattr(type(policy), _RENAMED_METHODS[name]):
        warnings.warn(f"{name} is now {_RENAMED_METHODS[name]}", FutureWarning, stacklevel=3)
        return getattr(policy, _RENAMED_METHODS[name])
    if name in _STATE_METHODS:
        method = _STATE_METHODS[name]
        warnings.warn(f"policy.{name}(state) is now state.{method}()", FutureWarning, stacklevel=3)
        return lambda state, *args: getattr(state, method)(*args)
    raise AttributeError(f"{type(policy).__name__!r} object has no attribute {name!r}")


__getattr__ = renamed(__name__)
