"""What users hand in and in which form: buffers that are used again, arrays of any layout, iterators that fail or cannot
go back, states that are copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
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


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_damaged_video_file_is_an_error_of_the_pass_as_in_folders(predictor, tmp_path):
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 24.0, (64, 64))
    for index in range(40):
        writer.write(np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8))
    writer.release()
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(2000) + content[middle + 2000 :])
    state = predictor.init_state(path)
    predictor.add_new_mask(state, 0, 1, blob(0))
    frames = []
    with pytest.raises(ValueError, match="cannot read frame [0-9]+ of .*clip.mp4") as caught:
        for frame, _, _ in predictor.propagate_in_video(state):
            frames.append(frame)
    assert 3 < len(frames) < 30 and frames == list(range(len(frames)))
    assert f"cannot read frame {len(frames)} of" in str(caught.value)


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


# -- numbers and single things ----------------------------------------------------------------------------------------


def test_indices_of_any_integer_kind(predictor):
    state = predictor.init_state(pictures(FRAMES))
    for number, index in enumerate((0, np.int64(0), torch.tensor(0), np.uint8(0))):
        frame, ids, _ = predictor.add_new_mask(state, index, type(index)(number) if number % 2 else number, blob(0))
        assert (frame, ids) == (0, list(range(number + 1))) and type(frame) is int
    assert tracked(predictor, state, torch.tensor(1), np.int32(2)) == [1, 2, 3]
    predictor.clear_all_prompts_in_frame(state, torch.tensor(0), 0)
    assert 0 not in state.prompts[0]


@pytest.mark.parametrize("count", [3.0, "3", True, -1])
def test_a_length_that_is_no_integer(predictor, count):
    state = predictor.init_state(pictures(FRAMES))
    predictor.add_new_mask(state, 0, 1, blob(0))
    with pytest.raises(ValueError, match="expected max_frame_num_to_track (as an integer|>= 0), got "):
        tracked(predictor, state, 0, count)


def test_one_prompt_without_brackets(predictor):
    states = [predictor.init_state() for _ in range(2)]
    prompt = Prompt(1, mask=blob(0))
    alone = predictor.track_frame(states[0], picture(0), prompt)
    listed = predictor.track_frame(states[1], picture(0), [prompt])
    assert alone[1] == listed[1] == [1] and torch.equal(alone[2], listed[2])


def test_a_stream_that_was_reset_says_what_to_do_for_another_size(predictor):
    state = predictor.init_state()
    predictor.track_frame(state, picture(0), Prompt(1, mask=blob(0)))
    predictor.reset_state(state)
    with pytest.raises(
        ValueError, match=r"expected frames of 64 x 64 .*, got 48 x 64; .* make a new state: init_state\(\)"
    ):
        predictor.track_frame(state, picture(0, 48, 64))
    assert predictor.track_frame(state, picture(1))[:2] == (1, [])


# -- copies of a state ------------------------------------------------------------------------------------------------


def masks_of_a_session(predictor: SAM2VideoPredictor, state: Any) -> list[torch.Tensor]:
    """A correction and passes in both directions."""
    predictor.add_new_points_or_box(state, 4, 1, [[20, 20]], [0])
    predictor.add_new_mask(state, 3, 7, blob(2, 3))
    forward = [masks for _, _, masks in predictor.propagate_in_video(state, 3)]
    return forward + [masks for _, _, masks in predictor.propagate_in_video(state, 4, reverse=True)]


@pytest.mark.parametrize("policy", ["fifo", "xmem", "sam2long"])
def test_a_copied_session_goes_on_by_itself(policy):
    predictor = micro_predictor(policy)
    state = predictor.init_state(pictures(12))
    predictor.add_new_mask(state, 0, 1, blob(0))
    list(predictor.propagate_in_video(state, 0, 6))
    copies = [copy.deepcopy(state) for _ in range(2)]
    assert all(other.tracker.model is state.tracker.model and other.source is state.source for other in copies)
    before = {frame: output.logits.clone() for frame, output in state.tracker.tracks[1].outputs.items()}
    first = masks_of_a_session(predictor, copies[0])
    assert state.obj_ids == [1] and list(state.prompts[1]) == [0]
    outputs = state.tracker.tracks[1].outputs
    assert list(outputs) == list(before) and all(torch.equal(outputs[f].logits, before[f]) for f in before)
    for other in (state, copies[1]):
        again = masks_of_a_session(predictor, other)
        assert len(again) == len(first) and all(torch.equal(a, b) for a, b in zip(again, first))


def test_a_state_is_not_pickled_and_says_what_to_do(predictor):
    state = predictor.init_state(pictures(2))
    with pytest.raises(TypeError, match=r"cannot be pickled: .*predictor\.save_memory.*copy\.deepcopy"):
        pickle.dumps(state)


# -- threads, passes that are left ------------------------------------------------------------------------------------


def all_masks(predictor: SAM2VideoPredictor, number: int) -> list[torch.Tensor]:
    state = predictor.init_state(pictures(10))
    predictor.add_new_mask(state, number, 1, blob(number, number))
    return [masks for _, _, masks in predictor.propagate_in_video(state)]


def test_three_threads_with_one_predictor_and_a_state_each(predictor):
    expected = [all_masks(predictor, number) for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda number: all_masks(predictor, number), range(3)))
    for alone, threaded in zip(expected, together):
        assert len(alone) == len(threaded) and all(torch.equal(a, b) for a, b in zip(alone, threaded))
    assert not torch.equal(expected[0][-1], expected[1][-1]), "the control: the sessions differ"


@pytest.mark.parametrize("how", ["left open", "closed", "interrupted"])
def test_a_pass_that_is_left_and_another_one(predictor, how):
    """As if the first pass had been asked for so many frames."""
    states = [predictor.init_state(pictures(10)) for _ in range(2)]
    for state in states:
        predictor.add_new_mask(state, 0, 1, blob(0))
    running = predictor.propagate_in_video(states[0])
    try:
        for frame, _, _ in running:
            if frame == 4 and how == "interrupted":
                raise KeyboardInterrupt
            if frame == 4:
                break
    except KeyboardInterrupt:
        pass
    if how == "closed":
        running.close()
    assert tracked(predictor, states[1], 0, 4) == [0, 1, 2, 3, 4]
    for start, reverse in ((5, False), (3, True), (0, False)):
        passes = [list(predictor.propagate_in_video(state, start, reverse=reverse)) for state in states]
        assert len(passes[0]) > 2 and all(torch.equal(a[2], b[2]) for a, b in zip(*passes))
