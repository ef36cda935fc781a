"""Sampled trees of a run on disk: ``trees/step_<n>.jsonl.gz``, one file a step.

A file is gzip of JSON lines: first the format, the step and the settings that its scores depend on, then one
``TreeRecord`` a line. Invariants (tested by ``tests/unit/inspection/test_archive.py``):

- A file appears complete or not at all.
- The files together take at most ``max_bytes``, or there is only one. What goes when room is needed is the step that
  lies closest between its neighbours, never the first nor the last: what is left covers the whole run evenly.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_ibtpo.config.errors import UserError
from nemo_ibtpo.files import write_atomically
from nemo_ibtpo.inspection.records import TreeRecord

DIRECTORY = "trees"
_FORMAT = "nemo_ibtpo.trees/1"
_NAME = re.compile(r"step_(\d+)\.jsonl\.gz")


@dataclass(frozen=True)
class StepTrees:
    """The kept trees of one step.

    Attributes:
        step: their step.
        settings: what the scores depend on: ``beta``, ``step_probability``, ``value_estimator``, the method's
            ``class`` and fields.
        trees: at least one.
    """

    step: int
    settings: dict[str, Any]
    trees: tuple[TreeRecord, ...]


class TreeArchive:
    """Writes and reads the trees of one run.

    Args:
        output_dir: of the run; the trees are in ``trees/`` below it, which need not exist.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.directory = Path(output_dir) / DIRECTORY

    def steps(self) -> list[int]:
        """Steps that have trees, in order."""
        if not self.directory.is_dir():
            return []
        matches = (_NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        """Where the trees of a step are, or will be."""
        return self.directory / f"step_{step}.jsonl.gz"

    def read(self, step: int) -> StepTrees:
        """The trees of a step.

        Raises:
            UserError: there are none, or the file is damaged or of another version.
        """
        path = self.path(step)
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                header, *rows = (json.loads(line) for line in file)
            if header["format"] != _FORMAT:
                raise ValueError(f"format {header['format']!r}; this release reads {_FORMAT!r}")
            return StepTrees(header["step"], header["settings"], tuple(map(TreeRecord.from_dict, rows)))
        except FileNotFoundError:
            kept = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{path}: there is no such file; steps with trees: {kept}") from None
        except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} holds no trees of this program: {error}") from None

    def write(self, content: StepTrees, max_bytes: int) -> None:
        """Write the trees of a step, then remove others until all take at most ``max_bytes``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(content.step)
        header = {"format": _FORMAT, "step": content.step, "settings": content.settings}
        lines = [json.dumps(line, allow_nan=False) for line in (header, *(tree.to_dict() for tree in content.trees))]
        write_atomically(path, gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))
        self._thin(max_bytes)

    def drop_after(self, step: int) -> None:
        """Remove the trees of later steps, before a resumed run writes them again."""
        for later in self.steps():
            if later > step:
                self.path(later).unlink()

    def _thin(self, max_bytes: int) -> None:
        steps = self.steps()
        sizes = {step: self.path(step).stat().st_size for step in steps}
        while sum(sizes.values()) > max_bytes and len(steps) > 1:
            doomed = _closest_between_neighbours(steps)
            self.path(doomed).unlink()
            steps.remove(doomed)
            del sizes[doomed]


def _closest_between_neighbours(steps: Sequence[int]) -> int:
    """The step that leaves the smallest gap; the earlier one of two steps."""
    inner = range(1, len(steps) - 1)
    return steps[min(inner, key=lambda i: steps[i + 1] - steps[i - 1], default=0)]
