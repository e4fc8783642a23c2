"""Track a video with a listener, and keep what is needed to show it: small pictures, masks, one record per frame and one
line per entry. Plain values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

from sam2_mem.memory.trace import Action, EntryTrace, ReadTrace, TraceEvent, TraceRecord
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import PromptPlan, segment
from sam2_mem.types import ObjectScore


class Recorder:
    """A listener that keeps every record it gets; give it to ``predictor.listen``."""

    def __init__(self, *, read_mass: bool = False) -> None:
        self.read_mass = read_mass
        self.records: list[TraceRecord] = []

    def on_change(self, record: TraceRecord) -> None:
        self.records.append(record)

    def of(self, obj_id: int) -> list[TraceRecord]:
        """The records of one object."""
        return [record for record in self.records if record.obj_id == obj_id]

    def by_frame(self) -> dict[int, dict[int, FrameRecord]]:
        """By frame and object what memory did there; of several visits to a frame the last one. ``as_json`` and ``from_json``
        take each to a file and back."""
        frames: dict[int, dict[int, FrameRecord]] = {}
        for obj_id in dict.fromkeys(record.obj_id for record in self.records):
            for record in frame_records(self.of(obj_id)):
                frames.setdefault(record.frame, {})[obj_id] = record
        return dict(sorted(frames.items()))


@dataclass(frozen=True)
class FrameRecord:
    """One object on one tracked frame: what was read, what happened, the ``entries`` held after it. ``score`` None before
    it is known."""

    frame: int
    readings: tuple[ReadTrace, ...]
    pointers: int
    pathways: int
    events: tuple[TraceEvent, ...]
    entries: tuple[EntryTrace, ...]
    tokens: int
    bytes: int
    score: ObjectScore | None = None


@dataclass(frozen=True)
class ObjectRecord:
    """One object under one policy: ``frames`` in the order of tracking."""

    policy: str
    obj_id: int
    frames: tuple[FrameRecord, ...]

    def at(self, frame: int) -> FrameRecord:
        """The latest record of a frame. ValueError where the object was not tracked on it."""
        for record in reversed(self.frames):
            if record.frame == frame:
                return record
        frames = [record.frame for record in self.frames]
        raise ValueError(
            f"expected a frame on which object {self.obj_id} was tracked ({min(frames)} to {max(frames)}), got {frame}"
        )


@dataclass(frozen=True, eq=False)
class RecordedVideo:
    """A video under one policy. ``pictures`` by frame, (h, w, 3) uint8; ``masks`` by object and frame, (h, w) bool, of
    the same size; ``objects``: what memory did, by object id."""

    policy: str
    pictures: dict[int, np.ndarray]
    masks: dict[int, dict[int, np.ndarray]]
    objects: dict[int, ObjectRecord]


def record_video(
    predictor: SAM2VideoPredictor,
    video: Any,
    plan: PromptPlan,
    *,
    name: str,
    width: int = 256,
    stop: int | None = None,
    read_mass: bool = True,
) -> RecordedVideo:
    """Track a video forwards.

    Args:
        predictor: with the policy.
        video: as for ``init_state``.
        plan: the prompts, see ``sam2_mem.tracking.vos``.
        name: what the policy is called.
        width: of the pictures kept.
        stop: first frame left out.
        read_mass: also measure how much attention every entry receives.
    """
    state, recorder = predictor.init_state(video, interactive=False), Recorder(read_mass=read_mass)
    predictor.listen(state, recorder)
    pictures: dict[int, np.ndarray] = {}
    masks: dict[int, dict[int, np.ndarray]] = {i: {} for i in plan.obj_ids}
    scores: dict[tuple[int, int], ObjectScore] = {}
    for output in segment(predictor, state, plan, stop=stop, allow_empty=True):
        index = output.frame.index
        pictures[index] = small_picture(output.frame.image, width)
        for obj_id, mask in output.masks.items():
            masks[obj_id][index] = small_mask(mask, pictures[index].shape[:2])
        if index in state.recent_scores:
            scores |= {(score.obj_id, index): score for score in predictor.scores(state, index)}
    objects = {}
    for obj_id in plan.obj_ids:
        frames = frame_records(recorder.of(obj_id))
        frames = [replace(record, score=scores.get((obj_id, record.frame))) for record in frames]
        objects[obj_id] = ObjectRecord(name, obj_id, tuple(frames))
    return RecordedVideo(name, pictures, masks, objects)


def small_picture(image: np.ndarray, width: int) -> np.ndarray:
    """(H, W, 3) uint8 at a width of at most ``width``."""
    if image.shape[1] <= width:
        return np.array(image)
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)


def small_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool at ``size`` (h, w)."""
    return cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST).astype(bool)


def frame_records(records: Iterable[TraceRecord]) -> list[FrameRecord]:
    """The records of one object, those of one visit to a frame joined."""
    frames: list[FrameRecord] = []
    for record in records:
        if not frames or frames[-1].frame != record.frame:
            frames.append(FrameRecord(record.frame, (), 0, 0, (), (), 0, 0))
        frames[-1] = replace(
            frames[-1],
            readings=frames[-1].readings + record.readings,
            pointers=frames[-1].pointers + record.pointers,
            pathways=max(frames[-1].pathways, record.pathways),
            events=frames[-1].events + record.events,
            entries=record.held,
            tokens=record.tokens,
            bytes=record.bytes,
        )
    return frames


def as_json(record: FrameRecord) -> dict[str, Any]:
    """A record as plain values that JSON has: enums by their value, tuples as lists."""
    values = asdict(record)
    for event in values["events"]:
        event["action"] = event["action"].value
    return values


def from_json(values: Mapping[str, Any]) -> FrameRecord:
    """The record that ``as_json`` has written."""
    events = [TraceEvent(**{**event, "action": Action(event["action"])}) for event in values["events"]]
    entries = [EntryTrace(**{**entry, "pathways": tuple(entry["pathways"])}) for entry in values["entries"]]
    readings = tuple(ReadTrace(**reading) for reading in values["readings"])
    score = values["score"] and ObjectScore(
        **{**values["score"], "held": tuple(values["score"]["held"]), "dropped": tuple(values["score"]["dropped"])}
    )
    lists = {"readings": readings, "events": tuple(events), "entries": tuple(entries), "score": score}
    return FrameRecord(**{**values, **lists})


# -- lines of a timeline ----------------------------------------------------------------------------------------------


def entry_name(frame: int | None, kind: str) -> int | str:
    """What a line of the timeline is called: its frame, or its kind where it is of no one frame."""
    return kind if frame is None else frame


@dataclass(frozen=True)
class TimelineSegment:
    """A stretch over which an entry was held as one kind: positions ``start`` to ``stop`` (excluded) in the frames."""

    start: int
    stop: int
    kind: str


@dataclass(frozen=True)
class EntryLine:
    """One entry through time: when it was held, as what; ``masses`` by position: its share of attention, where read."""

    name: int | str
    segments: tuple[TimelineSegment, ...]
    masses: dict[int, float | None]


def entry_lines(frames: Sequence[FrameRecord]) -> list[EntryLine]:
    """A line for everything that was ever held: frames in order, then what is of no one frame."""
    kinds: dict[int | str, dict[int, str]] = {}
    masses: dict[int | str, dict[int, float | None]] = {}
    for position, record in enumerate(frames):
        for name, kind in _kinds(record).items():
            kinds.setdefault(name, {})[position] = kind
        for name, mass in _masses(record).items():
            masses.setdefault(name, {})[position] = mass
    names = sorted(kinds.keys() | masses.keys(), key=lambda n: (isinstance(n, str), n))
    return [EntryLine(n, tuple(_segments(kinds.get(n, {}))), masses.get(n, {})) for n in names]


def _kinds(record: FrameRecord) -> dict[int | str, str]:
    """Kind by entry; of several versions of a frame that of the one with most tokens."""
    entries: dict[int | str, EntryTrace] = {}
    for entry in record.entries:
        name = entry_name(entry.frame, entry.kind)
        if name not in entries or entry.tokens > entries[name].tokens:
            entries[name] = entry
    return {name: entry.kind for name, entry in entries.items()}


def _masses(record: FrameRecord) -> dict[int | str, float | None]:
    """Share of attention by entry, the mean over pathways; None where it was not measured."""
    sums: dict[int | str, float | None] = {}
    for reading in record.readings:
        name = entry_name(reading.frame, reading.kind)
        share = None if reading.mass is None else reading.mass / max(record.pathways, 1)
        total = sums.get(name, 0.0)
        sums[name] = None if share is None or total is None else total + share
    return sums


def _segments(kinds: dict[int, str]) -> list[TimelineSegment]:
    runs: list[TimelineSegment] = []
    for position, kind in sorted(kinds.items()):
        if runs and runs[-1].stop == position and runs[-1].kind == kind:
            runs[-1] = replace(runs[-1], stop=position + 1)
        else:
            runs.append(TimelineSegment(position, position + 1, kind))
    return runs
