"""Start a run under torchrun, interrupt it in the middle, and see what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

_START_S, _END_S = 180.0, 60.0


class Attempt:
    """One start of ``nemo-ibtpo train`` on two ranks.

    Every process that comes of it carries a mark in its environment, by which those that are left behind are found.
    """

    def __init__(self, recipe: Path, output: Path, *words: str) -> None:
        self._output = output
        self._mark = f"NEMO_IBTPO_TEST={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launcher, "-m", "nemo_ibtpo.cli", "train", f"recipe={recipe}", f"output_dir={output}", *words]
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

        self._wait(ready, _START_S, "the ranks never met")
        return [int(name.rpartition(":")[2]) for name in json.loads(status.read_text())["processes"]]

    def wait_for_step(self, step: int) -> None:
        """Wait until a step has been logged."""
        metrics = self._output / "metrics.jsonl"
        self._wait(
            lambda: metrics.exists() and f'"step": {step},' in metrics.read_text(), _START_S, f"no step {step}"
        )

    def wait(self) -> int:
        """Torchrun's exit status, after which no process of the run may be left."""
        status = self._torchrun.wait(timeout=_START_S)
        deadline = time.monotonic() + _END_S
        while left := self._left():
            assert time.monotonic() < deadline, f"processes left behind: {left}"
            time.sleep(0.2)
        return status

    def _wait(self, condition: Callable[[], bool], limit_s: float, problem: str) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self._torchrun.poll() is None, f"the run ended early:\n{self.said[-6000:]}"
            assert time.monotonic() < deadline, f"{problem}:\n{self.said[-6000:]}"
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


def kill(pids: list[int]) -> None:
    """SIGKILL, to processes that may have gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
