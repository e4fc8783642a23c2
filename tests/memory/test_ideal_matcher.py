"""What each policy's memory is worth to a matcher that never errs: see ``ideal_matcher.py``."""

from __future__ import annotations

from dataclasses import replace

import ideal_matcher
import pytest
from ideal_matcher import Scenario, cut, jaccard_after_return, revisit, with_lookalike
from micro import POLICIES, one_thread, repeated  # noqa: F401

from sam2_mem.build_sam import build_policy
from sam2_mem.config import choice_config, policy_names

RECENT_ALONE, VISIBLE_ALONE, EVERYTHING = (0, 0, 0), (1, 0, 1), (1, 1, 1)
MISLED = (1, 0, 0)  # what looks alike stands where the object is expected
EXPECTED = {
    "fifo": RECENT_ALONE,
    "rmem": RECENT_ALONE,
    "efp": RECENT_ALONE,
    "learned": RECENT_ALONE,
    "rmem_visible": VISIBLE_ALONE,
    "sam2long": VISIBLE_ALONE,
    "dam4sam": VISIBLE_ALONE,
    "hq_smem": VISIBLE_ALONE,
    "distilled": VISIBLE_ALONE,
    "diverse": VISIBLE_ALONE,
    "sam3_select": VISIBLE_ALONE,
    "sparse": VISIBLE_ALONE,
    "samite": VISIBLE_ALONE,
    "tamb": VISIBLE_ALONE,
    "samurai": MISLED,
    "hybrid": MISLED,
    "keyframe": EVERYTHING,
    "xmem": EVERYTHING,
    "sentry": RECENT_ALONE,
    "template": RECENT_ALONE,
}
"""J after the return: of ``cut``, ``revisit``, ``with_lookalike``. Variants of a policy, as rmem_paper, do as it does unless they
are listed."""
MARGIN = 0.05
SCENARIOS = (cut, revisit, with_lookalike)
FULL_TIER = [
    pytest.param(*getattr(p, "values", (p,)), marks=[*getattr(p, "marks", ()), pytest.mark.full])
    for p in repeated(policy_names())
]


def recovery(name: str, scenario: Scenario, **changes: object) -> float:
    return jaccard_after_return(replace(build_policy(name), **changes), scenario)


def test_every_policy_is_listed() -> None:
    assert set(EXPECTED) >= set(POLICIES), "a new policy states what it recovers"


@pytest.mark.parametrize("name", FULL_TIER)
def test_what_is_recovered(name: str) -> None:
    expected = EXPECTED[max((base for base in EXPECTED if name.startswith(base)), key=len)]
    measured = [recovery(name, scenario()) for scenario in SCENARIOS]
    assert measured == pytest.approx(expected, abs=MARGIN)


@pytest.mark.full
def test_rules_of_anchors_beside_fifo() -> None:
    for rule, expected in {"none": 0, "dam": 0, "diverse": 1, "keyframe": 1, "scene": 0}.items():
        config = choice_config("memory_policy", "hybrid")
        config.update(short="fifo", long=rule)
        assert jaccard_after_return(build_policy(config), cut()) == pytest.approx(expected, abs=MARGIN), rule


def test_it_is_the_absence_that_costs_fifo_the_object() -> None:
    assert recovery("fifo", cut(away=0)) == 1
    assert recovery("fifo", cut(away=20)) == 0


def test_control_nothing_is_recovered_that_no_token_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recovery("keyframe", cut()) == 1
    monkeypatch.setattr(ideal_matcher, "ALIKE", 1.01)
    assert recovery("keyframe", cut()) == 0


def test_control_a_policy_that_forgets_what_it_should_keep_is_noticed() -> None:
    assert recovery("keyframe", revisit(), max_compact=0, max_whole=0) < 1 - MARGIN
