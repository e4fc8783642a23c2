#!/usr/bin/env python
"""What each operator of memory attention costs and how far it is from exact attention, on the memory of a tracked clip.

    python benchmarks/measure_operators.py --config nano_v2 --image_size 128
    python benchmarks/measure_operators.py --config sam2.1_hiera_t --weights random --image_size 256

Error: root mean square of the difference to exact attention over that of what memory changes in the features, i.e.
exact attention without memory being 1. Operations: of the matrix products of all cross-attention, over those of exact.
Time: CPU seconds of memory attention as a whole, exact over operator, in turns, on one thread. IoU: of masks of the
whole clip, each side reading its own memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from sam2_mem import build_sam2_video_predictor  # noqa: E402
from sam2_mem.cli.benchmark import synthetic_clip  # noqa: E402
from sam2_mem.evaluation.benchmark.reference_benchmark import agreement, amplified  # noqa: E402
from sam2_mem.model.attention_operators import (  # noqa: E402
    BlockTopK,
    Exact,
    LowDim,
    Pooled,
    ReadOperator,
    ReadSize,
    SparsePointers,
    TopK,
)
from sam2_mem.model.memory_attention import MemoryAttention  # noqa: E402

OPERATORS = (Exact(), LowDim(), Pooled(2), Pooled(4), TopK(k=32), TopK(k=128), BlockTopK(k=64, side=2), BlockTopK(k=256),
             SparsePointers(4), SparsePointers(1))  # fmt: skip


class Nothing(ReadOperator):
    """Reads nothing: what memory changes is measured against this."""

    def __call__(self, attention: Any, q: Tensor, memory: Any) -> Tensor:
        return q.new_zeros(memory.rows, q.shape[2], attention.q_proj.out_features)

    def flops(self, size: ReadSize) -> int:
        return 0


def attend(part: MemoryAttention, operator: ReadOperator, arguments: tuple) -> tuple[Tensor, float]:
    part.operator = operator
    began = time.process_time()
    return part(*arguments).features, time.process_time() - began


def clip_masks(predictor: Any, operator: ReadOperator, clip: Any) -> tuple[list[Tensor], list[tuple]]:
    """Masks of the clip, and the arguments of every call of memory attention."""
    part, calls = predictor.model.memory_attention, []
    part.operator = operator
    hook = part.register_forward_pre_hook(lambda module, arguments: calls.append(arguments))
    state = predictor.init_state(num_frames=clip.num_frames)
    masks = [
        predictor.track_frame(state, clip.picture(t), clip.prompts if t == 0 else ())[2][:, 0]
        for t in range(clip.num_frames)
    ]
    hook.remove()
    return masks, calls


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--weights", help="a checkpoint, or random (default: those of the config)")
    parser.add_argument("--image_size", type=int)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--objects", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = [f"model.image_size={args.image_size}"] if args.image_size else []
    predictor = build_sam2_video_predictor(args.config, args.weights, device="cpu", hydra_overrides_extra=size)
    if args.weights == "random":
        predictor.model.load_state_dict(amplified(predictor.model.state_dict()))
    clip = synthetic_clip(args.frames, 256, args.objects)
    expected, calls = clip_masks(predictor, Exact(), clip)
    part, last = predictor.model.memory_attention, calls[-1]
    rows, queries = last[3], last[0].shape[0]
    attention, spatial = part.layers[0].cross_attn_image, int((rows.item[0] < rows.num_items).sum())
    widths = (attention.q_proj.out_features, attention.k_proj.in_features, attention.num_heads)
    counted = ReadSize(rows.rows, queries, spatial, rows.lengths[0] - spatial, *widths)
    print(f"{args.config}, {predictor.image_size}: {rows.rows} rows of {rows.lengths[0]} keys, {queries} queries")
    exact, empty = attend(part, Exact(), last)[0], attend(part, Nothing(), last)[0]
    for operator in OPERATORS:
        pairs = []
        for i in range(args.rounds):
            order = (operator, Exact()) if i % 2 else (Exact(), operator)
            spent = [attend(part, o, last)[1] for o in order]
            pairs.append(spent if i % 2 else spent[::-1])
        error = (attend(part, operator, last)[0] - exact).square().mean().sqrt() / (
            exact - empty
        ).square().mean().sqrt()
        result = agreement(clip_masks(predictor, operator, clip)[0], expected)
        print(
            f"{operator!s:60s} error {error:.1e}   operations {operator.flops(counted) / Exact().flops(counted):.3f}"
            f"   time x {median(b / a for a, b in pairs):.2f}   IoU {result.mean_iou:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
