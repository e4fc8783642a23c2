"""Clips of cut-outs over photographs: what is drawn, what its ids say, what is kept for validation; clips from processes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sam2_mem.training.clip_stream import ClipStream
from sam2_mem.training.clips import Clip, ClipSpec, visible_objects
from sam2_mem.training.cutouts import CutoutClips, is_of, read_views
from sam2_mem.training.layers import STILL, CameraSettings, Deformation, Ground, Layer, LayeredScene, Shot
from sam2_mem.training.pictures import Sway
from sam2_mem.training.validation_sets import SampledClips

SPEC = ClipSpec(num_frames=5, max_gap=2, size=64, max_objects=3)


def write_disc(path: Path, colour: tuple[int, int, int], radius: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.zeros((80, 80, 4), np.uint8)
    cv2.circle(picture, (40, 40), radius, (*colour, 255), -1)
    Image.fromarray(picture).save(path)


def write_photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (120, 90), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CutoutClips:
    root = tmp_path_factory.mktemp("pictures")
    for n in range(24):
        write_disc(root / f"cutouts/disc{n}.png", (10 * n, 255 - 10 * n, 90), 20 + n % 12)
        write_photograph(root / f"photographs/photograph{n}.jpg", n)
        write_photograph(root / f"videos/film{n % 12}/{n // 12}.jpg", n)
    return CutoutClips(**{kind: str(root / kind) for kind in ("cutouts", "photographs", "videos")})


def drawn(source: CutoutClips, seed: int, spec: ClipSpec = SPEC) -> Clip:
    return source.sample(np.random.default_rng(seed), spec)


# -- the source -------------------------------------------------------------------------------------------------------


def test_clips_depend_on_the_generator_alone(source: CutoutClips) -> None:
    fresh = CutoutClips(cutouts=source.cutouts, photographs=source.photographs, videos=source.videos)
    for seed in range(4):
        first, again = drawn(source, seed), drawn(fresh, seed)
        assert np.array_equal(first.frames, again.frames) and np.array_equal(first.ids, again.ids)
        assert first.frames.shape == (5, 64, 64, 3) and first.frames.dtype == first.ids.dtype == np.uint8
        assert visible_objects(first.ids[0], SPEC.min_area) and first.ids.max() <= 3
        assert not np.array_equal(first.frames, drawn(source, seed + 50).frames)


def test_stills_are_clips_of_one_frame(source: CutoutClips) -> None:
    clip = drawn(source, 3, replace(SPEC, num_frames=1))
    assert len(clip) == 1 and visible_objects(clip.ids[0], SPEC.min_area)


def away_and_back(clip: Clip) -> bool:
    """Whether no object at all is on some frame."""
    return any(not ids.any() for ids in clip.ids)


def test_absences_and_cuts_come_as_often_as_asked(source: CutoutClips) -> None:
    spec, seeds = replace(SPEC, num_frames=6, size=48, max_objects=1), range(10)
    never, always, cut = (
        replace(source, absence=absence, cut=cut) for absence, cut in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    )
    hidden = [sum(away_and_back(drawn(s, k, spec)) for k in seeds) for s in (never, always, cut)]
    assert hidden[0] <= 1 and hidden[1] >= 3 and hidden[2] >= 4, hidden
    jumps = [np.mean([largest_change(drawn(s, k, spec)) for k in seeds]) for s in (never, cut)]
    assert jumps[1] > 1.5 * jumps[0], jumps


def largest_change(clip: Clip) -> float:
    return max(float(np.abs(np.diff(clip.frames.astype(int), axis=0)).mean((1, 2, 3)).max()), 1e-6)


def test_no_picture_is_in_both_parts(source: CutoutClips) -> None:
    kept, trained, every = (replace(source, part=part) for part in ("validation", "training", "all"))
    for name in ("cutout_paths", "photograph_paths"):
        parts = [set(getattr(s, name)) for s in (kept, trained, every)]
        assert parts[0] and parts[1] and not parts[0] & parts[1] and parts[0] | parts[1] == parts[2]
    films = [{f[0].parent for f in s.video_folders} for s in (kept, trained)]
    assert films[0] and films[1] and not films[0] & films[1]
    assert is_of("validation", Path("a/x.png")) == is_of("validation", Path("b/x.webp")), "told by the name alone"
    sets = SampledClips(source=kept, clip_spec=SPEC, count=2)
    assert [c.ids.shape for c in sets.clips()] == [(5, 64, 64)] * 2


def test_bad_pictures_are_named(tmp_path: Path, source: CutoutClips) -> None:
    with pytest.raises(ValueError, match=r"expected pictures with alpha .*of part 'training' in .*none"):
        drawn(replace(source, cutouts=str(tmp_path / "none")), 0)
    write_disc(tmp_path / "mixed/good.png", (1, 2, 3))
    Image.new("RGB", (50, 50)).save(tmp_path / "mixed/opaque.png")
    (tmp_path / "mixed/text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"got 2 others: .*opaque.png \(RGB\), .*text.png \(no picture\); remove"):
        drawn(replace(source, cutouts=str(tmp_path / "mixed"), part="all"), 0)
    Image.new("RGBA", (50, 50)).save(tmp_path / "empty.png")
    with pytest.raises(ValueError, match="opaque or empty everywhere"):
        read_views(tmp_path / "empty.png")
    whole = (tmp_path / "mixed/good.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"expected a picture with alpha, got .*short.png"):
        read_views(tmp_path / "short.png")
    broken = tmp_path / "photographs/broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"none")
    with pytest.raises(ValueError, match=r"broken.jpg, which cannot be read"):
        drawn(replace(source, photographs=str(broken.parent), part="all"), 0)


@pytest.mark.parametrize(("changes", "message"), [({"part": "test"}, "part to be one of"), ({"cut": 2.0}, "in 0..1")])
def test_settings_are_checked(source: CutoutClips, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(source, **changes)


# -- what is drawn ----------------------------------------------------------------------------------------------------


def at(value: float, drift: float = 0.0) -> Sway:
    return Sway(value, drift, 0.0, 0.0, 0.0)


def block(obj_id: int, x: float, y: float, side: float, *, drift: float = 0.0, **settings: object) -> Layer:
    """An opaque square of one colour, ``side`` in parts of the frame's side."""
    view = np.full((1, 40, 40, 4), 255, np.uint8)
    view[..., :3] = (200, 30, 40)
    motion = {"size": at(np.log(side)), "x": at(x, drift), "y": at(y), **settings}
    return Layer(views=view, obj_id=obj_id, **motion)


def scene(*layers: Layer, camera: CameraSettings | None = None, shots: tuple[Shot, ...] = ()) -> LayeredScene:
    ground = Ground(pictures=[np.full((120, 120, 3), 90, np.uint8)], x=STILL, y=STILL, turn=STILL, zoom=STILL)
    camera = camera or CameraSettings(shutter=0.0)
    return LayeredScene(side=96, layers=layers, shots=shots or (Shot(start=0.0, ground=ground),), camera=camera)


def seen(picture: LayeredScene, t: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    frame = picture.frame(t, np.random.default_rng(0))
    return frame.image, frame.ids


def test_ids_are_exact() -> None:
    image, ids = seen(scene(block(1, 0.25, 0.5, 0.25), block(2, 0.75, 0.5, 0.25, turn=at(np.pi / 4))))
    assert ids[36:60, 12:36].min() == 1 and (ids == 1).sum() == 24 * 24
    y, x = np.mgrid[:96, :96] + 0.5
    assert np.array_equal(ids == 2, np.abs(x - 72) + np.abs(y - 48) <= 12 * np.sqrt(2))
    assert np.all(image[38:58, 14:34] == (200, 30, 40))


def test_what_is_in_front_hides_and_the_camera_changes_no_id() -> None:
    layers = [block(1, 0.4, 0.5, 0.4, drift=0.1), block(0, 0.5, 0.5, 0.2), block(2, 0.55, 0.5, 0.1)]
    image, ids = seen(scene(*layers))
    assert ids[48, 52] == 2 and ids[48, 41] == 0 and ids[48, 25] == 1
    rough = CameraSettings(shutter=1.0, exposure=at(-0.3), softness=1.0, noise=4.0, quality=40)
    blurred, same = seen(scene(*[replace(n, shadow=(0.5, 0.2, 0.2)) for n in layers], camera=rough))
    assert np.array_equal(ids, same) and np.abs(blurred.astype(int) - image).mean() > 5
    edges = [np.abs(np.diff(i[48, :, 0].astype(int))).max() for i in (image, blurred)]
    assert edges[1] < 0.75 * edges[0], "motion blur"


def test_layers_hide_bend_and_turn_their_views() -> None:
    hidden = block(1, 0.5, 0.5, 0.3, hidden=((2.0, 4.0),))
    assert [bool(seen(scene(hidden), t)[1].any()) for t in range(5)] == [True, True, False, False, True]
    straight, (_, bent) = (
        seen(scene(block(1, 0.5, 0.5, 0.5)))[1],
        seen(scene(block(1, 0.5, 0.5, 0.5, deformation=hinge()))),
    )
    assert 0.5 < (straight & bent).sum() / (straight | bent).sum() < 0.97
    assert 0.7 < bent.sum() / straight.sum() < 1.3
    views = np.stack([np.full((40, 40, 4), 255 - 40 * k, np.uint8) for k in range(3)])
    turning = replace(block(1, 0.5, 0.5, 0.5), views=views, turning=1.0)
    assert [int(turning.view(t)[0, 0, 0]) for t in range(6)] == [255, 215, 175, 215, 255, 215]


def hinge() -> Deformation:
    return Deformation(hinge=at(0.7), joint=(0.1, 0.0, 0.0), bend=at(0.05), wave=(0.3, 3.0, 0.0))


def test_shots_change_the_ground_and_who_is_there() -> None:
    grounds = [
        Ground(pictures=[np.full((120, 120, 3), v, np.uint8)], x=STILL, y=STILL, turn=STILL, zoom=STILL)
        for v in (90, 10)
    ]
    shots = (
        Shot(start=0.0, ground=grounds[0]),
        Shot(start=2.0, ground=grounds[1], absent=frozenset([0])),
        Shot(start=4.0, ground=grounds[0], jump=(0.25, 0.0, 0.0)),
    )
    picture = scene(block(1, 0.25, 0.5, 0.25), shots=shots)
    before, away, after = (seen(picture, t) for t in (1, 3, 4))
    assert before[0][0, 0, 0] == after[0][0, 0, 0] == 90 and np.all(away[0] == 10) and not away[1].any()
    assert np.array_equal(np.roll(before[1], 24, 1), after[1])


# -- clips from processes ---------------------------------------------------------------------------------------------


class Numbered:
    """Clips whose pixels say which generator drew them."""

    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        value = int(rng.integers(256))
        shape = (spec.num_frames, spec.size, spec.size)
        return Clip(np.full((*shape, 3), value, np.uint8), np.full(shape, value // 2, np.uint8))


class Failing:
    def sample(self, rng: np.random.Generator, spec: ClipSpec) -> Clip:
        raise ValueError("expected a disc, got none")


def taken(stream: ClipStream, count: int) -> list[Clip]:
    clips: list[Clip] = []
    end = time.monotonic() + 60
    while len(clips) < count and time.monotonic() < end:
        clips += stream.take(count - len(clips))
        time.sleep(0.005)
    return clips


@pytest.mark.full
def test_streams_give_the_clips_of_their_seed() -> None:
    spec = ClipSpec(num_frames=2, max_gap=1, size=8)
    stream = ClipStream(Numbered(), spec, workers=2, seed=7, capacity=3)
    try:
        values = sorted(int(c.frames[0, 0, 0, 0]) for c in taken(stream, 8))
        drawn_at = [int(np.random.default_rng([7, n]).integers(256)) for n in range(16)]
        assert len(values) == 8 and not set(values) - set(drawn_at)
        (clip,) = taken(stream, 1)
        assert clip.ids.shape == (2, 8, 8) and np.all(clip.ids == clip.frames[..., 0] // 2)
    finally:
        stream.close()


@pytest.mark.full
def test_errors_of_workers_reach_the_caller() -> None:
    stream = ClipStream(Failing(), ClipSpec(num_frames=1, max_gap=1, size=8), workers=1)
    try:
        with pytest.raises(RuntimeError, match="expected a disc, got none"):
            taken(stream, 1)
    finally:
        stream.close()
    with pytest.raises(ValueError, match="at least one worker"):
        ClipStream(Numbered(), SPEC, workers=0)
