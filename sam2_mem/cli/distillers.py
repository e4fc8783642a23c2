"""The command ``tools/measure_distillers.py``: bytes, keys, operations and time of memory under several token
distillers."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sam2_mem._moved import renamed
from sam2_mem.build_sam import build_policy, build_sam2
from sam2_mem.cli.arguments import (
    add_network_arguments,
    command_parser,
    exit_status,
    integers,
    set_threads,
    user_path,
)
from sam2_mem.evaluation.tables import text_table
from sam2_mem.memory.tokens import map_tokens, tensor_bytes
from sam2_mem.model.attention_operators import ReadSize
from sam2_mem.model.distiller.base import TokenDistiller
from sam2_mem.model.memory_attention import Attended
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.synthetic.generator import make_clip
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import FrameFeatures, RowBatch
from sam2_mem.video import normalize, to_model_input

USAGE = """Measure what token distillers save: bytes and tokens of a frame, keys read, operations and time, in one run.

    sam2-mem distillers --sizes 256,1024 --threads 1 --json out.json
    sam2-mem distillers --config sam2.1_hiera_t --weights random --setups none:fifo,temporal:distilled

One object, a full bank. A setup is distiller:policy; all setups of a size take turns on the same frames. Distillers
have the weights that come with the config, and are untrained where it has none.
"""
DEFAULT = (
    "none:fifo,pool2:fifo,pool4:fifo,spatial:fifo,"
    "none:distilled,temporal:distilled,temporal:distilled_small,temporal_gru:distilled_small"
)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    add_network_arguments(parser, image_size=False)
    parser.add_argument("--sizes", type=integers, default=(256,), help="sides of the network's input (default: 256)")
    parser.add_argument("--setups", type=_setups, default=DEFAULT, help=f"(default: {DEFAULT})")
    parser.add_argument("--frames", type=int, default=6, help="frames timed per setup (default: 6)")
    parser.add_argument("--fill", type=int, default=40, help="frames remembered before (default: 40)")
    parser.add_argument("--json", dest="json_path", type=user_path, help="write everything here")
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/distiller.md")
    return parser.parse_args(argv)


def _setups(text: str) -> tuple[tuple[str, str], ...]:
    words = [name.split(":") for name in text.split(",")]
    if not all(len(pair) == 2 for pair in words):
        raise argparse.ArgumentTypeError(f"expected distiller:policy with commas between, got {text!r}")
    return tuple((distiller, policy) for distiller, policy in words)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = vars(parse_arguments(argv))
    return exit_status(lambda: measure(**arguments))


@dataclass(frozen=True)
class DistillerCost:
    """One distiller under one policy, with a full bank and one object. ``frame_tokens``, ``frame_bytes``: what a
    further frame adds where it is stored whole; ``held_bytes``: of the object's memory with its pointers; ``keys``
    read per frame, ``gflop`` of memory attention; milliseconds of memory attention, of the image encoder, the same for
    all setups of a size, and of a whole frame: that and a step of the tracker. Medians."""

    size: int
    distiller: str
    policy: str
    frame_tokens: int
    frame_bytes: int
    held_bytes: int
    keys: float
    gflop: float
    attention_ms: float
    encoder_ms: float
    frame_ms: float


@dataclass
class _SetupRun:
    """A tracker under way, its distiller, and what was measured: rows, seconds of memory attention and of the step of
    every frame."""

    names: tuple[str, str]
    tracker: Tracker
    distiller: TokenDistiller
    reads: list[RowBatch] = field(default_factory=list)
    attending: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


def measure(
    *,
    config: str = "nano_v2",
    weights: str | None = None,
    sizes: Sequence[int] = (256,),
    setups: Sequence[tuple[str, str]],
    frames: int = 6,
    fill: int = 40,
    threads: int = 0,
    device: str = "cpu",
    json_path: Path | None = None,
    markdown: bool = False,
) -> int:
    """Print one table for all ``sizes`` of the network's input and all ``setups`` (distiller, policy)."""
    set_threads(threads)
    costs = []
    for size in sizes:
        costs += measure_size(config, weights, size, setups, frames=frames, fill=fill, device=device)
    print(table(costs, markdown=markdown))
    if json_path is not None:
        about = {"config": config, "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
        json_path.write_text(json.dumps({"about": about, "results": [asdict(c) for c in costs]}, indent=1) + "\n")
    return 0


@torch.inference_mode()
def measure_size(
    config: str,
    weights: str | None,
    size: int,
    setups: Sequence[tuple[str, str]],
    *,
    frames: int,
    fill: int,
    device: str,
) -> list[DistillerCost]:
    """All setups on one network and the same frames, frame by frame in turn."""
    model = _network(config, weights, size, device)
    picture = make_clip(0, num_frames=1, height=size, width=size, num_objects=1, late_objects=0)
    mask, image = picture.masks(0) > 0, to_model_input(picture.frame(0).image, size)
    runs = [_SetupRun(names, *_prepared(model, config, size, names, device)) for names in setups]
    features, _ = _encoded(model, image)
    for run in tqdm(runs, desc=f"fill at {size}", disable=None, leave=False):
        model.memory_encoder.distiller = run.distiller
        with _without_reading(model):
            for index in range(fill):
                prompts = [Prompt(1, mask=mask)] if index == 0 else []
                run.tracker.step(replace(features, index=index), prompts)
    encoding = []
    for index in tqdm(range(fill, fill + frames), desc=f"time at {size}", disable=None, leave=False):
        for run in runs:
            encoding.append(_timed_frame(model, run, image, index))
    return [_cost(model, size, run, median(encoding)) for run in runs]


def _network(config: str, weights: str | None, size: int, device: str, distiller: str = "none") -> SAM2:
    overrides = [f"model.image_size={size}", f"distiller={distiller}"]
    return build_sam2(config, weights, device=device, hydra_overrides_extra=overrides)


def _prepared(
    model: SAM2, config: str, size: int, names: tuple[str, str], device: str
) -> tuple[Tracker, TokenDistiller]:
    """A tracker whose policy takes the object for present on every frame, and the distiller of its setup."""
    policy: Any = build_policy(names[1])
    if hasattr(policy, "min_object_score"):
        policy = replace(policy, min_object_score=-1e9)
    return Tracker(model, policy), _network(config, None, size, device, names[0]).memory_encoder.distiller


@contextmanager
def _reading_by(model: SAM2, attend: Callable[..., Attended]) -> Iterator[None]:
    """With ``attend`` in place of the model's own."""
    model.attend = attend  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.attend


@contextmanager
def _without_reading(model: SAM2) -> Iterator[None]:
    """Frames as if without memory, to fill a bank quickly; it is written as usual."""

    def attend(features: FrameFeatures, rows: RowBatch, *_: Any) -> Attended:
        return Attended(model.without_memory(features, rows.rows), None)

    with _reading_by(model, attend):
        yield


def _encoded(model: SAM2, image: Tensor) -> tuple[FrameFeatures, float]:
    began = time.perf_counter()
    features = model.encode_image(normalize(image[None], model.device))[0]
    _wait(model)
    return features, time.perf_counter() - began


def _timed_frame(model: SAM2, run: _SetupRun, image: Tensor, index: int) -> float:
    """One frame; returns the seconds of its image encoder."""
    model.memory_encoder.distiller = run.distiller
    features, encoder = _encoded(model, image)
    seconds = []

    def attend(frame: FrameFeatures, rows: RowBatch, *options: Any) -> Attended:
        began = time.perf_counter()
        attended = SAM2.attend(model, frame, rows, *options)
        _wait(model)
        seconds.append(time.perf_counter() - began)
        run.reads.append(rows)
        return attended

    with _reading_by(model, attend):
        began = time.perf_counter()
        run.tracker.step(replace(features, index=index))
        _wait(model)
        run.steps.append(time.perf_counter() - began)
    run.attending.append(sum(seconds))
    return encoder


def _wait(model: SAM2) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


# -- counting ---------------------------------------------------------------------------------------------------------


def _cost(model: SAM2, size: int, run: _SetupRun, encoder: float) -> DistillerCost:
    model.memory_encoder.distiller = run.distiller
    state = run.tracker.tracks[1].state
    assert state is not None, "the object has a prompt"
    tokens, nbytes = stored(model, run.tracker.settings.memory_dtype)
    return DistillerCost(
        size=size,
        distiller=run.names[0],
        policy=run.names[1],
        frame_tokens=tokens,
        frame_bytes=nbytes,
        held_bytes=tensor_bytes(state.tensors()),
        keys=fmean(rows.feat.shape[1] for rows in run.reads),
        gflop=fmean(operations(model, rows) for rows in run.reads) / 1e9,
        attention_ms=1000 * median(run.attending),
        encoder_ms=1000 * encoder,
        frame_ms=1000 * (encoder + median(run.steps)),
    )


def stored(model: SAM2, dtype: str) -> tuple[int, int]:
    """Tokens of a stored frame, and the bytes that a second one adds: what all frames share counts once."""
    maps = torch.zeros(2, model.memory_width, *model.grid, device=model.device)
    frames = [
        map_tokens(model.memory_encoder.distiller(m[None])[0], lambda f: f.to(getattr(torch, dtype)).clone())
        for m in maps
    ]
    first, total = (
        tensor_bytes(x for t in stored for x in (t.feat, t.pos, t.xy, t.log_count)) for stored in (frames[:1], frames)
    )
    return len(frames[0]), total - first


def operations(model: SAM2, rows: RowBatch) -> int:
    """Floating-point operations of memory attention on one batch of rows: two for a multiplication with its
    addition."""
    attention, queries = model.memory_attention, model.grid[0] * model.grid[1]
    layer = attention.layers[0]
    width, hidden = layer.linear1.in_features, layer.linear1.out_features
    pointers = int((rows.item == rows.num_items).sum())
    size = ReadSize(
        rows=rows.rows,
        queries=queries,
        tokens=rows.feat.shape[1] - pointers // rows.rows,
        pointers=pointers // rows.rows,
        width=width,
        memory_width=model.memory_width,
        heads=layer.self_attn.num_heads,
    )
    around = 4 * queries * width * width + 2 * queries * queries * width
    feed_forward = 2 * queries * width * hidden
    per_layer = 2 * rows.rows * (around + feed_forward + queries * width * width) + attention.operator.flops(size)
    return len(attention.layers) * per_layer


def table(costs: Sequence[DistillerCost], *, markdown: bool) -> str:
    """One line per setup; ratios are to the first of its size."""
    head = (
        "size",
        "distiller",
        "policy",
        "tokens/frame",
        "KiB/frame",
        "KiB held",
        "keys",
        "GFLOP",
        "attention ms",
        "frame ms",
    )
    lines = []
    for cost in costs:
        first = next(c for c in costs if c.size == cost.size)
        lines.append(
            (
                *(
                    str(cost.size),
                    cost.distiller,
                    cost.policy,
                    str(cost.frame_tokens),
                    f"{cost.frame_bytes / 1024:.1f}",
                ),
                f"{cost.held_bytes / 1024:.0f} ({first.held_bytes / cost.held_bytes:.1f}x)",
                f"{cost.keys:.0f} ({first.keys / cost.keys:.1f}x)",
                f"{cost.gflop:.2f} ({first.gflop / cost.gflop:.1f}x)",
                f"{cost.attention_ms:.1f} ({first.attention_ms / cost.attention_ms:.1f}x)",
                f"{cost.frame_ms:.1f} ({first.frame_ms / cost.frame_ms:.2f}x)",
            )
        )
    return text_table(head, lines, markdown=markdown)


__getattr__ = renamed(__name__)
