#!/usr/bin/env python
"""The threshold tau_mem of the policy hq_smem: how alike neighbouring updates look, and what each threshold keeps.

    python benchmarks/measure_removal_threshold.py

1. Cosines between the embeddings (obj_pool) of an object at neighbouring bank updates, from the true masks of procedural clips and
   the image features of the small network.
2. Streams of an ideal matcher: an object's look turns slowly, by a constant angle per update, then comes back to a look it
   had before. It is recognised if a bank frame, or the previous one, looks like it, cosine 0.8 at least. Share of all former
   looks that are recognised at the end, and frames in the bank.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sam2_mem import build_sam2_video_predictor
from sam2_mem.memory.policies.hq_smem import HQSMem, SmartBank
from sam2_mem.memory.tokens import masked_mean
from sam2_mem.synthetic.generator import sample_training_clip
from sam2_mem.types import CandidateId, FrameContext, Hypotheses, MaskSelection, MemoryEntry, MemoryTokens
from sam2_mem.video import Frame

GAP = 5
TAUS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.01)
ANGLES = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
RECOGNISED = 0.8
UPDATES = 40
ONE = MaskSelection(output=CandidateId(0, 0), remember=(CandidateId(0, 0),))
NOTHING = Hypotheses(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 8), ((1.0,),), (1.0,))


def neighbouring_cosines(checkpoint: str, clips: int, level: str, size: int) -> list[float]:
    """Of all objects of some clips, ``GAP`` frames apart; embeddings as the policy makes them."""
    predictor = build_sam2_video_predictor("nano", checkpoint, device="cpu")
    cosines = []
    for number in range(clips):
        frames, ids = sample_training_clip(np.random.default_rng(number), level=level, num_frames=61, size=size)
        features = {t: predictor.encode(Frame(t, str(t), frames[t])) for t in range(0, len(frames), GAP)}
        for obj_id in np.unique(ids[0])[1:]:
            vectors = {
                t: embedding(f.low, ids[t] == obj_id, f.grid, features[0].low.mean(0)) for t, f in features.items()
            }
            pairs = [(vectors[t], vectors[t + GAP]) for t in features if t + GAP in features]
            cosines += [float(a @ b) for a, b in pairs if a is not None and b is not None]
    return cosines


@torch.inference_mode()
def embedding(low: Tensor, mask: np.ndarray, grid: tuple[int, int], centre: Tensor) -> Tensor | None:
    weights = F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], grid).flatten()
    mean = masked_mean(low, weights)
    return None if mean is None else F.normalize((mean - centre).float(), dim=0)


def look(angle: float) -> Tensor:
    """A look that has turned by ``angle`` degrees; looks 90 degrees apart have nothing in common, and none returns by itself."""
    first, turned = divmod(angle, 90.0)
    vector = torch.zeros(2 + int(UPDATES * max(ANGLES) // 90) + 1)
    vector[int(first)], vector[int(first) + 1] = np.cos(np.radians(turned)), np.sin(np.radians(turned))
    return vector


def entry(frame: int, z: Tensor, *, prompt: bool = False) -> MemoryEntry:
    tokens = MemoryTokens(torch.full((1, 2), float(frame)), torch.zeros(1, 2))
    return MemoryEntry(frame, tokens, z, is_prompt=prompt, summary=z)


def bank_of(policy: HQSMem, angle: float) -> SmartBank:
    """After ``UPDATES`` updates."""
    state = policy.prompt(None, FrameContext(0), entry(0, look(0.0), prompt=True))
    for t in range(1, UPDATES):
        state = policy.write(state, FrameContext(t), NOTHING, ONE, [entry(t, look(t * angle))])
    return state


def recognised(policy: HQSMem, angle: float) -> tuple[float, int]:
    """Share of former looks recognised at the end, and frames in the bank."""
    bank = [e.frame for e in bank_of(policy, angle).bank()]
    known = torch.stack([look(f * angle) for f in bank])
    looks = torch.stack([look(t * angle) for t in range(UPDATES)])
    return float(((looks @ known.t()).max(1).values >= RECOGNISED).float().mean()), len(bank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--levels", nargs="*", default=["easy", "appearance", "mixed"])
    parser.add_argument("--without_network", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.without_network:
        for level in arguments.levels:
            cosines = neighbouring_cosines(arguments.checkpoint, arguments.clips, level, arguments.size)
            quantiles = "  ".join(
                f"{q:g} %: {v:.3f}" for q, v in zip((5, 25, 50, 75, 95), np.percentile(cosines, (5, 25, 50, 75, 95)))
            )
            print(f"{level}: cosine of neighbouring updates, {len(cosines)} pairs: {quantiles}")
    print("share of former looks recognised (frames in the bank), by degrees per update")
    print("tau    " + "".join(f"{a:>12g}" for a in ANGLES))
    for tau in TAUS:
        cells = [recognised(HQSMem(gap=1, tau_mem=tau), a) for a in ANGLES]
        print(f"{tau:<7g}" + "".join(f"{share:>8.2f} ({size})" for share, size in cells))


if __name__ == "__main__":
    main()
