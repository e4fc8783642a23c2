"""The pictures of worst frames in the report of a comparison."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sam2_mem.evaluation.comparison.thumbnails import WIDTH, draw_thumbnail, masks_of, worst_frame
from sam2_mem.evaluation.protocols import DAVIS2016, DAVIS2017, SAV
from sam2_mem.evaluation.results import ObjectScores
from sam2_mem.evaluation.videos import AnnotatedVideo, VideoPart


def scored(obj_id: str, *j: float) -> ObjectScores:
    per_frame = np.array([(0.9, value) for value in j]).reshape(-1, 2)
    return ObjectScores(
        video="v", obj_id=obj_id, values=(), frames=tuple(f"{t:05d}" for t in range(len(j))), per_frame=per_frame
    )


def test_the_worst_frame_is_the_first_of_lowest_j() -> None:
    worst = worst_frame([scored("1", 0.8, 0.4), scored("2", 0.9, 0.2, 0.2), scored("3")], ("F", "J"))
    assert worst == ("2", "00001", 0.2)
    assert worst_frame([scored("3")], ("F", "J")) is None


class Constant(AnnotatedVideo):
    """One frame whose ids and predicted ids are the same everywhere in the left and the right half."""

    name, frames = "v", ("00000",)

    def __init__(
        self, truth: tuple[int, int], predicted: tuple[int, int], parts: dict[int, AnnotatedVideo] | None = None
    ) -> None:
        self._truth, self._predicted, self._parts = truth, predicted, parts

    def truth(self, frame: str) -> np.ndarray:
        return np.tile(np.repeat(np.array(self._truth, np.uint8), 2), (3, 1))

    def prediction(self, frame: str) -> np.ndarray:
        return np.tile(np.repeat(np.array(self._predicted, np.uint8), 2), (3, 1))

    def parts(self) -> list[VideoPart]:
        return [VideoPart(v, k) for k, v in self._parts.items()] if self._parts else [VideoPart(self)]


def test_masks_are_those_that_are_scored() -> None:
    def halves(video: AnnotatedVideo, protocol: object, obj_id: str) -> list[list[bool]]:
        worst = worst_frame([scored(obj_id, 0.0)], ("F", "J"))
        return [mask[0, ::2].tolist() for mask in masks_of(video, protocol, worst)]

    assert halves(Constant((1, 2), (2, 2)), DAVIS2017(), "2") == [[True, True], [False, True]]
    assert halves(Constant((255, 0), (0, 1)), DAVIS2016(), "1") == [[False, True], [True, False]]
    overlapping = Constant((0, 0), (0, 0), {3: Constant((1, 0), (1, 1)), 7: Constant((0, 1), (0, 0))})
    assert halves(overlapping, SAV(), "007") == [[False, False], [False, True]]
    assert halves(overlapping, SAV(), "003") == [[True, True], [True, False]]


def test_a_thumbnail_shows_mask_and_truth() -> None:
    image = np.full((360, 480, 3), 90, np.uint8)
    mask, truth = np.zeros((2, 360, 480), bool)
    mask[40:160, 40:200] = truth[200:320, 280:440] = True
    encoded = draw_thumbnail(image, mask, truth)
    picture = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
    assert picture.shape == (180, WIDTH, 3) and len(encoded) < 20_000
    assert np.abs(picture[50, 60] - 90).max() > 30, "the mask is tinted"
    assert np.abs(picture[130, 180] - 90).max() < 12, "the truth is not filled"
    assert picture[130, 136:146].max() > 200, "but outlined"
    small = draw_thumbnail(image[:60, :80], mask[:60, :80], truth[:60, :80])
    assert Image.open(io.BytesIO(small)).size == (80, 60), "never enlarged"
