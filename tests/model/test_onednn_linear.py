"""Linear maps by oneDNN: the same numbers as torch's, used where they may be, and for few shapes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from micro import mask_prompt, micro_config, pictures
from switches import linear_maps_by_torch
from torch import Tensor, nn

from sam2_mem.build_sam import build_policy, build_sam2
from sam2_mem.evaluation.benchmark.profile import counting
from sam2_mem.model.acceleration import onednn_linear as module
from sam2_mem.model.acceleration.onednn_linear import ACTIVATIONS, Linear, linear
from sam2_mem.model.rotary_attention import RotaryAttention
from sam2_mem.model.sam2 import SAM2
from sam2_mem.tracking.video_predictor import SAM2VideoPredictor

LEAST_ROWS, IN, OUT = 128, 24, 40
ROWS = 2 * LEAST_ROWS
needs_one_dnn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN"
)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is known about oneDNN is found out anew; it is given less work than it would be."""
    monkeypatch.setattr(module, "MIN_WORK", LEAST_ROWS * IN * OUT)
    module._works.cache_clear()
    yield
    module._works.cache_clear()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Shapes (input, weight) that oneDNN has been given."""
    seen, original = [], module._by_one_dnn

    def noted(x: Tensor, weight: Tensor, *more):
        seen.append((tuple(x.shape), tuple(weight.shape)))
        return original(x, weight, *more)

    assert module._works() == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(module, "_by_one_dnn", noted)
    return seen


def parts(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input, weight and bias."""
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=draw) for s in ((*shape, IN), (OUT, IN), (OUT,)))


@needs_one_dnn
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(ROWS,), (2, LEAST_ROWS), (1, 9, 17), (3, 5, 7, 11)], ids=str)
def test_the_same_numbers(shape: tuple[int, ...], biased: bool, activation: str, taken: list) -> None:
    x, weight, bias = parts(*shape)
    bias = bias if biased else None
    with torch.no_grad():
        found = linear(x, weight, bias, activation)
        with linear_maps_by_torch():
            wanted = linear(x, weight, bias, activation)
    assert len(taken) == 1 and found.shape == wanted.shape == (*shape, OUT)
    assert (found - wanted).abs().max() <= 1e-5
    exact = ACTIVATIONS[activation](F.linear(*(None if t is None else t.double() for t in (x, weight, bias))))
    assert (found - exact).abs().max() <= 2e-5 and exact.std() > 0.5
    for other in set(ACTIVATIONS) - {activation}:
        with torch.no_grad():
            assert (linear(x, weight, bias, other) - found).abs().max() > 0.1, "each does something else"


@needs_one_dnn
@pytest.mark.parametrize("kind", ["turned input", "part of the input", "turned weight", "part of the weight"])
def test_any_strides(kind: str, taken: list) -> None:
    x, weight, bias = parts(ROWS)
    if kind == "turned input":
        x = x.t().contiguous().t()
    elif kind == "part of the input":
        x = torch.cat([x, x + 1], dim=1)[:, :IN]
    elif kind == "turned weight":
        weight = weight.t().contiguous().t()
    else:
        weight = torch.cat([weight + 1, weight])[OUT:]
    with torch.no_grad():
        assert (linear(x, weight, bias) - F.linear(x, weight, bias)).abs().max() <= 1e-5 and len(taken) == 1


@needs_one_dnn
@pytest.mark.parametrize(
    "case", ["gradient", "autocast", "double", "half", "few rows", "switched off", "other weights"]
)
def test_left_to_torch(case: str, taken: list, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = parts(LEAST_ROWS - 1 if case == "few rows" else LEAST_ROWS)
    kind = {"double": torch.float64, "half": torch.bfloat16}.get(case, torch.float32)
    x, weight, bias = (t.to(kind) for t in (x, weight, bias))
    if case == "switched off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    if case == "other weights":
        with torch.no_grad(), pytest.raises(RuntimeError):
            linear(x, weight.double(), bias)
        assert not taken
        return
    with torch.set_grad_enabled(case == "gradient"), torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        found, wanted = linear(x, weight, bias, "gelu"), F.gelu(F.linear(x, weight, bias))
    assert torch.equal(found, wanted) and found.dtype is wanted.dtype and not taken


@needs_one_dnn
def test_control_it_is_taken_otherwise(taken: list) -> None:
    x, weight, bias = parts(LEAST_ROWS)
    with torch.no_grad():
        linear(x, weight, bias)
    assert taken == [((LEAST_ROWS, IN), (OUT, IN))]


@needs_one_dnn
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_stay(activation: str, taken: list) -> None:
    """They must not come out as numbers. oneDNN's own ReLU would do that."""
    x, weight, bias = parts(ROWS)
    x[3, 5], x[7, 0] = float("nan"), float("inf")
    with torch.no_grad():
        found = linear(x, weight, bias, activation)
        with linear_maps_by_torch():
            wanted = linear(x, weight, bias, activation)
    assert taken and found[3].isnan().all() and not found[[0, 1, 2]].isnan().any()
    torch.testing.assert_close(found, wanted, equal_nan=True)


@needs_one_dnn
def test_a_wrong_width_is_refused_in_torch_s_words(taken: list) -> None:
    x, weight, bias = parts(ROWS)
    for wrong in (x[:, 1:], torch.cat([x, x], dim=1)):
        with (
            torch.no_grad(),
            pytest.raises(RuntimeError, match=f"shapes cannot be multiplied .*{ROWS}x{wrong.shape[1]}"),
        ):
            linear(wrong, weight, bias)
    assert not taken


def test_gradients_flow() -> None:
    x, _, _ = parts(ROWS)
    for activation in ACTIVATIONS:
        mine = Linear(IN, OUT)
        theirs = nn.Linear(IN, OUT)
        theirs.load_state_dict(mine.state_dict())
        mine(x, activation).square().sum().backward()
        ACTIVATIONS[activation](theirs(x)).square().sum().backward()
        assert torch.equal(mine.weight.grad, theirs.weight.grad) and mine.weight.grad.abs().max() > 0


@pytest.mark.parametrize("trouble", [AttributeError("no such operator"), RuntimeError("no\nprimitive"), "wrong"])
def test_where_one_dnn_cannot_be_had(
    trouble: Exception | str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; results are torch's."""

    def failing(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        if isinstance(trouble, Exception):
            raise trouble
        return F.linear(x, weight, bias) + 0.01

    monkeypatch.setattr(module, "_by_one_dnn", failing)
    x, weight, bias = parts(ROWS)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    if torch.backends.mkldnn.is_available():
        assert caplog.text.count("linear maps are left to torch") == 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_operations_are_counted(activation: str) -> None:
    x, weight, bias = parts(3, LEAST_ROWS)
    module._works()
    with torch.no_grad():
        with counting() as counter:
            linear(x, weight, bias, activation)
        with counting() as plain, linear_maps_by_torch():
            linear(x, weight, bias, activation)
    assert counter.get_total_flops() == plain.get_total_flops() == 2 * 3 * LEAST_ROWS * IN * OUT


# -- shapes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> SAM2:
    return build_sam2(
        micro_config(), None, device="cpu", hydra_overrides_extra=["model.image_size=192"]
    ).requires_grad_(False)


def shapes_of(model: SAM2, taken: list, frames: int) -> list[set[tuple]]:
    """Those of a clip so far, frame by frame, with a memory that grows on every frame."""
    predictor = SAM2VideoPredictor(model, build_policy("fifo"))
    state = predictor.init_state(num_frames=frames)
    found: list[set[tuple]] = []
    for i, picture in enumerate(pictures(frames)):
        predictor.track_frame(state, picture, [mask_prompt(1)] if i == 0 else ())
        found.append(set(taken))
    return found


@pytest.fixture
def any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_WORK", 1)


@needs_one_dnn
def test_a_memory_that_grows_brings_no_new_shapes(model: SAM2, taken: list, any_work: None) -> None:
    """oneDNN keeps something for every shape."""
    found = shapes_of(model, taken, 6)
    assert 5 < len(found[1]) == len(found[-1]), "all are known after the first tracked frame"


@needs_one_dnn
def test_control_projected_keys_would_bring_new_shapes(
    model: SAM2, taken: list, any_work: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attention in model.memory_attention.modules():
        if isinstance(attention, RotaryAttention) and type(attention.k_proj) is nn.Linear:
            monkeypatch.setattr(attention.k_proj, "forward", lambda x, p=attention.k_proj: linear(x, p.weight, p.bias))
    found = shapes_of(model, taken, 6)
    assert len({len(f) for f in found[1:]}) == 5, "another one on every frame"
