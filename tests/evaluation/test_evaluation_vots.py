"""VOTS: regions, overlaps, and the measures on an example that the toolkit's numbers are known for."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sam2_mem.evaluation.datasets import open_dataset
from sam2_mem.evaluation.results import Report
from sam2_mem.evaluation.scoring import evaluate
from sam2_mem.evaluation.vots import (
    VOTS,
    Region,
    RegionBox,
    code_region,
    mask_region,
    overlap,
    parse_region,
    read_regions,
)

WIDTH, HEIGHT = 40, 30
SIZE = (WIDTH, HEIGHT)

PublishedMask = np.ndarray | int
"""A mask (H, W), or a code."""


def box(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


A = box(10, 20, 10, 20)
UPPER, QUARTER, ELSEWHERE, EMPTY = box(10, 15, 10, 20), box(10, 15, 10, 15), box(22, 28, 25, 35), box(0, 0, 0, 0)

# -- writing regions as the toolkit does ----------------------------------------------------------------------------


def runs(mask: np.ndarray) -> list[int]:
    lengths = [(value, len(list(same))) for value, same in groupby(mask.ravel().tolist())]
    return [0] * bool(lengths[0][0]) + [length for _, length in lengths]


def as_text(shown: PublishedMask) -> str:
    if isinstance(shown, int):
        return str(shown)
    return "m" + ",".join(map(str, (0, 0, WIDTH, HEIGHT, *runs(shown))))


def as_bytes(shown: PublishedMask) -> bytes:
    if isinstance(shown, int):
        return struct.pack("<BI", 0, shown)
    lengths = runs(shown)
    return struct.pack("<BhhHHH", 3, 0, 0, WIDTH, HEIGHT, len(lengths)) + struct.pack(f"<{len(lengths)}H", *lengths)


def write_text(path: Path, frames: Sequence[PublishedMask]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".txt").write_text("".join(f"{as_text(shown)}\n" for shown in frames))


def write_binary(path: Path, frames: Sequence[PublishedMask]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack("<hI", 1, len(frames))
    path.with_suffix(".bin").write_bytes(header + b"".join(as_bytes(shown) for shown in frames))


def write_sequence(root: Path, name: str, truths: dict[str, Sequence[PublishedMask]]) -> Path:
    folder = root / "sequences" / name
    for obj_id, frames in truths.items():
        write_text(folder / (f"groundtruth_{obj_id}" if obj_id else "groundtruth"), frames)
    (folder / "sequence").write_text(f"fps=30\nwidth={WIDTH}\nheight={HEIGHT}\n")
    return folder


# -- the example ----------------------------------------------------------------------------------------------------


def write_example(root: Path, write: Callable[[Path, Sequence[PublishedMask]], None]) -> None:
    write_sequence(root, "s1", {"": [A] * 10 + [EMPTY] * 12 + [A] * 2})
    write_sequence(root, "s2", {"1": [A] * 12, "2": [0] * 4 + [A] * 4 + [EMPTY] * 4})
    (root / "sequences" / "list.txt").write_text("s1\ns2\n")
    shown = [1, *[UPPER] * 4, *[ELSEWHERE] * 2, *[EMPTY] * 12, *[A] * 4, QUARTER]
    write(root / "results" / "s1" / "s1_001", shown)
    write(root / "results" / "s2" / "s2_1_001", [1, *[A] * 11])
    write(root / "results" / "s2" / "s2_2_001", [1, 0, 0, 0, *[A] * 4, *[EMPTY] * 4])


def evaluated(root: Path) -> Report:
    dataset = open_dataset("vots", root, root / "results")
    return evaluate(dataset.protocol, dataset.videos)


@pytest.mark.parametrize("write", [write_text, write_binary])
def test_numbers_of_the_toolkit(tmp_path: Path, write: Callable[[Path, Sequence[PublishedMask]], None]) -> None:
    write_example(tmp_path, write)
    report = evaluated(tmp_path)
    expected = {"Q": 0.734375, "Acc": 0.7113095, "Rob": 0.7291667, "NRE": 0.1875, "DRE": 0.0833333, "ADQ": 0.75}
    assert dict(report.summary) == pytest.approx(expected, abs=5e-8)
    first = dict(zip(VOTS().columns, report.objects[0].values))
    assert (first["Q"], first["Acc"], first["Rob"]) == pytest.approx((0.5104167, 0.4642857, 0.5), abs=5e-8)
    assert [(one.video, one.obj_id) for one in report.objects] == [("s1", "1"), ("s2", "1"), ("s2", "2")]
    assert math.isnan(report.objects[2].values[5])  # four absent frames are too few


def test_tags_choose_the_frames_that_count(tmp_path: Path) -> None:
    """Without the frame of the prompt, the object of s2 that is always there has a perfect score."""
    write_example(tmp_path, write_text)
    (tmp_path / "sequences" / "s2" / "evaluation.tag").write_text("0\n" + "1\n" * 11)
    always = evaluated(tmp_path).objects[1]
    assert always.values[:5] == (1, 1, 1, 0, 0) and len(always.frames) == 11


def test_a_perfect_tracker_misses_the_frame_of_its_prompt(tmp_path: Path) -> None:
    write_sequence(tmp_path, "s", {"": [A] * 12})
    write_text(tmp_path / "results" / "s" / "s_001", [1, *[A] * 11])
    q, acc, rob, nre, dre, adq = evaluated(tmp_path).objects[0].values
    assert (q, acc, rob, nre, dre) == pytest.approx((11 / 12, 11 / 12, 11 / 12, 1 / 12, 0)) and math.isnan(adq)


@pytest.mark.parametrize(("absent", "defined"), [(10, False), (11, True)])
def test_absence_needs_more_than_ten_frames(tmp_path: Path, absent: int, defined: bool) -> None:
    write_sequence(tmp_path, "s", {"": [A, *[EMPTY] * absent]})
    write_text(tmp_path / "results" / "s" / "s_001", [1, *[EMPTY] * absent])
    assert (evaluated(tmp_path).objects[0].values[5] == 1) == defined


def test_ignored_pixels_do_not_count(tmp_path: Path) -> None:
    write_sequence(tmp_path, "s", {"": [A] * 2, "_ignore": [0, box(15, 20, 0, 40)]})
    write_text(tmp_path / "results" / "s" / "s_001", [1, UPPER])
    assert evaluated(tmp_path).objects[0].per_frame.ravel().tolist() == [0, 1]


def test_an_object_that_is_never_visible(tmp_path: Path) -> None:
    write_sequence(tmp_path, "s", {"": [1] * 12})
    write_text(tmp_path / "results" / "s" / "s_001", [0] * 9 + [A] * 3)
    values = evaluated(tmp_path).objects[0].values
    assert values[0] == values[5] == 0.75 and values[1] == 0 and all(math.isnan(value) for value in values[2:5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "results/s2/s2_2_001.txt").unlink(), r"no result: expected '.*s2_2_001.bin' or '.txt'"),
        (lambda root: write_text(root / "results/s2/s2_1_001", [1, A]), "a result for every frame, got 2 in"),
        (lambda root: (root / "sequences/s2/sequence").unlink(), "expected width and height in"),
        (lambda root: (root / "results/s2/s2_1_001.txt").write_text("1\nm0,0,2\n"), "s2_1_001.txt, line 2: expected"),
        (lambda root: (root / "results/s2/s2_1_001.txt").write_text("1,2,3,4\n"), "rectangles and polygons are not"),
        (lambda root: (root / "results/s2/s2_1_001.bin").write_bytes(b"\1\0\1\0\0\0\3"), "s2_1_001.bin, region 0: "),
        (lambda root: (root / "results/s2/s2_1_001.bin").write_bytes(b"\2\0\0\0\0\0"), "expected version 1"),
        (lambda root: [p.unlink() for p in (root / "sequences/s2").glob("g*")], "expected groundtruth.txt or"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    write_example(tmp_path, write_text)
    change(tmp_path)
    report = evaluated(tmp_path)
    assert [one.video for one in report.objects] == ["s1"]
    (failure,) = report.failures
    assert failure.video == "s2" and re.search(message, failure.reason), failure.reason


def test_size_from_an_image(tmp_path: Path) -> None:
    write_example(tmp_path, write_text)
    (tmp_path / "sequences" / "s2" / "sequence").unlink()
    (tmp_path / "sequences" / "s2" / "color").mkdir()
    Image.new("RGB", SIZE).save(tmp_path / "sequences" / "s2" / "color" / "00000001.jpg")
    assert evaluated(tmp_path).figure("Q") == pytest.approx(0.734375)


# -- regions --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_masks_survive_both_formats(tmp_path_factory: pytest.TempPathFactory, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share
    folder = tmp_path_factory.mktemp("regions")
    write_binary(folder / "one", [mask, 1])
    write_text(folder / "one", [mask, 1])
    for path in (folder / "one.bin", folder / "one.txt"):
        region, code = read_regions(path)
        assert (canvas(region) == mask).all() and region.code is None
        assert code.code == 1 and code.empty


def canvas(region: Region) -> np.ndarray:
    return region.on(RegionBox(0, 0, WIDTH, HEIGHT))


def test_runs_need_not_reach_the_end_and_may_lie_anywhere() -> None:
    region = parse_region("m5,3,4,3,1,2,3,1")
    assert np.argwhere(canvas(region)).tolist() == [[3, 6], [3, 7], [4, 7]]  # of 4 x 3 pixels, numbers 1, 2 and 6
    assert parse_region("m0,0,0,0,").empty and parse_region("m3,4,2,2").empty
    with pytest.raises(ValueError, match="do not fit 2 x 2"):
        parse_region("m0,0,2,2,1,9")


def literal_overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum()
    return (a & b).sum() / union


@given(st.integers(0, 2**32 - 1))
def test_overlap_is_intersection_over_union(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.random((HEIGHT, WIDTH)) < 0.01 for _ in range(2))
    a[3, 4] = b[8, 9] = True
    assert overlap(mask_region(a), mask_region(b), SIZE) == literal_overlap(a, b)


def test_overlaps_of_the_toolkit_that_surprise() -> None:
    empty, code, full = mask_region(EMPTY), code_region(1), mask_region(A)
    assert overlap(empty, empty, SIZE) == overlap(code, empty, SIZE) == 1
    assert overlap(empty, full, SIZE) == overlap(full, code, SIZE) == 0
    upper, lower = mask_region(box(0, 5, 7, 8)), mask_region(box(9, 12, 7, 8))
    assert upper.empty and overlap(upper, lower, SIZE) == 1  # two columns of one pixel, the same x
    assert overlap(full, full, SIZE, ignored=full) == 0
    partly_outside = mask_region(np.ones((5, 5), bool), -2, -2)
    assert overlap(partly_outside, mask_region(box(0, 3, 0, 3)), SIZE) == 1
