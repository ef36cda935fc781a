"""One rank speaks, in lines that a log file can hold, and live only where somebody looks.

Why this matters: a progress bar of each rank in a Slurm log is thousands of lines of control characters. Not
exercised: how the live line looks.
"""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from nemo_ibtpo.reporting import progress
from nemo_ibtpo.reporting.progress import RunConsole

METRICS = {
    "train/avg_rate": 0.4125,
    "train/eff_rate": 0.75,
    "train/ib_score": -1.2,
    "train/cov": 0.0125,
    "perf/tokens_per_s": 12345.6,
}


def made(*, terminal: bool, rank: int = 0) -> tuple[RunConsole, io.StringIO]:
    out = io.StringIO()
    return RunConsole(rank, Console(file=out, force_terminal=terminal, width=60)), out


def test_step_line_is_one_line_whatever_the_width() -> None:
    console, out = made(terminal=False)
    console.step(3, 40, METRICS)
    assert out.getvalue() == (
        "step 3/40  reward 0.412  Eff-Rate 75.0%  IB-Score -1.200  Cov +0.0125  tokens/s 12,346\n"
    )


def test_an_evaluation_alone_shows_its_accuracy() -> None:
    console, out = made(terminal=False)
    console.step(0, 40, {"val/accuracy": 0.2488})
    assert out.getvalue() == "step 0/40  accuracy 24.9%\n"


def test_text_is_printed_as_it_is() -> None:
    console, out = made(terminal=False)
    console.say("[bold]a[/bold] " * 20)
    assert out.getvalue() == "[bold]a[/bold] " * 20 + "\n"


def test_a_log_file_hears_of_long_phases_only(monkeypatch: pytest.MonkeyPatch) -> None:
    console, out = made(terminal=False)
    with console.phase("rollout", total=4, unit="trees") as phase:
        phase.advance()
    assert out.getvalue() == "" and phase.done == 1
    monkeypatch.setattr(progress, "_PLAIN_PERIOD_S", 0.0)
    with console.phase("rollout", total=4, unit="trees") as phase:
        phase.advance(3)
    (line,) = out.getvalue().splitlines()
    assert line.startswith("rollout: 3/4 trees in ") and line.endswith(" trees/s, 0:00:00 left")


def test_a_terminal_sees_a_live_line_that_is_gone_afterwards() -> None:
    console, out = made(terminal=True)
    with console.phase("rollout", total=4, unit="trees") as phase:
        phase.advance(4)
    assert "4/4 trees" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # the line is erased


def test_other_ranks_are_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes any output look like a terminal
    monkeypatch.setattr(progress, "_PLAIN_PERIOD_S", 0.0)
    console = RunConsole(rank=1)
    threads = threading.active_count()
    with console.phase("rollout", total=4, unit="trees") as phase:
        phase.advance(4)
        assert threading.active_count() == threads  # nothing is drawn for nobody
    console.step(3, 40, METRICS)
    console.say("text")
    assert phase.done == 4
    assert capfd.readouterr() == ("", "")


def test_it_goes_on_when_its_reader_has_gone() -> None:
    program = "from nemo_ibtpo.reporting.progress import RunConsole\nimport sys\n"
    program += "console = RunConsole(0)\nfor n in range(9):\n    console.say('x' * 20000)\nsys.stderr.write('done')"
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == b"done"
    running.stderr.close()
    assert running.wait() == 0
