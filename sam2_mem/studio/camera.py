"""A camera as a video that grows: its frames are pictures in a folder of the working folder, so that all of them can be looked
at, clicked on and tracked while it runs, and the folder opened again afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from sam2_mem.files import atomic_path
from sam2_mem.studio.worker import error_words
from sam2_mem.video import Frame, VideoSource
from sam2_mem.video.source import Frames, SeekableSource

RECORDINGS = "sam2_mem_camera"
"""Folder for recordings, in the working folder."""
FPS = 15.0
"""Frames that are kept in a second; a camera that gives more loses the others."""
MAX_FRAMES = 9000
"""Frames of a recording, ten minutes."""
JPEG_QUALITY = 92
STOPPED = "stopped"
PATIENCE = 10.0
"""Seconds that a pass waits for the next frame."""


def new_recording(folder: Path) -> Path:
    """A new folder for a recording in the working folder, named by the time."""
    begun = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = (begun, *(f"{begun}_{number}" for number in range(2, 100)))
    path = next(path for name in names if not (path := folder / RECORDINGS / name).exists())
    path.mkdir(parents=True)
    return path


class RecordedCamera(SeekableSource):
    """What a camera has given so far; a pass that comes to the end waits for more while the camera runs.

    Args:
        camera: gives the frames, from its own thread here; closed at the end.
        folder: where they are kept.
        on_frame: called when there is a new one, and at the end.

    Attributes:
        ended: why the camera no longer runs, "" while it does.
    """

    def __init__(self, camera: VideoSource, folder: Path, on_frame: Callable[[], None] = lambda: None) -> None:
        super().__init__(prefetch=0, cache=16)
        self.folder = folder
        self.on_frame = on_frame
        self.ended = ""
        self.stated_length = 0
        self._camera = camera
        self._more = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._record, name="camera", daemon=True)
        self._thread.start()
        with self._more:
            self._more.wait_for(lambda: bool(self.stated_length or self.ended), PATIENCE)
        if not self.stated_length:
            self.close()
            raise ValueError(
                f"the camera gives no picture ({self.ended or 'it does not answer'}); is another program using it?"
            )

    @property
    def fps(self) -> float | None:
        return min(FPS, self._camera.fps or FPS)

    def stop(self) -> None:
        """End the recording; its frames stay."""
        self._stop.set()
        self._thread.join(PATIENCE)

    def close(self) -> None:
        self.stop()
        super().close()

    def __getitem__(self, index: int) -> Frame:
        if not self.ended and index >= (self.stated_length or 0):
            raise ValueError(f"the camera has given {self.stated_length} frames so far, not yet frame {index}")
        return super().__getitem__(index)

    # -- the recording -----------------------------------------------------------------------------------------------

    def _record(self) -> None:
        try:
            for frame in self._kept_frames():
                self._keep(frame)
            self._end(STOPPED if self._stop.is_set() else self._reason())
        except (OSError, ValueError) as error:
            self._end(error_words(error))
        finally:
            self._camera.close()

    def _kept_frames(self) -> Frames:
        """At most ``FPS`` frames a second, until somebody stops it."""
        due = time.monotonic()
        for frame in self._camera.frames():
            if self._stop.is_set() or (self.stated_length or 0) >= MAX_FRAMES:
                return
            if time.monotonic() >= due:
                due = max(due + 1 / FPS, time.monotonic() - 1 / FPS)
                yield frame

    def _reason(self) -> str:
        """Why the frames came to an end by themselves."""
        if (self.stated_length or 0) >= MAX_FRAMES:
            return f"{MAX_FRAMES} frames are recorded, which is the most"
        return "it gives no more pictures; is it still plugged in?"

    def _keep(self, frame: Frame) -> None:
        count = self.stated_length or 0
        with atomic_path(self._path(count)) as part:
            Image.fromarray(frame.image).save(part, format="JPEG", quality=JPEG_QUALITY)
        with self._more:
            self.stated_length = count + 1
            self._more.notify_all()
        self.on_frame()

    def _end(self, reason: str) -> None:
        with self._more:
            self.ended = reason
            self._length = self.stated_length
            self._more.notify_all()
        self.on_frame()

    # -- the frames --------------------------------------------------------------------------------------------------

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.jpg"

    def _fetch(self, index: int) -> Frame:
        with Image.open(self._path(index)) as image:
            return self._make_frame(index, np.array(image.convert("RGB")))

    def _decode(self, indices: range) -> Frames:
        for index in indices:
            if not self._wait_for(index):
                return
            yield self._fetch(index)

    def _wait_for(self, index: int) -> bool:
        """Whether there is a frame ``index``, or comes to be one."""
        with self._more:
            self._more.wait_for(lambda: bool(index < (self.stated_length or 0) or self.ended), PATIENCE)
        return index < (self.stated_length or 0)
