"""Where the time of a frame goes: milliseconds and operations of the parts of the network, and what is left around them.

The network calls its parts through a runner (``sam2_mem.model.acceleration.cuda_graphs``), and what measures them is
one. Operations are those of matrix products, attention and convolutions, counted by torch on a pass of its own, with
attention written out; two per multiplication and addition.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sam2_mem.evaluation.benchmark.policy_costs import WARM_UP, BenchmarkClip, Setting
from sam2_mem.evaluation.tables import text_table
from sam2_mem.memory.policy import MemoryPolicy

FRAME, REMAINDER = "frame", "the rest"


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """A part of a frame, all its batches together: milliseconds, the median over frames; batches (``calls``) and GFLOP
    per frame, None for what is left."""

    name: str
    milliseconds: float
    calls: float
    gflop: float | None

    @property
    def rate(self) -> float | None:
        """GFLOP per second."""
        return None if self.gflop is None else 1000 * self.gflop / self.milliseconds


class PartTimer:
    """A runner that notes how long every part takes, around the one that was there."""

    def __init__(self, runner: Callable, wait: Callable[[], None]) -> None:
        self.runner, self.wait = runner, wait
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        self.wait()
        began = time.perf_counter()
        result = self.runner(part, function, *args, steady=steady)
        self.wait()
        self.seconds[part].append(time.perf_counter() - began)
        return result


class OperationCounter:
    """A runner that counts the operations of every part, which the one that was there runs without a recording: replayed
    operations are not seen."""

    def __init__(self, runner: Callable) -> None:
        self.runner = runner
        self.operations: dict[str, int] = defaultdict(int)

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        with counting() as counter:
            result = self.runner(part, function, *args, steady=False)
        self.operations[part] += counter.get_total_flops()
        return result


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """torch's counter, with attention written out."""
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def uncounted() -> dict[Any, Callable[..., int]]:
    """Operations that torch's counter does not count by itself, from shapes: ``total.addmm_(a, b)``, and oneDNN's linear
    map (``sam2_mem.model.acceleration.onednn_linear``)."""
    counts: dict[Any, Callable[..., int]] = {
        torch.ops.aten.addmm_: lambda total, a, b, *_, **__: 2 * a[0] * a[1] * b[1]
    }
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        counts[torch.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]
    return counts


def profile(
    setting: Setting, policy: MemoryPolicy, clip: BenchmarkClip, *, trace: Path | None = None
) -> list[PartCost]:
    """The parts of a frame after the warm-up, the whole frame first.

    Args:
        setting: the network.
        policy: its memory.
        clip: what is tracked.
        trace: the last frame as a file for Chrome's or Perfetto's viewer, by torch's profiler.
    """
    if clip.num_frames < WARM_UP + 3:
        raise ValueError(f"expected at least {WARM_UP + 3} frames, {WARM_UP} of them to warm up, got {clip.num_frames}")
    frames: list[float] = []
    parts: dict[str, list[tuple[float, int]]] = defaultdict(list)
    predictor = setting.predictor(policy)
    state = predictor.init_state(num_frames=clip.num_frames)

    def track(index: int) -> None:
        predictor.track_frame(state, clip.picture(index), clip.prompts_on(index))

    for index in range(clip.num_frames - 2):
        timer = PartTimer(setting.model.runner, setting.wait)
        with _runner(setting, timer), torch.inference_mode():
            setting.wait()
            began = time.perf_counter()
            track(index)
            setting.wait()
            total = time.perf_counter() - began
        if index >= WARM_UP:
            frames.append(total)
            for name, seconds in timer.seconds.items():
                parts[name].append((sum(seconds), len(seconds)))
            parts[REMAINDER].append((total - sum(map(sum, timer.seconds.values())), 1))
    with _traced(trace):
        track(clip.num_frames - 2)
    counter = OperationCounter(setting.model.runner)
    with _runner(setting, counter), frozen(setting.model):
        track(clip.num_frames - 1)
    return _summed(frames, parts, counter.operations)


@contextmanager
def _runner(setting: Setting, runner: Callable) -> Iterator[None]:
    original, setting.model.runner = setting.model.runner, runner
    try:
        yield
    finally:
        setting.model.runner = original


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Weights without gradient, which torch's counter would look for."""
    learned = [p for p in model.parameters() if p.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


@contextmanager
def _traced(path: Path | None) -> Iterator[None]:
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * torch.cuda.is_available()
    with nullcontext() if path is None else torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
        yield
    if path is not None and profiler is not None:
        profiler.export_chrome_trace(str(path))


def _summed(
    frames: Sequence[float], parts: dict[str, list[tuple[float, int]]], operations: dict[str, int]
) -> list[PartCost]:
    costs = [
        PartCost(
            name=name,
            milliseconds=1000 * median(seconds for seconds, _ in of_frames),
            calls=sum(calls for _, calls in of_frames) / len(frames),
            gflop=None if name == REMAINDER else operations[name] / 1e9,
        )
        for name, of_frames in sorted(parts.items(), key=lambda item: item[0] == REMAINDER)
    ]
    total = PartCost(name=FRAME, milliseconds=1000 * median(frames), calls=1, gflop=sum(operations.values()) / 1e9)
    return [total, *costs]


def profile_table(parts: Sequence[PartCost], *, markdown: bool = False) -> str:
    """One row per part."""
    total = parts[0].milliseconds
    rows = [
        (
            p.name,
            f"{p.milliseconds:.1f}",
            f"{100 * p.milliseconds / total:.0f}",
            f"{p.calls:.1f}",
            "" if p.gflop is None else f"{p.gflop:.2f}",
            "" if p.rate is None else f"{p.rate:.0f}",
        )
        for p in parts
    ]
    return text_table(("part", "ms", "%", "batches", "GFLOP", "GFLOP/s"), rows, markdown=markdown)
