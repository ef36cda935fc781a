"""Start ranks for a distributed test and collect what rank 0 wrote."""

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
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    request = {"num_ranks": num_ranks, "argv": argv, "log": str(log), "timeout_s": timeout_s}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    said = log.read_text() if log.exists() else ""
    assert answer, f"the server of ranks died:\n{said[-6000:]}"
    failed = json.loads(answer)["failed"]
    assert not failed, f"{Path(argv[0]).name}: {'; '.join(failed)}\n{said[-6000:]}"
    return said


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
