"""A Slurm cluster of one node from Debian's packages (slurm-wlm, munge), in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
CONFIGURATION = """
ClusterName=qpeft
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.pid
SlurmdLogFile={folder}/slurmd.log
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=300
PlugStackConfig={folder}/plugstack.conf
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class Cluster:
    """Started with `start`, ended with `stop`; `environment` is what its commands need."""

    def __init__(self, folder: Path) -> None:
        missing = [name for name in PROGRAMS if shutil.which(name, path=self._path()) is None]
        if missing:
            pytest.skip(f"no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
        if os.getuid():
            pytest.skip("slurmd starts as root only")
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": self._path()}
        self._daemons: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def _path() -> str:
        return f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/usr/bin"

    def start(self) -> None:
        """Start munged, slurmctld and slurmd, and wait until the node is idle."""
        folder = self.folder
        for name in ("spool", "state", "munge"):
            (folder / name).mkdir(mode=0o700)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (folder / "plugstack.conf").touch()
        controller, node = _free_ports(2)
        host = socket.gethostname().partition(".")[0]
        values = {"folder": folder, "host": host, "controller_port": controller, "node_port": node, "cpus": os.cpu_count()}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
        munge = folder / "munge"
        self._run("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
                  f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed")  # fmt: skip
        self._wait(lambda: (folder / "munge.socket").exists())
        self._run("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        self._run("slurmd", "-D", "-N", "node1", "-f", str(folder / "slurm.conf"))
        self._wait(lambda: "idle" in self.command("sinfo", "--noheader", "--format=%T", check=False))

    def _run(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            daemon = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._daemons.append(daemon)

    def _wait(self, ready: object, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready():  # type: ignore[operator]
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def command(self, *command: str, check: bool = True) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, done.stderr + self.logs()
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The job's state, such as RUNNING."""
        return self.command("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T")

    def logs(self) -> str:
        """The ends of all logs."""
        found = [*sorted(self.folder.glob("*.log")), *sorted(self.folder.glob("*.out"))]
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in found)

    def stop(self) -> None:
        """End the daemons, the last one first."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
