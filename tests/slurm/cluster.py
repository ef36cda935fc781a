"""A real Slurm cluster of two nodes on this machine, with a configuration and ports of its own.

munged, slurmctld and two slurmd run as children of the test, in the foreground, on the loopback interface; everything
they write lies in one temporary directory. Nothing of the machine's own Slurm or munge is touched.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import psutil

_DAEMONS = ("munged", "mungekey", "slurmctld", "slurmd")
_COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n0", "n1")
ADVICE = "apt-get install -y slurm-wlm munge"

# cred_expire: a job that is queued again waits until its old credentials have run out, by default for 2 minutes.
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=1
ReturnToService=2
KillWait=10
InactiveLimit=0
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no cluster can be started here, None if it can."""
    path = _search_path()
    missing = [name for name in (*_DAEMONS, *_COMMANDS) if shutil.which(name, path=path) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing): {ADVICE}"
    if os.getuid() != 0:
        return "slurmd wants to be started by root"
    return None


class Cluster:
    """Two nodes with two CPUs each, up while the context lasts.

    Attributes:
        environment: for commands that talk to the cluster.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = os.environ | {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": _search_path()}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop()

    def call(self, *command: str, timeout_s: float = 60) -> str:
        """What a command prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: int) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        words = self.call("scontrol", "show", "job", "--oneliner", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def kill_step(self, node: int, job: int) -> bool:
        """Kill all that the newest step of a job has on its node of that number, at once; whether there was any."""
        tasks = {}
        for process in self.processes_of_jobs():
            about = _environment(process)
            if (about.get("SLURM_JOB_ID"), about.get("SLURM_NODEID")) != (str(job), str(node)):
                continue
            parent = process.parent()
            if "SLURM_STEP_ID" in about and parent is not None and parent.name().startswith("slurmstepd"):
                tasks[int(about["SLURM_STEP_ID"])] = parent
        if not tasks:
            return False
        step = tasks[max(tasks)]
        for process in [step, *step.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return True

    def processes_of_jobs(self) -> list[psutil.Process]:
        """What this cluster's jobs have running."""
        conf = str(self.directory / "slurm.conf")
        mine = {daemon.pid for daemon in self._daemons} | {os.getpid()}
        return [
            process
            for process in psutil.process_iter()
            if process.pid not in mine and _environment(process).get("SLURM_CONF") == conf
        ]

    def _start(self) -> None:
        directory = self.directory
        directory.chmod(0o755)  # munged and users' jobs reach their files through it
        (directory / "state").mkdir()
        controller_port, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1024 State=UNKNOWN"
            for node, port in zip(NODES, ports, strict=True)
        )
        conf = _CONF.format(
            host=host, user=getpass.getuser(), controller_port=controller_port, directory=directory, nodes=nodes
        )
        (directory / "slurm.conf").write_text(conf)
        self.call("mungekey", "--create", f"--keyfile={directory}/munge.key")
        self._spawn(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={directory}/munge.key",
            f"--socket={directory}/munge.socket",
            f"--pid-file={directory}/munged.pid",
            f"--log-file={directory}/munged.log",
            f"--seed-file={directory}/munged.seed",
        )
        _wait_for((directory / "munge.socket").exists, 10, "munged")
        self._spawn("slurmctld", "-D")
        for node in NODES:
            self._spawn("slurmd", "-D", "-N", node)
        _wait_for(self._is_idle, 60, f"the nodes; see {directory}/slurmctld.log")

    def _is_idle(self) -> bool:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split() == ["idle"] * len(NODES)

    def _spawn(self, *command: str) -> None:
        with (self.directory / f"{len(self._daemons)}-{command[0]}.out").open("wb") as output:
            daemon = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._daemons.append(daemon)

    def _stop(self) -> None:
        if len(self._daemons) > 2:
            subprocess.run(["scancel", f"--user={getpass.getuser()}"], env=self.environment, check=False, timeout=30)
            _wait_for(self._has_no_jobs, 60, "jobs to end")
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def _has_no_jobs(self) -> bool:
        done = subprocess.run(
            ["squeue", "--noheader"], env=self.environment, capture_output=True, text=True, check=False, timeout=30
        )
        return done.returncode != 0 or not done.stdout.strip()


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        environment: dict[str, str] = process.environ()
    except psutil.Error:
        return {}
    return environment


def _search_path() -> str:
    # Debian keeps daemons out of the path of ordinary users.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_for(condition: object, timeout_s: float, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.2)
