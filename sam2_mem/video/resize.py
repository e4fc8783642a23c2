"""Pixels for the model: the same resize and the same normalisation as SAM 2."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from sam2_mem.model.acceleration.transfer import to_device_async

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def to_model_input(image: np.ndarray, image_size: int) -> torch.Tensor:
    """(H, W, 3) uint8 RGB -> (3, S, S) uint8. Bicubic with PIL, which antialiases; the aspect ratio is not kept.

    SAM 2 resizes in bytes, so bytes are also all that is worth moving to the device.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"expected an (H, W, 3) uint8 image, got {image.dtype} {tuple(image.shape)}; see sam2_mem.video.to_rgb"
        )
    if image_size < 1:
        raise ValueError(f"expected image_size >= 1, got {image_size}")
    resized = Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def normalize(frames_u8: torch.Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(..., 3, S, S) uint8 -> the same shape on `device`: (x / 255 - MEAN) / STD, computed in float32, then cast."""
    if frames_u8.dtype != torch.uint8 or frames_u8.ndim < 3 or frames_u8.shape[-3] != 3:
        raise ValueError(
            f"expected uint8 (..., 3, S, S), got {frames_u8.dtype} {tuple(frames_u8.shape)}; see to_model_input"
        )
    scale, mean, std = _constants(torch.device(device))
    return to_device_async(frames_u8, device).float().div_(scale).sub_(mean).div_(std).to(dtype)


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> tuple[torch.Tensor, ...]:
    """255, MEAN and STD, (1 or 3, 1, 1) each. The divisor is a tensor: CUDA replaces division by a Python number with a
    multiplication that rounds differently."""
    with torch.inference_mode(False):
        return tuple(to_device_async(values, device).reshape(-1, 1, 1) for values in ((255.0,), MEAN, STD))
