"""Data sets and predictions as they lie on disk: which folders, which lists, which meta files; what is prompted, what is
submitted."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sam2_mem.evaluation.protocols import MASK_PROTOCOLS, Protocol
from sam2_mem.evaluation.scoring import ScoredVideo
from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject, VideoPart
from sam2_mem.evaluation.vots import VOTS, VOTSSequence
from sam2_mem.files import read_lines
from sam2_mem.tracking.vos import MaskRules
from sam2_mem.video.reading import read_mask_png

# -- videos as folders of PNGs --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderVideo(AnnotatedVideo):
    """``<truth_dir>/<frame>.png`` and ``<prediction_dir>/<frame>.png``, object ids as pixel values."""

    name: str
    truth_dir: Path
    prediction_dir: Path
    objects: tuple[ListedObject, ...] = ()

    @cached_property
    def frames(self) -> Sequence[str]:
        if not self.truth_dir.is_dir():
            raise ValueError(f"no ground truth: expected the folder '{self.truth_dir}'")
        names = tuple(sorted(path.stem for path in _visible_entries(self.truth_dir) if path.suffix == ".png"))
        if not names:
            raise ValueError(
                f"no ground truth: expected PNG files in '{self.truth_dir}'; folders for each object are scored as sav"
            )
        return names

    @property
    def listed(self) -> Sequence[ListedObject]:
        return self.objects

    @property
    def predicted(self) -> bool:
        return self.prediction_dir.is_dir()

    def truth(self, frame: str) -> np.ndarray:
        return _read_ids(
            self.truth_dir / f"{frame}.png",
            "no ground truth for this frame; splits whose masks are not "
            "public can only be scored by the data set's server",
        )

    def prediction(self, frame: str) -> np.ndarray:
        if not self.predicted:
            raise ValueError(f"no prediction: expected the folder '{self.prediction_dir}'")
        return _read_ids(self.prediction_dir / f"{frame}.png", "no prediction for this frame")

    def parts(self) -> Sequence[VideoPart]:
        """One for each object folder, if there is anything in the ground truth but PNGs."""
        folders = sorted(
            (path for path in _visible_entries(self.truth_dir) if path.is_dir()), key=lambda path: path.name
        )
        return [VideoPart(self._object_video(folder), int(folder.name)) for folder in folders] or super().parts()

    def _object_video(self, folder: Path) -> ObjectFolderVideo:
        if not folder.name.isdecimal():
            raise ValueError(f"expected a folder for each object, named by its number, got '{folder}'")
        prediction_dir = _numbered_folder(self.prediction_dir, int(folder.name))
        return ObjectFolderVideo(f"{self.name}/{folder.name}", folder, prediction_dir)


class ObjectFolderVideo(FolderVideo):
    """A folder of binary PNGs of one object; any value but 0 is the object, which becomes 1."""

    def truth(self, frame: str) -> np.ndarray:
        return _binary_mask(super().truth(frame), self.truth_dir / frame)

    def prediction(self, frame: str) -> np.ndarray:
        return _binary_mask(super().prediction(frame), self.prediction_dir / frame)


def _binary_mask(ids: np.ndarray, path: Path) -> np.ndarray:
    mask = ids > 0
    values = ids[mask]
    if values.size and values.min() != values.max():
        raise ValueError(f"expected a mask of one object, 0 and one other value, got several in '{path}.png'")
    return mask.astype(np.uint8)


def _numbered_folder(folder: Path, number: int) -> Path:
    """The sub-folder with this number, whatever its leading zeros; with three digits if there is none."""
    matches = [path for path in _visible_entries(folder) if path.name.isdecimal() and int(path.name) == number]
    return matches[0] if matches else folder / f"{number:03d}"


def _read_ids(path: Path, error: str) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{error}: expected '{path}'")
    return read_mask_png(path).ids


def _visible_entries(folder: Path) -> list[Path]:
    """What a folder holds but hidden files; nothing if there is no such folder."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


# -- meta files -----------------------------------------------------------------------------------------------------

Objects = Mapping[str, tuple[ListedObject, ...]]
"""What a meta file lists, by video."""


def _meta_videos(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["videos"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected a meta file with 'videos' in '{path}', got {error!r}") from error


def read_youtube_meta(path: Path, unseen: Collection[str] | None) -> Objects:
    """``videos/<video>/objects/<id>/frames`` and ``category``; ``unseen`` names categories not in training."""

    def listed_object(video: str, obj_id: str, entry: dict[str, Any]) -> ListedObject:
        frames, group = tuple(entry["frames"]), _group(entry.get("category", ""), unseen)
        return ListedObject(obj_id=int(obj_id), frames=frames, length=len(frames), group=group)

    return _read_meta(path, listed_object)


def read_lvos_meta(path: Path, unseen: Collection[str] | None) -> Objects:
    """``videos/<video>/objects/<id>/frame_range`` with start, end (exclusive) and frame_nums, at every fifth frame;
    ``unseen`` names videos of classes not in training."""

    def listed_object(video: str, obj_id: str, entry: dict[str, Any]) -> ListedObject:
        span = entry["frame_range"]
        frames = tuple(f"{index:08d}" for index in range(int(span["start"]), int(span["end"]), 5))
        length = int(span["frame_nums"])
        return ListedObject(obj_id=int(obj_id), frames=frames, length=length, group=_group(video, unseen))

    return _read_meta(path, listed_object)


def read_mose_meta(path: Path, unseen: Collection[str] | None) -> Objects:
    """``videos/<video>/objects``: ids, as a list or as keys."""
    return {
        name: tuple(ListedObject(obj_id=int(obj_id)) for obj_id in video.get("objects", ()))
        for name, video in _meta_videos(path).items()
    }


def _read_meta(path: Path, listed_object: Callable[[str, str, dict[str, Any]], ListedObject]) -> Objects:
    try:
        return {
            name: tuple(listed_object(name, obj_id, entry) for obj_id, entry in video["objects"].items())
            for name, video in _meta_videos(path).items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected the objects of each video with their frames in '{path}', got {error!r}; "
            "is it the meta file of another data set?"
        ) from error


def _group(name: str, unseen: Collection[str] | None) -> str:
    if unseen is None:
        return ""
    return "unseen" if name in unseen else "seen"


# -- layouts --------------------------------------------------------------------------------------------------------

META_READERS: Mapping[str, Callable[[Path, Collection[str] | None], Objects]] = {
    "youtube": read_youtube_meta,
    "lvos": read_lvos_meta,
    "mose": read_mose_meta,
}


class Submit(Enum):
    """The frames of a video whose masks are submitted to the evaluation server."""

    ALL = "all"
    ANNOTATED = "annotated"
    LISTED = "listed"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set keeps things, what is prompted and what is submitted. Paths are relative to its root or to
    ``<root>/<split>``; the first that exists is taken, and ``{split}`` stands for the split.

    Attributes:
        annotations: folders that hold a folder of masks for each video.
        frames: folders that hold a folder of images for each video.
        inside: where in the folder of a video its images are.
        lists: files with the names of the videos of the split, one a line.
        split: the split used if none is named.
        meta: the meta file.
        meta_format: a key of ``META_READERS``; "" if there is no meta file.
        meta_needed: whether the protocol cannot do without.
        unseen: the file that lists what is not in training.
        rules: how annotations become prompts; masks beyond the prompts are never looked at.
        prompts: what to know about the prompts, for the user.
        submit: which frames are submitted: all, those with an annotation, or those that the meta file lists.
        archive: the folder that a submitted archive begins with.
    """

    annotations: Sequence[str] = ("Annotations",)
    frames: Sequence[str] = ("JPEGImages",)
    inside: str = ""
    lists: Sequence[str] = ()
    split: str = "val"
    meta: Sequence[str] = ()
    meta_format: str = ""
    meta_needed: bool = True
    unseen: Sequence[str] = ()
    rules: MaskRules = MaskRules()
    prompts: str = "objects of the first frame"
    submit: Submit = Submit.ALL
    archive: str = ""


def _read_layout(fields: dict[str, Any]) -> Layout:
    rules: dict[str, Any] = dict(fields.get("rules", {}))
    rules["ignore"] = frozenset(rules.get("ignore", ()))
    changes: dict[str, Any] = {"rules": MaskRules(**rules), "submit": Submit(fields.get("submit", "all"))}
    return Layout(**fields | changes)


_TABLE = yaml.safe_load((files(__package__) / "datasets.yaml").read_text(encoding="utf-8"))
LAYOUTS: Mapping[str, Layout] = {name: _read_layout(f) for name, f in _TABLE.items() if not name.startswith(".")}
_PROTOCOLS: tuple[Protocol[Any], ...] = (*MASK_PROTOCOLS, VOTS())
PROTOCOLS: Mapping[str, Protocol[Any]] = {protocol.name: protocol for protocol in _PROTOCOLS}
REGIONS = "vots"
"""The data set of regions in text files; all others have masks."""


# -- a data set on disk ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which videos of a data set.

    Attributes:
        split: whose list and meta file to look for (default: see ``Layout``).
        names: the videos (default: the split's list, else every folder of the annotations).
        meta: the meta file.
        unseen: the file that lists unseen videos (LVOS) or categories (YouTube-VOS).
        only_predicted: leave out videos that have no predictions; else they are failures.
    """

    split: str | None = None
    names: Path | None = None
    meta: Path | None = None
    unseen: Path | None = None
    only_predicted: bool = False


@dataclass(frozen=True)
class DatasetOnDisk:
    """A data set by its name in ``LAYOUTS``; ``root``: its root, or its folder of annotations."""

    name: str
    root: Path
    selection: Selection = Selection()

    def __post_init__(self) -> None:
        if self.name not in LAYOUTS:
            raise ValueError(f"expected a data set of {', '.join(LAYOUTS)}, got {self.name!r}")
        if not self.root.is_dir():
            raise ValueError(f"expected the root of the data set, got '{self.root}', which is not a folder")

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.name]

    @property
    def split(self) -> str:
        return self.selection.split or self.layout.split

    @cached_property
    def annotations(self) -> Path:
        """The folder that holds the videos; the root, unless a known folder lies in it."""
        return self._first(self.layout.annotations, (self.root / self.split, self.root)) or self.root

    @cached_property
    def frames(self) -> Path:
        """The folder with a folder of images for each video. ValueError if there is none."""
        return self._first_folder(self.layout.frames, "frames")

    @cached_property
    def masks(self) -> Path:
        """The folder with the prompts of each video. ValueError if there is none."""
        return self._first_folder(self.layout.annotations, "masks to start from")

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that names, meta data and groups come from."""
        return tuple(path for path in (self._list_file(), self._meta_file(), self._unseen_file()) if path)

    @property
    def names(self) -> list[str]:
        """The videos of the split, or all folders of annotations. ValueError if there is none."""
        names = self.listed_names()
        if not names:
            raise ValueError(f"expected at least one video in '{self.annotations}', got none")
        return names

    def listed_names(self) -> list[str]:
        """The same, and [] if there is none."""
        path = self._list_file()
        if path is not None:
            return list(dict.fromkeys(read_lines(path)))
        return sorted(entry.name for entry in _visible_entries(self.annotations) if entry.is_dir())

    @cached_property
    def objects(self) -> Objects:
        """What the meta file lists, if the data set has one."""
        if not self.layout.unseen:
            self._refuse(self.selection.unseen, "list of what is unseen")
        if not self.layout.meta_format:
            self._refuse(self.selection.meta, "meta file")
            return {}
        path = self._meta_file()
        if path is None and self.layout.meta_needed:
            expected = " or ".join(name.format(split=self.split) for name in self.layout.meta)
            raise ValueError(f"expected the meta file {expected} in '{self.root}', got none; name it with --meta")
        unseen = self._unseen_file()
        read = META_READERS[self.layout.meta_format]
        return read(path, set(read_lines(unseen)) if unseen else None) if path else {}

    def submitted(self, video: str) -> Callable[[str], bool]:
        """Which frames of a video are submitted, by their names."""
        if self.layout.submit is Submit.ALL:
            return lambda frame: True
        if self.layout.submit is Submit.LISTED:
            if video not in self.objects:
                raise ValueError(
                    f"expected the frames of '{video}' in the meta file, got none; is it that of this split?"
                )
            return {frame for listed in self.objects[video] for frame in listed.frames}.__contains__
        pattern = "*/*.png" if self.layout.rules.per_object else "*.png"
        return {path.stem for path in (self.masks / video).glob(pattern)}.__contains__

    def _refuse(self, path: Path | None, description: str) -> None:
        if path is not None:
            raise ValueError(f"this data set is scored without a {description}, got '{path}'")

    def _list_file(self) -> Path | None:
        return self._file(self.selection.names, self.layout.lists)

    def _meta_file(self) -> Path | None:
        return self._file(self.selection.meta, self.layout.meta)

    def _unseen_file(self) -> Path | None:
        return self._file(self.selection.unseen, self.layout.unseen)

    def _file(self, path: Path | None, default_names: Iterable[str]) -> Path | None:
        if path is not None and not path.is_file():
            raise ValueError(f"expected a file, got '{path}', which is not one")
        return path or self._first(default_names, self._list_folders())

    def _list_folders(self) -> tuple[Path, ...]:
        """Where lists and meta files may lie: in the root, and above the annotations, if those are the root."""
        above = self._above_annotations()
        return (self.root / self.split, self.root, above, above.parent if above.name == self.split else above)

    def _above_annotations(self) -> Path:
        """The folder that the annotations have their usual place in."""
        folder = self.annotations.resolve()
        depths = [len(Path(name).parts) for name in self.layout.annotations if folder.match(name)]
        return folder.parents[depths[0] - 1] if depths else self.root

    def _first(self, names: Iterable[str], roots: Iterable[Path]) -> Path | None:
        paths = [root / name.format(split=self.split) for root in roots for name in names]
        return next((path for path in paths if path.exists()), None)

    def _first_folder(self, names: Sequence[str], description: str) -> Path:
        roots = (self.root / self.split, self.root)
        paths = [root / name.format(split=self.split) for name in names for root in roots]
        folder = next((path for path in paths if path.is_dir()), None)
        if folder is None:
            raise ValueError(
                f"expected the {description} of {self.name} in {' or '.join(names)}, "
                f"got no such folder in '{self.root}'"
            )
        return folder


@dataclass(frozen=True)
class Dataset:
    """Videos, and how to score them: pass both to ``sam2_mem.evaluation.scoring.evaluate``.

    ``sources`` says which list and which meta file were used.
    """

    protocol: Protocol[Any]
    videos: tuple[ScoredVideo, ...]
    sources: tuple[Path, ...] = ()


def open_dataset(name: str, gt: Path, pred: Path, selection: Selection = Selection()) -> Dataset:
    """The videos of a data set.

    Args:
        name: a key of ``PROTOCOLS``.
        gt: the root of the data set, or its folder of annotations.
        pred: ``<video>/<frame>.png`` for each annotated frame that counts (``<video>/<object>/<frame>.png`` where the
            data set has such folders); for vots ``<sequence>/<sequence>[_<object>]_001.bin`` or ``.txt``.
        selection: which of its videos.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"expected a data set of {', '.join(PROTOCOLS)}, got '{name}'")
    for folder, description in ((gt, "of the ground truth"), (pred, "of predictions")):
        if not folder.is_dir():
            raise ValueError(f"expected the folder {description}, got '{folder}', which is not one")
    dataset = DatasetOnDisk(name, gt, selection)
    objects, names = dataset.objects, dataset.listed_names()
    if selection.only_predicted:
        names = [video for video in names if (pred / video).is_dir()]
    if not names:
        raise ValueError(
            f"expected at least one video in '{dataset.annotations}', got none; predictions are in '{pred}'"
        )
    videos = tuple(_scored_video(dataset, video, pred, objects.get(video, ())) for video in names)
    return Dataset(PROTOCOLS[name], videos, dataset.sources)


def _scored_video(dataset: DatasetOnDisk, name: str, pred: Path, objects: tuple[ListedObject, ...]) -> ScoredVideo:
    if dataset.name == REGIONS:
        return VOTSSequence(name, dataset.annotations / name, pred / name)
    return FolderVideo(name, dataset.annotations / name, pred / name, objects)
