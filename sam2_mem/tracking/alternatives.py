"""What else an object's mask on the latest frame could have been, and switching to it while memory can still be written anew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2_mem.tracking.arbiter import as_absent
from sam2_mem.tracking.clip import FrameChoice
from sam2_mem.tracking.inference_state import InferenceState
from sam2_mem.tracking.mask_postprocessing import resize_logits
from sam2_mem.tracking.memory_reader import Decision
from sam2_mem.tracking.track import Track, gated_output
from sam2_mem.tracking.tracker import Tracker
from sam2_mem.types import CandidateId, Hypotheses, Revision

PRESENT_SCORE = 10.0
"""Object-score logit of a mask that a user gives, as in SAM 2."""


@dataclass(frozen=True, eq=False)
class Alternative:
    """A mask that an object could have on a frame.

    Attributes:
        frame: number of the frame.
        number: what ``choose_alternative`` takes.
        pathway: of the memory that proposes it; 0 but in trees (``sam2long``).
        mask: (H, W) logits; foreground is > 0.
        iou: predicted IoU.
        objectness: object-score logit of its pathway.
        area: share of the picture.
        is_shown: whether it was shown, if the object was present.
    """

    frame: int
    number: int
    pathway: int
    mask: Tensor
    iou: float
    objectness: float
    area: float
    is_shown: bool


def latest_decision(track: Track) -> Decision | None:
    """None where the latest mask came from a prompt. RuntimeError where memory has changed since."""
    decision = track.decision
    if decision is None or track.latest is None or track.latest[0] != decision.prediction.frame.index:
        return None
    if decision.after is not track.state:
        raise RuntimeError(
            f"expected no change since frame {track.latest[0]} was tracked, but a prompt or a jump has changed the memory of "
            f"object {track.obj_id}; track the frame again, or correct it by a prompt"
        )
    return decision


def candidates_of(decision: Decision) -> list[CandidateId]:
    """Every mask once, pathway by pathway; pathways that read the same propose the same."""
    prediction = decision.prediction
    masks: dict[tuple, CandidateId] = {}
    for pathway, row in enumerate(prediction.hypotheses.iou):
        for number in range(len(row)):
            candidate = CandidateId(pathway, number)
            masks.setdefault(prediction.mask_key(candidate), candidate)
    return list(masks.values())


def alternatives_of(track: Track) -> list[Alternative]:
    """All candidates of the latest frame, with masks (h, w) as the network gives them; none of a prompted one."""
    decision, result = latest_decision(track), []
    if decision is None:
        return []
    prediction = decision.prediction
    hypotheses, shown = prediction.hypotheses, prediction.mask_key(decision.shown)
    assert hypotheses.areas is not None, "the network's candidates come with their areas"
    for number, candidate in enumerate(candidates_of(decision)):
        p, m = candidate.pathway, candidate.candidate
        alternative = Alternative(
            frame=prediction.frame.index,
            number=number,
            pathway=p,
            mask=hypotheses.masks[p, m],
            iou=hypotheses.iou[p][m],
            objectness=hypotheses.objectness[p],
            area=hypotheses.areas[p][m],
            is_shown=prediction.mask_key(candidate) == shown,
        )
        result.append(alternative)
    return result


def choose(tracker: Tracker, track: Track, number: int | None) -> Sequence[Revision]:
    """Show and remember another mask of the latest frame, as if the network had proposed nothing else.

    Args:
        tracker: of the video.
        track: the object.
        number: of the alternative; None: the object is not there.

    Returns:
        earlier masks that this changes, under policies that rewrite the past.
    """
    tracker.close_clip()
    decision = latest_decision(track)
    if decision is None:
        raise RuntimeError(
            f"expected object {track.obj_id} to have been tracked on the latest frame, but its mask there came from a prompt; "
            "prompt it again"
        )
    candidates = candidates_of(decision)
    if number is not None and number not in range(len(candidates)):
        raise ValueError(f"expected the number of an alternative (0 to {len(candidates) - 1}) or None, got {number!r}")
    hypotheses = decision.prediction.hypotheses
    gate = tracker.policy.min_obj_score_logits
    hypotheses = as_absent(hypotheses) if number is None else only(hypotheses, candidates[number], gate)
    rows = decision.prediction.rows if number is None else [decision.prediction.rows[0] for _ in hypotheses.iou]
    prediction = replace(decision.prediction, track=track, hypotheses=hypotheses, rows=rows)
    track.state = decision.before
    frame = prediction.frame
    selection = tracker.policy.choose(track.state, frame, hypotheses)
    output = gated_output(tracker.model, frame.index, hypotheses, selection.output, gate)
    assert frame.features is not None, "a decision is one on a frame"
    selection, unwritten = (replace(selection, remember=()), {track.obj_id}) if track.frozen else (selection, set())
    revisions = tracker.take_in(FrameChoice(frame.features, [prediction], [selection], [output], unwritten))
    shown = decision.shown if number is None else candidates[number]
    track.decision = replace(decision, shown=shown, after=track.state)
    return revisions


def only(hypotheses: Hypotheses, candidate: CandidateId, gate: float) -> Hypotheses:
    """Hypotheses in which every pathway has but one mask, that of ``candidate``; the pathways that did not propose it count it
    as worthless. Where its object score is not above ``gate`` it gets that of a user's mask."""
    p, m = candidate.pathway, candidate.candidate
    assert hypotheses.areas is not None, "the network's candidates come with their areas"
    pathways, score = len(hypotheses.iou), hypotheses.objectness[p]
    return replace(
        hypotheses,
        masks=hypotheses.masks[p, m].expand(pathways, 1, -1, -1),
        pointers=hypotheses.pointers[p, m].expand(pathways, 1, -1),
        iou=tuple((hypotheses.iou[p][m] if n == p else 0.0,) for n in range(pathways)),
        objectness=(score if score > max(gate, 0.0) else PRESENT_SCORE,) * pathways,
        areas=((hypotheses.areas[p][m],),) * pathways,
        measured=None,
        answers=(),
    )


def latest_track(state: InferenceState, obj_id: int) -> Track:
    """The track of an object whose latest frame is the one given out last. RuntimeError where tracking is ahead of it."""
    if not state.tracker.keeps_decisions:
        raise RuntimeError("expected an interactive session, got one of init_state(video, interactive=False)")
    track = state.tracker.tracks.get(obj_id)
    if track is None:
        raise RuntimeError(f"expected one of the objects {state.obj_ids}, got {obj_id!r}")
    shown = next(reversed(state.recent_scores), None)
    if track.latest is not None and track.latest[0] != shown:
        raise RuntimeError(
            f"expected object {obj_id} to have been tracked last on frame {shown}, whose masks were given out last, got "
            f"frame {track.latest[0]}; under a policy that rewrites the past use propagate(), which gives masks at once"
        )
    return track


def choose_in_session(state: InferenceState, obj_id: int, number: int | None) -> int:
    """``choose`` for an object of a session, whose scores and revisions follow; gives the number of the frame."""
    track = latest_track(state, obj_id)
    state.revisions = tuple(choose(state.tracker, track, number))
    assert track.decision is not None and track.state is not None, "the track has one"
    frame, gate = track.decision.prediction.frame.index, state.tracker.policy.min_obj_score_logits
    output = track.outputs[frame]
    scores = [
        replace(
            score,
            iou=output.iou,
            objectness=output.objectness,
            present=output.objectness > gate,
            held=tuple(sorted(track.frames_in_memory())),
            tokens=track.state.token_count(),
        )
        if score.obj_id == obj_id
        else score
        for score in state.recent_scores[frame]
    ]
    state.note_scores(frame, tuple(scores))
    state.edits += 1
    return frame


class ChoosesAlternatives(ABC):
    """What a predictor offers of all this."""

    @abstractmethod
    def current_masks(self, state: InferenceState, frame_idx: int) -> tuple[int, list[int], Tensor]:
        """What the user sees on a frame now."""

    @torch.inference_mode()
    def alternatives(self, inference_state: InferenceState, obj_id: int) -> list[Alternative]:
        """The masks that an object could have on the frame that was tracked last: all candidates of the network, of every
        pathway of a tree, with their scores. Masks (H, W) are at video size, and there also where the object counts as absent.
        None where that frame was prompted."""
        candidates = alternatives_of(latest_track(inference_state, obj_id))
        if not candidates:
            return []
        assert inference_state.frame_size is not None, "masks come after the first frame"
        masks = resize_logits(torch.stack([c.mask for c in candidates]), inference_state.frame_size)
        return [replace(c, mask=mask) for c, mask in zip(candidates, masks)]

    @torch.inference_mode()
    def choose_alternative(
        self, inference_state: InferenceState, obj_id: int, number: int | None
    ) -> tuple[int, list[int], Tensor]:
        """Take another mask on the frame that was tracked last, before the next frame is read from it: it is shown, and memory
        is written anew with it. Earlier masks that this changes, under a policy that rewrites the past, are in ``revisions``.

        Args:
            inference_state: of the video.
            obj_id: the object.
            number: of one of ``alternatives``; None: the object is not there.

        Returns:
            (frame index, object ids, masks (N, 1, H, W)) of that frame.
        """
        return self.current_masks(inference_state, choose_in_session(inference_state, obj_id, number))
