"""A published checkpoint that is missing: whoever is at the terminal is asked, others are told the command."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from helpers import NANO_128
from PIL import Image

from sam2_mem.cli import download, vos
from sam2_mem.cli.command import main
from sam2_mem.config import checkpoint_dir
from sam2_mem.files import sha256_of
from sam2_mem.published import PublishedModel

NANO = checkpoint_dir() / "sam2_mem_nano_v2.safetensors"
ASKED = f"download published ({NANO.stat().st_size:,} bytes) to weights here/published.safetensors? [y/N] "
COMMAND = "run `sam2-mem download published --dir 'weights here'` to download it"


class Terminal:
    """A terminal at which an answer has been typed, in the place of the input and of what is said."""

    def __init__(self, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.screen, keyboard = pty.openpty()
        os.write(self.screen, answer.encode())
        monkeypatch.setattr(sys, "stdin", os.fdopen(os.dup(keyboard), encoding="utf-8"))
        monkeypatch.setattr(sys, "stderr", os.fdopen(keyboard, "w", encoding="utf-8"))

    def shown(self) -> str:
        sys.stderr.close()
        sys.stdin.close()
        text = b""
        while part := self._read():
            text += part
        return text.decode()

    def _read(self) -> bytes:
        try:
            return os.read(self.screen, 1 << 16)
        except OSError:  # nobody is at the other end, and all has been read
            return b""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublishedModel]:
    """The weights of nano_v2 under another name, at a server of this machine; the working folder holds a clip."""
    (tmp_path / "clip").mkdir()
    for number in range(2):
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "clip" / f"{number:05d}.jpg")
    (tmp_path / "www").mkdir()
    (tmp_path / "www/published.safetensors").write_bytes(NANO.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "www")))
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/published.safetensors"
    size, digest = NANO.stat().st_size, sha256_of(NANO)
    model = PublishedModel(name="published", hub="a/published", config=None, url=url, bytes=size, sha256=digest)
    monkeypatch.setattr(download, "published_models", lambda: {model.name: model})
    monkeypatch.chdir(tmp_path)
    yield model
    server.shutdown()
    server.server_close()


def segment(weights: str = "weights here/published.safetensors") -> int:
    network = ["--sam2_cfg", NANO_128, "--sam2_checkpoint", weights, "--device", "cpu"]
    prompt = ["--video", "clip", "--box", "5,5,40,40", "--allow_empty_prompts"]
    return main(["segment", *network, *prompt, "--output", "out", "--no-save_overlay", "--no-contact_sheet"])


@pytest.mark.full
def test_yes_downloads_and_segments(published: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal("y\n", monkeypatch)
    assert segment() == 0
    assert ASKED in terminal.shown()
    assert sha256_of(Path("weights here/published.safetensors")) == published.sha256
    assert sorted(path.name for path in Path("out/clip").iterdir()) == ["00000.png", "00001.png"]


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04"], ids=["no", "enter", "end of input"])
def test_all_else_is_no(answer: str, published: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(answer, monkeypatch)
    assert segment() == 2
    shown = terminal.shown()
    assert ASKED in shown and COMMAND in shown
    assert not Path("weights here").exists() and not Path("out").exists()


def test_nobody_is_asked_where_there_is_no_terminal(
    published: PublishedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment() == 2
    err = capsys.readouterr().err
    assert COMMAND in err and "[y/N]" not in err


def test_a_file_that_nobody_publishes_is_not_offered(
    published: PublishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal("y\n", monkeypatch)
    assert segment("weights here/mine.safetensors") == 2
    shown = terminal.shown()
    assert "no checkpoint 'weights here/mine.safetensors'" in shown and "[y/N]" not in shown


def test_the_default_is_offered_before_the_small_model(
    published: PublishedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vos, "DEFAULT_CHECKPOINT", "weights here/published.safetensors")
    arguments = vos.parse_arguments(["--video", "clip", "--box", "5,5,40,40", "--output", "out"])
    terminal = Terminal("n\ny\n", monkeypatch)
    assert vos.choose_config(arguments) == vos.SMALL_CONFIG
    assert vos.choose_config(arguments) == vos.DEFAULT_CONFIG
    assert terminal.shown().count("[y/N]") == 2
    assert Path("weights here/published.safetensors").is_file()
