"""Automatic masks beside SAM 2's: its helpers on random input, and the generator on one network with equal weights.

The reference fills no holes on a CPU, for want of its CUDA extension; here it gets OpenCV's regions in the place of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from clips import make_clip
from helpers import SCORE_HEAD, TINY, lively_state, needs_reference, opencv_regions, save_state
from micro import one_thread, picture  # noqa: F401
from torch import Tensor

import sam2_mem
from sam2_mem import SAM2AutomaticMaskGenerator, SAM2ImagePredictor, build_sam2
from sam2_mem.utils import amg

SIZE = 128
TOLERANCE = 1e-4
NUMBERS = ("predicted_iou", "stability_score", "bbox", "point_coords", "crop_box")


@dataclass(frozen=True)
class Pair:
    """A network of ours and the reference's, of equal weights."""

    ours: Any
    reference: Any

    def generators(self, **arguments: Any) -> tuple[Any, Any]:
        kind = import_module("sam2.automatic_mask_generator").SAM2AutomaticMaskGenerator
        result = SAM2AutomaticMaskGenerator(self.ours, **arguments), kind(self.reference, **arguments)
        result[1].predictor._bb_feat_sizes = feature_sizes()
        return result

    def predictors(self, **arguments: Any) -> tuple[Any, Any]:
        kind = import_module("sam2.sam2_image_predictor").SAM2ImagePredictor
        result = SAM2ImagePredictor(self.ours, **arguments), kind(self.reference, **arguments)
        result[1]._bb_feat_sizes = feature_sizes()
        return result


def feature_sizes() -> list[tuple[int, int]]:
    """The reference takes those of an image size of 1024 for granted."""
    return [(SIZE // stride,) * 2 for stride in (4, 8, 16)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    state = lively_state(TINY)
    for name in ("weight", "bias"):  # predicted IoUs that differ, so that they order masks
        state[f"sam_mask_decoder.iou_prediction_head.layers.2.{name}"] *= 5
    state[f"{SCORE_HEAD}bias"] += 10
    weights = save_state(state, tmp_path_factory.mktemp("weights") / "tiny.pt")
    options = {"device": "cpu", "hydra_overrides_extra": [f"++model.image_size={SIZE}"]}
    return Pair(
        build_sam2(TINY, weights, **options), import_module("sam2.build_sam").build_sam2(TINY, str(weights), **options)
    )


@pytest.fixture
def reference_with_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("sam2.utils.misc"), "get_connected_components", opencv_regions)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return make_clip(1).frames[0]


BASE = {
    "points_per_side": 4,
    "points_per_batch": 12,
    "pred_iou_thresh": 0.0,
    "mask_threshold": 2.7,  # high, so that masks of random weights are a few blobs, with boxes of their own
    "stability_score_offset": 0.1,
    "stability_score_thresh": 0.4,
}
CASES = {
    "plain": {},
    "one mask a click": {"multimask_output": False},
    "thresholds": {"pred_iou_thresh": 0.35, "stability_score_thresh": 0.5, "box_nms_thresh": 0.9},
    "crops": {
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "crop_overlap_ratio": 0.3,
        "box_nms_thresh": 0.9,
    },
    "once more": {"use_m2m": True, "stability_score_offset": 0.07, "mask_threshold": 2.6},
    "regions": {"min_mask_region_area": 25.0, "points_per_side": 3},
    "own grid": {"points_per_side": None, "point_grids": [np.array([[0.2, 0.3], [0.7, 0.6], [0.5, 0.5]])]},
    "nothing": {"pred_iou_thresh": 1e9},
}


def same_records(a: list[dict], b: list[dict]) -> bool:
    if len(a) != len(b) or any(x.keys() != y.keys() for x, y in zip(a, b)):
        return False
    masks = all(np.array_equal(x["segmentation"], y["segmentation"]) and x["area"] == y["area"] for x, y in zip(a, b))
    return masks and all(np.allclose(x[n], y[n], rtol=0, atol=TOLERANCE) for x, y in zip(a, b) for n in NUMBERS)


@needs_reference
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.full] if case not in ("plain", "crops") else []) for case in CASES]
)
def test_the_generator_beside_the_reference(
    pair: Pair, image: np.ndarray, reference_with_regions: None, case: str
) -> None:
    ours, reference = pair.generators(**BASE | CASES[case])
    records, expected = ours.generate(image), reference.generate(image)
    assert same_records(records, expected)
    assert bool(expected) == (case != "nothing")
    if expected:
        # The controls: other arguments give other masks, and a mask of another pixel is noticed.
        assert case == "plain" or not same_records(records, pair.generators(**BASE)[0].generate(image))
        changed = [{**record, "segmentation": record["segmentation"].copy()} for record in records]
        changed[-1]["segmentation"][0, 0] ^= True
        assert not same_records(changed, expected)
        assert {type(value) for record in records for value in record.values()} == {
            type(value) for record in expected for value in record.values()
        }


@needs_reference
@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_run_lengths_beside_the_reference(pair: Pair, image: np.ndarray, mode: str) -> None:
    ours, reference = pair.generators(**BASE, output_mode=mode)
    records, expected = ours.generate(image), reference.generate(image)
    assert [r["segmentation"] for r in records] == [r["segmentation"] for r in expected] and len(expected) > 3


@needs_reference
@pytest.mark.parametrize("areas", [(0, 0), (40, 20.5)])
def test_holes_and_specks_of_the_image_predictor(
    pair: Pair, image: np.ndarray, reference_with_regions: None, areas: tuple
) -> None:
    options = {"max_hole_area": areas[0], "max_sprinkle_area": areas[1], "mask_threshold": 0.2}
    ours, reference = pair.predictors(**options)
    prompts = {"point_coords": np.array([[40.0, 60.0]]), "point_labels": np.array([1])}
    for predictor in (ours, reference):
        predictor.set_image(image)
    results = [p.predict(**prompts, return_logits=logits) for logits in (True, False) for p in (ours, reference)]
    assert np.abs(results[0][0] - results[1][0]).max() < TOLERANCE
    assert np.array_equal(results[2][0], results[3][0])
    assert [x.dtype for x in results[2]] == [x.dtype for x in results[3]] == [np.float32] * 3
    plain, _ = pair.predictors(mask_threshold=0.2)
    plain.set_image(image)
    assert (np.abs(plain.predict(**prompts, return_logits=True)[0] - results[1][0]).max() > 1) == (sum(areas) > 0)


# -- several images -----------------------------------------------------------------------------------------------------


BATCH = {
    "point_coords_batch": [np.array([[40.0, 60.0]]), np.array([[[20.0, 30.0]], [[60.0, 10.0]]])],
    "point_labels_batch": [np.array([1]), np.array([[1], [0]])],
    "box_batch": [np.array([20.0, 20.0, 90.0, 80.0]), np.array([[0.0, 0.0, 40.0, 40.0], [3.0, 3.0, 60.0, 50.0]])],
}


@needs_reference
def test_several_images_beside_the_reference(pair: Pair) -> None:
    images = [make_clip(1).frames[0], make_clip(1).frames[0][10:80, ::-1][:, :100].copy()]
    ours, reference = pair.predictors()
    for predictor in (ours, reference):
        predictor.set_image_batch(images)
    assert (ours.get_image_embedding() - reference.get_image_embedding()).abs().max() < TOLERANCE
    results = [p.predict_batch(**BATCH, multimask_output=False, return_logits=True) for p in (ours, reference)]
    for mine, theirs in zip(*results):
        assert [x.shape for x in mine] == [x.shape for x in theirs]
        assert max(np.abs(x - y).max() for x, y in zip(mine, theirs)) < TOLERANCE
    # The control: the second image is not the first.
    ours.set_image_batch(images[::-1])
    other = ours.predict_batch(*(values[::-1] for values in BATCH.values()), multimask_output=False, return_logits=True)
    assert np.abs(other[0][1] - results[0][0][0]).max() < TOLERANCE
    alone = ours.predict_batch([BATCH["point_coords_batch"][0], None], [[1], None], [None, BATCH["box_batch"][1]])
    assert [x.shape[0] for x in alone[0]] == [3, 2]


@pytest.fixture(scope="module")
def network() -> Any:
    return build_sam2("hiera_nano", "random", device="cpu")


def test_what_a_batch_refuses(network: Any) -> None:
    predictor = SAM2ImagePredictor(network)
    with pytest.raises(RuntimeError, match="call set_image_batch first"):
        predictor.predict_batch([[[3, 4]]], [[1]])
    with pytest.raises(ValueError, match="expected a list of at least one image, got ndarray"):
        predictor.set_image_batch(picture(3, 48, 64))
    with pytest.raises(ValueError, match="expected a list of at least one image"):
        predictor.set_image_batch([])
    predictor.set_image_batch([picture(3, 48, 64), picture(4, 40, 30)])
    with pytest.raises(RuntimeError, match="gave several images to segment; call predict_batch"):
        predictor.predict([[3, 4]], [1])
    with pytest.raises(ValueError, match="expected box_batch with one item for each of 2 images, got 3"):
        predictor.predict_batch(box_batch=[[1, 2, 3, 4]] * 3)


def test_what_the_generator_refuses(network: Any) -> None:
    for arguments in ({"points_per_side": None}, {"point_grids": [np.zeros((1, 2))]}):
        with pytest.raises(ValueError, match="either points_per_side or point_grids, got (neither|both)"):
            SAM2AutomaticMaskGenerator(network, **arguments)
    with pytest.raises(ValueError, match="output_mode out of binary_mask, uncompressed_rle, coco_rle, got 'png'"):
        SAM2AutomaticMaskGenerator(network, output_mode="png")
    with pytest.raises(ValueError, match="a grid for the image and for each of 1 layers of crops, got 1"):
        SAM2AutomaticMaskGenerator(network, points_per_side=None, point_grids=[np.zeros((1, 2))], crop_n_layers=1)
    with pytest.raises(ValueError, match="at least one point along a side"):
        SAM2AutomaticMaskGenerator(network, points_per_side=1, crop_n_layers=1, crop_n_points_downscale_factor=2)


# -- the hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SAM2ImagePredictor, SAM2AutomaticMaskGenerator])
def test_arguments_of_class_and_builder_from_the_hub(kind: type, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def build(model_id: str, **arguments: Any) -> Any:
        seen.update(arguments, model_id=model_id)
        return network

    monkeypatch.setattr("sam2_mem.build_sam.build_sam2_hf", build)
    built = kind.from_pretrained("facebook/sam2.1-hiera-tiny", device="cpu", mask_threshold=0.3)
    assert built.mask_threshold == 0.3 and seen == {"device": "cpu", "model_id": "facebook/sam2.1-hiera-tiny"}
    assert sam2_mem.SAM2AutomaticMaskGenerator is SAM2AutomaticMaskGenerator


# -- helpers ------------------------------------------------------------------------------------------------------------


def blobs(seed: int, count: int = 6, height: int = 23, width: int = 31) -> Tensor:
    """Random masks (N, H, W) bool; the first is empty, the second full."""
    noise = np.random.default_rng(seed).normal(size=(count, height, width)).astype(np.float32)
    masks = np.stack([cv2.GaussianBlur(n, (0, 0), 1.5) > 0.3 for n in noise])
    masks[0], masks[1] = False, True
    return torch.from_numpy(masks)


def calls(seed: int) -> dict[str, tuple]:
    masks, boxes = blobs(seed), torch.tensor([[0, 0, 30, 22], [5, 30, 60, 70], [25, 3, 90, 40]])
    rle = {"size": [3, 4], "counts": [1, 4, 2, 5]}
    return {
        "build_point_grid": (7,),
        "build_all_layer_point_grids": (32, 2, 2),
        "generate_crop_boxes": ((37, 83), 3, 512 / 1500),
        "batched_mask_to_box": (masks,),
        "box_xyxy_to_xywh": (boxes[1],),
        "is_box_near_crop_edge": (boxes, [10, 20, 110, 120], [0, 0, 130, 120]),
        "uncrop_boxes_xyxy": (boxes[:, None].repeat(1, 2, 1), [3, 4, 9, 9]),
        "uncrop_points": (boxes[:, :2].float(), [3, 4, 9, 9]),
        "uncrop_masks": (masks, [3, 4, 34, 27], 40, 50),
        "calculate_stability_score": (torch.randn(3, 2, 9, 9, generator=torch.Generator().manual_seed(seed)), 0.1, 0.4),
        "mask_to_rle_pytorch": (masks,),
        "rle_to_mask": (rle,),
        "area_from_rle": (rle,),
        "coco_encode_rle": (rle,),
    }


def plain(value: Any) -> Any:
    """Values that `==` compares, with types and shapes of tensors."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@needs_reference
@pytest.mark.parametrize("name", calls(0))
def test_a_helper_beside_the_reference(name: str) -> None:
    reference = import_module("sam2.utils.amg")
    mine, theirs = (plain(getattr(module, name)(*calls(1)[name])) for module in (amg, reference))
    assert mine == theirs
    if any(plain(a) != plain(b) for a, b in zip(calls(1)[name], calls(2)[name])):
        assert plain(getattr(amg, name)(*calls(2)[name])) != theirs, "the control: other masks"


@needs_reference
@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("area", [8, 10_000])
def test_small_regions_beside_the_reference(mode: str, area: int) -> None:
    reference = import_module("sam2.utils.amg")
    changes = []
    for mask in blobs(5, 12).numpy():
        mine, theirs = (module.remove_small_regions(mask, area, mode) for module in (amg, reference))
        assert np.array_equal(mine[0], theirs[0]) and mine[1] == theirs[1]
        changes.append(mine[1])
    assert any(changes) and not all(changes)
    with pytest.raises(ValueError, match="expected mode 'holes' or 'islands', got 'specks'"):
        amg.remove_small_regions(mask, area, "specks")


@needs_reference
def test_postprocessing_of_regions_beside_the_reference() -> None:
    module = import_module("sam2.automatic_mask_generator")
    masks = torch.cat([blobs(5)[2:], blobs(5)[2:]])
    masks[4:, 0, 0] ^= True
    results = []
    for kind, place in ((SAM2AutomaticMaskGenerator, amg), (module.SAM2AutomaticMaskGenerator, module)):
        data = place.MaskData(rles=place.mask_to_rle_pytorch(masks), boxes=place.batched_mask_to_box(masks))
        data = kind.postprocess_small_regions(data, 9, 0.7)
        results.append({name: plain(column) for name, column in data.items()})
    assert results[0] == results[1] and 0 < len(results[0]["rles"]) < len(masks)
    empty = amg.MaskData(rles=[])
    assert SAM2AutomaticMaskGenerator.postprocess_small_regions(empty, 9, 0.7) is empty


@needs_reference
def test_columns_beside_the_reference() -> None:
    results = []
    for module in (amg, import_module("sam2.utils.amg")):
        data = module.MaskData(a=torch.arange(4), b=np.arange(4.0), c=list("wxyz"))
        data.filter(torch.tensor([True, False, True, True]))
        data.cat(module.MaskData(a=torch.tensor([9]), b=np.array([9.0]), c=["v"], d=[1]))
        del data["d"]
        data.filter(torch.tensor([3, 0]))
        data["e"] = torch.ones(2)
        data.to_numpy()
        results.append({name: plain(column) for name, column in data.items()})
    assert results[0] == results[1] and results[0]["c"] == ["v", "w"]
    with pytest.raises(TypeError, match="expected a as a list, an array or a tensor, got str"):
        amg.MaskData(a="x")


def test_slices_of_equal_length() -> None:
    assert list(amg.batch_iterator(2, [1, 2, 3], "abc")) == [[[1, 2], "ab"], [[3], "c"]]
    with pytest.raises(ValueError, match=r"expected arguments of one length, got \[1, 2\]"):
        list(amg.batch_iterator(2, [1], [1, 2]))
    assert Path(amg.__file__).parent.name == "utils"
