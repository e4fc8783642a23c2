"""Other masks of the latest frame, and switching to one: memory as if the network had proposed nothing else."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from micro import POLICIES, TOKENS, blob, in_tiers, mask_prompt, micro_predictor, one_thread, pictures  # noqa: F401
from policy_contract import tokens_in

from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import CandidateId, Hypotheses, MaskSelection

FRAMES = 16


def begun(predictor: SAM2VideoPredictor, frames: int = FRAMES, **kwargs: Any) -> Any:
    state = predictor.init_state(pictures(frames), **kwargs)
    predictor.add_new_mask(state, 0, 1, blob(1))
    predictor.add_new_mask(state, 0, 2, blob(2))
    return state


def tracked_until(predictor: SAM2VideoPredictor, last: int, **kwargs: Any) -> Any:
    state = begun(predictor, **kwargs)
    list(predictor.propagate(state, 0, last))
    return state


def rest(predictor: SAM2VideoPredictor, state: Any, start: int) -> torch.Tensor:
    return torch.stack([result.masks for result in predictor.propagate(state, start)])


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ("fifo", "sam2long")))
def test_all_candidates_are_offered(policy: str) -> None:
    predictor = micro_predictor(policy)
    state = tracked_until(predictor, 6)
    alternatives = predictor.alternatives(state, 1)
    hypotheses = state.tracker.tracks[1].decision.prediction.hypotheses
    assert len(alternatives) in (3, 6, 9) and [a.number for a in alternatives] == list(range(len(alternatives)))
    [shown] = [a for a in alternatives if a.is_shown]
    score = next(s for s in predictor.scores(state) if s.obj_id == 1)
    assert (shown.frame, shown.iou, shown.objectness) == (6, score.iou, score.objectness)
    for a in alternatives:
        assert a.iou in hypotheses.iou[a.pathway] and a.mask.shape == (64, 64)
        assert float((a.mask > 0).float().mean()) == pytest.approx(a.area, abs=0.1)
    if score.present:
        assert torch.equal(predictor.current_masks(state, 6)[2][0, 0], shown.mask)


@pytest.mark.parametrize("policy", in_tiers(POLICIES, ("fifo", "sam2long")))
def test_the_shown_mask_again_changes_nothing_but_another_does(policy: str) -> None:
    """Under policies that choose the best mask and remember it alone; trees drop what else they remember."""
    predictor = micro_predictor(policy)
    state = tracked_until(predictor, 6)
    alternatives = predictor.alternatives(state, 1)
    [shown] = [a.number for a in alternatives if a.is_shown]
    others = [a.number for a in alternatives if not a.is_shown]
    plain = rest(predictor, deepcopy(state), 7)
    results = {}
    for number in (shown, *others, None):
        session = deepcopy(state)
        _, ids, masks = predictor.choose_alternative(session, 1, number)
        memory, score = session.tracker.tracks[1].state, predictor.scores(session)[0]
        assert ids == [1, 2] and tokens_in(memory) == score.tokens <= predictor.policy.capacity(TOKENS)
        if number is None:
            assert not (masks[0] > 0).any() and not score.present
        else:
            assert torch.equal(masks[0, 0], alternatives[number].mask) and score.present
        results[number] = rest(predictor, session, 7)
        assert (results[number][:, 1] - plain[:, 1]).abs().max() < 1e-2, "the other object is left alone"
    present = next(s for s in predictor.scores(state) if s.obj_id == 1).present
    if policy == "fifo":
        assert present and torch.equal(results[shown], plain)
    assert max((results[number][:, 0] - plain[:, 0]).abs().max() for number in others) > 1e-2, "control"
    later = rest(predictor, state, 7)
    assert torch.equal(later, plain), "the session that was copied is as it was"


def test_memory_is_that_of_a_network_that_proposes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choosing mask 2 on frame 6 equals a policy that chooses mask 2 there by itself."""
    predictor = micro_predictor("fifo")
    state = tracked_until(predictor, 6)
    number = next(a.number for a in predictor.alternatives(state, 1) if not a.is_shown and a.objectness > 0)
    predictor.choose_alternative(state, 1, number)
    switched = rest(predictor, state, 7)
    kind, choose = type(predictor.policy), type(predictor.policy).choose

    def forced(policy: Any, memory: Any, frame: Any, hypotheses: Hypotheses) -> MaskSelection:
        first = memory.prompts[0].tokens.feat.sum()
        best = CandidateId(0, number)
        if frame.index == 6 and first == own:
            return MaskSelection(best, (best,))
        return choose(policy, memory, frame, hypotheses)

    own = state.tracker.tracks[1].state.prompts[0].tokens.feat.sum()
    monkeypatch.setattr(kind, "choose", forced)
    expected = torch.stack([r.masks for r in predictor.propagate(begun(predictor), 0)])[7:]
    assert torch.equal(switched, expected)


def test_in_the_loop() -> None:
    """What is chosen while results are taken acts from the next frame on; under a tree, where masks come late, it says so."""
    predictor = micro_predictor("fifo")
    plain = [masks for _, _, masks in predictor.propagate_in_video(begun(predictor))]
    state, masks_by_frame = begun(predictor), []
    for frame, _, masks in predictor.propagate_in_video(state):
        masks_by_frame.append(masks)
        if frame == 6:
            number = next(a.number for a in predictor.alternatives(state, 1) if not a.is_shown)
            assert predictor.choose_alternative(state, 1, number)[0] == 6
    assert all(torch.equal(a, b) for a, b in zip(masks_by_frame[:7], plain[:7]))
    assert any((a[0] - b[0]).abs().max() > 1e-2 for a, b in zip(masks_by_frame[7:], plain[7:]))
    tree = micro_predictor("sam2long")
    state = begun(tree, 40)
    results = tree.propagate_in_video(state)
    next(results), next(results)
    with pytest.raises(RuntimeError, match=r"expected object 1 to have been tracked last on frame 1, .*use propagate"):
        tree.alternatives(state, 1)


def test_what_cannot_be_chosen() -> None:
    predictor = micro_predictor("fifo")
    state = begun(predictor)
    list(predictor.propagate(state, 0, 0))
    assert predictor.alternatives(state, 1) == []
    with pytest.raises(RuntimeError, match="expected object 1 to have been tracked on the latest frame"):
        predictor.choose_alternative(state, 1, 0)
    list(predictor.propagate(state, 0, 6))
    with pytest.raises(RuntimeError, match=r"expected one of the objects \[1, 2\], got 3"):
        predictor.alternatives(state, 3)
    with pytest.raises(ValueError, match=r"expected the number of an alternative \(0 to 2\) or None, got 3"):
        predictor.choose_alternative(state, 1, 3)
    predictor.add_new_mask(state, 6, 1, blob(1, 6))
    predictor.propagate_in_video_preflight(state)
    with pytest.raises(RuntimeError, match="a prompt or a jump has changed the memory of object 1"):
        predictor.choose_alternative(state, 1, 0)
    passing = tracked_until(predictor, 6, interactive=False)
    with pytest.raises(RuntimeError, match="expected an interactive session"):
        predictor.alternatives(passing, 1)
    stream = predictor.init_state()
    for index, image in enumerate(pictures(4)):
        predictor.track_frame(stream, image, [] if index else [mask_prompt(1, 0, 1)])
    predictor.choose_alternative(stream, 1, None)
    assert not predictor.scores(stream)[0].present
