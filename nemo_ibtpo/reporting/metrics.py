"""What a run measures, one JSON object a step in ``metrics.jsonl``, and copies of it in trackers.

Invariants (tested by ``tests/unit/reporting/test_metrics_writer.py``):

- Every line is strict JSON. A value that is not finite becomes null and is named, with what it was, under
  ``non_finite``: it is never dropped and never breaks a reader.
- Steps increase within a writer. A line whose step is not above the one before begins a resumed run, which
  replaces what was logged from that step on; ``read_metrics`` returns what is valid.
- A line that a crash cut off has no newline; it is not a line. A writer that resumes takes it off, a reader
  that looks at a live file passes over it. Any other damage is an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.files import drop_cut_off_line, write_atomically
from nemo_ibtpo.reporting.trackers import Tracker

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends one object a step; for one rank only.

    Args:
        output_dir: made if it is not there; holds ``metrics.jsonl``.
        trackers: get the same after it is on the disk.
    """

    def __init__(self, output_dir: str | Path, trackers: Sequence[Tracker] = ()) -> None:
        self._directory = Path(output_dir)
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / FILE_NAME
        drop_cut_off_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._trackers = trackers
        self._last_step: int | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step; on disk when the call returns.

        Args:
            step: above that of the call before.
            metrics: numbers by name, such as ``train/avg_rate``.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"step {step} comes after step {self._last_step}: log a step once, in order")
        if reserved := {"step", "non_finite"} & set(metrics):
            raise ValueError(f"a metric cannot be called {' or '.join(sorted(reserved))}")
        values = {name: float(value) for name, value in metrics.items()}
        line: dict[str, Any] = {"step": step}
        line.update({name: value if math.isfinite(value) else None for name, value in values.items()})
        if odd := {name: str(value) for name, value in values.items() if not math.isfinite(value)}:
            line["non_finite"] = odd
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.write(step, values)
        self._last_step = step

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The valid lines of a ``metrics.jsonl``, steps increasing.

    Raises:
        UserError: there is no such file, or a complete line is not an object with an integer ``step``.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; a run writes it into its output_dir") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            step = row["step"]
            if type(step) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}, line {number}: not a JSON object with an integer step") from None
        while rows and rows[-1]["step"] >= step:
            rows.pop()
        rows.append(row)
    return rows


def drop_metrics_after(path: Path, step: int) -> None:
    """Take the lines after a step out of a ``metrics.jsonl``, in one go; before a resumed run writes them again."""
    if not path.exists():
        return
    drop_cut_off_line(path)
    rows = [row for row in read_metrics(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
