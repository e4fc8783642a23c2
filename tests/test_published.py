"""Published checkpoints: one table for all who know of them; downloads that are resumed and checked; verification."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from davis_clip import write_davis_clip

from sam2_mem.checkpoint import OFFICIAL_MODELS, OTHER_MODELS
from sam2_mem.cli import command
from sam2_mem.cli import verify as verify_module
from sam2_mem.config import config_names
from sam2_mem.files import part_path
from sam2_mem.published import PublishedModel, Score, download, model_of_file, published_model, published_models

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = b"PK\x03\x04" + bytes(range(256)) * 400


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_script() -> None:
    lines = re.findall(r"^(2\.[01]) \w+ +(\d+) (\S+\.pt) +(\d+) ([0-9a-f]{64})$", script(), re.MULTILINE)
    assert len(lines) == 8
    for _, folder, name, size, digest in lines:
        model = published_model(name)
        assert (model.bytes, model.sha256) == (int(size), digest)
        assert model.url == f"https://dl.fbaipublicfiles.com/segment_anything_2/{folder}/{name}"


def script() -> str:
    return (ROOT / "checkpoints" / "download_ckpts.sh").read_text()


def test_the_table_is_that_of_the_library() -> None:
    for hub, (config, filename) in {**OFFICIAL_MODELS, **OTHER_MODELS}.items():
        model = published_model(hub)
        assert (model.config, model.filename) == (config, filename)
        assert published_model(filename) is published_model(model.name) is model
    assert all(model.config in config_names() for model in published_models().values())
    assert all(
        0 < score.value < 100 and len(score.source) > 10 for m in published_models().values() for score in m.scores
    )


def test_names_that_are_not_in_it() -> None:
    ours = published_model("yonigozlan/EdgeTAM-hf")
    assert ours.url == "https://huggingface.co/yonigozlan/EdgeTAM-hf/resolve/main/model.safetensors"
    assert (ours.filename, ours.config) == ("yonigozlan_EdgeTAM-hf.safetensors", None)
    with pytest.raises(ValueError, match=r"expected a model out of sam2.1_hiera_tiny, .* got 'sam9'"):
        published_model("sam9")


# -- downloads ---------------------------------------------------------------------------------------------------------


class Server:
    """Gives ``WEIGHTS`` at any address; ``cut`` bytes after which the first answers end, ``ranges`` that were asked for."""

    def __init__(self) -> None:
        self.cut: int | None = None
        self.ranges: list[str | None] = []
        self.honours_ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        if "missing" in request.path:
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.honours_ranges else 0
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(WEIGHTS) - start))
        request.end_headers()
        end = len(WEIGHTS) if self.cut is None else self.cut
        self.cut = None
        request.wfile.write(WEIGHTS[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def model_at(server: Server, name: str = "w", **changes: object) -> PublishedModel:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    model = PublishedModel(
        name=name, hub="a/b", config=None, url=f"{server.address}/x/{name}.pt", bytes=len(WEIGHTS), sha256=digest
    )
    return replace(model, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("honours_ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on(server: Server, tmp_path: Path, honours_ranges: bool) -> None:
    server.cut, server.honours_ranges = 50_000, honours_ranges
    with pytest.raises(OSError, match=r"ended after 50000 of 102404 bytes|IncompleteRead.*run this again"):
        download(model_at(server), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".w.pt.part"], "not under its name"
    counts: list[int] = []
    path = download(model_at(server), tmp_path, progress=lambda count, total: counts.append(count))
    assert path.read_bytes() == WEIGHTS and [p.name for p in tmp_path.iterdir()] == ["w.pt"]
    assert server.ranges == [None, "bytes=50000-"] and counts[-1] == len(WEIGHTS)
    assert download(model_at(server), tmp_path) == path and len(server.ranges) == 2, "it is there"


def test_another_file_is_refused(server: Server, tmp_path: Path) -> None:
    wrong = model_at(server, sha256="0" * 64)
    with pytest.raises(ValueError, match=r"got SHA-256 .*; the download was removed"):
        download(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "w.pt").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"got 4 bytes, not 102404; move it away"):
        download(model_at(server), tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == b"mine"


def test_a_part_that_is_complete_or_too_long(server: Server, tmp_path: Path) -> None:
    part = part_path(tmp_path / "w.pt", ".part")
    part.write_bytes(WEIGHTS)
    assert download(model_at(server), tmp_path).exists() and server.ranges == []
    (tmp_path / "w.pt").unlink()
    part.write_bytes(WEIGHTS + b"more")
    assert download(model_at(server), tmp_path).read_bytes() == WEIGHTS and server.ranges == [None]


def test_the_command_downloads(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dir", str(tmp_path), "--mirror", server.address]
    assert command.main(["download", "facebook/EdgeTAM", *arguments]) == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'edgetam.pt'}, config edgetam (no SHA-256" in out and (tmp_path / "edgetam.pt").exists()
    assert command.main(["download", "sam2.1_hiera_tiny", *arguments]) == 1
    assert "102404 bytes, not 156008466" in capsys.readouterr().err
    missing = ["--dir", str(tmp_path), "--mirror", f"{server.address}/missing"]
    assert command.main(["download", "efficienttam_ti", *missing]) == 1
    assert "404" in capsys.readouterr().err
    assert command.main(["download", "sam9"]) == 2
    assert command.main(["download"]) == 0
    assert "sam2.1_hiera_large" in capsys.readouterr().out


# -- verification ------------------------------------------------------------------------------------------------------


def test_which_published_model_a_file_is() -> None:
    tiny = published_model("sam2.1_hiera_tiny")
    assert model_of_file(Path("renamed.pt"), tiny.sha256) is tiny
    assert model_of_file(Path("sam2.1_hiera_tiny.pt"), "0" * 64) is None, "its hash is known and another one"
    assert model_of_file(Path("efficienttam_ti_2.pt"), "0" * 64) is published_model("efficienttam_ti_2")


def test_verify_shows_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a made-up data set, by the small model of this package in the place of a published one."""
    write_davis_clip(tmp_path / "DAVIS", num_frames=4)
    weights = ROOT / "checkpoints" / "sam2_mem_nano_v2.safetensors"
    scores = (
        Score("davis2017:val", 80.0, "a paper"),
        Score("davis2017:test", 70.0, "a paper"),
        Score("sav:val", 1.0, "x"),
    )
    known = PublishedModel(name="nano_v2", hub="a/b", config="configs/nano_v2.yaml", url="x/nano_v2.pt", scores=scores)
    monkeypatch.setattr(verify_module, "model_of_file", lambda path, digest: known)
    monkeypatch.setattr(verify_module.os, "cpu_count", lambda: 1)
    arguments = ["verify", str(weights), "--data", f"davis2017:{tmp_path / 'DAVIS'}", "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--device", "cpu", "--split", "val"]) == 0
    result = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert result["published"] == [
        {"data": "davis2017:val", "value": 80.0, "difference": result["ours"] - 80.0, "source": "a paper"}
    ]
    assert result["ours"] == result["figures"]["J&F"] > 30 and result["videos"] == 1 and result["failed"] == []
    assert result["checkpoint"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert f"difference {result['ours'] - 80:+6.2f}  (a paper)" in capsys.readouterr().out
    assert (tmp_path / "out" / "clip" / "00003.png").exists()


def test_verify_recognises_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    assert command.main(["verify", str(tmp_path / "other.pt"), "--data", "davis2017:x"]) == 2
    assert "expected weights of a published network" in capsys.readouterr().err
    assert command.main(["verify", str(tmp_path / "other.pt"), "--data", "davis:x"]) == 2
    assert "expected --data NAME:ROOT" in capsys.readouterr().err
