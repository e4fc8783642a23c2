"""What a memory bank holds on a video, and why: watched, drawn, and shown on a page."""

from .record import EntryLine, FrameNote, Recorder, Segment, Watched, entry_lines, frame_notes
from .watch import Film, watch

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
