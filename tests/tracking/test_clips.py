"""Clips: frames that read memory together, against a literal reading; what cuts a clip; what goes by clips and what does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from micro import (  # noqa: F401
    POLICIES,
    TOKENS,
    click_prompt,
    in_tiers,
    mask_prompt,
    micro_predictor,
    one_thread,
    pictures,
)
from simulated_cuda import SimulatedCuda
from torch import Tensor

from sam2_mem.build_sam import build_policy, build_sam2_video_predictor
from sam2_mem.memory.bounded import PolicyWrapper
from sam2_mem.memory.policy import MemoryPolicy
from sam2_mem.memory.token_budget import TokenBounded
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.refine import HQRefiner
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.tracking.vos import PromptPlan, VideoPass
from sam2_mem.types import FrameContext, MemoryRead, Usage

BY_FRAME = ("sam2long", "samurai", "samite", "tamb", "sentry")
"""Policies that count on every frame."""

BY_CLIP = tuple(name for name in POLICIES if name not in (*BY_FRAME, "hybrid"))
LENGTH, COUNT = 5, 33
PROMPTS = {2: [mask_prompt(1, 2), mask_prompt(2, 2, 1)], 9: [mask_prompt(3, 9, 2)]}


# -- a literal reading ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Literal(PolicyWrapper):
    """``policy`` by clips, one frame after the other: it reads as on the first frame of the clip, and takes in the last.

    Attributes:
        alone: frames that are clips of their own; the video ends before one.
        length: of clips.
    """

    alone: frozenset[int]
    length: int = LENGTH

    def is_last(self, frame: FrameContext) -> bool:
        after = frame.index + (-1 if frame.reverse else 1)
        return frame.index % self.length == 0 or frame.index in self.alone or after in self.alone

    def first(self, frame: FrameContext) -> FrameContext:
        while not self.is_last(before := replace(frame, index=frame.index + (1 if frame.reverse else -1))):
            frame = before
        return frame

    def usage_at(self, state: Any, frame: FrameContext) -> Usage:
        first, last = (super(Literal, self).usage_at(state, f) for f in (self.first(frame), frame))
        return last if first is Usage.NONE else first

    def read(self, state: Any, frame: FrameContext) -> Sequence[MemoryRead]:
        return super().read(state, self.first(frame))

    def write(self, state: Any, frame: FrameContext, *details: Any) -> Any:
        as_read = replace(frame, read_on=self.first(frame).index)
        return self.policy.write(state, as_read, *details) if self.is_last(frame) else state

    def capacity(self, tokens_per_map: int) -> int | None:
        return self.policy.capacity(tokens_per_map)

    def take_merged(self, *args: Any) -> Any:
        return self.policy.take_merged(*args)


def prompted(predictor: SAM2VideoPredictor, prompts: dict[int, list[Prompt]], count: int = COUNT) -> Any:
    state = predictor.init_state(pictures(count))
    for frame, given in prompts.items():
        for prompt in given:
            predictor.add_new_mask(state, frame, prompt.obj_id, prompt.mask)
    return state


def track(predictor: SAM2VideoPredictor, state: Any, *args: Any, **options: Any) -> list[Tensor]:
    return [masks.clone() for _, _, masks in predictor.propagate_in_video(state, *args, **options)]


def difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    assert len(a) == len(b) > 0
    return max((x - y).abs().max().item() for x, y in zip(a, b))


def both_ways(predictor: SAM2VideoPredictor) -> Iterator[list[Tensor]]:
    state = prompted(predictor, PROMPTS)
    for reverse, start in ((False, 2), (True, 9)):
        yield track(predictor, state, start, reverse=reverse)
        for item in state.tracker.tracks.values():
            assert item.state.token_count() <= predictor.policy.capacity(TOKENS)


def policy_named(name: str) -> MemoryPolicy:
    """``hybrid`` and ``tokens``: parts around policies that are read by clips."""
    if name == "hybrid":
        return replace(build_policy("hybrid"), short=build_policy("rmem"))
    if name == "tokens":
        return TokenBounded(policy=build_policy("fifo"), score="usage", max_bytes=3 * TOKENS, bytes_per_token=1)
    return build_policy(name)


@pytest.mark.parametrize(
    "name", in_tiers((*BY_CLIP, "hybrid", "tokens"), ("fifo", "sparse"), ("xmem", "keyframe", "hybrid", "tokens"))
)
def test_a_literal_reading(name: str) -> None:
    policy = policy_named(name)
    exact = {"memory_dtype": "float32"}
    by_clips = list(both_ways(micro_predictor(policy, clip_length=LENGTH, **exact)))
    single = list(both_ways(micro_predictor(Literal(policy=policy, alone=frozenset({*PROMPTS, COUNT})), **exact)))
    for ours, theirs in zip(by_clips, single):
        assert difference(ours, theirs) < 5e-5, "but for the size of batches"
    other = list(both_ways(micro_predictor(policy, **exact)))
    assert difference(by_clips[0], other[0]) > 1, "control: frame by frame"


def test_clips_of_one_frame_are_frames() -> None:
    """A clip of which every frame is prompted, or a pass of one frame, is what it is without clips."""
    prompts = {t: [mask_prompt(1, t), mask_prompt(2, t, 1)] for t in range(6)}
    for length in (1, 4):
        predictor = micro_predictor(clip_length=length)
        masks = track(predictor, prompted(predictor, prompts, 6), 0)
        if length == 1:
            expected = masks
    assert all(torch.equal(a, b) for a, b in zip(masks, expected, strict=True))


# -- what cuts a clip -------------------------------------------------------------------------------------------------


def test_a_pass_that_ends_within_a_clip() -> None:
    """It may end where it was planned to, because its reader left, or because another one begins: what comes next is the same."""
    predictor = micro_predictor(clip_length=4)
    continued = []
    for way in ("planned", "left", "open", "copied"):
        state = prompted(predictor, {0: PROMPTS[2]}, 16)
        if way == "planned":
            track(predictor, state, 0, 6)
        else:
            results = predictor.propagate_in_video(state)
            shown = [next(results)[0] for _ in range(7)]
            assert shown[-1] == 6 and state.tracker.clip is not None
            state = deepcopy(state) if way == "copied" else state
            if way == "left":
                results.close()
                assert state.tracker.clip is None
        memory = [sorted(t.frames_in_memory()) for t in state.tracker.tracks.values()]
        if way != "open":
            assert memory == [[0, 4, 6], [0, 4, 6]]
        continued.append(track(predictor, state, 7))
    assert all(difference(continued[0], other) < 1e-3 for other in continued[1:])
    state = prompted(predictor, {0: PROMPTS[2]}, 16)
    assert difference(track(predictor, state, 0)[7:], continued[0]) > 1, "control: not cut"


@pytest.mark.parametrize("say", ["click", "mask ahead", "remove", "take back"])
def test_what_is_said_in_the_loop_cuts_the_clip(say: str) -> None:
    """From the next frame on, as if the pass had ended and another one had begun."""
    predictor = micro_predictor(clip_length=4)

    def speak(state: Any) -> None:
        if say == "click":
            click = click_prompt(1, 6)
            predictor.add_new_points_or_box(state, 6, 1, points=click.points, labels=click.labels)
        elif say == "mask ahead":
            predictor.add_new_mask(state, 7, 1, mask_prompt(1, 7).mask)
        elif say == "remove":
            predictor.remove_object(state, 2)
        else:
            predictor.clear_all_prompts_in_frame(state, 3, 2)

    prompts = {0: PROMPTS[2], 3: [mask_prompt(2, 3, 1)]}
    state = prompted(predictor, prompts, 12)
    track(predictor, state, 0, 6)
    speak(state)
    expected, shown = track(predictor, state, 7), []
    state = prompted(predictor, prompts, 12)
    for frame, _, masks in predictor.propagate_in_video(state):
        shown.append(masks.clone())
        if frame == 6:
            speak(state)
    assert len(shown) == 12 and difference(shown[7:], expected) < 1e-3


def test_another_mask_within_a_clip() -> None:
    """It is remembered in place of the one that was shown, for its object alone, and the clip ends there."""
    predictor = micro_predictor(clip_length=4)
    state = prompted(predictor, {0: PROMPTS[2]}, 10)
    plain = track(predictor, state, 0)
    state, shown = prompted(predictor, {0: PROMPTS[2]}, 10), []
    for frame, _, masks in predictor.propagate_in_video(state):
        shown.append(masks.clone())
        if frame == 6:
            options = predictor.alternatives(state, 1)
            assert sum(option.is_shown for option in options) == 1 < len(options)
            other = next(option for option in options if not option.is_shown)
            predictor.choose_alternative(state, 1, other.number)
            assert [t.frames_in_memory() for t in state.tracker.tracks.values()] == [{0, 4, 6}, {0, 4, 6}]
    assert difference(shown[:7], plain[:7]) == 0
    assert (shown[7] - plain[7])[0].abs().max() > 1


def test_a_checkpoint_waits_for_the_end_of_a_clip() -> None:
    predictor = micro_predictor(clip_length=4)
    frames = VideoPass(predictor, predictor.init_state(pictures(11)), PromptPlan((1,), {1: lambda _: PROMPTS[2][:1]}))
    assert [shown.frame.index for shown in frames if frames.checkpoint() is not None] == [0, 1, 4, 8, 10]


def test_parts_around_a_policy() -> None:
    """A listener hears of every frame; a refiner and an arbiter look at each."""
    predictor = micro_predictor(clip_length=4, arbiter="recent")
    asked: list[int] = []

    class Refiner(HQRefiner):
        def wants(self, frame: int) -> bool:
            asked.append(frame)
            return True

    predictor.refiner = Refiner()
    state, causes = prompted(predictor, {0: PROMPTS[2]}, 9), []

    class Listener:
        read_mass = True

        def on_change(self, record: Any) -> None:
            causes.append((record.frame, record.cause.value, len(record.readings)))

    predictor.listen(state, Listener())
    results = list(predictor.propagate(state))
    assert [r.frame for r in results] == list(range(9)) and all(len(r.scores) == 2 for r in results)
    of_first = [cause for cause in causes if cause[1] in ("read", "write")][::2]
    assert [(frame, cause) for frame, cause, _ in of_first] == [
        (t, "write" if t % 4 == 0 else "read") for t in range(1, 9)
    ]
    assert all(readings for _, _, readings in of_first)
    assert len(state.tracker.tracks[1].visibility.scores) == 8
    assert set(asked) <= set(range(1, 9)) and len(asked) > 2, "on frames on which an object is visible"


# -- what does not go by clips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_FRAME)
def test_policies_that_count_on_every_frame(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected tracker\.clip_length=1 with \w+, got 2: it"):
        micro_predictor(name, clip_length=2)
    hybrid = build_policy("hybrid")
    if name == "sentry":
        return
    with pytest.raises(ValueError, match="clip_length=1"):
        micro_predictor(replace(hybrid, short=build_policy(name)), clip_length=2)


def test_streams_and_settings() -> None:
    predictor = micro_predictor(clip_length=2)
    with pytest.raises(ValueError, match=r"expected tracker\.clip_length=1 on a stream"):
        predictor.track_frame(predictor.init_state(), pictures(1)[0], [mask_prompt(1)])
    with pytest.raises(ValueError, match="expected clip_length >= 1, got 0"):
        micro_predictor(clip_length=0)


def test_from_a_config() -> None:
    predictor = build_sam2_video_predictor(
        "hiera_nano", "random", device="cpu", hydra_overrides_extra=["tracker.clip_length=3"]
    )
    assert predictor.tracker_settings.clip_length == 3


# -- on a device ------------------------------------------------------------------------------------------------------


def waits_of_a_pass(sim: SimulatedCuda, policy: MemoryPolicy, length: int, count: int = 17) -> int:
    predictor = micro_predictor(policy, clip_length=length)
    predictor.model = deepcopy(predictor.model).to("cuda")
    state = prompted(predictor, {0: PROMPTS[2]}, count)
    sim.clear()
    list(predictor.propagate(state))
    return len(sim.waits)


@pytest.mark.full
def test_the_host_waits_once_a_clip() -> None:
    micro_predictor()  # made on the CPU
    with SimulatedCuda() as sim:
        policy = build_policy("fifo")
        waits = {length: waits_of_a_pass(sim, policy, length) for length in (1, 4, 8)}
    assert waits[1] - waits[4] == 12 and waits[4] - waits[8] == 2, "16 tracked frames, 4 clips, 2 clips"
