"""What memory policies cost: time beside FIFO, tokens and bytes held, and whether both stay bounded on a long stream.

Times are only compared within one process, on the same frames and weights, in interleaved blocks: what else the machine
does meanwhile, or its clock, changes by more than policies differ.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from sam2_mem.evaluation.benchmark.measured_pass import MemoryCounter
from sam2_mem.evaluation.tables import text_table
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.tracker import TrackerSettings
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import Frame

WARM_UP = 17
"""First frames left out of times: FIFO reads its full window of maps and pointers from frame 16 on."""

BASELINE = "fifo"


@dataclass(frozen=True, kw_only=True)
class BenchmarkClip:
    """What is tracked: ``picture(t)`` (H, W, 3) uint8 for t in 0..num_frames-1, and the prompts of frame 0."""

    picture: Callable[[int], np.ndarray]
    num_frames: int
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("expected at least one prompt for frame 0, got none")

    def prompts_on(self, index: int) -> tuple[Prompt, ...]:
        return self.prompts if index == 0 else ()

    def with_objects(self, count: int) -> BenchmarkClip:
        """The same with the first ``count`` objects only."""
        if not 1 <= count <= len(self.prompts):
            raise ValueError(f"expected 1..{len(self.prompts)} objects, the number of masks given, got {count}")
        return BenchmarkClip(picture=self.picture, num_frames=self.num_frames, prompts=self.prompts[:count])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all policies of one run share: the network and what the tracker does around a policy."""

    model: SAM2
    tracker: TrackerSettings = field(default_factory=TrackerSettings)

    def predictor(self, policy: MemoryPolicy) -> SAM2VideoPredictor:
        return SAM2VideoPredictor(self.model, policy, tracker=self.tracker)

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


# -- policies beside FIFO ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One pass: milliseconds per frame, and a digest of all its masks."""

    milliseconds: tuple[float, ...]
    masks: str

    def median(self) -> float:
        return median(self.milliseconds[WARM_UP:])


def run_block(setting: Setting, policy: MemoryPolicy, clip: BenchmarkClip) -> Block:
    """Track ``clip`` with the clock running: image encoder, one step for all objects, masks at the picture's size.
    Reading the picture is not timed."""
    predictor = setting.predictor(policy)
    state = predictor.init_state(num_frames=clip.num_frames)
    times, digest = [], hashlib.sha256()
    for index in range(clip.num_frames):
        picture = clip.picture(index)
        setting.wait()
        began = time.perf_counter()
        masks = predictor.track_frame(state, picture, clip.prompts_on(index))[2]
        setting.wait()
        times.append(1000 * (time.perf_counter() - began))
        digest.update(np.packbits((masks > 0).cpu().numpy()).tobytes())
    return Block(tuple(times), digest.hexdigest())


@torch.inference_mode()
def count_memory(setting: Setting, policy: MemoryPolicy, clip: BenchmarkClip) -> MemoryCounter:
    """Track ``clip`` and count what is held and read."""
    counter = MemoryCounter(policy)
    predictor = setting.predictor(counter.counting_policy())
    tracker = predictor.init_state(num_frames=clip.num_frames).tracker
    for index in range(clip.num_frames):
        features = predictor.encode(Frame(index, f"{index:05d}", clip.picture(index)))
        tracker.step(features, clip.prompts_on(index))
        counter.end_frame(tracker.tracks.values())
    return counter


@dataclass(frozen=True, kw_only=True)
class PolicyCost:
    """One policy beside FIFO.

    ``ms`` per frame, the median over all blocks; ``fifo_ms`` that of the FIFO blocks around them; ``ratio`` the median
    of the ratios of neighbouring blocks, ``ratio_min`` and ``ratio_max`` their range. ``bytes`` of all states together
    and ``tokens`` of the object that holds most, after the first ``WARM_UP`` frames (``_warm``) and at the end;
    ``capacity`` the bound on tokens per object, None for none. ``read`` memory tokens and ``pointers`` object pointers
    per object and frame, the mean after warm-up. ``repeatable``: all blocks of a policy gave the same masks.
    """

    policy: str
    objects: int
    frames: int
    blocks: int
    ms: float
    fifo_ms: float
    ratio: float
    ratio_min: float
    ratio_max: float
    bytes_warm: int
    bytes_end: int
    tokens_warm: int
    tokens_end: int
    capacity: int | None
    read: float
    pointers: float
    repeatable: bool


def compare(
    setting: Setting,
    policies: Mapping[str, MemoryPolicy],
    clip: BenchmarkClip,
    *,
    objects: Sequence[int] = (1,),
    rounds: int = 1,
) -> Iterator[PolicyCost]:
    """The cost of every policy beside ``policies["fifo"]``, for each number of objects.

    Args:
        setting: what all policies share.
        policies: by name.
        clip: what is tracked.
        objects: how many of its objects.
        rounds: how often the blocks fifo, policy, policy, fifo are run. The pass that counts goes first, so that
            nothing is run for the first time with the clock on.
    """
    if BASELINE not in policies:
        raise ValueError(f"expected {BASELINE} among the policies, to compare with, got {list(policies)}")
    if clip.num_frames <= WARM_UP:
        raise ValueError(f"expected more than {WARM_UP} frames, the first being warm-up, got {clip.num_frames}")
    if rounds < 1:
        raise ValueError(f"expected rounds >= 1, got {rounds}")
    for count in objects:
        small_clip = clip.with_objects(count)
        for name, policy in policies.items():
            counter = count_memory(setting, policy, small_clip)
            order, pairs = (policies[BASELINE], policy, policy, policies[BASELINE]), []
            for _ in range(rounds):
                blocks = [run_block(setting, measured, small_clip) for measured in order]
                pairs += [(blocks[0], blocks[1]), (blocks[3], blocks[2])]
            yield _policy_cost(name, setting, small_clip, counter, pairs)


def _policy_cost(
    name: str, setting: Setting, clip: BenchmarkClip, counter: MemoryCounter, pairs: Sequence[tuple[Block, Block]]
) -> PolicyCost:
    """``pairs``: neighbouring blocks of FIFO and of the policy."""
    ratios = [block.median() / fifo.median() for fifo, block in pairs]
    return PolicyCost(
        policy=name,
        objects=len(clip.prompts),
        frames=clip.num_frames,
        blocks=len(pairs),
        ms=median(x for _, block in pairs for x in block.milliseconds[WARM_UP:]),
        fifo_ms=median(x for fifo, _ in pairs for x in fifo.milliseconds[WARM_UP:]),
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        bytes_warm=counter.state_bytes[WARM_UP - 1],
        bytes_end=counter.state_bytes[-1],
        tokens_warm=counter.largest[WARM_UP - 1],
        tokens_end=counter.largest[-1],
        capacity=counter.policy.capacity(setting.model.tokens_per_map),
        read=fmean(counter.tokens_read[WARM_UP:]),
        pointers=fmean(counter.pointers_read[WARM_UP:]),
        repeatable=all(len({block.masks for block in column}) == 1 for column in zip(*pairs)),
    )


# -- long streams -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    """What is held after ``frame`` frames: ``bytes`` of all states, ``resident`` bytes of the process, None where the
    system does not say."""

    frame: int
    bytes: int
    resident: int | None


@dataclass(frozen=True, kw_only=True)
class StreamCost:
    """One policy on a long stream. ``most_tokens``: the most any object ever held. ``slope``: bytes per frame by which
    the process grew over the second half, None where the system does not say."""

    policy: str
    objects: int
    marks: tuple[Mark, ...]
    most_tokens: int
    capacity: int | None
    slope: float | None

    @property
    def most_resident(self) -> int | None:
        """Bytes of the process at the mark where it held most."""
        return max((mark.resident for mark in self.marks if mark.resident is not None), default=None)

    @property
    def bounded(self) -> bool:
        """Never more than the policy's own bound."""
        return self.capacity is None or self.most_tokens <= self.capacity


def measure_stream(
    setting: Setting, name: str, policy: MemoryPolicy, clip: BenchmarkClip, *, every: int = 100
) -> StreamCost:
    """Track a long stream whose pictures are made one at a time; what is held is noted every ``every`` frames."""
    if not 1 <= every <= clip.num_frames:
        raise ValueError(f"expected every in 1..{clip.num_frames}, the number of frames, got {every}")
    predictor = setting.predictor(policy)
    state = predictor.init_state()
    marks, most_tokens = [], 0
    for index in range(clip.num_frames):
        predictor.track_frame(state, clip.picture(index), clip.prompts_on(index))
        states = [track.state for track in state.tracker.tracks.values() if track.state is not None]
        most_tokens = max(most_tokens, *(s.token_count() for s in states))
        if (index + 1) % every == 0:
            state_bytes = tensor_bytes(t for s in states for t in s.tensors())
            marks.append(Mark(index + 1, state_bytes, resident_bytes()))
    capacity = policy.capacity(setting.model.tokens_per_map)
    return StreamCost(
        policy=name,
        objects=len(clip.prompts),
        marks=tuple(marks),
        most_tokens=most_tokens,
        capacity=capacity,
        slope=growth_per_frame(marks[len(marks) // 2 :]),
    )


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None on systems without /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None


def growth_per_frame(marks: Sequence[Mark]) -> float | None:
    """Bytes of the process, by least squares; None where the system does not say, or there are fewer than two marks."""
    sizes = [mark.resident for mark in marks if mark.resident is not None]
    if len(sizes) < max(len(marks), 2):
        return None
    return float(np.polyfit([mark.frame for mark in marks], sizes, 1)[0])


# -- tables -----------------------------------------------------------------------------------------------------------


def cost_table(costs: Sequence[PolicyCost], *, markdown: bool = False) -> str:
    """One row per policy and number of objects."""
    counts = ("MB warm", "MB end", "tokens warm", "tokens end", "bound", "read", "pointers")
    rows = [
        (
            *(c.policy + ("" if c.repeatable else " (!)"), str(c.objects)),
            *(f"{c.ms:.2f}", f"{c.ratio:.3f}", f"{c.ratio_min:.3f}-{c.ratio_max:.3f}"),
            *(_megabytes(c.bytes_warm), _megabytes(c.bytes_end), str(c.tokens_warm), str(c.tokens_end)),
            *(_bound(c.capacity), f"{c.read:.0f}", f"{c.pointers:.1f}"),
        )
        for c in costs
    ]
    note = "" if all(c.repeatable for c in costs) else "\n(!) its masks, or fifo's, differed between blocks"
    return text_table(("policy", "objects", "ms", "/ fifo", "range", *counts), rows, markdown=markdown) + note


def stream_table(costs: Sequence[StreamCost], *, markdown: bool = False) -> str:
    """One row per policy; a column for each mark."""
    frames = [mark.frame for mark in costs[0].marks] if costs else []
    process = ("process MB", "grows, bytes/frame")
    head = ("policy", "objects", *(f"MB at {f}" for f in frames), "most tokens", "bound", *process)
    rows = [
        (
            *(c.policy + ("" if c.bounded else " (!)"), str(c.objects)),
            *(_megabytes(mark.bytes) for mark in c.marks),
            *(str(c.most_tokens), _bound(c.capacity)),
            "unknown" if c.most_resident is None else f"{c.most_resident / 1e6:.0f}",
            "unknown" if c.slope is None else f"{c.slope:.0f}",
        )
        for c in costs
    ]
    note = "" if all(c.bounded for c in costs) else "\n(!) held more than its bound"
    return text_table(head, rows, markdown=markdown) + note


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3f}"


def _bound(capacity: int | None) -> str:
    return "none" if capacity is None else str(capacity)
