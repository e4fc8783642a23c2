"""H.264 by PyAV, which brings its own encoder; OpenCV's wheels have none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

H264 = "h264"
"""What ``OverlayWriter`` calls this encoder among its ``codecs``."""


def has_h264() -> bool:
    """Whether this PyAV has the encoder; its wheels do, builds of other packagers may lack it."""
    return "libx264" in av.codecs_available


class H264Video:
    """An mp4 that browsers play while it loads, with the two methods of ``cv2.VideoWriter`` that a writer needs.

    Args:
        path: of the file.
        fps: frames per second.
        size: width and height, both even.
    """

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        self._frame_of = av.VideoFrame.from_ndarray
        self._container = av.open(str(path.absolute()), "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p"

    def write(self, image: np.ndarray) -> None:
        """Append an (H, W, 3) uint8 BGR image."""
        self._container.mux(self._stream.encode(self._frame_of(image, format="bgr24")))

    def release(self) -> None:
        """Finish the file."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
