"""Start ranks for a test and collect what rank 0 wrote, or what all of them printed."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
ROOT = _HERE.parents[1]


def run_ranks(num_ranks: int, script: str, output: Path, *arguments: str, timeout_s: float = 600) -> Any:
    """Run ``script`` (beside this file) on ranks over gloo and return the JSON that rank 0 wrote to ``output``.

    Raises:
        AssertionError: a rank failed; the message ends with what the ranks printed.
    """
    start_ranks(num_ranks, [str(_HERE / script), str(output), *arguments], output.with_suffix(".log"), timeout_s)
    return json.loads(output.read_text())


def start_ranks(num_ranks: int, argv: list[str], log: Path, timeout_s: float = 600) -> str:
    """Run the script ``argv[0]`` on ranks until all have ended; what they printed, which is in ``log`` as well.

    Raises:
        AssertionError: a rank failed.
    """
    failed, said = try_ranks(num_ranks, argv, log, timeout_s)
    assert not failed, f"{Path(argv[0]).name}: {'; '.join(failed)}\n{said[-6000:]}"
    return said


def command_line(*arguments: str) -> list[str]:
    """What :func:`try_ranks` runs for ``nemo-ibtpo <arguments>``."""
    return [str(ROOT / "nemo_ibtpo" / "cli.py"), *arguments]


def try_ranks(
    num_ranks: int, argv: list[str], log: Path, timeout_s: float = 600, *, directory: Path = ROOT, **environment: str
) -> tuple[list[str], str]:
    """As :func:`start_ranks`; the ranks that failed and how, and what all of them printed."""
    log.unlink(missing_ok=True)  # ranks append
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    where = {"directory": str(directory), "environment": environment}
    request = {"num_ranks": num_ranks, "argv": argv, "log": str(log), "timeout_s": timeout_s, **where}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    said = log.read_text() if log.exists() else ""
    assert answer, f"the server of ranks died:\n{said[-6000:]}"
    return json.loads(answer)["failed"], said


@cache
def _server() -> subprocess.Popen[str]:
    paths = [str(_HERE.parent), os.environ.get("PYTHONPATH", "")]
    # A process that forks may have no other threads; pyarrow would start one.
    environment = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    server = subprocess.Popen(
        [sys.executable, str(_HERE / "rank_server.py")],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server
