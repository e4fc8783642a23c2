"""What pages show of a session beside its frames."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pycocotools import mask as coco

from sam2_mem.studio.frame_store import FrameView
from sam2_mem.studio.run import PolicyRun
from sam2_mem.studio.session import StudioSession
from sam2_mem.tracking.session_log import SessionStep


def session_state(session: StudioSession) -> dict[str, Any]:
    """Everything about a session that is not of one frame, as plain values."""
    video, worker = session.video, session.worker
    length, exact = video.length
    run = session.runs[0]
    return {
        "video": session.log.video,
        "frames": length,
        "exact": exact,
        "indexed": video.indexed,
        "live": video.live,
        "height": video.source.height,
        "width": video.source.width,
        "fps": video.source.fps or 24.0,
        "policies": [setup.as_json() for setup in session.setups],
        "stale": len(session.runs) > 1 and session.compared != session.log.steps,
        "objects": [{"id": i, "name": session.log.names.get(i, f"object {i}")} for i in run.state.obj_ids],
        "prompts": prompts_of(session.log.steps),
        "job": worker.job,
        "reached": worker.reached,
        "message": worker.message,
        "messages": worker.messages,
        "pages": len(session.changes.pages),
        "undo": len(session.undo_stack),
        "redo": len(session.redo_stack),
    }


def prompts_of(steps: Iterable[SessionStep]) -> dict[int, dict[int, dict[str, Any]]]:
    """What has been said after some steps, by frame and object."""
    said: dict[int, dict[int, dict[str, Any]]] = {}
    for step in steps:
        if step.kind == "remove":
            said = {f: {i: p for i, p in by_id.items() if i != step.obj_id} for f, by_id in said.items()}
        elif step.kind in ("prompt", "clear"):
            by_object = said.setdefault(step.frame or 0, {})
            by_object.pop(step.obj_id or 0, None)
            if step.kind == "prompt":
                by_object[step.obj_id or 0] = step.as_json()
    return {f: by_id for f, by_id in said.items() if by_id}


def differences(first: PolicyRun, second: PolicyRun, size: list[int]) -> dict[int, float]:
    """By frame of both runs the smallest IoU of an object's two masks, 1 where both are empty; ``size`` is (H, W)."""
    pairs = ((f, first.frames[f], second.frames[f]) for f in first.frames if f in second.frames)
    return {f: _agreement(a, b, size) for f, a, b in pairs if b.masks}


def _agreement(first: FrameView, second: FrameView, size: list[int]) -> float:
    ious = [_iou(first.masks[i], second.masks[i], size) for i in first.masks.keys() & second.masks.keys()]
    return round(min(ious, default=1.0), 4)


def _iou(first: str, second: str, size: list[int]) -> float:
    a, b = ({"size": size, "counts": counts.encode("ascii")} for counts in (first, second))
    if not coco.area(a) and not coco.area(b):
        return 1.0
    return float(coco.iou([a], [b], [0])[0, 0])
