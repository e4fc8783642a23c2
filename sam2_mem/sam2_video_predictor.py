"""``SAM2VideoPredictor`` and ``SAM2VideoPredictorVOS`` at the import path that they have in SAM 2."""

from sam2_mem.tracking.video_predictor import SAM2VideoPredictor as SAM2VideoPredictor
from sam2_mem.tracking.video_predictor import SAM2VideoPredictorVOS as SAM2VideoPredictorVOS
