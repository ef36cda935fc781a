"""Starts training as a user would: the command line under torchrun, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from nemo_ibtpo.config.errors import UserError

# One thread a rank, because the ranks share the cores; the other is what Megatron asks for with sequence parallelism.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def train(recipe: str, words: Sequence[str], num_ranks: int) -> None:
    """Run ``nemo-ibtpo train recipe=<recipe> <words>`` on ranks of this machine and wait for them.

    The ranks write to this process's standard output and error.

    Raises:
        UserError: the run ended with an error, which it has told.
    """
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    command = [sys.executable, "-m", *torchrun, "-m", "nemo_ibtpo.cli", "train", f"recipe={recipe}", *words]
    with subprocess.Popen(command, env=os.environ | _ENVIRONMENT) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # the terminal has interrupted torchrun too; it ends its ranks
            raise
    if status:
        raise UserError(f"training ended with exit status {status}; the reason is above: {' '.join(command)}")
