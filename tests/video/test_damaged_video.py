"""Video files that are damaged, cut off, or trimmed: no frame is left out without a word."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_video_sources import HEIGHT, WIDTH, indices, make_image, write_clip

from sam2_mem.video import open_video

COUNT = 60


def damaged(path: Path, start: float, size: int) -> Path:
    """`size` bytes overwritten, from a share of the file on."""
    content = bytearray(path.read_bytes())
    first = round(start * len(content))
    content[first : first + size] = np.random.default_rng(0).bytes(size)
    return replaced(path, bytes(content))


def replaced(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def decodable(path: Path) -> list[bool]:
    """What OpenCV's `grab` says, up to well behind the stated length: the control that the damage is where it should be."""
    capture = cv2.VideoCapture(str(path))
    grabbed = [capture.grab() for _ in range(COUNT + 20)]
    capture.release()
    return grabbed


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", COUNT)


def test_a_damaged_frame_in_the_middle_is_an_error(clip):
    damaged(clip, 0.5, 2000)
    grabbed = decodable(clip)
    bad = grabbed.index(False)
    assert 10 < bad < 50 and any(grabbed[bad:]), "OpenCV fails, then goes on: the end of the video is not here"
    with open_video(clip) as source:
        seen = []
        with pytest.raises(ValueError, match=rf"cannot read frame {bad} of '.*clip\.mp4': the file is damaged there"):
            for frame in source:
                seen.append(frame.index)
        assert seen == list(range(bad))
        assert source.num_frames is None
        assert indices([source[bad - 3], source[3]]) == [bad - 3, 3]
        for ask in (lambda: source[bad], lambda: source[bad], lambda: source[COUNT - 1], source.count_frames):
            with pytest.raises(ValueError, match=f"cannot read frame {bad} of"):
                ask()
        with pytest.raises(ValueError, match=f"cannot read frame {bad} of"):
            list(source.frames(COUNT - 1, None, -1))
    with open_video(clip) as source, pytest.raises(ValueError, match=f"cannot read frame {bad} of"):
        list(source.frames(step=-1))


def test_a_damaged_first_frame_is_an_error_that_says_so(clip):
    damaged(clip, 48 / clip.stat().st_size, 400)
    assert decodable(clip)[:2] == [False, True]
    with pytest.raises(
        ValueError, match=r"cannot read frame 0 of '.*clip\.mp4': the file is damaged there, later frames"
    ):
        open_video(clip)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".webm"])
def test_a_file_that_was_cut_off_is_a_warning(tmp_path, suffix, caplog):
    fourcc = {".avi": "MJPG", ".webm": "VP80"}.get(suffix, "mp4v")
    path = write_clip(tmp_path / f"clip{suffix}", COUNT, fourcc)
    content = path.read_bytes()
    replaced(path, content[: len(content) // 2])
    with open_video(path) as source:
        frames = indices(source)
        assert 10 < len(frames) == source.num_frames < COUNT == source.stated_length
    assert f"clip{suffix} states {COUNT} frames; {len(frames)} could be decoded" in caplog.text
    assert "time jumps" not in caplog.text


def test_frames_that_vanish_without_a_failure_are_a_warning_that_says_where(tmp_path, caplog):
    path = damaged(write_clip(tmp_path / "clip.mkv", COUNT), 0.5, 1500)
    grabbed = decodable(path)
    assert grabbed.index(False) == sum(grabbed) < COUNT, "no failure before the end"
    with open_video(path) as source:
        frames = list(source)
    jump = next(frame.index for frame in frames[1:] if not np.array_equal(frame.image[:24], 0) and late(frame))
    assert f"states {COUNT} frames; {len(frames)} could be decoded; time jumps before frame {jump}" in caplog.text


def late(frame) -> bool:
    """Whether a frame shows a later picture than its index says."""
    return sum(int(frame.image[4:20, bit * 8 + 2 : bit * 8 + 6].mean() > 127) << bit for bit in range(8)) > frame.index


def test_a_whole_file_says_nothing(clip, caplog):
    with open_video(clip) as source:
        assert indices(source) == list(range(COUNT)) and source.stated_length == COUNT
    assert caplog.text == ""


def test_a_video_trimmed_by_an_edit_list_is_no_error(clip, caplog):
    content = bytearray(clip.read_bytes())
    at = content.index(b"elst") + 12  # after the name, the version and the number of entries: duration, start
    duration = int.from_bytes(content[at : at + 4], "big")
    content[at : at + 4] = (duration // 2).to_bytes(4, "big")
    replaced(clip, bytes(content))
    with open_video(clip) as source:
        count = len(indices(source))
        assert source.num_frames == count == COUNT // 2
    assert f"states {COUNT} frames; {count} could be decoded" in caplog.text


TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Degrees clockwise -> a, b, c, d of the matrix in a track's header."""


@pytest.mark.parametrize("degrees", TURNS)
def test_a_phone_video_with_a_display_matrix_is_upright(clip, degrees):
    with open_video(clip) as source:
        plain = [frame.image for frame in source.frames(0, 3)]
    content = bytearray(clip.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (number * 65536 for number in TURNS[degrees])
    x = WIDTH if degrees == 180 else HEIGHT if degrees == 90 else 0
    y = HEIGHT if degrees == 180 else WIDTH if degrees == 270 else 0
    matrix = [a, b, 0, c, d, 0, x * 65536, y * 65536, 0x40000000]
    content[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in matrix)
    replaced(clip, bytes(content))
    with open_video(clip) as source:
        turned = [frame.image for frame in source.frames(0, 3)]
        assert (source.height, source.width) == turned[0].shape[:2]
    assert all(np.array_equal(t, np.rot90(p, -degrees // 90)) for t, p in zip(turned, plain))
    assert not np.array_equal(turned[0], plain[0]) and np.abs(plain[0].astype(int) - make_image(0)).mean() < 40
