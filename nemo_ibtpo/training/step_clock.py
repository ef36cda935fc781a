"""Seconds of a step's phases, and what is derived from them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_ibtpo.collectives import gather_from_all
from nemo_ibtpo.reporting.progress import Phase, RunConsole
from nemo_ibtpo.training.metrics import peak_memory


class StepClock:
    """Measures phases, and shows their progress on the console.

    Attributes:
        seconds: of each phase since the step began, by name.
    """

    def __init__(self, console: RunConsole) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console
        self._began = time.perf_counter()

    def start(self) -> None:
        """A step begins."""
        self.seconds, self._began = {}, time.perf_counter()

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Phase]:
        """Measure a block; arguments as those of ``RunConsole.phase``."""
        began = time.perf_counter()
        with self._console.phase(name, total, unit) as phase:
            yield phase
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def metrics(self, sampled_tokens: int, num_engines: int) -> dict[str, float]:
        """Times, throughput and peak memory of the step until now; a collective over all ranks.

        Args:
            sampled_tokens: drawn in the phase ``rollout``.
            num_engines: that drew them.
        """
        seconds = time.perf_counter() - self._began
        memory = gather_from_all(peak_memory())
        return {f"time/{name}_s": value for name, value in self.seconds.items()} | {
            "perf/step_s": seconds,
            "perf/tokens_per_s": sampled_tokens / seconds,
            "perf/tokens_per_s_per_rank": sampled_tokens / seconds / len(memory),
            "perf/rollout_tokens_per_s_per_engine": sampled_tokens / self.seconds["rollout"] / num_engines,
            **{name: max(own[name] for own in memory) for name in memory[0]},
        }
