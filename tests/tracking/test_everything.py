"""Automatic masks, then tracking of everything: which masks are new objects, and that they are tracked as prompted ones are."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import Clip
from helpers import NANO_128, SCORE_HEAD, encode_once, make_predictor
from micro import one_thread  # noqa: F401

from sam2_mem import SAM2AutomaticMaskGenerator, SAM2VideoPredictor, build_sam2_video_predictor
from sam2_mem.cli import track_all
from sam2_mem.cli.command import main
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.everything import DiscoverySettings, EverythingFrame, new_objects, track_everything
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.vos import PromptPlan, segment
from sam2_mem.video import palette_masks

GENERATOR = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
    "mask_threshold": 2.0,  # masks of random weights, as blobs
}


def tracked(predictor: SAM2VideoPredictor, frames: np.ndarray, **settings: float) -> list[EverythingFrame]:
    generator = SAM2AutomaticMaskGenerator(predictor.model, **GENERATOR)
    state = predictor.init_state(frames, interactive=False)
    return list(track_everything(predictor, state, generator, DiscoverySettings(**settings)))


# -- which masks are new ------------------------------------------------------------------------------------------------


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((40, 50), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def found(masks: list[np.ndarray], old: list[np.ndarray], **settings: float) -> list[int]:
    """Places in ``masks`` of the new objects."""
    records = [{"segmentation": mask, "area": int(mask.sum())} for mask in masks]
    result = new_objects(records, old, DiscoverySettings(**{"min_area": 20, **settings}))
    return [next(i for i, mask in enumerate(masks) if mask is new) for new in result]


WHOLE, PART, APART, SHIFTED = box(5, 5, 25, 25), box(5, 5, 15, 15), box(30, 30, 45, 38), box(7, 7, 27, 27)


def test_the_largest_come_first_and_parts_of_them_are_none() -> None:
    assert found([PART, APART, WHOLE], []) == [2, 1]
    assert found([PART, APART, WHOLE], [], min_uncovered=0.0) == [2, 1, 0]
    assert found([PART, PART.copy()], [], min_uncovered=0.0) == [0], "the same twice"
    assert found([], [WHOLE]) == []


def test_tracked_objects_are_not_found_again() -> None:
    assert found([SHIFTED, APART], [WHOLE]) == [1]
    assert found([SHIFTED, APART], [WHOLE], matched_iou=0.9) == [1], "mostly covered"
    assert found([SHIFTED, APART], [WHOLE], matched_iou=0.9, min_uncovered=0.1) == [0, 1]
    assert found([SHIFTED], [np.zeros_like(WHOLE)]) == [0], "an absent object matches nothing"


def test_sizes_and_number_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    speck, everything = box(0, 0, 3, 3), np.ones_like(WHOLE)
    assert found([speck, everything, APART], []) == [2]
    assert found([speck, everything, APART], [], min_area=9, max_area=1.0) == [1]
    assert found([PART, APART, box(30, 5, 45, 20)], [WHOLE], max_objects=2) == [2]
    assert "2 new objects, but max_objects leaves place for 1" in caplog.text
    assert found([APART], [WHOLE], max_objects=1) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("every", -1), ("max_objects", 0), ("min_area", 0), ("lost_after", 0), ("max_area", 1.5), ("matched_iou", -1)],
)
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"expected {name} "):
        DiscoverySettings(**{name: value})


# -- the pass -----------------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("policy", ["fifo", "sam2long"])
def test_objects_are_tracked_as_those_with_mask_prompts(tiny_weights: Path, clip: Clip, policy: str) -> None:
    """The same masks given as prompts on the same frames; also under a policy that gives masks out later."""
    predictor, frames = make_predictor(tiny_weights, policy=policy), clip.frames[:5]
    predictor.model.get_parameter(f"{SCORE_HEAD}bias").data += 30  # no object is absent
    encode_once(predictor.model, {})
    shown = tracked(predictor, frames, every=2, max_objects=5, matched_iou=0.9, min_uncovered=0.1)
    assert [item.frame.index for item in shown] == list(range(5))
    new = {item.frame.index: item.new_ids for item in shown if item.new_ids}
    assert len(new) > 1 and set(new) <= {0, 2, 4} and sum(new.values(), ()) == tuple(range(1, 6)), "ids count up"
    first = {i: shown[index].masks[i] for index, ids in new.items() for i in ids}

    def prompted(masks: dict[int, np.ndarray]) -> list[dict[int, np.ndarray]]:
        at = {index: lambda _, ids=ids: [Prompt(obj_id=i, mask=masks[i]) for i in ids] for index, ids in new.items()}
        state = predictor.init_state(frames, interactive=False)
        return [item.masks for item in segment(predictor, state, PromptPlan(tuple(first), at))]

    def equal(other: list[dict[int, np.ndarray]]) -> bool:
        later = [(x.masks[i], y[i]) for x, y in zip(shown, other) for i in x.masks if i not in x.new_ids]
        return all(np.array_equal(a, b) for a, b in later)

    assert sum(mask.any() for item in shown for i, mask in item.masks.items() if i not in item.new_ids) > 5
    assert equal(prompted(first))
    assert not equal(prompted({i: ~mask for i, mask in first.items()})), "the control: other masks"


@pytest.mark.full
def test_absent_objects_are_given_up_and_memory_stays_bounded(tiny: SAM2VideoPredictor, clip: Clip) -> None:
    generator = SAM2AutomaticMaskGenerator(tiny.model, **GENERATOR)
    state = tiny.init_state(clip.frames[:24], interactive=False)
    settings = DiscoverySettings(every=8, max_objects=4, lost_after=1, matched_iou=0.9, min_uncovered=0.1)
    sizes, shown = [], []
    for item in track_everything(tiny, state, generator, settings):
        shown.append(item)
        sizes.append(state.memory_bytes())
        assert len(state._features) <= 2 and not state.prompts and len(item.masks) <= 4
    lost = [i for item in shown for i in item.given_up]
    assert lost and len(lost) == len(set(lost)), "with these weights objects come and go"
    gone: set[int] = set()
    for item in shown:
        gone |= set(item.given_up)
        assert gone.isdisjoint(item.masks), "an id is not used again"
    new_ids = sum((item.new_ids for item in shown), ())
    assert list(new_ids) == list(range(1, len(new_ids) + 1)) and len(new_ids) > 4
    assert max(sizes[16:]) <= max(sizes[:16])


def test_what_is_refused(tiny: SAM2VideoPredictor, clip: Clip, caplog: pytest.LogCaptureFixture) -> None:
    generator = SAM2AutomaticMaskGenerator(tiny.model, points_per_side=2, pred_iou_thresh=1e9)
    with pytest.raises(ValueError, match="expected a state of a video, without objects yet, got a stream"):
        track_everything(tiny, tiny.init_state(), generator)
    state = tiny.init_state(clip.frames[:2])
    tiny.add_new_mask(state, 0, 7, clip.mask(1))
    with pytest.raises(ValueError, match=r"without objects yet, got objects \[7\]"):
        track_everything(tiny, state, generator)
    with pytest.raises(ValueError, match="output_mode 'binary_mask', got 'coco_rle'"):
        track_everything(tiny, state, SAM2AutomaticMaskGenerator(tiny.model, output_mode="coco_rle"))
    nothing = list(track_everything(tiny, tiny.init_state(clip.frames[:2], interactive=False), generator))
    assert [item.masks for item in nothing] == [{}, {}] and "no object was found on any frame" in caplog.text


def entering(count: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc that enters an empty scene from the left, and its mask."""
    noise = np.random.default_rng(0).integers(60, 120, (120, 160, 3)).astype(np.uint8)
    frames, masks = [], []
    for t in range(count):
        frame, mask = cv2.GaussianBlur(noise, (0, 0), 3), np.zeros((120, 160), np.uint8)
        for canvas, color in ((frame, (230, 60, 50)), (mask, 1)):
            cv2.circle(canvas, (7 * t - 14, 50), 16, color, -1)
        frames.append(frame)
        masks.append(mask.astype(bool))
    return np.stack(frames), np.stack(masks)


@pytest.mark.full
def test_an_object_that_enters_is_found_and_tracked() -> None:
    """By a trained network; the scene is empty until the object has come."""
    frames, truth = entering(12)
    predictor = build_sam2_video_predictor("nano_v2", device="cpu")
    generator = SAM2AutomaticMaskGenerator(
        predictor.model, points_per_side=6, pred_iou_thresh=0.6, stability_score_thresh=0.8, stability_score_offset=0.3
    )
    settings = DiscoverySettings(every=6, max_area=0.5)
    shown = list(track_everything(predictor, predictor.init_state(frames, interactive=False), generator, settings))
    assert {item.frame.index: item.new_ids for item in shown if item.new_ids} == {6: (1,)}
    for item in shown[8:]:
        mask = item.masks[1]
        assert (mask & truth[item.frame.index]).sum() / (mask | truth[item.frame.index]).sum() > 0.8


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_command_writes_masks_and_a_list_of_objects(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    frames, truth = entering(9)
    video = Clip(frames[6:], truth[6:].astype(np.uint8)).save(tmp_path / "short.clip")
    options = ["--sam2_cfg", "nano_v2", "--device", "cpu", "--points_per_side", "6", "--pred_iou_thresh", "0.6"]
    options += ["--stability_score_thresh", "0", "--max_area", "0.5", "--max_objects", "1", "memory_policy=rmem"]
    out = tmp_path / "out"
    assert main(["track-all", str(video), "--output", str(out), *options]) == 0, capsys.readouterr().err
    names = ["short.clip", "short.clip_objects.json", "short.clip_overlay.mp4", "short.clip_sheet.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    objects = json.loads((out / "short.clip_objects.json").read_text())["objects"]
    assert set(objects) == {"1"} and objects["1"]["first_frame"] == 0 and objects["1"]["largest_area"] > 400
    masks = [palette_masks(path) for path in sorted((out / "short.clip").glob("*.png"))]
    assert len(masks) == 3 and masks[0][1].sum() <= objects["1"]["largest_area"]
    assert "1 objects in" in capsys.readouterr().out


@pytest.mark.parametrize(("override", "area"), [([], 8), (["tracker.fill_hole_area=3"], 3)])
def test_the_command_takes_settings_of_post_processing(
    override: list[str], area: int, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas: list[int] = []

    def look(predictor: object, state: InferenceState, *args: object, **options: object) -> None:
        areas.append(state.tracker.settings.fill_hole_area)
        raise ValueError("enough was seen")

    monkeypatch.setattr(track_all, "track_everything", look)
    arguments = [str(clip_folder), "--output", str(tmp_path / "out"), "--sam2_cfg", NANO_128, "--device", "cpu"]
    assert main(["track-all", *arguments, *override]) == 2
    assert areas == [area]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone.mp4", "--output", "out"], "gone.mp4"),
        (["{clip}", "--output", "{clip}/.."], "an output folder apart from what is read"),
        (["{clip}", "--output", "out", "--every", "-1"], "expected every >= 0, got -1"),
        (["{clip}", "--output", "out", "--sam2_checkpoint", "gone.pt"], "no checkpoint 'gone.pt'"),
    ],
)
def test_the_command_refuses(
    arguments: list[str],
    says: str,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word.replace("{clip}", str(clip_folder)) for word in arguments]
    assert main(["track-all", *words, "--sam2_cfg", NANO_128]) == 2
    assert says in capsys.readouterr().err
