"""The fixtures of the studio's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from micro import micro_predictor
from studio_client import COUNT, Page, save_video

from sam2_mem.studio.server import Studio


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    save_video(tmp_path / "clip", COUNT)
    studio = Studio(micro_predictor(), tmp_path, config="micro")
    yield studio
    studio.close()


@pytest.fixture
def page(studio: Studio) -> Page:
    return Page(studio)
