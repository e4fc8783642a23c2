"""Video in and masks out, one frame at a time."""

from .frame import Frame, FrameLike, to_rgb
from .resize import normalize, to_model_input
from .sources import VideoSource, open_video

__all__ = ["Frame", "FrameLike", "VideoSource", "normalize", "open_video", "to_model_input", "to_rgb"]
