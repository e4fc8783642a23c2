"""One measured pass of a predictor over a video: its masks, how long it took, what it held and read on every frame.

The clock runs while the predictor works: image encoder, memory, decoder, masks at the size of the video. It is paused
while frames are made or decoded, while masks are stored, and while anything is counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.tracking.run_manifest import peak_cuda_bytes
from sam2_mem.tracking.track import Track
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import FrameMasks, PromptPlan, segment
from sam2_mem.types import FrameContext, MemoryRead
from sam2_mem.video import Frame, VideoSource
from sam2_mem.video.source import Frames

WARM_UP = 3
"""Frames tracked before the clock runs for the first time: kernels are chosen and buffers made on first use."""


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What a pass cost.

    ``seconds``: of the predictor's work; ``cpu_seconds``: of processor time for it, all threads together. ``peak_bytes``: the most memory the process had meanwhile (CUDA: the most that
    tensors took), None where the system does not say; ``growth_bytes``: how much more that is than before. Per frame:
    ``state_bytes`` of all policy states together; ``tokens_held``, ``tokens_read``, ``pointers_read``, the mean over the
    objects tracked on it, equal pathways counted once.
    """

    frames: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    growth_bytes: int | None
    state_bytes: tuple[int, ...]
    tokens_held: tuple[float, ...]
    tokens_read: tuple[float, ...]
    pointers_read: tuple[float, ...]


class Stopwatch:
    """Adds up the time it runs: ``seconds`` of the clock, ``cpu_seconds`` of this process on all processors."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since[0]
            self.cpu_seconds += time.process_time() - self._since[1]
            self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop for a while, if it runs."""
        ran = self._since is not None
        self.stop()
        yield
        if ran:
            self.start()


class PausingSource(VideoSource):
    """A video whose frames are made while the stopwatch is paused; ``after(index)`` is called, also with the stopwatch
    paused, once the consumer of frame ``index`` asks for the next one."""

    def __init__(self, inner: VideoSource, stopwatch: Stopwatch, after: Callable[[int], None]) -> None:
        super().__init__(prefetch=0, cache=0)
        self._inner, self._stopwatch, self._after = inner, stopwatch, after

    @property
    def seekable(self) -> bool:
        return True

    @property
    def num_frames(self) -> int | None:
        return self._inner.num_frames

    def count_frames(self) -> int:
        return self._inner.count_frames()

    def name(self, index: int) -> str:
        return self._inner.name(index)

    def _find_size(self) -> tuple[int, int]:
        return self._inner.height, self._inner.width

    def __getitem__(self, index: int) -> Frame:
        with self._stopwatch.paused():
            return self._inner[index]

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Frames:
        with closing(self._inner.frames(start, stop, step)) as inner:
            while True:
                with self._stopwatch.paused():
                    frame = next(inner, None)
                if frame is None:
                    return
                yield frame
                with self._stopwatch.paused():
                    self._after(frame.index)


@dataclass
class MemoryCounter:
    """What is held after, and read on, every frame, where tracking runs ``counting_policy`` in place of ``policy``.

    ``state_bytes`` of all states together; ``tokens_held``, ``tokens_read`` and ``pointers_read``, the mean over objects,
    equal pathways counted once; ``largest``: tokens of the object that holds most. ``stopwatch`` is paused meanwhile.
    """

    policy: MemoryPolicy
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    state_bytes: list[int] = field(default_factory=list)
    tokens_held: list[float] = field(default_factory=list)
    largest: list[int] = field(default_factory=list)
    tokens_read: list[float] = field(default_factory=list)
    pointers_read: list[float] = field(default_factory=list)
    _reads: list[tuple[int, int]] = field(default_factory=list)

    def add_read(self, reads: Sequence[MemoryRead]) -> None:
        """What one object reads on the frame in progress."""
        distinct = {read.key(): read for read in reads}.values()
        tokens = sum(len(item.tokens) for read in distinct for item in read.items)
        self._reads.append((tokens, sum(len(read.pointers) for read in distinct)))

    def end_frame(self, tracks: Iterable[Track]) -> None:
        states = [track.state for track in tracks if track.state is not None]
        counts = [state.token_count() for state in states]
        self.state_bytes.append(tensor_bytes(t for state in states for t in state.tensors()))
        self.tokens_held.append(_mean(counts))
        self.largest.append(max(counts, default=0))
        self.tokens_read.append(_mean([tokens for tokens, _ in self._reads]))
        self.pointers_read.append(_mean([pointers for _, pointers in self._reads]))
        self._reads.clear()

    def counting_policy(self) -> MemoryPolicy:
        """The same policy, whose reads are counted."""
        counter = self

        class ReadCounting(type(self.policy)):  # type: ignore[misc]
            def read(self, state: object, frame: FrameContext) -> Sequence[MemoryRead]:
                reads = super().read(state, frame)
                with counter.stopwatch.paused():
                    counter.add_read(reads)
                return reads

        ReadCounting.__name__ = type(self.policy).__name__
        copy = object.__new__(ReadCounting)
        copy.__dict__.update(vars(self.policy))
        return copy


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def warm_up(predictor: SAM2VideoPredictor, source: VideoSource, plan: PromptPlan) -> None:
    """Track the first frames for nothing."""
    first = min(plan.at, default=0)
    state = predictor.init_state(PausingSource(source, Stopwatch(), lambda index: None))
    with closing(segment(predictor, state, plan, start=first, allow_empty=True)) as frames:
        for _ in islice(frames, WARM_UP):
            pass


def measured_pass(
    predictor: SAM2VideoPredictor,
    source: VideoSource,
    plan: PromptPlan,
    store: Callable[[FrameMasks], None],
    *,
    max_frames: int | None = None,
) -> PassCost:
    """Track a video from its first frame on; ``store`` gets the masks of every frame, while the clock is paused."""
    stopwatch, policy = Stopwatch(), predictor.policy
    counter = MemoryCounter(policy, stopwatch)
    source = PausingSource(source, stopwatch, lambda index: counter.end_frame(state.tracker.tracks.values()))
    plan = PromptPlan(plan.obj_ids, {t: _untimed(stopwatch, prompts) for t, prompts in plan.at.items()}, plan.palette)
    memory = PeakMemory(predictor.device)
    predictor.policy = counter.counting_policy()
    try:
        state = predictor.init_state(source, interactive=False)
        count = _drive(segment(predictor, state, plan, stop=max_frames, allow_empty=True), stopwatch, store)
    finally:
        predictor.policy = policy
    return PassCost(
        frames=count,
        seconds=stopwatch.seconds,
        cpu_seconds=stopwatch.cpu_seconds,
        peak_bytes=memory.peak(),
        growth_bytes=memory.growth(),
        state_bytes=tuple(counter.state_bytes),
        tokens_held=tuple(counter.tokens_held),
        tokens_read=tuple(counter.tokens_read),
        pointers_read=tuple(counter.pointers_read),
    )


def _untimed(stopwatch: Stopwatch, prompts: Callable) -> Callable:
    def read(frame: Frame) -> list:
        with stopwatch.paused():
            return prompts(frame)

    return read


def _drive(frames: Generator[FrameMasks, None, None], stopwatch: Stopwatch, store: Callable[[FrameMasks], None]) -> int:
    count = 0
    with closing(frames):
        while True:
            stopwatch.start()
            masks = next(frames, None)
            stopwatch.stop()
            if masks is None:
                return count
            store(masks)
            count += 1


class PeakMemory:
    """The most memory in use since this was made: of tensors on a CUDA device, of the process on a Linux CPU."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._start: int | None = torch.cuda.memory_allocated(device)
        else:
            self._start = _resident("VmRSS") if _forget_peak() else None

    def peak(self) -> int | None:
        if self._device.type == "cuda":
            return peak_cuda_bytes(self._device)
        return _resident("VmHWM") if self._start is not None else None

    def growth(self) -> int | None:
        peak = self.peak()
        return None if peak is None or self._start is None else max(0, peak - self._start)


def _forget_peak() -> bool:
    """Let the system count the process's peak anew; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(label: str) -> int | None:
    """Bytes of a line of the process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{label}:")), None)
