"""The contract of memory policies, for every YAML file in configs/memory_policy. A new policy needs no change here."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from micro import ALL_ONLY, POLICIES, REPRESENTATIVE, one_thread  # noqa: F401
from omegaconf import OmegaConf
from policy_contract import (
    CHECKS,
    check_absent_object,
    check_alone_as_in_batch,
    check_bounded,
    check_byte_budget,
    check_forget_and_unprompt,
    check_frozen,
    check_late_objects,
    check_needs,
    check_prompt_midstream,
    check_pure,
    check_repeatable,
    check_reverse,
    check_state_is_plain,
    check_trackers_apart,
)

from sam2_mem.build_sam import build_policy
from sam2_mem.config import ConfigError, choice_config, config_dir, policy_names
from sam2_mem.memory.bank import Bank, put
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import MemoryPolicy, Needs
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    Revision,
    Usage,
)

NAMES = policy_names()


BASICS = (
    check_frozen,
    check_pure,
    check_prompt_midstream,
    check_reverse,
    check_forget_and_unprompt,
    check_needs,
    check_byte_budget,
)
"""What the quick tier checks of most policies, ``check_pure`` of representative ones; of FIFO and XMem it checks all."""

BRIEF = ("diverse", "efp", "hybrid", "learned", "sam3_select", "samite", "sentry", "sparse", "tamb", "template")
"""Of these the quick tier checks here what passes between policy and tracker; their own files hold them to their rules."""


def cases() -> Iterator[Any]:
    for check, name in product(CHECKS, NAMES):
        checks = (check_needs,) if name in BRIEF else BASICS
        basic = name in POLICIES and check in checks and (check is not check_pure or name in REPRESENTATIVE)
        quick = name in ("fifo", "xmem") or basic
        slow = pytest.mark.full if name in POLICIES else ALL_ONLY
        marks = () if quick else slow
        yield pytest.param(check, name, id=f"{check.__name__.removeprefix('check_')}-{name}", marks=marks)


@pytest.mark.parametrize(("check", "name"), cases())
def test_policy(name: str, check: Callable[[MemoryPolicy], None]) -> None:
    check(build_policy(name))


# -- the yaml ---------------------------------------------------------------------------------------------------------


def keys_and_fields(name_or_config: Any) -> tuple[set[str], set[str]]:
    config = name_or_config
    policy = build_policy(config)
    return set(config) - {"_target_"}, {f.name for f in fields(policy) if f.init}


@pytest.mark.parametrize("name", NAMES)
def test_yaml_and_dataclass_have_the_same_keys(name: str) -> None:
    keys, names = keys_and_fields(choice_config("memory_policy", name))
    assert keys == names


def test_every_yaml_is_found() -> None:
    files = list((config_dir() / "memory_policy").rglob("*.yaml"))
    assert len(files) == len(NAMES) > 0


def test_control_yaml_with_a_key_too_few_or_too_many() -> None:
    config = OmegaConf.load(config_dir() / "memory_policy" / f"{NAMES[0]}.yaml")
    shorter = config.copy()
    dropped = next(key for key in shorter if key != "_target_")
    del shorter[dropped]
    keys, names = keys_and_fields(shorter)
    assert names - keys == {dropped}
    with pytest.raises(ConfigError, match="no_such_field"):
        build_policy(OmegaConf.merge(config, {"no_such_field": 1}))


# -- controls: each is broken in one way, and caught for that --------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sound(FIFO):
    """The sound policy that the broken ones are made from."""

    max_prompts: int = 8


class Grows(Sound):
    def write(self, state: Bank, frame: FrameContext, *rest: Any) -> Bank:
        written = super().write(state, frame, *rest)
        return replace(written, entries=tuple(state.entries) + tuple(rest[-1]), pointers=())


class KeepsEveryPrompt(Sound):
    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        held = () if state is None else state.prompts
        return replace(super().prompt(state, frame, entry), prompts=put(held, entry))


@dataclass(frozen=True, eq=False)
class Diary(Bank):
    """A state with room for things that should not be there."""

    notes: Any = ()


class WithDiary(Sound):
    """Keeps a diary of nothing."""

    first: ClassVar[Callable[[], Any]] = tuple

    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Diary:
        bank = super().prompt(state, frame, entry)
        return self.diary(bank, self.first() if state is None else state.notes)

    def write(self, state: Diary, frame: FrameContext, *rest: Any) -> Diary:
        bank = super().write(state, frame, *rest)
        return self.diary(bank, self.noted(state, frame, rest[-1]))

    def diary(self, bank: Bank, notes: Any) -> Diary:
        return Diary(bank.prompts, bank.entries, bank.pointers, notes=notes)

    def noted(self, state: Diary, frame: FrameContext, entries: Sequence[MemoryEntry]) -> Any:
        return state.notes


class LeaksNumbers(WithDiary):
    def noted(self, state: Diary, frame: FrameContext, entries: Sequence[MemoryEntry]) -> Any:
        return (*state.notes, frame.index)


class LeaksBytes(WithDiary):
    first = lambda self: torch.zeros(0)  # noqa: E731

    def noted(self, state: Diary, frame: FrameContext, entries: Sequence[MemoryEntry]) -> Any:
        return torch.cat([state.notes, torch.zeros(200)])


class HidesTokens(WithDiary):
    def noted(self, state: Diary, frame: FrameContext, entries: Sequence[MemoryEntry]) -> Any:
        return (*state.notes, *(e.tokens for e in entries))[-20:]


class Unbounded(Sound):
    def capacity(self, tokens_per_map: int) -> int | None:
        return None


class ReadWritesAList(WithDiary):
    first = list

    def read(self, state: Diary, frame: FrameContext) -> Sequence[MemoryRead]:
        state.notes.append(frame.index)
        return super().read(state, frame)


class ReadScalesATensor(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        state.prompts[0].pointer.mul_(1.01)
        return super().read(state, frame)


class ChooseWritesAList(WithDiary):
    first = list

    def choose(self, state: Diary, *rest: Any) -> MaskSelection:
        state.notes.append(1)
        return super().choose(state, *rest)


class WriteChangesTheOldState(WithDiary):
    first = list

    def noted(self, state: Diary, frame: FrameContext, entries: Sequence[MemoryEntry]) -> Any:
        state.notes.append(frame.index)
        return state.notes


class KeepsOnItself(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        object.__setattr__(self, "last", frame.index)
        return super().read(state, frame)


class SharesThroughItsClass(Sound):
    """Also reads the prompt of whichever object came before."""

    last: ClassVar[list[Any]] = []

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        (read,) = super().read(state, frame)
        others = tuple(self.last)
        self.last[:] = [ReadItem(state.prompts[0].tokens, PROMPT_SLOT)]
        return (replace(read, items=(*read.items, *others)),)


class NeedsNoCorrections(Sound):
    """Takes corrections for tracked frames."""

    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        if state is None:
            return super().prompt(state, frame, entry)
        return replace(state, entries=put(state.entries, entry.as_tracked()))


class NeverReadsCorrections(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        return super().read(replace(state, prompts=state.prompts[:1], entries=(), pointers=()), frame)


class AppendsCorrections(Sound):
    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        bank = Bank() if state is None else state
        return replace(bank, prompts=(*bank.prompts, entry))


class OnlyForward(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        return super().read(state, replace(frame, reverse=False))


class DividesByTheArea(Sound):
    def write(self, state: Bank, frame: FrameContext, hypotheses: Any, selection: MaskSelection, entries: Any) -> Bank:
        mean = [replace(e, pointer=e.pointer * torch.tensor(e.area) / torch.tensor(e.area)) for e in entries]
        return super().write(state, frame, hypotheses, selection, mean)


class RollsDice(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        (read,) = super().read(state, frame)
        gain = 0.5 + torch.rand(()).item()
        return (replace(read, items=tuple(replace(i, gain=gain) for i in read.items)),)


class NeverForgets(Sound):
    def forget(self, state: Bank, frame: int, radius: int) -> Bank:
        return state


class ForgetsPrompts(Sound):
    def forget(self, state: Bank, frame: int, radius: int) -> Bank:
        return Bank(prompts=state.prompts[:1])


class KeepsTakenBackPrompts(Sound):
    def unprompt(self, state: Bank, frame: int) -> Bank | None:
        return state


class KeepsALambda(WithDiary):
    first = lambda self: lambda: 0  # noqa: E731


class KeepsAGenerator(WithDiary):
    first = lambda self: random.Random(0)  # noqa: E731


@dataclass(kw_only=True, unsafe_hash=True)
class Thawed:
    """Not a policy: a frozen base forbids a thawed child, so a thawed policy would have to come without it."""

    size: int = 1


class AsksForUsageUndeclared(Sound):
    def usage_at(self, state: Bank, frame: FrameContext) -> Usage:
        return Usage.TOKENS


class ReadsNothing(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        return ()


class PicksBesideTheList(Sound):
    def choose(self, state: Bank, frame: FrameContext, hypotheses: Any) -> MaskSelection:
        return MaskSelection(output=CandidateId(0, 3), remember=())


class ReadsAnUnknownSlot(Sound):
    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        return (MemoryRead(items=(ReadItem(state.prompts[0].tokens, 9),)),)


class RevisesUndeclared(Sound):
    def revise(self, state: Bank, frame: FrameContext) -> Sequence[Revision]:
        return ()

    def finish(self, state: Bank) -> Sequence[Revision]:
        return (Revision(0, torch.zeros(16, 16), 1.0, 1.0),)


class RevisesTheDistantPast(Sound):
    @property
    def needs(self) -> Needs:
        return Needs(revise=2)

    def revise(self, state: Bank, frame: FrameContext) -> Sequence[Revision]:
        return (Revision(0, torch.zeros(16, 16), 1.0, 1.0),)

    def finish(self, state: Bank) -> Sequence[Revision]:
        return ()


class ReadsWhatIsGone(Sound):
    """Expects every frame it once held in the order in which it wrote them."""

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        (read,) = super().read(state, frame)
        tracked = [*state.entries, *state.pointers]
        return (replace(read, items=(*read.items, *(ReadItem(e.tokens, 5) for e in tracked[-1:]))),)


@dataclass(frozen=True, eq=False)
class HoldsOnBank(Bank):
    def drop_tokens(self, frame: int) -> HoldsOnBank:
        return self


class HoldsOn(Sound):
    """Does not give up tokens when asked to."""

    def new_state(self, frame: FrameContext) -> HoldsOnBank:
        return HoldsOnBank()


CONTROLS = [
    (check_frozen, Thawed, "not frozen"),
    (check_pure, ReadWritesAList, "read changed its arguments"),
    (check_pure, ReadScalesATensor, "read changed its arguments"),
    (check_pure, ChooseWritesAList, "choose changed its arguments"),
    (check_pure, WriteChangesTheOldState, "write changed its arguments"),
    (check_pure, KeepsOnItself, "read kept something outside the state"),
    (check_pure, SharesThroughItsClass, "read kept something outside the state: class SharesThroughItsClass"),
    (check_bounded, Grows, "capacity is"),
    (check_bounded, KeepsEveryPrompt, "capacity is"),
    (check_bounded, LeaksNumbers, "values in the state became"),
    (check_bounded, LeaksBytes, "bytes in the state became"),
    (check_bounded, HidesTokens, r"token_count\(\) says"),
    (check_bounded, Unbounded, "must be bounded"),
    (check_alone_as_in_batch, SharesThroughItsClass, "alone and in a batch"),
    (check_late_objects, SharesThroughItsClass, "late"),
    (check_prompt_midstream, NeedsNoCorrections, "taken for a tracked frame"),
    (check_prompt_midstream, NeverReadsCorrections, "changed nothing"),
    (check_prompt_midstream, AppendsCorrections, r"\[0, 10, 10\] after the same prompt twice"),
    (check_reverse, OnlyForward, "forward and mirrored"),
    (check_absent_object, DividesByTheArea, "not finite"),
    (check_trackers_apart, SharesThroughItsClass, "another video"),
    (check_repeatable, RollsDice, "two runs on the same frames differ"),
    (check_forget_and_unprompt, NeverForgets, "still held after forgetting"),
    (check_forget_and_unprompt, ForgetsPrompts, "forget dropped a prompt"),
    (check_forget_and_unprompt, KeepsTakenBackPrompts, "not taken back"),
    (check_state_is_plain, KeepsALambda, "is a function; a state is made of plain"),
    (check_state_is_plain, KeepsAGenerator, "is a Random; a state is made of plain"),
    (check_needs, AsksForUsageUndeclared, "needs.usage declares"),
    (check_needs, ReadsNothing, "no pathway"),
    (check_needs, PicksBesideTheList, "chose CandidateId"),
    (check_needs, ReadsAnUnknownSlot, "slot 9"),
    (check_needs, RollsDice, "two reads of one state differ"),
    (check_needs, RevisesUndeclared, "needs.revise is 0"),
    (check_needs, RevisesTheDistantPast, "needs.revise is 2"),
    (check_byte_budget, ReadsWhatIsGone, "reading failed under a budget of bytes: .*got None"),
]


@pytest.mark.parametrize(
    ("check", "broken", "reason"),
    [
        pytest.param(*control, marks=pytest.mark.full) if control[1] in (LeaksNumbers, LeaksBytes) else control
        for control in CONTROLS  # these two run to the end
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__.removeprefix("check_"),
)
def test_control_broken_policies_are_caught(check: Callable[[Any], None], broken: type, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check(broken())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.full
def test_control_the_sound_policy_passes(check: Callable[[MemoryPolicy], None]) -> None:
    check(Sound())


def test_every_check_has_a_control() -> None:
    assert {check for check, _, _ in CONTROLS} == set(CHECKS)
