"""What a run measured can be read back whole, whatever happened to the run.

Why this matters: the metrics file is the evidence of a run. A NaN that breaks the reader or vanishes, and a step that
counts twice after a resume, both falsify curves. TensorBoard's own files are read back with TensorBoard.
Not exercised: two processes that write one file; only one rank writes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.reporting.metrics import FILE_NAME, MetricsWriter, drop_metrics_after, read_metrics
from nemo_ibtpo.reporting.trackers import TensorBoard


def write(directory: Path, *steps: int, value: float = 0.0) -> None:
    with MetricsWriter(directory) as writer:
        for step in steps:
            writer.write(step, {"train/avg_rate": value})


def steps_and_values(directory: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/avg_rate"]) for row in read_metrics(directory / FILE_NAME)]


@given(st.dictionaries(st.text(min_size=1).filter(lambda name: name not in ("step", "non_finite")), st.floats()))
def test_values_come_back_and_lines_are_strict_json(
    tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, float]
) -> None:
    directory = tmp_path_factory.mktemp("run")
    with MetricsWriter(directory) as writer:
        writer.write(3, metrics)
    (line,) = (directory / FILE_NAME).read_text(encoding="utf-8").splitlines()
    row = json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON
    assert read_metrics(directory / FILE_NAME) == [row]
    assert row.pop("step") == 3
    odd = row.pop("non_finite", {})
    assert set(row) == set(metrics)
    for name, value in metrics.items():
        if math.isfinite(value):
            assert row[name] == value and name not in odd
        else:
            assert row[name] is None and odd[name] == str(value)


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "new" / "run")
    writer.write(0, {"val/accuracy": 0.25})
    assert read_metrics(tmp_path / "new" / "run" / FILE_NAME) == [{"step": 0, "val/accuracy": 0.25}]
    writer.close()


def test_a_step_is_logged_once_and_in_order(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write(2, {})
        for step in (2, 1):
            with pytest.raises(ValueError, match=f"step {step} comes after step 2"):
                writer.write(step, {})
        with pytest.raises(ValueError, match="a metric cannot be called step"):
            writer.write(3, {"step": 1.0})


def test_a_resumed_run_replaces_what_it_repeats_and_what_it_never_reached_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5, value=0.1)
    write(tmp_path, 3, 4, value=0.2)
    assert steps_and_values(tmp_path) == [(1, 0.1), (2, 0.1), (3, 0.2), (4, 0.2)]


@pytest.mark.parametrize("cut", [1, 10])
def test_a_line_that_a_crash_cut_off_is_passed_over_and_then_replaced(tmp_path: Path, cut: int) -> None:
    write(tmp_path, 1, 2, value=0.1)
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:-cut])
    assert steps_and_values(tmp_path) == [(1, 0.1)]
    write(tmp_path, 2, value=0.2)
    assert steps_and_values(tmp_path) == [(1, 0.1), (2, 0.2)]


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"a": 1}', '{"step": 1.0}', '{"step": true}'])
def test_any_other_damage_is_named(tmp_path: Path, line: str) -> None:
    write(tmp_path, 1)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2: not a JSON object with an integer step"):
        read_metrics(tmp_path / FILE_NAME)


def test_lines_after_a_step_are_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drop_metrics_after(path, 1)  # there is nothing yet
    with MetricsWriter(tmp_path) as writer:
        for step in range(4):
            writer.write(step, {"a": step / 3, "b": math.nan})
    with path.open("a") as file:
        file.write('{"step": 4, "a"')
    before = read_metrics(path)
    drop_metrics_after(path, 1)
    assert path.read_text().count("\n") == 2
    assert read_metrics(path) == before[:2]
    drop_metrics_after(path, -1)
    assert path.read_text() == ""


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_metrics(tmp_path / FILE_NAME)


def test_tensorboard_shows_the_same_and_hides_what_a_resume_replaced(tmp_path: Path) -> None:
    for start, value in ((1, 0.1), (3, 0.2)):
        with MetricsWriter(tmp_path, [TensorBoard(tmp_path / "tensorboard")]) as writer:
            for step in (start, start + 1, start + 2):
                writer.write(step, {"train/avg_rate": value, "loss": math.nan})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/avg_rate")]
    assert shown == [(step, pytest.approx(value)) for step, value in steps_and_values(tmp_path)]
    assert all(math.isnan(event.value) for event in events.Scalars("loss"))


def test_no_tensorboard_unless_asked_for(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert not (tmp_path / "tensorboard").exists()
