"""Results of a comparison as numbers: means over objects, paired differences with their bootstrap intervals, costs."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sam2_mem.evaluation.comparison.jobs import Job, Result, ResultFolder
from sam2_mem.evaluation.datasets import PROTOCOLS
from sam2_mem.tracking.run_manifest import Json

RESAMPLES = 10_000
CONFIDENCE = 0.95
EVERYTHING = "all"
"""What the rows over several data sets are called."""

ObjectKey = tuple[str, str, str]
"""Data, video, object."""


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval, over ``num_values`` objects; NaN if there are none."""

    mean: float
    low: float
    high: float
    num_values: int


def bootstrap(values: Sequence[float], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Interval:
    """The mean of values (N,) with its percentile interval; the same for the same values."""
    array = np.asarray(values, np.float64)
    if not len(array):
        return Interval(math.nan, math.nan, math.nan, 0)
    rng = np.random.Generator(np.random.PCG64(0))
    counts = _chunk_sizes(resamples, len(array))
    means = np.concatenate([array[rng.integers(0, len(array), (count, len(array)))].mean(1) for count in counts])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def _chunk_sizes(total: int, width: int) -> list[int]:
    """Sizes that add up to ``total``; a table of any of them with this width stays small."""
    limit = max(1, 2_000_000 // width)
    return [min(limit, total - done) for done in range(0, total, limit)]


@dataclass(frozen=True)
class PairedComparison:
    """The results of a run, in the order of its jobs, and the jobs without any."""

    run: Json
    results: tuple[Result, ...]
    missing: tuple[Job, ...]

    @property
    def policies(self) -> list[str]:
        return list(self.run["policies"])

    @property
    def baseline(self) -> str:
        return self.run["baseline"]

    @property
    def data(self) -> list[str]:
        return list(self.run["protocols"])

    def columns(self, data: str) -> tuple[str, ...]:
        """The numbers of an object, the one that is compared first."""
        return PROTOCOLS[self.run["protocols"][data]].columns

    @property
    def groups(self) -> list[str]:
        """The data sets, and all together where they have the same main number."""
        together = len(self.data) > 1 and len({self.columns(data)[0] for data in self.data}) == 1
        return [*self.data, EVERYTHING] if together else self.data

    def headline(self, group: str) -> str:
        return self.columns(self.data[0] if group == EVERYTHING else group)[0]

    def of(self, policy: str, group: str, *, failed: bool = False) -> list[Result]:
        return [
            result
            for result in self.results
            if result.policy == policy and group in (result.data, EVERYTHING) and (result.error is not None) == failed
        ]

    @cached_property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.error is not None]

    @property
    def complete(self) -> bool:
        """Whether every policy has a result of every video and seed."""
        return not self.missing and not self.failed

    def compared_objects(self, group: str) -> set[ObjectKey]:
        """The objects over which means are taken: those that every policy has, policies without any left out."""
        headline = self.headline(group)
        keys = [set(object_values(self.of(policy, group), headline)) for policy in self.policies]
        return set.intersection(*filter(None, keys)) if any(keys) else set()


def read_comparison(folder: ResultFolder) -> PairedComparison:
    run = json.loads((folder.root / "run.json").read_text(encoding="utf-8"))
    jobs = [
        Job(policy=policy, data=data, video=video, seed=seed)
        for data, video in run["videos"]
        for seed in run["seeds"]
        for policy in run["policies"]
    ]
    results = {job: folder.result(job) for job in jobs}
    missing = tuple(job for job, result in results.items() if result is None)
    return PairedComparison(run, tuple(result for result in results.values() if result is not None), missing)


def object_values(results: Iterable[Result], column: str) -> dict[ObjectKey, float]:
    """One number of every object, the mean over seeds; objects that do not define it are left out."""
    values: dict[ObjectKey, list[float]] = {}
    for result in results:
        for scores in result.objects:
            value = scores["values"].get(column)
            if value is not None:
                values.setdefault((result.data, result.video, scores["object"]), []).append(value)
    return {key: float(np.mean(of_seeds)) for key, of_seeds in values.items()}


def group_means(results: Iterable[Result], column: str, group_of: Mapping[str, str]) -> dict[str, float]:
    """The mean over the objects of every group, by the group of each video; groups without such a number are left out."""
    values: dict[str, list[float]] = {}
    for (_, video, _), value in object_values(results, column).items():
        values.setdefault(group_of[video], []).append(value)
    return {group: _mean(of_objects) for group, of_objects in values.items()}


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """One policy on one group of videos.

    ``objects`` it has; ``compared``: over how many of them its means are taken, those that every policy has.
    ``figures``: means over objects by the protocol's columns. ``difference``: of the headline to the baseline, over the
    objects that both have. ``state_bytes``: the most of any frame; ``tokens_held``, ``tokens_read``, ``pointers_read``:
    per object, means over frames. ``frames_per_second``, ``cpu_milliseconds`` a frame, ``peak_bytes``, ``growth_bytes``: of this
    machine; NaN where results have none.
    """

    group: str
    policy: str
    objects: int
    compared: int
    failed: int
    figures: Mapping[str, float]
    difference: Interval
    state_bytes: int
    tokens_held: float
    tokens_read: float
    pointers_read: float
    frames_per_second: float
    cpu_milliseconds: float
    peak_bytes: float
    growth_bytes: float


def policy_row(comparison: PairedComparison, group: str, policy: str) -> PolicyRow:
    results, headline = comparison.of(policy, group), comparison.headline(group)
    columns = (headline,) if group == EVERYTHING else comparison.columns(group)
    values = object_values(results, headline)
    baseline = object_values(comparison.of(comparison.baseline, group), headline)
    compared = values.keys() if comparison.complete else comparison.compared_objects(group)
    machines = [result.machine for result in results if result.machine]
    seconds, frames = sum(machine["seconds"] for machine in machines), sum(result.frames for result in results)
    return PolicyRow(
        group=group,
        policy=policy,
        objects=len(values),
        compared=len(values.keys() & compared),
        failed=len(comparison.of(policy, group, failed=True)),
        figures={name: _mean(_figures(results, name, None if comparison.complete else compared)) for name in columns},
        difference=bootstrap([values[key] - baseline[key] for key in values if key in baseline]),
        state_bytes=max((max(result.state_bytes, default=0) for result in results), default=0),
        tokens_held=_mean(v for result in results for v in result.tokens_held),
        tokens_read=_mean(v for result in results for v in result.tokens_read),
        pointers_read=_mean(v for result in results for v in result.pointers_read),
        frames_per_second=frames / seconds if seconds else math.nan,
        cpu_milliseconds=1000 * sum(m.get("cpu_seconds", math.nan) for m in machines) / frames if frames else math.nan,
        peak_bytes=max((m["peak_bytes"] for m in machines if m["peak_bytes"] is not None), default=math.nan),
        growth_bytes=max((m["growth_bytes"] for m in machines if m["growth_bytes"] is not None), default=math.nan),
    )


def _figures(results: Sequence[Result], name: str, compared: Collection[ObjectKey] | None) -> list[float]:
    """Of every object, or of those that are compared."""
    return [value for key, value in object_values(results, name).items() if compared is None or key in compared]


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def policy_rows(comparison: PairedComparison) -> list[PolicyRow]:
    return [policy_row(comparison, group, policy) for group in comparison.groups for policy in comparison.policies]
