"""How the benchmarks measure time and memory, and how they report.

Sides that are compared run in turn within one process, so that both see the same machine, and the reported ratio is
the median of the ratios of neighbouring runs. On a CPU they use one thread: two threads wait for each other whenever
another program takes one of the cores. Memory is the growth of the peak above what was there before: on a GPU
what the allocator handed out, on a CPU (Linux with glibc) the resident set of a process that does nothing else.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

torch.set_num_threads(1)
FloatArray = NDArray[np.float64]
MIB = 2**20


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, one thread)"


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs, one entry a repetition.

    Attributes:
        wall: between the start and the end of a run, the device's work included.
        cpu: in which this process was running, all threads together; what others do on the machine moves it less.
    """

    wall: FloatArray
    cpu: FloatArray

    def __str__(self) -> str:
        return f"{np.median(self.wall):.3f} s ({self.wall.min():.3f} to {self.wall.max():.3f})"


def in_turn(functions: Sequence[Callable[[], Any]], repetitions: int, device: torch.device) -> list[Times]:
    """Time the functions in turn, in alternating order, each after one run that is not counted."""
    for function in functions:
        function()
    seconds = np.empty((len(functions), repetitions, 2))
    order = list(enumerate(functions))
    for repetition in range(repetitions):
        for i, function in order if repetition % 2 else reversed(order):
            _wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            _wait(device)
            seconds[i, repetition] = time.perf_counter() - wall, time.process_time() - cpu
    return [Times(wall=both[:, 0], cpu=both[:, 1]) for both in seconds]


def ratio(one: FloatArray, other: FloatArray) -> float:
    """Median over the repetitions of one over other: neighbouring runs see the same machine."""
    return float(np.median(one / other))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a function that tells, afterwards, the bytes by which memory in use grew at most."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
        before = _status("VmRSS")
        yield lambda: _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call in a process of its own, which owes nothing to what ran before.

    There glibc gives every block of a tensor's size back once it is freed: the resident set is what is in use.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)  # read by the new process alone, at its start
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(**values: Any) -> None:
    """One JSON line, numbers to four digits."""
    rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in values.items()}
    print(json.dumps(rounded), flush=True)
