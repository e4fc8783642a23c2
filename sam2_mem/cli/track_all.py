"""The command ``sam2-mem track-all``: everything in a video, without prompts."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.cli.arguments import command_parser, exit_status, user_path
from sam2_mem.cli.progress import progress
from sam2_mem.cli.vos import caution, choose_network, say_last
from sam2_mem.files import atomic_path
from sam2_mem.tracking.automatic_masks import SAM2AutomaticMaskGenerator
from sam2_mem.tracking.everything import DiscoverySettings, EverythingFrame, track_everything
from sam2_mem.tracking.vos import PromptPlan
from sam2_mem.tracking.vos_run import Outputs, video_name
from sam2_mem.video import MultiWriter, open_video

USAGE = """Track everything in a video, without prompts: automatic masks of the first frame, and of every few frames after it, where
what is not tracked yet becomes a new object.

    sam2-mem track-all clip.mp4 --output out
    sam2-mem track-all frames/ --output out --every 30 --max_objects 20 memory_policy=dam4sam

Masks go to <output>/<video>/<frame>.png, overlay and contact sheet beside them; <video>_objects.json says when each object
was found, when it was last seen, and its largest area.

Exit status: 0 done; 2 the arguments cannot be used.
"""

DISCOVERY = {
    "every": "frames from one search to the next; 0: the first frame only",
    "max_objects": "tracked at a time; of more, the largest",
    "min_area": "pixels of a new object",
    "max_area": "share of the frame; larger masks are background",
    "matched_iou": "a mask is the tracked object with which it has at least this IoU",
    "min_uncovered": "share of a new object that no tracked object covers",
    "lost_after": "frames in a row without an object after which it is given up",
}
GENERATOR = {
    "points_per_side": "of the grid of clicks",
    "pred_iou_thresh": "automatic masks of a lower predicted IoU are left out",
    "stability_score_thresh": "automatic masks of a lower stability are left out",
}
DEFAULTS = {"points_per_side": 32, "pred_iou_thresh": 0.8, "stability_score_thresh": 0.95}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = command_parser(USAGE)
    parser.add_argument("video", help="a video file or a folder of frames")
    parser.add_argument("--output", type=user_path, required=True, help="a folder")
    parser.add_argument("--sam2_cfg", help="name or path of a config, as for segment")
    parser.add_argument("--sam2_checkpoint", help="weights, as for segment")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: the best there is)")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: 0)")
    parser.add_argument("--max_frames", type=int, help="of the video (default: all)")
    parser.add_argument("--per_obj_png_file", action="store_true", help="one PNG per object; for more than 255 of them")
    choice = argparse.BooleanOptionalAction
    parser.add_argument("--save_overlay", action=choice, default=True, help="<video>_overlay.mp4 (default: yes)")
    parser.add_argument("--contact_sheet", action=choice, default=True, help="<video>_sheet.png (default: yes)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the config, as for segment")
    search = parser.add_argument_group("which objects")
    for item in fields(DiscoverySettings):
        search.add_argument(
            f"--{item.name}",
            type=type(item.default),
            default=item.default,
            help=_help(DISCOVERY, item.name, item.default),
        )
    for name, value in DEFAULTS.items():
        search.add_argument(f"--{name}", type=type(value), default=value, help=_help(GENERATOR, name, value))
    args = parser.parse_intermixed_args(argv)
    if args.max_frames is not None and args.max_frames < 1:
        parser.error(f"expected --max_frames >= 1, got {args.max_frames}")
    return args


def _help(texts: dict[str, str], name: str, default: object) -> str:
    return f"{texts[name]} (default: {default})"


def track_all(args: argparse.Namespace) -> int:
    """Write the masks of everything in a video; 0."""
    settings = DiscoverySettings(**{name: getattr(args, name) for name in DISCOVERY})
    name, config, weights = choose_network(args)
    torch.manual_seed(args.seed)
    # Post-processing is in the config already; added once more it would win over the user's own settings of it.
    predictor = build_sam2_video_predictor(config, device=args.device, apply_postprocessing=False)
    generator = SAM2AutomaticMaskGenerator(predictor.model, **{key: getattr(args, key) for key in GENERATOR})
    outputs = Outputs(
        folder=args.output,
        per_object=args.per_obj_png_file,
        overlay=args.save_overlay,
        contact_sheet=args.contact_sheet,
    )
    path = Path(args.video).expanduser()
    title = path.resolve().name if path.is_dir() else video_name(path.name)
    if (args.output / title).resolve() == path.resolve():
        raise ValueError(f"expected an output folder apart from what is read, got '{args.output}'; choose another one")
    with open_video(path) as source:
        state = predictor.init_state(source, interactive=False)
        history: dict[int, dict[str, int]] = {}
        frames = track_everything(predictor, state, generator, settings, stop=args.max_frames)
        plan = PromptPlan((), {})
        with MultiWriter(outputs.mask_writer(title, plan), outputs.extra_writer(title, source.fps)) as writer:
            for shown in progress(frames, title, total=source.num_frames, unit="frame"):
                writer.write(shown.frame, shown.masks)
                _note(history, shown)
    with atomic_path(args.output / f"{title}_objects.json") as part:
        part.write_text(json.dumps({"video": args.video, "objects": history}, indent=1))
    print(f"{len(history)} objects in {args.output / title}")
    say_last(caution(args, name, weights))
    return 0


def _note(history: dict[int, dict[str, int]], shown: EverythingFrame) -> None:
    """First and last frame and largest area of every object."""
    for obj_id, mask in shown.masks.items():
        area = int(mask.sum())
        record = history.setdefault(obj_id, {"first_frame": shown.frame.index, "last_frame": -1, "largest_area": 0})
        if area:
            record["last_frame"] = shown.frame.index
            record["largest_area"] = max(record["largest_area"], area)


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 2: the arguments cannot be used."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    args = parse_arguments(argv)
    return exit_status(lambda: track_all(args))
