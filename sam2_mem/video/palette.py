"""Colours for object ids."""

from __future__ import annotations

import colorsys

import numpy as np


def davis_palette() -> np.ndarray:
    """(256, 3) uint8. Bits 0, 1, 2 of an id become the top bits of red, green, blue; its next three the next."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for level in range(3):
            palette[:, channel] |= ((ids >> (3 * level + channel) & 1) << (7 - level)).astype(np.uint8)
    return palette


def palette_bytes(palette: np.ndarray | bytes | list[int] | None) -> bytes:
    """Any palette of up to 256 RGB colours as the 768 bytes of an 8-bit PNG; None gives the DAVIS palette."""
    if palette is None:
        return davis_palette().tobytes()
    try:
        flat = bytes(palette) if isinstance(palette, bytes) else np.asarray(palette).astype(np.uint8).tobytes()
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a palette of RGB bytes, got {type(palette).__name__}") from error
    if len(flat) % 3 or not 0 < len(flat) <= 768:
        raise ValueError(f"expected a palette of 1 to 256 RGB colours, got {len(flat)} values; pass (N, 3) or None")
    return flat.ljust(768, b"\0")


def object_color(obj_id: int) -> tuple[int, int, int]:
    """A bright RGB colour to draw an object with; neighbouring ids lie far apart in hue."""
    hue = (0.58 + 0.618034 * (obj_id - 1)) % 1.0
    saturation, value = ((0.85, 1.0), (0.6, 1.0), (0.9, 0.8))[(obj_id // 8) % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
