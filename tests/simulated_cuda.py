"""A CUDA device made of the CPU: real numbers in tensors that say they live on "cuda:0".

    with SimulatedCuda() as cuda:
        model.to("cuda")(x.to("cuda")).sum().item()
    print(cuda.report())

As a CUDA device does, it refuses operators whose tensors are on different devices (but for one number of the CPU in a
pointwise operator) and products of integers, and runs what torch has for CUDA above its kernels: composite operators and the
lists of autocast. It counts kernels, transfers and waits of the host for the device, with the Python stack of each;
``torch.cuda.set_sync_debug_mode`` is obeyed. Recorded graphs run no Python when replayed, write where the recording wrote,
leave NaN in memory that no tensor holds, and lack what ran on another device than the current one; a wait while
recording is refused. Of attention it notes which fused kernels of compute capability 9.0 take the arguments.

Not simulated: the order of streams, so races go unseen; rounding, speed and limits of kernels. Tensors of the device can be
made on the thread that entered only.
"""

from __future__ import annotations

import gc
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
}
"""Operators whose result depends on values in a way that the host has to wait for."""
PRODUCTS = {"addbmm", "addmm", "addmv", "baddbmm", "bmm", "dot", "linear", "matmul", "mm", "mv"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
TAKES_NUMBER = {"fill", "fill_", "masked_fill", "masked_fill_", "where"} | INDEXING
"""Operators that take one number of the CPU beside tensors of the device, as pointwise ones do."""
NOWHERE = nullcontext()
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
IN_ONE_PIECE = {
    **dict.fromkeys(["linear", "layer_norm", "conv2d", "conv_transpose2d.input", "max_pool2d"], 1),
    **dict.fromkeys(["__and__.Tensor", "__or__.Tensor"], 1),
    **{"where.ScalarOther": 2, "where.ScalarSelf": 2, "where.Scalar": 3},
    **dict.fromkeys(
        ["flatten.using_ints", "unflatten.int", "reshape", "view_as", "chunk", "movedim.intlist", "movedim.int"], -1
    ),
}
"""Composite operators, often met, that are not taken apart: how many kernels they run; -1: none, or one where the result cannot
be a view."""
PLAIN = {bool, int, float, str, type(None), torch.dtype, torch.layout, torch.memory_format}
"""Of arguments of operators those that are passed on as they are."""
HERE = {"device": torch.device("cpu"), "pin_memory": False, "generator": None}
"""Arguments of an operator that makes tensors, where its numbers are on the CPU."""
OUTSIDE = ("/simulated_cuda", "/torch/", "contextlib", "<string>")


class Event(NamedTuple):
    """What crossed between host and device, or held up the host.

    Attributes:
        kind: "sync", "h2d", "d2h", "pin", "math" (attention without a fused kernel) or "hazard".
        op: the operator.
        waits: whether the host waited.
        bytes: moved.
        stack: where from, innermost first, without torch.
    """

    kind: str
    op: str
    waits: bool
    bytes: int
    stack: tuple[str, ...]


class CudaTensor(torch.Tensor):
    """A tensor of the simulated device; ``host`` holds its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, device: torch.device) -> CudaTensor:
        is_inference = host.is_inference()
        here = NOWHERE if is_inference is torch.is_inference_mode_enabled() else torch.inference_mode(is_inference)
        strides, offset = host.stride(), host.storage_offset()
        with here:
            wrapper = Tensor._make_wrapper_subclass(
                cls, host.shape, strides=strides, storage_offset=offset, dtype=host.dtype, device=device
            )
        wrapper.host = host
        sim = SimulatedCuda.active[-1]
        if sim.tape is not None:
            sim.made.append(weakref.ref(wrapper))
        return wrapper

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return REPLACED.get(func, func)(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return SimulatedCuda.active[-1].run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> CudaTensor:
        copied = CudaTensor(self.host.detach().clone(), self.device).requires_grad_(self.requires_grad)
        copied._is_param = getattr(self, "_is_param", False)
        return memo.setdefault(id(self), copied)


class SimulatedCuda:
    """While entered, there are ``devices`` CUDA devices.

    Attributes:
        events: what crossed or waited, in order.
        launches: kernels by operator; views are none, a replayed graph is one.
        attention: calls by dtype, widths, dtype of the mask and usable kernels.
        stream: the current stream.
        pools: those that graphs are being recorded to.
        tape: while recording, operators on the numbers, in order.
        made: while recording, references to tensors of the device made since.
    """

    active: ClassVar[list[SimulatedCuda]] = []

    def __init__(self, devices: int = 1) -> None:
        self.devices, self.device, self.debug = devices, 0, 0
        self.tape: list[tuple] | None = None
        self.made: list[weakref.ref[CudaTensor]] = []
        self.pools: set[tuple[int, int]] = set()
        self.events: list[Event] = []
        self.launches: Counter[str] = Counter()
        self.attention: Counter[tuple] = Counter()

    def __enter__(self) -> SimulatedCuda:
        getattr(torch._C, "_ensureCUDADeviceGuardSet", int)()
        self.active.append(self)
        self.stream = self.default_stream = Handle()
        self._undo = ExitStack()
        self._undo.callback(self.active.pop)
        for replaced in (replacements(self), _files_and_backward(), _asking()):
            for owner, names in replaced.items():
                self._undo.enter_context(mock.patch.multiple(owner, **names))
        self._undo.enter_context(_Operators())
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    @contextmanager
    def left(self) -> Iterator[None]:
        """Within this, as if it had not been entered."""
        streams = self.stream, self.default_stream
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()
            self.stream, self.default_stream = streams

    @property
    def waits(self) -> list[Event]:
        return [event for event in self.events if event.waits]

    @property
    def transfers(self) -> list[Event]:
        """From the host to the device."""
        return [event for event in self.events if event.kind == "h2d"]

    def clear(self) -> None:
        """Forget what was counted."""
        self.events.clear()
        self.launches.clear()
        self.attention.clear()

    def report(self, depth: int = 3) -> str:
        """Events by place, the most frequent first."""
        places = Counter(f"{e.kind} {e.op}{', waits' * e.waits}: {' < '.join(e.stack[:depth])}" for e in self.events)
        return "\n".join(f"{n:5d} x {place}" for place, n in places.most_common())

    def note(self, kind: str, op: str, waits: bool = False, size: int = 0) -> None:
        stack = _stack()
        self.events.append(Event(kind, op, waits, size, stack))
        if waits and self.tape is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({op} at {stack[:1]})")
        if waits and self.debug and op != "synchronize":
            if self.debug > 1:
                raise RuntimeError(f"called a synchronizing CUDA operation: {op}")
            warnings.warn(f"called a synchronizing CUDA operation: {op} at {stack[:2]}", stacklevel=2)

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """One operator of torch."""
        given, facts = Arguments(args, kwargs), _facts(func)
        if not given.mine and not given.devices:
            return func(*args, **kwargs)
        if facts.is_composite and facts.kernels is None:
            return self._taken_apart(func, args, kwargs)
        name, device = facts.name, self._place(given, kwargs)
        if name in ("copy_", "_to_copy"):
            source, device = (args[1], args[0].device) if name == "copy_" else (args[0], device)
            self._cross(name, source, device, kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        else:
            self._check(func, facts, args, given)
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.note("sync", name, True)
        if kwargs:
            given.kwargs = {k: HERE.get(k, v) if v is not None else None for k, v in given.kwargs.items()}
        return self.kernel(func, name, given, device, facts.kernels)

    def _place(self, given: Arguments, kwargs: dict) -> torch.device:
        """Of what the operator makes."""
        device = kwargs.get("device") or (given.devices[0] if given.devices else given.mine[0].device)
        if isinstance(device, str):
            device = torch.device(device)
        return torch.device("cuda", self.device) if device.type == "cuda" and device.index is None else device

    def _taken_apart(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A composite operator, as those that it consists of."""
        if func is CAST and args[0].dtype is args[1] and len(args) == 2 and not kwargs:
            return args[0]
        with _Operators():
            return func._op_dk(COMPOSITE, *args, **kwargs)

    def kernel(
        self, func: Callable, name: str, given: Arguments, device: torch.device, kernels: int | None = None
    ) -> Any:
        """``func`` of the numbers; its results are on ``device``. ``kernels``: how many that is, as in
        ``IN_ONE_PIECE``; None: one."""
        func = ONLY_CUDA.get(name, func)
        out = func(*given.args, **given.kwargs)
        if device.type != "cuda":
            return out
        own = {id(x.host): x for x in given.mine}
        if kernels == -1:
            kernels = int(not _is_view(out, given.mine[0].host))
        if kernels != 0:
            self.launches[name] += kernels or 1
            if self.tape is not None and device.index == self.device:
                self.tape.append((func, given.args, given.kwargs, out))
        if type(out) is Tensor:
            return own[id(out)] if id(out) in own else CudaTensor(out, device)
        return changed(Tensor, lambda x: own[id(x)] if id(x) in own else CudaTensor(x, device), out)

    def _cross(self, op: str, source: Tensor, target: torch.device, non_blocking: bool) -> None:
        size, is_there = source.numel() * source.element_size(), isinstance(source, CudaTensor)
        if not is_there and target.type == "cuda":
            pageable = "" if getattr(source, "pinned", False) else ", pageable"
            self.note("h2d", op + pageable, not non_blocking, size)
            if self.tape is not None:
                self.note("hazard", "copy from the host while recording: replays read that memory again")
        if is_there and target.type == "cpu":
            self.note("d2h", op, not non_blocking, size)
            if non_blocking:
                self.note("hazard", "copy to the host without waiting: may be read before it arrives")

    def _check(self, func: Any, facts: Facts, args: tuple, given: Arguments) -> None:
        """RuntimeError where devices are mixed; notes waits that depend on the arguments."""
        name, mine, hosts = facts.name, given.mine, given.others
        if name in INDEXING and isinstance(args[0], CudaTensor):
            for index in parts_of(Tensor, args[1]):
                if not isinstance(index, CudaTensor):
                    size = index.numel() * index.element_size()
                    self.note("h2d", f"{name} by numbers of the host", True, size)
                    hosts = [x for x in hosts if x is not index]
                elif index.dtype in (torch.bool, torch.uint8):
                    self.note("sync", f"{name} by a mask", True)
        if name in ("masked_fill", "masked_fill_") and isinstance(args[2], CudaTensor):
            self.note("sync", "masked_fill by a value on the device", True)
        if name in PRODUCTS and mine and not (mine[0].is_floating_point() or mine[0].is_complex()):
            raise NotImplementedError(f'"{name}_cuda" not implemented for {mine[0].dtype}')
        is_one_device = len(mine) < 2 or len({x.device for x in mine}) < 2
        if is_one_device and (not hosts or not mine or facts.takes_none):
            return
        is_number = len(hosts) == 1 and hosts[0].ndim == 0 and facts.takes_number
        if not is_number or (args[0] is hosts[0] and func._schema.is_mutable):
            places = [(tuple(x.shape), str(x.device)) for x in [*mine, *hosts]]
            raise RuntimeError(f"Expected all tensors to be on the same device, but got {places} in {func}")
        if name == "where":
            self.note("h2d", "where with a number of the host", True, 8)


class _Operators(TorchDispatchMode):
    """Shows operators that have no tensor of the device among their arguments yet."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch wraps every call, to keep its compiler out."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return SimulatedCuda.active[-1].run(func, args, kwargs or {})


def _asking() -> dict[Any, dict[str, Any]]:
    """Functions that would ask for a driver on their way to operators."""
    empty, pin, new = torch.empty, Tensor.pin_memory, Tensor.new_tensor

    def elsewhere(make: Callable) -> Callable:
        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if device is None or torch.device(device).type != "cuda":
                return make(*args, device=device, **kwargs)
            return make(*args, **kwargs).to(device)

        return made

    def uninitialised(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return _pinned(empty(*args, **kwargs)) if pin_memory else empty(*args, **kwargs)

    tensor = elsewhere(torch.tensor)

    def like(x: Tensor, data: Any, **kwargs: Any) -> Tensor:
        same = {"dtype": x.dtype, "device": x.device}
        return tensor(data, **same | kwargs) if isinstance(x, CudaTensor) else new(x, data, **kwargs)

    return {
        torch: {"empty": uninitialised, "tensor": tensor, "as_tensor": elsewhere(torch.as_tensor)},
        Tensor: {
            "new_tensor": like,
            "pin_memory": lambda x, *_: pin(x) if isinstance(x, CudaTensor) else _pinned(x.clone()),
            "is_pinned": lambda x, *_: not isinstance(x, CudaTensor) and getattr(x, "pinned", False),
        },
    }


def _pinned(x: Tensor) -> Tensor:
    x.pinned = True
    SimulatedCuda.active[-1].note("pin", "pin_memory", size=x.numel() * x.element_size())
    return x


# -- nested arguments -------------------------------------------------------------------------------------------------


def parts_of(kind: Any, x: Any) -> list[Any]:
    """Every ``kind``, or one of a tuple of them, in nested tuples, lists and dicts."""
    found: list[Any] = []
    _collect(kind, (x,), found)
    return found


def _collect(kind: Any, items: Iterable[Any], into: list[Any]) -> None:
    for x in items:
        if isinstance(x, kind):
            into.append(x)
        elif isinstance(x, (tuple, list)):
            _collect(kind, x, into)
        elif isinstance(x, dict):
            _collect(kind, x.values(), into)


def changed(kind: type, change: Callable, x: Any) -> Any:
    """``x`` with ``change`` of every ``kind`` in it."""
    if isinstance(x, kind):
        return change(x)
    if isinstance(x, (tuple, list)):
        return type(x)([changed(kind, change, part) for part in x])
    if isinstance(x, dict):
        return type(x)((key, changed(kind, change, part)) for key, part in x.items())
    return x


# -- operators --------------------------------------------------------------------------------------------------------


class Arguments:
    """Of one call of an operator.

    Attributes:
        mine, others: tensors of the device and of the host.
        devices: CUDA devices that are named.
        args, kwargs: as given, with the numbers of tensors of the device in their place.
    """

    __slots__ = ("args", "devices", "kwargs", "mine", "others")

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.mine: list[CudaTensor] = []
        self.others: list[Tensor] = []
        self.devices: list[torch.device] = []
        self.args = tuple([x if type(x) in PLAIN else self._on_host(x) for x in args])
        self.kwargs = {k: x if type(x) in PLAIN else self._on_host(x) for k, x in kwargs.items()}

    def _on_host(self, x: Any) -> Any:
        if isinstance(x, CudaTensor):
            self.mine.append(x)
            return x.host
        if isinstance(x, Tensor):
            self.others.append(x)
        elif isinstance(x, torch.device) and x.type == "cuda":
            self.devices.append(x)
        elif isinstance(x, (tuple, list)):
            return type(x)([part if type(part) in PLAIN else self._on_host(part) for part in x])
        elif isinstance(x, dict):
            return type(x)((key, self._on_host(part)) for key, part in x.items())
        return x


class Facts(NamedTuple):
    """What does not depend on arguments of an operator.

    Attributes:
        name: without its namespace, where that is torch's own.
        is_composite: whether torch has it in terms of other operators for every device.
        kernels: that it runs; None: one, or those of the operators that a composite one consists of.
        takes_number: whether one tensor may be a number of the CPU.
        takes_none: whether tensors of the CPU are taken as well.
    """

    name: str
    is_composite: bool
    kernels: int | None
    takes_number: bool
    takes_none: bool


@cache
def _facts(func: Any) -> Facts:
    name = func._schema.name.removeprefix("aten::")
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)
    kernels = IN_ONE_PIECE.get(func.name().removeprefix("aten::")) if is_composite else 0 if func.is_view else None
    takes_number = torch.Tag.pointwise in func.tags or name in TAKES_NUMBER
    return Facts(name, is_composite, kernels, takes_number, name.startswith(("_fused_", "_foreach_")))


def _is_view(out: Any, x: Tensor) -> bool:
    first = out[0] if isinstance(out, (tuple, list)) else out
    return _memory(first) == _memory(x)


def _stack() -> tuple[str, ...]:
    frame, stack = sys._getframe(2), []
    while frame is not None and len(stack) < 12:
        file = frame.f_code.co_filename
        if not any(part in file for part in OUTSIDE):
            stack.append(f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return tuple(stack)


# -- what torch.cuda says meanwhile -----------------------------------------------------------------------------------


class Handle:
    """A stream, an event or a graph: all work is done at once, so most calls do nothing."""

    cuda_stream = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        self.sim, self.at = SimulatedCuda.active[-1], 0.0

    def record(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Handle) -> float:
        return 1000 * (other.at - self.at)

    def synchronize(self) -> None:
        self.sim.note("sync", "synchronize", True)

    def wait_stream(self, *_: Any) -> None: ...

    wait_event = record_event = wait = reset = wait_stream


class Graph(Handle):
    """A recording.

    Attributes:
        tape: operators on the numbers, in order.
        loose: memory of the graph that no tensor holds.
    """

    tape: list[tuple] | tuple = ()
    loose: list[Tensor] | tuple = ()

    @torch.inference_mode()
    def replay(self) -> None:
        SimulatedCuda.active[-1].launches["replay"] += 1
        for func, args, kwargs, out in self.tape:
            for old, new in zip(parts_of(Tensor, out), parts_of(Tensor, func(*args, **kwargs))):
                if old is not new:
                    old.copy_(new)
        _spoil(self.loose)  # others may have it now


class Recording:
    """``torch.cuda.graph``; as it does, it leaves its own stream current where the recording is refused, and goes on recording
    to the pool."""

    def __init__(self, graph: Graph, pool: Any = None, stream: Handle | None = None, **_: Any) -> None:
        self.graph, self.sim, self.pool = graph, graph.sim, pool
        self.stream, self.before = Handle() if stream is None else stream, self.sim.stream

    def __enter__(self) -> None:
        if self.pool in self.sim.pools:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        self.sim.pools |= {self.pool} - {None}
        self.sim.stream, self.sim.tape, self.sim.made = self.stream, [], []

    def __exit__(self, kind: type | None, *error: object) -> None:
        self.graph.tape, self.sim.tape = self.sim.tape or (), None
        if kind is not None:
            return
        self.sim.pools.discard(self.pool)
        self.sim.stream = self.before
        if not self.graph.tape:
            warnings.warn("The CUDA Graph is empty: recorded on the wrong device or stream", stacklevel=2)
        seen: set[int] = set()
        fresh: list[Tensor] = []  # memory of the graph is what is first met as a result
        for _, *arguments, out in self.graph.tape:
            seen |= {_memory(x) for x in parts_of(Tensor, arguments)}
            fresh += [x for x in parts_of(Tensor, out) if _memory(x) not in seen]
        held = {_memory(x.host) for x in (made() for made in self.sim.made) if x is not None}
        self.graph.loose = [x for x in fresh if _memory(x) not in held]
        _spoil(fresh)  # nothing has run yet


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@torch.inference_mode()
def _spoil(tensors: Any) -> None:
    for x in tensors:
        if x.is_floating_point():
            x.fill_(float("nan"))


def replacements(sim: SimulatedCuda) -> dict[Any, dict[str, Any]]:
    """By owner and name."""

    def number(device: Any = None) -> int:
        index = device if device is None or isinstance(device, int) else torch.device(device).index
        return sim.device if index is None else index

    @contextmanager
    def on_stream(stream: Handle) -> Iterator[None]:
        before, sim.stream = sim.stream, stream
        yield
        sim.stream = before

    def allocated(device: Any = None) -> int:
        living = [x for x in gc.get_objects() if type(x) is CudaTensor]
        storages = (x.host.untyped_storage() for x in living if x.device.index == number(device))
        return sum({s._cdata: s.nbytes() for s in storages}.values())

    def yes(*_: Any, **__: Any) -> bool:
        return True

    def nothing(*_: Any, **__: Any) -> None: ...

    def end_allocation(device: int, pool: tuple[int, int]) -> None:
        if pool not in sim.pools:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        sim.pools.remove(pool)

    numbers = count(1)
    modes = {"default": 0, "warn": 1, "error": 2}
    ignored = ["_lazy_init", "empty_cache", "manual_seed", "manual_seed_all", "reset_peak_memory_stats"]
    properties = SimpleNamespace(name="simulated", major=9, minor=0, total_memory=80 << 30)
    cuda = {
        **dict.fromkeys(["is_available", "is_initialized", "is_bf16_supported"], yes),
        **dict.fromkeys(ignored, nothing),
        **dict.fromkeys(["memory_allocated", "max_memory_allocated", "memory_reserved"], allocated),
        "mem_get_info": lambda *_: (70 << 30, 80 << 30),
        "device_count": lambda: sim.devices,
        "current_device": lambda: sim.device,
        "device": lambda device: mock.patch.object(sim, "device", number(device)),
        "set_device": lambda device: setattr(sim, "device", number(device)),
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: (9, 0),
        "Stream": Handle,
        "Event": Handle,
        "current_stream": lambda *_: sim.stream,
        "default_stream": lambda *_: sim.default_stream,
        "set_stream": lambda stream: setattr(sim, "stream", stream),
        "stream": on_stream,
        "graph_pool_handle": lambda: (0, next(numbers)),
        "is_current_stream_capturing": lambda: sim.tape is not None,
        "get_sync_debug_mode": lambda: sim.debug,
        "set_sync_debug_mode": lambda mode: setattr(sim, "debug", modes.get(mode, mode)),
        "synchronize": lambda *_: sim.note("sync", "synchronize", True),
        "CUDAGraph": Graph,
        "graph": Recording,
    }
    return {
        torch.cuda: cuda,
        torch._C: {"_cuda_endAllocateToPool": end_allocation},
        torch.__future__: {"_overwrite_module_params_on_conversion": True},
    }


def _files_and_backward() -> dict[Any, dict[str, Any]]:
    load, save, ordinary = torch.load, torch.save, torch.autograd.backward

    def backward(roots: Any, grads: Any = None, *args: Any, **kwargs: Any) -> None:
        if isinstance(roots, CudaTensor) and grads is None:
            _backward(roots)
        else:
            ordinary(roots, grads, *args, **kwargs)

    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if not isinstance(map_location, (str, torch.device)) or torch.device(map_location).type != "cuda":
            return load(file, map_location, **kwargs)
        return changed(Tensor, lambda x: x.to(map_location), load(file, "cpu", **kwargs))

    def saved(x: Any, *args: Any, **kwargs: Any) -> None:
        save(changed(CudaTensor, Tensor.cpu, x), *args, **kwargs)

    return {torch: {"load": loaded, "save": saved}, torch.autograd: {"backward": backward}}


@torch.no_grad()
def _backward(root: CudaTensor) -> None:
    """In Python, since autograd's engine asks for a driver: every node of the graph, once all that lead to it are done."""
    uses: Counter[Any] = Counter()
    stack, known, inputs = [root.grad_fn], {root.grad_fn}, {root.grad_fn: [torch.ones_like(root)]}
    while stack:
        for node, _ in stack.pop().next_functions:
            uses[node] += 1
            if node is not None and node not in known:
                known.add(node)
                stack.append(node)
    ready = [root.grad_fn]
    while ready:
        node = ready.pop()
        received = inputs.pop(node, [None])
        out = [None] * len(node.next_functions)
        if any(gradient is not None for gradient in received):
            out = node(*received)
        for (after, slot), gradient in zip(node.next_functions, out if isinstance(out, (tuple, list)) else [out]):
            if after is None:
                continue
            _accumulate(inputs, after, slot, gradient)
            uses[after] -= 1
            if not uses[after]:
                ready.append(after)


def _accumulate(inputs: dict, node: Any, slot: int, gradient: Tensor | None) -> None:
    slots = inputs.setdefault(node, [None] * len(node._input_metadata))
    if gradient is not None:
        expected = node._input_metadata[slot]
        gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
        slots[slot] = gradient if slots[slot] is None else slots[slot] + gradient


# -- attention --------------------------------------------------------------------------------------------------------


def _note_kernels(sim: SimulatedCuda, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """After ``can_use_*_attention`` in sdp_utils.cpp of torch 2.11."""
    half, widths = q.dtype in (torch.float16, torch.bfloat16), (q.shape[-1], v.shape[-1])
    widest = 128 if torch.is_grad_enabled() else 256  # of cuDNN
    plain = all(x.ndim == 4 and x.stride(-1) == 1 and x.numel() for x in (q, k, v))
    fits = {
        "cudnn": plain and half and max(widths) <= widest and not any(n % 8 for n in widths) and k.shape[-2] > 1,
        "flash": plain and half and mask is None and widths[0] == widths[1] <= 256,
        "mem_efficient": plain and not any(n % (8 if half else 4) for n in widths),
    }
    able = [n for n, fit in fits.items() if fit and getattr(torch.backends.cuda, f"{n}_sdp_enabled")()]
    if not able and not torch.backends.cuda.math_sdp_enabled():
        raise RuntimeError("No available kernel. Aborting execution.")
    masked = None if mask is None else str(mask.dtype)[6:]
    sim.attention[str(q.dtype)[6:], widths, masked, "/".join(able) or "math"] += 1
    if not able:
        sim.note("math", f"attention without a fused kernel: {tuple(q.shape)}, {tuple(v.shape)}, {q.dtype}, {masked}")


def _attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **rest):
    """``scaled_dot_product_attention`` as one kernel; as mathematics where gradients are wanted."""
    sim, low = SimulatedCuda.active[-1], torch.get_autocast_dtype("cuda")
    if torch.is_autocast_enabled("cuda"):
        q, k, v, attn_mask = (x.to(low) if x is not None and x.is_floating_point() else x for x in (q, k, v, attn_mask))
    if not q.dtype == k.dtype == v.dtype or (attn_mask is not None and attn_mask.dtype not in (torch.bool, q.dtype)):
        dtypes = [None if x is None else x.dtype for x in (q, k, v, attn_mask)]
        raise RuntimeError(f"Expected query, key, value and mask to have the same dtype, but got {dtypes}")
    _note_kernels(sim, q, k, v, attn_mask)
    if torch.is_grad_enabled():
        with torch.autocast("cuda", enabled=False):
            math = torch.ops.aten._scaled_dot_product_attention_math
            return math(q, k, v, attn_mask, dropout_p, is_causal, None, **rest)[0]
    arguments, facts = (q, k, v, attn_mask, dropout_p, is_causal), _facts(ATTENTION)
    given = Arguments(arguments, rest)
    sim._check(ATTENTION, facts, arguments, given)
    return sim.kernel(_attention_of_the_host, facts.name, given, q.device)


def _attention_of_the_host(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(*args, **kwargs)


def _varlen(q, k, v, ends_q, ends_k, max_q, max_k, is_causal=False, scale=None, window_size=None):
    """What ``torch.nn.attention.varlen`` calls: rows of unequal length, end to end (T, heads, d); that of torch 2.10."""
    if scale is not None:
        raise TypeError("varlen_attn of torch 2.10 takes no scale")
    if q.dtype not in (torch.float16, torch.bfloat16) or q.shape[-1] > 256 or ends_q.dtype is not torch.int32:
        raise RuntimeError(
            f"FlashAttention takes half precision, heads up to 256, int32 ends; got {q.dtype}, {q.shape}"
        )
    rows, sizes = [], [ends.diff().tolist() for ends in (ends_q, ends_k)]
    for a, b, c in zip(q.split(sizes[0]), k.split(sizes[1]), v.split(sizes[1])):
        a, b, c = (x.transpose(0, 1)[None] for x in (a, b, c))
        rows.append(F.scaled_dot_product_attention(a, b, c, is_causal=is_causal, scale=scale)[0].transpose(0, 1))
    return torch.cat(rows), q.new_zeros(q.shape[1], len(q), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def _refused(x: CudaTensor, *_: Any, **__: Any) -> None:
    raise TypeError(f"can't convert {x.device} device type tensor to numpy. Use Tensor.cpu() first.")


def _on_host(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_on_host(part) for part in index)
    is_numbers = isinstance(index, list) and index and all(type(i) in (int, bool) for i in index)
    return torch.tensor(index) if is_numbers else index


CAST = torch.ops.aten.to.dtype
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
ONLY_CUDA = {"torch_attn::_varlen_attn": _varlen}
REPLACED = {
    F.scaled_dot_product_attention: _attention,
    Tensor.numpy: _refused,
    Tensor.__array__: _refused,
    Tensor.__getitem__: lambda x, index: Tensor.__getitem__(x, _on_host(index)),
    Tensor.__setitem__: lambda x, index, value: Tensor.__setitem__(x, _on_host(index), value),
    Tensor.data_ptr: lambda x: x.host.data_ptr(),
    Tensor.untyped_storage: lambda x: x.host.untyped_storage(),
    Tensor.tolist: lambda x: x.cpu().tolist(),
    Tensor.record_stream: lambda x, stream: None,
}
