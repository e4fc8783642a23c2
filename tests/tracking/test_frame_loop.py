"""Delayed results: order, bounds, revisions of masks and scores, and what happens at the end and on errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sam2_mem.tracking.frame_loop import delayed
from sam2_mem.types import FrameResult, ObjectScore, Revision


def result(frame: int, *revisions: Revision, ids: tuple[int, ...] = (1, 2)) -> FrameResult:
    """Masks hold frame + object id / 10."""
    masks = torch.stack([torch.full((2, 2), frame + i / 10) for i in ids])
    scores = tuple(ObjectScore(i, 0.5, 1.0, True, False, (), (), 0) for i in ids)
    return FrameResult(frame, ids, masks, scores, revisions)


def revision(frame: int, value: float, obj_id: int = 1) -> Revision:
    return Revision(frame, torch.full((2, 2), value), iou=0.9, objectness=-3.0, obj_id=obj_id, present=False)


def values(results: Iterator[FrameResult]) -> list[tuple[int, list[float]]]:
    return [(r.frame, [round(x, 3) for x in r.masks[:, 0, 0].tolist()]) for r in results]


def test_without_lag_results_pass_at_once() -> None:
    seen = []

    def source() -> Iterator[FrameResult]:
        for frame in range(3):
            seen.append(frame)
            yield result(frame)

    for given in delayed(source(), 0):
        assert given.frame == seen[-1]
    assert seen == [0, 1, 2]


def test_revisions_reach_their_frame_and_object() -> None:
    third = result(2, revision(0, 7.0), revision(1, 8.0, obj_id=2))
    stream = [result(0), result(1), third, result(3, revision(2, 9.0))]
    assert values(delayed(stream, 2)) == [(0, [7.0, 0.2]), (1, [1.1, 8.0]), (2, [9.0, 2.2]), (3, [3.1, 3.2])]
    assert values(delayed(stream, 1))[:2] == [(0, [0.1, 0.2]), (1, [1.1, 8.0])], "too late for the first"
    assert values(iter(stream))[0] == (0, [0.1, 0.2]), "control: nothing is changed in place"


def test_scores_follow_and_revisions_are_used_up() -> None:
    first, second = delayed([result(0), result(1, revision(0, 7.0))], 1)
    assert [(s.iou, s.objectness, s.present) for s in first.scores] == [(0.9, -3.0, False), (0.5, 1.0, True)]
    assert first.revisions == second.revisions == ()


def test_a_later_revision_of_the_same_mask_wins() -> None:
    stream = [result(0), result(1, revision(0, 7.0)), result(2, revision(0, 8.0))]
    assert values(delayed(stream, 5))[0] == (0, [8.0, 0.2])


def test_an_object_that_was_not_there_is_not_revised() -> None:
    stream = [result(0, ids=(2,)), result(1, revision(0, 7.0))]
    assert values(delayed(stream, 3)) == [(0, [0.2]), (1, [1.1, 1.2])]


def test_what_is_open_at_the_end_is_revised_then() -> None:
    finish = lambda: (revision(1, 6.0), revision(4, 5.0, obj_id=2))  # noqa: E731
    stream = [result(frame) for frame in range(5)]
    assert values(delayed(stream, 9, finish))[1::3] == [(1, [6.0, 1.2]), (4, [4.1, 5.0])]
    assert values(delayed(stream, 2, finish))[1] == (1, [1.1, 1.2]), "already given out"


def test_the_order_of_a_reverse_pass_is_kept() -> None:
    stream = [result(9), result(8), result(7, revision(9, 1.0))]
    assert [frame for frame, _ in values(delayed(stream, 2))] == [9, 8, 7]


@pytest.mark.parametrize("lag", [0, 1, 7])
def test_no_more_than_the_lag_is_held(lag: int) -> None:
    taken = []

    def source() -> Iterator[FrameResult]:
        for frame in range(50):
            taken.append(frame)
            yield result(frame)

    for count, _ in enumerate(delayed(source(), lag)):
        assert len(taken) <= count + lag + 1


def test_masks_before_an_error_come_first() -> None:
    def source() -> Iterator[FrameResult]:
        yield result(0)
        yield result(1, revision(0, 7.0))
        raise OSError("broken frame")

    given = []
    with pytest.raises(OSError, match="broken frame"):
        for one in delayed(source(), 10):
            given.append(one)
    assert values(iter(given)) == [(0, [7.0, 0.2]), (1, [1.1, 1.2])]


def test_a_negative_lag() -> None:
    with pytest.raises(ValueError, match="expected lag >= 0, got -1"):
        list(delayed([], -1))
