"""Learning curves: one line of CSV per entry, drawn into a PNG with OpenCV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

PANEL = (240, 420)  # height, width
MARGIN = 34
INK, LINE, GRID = (40, 40, 40), (190, 90, 20), (225, 225, 225)


def append_row(path: Path, row: Mapping[str, float]) -> None:
    """Add one line; the first one of a file writes the header, and later ones must have the same columns."""
    fresh = not path.is_file()
    if not fresh:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if header != list(row):
            raise ValueError(f"expected the columns {header} of {path}, got {list(row)}; use another folder")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" for k, v in row.items()})


def cut_rows(path: Path, step: int) -> None:
    """Drop lines at or after ``step``, which a resumed run writes again."""
    if not path.is_file():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines[1:] if float(line.split(",")[0]) < step]
    path.write_text("\n".join(lines[:1] + kept) + "\n")


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Columns by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(r[name]) for r in rows]) for name in (rows[0] if rows else {})}


def draw_curves(csv_path: Path, png_path: Path, *, columns: int = 3) -> None:
    """A panel for every column of the CSV over its first one."""
    table = read_rows(csv_path)
    names = list(table)[1:]
    if not names:
        return
    x = table[next(iter(table))]
    panels = [_panel(name, x, table[name]) for name in names]
    blank = np.full((*PANEL, 3), 255, np.uint8)
    panels += [blank] * (-len(panels) % columns)
    rows = [np.hstack(panels[i : i + columns]) for i in range(0, len(panels), columns)]
    if not cv2.imwrite(str(png_path), np.vstack(rows)):
        raise OSError(f"could not write {png_path}")


def _panel(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One curve, raw in grey and smoothed in colour."""
    image = np.full((*PANEL, 3), 255, np.uint8)
    low, high = float(np.nanmin(y)), float(np.nanmax(y))
    high = high if high > low else low + 1.0
    _frame(image, f"{name}  last {y[-1]:.4g}", (float(x[0]), float(x[-1])), (low, high))
    window = max(1, len(y) // 40)
    smooth = np.convolve(y, np.ones(window) / window, mode="valid")
    for values, at, colour in ((y, x, (205, 205, 205)), (smooth, x[window - 1 :], LINE)):
        cv2.polylines(image, [_to_pixels(at, values, x, low, high)], False, colour, 1, cv2.LINE_AA)
    return image


def _to_pixels(at: np.ndarray, y: np.ndarray, x: np.ndarray, low: float, high: float) -> np.ndarray:
    height, width = PANEL
    across = (at - x[0]) / max(float(x[-1] - x[0]), 1e-9)
    px = MARGIN + across * (width - 2 * MARGIN)
    py = height - MARGIN - (np.nan_to_num(y, nan=low) - low) / (high - low) * (height - 2 * MARGIN)
    return np.stack([px, py], -1).round().astype(np.int32).reshape(-1, 1, 2)


def _frame(image: np.ndarray, title: str, across: tuple[float, float], up: tuple[float, float]) -> None:
    height, width = PANEL
    for part in np.linspace(MARGIN, height - MARGIN, 5).astype(int):
        cv2.line(image, (MARGIN, part), (width - MARGIN, part), GRID, 1)
    for text, place in (
        (title, (MARGIN, 20)),
        (f"{up[1]:.3g}", (2, MARGIN)),
        (f"{up[0]:.3g}", (2, height - MARGIN)),
        (f"{across[0]:.0f}", (MARGIN, height - 14)),
        (f"{across[1]:.0f}", (width - 2 * MARGIN, height - 14)),
    ):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
