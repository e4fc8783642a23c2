"""The image predictor with prompts for one object and for several at once, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from micro import micro_model, one_thread, picture  # noqa: F401

from sam2_mem import SAM2ImagePredictor

POINTS = np.array([[[20, 20], [40, 9]], [[44, 30], [5, 5]], [[31, 33], [60, 47]]], np.float32)
LABELS = np.array([[1, 0], [1, 0], [1, 1]])
BOXES = np.array([[4, 6, 30, 40], [20, 10, 60, 44], [0, 0, 64, 48]], np.float32)
TOLERANCE = 1e-4  # of logits: a batch of three is computed in another order than three calls


@pytest.fixture(scope="module")
def predictor() -> SAM2ImagePredictor:
    result = SAM2ImagePredictor(micro_model())
    result.set_image(picture(3, 48, 64))
    return result


def logits(predictor: SAM2ImagePredictor, **prompts: Any) -> tuple[np.ndarray, ...]:
    return predictor.predict(**prompts, return_logits=True)


def hints(predictor: SAM2ImagePredictor) -> np.ndarray:
    """(3, 1, h, w): one logit map for each object."""
    return np.stack([logits(predictor, box=box)[2][:1] for box in BOXES])


def given(predictor: SAM2ImagePredictor, names: str) -> dict[str, np.ndarray]:
    prompts = {"point_coords": POINTS, "point_labels": LABELS, "box": BOXES, "mask_input": hints(predictor)}
    chosen = names.replace("points", "point_coords point_labels").split()
    return {name: prompts[name] for name in chosen}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "names", ["points", "box", "mask_input", "points box", "points mask_input", "points box mask_input"]
)
def test_several_objects_at_once_equal_one_call_for_each(predictor, names, multimask):
    prompts = given(predictor, names)
    batch = logits(predictor, **prompts, multimask_output=multimask)
    count = 3 if multimask else 1
    assert [x.shape for x in batch] == [(3, count, 48, 64), (3, count), (3, count, 16, 16)]
    for row in range(3):
        alone = logits(predictor, **{name: value[row] for name, value in prompts.items()}, multimask_output=multimask)
        assert [x.shape for x in alone] == [x.shape[1:] for x in batch]
        assert max(np.abs(a - b[row]).max() for a, b in zip(alone, batch)) < TOLERANCE
    # The control: the prompts of another object give another answer.
    other = logits(predictor, **{name: value[1] for name, value in prompts.items()}, multimask_output=multimask)
    assert np.abs(other[0] - batch[0][0]).max() > 100 * TOLERANCE


def test_one_object_with_a_leading_axis_is_the_object_alone(predictor):
    alone = logits(predictor, point_coords=POINTS[0], point_labels=LABELS[0])
    for labels in (LABELS[:1], LABELS[0]):
        batch = logits(predictor, point_coords=POINTS[:1], point_labels=labels)
        assert all(np.array_equal(a, b) for a, b in zip(alone, batch))


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (
            {"box": BOXES, "points": (POINTS[0], LABELS[0])},
            r"points for as many objects as boxes, 3, got 1; .*\(B, N, 2\)",
        ),
        ({"box": BOXES[:2], "points": (POINTS, LABELS)}, r"points for as many objects as boxes, 2, got 3"),
        ({"points": (POINTS, LABELS[0])}, r"one label per point, point_labels of shape \(3, 2\), got \(2,\)"),
        ({"points": (POINTS, LABELS.ravel())}, r"one label per point, point_labels of shape \(3, 2\), got \(6,\)"),
        ({"points": (POINTS[0], LABELS[:1])}, r"one label per point, point_labels of shape \(2,\), got \(1, 2\)"),
        ({"points": (POINTS[None], LABELS[None])}, r"point_coords of shape \(N, 2\) as x, y, or \(B, N, 2\)"),
        ({"points": (POINTS[:, :0], LABELS[:, :0])}, r"point_coords of shape .*got \(3, 0, 2\)"),
        ({"points": (POINTS[0], [1, 2])}, r"point labels 1 \(foreground\) or 0 \(background\), got \[2\]"),
        ({"box": BOXES.reshape(-1)}, r"a box of shape \(4,\), or \(B, 4\) for B objects, got \(12,\)"),
        (
            {"box": BOXES, "mask_input": np.zeros((1, 16, 16))},
            r"mask_input for as many objects .*, 3, got 1; repeat it",
        ),
        ({"box": BOXES[0], "mask_input": np.zeros((3, 1, 16, 16))}, r"mask_input for as many objects .*, 1, got 3"),
        (
            {"mask_input": np.zeros((3, 16, 16))},
            r"mask_input of shape \(1, 16, 16\), or \(B, 1, 16, 16\) .*got \(3, 16, 16\)",
        ),
        ({}, "expected points, a box or a mask_input, got none of them"),
    ],
)
def test_prompts_that_do_not_agree_are_refused(predictor, prompts, says):
    points = dict(zip(("point_coords", "point_labels"), prompts.pop("points", ())))
    with pytest.raises(ValueError, match=says):
        predictor.predict(**prompts, **points)


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        ({"box": [1, 2, np.nan, 9]}, "expected finite coordinates, got a box corner"),
        ({"box": [30, 2, 10, 9]}, "expected a box with x0 < x1 and y0 < y1"),
        ({"box": [65, 2, 70, 9]}, "expected a box inside the picture of width 64 and height 48"),
        ({"box": [[1, 2, 9, 9], [1, 48, 9, 60]]}, "expected a box inside the picture"),
        ({"box": [0, 0, 30, 40], "normalize_coords": False}, r"in 0\.\.1 when normalize_coords=False"),
        ({"points": [[np.inf, 2]]}, "expected finite coordinates, got a point"),
        ({"points": [[10, 49]]}, r"expected every point inside the picture .*got \(10, 49\)"),
        ({"points": [[10, 9]], "normalize_coords": False}, "expected every point inside the picture of width 1"),
    ],
)
def test_coordinates_are_checked(predictor, prompts, says):
    if "points" in prompts:
        prompts = prompts | {"point_coords": prompts["points"], "point_labels": [1]}
        del prompts["points"]
    with pytest.raises(ValueError, match=says):
        predictor.predict(**prompts)


def test_a_box_that_reaches_beyond_the_image_is_cut(predictor, caplog):
    cut = logits(predictor, box=[-0.4, 3, 64.4, 48.4])
    assert "a box reaches beyond the picture of width 64 and height 48" in caplog.text
    caplog.clear()
    assert all(np.array_equal(a, b) for a, b in zip(cut, logits(predictor, box=[0, 3, 64, 48])))
    assert caplog.text == ""


@pytest.mark.parametrize(
    "form", [lambda a: a[:, ::-1][:, ::-1], lambda a: a.astype(">f8"), lambda a: list(torch.tensor(a))]
)
def test_arrays_of_any_layout(predictor, form):
    plain = logits(predictor, point_coords=POINTS[0], point_labels=LABELS[0])
    other = logits(predictor, point_coords=form(POINTS[0]), point_labels=LABELS[0][::-1][::-1])
    assert all(np.array_equal(a, b) for a, b in zip(plain, other))
