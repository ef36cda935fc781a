"""A verifier process as its owner sees it."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any

from nemo_ibtpo.rewards import worker
from nemo_ibtpo.rewards.limits import Limits
from nemo_ibtpo.signals import unreached_by_signals

# Whoever starts a process also asks all others for their exit codes. Of two threads that ask for the same one at the
# same time multiprocessing tells one 255, so that a kill from outside would pass for a crash.
_asking_for_exit_codes = threading.Lock()


class CallTimeoutError(Exception):
    """The call took too long; its process is gone."""


class CallCrashError(Exception):
    """The process died of the call."""


class WorkerProcess:
    """One verifier process; takes one call at a time and replaces itself when it dies.

    Processes come from multiprocessing's fork server, which has imported the verifiers once, so that a
    successor is there in milliseconds; never from a fork of this process, which holds threads, gloo and
    perhaps CUDA.

    Args:
        timeout_s: wall-clock limit of a call.
        limits: of the process.
        preload: reward functions that it imports before it takes a call.
        verifiers: that it imports as well; others come when a problem asks for them.
    """

    def __init__(
        self,
        timeout_s: float,
        limits: Limits | None = None,
        preload: Sequence[str] = (),
        verifiers: Sequence[str] = ("exact", "math"),
    ) -> None:
        self._arguments = (timeout_s, limits or Limits(), tuple(preload), tuple(verifiers))
        # multiprocessing would end what is left at exit by SIGTERM, which does not reach it, and wait.
        self._started_last: list[multiprocessing.process.BaseProcess] = []
        Finalize(self, _kill_all, (self._started_last,), exitpriority=1)
        self._start()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The result of ``function(*args)``, computed in the process.

        A process that dies gets a successor. If it was killed from outside (SIGKILL: by the kernel short of memory
        for one), which is no fault of the call, the successor tries once more.

        Raises:
            CallTimeoutError: the call exceeded the limit.
            CallCrashError: the process died of it, or two were killed.
            RuntimeError: the function raised, or no process can be started.
        """
        for _ in range(2):
            self._await_start()
            try:
                self._connection.send((function, args))
                result, error = self._connection.recv()
            except (EOFError, OSError):
                exit_code = self._bury()
                self._start()
                if exit_code == -signal.SIGALRM:
                    raise CallTimeoutError from None
                if exit_code != -signal.SIGKILL:
                    raise CallCrashError from None
                continue
            if error is not None:
                raise RuntimeError(f"the verifier failed:\n{error}")
            return result
        raise CallCrashError

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._bury()

    def _start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(worker.modules(self._arguments[-1]))
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(theirs, *self._arguments), daemon=True)
        resource_tracker.ensure_running()  # on its own: it would unblock the signals
        with _asking_for_exit_codes, unreached_by_signals(), _without_main_module():
            forkserver.ensure_running()
            self._process.start()
        self._started_last[:] = [self._process]
        theirs.close()
        self._started = False

    def _await_start(self) -> None:
        if self._started:
            return
        try:
            self._started = self._connection.recv() == worker.READY
        except (EOFError, OSError):
            raise RuntimeError(f"a verifier process died at its start, exit code {self._bury()}") from None

    def _bury(self) -> int | None:
        self._connection.close()
        wait([self._process.sentinel])
        with _asking_for_exit_codes:
            self._process.join()
            return self._process.exitcode


@contextmanager
def _without_main_module() -> Iterator[None]:
    """A process that is started meanwhile does not run the program of this one once more, with all its imports."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _kill_all(processes: list[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.kill()
