#!/usr/bin/env python
"""A small network beside what needs none, on the videos of a data set: the table of the model card.

    python benchmarks/measure_embedded.py --root DAVIS --networks nano_v2:384 path/weights.safetensors@nano_v2:256 --threads 1

Rows: copying the first mask, DIS optical flow, propagation of labels by the features of a network's trunk without training,
and every network, given as CONFIG, CONFIG:SIZE or WEIGHTS@CONFIG:SIZE. J and F at the videos' size on frames 1..T-2, as DAVIS
counts them; IoU of a box, of one click, of three, and of a box with two, on every twelfth frame; median milliseconds a frame.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam2_mem.build_sam import build_sam2, build_sam2_video_predictor
from sam2_mem.cli.evaluate_training import PromptScores, full_clip, prompt_scores, region_and_boundary
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.image_predictor import SAM2ImagePredictor
from sam2_mem.training.clips import Clip, normalise
from sam2_mem.training.folders import open_videos
from sam2_mem.training.validation import Method, NetworkMethod, copy_first, follow_flow

EVERY, LEAST_PIXELS = 12, 200


class PropagatedLabels:
    """Labels of the first frame and of the last few carried over by the similarity of a trunk's features (Jabri et al.,
    arXiv:2006.14613): every cell takes the weighted labels of the most similar cells near by.

    Args:
        trunk: images (B, 3, H, W) -> maps from fine to coarse.
        level: which of the maps.
        size: width and height of the images, in pixels.
        previous: frames before that are looked at, beside the first.
        most: cells that a label is taken from.
        temperature: of the weights.
        radius: of what is near by, in cells; twice that and a growing part of it for the first frame.
    """

    def __init__(
        self,
        trunk: Callable[[Tensor], Sequence[Tensor]],
        *,
        level: int = 1,
        size: tuple[int, int] = (448, 256),
        previous: int = 5,
        most: int = 8,
        temperature: float = 0.07,
        radius: int = 12,
    ) -> None:
        self._trunk, self._level, self._size = trunk, level, size
        self._previous, self._most, self._temperature, self._radius = previous, most, temperature, radius

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray, first: np.ndarray) -> np.ndarray:
        maps = self._features(frames[0])
        shape = (maps.shape[1], maps.shape[2])
        far = _distances(*shape)
        labels = torch.from_numpy(first).float()[None]
        memory = [(maps.flatten(1), F.interpolate(labels, size=shape, mode="area")[0].flatten(1))]
        result = [first]
        for index, frame in enumerate(frames[1:], start=1):
            features = self._features(frame).flatten(1)
            propagated = self._propagate(features, memory, far, index)
            memory = [memory[0], *memory[1:][-self._previous + 1 :], (features, propagated)]
            cells = propagated.view(1, -1, *shape)
            large = F.interpolate(cells, size=first.shape[1:], mode="bilinear", align_corners=False)
            result.append((large[0] > 0.5).numpy())
        return np.stack(result)

    def _features(self, frame: np.ndarray) -> Tensor:
        """(C, h, w) of unit length."""
        image = normalise(cv2.resize(frame, self._size, interpolation=cv2.INTER_AREA)[None])
        return F.normalize(self._trunk(image)[self._level], dim=1)[0]

    def _propagate(self, features: Tensor, memory: list[tuple[Tensor, Tensor]], far: Tensor, index: int) -> Tensor:
        """Labels (N, cells) of a frame."""
        similarities = []
        for number, (keys, _) in enumerate(memory):
            reach = self._radius if number else 2 * self._radius + index // 4
            similarities.append((features.T @ keys).masked_fill(far > reach, -9.0))
        labels = torch.cat([values for _, values in memory], 1)
        best, cells = torch.cat(similarities, 1).topk(self._most, 1)
        weights = (best / self._temperature).softmax(1)
        return (weights[None] * labels[:, cells]).sum(-1)


def _distances(height: int, width: int) -> Tensor:
    """Largest coordinate difference of every two cells: (cells, cells)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.maximum((y.reshape(-1, 1) - y.reshape(1, -1)).abs(), (x.reshape(-1, 1) - x.reshape(1, -1)).abs())


class Measured(NamedTuple):
    """A row of the table; nan for what the method cannot do."""

    method: str
    j: float
    f: float
    box: float
    click: float
    clicks: float
    box_clicks: float
    ms: float

    def text(self) -> str:
        values = [self.j, self.f, (self.j + self.f) / 2, self.box, self.click, self.clicks, self.box_clicks]
        cells = ["-" if np.isnan(v) else f"{v:.3f}" for v in values]
        return f"| {self.method} | {' | '.join(cells)} | {self.ms:.0f} |"


HEAD = "| method | J | F | J&F | box | 1 click | 3 clicks | box, 2 clicks | ms a frame |\n|---|---|---|---|---|---|---|---|---|"


def measure(name: str, method: Method, clips: Sequence[Clip], prompts: PromptScores | None = None) -> Measured:
    """J, F and the time of a method."""
    scores, times = [], []
    for clip in clips:
        began = time.process_time()
        masks: list[np.ndarray] = []

        def kept(frames: np.ndarray, first: np.ndarray, masks: list[np.ndarray] = masks) -> np.ndarray:
            masks.append(method(frames, first))
            return masks[0]

        kept(clip.frames, np.stack([clip.ids[0] == n for n in np.unique(clip.ids[0]) if n]))
        times.append((time.process_time() - began) / len(clip))
        scores.append(region_and_boundary(lambda frames, first, masks=masks: masks[0], clip))
    j, f = np.mean(scores, axis=0)
    return Measured(name, float(j), float(f), *(prompts or [float("nan")] * 4), 1000 * float(np.median(times)))


def measure_prompts(model: SAM2, clips: Sequence[Clip]) -> PromptScores:
    predictor, scores = SAM2ImagePredictor(model), []
    for clip in clips:
        for image, ids in zip(clip.frames[::EVERY], clip.ids[::EVERY], strict=True):
            masks = [ids == n for n in np.unique(ids) if n]
            scores += prompt_scores(predictor, image, [m for m in masks if m.sum() >= LEAST_PIXELS])
    return PromptScores(*np.mean(scores, axis=0).tolist())


def network_row(name: str, clips: Sequence[Clip]) -> Measured:
    """The row of WEIGHTS@CONFIG:SIZE."""
    weights, _, config = name.rpartition("@")
    config, _, size = config.partition(":")
    overrides = [f"model.image_size={size}"] if size else []
    predictor = build_sam2_video_predictor(config, weights or None, device="cpu", hydra_overrides_extra=overrides)
    method = NetworkMethod(predictor.model, FIFO(), tracker=predictor.tracker_settings)
    return measure(name, method, clips, measure_prompts(predictor.model, clips))


def trunk_of(config: str) -> Callable[[Tensor], Sequence[Tensor]]:
    """The frozen trunk of WEIGHTS@CONFIG."""
    weights, _, config = config.rpartition("@")
    return build_sam2(config, weights or None, device="cpu").image_encoder.trunk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the data set")
    parser.add_argument("--layout", default="davis2016", help="see sam2_mem/training/folders.py")
    parser.add_argument("--networks", nargs="*", default=[], help="CONFIG, CONFIG:SIZE or WEIGHTS@CONFIG:SIZE")
    parser.add_argument("--trunk", help="CONFIG or WEIGHTS@CONFIG whose trunk propagates labels")
    parser.add_argument("--level", type=int, default=1, help="which map of the trunk, from fine to coarse")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also append the rows to this file as JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    clips = [full_clip(video) for video in open_videos(arguments.layout, arguments.root)]
    rows: list[Callable[[], Measured]] = [
        lambda: measure("copy of the first mask", copy_first, clips),
        lambda: measure("DIS optical flow", follow_flow, clips),
    ]
    if arguments.trunk:
        labels = PropagatedLabels(trunk_of(arguments.trunk), level=arguments.level)
        rows.append(lambda: measure("label propagation, frozen trunk", labels, clips))
    rows += [lambda name=name: network_row(name, clips) for name in arguments.networks]
    print(HEAD, flush=True)
    for row in rows:
        measured = row()
        print(measured.text(), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(measured._asdict()) + "\n")


if __name__ == "__main__":
    main()
