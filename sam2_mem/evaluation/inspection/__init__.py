"""What a memory bank holds on a video, and why: watched, drawn, and shown on a page."""

from sam2_mem.evaluation.inspection.recorder import (
    EntryLine,
    FrameNote,
    Recorder,
    Segment,
    Watched,
    entry_lines,
    frame_notes,
)
from sam2_mem.evaluation.inspection.recording import Film, watch

__all__ = [
    "EntryLine",
    "Film",
    "FrameNote",
    "Recorder",
    "Segment",
    "Watched",
    "entry_lines",
    "frame_notes",
    "watch",
]
