"""Frames of a file found by their time: equal to those decoded from the start, and a seek that errs is noticed."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam2_mem.video import open_video, stored
from sam2_mem.video.indexed import IndexedFileSource

COUNT = 200


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every frame has a grey value of its own."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
    for index in range(COUNT):
        writer.write(np.full((48, 64, 3), 20 + index, np.uint8))
    writer.release()
    return path


def opened(path: Path) -> IndexedFileSource:
    source = open_video(path, indexed=True, cache=0)
    assert isinstance(source, IndexedFileSource) and source.times.wait(30)
    return source


def test_random_frames_equal_those_of_a_pass(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_video(film) as plain:
        truth = [frame.image.copy() for frame in plain]
    order = random.Random(0).sample(range(COUNT), 60)
    with opened(film) as source:
        decoded = 0
        skip_to = stored.VideoReader.skip_to

        def counted(self: stored.VideoReader, index: int) -> bool:
            nonlocal decoded
            decoded += index - self.position
            return skip_to(self, index)

        monkeypatch.setattr(stored.VideoReader, "skip_to", counted)
        assert all(np.array_equal(source[index].image, truth[index]) for index in order)
        assert decoded < 12 * len(order), "frames are sought, not decoded from the start"
        assert [f.index for f in source.frames(150, 160)] == list(range(150, 160))
        assert np.array_equal(next(source.frames(150)).image, truth[150])
        assert [f.index for f in source.frames(150, 140, -1)] == list(range(150, 140, -1))
        assert source.count_frames() == COUNT


def test_a_seek_to_another_place_is_noticed(film: Path) -> None:
    """A reader that lands three frames late whenever it is sent somewhere: its frames are decoded from the start instead."""
    with open_video(film) as plain:
        truth = plain[120].image.copy()

    class Late:
        def __init__(self, *arguments: object) -> None:
            self._capture = cv2.VideoCapture(*arguments)

        def set(self, key: int, value: float) -> bool:
            return self._capture.set(key, min(value + 200, COUNT - 1))

        def __getattr__(self, name: str) -> object:
            return getattr(self._capture, name)

    with opened(film) as source:
        source._reader.close()
        source._reader = stored.VideoReader(film)
        source._reader._capture = Late(str(film))
        assert not source._reader.seek(120, source.times.index_of)
        assert np.array_equal(source[120].image, truth)


def test_times_that_repeat_are_not_believed(film: Path) -> None:
    with opened(film) as source:
        source.times._indices = dict.fromkeys(source.times._indices, -1)
        assert not source._reader.seek(120, source.times.index_of)
        assert source[120].image.mean() == pytest.approx(140, abs=4)


def test_a_wrong_index_would_be_noticed(film: Path) -> None:
    """The control of the tests above: with times shifted by a frame, another picture comes."""
    with open_video(film) as plain, opened(film) as source:
        source.times._indices = {time: index + 1 for time, index in source.times._indices.items()}
        assert not np.array_equal(source[120].image, plain[120].image)
