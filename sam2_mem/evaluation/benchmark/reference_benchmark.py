"""Ours beside another predictor with SAM 2's API, in one run: the same picture files, weights, prompts, precision and
threads.

Both track the clip in turns, block by block, ours first and last (A/B/B/A), each frame's masks being brought to the host.
Masks of the same pass are compared, and nothing is said about speed unless they agree. Memory and the time to the first
mask are measured in a fresh process for each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from sam2_mem.evaluation.benchmark.policy_costs import WARM_UP, BenchmarkClip, Mark, growth_per_frame, resident_bytes
from sam2_mem.evaluation.benchmark.profile import counting, frozen

OURS = "sam2_mem.build_sam:build_sam2_video_predictor"


@dataclass(frozen=True, kw_only=True)
class PredictorSpec:
    """One side: who builds the predictor and from what.

    ``builder`` "module:function", called as SAM 2's ``build_sam2_video_predictor`` with ``options`` as further
    keywords; ``weights`` a checkpoint both sides can read; ``dtype`` "float32", or "bfloat16" for autocast; ``init``
    keywords of its ``init_state``.
    """

    builder: str
    config: str
    weights: str
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    overrides: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    init: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The predictor, without post-processing, which SAM 2 leaves out where its extension is missing."""
        module, _, name = self.builder.partition(":")
        try:
            builder = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"expected a peer as module:function that can be imported, got {self.builder!r}: {error}"
            ) from error
        fixed = {"apply_postprocessing": False, "hydra_overrides_extra": list(self.overrides)}
        return builder(self.config, self.weights, device=self.device, **fixed, **self.options)

    def precision(self) -> AbstractContextManager:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16) if self.dtype == "bfloat16" else nullcontext()

    def wait(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """A clip on disk: ``folder`` holds JPEG files in ``frames`` and ``masks.npy``, (N, H, W) bool, the prompts of frame
    0."""

    folder: Path
    num_frames: int

    @classmethod
    def of(cls, clip: BenchmarkClip, folder: Path) -> StoredClip:
        """Write ``clip`` as SAM 2 reads it."""
        (folder / "frames").mkdir(parents=True)
        for t in range(clip.num_frames):
            picture = cv2.cvtColor(clip.picture(t), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(folder / "frames" / f"{t:05d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        np.save(folder / "masks.npy", np.stack([np.asarray(p.mask) for p in clip.prompts]))
        return cls(folder=folder, num_frames=clip.num_frames)

    def prompted(self, spec: PredictorSpec, predictor: Any) -> Any:
        """The state of a predictor after the prompts, whose answers are brought to the host."""
        state = predictor.init_state(str(self.folder / "frames"), **spec.init)
        for i, mask in enumerate(np.load(self.folder / "masks.npy")):
            predictor.add_new_mask(state, 0, i + 1, mask)[2].cpu()
        return state


def track(spec: PredictorSpec, predictor: Any, clip: StoredClip) -> Iterator[Tensor]:
    """Mask logits (N, H, W) of every frame, on the host."""
    with spec.precision():
        outputs = predictor.propagate_in_video(clip.prompted(spec, predictor))
    while True:
        with spec.precision():
            output = next(outputs, None)
        if output is None:
            return
        yield output[2][:, 0].float().cpu()


# -- correctness ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Ours against the peer's over ``frames``: mean and least IoU of a mask, the largest difference of logits where
    both see the object; ``present`` share of masks that are not empty, ``area`` their mean share of the picture."""

    frames: int
    mean_iou: float
    least_iou: float
    logit: float
    present: float
    area: float

    def conclusive(self) -> bool:
        """Masks are worth comparing: most objects are seen, and nothing is all object."""
        return self.present > 0.5 and 1e-4 < self.area < 0.9


def agreement(ours: Sequence[Tensor], peer: Sequence[Tensor]) -> Agreement:
    """Of logits (N, H, W) frame by frame. Two empty masks agree."""
    ious, gaps, areas = [], [0.0], []
    for our_frame, peer_frame in zip(ours, peer, strict=True):
        for a, b in zip(our_frame, peer_frame, strict=True):
            intersection, union = ((a > 0) & (b > 0)).sum().item(), ((a > 0) | (b > 0)).sum().item()
            ious.append(intersection / union if union else 1.0)
            areas.append((b > 0).float().mean().item())
            if (a > 0).any() and (b > 0).any():
                gaps.append((a - b).abs().max().item())
    present = [area for area in areas if area > 0]
    mean_area = float(np.mean(present or [0.0]))
    return Agreement(len(ours), float(np.mean(ious)), min(ious), max(gaps), len(present) / len(areas), mean_area)


# -- speed ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockTime:
    """Seconds of one block per frame: by the clock, and of all threads of the process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class BlockPair:
    """The same frames on both sides, one after the other."""

    ours: BlockTime
    peer: BlockTime


@dataclass(frozen=True)
class SpeedComparison:
    """Blocks in order; ``warm_up``: seconds of the first frames, as (ours, peer), building not included. ``gflop`` of the
    frame after the last block, as (ours, peer); None where there is none, or on another device than a CPU."""

    pairs: tuple[BlockPair, ...]
    warm_up: tuple[float, float]
    gflop: tuple[float, float] | None = None

    def ratios(self, clock: str) -> list[float]:
        """Peer's time over ours, block by block; ``clock`` "wall" or "cpu"."""
        return [getattr(p.peer, clock) / getattr(p.ours, clock) for p in self.pairs]

    def milliseconds(self, side: str, clock: str) -> float:
        return 1000 * median(getattr(getattr(p, side), clock) for p in self.pairs)


def compare_speed(
    specs: tuple[PredictorSpec, PredictorSpec], clip: StoredClip, predictors: tuple[Any, Any], block: int
) -> tuple[SpeedComparison, Agreement]:
    """Both sides, ours and the peer, through the clip in turns, and how far their masks agree."""
    count = (clip.num_frames - WARM_UP) // block
    if count < 2:
        raise ValueError(
            f"expected at least {WARM_UP + 2 * block} frames: {WARM_UP} to warm up and two blocks of {block}, "
            f"got {clip.num_frames}"
        )
    masks: tuple[list[Tensor], list[Tensor]] = ([], [])
    runs = [_stored(track(spec, net, clip), side) for spec, net, side in zip(specs, predictors, masks)]
    warm_up = [_advance(spec, run, WARM_UP).wall * WARM_UP for spec, run in zip(specs, runs)]
    pairs = []
    for number in range(count - count % 2):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        times = {side: _advance(specs[side], runs[side], block) for side in order}
        pairs.append(BlockPair(times[0], times[1]))
    gflop = None
    if clip.num_frames > WARM_UP + block * len(pairs) and torch.device(specs[0].device).type == "cpu":
        gflop = (_gflop(predictors[0], runs[0]), _gflop(predictors[1], runs[1]))
    return SpeedComparison(tuple(pairs), (warm_up[0], warm_up[1]), gflop), agreement(*masks)


def _gflop(predictor: Any, run: Iterator[Tensor]) -> float:
    """Of matrix products, attention and convolutions of the next frame."""
    with frozen(getattr(predictor, "model", predictor)), counting() as counter:
        next(run)
    return counter.get_total_flops() / 1e9


def _stored(run: Iterator[Tensor], store: list[Tensor]) -> Iterator[Tensor]:
    for masks in run:
        store.append(masks)
        yield masks


def _advance(spec: PredictorSpec, run: Iterator[Tensor], frames: int) -> BlockTime:
    spec.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(frames):
        next(run)
    spec.wait()
    return BlockTime((time.perf_counter() - wall) / frames, (time.process_time() - cpu) / frames)


# -- in a process of its own ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProcessCost:
    """One side by itself: seconds from ``init_state`` to the answer to the first prompt and to the first tracked mask;
    bytes by which the process grows per frame after the warm-up, None where the system does not say; ``most`` bytes of
    it; how many ``frames`` were tracked."""

    first_prompt: float
    first_mask: float
    slope: float | None
    most: int | None
    frames: int


def measure_process(spec: PredictorSpec, clip: StoredClip) -> ProcessCost:
    """Measured in a fresh process."""
    job = json.dumps({"spec": asdict(spec), "folder": str(clip.folder), "num_frames": clip.num_frames})
    root = str(Path(__file__).resolve().parents[3])
    code = f"import sys; sys.path.insert(0, {root!r}); from {__name__} import _main; _main(sys.stdin.read())"
    process = subprocess.run([sys.executable, "-c", code], input=job, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"the process that measures {spec.builder} failed:\n{process.stderr[-2000:]}")
    return ProcessCost(**json.loads(process.stdout.splitlines()[-1]))


def _main(job: str) -> None:
    fields = json.loads(job)
    spec = PredictorSpec(**fields["spec"] | {"overrides": tuple(fields["spec"]["overrides"])})
    if spec.threads:
        torch.set_num_threads(spec.threads)
    clip = StoredClip(folder=Path(fields["folder"]), num_frames=fields["num_frames"])
    print(json.dumps(asdict(_process_cost(spec, spec.build(), clip))))


def _process_cost(spec: PredictorSpec, predictor: Any, clip: StoredClip) -> ProcessCost:
    began = time.perf_counter()
    with spec.precision():
        clip.prompted(spec, predictor)
    first_prompt = time.perf_counter() - began
    began, first_mask, marks = time.perf_counter(), 0.0, []
    for index, masks in enumerate(track(spec, predictor, clip)):
        del masks
        if index == 0:
            first_mask = time.perf_counter() - began
        if index >= WARM_UP:
            marks.append(Mark(index, 0, resident_bytes()))
    slope = growth_per_frame(marks)
    most = None if slope is None else max(mark.resident or 0 for mark in marks)
    return ProcessCost(first_prompt, first_mask, slope, most, index + 1)


# -- weights ----------------------------------------------------------------------------------------------------------

AMPLIFIED = (("output_hypernetworks_mlps.", ".layers.2.", 10.0), ("cross_attn_image.", "out_proj.", 3.0))
"""(part, layer, factor): random weights under which masks are neither empty nor full and memory matters."""
OBJECT_SCORE_BIAS = 5.0
"""Added to the bias of the object score, so that objects are there."""


@torch.no_grad()
def amplified(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random weights made worth comparing."""
    weights = {}
    for name, value in state.items():
        factors = [factor for part, layer, factor in AMPLIFIED if part in name and layer in name]
        weights[name] = value * factors[0] if factors else value.clone()
    weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += OBJECT_SCORE_BIAS
    return weights
