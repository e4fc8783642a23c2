"""docs/robustness.md: every row names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "robustness.md"


def rows(page: str) -> list[list[str]]:
    """Cells of the rows below the heads of all tables."""
    lines = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in cells] for cells in lines if cells[0].strip() != "input"]


def missing_tests(cell: str) -> list[str]:
    """Tests that a cell names and that do not exist: `file`, `file::part of a name`, and `::part` for the same file."""
    missing, file = [], ""
    for name, part in re.findall(r"`([\w/.]*)(?:::(\w+))?`", cell):
        file = name or file
        path = ROOT / file
        text = path.read_text() if path.is_file() else ""
        if not re.search(rf"^def test_\w*{part or ''}", text, re.MULTILINE):
            missing.append(f"{file}::{part}")
    return missing


def test_every_row_has_its_test() -> None:
    found = rows(PAGE.read_text())
    assert len(found) > 50 and {len(row) for row in found} == {4}
    assert [row[3] for row in found if not re.search(r"`tests/[\w/]+\.py", row[3])] == []
    assert {row[0]: missing for row in found if (missing := missing_tests(row[3]))} == {}


@pytest.mark.parametrize(
    ("cell", "missing"),
    [
        ("`tests/gone.py::x`", ["tests/gone.py::x"]),
        ("`tests/test_docs_robustness.py::every_row`, `::gone`", ["tests/test_docs_robustness.py::gone"]),
        ("`tests/test_docs_robustness.py`, `::every_row`", []),
    ],
)
def test_a_missing_test_is_noticed(cell: str, missing: list[str]) -> None:
    assert missing_tests(cell) == missing
