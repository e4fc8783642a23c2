"""What ``vos_optimized=True`` does on a CUDA device, as far as a CPU can tell: parts recorded at steady shapes give the same
masks, half weights are those of autocast, a kernel is measured once. tests/test_gpu.py runs it on a device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import pytest
import torch
from micro import blob, in_tiers, micro_config, micro_model, one_thread, pictures  # noqa: F401
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from sam2_mem.build_sam import build_policy, build_sam2_video_predictor
from sam2_mem.config import policy_names
from sam2_mem.evaluation.benchmark.policy_costs import BenchmarkClip, Setting
from sam2_mem.evaluation.benchmark.profile import profile
from sam2_mem.model.acceleration import attention_kernels
from sam2_mem.model.acceleration.attention_kernels import FastestKernel
from sam2_mem.model.acceleration.cuda_graphs import (
    CAST,
    NOT_CAST,
    ExternalTensors,
    GraphRunner,
    GraphSettings,
    cast_weights,
    half_autocast,
    optimize,
    signature,
)
from sam2_mem.model.acceleration.half_weights import HalfWeights
from sam2_mem.model.acceleration.transfer import to_device_async
from sam2_mem.model.tensor_tree import map_tensors, tensors_in
from sam2_mem.prompts import Prompt
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor
from sam2_mem.types import Usage


class Tape:
    """Records on a CPU as a CUDA graph does: the same places are read and written again, and no Python runs but the
    function's own. ``made`` recordings, ``played`` repetitions."""

    def __init__(self) -> None:
        self.made = self.played = 0

    def __call__(self, call: Callable) -> tuple[Callable, object]:
        self.made += 1
        outputs = call()

        def replay() -> None:
            self.played += 1
            for buffer, value in zip(tensors_in(outputs), tensors_in(call()), strict=True):
                buffer.copy_(value)

        return replay, outputs


def runner(**settings: int) -> tuple[GraphRunner, Tape]:
    tape = Tape()
    return GraphRunner(tape, settings=GraphSettings(**settings)), tape


# -- recording --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_as_is_until_shapes_are_steady() -> None:
    run, tape = runner(after=2)
    played = []
    for n in range(5):
        x = torch.full((3,), float(n))
        assert torch.equal(run("double", lambda t: 2 * t, x), 2 * x)
        played.append((tape.made, tape.played))
    assert played == [(0, 0), (0, 0), (1, 1), (1, 2), (1, 3)]


@torch.inference_mode()
def test_other_shapes_are_other_recordings() -> None:
    run, tape = runner(after=1)
    for size in (3, 4, 3, 4, 3, 4):
        assert run("double", lambda t: 2 * t, torch.ones(size)).shape == (size,)
    assert tape.made == 2


@torch.inference_mode()
def test_shapes_that_change_are_never_recorded() -> None:
    run, tape = runner(after=1, max_recordings=4)
    for size in range(1, 200):
        run("double", lambda t: 2 * t, torch.ones(size))
    assert tape.made == 0 and len(run.call_counts) <= 16


@torch.inference_mode()
def test_recordings_are_bounded_and_the_oldest_goes() -> None:
    run, tape = runner(after=1, max_recordings=2)
    for size in (1, 1, 2, 2, 1, 3, 3):
        run("double", lambda t: 2 * t, torch.ones(size))
    assert tape.made == 3 and len(run.recordings) == 2
    run("double", lambda t: 2 * t, torch.ones(1))
    assert tape.made == 3, "1 was used after 2, so 2 has gone"


@torch.inference_mode()
def test_results_are_not_overwritten() -> None:
    run, _ = runner(after=1)
    given = [run("double", lambda t: 2 * t, torch.full((2,), float(n))) for n in range(4)]
    assert [float(x[0]) for x in given] == [0, 2, 4, 6]


@torch.inference_mode()
def test_control_a_recording_without_copies_is_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    from sam2_mem.model.acceleration import cuda_graphs

    run, _ = runner(after=1)
    change = cuda_graphs.map_tensors
    monkeypatch.setattr(
        cuda_graphs, "map_tensors", lambda x, f, share: x if f is torch.clone else change(x, f, share=share)
    )
    given = [run("double", lambda t: 2 * t, torch.full((2,), float(n))) for n in range(4)]
    assert [float(x[0]) for x in given] != [0, 2, 4, 6]


def test_gradients_flow_past_the_recorder() -> None:
    run, tape = runner(after=1)
    x = torch.ones(2, requires_grad=True)
    for _ in range(4):
        run("double", lambda t: 2 * t, x).sum().backward()
    assert tape.made == 0 and torch.equal(x.grad, torch.full((2,), 8.0))


def test_recordings_serve_with_and_without_inference_mode() -> None:
    run, tape = runner(after=1)
    for mode in (torch.inference_mode, torch.no_grad) * 3:
        with mode():
            assert float(run("double", lambda t: 2 * t, torch.ones(1))) == 2
    assert tape.made == 2


@torch.inference_mode()
def test_what_cannot_be_recorded_runs_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(call: Callable) -> tuple:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    run = GraphRunner(refuse, settings=GraphSettings(after=1))
    for _ in range(5):
        assert float(run("double", lambda t: 2 * t, torch.ones(1))) == 2
    assert [r.message for r in caplog.records] == [
        "double is not recorded and runs as ever: operation not permitted when stream is capturing"
    ]


@torch.inference_mode()
def test_parts_that_look_at_values_are_left_alone() -> None:
    run, tape = runner(after=1)
    for _ in range(4):
        run("double", lambda t: 2 * t, torch.ones(1), steady=False)
    assert tape.made == 0


def test_a_copy_records_for_itself() -> None:
    run, _ = runner(after=1)
    with torch.inference_mode():
        for _ in range(3):
            run("double", lambda t: 2 * t, torch.ones(1))
    other = copy.deepcopy(run)
    assert len(run.recordings) == 1 and not other.recordings and other.settings == run.settings


@pytest.mark.parametrize("field", ["after", "max_recordings"])
def test_settings_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"expected {field} >= 1, got 0"):
        GraphSettings(**{field: 0})


def test_tensors_from_elsewhere_are_held() -> None:
    """A recording reads its weights where they lie, so they have to stay there."""
    weight, x = torch.ones(3), torch.ones(3)
    with torch.inference_mode(), ExternalTensors() as external:
        y = x * weight
        (y + y.mul_(2)).sum()
    assert {id(t) for t in external.tensors} == {id(weight), id(x)}


# -- arguments --------------------------------------------------------------------------------------------------------


class Two(NamedTuple):
    one: Tensor
    other: Tensor | None


@dataclass(frozen=True)
class EntryTrace:
    x: Tensor
    n: int
    kind: Usage = Usage.NONE


def nest() -> tuple:
    return ({"a": torch.ones(2)}, [Two(torch.ones(1), None)], EntryTrace(torch.ones(3), 4), "name", 1.5, None, True)


def test_nests_are_taken_apart_and_put_together() -> None:
    assert [len(t) for t in tensors_in(nest())] == [2, 1, 3]
    twice = map_tensors(nest(), lambda t: 2 * t)
    assert [float(t[0]) for t in tensors_in(twice)] == [2, 2, 2]
    assert signature(twice) == signature(nest()) and isinstance(twice[1][0], Two) and twice[2].n == 4
    hash(signature(nest()))


def test_parts_are_shared_or_copied() -> None:
    x, fixed = torch.ones(2), (1, {"a": "name"})
    pair = ([x], [x], fixed)
    shared, copied = map_tensors(pair, torch.clone), map_tensors(pair, torch.clone, share=False)
    assert shared[0][0] is shared[1][0] and copied[0][0] is not copied[1][0]
    assert shared[2] is fixed and map_tensors(pair, lambda t: t) is pair
    memo: dict = {}
    assert map_tensors(x, torch.clone, memo) is map_tensors([x], torch.clone, memo)[0]


@torch.inference_mode()
def test_arguments_that_are_one_tensor_when_recorded_may_be_two_later() -> None:
    run, tape = runner(after=1)
    x, y = torch.ones(2), torch.full((2,), 5.0)
    for _ in range(3):
        run("subtract", torch.sub, x, x)
    assert tape.played and float(run("subtract", torch.sub, x, y)[0]) == -4


@pytest.mark.parametrize(
    "other",
    [
        EntryTrace(torch.ones(4), 4),
        EntryTrace(torch.ones(3).double(), 4),
        EntryTrace(torch.ones(3), 5),
        EntryTrace(torch.ones(3), 4, Usage.TOKENS),
        EntryTrace(torch.ones(6)[::2], 4),
        Two(torch.ones(3), None),
    ],
    ids=["shape", "dtype", "number", "enum", "stride", "type"],
)
def test_signatures_tell_apart(other: object) -> None:
    assert signature(other) != signature(EntryTrace(torch.ones(3), 4))


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="expected tensors and plain values .* got object"):
        signature(object())
    assert issubclass(Usage, Enum)


# -- the network ------------------------------------------------------------------------------------------------------


def fresh(policy: str = "fifo") -> SAM2VideoPredictor:
    """A predictor with a network of its own."""
    return SAM2VideoPredictor(copy.deepcopy(micro_model()), build_policy(policy))


def masks(predictor, frames: int = 30, late: int = 5) -> list[Tensor]:
    """Of a stream with two objects, the second of which comes late."""
    state, shown = predictor.init_state(), []
    for t, picture in enumerate(pictures(frames)):
        given = {0: [Prompt(1, mask=blob(0))], late: [Prompt(2, mask=blob(1))]}.get(t, ())
        shown.append(predictor.track_frame(state, picture, given)[2].clone())
    return shown


@pytest.mark.parametrize("policy", in_tiers(["fifo", "sam2long", "xmem", "rmem", "distilled"], ["fifo", "xmem"]))
def test_a_recorded_network_gives_the_same_masks(policy: str) -> None:
    plain, recorded = fresh(policy), fresh(policy)
    recorded.model.runner, tape = runner(after=3)
    for a, b in zip(masks(plain), masks(recorded), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    parts = {key[0] for key in recorded.model.runner.recordings}
    assert {"encode_image", "decode", "encode_memory"} <= parts and tape.played > 20
    assert ("attend" in parts) == (policy != "xmem"), "the memory of xmem grows on every frame here"


def test_the_first_mask_waits_for_nothing() -> None:
    predictor = fresh()
    predictor.model.runner, tape = runner(after=3)
    masks(predictor, frames=2)
    assert tape.made == 0


def test_control_stale_inputs_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaying without new inputs gives other masks, so the comparison above means something."""
    from sam2_mem.model.acceleration.cuda_graphs import Recording

    plain, stale = fresh(), fresh()
    stale.model.runner, _ = runner(after=3)
    monkeypatch.setattr(
        Recording, "__call__", lambda self, args: (self.replay(), map_tensors(self.outputs, torch.clone))[1]
    )
    assert any(not torch.allclose(a, b, atol=1e-5) for a, b in zip(masks(plain), masks(stale), strict=True))


# -- precision --------------------------------------------------------------------------------------------------------


@contextmanager
def autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        yield


def test_cast_weights_are_what_autocast_makes_of_them() -> None:
    full, half, exact = fresh(), fresh(), fresh()
    cast_weights(half.model)
    for predictor in (full, half):
        predictor.model.runner = lambda part, function, *args, steady=True: _within(autocast, function, args)
    a, b, c = (torch.stack(masks(p, 8, late=99)) for p in (full, half, exact))
    assert torch.equal(a, b)
    assert not torch.equal(b, c), "half precision is not at work"


def _within(context, function, args):
    with context():
        return function(*args)


@pytest.mark.parametrize("policy", in_tiers(policy_names(), ["fifo", "xmem"]))
def test_every_policy_on_half_weights(policy: str) -> None:
    """As on a device: nothing outside of the recorded parts runs under autocast, so everything there must take what they
    give."""
    fast = fresh(policy)
    cast_weights(fast.model)
    fast.model.runner = GraphRunner(Tape(), precision=half_autocast(torch.device("cpu")))
    shown, exact = (torch.stack([m[0] for m in masks(p, 14)]) for p in (fast, fresh(policy)))
    assert shown.dtype is torch.float32 and shown.isfinite().all()
    assert not torch.equal(shown, exact)
    assert not fast.model.runner.refused


def test_a_profile_of_half_weights() -> None:
    """Operations are counted under the precision that cast weights need, and past the recordings."""
    plain, fast = fresh().model, fresh().model
    cast_weights(fast)
    fast.runner = GraphRunner(Tape(), precision=half_autocast(torch.device("cpu")))
    clip = BenchmarkClip(picture=pictures(25).__getitem__, num_frames=25, prompts=(Prompt(1, mask=blob(0)),))
    exact, found = (
        {p.name: p.gflop for p in profile(Setting(model=m), build_policy("fifo"), clip)} for m in (plain, fast)
    )
    assert fast.runner.recordings and min(g for g in found.values() if g is not None) > 0
    assert found["encode_image"] == exact["encode_image"] and found["decode"] == exact["decode"]


def test_sensory_memory_on_half_weights() -> None:
    config = micro_config().copy()
    config.model.sensory_channels = 8
    fast = build_sam2_video_predictor(config, None, device="cpu", memory_policy="xmem")
    with torch.no_grad():
        fast.model.sensory.injection.weight.normal_()
    cast_weights(fast.model)
    fast.model.runner = GraphRunner(Tape(), precision=half_autocast(torch.device("cpu")))
    assert fast.init_state().tracker.sensory is fast.model.sensory
    assert torch.stack([m[0] for m in masks(fast, 10)]).isfinite().all()


def test_weights_are_cast_once_under_autocast() -> None:
    """Outside of autocast nothing changes; under it masks are those of autocast, also after weights have changed."""
    plain, once, exact = fresh(), fresh(), fresh()
    once.model.runner = HalfWeights(once.model)
    assert all(torch.equal(a, b) for a, b in zip(masks(once, 4), masks(exact, 4), strict=True))
    for changes in range(2):
        with autocast():
            a, b = (torch.stack(masks(p, 8, late=99)) for p in (plain, once))
        assert torch.equal(a, b)
        assert not torch.equal(a, torch.stack(masks(exact, 8, late=99))), "half precision is not at work"
        copies = dict(once.model.runner._copies)
        with autocast():
            masks(once, 2)
        assert copies and copies == once.model.runner._copies
        for predictor in (plain, once, exact):
            predictor.model.get_parameter("memory_attention.layers.0.linear1.weight").detach().mul_(1 + changes)
    assert {p.dtype for p in once.model.state_dict().values()} == {torch.float32}


def test_a_copy_casts_its_own_weights() -> None:
    model = copy.deepcopy(micro_model())
    model.runner = HalfWeights(model)
    other = copy.deepcopy(model)
    [attend, *_] = other.runner.modules["attend"]
    assert any(attend is module for module in other.modules()) and other.runner is not model.runner


def test_what_is_cast() -> None:
    model = fresh().model
    cast_weights(model)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))}
    for name, dtype in kinds.items():
        layer = name.rpartition(".")[0]
        cast = layer in linear and layer.startswith(CAST) and not layer.startswith(NOT_CAST)
        assert dtype is (torch.bfloat16 if cast else torch.float32), name
    assert kinds["memory_attention.layers.0.norm1.weight"] is torch.float32
    assert kinds["memory_attention.layers.0.linear1.weight"] is torch.bfloat16
    assert kinds["sam_mask_decoder.conv_s0.weight"] is torch.float32


def test_autocast_keeps_no_cast_weights() -> None:
    with half_autocast(torch.device("cpu"))():
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()


def test_a_model_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a model on a CUDA device, got one on cpu"):
        optimize(micro_model())


# -- the kernel -------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[SDPBackend | None]:
    """Which backends have attended; the efficient one takes nothing."""
    made: list[SDPBackend | None] = []

    def by(backend, q, k, v, mask, dropout=0.0):
        if backend is SDPBackend.EFFICIENT_ATTENTION:
            raise RuntimeError("no kernel for these arguments")
        made.append(backend)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    monkeypatch.setattr(attention_kernels, "_attend_by", by)
    return made


SPEED = {SDPBackend.FLASH_ATTENTION: 2.0, SDPBackend.MATH: 1.0}


def kernel(calls: list) -> tuple[FastestKernel, list]:
    timed = []

    def timer(device: torch.device, function: Callable) -> float:
        function()
        timed.append(calls[-1])
        return SPEED[calls[-1]]

    return FastestKernel((SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH), timer), timed


def attend(run: FastestKernel, length: int, **more) -> Tensor:
    torch.manual_seed(length)
    q, k, v = torch.randn(1, 1, 4, 8), torch.randn(1, 1, length, 8), torch.randn(1, 1, length, 8)
    out = run(q, k, v, **more)
    assert torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(q, k, v, **more))
    return out


@torch.inference_mode()
def test_the_fastest_backend_is_found_once(calls: list) -> None:
    run, timed = kernel(calls)
    for length in (100, 120, 128):
        attend(run, length)
    assert timed == [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    assert calls[-2:] == [SDPBackend.MATH] * 2
    attend(run, 129)
    assert len(timed) == 4, "longer memory is measured anew"


@torch.inference_mode()
def test_torch_chooses_where_no_backend_does(calls: list) -> None:
    run = FastestKernel((SDPBackend.EFFICIENT_ATTENTION,), lambda device, function: 1.0)
    attend(run, 10)
    assert calls == [] and list(run.choices.values()) == [None]


@torch.inference_mode()
def test_a_length_that_the_kernel_does_not_take_is_left_to_torch(calls: list, monkeypatch: pytest.MonkeyPatch) -> None:
    run, timed = kernel(calls)
    attend(run, 128)
    by = attention_kernels._attend_by

    def even_only(backend, q, k, *more):
        if k.shape[-2] % 2:
            raise RuntimeError(f"{attention_kernels.NO_KERNEL}. Aborting execution.")
        return by(backend, q, k, *more)

    monkeypatch.setattr(attention_kernels, "_attend_by", even_only)
    attend(run, 121)
    assert len(timed) == 2 and calls[-1] is SDPBackend.MATH, "121 keys came by another way"
    attend(run, 122)
    with pytest.raises(RuntimeError, match="out of memory"):
        monkeypatch.setattr(attention_kernels, "_attend_by", lambda *_: _raise("out of memory"))
        attend(run, 122)


def _raise(message: str) -> None:
    raise RuntimeError(message)


def test_nothing_is_measured_with_gradient(calls: list) -> None:
    run, timed = kernel(calls)
    attend(run, 10)
    assert timed == [] and run.choices == {}


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_sent_values() -> None:
    assert to_device_async([1, 2], "cpu", torch.int32).tolist() == [1, 2]
    assert to_device_async([True], torch.device("cpu")).dtype is torch.bool
    x = torch.ones(2)
    assert to_device_async(x, "cpu") is x
