"""The training loop: one step at a time, saved and resumed at any step, the same on one process or several.

Nothing random outlives a step: every clip of every step has a generator seeded by (seed, step, number of the clip),
so that a resumed run repeats an uninterrupted one, and two processes repeat one process with twice the clips.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from sam2_mem.files import atomic_path
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.occupancy import OccupancyHead
from sam2_mem.model.sam2 import SAM2, set_image_size
from sam2_mem.training.clip_pool import ClipFeed, ClipPool, SampledFeed
from sam2_mem.training.clips import Clip, ClipBatch, collate
from sam2_mem.training.curves import append_row, cut_rows, draw_curves, read_rows
from sam2_mem.training.distillation import DistillationTerms, Teacher, distillation_loss
from sam2_mem.training.initialization import Initialization, initialize_weights
from sam2_mem.training.joint_rollout import JointRollout, JointTerms, joint_loss
from sam2_mem.training.losses import LossTerms
from sam2_mem.training.parallel import Team, average_gradients
from sam2_mem.training.plan import Optimisation, Stage, TrainingPlan
from sam2_mem.training.propagation_start import PropagationStart, fit_occupancy, start_as_propagation
from sam2_mem.training.reconstruction import FeatureGenerator
from sam2_mem.training.rollout import Rollout, SegmentLoss, segment_loss

logger = logging.getLogger(__name__)

FORMAT = 1
ATTEMPTS = 20
STAGE_DRAW = 1 << 30
"""In place of the number of a clip in the seed of what is drawn for a step as a whole."""
MAX_SKIPPED = 5
"""Steps in a row whose gradients are not finite that end a run; fewer are left out."""
CHECKPOINT, BEST, CURVES, CHECKS = "last.pt", "best.pt", "curves", "validation"
WEIGHTS = "weights.safetensors"


class StepReport(NamedTuple):
    """One step: the unweighted losses, their weighted sum, the gradient norm before clipping, the learning rate."""

    step: int
    terms: LossTerms | JointTerms | DistillationTerms
    total: float
    norm: float
    rate: float
    seconds: float


class StepLosses(NamedTuple):
    """``values`` of the fields of ``kind``, and in the end their weighted sum."""

    kind: Any
    values: Tensor


class Trainer:
    """Trains ``model`` with ``policy`` after ``plan``.

    Args:
        model: its weights are changed.
        policy: the memory that is trained through.
        plan: see there.
        folder: where checkpoints and curves go.
        team: the processes that train together; by default this one.
        fresh: the model has random weights.
        teacher: of a plan with a distillation.
        feed: of new clips for the plan's pool; None: ``SampledFeed``.
    """

    def __init__(
        self,
        model: SAM2,
        policy: MemoryPolicy,
        plan: TrainingPlan,
        *,
        folder: Path,
        team: Team | None = None,
        fresh: bool = True,
        teacher: Teacher | None = None,
        feed: ClipFeed | None = None,
    ) -> None:
        if (plan.distillation is None) != (teacher is None):
            raise ValueError("expected a teacher with plan.distillation, and none without, got one of the two")
        self.model = model.train()
        self.policy = policy
        self.plan = plan
        self.folder = folder
        self.team = team or Team()
        self.step, self.elapsed, self._skipped = 0, 0.0, 0
        self.pool = None if plan.pool is None else _filled_pool(plan, model.device, feed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            head = OccupancyHead(model.width).to(model.device)
            reconstructs = plan.distillation is not None and plan.distillation.reconstruction > 0
            self.generator = FeatureGenerator(model.width).to(model.device) if reconstructs else None
        self.head = head if model.occupancy_head is None else model.occupancy_head
        if fresh and not (folder / CHECKPOINT).is_file():
            self._start(plan.start, torch.Generator().manual_seed(plan.seed))
        self.parameters = _trainable(self._named(), plan.optimisation)
        if teacher is not None:
            teacher.check(model)
            model.eval().memory_encoder.distiller.train()  # no dropout where nothing is trained
        if self.generator is not None and not plan.optimisation.factor("generator."):
            raise ValueError(
                "expected plan.optimisation.rates.generator > 0 with plan.distillation.reconstruction, got 0; add generator: 1.0"
            )
        self.teacher = teacher
        self._shared_encoder = teacher is not None and teacher.shares_encoder(model)
        self.optimizer = _optimizer(self._named(), plan.optimisation, model.device)
        self.ema = {n: p.detach().clone() for n, p in model.state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)

    def _start(self, start: Initialization | PropagationStart, generator: torch.Generator) -> None:
        """Change random weights before the first step."""
        if isinstance(start, Initialization):
            initialize_weights(self.model, start, generator)
            return
        stage = self.plan.stages[0]
        torch.manual_seed(self.plan.seed)
        batches = []
        for number in range(start.batches):
            rngs = [np.random.default_rng([self.plan.seed, number, clip, 1]) for clip in range(stage.batch)]
            batches.append(self._batch(stage, rngs))
        set_image_size(self.model, stage.clip_spec.size)
        start_as_propagation(self.model, torch.cat([b.images[:, 0] for b in batches]), start, generator)
        fit_occupancy(self.model, self.head, batches, start)

    def _named(self) -> list[tuple[str, Tensor]]:
        """All parameters, those that exist in training only included."""
        own: dict[str, nn.Module] = {} if self.model.occupancy_head is self.head else {"head": self.head}
        own |= {} if self.generator is None else {"generator": self.generator}
        extra = [(f"{part}.{n}", p) for part, module in own.items() for n, p in module.named_parameters()]
        return [*self.model.named_parameters(), *extra]

    # -- steps --------------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The step of the plan that comes next: of a plan with limited seconds, by the share of them that has passed."""
        if not self.plan.seconds:
            return self.step
        return min(self.plan.steps, int(self.plan.steps * self.elapsed / self.plan.seconds))

    def run(self, *, until: int | None = None, after_step: Callable[[StepReport], None] | None = None) -> None:
        """Train up to step ``until`` (default: the end of the plan), saving on the way and at the end."""
        last = self.plan.steps if until is None else min(until, self.plan.steps)
        saved = self.elapsed
        while self.position < last:
            report = self.advance()
            if after_step is not None:
                after_step(report)
            if self.team.leads and self.step % self.plan.log_every == 0:
                self._log(report)
            every, finished = self.plan.validation.every, self.position >= last
            if self.team.leads and every and (self.step % every == 0 or self.position == self.plan.steps):
                self.validate()
            due = (
                self.elapsed - saved >= self.plan.save_every
                if self.plan.seconds
                else self.step % self.plan.save_every == 0
            )
            if due or finished:
                saved = self.elapsed
                self.save(pictures=finished or not self.plan.seconds)

    def advance(self) -> StepReport:
        """One step: a batch of clips, tracked, and gradients of its losses applied."""
        began = time.perf_counter()
        stage = self.plan.stage_at(self.position)
        if stage.others:
            stage = stage.draw(np.random.default_rng([self.plan.seed, self.step, STAGE_DRAW]))
        torch.manual_seed(int(np.random.SeedSequence([self.plan.seed, self.step]).generate_state(1)[0]))
        rngs = [np.random.default_rng([self.plan.seed, self.step, number]) for number in self._clip_numbers(stage)]
        batch = self._batch(stage, rngs)
        losses = self._backward(stage, batch, rngs)
        rate = self._rate()
        norm = self._apply(rate)
        *terms, total = losses.values.tolist()
        self.step += 1
        if self.pool is not None:
            self.pool.refresh()
        seconds = time.perf_counter() - began
        self.elapsed += seconds
        return StepReport(self.step, losses.kind(*terms), total, norm, rate, seconds)

    def _rate(self) -> float:
        """Learning rate of the next step. Where seconds are limited, the warm-up still takes its number of real steps."""
        settings, steps = self.plan.optimisation, self.plan.steps
        if not self.plan.seconds:
            return settings.rate_at(self.step, steps)
        return settings.rate_at(max(self.position, settings.warmup), steps) * min(
            1.0, (self.step + 1) / settings.warmup
        )

    def _batch(self, stage: Stage, rngs: list[np.random.Generator]) -> ClipBatch:
        """Clips of the stage's source, or of the pool; the network then takes images of their size."""
        if stage.clips is None:
            assert self.pool is not None, "a plan without a pool has sources in all stages"
            return self.pool.draw(rngs[0], stage.batch, stage.clip_spec)
        clips = [self._clip(stage, rng) for rng in rngs]
        return collate(rngs, clips, stage.clip_spec).to(self.model.device)

    def _clip_numbers(self, stage: Stage) -> range:
        """Numbers of this process's clips among those of all processes."""
        return range(self.team.rank * stage.batch, (self.team.rank + 1) * stage.batch)

    def _clip(self, stage: Stage, rng: np.random.Generator) -> Clip:
        """A clip with objects in its first frame; of clips without labels those in which the teacher finds some."""
        assert stage.clips is not None, "clips of the pool are not asked for one by one"
        for _ in range(ATTEMPTS):
            clip = stage.clips.sample(rng, stage.clip_spec)
            if clip.labelled:
                return clip
            if self.teacher is None:
                raise ValueError("expected clips with labels, got one without; only a distillation can do without")
            with self._autocast():
                clip = self.teacher.label(clip, rng, stage.clip_spec)
            if clip.ids[0].any():
                return clip
        raise ValueError(
            f"expected the teacher to find an object in one of {ATTEMPTS} clips, got none; use labelled ones"
        )

    def _backward(self, stage: Stage, batch: ClipBatch, rngs: list[np.random.Generator]) -> StepLosses:
        """Gradients of a batch, segment by segment; the losses still on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        losses, kind, sums = (
            self._segment_losses(stage, batch, rngs),
            LossTerms,
            torch.zeros((), device=self.model.device),
        )
        while True:
            with nullcontext() if isinstance(stage.rollout, JointRollout) else self._autocast():
                loss = next(losses, None)
            if loss is None:
                break
            (loss.share * loss.total).backward()
            kind = type(loss.terms)
            sums = sums + loss.share * torch.stack([*loss.terms, loss.total]).detach()
        return StepLosses(kind, sums.expand(len(kind._fields) + 1))

    def _segment_losses(self, stage: Stage, batch: ClipBatch, rngs: list[np.random.Generator]) -> Iterator[SegmentLoss]:
        model, policy, settings, distillation = self.model, self.policy, stage.rollout, self.plan.distillation
        if isinstance(settings, JointRollout):
            if stage.clip_spec.size != model.image_size:
                set_image_size(model, stage.clip_spec.size)
            half = self.plan.amp if model.device.type == "cuda" else self.plan.half_trunk
            yield joint_loss(model, batch, settings, stage.prompts, head=self.head, rng=rngs[0], half_trunk=half)
            return
        if self.teacher is not None and distillation is not None:
            shared = self._shared_encoder
            yield from distillation_loss(
                *(model, policy, self.teacher, settings, distillation),
                batch=batch,
                rngs=rngs,
                shared=shared,
                generator=self.generator,
            )
            return
        for segment in Rollout(model, policy, settings, batch=batch, rngs=rngs).segments():
            if segment.predictions:
                yield segment_loss(segment.predictions, batch.truth, self.head, settings.losses, segment.share)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.plan.amp and self.model.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def _apply(self, rate: float) -> float:
        """Average over processes, clip, step, update the moving average; returns the norm before clipping."""
        average_gradients(self.parameters, self.team)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.plan.optimisation.clip))
        self._skipped = 0 if np.isfinite(norm) else self._skipped + 1
        if self._skipped >= MAX_SKIPPED:
            raise FloatingPointError(
                f"expected finite gradients, got {norm} in {MAX_SKIPPED} steps up to {self.step}; lower the rate"
            )
        if self._skipped:
            logger.warning("step %d is left out: the norm of its gradients is %s", self.step, norm)
            return norm
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self._update_ema()
        return norm

    @torch.no_grad()
    def _update_ema(self) -> None:
        """The decay of the moving average starts low, so that random weights are soon forgotten."""
        decay = min(self.plan.optimisation.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        names = [n for n in state if state[n].is_floating_point()]
        torch._foreach_lerp_([self.ema[n] for n in names], [state[n] for n in names], 1 - decay)

    # -- validation ---------------------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Score the averaged weights on every set; the best so far go to ``best.pt``."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.ema)
        model.requires_grad_(False)
        scores = self.plan.validation.scores(model.eval(), self.policy)
        scores["mean"] = float(np.mean(list(scores.values())))
        table = self.folder / f"{CHECKS}.csv"
        earlier = read_rows(table).get("mean", np.zeros(0)) if table.is_file() else np.zeros(0)
        append_row(table, {"step": self.step} | scores)
        logger.info("step %d: %s", self.step, ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
        if scores["mean"] > earlier.max(initial=-1.0):
            _write({"format": FORMAT, "step": self.step, "ema": self.ema}, self.folder / BEST)
        draw_curves(table, self.folder / f"{CHECKS}.png")
        return scores

    # -- files --------------------------------------------------------------------------------------------------

    def _log(self, report: StepReport) -> None:
        row = {"step": report.step, "loss": report.total, **report.terms._asdict()}
        row |= {"norm": report.norm, "rate": report.rate, "seconds": report.seconds}
        append_row(self.folder / f"{CURVES}.csv", row)

    def save(self, *, pictures: bool = True) -> None:
        """Write everything that resuming needs, and the curves as a picture, which takes a second."""
        if not self.team.leads:
            return
        content = {
            "format": FORMAT,
            "step": self.step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "head": self.head.state_dict(),
            **({} if self.generator is None else {"generator": self.generator.state_dict()}),
            "optimizer": self.optimizer.state_dict(),
        }
        _write(content, self.folder / CHECKPOINT)
        if self.plan.seconds:
            write_weights(self.ema, self.folder / WEIGHTS)
        if pictures and (self.folder / f"{CURVES}.csv").is_file():
            draw_curves(self.folder / f"{CURVES}.csv", self.folder / f"{CURVES}.png")

    def resume(self) -> bool:
        """Go on from the folder's checkpoint; False if there is none."""
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        content = torch.load(path, map_location=self.model.device, weights_only=True)
        if content.get("format") != FORMAT:
            raise ValueError(f"expected a training file of format {FORMAT}, got {content.get('format')} in {path}")
        self.model.load_state_dict(content["model"])
        self.head.load_state_dict(content["head"])
        if self.generator is not None:
            if "generator" not in content:
                raise ValueError(
                    f"expected the generator of plan.distillation.reconstruction in {path}, got none; set it to 0, or use another folder"
                )
            self.generator.load_state_dict(content["generator"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.ema = {n: t.to(self.model.device) for n, t in content["ema"].items()}
        self.step, self.elapsed = content["step"], content.get("elapsed", 0.0)
        if self.team.leads:
            for name in (CURVES, CHECKS):
                cut_rows(self.folder / f"{name}.csv", self.step + 1)
        logger.info("resumed %s at step %d", path, self.step)
        return True


def write_weights(state: Mapping[str, Tensor], path: Path, *, float32: bool = False) -> None:
    """Weights as safetensors, in float16 unless ``float32``."""
    rounded = {k: v.half() if v.is_floating_point() and not float32 else v for k, v in state.items()}
    with atomic_path(path) as part:
        part.write_bytes(save({k: v.contiguous().cpu() for k, v in rounded.items()}))


def _filled_pool(plan: TrainingPlan, device: torch.device, feed: ClipFeed | None) -> ClipPool:
    assert plan.pool is not None, "asked for with a pool only"
    pool = ClipPool(plan.pool, device, feed or SampledFeed(plan.pool.source, plan.pool.clip_spec, plan.seed))
    pool.fill()
    return pool


def _write(content: dict[str, Any], path: Path) -> None:
    with atomic_path(path) as part:
        torch.save(content, part)


def _trainable(named: Sequence[tuple[str, Tensor]], settings: Optimisation) -> list[Tensor]:
    """Parameters whose rate is not 0; the others stop asking for gradients."""
    for name, parameter in named:
        parameter.requires_grad_(settings.factor(name) > 0)
    return [p for _, p in named if p.requires_grad]


def _optimizer(
    named: Sequence[tuple[str, Tensor]], settings: Optimisation, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW; one group per rate factor and kind, vectors and codes without weight decay."""
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and "embed" not in name and "token" not in name
            groups.setdefault((settings.factor(name), decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "factor": factor, "weight_decay": settings.weight_decay if decays else 0.0}
            for (factor, decays), members in groups.items()
        ],
        lr=settings.rate,
        betas=(settings.betas[0], settings.betas[1]),
        fused=device.type in ("cpu", "cuda"),
    )
