"""The frame loop. Every way of using the package goes through :meth:`Tracker.step`: offline video, stream, training.

This is the only place that knows about batches: policies see one object, the network sees rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sam2_mem.memory.bank import Bank
from sam2_mem.memory.policy import HasSensory, MemoryPolicy, Merging, Revising, best_candidate
from sam2_mem.memory.tokens import foreground_weights, map_tokens, masked_mean
from sam2_mem.memory.trace import Cause, Change, Listener, notify, trace_record
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.mask_decoder import DecoderMaps
from sam2_mem.model.sam2 import SAM2, Decoded
from sam2_mem.prompts import Prompt
from sam2_mem.tracking import batching, sensory_update
from sam2_mem.tracking.mask_postprocessing import fill_holes, remove_regions, suppress_overlap
from sam2_mem.tracking.refine import Refiner, first_look, refine
from sam2_mem.tracking.track import MaskOutput, Track
from sam2_mem.types import (
    ABSENT_LOGIT,
    CandidateId,
    FrameContext,
    FrameFeatures,
    FrameResult,
    Hypotheses,
    MaskSelection,
    MemoryEntry,
    MemoryTokens,
    MergeRequest,
    ObjectScore,
    ReadUsage,
    Revision,
    RowBatch,
    SensoryUpdate,
    Usage,
)

MASK_HINT_LIMIT = 32.0
CPU_BATCH = 8192
"""Image tokens in a batch on a CPU, two rows at an image size of 1024: larger temporaries only miss its caches."""
MOST_MERGES = 64
"""Rounds of condensing on one frame: a policy that asks for more never ends."""


@dataclass(frozen=True, kw_only=True)
class TrackerSettings:
    """What the tracker does around a policy; the keys of the ``tracker`` section of a config.

    Attributes:
        fill_hole_area, remove_region_area: holes and specks of at most this many mask-logit pixels are repainted in the
            output; 0 for never.
        non_overlap_masks_for_mem_enc: objects may not overlap in what is written to memory.
        clear_non_cond_mem_around_input: forget tracked memory within ``forget_radius`` frames of a prompt, when one object
            is tracked, or any number with ``clear_non_cond_mem_for_multi_obj``.
        memory_dtype: what spatial memory is rounded to, as in SAM 2; "float32" to keep it exact.
        storage_device: where spatial memory waits, e.g. "cpu"; None for the device of the model.
        history: outputs kept per object, for corrections; unbounded where the policy is.
        max_padding: see :func:`sam2_mem.tracking.batching.assemble`. max_rows: most rows that go through the network together, 0 for
            no limit, None for what is best: on a CPU as many as have :data:`CPU_BATCH` image tokens, elsewhere no limit.
    """

    fill_hole_area: int = 0
    remove_region_area: int = 0
    non_overlap_masks_for_mem_enc: bool = False
    clear_non_cond_mem_around_input: bool = False
    clear_non_cond_mem_for_multi_obj: bool = False
    forget_radius: int = 7
    memory_dtype: str = "bfloat16"
    storage_device: str | None = None
    history: int = 16
    max_padding: float = 0.0
    max_rows: int | None = None

    def __post_init__(self) -> None:
        allowed = ("bfloat16", "float16", "float32")
        if self.memory_dtype not in allowed:
            raise ValueError(f"expected memory_dtype in {allowed}, got {self.memory_dtype!r}")
        for name in ("fill_hole_area", "remove_region_area", "forget_radius", "max_rows"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"expected {name} >= 0, got {getattr(self, name)}")
        if self.history < 1:
            raise ValueError(f"expected history >= 1, got {self.history}")
        batching.bucket([], max_padding=self.max_padding)


class _Candidate(NamedTuple):
    """One candidate of one track, taken out of its batch: ``logits`` (h, w), ``pointer`` (C), both ungated."""

    logits: Tensor
    pointer: Tensor
    iou: float
    objectness: float
    area: float


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the network says of one track on one frame. ``places`` (P): the batch and row of each pathway, equal for
    pathways that read the same. ``conditioned`` (P)(Q, C): what the masks were decoded from, kept for a refiner;
    ``maps`` (P): the decoder's, kept for sensory memory; ``usage`` (P): attention, where it was measured."""

    hypotheses: Hypotheses
    places: tuple[tuple[int, int], ...]
    conditioned: tuple[Tensor, ...] = ()
    maps: tuple[DecoderMaps, ...] = ()
    usage: tuple[ReadUsage, ...] | None = None

    def same_mask(self, one: CandidateId, other: CandidateId) -> bool:
        return self.identity(one)[:2] == self.identity(other)[:2]

    def identity(self, pick: CandidateId) -> tuple:
        """Equal for picks of the same mask, also through different pathways."""
        return (self.places[pick.pathway], pick.candidate, pick.binarize)

    def candidate(self, pick: CandidateId) -> _Candidate:
        p, m = pick.pathway, pick.candidate
        hyp = self.hypotheses
        return _Candidate(hyp.masks[p, m], hyp.pointers[p, m], hyp.iou[p][m], hyp.objectness[p], hyp.areas[p][m])


class Tracker:
    """Tracks any number of objects through one video.

    Args:
        model: the network; nothing of the video is kept on it. policy: how every object remembers; shared, stateless.
        settings: see :class:`TrackerSettings`. num_frames: length of the video, None for a stream.
        refiner: proposes other masks between the choice and memory; None for none. Prompted frames are left as they are.

    A ``listener`` hears of every change of memory, with the policy's reasons (:mod:`sam2_mem.memory.trace`). It changes
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
    ) -> None:
        self.model = model
        self.policy = policy
        self.settings = TrackerSettings() if settings is None else settings
        self.num_frames = num_frames
        self.refiner = refiner
        self.sensory = sensory_update.active(model, policy)
        self.tracks: dict[int, Track] = {}
        self.listener: Listener | None = None
        bounded = policy.capacity(model.tokens_per_map) is not None
        self._history = self.settings.history if bounded else None

    # -- objects ------------------------------------------------------------------------------------------------

    def track(self, obj_id: int) -> Track:
        """The track of ``obj_id``, new if there was none."""
        return self.tracks.setdefault(obj_id, Track(obj_id))

    def remove(self, obj_id: int) -> None:
        del self.tracks[obj_id]

    def context(self, features: FrameFeatures, *, reverse: bool = False) -> FrameContext:
        return FrameContext(index=features.index, features=features, reverse=reverse, num_frames=self.num_frames)

    def change(self, track: Track, cause: Cause, frame: FrameContext, state: Bank | None, **given: Any) -> None:
        """Give ``track`` a new memory; ``given``: further fields of :class:`~sam2_mem.memory.trace.Change`."""
        before, track.state = track.state, state
        if self.listener is not None:
            told = Change(cause, frame, before, state, **given)
            notify(self.listener, trace_record(self.policy, track.obj_id, told))

    def _shown_to(self, track: Track, context: FrameContext) -> FrameContext:
        """The frame as the policy of ``track`` sees it."""
        return context

    # -- prompts ------------------------------------------------------------------------------------------------

    def preview(self, features: FrameFeatures, prompt: Prompt) -> MaskOutput:
        """Answer a prompt without remembering anything yet; :meth:`commit` does that.

        On a frame that this object has been tracked on, the prompt corrects: memory is read, and the mask shown so far
        is a hint. On any other frame the prompt stands alone, as a first prompt does.
        """
        track = self.track(prompt.obj_id)
        if prompt.mask is not None:
            decoded = self.model.mask_as_output(features, self._mask_at_input_size(prompt.mask))
        else:
            decoded = self._answer_points(track, features, prompt)
        seen = self._seen([decoded], [None], [((0, 0),)])[0]
        threshold = self.policy.min_obj_score_logits if prompt.mask is None else 0.0
        output = self._output(features.index, seen.candidate(best_candidate(seen.hypotheses)), threshold, prompted=True)
        output = replace(output, logits=self._clean(output.logits[None])[0])
        track.pending[features.index] = output
        return output

    def _mask_at_input_size(self, mask: Tensor) -> Tensor:
        """(H, W) bool -> (S, S) of 0 and 1."""
        side = self.model.image_size
        mask = mask.to(self.model.device)[None, None].float()
        if tuple(mask.shape[-2:]) != (side, side):
            mask = F.interpolate(mask, size=(side, side), mode="bilinear", antialias=True)
        return (mask[0, 0] >= 0.5).float()

    def _answer_points(self, track: Track, features: FrameFeatures, prompt: Prompt) -> Decoded:
        points, labels = self._points_at_input_size(prompt)
        with_memory = track.state is not None and features.index in track.tracked
        if with_memory:
            context = self.context(features, reverse=bool(track.tracked.reverse_at(features.index)))
            reads = list(self.policy.read(track.state, context))[:1]
            assembled = batching.assemble(reads, self.model)
            conditioned = self._conditioned(features, assembled.batches[0] if assembled.batches else None)
        else:
            conditioned = self.model.without_memory(features)
        shown = track.output_at(features.index)
        hint = None if shown is None else shown.logits.clamp(-MASK_HINT_LIMIT, MASK_HINT_LIMIT)[None, None]
        several = self.model.candidates.allows(points.shape[1], with_memory=with_memory)
        return self.model.decode(
            conditioned, features, points=points, labels=labels, mask_logits=hint, candidates=several
        )

    def _conditioned(self, features: FrameFeatures, batch) -> Tensor:
        if batch is None:
            return self.model.without_memory(features)
        return self.model.attend(features, batch).features

    def _points_at_input_size(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Box corners (labels 2 and 3) then points, as (1, N, 2) in input pixels and (1, N)."""
        points, labels = [], []
        if prompt.box is not None:
            points.append(prompt.box.reshape(2, 2))
            labels.append(torch.tensor([2, 3], dtype=torch.int32))
        if prompt.points is not None:
            points.append(prompt.points)
            labels.append(prompt.labels)
        height, width = prompt.size
        scale = torch.tensor([width, height], dtype=torch.float32)
        where = torch.cat([p.cpu() for p in points]) / scale * self.model.image_size
        device = self.model.device
        return where[None].to(device), torch.cat([x.cpu() for x in labels])[None].to(device)

    def commit(self, features: FrameFeatures) -> None:
        """Take every pending prompt of this frame into memory, all objects in one batch."""
        waiting = [t for t in self.tracks.values() if features.index in t.pending]
        if not waiting:
            return
        outputs = [t.pending.pop(features.index) for t in waiting]
        entries = self._remember(waiting, features, self._sensed_prompts(waiting, outputs))
        context = self.context(features)
        for track, output, entry in zip(waiting, outputs, entries):
            frame = self._shown_to(track, context)
            state = self._settled(self.policy.prompt(track.state, frame, entry), frame)
            self.change(track, Cause.PROMPT, frame, state, entries=(entry,))
            track.remember_output(output, self._history)
            self._note_look(track, features, output)

    def _sensed_prompts(self, tracks: Sequence[Track], outputs: Sequence[MaskOutput]) -> Sequence[MaskOutput]:
        """Prompts update sensory memory by their memory map."""
        if self.sensory is None:
            return outputs
        states = [None if t.state is None else self._sensory_state(t) for t in tracks]
        return [replace(o, sensory=s, update=SensoryUpdate.DEEP) for o, s in zip(outputs, states)]

    def _sensory_state(self, track: Track) -> Tensor | None:
        return self.policy.sensory(track.state) if isinstance(self.policy, HasSensory) else None

    def _note_look(self, track: Track, features: FrameFeatures, output: MaskOutput) -> None:
        """What the object looks like on the first frame on which it is seen."""
        if self.refiner is not None and track.look is None and output.area > 0:
            track.look = first_look(features, output.logits)

    # -- the step -----------------------------------------------------------------------------------------------

    def step(self, features: FrameFeatures, prompts: Iterable[Prompt] = (), *, reverse: bool = False) -> FrameResult:
        """One frame for all objects: answer its prompts, track everybody else, write memory.

        Args:
            features: of the frame. prompts: given on this frame. reverse: direction of this pass.

        Returns:
            masks of every object that has been prompted so far, in the order in which the objects came.
        """
        for prompt in prompts:
            self.preview(features, prompt)
        self.commit(features)
        context = self.context(features, reverse=reverse)
        present = [t for t in self.tracks.values() if t.state is not None]
        before = {t.obj_id: self._held(t) for t in present}
        self._forget_around_prompts(present, features.index)
        moving = [t for t in present if not t.answered(features.index)]
        revisions = self._track(moving, context) if moving else ()
        for track in present:
            track.tracked.add(features.index, reverse=reverse)
        return self._result(present, features.index, before, revisions)

    def finish(self) -> tuple[Revision, ...]:
        """Masks that policies with deferred output still want to correct at the end of a pass."""
        tracks = [t for t in self.tracks.values() if t.state is not None]
        if not isinstance(self.policy, Revising):
            return ()
        return tuple(self._rewritten(t, r) for t in tracks for r in self.policy.finish(t.state))

    def _rewritten(self, track: Track, revision: Revision) -> Revision:
        """A revision made ready to be shown; where the old mask is still held, it is replaced there too."""
        logits = self._clean(revision.logits[None])[0]
        old = track.outputs.get(revision.frame)
        if old is not None:
            new = replace(old, logits=logits, iou=revision.iou, objectness=revision.objectness)
            track.outputs[revision.frame] = new
        return replace(revision, obj_id=track.obj_id, logits=logits)

    def _forget_around_prompts(self, tracks: Sequence[Track], frame: int) -> None:
        wanted = self.settings.clear_non_cond_mem_around_input
        if not wanted or (len(self.tracks) > 1 and not self.settings.clear_non_cond_mem_for_multi_obj):
            return
        for track in tracks:
            if frame in track.prompted_frames():
                state = self.policy.forget(track.state, frame, self.settings.forget_radius)
                self.change(track, Cause.FORGET, FrameContext(frame, num_frames=self.num_frames), state)

    def _track(self, tracks: Sequence[Track], context: FrameContext) -> tuple[Revision, ...]:
        looked = self._look(tracks, context)
        choices = [self._choice(t, s, context) for t, s in zip(tracks, looked)]
        gate = self.policy.min_obj_score_logits
        outputs = [self._output(context.index, s.candidate(c.output), gate) for s, c in zip(looked, choices)]
        if self.refiner is not None:
            outputs = self._refined(tracks, looked, choices, outputs, context)
        remembered = self._remembered(tracks, looked, choices, self._sensed(tracks, looked, choices, outputs), context)
        for track, seen, choice, entries in zip(tracks, looked, choices, remembered):
            frame, hyp = self._shown_to(track, context), seen.hypotheses
            state = track.state
            if not track.frozen:
                state = self._settled(self.policy.write(state, frame, hyp, choice, entries), frame)
            cause, written = (Cause.READ, ()) if track.frozen else (Cause.WRITE, tuple(entries))
            self.change(track, cause, frame, state, hypotheses=hyp, selection=choice, entries=written, usage=seen.usage)
        shown = self._clean(torch.stack([o.logits for o in outputs]))
        for track, output, logits in zip(tracks, outputs, shown):
            track.remember_output(replace(output, logits=logits.clone()), self._history)
        if not self.policy.needs.revise or not isinstance(self.policy, Revising):
            return ()
        written = [t for t in tracks if not t.frozen]
        revised = ((t, self.policy.revise(t.state, self._shown_to(t, context))) for t in written)
        return tuple(self._rewritten(t, r) for t, revisions in revised for r in revisions)

    def _choice(self, track: Track, seen: _Seen, context: FrameContext) -> MaskSelection:
        choice = self.policy.choose(track.state, self._shown_to(track, context), seen.hypotheses)
        return replace(choice, remember=()) if track.frozen else choice

    def _sensed(
        self,
        tracks: Sequence[Track],
        looked: Sequence[_Seen],
        choices: Sequence[MaskSelection],
        outputs: Sequence[MaskOutput],
    ) -> Sequence[MaskOutput]:
        """Outputs that carry their object's state of sensory memory."""
        if self.sensory is None:
            return outputs
        before = [self._sensory_state(t) for t in tracks]
        maps = [s.maps[c.output.pathway] for s, c in zip(looked, choices)]
        return sensory_update.carried(self.sensory, outputs, [c.sensory for c in choices], before, maps)

    def _refined(
        self,
        tracks: Sequence[Track],
        looked: Sequence[_Seen],
        choices: Sequence[MaskSelection],
        outputs: Sequence[MaskOutput],
        context: FrameContext,
    ) -> list[MaskOutput]:
        """Outputs as the refiner leaves them."""
        for track, output in zip(tracks, outputs):
            self._note_look(track, context.features, output)
        conditioned = [s.conditioned[c.output.pathway] for s, c in zip(looked, choices)]
        return refine(self.refiner, self.model, context.features, outputs, [t.look for t in tracks], conditioned)

    def _look(self, tracks: Sequence[Track], context: FrameContext) -> list[_Seen]:
        """Read, attend and decode for all pathways of all tracks."""
        reads, owners = [], []
        for track in tracks:
            pathways = list(self.policy.read(track.state, self._shown_to(track, context)))
            owners.append(range(len(reads), len(reads) + len(pathways)))
            reads += pathways
        settings = self.settings
        assembled = batching.assemble(reads, self.model, max_padding=settings.max_padding, max_rows=self._max_rows())
        features, wanted = context.features, self._usage(tracks, context)
        usage = self._measured(wanted)
        owner_at = {p: t for t, own in zip(tracks, owners) for p in (assembled.place[i] for i in own)}
        decoded, reports, conditioned = [], [], []
        for b, batch in enumerate(assembled.batches):
            found, report, attended = self._see([owner_at[b, r] for r in range(batch.rows)], features, batch, usage)
            decoded.append(found)
            reports.append(report)
            conditioned.append(attended)
        place = list(assembled.place)
        if None in place:
            place = [(len(decoded), 0) if p is None else p for p in place]
            several = self.model.candidates.allows(0, with_memory=True)
            conditioned.append(self.model.without_memory(features))
            keep = self.sensory is not None
            decoded.append(self.model.decode(conditioned[-1], features, candidates=several, keep_maps=keep))
            reports.append((ReadUsage(tokens=(), items=features.low.new_zeros(features.low.shape[0], 0)),))
        reports = reports if usage is not Usage.NONE else [None] * len(reports)
        owned = [tuple(place[i] for i in own) for own in owners]
        seen = self._seen(decoded, reports, owned)
        if self.listener is not None:
            seen = [_overheard(s, wanted, self.listener.read_mass) for s in seen]
        if self.refiner is not None:
            seen = [replace(s, conditioned=tuple(conditioned[b][r] for b, r in s.places)) for s in seen]
        if self.sensory is not None:
            seen = [
                replace(s, maps=tuple(sensory_update.maps_at(decoded[b].maps, r) for b, r in s.places)) for s in seen
            ]
        return seen

    def _see(
        self, owners: Sequence[Track], features: FrameFeatures, batch: RowBatch, usage: Usage
    ) -> tuple[Decoded, tuple[ReadUsage, ...] | None, Tensor]:
        """Attend and decode one batch of rows, also giving the features (R, Q, C) in between; ``owners`` (R) are their
        tracks."""
        several = self.model.candidates.allows(0, with_memory=True)
        attended = self.model.attend(features, batch, usage)
        keep = self.sensory is not None
        decoded = self.model.decode(attended.features, features, candidates=several, keep_maps=keep)
        return decoded, attended.usage, attended.features

    def _usage(self, tracks: Sequence[Track], context: FrameContext) -> Usage:
        """What any object needs; the network measures a batch as a whole. RuntimeError where two need different things."""
        wanted = {self.policy.usage_at(t.state, self._shown_to(t, context)) for t in tracks} - {Usage.NONE}
        if len(wanted) > 1:
            raise RuntimeError(
                f"expected all objects to want one kind of usage on frame {context.index}, got {sorted(u.value for u in wanted)}; "
                f"have usage_at of {type(self.policy).__name__} return needs.usage or Usage.NONE"
            )
        return wanted.pop() if wanted else Usage.NONE

    def _measured(self, wanted: Usage) -> Usage:
        """What is measured: what policies want, else something if a listener asks for it."""
        heard = self.listener is not None and self.listener.read_mass
        return Usage.TOKENS if wanted is Usage.NONE and heard else wanted

    def _seen(
        self, decoded: Sequence[Decoded], reports: Sequence, owned: Sequence[tuple[tuple[int, int], ...]]
    ) -> list[_Seen]:
        """Sort rows back to their tracks. All scores of the frame come to the CPU in one transfer."""
        scores = [
            torch.cat([d.objectness[:, None], d.iou, (d.masks > 0).flatten(2).float().mean(2)], dim=1).detach()
            for d in decoded
        ]
        table = torch.cat(scores).tolist()
        starts = [sum(s.shape[0] for s in scores[:b]) for b in range(len(scores))]
        several = decoded[0].iou.shape[1]
        result = []
        for places in owned:
            lines = [table[starts[b] + r] for b, r in places]
            hypotheses = Hypotheses(
                masks=torch.stack([decoded[b].masks[r] for b, r in places]),
                pointers=torch.stack([decoded[b].pointers[r] for b, r in places]),
                iou=tuple(tuple(line[1 : 1 + several]) for line in lines),
                objectness=tuple(line[0] for line in lines),
                usage=None if reports[0] is None else tuple(reports[b][r] for b, r in places),
                areas=tuple(tuple(line[1 + several :]) for line in lines),
            )
            result.append(_Seen(hypotheses, tuple(places)))
        return result

    def _output(self, frame: int, chosen: _Candidate, threshold: float, *, prompted: bool = False) -> MaskOutput:
        """Gate a candidate: an absent object has an empty mask and the learned "no object" pointer."""
        present = chosen.objectness > threshold
        flag = to_device_async([present], chosen.pointer.device)
        return MaskOutput(
            frame=frame,
            logits=chosen.logits.clone() if present else torch.full_like(chosen.logits, ABSENT_LOGIT),
            pointer=self.model.gate_pointers(chosen.pointer[None], flag)[0],
            iou=chosen.iou,
            objectness=chosen.objectness,
            area=chosen.area if present else 0.0,
            prompted=prompted,
        )

    def _clean(self, logits: Tensor) -> Tensor:
        filled = fill_holes(logits, self.settings.fill_hole_area)
        return remove_regions(filled, self.settings.remove_region_area)

    # -- memory -------------------------------------------------------------------------------------------------

    def _remembered(
        self,
        tracks: Sequence[Track],
        looked: Sequence[_Seen],
        choices: Sequence[MaskSelection],
        outputs: Sequence[MaskOutput],
        context: FrameContext,
    ) -> list[list[MemoryEntry]]:
        """Encode what every track wants to remember, all in one batch."""
        if self.settings.non_overlap_masks_for_mem_enc:
            apart = suppress_overlap(torch.stack([o.logits for o in outputs]))
            outputs = [replace(o, logits=x) for o, x in zip(outputs, apart)]
        plan, gate = {}, self.policy.min_obj_score_logits
        for number, (seen, choice, output) in enumerate(zip(looked, choices, outputs)):
            for pick in choice.remember:
                shown = seen.same_mask(pick, choice.output)
                one = output if shown else self._output(context.index, seen.candidate(pick), gate)
                plan[number, seen.identity(pick)] = replace(one, binarize=one.binarize or pick.binarize)
        owners = [tracks[number] for number, _ in plan]
        entries = dict(zip(plan, self._remember(owners, context.features, list(plan.values()))))
        return [[entries[n, s.identity(p)] for p in c.remember] for n, (s, c) in enumerate(zip(looked, choices))]

    def _remember(
        self, owners: Sequence[Track], features: FrameFeatures, outputs: Sequence[MaskOutput]
    ) -> list[MemoryEntry]:
        """Memory entries of outputs of one frame; ``owners`` are their tracks."""
        if not outputs:
            return []
        maps = torch.cat([self._maps(features, part) for part in self._parts(features, outputs)])
        if self.sensory is not None:
            states = sensory_update.deepened(self.sensory, outputs, maps)
            outputs = [replace(o, sensory=state) for o, state in zip(outputs, states)]
        tokens = self.model.memory_encoder.distiller(maps)
        return [self._entry(features, output, self._store(t)) for output, t in zip(outputs, tokens)]

    def _settled(self, state: Bank, frame: FrameContext) -> Bank:
        """``state`` with everything merged that its policy wants merged."""
        if not isinstance(self.policy, Merging):
            return state
        for _ in range(MOST_MERGES):
            requests = self.policy.merge_requests(state, frame)
            if not requests:
                return state
            for request in requests:
                state = self.policy.take_merged(state, frame, request, self._merged(request, frame))
        raise RuntimeError(f"{type(self.policy).__name__} still asks to merge after {MOST_MERGES} rounds")

    def _merged(self, request: MergeRequest, frame: FrameContext) -> MemoryTokens:
        tube = [e.tokens for e in request.entries]
        distiller = self.model.memory_encoder.distiller
        return self._store(distiller.condense([tube], frame.features.grid, request.strength)[0])

    def _max_rows(self) -> int:
        """Most rows of a batch, 0 for no limit."""
        if self.settings.max_rows is not None:
            return self.settings.max_rows
        height, width = self.model.grid
        return max(1, CPU_BATCH // (height * width)) if self.model.device.type == "cpu" else 0

    def _parts(self, features: FrameFeatures, outputs: Sequence[MaskOutput]) -> list[Sequence[MaskOutput]]:
        """Outputs in batches; all in one where each has its own picture."""
        most = self._max_rows() or len(outputs)
        if features.low.ndim > 2:
            return [outputs]
        return [outputs[i : i + most] for i in range(0, len(outputs), most)]

    def _maps(self, features: FrameFeatures, outputs: Sequence[MaskOutput]) -> Tensor:
        """Memory maps (R, Cm, H, W) of R outputs."""
        logits = torch.stack([o.logits for o in outputs])
        hard = self.model.binarize_prompted_masks and not self.model.training
        return self.model.memory_maps(
            features,
            logits,
            binarize=to_device_async([o.binarize or (o.prompted and hard) for o in outputs], logits.device),
            present=to_device_async([o.objectness > 0 for o in outputs], logits.device),
        )

    def _store(self, tokens: MemoryTokens) -> MemoryTokens:
        dtype = getattr(torch, self.settings.memory_dtype)
        device = self.settings.storage_device or tokens.feat.device
        return map_tokens(tokens, lambda feat: feat.to(device, dtype).clone(memory_format=torch.contiguous_format))

    def _entry(self, features: FrameFeatures, output: MaskOutput, tokens: MemoryTokens) -> MemoryEntry:
        return MemoryEntry(
            frame=output.frame,
            tokens=tokens,
            pointer=output.pointer,
            iou=output.iou,
            objectness=output.objectness,
            area=output.area,
            is_prompt=output.prompted,
            summary=self._summary(features, output.logits) if self.policy.needs.summary else None,
            sensory=output.sensory,
        )

    def _summary(self, features: FrameFeatures, logits: Tensor) -> Tensor | None:
        """Features averaged over a mask (h, w), None where it is empty: the image encoder's, or an embedder's."""
        if not self.policy.needs.appearance:
            return masked_mean(features.low, foreground_weights(logits, features.grid))
        seen = features.appearance
        if seen is None:
            raise ValueError(
                f"expected features with an appearance map, which {type(self.policy).__name__} asks for here, got none; "
                "give the predictor an embedder and encode frames with it"
            )
        return masked_mean(seen.feat, foreground_weights(logits, seen.grid))

    # -- results ------------------------------------------------------------------------------------------------

    def _held(self, track: Track) -> set[int]:
        return {e.frame for e in track.state.all_entries() if e.tokens is not None}

    def _result(
        self, tracks: Sequence[Track], frame: int, before: dict[int, set[int]], revisions: tuple[Revision, ...]
    ) -> FrameResult:
        outputs = [t.outputs[frame] for t in tracks]
        empty = torch.zeros(0, *self.model.mask_size, device=self.model.device)
        return FrameResult(
            frame=frame,
            obj_ids=tuple(t.obj_id for t in tracks),
            masks=torch.stack([o.logits for o in outputs]) if outputs else empty,
            scores=tuple(self._score(t, o, before[t.obj_id]) for t, o in zip(tracks, outputs)),
            revisions=revisions,
        )

    def _score(self, track: Track, output: MaskOutput, before: set[int]) -> ObjectScore:
        held = self._held(track)
        return ObjectScore(
            obj_id=track.obj_id,
            iou=output.iou,
            objectness=output.objectness,
            present=output.objectness > (0.0 if output.prompted else self.policy.min_obj_score_logits),
            prompted=output.prompted,
            held=tuple(sorted(held)),
            dropped=tuple(sorted(before - held)),
            tokens=track.state.token_count(),
            refined=output.refined,
        )


def _overheard(seen: _Seen, wanted: Usage, read_mass: bool) -> _Seen:
    """``seen`` as it is with a listener: policies and the listener are given attention only if they want it."""
    hypotheses = seen.hypotheses if wanted is not Usage.NONE else replace(seen.hypotheses, usage=None)
    return replace(seen, hypotheses=hypotheses, usage=seen.hypotheses.usage if read_mass else None)
