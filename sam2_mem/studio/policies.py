"""A policy as a form: its fields, and a policy from what a form says."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

from sam2_mem.build_sam import build_policy
from sam2_mem.memory.policy import MemoryPolicy


def about(policy: MemoryPolicy) -> str:
    """The first sentence about a policy."""
    text = " ".join((inspect.getdoc(type(policy)) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0].replace("``", "")


def policy_form(policy: MemoryPolicy) -> list[dict[str, Any]]:
    """The fields of a policy: ``name``, ``value``, ``kind`` (bool, int, float, str), whether it may be ``optional`` (None),
    ``choices``, ``at_least``, ``at_most``, ``special`` values, and ``help`` from its documentation."""
    helps, hints = _field_helps(type(policy)), get_type_hints(type(policy))
    form = []
    for f in fields(policy):
        kinds = [kind for kind in get_args(hints[f.name]) or (hints[f.name],) if kind in (bool, int, float, str)]
        if not kinds:
            continue  # nothing that a form can show
        limits = {key: f.metadata.get(key) for key in ("choices", "at_least", "at_most", "special")}
        optional = type(None) in get_args(hints[f.name])
        entry = {"name": f.name, "value": getattr(policy, f.name), "kind": kinds[0].__name__, "optional": optional}
        form.append(entry | limits | {"help": helps.get(f.name, "")})
    return form


def _field_helps(kind: type) -> dict[str, str]:
    """What the sections Attributes of a class and of those it is derived from say, by field."""
    helps: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = (inspect.getdoc(base) or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?= {4}\w+:)", f"\n{section}"):
            match = re.match(r" {4}(\w+): (.*)", entry, re.DOTALL)
            if match:
                helps[match[1]] = " ".join(match[2].split("\n\n")[0].replace("``", "").split())
    return helps


def policy_from(name: str, values: Mapping[str, Any]) -> tuple[MemoryPolicy, dict[str, Any]]:
    """A policy, and those of ``values`` that differ from the policy of that name.

    Raises:
        ValueError: an unknown name or field, or a value that the policy does not take.
    """
    policy = build_policy(name)
    form = {entry["name"]: entry for entry in policy_form(policy)}
    unknown = values.keys() - form.keys()
    if unknown:
        raise ValueError(f"expected fields of {name}: {', '.join(form)}; got {', '.join(sorted(unknown))}")
    typed = {key: _typed(value, form[key]) for key, value in values.items()}
    changed = {key: value for key, value in typed.items() if value != form[key]["value"]}
    return replace(policy, **changed), changed


def _typed(value: Any, entry: Mapping[str, Any]) -> Any:
    """``value`` in the type of its field."""
    kind, name = entry["kind"], entry["name"]
    if value is None and entry["optional"]:
        return None
    valid = {
        "bool": lambda: isinstance(value, bool),
        "int": lambda: isinstance(value, int) and not isinstance(value, bool),
        "float": lambda: isinstance(value, int | float) and not isinstance(value, bool),
        "str": lambda: isinstance(value, str),
    }[kind]()
    if not valid:
        raise ValueError(f"expected {name} as {kind}, got {value!r}")
    return float(value) if kind == "float" else value
