"""What a run leaves behind beside its masks: with what they were made, and which videos are finished."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sam2_mem.claims import ClaimFolder
from sam2_mem.files import atomic_path

Json = Mapping[str, Any]
"""Plain values that go to a JSON file as they are."""


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """How one video went.

    ``objects``: their ids. ``state_bytes``: the most that was held for all objects together. ``outputs``: what was
    written beside the masks. ``error``: None if all went well. ``resumed``: done by an earlier run. ``went_on_at``: how many of
    the frames an earlier run had done. ``stated_frames``: what
    the file claims to have, where fewer could be read.
    """

    name: str
    frames: int = 0
    objects: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    seconds: float = 0.0
    frames_per_second: float = 0.0
    state_bytes: int = 0
    outputs: tuple[str, ...] = ()
    error: str | None = None
    resumed: bool = False
    stated_frames: int | None = None
    went_on_at: int = 0


class RunFolder:
    """The output folder of a run, which several shards may share.

    ``.vos/settings.json`` says with what the masks were made, ``.vos/done/<video>.json`` that a video is finished,
    ``.vos/failed/<video>.json`` that it has failed, ``.vos/claims`` who is at what, ``.vos/checkpoints/<video>.pt`` how far a
    video is. Every file appears complete or not at all.
    """

    def __init__(self, folder: Path, settings: Json) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.hash = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self._notes = folder / ".vos"

    @classmethod
    def existing(cls, folder: Path) -> RunFolder:
        """The folder of a run, under its own settings; FileNotFoundError if there is none."""
        return cls(folder, json.loads((folder / ".vos" / "settings.json").read_text(encoding="utf-8")))

    @staticmethod
    def is_one(folder: Path) -> bool:
        """Whether a run has written there."""
        return (folder / ".vos").is_dir()

    def claim(self) -> None:
        """Make the folder, or take it over; ValueError if it holds masks that other settings have made."""
        path = self._notes / "settings.json"
        existing = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if existing == self.settings:
            return
        if next(self.folder.rglob("*.png"), None) is not None:
            origin = "unknown settings: it has no .vos/settings.json"
            if existing is not None:
                origin = "other settings:\n  " + "\n  ".join(differences(existing, self.settings))
            raise ValueError(
                f"expected '{self.folder}' to be empty or to hold results of these settings, got results of {origin}\n"
                "choose another output folder, or empty this one"
            )
        write_json(path, self.settings)

    def finished(self, name: str) -> VideoReport | None:
        """The report of a video that is complete under these settings, else None."""
        return self._report(self._mark("done", name))

    def failed(self, name: str, since: float) -> VideoReport | None:
        """The report of a run under these settings in which the video has failed, later than ``since`` (s, as the file system
        dates files), else None."""
        path = self._mark("failed", name)
        return self._report(path) if path.is_file() and path.stat().st_mtime > since else None

    def _report(self, path: Path) -> VideoReport | None:
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("settings") != self.hash:
            return None
        for key in ("objects", "outputs"):
            content[key] = tuple(content[key])
        return VideoReport(**content | {"resumed": True})

    def begin(self, name: str) -> None:
        """From here on the video counts as unfinished."""
        for kind in ("done", "failed"):
            self._mark(kind, name).unlink(missing_ok=True)

    def finish(self, report: VideoReport) -> None:
        """The video is finished, or has failed."""
        write_json(
            self._mark("failed" if report.error else "done", report.name), {"settings": self.hash, **asdict(report)}
        )
        if not report.error:
            self.checkpoint(report.name).unlink(missing_ok=True)

    def checkpoint(self, name: str) -> Path:
        """The file from which a video that was begun goes on; it vanishes when the video is finished."""
        return self._notes / "checkpoints" / f"{name}.pt"

    def claims(self) -> ClaimFolder:
        """Who is at which video, for runs that share them."""
        return ClaimFolder(self._notes / "claims")

    def now(self) -> float:
        """The time by the clock of the file system, in s."""
        return self.claims().now()

    def _mark(self, kind: str, name: str) -> Path:
        return self._notes / kind / f"{name}.json"


def write_json(path: Path, content: Json) -> None:
    """Replace a file as a whole; several processes may do so at once."""
    with atomic_path(path, concurrent=True) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def differences(existing: Json, current: Json) -> list[str]:
    """One line for each value that differs, by its dotted name."""
    old, new = _flat(existing), _flat(current)
    return [
        f"{key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now"
        for key in sorted({*old, *new})
        if old.get(key, _MISSING) != new.get(key, _MISSING)
    ]


_MISSING = object()


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    start = f"{prefix}." if prefix else ""
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{start}{name}").items()}


# -- the machine ----------------------------------------------------------------------------------------------------


def versions() -> dict[str, str | None]:
    """Of Python, torch, CUDA and this package."""
    try:
        package = version("sam2_mem")
    except PackageNotFoundError:
        package = str(vars(sys.modules["sam2_mem"])["__version__"])
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sam2_mem": package,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def git_commit() -> str | None:
    """The commit of the checkout that this code runs from, with ``+`` after it if files differ; None without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = commit and _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+" if changed else commit


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """A name that tells machines apart."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def peak_rss_bytes() -> int | None:
    """The most memory that this process has had; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_cuda_bytes(device: torch.device) -> int | None:
    """The most that tensors took on a CUDA device since the start of the run."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
