"""Pictures that are no files, of other kinds, or turned; lists of them; and readers of other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_video_sources import indices, make_image, write_folder

from sam2_mem.video import open_video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "video", ["0.png", "1.jpg", "2.png"])


@pytest.mark.parametrize("kind", ["link to nothing", "folder", "link to a folder"])
def test_an_entry_called_like_a_picture_that_is_not_a_file(folder, kind):
    path = folder / "3.jpg"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder.parent if kind == "link to a folder" else folder / "gone.jpg")
    got = r"a link to '.*gone\.jpg', which does not exist" if kind == "link to nothing" else "a folder"
    with pytest.raises(
        ValueError, match=rf"cannot read '.*3\.jpg': expected a picture, got {got}; replace or remove it"
    ):
        open_video(folder)


def test_a_link_to_a_picture_is_a_picture(folder):
    (folder / "3.png").symlink_to(folder / "2.png")
    assert [frame.name for frame in open_video(folder)] == ["0", "1", "2", "3"]


def test_pictures_of_other_kinds_are_counted(folder, caplog):
    assert len(open_video(folder)) == 3 and caplog.text == ""
    for name in ("3.webp", "4.BMP", "._5.webp"):
        Image.fromarray(make_image(3)).save(folder / name)
    assert len(open_video(folder)) == 3
    assert "2 pictures in" in caplog.text and "are not read, e.g. '3.webp'; frames are .jpg, .jpeg, .png" in caplog.text


def with_orientation(image: Image.Image, value: int) -> Image.Image:
    image.getexif()[0x0112] = value
    return image


def test_pictures_with_an_exif_turn_are_read_as_stored_with_one_warning(folder, caplog):
    for name in ("0.png", "1.jpg", "2.png"):
        image = with_orientation(Image.open(folder / name), 6)
        image.save(folder / name, exif=image.getexif(), quality=95)
    with open_video(folder) as source:
        assert indices(source) == [0, 1, 2] and (source.height, source.width) == (48, 64)
    assert caplog.text.count("has an EXIF orientation, which is not applied, as in SAM 2") == 1


def test_exif_of_pictures_in_memory(caplog):
    images = [Image.fromarray(make_image(index)) for index in range(3)]
    assert indices(open_video(images)) == [0, 1, 2] and indices(open_video(iter(images))) == [0, 1, 2]
    upright = [with_orientation(image.copy(), 1) for image in images]
    assert indices(open_video(upright)) == [0, 1, 2] and caplog.text == ""
    for count, form in enumerate((list, iter), start=1):
        turned = [with_orientation(image.copy(), 8) for image in images]
        assert indices(open_video(form(turned))) == [0, 1, 2]
        assert caplog.text.count("EXIF orientation") == count


def test_a_list_of_picture_files_is_a_video_in_its_order(folder):
    paths = [folder / "2.png", str(folder / "0.png"), folder / "1.jpg"]
    with open_video(paths) as source:
        assert [(frame.index, frame.name) for frame in source] == [(0, "2"), (1, "0"), (2, "1")]
        assert source.seekable and np.array_equal(source[0].image, make_image(2))
        assert [frame.name for frame in source.frames(step=-1)] == ["1", "0", "2"]
    with pytest.raises(ValueError, match=r"cannot read '.*9\.png': expected a picture, got no such file"):
        open_video([folder / "0.png", folder / "9.png"])
    (folder / "sub").mkdir()
    (folder / "0.png").rename(folder / "sub" / "2.png")
    with pytest.raises(ValueError, match=r"two frames share one name: '.*video/2\.png' and '.*sub/2\.png'"):
        open_video([folder / "2.png", folder / "sub" / "2.png"])


class Reader:
    """Frames by index, as decord's VideoReader gives them: with a length, without iteration."""

    def __init__(self, form) -> None:
        self.form = form

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int):
        return self.form(make_image(index))


class NDArray:
    """An array of another library: decord's."""

    def __init__(self, image: np.ndarray) -> None:
        self._image = image

    def asnumpy(self) -> np.ndarray:
        return self._image


class ArrayLike(NDArray):
    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._image


FORMS = {
    "decord": NDArray,
    "torchcodec": lambda image: torch.from_numpy(image).permute(2, 0, 1),
    "array protocol": ArrayLike,
    "NumPy": lambda image: image,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_readers_that_give_frames_by_index(form):
    with open_video(Reader(form)) as source:
        assert source.seekable and len(source) == 5
        assert indices(source) == [0, 1, 2, 3, 4] and indices(source.frames(step=-1)) == [4, 3, 2, 1, 0]
        assert np.array_equal(source[3].image, make_image(3))
