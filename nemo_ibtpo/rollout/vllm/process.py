"""The operating-system process that vLLM runs in, as its owner sees it.

A process of its own keeps vLLM's threads, settings and process groups away from Megatron's, and can be killed when it
hangs. It is started as a program, never forked; nothing of torchrun's environment reaches it. Two threads move
messages, so that neither side ever waits for the other to read; a process that is stopped cannot stop its owner.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import psutil

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.rollout.vllm.compat import CPU_SETTINGS, SETTINGS
from nemo_ibtpo.rollout.vllm.messages import FromProcess, Start, ToProcess
from nemo_ibtpo.signals import unreached_by_signals

# What torchrun tells its ranks; vLLM would take it for its own.
_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCH_NCCL_ASYNC_ERROR_HANDLING"}
# What Megatron wants of its own CUDA context; it would keep vLLM's copies from going on beside its kernels.
_ACTORS = {"CUDA_DEVICE_MAX_CONNECTIONS"}
_TORCHRUN_PREFIXES = ("MASTER_", "TORCHELASTIC_", "GROUP_", "ROLE_")
_SETTINGS = SETTINGS | {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CPU_SETTINGS = CPU_SETTINGS | {
    # Memory of old weights is taken for new ones, instead of being given back and zeroed by the kernel.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
_JOIN_S = 5.0
_GROUP_END_S = 60.0  # to free the memory of a GPU, and then some


class EndedError(Exception):
    """The process is gone; the message says how it ended."""


class RefusedError(EndedError):
    """It could not make the engine; the message says why."""


class VLLMProcess:
    """A running ``nemo_ibtpo.rollout.vllm.worker``.

    Args:
        start: what it is to make.
        log_path: takes what vLLM prints.
        devices: value of CUDA_VISIBLE_DEVICES, None to leave it.

    Attributes:
        last_heard: monotonic time of its last message, or of its start.
    """

    def __init__(self, start: Start, log_path: Path, devices: str | None) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, log_path.open("ab") as log, unreached_by_signals():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nemo_ibtpo.rollout.vllm.worker", str(theirs.fileno())],
                env=_environment(devices) | (_CPU_SETTINGS if start.device == "cpu" else {}),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that processes of its own are killed with it
            )
            self._connection = Connection(ours.detach())
        self._inbox: SimpleQueue[FromProcess | None] = SimpleQueue()
        self._outbox: SimpleQueue[Start | ToProcess | None] = SimpleQueue()
        self.last_heard = time.monotonic()
        self._threads = [Thread(target=target, daemon=True) for target in (self._read, self._write)]
        for thread in self._threads:
            thread.start()
        self._outbox.put(start)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: ToProcess) -> None:
        """Hand over a message without waiting for it to be read."""
        self._outbox.put(message)

    def receive(self, timeout_s: float) -> FromProcess | None:
        """The next message; None if there is none within the time.

        Raises:
            EndedError: the process is gone and so are all its messages.
        """
        try:
            message = self._inbox.get(timeout=timeout_s)
        except Empty:
            return None
        if message is None:
            self._inbox.put(None)
            raise EndedError(self._how_it_ended())
        return message

    def kill(self) -> None:
        """End it at once, with the processes it has started, and wait until all are gone: some hold GPU memory.

        Raises:
            UserError: one does not end.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        await_group_end(self._process.pid, _GROUP_END_S)
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(timeout=_JOIN_S)
        self._connection.close()

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                self.last_heard = time.monotonic()
                self._inbox.put(message)
        except (EOFError, OSError):
            self._inbox.put(None)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reading side tells that the process is gone
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"it was killed by {signal.Signals(-status).name}" if status < 0 else f"it exited with status {status}"


def await_group_end(group: int, timeout_s: float) -> None:
    """Wait until no process of a process group is left but zombies, which hold nothing.

    Raises:
        UserError: one is left after the time.
    """
    deadline = time.monotonic() + timeout_s
    while left := _members(group):
        if time.monotonic() > deadline:
            raise UserError(
                f"process {left[0]} of vLLM did not end within {timeout_s:g} s of SIGKILL and may hold GPU memory; "
                "look at its state (ps), and restart the node if its driver hangs"
            )
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


def _environment(devices: str | None) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _TORCHRUN | _ACTORS and not name.startswith(_TORCHRUN_PREFIXES)
    }
    return kept | _SETTINGS | ({} if devices is None else {"CUDA_VISIBLE_DEVICES": devices})
