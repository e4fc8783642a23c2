"""The synthetic benchmark: the same bits everywhere, the events its tracks promise, and the ways to use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from array_video import ArrayVideo
from micro import micro_predictor, one_thread  # noqa: F401

from sam2_mem.evaluation.datasets import PROTOCOLS, open_dataset
from sam2_mem.evaluation.scoring import evaluate
from sam2_mem.evaluation.synthetic import (
    AWAY_TRACKS,
    SYNTHETIC_SETS,
    TRACKS,
    SyntheticClip,
    SyntheticSet,
    fingerprint,
    open_synthetic,
)
from sam2_mem.evaluation.videos import ListedObject
from sam2_mem.tracking.vos import segment
from sam2_mem.tracking.vos_run import Outputs, RunOptions, VideoTask, run
from sam2_mem.training.validation import SEED
from sam2_mem.video import open_video, read_mask_png

ROOT = Path(__file__).resolve().parents[2]

WHOLE = {
    "occlusion_1": "2933f250a3e82625",
    "return_1": "3f99c7be451e18f3",
    "long_absence_1": "465434f6111074bd",
    "lookalikes_1": "418cfb77f7fe07ed",
    "appearance_1": "997fe89e8062cb30",
    "splitting_1": "e5e703dbea9bc892",
    "late_1": "b8c9ca408ed7578f",
}
"""Of all frames of the clips of dev-v1."""

LONG = {
    "occlusion_1": "6e3b18bb010992f8",
    "occlusion_2": "fd8753241f554f93",
    "return_1": "9e5f3894cbefd47e",
    "return_2": "11e2f543d88e001e",
    "long_absence_1": "1f4f1f045a64fb21",
    "long_absence_2": "2e290dfdbb311ea6",
    "lookalikes_1": "18065068212ebf20",
    "lookalikes_2": "ca23212ffa4b48d5",
    "appearance_1": "873b3c8e7358c22c",
    "appearance_2": "d48d596cf5f1b632",
    "splitting_1": "64ccc3cb25eddf78",
    "splitting_2": "facd1f4da65814f8",
    "late_1": "feb40437e8af2388",
    "late_2": "1c8923bd0bd5f02a",
}
"""Of frames 0, 300 and 599 of the clips of long-v1."""

SEEDS = {
    "occlusion": ("f0ee18337f288262", "9d27e2aa6287de5a", "a70d623424d8d22a"),
    "return": ("e27662425d3bb583", "74ffaa1245ac82be", "f09cb9ffdf2b7746"),
    "long_absence": ("77965454710ac0e0", "cacb8183f5f4e6d2", "54f3ebf4231142f3"),
    "lookalikes": ("8516ab0506759a7d", "c7f48f3db1075677", "ab00ba8e2aa8ddcc"),
    "appearance": ("13cec79fd23e9f07", "85f00bcfd7c78e9a", "140da4c206c2dffa"),
    "splitting": ("c2616dd198ee3a98", "2a4b9af6aac4f305", "5ddd68c9184484f9"),
    "late": ("30d5ee15c89b4347", "4f0ec8614a3c9c35", "6fffb8b3f808708e"),
}
"""Of frames 0, 100 and 199 of the three clips of each track of seeds-v1."""

AWAY = {
    "changed_away_1": "383c0607ea001a53",
    "changed_away_2": "d2e559f3aa5654d9",
    "changed_away_3": "1bcf70abddd6b194",
    "revisit_1": "bd09bcd41380e8df",
    "revisit_2": "00acd72c970add86",
    "revisit_3": "e605cbe4839232a6",
    "lookalike_stays_1": "a5393c73a62b28eb",
    "lookalike_stays_2": "dda4b6dfd933183d",
    "lookalike_stays_3": "448c02498a2662b9",
    "scene_cut_1": "8346d9c0df2d66b0",
    "scene_cut_2": "525536f7d63838c5",
    "scene_cut_3": "e9783e3365aaab20",
}
"""Of frames 0, 60, 200 and 399 of the clips of long-v2."""

SHORT = 24


def shortened(clip: SyntheticClip, num_frames: int = SHORT, side: int = 64) -> SyntheticClip:
    return replace(clip, spec=replace(clip.spec, num_frames=num_frames, height=side, width=side))


@pytest.fixture(scope="module")
def small() -> SyntheticSet:
    """Two short clips in the manner of the benchmark, one with late objects."""
    dev = open_synthetic("dev-v1")
    return SyntheticSet("small", (shortened(dev["late_1"]), shortened(dev["appearance_1"])))


# -- the sets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.full
def test_every_bit_of_the_short_set(name: str) -> None:
    clip = open_synthetic("dev-v1")[name]
    assert fingerprint(clip, range(len(clip))) == WHOLE[name]


@pytest.mark.parametrize("name", LONG)
def test_frames_of_the_long_set(name: str) -> None:
    clip = open_synthetic("long-v1")[name]
    assert fingerprint(clip, (0, 300, 599)) == LONG[name]


@pytest.mark.parametrize("name", AWAY)
def test_frames_of_the_set_of_long_absences(name: str) -> None:
    clip = open_synthetic("long-v2")[name]
    assert fingerprint(clip, (0, 60, 200, 399)) == AWAY[name]


@pytest.mark.parametrize("track", SEEDS)
def test_frames_of_the_set_of_three_seeds(track: str) -> None:
    clips = open_synthetic("seeds-v1")
    assert tuple(fingerprint(clips[f"{track}_{n}"], (0, 100, 199)) for n in (1, 2, 3)) == SEEDS[track]


@pytest.mark.parametrize(
    "environment",
    [
        {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"},
        pytest.param({"OPENCV_CPU_DISABLE": "AVX512_SKX,AVX2,FMA3,AVX"}, marks=pytest.mark.extended),
    ],
    ids=["numpy", "opencv"],
)
@pytest.mark.full
def test_bits_do_not_depend_on_what_the_processor_can_do(environment: dict[str, str]) -> None:
    code = """
from sam2_mem.evaluation.synthetic import fingerprint, open_synthetic
clips = open_synthetic("dev-v1")
print(*[fingerprint(clips[name], range(120)) for name in ("lookalikes_1", "splitting_1")])
"""
    every = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=every, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [WHOLE["lookalikes_1"], WHOLE["splitting_1"]]


def test_control_another_seed_has_another_fingerprint(small: SyntheticSet) -> None:
    clip = small[1]
    other = replace(clip, spec=replace(clip.spec, seed=clip.spec.seed + 1))
    assert fingerprint(clip, (0, 5)) != fingerprint(other, (0, 5))
    assert fingerprint(clip, (0, 5)) != fingerprint(clip, (0, 6))


def test_sizes() -> None:
    long, away, dev, seeds = map(open_synthetic, SYNTHETIC_SETS)
    assert SYNTHETIC_SETS == ("long-v1", "long-v2", "dev-v1", "seeds-v1")
    assert [clip.name for clip in away] == list(AWAY) and {clip.track for clip in away} == {t.name for t in AWAY_TRACKS}
    assert {(len(c), c.spec.height, c.spec.width) for c in away} == {(400, 256, 256)}
    assert [clip.name for clip in dev] == list(WHOLE) and [clip.name for clip in long] == list(LONG)
    assert {(len(c), c.spec.height, c.spec.width) for c in long} == {(600, 256, 256)}
    assert {(len(c), c.spec.height, c.spec.width) for c in dev} == {(120, 128, 128)}
    assert {(len(c), c.spec.height, c.spec.width) for c in seeds} == {(200, 128, 128)}
    assert (
        {c.track for c in seeds}
        == {c.track for c in long}
        == {c.track for c in dev}
        == {track.name for track in TRACKS}
    )


def test_seeds_are_not_those_of_training_or_validation() -> None:
    seeds = [clip.spec.seed for name in SYNTHETIC_SETS for clip in open_synthetic(name)]
    assert all(seed > 2 * SEED + 1_000_000 for seed in seeds)


@pytest.mark.parametrize("track", TRACKS, ids=lambda track: track.name)
def test_every_track_holds_what_it_promises(track) -> None:
    clip = open_synthetic("dev-v1")[f"{track.name}_1"]
    events = clip.video.events()
    for kind in track.events:
        objects = {event.object_id for event in events if event.kind == kind}
        assert objects, f"no {kind}"
    assert sum(first > 0 for first in clip.entries.values()) == track.late
    if track.name == "lookalikes":
        assert sum(bool(obj.resembles) for obj in clip.video.scene.moving_objects) == 2 * track.objects
    if track.name == "long_absence":
        absent = np.array([[info.absent for info in clip.video.info(t)] for t in range(0, 120, 4)])
        assert (absent.mean(0) > 0.35).all()


@pytest.mark.parametrize("name", AWAY)
def test_every_object_is_away_for_a_hundred_frames_and_comes_back(name: str) -> None:
    """What the last frames before its return show, and the look in which it returns."""
    clip = open_synthetic("long-v2")[name]
    video, changes = clip.video, [o.change for o in clip.video.scene.moving_objects if o.object_id]
    shown = {t: video.masks(t) for t in range(0, 400, 10)}
    for obj_id, change in zip((1, 2), changes):
        present = [t for t, ids in shown.items() if (ids == obj_id).any()]
        before, after = max(pairwise(present), key=lambda pair: pair[1] - pair[0])
        assert after - before >= 100 and max(present) >= 350
        looks = [round(change.level(t)) for t in (0, before, after)]
        expected = {"changed_away": [0, 1, 1], "scene_cut": [0, 1, 1], "revisit": [0, 0, 1]}
        assert looks == expected.get(clip.track, [0, 0, 0])
        if clip.track == "revisit":
            seen = [t for t in present if t < before and round(change.level(t)) == 1]
            assert seen and after - max(seen) > 200
        middle = (before + after) // 2
        doubles = [n for n, o in enumerate(video.scene.moving_objects, 1) if o.resembles == obj_id]
        stays = any(np.isin(video.front_map(t), doubles).any() for t in (middle - 20, middle, middle + 20))
        assert stays == (clip.track == "lookalike_stays")


def test_a_cut_shows_another_scene() -> None:
    video = open_synthetic("long-v2")["scene_cut_1"].video
    cut = video.scene.cut
    inside, outside = (video.frame(t).image.astype(int) for t in (cut.start, cut.start - 1))
    assert np.abs(inside - outside).mean() > 10 and not video.masks(cut.start).any()
    assert video.masks(cut.start - 1).any() and video.masks(cut.end).any()
    kinds = [(event.kind, event.start) for event in video.events() if event.object_id == 1]
    assert ("leave", cut.start) in kinds and ("return", cut.end) in kinds


def test_objects_leave_and_come_back_in_the_long_set() -> None:
    video = open_synthetic("long-v1")["long_absence_1"].video
    for obj_id in (1, 2):
        shown = "".join("x" if (video.masks(t) == obj_id).any() else " " for t in range(0, 600, 10))
        gaps = [len(run) for run in shown.strip().split("x")]
        assert max(gaps) * 10 >= 150, shown


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match="expected a synthetic set of long-v1, long-v2, dev-v1, seeds-v1, got 'long-v3'"
    ):
        open_synthetic("long-v3")
    with pytest.raises(ValueError, match="expected a clip of dev-v1, one of occlusion_1, .*, got 'occlusion_9'"):
        open_synthetic("dev-v1")["occlusion_9"]


# -- ways to use it -------------------------------------------------------------------------------------------------


def test_iteration_gives_frames_labels_and_late_prompts(small: SyntheticSet) -> None:
    clip = small["late_1"]
    frames = list(clip)
    assert [f.name for f in frames] == list(clip.frames) and len(frames) == SHORT
    prompted = {prompt.obj_id: frame for frame in frames for prompt in frame.prompts}
    assert {obj_id: frame.index for obj_id, frame in prompted.items()} == clip.entries
    assert sum(first > 0 for first in clip.entries.values()) == 4
    for frame in frames:
        assert frame.image.shape == (64, 64, 3) and np.array_equal(frame.ids, clip.truth(frame.name))
        for prompt in frame.prompts:
            assert prompt.mask.any() and np.array_equal(prompt.mask.numpy(), frame.ids == prompt.obj_id)


def test_it_is_a_video_for_predictors_that_is_never_written_to_disk(small: SyntheticSet) -> None:
    clip, predictor = small["late_1"], micro_predictor()
    with open_video(clip.source(prefetch=2)) as source:
        state = predictor.init_state(source)
        shown = list(segment(predictor, state, clip.plan()))
        assert source.num_frames == SHORT == len(shown) and (source.height, source.width) == (64, 64)
    for obj_id, first in clip.entries.items():
        assert not any(frame.masks[obj_id].any() for frame in shown[:first])
        mask, truth = shown[first].masks[obj_id], clip.truth(f"{first:05d}") == obj_id
        assert (mask & truth).sum() > 0.5 * truth.sum()
    assert np.array_equal(shown[7].frame.image, clip.video.frame(7).image)


def test_a_run_of_many_videos_takes_its_clips(small: SyntheticSet, tmp_path: Path) -> None:
    tasks = [VideoTask(name=clip.name, video=clip.source, plan=lambda _, clip=clip: clip.plan()) for clip in small]
    reports = run(micro_predictor(), tasks, RunOptions(outputs=Outputs(folder=tmp_path)))
    assert [(report.name, report.frames, report.error) for report in reports] == [
        ("late_1", SHORT, None),
        ("appearance_1", SHORT, None),
    ]
    assert len(list((tmp_path / "late_1").glob("*.png"))) == SHORT


def test_export_is_a_davis_folder_with_the_same_bits(small: SyntheticSet, tmp_path: Path) -> None:
    small.export(tmp_path)
    clip = small["late_1"]
    with open_video(tmp_path / "JPEGImages" / "480p" / "late_1") as source:
        assert source.num_frames == SHORT and np.array_equal(source[9].image, clip.video.frame(9).image)
    written = read_mask_png(tmp_path / "Annotations" / "480p" / "late_1" / "00009.png").ids
    assert np.array_equal(written, clip.video.masks(9))
    assert (tmp_path / "ImageSets" / "2017" / "val.txt").read_text().split() == ["late_1", "appearance_1"]
    assert json.loads((tmp_path / "meta.json").read_text())["set"] == "small"
    truth = tmp_path / "Annotations" / "480p"
    perfect = open_dataset("synthetic", tmp_path, truth)
    report = evaluate(perfect.protocol, perfect.videos)
    assert report.figure("J&F") == 1.0 and len(report.objects) == 8 and not report.failures
    late = {one.obj_id: len(one.frames) for one in report.objects if one.video == "late_1"}
    assert late == {str(obj_id): SHORT - 1 - first for obj_id, first in clip.entries.items()}


def test_export_as_jpeg(small: SyntheticSet, tmp_path: Path) -> None:
    SyntheticSet("one", small.clips[1:]).export(tmp_path, quality=95)
    with open_video(tmp_path / "JPEGImages" / "480p" / "appearance_1") as source:
        difference = np.abs(source[3].image.astype(int) - small[1].video.frame(3).image)
    assert len(list((tmp_path / "JPEGImages" / "480p" / "appearance_1").glob("*.jpg"))) == SHORT
    assert 0 < difference.mean() < 12


# -- the protocol ---------------------------------------------------------------------------------------------------


def test_protocol_counts_from_after_the_prompt_and_tells_absence_apart() -> None:
    clip = open_synthetic("dev-v1")["long_absence_1"]
    small = shortened(clip, 20)
    truths = np.stack([small.video.masks(t) for t in range(20)])
    nothing = np.zeros_like(truths)
    found = {}
    for name, pred in (("perfect", truths), ("nothing", nothing)):
        video = ArrayVideo(small.name, truths, pred, tuple(small.listed))
        found[name] = PROTOCOLS["synthetic"].score(video).objects
    columns = PROTOCOLS["synthetic"].columns
    for number, (perfect, empty) in enumerate(zip(found["perfect"], found["nothing"]), start=1):
        absent = ~(truths[1:] == number).any((1, 2))
        assert absent.any() and not absent.all(), "the clip shows both"
        assert len(perfect.frames) == 19 and perfect.values[0] == 1.0
        assert empty.values[columns.index("J")] == pytest.approx(absent.mean())
        assert empty.values[columns.index("J-visible")] == 0.0 and empty.values[columns.index("J-absent")] == 1.0


def object_from_start(truths: np.ndarray) -> ListedObject:
    return ListedObject(obj_id=1, frames=tuple(f"{t:05d}" for t in range(len(truths))))


def test_returns_after_long_absences_and_masks_elsewhere() -> None:
    """An object is visible on frames 0 to 9 and 40 to 69; the mask is right, gone, or on something else after its return."""
    truths = np.zeros((70, 16, 16), np.uint8)
    truths[:10, 2:6, 2:6] = truths[40:, 2:6, 2:6] = 1
    late, wrong = truths.copy(), truths.copy()
    late[40:50] = 0  # found again ten frames late
    wrong[40:] = np.roll(truths[40:], 8, axis=2)
    columns = PROTOCOLS["synthetic"].columns
    expected = {"perfect": (1.0, 1.0, 0.0), "late": (0.5, 0.0, 0.0), "wrong": (0.0, 0.0, 30 / 39)}
    for name, pred in (("perfect", truths), ("late", late), ("wrong", wrong)):
        (scores,) = PROTOCOLS["synthetic"].score(ArrayVideo("v", truths, pred, (object_from_start(truths),))).objects
        values = dict(zip(columns, scores.values))
        assert (values["J-return"], values["recovered"], values["elsewhere"]) == pytest.approx(expected[name])
    short = np.delete(truths, slice(10, 25), 0)  # 15 frames away are no long absence
    (scores,) = PROTOCOLS["synthetic"].score(ArrayVideo("v", short, short, (object_from_start(short),))).objects
    assert np.isnan(dict(zip(columns, scores.values))["J-return"])


def test_an_object_that_never_leaves_has_no_score_of_absence(small: SyntheticSet) -> None:
    clip = small["appearance_1"]
    truths = np.stack([clip.video.masks(t) for t in range(SHORT)])
    (one, *_) = PROTOCOLS["synthetic"].score(ArrayVideo(clip.name, truths, truths, tuple(clip.listed))).objects
    values = dict(zip(PROTOCOLS["synthetic"].columns, one.values))
    assert values["J-visible"] == 1.0 and all(np.isnan(values[k]) for k in ("J-absent", "J-return", "recovered"))
