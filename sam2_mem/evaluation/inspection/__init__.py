"""What a memory bank holds on a video, and why: recorded, drawn, and shown on a page."""

from sam2_mem._moved import renamed
from sam2_mem.evaluation.inspection.recording import (
    EntryLine,
    FrameRecord,
    ObjectRecord,
    RecordedVideo,
    Recorder,
    TimelineSegment,
    as_json,
    entry_lines,
    frame_records,
    record_video,
)

__all__ = [
    "EntryLine",
    "FrameRecord",
    "ObjectRecord",
    "RecordedVideo",
    "Recorder",
    "TimelineSegment",
    "as_json",
    "entry_lines",
    "frame_records",
    "record_video",
]

__getattr__ = renamed(__name__)
