"""Requests to stop: SIGTERM, SIGINT, SIGUSR1 and the end of the time that a run has.

A request is noted, and nothing else happens in the signal's handler; who trains asks at safe points. Since a signal
may reach some ranks only, ranks agree before any of them acts. A second SIGINT (Ctrl-C twice) interrupts at once.

torchrun sends SIGTERM to a rank when another one is gone, too: :func:`was_requested` is how an error that follows
from that is distinguished from an error of the run.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

_REASONS = ("", "trainer.max_time is over", "SIGTERM", "SIGUSR1", "SIGINT")
_POLL_S = 0.05

_received = 0  # index into _REASONS of the newest signal; a process has one set of signal handlers


class StopRequest:
    """Whether this process was asked to stop.

    Args:
        max_seconds: from now on; None has no limit.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds

    def install(self) -> None:
        """Take the signals from now on, those that came before forgotten; only in the main thread."""
        global _received
        _received = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, _note)

    @property
    def code(self) -> int:
        """0 if there is no request, else a number that :func:`reason` puts into words."""
        if _received:
            return _received
        return int(self._deadline is not None and time.monotonic() >= self._deadline)


def was_requested(within_s: float = 0.0) -> bool:
    """Whether a signal has asked this process to stop, or does so within some seconds."""
    deadline = time.monotonic() + within_s
    while not _received and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return bool(_received)


def reason(code: int) -> str:
    """What a :attr:`StopRequest.code` stands for."""
    return _REASONS[code]


def _note(number: int, frame: FrameType | None) -> None:
    global _received
    if number == signal.SIGINT and _REASONS[_received] == "SIGINT":
        raise KeyboardInterrupt
    _received = _REASONS.index(signal.Signals(number).name)
