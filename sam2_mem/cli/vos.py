"""What ``tools/vos_inference.py`` does: which network, which videos, which prompts, and the exit status."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from omegaconf import DictConfig, OmegaConf

from sam2_mem import __version__
from sam2_mem._moved import renamed
from sam2_mem.build_sam import RANDOM, build_sam2_video_predictor
from sam2_mem.checkpoint import OFFICIAL_MODELS, local_path
from sam2_mem.claims import ClaimFolder
from sam2_mem.cli.arguments import exit_status
from sam2_mem.cli.download import how_to_download, offer
from sam2_mem.cli.launcher import Cluster, launch
from sam2_mem.cli.progress import progress
from sam2_mem.cli.volume import load_volume, segment_volume
from sam2_mem.cli.vos_arguments import DEFAULT_CHECKPOINT, DEFAULT_CONFIG, parse_arguments
from sam2_mem.cli.vos_datasets import apply_dataset_defaults, dataset_video_tasks, find_dataset, write_submission
from sam2_mem.config import checkpoint_dir, compose_video, config_names
from sam2_mem.files import sha256_of
from sam2_mem.tracking.run_manifest import RunFolder
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import (
    Clicks,
    FrameMasks,
    MaskRules,
    PromptPlan,
    plan_from_clicks,
    plan_from_mask,
    precision,
)
from sam2_mem.tracking.vos_run import (
    Outputs,
    RunOptions,
    Shard,
    VideoReport,
    VideoTask,
    dataset_tasks,
    list_videos,
    run,
    video_name,
)
from sam2_mem.video.sources import ADDRESS

logger = logging.getLogger("vos_inference")

SMALL_CONFIG = "configs/nano_v2.yaml"


# -- network --------------------------------------------------------------------------------------------------------


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
    are not here, and nobody at the terminal wants to download them."""
    if args.sam2_cfg is not None:
        return args.sam2_cfg
    default = Path(DEFAULT_CHECKPOINT)
    is_trial = (args.video or args.volume) is not None and args.sam2_checkpoint is None and _find(default) is None
    if is_trial and _has_small_model() and offer(default) is None:
        logger.warning("no %s, using the small model %s; %s", default, SMALL_CONFIG, how_to_download(default))
        return SMALL_CONFIG
    return DEFAULT_CONFIG


def caution(args: argparse.Namespace, name: str, weights: Weights) -> str:
    """What is to be said last of all of weights that nobody would ask for, or did not; empty for others."""
    if weights.path is None:
        return "NOTE: the weights were RANDOM, these masks mean nothing"
    if args.sam2_cfg is None and name == SMALL_CONFIG:
        how = how_to_download(Path(DEFAULT_CHECKPOINT))
        return f"NOTE: these masks are by the small model {Path(name).stem}, not by SAM 2, whose weights are not here; {how}"
    return ""


def _has_small_model() -> bool:
    if SMALL_CONFIG not in config_names():
        return False
    checkpoint = compose_video(SMALL_CONFIG).get("checkpoint")
    return checkpoint not in (None, RANDOM) and _find(Path(checkpoint)) is not None


def choose_weights(args: argparse.Namespace, config_name: str, config: DictConfig) -> Weights:
    """The weights asked for, else those that the config names, else the official file that belongs to it."""
    requested, configured = args.sam2_checkpoint, config.get("checkpoint")
    if requested == RANDOM or (requested in (None, "none") and configured == RANDOM):
        reason = "asked for" if requested == RANDOM else f"as {config_name} says"
        logger.warning("RANDOM WEIGHTS (%s, seed %d): the masks mean nothing", reason, args.seed)
        return Weights(None)
    if requested not in (None, "none"):
        path = local_path(requested)
        return Weights(path if path.is_file() else _offered(path, requested))
    if configured is None and requested == "none":
        raise ValueError(f"{config_name} names no checkpoint: expected --sam2_checkpoint FILE, or 'random', got 'none'")
    checkpoint = Path(configured or _official_file(config_name))
    return Weights(_find(checkpoint) or _offered(checkpoint.expanduser(), str(checkpoint)))


def _offered(path: Path, named: str) -> Path:
    """A published file that is not there, downloaded if somebody at the terminal wants it; else FileNotFoundError."""
    if (file := offer(path)) is not None:
        return file
    raise FileNotFoundError(f"no checkpoint '{named}'; {how_to_download(path)}, or give --sam2_checkpoint")


def _official_file(config_name: str) -> str:
    filenames = {Path(model.config).stem: model.filename for model in OFFICIAL_MODELS.values()}
    return f"./checkpoints/{filenames.get(Path(config_name).name.removesuffix('.yaml'), Path(DEFAULT_CHECKPOINT).name)}"


def _find(path: Path) -> Path | None:
    """A checkpoint by its path; a bare name, or one in ``checkpoints``, may be that of one of this package or checkout."""
    ours, path = checkpoint_dir() / path.name, path.expanduser()
    is_bare, may_be_ours = path.name == str(path), path.parent == Path("checkpoints")
    candidates = (ours, path) if is_bare else (path, ours) if may_be_ours else (path,)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


# -- task -----------------------------------------------------------------------------------------------------------


def make_tasks(args: argparse.Namespace) -> list[VideoTask]:
    if args.dataset is not None:
        return dataset_video_tasks(find_dataset(args))
    if args.volume is not None:
        return []
    if args.video is None:
        rules = MaskRules(
            per_object=args.per_obj_png_file,
            all_frames=args.use_all_masks,
            late=args.track_object_appearing_later_in_video,
            ignore=frozenset(args.ignore_ids),
        )
        names = list_videos(args.base_video_dir, args.video_list_file)
        return dataset_tasks(names, args.base_video_dir, args.input_mask_dir, rules)
    return [_single_task(args)]


def _single_task(args: argparse.Namespace) -> VideoTask:
    start, plan = args.start_frame, _single_plan(args)
    if ADDRESS.match(args.video):
        name = video_name(Path(urlsplit(args.video).path).name) or urlsplit(args.video).hostname or "stream"
        return VideoTask(name=name, video=args.video, plan=lambda source: plan, start=start)
    path = Path(args.video).expanduser()
    if args.video.isdecimal() and not path.exists():
        return VideoTask(name=f"camera{args.video}", video=int(args.video), plan=lambda source: plan, start=start)
    name = path.resolve().name if path.is_dir() else video_name(path.resolve().name)
    inputs = (path,) if path.is_dir() else ()
    return VideoTask(name=name, video=path, plan=lambda source: plan, start=start, inputs=inputs)


def _single_plan(args: argparse.Namespace) -> PromptPlan:
    if args.mask is not None:
        return plan_from_mask(args.mask, args.start_frame, ignore=frozenset(args.ignore_ids))
    return plan_from_clicks(make_clicks(args), args.start_frame)


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
    chosen = {name: _as_text(getattr(args, name)) for name in names.split()}
    settings: Any = OmegaConf.to_container(config, resolve=True)
    return {
        "arguments": {name: value for name, value in chosen.items() if value not in (None, False, [], ())},
        "config": {k: v for k, v in settings.items() if k != "checkpoint"},
        "weights": {key: weights.get(key) for key in ("random", "seed", "sha256")},
        "precision": precision(torch.device(device)),
        "sam2_mem": __version__,
    }


def _as_text(value: object) -> object:
    return str(value.resolve()) if isinstance(value, Path) else value


def show_progress(frames: Iterator[FrameMasks], name: str, total: int | None) -> Iterator[FrameMasks]:
    return progress(frames, name, total=total, unit="frame")


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
            rle=args.save_rle or "rle" in args.format,
            coco="coco" in args.format,
            yolo="yolo" in args.format,
            contact_sheet=single if args.contact_sheet is None else args.contact_sheet,
        ),
        score_thresh=args.score_thresh,
        allow_empty=args.allow_empty_prompts,
        max_frames=args.max_frames,
        shard=args.shard,
        resume=args.resume,
        checkpoint_every=args.checkpoint_every,
        checkpoint_required=args.checkpoint_required,
        share=args.share,
        settings=settings,
        about={
            "config_name": name,
            "weights": weights,
            "seed": args.seed,
            "arguments": settings["arguments"],
            "config": OmegaConf.to_container(config, resolve=True),
        },
    )


@dataclass(frozen=True)
class Setup:
    """What is to be segmented by what: the videos, the name of a config, the config with its weights, the weights."""

    tasks: list[VideoTask]
    name: str
    config: DictConfig
    weights: Weights


def make_setup(args: argparse.Namespace) -> Setup:
    """ValueError or OSError where the arguments cannot be used."""
    if args.dataset is not None:
        apply_dataset_defaults(args, find_dataset(args))
    tasks = make_tasks(args)
    if args.onnx is not None:
        config = _exported_config(args, network_overrides(args))
        return Setup(tasks, f"{args.onnx} by onnxruntime", config, Weights(args.onnx / "manifest.json"))
    name, config, weights = choose_network(args, apply_postprocessing=args.apply_postprocessing)
    return Setup(tasks, name, config, weights)


def network_overrides(args: argparse.Namespace) -> list[str]:
    """Changes to a config: masks may overlap only where each object has PNGs of its own."""
    return [f"++predictor.non_overlap_masks={'false' if args.per_obj_png_file else 'true'}", *args.overrides]


def choose_network(args: argparse.Namespace, *, apply_postprocessing: bool = True) -> tuple[str, DictConfig, Weights]:
    """The name of the config that is asked for, the config with its weights, and the weights."""
    name = choose_config(args)
    config = compose_video(name, network_overrides(args), apply_postprocessing=apply_postprocessing)
    weights = choose_weights(args, name, config)
    OmegaConf.update(config, "checkpoint", None if weights.path is None else str(weights.path), force_add=True)
    return name, config, weights


def _exported_config(args: argparse.Namespace, overrides: Sequence[str]) -> DictConfig:
    from sam2_mem.onnx import Manifest  # the extra `onnx`, which few have
    from sam2_mem.onnx.predictor import exported_config

    misplaced = [name for name in ("sam2_cfg", "sam2_checkpoint") if getattr(args, name) is not None]
    misplaced += ["use_vos_optimized_video_predictor"] * args.use_vos_optimized_video_predictor
    if misplaced or args.device not in ("auto", "cpu"):
        got = f"--{misplaced[0]}" if misplaced else f"--device {args.device}"
        raise ValueError(f"expected --onnx alone to say what the network is, on the CPU, got {got} with it")
    return exported_config(Manifest.read(args.onnx), overrides, apply_postprocessing=args.apply_postprocessing)


def make_predictor(args: argparse.Namespace, setup: Setup) -> SAM2VideoPredictor:
    torch.manual_seed(args.seed)
    if args.onnx is not None:
        from sam2_mem.onnx import OnnxPredictor

        return OnnxPredictor.of_config(args.onnx, setup.config)
    return build_sam2_video_predictor(
        setup.config,
        device=args.device,
        apply_postprocessing=False,  # it is in the config already
        vos_optimized=args.use_vos_optimized_video_predictor,
    )


def segment_videos(args: argparse.Namespace) -> list[VideoReport]:
    setup = make_setup(args)
    predictor = make_predictor(args, setup)
    described, device = setup.weights.described(args.seed), predictor.device.type
    options = make_options(args, setup.name, setup.config, described, device)
    try:
        return run(predictor, setup.tasks, options, progress=show_progress)
    finally:
        say_last(caution(args, setup.name, setup.weights))


# -- tasks of a cluster ---------------------------------------------------------------------------------------------


def segment_as_task(args: argparse.Namespace) -> int:
    """What each task of ``--launcher`` does."""
    return exit_status(lambda: print_summary(segment_videos(args), args.output_mask_dir))


def launch_tasks(args: argparse.Namespace) -> list[VideoReport]:
    """Segment with tasks that share the videos; the reports of all of them."""
    names = [task.name for task in make_setup(copy(args)).tasks]
    out = args.output_mask_dir.resolve()
    began = ClaimFolder(out / ".vos").now()
    shared = argparse.Namespace(
        **vars(args) | {"share": True, "resume": True, "shard": Shard(), "output_mask_dir": out}
    )
    failures = launch(
        segment_as_task, shared, Cluster.of(args), folder=out / ".vos" / "submitit", name="sam2-mem-segment"
    )
    for line in failures:
        logger.warning("%s", line)
    if not (out / ".vos" / "settings.json").is_file():
        raise ValueError(f"no task has begun a video: {failures[0]}")
    folder = RunFolder.existing(out)
    missing = "not done when all tasks had ended; the same command goes on with it"
    return [
        folder.finished(name) or folder.failed(name, began) or VideoReport(name=name, error=missing) for name in names
    ]


def say_last(text: str) -> None:
    """On stderr, after the progress of a run, where it is not overlooked."""
    if text and sys.stderr is not None:
        print(text, file=sys.stderr)


def print_summary(reports: Sequence[VideoReport], folder: Path) -> int:
    """Print how many videos are complete, and what failed; the exit code."""
    failed = [report for report in reports if report.error is not None]
    print(f"{len(reports) - len(failed)} of {len(reports)} videos are complete in {folder}")
    for report in reports:
        if report.stated_frames is not None:
            print(f"cut off: {report.name}: {report.frames} of {report.stated_frames} frames", file=sys.stderr)
    for report in failed:
        print(f"failed: {report.name}: {report.error}", file=sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """0: all done; 1: a video failed; 2: the arguments cannot be used."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    args = parse_arguments(argv)

    def segment() -> int:
        if args.volume is not None:
            volume, plan = load_volume(args.volume), _single_plan(args)
            print(segment_volume(args, make_predictor(args, make_setup(args)), plan, volume))
            return 0
        reports = launch_tasks(args) if args.launcher else segment_videos(args)
        status = print_summary(reports, args.output_mask_dir)
        if args.dataset is not None:
            print(write_submission(find_dataset(args), args.output_mask_dir, archive=args.zip))
        return status

    return exit_status(segment)


__getattr__ = renamed(__name__)
