"""Procedural video: reproducible to the bit, truthful masks and events, and levels that contain what they promise."""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam2_mem.synthetic.demo import demo_clip
from sam2_mem.synthetic.export import export_clip, vos_palette
from sam2_mem.synthetic.generator import SyntheticVideo, least_first_area, make_clip, sample_training_clip
from sam2_mem.synthetic.scenes import LEVELS
from sam2_mem.synthetic.shapes import Affine, Bend, Bounds, Schedule, Window, coverage, rectangle
from sam2_mem.synthetic.textures import OPAQUE, Texture, blend, noise_field, pack, sample, unpack

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = ROOT / "notebooks" / "videos"
PINS = {
    "easy": "41ee0677f5384e32",
    "clutter": "ecb3adbad59201b8",
    "occlusion": "4dab19a3c28d113d",
    "splitting": "94d37c563fd6fbf0",
}


def small(seed: int, level: str, num_frames: int = 40, **options: int) -> SyntheticVideo:
    return make_clip(seed, level=level, num_frames=num_frames, height=96, width=96, **options)


def fingerprint(clip: SyntheticVideo, times: tuple[int, ...] = (0, 7, 23)) -> str:
    digest = hashlib.sha256()
    for t in times:
        frame = clip.frame(t)
        digest.update(frame.image.tobytes() + frame.masks.tobytes())
    return digest.hexdigest()[:16]


# Reproducibility


@pytest.mark.parametrize("level", PINS)
def test_checksum_is_pinned_whatever_the_threads(level: str) -> None:
    threads = cv2.getNumThreads()
    default = fingerprint(small(3, level))
    try:
        cv2.setNumThreads(1)
        assert fingerprint(small(3, level)) == default == PINS[level]
    finally:
        cv2.setNumThreads(threads)
    assert fingerprint(small(4, level)) != default


def test_another_process_gives_the_same_bits() -> None:
    code = (
        "from sam2_mem.synthetic.generator import make_clip\n"
        "from test_synthetic import fingerprint, small\n"
        "print(*[fingerprint(small(11, level)) for level in ('mixed', 'lookalikes', 'appearance')])"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [fingerprint(small(11, level)) for level in ("mixed", "lookalikes", "appearance")]


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_random_access_equals_iteration(level: str) -> None:
    clip = small(5, level, 12)
    frames = list(clip)
    again = small(5, level, 12)
    for t in (9, 2, 11, 0, 2):
        frame = again.frame(t)
        assert frame.index == frames[t].index == t
        assert np.array_equal(frame.image, frames[t].image)
        assert np.array_equal(frame.masks, frames[t].masks)
    assert not np.array_equal(frames[0].image, frames[11].image)


def test_shapes_and_types() -> None:
    frame = make_clip(0, level="clutter", num_frames=2, height=64, width=96).frame(1)
    assert frame.image.shape == (64, 96, 3) and frame.image.dtype == np.uint8
    assert frame.masks.shape == (64, 96) and frame.masks.dtype == np.uint8


@pytest.mark.full
def test_memory_does_not_grow() -> None:
    tracemalloc.start()
    try:
        clip = make_clip(1, level="leave_return", num_frames=10_000, height=48, width=48, num_objects=1)
        marks = []
        for t in range(2000):
            clip.frame(5 * t)
            if t in (100, 1999):
                gc.collect()
                marks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert abs(marks[1] - marks[0]) < 20_000  # not three frames' worth, of 2,000


# Ground truth


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_objects_start_well_visible_and_late_ones_not_before(level: str) -> None:
    for seed in range(4):
        clip = small(seed, level, num_objects=3, late_objects=1)
        entries = [clip.entry_frame(i) for i in (1, 2, 3)]
        assert entries[0] == 0 and sum(e > 0 for e in entries) == 1
        for object_id, entry in enumerate(entries, start=1):
            info = clip.info(entry)[object_id - 1]
            assert info.visible_area >= least_first_area(clip.scene.moving_objects) * 96 * 96
            assert info.visible_area >= 0.8 * info.in_frame_area
            for t in range(0, entry, 3):
                before = clip.info(t)[object_id - 1]
                assert before.absent and not before.present and not (clip.masks(t) == object_id).any()


def test_info_agrees_with_masks() -> None:
    clip = small(2, "mixed", num_objects=4)
    for t in range(0, 40, 3):
        masks = clip.frame(t).masks
        assert set(np.unique(masks)) <= set(range(5))
        for info in clip.info(t):
            assert info.visible_area == (masks == info.object_id).sum() <= info.in_frame_area <= info.amodal_area
            assert info.absent == (info.visible_area == 0)
            assert 0.0 <= info.visible_fraction <= 1.0


def test_masks_follow_what_is_painted() -> None:
    """Repainting one object changes its own pixels (and a soft edge), and hardly any other."""
    clip = small(0, "easy")
    scene = clip.scene
    index = next(i for i, a in enumerate(scene.moving_objects) if a.object_id == 1)
    skin = scene.skins[index]
    black = Texture(skin.first.size, np.zeros_like(skin.first.lanes))
    painted = tuple(type(s)(black, black, s.light) if i == index else s for i, s in enumerate(scene.skins))
    other = SyntheticVideo(type(scene)(**{**vars(scene), "skins": painted}))
    for t in (0, 15, 30):
        mask = clip.frame(t).masks == 1
        changed = (clip.frame(t).image != other.frame(t).image).any(axis=2)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        assert changed[mask].mean() > 0.99
        assert changed[~near].mean() < 0.002


def test_split_parts_keep_their_id_and_nothing_is_lost_at_the_start() -> None:
    pieces = 0
    for seed in range(4):
        clip = small(seed, "splitting", 60, num_objects=1)
        split = next(e for e in clip.events() if e.kind == "split")
        before, after = clip.info(split.start - 1)[0], clip.info(split.start)[0]
        assert abs(after.amodal_area - before.amodal_area) < 0.15 * before.amodal_area
        middle = (split.start + split.end) // 2
        _, labels = cv2.connectedComponents((clip.masks(middle) == 1).astype(np.uint8))
        pieces += sum(size > 20 for size in np.bincount(labels.reshape(-1))[1:]) >= 2
        _, labels = cv2.connectedComponents((clip.masks(0) == 1).astype(np.uint8))
        assert labels.max() == 1
    assert pieces >= 3


# Levels


@pytest.mark.parametrize("seed", range(6))
def test_occlusion_hides_and_gives_back(seed: int) -> None:
    clip = small(seed, "occlusion", 60)
    fractions = np.array([[i.visible_fraction for i in clip.info(t)] for t in range(60)])
    hidden = fractions < 0.2
    recovered = [hidden[:, i].any() and (fractions[np.argmax(hidden[:, i]) :, i] > 0.6).any() for i in range(2)]
    assert any(recovered)
    assert fractions[0].min() > 0.5
    for event in (e for e in clip.events() if e.kind == "occlusion"):
        assert (fractions[event.start : event.end, event.object_id - 1] < 0.2).all()


def test_easy_has_no_absence() -> None:
    """The control of the tests above and below."""
    for seed in range(4):
        assert not {e.kind for e in small(seed, "easy", 60).events()} & {
            "leave",
            "return",
            "split",
            "appearance",
            "entry",
        }


@pytest.mark.parametrize("seed", range(4))
def test_leaving_and_returning(seed: int) -> None:
    clip = small(seed, "leave_return", 60)
    events = clip.events()
    kinds = {e.kind for e in events}
    assert {"leave", "return"} <= kinds
    for event in events:
        if event.kind == "leave":
            for t in range(event.start, event.end):
                assert not (clip.masks(t) == event.object_id).any()
        if event.kind == "return":
            assert clip.info(event.start)[event.object_id - 1].in_frame_area > 0
            assert clip.info(event.start - 1)[event.object_id - 1].absent


@pytest.mark.parametrize("seed", range(4))
def test_long_absence_is_long(seed: int) -> None:
    clip = small(seed, "long_absence", 80)
    shown = np.array([[i.visible_fraction > 0.02 for i in clip.info(t)] for t in range(80)])
    for i in range(2):
        runs = "".join("x" if s else " " for s in shown[:, i]).split("x")
        assert max(len(run) for run in runs) >= 20
        assert shown[60:, i].any()


def test_lookalikes_share_the_colours_of_an_object() -> None:
    gaps, strangers = [], []
    for seed in range(5):
        scene = small(seed, "lookalikes", 8).scene
        colours = {
            a.object_id: s.first.mean_colour()
            for a, s in zip(scene.moving_objects, scene.skins, strict=True)
            if a.object_id
        }
        doubles = [
            (a.resembles, s.first.mean_colour())
            for a, s in zip(scene.moving_objects, scene.skins, strict=True)
            if a.resembles
        ]
        assert len(doubles) == 4
        gaps += [np.linalg.norm(colours[i] - c) for i, c in doubles]
        strangers += [np.linalg.norm(colours[3 - i] - c) for i, c in doubles]
    assert np.median(gaps) < 30
    assert np.median(strangers) > 1.5 * np.median(gaps)


def test_lookalikes_are_on_screen_and_unmarked() -> None:
    clip = small(1, "lookalikes")
    front, masks = clip.front_map(10), clip.masks(10)
    doubles = [i for i, a in enumerate(clip.scene.moving_objects, start=1) if a.resembles]
    seen = np.isin(front, doubles)
    assert seen.sum() > 100 and (masks[seen] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_appearance_changes_colour_size_and_shape(seed: int) -> None:
    clip = small(seed, "appearance", 50, num_objects=1)
    change = next(e for e in clip.events() if e.kind == "appearance")
    obj, skin = clip.scene.moving_objects[0], clip.scene.skins[0]
    assert obj.change.level(change.start - 1) == 0.0 and obj.change.level(change.end) == 1.0
    assert skin.first.lanes.tobytes() != skin.second.lanes.tobytes()
    assert np.linalg.norm(skin.first.mean_colour() - skin.second.mean_colour()) > 25
    assert not 0.85 < obj.growth < 1.2
    outline = obj.outline
    assert np.abs(outline.first - outline.second).max() > 0.1


def test_difficulty_raises_speed() -> None:
    def travel(difficulty: float) -> float:
        paths = [
            small(s, "clutter", difficulty=difficulty, num_objects=1).scene.moving_objects[0].path for s in range(8)
        ]
        return float(np.mean([np.hypot(*np.subtract(p.at(1), p.at(0))) for p in paths]))

    assert travel(1.0) > 1.5 * travel(0.0)


@pytest.mark.parametrize(("level", "count"), [("clutter", 12), ("lookalikes", 6), ("mixed", 10), ("easy", 30)])
def test_many_objects(level: str, count: int) -> None:
    clip = make_clip(0, level=level, num_frames=2, height=160, width=160, num_objects=count, late_objects=0)
    assert set(np.unique(clip.masks(0))) == set(range(count + 1))


def test_impossible_crowds_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for fewer objects"):
        make_clip(0, level="clutter", num_frames=2, height=64, width=64, num_objects=60)


# Conveniences


def test_training_clip() -> None:
    frames, ids = sample_training_clip(np.random.default_rng(5), level="mixed", num_frames=5, size=64, max_gap=4)
    again, _ = sample_training_clip(np.random.default_rng(5), level="mixed", num_frames=5, size=64, max_gap=4)
    other, _ = sample_training_clip(np.random.default_rng(6), level="mixed", num_frames=5, size=64, max_gap=4)
    assert frames.shape == (5, 64, 64, 3) and ids.shape == (5, 64, 64)
    assert frames.dtype == ids.dtype == np.uint8
    assert np.array_equal(frames, again) and not np.array_equal(frames, other)
    assert ids[0].any()


@pytest.mark.parametrize(
    "options",
    [
        {"level": "hard"},
        {"num_frames": 0},
        {"height": 16},
        {"num_objects": 0},
        {"num_objects": 256},
        {"difficulty": 1.5},
        {"late_objects": 2},
        {"seed": -1},
        {"jpeg_quality": 0},
        {"width": 512},
    ],
)
def test_user_mistakes_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected .*, got"):
        make_clip(**{"seed": 0, **options})


def test_frames_outside_the_clip_are_refused() -> None:
    clip = small(0, "easy", 4)
    for t in (-1, 4):
        with pytest.raises(ValueError, match="expected a frame in 0..3"):
            clip.frame(t)
    with pytest.raises(ValueError, match="object id"):
        clip.entry_frame(3)


def test_export(tmp_path: Path) -> None:
    clip = small(0, "easy", 2)
    export_clip(clip, tmp_path, "one")
    assert sorted(p.name for p in (tmp_path / "JPEGImages" / "one").iterdir()) == ["00000.jpg", "00001.jpg"]
    picture = Image.open(tmp_path / "Annotations" / "one" / "00001.png")
    assert picture.mode == "P" and np.array_equal(np.array(picture), clip.masks(1))
    image = cv2.imread(str(tmp_path / "JPEGImages" / "one" / "00001.jpg"))[..., ::-1].astype(int)
    assert np.abs(image - clip.frame(1).image).mean() < 6


def test_palette_is_that_of_davis() -> None:
    assert vos_palette()[:5].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert vos_palette()[255].tolist() == [224, 224, 192]


# The committed demo


def test_committed_demo_is_what_the_generator_gives() -> None:
    clip = demo_clip()
    assert (VIDEOS / "demo.txt").read_text().split() == ["demo"]
    assert len(list((VIDEOS / "demo").glob("*.jpg"))) == clip.num_frames == 48
    for t in (0, 12, 25, 47):
        frame = clip.frame(t)
        truth = np.array(Image.open(VIDEOS / "demo_gt" / "demo" / f"{t:05d}.png"))
        image = cv2.imread(str(VIDEOS / "demo" / f"{t:05d}.jpg"))[..., ::-1].astype(int)
        assert np.array_equal(truth, frame.masks)
        assert np.abs(image - frame.image).mean() < 6


def test_demo_prompts_hold_one_object_each() -> None:
    prompts = {p.name: np.array(Image.open(p)) for p in (VIDEOS / "demo_prompts" / "demo").iterdir()}
    assert {name: np.unique(ids).tolist() for name, ids in prompts.items()} == {
        "00000.png": [0, 1],
        "00012.png": [0, 2],
    }


def test_demo_events() -> None:
    events = demo_clip().events()
    assert [(e.kind, e.object_id) for e in events] == [("entry", 2), ("occlusion", 1)]
    assert events[0].start == 12 and 8 <= events[1].end - events[1].start <= 10


# Parts


def test_lanes_and_sampler() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(unpack(pack(rgb)), rgb)
    centres = np.arange(16, dtype=np.float32) + 0.5
    u, v = np.meshgrid(centres, centres)
    texture = Texture.from_rgb(rgb)
    assert np.array_equal(unpack(sample(texture, u, v)), rgb)
    assert np.array_equal(unpack(sample(texture, u - 32, v + 16)), rgb)
    half = unpack(sample(texture, u + 0.5, v)).astype(int)
    assert np.abs(half - (rgb.astype(int) + np.roll(rgb, -1, axis=1)) // 2).max() <= 1
    assert np.array_equal(unpack(blend(pack(rgb), pack(255 - rgb), np.uint64(OPAQUE))), 255 - rgb)


def test_noise_falls_with_frequency() -> None:
    field = noise_field(np.random.default_rng(1), 64, 1.0)
    power = np.abs(np.fft.fft2(field)) ** 2
    low, high = power[1, 1:3].mean() + power[1:3, 0].mean(), power[16, 16:18].mean() + power[16:18, 0].mean()
    assert low > 20 * high and abs(field.std() - 1) < 1e-9


def test_coverage_is_half_at_the_edge_and_conserves_area() -> None:
    box = Bounds(0, 0, 40, 40)
    covered = coverage(rectangle(10.0, 8.0) + 20.0, box)
    assert (covered >= OPAQUE // 2).sum() == 20 * 16
    assert covered.max() == OPAQUE and covered[20, 5] == 0
    assert abs(covered.sum() / OPAQUE - 320) < 20


def test_bend_and_affine_are_invertible() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    bend = Bend(0.2, 2.4, 0.7, -0.15, 2.9, 4.0)
    x, y = bend.undo(*bend.apply(points).astype(np.float32).T)
    assert np.abs(np.stack([x, y], axis=1) - points).max() < 2e-3
    move = Affine.pose(3.0, -2.0, 0.4, 2.0, 0.5)
    assert np.abs(move.inverse().apply(move.apply(points)) - points).max() < 1e-12


def test_schedule() -> None:
    schedule = Schedule((Window(2.0, 2.0, 3.0), Window(20.0, 1.0, 0.0)))
    assert [schedule.level(t) for t in (1, 3, 4, 7, 9, 21)] == [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
