"""The command ``tools/benchmark.py``: its arguments, and one function per verb that returns an exit status."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sam2_mem._moved import renamed
from sam2_mem.build_sam import RANDOM, build_policy, build_sam2_video_predictor
from sam2_mem.cli.arguments import (
    Network,
    add_machine_arguments,
    add_network_arguments,
    command_parser,
    exit_status,
    integers,
    names,
    picture_size,
    set_threads,
    take_network,
    user_path,
)
from sam2_mem.cli.compare import overrides_of
from sam2_mem.config import compose, config_names, policy_names
from sam2_mem.evaluation.benchmark.policy_costs import (
    BASELINE,
    BenchmarkClip,
    Setting,
    compare,
    cost_table,
    measure_stream,
    stream_table,
)
from sam2_mem.evaluation.benchmark.profile import profile as profile_parts
from sam2_mem.evaluation.benchmark.profile import profile_table
from sam2_mem.evaluation.benchmark.reference_benchmark import (
    OURS,
    Agreement,
    PredictorSpec,
    ProcessCost,
    SpeedComparison,
    StoredClip,
    amplified,
    compare_speed,
    measure_process,
)
from sam2_mem.evaluation.benchmark.suite import cases_of, run_suite, suite_table
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.prompts import Prompt
from sam2_mem.synthetic.generator import SyntheticVideo, make_clip
from sam2_mem.video import open_video, read_mask_png

USAGE = """Measure what memory policies cost, side by side in one process.

    sam2-mem benchmark policies --objects 1,5 --frames 100 --json out.json
    sam2-mem benchmark policies --config sam2.1_hiera_t --weights random --image_size 512 --policies keyframe,xmem
    sam2-mem benchmark memory --frames 1000 --policies sam2long
    sam2-mem benchmark profile --config sam2.1_hiera_t --weights random --image_size 1024 --threads 2
    sam2-mem benchmark peer --peer sam2.build_sam:build_sam2_video_predictor --config sam2.1_hiera_t --weights random \\
        --image_size 256 --threads 1
    sam2-mem benchmark suite --peer sam2.build_sam:build_sam2_video_predictor --device cuda --out runs/cuda

`policies` runs blocks fifo, policy, policy, fifo on the same decoded frames and prints milliseconds per frame, the
ratio to fifo with its range over blocks, bytes and tokens held, and tokens read. `memory` watches what is held on a
long stream. `peer` runs ours beside another predictor with SAM 2's API, which is named by what builds it: masks must agree
before anything is said about speed. `profile` says where the time of a frame goes. `suite` runs every case of
docs/performance.md for a device, each in a process of its own, and goes on where it was cut off.
"""
Size = int | tuple[int, int]
"""Of a synthetic clip in pixels: its side, or (width, height)."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_network_arguments(common)
    common.add_argument("--policies", type=names, default=(), help="names with commas between (default: every yaml)")
    common.add_argument(
        "--override", action="append", default=[], dest="overrides", help="of our config, e.g. attention=pooled"
    )
    common.add_argument("--vos_optimized", action="store_true", help="build ours with vos_optimized=True")
    common.add_argument("--json", type=user_path, help="write everything here")
    common.add_argument("--markdown", action="store_true", help="print a table for docs/policies.md")
    _add_policies(
        verbs.add_parser("policies", parents=[common], help="time and memory beside fifo", allow_abbrev=False)
    )
    _add_memory(verbs.add_parser("memory", parents=[common], help="what is held on a long stream", allow_abbrev=False))
    _add_peer(verbs.add_parser("peer", parents=[common], help="beside another predictor", allow_abbrev=False))
    _add_profile(
        verbs.add_parser("profile", parents=[common], help="where the time of a frame goes", allow_abbrev=False)
    )
    _add_suite(verbs.add_parser("suite", help="every case of docs/performance.md for a device", allow_abbrev=False))
    return parser.parse_args(argv)


def _add_size(parser: argparse.ArgumentParser, default: int = 256) -> None:
    parser.add_argument(
        "--size", type=picture_size, default=default, help="of the synthetic clip: its side, or 960x540"
    )


def _add_policies(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=100, help="the first 17 are left out of times")
    parser.add_argument("--objects", type=integers, default=(1, 5), help="numbers with commas between (default: 1,5)")
    parser.add_argument("--rounds", type=int, default=1, help="how often the four blocks are run")
    _add_size(parser)
    parser.add_argument("--video", type=user_path, help="a video in place of the synthetic clip, with --masks")
    parser.add_argument("--masks", type=user_path, help="PNG of object ids of its first frame")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument(
        "--loop", type=int, help="this many frames, rendered ahead, to and fro (default: all are rendered)"
    )
    parser.add_argument("--every", type=int, default=100, help="frames between two looks")
    _add_size(parser, 128)


def _add_peer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", required=True, help="module:function that builds it as SAM 2's does")
    parser.add_argument("--peer_option", action="append", default=[], type=_option, help="a further keyword, key=value")
    parser.add_argument("--peer_override", action="append", default=[], help="of its config")
    parser.add_argument("--peer_init", action="append", default=[], type=_option, help="a keyword of its init_state")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast on both sides"
    )
    parser.add_argument("--least_iou", type=float, default=0.999, help="mean IoU below which nothing is timed")
    parser.add_argument(
        "--frames",
        type=int,
        default=78,
        help="the first 17 are left out of times; one that is left after the blocks is for counting",
    )
    parser.add_argument("--block", type=int, default=15, help="frames before the other side's turn")
    parser.add_argument("--objects", type=int, default=1)
    _add_size(parser)
    parser.add_argument("--alone_frames", type=int, help="frames for memory and the first mask (default: --frames)")
    parser.add_argument(
        "--no_alone", action="store_true", help="leave out what needs a fresh process: memory, first mask"
    )


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=40, help="the first 17 are left out of times")
    parser.add_argument("--objects", type=int, default=1)
    _add_size(parser)
    parser.add_argument("--trace", type=user_path, help="the last frame for Chrome's or Perfetto's viewer")


def _add_suite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", required=True, help="module:function that builds it as SAM 2's does")
    parser.add_argument(
        "--out", type=user_path, required=True, help="folder of results; cases that are there are not run again"
    )
    parser.add_argument("--weights", default="random", help="a checkpoint, or random (default)")
    add_machine_arguments(parser)
    parser.add_argument("--markdown", action="store_true", help="print a table for docs/performance.md")


def _option(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    return key, {"true": True, "false": False}.get(value.lower(), value)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = vars(parse_arguments(argv))
    verb = VERBS[arguments.pop("verb")]
    network = take_network(arguments)
    report = BenchmarkReport(json=arguments.pop("json", None), markdown=arguments.pop("markdown"))
    return exit_status(lambda: verb(network=network, report=report, **arguments))


# -- verbs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Where results go besides the screen: ``json`` a file; ``markdown``: print tables to paste into a page."""

    json: Path | None = None
    markdown: bool = False

    def write(self, about: dict[str, Any], results: Any, machine: str = "") -> None:
        if self.json is not None:
            torch_facts = {"threads": torch.get_num_threads(), "torch": torch.__version__}
            about = about | {"machine": machine or platform.processor()} | torch_facts
            self.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")

    def write_costs(self, network: Network, setting: Setting, costs: Sequence[Any]) -> None:
        device = setting.model.device
        about = asdict(network) | {"image_size": setting.model.image_size, "device": str(device)}
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.write({"network": about}, [asdict(cost) for cost in costs], machine)


def policies(
    *,
    network: Network,
    report: BenchmarkReport,
    policies: Sequence[str] = (),
    frames: int = 100,
    objects: Sequence[int] = (1, 5),
    rounds: int = 1,
    size: Size = 256,
    video: Path | None = None,
    masks: Path | None = None,
) -> int:
    """Time and memory of policies beside FIFO; ``video`` and ``masks`` (ids of its first frame, PNG) in place of the
    synthetic clip of side ``size``. Status 1 where two blocks of a policy gave different masks."""
    if (video is None) != (masks is None):
        raise ValueError("expected video and masks together, got one of them; masks of the first frame are the prompts")
    setting = network.setting()
    clip = video_clip(video, masks, frames) if video and masks else synthetic_clip(frames, size, max(objects))
    built = {name: policy_named(name) for name in dict.fromkeys((BASELINE, *(policies or policy_names())))}
    steps = compare(setting, built, clip, objects=objects, rounds=rounds)
    costs = list(tqdm(steps, total=len(built) * len(objects), unit="policy", disable=None, leave=False))
    print(cost_table(costs, markdown=report.markdown))
    report.write_costs(network, setting, costs)
    return 0 if all(cost.repeatable for cost in costs) else 1


def memory(
    *,
    network: Network,
    report: BenchmarkReport,
    policies: Sequence[str] = (),
    frames: int = 1000,
    objects: int = 1,
    every: int = 100,
    size: Size = 128,
    loop: int | None = None,
) -> int:
    """What policies hold on a long synthetic stream, or on ``loop`` frames of one played to and fro, which are rendered
    ahead. Status 1 where one held more than its bound."""
    if loop is not None and loop < 2:
        raise ValueError(f"expected loop of at least 2 frames, got {loop}")
    setting = network.setting()
    video = _synthetic_video(loop or frames, size, objects)
    prompts = prompts_of(video.masks(0), objects)
    rendered = [video.frame(t).image for t in range(loop or 0)]
    picture = (lambda t: rendered[to_and_fro(t, loop)]) if loop else (lambda t: video.frame(t).image)
    clip = BenchmarkClip(picture=picture, num_frames=frames, prompts=prompts)
    built = {name: policy_named(name) for name in policies or policy_names()}
    steps = (measure_stream(setting, name, policy, clip, every=every) for name, policy in built.items())
    costs = list(tqdm(steps, total=len(built), unit="policy", disable=None, leave=False))
    print(stream_table(costs, markdown=report.markdown))
    report.write_costs(network, setting, costs)
    return 0 if all(cost.bounded for cost in costs) else 1


def profile(
    *,
    network: Network,
    report: BenchmarkReport,
    policies: Sequence[str] = (),
    frames: int = 40,
    objects: int = 1,
    size: Size = 256,
    trace: Path | None = None,
) -> int:
    """Where the time of a frame goes, under one policy; ``trace``: a file for torch's profiler."""
    if len(policies) > 1:
        raise ValueError(f"expected one policy to profile, got {', '.join(policies)}")
    setting = network.setting()
    policy = policy_named(policies[0] if policies else BASELINE)
    parts = profile_parts(setting, policy, synthetic_clip(frames, size, objects), trace=trace)
    print(profile_table(parts, markdown=report.markdown))
    report.write_costs(network, setting, parts)
    return 0


def suite(*, network: Network, report: BenchmarkReport, peer: str, out: Path) -> int:
    """Every case of docs/performance.md for the device of ``network`` beside ``peer``, "module:function"; results in the
    folder ``out``. Each case is a process of the program that was started. Status 1 where one has no result."""
    cases, tool = cases_of(network.device), Path(sys.argv[0]).resolve()
    common = (f"--weights={network.weights or RANDOM}", f"--device={network.device}", f"--threads={network.threads}")
    results = list(run_suite(cases, tool, out, common, (f"--peer={peer}",)))
    print(suite_table(results, markdown=report.markdown))
    return 0 if len(results) == len(cases) else 1


def to_and_fro(t: int, count: int) -> int:
    """0, 1, ... count - 1, count - 2, ... 0, 1, ..."""
    t %= 2 * count - 2
    return min(t, 2 * count - 2 - t)


# -- beside another predictor -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Who is compared with and how closely: ``builder`` "module:function"; ``options`` further keywords of it,
    ``overrides`` of its config and ``init`` keywords of its ``init_state``; ``least_iou``: mean IoU without which nothing
    is said about speed."""

    builder: str
    options: dict[str, Any]
    overrides: tuple[str, ...] = ()
    init: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    least_iou: float = 0.999


@dataclass(frozen=True)
class PeerComparison:
    """What ``peer`` measured; no race where masks did not agree."""

    agreement: Agreement
    race: SpeedComparison | None
    ours: ProcessCost | None
    peer: ProcessCost | None


def _peer(
    *,
    peer: str,
    peer_option: Sequence[tuple[str, object]],
    peer_override: Sequence[str],
    peer_init: Sequence[tuple[str, object]],
    dtype: str,
    least_iou: float,
    policies: Sequence[str],
    no_alone: bool,
    **arguments: Any,
) -> int:
    """``peer`` with the arguments of the command line."""
    if policies:
        raise ValueError("expected a policy as --override memory_policy=NAME beside a peer, got --policies")
    spec = Peer(
        builder=peer,
        options=dict(peer_option),
        overrides=tuple(peer_override),
        init=dict(peer_init),
        dtype=dtype,
        least_iou=least_iou,
    )
    return compare_with_peer(beside=spec, processes=not no_alone, **arguments)


def compare_with_peer(
    *,
    network: Network,
    report: BenchmarkReport,
    beside: Peer,
    frames: int = 78,
    objects: int = 1,
    block: int = 15,
    size: Size = 256,
    processes: bool = True,
    alone_frames: int | None = None,
) -> int:
    """Ours beside another predictor on a synthetic clip. Status 1 where the masks do not agree.

    Args:
        network: ours.
        report: where results go.
        beside: the other one.
        frames: length of the clip.
        objects: how many are tracked.
        block: frames before the other side's turn.
        size: of the clip.
        processes: measure what needs a fresh process: memory, first mask.
        alone_frames: length of the clip for that, ``frames`` if None.
    """
    if alone_frames is not None and alone_frames < 1:
        raise ValueError(f"expected alone_frames of at least 1, got {alone_frames}")
    set_threads(network.threads)
    with TemporaryDirectory() as folder:
        clip = StoredClip.of(synthetic_clip(frames, size, objects), Path(folder) / "clip")
        specs = _specs(network, beside, Path(folder))
        predictors = (specs[0].build(), specs[1].build())
        speed, agreement = compare_speed(specs, clip, predictors, block)
        agrees = agreement.conclusive() and agreement.mean_iou >= beside.least_iou
        del predictors
        if agrees and processes and alone_frames is not None:
            clip = StoredClip.of(synthetic_clip(alone_frames, size, objects), Path(folder) / "longer")
        costs = [measure_process(spec, clip) if agrees and processes else None for spec in specs]
    result = PeerComparison(agreement, speed if agrees else None, *costs)
    print(peer_table(result, beside.builder))
    about = {"network": asdict(network), "beside": asdict(beside), "objects": objects, "frames": frames}
    report.write(about, asdict(result))
    return 0 if agrees else 1


VERBS: dict[str, Callable[..., int]] = {
    "policies": policies,
    "memory": memory,
    "peer": _peer,
    "profile": profile,
    "suite": suite,
}


def write_random_checkpoint(config: str, folder: Path, overrides: Sequence[str] = ()) -> str:
    """Random weights whose masks differ from frame to frame, in a file that both sides read; its path."""
    torch.manual_seed(0)
    path = str(folder / "random.pt")
    model = build_sam2_video_predictor(config, RANDOM, device="cpu", hydra_overrides_extra=overrides).model
    torch.save({"model": amplified(model.state_dict())}, path)
    return path


def _specs(network: Network, peer: Peer, folder: Path) -> tuple[PredictorSpec, PredictorSpec]:
    """Ours and the peer, on one checkpoint, which is written to ``folder`` if the weights are random."""
    name = f"{Path(network.config).name.removesuffix('.yaml')}.yaml"
    config = next((n for n in config_names() if Path(n).name == name), network.config)
    if network.weights is None:
        raise ValueError("expected weights that both sides can read: a checkpoint, or random; got none")
    size = () if network.image_size is None else (f"++model.image_size={network.image_size}",)
    weights = network.weights
    if weights == RANDOM:
        weights = write_random_checkpoint(config, folder, size)
    common: dict[str, Any] = {
        "config": config,
        "weights": weights,
        "device": network.device,
        "dtype": peer.dtype,
        "threads": network.threads,
    }
    options = {"vos_optimized": True} if network.vos_optimized else {}
    ours = PredictorSpec(builder=OURS, overrides=(*size, *network.overrides), options=options, **common)
    overrides = (*size, *peer.overrides)
    return ours, PredictorSpec(
        builder=peer.builder, overrides=overrides, options=peer.options, init=peer.init, **common
    )


def peer_table(result: PeerComparison, name: str) -> str:
    """What is said about both sides."""
    a, speed = result.agreement, result.race
    lines = [
        f"agreement over {a.frames} frames: mean IoU {a.mean_iou:.5f}, least {a.least_iou:.4f}, logits differ by up to "
        f"{a.logit:.1e}; objects in {100 * a.present:.0f} % of masks, {100 * a.area:.1f} % of the picture"
    ]
    if speed is None:
        return "\n".join([*lines, "the masks do not agree, or say nothing: no ratio"])
    for clock in ("wall", "cpu"):
        ratios, times = speed.ratios(clock), [speed.milliseconds(side, clock) for side in ("ours", "peer")]
        lines.append(
            f"{clock:4s}: ours {times[0]:.1f} ms, {name} {times[1]:.1f} ms a frame; "
            f"ratio {median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}, {len(ratios)} blocks)"
        )
    if speed.gflop is not None:
        ours, peers = speed.gflop
        lines.append(f"operations of a frame: ours {ours:.1f} GFLOP, {name} {peers:.1f}; ratio {peers / ours:.3f}")
    lines.append("first 17 frames: ours {:.2f} s, peer {:.2f} s".format(*speed.warm_up))
    for side, cost in (("ours", result.ours), ("peer", result.peer)):
        if cost is not None:
            growth = "unknown"
            if cost.slope is not None and cost.most is not None:
                growth = f"{cost.slope / 1e6:.3f} MB a frame, at most {cost.most / 1e6:.0f} MB"
            lines.append(
                f"{side} alone: first prompt answered after {cost.first_prompt:.2f} s, first tracked mask after "
                f"{cost.first_mask:.2f} s; over {cost.frames} frames the process grows by {growth}"
            )
    return "\n".join(lines)


# -- policies and clips -----------------------------------------------------------------------------------------------


def policy_named(text: str) -> MemoryPolicy:
    """A policy by its name, with changes to its fields after a colon: ``sam2long:uncertainty=0``."""
    if ":" not in text and "+" not in text:
        return build_policy(text)
    overrides = overrides_of(text)
    strangers = [override for override in overrides if not override.startswith("memory_policy")]
    if strangers:
        raise ValueError(
            f"expected a policy as name or name:field=value, got {text!r}; {strangers[0]} goes to --override"
        )
    return build_policy(compose("nano_v2", overrides).memory_policy)


def synthetic_clip(frames: int, size: Size, objects: int) -> BenchmarkClip:
    """A procedural clip, rendered ahead."""
    video = _synthetic_video(frames, size, objects)
    return _clip((frame.image for frame in video), prompts_of(video.masks(0), objects))


def _synthetic_video(frames: int, size: Size, objects: int) -> SyntheticVideo:
    width, height = (size, size) if isinstance(size, int) else size
    return make_clip(0, num_frames=frames, height=height, width=width, num_objects=objects, late_objects=0)


def video_clip(video: Path, masks: Path, frames: int) -> BenchmarkClip:
    """The first frames of a video, decoded ahead, and the objects of a mask of the first one."""
    ids = read_mask_png(masks).ids
    with open_video(video) as source:
        return _clip((frame.image for frame in islice(source, frames)), prompts_of(ids, ids.size))


def _clip(pictures: Iterable[np.ndarray], prompts: tuple[Prompt, ...]) -> BenchmarkClip:
    decoded = list(pictures)
    return BenchmarkClip(picture=decoded.__getitem__, num_frames=len(decoded), prompts=prompts)


def prompts_of(ids: np.ndarray, limit: int) -> tuple[Prompt, ...]:
    """Mask prompts of the first ``limit`` objects in ``ids`` (H, W)."""
    return tuple(Prompt(int(i), mask=ids == i) for i in np.unique(ids[ids > 0])[:limit])


__getattr__ = renamed(__name__)
