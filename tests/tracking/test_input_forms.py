"""What users hand in and in which form: buffers that are used again, arrays of any layout, iterators that fail or cannot
go back, states that are copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from micro import blob, micro_predictor, one_thread, picture, pictures  # noqa: F401

from sam2_mem import Prompt
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import open_video

FRAMES = 6


@pytest.fixture
def predictor() -> SAM2VideoPredictor:
    return micro_predictor("fifo")


def tracked(predictor: SAM2VideoPredictor, state: Any, *args: Any, **options: Any) -> list[int]:
    return [frame for frame, _, _ in predictor.propagate_in_video(state, *args, **options)]


# -- buffers ----------------------------------------------------------------------------------------------------------


def test_a_buffer_of_clicks_may_be_used_again(predictor):
    """Clicks one after the other from one buffer equal clicks from fresh arrays."""
    clicks = [(20.0, 20.0), (40.0, 30.0), (9.0, 50.0)]
    states = [predictor.init_state(pictures(2)) for _ in range(2)]
    buffer, label = np.zeros((1, 2), np.float32), np.zeros(1, np.int32)
    for number, click in enumerate(clicks):
        buffer[:], label[:] = click, number % 2
        rest = {"clear_old_points": False}
        reused = predictor.add_new_points_or_box(states[0], 0, 1, buffer, label, **rest)
        fresh = predictor.add_new_points_or_box(states[1], 0, 1, [list(click)], [number % 2], **rest)
        assert torch.equal(reused[2], fresh[2])
    assert states[0].prompts[1][0].points.tolist() == [list(click) for click in clicks]


BUFFERS = {
    "points": np.array([[3.0, 4.0]], np.float32),
    "labels": np.array([1], np.int32),
    "box": np.array([3.0, 4.0, 30.0, 40.0], np.float32),
    "mask": np.ones((8, 8), bool),
}


@pytest.mark.parametrize("as_given", [np.array, torch.tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("name", BUFFERS)
def test_what_a_prompt_is_given_is_copied(name, as_given):
    buffers = {key: as_given(value) for key, value in BUFFERS.items()}
    used = {"mask"} if name == "mask" else {"points", "labels", "box"}
    prompt = Prompt(1, **{key: value for key, value in buffers.items() if key in used})
    before = getattr(prompt, name).clone()
    buffers[name][:] = 0
    assert torch.equal(getattr(prompt, name), before)


# -- arrays of any layout ---------------------------------------------------------------------------------------------

LAYOUTS = {
    "negative strides": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "foreign byte order": lambda a: a.astype(a.dtype.newbyteorder(">")) if a.dtype.itemsize > 1 else a.astype(">i4"),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "unsigned": lambda a: a.astype(np.uint16),
    "long double": lambda a: a.astype(np.longdouble),
    "read only": lambda a: np.broadcast_to(a, a.shape),
    "list of arrays": list,
    "list of tensors": lambda a: [torch.from_numpy(row) for row in np.atleast_1d(a)] if a.ndim > 1 else a,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_of_any_layout(layout):
    points, labels = np.array([[3, 9], [20, 7]]), np.array([1, 0])
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:7] = 1
    prompt = Prompt(1, layout(points), layout(labels), layout(np.array([1, 2, 30, 41])))
    assert (prompt.points.tolist(), prompt.labels.tolist()) == ([[3, 9], [20, 7]], [1, 0])
    assert prompt.box.tolist() == [1, 2, 30, 41]
    assert np.array_equal(Prompt(1, mask=layout(mask)).mask.numpy(), mask == 1)


@pytest.mark.parametrize(
    "value", [np.full((200, 2), "x"), [[1, 2], [3]], {"x": 1}, [[None, 2]], np.zeros((3, 2), complex)]
)
def test_what_is_no_array_is_named_in_one_line_with_the_cause(value):
    with pytest.raises(ValueError, match="expected points") as caught:
        Prompt(1, points=value, labels=[1])
    assert len(str(caught.value)) < 400


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_not_tracked_in_reverse(predictor):
    for count in (None, 3):
        state = predictor.init_state(iter(pictures(FRAMES)))
        predictor.add_new_mask(state, 0, 1, blob(0))
        with pytest.raises(ValueError, match=r"a stream cannot be read in reverse: use a file, a folder or an array"):
            tracked(predictor, state, None, count, reverse=True)
        assert tracked(predictor, state) == list(range(FRAMES)), "the state is as it was"


def test_a_pass_over_a_stream_starts_at_a_frame_that_is_held(predictor):
    state = predictor.init_state(iter(pictures(FRAMES)))
    predictor.add_new_mask(state, 2, 1, blob(0, 2))
    assert tracked(predictor, state) == [2, 3, 4, 5]
    with pytest.raises(IndexError, match="frame 0 has passed"):
        tracked(predictor, state, 0)


class BrokenCameraError(Exception):
    pass


def failing(error: type[Exception], at: int = 3) -> Iterator[np.ndarray]:
    for index in range(FRAMES):
        if index == at:
            raise error("of the user's own")
        yield picture(index)


@pytest.mark.parametrize("error", [IndexError, KeyError, ValueError, BrokenCameraError])
def test_an_error_of_the_users_own_frames_is_not_the_end_of_the_video(predictor, error):
    state = predictor.init_state(failing(error))
    predictor.add_new_mask(state, 0, 1, blob(0))
    frames = []
    with pytest.raises(error, match="of the user's own"):
        for frame, _, _ in predictor.propagate_in_video(state):
            frames.append(frame)
    assert frames == [0, 1, 2]


@pytest.mark.parametrize("error", [IndexError, BrokenCameraError])
def test_the_users_error_comes_through_on_every_way_to_a_frame(predictor, error):
    for read in (lambda s: s[4], lambda s: list(s.frames()), lambda s: list(s)):
        with pytest.raises(error, match="of the user's own"):
            read(open_video(failing(error)))
    state = predictor.init_state(failing(error))
    with pytest.raises(error, match="of the user's own"):
        predictor.add_new_mask(state, 4, 1, blob(0))


def test_a_stream_ends_where_it_ends(predictor):
    state = predictor.init_state(iter(pictures(FRAMES)))
    predictor.add_new_mask(state, 0, 1, blob(0))
    assert tracked(predictor, state) == list(range(FRAMES))
    with pytest.raises(ValueError, match=r"frame 9 is out of range; valid frames are 0 to 5"):
        state.frame(9)
    with pytest.raises(IndexError, match="frame 20 is out of range"):
        list(open_video(iter(pictures(3))).frames(20))
