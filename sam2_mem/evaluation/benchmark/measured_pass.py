"""One measured pass of a predictor over a video: its masks, how long it took, what it held and read on every frame.

The clock runs while the predictor works: image encoder, memory, decoder, masks at the size of the video. It stands
while frames are made or decoded, while masks are kept, and while anything is counted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.run_manifest import peak_cuda_bytes
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

    Attributes:
        seconds: of the predictor's work. peak_bytes: the most memory the process had meanwhile (CUDA: the most that
            tensors took); None where the system does not say. growth_bytes: how much more that is than before.
        state_bytes: per frame, of all policy states together. tokens_held, tokens_read, pointers_read: per frame, the
            mean over the objects tracked on it; equal pathways count once.
    """

    frames: int
    seconds: float
    peak_bytes: int | None
    growth_bytes: int | None
    state_bytes: tuple[int, ...]
    tokens_held: tuple[float, ...]
    tokens_read: tuple[float, ...]
    pointers_read: tuple[float, ...]


# -- the clock ------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Adds up the time it runs."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Stop for a while, if it runs."""
        ran = self._since is not None
        self.stop()
        yield
        if ran:
            self.start()


class WatchedSource(VideoSource):
    """A video whose frames are made while the clock stands; ``after(index)`` is called, also with the clock standing,
    once the consumer of frame ``index`` asks for the next one."""

    def __init__(self, inner: VideoSource, watch: Stopwatch, after: Callable[[int], None]) -> None:
        super().__init__(prefetch=0, cache=0)
        self._inner, self._watch, self._after = inner, watch, after

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
        with self._watch.standing():
            return self._inner[index]

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Frames:
        with closing(self._inner.frames(start, stop, step)) as inner:
            while True:
                with self._watch.standing():
                    frame = next(inner, None)
                if frame is None:
                    return
                yield frame
                with self._watch.standing():
                    self._after(frame.index)


# -- counting -------------------------------------------------------------------------------------------------------


@dataclass
class Census:
    """What is held after, and read on, every frame."""

    policy: MemoryPolicy
    state: InferenceState | None = None
    state_bytes: list[int] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    pointers: list[float] = field(default_factory=list)
    _now: list[tuple[int, int]] = field(default_factory=list)

    def note_read(self, reads: Sequence[MemoryRead]) -> None:
        """What one object reads on the frame in progress."""
        distinct = {read.key(): read for read in reads}.values()
        tokens = sum(len(item.tokens) for read in distinct for item in read.items)
        self._now.append((tokens, sum(len(read.pointers) for read in distinct)))

    def close_frame(self, index: int) -> None:
        tracks = [] if self.state is None else self.state.tracker.tracks.values()
        states = [track.state for track in tracks if track.state is not None]
        self.state_bytes.append(tensor_bytes(t for s in states for t in s.tensors()))
        self.held.append(_mean([s.token_count() for s in states]))
        self.read.append(_mean([tokens for tokens, _ in self._now]))
        self.pointers.append(_mean([pointers for _, pointers in self._now]))
        self._now.clear()


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def counted(policy: MemoryPolicy, watch: Stopwatch, note: Callable[[Sequence[MemoryRead]], None]) -> MemoryPolicy:
    """The same policy, which tells ``note`` what it reads; the clock stands meanwhile."""

    class Counted(type(policy)):
        def read(self, state: object, frame: FrameContext) -> Sequence[MemoryRead]:
            reads = super().read(state, frame)
            with watch.standing():
                note(reads)
            return reads

    Counted.__name__ = type(policy).__name__
    twin = object.__new__(Counted)
    twin.__dict__.update(vars(policy))
    return twin


# -- the pass -------------------------------------------------------------------------------------------------------


def warm_up(predictor: SAM2VideoPredictor, source: VideoSource, plan: PromptPlan) -> None:
    """Track the first frames for nothing."""
    first = min(plan.at, default=0)
    state = predictor.init_state(WatchedSource(source, Stopwatch(), lambda index: None))
    with closing(segment(predictor, state, plan, start=first)) as frames:
        for _ in islice(frames, WARM_UP):
            pass


def measured_pass(
    predictor: SAM2VideoPredictor,
    source: VideoSource,
    plan: PromptPlan,
    keep: Callable[[FrameMasks], None],
    *,
    max_frames: int | None = None,
) -> PassCost:
    """Track a video from its first frame on; ``keep`` gets the masks of every frame, while the clock stands."""
    watch = Stopwatch()
    original = predictor.policy
    census = Census(original)
    source = WatchedSource(source, watch, census.close_frame)
    plan = PromptPlan(plan.obj_ids, {t: _untimed(watch, prompts) for t, prompts in plan.at.items()}, plan.palette)
    memory = PeakMemory(predictor.device)
    predictor.policy = counted(original, watch, census.note_read)
    try:
        state = census.state = predictor.init_state(source)
        count = _drive(segment(predictor, state, plan, stop=max_frames), watch, keep)
    finally:
        predictor.policy = original
    return PassCost(
        frames=count,
        seconds=watch.seconds,
        peak_bytes=memory.peak(),
        growth_bytes=memory.growth(),
        state_bytes=tuple(census.state_bytes),
        tokens_held=tuple(census.held),
        tokens_read=tuple(census.read),
        pointers_read=tuple(census.pointers),
    )


def _untimed(watch: Stopwatch, prompts: Callable) -> Callable:
    def read(frame: Frame) -> list:
        with watch.standing():
            return prompts(frame)

    return read


def _drive(frames: Iterator[FrameMasks], watch: Stopwatch, keep: Callable[[FrameMasks], None]) -> int:
    count = 0
    with closing(frames):
        while True:
            watch.start()
            shown = next(frames, None)
            watch.stop()
            if shown is None:
                return count
            keep(shown)
            count += 1


class PeakMemory:
    """The most memory in use since this was made: of tensors on a CUDA device, of the process on a Linux CPU."""

    def __init__(self, device: torch.device) -> None:
        gc.collect()
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident("VmRSS") if _forget_peak() else None

    def peak(self) -> int | None:
        if self._device.type == "cuda":
            return peak_cuda_bytes(self._device)
        return _resident("VmHWM") if self._before is not None else None

    def growth(self) -> int | None:
        peak = self.peak()
        return None if peak is None or self._before is None else max(0, peak - self._before)


def _forget_peak() -> bool:
    """Let the system count the process's peak anew; False where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(label: str) -> int | None:
    lines = Path("/proc/self/status").read_text().splitlines()
    found = [line.split() for line in lines if line.startswith(f"{label}:")]
    return int(found[0][1]) * 1024 if found else None
