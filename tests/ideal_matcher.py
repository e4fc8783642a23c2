"""Every policy with a matcher that never errs in place of the network: what memory alone decides.

A scene is a grid of cells, each of which shows the ground or a thing with a certain look, a unit vector. The matcher sees a
thing if a token that a policy reads looks like it (cosine of at least ``ALIKE``); predicted IoU is that cosine. The memory of
a mask holds the looks of the cells under it, and the ground elsewhere. Policies, tracker and merging are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from micro import OVERRIDES
from torch import Tensor

from sam2_mem.build_sam import build_sam2
from sam2_mem.config import compose
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.memory_reader import MemoryReader, TrackPrediction
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import FrameContext, FrameFeatures, Hypotheses, MemoryRead, ReadUsage, Usage

ALIKE = 0.8
GRID, LOOKS, WIDTH = 16, 16, 32  # cells a side, numbers of a look, numbers of the micro network's features
CELL = 4  # mask pixels a side
SPAN = 8  # cells a side of a thing
NOISE = 0.1  # of the image's features
SHARP = 3.0  # of the attention that policies are told of
QUALITY = (0.86, 0.1)  # predicted IoU: at cosine 0, and what cosine 1 adds
STEEP = 10.0  # of the object-score logit, which is 0 at ``ALIKE``


def look(*parts: tuple[int, float]) -> np.ndarray:
    """A unit vector of the given numbers on the given axes; axis 0 is the ground."""
    vector = np.zeros(LOOKS)
    for axis, value in parts:
        vector[axis] = value
    return vector / np.linalg.norm(vector)


GROUND = look((0, 1.0))


@dataclass(frozen=True)
class Thing:
    """What is on a frame: the corner (row, column) of its cells, and its look."""

    corner: tuple[int, int]
    appearance: np.ndarray

    @property
    def cells(self) -> tuple[slice, slice]:
        row, column = self.corner
        return slice(row, row + SPAN), slice(column, column + SPAN)


@dataclass(frozen=True)
class Scenario:
    """``object_at``: the object on a frame, None while it is away; ``others_at``: what else is there; the object is back at
    ``back`` and stays until ``length``."""

    length: int
    back: int
    object_at: Callable[[int], Thing | None]
    others_at: Callable[[int], Sequence[Thing]] = lambda t: ()

    def things(self, t: int) -> list[Thing]:
        """The object first, if it is there."""
        thing = self.object_at(t)
        return ([] if thing is None else [thing]) + list(self.others_at(t))


def cells_of(things: Sequence[Thing]) -> Tensor:
    """Looks of all cells: (GRID, GRID, LOOKS) float32."""
    cells = np.tile(GROUND, (GRID, GRID, 1))
    for thing in reversed(things):
        cells[thing.cells] = thing.appearance
    return torch.tensor(cells, dtype=torch.float32)


def mask_of(thing: Thing) -> Tensor:
    """Logits (4 GRID, 4 GRID): 8 on the thing, -8 elsewhere."""
    cells = torch.full((GRID, GRID), -8.0)
    cells[thing.cells] = 8.0
    return cells.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)


def features_of(scenario: Scenario, t: int) -> FrameFeatures:
    cells = cells_of(scenario.things(t)).reshape(-1, LOOKS)
    noise = NOISE * torch.randn(len(cells), WIDTH, generator=torch.Generator().manual_seed(t))
    low = torch.nn.functional.pad(cells, (0, WIDTH - LOOKS)) + noise
    high = (torch.zeros(WIDTH // 8, 4 * GRID, 4 * GRID), torch.zeros(WIDTH // 4, 2 * GRID, 2 * GRID))
    return FrameFeatures(index=t, low=low, low_pos=torch.zeros_like(low), high=high, grid=(GRID, GRID))


class IdealReader(MemoryReader):
    """Sees what a token that is read looks like."""

    scenario: Scenario

    def predict(
        self, tracks: Sequence[Track], features: FrameFeatures, context: FrameContext, **_: Any
    ) -> list[TrackPrediction]:
        things = self.scenario.things(features.index)
        predictions = []
        for track in tracks:
            frame = self.context_for(track, context)
            reads = self.policy.read(track.state, frame)
            usage = self.policy.usage_at(track.state, frame)
            hypotheses = self._hypotheses(things, features, reads, usage)
            keys: dict[Any, tuple[int, int]] = {}
            rows = [keys.setdefault(read.key(), (0, len(keys))) for read in reads]
            predictions.append(TrackPrediction(track=track, frame=frame, hypotheses=hypotheses, rows=rows))
        return predictions

    def _hypotheses(
        self, things: Sequence[Thing], features: FrameFeatures, reads: Sequence[MemoryRead], usage: Usage
    ) -> Hypotheses:
        """Three candidates for each read: the things most like a token, and an empty mask where there are fewer."""
        masks, ious, scores = [], [], []
        for read in reads:
            tokens = torch.cat([item.tokens.feat.float() for item in read.items])
            looks = torch.nn.functional.normalize(tokens, dim=1).numpy()
            ranked = sorted(
                ((float((looks @ thing.appearance).max()), n) for n, thing in enumerate(things)), reverse=True
            )
            empty = torch.full((4 * GRID, 4 * GRID), -8.0)
            candidates = [(iou, mask_of(things[n])) for iou, n in ranked[:3]] + [(0.0, empty)] * 3
            ious.append(tuple(QUALITY[0] + QUALITY[1] * max(iou, 0.0) for iou, _ in candidates[:3]))
            masks.append(torch.stack([mask for _, mask in candidates[:3]]))
            scores.append(STEEP * ((ranked[0][0] if ranked else 0.0) - ALIKE) + 1e-6)
        stacked = torch.stack(masks)
        return Hypotheses(
            masks=stacked,
            pointers=torch.ones(*stacked.shape[:2], WIDTH),
            iou=tuple(ious),
            objectness=tuple(scores),
            usage=None if usage is Usage.NONE else tuple(attention(features, read, usage) for read in reads),
            areas=tuple(tuple(row) for row in (stacked > 0).float().mean((2, 3)).tolist()),
        )


def attention(features: FrameFeatures, read: MemoryRead, usage: Usage) -> ReadUsage:
    """Of the frame's cells to the tokens of a read: the softmax of their cosines."""
    sizes = [len(item.tokens) for item in read.items]
    tokens = torch.nn.functional.normalize(torch.cat([item.tokens.feat.float() for item in read.items]), dim=1)
    mass = (SHARP * features.low[:, :LOOKS] @ tokens.T).softmax(1).split(sizes, 1)
    if usage is Usage.TOKENS:
        return ReadUsage(tokens=tuple(part.sum(0) for part in mass))
    return ReadUsage(items=torch.stack([part.sum(1) for part in mass], 1))


class IdealWriter(MemoryWriter):
    """Remembers the looks under a mask."""

    scenario: Scenario

    def _memory_maps(self, features: FrameFeatures, outputs: Sequence[MaskOutput], flags: Tensor) -> Tensor:
        cells = cells_of(self.scenario.things(features.index))
        ground = torch.tensor(GROUND, dtype=torch.float32)
        masks = torch.stack([output.logits for output in outputs]) > 0
        under = masks[:, CELL // 2 :: CELL, CELL // 2 :: CELL, None]
        return torch.where(under, cells, ground).movedim(-1, 1)


@lru_cache
def network() -> SAM2:
    """A micro network on the grid of the scenes. It answers the prompt and merges tokens; nothing else of it is used."""
    overrides = [f"model.image_size={16 * GRID}", *OVERRIDES[1:]]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_sam2(compose("configs/sam2.1/sam2.1_hiera_t.yaml", overrides), "random", device="cpu")


def jaccard_after_return(policy: MemoryPolicy, scenario: Scenario) -> float:
    """J of the shown masks on the frames from the return on, masks that were rewritten counted as they are last."""
    model, settings = network(), TrackerSettings()
    reader, writer = IdealReader(model, policy, settings), IdealWriter(model, policy, settings)
    reader.scenario = writer.scenario = scenario
    tracker = Tracker(model, policy, settings=settings, num_frames=scenario.length, reader=reader, writer=writer)
    first = scenario.object_at(0)
    assert first is not None, "the object is there on the first frame"
    mask = (mask_of(first) > 0).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    shown: dict[int, Tensor] = {}
    with torch.inference_mode():
        for t in range(scenario.length):
            result = tracker.step(features_of(scenario, t), [Prompt(1, mask=mask)] if t == 0 else [])
            shown[t] = result.masks[0]
            shown.update({r.frame: r.logits for r in result.revisions})
        shown.update({r.frame: r.logits for r in tracker.finish()})
    return float(np.mean([_jaccard(shown[t], scenario.object_at(t)) for t in range(scenario.back, scenario.length)]))


def _jaccard(logits: Tensor, thing: Thing | None) -> float:
    assert thing is not None, "the object stays"
    shown, truth = logits > 0, mask_of(thing) > 0
    return float((shown & truth).sum() / (shown | truth).sum())


# -- scenarios --------------------------------------------------------------------------------------------------------

HERE, THERE = (4, 0), (4, 8)
AWAY, STAY = 100, 30  # frames


def turned(share: float, first: int = 1, second: int = 2) -> np.ndarray:
    """From axis ``first`` (0) to axis ``second`` (1)."""
    angle = share * np.pi / 2
    return look((first, float(np.cos(angle))), (second, float(np.sin(angle))))


def cut(away: int = AWAY) -> Scenario:
    """Changes its look altogether in 100 frames, then is away, and comes back as it was last."""

    def object_at(t: int) -> Thing | None:
        return None if 100 <= t < 100 + away else Thing(HERE, turned(min(t, 100) / 100))

    return Scenario(100 + away + STAY, 100 + away, object_at)


def revisit() -> Scenario:
    """Changes its look altogether in 100 frames, and again in 100 more; away, then back as it was in the middle."""

    def object_at(t: int) -> Thing | None:
        if t < 100:
            return Thing(HERE, turned(t / 100))
        if t < 200:
            return Thing(HERE, turned((t - 100) / 100, 2, 3))
        return None if t < 300 else Thing(HERE, turned(1.0))

    return Scenario(300 + STAY, 300, object_at)


def with_lookalike(likeness: float = 0.75) -> Scenario:
    """As ``cut``; where it left, something stays that looks a little like it, and it comes back elsewhere."""
    plain, last = cut(), turned(1.0)
    twin = Thing(HERE, look((2, likeness), (5, float(np.sqrt(1 - likeness**2)))))

    def object_at(t: int) -> Thing | None:
        thing = plain.object_at(t)
        return thing if thing is None or t < plain.back else Thing(THERE, last)

    return Scenario(plain.length, plain.back, object_at, lambda t: [twin] if t >= 100 else [])
