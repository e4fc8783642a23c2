#!/usr/bin/env python
"""Checks and measures the package on a CUDA device in minutes: equality, waits, speed beside `sam2`, memory, training.

    python benchmarks/gpu_check.py --out runs/gpu --budget 560
    python benchmarks/gpu_check.py --out runs/gpu --steps bench_large,compiled_large
    python benchmarks/gpu_check.py --out runs/try --device cpu --quick

Every step is a process of its own with a limit of its own: a step that fails, hangs or is killed costs itself alone.
Steps that compare values run beside each other first; steps that take times run alone after them. ``logs.txt`` holds what all
of them printed, ``summary.json`` their results, rewritten after each; ``tables.md`` is for docs/performance.md. The exit
status is 1 if a step failed or a value is out of its bound. ``sam2==1.1.0`` and pytest must be installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TINY, LARGE = "configs/sam2.1/sam2.1_hiera_t.yaml", "configs/sam2.1/sam2.1_hiera_l.yaml"
MIN_IOU = {"float32": 0.995, "bfloat16": 0.9, "offloaded": 0.995}
"""Least IoU of masks on the device with those that they are compared with: on the CPU, or the reference's."""
ARMS = {
    "ours, eager": ("sam2_mem.build_sam", {}),
    "ours, optimized": ("sam2_mem.build_sam", {"vos_optimized": True}),
    "reference, eager": ("sam2.build_sam", {}),
    "reference, compiled": ("sam2.build_sam", {"vos_optimized": True}),
}


class Results:
    """Results of a step, on disk as soon as they are known."""

    def __init__(self, path: Path, device: str, quick: bool) -> None:
        self.path, self.device, self.quick = path, device, quick
        self.values: dict[str, Any] = {}

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value
        self.path.write_text(json.dumps(self.values, default=str))
        print(f"{key}: {json.dumps(value, default=str)[:600]}", flush=True)

    def attempt(self, key: str, function: Callable[..., Any], *args: Any) -> None:
        self.put(key, result_or_error(function, *args))


def result_or_error(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, or {"error": ..., "at": lines of our own code}."""
    try:
        return function(*args)
    except Exception as error:
        traceback.print_exc()
        own = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename][-4:]
        lines = [f"{Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in own]
        return {"error": f"{type(error).__name__}: {str(error)[:400]}", "at": lines}


# -- shared by the steps ----------------------------------------------------------------------------------------------


def full_precision() -> None:
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def half(device: str, on: bool = True) -> Any:
    import torch

    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if on else nullcontext()


def nano_clip(frames: int) -> tuple[Any, list]:
    from sam2_mem.training.validation import first_masks, held_out

    clip = held_out("easy", 1, num_frames=frames, first_seed=30_000_005)[0]
    return clip, list(first_masks(clip)[1])


def nano(device: str, policy: str = "fifo", *overrides: str, **options: Any) -> Any:
    from sam2_mem import build_sam2_video_predictor

    extra = {"memory_policy": policy, "hydra_overrides_extra": ["model.image_size=192", *overrides], **options}
    return build_sam2_video_predictor("nano_v2", device=device, **extra)


def stream(predictor: Any, pictures: Any, masks: list, *, autocast: Any = None, seconds: list | None = None) -> Any:
    """(T, N, H, W) logits on the host; ``seconds`` receives the time of every frame, its masks fetched."""
    import torch

    from sam2_mem import Prompt

    state, logits = predictor.init_state(), []
    with torch.inference_mode(), nullcontext() if autocast is None else autocast:
        for t, picture in enumerate(pictures):
            began = time.perf_counter()
            prompts = [Prompt(i, mask=mask) for i, mask in enumerate(masks)] if t == 0 else ()
            logits.append(predictor.track_frame(state, picture, prompts)[2][:, 0].float().cpu())
            if seconds is not None:
                seconds.append(time.perf_counter() - began)
    return torch.stack(logits)


def comparison(a: Any, b: Any) -> dict[str, Any]:
    """Of logits (T, N, H, W) with those of ``b``."""
    import torch

    mask_a, mask_b = a > 0, b > 0
    common, union = mask_a & mask_b, mask_a | mask_b
    by_frame = common.flatten(1).sum(1) / union.flatten(1).sum(1).clamp(min=1)
    return {
        "iou": round(float(common.sum() / union.sum().clamp(min=1)), 5),
        "least_frame_iou": round(float(by_frame.min()), 4),
        "logit": round(float((a - b)[common].abs().max()) if common.any() else 0.0, 5),
        "foreground": round(float(mask_b.float().mean()), 4),
        "finite": bool(torch.isfinite(a).all()),
    }


def compared_with(reference: Any, function: Callable[[], Any]) -> dict[str, Any]:
    return result_or_error(lambda: comparison(function(), reference))


def waits_of(function: Callable[[], Any]) -> list[str]:
    """Lines of code at which the host waited for the device, by CUDA's own account."""
    import torch

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as messages:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in messages if "synchroniz" in str(w.message)]


# -- steps that compare values ----------------------------------------------------------------------------------------


def env(results: Results) -> None:
    """Versions and the card."""
    import torch

    versions = [torch.__version__, torch.version.cuda, torch.backends.cudnn.version(), sys.version.split()[0]]
    results.put("torch", versions)
    for name in ("hydra", "omegaconf", "iopath", "pycocotools", "sam2", "cv2", "sam2_mem"):
        results.attempt(name, lambda name=name: str(__import__(name).__file__))
    if results.cuda:
        results.put("gpu", torch.cuda.get_device_name())
        results.put("capability", torch.cuda.get_device_capability())
        results.put("driver", subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout[-1500:])


def smoke(results: Results) -> None:
    """Every policy, ten frames, beside the CPU: float32, bfloat16, memory on the host."""
    from sam2_mem.config import policy_names

    names = ["fifo", "xmem"] if results.quick else policy_names()
    workers = 2 if results.quick else min(6, os.cpu_count() or 2)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(smoke_of, name, results.device, 4 if results.quick else 10): name for name in names}
        for job in as_completed(jobs):
            results.attempt(jobs[job], job.result)


def smoke_of(policy: str, device: str, frames: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    full_precision()
    clip, masks = nano_clip(frames)
    on_cpu = stream(nano("cpu", policy), clip.frames, masks)
    return {
        "float32": compared_with(on_cpu, lambda: stream(nano(device, policy), clip.frames, masks)),
        "bfloat16": compared_with(
            on_cpu, lambda: stream(nano(device, policy), clip.frames, masks, autocast=half(device))
        ),
        "offloaded": compared_with(
            on_cpu, lambda: stream(nano(device, policy, "tracker.storage_device=cpu"), clip.frames, masks)
        ),
    }


def operators(results: Results) -> None:
    """Attention operators, distillers, refiner, bound: on the device beside the CPU."""
    full_precision()
    clip, masks = nano_clip(3 if results.quick else 8)
    cases = [
        (f"attention={n}", "fifo")
        for n in ["exact", "lowdim", "packed", "pooled", "topk", "block_topk", "sparse_pointers"]
    ]
    cases += [(f"distiller={n}", "distilled") for n in ["pool2", "pool4", "spatial", "temporal", "temporal_gru"]]
    cases += [("refiner=hq", "fifo"), ("memory_bound=bytes", "xmem")]
    cases += [("tracker.non_overlap_masks_for_mem_enc=true", "fifo")]
    for override, policy in cases[:: 6 if results.quick else 1]:
        more = (override, "tracker.max_padding=0.5")

        def masks_on(device: str, on: bool = False, policy: str = policy, more: tuple = more) -> Any:
            return stream(nano(device, policy, *more), clip.frames, masks, autocast=half(device, on))

        on_cpu = masks_on("cpu")
        case = {
            "float32": compared_with(on_cpu, lambda: masks_on(results.device)),
            "bfloat16": compared_with(on_cpu, lambda: masks_on(results.device, True)),
        }
        results.put(override, case)


def optimized(results: Results) -> None:
    """CUDA graphs and weights cast once beside autocast: what is recorded and refused, two videos, one part that
    cannot be recorded."""
    if not results.cuda:
        results.put("left out", "needs CUDA")
        return
    clip, masks = nano_clip(6 if results.quick else 32)
    for policy in ("fifo", "sam2long", "xmem", "distilled", "samurai", "dam4sam", "keyframe"):
        results.attempt(policy, optimized_of, policy, results.device, clip, masks)
    results.attempt("a part that waits", refused_part, results.device, clip, masks)


def optimized_of(policy: str, device: str, clip: Any, masks: list) -> dict[str, Any]:
    import torch

    fast, slow, times = nano(device, policy, vos_optimized=True), nano(device, policy), []
    first = stream(fast, clip.frames, masks, seconds=times)
    result = comparison(first, stream(slow, clip.frames, masks, autocast=half(device)))
    second = stream(fast, clip.frames[::-1], masks)
    runner, recorded = fast.model.runner, {}
    for part, *_ in runner.recordings:
        recorded[part] = recorded.get(part, 0) + 1
    return result | {
        "second_video": comparison(second, stream(slow, clip.frames[::-1], masks, autocast=half(device)))["iou"],
        "recorded": recorded,
        "refused": sorted(runner.refused),
        "ms": round(1000 * median(times[-8:]), 2),
        "slowest_ms": round(1000 * max(times), 1),
        "frozen": bool(torch.equal(first[-1], first[-2])),
        "default_stream": bool(torch.cuda.current_stream() == torch.cuda.default_stream()),
    }


def refused_part(device: str, clip: Any, masks: list) -> dict[str, Any]:
    """A part that waits for the device cannot be recorded: masks must stay right, and the stream the usual one."""
    import torch

    fast = nano(device, vos_optimized=True)
    decode = fast.model._decode

    def waiting(*args: Any, **options: Any) -> Any:
        decoded = decode(*args, **options)
        return decoded if decoded.iou.sum().item() < 1e9 else None

    fast.model._decode = waiting
    masks_of_fast = stream(fast, clip.frames, masks)
    default = torch.cuda.current_stream() == torch.cuda.default_stream()
    with torch.cuda.stream(torch.cuda.default_stream()):
        expected = stream(nano(device), clip.frames, masks, autocast=half(device))
    return comparison(masks_of_fast, expected) | {
        "refused": sorted(fast.model.runner.refused),
        "default_stream": bool(default),
    }


def parity(results: Results) -> None:
    """Masks of `sam2` on the device from the same checkpoint: float32, autocast, and ours optimized."""
    full_precision()
    checkpoint = random_checkpoint(TINY, 128 if results.quick else 1024)
    video, masks = stored_clip(4 if results.quick else 24, 3)

    def logits(arm: str, on: bool) -> Any:
        with half(results.device, on):
            return tracked(checkpoint.build(arm, results.device), video, masks)[0]

    for dtype in ("float32", "bfloat16"):
        expected = logits("reference, eager", dtype == "bfloat16")
        results.put(dtype, compared_with(expected, lambda: logits("ours, eager", dtype == "bfloat16")))
    if results.cuda:
        results.put("optimized", compared_with(expected, lambda: logits("ours, optimized", True)))


def waits(results: Results) -> None:
    """Waits of the host for the device in a tracked frame, by policy, with 1 and 10 objects."""
    if not results.cuda:
        results.put("left out", "needs CUDA")
        return
    from sam2_mem.config import policy_names

    clip, masks = nano_clip(24)
    for policy in policy_names():
        for objects in (1, 10):
            results.attempt(f"{policy}, {objects}", waits_of_policy, policy, objects, results.device, clip, masks)


def waits_of_policy(policy: str, objects: int, device: str, clip: Any, masks: list) -> dict[str, Any]:
    from sam2_mem import Prompt

    predictor = nano(device, policy)
    state, by_frame = predictor.init_state(), []
    for t, picture in enumerate(clip.frames):
        prompts = [Prompt(i, mask=masks[i % len(masks)]) for i in range(objects)] if t == 0 else ()
        by_frame.append(waits_of(lambda: predictor.track_frame(state, picture, prompts)))
    full = by_frame[18:]
    return {
        "first": len(by_frame[0]),
        "per_frame": [len(w) for w in full],
        "where": sorted({x for w in full for x in w}),
    }


def train(results: Results) -> None:
    """Two steps of the small network's training and of its distiller's."""
    for config in ("hiera_nano",) if results.quick else ("hiera_nano", "distil_nano"):
        results.attempt(config, train_of, config, results.device)


def train_of(config: str, device: str) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    write_pictures(folder / "pictures")
    command = [sys.executable, "tools/train.py", "run", config, "--out", str(folder / "run"), "--until", "2"]
    command += ["--device", device, "plan.log_every=1", "plan.validation.every=0", "plan.stages.0.batch=1"]
    if config == "distil_nano":
        command += ["size=128", "plan.stages.0.clips=${sources.procedural}", "sources.procedural.count=2"]
    paths = {"SAM2_MEM_CLIPS": str(folder / "clips"), "SAM2_MEM_PICTURES": str(folder / "pictures")}
    run = subprocess.run(command, env=os.environ | paths, cwd=ROOT, capture_output=True, text=True)
    curves = folder / "run" / "curves.csv"
    if run.returncode or not curves.is_file():
        return {"error": f"exit status {run.returncode}: {run.stderr[-1500:]}"}
    return {"curves": curves.read_text()}


def write_pictures(folder: Path) -> None:
    import cv2
    import numpy as np

    folder.mkdir(parents=True)
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC))


def tests(results: Results) -> None:
    """The tests marked gpu."""
    report = Path(tempfile.mkdtemp()) / "junit.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rfEs",
        "-p",
        "no:cacheprovider",
        "-m",
        "gpu",
        "tests/test_gpu.py",
    ]
    command += [f"--junitxml={report}", "-n", "2" if results.quick else "5", "--durations=15"]
    command += ["-k", "holes or unequal"] if results.quick else []
    more = {"OMP_NUM_THREADS": "2"} | ({} if results.cuda else {"SAM2_MEM_TEST_DEVICE": results.device})
    run = subprocess.run(command, env=os.environ | more, cwd=ROOT, text=True, capture_output=True)
    print(run.stdout[-60000:], run.stderr[-5000:])
    results.put("tail", run.stdout.splitlines()[-30:])
    if not report.is_file():
        results.put("error", f"pytest ended with {run.returncode} and wrote no report: {run.stderr[-600:]}")
        return
    for name, message in failures(report):
        results.put(name, {"error": message})


def failures(report: Path) -> Iterator[tuple[str, str]]:
    from xml.etree import ElementTree

    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            if (entry := case.find(kind)) is not None:
                yield str(case.get("name")), f"{entry.get('message', '')[:600]} ... {(entry.text or '')[-1500:]}"


# -- steps that take times --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights for both sides, and the config that it is of."""

    config: str
    path: str
    size: int

    def build(self, arm: str, device: str, **more: Any) -> Any:
        module, options = ARMS[arm]
        builder = __import__(module, fromlist=["_"]).build_sam2_video_predictor
        overrides = [f"++model.image_size={self.size}"]
        options = {"hydra_overrides_extra": overrides, "apply_postprocessing": False, **options, **more}
        return builder(self.config, self.path, device=device, **options)


def random_checkpoint(config: str, size: int) -> Checkpoint:
    """Random weights with masks that differ from frame to frame."""
    from sam2_mem.cli.benchmark import write_random_checkpoint

    path = write_random_checkpoint(config, Path(tempfile.mkdtemp()), [f"++model.image_size={size}"])
    return Checkpoint(config, path, size)


def stored_clip(frames: int, objects: int) -> tuple[str, list]:
    """A folder of JPEG files, and a mask of each object in the first."""
    from sam2_mem.cli.benchmark import synthetic_clip
    from sam2_mem.evaluation.benchmark.reference_benchmark import StoredClip

    clip = synthetic_clip(frames, 256, objects)
    stored = StoredClip.of(clip, Path(tempfile.mkdtemp()) / "clip")
    return str(stored.folder / "frames"), [prompt.mask for prompt in clip.prompts]


def tracked(predictor: Any, video: str, masks: list) -> tuple[Any, list[float], float]:
    """Logits (T, N, H, W) on the host, seconds of every tracked frame, seconds until the first frame's masks."""
    import torch

    logits, seconds = [], []
    with torch.inference_mode():
        began = time.perf_counter()
        state = predictor.init_state(video)
        for i, mask in enumerate(masks):
            predictor.add_new_mask(state, 0, i + 1, mask)
        frames = predictor.propagate_in_video(state)
        logits.append(next(frames)[2][:, 0].float().cpu())
        first = time.perf_counter() - began
        began = time.perf_counter()
        for _, _, frame in frames:
            logits.append(frame[:, 0].float().cpu())
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return torch.stack(logits), seconds, first


def attention(results: Results) -> None:
    """The kernel that torch takes for memory attention (one head of 256), and what the first call of a new length of
    memory costs with each."""
    import torch
    from torch.nn.attention import SDPBackend

    ways = {"default": None, "flash": SDPBackend.FLASH_ATTENTION}
    if results.cuda:
        ways |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    side = 64 if results.quick else 4096
    with torch.inference_mode():
        for rows in (1, 10):
            for offset, (way, backend) in enumerate(ways.items()):
                lengths = [(side // 4) * (n + offset) + 64 for n in (5, 9, 13, 17)]
                results.attempt(f"{way}, {rows} rows", attention_cost, results.device, rows, side, lengths, backend)


def attention_cost(device: str, rows: int, side: int, lengths: list[int], backend: Any) -> dict[str, list[float]]:
    """Milliseconds of the first and of the third call of every length of keys."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import sdpa_kernel

    wait, times = torch.cuda.synchronize if device.startswith("cuda") else lambda: None, []
    for length in lengths:
        q, k = (torch.randn(rows, 1, n, 256, device=device, dtype=torch.bfloat16) for n in (side, length))
        for _ in range(3):
            wait()
            began = time.perf_counter()
            with nullcontext() if backend is None else sdpa_kernel(backend):
                F.scaled_dot_product_attention(q, k, k)
            wait()
            times.append(round(1000 * (time.perf_counter() - began), 2))
    return {"first_ms": times[::3], "third_ms": times[2::3]}


def bench(results: Results, config: str, arms: tuple[str, ...], policies: tuple[str, ...] = ("fifo",)) -> None:
    """Milliseconds a frame once memory is full, and device memory, under bfloat16 autocast, with 1, 5 and 10 objects."""
    checkpoint = random_checkpoint(config, 128 if results.quick else 1024)
    arms = arms if results.cuda else tuple(arm for arm in arms if arm.endswith("eager"))
    predictors: dict[tuple[str, str], Any] = {}
    for objects in (1,) if results.quick else (1, 5, 10):
        video, masks = stored_clip(4 if results.quick else 46, objects)
        for policy in policies:
            for arm in arms:
                key = (arm, policy)
                if key not in predictors:
                    more = {"memory_policy": policy} if policy != "fifo" else {}
                    predictors[key] = result_or_error(lambda: checkpoint.build(arm, results.device, **more))
                results.attempt(
                    f"{arm}, {policy}, {objects}", frame_cost, predictors[key], results.device, video, masks
                )


def frame_cost(predictor: Any, device: str, video: str, masks: list) -> dict[str, Any]:
    if isinstance(predictor, dict):  # it could not be built
        return predictor
    with device_memory(device) as memory, half(device):
        logits, seconds, first = tracked(predictor, video, masks)
    steady = sorted(seconds[-(len(seconds) // 2) :])
    late = hasattr(predictor, "policy") and predictor.policy.needs.revise > 0  # its last masks come all at once
    return memory | {
        "ms": round(1000 * ((first + sum(seconds)) / len(logits) if late else median(steady)), 2),
        "range": [round(1000 * s, 2) for s in (steady[0], steady[-1])],
        "first_s": round(first, 2),
        "total_s": round(first + sum(seconds), 2),
        "slowest_ms": round(1000 * max(seconds), 1),
        "foreground": round(float((logits > 0).float().mean()), 4),
    }


@contextmanager
def device_memory(device: str) -> Iterator[dict[str, int]]:
    """``peak_mb`` and ``left_mb`` beyond what was allocated before; empty on a CPU."""
    import torch

    memory: dict[str, int] = {}
    if not device.startswith("cuda"):
        yield memory
        return
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield memory
    memory["peak_mb"] = (torch.cuda.max_memory_allocated() - before) >> 20
    memory["left_mb"] = (torch.cuda.memory_allocated() - before) >> 20


# -- running them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Attributes:
    run: fills in its results.
    limit: seconds that it may take.
    alone: it takes times, so nothing runs beside it.
    """

    run: Callable[[Results], None]
    limit: int
    alone: bool = False


UNCOMPILED = ("ours, eager", "ours, optimized", "reference, eager")
STEPS = {
    "env": Step(env, 40),
    "smoke": Step(smoke, 200),
    "parity": Step(parity, 150),
    "tests": Step(tests, 280),
    "operators": Step(operators, 150),
    "optimized": Step(optimized, 180),
    "waits": Step(waits, 120),
    "train": Step(train, 120),
    "bench_tiny": Step(lambda r: bench(r, TINY, UNCOMPILED), 120, alone=True),
    "bench_large": Step(lambda r: bench(r, LARGE, UNCOMPILED), 150, alone=True),
    "bench_policies": Step(lambda r: bench(r, TINY, UNCOMPILED[:2], ("sam2long", "xmem")), 120, alone=True),
    "attention": Step(attention, 60, alone=True),
    "compiled_tiny": Step(lambda r: bench(r, TINY, ("reference, compiled",)), 260, alone=True),
    "compiled_large": Step(lambda r: bench(r, LARGE, ("reference, compiled",)), 300, alone=True),
}
USUAL = [name for name in STEPS if not name.startswith("compiled")]


class Check:
    """Runs steps within a budget of seconds and keeps ``summary.json``, ``logs.txt`` and ``tables.md`` up to date."""

    def __init__(self, out: Path, device: str, quick: bool, budget: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.device, self.quick, self.name = out, device, quick, device_name(device)
        self.end = time.monotonic() + budget
        self.summary: dict[str, dict] = {}
        self.lock, self.folder = Lock(), Path(tempfile.mkdtemp())

    def run(self, names: list[str]) -> int:
        """Exit status."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.run_step, [n for n in names if not STEPS[n].alone]))
        for name in names:
            if STEPS[name].alone:
                self.run_step(name)
        bad = {name: problems(step) for name, step in self.summary.items()}
        for name, lines in bad.items():
            for line in lines:
                print(f"BAD {name}: {line}")
        return int(any(bad.values()))

    def run_step(self, name: str) -> None:
        left = self.end - time.monotonic()
        if left < 10:
            self._store(name, {"status": "no time left", "seconds": 0, "results": {}}, "")
            return
        result, log = self.folder / f"{name}.json", self.folder / f"{name}.log"
        command = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--device", self.device]
        command += ["--json", str(result), *(["--quick"] if self.quick else [])]
        began = time.monotonic()
        status = run_limited(command, log, min(STEPS[name].limit, left - 5))
        values = json.loads(result.read_text()) if result.is_file() else {}
        step = {"status": status, "seconds": round(time.monotonic() - began, 1), "results": values}
        self._store(name, step, log.read_text(errors="replace"))

    def _store(self, name: str, step: dict, log: str) -> None:
        with self.lock:
            self.summary[name] = step
            with (self.out / "logs.txt").open("a") as logs:
                logs.write(f"\n===== {name}: {step['status']}\n{log[-400_000:]}\n")
            (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1))
            (self.out / "tables.md").write_text(tables(self.summary, self.name))
            print(f"{name:16s} status {step['status']:12s} {step['seconds']:6.1f} s", flush=True)


def run_limited(command: list[str], log: Path, seconds: float) -> str:
    """Exit status of a process as text, or "timeout"; it and its children are then killed."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with log.open("w") as output:
        job = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment, cwd=ROOT
        )
        try:
            return str(job.wait(seconds))
        except subprocess.TimeoutExpired:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            return "timeout"


def problems(step: dict) -> list[str]:
    """What is wrong in a step's results, one line each."""
    lines = [] if step["status"] == "0" else [f"status {step['status']}"]
    for key, value in step["results"].items():
        if key == "error":
            lines.append(str(value))
        if not isinstance(value, dict):
            continue
        cases = {k: v for k, v in value.items() if k in MIN_IOU} or {key: value}
        lines += [line for kind, case in cases.items() for line in mask_problems(f"{key}, {kind}", kind, case)]
    return lines


def mask_problems(label: str, kind: str, case: dict) -> Iterator[str]:
    if "error" in case:
        yield f"{label}: {case['error']}"
    if "iou" in case and not (case["iou"] >= MIN_IOU.get(kind, 0.9) and case["finite"]):
        yield f"{label}: {case}"
    if case.get("frozen") or case.get("default_stream") is False:
        yield f"{label}: {case}"


def device_name(device: str) -> str:
    """Of a CUDA device, as its driver names it, whatever steps run; "CPU"."""
    if not device.startswith("cuda"):
        return "CPU"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", f"--id={device.partition(':')[2] or 0}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{device}, whose name nvidia-smi did not tell"


def tables(summary: dict[str, dict], name: str) -> str:
    """Times and memory by network, policy and number of objects; waits by policy; ``name``: of the device. Markdown."""
    lines = [f"{name}; milliseconds a frame (device memory of the video in MB)", ""]
    for network in ("tiny", "large"):
        lines += bench_table(network, summary)
    waits_by = summary.get("waits", {}).get("results", {})
    if any(isinstance(v, dict) and "per_frame" in v for v in waits_by.values()):
        lines += [
            "| policy, objects | waits in the first frame | waits in a tracked frame (mean, most) |",
            "|---|---:|---:|",
        ]
        for key, value in waits_by.items():
            if (counts := value.get("per_frame")) is not None:
                lines.append(f"| {key} | {value['first']} | {sum(counts) / len(counts):.1f}, {max(counts)} |")
    return "\n".join(lines) + "\n"


def bench_table(network: str, summary: dict[str, dict]) -> list[str]:
    rows: dict[str, dict[str, str]] = {}
    for name in (f"bench_{network}", "bench_policies" if network == "tiny" else "", f"compiled_{network}"):
        for key, value in summary.get(name, {}).get("results", {}).items():
            arm, objects = key.rsplit(", ", 1)
            if isinstance(value, dict) and "ms" in value:
                rows.setdefault(arm, {})[objects] = f"{value['ms']:.1f} ({value.get('peak_mb', '-')})"
    if not rows:
        return []
    lines = [f"| {network} | 1 object | 5 objects | 10 objects |", "|---|---:|---:|---:|"]
    return [
        *lines,
        *(f"| {arm} | {' | '.join(row.get(n, '-') for n in ['1', '5', '10'])} |" for arm, row in rows.items()),
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget", type=float, default=560, help="seconds for everything")
    parser.add_argument("--steps", default=",".join(USUAL), help=f"of {', '.join(STEPS)}")
    parser.add_argument("--quick", action="store_true", help="few frames, few policies: tries the script itself")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        STEPS[args.one].run(Results(args.json, args.device, args.quick))
        return 0
    if unknown := set(args.steps.split(",")) - set(STEPS):
        parser.error(f"expected steps of {', '.join(STEPS)}, got {', '.join(sorted(unknown))}")
    return Check(args.out, args.device, args.quick, args.budget).run(args.steps.split(","))


if __name__ == "__main__":
    sys.exit(main())
