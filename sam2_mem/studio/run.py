"""The steps of a session under one policy, and what came of them: masks, scores, and what memory did, frame by frame."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sam2_mem.evaluation.inspection.recording import ObjectRecord, Recorder, as_json, frame_records, from_json
from sam2_mem.evaluation.inspection.timeline import Styles
from sam2_mem.memory.serialization import MemoryFileError
from sam2_mem.memory.trace import TraceRecord
from sam2_mem.studio.frame_store import FrameStore, FrameView
from sam2_mem.tracking.alternatives import Alternative
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.session_log import SessionStep
from sam2_mem.tracking.session_state import load_state, save_state
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import VideoSource
from sam2_mem.video.rle import encode_mask

NETWORK = threading.Lock()
"""One frame at a time goes through the network, whichever session it is of."""


@dataclass(frozen=True)
class Snapshot:
    """All of a run at one time; cheap, since tensors and the file of views are shared."""

    state: InferenceState
    frames: FrameStore


class PolicyRun:
    """Steps under one policy. One thread applies steps; any may look.

    Args:
        predictor: with the policy.
        source: the video.
        on_change: called with a frame whenever something about it is new.
        folder: where the file with what is known of frames lies, None for that of the system.

    Attributes:
        state: of the predictor.
        frames: what is known, by frame.
    """

    def __init__(
        self,
        predictor: SAM2VideoPredictor,
        source: VideoSource,
        on_change: Callable[[int], None] = lambda frame: None,
        folder: Path | None = None,
    ) -> None:
        self.predictor = predictor
        self.on_change = on_change
        self.state = predictor.init_state(source)
        self.frames = FrameStore(folder)
        self._folder = folder
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
            for frame in self.frames.remove(step.obj_id):
                self.on_change(frame)

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
        for frame in sorted({frame for frame, _ in touched}):
            self._note_records(frame, sorted(obj_id for at, obj_id in touched if at == frame))
        for key in list(self._records)[: -64 * max(1, len(self.state.obj_ids))]:
            del self._records[key]

    def _note_records(self, frame: int, obj_ids: Sequence[int]) -> None:
        view = self.frames.get(frame, FrameView())
        memory, numbers = dict(view.memory), dict(view.numbers)
        for obj_id in obj_ids:
            record = as_json(frame_records(self._records[frame, obj_id])[-1])
            self._kinds |= dict.fromkeys(entry["kind"] for entry in record["entries"])
            memory[obj_id], numbers[obj_id] = self.frames.add_memory(obj_id, record)
        self.frames[frame] = replace(view, memory=memory, numbers=numbers)
        self.on_change(frame)

    def memory(self, frame: int, obj_id: int) -> dict[str, Any] | None:
        """What memory did for an object on a frame, with the history of the entries that it held or read; None where the
        object was not tracked there."""
        record = self.frames.memory(frame, obj_id)
        if record is None:
            return None
        frames = {entry["frame"] for entry in (*record["entries"], *record["readings"])} - {None}
        styles = self.styles()
        kinds = {kind: [letter, styles.colors[kind]] for kind, letter in styles.letters.items()}
        return record | {"history": self.frames.history(obj_id, frames), "kinds": kinds}

    def styles(self) -> Styles:
        """Letters and colours of the kinds of entries that there were."""
        return Styles.of(list(self._kinds))

    def records(self, obj_id: int, frames: range, name: str) -> ObjectRecord:
        """What memory did for an object on those of ``frames`` on which it was tracked; ``name`` of the policy."""
        known = (self.frames.memory(frame, obj_id) for frame in frames)
        return ObjectRecord(name, obj_id, tuple(from_json(record) for record in known if record is not None))

    def alternatives(self, obj_id: int) -> list[Alternative]:
        """Other masks that an object could have on the frame that was tracked last; none where that is not known."""
        with NETWORK:
            return self.predictor.alternatives(self.state, obj_id)

    def snapshot(self) -> Snapshot:
        return Snapshot(deepcopy(self.state), self.frames.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a snapshot, which stays valid."""
        before, self.frames = self.frames, snapshot.frames.copy()
        self.state = deepcopy(snapshot.state)
        self.predictor.listen(self.state, self._recorder)
        for frame in self.frames.changed_since(before):
            self.on_change(frame)

    def save(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write all of it, with ``about``, for ``load``. TypeError where the state of the policy cannot be saved."""
        save_state(path, self.state, {**about, "frames": self.frames.saved(), "kinds": list(self._kinds)})

    def load(self, path: Path, about: Mapping[str, Any]) -> None:
        """Become what ``save`` has written; this one is new. MemoryFileError where it is another file, or about something else."""
        state, frames = self.predictor.init_state(self.state.video), FrameStore(self._folder)
        with NETWORK:
            saved = load_state(path, self.predictor, state)
        if any(saved.get(name) != value for name, value in about.items()):
            raise MemoryFileError(
                f"expected the state of this session in '{path}', got that of another one, or of an earlier save"
            )
        frames.restore(saved["frames"])
        self._kinds = dict.fromkeys(saved["kinds"])
        self.restore(Snapshot(state, frames))
