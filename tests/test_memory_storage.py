"""A policy's state survives a file, and only its own policy reads it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import Bank
from sam2_mem.memory.storage import MemoryFileError, load_memory, save_memory
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


def test_reading_after_moving_is_the_same_read(tmp_path):
    state, policy = bank(), FIFO()
    moved = policy.moved(state, 100)
    here = policy.read(state, FrameContext(index=5))[0]
    there = policy.read(moved, FrameContext(index=105))[0]
    elsewhere = policy.read(moved, FrameContext(index=106))[0]
    assert here.key() == there.key()
    assert here.key() != elsewhere.key()


def test_another_policy_is_refused(tmp_path):
    save_memory(tmp_path / "m", FIFO(), bank())
    with pytest.raises(MemoryFileError, match="expected the memory of a .*OtherFIFO, got that of a .*FIFO"):
        load_memory(tmp_path / "m", OtherFIFO())


@pytest.mark.parametrize("content", [b"not a file of ours", None, {"format": "other"}, {"format": "sam2_mem.memory", "version": 99}])
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
