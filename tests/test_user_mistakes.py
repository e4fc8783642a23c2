"""What a user reads after a mistake: what was expected, what came, what to do. And what looks like one and works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro import SIDE, blob, micro_config, micro_model, micro_predictor, one_thread, picture, pictures  # noqa: F401
from omegaconf import OmegaConf
from PIL import Image

from sam2_mem import Prompt, build_sam2, build_sam2_video_predictor
from sam2_mem.checkpoint import CheckpointError
from sam2_mem.config import compose
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import FrameContext, Usage

HEIGHT, WIDTH = 48, 64
TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


@dataclass(frozen=True, eq=False)
class Desk:
    """What a user has before him: a predictor, a video of 6 frames (48 high, 64 wide), a stream, a folder for files."""

    predictor: SAM2VideoPredictor
    video: InferenceState
    stream: InferenceState
    folder: Path

    def points(self, points: Any = None, labels: Any = None, frame: Any = 0, **options: Any) -> Any:
        return self.predictor.add_new_points_or_box(self.video, frame, 1, points, labels, **options)

    def mask(self, mask: Any, frame: Any = 0) -> Any:
        return self.predictor.add_new_mask(self.video, frame, 1, mask)

    def track(self, *args: Any, **options: Any) -> list[Any]:
        return list(self.predictor.propagate_in_video(self.video, *args, **options))

    def started(self) -> Desk:
        """The same desk, with object 1 prompted on frame 0."""
        self.mask(blob(0, 0, HEIGHT, WIDTH))
        return self

    def long_video(self) -> Desk:
        """A desk whose video of 60 frames has been tracked to its end."""
        state = self.predictor.init_state(pictures(60, HEIGHT, WIDTH))
        desk = Desk(self.predictor, state, self.stream, self.folder).started()
        desk.track()
        return desk

    def file(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def weights(self, content: Any, name: str = "weights.pt") -> Path:
        path = self.folder / name
        torch.save(content, path)
        return path

    def build(self, weights: Any = None, **options: Any) -> SAM2VideoPredictor:
        return build_sam2_video_predictor(micro_config(), weights, **{"device": "cpu", **options})

    def config(self, *overrides: str) -> SAM2VideoPredictor:
        """The tiny model on the meta device, from its YAML file."""
        return build_sam2_video_predictor(TINY, device="meta", hydra_overrides_extra=overrides)

    def yaml(self, text: str) -> Path:
        path = self.folder / "mine.yaml"
        path.write_text(text)
        return path

    def images(self, count: int = 4) -> Path:
        path = self.folder / "images"
        path.mkdir()
        for i in range(count):
            Image.fromarray(picture(i)).save(path / f"{i:05d}.jpg")
        return path


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    predictor = micro_predictor(FIFO())
    return Desk(predictor, predictor.init_state(pictures(6, HEIGHT, WIDTH)), predictor.init_state(), tmp_path)


def mask(height: int = HEIGHT, width: int = WIDTH, value: float = 1, dtype: type = np.uint8) -> np.ndarray:
    result = np.zeros((height, width), dtype)
    result[4 : height // 2, 4 : width // 2] = value
    return result


# -- the mistakes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """``call`` is what the user does, ``says`` a regular expression of what he reads."""

    name: str
    call: Callable[[Desk], Any]
    says: str
    kind: type[Exception] | tuple[type[Exception], ...] = ValueError


MASKS = [
    Mistake("one number as mask", lambda d: d.mask(1.0), r"expected a mask of shape \(H, W\), got \(\)"),
    Mistake(
        "masks of three objects",
        lambda d: d.mask(np.zeros((3, HEIGHT, WIDTH), bool)),
        r"expected a mask of shape \(H, W\), got \(3, 48, 64\); send one prompt per object",
    ),
    Mistake(
        "mask of 0 and 255",
        lambda d: d.mask(mask(value=255)),
        r"expected a mask of 0 and 1 \(or bool\), got values from 0 to 255; threshold it first, or .* mask == obj_id",
    ),
    Mistake("label image", lambda d: d.mask(mask(value=2)), r"got values from 0 to 2; .*select one object id"),
    Mistake(
        "mask logits",
        lambda d: d.mask(mask(value=-3.5, dtype=np.float32)),
        r"expected a mask of 0 and 1.* from -3.5 to 0",
    ),
    Mistake(
        "NaN in a mask", lambda d: d.mask(mask(value=np.nan, dtype=np.float32)), r"expected a mask of 0 and 1, got NaN"
    ),
    Mistake(
        "transposed mask",
        lambda d: d.mask(mask(WIDTH, HEIGHT)),
        r"expected a mask of the video's size \(48, 64\) \(height, width\).*, got \(64, 48\); was it transposed",
    ),
    Mistake(
        "empty array as mask",
        lambda d: d.mask(np.zeros((0, 4), bool)),
        r"expected a mask with at least one pixel, got shape",
    ),
    Mistake(
        "text as mask",
        lambda d: d.mask("mask.png"),
        r"expected a mask as a tensor, array or nested list.*got 'mask.png'",
    ),
    Mistake(
        "mask with points",
        lambda d: Prompt(1, mask=mask(), points=[[1, 1]], labels=[1]),
        r"expected either a mask or points/box, got both",
    ),
]

POINTS = [
    Mistake("nothing said", lambda d: d.points(), r"expected points with labels, a box or a mask, got none of them"),
    Mistake(
        "points of three numbers",
        lambda d: d.points([[1, 2, 3]], [1]),
        r"expected points of shape \(N, 2\) as x, y, got \(1, 3\)",
    ),
    Mistake(
        "one point without brackets",
        lambda d: d.points([1, 2], [1]),
        r"expected points of shape \(N, 2\) as x, y, got \(2,\)",
    ),
    Mistake(
        "label 7",
        lambda d: d.points([[1, 2]], [7]),
        r"expected point labels 1 \(foreground\) or 0 \(background\), got \[7\]",
    ),
    Mistake("box as labels", lambda d: d.points([[1, 2], [9, 9]], [2, 3]), r"got \[2, 3\]; give boxes as box="),
    Mistake(
        "points without labels",
        lambda d: d.points([[1, 2]]),
        r"expected points and labels together, got points without labels",
    ),
    Mistake(
        "labels without points", lambda d: d.points(labels=[1]), r"got labels without points; give one label per point"
    ),
    Mistake(
        "too many labels",
        lambda d: d.points([[1, 2]], [1, 0]),
        r"expected one label per point, labels of shape \(1,\), got \(2,\)",
    ),
    Mistake(
        "no point in the list",
        lambda d: d.points(np.zeros((0, 2)), np.zeros(0)),
        r"expected at least one point, got none",
    ),
    Mistake(
        "point outside",
        lambda d: d.points([[10, 60]], [1]),
        r"expected every point inside the picture of width 64 and height 48, got \(10, 60\); coordinates are x, y",
    ),
    Mistake(
        "negative point",
        lambda d: d.points([[-1, 6]], [1]),
        r"inside the picture of width 64 and height 48, got \(-1, 6\)",
    ),
    Mistake(
        "pixels declared as shares",
        lambda d: d.points([[10, 20]], [1], normalize_coords=False),
        r"got \(10, 20\).*normalize_coords=False",
    ),
    Mistake("NaN point", lambda d: d.points([[float("nan"), 1]], [1]), r"expected finite coordinates, got a point at"),
    Mistake(
        "box turned round",
        lambda d: d.points(box=[40, 10, 20, 30]),
        r"expected a box with x0 < x1 and y0 < y1, got \[40",
    ),
    Mistake("box as x, y, w, h", lambda d: d.points(box=[30, 20, 10, 10]), r"a box is x0, y0, x1, y1, not x, y, w, h"),
    Mistake(
        "box of 3 numbers",
        lambda d: d.points(box=[1, 2, 3]),
        r"expected a box of four numbers x0, y0, x1, y1, got shape \(3,\)",
    ),
    Mistake(
        "box outside",
        lambda d: d.points(box=[70, 2, 90, 40]),
        r"expected a box inside the picture of width 64 and height 48, got \[70.0, 2.0, 90.0, 40.0\]; coordinates are",
    ),
    Mistake(
        "box in the pixels of a larger picture",
        lambda d: d.points(box=[30, 20, 900, 700]),
        r"expected a box inside the picture of width 64 and height 48, got \[30",
    ),
    Mistake(
        "box in pixels declared as shares",
        lambda d: d.points(box=[0, 0, 30, 40], normalize_coords=False),
        r"expected a box inside the picture of width 1 and height 1.*normalize_coords=False",
    ),
    Mistake(
        "box added to points",
        lambda d: d.points(box=[1, 2, 30, 40], clear_old_points=False),
        r"got a box with clear_old_points=False; use clear_old_points=True",
    ),
]

FRAMES = [
    Mistake("frame beyond the end", lambda d: d.mask(mask(), 6), r"expected a frame of the video \(0 to 5\), got 6"),
    Mistake("negative frame", lambda d: d.mask(mask(), -1), r"expected a frame of the video \(0 to 5\), got -1"),
    Mistake("frame as a fraction", lambda d: d.mask(mask(), 1.5), r"expected a frame index as an integer, got 1.5"),
    Mistake("frame as text", lambda d: d.mask(mask(), "00001"), r"expected a frame index as an integer, got '00001'"),
    Mistake(
        "object as text",
        lambda d: d.predictor.add_new_mask(d.video, 0, "dog", mask()),
        r"expected an integer object id, got 'dog'",
    ),
    Mistake("start beyond the end", lambda d: d.started().track(9), r"expected a frame of the video \(0 to 5\), got 9"),
    Mistake("negative length", lambda d: d.started().track(0, -2), r"expected max_frame_num_to_track >= 0, got -2"),
    Mistake("scores of a forgotten frame", lambda d: d.predictor.scores(d.video), r"no frame has been tracked yet"),
]

OBJECTS = [
    Mistake(
        "tracking nothing",
        lambda d: d.track(),
        r"nothing to track; give a prompt first: add_new_points_or_box",
        RuntimeError,
    ),
    Mistake(
        "tracking after the last prompt was taken back",
        lambda d: (d.started(), d.predictor.clear_all_prompts_in_frame(d.video, 0, 1), d.track()),
        r"objects \[1\] have no prompt left; prompt them again or call remove_object",
        RuntimeError,
    ),
    Mistake(
        "removing an unknown object",
        lambda d: d.started().predictor.remove_object(d.video, 5, strict=True),
        r"expected one of the objects \[1\], got 5",
        RuntimeError,
    ),
    Mistake(
        "clearing prompts of an unknown object",
        lambda d: d.started().predictor.clear_all_prompts_in_frame(d.video, 0, 5),
        r"expected one of the objects \[1\], got 5",
        RuntimeError,
    ),
]

STREAMS = [
    Mistake(
        "a live frame for a video",
        lambda d: d.predictor.track_frame(d.video, picture(0)),
        r"this state has a video; use propagate_in_video, or init_state\(\) without a video for a stream",
    ),
    Mistake(
        "a prompt for a stream",
        lambda d: d.predictor.add_new_points(d.stream, 0, 1, [[1, 1]], [1]),
        r"this state has no video; give prompts together with the frame: track_frame\(state, frame, prompts\)",
    ),
    Mistake(
        "propagating a stream",
        lambda d: (
            d.predictor.track_frame(d.stream, picture(0), [Prompt(1, mask=blob(0))]),
            list(d.predictor.propagate_in_video(d.stream)),
        ),
        r"this state has no video; a stream is tracked frame by frame: track_frame\(state, frame, prompts\)",
    ),
    Mistake(
        "frames of changing size",
        lambda d: [d.predictor.track_frame(d.stream, picture(0, h, 64)) for h in (64, 48)],
        r"expected frames of 64 x 64 \(height x width\), got 48 x 64",
    ),
    Mistake(
        "float frames of 0 to 255",
        lambda d: d.predictor.track_frame(d.stream, picture(0).astype(np.float32)),
        r"frame 0: expected float pixels in \[0, 1\], got values from .*; rescale them or pass uint8",
    ),
    Mistake(
        "gray frames",
        lambda d: d.predictor.track_frame(d.stream, picture(0)[..., 0]),
        r"frame 0: expected an RGB image .*, got shape \(64, 64\); repeat a gray image three times",
    ),
    Mistake(
        "frames with alpha",
        lambda d: d.predictor.track_frame(d.stream, np.zeros((8, 8, 4), np.uint8)),
        r"drop the alpha channel",
    ),
    Mistake(
        "a path as a frame",
        lambda d: d.predictor.track_frame(d.stream, "a.jpg"),
        r"expected an \(H, W, 3\) array.*got str",
    ),
    Mistake(
        "a mask of another shape than the stream's",
        lambda d: d.predictor.track_frame(d.stream, picture(0, 48, 64), [Prompt(1, mask=mask(64, 48))]),
        r"expected a mask of the video's size \(48, 64\).*got \(64, 48\)",
    ),
    Mistake(
        "a prompt that is no Prompt",
        lambda d: d.predictor.track_frame(d.stream, picture(0), [{"obj_id": 1, "mask": blob(0)}]),
        r"expected prompts as sam2_mem\.Prompt, got dict",
    ),
    Mistake(
        "a point outside a stream's frame",
        lambda d: d.predictor.track_frame(d.stream, picture(0), [Prompt(1, points=[[100, 1]], labels=[1])]),
        r"inside the picture of width 64 and height 64, got \(100, 1\)",
    ),
    Mistake(
        "a length for a video that has one",
        lambda d: d.predictor.init_state(pictures(2), num_frames=9),
        r"expected num_frames only for a stream \(video_path=None\), got 9 beside a video",
    ),
]

CHECKPOINTS = [
    Mistake(
        "no such checkpoint",
        lambda d: d.build(d.folder / "sam2.pt"),
        r"expected a checkpoint file, got '.*sam2.pt'.*download_ckpts",
        CheckpointError,
    ),
    Mistake(
        "checkpoint without weights",
        lambda d: d.build(d.weights({"epoch": 3, "optimizer": {}})),
        r"expected \{\"model\": state_dict\} or a state dict in .*, got keys \[epoch, optimizer\]",
        CheckpointError,
    ),
    Mistake(
        "truncated checkpoint",
        lambda d: d.build(d.file("cut.pt", d.weights({"model": micro_model().state_dict()}).read_bytes()[:-5000])),
        r"got a damaged, incomplete or foreign file \(\d+ bytes: .*\); delete it and run checkpoints/download_ckpts.sh",
        CheckpointError,
    ),
    Mistake(
        "a web page as checkpoint",
        lambda d: d.build(d.file("a.pt", b"<html>not found</html>")),
        r"got a foreign file \(a web page; the address gave it in place of the weights\)",
        CheckpointError,
    ),
    Mistake(
        "NaN in a checkpoint",
        lambda d: d.build(
            d.weights({"model": {**micro_model().state_dict(), "no_obj_ptr": torch.full((1, 32), torch.nan)}})
        ),
        r"expected finite weights in .*, got NaN or Inf in no_obj_ptr; .*use another one",
        CheckpointError,
    ),
    Mistake(
        "checkpoint that lacks a key",
        lambda d: d.build(
            d.weights({"model": {k: v for k, v in micro_model().state_dict().items() if k != "no_mem_embed"}})
        ),
        r"does not fit the model; nothing was loaded.\n1 missing in the file:\n  no_mem_embed \(1, 1, 32\)",
        CheckpointError,
    ),
]

VIDEOS = [
    Mistake(
        "no such video",
        lambda d: d.predictor.init_state(d.folder / "no.mp4"),
        r"no such video: '.*no.mp4'; expected a folder",
        FileNotFoundError,
    ),
    Mistake(
        "empty folder",
        lambda d: d.predictor.init_state(str(d.folder)),
        r"no frames in '.*': looked for .jpg, .jpeg, .png .*, found nothing",
    ),
    Mistake(
        "not a video",
        lambda d: d.predictor.init_state(d.file("a.mp4", b"not a video")),
        r"cannot read video '.*a.mp4': .* convert it with ffmpeg",
    ),
    Mistake(
        "unknown kind of file",
        lambda d: d.predictor.init_state(d.file("a.gif", b"")),
        r"unsupported video file '.*': expected one of .mp4, .*, got '.gif'",
    ),
    Mistake(
        "no frames in a list", lambda d: d.predictor.init_state([]), r"expected at least one frame, got an empty video"
    ),
    Mistake(
        "one image as a video",
        lambda d: d.predictor.init_state(picture(0)),
        r"for a single image add a leading axis: image\[None\]",
    ),
    Mistake(
        "a number of seconds",
        lambda d: d.predictor.init_state(3.5),
        r"expected a folder of images, a video file, .*, got float",
    ),
    Mistake(
        "a camera that is not there",
        lambda d: d.predictor.init_state(-1),
        r"cannot open camera -1: .* check that it is plugged in",
    ),
]

CONFIGS = [
    Mistake(
        "unknown config",
        lambda d: build_sam2_video_predictor("sam2.1_hiera_xxl", device="meta"),
        r"expected the name or the path of a model config, got 'sam2.1_hiera_xxl'; names are:"
        r"(\n  .*)*sam2.1/sam2.1_hiera_t.yaml",
    ),
    Mistake(
        "unknown override",
        lambda d: d.config("model.no_such_key=1"),
        r"expected overrides of keys that exist in .*, but model.no_such_key does not",
    ),
    Mistake(
        "override of a typing error",
        lambda d: d.config("modell.image_size=512"),
        r"expected overrides of keys that exist .*modell",
    ),
    Mistake("malformed override", lambda d: d.config("model.image_size"), r"model\.image_size"),
    Mistake(
        "unknown policy by override",
        lambda d: d.config("memory_policy=fifoo"),
        r"expected a memory policy out of .*\bfifo\b.*, got 'fifoo'",
    ),
    Mistake(
        "unknown policy by argument",
        lambda d: d.build(memory_policy="lru"),
        r"expected a memory policy out of .*\bfifo\b.*, got 'lru'",
    ),
    Mistake(
        "a class as policy",
        lambda d: d.build(memory_policy=FIFO),
        r"expected a policy's name, its config with a _target_, or a MemoryPolicy",
    ),
    Mistake(
        "policy field out of range",
        lambda d: d.config("memory_policy.num_maskmem=0"),
        r"could not build the memory policy: .*expected num_maskmem >= 1, got 0",
    ),
    Mistake(
        "more maps than temporal codes",
        lambda d: d.config("memory_policy.num_maskmem=9"),
        r"expected memory_policy.num_maskmem <= 7 \(model.num_maskmem\), got 9",
    ),
    Mistake(
        "image size between the multiples",
        lambda d: d.config("model.image_size=1000"),
        r"expected image_size to be a positive multiple of 32, got 1000; try 992 or 1024",
    ),
    Mistake(
        "unknown keyword",
        lambda d: d.build(memory_polcy="fifo"),
        r"build_sam2_video_predictor got unknown arguments \['memory_polcy'\]; it takes config_file, .*memory_policy",
        TypeError,
    ),
    Mistake(
        "unknown keyword of build_sam2",
        lambda d: build_sam2(TINY, devise="cpu"),
        r"build_sam2 got unknown arguments \['devise'\]",
        TypeError,
    ),
    Mistake(
        "unknown device",
        lambda d: d.build(device="gpu"),
        r"expected a device such as auto, cpu, cuda, cuda:1 or mps, got 'gpu'",
    ),
    Mistake("no device", lambda d: d.build(device=None), r"expected a device such as auto, cpu, .*, got None"),
    Mistake("unknown mode", lambda d: d.build(mode="test"), r"expected mode 'eval' or 'train', got 'test'"),
    Mistake(
        "unknown tracker setting",
        lambda d: d.config("+tracker.fill_holes=3"),
        r"expected keys out of fill_hole_area, .*, got fill_holes",
    ),
    Mistake("tracker setting out of range", lambda d: d.config("tracker.history=0"), r"expected history >= 1, got 0"),
    Mistake(
        "unknown precision",
        lambda d: d.config("tracker.memory_dtype=int8"),
        r"expected memory_dtype in .*bfloat16.*, got 'int8'",
    ),
    Mistake(
        "a fixed switch of SAM 2",
        lambda d: d.config("++model.add_all_frames_to_correct_as_cond=false"),
        r"expected model.add_all_frames_to_correct_as_cond=true, got false: a correction always takes effect here",
    ),
    Mistake("a broken yaml", lambda d: compose(d.yaml("model: [1, 2")), r"could not compose mine.yaml"),
    Mistake(
        "a yaml without a model",
        lambda d: build_sam2_video_predictor(d.yaml("a: 1"), device="meta"),
        r"expected a section 'model' in mine.yaml, got none; build on ours",
    ),
    Mistake(
        "a config without a policy",
        lambda d: build_sam2_video_predictor(
            OmegaConf.create({"model": None}), device="meta", apply_postprocessing=False
        ),
        r"expected a policy's name, its config with a _target_, or a MemoryPolicy, got None",
    ),
    Mistake(
        "a config of a policy alone",
        lambda d: build_sam2_video_predictor(
            OmegaConf.create({}), device="meta", apply_postprocessing=False, memory_policy="fifo"
        ),
        r"expected a section 'model' in the config, got none",
    ),
    Mistake(
        "a list as config",
        lambda d: build_sam2_video_predictor(["a"], device="meta"),
        r"expected the name or the path of a model config, got",
    ),
]

MISTAKES = MASKS + POINTS + FRAMES + OBJECTS + STREAMS + CHECKPOINTS + VIDEOS + CONFIGS


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_mistake(mistake: Mistake, desk: Desk) -> None:
    with pytest.raises(mistake.kind, match=f"(?s){mistake.says}"):
        mistake.call(desk)


def test_the_table_is_long_and_has_no_name_twice() -> None:
    assert len(MISTAKES) == len({m.name for m in MISTAKES}) >= 30


@pytest.mark.parametrize("mistake", MASKS + POINTS + FRAMES[:4], ids=lambda m: m.name)
def test_a_refused_prompt_leaves_the_session_as_it_was(mistake: Mistake, desk: Desk) -> None:
    with pytest.raises(ValueError, match=f"(?s){mistake.says}"):
        mistake.call(desk)
    assert desk.video.obj_ids == [] and desk.video.prompts == {}
    assert len(desk.started().track()) == 6


def test_a_refused_frame_leaves_the_stream_as_it_was(desk: Desk) -> None:
    desk.predictor.track_frame(desk.stream, picture(0), [Prompt(1, mask=blob(0))])
    for wrong in (picture(1, 48, 64), picture(1).astype(np.float32), picture(1)[..., 0]):
        with pytest.raises(ValueError, match="expected"):
            desk.predictor.track_frame(desk.stream, wrong)
    assert desk.predictor.track_frame(desk.stream, picture(1))[0] == 1


def test_a_checkpoint_of_another_size_lists_every_key(desk: Desk) -> None:
    own = micro_model().state_dict()
    other = {k: v.repeat(2, *[1] * (v.ndim - 1)) if k.startswith("image_encoder.") else v for k, v in own.items()}
    with pytest.raises(CheckpointError) as caught:
        desk.build(desk.weights({"model": {**other, "extra": torch.zeros(3)}}))
    message = str(caught.value)
    for key, value in other.items():
        if value.shape != own[key].shape:
            assert f"  {key}: model {tuple(own[key].shape)}, file {tuple(value.shape)}" in message
    assert "1 unknown to the model:\n  extra (3,)" in message and "nothing was loaded" in message


def test_frames_before_a_corrupt_picture_are_delivered(desk: Desk) -> None:
    folder = desk.images(6)
    (folder / "00003.jpg").write_bytes((folder / "00003.jpg").read_bytes()[:300])
    state = desk.predictor.init_state(folder)
    desk.predictor.add_new_mask(state, 0, 1, blob(0))
    seen = []
    with pytest.raises(ValueError, match=r"cannot read frame 3 \('.*00003.jpg'\): .*; replace or remove the file"):
        for frame, _, _ in desk.predictor.propagate_in_video(state):
            seen.append(frame)
    assert seen == [0, 1, 2]


# -- what looks like a mistake and works ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.mask(mask(), np.int64(2)),
        lambda d: d.mask(torch.from_numpy(mask()).bool()),
        lambda d: d.mask(mask(dtype=np.float32)),
        lambda d: d.mask(mask(HEIGHT // 2, WIDTH // 2)),
        lambda d: d.mask(mask(value=0)),
        lambda d: d.points([[1, 2]], [1]),
        lambda d: d.points(torch.tensor([[1.5, 2.5]]), torch.tensor([1.0])),
        lambda d: d.points(np.array([[[1, 2]]]), np.array([[1]])),
        lambda d: d.points([[WIDTH, HEIGHT]], [0]),
        lambda d: d.points([[0.5, 0.5]], [1], normalize_coords=False),
        lambda d: d.points(box=np.array([[1, 2, 30, 40]])),
        lambda d: d.points([[5, 5]], [1], box=[1, 2, 30, 40]),
        lambda d: d.points(box=[-0.4, -3, 64.4, 50]),
        lambda d: d.predictor.add_new_mask(d.video, 0, np.int32(-7), mask()),
    ],
    ids=[
        "numpy frame",
        "bool tensor",
        "float mask",
        "smaller mask",
        "empty mask",
        "lists",
        "tensors",
        "leading axis",
        "corner of the picture",
        "shares",
        "box with an axis",
        "box and point",
        "box that reaches beyond the picture",
        "negative object",
    ],
)
def test_what_works(call: Callable[[Desk], Any], desk: Desk) -> None:
    _, ids, masks = call(desk)
    assert len(ids) == 1 and masks.shape == (1, 1, HEIGHT, WIDTH) and masks.isfinite().all()
    assert len(desk.track(0)) == 6


def test_removing_an_unknown_object_without_strict_changes_nothing(desk: Desk) -> None:
    assert desk.started().predictor.remove_object(desk.video, 5) == ([1], [])


# -- policies -------------------------------------------------------------------------------------------------------------


class Undecided(FIFO):
    """Objects prompted on even frames want to know what attention tokens got, others what items got."""

    def usage_at(self, state: Any, frame: FrameContext) -> Usage:
        return (Usage.TOKENS, Usage.ITEMS_BY_QUERY)[state.prompts[0].frame % 2]


def test_objects_that_want_different_usage() -> None:
    """The network measures one kind for a batch; which one would be chance."""
    predictor = SAM2VideoPredictor(micro_model(), Undecided())
    for frames in (0, 2), (0, 1):
        state = predictor.init_state(pictures(4))
        for obj_id, frame in enumerate(frames):
            predictor.add_new_mask(state, frame, obj_id, blob(0, 0))
        if frames == (0, 2):
            assert len(list(predictor.propagate_in_video(state))) == 4
            continue
        with pytest.raises(
            RuntimeError, match=r"one kind of usage on frame 2, got \['items_by_query', 'tokens'\]; have usage_at"
        ):
            list(predictor.propagate_in_video(state))
