"""Mask writers: one frame at a time, constant memory, no file ever visible half-written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from sam2_mem.files import atomic_path

from .frame import FrameLike
from .palette import palette_bytes

Masks = Mapping[int, np.ndarray]
Writer = TypeVar("Writer", bound="MaskWriter")


class MaskWriter(ABC):
    """Base of all writers. Leaving a `with` block normally closes the writer; leaving it by an exception aborts it."""

    def __init__(self) -> None:
        self._size: tuple[int, int] | None = None
        self._open = True

    def write(self, frame: FrameLike, masks: Masks, image: np.ndarray | None = None) -> None:
        """Write the (H, W) bool mask of each object id. `image` (H, W, 3) defaults to `frame.image` where it exists."""
        if not self._open:
            raise ValueError(f"this {type(self).__name__} is closed; make a new one")
        image = getattr(frame, "image", None) if image is None else image
        checked = {obj_id: _check_mask(obj_id, masks[obj_id], frame) for obj_id in sorted(masks)}
        self._check_sizes(frame, checked, image)
        self._write(frame, checked, image)

    def close(self) -> None:
        """Finish the output. Closing twice does nothing."""
        if self._open:
            self._open = False
            self._finish()

    def abort(self) -> None:
        """Stop without finishing: frames written as files of their own stay, an output of one file does not appear."""
        if self._open:
            self._open = False
            self._discard()

    def __enter__(self: Writer) -> Writer:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self.close() if error_type is None else self.abort()

    @abstractmethod
    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        """Write checked masks, which come in ascending order of id; `self._size` is known."""

    def _finish(self) -> None:  # noqa: B027 - a hook: many writers have nothing to finish
        """Complete the output; called once."""

    def _discard(self) -> None:  # noqa: B027 - a hook: many writers have nothing to discard
        """Remove what is not complete; called once."""

    def _check_sizes(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        sizes = {f"the mask of object {obj_id}": mask.shape for obj_id, mask in masks.items()}
        if image is not None:
            sizes["the image"] = tuple(image.shape[:2])
        for name, size in sizes.items():
            self._size = self._size or size
            if size != self._size:
                raise ValueError(
                    f"frame {frame.index} ('{frame.name}'): expected {name} to be {self._size[0]}x"
                    f"{self._size[1]} (height x width), got {size[0]}x{size[1]}; resize it to the video"
                )
        if self._size is None:
            raise ValueError(
                f"frame {frame.index} ('{frame.name}'): no mask and no image to take the size from; pass image="
            )


class PaletteWriter(MaskWriter):
    """`<root>/<video>/<name>.png`: 8-bit indexed PNG whose pixel value is the object id.

    Where masks overlap the lower id wins. `palette` is that of the input annotation, see `read_mask_png`; the default
    is the DAVIS palette.
    """

    def __init__(self, root: str | Path, video: str, palette: np.ndarray | bytes | list[int] | None = None) -> None:
        super().__init__()
        self._folder = Path(root) / video
        self._palette = palette_bytes(palette)

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        assert self._size is not None
        ids = np.zeros(self._size, np.uint8)
        for obj_id, mask in reversed(masks.items()):
            if not 1 <= obj_id <= 255:
                raise ValueError(
                    f"expected object ids from 1 to 255 in a palette PNG, got {obj_id}; "
                    "use per-object output (PerObjectWriter) for other ids"
                )
            ids[mask] = obj_id
        indexed = Image.fromarray(ids)
        indexed.putpalette(self._palette)
        _save_png(indexed, self._folder / f"{frame.name}.png")


class PerObjectWriter(MaskWriter):
    """`<root>/<video>/<object, 3 digits>/<name>.png`: 8-bit gray PNG of 0 and 1, as in SA-V; objects may overlap.

    Only the objects given are written: give an empty mask for an object that is absent.
    """

    def __init__(self, root: str | Path, video: str) -> None:
        super().__init__()
        self._folder = Path(root) / video

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        for obj_id, mask in masks.items():
            _save_png(Image.fromarray(mask.astype(np.uint8)), self._folder / f"{obj_id:03d}" / f"{frame.name}.png")


class MultiWriter(MaskWriter):
    """Sends every frame to several writers, and closes or aborts all of them even if one fails."""

    def __init__(self, *writers: MaskWriter) -> None:
        super().__init__()
        self._writers = writers

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        for writer in self._writers:
            writer.write(frame, masks, image)

    def _finish(self) -> None:
        with ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.close)

    def _discard(self) -> None:
        with ExitStack() as stack:
            for writer in reversed(self._writers):
                stack.callback(writer.abort)


def _check_mask(obj_id: int, mask: np.ndarray | torch.Tensor, frame: FrameLike) -> np.ndarray:
    label = f"frame {frame.index} ('{frame.name}'), object {obj_id!r}"
    if isinstance(obj_id, bool) or not isinstance(obj_id, int | np.integer):
        raise ValueError(f"{label}: expected an integer object id, got {type(obj_id).__name__}")
    array = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if array.dtype != bool or array.ndim != 2:
        raise ValueError(
            f"{label}: expected a bool (H, W) mask, got {array.dtype} {array.shape}; "
            "threshold logits with logits > 0 and drop leading axes"
        )
    return array


def _save_png(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as part:
        image.save(part, format="PNG", bits=8)
