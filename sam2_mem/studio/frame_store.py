"""What a run knows of its frames, in a file that has no name: memory holds a few numbers of eight bytes for every frame."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch

from sam2_mem.memory.trace import Action

ENTERED = (Action.WRITTEN.value, Action.REPLACED.value, Action.PROMOTED.value)
DEPARTED = (Action.EVICTED.value, Action.REDUCED.value, Action.COMPACTED.value, Action.MERGED.value)
HEADER = 4
"""Bytes of the length before every record."""


@dataclass(frozen=True)
class FrameView:
    """What is known about one frame, by object id.

    Attributes:
        masks: COCO run lengths.
        scores: predicted IoU, object score, present.
        numbers: tokens and bytes held, entries that left.
        memory: where the store has what memory did.
    """

    masks: Mapping[int, str] = field(default_factory=dict)
    scores: Mapping[int, tuple[float, float, bool]] = field(default_factory=dict)
    numbers: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    memory: Mapping[int, int] = field(default_factory=dict)

    def without(self, obj_id: int) -> FrameView:
        return FrameView(*({i: value for i, value in part.items() if i != obj_id} for part in vars(self).values()))

    def summary(self) -> dict[str, Any]:
        """For a timeline: by object score and numbers, [IoU, object score, present, tokens, bytes, entries that left]."""
        ids = sorted(self.masks.keys() | self.numbers.keys())
        empty = (0.0, 0.0, False), (0, 0, 0)
        return {str(i): [*self.scores.get(i, empty[0]), *self.numbers.get(i, empty[1])] for i in ids}


class FrameNumbers(MutableMapping[int, int]):
    """A number, not negative, for some frames: eight bytes for each up to the last."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self.array = array("q", numbers)

    def __getitem__(self, frame: int) -> int:
        if not 0 <= frame < len(self.array) or self.array[frame] < 0:
            raise KeyError(frame)
        return self.array[frame]

    def __setitem__(self, frame: int, number: int) -> None:
        if frame < 0:
            raise IndexError(f"expected a frame from 0 on, got {frame}")
        self.array.extend([-1] * (frame + 1 - len(self.array)))
        self.array[frame] = number

    def __delitem__(self, frame: int) -> None:
        if frame in self:
            self.array[frame] = -1

    def __iter__(self) -> Iterator[int]:
        return (frame for frame, number in enumerate(self.array) if number >= 0)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def above(self, number: int) -> list[int]:
        """Frames whose number is higher than ``number``."""
        return [frame for frame, own in enumerate(self.array) if own > number]

    def copy(self) -> FrameNumbers:
        return FrameNumbers(self.array)


class RecordFile:
    """Plain values, compressed, one after the other. The file vanishes with the process.

    Args:
        folder: where it lies; the system's own for such files where that is None or cannot be written to.
    """

    def __init__(self, folder: Path | None) -> None:
        is_writable = folder is not None and os.access(folder, os.W_OK)
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder if is_writable else None, buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()
        self._end = 0

    def add(self, value: Any) -> int:
        """Where ``value`` lies from now on. OSError where the disk is full."""
        data = zlib.compress(json.dumps(value).encode(), 1)
        with self._lock:
            self._file.seek(self._end)
            _write_all(self._file, len(data).to_bytes(HEADER, "little") + data)
            position, self._end = self._end, self._end + HEADER + len(data)
        return position

    def read(self, position: int) -> Any:
        with self._lock:
            self._file.seek(position)
            data = self._file.read(int.from_bytes(self._file.read(HEADER), "little"))
        return json.loads(zlib.decompress(data))

    def content(self) -> bytes:
        """All of it."""
        with self._lock:
            self._file.seek(0)
            return self._file.read(self._end)

    def fill(self, content: bytes) -> None:
        """Take over the ``content`` of another one."""
        with self._lock:
            self._file.seek(0)
            _write_all(self._file, content)
            self._end = len(content)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Also where the system takes a part at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


class _Moved:
    """Records that are copied into another file, each once."""

    def __init__(self, source: RecordFile) -> None:
        self._source = source
        self._positions: dict[int, int] = {}

    def to(self, target: RecordFile, position: int) -> int:
        """Where a record is in ``target``."""
        if position not in self._positions:
            self._positions[position] = target.add(self._source.read(position))
        return self._positions[position]


class FrameStore(MutableMapping[int, FrameView]):
    """Views by frame; what memory did, by frame and object; when entries came and went.

    Args:
        folder: where its file lies, None for that of the system.
    """

    def __init__(self, folder: Path | None) -> None:
        self._records = RecordFile(folder)
        self._views = FrameNumbers()
        self._entered: dict[int, FrameNumbers] = {}
        self._left: dict[int, FrameNumbers] = {}

    def __getitem__(self, frame: int) -> FrameView:
        return FrameView(*({i: _fixed(v) for i, v in part} for part in self._records.read(self._views[frame])))

    def __setitem__(self, frame: int, view: FrameView) -> None:
        self._views[frame] = self._records.add([list(part.items()) for part in vars(view).values()])

    def __delitem__(self, frame: int) -> None:
        del self._views[frame]

    def __contains__(self, frame: object) -> bool:
        return frame in self._views

    def __iter__(self) -> Iterator[int]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def copy(self) -> FrameStore:
        """As it is now; both go on with the same file."""
        twin = object.__new__(FrameStore)
        twin._records, twin._views = self._records, self._views.copy()
        twin._entered, twin._left = (
            {i: numbers.copy() for i, numbers in part.items()} for part in (self._entered, self._left)
        )
        return twin

    def saved(self) -> dict[str, Any]:
        """All of it as tensors of plain numbers, without what is no longer referred to."""
        twin, kept = FrameStore(None), _Moved(self._records)
        for frame, view in self.items():
            twin[frame] = replace(view, memory={i: kept.to(twin._records, p) for i, p in view.memory.items()})
        parts: dict[str, Any] = {"views": torch.tensor(twin._views.array)}
        for name, numbers in (("entered", self._entered), ("left", self._left)):
            moved = {i: [p if p < 0 else kept.to(twin._records, p) for p in n.array] for i, n in numbers.items()}
            parts[name] = {i: torch.tensor(positions) for i, positions in moved.items()}
        return parts | {"records": torch.frombuffer(bytearray(twin._records.content()), dtype=torch.uint8)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what ``saved`` has written; this one is empty."""
        self._records.fill(saved["records"].numpy().tobytes())
        self._views = FrameNumbers(saved["views"].tolist())
        self._entered, self._left = (
            {i: FrameNumbers(positions.tolist()) for i, positions in saved[name].items()}
            for name in ("entered", "left")
        )

    def changed_since(self, before: FrameStore) -> list[int]:
        """Frames whose view is another one than in ``before``."""
        frames = sorted({*self, *before})
        if self._records is not before._records:
            return frames
        return [frame for frame in frames if self._views.get(frame) != before._views.get(frame)]

    def remove(self, obj_id: int) -> list[int]:
        """Let go of an object; the frames on which it was."""
        self._entered.pop(obj_id, None)
        self._left.pop(obj_id, None)
        changed = []
        for frame, view in self.items():
            if any(obj_id in part for part in vars(view).values()):
                self[frame] = view.without(obj_id)
                changed.append(frame)
        return changed

    # -- what memory did ------------------------------------------------------------------------------------------

    def add_memory(self, obj_id: int, record: Mapping[str, Any]) -> tuple[int, tuple[int, int, int]]:
        """Take in a ``FrameRecord`` as JSON: where it lies, and the numbers of a view."""
        position, departures = self._records.add(record), 0
        entered, left = (part.setdefault(obj_id, FrameNumbers()) for part in (self._entered, self._left))
        for event in record["events"]:
            frame, has_left = event["frame"], event["action"] in DEPARTED
            departures += has_left
            if frame is not None and event["action"] in ENTERED:
                entered[frame] = position
                left.pop(frame, None)
            elif frame is not None and has_left:
                left[frame] = position
        return position, (record["tokens"], record["bytes"], departures)

    def memory(self, frame: int, obj_id: int) -> dict[str, Any] | None:
        """The ``FrameRecord`` of an object as JSON; None where it was not tracked on the frame."""
        view = self.get(frame)
        return None if view is None or obj_id not in view.memory else self._records.read(view.memory[obj_id])

    def history(self, obj_id: int, frames: Iterable[int]) -> dict[int, dict[str, Any]]:
        """When and why the entries of ``frames`` came and went, of those for which that is known."""
        notes: dict[int, dict[str, Any]] = {}
        parts = ("entered", self._entered, ENTERED), ("left", self._left, DEPARTED)
        for frame in frames:
            for name, positions, actions in parts:
                position = positions[obj_id].get(frame) if obj_id in positions else None
                if position is not None:
                    notes.setdefault(frame, {})[name] = _event(self._records.read(position), frame, actions)
        return notes


def _event(record: Mapping[str, Any], frame: int, actions: tuple[str, ...]) -> dict[str, Any]:
    """The last of the events of an entry that is one of ``actions``."""
    [*_, event] = (e for e in record["events"] if e["frame"] == frame and e["action"] in actions)
    return {"on": record["frame"], "action": event["action"], "reason": event["reason"]}


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
