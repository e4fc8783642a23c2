"""The command line of ``tools/vos_inference.py``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sam2_mem.cli.arguments import (
    command_parser,
    user_path,
)
from sam2_mem.cli.launcher import add_launcher_arguments
from sam2_mem.evaluation.datasets import LAYOUTS
from sam2_mem.tracking.vos_run import Shard
from sam2_mem.video.sources import ADDRESS

USAGE = """Segment objects through videos from the masks, boxes or clicks of their first frames.

A data set: one folder of frames (or one video file) per video, prompts as mask PNGs of the same names.

    sam2-mem segment --base_video_dir DAVIS/JPEGImages/480p --input_mask_dir DAVIS/Annotations/480p \\
        --video_list_file DAVIS/ImageSets/2017/val.txt --output_mask_dir out/davis

The same by name: folders, prompts, flags, and an archive for the evaluation server.

    sam2-mem segment --dataset davis2017 --root DAVIS --output out/davis

One video, or a camera (--video 0):

    sam2-mem segment --video clip.mp4 --box 100,80,300,260 --output out

A volume, from the middle slice towards both ends (pip install "sam2_mem[volumes]"); masks come back as a volume:

    sam2-mem segment --volume scan.nii.gz --box 100,80,300,260 --window 400 --level 40 --output out

Everything in the config can be changed by key=value at the end, the memory policy first of all:

    sam2-mem segment ... memory_policy=fifo memory_policy.num_maskmem=5 model.image_size=512
"""
DEFAULT_CONFIG = "configs/sam2.1/sam2.1_hiera_b+.yaml"
FORMATS = ("coco", "yolo", "rle")
DEFAULT_CHECKPOINT = "./checkpoints/sam2.1_hiera_base_plus.pt"
CHECKPOINT_EVERY = 200
"""Frames between two checkpoints."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, checked together; exits with status 2 and the reason where they cannot be used."""
    parser = command_parser(USAGE)
    _add_model(parser.add_argument_group("model"))
    _add_dataset_name(parser.add_argument_group("a data set by its name"))
    _add_folders(parser.add_argument_group("videos of a data set"))
    _add_single(parser.add_argument_group("one video"))
    _add_volume(parser.add_argument_group("one volume"))
    _add_output(parser.add_argument_group("output"))
    _add_tracking(parser.add_argument_group("tracking"))
    _add_running(parser.add_argument_group("long runs"))
    args = parser.parse_intermixed_args(argv)
    try:
        if args.volume is not None:
            _check_volume(args, parser)
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
    group.add_argument(
        "--onnx", type=user_path, help="a folder that sam2-mem export has written: the network, run by onnxruntime"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: the best there is)")
    group.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    group.add_argument(
        "--use_vos_optimized_video_predictor",
        action="store_true",
        help="on CUDA: half precision and CUDA graphs; elsewhere compile the network, and the first frames are slow",
    )
    group.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="changes to the config in Hydra's syntax, e.g. memory_policy=fifo",
    )


def _add_dataset_name(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dataset", choices=sorted(LAYOUTS), help="where its videos and prompts are is known")
    group.add_argument("--root", type=user_path, help="of the data set, as it comes")
    group.add_argument("--split", help="whose list of videos and meta file to use (default: val or valid)")
    group.add_argument(
        "--zip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="submission.zip beside the masks: the frames that the evaluation server takes (default: yes)",
    )


def _add_folders(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base_video_dir", type=user_path, help="holds <video>/<frame>.jpg (or .png), or <video>.mp4")
    group.add_argument(
        "--input_mask_dir", type=user_path, help="holds <video>/<frame>.png; pixel values are object ids"
    )
    group.add_argument(
        "--video_list_file", type=user_path, help="one video per line (default: all in --base_video_dir)"
    )
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
    group.add_argument("--mask", type=user_path, help="PNG of object ids; every id is tracked")
    group.add_argument(
        "--start_frame", type=int, default=0, help="frame that the prompts are for; earlier ones are left out"
    )


def _add_volume(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--volume", help="a file that nibabel reads, e.g. scan.nii.gz; prompts are in voxels of one slice"
    )
    group.add_argument("--axis", type=int, choices=(0, 1, 2), default=2, help="that slices lie along (default: 2)")
    group.add_argument("--slice", type=int, help="that the prompts are for (default: the middle one)")
    group.add_argument("--window", type=float, help="width of the grey values that are told apart, e.g. 400")
    group.add_argument("--level", type=float, help="their centre, e.g. 40 (default of both: all but half a percent)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output_mask_dir",
        "--output",
        type=user_path,
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
    group.add_argument(
        "--format",
        type=_formats,
        default=(),
        metavar="NAME[,NAME...]",
        help="polygons beside the PNGs: coco (<video>_coco.json), yolo (folder <video>_yolo of pictures and labels, each "
        "object a class); rle as --save_rle",
    )


def _add_tracking(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--score_thresh", type=float, default=0.0, help="mask logits above this are foreground (default: 0)"
    )
    group.add_argument(
        "--apply_postprocessing",
        action="store_true",
        help="fill small holes and choose single masks by stability; benchmark numbers are without",
    )
    group.add_argument(
        "--allow_empty_prompts",
        action="store_true",
        help="go on where an object is empty on the frame of its box or points (default: that video fails)",
    )
    group.add_argument("--max_frames", type=int, help="of each video (default: all)")


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resume",
        action="store_true",
        help="skip videos that are complete; go on with one that was cut off at its checkpoint",
    )
    group.add_argument(
        "--checkpoint_every",
        type=int,
        metavar="FRAMES",
        help=f"save the memory of a video each time, so that --resume goes on there with equal masks; 0: never (default: "
        f"{CHECKPOINT_EVERY}, where it can be saved; given here, that it cannot is an error)",
    )
    group.add_argument(
        "--share",
        action="store_true",
        help="runs with the same videos and output, on any machines, share the work: each takes the longest video that is left, "
        "and those of runs that died; implies --resume",
    )
    group.add_argument("--num_shards", type=int, default=1, help="split the videos between this many runs (default: 1)")
    group.add_argument("--shard_id", type=int, default=0, help="which of them this is, from 0")
    add_launcher_arguments(group)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from error


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in _numbers(text))


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = sorted(set(names) - set(FORMATS))
    if unknown:
        raise argparse.ArgumentTypeError(f"expected formats out of {', '.join(FORMATS)}, got {', '.join(unknown)}")
    return names


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
    if args.share and args.num_shards > 1:
        raise ValueError("expected --share without --num_shards: runs that share take videos as they come")
    if args.launcher and args.shard_id:
        raise ValueError("expected --launcher without --shard_id: it starts all --num_shards tasks")
    args.resume = args.resume or args.share
    _check_checkpoints(args)
    if args.dataset is not None or args.root is not None:
        _check_dataset_name(args)
    elif args.video is not None or args.volume is not None:
        _check_single(args)
    else:
        _check_folders(args)


def _check_checkpoints(args: argparse.Namespace) -> None:
    """Whether videos must be saved, and how often they are."""
    args.checkpoint_required = bool(args.checkpoint_every)
    if args.checkpoint_every is None:
        args.checkpoint_every = CHECKPOINT_EVERY
    if args.checkpoint_every < 0:
        raise ValueError(f"expected --checkpoint_every >= 0, got {args.checkpoint_every}")
    is_stream = args.video is not None and (args.video.isdecimal() or ADDRESS.match(args.video) is not None)
    if args.checkpoint_required and is_stream:
        raise ValueError(f"expected --checkpoint_every with a video that can be read again, got '{args.video}'")


def _present(args: argparse.Namespace, *names: str) -> list[str]:
    return [f"--{name}" for name in names if getattr(args, name)]


def _check_dataset_name(args: argparse.Namespace) -> None:
    if args.dataset is None or args.root is None:
        raise ValueError("expected --dataset together with --root, got one of them")
    folders = ("video", "base_video_dir", "input_mask_dir", "box", "points", "negative_points", "mask", "start_frame")
    rules = ("use_all_masks", "track_object_appearing_later_in_video", "per_obj_png_file", "ignore_ids")
    misplaced = _present(args, *folders, *rules)
    if misplaced:
        raise ValueError(f"expected --dataset alone to say what to track, got it with {misplaced[0]}")


def _check_folders(args: argparse.Namespace) -> None:
    if args.base_video_dir is None or args.input_mask_dir is None:
        raise ValueError("expected --base_video_dir with --input_mask_dir, or --video for a single one")
    misplaced = _present(args, "box", "points", "negative_points", "mask", "start_frame")
    if misplaced:
        raise ValueError(f"expected {misplaced[0]} together with --video, got it with --base_video_dir")


ALSO_FOR_VOLUMES = {
    *("volume", "axis", "slice", "window", "level", "box", "points", "negative_points", "mask", "ignore_ids"),
    *("output_mask_dir", "score_thresh", "allow_empty_prompts", "apply_postprocessing"),
    *("sam2_cfg", "sam2_checkpoint", "device", "seed", "overrides"),
}


def _check_volume(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    strange = [n for n, v in vars(parser.parse_args([])).items() if n not in ALSO_FOR_VOLUMES and getattr(args, n) != v]
    if strange:
        raise ValueError(f"expected --volume without --{strange[0]}, which is for videos")
    if (args.window is None) != (args.level is None):
        raise ValueError("expected --window together with --level, got one of them")
    if args.window is not None and args.window <= 0:
        raise ValueError(f"expected --window > 0, got {args.window:g}")


def _check_single(args: argparse.Namespace) -> None:
    names = ("base_video_dir", "input_mask_dir", "video_list_file", "use_all_masks")
    misplaced = _present(args, *names, "track_object_appearing_later_in_video")
    if misplaced:
        raise ValueError(f"expected --video or a data set, got --video with {misplaced[0]}")
    clicks = _present(args, "box", "points", "negative_points")
    if bool(clicks) == (args.mask is not None):
        got = "both" if clicks else "neither"
        raise ValueError(f"expected either --mask or --box/--points to say what to track, got {got}")
    if clicks and not args.box and not args.points:
        raise ValueError("expected --negative_points beside --points or --box, got them alone")
    if len(args.box or ()) > 1 and (args.points or args.negative_points):
        raise ValueError("expected points with at most one --box, got several boxes; which object are the points on?")
    if args.start_frame < 0:
        raise ValueError(f"expected --start_frame >= 0, got {args.start_frame}")
