"""The whole measurement of docs/performance.md: which cases there are, and running those that have not been run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from sam2_mem.evaluation.benchmark.policy_costs import table

TINY, LARGE = "sam2.1_hiera_t", "sam2.1_hiera_l"


@dataclass(frozen=True)
class Case:
    """One run of ``tools/benchmark.py`` with ``arguments`` after the verb; its results are files called ``name``."""

    name: str
    verb: str
    arguments: tuple[str, ...]

    def command(self, tool: Path, common: Sequence[str], json_file: Path) -> list[str]:
        return [sys.executable, str(tool), self.verb, *common, *self.arguments, "--json", str(json_file)]


def _peer(name: str, config: str, size: int, objects: int, frames: int, block: int, *more: str) -> Case:
    given = {"config": config, "image_size": size, "objects": objects, "frames": frames, "block": block}
    return Case(name, "peer", (*(f"--{k}={v}" for k, v in given.items()), *more))


ALONE = "--no_alone"
CPU_CASES = (
    _peer("tiny, 1024, 1 object", TINY, 1024, 1, 26, 4, ALONE),
    _peer("large, 1024, 1 object", LARGE, 1024, 1, 22, 2, ALONE),
    _peer("tiny, 1024, 5 objects", TINY, 1024, 5, 22, 2, ALONE),
    _peer("tiny, 256, 1 object", TINY, 256, 1, 58, 5, ALONE),
    _peer("tiny, 256, 10 objects", TINY, 256, 10, 38, 5, ALONE),
    _peer("tiny, 1024, pooled", TINY, 1024, 1, 26, 4, ALONE, "--override=attention=pooled", "--least_iou=0.3"),
    _peer(
        "tiny, 1024, distilled", TINY, 1024, 1, 26, 4, ALONE, "--override=memory_policy=distilled_small",
        "--override=distiller=temporal", "--least_iou=0.3",
    ),
    _peer("first mask, 540p", TINY, 256, 1, 28, 5, "--size=960x540", "--alone_frames=200"),
    _peer(
        "first mask, 540p, loading in the background", TINY, 256, 1, 28, 5, "--size=960x540", "--alone_frames=200",
        "--peer_init=async_loading_frames=true",
    ),
    _peer("2000 frames, 1 object", TINY, 256, 1, 28, 5, "--alone_frames=2000"),
    _peer("2000 frames, 10 objects", TINY, 256, 10, 28, 5, "--alone_frames=2000"),
)  # fmt: skip
"""Takes about three hours on two cores, most of it the last case."""

PEER_MODES = {
    "eager": (),
    "compiled encoder": ("--peer_override=++model.compile_image_encoder=true",),
    "compiled": ("--peer_option=vos_optimized=true",),
}
CUDA_CASES = (
    *(
        _peer(f"{name}, {n} objects, {mode}", config, 1024, n, 117, 25, "--vos_optimized", "--dtype=bfloat16", ALONE,
              "--least_iou=0.95", *options)
        for (name, config), n, (mode, options) in product(
            (("tiny", TINY), ("large", LARGE)), (1, 5, 10), PEER_MODES.items()
        )
    ),
    *(
        Case(f"{name}, {n} objects, policies", "policies", (f"--config={config}", "--image_size=1024", f"--objects={n}",
             "--policies=fifo,sam2long", "--frames=77", "--vos_optimized"))
        for (name, config), n in product((("tiny", TINY), ("large", LARGE)), (1, 5, 10))
    ),
    *(
        Case(f"{name}, profile", "profile", (f"--config={config}", "--image_size=1024", "--frames=60", "--vos_optimized"))
        for name, config in (("tiny", TINY), ("large", LARGE))
    ),
)  # fmt: skip


def cases_of(device: str) -> tuple[Case, ...]:
    return CUDA_CASES if device.startswith("cuda") else CPU_CASES


def run_suite(
    cases: Sequence[Case], tool: Path, folder: Path, common: Sequence[str], peer: Sequence[str],
    run: Callable[..., Any] = subprocess.run,
) -> Iterator[tuple[Case, Path]]:  # fmt: skip
    """Every case in a process of its own, those with a result in ``folder`` left out; what each says goes into a text file
    beside its result. Gives cases with their results; one that failed is not given, and run again next time.

    Args:
        common: arguments of all cases, such as the device. peer: arguments of cases with a peer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for case in tqdm(cases, unit="case", disable=None):
        result, text = (folder / f"{case.name}{end}" for end in (".json", ".txt"))
        if not result.is_file():
            beside = peer if case.verb == "peer" else ()
            command = case.command(tool, (*common, *beside), result)
            with text.open("w") as said:
                said.write(" ".join(command[1:]) + "\n")
                said.flush()
                run(command, stdout=said, stderr=subprocess.STDOUT)
        if result.is_file():
            yield case, result


def suite_table(found: Sequence[tuple[Case, Path]], *, markdown: bool = False) -> str:
    """One row per case with a peer."""
    head = ("case", "IoU", "ours ms", "peer ms", "ratio", "range", "first mask: ours", "peer", "MB/frame: ours", "peer")
    rows = [_row(case, json.loads(path.read_text())["results"]) for case, path in found if case.verb == "peer"]
    return table(head, rows, markdown)


def _row(case: Case, found: dict[str, Any]) -> tuple[str, ...]:
    iou, race = f"{found['agreement']['mean_iou']:.5f}", found["race"]
    if race is None:
        return (case.name, iou, *("",) * 8)
    ours, peer = ([1000 * p[side]["wall"] for p in race["pairs"]] for side in ("ours", "peer"))
    ratios = [b / a for a, b in zip(ours, peer)]
    times = (
        f"{median(ours):.0f}",
        f"{median(peer):.0f}",
        f"{median(ratios):.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
    )
    alone = [found[side] for side in ("ours", "peer")]
    first = ("" if one is None else f"{one['first_mask']:.2f} s" for one in alone)
    slope = ("" if one is None or one["slope"] is None else f"{one['slope'] / 1e6:.3f}" for one in alone)
    return (case.name, iou, *times, *first, *slope)
