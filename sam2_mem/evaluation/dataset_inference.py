"""How each data set is segmented: where its frames are, which masks are prompts, which frames its server wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from sam2_mem.evaluation.datasets import LAYOUTS, Finder, Objects, Selection
from sam2_mem.tracking.vos import MaskRules


class Submit(Enum):
    """The frames of a video whose masks are handed in."""

    ALL = "all"
    ANNOTATED = "annotated"
    LISTED = "listed"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a data set is segmented.

    Attributes:
        frames: folders that hold a folder of images for each video, relative to the root or to ``<root>/<split>``;
            the first that exists is taken. ``{split}`` stands for the split.
        rules: how its annotations become prompts; masks beyond the prompts are never looked at.
        submit: which frames are handed in: all, those with an annotation, or those that the meta file lists.
        prompts: what to know about the prompts, for the user.
        inside: where in the folder of a video its images are. archive: the folder that an archive begins with.
    """

    frames: tuple[str, ...] = ("JPEGImages",)
    inside: str = ""
    archive: str = ""
    rules: MaskRules = MaskRules()
    submit: Submit = Submit.ALL
    prompts: str = "objects of the first frame"


_DAVIS_FRAMES = ("JPEGImages/480p", "JPEGImages/Full-Resolution", "JPEGImages")
_VOID = frozenset({255})
_LVOS = Recipe(rules=MaskRules(late=True), prompts="each object on the first frame that shows it")

RECIPES: Mapping[str, Recipe] = {
    "davis2016": Recipe(frames=_DAVIS_FRAMES, prompts="the object of the first frame, whose value is 255"),
    "davis2017": Recipe(frames=_DAVIS_FRAMES, rules=MaskRules(ignore=_VOID)),
    "youtubevos": Recipe(
        frames=("{split}_all_frames/JPEGImages", "JPEGImages"),
        rules=MaskRules(late=True),
        submit=Submit.LISTED,
        archive="Annotations",
        prompts="each object on the first frame that shows it",
    ),
    "mosev1": Recipe(),
    "mosev2": Recipe(),
    "lvosv1": _LVOS,
    "lvosv2": _LVOS,
    "lvos-2023": _LVOS,
    "sav": Recipe(
        frames=("JPEGImages_24fps", "JPEGImages"),
        rules=MaskRules(per_object=True),
        submit=Submit.ANNOTATED,
        prompts="objects of the first frame, which may overlap",
    ),
    "vost": Recipe(frames=("JPEGImages_10fps", "JPEGImages"), rules=MaskRules(ignore=_VOID), submit=Submit.ANNOTATED),
    "longvideos": Recipe(submit=Submit.ANNOTATED),
    "longvideos-afburr": Recipe(submit=Submit.ANNOTATED),
    "vos": Recipe(),
    "synthetic": Recipe(
        frames=_DAVIS_FRAMES, rules=MaskRules(late=True), prompts="each object on the first frame that shows it"
    ),
    "vots": Recipe(frames=("sequences",), inside="color", prompts="the first region of each object"),
}
REGIONS = "vots"
"""The data set of regions in text files; all others have masks."""


@dataclass(frozen=True)
class Found:
    """A data set on disk, by its name in ``RECIPES``."""

    dataset: str
    root: Path
    selection: Selection = Selection()

    def __post_init__(self) -> None:
        if self.dataset not in RECIPES:
            raise ValueError(f"expected a data set of {', '.join(RECIPES)}, got {self.dataset!r}")
        if not self.root.is_dir():
            raise ValueError(f"expected the root of the data set, got '{self.root}', which is not a folder")

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.dataset]

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.root, LAYOUTS[self.dataset], self.selection)

    @cached_property
    def frames(self) -> Path:
        """The folder with a folder of images for each video."""
        return self._first_of(self.recipe.frames, "frames")

    @cached_property
    def masks(self) -> Path:
        """The folder with the prompts of each video."""
        return self._first_of(LAYOUTS[self.dataset].annotations, "masks to start from")

    @property
    def names(self) -> list[str]:
        """The videos of the split, or all that have prompts."""
        names = self._finder.names()
        if not names:
            raise ValueError(f"expected at least one video in '{self.masks}', got none")
        return names

    @cached_property
    def objects(self) -> Objects:
        """What the meta file lists, if the data set has one."""
        return self._finder.objects()

    def submitted(self, video: str) -> Callable[[str], bool]:
        """Which frames of a video are handed in, by their names."""
        if self.recipe.submit is Submit.ALL:
            return lambda frame: True
        if self.recipe.submit is Submit.LISTED:
            if video not in self.objects:
                raise ValueError(
                    f"expected the frames of '{video}' in the meta file, got none; is it that of this split?"
                )
            return {frame for one in self.objects[video] for frame in one.frames}.__contains__
        pattern = "*/*.png" if self.recipe.rules.per_object else "*.png"
        return {path.stem for path in (self.masks / video).glob(pattern)}.__contains__

    def _first_of(self, names: tuple[str, ...], what: str) -> Path:
        split = self._finder.split
        tried = [root / name.format(split=split) for name in names for root in (self.root / split, self.root)]
        found = next((path for path in tried if path.is_dir()), None)
        if found is None:
            raise ValueError(
                f"expected the {what} of {self.dataset} in {' or '.join(names)}, got no such folder in '{self.root}'"
            )
        return found
