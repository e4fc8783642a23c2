"""Tensors in nested values: dataclasses, tuples, lists, dicts, numbers and tensors, as arguments and states are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in ``value``, in order; one that comes several times, several times."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, tuple | list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def map_tensors(
    value: Any, change: Callable[[Tensor], Tensor], memo: dict[int, Any] | None = None, *, share: bool = True
) -> Any:
    """``value`` with ``change`` applied to every tensor; a part without a tensor that changes is the same object.

    Args:
        value: a tensor, or nested dataclasses, tuples, lists and dicts.
        change: gives the new tensor, or the tensor itself.
        memo: the same dict in several calls shares parts between their results too.
        share: what is one object in ``value`` is one object in the result; False: ``change`` is called for every occurrence.
    """
    memo = {} if memo is None else memo

    def mapped(part: Any) -> Any:
        if share and id(part) in memo:
            return memo[id(part)][0]
        result = change(part) if isinstance(part, Tensor) else _rebuilt(part, mapped)
        if share:
            memo[id(part)] = (result, part)  # the part too: its id must not be used again
        return result

    return mapped(value)


def _rebuilt(value: Any, mapped: Callable[[Any], Any]) -> Any:
    """``value`` of ``mapped`` parts; ``value`` itself where every part stays."""
    before: dict[Any, Any]
    if is_dataclass(value) and not isinstance(value, type):
        before = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, dict):
        before = value
    elif isinstance(value, tuple | list):
        before = dict(enumerate(value))
    else:
        return value
    after = {name: mapped(part) for name, part in before.items()}
    if all(after[name] is before[name] for name in before):
        return value
    if isinstance(value, dict):
        return after
    if isinstance(value, tuple | list):
        return type(value)(*after.values()) if hasattr(value, "_fields") else type(value)(after.values())
    return replace(value, **after)
