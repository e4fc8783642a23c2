"""The whole measurement of docs/performance.md: which cases there are, and running those that have not been run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from tqdm import tqdm

from sam2_mem.evaluation.tables import text_table


@dataclass(frozen=True)
class Case:
    """One run of ``tools/benchmark.py`` with ``arguments`` after the verb; its results are files called ``name``."""

    name: str
    verb: str
    arguments: tuple[str, ...]

    def command(self, tool: Path, common: Sequence[str], json_file: Path) -> list[str]:
        return [sys.executable, str(tool), self.verb, *common, *self.arguments, "--json", str(json_file)]


def cases_of(device: str) -> tuple[Case, ...]:
    """Those of ``suite.yaml`` for a device."""
    text = (files(__package__) / "suite.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)["cuda" if device.startswith("cuda") else "cpu"]
    return tuple(case for name, entry in table.items() for case in _expanded(name, entry))


def _expanded(name: str, entry: Any) -> Iterator[Case]:
    """One case, or one for each combination of what stands in ``each``."""
    template, choices = (entry, {}) if isinstance(entry, str) else (entry["command"], entry["each"])
    for combination in product(*(options.items() for options in choices.values())):
        labels = {key: label for key, (label, _) in zip(choices, combination)}
        values = {key: value for key, (_, value) in zip(choices, combination)}
        verb, *arguments = template.format(**values).split()
        yield Case(name.format(**labels), verb, tuple(arguments))


def run_suite(
    cases: Sequence[Case],
    tool: Path,
    folder: Path,
    common: Sequence[str],
    peer: Sequence[str],
    run: Callable[..., Any] = subprocess.run,
) -> Iterator[tuple[Case, Path]]:
    """Every case in a process of its own, those with a result in ``folder`` left out; what each prints goes into a text
    file beside its result. Gives cases with their results; one that failed is not given, and run again next time.

    Args:
        cases: what to run.
        tool: ``tools/benchmark.py``.
        folder: for the results.
        common: arguments of all cases, such as the device.
        peer: arguments of cases with a peer.
        run: what starts a process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in tqdm(cases, unit="case", disable=None):
        result, text = (folder / f"{case.name}{end}" for end in (".json", ".txt"))
        if not result.is_file():
            command = case.command(tool, (*common, *(peer if case.verb == "peer" else ())), result)
            with text.open("w") as log:
                log.write(" ".join(command[1:]) + "\n")
                log.flush()
                run(command, stdout=log, stderr=subprocess.STDOUT)
        if result.is_file():
            yield case, result


def suite_table(results: Sequence[tuple[Case, Path]], *, markdown: bool = False) -> str:
    """One row per case with a peer."""
    head = ("case", "IoU", "ours ms", "peer ms", "ratio", "range", "first mask: ours", "peer", "MB/frame: ours", "peer")
    rows = [_row(case, json.loads(path.read_text())["results"]) for case, path in results if case.verb == "peer"]
    return text_table(head, rows, markdown=markdown)


def _row(case: Case, result: dict[str, Any]) -> tuple[str, ...]:
    iou, race = f"{result['agreement']['mean_iou']:.5f}", result["race"]
    if race is None:
        return (case.name, iou, *("",) * 8)
    ours, peer = ([1000 * pair[side]["wall"] for pair in race["pairs"]] for side in ("ours", "peer"))
    ratios = [b / a for a, b in zip(ours, peer)]
    times = (f"{median(ours):.0f}", f"{median(peer):.0f}", f"{median(ratios):.2f}")
    costs = [result[side] for side in ("ours", "peer")]
    first = ("" if cost is None else f"{cost['first_mask']:.2f} s" for cost in costs)
    slope = ("" if cost is None or cost["slope"] is None else f"{cost['slope'] / 1e6:.3f}" for cost in costs)
    return (case.name, iou, *times, f"{min(ratios):.2f}-{max(ratios):.2f}", *first, *slope)
