"""Import paths and names of earlier versions: they keep working, with a FutureWarning that names the new one.

``MODULES`` maps modules that are gone to those that took their place; ``NAMES`` maps ``module:name`` of earlier versions
to where the name is now; both are read from moved_names.json. Memory files name classes in the same way, so ``current``
serves them too.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

_TABLES = json.loads(Path(__file__).with_name("moved_names.json").read_text())
MODULES: dict[str, str] = _TABLES["modules"]
NAMES: dict[str, str] = _TABLES["names"]


def current(module: str, name: str) -> tuple[str, str]:
    """The module and the name that ``name`` of ``module`` has now; the same two where nothing has changed."""
    target = NAMES.get(f"{module}:{name}", f"{MODULES.get(module, module)}:{name}")
    new_module, _, new_name = target.partition(":")
    return new_module, new_name


def renamed(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module: names of earlier versions, with a warning."""

    def __getattr__(name: str) -> Any:  # noqa: N807
        if f"{module}:{name}" not in NAMES:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _resolve(module, name)

    return __getattr__


def renamed_fields(**new_names: str) -> Callable[[type[T]], type[T]]:
    """A class decorator: arguments and attributes of earlier versions (``old="new"``) work on, with a warning."""

    def decorate(cls: Any) -> Any:
        init = cls.__init__

        def new_name(name: str) -> str:
            if name in new_names:
                text = f"{cls.__module__}.{cls.__name__}.{name} is now {new_names[name]}; change the name or the config key"
                warnings.warn(text, FutureWarning, stacklevel=4)
            return new_names.get(name, name)

        @wraps(init)
        def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
            both = [f"{old} and {new}" for old, new in new_names.items() if old in kwargs and new in kwargs]
            if both:
                raise TypeError(f"expected one name of each argument, got {', '.join(both)}; leave out the first")
            init(self, *args, **{new_name(name): value for name, value in kwargs.items()})

        def earlier(name: str) -> property:
            return property(lambda self: getattr(self, new_name(name)))

        cls.__init__ = initialize
        for old in new_names:
            setattr(cls, old, earlier(old))
        return cls

    return decorate


def _resolve(module: str, name: str) -> Any:
    new_module, new_name = current(module, name)
    value = getattr(import_module(new_module), new_name)
    warnings.warn(f"{module}.{name} is now {new_module}.{new_name}; change the import", FutureWarning, stacklevel=3)
    return value


class _MovedModule(ModuleType):
    """Stands where a module was; its names are looked up where they are now."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        new_module, new_name = current(self.__name__, name)
        return getattr(import_module(new_module), new_name)


class MovedModules(MetaPathFinder, Loader):
    """Finds the modules of ``MODULES``; last on ``sys.meta_path``, so asked for what does not exist only."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        new = MODULES[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}; change the import or the _target_", FutureWarning, stacklevel=2)


def install() -> None:
    """Make the old module names importable; once per process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
