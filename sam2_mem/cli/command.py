"""The command ``sam2-mem``, also ``python -m sam2_mem``: one name for all commands, each a module of this folder.

Nothing heavy is imported before a command is chosen, so that help comes at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from sam2_mem import __version__

COMMANDS = {
    "studio": ("studio", "a page on this machine: click, track, see what memory reads, change the policy, export"),
    "segment": ("vos", "masks of objects through a video or a data set, from masks, boxes or clicks"),
    "track-all": ("track_all", "masks of everything in a video, without prompts, with objects that come along the way"),
    "compare": ("compare", "memory policies side by side on videos with ground truth: quality, speed, bytes"),
    "evaluate": ("evaluate", "scores of masks on disk, by the rules of a data set"),
    "inspect": ("inspection", "what memory holds on a video, and why, as pictures and a page"),
    "benchmark": ("benchmark", "cost of policies, memory over long videos, speed beside SAM 2"),
    "distillers": ("distillers", "cost of memory under several token distillers"),
    "train": ("train", "train or fine-tune a network, measure it, export its weights"),
    "download": ("download", "published weights of the SAM 2 family, resumed and checked"),
    "verify": ("verify", "a checkpoint's score on a data set beside the published one"),
    "export": ("export", "a network as four ONNX files, checked against PyTorch"),
    "completion": ("completion", "a script for bash and zsh that completes commands and flags"),
    "synthetic": ("synthetic", "procedural clips with exact ground truth"),
}
"""Module and purpose of every command."""

INTERRUPTED = 130
"""Exit status of a command that was stopped by Ctrl-C, as shells have it."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sam2-mem COMMAND ...",
            "",
            "SAM 2 video segmentation with an exchangeable memory bank.",
            "",
            "commands:",
            *lines,
            "",
            "  sam2-mem COMMAND --help    examples and arguments of a command",
            "  sam2-mem --version",
            "",
            "A first try, with the small model that comes with the package:",
            "",
            "  sam2-mem studio --demo",
            "  sam2-mem segment --sam2_cfg nano_v2 --video clip.mp4 --box 100,80,300,260 --output out",
            "",
            "Exit status: 0 done; 1 a part of the work failed; 2 the arguments cannot be used; 130 stopped by Ctrl-C.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name, and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(_complaint(name), file=sys.stderr)
        return 2
    module = import_module(f"sam2_mem.cli.{COMMANDS[name][0]}")
    sys.argv = [f"sam2-mem {name}", *words[1:]]  # what a parser calls itself in its help
    try:
        return module.main(words[1:])
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


def _complaint(name: str) -> str:
    if not name:
        return usage()
    close = difflib.get_close_matches(name, COMMANDS, 1)
    advice = f"did you mean {close[0]}? " if close else ""
    return f"error: expected a command out of {', '.join(COMMANDS)}, got {name!r}; {advice}sam2-mem --help lists them"
