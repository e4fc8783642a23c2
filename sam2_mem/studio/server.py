"""The studio's requests. Every one goes through ``Gate`` first; paths are confined to the working folder."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, Field

from sam2_mem.build_sam import build_policy
from sam2_mem.config import choice_names, policy_names
from sam2_mem.evaluation.inspection.timeline import drawings
from sam2_mem.studio import export as exports
from sam2_mem.studio.camera import STOPPED, RecordedCamera, new_recording
from sam2_mem.studio.frame_store import FrameView
from sam2_mem.studio.pictures import cropped, ids_png, jpeg, object_ids
from sam2_mem.studio.policies import about, policy_form
from sam2_mem.studio.security import UPLOAD_PATH, Gate, OutsideFolderError, confined
from sam2_mem.studio.session import NotIndexedError, StudioSession
from sam2_mem.studio.setups import Networks, RunSetup
from sam2_mem.studio.summary import differences, prompts_of, session_state
from sam2_mem.studio.uploads import receive
from sam2_mem.studio.worker import BusyError, error_words
from sam2_mem.tracking.session_log import SessionLog, SessionStep, load_session, step_from_json
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.video import VideoSource, draw_overlay
from sam2_mem.video.palette import object_color
from sam2_mem.video.sources import VIDEO_EXTENSIONS
from sam2_mem.video.stored import IMAGE_EXTENSIONS
from sam2_mem.video.streams import CameraSource

MAX_SESSIONS = 8
WAIT = 10.0
"""Seconds that a page's question for changes may stay open."""
CHART_FRAMES = 240
"""Frames of a video that are drawn in one chart."""
SHARED = Path(str(files("sam2_mem.evaluation") / "templates" / "charts.js"))
"""The script that the page has in common with the inspection page."""
STATIC = Path(str(files("sam2_mem.studio") / "static"))
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass
class Studio:
    """What a server works with.

    Attributes:
        predictor: the network, and the policy to begin with.
        folder: the working folder; nothing outside is read or written.
        config: name of the network's config, for logs and scripts.
        checkpoint: its weights, None for those of the config.
        note: what a user should know of the network.
        first_video: a path that the page opens by itself.
        camera: opens the camera of an index.
        archive_bytes: what a run keeps of frames that its bank has let go, see ``Networks``.
    """

    predictor: SAM2VideoPredictor
    folder: Path
    config: str = "nano_v2"
    checkpoint: str | None = None
    note: str = ""
    first_video: str | None = None
    policy: str = "fifo"
    sessions: dict[str, StudioSession] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    opened: int = 0
    camera: Callable[[int], VideoSource] = CameraSource
    archive_bytes: int | None = None

    def __post_init__(self) -> None:
        self.networks = Networks(self.predictor, self.config, self.checkpoint, self.folder, self.archive_bytes)

    def open(self, path: str, policy: str) -> str:
        """Open a video, or a saved session; the id of the session."""
        file = confined(self.folder, path)
        log = SessionLog(video=path, config=self.config, checkpoint=self.checkpoint, policy=policy)
        saved_at = file
        saved = load_session(file) if path.endswith(exports.SESSION_ENDING) else None
        if saved is not None:
            file = confined(self.folder, saved.video)
            if not file.exists():
                raise FileNotFoundError(
                    f"the video of this session, '{saved.video}', is not there; put it back, and open it again"
                )
            log = SessionLog(**{**vars(saved), "steps": (), "masks": {}})
        key = self._add(lambda: StudioSession(file, self.networks, log))
        if saved is not None:
            session = self.sessions[key]
            about = exports.state_of(session, saved_at.read_text(encoding="utf-8"))
            session.reopen(saved, lambda run: run.load(exports.state_path(saved_at), about))
        return key

    def open_camera(self, index: int, policy: str) -> str:
        """Begin to record from a camera, and open that; the id of the session. ValueError where there is no such camera."""
        camera = self.camera(index)
        folder = new_recording(self.folder)
        video = folder.relative_to(self.folder).as_posix()
        log = SessionLog(video=video, config=self.config, checkpoint=self.checkpoint, policy=policy)
        try:
            source = RecordedCamera(camera, folder)
        except ValueError:
            folder.rmdir()
            raise
        key = self._add(lambda: StudioSession(folder, self.networks, log, source))
        session = self.sessions[key]

        def tell() -> None:
            if source.ended not in ("", STOPPED):
                session.worker.say(f"the camera has ended: {source.ended}")
            session.changes.note()

        source.on_frame = tell
        return key

    def _add(self, session: Callable[[], StudioSession]) -> str:
        with self.lock:
            if len(self.sessions) >= MAX_SESSIONS:
                raise ValueError(f"{MAX_SESSIONS} videos are open already; close one first")
            self.opened += 1
            key = f"s{self.opened}"
            self.sessions[key] = session()
            return key

    def listing(self, path: str) -> dict[str, Any]:
        """What can be opened in a folder: sub-folders, videos (files, and folders of images), saved sessions."""
        folder = confined(self.folder, path)
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        root = self.folder.resolve()
        items = []
        for entry in entries:
            kind = _kind(entry)
            if kind is not None and entry.resolve().is_relative_to(root):
                items.append({"name": entry.name, "path": entry.resolve().relative_to(root).as_posix(), "kind": kind})
        here = folder.relative_to(root).as_posix()
        return {"path": "" if here == "." else here, "items": items}

    def close(self) -> None:
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()


def _kind(path: Path) -> str | None:
    """video, images, folder or session; None for what the studio does not open."""
    if path.is_dir():
        pictures = (entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_EXTENSIONS)
        return "images" if next(pictures, None) is not None else "folder"
    if path.name.endswith(exports.SESSION_ENDING):
        return "session"
    return "video" if path.suffix.lower() in VIDEO_EXTENSIONS else None


class Opening(BaseModel):
    path: str
    policy: str | None = None


class CameraOpening(BaseModel):
    index: int = Field(default=0, ge=0, le=99)
    policy: str | None = None


class Pass(BaseModel):
    frame: int
    reverse: bool = False
    max_frames: int | None = None


class Choice(BaseModel):
    name: str
    fields: dict[str, Any] = Field(default_factory=dict)
    network: str = ""
    distiller: str = "none"
    bound: str = "none"
    max_bytes: int | None = Field(default=None, ge=1)

    def setup(self) -> RunSetup:
        return RunSetup(policy=self.name, **self.model_dump(exclude={"name"}))


class NewName(BaseModel):
    obj_id: int
    name: str = Field(max_length=60)


class Export(BaseModel):
    kinds: list[str]
    folder: str | None = None
    run: int = 0


def studio_app(studio: Studio, token: str, hosts: list[str]) -> Gate:
    """The ASGI application; ``hosts`` are the values of the header Host that it answers to."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.studio = studio
    statuses: dict[type[Exception], int] = dict.fromkeys((ValueError, OSError, RuntimeError, TypeError), 400)
    for error, status in {**statuses, OutsideFolderError: 403, BusyError: 409, NotIndexedError: 503}.items():
        app.add_exception_handler(error, _telling(status))
    for router in (pages, videos, work):
        app.include_router(router)
    return Gate(app, token, hosts)


def _telling(status: int) -> Any:
    def answer(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": error_words(error)}, status)

    return answer


def _studio(request: Request) -> Studio:
    return request.app.state.studio


def _session(request: Request) -> StudioSession:
    key = request.path_params["key"]
    try:
        return _studio(request).sessions[key]
    except KeyError:
        raise ValueError("this video was closed, or the studio was started anew; open it again") from None


# -- the page, and what can be opened ---------------------------------------------------------------------------------

pages = APIRouter()


@pages.get("/")
def page() -> Response:
    return _static("index.html")


@pages.get("/static/{name}")
def _static(name: str) -> Response:
    path = SHARED if name == SHARED.name else STATIC / name
    if "/" in name or path.suffix not in MEDIA_TYPES or not path.is_file():
        return JSONResponse({"detail": f"there is no {name}"}, 404)
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers={"cache-control": "no-cache"})


@pages.get("/api/start")
def start(request: Request) -> dict[str, Any]:
    studio = _studio(request)
    return {
        "network": studio.config,
        "note": studio.note,
        "folder": studio.folder.resolve().name,
        "first": studio.first_video,
        "policy": studio.policy,
        "policies": policy_names(),
        "networks": {name: name or studio.config for name in studio.networks.available()},
        "distillers": choice_names("distiller"),
        "bounds": choice_names("memory_bound"),
        "colors": ["#{:02x}{:02x}{:02x}".format(*object_color(i)) for i in range(1, 256)],
        "sessions": {key: session.log.video for key, session in studio.sessions.items()},
    }


@pages.get("/api/files")
def list_files(request: Request, path: str = "") -> dict[str, Any]:
    return _studio(request).listing(path)


@pages.get("/api/policies/{name}")
def form_of_policy(name: str) -> dict[str, Any]:
    policy = build_policy(name)
    return {"name": name, "about": about(policy), "fields": policy_form(policy)}


# -- one video --------------------------------------------------------------------------------------------------------

videos = APIRouter(prefix="/api/sessions")


@videos.post("")
def open_video_or_session(request: Request, opening: Opening) -> dict[str, Any]:
    studio = _studio(request)
    key = studio.open(opening.path, opening.policy or studio.policy)
    return {"key": key, **session_state(studio.sessions[key])}


@pages.post("/api/camera")
def open_camera(request: Request, camera: CameraOpening) -> dict[str, Any]:
    studio = _studio(request)
    key = studio.open_camera(camera.index, camera.policy or studio.policy)
    return {"key": key, **session_state(studio.sessions[key])}


@pages.post(UPLOAD_PATH)
async def upload(request: Request, name: str) -> dict[str, Any]:
    """A video as the body of the request; where it is in the working folder."""
    folder = _studio(request).folder
    path = await receive(folder, name, int(request.headers.get("content-length", 0)), request.stream())
    return {"path": path.resolve().relative_to(folder.resolve()).as_posix()}


@videos.delete("/{key}")
def close_session(request: Request, key: str) -> dict[str, Any]:
    session = _session(request)
    del _studio(request).sessions[key]
    session.close()
    return {}


@videos.get("/{key}/frame/{index}")
def frame(request: Request, index: int, width: int | None = None) -> Response:
    video = _session(request).video
    try:
        image = video.frame(index).image
    except (ValueError, OSError) as error:
        raise type(error)(video.explained(error)) from error
    return Response(jpeg(image, width), media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


@videos.get("/{key}/mask/{index}")
def mask(request: Request, index: int, run: int = 0, crop: bool = False) -> Response:
    """Object ids as a PNG; with ``crop`` only the part that has any, the header x-origin says where that lies."""
    session = _session(request)
    view = session.runs[run].frames.get(index) if run < len(session.runs) else None
    ids = object_ids({} if view is None else view.masks, (session.video.source.height, session.video.source.width))
    x, y, ids = cropped(ids) if crop else (0, 0, ids)
    headers = {"cache-control": "no-store", "x-origin": f"{x},{y}"}
    return Response(ids_png(ids), media_type="image/png", headers=headers)


@videos.get("/{key}/memory/{index}")
def memory(request: Request, index: int, obj_id: int, run: int = 0) -> dict[str, Any]:
    session = _session(request)
    record = session.runs[run].memory(index, obj_id) if run < len(session.runs) else None
    return {"record": record}


@videos.get("/{key}/charts/{index}")
def charts(request: Request, index: int, obj_id: int, run: int = 0) -> dict[str, Any]:
    """Memory through time, around a frame: the numbers of the frames, and the drawings of the inspection page as SVG."""
    session = _session(request)
    if run >= len(session.runs):
        return {"frames": [], "drawings": []}
    name = session.setups[run].as_json()["label"]
    window = range(max(0, index - CHART_FRAMES // 2), index + CHART_FRAMES // 2)
    record = session.runs[run].records(obj_id, window, name)
    pictures = drawings(record, session.runs[run].styles()) if record.frames else []
    return {"frames": [frame.frame for frame in record.frames], "drawings": [drawing.svg() for drawing in pictures]}


@videos.get("/{key}/changes")
def changes(request: Request, since: int = 0, wait: float = WAIT, page: str = "") -> dict[str, Any]:
    """What is newer than version ``since``; stays open until there is something, or for ``wait`` seconds. ``page`` is a
    name that the page has made up for itself."""
    session = _session(request)
    if page:
        session.changes.visit(page)
    version, keys = session.changes.since(since, min(wait, WAIT))
    frames: list[dict[int, Any]] = [{}, {}]
    for run, index in keys:
        view = session.runs[run].frames.get(index) if run < len(session.runs) else None
        frames[run][index] = None if view is None else view.summary()
    return {"version": version, "frames": frames, "state": session_state(session)}


@videos.get("/{key}/alternatives")
def alternatives(request: Request, obj_id: int) -> dict[str, Any]:
    """The masks that an object could have on the frame tracked last, as small pictures; none while something is running."""
    session = _session(request)
    items = [] if session.worker.job is not None else session.runs[0].alternatives(obj_id)
    if items and obj_id in prompts_of(session.log.steps).get(items[0].frame, {}):
        items = []  # what was said there stands
    shown = []
    for item in items:
        image = session.video.source[item.frame].image
        drawn = draw_overlay(image, {obj_id: (item.mask > 0).cpu().numpy()}, labels=False)
        picture = "data:image/jpeg;base64," + base64.b64encode(jpeg(drawn, 160)).decode()
        scores = {"iou": item.iou, "objectness": item.objectness, "pathway": item.pathway}
        shown.append({"number": item.number, "shown": item.is_shown, "picture": picture, **scores})
    return {"frame": items[0].frame if items else None, "alternatives": shown}


@videos.get("/{key}/differences")
def where_two_differ(request: Request) -> dict[int, float]:
    session = _session(request)
    if len(session.runs) < 2:
        return {}
    source = session.video.source
    return differences(session.runs[0], session.runs[1], [source.height, source.width])


# -- work on it -------------------------------------------------------------------------------------------------------

work = APIRouter(prefix="/api/sessions/{key}")


@work.post("/step")
def do_step(request: Request, step: dict[str, Any]) -> dict[str, Any]:
    """A prompt, a prompt taken back, an object removed: the fields of a ``SessionStep``. Says which frames changed, and
    whether the network sees no object where it was prompted."""
    parsed: SessionStep = step_from_json(step)
    if parsed.kind == "track":
        raise ValueError("expected a prompt; a pass is started by /track")
    if parsed.obj_id is not None and not 1 <= parsed.obj_id <= 255:
        raise ValueError(f"expected an object id from 1 to 255, got {parsed.obj_id}")
    session = _session(request)
    frames = session.do(parsed)
    view = session.runs[0].frames.get(parsed.frame or 0, FrameView())
    absent = parsed.kind == "prompt" and not view.scores.get(parsed.obj_id or 0, (0.0, 0.0, True))[2]
    return {"frames": frames, "absent": absent}


@work.post("/track")
def track(request: Request, order: Pass) -> dict[str, Any]:
    _session(request).track(order.frame, reverse=order.reverse, max_frames=order.max_frames)
    return {}


@work.post("/camera/stop")
def stop_camera(request: Request) -> dict[str, Any]:
    """End the recording of a camera; what was recorded stays open."""
    source = _session(request).video.source
    if isinstance(source, RecordedCamera):
        source.stop()
    return {}


@work.post("/stop")
def stop(request: Request) -> dict[str, Any]:
    _session(request).worker.stop()
    return {}


@work.post("/undo")
def undo(request: Request) -> dict[str, Any]:
    _session(request).undo()
    return {}


@work.post("/redo")
def redo(request: Request) -> dict[str, Any]:
    _session(request).redo()
    return {}


@work.post("/name")
def rename(request: Request, new: NewName) -> dict[str, Any]:
    _session(request).rename(new.obj_id, new.name)
    return {}


@work.post("/policy")
def use_policy(request: Request, choice: Choice) -> dict[str, Any]:
    _session(request).use(choice.setup())
    return {}


@work.post("/compare")
def compare(request: Request, choice: Choice) -> dict[str, Any]:
    _session(request).compare(choice.setup())
    return {}


@work.delete("/compare")
def end_comparison(request: Request) -> dict[str, Any]:
    _session(request).end_comparison()
    return {}


@work.post("/export")
def export(request: Request, order: Export) -> dict[str, Any]:
    """Write results into the working folder; answers when they are there, with their paths."""
    session, studio = _session(request), _studio(request)
    folder = confined(studio.folder, order.folder or f"sam2_mem_results/{Path(session.log.video).stem}")
    if order.run >= len(session.runs):
        raise ValueError("there is no second run to export")
    run = session.runs[order.run]
    writing = session.worker.submit(
        "export", lambda: exports.export(session, run, order.kinds, folder), max(1, len(run.frames))
    )
    root = studio.folder.resolve()
    return {"written": [path.resolve().relative_to(root).as_posix() for path in writing.result()]}
