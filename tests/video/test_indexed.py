"""Frames of a file that are sought: equal to those decoded from the start, and a seek that errs is noticed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from sam2_mem.video import open_video
from sam2_mem.video.decoding import VideoReader
from sam2_mem.video.indexed import IndexedFileSource

COUNT = 200
FAR = 150


def picture(index: int) -> np.ndarray:
    """Every frame has a grey value of its own, and colours."""
    image = np.full((48, 64, 3), 20 + index, np.uint8)
    image[:, :16] = (240, 30, 40)
    return image


@pytest.fixture(scope="module", params=["mpeg4", "h264"])
def film(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MPEG-4 with a keyframe in twelve, and H.264 with one in sixty and frames that lean on later ones."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    if request.param == "mpeg4":
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
        for index in range(COUNT):
            writer.write(picture(index))
        writer.release()
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"g": "60", "bf": "3", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(COUNT):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="bgr24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def truth(film: Path) -> list[np.ndarray]:
    with open_video(film) as plain:
        return [frame.image.copy() for frame in plain]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every frame that is decoded."""
    frames: list[int] = []
    real = VideoReader._decoded

    def counted(self: VideoReader) -> Iterator[av.VideoFrame | None]:
        for frame in real(self):
            frames.append(1)
            yield frame

    monkeypatch.setattr(VideoReader, "_decoded", counted)
    return frames


def opened(path: Path) -> IndexedFileSource:
    source = open_video(path, indexed=True, cache=0)
    assert isinstance(source, IndexedFileSource) and source.times.wait(30) and len(source.times) == COUNT
    return source


def test_random_frames_equal_those_of_a_pass(film: Path, truth: list[np.ndarray], decoded: list[int]) -> None:
    assert len(truth) == COUNT
    order = random.Random(0).sample(range(COUNT), 60)
    with opened(film) as source:
        assert all(np.array_equal(source[index].image, truth[index]) for index in order)
        assert len(decoded) < 50 * len(order), "frames are sought, not decoded from the start"
        assert [f.index for f in source.frames(FAR, FAR + 10)] == list(range(FAR, FAR + 10))
        assert np.array_equal(next(source.frames(FAR)).image, truth[FAR])
        assert [f.index for f in source.frames(FAR, FAR - 10, -1)] == list(range(FAR, FAR - 10, -1))
        assert source.count_frames() == COUNT


def test_a_pass_backwards_seeks(film: Path, truth: list[np.ndarray], decoded: list[int]) -> None:
    with open_video(film) as source:
        for frame in source.frames(step=-1):
            assert np.array_equal(frame.image, truth[frame.index])
    assert len(decoded) < 6 * COUNT, "not from the start of the file for every block"


def test_the_length_is_known_without_decoding(film: Path, decoded: list[int]) -> None:
    with open_video(film) as source:
        before = len(decoded)
        assert source.num_frames is None and source.count_frames() == COUNT == source.num_frames
        assert len(decoded) == before


def test_a_seek_to_another_place_is_noticed(film: Path, truth: list[np.ndarray]) -> None:
    """A file whose seeks come out too late: its frames are decoded from the start instead."""
    with opened(film) as source:
        real = source.times.time_of
        source.times.time_of = lambda index: real(COUNT - 1)  # type: ignore[method-assign]
        assert not VideoReader(film).seek(120, source.times)
        assert np.array_equal(source[120].image, truth[120])


def test_times_that_repeat_are_not_believed(film: Path, truth: list[np.ndarray]) -> None:
    with opened(film) as source:
        source.times._indices = {}
        assert len(source.times) == 0
        assert np.array_equal(source[120].image, truth[120]) and np.array_equal(source[20].image, truth[20])


def test_a_wrong_index_would_be_noticed(film: Path, truth: list[np.ndarray]) -> None:
    """The control of the tests above: with times shifted by a frame, another picture comes."""
    with opened(film) as source:
        source.times._indices = {time: index + 1 for time, index in source.times._indices.items()}
        assert not np.array_equal(source[120].image, truth[120])


@pytest.mark.parametrize(("ending", "code"), [(".mp4", "mp4v"), (".avi", "MJPG"), (".webm", "VP80")])
def test_pixels_are_those_of_opencv(tmp_path: Path, ending: str, code: str) -> None:
    path = tmp_path / f"clip{ending}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 24.0, (96, 64))
    noise = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    for index in range(6):
        writer.write(np.roll(cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC), 3 * index, axis=1))
    writer.release()
    capture = cv2.VideoCapture(str(path))
    with open_video(path) as source:
        for frame in source:
            assert np.array_equal(frame.image, cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB))
        assert source.num_frames == 6
