"""Mask refinement: what it proposes, what it accepts, and that without acceptance nothing changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import micro
import pytest
import torch
from torch import Tensor

from sam2_mem.build_sam import build_sam2_video_predictor
from sam2_mem.config import ConfigError, compose
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.memory_writer import MemoryWriter
from sam2_mem.tracking.refine import (
    Coarse,
    HQRefiner,
    Proposal,
    Refiner,
    mask_iou,
    pixel_boxes,
    pooled,
    reference_appearance,
    refine,
    settle_overlap,
)
from sam2_mem.tracking.track import MaskOutput, ReferenceAppearance
from sam2_mem.tracking.tracker import Tracker, TrackerSettings
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import ABSENT_LOGIT, AppearanceMap, CandidateId, FrameFeatures, FrameResult, MaskSelection


def literal(**settings) -> HQRefiner:
    """As in the paper: no guard by overlap unless given."""
    return HQRefiner(**{"hq_min_iou": 0.0} | settings)


EVERYTHING = literal(tau_hq=-1.0)
SIDE = 16
SCORE_BIAS = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
START = {0: [micro.mask_prompt(1), micro.mask_prompt(2, 0, 1), micro.click_prompt(3, number=2)]}


@lru_cache
def sure_model() -> SAM2:
    """The micro network, but always sure that the object is there."""
    model = micro.new_model()
    model.get_parameter(SCORE_BIAS).data += 200.0
    return model


def new_tracker(policy, refiner: Refiner | None) -> Tracker:
    tracker = micro.micro_tracker(policy, model=sure_model())
    tracker.refiner = refiner
    return tracker


def tracked(policy, refiner: Refiner | None, frames: int = 24) -> tuple[list[FrameResult], Tracker]:
    tracker = new_tracker(policy, refiner)
    return micro.run(tracker, micro.micro_features(frames), START), tracker


def masks(results: list[FrameResult]) -> Tensor:
    return torch.cat([r.masks for r in results])


def refined(results: list[FrameResult]) -> int:
    return sum(s.refined for r in results for s in r.scores)


# -- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fifo", "rmem", "hq_smem"])
@pytest.mark.full
def test_a_threshold_out_of_reach_is_no_refiner(policy):
    plain = masks(tracked(policy, None)[0])
    assert (plain[3:] > 0).flatten(1).any(1).float().mean() > 0.5
    unreached, _ = tracked(policy, literal(tau_hq=1.01))
    assert torch.equal(plain, masks(unreached)) and refined(unreached) == 0
    reached, _ = tracked(policy, EVERYTHING)
    assert (plain - masks(reached)).abs().max() > 1e-2 and refined(reached) > 5


@dataclass(frozen=True)
class Stamp(Refiner):
    """Accepts masks of its own: ``value`` inside the square [4, 8), -5 elsewhere."""

    value: float = 5.0
    hard: bool = False
    own_pointer: bool = False

    @property
    def hard_memory(self) -> bool:
        return self.hard

    def wants(self, frame: int) -> bool:
        return True

    def propose(self, model, features: FrameFeatures, coarse: Coarse) -> Proposal:
        logits = torch.full_like(coarse.logits, -5.0)
        logits[:, 4:8, 4:8] = self.value
        count = len(logits)
        return Proposal(logits, torch.full((count, model.width), 9.0), torch.ones(count, dtype=torch.bool))


def output(logits: Tensor, **kind) -> MaskOutput:
    area = (logits > 0).float().mean().item()
    return MaskOutput(7, logits, torch.zeros(32), iou=0.5, objectness=1.0, area=area, **kind)


def looks(count: int, width: int = 32) -> list[ReferenceAppearance]:
    return [ReferenceAppearance(torch.zeros(width), torch.ones(width))] * count


def features(index: int = 7) -> FrameFeatures:
    return replace(micro.features_at(7), index=index)


def run_refine(refiner: Refiner, outputs: list[MaskOutput], index: int = 7, seen=None) -> list[MaskOutput]:
    conditioned = [torch.zeros(16, 32)] * len(outputs)
    seen = looks(len(outputs)) if seen is None else seen
    return refine(refiner, sure_model(), features(index), outputs, seen, conditioned)


def square(value: float = 3.0, start: int = 2, stop: int = 6) -> Tensor:
    logits = torch.full((SIDE, SIDE), -4.0)
    logits[start:stop, start:stop] = value
    return logits


@pytest.mark.parametrize("refiner", [Stamp(), EVERYTHING])
def test_an_empty_or_absent_mask_stays(refiner):
    empty = output(torch.full((SIDE, SIDE), -1.0))
    absent = output(torch.full((SIDE, SIDE), ABSENT_LOGIT))
    here = output(square())
    found = run_refine(refiner, [empty, here, absent])
    assert found[0] is empty and found[2] is absent
    assert run_refine(Stamp(), [empty, here])[1].refined
    assert run_refine(refiner, [here], seen=[None]) == [here]


def test_only_every_nth_frame_is_refined():
    refiner = literal(tau_hq=-1.0, hq_every=3)
    results, _ = tracked("fifo", refiner)
    frames = {r.frame for r in results if any(s.refined for s in r.scores)}
    assert frames and all(f % 3 == 0 for f in frames)
    assert {r.frame % 3 for r in tracked("fifo", EVERYTHING)[0] if any(s.refined for s in r.scores)} == {0, 1, 2}


# -- what comes of an accepted mask -----------------------------------------------------------------------------------


class NotingWriter(MemoryWriter):
    """Keeps what it has made memory of: (frame, mask logits, hard)."""

    def encode_outputs(self, tracks, features, outputs):
        self.written = getattr(self, "written", [])
        self.written += [(o.frame, o.logits.clone(), o.binarize) for o in outputs]
        return super().encode_outputs(tracks, features, outputs)


def noting_tracker(policy: MemoryPolicy, refiner: Refiner) -> Tracker:
    model = sure_model()
    return Tracker(model, policy, refiner=refiner, writer=NotingWriter(model, policy, TrackerSettings()))


@pytest.mark.parametrize("hard", [False, True])
def test_an_accepted_mask_is_shown_and_remembered(hard):
    tracker = noting_tracker(FIFO(), Stamp(hard=hard))
    results = micro.run(tracker, micro.micro_features(10), {0: [micro.mask_prompt(1)]})
    assert [r.scores[0].refined for r in results] == [False] + [True] * 9
    for (frame, logits, binarize), result in zip(tracker.writer.written[1:], results[1:], strict=True):
        assert frame == result.frame and binarize == hard
        assert torch.equal(logits, result.masks[0]) and (logits > 0).sum() == 16
    assert {e.area for e in tracker.tracks[1].state.entries} == {16 / 256}


def test_pointers_stay_the_trackers_unless_asked():
    assert run_refine(Stamp(), [output(square())])[0].pointer.tolist() == [0.0] * 32
    assert run_refine(Stamp(own_pointer=True), [output(square())])[0].pointer.tolist() == [9.0] * 32
    assert literal().own_pointer is False and literal(hq_pointer="proposal").own_pointer is True
    assert literal().hard_memory is False and literal(hq_memory="hard").hard_memory is True


class Both(FIFO):
    """Remembers the mask shown, hard; another one on odd frames."""

    def choose(self, state, frame, hypotheses):
        best = super().choose(state, frame, hypotheses).output
        other = CandidateId(0, (best.candidate + frame.index % 2) % 3, binarize=True)
        return MaskSelection(output=best, remember=(other,))


def test_the_mask_shown_is_remembered_refined_also_when_it_is_made_hard():
    tracker = noting_tracker(Both(), Stamp())
    tracker.writer.model.binarize_prompted_masks = True
    results = micro.run(tracker, micro.micro_features(10), {0: [micro.mask_prompt(1)]})
    for (frame, logits, binarize), result in zip(tracker.writer.written[1:], results[1:], strict=True):
        assert binarize and torch.equal(logits, result.masks[0]) == (frame % 2 == 0)


# -- objects beside each other ----------------------------------------------------------------------------------------


def test_contested_pixels_go_to_the_highest_logit():
    logits = torch.stack([square(3.0, 2, 6), square(2.0, 4, 8), square(1.0, 5, 7)])
    apart = settle_overlap(logits, torch.tensor([True, False, False]))
    assert torch.equal(apart[0], logits[0])
    assert (apart[1, 4:6, 4:6] == -10).all() and apart[2, 5, 5] == -10
    assert torch.equal(apart[1, 6:, 6:], logits[1, 6:, 6:]) and (apart[2, 6, 6] > 0).all()
    assert (apart[0, 2:4, 2:4] > 0).all()
    assert torch.equal(settle_overlap(logits, torch.zeros(3, dtype=torch.bool)), logits)


def test_neighbours_of_a_refined_mask_give_way_in_output_and_area():
    first, second = output(square(3.0, 5, 9)), output(square(2.0, 4, 8))

    class Second(Stamp):
        def propose(self, model, features, coarse):
            return super().propose(model, features, coarse)._replace(accepted=torch.tensor([False, True]))

    found = run_refine(Second(value=9.0), [first, second])
    assert [o.refined for o in found] == [False, True]
    assert (found[0].logits[5:8, 5:8] == -10).all() and found[0].area == pytest.approx((16 - 9) / 256)
    assert ((found[0].logits > 0) & (found[1].logits > 0)).sum() == 0
    untouched = run_refine(Second(value=9.0), [output(square(3.0, 10, 12)), second])
    assert (untouched[0].logits == square(3.0, 10, 12)).masked_fill(untouched[1].logits > 0, True).all()


def test_refined_masks_of_a_frame_do_not_overlap():
    results, _ = tracked("fifo", EVERYTHING)
    seen = 0
    for r in results:
        flags = torch.tensor([s.refined for s in r.scores])
        claimed = (r.masks > 0)[flags].sum(0).clamp(max=1) * (r.masks > 0).sum(0)
        assert claimed.max() <= 1
        seen += int(flags.sum() > 1)
    assert seen
    plain = tracked("fifo", None)[0]
    assert max((r.masks > 0).sum(0).max() for r in plain[1:]) > 1


# -- the proposal -----------------------------------------------------------------------------------------------------


def propose(refiner: HQRefiner, logits: Tensor, seen: FrameFeatures | None = None, conditioned: Tensor | None = None):
    seen = features() if seen is None else seen
    conditioned = seen.low[None].expand(len(logits), -1, -1) if conditioned is None else conditioned
    look = [reference_appearance(seen, mask) for mask in logits]
    return refiner.propose(sure_model(), seen, Coarse(logits, tuple(look), conditioned))


def two_squares() -> Tensor:
    return torch.stack([square(5.0, 2, 6), square(5.0, 6, 12)])


def test_proposals_are_the_decoders_answer_to_the_box():
    model, frame = sure_model(), features()
    calls = []
    decode = model.decode

    def noted(conditioned, features, **kind):
        calls.append((conditioned, kind))
        return decode(conditioned, features, **kind)

    model.decode = noted
    try:
        found = propose(EVERYTHING, two_squares(), frame)
        propose(replace(EVERYTHING, hq_feat="mem"), two_squares(), frame, conditioned=torch.ones(2, 16, 32))
    finally:
        del model.decode
    (plain, kind), (memory, _) = calls
    assert torch.equal(plain, model.without_memory(frame, 2)) and torch.equal(memory, torch.ones(2, 16, 32))
    assert kind["candidates"] is True and kind["labels"].tolist() == [[2, 3], [2, 3]]
    large = torch.nn.functional.interpolate(two_squares()[:, None], size=(64, 64), mode="bilinear")[:, 0] > 0
    for (low, high), mask in zip(kind["points"].tolist(), large):
        y, x = torch.nonzero(mask, as_tuple=True)
        assert low == [x.min(), y.min()] and high == [x.max(), y.max()]
    out = decode(plain, frame, **kind)
    assert all((found.logits[i] == out.masks[i]).flatten(1).all(1).sum() == 1 for i in range(2))
    assert found.accepted.tolist() == [True, True]


def reference_cosines(frame: FrameFeatures, reference: Tensor, candidates: Tensor) -> Tensor:
    """Cosines (M) by loops."""
    centre = frame.low.mean(0)

    def phi(logits: Tensor) -> Tensor:
        weight = logits.sigmoid().reshape(4, 4, 4, 4).mean((1, 3)).reshape(-1)
        return sum(w * f for w, f in zip(weight, frame.low)) / weight.sum() - centre

    return torch.stack([torch.cosine_similarity(phi(c), phi(reference), dim=0) for c in candidates])


def test_the_closest_appearance_is_chosen_and_gated():
    model, frame, coarse = sure_model(), features(), two_squares()
    boxes = pixel_boxes(torch.nn.functional.interpolate(coarse[:, None], size=(64, 64), mode="bilinear")[:, 0] > 0)[0]
    labels = torch.tensor([[2, 3]] * 2, dtype=torch.int32)
    out = model.decode(model.without_memory(frame, 2), frame, points=boxes.unflatten(1, (2, 2)), labels=labels)
    cosines = torch.stack([reference_cosines(frame, coarse[i], out.masks[i]) for i in range(2)])
    best = cosines.argmax(1)
    found = propose(EVERYTHING, coarse, frame)
    assert all(torch.equal(found.logits[i], out.masks[i, best[i]]) for i in range(2))
    assert all(torch.equal(found.pointers[i], out.pointers[i, best[i]]) for i in range(2))
    for i, top in enumerate(cosines.max(1).values.tolist()):
        assert propose(literal(tau_hq=top - 1e-4), coarse, frame).accepted[i]
        assert not propose(literal(tau_hq=top + 1e-4), coarse, frame).accepted[i]
    by_iou = propose(literal(tau_hq=-1.0, hq_select="iou_pred"), coarse, frame)
    assert all(torch.equal(by_iou.logits[i], out.masks[i, out.iou[i].argmax()]) for i in range(2))


def test_least_overlap_with_the_coarse_mask():
    frame, coarse = features(), two_squares()
    overlap = mask_iou(propose(EVERYTHING, coarse, frame).logits, coarse)
    for i, value in enumerate(overlap.tolist()):
        assert propose(literal(tau_hq=-1.0, hq_min_iou=max(value - 1e-3, 0.0)), coarse, frame).accepted[i]
        assert not propose(literal(tau_hq=-1.0, hq_min_iou=value + 1e-3), coarse, frame).accepted[i]


def test_reference_may_be_the_first_frame():
    frame, coarse = features(), two_squares()
    centre = frame.low.mean(0)
    other = ReferenceAppearance(centre, 2 * centre - pooled(frame, coarse[:1, None])[0, 0])
    part = Coarse(coarse[:1], (other,), frame.low[None])
    by_coarse = literal(tau_hq=0.0, hq_select="iou_pred")
    by_first = replace(by_coarse, hq_ref="first")
    now = by_coarse.propose(sure_model(), frame, part).accepted
    opposite = by_first.propose(sure_model(), frame, part).accepted
    same = by_first.propose(
        sure_model(), frame, part._replace(references=(reference_appearance(frame, coarse[0]),))
    ).accepted
    assert now.tolist() == same.tolist() != opposite.tolist()


def test_proposals_of_an_absent_object_are_discarded():
    model, frame, coarse = micro.new_model(), features(), two_squares()
    part = Coarse(coarse, tuple(reference_appearance(frame, m) for m in coarse), torch.zeros(2, 16, 32))
    for shift, accepted in ((200.0, True), (-400.0, False)):
        model.get_parameter(SCORE_BIAS).data += shift
        assert EVERYTHING.propose(model, frame, part).accepted.tolist() == [accepted] * 2


def test_appearance_of_an_embedder_is_used():
    frame = features()
    grid = torch.zeros(64, 5)
    grid[:32, 0], grid[32:, 1] = 1.0, 1.0
    seen = replace(frame, appearance=AppearanceMap(grid, (8, 8)))
    upper = torch.full((1, 1, SIDE, SIDE), -30.0)
    upper[..., :8, :] = 30.0
    assert pooled(seen, upper)[0, 0].tolist() == pytest.approx([1.0, 0, 0, 0, 0], abs=1e-6)
    assert pooled(frame, upper).shape == (1, 1, 32)
    assert pooled(seen, torch.full((1, 1, SIDE, SIDE), ABSENT_LOGIT)).abs().max() == 0
    assert reference_appearance(seen, upper[0, 0]).centre.tolist() == [0.5, 0.5, 0, 0, 0]


def test_the_first_look_is_the_first_mask_seen():
    tracker = new_tracker("fifo", EVERYTHING)
    stream = micro.micro_features(12)
    tracker.step(stream[0], [micro.mask_prompt(1), micro.empty_prompt(2)])
    look = tracker.tracks[1].reference
    assert torch.equal(look.centre, stream[0].low.mean(0)) and tracker.tracks[2].reference is None
    shown = tracker.step(stream[1], [micro.mask_prompt(1, 1)])
    assert tracker.tracks[1].reference is look
    assert (shown.masks[1] > 0).any() and torch.equal(tracker.tracks[2].reference.centre, stream[1].low.mean(0))


def test_boxes_and_overlap():
    seen = torch.zeros(3, 8, 10, dtype=torch.bool)
    seen[0, 2:5, 3:9] = True
    seen[1, 0, 0] = seen[1, 7, 9] = True
    boxes, found = pixel_boxes(seen)
    assert boxes[:2].tolist() == [[3, 2, 8, 4], [0, 0, 9, 7]] and found.tolist() == [True, True, False]
    a, b = square(1.0, 2, 6), square(1.0, 4, 8)
    assert mask_iou(torch.stack([a, a]), torch.stack([b, a])).tolist() == pytest.approx([4 / 28, 1.0])
    assert mask_iou(-a.abs()[None], -a.abs()[None]).tolist() == [0.0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"tau_hq": 5.0},
        {"tau_hq": float("nan")},
        {"hq_select": "best"},
        {"hq_ref": "last"},
        {"hq_min_iou": 1.5},
        {"hq_every": 0},
        {"hq_feat": "x"},
        {"hq_memory": "x"},
        {"hq_pointer": "x"},
    ],
)
def test_refuses(wrong):
    with pytest.raises(ValueError, match=f"expected {next(iter(wrong))}.* got"):
        literal(**wrong)


# -- configs ----------------------------------------------------------------------------------------------------------


def built(*overrides: str):
    config = compose(micro.micro_config(), overrides)
    return build_sam2_video_predictor(config, "random", device="cpu", apply_postprocessing=False)


def test_chosen_in_a_config():
    assert built().refiner is None
    assert built("refiner=hq").refiner == HQRefiner()
    changed = built("refiner=hq", "refiner.tau_hq=0.5", "refiner.hq_ref=first").refiner
    assert changed == HQRefiner(tau_hq=0.5, hq_ref="first")
    assert compose("sam2.1_hiera_t", ["refiner=hq"]).refiner.tau_hq == 0.95
    for config in ("sam2.1_hiera_t", micro.micro_config()):
        with pytest.raises(ConfigError, match="expected a refiner out of hq, none, got 'best'"):
            compose(config, ["refiner=best"])
    with pytest.raises(ConfigError, match="expected _target_ of the refiner to be a refiner, got FIFO"):
        built("refiner._target_=sam2_mem.memory.policies.fifo.FIFO")


def test_yaml_and_fields_are_the_same():
    config = compose("sam2.1_hiera_t", ["refiner=hq"]).refiner
    fields = HQRefiner.__dataclass_fields__
    assert {k: config[k] for k in config if k != "_target_"} == {k: f.default for k, f in fields.items()}


def test_the_predictor_refines():
    predictor = SAM2VideoPredictor(sure_model(), FIFO(), refiner=EVERYTHING)
    session = predictor.init_state(micro.pictures(12))
    predictor.add_new_mask(session, 0, 1, micro.blob(0))
    results = list(predictor.propagate(session))
    assert not results[0].scores[0].refined and any(r.scores[0].refined for r in results)
    stream = predictor.init_state()
    for i, image in enumerate(micro.pictures(12)):
        prompts = [Prompt(1, mask=micro.blob(0))] if i == 0 else []
        predictor.track_frame(stream, image, prompts)
        assert predictor.scores(stream)[0].refined == results[i].scores[0].refined
