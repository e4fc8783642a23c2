"""Memory grows neither with the length of a video nor with their number; nothing stays on the network or the policy."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import pytest
import torch
from micro import SIDE, blob, micro_predictor, one_thread, picture, pictures  # noqa: F401
from PIL import Image
from policy_contract import difference, kept_outside_states, snapshot
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.track import Track
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import VideoSource, open_video

EARLY, LATE = 60, 220
FRAMES = LATE + 1
Run = Callable[[SAM2VideoPredictor], Iterator[tuple[int, InferenceState]]]


class Load(NamedTuple):
    """What is held after a frame: bytes of the session and of its archive, decoded frames, live tensors and their bytes."""

    state: int
    frames: int
    tensors: int
    tensor_bytes: int
    archive: int


def load_of(state: InferenceState) -> Load:
    tensors = [t for t in alive(Tensor) if not isinstance(t, FakeTensor)]  # a compiler that ran before keeps some
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_meta}
    frames = 0 if state.source is None else state.source.held_frames
    return Load(state.memory_bytes(), frames, len(tensors), sum(storages.values()), state.tracker.archive.bytes)


def alive(kind: type) -> list[Any]:
    """Objects of a kind that are still referred to."""
    gc.collect()
    return [o for o in gc.get_objects() if issubclass(type(o), kind)]


def loads(predictor: SAM2VideoPredictor, run: Run, last: int = LATE) -> list[Load]:
    """After the early frame and after the ``last``."""
    found = []
    for frame, state in run(predictor):
        if frame in (EARLY, last):
            found.append(load_of(state))
        if frame == last:
            break
    return found


def grown(early: Load, late: Load) -> list[str]:
    """What is more than 1 % larger."""
    return [name for name in Load._fields if getattr(late, name) > 1.01 * getattr(early, name)]


# -- ways through a video ---------------------------------------------------------------------------------------------


def folder(path: Path) -> Path:
    path = path / "frames"
    path.mkdir()
    for i in range(FRAMES):
        Image.fromarray(picture(i)).save(path / f"{i:05d}.jpg")
    return path


def file(path: Path) -> Path:
    path = path / "video.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, (SIDE, SIDE))
    for i in range(FRAMES):
        writer.write(picture(i)[..., ::-1])
    writer.release()
    return path


def generator(path: Path) -> Iterator[Any]:
    return (picture(i) for i in range(FRAMES))


def offline(video: Any, *, interactive: bool = True) -> Run:
    def run(predictor: SAM2VideoPredictor) -> Iterator[tuple[int, InferenceState]]:
        state = predictor.init_state(video, interactive=interactive)
        predictor.add_new_mask(state, 0, 1, blob(0))
        predictor.add_new_points_or_box(state, 0, 2, box=[8, 8, 40, 40])
        for frame, _, _ in predictor.propagate_in_video(state):
            yield frame, state

    return run


def stream(predictor: SAM2VideoPredictor) -> Iterator[tuple[int, InferenceState]]:
    state = predictor.init_state()
    prompts = [Prompt(1, mask=blob(0)), Prompt(2, box=[8, 8, 40, 40])]
    for i in itertools.count():
        predictor.track_frame(state, picture(i), prompts if i == 0 else ())
        yield i, state


# -- one long video ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [pytest.param(f, marks=pytest.mark.full) for f in (folder, file, generator)], ids=lambda f: f.__name__
)
def test_offline_memory_is_flat(make: Callable[[Path], Any], tmp_path: Path) -> None:
    early, late = loads(micro_predictor(FIFO()), offline(make(tmp_path), interactive=False))
    assert not grown(early, late), (early, late)
    assert early.state > 0 and early.frames > 0 and early.tensors > 0


def test_stream_memory_is_flat() -> None:
    early, late = loads(micro_predictor(FIFO()), stream)
    assert not grown(early, late), (early, late)
    assert early.frames == 0


@pytest.mark.parametrize("way", [pytest.param("offline", marks=pytest.mark.full), "stream"])
def test_control_a_bank_that_retains_all_grows(way: str) -> None:
    run = stream if way == "stream" else offline(generator(Path()))
    early, late = loads(micro_predictor(FIFO(retain_all=True)), run, last=120)
    assert {"state", "tensors"} <= set(grown(early, late)) <= {"state", "tensors", "tensor_bytes"}
    # Not in percent: other tests of the process may keep large networks.
    assert late.tensor_bytes - early.tensor_bytes > 0.5 * (late.state - early.state)
    assert late.state > 1.8 * early.state


@pytest.mark.full
def test_control_frames_that_are_kept_are_counted() -> None:
    """``held_frames`` is not a constant: a source that caches more says so."""
    video = open_video(generator(Path()), cache=300)
    early, late = loads(micro_predictor(FIFO()), offline(video), last=120)
    assert grown(early, late) == ["frames"]


def traced(predictor: SAM2VideoPredictor, checkpoints: tuple[int, int]) -> int:
    """Bytes that Python and NumPy hold more after the second frame than after the first."""
    sizes = []
    tracemalloc.start()
    try:
        for frame, _ in stream(predictor):
            if frame in checkpoints:
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
            if frame == checkpoints[-1]:
                break
    finally:
        tracemalloc.stop()
    return sizes[1] - sizes[0]


SLACK = 32 * 1024
"""Python's free lists fill up slowly (about 10 KiB over these frames, ever less over later ones)."""


@pytest.mark.full
def test_host_memory_is_flat() -> None:
    assert traced(micro_predictor(FIFO()), (240, 390)) < SLACK


@pytest.mark.full
def test_control_host_memory_of_a_bank_that_retains_all_grows() -> None:
    assert traced(micro_predictor(FIFO(retain_all=True)), (60, 210)) > 5 * SLACK


# -- many videos ------------------------------------------------------------------------------------------------------


def short_video(predictor: SAM2VideoPredictor, keep: list[Any] | None = None) -> None:
    state = predictor.init_state(pictures(4))
    predictor.add_new_mask(state, 0, 1, blob(0))
    for _ in predictor.propagate_in_video(state):
        pass
    if keep is not None:
        keep.append(state.tracker.tracks)


def census() -> dict[str, int]:
    return {kind.__name__: len(alive(kind)) for kind in (Tensor, Track, Bank, InferenceState, VideoSource)}


@pytest.mark.full
def test_twenty_videos_leave_nothing() -> None:
    predictor = micro_predictor(FIFO())
    short_video(predictor)
    before = census()
    for _ in range(20):
        short_video(predictor)
    assert census() == before


@pytest.mark.full
def test_control_a_track_that_is_kept_is_found() -> None:
    predictor, kept = micro_predictor(FIFO()), []
    short_video(predictor)
    before = census()
    short_video(predictor, kept)
    after = census()
    assert after["Track"] == before["Track"] + 1
    assert after["Tensor"] > before["Tensor"] and after["Bank"] > before["Bank"]


@pytest.mark.full
def test_a_pass_that_is_abandoned_leaves_nothing() -> None:
    predictor = micro_predictor(FIFO())
    short_video(predictor)
    before = census()
    state = predictor.init_state(pictures(8))
    predictor.add_new_mask(state, 0, 1, blob(0))
    passing = predictor.propagate_in_video(state)
    next(passing), next(passing)
    del passing, state
    assert census() == before


def test_reset_and_remove_let_go() -> None:
    predictor = micro_predictor(FIFO())
    state = predictor.init_state(pictures(8))
    predictor.add_new_mask(state, 0, 1, blob(0))
    predictor.add_new_mask(state, 0, 2, blob(1))
    list(predictor.propagate_in_video(state))
    both = state.memory_bytes()
    predictor.remove_object(state, 1)
    assert 0 < state.memory_bytes() < 0.75 * both
    predictor.reset_state(state)
    assert state.memory_bytes() == 0


# -- nothing on the network or the policy -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What hangs on a network and on a policy."""

    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    tensors: Any
    policy: Any

    def difference(self, other: Kept) -> str | None:
        if self.attributes != other.attributes:
            return "attributes"
        return difference(self.tensors, other.tensors) or difference(self.policy, other.policy)


def kept(predictor: SAM2VideoPredictor) -> Kept:
    modules = dict(predictor.model.named_modules())
    plain = {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in vars(module).items()
        if isinstance(value, Tensor | int | float | str | tuple | list | type(None)) and not key.startswith("_")
    }
    return Kept(
        attributes=tuple((name, tuple(sorted(vars(module)))) for name, module in modules.items()),
        tensors=snapshot([plain, dict(predictor.model.state_dict()), dict(predictor.model.named_buffers())]),
        policy=kept_outside_states(predictor.policy),
    )


def test_nothing_stays_on_the_network_or_the_policy() -> None:
    predictor = micro_predictor(FIFO())
    before, own = kept(predictor), set(vars(predictor))
    short_video(predictor)
    assert before.difference(kept(predictor)) is None
    assert set(vars(predictor)) == own


@pytest.mark.parametrize("place", ["memory_attention", "memory_encoder.distiller"])
def test_control_something_left_on_the_network_is_found(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = micro_predictor(FIFO())
    before = kept(predictor)
    monkeypatch.setattr(predictor.model.get_submodule(place), "last_frame", torch.zeros(1), raising=False)
    assert before.difference(kept(predictor)) == "attributes"


def test_control_a_changed_weight_is_found() -> None:
    predictor = micro_predictor(FIFO())
    before = kept(predictor)
    bias = predictor.model.obj_ptr_proj.layers[0].bias
    bias += 1.0
    found = before.difference(kept(predictor))
    bias -= 1.0
    assert found is not None and "obj_ptr_proj.layers.0.bias" in found


@pytest.mark.full
def test_a_pass_from_a_prompt_says_what_memory_is_gone(caplog):
    """A correction long after its frame was tracked: the frames before it have left memory and are not archived."""
    for policy, archive_bytes, said in ((FIFO(), 0, True), (FIFO(), 2**30, False), (FIFO(retain_all=True), 0, False)):
        predictor = micro_predictor(policy, archive_bytes=archive_bytes)
        state = predictor.init_state(pictures(60))
        predictor.add_new_mask(state, 0, 1, blob(0))
        list(predictor.propagate_in_video(state))
        predictor.add_new_mask(state, 30, 1, blob(0, 30))
        caplog.clear()
        list(predictor.propagate_in_video(state, start_frame_idx=30, max_frame_num_to_track=1))
        assert ("frame 30 of object 1: the memory of frames" in caplog.text) is said


def test_an_archive_grows_up_to_its_budget_and_no_further() -> None:
    """The bank stays as it is; what left it is held beside it, on the host."""
    images, sizes = pictures(FRAMES), []
    for archive_bytes in (2**30, 150_000, 0):
        early, late = loads(micro_predictor(FIFO(), archive_bytes=archive_bytes), offline(images))
        assert late.state <= 1.01 * early.state
        sizes.append((late.tensor_bytes - early.tensor_bytes, late.archive))
    (grown_freely, free), (_, bounded), (grown_not, none) = sizes
    assert free > 500_000 and grown_freely > 0.5 * free
    assert 100_000 < bounded <= 150_000
    assert none == 0 and grown_not < 10_000
