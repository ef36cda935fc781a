"""How a run stands, and when it was asked to stop.

Why it matters: a launcher that takes a failed run for one that wants to be started again burns a night's allocation.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_ibtpo.checkpoints.status import failure_is_told, finished_steps, read_status, write_status
from nemo_ibtpo.checkpoints.stopping import StopRequest, reason


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_only_a_complete_run_is_finished(tmp_path: Path) -> None:
    output = tmp_path / "made" / "on" / "demand"
    assert finished_steps(output) is None
    for state in ("running", "requeue", "failed"):
        write_status(output, state, step=3)
        assert finished_steps(output) is None
    write_status(output, "complete", step=3)
    assert finished_steps(output) == 3
    (output / "status.json").write_text("{")
    assert read_status(output) is None and finished_steps(output) is None


def test_an_error_of_its_own_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError), failure_is_told(tmp_path):
        raise ValueError("two\nlines")
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "two lines"


def test_a_lost_rank_is_not(tmp_path: Path) -> None:
    write_status(tmp_path, "running")
    with pytest.raises(RuntimeError), failure_is_told(tmp_path):
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    status = read_status(tmp_path)
    assert status is not None and status["state"] == "running"


def test_signals_are_noted(handlers: None) -> None:
    stop = StopRequest(None)
    stop.install()
    assert stop.code == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    assert reason(stop.code) == "SIGUSR1"
    os.kill(os.getpid(), signal.SIGTERM)
    assert reason(stop.code) == "SIGTERM"


def test_time_runs_out() -> None:
    stop = StopRequest(0.05)
    assert stop.code == 0
    time.sleep(0.06)
    assert reason(stop.code) == "trainer.max_time is over"
