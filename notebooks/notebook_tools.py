"""Small pictures for the notebooks, so that their outputs stay small."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from IPython.display import Image as PublishedMask
from PIL import Image

from sam2_mem.evaluation.charts import Axes, Series, line_chart
from sam2_mem.video import draw_overlay


def strip(
    pictures: Mapping[int, np.ndarray],
    masks: Mapping[int, Mapping[int, np.ndarray]],
    frames: Sequence[int],
    *,
    width: int = 150,
) -> PublishedMask:
    """Some frames side by side, (H, W, 3) uint8, with the masks (H, W) of their objects drawn in."""
    tiles = []
    for frame in frames:
        tile = draw_overlay(pictures[frame], masks.get(frame, {}), alpha=0.35, labels=False)
        height = round(tile.shape[0] * width / tile.shape[1])
        tile = cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA)
        for color, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            at, font = (4, height - 6), cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(tile, f"frame {frame}", at, font, 0.42, color, thickness, cv2.LINE_AA)
        tiles.append(tile)
    return jpeg(Image.fromarray(np.concatenate(tiles, axis=1)))


def jpeg(image: Image.Image) -> PublishedMask:
    """A picture as the output of a cell."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=75)
    return PublishedMask(data=buffer.getvalue(), format="jpeg")


def chart(title: str, x_label: str, y_label: str, curves: Mapping[str, Sequence[float]]) -> PublishedMask:
    """Lines over the frames 0, 1, 2, ..."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chart.png"
        lines = [Series(name=name, x=range(len(values)), y=values) for name, values in curves.items()]
        line_chart(path, Axes(title=title, x_label=x_label, y_label=y_label), lines)
        with Image.open(path) as image:
            return jpeg(image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS))
