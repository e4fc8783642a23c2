"""--launcher: tasks of a real Slurm of one node, and of this machine, of which one is ended in the middle of a video."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import slurm_node
import torch
from helpers import NANO_128

from sam2_mem.cli import launcher
from sam2_mem.cli import vos as tool
from sam2_mem.cli.launcher import Cluster
from sam2_mem.cli.verify import main as verify
from sam2_mem.cli.vos_arguments import parse_arguments
from sam2_mem.config import checkpoint_dir
from sam2_mem.evaluation.synthetic import SyntheticClip, SyntheticSet
from sam2_mem.synthetic.generator import SyntheticSpec

PATIENCE = 180.0
LENGTHS = {"short": 4, "long": 30, "middle": 8}
HELD = 20
"""The frame of the long video at which tasks wait for the test."""

no_slurm = pytest.mark.skipif(
    bool(slurm_node.missing_programs()),
    reason="NOT TESTED ON SLURM: its programs are missing; apt-get install slurmctld slurmd slurm-client",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three procedural clips as DAVIS."""
    root = tmp_path_factory.mktemp("data")
    clips = tuple(
        SyntheticClip(name, "easy", SyntheticSpec(seed=count, level="easy", num_frames=count, height=64, width=64))
        for name, count in LENGTHS.items()
    )
    SyntheticSet("three clips", clips).export(root, quality=95)
    return root


def arguments(data: Path, out: Path, *extra: object) -> list[str]:
    folders = {"base_video_dir": "JPEGImages/480p", "input_mask_dir": "Annotations/480p"}
    places = [text for flag, path in folders.items() for text in (f"--{flag}", str(data / path))]
    return ["--sam2_cfg", NANO_128, "--device", "cpu", *places, "--output", str(out), *map(str, extra)]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Masks of one process, with the threads that tasks have."""
    out, before = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert tool.main(arguments(data, out)) == 0
    finally:
        torch.set_num_threads(before)
    return masks(out)


def masks(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def started(data: Path, out: Path, environment: dict[str, str], *extra: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sam2_mem", "segment", *arguments(data, out, "--checkpoint_every", 5, *extra)]
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


WAITS = """
import os, time
from PIL import Image

read = Image.open

def read_when_released(path, *arguments, **options):
    while str(path).endswith({frame!r}) and os.path.exists({hold!r}):
        time.sleep(0.02)
    return read(path, *arguments, **options)

Image.open = read_when_released
"""


def hold(folder: Path) -> tuple[Path, dict[str, str]]:
    """A file, and an environment in whose processes no task passes the frame ``HELD`` of the long video while it exists."""
    file = folder / "hold"
    file.touch()
    (folder / "sitecustomize.py").write_text(WAITS.format(frame=f"/long/{HELD:05d}.jpg", hold=str(file)))
    return file, {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def await_end(pid: int) -> None:
    patience = time.monotonic() + PATIENCE
    while (stat := Path(f"/proc/{pid}/stat")).exists() and ") Z " not in stat.read_text():
        assert time.monotonic() < patience, "the task goes on"
        time.sleep(0.02)


def process_within(out: Path, process: subprocess.Popen[str]) -> int:
    """The number of the process that is in the middle of the long video, some checkpoints after its beginning."""
    patience = time.monotonic() + PATIENCE
    while len(list((out / "long").glob("*.png"))) < HELD - 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < patience, "no task has come to the middle of a video"
        time.sleep(0.02)
    [claim] = (out / ".vos" / "claims").glob("long,*")
    return json.loads(claim.read_text())["pid"]


def reports(out: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (out / ".vos" / "done").glob("*.json")}


@pytest.mark.full
@no_slurm
@pytest.mark.parametrize(
    ("tasks", "command"),
    [
        (1, ["scontrol", "requeue"]),
        pytest.param(2, ["scontrol", "requeue"], marks=pytest.mark.extended),
        pytest.param(1, ["scancel", "--signal=USR2"], marks=pytest.mark.extended),
    ],
    ids=["requeued", "requeued beside another", "at its time limit"],
)
def test_a_slurm_task_that_is_stopped_in_the_middle_of_a_video(
    tasks: int, command: list[str], data: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with slurm_node.slurm_node(tmp_path / "slurm") as node:
        file, environment = hold(tmp_path)
        process = started(data, out, node.environment | environment, "--launcher", "slurm", "--num_shards", tasks)
        pid = process_within(out, process)
        variables = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        job = variables["SLURM_JOB_ID"]
        assert node.run(*command, job) == ""
        await_end(pid)
        file.unlink()
        output, _ = process.communicate(timeout=PATIENCE)
        assert "Restarts=1" in node.run("scontrol", "show", "job", job)
    assert process.returncode == 0, output
    assert "3 of 3 videos are complete" in output
    assert masks(out) == whole and len(whole) == sum(LENGTHS.values())
    assert 10 <= reports(out)["long"]["went_on_at"] <= HELD
    assert not any((out / ".vos" / "checkpoints").iterdir())


@pytest.mark.full
def test_a_task_of_this_machine_that_is_killed(data: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    file, environment = hold(tmp_path)
    process = started(data, out, environment, "--launcher", "local", "--num_shards", 2)
    os.kill(process_within(out, process), 9)
    file.unlink()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert "was ended from outside; its log is" in output and "3 of 3 videos are complete" in output
    assert masks(out) == whole
    assert 10 <= reports(out)["long"]["went_on_at"] <= HELD


@pytest.mark.full
@pytest.mark.extended
def test_tasks_that_refuse_the_work_are_an_error(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert tool.main(arguments(data, out, "--max_frames", 1)) == 0
    process = started(data, out, {}, "--launcher", "local", "--num_shards", 2, "--max_frames", 2)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "no task has come to its end" in output and "arguments.max_frames: 1 there, 2 now" in output


# -- what is said -----------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_submitit() -> None:
    cluster = Cluster(name="slurm", tasks=2, parameters=("timeout_min=5", "slurm_partition=gpu"))
    assert cluster.settings() == {"timeout_min": 5, "slurm_partition": "gpu"}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--shard_id", "1", "--num_shards", "2"], "expected --launcher without --shard_id"),
        (["--launcher_set", "gpu"], "expected --launcher_set as key=value, got gpu"),
        (["--launcher_set", "local_gpu=1"], "expected --launcher local to start tasks here"),
    ],
)
def test_mistakes(
    extra: Sequence[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = tool.main(arguments(data, tmp_path / "out", "--launcher", "local", *extra))
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_verify_passes_the_tasks_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of it, ``segment`` is what takes long."""
    asked = []
    monkeypatch.setattr(tool, "main", lambda argv: asked.append(argv) or 2)
    weights = checkpoint_dir() / "sam2_mem_nano_v2.safetensors"
    words = [
        str(weights),
        "--config",
        "nano_v2",
        "--data",
        f"davis2017:{data}",
        "--out",
        str(tmp_path),
        "memory_policy=rmem",
    ]
    tasks = ["--launcher", "local", "--num_shards", "3", "--launcher_set", "timeout_min=5"]
    assert verify([*words, *tasks]) == 2
    parsed = parse_arguments(asked[0])
    assert (parsed.launcher, parsed.num_shards, list(parsed.launcher_set)) == ("local", 3, ["timeout_min=5"])
    assert parsed.overrides == ["memory_policy=rmem"] and parsed.dataset == "davis2017"


def test_slurm_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="expected --launcher slurm to start tasks here"):
        launcher.launch(len, (), Cluster(name="slurm"), folder=tmp_path, name="a")
