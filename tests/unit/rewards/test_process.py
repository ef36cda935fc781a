"""The limits of a verifier process hold whatever a call does, and the next call finds a working process.

Calls of the standard library stand for the worst a verifier can be made to do.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nemo_ibtpo.rewards.process import CallCrashError, CallTimeoutError, WorkerProcess

TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def process() -> Iterator[WorkerProcess]:
    process = WorkerProcess(TIMEOUT_S)
    yield process
    process.close()


@pytest.mark.parametrize(("function", "args"), [(time.sleep, (60,)), (pow, (9, 9**9)), (sum, (range(10**12),))])
def test_a_call_that_takes_too_long_is_ended_even_inside_c(
    process: WorkerProcess, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    process.call(abs, 0)  # started, so that only the call is timed
    started = time.monotonic()
    with pytest.raises(CallTimeoutError):
        process.call(function, *args)
    assert TIMEOUT_S <= time.monotonic() - started < TIMEOUT_S + 10  # ten: for machines under load
    assert process.call(abs, -1) == 1


def test_the_timer_stops_with_the_call(process: WorkerProcess) -> None:
    assert process.call(abs, -1) == 1
    time.sleep(1.5 * TIMEOUT_S)
    assert process.call(abs, -1) == 1


def test_a_call_that_allocates_too_much_crashes(process: WorkerProcess) -> None:
    assert process.call(len, bytes(10**6)) == 10**6
    with pytest.raises(CallCrashError):
        process.call(bytearray, 2 << 30)
    assert process.call(abs, -1) == 1


def test_a_call_that_ends_the_process_crashes(process: WorkerProcess) -> None:
    with pytest.raises(CallCrashError):
        process.call(os._exit, 0)
    with pytest.raises(CallCrashError):
        process.call(os.abort)
    assert process.call(abs, -1) == 1


def test_no_file_can_be_written(process: WorkerProcess, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="File too large"):
        process.call(Path.write_text, tmp_path / "file", "text")


def test_an_exception_comes_back_with_its_traceback(process: WorkerProcess) -> None:
    with pytest.raises(RuntimeError, match="invalid literal for int"):
        process.call(int, "seven")
    assert process.call(abs, -1) == 1


def test_processes_killed_at_the_same_time_all_get_successors() -> None:
    """A right answer would be scored 0 if one of them were told a wrong exit code; seen in 4 % of such rounds."""
    processes = [WorkerProcess(TIMEOUT_S, verifiers=()) for _ in range(2)]
    with ThreadPoolExecutor(len(processes)) as threads:
        for _ in range(100):
            assert list(threads.map(lambda process: process.call(abs, -1), processes)) == [1, 1]
            for process in processes:
                os.kill(process._process.pid or 0, signal.SIGKILL)
    for process in processes:
        process.close()


OWNER = """
import signal, sys
from nemo_ibtpo.rewards.process import WorkerProcess
signal.signal(signal.SIGTERM, lambda *_: None)  # as a rank, which goes on to a safe point
print("signal me", flush=True)
process = WorkerProcess(5.0)
for number in range(1000):
    assert process.call(abs, -number) == number
print("started", flush=True)
for line in sys.stdin:
    process.call(abs, 0)
"""


def test_a_signal_to_the_owner_s_process_group_ends_neither_worker_nor_fork_server() -> None:
    """torchrun sends SIGTERM to the whole group of a rank when another one is lost, at any moment of its start."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        start_new_session=True,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert owner.stdin is not None and owner.stdout is not None
    assert owner.stdout.readline() == "signal me\n"
    os.set_blocking(owner.stdout.fileno(), False)
    rng = random.Random(0)
    while not (said := owner.stdout.readline()) and owner.poll() is None:
        os.killpg(owner.pid, signal.SIGTERM)
        time.sleep(rng.uniform(0, 0.05))
    assert said == "started\n", owner.communicate()[1]
    os.killpg(owner.pid, signal.SIGTERM)
    owner.stdin.write("once more\n")
    _, errors = owner.communicate(timeout=60)  # the worker does not keep its owner from leaving
    assert (owner.returncode, errors) == (0, "")


VERIFIERS = """
from nemo_ibtpo.data.problems import Problem
from nemo_ibtpo.rewards import worker
from nemo_ibtpo.rewards.process import WorkerProcess
process = WorkerProcess(1.0, verifiers=["exact"])
for name in ("exact", "math", "reasoning_gym"):
    print(process.call(eval, f"'nemo_ibtpo.rewards.verifiers.{name}' in __import__('sys').modules"))
print(process.call(worker.verify, "2.0", Problem("p", "1 + 1?", "2", "math", {}, (1,))))
process.close()
"""


def test_a_verifier_comes_when_a_problem_asks_for_it() -> None:
    """Importing one takes seconds, for which a run that does not use it shall not wait."""
    done = subprocess.run([sys.executable, "-c", VERIFIERS], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["True", "False", "False", "correct"]


PROGRAM = """
print("runs", flush=True)
from nemo_ibtpo.rewards.process import WorkerProcess
process = WorkerProcess(5.0, verifiers=["exact"])
print(process.call(abs, -1))
process.close()
"""


def test_the_owner_s_program_does_not_run_again_in_the_process(tmp_path: Path) -> None:
    """It may import torch, which takes half a minute beside other ranks, and may have no guard against that."""
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=300)
    assert (done.stdout.split(), done.returncode) == (["runs", "1"], 0), done.stderr
