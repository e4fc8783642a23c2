"""A volume as a video of its slices: what nibabel reads, above all NIfTI, in; a volume of object ids in the same place out.

A slice is shown as it lies in the file: its columns are the first of the two axes that are left, its rows the second, so that
(x, y) of a point or box are voxel indices in the order of the file. Nothing is turned or resampled.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sam2_mem.files import atomic_path

USUAL_SHARES = (0.5, 99.5)
"""Percentiles that become black and white where no window is given."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie.

    Attributes:
        values: (X, Y, Z) float32, in the unit of the file (Hounsfield units of a CT).
        affine: (4, 4), from voxel indices to millimetres.
        header: nibabel's, which says what the affine means; None: none.
    """

    values: np.ndarray
    affine: np.ndarray
    header: Any = None

    def slices(self, axis: int = 2, *, window: tuple[float, float] | None = None) -> np.ndarray:
        """The slices along an axis as pictures of three equal channels, (T, H, W, 3) uint8.

        Args:
            axis: 0, 1 or 2.
            window: (centre, width) in the unit of the values; what lies outside is black or white. None: from the lowest to the
                highest values, half a percent at either end left out.
        """
        grey = np.moveaxis(self.values, axis, 0).swapaxes(1, 2)
        if window is None:
            low, high = np.percentile(self.values, USUAL_SHARES)
        else:
            low, high = window[0] - window[1] / 2, window[0] + window[1] / 2
        scaled = (grey - low) / max(high - low, np.finfo(np.float32).tiny)
        bytes_ = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
        return np.repeat(bytes_[..., None], 3, axis=-1)

    def of_slices(self, masks: np.ndarray, axis: int = 2) -> np.ndarray:
        """Masks of all slices (T, H, W) in the order of ``values``, (X, Y, Z)."""
        return np.moveaxis(masks.swapaxes(1, 2), 0, axis)


def read_volume(path: str | PathLike[str]) -> Volume:
    """Read a volume.

    Raises:
        ImportError: without the package nibabel.
        FileNotFoundError: there is no such file.
        ValueError: it is no volume of three axes with finite numbers.
    """
    nibabel, path = _nibabel(), Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such volume: '{path}'; expected a file such as scan.nii.gz")
    try:
        image = nibabel.load(path)
        values = np.asarray(image.get_fdata(dtype=np.float32))
    except (nibabel.filebasedimages.ImageFileError, EOFError, OSError, AttributeError) as error:
        raise ValueError(
            f"expected a volume that nibabel reads in '{path}', got a file that it does not: {error}"
        ) from error
    if values.ndim == 4 and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != 3 or not values.size:
        raise ValueError(f"expected a volume of three axes in '{path}', got {' x '.join(map(str, values.shape))}")
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values in '{path}', got NaN or Inf; replace them first")
    return Volume(values, image.affine, image.header)


def write_labels(path: Path, labels: np.ndarray, like: Volume) -> None:
    """Write object ids (X, Y, Z) as NIfTI, 0 where there is no object, with the affine of another volume."""
    nibabel = _nibabel()
    kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    image = nibabel.Nifti1Image(labels.astype(kind), like.affine)
    if isinstance(like.header, nibabel.Nifti1Header):
        image.header.set_xyzt_units(*like.header.get_xyzt_units())
        image.set_sform(*like.header.get_sform(coded=True))
        image.set_qform(*like.header.get_qform(coded=True))
    content = image.to_bytes()
    with atomic_path(path) as part:
        part.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise ImportError(
            'volumes are read by the package nibabel, which is not installed: pip install "sam2_mem[volumes]"'
        ) from error
    return nibabel
