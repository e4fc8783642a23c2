"""Sessions as plain values: saved, repeated, written as a script; the same network under another policy; past masks."""

from __future__ import annotations

import runpy
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro import blob, micro_predictor, one_thread, pictures  # noqa: F401
from PIL import Image

import sam2_mem
from sam2_mem.tracking.session_log import SessionLog, SessionStep, load_session, outline_mask, step_from_json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import read_mask_png

COUNT = 12
STEPS = (
    SessionStep(kind="prompt", frame=4, obj_id=1, outline=((10, 10), (50, 12), (45, 50), (12, 40))),
    SessionStep(kind="prompt", frame=4, obj_id=2, points=((30.0, 30.0), (5.0, 5.0)), labels=(1, 0)),
    SessionStep(kind="track", frame=4),
    SessionStep(kind="track", frame=4, max_frames=3, reverse=True),
    SessionStep(kind="prompt", frame=8, obj_id=2, box=(10.0, 10.0, 40.0, 44.0)),
    SessionStep(kind="track", frame=8, max_frames=2),
    SessionStep(kind="choose", obj_id=1, number=2),
)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    folder = tmp_path / "video"
    folder.mkdir()
    for index, picture in enumerate(pictures(COUNT)):
        Image.fromarray(picture).save(folder / f"{index:05d}.png")
    return folder


def run(predictor: SAM2VideoPredictor, video: Path, steps: tuple[SessionStep, ...]) -> dict[int, torch.Tensor]:
    """The last masks of every frame."""
    log = SessionLog(video=str(video), steps=steps)
    return {frame: logits > 0 for frame, _, logits in log.replay(predictor, predictor.init_state(video))}


def differing(a: dict[int, torch.Tensor], b: dict[int, torch.Tensor]) -> list[int]:
    assert a.keys() == b.keys()
    return [frame for frame in a if a[frame].shape != b[frame].shape or not torch.equal(a[frame], b[frame])]


def test_a_saved_session_repeats(video: Path, tmp_path: Path) -> None:
    predictor = micro_predictor()
    truth = run(predictor, video, STEPS)
    masks = {4: {1: "abc"}}
    log = SessionLog(video=str(video), names={1: "cup"}, policy_fields={"max_prompts": 3}, steps=STEPS, masks=masks)
    log.save(tmp_path / "a.session.json")
    loaded = load_session(tmp_path / "a.session.json")
    assert loaded == log
    assert differing(run(predictor, video, loaded.steps), truth) == []
    assert differing(run(predictor, video, (*STEPS[:4], replace(STEPS[4], box=(1, 1, 60, 60)), STEPS[5])), truth)
    assert differing(run(predictor, video, STEPS[:-1]), truth) == [10], "the mask that was chosen is another one"


def test_what_is_no_session_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", '{"format": 99}', '{"format": 1, "video": "x"}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"expected a session saved by SessionLog\.save"):
            load_session(tmp_path / "x.json")
    for wrong in (
        {"kind": "jump"},
        {"kind": "clear", "frame": 1},
        {"kind": "prompt", "obj_id": 1},
        {"kind": "track", "x": 1},
        {},
    ):
        with pytest.raises(ValueError, match="expected"):
            step_from_json(wrong)
    with pytest.raises(ValueError, match="at least three corners"):
        outline_mask([(0, 0), (1, 1)], (4, 4))


def test_the_script_of_a_session_gives_its_masks(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = run(micro_predictor(), video, STEPS)
    built: dict[str, Any] = {}

    def build(config: str, checkpoint: str | None, device: str, memory_policy: Any) -> SAM2VideoPredictor:
        built.update(config=config, policy=memory_policy)
        return micro_predictor(memory_policy)

    monkeypatch.setattr(sam2_mem, "build_sam2_video_predictor", build)
    script = SessionLog(video=str(video), policy_fields={"max_prompts": 3}, steps=STEPS).script(str(tmp_path / "out"))
    (tmp_path / "script.py").write_text(script)
    runpy.run_path(str(tmp_path / "script.py"))
    assert built["config"] == "nano_v2" and built["policy"].max_prompts == 3
    assert sorted(p.stem for p in (tmp_path / "out").iterdir()) == [f"{f:05d}" for f in sorted(truth)]
    for frame, masks in truth.items():
        ids = np.zeros((64, 64), np.uint8)
        for row in reversed(range(masks.shape[0])):
            ids[masks[row, 0].numpy()] = row + 1
        assert np.array_equal(read_mask_png(tmp_path / "out" / f"{frame:05d}.png").ids, ids), frame


def test_another_policy_on_the_same_network(video: Path) -> None:
    fifo = micro_predictor("fifo", fill_hole_area=3)
    keyframe = fifo.with_policy("keyframe")
    assert keyframe.model is fifo.model and keyframe.tracker_settings == fifo.tracker_settings
    truth = run(micro_predictor("keyframe", fill_hole_area=3), video, STEPS[:3])
    assert differing(run(keyframe, video, STEPS[:3]), truth) == []
    with pytest.raises(ValueError, match="num_maskmem"):
        fifo.with_policy(replace(fifo.policy, num_maskmem=99))
    with pytest.raises(ValueError, match="nothing"):
        fifo.with_policy("nothing")


def test_masks_of_past_frames() -> None:
    predictor = micro_predictor(history=2)
    state = predictor.init_state(pictures(COUNT))
    predictor.add_new_mask(state, 0, 1, blob(0))
    given = {frame: logits for frame, _, logits in predictor.propagate_in_video(state)}
    for frame in range(COUNT):
        index, ids, masks = predictor.current_masks(state, frame)
        assert (index, ids) == (frame, [1]) and torch.equal(masks > 0, given[frame] > 0)
    assert len({(logits > 0).numpy().tobytes() for logits in given.values()}) > 1, "masks differ from frame to frame"


@pytest.mark.full
def test_two_sessions_of_one_predictor_in_two_threads(video: Path) -> None:
    """As docs/architecture.md says: they take turns at the network, and anybody may read frames meanwhile."""
    predictor, turn = micro_predictor(), threading.Lock()
    steps = STEPS[:3], STEPS[1:4]
    truth = [run(predictor, video, part) for part in steps]
    results: list[dict[int, torch.Tensor]] = [{}, {}]
    states = [predictor.init_state(video), predictor.init_state(video)]

    def work(number: int) -> None:
        replayed = SessionLog(video=str(video), steps=steps[number]).replay(predictor, states[number])
        while True:
            with turn:
                result = next(replayed, None)
            if result is None:
                return
            results[number][result[0]] = result[2] > 0

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    images, read = pictures(COUNT), 0
    while any(thread.is_alive() for thread in threads):
        read += np.array_equal(states[0].frame(read % COUNT).image, images[read % COUNT])
        time.sleep(0.005)
    assert read > COUNT
    assert [differing(result, expected) for result, expected in zip(results, truth)] == [[], []]
