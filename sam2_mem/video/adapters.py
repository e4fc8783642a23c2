"""Masks of a frame as other libraries take them. Nothing of those is needed before it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from .palette import object_color

if TYPE_CHECKING:
    import supervision

LayerData = tuple[np.ndarray, dict[str, Any], str]
"""What napari makes a layer of: data, keyword arguments, kind. `viewer._add_layer_from_data(*layer)`, or what a reader plugin returns."""


def to_detections(
    masks: Mapping[int, np.ndarray], scores: Mapping[int, float] | None = None, names: Mapping[int, str] | None = None
) -> supervision.Detections:
    """The visible objects of a frame as supervision's `Detections`: boxes of whole pixels, masks, `tracker_id` for object ids.

    Args:
        masks: (H, W) bool, by object id.
        scores: of objects, for `confidence`; None for none.
        names: of objects' classes, for `data["class_name"]` and `class_id`; None: all are of class 0.

    Raises:
        ImportError: without supervision (`pip install "sam2_mem[supervision]"`).
        ValueError: a score or a name is missing.
    """
    if find_spec("supervision") is None:
        raise ImportError('expected the package supervision, got none: pip install "sam2_mem[supervision]"')
    from supervision import Detections

    visible = [obj_id for obj_id in sorted(masks) if masks[obj_id].any()]
    for label, values in (("a score", scores), ("a name", names)):
        if values is not None and (missing := [obj_id for obj_id in visible if obj_id not in values]):
            raise ValueError(f"expected {label} for every object, got none for {missing}")
    if not visible:
        return Detections.empty()
    boxes = [cv2.boundingRect(masks[obj_id].astype(np.uint8)) for obj_id in visible]
    classes = sorted(set(names.values())) if names is not None else []
    return Detections(
        xyxy=np.array([(x, y, x + width, y + height) for x, y, width, height in boxes], np.float32),
        mask=np.stack([masks[obj_id] for obj_id in visible]),
        confidence=None if scores is None else np.array([scores[obj_id] for obj_id in visible], np.float32),
        class_id=np.array([0 if names is None else classes.index(names[obj_id]) for obj_id in visible]),
        tracker_id=np.array(visible),
        data={} if names is None else {"class_name": np.array([names[obj_id] for obj_id in visible])},
    )


def to_napari_layers(
    images: Iterable[np.ndarray], masks: Iterable[Mapping[int, np.ndarray]], *, name: str = "video"
) -> list[LayerData]:
    """A video and its masks as layers of napari: pictures (T, H, W, 3), and labels (T, H, W) whose values are object ids.

    Where masks overlap the lower id is shown, as in a palette PNG.

    Args:
        images: (H, W, 3) uint8 of every frame.
        masks: (H, W) bool by object id, of every frame.
        name: of the first layer.
    """
    pictures = np.stack(list(images))
    labels = np.zeros(pictures.shape[:3], np.int32)
    for frame, by_id in zip(labels, masks, strict=True):
        for obj_id in sorted(by_id, reverse=True):
            frame[by_id[obj_id]] = obj_id
    present = [int(value) for value in np.unique(labels) if value]
    colors = {obj_id: (*(channel / 255 for channel in object_color(obj_id)), 1.0) for obj_id in present}
    transparent: dict[int | None, tuple[float, ...]] = {None: (0.0, 0.0, 0.0, 0.0), 0: (0.0, 0.0, 0.0, 0.0)}
    return [
        (pictures, {"name": name, "rgb": True}, "image"),
        (labels, {"name": "objects", "opacity": 0.5, "colormap": transparent | colors}, "labels"),
    ]
