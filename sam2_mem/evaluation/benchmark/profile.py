"""Where the time of a frame goes: milliseconds and operations of the parts of the network, and what is left around them.

The network calls its parts through a runner (:mod:`sam2_mem.model.acceleration.cuda_graphs`), and the stopwatch is one. Operations are
those of matrix products, attention and convolutions, counted by torch on a pass of its own, with attention written out;
two per multiplication and addition.
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

from sam2_mem.evaluation.benchmark.policy_costs import WARM_UP, Footage, Setting, table
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

WHOLE, REST = "frame", "the rest"


@dataclass(frozen=True, kw_only=True)
class Part:
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


class Stopwatch:
    """A runner that notes how long every part takes, around the one that was there."""

    def __init__(self, around: Callable, wait: Callable[[], None]) -> None:
        self.around = around
        self.wait = wait
        self.spent: dict[str, list[float]] = defaultdict(list)

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        self.wait()
        began = time.perf_counter()
        result = self.around(part, function, *args, steady=steady)
        self.wait()
        self.spent[part].append(time.perf_counter() - began)
        return result


class Counter:
    """A runner that counts the operations of every part, which the one that was there runs without a recording: replayed
    operations are not seen."""

    def __init__(self, around: Callable) -> None:
        self.around = around
        self.operations: dict[str, int] = defaultdict(int)

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        with counting() as counter:
            result = self.around(part, function, *args, steady=False)
        self.operations[part] += counter.get_total_flops()
        return result


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """torch's counter, with attention written out."""
    with FlopCounterMode(display=False, custom_mapping=uncounted()) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def added_product(total: Sequence[int], one: Sequence[int], other: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Operations of ``total.addmm_(one, other)``."""
    return 2 * one[0] * one[1] * other[1]


def linear_map(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Operations of oneDNN's linear map (:mod:`sam2_mem.model.acceleration.onednn_linear`)."""
    return 2 * math.prod(x) * weight[0]


def uncounted() -> dict[Any, Callable]:
    """What torch's counter does not count by itself."""
    found = {torch.ops.aten.addmm_: added_product}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found[torch.ops.mkldnn._linear_pointwise] = linear_map
    return found


def profile(setting: Setting, policy: MemoryPolicy, footage: Footage, *, trace: Path | None = None) -> list[Part]:
    """The parts of a frame after the warm-up, the whole frame first.

    Args:
        trace: the last frame as a file for Chrome's or Perfetto's viewer, by torch's profiler.
    """
    if footage.num_frames < WARM_UP + 3:
        raise ValueError(
            f"expected at least {WARM_UP + 3} frames, {WARM_UP} of them to warm up, got {footage.num_frames}"
        )
    frames: list[float] = []
    parts: dict[str, list[tuple[float, int]]] = defaultdict(list)
    run = _Run(setting, policy, footage)
    for index in range(footage.num_frames - 2):
        watch = Stopwatch(setting.model.runner, setting.wait)
        with _runner(setting, watch), torch.inference_mode():
            setting.wait()
            began = time.perf_counter()
            run.frame(index)
            setting.wait()
            whole = time.perf_counter() - began
        if index >= WARM_UP:
            frames.append(whole)
            for name, seconds in watch.spent.items():
                parts[name].append((sum(seconds), len(seconds)))
            parts[REST].append((whole - sum(map(sum, watch.spent.values())), 1))
    with _traced(trace):
        run.frame(footage.num_frames - 2)
    counter = Counter(setting.model.runner)
    with _runner(setting, counter), frozen(setting.model):
        run.frame(footage.num_frames - 1)
    return _summed(frames, parts, counter.operations)


class _Run:
    """A stream under way."""

    def __init__(self, setting: Setting, policy: MemoryPolicy, footage: Footage) -> None:
        self.predictor: SAM2VideoPredictor = setting.predictor(policy)
        self.state: InferenceState = self.predictor.init_state(num_frames=footage.num_frames)
        self.footage = footage

    def frame(self, index: int) -> None:
        prompts = self.footage.prompts if index == 0 else ()
        self.predictor.track_frame(self.state, self.footage.picture(index), prompts)


@contextmanager
def _runner(setting: Setting, runner: Callable) -> Iterator[None]:
    before, setting.model.runner = setting.model.runner, runner
    try:
        yield
    finally:
        setting.model.runner = before


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
    with nullcontext() if path is None else torch.profiler.profile(activities=kinds, acc_events=True) as found:
        yield
    if path is not None:
        found.export_chrome_trace(str(path))


def _summed(
    frames: Sequence[float], parts: dict[str, list[tuple[float, int]]], operations: dict[str, int]
) -> list[Part]:
    found = [
        Part(
            name=name,
            milliseconds=1000 * median(seconds for seconds, _ in spent),
            calls=sum(calls for _, calls in spent) / len(frames),
            gflop=None if name == REST else operations[name] / 1e9,
        )
        for name, spent in sorted(parts.items(), key=lambda item: item[0] == REST)
    ]
    total = Part(name=WHOLE, milliseconds=1000 * median(frames), calls=1, gflop=sum(operations.values()) / 1e9)
    return [total, *found]


def profile_table(parts: Sequence[Part], *, markdown: bool = False) -> str:
    """One row per part."""
    whole = parts[0].milliseconds
    rows = [
        (
            p.name,
            f"{p.milliseconds:.1f}",
            f"{100 * p.milliseconds / whole:.0f}",
            f"{p.calls:.1f}",
            "" if p.gflop is None else f"{p.gflop:.2f}",
            "" if p.rate is None else f"{p.rate:.0f}",
        )
        for p in parts
    ]
    return table(("part", "ms", "%", "batches", "GFLOP", "GFLOP/s"), rows, markdown)
