"""SAM 2 video segmentation with an exchangeable memory bank.

The public names are imported on first use, so that ``import sam2_mem`` alone starts neither torch nor Hydra.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sam2_mem._moved import install

__version__ = "0.1.0"

install()

_HOME_OF = {
    "build_sam2": "sam2_mem.build_sam",
    "build_sam2_hf": "sam2_mem.build_sam",
    "build_sam2_video_predictor": "sam2_mem.build_sam",
    "build_sam2_video_predictor_hf": "sam2_mem.build_sam",
    "SAM2VideoPredictor": "sam2_mem.tracking.video_predictor",
    "SAM2ImagePredictor": "sam2_mem.tracking.image_predictor",
    "SAM2AutomaticMaskGenerator": "sam2_mem.tracking.automatic_masks",
    "MemoryPolicy": "sam2_mem.memory.policy",
    "Prompt": "sam2_mem.prompts",
}

__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, and keep it here."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
