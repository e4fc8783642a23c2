"""Videos with their masks as data sets: what is written is what the readers of those data sets read; H.264 for browsers."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from micro import blob, picture

from sam2_mem.evaluation.datasets import LAYOUTS, DatasetOnDisk, FolderVideo
from sam2_mem.training.folders import ObjectFolderFrames
from sam2_mem.video import DatasetWriter, Frame, OverlayWriter
from sam2_mem.video.layouts import FOLDERS

COUNT = 3


def write(root: Path, layout: str, video: str = "cup") -> None:
    with DatasetWriter(root, video, layout, {1: "cup"}) as writer:
        for index in range(COUNT):
            masks = {1: blob(0, index), 4: blob(1, index)}
            writer.write(Frame(index, f"{index:05d}", picture(index)), masks)


def ids(index: int) -> np.ndarray:
    result = np.zeros((64, 64), np.uint8)
    result[blob(1, index)] = 4
    result[blob(0, index)] = 1
    return result


@pytest.mark.parametrize("layout", ["davis2017", "youtubevos"])
def test_a_data_set_of_palette_masks(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout)
    write(tmp_path, layout, "second")
    data = DatasetOnDisk(layout, tmp_path)
    assert data.names == ["cup", "second"] and len(list((data.frames / "cup").glob("*.jpg"))) == COUNT
    video = FolderVideo("cup", data.annotations / "cup", tmp_path)
    assert list(video.frames) == [f"{i:05d}" for i in range(COUNT)]
    assert all(np.array_equal(video.truth(f"{i:05d}"), ids(i)) for i in range(COUNT))
    if layout == "youtubevos":
        assert [(o.obj_id, len(o.frames)) for o in data.objects["cup"]] == [(1, COUNT), (4, COUNT)]
        meta = json.loads((tmp_path / "valid" / "meta.json").read_text())["videos"]["cup"]["objects"]
        assert [meta[i]["category"] for i in ("1", "4")] == ["cup", "object"]


def test_a_data_set_of_a_folder_per_object(tmp_path: Path) -> None:
    write(tmp_path, "sav")
    data = DatasetOnDisk("sav", tmp_path)
    assert data.names == ["cup"]
    frames = ObjectFolderFrames(data.frames / "cup", data.annotations / "cup")
    assert frames.frames == [f"{i:05d}" for i in range(COUNT)]
    assert np.array_equal(frames.ids("00002") > 0, ids(2) > 0)
    assert np.abs(frames.image("00001").astype(int) - picture(1)).mean() < 6


def test_layouts_are_those_that_are_read() -> None:
    for name, folders in FOLDERS.items():
        layout = LAYOUTS[name]
        roots = ("", f"{layout.split}/")
        assert folders.masks in [root + a.format(split=layout.split) for root in roots for a in layout.annotations]
        assert folders.pictures in [root + f.format(split=layout.split) for root in roots for f in layout.frames]
    with pytest.raises(ValueError, match="layout out of davis2017"):
        DatasetWriter(".", "x", "coco")


def test_h264_is_what_browsers_play(tmp_path: Path) -> None:
    """H.264 of 4:2:0, whose index lies before the pictures; an odd size is extended, colours stay."""
    av = pytest.importorskip("av")
    path = tmp_path / "overlay.mp4"
    images = [np.full((33, 47, 3), (200, 30 + 5 * i, 60), np.uint8) for i in range(12)]
    with OverlayWriter(path, fps=29.97, labels=False, codecs=("h264", "mp4v")) as writer:
        for index, image in enumerate(images):
            writer.write(Frame(index, f"{index:05d}", image), {})
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.width) == ("h264", "yuv420p", 48)
        assert float(stream.average_rate) == pytest.approx(29.97, rel=1e-3)
        decoded = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(decoded) == 12 and np.abs(decoded[7].astype(int)[:33, :47] - images[7]).mean() < 4
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "playing starts while it loads"


def test_without_pyav_the_codec_is_another_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sam2_mem.video.overlay.has_h264", lambda: False)
    with OverlayWriter(tmp_path / "a.mp4", labels=False, codecs=("h264", "mp4v")) as writer:
        writer.write(Frame(0, "00000", np.zeros((32, 32, 3), np.uint8)), {})
    assert "browsers may not play" in caplog.text
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert capture.grab()
    capture.release()
