"""The contract of memory policies on the tokens of other networks: EdgeTAM's, half of which have no place, and
EfficientTAM's, which are read as landmarks, and SAM 3's, whose cells have another size. Traces included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from micro import (
    ALL_ONLY,
    POLICIES,
    REPRESENTATIVE,
    features_at,
    mask_prompt,
    micro_model,
    micro_network,
    micro_tracker,
    one_thread,  # noqa: F401
    repeated,
    run,
)
from policy_contract import (
    check_alone_as_in_batch,
    check_bounded,
    check_byte_budget,
    check_late_objects,
    check_needs,
    check_prompt_midstream,
    check_pure,
    check_reverse,
    difference,
    memory_maps,
    snapshot,
)

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.trace import TraceRecord
from sam2_mem.types import MemoryTokens

NETWORKS = ("edgetam", "efficienttam", "sam3")
CHECKS = (
    check_pure,
    check_bounded,
    check_alone_as_in_batch,
    check_late_objects,
    check_prompt_midstream,
    check_reverse,
    check_needs,
    check_byte_budget,
)
QUICK = {("edgetam", check_needs, name) for name in ("fifo", "xmem", "distilled", "keyframe")}


OFTEN = {"efficienttam": (check_needs, check_reverse), "sam3": (check_needs,)}
"""What the full tier checks of a network, all where nothing is said."""

TIES = {("edgetam", check_alone_as_in_batch, "efp")}
"""It ranks maps by cosines, which here differ by less than a batch changes their rounding."""


@pytest.fixture(params=NETWORKS[:2])
def network(request: pytest.FixtureRequest) -> Iterator[str]:
    with micro_network(request.param):
        yield request.param


def cases() -> Iterator[Any]:
    for name, check, policy in product(NETWORKS, CHECKS, POLICIES):
        if (name, check, policy) in TIES or (name == "sam3" and check not in (check_needs, check_bounded)):
            continue  # SAM 3's tokens are those of SAM 2, of cells of another size
        often = policy in REPRESENTATIVE and check in OFTEN.get(name, CHECKS)
        slow = pytest.mark.full if often else ALL_ONLY
        marks = () if (name, check, policy) in QUICK else slow
        yield pytest.param(
            name, check, policy, id=f"{name}-{check.__name__.removeprefix('check_')}-{policy}", marks=marks
        )


@pytest.mark.parametrize(("name", "check", "policy"), cases())
def test_policy(name: str, check: Callable[[MemoryPolicy], None], policy: str) -> None:
    with micro_network(name):
        check(build_policy(policy))


class Listener:
    """Keeps what memory tells."""

    read_mass = True

    def __init__(self) -> None:
        self.records: list[TraceRecord] = []

    def on_change(self, record: TraceRecord) -> None:
        self.records.append(record)


@pytest.mark.full
@pytest.mark.parametrize("policy", repeated(POLICIES))
def test_listening_changes_nothing(network: str, policy: str) -> None:
    states = []
    for listener in (None, Listener()):
        tracker = micro_tracker(policy)
        tracker.listener = listener
        run(tracker, [features_at(i) for i in range(24)], {0: [mask_prompt(1)], 9: [mask_prompt(1, 9)]})
        states.append(snapshot(tracker.tracks[1].state))
    assert listener is not None and len(listener.records) > 20
    assert difference(*states) is None


# -- what is different ------------------------------------------------------------------------------------------------


def entries_of(policy: MemoryPolicy, frames: int) -> list[MemoryTokens]:
    tracker = micro_tracker("fifo")
    tracker = type(tracker)(tracker.model, policy, settings=tracker.settings)
    run(tracker, [features_at(i) for i in range(frames)], {0: [mask_prompt(1)]})
    return list(memory_maps(tracker.tracks[1].state).values())


def test_the_networks_are_what_they_stand_for() -> None:
    with micro_network("edgetam"):
        model = micro_model()
        tokens = entries_of(build_policy("fifo"), 3)
        assert model.tokens_per_map == 8 and all(len(t) == 8 for t in tokens)
        assert all(t.xy[:4].isnan().all() and t.xy[4:].isfinite().all() for t in tokens)
    with micro_network("efficienttam"):
        assert features_at(0).high is None and micro_model().tokens_per_map == 16
    assert features_at(0).high is not None and micro_model().tokens_per_map == 16


@pytest.mark.full
def test_sam3_has_cells_of_fourteen_pixels() -> None:
    with micro_network("sam3"):
        assert (micro_model().image_size, micro_model().grid, micro_model().mask_size) == (56, (4, 4), (16, 16))


def test_merging_takes_means_of_latents_by_number_and_of_windows_by_place() -> None:
    with micro_network("edgetam"):
        model = micro_model()
        first, second = entries_of(build_policy("fifo"), 4)[:2]
        distiller = model.memory_encoder.distiller
        (merged,) = distiller.merge_tubes([[first, second]], model.grid, 1)
        expected = (first.feat.float() + second.feat.float()) / 2
        torch.testing.assert_close(merged.feat, expected)
        assert merged.xy[:4].isnan().all()
        torch.testing.assert_close(merged.xy[4:], first.xy[4:])
        torch.testing.assert_close(merged.log_count, torch.full((8,), 2.0).log())
        turned = MemoryTokens(second.feat.roll(1, 0), second.pos, second.xy)
        (other,) = distiller.merge_tubes([[first, turned]], model.grid, 1)
        assert not torch.allclose(other.feat, expected), "control: another order is another mean"
        (coarse,) = distiller.merge_tubes([[first, second], [merged]], model.grid, 2)[:1]
        assert len(coarse) == 2 and coarse.log_count.exp().sum().item() == pytest.approx(16)
        torch.testing.assert_close(coarse.feat[0], expected[:4].mean(0))
        torch.testing.assert_close(coarse.feat[1], expected[4:].mean(0))
