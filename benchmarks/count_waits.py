#!/usr/bin/env python
"""Waits of the host for the device, transfers to it and kernels per tracked frame, on a simulated CUDA device; Markdown.

    python benchmarks/count_waits.py                             # all policies and presets, one and ten objects
    python benchmarks/count_waits.py --cases "efp;xmem memory_bound=bytes" --objects 10 --where
    python benchmarks/count_waits.py --checkout ../earlier       # another checkout of the library
    python benchmarks/count_waits.py --kernels                   # of tiny, beside `sam2`

No GPU is needed: tests/simulated_cuda.py counts. Frames 2 to ``--frames`` of the micro network of the tests count, memory
that still fills up included. ``--kernels``: of the latest frame of tiny at 128 under bfloat16 autocast, random weights, memory full,
ours and that of ``sam2==1.1.0``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OBJECTS = (1, 10)
VARIANTS = (
    "fifo tracker.storage_device=cpu",
    "fifo tracker.arbiter=recent",
    "fifo tracker.arbiter=variance",
    "fifo refiner=hq",
    "fifo memory_bound=bytes memory_bound.max_bytes=8192",
    "efp memory_bound=bytes memory_bound.max_bytes=12288",
    "xmem memory_bound=bytes memory_bound.max_bytes=8192",
    "fifo memory_bound=tokens memory_bound.max_bytes=8192",
    "fifo memory_bound=tokens memory_bound.max_bytes=8192 memory_bound.score=snap",
    "fifo memory_bound=tokens memory_bound.max_bytes=8192 memory_bound.score=usage",
    "hybrid memory_policy.short=efp",
    "hybrid memory_policy.long=diverse",
    "hybrid memory_policy.long=keyframe",
    "hybrid memory_policy.long=scene",
    "distilled distiller=temporal",
    "distilled distiller=temporal_gru",
    "distilled distiller=spatial",
    "distilled distiller=pool2",
)
"""Policies with parts around them: their name, then overrides."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="a policy and overrides, separated by blanks; cases by semicolons")
    parser.add_argument("--objects", help="separated by commas", default=",".join(map(str, OBJECTS)))
    parser.add_argument("--frames", type=int, default=22)
    parser.add_argument("--where", action="store_true", help="also lines of code, the most frequent first")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="whose library is run")
    parser.add_argument("--kernels", action="store_true")
    args = parser.parse_args()
    sys.path[:0] = [str(args.checkout.resolve()), str(ROOT / "tests")]
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    if args.kernels:
        kernels_table()
        return 0
    from micro import micro_model

    from sam2_mem.config import policy_names

    micro_model()  # made on the CPU
    cases = args.cases.split(";") if args.cases else [*policy_names(), *VARIANTS]
    objects = [int(count) for count in args.objects.split(",")]
    print("| policy | " + " | ".join(f"waits, {n} | transfers, {n} | kernels, {n}" for n in objects) + " |")
    print("|---|" + "---:|" * 3 * len(objects))
    for case in cases:
        cells = [cell for count in objects for cell in cells_of(case.split(), count, args.frames, args.where)]
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)
    return 0


def cells_of(case: Sequence[str], count: int, frames: int, where: bool) -> list[str]:
    """Means, and the most of a frame where that is another number; kernels of the latest frame."""
    from device_counts import configured, counts
    from simulated_cuda import SimulatedCuda

    name, *overrides = case
    places: Counter[str] = Counter()
    with SimulatedCuda() as cuda:
        try:
            predictor = configured(f"memory_policy={name}", *overrides)
            cuda.clear()
            if where:
                keep_places(cuda, places)
            by_frame = counts(cuda, predictor, count, frames)[0][2:]
        except Exception as error:
            return [f"{type(error).__name__}: {str(error)[:120]}"] + 2 * ["-"]
    for place, number in places.most_common():
        print(f"{number:5d} x {place}")
    columns = [[c.waits for c in by_frame], [c.transfers for c in by_frame]]
    return [*(mean_and_most(column) for column in columns), str(by_frame[-1].kernels)]


def keep_places(cuda, places: Counter[str]) -> None:
    clear = cuda.clear

    def clear_and_keep() -> None:
        for event in cuda.events:
            if event.kind in ("sync", "h2d", "d2h"):
                places[f"{event.kind} {event.op}{', waits' * event.waits}: {' < '.join(event.stack[:4])}"] += 1
        clear()

    cuda.clear = clear_and_keep


def mean_and_most(numbers: Sequence[int]) -> str:
    mean, most = sum(numbers) / len(numbers), max(numbers)
    return str(most) if mean == most else f"{mean:.1f} ({most})"


# -- kernels of tiny --------------------------------------------------------------------------------------------------


def kernels_table() -> None:
    """Kernels of one frame of tiny, by number of objects."""
    print("| objects | ours | `sam2` |\n|---|---:|---:|")
    for count in (1, 3, 10):
        ours, peer = (kernels_of(f"{package}.build_sam", count) for package in ("sam2_mem", "sam2"))
        print(f"| {count} | {ours} | {peer} |", flush=True)


def kernels_of(module: str, count: int, frames: int = 19, side: int = 128) -> int:
    """Of the latest of ``frames`` frames, without holes filled."""
    from importlib import import_module

    import numpy as np
    import torch
    from simulated_cuda import SimulatedCuda

    with tempfile.TemporaryDirectory() as folder, SimulatedCuda() as cuda:
        write_frames(Path(folder), frames, side)
        build = import_module(module).build_sam2_video_predictor
        overrides = [f"++model.image_size={side}"]
        torch.manual_seed(0)
        options = {"device": "cuda", "hydra_overrides_extra": overrides, "apply_postprocessing": False}
        predictor = build("configs/sam2.1/sam2.1_hiera_t.yaml", None, **options)
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            state = predictor.init_state(folder)
            for number in range(count):
                mask = np.zeros((side, side), bool)
                mask[8 * number : 8 * number + 40, 20:60] = True
                predictor.add_new_mask(state, 0, number, torch.from_numpy(mask))
            for frame, *_ in predictor.propagate_in_video(state):
                if frame == frames - 2:
                    cuda.clear()
            return sum(cuda.launches.values())


def write_frames(folder: Path, frames: int, side: int) -> None:
    from micro import picture
    from PIL import Image

    for number in range(frames):
        Image.fromarray(picture(number, side, side)).save(folder / f"{number:05d}.jpg", quality=95)


if __name__ == "__main__":
    sys.exit(main())
