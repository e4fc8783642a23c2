"""From masks to memory: mask outputs become memory maps, distilled tokens and entries, as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import HasSensory, MemoryPolicy, Merging
from sam2_mem.memory.tokens import foreground_weights, masked_mean
from sam2_mem.model.acceleration.transfer import to_device_async, to_host
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking import sensory_update
from sam2_mem.tracking.batching import row_limit
from sam2_mem.tracking.mask_postprocessing import suppress_overlap
from sam2_mem.tracking.memory_reader import TrackPrediction
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import MaskOutput, Track, gated_output
from sam2_mem.types import (
    FrameContext,
    FrameFeatures,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
    MergeRequest,
    SensoryUpdate,
)

MERGE_ROUNDS = 64
"""Rounds of merging on one frame: a policy that asks for more never ends."""


@dataclass(eq=False)
class MemoryWriter:
    """Makes the memory of any number of objects.

    Attributes:
        model: the network.
        policy: says what entries need beside tokens, and what is merged.
        settings: dtype and device of what is stored, overlap, limits of batches.
    """

    model: SAM2
    policy: MemoryPolicy
    settings: TrackerSettings

    def __post_init__(self) -> None:
        self.sensory = sensory_update.active(self.model, self.policy)
        self._merging = self.policy if isinstance(self.policy, Merging) else None
        self._needs, self._gate = self.policy.needs, self.policy.min_obj_score_logits

    def encode_prompts(
        self, tracks: Sequence[Track], features: FrameFeatures, outputs: Sequence[MaskOutput]
    ) -> list[MemoryEntry]:
        """Entries of masks in answer to prompts; they update sensory memory by their memory map."""
        if self.sensory is not None:
            states = [self._sensory_state(track) for track in tracks]
            outputs = [replace(o, sensory=s, update=SensoryUpdate.DEEP) for o, s in zip(outputs, states)]
        return self.encode_outputs(tracks, features, outputs)

    def encode_memories(
        self,
        predictions: Sequence[TrackPrediction],
        selections: Sequence[MaskSelection],
        outputs: Sequence[MaskOutput],
        features: FrameFeatures,
    ) -> list[list[MemoryEntry]]:
        """Entries of the candidates that every track remembers, all in one batch; equal candidates share an entry.

        Args:
            predictions: of N tracks.
            selections: (N) by their policies.
            outputs: (N) the masks that are shown.
            features: of the frame.
        """
        if self.sensory is not None:
            states = [self._sensory_state(prediction.track) for prediction in predictions]
            maps = [p.maps[s.output.pathway] for p, s in zip(predictions, selections)]
            outputs = sensory_update.carried(self.sensory, outputs, [s.sensory for s in selections], states, maps)
        if self.settings.non_overlap_masks_for_mem_enc:
            logits = suppress_overlap(torch.stack([output.logits for output in outputs]))
            outputs = [replace(output, logits=x) for output, x in zip(outputs, logits)]
        to_encode: dict[tuple, tuple[Track, MaskOutput]] = {}
        keys_of_track = []
        for prediction, selection, output in zip(predictions, selections, outputs):
            track, shown_key, keys = prediction.track, prediction.mask_key(selection.output), []
            for candidate in selection.remember:
                remembered, mask_key = output, prediction.mask_key(candidate)
                keys.append((track.obj_id, mask_key, candidate.binarize))
                if keys[-1] in to_encode:
                    continue
                if mask_key != shown_key:
                    remembered = gated_output(self.model, features.index, prediction.hypotheses, candidate, self._gate)
                as_touched = candidate.binarize and self.model.binarize_prompted_masks
                remembered = replace(remembered, binarize=remembered.binarize or as_touched)
                to_encode[keys[-1]] = (track, remembered)
            keys_of_track.append(keys)
        tracks, remembered_outputs = [track for track, _ in to_encode.values()], [o for _, o in to_encode.values()]
        entries = dict(zip(to_encode, self.encode_outputs(tracks, features, remembered_outputs)))
        return [list(map(entries.__getitem__, keys)) for keys in keys_of_track]

    def encode_outputs(
        self, tracks: Sequence[Track], features: FrameFeatures, outputs: Sequence[MaskOutput]
    ) -> list[MemoryEntry]:
        """Memory entries of outputs of one frame; ``tracks`` says whose they are."""
        if not outputs:
            return []
        batch = row_limit(self.model, self.settings.max_rows)
        if not batch or features.low.ndim > 2:  # features with a row for each output go through at once
            batch = len(outputs)
        flags = self._flags(outputs)
        slices = [slice(start, start + batch) for start in range(0, len(outputs), batch)]
        maps = torch.cat([self._memory_maps(features, outputs[rows], flags[:, rows]) for rows in slices])
        states = [output.sensory for output in outputs]
        if self.sensory is not None:
            states = sensory_update.deepened(self.sensory, outputs, maps)
        tokens = self._stored(self.model.memory_encoder.distiller(maps))
        entries = []
        for output, state, tokens_of_output in zip(outputs, states, tokens):
            entry = MemoryEntry(
                frame=output.frame,
                tokens=tokens_of_output,
                pointer=output.pointer,
                iou=output.iou,
                objectness=output.objectness,
                area=output.area,
                is_prompt=output.prompted,
                summary=self._summary(features, output) if self._needs.summary else None,
                sensory=state,
                click_mask=output.logits if self._has_click_mask(output) else None,
            )
            entries.append(entry)
        return entries

    def _has_click_mask(self, output: MaskOutput) -> bool:
        return self._needs.click_mask and output.prompted and output.candidates > 1

    def _sensory_state(self, track: Track) -> Tensor | None:
        if track.state is None or not isinstance(self.policy, HasSensory):
            return None
        return self.policy.sensory(track.state)

    def merge_pending(self, state: Bank, frame: FrameContext) -> Bank:
        """``state`` with everything merged that its policy wants merged."""
        if self._merging is None:
            return state
        for _ in range(MERGE_ROUNDS):
            requests = self._merging.merge_requests(state, frame)
            if not requests:
                return state
            for request in requests:
                state = self._merging.take_merged(state, frame, request, self._merge(request, frame))
        raise RuntimeError(f"{type(self.policy).__name__} still asks to merge after {MERGE_ROUNDS} rounds")

    def _merge(self, request: MergeRequest, frame: FrameContext) -> MemoryTokens:
        assert frame.features is not None, "memory is made on a frame"
        tubes = [[entry.tokens for entry in request.entries]]
        distiller = self.model.memory_encoder.distiller
        return self._stored(distiller.merge_tubes(tubes, frame.features.grid, request.strength)[:1])[0]

    def _flags(self, outputs: Sequence[MaskOutput]) -> Tensor:
        """(2, R) bool of R outputs: whether memory is made of the hard mask, and whether the object is present."""
        binarize_prompted = self.model.binarize_prompted_masks and not self.model.training
        binarize = [output.binarize or (output.prompted and binarize_prompted) for output in outputs]
        present = [output.objectness > 0 for output in outputs]
        return to_device_async([binarize, present], outputs[0].logits.device)

    def _memory_maps(self, features: FrameFeatures, outputs: Sequence[MaskOutput], flags: Tensor) -> Tensor:
        """Memory maps (R, Cm, H, W) of R outputs."""
        logits = torch.stack([output.logits for output in outputs])
        return self.model.memory_maps(features, logits, binarize=flags[0], present=flags[1])

    def _stored(self, tokens: Sequence[MemoryTokens]) -> list[MemoryTokens]:
        """Tokens with features of the dtype and on the device that memory is kept in, each in storage of its own."""
        features = [t.feat.to(getattr(torch, self.settings.memory_dtype)) for t in tokens]
        device = self.settings.storage_device
        if features and features[0].is_cuda and device is not None and torch.device(device).type == "cpu":
            features = to_host(features)
        else:
            features = [f.to(device or f.device).clone(memory_format=torch.contiguous_format) for f in features]
        return [replace(t, feat=f) for t, f in zip(tokens, features)]

    def _summary(self, features: FrameFeatures, output: MaskOutput) -> Tensor | None:
        """Features averaged over a mask, None where it is empty: the image encoder's, or an embedder's."""
        logits, is_empty = output.logits, self._is_empty(output)
        if not self._needs.appearance:
            return masked_mean(features.low, foreground_weights(logits, features.grid), is_empty)
        appearance = features.appearance
        if appearance is None:
            raise ValueError(
                f"expected features with an appearance map, which {type(self.policy).__name__} asks for here, got none; "
                "give the predictor an embedder and encode frames with it"
            )
        return masked_mean(appearance.feat, foreground_weights(logits, appearance.grid), is_empty)

    def _is_empty(self, output: MaskOutput) -> bool | None:
        """Whether no pixel has any weight, as far as the scores tell: none has where the object is absent, and one above 0
        has enough."""
        if output.area > 0:
            return False
        limit = min(0.0, self._gate) if output.prompted else self._gate
        return True if output.objectness <= limit else None
