"""The report of a comparison as one HTML page that needs no network, no script and no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2d2d2d; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; } h3 { font-size: 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: #f4f6fa; } thead th { border-bottom: 2px solid #888; }
details { margin: 1em 0; } summary { cursor: pointer; font-weight: bold; }
figure { margin: 1.5em 0; } img { max-width: 100%; height: auto; border: 1px solid #e4e4e4; }
.remarks { color: #8a3b00; }
"""


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column a name. ``folded``: shown when asked for."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    folded: bool = False


def page(
    about: Sequence[str],
    tables: Sequence[tuple[str, Sequence[Table]]],
    charts: Sequence[tuple[str, bytes]],
    remarks: Sequence[str],
) -> str:
    """The whole page.

    Args:
        about: lines of introduction. tables: those of each group of videos, with its name.
        charts: titles and PNG files. remarks: failures and notes.
    """
    sections = [f"<h2>{escape(group)}</h2>" + "".join(map(_titled, several)) for group, several in tables]
    figures = [_figure(title, png) for title, png in charts]
    body = ["<h1>Memory policies compared</h1>", _list(about), *sections, *figures]
    body += [f'<h2>Remarks</h2><div class="remarks">{_list(remarks)}</div>'] if remarks else []
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Memory policies compared</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>"
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _titled(table: Table) -> str:
    title = escape(table.title)
    if table.folded:
        return f"<details><summary>{title}</summary>{_table(table)}</details>\n"
    return f"<h3>{title}</h3>{_table(table)}\n"


def _table(table: Table) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>\n" for line in table.lines)
    return f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"


def _figure(title: str, png: bytes) -> str:
    content = base64.b64encode(png).decode()
    return f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{content}"></figure>'
