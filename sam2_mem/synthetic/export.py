"""Procedural clips as files: contact sheets to look at, and the JPEGImages / Annotations folders of VOS data sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sam2_mem.synthetic.generator import SyntheticFrame, SyntheticVideo


def vos_palette() -> np.ndarray:
    """The colours of DAVIS and PASCAL VOC annotations, bits of the id spread over the channels: (256, 3) uint8."""
    ids = np.arange(256)[:, None]
    channels = np.arange(3)[None, :]
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        digit = (ids >> (3 * bit + channels)) & 1
        colours |= (digit << (7 - bit)).astype(np.uint8)
    return colours


def write_image(path: Path, image: np.ndarray, quality: int = 92) -> None:
    """(H, W, 3) uint8 RGB -> a file whose kind follows the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix.lower() in (".jpg", ".jpeg") else []
    if not cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]), options):
        raise ValueError(f"expected a file name that ends in .jpg or .png, got {path}; change the name")


def write_masks(path: Path, ids: np.ndarray) -> None:
    """(H, W) uint8 ids -> palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(ids)
    picture.putpalette(vos_palette().reshape(-1).tolist())
    picture.save(path, optimize=True)


def export_clip(clip: SyntheticVideo, out: Path, name: str, *, quality: int = 92) -> None:
    """Write JPEGImages/<name>/00000.jpg ... and Annotations/<name>/00000.png ..., a frame at a time."""
    for frame in clip:
        write_image(out / "JPEGImages" / name / f"{frame.index:05d}.jpg", frame.image, quality)
        write_masks(out / "Annotations" / name / f"{frame.index:05d}.png", frame.masks)


def outlined(frame: SyntheticFrame, scale: int = 1) -> np.ndarray:
    """The image, enlarged, with the contour of each object's mask in its palette colour: (scale H, scale W, 3)
    uint8.
    """
    size = (frame.image.shape[1] * scale, frame.image.shape[0] * scale)
    picture = cv2.resize(frame.image, size, interpolation=cv2.INTER_NEAREST)
    ids = cv2.resize(frame.masks, size, interpolation=cv2.INTER_NEAREST)
    for object_id in np.unique(ids[ids > 0]):
        contours, _ = cv2.findContours((ids == object_id).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        colour = tuple(int(c) for c in np.maximum(vos_palette()[object_id], 60))
        cv2.drawContours(picture, contours, -1, (255, 255, 255), 2)
        cv2.drawContours(picture, contours, -1, colour, 1)
    return picture


def contact_sheet(
    clips: Iterable[SyntheticVideo], times: Sequence[int], *, scale: int = 1, plain: bool = False
) -> np.ndarray:
    """One row for each clip, one column for each time: (rows, columns, 3) uint8; `plain` leaves the contours out."""
    rows = []
    for clip in clips:
        frames = [clip.frame(t) for t in times]
        cells = [np.pad(f.image if plain else outlined(f, scale), ((1, 1), (1, 1), (0, 0))) for f in frames]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


def write_demo(clip: SyntheticVideo, videos: Path, *, quality: int = 82) -> None:
    """The demo folder: demo/*.jpg, demo_gt/demo/*.png, and for each object its first mask alone in
    demo_prompts/demo/.
    """
    entries = {clip.entry_frame(i): i for i in range(1, clip.num_objects + 1)}
    for frame in clip:
        write_image(videos / "demo" / f"{frame.index:05d}.jpg", frame.image, quality)
        write_masks(videos / "demo_gt" / "demo" / f"{frame.index:05d}.png", frame.masks)
        if frame.index in entries:
            prompt = np.where(frame.masks == entries[frame.index], frame.masks, 0).astype(np.uint8)
            write_masks(videos / "demo_prompts" / "demo" / f"{frame.index:05d}.png", prompt)
    (videos / "demo.txt").write_text("demo\n")
