"""Video in and masks out, one frame at a time."""

from .frame import Frame, FrameLike, to_rgb
from .layouts import DatasetWriter
from .overlay import ContactSheetWriter, OverlayWriter, draw_overlay
from .palette import davis_palette, object_color
from .polygons import COCOWriter, YOLOWriter, mask_polygons
from .reading import (
    MaskPNG,
    finished_frames,
    finished_object_frames,
    palette_masks,
    per_object_masks,
    read_mask_png,
)
from .resize import normalize, to_model_input
from .rle import RLEFrame, RLEObject, RLEVideo, RLEWriter, read_rle
from .source import FrameRangeError, VideoSource
from .sources import open_video
from .writers import MaskWriter, MultiWriter, PaletteWriter, PerObjectWriter

__all__ = [
    "COCOWriter",
    "ContactSheetWriter",
    "DatasetWriter",
    "Frame",
    "FrameLike",
    "FrameRangeError",
    "MaskPNG",
    "MaskWriter",
    "MultiWriter",
    "OverlayWriter",
    "PaletteWriter",
    "PerObjectWriter",
    "RLEFrame",
    "RLEObject",
    "RLEVideo",
    "RLEWriter",
    "VideoSource",
    "YOLOWriter",
    "davis_palette",
    "draw_overlay",
    "finished_frames",
    "finished_object_frames",
    "mask_polygons",
    "normalize",
    "object_color",
    "open_video",
    "palette_masks",
    "per_object_masks",
    "read_mask_png",
    "read_rle",
    "to_model_input",
    "to_rgb",
]
