"""Pages of one HTML file, from the templates beside this module."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """A page; text in ``values`` is escaped, what is marked safe in the template or by ``markupsafe.Markup`` is not."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("sam2_mem.evaluation")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(template).render(**values)
