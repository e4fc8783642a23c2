"""Earlier import paths, names and files keep working, with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import micro_predictor, pictures
from omegaconf import OmegaConf

from sam2_mem import _moved
from sam2_mem.build_sam import build_policy
from sam2_mem.types import PointerEntry

GOLDEN = Path(__file__).parent / "golden" / "memory"
FILES = sorted(path.stem for path in GOLDEN.glob("*.memory"))


@pytest.mark.parametrize("old", sorted(_moved.MODULES))
def test_an_earlier_module_is_found_and_warns(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"{old} is now {_moved.MODULES[old]};"):
        importlib.import_module(old)
    monkeypatch.delitem(sys.modules, old, raising=False)
    package, _, leaf = old.rpartition(".")
    vars(sys.modules[package]).pop(leaf, None)  # where a name of the package was called like the module
    importlib.import_module(_moved.MODULES[old])


@pytest.mark.parametrize("old", sorted(_moved.NAMES))
def test_an_earlier_name_is_the_new_object(old: str) -> None:
    module, _, name = old.partition(":")
    new_module, _, new_name = _moved.NAMES[old].partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        earlier = getattr(importlib.import_module(module), name)
    assert earlier is getattr(importlib.import_module(new_module), new_name)


def test_unknown_names_are_still_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Pickle'"):
        importlib.import_module("sam2_mem.types").Pickle  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("sam2_mem.memory.never_was")


def test_an_earlier_target_in_a_config() -> None:
    config = OmegaConf.create({"_target_": "sam2_mem.memory.policies.xmem.XMem", "mem_every": 3})
    assert build_policy(config) == build_policy("xmem").__class__(mem_every=3)


# -- memory files of the first release, written by its code: 45 frames of `pictures`, prompts on 0 and 20 -----------------


@pytest.mark.parametrize("name", FILES)
def test_a_memory_file_of_the_first_release_loads_and_tracks_on(name: str) -> None:
    predictor = micro_predictor(name)
    state = predictor.init_state(np.stack(pictures(60)[46:]))
    predictor.load_memory(state, 1, GOLDEN / f"{name}.memory")
    memory = state.tracker.tracks[1].state
    # a frame without the object leaves nothing in DAM4SAM's memory, so there its last prompt is the newest entry
    prompted = [-21, -1] if name == "dam4sam" else [-46, -26]
    assert memory.prompted_frames() == prompted or name == "hq_smem_literal"
    assert all(len(e.tokens) for e in (*memory.prompts, *memory.entries))
    assert all(isinstance(e, PointerEntry) for e in memory.pointers)
    masks = torch.stack([m for _, _, m in predictor.propagate_in_video(state, 0)])
    expected = np.load(GOLDEN / "masks.npz")[name]
    assert np.abs(masks.flatten(1)[:, ::97].numpy() - expected).max() < 1e-3


def test_control_other_memory_gives_other_masks() -> None:
    expected = np.load(GOLDEN / "masks.npz")
    assert np.abs(expected["fifo"] - expected["keyframe"]).max() > 1e-2


def test_there_is_a_file_for_every_policy_that_writes_another_state() -> None:
    assert {"fifo", "rmem", "hq_smem", "xmem", "sam2long", "samurai", "dam4sam", "keyframe", "distilled"} <= set(FILES)
