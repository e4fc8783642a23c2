"""What is to be compared, and the results on disk: one JSON line for each policy, video and seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sam2_mem.evaluation.comparison.videos import ComparisonVideo
from sam2_mem.files import atomic_path
from sam2_mem.tracking import run_manifest
from sam2_mem.tracking.run_manifest import Json, differences, write_json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor


@dataclass(frozen=True, kw_only=True)
class PolicyEntry:
    """A policy by the name it has in the report. ``settings``: everything its masks depend on. ``build`` makes its
    predictor; whatever it raises is recorded as the result of each of its jobs."""

    name: str
    settings: Json
    build: Callable[[], SAM2VideoPredictor]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One policy on one video with one seed."""

    policy: str
    data: str
    video: str
    seed: int

    @property
    def file_name(self) -> str:
        """Unlike that of any other job."""
        words = (self.policy, self.data, self.video, str(self.seed))
        readable = "__".join(re.sub(r"[^A-Za-z0-9_.=-]+", "-", word)[:40] for word in words)
        return f"{readable}__{hashlib.sha256(json.dumps(words).encode()).hexdigest()[:8]}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a job gave: scores of objects, costs, or an error. The fields are those of the JSON line.

    ``objects``: ``object``, ``frames``, ``values`` by the protocol's columns, ``at`` the frame numbers that count and
    ``per_frame`` the numbers on them. ``machine``: what another run, or another machine, would have different.
    """

    policy: str
    data: str
    video: str
    seed: int
    settings: str
    protocol: str = ""
    frames: int = 0
    objects: tuple[Json, ...] = ()
    notes: tuple[str, ...] = ()
    state_bytes: tuple[int, ...] = ()
    tokens_held: tuple[float, ...] = ()
    tokens_read: tuple[float, ...] = ()
    pointers_read: tuple[float, ...] = ()
    error: str | None = None
    worst: Json = field(default_factory=dict)
    machine: Json = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return Job(policy=self.policy, data=self.data, video=self.video, seed=self.seed)

    def line(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


def read_result(path: Path) -> Result:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return Result(**fields)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is compared. ``common``: settings that all policies share; ``masks``: write them too."""

    entries: tuple[PolicyEntry, ...]
    videos: tuple[ComparisonVideo, ...]
    seeds: tuple[int, ...] = (0,)
    baseline: str
    common: Json = field(default_factory=dict)
    max_frames: int | None = None
    masks: bool = False

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if not names or not self.videos or not self.seeds:
            raise ValueError("expected at least one policy, one video and one seed, got none of one of them")
        if len(set(names)) < len(names) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"expected every policy and every seed once, got {names} and {list(self.seeds)}")
        if len({(video.data, video.name) for video in self.videos}) < len(self.videos):
            raise ValueError("expected every video once, got one twice; is a data set named twice?")
        if self.baseline not in names:
            raise ValueError(f"expected the baseline among the policies {names}, got {self.baseline!r}")

    def jobs(self) -> Iterator[Job]:
        """Video by video, so that policies meet the same machine; the order of the report."""
        for video in self.videos:
            for seed in self.seeds:
                for entry in self.entries:
                    yield Job(policy=entry.name, data=video.data, video=video.name, seed=seed)

    def described(self) -> Json:
        """What ``run.json`` says; equal for all shards."""
        return {
            "policies": {entry.name: entry.settings for entry in self.entries},
            "videos": [[video.data, video.name] for video in self.videos],
            "protocols": {video.data: video.protocol.name for video in self.videos},
            "seeds": list(self.seeds),
            "baseline": self.baseline,
            "max_frames": self.max_frames,
            "common": dict(self.common),
            "versions": run_manifest.versions(),
        }

    def settings_of(self, entry: PolicyEntry, video: ComparisonVideo) -> str:
        """A digest of everything that a result depends on beside its job's name."""
        values = [dict(entry.settings), dict(self.common), video.protocol.name, video.origin, self.max_frames]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ResultFolder:
    """``run.json``, ``jobs/<job>.json``, ``thumbnails/<job>.jpg``, ``masks/`` and, with a report, ``results.jsonl`` and
    ``report/``."""

    root: Path

    def claim(self, plan: Plan) -> None:
        """Make the folder, or take it over; ValueError if the network is another one there."""
        path = self.root / "run.json"
        content = json.loads(json.dumps(plan.described()))
        if path.is_file():
            earlier = json.loads(path.read_text(encoding="utf-8"))
            changes = differences(earlier["common"], content["common"])
            if changes:
                raise ValueError(
                    f"expected '{self.root}' to be empty or to hold results of the same network, got others:\n  "
                    + "\n  ".join(changes)
                    + "\nchoose another output folder"
                )
        write_json(path, content)

    def path(self, job: Job) -> Path:
        return self.root / "jobs" / f"{job.file_name}.json"

    def result(self, job: Job) -> Result | None:
        path = self.path(job)
        return read_result(path) if path.is_file() else None

    def put(self, result: Result) -> None:
        write_line(self.path(result.job), result.line())

    def thumbnail(self, job: Job) -> Path:
        """The picture of the job's worst frame; jobs of earlier versions have none."""
        return self.root / "thumbnails" / f"{job.file_name}.jpg"

    def mask_folder(self, job: Job) -> Path:
        name = Job(policy=job.policy, data=job.data, video="", seed=job.seed).file_name
        return self.root / "masks" / name


def write_line(path: Path, text: str) -> None:
    """Replace a file as a whole; several processes may do so at once."""
    with atomic_path(path, concurrent=True) as part:
        part.write_text(text + "\n", encoding="utf-8")
