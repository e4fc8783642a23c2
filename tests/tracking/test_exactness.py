"""What may not change a result, and that its opposite does: company, order, padding, batching, the way frames come in,
rotary coordinates, counts, gains, statistics. One small network; it encodes each picture once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import Clip
from helpers import (
    TINY,
    PublishedMask,
    Session,
    make_predictor,
    needs_reference,
    only,
    prompt_three,
    with_policy,
    worst,
    worst_iou,
)
from micro import in_tiers, one_thread  # noqa: F401
from torch import Tensor

from sam2_mem import SAM2VideoPredictor
from sam2_mem.memory.policies.fifo import FIFO
from sam2_mem.model.memory_attention import Attended
from sam2_mem.model.rope import grid_coordinates
from sam2_mem.model.sam2 import SAM2
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.batching import batch_reads
from sam2_mem.types import PROMPT_SLOT, FrameFeatures, MemoryRead, MemoryTokens, ReadItem, ReadPointer, RowBatch, Usage
from sam2_mem.video import open_video

CLOSE = 1e-4  # of logits, where batches differ
FRAMES = 20


@pytest.fixture(scope="module")
def short(clip: Clip) -> Clip:
    """More than 16 frames: the length of the video does not matter."""
    return Clip(clip.frames[:FRAMES], clip.labels[:FRAMES])


@pytest.fixture(scope="module")
def together(tiny: SAM2VideoPredictor, short: Clip) -> list[PublishedMask]:
    """Three objects, tracked from the first frame to the last."""
    session = Session(tiny, short.frames)
    prompt_three(session, short)
    shown = session.track()
    logits = torch.stack([s.logits for s in shown])
    present = (logits > -1000).flatten(2).any(2)
    assert present.any() and not present.all(), "objects should come and go"
    return shown


# -- objects ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_alone_as_in_company(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    for obj_id in (1, 2, 3):
        session = Session(tiny, short.frames)
        if obj_id == 1:
            session.mask(0, 1, short.mask(1))
        elif obj_id == 2:
            session.points(0, 2, short.centre(2))
        else:
            session.box(0, 3, short.box(3))
        assert worst(session.track(), only(together, obj_id)) <= CLOSE
    assert worst(only(together, 1), [replace(s, ids=(1,)) for s in only(together, 2)]) > 100 * CLOSE


@pytest.mark.full
def test_order_of_objects(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    session = Session(tiny, short.frames)
    session.box(0, 3, short.box(3))
    session.points(0, 2, short.centre(2))
    session.mask(0, 1, short.mask(1))
    shown = session.track()
    assert shown[-1].ids == (3, 2, 1)
    assert worst(only(shown, 1, 2, 3), together) <= CLOSE


def test_a_late_object(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    def late(session: Session) -> None:
        session.box(7, 3, short.box(3, 7))

    session = Session(tiny, short.frames)
    session.mask(0, 1, short.mask(1))
    late(session)
    shown = session.track()
    assert worst(only(shown, 1), only(together, 1)) <= CLOSE
    alone = Session(tiny, short.frames)
    late(alone)
    assert worst(only(shown, 3), alone.track(0)) <= CLOSE
    assert worst(only(shown, 3)[8:], only(together, 3)[8:]) > 100 * CLOSE


def test_a_removed_object(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    session = Session(tiny, short.frames)
    prompt_three(session, short)
    for _, ids, masks in tiny.propagate_in_video(session.state):
        shown = session._note((_, ids, masks))
        if shown.frame == 8:
            assert tiny.remove_object(session.state, 2)[0] == [1, 3]
    tracked = session.shown[3:]
    assert [s.ids for s in tracked[8:10]] == [(1, 2, 3), (1, 3)]
    assert worst(only(tracked, 1, 3), only(together, 1, 3)) <= CLOSE


# -- where frames come from -------------------------------------------------------------------------------------------


def stream(
    predictor: SAM2VideoPredictor, frames: Sequence[np.ndarray], prompts: dict[int, list[Prompt]]
) -> list[PublishedMask]:
    session = Session(predictor, None)
    for i, frame in enumerate(frames):
        session._note(predictor.track_frame(session.state, frame, prompts.get(i, ())))
    return session.shown


def test_a_stream_equals_a_video(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    first = [
        Prompt(obj_id=1, mask=short.mask(1)),
        Prompt(obj_id=2, points=[short.centre(2)], labels=[1]),
        Prompt(obj_id=3, box=short.box(3)),
    ]
    assert worst(stream(tiny, short.frames, {0: first}), together) <= 1e-5


@pytest.mark.full
def test_a_late_object_of_a_stream(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    late = [Prompt(obj_id=3, box=short.box(3, 7))]
    shown = stream(tiny, short.frames, {0: [Prompt(obj_id=1, mask=short.mask(1))], 7: late})
    assert [s.ids for s in shown[6:8]] == [(1,), (1, 3)]
    assert worst([replace(s, ids=(1,), logits=s.logits[:1]) for s in shown], only(together, 1)) <= CLOSE
    alone = Session(tiny, short.frames)
    alone.box(7, 3, short.box(3, 7))
    assert worst(only(shown, 3), alone.track()) <= CLOSE


@pytest.mark.full
def test_folder_array_and_iterator(tiny: SAM2VideoPredictor, clip_folder: Path):
    """The same decoded pictures, so the same bits; an iterator does not know its length, which from 16 frames on makes
    no difference."""
    decoded = np.stack([frame.image for frame in open_video(str(clip_folder))][:17])
    runs = []
    for video in (clip_folder, decoded, iter(list(decoded))):
        session = Session(tiny, video)
        session.points(0, 1, [60, 70])
        runs.append(session.track(None, 16))
    assert len(runs[0]) == 17
    assert worst(runs[0], runs[1]) == 0.0 and worst(runs[0], runs[2]) == 0.0


def test_the_same_twice(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    session = Session(tiny, short.frames)
    prompt_three(session, short)
    assert worst(session.track(), together) == 0.0


# -- precision and size -----------------------------------------------------------------------------------------------


def few_frames(predictor: SAM2VideoPredictor, clip: Clip) -> list[PublishedMask]:
    session = Session(predictor, clip.frames[:4])
    prompt_three(session, clip)
    session.track()
    return session.shown


def test_half_precision(tiny: SAM2VideoPredictor, tiny_weights: Path, clip: Clip):
    exact = few_frames(tiny, clip)
    predictor = make_predictor(tiny_weights)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = few_frames(predictor, clip)
    predictor.to(torch.bfloat16)
    assert next(predictor.model.parameters()).dtype is torch.bfloat16
    for shown in (automatic, few_frames(predictor, clip)):
        assert all(s.logits.isfinite().all() and s.logits.dtype is torch.float32 for s in shown)
        assert worst_iou(shown[:3], exact[:3]) > 0.8
        assert worst(shown[:3], exact[:3]) > 1e-4


@pytest.mark.parametrize("size", in_tiers([96, 128, 256], [96]))
def test_image_sizes(tiny_weights: Path, clip: Clip, size: int):
    """The same weights at any size; a late and an early batch agree there too."""
    predictor = make_predictor(tiny_weights, image_size=size)
    shown = few_frames(predictor, clip)
    assert predictor.image_size == size and predictor.model.mask_size == (size // 4, size // 4)
    assert shown[-1].logits.shape == (3, *clip.frames.shape[1:3])
    alone = Session(predictor, clip.frames[:4])
    alone.points(0, 2, clip.centre(2))
    assert worst(alone.track(), only(shown[3:], 2)) <= CLOSE


def test_an_impossible_size(tiny_weights: Path):
    with pytest.raises(ValueError, match="multiple of 32"):
        make_predictor(tiny_weights, image_size=100)


# -- batches ----------------------------------------------------------------------------------------------------------


@contextmanager
def watched(model: SAM2) -> Iterator[list[RowBatch]]:
    """The batches that go through memory attention."""
    seen: list[RowBatch] = []
    attend = model.attend

    def noted(features: FrameFeatures, rows: RowBatch, *args: Any, **kwargs: Any) -> Attended:
        seen.append(rows)
        return attend(features, rows, *args, **kwargs)

    model.attend = noted
    try:
        yield seen
    finally:
        del model.attend


def unequal(predictor: SAM2VideoPredictor, clip: Clip) -> list[PublishedMask]:
    """Three objects that came one after the other, so that their memories differ in length."""
    prompts = {
        0: [Prompt(obj_id=1, mask=clip.mask(1))],
        2: [Prompt(obj_id=2, points=[clip.centre(2, 2)], labels=[1])],
        4: [Prompt(obj_id=3, box=clip.box(3, 4))],
    }
    return stream(predictor, clip.frames[:12], prompts)


def test_padded_rows(tiny: SAM2VideoPredictor, short: Clip):
    with watched(tiny.model) as separate:
        plain = unequal(tiny, short)
    padding = with_policy(tiny, tiny.policy, max_padding=0.5)
    with watched(tiny.model) as batches:
        padded = unequal(padding, short)
    assert worst(padded, plain) <= CLOSE
    assert all(b.bias is None for b in separate)
    assert any(len(set(b.lengths)) == 3 and b.bias is not None for b in batches)
    assert len(batches) < len(separate)


@pytest.mark.full
def test_one_row_at_a_time(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    single = Session(with_policy(tiny, tiny.policy, max_rows=1), short.frames)
    prompt_three(single, short)
    with watched(tiny.model) as batches:
        shown = single.track()
    assert worst(shown, together) <= CLOSE
    assert [b.rows for b in batches] == [1] * (3 * (FRAMES - 1))


@dataclass(frozen=True, kw_only=True)
class Threefold(FIFO):
    """Three pathways that read the same, or, with ``apart``, keys that differ a little."""

    apart: float = 0.0

    def read(self, state, frame):
        (read,) = super().read(state, frame)
        shifted = [tuple(replace(i, gain=1.0 + k * self.apart) for i in read.items) for k in range(3)]
        return tuple(replace(read, items=items) for items in shifted)


def test_equal_reads_are_one_row(tiny: SAM2VideoPredictor, short: Clip, together: list[PublishedMask]):
    session = Session(with_policy(tiny, Threefold()), short.frames)
    prompt_three(session, short)
    with watched(tiny.model) as batches:
        shown = session.track()
    assert worst(shown, together) == 0.0
    assert [b.rows for b in batches] == [3] * (FRAMES - 1)
    session = Session(with_policy(tiny, Threefold(apart=0.1)), short.frames[:4])
    prompt_three(session, short)
    with watched(tiny.model) as batches:
        session.track()
    assert [b.rows for b in batches] == [9] * 3


# -- forgetting around a prompt ---------------------------------------------------------------------------------------


def tracked_frames(session: Session, obj_id: int) -> list[int]:
    return [e.frame for e in session.state.tracker.tracks[obj_id].state.entries]


@pytest.mark.parametrize(
    ("settings", "objects", "forgets"),
    [
        ({}, 1, False),
        ({"clear_non_cond_mem_around_input": True}, 1, True),
        ({"clear_non_cond_mem_around_input": True}, 2, False),
        ({"clear_non_cond_mem_around_input": True, "clear_non_cond_mem_for_multi_obj": True}, 2, True),
    ],
)
def test_forgetting_around_a_correction(
    tiny: SAM2VideoPredictor, short: Clip, settings: dict[str, bool], objects: int, forgets: bool
):
    session = Session(with_policy(tiny, FIFO(), forget_radius=3, **settings), short.frames)
    for obj_id in range(1, objects + 1):
        session.mask(0, obj_id, short.mask(obj_id))
    session.track(None, 9)
    session.points(8, 1, short.centre(1, 8))
    session.track(8, 0)
    assert tracked_frames(session, 1) == ([1, 2, 3, 4] if forgets else [1, 2, 3, 4, 5, 6, 7, 9])
    if objects == 2:
        assert tracked_frames(session, 2) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


# -- masks of another size --------------------------------------------------------------------------------------------


def test_masks_of_another_size(tiny: SAM2VideoPredictor, short: Clip):
    session = Session(tiny, short.frames)
    full = session.mask(0, 1, short.mask(1)).of(1) > 0
    half = session.mask(0, 2, short.mask(1)[::2, ::2]).of(2) > 0
    assert half.shape == full.shape and (half & full).sum() / (half | full).sum() > 0.85
    for wrong in (short.mask(1).T, short.mask(1)[:, :100], np.ones((64, 64), bool)):
        with pytest.raises(ValueError, match="transposed or cut"):
            session.mask(0, 3, wrong)
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        session.mask(0, 3, short.mask(1)[None])
    with pytest.raises(ValueError, match="label image"):
        session.mask(0, 3, short.labels[0])
    assert session.state["obj_ids"] == [1, 2]


# -- memory attention -------------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model(tiny: SAM2VideoPredictor) -> SAM2:
    return tiny.model


@pytest.fixture(scope="module")
def features(model: SAM2) -> FrameFeatures:
    """Of a random picture; a grid of 8 x 8."""
    with torch.no_grad():
        return model.encode_image(noise(1, 3, 128, 128, seed=1))[0]


def one_map(grid: tuple[int, int], seed: int) -> MemoryTokens:
    cells = grid[0] * grid[1]
    return MemoryTokens(noise(cells, 64, seed=seed), 0.3 * noise(cells, 64, seed=7), grid_coordinates(*grid))


@pytest.fixture(scope="module")
def read(features: FrameFeatures) -> MemoryRead:
    """A prompt, two frames and two pointers."""
    maps = [one_map(features.grid, seed) for seed in (2, 3, 4)]
    pointers = tuple(ReadPointer(noise(256, seed=5 + i), (i + 1) / 15) for i in range(2))
    return MemoryRead(tuple(ReadItem(m, s) for m, s in zip(maps, (PROMPT_SLOT, 1, 0))), pointers)


@torch.no_grad()
def attended(
    model: SAM2, features: FrameFeatures, *reads: MemoryRead, usage: Usage = Usage.NONE, padding: float = 0.0
) -> Attended:
    (batch,) = batch_reads(reads, model, max_padding=padding).batches
    return model.attend(features, batch, usage)


def changed(read: MemoryRead, index: int, **fields: Any) -> MemoryRead:
    """``read`` with other tokens in one item."""
    items = list(read.items)
    items[index] = replace(items[index], tokens=replace(items[index].tokens, **fields))
    return replace(read, items=tuple(items))


def gap(a: Attended, b: Attended) -> float:
    return (a.features - b.features).abs().max().item()


@needs_reference
def test_coordinates_reproduce_the_grid_of_the_reference(
    model: SAM2, features: FrameFeatures, read: MemoryRead, tiny_weights: Path
):
    from sam2.build_sam import build_sam2_video_predictor

    options = {"device": "cpu", "apply_postprocessing": False, "hydra_overrides_extra": ["++model.image_size=128"]}
    reference = build_sam2_video_predictor(TINY, str(tiny_weights), **options)
    (batch,) = batch_reads([read], model).batches
    with torch.no_grad():
        expected = reference.memory_attention(
            curr=[features.low[:, None]],
            curr_pos=[features.low_pos[:, None]],
            memory=batch.feat.transpose(0, 1),
            memory_pos=batch.pos.transpose(0, 1),
            num_obj_ptr_tokens=8,
        )
    ours = attended(model, features, read).features
    assert (ours[0] - expected[:, 0]).abs().max() <= 1e-5
    mirrored = changed(read, 1, xy=read.items[1].tokens.xy.flip(1))
    assert (attended(model, features, mirrored).features[0] - expected[:, 0]).abs().max() > 1e-3


def test_tokens_in_any_order(model: SAM2, features: FrameFeatures, read: MemoryRead):
    tokens, order = read.items[1].tokens, torch.randperm(64, generator=torch.Generator().manual_seed(0))
    plain = attended(model, features, read)
    carried = changed(read, 1, feat=tokens.feat[order], pos=tokens.pos[order], xy=tokens.xy[order])
    assert gap(attended(model, features, carried), plain) <= 1e-5
    left_behind = changed(read, 1, feat=tokens.feat[order], pos=tokens.pos[order])
    assert gap(attended(model, features, left_behind), plain) > 1e-3


def test_tokens_without_coordinates_are_at_the_origin(model: SAM2, features: FrameFeatures, read: MemoryRead):
    nowhere, origin = changed(read, 1, xy=None), changed(read, 1, xy=torch.zeros(64, 2))
    assert gap(attended(model, features, nowhere), attended(model, features, origin)) == 0.0
    assert gap(attended(model, features, nowhere), attended(model, features, read)) > 1e-3


def test_a_token_that_stands_for_many(model: SAM2, features: FrameFeatures, read: MemoryRead):
    tokens = read.items[1].tokens
    counts = 1 + torch.arange(64) % 5
    copies = changed(read, 1, **{f: getattr(tokens, f).repeat_interleave(counts, 0) for f in ("feat", "pos", "xy")})
    merged = changed(read, 1, log_count=counts.float().log())
    expected = attended(model, features, copies)
    assert gap(attended(model, features, merged), expected) <= 1e-5
    assert gap(attended(model, features, read), expected) > 1e-4
    ones = changed(read, 1, log_count=torch.zeros(64))
    assert gap(attended(model, features, ones), attended(model, features, read)) <= 1e-5


def test_gain(model: SAM2, features: FrameFeatures, read: MemoryRead):
    def with_gain(gain: float) -> MemoryRead:
        return replace(read, items=(replace(read.items[0], gain=gain), *read.items[1:]))

    plain = attended(model, features, read)
    (batch,) = batch_reads([with_gain(1.0)], model).batches
    assert batch.gain is None
    explicit = replace(batch, gain=torch.ones(1, batch.feat.shape[1]))
    with torch.no_grad():
        assert gap(model.attend(features, explicit), plain) <= 1e-6
    assert gap(attended(model, features, with_gain(1.5)), plain) > 1e-4
    tokens = read.items[0].tokens
    code = model.slot_code([PROMPT_SLOT])[0].detach()
    scaled = 1.5 * (tokens.feat + tokens.pos + code)
    louder = replace(read.items[0], tokens=replace(tokens, pos=scaled - tokens.feat - code))
    by_hand = attended(model, features, replace(read, items=(louder, *read.items[1:])))
    assert gap(attended(model, features, with_gain(1.5)), by_hand) <= 1e-5


# -- usage ------------------------------------------------------------------------------------------------------------


def turned(x: Tensor, xy: Tensor) -> Tensor:
    """Rotary encoding written once more, in complex numbers: (N, d) at (N, 2)."""
    pairs = torch.view_as_complex(x.double().reshape(*x.shape[:-1], -1, 2).contiguous())
    quarter = pairs.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(quarter).double() / quarter)
    angle = torch.cat([xy[:, :1] * frequency, xy[:, 1:] * frequency], -1)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


@torch.no_grad()
def weights_by_hand(model: SAM2, features: FrameFeatures, batch: RowBatch) -> Tensor:
    """Softmax of the first cross-attention of the only row, (Q, L), in float64."""
    layer, cells = model.memory_attention.layers[0], grid_coordinates(*features.grid)
    x = (features.low + 0.1 * features.low_pos)[None]
    own = layer.norm1(x)
    attention = layer.self_attn
    q, k = (turned(project(own)[0], cells) for project in (attention.q_proj, attention.k_proj))
    weights = (q @ k.T / math.sqrt(256)).softmax(-1)
    x = x + attention.out_proj((weights @ attention.v_proj(own)[0].double()).float())
    cross = layer.cross_attn_image
    gain = 1.0 if batch.gain is None else batch.gain[0, :, None]
    q = turned(cross.q_proj(layer.norm2(x))[0], cells)
    k = turned(cross.k_proj((batch.feat[0] + batch.pos[0]) * gain), batch.xy[0])
    logits = q @ k.T / math.sqrt(256)
    return (logits if batch.bias is None else logits + batch.bias[0]).softmax(-1)


@pytest.fixture(scope="module")
def rich(read: MemoryRead) -> MemoryRead:
    """With a gain and with tokens that stand for several."""
    counted = changed(read, 1, log_count=(1 + torch.arange(64) % 3).float().log())
    return replace(counted, items=(*counted.items[:2], replace(counted.items[2], gain=1.7)))


def test_usage_is_attention(model: SAM2, features: FrameFeatures, rich: MemoryRead):
    (batch,) = batch_reads([rich], model).batches
    by_hand = weights_by_hand(model, features, batch)
    per_token = attended(model, features, rich, usage=Usage.TOKENS).usage[0].tokens
    expected = by_hand.sum(0)
    assert [len(t) for t in per_token] == [64, 64, 64]
    assert (torch.cat(per_token) - expected[:192]).abs().max() <= 1e-4
    pointers = expected[192:].sum()
    assert pointers > 1e-2
    assert abs(torch.cat(per_token).sum() - (64 - pointers)) <= 1e-3
    per_query = attended(model, features, rich, usage=Usage.ITEMS_BY_QUERY).usage[0].items
    items = torch.stack([by_hand[:, 64 * i : 64 * i + 64].sum(1) for i in range(3)], 1)
    assert per_query.shape == (64, 3) and (per_query - items).abs().max() <= 1e-5
    assert (per_query - per_query.mean(0)).abs().max() > 1e-4 and (items - items.flip(1)).abs().max() > 1e-3


def test_usage_in_chunks_and_in_padded_batches(model: SAM2, features: FrameFeatures, rich: MemoryRead, monkeypatch):
    two_items = replace(rich, items=rich.items[:2])
    alone = [attended(model, features, r, usage=Usage.TOKENS).usage[0].tokens for r in (rich, two_items)]
    monkeypatch.setattr(model.memory_attention, "usage_chunk", 5)
    batched = attended(model, features, two_items, rich, usage=Usage.TOKENS, padding=0.5)
    for got, expected in zip(batched.usage, alone):
        assert [len(t) for t in got.tokens] == [len(t) for t in expected]
        assert (torch.cat(got.tokens) - torch.cat(expected)).abs().max() <= 1e-4


def test_no_usage_unless_asked_for(model: SAM2, features: FrameFeatures, rich: MemoryRead, monkeypatch):
    plain = attended(model, features, rich)
    measured = attended(model, features, rich, usage=Usage.TOKENS)
    assert plain.usage is None and gap(plain, measured) == 0.0

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("sam2_mem.model.memory_attention.measure_usage", forbidden)
    assert gap(attended(model, features, rich), plain) == 0.0
    with pytest.raises(AssertionError, match="measured"):
        attended(model, features, rich, usage=Usage.TOKENS)
