"""Results as files in the working folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sam2_mem.files import atomic_path
from sam2_mem.studio.pictures import decoded
from sam2_mem.studio.run import PolicyRun
from sam2_mem.studio.session import StudioSession
from sam2_mem.video import (
    DatasetWriter,
    MaskWriter,
    MultiWriter,
    OverlayWriter,
    PaletteWriter,
    PerObjectWriter,
    RLEWriter,
    YOLOWriter,
)
from sam2_mem.video.h264 import H264
from sam2_mem.video.layouts import FOLDERS

KINDS = ("png", "png_per_object", "rle", "yolo", *FOLDERS, "overlay", "script", "session")
WITHOUT_PICTURES = {"png", "png_per_object", "rle", "script", "session"}
"""Results for which no frame has to be read, so that they can also be written when the video has vanished."""
CODECS = (H264, "mp4v")
SESSION_ENDING = ".session.json"
STATE_ENDING = ".session.state"


def export(session: StudioSession, run: PolicyRun, kinds: list[str], folder: Path) -> list[Path]:
    """Write results.

    Args:
        session: whose results.
        run: the run whose masks are written.
        kinds: out of ``KINDS``: PNGs of object ids, one PNG per object, COCO run lengths, YOLO
            polygons with pictures, data sets in the folders of DAVIS,
            YouTube-VOS and SA-V, a video with the masks drawn in, a Python script that repeats the session, a file that the
            studio opens again.
        folder: where to; what is there under the same names is replaced.

    Returns:
        what was written, files and folders.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"expected results out of {', '.join(KINDS)}, got {', '.join(unknown) or 'none'}")
    stem = Path(session.log.video).stem
    folder.mkdir(parents=True, exist_ok=True)
    written = _write_masks(session, run, kinds, folder, stem)
    if "script" in kinds:
        written.append(folder / f"{stem}.py")
        with atomic_path(written[-1]) as part:
            part.write_text(session.log.script(f"{stem}_repeated"), encoding="utf-8")
    if "session" in kinds:
        written.append(folder / f"{stem}{'' if session.complete else '_stopped'}{SESSION_ENDING}")
        save_session(session, written[-1])
    return written


def save_session(session: StudioSession, path: Path) -> None:
    """Write steps, names, policy and masks, to be opened again, and beside it the state of the first run, so that nothing has to
    be tracked again for that. The state names the log that it belongs to; of a policy whose state cannot be saved there is none."""
    run = session.runs[0]
    masks = {frame: view.masks for frame, view in run.frames.items() if view.masks}
    log = replace(session.log, masks=masks)
    try:
        with atomic_path(state_path(path)) as part:
            run.save(part, state_of(session, log.text()))
            log.save(path)
    except TypeError:
        state_path(path).unlink(missing_ok=True)
        log.save(path)


def state_path(path: Path) -> Path:
    """Where the state of a session file lies."""
    return path.with_name(path.name.removesuffix(SESSION_ENDING) + STATE_ENDING)


def state_of(session: StudioSession, log: str) -> dict[str, Any]:
    """What a state says of itself: a hash of the log that it belongs to, height and width of the video."""
    size = [session.video.source.height, session.video.source.width]
    return {"log": hashlib.sha256(log.encode()).hexdigest(), "size": size}


@contextmanager
def _without_journal(path: Path) -> Iterator[None]:
    """Run lengths keep a journal to go on from; here they begin anew each time."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _NamedFrame:
    """A frame whose picture nobody needs."""

    index: int
    name: str


def _mask_writers(session: StudioSession, kinds: list[str], folder: Path, stem: str) -> dict[Path, MaskWriter]:
    """By the path of what each writes."""
    results = {
        "png": (folder / "png", lambda path: PaletteWriter(path.parent, path.name)),
        "png_per_object": (folder / "png_per_object", lambda path: PerObjectWriter(path.parent, path.name)),
        "rle": (folder / f"{stem}.json", lambda path: RLEWriter(path, video=session.log.video, resume=False)),
        "overlay": (
            folder / f"{stem}_overlay.mp4",
            lambda path: OverlayWriter(path, fps=session.video.source.fps or 24.0, labels=False, codecs=CODECS),
        ),
    }
    writers = {path: writer(path) for kind, (path, writer) in results.items() if kind in kinds}
    if "yolo" in kinds:
        names = {i: session.log.names.get(i, f"object {i}") for i in session.runs[0].state.obj_ids}
        writers[folder / "yolo"] = YOLOWriter(folder / "yolo", class_names=names, images=True)
    datasets = {folder / kind: kind for kind in FOLDERS if kind in kinds}
    return writers | {path: DatasetWriter(path, stem, kind, session.log.names) for path, kind in datasets.items()}


def _write_masks(session: StudioSession, run: PolicyRun, kinds: list[str], folder: Path, stem: str) -> list[Path]:
    writers = _mask_writers(session, kinds, folder, stem)
    if not writers:
        return []
    frames = [frame for frame, view in run.frames.items() if view.masks]
    if not frames:
        raise ValueError("expected a mask, got none: click on an object first")
    source = session.video.source
    size, named = (source.height, source.width), WITHOUT_PICTURES.issuperset(kinds)
    with _without_journal(folder / f"{stem}.jsonl"), MultiWriter(*writers.values()) as writer:
        for frame in frames:
            item = _NamedFrame(frame, source.name(frame)) if named else source[frame]
            writer.write(item, {i: decoded(counts, size) for i, counts in run.frames[frame].masks.items()})
            session.worker.advance(frame)
            if session.worker.stopped.is_set():
                raise InterruptedError("stopped; what is not complete was not written")
    return list(writers)
