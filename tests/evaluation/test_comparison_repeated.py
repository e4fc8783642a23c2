"""Videos played forwards, backwards, forwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from micro import SIDE, micro_predictor
from PIL import Image

from sam2_mem.evaluation.comparison.jobs import Plan, PolicyEntry, ResultFolder
from sam2_mem.evaluation.comparison.repeated import RepeatedSource, RepeatedTruth, frame_names, frame_order
from sam2_mem.evaluation.comparison.report import breakdowns, write_report
from sam2_mem.evaluation.comparison.runner import run_plan
from sam2_mem.evaluation.comparison.statistics import read_comparison
from sam2_mem.evaluation.comparison.videos import ComparisonVideo, comparison_videos, groups_of_videos
from sam2_mem.evaluation.videos import ListedObject


def small(name: str, passes: int, frames: int = 6) -> ComparisonVideo:
    """A clip of dev-v1, small and short, repeated."""
    (video,) = comparison_videos("synthetic:dev-v1", [name])
    clip = replace(video.truth, spec=replace(video.truth.spec, num_frames=frames, height=SIDE, width=SIDE))
    (twin,) = comparison_videos(f"synthetic:dev-v1@{passes}", [name])
    opened = lambda: RepeatedSource(clip.source(), passes)  # noqa: E731
    return replace(twin, truth=RepeatedTruth(clip, clip.source, passes), open=opened, plan=lambda source: clip.plan())


def test_order_and_names() -> None:
    assert frame_order(4, 1) == [0, 1, 2, 3]
    assert frame_order(4, 3) == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    assert frame_order(1, 3) == [0]
    names = frame_names(["a_008", "a_009", "a_010"], 3)
    assert names[:3] == ["a_008", "a_009", "a_010"] and len(set(names)) == len(frame_order(3, 3))
    assert names == sorted(names), "protocols read frames in the order of their names"


def test_frames_and_truth_are_those_of_the_order() -> None:
    video, (plain,) = small("late_1", 3), comparison_videos("synthetic:dev-v1", ["late_1"])
    clip, source = video.truth.inner, video.open()
    order = frame_order(6, 3)
    assert video.data == "synthetic:dev-v1@3" and plain.data == "synthetic:dev-v1"
    assert len(source) == len(video.truth.frames) == len(order) == 16
    for index, original in enumerate(order):
        frame = source[index]
        assert frame.index == index and frame.name == video.truth.frames[index]
        assert np.array_equal(frame.image, clip.video.frame(original).image)
        assert np.array_equal(video.truth.truth(frame.name), clip.video.masks(original))
    assert not np.array_equal(source[6].image, source[5].image), "control: where it turns, no frame is shown twice"
    for item, listed in zip(clip.listed, video.truth.listed):
        assert listed.frames == (*item.frames, *video.truth.frames[6:]) and listed.length == len(listed.frames)
    with pytest.raises(ValueError, match="no prediction"):
        video.truth.prediction("00000")
    ((part),) = video.truth.parts()
    assert part.obj_id is None and part.video.frames == video.truth.frames
    assert groups_of_videos("synthetic:dev-v1@3") == groups_of_videos("synthetic:dev-v1") != {}


@pytest.mark.extended
@pytest.mark.full
def test_compared(tmp_path: Path) -> None:
    """The first pass is scored as without repetition; the comparison says what it is of."""
    once, thrice = small("occlusion_1", 1), small("occlusion_1", 3)
    entry = PolicyEntry(name="fifo", settings={}, build=lambda: micro_predictor("fifo"))
    folder = ResultFolder(tmp_path)
    one, three = run_plan(Plan(entries=(entry,), videos=(once, thrice), baseline="fifo"), folder)
    write_report(folder)
    assert (one.frames, three.frames, one.error, three.error) == (6, 16, None, None)
    for a, b in zip(one.objects, three.objects):
        assert b["frames"] == a["frames"] + 10
        assert b["per_frame"]["J"][: a["frames"]] == pytest.approx(a["per_frame"]["J"], abs=0.02)
    comparison = read_comparison(folder)
    assert comparison.data == ["synthetic:dev-v1@1", "synthetic:dev-v1@3"]
    assert breakdowns(comparison, "synthetic:dev-v1@3") == []
    assert (tmp_path / "report" / "bytes_of_videos_1.svg").is_file()


def test_a_folder_with_few_annotated_frames(tmp_path: Path) -> None:
    """Prompts come from the first pass, and only annotated frames have a truth, as in the Long Videos data set."""
    for name in ("00000", "00001", "00002", "00003"):
        path = tmp_path / "JPEGImages" / "480p" / "v" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), 9 * int(name), np.uint8)).save(path)
        if name in ("00000", "00002"):
            mask = tmp_path / "Annotations" / "480p" / "v" / f"{name}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIDE, SIDE), int(name) + 1, np.uint8)).save(mask)
    (tmp_path / "ImageSets" / "2016").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2016" / "val.txt").write_text("v\n")
    (video,) = comparison_videos(f"davis2016:{tmp_path}@3")
    assert frame_order(4, 3) == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    names = [video.open().name(index) for index in range(10)]
    assert video.truth.frames == tuple(names[index] for index in (0, 2, 4, 6, 8))
    assert [int(video.truth.truth(f).max()) for f in video.truth.frames] == [1, 3, 3, 1, 3]
    assert set(video.plan(video.open()).at) == {0}
    listed = replace(video.truth, inner=Listing(video.truth.inner)).listed
    assert listed == (ListedObject(obj_id=1, frames=("00002", *names[4:10:2])),)


class Listing:
    """A truth with a meta file."""

    def __init__(self, inner: object) -> None:
        self.frames, self.listed = inner.frames, (ListedObject(obj_id=1, frames=("00002",)),)
