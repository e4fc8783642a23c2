"""Learning curves: one line of CSV per entry, drawn into a PNG."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sam2_mem.files import atomic_path


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """Add one line; the first one of a file writes the header, and later ones must have the same columns."""
    is_new = not path.is_file()
    if not is_new:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != list(row):
            raise ValueError(f"expected the columns {header} of {path}, got {list(row)}; use another folder")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" for k, v in row.items()})


def cut_rows(path: Path, step: int) -> None:
    """Drop lines at or after ``step``, which a resumed run writes again."""
    if not path.is_file():
        return
    header, *lines = path.read_text().splitlines() or [""]
    lines = [line for line in lines if float(line.split(",")[0]) < step]
    with atomic_path(path) as part:
        part.write_text("\n".join([header, *lines]) + "\n")


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Columns by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(r[name]) for r in rows]) for name in (rows[0] if rows else {})}


def draw_curves(csv_path: Path, png_path: Path, *, columns: int = 3) -> None:
    """A panel for every column of the CSV over its first one: in grey as it is, in colour smoothed."""
    from matplotlib.figure import Figure  # here, as only pictures need it

    table = read_rows(csv_path)
    if len(table) < 2:
        return
    (x_name, x), *curves = table.items()
    num_rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.4 * num_rows), dpi=100)
    edge_y = 0.4 / (2.4 * num_rows)  # fixed margins: a layout that is computed takes as long again as the drawing
    figure.subplots_adjust(left=0.06, right=0.98, bottom=1.2 * edge_y, top=1 - edge_y, wspace=0.22, hspace=0.5)
    for number, (name, y) in enumerate(curves, start=1):
        axes = figure.add_subplot(num_rows, columns, number, xlabel=x_name)
        axes.set_title(f"{name}  last {y[-1]:.4g}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        window = max(1, len(y) // 40)
        axes.plot(x, y, color="0.8", linewidth=1)
        axes.plot(x[window - 1 :], np.convolve(y, np.ones(window) / window, mode="valid"), linewidth=1)
    figure.savefig(png_path)
