"""docs/policies.md says what is true: fields with their defaults, bounds, reads, identity settings; its example runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from micro import (
    POLICIES,
    TOKENS,
    features_at,
    in_tiers,
    mask_prompt,
    micro_model,
    micro_tracker,
    one_thread,  # noqa: F401
    picture,
    run,
)
from omegaconf import OmegaConf
from policy_contract import CHECKS

from sam2_mem.build_sam import build_policy
from sam2_mem.config import choice_config, compose, policy_names
from sam2_mem.evaluation.benchmark.policy_costs import BenchmarkClip, Setting, count_memory
from sam2_mem.memory.policy import MemoryPolicy

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "policies.md").read_text()
NAMES = policy_names()


def section(title: str, page: str = PAGE) -> str:
    """Text below a heading, to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^## |^### |\Z)", page, re.M | re.S)
    assert found, f"docs/policies.md has no section '{title}'"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Cells of table rows that begin with a name in backticks."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]


def code(cell: str) -> str:
    """What stands between the first backticks, '' if nothing does."""
    found = re.search(r"`([^`]*)`", cell)
    return found[1] if found else ""


def settings(text: str) -> dict[str, Any]:
    """``a=1, b=x`` as keywords."""
    return {k: yaml.safe_load(v) for k, _, v in (part.partition("=") for part in re.split(r",\s+", text) if part)}


def wrong_fields(title: str, defaults: dict[str, Any], page: str = PAGE) -> list[str]:
    """Fields that a section lacks, has too many, or gives another default."""
    told = {code(row[0]): yaml.safe_load(code(row[1])) for row in rows(section(title, page))}
    missing = [name for name in defaults if name not in told]
    unknown = [name for name in told if name not in defaults]
    other = [n for n in defaults if n in told and not same(told[n], defaults[n])]
    return missing + unknown + other


def same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def defaults_of(kind: type) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind) if f.init}


def stated_defaults(name: str) -> dict[str, Any]:
    """Defaults of a policy's fields; of parts, which its class leaves open, those of its file."""
    given, file = defaults_of(type(build_policy(name))), file_of("memory_policy", name)
    return {k: file[k] if v is MISSING else v for k, v in given.items()}


def file_of(group: str, name: str) -> dict[str, Any]:
    values = OmegaConf.to_container(choice_config(group, name))
    return {k: v for k, v in values.items() if k != "_target_"}


# -- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_every_field_is_there_with_its_default(name: str) -> None:
    assert wrong_fields(name, stated_defaults(name)) == []
    assert f"[{name}](#{name})" in PAGE, "the first table leads to every section"


@pytest.mark.parametrize(
    ("title", "group", "name"),
    [
        ("A budget of bytes", "memory_bound", "bytes"),
        ("A budget of bytes, kept by tokens", "memory_bound", "tokens"),
        ("dam", "memory_anchor", "dam"),
        ("diverse frames", "memory_anchor", "diverse"),
        ("significant frames", "memory_anchor", "keyframe"),
        ("new scenes", "memory_anchor", "scene"),
        ("Mask refinement", "refiner", "hq"),
        ("Appearance of another network", "embedder", "dino"),
    ],
)
def test_companions(title: str, group: str, name: str) -> None:
    assert wrong_fields(title, file_of(group, name)) == []


def test_control_what_rots_is_found() -> None:
    fifo = defaults_of(type(build_policy("fifo")))
    assert wrong_fields("fifo", fifo | {"max_prompts": 33}) == ["max_prompts"]
    assert wrong_fields("fifo", fifo | {"retain_all": 0}) == ["retain_all"]
    assert wrong_fields("fifo", fifo | {"new": 1}) == ["new"]
    assert wrong_fields("fifo", {k: v for k, v in fifo.items() if k != "retain_all"}) == ["retain_all"]
    with pytest.raises(AssertionError, match="no section 'lifo'"):
        section("lifo")


# -- presets ----------------------------------------------------------------------------------------------------------


@lru_cache
def presets() -> dict[str, list[str]]:
    return {code(row[0]): row[1:] for row in rows(PAGE) if len(row) == 5}


def test_every_yaml_is_listed() -> None:
    assert sorted(presets()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_a_preset_changes(name: str) -> None:
    defaults = stated_defaults(name)
    changed = {k: v for k, v in file_of("memory_policy", name).items() if v != defaults[k]}
    assert settings(code(presets()[name][0])) == changed


def value(expression: str, tokens: int) -> int:
    return eval(expression, {"__builtins__": {}}, {"T": tokens, "min": min, "max": max})  # our own page


@pytest.mark.parametrize("name", NAMES)
def test_bounds(name: str) -> None:
    sizes, expression = (16, 1024, 4096), code(presets()[name][1])
    assert [value(expression, t) for t in sizes] == [build_policy(name).capacity(t) for t in sizes]


@lru_cache
def most_read(name: str) -> int:
    clip = BenchmarkClip(picture=picture, num_frames=40, prompts=(mask_prompt(1),))
    return int(max(count_memory(Setting(model=micro_model()), build_policy(name), clip).tokens_read))


@pytest.mark.parametrize("name", in_tiers(NAMES, POLICIES))
@pytest.mark.full
def test_reads(name: str) -> None:
    assert 2 * TOKENS <= most_read(name) <= value(code(presets()[name][2]), TOKENS)


def test_control_the_bound_on_reads_is_met() -> None:
    assert most_read("fifo") == value(code(presets()["fifo"][2]), TOKENS)
    assert most_read("rmem_code") > value(code(presets()["rmem"][2]), TOKENS)


# -- identity ---------------------------------------------------------------------------------------------------------


def logits(policy: MemoryPolicy) -> torch.Tensor:
    prompts = {0: [mask_prompt(1), mask_prompt(2, 0, 1)]}
    return torch.stack([r.masks for r in run(micro_tracker(policy), [features_at(t) for t in range(25)], prompts)])


def as_fifo(name: str) -> MemoryPolicy:
    found = re.search(r"^Is FIFO with: (`[^`]*`)", section(name), re.M)
    assert found, f"the section '{name}' does not say when it is FIFO"
    config = choice_config("memory_policy", name)
    config.update(settings(code(found[1])))
    return build_policy(config)


@pytest.fixture(scope="module")
def logits_of_fifo() -> torch.Tensor:
    return logits(build_policy("fifo"))


HELD_TO_FIFO = ("dam4sam", "distilled", "hq_smem", "keyframe", "rmem", "sam2long", "samurai")
"""Policies whose own files compare them with FIFO, which suffices before a commit."""


@pytest.mark.parametrize("name", in_tiers(POLICIES, set(POLICIES) - set(HELD_TO_FIFO)))
def test_identity_settings(name: str, logits_of_fifo: torch.Tensor) -> None:
    assert (logits(as_fifo(name)) - logits_of_fifo).abs().max() < 1e-5


def test_control_other_settings_differ(logits_of_fifo: torch.Tensor) -> None:
    assert (logits(build_policy("keyframe")) - logits_of_fifo).abs().max() > 1e-2


EARLIER_EXAMPLE = """
'''Prompts, the previous frame, and the latest few of every n-th frame.'''

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sam2_mem.memory.policy import Bank, MemoryPolicy, drop, put
from sam2_mem.memory.windows import add_prompt, pointer_window, rank_slots
from sam2_mem.types import PROMPT_SLOT, Choice, FrameContext, Hypotheses, MemoryEntry, MemoryRead, ReadItem


@dataclass(frozen=True, kw_only=True)
class EveryNth(MemoryPolicy[Bank]):
    '''Attributes: n: frames between two that are kept. most: of those, how many. max_prompts: most prompts held.'''

    n: int = 10
    most: int = 5
    max_prompts: int = 32

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("most", 0), ("max_prompts", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)}")

    def capacity(self, tokens_per_map: int) -> int:
        return tokens_per_map * (self.max_prompts + self.most + 1)

    def prompt(self, state: Bank | None, frame: FrameContext, entry: MemoryEntry) -> Bank:
        state = Bank() if state is None else state
        return Bank(add_prompt(state.prompts, entry, self.max_prompts), drop(state.entries, entry.frame))

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        others = sorted((e for e in state.entries if e.frame != frame.index), key=lambda e: abs(frame.age(e.frame)))
        old = [e for e in others if frame.age(e.frame) != 1]
        items = [ReadItem(e.tokens, PROMPT_SLOT) for e in state.prompts]
        items += [ReadItem(e.tokens, slot) for e, slot in zip(old, rank_slots(len(old)))]
        items += [ReadItem(e.tokens, 0) for e in others if e not in old]
        pointers = pointer_window(state.prompts, {e.frame: e for e in others}, frame)
        return (MemoryRead(tuple(items), tuple(pointers)),)

    def write(
        self, state: Bank, frame: FrameContext, hypotheses: Hypotheses, choice: Choice, entries: Sequence[MemoryEntry]
    ) -> Bank:
        kept = [e for e in state.entries if e.frame % self.n == 0 and e.frame != frame.index]
        kept.sort(key=lambda e: abs(frame.age(e.frame)))
        return Bank(state.prompts, put(tuple(kept[: self.most]), *entries))
"""

# -- the example ------------------------------------------------------------------------------------------------------


def example(path: str) -> str:
    """The code block of the page that begins with the name of a file."""
    found = re.search(rf"^```\w+\n# {re.escape(path)}\n(.*?)^```", PAGE, re.M | re.S)
    assert found, f"docs/policies.md has no code block '# {path}'"
    return found[1]


class Example(NamedTuple):
    """A policy of the page: its module, as a reader would write it, and its class."""

    name: str
    policy: type[MemoryPolicy]

    def from_yaml(self) -> MemoryPolicy:
        return build_policy(OmegaConf.create(example(f"configs/memory_policy/{self.name}.yaml")))


@pytest.fixture(scope="module", params=in_tiers(["confident:Confident", "every_nth:EveryNth"], ["confident:Confident"]))
def written(request: pytest.FixtureRequest) -> Iterator[Example]:
    name, _, kind = request.param.partition(":")
    module_name = f"sam2_mem.memory.policies.{name}"
    module = ModuleType(module_name)
    sys.modules[module_name] = module
    exec(compile(example(f"sam2_mem/memory/policies/{name}.py"), "docs/policies.md", "exec"), vars(module))
    yield Example(name, getattr(module, kind))
    del sys.modules[module_name]


def test_example_is_built_from_its_yaml(written: Example) -> None:
    assert written.from_yaml() == written.policy()
    keys = set(OmegaConf.create(example(f"configs/memory_policy/{written.name}.yaml"))) - {"_target_"}
    assert keys == set(defaults_of(written.policy))


def test_example_test_passes(written: Example) -> None:
    space: dict[str, Any] = {}
    exec(compile(example(f"tests/memory/test_policy_{written.name}.py"), "docs/policies.md", "exec"), space)
    tests = [v for k, v in space.items() if k.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


def name_of(check: Any) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize(
    "check", in_tiers(CHECKS, [check for check in CHECKS if name_of(check) != "bounded"]), ids=name_of
)
def test_example_keeps_the_contract(written: Example, check: Any) -> None:
    check(written.from_yaml())


def test_example_refuses_wrong_values(written: Example) -> None:
    with pytest.raises(ValueError, match="expected size >= 0, got -1"):
        written.policy(size=-1)


@pytest.mark.parametrize(("name", "lines"), [("confident", 12), ("every_nth", 42)])
def test_example_is_short(name: str, lines: int) -> None:
    body = example(f"sam2_mem/memory/policies/{name}.py").splitlines()
    assert sum(bool(line.strip()) for line in body) <= lines and max(map(len, body)) <= 120


def test_a_policy_of_the_earlier_interface_still_works() -> None:
    """The example of the first release: other imports, another signature of write, entries that give up their tokens."""
    space: dict[str, Any] = {}
    with pytest.warns(FutureWarning, match="is now"):
        exec(compile(EARLIER_EXAMPLE, "earlier example", "exec"), space)
    results = run(
        micro_tracker(space["EveryNth"](n=4, most=2)), [features_at(t) for t in range(19)], {0: [mask_prompt(1)]}
    )
    assert results[-1].scores[0].held == (0, 12, 16, 18)
    with pytest.raises(TypeError, match="expected Old to define methods that are called, got held"):
        type("Old", (space["EveryNth"],), {"held": lambda self, state: ()})


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_names_of_the_page_exist() -> None:
    assert "memory_policy" in compose("sam2.1_hiera_t", ["memory_policy=xmem", "memory_policy.mem_every=10"])
    for path in re.findall(r"(?:docs|tests|tools)/[\w.]+\.(?:md|py)", PAGE):
        assert (ROOT / path).exists() or "every_nth" in path or "confident" in path, path
    for target in re.findall(r"\]\(#([\w-]+)\)", PAGE):
        assert target in [t.lower().replace(" ", "-") for t in re.findall(r"^#+ (.*)$", PAGE, re.M)], target
    assert PAGE.count("<!-- measured: begin") == PAGE.count("<!-- measured: end") == 1
