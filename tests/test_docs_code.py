"""The pages for users: their Python runs, and so do their commands, or the page says why not."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from sam2_mem.cli.command import COMMANDS
from sam2_mem.cli.command import main as sam2_mem

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / name for name in ("start.md", "faq.md", "clusters.md")] + sorted(ROOT.glob("docs/guide_*.md"))
FRAMES = 10
"""Of the demo video: enough for what happens on frame 8 to show on frame 9."""


class Block(NamedTuple):
    language: str
    code: str
    reason: str
    """Why it is not run; empty where it is."""


def blocks(page: str) -> list[Block]:
    found = re.finditer(r"(?:<!-- not run: (.+?) -->\n)?^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [Block(match[2], match[3], match[1] or "") for match in found]


def commands(code: str) -> list[list[str]]:
    """Words of each line of a shell block."""
    lines = code.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def run(block: Block, names: dict) -> None:
    if block.language == "python":
        exec(compile(block.code, "page", "exec"), names)
        return
    for words in commands(block.code):
        assert words[0] == "sam2-mem", f"{words} is no command of ours; say why it is not run"
        assert sam2_mem(words[1:]) == 0, words


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the first frames of the demo video."""
    videos = ROOT / "notebooks" / "videos"
    for folder in ("demo", "demo_prompts/demo"):
        (tmp_path / "notebooks/videos" / folder).mkdir(parents=True)
        for path in sorted((videos / folder).iterdir())[:FRAMES]:
            shutil.copy(path, tmp_path / "notebooks/videos" / folder)
    shutil.copy(videos / "demo.txt", tmp_path / "notebooks/videos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tier(page: Path) -> pytest.param:
    """The guides run in `make test-all`."""
    return pytest.param(page, marks=[pytest.mark.extended] if page.stem.startswith("guide") else [], id=page.stem)


@pytest.mark.full
@pytest.mark.parametrize("page", map(tier, PAGES))
def test_what_a_page_shows_runs(page: Path, checkout: Path) -> None:
    names: dict = {}
    shown = [block for block in blocks(page.read_text()) if block.language in ("python", "bash") and not block.reason]
    for block in shown:
        run(block, names)


def test_commands_that_are_not_run_can_be_parsed() -> None:
    """Their names and flags exist."""
    for page in PAGES:
        for block in blocks(page.read_text()):
            if block.language == "bash":
                for words in commands(block.code):
                    if words[0] == "sam2-mem":
                        assert words[1] in COMMANDS, f"{page.name}: {words}"
                        help_text = flags(words[1])
                        unknown = [w for w in words if w.startswith("--") and w not in help_text]
                        assert unknown == [], f"{page.name}: {words}"


def flags(command: str) -> str:
    """Sources of a command, which name its flags."""
    files = (
        ("arguments", "launcher", "vos_arguments")
        if command == "segment"
        else ("arguments", "launcher", COMMANDS[command][0])
    )
    return " ".join(re.findall(r'"(--[\w-]+)"', "".join((ROOT / f"sam2_mem/cli/{f}.py").read_text() for f in files)))


def test_controls(checkout: Path) -> None:
    page = "<!-- not run: costs -->\n```bash\nrm x\n```\n\n```python\nassert 1 == 2\n```\n```bash\nls\n```\n"
    not_run, python, bash = blocks(page)
    assert not_run.reason == "costs"
    with pytest.raises(AssertionError):
        run(python, {})
    with pytest.raises(AssertionError, match="no command of ours"):
        run(bash, {})
