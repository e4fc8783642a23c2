"""Files that are complete or not there: what is written goes to a temporary file, which then takes the place of the old one.
And lists and names as other systems write them."""

from __future__ import annotations

import codecs
import hashlib
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

NAME_LIMIT = 255
"""Bytes that a file's name may have on the usual file systems."""


STEM_LIMIT = 200
"""Bytes of it before endings."""


def part_path(path: Path, ending: str) -> Path:
    """The temporary file beside ``path``, hidden; its name says whose it is unless that would be too long."""
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > NAME_LIMIT:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{ending}"
    return path.with_name(name)


@contextmanager
def atomic_path(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` if the block succeeds and vanishes if it fails.

    Args:
        path: the file to replace; its folder is made if it is missing.
        concurrent: several processes, of any machine, may write ``path`` at once, so the temporary name is unique. Otherwise it
            is fixed, so that a run that resumes after a kill writes over what the killed one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(path, f".{uuid4().hex}.part" if concurrent else ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def stem_of(name: str) -> str:
    """A file's name without an ending for anything that has a name: no slash, no comma, not too long."""
    text = quote(name, safe=" ")
    return text if len(text) < STEM_LIMIT else hashlib.sha256(name.encode()).hexdigest()


def read_lines(path: Path) -> list[str]:
    """The lines of a text that are not blank, without spaces around them, whatever system wrote it: UTF-8 or UTF-16, with a
    byte-order mark or without, any ends of lines; ValueError for other encodings."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8 in '{path}', got other bytes ({error}); save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def find_name(path: Path) -> Path:
    """``path``, or the entry beside it whose name has the same letters: macOS writes e with an accent as two characters, other
    systems as one."""
    if path.exists() or path.name.isascii() or not path.parent.is_dir():
        return path
    name = unicodedata.normalize("NFC", path.name)
    entries = (entry for entry in path.parent.iterdir() if unicodedata.normalize("NFC", entry.name) == name)
    return next(entries, path)
