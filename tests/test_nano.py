"""The packaged small model does what its card says, on clips it has not seen. Thresholds leave room below the
measured values."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from sam2_mem.build_sam import build_sam2, build_sam2_video_predictor
from sam2_mem.checkpoint import CheckpointError
from sam2_mem.cli.evaluate_training import correction_scores
from sam2_mem.cli.train import evaluate
from sam2_mem.config import checkpoint_dir, compose
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.synthetic.generator import make_clip
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.training.clips import Clip
from sam2_mem.training.validation import (
    NetworkMethod,
    PartialFIFO,
    Scores,
    copy_first,
    curtained,
    held_out,
    run_method,
    still,
    summarise,
)
from sam2_mem.types import FrameContext, MemoryRead

WEIGHTS = checkpoint_dir() / "sam2_mem_nano_v2.safetensors"
SEED = 45_000_000  # neither the clips to choose by nor those of the card
SIZE = 192  # at which it is tracked here: 352 says the same in three times the time
# Measured: J .923, with an emptied bank .455 of .914; noticed 1, alarms 0, found 1; on the still video .945 and, 29
# frames later, .940.
EASY, FORGETTING = 0.85, 0.3
NOTICED, ALARMS, FOUND = 0.85, 0.05, 0.6
CORRECTED = 0.4  # .66 was measured
STEADY = 0.95


@lru_cache
def predictor() -> SAM2VideoPredictor:
    return build_sam2_video_predictor("nano_v2", device="cpu", hydra_overrides_extra=[f"model.image_size={SIZE}"])


@lru_cache
def clips(level: str, count: int = 4, frames: int = 30) -> tuple[Clip, ...]:
    return tuple(held_out(level, count, num_frames=frames, first_seed=SEED))


@lru_cache
def scores(found: tuple[Clip, ...], policy: FIFO | None = None) -> Scores:
    network = NetworkMethod(predictor().model, policy or PartialFIFO(), tracker=predictor().tracker_settings)
    return summarise(run_method(network, found))


@dataclass(frozen=True, kw_only=True)
class Forgetful(FIFO):
    """Reads nothing."""

    def read(self, state: Bank, frame: FrameContext) -> Sequence[MemoryRead]:
        return (MemoryRead(items=()),)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_config_brings_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = build_sam2("nano_v2", device="cpu", apply_postprocessing=False)
    assert not [r for r in caplog.records if "random" in r.message]
    with safe_open(str(WEIGHTS), "pt") as file:
        stored = file.get_tensor("no_mem_embed")
        assert set(file.keys()) == set(model.state_dict())
    assert np.array_equal(model.no_mem_embed.detach().numpy(), stored.float().numpy())
    assert WEIGHTS.stat().st_size < 10e6
    assert sum(p.numel() for p in model.parameters()) < 2.7e6


def test_given_weights_win_and_random_means_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises((CheckpointError, FileNotFoundError)):
        build_sam2("nano_v2", tmp_path / "missing.safetensors", device="cpu")
    with caplog.at_level(logging.WARNING):
        build_sam2("nano_v2", "random", device="cpu")
    assert [r for r in caplog.records if "random" in r.message]
    config = compose("nano_v2")
    config.checkpoint = "sam2_mem_other.safetensors"
    with pytest.raises((CheckpointError, FileNotFoundError), match="sam2_mem_other"):
        build_sam2(config, device="cpu")


# -- what it can do ---------------------------------------------------------------------------------------------------


def test_it_tracks_easy_clips() -> None:
    found = clips("easy")
    copied = summarise(run_method(copy_first, found)).j
    assert scores(found).j > max(EASY, copied + 0.15)


@pytest.mark.full
def test_it_needs_its_memory() -> None:
    """With an emptied bank it does not know what to follow."""
    found = clips("easy")[:2]
    assert scores(found, Forgetful()).j < scores(found).j - FORGETTING


@pytest.mark.full
def test_it_notices_a_curtain() -> None:
    hidden = tuple(curtained(c, 12, 8) for c in clips("easy"))
    result = scores(hidden)
    assert result.noticed > NOTICED and result.alarms < ALARMS and result.found > FOUND


@pytest.mark.full
def test_it_is_steady_on_a_still_video() -> None:
    network = NetworkMethod(predictor().model, FIFO(), tracker=predictor().tracker_settings)
    outcomes = run_method(network, [still(c, 31) for c in clips("easy")])
    first, last = (float(np.mean([o.iou[k] for o in outcomes])) for k in (0, 29))
    assert first > EASY and last > STEADY * first


@pytest.mark.full
def test_a_box_counts_more_than_memory() -> None:
    """An object in a box, where memory holds a piece of the ground."""
    scores = []
    for clip in clips("easy"):
        ground = np.roll(clip.ids[0] == 1, 48, (0, 1))
        scores.append(correction_scores(predictor(), clip.frames[0], ground, clip.frames[20], clip.ids[20] == 1))
    tracked, _, box = np.mean(scores, axis=0)
    assert tracked < 0.1 and box > CORRECTED, scores


# -- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_report_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "davis", tmp_path / "report.jsonl"
    for t in range(4):
        frame = make_clip(3, level="easy", num_frames=4, height=96, width=96).frame(t)
        for folder, image in (("JPEGImages", frame.image), ("Annotations", (frame.masks == 1) * np.uint8(255))):
            path = root / folder / "480p" / "one" / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    assert evaluate(config="nano_v2", parts=["curtain", "folder"], count=1, frames=34, root=str(root), out=out) == 0
    assert evaluate(config="nano_v2", parts=["memory", "speed"], count=1, frames=8, out=out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
    means = {r["method"]: r["j"] for r in rows if r["what"].startswith("davis2016, mean")}
    assert set(means) == {"network", "copy", "flow"} and min(means.values()) > 0.3
    curtain = {r["method"]: r["noticed"] for r in rows if r["what"].startswith("curtain")}
    assert curtain["copy"] == 0.0 < curtain["network"]
    assert {r["method"] for r in rows if r["what"] == "memory, occlusion"} == {"full", "first only", "previous only"}
    assert next(r["ms"] for r in rows if r["what"].startswith("speed")) > 0
    with pytest.raises(ValueError, match="expected parts out of"):
        evaluate(config="nano_v2", parts=["jump"])
