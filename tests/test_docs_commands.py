"""Every command of every page is run by a test, understood by what it calls, up to where it would begin, or its block says why
not (`<!-- not run: reason -->`). tests/test_docs_code.py runs those of the pages for users.
"""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT, Block, blocks, commands, inline_commands, shell_lines
from packaging.requirements import Requirement
from torch.distributed.run import parse_args as torchrun_arguments

from sam2_mem.cli import train
from sam2_mem.cli.command import COMMANDS, main

LANGUAGES = ("bash", "json", "python", "text", "xml", "yaml")


class ParsedError(Exception):
    """Raised in the place of what a command would do."""


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


@pytest.fixture
def nothing_is_required(stops_after_parsing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text names a flag without all that a command needs beside it, and without a value at its end."""
    parse = ArgumentParser.parse_known_args  # which all others call

    def lenient(self: ArgumentParser, *args: object, **options: object) -> tuple:
        for action in (*self._actions, *self._mutually_exclusive_groups):
            action.required = isinstance(action, _SubParsersAction)
        return parse(self, *args, **options)

    monkeypatch.setattr(ArgumentParser, "parse_known_args", lenient)
    monkeypatch.setattr(ArgumentParser, "error", _error_but_for_what_is_missing)


def _error_but_for_what_is_missing(parser: ArgumentParser, message: str) -> None:
    if re.search("expected (one|at least one) argument|arguments are required", message):
        raise ParsedError
    raise SystemExit(2)


# -- what understands a command ---------------------------------------------------------------------------------------


def by_our_parser(words: Sequence[str]) -> bool:
    try:
        return main(words) == 0
    except ParsedError:
        return True
    except SystemExit as ended:
        return ended.code in (0, None)


def by_command(tool: str, *rest: str) -> bool:
    return by_our_parser(rest)


def by_tool(tool: str, *rest: str) -> bool:
    """The command that a file of tools/ stands for."""
    module = re.search(r"from sam2_mem\.cli\.(\w+) import main", (ROOT / tool).read_text())
    assert module, tool
    return by_our_parser([next(name for name, (m, _) in COMMANDS.items() if m == module[1]), *rest])


def by_script(script: str, *rest: str) -> bool:
    """A file with a parser of its own."""
    before, sys.argv = sys.argv, [script, *rest]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except ParsedError:
        return True
    except SystemExit as ended:
        return ended.code in (0, None)
    finally:
        sys.argv = before
    return False


def by_torchrun(torchrun: str, *rest: str) -> bool:
    parse = ArgumentParser.parse_args
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ArgumentParser, "parse_args", lambda self, args: self.parse_known_args(args)[0])
            parsed = torchrun_arguments(list(rest))
    except SystemExit:
        return False
    assert ArgumentParser.parse_args is parse
    return is_understood([parsed.training_script, *parsed.training_script_args])


def by_make(*words: str) -> bool:
    return subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False).returncode == 0


def by_pip(pip: str, verb: str, *rest: str) -> bool:
    """Names of packages, and of our extras."""
    extras = set(re.findall(r'^ {4}"(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    places = [re.sub(r"^\.(?=\[|$)", "sam2_mem", word) for word in rest if word != "-e"]
    wanted = [Requirement(place) for place in places]
    return verb == "install" and all(extras >= need.extras for need in wanted if need.name == "sam2_mem")


def by_list(script: str, *rest: str) -> bool:
    return subprocess.run([ROOT / script, *rest, "--list"], capture_output=True, check=False).returncode == 0


UNDERSTOOD_BY: dict[str, Callable[..., bool]] = {
    r"(.*bin/)?sam2-mem": by_command,
    r"tools/\w+\.py": by_tool,
    r"(benchmarks|integrations)/[\w/]+\.py": by_script,
    "torchrun": by_torchrun,
    "make": by_make,
    "pip": by_pip,
    r"checkpoints/download_ckpts\.sh": by_list,
}


def is_understood(words: Sequence[str]) -> bool:
    """False where what a command calls does not take its arguments, and where nothing here knows it."""
    return is_known(words) and _check(words)(*_without_python(words))


def is_known(words: Sequence[str]) -> bool:
    return _check(words) is not None


def _check(words: Sequence[str]) -> Callable[..., bool] | None:
    name = _without_python(words)[0]
    return next((check for pattern, check in UNDERSTOOD_BY.items() if re.fullmatch(pattern, name)), None)


def _without_python(words: Sequence[str]) -> Sequence[str]:
    if words[:3] == ["python", "-m", "sam2_mem"]:
        return ["sam2-mem", *words[3:]]
    return words[1:] if words[0] == "python" and words[1].endswith(".py") else words


def is_whole(words: Sequence[str]) -> bool:
    """Not where something is left out, or stands for any command."""
    return not {"...", "COMMAND"} & set(words)


def unchecked(page: str) -> Iterator[str]:
    """What no test says anything about, and what is wrong: commands, and blocks of which nobody can say whether they hold any."""
    for block in blocks(page):
        if block.language not in LANGUAGES:
            yield f"```{block.language}"
        if block.language == "bash":
            yield from _unchecked_commands(block)
    outside = re.sub(r"^ *```.*?^ *```$", "", page, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"^ {4,}(?:\$|sam2-mem|python|make|tools/|benchmarks/).*$", outside, re.MULTILINE)


def _unchecked_commands(block: Block) -> Iterator[str]:
    """Of a block that is not run, only commands that are known have to be right."""
    for line in shell_lines(block.code):
        for words in commands(line):
            if is_whole(words) and not is_understood(words) and (is_known(words) or not block.reason):
                yield shlex.join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT).with_suffix("")))
def test_commands_of_a_page(page: Path, stops_after_parsing: None) -> None:
    assert list(unchecked(page.read_text())) == []


def test_commands_within_the_text(nothing_is_required: None) -> None:
    """Their names and flags."""
    named = [words for page in PAGES for words in inline_commands(page.read_text())]
    assert [shlex.join(words) for words in named if not is_understood(words)] == []
    assert len(named) > 25


# -- controls ---------------------------------------------------------------------------------------------------------

RIGHT = r"""
```bash
# one
tools/vos_inference.py --video a.mp4 --box 1,2,3,4 \
  --output o > log
sam2-mem segment ...
make style && pip install -e ".[studio]"
torchrun --nproc_per_node 2 tools/train.py run hiera_nano --out o
python benchmarks/measure_onnx.py --frames 3
checkpoints/download_ckpts.sh tiny
```
<!-- not run: removes -->
```bash
rm -r out
sam2-mem download &
```
"""


def test_right_commands_are_understood(stops_after_parsing: None) -> None:
    assert sum(len(shell_lines(block.code)) for page in PAGES for block in blocks(page.read_text())) > 60
    assert list(unchecked(RIGHT)) == []


@pytest.mark.parametrize(
    ("before", "after", "reported"),
    [
        ("--box 1,2", "--boxx 1,2", "tools/vos_inference.py --video a.mp4 --boxx 1,2,3,4 --output o"),
        ("# one", "ls", "ls"),
        ("# one", "rm x && make style", "rm x"),
        ("make style", "make stile", "make stile"),
        ("[studio]", "[studioo]", "pip install -e '.[studioo]'"),
        ("run hiera_nano", "runs hiera_nano", "torchrun --nproc_per_node 2 tools/train.py runs hiera_nano --out o"),
        ("_per_node", "_per_nodes", "torchrun --nproc_per_nodes 2 tools/train.py run hiera_nano --out o"),
        ("--frames 3", "--frame 3x", "python benchmarks/measure_onnx.py --frame 3x"),
        ("sh tiny", "sh tinny", "checkpoints/download_ckpts.sh tinny"),
        ("<!-- not run: removes -->", "", "rm -r out"),
        ("download &", "download --dirr x &", "sam2-mem download --dirr x"),
        ("```bash\n# one", "```\n# one", "```"),
        ("```bash\n# one\n", "    make style\n\n```bash\n", "    make style"),
    ],
)
def test_a_wrong_or_new_command_is_reported(before: str, after: str, reported: str, stops_after_parsing: None) -> None:
    assert before in RIGHT
    assert list(unchecked(RIGHT.replace(before, after))) == [reported]


def test_a_wrong_command_within_the_text_is_reported(nothing_is_required: None) -> None:
    page = (
        "`make style`, `sam2-mem segment --format`, `sam2-mem train run\nfinetune`, `sam2-mem segment --formats`, `x y`"
    )
    assert [is_understood(words) for words in inline_commands(page)] == [True, True, True, False]
