"""What ``tools/train.py`` does, one function per verb; each returns an exit status."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from safetensors.torch import save
from tqdm import tqdm

from sam2_mem.build_sam import build_training
from sam2_mem.cli.evaluate_training import Bench, report
from sam2_mem.config import compose_training
from sam2_mem.synthetic.scenes import LEVELS
from sam2_mem.training.distillation import Teacher
from sam2_mem.training.parallel import Team, join_team
from sam2_mem.training.plan import TrainingPlan
from sam2_mem.training.procedural import ProceduralClips
from sam2_mem.training.trainer import StepReport, Trainer

logger = logging.getLogger(__name__)


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
    job = build_training(composed, init=init, device=_device(device))
    team = join_team(job.model.device)
    teacher = None if job.teacher is None else Teacher(*job.teacher)
    trainer = Trainer(job.model, job.policy, job.plan, folder=out, team=team, fresh=job.fresh, teacher=teacher)
    trainer.resume()
    if team.leads:
        (out / "config.yaml").write_text(OmegaConf.to_yaml(composed))
    trainer.run(until=until, after_step=_progress(team, job.plan, trainer.step))
    return 0


def _device(wanted: str) -> str:
    """Under torchrun every process has a GPU of its own."""
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return wanted


def _progress(team: Team, plan: TrainingPlan, start: int) -> Callable[[StepReport], None] | None:
    """A progress bar for the leading process."""
    if not team.leads:
        return None
    bar = tqdm(total=plan.steps, initial=start, desc="steps", mininterval=5.0)

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
    if not float32:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    weights.write_bytes(save({k: v.contiguous() for k, v in state.items()}))
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
) -> int:
    """Measure a network; ``parts`` levels, still, curtain, memory, speed, folder; all by default."""
    if threads:
        torch.set_num_threads(threads)
    bench = Bench(config, weights, count=count, frames=frames, validation=validation)
    sections = {
        "levels": lambda: bench.levels(sorted(LEVELS)),
        "still": bench.steady,
        "curtain": bench.curtain,
        "memory": bench.memory,
        "speed": bench.speed,
    }
    if root is not None:
        sections["folder"] = lambda: bench.folder(layout, root)
    unknown = sorted(set(parts) - set(sections))
    if unknown:
        raise ValueError(f"expected parts out of {', '.join(sections)}, got {unknown}; folder needs --root")
    report([sections[p] for p in (parts or sections)], out)
    return 0


def clips(*, config: str, overrides: Sequence[str] = ()) -> int:
    """Render every procedural video that a config's stages may ask for."""
    plan = build_training(compose_training(config, overrides)).plan
    sources = [s.clips for s in plan.stages if isinstance(s.clips, ProceduralClips) and s.clips.folder]
    wanted = [(source, level, k) for source in sources for level in source.levels for k in range(source.count)]
    for source, level, number in tqdm(wanted, desc="clips"):
        source.video(level, number)
    return 0
