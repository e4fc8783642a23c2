"""The steps of a session under one policy, and what came of them: masks, scores, and what memory did, frame by frame."""

from __future__ import annotations

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from sam2_mem.evaluation.inspection.recording import ObjectRecord, Recorder, as_json, frame_records, from_json
from sam2_mem.evaluation.inspection.timeline import Styles
from sam2_mem.memory.trace import Action, TraceRecord
from sam2_mem.tracking.alternatives import Alternative
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.session_log import SessionStep
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import VideoSource
from sam2_mem.video.rle import encode_mask

NETWORK = threading.Lock()
"""One frame at a time goes through the network, whichever session it is of."""

ENTERED = (Action.WRITTEN.value, Action.REPLACED.value, Action.PROMOTED.value)
DEPARTED = (Action.EVICTED.value, Action.REDUCED.value, Action.COMPACTED.value, Action.MERGED.value)


@dataclass(frozen=True)
class FrameView:
    """What is known about one frame: by object id its mask (COCO run lengths), its score (predicted IoU, object score, present)
    and what memory did (``FrameRecord`` as compressed JSON, with a few numbers beside it)."""

    masks: Mapping[int, str] = field(default_factory=dict)
    scores: Mapping[int, tuple[float, float, bool]] = field(default_factory=dict)
    memory: Mapping[int, bytes] = field(default_factory=dict)
    numbers: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    """By object: tokens and bytes held, entries that left."""

    def without(self, obj_id: int) -> FrameView:
        masks, scores, memory, numbers = (
            {i: value for i, value in part.items() if i != obj_id}
            for part in (self.masks, self.scores, self.memory, self.numbers)
        )
        return FrameView(masks, scores, memory, numbers)  # type: ignore[arg-type]

    def summary(self) -> dict[str, Any]:
        """For a timeline: by object score and numbers, [IoU, object score, present, tokens, bytes, entries that left]."""
        ids = sorted(self.masks.keys() | self.numbers.keys())
        empty = (0.0, 0.0, False), (0, 0, 0)
        return {str(i): [*self.scores.get(i, empty[0]), *self.numbers.get(i, empty[1])] for i in ids}


@dataclass(frozen=True)
class Snapshot:
    """All of a run at one time; cheap, since tensors and views are shared."""

    state: InferenceState
    frames: dict[int, FrameView]
    history: dict[int, dict[int, dict[str, Any]]]


class PolicyRun:
    """Steps under one policy. One thread applies steps; any may look.

    Args:
        predictor: with the policy.
        source: the video.
        on_change: called with a frame whenever something about it is new.

    Attributes:
        state: of the predictor.
        frames: what is known, by frame.
        history: by object and frame of an entry, when and why it came and went.
    """

    def __init__(
        self, predictor: SAM2VideoPredictor, source: VideoSource, on_change: Callable[[int], None] = lambda frame: None
    ) -> None:
        self.predictor = predictor
        self.on_change = on_change
        self.state = predictor.init_state(source)
        self.frames: dict[int, FrameView] = {}
        self.history: dict[int, dict[int, dict[str, Any]]] = {}
        self._kinds: dict[str, None] = {}
        self._recorder = Recorder(read_mass=True)
        self._records: dict[tuple[int, int], list[TraceRecord]] = {}
        predictor.listen(self.state, self._recorder)

    def apply(self, step: SessionStep) -> Iterator[int]:
        """Do a step; the frames that have a new mask, one after the other. Closing the iterator ends a pass."""
        self._records.clear()
        results = step.apply(self.predictor, self.state)
        try:
            while True:
                with NETWORK:
                    result = next(results, None)
                if result is None:
                    break
                yield self._note(*result)
        finally:
            results.close()  # type: ignore[attr-defined]
            self._note_memory()
        if step.kind == "remove" and step.obj_id is not None:
            self._remove(step.obj_id)

    def _note(self, frame: int, obj_ids: Sequence[int], logits: torch.Tensor) -> int:
        masks = (logits[:, 0] > 0).cpu().numpy()
        counts = {i: encode_mask(i, mask).counts for i, mask in zip(obj_ids, masks)}
        view = self.frames.get(frame, FrameView())
        scores = {i: score for i in obj_ids if (score := self._score(frame, i)) is not None}
        self.frames[frame] = replace(view, masks=counts, scores=scores)
        self._note_memory()
        self.on_change(frame)
        return frame

    def _score(self, frame: int, obj_id: int) -> tuple[float, float, bool] | None:
        """Predicted IoU, object score and presence of the mask that an object has on a frame."""
        output = self.state.tracker.recall.output(self.state.tracker.tracks[obj_id], frame)
        return None if output is None else (round(output.iou, 4), round(output.objectness, 3), output.area > 0)

    def _note_memory(self) -> None:
        """Take in what memory has done since the last call; of several visits to a frame the last one counts."""
        touched = set()
        for record in self._recorder.records:
            key = (record.frame, record.obj_id)
            self._records.setdefault(key, []).append(record)
            touched.add(key)
        self._recorder.records.clear()
        for key in sorted(touched):
            self._note_record(*key)
        for key in list(self._records)[: -64 * max(1, len(self.state.obj_ids))]:
            del self._records[key]

    def _note_record(self, frame: int, obj_id: int) -> None:
        record = as_json(frame_records(self._records[frame, obj_id])[-1])
        entries = self.history.setdefault(obj_id, {})
        for event in record["events"]:
            note = {"on": frame, "action": event["action"], "reason": event["reason"]}
            if event["frame"] is not None and event["action"] in ENTERED:
                entries[event["frame"]] = {"entered": note}
            elif event["frame"] is not None and event["action"] in DEPARTED:
                entries[event["frame"]] = entries.get(event["frame"], {}) | {"left": note}
        left = sum(event["action"] in DEPARTED for event in record["events"])
        view = self.frames.get(frame, FrameView())
        self._kinds |= dict.fromkeys(entry["kind"] for entry in record["entries"])
        packed = zlib.compress(json.dumps(record).encode(), 1)
        numbers = record["tokens"], record["bytes"], left
        memory, counted = view.memory | {obj_id: packed}, view.numbers | {obj_id: numbers}  # type: ignore[operator]
        self.frames[frame] = replace(view, memory=memory, numbers=counted)
        self.on_change(frame)

    def _remove(self, obj_id: int) -> None:
        self.history.pop(obj_id, None)
        for frame, view in list(self.frames.items()):
            self.frames[frame] = view.without(obj_id)
            self.on_change(frame)

    def memory(self, frame: int, obj_id: int) -> dict[str, Any] | None:
        """What memory did for an object on a frame, with the history of the entries that it held or read; None where the
        object was not tracked there."""
        packed = self.frames.get(frame, FrameView()).memory.get(obj_id)
        if packed is None:
            return None
        record = json.loads(zlib.decompress(packed))
        frames = {entry["frame"] for entry in (*record["entries"], *record["readings"])}
        known = self.history.get(obj_id, {})
        styles = self.styles()
        kinds = {kind: [letter, styles.colors[kind]] for kind, letter in styles.letters.items()}
        return record | {"history": {f: known[f] for f in frames if f in known}, "kinds": kinds}

    def styles(self) -> Styles:
        """Letters and colours of the kinds of entries that there were."""
        return Styles.of(list(self._kinds))

    def records(self, obj_id: int, frames: range, name: str) -> ObjectRecord:
        """What memory did for an object on those of ``frames`` on which it was tracked; ``name`` of the policy."""
        packed = (view.memory.get(obj_id) for frame in frames if (view := self.frames.get(frame)) is not None)
        records = (from_json(json.loads(zlib.decompress(record))) for record in packed if record is not None)
        return ObjectRecord(name, obj_id, tuple(records))

    def alternatives(self, obj_id: int) -> list[Alternative]:
        """Other masks that an object could have on the frame that was tracked last; none where that is not known."""
        with NETWORK:
            return self.predictor.alternatives(self.state, obj_id)

    def snapshot(self) -> Snapshot:
        history = {obj_id: dict(entries) for obj_id, entries in self.history.items()}
        return Snapshot(deepcopy(self.state), dict(self.frames), history)

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot, which stays valid."""
        before, self.frames = self.frames, dict(snapshot.frames)
        self.state = deepcopy(snapshot.state)
        self.predictor.listen(self.state, self._recorder)
        self.history = {obj_id: dict(entries) for obj_id, entries in snapshot.history.items()}
        for frame in sorted(before.keys() | self.frames.keys()):
            if before.get(frame) is not self.frames.get(frame):
                self.on_change(frame)
