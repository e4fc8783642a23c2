"""Published checkpoints: what they are called, where they are, and what others have measured with them (``published.yaml``)."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from sam2_mem.files import part_path, sha256_of

HUB = "https://huggingface.co"
CHUNK = 1 << 20


class Score(NamedTuple):
    """A published number.

    Attributes:
        data: data set and split, ``davis2017:val``.
        value: J&F, or G for YouTube-VOS, in percent.
        source: where it was published.
    """

    data: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One file of weights.

    Attributes:
        name: of it, without ending.
        hub: its id on the Hugging Face Hub, a file of a repository of several as ``owner/name/file``.
        config: that belongs to it; None where the file says which.
        url: of the file.
        licence: of the weights; empty where its publisher says it.
        bytes: of the file, None where that is not known.
        sha256: of the file, None where that is not known.
        scores: measured by others.
    """

    name: str
    hub: str
    config: str | None
    url: str
    licence: str = ""
    bytes: int | None = None
    sha256: str | None = None
    scores: tuple[Score, ...] = ()

    @property
    def filename(self) -> str:
        ending = Path(self.url).suffix
        return f"{self.name}{ending}"


@cache
def published_models() -> Mapping[str, PublishedModel]:
    """All of them, by name."""
    content = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    models = {}
    for name, entry in content["models"].items():
        scores = tuple(
            Score(item["data"], float(item["value"]), content["sources"][item["source"]])
            for item in entry.pop("scores", ())
        )
        models[name] = PublishedModel(name=name, scores=scores, **entry)
    return models


def published_model(name: str) -> PublishedModel:
    """A model by its name, its file, its id on the Hub, or of any repository of transformers (``owner/name``).

    Raises:
        ValueError: there is no such name.
    """
    models = published_models()
    by_alias = {model.hub: model for model in models.values()} | {model.filename: model for model in models.values()}
    found = models.get(name) or by_alias.get(name)
    if found is not None:
        return found
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        url = f"{HUB}/{name}/resolve/main/model.safetensors"
        return PublishedModel(name=name.replace("/", "_"), hub=name, config=None, url=url)
    raise ValueError(
        f"expected a model out of {', '.join(models)}, or owner/name of one of transformers on the Hub, got {name!r}"
    )


def model_of_file(path: Path, digest: str | None = None) -> PublishedModel | None:
    """The published model that a file is: by its SHA-256 where that is known, else by its name; None where it is none."""
    models = published_models().values()
    by_content = next((model for model in models if digest and model.sha256 == digest), None)
    return by_content or next((model for model in models if model.filename == path.name and model.sha256 is None), None)


Progress = Callable[[int, "int | None"], None]
"""Told how many bytes are there, of how many if known."""


def download(
    model: PublishedModel, folder: Path, *, mirror: str | None = None, progress: Progress = lambda count, total: None
) -> Path:
    """Fetch a file of weights; one that is there already and right is left alone.

    It is written under a hidden name, resumed after an interruption, checked, and only then renamed.

    Args:
        model: which.
        folder: where to.
        mirror: an address in place of the folder that holds the file.
        progress: see ``Progress``.

    Raises:
        ValueError: what is there, or what came, is another file.
        OSError: it cannot be fetched or written.
    """
    path, part = folder / model.filename, part_path(folder / model.filename, ".part")
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        if wrong := _difference(model, path):
            raise ValueError(f"expected the published file in '{path}', got {wrong}; move it away and run this again")
        return path
    url = model.url if mirror is None else f"{mirror.rstrip('/')}/{model.url.rsplit('/', 1)[1]}"
    _complete(model, url, part, progress)
    if wrong := _difference(model, part):
        part.unlink()
        raise ValueError(f"expected the published file from {url}, got {wrong}; the download was removed")
    os.replace(part, path)
    return path


def _complete(model: PublishedModel, url: str, part: Path, progress: Progress) -> None:
    """Have ``part`` hold the whole file; one that is too long is begun anew."""
    if part.exists() and model.bytes is not None and part.stat().st_size > model.bytes:
        part.unlink()
    if not part.exists() or part.stat().st_size != model.bytes:
        _fetch(url, part, progress)


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Continue ``part`` where an earlier run stopped, or begin it anew where the server cannot continue."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            continues = answer.status == http.HTTPStatus.PARTIAL_CONTENT
            count = start if continues else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else count + int(length)
            with part.open("ab" if continues else "wb") as file:
                while block := answer.read(CHUNK):
                    file.write(block)
                    count += len(block)
                    progress(count, total)
            if total is not None and count < total:
                raise OSError(f"the connection ended after {count} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # it is complete; what is in it is checked next
        raise OSError(f"could not download {url}: {error}; check the address and the network") from error
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"could not download {url}: {error}; run this again to go on") from error


def _difference(model: PublishedModel, path: Path) -> str | None:
    """What of a file is not as published, None for nothing."""
    size = path.stat().st_size
    if model.bytes is not None and size != model.bytes:
        return f"{size} bytes, not {model.bytes}"
    if model.sha256 is None:
        return f"{size} bytes" if size == 0 else _foreign(path)
    digest = sha256_of(path)
    return None if digest == model.sha256 else f"SHA-256 {digest}, not {model.sha256}"


def _foreign(path: Path) -> str | None:
    """What a file without a known hash is, if not weights."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"<"):
        return "a web page"
    return "a pointer of Git LFS" if start.startswith(b"version https://git-lfs") else None
