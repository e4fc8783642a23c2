"""VOTS and VOTSt: Q, Acc, Rob, NRE, DRE and ADQ as the VOT toolkit 0.8 computes them, and its files of regions.

https://www.votchallenge.net
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from sam2_mem._moved import renamed
from sam2_mem.evaluation.metrics import mean
from sam2_mem.evaluation.protocols import Protocol
from sam2_mem.evaluation.results import Figure, ObjectScores, VideoScores
from sam2_mem.files import read_lines

_Parsed = TypeVar("_Parsed")
UNKNOWN = 0
PROMPTED = 1
ABSENCE_THRESHOLD = 10
IGNORED = "_ignore"


# -- regions --------------------------------------------------------------------------------------------------------


class RegionBox(NamedTuple):
    """Corners in pixels, the second one outside."""

    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Region:
    """A mask (h, w) bool whose upper left corner lies at (x, y), cropped to what is set; or a code and no mask.

    In a ground truth code 0 means unknown and 1 invisible; in a result every code means that nothing is shown.
    """

    mask: np.ndarray
    x: int = 0
    y: int = 0
    code: int | None = None

    @property
    def box(self) -> RegionBox:
        return RegionBox(self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0])

    @property
    def empty(self) -> bool:
        """The toolkit takes a mask for empty that is one pixel wide or high."""
        return min(self.mask.shape) <= 1

    def on(self, box: RegionBox) -> np.ndarray:
        """The pixels of a box, (y1 - y0, x1 - x0) bool."""
        canvas = np.zeros((box.y1 - box.y0, box.x1 - box.x0), bool)
        x0, y0, x1, y1 = _intersection(self.box, box)
        if x0 < x1 and y0 < y1:
            cropped = self.mask[y0 - self.y : y1 - self.y, x0 - self.x : x1 - self.x]
            canvas[y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0] = cropped
        return canvas


def code_region(code: int) -> Region:
    return Region(np.zeros((0, 0), bool), code=code)


def mask_region(mask: np.ndarray, x: int = 0, y: int = 0) -> Region:
    """The region of a mask (h, w) whose upper left corner lies at (x, y)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return Region(np.zeros((0, 0), bool))
    x0, y0 = int(columns[0]), int(rows[0])
    return Region(mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1].astype(bool), x + x0, y + y0)


def _intersection(first: RegionBox, second: RegionBox) -> RegionBox:
    low = (max(a, b) for a, b in zip(first[:2], second[:2]))
    high = (min(a, b) for a, b in zip(first[2:], second[2:]))
    return RegionBox(*low, *high)


def overlap(first: Region, second: Region, size: tuple[int, int], ignored: Region | None = None) -> float:
    """Intersection over union inside an image of (width, height), without the pixels of ``ignored``.

    As in the toolkit: 1 if the box around both is at most one pixel wide or high (so for two empty regions), 0 if no
    pixel is left.
    """
    boxes = [region.box for region in (first, second) if region.mask.size]
    if not boxes:
        return 1.0
    around = RegionBox(*(min(box[i] for box in boxes) for i in (0, 1)), *(max(box[i] for box in boxes) for i in (2, 3)))
    around = _intersection(around, RegionBox(0, 0, *size))
    if around.x1 - around.x0 <= 1 or around.y1 - around.y0 <= 1:
        return 1.0
    a, b = first.on(around), second.on(around)
    if ignored is not None:
        keep = ~ignored.on(around)
        a, b = a & keep, b & keep
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 0.0


# -- files of regions -----------------------------------------------------------------------------------------------


def parse_region(text: str) -> Region:
    """A code, or a mask: ``m<x>,<y>,<w>,<h>,<runs of 0s and 1s in turn, row by row>``."""
    text = text.strip()
    try:
        if text.startswith("m"):
            x, y, width, height, *runs = (int(part) for part in text[1:].split(",") if part)
            return mask_region(_decode(width, height, np.array(runs, np.int64)), x, y)
        if "," not in text:
            return code_region(int(float(text)))
    except ValueError as error:
        raise ValueError(f"expected a code or a mask 'm<x>,<y>,<w>,<h>,<runs>', got '{text[:60]}': {error}") from error
    raise ValueError(f"expected a code or a mask, got '{text[:60]}'; rectangles and polygons are not scored")


def region_text(mask: np.ndarray) -> str:
    """A mask (H, W) as ``parse_region`` reads it; code 0 for an empty one."""
    region = mask_region(mask)
    if not region.mask.size:
        return "0"
    flat = region.mask.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], changes, [len(flat)])))
    height, width = region.mask.shape
    numbers = (region.x, region.y, width, height, *([0] if flat[0] else []), *runs.tolist())
    return "m" + ",".join(map(str, numbers))


def _decode(width: int, height: int, runs: np.ndarray) -> np.ndarray:
    """Run lengths, zeros first, to a mask (height, width) bool; what they do not reach is 0."""
    if runs.sum() > width * height or (runs < 0).any():
        raise ValueError(f"run lengths of {runs.sum()} pixels do not fit {width} x {height}")
    flat = np.zeros(width * height, bool)
    ones = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    flat[: len(ones)] = ones
    return flat.reshape(height, width)


def read_regions(path: Path) -> Iterator[Region]:
    """The regions of a ``.txt`` or ``.bin`` file, one a frame, decoded as they are asked for."""
    if path.suffix == ".bin":
        with path.open("rb") as file:
            yield from _binary_regions(file, path)
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _read_located(path, f"line {number}", partial(parse_region, line))


def _read_located(path: Path, location: str, read: Callable[[], _Parsed]) -> _Parsed:
    try:
        return read()
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}, {location}: {error}") from error


def _binary_regions(file: BinaryIO, path: Path) -> Iterator[Region]:
    version, count = _read_located(path, "header", lambda: _unpack(file, "<hI"))
    if version != 1:
        raise ValueError(f"{path}: expected version 1 of the toolkit's format, got {version}; write text files instead")
    for index in range(count):
        yield _read_located(path, f"region {index}", lambda: _binary_region(file))


def _binary_region(file: BinaryIO) -> Region:
    (kind,) = _unpack(file, "<B")
    if kind == 0:
        return code_region(_unpack(file, "<I")[0])
    if kind != 3:
        raise ValueError(
            f"expected a code or a mask, got a region of type {kind}; rectangles, polygons and points are not scored"
        )
    x, y, width, height, count = _unpack(file, "<hhHHH")
    runs = np.array(_unpack(file, f"<{count}H"), np.int64)
    return mask_region(_decode(width, height, runs), x, y)


def _unpack(file: BinaryIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


# -- sequences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VOTSSequence:
    """A sequence of the data set on disk, with the results of a tracker.

    Attributes:
        folder: holds ``groundtruth.txt`` or ``groundtruth_<object>.txt``, ``sequence``, ``color``, ``evaluation.tag``.
        results: holds ``<name>_001.bin`` or ``.txt``, with ``_<object>`` in the name if there are several objects.
    """

    name: str
    folder: Path
    results: Path

    def truths(self) -> dict[str, Path]:
        """The ground truth file of each object, in the order of their names."""
        single = self.folder / "groundtruth.txt"
        if single.is_file():
            return {"": single}
        files = {path.stem.removeprefix("groundtruth_"): path for path in self.folder.glob("groundtruth_*.txt")}
        objects = dict(sorted((name, path) for name, path in files.items() if name != IGNORED))
        if not objects:
            raise ValueError(f"expected groundtruth.txt or groundtruth_<object>.txt in '{self.folder}', got neither")
        return objects

    def ignored(self) -> Path | None:
        path = self.folder / f"groundtruth_{IGNORED}.txt"
        return path if path.is_file() else None

    def result(self, obj_id: str, num_objects: int) -> Path:
        stem = f"{self.name}_{obj_id}_001" if num_objects > 1 else f"{self.name}_001"
        for path in (self.results / f"{stem}.bin", self.results / f"{stem}.txt"):
            if path.is_file():
                return path
        raise ValueError(f"no result: expected '{self.results / stem}.bin' or '.txt'")

    def size(self) -> tuple[int, int]:
        """(width, height) of the images, from the file ``sequence`` or from the first image."""
        about = self.folder / "sequence"
        lines = read_lines(about) if about.is_file() else []
        pairs = {key.strip(): value.strip() for key, mark, value in (line.partition("=") for line in lines) if mark}
        if "width" in pairs and "height" in pairs:
            return int(pairs["width"]), int(pairs["height"])
        image = min((self.folder / "color").glob("*.*"), default=None)
        if image is None:
            raise ValueError(f"expected width and height in '{about}', or images in '{self.folder}/color', got neither")
        with Image.open(image) as opened:
            return opened.size

    def counted(self) -> list[bool] | None:
        """Which frames count, from ``evaluation.tag``; None if there is no such file, and all do."""
        for path in (self.folder / "evaluation.tag", self.folder / "evaluation.label"):
            if path.is_file():
                return [float(word) > 0 for line in read_lines(path) for word in line.split()]
        return None


# -- measures -------------------------------------------------------------------------------------------------------


@dataclass
class Outcomes:
    """What became of the frames of one object.

    Visible in the ground truth: ``tracked``, ``missed`` (nothing shown), or ``drifted`` (shown elsewhere). Absent:
    ``rejected`` (nothing shown, right) or ``invented``.
    """

    overlaps: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    tracked: int = 0
    missed: int = 0
    drifted: int = 0
    rejected: int = 0
    invented: int = 0

    def add(self, truth: Region, result: Region, shared: float) -> None:
        """One frame. On that of the prompt a result holds a code: a miss that counts for Acc, as in the toolkit."""
        self.overlaps.append(shared)
        if truth.empty:
            self.rejected += result.empty
            self.invented += not result.empty
            return
        if shared > 0 or result.code == PROMPTED:
            self.accuracies.append(shared)
        self.tracked += shared > 0
        self.missed += shared == 0 and result.empty
        self.drifted += shared == 0 and not result.empty

    def values(self) -> tuple[float, ...]:
        """Q, Acc, Rob, NRE, DRE, ADQ."""
        visible, absent = self.tracked + self.missed + self.drifted, self.rejected + self.invented
        rates = [count / visible if visible else np.nan for count in (self.tracked, self.missed, self.drifted)]
        absence = self.rejected / absent if absent > ABSENCE_THRESHOLD else np.nan
        return (mean(self.overlaps), mean(self.accuracies) if self.accuracies else 0.0, *rates, absence)


@dataclass(frozen=True)
class VOTS(Protocol[VOTSSequence]):
    """VOTS and VOTSt.

    Frames: those with the tag ``evaluation`` if the sequence has that tag, else all, that of the prompt included.
    A tracker shows a code on frame 0, so a perfect one has Q below 1 unless tags leave that frame out. Frames on which
    the object is unknown do not count. Pixels of the object ``_ignore`` do not count. Means are over the objects of a
    sequence first, then over sequences; where a measure is not defined for an object, the object takes no part.
    """

    name = "vots"
    columns = ("Q", "Acc", "Rob", "NRE", "DRE", "ADQ")
    frame_columns = ("IoU",)

    def score(self, video: VOTSSequence) -> VideoScores:
        truths, size = video.truths(), video.size()
        return VideoScores(
            objects=tuple(
                _object(video, obj_id, path, video.result(obj_id, len(truths)), size) for obj_id, path in truths.items()
            )
        )

    def summary(self, objects: Sequence[ObjectScores]) -> tuple[Figure, ...]:
        by_sequence: dict[str, list[ObjectScores]] = {}
        for scores in objects:
            by_sequence.setdefault(scores.video, []).append(scores)
        return tuple(
            Figure(name, mean([mean(self.column(group, name)) for group in by_sequence.values()]))
            for name in self.columns
        )


def _object(video: VOTSSequence, obj_id: str, truths: Path, results: Path, size: tuple[int, int]) -> ObjectScores:
    outcomes, frames = Outcomes(), []
    counted = video.counted()
    for index, (truth, result, ignored) in enumerate(_frames(truths, results, video.ignored())):
        if truth.code == UNKNOWN or not _counts(counted, index):
            continue
        outcomes.add(truth, result, overlap(truth, result, size, ignored))
        frames.append(f"{index:08d}")
    return ObjectScores(
        video=video.name,
        obj_id=obj_id or "1",
        values=outcomes.values(),
        frames=tuple(frames),
        per_frame=np.array(outcomes.overlaps, np.float64).reshape(-1, 1),
    )


def _counts(counted: list[bool] | None, index: int) -> bool:
    return counted is None or (index < len(counted) and counted[index])


def _frames(truth: Path, result: Path, ignored: Path | None) -> Iterator[tuple[Region, Region, Region | None]]:
    """The frames of the ground truth; a result that has fewer is an error."""
    results = read_regions(result)
    ignored_regions = read_regions(ignored) if ignored else iter(())
    for index, region in enumerate(read_regions(truth)):
        result_region = next(results, None)
        if result_region is None:
            raise ValueError(f"expected a result for every frame, got {index} in '{result}'")
        yield region, result_region, next(ignored_regions, None)


__getattr__ = renamed(__name__)
