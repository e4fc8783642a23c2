"""How far a command is: a bar on a terminal, a line now and then elsewhere, nothing where there is no stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

INTERVAL = 30.0
"""Seconds between two lines."""


def progress(items: Iterable[T], name: str, *, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """The same items, with their number shown on stderr.

    Args:
        items: what is done, one after the other.
        name: what this is, e.g. the number and the name of a video.
        total: how many there are, where it is known.
        unit: what one of them is.
    """
    if sys.stderr is None:
        return iter(items)
    if sys.stderr.isatty():
        return iter(tqdm(items, desc=name, total=total, unit=unit, dynamic_ncols=True))
    return _with_lines(items, name, total, unit)


def _with_lines(items: Iterable[T], name: str, total: int | None, unit: str) -> Iterator[T]:
    begin = last_line = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += 1
        if time.monotonic() - last_line >= INTERVAL:
            last_line = time.monotonic()
            _print_line(name, count, total, unit, last_line - begin)
    _print_line(name, count, count, unit, time.monotonic() - begin)


def _print_line(name: str, count: int, total: int | None, unit: str, seconds: float) -> None:
    of = "" if total is None or total < count else f" of {total}"
    print(f"{name}: {count}{of} {unit}s, {count / max(seconds, 1e-9):.1f} {unit}s/s, {seconds:.0f} s", file=sys.stderr)
