"""`sam2-mem segment --volume`: a made-up scan in, a volume of object ids in the same place out."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro import one_thread  # noqa: F401

from sam2_mem.cli import vos
from sam2_mem.cli.volume import track_both_ways
from sam2_mem.prompts import Prompt
from sam2_mem.video.volumes import Volume, read_volume, write_labels

nibabel = pytest.importorskip("nibabel")

SHAPE, MIDDLE = (40, 32, 9), 4
AFFINE = np.array([[-0.8, 0, 0, 12], [0, 0.7, 0.1, -5], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


def ball() -> np.ndarray:
    """A bright ball in air, in Hounsfield units."""
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    inside = ((i - 24) / 8) ** 2 + ((j - 12) / 8) ** 2 + ((k - MIDDLE) / 3.6) ** 2 <= 1
    return np.where(inside, 60.0, -900.0).astype(np.float32)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    image = nibabel.Nifti1Image(ball(), AFFINE)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def test_slices_are_pictures_in_the_order_of_the_file(scan: Path) -> None:
    volume = read_volume(scan)
    pictures = volume.slices(2, window=(40, 400))
    assert pictures.shape == (9, 32, 40, 3) and pictures.dtype == np.uint8
    assert (pictures[MIDDLE, 12, 24] == round((60 + 160) / 400 * 255)).all() and (pictures[0] == 0).all()
    assert volume.slices(0).shape == (40, 9, 32, 3) and volume.slices(1).shape == (32, 9, 40, 3)
    assert volume.slices(2)[MIDDLE, 12, 24, 0] == 255
    for axis in range(3):
        marked = volume.slices(axis)[..., 0] > 128
        assert np.array_equal(volume.of_slices(marked, axis), volume.values > 0)


def test_labels_lie_where_the_scan_lies(scan: Path, tmp_path: Path) -> None:
    volume = read_volume(scan)
    for ids, kind in ((3, np.uint8), (300, np.uint16)):
        path = tmp_path / f"labels{ids}.nii.gz"
        write_labels(path, (volume.values > 0) * ids, volume)
        image = nibabel.load(path)
        assert image.get_data_dtype() == kind and image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.affine, nibabel.load(scan).affine)
        assert np.array_equal(np.asarray(image.dataobj), (ball() > 0) * ids)


class CopiesTheBright:
    """A predictor whose masks are the bright pixels; notes on which slices it was asked to track."""

    def __init__(self) -> None:
        self.tracked: list[tuple[int, bool]] = []

    def init_state(self, pictures: np.ndarray) -> dict[str, Any]:
        return {"pictures": pictures}

    def add_new_points_or_box(self, state: dict[str, Any], frame: int, obj_id: int, **clicks: Any) -> None:
        state["id"] = obj_id

    def propagate_in_video(self, state: dict[str, Any], start_frame_idx: int, reverse: bool) -> Any:
        import torch

        stop = -1 if reverse else len(state["pictures"])
        for frame in range(start_frame_idx, stop, -1 if reverse else 1):
            self.tracked.append((frame, reverse))
            bright = torch.from_numpy(state["pictures"][frame, ..., 0].astype(np.float32)) - 128
            yield frame, [state["id"], 7], torch.stack([bright, bright - 50])[:, None]


def test_both_ways_from_the_slice_of_the_prompts() -> None:
    volume, predictor = Volume(ball(), AFFINE), CopiesTheBright()
    prompt = Prompt(2, box=(16, 4, 32, 20), size=(32, 40))
    masks = track_both_ways(predictor, volume.slices(2), MIDDLE, [prompt])
    assert predictor.tracked == [(k, False) for k in range(4, 9)] + [(k, True) for k in range(4, -1, -1)]
    assert np.array_equal(volume.of_slices(masks), (ball() > 0) * 2), "the higher logit wins"


def command(scan: Path, tmp_path: Path, *arguments: str) -> int:
    network = ("--sam2_cfg", "hiera_nano", "--sam2_checkpoint", "random", "--device", "cpu")
    return vos.main(["--volume", str(scan), "--output", str(tmp_path / "out"), *network, *arguments])


def test_the_command(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--box", "16,4,32,20", "--window", "400", "--level", "40", "--allow_empty_prompts")
    assert command(scan, tmp_path, *arguments) == 0
    written = tmp_path / "out" / "scan_masks.nii.gz"
    assert capsys.readouterr().out.strip() == str(written)
    image = nibabel.load(written)
    assert image.shape == SHAPE and set(np.unique(np.asarray(image.dataobj))) <= {0, 1}
    np.testing.assert_allclose(image.affine, nibabel.load(scan).affine)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--box", "1,1,9,9", "--slice", "9"), "expected --slice in 0..8 along axis 2, got 9"),
        (("--box", "1,1,9,9", "--window", "400"), "expected --window together with --level"),
        (("--box", "1,1,9,9", "--window", "0", "--level", "1"), "expected --window > 0, got 0"),
        (("--box", "1,1,9,9", "--save_rle"), "expected --volume without --save_rle, which is for videos"),
        (("--box", "1,1,9,9", "--video", "a.mp4"), "expected --volume without --video"),
        ((), "expected either --mask or --box/--points"),
    ],
)
def test_what_does_not_fit_is_said(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    try:
        status = command(scan, tmp_path, *arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and expected in capsys.readouterr().err


def test_files_that_are_no_volume(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such volume"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "text.nii.gz").write_text("no scan")
    with pytest.raises(ValueError, match="expected a volume that nibabel reads"):
        read_volume(tmp_path / "text.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), AFFINE), tmp_path / "series.nii")
    with pytest.raises(ValueError, match="three axes .* got 4 x 4 x 4 x 2"):
        read_volume(tmp_path / "series.nii")
    nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), AFFINE), tmp_path / "gaps.nii")
    with pytest.raises(ValueError, match="expected finite values"):
        read_volume(tmp_path / "gaps.nii")


def test_without_nibabel_it_is_said_what_to_install(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("nibabel"):
            raise ImportError(name)
        return plain(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert command(scan, tmp_path, "--box", "1,1,9,9") == 2
    assert 'pip install "sam2_mem[volumes]"' in capsys.readouterr().err
