"""Requests to stop: SIGTERM, SIGUSR1 and the end of the time that a run has.

A request is noted, and nothing else happens in the signal's handler; who trains asks at safe points. Since a signal
may reach some ranks only, ranks agree before any of them acts.
"""

from __future__ import annotations

import signal
import time
from types import FrameType

_REASONS = ("", "trainer.max_time is over", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Whether this process was asked to stop.

    Args:
        max_seconds: from now on; None has no limit.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._signal = 0

    def install(self) -> None:
        """Take the signals; only in the main thread."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGUSR1, self._note)

    @property
    def code(self) -> int:
        """0 if there is no request, else a number that :func:`reason` puts into words."""
        if self._signal:
            return self._signal
        return int(self._deadline is not None and time.monotonic() >= self._deadline)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = _REASONS.index(signal.Signals(number).name)


def reason(code: int) -> str:
    """What a :attr:`StopRequest.code` stands for."""
    return _REASONS[code]
