"""What stands beside the library: the backend for Label Studio, the image for containers, completion in shells."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.cli import command
from sam2_mem.cli.completion import flags

ROOT = Path(__file__).resolve().parent.parent

PICTURES = """<View><Image name="image" value="$image"/><PolygonLabels name="polygon" toName="image"><Label value="disc"/></PolygonLabels>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="disc"/></KeyPointLabels></View>"""
VIDEOS = """<View><Video name="video" value="$video"/><VideoRectangle name="box" toName="video" smart="true"/></View>"""


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    path = ROOT / "integrations" / "label_studio" / "backend.py"
    spec = importlib.util.spec_from_file_location("label_studio_backend", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(x: int) -> np.ndarray:
    image = np.random.default_rng(0).integers(60, 90, (96, 128, 3), dtype=np.uint8)
    cv2.circle(image, (x, 48), 20, (240, 220, 30), -1)
    return image


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(picture(50)).save(folder / "disc.png")
    writer = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (128, 96))
    for index in range(6):
        writer.write(picture(40 + 4 * index)[..., ::-1])
    writer.release()
    return folder


@pytest.fixture(scope="module")
def answers(backend: ModuleType, files: Path) -> Any:
    predictor = build_sam2_video_predictor("nano_v2", device="cpu", memory_policy="fifo")
    return backend.Backend(predictor, files)


@pytest.fixture(scope="module")
def client(backend: ModuleType, answers: Any) -> TestClient:
    return TestClient(backend.make_app(answers))


def ask(client: TestClient, data: dict, config: str, prompts: list[dict]) -> tuple[int, dict]:
    body = {"tasks": [{"id": 1, "data": data}], "label_config": config, "params": {"context": {"result": prompts}}}
    answer = client.post("/predict", json=body)
    return answer.status_code, answer.json()


def click(x: float, y: float) -> dict:
    return {"type": "keypointlabels", "is_positive": True, "value": {"x": x, "y": y, "keypointlabels": ["disc"]}}


def test_a_box_gives_the_outline_of_the_mask(client: TestClient, answers: Any) -> None:
    assert client.get("/health").json()["status"] == "UP"
    assert "FIFO" in client.post("/setup", json={"schema": PICTURES}).json()["model_version"]
    rectangle = {
        "type": "rectanglelabels",
        "value": {"x": 20, "y": 25, "width": 40, "height": 50, "rectanglelabels": ["disc"]},
    }
    status, answer = ask(client, {"image": "/data/local-files/?d=disc.png"}, PICTURES, [rectangle])
    results = answer["results"][0]["result"]
    assert status == 200 and results
    drawn = np.zeros((96, 128), np.uint8)
    for result in results:
        assert [result[key] for key in ("from_name", "to_name", "type")] == ["polygon", "image", "polygonlabels"]
        assert result["value"]["polygonlabels"] == ["disc"] and result["original_width"] == 128
        points = np.array(result["value"]["points"]) / 100 * (128, 96)
        drawn |= cv2.fillPoly(np.zeros_like(drawn), [points.round().astype(np.int32)], 1)
    answers.image.set_image(picture(50))
    mask = answers.image.predict(box=np.array([25.6, 24, 76.8, 72]), multimask_output=False)[0][0] > 0
    assert mask.any() and ((drawn > 0) & mask).sum() / ((drawn > 0) | mask).sum() > 0.9
    by_click = ask(client, {"image": "disc.png"}, PICTURES, [click(39, 50)])[1]["results"][0]["result"]
    assert by_click and by_click != results
    assert ask(client, {"image": "disc.png"}, PICTURES, [])[1]["results"][0]["result"] == []


def test_a_box_is_tracked(client: TestClient) -> None:
    start = {
        "frame": 2,
        "enabled": True,
        "x": 100 * 24 / 128,
        "y": 100 * 28 / 96,
        "width": 100 * 40 / 128,
        "height": 100 * 40 / 96,
    }
    prompt = {"id": "abc", "type": "videorectangle", "value": {"labels": ["disc"], "sequence": [start]}}
    status, answer = ask(client, {"video": "film.mp4"}, VIDEOS, [prompt])
    (result,) = answer["results"][0]["result"]
    assert status == 200 and (result["id"], result["type"], result["value"]["labels"]) == (
        "abc",
        "videorectangle",
        ["disc"],
    )
    sequence = result["value"]["sequence"]
    assert [key["frame"] for key in sequence] == [2, 3, 4, 5, 6] and result["value"]["framesCount"] == 6
    centres = [(key["x"] + key["width"] / 2) * 1.28 for key in sequence if key["enabled"]]
    assert len(centres) == 5 and np.abs(np.array(centres) - [44, 48, 52, 56, 60]).max() < 8


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://elsewhere.org/a.png", "sync it to local storage"),
        ("/data/local-files/?d=../../etc/passwd", "expected a file in"),
        ("/data/upload/1/none.png", "got no such file"),
    ],
)
def test_files_that_are_not_given(client: TestClient, address: str, words: str) -> None:
    status, answer = ask(client, {"image": address}, PICTURES, [click(40, 50)])
    assert status == 400 and words in answer["detail"]


# -- the image ---------------------------------------------------------------------------------------------------------


def test_the_image_copies_what_is_there_and_is_not_ignored() -> None:
    text = (ROOT / "Dockerfile").read_text()
    sources = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert len(sources) == 8 and all((ROOT / name).exists() for name in sources)
    kept = re.findall(r"^!([^/\n]+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(sources) <= set(kept)
    extras = re.search(r"^ARG EXTRAS=(\S+)", text, re.MULTILINE)
    assert extras is not None
    assert all(f'"{name}": [' in (ROOT / "setup.py").read_text() for name in extras[1].split(","))


# -- completion --------------------------------------------------------------------------------------------------------


def test_flags_are_those_of_the_help() -> None:
    assert {"--dir", "--mirror", "--help"} <= set(flags("download"))
    assert {"sheet", "export", "demo"} <= set(flags("synthetic"))


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """What the command prints, with one flag of each command."""
    monkeypatch.setattr("sam2_mem.cli.completion.flags", lambda name: [f"--of-{name}"])
    assert command.main(["completion"]) == 0
    path = tmp_path / "completion"
    path.write_text(capsys.readouterr().out)
    return path


def test_bash_completes(script: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None

    def completed(*words: str) -> list[str]:
        line = f"COMP_WORDS=(sam2-mem {' '.join(words)}); COMP_CWORD={len(words)}; _sam2_mem; echo ${{COMPREPLY[@]}}"
        code = f"source {script}; {line}"
        return subprocess.run([bash, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert completed("ver") == ["verify"]
    assert completed("segment", "--of") == ["--of-segment"]
    assert completed("segment", "cl") == [], "files are left to the shell"


ZSHRC = """
unsetopt zle_bracketed_paste
sam2-mem() { print -r -- "<$*>" }
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh: apt-get install zsh")
@pytest.mark.parametrize("completes", [True, False])
def test_zsh_completes(completes: bool, script: Path, tmp_path: Path) -> None:
    """Keys at a terminal: a tab after the start of a word, then a line that shows what became of it."""
    (tmp_path / "clip.mp4").touch()
    (tmp_path / ".zshrc").write_text(ZSHRC + (f"source {script}" if completes else ""))
    shown = keys_at_zsh(tmp_path, "sam2-mem ver\t\nsam2-mem segment --of\t\nsam2-mem segment cl\t\nexit\n")
    whole = (
        ["verify", "segment --of-segment", "segment clip.mp4"]
        if completes
        else ["ver", "segment --of", "segment clip.mp4"]
    )
    assert re.findall(r"^<(.*?) *>", shown, re.MULTILINE) == whole, shown


def keys_at_zsh(home: Path, keys: str) -> str:
    """What a terminal shows in which zsh runs, until it ends."""
    screen, keyboard = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": str(home)}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), keyboard)
    zsh = subprocess.Popen(["zsh", "-i"], **streams, env=environment, cwd=home, start_new_session=True)
    os.close(keyboard)
    try:
        os.write(screen, keys.encode())
        return b"".join(iter(lambda: read(screen), b"")).decode()
    finally:
        zsh.kill()
        zsh.wait()
        os.close(screen)


def read(screen: int) -> bytes:
    """What a terminal shows next; nothing when its program has ended."""
    try:
        return os.read(screen, 1 << 16)
    except OSError:
        return b""
