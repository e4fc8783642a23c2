"""The command line with names as people have them, lists of other systems, places that must not be written to, and disks
and terminals that fail."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from micro import one_thread  # noqa: F401
from PIL import Image
from test_vos_inference import MICRO, TOOL, corners, data, ids_at, micro, picture, record, run, save_mask, single, tree  # noqa: F401

from sam2_mem.cli import progress as progress_module
from sam2_mem.cli import vos as tool
from sam2_mem.cli.arguments import exit_status
from sam2_mem.tracking import run_manifest, vos_run
from sam2_mem.tracking.vos_run import find_video, list_videos
from sam2_mem.video import Frame, OverlayWriter, open_video, overlay, read_mask_png, read_rle

PLAIN = ("--no-save_overlay", "--no-contact_sheet")
COUNT = 3


def film(path: Path, count: int = COUNT, seed: int = 0) -> Path:
    """The pictures of a data set as a video file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path.absolute()), cv2.VideoWriter.fourcc(*"mp4v"), 24.0, (64, 48))
    for index in range(count):
        writer.write(picture(index, seed)[..., ::-1])
    writer.release()
    assert path.stat().st_size > 500
    return path


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = [
    "10:30",
    "file:x",
    "a b  c",
    "é ☃ 日本",
    "-dash",
    "50%d off",
    'it\'s [1], "x" & $y; {z}*?',
    "v1.2",
    "x" * 240,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
def test_files_and_folders_called_as_people_call_them(name, micro, data, tmp_path, monkeypatch):
    """From the folder that they are in, so that their paths begin with their names."""
    monkeypatch.chdir(tmp_path)
    save_mask(tmp_path / "m.png", ids_at(0))
    base = Path(f"in {name}"[:250])
    film(base / f"{name}.mp4")
    out = Path(f"out{name}"[:250])
    video = f"{base}/{name}.mp4"
    extra = [] if len(name) < 200 else PLAIN  # the name of the overlay would be too long
    assert tool.main([*micro.arguments(), "--video", video, "--mask", "m.png", "--output", str(out), *extra]) == 0
    assert sorted(p.name for p in (out / name).iterdir()) == [f"{i:05d}.png" for i in range(COUNT)]
    if not extra:
        with open_video(out / f"{name}_overlay.mp4") as drawn:
            assert drawn.count_frames() == COUNT
    save_mask(data.masks / name / "00000.png", ids_at(0))
    arguments = ["--base_video_dir", str(base), "--input_mask_dir", str(data.masks), "--output", "all"]
    assert tool.main([*micro.arguments(), *arguments]) == 0
    masks = {path: content for path, content in tree(out).items() if path.startswith(f"{name}/")}
    assert tree(Path("all")) == masks and len(masks) == COUNT


@pytest.mark.parametrize("name", NAMES[:-1], ids=lambda name: name[:12])
def test_a_video_file_may_be_opened_by_a_relative_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    film(Path(f"{name}.mp4"))
    with open_video(f"./{name}.mp4" if "://" in name else f"{name}.mp4") as source:
        assert source.count_frames() == COUNT
    with OverlayWriter(f"{name}_o.mp4") as writer, open_video(f"{name}.mp4") as source:
        for frame in source:
            writer.write(frame, {1: ids_at(0) == 1})
    assert Path(f"{name}_o.mp4").exists()


def test_frames_with_brackets_and_long_names(run, data, tmp_path):
    for pattern in ("f[{:d}]*", "y" * 248 + "{:03d}"):
        name = pattern[:1]
        data.video(name, COUNT, pattern=pattern)
        for obj_id in (1, 2):
            save_mask(
                data.masks / name / f"{obj_id:03d}" / f"{pattern.format(0)}.png", (ids_at(0) == obj_id).astype(np.uint8)
            )
    assert run(tmp_path / "out", "--per_obj_png_file") == 0
    assert [report["objects"] for report in record(tmp_path / "out")["videos"]] == [[1, 2], [1, 2]]
    assert (tmp_path / "out" / "f" / "001" / "f[2]*.png").exists()


def test_masks_called_in_capitals(run, data, tmp_path, capsys):
    data.video("a", 3)
    data.mask("a")
    data.mask("a", "00002")
    (data.masks / "a" / "00002.png").rename(data.masks / "a" / "00002.PNG")
    assert run(tmp_path / "out", "--use_all_masks") == 1
    assert "expected masks called .png, got" in (text := capsys.readouterr().err) and "00002.PNG' (1 in all)" in text


def test_a_name_that_is_no_text(run, data, tmp_path):
    """A name in an encoding of old is bytes that are not UTF-8."""
    name = os.fsdecode(b"caf\xe9")
    data.video(name, 2)
    data.mask(name)
    assert run(tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / name).iterdir())) == 2


def test_letters_that_are_composed_otherwise(run, data, tmp_path):
    written, listed = (unicodedata.normalize(form, "é") for form in ("NFD", "NFC"))
    assert written != listed
    data.video(written, 2)
    data.mask(written)
    (tmp_path / "list.txt").write_text(listed, encoding="utf-8")
    assert run(tmp_path / "out", "--video_list_file", tmp_path / "list.txt") == 0
    film(tmp_path / "films" / f"{written}.mp4")
    assert find_video(tmp_path / "films", listed).name == f"{written}.mp4"


def test_a_folder_keeps_the_dots_of_its_name(micro, data, tmp_path):
    data.video("shot.1", 2)
    save_mask(tmp_path / "m.png", ids_at(0))
    arguments = [
        "--video",
        str(data.frames / "shot.1"),
        "--mask",
        str(tmp_path / "m.png"),
        "--output",
        str(tmp_path / "o"),
    ]
    (task,) = tool.make_tasks(tool.parse_arguments(arguments))
    assert task.name == "shot.1"


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    film(tmp_path / "clip.mp4")
    with open_video("~/clip.mp4") as source:
        assert source.count_frames() == COUNT
    arguments = tool.parse_arguments(["--video", "~/clip.mp4", "--mask=~/m.png", "--output=~/out"])
    assert (arguments.mask, arguments.output_mask_dir) == (tmp_path / "m.png", tmp_path / "out")


@pytest.mark.parametrize("size", [(1, 1), (7, 401), (401, 7), (17, 31)], ids=str)
def test_videos_of_odd_sizes(micro, tmp_path, size):
    """With overlay, sheet, run lengths and polygons."""
    (tmp_path / "a").mkdir()
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "a" / f"{index}.png")
    save_mask(tmp_path / "m.png", np.ones(size, np.uint8))
    arguments = ["--video", str(tmp_path / "a"), "--mask", str(tmp_path / "m.png"), "--output", str(tmp_path / "out")]
    assert tool.main([*micro.arguments(), *arguments, "--format", "rle,coco,yolo"]) == 0
    assert [read_mask_png(tmp_path / "out" / "a" / f"{i}.png").ids.shape for i in range(3)] == [size] * 3
    with open_video(tmp_path / "out" / "a_overlay.mp4") as drawn:
        assert drawn.count_frames() == 3 and (drawn.height, drawn.width) == tuple(side + side % 2 for side in size)
    assert (tmp_path / "out" / "a_sheet.png").exists()
    masks = [frame.masks()[1] for frame in read_rle(tmp_path / "out" / "a_masks.json").frames]
    assert all(
        np.array_equal(m, read_mask_png(tmp_path / "out" / "a" / f"{i}.png").ids == 1) for i, m in enumerate(masks)
    )
    polygons = json.loads((tmp_path / "out" / "a_coco.json").read_text())
    assert [item["area"] for item in polygons["annotations"]] == [int(m.sum()) for m in masks if m.any()]
    labels = [(tmp_path / "out" / "a_yolo" / "labels" / f"{i}.txt").read_text() for i in range(3)]
    assert [bool(label) for label in labels] == [bool(m.any()) for m in masks] and masks[0].any()


def test_a_config_that_names_weights_by_path(micro, data, tmp_path, monkeypatch, capsys):
    """One of ours of the same name is not taken instead; a bare name is one of ours."""
    data.video("a", 2)
    data.mask("a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "w.pt").write_bytes(micro.checkpoint.read_bytes())
    monkeypatch.setattr(tool, "checkpoint_dir", lambda: tmp_path / "package")
    config = tmp_path / "mine.yaml"
    for number, (named, found) in enumerate(
        (("/no/w.pt", None), ("elsewhere/w.pt", None), ("w.pt", "package/w.pt"), ("checkpoints/w.pt", "package/w.pt"))
    ):
        config.write_text(MICRO + f"checkpoint: {named}\n")
        out = tmp_path / f"out{number}"
        status = tool.main(["--sam2_cfg", str(config), "--device", "cpu", *data.arguments(), "--output", str(out)])
        assert status == (2 if found is None else 0)
        if found is None:
            assert f"no checkpoint '{named}'" in capsys.readouterr().err
        else:
            assert record(out)["weights"]["path"] == str(tmp_path / found)


# -- several files, one result ----------------------------------------------------------------------------------------


def test_two_files_that_would_give_one_result(tmp_path, caplog):
    for name in ("a.mp4", "a.mov", "b.mp4"):
        film(tmp_path / "videos" / name)
    with pytest.raises(
        ValueError, match=r"one video for each result, got 'a\.mov' and 'a\.mp4', whose masks .* to 'a'"
    ):
        list_videos(tmp_path / "videos")
    names = tmp_path / "names.txt"
    names.write_text("b.mp4\na\n")
    assert list_videos(tmp_path / "videos", names) == ["b", "a"]
    with pytest.raises(ValueError, match=r"expected one video 'a' in .*, got a\.mov, a\.mp4; rename one"):
        find_video(tmp_path / "videos", "a")
    (tmp_path / "videos" / "b").mkdir()
    assert find_video(tmp_path / "videos", "b").is_dir() and "is read, not 'b.mp4' of the same name" in caplog.text


def test_names_that_differ_in_case(run, data, tmp_path, monkeypatch, capsys):
    for name in ("Clip", "clip"):
        data.video(name, 2)
        data.mask(name)
    assert run(tmp_path / "out") == 0 and len(tree(tmp_path / "out")) == 4
    monkeypatch.setattr(vos_run, "_ignores_case", lambda folder: True)
    assert run(tmp_path / "other") == 2
    assert "a result of its own for each video, got one for 'Clip' and 'clip'" in capsys.readouterr().err


def test_names_that_lead_elsewhere(run, data, tmp_path, capsys):
    data.video("a", 2)
    data.mask("a")
    before = tree(data.frames)
    for name in (str(data.frames / "a"), "../frames/a", "x/../../a"):
        (tmp_path / "list.txt").write_text(name)
        assert run(tmp_path / "out", "--video_list_file", tmp_path / "list.txt") == 2
        assert "which leads out of it" in capsys.readouterr().err
    assert tree(data.frames) == before and not (tmp_path / "out").exists()


# -- lists of other systems -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"a\r\nb c\r\n",
        b"a\rb c\r",
        b"\xef\xbb\xbfa\nb c\n",
        b"\n\n  a  \n\t\nb c\t \n\n",
        "a\r\nb c\r\n".encode("utf-16"),
        b"a.mp4\nb c\na\n",
    ],
    ids=["CRLF", "CR", "BOM", "blank lines and spaces", "UTF-16", "endings and repeated lines"],
)
def test_lists_of_other_systems(content, tmp_path):
    (tmp_path / "list.txt").write_bytes(content)
    assert list_videos(tmp_path, tmp_path / "list.txt") == ["a", "b c"]


def test_a_list_in_another_encoding_is_an_error_that_says_so(tmp_path):
    (tmp_path / "list.txt").write_bytes("é\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"expected text in UTF-8 in '.*list\.txt', got other bytes .*; save it as UTF-8"
    ):
        list_videos(tmp_path, tmp_path / "list.txt")


def test_entries_that_are_no_videos_are_named(data, tmp_path, caplog):
    data.video("a", 2)
    (data.frames / "b.flv").write_bytes(b"x")
    (data.frames / "c").symlink_to(tmp_path / "nowhere")
    (data.frames / "out" / ".vos").mkdir(parents=True)
    assert list_videos(data.frames) == ["a", "c"], "a link to nothing is a video that fails, not one that is left out"
    assert "1 files in" in caplog.text and "e.g. 'b.flv'" in caplog.text
    assert "holds results of an earlier run and is not taken for a video" in caplog.text


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["frames", "masks"])
def test_the_input_is_no_place_for_the_output(place, run, data, tmp_path, capsys):
    data.video("a", 2)
    data.mask("a")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    (tmp_path / "link").symlink_to(tmp_path / place)
    for out in (tmp_path / place, tmp_path / "frames" / ".." / place, tmp_path / "link"):
        assert run(out) == 2
        assert "expected an output folder apart from what is read" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert run(tmp_path / "out") == 0, "the control"


def test_the_folder_of_one_video_is_no_place_for_its_masks(micro, data, tmp_path, capsys):
    data.video("a", 2)
    save_mask(tmp_path / "m.png", ids_at(0))
    for out in (data.frames, data.frames / "a"):
        assert single(micro, data, out, "--mask", tmp_path / "m.png") == 2
        assert "masks of 'a' would be written into" in capsys.readouterr().err
    assert sorted(p.name for p in data.frames.rglob("*")) == ["00000.jpg", "00001.jpg", "a"]
    film(tmp_path / "films" / "b.mp4")
    arguments = ["--video", str(tmp_path / "films" / "b.mp4"), "--mask", str(tmp_path / "m.png")]
    assert tool.main([*micro.arguments(), *arguments, "--output", str(tmp_path / "films"), *PLAIN]) == 0


# -- pictures that cannot be read -------------------------------------------------------------------------------------


def test_a_picture_that_is_not_there_is_a_failed_video(run, data, tmp_path, capsys):
    for name in ("a", "b"):
        data.video(name, 3)
        data.mask(name)
    (data.frames / "a" / "00001.jpg").unlink()
    (data.frames / "a" / "00001.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert run(tmp_path / "out") == 1
    assert "00001.jpg': expected a picture, got a link to" in capsys.readouterr().err
    assert set(tree(tmp_path / "out")) == {f"b/{i:05d}.png" for i in range(3)}


def test_a_damaged_video_file_is_a_failed_video_and_a_short_one_says_so(micro, tmp_path, capsys):
    save_mask(tmp_path / "m.png", ids_at(0))
    path = film(tmp_path / "a.mp4", 40)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 1000] = bytes(1000)
    path.write_bytes(content)
    arguments = [*micro.arguments(), "--mask", str(tmp_path / "m.png"), *PLAIN]
    assert tool.main([*arguments, "--video", str(path), "--output", str(tmp_path / "damaged")]) == 1
    assert "0 of 1 videos are complete" in (captured := capsys.readouterr()).out and "cannot read frame" in captured.err
    writer = cv2.VideoWriter(str(tmp_path / "b.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 24.0, (64, 48))
    for index in range(40):
        writer.write(picture(index, 0))
    writer.release()
    content = (tmp_path / "b.avi").read_bytes()
    (tmp_path / "b.avi").write_bytes(content[: len(content) // 2])
    assert tool.main([*arguments, "--video", str(tmp_path / "b.avi"), "--output", str(tmp_path / "short")]) == 0
    (report,) = record(tmp_path / "short")["videos"]
    assert 10 < report["frames"] < 40 == report["stated_frames"]
    assert f"cut off: b: {report['frames']} of 40 frames" in capsys.readouterr().err


def test_a_start_beyond_the_end_is_a_failed_video_without_a_traceback(micro, data, tmp_path, capsys, caplog):
    data.video("a", 3)
    save_mask(tmp_path / "m.png", ids_at(0))
    assert single(micro, data, tmp_path / "out", "--mask", tmp_path / "m.png", "--start_frame", 9) == 1
    assert "frame 9 is out of range; valid frames are 0 to 2" in capsys.readouterr().err
    assert [r.exc_info for r in caplog.records if r.levelno >= logging.ERROR] in ([None], [False])


# -- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_is_read_as_a_stream(micro, tmp_path):
    film(tmp_path / "web" / "clip.mp4")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/clip.mp4"
        with open_video(address) as source:
            assert not source.seekable and len(list(source)) == COUNT
        save_mask(tmp_path / "m.png", ids_at(0))
        arguments = ["--video", address, "--mask", str(tmp_path / "m.png"), "--output", str(tmp_path / "out")]
        assert tool.main([*micro.arguments(), *arguments, *PLAIN]) == 0
        server.shutdown()
    assert len(list((tmp_path / "out" / "clip").iterdir())) == COUNT


def test_an_address_reaches_opencv_as_it_is(monkeypatch):
    asked = []

    class NoCapture:
        def __init__(self, source):
            asked.append(source)

        def isOpened(self):  # noqa: N802
            return False

    monkeypatch.setattr(cv2, "VideoCapture", NoCapture)
    with pytest.raises(
        ValueError, match=r"cannot open 'rtsp://host:554/live': expected the address of a stream"
    ) as caught:
        open_video("rtsp://me:secret@host:554/live")
    assert asked == ["rtsp://me:secret@host:554/live"] and "secret" not in str(caught.value)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_negative_numbers_are_values():
    arguments = ["--video", "x", "--output", "y", "--box", "-1,5,30,30", "--points", "-.5,2", "--score_thresh", "-1e-3"]
    parsed = tool.parse_arguments([*arguments, "--negative_points", "-3,4"])
    assert (parsed.box, parsed.points, parsed.score_thresh) == ([(-1, 5, 30, 30)], ((-0.5, 2),), -1e-3)


# -- objects that are empty on their own prompts ----------------------------------------------------------------------


def test_an_object_that_is_empty_where_it_is_pointed_at(micro, data, tmp_path, capsys):
    """Under a threshold that no logit reaches, every mask is empty."""
    data.video("a", 3)
    empty = ["--points", "12,10", "--score_thresh", "1e9", *PLAIN]
    assert single(micro, data, tmp_path / "error", *empty) == 1
    assert "expected a mask where objects [1] are pointed at, got empty ones on frame 00000" in capsys.readouterr().err
    assert tree(tmp_path / "error") == {}
    assert single(micro, data, tmp_path / "allowed", *empty, "--allow_empty_prompts") == 0
    assert len(tree(tmp_path / "allowed")) == 3
    assert single(micro, data, tmp_path / "seen", *empty, "--score_thresh", "-1e9") == 0, "the control"


def test_a_mask_that_vanishes_on_its_own_frame_is_a_warning(run, data, tmp_path, caplog):
    data.video("a", 3)
    data.mask("a")
    assert run(tmp_path / "seen") == 0 and "where they are prompted" not in caplog.text
    assert run(tmp_path / "out", "--score_thresh", "1e9") == 0
    assert "objects [1, 2] are empty on frame 00000, where they are prompted" in caplog.text
    caplog.clear()
    save_mask(data.masks / "a" / "00000.png", np.zeros_like(ids_at(0)))
    assert run(tmp_path / "none", "--per_obj_png_file") == 1 and "where they are prompted" not in caplog.text


# -- full disks, terminals --------------------------------------------------------------------------------------------


@contextmanager
def disk_with(size: int) -> Iterator[None]:
    """No file may grow beyond some bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [100, 20_000])
def test_an_overlay_that_does_not_fit_the_disk_does_not_appear(tmp_path, size):
    pictures = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(30)]
    frames = [Frame(i, f"{i}", image) for i, image in enumerate(pictures)]
    writer, failure = OverlayWriter(tmp_path / "o.mp4"), None
    with disk_with(size):
        try:
            for frame in frames:
                writer.write(frame, {})
            writer.close()
        except OSError as error:
            failure = error
    assert re.search(r"o\.mp4': the file has 0 of \d+ frames; is the disk full\?", str(failure))
    assert list(tmp_path.iterdir()) == []
    with OverlayWriter(tmp_path / "o.mp4") as writer:
        for frame in frames:
            writer.write(frame, {})
    assert (tmp_path / "o.mp4").stat().st_size > 20_000, "the control"


def test_a_disk_that_fills_during_the_overlay_is_a_failed_video(run, data, tmp_path, monkeypatch):
    for name in ("a", "b"):
        data.video(name, 3)
        data.mask(name)
    real = overlay._stated_length
    monkeypatch.setattr(overlay, "_stated_length", lambda path: 0 if path.name.startswith(".a") else real(path))
    assert run(tmp_path / "out", "--save_overlay") == 1
    errors = [report["error"] for report in record(tmp_path / "out")["videos"]]
    assert "is the disk full?" in errors[0] and errors[1] is None
    assert [p.name for p in (tmp_path / "out").glob("*overlay*")] == ["b_overlay.mp4"]
    monkeypatch.setattr(overlay, "_stated_length", real)
    assert run(tmp_path / "out", "--save_overlay", "--resume") == 0
    assert [report["resumed"] for report in record(tmp_path / "out")["videos"]] == [False, True]


@pytest.mark.parametrize("failing", ["done", "run.json"])
def test_a_disk_that_is_full_fails_one_video_after_the_other(failing, run, data, tmp_path, monkeypatch, caplog, capsys):
    """The last thing written of a video, and run.json."""
    for name in ("a", "b"):
        data.video(name, 2)
        data.mask(name)
    real, module = run_manifest.write_json, run_manifest if failing == "done" else vos_run
    calls = []

    def write_json(path: Path, content: Any) -> None:
        calls.append(path.name)
        if (failing == "done" and path.parent.name == "done") or (failing == "run.json" and len(calls) > 1):
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(module, "write_json", write_json)
    status = run(tmp_path / "out")
    if failing == "done":
        assert status == 1 and caplog.text.count("failed after 2 frames: OSError") == 2
    else:
        assert status == 2 and calls == ["run.json"] * 4 and caplog.text.count("cannot write") == 2
        assert "No space left on device" in capsys.readouterr().err
        assert len(tree(tmp_path / "out")) == 4, "no mask is lost"


def test_no_stderr_and_no_stdout(micro, data, tmp_path):
    data.video("a", 2)
    data.mask("a")
    command = [sys.executable, str(TOOL), *micro.arguments(), *data.arguments(), "--output", str(tmp_path / "out")]
    script = '"$@" <&- >&- 2>&-'
    result = subprocess.run(["bash", "-c", script, "bash", *command], timeout=120)
    assert result.returncode == 0
    assert len(tree(tmp_path / "out")) == 2 and record(tmp_path / "out")["complete"]


def test_progress_is_a_few_lines_where_there_is_no_terminal(run, data, tmp_path, capsys, monkeypatch):
    data.video("a", 8)
    data.mask("a")
    assert run(tmp_path / "out") == 0
    text = capsys.readouterr().err
    assert "\r" not in text and text.count("1/1 a: ") == 1 and "1/1 a: 8 of 8 frames" in text
    monkeypatch.setattr(progress_module, "INTERVAL", 0.0)
    assert list(progress_module.progress(range(3), "x", total=3)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "x: 1 of 3 its",
        "x: 2 of 3 its",
        "x: 3 of 3 its",
        "x: 3 of 3 its",
    ]
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_module.progress(range(3), "x")) == [0, 1, 2]


def test_a_terminal_that_cannot_show_a_name():
    code = "from sam2_mem.cli.arguments import exit_status; exit_status(lambda: print('\\u2603 \\udce9') or 0)"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(TOOL.parents[1])}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert (result.returncode, result.stdout.strip()) == (0, r"\u2603 \udce9"), result.stderr


def test_exit_status_of_a_mistake(capsys):
    def fail() -> int:
        raise ValueError("expected x")

    assert exit_status(fail) == 2 and "error: expected x" in capsys.readouterr().err


def test_pictures_and_corners_are_those_of_the_clip(tmp_path):
    """The control of `film`: the frames are where the pictures are."""
    with open_video(film(tmp_path / "a.mp4")) as source:
        y, x = corners(1)[1]
        assert source[1].image[y + 2 : y + 12, x + 2 : x + 12, 0].mean() > 150
