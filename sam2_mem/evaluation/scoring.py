"""Score the videos of a data set, in several processes if wanted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import cv2

from sam2_mem.evaluation.protocols import Protocol
from sam2_mem.evaluation.results import Failure, Note, Report, VideoScores
from sam2_mem.evaluation.videos import AnnotatedVideo
from sam2_mem.evaluation.vots import VOTSSequence

ScoredVideo = AnnotatedVideo | VOTSSequence
"""A video of masks, or a sequence of regions for VOTS."""
Outcome = VideoScores | Failure
Progress = Callable[[Iterator[Outcome]], Iterable[Outcome]]
"""Wraps the outcomes of videos, as they come in, in a progress bar."""


def evaluate(
    protocol: Protocol[Any], videos: Sequence[ScoredVideo], *, processes: int = 1, progress: Progress = iter
) -> Report:
    """Score videos; the report does not depend on the number of processes.

    A video that the protocol has no score for is reported as a failure; the others are scored.
    """
    if processes < 1:
        raise ValueError(f"expected at least 1 process, got {processes}")
    return report_of(protocol, videos, list(progress(_outcomes(protocol, videos, min(processes, len(videos))))))


def report_of(protocol: Protocol[Any], videos: Sequence[ScoredVideo], outcomes: Sequence[Outcome]) -> Report:
    """The report on videos, given the outcome of each."""
    scored = [(video, outcome) for video, outcome in zip(videos, outcomes) if isinstance(outcome, VideoScores)]
    objects = tuple(object_scores for _, scores in scored for object_scores in scores.objects)
    return Report(
        protocol=protocol.name,
        columns=protocol.columns,
        frame_columns=protocol.frame_columns,
        summary=protocol.summary(objects),
        objects=objects,
        num_videos=len(videos),
        notes=tuple(Note(video.name, text) for video, scores in scored for text in scores.notes),
        failures=tuple(outcome for outcome in outcomes if isinstance(outcome, Failure)),
    )


def _outcomes(protocol: Protocol[Any], videos: Sequence[ScoredVideo], processes: int) -> Iterator[Outcome]:
    """In the order of the videos."""
    score = partial(outcome_of, protocol)
    if processes <= 1:
        yield from map(score, videos)
        return
    with process_pool(processes) as pool:
        yield from pool.map(score, videos)


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Processes that score, of one thread each."""
    return ProcessPoolExecutor(processes, mp_context=_context(), initializer=cv2.setNumThreads, initargs=(1,))


def _context() -> multiprocessing.context.BaseContext:
    """Processes that inherit no threads. Where it can be, the imports happen once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sam2_mem.evaluation.datasets"])
    return context


def outcome_of(protocol: Protocol[Any], video: ScoredVideo) -> Outcome:
    """The scores of a video, or why there are none."""
    try:
        return protocol.score(video)
    except (ValueError, OSError) as error:
        return Failure(video.name, str(error))
