"""The best single eviction, looked up with the truth: how far a choice of frames alone could go. Whenever the bank is full,
that frame leaves without which the network's masks are best on the next frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.evaluation.comparison.oracle import OraclePredictor, as_kind
from sam2_mem.evaluation.videos import AnnotatedVideo
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.scored_bank import ScoredBank
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.memory_reader import MemoryReader, TrackPrediction
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import FrameContext, FrameFeatures, MaskSelection, MemoryEntry

VISIBLE_AHEAD = (1, 2, 4, 8, 16, 32)
"""Which of the later frames that show the object a bank is tried on, counted from 1; beside them the next frame, whatever it
shows."""

CACHED_FRAMES = 64
"""Frames whose features are held for the next look ahead."""


# -- the bank ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EvictionState(Bank):
    """A state whose next write is told which frame leaves.

    Attributes:
        leaves: number of the frame; None: the oldest.
    """

    leaves: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvictionBank(ScoredBank):
    """A bank from which the frame leaves that its state names."""

    def new_state(self, frame: FrameContext) -> EvictionState:
        return EvictionState()

    def score(self, state: Bank, entry: MemoryEntry) -> float:
        return -float(isinstance(state, EvictionState) and entry.frame == state.leaves)


def eviction_bank(policy: MemoryPolicy) -> EvictionBank:
    """A bank of as many frames as ``policy`` has.

    Raises:
        ValueError: ``policy`` is neither a ``ScoredBank`` nor SAM 2's window of successive frames.
    """
    pointers, prompts = policy.max_obj_ptrs_in_encoder, policy.max_prompts
    if isinstance(policy, ScoredBank):
        return EvictionBank(size=policy.size, max_obj_ptrs_in_encoder=pointers, max_prompts=prompts)
    maps = policy.num_maskmem if isinstance(policy, FIFO) else 0
    if maps < 2 or policy != FIFO(num_maskmem=maps, max_obj_ptrs_in_encoder=pointers, max_prompts=prompts):
        raise ValueError(
            f"expected fifo, with num_maskmem 2 or more and no other change, or a policy of one score (ScoredBank), for "
            f"oracle=eviction, got {policy}; leave out the oracle"
        )
    return EvictionBank(size=maps - 2, max_obj_ptrs_in_encoder=pointers, max_prompts=prompts)


# -- looking ahead ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class EvictionChoice:
    """One choice of the frame that leaves.

    Attributes:
        obj_id: the object.
        frame: the frame that is being written.
        state: the object's memory before it.
        values: mean J ahead by the frame that would leave.
    """

    obj_id: int
    frame: FrameContext
    state: Bank
    values: dict[int, float]

    @property
    def best(self) -> int:
        """The frame that leaves: without it J is highest; of equals the oldest."""
        return max(self.values, key=lambda f: (self.values[f], abs(self.frame.age(f))))


@dataclass(eq=False)
class Future:
    """What the later frames of a video are and show.

    Attributes:
        video: gives the truth of every frame.
        encode: gives the features of the frame of a number.
        size: (h, w) of the masks that are compared.
    """

    video: AnnotatedVideo
    encode: Callable[[int], FrameFeatures]
    size: tuple[int, int]
    _features: OrderedDict[int, FrameFeatures] = field(default_factory=OrderedDict)
    _ids: dict[int, Tensor] = field(default_factory=dict)

    def features(self, index: int) -> FrameFeatures:
        """Features of a frame, from a cache of the last ``CACHED_FRAMES``."""
        if index not in self._features:
            self._features[index] = self.encode(index)
            while len(self._features) > CACHED_FRAMES:
                self._features.popitem(last=False)
        self._features.move_to_end(index)
        return self._features[index]

    def mask(self, index: int, obj_id: int) -> Tensor:
        """The true mask (h, w) bool of an object on a frame, by the nearest pixel."""
        if index not in self._ids:
            ids = torch.from_numpy(self.video.truth(self.video.frames[index]).astype(np.int32))
            self._ids[index] = F.interpolate(ids[None, None].float(), self.size, mode="nearest-exact")[0, 0].int()
        return self._ids[index] == obj_id

    def frames_ahead(self, frame: FrameContext, obj_id: int) -> list[int]:
        """The next frame, and those of ``VISIBLE_AHEAD``."""
        later = range(frame.index - 1, -1, -1) if frame.reverse else range(frame.index + 1, len(self.video.frames))
        visible = (index for index in later if self.mask(index, obj_id).any())
        first = list(islice(visible, VISIBLE_AHEAD[-1]))
        return sorted({*later[:1], *(first[number - 1] for number in VISIBLE_AHEAD if number <= len(first))})


@dataclass(eq=False)
class EvictionWriter(MemoryWriter):
    """Tells the memory of every object which frame leaves.

    Each frame of a full bank is left out in turn. Every such bank is read as it would be read on the next frame, and the
    masks that the network draws from it on some later frames (``Future.frames_ahead``) are compared with the truth: J, 1
    where both are empty. Nothing is written on these frames, so a choice costs (``size`` + 1) x 7 rows of the network.

    Attributes:
        future: later frames and their truth.
        on_choice: hears of every choice.
    """

    policy: EvictionBank
    future: Future
    on_choice: Callable[[EvictionChoice], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        values = {f.name: getattr(self.policy, f.name) for f in fields(EvictionBank)}
        self._plain = EvictionBank(**values)  # a measured pass counts the reads of the policy itself
        self._reader = MemoryReader(self.model, self._plain, self.settings)

    def encode_memories(
        self,
        predictions: Sequence[TrackPrediction],
        selections: Sequence[MaskSelection],
        outputs: Sequence[MaskOutput],
        features: FrameFeatures,
    ) -> list[list[MemoryEntry]]:
        memories = super().encode_memories(predictions, selections, outputs, features)
        for prediction, selection, entries in zip(predictions, selections, memories):
            track = prediction.track
            banks = self._banks(prediction, selection, entries)
            if banks:
                choice = self._choice(prediction, banks)
                track.state = replace(_memory(track), leaves=choice.best)
                if self.on_choice is not None:
                    self.on_choice(choice)
        return memories

    def _banks(
        self, prediction: TrackPrediction, selection: MaskSelection, entries: Sequence[MemoryEntry]
    ) -> dict[int, Bank]:
        """Memory after this frame by the frame that leaves; nothing where there is room for all."""
        state, frame = _memory(prediction.track), prediction.frame
        rivals = [e.frame for e in state.entries if e.frame != frame.index]
        if not entries or len(rivals) <= self._plain.size:
            return {}
        new = frame, prediction.hypotheses, selection, entries
        return {leaving: self._plain.write(replace(state, leaves=leaving), *new) for leaving in rivals}

    def _choice(self, prediction: TrackPrediction, banks: Mapping[int, Bank]) -> EvictionChoice:
        obj_id, frame = prediction.track.obj_id, prediction.frame
        ahead = self.future.frames_ahead(frame, obj_id)
        columns = [self._overlaps(list(banks.values()), frame, index, obj_id) for index in ahead]
        values = {leaving: fmean(row) if row else 0.0 for leaving, *row in zip(banks, *columns)}
        return EvictionChoice(obj_id, frame, _memory(prediction.track), values)

    def _overlaps(self, banks: Sequence[Bank], frame: FrameContext, index: int, obj_id: int) -> list[float]:
        """J of the mask that each of ``banks``, as it is after ``frame``, gives on frame ``index``."""
        features, truth = self.future.features(index), self.future.mask(index, obj_id)
        following = replace(frame, index=frame.index + (-1 if frame.reverse else 1), features=features)
        tracks = [Track(number, bank) for number, bank in enumerate(banks)]
        return [self._overlap(p, truth) for p in self._reader.predict(tracks, features, following)]

    def _overlap(self, prediction: TrackPrediction, truth: Tensor) -> float:
        hypotheses = prediction.hypotheses
        best = self._plain.choose(_memory(prediction.track), prediction.frame, hypotheses).output
        mask = hypotheses.masks[best.pathway, best.candidate].cpu() > 0
        mask &= hypotheses.objectness[best.pathway] > self._plain.min_obj_score_logits
        union = int((mask | truth).sum())
        return int((mask & truth).sum()) / union if union else 1.0


def _memory(track: Track) -> EvictionState:
    assert isinstance(track.state, EvictionState), "a state of an EvictionBank"
    return track.state


class EvictionPredictor(OraclePredictor):
    """A predictor whose memory evicts the frame that the truth says; its policy is an ``EvictionBank``.

    Attributes:
        on_choice: hears of every choice.
    """

    policy: EvictionBank
    on_choice: Callable[[EvictionChoice], None] | None = None

    def init_state(self, *args: Any, **kwargs: Any) -> InferenceState:
        """A state with an ``EvictionWriter``.

        Raises:
            ValueError: no video is set, or not every frame of it has a truth.
        """
        state = super().init_state(*args, **kwargs)
        future = Future(self.annotated(state), lambda index: self.encode(state.frame(index)), self.model.mask_size)
        settings = state.tracker.settings
        state.tracker.writer = EvictionWriter(self.model, self.policy, settings, future, self.on_choice)
        return state


def with_best_eviction(predictor: SAM2VideoPredictor) -> EvictionPredictor:
    """The same network with a bank as large as the predictor's, from which the best frame leaves; see ``eviction_bank``."""
    return as_kind(predictor, EvictionPredictor, eviction_bank(predictor.policy))
