"""Masks as other libraries take them."""

from __future__ import annotations

import numpy as np
import pytest

from sam2_mem.video import adapters
from sam2_mem.video.adapters import to_detections, to_napari_layers


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[y0:y1, x0:x1] = True
    return mask


MASKS = {7: box(2, 6, 3, 9), 3: box(10, 19, 20, 30), 5: box(0, 0, 0, 0)}


def test_detections_of_supervision() -> None:
    found = to_detections(MASKS, {7: 0.9, 3: 0.5, 5: 0.1}, {7: "dog", 3: "cat", 5: "cat"})
    assert found.tracker_id.tolist() == [3, 7] and found.class_id.tolist() == [0, 1]
    assert found.xyxy.tolist() == [[20, 10, 30, 19], [3, 2, 9, 6]]
    assert found.area.tolist() == [90, 24] and found.confidence.tolist() == pytest.approx([0.5, 0.9])
    assert found["class_name"].tolist() == ["cat", "dog"]
    assert np.array_equal(found.mask, np.stack([MASKS[3], MASKS[7]]))
    assert len(to_detections({5: MASKS[5]})) == 0 and len(to_detections({})) == 0
    with pytest.raises(ValueError, match=r"a score for every object, got none for \[3\]"):
        to_detections(MASKS, {7: 0.9})


def test_without_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"sam2_mem\[supervision\]\""):
        to_detections(MASKS)


def test_layers_of_napari() -> None:
    images = [np.full((20, 30, 3), value, np.uint8) for value in (10, 20)]
    (pictures, _, kind), (labels, settings, second) = to_napari_layers(
        images, [MASKS, {9: box(0, 4, 0, 4), 2: box(2, 6, 2, 6)}]
    )
    assert (kind, second) == ("image", "labels") and pictures.shape == (2, 20, 30, 3)
    assert np.array_equal(labels[0] == 7, MASKS[7]) and set(np.unique(labels[0])) == {0, 3, 7}
    assert labels[1, 3, 3] == 2 and labels[1, 0, 0] == 9, "the lower id wins"
    assert {None, 0, 2, 3, 7, 9} == set(settings["colormap"])
    with pytest.raises(ValueError, match="shorter"):
        to_napari_layers(images, [MASKS])
