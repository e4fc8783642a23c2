"""The command that starts the studio: folders, weights, names, and a server that begins and ends."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sam2_mem.cli import studio as command
from sam2_mem.cli.studio import check_weights, host_names, main, working_folder
from sam2_mem.evaluation.inspection import FrameRecord, as_json
from sam2_mem.memory.trace import Action, EntryTrace, ReadTrace, TraceEvent


def test_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "clip").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert working_folder(None, "clip", False) == (tmp_path / "here", "clip")
    assert working_folder(None, None, False) == (tmp_path / "here", None)
    assert working_folder(None, str(tmp_path / "there"), False) == (tmp_path, "there")
    assert working_folder(tmp_path, "clip", False) == (tmp_path, "here/clip")
    with pytest.raises(ValueError, match="inside the working folder"):
        working_folder(tmp_path / "here", str(tmp_path / "there"), False)
    with pytest.raises(FileNotFoundError, match="no such video: 'gone'"):
        working_folder(None, "gone", False)


@pytest.mark.full
def test_the_demo_is_written_once(tmp_path: Path) -> None:
    assert working_folder(tmp_path, None, True) == (tmp_path, "sam2_mem_demo/demo")
    frames = sorted((tmp_path / "sam2_mem_demo" / "demo").iterdir())
    assert len(frames) == 48
    before = frames[0].stat().st_mtime_ns
    working_folder(tmp_path, None, True)
    assert frames[0].stat().st_mtime_ns == before


def test_random_weights_must_be_asked_for() -> None:
    check_weights("nano_v2", None)
    check_weights("sam2.1_hiera_t", "random")
    with pytest.raises(ValueError, match="expected --checkpoint with --config sam2.1_hiera_t"):
        check_weights("sam2.1_hiera_t", None)


def test_names_of_the_server() -> None:
    assert host_names("127.0.0.1") == ["localhost", "127.0.0.1", "::1"]
    assert host_names("example.test")[0] == "example.test"
    assert "0.0.0.0" not in host_names("0.0.0.0")


def test_without_its_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main([]) == 2
    assert 'the studio needs fastapi and uvicorn: pip install "sam2_mem[studio]"' in capsys.readouterr().err


def test_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gone.mp4"]) == 2 and "no such video" in capsys.readouterr().err
    assert main(["--config", "sam2.1_hiera_t", "--port", "0"]) == 2 and "--checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["clip.mp4", "--demo"])
    assert ended.value.code == 2
    assert isinstance(command.parse_arguments([]), argparse.Namespace)


@pytest.mark.full
def test_a_server_begins_and_ends(tmp_path: Path) -> None:
    """It prints its address, answers there and nowhere else, and ends by Ctrl-C."""
    words = ["--port", "0", "--no_browser", "--config", "nano_v2", "--device", "cpu", "--folder", str(tmp_path)]
    server = subprocess.Popen([sys.executable, "-m", "sam2_mem", "studio", *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = server.stdout.readline().split()[-1]
        assert server.stdout.readline().strip() == f"working folder: {tmp_path}"
        assert "The small model nano_v2 is at work" in server.stdout.readline()
        server.stdout.readline()
        with urllib.request.urlopen(f"{address}api/start", timeout=20) as answer:
            assert json.load(answer)["network"] == "nano_v2"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.rsplit("/", 2)[0] + "/api/start", timeout=20)
        server.send_signal(signal.SIGINT)
        assert server.wait(20) in (0, -signal.SIGINT)
    finally:
        server.kill()
        server.stdout.close()


def test_a_record_as_plain_values() -> None:
    event = TraceEvent(Action.EVICTED, 3, "out of reach", 0.5, 0.7)
    read = ReadTrace(0, 3, "map", 1, 1.0, 16, 0.25)
    record = FrameRecord(9, (read,), 4, 1, (event,), (EntryTrace(3, "map", 16, None, "", (0,), ""),), 16, 1024)
    values = json.loads(json.dumps(as_json(record)))
    assert values["events"][0] == {
        "action": "evicted",
        "frame": 3,
        "reason": "out of reach",
        "score": 0.5,
        "limit": 0.7,
        "pathway": None,
        "parent": None,
    }
    assert values["readings"][0]["mass"] == 0.25 and values["entries"][0]["pathways"] == [0]
