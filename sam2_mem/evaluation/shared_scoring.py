"""Scoring that several processes share, on one machine or many: the scores of each video stay in a folder, so that a run that
was cut off goes on, and are used again as long as no file that they depend on has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sam2_mem.claims import ClaimFolder, ClaimLostError, shared
from sam2_mem.evaluation.datasets import FolderVideo
from sam2_mem.evaluation.protocols import Protocol
from sam2_mem.evaluation.results import Failure, ObjectScores, VideoScores
from sam2_mem.evaluation.scoring import Outcome, ScoredVideo, outcome_of, process_pool
from sam2_mem.files import atomic_path, stem_of
from sam2_mem.tracking import run_manifest
from sam2_mem.tracking.run_manifest import Json


@dataclass(frozen=True)
class ScoreFolder:
    """``<video>.json`` for each video that has been scored by ``protocol``, and ``claims`` of those at work."""

    root: Path
    protocol: Protocol[Any]

    def stored(self, video: ScoredVideo, *, since: float) -> Outcome | None:
        """What a video was scored as, with the files that are there now; a failure only if it is later than ``since``."""
        path = self._path(video)
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["origin"] != self._origin(video):
            return None
        if content["failure"] is not None:
            return Failure(video.name, content["failure"]) if path.stat().st_mtime > since else None
        objects = tuple(_object_scores(item) for item in content["objects"])
        return VideoScores(objects=objects, notes=tuple(content["notes"]))

    def put(self, video: ScoredVideo, outcome: Outcome) -> None:
        content: dict[str, Any] = {"origin": self._origin(video), "failure": None}
        if isinstance(outcome, Failure):
            content["failure"] = outcome.reason
        else:
            content["objects"] = [
                asdict(scores) | {"per_frame": _plain(scores.per_frame)} for scores in outcome.objects
            ]
            content["notes"] = outcome.notes
        with atomic_path(self._path(video), concurrent=True) as part:
            part.write_text(json.dumps(content), encoding="utf-8")

    def _path(self, video: ScoredVideo) -> Path:
        return self.root / f"{stem_of(video.name)}.json"

    def _origin(self, video: ScoredVideo) -> str:
        """A digest of all that the scores depend on: the rules, the version, which files there are and of when."""
        folders = (
            (video.truth_dir, video.prediction_dir)
            if isinstance(video, FolderVideo)
            else tuple(v for v in vars(video).values() if isinstance(v, Path))
        )
        files = [(str(p), s.st_size, s.st_mtime_ns) for f in folders for p in sorted(f.rglob("*")) if (s := p.stat())]
        text = repr((self.protocol.name, video, run_manifest.versions()["sam2_mem"], files))
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(table: np.ndarray) -> Json:
    return {"shape": table.shape, "dtype": str(table.dtype), "values": table.ravel().tolist()}


def _object_scores(item: dict[str, Any]) -> ObjectScores:
    table = item.pop("per_frame")
    per_frame = np.array(table["values"], dtype=table["dtype"]).reshape(table["shape"])
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in item.items()}
    return ObjectScores(**values, per_frame=per_frame)


def shared_outcomes(folder: ScoreFolder, videos: Sequence[ScoredVideo], *, processes: int = 1) -> list[Outcome]:
    """The outcomes of all videos, in their order, each scored here or by another run that has the same folder.

    Args:
        folder: of all runs.
        videos: the same for all runs.
        processes: of this run.
    """
    began = ClaimFolder(folder.root / "claims").now()
    if processes <= 1:
        _take_part(folder, videos, began)
    else:
        with process_pool(min(processes, len(videos))) as pool:
            list(pool.map(_take_part, *zip(*[(folder, videos, began)] * processes)))
    stored = (folder.stored(video, since=began) for video in videos)
    return [outcome_of(folder.protocol, v) if outcome is None else outcome for v, outcome in zip(videos, stored)]


def _take_part(folder: ScoreFolder, videos: Sequence[ScoredVideo], began: float) -> None:
    """Score videos until all are scored, or have failed since ``began``."""
    claims, by_name = (
        ClaimFolder(folder.root / "claims"),
        {v.name: v for v in sorted(videos, key=_length, reverse=True)},
    )

    def is_settled(name: str) -> bool:
        return folder.stored(by_name[name], since=began) is not None

    with closing(shared(by_name, claims, is_settled, wait=1.0)) as turns:
        for claim in turns:
            with suppress(ClaimLostError):
                outcome = outcome_of(folder.protocol, by_name[claim.name])
                claim.confirm()
                folder.put(by_name[claim.name], outcome)


def _length(video: ScoredVideo) -> int:
    try:
        return len(video.frames) if isinstance(video, FolderVideo) else 0
    except (ValueError, OSError):
        return 0
