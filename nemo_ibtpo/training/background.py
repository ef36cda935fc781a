"""Work beside training: one function at a time in a thread, on all ranks together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

from nemo_ibtpo.collectives import from_all

Value = TypeVar("Value")


class Background(Generic[Value]):
    """Runs a function in a thread. Making it is a collective over all ranks.

    Args:
        timeout_s: of a collective in the thread.

    Attributes:
        group: of all ranks, over gloo; for the collectives in the thread, and for nothing else.
    """

    def __init__(self, timeout_s: float) -> None:
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self._thread: threading.Thread | None = None
        self._value: Value | None = None
        self._failure: Exception | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a function was started whose result has not been asked for with success; alike on all ranks."""
        return self._thread is not None

    def start(self, function: Callable[[], Value]) -> None:
        """Start the function on this rank; the one before has ended."""
        assert self._thread is None
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def run() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)  # a thread begins with the first one
                self._value = function()
                self._failure = None
            except Exception as error:
                self._failure = error

        self._failure = RuntimeError("the thread in the background has ended early")
        self._thread = threading.Thread(target=run, name="background")
        self._thread.start()

    def result(self, *, wait: bool) -> Value | None:
        """What the function returned on this rank, None while a rank still runs it; a collective over all ranks.

        Raises:
            UserError: the function raised one on some rank; on every rank.
            RuntimeError: it raised something else; on every rank.
        """
        thread = self._thread
        assert thread is not None
        if wait:
            thread.join()

        def has_ended() -> bool:
            ended = not thread.is_alive()
            if ended and self._failure is not None:
                raise self._failure
            return ended

        if not all(from_all(has_ended)):
            return None
        self._thread = None
        return self._value

    def close(self) -> None:
        """Wait for the thread whatever becomes of its function; no collective."""
        if self._thread is not None:
            self._thread.join()
