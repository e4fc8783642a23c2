"""benchmarks/gpu_check.py, tried on the CPU: steps run, problems are seen, limits hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402

RIGHT = {"iou": 0.99999, "least_frame_iou": 0.99, "logit": 1e-5, "foreground": 0.1, "finite": True}


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({"fifo": {"float32": RIGHT, "bfloat16": RIGHT}}, ""),
        ({"fifo": {"float32": RIGHT | {"iou": 0.98}, "bfloat16": RIGHT}}, "fifo, float32"),
        ({"fifo": {"float32": RIGHT, "bfloat16": RIGHT | {"finite": False}}}, "fifo, bfloat16"),
        ({"fifo": {"offloaded": {"error": "RuntimeError: mixed devices", "at": []}}}, "mixed devices"),
        ({"fifo": RIGHT | {"frozen": True, "default_stream": True}}, "fifo"),
        ({"fifo": RIGHT | {"frozen": False, "default_stream": False}}, "fifo"),
        ({"error": "pytest ended with 3"}, "pytest ended"),
    ],
)
def test_problems_are_listed(results: dict, expected: str) -> None:
    lines = gpu_check.problems({"status": "0", "results": results})
    assert bool(lines) == bool(expected)
    assert expected in " ".join(lines)


def test_a_step_that_failed_is_a_problem() -> None:
    assert gpu_check.problems({"status": "timeout", "results": {}}) == ["status timeout"]


def test_a_process_is_killed_at_its_limit(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; print('began', flush=True); time.sleep(60)"]
    assert gpu_check.run_limited(sleep, tmp_path / "log", 2) == "timeout"
    assert gpu_check.run_limited([sys.executable, "-c", "raise SystemExit(3)"], tmp_path / "log", 30) == "3"


def test_tables_of_times() -> None:
    results = {f"ours, eager, fifo, {n}": {"ms": 10.0 * n, "peak_mb": n} for n in (1, 5, 10)}
    text = gpu_check.tables({"bench_tiny": {"results": results}}, "a card")
    assert text.startswith("a card; ")
    assert "| ours, eager, fifo | 10.0 (1) | 50.0 (5) | 100.0 (10) |" in text


@pytest.mark.full
def test_steps_run_on_the_cpu(tmp_path: Path) -> None:
    steps = "env,smoke,bench_tiny,attention"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--quick"]
    run = subprocess.run([*command, "--out", str(tmp_path), "--steps", steps], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {name: step["status"] for name, step in summary.items()} == dict.fromkeys(steps.split(","), "0")
    assert summary["smoke"]["results"]["fifo"]["float32"]["iou"] == 1.0
    assert set(summary["bench_tiny"]["results"]) == {"ours, eager, fifo, 1", "reference, eager, fifo, 1"}
    assert "reference, eager" in (tmp_path / "tables.md").read_text()
