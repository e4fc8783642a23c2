"""How each data set is scored: which frames count, which objects, what the value 255 means, how means are taken.

Each protocol is a frozen object without settings, named after its data set. ``docs/evaluation.md`` compares them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, TypeVar

import cv2
import numpy as np

from sam2_mem.evaluation.metrics import (
    adaptive_similarity,
    jaccard,
    last_quarter_mean,
    mean,
    similarity,
    statistics,
    variability,
)
from sam2_mem.evaluation.results import Figure, ObjectScores, VideoScores
from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject

Measure = Callable[[np.ndarray, np.ndarray], tuple[float, ...]]
"""Numbers of one object on one frame, from its predicted and its true mask (H, W) bool."""
Source = TypeVar("Source")
"""What a protocol reads a video from."""


class Protocol(ABC, Generic[Source]):
    """Scores a video, and sums up the objects of all videos.

    Attributes:
        name: what the command line calls it.
        columns: names of the numbers of an object.
        frame_columns: names of the numbers of an object on one frame.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    frame_columns: ClassVar[tuple[str, ...]]

    @abstractmethod
    def score(self, video: Source) -> VideoScores:
        """Stream through a video. ValueError if this protocol has no score for it, with the reason."""

    def summary(self, objects: Sequence[ObjectScores]) -> tuple[Figure, ...]:
        """The numbers of the data set, the one that papers report first; by default the means over all objects."""
        return tuple(Figure(name, mean(self.column(objects, name))) for name in self.columns)

    def truth_ids(self, ids: np.ndarray) -> np.ndarray:
        """Ids of a ground truth (H, W) as they are scored, (H, W)."""
        return ids

    def pred_ids(self, ids: np.ndarray) -> np.ndarray:
        """The same of a prediction."""
        return ids

    def column(self, objects: Iterable[ObjectScores], name: str) -> list[float]:
        """One number of each object."""
        index = self.columns.index(name)
        return [scores.values[index] for scores in objects]


@dataclass
class Curve:
    """The numbers of one object, frame after frame."""

    frames: list[str] = field(default_factory=list)
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, frame: str, row: tuple[float, ...]) -> None:
        self.frames.append(frame)
        self.rows.append(row)

    def columns(self) -> np.ndarray:
        """(K, T) for at least one frame."""
        return np.array(self.rows, np.float64).T

    def scores(self, video: AnnotatedVideo, obj_id: int, values: tuple[float, ...], group: str = "") -> ObjectScores:
        return ObjectScores(
            video=video.name,
            obj_id=str(obj_id),
            values=values,
            group=group,
            frames=tuple(self.frames),
            per_frame=self.columns().T,
        )


class FramePair(NamedTuple):
    """Object ids (H, W) of one annotated frame."""

    frame: str
    truth: np.ndarray
    pred: np.ndarray


def frame_pairs(video: AnnotatedVideo, frames: Iterable[str]) -> Iterator[FramePair]:
    """Truth and prediction of each frame; ValueError where their sizes differ."""
    for frame in frames:
        truth, pred = video.truth(frame), video.prediction(frame)
        if truth.shape != pred.shape:
            raise ValueError(
                f"expected a prediction of {_size(truth)} pixels on frame {frame}, got {_size(pred)}; "
                "write predictions at the size of the annotation"
            )
        yield FramePair(frame, truth, pred)


def _size(ids: np.ndarray) -> str:
    return f"{ids.shape[1]} x {ids.shape[0]}"


def without_ends(frames: Sequence[str]) -> Sequence[str]:
    """All but the first and the last; ValueError if none is left."""
    if len(frames) < 3:
        raise ValueError(
            f"expected at least 3 annotated frames, because the first and the last do not count, got {len(frames)}"
        )
    return frames[1:-1]


def _cleared(ids: np.ndarray, value: int) -> np.ndarray:
    """The ids with one value turned into background."""
    return np.where(ids == value, 0, ids)


# -- J and F over objects -------------------------------------------------------------------------------------------


class RegionAndBoundary(Protocol[AnnotatedVideo]):
    """J and F of each object with their DAVIS statistics; means over all objects of all videos."""

    columns: ClassVar[tuple[str, ...]] = ("J&F", "J", "J-recall", "J-decay", "F", "F-recall", "F-decay")
    frame_columns: ClassVar[tuple[str, ...]] = ("J", "F")

    def summary(self, objects: Sequence[ObjectScores]) -> tuple[Figure, ...]:
        figures = super().summary(objects)
        j, f = figures[self.columns.index("J")].value, figures[self.columns.index("F")].value
        return (Figure("J&F", (j + f) / 2), *figures[1:])

    def _object(self, video: AnnotatedVideo, obj_id: int, curve: Curve, group: str = "") -> ObjectScores:
        j, f = (statistics(values) for values in curve.columns())
        return curve.scores(video, obj_id, ((j.mean + f.mean) / 2, *j, *f), group)


@dataclass(frozen=True)
class DAVIS2017(RegionAndBoundary):
    """davis2017-evaluation, semi-supervised.

    Frames: all annotated ones but the first and the last. Objects: 1 to the greatest id of the first annotated frame,
    also those in between that do not occur; a frame on which neither mask has the object gives 1.
    255 in the ground truth is background, and predicting something there is wrong. Any greater id in a prediction is
    an error: it is refused.
    """

    name = "davis2017"

    def score(self, video: AnnotatedVideo) -> VideoScores:
        frames = self.evaluated(video.frames)
        count = _first_ids(self.truth_ids(video.truth(video.frames[0])))
        curves = {obj_id: Curve() for obj_id in range(1, count + 1)}
        for frame, truth, pred in frame_pairs(video, frames):
            truth, pred = self.truth_ids(truth), self.pred_ids(pred)
            self.check(pred, count, frame)
            for obj_id, curve in curves.items():
                curve.add(frame, similarity(pred == obj_id, truth == obj_id))
        return VideoScores(objects=tuple(self._object(video, obj_id, curve) for obj_id, curve in curves.items()))

    def evaluated(self, frames: Sequence[str]) -> Sequence[str]:
        return without_ends(frames)

    def truth_ids(self, ids: np.ndarray) -> np.ndarray:
        """(H, W) to (H, W)."""
        return _cleared(ids, 255)

    def pred_ids(self, ids: np.ndarray) -> np.ndarray:
        """(H, W) to (H, W)."""
        return ids

    def check(self, pred: np.ndarray, count: int, frame: str) -> None:
        """Of what a prediction may hold."""
        if pred.max() > count:
            raise ValueError(
                f"expected object ids up to {count}, the greatest of the first annotated frame, got "
                f"{pred.max()} in the prediction of frame {frame}"
            )


def _first_ids(ids: np.ndarray) -> int:
    """The greatest id of the first annotated frame."""
    count = int(ids.max())
    if count == 0:
        raise ValueError(
            "expected objects 1 to N in the first annotated frame, got none; if its values are 0 and 255, "
            "it is scored as davis2016; if objects appear later, as vos or by the data set's meta file"
        )
    return count


@dataclass(frozen=True)
class DAVIS2016(DAVIS2017):
    """One object. Ground truth: values above 127. Prediction: any value but 0, so 1 and 255 both do.

    Frames: all annotated ones but the first and the last.
    """

    name = "davis2016"

    def score(self, video: AnnotatedVideo) -> VideoScores:
        if video.frames and not (video.truth(video.frames[0]) > 127).any():
            raise ValueError(
                "expected 0 and 255 in the first annotated frame, got no value above 127; "
                "annotations with object ids are scored as davis2017"
            )
        return super().score(video)

    def truth_ids(self, ids: np.ndarray) -> np.ndarray:
        return (ids > 127).astype(np.uint8)

    def pred_ids(self, ids: np.ndarray) -> np.ndarray:
        return (ids > 0).astype(np.uint8)


@dataclass(frozen=True)
class LongVideos(DAVIS2017):
    """The DAVIS 2017 rules on the annotated frames, as XMem does; the tables of XMem, RMem and HQ-SMem hold these."""

    name = "longvideos"


@dataclass(frozen=True)
class LongVideosAFBURR(DAVIS2017):
    """The scorer of AFB-URR, who published the data set: only the first annotated frame is left out.

    255 is object 1, in both. Ids beyond those of the first annotated frame are ignored.
    """

    name = "longvideos-afburr"

    def evaluated(self, frames: Sequence[str]) -> Sequence[str]:
        if len(frames) < 2:
            raise ValueError(
                f"expected at least 2 annotated frames, because the first does not count, got {len(frames)}"
            )
        return frames[1:]

    def truth_ids(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids == 255, 1, ids)

    def pred_ids(self, ids: np.ndarray) -> np.ndarray:
        return np.where(ids == 255, 1, ids)

    def check(self, pred: np.ndarray, count: int, frame: str) -> None:
        pass


@dataclass(frozen=True)
class VOSBenchmark(RegionAndBoundary):
    """vos-benchmark, which sav_evaluator shares.

    Frames: all annotated ones but the first and the last. An object's clock starts on the first of these that shows it
    in the ground truth or in the prediction: before, frames without it count for nothing; after, they give 1 (or 0).
    Objects: those that the ground truth of these frames shows. 255 is an id like any other.
    A video of fewer than 3 frames has no objects.
    """

    name = "vos"

    def score(self, video: AnnotatedVideo) -> VideoScores:
        curves: dict[int, Curve] = {}
        truth_ids: set[int] = set()
        for frame, truth, pred in frame_pairs(video, video.frames[1:-1]):
            truth_ids |= _objects(truth)
            for obj_id in sorted(_objects(truth) | _objects(pred) | curves.keys()):
                curves.setdefault(obj_id, Curve()).add(frame, similarity(pred == obj_id, truth == obj_id))
        objects = tuple(self._object(video, obj_id, curves[obj_id]) for obj_id in sorted(truth_ids))
        return VideoScores(objects=objects, notes=_unknown_ids_note(truth_ids, curves.keys()))


def _objects(ids: np.ndarray) -> set[int]:
    """The ids (H, W) without 0. A histogram is faster than np.unique where ids have 8 bits."""
    if ids.dtype == np.uint8:
        counts = cv2.calcHist([ids], [0], None, [256], [0, 256])
        return set(np.flatnonzero(counts).tolist()) - {0}
    return set(np.unique(ids).tolist()) - {0}


def _unknown_ids_note(truth_ids: set[int], scored_ids: Iterable[int]) -> tuple[str, ...]:
    if not truth_ids:
        return ("no object in the frames that count: nothing to score",)
    extra = sorted(set(scored_ids) - truth_ids)
    return (f"predicted ids {', '.join(map(str, extra))} are not in the ground truth: ignored",) if extra else ()


@dataclass(frozen=True)
class MOSEv1(VOSBenchmark):
    """The rules of vos-benchmark. The public scorer is a server, whose choice of frames is not published."""

    name = "mosev1"


@dataclass(frozen=True)
class SAV(VOSBenchmark):
    """sav_evaluator: every object has PNGs of its own, may overlap others, and is scored by the rules of vos-benchmark.

    Frames: those annotated for the object, without the first and the last. An object that none of these shows has no
    score, and is named in a note.
    """

    name = "sav"

    def score(self, video: AnnotatedVideo) -> VideoScores:
        objects: list[ObjectScores] = []
        notes: list[str] = []
        for part in video.parts():
            scores = super().score(part.video)
            label = "" if part.obj_id is None else f"object {part.obj_id:03d}: "
            notes += [label + note for note in scores.notes]
            objects += [_renamed(object_scores, video.name, part.obj_id) for object_scores in scores.objects]
        return VideoScores(objects=tuple(objects), notes=tuple(notes))


def _renamed(scores: ObjectScores, video: str, obj_id: int | None) -> ObjectScores:
    name = scores.obj_id if obj_id is None else f"{obj_id:03d}"
    return ObjectScores(
        video=video, obj_id=name, values=scores.values, frames=scores.frames, per_frame=scores.per_frame
    )


# -- objects with frames of their own -------------------------------------------------------------------------------


def _listed(video: AnnotatedVideo) -> Sequence[ListedObject]:
    if not video.listed:
        raise ValueError(
            "expected the objects of this video in the data set's meta file, got none; is it the meta "
            "file of another split?"
        )
    return video.listed


def _curves(
    video: AnnotatedVideo, frames_by_object: Mapping[int, Sequence[str]], measure: Measure = similarity
) -> dict[int, Curve]:
    """The numbers of each object on its own frames; each frame is read once."""
    curves = {obj_id: Curve() for obj_id in frames_by_object}
    on_frame: dict[str, list[int]] = {}
    for obj_id, frames in frames_by_object.items():
        for frame in frames:
            on_frame.setdefault(frame, []).append(obj_id)
    for frame, truth, pred in frame_pairs(video, sorted(on_frame)):
        for obj_id in on_frame[frame]:
            curves[obj_id].add(frame, measure(pred == obj_id, truth == obj_id))
    return curves


def _with_visibility(measure: Measure) -> Measure:
    """The same numbers, and whether the truth shows the object."""
    return lambda pred, truth: (*measure(pred, truth), float(truth.any()))


def _with_presence(measure: Measure) -> Measure:
    """The same numbers, whether the truth shows the object, and whether the prediction does."""
    return lambda pred, truth: (*measure(pred, truth), float(truth.any()), float(pred.any()))


def _groups(objects: Sequence[ObjectScores]) -> tuple[list[ObjectScores], ...] | None:
    """Objects of classes seen and unseen in training; None unless both are known."""
    groups = tuple([scores for scores in objects if scores.group == name] for name in ("seen", "unseen"))
    return groups if all(groups) and sum(map(len, groups)) == len(objects) else None


@dataclass(frozen=True)
class YouTubeVOS(RegionAndBoundary):
    """G: the mean of J and F over objects of seen and of unseen categories.

    Frames: those listed in the meta file for the object, without its first, which is its prompt. What happens on other
    frames does not count. 255 has no meaning of its own. The data set's own scorer is a server; whether it leaves the
    prompt out is not published. Without categories, the summary is over all objects and has no G.
    """

    name = "youtubevos"

    def score(self, video: AnnotatedVideo) -> VideoScores:
        curves = _curves(video, {listed.obj_id: listed.frames[1:] for listed in _listed(video)})
        scored = [listed for listed in video.listed if curves[listed.obj_id].frames]
        left_out = [str(listed.obj_id) for listed in video.listed if listed not in scored]
        notes = (f"annotated on the prompt frame only, left out: {', '.join(left_out)}",) if left_out else ()
        objects = tuple(self._object(video, item.obj_id, curves[item.obj_id], item.group) for item in scored)
        return VideoScores(objects=objects, notes=notes)

    def summary(self, objects: Sequence[ObjectScores]) -> tuple[Figure, ...]:
        groups = _groups(objects)
        if groups is None:
            return super().summary(objects)
        names = ("J-seen", "F-seen", "J-unseen", "F-unseen")
        values = [mean(self.column(group, measure)) for group in groups for measure in ("J", "F")]
        return (Figure("G", float(np.mean(values))), *map(Figure, names, values))


class LVOS(Protocol[AnnotatedVideo]):
    """lvos-evaluation since May 2024.

    Objects and frames: the meta file gives each object a range of every fifth frame, of which the first and the last do
    not count. 255 has no meaning of its own. J&F is the mean of four means, J and F over the objects of seen and of
    unseen videos; J, F and V are means of two. Without the list of unseen videos there are only J&F-all, J-all and so
    on, the means over all objects, which are not the numbers of the benchmark.
    """

    columns = ("J&F", "J", "F", "V")
    frame_columns = ("J", "F")

    def score(self, video: AnnotatedVideo) -> VideoScores:
        curves = _curves(video, {listed.obj_id: self.evaluated(listed) for listed in _listed(video)})
        objects = tuple(self._object(video, listed, curves[listed.obj_id]) for listed in video.listed)
        return VideoScores(objects=objects)

    def evaluated(self, listed: ListedObject) -> Sequence[str]:
        frames = listed.frames[1 : listed.length - 1]
        if not frames:
            raise ValueError(
                f"expected at least 3 annotated frames of object {listed.obj_id}, because the first and "
                f"the last do not count, got {listed.length}"
            )
        return frames

    def summary(self, objects: Sequence[ObjectScores]) -> tuple[Figure, ...]:
        groups = _groups(objects)
        if groups is None:
            return tuple(Figure(f"{name}-all", mean(self.column(objects, name))) for name in self.columns)
        group_means = [[mean(self.column(group, name)) for name in ("J", "F", "V")] for group in groups]
        j, f, v = np.mean(group_means, axis=0).tolist()
        names = [f"{name}-{group}" for group in ("seen", "unseen") for name in ("J", "F", "V")]
        overall = (Figure("J&F", (j + f) / 2), Figure("J", j), Figure("F", f), Figure("V", v))
        return (*overall, *map(Figure, names, (value for values in group_means for value in values)))

    def _object(self, video: AnnotatedVideo, listed: ListedObject, curve: Curve) -> ObjectScores:
        j, f = curve.columns()
        values = (float(j.mean() + f.mean()) / 2, float(j.mean()), float(f.mean()), variability(j, f))
        return curve.scores(video, listed.obj_id, values, listed.group)


@dataclass(frozen=True)
class LVOSv1(LVOS):
    """LVOS v1 by the rules of ``LVOS``. Numbers published until 2023 may follow ``LVOS2023``."""

    name = "lvosv1"


@dataclass(frozen=True)
class LVOSv2(LVOS):
    """LVOS v2 by the rules of ``LVOS``."""

    name = "lvosv2"


@dataclass(frozen=True)
class LVOS2023(LVOS):
    """lvos-evaluation until October 2023: no frame is left out, so the prompt counts; a frame that the meta file counts
    but whose range does not hold gives 0."""

    name = "lvos-2023"

    def evaluated(self, listed: ListedObject) -> Sequence[str]:
        if not listed.frames or len(listed.frames) > listed.length:
            raise ValueError(
                f"expected 1 to {listed.length} frames of object {listed.obj_id}, got {len(listed.frames)}"
            )
        return listed.frames

    def _object(self, video: AnnotatedVideo, listed: ListedObject, curve: Curve) -> ObjectScores:
        for _ in range(listed.length - len(curve.frames)):
            curve.add("", (0.0, 0.0))
        return super()._object(video, listed, curve)


# -- others ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VOST(Protocol[AnnotatedVideo]):
    """J, and J_tr over the last quarter of the frames; no F.

    Frames: all annotated ones but the first and the last. Objects: 1 to the greatest id of the first annotated frame;
    greater ids in a prediction are dropped, with a note. 255 in the ground truth is background, and predicting
    something there is wrong, as in the published code.
    """

    name = "vost"
    columns = ("J_tr", "J")
    frame_columns = ("J",)

    def score(self, video: AnnotatedVideo) -> VideoScores:
        frames = without_ends(video.frames)
        count = _first_ids(_cleared(video.truth(video.frames[0]), 255))
        curves = {obj_id: Curve() for obj_id in range(1, count + 1)}
        greatest = 0
        for frame, truth, pred in frame_pairs(video, frames):
            greatest = max(greatest, int(pred.max()))
            truth = _cleared(truth, 255)
            for obj_id, curve in curves.items():
                curve.add(frame, (jaccard(pred == obj_id, truth == obj_id),))
        notes = (f"predicted ids up to {greatest}, there are {count} objects: the others are ignored",)
        objects = tuple(self._object(video, obj_id, curve) for obj_id, curve in curves.items())
        return VideoScores(objects=objects, notes=notes if greatest > count else ())

    def _object(self, video: AnnotatedVideo, obj_id: int, curve: Curve) -> ObjectScores:
        (j,) = curve.columns()
        return curve.scores(video, obj_id, (last_quarter_mean(j), float(j.mean())))


@dataclass(frozen=True)
class MOSEv2(Protocol[AnnotatedVideo]):
    """The scorer of MOSEv2: J with one pixel added above and below, F-dot with a tolerance that follows the object's
    size, and the same on disappearances (d) and reappearances (r).

    Frames: all annotated ones but the first and the last. Objects: those of the meta file; without one, those of the
    first annotated frame. A frame on which neither mask has the object gives 1. 255 has no meaning of its own. A video
    without any prediction gives 0 and takes no part in d and r.
    """

    name = "mosev2"
    columns = ("J&F_dot", "J", "F_dot", "J&F_dot-d", "J&F_dot-r", "F", "J&F")
    frame_columns = ("J", "F_dot", "F", "visible")

    def score(self, video: AnnotatedVideo) -> VideoScores:
        frames = without_ends(video.frames)
        obj_ids = [listed.obj_id for listed in video.listed] or sorted(_objects(video.truth(video.frames[0])))
        if not obj_ids:
            raise ValueError("expected objects in the first annotated frame or in the meta file, got none")
        if not video.predicted:
            return self._nothing(video, obj_ids)
        curves = _curves(video, dict.fromkeys(obj_ids, frames), _with_visibility(adaptive_similarity))
        return VideoScores(objects=tuple(self._object(video, obj_id, curve) for obj_id, curve in curves.items()))

    def _nothing(self, video: AnnotatedVideo, obj_ids: Sequence[int]) -> VideoScores:
        values = (0.0, 0.0, 0.0, np.nan, np.nan, 0.0, 0.0)
        empty = np.zeros((0, len(self.frame_columns)))
        objects = (ObjectScores(video=video.name, obj_id=str(i), values=values, per_frame=empty) for i in obj_ids)
        return VideoScores(objects=tuple(objects), notes=("no prediction: scored 0",))

    def _object(self, video: AnnotatedVideo, obj_id: int, curve: Curve) -> ObjectScores:
        rows = curve.columns()
        j, f_dot, _, visible = rows
        j_and_f, runs = (j + f_dot) / 2, (absences(visible > 0), returns(visible > 0))
        d, r = (mean([float(j_and_f[run].mean()) for run in group]) for group in runs)
        mean_j, mean_f_dot, mean_f = rows[:3].mean(axis=1).tolist()
        values = ((mean_j + mean_f_dot) / 2, mean_j, mean_f_dot, d, r, mean_f, (mean_j + mean_f) / 2)
        return curve.scores(video, obj_id, values)


def absences(visible: np.ndarray) -> list[slice]:
    """Runs of frames (T,) on which an object that was seen before is not visible."""
    return [run for run in _runs(~visible) if run.start > 0]


def returns(visible: np.ndarray) -> list[slice]:
    """Runs of frames (T,) on which an object is visible that was not visible before."""
    return [run for run in _runs(visible) if run.start > 0]


def _runs(flags: np.ndarray) -> list[slice]:
    """The maximal runs of True in (T,) bool."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return [slice(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2])]


LONG_ABSENCE, RETURN = 20, slice(5, 15)
"""Frames of a long absence, and those after it on which its end is judged: the object has entered the frame by then."""
ELSEWHERE = 0.1
"""J below which a mask is not on the object."""


@dataclass(frozen=True)
class Synthetic(RegionAndBoundary):
    """The procedural sets of ``sam2_mem.evaluation.synthetic``, on the fly or exported.

    Frames: all from the object's prompt on, without that one; the last counts. Objects: those of the clip (exported: of
    the meta file). A frame on which neither mask has the object gives 1. J-visible is the mean of J over frames that
    show the object, J-absent over those that do not: the share on which its absence was noticed. J-return: the mean of J
    over frames 5 to 14 after an absence of 20 frames and more; recovered: the share of those returns with a mean above
    one half. Elsewhere: the share of the frames that show the object on which the mask is on something else, which is a
    mask with pixels and a J below .1. Each NaN where there is nothing to count.
    """

    name = "synthetic"
    columns = (*RegionAndBoundary.columns, "J-visible", "J-absent", "J-return", "recovered", "elsewhere")
    frame_columns = ("J", "F", "visible", "predicted")

    def score(self, video: AnnotatedVideo) -> VideoScores:
        starts = {listed.obj_id: listed.frames[0] for listed in _listed(video)}
        frames = {obj_id: [frame for frame in video.frames if frame > start] for obj_id, start in starts.items()}
        curves = _curves(video, frames, _with_presence(similarity))
        return VideoScores(objects=tuple(self._object(video, k, curve) for k, curve in curves.items() if curve.frames))

    def _object(self, video: AnnotatedVideo, obj_id: int, curve: Curve, group: str = "") -> ObjectScores:
        j, f, visible, predicted = curve.columns()
        of_j, of_f = statistics(j), statistics(f)
        by_visibility = tuple(mean(list(j[visible == flag])) for flag in (1, 0))
        after = returns_after_long_absence(j, visible > 0)
        recovered = mean([float(value > 0.5) for value in after])
        elsewhere = mean(((predicted > 0) & (j < ELSEWHERE))[visible > 0].astype(float))
        more = (*by_visibility, mean(after), recovered, elsewhere)
        return curve.scores(video, obj_id, ((of_j.mean + of_f.mean) / 2, *of_j, *of_f, *more), group)


def returns_after_long_absence(j: np.ndarray, visible: np.ndarray) -> list[float]:
    """The mean of J (T,) over the frames of ``RETURN`` that show the object, after each absence of at least ``LONG_ABSENCE``
    frames; returns that show it on fewer than half of them are left out."""
    values = []
    for run in absences(visible):
        part = slice(run.stop + RETURN.start, run.stop + RETURN.stop)
        shown = j[part][visible[part]]
        if run.stop - run.start >= LONG_ABSENCE and 2 * len(shown) >= RETURN.stop - RETURN.start:
            values.append(float(shown.mean()))
    return values


MASK_PROTOCOLS: tuple[Protocol[AnnotatedVideo], ...] = (
    DAVIS2016(),
    DAVIS2017(),
    YouTubeVOS(),
    MOSEv1(),
    MOSEv2(),
    LVOSv1(),
    LVOSv2(),
    LVOS2023(),
    SAV(),
    VOST(),
    LongVideos(),
    LongVideosAFBURR(),
    VOSBenchmark(),
    Synthetic(),
)
