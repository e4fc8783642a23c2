"""What ``tools/benchmark.py`` does, one function per verb; each returns an exit status."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sam2_mem.build_sam import build_policy, build_sam2_video_predictor, policy_names
from sam2_mem.evaluation.benchmark import BASELINE, Footage, Setting, compare, cost_table, stay_table, watch
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.training.synthetic import make_clip
from sam2_mem.types import Prompt
from sam2_mem.video import open_video, read_mask_png


@dataclass(frozen=True, kw_only=True)
class Network:
    """Which network: ``config`` and ``weights`` ("random" is allowed) as for ``build_sam2_video_predictor``."""

    config: str = "nano"
    weights: str | None = None
    image_size: int | None = None
    device: str = "cpu"
    threads: int = 0

    def setting(self) -> Setting:
        if self.threads:
            torch.set_num_threads(self.threads)
        size = () if self.image_size is None else (f"model.image_size={self.image_size}",)
        predictor = build_sam2_video_predictor(
            self.config, self.weights, device=self.device, hydra_overrides_extra=size
        )
        return Setting(model=predictor.model, tracker=predictor.tracker_settings)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where results go besides the screen: ``json`` a file; ``markdown``: print tables to paste into a page."""

    json: Path | None = None
    markdown: bool = False

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
    size: int = 256,
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
    size: int = 128,
) -> int:
    """What policies hold on a long synthetic stream. Status 1 where one held more than its bound."""
    setting = network.setting()
    clip = make_clip(0, num_frames=frames, height=size, width=size, num_objects=objects, late_objects=0)
    prompts = prompts_of(clip.masks(0), objects)
    footage = Footage(picture=lambda t: clip.frame(t).image, num_frames=frames, prompts=prompts)
    chosen = {name: build_policy(name) for name in names or policy_names()}
    steps = (watch(setting, name, policy, footage, every=every) for name, policy in chosen.items())
    found = list(tqdm(steps, total=len(chosen), unit="policy", disable=None, leave=False))
    print(stay_table(found, markdown=report.markdown))
    report.write(network, setting, found)
    return 0 if all(stay.bounded for stay in found) else 1


def _policies(names: Sequence[str]) -> dict[str, MemoryPolicy]:
    """Policies by name, all if none is named, FIFO first."""
    wanted = dict.fromkeys((BASELINE, *(names or policy_names())))
    return {name: build_policy(name) for name in wanted}


# -- footage ----------------------------------------------------------------------------------------------------------


def synthetic(frames: int, size: int, objects: int) -> Footage:
    """A procedural clip, rendered ahead."""
    clip = make_clip(0, num_frames=frames, height=size, width=size, num_objects=objects, late_objects=0)
    return _decoded((frame.image for frame in clip), prompts_of(clip.masks(0), objects))


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
