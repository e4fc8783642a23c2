"""Results of a comparison as numbers: means over objects, paired differences with their bootstrap intervals, costs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
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


# -- statistics -----------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """A mean with the ends of its confidence interval, over ``count`` objects; NaN if there are none."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Sequence[float], *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Interval:
    """The mean of values (N,) with its percentile interval; the same for the same values."""
    values = np.asarray(values, np.float64)
    if not len(values):
        return Interval(math.nan, math.nan, math.nan, 0)
    rng = np.random.Generator(np.random.PCG64(0))
    means = np.concatenate(
        [
            values[rng.integers(0, len(values), (count, len(values)))].mean(1)
            for count in _chunks(resamples, len(values))
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def _chunks(total: int, width: int) -> list[int]:
    """Parts of ``total`` whose tables of this width stay small."""
    most = max(1, 2_000_000 // width)
    return [min(most, total - done) for done in range(0, total, most)]


# -- what there is --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
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


def read_comparison(folder: ResultFolder) -> Comparison:
    run = json.loads((folder.root / "run.json").read_text(encoding="utf-8"))
    jobs = [
        Job(policy=policy, data=data, video=video, seed=seed)
        for data, video in run["videos"]
        for seed in run["seeds"]
        for policy in run["policies"]
    ]
    found = {job: folder.result(job) for job in jobs}
    missing = tuple(job for job, result in found.items() if result is None)
    return Comparison(run, tuple(result for result in found.values() if result is not None), missing)


def object_values(results: Iterable[Result], column: str) -> dict[ObjectKey, float]:
    """One number of every object, the mean over seeds; objects that do not define it are left out."""
    found: dict[ObjectKey, list[float]] = {}
    for result in results:
        for one in result.objects:
            value = one["values"].get(column)
            if value is not None:
                found.setdefault((result.data, result.video, one["object"]), []).append(value)
    return {key: float(np.mean(values)) for key, values in found.items()}


def part_means(results: Iterable[Result], column: str, part_of: Mapping[str, str]) -> dict[str, float]:
    """The mean over the objects of every part, by the part of each video; parts without such a number are left out."""
    found: dict[str, list[float]] = {}
    for (_, video, _), value in object_values(results, column).items():
        found.setdefault(part_of[video], []).append(value)
    return {part: _mean(values) for part, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy on one group of videos.

    ``figures``: means over objects by the protocol's columns. ``difference``: of the headline to the baseline, over the
    objects that both have. ``state_bytes``: the most of any frame; ``tokens_held``, ``tokens_read``, ``pointers_read``:
    per object, means over frames. ``frames_per_second``, ``peak_bytes``, ``growth_bytes``: of this machine.
    """

    group: str
    policy: str
    objects: int
    failed: int
    figures: Mapping[str, float]
    difference: Interval
    state_bytes: int
    tokens_held: float
    tokens_read: float
    pointers_read: float
    frames_per_second: float
    peak_bytes: float
    growth_bytes: float


def make_row(comparison: Comparison, group: str, policy: str) -> Row:
    results, headline = comparison.of(policy, group), comparison.headline(group)
    columns = (headline,) if group == EVERYTHING else comparison.columns(group)
    own = object_values(results, headline)
    theirs = object_values(comparison.of(comparison.baseline, group), headline)
    machine = [result.machine for result in results if result.machine]
    return Row(
        group=group,
        policy=policy,
        objects=len(own),
        failed=len(comparison.of(policy, group, failed=True)),
        figures={name: _mean(object_values(results, name).values()) for name in columns},
        difference=bootstrap([own[key] - theirs[key] for key in own if key in theirs]),
        state_bytes=max((max(result.state_bytes, default=0) for result in results), default=0),
        tokens_held=_mean(v for result in results for v in result.tokens_held),
        tokens_read=_mean(v for result in results for v in result.tokens_read),
        pointers_read=_mean(v for result in results for v in result.pointers_read),
        frames_per_second=_ratio(sum(r.frames for r in results), sum(m["seconds"] for m in machine)),
        peak_bytes=max((m["peak_bytes"] for m in machine if m["peak_bytes"] is not None), default=math.nan),
        growth_bytes=max((m["growth_bytes"] for m in machine if m["growth_bytes"] is not None), default=math.nan),
    )


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan


def rows(comparison: Comparison) -> list[Row]:
    return [make_row(comparison, group, policy) for group in comparison.groups for policy in comparison.policies]
