"""Data sets and predictions as they lie on disk: which folders, which lists, which meta files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sam2_mem.evaluation.protocols import MASK_PROTOCOLS, Protocol
from sam2_mem.evaluation.run import Video
from sam2_mem.evaluation.videos import AnnotatedVideo, ListedObject, VideoPart
from sam2_mem.evaluation.vots import VOTS, VOTSSequence
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
        names = _png_names(self.truth_dir)
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
        return _read(
            self.truth_dir / f"{frame}.png",
            "no ground truth for this frame; splits whose masks are not "
            "public can only be scored by the data set's server",
        )

    def prediction(self, frame: str) -> np.ndarray:
        if not self.predicted:
            raise ValueError(f"no prediction: expected the folder '{self.prediction_dir}'")
        return _read(self.prediction_dir / f"{frame}.png", "no prediction for this frame")

    def parts(self) -> Sequence[VideoPart]:
        """One for each object folder, if there is anything in the ground truth but PNGs."""
        folders = sorted((path for path in _entries(self.truth_dir) if path.is_dir()), key=lambda path: path.name)
        return [VideoPart(self._object(folder), int(folder.name)) for folder in folders] or super().parts()

    def _object(self, folder: Path) -> ObjectFolderVideo:
        if not folder.name.isdecimal():
            raise ValueError(f"expected a folder for each object, named by its number, got '{folder}'")
        return ObjectFolderVideo(f"{self.name}/{folder.name}", folder, _numbered(self.prediction_dir, int(folder.name)))


class ObjectFolderVideo(FolderVideo):
    """A folder of binary PNGs of one object; any value but 0 is the object, which becomes 1."""

    def truth(self, frame: str) -> np.ndarray:
        return _binary(super().truth(frame), self.truth_dir / frame)

    def prediction(self, frame: str) -> np.ndarray:
        return _binary(super().prediction(frame), self.prediction_dir / frame)


def _binary(ids: np.ndarray, path: Path) -> np.ndarray:
    mask = ids > 0
    values = ids[mask]
    if values.size and values.min() != values.max():
        raise ValueError(f"expected a mask of one object, 0 and one other value, got several in '{path}.png'")
    return mask.astype(np.uint8)


def _numbered(folder: Path, number: int) -> Path:
    """The sub-folder with this number, whatever its leading zeros; with three digits if there is none."""
    found = [path for path in _entries(folder) if path.name.isdecimal() and int(path.name) == number]
    return found[0] if found else folder / f"{number:03d}"


def _read(path: Path, otherwise: str) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"{otherwise}: expected '{path}'")
    return read_mask_png(path).ids


def _entries(folder: Path) -> list[Path]:
    """What a folder holds but hidden files; nothing if there is no such folder."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _png_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in _entries(folder) if path.suffix == ".png"))


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

    def listed(video: str, obj_id: str, entry: dict[str, Any]) -> ListedObject:
        group = _group(entry.get("category", ""), unseen)
        return ListedObject(obj_id=int(obj_id), frames=tuple(entry["frames"]), length=len(entry["frames"]), group=group)

    return _read_meta(path, listed)


def read_lvos_meta(path: Path, unseen: Collection[str] | None) -> Objects:
    """``videos/<video>/objects/<id>/frame_range`` with start, end (exclusive) and frame_nums, at every fifth frame;
    ``unseen`` names videos of classes not in training."""

    def listed(video: str, obj_id: str, entry: dict[str, Any]) -> ListedObject:
        shown = entry["frame_range"]
        frames = tuple(f"{index:08d}" for index in range(int(shown["start"]), int(shown["end"]), 5))
        length = int(shown["frame_nums"])
        return ListedObject(obj_id=int(obj_id), frames=frames, length=length, group=_group(video, unseen))

    return _read_meta(path, listed)


def read_mose_meta(path: Path, unseen: Collection[str] | None) -> Objects:
    """``videos/<video>/objects``: ids, as a list or as keys."""
    videos = _meta_videos(path)
    obj_ids = {name: map(int, video.get("objects", ())) for name, video in videos.items()}
    return {name: tuple(ListedObject(obj_id=obj_id) for obj_id in found) for name, found in obj_ids.items()}


def _read_meta(path: Path, listed: Callable[[str, str, dict[str, Any]], ListedObject]) -> Objects:
    try:
        return {
            name: tuple(listed(name, obj_id, entry) for obj_id, entry in video["objects"].items())
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

MetaReader = Callable[[Path, Collection[str] | None], Objects]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set keeps things. Paths are relative to its root or to ``<root>/<split>``; the first that exists is
    taken, and ``{split}`` stands for the split.

    Attributes:
        annotations: folders that hold a folder for each video.
        lists: files with the names of the videos of the split, one a line.
        split: the split scored if none is named.
        meta: the meta file. meta_reader: reads it; None if there is no meta file.
        meta_needed: whether the protocol cannot do without.
        unseen: the file that lists what is not in training.
    """

    annotations: tuple[str, ...] = ("Annotations",)
    lists: tuple[str, ...] = ()
    split: str = "val"
    meta: tuple[str, ...] = ()
    meta_reader: MetaReader | None = None
    meta_needed: bool = False
    unseen: tuple[str, ...] = ()


_DAVIS_FOLDERS = ("Annotations/480p", "480p", "Annotations/Full-Resolution", "Annotations")
_LVOS = Layout(
    split="valid",
    meta=("{split}_meta.json", "meta.json"),
    meta_reader=read_lvos_meta,
    meta_needed=True,
    unseen=("unseen_videos.txt",),
)
LAYOUTS: Mapping[str, Layout] = {
    "davis2016": Layout(annotations=_DAVIS_FOLDERS, lists=("ImageSets/2016/{split}.txt",)),
    "davis2017": Layout(annotations=_DAVIS_FOLDERS, lists=("ImageSets/2017/{split}.txt",)),
    "youtubevos": Layout(
        split="valid",
        meta=("meta.json",),
        meta_reader=read_youtube_meta,
        meta_needed=True,
        unseen=("unseen_categories.txt",),
    ),
    "mosev1": Layout(split="valid"),
    "mosev2": Layout(split="valid", meta=("meta_{split}.json", "meta.json"), meta_reader=read_mose_meta),
    "lvosv1": _LVOS,
    "lvosv2": _LVOS,
    "lvos-2023": _LVOS,
    "sav": Layout(annotations=("Annotations_6fps", "Annotations"), lists=("sav_{split}.txt",)),
    "vost": Layout(lists=("ImageSets/{split}.txt",)),
    "longvideos": Layout(lists=("val.txt", "videos.txt")),
    "longvideos-afburr": Layout(lists=("val.txt", "videos.txt")),
    "vos": Layout(),
    "synthetic": Layout(
        annotations=_DAVIS_FOLDERS,
        lists=("ImageSets/2017/{split}.txt",),
        meta=("meta.json",),
        meta_reader=read_youtube_meta,
        meta_needed=True,
    ),
    "vots": Layout(annotations=("sequences",), lists=("sequences/list.txt", "list.txt")),
}
PROTOCOLS: Mapping[str, Protocol[Any]] = {protocol.name: protocol for protocol in (*MASK_PROTOCOLS, VOTS())}


@dataclass(frozen=True)
class Dataset:
    """Videos, and how to score them: pass both to :func:`sam2_mem.evaluation.run.evaluate`.

    ``sources`` says which list and which meta file were found.
    """

    protocol: Protocol[Any]
    videos: tuple[Video, ...]
    sources: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to score.

    Attributes:
        split: whose list and meta file to look for (default: see :class:`Layout`).
        names: the videos (default: the split's list, else every folder of the annotations).
        meta: the meta file. unseen: the file that lists unseen videos (LVOS) or categories (YouTube-VOS).
        only_predicted: leave out videos that have no predictions; else they are failures.
    """

    split: str | None = None
    names: Path | None = None
    meta: Path | None = None
    unseen: Path | None = None
    only_predicted: bool = False


def open_dataset(name: str, gt: Path, pred: Path, selection: Selection = Selection()) -> Dataset:
    """The videos of a data set.

    Args:
        name: a key of ``PROTOCOLS``.
        gt: the root of the data set, or its folder of annotations.
        pred: ``<video>/<frame>.png`` for each annotated frame that counts (``<video>/<object>/<frame>.png`` where the
            data set has such folders); for vots ``<sequence>/<sequence>[_<object>]_001.bin`` or ``.txt``.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"expected a data set of {', '.join(PROTOCOLS)}, got '{name}'")
    for folder, what in ((gt, "of the ground truth"), (pred, "of predictions")):
        if not folder.is_dir():
            raise ValueError(f"expected the folder {what}, got '{folder}', which is not one")
    finder = Finder(gt, LAYOUTS[name], selection)
    objects = finder.objects()
    names = finder.names()
    if selection.only_predicted:
        names = [video for video in names if (pred / video).is_dir()]
    if not names:
        raise ValueError(
            f"expected at least one video in '{finder.annotations}', got none; predictions are in '{pred}'"
        )
    make = _vots_sequence if name == "vots" else _folder_video
    videos = tuple(make(video, finder.annotations, pred, objects.get(video, ())) for video in names)
    return Dataset(PROTOCOLS[name], videos, finder.found)


def _folder_video(name: str, annotations: Path, pred: Path, objects: tuple[ListedObject, ...]) -> Video:
    return FolderVideo(name, annotations / name, pred / name, objects)


def _vots_sequence(name: str, annotations: Path, pred: Path, objects: tuple[ListedObject, ...]) -> Video:
    return VOTSSequence(name, annotations / name, pred / name)


@dataclass(frozen=True)
class Finder:
    """Looks for the parts of a data set on disk."""

    gt: Path
    layout: Layout
    selection: Selection

    @property
    def split(self) -> str:
        return self.selection.split or self.layout.split

    @cached_property
    def annotations(self) -> Path:
        """The folder that holds the videos; what was given, unless a known folder lies in it."""
        return self._first(self.layout.annotations, (self.gt / self.split, self.gt)) or self.gt

    @property
    def found(self) -> tuple[Path, ...]:
        """The files that names, meta data and groups come from."""
        return tuple(path for path in (self._list_file(), self._meta_file(), self._unseen_file()) if path)

    def names(self) -> list[str]:
        path = self._list_file()
        if path is not None:
            return list(dict.fromkeys(_lines(path)))
        return sorted(entry.name for entry in _entries(self.annotations) if entry.is_dir())

    def objects(self) -> Objects:
        if not self.layout.unseen:
            self._refuse(self.selection.unseen, "list of what is unseen")
        if self.layout.meta_reader is None:
            self._refuse(self.selection.meta, "meta file")
            return {}
        path = self._meta_file()
        if path is None and self.layout.meta_needed:
            expected = " or ".join(name.format(split=self.split) for name in self.layout.meta)
            raise ValueError(f"expected the meta file {expected} in '{self.gt}', got none; name it with --meta")
        unseen = self._unseen_file()
        return self.layout.meta_reader(path, set(_lines(unseen)) if unseen else None) if path else {}

    def _refuse(self, path: Path | None, what: str) -> None:
        if path is not None:
            raise ValueError(f"this data set is scored without a {what}, got '{path}'")

    def _list_file(self) -> Path | None:
        return self._file(self.selection.names, self.layout.lists)

    def _meta_file(self) -> Path | None:
        return self._file(self.selection.meta, self.layout.meta)

    def _unseen_file(self) -> Path | None:
        return self._file(self.selection.unseen, self.layout.unseen)

    def _file(self, given: Path | None, usual: Iterable[str]) -> Path | None:
        if given is not None and not given.is_file():
            raise ValueError(f"expected a file, got '{given}', which is not one")
        return given or self._first(usual, self._roots())

    def _roots(self) -> tuple[Path, ...]:
        """Where lists and meta files may lie: in what was given, and above the annotations, if that was given."""
        root = self._root()
        return (self.gt / self.split, self.gt, root, root.parent if root.name == self.split else root)

    def _root(self) -> Path:
        """The folder that the annotations have their usual place in."""
        place = self.annotations.resolve()
        depths = [len(Path(name).parts) for name in self.layout.annotations if place.match(name)]
        return place.parents[depths[0] - 1] if depths else self.gt

    def _first(self, names: Iterable[str], roots: Iterable[Path]) -> Path | None:
        places = [root / name.format(split=self.split) for root in roots for name in names]
        return next((place for place in places if place.exists()), None)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
