"""Read masks back: prompts, annotations, and what an interrupted run has already written."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class MaskPNG(NamedTuple):
    """Object ids (H, W), uint8 or uint16, and the (N, 3) uint8 palette if the file has one."""

    ids: np.ndarray
    palette: np.ndarray | None


def read_mask_png(path: str | Path) -> MaskPNG:
    """Read the values of a palette or gray PNG of any bit depth; ValueError for anything whose pixels are not ids."""
    path = Path(path)
    depth = _bit_depth(path)
    try:
        with Image.open(path) as image:
            image.load()
            mode, colours, ids = image.mode, image.getpalette(), np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"cannot read mask '{path}': {error}") from error
    if mode == "P":
        return MaskPNG(ids, np.array(colours, np.uint8).reshape(-1, 3))
    if mode not in ("1", "L", "I", "I;16"):
        raise ValueError(
            f"expected a palette or gray PNG of object ids in '{path}', got a {mode} image; "
            "colours are not ids: save it as an indexed PNG"
        )
    if mode == "L" and depth < 8:
        ids = ids // (255 // (2**depth - 1))  # PIL stretches gray values of 2 and 4 bits to 0..255
    return MaskPNG(ids.astype(np.uint16 if depth == 16 else np.uint8), None)


def palette_masks(png: str | Path, *, ignore: Collection[int] = ()) -> dict[int, np.ndarray]:
    """The (H, W) bool mask of every id except 0 in a palette PNG. Where 255 means void, pass `ignore=(255,)`."""
    ids = read_mask_png(png).ids
    present = (int(value) for value in np.unique(ids))
    return {obj_id: ids == obj_id for obj_id in present if obj_id != 0 and obj_id not in ignore}


def per_object_masks(folder: str | Path, name: str) -> dict[int, np.ndarray]:
    """The (H, W) bool masks in `<folder>/<object id>/<name>.png`, empty ones too; {} if no object has that frame."""
    masks = {}
    for obj_id, sub in _object_folders(Path(folder)).items():
        path = sub / f"{name}.png"
        if path.is_file():
            ids = read_mask_png(path).ids
            if len(np.unique(ids[ids > 0])) > 1:
                raise ValueError(
                    f"expected one object (values 0 and one other) in '{path}', got several values; "
                    "is this a palette PNG? use palette_masks"
                )
            masks[obj_id] = ids > 0
    return masks


def finished_frames(root: str | Path, video: str) -> set[str]:
    """Names of the frames that `PaletteWriter` has written. A file that exists is complete."""
    return _png_names(Path(root) / video)


def finished_object_frames(root: str | Path, video: str, object_ids: Collection[int] | None = None) -> set[str]:
    """Names of the frames that `PerObjectWriter` has written for all `object_ids` (default: all with a folder)."""
    folder = Path(root) / video
    folders = _object_folders(folder) if folder.is_dir() else {}
    object_ids = folders.keys() if object_ids is None else object_ids
    names = [_png_names(folders[obj_id]) if obj_id in folders else set() for obj_id in object_ids]
    return set.intersection(*names) if names else set()


def _png_names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png") if not path.name.startswith(".")}


def _object_folders(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of masks: '{folder}'; expected one sub-folder per object id in it")
    named = ((sub, sub.name.removeprefix("-")) for sub in folder.iterdir() if sub.is_dir())
    by_id = {int(sub.name): sub for sub, digits in named if digits.isdecimal()}
    return dict(sorted(by_id.items()))


def _bit_depth(path: Path) -> int:
    """Bits per sample, from the header that every PNG begins with."""
    if not path.is_file():
        raise FileNotFoundError(f"expected a mask, a palette or gray PNG of object ids, in '{path}', got no such file")
    with path.open("rb") as file:
        header = file.read(26)
    if len(header) < 26 or not header.startswith(_PNG_SIGNATURE):
        raise ValueError(
            f"expected a PNG in '{path}', got another or a damaged file; masks must be stored without loss"
        )
    return header[24]
