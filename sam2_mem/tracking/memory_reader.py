"""From memory to masks: what policies read becomes batches of rows, which the network attends to and decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MeasuresReads, MemoryPolicy
from sam2_mem.model.mask_decoder import DecoderMaps
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.tracking import sensory_update
from sam2_mem.tracking.batching import batch_reads, row_limit
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import Track
from sam2_mem.types import CandidateId, FrameContext, FrameFeatures, Hypotheses, MemoryRead, ReadUsage, RowBatch, Usage

RowIndex = tuple[int, int]
"""A batch, and a row of it."""

Measure = Callable[[int, Tensor, "tuple[ReadUsage, ...] | None"], "Tensor | None"]
"""Number of a track, its candidates (P, M, h, w) and its usage -> further numbers (n) float32 to bring to the CPU."""

Compare = Callable[[Sequence[Tensor]], Tensor]
"""Candidates (P, M, h, w) of every track of a frame -> further numbers float32 to bring to the CPU."""


@dataclass(frozen=True, eq=False)
class TrackPrediction:
    """What the network says of one track on one frame.

    Attributes:
        track: the object.
        frame: the frame as the object's policy sees it.
        hypotheses: of P pathways.
        rows: (P) the row of each pathway, equal for pathways that read the same.
        conditioned: (P)(Q, C) features that the masks were decoded from; empty unless asked for.
        maps: (P) the decoder's, where there is sensory memory.
        usage: (P) attention of each read, for listeners; None unless asked for.
        compared: what ``compare`` said of all candidates of the frame, on the CPU; None unless asked for.
    """

    track: Track
    frame: FrameContext
    hypotheses: Hypotheses
    rows: Sequence[RowIndex]
    conditioned: Sequence[Tensor] = ()
    maps: Sequence[DecoderMaps] = ()
    usage: tuple[ReadUsage, ...] | None = None
    compared: Tensor | None = None

    def mask_key(self, candidate: CandidateId) -> tuple[RowIndex, int]:
        """Equal for candidates that are the same mask, also through different pathways."""
        return self.rows[candidate.pathway], candidate.candidate


@dataclass(frozen=True, eq=False)
class Decision:
    """How the latest mask of an object came about.

    Attributes:
        prediction: what the network said.
        shown: the candidate that was shown.
        before: memory before the frame.
        after: memory since.
    """

    prediction: TrackPrediction
    shown: CandidateId
    before: Bank | None = None
    after: Bank | None = None


class RequestedUsage(NamedTuple):
    """Attention of reads that the policy asks for, and whether listeners are told of it on every frame."""

    requested: Usage
    is_reported: bool

    @property
    def measured(self) -> Usage:
        """What the network measures."""
        return Usage.TOKENS if self.is_reported and self.requested is Usage.NONE else self.requested


class DecodedBatch(NamedTuple):
    """R rows after the network: their candidates, the features (R, Q, C) that these were decoded from, and the attention
    of each row, if it was measured."""

    decoded: Decoded
    conditioned: Tensor
    usage: Sequence[ReadUsage] | None


@dataclass(eq=False)
class MemoryReader:
    """Predicts masks of any number of objects from their memories.

    Attributes:
        model: the network.
        policy: says what every object reads.
        settings: limits of batches.
    """

    model: SAM2
    policy: MemoryPolicy
    settings: TrackerSettings

    def __post_init__(self) -> None:
        self.sensory = sensory_update.active(self.model, self.policy)

    def context_for(self, track: Track, context: FrameContext) -> FrameContext:
        """The frame as the policy of ``track`` sees it."""
        return context

    def predict(
        self,
        tracks: Sequence[Track],
        features: FrameFeatures,
        context: FrameContext,
        *,
        keep_conditioned: bool = False,
        report_usage: bool = False,
        explain: bool = False,
        compare: Compare | None = None,
    ) -> list[TrackPrediction]:
        """Read, attend and decode for all pathways of all tracks.

        Args:
            tracks: objects with a memory.
            features: of the frame.
            context: of the frame.
            keep_conditioned: also give the features that masks were decoded from.
            report_usage: measure attention on every frame and give it with the predictions; policies that did not ask for
                it are not given it.
            explain: the host has to know which entries are read.
            compare: further numbers to bring to the CPU with the scores, on other devices than a CPU.
        """
        frames = self.contexts_for(tracks, context, explain=explain)
        reads_of_track = [self.policy.read(track.state, frame) for track, frame in zip(tracks, frames)]
        usage = RequestedUsage(self.requested_usage(tracks, frames), report_usage)
        batches, rows_of_track = self._run_network(tracks, reads_of_track, features, usage.measured)
        return self.predictions_of(
            tracks, frames, batches, rows_of_track, usage, keep_conditioned=keep_conditioned, compare=compare
        )

    def contexts_for(
        self, tracks: Sequence[Track], context: FrameContext, *, explain: bool = False
    ) -> list[FrameContext]:
        """The frame as the policy of every track reads on it; ``explain`` as in ``predict``."""
        frames = [self.context_for(track, context) for track in tracks]
        if isinstance(self.policy, MeasuresReads) and self.model.device.type != "cpu":
            numbers = [
                self.policy.measure_for_read(track.state, frame, told_apart=explain)
                for track, frame in zip(tracks, frames)
            ]
            frames = [replace(frame, measured=m) for frame, m in zip(frames, vectors_to_cpu(numbers))]
        return frames

    def predictions_of(
        self,
        tracks: Sequence[Track],
        frames: Sequence[FrameContext],
        batches: Sequence[DecodedBatch],
        rows_of_track: Sequence[Sequence[RowIndex]],
        usage: RequestedUsage,
        *,
        keep_conditioned: bool,
        compare: Compare | None = None,
    ) -> list[TrackPrediction]:
        """What the network said, for each of N pairs of a track and a frame.

        Args:
            tracks: (N).
            frames: (N).
            batches: from the network.
            rows_of_track: (N) the row of each pathway.
            usage: of reads.
            keep_conditioned: as in ``predict``.
            compare: as in ``predict``.
        """
        usages = None if usage.measured is Usage.NONE else [batch.usage or () for batch in batches]
        is_host = self.model.device.type == "cpu"
        measure = None if is_host else partial(self._measure, tracks, frames, usage.requested)
        compare = None if is_host else compare
        decoded = [batch.decoded for batch in batches]
        split, compared = split_and_compared(decoded, rows_of_track, usages, measure, compare)
        predictions = []
        for track, frame, rows, hypotheses in zip(tracks, frames, rows_of_track, split):
            prediction = TrackPrediction(
                track=track,
                frame=frame,
                hypotheses=hypotheses if usage.measured is usage.requested else replace(hypotheses, usage=None),
                rows=rows,
                conditioned=[batches[b].conditioned[r] for b, r in rows] if keep_conditioned else (),
                maps=[]
                if self.sensory is None
                else [sensory_update.maps_at(batches[b].decoded.maps, r) for b, r in rows],
                usage=hypotheses.usage if usage.is_reported else None,
                compared=compared,
            )
            predictions.append(prediction)
        return predictions

    def attend_and_decode(
        self, tracks: Sequence[Track], features: FrameFeatures, rows: RowBatch | None, usage: Usage
    ) -> DecodedBatch:
        """Attend to memory and decode candidates for each of R rows.

        Args:
            tracks: (R) whose rows they are.
            features: of the frame.
            rows: what they read; None for one row that reads nothing.
            usage: the attention to measure.
        """
        if rows is None:
            conditioned = self.model.without_memory(features)
            measured: Sequence[ReadUsage] | None = [ReadUsage((), features.low.new_zeros(features.low.shape[0], 0))]
        else:
            conditioned, measured = self.model.attend(features, rows, usage)
        candidates, keep_maps = self.model.candidates.allows(0, with_memory=True), self.sensory is not None
        decoded = self.model.decode(conditioned, features, candidates=candidates, keep_maps=keep_maps)
        return DecodedBatch(decoded, conditioned, measured)

    def _run_network(
        self,
        tracks: Sequence[Track],
        reads_of_track: Sequence[Sequence[MemoryRead]],
        features: FrameFeatures,
        usage: Usage,
    ) -> tuple[list[DecodedBatch], list[list[RowIndex]]]:
        """Decoded batches, and the row of each read of each track."""
        reads: list[MemoryRead] = []
        owners: list[Track] = []
        for track, pathways in zip(tracks, reads_of_track):
            reads += pathways
            owners += [track] * len(pathways)
        max_rows = row_limit(self.model, self.settings.max_rows)
        batched = batch_reads(reads, self.model, max_padding=self.settings.max_padding, max_rows=max_rows)
        owner_of_row = dict(zip(batched.row_of_read, owners))
        batches = []
        for number, rows in enumerate(batched.batches):
            owners_of_rows = [owner_of_row[number, row] for row in range(rows.rows)]
            batches.append(self.attend_and_decode(owners_of_rows, features, rows, usage))
        row_of_read = iter([(len(batches), 0) if row is None else row for row in batched.row_of_read])
        if None in owner_of_row:
            batches.append(self.attend_and_decode([owner_of_row[None]], features, None, usage))
        return batches, [list(islice(row_of_read, len(pathways))) for pathways in reads_of_track]

    def _measure(
        self,
        tracks: Sequence[Track],
        frames: Sequence[FrameContext],
        requested: Usage,
        number: int,
        masks: Tensor,
        usage: tuple[ReadUsage, ...] | None,
    ) -> Tensor | None:
        """What the policy wants to know of the candidates of track ``number``."""
        asked = None if requested is Usage.NONE else usage
        return self.policy.measure(tracks[number].state, frames[number], masks, asked)

    def requested_usage(self, tracks: Sequence[Track], frames: Sequence[FrameContext]) -> Usage:
        """What any object needs; the network measures a batch as a whole. RuntimeError where two need different things."""
        requested = Usage.NONE
        for track, frame in zip(tracks, frames):
            usage = self.policy.usage_at(track.state, frame)
            if Usage.NONE not in (usage, requested) and usage is not requested:
                raise RuntimeError(
                    f"expected all objects to want one kind of usage on frame {frame.index}, got "
                    f"{sorted([usage.value, requested.value])}; "
                    f"have usage_at of {type(self.policy).__name__} return needs.usage or Usage.NONE"
                )
            requested = requested if usage is Usage.NONE else usage
        return requested


def split_by_track(
    batches: Sequence[Decoded],
    rows_of_track: Sequence[Sequence[RowIndex]],
    usages: Sequence[Sequence[ReadUsage]] | None = None,
    measure: Measure | None = None,
) -> list[Hypotheses]:
    """The hypotheses of ``split_and_compared``."""
    return split_and_compared(batches, rows_of_track, usages, measure)[0]


def split_and_compared(
    batches: Sequence[Decoded],
    rows_of_track: Sequence[Sequence[RowIndex]],
    usages: Sequence[Sequence[ReadUsage]] | None = None,
    measure: Measure | None = None,
    compare: Compare | None = None,
) -> tuple[list[Hypotheses], Tensor | None]:
    """Sort rows back to their tracks. All scores of the frame come to the CPU in one transfer, with what is measured.

    Args:
        batches: with equally many candidates M in all rows.
        rows_of_track: the row of each pathway of each track.
        usages: attention of each row of each batch, if it was measured.
        measure: see ``Measure``; None for nothing.
        compare: see ``Compare``; None for nothing.

    Returns:
        hypotheses of every track.
        what ``compare`` said.
    """
    masks = [torch.stack([batches[b].masks[r] for b, r in rows]) for rows in rows_of_track]
    usage = [None if usages is None else tuple([usages[b][r] for b, r in rows]) for rows in rows_of_track]
    wanted = [] if measure is None else [measure(n, *candidates) for n, candidates in enumerate(zip(masks, usage))]
    tables = []
    for decoded in batches:
        areas = (decoded.masks > 0).flatten(2).float().mean(2)
        tables.append(torch.cat([decoded.objectness[:, None], decoded.iou, areas], dim=1).detach())
    rows_in_order = [(b, r) for b, decoded in enumerate(batches) for r in range(len(decoded.iou))]
    vectors = [torch.cat(tables), None if compare is None else compare(masks), *(wanted or [None] * len(masks))]
    table, compared, *measured = vectors_to_cpu(vectors)
    assert table is not None, "every row has scores"
    scores = dict(zip(rows_in_order, table.view(len(rows_in_order), -1).tolist()))
    end = 1 + batches[0].iou.shape[1]
    result = []
    for number, rows in enumerate(rows_of_track):
        lines = [scores[row] for row in rows]
        hypotheses = Hypotheses(
            masks=masks[number],
            pointers=torch.stack([batches[b].pointers[r] for b, r in rows]),
            iou=tuple([tuple(line[1:end]) for line in lines]),
            objectness=tuple([line[0] for line in lines]),
            usage=usage[number],
            areas=tuple([tuple(line[end:]) for line in lines]),
            measured=measured[number],
        )
        result.append(hypotheses)
    return result, compared


def vectors_to_cpu(vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Vectors of one device on the CPU, in one transfer."""
    flat = [v.flatten() for v in vectors if v is not None]
    parts = iter(torch.cat(flat).cpu().split([len(v) for v in flat]) if flat else ())
    return [None if v is None else next(parts) for v in vectors]
