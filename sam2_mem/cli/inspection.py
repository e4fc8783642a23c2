"""The command ``tools/inspect_memory.py``: its arguments, and one function per verb that returns an exit status."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sam2_mem.build_sam import build_policy
from sam2_mem.cli.arguments import (
    Network,
    add_network_arguments,
    command_parser,
    exit_status,
    floats,
    integers,
    names,
    take_network,
    user_path,
)
from sam2_mem.evaluation.charts import Axes, Series, line_chart
from sam2_mem.evaluation.inspection.animation import write_animation
from sam2_mem.evaluation.inspection.memory_deciphering import Deciphered, Study, decipher, means, table
from sam2_mem.evaluation.inspection.page import write_page
from sam2_mem.evaluation.inspection.recording import ObjectRecord, record_video
from sam2_mem.evaluation.inspection.sheet import write_sheet
from sam2_mem.tracking.vos import Clicks, MaskRules, PromptPlan, plan_from_clicks, plan_from_folder, plan_from_mask
from sam2_mem.video import VideoSource, open_video, read_mask_png

USAGE = """Show what memory holds on a video, and why.

    sam2-mem inspect show --video clip.mp4 --box 100,80,300,260 --policies rmem,xmem --out out/memory
    sam2-mem inspect show --video notebooks/videos/demo --masks notebooks/videos/demo_prompts/demo --frame 40 \\
        --policies fifo,sam2long --out out/memory
    sam2-mem inspect decipher --video notebooks/videos/demo --truth notebooks/videos/demo_gt/demo --out out/study

`show` writes a picture for every policy and object, animation.webp with the policies side by side, and index.html: frame, mask and memory under one slider. `decipher`
is RMem's study: how well a frame is decoded from banks of different size and contents made of true masks; it needs
ground truth. docs/inspection.md explains both.
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    verbs = parser.add_subparsers(dest="verb", required=True)
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_network_arguments(common)
    common.add_argument("--out", type=user_path, required=True, help="folder for the results")
    common.add_argument("--stop", type=int, help="first frame left out (default: the whole video)")
    show = verbs.add_parser("show", parents=[common], help="timeline, pictures and page", allow_abbrev=False)
    show.add_argument("--video", type=user_path, required=True, help="a video file or a folder of images")
    show.add_argument("--masks", type=user_path, help="PNG of object ids of the first frame, or a folder of them")
    show.add_argument("--box", type=floats, help="x0,y0,x1,y1 on the first frame")
    show.add_argument("--point", type=floats, help="x,y on the first frame")
    show.add_argument("--policies", type=names, default=("fifo",), help="names with commas between (default: fifo)")
    show.add_argument("--frame", type=int, help="frame whose memory the pictures show (default: the last)")
    show.add_argument("--objects", type=integers, default=(), help="ids with commas between (default: all)")
    show.add_argument("--width", type=int, default=256, help="width of the pictures kept")
    show.add_argument("--no_read_mass", dest="read_mass", action="store_false", help="do not measure attention")
    study = verbs.add_parser("decipher", parents=[common], help="J against bank size and contents", allow_abbrev=False)
    study.add_argument("--video", type=user_path, nargs="+", required=True, help="videos with ground truth")
    study.add_argument("--truth", type=user_path, nargs="+", required=True, help="for each, its folder of PNGs of ids")
    study.add_argument("--sizes", type=integers, help="frames in the bank, with commas between")
    study.add_argument("--contents", type=names, help="recent, spread, random, best, worst (default: all)")
    study.add_argument("--targets", type=int, help="most frames decoded per object")
    study.add_argument("--seed", type=int)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = vars(parse_arguments(argv))
    verb, network = arguments.pop("verb"), take_network(arguments)
    if verb == "show":
        prompts = {name: arguments.pop(name) for name in ("masks", "box", "point")}
        return exit_status(lambda: show(network=network, prompts=Prompts(**prompts), **arguments))
    question = {name: arguments.pop(name) for name in ("sizes", "contents", "targets", "seed")}
    question = {name: value for name, value in question.items() if value is not None}
    videos, truths = arguments.pop("video"), arguments.pop("truth")
    return exit_status(
        lambda: study(network=network, videos=videos, truths=truths, question=Study(**question), **arguments)
    )


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Which objects: ``masks`` a PNG of ids of the first frame or a folder of such PNGs named as the frames, in which
    objects may come late; or a ``box`` or ``point`` on the first frame."""

    masks: Path | None = None
    box: tuple[float, ...] | None = None
    point: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        prompts = [name for name in ("masks", "box", "point") if getattr(self, name) is not None]
        if len(prompts) != 1:
            raise ValueError(f"expected one of masks, box and point, got {' and '.join(prompts) or 'none'}")
        for name, count in (("box", 4), ("point", 2)):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"expected {count} numbers for {name}, got {len(value)}")

    def plan(self, source: VideoSource) -> PromptPlan:
        if self.masks is None:
            points: Any = () if self.point is None else (self.point,)
            box: Any = self.box
            return plan_from_clicks([Clicks(obj_id=1, points=points, labels=(1,) * len(points), box=box)])
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
    """Watch policies on a video; writes ``<policy>_<object>.png``, ``animation.webp`` and ``index.html`` into ``out``."""
    setting = network.setting()
    recordings = []
    for name in tqdm(dict.fromkeys(policies), unit="policy", disable=None, leave=False):
        with open_video(video) as source:
            predictor = setting.predictor(build_policy(name))
            plan = prompts.plan(source)
            recorded = record_video(predictor, source, plan, name=name, width=width, stop=stop, read_mass=read_mass)
            recordings.append(recorded)
    if frame is not None and frame not in recordings[0].pictures:
        raise ValueError(f"expected a frame of the {len(recordings[0].pictures)} watched, got {frame}")
    for recorded in recordings:
        for obj_id in objects or [i for i, record in recorded.objects.items() if record.frames]:
            if obj_id not in recorded.objects:
                raise ValueError(f"expected objects out of {sorted(recorded.objects)}, got {obj_id}")
            sheet = out / f"{recorded.policy}_{obj_id}.png"
            write_sheet(sheet, recorded, obj_id, _sheet_frame(recorded.objects[obj_id], frame))
    write_animation(out / "animation.webp", recordings)
    policy_names = ", ".join(recorded.policy for recorded in recordings)
    write_page(out / "index.html", recordings, title=f"{video.name}: memory of {policy_names}")
    print(f"{out / 'index.html'}")
    return 0


def _sheet_frame(record: ObjectRecord, frame: int | None) -> int | None:
    """``frame``, or for an object that is not tracked there its last one."""
    if frame is None or any(entry.frame == frame for entry in record.frames):
        return frame
    last = record.frames[-1].frame
    print(f"object {record.obj_id} is not tracked on frame {frame}; its last frame, {last}, is shown")
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
    results: dict[str, list[Deciphered]] = {}
    for video, folder in zip(videos, truths):
        with open_video(video) as source:
            frames = list(source.frames(0, stop))
        ids = _truth(folder, [f.name for f in frames])
        objects = sorted({int(i) for mask in ids.values() for i in np.unique(mask)} - {0, 255})
        for obj_id in tqdm(objects, unit="object", disable=None, leave=False):
            masks = {f.index: ids[f.name] == obj_id for f in frames if f.name in ids}
            first = min(i for i, mask in masks.items() if mask.any())
            masks = {i: mask for i, mask in masks.items() if i >= first}
            results.setdefault(video.name, []).extend(decipher(predictor, frames, masks, obj_id, question))
    print(table([result for of_video in results.values() for result in of_video]))
    _write_study(out, results, question)
    return 0


def _truth(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    ids = {n: read_mask_png(folder / f"{n}.png").ids for n in names if (folder / f"{n}.png").is_file()}
    if not any(mask.any() for mask in ids.values()):
        example = f"{names[0]}.png, ..."
        raise ValueError(f"expected PNGs of object ids in '{folder}', named as the frames ({example}), got none")
    return ids


def _write_study(out: Path, results: Mapping[str, Sequence[Deciphered]], question: Study) -> None:
    out.mkdir(parents=True, exist_ok=True)
    curves = means([result for of_video in results.values() for result in of_video])
    videos = {name: [asdict(result) for result in of_video] for name, of_video in results.items()}
    text = json.dumps({"study": asdict(question), "means": curves, "videos": videos}, indent=1)
    (out / "decipher.json").write_text(text + "\n", encoding="utf-8")
    axes = Axes(title="Memory deciphering: J from true memories", x_label="frames in the bank", y_label="J")
    lines = [Series(name=name, x=list(by_size), y=list(by_size.values())) for name, by_size in curves.items()]
    line_chart(out / "decipher.png", axes, lines)
