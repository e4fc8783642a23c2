"""tools/vos_inference.py and what it stands on, with a model small enough for a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.cli import vos as tool
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import Needs
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.video_predictor import PredictorSettings, SAM2VideoPredictor
from sam2_mem.tracking.vos import Clicks, MaskRules, PromptPlan, plan_from_clicks, plan_from_folder, segment
from sam2_mem.types import Revision
from sam2_mem.video import open_video, read_mask_png, read_rle

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "vos_inference.py"
HEIGHT, WIDTH = 48, 64
PALETTE = np.array([[0, 0, 0], [10, 200, 30], [240, 5, 60], [1, 2, 3]], np.uint8)

MICRO = """# @package _global_
defaults:
  - /base/sam2.1
  - _self_
model:
  image_size: 64
  decoder_mlp_width: 64
  decoder_iou_width: 32
  image_encoder:
    trunk: {embed_dim: 8, num_heads: 1, stages: [1, 1, 1, 1], global_att_blocks: [2],
            window_pos_embed_bkg_spatial_size: [4, 4], window_spec: [4, 4, 4, 2]}
    neck: {d_model: 32, backbone_channel_list: [64, 32, 16, 8]}
  memory_attention: {width: 32, memory_width: 16, num_layers: 1, feedforward: 64, dropout: 0.0}
  memory_encoder: {width: 32, memory_width: 16}
  pointer_time: {width: 32, memory_width: 16}
"""


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vos_inference", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vos_inference"] = module
    spec.loader.exec_module(module)
    return module


assert load_tool().main is tool.main


# -- a small model and small videos ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Micro:
    config: Path
    checkpoint: Path

    def arguments(self) -> list[str]:
        return ["--sam2_cfg", str(self.config), "--sam2_checkpoint", str(self.checkpoint), "--device", "cpu"]

    def predictor(self, **kwargs) -> SAM2VideoPredictor:
        return build_sam2_video_predictor(self.config, self.checkpoint, "cpu", apply_postprocessing=False, **kwargs)


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """Random weights, changed so that masks are neither empty nor full and follow what is in memory."""
    folder = tmp_path_factory.mktemp("micro")
    config = folder / "micro.yaml"
    config.write_text(MICRO)
    torch.manual_seed(5)
    model = build_sam2_video_predictor(config, None, "cpu", apply_postprocessing=False).model
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "output_hypernetworks_mlps" in name and ".layers.2." in name:
                value *= 10
            if "cross_attn_image.out_proj" in name:
                value *= 3
            if name.endswith("pred_obj_score_head.layers.2.bias"):
                value += 0.5
    checkpoint = folder / "micro.pt"
    torch.save({"model": model.state_dict()}, checkpoint)
    return Micro(config, checkpoint)


def picture(index: int, seed: int) -> np.ndarray:
    """A red and a blue square on noise, moving."""
    rng = np.random.default_rng([seed, index])
    image = rng.integers(60, 120, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for obj_id, (y, x) in corners(index).items():
        image[y : y + 14, x : x + 14] = (220, 30, 30) if obj_id == 1 else (30, 30, 220)
    return image


def corners(index: int) -> dict[int, tuple[int, int]]:
    return {1: (4 + index % 20, 6), 2: (28, 10 + index % 30)}


def ids_at(index: int, objects: Sequence[int] = (1, 2)) -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for obj_id in objects:
        y, x = corners(index)[obj_id]
        ids[y : y + 14, x : x + 14] = obj_id
    return ids


def save_mask(path: Path, ids: np.ndarray, palette: np.ndarray | None = PALETTE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if palette is not None:
        image.putpalette(palette.tobytes())
    image.save(path)


@dataclass(frozen=True)
class Dataset:
    """Videos in ``frames`` and prompts in ``masks``, below ``root``."""

    root: Path

    @property
    def frames(self) -> Path:
        return self.root / "frames"

    @property
    def masks(self) -> Path:
        return self.root / "masks"

    def video(self, name: str, count: int = 8, *, pattern: str = "{:05d}", seed: int = 0) -> None:
        (self.frames / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(index, seed)).save(self.frames / name / f"{pattern.format(index)}.jpg", quality=95)

    def mask(self, name: str, stem: str = "00000", ids: np.ndarray | None = None, **kwargs) -> None:
        save_mask(self.masks / name / f"{stem}.png", ids_at(0) if ids is None else ids, **kwargs)

    def arguments(self) -> list[str]:
        return ["--base_video_dir", str(self.frames), "--input_mask_dir", str(self.masks)]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


@pytest.fixture
def run(micro: Micro, data: Dataset) -> Callable[..., int]:
    """Run the tool on the data set, in this process; returns its exit code."""

    def call(out: Path, *extra: object) -> int:
        return tool.main([*micro.arguments(), *data.arguments(), "--output", str(out), *map(str, extra)])

    return call


def tree(folder: Path) -> dict[str, bytes]:
    """All masks below a folder, by their relative paths."""
    files = [p for p in folder.rglob("*") if p.suffix == ".png" or p.name.endswith("_masks.json")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def ids_in(path: Path) -> np.ndarray:
    return read_mask_png(path).ids


def record(out: Path, name: str = "run.json") -> dict:
    return json.loads((out / name).read_text())


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / max((one | other).sum(), 1)


# -- layouts --------------------------------------------------------------------------------------------------------


def test_palette_layout(run, data, tmp_path):
    data.video("a")
    data.mask("a")
    assert run(tmp_path / "out") == 0
    files = sorted((tmp_path / "out" / "a").iterdir())
    assert [f.name for f in files] == [f"{i:05d}.png" for i in range(8)]
    first = read_mask_png(files[0])
    assert (first.palette[:4] == PALETTE).all() and first.ids.shape == (HEIGHT, WIDTH)
    assert iou(first.ids == 1, ids_at(0) == 1) > 0.6 and iou(first.ids == 2, ids_at(0) == 2) > 0.6
    seen = np.stack([ids_in(f) for f in files])
    assert set(np.unique(seen)) == {0, 1, 2}
    assert any((a != b).any() for a, b in pairwise(seen[1:])), "the tracked masks never change"


def test_masks_are_those_of_the_predictor(run, micro, data, tmp_path):
    data.video("a", 20)
    data.mask("a")
    assert run(tmp_path / "out") == 0
    predictor = micro.predictor(hydra_overrides_extra=["++model.non_overlap_masks=true"])
    state = predictor.init_state(data.frames / "a")
    for obj_id in (1, 2):
        predictor.add_new_mask(state, 0, obj_id, ids_at(0) == obj_id)
    for index, obj_ids, logits in predictor.propagate_in_video(state):
        ids = sum(obj_id * (logits[i, 0] > 0).numpy() for i, obj_id in enumerate(obj_ids))
        assert (ids == ids_in(tmp_path / "out" / "a" / f"{index:05d}.png")).all()
    assert index == 19


def test_value_255_is_an_object_in_and_out(run, data, tmp_path):
    data.video("a", 3)
    data.mask("a", ids=np.where(ids_at(0) == 1, 255, 0).astype(np.uint8), palette=None)
    assert run(tmp_path / "out") == 0
    assert set(np.unique(ids_in(tmp_path / "out" / "a" / "00000.png"))) == {0, 255}
    assert run(tmp_path / "void", "--ignore_ids", "255") == 1
    assert "at least one object" in record(tmp_path / "void")["videos"][0]["error"]


def test_per_object_layout(run, data, tmp_path):
    data.video("a", 4)
    for obj_id, folder in ((1, "000"), (2, "017")):
        data.mask(f"a/{folder}", ids=(ids_at(0) == obj_id).astype(np.uint8), palette=None)
    data.mask("a/020", ids=np.zeros((HEIGHT, WIDTH), np.uint8), palette=None)
    out = tmp_path / "out"
    assert run(out, "--per_obj_png_file") == 0
    assert set(tree(out)) == {f"a/{o}/{i:05d}.png" for o in ("000", "017", "020") for i in range(4)}
    first = ids_in(out / "a" / "017" / "00000.png")
    assert set(np.unique(first)) == {0, 1} and iou(first > 0, ids_at(0) == 2) > 0.6
    assert not ids_in(out / "a" / "020" / "00000.png").any(), "an empty mask is a prompt: the object is not here"
    assert record(out)["config"]["predictor"]["non_overlap_masks"] is False
    assert run(tmp_path / "palette") == 1, "the other layout has to be asked for"
    assert "--per_obj_png_file" in record(tmp_path / "palette")["videos"][0]["error"]


def test_objects_do_not_overlap_and_the_lower_id_wins_a_tie(micro):
    predictor = micro.predictor()
    predictor.settings = PredictorSettings(non_overlap_masks=True)
    mask = ids_at(0) == 1
    plan = PromptPlan((3, 7), {0: lambda frame: [Prompt(obj_id=7, mask=mask), Prompt(obj_id=3, mask=mask)]})
    source = open_video([picture(0, 0)])
    shown = next(segment(predictor, predictor.init_state(source), plan))
    assert shown.masks[3].any() and not shown.masks[7].any()
    predictor.settings = PredictorSettings(non_overlap_masks=False)
    shown = next(segment(predictor, predictor.init_state(source), plan))
    assert shown.masks[3].any() and (shown.masks[3] == shown.masks[7]).all()


def test_score_thresh(run, data, tmp_path):
    data.video("a", 3)
    data.mask("a", ids=ids_at(0, [1]))
    areas = []
    for thresh in (-3, 0, 3):
        assert run(tmp_path / f"out{thresh}", "--score_thresh", thresh) == 0
        areas.append(sum(int((ids_in(f) > 0).sum()) for f in (tmp_path / f"out{thresh}" / "a").iterdir()))
    assert areas[0] > areas[1] > areas[2]


def test_frames_keep_their_names_in_natural_order(run, data, tmp_path):
    data.video("a", 12, pattern="frame{}")
    data.mask("a", "frame0")
    assert run(tmp_path / "out") == 0
    assert {f.stem for f in (tmp_path / "out" / "a").iterdir()} == {f"frame{i}" for i in range(12)}
    padded = Dataset(tmp_path / "padded")
    padded.video("a", 12)
    padded.mask("a")
    assert run(tmp_path / "out2", *padded.arguments()) == 0
    for index in range(12):
        renamed, plain = tmp_path / "out" / "a" / f"frame{index}.png", tmp_path / "out2" / "a" / f"{index:05d}.png"
        assert renamed.read_bytes() == plain.read_bytes()


def test_video_files_stand_beside_folders(run, data, tmp_path):
    data.frames.mkdir()
    video = cv2.VideoWriter(str(data.frames / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (WIDTH, HEIGHT))
    for index in range(5):
        video.write(picture(index, 0)[..., ::-1])
    video.release()
    data.video("folder", 2)
    (data.frames / "clip.mp4").rename(data.frames / "clip.MP4")
    for name in ("clip", "folder"):
        data.mask(name)
    assert run(tmp_path / "out") == 0
    assert set(tree(tmp_path / "out")) == {
        *(f"clip/{i:05d}.png" for i in range(5)),
        *(f"folder/{i:05d}.png" for i in range(2)),
    }


# -- when prompts come ----------------------------------------------------------------------------------------------


def late_data(data: Dataset) -> None:
    """Object 1 from frame 0, object 2 from frame 4, as one PNG per object."""
    data.video("a", 10)
    data.mask("a/001", ids=(ids_at(0) == 1).astype(np.uint8), palette=None)
    data.mask("a/002", ids=np.zeros((HEIGHT, WIDTH), np.uint8), palette=None)
    data.mask("a/002", "00004", (ids_at(4) == 2).astype(np.uint8), palette=None)
    data.mask("a/002", "00007", (ids_at(0) == 2).astype(np.uint8), palette=None)


LATE = "--track_object_appearing_later_in_video"


def test_late_objects_share_one_pass(run, data, tmp_path, monkeypatch):
    late_data(data)
    encoded = []
    encode = SAM2VideoPredictor.encode
    monkeypatch.setattr(SAM2VideoPredictor, "encode", lambda self, f: encoded.append(f.index) or encode(self, f))
    out = tmp_path / "out"
    assert run(out, "--per_obj_png_file", LATE) == 0
    assert encoded == list(range(10)), "every frame is encoded once"
    masks = np.stack([ids_in(out / "a" / "002" / f"{i:05d}.png") for i in range(10)])
    assert not masks[:4].any() and iou(masks[4] > 0, ids_at(4) == 2) > 0.6 and masks[5:].any()


def test_late_object_is_as_it_would_be_alone(run, data, tmp_path):
    late_data(data)
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert run(both, "--per_obj_png_file", LATE) == 0
    assert run(alone, "--per_obj_png_file", LATE, "--ignore_ids", "1") == 0
    only = {name: content for name, content in tree(both).items() if "/002/" in name}
    assert only == tree(alone) and len(only) == 10
    (data.masks / "a" / "002" / "00004.png").unlink()
    other = tmp_path / "other"
    assert run(other, "--per_obj_png_file", LATE, "--ignore_ids", "1") == 0
    assert tree(other) != only, "the control: from frame 7 on it is another track"


def test_later_masks_of_a_known_object_count_only_with_use_all_masks(run, data, tmp_path):
    late_data(data)
    first, every = tmp_path / "first", tmp_path / "every"
    assert run(first, "--per_obj_png_file", LATE) == 0
    assert run(every, "--per_obj_png_file", LATE, "--use_all_masks") == 0
    target = ids_at(0) == 2
    seventh = [iou(ids_in(out / "a" / "002" / "00007.png") > 0, target) for out in (first, every)]
    assert seventh[0] < 0.6 < seventh[1]
    for index in range(7):
        same = [(out / "a" / "002" / f"{index:05d}.png").read_bytes() for out in (first, every)]
        assert same[0] == same[1], "a prompt takes effect from its own frame on"


def test_use_all_masks_in_the_palette_layout(run, data, tmp_path):
    data.video("a", 6)
    data.mask("a", "00000", ids_at(0, [1]))
    data.mask("a", "00003", ids_at(12))
    assert run(tmp_path / "all", "--use_all_masks") == 1
    error = record(tmp_path / "all")["videos"][0]["error"]
    assert "got [2] first in 00003.png" in error and LATE in error
    assert run(tmp_path / "late", "--use_all_masks", LATE) == 0
    third = ids_in(tmp_path / "late" / "a" / "00003.png")
    assert iou(third == 1, ids_at(12) == 1) > 0.6 and iou(third == 2, ids_at(12) == 2) > 0.6
    assert not (ids_in(tmp_path / "late" / "a" / "00002.png") == 2).any()
    assert run(tmp_path / "first") == 0
    assert record(tmp_path / "first")["videos"][0]["objects"] == [1]


def test_frames_before_the_first_prompt_are_empty_and_not_encoded(run, data, tmp_path, monkeypatch):
    data.video("a", 5)
    data.mask("a", "00003")
    assert run(tmp_path / "default") == 1
    assert LATE in record(tmp_path / "default")["videos"][0]["error"]
    encoded = []
    encode = SAM2VideoPredictor.encode
    monkeypatch.setattr(SAM2VideoPredictor, "encode", lambda self, f: encoded.append(f.index) or encode(self, f))
    assert run(tmp_path / "late", LATE) == 0
    assert encoded == [3, 4]
    empty = [not ids_in(tmp_path / "late" / "a" / f"{i:05d}.png").any() for i in range(5)]
    assert empty == [True, True, True, False, empty[4]]


def test_masks_that_belong_to_no_frame(micro, data, caplog):
    data.video("a", 3)
    data.mask("a", "00000")
    data.mask("a", "00009")
    with open_video(data.frames / "a") as source:
        plan = plan_from_folder(data.masks / "a", source, MaskRules(late=True))
    assert list(plan.at) == [0] and "belong to no frame, e.g. 00009.png" in caplog.text
    (data.masks / "a" / "00000.png").unlink()
    with open_video(data.frames / "a") as source, pytest.raises(ValueError, match="called like 00000, got 00009.png"):
        plan_from_folder(data.masks / "a", source, MaskRules(late=True))


def test_a_mask_of_another_shape_is_refused(run, data, tmp_path):
    data.video("a", 2)
    data.mask("a", ids=np.ascontiguousarray(ids_at(0).T))
    assert run(tmp_path / "out") == 1
    assert "transposed" in record(tmp_path / "out")["videos"][0]["error"]


# -- policies that rewrite ------------------------------------------------------------------------------------------


class Rewriting(FIFO):
    """Shows what it is told two frames later: everything."""

    needs = Needs(revise=2)

    def revise(self, state, frame):
        logits = torch.full((16, 16), 5.0)
        return [Revision(frame=frame.index - 2, logits=logits, iou=1.0, objectness=1.0)] if frame.index >= 2 else []

    def finish(self, state):
        last = state.entries[-1].frame
        return [Revision(frame=last, logits=torch.full((16, 16), -5.0), iou=1.0, objectness=1.0)]


def test_revised_masks_are_written(micro):
    predictor = micro.predictor(memory_policy=Rewriting())
    predictor.settings = PredictorSettings()
    source = open_video([picture(i, 0) for i in range(6)])
    plan = plan_from_clicks([Clicks(obj_id=4, box=(6, 4, 20, 18))])
    shown = list(segment(predictor, predictor.init_state(source), plan))
    assert [s.frame.index for s in shown] == list(range(6))
    assert [s.masks[4].all() for s in shown[:4]] == [True] * 4 and not shown[5].masks[4].any()


# -- long videos ----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_memory_stays_flat(micro):
    predictor = micro.predictor()
    source = open_video(picture(i % 20, 0) for i in range(220))
    state = predictor.init_state(source)
    plan = plan_from_clicks([Clicks(obj_id=i, box=(6, 4, 20, 18)) for i in (1, 2)])
    held = {}
    for shown in segment(predictor, state, plan):
        held[shown.frame.index] = (state.memory_bytes(), source.held_frames)
    assert len(held) == 220 and held[0][0] < held[59][0], "the control: memory fills at first"
    assert held[219][0] <= 1.01 * held[59][0] and held[219][1] <= 1.01 * held[59][1]
    keeping = micro.predictor(hydra_overrides_extra=["memory_policy.retain_all=true"])
    state = keeping.init_state(open_video(picture(i % 20, 0) for i in range(80)))
    sizes = [state.memory_bytes() for _ in segment(keeping, state, plan)]
    assert sizes[79] > 1.2 * sizes[59], "the control: a policy that keeps everything is noticed"


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_killed_run_resumes_to_the_same_tree(run, micro, data, tmp_path):
    for name in ("a", "b", "c"):
        data.video(name, 60 if name == "b" else 4, seed=ord(name))
        data.mask(name)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, TOOL, *micro.arguments(), *data.arguments(), "--save_rle", "--output", killed]
    command += ["--checkpoint_every", 4]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [str(c) for c in command], env=os.environ | threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    patience = time.monotonic() + 120
    while len(list((killed / "b").glob("*.png"))) < 5:
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (killed / ".vos" / "done" / "a.json").exists() and not (killed / ".vos" / "done" / "b.json").exists()
    assert not record(killed)["complete"]
    assert all(ids_in(f).shape == (HEIGHT, WIDTH) for f in (killed / "b").glob("*.png")), "no file is half-written"
    before = (killed / "a" / "00001.png").stat().st_mtime_ns
    assert run(whole, "--save_rle") == 0
    assert tree(killed) != tree(whole)
    assert run(killed, "--save_rle", "--resume") == 0
    assert tree(killed) == tree(whole) and len(tree(whole)) == 71
    assert [v["resumed"] for v in record(killed)["videos"]] == [True, False, False]
    assert record(killed)["videos"][1]["went_on_at"] >= 4
    assert not any((killed / ".vos" / "checkpoints").iterdir())
    assert (killed / "a" / "00001.png").stat().st_mtime_ns == before
    assert not [p for p in killed.rglob("*") if p.name.endswith((".part", ".jsonl")) and p.parent.name != ".vos"]


def test_runs_that_share_take_the_longest_first_and_do_nothing_twice(run, data, tmp_path, caplog):
    for name, count in (("a", 2), ("b", 5), ("c", 3)):
        data.video(name, count)
        data.mask(name)
    data.video("d", 4)  # without a prompt: it fails
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    caplog.set_level("INFO")
    assert run(whole) == 1
    assert run(shared, "--share") == 1
    assert tree(shared) == tree(whole)
    [log] = shared.glob("run.*.json")
    videos = json.loads(log.read_text())["videos"]
    assert [v["name"] for v in videos] == ["b", "d", "c", "a"]
    assert [v["name"] for v in videos if v["error"]] == ["d"]
    assert run(shared, "--share") == 1, "what has failed in an earlier run is tried again, once"
    videos = json.loads(log.read_text())["videos"]
    assert [(v["name"], v["resumed"]) for v in videos] == [("d", False), ("a", True), ("b", True), ("c", True)]
    assert not any((shared / ".vos" / "claims").iterdir())


@pytest.mark.full
@pytest.mark.extended
def test_a_run_takes_over_the_video_of_one_that_was_killed(micro, data, run, tmp_path):
    for name, count in (("a", 40), ("b", 80)):
        data.video(name, count, seed=ord(name))
        data.mask(name)
    shared, whole = tmp_path / "shared", tmp_path / "whole"
    command = [sys.executable, TOOL, *micro.arguments(), *data.arguments(), "--share", "--output", shared]
    first, second = (subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True) for _ in range(2))
    patience = time.monotonic() + 120
    while len(list((shared / "b").glob("*.png"))) < 5:
        assert first.poll() is None and second.poll() is None and time.monotonic() < patience
        time.sleep(0.005)
    [claim] = (shared / ".vos" / "claims").glob("b,*")
    victim, survivor = (first, second) if json.loads(claim.read_text())["pid"] == first.pid else (second, first)
    victim.kill()
    victim.communicate()
    _, log = survivor.communicate(timeout=120)
    assert survivor.returncode == 0 and "'b' is taken over from a run that has died" in log
    assert run(whole) == 0
    assert tree(shared) == tree(whole) and len(tree(whole)) == 120


class Stopped(BaseException):
    """The process is taken away."""


def stop_after(count: int, monkeypatch) -> None:
    """Runs end within the first video, after so many frames."""

    def progress(frames, name, total):
        for number, frame in enumerate(frames, 1):
            yield frame
            if number == count:
                raise Stopped

    monkeypatch.setattr(tool, "show_progress", progress)


EVERYTHING = ("--save_rle", "--save_overlay", "--contact_sheet", "--format", "coco,yolo")


@pytest.mark.parametrize("layout", ["palette", pytest.param("per_object", marks=pytest.mark.full)])
def test_a_video_that_was_cut_off_goes_on_with_equal_files(layout, run, micro, data, tmp_path, monkeypatch, caplog):
    data.video("a", 11)
    extra = [*EVERYTHING, "--checkpoint_every", "3"]
    if layout == "palette":
        data.mask("a")
        data.mask("a", "00008", ids=ids_at(8))
        extra.append("--use_all_masks")
    else:
        for obj_id in (1, 2):
            data.mask(f"a/{obj_id:03d}", ids=(ids_at(0) == obj_id).astype(np.uint8), palette=None)
        extra.append("--per_obj_png_file")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, *extra) == 0
    with monkeypatch.context() as stopped:
        stop_after(5, stopped)
        with pytest.raises(Stopped):
            run(cut, *extra)
    encoded = []
    encode = SAM2VideoPredictor.encode
    monkeypatch.setattr(SAM2VideoPredictor, "encode", lambda self, f: encoded.append(f.index) or encode(self, f))
    caplog.set_level("INFO")
    assert run(cut, *extra, "--resume") == 0
    assert "a goes on at frame 00003" in caplog.text
    assert encoded == list(range(3, 11))
    of_whole, of_cut = everything(whole), everything(cut)
    videos = {name for name in of_whole if name.endswith(".mp4")}  # an encoder with threads need not repeat its bytes
    assert of_whole.keys() == of_cut.keys() and videos
    assert {k: v for k, v in of_cut.items() if k not in videos} == {
        k: v for k, v in of_whole.items() if k not in videos
    }
    measured = dict.fromkeys(
        ("seconds", "frames_per_second", "state_bytes"), 0
    )  # views of one storage are apart on disk
    report = record(whole)["videos"][0] | measured | {"went_on_at": 3}
    assert record(cut)["videos"][0] | measured == report


def everything(folder: Path) -> dict[str, bytes]:
    """All results of a run but its notes."""
    files = (p for p in folder.rglob("*") if p.is_file() and ".vos" not in p.parts and p.name != "run.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_a_video_whose_masks_are_gone_begins_anew(run, data, tmp_path, monkeypatch, caplog):
    data.video("a", 6)
    data.mask("a")
    out = tmp_path / "out"
    extra = ["--checkpoint_every", "2"]
    with monkeypatch.context() as stopped:
        stop_after(5, stopped)
        with pytest.raises(Stopped):
            run(out, *extra)
    (out / "a" / "00002.png").unlink()
    assert run(out, *extra, "--resume") == 0
    assert "a begins anew: its masks are missing" in caplog.text
    assert record(out)["videos"][0]["went_on_at"] == 0 and len(tree(out)) == 6


def test_what_cannot_be_saved_is_said_before_the_work(run, micro, data, tmp_path, capsys, caplog):
    data.video("a", 3)
    data.mask("a")
    unsettled = ["memory_policy=sam2long", "memory_policy.max_lag=null"]
    assert run(tmp_path / "out", "--checkpoint_every", "100", *unsettled) == 2
    assert "SAM2Long may change the masks of more than 1024 earlier frames" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    caplog.set_level("INFO")
    assert run(tmp_path / "out", *unsettled) == 0
    assert "without checkpoints within a video: SAM2Long" in caplog.text
    overlapping = ["++predictor.non_overlap_masks=false", "--save_rle"]
    assert run(tmp_path / "other", "--checkpoint_every", "100", *overlapping) == 2
    assert "--per_obj_png_file" in capsys.readouterr().err
    stream = ["--video", "rtsp://camera", "--box", "1,2,3,4", "--output", str(tmp_path), "--checkpoint_every", "9"]
    with pytest.raises(SystemExit):
        tool.main([*micro.arguments(), *stream])
    assert "expected --checkpoint_every with a video that can be read again" in capsys.readouterr().err


def test_resume_does_again_what_is_not_complete(run, data, tmp_path):
    for name in ("a", "b"):
        data.video(name, 3)
        data.mask(name)
    out = tmp_path / "out"
    assert run(out) == 0
    whole = tree(out)
    (out / "b" / "00002.png").unlink()
    assert run(out, "--resume") == 0
    assert tree(out) == whole
    assert [v["resumed"] for v in record(out)["videos"]] == [True, False]
    assert run(out, "--resume", "--save_rle") == 0, "a new kind of output is missing everywhere"
    assert [v["resumed"] for v in record(out)["videos"]] == [False, False]
    assert read_rle(out / "a_masks.json").frames[0].masks().keys() == {1, 2}


def test_results_of_other_settings_are_not_mixed(run, data, tmp_path, capsys):
    data.video("a", 3)
    data.mask("a")
    out = tmp_path / "out"
    assert run(out) == 0
    before = tree(out)
    for resume in ([], ["--resume"]):
        assert run(out, *resume, "memory_policy.num_maskmem=3", "--score_thresh", "1") == 2
        message = capsys.readouterr().err
        assert "config.memory_policy.num_maskmem: 7 there, 3 now" in message
        assert "arguments.score_thresh: not set there, 1.0 now" in message
    assert tree(out) == before
    assert run(out) == 0, "the same settings may run again"
    (out / ".vos" / "settings.json").unlink()
    assert run(out) == 2
    assert "unknown settings" in capsys.readouterr().err


def test_shards_join_to_the_same_tree(run, data, tmp_path):
    names = ["a", "b", "c"]
    for name in names:
        data.video(name, 2, seed=ord(name))
        data.mask(name)
    joined, whole = tmp_path / "joined", tmp_path / "whole"
    for shard in (1, 0):
        assert run(joined, "--num_shards", 2, "--shard_id", shard) == 0
    assert run(whole) == 0
    assert tree(joined) == tree(whole)
    done = [[v["name"] for v in record(joined, f"run.shard{i}of2.json")["videos"]] for i in (0, 1)]
    assert done == [["a", "c"], ["b"]] and not (joined / "run.json").exists()


def test_run_json(run, micro, data, tmp_path):
    data.video("a", 4)
    data.mask("a")
    assert run(tmp_path / "out", "memory_policy.num_maskmem=5", "--seed", 3) == 0
    run_json = record(tmp_path / "out")
    assert run_json["config_name"] == str(micro.config)
    assert run_json["config"]["memory_policy"]["num_maskmem"] == 5
    assert run_json["config"]["predictor"]["non_overlap_masks"] is True
    weights = run_json["weights"]
    assert weights["random"] is False and weights["path"] == str(micro.checkpoint)
    assert weights["sha256"] == tool.sha256_of(micro.checkpoint)
    assert set(run_json["versions"]) == {"python", "torch", "sam2_mem", "cuda"}
    assert run_json["versions"]["torch"] == torch.__version__ and run_json["seed"] == 3
    assert run_json["device"]["type"] == "cpu" and run_json["device"]["precision"] == "float32"
    assert run_json["device"]["name"] and run_json["command"] and "git_commit" in run_json
    (video,) = run_json["videos"]
    assert (video["name"], video["frames"], video["objects"], video["size"]) == ("a", 4, [1, 2], [HEIGHT, WIDTH])
    assert video["seconds"] > 0 and video["frames_per_second"] > 0 and video["state_bytes"] > 0
    assert run_json["totals"]["frames"] == 4 and run_json["totals"]["failed"] == [] and run_json["complete"]
    assert run_json["memory"]["peak_rss_bytes"] > 50 * 2**20
    assert run_json["memory"]["state_bytes"] == video["state_bytes"]


def test_a_broken_video_does_not_take_the_rest_along(run, data, tmp_path, capsys):
    for name in ("a", "b"):
        data.video(name, 6)
        data.mask(name)
    whole = tmp_path / "whole"
    assert run(whole) == 0
    broken = data.frames / "a" / "00003.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    out = tmp_path / "out"
    assert run(out, "--save_overlay") == 1
    assert "failed: a: ValueError: cannot read frame 3" in capsys.readouterr().err
    kept = {name: content for name, content in tree(whole).items() if name.startswith("b/") or name < "a/00003"}
    assert tree(out) == kept and len(kept) == 9
    assert (out / "b_overlay.mp4").exists() and not (out / "a_overlay.mp4").exists()
    videos = record(out)["videos"]
    assert [v["frames"] for v in videos] == [3, 6] and videos[1]["error"] is None
    assert not (out / ".vos" / "done" / "a.json").exists()


def test_missing_masks_and_videos_are_told(run, data, tmp_path):
    data.video("a", 2)
    names = tmp_path / "names.txt"
    names.write_text("\na\n\n  nowhere \n")
    assert run(tmp_path / "out", "--video_list_file", names) == 1
    errors = [v["error"] for v in record(tmp_path / "out")["videos"]]
    assert "no masks to start from" in errors[0] and str(data.masks / "a") in errors[0]
    assert "no video 'nowhere'" in errors[1] and len(errors) == 2


def test_mistakes_end_with_an_explanation(run, micro, data, tmp_path, capsys):
    data.video("a", 2)
    data.mask("a")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    for extra, told in [
        (["model.imge_size=64"], "expected overrides of keys that exist"),
        (["memory_policy=nothing"], "expected a memory policy out of"),
        (["--base_video_dir", tmp_path / "no"], "expected a folder of videos"),
        (["--video_list_file", tmp_path / "no.txt"], "expected a list of video names"),
        (["--video_list_file", empty], "expected at least one video"),
        (["--sam2_cfg", "sam3"], "expected the name or the path of a model config"),
        (["--sam2_checkpoint", tmp_path / "no.pt"], "download_ckpts.sh"),
        (["--sam2_checkpoint", "none"], "names no checkpoint: expected --sam2_checkpoint FILE"),
        (["--device", "tpu9"], "expected a device"),
    ]:
        assert run(tmp_path / "out", *extra) == 2, extra
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stray"], "changes to the config as key=value, got stray"),
        (["--num_shards", "2", "--shard_id", "2"], "0 <= shard_id < num_shards"),
        (["--box", "1,2,3,4"], "--box together with --video"),
        (["--video", "x.mp4"], "--video with --base_video_dir"),
        (["--max_frames", "0"], "--max_frames >= 1"),
    ],
)
def test_usage_errors(run, tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "out", *arguments)
    assert stopped.value.code == 2 and told in capsys.readouterr().err


# -- weights --------------------------------------------------------------------------------------------------------


def test_random_weights_are_recorded_and_seeded(run, data, tmp_path, caplog):
    data.video("a", 2)
    data.mask("a", ids=ids_at(0, [1]))
    trees = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"out{number}"
        assert run(out, "--sam2_checkpoint", "random", "--seed", seed, "--score_thresh", -4) == 0
        assert record(out)["weights"] == {"random": True, "seed": seed, "path": None, "sha256": None}
        trees.append(record(out)["settings_hash"])
    assert "RANDOM WEIGHTS" in caplog.text
    assert trees[0] == trees[1] != trees[2]
    assert tree(tmp_path / "out0") == tree(tmp_path / "out1")


def test_a_config_may_name_its_weights(micro, data, tmp_path):
    data.video("a", 2)
    data.mask("a")
    config = tmp_path / "named.yaml"
    config.write_text(MICRO + f"checkpoint: {micro.checkpoint}\n")
    for asked in ([], ["--sam2_checkpoint", "none"]):
        out = tmp_path / f"out{len(asked)}"
        model = ["--sam2_cfg", str(config), "--device", "cpu", *asked]
        assert tool.main([*model, *data.arguments(), "--output", str(out)]) == 0
        assert record(out)["weights"]["path"] == str(micro.checkpoint)


def test_a_config_may_ask_for_random_weights(micro, data, tmp_path, caplog):
    data.video("a", 2)
    data.mask("a")
    config = tmp_path / "random.yaml"
    config.write_text(MICRO + "checkpoint: random\n")
    out = tmp_path / "out"
    assert tool.main(["--sam2_cfg", str(config), *data.arguments(), "--output", str(out), "--device", "cpu"]) == 0
    assert record(out)["weights"]["random"] is True and "RANDOM WEIGHTS" in caplog.text


def test_official_configs_look_for_their_official_file(data, tmp_path, capsys, monkeypatch):
    data.video("a", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "checkpoint_dir", lambda: tmp_path / "checkpoints")
    large = "configs/sam2.1/sam2.1_hiera_l.yaml"
    for config, file in ((None, "base_plus"), ("sam2.1_hiera_t", "tiny"), (large, "large")):
        chosen = [] if config is None else ["--sam2_cfg", config]
        assert tool.main([*data.arguments(), "--output", "out", *chosen]) == 2
        message = capsys.readouterr().err
        assert f"run `sam2-mem download sam2.1_hiera_{file} --dir checkpoints` to download it" in message


def test_one_video_without_weights_takes_the_small_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tool, "checkpoint_dir", lambda: tmp_path / "checkpoints")
    arguments = tool.parse_arguments(["--video", "x.mp4", "--box", "1,2,3,4", "--output", "out"])
    small = tmp_path / "small.yaml"
    monkeypatch.setattr(tool, "SMALL_CONFIG", str(small))
    monkeypatch.setattr(tool, "config_names", lambda: [str(small)])
    (tmp_path / "checkpoints").mkdir()
    for named in ("null", "random", "small.safetensors"):
        small.write_text(MICRO + f"checkpoint: {named}\n")
        assert tool.choose_config(arguments) == tool.DEFAULT_CONFIG, "the small model has no weights yet"
    (tmp_path / "checkpoints" / "small.safetensors").write_bytes(b"weights")
    assert tool.choose_config(arguments) == str(small)
    monkeypatch.setattr(tool, "config_names", lambda: [])
    assert tool.choose_config(arguments) == tool.DEFAULT_CONFIG
    monkeypatch.setattr(tool, "config_names", lambda: [str(small)])
    (tmp_path / tool.DEFAULT_CHECKPOINT).write_bytes(b"weights")
    assert tool.choose_config(arguments) == tool.DEFAULT_CONFIG


# -- one video ------------------------------------------------------------------------------------------------------


def single(micro: Micro, data: Dataset, out: Path, *extra: object) -> int:
    video = ["--video", str(data.frames / "a"), "--output", str(out)]
    return tool.main([*micro.arguments(), *video, *map(str, extra)])


def test_one_video_from_a_mask(run, micro, data, tmp_path):
    data.video("a", 5)
    data.mask("a")
    assert single(micro, data, tmp_path / "one", "--mask", data.masks / "a" / "00000.png") == 0
    assert run(tmp_path / "all") == 0
    masks = {name: content for name, content in tree(tmp_path / "one").items() if name.startswith("a/")}
    assert masks == tree(tmp_path / "all")
    assert (tmp_path / "one" / "a_overlay.mp4").exists() and (tmp_path / "one" / "a_sheet.png").exists()
    with open_video(tmp_path / "one" / "a_overlay.mp4") as overlay:
        assert overlay.count_frames() == 5 and (overlay.height, overlay.width) == (HEIGHT, WIDTH)


def test_one_video_from_boxes_and_points(micro, data, tmp_path):
    data.video("a", 3)
    boxes = ["--box", "6,4,20,18", "--box", "10,28,24,42"]
    assert single(micro, data, tmp_path / "boxes", *boxes, "--no-save_overlay", "--no-contact_sheet") == 0
    assert record(tmp_path / "boxes")["videos"][0]["objects"] == [1, 2]
    assert set(tree(tmp_path / "boxes")) == {f"a/{i:05d}.png" for i in range(3)}
    assert not (tmp_path / "boxes" / "a_overlay.mp4").exists()
    points = ["--points", "12,10,14,12", "--negative_points", "40,40"]
    assert single(micro, data, tmp_path / "points", *points) == 0
    arguments = tool.parse_arguments(["--video", "x", "--output", "y", *points, "--box", "1,2,3,4"])
    (clicks,) = tool.make_clicks(arguments)
    assert clicks == Clicks(obj_id=1, points=((12, 10), (14, 12), (40, 40)), labels=(1, 1, 0), box=(1, 2, 3, 4))
    assert single(micro, data, tmp_path / "outside", "--points", "900,10") == 1
    assert "inside the picture" in record(tmp_path / "outside")["videos"][0]["error"]


def test_one_video_from_a_later_frame(micro, data, tmp_path):
    data.video("a", 6)
    mask = tmp_path / "m.png"
    save_mask(mask, ids_at(2))
    assert single(micro, data, tmp_path / "out", "--mask", mask, "--start_frame", 2, "--max_frames", 3) == 0
    assert sorted(f.stem for f in (tmp_path / "out" / "a").iterdir()) == ["00002", "00003", "00004"]
    assert iou(ids_in(tmp_path / "out" / "a" / "00002.png") == 1, ids_at(2) == 1) > 0.6


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "got neither"),
        (["--box", "1,2,3,4", "--mask", "m.png"], "got both"),
        (["--box", "1,2,3"], "four numbers"),
        (["--points", "1,2,3"], "pairs x,y"),
        (["--points", "1,b"], "numbers with commas"),
        (["--format", "yolo,xml"], "formats out of coco, yolo, rle, got xml"),
        (["--negative_points", "1,2"], "got them alone"),
        (["--box", "1,2,3,4", "--box", "2,3,4,5", "--points", "1,2"], "which object"),
        (["--points", "1,2", "--start_frame", "-1"], "--start_frame >= 0"),
    ],
)
def test_usage_errors_of_one_video(capsys, arguments, told):
    with pytest.raises(SystemExit) as stopped:
        tool.parse_arguments(["--video", "x.mp4", "--output", "out", *arguments])
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_a_number_is_a_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = tool.parse_arguments(["--video", "0", "--box", "1,2,3,4", "--output", "out", "--max_frames", "4"])
    (task,) = tool.make_tasks(arguments)
    assert (task.name, task.video) == ("camera0", 0)
    (tmp_path / "0").mkdir()
    (task,) = tool.make_tasks(arguments)
    assert (task.name, task.video) == ("0", Path("0"))


# -- the command ----------------------------------------------------------------------------------------------------

FLAGS = [
    "--sam2_cfg",
    "--sam2_checkpoint",
    "--base_video_dir",
    "--input_mask_dir",
    "--video_list_file",
    "--output_mask_dir",
    "--score_thresh",
    "--use_all_masks",
    "--per_obj_png_file",
    "--apply_postprocessing",
    "--track_object_appearing_later_in_video",
    "--use_vos_optimized_video_predictor",
    "--device",
    "--num_shards",
    "--shard_id",
    "--resume",
    "--save_overlay",
    "--save_rle",
    "--format",
    "--onnx",
    "--contact_sheet",
    "--seed",
    "--video",
    "--box",
    "--points",
    "--negative_points",
    "--mask",
    "--start_frame",
    "--max_frames",
    "--output",
    "--ignore_ids",
    "--allow_empty_prompts",
    "--dataset",
    "--root",
    "--split",
    "--zip",
]


def test_help_names_every_flag(tmp_path):
    """From a checkout that is not installed, and from elsewhere."""
    code = f"""
import sys, runpy, importlib.util
from pathlib import Path
sys.path = [p for p in sys.path if p and not (Path(p) / "sam2_mem").exists()]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
assert importlib.util.find_spec("sam2_mem") is None
sys.argv = ["vos_inference.py", "--help"]
runpy.run_path({str(TOOL)!r}, run_name="__main__")
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    words = result.stdout.replace(",", " ").split()
    assert [flag for flag in FLAGS if flag not in words] == []
    assert "memory_policy=fifo" in result.stdout


def test_overrides_may_stand_anywhere():
    arguments = tool.parse_arguments(
        ["memory_policy=fifo", "--video", "x", "--box", "1,2,3,4", "++model.a=1", "--output", "y", "~model.b"]
    )
    assert arguments.overrides == ["memory_policy=fifo", "++model.a=1", "~model.b"]
