"""open_video: one entry for every kind of video."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .indexed import IndexedFileSource
from .source import VideoSource
from .stored import IMAGE_EXTENSIONS, ArraySource, FileSource, FolderSource, PictureSource
from .streams import CameraSource, IteratorSource

VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How the address of a stream begins, e.g. ``rtsp://``."""


def open_video(source: Any, *, prefetch: int = 2, cache: int = 4, indexed: bool = False) -> VideoSource:
    """Open a video, whatever it is.

    `prefetch` frames are decoded ahead for folders and files; `cache` recent frames are kept for access by index.
    A VideoSource is returned as it is.

    Args:
        source: a folder of images, a list of picture files, a video file, arrays (T, H, W, 3) or (T, 3, H, W), anything else
            that has a length and gives frames by index, an iterator of frames, a camera index, or an address such as
            rtsp://... (read once, from its start, as a camera is).
        prefetch: number of frames.
        cache: number of frames.
        indexed: of a video file, also note the times of all frames in the background, so that any frame comes quickly; see
            `sam2_mem.video.indexed`.
    """
    if isinstance(source, VideoSource):
        return source
    if isinstance(source, str) and ADDRESS.match(source):
        return CameraSource(source, cache=cache)
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source).expanduser(), prefetch, cache, indexed)
    if isinstance(source, int | np.integer) and not isinstance(source, bool):
        return CameraSource(int(source), cache=cache)
    if isinstance(source, list | tuple) and any(isinstance(item, str | os.PathLike) for item in source):
        return PictureSource(_picture_paths(source), prefetch=prefetch, cache=cache)
    if isinstance(source, np.ndarray | torch.Tensor | list | tuple) or _is_sequence(source):
        return ArraySource(source)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | Mapping | Set):
        return IteratorSource(source, cache=cache)
    raise ValueError(
        "expected a folder of images, a video file, an array or list of frames, an iterator of frames, a camera index "
        f"or an address, got {type(source).__name__}"
    )


def _is_sequence(source: Any) -> bool:
    """Whether frames can be had by index, as from decord's VideoReader or torchcodec's VideoDecoder."""
    has_index = hasattr(source, "__len__") and hasattr(source, "__getitem__")
    return has_index and not isinstance(source, bytes | bytearray | Mapping)


def _picture_paths(items: Sequence[Any]) -> list[Path]:
    strange = next((item for item in items if not isinstance(item, str | os.PathLike)), None)
    if strange is not None:
        raise ValueError(f"expected a list of picture files only, got {type(strange).__name__} among them")
    return [Path(item).expanduser() for item in items]


def _open_path(path: Path, prefetch: int, cache: int, indexed: bool) -> VideoSource:
    if not path.exists():
        raise FileNotFoundError(f"no such video: '{path}'; expected a folder of images or a video file")
    if path.is_dir():
        return FolderSource(path, prefetch=prefetch, cache=cache)
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        kind = IndexedFileSource if indexed else FileSource
        return kind(path, prefetch=prefetch, cache=cache)
    raise ValueError(
        f"unsupported video file '{path}': expected one of {', '.join(VIDEO_EXTENSIONS)}, or a folder of "
        f"{', '.join(IMAGE_EXTENSIONS)} images, got '{path.suffix}'"
    )
