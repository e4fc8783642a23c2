"""Policies side by side on one video, as an animated picture that a README or a slide can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sam2_mem.evaluation.inspection.recording import RecordedVideo
from sam2_mem.files import atomic_path
from sam2_mem.video.overlay import draw_overlay

TITLE, GAP = 22, 4
"""Pixels of the line above a panel and of the space between panels."""
INK, PAPER = (45, 45, 45), 255


def write_animation(path: Path, recordings: Sequence[RecordedVideo], *, milliseconds: int = 90) -> None:
    """An animated WebP of the frames that all recordings have, one panel for each under the name of its policy.

    Args:
        path: ends in .webp.
        recordings: of one video.
        milliseconds: that a frame is shown.
    """
    frames = sorted(set.intersection(*(set(recorded.pictures) for recorded in recordings)))
    pictures = [Image.fromarray(np.hstack([_panel(recorded, t) for recorded in recordings])) for t in frames]
    with atomic_path(path) as part, part.open("wb") as file:
        pictures[0].save(
            file, "WEBP", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, quality=60, method=6
        )


def _panel(recorded: RecordedVideo, frame: int) -> np.ndarray:
    """A frame with its masks below its policy's name: (h + TITLE, w + GAP, 3) uint8."""
    masks = {obj_id: of_frame[frame] for obj_id, of_frame in recorded.masks.items() if frame in of_frame}
    picture = draw_overlay(recorded.pictures[frame], masks, labels=False)
    height, width = picture.shape[:2]
    panel = np.full((height + TITLE, width + GAP, 3), PAPER, np.uint8)
    panel[TITLE:, GAP // 2 : GAP // 2 + width] = picture
    cv2.putText(panel, recorded.policy, (GAP, TITLE - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
    return panel
