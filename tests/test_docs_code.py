"""The pages for users: their Python runs, and so do their commands, or the page says why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from docs_pages import ROOT, Block, blocks, commands, shell_lines
from helpers import lively_state, save_state

from sam2_mem.cli.command import main as sam2_mem

PAGES = [ROOT / "docs" / name for name in ("start.md", "faq.md", "clusters.md")]
LONG = [ROOT / "docs/gallery.md", *sorted(ROOT.glob("docs/guide_*.md"))]
FRAMES = 10
"""Of the demo video: enough for what happens on frame 8 to show on frame 9."""


def run(block: Block, names: dict) -> None:
    if block.language == "python":
        exec(compile(block.code, "page", "exec"), names)
        return
    for words in (words for line in shell_lines(block.code) for words in commands(line)):
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


@pytest.mark.full
@pytest.mark.parametrize(
    "page", [*PAGES, *(pytest.param(p, marks=pytest.mark.extended) for p in LONG)], ids=lambda p: p.stem
)
def test_what_a_page_shows_runs(page: Path, checkout: Path) -> None:
    run_page(page, {})


def run_page(page: Path, names: dict) -> None:
    """``names``: those that its Python takes from elsewhere."""
    shown = [block for block in blocks(page.read_text()) if block.language in ("python", "bash") and not block.reason]
    for block in shown:
        run(block, names)


@pytest.mark.full
@pytest.mark.extended
def test_what_the_readme_shows_runs(checkout: Path) -> None:
    """On a small clip, with random weights where it names official ones."""
    images = clip_of_a_disc(checkout / "clip.mp4")
    (checkout / "checkpoints").mkdir()
    save_state(lively_state(), checkout / "checkpoints/sam2.1_hiera_tiny.pt")
    run_page(ROOT / "README.md", {"first_image": images[0], "camera": images[1:]})
    assert list((checkout / "out").rglob("00001.png"))


def clip_of_a_disc(path: Path) -> list[np.ndarray]:
    """Pictures (340, 400, 3) of a disc that moves within the box of the page, also written as a video."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (400, 340))
    ground = np.random.default_rng(0).integers(60, 90, (340, 400, 3), np.uint8)
    images = [cv2.circle(ground.copy(), (190 + 4 * index, 170), 80, (230, 40, 40), -1) for index in range(2)]
    for image in images:
        writer.write(image[..., ::-1])
    writer.release()
    return images


def test_controls(checkout: Path) -> None:
    page = "<!-- not run: costs -->\n```bash\nrm x\n```\n\n```python\nassert 1 == 2\n```\n```bash\nls\n```\n"
    not_run, python, bash = blocks(page)
    assert not_run.reason == "costs"
    with pytest.raises(AssertionError):
        run(python, {})
    with pytest.raises(AssertionError, match="no command of ours"):
        run(bash, {})
