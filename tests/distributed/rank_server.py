"""A process that has imported Megatron once and forks the ranks of one test after the other from there.

Importing takes a rank some seconds of a core, which four ranks pay for every launch under torchrun; forked ranks pay
nothing. They are processes with the environment that torchrun gives (``env://``), over the same gloo. What torchrun
itself does is covered where tests start it: ``test_preflight.py``, ``test_evaluation.py``, ``e2e/test_demo.py``,
``tests/crash``.

Reads a JSON object a line from standard input (the arguments of :func:`run`) and answers each with one (``failed``:
the ranks that failed and how). Ends with its input.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

PRELOAD = ["nemo_ibtpo.training.run", "nemo_ibtpo.conversion.convert", "toy_models"]


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for module in PRELOAD:
        import_module(module)
    gc.freeze()  # a rank's collector leaves alone what was imported
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork would lose all but one, and the locks that they hold"
    for line in sys.stdin:
        print(json.dumps({"failed": run(**json.loads(line))}), file=answers, flush=True)


def run(
    num_ranks: int, argv: list[str], log: str, timeout_s: float, directory: str, environment: dict[str, str]
) -> list[str]:
    """Run ranks to their end in a directory; what went wrong. The first failure ends the others."""
    os.chdir(directory)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = {fork(rank, num_ranks, port, argv, log, environment): rank for rank in range(num_ranks)}
    deadline = time.monotonic() + timeout_s
    failed: list[str] = []
    running, owner = dict(ranks), os.getppid()
    while running and not failed:
        time.sleep(0.02)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                rank = running.pop(pid)
                if status:
                    failed.append(f"rank {rank} ended with {os.waitstatus_to_exitcode(status)}")
        if running and time.monotonic() > deadline:
            failed.append(f"ranks {sorted(running.values())} still ran after {timeout_s:.0f} s")
        if os.getppid() != owner:
            failed.append("nobody waits for them any more")
    for pid in ranks:  # with the processes that it started
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for pid in running:
        os.waitpid(pid, 0)
    return failed


def fork(rank: int, num_ranks: int, port: int, argv: list[str], log: str, environment: dict[str, str]) -> int:
    """Start a rank that runs the script ``argv[0]``; its process id, which is that of its group, too."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        os.environ |= environment | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        become(argv, log)
    return pid


def become(argv: list[str], log: str) -> NoReturn:
    """Run a script in this process as Python would, and leave."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()  # a rank that ends by a signal says where it was
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    status: Any = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as leaving:
        status = leaving.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    serve()
