"""A video file whose frames are indexed from the moment it is opened, so that any of them comes at once and exactly."""

from __future__ import annotations

from pathlib import Path

from .decoding import FrameTimes
from .stored import NEAR, FileSource


class IndexedFileSource(FileSource):
    """A video file any of whose frames is sought, forwards too; frames as ``FileSource`` gives them.

    Attributes:
        times: of the frames, filled in the background.
    """

    def __init__(self, path: Path, *, prefetch: int = 2, cache: int = 16) -> None:
        super().__init__(path, prefetch=prefetch, cache=cache)
        self.times = FrameTimes(path)
        self._times = self.times

    def _is_sought(self, index: int) -> bool:
        ahead = index - self._reader.position
        return ahead < 0 or (ahead >= NEAR and index < len(self.times))

    def _known_times(self, index: int) -> FrameTimes | None:
        return self.times if index < len(self.times) else None
