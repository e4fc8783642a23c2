"""What commands share: their parser, which network, lists with commas, how they end."""

from __future__ import annotations

import io
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from sam2_mem import __version__
from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.evaluation.benchmark.policy_costs import Setting


@dataclass(frozen=True, kw_only=True)
class Network:
    """Which network: ``config``, ``weights`` ("random" is allowed), ``overrides`` and ``vos_optimized`` as for
    ``build_sam2_video_predictor``."""

    config: str = "nano_v2"
    weights: str | None = None
    image_size: int | None = None
    device: str = "cpu"
    threads: int = 0
    overrides: tuple[str, ...] = ()
    vos_optimized: bool = False

    def setting(self) -> Setting:
        set_threads(self.threads)
        size = () if self.image_size is None else (f"model.image_size={self.image_size}",)
        predictor = build_sam2_video_predictor(
            self.config,
            self.weights,
            device=self.device,
            hydra_overrides_extra=[*size, *self.overrides],
            vos_optimized=self.vos_optimized,
        )
        return Setting(model=predictor.model, tracker=predictor.tracker_settings)


def set_threads(count: int) -> None:
    """Threads of the CPU; 0 leaves them to torch."""
    if count:
        torch.set_num_threads(count)


class _Parser(ArgumentParser):
    """A parser, and parsers of sub-commands, that take -1,5,30,30 and -1e-3 for values, as Python 3.14 does, not for flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._negative_number_matcher = re.compile(r"-\.?\d")


def command_parser(usage: str) -> ArgumentParser:
    """A parser whose help begins with ``usage``, and that knows ``--version``."""
    parser = _Parser(description=usage, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def add_network_arguments(parser: ArgumentParser, *, image_size: bool = True) -> None:
    """Those of ``Network``; without ``image_size`` where a command takes several."""
    parser.add_argument("--config", default="nano_v2", help="a model config (default: nano_v2)")
    parser.add_argument("--weights", help="a checkpoint, or random (default: those of the config)")
    if image_size:
        parser.add_argument("--image_size", type=int, help="side of the network's input (default: that of the config)")
    add_machine_arguments(parser)


def add_machine_arguments(
    parser: ArgumentParser, *, device: str = "cpu", threads: str = "CPU threads; 0 leaves it to torch"
) -> None:
    """``--device`` with its default and ``--threads`` with its help."""
    parser.add_argument("--device", default=device)
    parser.add_argument("--threads", type=int, default=0, help=threads)


def take_network(arguments: dict[str, Any]) -> Network:
    """The network that parsed arguments ask for; its arguments are removed from them."""
    taken = {field.name: arguments.pop(field.name) for field in fields(Network) if field.name in arguments}
    return Network(**taken | {"overrides": tuple(taken.get("overrides", ()))})


def user_path(text: str) -> Path:
    """A path, with ``~`` for the home folder also where the shell has not replaced it, as in ``--output=~/masks``."""
    return Path(text).expanduser()


def names(text: str) -> tuple[str, ...]:
    """``a,b``; a field after another one stays with its name: ``a:x=1,y=2,b`` is two."""
    items: list[str] = []
    for part in text.split(","):
        if items and "=" in part and ":" not in part:
            items[-1] += f",{part}"
        elif part:
            items.append(part)
    return tuple(items)


def integers(text: str) -> tuple[int, ...]:
    """``1,5``"""
    return tuple(int(number) for number in text.split(","))


def floats(text: str) -> tuple[float, ...]:
    """``1.5,2``"""
    return tuple(float(number) for number in text.split(","))


def picture_size(text: str) -> int | tuple[int, int]:
    """``256`` or ``960x540``: a side, or (width, height)."""
    numbers = [int(n) for n in text.split("x")]
    if not 1 <= len(numbers) <= 2 or min(numbers) < 1:
        raise ArgumentTypeError(f"expected a side, or WIDTHxHEIGHT, got {text!r}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def exit_status(command: Callable[[], int]) -> int:
    """What a command returns; 2, with the reason, where its arguments cannot be used."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name need not be printable in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        return command()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
