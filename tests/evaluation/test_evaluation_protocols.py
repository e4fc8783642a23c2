"""Which frames and objects count: the behaviour of the public evaluators, and slow readings of their rules."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from array_video import ArrayVideo
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2_mem.evaluation import protocols
from sam2_mem.evaluation.datasets import LAYOUTS, PROTOCOLS
from sam2_mem.evaluation.metrics import adaptive_similarity, boundary_f, jaccard, similarity
from sam2_mem.evaluation.protocols import (
    DAVIS2016,
    DAVIS2017,
    LVOS2023,
    SAV,
    VOST,
    LongVideosAFBURR,
    LVOSv2,
    MOSEv2,
    Protocol,
    VOSBenchmark,
    YouTubeVOS,
)
from sam2_mem.evaluation.results import ObjectScores
from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject

SHAPE = (48, 64)
Scores = dict[str, tuple[float, float]]

# -- videos to score ------------------------------------------------------------------------------------------------

BOXES = {1: np.s_[4:19, 10:25], 2: np.s_[28:40, 30:50], 7: np.s_[28:40, 30:50], 255: np.s_[4:19, 25:29]}


def video(length: int, shown: dict[int, Sequence[int]], shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Ids (T, H, W): each object in its own place on the frames named."""
    ids = np.zeros((length, *shape), np.uint8)
    for obj_id, frames in shown.items():
        for frame in frames:
            ids[frame][BOXES[obj_id]] = obj_id
    return ids


ALL = range(12)
LATE = range(5, 12)
FIRST = video(12, {1: ALL})


def scores(protocol: Protocol, truth: np.ndarray, pred: np.ndarray, *listed: ListedObject) -> Scores:
    """J and F of each object."""
    result = protocol.score(ArrayVideo("clip", truth, pred, listed))
    j, f = protocol.columns.index("J"), protocol.columns.index("F")
    return {one.obj_id: (round(one.values[j], 6), round(one.values[f], 6)) for one in result.objects}


ONE, ZERO = (1.0, 1.0), (0.0, 0.0)

# What davis2017-evaluation and vos-benchmark do with 12 frames; None where the former gives no score.
BEHAVIOUR: dict[str, tuple[np.ndarray, np.ndarray, Scores | None, Scores]] = {
    "present, absent, back, never predicted": (
        video(12, {1: ALL, 2: [0, *range(7, 12)]}),
        FIRST,
        {"1": ONE, "2": (0.6, 0.6)},
        {"1": ONE, "2": ZERO},
    ),
    "appears late, perfect": (video(12, {1: ALL, 2: LATE}), video(12, {1: ALL, 2: LATE}), None, {"1": ONE, "2": ONE}),
    "appears late, predicted too early": (
        video(12, {1: ALL, 2: LATE}),
        video(12, {1: ALL, 2: range(3, 12)}),
        None,
        {"1": ONE, "2": (0.75, 0.75)},
    ),
    "the lower id appears late, perfect": (
        video(12, {1: LATE, 2: ALL}),
        video(12, {1: LATE, 2: ALL}),
        {"1": ONE, "2": ONE},
        {"1": ONE, "2": ONE},
    ),
    "spurious id": (FIRST, video(12, {1: ALL, 2: ALL}), None, {"1": ONE}),
    "ids 1 and 7": (
        video(12, {1: ALL, 7: ALL}),
        video(12, {1: ALL, 7: ALL}),
        {str(i): ONE for i in range(1, 8)},
        {"1": ONE, "7": ONE},
    ),
    "only in the first frame": (video(12, {1: ALL, 2: [0]}), FIRST, {"1": ONE, "2": ONE}, {"1": ONE}),
    "truth 255, predicted 1": (video(12, {255: ALL}), np.uint8(video(12, {255: ALL}) > 0), None, {"255": ZERO}),
    "truth 255, predicted 255": (video(12, {255: ALL}), video(12, {255: ALL}), None, {"255": ONE}),
    "a void strip, predicted as the object": (
        video(12, {1: ALL, 255: ALL}),
        np.uint8(video(12, {1: ALL, 255: ALL}) > 0),
        {"1": (0.789474, 0.75)},
        {"1": (0.789474, 0.75), "255": ZERO},
    ),
    "sizes differ": (FIRST, video(12, {1: ALL}, (50, 64)), None, {}),
    "two frames": (FIRST[:2], FIRST[:2], None, {}),
}


@pytest.mark.parametrize("case", BEHAVIOUR)
def test_behaviour_of_davis(case: str) -> None:
    truth, pred, expected, _ = BEHAVIOUR[case]
    if expected is None:
        with pytest.raises(ValueError, match="expected "):
            scores(DAVIS2017(), truth, pred)
    else:
        assert scores(DAVIS2017(), truth, pred) == expected


@pytest.mark.parametrize("protocol", [VOSBenchmark(), SAV()], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("case", BEHAVIOUR)
def test_behaviour_of_vos_benchmark(case: str, protocol: Protocol) -> None:
    truth, pred, _, expected = BEHAVIOUR[case]
    if case == "sizes differ":
        with pytest.raises(ValueError, match="expected a prediction of 64 x 48 pixels on frame 00001, got 64 x 50"):
            scores(protocol, truth, pred)
    else:
        assert scores(protocol, truth, pred) == expected


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("spurious id", "expected object ids up to 1, .* got 2 in the prediction of frame 00001"),
        ("truth 255, predicted 255", "0 and 255, it is scored as davis2016"),
        ("sizes differ", "64 x 48 pixels on frame 00001, got 64 x 50"),
        ("two frames", "at least 3 annotated frames, .* got 2"),
    ],
)
def test_refusals_of_davis_say_why(case: str, message: str) -> None:
    truth, pred, _, _ = BEHAVIOUR[case]
    with pytest.raises(ValueError, match=message):
        scores(DAVIS2017(), truth, pred)


def test_vos_benchmark_notes_what_it_ignores() -> None:
    truth, pred, _, _ = BEHAVIOUR["spurious id"]
    assert VOSBenchmark().score(ArrayVideo("clip", truth, pred)).notes == (
        "predicted ids 2 are not in the ground truth: ignored",
    )
    assert VOSBenchmark().score(ArrayVideo("clip", truth[:2], pred[:2])).notes[0].startswith("no object")


# -- slow readings of the two conventions ---------------------------------------------------------------------------


def mean_scores(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    return np.mean([jaccard(*pair) for pair in pairs]), np.mean([boundary_f(*pair) for pair in pairs])


def literal_davis(truth: np.ndarray, pred: np.ndarray) -> Scores | None:
    truth = np.where(truth == 255, 0, truth)
    count = int(truth[0].max())
    if count == 0 or pred[1:-1].max() > count:
        return None
    found = {}
    for obj_id in range(1, count + 1):
        pairs = [(p == obj_id, t == obj_id) for t, p in zip(truth[1:-1], pred[1:-1])]
        found[str(obj_id)] = mean_scores(pairs)
    return found


def literal_vos_benchmark(truth: np.ndarray, pred: np.ndarray) -> Scores:
    found = {}
    for obj_id in sorted(set(truth[1:-1].flat) - {0}):
        pairs = [(p == obj_id, t == obj_id) for t, p in zip(truth[1:-1], pred[1:-1])]
        clock = next(index for index, (p, t) in enumerate(pairs) if p.any() or t.any())
        found[str(obj_id)] = mean_scores(pairs[clock:])
    return found


@st.composite
def id_videos(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction in which objects come and go."""
    length = draw(st.integers(3, 7))
    ids = np.array(draw(st.sampled_from([(0, 1), (0, 1, 2), (0, 1, 3), (0, 1, 255)])), np.uint8)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def one() -> np.ndarray:
        frames = np.kron(rng.choice(ids, (length, 2, 3)), np.ones((1, 3, 3), np.uint8))
        for obj_id in ids[1:]:
            gone = rng.random(length) < 0.4
            frames[gone] = np.where(frames[gone] == obj_id, 0, frames[gone])
        return frames

    return one(), one()


def matches(found: Scores, expected: Scores) -> bool:
    return found.keys() == expected.keys() and all(np.allclose(found[i], expected[i], atol=1e-6) for i in found)


@settings(deadline=None)
@given(id_videos())
def test_davis_is_its_definition(ids: tuple[np.ndarray, np.ndarray]) -> None:
    expected = literal_davis(*ids)
    if expected is None:
        with pytest.raises(ValueError, match="expected"):
            scores(DAVIS2017(), *ids)
    else:
        assert matches(scores(DAVIS2017(), *ids), expected)


@settings(deadline=None)
@given(id_videos())
def test_vos_benchmark_is_its_definition(ids: tuple[np.ndarray, np.ndarray]) -> None:
    assert matches(scores(VOSBenchmark(), *ids), literal_vos_benchmark(*ids))


def test_that_the_conventions_can_be_told_apart() -> None:
    truth, pred, _, _ = BEHAVIOUR["present, absent, back, never predicted"]
    assert not matches(scores(VOSBenchmark(), truth, pred), literal_davis(truth, pred))


# -- the other data sets --------------------------------------------------------------------------------------------


def test_davis_2016_takes_any_value_of_a_prediction() -> None:
    truth = np.uint8(FIRST * 255)
    for value in (1, 255):
        assert scores(DAVIS2016(), truth, FIRST * np.uint8(value)) == {"1": ONE}
    with pytest.raises(ValueError, match="scored as davis2017"):
        scores(DAVIS2016(), FIRST, FIRST)


def test_afb_urr_counts_the_last_frame_and_takes_255_for_1() -> None:
    pred = FIRST.copy()
    pred[[0, 11]] = 0
    assert scores(LongVideosAFBURR(), FIRST, pred * np.uint8(255))["1"] == (round(10 / 11, 6),) * 2
    assert scores(PROTOCOLS["longvideos"], FIRST, pred) == {"1": ONE}
    assert scores(LongVideosAFBURR(), FIRST[:2], FIRST[:2]) == {"1": ONE}
    with pytest.raises(ValueError, match="at least 2 annotated frames"):
        scores(LongVideosAFBURR(), FIRST[:1], FIRST[:1])


def listed(obj_id: int, frames: Sequence[int], length: int | None = None, group: str = "") -> ListedObject:
    names = tuple(f"{frame:05d}" for frame in frames)
    return ListedObject(obj_id=obj_id, frames=names, length=len(names) if length is None else length, group=group)


def test_youtube_vos_counts_listed_frames_after_the_prompt() -> None:
    truth = video(12, {1: ALL, 2: LATE})
    pred = truth.copy()
    pred[[0, 1, 5]] = 2  # the prompts of both, and a frame that is not listed
    pred[9][pred[9] == 2] = 0
    found = scores(YouTubeVOS(), truth, pred, listed(1, [0, 3, 6, 9]), listed(2, [5, 7, 9, 11]))
    assert found == {"1": ONE, "2": (round(2 / 3, 6),) * 2}


def test_youtube_vos_names_objects_without_a_second_frame() -> None:
    result = YouTubeVOS().score(ArrayVideo("clip", FIRST, FIRST, (listed(1, [0, 3]), listed(2, [4]))))
    assert [one.obj_id for one in result.objects] == ["1"] and result.notes[0].endswith("left out: 2")


def object_scores(protocol: Protocol, values: dict[str, float], group: str = "", name: str = "clip") -> ObjectScores:
    row = tuple(values.get(column, math.nan) for column in protocol.columns)
    return ObjectScores(video=name, obj_id="1", values=row, group=group, per_frame=np.zeros((0, 2)))


def figures(protocol: Protocol, objects: Sequence[ObjectScores]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in protocol.summary(objects)}


def test_g_of_youtube_vos() -> None:
    """Published rows of XMem and R50-DeAOT, with two seen objects that average to the first pair."""
    rows = [("seen", 0.746, 0.843), ("seen", 0.946, 0.943), ("unseen", 0.802, 0.887)]
    objects = [object_scores(YouTubeVOS(), {"J": j, "F": f}, group) for group, j, f in rows]
    found = figures(YouTubeVOS(), objects)
    assert found["G"] == pytest.approx(0.857, abs=5e-4) and found["J-seen"] == 0.846 and found["F-unseen"] == 0.887
    plain = figures(YouTubeVOS(), objects[:2])
    assert "G" not in plain and plain["J"] == 0.846


def test_means_are_over_objects_not_over_videos() -> None:
    objects = [object_scores(DAVIS2017(), {"J": j, "F": 1}, name=name) for name, j in (("a", 0), ("a", 0), ("b", 0.9))]
    assert figures(DAVIS2017(), objects)["J"] == 0.3
    assert figures(DAVIS2017(), objects)["J&F"] == 0.65


def test_lvos_leaves_out_the_first_and_the_last_frame_that_the_meta_file_counts() -> None:
    pred = FIRST.copy()
    pred[[2, 10]] = 0
    ends_included, end_left_out = listed(1, range(2, 11)), listed(1, range(2, 10), length=9)
    for one in (ends_included, end_left_out):
        assert scores(LVOSv2(), FIRST, pred, one) == {"1": ONE}
    assert scores(LVOSv2(), FIRST, pred, listed(1, range(1, 12))) == {"1": (round(7 / 9, 6),) * 2}
    with pytest.raises(ValueError, match="at least 3 annotated frames of object 1"):
        scores(LVOSv2(), FIRST, pred, listed(1, [3, 4]))


def test_lvos_until_2023_counts_the_prompt_and_a_frame_that_is_not_there() -> None:
    assert scores(LVOS2023(), FIRST, FIRST, listed(1, range(2, 10), length=9)) == {"1": (round(8 / 9, 6),) * 2}
    assert scores(LVOS2023(), FIRST, FIRST, listed(1, range(2, 11))) == {"1": ONE}


def test_lvos_means_over_classes() -> None:
    rows = [("seen", 0.8, 0.9, 0.1), ("seen", 0.6, 0.7, 0.3), ("unseen", 0.4, 0.6, 0.4)]
    objects = [object_scores(LVOSv2(), {"J": j, "F": f, "V": v}, group) for group, j, f, v in rows]
    found = figures(LVOSv2(), objects)
    assert (found["J&F"], found["J"], found["F"], found["V"]) == (0.625, 0.55, 0.7, 0.3)
    assert (found["J-seen"], found["V-unseen"]) == (0.7, 0.4)
    assert figures(LVOSv2(), objects[:2])["J-all"] == 0.7 and "J&F" not in figures(LVOSv2(), objects[:2])


def test_lvos_variability() -> None:
    pred = FIRST.copy()
    pred[5:9] = 0
    result = LVOSv2().score(ArrayVideo("clip", FIRST, pred, (listed(1, range(12)),)))
    share = 4 / 10
    expected = math.sqrt(round(share * (1 - share), 4))
    assert result.objects[0].values[LVOSv2().columns.index("V")] == pytest.approx(expected)


def test_meta_files_must_know_the_video() -> None:
    for protocol in (YouTubeVOS(), LVOSv2()):
        with pytest.raises(ValueError, match="expected the objects of this video in the data set's meta file"):
            scores(protocol, FIRST, FIRST)


def test_vost() -> None:
    truth = video(12, {1: ALL, 255: ALL})
    pred = np.uint8(truth > 0)
    pred[8:] = 0
    pred[3][BOXES[2]] = 9
    result = VOST().score(ArrayVideo("clip", truth, pred))
    j_tr, j = result.objects[0].values
    assert j == pytest.approx(0.7 * 15 / 19)  # frames 1 to 7 of 1 to 10
    assert j_tr == 0  # frames 8, 9, 10
    assert result.notes == ("predicted ids up to 9, there are 1 objects: the others are ignored",)
    assert VOST().score(ArrayVideo("clip", truth[:10], pred[:10])).objects[0].values[0] == pytest.approx(15 / 19 / 2)


def test_mosev2_on_disappearance_and_reappearance() -> None:
    truth = video(12, {1: [0, 1, 2, 6, 7, 10, 11]})  # gone on 3-5 and 8-9; back on 6-7 and 10
    pred = truth.copy()
    pred[4] = truth[0]  # invented
    pred[7] = 0  # missed
    one = MOSEv2().score(ArrayVideo("clip", truth, pred)).objects[0]
    found = dict(zip(MOSEv2().columns, one.values))
    area = 15 * 15
    invented_j, missed_j = 1 / (area + 1), 1 / (area + 1)
    assert found["J"] == pytest.approx((8 + invented_j + missed_j) / 10)
    assert found["F_dot"] == found["F"] == pytest.approx(0.8)
    assert found["J&F_dot"] == pytest.approx((found["J"] + 0.8) / 2) and found["J&F"] == found["J&F_dot"]
    assert found["J&F_dot-d"] == pytest.approx(((2 + invented_j / 2) / 3 + 1) / 2)
    assert found["J&F_dot-r"] == pytest.approx(((1 + missed_j / 2) / 2 + 1) / 2)


def test_mosev2_tolerance_of_an_image_of_few_pixels_is_one() -> None:
    small = np.zeros((12, 16), bool)
    small[4:9, 5:11] = True
    assert adaptive_similarity(small, small) == (1, 1, 1)
    assert adaptive_similarity(np.roll(small, 1, axis=1), small)[1:] == (1, 1)
    assert adaptive_similarity(np.roll(small, 2, axis=1), small).f < 1


def test_mosev2_does_not_count_an_absence_at_the_start() -> None:
    truth = video(12, {1: [0, 4, 5, 6, 7, 8, 9, 10, 11]})
    found = dict(zip(MOSEv2().columns, MOSEv2().score(ArrayVideo("clip", truth, truth)).objects[0].values))
    assert math.isnan(found["J&F_dot-d"]) and found["J&F_dot-r"] == 1
    whole = dict(zip(MOSEv2().columns, MOSEv2().score(ArrayVideo("clip", FIRST, FIRST)).objects[0].values))
    assert math.isnan(whole["J&F_dot-d"]) and math.isnan(whole["J&F_dot-r"]) and whole["J&F"] == 1


def test_mosev2_tolerance_follows_the_size_of_the_object() -> None:
    """On 480 x 640 the usual tolerance is 7 pixels, that of a box of 20 x 20 is 2."""
    truth = np.zeros((3, 480, 640), np.uint8)
    truth[:, 100:120, 100:120] = 1
    pred = np.roll(truth, 4, axis=2)
    found = dict(zip(MOSEv2().columns, MOSEv2().score(ArrayVideo("clip", truth, pred)).objects[0].values))
    assert found["F"] == 1 and found["F_dot"] == boundary_f(pred[1] > 0, truth[1] > 0, radius=2) < 0.8
    assert found["J"] == (320 + 1) / (480 + 1)


class Unpredicted(ArrayVideo):
    predicted = False

    def prediction(self, frame: str) -> np.ndarray:
        raise ValueError("no prediction")


def test_mosev2_gives_zero_where_nothing_is_predicted() -> None:
    result = MOSEv2().score(Unpredicted("clip", FIRST, FIRST, (ListedObject(obj_id=1), ListedObject(obj_id=3))))
    assert [one.obj_id for one in result.objects] == ["1", "3"] and result.notes == ("no prediction: scored 0",)
    assert result.objects[0].values[:3] == (0, 0, 0) and math.isnan(result.objects[0].values[3])
    with pytest.raises(ValueError, match="no prediction"):
        DAVIS2017().score(Unpredicted("clip", FIRST, FIRST))


# -- all protocols --------------------------------------------------------------------------------------------------


class CountingVideo(AnnotatedVideo):
    """Makes its masks as they are asked for and counts those that are alive."""

    name = "long"
    listed = (listed(1, range(300)),)
    frames = tuple(f"{index:05d}" for index in range(300))

    def __init__(self, value: int = 1) -> None:
        self.value, self.alive, self.most = value, 0, 0

    def truth(self, frame: str) -> np.ndarray:
        ids = np.zeros((12, 16), np.uint8)
        ids[3:8, 3 : 9 + int(frame) % 5] = self.value
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(ids, self._forget)
        return ids

    prediction = truth

    def _forget(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"vots"}))
def test_no_protocol_keeps_frames(name: str) -> None:
    long = CountingVideo(255 if name == "davis2016" else 1)
    PROTOCOLS[name].score(long)
    assert 2 <= long.most <= 6


def test_that_kept_frames_would_be_noticed() -> None:
    long = CountingVideo()
    kept = [long.truth(frame) for frame in long.frames]
    assert long.most == len(kept) == 300


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_has_a_name_a_layout_and_a_summary_of_nothing(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name and name in LAYOUTS and protocol.__doc__
    assert all(math.isnan(figure.value) for figure in protocol.summary(()))
    assert protocol == type(protocol)() and hash(protocol) == hash(type(protocol)())
    with pytest.raises(AttributeError):
        protocol.name = "mine"


def test_a_name_belongs_to_one_protocol() -> None:
    names = [protocol.name for protocol in protocols.MASK_PROTOCOLS]
    assert len(names) == len(set(names)) == len(PROTOCOLS) - 1


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"vots", "vost", "mosev2", "lvos-2023", "lvosv1", "lvosv2"}))
def test_agreement_where_no_case_is_special(name: str) -> None:
    """Every protocol of J and F gives the mean over its frames when one object is always visible."""
    pred = np.roll(FIRST, 2, axis=2)
    truth = np.uint8(FIRST * 255) if name == "davis2016" else FIRST
    found = scores(PROTOCOLS[name], truth, pred, listed(1, ALL))
    expected = similarity(pred[0] == 1, FIRST[0] == 1)
    assert found == {"1": (round(expected.j, 6), round(expected.f, 6))} != {"1": ONE}
