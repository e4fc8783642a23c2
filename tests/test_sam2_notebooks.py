"""The calls of SAM 2's three example notebooks, from either package: only the name of the package differs, and results are equal.

Images and point grids are smaller than there, weights are random. The reference gets OpenCV's regions in the place of its CUDA
extension, and the strides of its features, which it takes for granted at 1024 pixels. Its correction of a tracked frame takes
effect with one override, see docs/sam2.md.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip
from helpers import TINY, needs_reference, opencv_regions
from micro import one_thread  # noqa: F401

pytestmark = needs_reference

SIZE = 128
TOLERANCE = 1e-4
OPTIONS = {"device": "cpu", "hydra_overrides_extra": [f"++model.image_size={SIZE}"]}
CORRECTIONS_COUNT = "++model.add_all_frames_to_correct_as_cond=true"

Import = Callable[[str], ModuleType]


def fitted(predictor: Any) -> Any:
    """The reference's image predictor at ``SIZE``."""
    if hasattr(predictor, "_bb_feat_sizes"):
        predictor._bb_feat_sizes = [(SIZE // stride,) * 2 for stride in (4, 8, 16)]
    return predictor


def image_predictor_example(package: Import, weights: Path, folder: Path) -> list[Any]:
    build_sam2 = package("build_sam").build_sam2
    SAM2ImagePredictor = package("sam2_image_predictor").SAM2ImagePredictor  # noqa: N806
    image = make_clip(1).frames[0]
    sam2_model = build_sam2(TINY, str(weights), **OPTIONS)
    predictor = fitted(SAM2ImagePredictor(sam2_model))
    predictor.set_image(image)
    shown = [predictor._features["image_embed"].shape, predictor._features["image_embed"][-1].shape]
    shown += [predictor._features["image_embed"], *predictor._features["high_res_feats"], predictor._orig_hw]

    # One click, the best mask first.
    input_point, input_label = np.array([[50, 37]]), np.array([1])
    masks, scores, logits = predictor.predict(point_coords=input_point, point_labels=input_label, multimask_output=True)
    order = np.argsort(scores)[::-1]
    masks, scores, logits = masks[order], scores[order], logits[order]
    shown += [masks.shape, masks.astype(np.uint8), masks.dtype, scores, logits]

    # Two clicks and the mask; a box; a box and a click.
    input_point, input_label = np.array([[50, 37], [112, 62]]), np.array([1, 1])
    mask_input = logits[np.argmax(scores), :, :]
    shown += predictor.predict(
        point_coords=input_point, point_labels=input_label, mask_input=mask_input[None, :, :], multimask_output=False
    )
    input_box = np.array([42, 60, 70, 87])
    shown += predictor.predict(point_coords=None, point_labels=None, box=input_box[None, :], multimask_output=False)
    shown += predictor.predict(
        point_coords=np.array([[57, 78]]), point_labels=np.array([0]), box=input_box, multimask_output=False
    )

    # Several objects: boxes, then clicks.
    input_boxes = np.array([[7, 60, 170, 87], [13, 55, 85, 80], [137, 55, 165, 80], [124, 67, 140, 82]])
    shown += predictor.predict(point_coords=None, point_labels=None, box=input_boxes, multimask_output=False)
    input_points, input_labels = np.array([[[50, 37]], [[112, 62]]]), np.array([[1], [1]])
    masks, scores, _ = predictor.predict(input_points, input_labels, box=None, multimask_output=True)
    best = np.argmax(scores, axis=-1)
    shown += [masks[np.arange(len(masks)), best], predictor.device.type]

    # Several images, each with boxes, then with clicks.
    predictor.set_image_batch([image, image[:90, 20:150].copy()])
    boxes_batch = [input_boxes, np.array([[10.0, 10.0, 90.0, 60.0]])]
    masks_batch, scores_batch, _ = predictor.predict_batch(None, None, box_batch=boxes_batch, multimask_output=False)
    shown += [*masks_batch, *scores_batch]
    points_batch = [input_points, np.array([[[40, 30]], [[63, 53]]])]
    masks_batch, scores_batch, _ = predictor.predict_batch(points_batch, [input_labels] * 2, box_batch=None)
    for masks, scores in zip(masks_batch, scores_batch):
        shown.append(masks[range(len(masks)), np.argmax(scores, axis=-1)])
    return shown


def automatic_mask_generator_example(package: Import, weights: Path, folder: Path) -> list[Any]:
    build_sam2 = package("build_sam").build_sam2
    SAM2AutomaticMaskGenerator = package("automatic_mask_generator").SAM2AutomaticMaskGenerator  # noqa: N806
    sam2 = build_sam2(TINY, str(weights), apply_postprocessing=False, **OPTIONS)
    image, shown = make_clip(1).frames[0], []
    plain = SAM2AutomaticMaskGenerator(sam2, points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    finer = SAM2AutomaticMaskGenerator(
        model=sam2,
        points_per_side=4,
        points_per_batch=12,
        pred_iou_thresh=0.1,
        stability_score_thresh=0.3,
        stability_score_offset=0.1,
        mask_threshold=2.0,
        crop_n_layers=1,
        box_nms_thresh=0.9,
        crop_n_points_downscale_factor=2,
        min_mask_region_area=25.0,
        use_m2m=True,
    )
    for generator in (plain, finer):
        fitted(generator.predictor)
        masks = generator.generate(image)
        shown += [len(masks), list(masks[0])]
        for annotation in sorted(masks, key=lambda record: record["area"], reverse=True):
            mask = annotation["segmentation"]
            picture = np.ones((*mask.shape, 4))
            picture[mask] = 0.5
            shown += [picture, *(annotation[name] for name in ("bbox", "predicted_iou", "stability_score"))]
    return shown


def video_predictor_example(package: Import, weights: Path, folder: Path) -> list[Any]:
    build_sam2_video_predictor = package("build_sam").build_sam2_video_predictor
    options = {**OPTIONS, "hydra_overrides_extra": [*OPTIONS["hydra_overrides_extra"], CORRECTIONS_COUNT]}
    predictor = build_sam2_video_predictor(TINY, str(weights), **options)
    inference_state = predictor.init_state(video_path=str(folder))
    shown: list[Any] = [inference_state["images"].shape, inference_state["images"][2], inference_state["num_frames"]]

    def click(frame: int, obj: int, points: list, labels: list, **more: Any) -> None:
        _, out_obj_ids, out_mask_logits = predictor.add_new_points_or_box(
            inference_state=inference_state,
            frame_idx=frame,
            obj_id=obj,
            points=np.array(points, dtype=np.float32),
            labels=np.array(labels, np.int32),
            **more,
        )
        shown.extend([list(out_obj_ids), out_mask_logits, out_mask_logits.dtype])

    def propagate() -> None:
        for out_frame_idx, out_obj_ids, out_mask_logits in predictor.propagate_in_video(inference_state):
            shown.extend([out_frame_idx, list(out_obj_ids), out_mask_logits, out_mask_logits.device.type])

    # One object by one click and by two, tracked, corrected on a later frame and tracked again.
    click(0, 1, [[110, 75]], [1])
    click(0, 1, [[110, 75], [125, 60]], [1, 1])
    propagate()
    click(3, 1, [[41, 40]], [0])
    propagate()

    # By a box, then by the box and a click.
    predictor.reset_state(inference_state)
    box = np.array([30, 20, 90, 100], dtype=np.float32)
    shown.append(predictor.add_new_points_or_box(inference_state=inference_state, frame_idx=0, obj_id=4, box=box)[2])
    click(0, 4, [[46, 43]], [1], box=box)
    propagate()

    # Two objects.
    predictor.reset_state(inference_state)
    click(0, 2, [[20, 30]], [1])
    click(0, 2, [[20, 30], [27, 21]], [1, 0])
    click(0, 3, [[40, 107]], [1])
    propagate()
    return shown


NOTEBOOKS = [image_predictor_example, automatic_mask_generator_example, video_predictor_example]


@pytest.fixture(scope="module")
def short_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(5).save(tmp_path_factory.mktemp("notebook") / "frames")


def distance(a: Any, b: Any) -> float:
    """Of what two runs show; infinite for values of other shapes, types or words."""
    if isinstance(a, (np.ndarray, torch.Tensor)):
        x, y = (
            torch.as_tensor(np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v.detach()).double()
            for v in (a, b)
        )
        return float((x - y).abs().max()) if x.shape == y.shape and type(a) is type(b) else float("inf")
    if isinstance(a, (float, list)) and not isinstance(a, torch.Size) and np.asarray(a).dtype.kind == "f":
        return float(np.abs(np.subtract(a, b)).max())
    return 0.0 if a == b else float("inf")


def run(notebook: Callable, name: str, weights: Path, folder: Path) -> list[Any]:
    return notebook(lambda module: import_module(f"{name}.{module}"), weights, folder)


@pytest.mark.full
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda function: function.__name__)
def test_a_notebook_with_only_the_import_changed(
    notebook: Callable, tiny_weights: Path, short_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("sam2.utils.misc"), "get_connected_components", opencv_regions)
    expected = run(notebook, "sam2", tiny_weights, short_clip)
    shown = run(notebook, "sam2_mem", tiny_weights, short_clip)
    assert len(shown) == len(expected) >= 20
    assert max(map(distance, shown, expected)) < TOLERANCE
    # The control: other weights of the mask decoder are noticed.
    state = torch.load(tiny_weights, weights_only=True)["model"]
    state["sam_mask_decoder.mask_tokens.weight"] *= 1.1
    changed = tiny_weights.with_name("changed.pt")
    torch.save({"model": state}, changed)
    other = run(notebook, "sam2_mem", changed, short_clip)
    assert len(other) != len(expected) or max(map(distance, other, expected)) > 10 * TOLERANCE
