"""Files that are complete or not there: what is written goes to a temporary file, which then takes the place of the old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it becomes ``path`` if the block succeeds and vanishes if it fails.

    Args:
        path: the file to replace; its folder is made if it is missing.
        concurrent: several processes may write ``path`` at once, so the temporary name holds the process id. Otherwise it
            is fixed, so that a run that resumes after a kill writes over what the killed one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part" if concurrent else f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
