"""A Slurm of one node for a test: controller and node of this machine, on the loopback alone, without munge.

Needs the programs of Debian's slurmctld, slurmd and slurm-client, which `.ci/run` installs where it may.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "squeue", "scontrol")
PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SrunPortRange=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
JobRequeue=1
KillWait=1
MinJobAge=300
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@dataclass(frozen=True)
class SlurmNode:
    """``environment``: of processes that use this Slurm."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=30, check=False)
        return done.stdout + done.stderr

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextmanager
def slurm_node(folder: Path) -> Iterator[SlurmNode]:
    """Start both daemons; they end with the block. AssertionError, with their logs, where the node does not come up."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    ports = {"controller_port": free_port(), "node_port": free_port()}
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, user=getpass.getuser(), folder=folder, **ports))
    node = SlurmNode(folder, {**os.environ, "PATH": PATH, "SLURM_CONF": str(config)})
    stepd = os.path.realpath(shutil.which("slurmstepd", path=PATH))
    commands = (["slurmctld", "-D", "-f", config], ["slurmd", "-D", "-f", config, "-d", stepd])
    daemons = [
        subprocess.Popen(list(map(str, c)), env=node.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for c in commands
    ]
    try:
        _await_idle(node)
        yield node
    finally:
        node.run("scancel", "--user", getpass.getuser())
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _await_idle(node: SlurmNode) -> None:
    patience = time.monotonic() + 30
    while "idle" not in node.run("sinfo", "--noheader", "--format=%T"):
        assert time.monotonic() < patience, f"the node does not come up\n{node.logs()}"
        time.sleep(0.2)
