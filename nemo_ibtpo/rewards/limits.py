"""What a worker process may do: memory, files, network."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


@dataclass(frozen=True)
class Limits:
    """Limits of a process.

    Attributes:
        memory_bytes: what may be allocated on top of what is there when the limits begin.
        files: whether files may be written.
        network: whether connections may be made.
    """

    memory_bytes: int = 1 << 30
    files: bool = False
    network: bool = False


def limit_process(limits: Limits) -> None:
    """Limit this process and those that it starts; there is no way back."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each of its threads takes address space
    pages_mapped = int(Path("/proc/self/statm").read_text().split()[0])
    address_space = pages_mapped * resource.getpagesize() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not limits.files:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if not limits.network:
        leave_network()
        sys.addaudithook(_refuse_network)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def leave_network() -> bool:
    """Move this process into a network of its own, without a device; whether the kernel lets it."""
    libc = ctypes.CDLL(None, use_errno=True)
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    # A line that says what to do, where the kernel would say that the network is unreachable.
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise PermissionError("reward functions have no network; set reward.network=true if they are to have one")
