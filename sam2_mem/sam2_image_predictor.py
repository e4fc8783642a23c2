"""``SAM2ImagePredictor`` at the import path that it has in SAM 2."""

from sam2_mem.tracking.image_predictor import SAM2ImagePredictor as SAM2ImagePredictor
