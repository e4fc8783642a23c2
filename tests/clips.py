"""Short clips made on the spot: textured shapes that move, turn and cross on a panning background in changing light."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 144, 208


@dataclass(frozen=True, eq=False)
class Clip:
    """``frames`` (T, H, W, 3) uint8 RGB; ``labels`` (T, H, W) uint8: 0 background, 1.. shapes, the last in front."""

    frames: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return self.frames.shape[0]

    def mask(self, shape: int, frame: int = 0) -> np.ndarray:
        """(H, W) bool."""
        return self.labels[frame] == shape

    def centre(self, shape: int, frame: int = 0) -> list[float]:
        """x, y of the visible part."""
        y, x = np.nonzero(self.mask(shape, frame))
        return [float(x.mean()), float(y.mean())]

    def box(self, shape: int, frame: int = 0) -> list[float]:
        """x0, y0, x1, y1 of the visible part."""
        y, x = np.nonzero(self.mask(shape, frame))
        return [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)]

    def save(self, folder: Path) -> Path:
        """Write the frames as a folder of JPEG files."""
        folder.mkdir(parents=True)
        for i, frame in enumerate(self.frames):
            Image.fromarray(frame).save(folder / f"{i:05d}.jpg", quality=92)
        return folder


def make_clip(num_frames: int = 40, height: int = HEIGHT, width: int = WIDTH, shapes: int = 3, seed: int = 0) -> Clip:
    """A clip that is the same for the same arguments. The shapes stay at least partly in the picture."""
    rng = np.random.default_rng(seed)
    background = _texture(rng, 2 * height, 2 * width, cells=12)
    textures = [_texture(rng, height, width, cells=10, tint=rng.uniform(40, 215, 3)) for _ in range(shapes)]
    phases = rng.uniform(0, 2 * np.pi, (shapes, 3))
    frames, labels = [], []
    for t in range(num_frames):
        pan = round((0.5 + 0.5 * np.sin(t / 11)) * (width - 1))
        picture = background[height // 3 : height // 3 + height, pan : pan + width].copy()
        label = np.zeros((height, width), np.uint8)
        for i, texture in enumerate(textures):
            inside = _shape(i, t, phases[i], height, width)
            picture[inside] = texture[inside]
            label[inside] = i + 1
        light = 0.65 + 0.35 * np.cos(t / 6)
        frames.append((picture * light).astype(np.uint8))
        labels.append(label)
    return Clip(np.stack(frames), np.stack(labels))


def _texture(
    rng: np.random.Generator, height: int, width: int, *, cells: int, tint: np.ndarray | None = None
) -> np.ndarray:
    coarse = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
    if tint is not None:
        coarse = 0.35 * coarse + 0.65 * tint.astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def _shape(index: int, t: int, phase: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) bool of one turning ellipse or bar on its own path."""
    x = width * (0.5 + 0.33 * np.sin(t / (7 + 2 * index) + phase[0]))
    y = height * (0.5 + 0.30 * np.sin(t / (9 + index) + phase[1]))
    angle = 6.0 * t + np.degrees(phase[2])
    axes = (height * (0.22 - 0.03 * index), height * (0.14 + 0.02 * index))
    canvas = np.zeros((height, width), np.uint8)
    if index % 2:
        corners = cv2.boxPoints(((x, y), (2 * axes[0], 1.6 * axes[1]), angle))
        cv2.fillPoly(canvas, [corners.astype(np.int32)], 1)
    else:
        cv2.ellipse(canvas, ((x, y), (2 * axes[0], 2 * axes[1]), angle), 1, -1)
    return canvas.astype(bool)
