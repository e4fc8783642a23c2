"""What has left the memory of the objects of a video and may be read again: on the host, within a budget of bytes."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.model.acceleration.transfer import to_host_async
from sam2_mem.model.tensor_tree import tensors_in
from sam2_mem.tracking.track import MaskOutput, TrackedRanges
from sam2_mem.types import ArchivedEntry, MemoryEntry

logger = logging.getLogger(__name__)


class Kind(Enum):
    """What is archived of a frame: its memory, or the mask that was given out."""

    MEMORY = "memory"
    MASK = "mask"


Key = tuple[Kind, int, int]
"""Kind, object, frame."""


@dataclass(frozen=True, eq=False)
class Record:
    """Something archived, and the storages (address, bytes) behind its tensors."""

    value: ArchivedEntry | MaskOutput
    storages: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class SavedArchive:
    """An archive as plain values.

    Attributes:
        records: key and value, oldest first; the device of an entry is None for that of the network, else "cpu".
        missing: kind, object, and the runs of frames that have left memory and archive.
        overflow_reported: whether it was said that the archive is full.
    """

    records: tuple[tuple[Key, ArchivedEntry | MaskOutput], ...]
    missing: tuple[tuple[tuple[Kind, int], tuple[tuple[int, int, bool], ...]], ...]
    overflow_reported: bool


class Archive:
    """Memory entries and masks of frames that the bank of an object has let go, so that a session that comes back to
    them reads what SAM 2 would read. Beyond the budget the ones archived first leave, which is said once.

    Args:
        max_bytes: the budget, for all objects together; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._records: OrderedDict[Key, Record] = OrderedDict()
        self._users_of_storage: Counter[int] = Counter()
        self._missing: dict[tuple[Kind, int], TrackedRanges] = {}
        self._overflow_reported = False

    def __deepcopy__(self, memo: dict[int, object]) -> Archive:
        """Another archive of the same records, which nobody changes."""
        twin = Archive(self.max_bytes)
        for key, record in self._records.items():
            twin._insert(key, record)
        twin._missing = {key: ranges.copy() for key, ranges in self._missing.items()}
        twin._overflow_reported = self._overflow_reported
        return twin

    # -- what is in it ------------------------------------------------------------------------------------------

    def entries(self, obj_id: int) -> dict[int, ArchivedEntry]:
        """Archived memory of an object, by frame."""
        records = ((key, record.value) for key, record in self._records.items() if key[:2] == (Kind.MEMORY, obj_id))
        return {frame: value for (_, _, frame), value in records if isinstance(value, ArchivedEntry)}

    def mask(self, obj_id: int, frame: int) -> MaskOutput | None:
        """The archived mask of an object on ``frame``, on the host."""
        record = self._records.get((Kind.MASK, obj_id, frame))
        return record.value if record is not None and isinstance(record.value, MaskOutput) else None

    def storages(self) -> dict[int, int]:
        """Bytes by address of everything that is held here; archives of copied sessions share most of it."""
        return dict(pair for record in self._records.values() for pair in record.storages)

    def missing(self, kind: Kind, obj_id: int, frames: Iterable[int]) -> list[int]:
        """Those of ``frames`` that have left both memory and the archive."""
        ranges = self._missing.get((kind, obj_id))
        return [] if ranges is None else [frame for frame in frames if frame in ranges]

    # -- changes ------------------------------------------------------------------------------------------------

    def follow(self, obj_id: int, before: Bank | None, after: Bank | None) -> None:
        """Take in the tracked frames that ``before`` holds and ``after`` does not."""
        if before is None or before is after:
            return
        present = {} if after is None else after.archivable()
        prompted = () if after is None else after.prompted_frames()
        for frame, (entry, mark) in before.archivable().items():
            if frame not in present and frame not in prompted:
                self._add_entry(obj_id, entry, mark)
        if after is None:  # the last prompt was taken back; its frame counts as tracked
            for entry in before.prompts:
                self._add_entry(obj_id, entry.as_tracked(), "")

    def _add_entry(self, obj_id: int, entry: MemoryEntry, mark: str) -> None:
        key = Kind.MEMORY, obj_id, entry.frame
        if not self._records_already(key):
            device = entry.tokens.feat.device
            tokens = replace(entry.tokens, feat=to_host_async(entry.tokens.feat))
            self._add(key, ArchivedEntry(replace(entry, tokens=tokens), mark, device))

    def add_mask(self, obj_id: int, output: MaskOutput) -> None:
        """Take in a mask that was given out."""
        key = Kind.MASK, obj_id, output.frame
        if not self._records_already(key):
            self._add(key, replace(output, logits=to_host_async(output.logits)))

    def _records_already(self, key: Key) -> bool:
        """Whether ``key`` needs no record: it has one, or there is no room for any, which is noted."""
        if self.max_bytes == 0:
            self._note_missing(key)
        return self.max_bytes == 0 or key in self._records

    def _add(self, key: Key, value: ArchivedEntry | MaskOutput) -> None:
        self._insert(key, Record(value, tuple(dict(_storages(tensors_in(value))).items())))
        self._discard_from(self._missing, key)
        while self.bytes > self.max_bytes:
            oldest = next(iter(self._records))
            self._pop(oldest)
            self._note_missing(oldest)
            self._report_overflow(oldest)

    def discard(self, kind: Kind, obj_id: int, frame: int) -> None:
        """Let go of what is archived of a frame: there is something newer, or it is not to be read again."""
        if (kind, obj_id, frame) in self._records:
            self._pop((kind, obj_id, frame))
        self._discard_from(self._missing, (kind, obj_id, frame))

    def forget(self, obj_id: int, frame: int, radius: int) -> None:
        """Let go of memory within ``radius`` frames of ``frame``."""
        for index in range(frame - radius, frame + radius + 1):
            self.discard(Kind.MEMORY, obj_id, index)

    def remove(self, obj_id: int) -> None:
        """Let go of everything of an object."""
        for key in [key for key in self._records if key[1] == obj_id]:
            self._pop(key)
        self._missing = {key: ranges for key, ranges in self._missing.items() if key[1] != obj_id}

    def clear(self) -> None:
        """Let go of everything."""
        for obj_id in {key[1] for key in self._records} | {key[1] for key in self._missing}:
            self.remove(obj_id)

    # -- bookkeeping --------------------------------------------------------------------------------------------

    def _insert(self, key: Key, record: Record) -> None:
        self._records[key] = record
        for address, size in record.storages:
            self.bytes += 0 if self._users_of_storage[address] else size
            self._users_of_storage[address] += 1

    def _pop(self, key: Key) -> None:
        for address, size in self._records.pop(key).storages:
            self._users_of_storage[address] -= 1
            if not self._users_of_storage[address]:
                del self._users_of_storage[address]
                self.bytes -= size

    def _note_missing(self, key: Key) -> None:
        self._missing.setdefault(key[:2], TrackedRanges()).add(key[2], reverse=False)

    @staticmethod
    def _discard_from(missing: dict[tuple[Kind, int], TrackedRanges], key: Key) -> None:
        ranges = missing.get(key[:2])
        if ranges is not None and key[2] in ranges:
            ranges.discard(key[2])

    def _report_overflow(self, key: Key) -> None:
        if self._overflow_reported:
            return
        self._overflow_reported = True
        logger.warning(
            "the archive of %d bytes is full: the %s of object %d on frame %d has left it, and from now on the earliest leaves "
            "for each new one; where a pass or a correction comes back to such frames, a warning names them. "
            "tracker.archive_bytes is the budget, for all objects of a video",
            self.max_bytes,
            key[0].value,
            key[1],
            key[2],
        )


def save_archive(archive: Archive, device: torch.device) -> SavedArchive:
    """All that is held, where the network is on ``device``."""
    records = tuple((key, _without_device(record.value, device)) for key, record in archive._records.items())
    missing = tuple((key, ranges.runs) for key, ranges in archive._missing.items())
    return SavedArchive(records, missing, archive._overflow_reported)


def restore_archive(archive: Archive, saved: SavedArchive, device: torch.device) -> None:
    """Let an empty archive take in all of another one, where the network is on ``device``."""
    archive._overflow_reported = saved.overflow_reported
    archive._missing = {key: TrackedRanges(runs) for key, runs in saved.missing}
    for key, value in saved.records:
        archive._add(key, _with_device(value, device))


def _without_device(value: ArchivedEntry | MaskOutput, device: torch.device) -> ArchivedEntry | MaskOutput:
    if isinstance(value, MaskOutput):
        return value
    return replace(value, device=None if torch.device(value.device).type == device.type else "cpu")


def _with_device(value: ArchivedEntry | MaskOutput, device: torch.device) -> ArchivedEntry | MaskOutput:
    if isinstance(value, MaskOutput):
        return value
    return replace(value, device=torch.device(value.device or device))


def _storages(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    for tensor in tensors:
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
