"""Any policy within a budget of bytes."""

from __future__ import annotations

from pathlib import Path

import micro
import pytest
import torch
from micro import (  # noqa: F401
    POLICIES,
    REPRESENTATIVE,
    TOKENS,
    features_at,
    in_tiers,
    mask_prompt,
    micro_tracker,
    one_thread,
    repeated,
    run,
)
from policy_contract import CHECKS, check_bounded, tokens_in

from sam2_mem.build_sam import build_policy, build_sam2_video_predictor
from sam2_mem.config import ConfigError, compose
from sam2_mem.memory import bounded as bounded_module
from sam2_mem.memory.bounded import Bounded, PolicyWrapper, least_capacity
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policies.sam2long import SAM2Long
from sam2_mem.memory.policies.xmem import XMem
from sam2_mem.memory.policy import Explains, HasSensory, MemoryPolicy, Merging, Revising
from sam2_mem.memory.serialization import load_memory, save_memory

PROMPTS = {0: [mask_prompt(1)], 9: [mask_prompt(1, 9, 2)], 14: [mask_prompt(1, 14, 1)]}


def bounded(policy: MemoryPolicy, maps: float) -> Bounded:
    """A budget of so many maps of the micro network."""
    return Bounded(policy=policy, max_bytes=int(maps * TOKENS * 128))


def tokens_by_frame(policy: MemoryPolicy, frames: int) -> list[int]:
    tracker, counts = micro_tracker(policy), []
    for i in range(frames):
        run(tracker, [features_at(i)], PROMPTS)
        counts.append(tokens_in(tracker.tracks[1].state))
    return counts


def most_held(policy: MemoryPolicy) -> int:
    return max(tokens_by_frame(policy, 60))


@pytest.mark.parametrize("name", in_tiers(POLICIES, REPRESENTATIVE, ()))
def test_no_policy_exceeds_the_least_budget(name: str) -> None:
    policy = build_policy(name)
    least = least_capacity(policy, TOKENS)
    tight = Bounded(policy=policy, max_bytes=least * 128)
    assert tight.capacity(TOKENS) == least
    assert 0 < most_held(tight) <= least < most_held(policy), "without the bound it must hold more"


@pytest.mark.full
@pytest.mark.parametrize("name", repeated(POLICIES))
def test_the_contract_holds_under_a_budget(name: str) -> None:
    for check in CHECKS:
        if check is not check_bounded:
            check(bounded(build_policy(name), 6.5))


@pytest.mark.full
@pytest.mark.parametrize("name", ["fifo", "sam2long", "xmem"])
def test_a_long_video_stays_within_a_budget(name: str) -> None:
    check_bounded(bounded(build_policy(name), 6.5))


@pytest.mark.parametrize(
    "name",
    in_tiers(
        ("diverse", "efp", "hybrid", "learned", "sam3_select", "samite", "sparse", "sparse_counts", "tamb"),
        quick=(),
        full=("diverse",),
    ),
)
def test_a_thousand_frames_stay_within_capacity(name: str) -> None:
    policy = build_policy(name)
    counts = tokens_by_frame(policy, 1000)
    assert max(counts[:500]) == max(counts) <= policy.capacity(TOKENS), "full long before the end"


def test_control_a_bound_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_module, "fit", lambda policy, state, frame, max_tokens: state)
    with pytest.raises(AssertionError, match="capacity is"):
        check_bounded(bounded(FIFO(), 4))


@pytest.mark.parametrize("name", in_tiers(POLICIES, REPRESENTATIVE, ()))
def test_a_budget_never_reached_changes_nothing(name: str) -> None:
    policy = build_policy(name)
    plain, wide, tight = (
        torch.stack([r.masks for r in run(micro_tracker(p), [features_at(t) for t in range(30)], PROMPTS)])
        for p in (policy, bounded(policy, 500), Bounded(policy=policy, max_bytes=least_capacity(policy, TOKENS) * 128))
    )
    assert torch.equal(plain, wide)
    assert (plain - tight).abs().max() > 1e-3, "a tight budget must show"


def test_the_farthest_frame_goes_first_and_its_pointer_stays() -> None:
    policy = bounded(FIFO(), 4)
    tracker = micro_tracker(policy)
    run(tracker, [features_at(t) for t in range(12)], {0: [mask_prompt(1)]})
    state = tracker.tracks[1].state
    assert [e.frame for e in state.all_entries() if e.tokens is not None] == [0, 9, 10, 11]
    assert sorted(e.frame for e in state.all_entries()) == list(range(12)), "pointers cost little and stay"
    back = bounded(FIFO(), 4)
    tracker = micro_tracker(back)
    run(tracker, [features_at(t) for t in range(30, 18, -1)], {30: [mask_prompt(1, 30)]}, reverse=True)
    assert [e.frame for e in tracker.tracks[1].state.all_entries() if e.tokens is not None] == [30, 19, 20, 21]


def test_prompts_go_last_and_the_first_stays() -> None:
    policy = bounded(FIFO(), 3)
    tracker = micro_tracker(policy)
    run(tracker, [features_at(t) for t in range(20)], PROMPTS)
    whole = [(e.frame, e.is_prompt) for e in tracker.tracks[1].state.all_entries() if e.tokens is not None]
    assert whole == [(0, True), (14, True), (19, False)], "of the prompts the oldest but the first left"


def test_pathways_and_prototypes_count() -> None:
    assert least_capacity(SAM2Long(), TOKENS) == 4 * TOKENS
    policy = Bounded(policy=XMem(max_working=4, min_working=2, num_prototypes=32), max_bytes=(2 * TOKENS + 40) * 128)
    tracker = micro_tracker(policy)
    sizes = set()
    for i in range(60):
        run(tracker, [features_at(i)], {0: [mask_prompt(1)]})
        state = tracker.tracks[1].state
        sizes.add(0 if state.long_term is None else len(state.long_term))
        assert tokens_in(state) <= policy.capacity(TOKENS)
    assert max(sizes) <= 40


def test_from_a_config(tmp_path: Path) -> None:
    def built(*overrides: str, **kwargs: object):
        config = compose(micro.micro_config(), overrides)
        return build_sam2_video_predictor(config, "random", device="cpu", apply_postprocessing=False, **kwargs).policy

    made = built("memory_policy=rmem", "memory_bound=bytes", "memory_bound.max_bytes=9999")
    assert made == Bounded(policy=build_policy("rmem"), max_bytes=9999)
    assert built("memory_bound=bytes", memory_policy="xmem").policy == XMem()
    assert built("memory_policy=rmem") == build_policy("rmem")
    assert compose("sam2.1_hiera_t", ["memory_bound=bytes"]).memory_bound.max_bytes == 2 * 2**20
    with pytest.raises(ConfigError, match="expected a bound on memory out of bytes, none, tokens, got 'kilo'"):
        compose("sam2.1_hiera_t", ["memory_bound=kilo"])
    with pytest.raises(ConfigError, match="expected max_bytes >= 1, got 0"):
        built("memory_bound=bytes", "memory_bound.max_bytes=0")


def test_too_small_a_budget_is_refused_at_the_first_prompt() -> None:
    with pytest.raises(ValueError, match=f"expected max_bytes >= {2 * TOKENS * 128} for FIFO"):
        run(micro_tracker(bounded(FIFO(), 1.9)), [features_at(0)], {0: [mask_prompt(1)]})
    with pytest.raises(ValueError, match="expected a MemoryPolicy to bound, got str"):
        Bounded(policy="fifo", max_bytes=1)


def test_memory_is_of_the_policy_inside(tmp_path: Path) -> None:
    """What was saved under a budget can be loaded without one, and the other way round."""
    policy = bounded(FIFO(), 3)
    tracker = micro_tracker(policy)
    run(tracker, [features_at(t) for t in range(6)], {0: [mask_prompt(1)]})
    state = tracker.tracks[1].state
    save_memory(tmp_path / "m.pt", policy, state)
    again = load_memory(tmp_path / "m.pt", FIFO())
    assert [e.frame for e in again.all_entries()] == [e.frame for e in state.all_entries()]
    assert policy.unwrapped == FIFO()


def test_every_method_of_a_policy_reaches_the_inner_one() -> None:
    methods = {n for n, v in vars(MemoryPolicy).items() if callable(v) or isinstance(v, property)}
    methods |= {
        n for ability in (Merging, Revising, HasSensory, Explains) for n, v in vars(ability).items() if callable(v)
    }
    methods = {n for n in methods if not n.startswith("_")} - {"new_state"}  # which only a policy's own prompt calls
    assert {"revise", "forget", "take_merged", "needs", "entry_infos"} <= methods
    assert not methods - {*vars(PolicyWrapper), *vars(Bounded)}, (
        "a method that is not passed on would be that of the base"
    )
