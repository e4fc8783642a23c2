#!/usr/bin/env python
"""Random sessions beside SAM 2: every call that a user may make, in any order, prompts in the loop included.

    python benchmarks/random_sessions.py --sequences 300
    python benchmarks/random_sessions.py --sequences 60 --no_archive        # the control, which must fail

Both packages run the micro network of the tests (64 x 64 pictures) on one video of 48 frames; half of the sequences use SAM
2's post-processing. tests/random_sessions.py says how calls are drawn and what is done about what the reference cannot do.
Needs `pip install sam2==1.1.0`. Exit code 1 where a sequence differs by more than the tolerance, or differs at all in frames,
objects or refusals.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests"), str(Path(__file__).resolve().parents[1])]

from random_sessions import TOLERANCE, DisagreementError, Sides, Walk, kinds, walk  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--first_seed", type=int, default=1000)
    parser.add_argument("--length", type=int, default=12, help="calls of a sequence")
    parser.add_argument("--no_archive", action="store_true", help="a bounded bank alone")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    overrides = ["tracker.archive_bytes=0"] if arguments.no_archive else []
    walks: list[Walk] = []
    failures = 0
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder))
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.sequences):
            try:
                result = walk(sides, seed, *overrides, length=arguments.length, full=bool(seed % 2))
            except DisagreementError as error:
                failures += 1
                print(error, flush=True)
                continue
            walks.append(result)
            if result.difference > TOLERANCE:
                failures += 1
                culprit = result.calls[result.culprit]
                print(f"seed {seed}: {result.difference:.2e} at call {result.culprit}, {culprit}", flush=True)
            if len(walks) % 20 == 0:
                print(summary(walks, failures, time.perf_counter() - began), flush=True)
    print(summary(walks, failures, time.perf_counter() - began))
    return int(failures > 0)


def summary(walks: list[Walk], failures: int, seconds: float) -> str:
    counts = kinds(walks)
    calls = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
    silent = sum(w.difference > TOLERANCE and not w.warnings for w in walks)
    return (
        f"{len(walks)} sequences, {sum(counts.values())} calls ({calls}), {sum(w.results for w in walks)} results, "
        f"{sum(w.refused for w in walks)} refused by both; worst difference of logits "
        f"{max((w.difference for w in walks), default=0.0):.1e}; {failures} sequences differ, {silent} of them silently; "
        f"{sum(len(w.warnings) for w in walks)} warnings in {sum(bool(w.warnings) for w in walks)} sequences; {seconds:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
