"""What else a page opens: a camera (a fake one, and none), a video that it sends."""

from __future__ import annotations

import errno
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from micro import micro_predictor, one_thread, picture  # noqa: F401
from PIL import Image
from studio_client import TOKEN, Page

from sam2_mem.studio import security, uploads
from sam2_mem.studio import server as server_module
from sam2_mem.studio.camera import RecordedCamera, new_recording
from sam2_mem.studio.server import Studio
from sam2_mem.video.streams import IteratorSource

# -- a camera ---------------------------------------------------------------------------------------------------------


class FakeCamera(IteratorSource):
    """Gives a picture whenever it is let to, until it is unplugged."""

    def __init__(self) -> None:
        self.released, self.unplugged = threading.Semaphore(0), False
        super().__init__(self._pictures())

    def _pictures(self) -> Iterator[np.ndarray]:
        for index in range(1000):
            while not self.released.acquire(timeout=0.01):
                if self.unplugged:
                    return
            yield picture(index % 8)

    def give(self, count: int) -> None:
        self.released.release(count)


@pytest.fixture
def camera(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> FakeCamera:
    monkeypatch.setattr("sam2_mem.studio.camera.FPS", 1e9)
    camera = FakeCamera()
    studio.camera = lambda index: camera
    camera.give(3)
    return camera


def open_camera(studio: Studio) -> Page:
    page = Page(studio)
    page.client.delete(f"/{TOKEN}/api/sessions/{page.key}")
    page.key = page.post("api/camera", index=0)["key"]
    return page


def wait_for(page: Page, frames: int) -> dict:
    deadline = time.monotonic() + 20
    while (state := page.state())["frames"] < frames:
        assert time.monotonic() < deadline, state
        time.sleep(0.01)
    return state


def test_a_camera_is_recorded_clicked_on_and_tracked_while_it_runs(studio: Studio, camera: FakeCamera) -> None:
    page = open_camera(studio)
    state = wait_for(page, 3)
    assert state["live"] and not state["exact"] and state["width"] == 64
    image = np.array(Image.open(io.BytesIO(page.get("frame/1").content)))
    assert np.abs(image.astype(int) - picture(1)).mean() < 15
    beyond = page.client.get(f"/{TOKEN}/api/sessions/{page.key}/frame/30")
    assert beyond.status_code == 400 and "has given 3 frames so far" in beyond.json()["detail"]
    page.outline(1, 1)
    page.do("track", frame=1)
    camera.give(4)  # the pass follows the camera
    wait_for(page, 7)
    deadline = time.monotonic() + 20
    while "6" not in page.changes()["frames"][0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert page.state()["job"]["kind"] == "track", "and waits for more"
    threading.Timer(0.1, camera.give, [1]).start()
    page.do("camera/stop")
    state = page.finish()
    assert (state["live"], state["exact"], state["message"]) == (False, True, "")
    log = studio.sessions[page.key].log
    assert (
        log.video.startswith("sam2_mem_camera/") and len(list((studio.folder / log.video).iterdir())) == state["frames"]
    )
    masks = [page.ids(f) for f in range(state["frames"])]
    [session] = [p for p in page.do("export", kinds=["session"])["written"] if p.endswith(".session.json")]
    again = Page(studio, session)  # a folder of frames like any other
    assert again.finish()["frames"] == state["frames"]
    assert all(np.array_equal(again.ids(f), mask) for f, mask in enumerate(masks))


def test_a_camera_that_is_unplugged(studio: Studio, camera: FakeCamera) -> None:
    page = open_camera(studio)
    wait_for(page, 3)
    camera.unplugged = True
    deadline = time.monotonic() + 20
    while page.state()["live"]:
        assert time.monotonic() < deadline
    state = page.state()
    assert "no more pictures; is it still plugged in" in state["message"] and state["frames"] == 3


def test_no_camera(studio: Studio, tmp_path: Path) -> None:
    page = Page(studio)
    answer = page.client.post(f"/{TOKEN}/api/camera", json={"index": 7})
    assert answer.status_code == 400 and "cannot open camera 7" in answer.json()["detail"]
    assert "plugged in" in answer.json()["detail"] and not (tmp_path / "sam2_mem_camera").exists()
    studio.camera = lambda index: IteratorSource([])
    answer = page.client.post(f"/{TOKEN}/api/camera", json={"index": 0})
    assert answer.status_code == 400 and "gives no picture" in answer.json()["detail"]
    assert list((tmp_path / "sam2_mem_camera").iterdir()) == []


def test_the_disk_is_full_while_a_camera_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def full(self: Image.Image, path: Path, **options: object) -> None:
        if "00002" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr("sam2_mem.studio.camera.FPS", 1e9)
    folder = new_recording(tmp_path)
    source = RecordedCamera(IteratorSource([picture(i) for i in range(5)]), folder)
    source._thread.join(20)
    assert "the disk is full" in source.ended and [p.name for p in sorted(folder.iterdir())] == [
        "00000.jpg",
        "00001.jpg",
    ]
    assert source.count_frames() == 2
    source.close()


# -- a video that is sent ---------------------------------------------------------------------------------------------


def film(path: Path) -> bytes:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
    for index in range(5):
        writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    writer.release()
    return path.read_bytes()


def send(page: Page, name: str, content: bytes, **headers: str) -> tuple[int, dict]:
    answer = page.client.post(f"/{TOKEN}/api/uploads", params={"name": name}, content=content, headers=headers)
    return answer.status_code, answer.json() if answer.headers["content-type"].startswith("application/json") else {}


def test_a_video_is_sent_and_opened(studio: Studio, tmp_path: Path) -> None:
    page, content = Page(studio), film(tmp_path / "x.mp4")
    assert len(content) > 100
    for expected in ("film.mp4", "film-2.mp4"):
        assert send(page, "film.mp4", content) == (200, {"path": f"sam2_mem_uploads/{expected}"})
    assert (tmp_path / "sam2_mem_uploads" / "film-2.mp4").read_bytes() == content
    assert Page(studio, "sam2_mem_uploads/film.mp4").state()["width"] == 64


@pytest.mark.parametrize(
    "name", ["../film.mp4", "/tmp/film.mp4", "a/b.mp4", "a\\b.mp4", ".film.mp4", "", "x.exe", "film.mp4/.."]
)
def test_names_that_lead_elsewhere(studio: Studio, tmp_path: Path, name: str) -> None:
    status, words = send(Page(studio), name, b"x")
    assert status in (400, 403, 422) and words["detail"]
    assert not list(tmp_path.rglob("film*")) and not list(tmp_path.parent.glob("film*"))


def test_uploads_through_a_link_do_not_leave_the_folder(studio: Studio, tmp_path: Path) -> None:
    (tmp_path.parent / "outside").mkdir(exist_ok=True)
    (tmp_path / "sam2_mem_uploads").symlink_to(tmp_path.parent / "outside")
    status, words = send(Page(studio), "film.mp4", film(tmp_path / "x.mp4"))
    assert status == 403 and "working folder" in words["detail"] and not list((tmp_path.parent / "outside").iterdir())


def test_limits_of_what_is_sent(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, content = Page(studio), film(tmp_path / "x.mp4")
    monkeypatch.setattr(security, "UPLOAD_LIMIT", len(content) - 1)
    assert send(page, "film.mp4", content)[0] == 413
    monkeypatch.setattr(security, "UPLOAD_LIMIT", len(content))
    assert send(page, "film.mp4", content)[0] == 200
    assert page.client.post(f"/{TOKEN}/api/uploads?name=a.mp4", content=iter([b"x"])).status_code == 413, "no length"
    other = page.client.post(f"/{TOKEN}/api/start", content=b"x" * (security.BODY_LIMIT + 1))
    assert other.status_code == 413, "other requests keep their limit"
    assert page.client.post("/api/uploads?name=a.mp4", content=content).status_code == 403, "and need the token"


def test_what_is_sent_is_whole_or_not_there(studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, content = Page(studio), film(tmp_path / "x.mp4")
    status, words = send(page, "film.mp4", b"no video at all")
    assert status == 400 and "cannot be read as a video" in words["detail"]
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: SimpleNamespace(free=uploads.MARGIN))
    status, words = send(page, "film.mp4", content)
    assert status == 400 and "the disk is full" in words["detail"]
    assert list((tmp_path / "sam2_mem_uploads").iterdir()) == []


@pytest.mark.parametrize("pieces", [[b"abc"], [b"abc", b"defgh"]])
def test_a_sender_that_stops_or_goes_on(tmp_path: Path, pieces: list[bytes]) -> None:
    import asyncio

    async def chunks():
        for piece in pieces:
            yield piece

    with pytest.raises(ValueError, match="expected 5 bytes"):
        asyncio.run(uploads.receive(tmp_path, "film.mp4", 5, chunks()))
    assert list((tmp_path / "sam2_mem_uploads").iterdir()) == []


def test_the_server_has_the_camera_of_the_library() -> None:
    assert Studio.camera is server_module.CameraSource
