"""Videos that a page sends: into the working folder, whole or not at all, within a limit."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from sam2_mem.files import atomic_path
from sam2_mem.studio.security import confined
from sam2_mem.video.sources import VIDEO_EXTENSIONS
from sam2_mem.video.stored import FileSource

UPLOADS = "sam2_mem_uploads"
"""Folder for what was sent, in the working folder."""
MARGIN = 64 * 2**20
"""Bytes of the disk that are left free."""


async def receive(folder: Path, name: str, size: int, chunks: AsyncIterator[bytes]) -> Path:
    """Write a video that arrives in pieces.

    Args:
        folder: the working folder.
        name: of the file, without a folder.
        size: bytes that were announced.
        chunks: the pieces.

    Returns:
        where it is; under another name where there is one of that name.

    Raises:
        ValueError: no name of a video, fewer or more bytes than were announced, no video.
        OSError: the disk has no room for it.
    """
    path = _free_path(confined(folder, UPLOADS), name)
    path.parent.mkdir(exist_ok=True)
    if shutil.disk_usage(path.parent).free < size + MARGIN:
        raise OSError(errno.ENOSPC, f"'{name}' has {size >> 20} MiB, which would not leave {MARGIN >> 20} MiB")
    with atomic_path(path, concurrent=True) as part:
        received = 0
        with open(part, "wb") as file:
            async for chunk in chunks:
                received += len(chunk)
                if received > size:
                    break
                file.write(chunk)
        if received != size:
            raise ValueError(f"expected {size} bytes of '{name}', got {received}; send it again")
        _check_video(part, path.name)
    return path


def _free_path(folder: Path, name: str) -> Path:
    path = Path(name)
    if not name or path.name != name or name.startswith(".") or "\\" in name:
        raise ValueError(f"expected the name of a file without a folder, got {name!r}")
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        raise ValueError(f"expected a video out of {', '.join(VIDEO_EXTENSIONS)}, got '{name}'")
    numbered = (folder / f"{path.stem}-{number}{path.suffix}" for number in range(2, 10_000))
    return next(free for free in (folder / name, *numbered) if not free.exists())


def _check_video(part: Path, name: str) -> None:
    """ValueError for bytes that are no video, which would only be noticed when it is opened."""
    try:
        FileSource(part).close()
    except ValueError as error:
        raise ValueError(f"'{name}' cannot be read as a video; convert it with ffmpeg, or send another one") from error
