"""Training clips from data sets on disk and from pictures; the measures of validation."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from sam2_mem.training.away import AwayClips
from sam2_mem.training.clips import Clip, ClipSpec, visible_objects
from sam2_mem.training.folders import FolderClips, MixedClips, open_videos
from sam2_mem.training.pictures import PictureClips
from sam2_mem.training.rendered import RenderedClips
from sam2_mem.training.validation import (
    Outcome,
    compare,
    copy_first,
    curtained,
    first_masks,
    follow_flow,
    returns,
    run_method,
    still,
    summarise,
)

HEIGHT, WIDTH, FRAMES = 40, 60, 6
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759


def ids_at(t: int, value: int = 2) -> np.ndarray:
    """Object 1 moves right, the other one stands."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:20, 4 + 3 * t : 24 + 3 * t] = 1
    ids[24:38, 30:55] = value
    return ids


def picture_at(t: int) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    image[ids_at(t) == 1] = (200, 30, 30)
    image[ids_at(t) == 2] = (30, 60, 220)
    return image


def write_png(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids, mode="P")
    image.putpalette(PALETTE)
    image.save(path)


def write_jpg(path: Path, t: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_at(t)).save(path, quality=95)


def fake_davis(root: Path, value: int = 2) -> None:
    for t in range(FRAMES):
        write_jpg(root / f"JPEGImages/480p/blob/{t:05d}.jpg", t)
        write_png(root / f"Annotations/480p/blob/{t:05d}.png", ids_at(t, value))


def fake_youtube(root: Path) -> None:
    """Masks on every second frame only."""
    for t in range(FRAMES):
        write_jpg(root / f"train/JPEGImages/blob/{5 * t:05d}.jpg", t)
        if t % 2 == 0:
            write_png(root / f"train/Annotations/blob/{5 * t:05d}.png", ids_at(t))


def fake_mose(root: Path) -> None:
    for t in range(FRAMES):
        write_jpg(root / f"JPEGImages/blob/{t:05d}.jpg", t)
        write_png(root / f"Annotations/blob/{t:05d}.png", ids_at(t))


def fake_sav_png(root: Path) -> None:
    for t in range(FRAMES):
        write_jpg(root / f"JPEGImages_24fps/blob/{t:05d}.jpg", t)
        if t % 4 == 0:
            for number in (1, 2):
                path = root / f"Annotations_6fps/blob/{number - 1:03d}/{t:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((ids_at(t) == number).astype(np.uint8) * 255).save(path)


def fake_sav_json(root: Path) -> None:
    """An mp4, and run lengths on every fourth frame."""
    film = cv2.VideoWriter(str(root / "sav_1.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 24, (WIDTH, HEIGHT))
    masklet = []
    for t in range(FRAMES):
        film.write(np.ascontiguousarray(picture_at(t)[..., ::-1]))
        if t % 4 == 0:
            codes = [rle_codec.encode(np.asfortranarray((ids_at(t) == n).astype(np.uint8))) for n in (1, 2)]
            masklet.append([{"size": c["size"], "counts": c["counts"].decode()} for c in codes])
    film.release()
    (root / "sav_1_manual.json").write_text(json.dumps({"masklet": masklet}))


LAYOUTS = {
    "davis": (fake_davis, [0, 1, 2, 3, 4, 5]),
    "youtube_vos": (fake_youtube, [0, 2, 4]),
    "mose": (fake_mose, [0, 1, 2, 3, 4, 5]),
    "sav_png": (fake_sav_png, [0, 4]),
    "sav_json": (fake_sav_json, [0, 4]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read(layout: str, tmp_path: Path) -> None:
    write, times = LAYOUTS[layout]
    write(tmp_path)
    (video,) = open_videos(layout, tmp_path)
    assert len(video.frames) == len(times)
    for stem, t in zip(video.frames, times):
        assert np.array_equal(video.ids(stem), ids_at(t)), (layout, stem)
        error = np.abs(video.image(stem).astype(int) - picture_at(t)).mean()
        wrong = np.abs(video.image(stem).astype(int) - picture_at((t + 3) % FRAMES)).mean()
        assert error < 12 < wrong + 8 and error < wrong, (layout, stem, error, wrong)
    spec = ClipSpec(num_frames=2, max_gap=1, size=32)
    clip = FolderClips(layout=layout, root=str(tmp_path)).sample(np.random.default_rng(0), spec)
    assert clip.frames.shape == (2, 32, 32, 3) and visible_objects(clip.ids[0], 0.01) == [1, 2]


def test_void_is_background_or_the_object(tmp_path: Path) -> None:
    fake_davis(tmp_path, value=255)
    assert np.unique(open_videos("davis", tmp_path)[0].ids("00000")).tolist() == [0, 1]
    assert (open_videos("davis2016", tmp_path)[0].ids("00000") == 1).sum() == (ids_at(0) > 0).sum()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected videos with masks"):
        open_videos("davis", tmp_path)
    with pytest.raises(ValueError, match="expected a layout out of"):
        FolderClips(layout="coco", root="x")
    fake_mose(tmp_path)
    long = ClipSpec(num_frames=20, max_gap=1, size=32)
    with pytest.raises(ValueError, match="ask for shorter clips"):
        FolderClips(layout="mose", root=str(tmp_path)).sample(np.random.default_rng(0), long)
    with pytest.raises(ValueError, match="expected pictures"):
        PictureClips(pictures=str(tmp_path / "none")).video(0)
    with pytest.raises(ValueError, match="one share >= 0 per source"):
        MixedClips(sources=[1], shares=[1, 2])


def test_sources_mix_by_their_shares() -> None:
    class One:
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self, rng: np.random.Generator, spec: ClipSpec) -> str:
            return self.name

    mixed = MixedClips(sources=[One("a"), One("b"), One("c")], shares=[3, 1, 0])
    drawn = [mixed.sample(np.random.default_rng(i), None) for i in range(400)]
    assert 260 < drawn.count("a") < 340 and drawn.count("c") == 0


@dataclass(frozen=True, kw_only=True)
class Numbered(RenderedClips):
    """Frames whose pixels are their numbers; object 1 is away from ``away`` on for nine frames."""

    away: int = 12

    def random_video(self, rng: np.random.Generator) -> Clip:
        numbers = np.arange(self.length, dtype=np.uint8)
        frames = np.broadcast_to(numbers[:, None, None, None], (self.length, 16, 16, 3)).copy()
        ids = np.zeros((self.length, 16, 16), np.uint8)
        ids[(numbers < self.away) | (numbers >= self.away + 9), 2:9, 2:9] = 1
        return Clip(frames, ids)


def test_objects_go_away_and_come_back() -> None:
    """Before, during and after the absence, in order of time or against it."""
    clips = AwayClips(videos=Numbered(count=1, augmented=False), before=2, after=3)
    spec = ClipSpec(num_frames=11, max_gap=1, size=16)
    directions, neighbours = set(), set()
    for seed in range(40):
        clip = clips.sample(np.random.default_rng(seed), spec)
        times = clip.frames[:, 0, 0, 0].astype(int)
        directions.add(bool(times[1] > times[0]))
        neighbours.add(abs(times[1] - times[0]) == 1 == abs(times[2] - times[1]))
        assert (np.diff(times) > 0).all() or (np.diff(times) < 0).all()
        assert (clip.ids.max((1, 2)) > 0).tolist() == [True] * 3 + [False] * 5 + [True] * 3
        assert (np.diff(times[-3:]) == np.diff(times[-3:])[0]).all() and abs(times[8] - times[7]) <= 1 + clips.late
    assert directions == neighbours == {True, False}
    with pytest.raises(ValueError, match="at least 7 frames, got 6"):
        clips.sample(np.random.default_rng(0), replace(spec, num_frames=6))
    with pytest.raises(ValueError, match="absences of 10 frames"):
        clips.sample(np.random.default_rng(0), replace(spec, num_frames=16))


def test_pieces_of_pictures_move_and_match_their_masks(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :260]
    plain = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    cv2.circle(plain, (120, 100), 45, (250, 30, 40), -1)
    cv2.imwrite(str(tmp_path / "a.png"), plain)
    cv2.imwrite(str(tmp_path / "b.png"), 255 - plain[::-1])
    source = PictureClips(pictures=str(tmp_path), side=64, length=6, count=4, folder=str(tmp_path / "kept"))
    first, again = source.video(1), source.video(1)
    assert first.frames.shape == (6, 64, 64, 3) and np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.ids[0], first.ids[5]), "pieces must move"
    assert any(visible_objects(source.video(k).ids[0], 0.01) for k in range(4))
    fresh = PictureClips(pictures=str(tmp_path), side=64, length=6, count=4)
    assert np.array_equal(fresh.video(1).ids, first.ids)


# -- measures ---------------------------------------------------------------------------------------------------------


def square(t: int, absent: tuple[int, ...] = ()) -> np.ndarray:
    mask = np.zeros((1, 32, 32), bool)
    if t not in absent:
        mask[0, 8:16, 2 + t : 10 + t] = True
    return mask


def test_scores_of_known_masks() -> None:
    away = (5, 6, 7, 8, 9)
    truth = np.stack([square(t, away) for t in range(18)])
    perfect = summarise(compare(truth, truth))
    assert (perfect.j, perfect.noticed, perfect.alarms, perfect.found, perfect.returns) == (1, 1, 0, 1, 1)
    blind = truth.copy()
    blind[10:] = False
    lost = summarise(compare(blind, truth))
    assert (lost.found, lost.noticed) == (0, 1)
    assert lost.alarms == pytest.approx(8 / 12) and lost.j == pytest.approx(4 / 12)
    stubborn = truth.copy()
    stubborn[5:10] = square(4)
    assert summarise(compare(stubborn, truth)).noticed == 0


def test_returns_need_an_absence_and_time_to_tell() -> None:
    def outcome(real: list[int], iou: float) -> Outcome:
        flags = np.array(real, bool)
        return Outcome(np.full(len(real), iou), flags, flags)

    assert returns(outcome([1] * 3 + [0] * 5 + [1] * 7, 0.8)) == [True]
    assert returns(outcome([1] * 3 + [0] * 5 + [1] * 7, 0.3)) == [False]
    assert returns(outcome([1] * 3 + [0] * 4 + [1] * 7, 0.8)) == []
    assert returns(outcome([1] * 3 + [0] * 5 + [1] * 3, 0.8)) == []


def test_baselines_on_a_moving_texture() -> None:
    rng = np.random.default_rng(0)
    ground, skin = (cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), (0, 0), 1.5) for _ in range(2))
    frames, ids = [], []
    for t in range(10):
        image, mask = ground.copy(), np.zeros((64, 64), np.uint8)
        image[20:44, 4 + 3 * t : 28 + 3 * t] = skin[20:44, 4:28]
        mask[20:44, 4 + 3 * t : 28 + 3 * t] = 1
        frames.append(image)
        ids.append(mask)
    clip = Clip(np.stack(frames), np.stack(ids))
    copied, flowed = (summarise(run_method(m, [clip])).j for m in (copy_first, follow_flow))
    assert copied < 0.5 < flowed


def test_changed_clips() -> None:
    clip = Clip(np.full((9, 16, 16, 3), 7, np.uint8), np.ones((9, 16, 16), np.uint8))
    assert len(still(clip, 4)) == 4
    hidden = curtained(clip, 3, 2)
    assert [bool(i.any()) for i in hidden.ids] == [True] * 3 + [False] * 2 + [True] * 4 and clip.ids.all()
    assert first_masks(clip)[0] == [1]
