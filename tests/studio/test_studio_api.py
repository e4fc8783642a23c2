"""The studio's requests: open, click, track, correct, undo, other policies, compare, export, reopen."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import NANO_128
from micro import REPRESENTATIVE, blob, in_tiers, micro_predictor, one_thread, picture  # noqa: F401
from PIL import Image
from studio_client import COUNT, DEMO, TOKEN, Page, save_video

from sam2_mem import build_sam2_video_predictor
from sam2_mem.config import policy_names
from sam2_mem.evaluation import inspection
from sam2_mem.evaluation.datasets import DatasetOnDisk
from sam2_mem.evaluation.inspection.timeline import drawings
from sam2_mem.studio import run as run_module
from sam2_mem.studio.policies import policy_form, policy_from
from sam2_mem.studio.server import Studio
from sam2_mem.tracking import session_state
from sam2_mem.tracking.session_log import load_session
from sam2_mem.tracking.video_checkpoint import SavedTrack, set_tracks
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import open_video, read_rle
from sam2_mem.video.indexed import IndexedFileSource


def truth(
    studio: Studio, said: Callable[[SAM2VideoPredictor, Any], None], policy: str = "fifo"
) -> dict[int, np.ndarray]:
    """Ids of every frame as the predictor gives them, without the studio."""
    predictor = micro_predictor(policy)
    state = predictor.init_state(studio.folder / "clip")
    said(predictor, state)
    masks = {}
    for frame, ids, logits in predictor.propagate_in_video(state):
        masks[frame] = np.zeros(logits.shape[-2:], np.uint8)
        for row in reversed(range(len(ids))):
            masks[frame][(logits[row, 0] > 0).numpy()] = ids[row]
    return masks


def centre(number: int, frame: int) -> tuple[float, float]:
    """x, y of the middle of a blob."""
    ys, xs = np.nonzero(blob(number, frame))
    return float(xs.mean()), float(ys.mean())


# -- the way through --------------------------------------------------------------------------------------------------


def test_open_and_look(page: Page) -> None:
    state = page.state()
    assert (state["frames"], state["exact"], state["width"], state["height"]) == (COUNT, True, 64, 64)
    image = Image.open(io.BytesIO(page.get("frame/3").content))
    assert image.size == (64, 64)
    assert np.abs(np.array(image).astype(int) - picture(3)).mean() < 12
    assert Image.open(io.BytesIO(page.get("frame/3", width=16).content)).size == (16, 16)
    assert not page.ids(3).any() and page.changes()["frames"] == [{}, {}]


def test_a_video_file(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own word for its length does not count once its frames are counted; a frame that would take long has to wait."""
    writer = cv2.VideoWriter(str(studio.folder / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
    for index in range(40):
        writer.write(np.full((48, 64, 3), 5 * index, np.uint8))
    writer.release()
    page = Page(studio, "film.mp4")
    video = studio.sessions[page.key].video
    assert isinstance(video.source, IndexedFileSource) and video.source.times.wait(30)
    video.source.stated_length = 999
    state = page.state()
    assert (state["frames"], state["exact"], state["indexed"], state["fps"]) == (40, True, 40, 25.0)
    for frame in (39, 3, 20):
        image = np.array(Image.open(io.BytesIO(page.get(f"frame/{frame}").content)))
        assert image.mean() == pytest.approx(5 * frame, abs=4)
    assert page.client.get(f"/{TOKEN}/api/sessions/{page.key}/frame/40").status_code == 400
    monkeypatch.setattr(video.source.times, "num_frames", None)
    state = page.state()
    assert (state["frames"], state["exact"]) == (999, False)
    waiting = page.client.get(f"/{TOKEN}/api/sessions/{page.key}/frame/500")
    assert waiting.status_code == 503 and "not indexed yet, 40 are" in waiting.json()["detail"]


def test_masks_are_those_of_the_predictor(page: Page, studio: Studio) -> None:
    mask = page.outline(0, 1, 1)
    page.click(0, 20, 40, obj_id=2)
    page.track()

    def said(predictor: SAM2VideoPredictor, state: Any) -> None:
        predictor.add_new_mask(state, 0, 1, mask)
        predictor.add_new_points_or_box(state, 0, 2, [[20, 40]], [1])

    expected = truth(studio, said)
    assert [f for f in range(COUNT) if not np.array_equal(page.ids(f), expected[f])] == []
    assert len({mask.tobytes() for mask in expected.values()}) > 2


def test_what_is_new(page: Page) -> None:
    page.outline(2, 1)
    first = page.changes()
    assert list(first["frames"][0]) == ["2"] and first["state"]["objects"] == [{"id": 1, "name": "object 1"}]
    assert first["state"]["prompts"]["2"]["1"]["kind"] == "prompt"
    page.track(2, max_frames=3)
    news = page.changes(first["version"])
    assert sorted(map(int, news["frames"][0])) == [2, 3, 4, 5]
    iou, _, present, tokens, held, left = news["frames"][0]["3"]["1"]
    assert 0 <= iou <= 1 and isinstance(present, bool) and tokens == 32 and held > 0 and left == 0
    assert page.changes(news["version"])["frames"] == [{}, {}]


def test_what_memory_did(page: Page) -> None:
    page.outline(0, 1)
    page.track()
    record = page.get("memory/9", obj_id=1).json()["record"]
    assert {e["kind"] for e in record["entries"]} == {"prompt", "map"}
    frames = [r["frame"] for r in record["readings"]]
    assert frames[0] == 0 and set(frames[1:]) == set(range(3, 9))
    assert 0.1 < sum(r["mass"] for r in record["readings"]) <= 1 and all(
        r["slot"] is not None for r in record["readings"]
    )
    assert record["history"]["8"]["entered"] == {"on": 8, "action": "written", "reason": "tracked"}
    assert page.get("memory/9", obj_id=7).json() == {"record": None}


def test_backwards_and_stop(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    page.outline(6, 1)
    page.track(6, reverse=True)
    assert sorted(map(int, page.changes()["frames"][0])) == list(range(7))
    seen, apply = threading.Event(), run_module.PolicyRun.apply

    def slow(self: run_module.PolicyRun, step: Any) -> Iterator[int]:
        for frame in apply(self, step):
            if frame == 7:
                seen.set()
                time.sleep(0.3)
            yield frame

    monkeypatch.setattr(run_module.PolicyRun, "apply", slow)
    page.do("track", frame=6)
    assert seen.wait(20)
    assert "is running" in page.refused("step", kind="clear", frame=6, obj_id=1)
    page.do("stop")
    assert page.state()["job"] is None and max(map(int, page.changes()["frames"][0])) == 7
    assert studio.sessions[page.key].log.steps[-1].max_frames == 1, "the log says what was done"
    page.do("stop")


def test_a_prompt_where_the_network_sees_nothing(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    point = {"kind": "prompt", "frame": 0, "obj_id": 1, "points": [[20, 40]], "labels": [1]}
    monkeypatch.setattr(run_module.PolicyRun, "_score", lambda run, frame, obj_id: (0.9, 3.0, True))
    assert page.do("step", **point) == {"frames": [0], "absent": False}
    monkeypatch.setattr(run_module.PolicyRun, "_score", lambda run, frame, obj_id: (0.1, -3.0, False))
    assert page.do("step", **point)["absent"]


def test_correct_undo_redo(page: Page) -> None:
    page.outline(0, 1, 1)
    page.track()
    before = [page.ids(f) for f in range(COUNT)]
    page.outline(3, 1, 0)
    corrected = page.ids(3)
    assert not np.array_equal(corrected, before[3])
    page.track(3)
    after = [page.ids(f) for f in range(COUNT)]
    assert any(not np.array_equal(a, b) for a, b in zip(after[4:], before[4:]))
    for _ in range(2):
        page.do("undo")
    assert all(np.array_equal(page.ids(f), before[f]) for f in range(COUNT))
    assert list(page.state()["prompts"]) == ["0"]
    page.outline(3, 1, 0)
    page.track(3)
    assert all(np.array_equal(page.ids(f), after[f]) for f in range(COUNT)), "the state went back as well"
    page.do("undo")
    page.do("redo")
    assert all(np.array_equal(page.ids(f), after[f]) for f in range(COUNT))
    assert "nothing was undone" in page.refused("redo")


def test_another_mask(page: Page) -> None:
    page.outline(0, 1, 1)
    page.track(0, max_frames=4)
    before = page.ids(4)
    news = page.get("alternatives", obj_id=1).json()
    assert news["frame"] == 4 and sum(a["shown"] for a in news["alternatives"]) <= 1
    assert all(a["picture"].startswith("data:image/jpeg;base64,") for a in news["alternatives"])
    other = next(a["number"] for a in news["alternatives"] if not a["shown"])
    page.do("step", kind="choose", obj_id=1, number=other)
    chosen = page.ids(4)
    assert chosen.any() and not np.array_equal(chosen, before)
    assert page.get("memory/4", obj_id=1).json()["record"]["readings"]
    page.do("undo")
    assert np.array_equal(page.ids(4), before)
    assert "the number of an alternative" in page.refused("step", kind="choose", obj_id=1, number=99)
    page.outline(4, 1, 0)
    assert page.get("alternatives", obj_id=1).json()["alternatives"] == [], "a prompted frame has none"


def test_clear_remove_rename(page: Page) -> None:
    page.outline(0, 1, 0)
    page.outline(0, 2, 1)
    page.do("name", obj_id=2, name="cup")
    assert [o["name"] for o in page.state()["objects"]] == ["object 1", "cup"]
    assert set(np.unique(page.ids(0))) == {0, 1, 2}
    page.do("step", kind="remove", obj_id=1)
    assert set(np.unique(page.ids(0))) == {0, 2} and list(page.state()["prompts"]["0"]) == ["2"]
    page.do("step", kind="clear", frame=0, obj_id=2)
    assert not page.ids(0).any() and page.state()["prompts"] == {}
    page.do("undo")
    assert set(np.unique(page.ids(0))) == {0, 2}


def test_another_policy(page: Page, studio: Studio) -> None:
    mask = page.outline(0, 1, 1)
    page.track()
    first = [page.ids(f) for f in range(COUNT)]
    page.do("compare", name="fifo", fields={"num_maskmem": 1})
    state = page.finish()
    assert [(p["name"], p["fields"], p["label"]) for p in state["policies"]] == [
        ("fifo", {}, "fifo"),
        ("fifo", {"num_maskmem": 1}, "fifo*"),
    ]
    second = [page.ids(f, run=1) for f in range(COUNT)]
    assert all(np.array_equal(page.ids(f), first[f]) for f in range(COUNT)), "the first run stays"
    differences = {int(f): iou for f, iou in page.get("differences").json().items()}
    same = [f for f in range(COUNT) if np.array_equal(first[f], second[f])]
    assert [f for f, iou in differences.items() if iou == 1] == same and len(same) < COUNT
    expected = (first[9] & second[9]).sum() / max(1, (first[9] | second[9]).sum())
    assert differences[9] == pytest.approx(expected, abs=1e-3) or 9 in same
    page.outline(3, 1, 1)
    assert page.state()["stale"]
    page.do("undo")
    page.do("policy", name="keyframe", fields={})
    page.finish()
    expected = truth(studio, lambda p, s: p.add_new_mask(s, 0, 1, mask), "keyframe")
    assert all(np.array_equal(page.ids(f), expected[f]) for f in range(COUNT))
    page.do("undo")
    assert page.state()["policies"][0]["name"] == "fifo"
    assert all(np.array_equal(page.ids(f), first[f]) for f in range(COUNT))
    assert "expected fields of fifo" in page.refused("policy", name="fifo", fields={"x": 1})
    assert "num_maskmem" in page.refused("compare", name="fifo", fields={"num_maskmem": 99})
    assert "num_maskmem as int" in page.refused("policy", name="fifo", fields={"num_maskmem": "7"})


def test_exports_and_reopening(page: Page, studio: Studio) -> None:
    page.outline(0, 1, 0)
    page.outline(0, 2, 1)
    page.do("name", obj_id=1, name="cup")
    page.track()
    masks = [page.ids(f) for f in range(COUNT)]
    kinds = ["png", "png_per_object", "rle", "overlay", "davis2017", "youtubevos", "sav", "script", "session"]
    written = page.do("export", kinds=kinds)["written"]
    folder = studio.folder / "sam2_mem_results" / "clip"
    assert written == [
        f"sam2_mem_results/clip/{n}"
        for n in (
            *("png", "png_per_object", "clip.json", "clip_overlay.mp4", "davis2017", "youtubevos", "sav"),
            *("clip.py", "clip.session.json"),
        )
    ]
    assert all(np.array_equal(np.array(Image.open(folder / "png" / f"{f:05d}.png")), masks[f]) for f in range(COUNT))
    assert all((frame.masks()[2] >= (masks[frame.index] == 2)).all() for frame in read_rle(folder / "clip.json").frames)
    assert len(list((folder / "png_per_object" / "002").iterdir())) == COUNT
    assert DatasetOnDisk("davis2017", folder / "davis2017").names == ["clip"]
    assert [o.obj_id for o in DatasetOnDisk("youtubevos", folder / "youtubevos").objects["clip"]] == [1, 2]
    assert len(list((folder / "sav" / "Annotations_6fps" / "clip" / "002").iterdir())) == COUNT
    with open_video(folder / "clip_overlay.mp4") as drawn:
        assert drawn.count_frames() == COUNT
    compile((folder / "clip.py").read_text(), "clip.py", "exec")
    again = Page(studio, "sam2_mem_results/clip/clip.session.json")
    state = again.finish()
    assert state["objects"][0]["name"] == "cup" and state["policies"][0]["name"] == "fifo"
    assert all(np.array_equal(again.ids(f), masks[f]) for f in range(COUNT))
    assert again.get("memory/9", obj_id=2).json()["record"]["readings"], "memory is there as well"
    log = load_session(folder / "clip.session.json")
    assert len(log.steps) == 3 and len(log.masks) == COUNT


def saved_after_a_correction(page: Page) -> str:
    """Two objects, all frames, a click on a frame that memory has left; it is not taken into memory before the next pass."""
    if page.state()["policies"][0]["name"] == "fifo":
        page.do("policy", name="fifo", fields={"num_maskmem": 3})  # so that frames leave it
        page.finish()
    page.outline(0, 1, 0)
    page.outline(0, 2, 1)
    page.track()
    page.click(6, *centre(0, 6))
    [path] = page.do("export", kinds=["session"])["written"]
    return path


@pytest.mark.parametrize("policy", in_tiers(policy_names(), ("fifo",), REPRESENTATIVE))
def test_a_session_goes_on_where_it_was_saved(studio: Studio, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """Nothing is tracked again when it opens, and what comes after equals what comes after without saving."""
    page = Page(studio, policy=policy)
    path = saved_after_a_correction(page)

    def refused(*_: Any) -> None:
        raise AssertionError("it is tracked again")

    with monkeypatch.context() as patch:
        patch.setattr(run_module.PolicyRun, "apply", refused)
        again = Page(studio, path)
        state = again.finish()
    assert state["message"] == "" and state["prompts"] == page.state()["prompts"]
    assert again.changes()["frames"] == page.changes()["frames"]
    for what in ("memory/9", "charts/3"):
        assert again.get(what, obj_id=1).json() == page.get(what, obj_id=1).json()
    both = page, again
    assert all(np.array_equal(again.ids(f), page.ids(f)) for f in range(COUNT))
    for opened in both:
        opened.track(6, max_frames=2)
        opened.click(4, *centre(0, 4))
        opened.track(4, max_frames=3)
    assert studio.sessions[again.key].log.steps == studio.sessions[page.key].log.steps
    assert all(np.array_equal(again.ids(f), page.ids(f)) for f in range(COUNT))
    assert without_bytes(again) == without_bytes(page)


@pytest.mark.parametrize("left_out", ["archive", "memory", "pending"])
def test_the_parts_of_a_saved_state_matter(
    page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch, left_out: str
) -> None:
    """The control: without one of its parts a session goes on otherwise."""
    path = saved_after_a_correction(page)
    if left_out == "archive":
        monkeypatch.setattr(session_state, "restore_archive", lambda *_: None)
    else:
        monkeypatch.setattr(
            session_state, "set_tracks", lambda s, tracks: set_tracks(s, (without(t, left_out) for t in tracks))
        )
    again = Page(studio, path)
    for opened in (page, again):
        opened.finish()
        opened.track(9 if left_out == "memory" else 6, max_frames=5, reverse=left_out == "memory")
    assert without_bytes(page) != without_bytes(again)


def without_bytes(page: Page) -> dict[str, dict[str, list[float]]]:
    """Scores and numbers by frame and object. (The constants that new entries share are others than those of a file.)"""
    frames = page.changes()["frames"][0]
    return {f: {i: [*values[:4], *values[5:]] for i, values in by_id.items()} for f, by_id in frames.items()}


def without(track: SavedTrack, part: str) -> SavedTrack:
    """The object without its memory of tracked frames, or without prompts that are not in memory yet."""
    assert track.state is not None
    state = replace(track.state, entries=(), pointers=())
    return replace(track, state=state) if part == "memory" else replace(track, pending={})


def test_a_session_whose_state_does_not_fit_is_repeated(page: Page, studio: Studio) -> None:
    page.outline(0, 1, 0)
    page.track()
    [path] = page.do("export", kinds=["session"])["written"]
    masks, state_file = (
        [page.ids(f) for f in range(COUNT)],
        studio.folder / "sam2_mem_results" / "clip" / "clip.session.state",
    )
    content = state_file.read_bytes()

    def opened() -> str:
        again = Page(studio, path)
        message = again.finish()["message"]
        assert all(np.array_equal(again.ids(f), masks[f]) for f in range(COUNT))
        assert again.get("memory/9", obj_id=1).json()["record"]["readings"]
        return message

    assert opened() == ""
    state_file.unlink()  # as with the files of earlier versions
    assert opened() == ""
    state_file.write_bytes(content[:1000])
    assert "All steps are done again: expected a state of a session" in opened()
    page.outline(5, 1, 1)
    page.do("export", kinds=["session"])
    state_file.write_bytes(content)
    masks[5] = page.ids(5)
    assert "got that of another one, or of an earlier save" in opened()


def test_a_policy_whose_state_cannot_be_saved(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    page.outline(0, 1, 0)
    page.track(max_frames=3)
    [path] = page.do("export", kinds=["session"])["written"]
    state_file = studio.folder / "sam2_mem_results" / "clip" / "clip.session.state"
    assert state_file.is_file()

    def unpackable(*_: Any) -> None:
        raise TypeError("a policy state is made of tensors, numbers, tuples and dataclasses")

    monkeypatch.setattr(session_state, "packed", unpackable)
    page.track(3)
    page.do("export", kinds=["session"])
    assert not state_file.exists(), "an older one does not stay"
    again = Page(studio, path)
    assert again.finish()["message"] == ""
    assert all(np.array_equal(again.ids(f), page.ids(f)) for f in range(COUNT))


def test_a_full_disk_and_a_vanished_video(page: Page, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    page.outline(0, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sam2_mem.studio.export.save_session", full)
    assert "No space left" in page.refused("export", kinds=["session"])
    for path in (studio.folder / "clip").iterdir():
        path.unlink()
    answer = page.client.get(f"/{TOKEN}/api/sessions/{page.key}/frame/7")
    assert answer.status_code == 400 and "cannot read frame 7" in answer.json()["detail"]
    page.do("track", frame=0)
    assert "cannot read frame" in page.finish()["message"]
    assert page.ids(0).any(), "what was there stays"


def test_mistakes(page: Page, studio: Studio) -> None:
    assert "from 1 to 255" in page.refused("step", kind="prompt", frame=0, obj_id=0, points=[[1, 1]], labels=[1])
    assert "inside the picture" in page.refused("step", kind="prompt", frame=0, obj_id=1, points=[[99, 1]], labels=[1])
    assert "frame of the video" in page.refused("step", kind="prompt", frame=99, obj_id=1, points=[[9, 1]], labels=[1])
    assert page.state()["objects"] == [] and page.state()["undo"] == 0
    page.do("track", frame=0)
    assert "nothing to track" in page.finish()["message"]
    assert "expected a mask, got none" in page.refused("export", kinds=["png"])
    assert "expected results out of" in page.refused("export", kinds=["gif"])
    (studio.folder / "x.session.json").write_text("{}")
    answer = page.client.post(f"/{TOKEN}/api/sessions", json={"path": "x.session.json"})
    assert answer.status_code == 400 and "expected a session" in answer.json()["detail"]
    gone = page.client.get(f"/{TOKEN}/api/sessions/s99/changes")
    assert gone.status_code == 400 and "open it again" in gone.json()["detail"]


def test_a_second_page_sees_the_same(page: Page, studio: Studio) -> None:
    page.outline(0, 1)
    other = Page(studio)
    other.key = page.key
    assert other.changes()["frames"] == page.changes()["frames"]
    start = page.client.get(f"/{TOKEN}/api/start").json()
    assert start["sessions"] == {"s1": "clip", "s2": "clip"}
    assert page.client.delete(f"/{TOKEN}/api/sessions/s2").status_code == 200
    assert list(studio.sessions) == ["s1"]


def test_files_are_listed_by_what_they_are(page: Page, studio: Studio) -> None:
    (studio.folder / "notes.txt").write_text("x")
    (studio.folder / "a.mp4").write_bytes(b"x")
    (studio.folder / "a.session.json").write_text("{}")
    (studio.folder / "sub").mkdir()
    items = page.client.get(f"/{TOKEN}/api/files").json()["items"]
    kinds = {"a.mp4": "video", "a.session.json": "session", "clip": "images", "sub": "folder"}
    assert {item["name"]: item["kind"] for item in items} == kinds


@pytest.mark.parametrize("name", in_tiers(policy_names(), ("sam2long", "xmem")))
def test_every_policy_tracks_and_explains(studio: Studio, name: str) -> None:
    page = Page(studio, "clip", policy=name)
    page.outline(0, 1, 1)
    state = page.track()
    assert state["message"] == "" and [(p["name"], p["fields"]) for p in state["policies"]] == [(name, {})]
    expected = truth(studio, lambda p, s: p.add_new_mask(s, 0, 1, page.ids(0) == 1), name)
    assert sorted(map(int, page.changes()["frames"][0])) == sorted(expected) == list(range(COUNT))
    record = page.get("memory/9", obj_id=1).json()["record"]
    assert record["entries"] and record["readings"] and record["bytes"] > 0
    page.do("undo")
    assert list(page.changes()["state"]["prompts"]) == ["0"] and page.changes()["frames"][0]["9"] is None


# -- policies as forms ------------------------------------------------------------------------------------------------


def test_forms_of_all_policies(page: Page) -> None:
    start = page.client.get(f"/{TOKEN}/api/start").json()
    assert {"fifo", "xmem", "sam2long"} <= set(start["policies"])
    form = page.client.get(f"/{TOKEN}/api/policies/fifo").json()
    fields = {field["name"]: field for field in form["fields"]}
    assert fields["num_maskmem"] | {"help": ""} == {
        "name": "num_maskmem", "value": 7, "kind": "int", "optional": False, "choices": [], "at_least": 1, "at_most": None,
        "special": [], "help": "",
    }  # fmt: skip
    assert "memory maps read per frame" in fields["num_maskmem"]["help"] and fields["max_prompts"]["help"]
    assert form["about"].startswith("First in, first out")


@pytest.mark.parametrize("name", ["fifo", "xmem", "sam2long", "keyframe", "samurai"])
def test_a_form_as_it_is_gives_the_policy(name: str) -> None:
    form = policy_form(micro_predictor(name).policy)
    json.dumps(form)
    policy, changed = policy_from(name, {field["name"]: field["value"] for field in form})
    assert policy == micro_predictor(name).policy and changed == {}
    assert {field["kind"] for field in form} <= {"bool", "int", "float", "str"} and all(f["help"] for f in form[:1])


def test_fields_of_a_form_have_their_type() -> None:
    policy, changed = policy_from("sam2long", {"max_lag": None, "iou_thre": 1})
    assert changed == {"max_lag": None, "iou_thre": 1.0} and isinstance(policy.iou_thre, float)
    for values in ({"iou_thre": "x"}, {"skip_oldest_pointer": 1}, {"num_maskmem": True}, {"output": "other"}):
        with pytest.raises(ValueError, match=next(iter(values))):
            policy_from("sam2long", values)


# -- the small model on the demo clip ---------------------------------------------------------------------------------


def test_one_click_on_the_demo_gives_a_mask() -> None:
    predictor = build_sam2_video_predictor("nano_v2", device="cpu")
    studio = Studio(predictor, DEMO)
    page = Page(studio, "demo")
    page.do("step", kind="prompt", frame=0, obj_id=1, points=[[56, 130]], labels=[1])
    mask, fish = page.ids(0) == 1, np.array(Image.open(DEMO / "demo_gt" / "demo" / "00000.png")) == 1
    studio.close()
    assert (mask & fish).sum() / (mask | fish).sum() > 0.5


# -- other networks, distillers and bounds ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> SAM2VideoPredictor:
    return build_sam2_video_predictor(NANO_128, device="cpu", hydra_overrides_extra=["model.image_size=64"])


@pytest.mark.full
def test_another_network_a_distiller_and_a_bound_beside_the_first(nano: SAM2VideoPredictor, tmp_path: Path) -> None:
    save_video(tmp_path / "clip", COUNT)
    studio = Studio(nano, tmp_path, config=NANO_128)
    page = Page(studio)
    start = page.client.get(f"/{TOKEN}/api/start").json()
    assert start["networks"][""] == NANO_128 and start["networks"]["nano_v2"] == "nano_v2"
    assert {"none", "pool2", "temporal"} <= set(start["distillers"]) and set(start["bounds"]) == {
        "none",
        "bytes",
        "tokens",
    }
    mask = page.outline(0, 1, 1)
    page.track()
    first = [page.ids(f) for f in range(COUNT)]
    page.do("compare", name="fifo", bound="bytes", max_bytes=8192)
    assert page.finish()["policies"][1]["label"] == "fifo · bytes"
    bounded = page.get("memory/9", obj_id=1, run=1).json()["record"]
    unbounded = page.get("memory/9", obj_id=1).json()["record"]
    assert bounded["tokens"] <= 8192 // 128 < unbounded["tokens"]
    page.do("compare", name="distilled", distiller="pool2")
    assert page.finish()["message"] == "" and page.state()["policies"][1]["distiller"] == "pool2"
    predictor = build_sam2_video_predictor(NANO_128, device="cpu", hydra_overrides_extra=["distiller=pool2"])
    predictor = predictor.with_policy("distilled")
    state = predictor.init_state(tmp_path / "clip")
    predictor.add_new_mask(state, 0, 1, mask)
    expected = [(logits[0, 0] > 0).numpy() for _, _, logits in predictor.propagate_in_video(state)]
    assert all(np.array_equal(page.ids(f, run=1) == 1, expected[f]) for f in range(COUNT))
    page.do("compare", name="fifo", network="nano_v2")
    state = page.finish()
    assert state["message"] == "" and state["policies"][1]["network"] == "nano_v2"
    assert all(np.array_equal(page.ids(f), first[f]) for f in range(COUNT)), "the first run stays"
    assert f"out of {NANO_128}" in page.refused("compare", name="fifo", network="../other")
    assert "distiller" in page.refused("compare", name="fifo", distiller="none_such")
    studio.close()


def test_a_session_of_all_parts_opens_again(nano: SAM2VideoPredictor, tmp_path: Path) -> None:
    save_video(tmp_path / "clip", 4)
    studio = Studio(nano, tmp_path, config=NANO_128)
    page = Page(studio)
    page.outline(0, 1, 1)
    page.do("policy", name="fifo", fields={"num_maskmem": 3}, bound="tokens", max_bytes=16384, distiller="pool2")
    page.finish()
    page.track()
    masks = [page.ids(f) for f in range(4)]
    [script, session] = page.do("export", kinds=["session", "script"])["written"]
    overrides = "['distiller=pool2', 'memory_bound=tokens', 'memory_bound.max_bytes=16384']"
    assert f"hydra_overrides_extra={overrides}" in (tmp_path / script).read_text()
    again = Page(studio, session)
    assert again.finish()["policies"][0]["label"] == "fifo* · pool2 · tokens"
    assert all(np.array_equal(again.ids(f), masks[f]) for f in range(4))
    (tmp_path / "other.session.json").write_text(
        (tmp_path / session).read_text().replace(json.dumps(NANO_128), '"sam2.1_hiera_t"')
    )
    answer = page.client.post(f"/{TOKEN}/api/sessions", json={"path": "other.session.json"})
    assert answer.status_code == 400 and "start the studio with --config sam2.1_hiera_t" in answer.json()["detail"]
    studio.close()


# -- charts -----------------------------------------------------------------------------------------------------------


def test_charts_are_those_of_the_inspection_page(page: Page, studio: Studio) -> None:
    assert page.get("charts/5", obj_id=1).json() == {"frames": [], "drawings": []}
    page.outline(0, 1, 1)
    page.do("policy", name="sam2long", fields={})
    page.finish()
    page.track()
    news = page.get("charts/5", obj_id=1).json()
    run = studio.sessions[page.key].runs[0]
    record = run.records(1, range(COUNT), "sam2long")
    assert news["frames"] == list(range(COUNT))
    assert news["drawings"] == [drawing.svg() for drawing in drawings(record, run.styles())]
    assert len(news["drawings"]) == 3, "the tree of pathways as well"
    kinds = page.get("memory/9", obj_id=1).json()["record"]["kinds"]
    assert all(f'fill="{color}"' in news["drawings"][0] for _, color in kinds.values())
    script = page.client.get(f"/{TOKEN}/static/charts.js").text
    templates = Path(inspection.__file__).parents[1] / "templates"
    assert (
        script == (templates / "charts.js").read_text() and '"charts.js"' in (templates / "inspection.html").read_text()
    )
