"""The command ``sam2-mem``: its commands, their help, and how they end."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sam2_mem
from sam2_mem.cli.command import COMMANDS, INTERRUPTED, main

ROOT = Path(__file__).resolve().parents[2]


def test_every_tool_is_a_command() -> None:
    """The scripts in tools/ are shims over the same modules."""
    modules = {re.search(r"from sam2_mem\.cli\.(\w+) import main", p.read_text())[1] for p in ROOT.glob("tools/*.py")}
    assert len(modules) >= 8
    assert modules <= {module for module, _ in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sam2-mem"])
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith(f"usage: sam2-mem {name} ")
    examples = re.findall(r"^\s*sam2-mem (\S+)", text.split("\n\n", 1)[1], re.MULTILINE)
    assert examples.count(name) >= 1 and not re.search(r"^ +(python )?tools/", text, re.MULTILINE)


def test_help_comes_without_torch(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; from sam2_mem.cli.command import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)
    assert main(["--help"]) == 0 and capsys.readouterr().out == done.stdout


def test_module_and_version() -> None:
    words = [sys.executable, "-m", "sam2_mem", "--version"]
    assert subprocess.run(words, capture_output=True, text=True, timeout=60).stdout.strip() == sam2_mem.__version__


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2 and "usage: sam2-mem COMMAND" in capsys.readouterr().err
    assert main(["segmnt"]) == 2 and "did you mean segment?" in capsys.readouterr().err
    assert main(["xyz"]) == 2 and "did you mean" not in capsys.readouterr().err


def test_status_of_a_command_is_handed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module("sam2_mem.cli.evaluate")
    monkeypatch.setattr(sys, "argv", ["sam2-mem"])
    monkeypatch.setattr(module, "main", lambda argv: len(argv))
    assert main(["evaluate", "a", "b", "c"]) == 3

    def interrupted(argv: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "main", interrupted)
    assert main(["evaluate"]) == INTERRUPTED
