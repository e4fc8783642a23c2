"""How ``vos_optimized=True`` runs the network on a CUDA device: weights in half precision, cast once, and the parts of a
frame replayed as CUDA graphs as soon as their shapes are steady.

The network calls its parts through a runner (``SAM2.runner``). Until a part has met the same shapes a few times it
runs as ever, so the first mask waits for nothing. Shapes are steady once a memory is full; where they go on changing,
or where an attention operator chooses tokens by their values, nothing is recorded and everything runs as ever.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sam2_mem.model.acceleration.attention_kernels import FastestKernel
from sam2_mem.model.tensor_tree import map_tensors, tensors_in

if TYPE_CHECKING:
    from sam2_mem.model.sam2 import SAM2

logger = logging.getLogger(__name__)

Call = Callable[[], Any]
Recorder = Callable[[Call], tuple[Call, Any]]
"""Records a function without arguments -> what repeats it, and its outputs, which every repetition overwrites."""

CAST = ("image_encoder.trunk", "memory_attention", "memory_encoder", "sam_mask_decoder", "obj_ptr_proj")
NOT_CAST = ("memory_encoder.distiller", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
"""Parts whose linear maps and convolutions are cast, and those of them that are not: they are used outside of autocast,
or folded into another layer first."""


def direct(part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
    """The runner of a network that is not optimized: calls ``function``."""
    return function(*args)


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """When parts are recorded.

    Attributes:
        after: how often a part runs with the same shapes before it is recorded.
        max_recordings: recordings held at a time; the least recently used one goes first.
    """

    after: int = 3
    max_recordings: int = 24

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(f"expected {field.name} >= 1, got {getattr(self, field.name)}")


class GraphRunner:
    """Calls parts of a network under ``precision``, recorded where that is possible.

    Weights must not change after the first recording: a recording holds on to what was made of them.

    Args:
        record: see ``Recorder``.
        precision: gives a context for every call, such as autocast.
        settings: when to record.
    """

    def __init__(
        self,
        record: Recorder,
        *,
        precision: Callable[[], AbstractContextManager] = nullcontext,
        settings: GraphSettings | None = None,
    ) -> None:
        self.record = record
        self.precision = precision
        self.settings = GraphSettings() if settings is None else settings
        self.recordings: OrderedDict[tuple, Recording] = OrderedDict()
        self.call_counts: OrderedDict[tuple, int] = OrderedDict()
        self.refused: set[str] = set()

    def __deepcopy__(self, memo: dict) -> GraphRunner:
        """A copy of the network records for itself."""
        return GraphRunner(self.record, precision=self.precision, settings=self.settings)

    def __call__(self, part: str, function: Callable, *args: Any, steady: bool = True) -> Any:
        """``function(*args)``; ``part`` is its name. ``steady`` False: what it does depends on values, run it as is."""
        with self.precision():
            if not steady or torch.is_grad_enabled() or part in self.refused:
                return function(*args)
            key = (part, torch.is_inference_mode_enabled(), signature(args))
            if not self._is_recorded(key, function, args):
                return function(*args)
            self.recordings.move_to_end(key)
            return self.recordings[key](args)

    def _is_recorded(self, key: tuple, function: Callable, args: tuple) -> bool:
        """Whether there is a recording to replay; made now when the shapes have come often enough."""
        if key in self.recordings:
            return True
        return self._count(key) > self.settings.after and self._record(key, function, args)

    def _count(self, key: tuple) -> int:
        self.call_counts[key] = self.call_counts.pop(key, 0) + 1
        while len(self.call_counts) > 4 * self.settings.max_recordings:
            self.call_counts.popitem(last=False)
        return self.call_counts[key]

    def _record(self, key: tuple, function: Callable, args: tuple) -> bool:
        """Whether the call could be recorded."""
        try:
            self.recordings[key] = Recording(self.record, function, args)
        except RuntimeError as error:
            part = key[0]
            self.refused.add(part)
            logger.warning("%s is not recorded and runs as ever: %s", part, str(error).splitlines()[0])
            return False
        while len(self.recordings) > self.settings.max_recordings:
            self.recordings.popitem(last=False)
        return True


class Recording:
    """One function recorded for arguments of one signature. Tensors that it uses and that are not among the arguments are
    referenced here, since what replays it knows their addresses only."""

    def __init__(self, record: Recorder, function: Callable, args: tuple) -> None:
        with torch.inference_mode(False), torch.no_grad():
            copies = map_tensors(args, lambda x: x.detach().clone(), share=False)
        function(*copies)  # whatever is worked out once and kept is there before tensors are counted
        with ExternalTensors() as external:
            function(*copies)
        self.inputs, self.external = list(tensors_in(copies)), external.tensors
        self.replay, self.outputs = record(lambda: function(*copies))

    def __call__(self, args: tuple) -> Any:
        for buffer, value in zip(self.inputs, tensors_in(args), strict=True):
            buffer.copy_(value, non_blocking=True)
        self.replay()
        return map_tensors(self.outputs, torch.clone, share=False)


class ExternalTensors(TorchDispatchMode):
    """Collects tensors that operations read but that none of them created: weights, constants, arguments."""

    def __init__(self) -> None:
        super().__init__()
        self._created: set[int] = set()  # storages; external ones are all alive, so no new one gets their address
        self._external: dict[int, Tensor] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch starts its compiler to leave this class out of it, which takes seconds."""
        return False

    @property
    def tensors(self) -> list[Tensor]:
        return list(self._external.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tensors_in((args, kwargs)):
            if _storage_id(x) not in self._created:
                self._external.setdefault(_storage_id(x), x)
        result = func(*args, **(kwargs or {}))
        for x in tensors_in(result):
            if _storage_id(x) not in self._external:
                self._created.add(_storage_id(x))
        return result


def _storage_id(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def signature(x: Any) -> Any:
    """Equal for nested values that a recording cannot tell apart: shapes, dtypes, devices of tensors, values of all else."""
    if isinstance(x, Tensor):
        return (x.shape, x.stride(), x.dtype, x.device)
    if x is None or isinstance(x, (bool, int, float, str, Enum)):
        return x
    if not isinstance(x, type) and is_dataclass(x):
        return (type(x), *(signature(getattr(x, f.name)) for f in fields(x)))
    if isinstance(x, dict):
        return (type(x), *((key, signature(value)) for key, value in x.items()))
    if isinstance(x, (tuple, list)):
        return (type(x), *(signature(item) for item in x))
    raise TypeError(f"expected tensors and plain values in tuples, dicts and dataclasses, got {type(x).__name__}")


# -- on a CUDA device -------------------------------------------------------------------------------------------------


def cuda_graphs(device: torch.device) -> Recorder:
    """Records CUDA graphs of one device, on a stream of their own. They share one pool of memory: outputs are copied before
    the next one runs."""
    with torch.cuda.device(device):
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    refused: list[torch.cuda.CUDAGraph] = []  # torch's allocators go on referring to them

    def record(call: Call) -> tuple[Call, Any]:
        nonlocal pool
        with torch.cuda.device(device):
            before = torch.cuda.current_stream()
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                for _ in range(2):
                    call()
            before.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    outputs = call()
            except BaseException:
                _clear_away(pool, before)
                pool = torch.cuda.graph_pool_handle()
                refused.append(graph)
                raise
        return graph.replay, outputs

    return record


def _clear_away(pool: tuple[int, int], stream: torch.cuda.Stream) -> None:
    """What ``torch.cuda.graph`` leaves when a recording is refused: its own stream, where all later work would go, and a pool
    that counts as being recorded to."""
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize()
    with suppress(AttributeError, RuntimeError):  # of another torch; it was not being recorded to
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)


def half_autocast(device: torch.device) -> Callable[[], AbstractContextManager]:
    """bfloat16 without a cache of cast weights, which would not outlive a recording."""
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


@torch.no_grad()
def cast_weights(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Linear maps and convolutions of ``CAST`` to ``dtype``, in place. What autocast would do to them on every call,
    so that its results stay the same; norms, codes and embeddings stay as they are, and with them the sums that run along
    the image encoder and memory attention."""
    for modules in castable(model).values():
        for module in modules:
            module.to(dtype)


def castable(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Linear maps and convolutions of every part in ``CAST``."""
    not_cast = {id(m) for name in NOT_CAST for m in _submodule(model, name).modules()}
    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return {
        name: [m for m in _submodule(model, name).modules() if isinstance(m, kinds) and id(m) not in not_cast]
        for name in CAST
    }


def _submodule(model: nn.Module, name: str) -> nn.Module:
    """A part by its dotted name; an empty one where this model lacks it."""
    for step in name.split("."):
        model = getattr(model, step, nn.Identity())
    return model


def optimize(model: SAM2, settings: GraphSettings | None = None) -> None:
    """Make a network on a CUDA device run as this module says; in its own precision where the
    device has no bfloat16. For inference alone; its state dict then holds weights in half precision."""
    device = model.device
    if device.type != "cuda":
        raise ValueError(f"expected a model on a CUDA device, got one on {device}")
    half = torch.cuda.get_device_capability(device) >= (8, 0)
    if half:
        cast_weights(model)
    for layer in model.memory_attention.layers:
        layer.self_attn.kernel = FastestKernel.on_cuda(any_length=False)
        layer.cross_attn_image.kernel = FastestKernel.on_cuda(any_length=True)
    precision: Callable[[], AbstractContextManager] = half_autocast(device) if half else nullcontext
    model.runner = GraphRunner(cuda_graphs(device), precision=precision, settings=settings)


def speed_up(model: SAM2) -> None:
    """``optimize`` on a CUDA device, ``torch.compile`` elsewhere, with which the first frames are slow; once for a network."""
    if model.device.type == "cuda":
        if not isinstance(model.runner, GraphRunner):
            optimize(model)
    elif model.image_encoder._compiled_call_impl is None:
        model.image_encoder.compile()
        model.memory_encoder.compile()
        model.memory_attention.compile(dynamic=True)
