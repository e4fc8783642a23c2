"""open_video: one entry for every kind of video."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .source import VideoSource
from .stored import IMAGE_EXTENSIONS, ArraySource, FileSource, FolderSource
from .streams import CameraSource, IteratorSource

VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def open_video(source: Any, *, prefetch: int = 2, cache: int = 4) -> VideoSource:
    """Open a folder of images, a video file, arrays (T, H, W, 3) or (T, 3, H, W), an iterator or a camera index.

    `prefetch` frames are decoded ahead for folders and files; `cache` recent frames are kept for access by index.
    A VideoSource is returned as it is.
    """
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source), prefetch, cache)
    if isinstance(source, int | np.integer) and not isinstance(source, bool):
        return CameraSource(int(source), cache=cache)
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple):
        return ArraySource(source)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | dict):
        return IteratorSource(source, cache=cache)
    raise ValueError(
        "expected a folder of images, a video file, an array or list of frames, an iterator of frames or "
        f"a camera index, got {type(source).__name__}"
    )


def _open_path(path: Path, prefetch: int, cache: int) -> VideoSource:
    if not path.exists():
        raise FileNotFoundError(f"no such video: '{path}'; expected a folder of images or a video file")
    if path.is_dir():
        return FolderSource(path, prefetch=prefetch, cache=cache)
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        return FileSource(path, prefetch=prefetch, cache=cache)
    raise ValueError(
        f"unsupported video file '{path}': expected one of {', '.join(VIDEO_EXTENSIONS)}, or a folder of "
        f"{', '.join(IMAGE_EXTENSIONS)} images, got '{path.suffix}'"
    )
