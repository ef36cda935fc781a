"""A real Slurm cluster of two nodes on this machine, with a configuration and ports of its own.

munged, slurmctld and two slurmd listen on the loopback interface, and all that they write lies in one directory;
nothing of the machine's own Slurm or munge is touched. They are children of a keeper, this file run as a program,
which ends them and every job when its standard input closes: whatever becomes of the tests, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

NODES = ("n0", "n1")
_PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo", "squeue", "scancel")
_READY = "ready"

# NoInAddrAny: daemons and srun listen on the address of this host's name alone.
# cred_expire: a job that is queued again waits until its old credentials have run out, by default for 2 minutes.
_CONF = """\
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={controller_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
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
MinJobAge=86400
InactiveLimit=0
MessageTimeout=60
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no cluster can be started here, None if it can."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge"
    if os.getuid() != 0:
        return "slurmd wants to be started by root"
    address = _address()
    if address is None or not ipaddress.ip_address(address).is_loopback:
        return (
            f"this host's name stands for {address or 'no address'}, where Slurm would listen: give {_host()} a "
            "loopback address in /etc/hosts"
        )
    return None


class Cluster:
    """Two nodes with two CPUs each, up while the context lasts.

    Attributes:
        directory: of everything that Slurm writes; empty before, with a short path, for a socket lies in it.
        environment: for commands that talk to the cluster.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = _environment_of(directory)
        self._keeper: subprocess.Popen[str] | None = None

    def __enter__(self) -> Cluster:
        # In a session of its own, so that Ctrl-C reaches the tests first.
        self._keeper = subprocess.Popen(
            [sys.executable, __file__, str(self.directory)],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        if said.strip() != _READY:
            raise AssertionError(f"no cluster: {said}{self._keeper.communicate()[0]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        assert self._keeper is not None
        said, _ = self._keeper.communicate()  # closes its standard input
        assert self._keeper.returncode == 0, said

    def call(self, *command: str, tries: int = 1) -> str:
        """What a command prints.

        Raises:
            AssertionError: it failed, ``tries`` times.
        """
        for _ in range(tries):
            try:
                return subprocess.run(
                    command, env=self.environment, capture_output=True, text=True, timeout=120, check=True
                ).stdout
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                failure = f"{error} {error.stdout or ''} {error.stderr or ''}"
            time.sleep(1)
        raise AssertionError(failure)

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job, or of a task of an array (``12_0``)."""
        # On a busy machine the controller may not answer at once.
        words = self.call("scontrol", "show", "job", "--oneliner", job, tries=5).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def kill_step(self, node: int, job: str) -> bool:
        """Kill all that the newest step of a job has on its node of that number, at once; whether there was any."""
        steps = {}
        for process in processes_of_jobs(self.directory):
            with contextlib.suppress(psutil.Error):
                about, parent = process.environ(), process.parent()
                here = about.get("SLURM_JOB_ID") == job and about.get("SLURM_NODEID") == str(node)
                if (
                    here
                    and parent is not None
                    and parent.name().startswith("slurmstepd")
                    and "SLURM_STEP_ID" in about
                ):
                    steps[int(about["SLURM_STEP_ID"])] = parent
        if not steps:
            return False
        step = steps[max(steps)]
        _kill([step, *step.children(recursive=True)])
        return True


def processes_of_jobs(directory: Path) -> list[psutil.Process]:
    """What jobs of the cluster in that directory have running, slurmstepd and all."""
    conf = _environment_of(directory)["SLURM_CONF"]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            about = process.environ()
            in_job = "SLURM_JOB_ID" in about or process.name().startswith("slurmstepd")
            if in_job and about.get("SLURM_CONF") == conf and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for(condition: Callable[[], bool], what: Callable[[], str], timeout_s: float = 1500) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not within the time; ends with the end of what ``what`` returns.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s: {what()[-6000:]}"
        time.sleep(0.3)


def _keep(directory: Path) -> None:
    """The keeper: start the daemons, say so, wait, end them and all jobs."""
    daemons: list[subprocess.Popen[bytes]] = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _start(directory, daemons)
        print(_READY, flush=True)
        sys.stdin.read()
    finally:
        _stop(directory, daemons)


def _start(directory: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    def spawn(*command: str) -> None:
        with (directory / f"{len(daemons)}-{command[0]}.out").open("wb") as output:
            daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output))

    def logs() -> str:
        return "".join(f"{path}:\n{path.read_text()[-1500:]}\n" for path in sorted(directory.glob("*.out")))

    directory.chmod(0o755)  # munged wants its socket to be within reach of everybody
    (directory / "state").mkdir()
    controller_port, *ports = _free_ports(1 + len(NODES))
    host, address = _host(), _address()
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} CPUs=2 RealMemory=1024 State=UNKNOWN"
        for node, port in zip(NODES, ports, strict=True)
    )
    conf = _CONF.format(host=host, address=address, controller_port=controller_port, directory=directory, nodes=nodes)
    (directory / "slurm.conf").write_text(conf)
    subprocess.run(["mungekey", "--create", f"--keyfile={directory}/munge.key"], check=True)
    spawn(
        "munged",
        "--foreground",
        "--force",
        f"--key-file={directory}/munge.key",
        f"--socket={directory}/munge.socket",
        f"--pid-file={directory}/munged.pid",
        f"--log-file={directory}/munged.log",
        f"--seed-file={directory}/munged.seed",
    )
    wait_for((directory / "munge.socket").exists, logs, 60)
    spawn("slurmctld", "-D")
    for node in NODES:
        (directory / f"spool-{node}").mkdir()
        spawn("slurmd", "-D", "-N", node)

    def idle() -> bool:
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        assert not dead, f"{dead} ended: {logs()}"
        return _printed("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(NODES)

    wait_for(idle, logs, 120)


def _stop(directory: Path, daemons: list[subprocess.Popen[bytes]]) -> None:
    if len(daemons) > 1:
        _printed("scancel", "--user=root")
        with contextlib.suppress(AssertionError):  # what does not end by itself is killed
            wait_for(lambda: not _printed("squeue", "--noheader").strip(), str, 30)
    _kill(processes_of_jobs(directory))
    for daemon in reversed(daemons):
        daemon.send_signal(signal.SIGTERM)
    for daemon in daemons:
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _printed(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _environment_of(directory: Path) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    return outside | {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": _search_path()}


def _search_path() -> str:
    # Debian keeps daemons out of the path of ordinary users.
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _address() -> str | None:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]))
