"""Answers to what policies ask (``sam2_mem.memory.questions``), for all objects of a frame in one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sam2_mem.memory.kalman_filter import MaskBox, mask_boxes, occupied_lines
from sam2_mem.memory.questions import Probe, ProbeAnswer, Probing
from sam2_mem.memory.reading import time_span
from sam2_mem.tracking.batching import batch_reads, row_limit
from sam2_mem.tracking.memory_reader import MemoryReader, TrackPrediction, vectors_to_cpu
from sam2_mem.tracking.track import Track, gated_output
from sam2_mem.types import (
    ABSENT_LOGIT,
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    FrameFeatures,
    MemoryEntry,
    MemoryRead,
    ReadItem,
    ReadPointer,
    Usage,
)

if TYPE_CHECKING:
    from sam2_mem.tracking.tracker import Tracker

Place = tuple[int, int]
"""An object id, or the number of a probe, and a frame."""


@dataclass(frozen=True, eq=False)
class Question:
    """A probe, whose it is, and the entry that alone is remembered."""

    prediction: TrackPrediction
    probe: Probe
    entry: MemoryEntry

    @property
    def track(self) -> Track:
        return self.prediction.track


def with_answers(
    tracker: Tracker, policy: Probing, predictions: Sequence[TrackPrediction], features: FrameFeatures
) -> list[TrackPrediction]:
    """Predictions with the answers to what ``policy`` asks of each; where it asks nothing, they stay as they are.

    Args:
        tracker: of the video; its ``window`` holds the features of earlier frames.
        policy: asks.
        predictions: of N objects.
        features: of the frame.
    """
    probes = [policy.probes(p.track.state, p.frame, p.hypotheses) for p in predictions]
    if not any(probes):
        return list(predictions)
    questions = _questions(tracker, predictions, probes, features)
    frame, features_of = predictions[0].frame, {f.index: f for f in (*tracker.window, features)}
    tables: dict[Place, Tensor] = {}
    lines_shown: dict[Place, Tensor] = {}
    for age in sorted({age for q in questions for age in q.probe.ages}):
        past = features_of.get(_behind(frame, age))
        if past is None:
            continue
        asking = [n for n, q in enumerate(questions) if age in q.probe.ages]
        masks = masks_alone(tracker.reader, [questions[n] for n in asking], past)
        tables |= zip([(n, past.index) for n in asking], occupied_lines(masks).float())
        for track in tracker.tracks.values():
            output = track.outputs.get(past.index)
            if output is not None:
                lines_shown[track.obj_id, past.index] = occupied_lines(output.logits[None])[0].float()
    numbers = iter(vectors_to_cpu([*tables.values(), *lines_shown.values()]))
    boxes, boxes_shown = ({key: _box_of(next(numbers)) for key in part} for part in (tables, lines_shown))
    answers: dict[int, list[ProbeAnswer]] = {}
    for n, question in enumerate(questions):
        answer = _answer(question, {f: box for (number, f), box in boxes.items() if number == n}, boxes_shown)
        answers.setdefault(question.track.obj_id, []).append(answer)
    return [
        replace(p, hypotheses=replace(p.hypotheses, answers=tuple(answers.get(p.track.obj_id, ()))))
        for p in predictions
    ]


def _behind(frame: FrameContext, age: int) -> int:
    return frame.index + (age if frame.reverse else -age)


def _questions(
    tracker: Tracker,
    predictions: Sequence[TrackPrediction],
    probes: Sequence[Sequence[Probe]],
    features: FrameFeatures,
) -> list[Question]:
    """Of all objects; the memory of candidates is made in one batch."""
    pairs = [(p, probe) for p, of_object in zip(predictions, probes) for probe in of_object]
    gate = tracker.policy.min_obj_score_logits
    of_candidates = [(p, probe.source) for p, probe in pairs if isinstance(probe.source, CandidateId)]
    outputs = [gated_output(tracker.model, features.index, p.hypotheses, c, gate) for p, c in of_candidates]
    entries = iter(tracker.writer.encode_outputs([p.track for p, _ in of_candidates], features, outputs))
    return [
        Question(p, probe, probe.source if isinstance(probe.source, MemoryEntry) else next(entries))
        for p, probe in pairs
    ]


def masks_alone(reader: MemoryReader, questions: Sequence[Question], features: FrameFeatures) -> Tensor:
    """Masks (R, h, w) of R questions on a frame, after the absent-object gate: of every row that of highest predicted IoU."""
    reads, policy = [], reader.policy
    for question in questions:
        entry, span = question.entry, time_span(question.prediction.frame, policy.max_obj_ptrs_in_encoder)
        pointer = ReadPointer(entry.pointer, abs(features.index - entry.frame) / span)
        reads.append(MemoryRead((ReadItem(entry.tokens, PROMPT_SLOT),), (pointer,)))
    limit, max_padding = row_limit(reader.model, reader.settings.max_rows), reader.settings.max_padding
    batched = batch_reads(reads, reader.model, max_padding=max_padding, max_rows=limit)
    owner = dict(zip(batched.row_of_read, (q.track for q in questions)))
    best = []
    for number, rows in enumerate(batched.batches):
        owners = [owner[number, row] for row in range(rows.rows)]
        decoded = reader.attend_and_decode(owners, features, rows, Usage.NONE).decoded
        index = decoded.iou.argmax(1).view(-1, 1, 1, 1).expand(-1, 1, *decoded.masks.shape[-2:])
        present = (decoded.objectness > policy.min_obj_score_logits).view(-1, 1, 1)
        best.append(torch.where(present, decoded.masks.gather(1, index)[:, 0], ABSENT_LOGIT))
    return torch.stack([best[row[0]][row[1]] for row in batched.row_of_read if row is not None])


def _box_of(lines: Tensor | None) -> MaskBox | None:
    """The box of a square mask by ``occupied_lines`` (2 w)."""
    assert lines is not None, "every mask was measured"
    return mask_boxes(lines.new_zeros(1, 1, len(lines) // 2), lines[None] > 0)[0]


def _answer(
    question: Question, boxes: Mapping[int, MaskBox | None], boxes_shown: Mapping[Place, MaskBox | None]
) -> ProbeAnswer:
    """``boxes`` by frame; ``boxes_shown`` by object and frame."""
    frame, obj_id = question.prediction.frame, question.track.obj_id
    neighbours = sorted({neighbour for neighbour, _ in boxes_shown} - {obj_id})
    return ProbeAnswer(
        ages=tuple(frame.age(f) for f in boxes),
        boxes=tuple(boxes.values()),
        shown_boxes=tuple(boxes_shown.get((obj_id, f)) for f in boxes),
        neighbours=tuple(tuple(boxes_shown.get((neighbour, f)) for f in boxes) for neighbour in neighbours),
    )
