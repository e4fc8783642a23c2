"""Pictures for people: masks drawn over frames, as a video or as a sheet of small tiles."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sam2_mem.files import atomic_path, part_path

from .frame import FrameLike
from .h264 import H264, H264Video, has_h264
from .palette import object_color
from .writers import Masks, MaskWriter

logger = logging.getLogger(__name__)

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def draw_overlay(
    image: np.ndarray, masks: Masks, *, alpha: float = 0.5, contour: bool = True, labels: bool = True
) -> np.ndarray:
    """A copy of the (H, W, 3) uint8 image with each (H, W) bool mask blended in, outlined, and marked with its id."""
    out = np.array(image)
    for obj_id, mask in masks.items():
        tinted = (1 - alpha) * out[mask] + alpha * np.array(object_color(obj_id))
        out[mask] = tinted.round().astype(np.uint8)
    short_side = min(image.shape[:2])
    if contour:
        for obj_id, mask in masks.items():
            outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(out, outlines, -1, object_color(obj_id), max(1, round(short_side / 300)), cv2.LINE_AA)
    if labels:
        for obj_id, mask in masks.items():
            if mask.any():
                _label_object(out, mask, str(obj_id), max(0.4, short_side / 900))
    return out


class OverlayWriter(MaskWriter):
    """An mp4 of frames with their masks, in the order of the calls to `write`; `path` appears on close.

    `codecs` are tried in order: "h264" is that of PyAV, which browsers play, any other one a code of OpenCV's.
    Odd sizes are extended by one row or column, which the codecs need.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float = 24.0,
        alpha: float = 0.5,
        contour: bool = True,
        labels: bool = True,
        codecs: Sequence[str] = (H264, "mp4v"),
    ) -> None:
        super().__init__()
        self._path = Path(path)
        if self._path.suffix.lower() != ".mp4":
            raise ValueError(f"expected a path ending in .mp4, got '{path}'")
        if not fps > 0 or not 0 <= alpha <= 1:
            raise ValueError(f"expected fps > 0 and alpha from 0 to 1, got fps={fps} and alpha={alpha}")
        self._part = part_path(self._path, ".part.mp4")
        self._fps, self._alpha, self._contour, self._labels = fps, alpha, contour, labels
        self._codecs = tuple(codecs)
        self._video: cv2.VideoWriter | H264Video | None = None
        self._num_frames = 0

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        picture = draw_overlay(
            _need_image(frame, image), masks, alpha=self._alpha, contour=self._contour, labels=self._labels
        )
        height, width = picture.shape[:2]
        picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._video is None:
            self._video = self._open_video(picture.shape[1], picture.shape[0])
        try:
            self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        except OSError as error:
            self.abort()
            raise self._unwritten(0, error) from error
        self._num_frames += 1

    def _open_video(self, width: int, height: int) -> cv2.VideoWriter | H264Video:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for codec in self._codecs:
            if codec == H264:
                if has_h264():
                    return H264Video(self._part, self._fps, (width, height))
                logger.warning("PyAV has no encoder of H.264 here, so browsers may not play '%s'", self._path)
                continue
            # An absolute path: a colon in a relative one would make it an address.
            video = cv2.VideoWriter(
                str(self._part.absolute()), cv2.VideoWriter.fourcc(*codec), self._fps, (width, height)
            )
            if video.isOpened():
                return video
            video.release()
        self._part.unlink(missing_ok=True)
        raise ValueError(
            f"OpenCV cannot write '{self._path}' with any of the codecs {', '.join(self._codecs)}; "
            "use codecs=('mp4v',) and check that the folder is writable"
        )

    def _finish(self) -> None:
        if self._video is None:
            logger.warning("no frame was written; '%s' is not made", self._path)
            return
        self._release(self._video)
        if (count := _stated_length(self._part)) != self._num_frames:
            self._part.unlink(missing_ok=True)
            raise self._unwritten(count)
        try:
            os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)

    def _discard(self) -> None:
        if self._video is not None:
            with suppress(OSError):
                self._release(self._video)
        self._part.unlink(missing_ok=True)

    def _release(self, video: cv2.VideoWriter | H264Video) -> None:
        """Finish the temporary file; where that fails it goes."""
        try:
            video.release()
        except OSError as error:
            self._part.unlink(missing_ok=True)
            raise self._unwritten(0, error) from error

    def _unwritten(self, count: int, error: OSError | None = None) -> OSError:
        """With the number of ``error``, by which callers tell a full disk."""
        text = f"cannot write '{self._path}': the file has {count} of {self._num_frames} frames; is the disk full?"
        return OSError(text) if error is None else OSError(error.errno, text)


def _stated_length(path: Path) -> int:
    """Frames of a video file, 0 if it cannot be read: OpenCV does not tell when writing fails."""
    video = cv2.VideoCapture(str(path.absolute()))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() and video.grab() else 0
    video.release()
    return count


class ContactSheetWriter(MaskWriter):
    """A PNG of at most `max_tiles` tiles spread over a video of unknown length; `path` appears on close.

    Starts with one frame in `every`. Whenever more than twice `max_tiles` are held, every second one is dropped and
    the spacing doubles, so memory is bounded; the end takes `max_tiles` of those held, the first and the last included.
    """

    def __init__(
        self, path: str | Path, *, every: int = 1, max_tiles: int = 24, tile_width: int = 320, columns: int = 6
    ) -> None:
        super().__init__()
        if min(every, columns) < 1 or max_tiles < 2 or tile_width < 16:
            raise ValueError(
                "expected every and columns >= 1, max_tiles >= 2 and tile_width >= 16, got "
                f"every={every}, columns={columns}, max_tiles={max_tiles}, tile_width={tile_width}"
            )
        self._path = Path(path)
        self._every, self._max_tiles, self._tile_width, self._columns = every, max_tiles, tile_width, columns
        self._tiles: list[np.ndarray] = []
        self._num_frames = 0

    def _write(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray | None) -> None:
        image = _need_image(frame, image)
        if self._num_frames % self._every == 0:
            self._tiles.append(self._make_tile(frame, masks, image))
        self._num_frames += 1
        if len(self._tiles) > 2 * self._max_tiles:
            self._tiles = self._tiles[::2]
            self._every *= 2

    def _make_tile(self, frame: FrameLike, masks: dict[int, np.ndarray], image: np.ndarray) -> np.ndarray:
        size = self._tile_width, max(1, round(image.shape[0] * self._tile_width / image.shape[1]))
        small = {
            obj_id: cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST).astype(bool)
            for obj_id, mask in masks.items()
        }
        tile = draw_overlay(cv2.resize(image, size, interpolation=cv2.INTER_AREA), small)
        _write_label(tile, frame.name, (0, 0), 0.4)
        return tile

    def _finish(self) -> None:
        if not self._tiles:
            logger.warning("no frame was written; '%s' is not made", self._path)
            return
        count = min(self._max_tiles, len(self._tiles))
        chosen = np.linspace(0, len(self._tiles) - 1, count).round().astype(int)
        sheet = _arrange([self._tiles[index] for index in chosen], self._columns)
        with atomic_path(self._path) as part:
            Image.fromarray(sheet).save(part, format="PNG")


def _arrange(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Equal tiles (h, w, 3) in rows, on black."""
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    sheet = np.zeros((-(-len(tiles) // columns) * height, columns * width, 3), np.uint8)
    for index, tile in enumerate(tiles):
        y, x = index // columns * height, index % columns * width
        sheet[y : y + height, x : x + width] = tile
    return sheet


def _need_image(frame: FrameLike, image: np.ndarray | None) -> np.ndarray:
    if image is None:
        raise ValueError(f"frame {frame.index} ('{frame.name}'): nothing to draw on; pass a Frame or image=")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"frame {frame.index} ('{frame.name}'): expected an (H, W, 3) uint8 image, got {image.dtype} "
            f"{image.shape}; see sam2_mem.video.to_rgb"
        )
    return image


def _innermost_point(mask: np.ndarray) -> tuple[int, int]:
    """The (x, y) inside a non-empty mask that is farthest from its edge."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    framed = np.pad(mask[y : y + height, x : x + width].astype(np.uint8), 1)
    row, column = np.unravel_index(cv2.distanceTransform(framed, cv2.DIST_L2, 3).argmax(), framed.shape)
    return x + int(column) - 1, y + int(row) - 1


def _label_object(image: np.ndarray, mask: np.ndarray, text: str, scale: float) -> None:
    """Label a non-empty mask at its widest place, or above it if the label would hide much of it."""
    at = _innermost_point(mask)
    width, height, _ = _label_box(text, scale)
    if np.count_nonzero(mask) < 6 * width * height:
        at = at[0], int(mask.any(axis=1).argmax()) - height // 2 - 2
    _write_label(image, text, at, scale)


def _label_box(text: str, scale: float) -> tuple[int, int, int]:
    """Width and height of a label, and the space around its text."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, _stroke(scale))
    pad = max(2, height // 4)
    return width + 2 * pad, height + 2 * pad, pad


def _stroke(scale: float) -> int:
    return max(1, round(1.5 * scale))


def _write_label(image: np.ndarray, text: str, at: tuple[int, int], scale: float) -> None:
    """White text on a black box centred at (x, y), moved so that it lies inside the picture."""
    width, height, pad = _label_box(text, scale)
    x = min(max(at[0] - width // 2, 0), max(image.shape[1] - width, 0))
    y = min(max(at[1] - height // 2, 0), max(image.shape[0] - height, 0))
    cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), BLACK, cv2.FILLED)
    base_line = x + pad, y + height - pad
    cv2.putText(image, text, base_line, cv2.FONT_HERSHEY_SIMPLEX, scale, WHITE, _stroke(scale), cv2.LINE_AA)
