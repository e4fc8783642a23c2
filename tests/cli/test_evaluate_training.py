"""Prompts measured on the frames of a data set, and label propagation, the measure that needs no training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sam2_mem.cli.evaluate_training import box_scores, click_scores, correction_scores, middle, prompt_scores
from sam2_mem.cli.train import main
from sam2_mem.training.clips import Clip
from sam2_mem.training.validation import copy_first, run_method, summarise

ROOT = Path(__file__).resolve().parents[2]
SIDE = 48


class DiscPredictor:
    """Answers every prompt with discs of given radii about the first click; three, the second of which it thinks best."""

    def __init__(self, first: float, later: float) -> None:
        self.radii, self.calls = (first, later), []

    def set_image(self, image: np.ndarray) -> None:
        self.calls = []

    def predict(self, points=None, labels=None, box=None, mask_input=None, multimask_output=True):
        self.calls.append(([] if points is None else points.tolist(), [] if labels is None else labels.tolist(), box))
        x, y = points[0] if box is None else (box[:2] + box[2:]) / 2
        radius = self.radii[mask_input is not None]
        masks = np.stack([disc(x, y, r) for r in ((1, radius, 2) if multimask_output else (radius,))])
        return masks, np.array([0.1, 0.9, 0.2])[: len(masks)], np.where(masks, 5.0, -5.0)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def test_prompts_are_scored_as_they_are_answered() -> None:
    truth, image = disc(24, 24, 10), np.zeros((SIDE, SIDE, 3), np.uint8)
    assert middle(truth) == (24, 24)
    (right,) = prompt_scores(DiscPredictor(10, 10), image, [truth])
    assert right.box > 0.9 and right.click == right.clicks == 1
    better = DiscPredictor(5, 10)
    first, third = click_scores(better, truth)
    assert 0.2 < first < 0.3 and third == 1
    (_, _, _), (points, labels, _) = better.calls
    assert labels == [1, 1] and truth[int(points[1][1]), int(points[1][0])], "the second click is on what was missed"
    too_large = DiscPredictor(20, 20)
    first, third = click_scores(too_large, truth)
    assert first == third < 0.3 and too_large.calls[-1][1] == [1, 0, 0], "negative clicks on what is too much"


def test_a_box_is_refined_by_clicks_beside_it() -> None:
    truth = disc(24, 24, 10)
    small = DiscPredictor(5, 10)
    alone, with_clicks = box_scores(small, truth)
    assert 0.2 < alone < 0.3 and with_clicks > 0.9
    (_, _, first), (points, labels, box) = small.calls[:2]
    assert first.tolist() == box.tolist() == [14, 14, 35, 35] and labels == [1]
    assert truth[int(points[0][1]), int(points[0][0])], "on what was missed"
    large = DiscPredictor(10, 20)
    alone, with_clicks = box_scores(large, truth)
    assert with_clicks < 0.3 < alone, "control: an answer that gets worse is scored as it is"
    assert large.calls[-1][1][-1] == 0, "a negative click on what is too much"


class LostAndCorrected:
    """A video predictor that has lost the object; a click finds a small disc, a box a large one."""

    def __init__(self, tracked: np.ndarray) -> None:
        self.tracked, self.prompts = tracked, []

    def init_state(self, frames: np.ndarray) -> None:
        self.frames = frames

    def add_new_mask(self, state: None, frame: int, obj_id: int, mask: np.ndarray) -> None:
        assert frame == 0 and mask.any()

    def propagate_in_video(self, state: None):
        for frame in range(len(self.frames)):
            yield frame, [1], torch.from_numpy(self.tracked * 2.0 - 1)[None, None]

    def add_new_points_or_box(self, state: None, frame: int, obj_id: int, **prompt):
        self.prompts.append((frame, prompt))
        return frame, [obj_id], torch.from_numpy(disc(24, 24, 10 if "box" in prompt else 5) * 2.0 - 1)[None, None]


def test_corrections_after_an_absence() -> None:
    truth, image = disc(24, 24, 10), np.full((SIDE, SIDE, 3), 7, np.uint8)
    lost = LostAndCorrected(np.zeros_like(truth))
    scores = correction_scores(lost, image, disc(10, 10, 5), image + 1, truth)
    assert scores.tracked == 0 and 0.2 < scores.click < 0.3 and scores.box == 1
    assert lost.frames[0].max() == 7 and (lost.frames[1:-1] == 128).all() and lost.frames[-1].max() == 8
    (last, click), (_, box) = lost.prompts
    assert last == len(lost.frames) - 1 and click == {"points": [[24, 24]], "labels": [1]}
    assert box == {"box": [14, 14, 35, 35]}
    strays = LostAndCorrected(truth | disc(40, 8, 6))
    correction_scores(strays, image, truth, image, truth)
    assert strays.prompts[0][1]["labels"] == [0], "a negative click on what is too much"


def test_prompts_of_a_data_set_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "480p/video").mkdir(parents=True)
    for t in range(2):
        Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(tmp_path / f"JPEGImages/480p/video/{t:05d}.jpg")
        Image.fromarray(disc(24, 24, 12).astype(np.uint8) * 255).save(tmp_path / f"Annotations/480p/video/{t:05d}.png")
    arguments = ["eval", "nano_v2", "--parts", "prompts", "--root", str(tmp_path), "model.image_size=64"]
    assert main(arguments) == 0
    assert "prompts, davis2016" in (text := capsys.readouterr().out) and "count 1" in text and "clicks" in text
    assert main([words if words != "prompts" else "corrections" for words in arguments]) == 2
    assert "expected videos of more than 12 annotated frames" in capsys.readouterr().err
    assert main(["eval", "nano_v2", "--parts", "prompts"]) == 2
    assert "folder, prompts and corrections need --root" in capsys.readouterr().err


def measure_embedded() -> ModuleType:
    path = ROOT / "benchmarks/measure_embedded.py"
    spec = importlib.util.spec_from_file_location("measure_embedded", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Colours(nn.Module):
    """A trunk whose only map is the image at an eighth of its side."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(images, 8)]


class Nothing(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [torch.ones_like(nn.functional.avg_pool2d(images, 8))]


def test_labels_follow_what_looks_the_same() -> None:
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 90, (12, 12, 3)).astype(np.uint8), (128, 128))
    frames, ids = [], []
    for t in range(6):
        image, mask = ground.copy(), np.zeros((128, 128), np.uint8)
        image[40:80, 10 + 12 * t : 50 + 12 * t] = (250, 40, 30)
        mask[40:80, 10 + 12 * t : 50 + 12 * t] = 1
        frames.append(image)
        ids.append(mask)
    clip = Clip(np.stack(frames), np.stack(ids))
    labels = measure_embedded().PropagatedLabels
    methods = [labels(trunk, level=0, size=(256, 256)) for trunk in (Colours(), Nothing())]
    seen, blind, copied = (summarise(run_method(m, [clip])).j for m in (*methods, copy_first))
    assert seen > 0.75 and copied < 0.5 and blind < 0.5, (seen, blind, copied)
