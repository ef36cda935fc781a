"""Whether the nodes of a job can train together, found out in seconds instead of during a run.

    torchrun ... -m nemo_ibtpo.launch.preflight --directory DIR [--device auto|cpu|cuda]

Looks at: a GPU for every rank that a second process may use and that the compiler works for, room in /dev/shm, the
same software on all nodes, a directory that all nodes share in both directions, and all-reduces over gloo and, on
GPUs, NCCL. Rank 0 prints the report and writes it to ``DIR/preflight.txt``; a line that begins with ``problem:`` says
what is wrong, where, and what would be right; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import secrets
import shutil
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist

import nemo_ibtpo
from nemo_ibtpo.collectives import from_rank_0, gather_from_all
from nemo_ibtpo.launch.gpu_probe import try_second_process

REPORT = "preflight.txt"
_PACKAGES = ("torch", "megatron-core", "transformers", "vllm", "transformer-engine")
_TIMEOUT_S = 120.0  # for a first collective over the network, which opens its connections
_SHARED_S = 30.0  # network file systems may show a new file late
_MIB = 64  # of one all-reduce
_SHM = Path("/dev/shm")
_SHM_MIB = 1024  # vLLM takes 160 MiB for an engine on several GPUs, NCCL some MiB a rank; Docker gives 64 MiB
_REPEATS = 5


@dataclass(frozen=True)
class Node:
    """What the first rank of a node finds there.

    Attributes:
        host: name of the machine.
        local_ranks: ranks that are started on it.
        gpus: names of the GPUs that they see.
        shm_mib: size of /dev/shm in MiB.
        versions: of what has to be the same everywhere.
    """

    host: str
    local_ranks: int
    gpus: tuple[str, ...]
    shm_mib: int
    versions: Mapping[str, str]


def look(local_ranks: int) -> Node:
    """This node."""
    gpus = tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    versions = {name: _version(name) for name in _PACKAGES}
    versions |= {"python": platform.python_version(), "nemo_ibtpo": f"{nemo_ibtpo.__version__} ({code_digest()})"}
    if gpus:
        versions |= {
            "CUDA": str(torch.version.cuda),
            "NCCL": ".".join(str(part) for part in torch.cuda.nccl.version()),
        }
    shm_mib = shutil.disk_usage(_SHM).total // 2**20 if _SHM.is_dir() else 0
    return Node(socket.gethostname(), local_ranks, gpus, shm_mib, versions)


def code_digest() -> str:
    """Eight digits that change with the code of this package: a version does not tell two checkouts apart."""
    package = Path(nemo_ibtpo.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def problems_of(nodes: Sequence[Node], device: str) -> list[str]:
    """What is wrong with the nodes as they are.

    Args:
        nodes: all of them.
        device: ``cpu``, ``cuda`` or ``auto``, which takes GPUs where there are any.
    """
    found = []
    if device == "cuda" or (device == "auto" and any(node.gpus for node in nodes)):
        found += [
            f"{node.host} shows {len(node.gpus)} GPUs, but {node.local_ranks} ranks are to run there: ask Slurm for "
            f"--gpus-per-node={node.local_ranks}, or check the node's GPUs"
            for node in nodes
            if len(node.gpus) < node.local_ranks
        ]
        found += [
            f"{node.host} has {node.shm_mib} MiB in {_SHM}, where NCCL and vLLM's processes share data; give it at "
            f"least {_SHM_MIB}: docker run --ipc=host, or --shm-size"
            for node in nodes
            if node.shm_mib < _SHM_MIB
        ]
        models = _by_value((node.host, ", ".join(sorted(set(node.gpus)))) for node in nodes)
        if len(models) > 1:
            found.append(f"the nodes have different GPUs: {_listed(models)}; ask for nodes of one kind")
    for name in sorted({name for node in nodes for name in node.versions}):
        versions = _by_value((node.host, node.versions.get(name, "not there")) for node in nodes)
        if len(versions) > 1:
            found.append(
                f"{name} differs between nodes: {_listed(versions)}; give all of them the same container, "
                "environment and checkout"
            )
    return found


def find_unshared(directory: Path, token: str, writer: bool) -> list[str]:
    """Whether every node sees what every other node writes to the directory; what is wrong, on all ranks alike.

    Args:
        directory: to be shared.
        token: of this check, the same on all ranks.
        writer: whether this rank speaks for its node.
    """
    rank, host = dist.get_rank(), socket.gethostname()
    name = f".preflight-{token}"
    mine = directory / f"{name}-{rank}"
    wrong: str | None = None
    if writer:
        try:
            mine.write_text(host)
        except OSError as error:
            wrong = f"{host} cannot write to {directory}: {error.strerror}"
    writers = gather_from_all((rank, host) if writer and wrong is None else None)
    unseen = dict(entry for entry in writers if entry is not None)
    deadline = time.monotonic() + _SHARED_S
    while writer and wrong is None and unseen:
        present = {path.name for path in directory.glob(f"{name}-*")}
        unseen = {other: host for other, host in unseen.items() if f"{name}-{other}" not in present}
        if unseen and time.monotonic() > deadline:
            wrong = (
                f"{host} does not see the files that {', '.join(sorted(set(unseen.values())))} writes to "
                f"{directory}: output_dir has to be on a file system that all nodes share, and in a container mounted"
            )
        if unseen and wrong is None:
            time.sleep(0.5)
    answers = _from_all_ranks(wrong)
    mine.unlink(missing_ok=True)
    return answers


def _from_all_ranks(wrong: str | None) -> list[str]:
    return [answer for answer in gather_from_all(wrong) if answer is not None]


def try_all_reduce(device: torch.device, group: dist.ProcessGroup) -> tuple[str | None, float]:
    """Sum over all ranks on a device; what is wrong on this rank, and the bandwidth in GB/s of each rank (an
    all-reduce moves 2 (n - 1) / n times its size).

    A network that does not work lets NCCL wait for long inside a call, hence the thread.
    """
    result: list[float] = []
    failure: list[str] = []

    def reduce() -> None:
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            result.append(_timed_all_reduce(device, group))
        except Exception as error:
            failure.append(" ".join(str(error).split())[:500])

    thread = threading.Thread(target=reduce, daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    backend = dist.get_backend(group)
    advice = f"choose the network with {backend.upper()}_SOCKET_IFNAME in slurm/cluster.sh"
    if failure:
        return f"an all-reduce over {backend} failed on {socket.gethostname()}: {failure[0]}; {advice}", 0.0
    if not result:
        return (
            f"an all-reduce over {backend} did not end on {socket.gethostname()} within {_TIMEOUT_S:.0f} s; "
            f"{advice}, and see more with NCCL_DEBUG=INFO",
            0.0,
        )
    return None, result[0]


def _timed_all_reduce(device: torch.device, group: dist.ProcessGroup) -> float:
    ranks = dist.get_world_size(group)
    values = torch.full((_MIB * 2**18,), float(dist.get_rank(group) + 1), device=device)
    dist.all_reduce(values, group=group)
    low, high = values.aminmax()
    expected = ranks * (ranks + 1) / 2
    if low.item() != expected or high.item() != expected:
        raise ValueError(f"the sum of 1 to {ranks} came out between {low.item()} and {high.item()}")
    started = time.perf_counter()
    for _ in range(_REPEATS):
        dist.all_reduce(values, group=group)
    values[0].item()  # waits for the device
    seconds = (time.perf_counter() - started) / _REPEATS
    return 2 * (ranks - 1) / ranks * values.numel() * values.element_size() / seconds / 1e9


def check(directory: Path, device: str) -> tuple[list[str], list[str]]:
    """Run all checks; findings and problems, the same on all ranks."""
    local_rank, local_ranks = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    nodes = gather_from_all(look(local_ranks) if local_rank == 0 else None)
    known = [node for node in nodes if node is not None]
    findings = [f"{node.host}: {node.local_ranks} ranks, {_gpus(node.gpus)}" for node in known]
    findings.append(", ".join(f"{name} {version}" for name, version in sorted(known[0].versions.items())))
    problems = problems_of(known, device)

    token = from_rank_0(partial(secrets.token_hex, 4))
    unshared = find_unshared(directory, token, local_rank == 0)
    problems += unshared
    if not unshared:
        findings.append(f"{directory} is shared by all nodes")

    groups = [("gloo", torch.device("cpu"))]
    if not problems and device != "cpu" and known[0].gpus:
        place = torch.device("cuda", local_rank)
        groups.append(("nccl", place))
        wrong = _from_all_ranks(try_second_process(place, compiles=local_rank == 0))
        problems += wrong
        if not wrong:
            findings.append("a second process may use every GPU, and attention compiles")
    for backend, place in groups:
        group = dist.new_group(backend=backend, timeout=timedelta(seconds=_TIMEOUT_S))
        answers = gather_from_all(try_all_reduce(place, group))
        wrong = [answer for answer, _ in answers if answer is not None]
        problems += wrong
        if not wrong:
            slowest = min(bandwidth for _, bandwidth in answers)
            findings.append(f"all-reduce of {_MIB} MiB over {backend}: right, {slowest:.2g} GB/s a rank")
    return findings, problems


def main(argv: Sequence[str]) -> int:
    """Check the nodes under torchrun; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nemo_ibtpo.launch.preflight", allow_abbrev=False)
    parser.add_argument("--directory", type=Path, required=True, metavar="DIR", help="that all nodes have to share")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the run's actor")
    arguments = parser.parse_args(argv)
    if "RANK" not in os.environ:
        parser.error("start it under torchrun")
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))  # a first compilation included
    findings, problems = check(arguments.directory, arguments.device)
    if dist.get_rank() == 0:
        report = "\n".join([*findings, *(f"problem: {problem}" for problem in problems)])
        print(report, flush=True)
        try:
            (arguments.directory / REPORT).write_text(report + "\n")
        except OSError as error:
            print(f"problem: {arguments.directory / REPORT}: {error.strerror}", file=sys.stderr)
    dist.barrier()  # nobody leaves, which would end the others, before the report is written
    return 1 if problems else 0


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus(names: Sequence[str]) -> str:
    counted = {name: names.count(name) for name in names}
    return ", ".join(f"{count} x {name}" for name, count in counted.items()) or "no GPU"


def _by_value(values: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    hosts = defaultdict(list)
    for host, value in values:
        hosts[value].append(host)
    return dict(hosts)


def _listed(hosts: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{value or 'none'} on {', '.join(names)}" for value, names in hosts.items())


def _leave(status: int) -> None:
    # A thread that waits inside NCCL would keep the process.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main(sys.argv[1:]))
