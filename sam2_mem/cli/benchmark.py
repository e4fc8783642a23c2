"""What ``tools/benchmark.py`` does, one function per verb; each returns an exit status."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sam2_mem.build_sam import RANDOM, build_policy, build_sam2_video_predictor
from sam2_mem.cli.compare import overrides_of
from sam2_mem.cli.network import Network
from sam2_mem.config import compose, config_names, policy_names
from sam2_mem.evaluation.benchmark.policy_costs import (
    BASELINE,
    Footage,
    Setting,
    compare,
    cost_table,
    stay_table,
    watch,
)
from sam2_mem.evaluation.benchmark.profile import profile as profiled
from sam2_mem.evaluation.benchmark.profile import profile_table
from sam2_mem.evaluation.benchmark.reference import OURS, Agreement, Alone, Arm, Race, Stored, alone, lively, race
from sam2_mem.evaluation.benchmark.suite import cases_of, run_suite, suite_table
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.prompts import Prompt
from sam2_mem.synthetic.generator import SyntheticVideo, make_clip
from sam2_mem.video import open_video, read_mask_png

Size = int | tuple[int, int]
"""Of a synthetic clip in pixels: its side, or (width, height)."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where results go besides the screen: ``json`` a file; ``markdown``: print tables to paste into a page."""

    json: Path | None = None
    markdown: bool = False

    def note(self, about: dict[str, Any], results: Any) -> None:
        """Anything else, as a file."""
        if self.json is not None:
            about = about | {
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": platform.processor(),
            }
            self.json.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")

    def write(self, network: Network, setting: Setting, found: Sequence[Any]) -> None:
        if self.json is None:
            return
        device = setting.model.device
        about = {
            "network": asdict(network) | {"image_size": setting.model.image_size, "device": str(device)},
            "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        self.json.write_text(json.dumps({"about": about, "results": [asdict(x) for x in found]}, indent=1) + "\n")


def policies(
    *,
    network: Network,
    report: Report,
    names: Sequence[str] = (),
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
    footage = synthetic(frames, size, max(objects)) if video is None else filmed(video, masks, frames)
    chosen = _policies(names)
    steps = compare(setting, chosen, footage, objects=objects, rounds=rounds)
    found = list(tqdm(steps, total=len(chosen) * len(objects), unit="policy", disable=None, leave=False))
    print(cost_table(found, markdown=report.markdown))
    report.write(network, setting, found)
    return 0 if all(cost.repeatable for cost in found) else 1


def memory(
    *,
    network: Network,
    report: Report,
    names: Sequence[str] = (),
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
    clip = _clip(loop or frames, size, objects)
    prompts = prompts_of(clip.masks(0), objects)
    ahead = [clip.frame(t).image for t in range(loop or 0)]
    picture = (lambda t: ahead[to_and_fro(t, loop)]) if loop else (lambda t: clip.frame(t).image)
    footage = Footage(picture=picture, num_frames=frames, prompts=prompts)
    chosen = {name: policy_named(name) for name in names or policy_names()}
    steps = (watch(setting, name, policy, footage, every=every) for name, policy in chosen.items())
    found = list(tqdm(steps, total=len(chosen), unit="policy", disable=None, leave=False))
    print(stay_table(found, markdown=report.markdown))
    report.write(network, setting, found)
    return 0 if all(stay.bounded for stay in found) else 1


def profile(
    *,
    network: Network,
    report: Report,
    names: Sequence[str] = (),
    frames: int = 40,
    objects: int = 1,
    size: Size = 256,
    trace: Path | None = None,
) -> int:
    """Where the time of a frame goes, under one policy; ``trace``: a file for torch's profiler."""
    if len(names) > 1:
        raise ValueError(f"expected one policy to profile, got {', '.join(names)}")
    setting = network.setting()
    policy = policy_named(names[0] if names else BASELINE)
    found = profiled(setting, policy, synthetic(frames, size, objects), trace=trace)
    print(profile_table(found, markdown=report.markdown))
    report.write(network, setting, found)
    return 0


def suite(*, network: Network, report: Report, peer: str, tool: Path, out: Path) -> int:
    """Every case of docs/performance.md for the device of ``network`` beside ``peer``, "module:function"; results in the
    folder ``out``. Status 1 where one has none."""
    cases = cases_of(network.device)
    common = (f"--weights={network.weights or RANDOM}", f"--device={network.device}", f"--threads={network.threads}")
    found = list(run_suite(cases, tool, out, common, (f"--peer={peer}",)))
    print(suite_table(found, markdown=report.markdown))
    return 0 if len(found) == len(cases) else 1


def to_and_fro(t: int, count: int) -> int:
    """0, 1, ... count - 1, count - 2, ... 0, 1, ..."""
    t %= 2 * count - 2
    return min(t, 2 * count - 2 - t)


@dataclass(frozen=True, kw_only=True)
class Beside:
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
class Comparison:
    """What :func:`peer` found; no race where masks did not agree."""

    agreement: Agreement
    race: Race | None
    ours: Alone | None
    peer: Alone | None


def peer(
    *,
    network: Network,
    report: Report,
    beside: Beside,
    frames: int = 78,
    objects: int = 1,
    block: int = 15,
    size: Size = 256,
    alone_too: bool = True,
    alone_frames: int | None = None,
) -> int:
    """Ours beside another predictor on a synthetic clip. Status 1 where the masks do not agree.

    ``alone_frames``: length of the clip for what needs a fresh process, ``frames`` if None.
    """
    if alone_frames is not None and alone_frames < 1:
        raise ValueError(f"expected alone_frames of at least 1, got {alone_frames}")
    if network.threads:
        torch.set_num_threads(network.threads)
    with TemporaryDirectory() as folder:
        clip = Stored.of(synthetic(frames, size, objects), Path(folder) / "clip")
        arms = _arms(network, beside, Path(folder))
        predictors = (arms[0].build(), arms[1].build())
        raced, found = race(*arms, clip, predictors, block)
        agrees = found.telling() and found.mean_iou >= beside.least_iou
        del predictors
        if agrees and alone_too and alone_frames is not None:
            clip = Stored.of(synthetic(alone_frames, size, objects), Path(folder) / "longer")
        lonely = [alone(arm, clip) if agrees and alone_too else None for arm in arms]
    result = Comparison(found, raced if agrees else None, *lonely)
    print(peer_table(result, beside.builder))
    report.note(
        {"network": asdict(network), "beside": asdict(beside), "objects": objects, "frames": frames}, asdict(result)
    )
    return 0 if agrees else 1


def _arms(network: Network, beside: Beside, folder: Path) -> tuple[Arm, Arm]:
    """Ours and the peer, on one checkpoint, which is written to ``folder`` if the weights are random."""
    wanted = Path(network.config).name.removesuffix(".yaml")
    config = next((n for n in config_names() if Path(n).name == f"{wanted}.yaml"), network.config)
    if network.weights is None:
        raise ValueError("expected weights that both sides can read: a checkpoint, or random; got none")
    size = () if network.image_size is None else (f"++model.image_size={network.image_size}",)
    weights = network.weights
    if weights == RANDOM:
        torch.manual_seed(0)
        weights = str(folder / "random.pt")
        made = build_sam2_video_predictor(config, RANDOM, device="cpu", hydra_overrides_extra=size).model
        torch.save({"model": lively(made.state_dict())}, weights)
    common = {
        "config": config,
        "weights": weights,
        "device": network.device,
        "dtype": beside.dtype,
        "threads": network.threads,
    }
    fast = {"vos_optimized": True} if network.vos_optimized else {}
    ours = Arm(builder=OURS, overrides=(*size, *network.overrides), options=fast, **common)
    theirs = {"overrides": (*size, *beside.overrides), "options": beside.options, "init": beside.init}
    return ours, Arm(builder=beside.builder, **theirs, **common)


def peer_table(found: Comparison, name: str) -> str:
    """What is said about both sides."""
    a = found.agreement
    lines = [f"agreement over {a.frames} frames: mean IoU {a.mean_iou:.5f}, least {a.least_iou:.4f}, logits differ by up to "
             f"{a.logit:.1e}; objects in {100 * a.present:.0f} % of masks, {100 * a.area:.1f} % of the picture"]  # fmt: skip
    if found.race is None:
        return "\n".join([*lines, "the masks do not agree, or say nothing: no ratio"])
    for clock in ("wall", "cpu"):
        ratios, times = found.race.ratios(clock), [found.race.milliseconds(side, clock) for side in ("ours", "peer")]
        lines.append(
            f"{clock:4s}: ours {times[0]:.1f} ms, {name} {times[1]:.1f} ms a frame; "
            f"ratio {median(ratios):.3f} ({min(ratios):.3f}-{max(ratios):.3f}, {len(ratios)} blocks)"
        )
    if found.race.gflop is not None:
        ours, theirs = found.race.gflop
        lines.append(f"operations of a frame: ours {ours:.1f} GFLOP, {name} {theirs:.1f}; ratio {theirs / ours:.3f}")
    lines.append("first 17 frames: ours {:.2f} s, peer {:.2f} s".format(*found.race.warm_up))
    for side, one in (("ours", found.ours), ("peer", found.peer)):
        if one is not None:
            growth = (
                "unknown" if one.slope is None else f"{one.slope / 1e6:.3f} MB a frame, at most {one.most / 1e6:.0f} MB"
            )
            lines.append(f"{side} alone: first prompt answered after {one.first_prompt:.2f} s, first tracked mask after "
                         f"{one.first_mask:.2f} s; over {one.frames} frames the process grows by {growth}")  # fmt: skip
    return "\n".join(lines)


def _policies(names: Sequence[str]) -> dict[str, MemoryPolicy]:
    """Policies by name, all if none is named, FIFO first."""
    wanted = dict.fromkeys((BASELINE, *(names or policy_names())))
    return {name: policy_named(name) for name in wanted}


def policy_named(text: str) -> MemoryPolicy:
    """A policy by its name, with changes to its fields after a colon: ``sam2long:uncertainty=0``."""
    if ":" not in text and "+" not in text:
        return build_policy(text)
    overrides = overrides_of(text)
    others = [o for o in overrides if not o.startswith("memory_policy")]
    if others:
        raise ValueError(f"expected a policy as name or name:field=value, got {text!r}; {others[0]} goes to --override")
    return build_policy(compose("nano", overrides).memory_policy)


# -- footage ----------------------------------------------------------------------------------------------------------


def synthetic(frames: int, size: Size, objects: int) -> Footage:
    """A procedural clip, rendered ahead."""
    clip = _clip(frames, size, objects)
    return _decoded((frame.image for frame in clip), prompts_of(clip.masks(0), objects))


def _clip(frames: int, size: Size, objects: int) -> SyntheticVideo:
    width, height = (size, size) if isinstance(size, int) else size
    return make_clip(0, num_frames=frames, height=height, width=width, num_objects=objects, late_objects=0)


def filmed(video: Path, masks: Path, frames: int) -> Footage:
    """The first frames of a video, decoded ahead, and the objects of a mask of the first one."""
    ids = read_mask_png(masks).ids
    with open_video(video) as source:
        return _decoded((frame.image for frame in islice(source, frames)), prompts_of(ids, ids.size))


def _decoded(pictures: Iterable[np.ndarray], prompts: tuple[Prompt, ...]) -> Footage:
    held = list(pictures)
    return Footage(picture=held.__getitem__, num_frames=len(held), prompts=prompts)


def prompts_of(ids: np.ndarray, most: int) -> tuple[Prompt, ...]:
    """Mask prompts of the first ``most`` objects in ``ids`` (H, W)."""
    return tuple(Prompt(int(i), mask=ids == i) for i in np.unique(ids[ids > 0])[:most])
