"""Start a run under torchrun, interrupt it in the middle, and see what is left.

Limits are in processor time of the run, so that a busy machine makes no difference, and in the time that it may stand
still.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

_PROCESSOR_S = 300.0  # an undisturbed run of the tests here takes 60
_STILL_S = 120.0
_SCRIPT = Path(__file__).resolve().parents[1] / "patient_ranks.py"
_TICKS = os.sysconf("SC_CLK_TCK")


class Attempt:
    """One start of ``nemo-ibtpo train`` on two ranks.

    Every process that comes of it carries a mark in its environment, by which those that are left behind are found.
    The command line is started by ``patient_ranks.py``, so that runs which carry trees over can be compared to the
    last bit.
    """

    def __init__(self, recipe: Path, output: Path, *words: str) -> None:
        self._output = output
        self._mark = f"NEMO_IBTPO_TEST={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launcher, str(_SCRIPT), "train", f"recipe={recipe}", f"output_dir={output}", *words]
        self._log = output.with_suffix(".log")
        self._began = time.time()
        with self._log.open("w") as log:
            self._torchrun = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | {"OMP_NUM_THREADS": "1", name: value},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def launcher(self) -> int:
        """Process id of torchrun."""
        return self._torchrun.pid

    def ranks(self) -> list[int]:
        """Process ids of the ranks, once they have met."""
        status = self._output / "status.json"

        def ready() -> bool:
            return status.exists() and status.stat().st_mtime > self._began and "processes" in status.read_text()

        self._wait(ready, "the ranks never met")
        return [int(name.rpartition(":")[2]) for name in json.loads(status.read_text())["processes"]]

    def last_step(self) -> int:
        """The highest step that has been logged, 0 before the first."""
        metrics = self._output / "metrics.jsonl"
        logged = metrics.read_text() if metrics.exists() else ""
        return max((int(number) for number in re.findall(r'"step": (\d+),', logged)), default=0)

    def wait_for_step(self, step: int, at_most_s: float = math.inf) -> None:
        """Wait until a step has been logged, or for so many seconds."""
        end = time.monotonic() + at_most_s
        self._wait(lambda: self.last_step() >= step or time.monotonic() > end, f"no step {step}")

    def wait_for_line(self, text: str) -> None:
        """Wait until the run has said something."""
        self._wait(lambda: text in self.said, f"never said {text!r}")

    def wait(self) -> int:
        """Torchrun's exit status, after which no process of the run may be left."""
        limits = _Limits(self._left)
        while self._torchrun.poll() is None:
            limits.check(f"does not end:\n{self.said[-6000:]}")
            time.sleep(0.2)
        limits = _Limits(self._left)
        while left := self._left():
            limits.check(f"processes left behind: {left}")
            time.sleep(0.2)
        return self._torchrun.returncode

    def _wait(self, condition: Callable[[], bool], problem: str) -> None:
        limits = _Limits(self._left)
        while not condition():
            assert self._torchrun.poll() is None, f"the run ended early:\n{self.said[-6000:]}"
            limits.check(f"{problem}:\n{self.said[-6000:]}")
            time.sleep(0.02)

    def _left(self) -> dict[int, str]:
        found = {}
        for directory in Path("/proc").iterdir():
            if directory.name.isdecimal():
                try:
                    if self._mark.encode() in (directory / "environ").read_bytes().split(b"\0"):
                        found[int(directory.name)] = (directory / "cmdline").read_text().replace("\0", " ")[:200]
                except OSError:  # it has just gone, or is a zombie of somebody else
                    continue
        return found


class _Limits:
    """What a group of processes may take from now on.

    Args:
        processes: those that are there, by process id.
    """

    def __init__(self, processes: Callable[[], dict[int, str]]) -> None:
        self._processes = processes
        self._began = self._used = self._processor_s()
        self._last_moved = self._looked = time.monotonic()

    def check(self, problem: str) -> None:
        """Fail if a limit is exceeded; looks every few seconds only."""
        if time.monotonic() < self._looked + 3:
            return
        self._looked = time.monotonic()
        used = self._processor_s()
        if used != self._used:
            self._used, self._last_moved = used, self._looked
        assert used - self._began < _PROCESSOR_S, problem
        assert self._looked - self._last_moved < _STILL_S, problem

    def _processor_s(self) -> float:
        total = 0
        for pid in self._processes():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS


def kill(pids: list[int]) -> None:
    """SIGKILL, to processes that may have gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
