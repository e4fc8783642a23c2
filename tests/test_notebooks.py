"""The notebooks run from top to bottom, quickly, and are committed as they ran, with small outputs."""

from __future__ import annotations

import os
import re
import resource
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import nbformat
import pytest
from micro import in_tiers
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000
SLOWEST = 120.0
"""Seconds of one core for all of them together, whatever else the machine does."""


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def used_by_kernels() -> float:
    """Seconds of processor time of kernels that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def pictures(notebook: nbformat.NotebookNode) -> list[int]:
    """How many pictures every cell shows."""
    return [sum("data" in output for output in cell.outputs) for cell in code_cells(notebook)]


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A fresh run, on one thread, with this checkout."""
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}})
    with patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(FOLDER.parent)):
        return client.execute()


@lru_cache
def fresh(path: Path) -> tuple[nbformat.NotebookNode, float]:
    """The notebook as it runs here, and the processor time that took."""
    began = used_by_kernels()
    return run(nbformat.read(path, as_version=4)), used_by_kernels() - began


def test_there_are_five() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]
    readme = (FOLDER.parent / "README.md").read_text()
    assert all(f"notebooks/{path.name}" in readme for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_as_it_ran(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert any("image/jpeg" in o.get("data", {}) for o in outputs), "there is something to look at"
    said = "".join(str(o) for o in outputs)
    assert not re.search(r"/(root|home|work|tmp)/", said), "outputs say nothing of the machine they were made on"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_one_line_changes_the_model(path: Path) -> None:
    source = "\n".join(cell.source for cell in code_cells(nbformat.read(path, as_version=4)))
    lines = [line for line in source.splitlines() if re.search(r'\("nano(_v2)?",\)', line)]
    assert len(lines) == 1 and "official:" in lines[0]
    config, weights = re.search(r'official: \("([^"]+)", "([^"]+)"\)', lines[0]).groups()
    root = FOLDER.parent
    assert (root / "configs" / "sam2.1" / f"{config}.yaml").is_file()
    fetched = (root / "checkpoints" / "download_ckpts.sh").read_text()
    assert Path(weights).name in fetched and weights.startswith("../checkpoints/")


@pytest.mark.parametrize("path", in_tiers(NOTEBOOKS, NOTEBOOKS[:1], NOTEBOOKS[3:4]), ids=lambda p: p.stem)
def test_runs(path: Path) -> None:
    assert pictures(fresh(path)[0]) == pictures(nbformat.read(path, as_version=4))


@pytest.mark.full
@pytest.mark.extended
def test_together_they_are_quick() -> None:
    assert len(NOTEBOOKS) < sum(fresh(path)[1] for path in NOTEBOOKS) < SLOWEST, "each takes more than a second"


def test_a_failing_cell_would_be_noticed() -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 > 2")])
    with pytest.raises(CellExecutionError, match="AssertionError"):
        run(broken)
