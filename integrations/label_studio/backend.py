#!/usr/bin/env python3
"""A machine-learning backend of Label Studio: polygons from clicks and boxes on pictures, boxes tracked through videos.

    pip install "sam2_mem[studio]"
    python integrations/label_studio/backend.py --files /data/label-studio --config nano_v2
    python integrations/label_studio/backend.py --files ... --config sam2.1_hiera_t --weights sam2.1_hiera_tiny.pt --policy samurai

Then add http://localhost:9090 as a model in the settings of a project. README.md says which labelling configs it answers.
"""

from __future__ import annotations

import argparse
import logging
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import cv2
import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from PIL import Image

from sam2_mem import SAM2ImagePredictor, SAM2VideoPredictor, __version__, build_sam2_video_predictor
from sam2_mem.video import mask_polygons, open_video

Json = dict[str, Any]
PROMPTS = ("keypointlabels", "rectanglelabels")
TOLERANCE = 1.0
"""Pixels that a polygon may leave the edge of its mask by: what an annotator can still take hold of."""


class Control(NamedTuple):
    """A tag of a labelling config: its name, and what it is drawn on."""

    name: str
    on: str


def controls(label_config: str) -> dict[str, Control]:
    """By the kind of the tag, the first of each."""
    found: dict[str, Control] = {}
    for tag in ElementTree.fromstring(label_config).iter():
        if "name" in tag.attrib and "toName" in tag.attrib:
            found.setdefault(tag.tag.lower(), Control(tag.attrib["name"], tag.attrib["toName"]))
    return found


def file_of(address: str, root: Path) -> Path:
    """The file that a task names: one of Label Studio's local files or uploads, or a path, in ``root``.

    Raises:
        ValueError: it is elsewhere.
        FileNotFoundError: it is not there.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and not parts.path.startswith("/data/"):
        raise ValueError(f"expected a file that Label Studio serves, got '{address}'; sync it to local storage")
    inside = parse_qs(parts.query).get("d", [parts.path.removeprefix("/data/")])[0]
    path = (root / inside).resolve() if not Path(inside).is_absolute() else Path(inside).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"expected a file in '{root}' (--files), got '{address}'")
    if not path.is_file():
        raise FileNotFoundError(
            f"expected '{path}' for '{address}', got no such file; is --files the folder of its media?"
        )
    return path


class Backend:
    """Answers for a predictor; one question at a time.

    Args:
        predictor: with a network and a policy.
        files: the folder of Label Studio's media.
    """

    def __init__(self, predictor: SAM2VideoPredictor, files: Path) -> None:
        self.video, self.image = predictor, SAM2ImagePredictor(predictor.model)
        self.files, self._lock = files, threading.Lock()

    def predict(self, task: Json, label_config: str, prompts: Sequence[Json]) -> list[Json]:
        """Results for one task: none without prompts."""
        tags = controls(label_config)
        boxes = [item for item in prompts if item.get("type") == "videorectangle"]
        with self._lock:
            if boxes and "videorectangle" in tags:
                return list(self._tracked(task, tags["videorectangle"], boxes))
            marks = [item for item in prompts if item.get("type") in PROMPTS]
            if marks and "polygonlabels" in tags:
                return list(self._outlined(task, tags["polygonlabels"], marks))
        return []

    def _outlined(self, task: Json, control: Control, marks: Sequence[Json]) -> Iterator[Json]:
        with Image.open(file_of(_address(task, ("image",)), self.files)) as picture:
            image = np.array(picture.convert("RGB"))
        height, width = image.shape[:2]
        self.image.set_image(image)
        points = [m for m in marks if m["type"] == "keypointlabels"]
        rectangle = next((m["value"] for m in marks if m["type"] == "rectanglelabels"), None)
        masks, scores, _ = self.image.predict(
            point_coords=np.array([_pixels(m["value"], width, height)[:2] for m in points]) if points else None,
            point_labels=np.array([int(m.get("is_positive", True)) for m in points]) if points else None,
            box=None if rectangle is None else _corners(rectangle, width, height),
            multimask_output=False,
        )
        label = next(iter(marks[0]["value"].get(marks[0]["type"], [])), None)
        for polygon in mask_polygons(np.asarray(masks[0]) > 0, tolerance=TOLERANCE):
            value = {"points": (100 * polygon / (width, height)).tolist(), "closed": True}
            value |= {} if label is None else {"polygonlabels": [label]}
            size = {"original_width": width, "original_height": height, "image_rotation": 0}
            yield {**_result(control, "polygonlabels", value, float(scores[0])), **size}

    def _tracked(self, task: Json, control: Control, boxes: Sequence[Json]) -> Iterator[Json]:
        """Each box from the last frame on which it was set, to the end of the video."""
        with open_video(file_of(_address(task, ("video",)), self.files)) as source:
            state = self.video.init_state(source)
            starts = {number: _last_key(box) for number, box in enumerate(boxes, start=1)}
            for number, start in starts.items():
                corners = _corners(start, source.width, source.height)
                self.video.add_new_points_or_box(state, start["frame"] - 1, number, box=corners)
            sequences: dict[int, list[Json]] = {number: [] for number in starts}
            first = min(start["frame"] for start in starts.values()) - 1
            for frame, numbers, logits in self.video.propagate_in_video(state, start_frame_idx=first):
                for number, mask in zip(numbers, (logits[:, 0] > 0).cpu().numpy()):
                    if frame + 1 >= starts[number]["frame"]:
                        sequences[number].append(_key(frame, mask, source.fps, sequences[number]))
            length, fps = source.num_frames or frame + 1, source.fps or 25.0
        for number, box in enumerate(boxes, start=1):
            value = {"framesCount": length, "duration": length / fps, "sequence": sequences[number]}
            value["labels"] = box["value"].get("labels", [])
            yield {**_result(control, "videorectangle", value, None), "id": box.get("id", uuid.uuid4().hex[:10])}


def _address(task: Json, kinds: Sequence[str]) -> str:
    """The value of the task's data of one of these kinds, or its only one."""
    data: Mapping[str, str] = task["data"]
    values = [data[kind] for kind in kinds if kind in data] or list(data.values())
    if len(values) != 1:
        raise ValueError(f"expected data with {kinds[0]}, got {sorted(data)}")
    return values[0]


def _pixels(value: Mapping[str, float], width: int, height: int) -> tuple[float, float, float, float]:
    """x, y, width, height of a region in percent."""
    x, y = value["x"] / 100 * width, value["y"] / 100 * height
    return x, y, value.get("width", 0) / 100 * width, value.get("height", 0) / 100 * height


def _corners(value: Mapping[str, float], width: int, height: int) -> np.ndarray:
    x, y, across, down = _pixels(value, width, height)
    return np.array([x, y, x + across, y + down], np.float32)


def _last_key(box: Json) -> Json:
    keys = [key for key in box["value"]["sequence"] if key.get("enabled", True)]
    if not keys:
        raise ValueError("expected a box that is visible on some frame, got one that is not")
    return max(keys, key=lambda key: key["frame"])


def _key(frame: int, mask: np.ndarray, fps: float | None, before: Sequence[Json]) -> Json:
    """A keyframe (frames count from 1): the box of a mask; where it is empty the last one, which is not shown."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    key = {"frame": frame + 1, "time": frame / (fps or 25.0), "rotation": 0, "enabled": bool(mask.any())}
    if not mask.any():
        latest = before[-1] if before else {"x": 0.0, "y": 0.0, "width": 0.0, "height": 0.0}
        return key | {name: latest[name] for name in ("x", "y", "width", "height")}
    rows, columns = mask.shape
    percent = {"x": x / columns, "y": y / rows, "width": width / columns, "height": height / rows}
    return key | {name: 100 * number for name, number in percent.items()}


def _result(control: Control, kind: str, value: Json, score: float | None) -> Json:
    result = {
        "id": uuid.uuid4().hex[:10],
        "from_name": control.name,
        "to_name": control.on,
        "type": kind,
        "value": value,
    }
    return result if score is None else {**result, "score": score}


def make_app(backend: Backend) -> FastAPI:
    """The four addresses that Label Studio asks."""
    app = FastAPI()
    version = f"sam2_mem {__version__} {type(backend.video.policy).__name__}"

    @app.get("/health")
    @app.get("/")
    def health() -> Json:
        return {"status": "UP", "model_class": "sam2_mem"}

    @app.post("/setup")
    def setup(body: Json) -> Json:
        controls(body.get("schema") or "<View/>")
        return {"model_version": version}

    @app.post("/predict")
    def predict(body: Json) -> Any:
        prompts = ((body.get("params") or {}).get("context") or {}).get("result") or []
        try:
            results = [
                {"result": backend.predict(task, body["label_config"], prompts), "model_version": version}
                for task in body["tasks"]
            ]
        except (ValueError, KeyError, OSError) as error:
            logging.exception("cannot answer")
            return JSONResponse({"detail": str(error)}, status_code=400)
        return {"results": results}

    @app.post("/webhook")
    def webhook(body: Json) -> Json:
        return {}

    return app


def main() -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True, help="the folder of Label Studio's media or local files")
    parser.add_argument("--config", default="nano_v2")
    parser.add_argument("--weights", help="default: those of the config")
    parser.add_argument("--policy", default="samurai", help="memory policy (default: samurai)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090)
    args = parser.parse_args()
    predictor = build_sam2_video_predictor(args.config, args.weights, device=args.device, memory_policy=args.policy)
    uvicorn.run(make_app(Backend(predictor, args.files)), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
