"""What every memory policy promises, as functions that raise AssertionError for a policy that breaks a promise.

Each ``check_*`` takes a policy and drives it through the tracker on a micro network. ``test_policy_contract.py`` runs
them for every YAML file in ``configs/memory_policy`` and, as controls, for policies that are broken on purpose.
"""

from __future__ import annotations

import copy
import math
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from micro import SCORE_BIAS, TOKENS, empty_prompt, features_at, mask_prompt, micro_model, micro_tracker, run
from torch import Tensor

from sam2_mem.memory.bounded import Bounded, least_capacity
from sam2_mem.memory.policy import MemoryPolicy, Revising
from sam2_mem.memory.serialization import load_memory, save_memory
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import (
    ABSENT_LOGIT,
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    FrameResult,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadUsage,
    Usage,
)

TOLERANCE = 1e-4
LONG = 500
FAR = 5040
"""Frame from which reverse passes run in the mirror test; divisible by every small stride."""

# -- looking into a state ---------------------------------------------------------------------------------------------


def leaves(value: Any, path: str = "state") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything a state is made of. AssertionError for what is neither a tensor, a number, a string
    nor a container of such."""
    if value is None or isinstance(value, bool | int | float | str | Enum | Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.key", key
            yield from leaves(inner, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}[{i}]")
    elif isinstance(value, set | frozenset):
        for inner in sorted(value):
            yield from leaves(inner, f"{path}{{}}")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}")
    else:
        raise AssertionError(f"{path} is a {type(value).__name__}; a state is made of plain tensors and numbers")


Snapshot = list[tuple[str, Any]]


def snapshot(value: Any, path: str = "state") -> Snapshot:
    """All leaves, tensors copied."""
    return [(p, v.detach().clone() if isinstance(v, Tensor) else v) for p, v in leaves(value, path)]


def difference(before: Snapshot, after: Snapshot) -> str | None:
    """Where two snapshots differ; None where they are the same to the bit."""
    if [p for p, _ in before] != [p for p, _ in after]:
        return f"{len(before)} values became {len(after)}"
    return next((p for (p, a), (_, b) in zip(before, after) if not _same(a, b)), None)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and bool(a == b)


def memory_maps(value: Any) -> dict[int, MemoryTokens]:
    """Every distinct set of memory tokens inside a state, found by walking it, not by asking the policy."""
    found: dict[int, MemoryTokens] = {}
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, MemoryTokens):
            found[id(value)] = value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value
        elif hasattr(value, "__dataclass_fields__"):
            waiting += (getattr(value, name) for name in value.__dataclass_fields__)
    return found


def tokens_in(state: Any) -> int:
    return sum(len(tokens) for tokens in memory_maps(state).values())


def bytes_in(state: Any) -> int:
    """Bytes of the storages behind all tensors of a state; a view keeps its whole storage alive."""
    storages = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for _, v in leaves(state) if isinstance(v, Tensor)
    }
    return sum(storages.values())


def assert_finite(state: Any) -> None:
    for path, value in leaves(state):
        if isinstance(value, Tensor) and value.is_floating_point():
            # -inf is a meaningful logarithm of a count of zero; NaN only stands for a place that a token does not have.
            assert (path.endswith(".xy") or not value.isnan().any()) and not (value == math.inf).any(), (
                f"{path} is not finite"
            )
        elif isinstance(value, float):
            assert not math.isnan(value), f"{path} is not a number"


# -- watching a policy at work ----------------------------------------------------------------------------------------

METHODS = (  # noqa: SIM905 - words read better than a column of strings
    "capacity read write prompt choose forget unprompt new_state usage_at merge_requests take_merged revise finish sensory "
    "entry_infos"
).split()


def kept_outside_states(policy: Any) -> Snapshot:
    """Mutable things a policy could hide memory in: its attributes, its classes' attributes, globals of its modules."""
    found = snapshot(vars(policy), "policy")
    for kind in type(policy).__mro__[:-1]:
        places = {f"class {kind.__name__}": vars(kind), f"module {kind.__module__}": vars(sys.modules[kind.__module__])}
        for place, names in places.items():
            mutable = {
                n: v for n, v in names.items() if isinstance(v, list | dict | set | Tensor) and not n.startswith("__")
            }
            for name, value in mutable.items():
                found.append((f"{place}.{name}", _frozen_view(value)))
    return found


def _frozen_view(value: Any) -> Any:
    try:
        return snapshot(value)
    except (AssertionError, TypeError):
        return repr(value) if not isinstance(value, ModuleType) else id(value)


class PureProxy:
    """Stands in for a policy: after every method its arguments and the policy itself must be as before."""

    def __init__(self, inner: MemoryPolicy) -> None:
        self._inner = inner
        self.calls: dict[str, int] = {}

    @property
    def __class__(self) -> type:
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._guarded(name, value) if name in METHODS else value

    def _guarded(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            arguments, outside = snapshot((args, kwargs), "arguments"), kept_outside_states(self._inner)
            result = method(*args, **kwargs)
            changed = difference(arguments, snapshot((args, kwargs), "arguments"))
            assert changed is None, (
                f"{name} changed its arguments: {changed}; states are values, build a new one with dataclasses.replace"
            )
            stored = difference(outside, kept_outside_states(self._inner))
            assert stored is None, f"{name} kept something outside the state: {stored}; put it in a field of the state"
            return result

        return call


class CheckedProxy:
    """Stands in for a policy: checks its reads, hypotheses, selections and entries as they pass."""

    def __init__(self, inner: MemoryPolicy) -> None:
        self._inner = inner
        self.frames = 0

    @property
    def __class__(self) -> type:
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def usage_at(self, state: Any, frame: FrameContext) -> Usage:
        wanted = self._inner.usage_at(state, frame)
        declared = self._inner.needs.usage
        assert wanted in (declared, Usage.NONE), f"usage_at asks for {wanted}, needs.usage declares {declared}"
        return wanted

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]:
        reads = self._inner.read(state, frame)
        assert len(reads) >= 1, "read gave no pathway"
        for read in reads:
            _assert_read(read)
        again = self._inner.read(state, frame)
        assert [_shape(r) for r in reads] == [_shape(r) for r in again], "two reads of one state differ"
        return reads

    def choose(self, state: Any, frame: FrameContext, hypotheses: Hypotheses) -> MaskSelection:
        reads = self._inner.read(state, frame)
        _assert_usage(self._inner, state, frame, hypotheses, reads)
        selection = self._inner.choose(state, frame, hypotheses)
        for pick in (selection.output, *selection.remember):
            _assert_pick(pick, hypotheses)
        return selection

    def write(
        self,
        state: Any,
        frame: FrameContext,
        hypotheses: Hypotheses,
        selection: MaskSelection,
        entries: Sequence[MemoryEntry],
    ) -> Any:
        assert len(entries) == len(selection.remember)
        for entry in entries:
            if not self._inner.needs.summary:
                assert entry.summary is None, "a summary came that needs.summary does not ask for"
            elif entry.area > 0:
                assert entry.summary is not None and entry.summary.isfinite().all(), (
                    "the summary asked for did not come"
                )
        self.frames += 1
        return self._inner.write(state, frame, hypotheses, selection, entries)

    def revise(self, state: Any, frame: FrameContext) -> Any:
        revisions = self._inner.revise(state, frame)
        limit = self._inner.needs.revise
        late = [r.frame for r in revisions if not 0 <= frame.age(r.frame) <= limit]
        assert not late, f"frames {late} were revised at {frame.index}, needs.revise is {limit}"
        return revisions


def _shape(read: MemoryRead) -> tuple:
    items = tuple((i.slot, i.gain, i.order, len(i.tokens)) for i in read.items)
    return items, tuple((p.offset, p.gain) for p in read.pointers)


def _assert_read(read: MemoryRead) -> None:
    slots = (None, PROMPT_SLOT, *range(micro_model().maskmem_tpos_enc.shape[0]))
    for item in read.items:
        assert item.slot in slots, f"read names slot {item.slot}; valid are {slots}"
        assert len(item.tokens) > 0, "read has an item without tokens"
        assert math.isfinite(item.gain) and item.gain > 0, f"read has a gain of {item.gain}"
    for pointer in read.pointers:
        assert math.isfinite(pointer.offset) and math.isfinite(pointer.gain), "a pointer has no finite age or gain"
        assert pointer.pointer.ndim == 1, f"a pointer has shape {tuple(pointer.pointer.shape)}"


def _assert_pick(pick: CandidateId, hypotheses: Hypotheses) -> None:
    pathways, candidates = hypotheses.masks.shape[:2]
    inside = 0 <= pick.pathway < pathways and 0 <= pick.candidate < candidates
    assert inside, f"chose {pick} out of {pathways} pathways and {candidates} candidates"


def _assert_usage(
    policy: MemoryPolicy, state: Any, frame: FrameContext, hypotheses: Hypotheses, reads: Sequence[MemoryRead]
) -> None:
    wanted = policy.usage_at(state, frame)
    if policy.needs.usage is Usage.NONE:
        assert hypotheses.usage is None, "usage came although needs.usage is NONE"
    if wanted is Usage.NONE:
        return
    assert hypotheses.usage is not None and len(hypotheses.usage) == len(reads), "the usage asked for did not come"
    for usage, read in zip(hypotheses.usage, reads):
        if wanted is Usage.TOKENS:
            _assert_token_usage(usage, read)
        else:
            assert tuple(usage.items.shape) == (TOKENS, len(read.items)), "usage by query has the wrong shape"


def _assert_token_usage(usage: ReadUsage, read: MemoryRead) -> None:
    lengths = [len(item.tokens) for item in read.items]
    assert usage.tokens is not None and [len(u) for u in usage.tokens] == lengths, "usage does not match the items read"
    mass = sum(u.sum().item() for u in usage.tokens)
    assert mass <= TOKENS * (1 + 1e-4), f"{TOKENS} queries gave a mass of {mass}"


# -- running ----------------------------------------------------------------------------------------------------------

Prompts = dict[int, list[Prompt]]
START: Prompts = {0: [mask_prompt(1)]}
PLAIN = 26


def play(policy: Any, frames: Iterable[int], prompts: Prompts, **options: Any) -> list[FrameResult]:
    """One pass over ``frames`` under a fresh tracker."""
    return go_on(_tracker(policy, **options), frames, prompts)


@lru_cache(maxsize=64)
def _plain_results(policy: MemoryPolicy, _model: SAM2) -> tuple[FrameResult, ...]:
    return tuple(play(policy, range(PLAIN), START))


def plain_run(policy: MemoryPolicy, frames: int = PLAIN) -> Sequence[FrameResult]:
    """One object over the first frames, as several checks compare with; equal policies share a run of a network."""
    try:
        hash(policy)
    except TypeError:
        return play(policy, range(frames), START)
    return _plain_results(policy, micro_model())[:frames]


def go_on(tracker: Tracker, frames: Iterable[int], prompts: Prompts, *, reverse: bool = False) -> list[FrameResult]:
    return run(tracker, [features_at(i) for i in frames], prompts, reverse=reverse)


def _tracker(policy: Any, *, model: SAM2 | None = None, **settings: Any) -> Tracker:
    """A tracker that keeps memory as it is computed: rounding to bfloat16 would turn 1e-7 into a step of 1e-3."""
    tracker = micro_tracker("fifo", model=model, memory_dtype="float32", **settings)
    return Tracker(tracker.model, policy, settings=tracker.settings)


def masks_of(results: Sequence[FrameResult], obj_id: int) -> Tensor:
    """(T, h, w) of the frames on which the object exists."""
    found = [r.masks[r.obj_ids.index(obj_id)] for r in results if obj_id in r.obj_ids]
    return torch.stack(found)


def seen(results: Sequence[FrameResult], obj_id: int) -> Tensor:
    """(T, h * w + 2): masks and scores; scores tell runs apart also while the object is absent and its mask empty."""
    scores = [(s.objectness, s.iou) for r in results for s in r.scores if s.obj_id == obj_id]
    return torch.cat([masks_of(results, obj_id).flatten(1), torch.tensor(scores)], dim=1)


def assert_close(a: Tensor, b: Tensor, what: str, advice: str) -> None:
    assert a.shape == b.shape, f"{what}: {tuple(a.shape)} and {tuple(b.shape)}"
    worst = (a - b).abs().max().item()
    assert worst <= TOLERANCE, f"{what}: logits differ by {worst:.3g}; {advice}"


NO_SHARING = (
    "what one object reads must depend on its own state alone: keep nothing on the policy, its class or its module"
)
BY_AGE = (
    "measure time with frame.age(), never by the difference or the order of frame numbers, and let slots depend on age, not "
    "on the order in which entries came"
)
PLAIN_STATE = "everything that a read depends on must be in the fields of the state"


# -- the promises -----------------------------------------------------------------------------------------------------


def check_frozen(policy: MemoryPolicy) -> None:
    """A policy is a frozen dataclass: equal settings are equal policies, and nothing can be set on it."""
    assert is_dataclass(policy), f"{type(policy).__name__} is not a dataclass"
    names = [f.name for f in fields(policy)] or ["anything"]
    try:
        setattr(policy, names[0], 1)
    except FrozenInstanceError:
        pass
    else:
        raise AssertionError(f"{type(policy).__name__} is not frozen")
    twin = type(policy)(**{f.name: copy.deepcopy(getattr(policy, f.name)) for f in fields(policy) if f.init})
    assert twin == policy, "two policies with equal fields are not equal"


def check_pure(policy: MemoryPolicy) -> None:
    """No verb changes what it is given, and none keeps anything outside the state it returns."""
    proxy = PureProxy(policy)
    kept = kept_outside_states(policy)
    prompts = {0: [mask_prompt(1), mask_prompt(2, number=1)], 9: [mask_prompt(2, 9, 1)]}
    settings = {"clear_non_cond_mem_around_input": True, "clear_non_cond_mem_for_multi_obj": True, "forget_radius": 3}
    tracker = _tracker(proxy, **settings)
    go_on(tracker, range(18), prompts)
    go_on(tracker, range(8, 3, -1), {}, reverse=True)
    for track in tracker.tracks.values():
        here = FrameContext(index=18, features=features_at(18))
        if isinstance(policy, Revising):
            proxy.finish(track.state)
        before = snapshot(track.state)
        track.state.can_resume(here)
        track.state.shift_frames(3)
        track.state.drop_tokens(12)
        changed = difference(before, snapshot(track.state))
        assert changed is None, f"a method of the state changed it: {changed}; return a new state (dataclasses.replace)"
        proxy.unprompt(track.state, 0)
    missing = {"prompt", "read", "choose", "write", "forget", "unprompt"} - set(proxy.calls)
    assert not missing, f"never called: {missing}"
    stored = difference(kept, kept_outside_states(policy))
    assert stored is None, f"a run kept something outside the states: {stored}"


def check_bounded(policy: MemoryPolicy) -> None:
    """500 frames and 45 corrections stay within the stated capacity, and what goes with the tokens does not grow."""
    capacity = policy.capacity(micro_model().tokens_per_map)
    assert capacity is not None, "capacity is None: a policy that is offered by name must be bounded; return a number"
    corrections = {i: [mask_prompt(1, i)] for i in range(60, 150, 2)}
    tracker = _tracker(policy)
    sizes = []
    for i in range(LONG):
        go_on(tracker, [i], {**START, **corrections})
        state = tracker.tracks[1].state
        held = tokens_in(state)
        assert held <= capacity, (
            f"{held} tokens on frame {i}, capacity is {capacity}; write must evict down to it (Bank.keep), prompts included"
        )
        stated = state.token_count()
        assert stated == held, (
            f"state.token_count() says {stated} on frame {i}, the state holds {held}; tokens outside prompts and entries must "
            "be counted: override all_entries or token_count of the state"
        )
        if i % 2 and (280 <= i < 360 or i >= LONG - 80):
            sizes.append((held, sum(1 for _ in leaves(state)), bytes_in(state)))
    early, late = (max(column) for column in zip(*sizes[:40])), (max(column) for column in zip(*sizes[40:]))
    (tokens, values, size), (later_tokens, later_values, later_size) = early, late
    filled = max(later_tokens / max(tokens, 1), 1.0)
    assert later_values <= values * 1.15 * filled, (
        f"{values} values in the state became {later_values}, tokens {tokens} -> {later_tokens}"
    )
    assert later_size <= size * 1.25 * filled, (
        f"{size} bytes in the state became {later_size}, tokens {tokens} -> {later_tokens}"
    )
    assert_finite(state)


def check_alone_as_in_batch(policy: MemoryPolicy) -> None:
    """Objects beside it, batched and padded with it, do not change an object's masks."""
    alone = play(policy, range(24), {0: [mask_prompt(2, number=1)]})
    beside = [mask_prompt(1), mask_prompt(2, number=1), mask_prompt(3, number=2)]
    together = play(policy, range(24), {0: beside}, max_padding=0.5)
    assert_close(seen(alone, 2), seen(together, 2), "alone and in a batch", NO_SHARING)


def check_late_objects(policy: MemoryPolicy) -> None:
    """An object that comes later is tracked as on its own and disturbs nobody; nor does one that is removed."""
    late = mask_prompt(2, 9, 1)
    tracker = _tracker(policy)
    both = go_on(tracker, range(18), {**START, 9: [late]})
    tracker.remove(2)
    both += go_on(tracker, range(18, 26), {})
    assert_close(seen(both, 1), seen(plain_run(policy), 1), "with and without a late object", NO_SHARING)
    assert_close(seen(both, 2), seen(play(policy, range(9, 18), {9: [late]}), 2), "late and on its own", NO_SHARING)


def check_prompt_midstream(policy: MemoryPolicy) -> None:
    """A correction is kept, counted once however often it is repeated, and changes what follows."""
    tracker = _tracker(policy)
    go_on(tracker, range(10), START)
    correction = {10: [mask_prompt(1, 10, 2)]}
    shown = go_on(tracker, [10], correction)[0]
    state = tracker.tracks[1].state
    assert shown.scores[0].prompted, "the correction was taken for a tracked frame; add it with state.add_prompt"
    prompted = [e.frame for e in state.all_entries() if e.is_prompt]
    assert sorted(prompted) == [0, 10], f"prompted frames in memory are {prompted}, prompts were given on 0 and 10"
    go_on(tracker, [10], correction)
    again = [e.frame for e in tracker.tracks[1].state.all_entries() if e.is_prompt]
    assert sorted(again) == [0, 10], f"prompted frames in memory are {again} after the same prompt twice"
    after = go_on(tracker, range(11, 24), {})
    plain = plain_run(policy, 24)[11:]
    moved = max(abs(a.scores[0].objectness - b.scores[0].objectness) for a, b in zip(after, plain))
    assert moved > 0.01, "a correction changed nothing on the frames after it; read state.prompts"
    assert_finite(tracker.tracks[1].state)


def check_reverse(policy: MemoryPolicy) -> None:
    """Time may run backwards: the same pictures with mirrored numbers give the same masks. A reverse pass after a
    forward one works too."""
    forward = plain_run(policy, 24)
    mirrored = [replace(features_at(i), index=FAR - i) for i in range(24)]
    backward = run(_tracker(policy), mirrored, {FAR: [mask_prompt(1)]}, reverse=True)
    assert_close(seen(forward, 1), seen(backward, 1), "forward and mirrored", BY_AGE)
    tracker = _tracker(policy)
    go_on(tracker, range(12, 30), {12: [mask_prompt(1, 12)]})
    results = go_on(tracker, range(11, -1, -1), {}, reverse=True)
    assert masks_of(results, 1).isfinite().all()
    assert_finite(tracker.tracks[1].state)


def _blind_model() -> SAM2:
    """A network that sees no object anywhere."""
    model = copy.deepcopy(micro_model())
    model.get_parameter(SCORE_BIAS).fill_(-1e4)
    return model


def check_absent_object(policy: MemoryPolicy) -> None:
    """An object that is gone for long, or was never there, leaves finite memory, and is found again by a prompt."""
    tracker = _tracker(policy, model=_blind_model())
    results = go_on(tracker, range(40), {0: [mask_prompt(1), empty_prompt(2)]})
    gone = torch.stack([masks_of(results, obj_id)[1:] for obj_id in (1, 2)])
    assert (gone == ABSENT_LOGIT).all(), "an object without a positive score has a mask"
    back = go_on(tracker, range(40, 46), {40: [mask_prompt(1, 40), mask_prompt(2, 40, 1)]})
    assert (back[0].masks > 0).flatten(1).any(1).all()
    for track in tracker.tracks.values():
        assert_finite(track.state)


def check_trackers_apart(policy: MemoryPolicy) -> None:
    """Two trackers that share the policy object do not meet."""
    mine, other = _tracker(policy), _tracker(policy)
    results = []
    for i in range(20):
        results += go_on(mine, [i], START)
        go_on(other, [100 + i], {100: [mask_prompt(1, 100, 2)]})
    assert_close(seen(results, 1), seen(plain_run(policy, 20), 1), "with and without another video", NO_SHARING)


def check_repeatable(policy: MemoryPolicy) -> None:
    """The same input gives the same masks, whatever the state of the global random generator."""
    runs = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            runs.append(seen(play(policy, range(24), START), 1))
    assert torch.equal(*runs), "two runs on the same frames differ; draw no random numbers"


def check_forget_and_unprompt(policy: MemoryPolicy) -> None:
    """``forget`` drops tracked memory around a frame and no prompt; ``unprompt`` turns a prompt into a tracked frame,
    and the last one into nothing."""
    tracker = _tracker(policy)
    go_on(tracker, range(18), {**START, 8: [mask_prompt(1, 8)]})
    state = tracker.tracks[1].state
    left = policy.forget(state, 15, 6).all_entries()
    close = [e.frame for e in left if abs(e.frame - 15) <= 6 and not e.is_prompt and e.tokens is not None]
    assert not close, (
        f"frames {close} are still held after forgetting 9 to 21; override forget of the state for entries in fields of its own"
    )
    assert {e.frame for e in left if e.is_prompt} == {0, 8}, "forget dropped a prompt"
    freed = policy.unprompt(state, 8)
    assert freed is not None and {e.frame for e in freed.all_entries() if e.is_prompt} == {0}, (
        "the prompt was not taken back"
    )
    assert policy.unprompt(freed, 0) is None, "a state without prompts is left"
    for changed in (policy.forget(state, 15, 6), freed):
        tracker.tracks[1].state = changed
        results = go_on(tracker, range(18, 24), {})
        assert masks_of(results, 1).isfinite().all()
        assert_finite(tracker.tracks[1].state)


def check_state_is_plain(policy: MemoryPolicy) -> None:
    """A state is plain tensors and numbers: copied, pickled or saved, it tracks on as the original does."""
    tracker = _tracker(policy)
    go_on(tracker, range(14), START)
    state = tracker.tracks[1].state
    held = snapshot(state)
    copies = {
        "copy": copy.deepcopy(state),
        "pickle": pickle.loads(pickle.dumps(state)),
        "file": _through_a_file(policy, state),
    }
    expected = seen(go_on(tracker, range(14, 20), {}), 1)
    for how, twin in copies.items():
        found = difference(held, snapshot(twin))
        assert found is None, f"{how}: {found} differs"
        tracker.tracks[1].state = twin
        assert_close(seen(go_on(tracker, range(14, 20), {}), 1), expected, f"original and {how}", PLAIN_STATE)


def _through_a_file(policy: MemoryPolicy, state: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.pt"
        save_memory(path, policy, state)
        return load_memory(path, policy)


def check_needs(policy: MemoryPolicy) -> None:
    """What passes between policy and tracker is what ``needs`` says, and fits together."""
    proxy = CheckedProxy(policy)
    tracker = _tracker(proxy)
    go_on(tracker, range(30), {**START, 5: [mask_prompt(2, 5, 1)], 20: [mask_prompt(1, 20)]})
    assert proxy.frames > 40
    if not policy.needs.revise:
        state, here = tracker.tracks[1].state, FrameContext(index=29, features=features_at(29))
        if isinstance(policy, Revising):
            assert not policy.revise(state, here) and not policy.finish(state), (
                "needs.revise is 0, but masks are revised"
            )


def check_byte_budget(policy: MemoryPolicy) -> None:
    """Under ``memory_bound=bytes`` the policy reads what is left of its memory: tokens may be given up at any time."""
    prompts = {**START, 9: [mask_prompt(1, 9, 2)], 14: [mask_prompt(1, 14, 1)]}
    tokens_per_map = micro_model().tokens_per_map
    budget = least_capacity(policy, tokens_per_map) + tokens_per_map // 2
    tracker = _tracker(Bounded(policy=policy, max_bytes=budget * 128))
    try:
        results = go_on(tracker, range(26), prompts) + go_on(tracker, range(20, 8, -1), {}, reverse=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise AssertionError(
            f"reading failed under a budget of bytes: {error}; read state.prompts and state.entries, whose tokens are never "
            "None, and state.pointers for frames of which only the pointer is left"
        ) from error
    assert masks_of(results, 1).isfinite().all()
    tokens = tokens_in(tracker.tracks[1].state)
    assert tokens <= budget, (
        f"{tokens} tokens are held, the budget is {budget}; state.drop_tokens(frame) must give up the tokens of a tracked "
        "frame wherever the state has them"
    )


CHECKS: tuple[Callable[[MemoryPolicy], None], ...] = (
    check_frozen,
    check_pure,
    check_bounded,
    check_alone_as_in_batch,
    check_late_objects,
    check_prompt_midstream,
    check_reverse,
    check_absent_object,
    check_trackers_apart,
    check_repeatable,
    check_forget_and_unprompt,
    check_state_is_plain,
    check_needs,
    check_byte_budget,
)
