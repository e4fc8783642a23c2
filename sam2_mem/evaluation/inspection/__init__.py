"""What a memory bank holds on a video, and why: recorded, drawn, and shown on a page."""

from sam2_mem._moved import renamed
from sam2_mem.evaluation.inspection.notebook import MemoryView, memory_view
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
    from_json,
    record_video,
)

__all__ = [
    "EntryLine",
    "FrameRecord",
    "MemoryView",
    "ObjectRecord",
    "RecordedVideo",
    "Recorder",
    "TimelineSegment",
    "as_json",
    "entry_lines",
    "frame_records",
    "from_json",
    "memory_view",
    "record_video",
]

__getattr__ = renamed(__name__)
