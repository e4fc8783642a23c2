"""Policies without a network: hand-made entries and hypotheses, and the frame loop of the tracker for one object.

Every entry's tokens and pointer hold the number of its frame, so what was read can be told from the tensors alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.types import (
    PROMPT_SLOT,
    CandidateId,
    FrameContext,
    FrameResult,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryRead,
    MemoryTokens,
    ReadUsage,
)

TOKENS = 4


def entry(frame: int, *, mark: float = 0.0, prompt: bool = False, **scores: float) -> MemoryEntry:
    """``mark`` tells entries of one frame apart, in the second column of the tokens and of the pointer."""
    feat = torch.zeros(TOKENS, 2)
    feat[:, 0], feat[:, 1] = frame, mark
    return MemoryEntry(
        frame=frame,
        tokens=MemoryTokens(feat=feat, pos=torch.zeros(TOKENS, 2)),
        pointer=torch.tensor([float(frame), mark]),
        is_prompt=prompt,
        **{"area": 0.1, **scores},
    )


def random_entry(
    frame: int, rng: np.random.Generator, *, prompt: bool = False, side: int = 3, width: int = 6, **fields: Any
) -> MemoryEntry:
    """An entry of random features: a map of ``side`` x ``side`` tokens, a pointer, a summary, scores unless they are given."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    vector = lambda: torch.tensor(rng.normal(size=width) + 0.5, dtype=torch.float32)  # noqa: E731
    tokens = MemoryTokens(
        feat=torch.tensor(rng.normal(size=(side * side, width)) + 0.5, dtype=torch.float32),
        pos=torch.tensor(rng.normal(size=(side * side, width)), dtype=torch.float32),
        xy=torch.tensor(np.stack([x, y], -1).reshape(-1, 2), dtype=torch.float32),
    )
    scores = {"iou": float(rng.uniform(0, 1)), "objectness": float(rng.normal(1, 2)), "area": 0.1}
    fields = {"summary": vector(), **scores, **fields}
    return MemoryEntry(frame=frame, tokens=tokens, pointer=vector(), is_prompt=prompt, **fields)


def scored(entry: MemoryEntry, usage: tuple[ReadUsage, ...] | None = None) -> Hypotheses:
    """What a network says that gives the scores of ``entry``: one candidate, an empty mask."""
    mask, pointer = torch.full((1, 1, 4, 4), -1.0), entry.pointer[None, None]
    return Hypotheses(mask, pointer, ((entry.iou,),), (entry.objectness,), usage, ((entry.area,),))


def write(policy: MemoryPolicy, state: Any, frame: FrameContext, entry: MemoryEntry) -> Any:
    """One tracked frame whose memory is ``entry``, whatever the mask."""
    seen = scored(entry)
    return policy.write(state, frame, seen, policy.choose(state, frame, seen), [entry])


def read_by_frame(policy: MemoryPolicy, state: Any, frame: FrameContext) -> tuple[dict[int, Any], dict[int, float]]:
    """Of the only pathway: slots by frame, of maps; offsets by frame, of pointers. Entries are known by their tensors."""
    (read,) = policy.read(state, frame)
    maps = {id(e.tokens): e.frame for e in state.all_entries() if e.tokens is not None}
    pointers = {id(e.pointer): e.frame for e in state.all_entries()}
    slots = {maps[id(i.tokens)]: i.slot for i in read.items}
    offsets = {pointers[id(p.pointer)]: round(p.offset, 6) for p in read.pointers}
    assert len(slots) == len(read.items) and len(offsets) == len(read.pointers), "something is read twice"
    return slots, offsets


def at(index: int, *, reverse: bool = False, num_frames: int | None = None) -> FrameContext:
    return FrameContext(index=index, reverse=reverse, num_frames=num_frames)


def hypotheses(masks: Tensor | np.ndarray, iou: Any, objectness: Any) -> Hypotheses:
    """``masks`` (P, M, h, w) logits, or (M, h, w) with ``iou`` (M) and one ``objectness`` for a single pathway."""
    masks = torch.as_tensor(masks, dtype=torch.float32)
    if masks.ndim == 3:
        masks, iou, objectness = masks[None], [iou], [objectness]
    return Hypotheses(
        masks=masks,
        pointers=torch.zeros(*masks.shape[:2], 2),
        iou=tuple(tuple(float(x) for x in row) for row in iou),
        objectness=tuple(float(x) for x in objectness),
        areas=tuple(tuple(x) for x in (masks > 0).float().mean((2, 3)).tolist()),
    )


@dataclass(frozen=True)
class Read:
    """``maps``: (frame, slot, gain), prompts in slot -1; ``pointers``: (frame, offset, gain); both sorted."""

    maps: tuple[tuple[int, int | None, float], ...]
    pointers: tuple[tuple[int, float, float], ...]

    @property
    def frames(self) -> list[int]:
        return sorted(frame for frame, _, _ in self.maps)

    @property
    def prompts(self) -> list[int]:
        return sorted(frame for frame, slot, _ in self.maps if slot == PROMPT_SLOT)


def described(read: MemoryRead) -> Read:
    maps = [(int(i.tokens.feat[0, 0]), i.slot, round(i.gain, 6)) for i in read.items]
    pointers = [(int(p.pointer[0]), round(p.offset, 6), round(p.gain, 6)) for p in read.pointers]
    return Read(tuple(sorted(maps)), tuple(sorted(pointers)))


def reads(policy: MemoryPolicy, state: Any, frame: FrameContext) -> list[Read]:
    return [described(r) for r in policy.read(state, frame)]


def present(policy: MemoryPolicy, hyp: Hypotheses, pick: CandidateId) -> bool:
    return hyp.objectness[pick.pathway] > policy.min_obj_score_logits


def remembered(
    policy: MemoryPolicy, frame: int, hyp: Hypotheses, choice: MaskSelection, clones: Any = None
) -> list[MemoryEntry]:
    """Entries of the picks as the tracker makes them: equal picks, also those of pathways with equal reads (``clones``,
    a key for each pathway), give one entry. Binarised ones are marked by .5."""
    made: dict[Any, MemoryEntry] = {}
    for pick in choice.remember:
        key = (pick.pathway if clones is None else clones[pick.pathway], pick.candidate, pick.binarize)
        made[key] = made.get(key) or entry(
            frame,
            mark=pick.candidate + 10 * pick.pathway + 0.5 * pick.binarize,
            iou=hyp.iou[pick.pathway][pick.candidate],
            objectness=hyp.objectness[pick.pathway],
            area=hyp.areas[pick.pathway][pick.candidate] if present(policy, hyp, pick) else 0.0,
        )
    return [
        made[pick.pathway if clones is None else clones[pick.pathway], pick.candidate, pick.binarize]
        for pick in choice.remember
    ]


def track(policy: MemoryPolicy, state: Any, frame: FrameContext, hyp: Hypotheses) -> tuple[Any, MaskSelection]:
    """One frame without a network."""
    keys = [r.key() for r in policy.read(state, frame)]
    choice = policy.choose(state, frame, hyp)
    return policy.write(state, frame, hyp, choice, remembered(policy, frame.index, hyp, choice, keys)), choice


def begin(policy: MemoryPolicy, frame: int = 0) -> Any:
    return policy.prompt(None, at(frame), entry(frame, prompt=True))


def rectangle(x: float, y: float, width: float, height: float, side: int = 32) -> np.ndarray:
    """Logits (side, side): 5 inside, -5 outside; corners are rounded and cut to the picture."""
    logits = np.full((side, side), -5.0, np.float32)
    x0, y0, x1, y1 = (int(np.clip(round(v), 0, side)) for v in (x, y, x + width, y + height))
    logits[y0:y1, x0:x1] = 5.0
    return logits


def furthest(a: list[FrameResult], b: list[FrameResult]) -> float:
    """Largest difference of logits between two runs over the same frames and objects."""
    assert [(x.frame, x.obj_ids) for x in a] == [(y.frame, y.obj_ids) for y in b] != []
    return max((x.masks - y.masks).abs().max().item() for x, y in zip(a, b))
