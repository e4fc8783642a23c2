#!/usr/bin/env python
"""Segment objects through videos from the masks, boxes or clicks of their first frames.

A data set: one folder of frames (or one video file) per video, prompts as mask PNGs of the same names.

    python tools/vos_inference.py --base_video_dir DAVIS/JPEGImages/480p --input_mask_dir DAVIS/Annotations/480p \\
        --video_list_file DAVIS/ImageSets/2017/val.txt --output_mask_dir out/davis

One video, or a camera (--video 0):

    python tools/vos_inference.py --video clip.mp4 --box 100,80,300,260 --output out

Everything in the config can be changed by key=value at the end, the memory policy first of all:

    python tools/vos_inference.py ... memory_policy=fifo memory_policy.num_maskmem=5 model.image_size=512
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

try:
    import sam2_mem
except ModuleNotFoundError:  # run from a checkout that is not installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import sam2_mem

from sam2_mem.build_sam import RANDOM, build_sam2_video_predictor, checkpoint_dir, compose_video, config_names
from sam2_mem.checkpoint import HOW_TO_DOWNLOAD, OFFICIAL_MODELS, local_path, sha256_of
from sam2_mem.tracking.vos import Clicks, FrameMasks, MaskRules, plan_from_clicks, plan_from_mask, precision
from sam2_mem.tracking.vos_run import (
    Outputs,
    RunOptions,
    Shard,
    VideoReport,
    VideoTask,
    dataset_tasks,
    list_videos,
    run,
)

logger = logging.getLogger("vos_inference")

DEFAULT_CONFIG = "configs/sam2.1/sam2.1_hiera_b+.yaml"
DEFAULT_CHECKPOINT = "./checkpoints/sam2.1_hiera_base_plus.pt"
SMALL_CONFIG = "configs/nano.yaml"


# -- arguments ------------------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_model(parser.add_argument_group("model"))
    _add_dataset(parser.add_argument_group("videos of a data set"))
    _add_single(parser.add_argument_group("one video"))
    _add_output(parser.add_argument_group("output"))
    _add_tracking(parser.add_argument_group("tracking"))
    _add_running(parser.add_argument_group("long runs"))
    args = parser.parse_intermixed_args(argv)
    try:
        _check(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--sam2_cfg", help=f"name or path of a config (default: {DEFAULT_CONFIG})")
    group.add_argument(
        "--sam2_checkpoint",
        help=f"weights, .pt or .safetensors; 'none': those that the config names; 'random': random weights, for trials "
        f"(default: those that the config names, else its official file, e.g. {DEFAULT_CHECKPOINT})",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: the best there is)")
    group.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    group.add_argument(
        "--use_vos_optimized_video_predictor",
        action="store_true",
        help="compile the network; the first frames are slow",
    )
    group.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the config in Hydra's syntax, e.g. memory_policy=fifo",
    )


def _add_dataset(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base_video_dir", type=Path, help="holds <video>/<frame>.jpg (or .png), or <video>.mp4")
    group.add_argument("--input_mask_dir", type=Path, help="holds <video>/<frame>.png; pixel values are object ids")
    group.add_argument("--video_list_file", type=Path, help="one video per line (default: all in --base_video_dir)")
    group.add_argument("--use_all_masks", action="store_true", help="prompt with every PNG, each on its own frame")
    group.add_argument(
        "--track_object_appearing_later_in_video",
        action="store_true",
        help="follow every object from the first PNG that shows it (default: the objects of the first frame)",
    )
    group.add_argument(
        "--per_obj_png_file",
        action="store_true",
        help="one PNG per object, <video>/<object>/<frame>.png, in and out; objects may overlap (the layout of SA-V)",
    )
    group.add_argument(
        "--ignore_ids", type=_integers, default=(), metavar="ID[,ID...]", help="values that are no object, e.g. 255"
    )


def _add_single(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--video", help="a video file, a folder of frames, or the number of a camera")
    group.add_argument(
        "--box", type=_box, action="append", metavar="X0,Y0,X1,Y1", help="around an object; repeat it for more objects"
    )
    group.add_argument("--points", type=_points, default=(), metavar="X,Y[,X,Y...]", help="on the object")
    group.add_argument("--negative_points", type=_points, default=(), metavar="X,Y[,X,Y...]", help="beside the object")
    group.add_argument("--mask", type=Path, help="PNG of object ids; every id is tracked")
    group.add_argument(
        "--start_frame", type=int, default=0, help="frame that the prompts are for; earlier ones are left out"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output_mask_dir",
        "--output",
        type=Path,
        help="masks go to <video>/<frame>.png in it, as palette PNGs of object ids; run.json says how they were made",
    )
    choice = argparse.BooleanOptionalAction
    group.add_argument(
        "--save_overlay", action=choice, help="<video>_overlay.mp4, masks drawn over frames (default: with --video)"
    )
    group.add_argument(
        "--contact_sheet", action=choice, help="<video>_sheet.png, 24 small overlays (default: with --video)"
    )
    group.add_argument("--save_rle", action="store_true", help="<video>_masks.json, COCO run lengths")


def _add_tracking(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--score_thresh", type=float, default=0.0, help="mask logits above this are foreground (default: 0)"
    )
    group.add_argument(
        "--apply_postprocessing",
        action="store_true",
        help="fill small holes and choose single masks by stability; benchmark numbers are without",
    )
    group.add_argument("--max_frames", type=int, help="of each video (default: all)")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resume", action="store_true", help="skip videos that are complete; a video that was cut off starts again"
    )
    group.add_argument("--num_shards", type=int, default=1, help="split the videos between this many runs (default: 1)")
    group.add_argument("--shard_id", type=int, default=0, help="which of them this is, from 0")


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from error


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _numbers(text))


def _box(text: str) -> tuple[float, ...]:
    box = _numbers(text)
    if len(box) != 4:
        raise argparse.ArgumentTypeError(f"expected four numbers x0,y0,x1,y1, got {text!r}")
    return box


def _points(text: str) -> tuple[tuple[float, float], ...]:
    numbers = _numbers(text)
    if len(numbers) % 2:
        raise argparse.ArgumentTypeError(f"expected pairs x,y, got {len(numbers)} numbers")
    return tuple(zip(numbers[::2], numbers[1::2]))


def _check(args: argparse.Namespace) -> None:
    """ValueError unless the arguments say what to do, once."""
    stray = [o for o in args.overrides if "=" not in o and not o.startswith("~")]
    if stray:
        raise ValueError(f"expected changes to the config as key=value, got {' '.join(stray)}")
    if args.output_mask_dir is None:
        raise ValueError("expected --output_mask_dir (or --output), got none")
    if args.max_frames is not None and args.max_frames < 1:
        raise ValueError(f"expected --max_frames >= 1, got {args.max_frames}")
    args.shard = Shard(index=args.shard_id, of=args.num_shards)
    _check_single(args) if args.video is not None else _check_dataset(args)


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    return [f"--{name}" for name in names if getattr(args, name)]


def _check_dataset(args: argparse.Namespace) -> None:
    if args.base_video_dir is None or args.input_mask_dir is None:
        raise ValueError("expected --base_video_dir with --input_mask_dir, or --video for a single one")
    misplaced = _given(args, "box", "points", "negative_points", "mask", "start_frame")
    if misplaced:
        raise ValueError(f"expected {misplaced[0]} together with --video, got it with --base_video_dir")


def _check_single(args: argparse.Namespace) -> None:
    names = ("base_video_dir", "input_mask_dir", "video_list_file", "use_all_masks")
    misplaced = _given(args, *names, "track_object_appearing_later_in_video")
    if misplaced:
        raise ValueError(f"expected --video or a data set, got --video with {misplaced[0]}")
    clicks = _given(args, "box", "points", "negative_points")
    if bool(clicks) == (args.mask is not None):
        got = "both" if clicks else "neither"
        raise ValueError(f"expected either --mask or --box/--points to say what to track, got {got}")
    if clicks and not args.box and not args.points:
        raise ValueError("expected --negative_points beside --points or --box, got them alone")
    if len(args.box or ()) > 1 and (args.points or args.negative_points):
        raise ValueError("expected points with at most one --box, got several boxes; which object are the points on?")
    if args.start_frame < 0:
        raise ValueError(f"expected --start_frame >= 0, got {args.start_frame}")


# -- model ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """``path`` None: random."""

    path: Path | None

    def described(self, seed: int) -> dict[str, object]:
        if self.path is None:
            return {"random": True, "seed": seed, "path": None, "sha256": None}
        return {"random": False, "path": str(self.path.resolve()), "sha256": sha256_of(self.path)}


def choose_config(args: argparse.Namespace) -> str:
    """The config asked for. A single video is segmented by the small model in this package if the default one's weights
    are not here."""
    if args.sam2_cfg is not None:
        return args.sam2_cfg
    first_try = args.video is not None and args.sam2_checkpoint is None and _find(Path(DEFAULT_CHECKPOINT)) is None
    if first_try and _small_model_is_here():
        logger.warning("no %s, using the small model %s; %s", DEFAULT_CHECKPOINT, SMALL_CONFIG, HOW_TO_DOWNLOAD)
        return SMALL_CONFIG
    return DEFAULT_CONFIG


def _small_model_is_here() -> bool:
    named = compose_video(SMALL_CONFIG).get("checkpoint") if SMALL_CONFIG in config_names() else None
    return named not in (None, RANDOM) and _find(Path(named)) is not None


def choose_weights(args: argparse.Namespace, config_name: str, config: DictConfig) -> Weights:
    """The weights asked for, else those that the config names, else the official file that belongs to it."""
    asked, named = args.sam2_checkpoint, config.get("checkpoint")
    if asked == RANDOM or (asked in (None, "none") and named == RANDOM):
        who = "asked for" if asked == RANDOM else f"as {config_name} says"
        logger.warning("RANDOM WEIGHTS (%s, seed %d): the masks mean nothing", who, args.seed)
        return Weights(None)
    if asked not in (None, "none"):
        path = local_path(asked)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint '{asked}'; {HOW_TO_DOWNLOAD}, or give --sam2_checkpoint")
        return Weights(path)
    if named is None and asked == "none":
        raise ValueError(f"{config_name} names no checkpoint: expected --sam2_checkpoint FILE, or 'random', got 'none'")
    wanted = Path(named or _official_file(config_name))
    path = _find(wanted)
    if path is None:
        raise FileNotFoundError(f"no checkpoint '{wanted}'; {HOW_TO_DOWNLOAD}, or give --sam2_checkpoint")
    return Weights(path)


def _official_file(config_name: str) -> str:
    known = {Path(model.config).stem: model.filename for model in OFFICIAL_MODELS.values()}
    return f"./checkpoints/{known.get(Path(config_name).name.removesuffix('.yaml'), Path(DEFAULT_CHECKPOINT).name)}"


def _find(path: Path) -> Path | None:
    """A checkpoint by its path, or by its name among those of this package or checkout."""
    places = path.expanduser(), checkpoint_dir() / path.name
    return next((place for place in places if place.is_file()), None)


# -- task -----------------------------------------------------------------------------------------------------------


def make_tasks(args: argparse.Namespace) -> list[VideoTask]:
    if args.video is None:
        rules = MaskRules(
            per_object=args.per_obj_png_file,
            all_frames=args.use_all_masks,
            late=args.track_object_appearing_later_in_video,
            ignore=frozenset(args.ignore_ids),
        )
        names = list_videos(args.base_video_dir, args.video_list_file)
        return dataset_tasks(names, args.base_video_dir, args.input_mask_dir, rules)
    start, ignore = args.start_frame, frozenset(args.ignore_ids)
    if args.mask is not None:
        plan = plan_from_mask(args.mask, start, ignore=ignore)
    else:
        plan = plan_from_clicks(make_clicks(args), start)
    camera = args.video.isdecimal() and not Path(args.video).exists()
    name = f"camera{args.video}" if camera else Path(args.video).resolve().stem
    video = int(args.video) if camera else Path(args.video)
    return [VideoTask(name=name, video=video, plan=lambda source: plan, start=start)]


def make_clicks(args: argparse.Namespace) -> list[Clicks]:
    """Objects 1, 2, ... from boxes; points belong to the only one."""
    points = (*args.points, *args.negative_points)
    labels = (1,) * len(args.points) + (0,) * len(args.negative_points)
    boxes = args.box or [None]
    return [Clicks(obj_id=i, points=points, labels=labels, box=box) for i, box in enumerate(boxes, start=1)]


def masks_depend_on(args: argparse.Namespace, config: DictConfig, weights: dict[str, object], device: str) -> dict:
    """Everything that changes a mask: results of different settings do not go into one folder."""
    names = (
        "base_video_dir input_mask_dir use_all_masks track_object_appearing_later_in_video per_obj_png_file ignore_ids "
        "video box points negative_points mask start_frame score_thresh max_frames use_vos_optimized_video_predictor"
    )
    chosen = {name: _plain(getattr(args, name)) for name in names.split()}
    return {
        "arguments": {name: value for name, value in chosen.items() if value not in (None, False, [], ())},
        "config": {k: v for k, v in OmegaConf.to_container(config, resolve=True).items() if k != "checkpoint"},
        "weights": {key: weights.get(key) for key in ("random", "seed", "sha256")},
        "precision": precision(torch.device(device)),
        "sam2_mem": sam2_mem.__version__,
    }


def _plain(value: object) -> object:
    return str(value.resolve()) if isinstance(value, Path) else value


def show_progress(frames: Iterator[FrameMasks], name: str, total: int | None) -> Iterator[FrameMasks]:
    return iter(tqdm(frames, desc=name, total=total, unit="frame", dynamic_ncols=True))


def make_options(
    args: argparse.Namespace, name: str, config: DictConfig, weights: dict[str, object], device: str
) -> RunOptions:
    single = args.video is not None
    settings = masks_depend_on(args, config, weights, device)
    return RunOptions(
        outputs=Outputs(
            folder=args.output_mask_dir,
            per_object=args.per_obj_png_file,
            overlay=single if args.save_overlay is None else args.save_overlay,
            rle=args.save_rle,
            contact_sheet=single if args.contact_sheet is None else args.contact_sheet,
        ),
        score_thresh=args.score_thresh,
        max_frames=args.max_frames,
        shard=args.shard,
        resume=args.resume,
        settings=settings,
        about={
            "config_name": name,
            "weights": weights,
            "seed": args.seed,
            "arguments": settings["arguments"],
            "config": OmegaConf.to_container(config, resolve=True),
        },
    )


def segment_videos(args: argparse.Namespace) -> list[VideoReport]:
    tasks = make_tasks(args)
    name = choose_config(args)
    apart = f"++predictor.non_overlap_masks={'false' if args.per_obj_png_file else 'true'}"
    config = compose_video(name, [apart, *args.overrides], apply_postprocessing=args.apply_postprocessing)
    weights = choose_weights(args, name, config)
    OmegaConf.update(config, "checkpoint", None if weights.path is None else str(weights.path), force_add=True)
    torch.manual_seed(args.seed)
    predictor = build_sam2_video_predictor(
        config,
        device=args.device,
        apply_postprocessing=False,  # it is in the config already
        vos_optimized=args.use_vos_optimized_video_predictor,
    )
    options = make_options(args, name, config, weights.described(args.seed), predictor.device.type)
    return run(predictor, tasks, options, progress=show_progress)


def tell(reports: Sequence[VideoReport], folder: Path) -> int:
    """Say how it went; the exit code."""
    failed = [report for report in reports if report.error is not None]
    print(f"{len(reports) - len(failed)} of {len(reports)} videos are complete in {folder}")
    for report in failed:
        print(f"failed: {report.name}: {report.error}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """0: all done; 1: a video failed; 2: the arguments cannot be used."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    args = parse_arguments(argv)
    try:
        return tell(segment_videos(args), args.output_mask_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
