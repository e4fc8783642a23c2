"""The tracker. Every way of using the package goes through ``Tracker.step``: offline video, stream, training.

A tracker executes what policies decide. It is made of three parts: ``PromptDecoder`` answers prompts,
``MemoryReader`` predicts masks from memory, ``MemoryWriter`` makes memory of masks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from sam2_mem._moved import renamed
from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import MemoryPolicy, Revising
from sam2_mem.memory.questions import Probing
from sam2_mem.memory.trace import Cause, Change, Listener, notify, reports_usage, trace_record
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.arbiter import ARBITERS, Arbiter, arbitrate, compare_masks
from sam2_mem.tracking.archive import Archive, Kind
from sam2_mem.tracking.clip import FrameChoice, OpenClip
from sam2_mem.tracking.mask_postprocessing import clean_masks
from sam2_mem.tracking.memory_reader import Decision, MemoryReader, TrackPrediction
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.prompt_decoder import PromptDecoder
from sam2_mem.tracking.questions import with_answers
from sam2_mem.tracking.recall import Recall
from sam2_mem.tracking.refine import Refiner, note_reference, refine
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.tracking.track import MaskOutput, Track, frame_result, gated_output
from sam2_mem.types import FrameContext, FrameFeatures, FrameResult, MaskSelection, MemoryEntry, Revision


class Tracker:
    """Tracks any number of objects through one video.

    Args:
        model: the network; nothing of the video is kept on it.
        policy: how every object remembers; shared, stateless.
        settings: see ``TrackerSettings``.
        num_frames: length of the video, None for a stream.
        refiner: proposes other masks between the choice and memory; None for none. Prompted frames are left as they are.
        prompt_decoder: answers prompts; None for the ordinary one.
        reader: predicts masks from memory; None for the ordinary one.
        writer: makes memory of masks; None for the ordinary one.
        archive: keeps what leaves memory, for a session that comes back to it; None keeps nothing.
        arbiter: which of two objects that meet is hidden; None for that of the settings.
        keeps_decisions: hold the candidates of the latest frame, so that a user may choose another one.

    A ``listener`` hears of every change of memory, with the policy's reasons (``sam2_mem.memory.trace``). It changes
    no result; without one, nothing is asked.
    """

    def __init__(
        self,
        model: SAM2,
        policy: MemoryPolicy,
        *,
        settings: TrackerSettings | None = None,
        num_frames: int | None = None,
        refiner: Refiner | None = None,
        prompt_decoder: PromptDecoder | None = None,
        reader: MemoryReader | None = None,
        writer: MemoryWriter | None = None,
        archive: Archive | None = None,
        arbiter: Arbiter | None = None,
        keeps_decisions: bool = False,
    ) -> None:
        self.model = model
        self.policy = policy
        self.settings = TrackerSettings() if settings is None else settings
        self.num_frames = num_frames
        self.refiner = refiner
        self.arbiter = ARBITERS[self.settings.arbiter] if arbiter is None else arbiter
        self.keeps_decisions = keeps_decisions
        parts = (model, policy, self.settings)
        self.prompt_decoder = PromptDecoder(*parts) if prompt_decoder is None else prompt_decoder
        self.reader = MemoryReader(*parts) if reader is None else reader
        self.writer = MemoryWriter(*parts) if writer is None else writer
        self.sensory = self.writer.sensory
        hole, region = self.settings.fill_hole_area, self.settings.remove_region_area
        self._clean = partial(clean_masks, max_hole_area=hole, max_region_area=region)
        self.tracks: dict[int, Track] = {}
        self.archive = Archive() if archive is None else archive
        self.recall = Recall(policy, self.archive, model.device)
        self.listener: Listener | None = None
        self.clip: OpenClip | None = None
        self._gate = policy.min_obj_score_logits
        self.window: tuple[FrameFeatures, ...] = ()
        self._probing: Probing | None = (
            policy if policy.needs.window is not None and isinstance(policy, Probing) else None
        )
        self._revising: Revising | None = policy if policy.needs.revise and isinstance(policy, Revising) else None
        bounded = policy.capacity(model.tokens_per_map) is not None
        lag = policy.needs.revise
        self._history = self.settings.history + lag if bounded and lag < sys.maxsize else None

    # -- objects ------------------------------------------------------------------------------------------------

    def track(self, obj_id: int) -> Track:
        """The track of ``obj_id``, new if there was none."""
        return self.tracks.setdefault(obj_id, Track(obj_id))

    def remove(self, obj_id: int) -> None:
        self.close_clip()
        del self.tracks[obj_id]
        self.archive.remove(obj_id)

    def clear(self) -> None:
        """Forget all objects."""
        self.clip, self.window = None, ()
        self.tracks.clear()
        self.archive.clear()

    def context(self, features: FrameFeatures, *, reverse: bool = False) -> FrameContext:
        return FrameContext(index=features.index, features=features, reverse=reverse, num_frames=self.num_frames)

    def change(self, track: Track, cause: Cause, frame: FrameContext, state: Bank | None, **details: Any) -> None:
        """Give ``track`` a new memory; ``details``: further fields of ``Change``."""
        before, track.state = track.state, state
        if cause in (Cause.PROMPT, Cause.WRITE):
            self.archive.discard(Kind.MEMORY, track.obj_id, frame.index)
        if cause is not Cause.FORGET:
            self.archive.follow(track.obj_id, before, state)
        if self.listener is not None:
            change = Change(cause, frame, before, state, **details)
            notify(self.listener, trace_record(self.policy, track.obj_id, change))

    # -- prompts ------------------------------------------------------------------------------------------------

    def preview(self, features: FrameFeatures, prompt: Prompt) -> MaskOutput:
        """Answer a prompt without remembering anything yet; ``commit`` does that. See ``PromptDecoder.decode``."""
        self.close_clip()
        track = self.track(prompt.obj_id)
        context = self.context(features, reverse=bool(track.tracked.reverse_at(features.index)))
        frame = self.reader.context_for(track, context)
        output = self.prompt_decoder.decode(self.recall.as_read(track, prompt, frame), features, prompt, frame)
        track.pending[features.index] = output
        return output

    def commit(self, features: FrameFeatures) -> None:
        """Take every pending prompt of this frame into memory, all objects in one batch."""
        tracks = [track for track in self.tracks.values() if features.index in track.pending]
        if not tracks:
            return
        self.close_clip()
        outputs = [track.pending.pop(features.index) for track in tracks]
        entries = self.writer.encode_prompts(tracks, features, outputs)
        for track, output, entry in zip(tracks, outputs, entries):
            frame = self.reader.context_for(track, self.context(features))
            state = self.policy.prompt(track.state, frame, entry)
            state = self.writer.merge_pending(state, frame)
            self.recall.report_dropped_prompts(track, state)
            self.change(track, Cause.PROMPT, frame, state, entries=(entry,))
            self._show(track, output)
            if self.refiner is not None:
                note_reference(track, features, output)

    def _show(self, track: Track, output: MaskOutput) -> None:
        """``output`` is what the user sees from now on; older ones of the track are archived."""
        self.archive.discard(Kind.MASK, track.obj_id, output.frame)
        for old in track.remember_output(output, self._history):
            self.archive.add_mask(track.obj_id, old)

    # -- jumps --------------------------------------------------------------------------------------------------

    def resume(self, tracks: Sequence[Track], context: FrameContext) -> None:
        """Where an object's latest step was not on the frame before, its memory takes back what is read on this one."""
        for track in tracks:
            if not track.continues(context):
                frame = self.reader.context_for(track, context)
                state = self.recall.memory(track, frame)
                if state is not track.state:
                    self.change(track, Cause.RECALL, frame, state)
            track.latest = context.index, context.reverse

    # -- the step -----------------------------------------------------------------------------------------------

    def step(self, features: FrameFeatures, prompts: Iterable[Prompt] = (), *, reverse: bool = False) -> FrameResult:
        """One frame for all objects: answer its prompts, track all other objects, write memory.

        Args:
            features: of the frame.
            prompts: given on this frame.
            reverse: direction of this pass.

        Returns:
            masks of every object that has been prompted so far, in the order in which the objects came.
        """
        self.close_clip()
        for prompt in prompts:
            self.preview(features, prompt)
        self.commit(features)
        tracks = [track for track in self.tracks.values() if track.state is not None]
        context = self.context(features, reverse=reverse)
        self.resume(tracks, context)
        frames_before = [track.frames_in_memory() for track in tracks]
        if self.settings.clear_non_cond_mem_around_input:
            self._forget_around_prompts(tracks, features.index)
        moving = [track for track in tracks if not track.answered(features.index)]
        revisions = self._track(moving, features, context) if moving else ()
        size = self.policy.needs.window
        self.window = (*self.window, features)[-size:] if size else ()
        for track in tracks:
            track.tracked.add(features.index, reverse=reverse)
        return frame_result(self.model, tracks, features.index, frames_before, self._gate, revisions)

    def finish(self) -> tuple[Revision, ...]:
        """Masks that policies with deferred output still want to correct at the end of a pass."""
        if self._revising is None:
            return ()
        tracks = [track for track in self.tracks.values() if track.state is not None]
        return tuple(self._apply_revision(t, r) for t in tracks for r in self._revising.finish(t.state))

    def _track(self, tracks: Sequence[Track], features: FrameFeatures, context: FrameContext) -> tuple[Revision, ...]:
        compares = self.arbiter is not None and self.refiner is None and len(tracks) > 1
        predictions = self.reader.predict(
            tracks,
            features,
            context,
            keep_conditioned=self.refiner is not None,
            report_usage=reports_usage(self.listener),
            explain=self.listener is not None,
            compare=compare_masks if compares else None,
        )
        return self.take_in(self.decide(predictions, features))

    def decide(self, predictions: list[TrackPrediction], features: FrameFeatures) -> FrameChoice:
        """Masks of a frame, by policies, the refiner and the arbiter; memory stays as it is.

        Args:
            predictions: of N objects, at least one.
            features: of the frame.
        """
        if self._probing is not None:
            predictions = with_answers(self, self._probing, predictions, features)
        selections, outputs, decisions = [], [], []
        for prediction in predictions:
            track, hypotheses = prediction.track, prediction.hypotheses
            selection = self.policy.choose(track.state, prediction.frame, hypotheses)
            selections.append(replace(selection, remember=()) if track.frozen else selection)
            outputs.append(gated_output(self.model, features.index, hypotheses, selection.output, self._gate))
            if self.keeps_decisions:
                decisions.append(
                    Decision(replace(prediction, conditioned=()), selection.output, track.state, track.state)
                )
        if self.refiner is not None:
            for prediction, output in zip(predictions, outputs):
                note_reference(prediction.track, features, output)
            references = [prediction.track.reference for prediction in predictions]
            conditioned = [p.conditioned[s.output.pathway] for p, s in zip(predictions, selections)]
            unrefined = outputs
            outputs = refine(self.refiner, self.model, features, outputs, references, conditioned)
            predictions = [
                p if new is old else replace(p, hypotheses=replace(p.hypotheses, measured=None))
                for p, old, new in zip(predictions, unrefined, outputs)
            ]
        unwritten = {prediction.track.obj_id for prediction in predictions if prediction.track.frozen}
        if self.arbiter is not None:
            unwritten |= arbitrate(self.arbiter, self.model, self.policy, predictions, selections, outputs)
        for prediction, decision in zip(predictions, decisions):
            prediction.track.decision = decision
        return FrameChoice(features, predictions, selections, outputs, unwritten)

    def close_clip(self) -> None:
        """Memory takes in a clip that is being shown, as one that ends with the frame shown last."""
        clip, self.clip = self.clip, None
        if clip is not None and clip.choice is not None:
            with torch.inference_mode():
                self.take_in(clip.choice)

    def take_in(self, choice: FrameChoice) -> tuple[Revision, ...]:
        """Memory takes in the masks of a frame, and they are shown; gives earlier masks that this changes."""
        predictions, selections, outputs = choice.predictions, choice.selections, choice.outputs
        memories = self.writer.encode_memories(predictions, selections, outputs, choice.features)
        for prediction, selection, output, entries in zip(predictions, selections, outputs, memories):
            track = prediction.track
            self._write(prediction, selection, output, entries, is_kept=track.obj_id not in choice.unwritten)
            if track.decision is not None:
                track.decision = replace(track.decision, after=track.state)
        self.show(predictions, outputs)
        if self._revising is None:
            return ()
        revisions: list[Revision] = []
        for prediction in predictions:
            track = prediction.track
            if track.obj_id not in choice.unwritten:
                changed = self._revising.revise(track.state, prediction.frame)
                revisions += [self._apply_revision(track, revision) for revision in changed]
        return tuple(revisions)

    def show(self, predictions: Sequence[TrackPrediction], outputs: Sequence[MaskOutput]) -> None:
        """The user sees the masks of N objects on a frame, cleaned."""
        masks = self._clean(torch.stack([output.logits for output in outputs]))
        for prediction, output, logits in zip(predictions, outputs, masks):
            self._show(prediction.track, replace(output, logits=logits.clone()))

    def _write(
        self,
        prediction: TrackPrediction,
        selection: MaskSelection,
        output: MaskOutput,
        entries: Sequence[MemoryEntry],
        *,
        is_kept: bool,
    ) -> None:
        """``is_kept``: memory takes the frame in."""
        track, frame, hypotheses = prediction.track, prediction.frame, prediction.hypotheses
        if output.refined or self.settings.non_overlap_masks_for_mem_enc:  # not the mask that was measured
            hypotheses = replace(hypotheses, measured=None)
        cause, state = Cause.READ, track.state
        if is_kept:
            cause, state = Cause.WRITE, self.policy.write(track.state, frame, hypotheses, selection, entries)
            state = self.writer.merge_pending(state, frame)
        selected = {"selection": selection, "entries": tuple(entries)}
        self.change(track, cause, frame, state, hypotheses=hypotheses, usage=prediction.usage, **selected)

    def _forget_around_prompts(self, tracks: Sequence[Track], frame: int) -> None:
        if len(self.tracks) > 1 and not self.settings.clear_non_cond_mem_for_multi_obj:
            return
        for track in tracks:
            if frame in track.prompted_frames():
                state = self.policy.forget(track.state, frame, self.settings.forget_radius)
                self.archive.forget(track.obj_id, frame, self.settings.forget_radius)
                self.change(track, Cause.FORGET, FrameContext(frame, num_frames=self.num_frames), state)

    def _apply_revision(self, track: Track, revision: Revision) -> Revision:
        """A revision made ready to be shown; where the old mask is still held, it is replaced there too."""
        logits = self._clean(revision.logits[None])[0]
        output = track.outputs.get(revision.frame)
        if output is not None:
            output = replace(output, logits=logits, iou=revision.iou, objectness=revision.objectness)
            track.outputs[revision.frame] = output
        return replace(revision, obj_id=track.obj_id, logits=logits)


__getattr__ = renamed(__name__)
