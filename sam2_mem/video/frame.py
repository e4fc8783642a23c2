"""One video frame, and the rules for turning what a user has into RGB bytes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from PIL import ExifTags, Image

from .resize import to_model_input

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded frame: its position in the video, the stem for output files, and an (H, W, 3) uint8 RGB image.
    ``resized``: inputs of the network (3, S, S) that were made ahead, by their side; each is given out once."""

    index: int
    name: str
    image: np.ndarray
    resized: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)

    def resize(self, image_size: int) -> None:
        """Make the input of the network ahead, as ``to_model_input`` does."""
        self.resized[image_size] = to_model_input(self.image, image_size)

    def model_input(self, image_size: int) -> torch.Tensor:
        """The input of the network, (3, S, S) uint8."""
        ready = self.resized.pop(image_size, None)
        return to_model_input(self.image, image_size) if ready is None else ready


class FrameLike(Protocol):
    """What a writer needs to know about a frame; `Frame` has it."""

    @property
    def index(self) -> int: ...

    @property
    def name(self) -> str: ...


class PictureReader:
    """`to_rgb` for the pictures of one video, with one warning if EXIF data say that they are to be shown turned."""

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, item: object, label: str) -> np.ndarray:
        if not self._warned and isinstance(item, Image.Image) and _is_turned(item):
            self._warned = True
            logger.warning(
                "%s has an EXIF orientation, which is not applied, as in SAM 2: the picture is read as it is stored, and may "
                "lie on its side; turn it with PIL's ImageOps.exif_transpose where that is not wanted",
                label,
            )
        return to_rgb(item, label)


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)


def to_rgb(item: object, label: str) -> np.ndarray:
    """Return `item` as an (H, W, 3) uint8 RGB array; `label` names the frame in error messages.

    Takes a PIL image of any 8-bit mode, or an array or tensor (H, W, 3) or (3, H, W) that is uint8, or float in [0, 1];
    arrays of other libraries as well, if they can be made NumPy's.
    Arrays must be in RGB order: OpenCV's BGR cannot be told apart and has to be flipped by the caller.
    """
    if isinstance(item, Image.Image):
        return _from_pil(item, label)
    if isinstance(item, torch.Tensor):
        item = item.detach().cpu()
        item = (item.float() if item.dtype == torch.bfloat16 else item).numpy()
    if hasattr(item, "asnumpy"):  # decord, MXNet
        item = item.asnumpy()
    elif hasattr(item, "__array__"):
        item = np.asarray(item)
    if not isinstance(item, np.ndarray):
        raise ValueError(f"{label}: expected an (H, W, 3) array, a tensor or a PIL image, got {type(item).__name__}")
    return np.ascontiguousarray(_to_bytes(_channels_last(item, label), label))


def _from_pil(image: Image.Image, label: str) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"{label}: expected an image of 8 bits per channel, got PIL mode {image.mode!r}; scale it to 8 bits first"
        )
    return np.array(image.convert("RGB"))


def _channels_last(array: np.ndarray, label: str) -> np.ndarray:
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[-1] == 3:
        return array
    if array.ndim == 3 and shape[0] == 3:
        return array.transpose(1, 2, 0)
    raise ValueError(
        f"{label}: expected an RGB image (H, W, 3) or (3, H, W), got shape {shape}; {_channel_advice(shape)}"
    )


def _channel_advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[-1])):
        return "repeat a gray image three times: np.stack([gray] * 3, axis=-1)"
    if len(shape) == 3 and 4 in (shape[0], shape[-1]):
        return "drop the alpha channel: image[..., :3]"
    return "give one RGB image per frame"


def _to_bytes(image: np.ndarray, label: str) -> np.ndarray:
    if image.size == 0:
        raise ValueError(f"{label}: expected at least one pixel, got shape {tuple(image.shape)}")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"{label}: expected uint8, or float in [0, 1], got {image.dtype}; convert with astype(np.uint8)"
        )
    low, high = float(image.min()), float(image.max())
    if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
        raise ValueError(
            f"{label}: expected float pixels in [0, 1], got values from {low:g} to {high:g}; rescale them or pass uint8"
        )
    return np.rint(image * 255.0).astype(np.uint8)
