"""How every command ends: 2, with one line that says why, for what cannot be used; and what is said last of weights."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from sam2_mem.cli import vos
from sam2_mem.cli.command import COMMANDS, main
from sam2_mem.video import read_mask_png

UNUSABLE = {
    "segment": ["--sam2_cfg", "nano_v2", "--video", "gone.mp4", "--mask", "gone.png", "--output", "out"],
    "track-all": ["gone.mp4", "--sam2_cfg", "nano_v2", "--output", "out"],
    "compare": ["--config", "no_such_config", "--policies", "fifo", "--data", "synthetic:dev-v1", "--out", "out"],
    "evaluate": ["--dataset", "davis2017", "--gt", "gone", "--pred", "gone"],
    "inspect": ["show", "--config", "no_such_config", "--video", "gone", "--masks", "gone", "--out", "out"],
    "benchmark": ["policies", "--config", "no_such_config", "--policies", "fifo"],
    "distillers": ["--config", "no_such_config"],
    "train": ["run", "no_such_config", "--out", "out"],
    "download": ["no_such_model"],
    "verify": ["gone.pt", "--data", "davis2017:gone"],
    "export": ["--config", "no_such_config", "--out", "out"],
    "completion": ["no_such_shell"],
    "synthetic": ["export", "--height", "3", "--out", "out"],
}


def status(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sam2-mem"])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_used_ends_with_two_and_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(name, "--no-such-flag") == 2
    assert "usage: sam2-mem" in capsys.readouterr().err
    if name == "studio":  # without what it needs it is refused in its own tests; what it opens is checked in the page
        return
    assert status(name, *UNUSABLE[name]) == 2
    err = capsys.readouterr().err
    assert "error: " in err and "Traceback" not in err
    assert "no_such" in err or "gone" in err or "3" in err, "it names what cannot be used"


def test_a_missing_mask_says_what_was_expected(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("segment", *UNUSABLE["segment"]) == 2
    text = "expected a mask, a palette or gray PNG of object ids, in 'gone.png', got no such file"
    assert text in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="expected a mask"):
        read_mask_png("gone.png")


@pytest.mark.parametrize(
    ("config", "name", "path", "says"),
    [
        (
            None,
            vos.SMALL_CONFIG,
            "a.safetensors",
            "by the small model nano_v2, not by SAM 2, whose weights are not here",
        ),
        ("hiera_nano", "hiera_nano", None, "the weights were RANDOM, these masks mean nothing"),
        (vos.SMALL_CONFIG, vos.SMALL_CONFIG, "a.safetensors", ""),
        (None, vos.DEFAULT_CONFIG, "a.pt", ""),
    ],
)
def test_weights_that_nobody_asked_for_are_named(config: str | None, name: str, path: str | None, says: str) -> None:
    text = vos.caution(Namespace(sam2_cfg=config), name, vos.Weights(None if path is None else Path(path)))
    assert says in text and bool(text) == bool(says)


def test_random_weights_are_the_last_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--sam2_cfg",
        "hiera_nano",
        "--sam2_checkpoint",
        "random",
        "--device",
        "cpu",
        "--box",
        "5,5,40,40",
        "--output",
        "out",
    ]
    from PIL import Image

    (tmp_path / "clip").mkdir()
    for number in range(2):
        Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(tmp_path / "clip" / f"{number:05d}.jpg")
    status("segment", "--video", "clip", *words, "--allow_empty_prompts", "--no-save_overlay", "--no-contact_sheet")
    assert capsys.readouterr().err.rstrip().endswith("NOTE: the weights were RANDOM, these masks mean nothing")
