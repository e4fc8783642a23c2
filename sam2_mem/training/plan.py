"""A training run as data: what the files in ``configs/training`` say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sam2_mem._moved import renamed_fields
from sam2_mem.training.clip_pool import PoolSettings
from sam2_mem.training.clips import ClipSource, ClipSpec
from sam2_mem.training.distillation import Distillation
from sam2_mem.training.drawn_prompts import DrawnPrompts
from sam2_mem.training.initialization import Initialization
from sam2_mem.training.joint_rollout import JointRollout
from sam2_mem.training.propagation_start import PropagationStart
from sam2_mem.training.rollout import RolloutSettings
from sam2_mem.training.validation_sets import Validation


@renamed_fields(wish="clip_spec")
@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of the training.

    Attributes:
        until: the step at which it ends.
        clip_spec: what is asked of clips.
        clips: where they come from; None: from the plan's pool.
        batch: clips per step and process.
        rollout: prompts, memory noise, losses; a ``JointRollout`` tracks with FIFO memory from true masks, whatever the policy.
        prompts: on single frames, beside a ``JointRollout``.
        others: stages of which each step takes one, or this one; their ``until`` says nothing.
        share: how often this one is taken, relative to the sum of all.
    """

    until: int
    clip_spec: ClipSpec
    clips: ClipSource | None = None
    batch: int = 4
    rollout: RolloutSettings | JointRollout = RolloutSettings()
    prompts: DrawnPrompts = DrawnPrompts(weight=0.0)
    others: Sequence[Stage] = ()
    share: float = 1.0

    def __post_init__(self) -> None:
        if any(stage.others for stage in self.others) or min(s.share for s in (self, *self.others)) <= 0:
            raise ValueError("expected shares > 0, and others that have no others, got something else; list all in one")
        if self.prompts.weight and not isinstance(self.rollout, JointRollout):
            raise ValueError(
                "expected prompts on single frames beside a JointRollout only; set rollout.prompts instead"
            )

    def draw(self, rng: np.random.Generator) -> Stage:
        """This stage or one of the others, by their shares."""
        stages = [self, *self.others]
        shares = np.array([stage.share for stage in stages])
        return stages[int(rng.choice(len(stages), p=shares / shares.sum()))]


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW with a cosine schedule.

    Attributes:
        rate: peak learning rate.
        final: the share of it at the last step.
        warmup: steps.
        weight_decay: of matrices.
        betas: of AdamW.
        clip: largest gradient norm.
        ema: decay of the weights that are saved.
        rates: factors for modules by the longest prefix of their parameters' names; 0 freezes.
    """

    rate: float = 1e-3
    final: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    ema: float = 0.998
    rates: Mapping[str, float] = field(default_factory=dict)

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of ``step`` out of ``steps``."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.rate * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def factor(self, name: str) -> float:
        """Factor of the learning rate of parameter ``name``."""
        prefixes = [prefix for prefix in self.rates if name.startswith(prefix)]
        return self.rates[max(prefixes, key=len)] if prefixes else 1.0


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Everything about a run but the model.

    Attributes:
        stages: in order; the last ``until`` is the length of the run.
        optimisation: of all stages.
        start: how random weights are changed before the first step.
        pool: of clips, for stages without a source of their own.
        seconds: of training, start and clips before the first step not counted; the numbers of steps then say which share
            of the time a stage takes, and a run that is resumed has what is left of it. 0: no limit.
        seed: of everything.
        save_every: steps, or seconds where these are limited.
        log_every: steps.
        amp: bfloat16 autocast on CUDA; of a ``JointRollout`` for the trunk alone.
        half_trunk: the same for the trunk on a processor, which pays where it multiplies in bfloat16.
        validation: what to choose weights by.
        distillation: learn from a teacher, in place of from labels alone.
    """

    stages: Sequence[Stage]
    optimisation: Optimisation = Optimisation()
    start: Initialization | PropagationStart = Initialization()
    pool: PoolSettings | None = None
    seconds: float = 0.0
    seed: int = 0
    save_every: int = 250
    log_every: int = 25
    amp: bool = True
    half_trunk: bool = False
    validation: Validation = Validation()
    distillation: Distillation | None = None

    def __post_init__(self) -> None:
        ends = [s.until for s in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[0] < 1:
            raise ValueError(f"expected stages with increasing ends of at least 1, got {ends}")
        if self.pool is None and any(s.clips is None for stage in self.stages for s in (stage, *stage.others)):
            raise ValueError(
                "expected a source of clips in every stage of a plan without a pool, got a stage without one"
            )

    @property
    def steps(self) -> int:
        return self.stages[-1].until

    def stage_at(self, step: int) -> Stage:
        return next(s for s in self.stages if step < s.until)
