"""Arguments that several tools share: which network, lists with commas."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, fields
from typing import Any

import torch

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.evaluation.benchmark.policy_costs import Setting


@dataclass(frozen=True, kw_only=True)
class Network:
    """Which network: ``config``, ``weights`` ("random" is allowed), ``overrides`` and ``vos_optimized`` as for
    ``build_sam2_video_predictor``."""

    config: str = "nano"
    weights: str | None = None
    image_size: int | None = None
    device: str = "cpu"
    threads: int = 0
    overrides: tuple[str, ...] = ()
    vos_optimized: bool = False

    def setting(self) -> Setting:
        if self.threads:
            torch.set_num_threads(self.threads)
        size = () if self.image_size is None else (f"model.image_size={self.image_size}",)
        predictor = build_sam2_video_predictor(
            self.config,
            self.weights,
            device=self.device,
            hydra_overrides_extra=[*size, *self.overrides],
            vos_optimized=self.vos_optimized,
        )
        return Setting(model=predictor.model, tracker=predictor.tracker_settings)


def add_network_arguments(parser: ArgumentParser, *, image_size: bool = True) -> None:
    """Those of :class:`Network`; without ``image_size`` where a tool takes several."""
    parser.add_argument("--config", default="nano", help="a model config (default: nano)")
    parser.add_argument("--weights", help="a checkpoint, or random (default: those of the config)")
    if image_size:
        parser.add_argument("--image_size", type=int, help="side of the network's input (default: that of the config)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")


def take_network(given: dict[str, Any]) -> Network:
    """The network that parsed arguments ask for; its arguments are removed from them."""
    taken = {field.name: given.pop(field.name) for field in fields(Network) if field.name in given}
    return Network(**taken | {"overrides": tuple(taken.get("overrides", ()))})


def names(text: str) -> tuple[str, ...]:
    """``a,b``; a field after another one stays with its name: ``a:x=1,y=2,b`` is two."""
    found: list[str] = []
    for part in text.split(","):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        elif part:
            found.append(part)
    return tuple(found)


def integers(text: str) -> tuple[int, ...]:
    """``1,5``"""
    return tuple(int(number) for number in text.split(","))
