"""On a simulated CUDA device (``simulated_cuda``): nothing mixes devices, the host waits once a frame, graphs are recorded on
their own device, and masks are those of the CPU. First the device itself: what is planted is noticed, what is fine passes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from device_counts import MORE_WAITS, Count, configured, count_of, counts, objects, recalling, shown, stream
from helpers import with_policy
from micro import (
    POLICIES,
    SIDE,
    blob,
    click_prompt,
    mask_prompt,
    micro_model,
    one_thread,  # noqa: F401
    picture,
    pictures,
)
from omegaconf import OmegaConf
from simulated_cuda import CudaTensor, SimulatedCuda
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam2_mem import SAM2ImagePredictor, SAM2VideoPredictor
from sam2_mem.build_sam import build_policy
from sam2_mem.cli.vos import main as segment_command
from sam2_mem.config import choice_config
from sam2_mem.memory.bounded import Bounded
from sam2_mem.memory.policies.sentry import Sentry
from sam2_mem.model import attention_operators
from sam2_mem.model.acceleration.cuda_graphs import GraphSettings, cuda_graphs, optimize
from sam2_mem.model.acceleration.half_weights import HalfWeights
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.batching import CUDA_BYTES, _rows_in_free_memory, row_limit
from sam2_mem.tracking.mask_postprocessing import fill_holes
from sam2_mem.tracking.refine import HQRefiner
from sam2_mem.tracking.settings import TrackerSettings
from sam2_mem.types import MaskSelection
from sam2_mem.video import read_mask_png


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    micro_model()  # made on the CPU, shared with other tests
    with SimulatedCuda() as sim:
        yield sim


def there(*shape: int) -> Tensor:
    return torch.randn(*shape).to("cuda")


# -- the device -------------------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """A network with one fault of the kind that a CPU never shows."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.linear, self.fault = nn.Linear(4, 4), fault

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.fault == "mixed devices":
            y = y + torch.arange(4.0)
        if self.fault == "item" and y.max().item() > 1e9:
            return y
        if self.fault == "mask":
            y = y[y > 0]
        if self.fault == "list":
            y = y[[0, 1]]
        if self.fault == "tensor":
            y = y * torch.tensor([1.0, 2.0, 3.0, 4.0], device=y.device)
        if self.fault == "numpy":
            y.detach().numpy()
        return y


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_control_mixed_devices_raise(cuda: SimulatedCuda, mode: Callable) -> None:
    with mode(), pytest.raises(RuntimeError, match="same device"):
        Planted("mixed devices").to("cuda")(there(3, 4))
    with pytest.raises(TypeError, match="numpy"):
        Planted("numpy").to("cuda")(there(3, 4))


@pytest.mark.parametrize(
    ("fault", "kind", "op"),
    [
        ("item", "sync", "_local_scalar_dense"),
        ("mask", "sync", "index by a mask"),
        ("list", "h2d", "index by numbers"),
        ("tensor", "h2d", "_to_copy"),
    ],
)
@torch.inference_mode()
def test_control_a_wait_is_noted_with_its_place(cuda: SimulatedCuda, fault: str, kind: str, op: str) -> None:
    model, x = Planted(fault).to("cuda"), there(3, 4)
    cuda.clear()
    model(x)
    assert [(e.kind, e.waits) for e in cuda.events] == [(kind, True)] and cuda.events[0].op.startswith(op)
    assert "test_simulated_cuda.py" in cuda.events[0].stack[0] and cuda.events[0].stack[0].endswith("forward")
    cuda.clear()
    model.fault = ""
    model(x)
    assert not cuda.events and cuda.launches == {"linear": 1}


def test_numbers_are_those_of_the_cpu(cuda: SimulatedCuda) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2)), torch.randn(3, 4)
    model(x).square().mean().backward()
    expected, gradients = model(x), [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    y = model.to("cuda")(x.to("cuda"))
    assert isinstance(y, CudaTensor) and str(y.device) == "cuda:0"
    torch.testing.assert_close(y.cpu(), expected)
    y.square().mean().backward()
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad.cpu(), gradient)
    weight = model[0].weight.data
    before, state = weight.clone(), [torch.zeros_like(weight) for _ in range(2)]
    rates = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}
    gradients, step = [model[0].weight.grad], [torch.tensor(1.0)]
    torch._fused_adamw_([weight], gradients, state[:1], state[1:], [], step, amsgrad=False, maximize=False, **rates)
    assert not torch.equal(weight, before)


def test_transfers_and_debug_mode(cuda: SimulatedCuda) -> None:
    host = torch.zeros(4)
    x = host.to("cuda")
    x.copy_(host.pin_memory(), non_blocking=True)
    x.cpu(), x.tolist(), bool(x.any())
    assert [(e.kind, e.waits) for e in cuda.events] == [
        ("h2d", True),
        ("pin", False),
        ("h2d", False),
        ("d2h", True),
        ("d2h", True),
        ("sync", True),
    ]
    assert (x * torch.tensor(2.0)).device == x.device, "one number of the CPU is fine"
    torch.cuda.set_sync_debug_mode("warn")
    with pytest.warns(UserWarning, match="synchronizing"):
        x.nonzero()


def test_two_devices_do_not_mix() -> None:
    with SimulatedCuda(devices=2), pytest.raises(RuntimeError, match="same device"):
        torch.zeros(2, device="cuda:0") + torch.zeros(2, device="cuda:1")


@torch.inference_mode()
def test_attention_kernels(cuda: SimulatedCuda) -> None:
    q, mask = there(1, 2, 8, 16), there(8, 8)
    F.scaled_dot_product_attention(q, q, q)
    F.scaled_dot_product_attention(q.half(), q.half(), q.half())
    F.scaled_dot_product_attention(q[0], q[0], q[0], mask)
    assert [key[-1] for key in cuda.attention] == ["mem_efficient", "cudnn/flash/mem_efficient", "math"]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="No available kernel"):
        F.scaled_dot_product_attention(q, q, q)


def recorded(function: Callable) -> tuple[Any, Any]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()
    return graph, out


@torch.inference_mode()
def test_a_graph_repeats_in_the_same_places(cuda: SimulatedCuda) -> None:
    x, calls = there(3), []
    graph, out = recorded(lambda: calls.append(1) or 2 * x + 1)
    assert out.isnan().all(), "recording runs nothing"
    for value in (1.0, 5.0):
        x.fill_(value)
        graph.replay()
        assert (out == 2 * value + 1).all() and len(calls) == 1
    inner: list[Tensor] = []
    graph, out = recorded(lambda: inner.append((x * 2).host) or x.sum())
    graph.replay()
    assert inner[0].isnan().all(), "memory that no tensor holds is given to others"


@torch.inference_mode()
def test_control_faults_of_recordings(cuda: SimulatedCuda) -> None:
    x, before = there(3), torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="capturing"):
        recorded(lambda: x if x.sum().item() else -x)
    assert torch.cuda.current_stream() is not before, "torch leaves the stream of a refused recording current"
    cuda.stream = before
    record, pool = cuda_graphs(x.device), torch.cuda.graph_pool_handle()
    with pytest.raises(RuntimeError, match="capturing"):
        record(lambda: x if x.sum().item() else -x)
    assert torch.cuda.current_stream() is before and cuda.events[-1].op == "synchronize" and not cuda.pools
    replay, out = record(lambda: 2 * x)
    replay()
    assert torch.equal(out, 2 * x), "the next recording is not refused"
    with pytest.raises(RuntimeError, match="capturing"), torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool):
        x.sum().item()
    with pytest.raises(RuntimeError, match="already recording"), torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool):
        pass


@torch.inference_mode()
def test_control_a_graph_of_another_device_is_empty() -> None:
    with SimulatedCuda(devices=2):
        x = torch.zeros(2, device="cuda:1")
        with pytest.warns(UserWarning, match="empty"):
            recorded(lambda: x + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cuda_graphs(x.device)(lambda: x + 1)


# -- tracking ---------------------------------------------------------------------------------------------------------


@lru_cache
def network(device: str = "cuda") -> SAM2:
    """Shared, and so not to be changed; encodes each picture once."""
    return recalling(own_network(device), MEMOS[device])


MEMOS: dict[str, dict] = {"cuda": {}, "cpu": {}}
"""Features of pictures by device."""


def own_network(device: str = "cuda") -> SAM2:
    """To change."""
    return shown(copy.deepcopy(micro_model())).to(device)


def predictor(
    policy: str = "fifo", device: str = "cuda", model: SAM2 | None = None, **parts: Any
) -> SAM2VideoPredictor:
    """The micro network, with holes filled; ``parts`` of the predictor, of ``TrackerSettings`` under ``tracker``."""
    settings = TrackerSettings(fill_hole_area=8, remove_region_area=4, **parts.pop("tracker", {}))
    return SAM2VideoPredictor(model or network(device), build_policy(policy), tracker=settings, **parts)


def built(*overrides: str, device: str = "cuda") -> SAM2VideoPredictor:
    """As configured; encodes each picture once."""
    made = configured(*overrides, device=device)
    recalling(made.model, MEMOS[device])
    return made


@lru_cache
def base(device: str, distills: bool) -> SAM2VideoPredictor:
    return built("memory_policy=distilled" if distills else "memory_policy=fifo", device=device)


def with_settings(policy: str, device: str, *settings: str) -> SAM2VideoPredictor:
    """On a shared network."""
    config = OmegaConf.merge(choice_config("memory_policy", policy), OmegaConf.from_dotlist(list(settings)))
    return with_policy(base(device, policy == "distilled"), build_policy(config))


def on_cpu(cuda: SimulatedCuda, of_cpu: Callable[[], Any]) -> Any:
    """What it gives where there is no device."""
    with cuda.left():
        return of_cpu()


def close(here: Tensor, cpu: Tensor) -> bool:
    """Within .01; rounding may decide of a few small regions whether they are filled, which sets their logits to .1 or -.1."""
    difference = (here - cpu).abs()
    return bool((difference > 1e-2).float().mean() < 1e-3 and difference.max() < 0.2)


def alike(here: Tensor, other: Tensor) -> bool:
    """What bfloat16 may change of masks."""
    here, other = here > 0, other > 0
    return bool((here & other).sum() > 0.8 * (here | other).sum())


def half() -> AbstractContextManager:
    return torch.autocast("cuda", dtype=torch.bfloat16)


def test_masks_are_those_of_the_cpu(cuda: SimulatedCuda) -> None:
    here, cpu = (stream(predictor(model=own_network(device)), 2, 5) for device in ("cuda", "cpu"))
    assert close(here, cpu) and here.std() > 1
    assert not close(here[1:], cpu[:-1]), "control: frames differ"


def test_features_of_pictures_seen_earlier_change_no_mask_and_no_count(cuda: SimulatedCuda) -> None:
    (expected, masks), *others = (
        counts(cuda, predictor(model=model), 2, 4) for model in (own_network(), *2 * [network()])
    )
    for by_frame, same in others:
        assert torch.equal(same, masks) and [c[:2] for c in by_frame[1:]] == [c[:2] for c in expected[1:]]
    assert others[-1][0][-1].kernels < expected[-1].kernels - 50, "control: the encoder did not run"


def test_control_a_wait_planted_in_a_policy_is_counted(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    curious = predictor()
    read = type(curious.policy).read
    monkeypatch.setattr(
        type(curious.policy), "read", lambda self, s, f: (s.prompts[0].pointer.sum().item(), read(self, s, f))[1]
    )
    assert max(c.waits for c in counts(cuda, curious, 1, 5)[0][2:]) == 2


def short_memory() -> SAM2VideoPredictor:
    """``fifo`` whose memory is full after three tracked frames."""
    tracking = predictor(model=own_network(), tracker={"history": 1})
    tracking.policy = replace(tracking.policy, num_maskmem=2, max_obj_ptrs_in_encoder=3)
    return tracking


@pytest.mark.full
def test_three_transfers_bring_the_inputs_of_a_frame(cuda: SimulatedCuda) -> None:
    """Kernels are those of one object and few more."""
    one, ten = (counts(cuda, short_memory(), count, 7)[0][-1] for count in (1, 10))
    assert one[:2] == ten[:2] == (1, 3), cuda.report()
    assert ten.kernels < 1.5 * one.kernels


ANY = ("min_iou=-1e9", "min_object_score=-1e9")
OFTEN = {
    "diverse": (*ANY, "pool_size=3"),
    "distilled": ("tail=1", "min_object_score=-1e9"),
    "keyframe": (*ANY, "gap=2", "recent=1"),
    "rmem": ("gap=2",),
    "hq_smem": ("gap=2",),
    "samite": (*ANY, "min_overlap=-1e9", "num_maskmem=3"),
    "tamb": (*ANY, "min_overlap=-1e9", "num_maskmem=3", "max_change=1e-6", "recovery_likeness=-1"),
    "efp": ("num_maskmem=5",),
    "learned": ("size=2",),
}
"""Settings under which a policy soon does what it does now and then: takes every frame for a good one, fills a pool, holds a
contest, loses an object and finds it again."""
MORE_TRANSFERS = {"keyframe": 1, "template": 1}
"""keyframe: once, a constant that is kept; template: the answers' places."""
FIRST = {"distilled": 9}
"""Tracked frames after which what is worked out once has been: of summaries the windows of the kinds of merges there are."""


TEN_OBJECTS = ("fifo", "efp", "samite", "tamb", "diverse", "sam2long")
"""Other policies track three: what is done for each object counts."""
ONE_OBJECT = ("fifo", "efp", "distilled")
"""Of other policies the recorded test below counts with one object."""


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        *((name, 1) for name in ONE_OBJECT),
        *(pytest.param(name, 10 if name in TEN_OBJECTS else 3, marks=pytest.mark.full) for name in POLICIES),
    ],
)
def test_one_wait_and_three_transfers_a_frame(cuda: SimulatedCuda, policy: str, count: int) -> None:
    """The scores of all objects come to the host; the picture, numbers of reads and flags of masks go to the device. Masks are
    those of the CPU."""
    settings, first = OFTEN.get(policy, ()), 1 + FIRST.get(policy, 2)
    by_frame, masks = counts(cuda, with_settings(policy, "cuda", *settings), count, first + 4)
    tracked = by_frame[first:]
    assert 1 <= max(c.waits for c in tracked) <= 1 + count * MORE_WAITS.get(policy, 0), cuda.report()
    assert 3 <= max(c.transfers for c in tracked) <= 3 + MORE_TRANSFERS.get(policy, 0), cuda.report()
    expected = on_cpu(cuda, lambda: stream(with_settings(policy, "cpu", *settings), count, first + 4))
    assert close(masks, expected) and (expected > 0).flatten(2).any(2).all()


TOKENS = ("memory_bound=tokens", "memory_bound.max_bytes=8192")
PARTS = {
    "bytes": (1, "efp", "memory_bound=bytes", "memory_bound.max_bytes=12288"),
    "arbiter": (1, "fifo", "tracker.arbiter=variance"),
    "hybrid of efp": (1, "hybrid", "memory_policy.short=efp"),
    "scenes": (1, "hybrid", "memory_policy.long=scene"),
    "tokens": (4, "fifo", *TOKENS),
    "tokens by attention": (4, "fifo", *TOKENS, "memory_bound.score=snap"),
    "tokens by use": (5, "efp", *TOKENS, "memory_bound.score=usage"),
    "tokens on the host": (5, "fifo", *TOKENS, "tracker.storage_device=cpu"),
    "refiner": (2, "fifo", "refiner=hq"),
    "offloaded": (2, "fifo", "tracker.storage_device=cpu"),
}


@pytest.mark.full
@pytest.mark.parametrize("part", PARTS)
def test_waits_of_parts_around_a_policy(cuda: SimulatedCuda, part: str) -> None:
    """A refiner asks which proposals were accepted; memory on the host is fetched once, for all objects; a budget of tokens asks
    of each object which of them stay, and ``efp`` under it which maps are read."""
    waits, policy, *overrides = PARTS[part]
    by_frame, masks = counts(cuda, built(f"memory_policy={policy}", *overrides), 3, 8)
    assert max(c.waits for c in by_frame[2:]) == waits, cuda.report()
    assert close(masks, on_cpu(cuda, lambda: stream(built(f"memory_policy={policy}", *overrides, device="cpu"), 3, 8)))


@pytest.mark.full
@pytest.mark.parametrize("policy", ["fifo", "sparse", "keyframe"])
def test_memory_on_the_host(cuda: SimulatedCuda, policy: str) -> None:
    """In pinned storage: one wait more takes it there, none brings it back."""
    expected = stream(predictor(policy), 2, 6)
    cuda.clear()
    by_frame, masks = counts(cuda, predictor(policy, tracker={"storage_device": "cpu"}), 2, 6)
    assert max(c.waits for c in by_frame[2:]) == 2, cuda.report()
    assert torch.allclose(masks, expected, atol=1e-4)


@pytest.mark.full
def test_rows_by_free_memory(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as take half of the memory that is free, at least one; a limit changes no mask."""
    many, few = predictor(), predictor()
    expected, tokens = stream(many, 3, 2), few.model.tokens_per_map
    for free, rows in ((0, 1), (5 * CUDA_BYTES * tokens, 2)):
        _rows_in_free_memory.cache_clear()
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free: (free, 80 << 30))
        assert row_limit(few.model, None) == rows and row_limit(few.model, 7) == 7
    assert torch.allclose(stream(few, 3, 2), expected, atol=1e-4)
    _rows_in_free_memory.cache_clear()


def test_weights_are_cast_once(cuda: SimulatedCuda) -> None:
    plain, once = (predictor(model=own_network()) for _ in range(2))
    once.model.runner = HalfWeights(once.model)
    expected, before = stream(plain, 1, 4, half), sum(cuda.launches.values())
    cuda.clear()
    assert torch.equal(stream(once, 1, 4, half), expected)
    assert sum(cuda.launches.values()) < 0.9 * before


def test_memory_attention_leaves_cudnn_out(cuda: SimulatedCuda) -> None:
    attention = micro_model().memory_attention.layers[0].cross_attn_image
    q, k = (there(1, 1, n, 32).bfloat16() for n in (16, 24))
    with torch.inference_mode():
        attention.kernel(q, k, k)
        F.scaled_dot_product_attention(q, k, k)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            attention.kernel(q, k, k)
    assert [key[-1] for key in cuda.attention] == ["flash/mem_efficient", "cudnn/flash/mem_efficient", "cudnn"]


# -- lifecycles -------------------------------------------------------------------------------------------------------


def video_session(folder: Path, device: str, **init: bool) -> list[Tensor]:
    """Mask, box, click, a late object, a correction, a removal, both directions, memory in a file."""
    tracking = predictor(device=device)
    on = partial(torch.as_tensor, device=device)
    state, shown = tracking.init_state(pictures(8), **init), []
    tracking.add_new_mask(state, 1, 0, on(blob(0, 1)))
    tracking.add_new_points_or_box(state, 1, 1, box=on([4.0, 4.0, 30.0, 30.0]))
    click = click_prompt(2, 1, 2)
    tracking.add_new_points_or_box(state, 1, 2, points=on(click.points.numpy()), labels=on([1]))
    shown += [m for *_, m in tracking.propagate_in_video(state, max_frame_num_to_track=3)]
    tracking.add_new_points_or_box(state, 3, 1, points=on([[10.0, 10.0]]), labels=on([1]))
    more = {"points": on([[12.0, 12.0]]), "labels": on([0]), "clear_old_points": False}
    tracking.add_new_points_or_box(state, 3, 1, **more)
    tracking.add_new_mask(state, 4, 5, blob(1, 4))
    shown += [m for *_, m in tracking.propagate_in_video(state, 3)]
    tracking.remove_object(state, 0)
    shown += [m for *_, m in tracking.propagate_in_video(state, 4, reverse=True)]
    tracking.save_memory(state, 5, folder / f"{device}.pt")
    state = tracking.init_state(pictures(8)[3:])
    tracking.load_memory(state, 9, folder / f"{device}.pt", frame_idx=0)
    tracking.add_new_mask(state, 0, 1, blob(2, 3))
    shown += [m for *_, m in tracking.propagate_in_video(state, 0, 2)]
    return [m.float().cpu() for m in shown]


@pytest.fixture(scope="module")
def session_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    return video_session(tmp_path_factory.mktemp("session"), "cpu")


@pytest.mark.full
@pytest.mark.parametrize("offload", [False, True], ids=["as is", "offloaded"])
def test_a_session(session_on_cpu: list[Tensor], cuda: SimulatedCuda, tmp_path: Path, offload: bool) -> None:
    here, cpu = video_session(tmp_path, "cuda", offload_state_to_cpu=offload), session_on_cpu
    assert len(here) == len(cpu) > 10
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(here, cpu, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("change", ["bound", "refiner", "overlap", "listener"])
def test_parts_around_a_policy(cuda: SimulatedCuda, change: str) -> None:
    tracking = predictor("xmem" if change == "bound" else "fifo")
    if change == "bound":
        tracking.policy = Bounded(policy=tracking.policy, max_bytes=2**16, bytes_per_token=32)
    if change == "refiner":
        tracking.refiner = HQRefiner(tau_hq=0.0, hq_min_iou=0.0)
    if change == "overlap":
        tracking.tracker_settings = TrackerSettings(non_overlap_masks_for_mem_enc=True)
    state = tracking.init_state()
    traces: list[Any] = []
    if change == "listener":
        tracking.listen(state, SimpleNamespace(read_mass=True, on_change=traces.append))
    for t in range(6):
        masks = tracking.track_frame(state, picture(t), objects(2) if t == 0 else ())[2]
    assert masks.isfinite().all() and bool(traces) == (change == "listener")


def session_with_jumps(device: str, policy: str) -> list[Tensor]:
    """Another candidate is taken on the latest frame; tracking goes on, comes back to a frame whose memory has left for the
    archive, takes a correction there, and goes both ways."""
    as_drawn = ["tracker.fill_hole_area=0", "tracker.remove_region_area=0", "memory_policy.max_obj_ptrs_in_encoder=3"]
    tracking = built(f"memory_policy={policy}", *as_drawn, device=device)
    state, results = tracking.init_state(pictures(16)), []
    for prompt in objects(2):
        tracking.add_new_mask(state, 0, prompt.obj_id, prompt.mask)
    results += [m for *_, m in tracking.propagate_in_video(state, max_frame_num_to_track=4)]
    choices = tracking.alternatives(state, 1)
    results += [torch.stack([choice.mask for choice in choices])[:, None]]
    results += [tracking.choose_alternative(state, 1, next(c.number for c in choices if not c.is_shown))[2]]
    results += [m for *_, m in tracking.propagate_in_video(state, 5, 9)]
    tracking.add_new_points_or_box(state, 3, 0, points=[[30.0, 30.0]], labels=[1])
    results += [m for *_, m in tracking.propagate_in_video(state, 3, 2)]
    results += [m for *_, m in tracking.propagate_in_video(state, 3, 2, reverse=True)]
    return [m.float().cpu() for m in results]


@pytest.mark.full
@pytest.mark.parametrize("policy", ["fifo", "efp", "samite"])
def test_alternatives_and_jumps(cuda: SimulatedCuda, policy: str) -> None:
    here, cpu = session_with_jumps("cuda", policy), on_cpu(cuda, lambda: session_with_jumps("cpu", policy))
    assert len(here) == len(cpu) > 18
    assert all(close(a, b) for a, b in zip(here, cpu, strict=True))


DISTILLERS = ["pool2", "pool4", "spatial", "temporal", "temporal_gru"]


def distilling(name: str, device: str = "cuda") -> SAM2VideoPredictor:
    """``distilled`` that merges soon, with the distiller ``name``, whose weights are as loud as trained ones may be."""
    overrides = ["memory_policy=distilled", "memory_policy.tail=1", "memory_policy.min_object_score=-1e9"]
    tracking = configured(*overrides, f"distiller={name}", device=device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in tracking.model.memory_encoder.distiller.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return tracking


@pytest.mark.full
@pytest.mark.parametrize("name", DISTILLERS)
def test_distillers(cuda: SimulatedCuda, name: str) -> None:
    """Masks are those of the CPU; in half precision nearly so; recorded, those of what is not recorded."""
    never = distilling(name)
    fast, memo = with_policy(never, never.policy), {}
    fast.model = copy.deepcopy(never.model)
    recalling(never.model, MEMOS["cuda"])
    here, cpu = stream(never, 2, 7), on_cpu(cuda, lambda: stream(distilling(name, "cpu"), 2, 7))
    assert close(here, cpu)
    for tracking, after in ((never, 999), (fast, 1)):
        optimize(tracking.model, GraphSettings(after=after))
        recalling(tracking.model, memo)
    low = stream(never, 1, 7)
    assert alike(low[:4], cpu[:4, :1]) and torch.equal(stream(fast, 1, 7), low)
    assert {"decode", "encode_memory"} <= {key[0] for key in fast.model.runner.recordings}


OPERATORS = ["Exact", "LowDim", "Auto", "Packed", "Pooled", "TopK", "BlockTopK", "SparsePointers"]


@pytest.mark.full
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tracking = predictor(tracker={"max_padding": 0.9})
    monkeypatch.setattr(tracking.model.memory_attention, "operator", getattr(attention_operators, name)())
    state = tracking.init_state()
    with half():
        for t in range(4):
            prompts = {0: [mask_prompt(0)], 2: [mask_prompt(1, 2, 1)]}.get(t, ())
            masks = tracking.track_frame(state, picture(t), prompts)[2]
    assert masks.isfinite().all()
    if name == "BlockTopK":
        assert not any("math" in key[-1] for key in cuda.attention), "blocks are attended to by a fused kernel"


def test_holes_are_filled_without_a_wait(cuda: SimulatedCuda) -> None:
    torch.manual_seed(0)
    logits = F.avg_pool2d(torch.randn(3, 1, 64, 64), 3, 1, 1).squeeze(1)
    x = logits.to("cuda")
    cuda.clear()
    filled = fill_holes(x, 8)
    assert not cuda.waits
    expected = fill_holes(logits, 8)
    assert torch.equal(filled.cpu(), expected) and not torch.equal(expected, logits)
    fill_holes(x, 100)
    assert cuda.waits, "control: larger ones are looked for on the host"


@pytest.mark.full
def test_image_predictor(cuda: SimulatedCuda) -> None:
    segment = SAM2ImagePredictor(copy.deepcopy(micro_model()).to("cuda"), max_hole_area=8)
    segment.set_image(picture(0))
    on = partial(torch.as_tensor, device="cuda")
    points, box = [[10.0, 12.0]], [4.0, 4.0, 30.0, 30.0]
    expected = segment.predict(points, [1], box=box)
    for p, labels, b in ((on(points), on([1]), box), (points, [1], on(box)), (on(points), on([1]), on(box))):
        for a, c in zip(segment.predict(p, labels, box=b), expected, strict=True):
            np.testing.assert_array_equal(a, c)
    assert segment.predict(mask_input=on(expected[2][:1]))[0].shape == (3, SIDE, SIDE)


# -- recorded ---------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_recorded_masks_on_a_device_that_is_not_the_current_one() -> None:
    micro_model()
    with SimulatedCuda(devices=2):
        never, fast = (predictor(model=own_network(device)) for device in ("cuda", "cuda:1"))
        optimize(never.model, GraphSettings(after=99))
        optimize(fast.model, GraphSettings(after=1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of an empty recording
            shown = stream(fast, 1, 8)
        assert torch.equal(shown, stream(never, 1, 8)) and not never.model.runner.recordings
        parts = {key[0] for key in fast.model.runner.recordings}
        assert {"encode_image", "decode", "encode_memory"} <= parts and not fast.model.runner.refused


@pytest.fixture(scope="module")
def networks() -> tuple[SAM2, SAM2, SAM2]:
    """Of equal weights: as it is; in half precision; that recorded, with what all tests of this file record."""
    micro_model()  # made on the CPU, shared with other tests
    with SimulatedCuda():
        plain, never, fast = (own_network() for _ in range(3))
        plain.runner = HalfWeights(plain)
        optimize(never, GraphSettings(after=999))
        optimize(fast, GraphSettings(after=1))
    memo: dict = {}
    return recalling(plain, {}), recalling(never, memo), recalling(fast, memo)


SOON_FULL = {
    "max_obj_ptrs_in_encoder": 2,
    "num_maskmem": 3,
    "max_cond_frames_in_attn": 2,
    "bank_size": 2,
    "cap": 2,
    "max_compact": 1,
}
"""Settings under which reads soon are as long as they get."""


def tracked(policy: str, model: SAM2, within: Callable[[], AbstractContextManager] = nullcontext) -> Followed:
    """One object on seven frames or eight, under a policy with ``OFTEN`` and those of ``SOON_FULL`` that it has."""
    config = choice_config("memory_policy", policy)
    short = {key: value for key, value in SOON_FULL.items() if key in config}
    often = OmegaConf.from_dotlist(list(OFTEN.get(policy, ())))
    settings = TrackerSettings(history=1)
    tracking = SAM2VideoPredictor(model, build_policy(OmegaConf.merge(config, short, often)), tracker=settings)
    sim, masks, by_frame = next(reversed(SimulatedCuda.active), SimulatedCuda()), [], []
    state = tracking.init_state()
    for t in range(8 if policy in FIRST else 7):
        sim.clear()
        with within():
            masks.append(tracking.track_frame(state, picture(t), objects(1) if t == 0 else ())[2].float())
        by_frame.append(count_of(sim))
    held = [entry.frame for entry in state.tracker.tracks[0].state.all_entries()]
    most = Count(*map(max, zip(*by_frame[7 if policy in FIRST else 4 :])))
    return Followed(torch.stack([m.cpu() for m in masks]), held, most, min(c.kernels for c in by_frame[3:]))


class Followed(NamedTuple):
    """Masks, the frames that memory holds after the last one, the most waits and transfers of a frame once memory is full, and the
    fewest kernels."""

    masks: Tensor
    held: list[int]
    most: Count
    kernels: int


REPLAYED = ("fifo", "sam2long", "efp", "samurai")
"""Policies whose latest reads are equally long, so that memory attention is replayed too."""
UNTIL_A_TIE = {"sentry": 3}
"""Frames after which two candidates of a policy are equally good in half precision; it takes the other one."""


@pytest.mark.full
@pytest.mark.parametrize("policy", POLICIES)
def test_half_precision_and_recorded(cuda: SimulatedCuda, networks: tuple[SAM2, SAM2, SAM2], policy: str) -> None:
    """Replayed parts of a frame, whose memory others have meanwhile, give to the bit what they give as they are. In half precision
    masks are nearly those of float32, memory holds the same frames, and the host waits as often."""
    half_way, never, fast = (tracked(policy, n, w) for n, w in zip(networks, (half, nullcontext, nullcontext)))
    assert torch.equal(fast.masks, never.masks) and fast.held == never.held
    assert fast.kernels < (0.25 if policy in REPLAYED else 0.6) * never.kernels, "but for those of the encoder"
    cpu = on_cpu(cuda, lambda: tracked(policy, network("cpu")))
    for low in (half_way, never):
        assert low.held == cpu.held
        assert alike(low.masks[: UNTIL_A_TIE.get(policy)], cpu.masks[: UNTIL_A_TIE.get(policy)])
    for run in (half_way, never, fast):
        assert 1 <= run.most.waits <= 1 + MORE_WAITS.get(policy, 0)
        if policy not in FIRST:
            assert 3 <= run.most.transfers <= 3 + MORE_TRANSFERS.get(policy, 0)


@pytest.mark.full
def test_half_precision_takes_the_other_of_two_equal_candidates(
    cuda: SimulatedCuda, networks: tuple[SAM2, SAM2, SAM2], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks of ``sentry`` part from float32 where the predicted IoU of two candidates differ by less than a step of bfloat16."""
    seen: list[tuple[Sequence[float], int]] = []
    choose = Sentry.choose

    def noted(self: Sentry, state: Any, frame: Any, hypotheses: Any) -> MaskSelection:
        selection = choose(self, state, frame, hypotheses)
        seen.append((hypotheses.iou[0], selection.output.candidate))
        return selection

    monkeypatch.setattr(Sentry, "choose", noted)
    low = tracked("sentry", networks[0], half)
    cpu = on_cpu(cuda, lambda: tracked("sentry", network("cpu")))
    pairs = list(zip(seen[6:], seen[:6], strict=True))
    frame, ((exact, one), (rounded, other)) = next((t, p) for t, p in enumerate(pairs, 1) if p[0][1] != p[1][1])
    step = 2.0**-8  # of bfloat16 between a half and one
    assert frame == UNTIL_A_TIE["sentry"] and rounded[one] == rounded[other] and abs(exact[one] - exact[other]) < step
    assert not alike(low.masks[frame], cpu.masks[frame]), "control: the candidates are not the same mask"
    (ious, best), _ = pairs[0]
    assert min(ious[best] - iou for m, iou in enumerate(ious) if m != best) > 10 * step, "control: not all are equal"


@torch.inference_mode()
def test_control_a_result_that_is_not_copied_is_spoilt(cuda: SimulatedCuda) -> None:
    """Parts of a frame whose recordings share memory."""
    model, x = own_network(), there(1, 3, SIDE, SIDE)
    optimize(model, GraphSettings(after=1))
    model.encode_image(x), model.encode_image(x)
    first = model.encode_image(x)[0].low
    outputs = next(iter(model.runner.recordings.values())).outputs
    kept, before = outputs[-1], outputs[-1].cpu()
    other = model.encode_image(x + 1)[0].low
    assert not torch.equal(kept.cpu(), before) and not torch.equal(first, other)


def segmented(folder: Path, *words: str) -> list[np.ndarray]:
    """Masks of the first frames of the demo video, by ``sam2-mem segment``."""
    demo = Path(__file__).resolve().parents[1] / "notebooks" / "videos"
    frames = folder / "frames"
    frames.mkdir()
    for number in range(3):
        (frames / f"{number:05d}.jpg").symlink_to(demo / "demo" / f"{number:05d}.jpg")
    prompt = ["--mask", str(demo / "demo_prompts" / "demo" / "00000.png")]
    out = ["--output", str(folder / "masks")]
    network = ["--sam2_cfg", "nano_v2", "model.image_size=192"]
    assert segment_command([*network, "--video", str(frames), *prompt, *out, *words]) == 0
    return [read_mask_png(path).ids == 1 for path in sorted((folder / "masks").rglob("0*.png"))]


@pytest.fixture(scope="module")
def segmented_on_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    return segmented(tmp_path_factory.mktemp("command"), "--device", "cpu")


@pytest.mark.full
@pytest.mark.parametrize("more", [[], ["--use_vos_optimized_video_predictor"]], ids=["eager", "recorded"])
def test_the_command(segmented_on_cpu: list[np.ndarray], cuda: SimulatedCuda, tmp_path: Path, more: list[str]) -> None:
    """``sam2-mem segment`` writes the masks that it writes on a CPU, but for bfloat16, by which another of two like candidates may win."""
    here = segmented(tmp_path, "--device", "cuda", *more)
    assert len(here) == len(segmented_on_cpu) == 3
    for host, device_mask in zip(segmented_on_cpu, here):
        assert host.any() and (host & device_mask).sum() / (host | device_mask).sum() > 0.85
