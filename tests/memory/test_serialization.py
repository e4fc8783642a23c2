"""A policy's state survives a file, and only its own policy reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from micro import blob, micro_predictor, pictures

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.serialization import MemoryFileError, load_memory, packed, save_memory, unpacked
from sam2_mem.types import FrameContext, MemoryEntry, MemoryTokens

POS = torch.randn(4, 8)


def entry(frame: int, *, prompt: bool = False, tokens: MemoryTokens | None = None) -> MemoryEntry:
    tokens = tokens or MemoryTokens(feat=torch.randn(4, 8).bfloat16(), pos=POS, xy=torch.rand(4, 2))
    return MemoryEntry(frame=frame, tokens=tokens, pointer=torch.randn(16), iou=0.5, objectness=2.0, is_prompt=prompt)


def bank() -> Bank:
    shared = entry(3).tokens
    return Bank(prompts=(entry(0, prompt=True),), entries=(entry(2), entry(3, tokens=shared), entry(4, tokens=shared)))


@dataclass(frozen=True, kw_only=True)
class OtherFIFO(FIFO):
    """Another class, so another kind of memory."""


def same(a: MemoryEntry, b: MemoryEntry) -> bool:
    tensors = torch.equal(a.pointer, b.pointer) and torch.equal(a.tokens.feat, b.tokens.feat)
    return tensors and (a.frame, a.iou, a.objectness, a.is_prompt) == (b.frame, b.iou, b.objectness, b.is_prompt)


def test_round_trip_keeps_values_types_and_sharing(tmp_path):
    state = bank()
    save_memory(tmp_path / "object.memory", FIFO(), state)
    loaded = load_memory(tmp_path / "object.memory", FIFO(num_maskmem=5))
    assert isinstance(loaded, Bank)
    assert all(same(a, b) for a, b in zip(loaded.all_entries(), state.all_entries(), strict=True))
    assert loaded.entries[1].tokens is loaded.entries[2].tokens
    assert loaded.entries[0].tokens.pos.data_ptr() == loaded.entries[1].tokens.pos.data_ptr()
    assert not same(loaded.entries[0], state.entries[1])


def test_tensors_that_are_not_on_the_device_are_marked(tmp_path):
    """As in memory that waits on the host while the network is on a GPU."""
    state = bank()
    content = packed(state, torch.device("meta"))
    assert "host" in str(content) and "host" not in str(packed(state, torch.device("cpu")))
    torch.save(content, tmp_path / "a.pt")
    after = unpacked(torch.load(tmp_path / "a.pt", weights_only=True), FIFO())
    assert all(same(a, b) for a, b in zip(state.all_entries(), after.all_entries()))
    tokens = [entry.tokens for entry in after.entries]
    assert tokens[1] is tokens[2]


def test_reading_after_moving_is_the_same_read(tmp_path):
    state, policy = bank(), FIFO()
    moved = state.shift_frames(100)
    here = policy.read(state, FrameContext(index=5))[0]
    there = policy.read(moved, FrameContext(index=105))[0]
    elsewhere = policy.read(moved, FrameContext(index=106))[0]
    assert here.key() == there.key()
    assert here.key() != elsewhere.key()


def test_another_policy_is_refused(tmp_path):
    save_memory(tmp_path / "m", FIFO(), bank())
    with pytest.raises(MemoryFileError, match="expected the memory of a .*OtherFIFO, got that of a .*FIFO"):
        load_memory(tmp_path / "m", OtherFIFO())


@pytest.mark.parametrize(
    "content", [b"not a file of ours", None, {"format": "other"}, {"format": "sam2_mem.memory", "version": 99}]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "m"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(MemoryFileError, match="expected a memory file"):
        load_memory(path, FIFO())


def test_foreign_classes_are_not_made(tmp_path):
    save_memory(tmp_path / "m", FIFO(), bank())
    content = torch.load(tmp_path / "m", weights_only=True)
    content["objects"][0]["type"] = "subprocess:Popen"
    torch.save(content, tmp_path / "m")
    with pytest.raises(MemoryFileError, match="expected state classes of sam2_mem"):
        load_memory(tmp_path / "m", FIFO())


def test_states_of_other_things_are_refused(tmp_path):
    with pytest.raises(TypeError, match="tensors, numbers, tuples and dataclasses"):
        save_memory(tmp_path / "m", FIFO(), object())
    assert not (tmp_path / "m").exists()


# -- through the predictor ----------------------------------------------------------------------------------------


def tracked(predictor, state, start: int, count: int) -> list[torch.Tensor]:
    return [m.clone() for _, _, m in predictor.propagate_in_video(state, start, count - 1)]


def test_an_object_goes_on_in_another_video(tmp_path):
    predictor = micro_predictor()
    video = np.stack(pictures(40))
    whole = predictor.init_state(video)
    predictor.add_new_mask(whole, 0, 1, blob(0))
    expected = tracked(predictor, whole, 0, 40)

    first = predictor.init_state(video)
    predictor.add_new_mask(first, 0, 1, blob(0))
    tracked(predictor, first, 0, 20)
    predictor.save_memory(first, 1, tmp_path / "one.memory")

    second = predictor.init_state(video[20:])
    predictor.load_memory(second, 7, tmp_path / "one.memory")
    found = tracked(predictor, second, 0, 20)
    assert second.obj_ids == [7]
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected[20:], strict=True)) < 1e-4
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected[:20], strict=True)) > 1e-2


def test_frozen_memory_stays_as_it_was(tmp_path):
    predictor = micro_predictor()
    first = predictor.init_state(np.stack(pictures(10)))
    predictor.add_new_mask(first, 0, 1, blob(0))
    tracked(predictor, first, 0, 10)
    predictor.save_memory(first, 1, tmp_path / "one.memory")
    for frozen in (True, False):
        second = predictor.init_state(np.stack(pictures(30)))
        predictor.load_memory(second, 1, tmp_path / "one.memory", frozen=frozen)
        before = [e.frame for e in second.tracker.tracks[1].state.all_entries()]
        tracked(predictor, second, 0, 30)
        assert ([e.frame for e in second.tracker.tracks[1].state.all_entries()] == before) == frozen


def test_a_stream_can_start_from_a_file(tmp_path):
    predictor = micro_predictor()
    first = predictor.init_state(np.stack(pictures(10)))
    predictor.add_new_mask(first, 0, 1, blob(0))
    tracked(predictor, first, 0, 10)
    predictor.save_memory(first, 1, tmp_path / "one.memory")
    stream = predictor.init_state()
    predictor.load_memory(stream, 1, tmp_path / "one.memory")
    index, ids, masks = predictor.track_frame(stream, pictures(11)[10])
    assert (index, ids, tuple(masks.shape)) == (0, [1], (1, 1, 64, 64))


def test_memory_may_lie_on_frames_of_the_new_video(tmp_path):
    predictor = micro_predictor()
    first = predictor.init_state(np.stack(pictures(10)))
    predictor.add_new_mask(first, 0, 1, blob(0))
    tracked(predictor, first, 0, 10)
    predictor.save_memory(first, 1, tmp_path / "one.memory")
    second = predictor.init_state(np.stack(pictures(30)))
    predictor.load_memory(second, 1, tmp_path / "one.memory", frame_idx=15)
    assert second.tracker.tracks[1].prompted_frames() == {5}
    assert len(tracked(predictor, second, 15, 5)) == 5
    assert len([*predictor.propagate_in_video(second, 15, reverse=True)]) == 16


def test_mistakes_with_memory_files(tmp_path):
    predictor = micro_predictor()
    state = predictor.init_state(np.stack(pictures(5)))
    with pytest.raises(RuntimeError, match=r"expected one of the objects \[\], got 1"):
        predictor.save_memory(state, 1, tmp_path / "m")
    predictor.add_new_mask(state, 0, 1, blob(0))
    with pytest.raises(RuntimeError, match="object 1 has no memory yet"):
        predictor.save_memory(state, 1, tmp_path / "m")
    with pytest.raises(ValueError, match="expected an object id that is not in use, got 1"):
        predictor.load_memory(state, 1, tmp_path / "m")
    with pytest.raises(MemoryFileError, match="expected a memory file, got"):
        predictor.load_memory(state, 2, tmp_path / "m")
    assert state.obj_ids == [1]
