"""What ``tools/inspect_memory.py`` does, one function per verb; each returns an exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam2_mem.build_sam import build_policy
from sam2_mem.cli.network import Network
from sam2_mem.evaluation.charts import Axes, Series, line_chart
from sam2_mem.evaluation.inspection import Watched, watch
from sam2_mem.evaluation.inspection.memory_deciphering import Deciphered, Study, decipher, means, table
from sam2_mem.evaluation.inspection.page import write_page
from sam2_mem.evaluation.inspection.sheet import write_sheet
from sam2_mem.tracking.vos import Clicks, MaskRules, PromptPlan, plan_from_clicks, plan_from_folder, plan_from_mask
from sam2_mem.video import VideoSource, open_video, read_mask_png


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Which objects: ``masks`` a PNG of ids of the first frame or a folder of such PNGs named as the frames, in which
    objects may come late; or a ``box`` or ``point`` on the first frame."""

    masks: Path | None = None
    box: tuple[float, ...] | None = None
    point: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("masks", "box", "point") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected one of masks, box and point, got {' and '.join(given) or 'none'}")
        for name, count in (("box", 4), ("point", 2)):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"expected {count} numbers for {name}, got {len(value)}")

    def plan(self, source: VideoSource) -> PromptPlan:
        if self.masks is None:
            points = () if self.point is None else (self.point,)
            return plan_from_clicks([Clicks(obj_id=1, points=points, labels=(1,) * len(points), box=self.box)])
        if self.masks.is_dir():
            return plan_from_folder(self.masks, source, MaskRules(late=True))
        return plan_from_mask(self.masks)


def show(
    *,
    network: Network,
    video: Path,
    prompts: Prompts,
    out: Path,
    policies: Sequence[str] = ("fifo",),
    frame: int | None = None,
    objects: Sequence[int] = (),
    stop: int | None = None,
    width: int = 256,
    read_mass: bool = True,
) -> int:
    """Watch policies on a video; writes ``<policy>_<object>.png`` and ``index.html`` into ``out``."""
    setting = network.setting()
    films = []
    for name in tqdm(dict.fromkeys(policies), unit="policy", disable=None, leave=False):
        with open_video(video) as source:
            predictor = setting.predictor(build_policy(name))
            plan = prompts.plan(source)
            films.append(watch(predictor, source, plan, name=name, width=width, stop=stop, read_mass=read_mass))
    if frame is not None and frame not in films[0].pictures:
        raise ValueError(f"expected a frame of the {len(films[0].pictures)} watched, got {frame}")
    for film in films:
        for obj_id in objects or [i for i, w in film.objects.items() if w.notes]:
            if obj_id not in film.objects:
                raise ValueError(f"expected objects out of {sorted(film.objects)}, got {obj_id}")
            write_sheet(out / f"{film.policy}_{obj_id}.png", film, obj_id, _shown(film.objects[obj_id], frame))
    write_page(out / "index.html", films, title=f"{video.name}: memory of {', '.join(f.policy for f in films)}")
    print(f"{out / 'index.html'}")
    return 0


def _shown(watched: Watched, frame: int | None) -> int | None:
    """``frame``, or for an object that is not tracked there its last one."""
    if frame is None or any(n.frame == frame for n in watched.notes):
        return frame
    last = watched.notes[-1].frame
    print(f"object {watched.obj_id} is not tracked on frame {frame}; its last frame, {last}, is shown")
    return None


def study(
    *,
    network: Network,
    videos: Sequence[Path],
    truths: Sequence[Path],
    out: Path,
    question: Study,
    stop: int | None = None,
) -> int:
    """Memory deciphering: J against bank size and contents; writes ``decipher.json`` and ``decipher.png``."""
    if len(videos) != len(truths):
        raise ValueError(f"expected a folder of ground truth for each video, got {len(truths)} for {len(videos)}")
    predictor = network.setting().predictor(build_policy("fifo"))
    found: dict[str, list[Deciphered]] = {}
    for video, folder in zip(videos, truths):
        with open_video(video) as source:
            frames = list(source.frames(0, stop))
        ids = _truth(folder, [f.name for f in frames])
        objects = sorted({int(i) for mask in ids.values() for i in np.unique(mask)} - {0, 255})
        for obj_id in tqdm(objects, unit="object", disable=None, leave=False):
            masks = {f.index: ids[f.name] == obj_id for f in frames if f.name in ids}
            first = min(i for i, mask in masks.items() if mask.any())
            known = {i: mask for i, mask in masks.items() if i >= first}
            found.setdefault(video.name, []).extend(decipher(predictor, frames, known, obj_id, question))
    every = [d for ds in found.values() for d in ds]
    print(table(every))
    _write_study(out, found, question)
    return 0


def _truth(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    ids = {n: read_mask_png(folder / f"{n}.png").ids for n in names if (folder / f"{n}.png").is_file()}
    if not any(mask.any() for mask in ids.values()):
        example = f"{names[0]}.png, ..."
        raise ValueError(f"expected PNGs of object ids in '{folder}', named as the frames ({example}), got none")
    return ids


def _write_study(out: Path, found: Mapping[str, Sequence[Deciphered]], question: Study) -> None:
    out.mkdir(parents=True, exist_ok=True)
    every = [d for ds in found.values() for d in ds]
    curves = means(every)
    results = {name: [asdict(d) for d in ds] for name, ds in found.items()}
    text = json.dumps({"study": asdict(question), "means": curves, "videos": results}, indent=1)
    (out / "decipher.json").write_text(text + "\n", encoding="utf-8")
    axes = Axes(title="Memory deciphering: J from true memories", x_label="frames in the bank", y_label="J")
    lines = [Series(name=c, x=list(by_size), y=list(by_size.values())) for c, by_size in curves.items()]
    line_chart(out / "decipher.png", axes, lines)
