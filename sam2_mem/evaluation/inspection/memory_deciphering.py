"""How well a frame is decoded from banks of different size and contents.

After the "memory deciphering" study of RMem (Zhou et al., CVPR 2024, section 3): memory is made from ground-truth
masks, so that no error accumulates, and one frame is decoded from a chosen set of earlier ones. A bank that grows
without J growing says that the network cannot decipher it.

The bank always holds the first frame of the object. The others come from the frames between, by content:

``recent``   those just before the target.
``spread``   evenly spaced ones.
``random``   drawn with a seed.
``best``     those from which, alone beside the first frame, the target is decoded best: an oracle, it looks at the
             truth. ``worst`` is its opposite.

Tracked frames are read in temporal slots by rank and with their pointers, as ``sam2_mem.memory.reading`` does it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from sam2_mem.evaluation.metrics import jaccard
from sam2_mem.evaluation.tables import text_table
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.reading import rank_slots, time_span
from sam2_mem.prompts import Prompt, as_tensor
from sam2_mem.tracking import batching
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import PROMPT_SLOT, FrameContext, FrameFeatures, MemoryEntry, MemoryRead, ReadItem, ReadPointer
from sam2_mem.video import Frame

CONTENTS = ("recent", "spread", "random", "best", "worst")
POINTERS = 16


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is asked. ``sizes``: frames in the bank, the first one counted; ``contents``: see the module; ``targets``:
    most frames decoded, evenly spaced over those on which the object is visible; ``seed`` for ``random``."""

    sizes: tuple[int, ...] = (1, 2, 3, 5, 7, 9, 13, 17)
    contents: tuple[str, ...] = CONTENTS
    targets: int = 12
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"expected sizes >= 1, got {self.sizes}; the object's first frame is always in the bank")
        unknown = [c for c in self.contents if c not in CONTENTS]
        if unknown or not self.contents:
            raise ValueError(f"expected contents out of {', '.join(CONTENTS)}, got {', '.join(unknown) or 'none'}")
        if self.targets < 1:
            raise ValueError(f"expected targets >= 1, got {self.targets}")


@dataclass(frozen=True)
class Deciphered:
    """J of one object: ``contents`` and ``size`` of the bank, the mean ``j`` over ``frames`` decoded."""

    obj_id: int
    contents: str
    size: int
    j: float
    frames: int


@torch.inference_mode()
def decipher(
    predictor: SAM2VideoPredictor, frames: Sequence[Frame], truth: Mapping[int, Any], obj_id: int, study: Study
) -> list[Deciphered]:
    """J against bank size and contents.

    Args:
        predictor: its policy plays no part.
        frames: of the video, in order.
        truth: (H, W) bool masks of the object by frame index, from its first frame on; frames without one are neither
            remembered nor decoded.
        obj_id: the object.
        study: which banks, how many frames.
    """
    tracker = Tracker(predictor.model, FIFO(retain_all=True), settings=predictor.tracker_settings)
    features: dict[int, FrameFeatures] = {}
    for frame in frames:
        if frame.index in truth:
            features[frame.index] = predictor.encode(frame)
            tracker.preview(features[frame.index], Prompt(obj_id, mask=truth[frame.index]))
            tracker.commit(features[frame.index])
    state = tracker.track(obj_id).state
    entries = {e.frame: e for e in state.prompts} if state else {}
    visible = [f for f, e in entries.items() if e.area > 0]
    sizes, targets = _fitting(visible, study)
    banks = [(contents, size) for contents in study.contents for size in sizes]
    decoder = _Decoder(predictor, entries, truth)
    scores = [_scores(decoder, features[target], visible, banks, study.seed + target) for target in targets]
    return [Deciphered(obj_id, contents, size, fmean(js), len(js)) for (contents, size), js in zip(banks, zip(*scores))]


def _fitting(visible: Sequence[int], study: Study) -> tuple[list[int], list[int]]:
    """The sizes that fit the video, and the frames to decode: every bank is asked about the same ones, all late enough
    for the largest."""
    num_targets = max(1, min(study.targets, len(visible) // 2))
    sizes = sorted({s for s in study.sizes if len(visible) - s >= num_targets})
    if not sizes:
        raise ValueError(
            f"expected an object seen on at least {min(study.sizes) + 1} frames with ground truth, got {len(visible)}"
        )
    late = visible[sizes[-1] :]
    count = min(study.targets, len(late))
    return sizes, [late[round(i * (len(late) - 1) / max(count - 1, 1))] for i in range(count)]


def _scores(
    decoder: _Decoder, features: FrameFeatures, visible: Sequence[int], banks: Sequence[tuple[str, int]], seed: int
) -> list[float]:
    """J of one frame for every bank (contents, size)."""
    first, between = visible[0], [f for f in visible[1:] if f < features.index]
    ranked: list[int] = []
    if {"best", "worst"} & {contents for contents, _ in banks}:
        scores = decoder.decode(features, [(first, f) for f in between])
        ranked = [f for _, f in sorted(zip(scores, between), key=lambda pair: (-pair[0], pair[1]))]
    frames = [(first, *_bank_frames(contents, size - 1, between, ranked, seed)) for contents, size in banks]
    return decoder.decode(features, frames)


def _bank_frames(contents: str, count: int, between: Sequence[int], ranked: Sequence[int], seed: int) -> list[int]:
    """``count`` frames of ``between`` in order of time; ``ranked``: the best first."""
    if count == 0:
        return []
    if contents == "recent":
        return list(between[-count:])
    if contents == "spread":
        last = len(between) - 1
        return [between[round(last * (i + 1) / count)] if count > 1 else between[last // 2] for i in range(count)]
    if contents == "random":
        return sorted(random.Random(seed).sample(list(between), count))
    return sorted(ranked[:count] if contents == "best" else ranked[-count:])


@dataclass(frozen=True, eq=False)
class _Decoder:
    """Decodes a frame from banks, all banks of one length in one batch."""

    predictor: SAM2VideoPredictor
    entries: Mapping[int, MemoryEntry]
    truth: Mapping[int, Any]

    def decode(self, features: FrameFeatures, banks: Sequence[Sequence[int]], chunk: int = 32) -> list[float]:
        """J of the mask of highest predicted IoU, for every bank."""
        chunks = (banks[start : start + chunk] for start in range(0, len(banks), chunk))
        return [j for banks_of_chunk in chunks for j in self._decode(features, banks_of_chunk)]

    def _decode(self, features: FrameFeatures, banks: Sequence[Sequence[int]]) -> list[float]:
        model = self.predictor.model
        assembled = batching.batch_reads([self._read(bank, features.index) for bank in banks], model)
        multimask = model.candidates.allows(0, with_memory=True)
        masks: list[torch.Tensor] = []
        for batch in assembled.batches:
            decoded = model.decode(model.attend(features, batch).features, features, candidates=multimask)
            best = decoded.iou.argmax(1)
            picked = decoded.masks[torch.arange(len(best)), best]
            masks.append(torch.where(decoded.objectness[:, None, None] > 0, picked, torch.full_like(picked, -1.0)))
        truth = self.truth[features.index]
        return [self._j(masks[row[0]][row[1]], truth) for row in assembled.row_of_read if row is not None]

    def _j(self, logits: torch.Tensor, truth: Any) -> float:
        truth = as_tensor(truth, "the truth")
        mask = self.predictor.at_size(logits[None], tuple(truth.shape))[0] > 0
        return jaccard(mask.cpu().numpy(), truth.bool().cpu().numpy())

    def _read(self, bank: Sequence[int], target: int) -> MemoryRead:
        first, tracked = self.entries[bank[0]], [self.entries[f] for f in sorted(bank[1:], reverse=True)]
        slots = [0, *rank_slots(len(tracked) - 1)] if tracked else []
        items = [ReadItem(first.tokens, PROMPT_SLOT)] + [ReadItem(e.tokens, s) for e, s in zip(tracked, slots)]
        frame = FrameContext(target)
        span = time_span(frame, POINTERS)
        pointers = [ReadPointer(e.pointer, frame.age(e.frame) / span) for e in (first, *tracked[: POINTERS - 1])]
        return MemoryRead(items=tuple(items), pointers=tuple(pointers))


def means(results: Sequence[Deciphered]) -> dict[str, dict[int, float]]:
    """J by contents and size, over all objects, weighted by frames."""
    sums: dict[str, dict[int, list[float]]] = {}
    for d in results:
        total = sums.setdefault(d.contents, {}).setdefault(d.size, [0.0, 0.0])
        total[0] += d.j * d.frames
        total[1] += d.frames
    return {c: {s: j / n for s, (j, n) in sorted(by_size.items())} for c, by_size in sums.items()}


def table(results: Sequence[Deciphered]) -> str:
    """Rows are contents, columns are bank sizes; a dash where no bank was that large."""
    sizes = sorted({d.size for d in results})
    rows = [
        [contents, *(f"{by_size[s]:.3f}" if s in by_size else "-" for s in sizes)]
        for contents, by_size in means(results).items()
    ]
    return text_table(["contents", *map(str, sizes)], rows)
