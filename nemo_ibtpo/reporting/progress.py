"""What a run says while it runs: one live line a phase on a terminal, plain lines anywhere else.

Only rank 0 speaks. The other ranks get the same object with a console that writes nowhere, so that the loop needs
no ``if rank == 0``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_PLAIN_PERIOD_S = 10.0  # a log file hears of a long phase so often, and not at all of a shorter one

# Heading, metric and format of the line that closes a step.
_SUMMARY = (
    ("accuracy", "val/accuracy", ".1%"),
    ("reward", "train/avg_rate", ".3f"),
    ("Eff-Rate", "train/eff_rate", ".1%"),
    ("IB-Score", "train/ib_score", "+.3f"),
    ("Cov", "train/cov", "+.4f"),
    ("tokens/s", "perf/tokens_per_s", ",.0f"),
    ("seconds", "perf/step_s", ".1f"),
)


class Phase:
    """Counts the work of one phase; made by ``RunConsole.phase``."""

    def __init__(
        self, name: str, total: int, unit: str, console: Console, live: Progress | None, already: int = 0
    ) -> None:
        self.done = self._already = already
        self._name, self._total, self._unit = name, total, unit
        self._console, self._live = console, live
        self._start = self._told = time.monotonic()
        self._task: TaskID | None = None
        if live is not None:
            self._task = live.add_task(name, total=total, completed=already, unit=unit, rate="")

    @property
    def seconds(self) -> float:
        """Time since the phase began."""
        return time.monotonic() - self._start

    def advance(self, amount: int = 1) -> None:
        """Count finished work."""
        self.done += amount
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=self.done, rate=self._rate())
        elif time.monotonic() - self._told >= _PLAIN_PERIOD_S:
            self._told = time.monotonic()
            self._console.print(self._line(), soft_wrap=True)

    def _line(self) -> str:
        return f"{self._name}: {self.done:,}/{self._total:,} {self._unit} in {self.seconds:.1f} s, {self._rate()}"

    def _rate(self) -> str:
        rate = (self.done - self._already) / max(self.seconds, 1e-9)
        left = f", {timedelta(seconds=round((self._total - self.done) / rate))} left" if rate else ""
        return f"{rate:,.1f} {self._unit}/s{left}"


class _Console(Console):
    """Goes on in silence when its reader has gone (``nemo-ibtpo train ... | head``); rich would end the process."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


class RunConsole:
    """The console of one rank.

    Args:
        rank: only rank 0 writes.
        console: where it writes, instead of standard output.
    """

    def __init__(self, rank: int, console: Console | None = None) -> None:
        silent = Console(quiet=True, force_terminal=False)
        self._console = (console or _Console(highlight=False)) if rank == 0 else silent

    @contextmanager
    def phase(self, name: str, total: int, unit: str, already: int = 0) -> Iterator[Phase]:
        """Report the progress of a phase while its block runs.

        Args:
            name: such as ``rollout``.
            total: work to be counted by ``Phase.advance``.
            unit: of ``total``, plural, such as ``trees``.
            already: work that was done before, and tells nothing about the time that is left.
        """
        if not self._console.is_terminal:
            yield Phase(name, total, unit, self._console, None, already)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as live:
            yield Phase(name, total, unit, self._console, live, already)

    def step(self, step: int, max_steps: int, metrics: Mapping[str, float]) -> None:
        """Print the line that closes a step; what was not measured is left out."""
        cells = [f"step {step}/{max_steps}"]
        cells += [f"{heading} {metrics[name]:{form}}" for heading, name, form in _SUMMARY if name in metrics]
        self.say("  ".join(cells))

    def show(self, table: Table) -> None:
        """Print a table."""
        self._console.print(table)

    def say(self, text: str) -> None:
        """Print a line as it is, in one piece whatever the width."""
        self._console.print(text, markup=False, soft_wrap=True)
