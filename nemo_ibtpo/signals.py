"""Helper processes do not take a signal that is meant for their owner.

torchrun, Slurm and a terminal signal whole process groups or jobs. A rank takes SIGTERM, SIGINT and SIGUSR1 for
requests to stop and goes on to a safe point; what it has started (fork server, verifiers, vLLM) must live until then.
A helper that is started here has these signals blocked from its first instruction on. It ends when its owner closes
the pipe between them, or by SIGKILL.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_MEANT_FOR_THE_OWNER = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}


@contextmanager
def unreached_by_signals() -> Iterator[None]:
    """What this thread starts in the block has the signals blocked; the process itself gets them after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _MEANT_FOR_THE_OWNER)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
