"""Start ranks for a distributed test and collect what rank 0 wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent


def run_ranks(num_ranks: int, script: str, output: Path, *arguments: str, timeout_s: float = 600) -> Any:
    """Run ``script`` (beside this file) under torchrun on gloo and return the JSON that rank 0 wrote to ``output``.

    Raises:
        AssertionError: a rank failed; the message ends with what it printed.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(_HERE.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    done = subprocess.run(
        [*command, str(_HERE / script), str(output), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{script} failed:\n{(done.stdout + done.stderr)[-6000:]}"
    return json.loads(output.read_text())
