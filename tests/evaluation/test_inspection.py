"""What is shown of memory: notes, drawings, the page, the study, the tool."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from micro import blob, micro_model, micro_predictor, one_thread, pictures  # noqa: F401
from PIL import Image
from webdriver import browser, programs

from sam2_mem.evaluation.inspection import (
    FrameRecord,
    ObjectRecord,
    RecordedVideo,
    Recorder,
    TimelineSegment,
    as_json,
    entry_lines,
    frame_records,
    from_json,
    memory_view,
    record_video,
)
from sam2_mem.evaluation.inspection.animation import GAP
from sam2_mem.evaluation.inspection.drawing import Drawing
from sam2_mem.evaluation.inspection.memory_deciphering import Study, _Decoder, decipher, means, table
from sam2_mem.evaluation.inspection.page import page, write_page
from sam2_mem.evaluation.inspection.sheet import captions, sheet, write_sheet
from sam2_mem.evaluation.inspection.timeline import (
    Styles,
    curves,
    describe,
    drawings,
    has_tree,
    kinds_of,
    timeline,
    tree,
)
from sam2_mem.memory.trace import Action, EntryTrace, ReadTrace, TraceEvent
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.vos import PromptPlan
from sam2_mem.types import ObjectScore
from sam2_mem.video import Frame

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 28
PLAN = PromptPlan(
    (1, 2),
    {0: lambda shown: [Prompt(1, mask=blob(0, 0))], 6: lambda shown: [Prompt(2, mask=blob(1, 6))]},
)


@pytest.fixture(scope="module")
def recordings() -> list[RecordedVideo]:
    names = ("rmem", "sam2long", "xmem")
    return [record_video(micro_predictor(name), pictures(FRAMES), PLAN, name=name, width=48) for name in names]


# -- notes ------------------------------------------------------------------------------------------------------------


def test_watching_gives_the_masks_of_tracking(recordings: list[RecordedVideo]) -> None:
    assert list(recordings[0].pictures) == list(range(FRAMES)) and recordings[0].pictures[0].shape == (48, 48, 3)
    for recorded in recordings:
        first, late = recorded.objects[1].frames, recorded.objects[2].frames
        assert [n.frame for n in first] == list(range(FRAMES)) and [n.frame for n in late] == list(range(6, FRAMES))
        assert all(n.score is not None and n.score.obj_id == 1 and n.score.tokens == n.tokens for n in first)
        assert not any(recorded.masks[2][f].any() for f in range(6)), "an object is not there before its prompt"
    predictor = micro_predictor("rmem")
    quiet = record_video(predictor, pictures(FRAMES), PLAN, name="rmem", width=48, read_mass=False)
    assert all(np.array_equal(quiet.masks[i][f], recordings[0].masks[i][f]) for i in (1, 2) for f in range(FRAMES))
    assert all(r.mass is None for n in quiet.objects[1].frames for r in n.readings)
    assert all(r.mass is not None for n in recordings[0].objects[1].frames for r in n.readings)


def record(frame: int, held: dict[int, str], read: dict[int, float | None] | None = None) -> FrameRecord:
    entries = tuple(EntryTrace(f, kind, 0 if kind == "pointer" else 4, None, "", (0,), "") for f, kind in held.items())
    readings = tuple(ReadTrace(0, f, held.get(f, "gone"), 0, 1.0, 4, m) for f, m in (read or {}).items())
    return FrameRecord(frame, readings, 0, 1, (), entries, 8, 100)


def test_lines_of_entries() -> None:
    records = [
        record(0, {0: "prompt"}),
        record(1, {0: "prompt", 1: "map"}, {0: 0.5}),
        record(2, {0: "prompt", 1: "pointer", 2: "map"}, {0: 0.25, 1: 0.5}),
        record(3, {0: "prompt", 2: "map"}),
        record(4, {0: "prompt", 1: "map"}),
    ]
    zero, one, two = entry_lines(records)
    assert zero.segments == (TimelineSegment(0, 5, "prompt"),) and zero.masses == {1: 0.5, 2: 0.25}
    assert one.segments == (
        TimelineSegment(1, 2, "map"),
        TimelineSegment(2, 3, "pointer"),
        TimelineSegment(4, 5, "map"),
    )
    assert two.segments == (TimelineSegment(2, 4, "map"),) and one.masses == {2: 0.5}


def test_moments_of_one_visit_are_one_note(recordings: list[RecordedVideo]) -> None:
    recorder = Recorder()
    predictor = micro_predictor("fifo", clear_non_cond_mem_around_input=True)
    state = predictor.init_state(pictures(6))
    predictor.listen(state, recorder)
    predictor.add_new_mask(state, 0, 1, blob(0, 0))
    list(predictor.propagate_in_video(state))
    predictor.add_new_mask(state, 3, 1, blob(0, 3))
    list(predictor.propagate_in_video(state, start_frame_idx=3))
    notes = frame_records(recorder.of(1))
    assert [n.frame for n in notes] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert {e.action for e in notes[6].events} == {Action.EVICTED, Action.REPLACED}
    with pytest.raises(ValueError, match="expected a frame on which object 1 was tracked"):
        ObjectRecord("fifo", 1, tuple(notes)).at(17)


# -- drawings ---------------------------------------------------------------------------------------------------------


def test_a_drawing_is_the_same_as_svg_and_as_pixels() -> None:
    drawing = Drawing(40, 20, "a < b")
    drawing.rectangle(4, 4, 10, 6, "#ff0000", "x & y")
    drawing.line(((20, 10), (36, 10)), "#00ff00", 2)
    drawing.text(2, 18, "<t>")
    drawing.polygon(((30, 12), (38, 12), (38, 19)), "#0000ff")
    svg, image = drawing.svg(), drawing.image(1)
    assert svg.count("<rect") == svg.count("<polyline") == svg.count("<polygon") == svg.count("<text") == 1
    assert "&lt;t&gt;" in svg and "a &lt; b" in svg and "x &amp; y" in svg
    assert image.getpixel((6, 6)) == (255, 0, 0) and image.getpixel((28, 10)) == (0, 255, 0)
    assert image.getpixel((37, 14)) == (0, 0, 255) and image.getpixel((1, 1)) == (255, 255, 255)


def test_the_timeline_shows_every_entry_and_event(recordings: list[RecordedVideo]) -> None:
    watched = recordings[0].objects[1]
    styles = Styles.of([entry.kind for r in watched.frames for entry in r.entries])
    svg = timeline(watched, styles).svg()
    labels = set(re.findall(r"<text [^>]*>([^<]*)</text>", svg))
    assert {str(r.frame) for r in watched.frames} <= labels and set(styles.letters) <= labels
    marked = [e for r in watched.frames for e in r.events if e.action in (Action.REDUCED, Action.EVICTED)]
    assert marked and {describe(e) for e in marked} <= set(polygon_notes(svg))
    read = sum(1 for r in watched.frames for _ in r.readings)
    assert len(re.findall(r'<rect [^>]*fill="#000000"', svg)) == read
    assert curves(watched).svg().count("<polyline") > 2


def polygon_notes(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<polygon [^>]*><title>(.*?)</title>", svg)]


def test_kinds_have_letters_of_their_own() -> None:
    styles = Styles.of(["prompt", "previous", "pointer", "bank", "p"])
    assert len(set(styles.letters.values())) == 5 == len(set(styles.colors.values()))


def test_the_tree_shows_every_branch(recordings: list[RecordedVideo]) -> None:
    watched = recordings[1].objects[1]
    assert has_tree(watched) and not has_tree(recordings[0].objects[1])
    grown = [e for r in watched.frames for e in r.events if e.action is Action.BRANCHED]
    assert polygon_notes(tree(watched).svg()) == [describe(e) for e in grown]


def test_descriptions() -> None:
    event = TraceEvent(Action.EVICTED, 7, "least", 0.25, 0.5)
    assert describe(event) == "evicted frame 7: least (0.250 against 0.500)"
    assert describe(TraceEvent(Action.BRANCHED, 3, "sure", 1.0, pathway=1, parent=0)) == (
        "branched frame 3 pathway 1 from 0: sure (1.000)"
    )


def test_captions_name_what_a_frame_read(recordings: list[RecordedVideo]) -> None:
    recorded = recordings[2]
    last = recorded.objects[1].frames[-1]
    read = [(name, kind) for name, kind, words in captions(last) if "slot" in words and "%" in words]
    assert {name for name, _ in read} == {r.kind if r.frame is None else r.frame for r in last.readings}
    assert ("long-term", "long-term") in read
    assert [c for c in captions(last) if c[:2] not in read] == [(FRAMES - 1, "previous", "new")]
    assert captions(recorded.objects[1].frames[0]) == [(0, "prompt", "new")]
    idle = record(5, {0: "prompt", 2: "map", 3: "pointer", 5: "map"}, {0: None})
    assert captions(idle) == [(0, "prompt", "slot 0"), (2, "map", "not read"), (5, "map", "new")]


def test_the_page_is_packed() -> None:
    assert '"sam2_mem.evaluation": ["datasets.yaml", "templates/*"]' in (ROOT / "setup.py").read_text()


@pytest.mark.full
def test_sheets(recordings: list[RecordedVideo], tmp_path: Path) -> None:
    write_sheet(tmp_path / "deep" / "one.png", recordings[1], 1, frame=12)
    with Image.open(tmp_path / "deep" / "one.png") as image:
        assert image.width > 600 and image.height > 800
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50
    assert sheet(recordings[1], 1, 12).size != sheet(recordings[0], 1, 12).size, "only a tree has pathways to show"
    with pytest.raises(ValueError, match="expected a frame on which object 1"):
        sheet(recordings[0], 1, 99)


# -- the page ---------------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_the_page_by_structure(recordings: list[RecordedVideo]) -> None:
    text = page(recordings, title="<three> policies & more")
    parsed = Elements()
    parsed.feed(text)
    assert "<!--" not in text and "&lt;three&gt; policies &amp; more" in text
    addresses = [a[k] for _, a in parsed.tags for k in ("src", "href") if k in a]
    assert addresses == ["data:,"] and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), "no network"
    slider = next(a for a in parsed.all("input") if a["type"] == "range")
    assert slider["id"] == "frame" and any(a.get("for") == "frame" for a in parsed.all("label"))
    assert [a["data-policy"] for a in parsed.all("section")] == ["0", "1", "2"]
    assert all(a.get("role") == "img" for a in parsed.all("svg")) and len(parsed.all("svg")) == 2 * (2 + 3 + 2)
    data = data_of(text)
    assert data["frames"] == list(range(FRAMES)) and data["objects"] == [1, 2]
    for encoded in data["pictures"]:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            assert image.size == (48, 48)
    check_masks(recordings[0], data["policies"][0])
    letters = [letter for letter, _ in data["kinds"].values()]
    assert len(set(letters)) == len(letters), "every kind can be told without its colour"
    last = data["policies"][0]["objects"]["1"]["notes"][-1]
    assert [r[0] for r in last["read"]] == [r.frame for r in recordings[0].objects[1].frames[-1].readings]
    assert data["policies"][0]["objects"]["2"]["notes"][:6] == [None] * 6


def check_masks(recorded: RecordedVideo, told: dict) -> None:
    for obj_id, masks in recorded.masks.items():
        for frame, mask in masks.items():
            encoded = told["objects"][str(obj_id)]["masks"][frame]
            assert (encoded is None) == (not mask.any())
            if encoded is not None:
                with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
                    assert np.array_equal(np.asarray(image.convert("RGBA"))[..., 3] > 0, mask)


def test_text_of_policies_cannot_break_the_page(recordings: list[RecordedVideo]) -> None:
    evil = '</script><img src=x onerror="alert(1)">'
    recorded = recordings[0]
    bad = TraceEvent(Action.EVICTED, 0, evil)
    notes = tuple(FrameRecord(**{**n.__dict__, "events": (bad,)}) for n in recorded.objects[1].frames)
    text = page([RecordedVideo(evil, recorded.pictures, recorded.masks, {1: ObjectRecord(evil, 1, notes)})], title=evil)
    parsed = Elements()
    parsed.feed(text)
    assert parsed.all("img") == [] and len(parsed.all("script")) == 2
    assert data_of(text)["policies"][0]["name"] == evil


def test_pages_of_different_videos_are_refused(recordings: list[RecordedVideo]) -> None:
    other = RecordedVideo("x", {0: recordings[0].pictures[0]}, recordings[0].masks, recordings[0].objects)
    with pytest.raises(ValueError, match="expected recordings of the same frames"):
        page([recordings[0], other], title="")
    with pytest.raises(ValueError, match="expected at least one recording"):
        page([], title="")


@pytest.mark.full
def test_the_page_in_a_browser(recordings: list[RecordedVideo], tmp_path: Path) -> None:
    if programs() is None:
        reason = (
            "NO BROWSER: the page was not opened, only its structure tested; apt-get install chromium chromium-driver"
        )
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    write_page(tmp_path / "index.html", recordings, title="memory of three policies")
    with browser() as chrome:
        chrome.open(tmp_path / "index.html")
        number = "return document.getElementById('number').textContent"
        cards = "return [...document.querySelectorAll('.policy')].map(s => s.querySelectorAll('.read img').length)"
        assert chrome.run(number) == f"0 of {FRAMES - 1}" and chrome.run(cards) == [0, 0, 0]
        chrome.type("#frame", "end")
        assert chrome.run(number) == f"{FRAMES - 1} of {FRAMES - 1}"
        assert all(count > 2 for count in chrome.run(cards))
        chrome.run("document.activeElement.blur()")
        chrome.press("left", "left")
        assert chrome.run(number) == f"{FRAMES - 3} of {FRAMES - 1}", "keys work without the slider's focus"
        chrome.press("home")
        assert chrome.run(number).startswith("0 of")
        chrome.click("#next")
        assert chrome.run(number).startswith("1 of")
        shown = chrome.run("return document.querySelector('.stage img').naturalWidth")
        assert shown == 48, "the picture was decoded"
        chrome.run("const s = document.getElementById('object'); s.value = 2; s.dispatchEvent(new Event('change'))")
        assert "not tracked" in chrome.run("return document.querySelector('.facts').textContent")
        hidden = "return [...document.querySelectorAll('.charts')].map(c => c.hidden)"
        assert chrome.run(hidden) == [True, False] * 3
        chrome.type("#frame", "end")
        chrome.click(".cards button")
        assert chrome.run(number).startswith("6 of"), "the first card of the late object is its prompt"
        lines = "return [...document.querySelectorAll('.charts:not([hidden]) .cursor')].map(c => c.getAttribute('x1'))"
        assert len(chrome.run(lines)) == 7
        assert chrome.console() == []
        chrome.picture(tmp_path / "page.png")
        chrome.run("console.error('control')")
        assert [entry["level"] for entry in chrome.console()] == ["SEVERE"], "an error would have been seen"
    with Image.open(tmp_path / "page.png") as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 500


# -- the study --------------------------------------------------------------------------------------------------------


def truth() -> dict[int, np.ndarray]:
    return {i: blob(0, i) for i in range(2, 14)}


def frames() -> list[Frame]:
    return [Frame(i, f"{i:05d}", image) for i, image in enumerate(pictures(14))]


def test_deciphering() -> None:
    study = Study(sizes=(1, 2, 4, 50), targets=3)
    found = decipher(micro_predictor(), frames(), truth(), 1, study)
    again = decipher(micro_predictor("xmem"), frames(), truth(), 1, study)
    assert found == again, "the policy plays no part"
    curves_of = means(found)
    assert set(curves_of) == set(study.contents) and all(set(c) == {1, 2, 4} for c in curves_of.values())
    assert len({c[1] for c in curves_of.values()}) == 1, "a bank of one frame has no contents to choose"
    assert curves_of["best"][2] >= max(c[2] for c in curves_of.values())
    assert curves_of["worst"][2] <= min(c[2] for c in curves_of.values())
    assert all(0.0 <= d.j <= 1.0 and d.frames == 3 for d in found)
    assert table(found).splitlines()[0].split() == ["contents", "1", "2", "4"]


def test_a_deciphered_frame_is_what_the_tracker_decodes() -> None:
    """A bank of the first frame and the one before, both as the tracker would hold them."""
    predictor = micro_predictor()
    state = predictor.init_state(pictures(4))
    predictor.add_new_mask(state, 0, 1, blob(0, 0))
    logits = [masks[0, 0] for _, _, masks in predictor.propagate_in_video(state)]
    entries = {e.frame: e for e in state.tracker.tracks[1].state.all_entries()}
    masks = {i: torch.as_tensor(blob(0, i)) for i in range(4)}
    decoder = _Decoder(predictor, entries, masks)
    with torch.inference_mode():
        features = predictor.encode(frames()[2])
        read = decoder._read((0, 1), 2)
    assert read.key() != decoder._read((0,), 2).key()
    own = predictor.policy.read(
        type(state.tracker.tracks[1].state)(prompts=(entries[0],), entries=(entries[1],)),
        state.tracker.context(features),
    )[0]
    assert read.key()[0] == own.key()[0]
    assert len(logits) == 4


def test_questions_that_make_no_sense() -> None:
    wrong = (({"sizes": (0,)}, "sizes >= 1"), ({"contents": ("old",)}, "contents"), ({"targets": 0}, "targets"))
    for fields, words in wrong:
        with pytest.raises(ValueError, match=words):
            Study(**fields)
    with pytest.raises(ValueError, match="on at least 2 frames"):
        decipher(micro_predictor(), frames(), {3: blob(0, 3)}, 1, Study())


# -- the tool ---------------------------------------------------------------------------------------------------------


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "inspect_memory.py"), *map(str, words), "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)


@pytest.mark.full
def test_the_tool_shows(tmp_path: Path) -> None:
    demo = ROOT / "notebooks" / "videos"
    words = ("--video", demo / "demo", "--masks", demo / "demo_prompts" / "demo", "--policies", "fifo,dam4sam")
    done = tool("show", *words, "--stop", "14", "--frame", "10", "--width", "64", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    sheets = {f"{name}_{obj_id}.png" for name in ("fifo", "dam4sam") for obj_id in (1, 2)}
    assert {p.name for p in tmp_path.iterdir()} == {"index.html", "animation.webp"} | sheets
    with Image.open(tmp_path / "animation.webp") as animation:
        assert animation.n_frames == 14 and animation.width == 2 * (64 + GAP), "one panel for each policy"
    assert [p["name"] for p in data_of((tmp_path / "index.html").read_text())["policies"]] == ["fifo", "dam4sam"]
    wrong = tool("show", "--video", demo / "demo", "--out", tmp_path)
    assert wrong.returncode == 2 and "expected one of masks, box and point, got none" in wrong.stderr


@pytest.mark.full
def test_the_tool_deciphers(tmp_path: Path) -> None:
    demo = ROOT / "notebooks" / "videos"
    words = ("--video", demo / "demo", "--truth", demo / "demo_gt" / "demo", "--stop", "10", "--sizes", "1,3")
    done = tool("decipher", *words, "--contents", "recent,spread", "--targets", "2", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "decipher.json").read_text())
    assert set(saved["means"]) == {"recent", "spread"} and "recent" in done.stdout
    with Image.open(tmp_path / "decipher.png") as image:
        assert image.width > 300


def test_records_by_frame_and_object_go_to_a_file_and_back() -> None:
    """A session of two objects, one of which is tracked twice over some frames: the last visit counts."""
    predictor = micro_predictor()
    state, recorder = predictor.init_state(np.stack(pictures(6))), Recorder(read_mass=True)
    predictor.listen(state, recorder)
    for number in (0, 1):
        predictor.add_new_mask(state, 0, number + 1, blob(number, 0))
    list(predictor.propagate_in_video(state))
    list(predictor.propagate_in_video(state, 3))
    frames = recorder.by_frame()
    assert list(frames) == list(range(6)) and all(list(by_object) == [1, 2] for by_object in frames.values())
    assert frames[5][2] == frame_records(recorder.of(2))[-1]
    assert {r.frame for r in frames[4][1].readings} == {0, 1, 2, 3} and frames[4][1].readings[0].mass is not None
    text = json.dumps({f: {i: as_json(record) for i, record in by_object.items()} for f, by_object in frames.items()})
    again = {int(f): {int(i): from_json(r) for i, r in by_object.items()} for f, by_object in json.loads(text).items()}
    assert again == frames
    scored = replace(frames[5][1], score=ObjectScore(1, 0.5, 2.0, True, False, (1, 2), (), 32))
    assert from_json(json.loads(json.dumps(as_json(scored)))) == scored


def test_a_notebook_shows_the_charts_of_the_page(recordings: list[RecordedVideo]) -> None:
    record = recordings[0].objects[1]
    view = memory_view(record)
    html = view._repr_html_()
    styles = Styles.of(kinds_of([record]))
    assert all(drawing.svg() in html for drawing in drawings(record, styles)) and "<script" not in html
    assert repr(view) == f"<memory of object 1 under {record.policy}>"
    with pytest.raises(ValueError, match="at least one frame"):
        memory_view(ObjectRecord("fifo", 1, ()))
