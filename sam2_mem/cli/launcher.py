"""``--launcher``: a command started several times, as tasks of Slurm or as processes of this machine, by submitit.

The tasks have the same arguments and share the work by claims (``sam2_mem.claims``), so it does not matter which of them
die: others take over, Slurm starts a pre-empted task again, and the same command goes on with what is left.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

CLUSTERS = ("slurm", "local")
DEFAULTS = {"slurm": {"timeout_min": 60}, "local": {"timeout_min": 365 * 24 * 60}}
"""Of ``update_parameters``. A Slurm task that reaches its time limit is started again and goes on, so a short limit, which is
scheduled early, does no harm."""
MOST_TIMEOUTS = 10_000
POLL = 2.0
"""Seconds between two looks at tasks."""


def add_launcher_arguments(group: argparse._ActionsContainer) -> None:
    """``--launcher`` and ``--launcher_set``; ``--num_shards`` says how many tasks."""
    group.add_argument(
        "--launcher",
        choices=CLUSTERS,
        help="start --num_shards tasks with submitit, as a job array of Slurm or as processes here, that share the work; wait for "
        "them, and report (pip install 'sam2_mem[cluster]')",
    )
    group.add_argument(
        "--launcher_set",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="of submitit's update_parameters, e.g. timeout_min=240 slurm_partition=gpu gpus_per_node=1",
    )


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where tasks run: ``name`` out of ``CLUSTERS``, how many ``tasks``, and submitit's ``parameters`` as ``key=value``."""

    name: str
    tasks: int = 1
    parameters: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> Cluster:
        """As parsed arguments say; ValueError for parameters that are not ``key=value``."""
        stray = [part for part in args.launcher_set if "=" not in part]
        if stray:
            raise ValueError(f"expected --launcher_set as key=value, got {' '.join(stray)}")
        return cls(name=args.launcher, tasks=args.num_shards, parameters=tuple(args.launcher_set))

    def settings(self) -> dict[str, Any]:
        pairs = dict(part.split("=", 1) for part in self.parameters)
        return DEFAULTS[self.name] | {key: int(text) if text.isdecimal() else text for key, text in pairs.items()}


@dataclass(frozen=True)
class Task:
    """What a task runs: ``work`` is a function of a module, so that other processes find it."""

    work: Callable[[Any], int]

    def __call__(self, options: Any) -> int:
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
        return self.work(options)

    def checkpoint(self, options: Any) -> Any:
        """Asked by submitit where a task has reached its time limit: it is to be started again as it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, options)


def launch(work: Callable[[Any], int], options: Any, cluster: Cluster, *, folder: Path, name: str) -> list[str]:
    """Run ``work(options)`` in all tasks and wait until they are over.

    Args:
        work: a function of a module; its result is an exit status, of which 0 and 1 say that it came to its end.
        options: plain values, the same for all tasks.
        cluster: where.
        folder: for logs, seen by all machines.
        name: of the job.

    Returns:
        a line for each task that did not come to its end.

    Raises:
        ValueError: no submitit, no such cluster here, or unknown parameters; all tasks have refused the work or failed.
    """
    executor = _executor(cluster, folder, name)
    jobs = executor.map_array(Task(work), [options] * cluster.tasks)
    names = ", ".join(job.job_id for job in jobs)
    logger.info("%d tasks of %s: %s; their logs are in %s", len(jobs), cluster.name, names, folder)
    try:
        _wait(jobs, cluster)
    except KeyboardInterrupt:
        logger.warning("the tasks %s go on; the same command waits for their results", names)
        raise
    failures = [failure for job in jobs if (failure := _failure(job)) is not None]
    if len(failures) == len(jobs) and not any(failure.from_outside for failure in failures):
        raise ValueError(f"no task has come to its end: {failures[0].text}")
    return [failure.text for failure in failures]


def _executor(cluster: Cluster, folder: Path, name: str) -> Any:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError(
            "expected the package submitit for --launcher, got none; pip install 'sam2_mem[cluster]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(
            folder=folder, cluster=cluster.name, **{f"{cluster.name}_max_num_timeout": MOST_TIMEOUTS}
        )
        executor.update_parameters(name=name, **cluster.settings())
    except (RuntimeError, TypeError, NameError) as error:
        raise ValueError(f"expected --launcher {cluster.name} to start tasks here: {error}") from error
    return executor


def _wait(jobs: Sequence[Any], cluster: Cluster) -> None:
    waiting = list(jobs)
    while waiting:
        time.sleep(POLL)
        queued = _in_queue(waiting) if cluster.name == "slurm" else None
        waiting = [job for job in waiting if not _is_over(job, queued)]


def _is_over(job: Any, queued: set[str] | None) -> bool:
    """``queued``: the tasks that Slurm has yet to start or to end; None where it does not say."""
    if job.paths.result_pickle.exists():
        return True
    return job.done() if queued is None else job.job_id not in queued


def _in_queue(jobs: Sequence[Any]) -> set[str] | None:
    """Asked of the scheduler itself, as not every cluster keeps accounts, and a task that is started again is not over."""
    numbers = ",".join({job.job_id.split("_")[0] for job in jobs})
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={numbers}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "Invalid job id" not in done.stderr:
        logger.warning("squeue: %s", done.stderr.strip())
        return {job.job_id for job in jobs}  # it may answer again
    return set(done.stdout.split())


class TaskFailure(NamedTuple):
    """Why a task did not come to its end; ``from_outside``: it was killed."""

    text: str
    from_outside: bool = False


def _failure(job: Any) -> TaskFailure | None:
    log = job.paths.stderr
    if not job.paths.result_pickle.exists():
        return TaskFailure(f"task {job.job_id} was ended from outside; its log is {log}", from_outside=True)
    try:
        status = job.result()
    except Exception as error:  # whatever the task has raised
        return TaskFailure(f"task {job.job_id} has failed, see {log}: {str(error).strip().splitlines()[-1]}")
    if status in (0, 1):
        return None
    return TaskFailure(f"task {job.job_id} ended with status {status}, see {log}:\n{_last_error(log)}")


def _last_error(log: Path) -> str:
    """What a command has said before it ended with status 2."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return text[text.rfind("error: ") :].strip() if "error: " in text else ""
