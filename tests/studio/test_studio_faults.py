"""What may go wrong around the studio, and what it says then: a second tab, a closed tab, a vanished video, a full disk, a
killed server, a session that is stopped while it is repeated, memory that is used up."""

from __future__ import annotations

import errno
import gc
import http.client
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import NANO_128
from micro import blob, micro_predictor, one_thread, picture  # noqa: F401
from studio_client import COUNT, DEMO, TOKEN, Page

from sam2_mem.cli.studio import parse_arguments
from sam2_mem.studio import run as run_module
from sam2_mem.studio import worker
from sam2_mem.studio.frame_store import FrameStore, FrameView, RecordFile
from sam2_mem.studio.run import PolicyRun
from sam2_mem.studio.server import Studio
from sam2_mem.studio.session import StudioSession, Work
from sam2_mem.studio.setups import ARCHIVE_BYTES, ARCHIVE_FRAMES, Networks, RunSetup
from sam2_mem.studio.worker import Changes
from sam2_mem.tracking.session_log import SessionLog, SessionStep, load_session
from sam2_mem.video.stored import ArraySource

# -- tabs -------------------------------------------------------------------------------------------------------------


def test_a_second_tab_is_counted_and_a_closed_one_is_not(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    assert page.get("changes", wait=0, page="first").json()["state"]["pages"] == 1
    version = page.get("changes", wait=0, page="second").json()["version"]
    assert page.get("changes", since=version - 1, wait=0, page="first").json()["state"]["pages"] == 2, "all are told"
    monkeypatch.setattr(worker, "PAGE_SECONDS", 0.05)
    time.sleep(0.06)
    assert page.get("changes", wait=0, page="first").json()["state"]["pages"] == 1


def test_a_pass_goes_on_without_a_page(page: Page, studio: Studio) -> None:
    page.outline(0, 1)
    page.do("track", frame=0)
    session = studio.sessions[page.key]
    deadline = time.monotonic() + 60
    while session.worker.job is not None:  # nobody asks
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(session.runs[0].frames) == COUNT
    start = page.client.get(f"/{TOKEN}/api/start").json()
    assert start["sessions"] == {page.key: "clip"}, "a page that is opened finds it"


# -- the video, the disk ----------------------------------------------------------------------------------------------


def test_a_vanished_video(page: Page, studio: Studio) -> None:
    page.outline(0, 1)
    page.track(max_frames=4)
    masks = [page.ids(f) for f in range(5)]
    [session] = page.do("export", kinds=["session"])["written"]
    (studio.folder / "clip").rename(studio.folder / "moved")
    words = "the video 'clip' is not there any more"
    answer = page.client.get(f"/{TOKEN}/api/sessions/{page.key}/frame/9")
    assert answer.status_code == 400 and words in answer.json()["detail"]
    page.do("track", frame=4)
    assert words in page.finish()["message"]
    assert all(np.array_equal(page.ids(f), masks[f]) for f in range(5)), "what was there stays"
    assert len(page.do("export", kinds=["png", "rle", "session"])["written"]) == 3
    answer = page.client.post(f"/{TOKEN}/api/sessions", json={"path": session})
    assert answer.status_code == 400 and "the video of this session, 'clip', is not there" in answer.json()["detail"]
    (studio.folder / "moved").rename(studio.folder / "clip")
    assert page.track(4)["message"] == "" and "9" in page.changes()["frames"][0], (
        "and it goes on where the video is back"
    )


KINDS = ("png", "png_per_object", "rle", "yolo", "davis2017", "youtubevos", "sav", "overlay", "script", "session")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    page.outline(0, 1)
    page.do("export", kinds=[kind])
    folder = studio.folder / "sam2_mem_results"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before
    page.outline(0, 1, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)  # every file that appears does so by this
    words = page.refused("export", kinds=[kind])
    assert "the disk is full" in words and "free some space" in words
    monkeypatch.undo()
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before, "what was complete stays, nothing incomplete is there"


# -- a server that is killed ------------------------------------------------------------------------------------------


class Server:
    """The command, as a process of its own."""

    def __init__(self, folder: Path) -> None:
        words = ["--port", "0", "--no_browser", "--config", NANO_128, "--device", "cpu", "--threads", "1"]
        command = [sys.executable, "-m", "sam2_mem", "studio", *words, "--folder", str(folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]

    def post(self, path: str, /, **body: Any) -> dict[str, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def state(self, key: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.address}api/sessions/{key}/changes?wait=0", timeout=60) as answer:
            return json.load(answer)["state"]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.full
def test_a_killed_server_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    shutil.copytree(DEMO / "demo", tmp_path / "clip")
    server = Server(tmp_path)
    try:
        key = server.post("api/sessions", path="clip")["key"]
        corners = [[30, 115], [80, 115], [80, 145], [30, 145]]
        server.post(f"api/sessions/{key}/step", kind="prompt", frame=0, obj_id=1, outline=corners)
        server.post(f"api/sessions/{key}/track", frame=0, max_frames=5)
        while server.state(key)["job"] is not None:
            time.sleep(0.05)
        server.post(f"api/sessions/{key}/export", kinds=["session", "rle", "png", "overlay"])
        folder = tmp_path / "sam2_mem_results" / "clip"
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        server.post(f"api/sessions/{key}/track", frame=5)
        while server.state(key)["job"] is not None:
            time.sleep(0.05)
        request = {"kinds": ["session", "rle", "png", "overlay"]}
        writing = threading.Thread(target=lambda: _refused(server, f"api/sessions/{key}/export", request))
        writing.start()
        deadline = time.monotonic() + 30
        while not list(folder.glob(".*.part*")):  # in the middle of writing
            assert time.monotonic() < deadline and writing.is_alive()
            time.sleep(0.002)
    finally:
        server.kill()
    writing.join()
    for path, content in before.items():
        assert path.read_bytes() == content or path.parent.name == "png", path
    visible = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert set(before) <= set(visible) and {p.suffix for p in set(visible) - set(before)} <= {".png", ".jsonl"}
    log = load_session(folder / "clip.session.json")
    assert len(log.masks) == 6 and log.steps[-1].kind == "track"
    server = Server(tmp_path)
    try:
        key = server.post("api/sessions", path="sam2_mem_results/clip/clip.session.json")["key"]
        while server.state(key)["job"] is not None:
            time.sleep(0.05)
        assert server.state(key)["prompts"]["0"]["1"]["outline"] == corners
        server.post(f"api/sessions/{key}/export", kinds=["rle"])  # over what the killed one left
        assert json.loads((folder / "clip.json").read_text())["frames"]
    finally:
        server.kill()


def _refused(server: Server, path: str, body: dict[str, Any]) -> None:
    with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
        server.post(path, **body)


def test_the_disk_is_full_while_a_pass_runs(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known of frames is in a file; where that cannot grow the pass ends, all is as before it, and it can be done again."""
    page.outline(0, 1)
    mask, add, taken = page.ids(0), RecordFile.add, itertools.count()

    def full(self: RecordFile, value: Any) -> int:
        if next(taken) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, value)

    monkeypatch.setattr(RecordFile, "add", full)
    assert "the disk is full" in page.track()["message"]
    monkeypatch.undo()
    known = studio.sessions[page.key].runs[0].frames
    assert list(known) == [0] and np.array_equal(page.ids(0), mask)
    assert page.track()["message"] == "" and len(studio.sessions[page.key].runs[0].frames) == COUNT


# -- a session that is stopped while it is repeated -------------------------------------------------------------------


def test_a_session_that_is_stopped_while_it_opens(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    page.outline(0, 1)
    page.track()
    page.outline(5, 1, 1)
    [path] = page.do("export", kinds=["session"])["written"]
    file, begun, apply = studio.folder / path, threading.Event(), PolicyRun.apply
    before = file.read_bytes()
    (file.parent / "clip.session.state").unlink()  # as with the files of earlier versions

    def slow(self: PolicyRun, step: SessionStep) -> Iterator[int]:
        for frame in apply(self, step):
            if frame == 3:
                begun.set()
                time.sleep(0.2)
            yield frame

    monkeypatch.setattr(run_module.PolicyRun, "apply", slow)
    again = Page(studio, path)
    assert begun.wait(20)
    again.do("stop")
    state = again.finish()
    assert "not all steps of the session are repeated" in state["message"]
    assert again.do("export", kinds=["session"])["written"] == [path.replace("clip.session", "clip_stopped.session")]
    assert file.read_bytes() == before
    monkeypatch.undo()
    whole = Page(studio, path)
    assert whole.finish()["message"] == "" and list(whole.state()["prompts"]) == ["0", "5"]
    assert whole.do("export", kinds=["session"])["written"] == [path]


# -- memory -----------------------------------------------------------------------------------------------------------

LENGTH = 160
BOUND = 100_000


def long_run(archive_bytes: int) -> tuple[list[int], StudioSession]:
    """Bytes of memory and masks held after every frame of a long pass."""
    video = ArraySource(np.stack([picture(i % 8) for i in range(8)] * (LENGTH // 8)))
    networks = Networks(micro_predictor(), "micro", None, Path("."), archive_bytes)
    session = StudioSession(Path("."), networks, SessionLog(video="long", config="micro"), video)
    session.do(SessionStep(kind="prompt", frame=0, obj_id=1, outline=outline()))
    run, held = session.runs[0], []
    run.on_change = lambda frame: held.append(run.state.tracker.archive.bytes + run.state.memory_bytes())
    session.track(0, reverse=False, max_frames=None)
    while session.worker.job is not None:
        time.sleep(0.01)
    session.close()
    return held, session


def outline() -> tuple[tuple[float, float], ...]:
    ys, xs = np.nonzero(blob(0, 0))
    left, right, top, bottom = float(xs.min()), float(xs.max()), float(ys.min()), float(ys.max())
    return (left, top), (right, top), (right, bottom), (left, bottom)


@pytest.mark.full
def test_memory_is_flat_while_a_long_video_is_tracked() -> None:
    """Beyond its bound the archive stays as it is. With a control."""
    held, session = long_run(BOUND)
    half = len(held) // 2
    assert held[-1] > BOUND and max(held[half:]) < 1.02 * max(held[:half])
    assert len(session.runs[0].frames) == LENGTH
    assert "archive of 100000 bytes is full" in session.worker.message, "which is said"
    unbounded, _ = long_run(2**30)
    assert max(unbounded[half:]) > 1.5 * max(unbounded[:half]), "the control"


def bytes_of_a_frame(frames: MutableMapping[int, FrameView], changes: Any, record: dict[str, Any]) -> float:
    """What Python allocates for every frame that is taken in."""
    tracemalloc.start()
    for frame in range(COUNTED):
        events = [
            {"frame": max(0, frame - kept), "action": action, "reason": ""}
            for kept, action in ((0, "written"), (7, "evicted"))
        ]
        memory = {1: json.dumps(record).encode()}
        if isinstance(frames, FrameStore):
            memory = {1: frames.add_memory(1, record | {"frame": frame, "events": events})[0]}
        frames[frame] = FrameView({1: f"{frame}" * 100}, {1: (frame / COUNTED, 1.0, True)}, {1: (1, 2, 1)}, memory)
        changes.note(0, frame)
    gc.collect()
    allocated = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return allocated / COUNTED


COUNTED = 500


def test_what_is_known_of_frames_is_in_a_file(page: Page, studio: Studio, tmp_path: Path) -> None:
    """In memory are some numbers for every frame: its version, where its view lies, and where an entry came and went. With a
    control that holds what a frame of the page holds."""
    page.outline(0, 1)
    page.track(max_frames=8)
    record = studio.sessions[page.key].runs[0].frames.memory(8, 1)
    assert record is not None
    store = FrameStore(tmp_path)
    assert bytes_of_a_frame(store, Changes(), record) < 100
    assert bytes_of_a_frame({}, Changes(), record) > 2000, "the control"
    assert store[250].masks == {1: "250" * 100} and store[250].scores == {1: (0.5, 1.0, True)}
    history = store.history(1, [250, COUNTED - 1, COUNTED])
    assert history[250]["entered"]["on"] == 250 and history[250]["left"]["on"] == 257
    assert list(history) == [250, COUNTED - 1] and list(history[COUNTED - 1]) == ["entered"]
    before = store.copy()
    del store[3]
    store[4] = FrameView()
    assert store.changed_since(before) == [3, 4] and 3 not in store and before[4].masks and len(before) == COUNTED


def test_a_run_keeps_less_than_a_session_of_the_api() -> None:
    predictor = micro_predictor()
    budget = predictor.tracker_settings.archive_bytes
    state = predictor.init_state(ArraySource(np.stack([picture(i) for i in range(30)])))
    predictor.add_new_mask(state, 0, 1, blob(0, 0))
    held = [state.tracker.archive.bytes for _ in predictor.propagate_in_video(state)]
    setup = RunSetup()
    kept = Networks(predictor, "micro", None, Path(".")).predictor(setup)[0].tracker_settings.archive_bytes
    assert kept / ARCHIVE_FRAMES == pytest.approx(held[-1] - held[-2], rel=0.3), "a frame of an object"
    assert kept < ARCHIVE_BYTES < predictor.tracker_settings.archive_bytes == budget, "the given one is as it was"
    assert parse_arguments([]).archive_mb is None
    for given in (1000, 2 * ARCHIVE_BYTES):
        small = Studio(predictor, Path("."), config="micro", archive_bytes=given).networks
        assert small.predictor(setup)[0].tracker_settings.archive_bytes == given


def test_what_only_undo_holds_is_bounded(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    session = studio.sessions[page.key]
    addresses = itertools.count()
    monkeypatch.setattr(Work, "storages", lambda work: {next(addresses): 100})
    monkeypatch.setattr("sam2_mem.studio.session.UNDO_BYTES", 350)
    for count in (1, 2, 3, 3, 3):
        page.outline(0, 1, count % 2)
        assert len(session.undo_stack) == count
