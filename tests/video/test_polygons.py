"""Polygons give their masks back, and label files say what other programs read in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from pycocotools import mask as coco
from pycocotools.coco import COCO

from sam2_mem.video import COCOWriter, Frame, YOLOWriter, mask_polygons
from sam2_mem.video.polygons import joined_polygon

SIZE = (23, 31)


def filled(polygons: list[np.ndarray], size: tuple[int, int] = SIZE) -> np.ndarray:
    """Pixels whose centre has an odd number of crossings to its left, by the definition."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
            crosses = (y0 <= rows) != (y1 <= rows)
            x = x0 + (rows - y0) / (y1 - y0 if y1 != y0 else 1) * (x1 - x0)
            inside ^= crosses & (x < columns)
    return inside


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def rectangle(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


RING = rectangle(2, 20, 3, 25) & ~rectangle(5, 9, 6, 12) & ~rectangle(11, 17, 10, 22) | rectangle(13, 15, 13, 18)
CORNERS = rectangle(3, 6, 3, 6) | rectangle(6, 9, 6, 9) | rectangle(3, 6, 9, 12)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_random_masks_come_back(density: float) -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random(SIZE) < density
        polygons = mask_polygons(mask)
        assert np.array_equal(filled(polygons), mask)
        assert sum(map(area, polygons)) == mask.sum()
        assert not mask.any() or np.array_equal(filled([joined_polygon(polygons)]), mask)


@pytest.mark.parametrize(
    ("mask", "parts"),
    [(rectangle(0, 23, 0, 31), 1), (rectangle(4, 5, 7, 8), 1), (RING, 2), (CORNERS, 1), (rectangle(0, 0, 0, 0), 0)],
    ids=["all", "pixel", "ring", "corners", "nothing"],
)
def test_shapes_come_back(mask: np.ndarray, parts: int) -> None:
    polygons = mask_polygons(mask)
    assert len(polygons) == parts
    assert np.array_equal(filled(polygons), mask)
    if parts:
        encoded = coco.merge(coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], *SIZE))
        assert np.array_equal(coco.decode(encoded), mask)


def test_a_polygon_without_its_holes_is_noticed() -> None:
    whole = mask_polygons(rectangle(2, 20, 3, 25))
    assert not np.array_equal(filled(whole), RING)


def test_a_rectangle_has_four_corners() -> None:
    (polygon,) = mask_polygons(rectangle(2, 5, 3, 9))
    assert sorted(map(tuple, polygon)) == [(3, 2), (3, 5), (9, 2), (9, 5)]


def test_tolerance_takes_points_away_and_stays_near() -> None:
    rows, columns = np.mgrid[:200, :200]
    disc = (rows - 90) ** 2 + (columns - 110) ** 2 <= 60**2
    (exact,), (rough,) = mask_polygons(disc), mask_polygons(disc, tolerance=1.0)
    assert len(rough) < len(exact) / 4
    drawn = filled([rough], (200, 200))
    assert (drawn & disc).sum() / (drawn | disc).sum() > 0.97
    assert len(mask_polygons(rectangle(4, 5, 7, 8), tolerance=3.0)[0]) == 4, "a pixel stays a pixel"


@pytest.mark.parametrize("mask", [np.zeros(SIZE, np.uint8), np.zeros((1, *SIZE), bool)])
def test_what_is_no_mask(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected a bool \(H, W\) mask"):
        mask_polygons(mask)


def test_a_negative_tolerance() -> None:
    with pytest.raises(ValueError, match="expected tolerance >= 0"):
        mask_polygons(RING, tolerance=-1)


# ---- files


def frame(index: int) -> Frame:
    return Frame(index, f"{index:05d}", np.full((*SIZE, 3), 100, np.uint8))


FRAMES = {0: {1: RING, 2: rectangle(0, 2, 0, 2)}, 1: {1: rectangle(0, 0, 0, 0), 2: CORNERS}, 2: {}}


def test_yolo_lines_give_masks_back(tmp_path: Path) -> None:
    with YOLOWriter(tmp_path, class_names={1: "ring", 2: "box"}, images=True) as writer:
        for index, masks in FRAMES.items():
            writer.write(frame(index), masks)
    data = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert data["names"] == {0: "box", 1: "ring"}
    names = {1: "ring", 2: "box"}
    for index, masks in FRAMES.items():
        lines = [line.split() for line in (tmp_path / f"labels/{index:05d}.txt").read_text().splitlines()]
        expected = {names[obj_id]: mask for obj_id, mask in masks.items() if mask.any()}
        assert sorted(data["names"][int(line[0])] for line in lines) == sorted(expected)
        for line in lines:
            numbers = np.array(line[1:], float).reshape(-1, 2)
            assert numbers.min() >= 0 and numbers.max() <= 1
            assert np.array_equal(filled([numbers * SIZE[::-1]]), expected[data["names"][int(line[0])]])
        assert (tmp_path / f"images/{index:05d}.jpg").is_file()


def test_yolo_without_names_has_a_class_for_each_object(tmp_path: Path) -> None:
    with YOLOWriter(tmp_path) as writer:
        writer.write(frame(0), {3: RING})
    assert (tmp_path / "labels/00000.txt").read_text().startswith("2 ")
    assert yaml.safe_load((tmp_path / "data.yaml").read_text())["names"] == {
        0: "object 1",
        1: "object 2",
        2: "object 3",
    }
    assert not (tmp_path / "images").exists()


def test_coco_reads_its_file(tmp_path: Path) -> None:
    with COCOWriter(tmp_path / "a.json", video="clip") as writer:
        for index, masks in FRAMES.items():
            writer.write(frame(index), masks)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    data = COCO(str(tmp_path / "a.json"))
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == [
        f"clip/{index:05d}.jpg" for index in FRAMES
    ]
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == ["object 1", "object 2"]
    expected = [
        (index, obj_id, mask) for index, masks in FRAMES.items() for obj_id, mask in masks.items() if mask.any()
    ]
    for annotation, (index, obj_id, mask) in zip(data.loadAnns(data.getAnnIds()), expected, strict=True):
        assert (annotation["image_id"], annotation["category_id"], annotation["track_id"]) == (
            index + 1,
            obj_id,
            obj_id,
        )
        assert np.array_equal(data.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco.toBbox(coco.encode(np.asfortranarray(mask, np.uint8))).tolist()


def test_an_aborted_file_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), COCOWriter(tmp_path / "a.json", video="clip") as writer:
        writer.write(frame(0), FRAMES[0])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_names_must_be_there_for_all(tmp_path: Path) -> None:
    expected = pytest.raises(ValueError, match="expected a class name for object 2")
    with YOLOWriter(tmp_path, class_names={1: "ring"}) as writer, expected:
        writer.write(frame(0), FRAMES[0])
    with COCOWriter(tmp_path / "a.json", video="clip") as coco_writer, pytest.raises(ValueError, match="ids from 1"):
        coco_writer.write(frame(0), {0: RING})


@pytest.mark.parametrize("ending", [".txt", ""])
def test_coco_needs_json(tmp_path: Path, ending: str) -> None:
    with pytest.raises(ValueError, match=r"ending in .json"):
        COCOWriter(tmp_path / f"a{ending}", video="clip")
