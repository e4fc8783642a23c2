"""Pages of documentation as tests read them: fenced blocks, the reason why one is not run, the commands in it."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path
    for where in ("*", "docs/**/*", "checkpoints/*", "integrations/**/*")
    for path in sorted(ROOT.glob(f"{where}.md"))
]
FENCE = re.compile(r"(?:^ *<!-- not run: (.+?) -->\n)?^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    code: str
    reason: str
    """Why it is not run; empty where it is."""


def blocks(page: str) -> list[Block]:
    return [Block(match[3], textwrap.dedent(match[4]), match[1] or "") for match in FENCE.finditer(page)]


def shell_lines(code: str) -> list[str]:
    """Lines of a shell block, those that go on joined."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def commands(line: str) -> Iterator[list[str]]:
    """Words of each command of a line: the parts of a pipe and of a sequence, without variables, where output goes, and `&`."""
    for part in re.split(r" (?:&&|\|) |&$", line):
        words = shlex.split(re.sub(r"^(?:\w+=\S* )*", "", part.split(" > ")[0].strip()), comments=True)
        if words:
            yield words


def inline_commands(page: str) -> Iterator[list[str]]:
    """Words of what the text between blocks names in backticks and begins as a command with arguments does; of `a|b` the first."""
    text = re.sub(r"\s+", " ", FENCE.sub("", page))
    start = r"(?:python )?(?:\S*bin/)?(?:sam2-mem|make|torchrun|(?:tools|benchmarks)/\w+\.py) "
    for span in re.findall(r"`([^`]+)`", text):
        if re.match(start, span):
            yield from commands(re.sub(r"(\w)\|\w+", r"\1", span))
