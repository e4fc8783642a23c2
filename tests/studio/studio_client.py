"""A studio without a browser: a short video, and a client that asks as the page asks."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fastapi.testclient import TestClient
from micro import blob, pictures
from PIL import Image

from sam2_mem.studio.server import Studio, studio_app
from sam2_mem.tracking.session_log import outline_mask

TOKEN = "secret-token"
HOST = "localhost:8765"
COUNT = 10
DEMO = Path(__file__).resolve().parents[2] / "notebooks" / "videos"


def save_video(folder: Path, count: int = 4) -> Path:
    folder.mkdir(parents=True)
    for index, picture in enumerate(pictures(count)):
        Image.fromarray(picture).save(folder / f"{index:05d}.png")
    return folder


class Page:
    """A client with one session open."""

    def __init__(self, studio: Studio, path: str = "clip", **opening: str) -> None:
        self.client = TestClient(studio_app(studio, TOKEN, [HOST]), base_url=f"http://{HOST}")
        self.key = self.post("api/sessions", path=path, **opening)["key"]

    def post(self, address: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(f"/{TOKEN}/{address}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, **body: Any) -> str:
        answer = self.client.post(f"/{TOKEN}/api/sessions/{self.key}/{path}", json=body)
        assert 400 <= answer.status_code < 500, answer.text
        return answer.json()["detail"]

    def do(self, address: str, **body: Any) -> dict[str, Any]:
        return self.post(f"api/sessions/{self.key}/{address}", **body)

    def get(self, path: str, **query: Any) -> Any:
        answer = self.client.get(f"/{TOKEN}/api/sessions/{self.key}/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer

    def changes(self, since: int = 0) -> dict[str, Any]:
        return self.get("changes", since=since, wait=0).json()

    def state(self) -> dict[str, Any]:
        return self.changes()["state"]

    def finish(self) -> dict[str, Any]:
        """The state when nothing is running any more."""
        deadline = time.monotonic() + 60
        while (state := self.state())["job"] is not None:
            assert time.monotonic() < deadline, state
            time.sleep(0.01)
        return state

    def ids(self, frame: int, run: int = 0) -> np.ndarray:
        return np.array(Image.open(io.BytesIO(self.get(f"mask/{frame}", run=run).content)))

    def outline(self, frame: int, obj_id: int, number: int = 0) -> np.ndarray:
        """Draw around a blob; the mask that was drawn."""
        contours, _ = cv2.findContours(blob(number, frame).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        corners = contours[0][:, 0].tolist()
        self.do("step", kind="prompt", frame=frame, obj_id=obj_id, outline=corners)
        return outline_mask(corners, (64, 64))

    def click(self, frame: int, x: float, y: float, obj_id: int = 1) -> None:
        self.do("step", kind="prompt", frame=frame, obj_id=obj_id, points=[[x, y]], labels=[1])

    def track(self, frame: int = 0, **options: Any) -> dict[str, Any]:
        self.do("track", frame=frame, **options)
        return self.finish()
