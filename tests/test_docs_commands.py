"""Every command of ours in any document is understood by its parser, up to where it would begin; tests/test_docs_code.py runs
those of the pages for users."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path

import pytest

from sam2_mem.cli import train
from sam2_mem.cli.command import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("checkpoints/*.md")]


class ParsedError(Exception):
    """Raised in the place of what a command would do."""


def shell_lines(page: str) -> Iterator[list[str]]:
    """Words of the lines in code blocks that begin with a command or a script of ours."""
    blocks = re.findall(
        r"^```(?:bash|sh|shell|console)?\n(.*?)^```|((?:^ {4}\S[^\n]*\n)+)", page, re.DOTALL | re.MULTILINE
    )
    for block in blocks:
        for line in "".join(block).replace("\\\n", " ").splitlines():
            words = line.strip().removeprefix("$ ").split("|")[0].split(" && ")[0].split(" > ")[0]
            if re.match(r"(?:\S*bin/)?(?:python )?(?:sam2-mem|tools/\w+\.py|-m sam2_mem)\b", words):
                yield shlex.split(words, comments=True)


def arguments(words: list[str]) -> list[str] | None:
    """What follows `sam2-mem`, of a command in any of its forms; None where only the place of one is shown (...)."""
    tool = next(i for i, word in enumerate(words) if re.search(r"sam2-mem$|sam2_mem$|tools/\w+\.py$", word))
    rest = words[tool + 1 :]
    if "..." in rest or "COMMAND" in rest:
        return None
    if words[tool].endswith(".py"):
        module = re.search(r"from sam2_mem\.cli\.(\w+) import main", (ROOT / words[tool]).read_text())
        assert module, words[tool]
        return [next(name for name, (m, _) in COMMANDS.items() if m == module[1]), *rest]
    return rest


@pytest.fixture
def stops_after_parsing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sam2-mem"])
    monkeypatch.setattr(
        train, "FUNCTIONS", dict.fromkeys(train.FUNCTIONS, _begin)
    )  # its overrides are left by its parser
    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(ArgumentParser, name)

        def parse(self: ArgumentParser, *args: object, original=original, **options: object) -> None:
            original(self, *args, **options)
            raise ParsedError

        monkeypatch.setattr(ArgumentParser, name, parse)


def _begin(**arguments: object) -> int:
    raise ParsedError


def is_understood(words: list[str]) -> bool:
    try:
        return main(words) == 0
    except ParsedError:
        return True
    except SystemExit as ended:
        return ended.code in (0, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_of_a_page(page: Path, stops_after_parsing: None) -> None:
    lines = [words for line in shell_lines(page.read_text()) if (words := arguments(line)) is not None]
    assert [shlex.join(words) for words in lines if not is_understood(words)] == []


def test_there_are_many_and_a_wrong_one_is_noticed(stops_after_parsing: None) -> None:
    assert sum(len(list(shell_lines(page.read_text()))) for page in PAGES) > 40
    page = (
        "```bash\ntools/vos_inference.py --video a.mp4 --boxx 1,2,3,4 \\\n  --output o\nls\nsam2-mem segment ...\n```\n"
    )
    wrong, shown = shell_lines(page)
    assert arguments(wrong) == ["segment", "--video", "a.mp4", "--boxx", "1,2,3,4", "--output", "o"]
    assert not is_understood(arguments(wrong) or []) and arguments(shown) is None
