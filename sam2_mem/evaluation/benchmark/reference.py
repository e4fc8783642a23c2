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

from sam2_mem.evaluation.benchmark.policy_costs import WARM_UP, Footage, resident_bytes
from sam2_mem.evaluation.benchmark.profile import counting, frozen

OURS = "sam2_mem.build_sam:build_sam2_video_predictor"


@dataclass(frozen=True, kw_only=True)
class Arm:
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
        arguments = {
            "device": self.device,
            "apply_postprocessing": False,
            "hydra_overrides_extra": list(self.overrides),
        }
        return builder(self.config, self.weights, **arguments, **self.options)

    def precision(self) -> AbstractContextManager:
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16) if self.dtype == "bfloat16" else nullcontext()

    def wait(self) -> None:
        if torch.device(self.device).type == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A clip on disk: a ``folder`` of JPEG files and ``masks.npy`` beside it, (N, H, W) bool, the prompts of frame
    0."""

    place: Path
    num_frames: int

    @classmethod
    def of(cls, footage: Footage, place: Path) -> Stored:
        """Write ``footage`` as SAM 2 reads it."""
        (place / "frames").mkdir(parents=True)
        for t in range(footage.num_frames):
            picture = cv2.cvtColor(footage.picture(t), cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(place / "frames" / f"{t:05d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        np.save(place / "masks.npy", np.stack([np.asarray(p.mask) for p in footage.prompts]))
        return cls(place=place, num_frames=footage.num_frames)

    def prompts(self) -> np.ndarray:
        return np.load(self.place / "masks.npy")


def track(arm: Arm, predictor: Any, clip: Stored) -> Iterator[Tensor]:
    """Mask logits (N, H, W) of every frame, on the host."""
    with arm.precision():
        state = predictor.init_state(str(clip.place / "frames"), **arm.init)
        for i, mask in enumerate(clip.prompts()):
            predictor.add_new_mask(state, 0, i + 1, mask)
        passes = predictor.propagate_in_video(state)
    while True:
        with arm.precision():
            given = next(passes, None)
        if given is None:
            return
        yield given[2][:, 0].float().cpu()


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

    def telling(self) -> bool:
        """Masks are worth comparing: most objects are seen, and nothing is all object."""
        return self.present > 0.5 and 1e-4 < self.area < 0.9


def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Agreement:
    """Of logits (N, H, W) frame by frame. Two empty masks agree."""
    ious, gaps, areas = [], [0.0], []
    for a, b in zip(ours, theirs, strict=True):
        for mine, other in zip(a, b, strict=True):
            one, two = mine > 0, other > 0
            union = (one | two).sum().item()
            ious.append((one & two).sum().item() / union if union else 1.0)
            areas.append(two.float().mean().item())
            if one.any() and two.any():
                gaps.append((mine - other).abs().max().item())
    seen = [a for a in areas if a > 0]
    return Agreement(
        len(ours), float(np.mean(ious)), min(ious), max(gaps), len(seen) / len(areas), float(np.mean(seen or [0.0]))
    )


# -- speed ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Seconds of one block per frame: by the clock, and of all threads of the process."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Pair:
    """The same frames on both sides, one after the other."""

    ours: Spent
    peer: Spent


@dataclass(frozen=True)
class Race:
    """Blocks in order; ``warm_up``: seconds of the first frames, as (ours, peer), building not included. ``gflop`` of the
    frame after the last block, as (ours, peer); None where there is none, or on another device than a CPU."""

    pairs: tuple[Pair, ...]
    warm_up: tuple[float, float]
    gflop: tuple[float, float] | None = None

    def ratios(self, clock: str) -> list[float]:
        """Peer's time over ours, block by block; ``clock`` "wall" or "cpu"."""
        return [getattr(p.peer, clock) / getattr(p.ours, clock) for p in self.pairs]

    def milliseconds(self, side: str, clock: str) -> float:
        return 1000 * median(getattr(getattr(p, side), clock) for p in self.pairs)


def race(ours: Arm, peer: Arm, clip: Stored, predictors: tuple[Any, Any], block: int) -> tuple[Race, Agreement]:
    """Both sides through the clip in turns, and how far their masks agree."""
    count = (clip.num_frames - WARM_UP) // block
    if count < 2:
        raise ValueError(f"expected at least {WARM_UP + 2 * block} frames: {WARM_UP} to warm up and two blocks of {block}, "
                         f"got {clip.num_frames}")  # fmt: skip
    arms = (ours, peer)
    masks: tuple[list[Tensor], list[Tensor]] = ([], [])
    runs = [_noted(track(arm, predictor, clip), into) for arm, predictor, into in zip(arms, predictors, masks)]
    warm_up = tuple(_advance(arm, run, WARM_UP).wall * WARM_UP for arm, run in zip(arms, runs))
    pairs = []
    for number in range(count - count % 2):
        spent = {side: _advance(arms[side], runs[side], block) for side in ((0, 1) if number % 2 == 0 else (1, 0))}
        pairs.append(Pair(spent[0], spent[1]))
    gflop = None
    if clip.num_frames > WARM_UP + block * len(pairs) and torch.device(ours.device).type == "cpu":
        gflop = (_gflop(predictors[0], runs[0]), _gflop(predictors[1], runs[1]))
    return Race(tuple(pairs), (warm_up[0], warm_up[1]), gflop), agreement(*masks)


def _gflop(predictor: Any, run: Iterator[Tensor]) -> float:
    """Of matrix products, attention and convolutions of the next frame."""
    with frozen(getattr(predictor, "model", predictor)), counting() as counter:
        next(run)
    return counter.get_total_flops() / 1e9


def _noted(run: Iterator[Tensor], into: list[Tensor]) -> Iterator[Tensor]:
    for masks in run:
        into.append(masks)
        yield masks


def _advance(arm: Arm, run: Iterator[Tensor], frames: int) -> Spent:
    arm.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(frames):
        next(run)
    arm.wait()
    return Spent((time.perf_counter() - wall) / frames, (time.process_time() - cpu) / frames)


# -- in a process of its own ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alone:
    """One side by itself: seconds from ``init_state`` to the answer to the first prompt and to the first tracked mask;
    bytes by which the process grows per frame after the warm-up, None where the system does not say; most bytes
    held; how many ``frames`` were tracked."""

    first_prompt: float
    first_mask: float
    slope: float | None
    most: int | None
    frames: int


def alone(arm: Arm, clip: Stored) -> Alone:
    """Measured in a fresh process."""
    job = json.dumps({"arm": asdict(arm), "place": str(clip.place), "num_frames": clip.num_frames})
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {root!r}); from sam2_mem.evaluation.benchmark.reference import _alone; _alone(sys.stdin.read())"
    done = subprocess.run([sys.executable, "-c", code], input=job, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that measures {arm.builder} failed:\n{done.stderr[-2000:]}")
    return Alone(**json.loads(done.stdout.splitlines()[-1]))


def _alone(job: str) -> None:
    given = json.loads(job)
    arm = Arm(**given["arm"] | {"overrides": tuple(given["arm"]["overrides"])})
    clip = Stored(place=Path(given["place"]), num_frames=given["num_frames"])
    if arm.threads:
        torch.set_num_threads(arm.threads)
    print(json.dumps(asdict(_by_itself(arm, arm.build(), clip))))


def _by_itself(arm: Arm, predictor: Any, clip: Stored) -> Alone:
    began = time.perf_counter()
    with arm.precision():
        state = predictor.init_state(str(clip.place / "frames"), **arm.init)
        for i, mask in enumerate(clip.prompts()):
            predictor.add_new_mask(state, 0, i + 1, mask)[2].cpu()
    prompted = time.perf_counter() - began
    del state
    began, first, held = time.perf_counter(), 0.0, []
    for index, masks in enumerate(track(arm, predictor, clip)):
        del masks
        if index == 0:
            first = time.perf_counter() - began
        if index >= WARM_UP:
            held.append((index, resident_bytes()))
    known = len(held) > 1 and held[0][1] is not None
    slope = float(np.polyfit(*zip(*held), 1)[0]) if known else None
    return Alone(prompted, first, slope, max(b for _, b in held) if known else None, index + 1)


# -- weights ----------------------------------------------------------------------------------------------------------

LOUDER = (("output_hypernetworks_mlps.", ".layers.2.", 10.0), ("cross_attn_image.", "out_proj.", 3.0))
"""(part, layer, factor): random weights under which masks are neither empty nor full and memory matters."""
SEEN = 5.0
"""Added to the bias of the object score, so that objects are there."""


@torch.no_grad()
def lively(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random weights made worth comparing."""
    made = {}
    for name, value in state.items():
        factors = [f for part, layer, f in LOUDER if part in name and layer in name]
        made[name] = value * factors[0] if factors else value.clone()
    made["sam_mask_decoder.pred_obj_score_head.layers.2.bias"] += SEEN
    return made
