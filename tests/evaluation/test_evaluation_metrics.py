"""J, F and their statistics: numbers of the public evaluators, and a slow reading of the definitions."""

from __future__ import annotations

import csv
import itertools
import json
import lzma
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sam2_mem.evaluation.metrics import (
    _boundary_map,
    adaptive_similarity,
    boundary_f,
    boundary_radius,
    disk,
    jaccard,
    last_quarter_mean,
    similarity,
    statistics,
    variability,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "evaluation"
EXACT = 1e-9

# -- the definitions, pixel by pixel --------------------------------------------------------------------------------


def literal_jaccard(pred: np.ndarray, gt: np.ndarray) -> float:
    pairs = [(bool(p), bool(g)) for p, g in zip(pred.flat, gt.flat)]
    union = sum(p or g for p, g in pairs)
    return sum(p and g for p, g in pairs) / union if union else 1.0


def literal_boundary(mask: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            if y == height - 1 and x == width - 1:
                others = []
            elif y == height - 1:
                others = [(y, x + 1)]
            elif x == width - 1:
                others = [(y + 1, x)]
            if any(mask[y, x] != mask[other] for other in others):
                found.add((y, x))
    return found


def literal_f(pred: np.ndarray, gt: np.ndarray, offsets: list[tuple[int, int]]) -> float:
    """``offsets`` are those at which a pixel of the other boundary matches."""
    p, g = literal_boundary(pred), literal_boundary(gt)
    if not p or not g:
        return 1.0 if not p and not g else 0.0
    precision = sum(any((y + dy, x + dx) in g for dy, dx in offsets) for y, x in p) / len(p)
    recall = sum(any((y + dy, x + dx) in p for dy, dx in offsets) for y, x in g) / len(g)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def whole_disk(radius: int) -> list[tuple[int, int]]:
    steps = range(-radius, radius + 1)
    return [(dy, dx) for dy in steps for dx in steps if dy * dy + dx * dx <= radius * radius]


def literal_decay(values: list[float]) -> float:
    edges = [int(np.round(1 + (len(values) - 1) * k / 4 + 1e-10)) - 1 for k in range(5)]
    quarters = [values[first : last + 1] for first, last in itertools.pairwise(edges)]
    return float(np.mean(quarters[0]) - np.mean(quarters[3]))


# -- masks to try ---------------------------------------------------------------------------------------------------


@st.composite
def mask_pairs(draw: st.DrawFn, most: int = 14) -> tuple[np.ndarray, np.ndarray]:
    """Two masks that are noise or boxes inside a window, so that some touch the edges and some lie far inside."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]))

    def mask() -> np.ndarray:
        y, x = sorted(rng.integers(0, height + 1, 2)), sorted(rng.integers(0, width + 1, 2))
        canvas = np.zeros((height, width), bool)
        canvas[y[0] : y[1], x[0] : x[1]] = True
        return canvas & (rng.random((height, width)) < max(share, draw(st.sampled_from([0.3, 1.0]))))

    return mask(), mask()


@given(mask_pairs())
def test_j_is_its_definition(masks: tuple[np.ndarray, np.ndarray]) -> None:
    assert jaccard(*masks) == literal_jaccard(*masks) == similarity(*masks).j


@given(mask_pairs())
def test_boundary_is_its_definition(masks: tuple[np.ndarray, np.ndarray]) -> None:
    assert set(zip(*(axis.tolist() for axis in np.nonzero(_boundary_map(masks[0]))))) == literal_boundary(masks[0])


@settings(deadline=None)
@given(mask_pairs(), st.integers(1, 5))
def test_f_is_its_definition(masks: tuple[np.ndarray, np.ndarray], radius: int) -> None:
    assert boundary_f(*masks, radius=radius) == pytest.approx(literal_f(*masks, whole_disk(radius)), abs=1e-12)


@settings(deadline=None)
@given(mask_pairs(), st.integers(0, 2**32 - 1))
def test_void_pixels_leave_both_masks(masks: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    pred, gt = masks
    void = np.random.default_rng(seed).random(pred.shape) < 0.3
    assert jaccard(pred, gt, void=void) == literal_jaccard(pred & ~void, gt & ~void)
    expected = literal_f(pred & ~void, gt & ~void, whole_disk(1))
    assert boundary_f(pred, gt, void=void) == pytest.approx(expected, abs=1e-12)


def test_that_a_wrong_definition_would_be_noticed() -> None:
    """The control of the comparisons above: another radius and a boundary on the other side give other numbers."""
    rng = np.random.default_rng(0)
    pred, gt = (rng.random((14, 14)) < 0.3 for _ in range(2))
    assert boundary_f(pred, gt, radius=2) != pytest.approx(literal_f(pred, gt, whole_disk(1)), abs=1e-3)
    assert literal_boundary(pred) != literal_boundary(pred[::-1])


@settings(deadline=None)
@given(mask_pairs(most=12), st.sampled_from([1, 20]))
def test_measures_of_mosev2_are_their_definitions(masks: tuple[np.ndarray, np.ndarray], scale: int) -> None:
    """Enlarged, so that the tolerance of small objects is below that of the image."""
    pred, gt = (np.kron(mask, np.ones((scale, scale), bool)) for mask in masks)
    assume(pred.size < 40_000)
    diagonal = max(1.0, 0.008 * math.hypot(*pred.shape))
    small = float(np.ceil(0.1 * math.sqrt(gt.sum()))) if gt.any() else math.inf
    union = (pred | gt).sum()
    found = adaptive_similarity(pred, gt)
    assert found.j == pytest.approx(min(1, ((pred & gt).sum() + 1) / (union + 1)) if union else 1, abs=1e-12)
    if small < diagonal:
        assert found.f_dot == pytest.approx(boundary_f(pred, gt, radius=small), abs=1e-12)
        assert found.f == pytest.approx(boundary_f(pred, gt), abs=1e-12)
    else:
        assert found.f_dot == found.f == pytest.approx(boundary_f(pred, gt, radius=diagonal), abs=1e-12)


# -- numbers of the public evaluators -------------------------------------------------------------------------------


def drawn(text: str, shape: tuple[int, int]) -> np.ndarray:
    """A mask from its description in tiny.json."""
    if text in ("none", "all"):
        return np.full(shape, text == "all")
    if text.startswith("("):
        cy, cx, limit = map(int, re.fullmatch(r"\(y-(\d+)\)\^2\+\(x-(\d+)\)\^2<(\d+)", text).groups())
        y, x = np.ogrid[: shape[0], : shape[1]]
        return (y - cy) ** 2 + (x - cx) ** 2 < limit
    mask = np.zeros(shape, bool)
    for number, box in enumerate(re.findall(r"box (\d+):(\d+),(\d+):(\d+)", text)):
        y0, y1, x0, x1 = map(int, box)
        mask[y0:y1, x0:x1] = number == 0
    return mask


TINY = json.loads((GOLDEN / "tiny.json").read_text(encoding="utf-8"))["cases"]


def test_that_all_tiny_cases_are_there() -> None:
    assert len(TINY) == 17 and len({case["name"] for case in TINY}) == 17


@pytest.mark.parametrize("case", TINY, ids=lambda case: case["name"])
def test_tiny_case(case: dict) -> None:
    shape = tuple(case["shape"])
    pred, gt = drawn(case["pred"], shape), drawn(case["gt"], shape)
    assert boundary_radius(shape) == case["radius"]
    assert np.count_nonzero(_boundary_map(gt)) == case["n_gt_boundary"]
    assert np.count_nonzero(_boundary_map(pred)) == case["n_pred_boundary"]
    assert jaccard(pred, gt) == pytest.approx(case["J"], abs=1e-12)
    assert boundary_f(pred, gt) == pytest.approx(case["F"], abs=1e-12)
    assert similarity(pred, gt) == (jaccard(pred, gt), boundary_f(pred, gt))


@cache
def sequence(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction (T, H, W) bool of a packed sequence."""
    packed = np.frombuffer(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()), np.uint8)
    rows = np.unpackbits(packed).reshape(2, -1, 480, 854)
    return tuple(np.bitwise_xor.accumulate(rows, axis=2).astype(bool))


@cache
def curve(name: str) -> np.ndarray:
    """J and F, (2, T), of all frames."""
    truth, pred = sequence(name)
    return np.array([similarity(p, g) for p, g in zip(pred, truth)]).T


def golden_rows(file: str, name: str) -> list[dict[str, str]]:
    with (GOLDEN / file).open(encoding="utf-8") as lines:
        return [row for row in csv.DictReader(lines) if row["sequence"] == name]


@pytest.mark.parametrize("name", ["car-shadow", "dog"])
def test_golden_j_and_f(name: str) -> None:
    rows = golden_rows("jf.csv", name)
    assert len(rows) == 4
    for row in rows:
        frames = slice(None) if "-d:" in row["tool"] else slice(1, -1)
        j, f = curve(name)[:, frames].mean(axis=1)
        assert j == pytest.approx(float(row["J"]), abs=EXACT) and f == pytest.approx(float(row["F"]), abs=EXACT)


@pytest.mark.parametrize("name", ["car-shadow", "dog"])
def test_golden_statistics(name: str) -> None:
    (row,) = golden_rows("davis_stats.csv", name)
    for letter, values in zip("JF", curve(name)[:, 1:-1]):
        expected = [float(row[f"{letter}_{measure}"]) for measure in ("mean", "recall", "decay")]
        assert list(statistics(values)) == pytest.approx(expected, abs=EXACT)


def test_that_the_golden_numbers_can_fail() -> None:
    """One frame more, or a tolerance of one pixel less, is far outside the bound."""
    (row,) = golden_rows("davis_stats.csv", "dog")
    assert abs(statistics(curve("dog")[0][:-1]).mean - float(row["J_mean"])) > 1e-4
    truth, pred = sequence("dog")
    narrow = np.mean([boundary_f(p, g, radius=7) for p, g in zip(pred[1:-1:10], truth[1:-1:10])])
    assert abs(narrow - curve("dog")[1][1:-1:10].mean()) > 1e-4


# -- details --------------------------------------------------------------------------------------------------------


def test_boundary_lies_towards_the_origin() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2:4, 2:5] = True
    rows = ["".join("#" if value else "." for value in row) for row in _boundary_map(mask)]
    assert rows == ["........", ".####...", ".#..#...", ".####...", "........", "........"]


@pytest.mark.parametrize(
    ("shape", "radius"), [((480, 640), 7), ((480, 854), 8), ((720, 1280), 12), ((1080, 1920), 18), ((48, 64), 1)]
)
def test_radius(shape: tuple[int, int], radius: int) -> None:
    assert boundary_radius(shape) == radius


@pytest.mark.parametrize(
    ("radius", "pixels"), [(1, 5), (2, 13), (3, 29), (8, 197), (0.008 * math.hypot(480, 854), 191)]
)
def test_disk(radius: float, pixels: int) -> None:
    assert disk(radius).sum() == pixels


def test_masks_of_any_type_do() -> None:
    gt = np.zeros((8, 9), np.int64)
    gt[2:5, 2:6] = 7
    pred = gt[:, ::-1] > 0
    other = similarity(pred.astype(np.float32), np.asfortranarray(gt))
    assert similarity(pred, gt) == similarity(pred, gt > 0) == other


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size of the ground truth \(4, 5\), got \(5, 4\)"):
        jaccard(np.zeros((5, 4), bool), np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match=r"shape \(H, W\), got \(2, 4, 5\)"):
        boundary_f(np.zeros((2, 4, 5), bool), np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match=r"expected one value a frame"):
        statistics(np.zeros((1, 5)))


def test_statistics_of_a_falling_line() -> None:
    assert list(statistics(np.linspace(1, 0, 98))) == pytest.approx([0.5, 0.5, 0.752577319587629], abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=400))
def test_statistics_are_their_definitions(values: list[float]) -> None:
    found = statistics(values)
    assert found.mean == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert found.recall == pytest.approx(sum(value > 0.5 for value in values) / len(values), abs=1e-12)
    assert found.decay == pytest.approx(literal_decay(values), abs=1e-12)


def test_decay_of_a_long_video() -> None:
    """256 frames and more, where an index of eight bits would overflow."""
    for length in (255, 256, 257, 300, 1000):
        assert statistics(np.linspace(1, 0, length)).decay == pytest.approx(0.75, abs=0.01)


def test_statistics_leave_unknown_frames_out() -> None:
    found = statistics([1.0, np.nan, 0.4, np.nan])
    assert found.mean == pytest.approx(0.7) and found.recall == 0.25
    assert all(math.isnan(value) for value in statistics([]))
    assert statistics([0.5]).recall == 0 and statistics([0.5]).decay == 0


@pytest.mark.parametrize(("values", "expected"), [([1, 1, 1, 0], 0), ([0, 0, 0, 1, 1], 1), ([0, 1], 1), ([0.3], 0.3)])
def test_last_quarter(values: list[float], expected: float) -> None:
    assert last_quarter_mean(values) == expected


def test_last_quarter_begins_at_the_floor() -> None:
    assert last_quarter_mean(range(10)) == 8.0  # frames 7, 8, 9
    assert last_quarter_mean(range(98)) == np.mean(range(73, 98))


def test_variability() -> None:
    assert variability([1, 0, 1, 0], [1, 0, 1, 0]) == 0.5
    assert variability([0.5, 0.51], [0.5, 0.51]) == 0  # a variance of .000025 is rounded away
    assert variability([1, 0], [0, 1]) == 0
