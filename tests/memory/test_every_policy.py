"""Every policy on the packaged small model, through the command line and through a stream, with an object that comes
late."""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from helpers import NANO_128
from micro import in_tiers, one_thread  # noqa: F401
from PIL import Image

from sam2_mem.build_sam import build_policy, build_sam2_video_predictor
from sam2_mem.config import compose_video, policy_names
from sam2_mem.prompts import Prompt
from sam2_mem.synthetic.generator import make_clip
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.training.clips import Clip

ROOT = Path(__file__).resolve().parents[2]
FRAMES, LATE = 34, 6
FIRST, SECOND = 1, 2
CLEAR = 0.7  # of mean J; copying the first mask gives .31


@lru_cache
def clip() -> Clip:
    video = make_clip(30_000_005, level="easy", num_frames=FRAMES, height=128, width=128)
    frames = [video.frame(t) for t in range(FRAMES)]
    return Clip(np.stack([f.image for f in frames]), np.stack([f.masks for f in frames]))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a folder, one object's mask on the first frame, the other's on a later one."""
    root = tmp_path_factory.mktemp("data")
    (root / "frames" / "clip").mkdir(parents=True)
    for t, image in enumerate(clip().frames):
        Image.fromarray(image).save(root / "frames" / "clip" / f"{t:05d}.png")
    for t, obj_id in ((0, FIRST), (LATE, SECOND)):
        folder = root / "masks" / "clip" / f"{obj_id:03d}"
        folder.mkdir(parents=True)
        Image.fromarray((clip().ids[t] == obj_id).astype(np.uint8) * 255).save(folder / f"{t:05d}.png")
    return root


def command_line(dataset: Path, out: Path, name: str) -> dict[int, np.ndarray]:
    """Masks (T, H, W) by object."""
    path = ROOT / "tools" / "vos_inference.py"
    spec = importlib.util.spec_from_file_location("vos_inference_for_every_policy", path)
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool
    spec.loader.exec_module(tool)
    arguments = ["--sam2_cfg", NANO_128, "--device", "cpu", "--per_obj_png_file"]
    arguments += ["--base_video_dir", str(dataset / "frames"), "--input_mask_dir", str(dataset / "masks")]
    arguments += ["--output_mask_dir", str(out), "--track_object_appearing_later_in_video", f"memory_policy={name}"]
    assert tool.main(arguments) == 0
    assert json.loads((out / "run.json").read_text())["config"]["memory_policy"]["_target_"].startswith("sam2_mem.")
    masks = {obj_id: np.zeros((FRAMES, 128, 128), bool) for obj_id in (FIRST, SECOND)}
    for obj_id, stack in masks.items():
        for t in range(FRAMES):
            file = out / "clip" / f"{obj_id:03d}" / f"{t:05d}.png"
            if file.is_file():
                stack[t] = np.array(Image.open(file)) > 0
    return masks


def predictor(name: str) -> SAM2VideoPredictor:
    config = compose_video(NANO_128, ["model.binarize_prompted_masks=true"])
    return build_sam2_video_predictor(config, device="cpu", apply_postprocessing=False, memory_policy=name)


def stream(name: str) -> dict[int, np.ndarray]:
    """The same through ``track_frame``, rewritten masks put in place."""
    tracking = predictor(name)
    state = tracking.init_state()
    masks = {obj_id: np.zeros((FRAMES, 128, 128), bool) for obj_id in (FIRST, SECOND)}

    def note(frame: int, obj_ids: list[int], logits) -> None:
        for obj_id, mask in zip(obj_ids, logits):
            masks[obj_id][frame] = (mask[0] > 0).numpy()

    prompts = {0: FIRST, LATE: SECOND}
    for t, image in enumerate(clip().frames):
        given = [Prompt(prompts[t], mask=clip().ids[t] == prompts[t])] if t in prompts else []
        note(*tracking.track_frame(state, image, given))
        for frame, obj_ids, logits in tracking.revisions(state):
            note(frame, obj_ids, logits)
    for frame, obj_ids, logits in tracking.revisions(state, finish=True):
        note(frame, obj_ids, logits)
    return masks


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    union = (a | b).sum((-1, -2))
    return float(np.where(union == 0, 1.0, (a & b).sum((-1, -2)) / np.maximum(union, 1)).mean())


@pytest.mark.parametrize("name", in_tiers(policy_names(), ["fifo", "sam2long", "xmem"]))
def test_command_line_and_stream(name: str, dataset: Path, tmp_path: Path) -> None:
    written, streamed = command_line(dataset, tmp_path, name), stream(name)
    assert not written[SECOND][:LATE].any() and not streamed[SECOND][:LATE].any()
    for obj_id, since in ((FIRST, 0), (SECOND, LATE)):
        truth = clip().ids[since:] == obj_id
        assert overlap(streamed[obj_id][since:], truth) > CLEAR, (obj_id, overlap(streamed[obj_id][since:], truth))
        # written masks do not overlap, and their number of frames is known: little may differ
        assert overlap(written[obj_id], streamed[obj_id]) > 0.9


def test_control_copying_does_less_and_policies_differ() -> None:
    for obj_id, since in ((FIRST, 0), (SECOND, LATE)):
        truth = clip().ids[since:] == obj_id
        assert overlap(np.broadcast_to(truth[:1], truth.shape), truth) < CLEAR - 0.3
    assert overlap(stream("fifo")[FIRST], stream("rmem")[FIRST]) < 1.0
    assert build_policy("fifo") != build_policy("rmem")
