"""How a run stands, and when it was asked to stop.

Why it matters: a launcher that takes a failed run for one that wants to be started again burns a night's allocation.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_ibtpo.checkpoints.status import failure_is_told, finished_steps, is_done, read_status, write_status
from nemo_ibtpo.checkpoints.stopping import StopRequest, reason
from nemo_ibtpo.config.loader import compose
from nemo_ibtpo.config.schema import TrainerConfig


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    StopRequest(None).install()  # forgets what came
    for number, handler in before.items():
        signal.signal(number, handler)


def trainer(max_steps: int, max_sampled_tokens: int | None = None) -> TrainerConfig:
    config = compose("tiny", []).trainer
    return replace(config, max_steps=max_steps, max_sampled_tokens=max_sampled_tokens)


def test_only_a_complete_run_is_finished(tmp_path: Path) -> None:
    output, three, four = tmp_path / "made" / "on" / "demand", trainer(3), trainer(4)
    assert finished_steps(output, three) is None
    for state in ("running", "requeue", "failed"):
        write_status(output, state, step=3, sampled_tokens=100)
        assert finished_steps(output, three) is None
    write_status(output, "complete", step=3, sampled_tokens=100)
    assert finished_steps(output, three) == 3
    assert finished_steps(output, four) is None, "a complete run that is to train on is not finished"
    assert finished_steps(output, trainer(4, 100)) == 3, "its budget of tokens is spent"
    (output / "status.json").write_text("{")
    assert read_status(output) is None and finished_steps(output, three) is None


def test_a_run_ends_with_its_steps_or_with_its_tokens() -> None:
    assert not is_done(trainer(4), 3, 10**9)
    assert is_done(trainer(4), 4, 0)
    assert not is_done(trainer(4, 100), 3, 99)
    assert is_done(trainer(4, 100), 3, 100)


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


@pytest.mark.parametrize("before", [True, False])
def test_nor_is_an_error_that_comes_with_the_request_to_stop(
    handlers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """The rank that is left meets EOFError or what else comes up, and torchrun's SIGTERM before or after it."""
    monkeypatch.setenv("RANK", "0")
    write_status(tmp_path, "running")
    StopRequest(None).install()
    with pytest.raises(EOFError), failure_is_told(tmp_path):
        if before:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise EOFError("unexpected EOF")
    status = read_status(tmp_path)
    assert status is not None and status["state"] == "running"


def test_nor_is_one_that_a_lost_rank_caused(tmp_path: Path) -> None:
    with pytest.raises(ValueError), failure_is_told(tmp_path):
        raise ValueError("nothing came") from RuntimeError(
            "[gloo/transport/tcp/pair.cc:547] Connection reset by peer"
        )
    assert read_status(tmp_path) is None


def test_ctrl_c_asks_and_the_second_interrupts(handlers: None, tmp_path: Path) -> None:
    stop = StopRequest(None)
    stop.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert reason(stop.code) == "SIGINT"
    with pytest.raises(KeyboardInterrupt), failure_is_told(tmp_path):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    assert json.loads((tmp_path / "status.json").read_text())["reason"] == "interrupted"


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
