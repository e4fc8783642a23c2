"""What memory policies cost: time beside FIFO, tokens and bytes held, and whether both stay bounded on a long stream.

Times are only compared within one process, on the same frames and weights, in interleaved blocks: what else the machine
does meanwhile, or its clock, changes by more than policies differ.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.tokens import tensor_bytes
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import FrameFeatures
from sam2_mem.video import Frame

WARM_UP = 17
"""First frames left out of times: FIFO reads its full window of maps and pointers from frame 16 on."""

BASELINE = "fifo"


@dataclass(frozen=True, kw_only=True)
class Footage:
    """What is tracked: ``picture(t)`` (H, W, 3) uint8 for t in 0..num_frames-1, and the prompts of frame 0."""

    picture: Callable[[int], np.ndarray]
    num_frames: int
    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("expected at least one prompt for frame 0, got none")

    def with_objects(self, count: int) -> Footage:
        """The same with the first ``count`` objects only."""
        if not 1 <= count <= len(self.prompts):
            raise ValueError(f"expected 1..{len(self.prompts)} objects, the number of masks given, got {count}")
        return Footage(picture=self.picture, num_frames=self.num_frames, prompts=self.prompts[:count])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all policies of one run share: the network and what the tracker does around a policy."""

    model: SAM2
    tracker: TrackerSettings = TrackerSettings()

    def predictor(self, policy: MemoryPolicy) -> SAM2VideoPredictor:
        return SAM2VideoPredictor(self.model, policy, tracker=self.tracker)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


# -- one pass ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One pass: milliseconds per frame, and a digest of all masks given out."""

    milliseconds: tuple[float, ...]
    masks: str

    def median(self) -> float:
        return median(self.milliseconds[WARM_UP:])


@dataclass(frozen=True)
class Census:
    """What a pass holds and reads, per frame: ``bytes`` of all states together; ``tokens`` of the object that holds
    most; ``read`` memory tokens and ``pointers`` object pointers, per tracked object over its distinct pathways."""

    bytes: tuple[int, ...]
    tokens: tuple[int, ...]
    read: tuple[float, ...]
    pointers: tuple[float, ...]


def run_block(setting: Setting, policy: MemoryPolicy, footage: Footage) -> Block:
    """Track ``footage`` with the clock running: image encoder, one step for all objects, masks at the picture's size.
    Reading the picture is not timed."""
    predictor = setting.predictor(policy)
    state = predictor.init_state(num_frames=footage.num_frames)
    times, digest = [], hashlib.sha256()
    for index in range(footage.num_frames):
        picture = footage.picture(index)
        setting.wait()
        began = time.perf_counter()
        masks = predictor.track_frame(state, picture, footage.prompts if index == 0 else ())[2]
        setting.wait()
        times.append(1000 * (time.perf_counter() - began))
        digest.update(np.packbits((masks > 0).cpu().numpy()).tobytes())
    return Block(tuple(times), digest.hexdigest())


def take_census(setting: Setting, policy: MemoryPolicy, footage: Footage) -> Census:
    """Track ``footage`` and count."""
    held, tokens, read, pointers = [], [], [], []
    for tracker, counts in _counted(setting, policy, footage):
        states = [track.state for track in tracker.tracks.values()]
        held.append(tensor_bytes(t for state in states for t in state.tensors()))
        tokens.append(max(state.token_count() for state in states))
        read.append(fmean(n for n, _ in counts) if counts else 0.0)
        pointers.append(fmean(n for _, n in counts) if counts else 0.0)
    return Census(tuple(held), tuple(tokens), tuple(read), tuple(pointers))


@torch.inference_mode()
def _counted(
    setting: Setting, policy: MemoryPolicy, footage: Footage
) -> Iterator[tuple[Tracker, list[tuple[int, int]]]]:
    """The tracker after each frame, and (tokens, pointers) that each object read on it."""
    predictor = setting.predictor(policy)
    tracker = predictor.init_state(num_frames=footage.num_frames).tracker
    for index in range(footage.num_frames):
        features = predictor.encode(Frame(index, f"{index:05d}", footage.picture(index)))
        counts = _reads(tracker, features)
        tracker.step(features, footage.prompts if index == 0 else ())
        yield tracker, counts


def _reads(tracker: Tracker, features: FrameFeatures) -> list[tuple[int, int]]:
    """(memory tokens, pointers) that every object reads on a frame; equal pathways count once."""
    context = tracker.context(features)
    counts = []
    for track in tracker.tracks.values():
        distinct = {read.key(): read for read in tracker.policy.read(track.state, context)}.values()
        tokens = sum(len(item.tokens) for read in distinct for item in read.items)
        counts.append((tokens, sum(len(read.pointers) for read in distinct)))
    return counts


# -- policies beside FIFO ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One policy beside FIFO.

    ``ms`` per frame, the median over all blocks; ``fifo_ms`` that of the FIFO blocks around them; ``ratio`` the median
    of the ratios of neighbouring blocks, ``ratio_min`` and ``ratio_max`` their range. ``bytes`` of all states together
    and ``tokens`` of the object that holds most, after the first :data:`WARM_UP` frames (``_warm``) and at the end;
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
    footage: Footage,
    *,
    objects: Sequence[int] = (1,),
    rounds: int = 1,
) -> Iterator[Cost]:
    """The cost of every policy beside ``policies["fifo"]``, for each number of objects.

    Args:
        rounds: how often the blocks fifo, policy, policy, fifo are run. The pass that counts goes first, so that
            nothing is run for the first time with the clock on.
    """
    if BASELINE not in policies:
        raise ValueError(f"expected {BASELINE} among the policies, to compare with, got {list(policies)}")
    if footage.num_frames <= WARM_UP:
        raise ValueError(f"expected more than {WARM_UP} frames, the first being warm-up, got {footage.num_frames}")
    if rounds < 1:
        raise ValueError(f"expected rounds >= 1, got {rounds}")
    for count in objects:
        part = footage.with_objects(count)
        for name, policy in policies.items():
            census = take_census(setting, policy, part)
            pairs = [p for _ in range(rounds) for p in _blocks(setting, policies[BASELINE], policy, part)]
            yield _cost(name, policy, setting, part, census, pairs)


def _blocks(
    setting: Setting, baseline: MemoryPolicy, policy: MemoryPolicy, footage: Footage
) -> list[tuple[Block, Block]]:
    """fifo, policy, policy, fifo, as two pairs (fifo, policy) of neighbours."""
    first, one, other, last = (run_block(setting, p, footage) for p in (baseline, policy, policy, baseline))
    return [(first, one), (last, other)]


def _cost(
    name: str,
    policy: MemoryPolicy,
    setting: Setting,
    footage: Footage,
    census: Census,
    pairs: Sequence[tuple[Block, Block]],
) -> Cost:
    ratios = [own.median() / fifo.median() for fifo, own in pairs]
    columns = tuple(zip(*pairs))
    return Cost(
        policy=name,
        objects=len(footage.prompts),
        frames=footage.num_frames,
        blocks=len(pairs),
        ms=median(x for _, own in pairs for x in own.milliseconds[WARM_UP:]),
        fifo_ms=median(x for fifo, _ in pairs for x in fifo.milliseconds[WARM_UP:]),
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        bytes_warm=census.bytes[WARM_UP - 1],
        bytes_end=census.bytes[-1],
        tokens_warm=census.tokens[WARM_UP - 1],
        tokens_end=census.tokens[-1],
        capacity=policy.capacity(setting.model.tokens_per_map),
        read=fmean(census.read[WARM_UP:]),
        pointers=fmean(census.pointers[WARM_UP:]),
        repeatable=all(len({block.masks for block in column}) == 1 for column in columns),
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
class Stay:
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
        known = [m.resident for m in self.marks if m.resident is not None]
        return max(known) if known else None

    @property
    def bounded(self) -> bool:
        """Never more than the policy's own bound."""
        return self.capacity is None or self.most_tokens <= self.capacity


def watch(setting: Setting, name: str, policy: MemoryPolicy, footage: Footage, *, every: int = 100) -> Stay:
    """Track a long stream whose pictures are made one at a time, looking at what is held every ``every`` frames."""
    if not 1 <= every <= footage.num_frames:
        raise ValueError(f"expected every in 1..{footage.num_frames}, the number of frames, got {every}")
    predictor = setting.predictor(policy)
    state = predictor.init_state()
    marks, most = [], 0
    for index in range(footage.num_frames):
        predictor.track_frame(state, footage.picture(index), footage.prompts if index == 0 else ())
        states = [track.state for track in state.tracker.tracks.values()]
        most = max(most, *(s.token_count() for s in states))
        if (index + 1) % every == 0:
            held = tensor_bytes(t for s in states for t in s.tensors())
            marks.append(Mark(index + 1, held, resident_bytes()))
    capacity = policy.capacity(setting.model.tokens_per_map)
    return Stay(
        policy=name,
        objects=len(footage.prompts),
        marks=tuple(marks),
        most_tokens=most,
        capacity=capacity,
        slope=_slope(marks[len(marks) // 2 :]),
    )


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None on systems without /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else None


def _slope(marks: Sequence[Mark]) -> float | None:
    """Least squares, bytes per frame."""
    if len(marks) < 2 or any(m.resident is None for m in marks):
        return None
    return float(np.polyfit([m.frame for m in marks], [m.resident for m in marks], 1)[0])


# -- tables -----------------------------------------------------------------------------------------------------------


def cost_table(costs: Sequence[Cost], *, markdown: bool = False) -> str:
    """One row per policy and number of objects."""
    counts = ("MB warm", "MB end", "tokens warm", "tokens end", "bound", "read", "pointers")
    head = ("policy", "objects", "ms", "/ fifo", "range", *counts)
    rows = [
        (
            c.policy + ("" if c.repeatable else " (!)"),
            str(c.objects),
            f"{c.ms:.2f}",
            f"{c.ratio:.3f}",
            f"{c.ratio_min:.3f}-{c.ratio_max:.3f}",
            _megabytes(c.bytes_warm),
            _megabytes(c.bytes_end),
            str(c.tokens_warm),
            str(c.tokens_end),
            "none" if c.capacity is None else str(c.capacity),
            f"{c.read:.0f}",
            f"{c.pointers:.1f}",
        )
        for c in costs
    ]
    note = "" if all(c.repeatable for c in costs) else "\n(!) its masks, or fifo's, differed between blocks"
    return table(head, rows, markdown) + note


def stay_table(stays: Sequence[Stay], *, markdown: bool = False) -> str:
    """One row per policy; a column for each frame looked at."""
    frames = [m.frame for m in stays[0].marks] if stays else []
    process = ("process MB", "grows, bytes/frame")
    head = ("policy", "objects", *(f"MB at {f}" for f in frames), "most tokens", "bound", *process)
    rows = [
        (
            s.policy + ("" if s.bounded else " (!)"),
            str(s.objects),
            *(_megabytes(m.bytes) for m in s.marks),
            str(s.most_tokens),
            "none" if s.capacity is None else str(s.capacity),
            "unknown" if s.most_resident is None else f"{s.most_resident / 1e6:.0f}",
            "unknown" if s.slope is None else f"{s.slope:.0f}",
        )
        for s in stays
    ]
    note = "" if all(s.bounded for s in stays) else "\n(!) held more than its bound"
    return table(head, rows, markdown) + note


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Aligned columns, or a table to paste into a page."""
    if markdown:
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip()
        for line in (head, *rows)
    )
